// task: what plan, simulate, rehearse and train are asked about; inside cmd only.
#ifndef GANG_CMD_TASK_H
#define GANG_CMD_TASK_H

#include "study/study.h"

// Reads a job, for planning or for training, or a plan file: then `plan` holds it, and it was made for what its job and the
// cluster say now. plan->path is NULL for a job. `cluster` NULL: the job's or the plan's.
GANG_CHECK_RESULT enum gang_status gang_task_open(const char *path, const char *cluster, struct gang_arena *arena, struct gang_task *task,
                                                  struct gang_pool *pool, struct gang_plan *plan);

#endif
