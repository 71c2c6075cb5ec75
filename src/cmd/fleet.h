// What `train` and `rehearse` show of a run on many devices.
#ifndef GANG_CMD_FLEET_H
#define GANG_CMD_FLEET_H

#include "cmd/show.h"
#include "fleet/fleet.h"

struct gang_fleet_screen {
    bool json, live, explain;
    const char *trace; // file for the real step beside the simulated one; NULL: none
    double last_line;
    struct gang_curve curve;
};

// Runs it and shows it: the plan, a line per step, and at the end predicted beside measured.
GANG_CHECK_RESULT enum gang_status gang_show_fleet(const struct gang_fleet_options *options, struct gang_fleet_screen *screen,
                                                   struct gang_fleet_result *result);

// The run of JOB or PLAN `path` as a batch job of Slurm's.
GANG_CHECK_RESULT enum gang_status gang_submit(const struct gang_job *job, const struct gang_pool *pool, const char *path, bool resume, bool json,
                                               struct gang_arena *arena);

#endif
