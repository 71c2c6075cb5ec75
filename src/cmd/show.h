// show: how plan and simulate print an answer; inside cmd only.
#ifndef GANG_CMD_SHOW_H
#define GANG_CMD_SHOW_H

#include "study/study.h"

void gang_show_task(const struct gang_task *task, const struct gang_pool *pool);
void gang_show_answer(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *answer);
// The JSON object of an answer, on one line, without a newline; `faults` may be NULL.
void gang_show_json(const struct gang_answer *answer, const struct gang_fault_result *faults, struct gang_arena *arena);
// A picture of the step, one line a stage; only for few stages and with spans.
void gang_show_timeline(const struct gang_answer *answer);

#endif
