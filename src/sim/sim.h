// sim: a program executed in virtual time, without devices.
//
// Deterministic to the bit: the same program, costs and pool give the same times. Nothing here keeps state between calls.
#ifndef GANG_SIM_H
#define GANG_SIM_H

#include "plan/plan.h"

// One thing a rank did, for traces and timelines. Exchanges carry the first rank of the stage that is traced; a send of chunk -1 is a tied head's
// weights or gradient.
struct gang_span {
    int rank;
    uint8_t op; // enum gang_op
    int chunk, micro;
    double start, end; // seconds
};

// Seconds of one rank's step by what it spent them on; they add up to step_seconds.
struct gang_rank_time {
    struct gang_time compute; // its own work, exposed exchanges inside layers included
    double optimizer;
    double copies;         // of activations to and from the node's memory, behind which no work goes on
    double pipeline;       // waiting for a message or a free buffer
    double gather, reduce; // waiting for the data-parallel exchange
    double end;            // idle behind its last instruction
    struct gang_held held; // on one device
};

struct gang_sim {
    double step_seconds;
    int ranks;
    struct gang_rank_time *rank;         // [ranks]
    int64_t *copies;                     // [ranks] that each stands for
    double link_bytes[GANG_MAX_LINKS];   // over each long link in a step, the busier direction
    double link_carried[GANG_MAX_LINKS]; // both directions
    double link_peak[GANG_MAX_LINKS];    // bytes/s
    double sent_bytes, received_bytes;   // messages between stages, folded ranks counted once
    int64_t events;
    size_t span_count;
    struct gang_span *spans; // in the order of their ends; only if asked for
};

struct gang_sim_input {
    const struct gang_pool *pool;
    const struct gang_layout *layout;
    const struct gang_placement *placement;
    const struct gang_costs *costs;
    const struct gang_program *program; // verified
    bool spans;
    const bool *traced; // [ranks] whose spans are kept; NULL: all
};

// Runs a step. Messages and exchanges are flows that share NICs and long links max-min fair (Bertsekas and Gallager, Data
// Networks, 6.5.2), latency apart; a reduce streams out of the last backward pass, a gather into the first forward.
// ERR_FORMAT if the program comes to a stop, which a verified one does not.
GANG_CHECK_RESULT enum gang_status gang_sim_run(const struct gang_sim_input *input, struct gang_arena *arena, struct gang_sim *out);

// Chrome's trace format, which Perfetto reads: one process a replica, one thread a stage, messages as asynchronous slices. Needs spans;
// `traced` as in the input of the run.
void gang_sim_trace(const struct gang_sim *sim, const struct gang_program *program, const bool *traced, struct gang_buffer *out);
// "0-7,64" as a set of ranks below `ranks`; GANG_ERR_INPUT for anything else.
GANG_CHECK_RESULT enum gang_status gang_ranks_parse(const char *text, int ranks, struct gang_arena *arena, bool **out);

// A step as it was predicted and the same step as it was, side by side.
void gang_sim_trace_pair(const struct gang_sim *predicted, const struct gang_sim *real, const struct gang_program *program, struct gang_buffer *out);

// ---- Months of it, with faults: sim/faults.c -----------------------------------------------------------------------

// Nodes that fail together, in `count` domains of `nodes`.
struct gang_fault_domains {
    int64_t count, nodes;
};

// A long link whose planes fail one by one: `every` and `length` are of one plane. speed[k]: of the run, of 1, with k planes lost
// ([planes + 1]); 0 pauses it. While several links are short of planes the slowest counts.
struct gang_fault_link {
    int64_t planes;
    double every, length;
    double *speed;
};

// A faults file, and below it what gang_faults_complete adds from a pool. Times in seconds; mean times 0: such faults do not happen, or as
// often as the pool says.
struct gang_faults {
    struct gang_place place;
    double length; // of the run
    int64_t trials, seed;
    double node_mtbf;                          // of one node
    double weibull_shape;                      // of the time between a node's failures; 1 is exponential, below 1 they come in bursts
    double offender_share, offender_factor;    // this part of the nodes fails this many times as often
    int64_t domain_nodes;                      // nodes that fail together; 0: as the pool says
    double domain_mtbf;                        // of one such domain
    double slow_mtbf, slow_speed, slow_detect; // of one node; speed of all while one is slow; until it is noticed and replaced
    double link_mtbf, link_outage;             // between two outages of a plane of whichever long link; 0: as the pool says
    double detect, restart;                    // until a failure is noticed; until the run computes again
    int64_t spare_nodes;
    double repair;              // of a node; without spares the run waits for it
    double checkpoint_interval; // 0: the best of a grid
    double checkpoint_cost;     // that the run stops for one
    int domain_count, link_count;
    struct gang_fault_domains *domains;
    struct gang_fault_link *links;
};

struct gang_fault_result {
    double interval;                                                 // that was used, or found best
    double availability;                                             // useful time / time, mean over trials
    double low, high;                                                // 5th and 95th percentile of the trials
    double failures, lost_seconds, down_seconds, checkpoint_seconds; // means over trials
    int64_t nodes;
};

GANG_CHECK_RESULT enum gang_status gang_faults_read(const char *path, struct gang_arena *arena, struct gang_faults *out);
// A run on `nodes` nodes. Deterministic for a seed.
void gang_faults_run(const struct gang_faults *faults, int64_t nodes, struct gang_fault_result *out);
// Expected time for `work` seconds of useful time with exponential failures, closed form: Daly 2006 (doi 10.1016/j.future.2004.11.016),
// equation 13. mtbf of the whole; `down` is detection and restart.
double gang_daly_seconds(double work, double interval, double cost, double down, double mtbf);

// ---- What the figures mean -----------------------------------------------------------------------------------------

struct gang_summary {
    double step_seconds, tokens_per_second, tokens_per_second_per_device, mfu, bubble_fraction;
    // Seconds of the mean device by what is not hidden behind computing.
    double matmul, attention, vector, tensor, expert, context, gather, reduce, copies, pipeline, optimizer;
    double long_link_bytes, long_link_peak_bps; // of the busiest long link
    double tokens_per_joule;                    // 0 where a kind's power is not known
    double price_of_step, tokens_per_price;     // devices and what links carry; 0 where a group's price is not stated
    int64_t devices;
};
void gang_sim_summarise(const struct gang_sim_input *input, const struct gang_task *task, const struct gang_sim *sim, struct gang_summary *out);

#endif
