// model: the transformer as data. What tensors a model has, how they are stored, what text becomes.
//
// Nothing here computes. A model is a table of tensors over one flat array of parameters; safetensors, tokenizer and token
// data sets bring the outside world in. Everything read from a file is checked before use.
#ifndef GANG_MODEL_H
#define GANG_MODEL_H

#include "base/base.h"

// ---- Configuration: config.json as Hugging Face writes it ----------------------------------------------------------

enum gang_rope_kind { GANG_ROPE_PLAIN, GANG_ROPE_LINEAR, GANG_ROPE_LLAMA3 };

struct gang_config {
    int vocab_size, hidden_size, intermediate_size;
    int layers, heads, kv_heads, head_dim;
    int max_positions;
    double norm_eps;
    double init_range; // standard deviation of fresh weights
    bool tied;         // the head is the embedding
    double rope_theta;
    enum gang_rope_kind rope_kind;
    double rope_factor, rope_low_freq, rope_high_freq; // linear uses the factor; llama3 all
    int rope_original_positions;
    int bos_token, eos_token; // -1: none
};

// `path` is a config.json or a directory that holds one. Wrong types, sizes out of range and fields that would change the
// result but are not supported are refused by name.
GANG_CHECK_RESULT enum gang_status gang_config_read(const char *path, struct gang_config *out);
// Writes DIR/config.json (LlamaForCausalLM) durably.
GANG_CHECK_RESULT enum gang_status gang_config_write(const struct gang_config *config, const char *dir);
// GANG_ERR_INPUT with the first field that differs, if the configuration of the save in `dir` is not the one of now.
GANG_CHECK_RESULT enum gang_status gang_config_check_same(const struct gang_config *saved, const struct gang_config *now, const char *dir);

// Rotations per position: inv_freq[i], i < head_dim / 2, after scaling.
// Linear: Chen et al. 2023 (position interpolation). Llama 3: by wavelength bands, as published with Llama 3.1.
void gang_rope_frequencies(const struct gang_config *config, double *inv_freq);

// ---- Tensors -------------------------------------------------------------------------------------------------------

enum gang_role {
    GANG_ROLE_EMBED,
    GANG_ROLE_NORM_ATTENTION,
    GANG_ROLE_Q,
    GANG_ROLE_K,
    GANG_ROLE_V,
    GANG_ROLE_O,
    GANG_ROLE_NORM_FFN,
    GANG_ROLE_GATE,
    GANG_ROLE_UP,
    GANG_ROLE_DOWN,
    GANG_ROLE_NORM_FINAL,
    GANG_ROLE_HEAD,
};

// Row-major [rows, cols] as Hugging Face stores it: a linear layer is [out, in], a norm is [1, cols] (1-D in the file).
struct gang_tensor {
    enum gang_role role;
    int layer; // -1 outside the layers
    int index; // in the table of the whole model: fresh weights hang on it
    int64_t rows, cols;
    int64_t whole_rows, whole_cols, row, col; // of a slice: it is [row, row + rows) x [col, col + cols) of the whole tensor
    int64_t offset;                           // in elements, from the start of the flat parameters
    char name[80];                            // as in model.safetensors
};

// A norm's scale: one vector, 1-D in files, and not subject to weight decay.
static inline bool gang_tensor_is_norm(const struct gang_tensor *tensor) {
    return tensor->role == GANG_ROLE_NORM_ATTENTION || tensor->role == GANG_ROLE_NORM_FFN || tensor->role == GANG_ROLE_NORM_FINAL;
}

// Tensor parallelism cuts it: a device holds a slice. All others every device of a cell holds alike.
static inline bool gang_tensor_is_slice(const struct gang_tensor *tensor) {
    return tensor->rows != tensor->whole_rows || tensor->cols != tensor->whole_cols;
}

// Q, K, V of a layer lie one behind another, so do gate and up: each group is one matrix [sum of rows, cols] to a kernel.
// Every other tensor starts at a multiple of 16 elements; the gaps hold zeros.
struct gang_model {
    struct gang_config config;
    int count;
    struct gang_tensor *tensors; // in the arena; in the order of `offset`
    int64_t elements;            // length of the flat array, gaps included
    int64_t parameters;          // true parameters
    int tp, tp_index;            // devices that share it, and which of them this is for; 1, 0: it is not cut
    bool whole;                  // holds every tensor of the configuration, uncut
};

void gang_model_init(struct gang_model *model, const struct gang_config *config, struct gang_arena *arena);

// What a stage of a pipeline holds of a model: layers[i] for each of config->layers; the embedding; the final norm and head.
// A tied head is the embedding: a part with `head` and without `embed` holds GANG_ROLE_EMBED too, a copy in the head's place.
//
// Of `tp` devices that share a part (0: one) each holds a slice, as Megatron cuts (arXiv:1909.08053): q, k, v by heads, gate and
// up by rows; o and down by the columns that these feed. Embedding, norms and head are whole on each. tp must divide heads,
// kv_heads and intermediate_size.
struct gang_model_part {
    const bool *layers;
    bool embed, head;
    int tp, tp_index;
};
// A part's table and flat array are as if its tensors were all; `config` stays that of the whole model.
void gang_model_init_part(struct gang_model *model, const struct gang_config *config, const struct gang_model_part *part, struct gang_arena *arena);

// The tensor of this role in this layer (-1 outside layers); NULL for one that the part does not hold. A tied model has no
// GANG_ROLE_HEAD.
const struct gang_tensor *gang_model_find(const struct gang_model *model, enum gang_role role, int layer);
// Fresh weights: norms 1, others normal(0, init_range); a pure function of (seed, tensor, element), in parts and slices too.
void gang_model_randomise(const struct gang_model *model, uint64_t seed, float *parameters);

// Parameters from DIR/model.safetensors or DIR/model.safetensors.index.json with its shards (f32, bf16, f16 → f32).
// Missing, doubled or ill-shaped tensors are refused by name; unknown ones too, except known buffers (rotary inv_freq) and
// the head of a tied model where it equals the embedding. Nothing is written to `parameters` unless all of it fits. For a part
// or slices the files hold, and are checked for, the whole model. `taken` (or NULL) is called when tensors [from, to) of the table,
// what is outside layers or one layer's, are there.
struct gang_load_hook {
    void (*taken)(void *context, int from, int to);
    void *context;
};
GANG_CHECK_RESULT enum gang_status gang_model_load(const struct gang_model *model, const char *dir, float *parameters,
                                                   const struct gang_load_hook *hook);
// True if DIR holds weights of any kind, so that nobody trains from nothing beside them: gang_model_load reads them or says why not.
bool gang_model_has_weights(const char *dir);

// ---- safetensors ---------------------------------------------------------------------------------------------------

enum gang_dtype { GANG_F32, GANG_BF16, GANG_F16 };
size_t gang_dtype_bytes(enum gang_dtype type);

enum { GANG_MAX_DIMS = 8 };

struct gang_st_entry {
    char *name;
    char *type_name; // as in the file: "F32", "I64", ...
    bool readable;   // one of enum gang_dtype; of other types only name, shape and place are known
    enum gang_dtype type;
    int dims;
    int64_t shape[GANG_MAX_DIMS];
    int64_t elements;
    const uint8_t *data; // inside the mapping
};

struct gang_safetensors {
    struct gang_map map;
    struct gang_arena arena;
    int count;
    struct gang_st_entry *entries; // sorted by name
};

// Maps and checks the whole header: length, types, shapes, offsets inside the file, no overlap, no gap, no doubled name.
GANG_CHECK_RESULT enum gang_status gang_safetensors_open(const char *path, struct gang_safetensors *out);
void gang_safetensors_close(struct gang_safetensors *st);
// NULL when there is none of this name.
const struct gang_st_entry *gang_safetensors_find(const struct gang_safetensors *st, const char *name);
// Elements [from, from + count) of a readable entry as f32, exactly (a NaN stays a NaN of the same sign and payload bits).
void gang_st_to_f32(const struct gang_st_entry *entry, int64_t from, int64_t count, float *out);

// Writes the model's tensors (no slices) as f32, each read from parameters + tensor.offset; durable. `prefix` is put before every name
// ("" for a model; "exp_avg." and the like for optimizer state, several arrays in one file).
struct gang_st_part {
    const char *prefix;
    const float *values; // flat array laid out like the model's parameters; NULL: `fetch` is asked for every tensor, in order
    // The values of tensors[index], until the next call.
    enum gang_status (*fetch)(void *context, int index, const float **values);
    void *context;
};
GANG_CHECK_RESULT enum gang_status gang_model_save(const struct gang_model *model, const struct gang_st_part *parts, int part_count,
                                                   const char *path);
// The inverse of gang_model_save: every array must be complete, and nothing else in the file, unless `model` is a part: that
// takes its tensors, or slices of them, out of a file that may hold more. `parts[i].values` is written to; after an error its content is undefined.
GANG_CHECK_RESULT enum gang_status gang_model_restore(const struct gang_model *model, const struct gang_st_part *parts, int part_count,
                                                      const char *path);

// ---- Tokenizer -----------------------------------------------------------------------------------------------------

struct gang_tokenizer;

// DIR/tokenizer.json (BPE kind); `path` may also name the file. With path == NULL: bytes, 256 ids.
GANG_CHECK_RESULT enum gang_status gang_tokenizer_open(const char *path, struct gang_tokenizer **out);
void gang_tokenizer_free(struct gang_tokenizer *tokenizer);
int gang_tokenizer_vocab(const struct gang_tokenizer *tokenizer);        // highest id + 1
uint64_t gang_tokenizer_hash(const struct gang_tokenizer *tokenizer);    // of everything that changes the ids
const char *gang_tokenizer_path(const struct gang_tokenizer *tokenizer); // the file it came from, NULL for bytes

struct gang_ids {
    int32_t *items; // heap; free with gang_ids_release
    size_t count, cap;
};
void gang_ids_release(struct gang_ids *ids);

// Appends the ids of `text` (less than 2 GiB). Any bytes are accepted: broken UTF-8 goes through the byte level unchanged.
// Added tokens that occur in the text become their id, special ones only if `specials`; nothing is put around the text.
// Thread-safe: a tokenizer is read-only after open.
GANG_CHECK_RESULT enum gang_status gang_encode(const struct gang_tokenizer *tokenizer, const char *text, size_t bytes, bool specials,
                                               struct gang_ids *out);
// Appends the bytes of the ids; ids beyond the vocabulary are GANG_ERR_INPUT, an id that no token has gives nothing. Added
// special tokens are left out unless `specials`. Single ids may be half a character.
GANG_CHECK_RESULT enum gang_status gang_decode(const struct gang_tokenizer *tokenizer, const int32_t *ids, size_t count, bool specials,
                                               struct gang_buffer *out);

// ---- Token data sets -----------------------------------------------------------------------------------------------

// Text files tokenised once into memory-mapped shards in `cache_dir`. Sample i of a run is a pure function of (seed, i).
struct gang_data;

struct gang_data_options {
    const struct gang_strings *sources; // files, directories (all below but names with a leading dot, sorted), globs
    const char *cache_dir;
    int threads;
    int end_token; // put after each file that is not empty; -1: none. May lie beyond the tokenizer's vocabulary
    // Called now and then while tokenising, or while waiting for another process that does, from the calling thread only; may
    // be NULL. False ends with GANG_ERR_STOPPED.
    bool (*progress)(void *context, int64_t bytes_done, int64_t bytes_all);
    void *context;
};

GANG_CHECK_RESULT enum gang_status gang_data_open(const struct gang_data_options *options, const struct gang_tokenizer *tokenizer,
                                                  struct gang_data **out);
void gang_data_free(struct gang_data *data);
int64_t gang_data_tokens(const struct gang_data *data);
int64_t gang_data_checksum(const struct gang_data *data); // of all tokens, wherever the files lie; at least 0
// The `length` + 1 tokens of sample `index`: the windows of an epoch are visited once each in an order drawn from
// (seed, epoch). The data set must hold at least length + 1 tokens (ERR_INPUT otherwise, checked by gang_data_check).
GANG_CHECK_RESULT enum gang_status gang_data_check(const struct gang_data *data, int length);
void gang_data_sample(const struct gang_data *data, uint64_t seed, uint64_t index, int length, int32_t *out);

#endif
