// The model as arithmetic: which matrices a layer has, what they weigh and what a token costs.
#include "plan/plan.h"

#include <jansson.h>
#include <string.h>

void gang_shape_from_config(const struct gang_config *c, struct gang_shape *out) {
    *out = (struct gang_shape){.layers = c->layers,
                               .hidden = c->hidden_size,
                               .heads = c->heads,
                               .kv_heads = c->kv_heads,
                               .qk_dim = c->head_dim,
                               .v_dim = c->head_dim,
                               .ffn = c->intermediate_size,
                               .vocab = c->vocab_size,
                               .gated = true,
                               .tied = c->tied};
}

// ---- config.json of mixtures of experts ----------------------------------------------------------------------------

struct moe_reader {
    const char *path;
    const json_t *object;
    enum gang_status status; // of the first field that is wrong
};

static int64_t read_size(struct moe_reader *in, const char *name, int64_t fallback) {
    const json_t *value = json_object_get(in->object, name);
    if (!value || json_is_null(value)) {
        if (fallback < 0 && !in->status) in->status = gang_fail(GANG_ERR_INPUT, "%s: %s: missing: this field is required", in->path, name);
        return fallback;
    }
    int64_t number = json_is_integer(value) ? json_integer_value(value) : -1;
    if ((number < 0 || number > 1 << 24) && !in->status)
        in->status = gang_fail(GANG_ERR_INPUT, "%s: %s: expected a whole number from 0 to %d", in->path, name, 1 << 24);
    return number;
}

static void read_attention(struct moe_reader *in, bool latent, struct gang_shape *out) {
    if (!latent) {
        out->kv_heads = read_size(in, "num_key_value_heads", out->heads);
        out->qk_dim = out->v_dim = read_size(in, "head_dim", out->heads ? out->hidden / out->heads : 0);
        return;
    }
    out->kv_heads = out->heads;
    out->q_rank = read_size(in, "q_lora_rank", 0);
    out->kv_rank = read_size(in, "kv_lora_rank", -1);
    out->rope_dim = read_size(in, "qk_rope_head_dim", -1);
    out->qk_dim = read_size(in, "qk_nope_head_dim", -1) + out->rope_dim;
    out->v_dim = read_size(in, "v_head_dim", -1);
}

static void read_experts(struct moe_reader *in, const char *type, struct gang_shape *out) {
    bool deepseek = !strcmp(type, "deepseek_v3"), mixtral = !strcmp(type, "mixtral");
    out->experts = read_size(in, mixtral ? "num_local_experts" : deepseek ? "n_routed_experts" : "num_experts", -1);
    out->experts_per_token = read_size(in, "num_experts_per_tok", -1);
    out->expert_ffn = mixtral ? out->ffn : read_size(in, "moe_intermediate_size", -1);
    if (deepseek) {
        out->shared_ffn = read_size(in, "n_shared_experts", 0) * out->expert_ffn;
        out->dense_layers = read_size(in, "first_k_dense_replace", 0);
    } else if (!strcmp(type, "qwen2_moe")) {
        out->shared_ffn = read_size(in, "shared_expert_intermediate_size", 0);
    }
}

static enum gang_status read_moe(struct moe_reader *in, const char *type, struct gang_shape *out) {
    *out = (struct gang_shape){.gated = true};
    out->layers = read_size(in, "num_hidden_layers", -1);
    out->hidden = read_size(in, "hidden_size", -1);
    out->heads = read_size(in, "num_attention_heads", -1);
    out->ffn = read_size(in, "intermediate_size", -1);
    out->vocab = read_size(in, "vocab_size", -1);
    out->tied = json_is_true(json_object_get(in->object, "tie_word_embeddings"));
    read_attention(in, !strcmp(type, "deepseek_v3"), out);
    read_experts(in, type, out);
    if (in->status) return in->status;
    if (!out->layers || !out->hidden || !out->heads || !out->vocab || !out->qk_dim || !out->v_dim || !out->kv_heads || !out->experts ||
        !out->expert_ffn)
        return gang_fail(GANG_ERR_INPUT, "%s: a size is 0: expected layers, hidden, heads, experts and vocabulary above 0", in->path);
    // Products of sizes must not overflow: layers x experts x hidden x ffn is the largest.
    enum { MAX_LAYERS = 1 << 10, MAX_EXPERTS = 1 << 11, MAX_HIDDEN = 1 << 17, MAX_FFN = 1 << 20, MAX_HEADS = 1 << 12, MAX_DIM = 1 << 10 };
    if (out->layers > MAX_LAYERS || out->heads > MAX_HEADS || out->experts > MAX_EXPERTS || out->hidden > MAX_HIDDEN || out->ffn > MAX_FFN ||
        out->expert_ffn > MAX_FFN || out->shared_ffn > MAX_FFN || out->kv_heads > MAX_HEADS || out->qk_dim > MAX_DIM || out->v_dim > MAX_DIM ||
        out->q_rank > MAX_HIDDEN || out->kv_rank > MAX_HIDDEN || out->rope_dim > out->qk_dim)
        return gang_fail(GANG_ERR_INPUT, "%s: a size is beyond all sense: expected at most %d layers, %d experts, %d hidden, %d ffn, %d heads of %d",
                         in->path, MAX_LAYERS, MAX_EXPERTS, MAX_HIDDEN, MAX_FFN, MAX_HEADS, MAX_DIM);
    if (out->experts_per_token < 1 || out->experts_per_token > out->experts)
        return gang_fail(GANG_ERR_INPUT, "%s: num_experts_per_tok: %lld of %lld experts", in->path, (long long)out->experts_per_token,
                         (long long)out->experts);
    return GANG_OK;
}

enum gang_status gang_shape_read(const char *path, struct gang_shape *out) {
    static const char *const kinds[] = {"mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", NULL};
    struct gang_arena arena;
    gang_arena_init(&arena);
    const char *file = gang_path_is_dir(path) ? gang_arena_printf(&arena, "%s/config.json", path) : path;
    json_t *object = NULL;
    enum gang_status status = gang_json_read(file, 1 << 20, &object);
    const char *type = status ? NULL : json_string_value(json_object_get(object, "model_type"));
    int k = 0;
    while (type && kinds[k] && strcmp(kinds[k], type) != 0) k++;
    if (!status && type && kinds[k]) {
        struct moe_reader in = {.path = file, .object = object};
        status = read_moe(&in, type, out);
    } else if (!status) {
        struct gang_config config;
        status = gang_config_read(path, &config);
        if (!status) gang_shape_from_config(&config, out);
    }
    json_decref(object);
    gang_arena_release(&arena);
    return status;
}

// ---- Matrices ------------------------------------------------------------------------------------------------------

static int attention_matrices(const struct gang_shape *s, struct gang_matrix *out) {
    int n = 0;
    if (!s->kv_rank) {
        int64_t rows = s->heads * s->qk_dim + s->kv_heads * (s->qk_dim + s->v_dim);
        out[n++] = (struct gang_matrix){"qkv", rows, s->hidden, 1, 1, GANG_CUT_OUT, false};
    } else {
        if (s->q_rank) out[n++] = (struct gang_matrix){"q_down", s->q_rank, s->hidden, 1, 1, GANG_CUT_NONE, false};
        out[n++] = (struct gang_matrix){"q_up", s->heads * s->qk_dim, s->q_rank ? s->q_rank : s->hidden, 1, 1, GANG_CUT_OUT, false};
        out[n++] = (struct gang_matrix){"kv_down", s->kv_rank + s->rope_dim, s->hidden, 1, 1, GANG_CUT_NONE, false};
        out[n++] = (struct gang_matrix){"kv_up", s->heads * (s->qk_dim - s->rope_dim + s->v_dim), s->kv_rank, 1, 1, GANG_CUT_OUT, false};
    }
    out[n++] = (struct gang_matrix){"o", s->hidden, s->heads * s->v_dim, 1, 1, GANG_CUT_IN, false};
    return n;
}

static int ffn_matrices(const struct gang_shape *s, int64_t width, int64_t stored, int64_t active, bool expert, struct gang_matrix *out) {
    out[0] = (struct gang_matrix){"up", (s->gated ? 2 : 1) * width, s->hidden, stored, active, GANG_CUT_OUT, expert};
    out[1] = (struct gang_matrix){"down", s->hidden, width, stored, active, GANG_CUT_IN, expert};
    return 2;
}

int gang_shape_matrices(const struct gang_shape *s, bool moe, struct gang_matrix out[GANG_MAX_MATRICES]) {
    int n = attention_matrices(s, out);
    if (!moe) return n + ffn_matrices(s, s->ffn, 1, 1, false, out + n);
    out[n++] = (struct gang_matrix){"router", s->experts, s->hidden, 1, 1, GANG_CUT_NONE, false};
    n += ffn_matrices(s, s->expert_ffn, s->experts, s->experts_per_token, true, out + n);
    if (s->shared_ffn) n += ffn_matrices(s, s->shared_ffn, 1, 1, false, out + n);
    return n;
}

// Parameters of a layer when a matrix counts `stored` or `active` copies.
static int64_t layer_count(const struct gang_shape *s, bool moe, bool active) {
    struct gang_matrix matrices[GANG_MAX_MATRICES];
    int n = gang_shape_matrices(s, moe, matrices);
    int64_t sum = (s->biases ? 4 : 2) * s->hidden; // two norms
    if (s->kv_rank) sum += s->q_rank + s->kv_rank;
    for (int i = 0; i < n; i++) sum += (active ? matrices[i].active : matrices[i].stored) * (matrices[i].in + (s->biases ? 1 : 0)) * matrices[i].out;
    return sum;
}

int64_t gang_shape_layer_parameters(const struct gang_shape *s, bool moe) { return layer_count(s, moe, false); }

static int64_t count_all(const struct gang_shape *s, bool active) {
    int64_t moe = s->experts ? s->layers - s->dense_layers : 0;
    int64_t ends = s->vocab * s->hidden * (s->tied ? 1 : 2) + s->positions * s->hidden + (s->biases ? 2 : 1) * s->hidden;
    return ends + (s->layers - moe) * layer_count(s, false, active) + moe * (moe ? layer_count(s, true, active) : 0);
}

int64_t gang_shape_parameters(const struct gang_shape *s) { return count_all(s, false); }
int64_t gang_shape_active_parameters(const struct gang_shape *s) { return count_all(s, true); }

double gang_shape_layer_flops(const struct gang_shape *s, bool moe, int64_t T) {
    struct gang_matrix matrices[GANG_MAX_MATRICES];
    int n = gang_shape_matrices(s, moe, matrices);
    double flops = 2.0 * (double)T * (double)(s->heads * (s->qk_dim + s->v_dim));
    for (int i = 0; i < n; i++) flops += 2.0 * (double)(matrices[i].active * matrices[i].out) * (double)matrices[i].in;
    return flops;
}

double gang_shape_flops(const struct gang_shape *s, int64_t T) {
    double flops = 2.0 * (double)s->vocab * (double)s->hidden;
    for (int64_t l = 0; l < s->layers; l++) flops += gang_shape_layer_flops(s, gang_shape_is_moe(s, l), T);
    return flops;
}
