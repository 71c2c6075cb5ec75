// random: tiny tasks, pools of 1 to 8 devices and layouts of one on the other, drawn by a seed. Every layout is one that can be placed,
// ordered, verified and run. Include after "test.h".
#ifndef GANG_RANDOM_H
#define GANG_RANDOM_H

#include "plan/plan.h"

struct gang_draws {
    uint64_t seed, stream, next;
};

static inline int gang_draw(struct gang_draws *draws, int64_t below) {
    return (int)(gang_random_at(draws->seed, draws->stream, draws->next++) % (uint64_t)below);
}

// A model of 1 to 12 layers and a batch of 1 to 28 short sequences.
static inline void gang_random_task(uint64_t seed, struct gang_task *out) {
    struct gang_draws d = {seed, 401, 0};
    *out = (struct gang_task){
        .sequence_length = 8 << gang_draw(&d, 3), .global_batch = (1 + gang_draw(&d, 7)) << gang_draw(&d, 3), .math = GANG_MATH_F32};
    struct gang_shape *s = &out->shape;
    s->layers = 1 + gang_draw(&d, 12);
    s->heads = 4;
    s->kv_heads = 1 << gang_draw(&d, 3);
    s->qk_dim = s->v_dim = 4 << gang_draw(&d, 3);
    s->hidden = s->heads * s->qk_dim;
    s->ffn = s->hidden * (1 + gang_draw(&d, 3));
    s->vocab = 64 << gang_draw(&d, 3);
    s->gated = true;
    s->tied = gang_draw(&d, 2);
}

static inline struct gang_group *gang_random_group(struct gang_draws *d, const struct gang_kind *kind, int site, int64_t devices,
                                                   struct gang_arena *arena) {
    struct gang_group *group = gang_arena_alloc(arena, sizeof *group);
    bool one_node = gang_draw(d, 2);
    *group = (struct gang_group){.name = kind->name,
                                 .device = kind->name,
                                 .kind = kind,
                                 .site = site,
                                 .nodes = one_node ? 1 : devices,
                                 .devices = one_node ? devices : 1,
                                 .fast_domain = one_node ? devices : 1,
                                 .fast_bandwidth = kind->fast_bandwidth,
                                 .nic_bandwidth = kind->nic_bandwidth,
                                 .nic_latency = 5e-6,
                                 .host_memory = 1e12,
                                 .host_bandwidth = 1e11,
                                 .oversubscription = 1};
    return group;
}

// One group, two in one site, or one in each of two sites that a slow link joins; of one kind or of two.
static inline void gang_random_pool(uint64_t seed, struct gang_arena *arena, struct gang_pool *out) {
    static const char *const names[] = {"H100-80GB", "A100-40GB", "RTX-4090", "cpu-2core"};
    static char *const site_names[] = {"near", "far"};
    struct gang_draws d = {seed, 402, 0};
    struct gang_list kinds;
    gang_kinds_builtin(arena, &kinds);
    int devices = 1 + gang_draw(&d, 8), groups = devices > 1 ? 1 + gang_draw(&d, 2) : 1, sites = groups > 1 ? 1 + gang_draw(&d, 2) : 1;
    int kind = gang_draw(&d, 4), like = gang_draw(&d, 2), first = groups > 1 ? 1 + gang_draw(&d, devices - 1) : devices;
    struct gang_site *site = gang_arena_alloc(arena, (size_t)sites * sizeof *site);
    struct gang_link *link = gang_arena_alloc(arena, sizeof *link);
    *link = (struct gang_link){.a = 0, .b = 1, .bandwidth = 1e7 * (1 + gang_draw(&d, 1000)), .planes = 1, .delay = 1e-3 * gang_draw(&d, 6)};
    *out = (struct gang_pool){
        .path = "(random)", .name = "random", .sites = {sites, site}, .links = {sites - 1, link}, .group_count = groups, .devices = devices};
    out->groups = gang_arena_alloc(arena, (size_t)groups * sizeof *out->groups);
    for (int g = 0; g < groups; g++)
        out->groups[g] = gang_random_group(&d, gang_kind_find(&kinds, names[(kind + (like ? 0 : g)) % 4]), sites > 1 ? g : 0,
                                           g ? devices - first : first, arena);
    for (int s = 0; s < sites; s++) site[s] = (struct gang_site){.name = site_names[s]};
    out->routes = gang_arena_alloc(arena, (size_t)(sites * sites) * sizeof *out->routes);
    if (sites > 1) out->routes[1] = out->routes[2] = (struct gang_route){.count = 1, .delay = link->delay};
}

// The layers over chunks, at least one on each, anyhow.
static inline void gang_random_layers(struct gang_draws *d, int64_t layers, struct gang_layout *out) {
    out->layer_count = out->pp * out->vpp;
    for (int c = 0; c < out->layer_count; c++) out->layers[c] = 1;
    for (int64_t left = layers - out->layer_count; left > 0; left--) out->layers[gang_draw(d, out->layer_count)]++;
}

// A micro-batch of its own for each kind of replicas, where there are several and the sizes add up to the batch.
static inline void gang_random_sizes(struct gang_draws *d, const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *layout) {
    struct gang_arena arena;
    struct gang_placement placement;
    struct gang_layout mixed = *layout;
    gang_arena_init(&arena);
    assert_ok(gang_layout_place(task, pool, &mixed, &arena, &placement));
    mixed = *layout;
    for (int k = 0; k < placement.kind_count; k++) mixed.sizes[k] = 1 + gang_draw(d, 4);
    mixed.micro_batch = mixed.sizes[0];
    mixed.size_count = placement.kind_count;
    bool alike = placement.kind_count == 1;
    for (int k = 1; k < placement.kind_count && !alike; k++) alike = mixed.sizes[k] == mixed.sizes[0];
    struct gang_layout settled = mixed;
    if (!alike && !gang_layout_place(task, pool, &settled, &arena, &placement)) *layout = mixed;
    gang_arena_release(&arena);
}

// A width of 1, 2 or 4 for each stage of a layout of gang_random_layout, where some that were drawn fit; false where none do.
static inline bool gang_random_widths(uint64_t seed, const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *layout) {
    struct gang_draws d = {seed, 404, 0};
    struct gang_arena arena;
    bool fits = false;
    gang_arena_init(&arena);
    for (int i = 0; i < 32 && layout->pp > 1 && !fits; i++) {
        struct gang_layout settled, wide = *layout;
        struct gang_placement placement;
        for (wide.width_count = 0; wide.width_count < wide.pp; wide.width_count++) wide.widths[wide.width_count] = (uint16_t)(1 << gang_draw(&d, 3));
        wide.tp = wide.widths[0];
        wide.sequence_parallel = gang_draw(&d, 2);
        settled = wide;
        fits = !gang_layout_place(task, pool, &settled, &arena, &placement) && settled.width_count;
        if (fits) *layout = wide;
    }
    gang_arena_release(&arena);
    return fits;
}

// pp, dp, vpp, micro-batches, uneven layers, recomputation and offload of each stage, zero 0 or 1, place, overlap and a schedule that
// applies; tp, cp and ep stay 1.
static inline void gang_random_layout(uint64_t seed, const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *out) {
    struct gang_draws d = {seed, 403, 0};
    int64_t layers = task->shape.layers, devices = pool->devices;
    bool like = true;
    for (int g = 1; g < pool->group_count; g++) like &= pool->groups[g]->kind == pool->groups[0]->kind;
    gang_layout_init(out);
    out->pp = 1 + gang_draw(&d, layers < devices ? layers : devices);
    if (out->pp > 1 && layers >= 2 * out->pp && gang_draw(&d, 2)) out->vpp = 2 + gang_draw(&d, layers / out->pp - 1);
    do out->micro_batch = 1 + gang_draw(&d, 4);
    while (task->global_batch % out->micro_batch);
    int64_t batches = task->global_batch / out->micro_batch, room = devices / out->pp;
    out->dp = 1 + gang_draw(&d, batches < room ? batches : room);
    out->recompute.at[0] = (uint8_t)gang_draw(&d, GANG_RECOMPUTES);
    if (out->pp > 1 && gang_draw(&d, 2))
        for (; out->recompute.count < out->pp; out->recompute.count++)
            out->recompute.at[out->recompute.count] = (uint8_t)gang_draw(&d, GANG_RECOMPUTES);
    bool offloads = true;
    for (int g = 0; g < pool->group_count; g++) offloads &= gang_group_offloads(pool->groups[g]);
    if (offloads && gang_draw(&d, 2))
        for (; out->offload.count < out->pp; out->offload.count++) out->offload.at[out->offload.count] = (uint8_t)gang_draw(&d, GANG_OFFLOADS);
    out->zero = gang_draw(&d, 2);
    out->place = gang_draw(&d, 2);
    out->dp_overlap = gang_draw(&d, 2);
    if (gang_draw(&d, 2)) gang_random_layers(&d, layers, out);
    const int plain[] = {GANG_SCHEDULE_AUTO, GANG_SCHEDULE_LIST, GANG_SCHEDULE_1F1B, GANG_SCHEDULE_ZERO_BUBBLE};
    const int chunked[] = {GANG_SCHEDULE_AUTO, GANG_SCHEDULE_LIST, GANG_SCHEDULE_INTERLEAVED, GANG_SCHEDULE_INTERLEAVED};
    // Interleaving wants whole groups of micro-batches in every replica: with fewer replicas there are some more often.
    while (like && out->vpp > 1 && out->dp > 1 && batches % ((int64_t)out->dp * out->pp)) out->dp--;
    bool whole = like && batches % ((int64_t)out->dp * out->pp) == 0;
    out->schedule = out->vpp > 1 ? chunked[gang_draw(&d, whole ? 4 : 2)] : plain[gang_draw(&d, out->pp > 1 ? 4 : 3)];
    if (out->schedule != GANG_SCHEDULE_INTERLEAVED) gang_random_sizes(&d, task, pool, out);
}

#endif
