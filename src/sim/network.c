// Max-min fair rates by filling: all flows grow together; where a resource or a flow's own cap is full, what stands on it stops.
#include "sim/network.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static struct gang_flow *flows_of(const struct gang_network *n) { return (struct gang_flow *)(void *)n->flows.data; }
static size_t count_of(const struct gang_network *n) { return n->flows.len / sizeof(struct gang_flow); }

void gang_network_init(struct gang_network *n, int resources, struct gang_arena *arena) {
    size_t bytes = (size_t)resources * sizeof(double) + 1;
    *n = (struct gang_network){.arena = arena, .resource_count = resources};
    n->capacity = gang_arena_alloc(arena, bytes);
    n->carried = gang_arena_alloc(arena, bytes);
    n->peak = gang_arena_alloc(arena, bytes);
    n->room = gang_arena_alloc(arena, bytes);
    n->weight = gang_arena_alloc(arena, bytes);
}

void gang_network_release(struct gang_network *n) { gang_buffer_release(&n->flows); }

int gang_network_add(struct gang_network *n, int tag, double bytes, double cap, const struct gang_use *uses, int use_count) {
    struct gang_flow flow = {.id = n->next_id++, .tag = tag, .left = bytes, .cap = cap, .use_count = use_count};
    flow.uses = gang_arena_alloc(n->arena, (size_t)use_count * sizeof *uses + 1);
    if (use_count) memcpy(flow.uses, uses, (size_t)use_count * sizeof *uses);
    gang_buffer_append(&n->flows, &flow, sizeof flow);
    n->dirty = true;
    return flow.id;
}

static void fill(struct gang_network *n) {
    struct gang_flow *flows = flows_of(n);
    size_t count = count_of(n), frozen = 0;
    memcpy(n->room, n->capacity, (size_t)n->resource_count * sizeof(double));
    for (size_t f = 0; f < count; f++) flows[f].rate = -1;
    while (frozen < count) {
        for (size_t f = 0; f < count; f++)
            for (int u = 0; u < flows[f].use_count; u++) n->weight[flows[f].uses[u].resource] = 0;
        double level = INFINITY; // the rate at which the first of those still growing stops
        for (size_t f = 0; f < count; f++) {
            if (flows[f].rate >= 0) continue;
            level = fmin(level, flows[f].cap);
            for (int u = 0; u < flows[f].use_count; u++) n->weight[flows[f].uses[u].resource] += flows[f].uses[u].share;
        }
        for (size_t f = 0; f < count; f++)
            for (int u = 0; u < flows[f].use_count && flows[f].rate < 0; u++) {
                int r = flows[f].uses[u].resource;
                if (n->weight[r] > 0) level = fmin(level, n->room[r] / n->weight[r]);
            }
        assert(level >= 0 && !isinf(level));
        // Mark first, take off after: what is full at this level stops together.
        for (size_t f = 0; f < count; f++) {
            if (flows[f].rate >= 0) continue;
            bool full = flows[f].cap <= level * (1 + 1e-12);
            for (int u = 0; u < flows[f].use_count && !full; u++) {
                int r = flows[f].uses[u].resource;
                full = n->weight[r] > 0 && n->room[r] / n->weight[r] <= level * (1 + 1e-12);
            }
            if (full) flows[f].rate = -2;
        }
        for (size_t f = 0; f < count; f++) {
            if (flows[f].rate != -2) continue;
            flows[f].rate = level;
            frozen++;
            for (int u = 0; u < flows[f].use_count; u++) {
                double *room = &n->room[flows[f].uses[u].resource];
                *room = fmax(0, *room - level * flows[f].uses[u].share);
            }
        }
    }
    for (size_t f = 0; f < count; f++)
        for (int u = 0; u < flows[f].use_count; u++) {
            int r = flows[f].uses[u].resource;
            n->peak[r] = fmax(n->peak[r], n->capacity[r] - n->room[r]);
        }
    n->dirty = false;
}

double gang_network_next(struct gang_network *n) {
    if (n->dirty) fill(n);
    double next = INFINITY;
    const struct gang_flow *flows = flows_of(n);
    for (size_t f = 0; f < count_of(n); f++) next = fmin(next, n->now + flows[f].left / flows[f].rate);
    return next;
}

int gang_network_advance(struct gang_network *n, double time) {
    struct gang_flow *flows = flows_of(n);
    double passed = time - n->now;
    int ended = -1;
    size_t which = 0;
    if (n->dirty) fill(n);
    for (size_t f = 0; f < count_of(n); f++) {
        double bytes = fmin(flows[f].left, flows[f].rate * passed);
        bool ends = ended < 0 && n->now + flows[f].left / flows[f].rate <= time;
        if (ends) bytes = flows[f].left, ended = flows[f].tag, which = f;
        flows[f].left -= bytes;
        for (int u = 0; u < flows[f].use_count; u++) n->carried[flows[f].uses[u].resource] += bytes * flows[f].uses[u].share;
    }
    n->now = time;
    if (ended < 0) return -1;
    memmove(flows + which, flows + which + 1, (count_of(n) - which - 1) * sizeof *flows);
    n->flows.len -= sizeof *flows;
    n->dirty = true;
    return ended;
}
