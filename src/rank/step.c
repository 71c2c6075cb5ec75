// A step: the program's instructions, one after another.
//
// Compute instructions run here. A receive waits for a message that was posted long before; a send starts one. A reduce only says that the
// chunk's next backward is its last: the backward then posts bucket after bucket on the lane while it goes on. The
// optimizer waits for the lane, and for two numbers that all ranks need (the loss, and the norm of the gradient, which
// clipping asks for), summed first over the replicas of the stage, then over the devices of a cell, then over the stages by the first
// devices, which pass it on: the same bits everywhere.
#include "rank/internal.h"

#include <assert.h>
#include <math.h>
#include <string.h>

static struct gang_channel *channel_of(struct gang_rank *r, bool sends, const struct gang_instruction *in) {
    for (int i = 0; i < r->channel_count; i++) {
        struct gang_channel *c = &r->channels[i];
        if (c->sends == sends && c->gradient == in->gradient && c->peer == in->peer) return c;
    }
    assert(!"the verifier has proved that there is one");
    return NULL;
}

// Of a compute instruction: the channel on which its input comes, or its result goes. Found by who makes the chunk before or behind.
static struct gang_channel *side(struct gang_rank *r, bool sends, bool gradient, int other_chunk) {
    int peer = r->replica * r->stages + other_chunk % r->stages;
    return channel_of(r, sends, &(struct gang_instruction){.gradient = gradient, .peer = peer});
}

// What a pass works on, made by that chunk; room for what it makes, for the other chunk; and the end of what it worked on.
static enum gang_status take(struct gang_rank *r, bool gradient, int chunk, int micro, const void **out) {
    if (r->stages > 1) return gang_channel_take(side(r, false, gradient, chunk), chunk, micro, out);
    *out = gang_handoff_at(&r->handoff, gradient, chunk, micro);
    return GANG_OK;
}

static enum gang_status room(struct gang_rank *r, const struct gang_instruction *in, bool gradient, int other, void **out) {
    if (r->stages > 1) return gang_channel_room(side(r, true, gradient, other), r->step, in->chunk, in->micro, out);
    *out = gang_handoff_at(&r->handoff, gradient, in->chunk, in->micro);
    return GANG_OK;
}

static enum gang_status release(struct gang_rank *r, bool gradient, int chunk, int micro) {
    return r->stages > 1 ? gang_channel_release(side(r, false, gradient, chunk), chunk, micro) : GANG_OK;
}

// ---- What was done -------------------------------------------------------------------------------------------------

static void add_span(struct gang_rank *r, enum gang_op op, int chunk, int micro, double start, double end) {
    r->spans[r->span_count++] = (struct gang_span){
        .rank = r->options.rank, .op = (uint8_t)op, .chunk = chunk, .micro = micro, .start = start - r->began, .end = end - r->began};
}

// ---- Computing -----------------------------------------------------------------------------------------------------

// The samples of a micro-batch: those of all replicas lie one behind another, so that a step reads the same ones however it is split.
static const int32_t *tokens_of(struct gang_rank *r, int micro) {
    const struct gang_rank_options *o = &r->options;
    if (!o->data) return NULL;
    int64_t first = r->step * r->samples + r->first_sample + micro * r->batch;
    for (int64_t b = 0; b < r->batch; b++) gang_data_sample(o->data, o->seed, (uint64_t)(first + b), (int)o->length, r->tokens + b * (o->length + 1));
    return r->tokens;
}

// The tied copy is refreshed when it comes.
static void refresh(struct gang_rank *r, int bucket) {
    if (!r->tied_last || bucket != r->tied_bucket) r->cell.kind->refresh(&r->cell, bucket);
}

// Before a chunk's first forward: its weights, where another rank has them.
static enum gang_status await_weights(struct gang_rank *r, int chunk) {
    enum gang_status status = GANG_OK;
    if (r->chunk_fresh[chunk]) return GANG_OK;
    for (int b = r->cell.bucket_count - 1; b >= 0 && r->gather_due && !status; b--) {
        if (r->cell.buckets[b].chunk != chunk) continue;
        status = gang_lane_wait(&r->lane, LANE_GATHER, b);
        if (!status) refresh(r, b);
    }
    r->chunk_fresh[chunk] = !status;
    return status;
}

// The first stage's tied weights are complete: to the last one with them.
static enum gang_status send_tied_weights(struct gang_rank *r) {
    if (!r->tied_first || !r->tied_weights_due) return GANG_OK;
    r->tied_weights_due = false;
    r->tied_weights = (struct gang_wire_op){0};
    return gang_wire_send(gang_rank_link(r, r->replica, r->stages - 1), TAG_TIED_WEIGHTS, 0, r->cell.parameters + r->tied_offset,
                          r->tied_elements * sizeof(float), &r->tied_weights);
}

static enum gang_status await_tied_weights(struct gang_rank *r) {
    if (!r->tied_last || !r->tied_weights_due) return GANG_OK;
    r->tied_weights_due = false;
    enum gang_status status = gang_wire_wait(&r->tied_weights);
    if (!status) r->cell.kind->refresh(&r->cell, r->tied_bucket);
    return status;
}

// Of a pass that began then: its seconds without the waiting for the rest of the cell, and how its exchanges went.
static enum gang_status end_pass(struct gang_rank *r, double began) {
    r->busy += gang_seconds() - began - r->exchange_seconds;
    r->exchange_seconds = 0;
    return r->exchange_status;
}

static enum gang_status run_forward(struct gang_rank *r, const struct gang_instruction *in, int slot) {
    int last = r->chunks - 1, chunk = in->chunk / r->stages;
    const void *from = NULL;
    void *to = NULL;
    enum gang_status status = await_weights(r, chunk);
    if (!status && in->chunk == 0) status = send_tied_weights(r);
    if (!status && in->chunk > 0) status = take(r, false, in->chunk - 1, in->micro, &from);
    if (!status && in->chunk < last) status = room(r, in, false, in->chunk + 1, &to);
    if (status) return status;
    double began = gang_seconds();
    r->cell.kind->forward(&r->cell, chunk, slot, in->chunk == 0 || in->chunk == last ? tokens_of(r, in->micro) : NULL, from, to);
    status = end_pass(r, began);
    return !status && in->chunk > 0 ? release(r, false, in->chunk - 1, in->micro) : status;
}

// The last stage's part of the tied gradient, which was sent long before.
static enum gang_status add_tied(struct gang_rank *r) {
    enum gang_status status = gang_wire_wait(&r->tied_gradient);
    float *to = r->cell.gradients + r->tied_offset;
    for (size_t i = 0; i < r->tied_elements && !status; i++) to[i] += r->tied_sum[i];
    return status;
}

static void bucket_ready(void *context, int bucket) {
    struct gang_rank *r = context;
    enum gang_status *status = &r->post_status;
    if (r->tied_first && bucket == r->tied_bucket) *status = add_tied(r);
    if (!*status) *status = gang_lane_post(&r->lane, LANE_REDUCE, bucket);
}

// The last stage's part of the tied gradient is complete after its last micro-batch.
static enum gang_status send_tied_gradient(struct gang_rank *r, const struct gang_instruction *in) {
    if (!r->tied_last || in->chunk != r->chunks - 1 || in->op == GANG_OP_BACKWARD_WEIGHT || ++r->tied_backwards < r->micro_batches) return GANG_OK;
    r->tied_gradient = (struct gang_wire_op){0};
    return gang_wire_send(gang_rank_link(r, r->replica, 0), TAG_TIED_GRADIENT, 0, r->cell.gradients + r->tied_offset,
                          r->tied_elements * sizeof(float), &r->tied_gradient);
}

static enum gang_status run_backward(struct gang_rank *r, const struct gang_instruction *in, int slot) {
    static const enum gang_half halves[] = {
        [GANG_OP_BACKWARD] = GANG_HALF_BOTH, [GANG_OP_BACKWARD_INPUT] = GANG_HALF_INPUT, [GANG_OP_BACKWARD_WEIGHT] = GANG_HALF_WEIGHT};
    int last = r->chunks - 1;
    bool input = in->op != GANG_OP_BACKWARD_WEIGHT;
    const struct gang_net_hook hook = {r, bucket_ready};
    const void *from = NULL;
    void *to = NULL;
    enum gang_status status = input && in->chunk == last ? await_tied_weights(r) : GANG_OK;
    if (!status && input && in->chunk < last) status = take(r, true, in->chunk + 1, in->micro, &from);
    if (!status && input && in->chunk > 0) status = room(r, in, true, in->chunk - 1, &to);
    if (status) return status;
    double began = gang_seconds();
    r->loss += r->cell.kind->backward(&r->cell, in->chunk / r->stages, slot, halves[in->op], from, to, r->streaming ? &hook : NULL);
    status = end_pass(r, began);
    if (!status) status = r->post_status;
    r->streaming = false;
    if (!status && input && in->chunk < last) status = release(r, true, in->chunk + 1, in->micro);
    return status ? status : send_tied_gradient(r, in);
}

// ---- The optimizer -------------------------------------------------------------------------------------------------

// Every bucket is summed over the replicas and, where it is tied, over the two stages.
static enum gang_status await_gradients(struct gang_rank *r) {
    enum gang_status status = GANG_OK;
    for (int b = 0; b < r->cell.bucket_count && r->lane.ways && !status; b++) status = gang_lane_wait(&r->lane, LANE_REDUCE, b);
    if (!status && r->tied_first && !r->lane.ways) status = add_tied(r);
    if (!status && r->tied_last) status = gang_wire_wait(&r->tied_gradient);
    // What went out in the step before must be gone before the weights change.
    if (!status && r->tied_first && r->tied_weights.link) status = gang_wire_wait(&r->tied_weights);
    return status;
}

// With sequence parallelism each device of a cell has its rows' part of the gradients of tensors that are not cut. They are summed
// last, over what this replica owns.
static enum gang_status sum_uncut(struct gang_rank *r) {
    enum gang_status status = GANG_OK;
    bool due = r->cell.model && r->options.tp > 1 && r->options.sequence_parallel;
    for (int i = 0; i < r->cell.owned_count && due; i++)
        for (int k = 0; k < r->cell.model->count && !status; k++) {
            const struct gang_tensor *t = &r->cell.model->tensors[k];
            int64_t from = r->cell.owned[i].offset, to = from + r->cell.owned[i].elements, end = t->offset + t->rows * t->cols;
            if (from < t->offset) from = t->offset;
            if (to > end) to = end;
            if (!gang_tensor_is_slice(t) && from < to)
                status = gang_all_reduce(r->cell_group, r->cell.gradients + from, (size_t)(to - from), GANG_ELEMENT_F32);
        }
    return status;
}

// Loss, squared norm and the wish to stop, over all devices. The loss is the same on all of a cell, or each has its rows' part.
static enum gang_status agree(struct gang_rank *r, bool want_stop, float out[3]) {
    double squares = 0;
    int members = r->options.program->replicas;
    // Of what all replicas hold alike each counts its part.
    for (int b = 0; b < r->cell.bucket_count; b++) {
        const struct gang_net_bucket *bucket = &r->cell.buckets[b];
        int64_t base = bucket->elements / members, more = bucket->elements % members;
        squares += r->cell.kind->sum_squares(&r->cell, bucket->offset + r->replica * base + (r->replica < more ? r->replica : more),
                                             base + (r->replica < more));
    }
    bool counts = r->options.tp_index == 0 || r->options.sequence_parallel;
    out[0] = counts ? (float)r->loss : 0, out[1] = (float)squares, out[2] = want_stop;
    enum gang_status status = r->stage_group ? gang_all_reduce(r->stage_group, out, 3, GANG_ELEMENT_F32) : GANG_OK;
    if (!status && r->cell_group) status = gang_all_reduce(r->cell_group, out, 3, GANG_ELEMENT_F32);
    if (r->stages == 1 || status) return status;
    for (int i = 0; i < 3 && r->options.tp_index > 0; i++) out[i] = 0;
    if (r->replica_group) status = gang_all_reduce(r->replica_group, out, 3, GANG_ELEMENT_F32);
    return status || !r->cell_group ? status : gang_all_reduce(r->cell_group, out, 3, GANG_ELEMENT_F32);
}

// After the update: the tied weights go round, and in the next step each replica's part does.
static enum gang_status pass_on(struct gang_rank *r) {
    struct gang_cell *cell = &r->cell;
    r->gather_due = r->options.sharded && r->stage_group;
    gang_lane_begin(&r->lane, LANE_GATHER);
    memset(r->chunk_fresh, r->gather_due ? 0 : 1, (size_t)r->shape.chunk_count * sizeof *r->chunk_fresh);
    for (int b = 0; b < cell->bucket_count && !r->gather_due; b++) refresh(r, b);
    r->tied_weights_due = r->tied_first || r->tied_last;
    if (!r->tied_last) return r->gather_due ? GANG_OK : send_tied_weights(r);
    r->tied_weights = (struct gang_wire_op){0};
    return gang_wire_recv(gang_rank_link(r, r->replica, 0), TAG_TIED_WEIGHTS, cell->parameters + r->tied_offset, r->tied_elements * sizeof(float),
                          &r->tied_weights);
}

static enum gang_status run_optimizer(struct gang_rank *r, const struct gang_update *update, bool want_stop, struct gang_rank_report *out) {
    float sums[3];
    double waited = gang_seconds();
    enum gang_status status = await_gradients(r);
    if (!status) status = sum_uncut(r);
    if (!status) status = agree(r, want_stop, sums);
    if (status) return status;
    add_span(r, GANG_OP_REDUCE, -1, -1, waited, gang_seconds());
    out->loss = (double)sums[0] / (double)(r->samples * r->options.length);
    out->gradient_norm = sqrt((double)sums[1]);
    out->stop = sums[2] > 0;
    double began = gang_seconds();
    r->cell.kind->update(&r->cell, update, out->gradient_norm);
    r->busy += gang_seconds() - began;
    return pass_on(r);
}

// ---- The program ---------------------------------------------------------------------------------------------------

// `chunk` counts within the stage.
static enum gang_status gather(struct gang_rank *r, int chunk) {
    enum gang_status status = GANG_OK;
    for (int b = r->cell.bucket_count - 1; b >= 0 && r->gather_due && !status; b--)
        if (r->cell.buckets[b].chunk == chunk) status = gang_lane_post(&r->lane, LANE_GATHER, b);
    return status;
}

static enum gang_status run_one(struct gang_rank *r, int i, const struct gang_update *update, bool want_stop, struct gang_rank_report *out) {
    const struct gang_instruction *in = &r->program->items[i];
    const void *data;
    switch ((enum gang_op)in->op) {
    case GANG_OP_FORWARD:
        return run_forward(r, in, r->slots[i]);
    case GANG_OP_BACKWARD:
    case GANG_OP_BACKWARD_INPUT:
    case GANG_OP_BACKWARD_WEIGHT:
        return run_backward(r, in, r->slots[i]);
    case GANG_OP_RECEIVE:
        return gang_channel_take(channel_of(r, false, in), in->chunk, in->micro, &data);
    case GANG_OP_SEND:
        return gang_channel_send(channel_of(r, true, in), r->step, in->chunk, in->micro);
    case GANG_OP_REDUCE:
        r->streaming = r->lane.ways > 0;
        return GANG_OK;
    case GANG_OP_GATHER:
        return gather(r, in->chunk / r->stages);
    case GANG_OP_OPTIMIZER:
        return run_optimizer(r, update, want_stop, out);
    case GANG_OPS:
        break;
    }
    assert(!"no such instruction");
    return GANG_ERR_FORMAT;
}

// Exchanges that began in this step.
static void add_lane_spans(struct gang_rank *r) {
    for (int p = 0; p < LANE_PHASES && r->lane.ways; p++)
        for (int b = 0; b < r->cell.bucket_count; b++) {
            const struct gang_collective *op = &r->lane.ops[p][b];
            int chunk = r->cell.buckets[b].chunk * r->stages + r->stage;
            if (op->began >= r->began) add_span(r, p == LANE_REDUCE ? GANG_OP_REDUCE : GANG_OP_GATHER, chunk, b, op->began, op->ended);
        }
}

enum gang_status gang_rank_settle(struct gang_rank *r) {
    enum gang_status status = GANG_OK;
    for (int c = 0; c < r->shape.chunk_count && !status; c++) status = gather(r, c);
    for (int c = 0; c < r->shape.chunk_count && !status; c++) status = await_weights(r, c);
    r->gather_due = false;
    return status ? status : send_tied_weights(r);
}

enum gang_status gang_rank_step(struct gang_rank *r, const struct gang_update *update, bool want_stop, struct gang_rank_report *out) {
    enum gang_status status = GANG_OK;
    *out = (struct gang_rank_report){0};
    r->step = update->step - 1;
    r->loss = r->busy = 0;
    r->tied_backwards = 0;
    r->span_count = 0;
    r->began = gang_seconds();
    r->cell.kind->begin(&r->cell);
    gang_lane_begin(&r->lane, LANE_REDUCE);
    if (r->tied_first) {
        r->tied_gradient = (struct gang_wire_op){0};
        status = gang_wire_recv(gang_rank_link(r, r->replica, r->stages - 1), TAG_TIED_GRADIENT, r->tied_sum, r->tied_elements * sizeof(float),
                                &r->tied_gradient);
    }
    double at = r->began;
    for (int i = 0; i < r->program->count && !status; i++) {
        const struct gang_instruction *in = &r->program->items[i];
        status = run_one(r, i, update, want_stop, out);
        double now = gang_seconds();
        if (in->op == GANG_OP_OPTIMIZER && r->span_count) at = r->spans[r->span_count - 1].end + r->began; // behind the wait for all
        if (in->op != GANG_OP_REDUCE && in->op != GANG_OP_GATHER) add_span(r, (enum gang_op)in->op, in->chunk, in->micro, at, now);
        at = now;
    }
    add_lane_spans(r);
    out->seconds = at - r->began;
    out->busy = r->busy;
    return status;
}

const struct gang_span *gang_rank_spans(const struct gang_rank *r, size_t *count) {
    *count = r->span_count;
    return r->spans;
}
