// The network as a cell: a stage's share of the model on a device.
#include "rank/cell.h"
#include "rank/internal.h"

#include <assert.h>

static void begin(struct gang_cell *cell) { gang_net_begin(cell->net); }

static void forward(struct gang_cell *cell, int chunk, int slot, const int32_t *tokens, const void *in, void *out) {
    gang_net_forward(cell->net, chunk, slot, tokens, in, out);
}

static double backward(struct gang_cell *cell, int chunk, int slot, enum gang_half half, const void *in, void *out,
                       const struct gang_net_hook *hook) {
    return gang_net_backward(cell->net, chunk, slot, half, cell->scale, in, out, hook);
}

// What all devices of the cell hold alike counts on the first.
static double sum_squares(struct gang_cell *cell, int64_t offset, int64_t elements) {
    if (cell->options->tp_index == 0) return gang_net_sum_squares(cell->net, offset, elements);
    double sum = 0;
    for (int i = 0; i < cell->model->count; i++) {
        const struct gang_tensor *t = &cell->model->tensors[i];
        int64_t from = t->offset, to = from + t->rows * t->cols;
        if (from < offset) from = offset;
        if (to > offset + elements) to = offset + elements;
        if (gang_tensor_is_slice(t) && from < to) sum += gang_net_sum_squares(cell->net, from, to - from);
    }
    return sum;
}

static void update(struct gang_cell *cell, const struct gang_update *u, double norm) {
    int ranges = cell->owned_count;
    for (int i = 0; i < ranges; i++) gang_net_adamw(cell->net, i, u, norm);
}

static void refresh(struct gang_cell *cell, int bucket) { gang_net_refresh_bucket(cell->net, bucket); }

static const struct gang_cell_kind net_cell = {begin, forward, backward, sum_squares, update, refresh};

void gang_net_cell_init(struct gang_cell *cell, struct gang_arena *arena, struct gang_net_shape *shape, const struct gang_net_chunk *chunks) {
    const struct gang_rank_options *o = cell->options;
    bool *layers = gang_arena_alloc(arena, (size_t)o->config->layers * sizeof *layers);
    for (int c = 0; c < shape->chunk_count; c++)
        for (int l = chunks[c].from; l < chunks[c].to; l++) layers[l] = true;
    int stage = o->rank % cell->stages;
    const struct gang_model_part part = {
        .layers = layers, .embed = stage == 0, .head = stage == cell->stages - 1, .tp = o->tp, .tp_index = o->tp_index};
    cell->kind = &net_cell;
    cell->model = gang_arena_alloc(arena, sizeof *cell->model);
    gang_model_init_part(cell->model, o->config, &part, arena);
    cell->bucket_count = gang_net_buckets(cell->model, shape, NULL);
    cell->buckets = gang_arena_alloc(arena, (size_t)cell->bucket_count * sizeof *cell->buckets);
    gang_net_buckets(cell->model, shape, cell->buckets);
    int64_t rows = shape->batch * o->length / (o->sequence_parallel ? o->tp : 1);
    cell->message_bytes = (size_t)(rows * o->config->hidden_size) * (shape->message == GANG_COMPUTE_F32 ? 4 : 2);
}

enum gang_status gang_net_cell_open(struct gang_cell *cell, const struct gang_net_shape *shape) {
    enum gang_status status = gang_net_new(cell->model, cell->options->device, shape, &cell->net);
    if (status) return status;
    assert(gang_net_message_bytes(cell->net) == cell->message_bytes);
    cell->parameters = gang_net_parameters(cell->net);
    cell->gradients = gang_net_gradients(cell->net);
    return GANG_OK;
}
