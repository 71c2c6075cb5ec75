// plan: from what there is and what is to be trained to one program per rank. Model arithmetic, layouts, costs, memory,
// schedules, programs and their verifier.
//
// Units are SI (seconds, bytes, FLOP). Letters: M tokens of a micro-batch on one device, C hidden, F ffn, V vocabulary,
// t tensor-parallel width, d data-parallel width. Everything a function returns lives in the arena it was given; nothing
// here keeps state, so any thread may call with its own arguments.
#ifndef GANG_PLAN_H
#define GANG_PLAN_H

#include "model/model.h"
#include "pool/pool.h"

// ---- The model as arithmetic: plan/shape.c -------------------------------------------------------------------------

// A decoder by its sizes. Every matrix of a layer follows from these: see gang_shape_matrices.
struct gang_shape {
    int64_t layers, hidden, heads, kv_heads, qk_dim, v_dim; // qk_dim, v_dim: of one head
    int64_t ffn, vocab;
    bool gated;                                     // SwiGLU: two matrices in; otherwise one (GPT)
    bool tied;                                      // the head is the embedding
    bool biases;                                    // GPT: a vector beside every matrix and norm
    int64_t positions;                              // learned position embeddings; 0: rotary
    int64_t experts, experts_per_token, expert_ffn; // experts 0: dense
    int64_t shared_ffn;                             // experts that every token takes, as one of this width
    int64_t dense_layers;                           // the first layers that are dense although others have experts
    int64_t q_rank, kv_rank, rope_dim;              // multi-head latent attention (DeepSeek); kv_rank 0: plain
};

enum gang_cut { GANG_CUT_OUT, GANG_CUT_IN, GANG_CUT_NONE }; // how tensor parallelism cuts a matrix

struct gang_matrix {
    const char *name;
    int64_t out, in; // [out, in]
    int64_t stored;  // copies in memory: experts
    int64_t active;  // copies that a token passes through
    enum gang_cut cut;
    bool expert; // shared out by expert parallelism
};
enum { GANG_MAX_MATRICES = 12 };

void gang_shape_from_config(const struct gang_config *config, struct gang_shape *out);
// A Hugging Face config.json or its directory: what gang_config_read takes, and for planning alone also the shapes of
// mixtral, qwen2_moe, qwen3_moe and deepseek_v3. Errors as gang_config_read.
GANG_CHECK_RESULT enum gang_status gang_shape_read(const char *path, struct gang_shape *out);

// The matrices of layer kind `moe` (false: dense); returns their number.
int gang_shape_matrices(const struct gang_shape *shape, bool moe, struct gang_matrix out[GANG_MAX_MATRICES]);
static inline bool gang_shape_is_moe(const struct gang_shape *shape, int64_t layer) { return shape->experts && layer >= shape->dense_layers; }
// Parameters: of one layer (norms included), of everything, and those a token passes through (embedding included).
int64_t gang_shape_layer_parameters(const struct gang_shape *shape, bool moe);
int64_t gang_shape_parameters(const struct gang_shape *shape);
int64_t gang_shape_active_parameters(const struct gang_shape *shape);
// FLOP of a forward pass for one token at sequence length T: 2 per weight of every matrix, 2 T heads (qk_dim + v_dim) for
// attention counted in full (PaLM's convention, arXiv:2204.02311 appendix B), the head once. A step needs three times this.
double gang_shape_layer_flops(const struct gang_shape *shape, bool moe, int64_t T);
double gang_shape_flops(const struct gang_shape *shape, int64_t T);

// ---- What is to be done: plan/layout.c -----------------------------------------------------------------------------

struct gang_task {
    struct gang_shape shape;
    int64_t sequence_length, global_batch; // tokens, sequences
    enum gang_math math;                   // of the layers' products; attention and head stay in f16 where this is f8
    bool gathers_f32;                      // weights go to the other replicas as src/rank sends them, not as they are in use
};

// job.yaml as the planner reads it: model, cluster, sequence_length, global_batch_tokens, compute. Paths are relative to the
// file. `cluster` (may be NULL) overrides the field of that name.
GANG_CHECK_RESULT enum gang_status gang_task_read(const char *path, const char *cluster, struct gang_arena *arena, struct gang_task *task,
                                                  struct gang_pool *pool);

// Made again on the way back: nothing; norms and activations; those and every second product (torchtitan's selective); all of a layer.
// Each costs more time than the one before it, and of many layers it keeps less.
enum gang_recompute { GANG_RECOMPUTE_NONE, GANG_RECOMPUTE_SELECTIVE, GANG_RECOMPUTE_ALTERNATE, GANG_RECOMPUTE_FULL, GANG_RECOMPUTES };
// What lies in the node's memory, as bits: the optimizer, which is updated there; what is kept from forward to backward.
enum gang_offload { GANG_OFFLOAD_NONE, GANG_OFFLOAD_OPTIMIZER, GANG_OFFLOAD_ACTIVATIONS, GANG_OFFLOAD_BOTH, GANG_OFFLOADS };
enum gang_attention_kernel { GANG_ATTENTION_FUSED, GANG_ATTENTION_FIRST, GANG_ATTENTION_UNFUSED }; // second generation, first, T x T in memory
enum gang_gradients { GANG_GRADIENTS_F32, GANG_GRADIENTS_BF16 };
enum gang_scaling { GANG_SCALING_TENSOR, GANG_SCALING_ROWS };  // what of an f8 operand shares one scale
enum gang_place_by { GANG_PLACE_STAGES, GANG_PLACE_REPLICAS }; // which index is outermost over the pool's devices
enum gang_schedule { GANG_SCHEDULE_AUTO, GANG_SCHEDULE_1F1B, GANG_SCHEDULE_INTERLEAVED, GANG_SCHEDULE_ZERO_BUBBLE, GANG_SCHEDULE_LIST };
extern const char *const gang_recompute_names[],
    *const gang_offload_names[], *const gang_place_names[], *const gang_schedule_names[], *const gang_gradient_names[],
                                                                                              *const gang_attention_names[],
                                                                                                  *const gang_scaling_names[]; // end with NULL

enum { GANG_MAX_STAGES = 512, GANG_MAX_CHUNKS = 1024, GANG_MAX_REPLICA_KINDS = 8, GANG_MAX_CLASSES = 2 * GANG_MAX_REPLICA_KINDS };

// A choice for each stage. count 0: at[0] is that of all.
struct gang_by_stage {
    int count;
    uint8_t at[GANG_MAX_STAGES];
};
static inline int gang_of_stage(const struct gang_by_stage *choices, int stage) { return choices->at[choices->count ? stage : 0]; }

// How the work is split. A chunk is a run of layers; stage s holds chunks s, s + pp, s + 2 pp, ... Replicas are of one kind where the same
// group lies under every stage of them; kinds count in the order of their first replicas.
struct gang_layout {
    int tp, pp, dp, vpp, cp, ep;       // ep shares a layer's experts out inside dp
    int width_count;                   // of `widths` given; 0: tp on all stages, otherwise tp is the first of them
    uint16_t widths[GANG_MAX_STAGES];  // tensor-parallel width of each stage
    int micro_batch;                   // sequences
    int size_count;                    // of `sizes` given; 0: micro_batch for all, otherwise micro_batch is the first of them
    int sizes[GANG_MAX_REPLICA_KINDS]; // micro-batch of each kind of replicas
    int zero;                          // 0 nothing sharded, 1 optimizer, 2 and gradients, 3 and weights
    int sequence_parallel;             // norms and residual stream cut by tp too
    int tp_overlap;                    // tensor-parallel exchange in pieces behind the products
    int dp_overlap;                    // reduce-scatter behind the last backward, all-gather behind the first forward
    int fused;                         // 0: a framework that runs every element-wise operation by itself (eager PyTorch)
    int attention;                     // enum gang_attention_kernel
    int gradients;                     // enum gang_gradients: type they are summed and exchanged in
    int scaling;                       // enum gang_scaling: of f8 operands
    int place;                         // enum gang_place_by
    int schedule;                      // enum gang_schedule
    int layer_count;                   // of `layers` given; 0: even
    uint16_t layers[GANG_MAX_CHUNKS];  // of each chunk, in the model's order
    struct gang_by_stage recompute;    // enum gang_recompute
    struct gang_by_stage offload;      // enum gang_offload
};

static inline int gang_layout_size(const struct gang_layout *layout, int kind) {
    return layout->size_count ? layout->sizes[kind] : layout->micro_batch;
}

static inline int gang_tp_of(const struct gang_layout *layout, int stage) { return layout->width_count ? layout->widths[stage] : layout->tp; }
// Devices of a cell: what holds one stage of one replica.
static inline int64_t gang_cell_devices(const struct gang_layout *layout, int stage) { return (int64_t)gang_tp_of(layout, stage) * layout->cp; }
// Devices of the cells of stages [from, to) of one replica.
static inline int64_t gang_cells_devices(const struct gang_layout *layout, int from, int to) {
    int64_t sum = 0;
    if (!layout->width_count) return (to - from) * gang_cell_devices(layout, 0);
    for (int s = from; s < to; s++) sum += gang_cell_devices(layout, s);
    return sum;
}
// Where on the pool's line of devices a cell begins; the layout's dp is known.
int64_t gang_cell_at(const struct gang_layout *layout, int64_t replica, int stage);

// "tp=8,pp=16,dp=64,vpp=2,mb=1,...", tp=8/4 where stages have widths of their own, mb=4/2 where kinds of replicas have sizes of their own:
// fields that are not named keep their defaults (1; zero=1, sp=1 where tp > 1, dp_overlap=1). dp=0 or absent: what the pool leaves. Unknown fields,
// doubled ones and impossible values are ERR_INPUT.
GANG_CHECK_RESULT enum gang_status gang_layout_parse(const char *text, struct gang_layout *out);
char *gang_layout_print(const struct gang_layout *layout, struct gang_arena *arena); // parses back to the same
void gang_layout_init(struct gang_layout *layout);

// Replicas that look the same: of one kind, with the same number of micro-batches.
struct gang_class {
    int64_t replicas, micro_batches; // micro_batches: of one replica in a step
    int kind, micro_batch;           // micro_batch: sequences
    const int *groups;               // [pp] index of the pool's group under each stage
};

struct gang_placement {
    int kind_count, class_count;
    struct gang_class *classes;
    int64_t devices_used;
};

// Checks that the layout fits the task and the pool, fills in dp and layers where they are not given, places the cells on the
// pool in its order, and shares the batch out by the replicas' speed, exactly, each share whole micro-batches. Errors say what does not
// divide and the nearest thing that does.
GANG_CHECK_RESULT enum gang_status gang_layout_place(const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *layout,
                                                     struct gang_arena *arena, struct gang_placement *out);
// The prices of the pool's groups at each of the layout's micro-batch sizes: a row of them for each width.
struct gang_price;
struct gang_prices {
    int rows, groups;
    const struct gang_price *at[GANG_MAX_REPLICA_KINDS]; // [rows, groups] each; for size_count 0 only the first
};
void gang_prices_fill(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout, struct gang_arena *arena,
                      struct gang_prices *out);
const struct gang_price *gang_prices_of(const struct gang_prices *prices, const struct gang_layout *layout, const struct gang_class *class,
                                        int stage);
// The steps of gang_layout_place, for whoever looks at many layouts of the same widths, stages, replicas and place: where these lie, which
// nothing else of the layout changes; its layers and what is chosen for each stage, settled; and the batch shared out by what a micro-batch
// takes each kind of replicas, which makes classes of what gang_layout_locate left.
GANG_CHECK_RESULT enum gang_status gang_layout_locate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                                                      struct gang_arena *arena, struct gang_placement *out);
GANG_CHECK_RESULT enum gang_status gang_layout_settle(const struct gang_task *task, struct gang_layout *layout);
GANG_CHECK_RESULT enum gang_status gang_layout_share(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                                                     const double seconds[GANG_MAX_REPLICA_KINDS], struct gang_arena *arena,
                                                     struct gang_placement *out);
// Whether the replicas of every stage share a site.
bool gang_layout_is_near(const struct gang_pool *pool, const struct gang_layout *layout, const struct gang_placement *placement);

// ---- Costs: plan/cost.c --------------------------------------------------------------------------------------------

// Seconds by what they are spent on.
struct gang_time {
    double matmul, attention, vector; // products; attention; norms, activations and other work at memory speed
    double tensor, expert, context;   // exposed exchange of tensor, expert and context parallelism
    double gather;                    // exposed gathering of sharded weights (ZeRO-3)
};
double gang_time_sum(const struct gang_time *time);

// What one chunk costs one cell for one micro-batch, and what it holds. Bytes are of one device.
struct gang_chunk_cost {
    struct gang_time forward, input, weight; // backward's two halves; recomputation is in `input`
    double activation_bytes;                 // kept from forward to backward
    double parameters, expert_parameters;    // of one device, after tensor and expert parallelism; experts' are part of all
    double copied_parameters;                // beside those, a tied head's copy of the embedding: weights and gradients, no optimizer
    double parameter_bytes, gradient_bytes, optimizer_bytes;
    double host_bytes;   // of one device's state in its node's memory
    double copy_seconds; // of the activations to the node's memory, and as long back; 0: they stay
    int layers;
};

// Seconds that `bytes` (the whole buffer on each of n members) take as ring all-reduce, reduce-scatter, all-gather, all-to-all
// at `bandwidth` a member and `latency` a hop. Thakur, Rabenseifner, Gropp 2005 (doi 10.1177/1094342005051521).
double gang_cost_ring_all_reduce(int64_t n, double bytes, double bandwidth, double latency);
double gang_cost_ring_reduce_scatter(int64_t n, double bytes, double bandwidth, double latency); // and all-gather
double gang_cost_all_to_all(int64_t n, double bytes, double bandwidth, double latency);

// Seconds of y[M,N] = x[M,K] W[N,K] on a device: roofline with waves and tile edges.
double gang_matmul_seconds(const struct gang_kind *kind, enum gang_math math, double M, double N, double K);

// Seconds of the update of what has this state on the device, and this in its node's memory.
double gang_optimizer_seconds(const struct gang_task *task, const struct gang_layout *layout, const struct gang_group *group, double device_bytes,
                              double host_bytes);

// What one layer of each kind, by what is made again of it, and the two ends cost on devices of a group in cells of one tensor-parallel width,
// for micro-batches of so many sequences: all that chunks are made of. Depends on the layout's cp, ep and options, and on whether it shards
// gradients (zero=2 and 3); not on its tp, micro-batches, dp, place, pp, vpp, layers and recompute.
struct gang_price {
    const struct gang_group *group;
    int tp;
    struct gang_chunk_cost layer[GANG_RECOMPUTES][2], first, last; // layer[...][1]: with experts
};
void gang_price_fill(const struct gang_task *task, const struct gang_layout *layout, int tp, int micro_batch, const struct gang_group *group,
                     struct gang_price *out);
// Puts measured seconds in the place of the worked-out ones, interpolated between the sizes that were measured: plan/measured.c
void gang_price_measured(const struct gang_times *times, const struct gang_layout *layout, int micro_batch, struct gang_price *price);
// A chunk of `dense` and `moe` layers, with the embedding and the head as told; what sharding exchanges in every micro-batch included.
void gang_price_chunk(const struct gang_task *task, const struct gang_layout *layout, const struct gang_price *price, enum gang_recompute recompute,
                      int64_t dense, int64_t moe, bool first, bool last, struct gang_chunk_cost *out);
// Whether `stage` holds what the stage before it holds: as many layers of each kind in every chunk, as much made again and
// offloaded, on cells as wide, and neither end.
bool gang_stage_repeats(const struct gang_task *task, const struct gang_layout *layout, int stage);
// Whether a chunk, not its stage's first, costs what its stage's chunk before it costs.
bool gang_chunk_repeats(const struct gang_task *task, const struct gang_layout *layout, int chunk);
// Seconds of so many bytes between a device of the group and its node's memory: by its link, or its part of what that memory does.
double gang_copy_seconds(const struct gang_group *group, double bytes);
// Of a chunk's layers, those without experts.
int64_t gang_chunk_dense(const struct gang_task *task, const struct gang_layout *layout, int chunk);
// The layout's chunk of this number, with its stage's recompute and offload.
void gang_chunk_of(const struct gang_task *task, const struct gang_layout *layout, const struct gang_price *price, int chunk,
                   struct gang_chunk_cost *out);

// How an exchange inside a data-parallel group uses the network; for one chunk, all members together.
struct gang_exchange {
    double bytes;                      // buffer of one member's device
    double fast_seconds;               // least time by the fast network inside nodes, latency included
    double nic_bytes;                  // through one device's NIC, each direction
    double link_bytes[GANG_MAX_LINKS]; // over each of the pool's long links, a direction
    double latency;                    // seconds
};
// The ways of a stage's exchange between the replicas: what any buffer on them meets.
struct gang_ways {
    double members;   // devices
    double lanes;     // of a cell that have buffers of their own: its tp
    double bandwidth; // of the slowest member
    double latency;
    double nic_share; // of a buffer, through one device's NIC
    double delay;     // over the long links, one after another
    int links;        // [links] crossed
    int link[GANG_MAX_SITES * GANG_MAX_ROUTE];
};
void gang_ways_of(const struct gang_pool *pool, const struct gang_layout *layout, const struct gang_placement *placement, int stage,
                  struct gang_ways *out);
// The reduce-scatter (or all-reduce) of a chunk's gradients at the end of the step, and the all-gather of its parameters (none without
// sharding). With zero=2 gradients, with zero=3 weights too are exchanged layer by layer in every micro-batch, inside the passes.
void gang_chunk_exchange(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout, const struct gang_ways *ways,
                         double parameters, struct gang_exchange *reduce, struct gang_exchange *gather);
// Seconds by itself, where so many exchanges share the long links.
double gang_exchange_seconds(const struct gang_pool *pool, const struct gang_exchange *exchange, double sharers);

// Everything the schedule, the verifier and the simulator need to know about times and sizes.
struct gang_costs {
    int classes, chunks, stages;
    const struct gang_class *class;        // [classes] the placement's
    struct gang_chunk_cost *chunk;         // [classes, chunks]
    double *message_bytes;                 // [classes] between stages, of a whole cell, one micro-batch
    double copy_bytes;                     // of a cell's tied head, in f32: to the first stage as gradient, back as weights; 0: no copy
    struct gang_exchange *reduce, *gather; // [chunks]
    double *optimizer_seconds;             // [classes, stages]
    double *fixed_bytes;                   // [classes, stages] weights, gradients, optimizer, temporary: all but activations in flight
    double *device_bytes;                  // [classes, stages] what the device has
    double *host_limit;                    // [classes, stages] a device's part of its node's memory
    double *stays;                         // [classes, stages] the most of the activations that stays on the device; INFINITY: all
};
static inline const struct gang_chunk_cost *gang_costs_chunk(const struct gang_costs *costs, int class_index, int chunk) {
    return &costs->chunk[class_index * costs->chunks + chunk];
}
void gang_costs_fill(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                     const struct gang_placement *placement, struct gang_arena *arena, struct gang_costs *out);

// One way between the cells of two stages of a class: seconds of delay, bytes/s of a whole cell, of the slower one, whether it uses the NICs,
// and the route between their sites.
struct gang_hop {
    double delay, bandwidth;
    bool fast;
    const struct gang_route *route;
};
void gang_hop_between(const struct gang_pool *pool, const struct gang_layout *layout, const struct gang_placement *placement, int class_index,
                      int from_stage, int to_stage, struct gang_hop *out);

// Bytes of a message between stages, of a whole cell.
double gang_message_bytes(const struct gang_task *task, int micro_batch);
// Bytes of working space on a device: one layer's tensors at their widest, messages under way, two layers' weights where they are gathered.
double gang_buffer_bytes(const struct gang_task *task, const struct gang_layout *layout, int tp, int micro_batch, enum gang_recompute recompute,
                         double layer_parameters);
extern const double gang_passes_here;
// Activations of the passes under way on a device: bytes now, and the most there were on it and in its node's memory.
struct gang_held {
    double now, device, host;
};
// Bytes by kind on one device of (class, stage), and beside them in its node's memory.
struct gang_memory_use {
    double weights, gradients, optimizer, activations, buffers, total, limit;
    double host_optimizer, host_activations, host, host_limit;
};
void gang_memory_of(const struct gang_task *task, const struct gang_layout *layout, const struct gang_costs *costs, int class_index, int stage,
                    const struct gang_held *held, struct gang_memory_use *out);

// ---- Programs: plan/program.c, plan/verify.c -----------------------------------------------------------------------

enum gang_op {
    GANG_OP_FORWARD,
    GANG_OP_BACKWARD,        // both halves
    GANG_OP_BACKWARD_INPUT,  // the half the stage before waits for
    GANG_OP_BACKWARD_WEIGHT, // the half that only the optimizer waits for
    GANG_OP_SEND,            // of an activation (after a forward) or its gradient (after a backward)
    GANG_OP_RECEIVE,
    GANG_OP_GATHER, // all-gather of the chunk's weights, before its first forward
    GANG_OP_REDUCE, // reduce-scatter or all-reduce of the chunk's gradients, streamed out of its last backward
    GANG_OP_OPTIMIZER,
    GANG_OPS,
};

enum gang_operands { GANG_TAKES_NOTHING, GANG_TAKES_CHUNK, GANG_TAKES_MICRO, GANG_TAKES_PEER };
struct gang_op_info {
    const char *name;
    enum gang_operands takes; // each kind takes what those before it take
    bool compute;             // runs on the device's own lane
};
extern const struct gang_op_info gang_ops[GANG_OPS];

struct gang_instruction {
    uint8_t op;       // enum gang_op
    uint8_t gradient; // send and receive: 1 for a gradient, 0 for an activation
    int16_t chunk;
    int32_t micro, peer; // peer: rank
};

// A rank of a program is one cell: a stage of a replica; its tensor-parallel devices run in step.
struct gang_rank_program {
    int count;
    struct gang_instruction *items;
};

// rank = replica * stages + stage. A replica of the program stands for `copies` identical ones.
struct gang_program {
    int stages, chunks, replicas;
    int buffers;                     // messages that a rank may have under way to another of each direction before a send waits
    int64_t *copies;                 // [replicas]
    int64_t *micro_batches;          // [replicas]
    int64_t *sizes;                  // [replicas] sequences of a micro-batch
    struct gang_rank_program *ranks; // [replicas * stages]
};

// Orders the work of every rank by the layout's schedule (auto: the best of all that apply, by their time with these costs and
// the memory limits) and builds the program; `fold`: one replica per class, otherwise every replica by itself.
GANG_CHECK_RESULT enum gang_status gang_program_build(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                                                      const struct gang_placement *placement, const struct gang_costs *costs, bool fold,
                                                      struct gang_arena *arena, struct gang_program *out, enum gang_schedule *used);

// The same with every replica by itself. ERR_FORMAT where replicas that stand for several speak to others.
GANG_CHECK_RESULT enum gang_status gang_program_unfold(const struct gang_program *program, struct gang_arena *arena, struct gang_program *out);

// The class of each replica, which lie one class after another; [replicas].
void gang_program_classes(const struct gang_program *program, const struct gang_class *classes, int count, int *out);

void gang_program_print(const struct gang_program *program, struct gang_buffer *out);
// Reads the text form; `name` stands in messages, which carry the line, counted from `line`. Anything that is not a program is ERR_FORMAT.
GANG_CHECK_RESULT enum gang_status gang_program_parse(const char *name, int64_t line, const char *text, size_t bytes, struct gang_arena *arena,
                                                      struct gang_program *out);

// Seconds that a pass takes beyond its work because the copies that go on beside it take longer; `op`: one that computes a chunk.
double gang_copy_shown(const struct gang_chunk_cost *cost, enum gang_op op);
// What the activations take when a pass of a chunk begins, and when it is over: held from forward until the backward, or its weights'
// half, is through.
void gang_held_begin(struct gang_held *held, const struct gang_costs *costs, int class_index, int chunk, enum gang_op op);
void gang_held_end(struct gang_held *held, const struct gang_costs *costs, int class_index, int chunk, enum gang_op op);

// What the verifier finds out about a correct program.
struct gang_program_facts {
    int64_t instructions, messages;
    int buffers_needed;     // least `buffers` under which it runs through
    struct gang_held *held; // [replicas * stages] of one device; only with costs
};
// Proves: every send has its receive and the other way round; no deadlock under the program's buffers; every chunk and
// micro-batch forward once, then backward once (whole or in two halves); every chunk reduced once, with its last backward; the
// optimizer last. ERR_FORMAT names rank, instruction and what is wrong. `costs` may be NULL.
GANG_CHECK_RESULT enum gang_status gang_program_verify(const struct gang_program *program, const struct gang_costs *costs, struct gang_arena *arena,
                                                       struct gang_program_facts *out);

// ---- Schedules: plan/schedule.c ------------------------------------------------------------------------------------

// Stage times for ordering. `forward`, `input`, `weight` are [chunks]; delay[s] from stage s to the next (and back), the last
// entry from the last stage to the first; limit[s]: micro-batches x chunks whose activations stage s can hold. copy ([chunks], may be
// NULL): of the activations, beside each pass. gather, reduce ([chunks], may be NULL): of a chunk's weights before its first pass is over,
// and of its gradients from the start of its last one; a stage has one of them under way at a time.
struct gang_timing {
    int stages, chunks;
    int64_t micro_batches;
    const double *forward, *input, *weight, *delay;
    const int64_t *limit;
    const double *copy, *gather, *reduce;
};

struct gang_order {
    int count;                      // of each stage: 2 or 3 for each chunk and micro-batch
    struct gang_instruction *items; // compute instructions only
};

// One order for every stage ([stages]). ERR_UNSUPPORTED where the schedule does not apply (interleaved: micro-batches not a multiple of
// stages). Auto never returns an order slower than any of the others.
GANG_CHECK_RESULT enum gang_status gang_schedule_make(const struct gang_timing *timing, enum gang_schedule schedule, struct gang_arena *arena,
                                                      struct gang_order *out, enum gang_schedule *used);
// Seconds until every stage has finished these orders and its reduces; INFINITY if they deadlock. Messages cost `delay` only.
double gang_schedule_seconds(const struct gang_timing *timing, const struct gang_order *orders);
// The most chunk activations stage s holds at once.
int64_t gang_schedule_in_flight(const struct gang_order *order);

#endif
