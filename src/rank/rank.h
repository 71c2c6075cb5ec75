// rank: one rank of a run. It interprets its program on a device, or on a stand-in for one, over the wire.
//
// With tensor parallelism the tp devices of a cell run the same program in step, each with its slice of the cell's part of the
// model. Stages may be of unlike widths, as long as one of two neighbours' divides the other. The devices of a run are counted rank
// after rank.
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
    const int *widths;         // [stages] devices of a cell
    int tp, tp_index;          // devices of this cell; which of them this one is
    bool sequence_parallel;    // each holds a part of the residual stream's rows; B * T is a multiple of every tp
    const uint16_t *layers;    // [chunks]
    int64_t length;            // T
    bool sharded;              // ZeRO 1: a member of the stage's replicas updates its part and gives it to the others
    bool recompute;            // of a layer only its input is kept
    enum gang_compute message; // element type between stages
    struct gang_wire *wire;
    struct gang_wire_link *const *links; // [devices] to the devices that gang_rank_talks_to says; otherwise NULL
    const int *sites;                    // [devices] of every device; NULL: all in one
    uint64_t seed;
    const struct gang_data *data; // the first and the last stage's; otherwise NULL
    const struct gang_config *config;
    struct gang_device *device;           // NULL: stand_in
    const struct gang_stand_in *stand_in; // NULL: device
};

struct gang_rank;

// The first device of a rank; of the number of ranks, the number of devices.
int gang_rank_device(const struct gang_program *program, const int *widths, int rank);
struct gang_rank_place {
    int rank, tp_index;
};
struct gang_rank_place gang_rank_place(const struct gang_program *program, const int *widths, int device);
// Whether a device needs a link to another: those of its cell; of the replicas of its stage those with its tp_index; of the stages of its
// replica those with which it shares rows of the residual stream; and the first of a cell the first of the others.
bool gang_rank_talks_to(const struct gang_program *program, const int *widths, int device, int other);

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
