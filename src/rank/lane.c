// The lane: gradients and weights to and from the other replicas, beside the computing.
#include "rank/internal.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static enum gang_status exchange(struct gang_lane *lane, enum gang_lane_phase phase, int bucket) {
    const struct gang_net_bucket *b = &lane->cell->buckets[bucket];
    size_t count = (size_t)b->elements;
    if (phase == LANE_GATHER) return gang_all_gather(lane->group, lane->cell->parameters + b->offset, count, GANG_ELEMENT_F32);
    enum gang_status status = bucket == lane->tied ? gang_lane_add_tied(lane) : GANG_OK;
    if (status || !lane->group) return status;
    float *gradients = lane->cell->gradients + b->offset;
    return lane->sharded ? gang_reduce_scatter(lane->group, gradients, count, GANG_ELEMENT_F32)
                         : gang_all_reduce(lane->group, gradients, count, GANG_ELEMENT_F32);
}

enum gang_status gang_lane_add_tied(struct gang_lane *lane) {
    enum gang_status status = gang_wire_wait(lane->tied_op);
    if (status) return status;
    float *to = lane->cell->gradients + lane->tied_offset;
    for (size_t i = 0; i < lane->tied_elements; i++) to[i] += lane->tied_gradient[i];
    return GANG_OK;
}

// Waits until the bucket is posted once more than it was done; false at the end.
static bool await_post(struct gang_lane *lane, enum gang_lane_phase phase, int bucket) {
    pthread_mutex_lock(&lane->lock);
    while (!lane->end && lane->posted[phase][bucket] == lane->done[phase][bucket]) pthread_cond_wait(&lane->changed, &lane->lock);
    bool go = !lane->end;
    pthread_mutex_unlock(&lane->lock);
    return go;
}

static void settle(struct gang_lane *lane, enum gang_lane_phase phase, int bucket, enum gang_status status, double began) {
    pthread_mutex_lock(&lane->lock);
    lane->done[phase][bucket]++;
    lane->spans[phase][bucket] = (struct gang_lane_span){began, gang_seconds()};
    if (status && !lane->status) {
        lane->status = status;
        snprintf(lane->error, sizeof lane->error, "%s", gang_error());
    }
    pthread_cond_broadcast(&lane->changed);
    pthread_mutex_unlock(&lane->lock);
}

static void *run(void *context) {
    struct gang_lane *lane = context;
    int n = lane->cell->bucket_count;
    for (enum gang_lane_phase phase = LANE_REDUCE;; phase = lane->sharded && phase == LANE_REDUCE ? LANE_GATHER : LANE_REDUCE)
        for (int i = 0; i < n; i++) {
            int bucket = phase == LANE_REDUCE ? i : n - 1 - i;
            if (!await_post(lane, phase, bucket)) return NULL;
            double began = gang_seconds();
            enum gang_status status = exchange(lane, phase, bucket);
            settle(lane, phase, bucket, status, began);
            if (status) return NULL;
        }
}

void gang_lane_start(struct gang_lane *lane, struct gang_arena *arena) {
    size_t n = (size_t)lane->cell->bucket_count;
    for (int p = 0; p < LANE_PHASES; p++) {
        lane->posted[p] = gang_arena_alloc(arena, n * sizeof **lane->posted);
        lane->done[p] = gang_arena_alloc(arena, n * sizeof **lane->done);
        lane->spans[p] = gang_arena_alloc(arena, n * sizeof **lane->spans);
    }
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->changed, NULL);
    int failed = pthread_create(&lane->thread, NULL, run, lane);
    assert(!failed && "no thread");
    lane->started = true;
}

void gang_lane_stop(struct gang_lane *lane) {
    if (!lane->started) return;
    pthread_mutex_lock(&lane->lock);
    lane->end = true;
    pthread_cond_broadcast(&lane->changed);
    pthread_mutex_unlock(&lane->lock);
    pthread_join(lane->thread, NULL);
    pthread_cond_destroy(&lane->changed);
    pthread_mutex_destroy(&lane->lock);
    lane->started = false;
}

void gang_lane_post(struct gang_lane *lane, enum gang_lane_phase phase, int bucket) {
    pthread_mutex_lock(&lane->lock);
    lane->posted[phase][bucket]++;
    pthread_cond_broadcast(&lane->changed);
    pthread_mutex_unlock(&lane->lock);
}

enum gang_status gang_lane_wait(struct gang_lane *lane, enum gang_lane_phase phase, int bucket) {
    pthread_mutex_lock(&lane->lock);
    while (!lane->status && lane->done[phase][bucket] < lane->posted[phase][bucket]) pthread_cond_wait(&lane->changed, &lane->lock);
    enum gang_status status = lane->status;
    if (status) gang_error_set("%s", lane->error);
    pthread_mutex_unlock(&lane->lock);
    return status;
}
