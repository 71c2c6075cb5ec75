// sim: a program executed in virtual time, without devices.
//
// Deterministic to the bit: the same program, costs and pool give the same times. Nothing here keeps state between calls.
#ifndef GANG_SIM_H
#define GANG_SIM_H

#include "plan/plan.h"

// One thing a rank did, for traces and timelines. Exchanges carry the stage's first rank.
struct gang_span {
    int rank;
    uint8_t op; // enum gang_op
    int chunk, micro;
    double start, end; // seconds
};

// Seconds of one rank's step by what it spent them on; they add up to step_seconds.
struct gang_rank_time {
    struct gang_time compute;  // its own work, exposed exchanges inside layers included
    double optimizer;
    double pipeline;  // waiting for a message or a free buffer
    double gather, reduce; // waiting for the data-parallel exchange
    double end;       // idle behind its last instruction
    double peak_activation_bytes; // on one device
};

struct gang_sim {
    double step_seconds;
    int ranks;
    struct gang_rank_time *rank; // [ranks]
    int64_t *copies;             // [ranks] that each stands for
    double link_bytes[GANG_MAX_SITES];      // over each long link in a step, the busier direction
    double link_peak[GANG_MAX_SITES];       // bytes/s
    double sent_bytes, received_bytes;      // messages between stages, folded ranks counted once
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
};

// Runs a step. Messages and exchanges are flows that share NICs and long links max-min fair (Bertsekas and Gallager, Data
// Networks, 6.5.2), latency apart; a reduce streams out of the last backward pass, a gather into the first forward.
// ERR_FORMAT if the program comes to a stop, which a verified one does not.
GANG_CHECK_RESULT enum gang_status gang_sim_run(const struct gang_sim_input *input, struct gang_arena *arena, struct gang_sim *out);

// ---- What the figures mean -----------------------------------------------------------------------------------------

struct gang_summary {
    double step_seconds, tokens_per_second, tokens_per_second_per_device, mfu, bubble_fraction;
    // Seconds of the mean device by what is not hidden behind computing.
    double matmul, attention, vector, tensor, expert, context, gather, reduce, pipeline, optimizer;
    double long_link_bytes, long_link_peak_bps; // of the busiest long link
    double tokens_per_joule;                    // 0 where a kind's power is not known
    int64_t devices;
};
void gang_sim_summarise(const struct gang_sim_input *input, const struct gang_task *task, const struct gang_sim *sim, struct gang_summary *out);

#endif
