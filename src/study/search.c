// The search: every layout of a space by closed form, the most promising by simulation.
//
// The space: tp over the powers of two inside the high-bandwidth domain, cp where the sequence is long, ep over the powers of two
// that divide the experts, pp over every number of stages, vpp, micro-batch, recomputation, and sharding 1 to 3; on a pool of
// unlike groups both placements, with as many layers on a stage as its devices' speed and memory allow, and beside one width for all
// every choice of one for each group, where the pipeline crosses whole groups. Recomputation is tried in
// four ways alike on all stages, and as little on each as it has memory for: nobody can take less time by the closed form. A stage that is
// short of memory may instead lay its activations into its node's, where that takes less time. Where nothing fits without, all is looked at
// again, with the optimizer too in the nodes' memory on the stages that are short of their own. What the
// layout does not fix (order of work, micro-batches of each replica) follows by gang_layout_place and the list scheduler.
//
// The closed form (estimate.c) is not trusted: it only says whom to simulate. Where the space is small all of it is simulated, so the answer is
// the best there is in it. The best found are then varied by what single stages make again, by simulation.
#include "study/layers.h"

#include <math.h>
#include <string.h>

enum { KEPT = 512, SIMULATE_LEAST = 12, REFINE = 3, WIDTHS = 7, MAX_WIDTH = 1 << (WIDTHS - 1) };
// Layouts whose closed form is beyond the best simulated by this factor are not simulated any more, nor more than twice SIMULATE_LEAST
// once programs of this many instructions in all have been.
static const double hopeless = 1.25;
enum { MAX_INSTRUCTIONS = 400 * 1000 };
// Several micro-batch sizes are tried where one for all is within this factor of the best seen. Where they are too large for a kind of
// replicas the smaller ones are not, from which the others' grow.
static const double promising = 1.5;
// Widths of their own for the groups are not looked at where even full stages would take longer than the best seen by this factor: the
// closed form is nearer than that to what is simulated. Nor are more than so many choices, of which like groups share one where there would
// be more, nor more than so many layouts.
static const double worthwhile = 1.1;
enum { MAX_MIXTURES = 4096, MAX_MIXED = 250 * 1000 };

// ---- The space -----------------------------------------------------------------------------------------------------

// Micro-batch sizes are the powers of two.
enum { SIZES = 4, SHARDINGS = 4 };

struct shelf {
    int kept;
    int64_t fitting;
    struct gang_found **best; // [KEPT] by estimate
};

struct search {
    const struct gang_task *task;
    const struct gang_pool *pool;
    enum gang_objective objective;
    struct gang_arena scratch;           // of one layout; emptied after each
    bool unlike;                         // there are several kinds of devices
    int offload;                         // bits of enum gang_offload that a stage may take
    int64_t plain;                       // layouts that fit without
    int *zeros;                          // [GANG_MAX_STAGES] the only group, under every stage
    struct gang_price *priced[SIZES][2]; // [WIDTHS, groups] at the cp and ep looked at, and with gradients sharded
    bool known[SIZES][2][WIDTHS];
    int *width;                       // [groups] power of two of each group's, for the layout looked at
    int *as;                          // [groups] the first group that has the same width, where groups have widths of their own
    int size[GANG_MAX_REPLICA_KINDS]; // power of two of each kind of replicas' micro-batch, for the layout looked at
    // Of the widths, stages and replicas looked at: the grounds by place, and what chunks are made of by size, sharding and place.
    struct gang_arena here;
    struct gang_ground *ground[2]; // NULL: not looked at yet
    bool lies[2];                  // it can be placed
    struct gang_parts *parts;      // [SIZES, SHARDINGS, 2, groups]
    struct gang_class classes[GANG_MAX_CLASSES];
    struct shelf alike, mixed, wide; // one micro-batch size, several; several widths
    double least;                    // score of all that fit
    struct gang_found hungry;        // the least hungry of those that do not fit
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
            rate += (double)(placement->classes[c].replicas * gang_cell_devices(l, i)) * rate_of(s, s->pool->groups[placement->classes[c].groups[i]]);
    return seconds * rate + (s->objective == GANG_OBJECTIVE_PRICE ? carried_price(s, l, placement, arena) : 0);
}

static bool is_kept(const struct shelf *shelf, const struct gang_layout *l, double score, int at) {
    for (; at && shelf->best[at - 1]->score == score; at--)
        if (!memcmp(&shelf->best[at - 1]->layout, l, sizeof *l)) return true;
    return false;
}

static bool offloads(const struct gang_layout *l) {
    for (int s = 0; s < l->offload.count; s++)
        if (l->offload.at[s]) return true;
    return !l->offload.count && l->offload.at[0];
}

// Returns the score, INFINITY for a layout that does not fit.
static double keep(struct search *s, const struct gang_layout *l, const struct gang_placement *placement, double estimate, double memory_used) {
    struct shelf *shelf = l->width_count ? &s->wide : l->size_count ? &s->mixed : &s->alike;
    s->out->considered++;
    if (memory_used > 1) {
        if (s->hungry.memory_used == 0 || memory_used < s->hungry.memory_used)
            s->hungry = (struct gang_found){.layout = *l, .memory_used = memory_used};
        return INFINITY;
    }
    s->out->fitting++;
    s->plain += !offloads(l);
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
    // From another size, or from the first look at all.
    if ((l->size_count || s->offload & GANG_OFFLOAD_OPTIMIZER) && is_kept(shelf, l, score, at)) return score;
    if (shelf->kept < KEPT) shelf->kept++;
    struct gang_found *mine = shelf->best[shelf->kept - 1];
    memmove(&shelf->best[at + 1], &shelf->best[at], (size_t)(shelf->kept - 1 - at) * sizeof *shelf->best);
    shelf->best[at] = mine;
    mine->layout = *l; // the rest is what simulating it says
    mine->score = score, mine->estimate = estimate, mine->memory_used = memory_used;
    return score;
}

static bool is_uniform(const struct gang_by_stage *choices) {
    for (int s = 1; s < choices->count; s++)
        if (choices->at[s] != choices->at[0]) return false;
    return true;
}

static int log2_of(int power) {
    int log = 0;
    while (1 << log < power) log++;
    return log;
}

// At the width looked at.
static const struct gang_price *price_at(struct search *s, const struct gang_layout *l, int size, int group) {
    int groups = s->pool->group_count, width = s->width[group];
    bool *known = &s->known[size][l->zero >= 2][width];
    struct gang_price *prices = s->priced[size][l->zero >= 2] + width * groups;
    for (int g = 0; g < groups && !*known; g++) gang_price_fill(s->task, l, 1 << width, 1 << size, s->pool->groups[g], &prices[g]);
    *known = true;
    return &prices[group];
}

// As little made again on each stage as it has memory for; false where some stage has too little for any.
static bool pick_alike(struct gang_layout *l, const struct gang_stage_sum sums[][GANG_ENDS], double m) {
    l->recompute.count = l->pp;
    for (int s = 0; s < l->pp; s++) {
        int r = 0;
        while (r < GANG_RECOMPUTES && gang_share_used(l, &sums[r][gang_end_of(l, s)], m, l->pp - 1 - s) > 1) r++;
        if (r == GANG_RECOMPUTES) return false;
        l->recompute.at[s] = (uint8_t)r;
    }
    return true;
}

static void consider_offloaded(struct search *s, const struct gang_layout *wanted);

static void consider_alike(struct search *s, struct gang_layout *l) {
    int64_t batches = s->task->global_batch / l->micro_batch;
    struct gang_class class = {.replicas = l->dp, .micro_batches = batches / l->dp, .micro_batch = l->micro_batch, .groups = s->zeros};
    if (l->vpp > 1 && class.micro_batches % l->pp) return; // interleaving wants whole groups
    const struct gang_placement placement = {
        .kind_count = 1, .class_count = 1, .classes = &class, .devices_used = (int64_t)l->tp * l->cp * l->pp * l->dp};
    struct gang_stage_sum sums[GANG_RECOMPUTES][GANG_ENDS];
    struct gang_exchanges exchanges = {.task = s->task, .pool = s->pool, .placement = &placement, .stage = -1};
    double memory_used = 0, least = 0, m = (double)class.micro_batches, delay = gang_hop_seconds(s->task, s->pool, l, &placement);
    for (int r = 0; r < GANG_RECOMPUTES; r++) {
        gang_sum_alike(s->task, l, price_at(s, l, s->size[0], 0), (enum gang_recompute)r, &exchanges, sums[r]);
        l->recompute.count = 0;
        l->recompute.at[0] = (uint8_t)r;
        double seconds = gang_combine_alike(l, sums, &class, delay, &memory_used);
        keep(s, l, &placement, seconds, memory_used);
        if (!r) least = memory_used;
    }
    if (least <= 1) return;
    if (pick_alike(l, sums, m) && !is_uniform(&l->recompute))
        keep(s, l, &placement, gang_combine_alike(l, sums, &class, delay, &memory_used), memory_used);
    if (s->offload) consider_offloaded(s, l);
}

// NULL where the layout cannot be placed.
static struct gang_ground *ground_of(struct search *s, const struct gang_layout *l) {
    if (!s->ground[l->place]) {
        struct gang_placement placement;
        s->ground[l->place] = gang_arena_alloc(&s->here, sizeof *s->ground[0]);
        s->lies[l->place] = !gang_layout_locate(s->task, s->pool, l, &s->here, &placement);
        if (s->lies[l->place]) gang_ground_open(s->pool, l, &placement, &s->here, s->ground[l->place]);
    }
    return s->lies[l->place] && (l->zero < 2 || s->ground[l->place]->near) ? s->ground[l->place] : NULL;
}

// [groups]
static const struct gang_parts *parts_of(struct search *s, const struct gang_layout *l, int kind) {
    struct gang_parts *parts = &s->parts[((s->size[kind] * SHARDINGS + l->zero) * 2 + l->place) * s->pool->group_count];
    if (parts->group) return parts;
    for (int g = 0; g < s->pool->group_count; g++) gang_parts_fill(s->task, l, price_at(s, l, s->size[kind], g), 1 << s->size[kind], &parts[g]);
    return parts;
}

static void leave_grounds(struct search *s) {
    gang_arena_reset(&s->here);
    s->ground[0] = s->ground[1] = NULL;
    for (int i = 0; i < SIZES * SHARDINGS * 2; i++) s->parts[i * s->pool->group_count].group = NULL;
}

// As gang_layout_place; NULL where the layout cannot be placed. The placement's classes are the search's only ones.
static struct gang_ground *place(struct search *s, struct gang_layout *l, struct gang_placement *placement) {
    const struct gang_parts *parts[GANG_MAX_REPLICA_KINDS];
    double seconds[GANG_MAX_REPLICA_KINDS];
    struct gang_ground *ground = ground_of(s, l);
    if (!ground || gang_layout_settle(s->task, l)) return NULL;
    *placement = ground->kinds;
    placement->classes = s->classes;
    memcpy(s->classes, ground->kinds.classes, (size_t)placement->kind_count * sizeof *s->classes);
    for (int k = 0; k < placement->kind_count; k++) parts[k] = parts_of(s, l, l->size_count ? k : 0);
    gang_ground_sum(ground, s->task, l, parts, seconds);
    return gang_layout_share(s->task, s->pool, l, seconds, &s->scratch, placement) ? NULL : ground;
}

// False where the layout cannot be placed. `score` as keep returns it.
static bool consider(struct search *s, struct gang_layout *l, struct gang_placement *placement, double *score) {
    double memory_used = 0;
    *score = INFINITY;
    const struct gang_ground *ground = place(s, l, placement);
    if (!ground) return false;
    double seconds = gang_ground_combine(ground, s->task, l, placement, &memory_used);
    *score = keep(s, l, placement, seconds, memory_used);
    return true;
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
    int one = s->size[0];
    best.size_count = kinds;
    for (int k = 0; k < kinds; k++) {
        best.sizes[k] = start->micro_batch;
        s->size[k] = one;
    }
    for (int k = 0; k < kinds; k++) {
        struct gang_layout l = best;
        int was = s->size[k], kept = was;
        for (int size = 0; size < SIZES; size++) {
            struct gang_placement placement;
            l.sizes[k] = 1 << size;
            if (size == was || one_size(&l)) continue;
            l.micro_batch = l.sizes[0];
            s->size[k] = size;
            double other;
            if (consider(s, &l, &placement, &other) && other < score)
                score = other, best = l, kept = size;
            else
                s->size[k] = kept;
        }
    }
    s->size[0] = one;
}

// What a stage holds in each class by what is made again; kept for the stages behind it that hold the same.
struct held {
    bool filled[GANG_OFFLOADS][GANG_RECOMPUTES];
    struct gang_stage_sum sums[GANG_OFFLOADS][GANG_RECOMPUTES][GANG_MAX_CLASSES];
};

// Seconds that the stage takes of a step with its choices, in the class that takes longest; INFINITY where one has no room.
static double seconds_with(struct search *s, const struct gang_layout *l, const struct gang_placement *placement, int stage, struct held *held) {
    int offload = l->offload.at[stage], recompute = l->recompute.at[stage];
    struct gang_stage_sum *sums = held->sums[offload][recompute];
    double most = 0;
    for (int c = 0; c < placement->class_count && !held->filled[offload][recompute]; c++) {
        const struct gang_class *class = &placement->classes[c];
        sums[c] = (struct gang_stage_sum){0};
        gang_sum_stage(s->task, l, &parts_of(s, l, l->size_count ? class->kind : 0)[class->groups[stage]], stage, NULL, &sums[c]);
    }
    held->filled[offload][recompute] = true;
    for (int c = 0; c < placement->class_count; c++) {
        double m = (double)placement->classes[c].micro_batches;
        if (gang_share_used(l, &sums[c], m, l->pp - 1 - stage) > 1) return INFINITY;
        most = gang_larger(most, m * sums[c].seconds + sums[c].update);
    }
    return most;
}

// The fastest choice that every class has room for. Nothing is faster than what neither makes again nor offloads; and of what keeps its
// activations on the device, what makes less again.
static bool pick_stage(struct search *s, struct gang_layout *l, const struct gang_placement *placement, int stage, struct held *held) {
    double least = INFINITY;
    int best = 0;
    for (int choice = 0; choice < GANG_OFFLOADS * GANG_RECOMPUTES; choice++) {
        int offload = choice / GANG_RECOMPUTES;
        if (offload & ~s->offload) continue;
        l->offload.at[stage] = (uint8_t)offload;
        l->recompute.at[stage] = (uint8_t)(choice % GANG_RECOMPUTES);
        double seconds = seconds_with(s, l, placement, stage, held);
        if (seconds < least) least = seconds, best = choice;
        if (isinf(seconds) || offload & GANG_OFFLOAD_ACTIVATIONS) continue;
        if (!choice) break;
        choice = (offload + 1) * GANG_RECOMPUTES - 1;
    }
    l->offload.at[stage] = (uint8_t)(best / GANG_RECOMPUTES);
    l->recompute.at[stage] = (uint8_t)(best % GANG_RECOMPUTES);
    return isfinite(least);
}

// As pick_alike, on devices of any kind, and with what may be offloaded.
static bool pick_unlike(struct search *s, struct gang_layout *l, const struct gang_placement *placement) {
    const struct gang_ground *ground = s->ground[l->place];
    struct held held;
    l->recompute.count = l->offload.count = l->pp;
    for (int i = 0; i < l->pp; i++) {
        l->recompute.at[i] = l->recompute.at[i ? i - 1 : 0];
        l->offload.at[i] = l->offload.at[i ? i - 1 : 0];
        if (!i || !gang_ground_repeats(ground, s->task, l, i)) memset(held.filled, 0, sizeof held.filled);
        if (!pick_stage(s, l, placement, i, &held)) return false;
    }
    return true;
}

// On like devices whose memory is too small for all that is kept.
static void consider_offloaded(struct search *s, const struct gang_layout *wanted) {
    struct gang_placement placement;
    struct gang_layout l = *wanted;
    double score;
    l.recompute = l.offload = (struct gang_by_stage){0};
    if (!place(s, &l, &placement)) return;
    if (pick_unlike(s, &l, &placement) && offloads(&l)) consider(s, &l, &placement, &score);
}

static bool same_layers(const struct gang_layout *a, const struct gang_layout *b) {
    return !memcmp(a->layers, b->layers, (size_t)a->pp * sizeof *a->layers);
}

// With as little made again on each stage as it has room for, where that has not been looked at: the same on all.
static double consider_picked(struct search *s, struct gang_layout *l, struct gang_placement *placement) {
    double score = INFINITY;
    if (pick_unlike(s, l, placement) && (s->offload & GANG_OFFLOAD_OPTIMIZER || offloads(l) || !is_uniform(&l->recompute)))
        consider(s, l, placement, &score);
    return score;
}

// The better of the two, with several micro-batch sizes where that is promising.
static void vary_better(struct search *s, const struct gang_layout *even, double score, const struct gang_layout *uneven, double other, int kinds) {
    if (other < score) score = other, even = uneven;
    if (s->unlike && kinds > 1 && score < promising * s->least) vary_sizes(s, even, score, kinds);
}

// The same choice on all stages. False where the layout cannot be placed; `fits` and `full` as it is with no layer made again.
static bool consider_uniform(struct search *s, const struct gang_layout *wanted, bool *fits, int *full) {
    struct gang_layout even = *wanted, uneven;
    for (int r = 0; r < GANG_RECOMPUTES; r++) {
        struct gang_placement placement;
        double score, other = INFINITY;
        even.recompute.at[0] = (uint8_t)r;
        gang_arena_reset(&s->scratch);
        if (!consider(s, &even, &placement, &score)) return false;
        if (!r) uneven = even;
        uneven.recompute.at[0] = (uint8_t)r;
        int kinds = placement.kind_count,
            stages = wanted->vpp > 1 ? -1 : gang_share_layers(s->task, s->classes, parts_of(s, &even, 0), s->offload, false, &uneven);
        if (!r) *fits = !isinf(score), *full = stages;
        if (stages >= 0 && !same_layers(&even, &uneven) && !consider(s, &uneven, &placement, &other)) return false;
        vary_better(s, &even, score, &uneven, other, kinds);
    }
    return true;
}

static void consider_unlike(struct search *s, const struct gang_layout *wanted) {
    bool same = wanted->pp == 1 || wanted->dp == 1 || wanted->width_count; // both placements are one, or only one has whole groups
    struct gang_layout placed = *wanted;
    for (placed.place = 0; placed.place < (same ? 1 : 2); placed.place++) {
        struct gang_placement placement;
        double score = INFINITY, other = INFINITY;
        bool fits = false;
        int full = 1;
        if (!(s->offload & GANG_OFFLOAD_OPTIMIZER) && !consider_uniform(s, &placed, &fits, &full)) continue;
        if (fits && (wanted->vpp > 1 || !full)) continue;
        struct gang_layout even = placed, uneven;
        gang_arena_reset(&s->scratch);
        if (!place(s, &even, &placement)) continue;
        uneven = even;
        int kinds = placement.kind_count;
        if (!fits) score = consider_picked(s, &even, &placement);
        if (wanted->vpp == 1 && full && gang_share_layers(s->task, s->classes, parts_of(s, &placed, 0), s->offload, true, &uneven) >= 0 &&
            !same_layers(&even, &uneven))
            other = consider_picked(s, &uneven, &placement);
        vary_better(s, &even, score, &uneven, other, kinds);
    }
}

static int64_t cells_of(const struct search *s, const struct gang_layout *l, int group) {
    return s->pool->groups[group]->nodes * s->pool->groups[group]->devices / l->cp >> s->width[group];
}

// The least score that layers on all of the groups' cells can have, with as many on each stage or anyhow: nothing is made again or waited for.
static double least_score(struct search *s, const struct gang_layout *l, bool even) {
    double speed = 0, rate = 0, slowest = 0; // speed: layers of a micro-batch a second
    for (int g = 0; g < s->pool->group_count; g++) {
        const struct gang_price *price = price_at(s, l, s->size[0], g);
        double each = INFINITY;
        for (int moe = s->task->shape.experts && !s->task->shape.dense_layers; moe <= (s->task->shape.experts > 0); moe++) {
            const struct gang_chunk_cost *layer = &price->layer[GANG_RECOMPUTE_NONE][moe];
            each = gang_smaller(each, gang_time_sum(&layer->forward) + gang_time_sum(&layer->input) + gang_time_sum(&layer->weight));
        }
        slowest = gang_larger(slowest, each);
        speed += (double)cells_of(s, l, g) / each;
        rate += (double)(cells_of(s, l, g) * l->cp << s->width[g]) * rate_of(s, s->pool->groups[g]);
    }
    int64_t batches = s->task->global_batch / l->micro_batch, layers = s->task->shape.layers, least = layers / (l->pp * l->vpp) * l->vpp;
    double seconds = even ? (double)batches / l->dp * (double)least * slowest : (double)(batches * layers) / speed;
    return s->objective == GANG_OBJECTIVE_TIME ? seconds : seconds * rate;
}

static void each_depth(struct search *s, struct gang_layout *l) {
    int64_t layers = s->task->shape.layers;
    bool whole = s->task->global_batch / l->micro_batch % l->dp == 0;
    for (l->vpp = 1;
         l->vpp <= 12 && (int64_t)l->pp * l->vpp <= layers && l->pp * l->vpp <= GANG_MAX_CHUNKS && (l->pp > 1 || l->dp > 1 || l->vpp == 1); l->vpp++)
        for (l->zero = 1; l->zero <= (l->dp > 1 ? 3 : 1); l->zero++) {
            if (l->width_count && l->vpp > 1 && least_score(s, l, true) > worthwhile * s->least) continue;
            l->recompute = l->offload = (struct gang_by_stage){0};
            if (s->pool->group_count == 1 && whole && !(s->offload & GANG_OFFLOAD_OPTIMIZER))
                consider_alike(s, l);
            else
                consider_unlike(s, l);
        }
}

static void each_stage_count(struct search *s, struct gang_layout *l) {
    int64_t cells = s->pool->devices / ((int64_t)l->tp * l->cp);
    bool alike = s->pool->group_count == 1;
    s->size[0] = log2_of(l->micro_batch);
    int64_t batches = s->task->global_batch / l->micro_batch;
    for (int pp = 1; pp <= s->task->shape.layers && pp <= cells && pp <= GANG_MAX_STAGES; pp++) {
        if (alike && cells % pp) continue;
        l->pp = pp;
        l->dp = (int)(cells / pp < batches ? cells / pp : batches);
        // Fewer devices never save time, but may save energy or money.
        for (bool more = true; more; l->dp /= 2) {
            more = s->objective != GANG_OBJECTIVE_TIME && l->dp % 2 == 0;
            leave_grounds(s);
            if (l->dp % l->ep == 0) each_depth(s, l);
        }
    }
}

static bool divides(const struct gang_shape *shape, int tp) {
    return shape->heads % tp == 0 && shape->ffn % tp == 0 && (!shape->experts || shape->expert_ffn % tp == 0);
}

static void each_width(struct search *s) {
    const struct gang_shape *shape = &s->task->shape;
    int64_t domain = MAX_WIDTH;
    for (int g = 0; g < s->pool->group_count; g++)
        if (s->pool->groups[g]->fast_domain < domain) domain = s->pool->groups[g]->fast_domain;
    struct gang_layout l;
    gang_layout_init(&l);
    for (l.tp = 1; l.tp <= domain; l.tp *= 2) {
        if (!divides(shape, l.tp)) continue;
        for (int g = 0; g < s->pool->group_count; g++) s->width[g] = log2_of(l.tp);
        for (l.cp = 1; l.cp <= s->task->sequence_length / 8192 || l.cp == 1; l.cp *= 2) {
            if (s->pool->devices < (int64_t)l.tp * l.cp || (s->pool->group_count == 1 && s->pool->devices % ((int64_t)l.tp * l.cp))) break;
            for (l.ep = 1; l.ep == 1 || (shape->experts && shape->experts % l.ep == 0 && l.ep <= 256); l.ep *= 2) {
                memset(s->known, 0, sizeof s->known);
                for (l.micro_batch = 1; l.micro_batch < 1 << SIZES; l.micro_batch *= 2) {
                    if (s->task->global_batch % l.micro_batch || s->task->sequence_length % ((int64_t)l.cp * l.tp)) continue;
                    each_stage_count(s, &l);
                }
            }
        }
    }
}

// ---- A width for each group ----------------------------------------------------------------------------------------

// With as many replicas as divide all groups' cells.
static void each_replica_count(struct search *s, struct gang_layout *l) {
    int64_t batches = s->task->global_batch / l->micro_batch, fewest = INT64_MAX;
    for (int g = 0; g < s->pool->group_count; g++) fewest = cells_of(s, l, g) < fewest ? cells_of(s, l, g) : fewest;
    for (l->dp = l->ep; l->dp <= fewest && l->dp <= batches; l->dp += l->ep) {
        int64_t stages = 0;
        bool whole = true;
        memset(l->widths, 0, sizeof l->widths);
        for (int g = 0; g < s->pool->group_count && whole; g++) {
            int64_t cells = cells_of(s, l, g);
            whole = cells % l->dp == 0 && stages + cells / l->dp <= GANG_MAX_STAGES;
            for (int64_t i = 0; i < cells / l->dp && whole; i++) l->widths[stages++] = (uint16_t)(1 << s->width[g]);
        }
        if (!whole || stages > s->task->shape.layers) continue;
        l->pp = l->width_count = (int)stages;
        l->tp = l->widths[0];
        leave_grounds(s);
        each_depth(s, l);
    }
}

// The next choice of widths; false behind the last.
static bool next_mixture(struct search *s) {
    for (int g = 0; g < s->pool->group_count; g++) {
        if (s->as[g] != g) continue;
        if (2 << s->width[g] <= s->pool->groups[g]->fast_domain && s->width[g] + 1 < WIDTHS) {
            s->width[g]++;
            return true;
        }
        s->width[g] = 0;
    }
    return false;
}

// Whether the widths are unlike and every group's divides it and the model.
static bool is_mixture(struct search *s, const struct gang_layout *l) {
    bool unlike = false;
    for (int g = 0; g < s->pool->group_count; g++) {
        const struct gang_group *group = s->pool->groups[g];
        int tp = 1 << (s->width[g] = s->width[s->as[g]]);
        unlike |= s->width[g] != s->width[0];
        if (!divides(&s->task->shape, tp) || s->task->sequence_length % ((int64_t)l->cp * tp)) return false;
        if (group->nodes * group->devices % ((int64_t)l->cp * tp) || group->fast_domain % tp) return false;
    }
    return unlike;
}

static void share_widths(struct search *s) {
    const struct gang_pool *pool = s->pool;
    double choices = 1;
    for (int g = 0; g < pool->group_count; g++) choices *= 1 + log2_of((int)pool->groups[g]->fast_domain);
    for (int g = 0; g < pool->group_count; g++) {
        s->as[g] = g;
        for (int k = g - 1; k >= 0 && choices > MAX_MIXTURES; k--)
            if (pool->groups[k]->kind == pool->groups[g]->kind && pool->groups[k]->fast_domain == pool->groups[g]->fast_domain) s->as[g] = s->as[k];
    }
}

// Those choices of widths whose least score lies above `from` and not above `to`.
static void each_mixture_between(struct search *s, struct gang_layout *l, double from, double to, int64_t most) {
    memset(s->width, 0, (size_t)s->pool->group_count * sizeof *s->width);
    for (int i = 0; i < MAX_MIXTURES && s->out->considered < most && next_mixture(s); i++)
        for (l->micro_batch = 1; l->micro_batch < 1 << SIZES && is_mixture(s, l); l->micro_batch *= 2) {
            if (s->task->global_batch % l->micro_batch) continue;
            s->size[0] = log2_of(l->micro_batch);
            l->zero = 3; // adds up gradients in the least time
            double least = least_score(s, l, false);
            if (least > from && least <= to && least <= worthwhile * s->least) each_replica_count(s, l);
        }
}

// The most promising first, so that what has no place any more is the least.
static void each_mixture(struct search *s) {
    const struct gang_shape *shape = &s->task->shape;
    double best = s->least;
    int64_t most = s->out->considered + MAX_MIXED;
    struct gang_layout l;
    share_widths(s);
    gang_layout_init(&l);
    for (l.cp = 1; l.cp <= s->task->sequence_length / 8192 || l.cp == 1; l.cp *= 2)
        for (l.ep = 1; l.ep == 1 || (shape->experts && shape->experts % l.ep == 0 && l.ep <= 256); l.ep *= 2) {
            memset(s->known, 0, sizeof s->known);
            if (isinf(best)) each_mixture_between(s, &l, 0, INFINITY, most);
            for (double from = 0, to = 0.7; from < worthwhile && !isinf(best); from = to, to += 0.1)
                each_mixture_between(s, &l, from * best, to * best, most);
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

// False where the layout does not fit after all.
static bool simulate(struct search *s, struct gang_found *f, int64_t *instructions) {
    struct gang_answer answer;
    gang_arena_reset(&s->scratch);
    s->out->simulated++;
    if (gang_evaluate(s->task, s->pool, &f->layout, 0, &s->scratch, &answer)) return false;
    *instructions += answer.facts.instructions;
    f->summary = answer.summary;
    f->schedule = answer.schedule;
    f->memory_used = answer.memory_used;
    f->layout = answer.layout;
    f->score = score_of(s, &f->layout, &answer.placement, f->summary.step_seconds, &s->scratch);
    return true;
}

static void simulate_best(struct search *s, const struct shelf *shelf, int top) {
    struct gang_search *out = s->out;
    bool all = shelf->fitting <= KEPT;
    int64_t instructions = 0;
    for (int i = 0; i < shelf->kept; i++) {
        struct gang_found *f = shelf->best[i];
        if (!all && out->count == top && i >= SIMULATE_LEAST && f->score > hopeless * out->found[0].score) break;
        if (!all && i >= 2 * SIMULATE_LEAST && instructions > MAX_INSTRUCTIONS) break;
        if (simulate(s, f, &instructions)) enter_found(out, top, f);
    }
}

static void expand(struct gang_by_stage *choices, int stages) {
    if (!choices->count) memset(choices->at, choices->at[0], (size_t)stages);
    choices->count = stages;
}

// Where no device uses more than this share of its memory, it does not limit what is under way.
static const double roomy = 0.5;

// On one stage after another another choice of what is made again and offloaded, as long as that is better: what the closed form does not
// see is that a stage with room for more micro-batches under way may let others wait less.
static void refine(struct search *s, struct gang_found *f, int64_t *instructions) {
    int choices = GANG_OFFLOADS * GANG_RECOMPUTES, moves = f->layout.pp * choices, idle = 0;
    for (int move = 0; idle < moves && *instructions < MAX_INSTRUCTIONS; move = (move + 1) % moves, idle++) {
        int stage = move / choices, offload = move % choices / GANG_RECOMPUTES, recompute = move % GANG_RECOMPUTES;
        struct gang_found other = *f;
        struct gang_layout *l = &other.layout;
        if (offload & ~s->offload || (offload & GANG_OFFLOAD_ACTIVATIONS && f->memory_used < roomy)) continue;
        expand(&l->recompute, l->pp);
        expand(&l->offload, l->pp);
        if (l->recompute.at[stage] == recompute && l->offload.at[stage] == offload) continue;
        l->recompute.at[stage] = (uint8_t)recompute;
        l->offload.at[stage] = (uint8_t)offload;
        if (!simulate(s, &other, instructions) || other.score >= f->score * (1 - 1e-9)) continue;
        *f = other;
        idle = 0;
    }
}

static void refine_best(struct search *s, int top) {
    struct gang_found best[REFINE];
    int64_t instructions = 0;
    int count = s->out->count < REFINE ? s->out->count : REFINE;
    memcpy(best, s->out->found, (size_t)count * sizeof *best);
    for (int i = 0; i < count; i++) {
        double score = best[i].score;
        if (best[i].layout.pp > 1 || s->offload) refine(s, &best[i], &instructions);
        if (best[i].score < score) enter_found(s->out, top, &best[i]);
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

static void open_shelf(struct shelf *shelf, struct gang_arena *arena) {
    struct gang_found *found = gang_arena_alloc(arena, KEPT * sizeof *found);
    shelf->best = gang_arena_alloc(arena, KEPT * sizeof *shelf->best);
    for (int i = 0; i < KEPT; i++) shelf->best[i] = &found[i];
}

static void each_layout(struct search *s) {
    each_width(s);
    if (s->pool->group_count > 1) each_mixture(s);
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
    gang_arena_init(&s.here);
    s.parts = gang_arena_alloc(arena, (size_t)(SIZES * SHARDINGS * 2 * pool->group_count) * sizeof *s.parts);
    s.zeros = gang_arena_alloc(arena, GANG_MAX_STAGES * sizeof *s.zeros);
    s.width = gang_arena_alloc(arena, (size_t)pool->group_count * sizeof *s.width);
    s.as = gang_arena_alloc(arena, (size_t)pool->group_count * sizeof *s.as);
    for (int i = 0; i < 2 * SIZES; i++)
        s.priced[i / 2][i % 2] = gang_arena_alloc(arena, WIDTHS * (size_t)pool->group_count * sizeof(struct gang_price));
    open_shelf(&s.alike, arena);
    open_shelf(&s.mixed, arena);
    open_shelf(&s.wide, arena);
    double start = gang_seconds();
    for (int g = 0; g < pool->group_count; g++)
        if (gang_group_offloads(pool->groups[g])) s.offload = GANG_OFFLOAD_ACTIVATIONS;
    each_layout(&s);
    if (s.offload && !s.plain) {
        s.offload = GANG_OFFLOAD_BOTH;
        each_layout(&s);
    }
    out->estimate_seconds = gang_seconds() - start;
    top = top < 1 ? 1 : top > GANG_MAX_FOUND ? GANG_MAX_FOUND : top;
    simulate_best(&s, &s.alike, top);
    simulate_best(&s, &s.mixed, top);
    simulate_best(&s, &s.wide, top);
    refine_best(&s, top);
    if (!out->count) status = explain(&s);
    gang_arena_release(&s.scratch);
    gang_arena_release(&s.here);
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
