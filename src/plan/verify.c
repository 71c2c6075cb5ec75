// The verifier: plays a program through without time and proves that it is whole.
//
// A round lets every rank go on until it waits: a receive for its message, a send for a free buffer. If a round moves nobody and
// somebody is not done, that is a deadlock, whatever the times: messages never overtake and nothing else blocks. What each
// instruction may do is checked when it runs, what must have happened at the end.
#include "plan/plan.h"

#include <stdio.h>
#include <string.h>

// What has happened to a chunk and micro-batch of a replica.
enum { DID_FORWARD = 1, DID_INPUT = 2, DID_WEIGHT = 4, SENT_ACTIVATION = 8, GOT_ACTIVATION = 16, SENT_GRADIENT = 32, GOT_GRADIENT = 64 };
// What has happened to a chunk of a replica.
enum { DID_REDUCE = 1, DID_GATHER = 2 };

struct run {
    const struct gang_program *program;
    const struct gang_costs *costs;
    int *class_of;       // [replicas]; with costs
    uint8_t **did;       // [replicas][chunks * micro_batches]
    uint8_t **exchanged; // [replicas][chunks]
    int *next;           // [ranks]
    int *under_way;      // [ranks, 2, 2]: messages from a rank, to the stage behind or before, activation or gradient
    bool any_reduce;
    struct gang_program_facts *facts;
};

static const char *text_of(const struct gang_instruction *i, char out[96]) {
    const struct gang_op_info *info = &gang_ops[i->op];
    snprintf(out, 96, "%s%s c%d m%d", info->name,
             info->takes != GANG_TAKES_PEER ? ""
             : i->gradient                  ? " gradient"
                                            : " activation",
             i->chunk, i->micro);
    return out;
}

static enum gang_status wrong(const struct run *run, int rank, const char *what) {
    char text[96];
    const struct gang_instruction *i = &run->program->ranks[rank].items[run->next[rank]];
    return gang_fail(GANG_ERR_FORMAT, "program: rank %d, instruction %d (%s): %s", rank, run->next[rank] + 1, text_of(i, text), what);
}

// The counter of messages from `from` to a neighbouring rank of its replica.
static int *channel(const struct run *run, int from, const struct gang_instruction *i) { return &run->under_way[2 * from + i->gradient]; }

static void hold(const struct run *run, int rank, const struct gang_instruction *i) {
    if (!run->costs) return;
    int class = run->class_of[rank / run->program->stages];
    gang_held_begin(&run->facts->held[rank], run->costs, class, i->chunk, (enum gang_op)i->op);
    gang_held_end(&run->facts->held[rank], run->costs, class, i->chunk, (enum gang_op)i->op);
}

static enum gang_status run_compute(struct run *run, int rank, const struct gang_instruction *i, uint8_t *did) {
    const struct gang_program *p = run->program;
    int last = p->chunks - 1;
    bool one = p->stages == 1;
    if (i->chunk % p->stages != rank % p->stages) return wrong(run, rank, "this chunk is another stage's");
    if (i->op == GANG_OP_FORWARD) {
        if (*did & DID_FORWARD) return wrong(run, rank, "a second forward");
        const uint8_t *before = i->chunk ? did - p->micro_batches[rank / p->stages] : NULL;
        if (before && !(one ? *before & DID_FORWARD : *before & GOT_ACTIVATION)) return wrong(run, rank, "its activation has not been received");
        *did |= DID_FORWARD;
        hold(run, rank, i);
        return GANG_OK;
    }
    if (!(*did & DID_FORWARD)) return wrong(run, rank, "backward before forward");
    bool input = i->op != GANG_OP_BACKWARD_WEIGHT, weight = i->op != GANG_OP_BACKWARD_INPUT;
    const uint8_t *behind = i->chunk < last ? did + p->micro_batches[rank / p->stages] : NULL;
    if (input && (*did & DID_INPUT)) return wrong(run, rank, "a second backward");
    if (input && behind && !(one ? *behind & DID_INPUT : *behind & GOT_GRADIENT)) return wrong(run, rank, "its gradient has not been received");
    if (!input && !(*did & DID_INPUT)) return wrong(run, rank, "weight half before the input half");
    if (weight && (*did & DID_WEIGHT)) return wrong(run, rank, "a second backward of the weights");
    *did |= (uint8_t)((input ? DID_INPUT : 0) | (weight ? DID_WEIGHT : 0));
    hold(run, rank, i);
    return GANG_OK;
}

// A message carries what chunk `i->chunk` made: an activation from its stage to the next chunk's, a gradient to the one before.
static enum gang_status run_message(struct run *run, int rank, const struct gang_instruction *i, uint8_t *did, bool *waits) {
    const struct gang_program *p = run->program;
    bool send = i->op == GANG_OP_SEND;
    int base = rank / p->stages * p->stages, other = i->gradient ? i->chunk - 1 : i->chunk + 1;
    if (p->stages == 1 || other < 0 || other >= p->chunks) return wrong(run, rank, "nobody is there to exchange this with");
    int from = base + i->chunk % p->stages, to = base + other % p->stages;
    if (rank != (send ? from : to)) return wrong(run, rank, "this message is not this rank's");
    if (i->peer != (send ? to : from)) return wrong(run, rank, "the peer is the wrong one");
    uint8_t made = i->gradient ? DID_INPUT : DID_FORWARD, sent = i->gradient ? SENT_GRADIENT : SENT_ACTIVATION;
    uint8_t got = i->gradient ? GOT_GRADIENT : GOT_ACTIVATION;
    if (send) {
        if (!(*did & made)) return wrong(run, rank, "sent before it is made");
        if (*did & sent) return wrong(run, rank, "sent twice");
        *waits = *channel(run, from, i) >= p->buffers;
        if (*waits) return GANG_OK;
        *did |= sent;
        if (++*channel(run, from, i) > run->facts->buffers_needed) run->facts->buffers_needed = *channel(run, from, i);
        run->facts->messages++;
        return GANG_OK;
    }
    if (*did & got) return wrong(run, rank, "received twice");
    *waits = !(*did & sent);
    if (*waits) return GANG_OK;
    *did |= got;
    --*channel(run, from, i);
    return GANG_OK;
}

static enum gang_status run_exchange(struct run *run, int rank, const struct gang_instruction *i) {
    const struct gang_program *p = run->program;
    const struct gang_rank_program *r = &p->ranks[rank];
    if (i->chunk % p->stages != rank % p->stages) return wrong(run, rank, "this chunk is another stage's");
    const uint8_t *did = run->did[rank / p->stages] + (int64_t)i->chunk * p->micro_batches[rank / p->stages];
    uint8_t *exchanged = &run->exchanged[rank / p->stages][i->chunk];
    if (i->op == GANG_OP_GATHER) {
        for (int64_t m = 0; m < p->micro_batches[rank / p->stages]; m++)
            if (did[m]) return wrong(run, rank, "gathered after its first forward");
        if (*exchanged & DID_GATHER) return wrong(run, rank, "gathered twice");
        *exchanged |= DID_GATHER;
        return GANG_OK;
    }
    if (*exchanged & DID_REDUCE) return wrong(run, rank, "reduced twice");
    *exchanged |= DID_REDUCE;
    run->any_reduce = true;
    const struct gang_instruction *next = run->next[rank] + 1 < r->count ? &r->items[run->next[rank] + 1] : NULL;
    bool backward = next && (next->op == GANG_OP_BACKWARD || next->op == GANG_OP_BACKWARD_WEIGHT) && next->chunk == i->chunk;
    int64_t left = 0;
    for (int64_t m = 0; m < p->micro_batches[rank / p->stages]; m++) left += !(did[m] & DID_WEIGHT);
    if (!backward || left != 1) return wrong(run, rank, "a reduction must stand right before the chunk's last backward");
    return GANG_OK;
}

static enum gang_status run_one(struct run *run, int rank, bool *waits) {
    const struct gang_program *p = run->program;
    const struct gang_instruction *i = &p->ranks[rank].items[run->next[rank]];
    int64_t micro_batches = p->micro_batches[rank / p->stages];
    uint8_t *did = run->did[rank / p->stages] + (int64_t)i->chunk * micro_batches + i->micro;
    *waits = false;
    switch ((enum gang_op)i->op) {
    case GANG_OP_FORWARD:
    case GANG_OP_BACKWARD:
    case GANG_OP_BACKWARD_INPUT:
    case GANG_OP_BACKWARD_WEIGHT:
        return run_compute(run, rank, i, did);
    case GANG_OP_SEND:
    case GANG_OP_RECEIVE:
        return run_message(run, rank, i, did, waits);
    case GANG_OP_GATHER:
    case GANG_OP_REDUCE:
        return run_exchange(run, rank, i);
    case GANG_OP_OPTIMIZER:
        return run->next[rank] + 1 == p->ranks[rank].count ? GANG_OK : wrong(run, rank, "the optimizer must come last");
    case GANG_OPS:
        break;
    }
    return wrong(run, rank, "no such instruction");
}

static enum gang_status play(struct run *run) {
    const struct gang_program *p = run->program;
    int ranks = p->replicas * p->stages;
    int64_t left = 0;
    for (int r = 0; r < ranks; r++) left += p->ranks[r].count;
    run->facts->instructions = left;
    for (bool moved = true; left && moved;) {
        moved = false;
        for (int r = 0; r < ranks; r++)
            while (run->next[r] < p->ranks[r].count) {
                bool waits = false;
                enum gang_status status = run_one(run, r, &waits);
                if (status) return status;
                if (waits) break;
                run->next[r]++;
                left--;
                moved = true;
            }
    }
    for (int r = 0; r < ranks && left; r++)
        if (run->next[r] < p->ranks[r].count) return wrong(run, r, "waits for ever: deadlock");
    return GANG_OK;
}

static enum gang_status check_end(const struct run *run) {
    const struct gang_program *p = run->program;
    for (int r = 0; r < p->replicas; r++) {
        for (int64_t i = 0; i < p->chunks * p->micro_batches[r]; i++) {
            int chunk = (int)(i / p->micro_batches[r]), micro = (int)(i % p->micro_batches[r]);
            uint8_t did = run->did[r][i];
            const char *what = !(did & DID_FORWARD)  ? "never forward"
                               : !(did & DID_INPUT)  ? "never backward"
                               : !(did & DID_WEIGHT) ? "its weights never backward"
                               : !(did & SENT_ACTIVATION) != !(did & GOT_ACTIVATION) || !(did & SENT_GRADIENT) != !(did & GOT_GRADIENT)
                                   ? "sent and never received"
                                   : NULL;
            if (what) return gang_fail(GANG_ERR_FORMAT, "program: replica %d, chunk %d, micro-batch %d: %s", r, chunk, micro, what);
        }
        for (int c = 0; c < p->chunks; c++)
            if (run->any_reduce && !(run->exchanged[r][c] & DID_REDUCE))
                return gang_fail(GANG_ERR_FORMAT, "program: replica %d, chunk %d: its gradients are never reduced", r, c);
        for (int c = 0; c < p->chunks; c++)
            if ((run->exchanged[r][c] ^ run->exchanged[0][c]) & DID_GATHER)
                return gang_fail(GANG_ERR_FORMAT, "program: chunk %d is gathered by replica %d or 0 only: expected both or neither", c, r);
        for (int s = 0; s < p->stages; s++) {
            const struct gang_rank_program *rank = &p->ranks[r * p->stages + s];
            if (!rank->count || rank->items[rank->count - 1].op != GANG_OP_OPTIMIZER)
                return gang_fail(GANG_ERR_FORMAT, "program: rank %d ends without the optimizer", r * p->stages + s);
        }
    }
    return GANG_OK;
}

enum gang_status gang_program_verify(const struct gang_program *program, const struct gang_costs *costs, struct gang_arena *arena,
                                     struct gang_program_facts *out) {
    struct gang_arena own;
    gang_arena_init(&own);
    size_t ranks = (size_t)program->replicas * (size_t)program->stages, replicas = (size_t)program->replicas;
    *out = (struct gang_program_facts){0};
    struct run run = {.program = program, .costs = costs, .facts = out};
    if (costs) {
        out->held = gang_arena_alloc(arena, ranks * sizeof *out->held);
        run.class_of = gang_arena_alloc(&own, replicas * sizeof *run.class_of);
        gang_program_classes(program, costs->class, costs->classes, run.class_of);
    }
    run.did = gang_arena_alloc(&own, replicas * sizeof *run.did);
    run.exchanged = gang_arena_alloc(&own, replicas * sizeof *run.exchanged);
    for (size_t r = 0; r < replicas; r++) {
        run.did[r] = gang_arena_alloc(&own, (size_t)program->chunks * (size_t)program->micro_batches[r]);
        run.exchanged[r] = gang_arena_alloc(&own, (size_t)program->chunks);
    }
    run.next = gang_arena_alloc(&own, ranks * sizeof *run.next);
    run.under_way = gang_arena_alloc(&own, ranks * 2 * sizeof *run.under_way);
    enum gang_status status = play(&run);
    if (!status) status = check_end(&run);
    gang_arena_release(&own);
    return status;
}
