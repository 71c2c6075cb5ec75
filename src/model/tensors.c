// The table of a model's tensors over one flat array of parameters, and fresh weights.
//
// The table's order is the array's order: the embedding, then nine tensors a layer in the order of enum gang_role, then the
// final norm and, if untied, the head. So a tensor's place in the table of the whole model is arithmetic, and this index is a
// name of the tensor that random weights can hang on, whatever part of the model holds it.
#include "model/model.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { PER_LAYER = GANG_ROLE_DOWN - GANG_ROLE_NORM_ATTENTION + 1, ALIGN_ELEMENTS = 16 };

static const char *const role_names[] = {
    [GANG_ROLE_EMBED] = "model.embed_tokens.weight",
    [GANG_ROLE_NORM_ATTENTION] = "input_layernorm.weight",
    [GANG_ROLE_Q] = "self_attn.q_proj.weight",
    [GANG_ROLE_K] = "self_attn.k_proj.weight",
    [GANG_ROLE_V] = "self_attn.v_proj.weight",
    [GANG_ROLE_O] = "self_attn.o_proj.weight",
    [GANG_ROLE_NORM_FFN] = "post_attention_layernorm.weight",
    [GANG_ROLE_GATE] = "mlp.gate_proj.weight",
    [GANG_ROLE_UP] = "mlp.up_proj.weight",
    [GANG_ROLE_DOWN] = "mlp.down_proj.weight",
    [GANG_ROLE_NORM_FINAL] = "model.norm.weight",
    [GANG_ROLE_HEAD] = "lm_head.weight",
};

static void shape_of(const struct gang_config *config, enum gang_role role, int64_t *rows, int64_t *cols) {
    const int64_t hidden = config->hidden_size, ffn = config->intermediate_size, vocab = config->vocab_size;
    const int64_t q = (int64_t)config->heads * config->head_dim, kv = (int64_t)config->kv_heads * config->head_dim;
    const int64_t shapes[][2] = {
        [GANG_ROLE_EMBED] = {vocab, hidden},  [GANG_ROLE_NORM_ATTENTION] = {1, hidden},
        [GANG_ROLE_Q] = {q, hidden},          [GANG_ROLE_K] = {kv, hidden},
        [GANG_ROLE_V] = {kv, hidden},         [GANG_ROLE_O] = {hidden, q},
        [GANG_ROLE_NORM_FFN] = {1, hidden},   [GANG_ROLE_GATE] = {ffn, hidden},
        [GANG_ROLE_UP] = {ffn, hidden},       [GANG_ROLE_DOWN] = {hidden, ffn},
        [GANG_ROLE_NORM_FINAL] = {1, hidden}, [GANG_ROLE_HEAD] = {vocab, hidden},
    };
    *rows = shapes[role][0];
    *cols = shapes[role][1];
}

static int64_t aligned(int64_t elements) { return (elements + ALIGN_ELEMENTS - 1) / ALIGN_ELEMENTS * ALIGN_ELEMENTS; }

static int index_of(const struct gang_config *config, enum gang_role role, int layer) {
    if (role == GANG_ROLE_EMBED) return 0;
    if (role >= GANG_ROLE_NORM_FINAL) return 1 + config->layers * PER_LAYER + (role - GANG_ROLE_NORM_FINAL);
    return 1 + layer * PER_LAYER + (role - GANG_ROLE_NORM_ATTENTION);
}

static void cut(struct gang_tensor *t, int tp, int index) {
    bool by_rows = (t->role >= GANG_ROLE_Q && t->role <= GANG_ROLE_V) || t->role == GANG_ROLE_GATE || t->role == GANG_ROLE_UP;
    bool by_cols = t->role == GANG_ROLE_O || t->role == GANG_ROLE_DOWN;
    t->whole_rows = t->rows;
    t->whole_cols = t->cols;
    if (by_rows) t->rows /= tp, t->row = index * t->rows;
    if (by_cols) t->cols /= tp, t->col = index * t->cols;
}

static void add(struct gang_model *model, enum gang_role role, int layer) {
    struct gang_tensor *tensor = &model->tensors[model->count++];
    tensor->role = role;
    tensor->layer = layer;
    tensor->index = index_of(&model->config, role, layer);
    shape_of(&model->config, role, &tensor->rows, &tensor->cols);
    cut(tensor, model->tp, model->tp_index);
    bool follows = role == GANG_ROLE_K || role == GANG_ROLE_V || role == GANG_ROLE_UP;
    tensor->offset = follows ? model->elements : aligned(model->elements);
    model->elements = tensor->offset + tensor->rows * tensor->cols;
    model->parameters += tensor->rows * tensor->cols;
    if (layer < 0) snprintf(tensor->name, sizeof tensor->name, "%s", role_names[role]);
    if (layer >= 0) snprintf(tensor->name, sizeof tensor->name, "model.layers.%d.%s", layer, role_names[role]);
}

// `part` NULL: all of it.
static void fill_table(struct gang_model *model, const struct gang_config *config, const struct gang_model_part *part, struct gang_arena *arena) {
    int tp = part && part->tp ? part->tp : 1, index = part ? part->tp_index : 0;
    assert(config->heads % tp == 0 && config->kv_heads % tp == 0 && config->intermediate_size % tp == 0 && index >= 0 && index < tp);
    *model = (struct gang_model){.config = *config, .tp = tp, .tp_index = index};
    model->tensors = gang_arena_alloc(arena, ((size_t)config->layers * PER_LAYER + 3) * sizeof *model->tensors);
    bool embed = !part || part->embed, head = !part || part->head;
    if (embed) add(model, GANG_ROLE_EMBED, -1);
    for (int layer = 0; layer < config->layers; layer++)
        for (int i = 0; i < PER_LAYER && (!part || part->layers[layer]); i++) add(model, (enum gang_role)(GANG_ROLE_NORM_ATTENTION + i), layer);
    if (head) add(model, GANG_ROLE_NORM_FINAL, -1);
    if (head && !config->tied) add(model, GANG_ROLE_HEAD, -1);
    if (head && config->tied && !embed) add(model, GANG_ROLE_EMBED, -1);
    model->elements = aligned(model->elements);
    model->whole = tp == 1 && model->count == 2 + config->layers * PER_LAYER + !config->tied;
}

void gang_model_init(struct gang_model *model, const struct gang_config *config, struct gang_arena *arena) { fill_table(model, config, NULL, arena); }

void gang_model_init_part(struct gang_model *model, const struct gang_config *config, const struct gang_model_part *part, struct gang_arena *arena) {
    fill_table(model, config, part, arena);
}

const struct gang_tensor *gang_model_find(const struct gang_model *model, enum gang_role role, int layer) {
    bool in_layer = role >= GANG_ROLE_NORM_ATTENTION && role <= GANG_ROLE_DOWN;
    assert(in_layer ? layer >= 0 && layer < model->config.layers : layer == -1);
    int index = index_of(&model->config, role, layer);
    for (int i = 0; i < model->count; i++)
        if (model->tensors[i].index == index) return &model->tensors[i];
    return NULL;
}

// Elements 2 * pair and 2 * pair + 1 of a tensor: both halves of one Box-Muller draw, which makes it twice as cheap as
// gang_normal_at for each. 1 - u keeps the logarithm finite.
static void normal_pair(uint64_t seed, uint64_t stream, uint64_t pair, double out[2]) {
    double u = gang_uniform(gang_random_at(seed, stream, 2 * pair));
    double v = gang_uniform(gang_random_at(seed, stream, 2 * pair + 1));
    double radius = sqrt(-2 * log(1 - u)), angle = 6.283185307179586 * v;
    out[0] = radius * cos(angle);
    out[1] = radius * sin(angle);
}

// Row by row, since a slice's rows lie apart in the whole tensor; they may begin and end within a pair.
static void randomise(uint64_t seed, const struct gang_tensor *t, double deviation, float *out) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < t->rows; r++) {
        int64_t from = (t->row + r) * t->whole_cols + t->col, to = from + t->cols;
        for (int64_t pair = from / 2; 2 * pair < to; pair++) {
            double draw[2];
            normal_pair(seed, (uint64_t)t->index, (uint64_t)pair, draw);
            for (int64_t k = 2 * pair; k < 2 * pair + 2; k++)
                if (k >= from && k < to) out[r * t->cols + k - from] = (float)(deviation * draw[k % 2]);
        }
    }
}

void gang_model_randomise(const struct gang_model *model, uint64_t seed, float *parameters) {
    int64_t end = 0; // of the tensor before
    for (int i = 0; i < model->count; i++) {
        const struct gang_tensor *tensor = &model->tensors[i];
        int64_t elements = tensor->rows * tensor->cols;
        memset(parameters + end, 0, (size_t)(tensor->offset - end) * sizeof *parameters);
        end = tensor->offset + elements;
        float *values = parameters + tensor->offset;
        if (!gang_tensor_is_norm(tensor)) randomise(seed, tensor, model->config.init_range, values);
        for (int64_t k = 0; k < elements && gang_tensor_is_norm(tensor); k++) values[k] = 1;
    }
    memset(parameters + end, 0, (size_t)(model->elements - end) * sizeof *parameters);
}
