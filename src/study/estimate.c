// The closed form of a pipeline: the slowest stage works through all micro-batches; before and behind it the others fill and
// drain, one part in vpp of their work, less where the weights' halves fill the gap; exchanges add what one backward or forward
// pass cannot hide.
//
// The search asks for millions: what layouts of the same widths, stages, replicas and place have in common (a ground) is worked out once,
// and chunks are sums of parts that are already summed over what time is spent on. Nothing is allocated for a layout.
#include "study/estimate.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static bool lie_alike(const struct gang_layout *l, const struct gang_placement *placement, int a, int b) {
    if (gang_tp_of(l, a) != gang_tp_of(l, b)) return false;
    for (int c = 0; c < placement->class_count; c++)
        if (placement->classes[c].groups[a] != placement->classes[c].groups[b]) return false;
    return true;
}

static void add_exchange(struct gang_exchanges *x, const struct gang_layout *l, int chunk, const struct gang_chunk_cost *cost, double times,
                         struct gang_stage_sum *sum) {
    int stage = chunk % l->pp;
    if (l->zero >= 3) return; // inside the passes
    bool alike = x->stage >= 0 && lie_alike(l, x->placement, x->stage, stage);
    if (!alike) gang_ways_of(x->pool, l, x->placement, stage, &x->ways);
    if (!alike || x->parameters != cost->parameters) {
        struct gang_exchange reduce, gather;
        gang_chunk_exchange(x->task, x->pool, l, &x->ways, cost->parameters, &reduce, &gather);
        x->parameters = cost->parameters;
        x->reduce = gang_exchange_seconds(x->pool, &reduce, l->pp);
        x->gather = gang_exchange_seconds(x->pool, &gather, l->pp);
    }
    x->stage = stage;
    sum->reduce += times * x->reduce;
    sum->gather += times * x->gather;
}

static void add_work(const struct gang_chunk_cost *cost, double times, struct gang_stage_sum *sum) {
    sum->forward += times * (gang_time_sum(&cost->forward) + gang_copy_shown(cost, GANG_OP_FORWARD));
    sum->input += times * (gang_time_sum(&cost->input) + gang_copy_shown(cost, GANG_OP_BACKWARD));
    sum->weight += times * gang_time_sum(&cost->weight);
    sum->fixed += times * (cost->parameter_bytes + cost->gradient_bytes + cost->optimizer_bytes);
    sum->activation = gang_larger(sum->activation, cost->activation_bytes);
    sum->host += times * cost->host_bytes;
    sum->layers += times * cost->layers;
    if (cost->layers) sum->layer_parameters = gang_larger(sum->layer_parameters, cost->parameters / cost->layers);
}

static void add_chunk(struct gang_exchanges *x, const struct gang_layout *l, int chunk, const struct gang_chunk_cost *cost, double times,
                      struct gang_stage_sum *sum) {
    if (x) add_exchange(x, l, chunk, cost, times, sum);
    add_work(cost, times, sum);
}

double gang_in_flight(const struct gang_layout *l, double m, int from_end) {
    double chunks = l->vpp == 1 ? from_end + 1 : 2 * from_end + (l->vpp - 1) * l->pp + 1;
    return gang_smaller(chunks, m * l->vpp);
}

double gang_share_used(const struct gang_layout *l, const struct gang_stage_sum *s, double m, int from_end) {
    double chunks = gang_in_flight(l, m, from_end), host = s->host + (s->away ? (chunks - 1) * s->activation : 0);
    if (s->away) chunks = gang_smaller(chunks, gang_passes_here);
    double share = (s->fixed + chunks * s->activation) / (s->limit * (1 - gang_memory_margin));
    return host > 0 ? gang_larger(share, host / (s->host_limit * (1 - gang_memory_margin))) : share;
}

// Micro-batches that go through the stage's chunks together, as many as there is room for: their passes hide its exchanges.
static double group_of(const struct gang_layout *l, const struct gang_stage_sum *s, double m, int from_end) {
    if (l->vpp == 1) return 1;
    double room = s->away ? INFINITY : (s->limit * (1 - gang_memory_margin) - s->fixed) / s->activation;
    return gang_smaller(m, gang_larger(l->pp, (room - 1 - 2 * from_end) / (l->vpp - 1)));
}

// What is left of an exchange of which passes of so many seconds each hide a part: its last piece, and of its last chunk what one pass leaves.
static double left_of(const struct gang_layout *l, const struct gang_stage_sum *s, double exchange, double pass, double group) {
    if (!l->dp_overlap) return exchange;
    double shown = gang_larger(exchange / gang_larger(s->layers, 1), exchange - group * pass);
    return gang_larger(shown, (exchange - pass) / l->vpp);
}

// Of a replica of the class.
static double combine(const struct gang_layout *l, const struct gang_class *class, const struct gang_stage_sum *stages, int count, double delay,
                      double *memory_used) {
    double m = (double)class->micro_batches;
    double slowest = 0, fill = 0, exchange = 0, fill_slowest = 0;
    int before = 0;
    for (int i = 0; i < count; i++) {
        const struct gang_stage_sum *s = &stages[i];
        double work = s->forward + s->input + s->weight, whole = work / l->vpp;
        // What one stage adds to filling and draining: all of it, or what the weights' halves leave (ZB-H1).
        double part = l->vpp == 1 ? gang_larger(s->forward + s->input - s->weight, 0) : whole;
        if (work > slowest) slowest = work, fill_slowest = part;
        fill += s->count * part;
        double group = group_of(l, s, m, l->pp - 1 - before);
        double shown = left_of(l, s, s->reduce, s->input + s->weight, group) + left_of(l, s, s->gather, s->forward, group);
        exchange = gang_larger(exchange, shown + s->update);
        *memory_used = gang_larger(*memory_used, gang_share_used(l, s, m, l->pp - 1 - before));
        before += s->count;
    }
    return m * slowest + (fill - fill_slowest) + 2 * (l->pp - 1) * delay + exchange;
}

double gang_hop_seconds(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                        const struct gang_placement *placement) {
    const struct gang_class *class = &placement->classes[0];
    struct gang_hop hop;
    if (l->pp == 1) return 0;
    gang_hop_between(pool, l, placement, 0, 0, 1, &hop);
    return hop.delay + gang_message_bytes(task, class->micro_batch) /
                           gang_smaller(hop.bandwidth, gang_route_bandwidth(pool, hop.route) / (double)class->replicas);
}

// One group: only the first stage, the last, and those between are unlike.

void gang_sum_alike(const struct gang_task *task, const struct gang_layout *l, const struct gang_price *price, enum gang_recompute recompute,
                    struct gang_exchanges *x, struct gang_stage_sum sums[GANG_ENDS]) {
    const struct gang_shape *shape = &task->shape;
    int chunks = l->pp * l->vpp;
    int64_t n = (shape->layers + chunks - 1) / chunks, least = shape->layers / chunks;
    int64_t dense = shape->experts ? (shape->dense_layers < least ? shape->dense_layers : least) : least;
    struct gang_chunk_cost first, middle, last;
    bool one = chunks == 1;
    for (int i = 0; i < GANG_ENDS; i++) sums[i] = (struct gang_stage_sum){.limit = price->group->kind->memory_bytes};
    gang_price_chunk(task, l, price, recompute, one && !shape->experts ? n : dense, least - dense, true, one, &first);
    add_chunk(x, l, 0, &first, 1, &sums[GANG_END_FIRST]);
    if (!one) {
        gang_price_chunk(task, l, price, recompute, shape->experts ? 0 : n, shape->experts ? n : 0, false, false, &middle);
        gang_price_chunk(task, l, price, recompute, shape->experts ? 0 : least, shape->experts ? least : 0, false, true, &last);
        if (l->pp == 1) add_chunk(x, l, chunks - 1, &last, 1, &sums[GANG_END_FIRST]);
        if (l->vpp > 1) add_chunk(x, l, 0, &middle, l->pp > 1 ? l->vpp - 1 : l->vpp - 2, &sums[GANG_END_FIRST]);
        if (l->pp > 2) add_chunk(x, l, 1, &middle, l->vpp, &sums[GANG_END_MIDDLE]);
        add_chunk(x, l, chunks - 1, &last, 1, &sums[GANG_END_LAST]);
        if (l->vpp > 1) add_chunk(x, l, l->pp - 1, &middle, l->vpp - 1, &sums[GANG_END_LAST]);
    }
    for (int i = 0; i < GANG_ENDS; i++) sums[i].fixed += gang_buffer_bytes(task, l, price->tp, l->micro_batch, recompute, sums[i].layer_parameters);
}

double gang_combine_alike(const struct gang_layout *l, const struct gang_stage_sum sums[][GANG_ENDS], const struct gang_class *class, double delay,
                          double *memory_used) {
    struct gang_stage_sum runs[GANG_MAX_STAGES];
    int count = 0;
    for (int s = 0, next; s < l->pp; s = next) {
        int recompute = gang_of_stage(&l->recompute, s);
        next = s + 1;
        if (gang_end_of(l, s) == GANG_END_MIDDLE && !l->recompute.count) next = l->pp - 1;
        while (gang_end_of(l, s) == GANG_END_MIDDLE && next < l->pp - 1 && gang_of_stage(&l->recompute, next) == recompute) next++;
        runs[count] = sums[recompute][gang_end_of(l, s)];
        runs[count++].count = next - s;
    }
    *memory_used = 0;
    return combine(l, class, runs, count, delay, memory_used);
}

// ---- On any ground -------------------------------------------------------------------------------------------------

// By way, sharding and parameters of the chunk.
enum { EXCHANGES = 128 };
struct gang_ground_exchange {
    int way, zero; // way 0: none
    double parameters, reduce, gather;
};

static void take_part(const struct gang_chunk_cost *cost, struct gang_part *out) {
    *out = (struct gang_part){.forward = gang_time_sum(&cost->forward),
                              .input = gang_time_sum(&cost->input),
                              .weight = gang_time_sum(&cost->weight),
                              .state = cost->parameter_bytes + cost->gradient_bytes,
                              .optimizer = cost->optimizer_bytes,
                              .activation = cost->activation_bytes,
                              .parameters = cost->parameters};
}

void gang_parts_fill(const struct gang_task *task, const struct gang_layout *l, const struct gang_price *price, int micro_batch,
                     struct gang_parts *out) {
    struct gang_part *const ends[] = {&out->first, &out->last, &out->both};
    struct gang_chunk_cost cost;
    *out = (struct gang_parts){.group = price->group, .tp = price->tp, .micro_batch = micro_batch};
    for (int r = 0; r < GANG_RECOMPUTES; r++) {
        for (int moe = 0; moe < 2; moe++) {
            gang_price_chunk(task, l, price, (enum gang_recompute)r, !moe, moe, false, false, &cost);
            take_part(&cost, &out->layer[r][moe]);
        }
        out->buffers[r] = gang_buffer_bytes(task, l, price->tp, micro_batch, (enum gang_recompute)r, 0);
    }
    for (int i = 0; i < 3; i++) {
        gang_price_chunk(task, l, price, GANG_RECOMPUTE_NONE, 0, 0, i != 1, i != 0, &cost);
        take_part(&cost, ends[i]);
    }
}

const struct gang_parts *gang_parts_new(const struct gang_task *task, const struct gang_layout *l, const struct gang_prices *prices, int kind,
                                        struct gang_arena *arena) {
    int count = prices->rows * prices->groups;
    struct gang_parts *parts = gang_arena_alloc(arena, (size_t)count * sizeof *parts);
    for (int i = 0; i < count; i++) {
        gang_parts_fill(task, l, &prices->at[l->size_count ? kind : 0][i], gang_layout_size(l, kind), &parts[i]);
        if (i >= prices->groups) parts[i - prices->groups].other = &parts[i];
    }
    return parts;
}

static bool unlike_cells(const struct gang_layout *l, const int *groups, int s) {
    return groups[s] != groups[s + 1] || gang_tp_of(l, s) != gang_tp_of(l, s + 1);
}

static void open_hops(const struct gang_layout *l, const struct gang_placement *placement, struct gang_ground *out) {
    const int *groups = placement->classes[0].groups;
    for (int s = 0; s + 1 < l->pp; s++) {
        struct gang_hop hop;
        if (!s || unlike_cells(l, groups, s - 1) || unlike_cells(l, groups, s)) {
            gang_hop_between(out->pool, l, placement, 0, s, s + 1, &hop);
            out->hops[out->hop_count++] = (struct gang_ground_hop){
                .delay = hop.delay, .bandwidth = hop.bandwidth, .route = gang_route_bandwidth(out->pool, hop.route)};
        }
        out->hops[out->hop_count - 1].count++;
    }
}

void gang_ground_open(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement, struct gang_arena *arena,
                      struct gang_ground *out) {
    size_t stages = (size_t)l->pp;
    *out = (struct gang_ground){.pool = pool, .kinds = *placement, .near = gang_layout_is_near(pool, l, placement)};
    out->moved = gang_arena_alloc(arena, stages * sizeof *out->moved);
    out->way = gang_arena_alloc(arena, stages * sizeof *out->way);
    for (int s = 1; s < l->pp; s++) {
        out->moved[s] = !lie_alike(l, placement, s, s - 1);
        out->way[s] = out->way[s - 1] + out->moved[s];
    }
    size_t ways = (size_t)out->way[l->pp - 1] + 1;
    out->ways = gang_arena_alloc(arena, ways * sizeof *out->ways);
    out->known = gang_arena_alloc(arena, ways * sizeof *out->known);
    out->hops = gang_arena_alloc(arena, stages * sizeof *out->hops);
    out->memo = gang_arena_alloc(arena, EXCHANGES * sizeof *out->memo);
    out->runs = gang_arena_alloc(arena, (stages + 1) * sizeof *out->runs);
    out->sums = gang_arena_alloc(arena, (size_t)placement->kind_count * stages * sizeof *out->sums);
    open_hops(l, placement, out);
}

static double ground_hop_seconds(const struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *l,
                                 const struct gang_class *class) {
    double sum = 0, bytes = gang_message_bytes(task, class->micro_batch);
    for (int i = 0; i < ground->hop_count; i++) {
        const struct gang_ground_hop *hop = &ground->hops[i];
        sum += hop->count * (hop->delay + bytes / gang_smaller(hop->bandwidth, hop->route / (double)class->replicas));
    }
    return sum / gang_larger(l->pp - 1, 1);
}

static const struct gang_ground_exchange *ground_exchange(struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *l,
                                                          int stage, double parameters) {
    int way = ground->way[stage] + 1;
    uint64_t bits;
    memcpy(&bits, &parameters, sizeof bits);
    uint64_t key = (bits + (uint64_t)(way * 4 + l->zero)) * 0x9e3779b97f4a7c15u;
    struct gang_ground_exchange *x = &ground->memo[key >> 57];
    if (x->way == way && x->zero == l->zero && x->parameters == parameters) return x;
    struct gang_exchange reduce, gather;
    if (!ground->known[way - 1]) gang_ways_of(ground->pool, l, &ground->kinds, stage, &ground->ways[way - 1]);
    ground->known[way - 1] = true;
    gang_chunk_exchange(task, ground->pool, l, &ground->ways[way - 1], parameters, &reduce, &gather);
    *x = (struct gang_ground_exchange){way, l->zero, parameters, gang_exchange_seconds(ground->pool, &reduce, l->pp),
                                       gang_exchange_seconds(ground->pool, &gather, l->pp)};
    return x;
}

static void add_part(struct gang_part *to, const struct gang_part *from, double n) {
    to->forward += n * from->forward;
    to->input += n * from->input;
    to->weight += n * from->weight;
    to->state += n * from->state;
    to->optimizer += n * from->optimizer;
    to->activation += n * from->activation;
    to->parameters += n * from->parameters;
}

// A chunk by its parts. Each pass takes as long as its copies where these take longer (`copy`: of a byte).
static void sum_parts(const struct gang_task *task, const struct gang_layout *l, const struct gang_parts *parts, int chunk, double copy,
                      struct gang_part *out) {
    const struct gang_part *layer = parts->layer[gang_of_stage(&l->recompute, chunk % l->pp)];
    bool first = chunk == 0, last = chunk == l->layer_count - 1;
    double dense = (double)gang_chunk_dense(task, l, chunk), moe = (double)l->layers[chunk] - dense;
    *out = (struct gang_part){0};
    add_part(out, &layer[0], dense);
    if (moe > 0) add_part(out, &layer[1], moe);
    if (first || last) add_part(out, first && last ? &parts->both : first ? &parts->first : &parts->last, 1);
    if (!(copy > 0)) return;
    double seconds = out->activation * copy;
    out->input += gang_larger(0, seconds - out->input - out->weight);
    out->forward = gang_larger(out->forward, seconds);
}

void gang_sum_stage(const struct gang_task *task, const struct gang_layout *l, const struct gang_parts *parts, int stage, struct gang_ground *ground,
                    struct gang_stage_sum *sum) {
    int recompute = gang_of_stage(&l->recompute, stage), offload = gang_of_stage(&l->offload, stage);
    double copy = offload & GANG_OFFLOAD_ACTIVATIONS ? gang_copy_seconds(parts->group, 1) : 0;
    bool here = !(offload & GANG_OFFLOAD_OPTIMIZER);
    struct gang_part chunk = {0}; // the chunk before
    for (int c = stage; c < l->layer_count; c += l->pp) {
        if (c == stage || !gang_chunk_repeats(task, l, c)) sum_parts(task, l, parts, c, copy, &chunk);
        sum->forward += chunk.forward;
        sum->input += chunk.input;
        sum->weight += chunk.weight;
        sum->fixed += chunk.state + (here ? chunk.optimizer : 0);
        sum->host += here ? 0 : chunk.optimizer;
        sum->activation = gang_larger(sum->activation, chunk.activation);
        sum->layers += l->layers[c];
        if (l->zero >= 3 && l->layers[c]) sum->layer_parameters = gang_larger(sum->layer_parameters, chunk.parameters / l->layers[c]);
        if (!ground || l->zero >= 3) continue; // inside the passes
        const struct gang_ground_exchange *x = ground_exchange(ground, task, l, stage, chunk.parameters);
        sum->reduce += x->reduce;
        sum->gather += x->gather;
    }
    sum->seconds = sum->forward + sum->input + sum->weight;
    sum->fixed += l->zero < 3 ? parts->buffers[recompute]
                              : gang_buffer_bytes(task, l, parts->tp, parts->micro_batch, (enum gang_recompute)recompute, sum->layer_parameters);
    sum->limit = parts->group->kind->memory_bytes;
    sum->host_limit = parts->group->host_memory / (double)parts->group->devices;
    sum->away = copy > 0;
    if (sum->host > 0) sum->update = gang_optimizer_seconds(task, l, parts->group, 0, sum->host);
}

// Of two stages that lie alike, without an end, the first before the second, of a model without experts.
static bool hold_alike(const struct gang_layout *l, int a, int b) {
    if (a < 1 || b > l->pp - 2 || gang_of_stage(&l->recompute, a) != gang_of_stage(&l->recompute, b) ||
        gang_of_stage(&l->offload, a) != gang_of_stage(&l->offload, b))
        return false;
    for (; b < l->layer_count; a += l->pp, b += l->pp)
        if (l->layers[a] != l->layers[b]) return false;
    return true;
}

bool gang_ground_repeats(const struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *l, int s) {
    if (ground->moved[s]) return false;
    return task->shape.experts ? gang_stage_repeats(task, l, s) : hold_alike(l, s - 1, s);
}

// One of the last runs before the i-th that lies where it lies and holds the same: layers that do not divide lie on every other stage.
static int run_like(const struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *l, int i) {
    int stage = ground->runs[i];
    for (int j = i - 1; j >= 0 && j > i - 4 && !task->shape.experts; j--)
        if (ground->way[ground->runs[j]] == ground->way[stage] && hold_alike(l, ground->runs[j], stage)) return j;
    return -1;
}

void gang_ground_sum(struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *l, const struct gang_parts *const *parts,
                     double *seconds) {
    ground->run_count = 0;
    for (int s = 0; s < l->pp; s++)
        if (!gang_ground_repeats(ground, task, l, s)) ground->runs[ground->run_count++] = s;
    ground->runs[ground->run_count] = l->pp;
    for (int k = 0; k < ground->kinds.kind_count; k++) {
        const int *groups = ground->kinds.classes[k].groups;
        seconds[k] = 0;
        assert(parts[k]);
        for (int i = 0; i < ground->run_count; i++) {
            int stage = ground->runs[i];
            struct gang_stage_sum *sum = &ground->sums[k * l->pp + i];
            int like = run_like(ground, task, l, i);
            *sum = like < 0 ? (struct gang_stage_sum){0} : ground->sums[k * l->pp + like];
            sum->count = ground->runs[i + 1] - stage;
            if (like < 0) gang_sum_stage(task, l, gang_parts_at(&parts[k][groups[stage]], gang_tp_of(l, stage)), stage, k ? NULL : ground, sum);
            if (k) sum->reduce = ground->sums[i].reduce, sum->gather = ground->sums[i].gather; // of every replica
            seconds[k] = gang_larger(seconds[k], sum->seconds);
        }
    }
}

double gang_ground_combine(const struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *l,
                           const struct gang_placement *placement, double *memory_used) {
    double slowest = 0, delay = ground_hop_seconds(ground, task, l, &placement->classes[0]);
    *memory_used = 0;
    for (int c = 0; c < placement->class_count; c++) {
        const struct gang_class *class = &placement->classes[c];
        slowest = gang_larger(slowest, combine(l, class, &ground->sums[class->kind * l->pp], ground->run_count, delay, memory_used));
    }
    return slowest;
}

static double estimate_unlike(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                              const struct gang_placement *placement, const struct gang_prices *prices, struct gang_arena *arena,
                              double *memory_used) {
    struct gang_ground ground;
    const struct gang_parts *parts[GANG_MAX_REPLICA_KINDS] = {0};
    double seconds[GANG_MAX_REPLICA_KINDS];
    gang_ground_open(pool, l, placement, arena, &ground);
    for (int k = 0; k < placement->kind_count; k++) parts[k] = gang_parts_new(task, l, prices, k, arena);
    gang_ground_sum(&ground, task, l, parts, seconds);
    return gang_ground_combine(&ground, task, l, placement, memory_used);
}

double gang_estimate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement,
                     struct gang_arena *arena, double *memory_used) {
    struct gang_prices prices;
    gang_prices_fill(task, pool, l, arena, &prices);
    if (pool->group_count > 1 || placement->class_count > 1 || l->width_count || l->offload.count || l->offload.at[0])
        return estimate_unlike(task, pool, l, placement, &prices, arena, memory_used);
    struct gang_stage_sum sums[GANG_RECOMPUTES][GANG_ENDS];
    struct gang_exchanges exchanges = {.task = task, .pool = pool, .placement = placement, .stage = -1};
    *memory_used = 0;
    for (int r = 0; r < GANG_RECOMPUTES; r++) gang_sum_alike(task, l, prices.at[0], (enum gang_recompute)r, &exchanges, sums[r]);
    return gang_combine_alike(l, sums, placement->classes, gang_hop_seconds(task, pool, l, placement), memory_used);
}
