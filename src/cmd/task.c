#include "cmd/task.h"
#include "fleet/fleet.h"

// A job for training says more than one for planning may, and is recognised by that.
static enum gang_status read_job(const char *path, const char *cluster, struct gang_arena *arena, struct gang_task *task, struct gang_pool *pool) {
    struct gang_job job;
    struct gang_config config;
    if (gang_job_read(path, arena, &job)) return gang_task_read(path, cluster, arena, task, pool);
    if (!cluster && !*job.cluster) return gang_fail(GANG_ERR_INPUT, "%s: cluster: missing: name a cluster file, or give --cluster", path);
    enum gang_status status = gang_job_config(&job, &config);
    if (!status) gang_fleet_task(&job, &config, task);
    return status ? status : gang_pool_read(cluster ? cluster : job.cluster, arena, pool);
}

enum gang_status gang_task_open(const char *path, const char *cluster, struct gang_arena *arena, struct gang_task *task, struct gang_pool *pool,
                                struct gang_plan *plan) {
    *plan = (struct gang_plan){0};
    if (!gang_plan_is(path)) return read_job(path, cluster, arena, task, pool);
    enum gang_status status = gang_plan_read(path, arena, plan);
    if (!status) status = read_job(plan->job, cluster ? cluster : plan->cluster, arena, task, pool);
    return status ? status : gang_plan_check(plan, task, pool);
}
