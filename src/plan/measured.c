// Seconds that were measured, in the place of those that the roofline gives. They are of a whole layer: a device of a cell takes a tp-th,
// and the exchange that was worked out. So of embedding and head, if the rows are cut; without sequence parallelism each does all.
#include "plan/plan.h"

// Between two sizes straight; beyond the last in proportion.
static double at(const struct gang_times *t, const double *seconds, int64_t size) {
    int last = t->count - 1, i = 0;
    if (size >= t->size[last]) return seconds[last] * (double)size / (double)t->size[last];
    if (size <= t->size[0]) return seconds[0];
    while (t->size[i + 1] < size) i++;
    double part = (double)(size - t->size[i]) / (double)(t->size[i + 1] - t->size[i]);
    return seconds[i] + part * (seconds[i + 1] - seconds[i]);
}

static void set(struct gang_time *time, double seconds) { *time = (struct gang_time){.matmul = seconds}; }

static void set_slice(struct gang_time *time, double seconds, int tp) { *time = (struct gang_time){.matmul = seconds / tp, .tensor = time->tensor}; }

void gang_price_measured(const struct gang_times *t, const struct gang_layout *l, int b, struct gang_price *price) {
    int tp = price->tp, ends = l->sequence_parallel ? tp : 1;
    for (int recompute = 0; recompute < GANG_RECOMPUTES; recompute++) {
        struct gang_chunk_cost *layer = &price->layer[recompute][0];
        set_slice(&layer->forward, at(t, t->forward, b), tp);
        set_slice(&layer->input, at(t, t->input, b) + (recompute == GANG_RECOMPUTE_FULL ? at(t, t->forward, b) : 0), tp);
        set_slice(&layer->weight, at(t, t->weight, b), tp);
    }
    set(&price->first.forward, at(t, t->first_forward, b) / ends);
    set(&price->first.input, 0);
    set(&price->first.weight, at(t, t->first_backward, b) / ends);
    set(&price->last.forward, at(t, t->last_forward, b) / ends);
    set(&price->last.input, at(t, t->last_backward, b) / ends);
    set(&price->last.weight, 0);
}
