// What the ranks took, beside what was predicted.
#include "fleet/lead.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SPAN_FIELDS = 5 };

enum gang_status gang_lead_take_spans(struct gang_lead *l, int rank, const json_t *body) {
    struct gang_fleet_result *r = l->result;
    const json_t *rows = json_object_get(body, "spans");
    size_t count = json_array_size(rows);
    struct gang_span *spans = gang_arena_alloc(l->arena, (r->real.span_count + count) * sizeof *spans);
    if (r->real.span_count) memcpy(spans, r->real.spans, r->real.span_count * sizeof *spans);
    r->real.spans = spans;
    for (size_t i = 0; i < count; i++) {
        double v[SPAN_FIELDS];
        const json_t *row = json_array_get(rows, i);
        if (json_array_size(row) != SPAN_FIELDS) return gang_fail(GANG_ERR_FORMAT, "run: rank %d: a span that is none", rank);
        for (int k = 0; k < SPAN_FIELDS; k++) v[k] = json_number_value(json_array_get(row, (size_t)k));
        if (!(v[0] >= 0 && v[0] < GANG_OPS)) return gang_fail(GANG_ERR_FORMAT, "run: rank %d: instruction %g is none", rank, v[0]);
        const struct gang_span span = {.rank = rank, .op = (uint8_t)v[0], .chunk = (int)v[1], .micro = (int)v[2], .start = v[3], .end = v[4]};
        if (span.chunk >= 0) r->real.spans[r->real.span_count++] = span;
    }
    double means[GANG_OPS];
    enum gang_status status = gang_fleet_numbers(body, "means", GANG_OPS, means);
    for (int op = 0; op < GANG_OPS && !status; op++) r->kinds[rank][op].measured = means[op];
    r->peak_bytes[rank] = gang_fleet_number(body, "peak");
    return status;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void predict(struct gang_lead *l) {
    const struct gang_answer *a = &l->answer;
    double slow = l->options->job ? 1 : l->options->slow;
    for (size_t i = 0; i < a->sim.span_count; i++) {
        const struct gang_span *s = &a->sim.spans[i];
        if (gang_ops[s->op].compute) l->result->kinds[s->rank][s->op].predicted += slow * (s->end - s->start);
    }
    for (int r = 0; r < l->ranks; r++) {
        l->result->kinds[r][GANG_OP_RECEIVE].predicted = slow * a->sim.rank[r].pipeline;
        l->result->kinds[r][GANG_OP_REDUCE].predicted = slow * (a->sim.rank[r].reduce + a->sim.rank[r].end);
    }
    l->result->predicted_seconds = slow * a->sim.step_seconds;
}

void gang_lead_account(struct gang_lead *l) {
    struct gang_fleet_result *r = l->result;
    predict(l);
    r->real.ranks = l->ranks;
    r->real.step_seconds = 0;
    for (size_t i = 0; i < r->real.span_count; i++) r->real.step_seconds = fmax(r->real.step_seconds, r->real.spans[i].end);
    int64_t kept = r->steps_done < GANG_LEAD_RATES ? r->steps_done : GANG_LEAD_RATES, warm = kept > 2 * WARM_STEPS ? WARM_STEPS : 0,
            count = kept - warm;
    if (count < 1) return;
    qsort(l->rates + warm, (size_t)count, sizeof *l->rates, ascending);
    r->step_seconds = l->rates[warm + count / 2];
    r->tokens_per_second = (double)(l->task.global_batch * l->task.sequence_length) / r->step_seconds;
}

// By how much more than predicted it took; 1 where there is nothing to compare.
static double factor(double predicted, double measured) { return predicted > 0 && measured > 0 ? measured / predicted : 1; }

void gang_lead_learn(const struct gang_lead *l, int rank, struct gang_times *out) {
    const struct gang_fleet_kind *k = l->result->kinds[rank];
    double *const fields[] = {out->forward, out->first_forward, out->last_forward, out->input, out->weight, out->first_backward, out->last_backward};
    double forward = factor(k[GANG_OP_FORWARD].predicted, k[GANG_OP_FORWARD].measured), measured = 0, predicted = 0;
    for (int op = GANG_OP_BACKWARD; op <= GANG_OP_BACKWARD_WEIGHT; op++) measured += k[op].measured, predicted += k[op].predicted;
    *out = gang_lead_member(l, rank)->times;
    if (l->result->steps_done <= WARM_STEPS) return;
    for (int f = 0; f < 7; f++)
        for (int s = 0; s < out->count; s++) fields[f][s] *= f < 3 ? forward : factor(predicted, measured);
    out->optimizer *= factor(k[GANG_OP_OPTIMIZER].predicted, k[GANG_OP_OPTIMIZER].measured);
}
