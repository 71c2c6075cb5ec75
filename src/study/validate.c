// How far off the predictions are: every published run simulated, and the errors summed up beside a null model.
#include "study/study.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

// Sources state what PyTorch's allocator has reserved; of that 15 % lies between what is used (GMLake, arXiv:2401.08156, abstract). Weights
// and the optimizer's state are laid down once and stay: holes are among what comes and goes. The same run on 8 and on 128 devices, which
// differs by its sharded state alone, shows as much (titan-001 to 006).
static const double reserved_unused = 0.15;

static double reserved_bytes(const struct gang_memory_use *use) {
    double stays = use->weights + use->optimizer;
    return stays + (use->total - stays) / (1 - reserved_unused);
}

static void predict(struct gang_case *c) {
    struct gang_arena arena;
    struct gang_pool pool;
    struct gang_answer answer;
    if (c->why_not) return;
    gang_arena_init(&arena);
    int64_t per_node = c->kind->fast_domain < c->devices ? c->kind->fast_domain : c->devices;
    while (c->devices % per_node) per_node--;
    gang_pool_uniform(c->kind, c->devices, per_node, &arena, &pool);
    enum gang_status status = gang_evaluate(&c->task, &pool, &c->layout, GANG_EVALUATE_ANY_MEMORY, &arena, &answer);
    if (!status) {
        c->predicted = answer.summary.step_seconds;
        c->peak_bytes = reserved_bytes(&answer.memory[answer.tightest_stage]);
    }
    gang_arena_release(&arena);
}

double gang_kendall(int count, const double *a, const double *b) {
    double agree = 0, tied_a = 0, tied_b = 0, pairs = 0;
    for (int i = 0; i < count; i++)
        for (int j = i + 1; j < count; j++) {
            double x = a[i] - a[j], y = b[i] - b[j];
            pairs++;
            tied_a += x == 0;
            tied_b += y == 0;
            agree += x * y > 0 ? 1 : x * y < 0 ? -1 : 0;
        }
    double base = sqrt((pairs - tied_a) * (pairs - tied_b));
    return base > 0 ? agree / base : NAN;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static bool usable(const struct gang_case *c) { return !c->why_not; }
enum likeness { ALL, SAME_EXPERTS, SAME_DEVICE, SAME_TYPE, SAME_SOURCE }; // from SAME_DEVICE on each with those before it

static bool alike(const struct gang_case *a, const struct gang_case *b, enum likeness likeness) {
    if (likeness == SAME_EXPERTS) return !a->task.shape.experts == !b->task.shape.experts;
    return (likeness < SAME_DEVICE || !strcmp(a->device, b->device)) && (likeness < SAME_TYPE || !strcmp(a->dtype, b->dtype)) &&
           (likeness < SAME_SOURCE || !strcmp(a->source, b->source));
}

static double model_flops(const struct gang_case *c) {
    return 3 * gang_shape_flops(&c->task.shape, c->task.sequence_length) * (double)c->task.global_batch * (double)c->task.sequence_length;
}
static double mfu_of(const struct gang_case *c) { return model_flops(c) / (c->measured * (double)c->devices * c->kind->peak[c->task.math]); }

// The constant MFU that is best in hindsight for a device and type: the median of what was measured.
static double null_mfu(const struct gang_validation *v, const struct gang_case *like, double *scratch) {
    int n = 0;
    for (int i = 0; i < v->count; i++)
        if (usable(&v->cases[i]) && alike(&v->cases[i], like, SAME_TYPE)) scratch[n++] = mfu_of(&v->cases[i]);
    qsort(scratch, (size_t)n, sizeof *scratch, compare);
    return n ? (scratch[(n - 1) / 2] + scratch[n / 2]) / 2 : 1;
}

// Over the rows that are like `like`; rows that a calibration used are left out.
static void summarise(const struct gang_validation *v, const struct gang_case *like, enum likeness likeness, struct gang_arena *arena,
                      struct gang_error_summary *out) {
    double *errors = gang_arena_alloc(arena, (size_t)v->count * sizeof(double)),
           *scratch = gang_arena_alloc(arena, (size_t)v->count * sizeof(double));
    *out = (struct gang_error_summary){.device = likeness >= SAME_DEVICE ? like->device : "",
                                       .dtype = likeness >= SAME_TYPE ? like->dtype : "",
                                       .source = likeness >= SAME_SOURCE ? like->source : ""};
    if (likeness == SAME_EXPERTS) out->device = like->task.shape.experts ? "experts" : "dense";
    for (int i = 0; i < v->count; i++) {
        const struct gang_case *c = &v->cases[i];
        if (!usable(c) || c->calibrated_on || !alike(c, like, likeness)) continue;
        double null_seconds = model_flops(c) / (null_mfu(v, c, scratch) * (double)c->devices * c->kind->peak[c->task.math]);
        errors[out->rows++] = fabs(c->predicted / c->measured - 1);
        out->bias += c->predicted / c->measured - 1;
        out->null_mean += fabs(null_seconds / c->measured - 1);
    }
    if (!out->rows) return;
    qsort(errors, (size_t)out->rows, sizeof *errors, compare);
    for (int i = 0; i < out->rows; i++) out->mean += errors[i] / out->rows;
    out->bias /= out->rows;
    out->null_mean /= out->rows;
    out->median = (errors[(out->rows - 1) / 2] + errors[out->rows / 2]) / 2;
    out->p95 = errors[(int)ceil(0.95 * out->rows) - 1];
    out->largest = errors[out->rows - 1];
}

static void rank_groups(struct gang_validation *v, struct gang_arena *arena) {
    double *a = gang_arena_alloc(arena, (size_t)v->count * sizeof(double)), *b = gang_arena_alloc(arena, (size_t)v->count * sizeof(double)), sum = 0;
    bool *done = gang_arena_alloc(arena, (size_t)v->count);
    for (int i = 0; i < v->count; i++) {
        const struct gang_case *first = &v->cases[i];
        int n = 0;
        if (done[i] || !usable(first)) continue;
        for (int j = i; j < v->count; j++) {
            const struct gang_case *c = &v->cases[j];
            if (!usable(c) || c->devices != first->devices || strcmp(c->model, first->model) != 0 || strcmp(c->device, first->device) != 0) continue;
            // Rates, so that rows of unlike batches can be ranked.
            double tokens = (double)c->task.global_batch * (double)c->task.sequence_length;
            done[j] = true;
            a[n] = tokens / c->measured;
            b[n++] = tokens / c->predicted;
        }
        double tau = n > 1 ? gang_kendall(n, a, b) : NAN;
        if (isnan(tau)) continue;
        sum += tau;
        v->tau_groups++;
    }
    v->tau = v->tau_groups ? sum / v->tau_groups : NAN;
}

// One summary for every kind of likeness that the usable rows have, in the table's order.
static int summarise_each(const struct gang_validation *v, enum likeness likeness, struct gang_arena *arena, struct gang_error_summary *out) {
    int count = 0;
    for (int i = 0; i < v->count; i++) {
        bool first = usable(&v->cases[i]);
        for (int j = 0; j < i && first; j++) first = !usable(&v->cases[j]) || !alike(&v->cases[i], &v->cases[j], likeness);
        if (first) summarise(v, &v->cases[i], likeness, arena, &out[count++]);
    }
    return count;
}

enum gang_status gang_validate(const char *path, struct gang_arena *arena, struct gang_validation *out) {
    struct gang_list kinds;
    *out = (struct gang_validation){0};
    gang_kinds_builtin(arena, &kinds);
    enum gang_status status = gang_cases_read(path, &kinds, arena, &out->count, &out->cases);
    if (status) return status;
    for (int i = 0; i < out->count; i++) {
        predict(&out->cases[i]);
        if (!out->cases[i].why_not && !(out->cases[i].predicted > 0)) out->cases[i].why_not = gang_arena_strdup(arena, gang_error());
    }
    out->sets = gang_arena_alloc(arena, (size_t)out->count * sizeof *out->sets);
    out->kinds = gang_arena_alloc(arena, (size_t)(out->count + 2) * sizeof *out->kinds);
    out->set_count = summarise_each(out, SAME_SOURCE, arena, out->sets);
    out->kind_count = summarise_each(out, SAME_EXPERTS, arena, out->kinds);
    out->kind_count += summarise_each(out, SAME_DEVICE, arena, out->kinds + out->kind_count);
    summarise(out, NULL, ALL, arena, &out->blind);
    rank_groups(out, arena);
    for (int i = 0; i < out->count; i++) {
        const struct gang_case *c = &out->cases[i];
        if (!usable(c) || !(c->stated_peak_bytes > 0)) continue;
        out->memory_mean += fabs(c->peak_bytes / c->stated_peak_bytes - 1);
        out->memory_rows++;
    }
    if (out->memory_rows) out->memory_mean /= out->memory_rows;
    return GANG_OK;
}
