// The network on a device: one block of memory, the forward and the backward pass, the update.
//
// A layer reads the residual stream x1, adds attention to give x2, adds the feed-forward part to give the next x1. The
// addition is done by the norm that follows (it has to read both anyway), so a layer's result travels as the pair
// (x2, delta). Kept for the backward pass per layer: x1, x2, their rstd, q|k|v, the attention's output and log-sum-exp,
// gate|up. The two normalised inputs and silu(gate)*up are made again on the way back by kernels that read their sources
// anyway: a third less memory for nothing.
//
// Letters as in device.h: M rows, C hidden, F ffn, V vocabulary, W width of q|k|v, R rows of a logits chunk.
#include "train/train.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct layer {
    struct gang_linear *qkv, *o, *gate_up, *down;
    const struct gang_tensor *norm1, *q, *o_tensor, *norm2, *gate, *down_tensor;
    float *x1, *x2;          // [M,C]
    float *rstd1, *rstd2;    // [M]
    float *lse;              // [B,H,T]
    void *qkv_act;           // [M,W]
    void *attended;          // [M,H*D]
    void *gu;                // [M,2F]
    void *k_cache, *v_cache; // inference: [T, K*D]
};

struct gang_net {
    const struct gang_model *model;
    struct gang_device *device;
    struct gang_net_shape shape;
    struct gang_arena arena;
    void *block;
    struct gang_memory memory;

    float *parameters, *gradients, *moments[2];
    struct layer *layers;
    struct gang_linear *head;
    const struct gang_tensor *embed, *norm_final, *head_tensor; // the head's is the embedding when tied

    int64_t R;
    float *x_final, *rstd_final; // [M,C], [M]
    void *n;                     // [M,C] normalised input of a product; on the way back its gradient
    void *delta;                 // [M,C]
    void *h;                     // [M,F]
    float *dx;                   // [M,C]
    void *dx_act;                // [M,C]: dx itself in f32
    void *dqkv;                  // [M,W]
    void *dattended;             // [M,H*D]
    float *logits;               // [R,V]
    void *dlogits;               // [R,V]: logits itself in f32
    float *losses;               // [M]
    float *cos, *sin;            // [T,D/2]
    int32_t *ids, *targets;      // [M]
    struct gang_attention attention;
    int64_t past; // inference: positions in the cache
};

// ---- Memory: one pass counts, the same pass again places -----------------------------------------------------------

struct placer {
    char *base; // NULL: only count
    size_t used;
};

static void *place(struct placer *p, size_t *kind, size_t bytes) {
    size_t need = (bytes + 63) / 64 * 64, at = p->used;
    p->used += need;
    *kind += need;
    return p->base ? p->base + at : NULL;
}

static float *place_f32(struct placer *p, size_t *kind, int64_t count) { return place(p, kind, (size_t)count * sizeof(float)); }

static void place_linear(struct gang_net *net, struct placer *p, struct gang_linear **to, int64_t out, int64_t in) {
    enum gang_linear_use use = net->shape.inference ? GANG_LINEAR_INFER : GANG_LINEAR_TRAIN;
    const struct gang_kernels *k = net->device->k;
    void *memory = place(p, &net->memory.packed, k->linear_bytes(net->device, use, out, in));
    if (p->base) *to = k->linear_new(net->device, use, out, in, memory, &net->arena);
}

static void place_layer(struct gang_net *net, struct placer *p, int index, struct layer *l) {
    const struct gang_config *c = &net->model->config;
    size_t act = gang_device_act_bytes(net->device), *kind = &net->memory.activations;
    int64_t M = net->shape.batch * net->shape.length, C = c->hidden_size, F = c->intermediate_size, O = (int64_t)c->heads * c->head_dim;
    int64_t KD = (int64_t)c->kv_heads * c->head_dim, W = O + 2 * KD;
    place_linear(net, p, &l->qkv, W, C);
    place_linear(net, p, &l->o, C, O);
    place_linear(net, p, &l->gate_up, 2 * F, C);
    place_linear(net, p, &l->down, C, F);
    if (net->shape.inference) {
        l->k_cache = place(p, kind, (size_t)(M * KD) * act);
        l->v_cache = place(p, kind, (size_t)(M * KD) * act);
        if (index) { // layers share what need not be kept
            const struct layer *first = &net->layers[0];
            l->x1 = first->x1, l->x2 = first->x2, l->rstd1 = first->rstd1, l->rstd2 = first->rstd2, l->lse = first->lse;
            l->qkv_act = first->qkv_act, l->attended = first->attended, l->gu = first->gu;
            return;
        }
        kind = &net->memory.workspace;
    }
    l->x1 = place_f32(p, kind, M * C);
    l->x2 = place_f32(p, kind, M * C);
    l->rstd1 = place_f32(p, kind, M);
    l->rstd2 = place_f32(p, kind, M);
    l->lse = place_f32(p, kind, M * c->heads);
    l->qkv_act = place(p, kind, (size_t)(M * W) * act);
    l->attended = place(p, kind, (size_t)(M * O) * act);
    l->gu = place(p, kind, (size_t)(M * 2 * F) * act);
}

// Rows of a chunk of logits: enough that products run at full speed, few enough that the chunk stays near the caches.
static int64_t logits_rows(int64_t M, int64_t V) {
    enum { LEAST = 256, CHUNK_BYTES = 16 << 20 };
    int64_t rows = CHUNK_BYTES / (4 * V);
    if (rows < LEAST) rows = LEAST;
    return rows < M ? rows : M;
}

static void place_workspace(struct gang_net *net, struct placer *p) {
    const struct gang_config *c = &net->model->config;
    bool train = !net->shape.inference, rounded = net->device->compute != GANG_COMPUTE_F32;
    size_t act = gang_device_act_bytes(net->device), *kind = &net->memory.workspace;
    int64_t M = net->shape.batch * net->shape.length, C = c->hidden_size, F = c->intermediate_size, V = c->vocab_size;
    int64_t O = (int64_t)c->heads * c->head_dim, W = O + 2 * (int64_t)c->kv_heads * c->head_dim;
    net->x_final = place_f32(p, kind, M * C);
    net->rstd_final = place_f32(p, kind, M);
    net->n = place(p, kind, (size_t)(M * C) * act);
    net->delta = place(p, kind, (size_t)(M * C) * act);
    net->h = place(p, kind, (size_t)(M * F) * act);
    net->R = train ? logits_rows(M, V) : 1;
    net->logits = place_f32(p, kind, net->R * V);
    net->ids = place(p, kind, (size_t)M * sizeof *net->ids);
    net->cos = place_f32(p, kind, net->shape.length * (c->head_dim / 2));
    net->sin = place_f32(p, kind, net->shape.length * (c->head_dim / 2));
    void *scratch = place(p, kind, gang_device_scratch_bytes(net->device, &net->attention, C));
    if (p->base) net->device->scratch = scratch;
    if (!train) return;
    net->dlogits = rounded ? place(p, kind, (size_t)(net->R * V) * act) : net->logits;
    net->dx = place_f32(p, kind, M * C);
    net->dx_act = rounded ? place(p, kind, (size_t)(M * C) * act) : net->dx;
    net->dqkv = place(p, kind, (size_t)(M * W) * act);
    net->dattended = place(p, kind, (size_t)(M * O) * act);
    net->losses = place_f32(p, kind, M);
    net->targets = place(p, kind, (size_t)M * sizeof *net->targets);
}

static void place_all(struct gang_net *net, char *base) {
    struct placer p = {.base = base};
    const struct gang_config *c = &net->model->config;
    bool train = !net->shape.inference;
    net->memory = (struct gang_memory){0};
    net->parameters = place_f32(&p, &net->memory.parameters, net->model->elements);
    if (train) {
        net->gradients = place_f32(&p, &net->memory.gradients, net->model->elements);
        for (int i = 0; i < 2; i++) net->moments[i] = place_f32(&p, &net->memory.optimizer, net->model->elements);
    }
    for (int i = 0; i < c->layers; i++) place_layer(net, &p, i, &net->layers[i]);
    place_linear(net, &p, &net->head, c->vocab_size, c->hidden_size);
    place_workspace(net, &p);
    net->memory.total = p.used;
}

static void find_tensors(struct gang_net *net) {
    const struct gang_model *m = net->model;
    for (int i = 0; i < m->config.layers; i++)
        net->layers[i] = (struct layer){
            .norm1 = gang_model_find(m, GANG_ROLE_NORM_ATTENTION, i),
            .q = gang_model_find(m, GANG_ROLE_Q, i),
            .o_tensor = gang_model_find(m, GANG_ROLE_O, i),
            .norm2 = gang_model_find(m, GANG_ROLE_NORM_FFN, i),
            .gate = gang_model_find(m, GANG_ROLE_GATE, i),
            .down_tensor = gang_model_find(m, GANG_ROLE_DOWN, i),
        };
    net->embed = gang_model_find(m, GANG_ROLE_EMBED, -1);
    net->norm_final = gang_model_find(m, GANG_ROLE_NORM_FINAL, -1);
    net->head_tensor = m->config.tied ? net->embed : gang_model_find(m, GANG_ROLE_HEAD, -1);
}

static void net_init(struct gang_net *net, const struct gang_model *model, struct gang_device *device, const struct gang_net_shape *shape) {
    const struct gang_config *c = &model->config;
    assert(!shape->inference || shape->batch == 1);
    *net = (struct gang_net){.model = model, .device = device, .shape = *shape};
    gang_arena_init(&net->arena);
    net->layers = gang_arena_alloc(&net->arena, (size_t)c->layers * sizeof *net->layers);
    net->attention = (struct gang_attention){
        .batch = shape->batch, .length = shape->length, .heads = c->heads, .kv_heads = c->kv_heads, .dim = c->head_dim};
    find_tensors(net);
    place_all(net, NULL);
}

void gang_net_memory(const struct gang_model *model, struct gang_device *device, const struct gang_net_shape *shape, struct gang_memory *out) {
    struct gang_net net;
    net_init(&net, model, device, shape);
    *out = net.memory;
    gang_arena_release(&net.arena);
}

enum gang_status gang_memory_check(const struct gang_memory *m, const char *remedy) {
    double free_bytes = gang_memory_available();
    if ((double)m->total <= free_bytes) return GANG_OK;
    char need[GANG_HUMAN_BYTES], has[GANG_HUMAN_BYTES], state[GANG_HUMAN_BYTES], acts[GANG_HUMAN_BYTES];
    return gang_fail(
        GANG_ERR_MEMORY,
        "the model does not fit: needs %s (%s for weights, gradients and optimizer, %s for activations and workspace), this machine has %s "
        "available: %s",
        gang_human_bytes((double)m->total, need), gang_human_bytes((double)(m->parameters + m->gradients + m->optimizer + m->packed), state),
        gang_human_bytes((double)(m->activations + m->workspace), acts), gang_human_bytes(free_bytes, has), remedy);
}

static void fill_rotation(struct gang_net *net) {
    int64_t half = net->model->config.head_dim / 2;
    double *frequency = gang_arena_alloc(&net->arena, (size_t)half * sizeof *frequency);
    gang_rope_frequencies(&net->model->config, frequency);
    for (int64_t i = 0; i < net->shape.length * half; i++) {
        int64_t position = i / half;
        double angle = (double)position * frequency[i % half];
        net->cos[i] = (float)cos(angle);
        net->sin[i] = (float)sin(angle);
    }
    net->attention.cos = net->cos;
    net->attention.sin = net->sin;
}

enum gang_status gang_net_new(const struct gang_model *model, struct gang_device *device, const struct gang_net_shape *shape, struct gang_net **out) {
    *out = NULL;
    struct gang_net *net = malloc(sizeof *net);
    assert(net && "out of memory");
    net_init(net, model, device, shape);
    enum gang_status status = gang_big_alloc(net->memory.total, &net->block);
    if (status) {
        gang_net_free(net);
        return status;
    }
    place_all(net, net->block);
    fill_rotation(net);
    *out = net;
    return GANG_OK;
}

void gang_net_free(struct gang_net *net) {
    if (!net) return;
    if (net->block) {
        gang_big_free(net->block, net->memory.total);
        net->device->scratch = NULL;
    }
    gang_arena_release(&net->arena);
    free(net);
}

float *gang_net_parameters(struct gang_net *net) { return net->parameters; }
float *gang_net_gradients(struct gang_net *net) { return net->gradients; }
float *gang_net_moments(struct gang_net *net, int which) { return net->moments[which]; }

void gang_net_refresh(struct gang_net *net) {
    struct gang_device *d = net->device;
    for (int i = 0; i < net->model->config.layers; i++) {
        struct layer *l = &net->layers[i];
        d->k->linear_refresh(d, l->qkv, net->parameters + l->q->offset);
        d->k->linear_refresh(d, l->o, net->parameters + l->o_tensor->offset);
        d->k->linear_refresh(d, l->gate_up, net->parameters + l->gate->offset);
        d->k->linear_refresh(d, l->down, net->parameters + l->down_tensor->offset);
    }
    d->k->linear_refresh(d, net->head, net->parameters + net->head_tensor->offset);
}

// ---- Forward -------------------------------------------------------------------------------------------------------

static void attend(struct gang_net *net, struct layer *l, int64_t M) {
    struct gang_device *d = net->device;
    if (!net->shape.inference) {
        d->k->attention(d, l->attended, l->lse, l->qkv_act, &net->attention);
    } else if (M == 1) {
        d->k->attention_decode(d, l->attended, l->k_cache, l->v_cache, l->qkv_act, net->past, &net->attention);
    } else {
        struct gang_attention prompt = net->attention;
        prompt.length = M;
        d->k->attention(d, l->attended, l->lse, l->qkv_act, &prompt);
        d->k->cache_fill(d, l->k_cache, l->v_cache, l->qkv_act, M, &prompt);
    }
}

// Ids to the normalised output of the last layer, in net->n. M rows.
static void forward(struct gang_net *net, int64_t M) {
    struct gang_device *d = net->device;
    const struct gang_kernels *k = d->k;
    const struct gang_config *c = &net->model->config;
    const float *w = net->parameters, eps = (float)c->norm_eps;
    int64_t C = c->hidden_size, F = c->intermediate_size;
    k->embed(d, net->layers[0].x1, net->ids, w + net->embed->offset, M, C);
    const float *x = net->layers[0].x1;
    const void *delta = NULL;
    for (int i = 0; i < c->layers; i++) {
        struct layer *l = &net->layers[i];
        k->norm(d, l->x1, net->n, l->rstd1, x, delta, w + l->norm1->offset, eps, M, C);
        k->linear(d, l->qkv, l->qkv_act, false, net->n, M);
        attend(net, l, M);
        k->linear(d, l->o, net->delta, false, l->attended, M);
        k->norm(d, l->x2, net->n, l->rstd2, l->x1, net->delta, w + l->norm2->offset, eps, M, C);
        k->linear(d, l->gate_up, l->gu, false, net->n, M);
        k->swiglu(d, net->h, l->gu, M, F);
        k->linear(d, l->down, net->delta, false, net->h, M);
        x = l->x2;
        delta = net->delta;
    }
    k->norm(d, net->x_final, net->n, net->rstd_final, x, delta, w + net->norm_final->offset, eps, M, C);
}

static const void *act_at(const struct gang_net *net, const void *base, int64_t element) {
    return (const char *)base + (size_t)element * gang_device_act_bytes(net->device);
}

static void split_tokens(struct gang_net *net, const int32_t *tokens) {
    int64_t T = net->shape.length;
    for (int64_t b = 0; b < net->shape.batch; b++) {
        memcpy(net->ids + b * T, tokens + b * (T + 1), (size_t)T * sizeof *tokens);
        memcpy(net->targets + b * T, tokens + b * (T + 1) + 1, (size_t)T * sizeof *tokens);
    }
}

void gang_net_logits(struct gang_net *net, const int32_t *tokens, float *logits) {
    int64_t M = net->shape.batch * net->shape.length, C = net->model->config.hidden_size, V = net->model->config.vocab_size;
    split_tokens(net, tokens);
    forward(net, M);
    for (int64_t row = 0; row < M; row += net->R) {
        int64_t rows = M - row < net->R ? M - row : net->R;
        net->device->k->linear(net->device, net->head, logits + row * V, true, act_at(net, net->n, row * C), rows);
    }
}

// Losses of all rows; with `scale` also the gradients of the head, and the gradient at the final norm's output in net->n.
static double head_and_loss(struct gang_net *net, const float *scale, bool first) {
    struct gang_device *d = net->device;
    const struct gang_kernels *k = d->k;
    int64_t M = net->shape.batch * net->shape.length, C = net->model->config.hidden_size, V = net->model->config.vocab_size;
    float *dw = net->gradients + net->head_tensor->offset;
    for (int64_t row = 0; row < M; row += net->R) {
        int64_t rows = M - row < net->R ? M - row : net->R;
        void *n = (void *)act_at(net, net->n, row * C);
        k->linear(d, net->head, net->logits, true, n, rows);
        k->cross_entropy(d, net->losses + row, net->dlogits, net->logits, net->targets + row, scale ? *scale : 0, rows, V);
        if (!scale) continue;
        k->linear_weight(d, net->head, dw, net->dlogits, n, !first || row > 0, rows);
        k->linear_input(d, net->head, n, net->dlogits, rows);
    }
    double sum = 0;
    for (int64_t m = 0; m < M; m++) sum += (double)net->losses[m];
    return sum;
}

double gang_net_loss(struct gang_net *net, const int32_t *tokens) {
    split_tokens(net, tokens);
    forward(net, net->shape.batch * net->shape.length);
    return head_and_loss(net, NULL, false);
}

// ---- Backward ------------------------------------------------------------------------------------------------------

// net->dx holds the gradient at the layer's output (and net->dx_act its rounding); afterwards at the layer's input.
static void backward_layer(struct gang_net *net, struct layer *l, bool add) {
    struct gang_device *d = net->device;
    const struct gang_kernels *k = d->k;
    const struct gang_config *c = &net->model->config;
    const float *w = net->parameters;
    float *g = net->gradients;
    void *rounded = net->dx_act == net->dx ? NULL : net->dx_act;
    int64_t M = net->shape.batch * net->shape.length, C = c->hidden_size, F = c->intermediate_size;

    k->linear_input(d, l->down, net->h, net->dx_act, M);
    k->swiglu_backward(d, l->gu, net->h, M, F);
    k->linear_weight(d, l->down, g + l->down_tensor->offset, net->dx_act, net->h, add, M);
    k->linear_input(d, l->gate_up, net->n, l->gu, M);
    k->norm_backward(d, net->dx, net->dx, rounded, net->n, g + l->norm2->offset, add, l->x2, l->rstd2, w + l->norm2->offset, M, C);
    k->linear_weight(d, l->gate_up, g + l->gate->offset, l->gu, net->n, add, M);

    k->linear_input(d, l->o, net->dattended, net->dx_act, M);
    k->linear_weight(d, l->o, g + l->o_tensor->offset, net->dx_act, l->attended, add, M);
    k->attention_backward(d, net->dqkv, net->dattended, l->attended, l->lse, l->qkv_act, &net->attention);
    k->linear_input(d, l->qkv, net->n, net->dqkv, M);
    k->norm_backward(d, net->dx, net->dx, rounded, net->n, g + l->norm1->offset, add, l->x1, l->rstd1, w + l->norm1->offset, M, C);
    k->linear_weight(d, l->qkv, g + l->q->offset, net->dqkv, net->n, add, M);
}

double gang_net_micro_batch(struct gang_net *net, const int32_t *tokens, float scale, bool first) {
    struct gang_device *d = net->device;
    const struct gang_config *c = &net->model->config;
    int64_t M = net->shape.batch * net->shape.length, C = c->hidden_size;
    split_tokens(net, tokens);
    forward(net, M);
    double loss = head_and_loss(net, &scale, first);
    void *rounded = net->dx_act == net->dx ? NULL : net->dx_act;
    d->k->norm_backward(d, net->dx, NULL, rounded, net->n, net->gradients + net->norm_final->offset, !first, net->x_final, net->rstd_final,
                        net->parameters + net->norm_final->offset, M, C);
    for (int i = c->layers - 1; i >= 0; i--) backward_layer(net, &net->layers[i], !first);
    float *dembed = net->gradients + net->embed->offset;
    if (first && !c->tied) memset(dembed, 0, (size_t)(net->embed->rows * C) * sizeof *dembed);
    d->k->embed_backward(d, dembed, net->ids, net->dx, M, C);
    return loss;
}

// ---- Update --------------------------------------------------------------------------------------------------------

double gang_net_update(struct gang_net *net, const struct gang_update *u) {
    struct gang_device *d = net->device;
    const struct gang_model *m = net->model;
    double norm = sqrt(d->k->sum_squares(d, net->gradients, m->elements));
    struct gang_adamw o = {
        .rate = (float)u->rate,
        .beta1 = (float)u->beta1,
        .beta2 = (float)u->beta2,
        .epsilon = (float)u->epsilon,
        .correct1 = (float)(1 - pow(u->beta1, (double)u->step)),
        .correct2 = (float)(1 - pow(u->beta2, (double)u->step)),
        .gradient_scale = u->clip > 0 && norm > u->clip ? (float)(u->clip / norm) : 1,
    };
    for (int i = 0; i < m->count;) {
        // Neighbours with the same decay go in one pass; the gaps between them stay 0.
        bool is_norm = gang_tensor_is_norm(&m->tensors[i]);
        int64_t from = m->tensors[i].offset;
        while (i < m->count && gang_tensor_is_norm(&m->tensors[i]) == is_norm) i++;
        int64_t n = (i < m->count ? m->tensors[i].offset : m->elements) - from;
        o.decay = is_norm ? 0 : (float)u->decay;
        d->k->adamw(d, net->parameters + from, net->moments[0] + from, net->moments[1] + from, net->gradients + from, n, &o);
    }
    gang_net_refresh(net);
    return norm;
}

// ---- Inference -----------------------------------------------------------------------------------------------------

const float *gang_net_feed(struct gang_net *net, const int32_t *tokens, int64_t count) {
    assert(net->shape.inference && count > 0 && net->past + count <= net->shape.length && (count == 1 || net->past == 0));
    memcpy(net->ids, tokens, (size_t)count * sizeof *tokens);
    forward(net, count);
    net->device->k->linear(net->device, net->head, net->logits, true, act_at(net, net->n, (count - 1) * net->model->config.hidden_size), 1);
    net->past += count;
    return net->logits;
}
