// The coordinator's parts to one another. Internal to src/fleet.
#ifndef GANG_FLEET_LEAD_H
#define GANG_FLEET_LEAD_H

#include "fleet/internal.h"

// A worker as the coordinator knows it. Worker i is device i on the pool's line.
struct gang_fleet_member {
    const struct gang_group *group;
    int node;      // over the whole pool
    int rank;      // -1: not used by the plan
    int tp_index;  // which of the rank's devices
    char *address; // of its wire
    char *about;   // what its times depend on
    double memory; // bytes that its host has available
    struct gang_times times;
    bool timed, gone;
    uint32_t heard;       // the furthest of ready, built and done that it has said
    double busy, seconds; // of its last step
};

// Why the run ends: see collect in lead.c.
struct gang_lead_failure {
    enum gang_status status; // GANG_OK: none yet
    bool own;                // not about a peer
    int64_t at_ns, until_ns;
    char text[GANG_ERROR_BYTES];
};

enum { GANG_LEAD_RATES = 1 << 16 };

struct gang_lead {
    const struct gang_fleet_options *options;
    const struct gang_fleet_events *events;
    const volatile int *stop;
    struct gang_arena *arena; // the result's
    struct gang_control *control;
    int count;
    struct gang_fleet_member *members;
    const char **nodes;
    int node_count;
    bool local; // all of it
    struct gang_task task;
    struct gang_pool *pool; // a copy, with measured kinds
    bool message_f32;
    struct gang_answer answer;
    int *device; // [ranks] the first of its devices
    int ranks;
    int *widths;     // [stages] devices of a rank
    int devices;     // of all ranks
    int64_t *memory; // [ranks]
    struct gang_fleet_relays relays;
    char *resume;
    int64_t first_step, steps;
    struct gang_fleet_result *result;
    double *rates; // [GANG_LEAD_RATES] seconds of the latest steps, step i at i % GANG_LEAD_RATES
    double elapsed;
    struct gang_lead_failure failure;
    bool measuring; // some device does, or did
    bool ending;    // a node is about to end
    char job_sum[17], model_sum[17];
    struct gang_state state; // at the start
    struct gang_job_output *output;
};

// The first device of a rank.
static inline struct gang_fleet_member *gang_lead_member(const struct gang_lead *lead, int rank) { return &lead->members[lead->device[rank]]; }

// On one machine.
static inline bool gang_lead_same_host(const struct gang_lead *lead, const struct gang_fleet_member *a, const struct gang_fleet_member *b) {
    const struct gang_site *sites = lead->pool->sites.items;
    return a->node == b->node || lead->local ||
           (gang_fleet_launcher(&sites[a->group->site], lead->options->launcher) == GANG_LAUNCH_LOCAL &&
            gang_fleet_launcher(&sites[b->group->site], lead->options->launcher) == GANG_LAUNCH_LOCAL);
}

// ---- arrange.c: from devices to assignments ------------------------------------------------------------------------

// Members, nodes and the pool's copy.
void gang_lead_line_up(struct gang_lead *lead);
// Whether the layout that was given, if any, is one that runs; before anything starts.
GANG_CHECK_RESULT enum gang_status gang_lead_check(const struct gang_lead *lead);
// The body of FLEET_SETUP for a worker.
json_t *gang_lead_setup(const struct gang_lead *lead, int worker);
// Measured kinds from the members' times; the layout; answer and devices.
GANG_CHECK_RESULT enum gang_status gang_lead_plan(struct gang_lead *lead);
// Predicted seconds of a step of the same layout, were all devices in one site; those of the answer where they are.
double gang_lead_near_seconds(const struct gang_lead *lead);
// The body of FLEET_ASSIGN for a worker that has a rank; opens routes through the relays.
GANG_CHECK_RESULT enum gang_status gang_lead_assignment(struct gang_lead *lead, int worker, json_t **out);

// ---- account.c: what the ranks told at the end ---------------------------------------------------------------------

GANG_CHECK_RESULT enum gang_status gang_lead_take_spans(struct gang_lead *lead, int rank, const json_t *body);
// Sums, medians, predictions; once all ranks have told theirs.
void gang_lead_account(struct gang_lead *lead);
// A member's times, corrected by what its rank took.
void gang_lead_learn(const struct gang_lead *lead, int rank, struct gang_times *out);

#endif
