// The search: every layout of a space by closed form, the most promising by simulation.
//
// The space: tp over the powers of two inside the high-bandwidth domain, cp where the sequence is long, ep over the powers of two
// that divide the experts, pp over every number of stages, vpp, micro-batch, recomputation, and sharding 1 to 3; on a pool of
// unlike groups both placements, with as many layers on a stage as its devices' speed and memory allow. What the layout does not
// fix (order of work, micro-batches of each replica) follows by gang_layout_place and the list scheduler.
//
// The closed form of a pipeline: the slowest stage works through all micro-batches; before and behind it the others fill and
// drain, one part in vpp of their work, less where the weights' halves fill the gap; exchanges add what one backward or forward
// pass cannot hide. It is not trusted: it only says whom to simulate. Where the space is small all of it is simulated, so the
// answer is the best there is in it.
#include "study/study.h"

#include <math.h>
#include <string.h>

enum { KEPT = 512, SIMULATE_LEAST = 12, MAX_WIDTH = 64 };
// Layouts whose closed form is beyond the best simulated by this factor are not simulated any more, nor more than twice SIMULATE_LEAST
// once programs of this many instructions in all have been.
static const double hopeless = 1.25;
enum { MAX_INSTRUCTIONS = 400 * 1000 };
// Several micro-batch sizes are tried where one for all is within this factor of the best seen. Where they are too large for a kind of
// replicas the smaller ones are not, from which the others' grow.
static const double promising = 1.5;

// ---- Closed form ---------------------------------------------------------------------------------------------------

// Stages that look the same.
struct stage_sum {
    int count;
    double forward, input, weight; // of one micro-batch
    double fixed, activation;      // bytes: states; of one chunk in flight, the largest
    double reduce, gather;         // seconds of the exchanges, over the stage's chunks
    double layers, limit;          // limit: bytes of the device
    double layer_parameters;
};

static double seconds_of(const struct gang_pool *pool, const struct gang_exchange *x, double sharers) {
    double seconds = x->fast_seconds;
    for (int l = 0; l < pool->links.count; l++)
        if (x->link_bytes[l] > 0) seconds = gang_larger(seconds, x->link_bytes[l] * sharers / gang_pool_link(pool, l)->bandwidth);
    return seconds;
}

// The ways of a stage, which those that lie alike share, and the seconds of a chunk's exchanges: of as many parameters on them the same.
struct exchanged {
    int stage; // -1: none yet
    struct gang_ways ways;
    double parameters, reduce, gather;
};

static bool lie_alike(const struct gang_placement *placement, int a, int b) {
    for (int c = 0; c < placement->class_count; c++)
        if (placement->classes[c].groups[a] != placement->classes[c].groups[b]) return false;
    return true;
}

static void add_exchange(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement, int chunk,
                         const struct gang_chunk_cost *cost, double times, struct exchanged *last, struct stage_sum *sum) {
    int stage = chunk % l->pp;
    if (l->zero >= 3) return; // inside the passes
    bool alike = last->stage >= 0 && lie_alike(placement, last->stage, stage);
    if (!alike) gang_ways_of(pool, l, placement, stage, &last->ways);
    if (!alike || last->parameters != cost->parameters) {
        struct gang_exchange reduce, gather;
        gang_chunk_exchange(pool, l, &last->ways, cost, &reduce, &gather);
        last->parameters = cost->parameters;
        last->reduce = seconds_of(pool, &reduce, l->pp);
        last->gather = seconds_of(pool, &gather, l->pp);
    }
    last->stage = stage;
    sum->reduce += times * last->reduce;
    sum->gather += times * last->gather;
}

static void add_work(const struct gang_chunk_cost *cost, double times, struct stage_sum *sum) {
    sum->forward += times * gang_time_sum(&cost->forward);
    sum->input += times * gang_time_sum(&cost->input);
    sum->weight += times * gang_time_sum(&cost->weight);
    sum->fixed += times * (cost->parameter_bytes + cost->gradient_bytes + cost->optimizer_bytes);
    sum->activation = gang_larger(sum->activation, cost->activation_bytes);
    sum->layers += times * cost->layers;
    if (cost->layers) sum->layer_parameters = gang_larger(sum->layer_parameters, cost->parameters / cost->layers);
}

static void add_chunk(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement, int chunk,
                      const struct gang_chunk_cost *cost, double times, struct exchanged *last, struct stage_sum *sum) {
    add_exchange(pool, l, placement, chunk, cost, times, last, sum);
    add_work(cost, times, sum);
}

// Chunks that a stage has in flight by the usual schedule; `from_end`: stages behind it.
static double in_flight(const struct gang_layout *l, double m, int from_end) {
    double chunks = l->vpp == 1 ? from_end + 1 : 2 * from_end + (l->vpp - 1) * l->pp + 1;
    return gang_smaller(chunks, m * l->vpp);
}

// Of a replica of the class.
static double combine(const struct gang_task *task, const struct gang_layout *l, const struct gang_class *class, const struct stage_sum *stages,
                      int count, double delay, double *memory_used) {
    double m = (double)class->micro_batches;
    double slowest = 0, fill = 0, exchange = 0, fill_slowest = 0;
    int before = 0;
    for (int i = 0; i < count; i++) {
        const struct stage_sum *s = &stages[i];
        double work = s->forward + s->input + s->weight, whole = work / l->vpp;
        // What one stage adds to filling and draining: all of it, or what the weights' halves leave (ZB-H1).
        double part = l->vpp == 1 ? gang_larger(s->forward + s->input - s->weight, 0) : whole;
        if (work > slowest) slowest = work, fill_slowest = part;
        fill += s->count * part;
        double hidden = l->dp_overlap ? s->input + s->weight : 0, tail = s->reduce / gang_larger(s->layers, 1);
        double shown = gang_larger(tail, s->reduce - hidden),
               head = gang_larger(s->gather / gang_larger(s->layers, 1), s->gather - (l->dp_overlap ? s->forward : 0));
        exchange = gang_larger(exchange, shown + head);
        double bytes = s->fixed + in_flight(l, m, l->pp - 1 - before) * s->activation +
                       gang_buffer_bytes(task, l, class->micro_batch, s->layer_parameters);
        *memory_used = gang_larger(*memory_used, bytes / (s->limit * (1 - gang_memory_margin)));
        before += s->count;
    }
    return m * slowest + (fill - fill_slowest) + 2 * (l->pp - 1) * delay + exchange;
}

static double hop_seconds(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
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

// One group: only the first chunk, the last, and one from the middle are unlike.
static double estimate_alike(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                             const struct gang_placement *placement, const struct gang_price *price, double *memory_used) {
    const struct gang_shape *shape = &task->shape;
    int chunks = l->pp * l->vpp;
    int64_t n = (shape->layers + chunks - 1) / chunks, least = shape->layers / chunks;
    int64_t dense = shape->experts ? (shape->dense_layers < least ? shape->dense_layers : least) : least;
    struct gang_chunk_cost first, middle, last;
    struct stage_sum stages[3] = {{.count = 1}, {.count = l->pp - 2}, {.count = 1}};
    struct exchanged exchanged = {.stage = -1};
    bool one = chunks == 1;
    gang_price_chunk(task, l, price, one && !shape->experts ? n : dense, least - dense, true, one, &first);
    gang_price_chunk(task, l, price, shape->experts ? 0 : n, shape->experts ? n : 0, false, false, &middle);
    gang_price_chunk(task, l, price, shape->experts ? 0 : least, shape->experts ? least : 0, false, true, &last);
    for (int i = 0; i < 3; i++) stages[i].limit = pool->groups[0]->kind->memory_bytes;
    add_chunk(pool, l, placement, 0, &first, 1, &exchanged, &stages[0]);
    if (one) return combine(task, l, placement->classes, stages, 1, 0, memory_used);
    if (l->vpp > 1) add_chunk(pool, l, placement, 0, &middle, l->vpp - 1, &exchanged, &stages[0]);
    if (l->pp > 2) add_chunk(pool, l, placement, 1, &middle, l->vpp, &exchanged, &stages[1]);
    add_chunk(pool, l, placement, chunks - 1, &last, 1, &exchanged, &stages[2]);
    if (l->vpp > 1) add_chunk(pool, l, placement, l->pp - 1, &middle, l->vpp - 1, &exchanged, &stages[2]);
    double delay = hop_seconds(task, pool, l, placement);
    if (l->pp == 2) stages[1] = stages[2];
    return combine(task, l, placement->classes, stages, l->pp == 2 ? 2 : 3, delay, memory_used);
}

// Stage s lies where the stage before it lies, in every class, and holds the same.
static bool repeats(const struct gang_task *task, const struct gang_layout *l, const struct gang_placement *placement, int s) {
    return gang_stage_repeats(task, l, s) && lie_alike(placement, s, s - 1);
}

static double estimate_unlike(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                              const struct gang_placement *placement, const struct gang_prices *prices, double *memory_used) {
    double slowest = 0, delay = hop_seconds(task, pool, l, placement);
    struct stage_sum stages[GANG_MAX_STAGES];
    struct exchanged exchanged = {.stage = -1};
    struct gang_chunk_cost cost = {0}; // of the chunk before
    int starts[GANG_MAX_STAGES + 1], count = 0;
    for (int s = 0; s < l->pp; s++)
        if (!repeats(task, l, placement, s)) starts[count++] = s;
    starts[count] = l->pp;
    for (int c = 0; c < placement->class_count; c++) {
        const struct gang_class *class = &placement->classes[c];
        // Classes that differ in the number of micro-batches alone.
        bool repeated = c && class->groups == class[-1].groups && class->micro_batch == class[-1].micro_batch;
        for (int i = 0; i < count && !repeated; i++) {
            const struct gang_price *price = gang_prices_of(prices, l, class, starts[i]);
            const struct stage_sum all = stages[i]; // of every class: the exchanges
            stages[i] = (struct stage_sum){.count = starts[i + 1] - starts[i], .limit = price->group->kind->memory_bytes};
            for (int chunk = starts[i]; chunk < l->layer_count; chunk += l->pp) {
                if (!gang_chunk_repeats(task, l, chunk)) gang_chunk_of(task, l, price, chunk, &cost);
                add_work(&cost, 1, &stages[i]);
                if (!c) add_exchange(pool, l, placement, chunk, &cost, 1, &exchanged, &stages[i]);
            }
            if (c) stages[i].reduce = all.reduce, stages[i].gather = all.gather;
        }
        slowest = gang_larger(slowest, combine(task, l, class, stages, count, delay, memory_used));
    }
    return slowest;
}

static double estimate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                       const struct gang_placement *placement, const struct gang_prices *prices, double *memory_used) {
    *memory_used = 0;
    if (pool->group_count == 1 && placement->class_count == 1) return estimate_alike(task, pool, l, placement, prices->at[0], memory_used);
    return estimate_unlike(task, pool, l, placement, prices, memory_used);
}

double gang_estimate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement,
                     struct gang_arena *arena, double *memory_used) {
    struct gang_prices prices;
    gang_prices_fill(task, pool, l, arena, &prices);
    return estimate(task, pool, l, placement, &prices, memory_used);
}

// ---- The space -----------------------------------------------------------------------------------------------------

// Micro-batch sizes are the powers of two.
enum { SIZES = 4, RECOMPUTES = GANG_RECOMPUTE_FULL + 1 };

struct shelf {
    int kept;
    int64_t fitting;
    struct gang_found **best; // [KEPT] by estimate
};

struct search {
    const struct gang_task *task;
    const struct gang_pool *pool;
    enum gang_objective objective;
    struct gang_arena scratch;                    // of one layout; emptied after each
    bool unlike;                                  // there are several kinds of devices
    int *zeros;                                   // [GANG_MAX_STAGES] the only group, under every stage
    struct gang_price *priced[RECOMPUTES][SIZES]; // [groups] at the widths looked at
    bool known[RECOMPUTES][SIZES];
    struct gang_prices prices; // of the layout looked at
    struct shelf alike, mixed; // one micro-batch size, several
    double least;              // score of all that fit
    struct gang_found hungry;  // the least hungry of those that do not fit
    struct gang_search *out;
};

const char *const gang_objective_names[] = {"time", "energy", "price", NULL};

// What a second of one device of the group costs by the objective, where that is not the time itself.
static double rate_of(const struct search *s, const struct gang_group *group) {
    return s->objective == GANG_OBJECTIVE_ENERGY ? group->kind->power_watt : group->price / 3600;
}

// What a step's bytes over the long links cost.
static double carried_price(const struct search *s, const struct gang_layout *l, const struct gang_placement *placement, struct gang_arena *arena) {
    struct gang_costs costs;
    double price = 0;
    bool any = false;
    for (int i = 0; i < s->pool->links.count; i++) any |= gang_pool_link(s->pool, i)->price > 0;
    if (!any || s->pool->group_count == 1) return 0;
    gang_costs_fill(s->task, s->pool, l, placement, arena, &costs);
    for (int c = 0; c < costs.classes; c++) { // a tied head's gradient and its weights
        const int *groups = placement->classes[c].groups;
        const struct gang_route *route = gang_pool_route(s->pool, s->pool->groups[groups[0]]->site, s->pool->groups[groups[l->pp - 1]]->site);
        for (int i = 0; i < route->count; i++)
            price += 2 * costs.copy_bytes * (double)placement->classes[c].replicas * gang_pool_link(s->pool, route->links[i])->price;
    }
    for (int chunk = 0; chunk < costs.chunks; chunk++) {
        for (int i = 0; i < s->pool->links.count; i++)
            price += 2 * (costs.reduce[chunk].link_bytes[i] + costs.gather[chunk].link_bytes[i]) * gang_pool_link(s->pool, i)->price;
        for (int c = 0; c < costs.classes && chunk + 1 < costs.chunks; c++) {
            const struct gang_class *class = &placement->classes[c];
            const struct gang_route *route = gang_pool_route(s->pool, s->pool->groups[class->groups[chunk % l->pp]]->site,
                                                             s->pool->groups[class->groups[(chunk + 1) % l->pp]]->site);
            double bytes = 2 * costs.message_bytes[c] * (double)(class->replicas * class->micro_batches);
            for (int i = 0; i < route->count; i++) price += bytes * gang_pool_link(s->pool, route->links[i])->price;
        }
    }
    return price * 1e-9;
}

static double score_of(const struct search *s, const struct gang_layout *l, const struct gang_placement *placement, double seconds,
                       struct gang_arena *arena) {
    double rate = 0;
    if (s->objective == GANG_OBJECTIVE_TIME) return seconds;
    for (int c = 0; c < placement->class_count; c++)
        for (int i = 0; i < l->pp; i++)
            rate += (double)(placement->classes[c].replicas * placement->cell_devices) * rate_of(s, s->pool->groups[placement->classes[c].groups[i]]);
    return seconds * rate + (s->objective == GANG_OBJECTIVE_PRICE ? carried_price(s, l, placement, arena) : 0);
}

static bool is_kept(const struct shelf *shelf, const struct gang_layout *l, double score, int at) {
    for (; at && shelf->best[at - 1]->score == score; at--)
        if (!memcmp(&shelf->best[at - 1]->layout, l, sizeof *l)) return true;
    return false;
}

// Returns the score, INFINITY for a layout that does not fit.
static double keep(struct search *s, const struct gang_layout *l, const struct gang_placement *placement, double estimate, double memory_used) {
    struct shelf *shelf = l->size_count ? &s->mixed : &s->alike;
    s->out->considered++;
    if (memory_used > 1) {
        if (s->hungry.memory_used == 0 || memory_used < s->hungry.memory_used)
            s->hungry = (struct gang_found){.layout = *l, .memory_used = memory_used};
        return INFINITY;
    }
    s->out->fitting++;
    shelf->fitting++;
    double score = score_of(s, l, placement, estimate, &s->scratch);
    s->least = gang_smaller(s->least, score);
    if (shelf->kept == KEPT && score >= shelf->best[KEPT - 1]->score) return score;
    int at = 0;
    for (int end = shelf->kept; at < end;) { // behind all that are as good
        int middle = (at + end) / 2;
        if (shelf->best[middle]->score > score)
            end = middle;
        else
            at = middle + 1;
    }
    if (l->size_count && is_kept(shelf, l, score, at)) return score; // from another size
    if (shelf->kept < KEPT) shelf->kept++;
    struct gang_found *mine = shelf->best[shelf->kept - 1];
    memmove(&shelf->best[at + 1], &shelf->best[at], (size_t)(shelf->kept - 1 - at) * sizeof *shelf->best);
    shelf->best[at] = mine;
    *mine = (struct gang_found){.layout = *l, .score = score, .estimate = estimate, .memory_used = memory_used};
    return score;
}

static void consider_alike(struct search *s, struct gang_layout *l) {
    int64_t batches = s->task->global_batch / l->micro_batch;
    struct gang_class class = {.replicas = l->dp, .micro_batches = batches / l->dp, .micro_batch = l->micro_batch, .groups = s->zeros};
    if (l->vpp > 1 && class.micro_batches % l->pp) return; // interleaving wants whole groups
    const struct gang_placement placement = {.cell_devices = (int64_t)l->tp * l->cp,
                                             .kind_count = 1,
                                             .class_count = 1,
                                             .classes = &class,
                                             .devices_used = (int64_t)l->tp * l->cp * l->pp * l->dp};
    double memory_used = 0;
    double seconds = estimate_alike(s->task, s->pool, l, &placement, s->prices.at[0], &memory_used);
    keep(s, l, &placement, seconds, memory_used);
}

struct share {
    double seconds, load; // of one layer; of what the stage has already
    int64_t most, layers; // that the device has room for; that it has
};

static void give(struct share *to, int64_t layers) {
    to->layers += layers;
    to->load += (double)layers * to->seconds;
}

// Layers one after another to the stage that would then be done first and has room. What each gets before the end that all
// would have without what they have already is given at once: one after another gives the same.
static bool hand_out(int64_t layers, int count, struct share *shares) {
    double speed = 0, all = (double)layers;
    for (int i = 0; i < count; i++) speed += 1 / shares[i].seconds;
    for (int i = 0; i < count; i++) {
        double fit = gang_smaller((all / speed - shares[i].load) / shares[i].seconds * (1 - 1e-9), (double)shares[i].most);
        if (fit < 1) continue;
        give(&shares[i], (int64_t)fit);
        layers -= (int64_t)fit;
    }
    for (; layers > 0; layers--) {
        int best = -1;
        double soonest = INFINITY;
        for (int i = 0; i < count; i++) {
            double end = shares[i].load + shares[i].seconds;
            if (end < soonest && shares[i].layers < shares[i].most) soonest = end, best = i;
        }
        if (best < 0) return false;
        give(&shares[best], 1);
    }
    return true;
}

static bool share_layers(struct search *s, struct gang_layout *l, const struct gang_placement *placement) {
    const int *groups = placement->classes[0].groups;
    struct share shares[GANG_MAX_STAGES];
    struct gang_chunk_cost one, ends;
    bool moe = s->task->shape.experts > 0;
    for (int i = 0; i < l->pp; i++) {
        const struct gang_price *price = gang_prices_of(&s->prices, l, placement->classes, i);
        if (!i || groups[i] != groups[i - 1]) gang_price_chunk(s->task, l, price, !moe, moe, false, false, &one);
        if (i < 2 || i == l->pp - 1) gang_price_chunk(s->task, l, price, 0, 0, i == 0, i == l->pp - 1, &ends);
        double flight = in_flight(l, (double)placement->classes[0].micro_batches, l->pp - 1 - i);
        double each = one.parameter_bytes + one.gradient_bytes + one.optimizer_bytes + flight * one.activation_bytes;
        double room = price->group->kind->memory_bytes * (1 - gang_memory_margin) -
                      gang_buffer_bytes(s->task, l, placement->classes[0].micro_batch, one.parameters) - ends.parameter_bytes - ends.gradient_bytes -
                      ends.optimizer_bytes - flight * ends.activation_bytes;
        shares[i] = (struct share){.seconds = gang_time_sum(&one.forward) + gang_time_sum(&one.input) + gang_time_sum(&one.weight),
                                   .load = gang_time_sum(&ends.forward) + gang_time_sum(&ends.input) + gang_time_sum(&ends.weight),
                                   .most = room > 0 ? (int64_t)(room / each) : 0};
    }
    if (!hand_out(s->task->shape.layers, l->pp, shares)) return false;
    for (int i = 0; i < l->pp; i++) l->layers[i] = (int)shares[i].layers;
    l->layer_count = l->pp;
    return true;
}

// False where the layout cannot be placed. `score` as keep returns it; `placement` lives until the scratch is reset.
static bool consider(struct search *s, struct gang_layout *l, struct gang_placement *placement, double *score) {
    double memory_used = 0;
    *score = INFINITY;
    if (gang_layout_place_priced(s->task, s->pool, &s->prices, l, &s->scratch, placement)) return false;
    double seconds = estimate(s->task, s->pool, l, placement, &s->prices, &memory_used);
    *score = keep(s, l, placement, seconds, memory_used);
    return true;
}

static const struct gang_price *prices_at(struct search *s, const struct gang_layout *l, int size) {
    struct gang_price *prices = s->priced[l->recompute][size];
    for (int g = 0; g < s->pool->group_count && !s->known[l->recompute][size]; g++)
        gang_price_fill(s->task, l, 1 << size, s->pool->groups[g], &prices[g]);
    s->known[l->recompute][size] = true;
    return prices;
}

static bool one_size(const struct gang_layout *l) {
    for (int k = 1; k < l->size_count; k++)
        if (l->sizes[k] != l->sizes[0]) return false;
    return true;
}

// A fast or roomy kind of replicas may do better with a larger micro-batch than a slow or small one: from one size for all, kind after
// kind takes the one that is best while the others keep theirs.
static void vary_sizes(struct search *s, const struct gang_layout *start, double score, int kinds) {
    struct gang_layout best = *start;
    struct gang_prices one = s->prices;
    best.size_count = kinds;
    for (int k = 0; k < kinds; k++) {
        best.sizes[k] = start->micro_batch;
        s->prices.at[k] = one.at[0];
    }
    for (int k = 0; k < kinds; k++) {
        struct gang_layout l = best;
        int was = best.sizes[k];
        for (int size = 0; size < SIZES; size++) {
            struct gang_placement placement;
            const struct gang_price *kept = s->prices.at[k];
            l.sizes[k] = 1 << size;
            if (1 << size == was || one_size(&l)) continue;
            l.micro_batch = l.sizes[0];
            s->prices.at[k] = prices_at(s, &l, size);
            double other;
            if (consider(s, &l, &placement, &other) && other < score)
                score = other, best = l;
            else
                s->prices.at[k] = kept;
        }
    }
    s->prices = one;
}

static void consider_unlike(struct search *s, const struct gang_layout *wanted) {
    bool same = wanted->pp == 1 || wanted->dp == 1; // both placements are one
    for (int place = 0; place < (same ? 1 : 2); place++) {
        struct gang_placement placement;
        struct gang_layout even = *wanted, uneven, *best = &even;
        double score, other;
        even.place = place;
        gang_arena_reset(&s->scratch);
        if (!consider(s, &even, &placement, &score)) continue;
        int kinds = placement.kind_count;
        uneven = even;
        if (wanted->vpp == 1 && share_layers(s, &uneven, &placement) &&
            memcmp(even.layers, uneven.layers, (size_t)even.pp * sizeof *even.layers) != 0 && consider(s, &uneven, &placement, &other) &&
            other < score)
            score = other, best = &uneven;
        if (s->unlike && kinds > 1 && score < promising * s->least) vary_sizes(s, best, score, kinds);
    }
}

static void each_depth(struct search *s, struct gang_layout *l) {
    int64_t layers = s->task->shape.layers;
    bool whole = s->task->global_batch / l->micro_batch % l->dp == 0;
    for (l->vpp = 1; l->vpp <= 12 && (int64_t)l->pp * l->vpp <= layers && l->pp * l->vpp <= GANG_MAX_CHUNKS && (l->pp > 1 || l->vpp == 1); l->vpp++)
        for (l->zero = 1; l->zero <= (l->dp > 1 ? 3 : 1); l->zero++) {
            if (s->pool->group_count == 1 && whole)
                consider_alike(s, l);
            else
                consider_unlike(s, l);
        }
}

static void each_stage_count(struct search *s, struct gang_layout *l) {
    int64_t cells = s->pool->devices / ((int64_t)l->tp * l->cp);
    bool alike = s->pool->group_count == 1;
    int size = 0;
    while (1 << size < l->micro_batch) size++;
    s->prices.at[0] = prices_at(s, l, size);
    int64_t batches = s->task->global_batch / l->micro_batch;
    for (int pp = 1; pp <= s->task->shape.layers && pp <= cells && pp <= GANG_MAX_STAGES; pp++) {
        if (alike && cells % pp) continue;
        l->pp = pp;
        l->dp = (int)(cells / pp < batches ? cells / pp : batches);
        // Fewer devices never save time, but may save energy or money.
        for (bool more = true; more; l->dp /= 2) {
            more = s->objective != GANG_OBJECTIVE_TIME && l->dp % 2 == 0;
            if (l->dp % l->ep == 0) each_depth(s, l);
        }
    }
}

static void each_width(struct search *s) {
    const struct gang_shape *shape = &s->task->shape;
    int64_t domain = MAX_WIDTH;
    for (int g = 0; g < s->pool->group_count; g++)
        if (s->pool->groups[g]->fast_domain < domain) domain = s->pool->groups[g]->fast_domain;
    struct gang_layout l;
    gang_layout_init(&l);
    for (l.tp = 1; l.tp <= domain; l.tp *= 2) {
        if (shape->heads % l.tp || shape->ffn % l.tp || (shape->experts && shape->expert_ffn % l.tp)) continue;
        for (l.cp = 1; l.cp <= s->task->sequence_length / 8192 || l.cp == 1; l.cp *= 2) {
            if (s->pool->devices < (int64_t)l.tp * l.cp || (s->pool->group_count == 1 && s->pool->devices % ((int64_t)l.tp * l.cp))) break;
            for (l.ep = 1; l.ep == 1 || (shape->experts && shape->experts % l.ep == 0 && l.ep <= 256); l.ep *= 2) {
                memset(s->known, 0, sizeof s->known);
                for (l.micro_batch = 1; l.micro_batch < 1 << SIZES; l.micro_batch *= 2)
                    for (l.recompute = 0; l.recompute < RECOMPUTES; l.recompute++) {
                        if (s->task->global_batch % l.micro_batch || s->task->sequence_length % ((int64_t)l.cp * l.tp)) continue;
                        each_stage_count(s, &l);
                    }
            }
        }
    }
}

// ---- The answer ----------------------------------------------------------------------------------------------------

static void rates_of(const struct gang_kind *k, enum gang_math math, enum gang_math soft, double out[3]) {
    out[0] = k->peak[math] * k->reach[math];
    out[1] = k->peak[soft] * k->reach[soft];
    out[2] = k->peak[soft] * k->attention_reach;
}

// T sum_d max_i (r_id / u_i) >= sum_i F_i / u_i holds for any split of works F_i over devices d with rates r_id and any units u; each
// kind's own rates are tried as units, and the largest bound counts.
static double lower_bound(const struct gang_task *task, const struct gang_pool *pool) {
    const struct gang_shape *s = &task->shape;
    double tokens = (double)task->global_batch * (double)task->sequence_length, T = (double)task->sequence_length;
    enum gang_math math = task->math, soft = math == GANG_MATH_F32 ? GANG_MATH_F32 : GANG_MATH_F16;
    double scores = 2 * T * (double)(s->heads * (s->qk_dim + s->v_dim)) * (double)s->layers, head = 2 * (double)s->vocab * (double)s->hidden;
    // Works: the layers' products, the head's, attention (causal half; backward 2.5 times forward).
    double work[3] = {3 * tokens * (gang_shape_flops(s, task->sequence_length) - scores - head), 3 * tokens * head, 3.5 * tokens * scores / 2};
    double best = 0;
    for (int reference = 0; reference < pool->group_count; reference++) {
        double left = 0, right = 0, unit[3];
        rates_of(pool->groups[reference]->kind, math, soft, unit);
        for (int g = 0; g < pool->group_count; g++) {
            double rate[3], most = 0;
            rates_of(pool->groups[g]->kind, math, soft, rate);
            for (int i = 0; i < 3; i++) most = gang_larger(most, rate[i] / unit[i]);
            right += most * (double)(pool->groups[g]->nodes * pool->groups[g]->devices);
        }
        for (int i = 0; i < 3; i++) left += work[i] / unit[i];
        best = gang_larger(best, left / right);
    }
    return best;
}

static void enter_found(struct gang_search *out, int top, const struct gang_found *found) {
    if (out->count == top && found->score >= out->found[top - 1].score) return;
    int at = out->count < top ? out->count++ : top - 1;
    for (; at && out->found[at - 1].score > found->score; at--) out->found[at] = out->found[at - 1];
    out->found[at] = *found;
}

static void simulate_best(struct search *s, const struct shelf *shelf, int top) {
    struct gang_search *out = s->out;
    bool all = shelf->fitting <= KEPT;
    int64_t instructions = 0;
    for (int i = 0; i < shelf->kept; i++) {
        struct gang_found *f = shelf->best[i];
        struct gang_answer answer;
        if (!all && out->count == top && i >= SIMULATE_LEAST && f->score > hopeless * out->found[0].score) break;
        if (!all && i >= 2 * SIMULATE_LEAST && instructions > MAX_INSTRUCTIONS) break;
        gang_arena_reset(&s->scratch);
        out->simulated++;
        if (gang_evaluate(s->task, s->pool, &f->layout, 0, &s->scratch, &answer)) continue; // does not fit after all
        instructions += answer.facts.instructions;
        f->summary = answer.summary;
        f->schedule = answer.schedule;
        f->memory_used = answer.memory_used;
        f->layout = answer.layout;
        f->score = score_of(s, &f->layout, &answer.placement, f->summary.step_seconds, &s->scratch);
        enter_found(out, top, f);
    }
}

static enum gang_status explain(struct search *s) {
    struct gang_answer answer;
    if (!s->hungry.memory_used) // not one could even be placed: say why of the plainest
        return gang_evaluate(s->task, s->pool, &(struct gang_layout){.tp = 1, .pp = 1, .vpp = 1, .cp = 1, .ep = 1, .micro_batch = 1, .zero = 1}, 0,
                             &s->scratch, &answer);
    enum gang_status status = gang_evaluate(s->task, s->pool, &s->hungry.layout, 0, &s->scratch, &answer);
    if (status) return status;
    return gang_fail(GANG_ERR_MEMORY, "no layout of the %lld looked at fits the devices' memory", (long long)s->out->considered);
}

static bool alike(const struct gang_pool *pool, const struct gang_class *class, int stages) {
    for (int s = 1; s < stages; s++)
        if (pool->groups[class->groups[s]]->kind != pool->groups[class->groups[0]]->kind) return false;
    return true;
}

void gang_search_layers(const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *layout, struct gang_arena *arena) {
    struct search s = {.task = task, .pool = pool};
    struct gang_layout even = *layout, uneven;
    struct gang_placement placement;
    if (layout->vpp > 1 || gang_layout_place(task, pool, &even, arena, &placement) || alike(pool, &placement.classes[0], even.pp)) return;
    gang_prices_fill(task, pool, &even, arena, &s.prices);
    uneven = even;
    if (!share_layers(&s, &uneven, &placement)) return;
    for (int i = 0; i < uneven.pp; i++)
        if (!uneven.layers[i]) return;
    memcpy(layout->layers, uneven.layers, (size_t)uneven.pp * sizeof *uneven.layers);
    layout->layer_count = uneven.pp;
}

static void open_shelf(struct shelf *shelf, struct gang_arena *arena) {
    struct gang_found *found = gang_arena_alloc(arena, KEPT * sizeof *found);
    shelf->best = gang_arena_alloc(arena, KEPT * sizeof *shelf->best);
    for (int i = 0; i < KEPT; i++) shelf->best[i] = &found[i];
}

enum gang_status gang_search_run(const struct gang_task *task, const struct gang_pool *pool, enum gang_objective objective, int top,
                                 struct gang_arena *arena, struct gang_search *out) {
    struct search s = {.task = task, .pool = pool, .objective = objective, .least = INFINITY, .out = out};
    enum gang_status status = GANG_OK;
    for (int g = 0; g < pool->group_count && objective != GANG_OBJECTIVE_TIME; g++)
        if (!(rate_of(&s, pool->groups[g]) > 0))
            return gang_fail(GANG_ERR_INPUT, "objective %s: group '%s' does not state its %s", gang_objective_names[objective], pool->groups[g]->name,
                             objective == GANG_OBJECTIVE_ENERGY ? "kind's power" : "price");
    for (int g = 1; g < pool->group_count; g++) s.unlike |= pool->groups[g]->kind != pool->groups[0]->kind;
    *out = (struct gang_search){.bound_seconds = lower_bound(task, pool)};
    gang_arena_init(&s.scratch);
    s.zeros = gang_arena_alloc(arena, GANG_MAX_STAGES * sizeof *s.zeros);
    for (int i = 0; i < RECOMPUTES * SIZES; i++)
        s.priced[i / SIZES][i % SIZES] = gang_arena_alloc(arena, (size_t)pool->group_count * sizeof(struct gang_price));
    open_shelf(&s.alike, arena);
    open_shelf(&s.mixed, arena);
    double start = gang_seconds();
    each_width(&s);
    out->estimate_seconds = gang_seconds() - start;
    top = top < 1 ? 1 : top > GANG_MAX_FOUND ? GANG_MAX_FOUND : top;
    simulate_best(&s, &s.alike, top);
    simulate_best(&s, &s.mixed, top);
    if (!out->count) status = explain(&s);
    gang_arena_release(&s.scratch);
    return status;
}

double gang_sum_of_parts(const struct gang_task *task, const struct gang_pool *pool, struct gang_arena *arena) {
    double sum = 0;
    for (int g = 0; g < pool->group_count; g++) {
        struct gang_search alone;
        struct gang_pool part = *pool;
        part.groups = &pool->groups[g];
        part.group_count = 1;
        part.devices = pool->groups[g]->nodes * pool->groups[g]->devices;
        if (!gang_search_run(task, &part, GANG_OBJECTIVE_TIME, 1, arena, &alone)) sum += alone.found[0].summary.tokens_per_second;
    }
    return sum;
}
