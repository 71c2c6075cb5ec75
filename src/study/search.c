// The search: every layout of a space by closed form, the most promising by simulation.
//
// The space: tp over the powers of two inside the high-bandwidth domain, cp where the sequence is long, ep over the powers of two
// that divide the experts, pp over every number of stages, vpp, micro-batch, recomputation, and sharding 1 to 3; on a pool of
// unlike groups both placements, with as many layers on a stage as its devices' speed and memory allow. Recomputation is tried in
// four ways alike on all stages, and as little on each as it has memory for: nobody can take less time by the closed form. A stage that is
// short of memory may instead lay its activations into its node's, where that takes less time. Where nothing fits without, all is looked at
// again, with the optimizer too in the nodes' memory on the stages that are short of their own. What the
// layout does not fix (order of work, micro-batches of each replica) follows by gang_layout_place and the list scheduler.
//
// The closed form (estimate.c) is not trusted: it only says whom to simulate. Where the space is small all of it is simulated, so the answer is
// the best there is in it. The best found are then varied by what single stages make again, by simulation.
#include "study/estimate.h"

#include <math.h>
#include <string.h>

enum { KEPT = 512, SIMULATE_LEAST = 12, REFINE = 3, MAX_WIDTH = 64 };
// Layouts whose closed form is beyond the best simulated by this factor are not simulated any more, nor more than twice SIMULATE_LEAST
// once programs of this many instructions in all have been.
static const double hopeless = 1.25;
enum { MAX_INSTRUCTIONS = 400 * 1000 };
// Several micro-batch sizes are tried where one for all is within this factor of the best seen. Where they are too large for a kind of
// replicas the smaller ones are not, from which the others' grow.
static const double promising = 1.5;

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
    struct gang_arena scratch;        // of one layout; emptied after each
    bool unlike;                      // there are several kinds of devices
    int offload;                      // bits of enum gang_offload that a stage may take
    int64_t plain;                    // layouts that fit without
    int *zeros;                       // [GANG_MAX_STAGES] the only group, under every stage
    struct gang_price *priced[SIZES]; // [groups] at the widths looked at
    bool known[SIZES];
    int size[GANG_MAX_REPLICA_KINDS]; // of each kind of replicas, for the layout looked at
    // Of the widths, stages and replicas looked at: the grounds by place, and what chunks are made of by size, sharding and place.
    struct gang_arena here;
    struct gang_ground *ground[2]; // NULL: not looked at yet
    bool lies[2];                  // it can be placed
    struct gang_parts *parts;      // [SIZES, SHARDINGS, 2, groups]
    struct gang_class classes[GANG_MAX_CLASSES];
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

static bool offloads(const struct gang_layout *l) {
    for (int s = 0; s < l->offload.count; s++)
        if (l->offload.at[s]) return true;
    return !l->offload.count && l->offload.at[0];
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
    *mine = (struct gang_found){.layout = *l, .score = score, .estimate = estimate, .memory_used = memory_used};
    return score;
}

static bool is_uniform(const struct gang_by_stage *choices) {
    for (int s = 1; s < choices->count; s++)
        if (choices->at[s] != choices->at[0]) return false;
    return true;
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
    const struct gang_placement placement = {.cell_devices = (int64_t)l->tp * l->cp,
                                             .kind_count = 1,
                                             .class_count = 1,
                                             .classes = &class,
                                             .devices_used = (int64_t)l->tp * l->cp * l->pp * l->dp};
    struct gang_stage_sum sums[GANG_RECOMPUTES][GANG_ENDS];
    struct gang_exchanges exchanges = {.pool = s->pool, .placement = &placement, .stage = -1};
    double memory_used = 0, least = 0, m = (double)class.micro_batches, delay = gang_hop_seconds(s->task, s->pool, l, &placement);
    for (int r = 0; r < GANG_RECOMPUTES; r++) {
        gang_sum_alike(s->task, l, s->priced[s->size[0]], (enum gang_recompute)r, &exchanges, sums[r]);
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

// A stage that layers are handed to: for each choice of what is made again and offloaded, how long one takes and how many have room.
enum { CHOICES = 2 * GANG_RECOMPUTES };
struct share {
    int choices;
    enum gang_recompute recompute[CHOICES];
    int offload[CHOICES];
    double load, seconds[CHOICES]; // load: of what the stage has already
    int64_t most[CHOICES], layers;
};

// When a stage with this many layers is done; INFINITY where they have no room. Of the choices that keep activations on the device the first
// with room is the soonest, and nothing is sooner than the very first.
static double done_with(const struct share *s, int64_t layers) {
    double soonest = INFINITY;
    int i = 0, plain = s->choices < GANG_RECOMPUTES ? s->choices : GANG_RECOMPUTES;
    while (i < plain && layers > s->most[i]) i++;
    if (i < plain) soonest = s->load + (double)layers * s->seconds[i];
    for (int k = plain; k < s->choices && i; k++)
        if (layers <= s->most[k]) soonest = gang_smaller(soonest, s->load + (double)layers * s->seconds[k]);
    return soonest;
}

// The first of the least; `count` numbers, then INFINITY up to a whole block.
enum { BLOCK = 8 };
static int least_of(const double *numbers, int count) {
    int best = 0;
    double least = INFINITY;
    for (int from = 0; from < count; from += BLOCK) {
        double block = numbers[from];
        for (int i = 1; i < BLOCK; i++) block = gang_smaller(block, numbers[from + i]);
        if (block < least) least = block, best = from;
    }
    while (numbers[best] > least) best++;
    return best;
}

// Layers one after another to the stage that would then be done first and has room. What each gets before the end that all
// would have without what they have already is given at once: one after another gives the same.
static bool hand_out(int64_t layers, int count, struct share *shares) {
    double speed = 0, all = (double)layers, ends[GANG_MAX_STAGES + BLOCK]; // ends: with one more
    for (int i = 0; i < count; i++) speed += 1 / shares[i].seconds[0];
    for (int i = 0; i < count; i++) {
        double fit = gang_smaller((all / speed - shares[i].load) / shares[i].seconds[0] * (1 - 1e-9), (double)shares[i].most[0]);
        shares[i].layers = fit < 1 ? 0 : (int64_t)fit;
        layers -= shares[i].layers;
    }
    for (int i = 0; i < count; i++) ends[i] = done_with(&shares[i], shares[i].layers + 1);
    for (int i = 0; i < BLOCK; i++) ends[count + i] = INFINITY;
    for (; layers > 0; layers--) {
        int best = least_of(ends, count);
        if (isinf(ends[best])) return false;
        shares[best].layers++;
        ends[best] = done_with(&shares[best], shares[best].layers + 1);
    }
    return true;
}

static double part_seconds(const struct gang_part *part) { return part->forward + part->input + part->weight; }

// `ends`: what the stage has beside layers; `flight`: chunks under way on it.
static void fill_share(const struct search *s, const struct gang_layout *l, const struct gang_parts *parts, const struct gang_part *ends,
                       double flight, struct share *out) {
    double here = s->offload & GANG_OFFLOAD_OPTIMIZER ? 0 : 1; // what of the optimizer's state is
    double usable = parts->group->kind->memory_bytes * (1 - gang_memory_margin);
    double host = parts->group->host_memory / (double)parts->group->devices * (1 - gang_memory_margin);
    out->load = part_seconds(ends);
    for (int i = 0; i < out->choices; i++) {
        const struct gang_part *layer = &parts->layer[out->recompute[i]][s->task->shape.experts > 0];
        double stays = out->offload[i] & GANG_OFFLOAD_ACTIVATIONS ? gang_smaller(flight, gang_passes_here) : flight;
        double states = ends->state + here * ends->optimizer + stays * ends->activation;
        double each = layer->state + here * layer->optimizer + stays * layer->activation;
        double buffers = l->zero < 3 ? parts->buffers[out->recompute[i]]
                                     : gang_buffer_bytes(s->task, l, parts->micro_batch, out->recompute[i], layer->parameters);
        double room = usable - buffers - states;
        out->most[i] = room > 0 ? (int64_t)(room / each) : 0;
        out->seconds[i] = part_seconds(layer);
        if (!(stays < flight)) continue;
        double away = (flight - 1) * layer->activation + (1 - here) * layer->optimizer, copy = gang_copy_seconds(parts->group, layer->activation);
        out->seconds[i] = gang_larger(layer->forward, copy) + gang_larger(layer->input + layer->weight, copy);
        out->most[i] = (int64_t)gang_smaller((double)out->most[i], gang_larger(host - (flight - 1) * ends->activation, 0) / away);
    }
}

// What the layout says of the stage, or any choice.
static void open_share(const struct search *s, const struct gang_layout *l, int stage, bool any, struct share *out) {
    out->choices = !any ? 1 : s->offload & GANG_OFFLOAD_ACTIVATIONS ? CHOICES : GANG_RECOMPUTES;
    out->recompute[0] = (enum gang_recompute)gang_of_stage(&l->recompute, stage);
    out->offload[0] = gang_of_stage(&l->offload, stage);
    for (int i = 0; i < out->choices && any; i++) {
        out->recompute[i] = (enum gang_recompute)(i % GANG_RECOMPUTES);
        out->offload[i] = i < GANG_RECOMPUTES ? GANG_OFFLOAD_NONE : GANG_OFFLOAD_ACTIVATIONS;
    }
}

// With what the layout says is made again on each stage, or with any choice; `parts` [groups]. The number of stages that have no room for
// one more than they got; -1 where the layers do not fit.
static int share_layers(const struct search *s, struct gang_layout *l, const struct gang_class *class, const struct gang_parts *parts, bool any) {
    static const struct gang_part none = {0};
    struct share shares[GANG_MAX_STAGES];
    for (int i = 0; i < l->pp; i++) {
        const struct gang_parts *of = &parts[class->groups[i]];
        const struct gang_part *ends = l->pp == 1 ? &of->both : i == 0 ? &of->first : i == l->pp - 1 ? &of->last : &none;
        double flight = gang_in_flight(l, (double)class->micro_batches, l->pp - 1 - i);
        open_share(s, l, i, any, &shares[i]);
        fill_share(s, l, of, ends, flight, &shares[i]);
    }
    if (!hand_out(s->task->shape.layers, l->pp, shares)) return -1;
    int full = 0;
    for (int i = 0; i < l->pp; i++) {
        l->layers[i] = (int)shares[i].layers;
        full += shares[i].layers >= shares[i].most[0];
    }
    l->layer_count = l->pp;
    return full;
}

static const struct gang_price *prices_at(struct search *s, const struct gang_layout *l, int size) {
    struct gang_price *prices = s->priced[size];
    for (int g = 0; g < s->pool->group_count && !s->known[size]; g++) gang_price_fill(s->task, l, 1 << size, s->pool->groups[g], &prices[g]);
    s->known[size] = true;
    return prices;
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
    const struct gang_price *prices = prices_at(s, l, s->size[kind]);
    for (int g = 0; g < s->pool->group_count; g++) gang_parts_fill(s->task, l, &prices[g], 1 << s->size[kind], &parts[g]);
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
        int kinds = placement.kind_count, stages = wanted->vpp > 1 ? -1 : share_layers(s, &uneven, s->classes, parts_of(s, &even, 0), false);
        if (!r) *fits = !isinf(score), *full = stages;
        if (stages >= 0 && !same_layers(&even, &uneven) && !consider(s, &uneven, &placement, &other)) return false;
        vary_better(s, &even, score, &uneven, other, kinds);
    }
    return true;
}

static void consider_unlike(struct search *s, const struct gang_layout *wanted) {
    bool same = wanted->pp == 1 || wanted->dp == 1; // both placements are one
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
        if (wanted->vpp == 1 && full && share_layers(s, &uneven, s->classes, parts_of(s, &placed, 0), true) >= 0 && !same_layers(&even, &uneven))
            other = consider_picked(s, &uneven, &placement);
        vary_better(s, &even, score, &uneven, other, kinds);
    }
}

static void each_depth(struct search *s, struct gang_layout *l) {
    int64_t layers = s->task->shape.layers;
    bool whole = s->task->global_batch / l->micro_batch % l->dp == 0;
    for (l->vpp = 1; l->vpp <= 12 && (int64_t)l->pp * l->vpp <= layers && l->pp * l->vpp <= GANG_MAX_CHUNKS && (l->pp > 1 || l->vpp == 1); l->vpp++)
        for (l->zero = 1; l->zero <= (l->dp > 1 ? 3 : 1); l->zero++) {
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
    int size = 0;
    while (1 << size < l->micro_batch) size++;
    s->size[0] = size;
    prices_at(s, l, size);
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
                for (l.micro_batch = 1; l.micro_batch < 1 << SIZES; l.micro_batch *= 2) {
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
    struct gang_parts *parts = gang_arena_alloc(arena, (size_t)pool->group_count * sizeof *parts);
    struct gang_price price;
    for (int g = 0; g < pool->group_count; g++) {
        gang_price_fill(task, &even, gang_layout_size(&even, 0), pool->groups[g], &price);
        gang_parts_fill(task, &even, &price, gang_layout_size(&even, 0), &parts[g]);
    }
    uneven = even;
    if (share_layers(&s, &uneven, &placement.classes[0], parts, false) < 0) return;
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
    gang_arena_init(&s.here);
    s.parts = gang_arena_alloc(arena, (size_t)(SIZES * SHARDINGS * 2 * pool->group_count) * sizeof *s.parts);
    s.zeros = gang_arena_alloc(arena, GANG_MAX_STAGES * sizeof *s.zeros);
    for (int i = 0; i < SIZES; i++) s.priced[i] = gang_arena_alloc(arena, (size_t)pool->group_count * sizeof(struct gang_price));
    open_shelf(&s.alike, arena);
    open_shelf(&s.mixed, arena);
    double start = gang_seconds();
    for (int g = 0; g < pool->group_count; g++)
        if (gang_group_offloads(pool->groups[g])) s.offload = GANG_OFFLOAD_ACTIVATIONS;
    each_width(&s);
    if (s.offload && !s.plain) {
        s.offload = GANG_OFFLOAD_BOTH;
        each_width(&s);
    }
    out->estimate_seconds = gang_seconds() - start;
    top = top < 1 ? 1 : top > GANG_MAX_FOUND ? GANG_MAX_FOUND : top;
    simulate_best(&s, &s.alike, top);
    simulate_best(&s, &s.mixed, top);
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
