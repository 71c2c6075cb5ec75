// The passes of the network: forward, backward whole or in halves, and inference.
//
// A layer reads the residual stream x1, adds attention to give x2, adds the feed-forward part to give the next x1. The
// addition is done by the norm that follows (it has to read both anyway), so a layer's result travels as the pair
// (x2, delta); where it leaves the chunk, packing the message adds them.
//
// A model may be cut into slices (tensor parallelism). Each device then holds heads of its own and its part of the
// feed-forward's width; what o and down give, and on the way back what comes out of q|k|v and gate|up, are parts of a sum over
// the devices. Of the stream each has all, or S of its M rows. Then what a product reads is gathered first (net->n whole from S
// rows of it), and of a sum each device gets its rows; so tensors [M,C] of which only the own rows are there begin at `own`.
//
// Letters as in device.h and net.h.
#include "train/net.h"

#include <assert.h>
#include <string.h>

// ---- Forward -------------------------------------------------------------------------------------------------------

static void attend(struct gang_net *net, const struct layer *l, const struct kept *k, int64_t M) {
    struct gang_device *d = net->device;
    if (!net->shape.inference) {
        d->k->attention(d, k->attended, k->lse, k->qkv, &net->attention);
    } else if (M == 1) {
        d->k->attention_decode(d, k->attended, l->k_cache, l->v_cache, k->qkv, net->past, &net->attention);
    } else {
        struct gang_attention prompt = net->attention;
        prompt.length = M;
        d->k->attention(d, k->attended, k->lse, k->qkv, &prompt);
        d->k->cache_fill(d, l->k_cache, l->v_cache, k->qkv, M, &prompt);
    }
}

static void *act_at(const struct gang_net *net, const void *base, int64_t element) {
    return (char *)base + (size_t)element * gang_device_act_bytes(net->device);
}

static void *own(const struct gang_net *net, const void *act) { return act_at(net, act, net->row * net->C); }

// Over the devices that share the model: act [M,C]. One device does neither.
static void sum_slices(const struct gang_net *net, void *act) {
    const struct gang_net_cell *cell = net->shape.cell;
    if (cell) cell->sum(cell->context, act, net->M * net->C, net->device->compute);
}

static void gather_rows(const struct gang_net *net, void *act) {
    const struct gang_net_cell *cell = net->shape.cell;
    if (cell && cell->rows) cell->gather(cell->context, act, net->M * net->C, net->device->compute);
}

// All that the backward pass reads of a layer, from the stream x + delta (NULL: x) at its input. M rows, of the stream S.
static void fill_layer(struct gang_net *net, const struct layer *l, const struct kept *k, const float *x, const void *delta, int64_t M) {
    struct gang_device *d = net->device;
    const float *w = net->parameters, eps = (float)net->model->config.norm_eps;
    int64_t S = net->shape.inference ? M : net->S;
    d->k->norm(d, k->x1, own(net, k->n1), k->rstd1, x, delta, w + l->norm1->offset, eps, S, net->C);
    gather_rows(net, k->n1);
    d->k->linear(d, l->qkv, k->qkv, false, k->n1, M);
    attend(net, l, k, M);
    d->k->linear(d, l->o, net->delta, false, k->attended, M);
    sum_slices(net, net->delta);
    d->k->norm(d, k->x2, own(net, k->n2), k->rstd2, k->x1, own(net, net->delta), w + l->norm2->offset, eps, S, net->C);
    gather_rows(net, k->n2);
    d->k->linear(d, l->gate_up, k->gu, false, k->n2, M);
}

// From the stream in the first layer's x1 to the pair of the last layer's x2 (returned) and net->delta.
static const float *run_layers(struct gang_net *net, const struct chunk *c, const struct slot *s, int64_t M) {
    struct gang_device *d = net->device;
    const float *x = s->layers[0].x1;
    const void *delta = NULL;
    for (int i = c->from; i < c->to; i++) {
        const struct layer *l = &net->layers[i];
        const struct kept *k = &s->layers[i - c->from];
        fill_layer(net, l, k, x, delta, M);
        d->k->swiglu(d, k->h, k->gu, M, net->F);
        d->k->linear(d, l->down, net->delta, false, k->h, M);
        sum_slices(net, net->delta);
        x = k->x2;
        delta = own(net, net->delta);
    }
    return x;
}

// Of rows of T + 1 tokens the first T; S of all of them.
static void copy_tokens(const struct gang_net *net, int32_t *to, const int32_t *tokens) {
    int64_t T = net->shape.length;
    for (int64_t m = net->row; m < net->row + net->S; m++) *to++ = tokens[m / T * (T + 1) + m % T];
}

static struct slot *slot_of(struct gang_net *net, int chunk, int slot) {
    assert(chunk >= 0 && chunk < net->shape.chunk_count && slot >= 0 && slot < net->chunks[chunk].slot_count);
    return &net->chunks[chunk].slots[slot];
}

void gang_net_forward(struct gang_net *net, int chunk, int slot, const int32_t *tokens, const void *in, void *out) {
    struct gang_device *d = net->device;
    struct slot *s = slot_of(net, chunk, slot);
    const struct chunk *c = &net->chunks[chunk];
    assert(c->first == !in && c->last == !out && !net->shape.inference);
    if (c->first) {
        copy_tokens(net, s->ids, tokens);
        d->k->embed(d, s->layers[0].x1, s->ids, net->parameters + net->embed->offset, net->S, net->C);
    } else {
        d->k->unpack(d, s->layers[0].x1, NULL, in, net->shape.message, net->S * net->C);
    }
    if (c->last) copy_tokens(net, s->targets, tokens + 1);
    const float *x = run_layers(net, c, s, net->M);
    d->k->pack(d, c->last ? s->x_final : out, c->last ? GANG_COMPUTE_F32 : net->shape.message, x, own(net, net->delta), net->S * net->C);
    s->state = SLOT_FORWARD_DONE;
}

// ---- Head ----------------------------------------------------------------------------------------------------------

// The head's normalised input in net->n. `rows` of the stream; it is not gathered: the head works on the own rows.
static void final_norm(struct gang_net *net, const struct slot *s, int64_t rows) {
    struct gang_device *d = net->device;
    d->k->norm(d, NULL, net->n, net->rstd_final, s->x_final, NULL, net->parameters + net->norm_final->offset, (float)net->model->config.norm_eps,
               rows, net->C);
}

// Where a tensor's gradient goes, and whether there is one to add to.
static float *gradient(struct gang_net *net, const struct gang_tensor *tensor, bool *add) {
    bool *set = &net->set[tensor - net->model->tensors];
    *add = *set;
    *set = true;
    return net->gradients + tensor->offset;
}

// Losses of the rows that are here; with `scale` also the gradients of the head, and the gradient at the final norm's output in net->n.
static double head_and_loss(struct gang_net *net, const struct slot *s, const float *scale) {
    struct gang_device *d = net->device;
    const struct gang_kernels *k = d->k;
    bool add = false;
    float *dw = scale ? gradient(net, net->head_tensor, &add) : NULL;
    final_norm(net, s, net->S);
    for (int64_t row = 0; row < net->S; row += net->R) {
        int64_t rows = net->S - row < net->R ? net->S - row : net->R;
        void *n = act_at(net, net->n, row * net->C);
        k->linear(d, net->head, net->logits, true, n, rows);
        k->cross_entropy(d, net->losses + row, net->dlogits, net->logits, s->targets + row, scale ? *scale : 0, rows, net->V);
        if (!scale) continue;
        k->linear_weight(d, net->head, dw, net->dlogits, n, add || row > 0, rows);
        k->linear_input(d, net->head, n, net->dlogits, rows);
    }
    double sum = 0;
    for (int64_t m = 0; m < net->S; m++) sum += (double)net->losses[m];
    return sum;
}

// ---- Backward ------------------------------------------------------------------------------------------------------

static void weight_gradient(struct gang_net *net, const struct gang_linear *linear, const struct gang_tensor *tensor, const void *dy, const void *x) {
    bool add;
    float *dw = gradient(net, tensor, &add);
    net->device->k->linear_weight(net->device, linear, dw, dy, x, add, net->M);
}

// Through a norm: adds to net->dx unless it is `first` (then sets it), and leaves it in `rounded` for the product below.
static void norm_gradient(struct gang_net *net, const struct gang_tensor *tensor, bool first, void *rounded, void *dy, const float *x,
                          const float *rstd) {
    bool add;
    float *dw = gradient(net, tensor, &add);
    net->device->k->norm_backward(net->device, net->dx, first ? NULL : net->dx, rounded == net->dx ? NULL : rounded, dy, dw, add, x, rstd,
                                  net->parameters + tensor->offset, net->S, net->C);
}

// net->dx holds the gradient at the layer's output and k->dy_down its rounding; after the input half net->dx holds the
// gradient at the layer's input, and `below` (NULL at the chunk's first layer) its rounding. Roundings are of all rows.
static void backward_layer(struct gang_net *net, const struct layer *l, const struct kept *k, enum gang_half half, void *below) {
    struct gang_device *d = net->device;
    bool input = half != GANG_HALF_WEIGHT, weight = half != GANG_HALF_INPUT;
    if (input) {
        d->k->linear_input(d, l->down, k->h, k->dy_down, net->M);
        d->k->swiglu_backward(d, k->gu, k->h, net->M, net->F);
    }
    if (weight) weight_gradient(net, l->down, l->down_tensor, k->dy_down, k->h);
    if (input) {
        d->k->linear_input(d, l->gate_up, k->n2, k->gu, net->M);
        sum_slices(net, k->n2);
        norm_gradient(net, l->norm2, false, own(net, k->dy_o), own(net, k->n2), k->x2, k->rstd2);
        gather_rows(net, k->n2);
        gather_rows(net, k->dy_o);
    }
    if (weight) weight_gradient(net, l->gate_up, l->gate, k->gu, k->n2);
    if (input) d->k->linear_input(d, l->o, net->dattended, k->dy_o, net->M);
    if (weight) weight_gradient(net, l->o, l->o_tensor, k->dy_o, k->attended);
    if (input) {
        d->k->attention_backward(d, k->dqkv, net->dattended, k->attended, k->lse, k->qkv, &net->attention);
        d->k->linear_input(d, l->qkv, k->n1, k->dqkv, net->M);
        sum_slices(net, k->n1);
        norm_gradient(net, l->norm1, false, below ? own(net, below) : NULL, own(net, k->n1), k->x1, k->rstd1);
        gather_rows(net, k->n1);
        if (below) gather_rows(net, below);
    }
    if (weight) weight_gradient(net, l->qkv, l->q, k->dqkv, k->n1);
}

// The gradient at the chunk's output into net->dx and the last layer's dy_down. Returns the loss.
static double enter_backward(struct gang_net *net, const struct chunk *c, const struct slot *s, float scale, const void *in) {
    void *dy = s->layers[c->to - c->from - 1].dy_down;
    double loss = 0;
    if (c->last) {
        loss = head_and_loss(net, s, &scale);
        norm_gradient(net, net->norm_final, true, own(net, dy), net->n, s->x_final, net->rstd_final);
    } else {
        net->device->k->unpack(net->device, net->dx, dy == net->dx ? NULL : own(net, dy), in, net->shape.message, net->S * net->C);
    }
    gather_rows(net, dy);
    return loss;
}

// net->dx into the embedding, or to the chunk before.
static void leave_backward(struct gang_net *net, const struct chunk *c, const struct slot *s, void *out) {
    struct gang_device *d = net->device;
    if (!c->first) {
        d->k->pack(d, out, net->shape.message, net->dx, NULL, net->S * net->C);
        return;
    }
    bool add;
    float *dembed = gradient(net, net->embed, &add);
    if (!add) memset(dembed, 0, (size_t)(net->embed->rows * net->C) * sizeof *dembed);
    d->k->embed_backward(d, dembed, s->ids, net->dx, net->S, net->C);
}

static void ready(const struct gang_net_hook *hook, int bucket) {
    if (hook) hook->ready(hook->context, bucket);
}

double gang_net_backward(struct gang_net *net, int chunk, int slot, enum gang_half half, float scale, const void *in, void *out,
                         const struct gang_net_hook *hook) {
    struct slot *s = slot_of(net, chunk, slot);
    const struct chunk *c = &net->chunks[chunk];
    bool input = half != GANG_HALF_WEIGHT;
    assert(half == GANG_HALF_BOTH || net->shape.split);
    assert(s->state == (input ? SLOT_FORWARD_DONE : SLOT_INPUT_DONE));
    assert(input ? c->last == !in && c->first == !out : !in && !out);
    assert(half != GANG_HALF_INPUT || !hook);
    int bucket = c->bucket;
    double loss = input ? enter_backward(net, c, s, scale, in) : 0;
    if (c->last) ready(hook, bucket++);
    for (int i = c->to - 1; i >= c->from; i--) {
        const struct layer *l = &net->layers[i];
        const struct kept *k = &s->layers[i - c->from];
        if (input && net->shape.recompute) fill_layer(net, l, k, k->x1, NULL, net->M);
        backward_layer(net, l, k, half, i > c->from ? k[-1].dy_down : NULL);
        ready(hook, bucket++);
    }
    if (input) leave_backward(net, c, s, out);
    if (c->first) ready(hook, bucket);
    s->state = half == GANG_HALF_INPUT ? SLOT_INPUT_DONE : SLOT_EMPTY;
    return loss;
}

void gang_net_begin(struct gang_net *net) { memset(net->set, 0, (size_t)net->model->count * sizeof *net->set); }

// ---- The whole model -----------------------------------------------------------------------------------------------

void gang_net_logits(struct gang_net *net, const int32_t *tokens, float *logits) {
    gang_net_forward(net, 0, 0, tokens, NULL, NULL);
    final_norm(net, &net->chunks->slots[0], net->M);
    for (int64_t row = 0; row < net->M; row += net->R) {
        int64_t rows = net->M - row < net->R ? net->M - row : net->R;
        net->device->k->linear(net->device, net->head, logits + row * net->V, true, act_at(net, net->n, row * net->C), rows);
    }
}

double gang_net_loss(struct gang_net *net, const int32_t *tokens) {
    gang_net_forward(net, 0, 0, tokens, NULL, NULL);
    return head_and_loss(net, &net->chunks->slots[0], NULL);
}

double gang_net_micro_batch(struct gang_net *net, const int32_t *tokens, float scale, bool first) {
    if (first) gang_net_begin(net);
    gang_net_forward(net, 0, 0, tokens, NULL, NULL);
    return gang_net_backward(net, 0, 0, GANG_HALF_BOTH, scale, NULL, NULL, NULL);
}

// ---- Inference -----------------------------------------------------------------------------------------------------

const float *gang_net_feed(struct gang_net *net, const int32_t *tokens, int64_t count) {
    assert(net->shape.inference && count > 0 && net->past + count <= net->shape.length && (count == 1 || net->past == 0));
    struct gang_device *d = net->device;
    struct slot *s = &net->chunks->slots[0];
    d->k->embed(d, s->layers[0].x1, tokens, net->parameters + net->embed->offset, count, net->C);
    const float *x = run_layers(net, net->chunks, s, count);
    int64_t last = (count - 1) * net->C;
    d->k->pack(d, s->x_final, GANG_COMPUTE_F32, x + last, act_at(net, net->delta, last), net->C);
    final_norm(net, s, 1);
    d->k->linear(d, net->head, net->logits, true, net->n, 1);
    net->past += count;
    return net->logits;
}
