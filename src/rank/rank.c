// Setting a rank up: what it holds, with whom it talks, where its messages lie.
#include "rank/internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int gang_rank_device(const struct gang_program *p, const int *widths, int rank) {
    int all = 0, before = 0;
    for (int s = 0; s < p->stages; s++) {
        if (s < rank % p->stages) before += widths[s];
        all += widths[s];
    }
    return rank / p->stages * all + before;
}

struct gang_rank_place gang_rank_place(const struct gang_program *p, const int *widths, int device) {
    int all = gang_rank_device(p, widths, p->stages), at = device % all, stage = 0;
    for (; at >= widths[stage]; stage++) at -= widths[stage];
    return (struct gang_rank_place){device / all * p->stages + stage, at};
}

bool gang_rank_talks_to(const struct gang_program *p, const int *widths, int device, int other) {
    struct gang_rank_place a = gang_rank_place(p, widths, device), b = gang_rank_place(p, widths, other);
    int s = a.rank % p->stages, t = b.rank % p->stages;
    if (a.rank == b.rank) return a.tp_index != b.tp_index;
    if (s == t) return a.tp_index == b.tp_index;
    if (a.rank / p->stages != b.rank / p->stages) return false;
    if (a.tp_index == 0 && b.tp_index == 0) return true;
    if (widths[s] % widths[t] == 0) return a.tp_index / (widths[s] / widths[t]) == b.tp_index;
    return widths[t] % widths[s] == 0 && b.tp_index / (widths[t] / widths[s]) == a.tp_index;
}

static int device_of(const struct gang_rank *r, int replica, int stage) {
    return gang_rank_device(r->options.program, r->options.widths, replica * r->stages + stage);
}

struct gang_wire_link *gang_rank_link(const struct gang_rank *r, int replica, int stage) {
    return r->options.links[device_of(r, replica, stage) + r->options.tp_index];
}

struct gang_wire_link *gang_rank_cell_link(const struct gang_rank *r, int tp_index) {
    return r->options.links[device_of(r, r->replica, r->stage) + tp_index];
}

// ---- Activation slots ----------------------------------------------------------------------------------------------

// Gives every compute instruction the slot of its micro-batch's activations: taken at the forward, free again after the
// weights' backward. Returns in most[chunk of the stage] how many a chunk needs.
static void assign_slots(struct gang_rank *r, int *most) {
    int held = r->chunks / r->stages;
    size_t entries = (size_t)held * (size_t)r->micro_batches;
    int16_t *slot = gang_arena_alloc(&r->arena, entries * sizeof *slot);
    bool *taken = gang_arena_alloc(&r->arena, entries);
    r->slots = gang_arena_alloc(&r->arena, (size_t)r->program->count * sizeof *r->slots);
    for (int i = 0; i < r->program->count; i++) {
        const struct gang_instruction *in = &r->program->items[i];
        if (!gang_ops[in->op].compute || in->op == GANG_OP_OPTIMIZER) continue;
        int c = in->chunk / r->stages;
        int64_t base = c * r->micro_batches, s = 0;
        if (in->op == GANG_OP_FORWARD) {
            while (taken[base + s]) s++;
            taken[base + s] = true;
            slot[base + in->micro] = (int16_t)s;
            if (s >= most[c]) most[c] = (int)s + 1;
        }
        r->slots[i] = slot[base + in->micro];
        if (in->op == GANG_OP_BACKWARD || in->op == GANG_OP_BACKWARD_WEIGHT) taken[base + r->slots[i]] = false;
    }
}

static bool is_split(const struct gang_rank_program *program) {
    for (int i = 0; i < program->count; i++)
        if (program->items[i].op == GANG_OP_BACKWARD_WEIGHT) return true;
    return false;
}

static struct gang_net_chunk *cut(struct gang_rank *r) {
    int held = r->chunks / r->stages, from = 0;
    struct gang_net_chunk *chunks = gang_arena_alloc(&r->arena, (size_t)held * sizeof *chunks);
    int *most = gang_arena_alloc(&r->arena, (size_t)held * sizeof *most);
    assign_slots(r, most);
    for (int c = 0; c < r->chunks; c++) {
        if (c % r->stages == r->stage)
            chunks[c / r->stages] = (struct gang_net_chunk){.from = from, .to = from + r->options.layers[c], .slots = most[c / r->stages]};
        from += r->options.layers[c];
    }
    return chunks;
}

// ---- What it owns --------------------------------------------------------------------------------------------------

static void find_tied(struct gang_rank *r) {
    const struct gang_config *config = r->options.config;
    r->tied_bucket = -1;
    if (!config || !config->tied || r->stages == 1 || !r->options.device) return;
    r->tied_first = r->stage == 0;
    r->tied_last = r->stage == r->stages - 1;
    if (!r->tied_first && !r->tied_last) return;
    assert(r->options.widths[0] == r->options.widths[r->stages - 1]);
    const struct gang_tensor *embed = gang_model_find(r->cell.model, GANG_ROLE_EMBED, -1);
    r->tied_offset = embed->offset;
    r->tied_elements = (size_t)(embed->rows * embed->cols);
    for (int b = 0; b < r->cell.bucket_count; b++)
        if (r->cell.buckets[b].offset <= embed->offset && embed->offset < r->cell.buckets[b].offset + r->cell.buckets[b].elements) r->tied_bucket = b;
    assert(r->tied_bucket >= 0);
    // The copy is the first stage's to update: of the head's bucket only the norm before it is exchanged and owned.
    struct gang_net_bucket *head = &r->cell.buckets[r->tied_bucket];
    if (r->tied_last) head->elements = r->tied_offset - head->offset;
}

// The same cut as the stage's group makes: gang_comm_part.
static struct gang_range part_of(const struct gang_net_bucket *b, int members, int me) {
    int64_t base = b->elements / members, more = b->elements % members;
    return (struct gang_range){b->offset + me * base + (me < more ? me : more), base + (me < more)};
}

static int by_offset(const void *a, const void *b) {
    int64_t x = ((const struct gang_range *)a)->offset, y = ((const struct gang_range *)b)->offset;
    return (x > y) - (x < y);
}

int gang_rank_owned(const struct gang_rank *r, int replica, struct gang_range *out) {
    int count = 0, members = r->options.sharded ? r->options.program->replicas : 1;
    for (int b = 0; b < r->cell.bucket_count; b++) {
        struct gang_range part = part_of(&r->cell.buckets[b], members, members > 1 ? replica : 0);
        if (part.elements) out[count++] = part;
    }
    qsort(out, (size_t)count, sizeof *out, by_offset);
    return count;
}

// ---- Messages ------------------------------------------------------------------------------------------------------

static struct gang_parts parts_of(const struct gang_rank *r, int stage, bool sends) {
    const struct gang_rank_options *o = &r->options;
    int mine = o->tp, theirs = o->widths[stage], index = o->tp_index;
    size_t bytes = r->cell.message_bytes;
    if (mine >= theirs) {
        int more = mine / theirs;
        return (struct gang_parts){index / more, !sends || o->sequence_parallel || index % more == 0, bytes, 0};
    }
    int more = theirs / mine;
    if (o->sequence_parallel) return (struct gang_parts){index * more, more, bytes / (size_t)more, bytes / (size_t)more};
    return (struct gang_parts){index * more, sends ? more : 1, bytes, 0};
}

static void add_channel(struct gang_rank *r, int sender, int receiver, int gradient) {
    struct gang_channel *c = &r->channels[r->channel_count];
    bool sends = sender == r->options.rank;
    const struct gang_parts parts = parts_of(r, (sends ? receiver : sender) % r->stages, sends);
    if (!gang_channel_init(c, r->options.program, sender, receiver, gradient, sends, r->cell.message_bytes, &parts, &r->arena)) return;
    r->message_memory += gang_channel_memory(c);
    r->channel_count++;
}

static void find_channels(struct gang_rank *r) {
    if (r->stages == 1) {
        gang_handoff_init(&r->handoff, r->program, r->chunks, r->micro_batches, r->cell.message_bytes, &r->arena);
        r->message_memory = (size_t)r->handoff.slots * r->handoff.bytes;
    }
    int me = r->options.rank, base = r->replica * r->stages;
    int before = base + (r->stage + r->stages - 1) % r->stages, after = base + (r->stage + 1) % r->stages;
    for (int gradient = 0; gradient < 2 && r->stages > 1; gradient++) {
        add_channel(r, me, after, gradient);
        add_channel(r, after, me, gradient);
        if (before == after) continue;
        add_channel(r, me, before, gradient);
        add_channel(r, before, me, gradient);
    }
}

// ---- The cell ------------------------------------------------------------------------------------------------------

// A pass cannot end in its middle: after an error it goes on with what there is, and the step ends behind it.
static void exchange(struct gang_rank *r, enum gang_status (*collective)(struct gang_comm *, void *, size_t, enum gang_element), void *data,
                     int64_t elements, enum gang_compute type) {
    double began = gang_seconds();
    enum gang_element element = type == GANG_COMPUTE_F32 ? GANG_ELEMENT_F32 : GANG_ELEMENT_BF16;
    if (!r->exchange_status) r->exchange_status = collective(r->cell_group, data, (size_t)elements, element);
    r->exchange_seconds += gang_seconds() - began;
}

static void sum_over_cell(void *context, void *data, int64_t elements, enum gang_compute type) {
    struct gang_rank *r = context;
    exchange(r, r->exchange.rows ? gang_reduce_scatter : gang_all_reduce, data, elements, type);
}

static void gather_over_cell(void *context, void *data, int64_t elements, enum gang_compute type) {
    exchange(context, gang_all_gather, data, elements, type);
}

// ---- Up and down ---------------------------------------------------------------------------------------------------

static void init(struct gang_rank *r, const struct gang_rank_options *o) {
    const struct gang_program *p = o->program;
    *r = (struct gang_rank){.options = *o,
                            .program = &p->ranks[o->rank],
                            .stages = p->stages,
                            .stage = o->rank % p->stages,
                            .replica = o->rank / p->stages,
                            .chunks = p->chunks};
    assert(o->tp == o->widths[r->stage] && o->tp_index >= 0 && o->tp_index < o->tp);
    gang_arena_init(&r->arena);
    r->batch = p->sizes[r->replica];
    r->micro_batches = p->micro_batches[r->replica];
    for (int i = 0; i < p->replicas; i++) {
        if (i == r->replica) r->first_sample = r->samples;
        r->samples += p->micro_batches[i] * p->sizes[i];
    }
    struct gang_cell *cell = &r->cell;
    *cell = (struct gang_cell){.options = &r->options, .stages = p->stages, .scale = 1 / (float)(r->samples * o->length)};
    const struct gang_net_chunk *chunks = cut(r);
    r->shape = (struct gang_net_shape){.batch = r->batch,
                                       .length = o->length,
                                       .chunk_count = p->chunks / p->stages,
                                       .chunks = chunks,
                                       .split = is_split(r->program),
                                       .recompute = o->recompute,
                                       .message = p->stages > 1 ? o->message : GANG_COMPUTE_F32}; // what stays here is not rounded
    r->exchange = (struct gang_net_cell){r, o->sequence_parallel, sum_over_cell, gather_over_cell};
    if (o->tp > 1) r->shape.cell = &r->exchange;
    if (o->device)
        gang_net_cell_init(cell, &r->arena, &r->shape, chunks);
    else
        gang_stand_in_init(cell, &r->arena);
    find_tied(r);
    cell->owned = gang_arena_alloc(&r->arena, (size_t)cell->bucket_count * sizeof *cell->owned);
    cell->owned_count = gang_rank_owned(r, r->replica, cell->owned);
    if (o->device) r->shape.owned = cell->owned, r->shape.owned_count = cell->owned_count;
    find_channels(r);
}

void gang_rank_memory(const struct gang_rank_options *options, struct gang_rank_memory *out) {
    struct gang_rank r;
    init(&r, options);
    *out = (struct gang_rank_memory){.messages = r.message_memory};
    if (options->device) gang_net_memory(r.cell.model, options->device, &r.shape, &out->net);
    out->total = out->net.total + out->messages;
    gang_arena_release(&r.arena);
}

// The stage's group, and over several sites, where replicas exchange inside each first, the lane's others.
static enum gang_status open_lane(struct gang_rank *r, struct gang_wire_link *const *links, int replicas) {
    int sites[GANG_COMM_MEMBERS], unlike = 0;
    enum gang_status status = GANG_OK;
    for (int i = 0; i < replicas && r->options.sites; i++) {
        sites[i] = r->options.sites[device_of(r, i, r->stage)];
        unlike += sites[i] != sites[0];
    }
    for (int w = 0; w < (unlike ? LANE_WAYS : 1) && !status; w++) {
        uint32_t tag = w ? TAG_LANE_GROUPS + (uint32_t)(w * GANG_COMM_TAGS) : TAG_STAGE_GROUP;
        status = gang_comm_new(r->options.wire, links, replicas, r->replica, tag, &r->lane.groups[w]);
        if (status) break;
        r->lane.ways++;
        if (unlike) status = gang_comm_sites(r->lane.groups[w], sites);
    }
    r->stage_group = r->lane.groups[0];
    return status;
}

// The groups of the replicas of this stage, of the stages of this replica (of their cells' first devices), and of the cell.
static enum gang_status open_groups(struct gang_rank *r) {
    struct gang_wire_link *links[GANG_COMM_MEMBERS];
    int replicas = r->options.program->replicas, tp = r->options.tp;
    if (replicas > GANG_COMM_MEMBERS || r->stages > GANG_COMM_MEMBERS || tp > GANG_COMM_MEMBERS)
        return gang_fail(GANG_ERR_UNSUPPORTED, "run: %d replicas of %d stages of %d devices: at most %d of each run today", replicas, r->stages, tp,
                         GANG_COMM_MEMBERS);
    for (int i = 0; i < replicas; i++) links[i] = gang_rank_link(r, i, r->stage);
    enum gang_status status = GANG_OK;
    if (replicas > 1) status = open_lane(r, links, replicas);
    bool first = r->options.tp_index == 0;
    for (int s = 0; s < r->stages && first; s++) links[s] = gang_rank_link(r, r->replica, s);
    if (!status && r->stages > 1 && first) status = gang_comm_new(r->options.wire, links, r->stages, r->stage, TAG_REPLICA_GROUP, &r->replica_group);
    for (int i = 0; i < tp; i++) links[i] = gang_rank_cell_link(r, i);
    if (!status && tp > 1) status = gang_comm_new(r->options.wire, links, tp, r->options.tp_index, TAG_CELL_GROUP, &r->cell_group);
    return status;
}

static enum gang_status open_channels(struct gang_rank *r) {
    enum gang_status status = r->message_memory ? gang_big_alloc(r->message_memory, &r->messages) : GANG_OK;
    char *at = r->handoff.memory = r->messages;
    for (int i = 0; i < r->channel_count && !status; i++) {
        struct gang_channel *c = &r->channels[i];
        c->memory = at;
        int peer = device_of(r, r->replica, c->peer % r->stages) + c->parts.first;
        for (int k = 0; k < c->parts.count; k++) c->links[k] = r->options.links[peer + k];
        at += gang_channel_memory(c);
        if (!c->sends) status = gang_channel_post(c);
    }
    return status;
}

// With other replicas every chunk is reduced, and gathered where the state is sharded.
static enum gang_status check_exchanges(const struct gang_rank_options *o) {
    const struct gang_program *p = o->program;
    const struct gang_rank_program *mine = &p->ranks[o->rank];
    int reduces = 0, gathers = 0, due = p->replicas > 1 ? p->chunks / p->stages : 0;
    for (int i = 0, before = -1; i < mine->count; i++) {
        const struct gang_instruction *in = &mine->items[i];
        reduces += in->op == GANG_OP_REDUCE;
        if (in->op != GANG_OP_GATHER) continue;
        if (in->chunk < before)
            return gang_fail(GANG_ERR_INPUT, "program: rank %d gathers chunk %d after %d: replicas must gather in one order, the first chunk first",
                             o->rank, in->chunk, before);
        before = in->chunk;
        gathers++;
    }
    if (reduces >= due && (gathers == due || !o->sharded)) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT, "program: rank %d reduces %d chunks and gathers %d: %d replicas of its %d chunks need one of each%s", o->rank,
                     reduces, gathers, p->replicas, p->chunks / p->stages, o->sharded ? "" : " (gathers only with zero=1)");
}

enum gang_status gang_rank_new(const struct gang_rank_options *options, struct gang_rank **out) {
    *out = NULL;
    enum gang_status status = check_exchanges(options);
    if (status) return status;
    struct gang_rank *r = malloc(sizeof *r);
    assert(r && "out of memory");
    init(r, options);
    r->tokens = gang_arena_alloc(&r->arena, (size_t)(r->batch * (options->length + 1)) * sizeof *r->tokens);
    r->chunk_fresh = gang_arena_alloc(&r->arena, (size_t)r->shape.chunk_count * sizeof *r->chunk_fresh);
    r->spans = gang_arena_alloc(&r->arena, ((size_t)r->program->count + 1 + 2 * (size_t)r->cell.bucket_count) * sizeof *r->spans);
    status = options->device ? gang_net_cell_open(&r->cell, &r->shape) : gang_stand_in_open(&r->cell, &r->arena);
    if (!status) status = open_groups(r);
    if (!status) status = open_channels(r);
    if (!status) gang_lane_init(&r->lane, &r->cell, options->sharded, &r->arena);
    if (r->tied_first) r->tied_sum = gang_arena_alloc(&r->arena, r->tied_elements * sizeof *r->tied_sum);
    if (status) {
        gang_rank_stop(r);
        gang_rank_free(r);
        return status;
    }
    *out = r;
    return GANG_OK;
}

void gang_rank_stop(struct gang_rank *r) {
    for (int w = 0; w < r->lane.ways; w++) gang_comm_free(r->lane.groups[w]);
    r->lane.ways = 0;
    gang_comm_free(r->replica_group);
    gang_comm_free(r->cell_group);
    r->stage_group = r->replica_group = r->cell_group = NULL;
}

void gang_rank_free(struct gang_rank *r) {
    if (!r) return;
    assert(!r->stage_group && !r->replica_group && !r->cell_group && "gang_rank_stop comes before the wire is closed, gang_rank_free after");
    gang_net_free(r->cell.net);
    if (r->messages) gang_big_free(r->messages, r->message_memory);
    gang_arena_release(&r->arena);
    free(r);
}
