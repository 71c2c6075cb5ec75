// Weights in and out: fresh or from files, and a save that the first device of rank 0 writes. The other cells bring it their tensors;
// where a cell is several devices, its first one puts them together from all their slices.
#include "rank/internal.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum gang_status gang_rank_weights(struct gang_rank *r, const char *dir, bool state) {
    struct gang_net *net = r->cell.net;
    const struct gang_model *model = r->cell.model;
    enum gang_status status = GANG_OK;
    if (!net) return GANG_OK;
    if (!dir)
        gang_model_randomise(model, r->options.seed, r->cell.parameters);
    else if (!state)
        status = gang_model_load(model, dir, r->cell.parameters, NULL);
    else
        status = gang_rank_restore(r, dir);
    if (!status) gang_net_refresh(net);
    return status;
}

// ---- Moments: of a stage, from what each replica owns --------------------------------------------------------------

// The whole stage's array from one that holds only ranges, or the other way round.
static void spread(const struct gang_range *ranges, int count, float *whole, float *compact, bool out) {
    for (int i = 0; i < count; i++) {
        size_t bytes = (size_t)ranges[i].elements * sizeof *whole;
        if (out)
            memcpy(whole + ranges[i].offset, compact, bytes);
        else
            memcpy(compact, whole + ranges[i].offset, bytes);
        compact += ranges[i].elements;
    }
}

enum gang_status gang_rank_restore(struct gang_rank *r, const char *dir) {
    const struct gang_model *model = r->cell.model;
    struct gang_arena arena;
    gang_arena_init(&arena);
    size_t bytes = (size_t)model->elements * sizeof(float);
    void *whole = NULL;
    struct gang_st_part part = {.prefix = gang_save_prefixes[0], .values = r->cell.parameters};
    enum gang_status status = gang_model_restore(model, &part, 1, gang_arena_printf(&arena, "%s/model.safetensors", dir));
    if (!status) status = gang_big_alloc(2 * bytes, &whole);
    if (!status) {
        const struct gang_st_part moments[] = {{.prefix = gang_save_prefixes[1], .values = whole},
                                               {.prefix = gang_save_prefixes[2], .values = (float *)whole + model->elements}};
        status = gang_model_restore(model, moments, 2, gang_arena_printf(&arena, "%s/optimizer.safetensors", dir));
    }
    for (int m = 0; m < 2 && !status; m++)
        spread(r->cell.owned, r->cell.owned_count, (float *)whole + m * model->elements, gang_net_moments(r->cell.net, m), false);
    if (whole) gang_big_free(whole, 2 * bytes);
    gang_arena_release(&arena);
    return status;
}

static int64_t elements_of(const struct gang_range *ranges, int count) {
    int64_t sum = 0;
    for (int i = 0; i < count; i++) sum += ranges[i].elements;
    return sum;
}

static enum gang_status take(struct gang_wire_link *link, void *data, size_t bytes) {
    struct gang_wire_op op = {0};
    enum gang_status status = gang_wire_recv(link, TAG_SAVE, data, bytes, &op);
    return status ? status : gang_wire_wait(&op);
}

static enum gang_status give(struct gang_wire_link *link, const void *data, size_t bytes) {
    struct gang_wire_op op = {0};
    enum gang_status status = gang_wire_send(link, TAG_SAVE, 2, data, bytes, &op);
    return status ? status : gang_wire_wait(&op);
}

// Other replicas bring the first one what they own of the moments; `whole` [2][elements] there.
static enum gang_status collect_moments(struct gang_rank *r, float *whole, struct gang_arena *arena) {
    enum gang_status status = GANG_OK;
    int replicas = r->options.sharded ? r->options.program->replicas : 1;
    if (r->replica > 0) {
        int64_t mine = elements_of(r->cell.owned, r->cell.owned_count);
        for (int m = 0; m < 2 && !status && r->replica < replicas; m++) {
            status = give(gang_rank_link(r, 0, r->stage), gang_net_moments(r->cell.net, m), (size_t)mine * sizeof(float));
        }
        return status;
    }
    assert(whole);
    for (int m = 0; m < 2; m++)
        spread(r->cell.owned, r->cell.owned_count, whole + m * r->cell.model->elements, gang_net_moments(r->cell.net, m), true);
    struct gang_range *ranges = gang_arena_alloc(arena, (size_t)r->cell.bucket_count * sizeof *ranges);
    for (int i = 1; i < replicas && !status; i++) {
        int count = gang_rank_owned(r, i, ranges);
        int64_t theirs = elements_of(ranges, count);
        float *compact = gang_arena_alloc(arena, (size_t)theirs * sizeof *compact);
        for (int m = 0; m < 2 && !status; m++) {
            status = take(gang_rank_link(r, i, r->stage), compact, (size_t)theirs * sizeof *compact);
            if (!status) spread(ranges, count, whole + m * r->cell.model->elements, compact, true);
        }
    }
    return status;
}

// ---- Rank 0 and the stages of its replica --------------------------------------------------------------------------

struct collector {
    struct gang_rank *rank;
    const struct gang_model *whole;       // table of the whole model
    const float *arrays[GANG_SAVE_PARTS]; // of this stage
    float *tensor, *slice;                // whole, from another stage or put together; from another device of the cell
    int64_t next;                         // fetches done: part * tensors + tensor
    enum gang_status status;              // of the wire
};

static int stage_of(const struct gang_rank *r, const struct gang_tensor *t) {
    if (t->role == GANG_ROLE_EMBED) return 0;
    if (t->layer < 0) return r->stages - 1;
    int chunk = 0, end = r->options.layers[0];
    while (t->layer >= end) end += r->options.layers[++chunk];
    return chunk % r->stages;
}

static size_t bytes_of(const struct gang_tensor *t) { return (size_t)(t->rows * t->cols) * sizeof(float); }

// `slice` as the device of this tp_index holds it, where `mine` is the first one's.
static void put_slice(const struct gang_tensor *mine, int tp_index, const float *slice, float *whole) {
    int64_t row = mine->rows < mine->whole_rows ? tp_index * mine->rows : 0, col = mine->cols < mine->whole_cols ? tp_index * mine->cols : 0;
    for (int64_t r = 0; r < mine->rows; r++)
        memcpy(whole + (row + r) * mine->whole_cols + col, slice + r * mine->cols, (size_t)mine->cols * sizeof *whole);
}

// A tensor of this stage, on the first device of its cell.
static enum gang_status put_together(struct collector *c, int part, const struct gang_tensor *t, const float **values) {
    const struct gang_rank *r = c->rank;
    const struct gang_tensor *mine = gang_model_find(r->cell.model, t->role, t->layer);
    enum gang_status status = GANG_OK;
    *values = c->arrays[part] + mine->offset;
    if (!gang_tensor_is_slice(mine)) return GANG_OK;
    put_slice(mine, 0, *values, c->tensor);
    for (int i = 1; i < r->options.tp && !status; i++) {
        status = take(gang_rank_cell_link(r, i), c->slice, bytes_of(mine));
        if (!status) put_slice(mine, i, c->slice, c->tensor);
    }
    *values = c->tensor;
    return status;
}

static enum gang_status fetch(void *context, int index, const float **values) {
    struct collector *c = context;
    struct gang_rank *r = c->rank;
    const struct gang_tensor *t = &c->whole->tensors[index];
    int part = (int)(c->next++ / c->whole->count), stage = stage_of(r, t);
    *values = c->tensor;
    c->status = stage == r->stage ? put_together(c, part, t, values) : take(gang_rank_link(r, 0, stage), c->tensor, bytes_of(t));
    return c->status;
}

static enum gang_status write_save(struct collector *c, const char *output, const struct gang_state *state, const char *tokenizer, int keep,
                                   char *saved, size_t saved_bytes) {
    struct gang_st_part parts[GANG_SAVE_PARTS];
    for (int p = 0; p < GANG_SAVE_PARTS; p++) parts[p] = (struct gang_st_part){.prefix = gang_save_prefixes[p], .fetch = fetch, .context = c};
    enum gang_status status = gang_save_write(output, state, c->whole, parts, tokenizer, keep, saved, saved_bytes);
    char error[GANG_ERROR_BYTES];
    snprintf(error, sizeof error, "%s", status ? gang_error() : "");
    // What the file did not want is under way all the same.
    const float *values;
    while (!c->status && c->next < (int64_t)GANG_SAVE_PARTS * c->whole->count)
        if (fetch(c, (int)(c->next % c->whole->count), &values)) break;
    if (status) gang_error_set("%s", error);
    return status ? status : c->status;
}

// The tensors of this stage to rank 0, in the order in which it asks; on the way, the slices to the first device of the cell.
static enum gang_status bring(struct collector *c) {
    const struct gang_rank *r = c->rank;
    enum gang_status status = GANG_OK;
    for (int p = 0; p < GANG_SAVE_PARTS; p++)
        for (int i = 0; i < c->whole->count && !status; i++) {
            const struct gang_tensor *t = &c->whole->tensors[i];
            if (stage_of(r, t) != r->stage) continue;
            const struct gang_tensor *mine = gang_model_find(r->cell.model, t->role, t->layer);
            const float *values = c->arrays[p] + mine->offset;
            if (r->options.tp_index == 0) {
                status = put_together(c, p, t, &values);
                if (!status) status = give(gang_rank_link(r, 0, 0), values, bytes_of(t));
            } else if (gang_tensor_is_slice(mine)) {
                status = give(gang_rank_cell_link(r, 0), values, bytes_of(mine));
            }
        }
    return status;
}

static void open_collector(struct collector *c) {
    size_t largest = 0;
    for (int i = 0; i < c->whole->count; i++) largest = bytes_of(&c->whole->tensors[i]) > largest ? bytes_of(&c->whole->tensors[i]) : largest;
    assert(largest > 0);
    c->tensor = malloc(largest);
    c->slice = malloc(largest / (size_t)c->rank->options.tp);
    assert(c->tensor && c->slice && "out of memory");
}

enum gang_status gang_rank_save(struct gang_rank *r, const char *output, const struct gang_state *state, const char *tokenizer, int keep, char *saved,
                                size_t saved_bytes) {
    struct gang_model whole;
    struct gang_arena arena;
    void *moments = NULL;
    size_t elements = r->cell.model ? (size_t)r->cell.model->elements : 0, bytes = 2 * elements * sizeof(float);
    enum gang_status status = gang_rank_settle(r);
    if (status || !r->cell.net) return status;
    gang_arena_init(&arena);
    gang_model_init(&whole, r->options.config, &arena);
    if (r->replica == 0) status = gang_big_alloc(bytes, &moments);
    if (!status) status = collect_moments(r, moments, &arena);
    struct collector c = {.rank = r, .whole = &whole, .arrays = {r->cell.parameters, moments, (float *)moments + elements}};
    bool writes = r->options.rank == 0 && r->options.tp_index == 0;
    if (!status && r->replica == 0) {
        open_collector(&c);
        status = writes ? write_save(&c, output, state, tokenizer, keep, saved, saved_bytes) : bring(&c);
    }
    free(c.tensor);
    free(c.slice);
    if (moments) gang_big_free(moments, bytes);
    gang_arena_release(&arena);
    return status;
}
