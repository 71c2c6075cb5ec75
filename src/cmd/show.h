// show: how commands print an answer of the planner, and a loss; inside cmd only.
#ifndef GANG_CMD_SHOW_H
#define GANG_CMD_SHOW_H

#include "study/study.h"

// The loss over a run in so many bins.
enum { GANG_CURVE_BINS = 60 };
struct gang_curve {
    double losses[GANG_CURVE_BINS], counts[GANG_CURVE_BINS];
};
void gang_curve_add(struct gang_curve *curve, int64_t step, int64_t steps, double loss);
// As a line of bars: the picture says at once whether it learns. Nothing where the loss does not vary.
void gang_show_curve(const struct gang_curve *curve);

void gang_show_task(const struct gang_task *task, const struct gang_pool *pool);
void gang_show_answer(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *answer);
// The JSON object of an answer, on one line, without a newline; `faults` may be NULL.
void gang_show_json(const struct gang_answer *answer, const struct gang_fault_result *faults, struct gang_arena *arena);
// A picture of the step, one line a stage; only for few stages and with spans.
void gang_show_timeline(const struct gang_answer *answer);

#endif
