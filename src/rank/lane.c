// The lane: gradients and weights to and from the other replicas, beside the computing, on the threads of the stage's groups.
#include "rank/internal.h"

#include <assert.h>
#include <string.h>

void gang_lane_init(struct gang_lane *lane, const struct gang_cell *cell, bool sharded, struct gang_arena *arena) {
    lane->cell = cell;
    lane->sharded = sharded;
    for (int p = 0; p < LANE_PHASES && lane->ways; p++) {
        lane->ready[p] = gang_arena_alloc(arena, (size_t)cell->bucket_count * sizeof **lane->ready);
        lane->ops[p] = gang_arena_alloc(arena, (size_t)cell->bucket_count * sizeof **lane->ops);
    }
}

void gang_lane_begin(struct gang_lane *lane, enum gang_lane_phase phase) {
    lane->next[phase] = 0;
    if (lane->ways) memset(lane->ready[phase], 0, (size_t)lane->cell->bucket_count * sizeof **lane->ready);
}

static enum gang_status start(struct gang_lane *lane, enum gang_lane_phase phase, int bucket) {
    const struct gang_net_bucket *b = &lane->cell->buckets[bucket];
    struct gang_collective *op = &lane->ops[phase][bucket];
    struct gang_comm *group = lane->groups[bucket % lane->ways];
    if (phase == LANE_GATHER) return gang_all_gather_start(group, lane->cell->parameters + b->offset, (size_t)b->elements, GANG_ELEMENT_F32, op);
    float *gradients = lane->cell->gradients + b->offset;
    return lane->sharded ? gang_reduce_scatter_start(group, gradients, (size_t)b->elements, GANG_ELEMENT_F32, op)
                         : gang_all_reduce_start(group, gradients, (size_t)b->elements, GANG_ELEMENT_F32, op);
}

enum gang_status gang_lane_post(struct gang_lane *lane, enum gang_lane_phase phase, int bucket) {
    enum gang_status status = GANG_OK;
    int n = lane->cell->bucket_count;
    lane->ready[phase][bucket] = true;
    while (lane->next[phase] < n && !status) {
        int next = phase == LANE_REDUCE ? lane->next[phase] : n - 1 - lane->next[phase];
        if (!lane->ready[phase][next]) break;
        status = start(lane, phase, next);
        lane->next[phase]++;
    }
    return status;
}

enum gang_status gang_lane_wait(struct gang_lane *lane, enum gang_lane_phase phase, int bucket) {
    assert(lane->ready[phase][bucket] && "waits for what nobody has posted");
    return gang_collective_wait(&lane->ops[phase][bucket]);
}
