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
};

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
// Mean seconds of a message from a stage to the next.
double gang_hop_seconds(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                        const struct gang_placement *placement);
// On a pool of one group: what the first stage, one between and the last do and hold, with so much made again.
void gang_sum_alike(const struct gang_task *task, const struct gang_layout *l, const struct gang_price *price, enum gang_recompute recompute,
                    struct gang_exchanges *x, struct gang_stage_sum sums[GANG_ENDS]);
// Seconds of the step by these sums and the layout's own choices of what each stage makes again; `delay` by gang_hop_seconds.
double gang_combine_alike(const struct gang_layout *l, const struct gang_stage_sum sums[][GANG_ENDS], const struct gang_class *class, double delay,
                          double *memory_used);
// Stage s lies where the stage before it lies, in every class, and holds the same.
bool gang_stages_alike(const struct gang_task *task, const struct gang_layout *l, const struct gang_placement *placement, int s);
// All of a stage's chunks, and its working space; `x` NULL: without the exchanges.
void gang_sum_stage(const struct gang_task *task, const struct gang_layout *l, const struct gang_class *class, const struct gang_price *price,
                    int stage, struct gang_exchanges *x, struct gang_stage_sum *sum);
// gang_estimate with the prices at hand.
double gang_estimate_priced(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                            const struct gang_placement *placement, const struct gang_prices *prices, double *memory_used);

#endif
