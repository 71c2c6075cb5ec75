// How many of the model's layers a stage takes: where its devices are faster or have more memory than others', more.
#include "study/layers.h"

#include <math.h>
#include <string.h>

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
static void fill_share(const struct gang_task *task, const struct gang_layout *l, const struct gang_parts *parts, const struct gang_part *ends,
                       double flight, int offload, struct share *out) {
    double here = offload & GANG_OFFLOAD_OPTIMIZER ? 0 : 1; // what of the optimizer's state is
    double usable = parts->group->kind->memory_bytes * (1 - gang_memory_margin);
    double host = parts->group->host_memory / (double)parts->group->devices * (1 - gang_memory_margin);
    out->load = part_seconds(ends);
    for (int i = 0; i < out->choices; i++) {
        const struct gang_part *layer = &parts->layer[out->recompute[i]][task->shape.experts > 0];
        double stays = out->offload[i] & GANG_OFFLOAD_ACTIVATIONS ? gang_smaller(flight, gang_passes_here) : flight;
        double states = ends->state + here * ends->optimizer + stays * ends->activation;
        double each = layer->state + here * layer->optimizer + stays * layer->activation;
        double buffers = l->zero < 3 ? parts->buffers[out->recompute[i]]
                                     : gang_buffer_bytes(task, l, parts->tp, parts->micro_batch, out->recompute[i], layer->parameters);
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
static void open_share(const struct gang_layout *l, int stage, int offload, bool any, struct share *out) {
    out->choices = !any ? 1 : offload & GANG_OFFLOAD_ACTIVATIONS ? CHOICES : GANG_RECOMPUTES;
    out->recompute[0] = (enum gang_recompute)gang_of_stage(&l->recompute, stage);
    out->offload[0] = gang_of_stage(&l->offload, stage);
    for (int i = 0; i < out->choices && any; i++) {
        out->recompute[i] = (enum gang_recompute)(i % GANG_RECOMPUTES);
        out->offload[i] = i < GANG_RECOMPUTES ? GANG_OFFLOAD_NONE : GANG_OFFLOAD_ACTIVATIONS;
    }
}

int gang_share_layers(const struct gang_task *task, const struct gang_class *class, const struct gang_parts *parts, int offload, bool any,
                      struct gang_layout *l) {
    static const struct gang_part none = {0};
    struct share shares[GANG_MAX_STAGES];
    for (int i = 0; i < l->pp; i++) {
        const struct gang_parts *of = gang_parts_at(&parts[class->groups[i]], gang_tp_of(l, i));
        const struct gang_part *ends = l->pp == 1 ? &of->both : i == 0 ? &of->first : i == l->pp - 1 ? &of->last : &none;
        double flight = gang_in_flight(l, (double)class->micro_batches, l->pp - 1 - i);
        open_share(l, i, offload, any, &shares[i]);
        fill_share(task, l, of, ends, flight, offload, &shares[i]);
    }
    if (!hand_out(task->shape.layers, l->pp, shares)) return -1;
    int full = 0;
    for (int i = 0; i < l->pp; i++) {
        l->layers[i] = (uint16_t)shares[i].layers;
        full += shares[i].layers >= shares[i].most[0];
    }
    l->layer_count = l->pp;
    return full;
}

static bool alike(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_class *class) {
    for (int s = 1; s < l->pp && !l->width_count; s++)
        if (pool->groups[class->groups[s]]->kind != pool->groups[class->groups[0]]->kind) return false;
    return !l->width_count;
}

void gang_search_layers(const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *layout, struct gang_arena *arena) {
    struct gang_layout even = *layout, uneven;
    struct gang_placement placement;
    struct gang_prices prices;
    if (layout->vpp > 1 || gang_layout_place(task, pool, &even, arena, &placement) || alike(pool, &even, &placement.classes[0])) return;
    gang_prices_fill(task, pool, &even, arena, &prices);
    uneven = even;
    if (gang_share_layers(task, &placement.classes[0], gang_parts_new(task, &even, &prices, 0, arena), GANG_OFFLOAD_NONE, false, &uneven) < 0) return;
    for (int i = 0; i < uneven.pp; i++)
        if (!uneven.layers[i]) return;
    memcpy(layout->layers, uneven.layers, (size_t)uneven.pp * sizeof *uneven.layers);
    layout->layer_count = uneven.pp;
}
