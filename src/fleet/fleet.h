// fleet: one run on many devices. The coordinator's side measures what there is, plans, starts a rank on every device, and
// follows the run to its end; the worker's side is `gangline rank`.
//
//     every device of the cluster   coordinator
//     joins, measures its layers -> plan by simulation
//     builds its rank            <- its program, its peers
//     steps                      -> loss, rate, who is slow
//     spans of a step            -> predicted against measured; better times for the next plan
//
// Stand-ins (rehearse) go the same way without job, measuring and saves.
#ifndef GANG_FLEET_H
#define GANG_FLEET_H

#include "control/control.h"
#include "rank/rank.h"
#include "study/study.h"

struct gang_fleet_options {
    const struct gang_job *job; // NULL: stand-ins do `task`
    const struct gang_task *task;
    const struct gang_pool *pool;     // the kinds of its groups of device cpu are measured in place
    const struct gang_layout *layout; // NULL: the best that is found
    const struct gang_plan *plan;     // NULL: programs are compiled here; otherwise its own are run, and `layout` is the plan's
    enum gang_launcher launcher;      // of sites that name none; of all for stand-ins
    bool resume;
    // Stand-ins: standard deviation of waits as a fraction; how much slower than in truth everything is; steps.
    double spread, slow;
    int64_t steps;
};

// What is going to run, and what it should cost.
struct gang_fleet_start {
    const struct gang_task *task;
    const struct gang_pool *pool;
    const struct gang_answer *answer; // unfolded, with spans; seconds of the stand-ins' truth
    const int *device;                // [ranks] of the pool's line of devices: the first of a rank's tp
    const int64_t *memory;            // [ranks] bytes that each rank said it will take on its first device
    bool measured;                    // the plan stands on times that were measured here
    bool emulated;                    // the long links are this machine's relay
    double seconds, near_seconds;     // of a step, predicted: as it is, and were all in one site
    double parts;                     // predicted tokens/s of every group by itself, summed; 0 where the pool has only one
};

struct gang_fleet_step {
    int64_t step, steps;
    double loss, gradient_norm;
    double seconds, tokens_per_second; // of this step
    double fraction;                   // predicted seconds / seconds
    int slowest;                       // rank that computed the largest part of the step
    double slowest_busy;               // that part
    double elapsed, left;
};

struct gang_fleet_events {
    void *context;
    void (*measuring)(void *context, int devices); // some device does: their times are not in the cache
    void (*started)(void *context, const struct gang_fleet_start *start);
    void (*stepped)(void *context, const struct gang_fleet_step *step);
    void (*saved)(void *context, const char *dir, int64_t step);
    void (*log)(void *context, int node, int worker, const char *line);
};

// Predicted and measured seconds of one kind of instruction on one rank in a step.
struct gang_fleet_kind {
    double predicted, measured;
};

struct gang_fleet_result {
    int64_t steps_done;
    bool stopped;
    double first_loss, last_loss;
    double step_seconds; // median, but for the first steps
    double predicted_seconds;
    double tokens_per_second;
    int ranks;
    struct gang_fleet_kind (*kinds)[GANG_OPS]; // [ranks]
    double *peak_bytes, *said_bytes;           // [ranks] resident memory, and what was said before; 0: not known
    struct gang_sim real;                      // the last step as the ranks saw it; spans and ranks only
    double link_bytes, link_seconds;           // through the relay of the busiest long link, and how long; 0 without one
    char saved[512];
};

// Runs it all; returns when every process is gone. *stop non-zero: ends after a step, with a save. The result lives in `arena`.
// The first error of any part is the one that is returned.
GANG_CHECK_RESULT enum gang_status gang_fleet_run(const struct gang_fleet_options *options, const struct gang_fleet_events *events,
                                                  const volatile int *stop, struct gang_arena *arena, struct gang_fleet_start *start,
                                                  struct gang_fleet_result *out);
// `gangline rank`: does what the coordinator says, until the end. `told`: the coordinator knows of the error, and says it.
GANG_CHECK_RESULT enum gang_status gang_fleet_work(bool *told);

// The group, and the node counted over the whole pool, of a device on the line.
const struct gang_group *gang_fleet_group(const struct gang_pool *pool, int64_t device, int *node);
// By what the ranks of a site start in a job with this launcher.
enum gang_launcher gang_fleet_launcher(const struct gang_site *site, enum gang_launcher of_job);
// The task of a training job.
void gang_fleet_task(const struct gang_job *job, const struct gang_config *config, struct gang_task *out);

#endif
