// estimate: the closed form of a layout's step, by which the search chooses whom to simulate. Internal to src/study.
#ifndef GANG_STUDY_ESTIMATE_H
#define GANG_STUDY_ESTIMATE_H

#include "study/study.h"

// Stages that look the same.
struct gang_stage_sum {
    int count;
    double forward, input, weight; // of one micro-batch
    double fixed, activation;      // bytes: states and working space; of one chunk in flight, the largest
    double reduce, gather;         // seconds of the exchanges, over the stage's chunks
    double layers, limit;          // limit: bytes of the device
    double host, host_limit;       // bytes of states in the node's memory, of one device, and its part of it
    bool away;                     // activations lie there too
    double update;                 // seconds of the optimizer on what lies there
    double layer_parameters;
    double seconds; // of one micro-batch, all that it does
};

// A layer or an end of the model on one device, with what sharding adds: seconds of a micro-batch, and bytes.
struct gang_part {
    double forward, input, weight;
    double state, optimizer, activation; // state: weights and gradients
    double parameters;
};

// What chunks are made of on a group's devices, at one micro-batch size, for a layout's widths, stages, replicas, place and sharding.
struct gang_parts {
    const struct gang_group *group;                                // NULL: not worked out yet
    int micro_batch;                                               // sequences
    struct gang_part layer[GANG_RECOMPUTES][2], first, last, both; // layer[...][1]: with experts; both: ends on one chunk
    double buffers[GANG_RECOMPUTES];                               // working space, but for weights that are gathered
};
void gang_parts_fill(const struct gang_task *task, const struct gang_layout *layout, const struct gang_price *price, int micro_batch,
                     struct gang_parts *out);

// What layouts of the same widths, stages, replicas and place have in common: where the kinds of replicas lie, and what follows from it.
// The sums are those of the layout that was looked at last. One thread at a time.
struct gang_ground {
    const struct gang_pool *pool;
    struct gang_placement kinds;
    bool near;              // the replicas of every stage share a site
    bool *moved;            // [pp] a stage lies elsewhere than the stage before it
    int *way;               // [pp] index of a stage's
    struct gang_ways *ways; // as they are asked for
    bool *known;            // [ways]
    int hop_count;
    struct gang_ground_hop *hops;      // of a replica of the first kind
    struct gang_ground_exchange *memo; // exchanges that were worked out
    int run_count;                     // stages that look the same, one after another
    int *runs;                         // [run_count + 1] first of each
    struct gang_stage_sum *sums;       // [kinds, pp] of each run
};
// `placement`: as gang_layout_locate leaves it, or all of gang_layout_place's.
void gang_ground_open(const struct gang_pool *pool, const struct gang_layout *layout, const struct gang_placement *placement,
                      struct gang_arena *arena, struct gang_ground *out);
// Whether stage s lies where the stage before it lies, and holds the same.
bool gang_ground_repeats(const struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *layout, int s);
// All of the layout's stages; parts [kinds][groups]. `seconds` [kinds]: of one micro-batch on the slowest stage.
void gang_ground_sum(struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *layout,
                     const struct gang_parts *const *parts, double *seconds);
// Seconds of the step by these sums, with the batch shared out.
double gang_ground_combine(const struct gang_ground *ground, const struct gang_task *task, const struct gang_layout *layout,
                           const struct gang_placement *placement, double *memory_used);
// All of a stage's chunks, and its working space; `ground` NULL: without the exchanges.
void gang_sum_stage(const struct gang_task *task, const struct gang_layout *layout, const struct gang_parts *parts, int stage,
                    struct gang_ground *ground, struct gang_stage_sum *sum);

// The ways of a stage, which those that lie alike share, and the seconds of a chunk's exchanges: of as many parameters on them the same.
struct gang_exchanges {
    const struct gang_pool *pool;
    const struct gang_placement *placement;
    int stage; // -1: none yet
    struct gang_ways ways;
    double parameters, reduce, gather;
};

// Alike stages but for the ends of the pipeline.
enum { GANG_END_FIRST, GANG_END_MIDDLE, GANG_END_LAST, GANG_ENDS };
static inline int gang_end_of(const struct gang_layout *l, int stage) {
    return stage == 0 ? GANG_END_FIRST : stage == l->pp - 1 ? GANG_END_LAST : GANG_END_MIDDLE;
}

// Chunks that a stage has in flight by the usual schedule; `from_end`: stages behind it.
double gang_in_flight(const struct gang_layout *l, double m, int from_end);
// The share of a device's memory, its margin left alone, with the stage `from_end` before the last.
double gang_share_used(const struct gang_layout *l, const struct gang_stage_sum *s, double m, int from_end);
// Seconds of a message from a stage to the next, on a pool of one group.
double gang_hop_seconds(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                        const struct gang_placement *placement);
// On a pool of one group: what the first stage, one between and the last do and hold, with so much made again.
void gang_sum_alike(const struct gang_task *task, const struct gang_layout *l, const struct gang_price *price, enum gang_recompute recompute,
                    struct gang_exchanges *x, struct gang_stage_sum sums[GANG_ENDS]);
// Seconds of the step by these sums and the layout's own choices of what each stage makes again; `delay` by gang_hop_seconds.
double gang_combine_alike(const struct gang_layout *l, const struct gang_stage_sum sums[][GANG_ENDS], const struct gang_class *class, double delay,
                          double *memory_used);

#endif
