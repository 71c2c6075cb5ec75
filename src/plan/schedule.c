// Orders of work: which forward and backward pass a stage runs when.
//
// Known schedules are made by their rule (1F1B, interleaved 1F1B, zero-bubble H1); the list scheduler makes one for any stage times, delays and
// memory: it plays the step through in virtual time, and each stage, whenever it is free, takes
//   1. the input half of the backward pass that is ready, the deepest chunk first: others wait for it;
//   2. a forward pass, while it has room for what it keeps;
//   3. a weight half: nobody waits for it, so it fills what would be idle.
// Across a long link more room lets more micro-batches be under way, so the list scheduler is tried with several rooms, and
// `auto` takes the fastest of everything that applies, the one that holds least among equals.
//
// Invariants: (1) a micro-batch that entered the first chunk of a stage has room for all the stage's chunks, so the deepest can
// always go on; (2) within a chunk micro-batches go in order, forward and backward.
#include "plan/plan.h"

#include <assert.h>
#include <math.h>
#include <string.h>

enum { MAX_LIST_WORK = 40 * 1000 * 1000 }; // tasks x stages x chunks a list may take; beyond it the rules must do

static int chunks_of(const struct gang_timing *t) { return t->chunks / t->stages; }

static double delay_between(const struct gang_timing *t, int chunk) { return t->stages > 1 ? t->delay[chunk % t->stages] : 0; }

static struct gang_instruction task_of(enum gang_op op, int chunk, int64_t micro) {
    return (struct gang_instruction){.op = (uint8_t)op, .chunk = (int16_t)chunk, .micro = (int32_t)micro, .peer = -1};
}

static void orders_alloc(const struct gang_timing *t, int per_chunk, struct gang_arena *arena, struct gang_order *out) {
    size_t most = (size_t)per_chunk * (size_t)chunks_of(t) * (size_t)t->micro_batches;
    for (int s = 0; s < t->stages; s++) out[s] = (struct gang_order){.items = gang_arena_alloc(arena, most * sizeof *out[s].items)};
}

static void push(struct gang_order *order, enum gang_op op, int chunk, int64_t micro) { order->items[order->count++] = task_of(op, chunk, micro); }

int64_t gang_schedule_in_flight(const struct gang_order *order) {
    int64_t now = 0, most = 0;
    bool split = false;
    for (int i = 0; i < order->count; i++) split |= order->items[i].op == GANG_OP_BACKWARD_WEIGHT;
    for (int i = 0; i < order->count; i++) {
        now += order->items[i].op == GANG_OP_FORWARD;
        if (now > most) most = now;
        now -= order->items[i].op == (split ? GANG_OP_BACKWARD_WEIGHT : GANG_OP_BACKWARD);
    }
    return most;
}

// ---- Time of given orders: every stage goes on as far as what it waits for is known ---------------------------------

static double ready_at(const struct gang_timing *t, const double *forward, const double *input, const struct gang_instruction *i) {
    int64_t at = i->chunk * t->micro_batches + i->micro;
    if (i->op == GANG_OP_FORWARD) return i->chunk ? forward[at - t->micro_batches] + delay_between(t, i->chunk - 1) : 0;
    if (i->op == GANG_OP_BACKWARD_WEIGHT) return input[at];
    double own = forward[at];
    return i->chunk == t->chunks - 1 ? own : gang_larger(own, input[at + t->micro_batches] + delay_between(t, i->chunk));
}

static double seconds_of(const struct gang_timing *t, const struct gang_instruction *i) {
    double input = t->input[i->chunk], weight = t->weight[i->chunk];
    double work = i->op == GANG_OP_FORWARD          ? t->forward[i->chunk]
                  : i->op == GANG_OP_BACKWARD       ? input + weight
                  : i->op == GANG_OP_BACKWARD_INPUT ? input
                                                    : weight;
    return t->copy ? gang_larger(work, t->copy[i->chunk]) : work;
}

// When the weights of a chunk's first forward pass are all in: a stage gathers one chunk after another.
static double gathered_at(const struct gang_timing *t, const struct gang_instruction *i) {
    double sum = 0;
    for (int c = i->chunk; t->gather && i->op == GANG_OP_FORWARD && i->micro == 0 && c >= 0; c -= t->stages) sum += t->gather[c];
    return sum;
}

static bool ends_chunk(const struct gang_timing *t, const struct gang_instruction *i) {
    return (i->op == GANG_OP_BACKWARD || i->op == GANG_OP_BACKWARD_WEIGHT) && i->micro == t->micro_batches - 1;
}

double gang_schedule_seconds(const struct gang_timing *t, const struct gang_order *orders) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    size_t cells = (size_t)t->chunks * (size_t)t->micro_batches;
    double *forward = gang_arena_alloc(&arena, cells * sizeof(double)), *input = gang_arena_alloc(&arena, cells * sizeof(double));
    double *free_at = gang_arena_alloc(&arena, (size_t)t->stages * sizeof(double)), end = 0;
    double *reduced = gang_arena_alloc(&arena, (size_t)t->stages * sizeof(double));
    int *next = gang_arena_alloc(&arena, (size_t)t->stages * sizeof(int));
    for (size_t i = 0; i < cells; i++) forward[i] = input[i] = INFINITY;
    int64_t left = 0;
    for (int s = 0; s < t->stages; s++) left += orders[s].count;
    for (bool moved = true; moved && left;) {
        moved = false;
        for (int s = 0; s < t->stages; s++)
            while (next[s] < orders[s].count) {
                const struct gang_instruction *i = &orders[s].items[next[s]];
                double ready = ready_at(t, forward, input, i);
                if (isinf(ready)) break;
                double start = gang_larger(free_at[s], ready);
                free_at[s] = gang_larger(start + seconds_of(t, i), gathered_at(t, i));
                if (t->reduce && ends_chunk(t, i)) reduced[s] = gang_larger(free_at[s], gang_larger(reduced[s], start) + t->reduce[i->chunk]);
                double *done = i->op == GANG_OP_FORWARD ? forward : i->op == GANG_OP_BACKWARD_WEIGHT ? NULL : input;
                if (done) done[i->chunk * t->micro_batches + i->micro] = free_at[s];
                next[s]++;
                left--;
                moved = true;
            }
    }
    for (int s = 0; s < t->stages; s++) end = gang_larger(end, gang_larger(free_at[s], reduced[s]));
    gang_arena_release(&arena);
    return left ? INFINITY : end;
}

// ---- Rules ---------------------------------------------------------------------------------------------------------

// One forward, one backward, after `warm` forwards: p - s - 1 of them in the even case (PipeDream-Flush, arXiv:2006.09503), more
// by `extra` where the next stage is far.
static void make_1f1b(const struct gang_timing *t, double stretch, bool bounded, struct gang_arena *arena, struct gang_order *out) {
    orders_alloc(t, 2, arena, out);
    int64_t m = t->micro_batches;
    for (int s = 0; s < t->stages; s++) {
        int64_t warm = (int64_t)((double)(t->stages - s) * stretch + 0.5) - 1;
        if (bounded && warm > t->limit[s] - 1) warm = t->limit[s] - 1;
        if (warm < 0) warm = 0;
        if (warm > m) warm = m;
        for (int64_t i = 0; i < warm; i++) push(&out[s], GANG_OP_FORWARD, s, i);
        for (int64_t i = warm; i < m; i++) {
            push(&out[s], GANG_OP_FORWARD, s, i);
            push(&out[s], GANG_OP_BACKWARD, s, i - warm);
        }
        for (int64_t i = m - warm; i < m; i++) push(&out[s], GANG_OP_BACKWARD, s, i);
    }
}

// H1 of Qi et al. 2023 (arXiv:2401.10241): 1F1B with the weights' halves put off by s micro-batches on stage s, so that every stage holds p.
static void make_h1(const struct gang_timing *t, struct gang_arena *arena, struct gang_order *out) {
    orders_alloc(t, 3, arena, out);
    int64_t m = t->micro_batches;
    for (int s = 0; s < t->stages; s++) {
        int64_t warm = t->stages - s - 1, put_off = s, done = 0;
        if (warm > m) warm = m;
        if (warm > t->limit[s] - 1) warm = t->limit[s] - 1;
        if (put_off > t->limit[s] - warm - 1) put_off = t->limit[s] - warm - 1;
        for (int64_t i = 0; i < warm; i++) push(&out[s], GANG_OP_FORWARD, s, i);
        for (int64_t b = 0; b < m; b++) {
            if (b + warm < m) push(&out[s], GANG_OP_FORWARD, s, b + warm);
            push(&out[s], GANG_OP_BACKWARD_INPUT, s, b);
            if (b >= put_off) push(&out[s], GANG_OP_BACKWARD_WEIGHT, s, done++);
        }
        while (done < m) push(&out[s], GANG_OP_BACKWARD_WEIGHT, s, done++);
    }
}

// Groups of micro-batches go through the stage's chunks one after another. Of p: Narayanan et al. 2021 (arXiv:2104.04473). The larger
// they are, the sooner a chunk has its last micro-batch behind it and the more passes hide its exchange, and as much more is held:
// Lamy-Poirier 2022 (arXiv:2211.05953). What is left at the end is a smaller group.
static void make_interleaved(const struct gang_timing *t, int64_t group, struct gang_arena *arena, struct gang_order *out) {
    orders_alloc(t, 2, arena, out);
    int p = t->stages, v = chunks_of(t);
    int64_t m = t->micro_batches, all = m * v;
    for (int s = 0; s < p; s++) {
        int64_t warm = (p - s - 1) * 2 + (v - 1) * (group < m ? group : m);
        if (warm > all || m == p) warm = all;
        for (int64_t k = 0; k < all + warm; k++)
            for (int back = 0; back < 2; back++) {
                int64_t at = back ? k - warm : k;
                if (at < 0 || at >= all) continue;
                int64_t first = at / (group * v) * group, size = m - first < group ? m - first : group;
                int chunk = (int)((at - first * v) / size);
                push(&out[s], back ? GANG_OP_BACKWARD : GANG_OP_FORWARD, (back ? v - 1 - chunk : chunk) * p + s, first + (at - first * v) % size);
            }
    }
}

// ---- The list scheduler --------------------------------------------------------------------------------------------

struct list {
    const struct gang_timing *t;
    bool split;
    const int64_t *room;                              // [stages] chunk activations
    double *forward, *input;                          // [chunks, micro] when done; INFINITY before
    double *free_at;                                  // [stages]
    int64_t *next_forward, *next_input, *next_weight; // [chunks]
    int64_t *entered, *left;                          // [stages] micro-batches that took room and gave it back
};

struct choice {
    double at; // start
    struct gang_instruction task;
};

static bool has_room(const struct list *l, int stage) { return (l->entered[stage] - l->left[stage] + 1) * chunks_of(l->t) <= l->room[stage]; }

// The best task of an op on this stage: among those ready at `now` the deepest chunk, else the one that is ready first.
static struct choice best_of(const struct list *l, int stage, enum gang_op op, double now) {
    const struct gang_timing *t = l->t;
    struct choice best = {.at = INFINITY};
    for (int c = t->chunks - t->stages + stage; c >= 0; c -= t->stages) {
        int64_t micro = op == GANG_OP_FORWARD ? l->next_forward[c] : op == GANG_OP_BACKWARD_WEIGHT ? l->next_weight[c] : l->next_input[c];
        if (micro == t->micro_batches) continue;
        if (op == GANG_OP_FORWARD && c == stage && !has_room(l, stage)) continue;
        if (op == GANG_OP_BACKWARD_WEIGHT && micro >= l->next_input[c]) continue;
        struct gang_instruction task = task_of(op, c, micro);
        double ready = gang_larger(now, ready_at(t, l->forward, l->input, &task));
        if (ready < best.at) best = (struct choice){ready, task};
        if (ready <= now) break; // none is sooner
    }
    return best;
}

static struct choice choose(const struct list *l, int stage) {
    double now = l->free_at[stage];
    enum gang_op backward = l->split ? GANG_OP_BACKWARD_INPUT : GANG_OP_BACKWARD;
    struct choice input = best_of(l, stage, backward, now), forward = best_of(l, stage, GANG_OP_FORWARD, now);
    struct choice next = input.at <= now || input.at <= forward.at ? input : forward;
    if (!l->split || next.at <= now) return next;
    struct choice weight = best_of(l, stage, GANG_OP_BACKWARD_WEIGHT, now);
    // Half of it may stick out of the gap: what waits loses less than the gap would.
    return weight.at <= now && next.at - now >= l->t->weight[weight.task.chunk] / 2 ? weight : next;
}

static void take(struct list *l, int stage, const struct choice *choice, struct gang_order *order) {
    const struct gang_instruction *i = &choice->task;
    double end = choice->at + seconds_of(l->t, i);
    int64_t at = i->chunk * l->t->micro_batches + i->micro;
    l->free_at[stage] = end;
    order->items[order->count++] = *i;
    if (i->op == GANG_OP_FORWARD) {
        l->forward[at] = end;
        l->next_forward[i->chunk]++;
        l->entered[stage] += i->chunk == stage;
        return;
    }
    if (i->op == GANG_OP_BACKWARD_WEIGHT) {
        l->next_weight[i->chunk]++;
    } else {
        l->input[at] = end;
        l->next_input[i->chunk]++;
    }
    bool last = i->op == (l->split ? GANG_OP_BACKWARD_WEIGHT : GANG_OP_BACKWARD);
    l->left[stage] += last && i->chunk == stage;
}

// False: too much work, or room for less than one micro-batch.
static bool make_list(const struct gang_timing *t, bool split, const int64_t *room, struct gang_arena *arena, struct gang_order *out) {
    int64_t tasks = (split ? 3 : 2) * t->micro_batches * t->chunks;
    if (tasks * t->chunks > MAX_LIST_WORK) return false;
    for (int s = 0; s < t->stages; s++)
        if (room[s] < chunks_of(t)) return false;
    struct gang_arena own;
    gang_arena_init(&own);
    size_t cells = (size_t)t->chunks * (size_t)t->micro_batches, C = (size_t)t->chunks, S = (size_t)t->stages;
    struct list l = {.t = t, .split = split, .room = room};
    l.forward = gang_arena_alloc(&own, cells * sizeof(double));
    l.input = gang_arena_alloc(&own, cells * sizeof(double));
    l.free_at = gang_arena_alloc(&own, S * sizeof(double));
    l.next_forward = gang_arena_alloc(&own, C * sizeof(int64_t));
    l.next_input = gang_arena_alloc(&own, C * sizeof(int64_t));
    l.next_weight = gang_arena_alloc(&own, C * sizeof(int64_t));
    l.entered = gang_arena_alloc(&own, S * sizeof(int64_t));
    l.left = gang_arena_alloc(&own, S * sizeof(int64_t));
    struct choice *choices = gang_arena_alloc(&own, S * sizeof *choices);
    for (size_t i = 0; i < cells; i++) l.forward[i] = l.input[i] = INFINITY;
    orders_alloc(t, split ? 3 : 2, arena, out);
    for (int s = 0; s < t->stages; s++) choices[s] = choose(&l, s);
    int64_t done = 0;
    for (; done < tasks; done++) {
        // Whoever starts first: nothing that is decided later can make anything ready before that.
        int who = 0;
        for (int s = 1; s < t->stages; s++)
            if (choices[s].at < choices[who].at) who = s;
        if (isinf(choices[who].at)) break;
        take(&l, who, &choices[who], &out[who]);
        // What is done makes something ready here and for the neighbours, and for nobody else.
        for (int s = who + t->stages - 1; s <= who + t->stages + 1; s++) choices[s % t->stages] = choose(&l, s % t->stages);
    }
    gang_arena_release(&own);
    return done == tasks;
}

// ---- Choosing ------------------------------------------------------------------------------------------------------

struct contest {
    const struct gang_timing *t;
    struct gang_order *best, *next; // [stages]
    double seconds;
    int64_t held;
    enum gang_schedule kind;
    bool bounded; // by memory; a rule asked for by name is made as it is, and whether it fits is for the caller to say
};

static void enter(struct contest *c, enum gang_schedule kind) {
    int64_t held = 0;
    for (int s = 0; s < c->t->stages; s++) {
        int64_t here = gang_schedule_in_flight(&c->next[s]);
        if (c->bounded && here > c->t->limit[s]) return;
        if (here > held) held = here;
    }
    double seconds = gang_schedule_seconds(c->t, c->next), close = c->seconds * 1e-9;
    if (isinf(seconds) || seconds > c->seconds + close || (seconds >= c->seconds - close && held >= c->held)) return;
    struct gang_order *swap = c->best;
    c->best = c->next;
    c->next = swap;
    c->seconds = seconds;
    c->held = held;
    c->kind = kind;
}

static void try_rules(struct contest *c, enum gang_schedule wanted, struct gang_arena *arena) {
    static const double stretches[] = {1, 1.5, 2, 3, 5, 9, 1e6};
    const struct gang_timing *t = c->t;
    bool any = wanted == GANG_SCHEDULE_AUTO;
    if (chunks_of(t) == 1 && (any || wanted == GANG_SCHEDULE_1F1B))
        for (int i = 0; i < (any ? 7 : 1); i++) {
            make_1f1b(t, stretches[i], any, arena, c->next);
            enter(c, GANG_SCHEDULE_1F1B);
        }
    if (chunks_of(t) == 1 && t->stages > 1 && (any || wanted == GANG_SCHEDULE_ZERO_BUBBLE)) {
        make_h1(t, arena, c->next);
        enter(c, GANG_SCHEDULE_ZERO_BUBBLE);
    }
    if (chunks_of(t) > 1 && t->micro_batches % t->stages == 0 && (any || wanted == GANG_SCHEDULE_INTERLEAVED))
        for (int64_t group = t->stages; group < 2 * t->micro_batches && (any || group == t->stages); group *= 2) {
            make_interleaved(t, group, arena, c->next);
            enter(c, GANG_SCHEDULE_INTERLEAVED);
        }
}

static void try_lists(struct contest *c, struct gang_arena *arena) {
    static const double stretches[] = {1, 2, 4, 1e6};
    const struct gang_timing *t = c->t;
    int64_t *room = gang_arena_alloc(arena, (size_t)t->stages * sizeof *room);
    for (int split = 0; split < 2; split++)
        for (int i = 0; i < 4; i++) {
            for (int s = 0; s < t->stages; s++) {
                double want = (double)(split ? t->stages : t->stages - s) * stretches[i] * chunks_of(t);
                room[s] = want < (double)t->limit[s] ? (int64_t)want : t->limit[s];
            }
            if (make_list(t, split, room, arena, c->next)) enter(c, GANG_SCHEDULE_LIST);
        }
}

enum gang_status gang_schedule_make(const struct gang_timing *t, enum gang_schedule schedule, struct gang_arena *arena, struct gang_order *out,
                                    enum gang_schedule *used) {
    struct gang_arena own; // candidates; the winner is copied out
    gang_arena_init(&own);
    struct contest c = {.t = t, .seconds = INFINITY, .held = INT64_MAX};
    c.bounded = schedule == GANG_SCHEDULE_AUTO || schedule == GANG_SCHEDULE_LIST || schedule == GANG_SCHEDULE_ZERO_BUBBLE;
    c.best = gang_arena_alloc(&own, (size_t)t->stages * sizeof *c.best);
    c.next = gang_arena_alloc(&own, (size_t)t->stages * sizeof *c.next);
    try_rules(&c, schedule, &own);
    if (schedule == GANG_SCHEDULE_AUTO || schedule == GANG_SCHEDULE_LIST) try_lists(&c, &own);
    enum gang_status status = GANG_OK;
    if (isinf(c.seconds)) {
        status = gang_fail(GANG_ERR_UNSUPPORTED,
                           "schedule %s: does not apply to %d stages of %d chunks and %lld micro-batches with room for %lld on stage 0",
                           gang_schedule_names[schedule], t->stages, chunks_of(t), (long long)t->micro_batches, (long long)t->limit[0]);
    } else {
        for (int s = 0; s < t->stages; s++) {
            size_t bytes = (size_t)c.best[s].count * sizeof *c.best[s].items;
            out[s] = (struct gang_order){.count = c.best[s].count, .items = gang_arena_alloc(arena, bytes)};
            memcpy(out[s].items, c.best[s].items, bytes);
        }
        *used = c.kind;
    }
    gang_arena_release(&own);
    return status;
}
