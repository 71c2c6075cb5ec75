// The stand-in: waits as long as the device would work. Messages and exchanges carry as many bytes as the real ones; what
// is in them is nobody's business.
#include "rank/cell.h"
#include "rank/internal.h"

#include <math.h>

enum { PIECE = 1 << 20 }; // elements of a bucket at most: all buckets share the same memory

static void wait_for(struct gang_cell *cell, double seconds) {
    const struct gang_stand_in *s = cell->options->stand_in;
    double draw = s->spread * gang_normal_at(cell->options->seed, (uint64_t)cell->options->rank, cell->waits++);
    gang_sleep_until(gang_seconds() + seconds * s->slow * fmax(0, 1 + draw));
}

static int chunk_of(const struct gang_cell *cell, int chunk) { return chunk * cell->stages + cell->options->rank % cell->stages; }

static void begin(struct gang_cell *cell) { (void)cell; }

static void forward(struct gang_cell *cell, int chunk, int slot, const int32_t *tokens, const void *in, void *out) {
    (void)slot, (void)tokens, (void)in, (void)out;
    wait_for(cell, cell->options->stand_in->forward[chunk_of(cell, chunk)]);
}

static double backward(struct gang_cell *cell, int chunk, int slot, enum gang_half half, const void *in, void *out,
                       const struct gang_net_hook *hook) {
    (void)slot, (void)in, (void)out;
    const struct gang_stand_in *s = cell->options->stand_in;
    int c = chunk_of(cell, chunk), buckets = 0;
    double seconds = (half == GANG_HALF_WEIGHT ? 0 : s->input[c]) + (half == GANG_HALF_INPUT ? 0 : s->weight[c]);
    for (int b = 0; hook && b < cell->bucket_count; b++) buckets += cell->buckets[b].chunk == chunk;
    if (!buckets) wait_for(cell, seconds);
    for (int b = 0; buckets && b < cell->bucket_count; b++) {
        if (cell->buckets[b].chunk != chunk) continue;
        wait_for(cell, seconds / buckets);
        hook->ready(hook->context, b);
    }
    return 0;
}

static double sum_squares(struct gang_cell *cell, int64_t offset, int64_t elements) {
    (void)cell, (void)offset, (void)elements;
    return 0;
}

static void update(struct gang_cell *cell, const struct gang_update *u, double norm) {
    (void)u, (void)norm;
    wait_for(cell, cell->options->stand_in->optimizer);
}

static void refresh(struct gang_cell *cell, int bucket) { (void)cell, (void)bucket; }

static const struct gang_cell_kind stand_in = {begin, forward, backward, sum_squares, update, refresh};

static int pieces_of(const struct gang_cell *cell, int chunk) {
    return (int)(((int64_t)cell->options->stand_in->parameters[chunk_of(cell, chunk)] + PIECE - 1) / PIECE);
}

void gang_stand_in_init(struct gang_cell *cell, struct gang_arena *arena) {
    const struct gang_rank_options *o = cell->options;
    int held = o->program->chunks / cell->stages;
    cell->kind = &stand_in;
    cell->message_bytes = (size_t)o->stand_in->message_bytes;
    for (int c = 0; c < held; c++) cell->bucket_count += pieces_of(cell, c);
    cell->buckets = gang_arena_alloc(arena, (size_t)cell->bucket_count * sizeof *cell->buckets);
    for (int c = held - 1, b = 0; c >= 0; c--) {
        int64_t left = (int64_t)o->stand_in->parameters[chunk_of(cell, c)];
        for (; left > 0; left -= PIECE) cell->buckets[b++] = (struct gang_net_bucket){.elements = left < PIECE ? left : PIECE, .chunk = c};
    }
}

enum gang_status gang_stand_in_open(struct gang_cell *cell, struct gang_arena *arena) {
    size_t most = 1;
    for (int b = 0; b < cell->bucket_count; b++) most = (size_t)cell->buckets[b].elements > most ? (size_t)cell->buckets[b].elements : most;
    cell->parameters = gang_arena_alloc(arena, most * sizeof(float));
    cell->gradients = gang_arena_alloc(arena, most * sizeof(float));
    return GANG_OK;
}
