// Messages between stages: slots on both sides, receives posted ahead in the order in which the peer's program sends. And what the chunks of
// one stage hand each other.
#include "rank/internal.h"

#include <assert.h>
#include <string.h>

enum { PRIORITY = 1 };

static int *entry_of(const struct gang_channel *c, int chunk, int micro) { return &c->index[chunk * c->micro_batches + micro]; }

bool gang_channel_init(struct gang_channel *c, const struct gang_program *program, int sender, int receiver, int gradient, bool sends, size_t bytes,
                       const struct gang_parts *parts, struct gang_arena *arena) {
    const struct gang_rank_program *from = &program->ranks[sender];
    int64_t micro_batches = program->micro_batches[sender / program->stages], entries = program->chunks * micro_batches;
    *c = (struct gang_channel){.parts = *parts,
                               .sends = sends,
                               .peer = sends ? receiver : sender,
                               .gradient = gradient,
                               .tag = gradient ? TAG_GRADIENT : TAG_ACTIVATION,
                               .micro_batches = micro_batches,
                               .bytes = bytes};
    for (int i = 0; i < from->count; i++) {
        const struct gang_instruction *in = &from->items[i];
        if (in->op != GANG_OP_SEND || in->peer != receiver || in->gradient != gradient) continue;
        if (!c->index) {
            c->index = gang_arena_alloc(arena, (size_t)entries * sizeof *c->index);
            memset(c->index, -1, (size_t)entries * sizeof *c->index);
        }
        *entry_of(c, in->chunk, in->micro) = c->count++;
    }
    if (!c->count) return false;
    c->slots = program->buffers < c->count ? program->buffers : c->count;
    c->links = gang_arena_alloc(arena, (size_t)(parts->count + 1) * sizeof *c->links);
    c->ops = gang_arena_alloc(arena, (size_t)(c->slots * parts->count + 1) * sizeof *c->ops);
    c->free = gang_arena_alloc(arena, (size_t)c->slots * sizeof *c->free);
    c->slot_of = gang_arena_alloc(arena, (size_t)c->count * sizeof *c->slot_of);
    memset(c->slot_of, -1, (size_t)c->count * sizeof *c->slot_of);
    for (int s = 0; s < c->slots; s++) c->free[c->free_count++] = c->slots - 1 - s;
    return true;
}

static int send_slot(const struct gang_channel *c, int64_t step, int chunk, int micro) {
    return (int)((step * c->count + *entry_of(c, chunk, micro)) % c->slots);
}

static struct gang_wire_op *op_of(const struct gang_channel *c, int slot, int part) { return &c->ops[slot * c->parts.count + part]; }

static char *bytes_of(const struct gang_channel *c, int slot, int part) {
    return c->memory + (size_t)slot * c->bytes + (size_t)part * c->parts.stride;
}

static enum gang_status wait_for(const struct gang_channel *c, int slot) {
    enum gang_status status = GANG_OK;
    for (int i = 0; i < c->parts.count && !status; i++) {
        struct gang_wire_op *op = op_of(c, slot, i);
        if (op->link) status = gang_wire_wait(op);
    }
    return status;
}

enum gang_status gang_channel_room(struct gang_channel *c, int64_t step, int chunk, int micro, void **out) {
    int slot = send_slot(c, step, chunk, micro);
    *out = bytes_of(c, slot, 0);
    enum gang_status status = wait_for(c, slot);
    for (int i = 0; i < c->parts.count && !status; i++) *op_of(c, slot, i) = (struct gang_wire_op){0};
    return status;
}

enum gang_status gang_channel_send(struct gang_channel *c, int64_t step, int chunk, int micro) {
    int slot = send_slot(c, step, chunk, micro);
    enum gang_status status = GANG_OK;
    for (int i = 0; i < c->parts.count && !status; i++)
        status = gang_wire_send(c->links[i], c->tag, PRIORITY, bytes_of(c, slot, i), c->parts.bytes, op_of(c, slot, i));
    return status;
}

enum gang_status gang_channel_post(struct gang_channel *c) {
    while (c->free_count) {
        int entry = (int)(c->next % c->count);
        if (c->slot_of[entry] >= 0) break; // of the step before, not taken yet
        int slot = c->free[--c->free_count];
        for (int i = 0; i < c->parts.count; i++) {
            *op_of(c, slot, i) = (struct gang_wire_op){0};
            enum gang_status status = gang_wire_recv(c->links[i], c->tag, bytes_of(c, slot, i), c->parts.bytes, op_of(c, slot, i));
            if (status) return status;
        }
        c->slot_of[entry] = slot;
        c->next++;
    }
    return GANG_OK;
}

enum gang_status gang_channel_take(struct gang_channel *c, int chunk, int micro, const void **out) {
    int slot = c->slot_of[*entry_of(c, chunk, micro)];
    assert(slot >= 0 && "the verifier has proved that the program's buffers suffice");
    *out = bytes_of(c, slot, 0);
    return wait_for(c, slot);
}

enum gang_status gang_channel_release(struct gang_channel *c, int chunk, int micro) {
    int *slot = &c->slot_of[*entry_of(c, chunk, micro)];
    c->free[c->free_count++] = *slot;
    *slot = -1;
    return gang_channel_post(c);
}

// ---- From chunk to chunk -------------------------------------------------------------------------------------------

static int16_t *handed(const struct gang_handoff *h, bool gradient, int64_t chunk, int64_t micro) {
    return &h->slot_of[((gradient ? h->chunks : 0) + chunk) * h->micro_batches + micro];
}

// A pass leaves something for the next chunk before what it came from is free again.
void gang_handoff_init(struct gang_handoff *h, const struct gang_rank_program *program, int chunks, int64_t micro_batches, size_t bytes,
                       struct gang_arena *arena) {
    *h = (struct gang_handoff){.micro_batches = micro_batches, .chunks = chunks, .bytes = bytes};
    size_t entries = 2 * (size_t)chunks * (size_t)micro_batches;
    h->slot_of = gang_arena_alloc(arena, entries * sizeof *h->slot_of);
    bool *taken = gang_arena_alloc(arena, entries + 1);
    for (int i = 0; i < program->count; i++) {
        const struct gang_instruction *in = &program->items[i];
        bool forward = in->op == GANG_OP_FORWARD;
        if (!forward && in->op != GANG_OP_BACKWARD && in->op != GANG_OP_BACKWARD_INPUT) continue;
        int from = forward ? in->chunk - 1 : in->chunk + 1, to = forward ? in->chunk + 1 : in->chunk - 1, s = 0;
        if (to >= 0 && to < chunks) {
            while (taken[s]) s++;
            taken[s] = true;
            *handed(h, !forward, in->chunk, in->micro) = (int16_t)s;
            if (s >= h->slots) h->slots = s + 1;
        }
        if (from >= 0 && from < chunks) taken[*handed(h, !forward, from, in->micro)] = false;
    }
}

void *gang_handoff_at(const struct gang_handoff *h, bool gradient, int chunk, int micro) {
    int slot = *handed(h, gradient, chunk, micro);
    assert(slot < h->slots);
    return h->memory + (size_t)slot * h->bytes;
}
