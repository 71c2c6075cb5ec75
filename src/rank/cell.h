// cell: what a rank's program runs on. The network on a device, or a stand-in that waits. Internal to src/rank.
#ifndef GANG_RANK_CELL_H
#define GANG_RANK_CELL_H

#include "rank/rank.h"

struct gang_cell;

struct gang_cell_kind {
    void (*begin)(struct gang_cell *cell);
    void (*forward)(struct gang_cell *cell, int chunk, int slot, const int32_t *tokens, const void *in, void *out);
    double (*backward)(struct gang_cell *cell, int chunk, int slot, enum gang_half half, const void *in, void *out, const struct gang_net_hook *hook);
    double (*sum_squares)(struct gang_cell *cell, int64_t offset, int64_t elements);
    void (*update)(struct gang_cell *cell, const struct gang_update *update, double norm); // all that it owns
    void (*refresh)(struct gang_cell *cell, int bucket);
};

struct gang_cell {
    const struct gang_cell_kind *kind;
    const struct gang_rank_options *options;
    int stages; // chunk c of the program is this stage's c / stages
    float scale;
    size_t message_bytes;
    int bucket_count;
    struct gang_net_bucket *buckets; // as gang_net_buckets says; `chunk` counts within the stage
    int owned_count;
    struct gang_range *owned;
    float *parameters, *gradients; // flat; buckets lie in them
    struct gang_net *net;
    struct gang_model *model;
    uint64_t waits; // stand-in: drawn so far
};

#endif
