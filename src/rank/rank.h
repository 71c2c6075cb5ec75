// rank: one rank of a run. It interprets its program on a device, or on a stand-in for one, over the wire.
//
// With tensor parallelism the tp devices of a cell run the same program in step, each with its slice of the cell's part of the
// model; a device is then number rank * tp + tp_index of the run.
//
// One thread computes. Beside it the wire moves messages that were posted ahead, and the lane (lane.c) exchanges gradients
// and weights with the other replicas of the stage. All calls of a rank come from one thread; they end with GANG_ERR_PEER
// and a text that names it when another rank is lost.
//
// Letters as in device.h: B samples of a micro-batch of this replica, T tokens of a sample, C hidden.
#ifndef GANG_RANK_H
#define GANG_RANK_H

#include "plan/plan.h"
#include "sim/sim.h"
#include "train/train.h"
#include "wire/wire.h"

// Stands in for a device: waits as long as it would work and touches no tensor. All arrays are [chunks].
struct gang_stand_in {
    const double *forward, *input, *weight; // seconds of a micro-batch
    const double *parameters;               // that are exchanged between replicas
    double optimizer;                       // seconds of a step
    double message_bytes;                   // of an activation
    double spread;                          // standard deviation of a wait, as a fraction of it
    double slow;                            // every wait times this
};

struct gang_rank_options {
    const struct gang_program *program; // verified; every replica by itself
    int rank;
    int tp, tp_index;          // devices of a cell; which of them this one is
    bool sequence_parallel;    // each holds a part of the residual stream's rows; B * T is a multiple of tp
    const uint16_t *layers;    // [chunks]
    int64_t length;            // T
    bool sharded;              // ZeRO 1: a member of the stage's replicas updates its part and gives it to the others
    bool recompute;            // of a layer only its input is kept
    enum gang_compute message; // element type between stages
    struct gang_wire *wire;
    struct gang_wire_link *const *links; // [ranks * tp] to the devices that gang_rank_talks_to says; otherwise NULL
    const int *sites;                    // [ranks * tp] of every device; NULL: all in one
    uint64_t seed;
    const struct gang_data *data; // the first and the last stage's; otherwise NULL
    const struct gang_config *config;
    struct gang_device *device;           // NULL: stand_in
    const struct gang_stand_in *stand_in; // NULL: device
};

struct gang_rank;

// Whether a device needs a link to another: those of its cell, and of the stages of its replica and the replicas of its stage those
// with its tp_index.
bool gang_rank_talks_to(const struct gang_program *program, int tp, int device, int other);

struct gang_rank_memory {
    struct gang_memory net;
    size_t messages; // buffers of messages posted ahead and under way
    size_t total;
};
// What gang_rank_new will take; opens nothing, needs no links.
void gang_rank_memory(const struct gang_rank_options *options, struct gang_rank_memory *out);

// Everything that `options` point to must outlive the rank. The links may still be connecting.
GANG_CHECK_RESULT enum gang_status gang_rank_new(const struct gang_rank_options *options, struct gang_rank **out);
// After the wire was closed: messages posted ahead lie in the rank's memory.
void gang_rank_free(struct gang_rank *rank);
// What other ranks wait for is called off; before the wire is closed.
void gang_rank_stop(struct gang_rank *rank);

struct gang_rank_report {
    double loss;          // mean over all tokens of the step, on all ranks the same bits; 0 on stand-ins
    double gradient_norm; // of all gradients, before clipping
    bool stop;            // some rank wants to stop; all ranks see it at the same step
    double seconds, busy; // of the step; of it computing
};
// One step of the program. `update` as for gang_net_update; update->step counts from 1 and says which samples are read.
GANG_CHECK_RESULT enum gang_status gang_rank_step(struct gang_rank *rank, const struct gang_update *update, bool want_stop,
                                                  struct gang_rank_report *out);
// What the last step did, in seconds since its start: instructions, a receive being the wait for its message; before the optimizer a
// reduce of chunk -1, the wait for all gradients and all ranks; behind them the lane's exchanges by bucket.
const struct gang_span *gang_rank_spans(const struct gang_rank *rank, size_t *count);

// ---- Weights -------------------------------------------------------------------------------------------------------

// Fresh weights by the seed, or those of a Hugging Face directory, or with `state` also the moments: of a save.
GANG_CHECK_RESULT enum gang_status gang_rank_weights(struct gang_rank *rank, const char *dir, bool state);
// All devices together: the first of rank 0 writes a save of the whole model (see gang_save_write); the others bring it their tensors.
// An error of the disk is that device's alone.
GANG_CHECK_RESULT enum gang_status gang_rank_save(struct gang_rank *rank, const char *output, const struct gang_state *state, const char *tokenizer,
                                                  int keep, char *saved, size_t saved_bytes);

#endif
