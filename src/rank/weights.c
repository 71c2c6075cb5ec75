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

// What another replica owns of the two moments, on its way.
struct moments {
    struct gang_stream stream;
    struct gang_range *ranges;
    int count;
    size_t sizes[2];
};

static enum gang_status expect_moments(struct gang_rank *r, int replica, struct moments *m) {
    m->count = gang_rank_owned(r, replica, m->ranges);
    m->sizes[0] = m->sizes[1] = (size_t)elements_of(m->ranges, m->count) * sizeof(float);
    gang_stream_init(&m->stream, gang_rank_link(r, replica, r->stage));
    return gang_stream_expect(&m->stream, m->sizes, 2);
}

// The others' of the first replica, the next replica's always expected before one's are taken.
static enum gang_status take_moments(struct gang_rank *r, int replicas, float *whole, struct gang_arena *arena) {
    struct moments *both = gang_arena_alloc(arena, 2 * sizeof *both);
    for (int i = 0; i < 2; i++) both[i].ranges = gang_arena_alloc(arena, (size_t)r->cell.bucket_count * sizeof *both[i].ranges);
    enum gang_status status = replicas > 1 ? expect_moments(r, 1, &both[1]) : GANG_OK;
    for (int i = 1; i < replicas && !status; i++) {
        struct moments *now = &both[i % 2];
        if (i + 1 < replicas) status = expect_moments(r, i + 1, &both[(i + 1) % 2]);
        for (int m = 0; m < 2 && !status; m++) {
            float *compact = NULL;
            status = gang_stream_take(&now->stream, &compact);
            if (!status) spread(now->ranges, now->count, whole + m * r->cell.model->elements, compact, true);
        }
        status = gang_stream_close(&now->stream, status);
    }
    for (int i = 0; i < 2; i++) status = gang_stream_close(&both[i].stream, status);
    return status;
}

// Other replicas bring the first one what they own of the moments; `whole` [2][elements] there.
static enum gang_status collect_moments(struct gang_rank *r, float *whole, struct gang_arena *arena) {
    enum gang_status status = GANG_OK;
    int replicas = r->options.sharded ? r->options.program->replicas : 1;
    if (r->replica > 0) {
        struct gang_stream out;
        size_t bytes = (size_t)elements_of(r->cell.owned, r->cell.owned_count) * sizeof(float);
        gang_stream_init(&out, gang_rank_link(r, 0, r->stage));
        for (int m = 0; m < 2 && !status && r->replica < replicas; m++)
            status = gang_stream_give(&out, gang_net_moments(r->cell.net, m), bytes, NULL);
        return gang_stream_close(&out, status);
    }
    assert(whole);
    for (int m = 0; m < 2; m++)
        spread(r->cell.owned, r->cell.owned_count, whole + m * r->cell.model->elements, gang_net_moments(r->cell.net, m), true);
    return take_moments(r, replicas, whole, arena);
}

// ---- Rank 0 and the stages of its replica --------------------------------------------------------------------------

struct collector {
    struct gang_rank *rank;
    const struct gang_model *whole;       // table of the whole model
    const float *arrays[GANG_SAVE_PARTS]; // of this stage
    struct gang_stream *stages;           // [stages] from the others, where this device writes
    struct gang_stream *slices;           // [tp] from the others of the cell, on its first device
    struct gang_stream out;               // to the one that writes, or to the cell's first
    float *tensor;                        // put together, in the writer's hands
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

// A tensor of this stage, on the first device of its cell. *own: a buffer for the caller to free, where it had to be put together.
static enum gang_status put_together(struct collector *c, int part, const struct gang_tensor *t, float **own, const float **values) {
    const struct gang_rank *r = c->rank;
    const struct gang_tensor *mine = gang_model_find(r->cell.model, t->role, t->layer);
    enum gang_status status = GANG_OK;
    *own = NULL;
    *values = c->arrays[part] + mine->offset;
    if (!gang_tensor_is_slice(mine)) return GANG_OK;
    *own = malloc(bytes_of(t));
    assert(*own && "out of memory");
    put_slice(mine, 0, *values, *own);
    for (int i = 1; i < r->options.tp && !status; i++) {
        float *slice = NULL;
        status = gang_stream_take(&c->slices[i], &slice);
        if (!status) put_slice(mine, i, slice, *own);
    }
    *values = *own;
    return status;
}

static enum gang_status fetch(void *context, int index, const float **values) {
    struct collector *c = context;
    struct gang_rank *r = c->rank;
    const struct gang_tensor *t = &c->whole->tensors[index];
    int part = (int)(c->next++ / c->whole->count), stage = stage_of(r, t);
    free(c->tensor);
    c->tensor = NULL;
    float *theirs = NULL;
    c->status = stage == r->stage ? put_together(c, part, t, &c->tensor, values) : gang_stream_take(&c->stages[stage], &theirs);
    if (stage != r->stage) *values = theirs;
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
            float *own = NULL;
            if (r->options.tp_index == 0) {
                status = put_together(c, p, t, &own, &values);
                if (status)
                    free(own);
                else // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): the stream owns what it is given
                    status = gang_stream_give(&c->out, values, bytes_of(t), own);
            } else if (gang_tensor_is_slice(mine)) {
                status = gang_stream_give(&c->out, values, bytes_of(mine), NULL);
            }
        }
    return status;
}

// The tensors of a stage, in the order in which they are asked for; of this one, the slices that another device of the cell holds.
static enum gang_status expect(struct collector *c, struct gang_stream *stream, struct gang_wire_link *link, int stage, struct gang_arena *arena) {
    const struct gang_rank *r = c->rank;
    size_t *sizes = gang_arena_alloc(arena, (size_t)GANG_SAVE_PARTS * (size_t)c->whole->count * sizeof *sizes);
    int64_t count = 0;
    for (int p = 0; p < GANG_SAVE_PARTS; p++)
        for (int i = 0; i < c->whole->count; i++) {
            const struct gang_tensor *t = &c->whole->tensors[i], *mine = NULL;
            if (stage_of(r, t) != stage) continue;
            if (stage == r->stage) mine = gang_model_find(r->cell.model, t->role, t->layer);
            if (!mine || gang_tensor_is_slice(mine)) sizes[count++] = bytes_of(mine ? mine : t);
        }
    gang_stream_init(stream, link);
    return gang_stream_expect(stream, sizes, count);
}

static enum gang_status open_streams(struct collector *c, bool writes, struct gang_arena *arena) {
    struct gang_rank *r = c->rank;
    enum gang_status status = GANG_OK;
    int tp = r->options.tp;
    c->stages = gang_arena_alloc(arena, (size_t)r->stages * sizeof *c->stages);
    c->slices = gang_arena_alloc(arena, (size_t)tp * sizeof *c->slices);
    gang_stream_init(&c->out, r->options.tp_index ? gang_rank_cell_link(r, 0) : writes ? NULL : gang_rank_link(r, 0, 0));
    for (int s = 0; s < r->stages && writes && !status; s++)
        if (s != r->stage) status = expect(c, &c->stages[s], gang_rank_link(r, 0, s), s, arena);
    for (int i = 1; i < tp && r->options.tp_index == 0 && !status; i++) status = expect(c, &c->slices[i], gang_rank_cell_link(r, i), r->stage, arena);
    return status;
}

static enum gang_status close_streams(struct collector *c, enum gang_status status) {
    for (int s = 0; s < c->rank->stages; s++) status = gang_stream_close(&c->stages[s], status);
    for (int i = 0; i < c->rank->options.tp; i++) status = gang_stream_close(&c->slices[i], status);
    free(c->tensor);
    return gang_stream_close(&c->out, status);
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
        status = open_streams(&c, writes, &arena);
        if (!status) status = writes ? write_save(&c, output, state, tokenizer, keep, saved, saved_bytes) : bring(&c);
        status = close_streams(&c, status);
    }
    if (moments) gang_big_free(moments, bytes);
    gang_arena_release(&arena);
    return status;
}
