// Programs: built from orders, printed and parsed.
//
// The text form, one instruction a line:
//
//     gangline-program 1
//     stages 2 chunks 2 buffers 1
//     replica copies 64 micro-batches 8 size 4
//     rank 0
//     forward c0 m0
//     send activation c0 m0 r1
//     ...
//     end
//
// A message is named by the chunk that made it: the activation of chunk c goes to the rank of chunk c + 1, its gradient
// comes back from there as the gradient of chunk c + 1.
#include "plan/plan.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

const struct gang_op_info gang_ops[GANG_OPS] = {
    [GANG_OP_FORWARD] = {"forward", GANG_TAKES_MICRO, true},
    [GANG_OP_BACKWARD] = {"backward", GANG_TAKES_MICRO, true},
    [GANG_OP_BACKWARD_INPUT] = {"backward-input", GANG_TAKES_MICRO, true},
    [GANG_OP_BACKWARD_WEIGHT] = {"backward-weight", GANG_TAKES_MICRO, true},
    [GANG_OP_SEND] = {"send", GANG_TAKES_PEER, false},
    [GANG_OP_RECEIVE] = {"receive", GANG_TAKES_PEER, false},
    [GANG_OP_GATHER] = {"gather", GANG_TAKES_CHUNK, false},
    [GANG_OP_REDUCE] = {"reduce", GANG_TAKES_CHUNK, false},
    [GANG_OP_OPTIMIZER] = {"optimizer", GANG_TAKES_NOTHING, true},
};

// ---- Passes --------------------------------------------------------------------------------------------------------

// Every pass waits for copies of its own: a half of a backward pass that is run by itself brings back what both need.
double gang_copy_shown(const struct gang_chunk_cost *cost, enum gang_op op) {
    double work = op == GANG_OP_FORWARD ? gang_time_sum(&cost->forward) : 0;
    if (!(cost->copy_seconds > 0)) return 0;
    if (op == GANG_OP_BACKWARD || op == GANG_OP_BACKWARD_INPUT) work += gang_time_sum(&cost->input);
    if (op == GANG_OP_BACKWARD || op == GANG_OP_BACKWARD_WEIGHT) work += gang_time_sum(&cost->weight);
    return gang_larger(0, cost->copy_seconds - work);
}

// The host has room for all but what is being computed: what leaves is there already, what comes back is there still.
void gang_held_begin(struct gang_held *held, const struct gang_costs *costs, int class_index, int chunk, enum gang_op op) {
    double bytes = gang_costs_chunk(costs, class_index, chunk)->activation_bytes;
    double stays = costs->stays[class_index * costs->stages + chunk % costs->stages];
    if (op == GANG_OP_FORWARD) held->now += bytes;
    held->device = gang_larger(held->device, gang_smaller(held->now, stays));
    if (isfinite(stays)) held->host = gang_larger(held->host, held->now - bytes);
}

void gang_held_end(struct gang_held *held, const struct gang_costs *costs, int class_index, int chunk, enum gang_op op) {
    if (op == GANG_OP_BACKWARD || op == GANG_OP_BACKWARD_WEIGHT) held->now -= gang_costs_chunk(costs, class_index, chunk)->activation_bytes;
}

// ---- Building ------------------------------------------------------------------------------------------------------

// Orders count so many times what a message between sites takes: what comes later than meant there would stop a stage that has nothing else.
static const double far_slack = 2;
// Part of the device that is left alone: allocator's waste, the runtime's own context.
static const double usable = 0.95;

static void fill_limits(const struct gang_task *task, const struct gang_layout *l, const struct gang_costs *costs, int c, int64_t *limit) {
    for (int s = 0; s < l->pp; s++) {
        struct gang_memory_use use;
        gang_memory_of(task, l, costs, c, s, &(struct gang_held){0}, &use);
        double largest = 1;
        for (int chunk = s; chunk < costs->chunks; chunk += l->pp) largest = fmax(largest, gang_costs_chunk(costs, c, chunk)->activation_bytes);
        double room = (use.limit * usable - use.total) / largest, stays = costs->stays[c * costs->stages + s] / largest;
        if (room >= stays) room = 1 + (use.host_limit * usable - use.host) / largest;
        // One micro-batch always: whether it fits is for the caller to say, with figures.
        limit[s] = room < l->vpp ? l->vpp : room > 1e9 ? 1000000000 : (int64_t)room;
    }
}

static enum gang_status order_class(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                                    const struct gang_placement *placement, const struct gang_costs *costs, int c, struct gang_arena *arena,
                                    struct gang_order *out, enum gang_schedule *used) {
    size_t C = (size_t)costs->chunks, S = (size_t)l->pp;
    double *forward = gang_arena_alloc(arena, C * sizeof(double)), *input = gang_arena_alloc(arena, C * sizeof(double));
    double *weight = gang_arena_alloc(arena, C * sizeof(double)), *delay = gang_arena_alloc(arena, S * sizeof(double));
    double *copy = gang_arena_alloc(arena, C * sizeof(double));
    double *gather = gang_arena_alloc(arena, C * sizeof(double)), *reduce = gang_arena_alloc(arena, C * sizeof(double));
    int64_t *limit = gang_arena_alloc(arena, S * sizeof(int64_t));
    for (int chunk = 0; chunk < costs->chunks; chunk++) {
        const struct gang_chunk_cost *cost = gang_costs_chunk(costs, c, chunk);
        forward[chunk] = gang_time_sum(&cost->forward);
        input[chunk] = gang_time_sum(&cost->input);
        weight[chunk] = gang_time_sum(&cost->weight);
        copy[chunk] = cost->copy_seconds;
        gather[chunk] = gang_exchange_seconds(pool, &costs->gather[chunk], l->pp);
        reduce[chunk] = gang_exchange_seconds(pool, &costs->reduce[chunk], l->pp);
    }
    for (int s = 0; s < l->pp; s++) {
        struct gang_hop hop;
        gang_hop_between(pool, l, placement, c, s, (s + 1) % l->pp, &hop);
        // On a link that replicas share, each has its part of the bandwidth.
        double bandwidth = fmin(hop.bandwidth, gang_route_bandwidth(pool, hop.route) / (double)placement->classes[c].replicas);
        delay[s] = (hop.route ? far_slack : 1) * (hop.delay + costs->message_bytes[c] / bandwidth);
    }
    fill_limits(task, l, costs, c, limit);
    const struct gang_timing timing = {.stages = l->pp,
                                       .chunks = costs->chunks,
                                       .micro_batches = placement->classes[c].micro_batches,
                                       .forward = forward,
                                       .input = input,
                                       .weight = weight,
                                       .delay = delay,
                                       .limit = limit,
                                       .copy = copy,
                                       .gather = l->dp_overlap ? gather : NULL,
                                       .reduce = l->dp_overlap ? reduce : NULL};
    return gang_schedule_make(&timing, (enum gang_schedule)l->schedule, arena, out, used);
}

static void emit(struct gang_rank_program *rank, enum gang_op op, int gradient, int chunk, int micro, int peer) {
    rank->items[rank->count++] = (struct gang_instruction){
        .op = (uint8_t)op, .gradient = (uint8_t)gradient, .chunk = (int16_t)chunk, .micro = micro, .peer = peer};
}

// A stage's order with the messages around it: what a task needs is received right before, what it makes is sent right after.
static void emit_stage(const struct gang_program *program, const struct gang_costs *costs, const struct gang_order *order, int replica, int stage,
                       struct gang_arena *arena, struct gang_rank_program *out) {
    int p = program->stages, base = replica * p, last = program->chunks - 1, before = base + (stage + p - 1) % p, after = base + (stage + 1) % p;
    int v = program->chunks / p;
    *out = (struct gang_rank_program){.items = gang_arena_alloc(arena, (size_t)(3 * order->count + 2 * v + 1) * sizeof *out->items)};
    for (int c = stage; c <= last; c += p)
        if (costs->gather[c].bytes > 0) emit(out, GANG_OP_GATHER, 0, c, 0, -1);
    int64_t micro = program->micro_batches[replica];
    for (int i = 0; i < order->count; i++) {
        struct gang_instruction task = order->items[i];
        int c = task.chunk;
        bool forward = task.op == GANG_OP_FORWARD, weight = task.op == GANG_OP_BACKWARD_WEIGHT, whole = task.op == GANG_OP_BACKWARD;
        if (p > 1 && forward && c > 0) emit(out, GANG_OP_RECEIVE, 0, c - 1, task.micro, before);
        if (p > 1 && !forward && !weight && c < last) emit(out, GANG_OP_RECEIVE, 1, c + 1, task.micro, after);
        if ((weight || whole) && task.micro == micro - 1 && costs->reduce[c].bytes > 0) emit(out, GANG_OP_REDUCE, 0, c, 0, -1);
        out->items[out->count++] = task;
        if (p > 1 && forward && c < last) emit(out, GANG_OP_SEND, 0, c, task.micro, after);
        if (p > 1 && !forward && !weight && c > 0) emit(out, GANG_OP_SEND, 1, c, task.micro, before);
    }
    emit(out, GANG_OP_OPTIMIZER, 0, 0, 0, -1);
}

enum gang_status gang_program_build(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                                    const struct gang_placement *placement, const struct gang_costs *costs, bool fold, struct gang_arena *arena,
                                    struct gang_program *out, enum gang_schedule *used) {
    struct gang_order *orders = gang_arena_alloc(arena, (size_t)l->pp * sizeof *orders);
    *out = (struct gang_program){.stages = l->pp, .chunks = costs->chunks, .buffers = 1};
    for (int c = 0; c < placement->class_count; c++) out->replicas += fold ? 1 : (int)placement->classes[c].replicas;
    out->copies = gang_arena_alloc(arena, (size_t)out->replicas * sizeof *out->copies);
    out->micro_batches = gang_arena_alloc(arena, (size_t)out->replicas * sizeof *out->micro_batches);
    out->sizes = gang_arena_alloc(arena, (size_t)out->replicas * sizeof *out->sizes);
    out->ranks = gang_arena_alloc(arena, (size_t)out->replicas * (size_t)out->stages * sizeof *out->ranks);
    int replica = 0;
    for (int c = 0; c < placement->class_count; c++) {
        enum gang_status status = order_class(task, pool, l, placement, costs, c, arena, orders, used);
        if (status) return status;
        int64_t repeat = fold ? 1 : placement->classes[c].replicas;
        for (int64_t r = 0; r < repeat; r++, replica++) {
            out->copies[replica] = fold ? placement->classes[c].replicas : 1;
            out->micro_batches[replica] = placement->classes[c].micro_batches;
            out->sizes[replica] = placement->classes[c].micro_batch;
            for (int s = 0; s < l->pp; s++) emit_stage(out, costs, &orders[s], replica, s, arena, &out->ranks[replica * out->stages + s]);
        }
        for (int s = 0; s < l->pp; s++) {
            int64_t held = gang_schedule_in_flight(&orders[s]);
            if (held > out->buffers) out->buffers = held > 1 << 20 ? 1 << 20 : (int)held;
        }
    }
    return GANG_OK;
}

static enum gang_status copy_rank(const struct gang_program *from, int replica, int stage, int to, struct gang_arena *arena,
                                  struct gang_rank_program *out) {
    const struct gang_rank_program *rank = &from->ranks[replica * from->stages + stage];
    *out = (struct gang_rank_program){.items = gang_arena_alloc(arena, (size_t)rank->count * sizeof *out->items), .count = rank->count};
    for (int i = 0; i < rank->count; i++) {
        struct gang_instruction *in = &out->items[i];
        *in = rank->items[i];
        if (gang_ops[in->op].takes != GANG_TAKES_PEER) continue;
        if (in->peer / from->stages != replica)
            return gang_fail(GANG_ERR_FORMAT, "program: replica %d: '%s' of rank %d, which belongs to another replica", replica,
                             gang_ops[in->op].name, in->peer);
        in->peer += (to - replica) * from->stages;
    }
    return GANG_OK;
}

enum gang_status gang_program_unfold(const struct gang_program *program, struct gang_arena *arena, struct gang_program *out) {
    enum gang_status status = GANG_OK;
    int64_t replicas = 0;
    for (int r = 0; r < program->replicas; r++) replicas += program->copies[r];
    *out = *program;
    out->replicas = (int)replicas;
    out->copies = gang_arena_alloc(arena, (size_t)replicas * sizeof *out->copies);
    out->micro_batches = gang_arena_alloc(arena, (size_t)replicas * sizeof *out->micro_batches);
    out->sizes = gang_arena_alloc(arena, (size_t)replicas * sizeof *out->sizes);
    out->ranks = gang_arena_alloc(arena, (size_t)replicas * (size_t)program->stages * sizeof *out->ranks);
    for (int r = 0, to = 0; r < program->replicas; r++)
        for (int64_t copy = 0; copy < program->copies[r]; copy++, to++) {
            out->copies[to] = 1, out->micro_batches[to] = program->micro_batches[r], out->sizes[to] = program->sizes[r];
            for (int s = 0; s < program->stages && !status; s++) status = copy_rank(program, r, s, to, arena, &out->ranks[to * program->stages + s]);
        }
    return status;
}

void gang_program_classes(const struct gang_program *program, const struct gang_class *classes, int count, int *out) {
    int64_t seen = 0;
    for (int r = 0, c = 0; r < program->replicas; r++) {
        out[r] = c;
        seen += program->copies[r];
        if (seen >= classes[c].replicas && c + 1 < count) c++, seen = 0;
    }
}

// ---- Printing ------------------------------------------------------------------------------------------------------

void gang_program_print(const struct gang_program *program, struct gang_buffer *out) {
    gang_buffer_printf(out, "gangline-program 1\nstages %d chunks %d buffers %d\n", program->stages, program->chunks, program->buffers);
    for (int r = 0; r < program->replicas; r++) {
        gang_buffer_printf(out, "replica copies %lld micro-batches %lld size %lld\n", (long long)program->copies[r],
                           (long long)program->micro_batches[r], (long long)program->sizes[r]);
        for (int s = 0; s < program->stages; s++) {
            const struct gang_rank_program *rank = &program->ranks[r * program->stages + s];
            gang_buffer_printf(out, "rank %d\n", r * program->stages + s);
            for (int i = 0; i < rank->count; i++) {
                const struct gang_instruction *in = &rank->items[i];
                const struct gang_op_info *info = &gang_ops[in->op];
                gang_buffer_printf(out, "%s", info->name);
                if (info->takes == GANG_TAKES_PEER) gang_buffer_printf(out, " %s", in->gradient ? "gradient" : "activation");
                if (info->takes >= GANG_TAKES_CHUNK) gang_buffer_printf(out, " c%d", in->chunk);
                if (info->takes >= GANG_TAKES_MICRO) gang_buffer_printf(out, " m%d", in->micro);
                if (info->takes == GANG_TAKES_PEER) gang_buffer_printf(out, " r%d", in->peer);
                gang_buffer_printf(out, "\n");
            }
        }
    }
    gang_buffer_printf(out, "end\n");
}

// ---- Parsing -------------------------------------------------------------------------------------------------------

enum { MAX_REPLICAS = 1 << 20, MAX_MICRO = 1 << 20, MAX_SIZE = 1 << 16, MAX_INSTRUCTIONS = 1 << 26, MAX_WORDS = 8, WORD = 24 };

struct text_reader {
    const char *name, *at, *end;
    int64_t line;
    int words;
    char word[MAX_WORDS][WORD];
};

#define FAIL_LINE(in, ...) fail_line((in), __VA_ARGS__)
GANG_PRINTF(2, 3) static enum gang_status fail_line(const struct text_reader *in, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return gang_fail(GANG_ERR_FORMAT, "%s:%lld: %s", in->name, (long long)in->line, text);
}

// The next line that is not empty, cut at spaces. At the end there are no words.
static enum gang_status next_line(struct text_reader *in) {
    in->words = 0;
    while (in->at < in->end && !in->words) {
        in->line++;
        const char *stop = memchr(in->at, '\n', (size_t)(in->end - in->at));
        if (!stop) stop = in->end;
        while (in->at < stop) {
            while (in->at < stop && *in->at == ' ') in->at++;
            size_t len = 0;
            while (in->at + len < stop && in->at[len] != ' ') len++;
            if (!len) break;
            if (in->words == MAX_WORDS || len >= WORD || memchr(in->at, 0, len)) return FAIL_LINE(in, "not a line of a program");
            memcpy(in->word[in->words], in->at, len);
            in->word[in->words++][len] = 0;
            in->at += len;
        }
        in->at = stop < in->end ? stop + 1 : in->end;
    }
    return GANG_OK;
}

// Word `w` as a number behind `prefix`.
static enum gang_status number_at(const struct text_reader *in, int w, const char *prefix, int64_t min, int64_t max, int64_t *out) {
    size_t skip = strlen(prefix);
    if (w >= in->words || strncmp(in->word[w], prefix, skip) != 0) return FAIL_LINE(in, "expected %s with a number", *prefix ? prefix : "a word");
    if (gang_parse_int("number", in->word[w] + skip, min, max, out))
        return FAIL_LINE(in, "'%s': expected a number from %lld to %lld", in->word[w], (long long)min, (long long)max);
    return GANG_OK;
}

// "name number" at words w and w + 1.
static enum gang_status named_number(const struct text_reader *in, int w, const char *name, int64_t min, int64_t max, int64_t *out) {
    if (w + 1 >= in->words || strcmp(in->word[w], name) != 0) return FAIL_LINE(in, "expected '%s' and a number", name);
    return number_at(in, w + 1, "", min, max, out);
}

static enum gang_status parse_head(struct text_reader *in, struct gang_program *out) {
    int64_t stages = 1, chunks = 0, buffers = 0;
    enum gang_status status = next_line(in);
    if (status) return status;
    if (in->words != 2 || strcmp(in->word[0], "gangline-program") != 0 || strcmp(in->word[1], "1") != 0)
        return FAIL_LINE(in, "not a program of version 1: expected 'gangline-program 1'");
    status = next_line(in);
    if (!status) status = named_number(in, 0, "stages", 1, GANG_MAX_STAGES, &stages);
    if (!status) status = named_number(in, 2, "chunks", 1, GANG_MAX_CHUNKS, &chunks);
    if (!status) status = named_number(in, 4, "buffers", 1, 1 << 20, &buffers);
    if (!status && (in->words != 6 || chunks % stages)) status = FAIL_LINE(in, "chunks must be a multiple of stages, and nothing may follow");
    *out = (struct gang_program){.stages = (int)stages, .chunks = (int)chunks, .buffers = (int)buffers};
    return status;
}

static enum gang_status parse_instruction(const struct text_reader *in, const struct gang_program *program, int64_t micro_batches,
                                          struct gang_instruction *out) {
    int op = 0, w = 1;
    while (op < GANG_OPS && strcmp(gang_ops[op].name, in->word[0]) != 0) op++;
    if (op == GANG_OPS) return FAIL_LINE(in, "'%s' is no instruction", in->word[0]);
    enum gang_operands takes = gang_ops[op].takes;
    *out = (struct gang_instruction){.op = (uint8_t)op, .peer = -1};
    enum gang_status status = GANG_OK;
    int64_t chunk = 0, micro = 0, peer = -1;
    if (takes == GANG_TAKES_PEER) {
        if (in->words < 2 || (strcmp(in->word[1], "activation") != 0 && strcmp(in->word[1], "gradient") != 0))
            return FAIL_LINE(in, "%s: expected activation or gradient", in->word[0]);
        out->gradient = in->word[w++][0] == 'g';
    }
    if (takes >= GANG_TAKES_CHUNK) status = number_at(in, w++, "c", 0, program->chunks - 1, &chunk);
    if (!status && takes >= GANG_TAKES_MICRO) status = number_at(in, w++, "m", 0, micro_batches - 1, &micro);
    if (!status && takes == GANG_TAKES_PEER) status = number_at(in, w++, "r", 0, (int64_t)program->replicas * program->stages - 1, &peer);
    if (!status && w != in->words) status = FAIL_LINE(in, "%s: %d words too many", in->word[0], in->words - w);
    out->chunk = (int16_t)chunk, out->micro = (int32_t)micro, out->peer = (int32_t)peer;
    return status;
}

// Instructions and replicas go into growing buffers first; their numbers are not known before.
struct parts {
    struct gang_buffer items, ranks, replicas; // struct gang_instruction; int64_t first instruction; int64_t copies, micro-batches, size
};

static enum gang_status parse_replica(struct text_reader *in, struct gang_program *out, struct parts *parts) {
    int64_t numbers[3] = {0, 0, 0};
    enum gang_status status = named_number(in, 1, "copies", 1, MAX_REPLICAS, &numbers[0]);
    if (!status) status = named_number(in, 3, "micro-batches", 1, MAX_MICRO, &numbers[1]);
    if (!status) status = named_number(in, 5, "size", 1, MAX_SIZE, &numbers[2]);
    if (!status && (in->words != 7 || out->replicas == MAX_REPLICAS)) status = FAIL_LINE(in, "replica: too many words or replicas");
    if (!status && parts->ranks.len != (size_t)out->replicas * (size_t)out->stages * sizeof(int64_t))
        status = FAIL_LINE(in, "replica: the one before has not %d ranks", out->stages);
    if (status) return status;
    gang_buffer_append(&parts->replicas, numbers, sizeof numbers);
    out->replicas++;
    return GANG_OK;
}

static enum gang_status parse_body(struct text_reader *in, struct gang_program *out, struct parts *parts) {
    int64_t last_micro = 0;
    for (;;) {
        enum gang_status status = next_line(in);
        if (status) return status;
        if (!in->words) return FAIL_LINE(in, "the program ends without 'end'");
        size_t ranks = parts->ranks.len / sizeof(int64_t);
        if (!strcmp(in->word[0], "end") && in->words == 1) break;
        if (!strcmp(in->word[0], "replica")) {
            status = parse_replica(in, out, parts);
            if (status) return status;
            const int64_t *numbers = (const void *)parts->replicas.data;
            last_micro = numbers[3 * (out->replicas - 1) + 1];
            continue;
        }
        if (!strcmp(in->word[0], "rank")) {
            int64_t number = 0, first = (int64_t)(parts->items.len / sizeof(struct gang_instruction));
            status = number_at(in, 1, "", (int64_t)ranks, (int64_t)ranks, &number);
            if (!status && (in->words != 2 || !out->replicas || ranks == (size_t)out->replicas * (size_t)out->stages))
                status = FAIL_LINE(in, "rank: not expected here");
            if (status) return status;
            gang_buffer_append(&parts->ranks, &first, sizeof first);
            continue;
        }
        if (!ranks || ranks <= (size_t)(out->replicas - 1) * (size_t)out->stages) return FAIL_LINE(in, "an instruction outside a rank");
        struct gang_instruction item;
        status = parse_instruction(in, out, last_micro, &item);
        if (status) return status;
        if (parts->items.len / sizeof item == MAX_INSTRUCTIONS) return FAIL_LINE(in, "more than %d instructions", MAX_INSTRUCTIONS);
        gang_buffer_append(&parts->items, &item, sizeof item);
    }
    if (!out->replicas || parts->ranks.len != (size_t)out->replicas * (size_t)out->stages * sizeof(int64_t))
        return FAIL_LINE(in, "the last replica has not %d ranks", out->stages);
    enum gang_status status = next_line(in);
    return status ? status : in->words ? FAIL_LINE(in, "text behind 'end'") : GANG_OK;
}

static enum gang_status assemble(const struct text_reader *in, const struct parts *parts, struct gang_arena *arena, struct gang_program *out) {
    const int64_t *numbers = (const void *)parts->replicas.data, *firsts = (const void *)parts->ranks.data;
    size_t ranks = (size_t)out->replicas * (size_t)out->stages;
    assert(numbers && firsts); // parse_body saw a replica with ranks
    out->copies = gang_arena_alloc(arena, (size_t)out->replicas * sizeof *out->copies);
    out->micro_batches = gang_arena_alloc(arena, (size_t)out->replicas * sizeof *out->micro_batches);
    out->sizes = gang_arena_alloc(arena, (size_t)out->replicas * sizeof *out->sizes);
    out->ranks = gang_arena_alloc(arena, ranks * sizeof *out->ranks);
    struct gang_instruction *items = gang_arena_alloc(arena, parts->items.len + 1);
    if (parts->items.len) memcpy(items, parts->items.data, parts->items.len);
    for (int r = 0; r < out->replicas; r++)
        out->copies[r] = numbers[3 * r], out->micro_batches[r] = numbers[3 * r + 1], out->sizes[r] = numbers[3 * r + 2];
    for (size_t i = 0; i < ranks; i++) {
        int64_t end = i + 1 < ranks ? firsts[i + 1] : (int64_t)(parts->items.len / sizeof *items);
        out->ranks[i] = (struct gang_rank_program){.count = (int)(end - firsts[i]), .items = items + firsts[i]};
    }
    // Also keeps what the verifier allocates in proportion to the file.
    for (int r = 0; r < out->replicas; r++) {
        int64_t count = 0;
        for (int s = 0; s < out->stages; s++) count += out->ranks[r * out->stages + s].count;
        if (count / 2 < out->chunks * out->micro_batches[r]) return FAIL_LINE(in, "replica %d has fewer instructions than its work needs", r);
    }
    return GANG_OK;
}

enum gang_status gang_program_parse(const char *name, int64_t line, const char *text, size_t bytes, struct gang_arena *arena,
                                    struct gang_program *out) {
    struct text_reader in = {.name = name, .at = text, .end = text + bytes, .line = line - 1};
    struct parts parts = {0};
    enum gang_status status = parse_head(&in, out);
    if (!status) status = parse_body(&in, out, &parts);
    if (!status) status = assemble(&in, &parts, arena, out);
    gang_buffer_release(&parts.items);
    gang_buffer_release(&parts.ranks);
    gang_buffer_release(&parts.replicas);
    return status;
}
