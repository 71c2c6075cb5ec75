// train: a model on a device. The network's forward and backward pass, the optimizer's step, the training loop with its
// saves, and generation.
#ifndef GANG_TRAIN_H
#define GANG_TRAIN_H

#include "device/device.h"
#include "model/model.h"

#include <stdio.h>

// ---- The network on a device ---------------------------------------------------------------------------------------

// Where the memory goes, in bytes; known before anything is allocated.
struct gang_memory {
    size_t parameters, gradients, optimizer; // f32 masters, their gradients, AdamW's two moments
    size_t packed;                           // weights in the form the device multiplies fastest
    size_t activations;                      // kept from forward to backward; for inference the key/value cache
    size_t workspace;                        // everything shared between layers, logits, scratch
    size_t packing;                          // the device's own
    size_t total;
};

struct gang_range {
    int64_t offset, elements; // of a flat array
};

// A run of layers [from, to), at least one. The one with layer 0 holds the embedding, the one with the last layer the head.
struct gang_net_chunk {
    int from, to;
    int slots; // micro-batches whose activations it holds at once
};

// How the devices that share a model's slices exchange, in step. Between a layer's products lies the residual stream, on each device
// all of it or, with `rows`, the tp-th part of its rows that is the device's (sequence parallelism, arXiv:2205.05198); tp then
// divides M, messages are a tp-th too, and of the gradients of tensors that are not cut each device has its part of the sum.
struct gang_net_cell {
    void *context;
    bool rows;
    // Sums `data` of all devices in place: the same bits on all of them, or with `rows` on each only its own tp-th of them.
    void (*sum)(void *context, void *data, int64_t elements, enum gang_compute type);
    // With `rows`: each has its own tp-th of `data`; afterwards all have all.
    void (*gather)(void *context, void *data, int64_t elements, enum gang_compute type);
};

// What a network holds of its model, and for which passes. B sequences of T positions are a micro-batch, M = B*T rows.
struct gang_net_shape {
    int64_t batch, length;
    bool inference;                      // no gradients: B is 1, T is the longest context, weights are kept once
    int chunk_count;                     // 0: one chunk of all layers with one slot
    const struct gang_net_chunk *chunks; // ascending; together they hold what the model's part holds
    bool split;                          // backward comes in two halves
    bool recompute;                      // of each layer only its input is kept, and the layer is made again on the way back
    enum gang_compute message;           // what travels between stages; unlike devices of one pipeline share it
    const struct gang_net_cell *cell;    // of a model in slices; otherwise NULL
    int owned_count;
    const struct gang_range *owned; // whose AdamW moments live here, ascending, one behind another; NULL: all
};

struct gang_net;

// What gang_net_new will take. Opens nothing.
void gang_net_memory(const struct gang_model *model, struct gang_device *device, const struct gang_net_shape *shape, struct gang_memory *out);
// GANG_ERR_MEMORY with the figures and what to do (`remedy`) if this machine has less available now.
GANG_CHECK_RESULT enum gang_status gang_memory_check(const struct gang_memory *memory, const char *remedy);
// Allocates everything in one block; no later call allocates tensors. `model` (all of one or a part) and `device` must outlive
// the network; one network uses a device at a time.
GANG_CHECK_RESULT enum gang_status gang_net_new(const struct gang_model *model, struct gang_device *device, const struct gang_net_shape *shape,
                                                struct gang_net **out);
void gang_net_free(struct gang_net *net);

float *gang_net_parameters(struct gang_net *net); // flat, model->elements long; refresh after writing
float *gang_net_gradients(struct gang_net *net);
float *gang_net_moments(struct gang_net *net, int which); // 0: first, 1: second; of the owned ranges, one behind another
void gang_net_refresh(struct gang_net *net);
// Parameters of tensors [from, to) of the table are written. For inference in bf16, which has its own copy of every weight, this takes
// the place of gang_net_refresh: their masters are given back, so that a model needs no more than one of them at a time.
void gang_net_take(struct gang_net *net, int from, int to);

// ---- A stage: passes of its chunks, in any order that the data allow -----------------------------------------------

// Begins a step: the first gradients after it are set, later ones added.
void gang_net_begin(struct gang_net *net);

size_t gang_net_message_bytes(const struct gang_net *net); // [S,C] in the shape's `message`; S is M, or M / tp where rows are cut

// A chunk forward over the micro-batch in `slot`. tokens [B, T + 1]: read by the model's first chunk and its last, which
// copy what they need; else may be NULL. `in` is the message of the chunk before (NULL for the model's first), `out` the one
// to the next (NULL for the model's last); both are done with on return.
void gang_net_forward(struct gang_net *net, int chunk, int slot, const int32_t *tokens, const void *in, void *out);

// The halves of a split backward pass: first the gradients of the inputs, any time later those of the weights.
enum gang_half { GANG_HALF_BOTH, GANG_HALF_INPUT, GANG_HALF_WEIGHT };

// Called when the gradients of a bucket are complete, from inside the pass that completes them.
struct gang_net_hook {
    void *context;
    void (*ready)(void *context, int bucket);
};

// A chunk backward over the micro-batch in `slot`, which is free afterwards (after the weight half of a split one). `in` is
// the message of the chunk behind (NULL for the model's last), `out` the one to the chunk before (NULL for the model's
// first); the weight half takes neither. Gradients of scale * (sum of the losses) are set or added. The model's last chunk
// computes loss, head and all of its gradients here, in the input half: logits are not kept. Returns its sum of the losses, 0
// elsewhere. `hook` (or NULL) belongs to the chunk's last micro-batch of a step, and of its halves to the weight half.
double gang_net_backward(struct gang_net *net, int chunk, int slot, enum gang_half half, float scale, const void *in, void *out,
                         const struct gang_net_hook *hook);

// Buckets tile the flat array, in the order in which backward passes complete them, the chunks from the last to the first:
// final norm and head; the layers from the last to the first; the embedding. A tied head has no gradient of its own: on the
// stage of the embedding it adds to that, elsewhere the embedding's copy is what the head's bucket holds.
struct gang_net_bucket {
    int64_t offset, elements;
    int chunk;
    int layer; // -1: head or embedding
};
// Returns their number; writes them unless `out` is NULL.
int gang_net_buckets(const struct gang_model *model, const struct gang_net_shape *shape, struct gang_net_bucket *out);

double gang_net_sum_squares(struct gang_net *net, int64_t offset, int64_t elements); // of gradients

struct gang_update {
    double rate, beta1, beta2, epsilon, decay;
    double clip;  // largest gradient norm; 0: none
    int64_t step; // from 1
};
// AdamW on an owned range (0 where all is owned), clipped by `norm`, that of all gradients of the model. No decay on norms.
// What was written has to be refreshed.
void gang_net_adamw(struct gang_net *net, int range, const struct gang_update *update, double norm);
void gang_net_refresh_bucket(struct gang_net *net, int bucket);

// ---- The whole model on one device: one chunk, one slot ------------------------------------------------------------

// Logits [M,V] in f32 of tokens [B, T + 1] (the last of each row is not read).
void gang_net_logits(struct gang_net *net, const int32_t *tokens, float *logits);
// Forward and backward over one micro-batch, tokens [B, T + 1]: position t predicts token t + 1. Gradients of
// scale * (sum of the losses) are set, or added to unless `first`. Returns the sum of the M losses.
double gang_net_micro_batch(struct gang_net *net, const int32_t *tokens, float scale, bool first);
// The sum of the losses only.
double gang_net_loss(struct gang_net *net, const int32_t *tokens);
// Clips, applies AdamW, refreshes. Returns the gradient norm before clipping.
double gang_net_update(struct gang_net *net, const struct gang_update *update);

// Inference: feeds `count` tokens behind those fed before; returns the logits [V] after the last one. More than one token
// only into an empty cache. At most shape.length tokens in all.
const float *gang_net_feed(struct gang_net *net, const int32_t *tokens, int64_t count);

// ---- The job -------------------------------------------------------------------------------------------------------

struct gang_state; // of a save; below

struct gang_job {
    char *path; // of job.yaml
    char *model, *tokenizer, *output, *cache;
    struct gang_strings data;
    int64_t sequence_length, micro_batch, global_batch_tokens;
    int64_t steps, tokens;
    double learning_rate, min_learning_rate, weight_decay, beta1, beta2, epsilon, gradient_clip;
    int64_t warmup_steps, seed, threads, save_every, keep;
    int compute;            // enum gang_compute, settled when the job is read
    int weights;            // enum gang_weights
    char *cluster, *layout; // "": one device, this machine's processor; "auto": the best that is found
    int launcher;           // enum gang_launcher
    char *coordinator;      // "auto", or by which name nodes reach this one
};

enum gang_weights { GANG_WEIGHTS_AUTO, GANG_WEIGHTS_FRESH };

extern const struct gang_field gang_job_fields[];
extern const size_t gang_job_field_count;

// Reads and checks a job file. Paths in it are relative to the file. Afterwards steps, tokens and global_batch_tokens agree.
GANG_CHECK_RESULT enum gang_status gang_job_read(const char *path, struct gang_arena *arena, struct gang_job *out);

// Linear warm-up, then a cosine to min_learning_rate of the peak (Loshchilov and Hutter 2017). `step` counts from 1.
double gang_job_rate(const struct gang_job *job, int64_t step);
// The job's model, which must take samples of its length.
GANG_CHECK_RESULT enum gang_status gang_job_config(const struct gang_job *job, struct gang_config *out);
// The job's tokenizer, which must suit the model; then its data. `progress` as in struct gang_data_options.
GANG_CHECK_RESULT enum gang_status gang_job_tokenizer(const struct gang_job *job, const struct gang_config *config, struct gang_tokenizer **out);
GANG_CHECK_RESULT enum gang_status gang_job_data(const struct gang_job *job, const struct gang_config *config, const struct gang_tokenizer *tokenizer,
                                                 bool (*progress)(void *context, int64_t done, int64_t all), void *context, struct gang_data **out);
// The save to go on from, of the same model, NULL for a new run; an output directory is not silently used twice.
GANG_CHECK_RESULT enum gang_status gang_job_find_save(const struct gang_job *job, const struct gang_config *config, bool resume,
                                                      struct gang_arena *arena, char **dir);
// The state at the start: of a new run, or as saved in `dir`, which must be of a run that this one goes on as if it had never stopped.
GANG_CHECK_RESULT enum gang_status gang_job_state(const struct gang_job *job, const struct gang_data *data, const char *dir, struct gang_state *out);

// OUTPUT: made, locked against a second run, with a copy of the job, and metrics.jsonl that goes on behind step `step`.
struct gang_job_output {
    const struct gang_job *job;
    FILE *metrics; // NULL: not written any more
    int lock;      // -1: none
};
struct gang_run_step;
GANG_CHECK_RESULT enum gang_status gang_job_output_open(const struct gang_job *job, int64_t step, struct gang_job_output *out);
void gang_job_output_close(struct gang_job_output *output);
// A metrics file that cannot be written costs the metrics, not the run.
void gang_job_record(struct gang_job_output *output, const struct gang_run_step *step);

// VmRSS (now) or VmHWM (the most so far) of this process in bytes; and forgets the most so far.
double gang_resident_bytes(const char *which);
void gang_resident_reset(void);

// ---- The run -------------------------------------------------------------------------------------------------------

struct gang_run_start {
    const struct gang_job *job;
    const struct gang_model *model;
    const struct gang_device *device;
    struct gang_memory memory;
    double baseline_bytes; // resident before the network
    double peak_flops;     // of the device in the compute type, measured
    int64_t data_tokens;
    int64_t first_step; // steps done before (resumed)
    bool fresh;         // weights were initialised, not read
};

struct gang_run_step {
    int64_t step, steps;
    double loss, gradient_norm, rate;
    double seconds;           // of this step
    double tokens_per_second; // of this step
    double peak_fraction;     // 6 x parameters x tokens/s over the measured peak; 0: not known, as on a cluster
    double elapsed, left;     // seconds
    int64_t tokens;           // seen so far
};

struct gang_run_events {
    void *context;
    void (*tokenising)(void *context, int64_t done, int64_t all);
    void (*started)(void *context, const struct gang_run_start *start);
    void (*stepped)(void *context, const struct gang_run_step *step);
    void (*saved)(void *context, const char *dir, int64_t step);
};

struct gang_run_result {
    int64_t steps_done;
    bool stopped;                                    // ended early because *stop was set
    double first_loss, last_loss, tokens_per_second; // of this call; medians over steps for the rate
    double predicted_bytes, peak_bytes;              // resident memory: said before, measured by the kernel
    char saved[512];                                 // directory of the last save
};

// Runs the job until it is done or *stop becomes non-zero (checked between steps); saves in both cases. With `resume` goes
// on from the last save of the output directory; without it an output directory that holds a run is an error.
GANG_CHECK_RESULT enum gang_status gang_train_run(const struct gang_job *job, bool resume, const struct gang_run_events *events,
                                                  const volatile int *stop, struct gang_run_result *out);

// ---- Saves ---------------------------------------------------------------------------------------------------------

// A save is a Hugging Face directory (config.json, model.safetensors, tokenizer.json) plus optimizer.safetensors and
// state.json, under OUTPUT/step-NNNNNNNN; OUTPUT/latest points to the newest. It appears whole or not at all. A step is
// saved once: one that `latest` names already is made durable, not written again. Of older saves keep - 1 stay.
struct gang_state {
    int64_t step, tokens;
    // What must be the same for the run to go on as if it had not been interrupted.
    int64_t seed, sequence_length, global_batch_tokens, data_tokens, data_checksum;
    int64_t compute_bits; // 32 or 16
};

enum gang_save_part { GANG_SAVE_WEIGHTS, GANG_SAVE_FIRST_MOMENTS, GANG_SAVE_SECOND_MOMENTS, GANG_SAVE_PARTS };
extern const char *const gang_save_prefixes[GANG_SAVE_PARTS];
// `parts` are asked for one after another.
GANG_CHECK_RESULT enum gang_status gang_save_write(const char *output, const struct gang_state *state, const struct gang_model *model,
                                                   const struct gang_st_part parts[GANG_SAVE_PARTS], const char *tokenizer_path, int keep,
                                                   char *saved, size_t saved_bytes);
// The parts of a network that owns all of its model.
void gang_save_parts(struct gang_net *net, struct gang_st_part parts[GANG_SAVE_PARTS]);
// The state of a save's directory; then its tensors.
GANG_CHECK_RESULT enum gang_status gang_save_state(const char *dir, struct gang_state *out);
GANG_CHECK_RESULT enum gang_status gang_save_load(const char *dir, struct gang_net *net, const struct gang_model *model);
// The directory that holds the model: `path` itself, or path/latest if it is a run's output.
GANG_CHECK_RESULT enum gang_status gang_save_resolve(const char *path, struct gang_arena *arena, char **dir);

// ---- Generation ----------------------------------------------------------------------------------------------------

struct gang_sampling {
    double temperature; // 0: greedy
    double top_p;       // 1: all
    uint64_t seed;
};
// Chooses a token; `index` counts the tokens of this generation. `work` holds V entries.
struct gang_candidate {
    float weight;
    int32_t id;
};
int32_t gang_sample(const float *logits, int64_t vocab, const struct gang_sampling *sampling, uint64_t index, struct gang_candidate *work);

#endif
