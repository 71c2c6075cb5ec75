// net: private to src/train. The network's parts, shared by net.c (memory and set-up), pass.c (forward and backward) and
// update.c. Letters as in device.h; O = H*D the width of attention's output, R rows of a chunk of logits, S rows of the residual
// stream that this device has. In a slice H, K and F are the slice's.
#ifndef GANG_TRAIN_NET_H
#define GANG_TRAIN_NET_H

#include "train/train.h"

struct layer {
    struct gang_linear *qkv, *o, *gate_up, *down;
    const struct gang_tensor *norm1, *q, *o_tensor, *norm2, *gate, *down_tensor;
    void *k_cache, *v_cache; // inference: [T, K*D]
};

// What a layer keeps of one micro-batch. A pointer leads to the layer's own place in the slot or, where nothing has to be
// kept, to one place that all layers share: the passes do not know which.
struct kept {
    // From forward to backward.
    float *x1, *x2;       // [S,C] the residual stream at the layer's input, and between its two parts
    float *rstd1, *rstd2; // [S]
    float *lse;           // [B,H,T]
    void *qkv;            // [M,W]
    void *attended;       // [M,O]
    void *gu;             // [M,2F] gate|up; on the way back its gradient
    // Within a pass; in split passes from the input half to the weight half.
    void *n1, *n2;        // [M,C] normalised inputs of q|k|v and gate|up; on the way back first the gradients there
    void *h;              // [M,F] input of down; on the way back first the gradient there
    void *dy_down, *dy_o; // [M,C] the stream's gradient at the outputs of down and o; net->dx itself where that serves
    void *dqkv;           // [M,W]
};

// A micro-batch in flight.
enum slot_state { SLOT_EMPTY, SLOT_FORWARD_DONE, SLOT_INPUT_DONE };
struct slot {
    struct kept *layers; // of the chunk
    int32_t *ids;        // [S] the model's first chunk
    int32_t *targets;    // [S] the model's last chunk
    float *x_final;      // [S,C] the model's last chunk: what the final norm reads
    enum slot_state state;
};

struct chunk {
    int from, to;     // layers
    bool first, last; // of the model: with embedding, with head
    int bucket;       // its first
    int slot_count;
    struct slot *slots;
};

// A linear layer's weight in the flat array.
struct weight {
    struct gang_linear *const *linear; // where the layer's is kept
    int64_t offset, elements;
    bool packed; // by the update, so that a refresh need not
    bool passes; // inference in bf16: the master is given back once it is packed
};

struct gang_net {
    const struct gang_model *model;
    struct gang_device *device;
    struct gang_net_shape shape; // chunks and owned ranges are copies in the arena
    struct gang_arena arena;
    void *block;
    size_t block_bytes;
    struct gang_memory memory; // of the block what is ever held at once

    float *parameters, *gradients, *moments[2];
    bool *set;            // by tensor of the table: has a gradient since gang_net_begin
    struct layer *layers; // by layer of the model; filled for those of the chunks
    struct gang_linear *head;
    const struct gang_tensor *embed, *norm_final, *head_tensor; // the head's is the embedding when tied
    struct weight *weights;                                     // ascending
    int weight_count;
    struct chunk *chunks;
    int bucket_count;
    struct gang_net_bucket *buckets;

    int64_t M, S, C, F, V, O, W, R;
    int64_t row;        // of M: the first of S
    struct kept shared; // places that layers share; NULL where each has its own
    void *n;            // [M,C] normalised input of the head; on the way back its gradient
    void *delta;        // [M,C]
    float *dx;          // [S,C] the residual stream's gradient
    void *dattended;    // [M,O]
    float *logits;      // [R,V]
    void *dlogits;      // [R,V]: logits itself in f32
    float *rstd_final;  // [S]
    float *losses;      // [S]
    float *cos, *sin;   // [T,D/2]
    struct gang_attention attention;
    int64_t past; // inference: positions in the cache
};

#endif
