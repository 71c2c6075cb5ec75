// Discrete events: ranks run their programs, messages and exchanges are flows.
//
// States of a rank: computing (an event ends it), waiting (for a message, a buffer, an exchange; whoever brings it wakes
// the rank), done. States of an exchange: joining (until every rank of the stage has reached it), queued behind the stage's other
// exchanges, flowing, done. A stage has one exchange under way at a time, in the order in which they became complete.
//
// A reduce streams: it joins when the last backward pass starts (its first bucket is ready after one layer), and cannot end
// before that pass plus its last bucket. A gather streams too: the first forward pass may start after the first bucket, and
// cannot end before the last one plus its layer. Without dp_overlap neither does.
//
// A tied head on another stage than the embedding is a copy (costs.copy_bytes): its gradient goes to the first stage after the last
// backward pass, and its weights come from there before the head's first forward pass; in virtual time they leave once the step's gather is
// through. Both are flows that no instruction names.
//
// Invariants: (1) an event's time is never before `now`; (2) a rank has at most one event of its own under way; (3) a flow's tag
// names the message or exchange that owns it.
#include "sim/sim.h"
#include "sim/network.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { COPY = -1 }; // a message's chunk: the tied head's weights or gradient

enum event_kind { EVENT_COMPUTED, EVENT_AWAKE, EVENT_DELIVERED, EVENT_LAUNCH, EVENT_EXCHANGED };

struct event {
    double time;
    int64_t order; // of making: equal times go in this order
    enum event_kind kind;
    int who; // rank, message or exchange
};

struct message {
    int from, to, chunk, micro, gradient;
    double started;
};

enum exchange_state { JOINING, QUEUED, FLOWING, FLOWN, DONE };

struct exchange {
    bool gather;
    int stage, chunk, joined, ended; // ended: ranks whose last backward is over
    enum exchange_state state;
    const struct gang_exchange *cost;
    double ready, started, ends, tail; // tail: seconds of the last bucket
};

struct rank_state {
    int next;               // instruction
    double since;           // when it began to wait
    double *waits;          // where the wait is booked; NULL: not waiting
    bool computing, ending; // ending: an event that ends the computing is under way
    double started;         // of the computing
    int reducing;           // exchange that the computing under way streams out, -1
    double done_at;
};

// A replica's copy of the embedding.
struct copy {
    int64_t backwards; // of the head, that are over
    bool weights_in, gradient_in;
};

struct sim {
    const struct gang_sim_input *in;
    struct gang_arena arena;
    struct gang_network network;
    struct gang_buffer heap;     // struct event
    struct gang_buffer messages; // struct message
    struct gang_buffer spans;
    struct rank_state *ranks;
    struct exchange *exchanges; // [2 * chunks]: gathers, then reduces
    int *lane;                  // [stages] exchange under way, -1
    int *class_of;              // [replicas]
    uint8_t **arrived;          // [replicas][2 * chunks * micro]
    struct copy *copies;        // [replicas]
    int copies_in;              // gradients that the first stages have
    int *under_way;             // [ranks * 2]
    double now;
    int64_t orders;
    struct gang_sim *out;
};

// ---- Events: a binary heap by (time, order) ------------------------------------------------------------------------

static bool before(const struct event *a, const struct event *b) { return a->time < b->time || (a->time == b->time && a->order < b->order); }

static void push(struct sim *s, double time, enum event_kind kind, int who) {
    assert(time >= s->now);
    struct event event = {time, s->orders++, kind, who};
    gang_buffer_append(&s->heap, &event, sizeof event);
    struct event *heap = (void *)s->heap.data;
    size_t i = s->heap.len / sizeof event - 1;
    for (; i && before(&event, &heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = event;
}

static struct event pop(struct sim *s) {
    struct event *heap = (void *)s->heap.data, top = heap[0];
    s->heap.len -= sizeof top;
    size_t count = s->heap.len / sizeof top, i = 0;
    struct event last = heap[count];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= count) break;
        if (child + 1 < count && before(&heap[child + 1], &heap[child])) child++;
        if (!before(&heap[child], &last)) break;
        heap[i] = heap[child];
        i = child;
    }
    if (count) heap[i] = last;
    return top;
}

// ---- Small helpers -------------------------------------------------------------------------------------------------

static int stage_of(const struct sim *s, int rank) { return rank % s->in->program->stages; }
static int replica_of(const struct sim *s, int rank) { return rank / s->in->program->stages; }
static struct gang_rank_time *booked(const struct sim *s, int rank) { return &s->out->rank[rank]; }

static const struct gang_chunk_cost *cost_of(const struct sim *s, int rank, int chunk) {
    return gang_costs_chunk(s->in->costs, s->class_of[replica_of(s, rank)], chunk);
}

// What a chunk's pass and its exchange are streamed in: layers; the embedding or the head alone are one.
static double parts_of(const struct sim *s, int rank, int chunk) { return fmax(cost_of(s, rank, chunk)->layers, 1); }

static uint8_t *arrival(const struct sim *s, int replica, int gradient, int chunk, int micro) {
    const struct gang_program *p = s->in->program;
    return &s->arrived[replica][((int64_t)gradient * p->chunks + chunk) * p->micro_batches[replica] + micro];
}

static void add_span(struct sim *s, int rank, int op, int chunk, int micro, double start, double end) {
    struct gang_span span = {.rank = rank, .op = (uint8_t)op, .chunk = chunk, .micro = micro, .start = start, .end = end};
    if (s->in->spans && (!s->in->traced || s->in->traced[rank])) gang_buffer_append(&s->spans, &span, sizeof span);
}

static double seconds_of(const struct sim *s, int rank, const struct gang_instruction *i) {
    if (i->op == GANG_OP_OPTIMIZER)
        return s->in->costs->optimizer_seconds[s->class_of[replica_of(s, rank)] * s->in->costs->stages + stage_of(s, rank)];
    const struct gang_chunk_cost *cost = cost_of(s, rank, i->chunk);
    double input = gang_time_sum(&cost->input), weight = gang_time_sum(&cost->weight);
    double work = i->op == GANG_OP_FORWARD          ? gang_time_sum(&cost->forward)
                  : i->op == GANG_OP_BACKWARD       ? input + weight
                  : i->op == GANG_OP_BACKWARD_INPUT ? input
                                                    : weight;
    return work + gang_copy_shown(cost, (enum gang_op)i->op);
}

static void book_time(struct gang_time *to, const struct gang_time *from) {
    double *a = (double *)to;
    const double *b = (const double *)from;
    for (size_t i = 0; i < sizeof *to / sizeof *a; i++) a[i] += b[i];
}

static void book_compute(struct sim *s, int rank, const struct gang_instruction *i) {
    struct gang_rank_time *time = booked(s, rank);
    if (i->op == GANG_OP_OPTIMIZER) {
        time->optimizer += seconds_of(s, rank, i);
        return;
    }
    const struct gang_chunk_cost *cost = cost_of(s, rank, i->chunk);
    time->copies += gang_copy_shown(cost, (enum gang_op)i->op);
    gang_held_begin(&time->held, s->in->costs, s->class_of[replica_of(s, rank)], i->chunk, (enum gang_op)i->op);
    if (i->op == GANG_OP_FORWARD) book_time(&time->compute, &cost->forward);
    if (i->op == GANG_OP_BACKWARD || i->op == GANG_OP_BACKWARD_INPUT) book_time(&time->compute, &cost->input);
    if (i->op == GANG_OP_BACKWARD || i->op == GANG_OP_BACKWARD_WEIGHT) book_time(&time->compute, &cost->weight);
}

// ---- Messages ------------------------------------------------------------------------------------------------------

static int long_link_resource(const struct sim *s, int link, bool forward) { return 2 * s->out->ranks + 2 * link + (forward ? 0 : 1); }

// The uses of a route's long links, `share` bytes for a byte of the flow.
static int route_uses(const struct sim *s, int from_site, const struct gang_route *route, double share, struct gang_use *uses) {
    for (int i = 0; i < route->count; i++) {
        const struct gang_link *link = gang_pool_link(s->in->pool, route->links[i]);
        bool forward = link->a == from_site;
        uses[i] = (struct gang_use){long_link_resource(s, route->links[i], forward), share};
        from_site = forward ? link->b : link->a;
    }
    return route->count;
}

static void hop_of(const struct sim *s, const struct message *m, struct gang_hop *hop) {
    gang_hop_between(s->in->pool, s->in->layout, s->in->placement, s->class_of[replica_of(s, m->from)], stage_of(s, m->from), stage_of(s, m->to),
                     hop);
}

static double bytes_of(const struct sim *s, const struct message *m) {
    return m->chunk == COPY ? s->in->costs->copy_bytes : s->in->costs->message_bytes[s->class_of[replica_of(s, m->from)]];
}

static void post(struct sim *s, const struct message *m) {
    struct gang_hop hop;
    struct gang_use uses[2 + GANG_MAX_ROUTE];
    int count = 0, tag = (int)(s->messages.len / sizeof *m);
    hop_of(s, m, &hop);
    if (!hop.fast) {
        int replica = replica_of(s, m->from);
        const struct gang_group *from = s->in->pool->groups[s->in->placement->classes[s->class_of[replica]].groups[stage_of(s, m->from)]];
        uses[count++] = (struct gang_use){2 * m->from, 1};
        uses[count++] = (struct gang_use){2 * m->to + 1, 1};
        count += route_uses(s, from->site, hop.route, (double)s->in->program->copies[replica], uses + count);
    }
    gang_buffer_append(&s->messages, m, sizeof *m);
    gang_network_add(&s->network, 2 * tag, bytes_of(s, m), hop.bandwidth, uses, count);
    s->out->sent_bytes += bytes_of(s, m);
}

static void send_message(struct sim *s, int rank, const struct gang_instruction *i) {
    post(s, &(struct message){.from = rank, .to = i->peer, .chunk = i->chunk, .micro = i->micro, .gradient = i->gradient, .started = s->now});
    s->under_way[2 * rank + i->gradient]++;
}

static void post_weights(struct sim *s) {
    int p = s->in->program->stages;
    for (int r = 0; r < s->in->program->replicas && s->in->costs->copy_bytes > 0; r++)
        post(s, &(struct message){.from = r * p, .to = r * p + p - 1, .chunk = COPY, .started = s->now});
}

static void post_gradient(struct sim *s, int rank, const struct gang_instruction *i) {
    int replica = replica_of(s, rank);
    bool part = i->op == GANG_OP_BACKWARD || i->op == GANG_OP_BACKWARD_WEIGHT;
    if (!(s->in->costs->copy_bytes > 0) || !part || i->chunk != s->in->program->chunks - 1) return;
    if (++s->copies[replica].backwards == s->in->program->micro_batches[replica])
        post(s, &(struct message){.from = rank, .to = replica * s->in->program->stages, .chunk = COPY, .gradient = 1, .started = s->now});
}

// ---- Exchanges -----------------------------------------------------------------------------------------------------

static struct exchange *exchange_of(const struct sim *s, bool gather, int chunk) {
    return &s->exchanges[(gather ? 0 : s->in->program->chunks) + chunk];
}

static void advance(struct sim *s, int rank);

static void flow(struct sim *s, int index) {
    const struct gang_program *p = s->in->program;
    struct exchange *x = &s->exchanges[index];
    struct gang_use *uses = gang_arena_alloc(&s->arena, (size_t)(2 * p->replicas + 2 * s->in->pool->links.count) * sizeof *uses + 1);
    int count = 0;
    double g = (double)s->in->placement->cell_devices, size = x->cost->bytes;
    if (x->cost->nic_bytes > 0)
        for (int r = 0; r < p->replicas; r++)
            for (int way = 0; way < 2; way++) uses[count++] = (struct gang_use){2 * (r * p->stages + x->stage) + way, x->cost->nic_bytes * g / size};
    for (int l = 0; l < s->in->pool->links.count; l++)
        for (int way = 0; way < 2 && x->cost->link_bytes[l] > 0; way++)
            uses[count++] = (struct gang_use){long_link_resource(s, l, way == 0), x->cost->link_bytes[l] / size};
    double alone = fmax(x->cost->fast_seconds - x->cost->latency, 1e-9);
    x->state = FLOWING;
    x->started = s->now;
    gang_network_add(&s->network, 2 * index + 1, size, size / alone, uses, count);
}

static void start_queued(struct sim *s, int stage) {
    const struct gang_program *p = s->in->program;
    int best = -1;
    if (s->lane[stage] >= 0) return;
    for (int i = 0; i < 2 * p->chunks; i++) {
        const struct exchange *x = &s->exchanges[i];
        if (x->state == QUEUED && x->stage == stage && (best < 0 || x->ready < s->exchanges[best].ready)) best = i;
    }
    if (best < 0) return;
    s->lane[stage] = best;
    push(s, s->now + s->exchanges[best].cost->latency, EVENT_LAUNCH, best);
}

static void join(struct sim *s, struct exchange *x) {
    assert(x->state == JOINING);
    if (++x->joined < s->in->program->replicas) return;
    x->state = QUEUED;
    x->ready = s->now;
    start_queued(s, x->stage);
}

// The flow is through, and for a reduce so are the backward passes it came out of: it ends with its last bucket.
static void settle_exchange(struct sim *s, struct exchange *x) {
    int replicas = s->in->program->replicas;
    if (x->state != FLOWN || (!x->gather && x->ended < replicas)) return;
    if (s->in->costs->copy_bytes > 0 && !x->gather && x->chunk == 0 && s->copies_in < replicas) return;
    push(s, fmax(s->now, x->ends), EVENT_EXCHANGED, (int)(x - s->exchanges));
}

static void wake_stage(struct sim *s, int stage) {
    for (int r = stage; r < s->out->ranks; r += s->in->program->stages)
        if (s->ranks[r].waits) advance(s, r);
}

static void end_exchange(struct sim *s, int index) {
    struct exchange *x = &s->exchanges[index];
    x->state = DONE;
    x->ends = s->now;
    int rank = x->stage;
    while (s->in->traced && !s->in->traced[rank] && rank + s->in->program->stages < s->out->ranks) rank += s->in->program->stages;
    add_span(s, rank, x->gather ? GANG_OP_GATHER : GANG_OP_REDUCE, x->chunk, 0, x->started, s->now);
    if (x->gather && x->chunk == 0) post_weights(s);
    wake_stage(s, x->stage);
}

// ---- A rank --------------------------------------------------------------------------------------------------------

static void wait_for(struct sim *s, int rank, double *book) {
    struct rank_state *r = &s->ranks[rank];
    if (r->waits == book) return;
    if (r->waits) *r->waits += s->now - r->since;
    r->waits = book;
    r->since = s->now;
}

static void stop_waiting(struct sim *s, int rank) { wait_for(s, rank, NULL); }

// Whether a forward pass may start although its weights are still being gathered; says when to look again.
static bool gathered_enough(struct sim *s, int rank, const struct gang_instruction *i) {
    const struct exchange *x = exchange_of(s, true, i->chunk);
    if (i->op != GANG_OP_FORWARD || !x->cost->bytes || x->state == DONE) return true;
    if (!s->in->layout->dp_overlap || (x->state != FLOWING && x->state != FLOWN)) return false;
    double first = x->started + x->cost->fast_seconds / parts_of(s, rank, i->chunk);
    if (s->now >= first) return true;
    push(s, first, EVENT_AWAKE, rank);
    return false;
}

static void start_compute(struct sim *s, int rank, const struct gang_instruction *i) {
    struct rank_state *r = &s->ranks[rank];
    double seconds = seconds_of(s, rank, i);
    stop_waiting(s, rank);
    book_compute(s, rank, i);
    r->computing = r->ending = true;
    r->started = s->now;
    if (r->reducing >= 0 && s->in->layout->dp_overlap) {
        struct exchange *x = &s->exchanges[r->reducing];
        x->tail = x->cost->fast_seconds / parts_of(s, rank, x->chunk);
        join(s, x);
    }
    push(s, s->now + seconds, EVENT_COMPUTED, rank);
}

// The last backward pass of a chunk is over: its reduce may end (streamed) or begin.
static void release_reduce(struct sim *s, int rank) {
    struct rank_state *r = &s->ranks[rank];
    if (r->reducing < 0) return;
    struct exchange *x = &s->exchanges[r->reducing];
    r->reducing = -1;
    x->ended++;
    x->ends = fmax(x->ends, s->now + x->tail);
    if (!s->in->layout->dp_overlap) join(s, x);
    settle_exchange(s, x);
}

static void end_compute(struct sim *s, int rank) {
    struct rank_state *r = &s->ranks[rank];
    const struct gang_instruction *i = &s->in->program->ranks[rank].items[r->next];
    const struct exchange *x = exchange_of(s, true, i->chunk);
    if (i->op == GANG_OP_FORWARD && x->cost->bytes > 0) {
        // The layers' last weights must be in before the last layer starts.
        if (x->state != DONE) {
            wait_for(s, rank, &booked(s, rank)->gather);
            return;
        }
        double least = x->ends + seconds_of(s, rank, i) / parts_of(s, rank, i->chunk);
        if (least > s->now && x->ends > r->started) {
            wait_for(s, rank, &booked(s, rank)->gather);
            r->ending = true;
            push(s, least, EVENT_COMPUTED, rank);
            return;
        }
    }
    stop_waiting(s, rank);
    r->computing = false;
    if (i->op != GANG_OP_OPTIMIZER)
        gang_held_end(&booked(s, rank)->held, s->in->costs, s->class_of[replica_of(s, rank)], i->chunk, (enum gang_op)i->op);
    add_span(s, rank, i->op, i->chunk, i->micro, r->started, s->now);
    release_reduce(s, rank);
    post_gradient(s, rank, i);
    r->next++;
    advance(s, rank);
}

// True when the instruction is done and the next may be looked at.
static bool step_message(struct sim *s, int rank, const struct gang_instruction *i) {
    if (i->op == GANG_OP_SEND) {
        if (s->under_way[2 * rank + i->gradient] >= s->in->program->buffers) return wait_for(s, rank, &booked(s, rank)->pipeline), false;
        stop_waiting(s, rank);
        send_message(s, rank, i);
        return true;
    }
    if (!*arrival(s, replica_of(s, rank), i->gradient, i->chunk, i->micro)) return wait_for(s, rank, &booked(s, rank)->pipeline), false;
    stop_waiting(s, rank);
    s->under_way[2 * i->peer + i->gradient]--;
    if (s->ranks[i->peer].waits && !s->ranks[i->peer].computing) push(s, s->now, EVENT_AWAKE, i->peer);
    return true;
}

static bool reduces_done(const struct sim *s, int stage) {
    for (int c = stage; c < s->in->program->chunks; c += s->in->program->stages) {
        const struct exchange *x = exchange_of(s, false, c);
        if (x->joined && x->state != DONE) return false;
    }
    return true;
}

// Whether the copy of the embedding lets this go on.
static bool copy_in(const struct sim *s, int rank, const struct gang_instruction *i) {
    const struct copy *copy = &s->copies[replica_of(s, rank)];
    if (!(s->in->costs->copy_bytes > 0)) return true;
    if (i->op == GANG_OP_OPTIMIZER) return stage_of(s, rank) > 0 || copy->gradient_in;
    return i->op != GANG_OP_FORWARD || i->chunk != s->in->program->chunks - 1 || copy->weights_in;
}

static void advance(struct sim *s, int rank) {
    struct rank_state *r = &s->ranks[rank];
    const struct gang_rank_program *program = &s->in->program->ranks[rank];
    if (r->computing) { // held up behind its own end: see end_compute
        if (!r->ending) end_compute(s, rank);
        return;
    }
    for (; r->next < program->count; r->next++) {
        const struct gang_instruction *i = &program->items[r->next];
        if (i->op == GANG_OP_SEND || i->op == GANG_OP_RECEIVE) {
            if (!step_message(s, rank, i)) return;
        } else if (i->op == GANG_OP_GATHER) {
            join(s, exchange_of(s, true, i->chunk));
        } else if (i->op == GANG_OP_REDUCE) {
            r->reducing = (int)(exchange_of(s, false, i->chunk) - s->exchanges);
        } else if (!copy_in(s, rank, i)) {
            wait_for(s, rank, &booked(s, rank)->pipeline);
            return;
        } else if (i->op == GANG_OP_OPTIMIZER && !reduces_done(s, stage_of(s, rank))) {
            wait_for(s, rank, &booked(s, rank)->reduce);
            return;
        } else if (!gathered_enough(s, rank, i)) {
            wait_for(s, rank, &booked(s, rank)->gather);
            return;
        } else {
            start_compute(s, rank, i);
            return;
        }
    }
    stop_waiting(s, rank);
    r->done_at = s->now;
}

// ---- Setting up and running ----------------------------------------------------------------------------------------

static void set_up_ranks(struct sim *s) {
    const struct gang_sim_input *in = s->in;
    const struct gang_program *p = in->program;
    int ranks = p->replicas * p->stages;
    s->ranks = gang_arena_alloc(&s->arena, (size_t)ranks * sizeof *s->ranks);
    s->under_way = gang_arena_alloc(&s->arena, (size_t)ranks * 2 * sizeof *s->under_way);
    s->class_of = gang_arena_alloc(&s->arena, (size_t)p->replicas * sizeof *s->class_of);
    s->arrived = gang_arena_alloc(&s->arena, (size_t)p->replicas * sizeof *s->arrived);
    s->copies = gang_arena_alloc(&s->arena, (size_t)p->replicas * sizeof *s->copies);
    gang_program_classes(p, in->placement->classes, in->placement->class_count, s->class_of);
    for (int r = 0; r < p->replicas; r++) s->arrived[r] = gang_arena_alloc(&s->arena, 2 * (size_t)p->chunks * (size_t)p->micro_batches[r]);
    gang_network_init(&s->network, 2 * ranks + 2 * in->pool->links.count, &s->arena);
    for (int r = 0; r < ranks; r++) {
        const struct gang_group *group = in->pool->groups[in->placement->classes[s->class_of[r / p->stages]].groups[r % p->stages]];
        // nic_reach is in the flows' own caps; a NIC's capacity is the line's.
        s->network.capacity[2 * r] = s->network.capacity[2 * r + 1] = group->nic_bandwidth * (double)in->placement->cell_devices;
        s->ranks[r].reducing = -1;
        s->out->copies[r] = p->copies[r / p->stages];
    }
    for (int l = 0; l < in->pool->links.count; l++)
        for (int way = 0; way < 2; way++) s->network.capacity[2 * ranks + 2 * l + way] = gang_pool_link(in->pool, l)->bandwidth;
}

static void set_up(struct sim *s) {
    const struct gang_program *p = s->in->program;
    size_t ranks = (size_t)p->replicas * (size_t)p->stages;
    set_up_ranks(s);
    s->lane = gang_arena_alloc(&s->arena, (size_t)p->stages * sizeof *s->lane);
    for (int i = 0; i < p->stages; i++) s->lane[i] = -1;
    s->exchanges = gang_arena_alloc(&s->arena, 2 * (size_t)p->chunks * sizeof *s->exchanges);
    for (int c = 0; c < p->chunks; c++) {
        *exchange_of(s, true, c) = (struct exchange){.gather = true, .stage = c % p->stages, .chunk = c, .cost = &s->in->costs->gather[c]};
        *exchange_of(s, false, c) = (struct exchange){.stage = c % p->stages, .chunk = c, .cost = &s->in->costs->reduce[c]};
    }
    for (size_t r = 0; r < ranks; r++) s->ranks[r].done_at = -1;
}

static void flow_ended(struct sim *s, int tag) {
    if (tag % 2 == 0) {
        struct gang_hop hop;
        hop_of(s, (const struct message *)(void *)s->messages.data + tag / 2, &hop);
        push(s, s->now + hop.delay, EVENT_DELIVERED, tag / 2);
        return;
    }
    struct exchange *x = &s->exchanges[tag / 2];
    x->state = FLOWN;
    s->lane[x->stage] = -1;
    settle_exchange(s, x);
    start_queued(s, x->stage);
}

static void deliver(struct sim *s, const struct message *m) {
    int to = m->to, replica = replica_of(s, m->from);
    s->out->received_bytes += bytes_of(s, m);
    add_span(s, m->from, GANG_OP_SEND, m->chunk, m->micro, m->started, s->now);
    if (m->chunk != COPY) {
        *arrival(s, replica, m->gradient, m->chunk, m->micro) = 1;
    } else if (!m->gradient) {
        s->copies[replica].weights_in = true;
    } else {
        struct exchange *x = exchange_of(s, false, 0);
        s->copies[replica].gradient_in = true;
        s->copies_in++;
        x->ends = fmax(x->ends, s->now + x->tail); // it is in the embedding's bucket
        settle_exchange(s, x);
    }
    if (s->ranks[to].waits && !s->ranks[to].computing) advance(s, to);
}

static void handle(struct sim *s, const struct event *event) {
    switch (event->kind) {
    case EVENT_COMPUTED:
        s->ranks[event->who].ending = false;
        end_compute(s, event->who);
        return;
    case EVENT_AWAKE:
        if (s->ranks[event->who].waits && !s->ranks[event->who].computing) advance(s, event->who);
        return;
    case EVENT_DELIVERED: {
        const struct message m = ((const struct message *)(void *)s->messages.data)[event->who]; // the array may move
        deliver(s, &m);
        return;
    }
    case EVENT_LAUNCH:
        flow(s, event->who);
        wake_stage(s, s->exchanges[event->who].stage);
        return;
    case EVENT_EXCHANGED:
        end_exchange(s, event->who);
        return;
    }
}

static void run(struct sim *s) {
    if (!(s->in->costs->gather[0].bytes > 0)) post_weights(s);
    for (int r = 0; r < s->out->ranks; r++) advance(s, r);
    for (;;) {
        double flow_time = gang_network_next(&s->network);
        const struct event *top = s->heap.len ? (const struct event *)(void *)s->heap.data : NULL;
        if (!top && isinf(flow_time)) return;
        s->out->events++;
        if (!top || flow_time < top->time) {
            s->now = fmax(s->now, flow_time);
            int tag = gang_network_advance(&s->network, flow_time);
            if (tag >= 0) flow_ended(s, tag);
            continue;
        }
        struct event event = pop(s);
        s->now = event.time;
        int tag = gang_network_advance(&s->network, event.time);
        if (tag >= 0) flow_ended(s, tag);
        handle(s, &event);
    }
}

// The longest way between two of these sites.
static double farthest(const struct gang_pool *pool, const bool *sites) {
    double most = 0;
    for (int a = 0; a < pool->sites.count; a++)
        for (int b = 0; b < a; b++)
            if (sites[a] && sites[b]) most = fmax(most, gang_pool_route(pool, a, b)->delay);
    return most;
}

// Clipping needs the norm of all gradients: one number summed over the replicas of every stage, then over the stages of every
// replica, each time one way to all. Until then no rank may update.
static double agree_seconds(const struct gang_sim_input *in) {
    double stages = 0, replicas = 0;
    for (int c = 0; c < in->placement->class_count; c++) {
        bool sites[GANG_MAX_SITES] = {false};
        for (int p = 0; p < in->layout->pp; p++) sites[in->pool->groups[in->placement->classes[c].groups[p]]->site] = true;
        stages = fmax(stages, farthest(in->pool, sites));
    }
    for (int p = 0; p < in->layout->pp && in->placement->class_count > 1; p++) {
        bool sites[GANG_MAX_SITES] = {false};
        for (int c = 0; c < in->placement->class_count; c++) sites[in->pool->groups[in->placement->classes[c].groups[p]]->site] = true;
        replicas = fmax(replicas, farthest(in->pool, sites));
    }
    return stages + replicas;
}

static enum gang_status finish(struct sim *s, struct gang_arena *arena) {
    struct gang_sim *out = s->out;
    for (int r = 0; r < out->ranks; r++) {
        if (s->ranks[r].done_at < 0)
            return gang_fail(GANG_ERR_FORMAT, "simulation: rank %d stops at instruction %d for ever: the program is not verified", r,
                             s->ranks[r].next + 1);
        out->step_seconds = fmax(out->step_seconds, s->ranks[r].done_at);
    }
    double agree = agree_seconds(s->in);
    out->step_seconds += agree;
    for (int r = 0; r < out->ranks; r++) {
        out->rank[r].reduce += agree;
        out->rank[r].end = out->step_seconds - agree - s->ranks[r].done_at;
    }
    for (int l = 0; l < s->in->pool->links.count; l++) {
        int a = long_link_resource(s, l, true), b = long_link_resource(s, l, false);
        out->link_bytes[l] = fmax(s->network.carried[a], s->network.carried[b]);
        out->link_carried[l] = s->network.carried[a] + s->network.carried[b];
        out->link_peak[l] = fmax(s->network.peak[a], s->network.peak[b]);
    }
    out->span_count = s->spans.len / sizeof *out->spans;
    out->spans = gang_arena_alloc(arena, s->spans.len + 1);
    if (s->spans.len) memcpy(out->spans, s->spans.data, s->spans.len);
    return GANG_OK;
}

enum gang_status gang_sim_run(const struct gang_sim_input *input, struct gang_arena *arena, struct gang_sim *out) {
    struct sim s = {.in = input, .out = out};
    size_t ranks = (size_t)input->program->replicas * (size_t)input->program->stages;
    *out = (struct gang_sim){.ranks = (int)ranks};
    out->rank = gang_arena_alloc(arena, ranks * sizeof *out->rank);
    out->copies = gang_arena_alloc(arena, ranks * sizeof *out->copies);
    gang_arena_init(&s.arena);
    set_up(&s);
    run(&s);
    enum gang_status status = finish(&s, arena);
    gang_network_release(&s.network);
    gang_buffer_release(&s.heap);
    gang_buffer_release(&s.messages);
    gang_buffer_release(&s.spans);
    gang_arena_release(&s.arena);
    return status;
}

// ---- Summary -------------------------------------------------------------------------------------------------------

void gang_sim_summarise(const struct gang_sim_input *in, const struct gang_task *task, const struct gang_sim *sim, struct gang_summary *out) {
    double weight = 0, watts = 0, price = 0, peak = 0, tokens = (double)task->global_batch * (double)task->sequence_length;
    bool power_known = true, price_known = true;
    *out = (struct gang_summary){.step_seconds = sim->step_seconds, .devices = in->placement->devices_used};
    for (int c = 0; c < in->placement->class_count; c++)
        for (int s = 0; s < in->layout->pp; s++) {
            const struct gang_group *group = in->pool->groups[in->placement->classes[c].groups[s]];
            const struct gang_kind *kind = group->kind;
            double devices = (double)(in->placement->classes[c].replicas * in->placement->cell_devices);
            power_known &= kind->power_watt > 0;
            watts += devices * kind->power_watt;
            price_known &= group->price > 0;
            price += devices * group->price / 3600;
            peak += devices * kind->peak[task->math];
        }
    for (int r = 0; r < sim->ranks; r++) {
        const struct gang_rank_time *t = &sim->rank[r];
        double n = (double)sim->copies[r];
        weight += n;
        out->matmul += n * t->compute.matmul, out->attention += n * t->compute.attention, out->vector += n * t->compute.vector;
        out->tensor += n * t->compute.tensor, out->expert += n * t->compute.expert, out->context += n * t->compute.context;
        out->gather += n * (t->compute.gather + t->gather), out->reduce += n * t->reduce;
        out->pipeline += n * (t->pipeline + t->end), out->optimizer += n * t->optimizer, out->copies += n * t->copies;
    }
    double *kinds[] = {&out->matmul, &out->attention, &out->vector,   &out->tensor,    &out->expert, &out->context,
                       &out->gather, &out->reduce,    &out->pipeline, &out->optimizer, &out->copies};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) *kinds[i] /= weight;
    out->tokens_per_second = tokens / sim->step_seconds;
    out->tokens_per_second_per_device = out->tokens_per_second / (double)out->devices;
    out->mfu = 3 * gang_shape_flops(&task->shape, task->sequence_length) * tokens / sim->step_seconds / peak;
    out->bubble_fraction = out->pipeline / sim->step_seconds;
    out->tokens_per_joule = power_known ? out->tokens_per_second / watts : 0;
    out->price_of_step = price_known ? price * sim->step_seconds : 0;
    for (int l = 0; l < in->pool->links.count; l++) {
        if (price_known) out->price_of_step += sim->link_carried[l] * 1e-9 * gang_pool_link(in->pool, l)->price;
        out->long_link_bytes = fmax(out->long_link_bytes, sim->link_bytes[l]);
        out->long_link_peak_bps = fmax(out->long_link_peak_bps, 8 * sim->link_peak[l]);
    }
    out->tokens_per_price = price_known ? tokens / out->price_of_step : 0;
}
