// The closed form of a pipeline: the slowest stage works through all micro-batches; before and behind it the others fill and
// drain, one part in vpp of their work, less where the weights' halves fill the gap; exchanges add what one backward or forward
// pass cannot hide.
#include "study/estimate.h"

#include <math.h>

static double seconds_of(const struct gang_pool *pool, const struct gang_exchange *x, double sharers) {
    double seconds = x->fast_seconds;
    for (int l = 0; l < pool->links.count; l++)
        if (x->link_bytes[l] > 0) seconds = gang_larger(seconds, x->link_bytes[l] * sharers / gang_pool_link(pool, l)->bandwidth);
    return seconds;
}

static bool lie_alike(const struct gang_placement *placement, int a, int b) {
    for (int c = 0; c < placement->class_count; c++)
        if (placement->classes[c].groups[a] != placement->classes[c].groups[b]) return false;
    return true;
}

static void add_exchange(struct gang_exchanges *x, const struct gang_layout *l, int chunk, const struct gang_chunk_cost *cost, double times,
                         struct gang_stage_sum *sum) {
    int stage = chunk % l->pp;
    if (l->zero >= 3) return; // inside the passes
    bool alike = x->stage >= 0 && lie_alike(x->placement, x->stage, stage);
    if (!alike) gang_ways_of(x->pool, l, x->placement, stage, &x->ways);
    if (!alike || x->parameters != cost->parameters) {
        struct gang_exchange reduce, gather;
        gang_chunk_exchange(x->pool, l, &x->ways, cost, &reduce, &gather);
        x->parameters = cost->parameters;
        x->reduce = seconds_of(x->pool, &reduce, l->pp);
        x->gather = seconds_of(x->pool, &gather, l->pp);
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
        double hidden = l->dp_overlap ? s->input + s->weight : 0, tail = s->reduce / gang_larger(s->layers, 1);
        double shown = gang_larger(tail, s->reduce - hidden),
               head = gang_larger(s->gather / gang_larger(s->layers, 1), s->gather - (l->dp_overlap ? s->forward : 0));
        exchange = gang_larger(exchange, shown + head + s->update);
        *memory_used = gang_larger(*memory_used, gang_share_used(l, s, m, l->pp - 1 - before));
        before += s->count;
    }
    return m * slowest + (fill - fill_slowest) + 2 * (l->pp - 1) * delay + exchange;
}

double gang_hop_seconds(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                        const struct gang_placement *placement) {
    const struct gang_class *class = &placement->classes[0];
    const int *groups = class->groups;
    double sum = 0, one = 0, bytes = gang_message_bytes(task, class->micro_batch);
    for (int s = 0; s + 1 < l->pp; s++) {
        if (!s || groups[s] != groups[s - 1] || groups[s + 1] != groups[s]) {
            struct gang_hop hop;
            gang_hop_between(pool, l, placement, 0, s, s + 1, &hop);
            one = hop.delay + bytes / gang_smaller(hop.bandwidth, gang_route_bandwidth(pool, hop.route) / (double)class->replicas);
        }
        if (pool->group_count == 1) return one;
        sum += one;
    }
    return sum / gang_larger(l->pp - 1, 1);
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
        if (l->vpp > 1) add_chunk(x, l, 0, &middle, l->vpp - 1, &sums[GANG_END_FIRST]);
        if (l->pp > 2) add_chunk(x, l, 1, &middle, l->vpp, &sums[GANG_END_MIDDLE]);
        add_chunk(x, l, chunks - 1, &last, 1, &sums[GANG_END_LAST]);
        if (l->vpp > 1) add_chunk(x, l, l->pp - 1, &middle, l->vpp - 1, &sums[GANG_END_LAST]);
    }
    for (int i = 0; i < GANG_ENDS; i++) sums[i].fixed += gang_buffer_bytes(task, l, l->micro_batch, recompute, sums[i].layer_parameters);
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

bool gang_stages_alike(const struct gang_task *task, const struct gang_layout *l, const struct gang_placement *placement, int s) {
    return gang_stage_repeats(task, l, s) && lie_alike(placement, s, s - 1);
}

void gang_sum_stage(const struct gang_task *task, const struct gang_layout *l, const struct gang_class *class, const struct gang_price *price,
                    int stage, struct gang_exchanges *x, struct gang_stage_sum *sum) {
    struct gang_chunk_cost cost = {0}; // of the chunk before
    for (int chunk = stage; chunk < l->layer_count; chunk += l->pp) {
        if (!gang_chunk_repeats(task, l, chunk)) gang_chunk_of(task, l, price, chunk, &cost);
        add_chunk(x, l, chunk, &cost, 1, sum);
    }
    sum->fixed += gang_buffer_bytes(task, l, class->micro_batch, (enum gang_recompute)gang_of_stage(&l->recompute, stage), sum->layer_parameters);
    sum->host_limit = price->group->host_memory / (double)price->group->devices;
    sum->away = gang_of_stage(&l->offload, stage) & GANG_OFFLOAD_ACTIVATIONS;
    if (sum->host > 0) sum->update = gang_optimizer_seconds(task, l, price->group, 0, sum->host);
}

static double estimate_unlike(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                              const struct gang_placement *placement, const struct gang_prices *prices, double *memory_used) {
    double slowest = 0, delay = gang_hop_seconds(task, pool, l, placement);
    struct gang_stage_sum stages[GANG_MAX_STAGES];
    struct gang_exchanges exchanges = {.pool = pool, .placement = placement, .stage = -1};
    int starts[GANG_MAX_STAGES + 1], count = 0;
    for (int s = 0; s < l->pp; s++)
        if (!gang_stages_alike(task, l, placement, s)) starts[count++] = s;
    starts[count] = l->pp;
    for (int c = 0; c < placement->class_count; c++) {
        const struct gang_class *class = &placement->classes[c];
        // Classes that differ in the number of micro-batches alone.
        bool repeated = c && class->groups == class[-1].groups && class->micro_batch == class[-1].micro_batch;
        for (int i = 0; i < count && !repeated; i++) {
            const struct gang_price *price = gang_prices_of(prices, l, class, starts[i]);
            const struct gang_stage_sum all = stages[i]; // of every class: the exchanges
            stages[i] = (struct gang_stage_sum){.count = starts[i + 1] - starts[i], .limit = price->group->kind->memory_bytes};
            gang_sum_stage(task, l, class, price, starts[i], c ? NULL : &exchanges, &stages[i]);
            if (c) stages[i].reduce = all.reduce, stages[i].gather = all.gather;
        }
        slowest = gang_larger(slowest, combine(l, class, stages, count, delay, memory_used));
    }
    return slowest;
}

double gang_estimate_priced(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                            const struct gang_placement *placement, const struct gang_prices *prices, double *memory_used) {
    *memory_used = 0;
    if (pool->group_count > 1 || placement->class_count > 1 || l->offload.count || l->offload.at[0])
        return estimate_unlike(task, pool, l, placement, prices, memory_used);
    struct gang_stage_sum sums[GANG_RECOMPUTES][GANG_ENDS];
    struct gang_exchanges exchanges = {.pool = pool, .placement = placement, .stage = -1};
    for (int r = 0; r < GANG_RECOMPUTES; r++) gang_sum_alike(task, l, prices->at[0], (enum gang_recompute)r, &exchanges, sums[r]);
    return gang_combine_alike(l, sums, placement->classes, gang_hop_seconds(task, pool, l, placement), memory_used);
}

double gang_estimate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement,
                     struct gang_arena *arena, double *memory_used) {
    struct gang_prices prices;
    gang_prices_fill(task, pool, l, arena, &prices);
    return gang_estimate_priced(task, pool, l, placement, &prices, memory_used);
}
