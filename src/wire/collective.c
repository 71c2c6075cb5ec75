// Who runs a sum: the caller, or, when it was only started, the group's worker.
//
// Started collectives stand in a queue, in the order of the calls; the worker, a thread that the first of them brings to life,
// runs one at a time and sleeps when there is none. A blocking call waits until the queue is empty and then works in the
// caller's thread, so that it costs no change of thread. Whatever the mix, a group works on one collective at a time, in the
// order of the calls; the members see to it that this order is the same on all.
#include "wire/group.h"

#include <assert.h>

static void *work(void *context) {
    struct gang_comm *g = context;
    pthread_mutex_lock(&g->lock);
    for (;;) {
        struct gang_collective *op = g->first;
        if (!op && g->stop) break;
        if (!op) {
            pthread_cond_wait(&g->started, &g->lock);
            continue;
        }
        pthread_mutex_unlock(&g->lock);
        op->began = gang_seconds();
        enum gang_status status = gang_comm_reduce(g, op->kind, op->data, op->count, op->type);
        pthread_mutex_lock(&g->lock);
        g->first = op->next; // before it is done, and perhaps gone
        op->ended = gang_seconds();
        op->status = status;
        op->done = true;
        pthread_cond_broadcast(&g->finished);
    }
    pthread_mutex_unlock(&g->lock);
    return NULL;
}

void gang_collective_init(struct gang_comm *g) {
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->started, NULL);
    pthread_cond_init(&g->finished, NULL);
}

void gang_collective_release(struct gang_comm *g) {
    assert(!g->first && "a group is freed while a collective is under way");
    pthread_mutex_lock(&g->lock);
    g->stop = true;
    pthread_cond_signal(&g->started);
    pthread_mutex_unlock(&g->lock);
    if (g->has_worker) pthread_join(g->worker, NULL);
    pthread_cond_destroy(&g->finished);
    pthread_cond_destroy(&g->started);
    pthread_mutex_destroy(&g->lock);
}

enum gang_status gang_comm_enter(struct gang_comm *g) {
    pthread_mutex_lock(&g->lock);
    while (g->first) pthread_cond_wait(&g->finished, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return gang_comm_check(g);
}

static enum gang_status now(struct gang_comm *g, enum gang_reduction kind, void *data, size_t count, enum gang_element type) {
    enum gang_status status = gang_comm_enter(g);
    return status ? status : gang_comm_reduce(g, kind, data, count, type);
}

static enum gang_status later(struct gang_comm *g, enum gang_reduction kind, void *data, size_t count, enum gang_element type,
                              struct gang_collective *op) {
    enum gang_status status = GANG_OK;
    *op = (struct gang_collective){.group = g, .kind = kind, .type = type, .data = data, .count = count};
    pthread_mutex_lock(&g->lock);
    if (!g->has_worker) {
        g->has_worker = pthread_create(&g->worker, NULL, work, g) == 0;
        if (!g->has_worker) status = gang_fail_os("group: cannot start a thread");
    }
    if (!status) {
        struct gang_collective **end = &g->first;
        while (*end) end = &(*end)->next;
        *end = op;
        pthread_cond_signal(&g->started);
    }
    pthread_mutex_unlock(&g->lock);
    return status;
}

enum gang_status gang_collective_wait(struct gang_collective *op) {
    struct gang_comm *g = op->group;
    pthread_mutex_lock(&g->lock);
    while (!op->done) pthread_cond_wait(&g->finished, &g->lock);
    pthread_mutex_unlock(&g->lock);
    return op->status ? gang_comm_check(g) : GANG_OK; // a group that is broken stays so
}

bool gang_collective_done(struct gang_collective *op) {
    pthread_mutex_lock(&op->group->lock);
    bool done = op->done;
    pthread_mutex_unlock(&op->group->lock);
    return done;
}

enum gang_status gang_all_reduce(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    return now(g, GANG_ALL_REDUCE, data, count, type);
}

enum gang_status gang_reduce_scatter(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    return now(g, GANG_REDUCE_SCATTER, data, count, type);
}

enum gang_status gang_all_gather(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    return now(g, GANG_ALL_GATHER, data, count, type);
}

enum gang_status gang_all_reduce_start(struct gang_comm *g, void *data, size_t count, enum gang_element type, struct gang_collective *op) {
    return later(g, GANG_ALL_REDUCE, data, count, type, op);
}

enum gang_status gang_reduce_scatter_start(struct gang_comm *g, void *data, size_t count, enum gang_element type, struct gang_collective *op) {
    return later(g, GANG_REDUCE_SCATTER, data, count, type, op);
}

enum gang_status gang_all_gather_start(struct gang_comm *g, void *data, size_t count, enum gang_element type, struct gang_collective *op) {
    return later(g, GANG_ALL_GATHER, data, count, type, op);
}
