// config.json as Hugging Face writes it.
//
// The file is a flat object of some fifty fields, of which a dozen shape the model, a few switch on things that Gangline
// does not compute, and the rest change nothing. So every field stands in one table below:
//   - FIELD_USED    is read by name further down;
//   - FIELD_FIXED   changes the result and is supported at one value only (null is the same as absent);
//   - FIELD_IGNORED changes nothing in a forward or backward pass: names, versions, generation settings.
// A field that the table does not know is refused: nobody can say that it changes nothing.
//
// Sizes are bounded so that no later product overflows: see the assertion above read_sizes.
#include "model/model.h"

#include <assert.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum {
    MAX_CONFIG_BYTES = 1 << 20, // id2label of a large classifier is the longest part seen
    MAX_VOCAB = 1 << 22,
    MAX_HIDDEN = 1 << 17,
    MAX_INTERMEDIATE = 1 << 20,
    MAX_LAYERS = 1024,
    MAX_HEADS = 4096,
    MAX_HEAD_DIM = 1024,
    MAX_POSITIONS = 1 << 30,
};

enum rule { FIELD_USED, FIELD_FIXED, FIELD_IGNORED };

struct known_field {
    const char *name;
    enum rule rule;
    double value; // FIELD_FIXED: the number or truth value that is supported
};

static const struct known_field known_fields[] = {
    {"architectures", FIELD_USED, 0},
    {"model_type", FIELD_USED, 0},
    {"vocab_size", FIELD_USED, 0},
    {"hidden_size", FIELD_USED, 0},
    {"intermediate_size", FIELD_USED, 0},
    {"num_hidden_layers", FIELD_USED, 0},
    {"num_attention_heads", FIELD_USED, 0},
    {"num_key_value_heads", FIELD_USED, 0},
    {"head_dim", FIELD_USED, 0},
    {"hidden_act", FIELD_USED, 0},
    {"max_position_embeddings", FIELD_USED, 0},
    {"rms_norm_eps", FIELD_USED, 0},
    {"initializer_range", FIELD_USED, 0},
    {"tie_word_embeddings", FIELD_USED, 0},
    {"rope_theta", FIELD_USED, 0},
    {"rope_scaling", FIELD_USED, 0},
    {"rope_parameters", FIELD_USED, 0},
    {"bos_token_id", FIELD_USED, 0},
    {"eos_token_id", FIELD_USED, 0},

    {"attention_bias", FIELD_FIXED, 0},
    {"mlp_bias", FIELD_FIXED, 0},
    {"attention_dropout", FIELD_FIXED, 0},
    {"hidden_dropout", FIELD_FIXED, 0},
    {"residual_dropout", FIELD_FIXED, 0},
    {"pretraining_tp", FIELD_FIXED, 1},
    {"partial_rotary_factor", FIELD_FIXED, 1},
    {"rope_interleaved", FIELD_FIXED, 0},
    {"sliding_window", FIELD_FIXED, NAN}, // no number is supported, null is
    {"use_sliding_window", FIELD_FIXED, 0},
    {"quantization_config", FIELD_FIXED, NAN},
    {"compression_config", FIELD_FIXED, NAN},
    {"auto_map", FIELD_FIXED, NAN}, // the model comes with code of its own
    {"is_encoder_decoder", FIELD_FIXED, 0},
    {"add_cross_attention", FIELD_FIXED, 0},
    {"cross_attention_hidden_size", FIELD_FIXED, NAN},
    {"tie_encoder_decoder", FIELD_FIXED, 0},

    {"_name_or_path", FIELD_IGNORED, 0},
    {"_attn_implementation", FIELD_IGNORED, 0},
    {"_attn_implementation_autoset", FIELD_IGNORED, 0},
    {"_flash_attn_2_enabled", FIELD_IGNORED, 0},
    {"torch_dtype", FIELD_IGNORED, 0},
    {"dtype", FIELD_IGNORED, 0},
    {"transformers_version", FIELD_IGNORED, 0},
    {"transformers.js_config", FIELD_IGNORED, 0},
    {"unsloth_fixed", FIELD_IGNORED, 0},
    {"unsloth_version", FIELD_IGNORED, 0},
    {"is_llama_config", FIELD_IGNORED, 0},
    {"use_cache", FIELD_IGNORED, 0},
    {"use_bfloat16", FIELD_IGNORED, 0},
    {"torchscript", FIELD_IGNORED, 0},
    {"return_dict", FIELD_IGNORED, 0},
    {"output_attentions", FIELD_IGNORED, 0},
    {"output_hidden_states", FIELD_IGNORED, 0},
    {"is_decoder", FIELD_IGNORED, 0},
    {"pruned_heads", FIELD_IGNORED, 0},
    {"chunk_size_feed_forward", FIELD_IGNORED, 0},
    {"tf_legacy_loss", FIELD_IGNORED, 0},
    {"finetuning_task", FIELD_IGNORED, 0},
    {"task_specific_params", FIELD_IGNORED, 0},
    {"problem_type", FIELD_IGNORED, 0},
    {"id2label", FIELD_IGNORED, 0},
    {"label2id", FIELD_IGNORED, 0},
    {"tokenizer_class", FIELD_IGNORED, 0},
    {"prefix", FIELD_IGNORED, 0},
    {"pad_token_id", FIELD_IGNORED, 0},
    {"sep_token_id", FIELD_IGNORED, 0},
    {"decoder_start_token_id", FIELD_IGNORED, 0},
    // Generation settings, which older versions kept here.
    {"max_length", FIELD_IGNORED, 0},
    {"min_length", FIELD_IGNORED, 0},
    {"do_sample", FIELD_IGNORED, 0},
    {"early_stopping", FIELD_IGNORED, 0},
    {"num_beams", FIELD_IGNORED, 0},
    {"num_beam_groups", FIELD_IGNORED, 0},
    {"diversity_penalty", FIELD_IGNORED, 0},
    {"temperature", FIELD_IGNORED, 0},
    {"top_k", FIELD_IGNORED, 0},
    {"top_p", FIELD_IGNORED, 0},
    {"typical_p", FIELD_IGNORED, 0},
    {"repetition_penalty", FIELD_IGNORED, 0},
    {"length_penalty", FIELD_IGNORED, 0},
    {"no_repeat_ngram_size", FIELD_IGNORED, 0},
    {"encoder_no_repeat_ngram_size", FIELD_IGNORED, 0},
    {"bad_words_ids", FIELD_IGNORED, 0},
    {"num_return_sequences", FIELD_IGNORED, 0},
    {"output_scores", FIELD_IGNORED, 0},
    {"return_dict_in_generate", FIELD_IGNORED, 0},
    {"forced_bos_token_id", FIELD_IGNORED, 0},
    {"forced_eos_token_id", FIELD_IGNORED, 0},
    {"remove_invalid_values", FIELD_IGNORED, 0},
    {"exponential_decay_length_penalty", FIELD_IGNORED, 0},
    {"suppress_tokens", FIELD_IGNORED, 0},
    {"begin_suppress_tokens", FIELD_IGNORED, 0},
};

// ---- Single fields -------------------------------------------------------------------------------------------------

struct reader {
    const char *path;
    const json_t *object;
};

// The field's value; JSON null is the same as no field.
static const json_t *get(const struct reader *in, const char *name) {
    const json_t *value = json_object_get(in->object, name);
    return json_is_null(value) ? NULL : value;
}

static enum gang_status fail_missing(const struct reader *in, const char *name) {
    return gang_fail(GANG_ERR_INPUT, "%s: %s: missing: this field is required", in->path, name);
}

static enum gang_status integer_of(const struct reader *in, const char *name, const json_t *value, int min, int max, int *out) {
    if (!json_is_integer(value)) return gang_fail(GANG_ERR_INPUT, "%s: %s: not a whole number: expected %d to %d", in->path, name, min, max);
    json_int_t number = json_integer_value(value);
    if (number < min || number > max)
        return gang_fail(GANG_ERR_INPUT, "%s: %s: %lld is out of range: expected %d to %d", in->path, name, (long long)number, min, max);
    *out = (int)number;
    return GANG_OK;
}

static enum gang_status read_integer(const struct reader *in, const char *name, int min, int max, int *out) {
    const json_t *value = get(in, name);
    return value ? integer_of(in, name, value, min, max, out) : fail_missing(in, name);
}

static enum gang_status read_integer_or(const struct reader *in, const char *name, int min, int max, int fallback, int *out) {
    *out = fallback;
    const json_t *value = get(in, name);
    return value ? integer_of(in, name, value, min, max, out) : GANG_OK;
}

static enum gang_status read_real(const struct reader *in, const char *name, double min, double max, double *out) {
    const json_t *value = get(in, name);
    if (!value) return fail_missing(in, name);
    if (!json_is_number(value)) return gang_fail(GANG_ERR_INPUT, "%s: %s: not a number: expected %g to %g", in->path, name, min, max);
    double number = json_number_value(value); // finite: jansson refuses overflow
    if (number < min || number > max)
        return gang_fail(GANG_ERR_INPUT, "%s: %s: %g is out of range: expected %g to %g", in->path, name, number, min, max);
    *out = number;
    return GANG_OK;
}

static enum gang_status read_real_or(const struct reader *in, const char *name, double min, double max, double fallback, double *out) {
    *out = fallback;
    return get(in, name) ? read_real(in, name, min, max, out) : GANG_OK;
}

static enum gang_status read_bool_or(const struct reader *in, const char *name, bool fallback, bool *out) {
    const json_t *value = get(in, name);
    *out = value ? json_is_true(value) : fallback;
    if (value && !json_is_boolean(value)) return gang_fail(GANG_ERR_INPUT, "%s: %s: not a truth value: expected true or false", in->path, name);
    return GANG_OK;
}

// ---- What kind of model it is --------------------------------------------------------------------------------------

// Mistral without a sliding window computes what Llama computes; only defaults differ.
enum family { FAMILY_NONE, FAMILY_LLAMA, FAMILY_MISTRAL };

static enum gang_status family_of(const struct reader *in, const char *name, const json_t *value, const char *llama, const char *mistral,
                                  enum family *out) {
    const char *text = json_string_value(value);
    if (!text) return gang_fail(GANG_ERR_INPUT, "%s: %s: not text: expected \"%s\"", in->path, name, llama);
    *out = !strcmp(text, llama) ? FAMILY_LLAMA : !strcmp(text, mistral) ? FAMILY_MISTRAL : FAMILY_NONE;
    if (*out == FAMILY_NONE)
        return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %s: '%s' is not supported: expected %s or %s", in->path, name, text, llama, mistral);
    return GANG_OK;
}

static enum gang_status read_family(const struct reader *in, enum family *out) {
    enum family by_type = FAMILY_NONE, by_class = FAMILY_NONE;
    enum gang_status status = GANG_OK;
    const json_t *type = get(in, "model_type"), *classes = get(in, "architectures");
    if (!type && !classes)
        return gang_fail(GANG_ERR_INPUT, "%s: neither model_type nor architectures says what model it is: expected \"model_type\": \"llama\"",
                         in->path);
    if (type) status = family_of(in, "model_type", type, "llama", "mistral", &by_type);
    if (!status && classes) {
        if (json_array_size(classes) != 1)
            return gang_fail(GANG_ERR_INPUT, "%s: architectures: expected a list of one name, [\"LlamaForCausalLM\"]", in->path);
        status = family_of(in, "architectures", json_array_get(classes, 0), "LlamaForCausalLM", "MistralForCausalLM", &by_class);
    }
    if (!status && type && classes && by_type != by_class)
        return gang_fail(GANG_ERR_INPUT, "%s: model_type and architectures contradict each other", in->path);
    *out = type ? by_type : by_class;
    return status;
}

static bool is_value(const json_t *value, double expected) {
    if (json_is_boolean(value)) return (double)json_is_true(value) == expected;
    return json_is_number(value) && json_number_value(value) == expected;
}

static enum gang_status check_field(const struct reader *in, const char *name) {
    const size_t count = sizeof known_fields / sizeof *known_fields;
    const struct known_field *field = known_fields;
    while (field < known_fields + count && strcmp(field->name, name) != 0) field++;
    if (field == known_fields + count)
        return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %s: unknown field: remove it if it does not change what the model computes", in->path, name);
    if (field->rule != FIELD_FIXED) return GANG_OK;
    const json_t *value = get(in, name);
    if (!value || is_value(value, field->value)) return GANG_OK;
    const char *expected = isnan(field->value) ? "null" : field->value == 1 ? "1" : json_is_boolean(value) ? "false" : "0";
    return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %s: not supported at this value: it changes the result, and only %s is supported", in->path, name,
                     expected);
}

static enum gang_status check_fields(const struct reader *in) {
    enum gang_status status = GANG_OK;
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)in->object, name, value) if (!status) status = check_field(in, name);
    return status;
}

static enum gang_status check_activation(const struct reader *in) {
    const json_t *value = get(in, "hidden_act");
    if (!value) return GANG_OK; // silu is the default
    const char *text = json_string_value(value);
    if (text && (!strcmp(text, "silu") || !strcmp(text, "swish"))) return GANG_OK;
    return gang_fail(GANG_ERR_UNSUPPORTED, "%s: hidden_act: '%s' is not supported: expected silu", in->path, text ? text : "not text");
}

// ---- Sizes ---------------------------------------------------------------------------------------------------------

// The largest model that passes: its parameters, as bytes of f32 several times over, are far from 2^63.
_Static_assert(2LL * MAX_VOCAB * MAX_HIDDEN + 1LL * MAX_LAYERS * MAX_HIDDEN * (4LL * MAX_HEADS * MAX_HEAD_DIM + 3LL * MAX_INTERMEDIATE + 2) <
                   1LL << 56,
               "products of sizes must not overflow int64_t");
_Static_assert((int64_t)3 * MAX_HEADS * MAX_HEAD_DIM < INT32_MAX, "rows of Q, K and V must fit an int");

static enum gang_status read_heads(const struct reader *in, enum family family, struct gang_config *out) {
    enum gang_status status = read_integer(in, "num_attention_heads", 1, MAX_HEADS, &out->heads);
    if (status) return status;
    // Hugging Face's own defaults: Mistral has 8, Llama as many as heads.
    int kv_default = family == FAMILY_MISTRAL ? 8 : out->heads;
    status = read_integer_or(in, "num_key_value_heads", 1, MAX_HEADS, kv_default, &out->kv_heads);
    if (status) return status;
    if (out->heads % out->kv_heads)
        return gang_fail(GANG_ERR_INPUT, "%s: num_attention_heads: %d is not a multiple of num_key_value_heads, %d", in->path, out->heads,
                         out->kv_heads);
    if (!get(in, "head_dim") && out->hidden_size % out->heads)
        return gang_fail(GANG_ERR_INPUT, "%s: hidden_size: %d is not a multiple of num_attention_heads, %d, and head_dim is not given", in->path,
                         out->hidden_size, out->heads);
    status = read_integer_or(in, "head_dim", 2, MAX_HEAD_DIM, out->hidden_size / out->heads, &out->head_dim);
    if (status) return status;
    if (out->head_dim < 2 || out->head_dim > MAX_HEAD_DIM || out->head_dim % 2)
        return gang_fail(GANG_ERR_INPUT, "%s: head_dim: %d (hidden_size / num_attention_heads if not given): expected an even number from 2 to %d",
                         in->path, out->head_dim, MAX_HEAD_DIM);
    return GANG_OK;
}

static enum gang_status read_sizes(const struct reader *in, enum family family, struct gang_config *out) {
    enum gang_status status = read_integer(in, "vocab_size", 1, MAX_VOCAB, &out->vocab_size);
    if (!status) status = read_integer(in, "hidden_size", 1, MAX_HIDDEN, &out->hidden_size);
    if (!status) status = read_integer(in, "intermediate_size", 1, MAX_INTERMEDIATE, &out->intermediate_size);
    if (!status) status = read_integer(in, "num_hidden_layers", 1, MAX_LAYERS, &out->layers);
    if (!status) status = read_heads(in, family, out);
    int positions = family == FAMILY_MISTRAL ? 131072 : 2048;
    if (!status) status = read_integer_or(in, "max_position_embeddings", 1, MAX_POSITIONS, positions, &out->max_positions);
    if (!status) status = read_real_or(in, "rms_norm_eps", 0, 1, 1e-6, &out->norm_eps);
    if (!status) status = read_real_or(in, "initializer_range", 0, 100, 0.02, &out->init_range);
    if (!status) status = read_bool_or(in, "tie_word_embeddings", false, &out->tied);
    return status;
}

// An id, a list of which the first counts, or null. -1 stands for none, as in the first Llama's files.
static enum gang_status read_token(const struct reader *in, const char *name, int vocab_size, int *out) {
    *out = -1;
    const json_t *value = get(in, name);
    if (json_is_array(value)) value = json_array_get(value, 0);
    return value ? integer_of(in, name, value, -1, vocab_size - 1, out) : GANG_OK;
}

// ---- Rotary position embedding -------------------------------------------------------------------------------------

static enum gang_status read_rope_kind(const struct reader *rope, enum gang_rope_kind *out) {
    const json_t *now = get(rope, "rope_type"), *old = get(rope, "type");
    if (now && old && !json_equal((json_t *)now, (json_t *)old))
        return gang_fail(GANG_ERR_INPUT, "%s: type and rope_type contradict each other", rope->path);
    const json_t *value = now ? now : old;
    if (!value) return fail_missing(rope, "rope_type");
    const char *text = json_string_value(value);
    static const char *const names[] = {[GANG_ROPE_PLAIN] = "default", [GANG_ROPE_LINEAR] = "linear", [GANG_ROPE_LLAMA3] = "llama3"};
    for (int i = 0; text && i < 3; i++) {
        if (strcmp(text, names[i]) != 0) continue;
        *out = (enum gang_rope_kind)i;
        return GANG_OK;
    }
    return gang_fail(GANG_ERR_UNSUPPORTED, "%s: rope_type: '%s' is not supported: expected default, linear or llama3", rope->path,
                     text ? text : "not text");
}

static enum gang_status check_rope_fields(const struct reader *rope) {
    static const char *const known[] = {"type",      "rope_type", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
                                        "rope_theta"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)rope->object, name, value) {
        size_t i = 0;
        while (i < sizeof known / sizeof *known && strcmp(known[i], name) != 0) i++;
        bool neutral = !strcmp(name, "partial_rotary_factor") && is_value(value, 1);
        if (i == sizeof known / sizeof *known && !neutral && !json_is_null(value))
            return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %s: not supported: remove it if it does not change what the model computes", rope->path,
                             name);
    }
    return GANG_OK;
}

static enum gang_status read_scaling(const struct reader *rope, struct gang_config *out) {
    enum gang_status status = check_rope_fields(rope);
    if (!status) status = read_rope_kind(rope, &out->rope_kind);
    if (!status && out->rope_kind != GANG_ROPE_PLAIN) status = read_real(rope, "factor", 1, 1e6, &out->rope_factor);
    if (status || out->rope_kind != GANG_ROPE_LLAMA3) return status;
    status = read_real(rope, "low_freq_factor", 1e-6, 1e6, &out->rope_low_freq);
    if (!status) status = read_real(rope, "high_freq_factor", 1e-6, 1e6, &out->rope_high_freq);
    if (!status) status = read_integer(rope, "original_max_position_embeddings", 1, MAX_POSITIONS, &out->rope_original_positions);
    if (!status && out->rope_low_freq >= out->rope_high_freq)
        return gang_fail(GANG_ERR_INPUT, "%s: high_freq_factor: %g is not above low_freq_factor, %g", rope->path, out->rope_high_freq,
                         out->rope_low_freq);
    return status;
}

// `rope_scaling` beside `rope_theta`, or since Transformers 5 both in `rope_parameters`.
static enum gang_status read_rope(const struct reader *in, struct gang_config *out) {
    const double min_theta = 1, max_theta = 1e15;
    enum gang_status status = read_real_or(in, "rope_theta", min_theta, max_theta, 10000, &out->rope_theta);
    if (status) return status;
    const json_t *scaling = get(in, "rope_scaling"), *parameters = get(in, "rope_parameters");
    if (scaling && parameters) return gang_fail(GANG_ERR_INPUT, "%s: rope_scaling and rope_parameters are both given: expected one", in->path);
    const char *name = scaling ? "rope_scaling" : "rope_parameters";
    if (parameters) scaling = parameters;
    if (!scaling) return GANG_OK;
    if (!json_is_object(scaling)) return gang_fail(GANG_ERR_INPUT, "%s: %s: expected an object or null", in->path, name);

    char path[512];
    snprintf(path, sizeof path, "%s: %s", in->path, name);
    struct reader rope = {.path = path, .object = scaling};
    double outer = out->rope_theta;
    status = read_real_or(&rope, "rope_theta", min_theta, max_theta, outer, &out->rope_theta);
    if (!status && get(in, "rope_theta") && out->rope_theta != outer)
        return gang_fail(GANG_ERR_INPUT, "%s: rope_theta: contradicts the one outside, %g and %g", path, out->rope_theta, outer);
    return status ? status : read_scaling(&rope, out);
}

void gang_rope_frequencies(const struct gang_config *config, double *inv_freq) {
    const double two_pi = 6.283185307179586;
    for (int i = 0; i < config->head_dim / 2; i++) {
        double frequency = pow(config->rope_theta, -2.0 * i / config->head_dim);
        if (config->rope_kind == GANG_ROPE_LINEAR) frequency /= config->rope_factor;
        if (config->rope_kind == GANG_ROPE_LLAMA3) {
            // Turns over the original context: many turns stay, few are slowed by the factor, between them a linear blend.
            double turns = config->rope_original_positions * frequency / two_pi;
            double blend = (turns - config->rope_low_freq) / (config->rope_high_freq - config->rope_low_freq);
            blend = fmin(fmax(blend, 0), 1);
            frequency = (1 - blend) * frequency / config->rope_factor + blend * frequency;
        }
        inv_freq[i] = frequency;
    }
}

// ---- The whole file ------------------------------------------------------------------------------------------------

static enum gang_status read_object(const struct reader *in, struct gang_config *out) {
    if (!json_is_object(in->object)) return gang_fail(GANG_ERR_INPUT, "%s: not an object: expected {\"model_type\": \"llama\", ...}", in->path);
    enum family family = FAMILY_NONE;
    // The kind comes first: of another model's file, that is what to say.
    enum gang_status status = read_family(in, &family);
    if (!status) status = check_fields(in);
    if (!status) status = check_activation(in);
    if (!status && family == FAMILY_MISTRAL && !json_object_get(in->object, "sliding_window"))
        return gang_fail(GANG_ERR_UNSUPPORTED, "%s: sliding_window: missing, which means 4096 to Mistral: only null is supported", in->path);
    if (!status) status = read_sizes(in, family, out);
    if (!status) status = read_rope(in, out);
    if (!status) status = read_token(in, "bos_token_id", out->vocab_size, &out->bos_token);
    if (!status) status = read_token(in, "eos_token_id", out->vocab_size, &out->eos_token);
    return status;
}

enum gang_status gang_config_read(const char *path, struct gang_config *out) {
    *out = (struct gang_config){.rope_factor = 1, .rope_low_freq = 1, .rope_high_freq = 4, .bos_token = -1, .eos_token = -1};
    struct gang_arena arena;
    gang_arena_init(&arena);
    const char *file = gang_path_is_dir(path) ? gang_arena_printf(&arena, "%s/config.json", path) : path;
    json_t *root = NULL;
    enum gang_status status = gang_json_read(file, MAX_CONFIG_BYTES, &root);
    if (!status) status = read_object(&(struct reader){.path = file, .object = root}, out);
    json_decref(root);
    gang_arena_release(&arena);
    return status;
}

// The shortest text that reads back as the same number, and reads as a float to other software.
static const char *real_text(double value, char out[32]) {
    double back = 0;
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(out, 32, "%.*g", digits, value);
        if (gang_parse_real("number", out, -HUGE_VAL, HUGE_VAL, &back) == GANG_OK && back == value) break;
    }
    size_t len = strlen(out);
    if (!strpbrk(out, ".e")) snprintf(out + len, 32 - len, ".0");
    return out;
}

static void print_rope(const struct gang_config *config, struct gang_buffer *text) {
    char number[32];
    gang_buffer_printf(text, "  \"rope_theta\": %s,\n", real_text(config->rope_theta, number));
    if (config->rope_kind == GANG_ROPE_PLAIN) {
        gang_buffer_printf(text, "  \"rope_scaling\": null,\n");
        return;
    }
    const char *factor = real_text(config->rope_factor, number);
    if (config->rope_kind == GANG_ROPE_LINEAR) {
        // "type" is what Transformers before 4.43 reads.
        gang_buffer_printf(text, "  \"rope_scaling\": {\"rope_type\": \"linear\", \"type\": \"linear\", \"factor\": %s},\n", factor);
        return;
    }
    gang_buffer_printf(text, "  \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": %s,", factor);
    gang_buffer_printf(text, " \"low_freq_factor\": %s,", real_text(config->rope_low_freq, number));
    gang_buffer_printf(text, " \"high_freq_factor\": %s,", real_text(config->rope_high_freq, number));
    gang_buffer_printf(text, " \"original_max_position_embeddings\": %d},\n", config->rope_original_positions);
}

static void print_token(struct gang_buffer *text, const char *name, int id) {
    if (id < 0) gang_buffer_printf(text, "  \"%s\": null,\n", name);
    if (id >= 0) gang_buffer_printf(text, "  \"%s\": %d,\n", name, id);
}

static void print_config(const struct gang_config *config, struct gang_buffer *text) {
    char number[32];
    gang_buffer_printf(text, "{\n  \"architectures\": [\"LlamaForCausalLM\"],\n  \"model_type\": \"llama\",\n");
    gang_buffer_printf(text, "  \"vocab_size\": %d,\n  \"hidden_size\": %d,\n", config->vocab_size, config->hidden_size);
    gang_buffer_printf(text, "  \"intermediate_size\": %d,\n", config->intermediate_size);
    gang_buffer_printf(text, "  \"num_hidden_layers\": %d,\n", config->layers);
    gang_buffer_printf(text, "  \"num_attention_heads\": %d,\n", config->heads);
    gang_buffer_printf(text, "  \"num_key_value_heads\": %d,\n", config->kv_heads);
    gang_buffer_printf(text, "  \"head_dim\": %d,\n", config->head_dim);
    gang_buffer_printf(text, "  \"hidden_act\": \"silu\",\n  \"attention_bias\": false,\n  \"mlp_bias\": false,\n");
    gang_buffer_printf(text, "  \"max_position_embeddings\": %d,\n", config->max_positions);
    gang_buffer_printf(text, "  \"rms_norm_eps\": %s,\n", real_text(config->norm_eps, number));
    gang_buffer_printf(text, "  \"initializer_range\": %s,\n", real_text(config->init_range, number));
    gang_buffer_printf(text, "  \"tie_word_embeddings\": %s,\n", config->tied ? "true" : "false");
    print_rope(config, text);
    print_token(text, "bos_token_id", config->bos_token);
    print_token(text, "eos_token_id", config->eos_token);
    gang_buffer_printf(text, "  \"torch_dtype\": \"float32\"\n}\n");
}

// The first line in which two printed configurations differ.
static void differing_line(const char **a, const char **b, int length[2]) {
    for (const char *x = *a, *y = *b; *x; x++, y++) {
        if (*x != *y) break;
        if (*x == '\n') *a = x + 1, *b = y + 1;
    }
    length[0] = (int)strcspn(*a += strspn(*a, " "), "\n");
    length[1] = (int)strcspn(*b += strspn(*b, " "), "\n");
}

enum gang_status gang_config_check_same(const struct gang_config *saved, const struct gang_config *now, const char *dir) {
    struct gang_buffer text[2] = {{0}};
    enum gang_status status = GANG_OK;
    print_config(saved, &text[0]);
    print_config(now, &text[1]);
    const char *was = text[0].data, *is = text[1].data;
    int length[2];
    if (strcmp(was, is) != 0) {
        differing_line(&was, &is, length);
        status = gang_fail(GANG_ERR_INPUT, "%s: the model's config.json said %.*s in the saved run and says %.*s now: restore it, or start anew", dir,
                           length[0], was, length[1], is);
    }
    for (int i = 0; i < 2; i++) gang_buffer_release(&text[i]);
    return status;
}

enum gang_status gang_config_write(const struct gang_config *config, const char *dir) {
    struct gang_buffer text = {0}, path = {0};
    print_config(config, &text);
    gang_buffer_printf(&path, "%s/config.json", dir);
    enum gang_status status = gang_file_publish(path.data, text.data, text.len);
    gang_buffer_release(&path);
    gang_buffer_release(&text);
    return status;
}
