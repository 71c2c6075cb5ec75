// Memory and set-up of the network on a device: one block that holds all tensors, and what the passes find in it.
//
// A network holds chunks of layers, each with a number of slots; a slot holds what one micro-batch leaves for the way back.
// The whole model on one device is one chunk with one slot. What has to be kept depends on the passes:
//
//   plain      per layer x1, x2, their rstd, q|k|v, the attention's output and log-sum-exp, gate|up. The two normalised
//              inputs and silu(gate)*up are made again on the way back by kernels that read their sources anyway: a third
//              less memory for nothing.
//   recompute  per layer x1; the rest lies in one place that all layers share.
//   split      moreover what the weight half multiplies: both factors of each of the four products. gate|up already holds
//              its gradient then, the attention's output is kept anyway, and most of the rest moves into what the layer above
//              no longer needs. (Not where rows of the stream are cut: what is multiplied then is larger than the stream.)
//   inference  nothing but the key/value caches.
#include "train/net.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

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

static void *place_act(struct gang_net *net, struct placer *p, size_t *kind, int64_t count) {
    return place(p, kind, (size_t)count * gang_device_act_bytes(net->device));
}

static void place_linear(struct gang_net *net, struct placer *p, struct gang_linear **to, int64_t out, int64_t in) {
    enum gang_linear_use use = net->shape.inference ? GANG_LINEAR_INFER : GANG_LINEAR_TRAIN;
    const struct gang_kernels *k = net->device->k;
    void *memory = place(p, &net->memory.packed, k->linear_bytes(net->device, use, out, in));
    if (p->base) *to = k->linear_new(net->device, use, out, in, memory, &net->arena);
}

static void place_layer(struct gang_net *net, struct placer *p, struct layer *l) {
    place_linear(net, p, &l->qkv, net->W, net->C);
    place_linear(net, p, &l->o, net->C, net->O);
    place_linear(net, p, &l->gate_up, 2 * net->F, net->C);
    place_linear(net, p, &l->down, net->C, net->F);
    if (!net->shape.inference) return;
    int64_t KD = (net->W - net->O) / 2;
    l->k_cache = place_act(net, p, &net->memory.activations, net->M * KD);
    l->v_cache = place_act(net, p, &net->memory.activations, net->M * KD);
}

// The parts of what is kept from forward to backward; each lies either in every layer of every slot or once for all.
enum { KEPT_INPUT = 1, KEPT_INSIDE = 2, KEPT_PRODUCTS = 4, KEPT_FORWARD = 7 };

static int kept_per_slot(const struct gang_net_shape *shape) {
    int kept = shape->inference ? 0 : shape->recompute ? KEPT_INPUT : KEPT_FORWARD;
    return shape->split ? kept | KEPT_PRODUCTS : kept;
}

// Room for M x C floats holds twice as many elements of two bytes.
static void *second_half(const struct gang_net *net, float *room) { return room ? (char *)room + net->M * net->C * 2 : NULL; }

// What the weight half multiplies of a layer. When it is made, the layer `above` is through its input half, and so are its
// stream and its q|k|v. (Its x1 only just not when dy_down is made, so that one takes x2.)
static void place_backward(struct gang_net *net, struct placer *p, size_t *kind, struct kept *k, const struct kept *above) {
    int64_t M = net->M, C = net->C;
    bool narrow = net->device->compute == GANG_COMPUTE_BF16, moves = above && !net->shape.recompute && net->S == M;
    k->h = place_act(net, p, kind, M * net->F);
    k->dqkv = moves ? above->qkv : place_act(net, p, kind, M * net->W);
    k->dy_down = moves ? above->x2 : place_act(net, p, kind, M * C);
    k->n1 = moves ? narrow ? second_half(net, above->x2) : above->x1 : place_act(net, p, kind, M * C);
    k->n2 = moves && narrow ? above->x1 : place_act(net, p, kind, M * C);
    k->dy_o = moves && narrow ? second_half(net, above->x1) : place_act(net, p, kind, M * C);
}

static void place_kept(struct gang_net *net, struct placer *p, size_t *kind, struct kept *k, int parts) {
    int64_t M = net->M, S = net->S, C = net->C;
    if (parts & KEPT_INPUT) k->x1 = place_f32(p, kind, S * C);
    if (parts & KEPT_INSIDE) {
        k->x2 = place_f32(p, kind, S * C);
        k->rstd1 = place_f32(p, kind, S);
        k->rstd2 = place_f32(p, kind, S);
        k->lse = place_f32(p, kind, M * net->attention.heads);
        k->qkv = place_act(net, p, kind, M * net->W);
    }
    if (parts & KEPT_PRODUCTS) {
        k->attended = place_act(net, p, kind, M * net->O);
        k->gu = place_act(net, p, kind, M * 2 * net->F);
    }
}

// What a pass uses up before the next layer begins, so that no layer needs its own.
static void place_passing(struct gang_net *net, struct placer *p, size_t *kind) {
    bool apart = net->device->compute != GANG_COMPUTE_F32 || net->S < net->M;
    struct kept *k = &net->shared;
    k->n1 = k->n2 = net->n;
    k->h = place_act(net, p, kind, net->M * net->F);
    if (net->shape.inference) return;
    k->dy_down = k->dy_o = apart ? place_act(net, p, kind, net->M * net->C) : net->dx;
    k->dqkv = place_act(net, p, kind, net->M * net->W);
}

// Rows of a chunk of logits: enough that products run at full speed, few enough that the chunk stays near the caches.
static int64_t logits_rows(int64_t M, int64_t V) {
    enum { LEAST = 256, CHUNK_BYTES = 16 << 20 };
    int64_t rows = CHUNK_BYTES / (4 * V);
    if (rows < LEAST) rows = LEAST;
    return rows < M ? rows : M;
}

static void place_head(struct gang_net *net, struct placer *p, size_t *kind) {
    bool train = !net->shape.inference, rounded = net->device->compute != GANG_COMPUTE_F32;
    place_linear(net, p, &net->head, net->V, net->C);
    net->R = train ? logits_rows(net->S, net->V) : 1;
    net->rstd_final = place_f32(p, kind, net->S);
    net->logits = place_f32(p, kind, net->R * net->V);
    if (!train) return;
    net->dlogits = rounded ? place_act(net, p, kind, net->R * net->V) : net->logits;
    net->losses = place_f32(p, kind, net->S);
}

static void place_workspace(struct gang_net *net, struct placer *p) {
    size_t *kind = &net->memory.workspace;
    int64_t M = net->M, half = net->attention.dim / 2;
    net->n = place_act(net, p, kind, M * net->C);
    net->delta = place_act(net, p, kind, M * net->C);
    net->cos = place_f32(p, kind, net->shape.length * half);
    net->sin = place_f32(p, kind, net->shape.length * half);
    void *scratch = place(p, kind, gang_device_scratch_bytes(net->device, &net->attention, net->C));
    if (p->base) net->device->scratch = scratch;
    if (net->head_tensor) place_head(net, p, kind);
    if (!net->shape.inference) {
        net->dx = place_f32(p, kind, net->S * net->C);
        net->dattended = place_act(net, p, kind, M * net->O);
    }
    place_kept(net, p, kind, &net->shared, KEPT_FORWARD & ~kept_per_slot(&net->shape));
    if (!net->shape.split) place_passing(net, p, kind);
}

static void place_slot(struct gang_net *net, struct placer *p, const struct chunk *c, struct slot *slot) {
    bool train = !net->shape.inference;
    size_t *kind = train ? &net->memory.activations : &net->memory.workspace;
    if (c->first && train) slot->ids = place(p, kind, (size_t)net->S * sizeof *slot->ids);
    if (c->last && train) slot->targets = place(p, kind, (size_t)net->S * sizeof *slot->targets);
    if (c->last) slot->x_final = place_f32(p, kind, (train ? net->S : 1) * net->C);
    for (int i = c->to - c->from - 1; i >= 0; i--) {
        struct kept *k = &slot->layers[i];
        *k = net->shared;
        place_kept(net, p, kind, k, kept_per_slot(&net->shape));
        if (net->shape.split) place_backward(net, p, kind, k, i < c->to - c->from - 1 ? k + 1 : NULL);
    }
}

static int64_t owned_elements(const struct gang_net *net) {
    int64_t sum = 0;
    for (int i = 0; i < net->shape.owned_count; i++) sum += net->shape.owned[i].elements;
    return sum;
}

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

// Weight gradients sum over M. In f32 also gradients of inputs, and whatever inference multiplies, pack the plain weight.
static size_t packing_bytes(const struct gang_net *net) {
    int64_t in = largest(net->C, largest(net->F, net->O)), out = largest(largest(net->W, 2 * net->F), net->head_tensor ? net->V : net->C);
    if (net->shape.inference) return gang_device_packing_bytes(net->device, in, out);
    return gang_device_packing_bytes(net->device, net->device->compute == GANG_COMPUTE_F32 ? largest(net->M, out) : net->M, in);
}

static void place_all(struct gang_net *net, char *base) {
    struct placer p = {.base = base};
    net->memory = (struct gang_memory){0};
    net->parameters = place_f32(&p, &net->memory.parameters, net->model->elements);
    if (!net->shape.inference) {
        net->gradients = place_f32(&p, &net->memory.gradients, net->model->elements);
        for (int i = 0; i < 2; i++) net->moments[i] = place_f32(&p, &net->memory.optimizer, owned_elements(net));
    }
    for (int c = 0; c < net->shape.chunk_count; c++)
        for (int i = net->chunks[c].from; i < net->chunks[c].to; i++) place_layer(net, &p, &net->layers[i]);
    place_workspace(net, &p);
    for (int c = 0; c < net->shape.chunk_count; c++)
        for (int i = 0; i < net->chunks[c].slot_count; i++) place_slot(net, &p, &net->chunks[c], &net->chunks[c].slots[i]);
    net->block_bytes = p.used;
    size_t passing = 0, most = 0;
    for (const struct weight *w = net->weights; w < net->weights + net->weight_count; w++) {
        size_t bytes = w->passes ? (size_t)w->elements * sizeof(float) : 0;
        passing += bytes;
        if (bytes > most) most = bytes;
    }
    net->memory.parameters -= passing - most;
    net->memory.packing = packing_bytes(net);
    net->memory.total = p.used - (passing - most) + net->memory.packing;
}

// ---- Buckets -------------------------------------------------------------------------------------------------------

// From one tensor to the end of another and of the gap behind it.
static struct gang_net_bucket span(const struct gang_model *model, const struct gang_tensor *from, const struct gang_tensor *through, int chunk,
                                   int layer) {
    assert(from && through && "the model's part holds what the chunks hold");
    const struct gang_tensor *next = through + 1;
    int64_t end = next < model->tensors + model->count ? next->offset : model->elements;
    return (struct gang_net_bucket){.offset = from->offset, .elements = end - from->offset, .chunk = chunk, .layer = layer};
}

int gang_net_buckets(const struct gang_model *model, const struct gang_net_shape *shape, struct gang_net_bucket *out) {
    const struct gang_net_chunk whole = {0, model->config.layers, 1}, *chunks = shape->chunk_count ? shape->chunks : &whole;
    int count = 0;
    for (int c = shape->chunk_count ? shape->chunk_count - 1 : 0; c >= 0; c--) {
        if (chunks[c].to == model->config.layers) {
            const struct gang_tensor *norm = gang_model_find(model, GANG_ROLE_NORM_FINAL, -1);
            if (out) out[count] = span(model, norm, &model->tensors[model->count - 1], c, -1);
            count++;
        }
        for (int i = chunks[c].to - 1; i >= chunks[c].from; i--, count++)
            if (out) out[count] = span(model, gang_model_find(model, GANG_ROLE_NORM_ATTENTION, i), gang_model_find(model, GANG_ROLE_DOWN, i), c, i);
        if (chunks[c].from == 0) {
            const struct gang_tensor *embed = gang_model_find(model, GANG_ROLE_EMBED, -1);
            if (out) out[count] = span(model, embed, embed, c, -1);
            count++;
        }
    }
    return count;
}

static void find_buckets(struct gang_net *net) {
    net->bucket_count = gang_net_buckets(net->model, &net->shape, NULL);
    net->buckets = gang_arena_alloc(&net->arena, (size_t)net->bucket_count * sizeof *net->buckets);
    gang_net_buckets(net->model, &net->shape, net->buckets);
    int64_t covered = 0;
    for (int i = net->bucket_count - 1; i >= 0; i--) {
        covered += net->buckets[i].elements;
        net->chunks[net->buckets[i].chunk].bucket = i;
    }
    assert(covered == net->model->elements && "the chunks hold what the model's part holds");
}

// ---- Weights -------------------------------------------------------------------------------------------------------

static void add_weight(struct gang_net *net, struct gang_linear *const *linear, const struct gang_tensor *from, int64_t elements) {
    int at = net->weight_count++;
    for (; at && net->weights[at - 1].offset > from->offset; at--) net->weights[at] = net->weights[at - 1];
    bool passes = net->shape.inference && net->device->compute == GANG_COMPUTE_BF16 && from != net->embed;
    net->weights[at] = (struct weight){.linear = linear, .offset = from->offset, .elements = elements, .passes = passes};
}

static void find_weights(struct gang_net *net) {
    enum { OF_LAYER = 4 };
    net->weights = gang_arena_alloc(&net->arena, (size_t)(net->model->config.layers * OF_LAYER + 1) * sizeof *net->weights);
    for (int c = 0; c < net->shape.chunk_count; c++)
        for (int i = net->chunks[c].from; i < net->chunks[c].to; i++) {
            const struct layer *l = &net->layers[i];
            add_weight(net, &l->qkv, l->q, net->W * net->C);
            add_weight(net, &l->o, l->o_tensor, net->C * net->O);
            add_weight(net, &l->gate_up, l->gate, 2 * net->F * net->C);
            add_weight(net, &l->down, l->down_tensor, net->C * net->F);
        }
    if (net->head_tensor) add_weight(net, &net->head, net->head_tensor, net->V * net->C);
}

// ---- Set-up --------------------------------------------------------------------------------------------------------

static void *copy(struct gang_arena *arena, const void *from, size_t bytes) { return memcpy(gang_arena_alloc(arena, bytes), from, bytes); }

static void settle_shape(struct gang_net *net, const struct gang_net_shape *shape) {
    const struct gang_net_chunk whole = {0, net->model->config.layers, 1};
    const struct gang_range all = {0, net->model->elements};
    struct gang_net_shape *s = &net->shape;
    *s = *shape;
    if (!s->chunk_count) s->chunk_count = 1, s->chunks = &whole;
    if (!s->owned) s->owned_count = 1, s->owned = &all;
    s->chunks = copy(&net->arena, s->chunks, (size_t)s->chunk_count * sizeof *s->chunks);
    s->owned = copy(&net->arena, s->owned, (size_t)s->owned_count * sizeof *s->owned);
    assert(!s->inference || (s->batch == 1 && s->chunk_count == 1 && !s->split && !s->recompute));
}

static void find_layer(struct gang_net *net, int i) {
    const struct gang_model *m = net->model;
    net->layers[i] = (struct layer){
        .norm1 = gang_model_find(m, GANG_ROLE_NORM_ATTENTION, i),
        .q = gang_model_find(m, GANG_ROLE_Q, i),
        .o_tensor = gang_model_find(m, GANG_ROLE_O, i),
        .norm2 = gang_model_find(m, GANG_ROLE_NORM_FFN, i),
        .gate = gang_model_find(m, GANG_ROLE_GATE, i),
        .down_tensor = gang_model_find(m, GANG_ROLE_DOWN, i),
    };
}

static void make_chunks(struct gang_net *net) {
    int layers = net->model->config.layers, end = 0; // of the chunk before
    net->chunks = gang_arena_alloc(&net->arena, (size_t)net->shape.chunk_count * sizeof *net->chunks);
    net->layers = gang_arena_alloc(&net->arena, (size_t)layers * sizeof *net->layers);
    for (int i = 0; i < net->shape.chunk_count; i++) {
        const struct gang_net_chunk *from = &net->shape.chunks[i];
        struct chunk *c = &net->chunks[i];
        assert(from->from >= end && from->from < from->to && from->to <= layers && from->slots > 0);
        end = from->to;
        *c = (struct chunk){.from = from->from, .to = from->to, .first = from->from == 0, .last = from->to == layers, .slot_count = from->slots};
        c->slots = gang_arena_alloc(&net->arena, (size_t)c->slot_count * sizeof *c->slots);
        for (int s = 0; s < c->slot_count; s++)
            c->slots[s].layers = gang_arena_alloc(&net->arena, (size_t)(c->to - c->from) * sizeof *c->slots[s].layers);
        for (int layer = c->from; layer < c->to; layer++) find_layer(net, layer);
    }
}

static void net_init(struct gang_net *net, const struct gang_model *model, struct gang_device *device, const struct gang_net_shape *shape) {
    const struct gang_config *c = &model->config;
    *net = (struct gang_net){.model = model, .device = device};
    gang_arena_init(&net->arena);
    settle_shape(net, shape);
    make_chunks(net);
    find_buckets(net);
    net->set = gang_arena_alloc(&net->arena, (size_t)model->count * sizeof *net->set);
    net->attention = (struct gang_attention){
        .batch = shape->batch, .length = shape->length, .heads = c->heads / model->tp, .kv_heads = c->kv_heads / model->tp, .dim = c->head_dim};
    net->M = shape->batch * shape->length, net->C = c->hidden_size, net->F = c->intermediate_size / model->tp, net->V = c->vocab_size;
    net->O = net->attention.heads * c->head_dim, net->W = net->O + 2 * net->attention.kv_heads * c->head_dim;
    bool cut = shape->cell && shape->cell->rows;
    net->S = cut ? net->M / model->tp : net->M;
    net->row = cut ? model->tp_index * net->S : 0;
    assert(!cut || net->S * model->tp == net->M);
    net->embed = gang_model_find(model, GANG_ROLE_EMBED, -1);
    net->norm_final = gang_model_find(model, GANG_ROLE_NORM_FINAL, -1);
    if (net->norm_final) net->head_tensor = c->tied ? net->embed : gang_model_find(model, GANG_ROLE_HEAD, -1);
    find_weights(net);
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
    assert(model->tp == 1 || (shape->cell && !shape->inference));
    net_init(net, model, device, shape);
    enum gang_status status = gang_big_alloc(net->block_bytes, &net->block);
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
        gang_big_free(net->block, net->block_bytes);
        net->device->scratch = NULL;
    }
    gang_arena_release(&net->arena);
    free(net);
}

float *gang_net_parameters(struct gang_net *net) { return net->parameters; }
float *gang_net_gradients(struct gang_net *net) { return net->gradients; }
float *gang_net_moments(struct gang_net *net, int which) { return net->moments[which]; }

size_t gang_net_message_bytes(const struct gang_net *net) {
    return (size_t)(net->S * net->C) * (net->shape.message == GANG_COMPUTE_BF16 ? sizeof(uint16_t) : sizeof(float));
}
