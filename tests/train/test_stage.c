// Stages of a pipeline in one process: a model cut in many ways, messages handed on by hand, micro-batches in flight in many
// orders, against the whole model in one piece. Loss and gradients are the same, bit for bit where the order of additions is.
#include "../test.h"
#include "train/train.h"

#include <math.h>

enum { MAX_STAGES = 4, MAX_CHUNKS = 8, MICRO_BATCHES = 5, BATCH = 2, LENGTH = 9, MAX_BUCKETS = 16 };

static const struct gang_config base = {.vocab_size = 83,
                                        .hidden_size = 24,
                                        .intermediate_size = 36,
                                        .layers = 6,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .head_dim = 6,
                                        .max_positions = 64,
                                        .norm_eps = 1e-5,
                                        .init_range = 0.2, // so that every layer matters
                                        .rope_theta = 10000};

// ---- The model in one piece ----------------------------------------------------------------------------------------

struct whole {
    struct gang_arena arena;
    struct gang_model model;
    struct gang_device *device;
    struct gang_net *net;
    int32_t tokens[MICRO_BATCHES][BATCH * (LENGTH + 1)];
    double loss;
};

static float scale_of(void) { return 1.0f / (float)(MICRO_BATCHES * BATCH * LENGTH); }

static void open_whole(struct whole *w, const char *kind, enum gang_compute compute, bool tied, const struct gang_net_shape *shape) {
    struct gang_config config = base;
    uint64_t seed = test_seed();
    config.tied = tied;
    gang_arena_init(&w->arena);
    gang_model_init(&w->model, &config, &w->arena);
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = kind, .compute = compute, .threads = 2}, &w->device));
    assert_ok(gang_net_new(&w->model, w->device, shape, &w->net));
    gang_model_randomise(&w->model, seed, gang_net_parameters(w->net));
    gang_net_refresh(w->net);
    for (int m = 0; m < MICRO_BATCHES; m++)
        for (int i = 0; i < BATCH * (LENGTH + 1); i++)
            w->tokens[m][i] = (int32_t)(gang_random_at(seed, 9, (uint64_t)(m * BATCH * (LENGTH + 1) + i)) % (uint64_t)config.vocab_size);
}

static const struct gang_net_shape plain_shape = {.batch = BATCH, .length = LENGTH};

static void learn_whole(struct whole *w) {
    w->loss = 0;
    for (int m = 0; m < MICRO_BATCHES; m++) w->loss += gang_net_micro_batch(w->net, w->tokens[m], scale_of(), m == 0);
}

static void close_whole(struct whole *w) {
    gang_net_free(w->net);
    gang_device_close(w->device);
    gang_arena_release(&w->arena);
}

// ---- The model in pieces -------------------------------------------------------------------------------------------

// What to do next is the first of `order` that can be done: F forward, B backward (its input half in a split pass), W weight
// half. Micro-batches of a chunk follow one another, unless they are `shuffled`.
struct way {
    const char *chunks; // the stage of each chunk: "0101" is two stages of two chunks
    const int *layers;  // of each chunk; NULL: 6 in equal parts
    const char *order;
    int slots;
    bool split, recompute, shuffled;
    enum gang_compute message, compute[MAX_STAGES];
};

struct stage {
    struct gang_arena arena;
    struct gang_model model;
    struct gang_device *device;
    struct gang_net *net;
    int chunk_count, bucket_count;
    struct gang_net_chunk chunks[MAX_CHUNKS];
    struct gang_net_bucket buckets[MAX_BUCKETS];
    int calls[MAX_BUCKETS], last_call; // of the hook
    float *sent;                       // the buckets' gradients as they were when the hook was called
};

enum progress { WAITS, FORWARD_DONE, INPUT_DONE, DONE };

struct pipeline {
    const struct way *way;
    const struct whole *whole;
    struct stage stages[MAX_STAGES];
    int stage_count, chunk_count;
    int stage_of[MAX_CHUNKS], local[MAX_CHUNKS]; // of each chunk: its stage, its place there
    enum progress at[MAX_CHUNKS][MICRO_BATCHES];
    int slot_of[MAX_CHUNKS][MICRO_BATCHES], user[MAX_CHUNKS][MICRO_BATCHES]; // user: micro-batch + 1 of a slot
    void *messages[2][MAX_CHUNKS][MICRO_BATCHES];                            // of each chunk forward, and of each backward
    uint64_t draws;
    double loss;
};

static void ready(void *context, int bucket) {
    struct stage *s = context;
    const struct gang_net_bucket *b = &s->buckets[bucket];
    s->calls[bucket]++;
    s->last_call = bucket;
    memcpy(s->sent + b->offset, gang_net_gradients(s->net) + b->offset, (size_t)b->elements * sizeof(float));
}

static void open_stage(struct pipeline *p, int index, const char *kind) {
    struct stage *s = &p->stages[index];
    const struct way *way = p->way;
    const struct gang_config *config = &p->whole->model.config;
    bool layers[8] = {false};
    for (int i = 0; i < s->chunk_count; i++)
        for (int layer = s->chunks[i].from; layer < s->chunks[i].to; layer++) layers[layer] = true;
    const struct gang_model_part part = {.layers = layers, .embed = layers[0], .head = layers[config->layers - 1]};
    const struct gang_net_shape shape = {.batch = BATCH,
                                         .length = LENGTH,
                                         .chunk_count = s->chunk_count,
                                         .chunks = s->chunks,
                                         .split = way->split,
                                         .recompute = way->recompute,
                                         .message = way->message};
    gang_arena_init(&s->arena);
    gang_model_init_part(&s->model, config, &part, &s->arena);
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = kind, .compute = way->compute[index], .threads = 2}, &s->device));
    assert_ok(gang_net_new(&s->model, s->device, &shape, &s->net));
    gang_model_randomise(&s->model, test_seed(), gang_net_parameters(s->net));
    gang_net_refresh(s->net);
    s->bucket_count = gang_net_buckets(&s->model, &shape, NULL);
    assert_in_range(s->bucket_count, 1, MAX_BUCKETS);
    assert_int_equal(gang_net_buckets(&s->model, &shape, s->buckets), s->bucket_count);
    s->sent = malloc((size_t)s->model.elements * sizeof(float));
    assert_non_null(s->sent);
}

static void open_pipeline(struct pipeline *p, const struct whole *whole, const struct way *way, const char *kind) {
    *p = (struct pipeline){.way = way, .whole = whole, .chunk_count = (int)strlen(way->chunks)};
    int from = 0;
    for (int c = 0; c < p->chunk_count; c++) {
        int index = way->chunks[c] - '0', to = from + (way->layers ? way->layers[c] : base.layers / p->chunk_count);
        struct stage *s = &p->stages[index];
        p->stage_of[c] = index;
        p->local[c] = s->chunk_count;
        s->chunks[s->chunk_count++] = (struct gang_net_chunk){from, to, way->slots};
        if (index >= p->stage_count) p->stage_count = index + 1;
        from = to;
    }
    assert_int_equal(from, base.layers);
    for (int i = 0; i < p->stage_count; i++) open_stage(p, i, kind);
    for (int c = 0; c < p->chunk_count; c++)
        for (int m = 0; m < 2 * MICRO_BATCHES; m++) p->messages[m & 1][c][m / 2] = malloc(gang_net_message_bytes(p->stages[0].net));
}

static void close_pipeline(struct pipeline *p) {
    for (int c = 0; c < p->chunk_count; c++)
        for (int m = 0; m < 2 * MICRO_BATCHES; m++) free(p->messages[m & 1][c][m / 2]);
    for (int i = 0; i < p->stage_count; i++) {
        struct stage *s = &p->stages[i];
        free(s->sent);
        gang_net_free(s->net);
        gang_device_close(s->device);
        gang_arena_release(&s->arena);
    }
}

// ---- Running it ----------------------------------------------------------------------------------------------------

// What is over when a call returns must not be read later.
static void *spoil(void *data, size_t bytes) { return memset(data, 0x7f, bytes); }

static bool try_forward(struct pipeline *p, int c, int m) {
    struct gang_net *net = p->stages[p->stage_of[c]].net;
    int slot = 0, last = p->chunk_count - 1;
    while (slot < p->way->slots && p->user[c][slot]) slot++;
    if (p->at[c][m] != WAITS || slot == p->way->slots || (c > 0 && p->at[c - 1][m] < FORWARD_DONE)) return false;
    int32_t tokens[BATCH * (LENGTH + 1)];
    memcpy(tokens, p->whole->tokens[m], sizeof tokens);
    gang_net_forward(net, p->local[c], slot, c == 0 || c == last ? tokens : NULL, c > 0 ? p->messages[0][c - 1][m] : NULL,
                     c < last ? p->messages[0][c][m] : NULL);
    spoil(tokens, sizeof tokens);
    if (c > 0) spoil(p->messages[0][c - 1][m], gang_net_message_bytes(net));
    p->slot_of[c][m] = slot;
    p->user[c][slot] = m + 1;
    p->at[c][m] = FORWARD_DONE;
    return true;
}

static bool is_last_of_chunk(const struct pipeline *p, int c, int m) {
    for (int other = 0; other < MICRO_BATCHES; other++)
        if (other != m && p->at[c][other] != DONE) return false;
    return true;
}

static void backward(struct pipeline *p, int c, int m, enum gang_half half) {
    struct stage *s = &p->stages[p->stage_of[c]];
    const struct gang_net_hook hook = {s, ready};
    bool input = half != GANG_HALF_WEIGHT;
    void *in = input && c < p->chunk_count - 1 ? p->messages[1][c + 1][m] : NULL;
    p->loss += gang_net_backward(s->net, p->local[c], p->slot_of[c][m], half, scale_of(), in, input && c > 0 ? p->messages[1][c][m] : NULL,
                                 half != GANG_HALF_INPUT && is_last_of_chunk(p, c, m) ? &hook : NULL);
    if (in) spoil(in, gang_net_message_bytes(s->net));
    p->at[c][m] = half == GANG_HALF_INPUT ? INPUT_DONE : DONE;
    if (p->at[c][m] == DONE) p->user[c][p->slot_of[c][m]] = 0;
}

static bool try_op(struct pipeline *p, char op, int c, int m) {
    if (op == 'F') return try_forward(p, c, m);
    bool ready_for_input = p->at[c][m] == FORWARD_DONE && (c == p->chunk_count - 1 || p->at[c + 1][m] >= INPUT_DONE);
    if (op == 'B' ? !ready_for_input : p->at[c][m] != INPUT_DONE) return false;
    backward(p, c, m, op == 'W' ? GANG_HALF_WEIGHT : p->way->split ? GANG_HALF_INPUT : GANG_HALF_BOTH);
    return true;
}

// The first micro-batch of a chunk that has not come as far as `op` leads, or any.
static bool try_chunk(struct pipeline *p, char op, int c) {
    enum progress after = op == 'F' ? FORWARD_DONE : op == 'B' ? INPUT_DONE : DONE;
    int skip = p->way->shuffled ? (int)(gang_random_at(5, 0, p->draws++) % MICRO_BATCHES) : 0;
    for (int i = 0; i < MICRO_BATCHES; i++) {
        int m = (i + skip) % MICRO_BATCHES;
        if (p->at[c][m] >= after) continue;
        if (try_op(p, op, c, m)) return true;
        if (!p->way->shuffled) return false;
    }
    return false;
}

static bool advance(struct pipeline *p) {
    for (const char *op = p->way->order; *op; op++)
        for (int c = 0; c < p->chunk_count; c++)
            if (try_chunk(p, *op, *op == 'F' ? c : p->chunk_count - 1 - c)) return true;
    return false;
}

static void step(struct pipeline *p) {
    p->loss = 0;
    memset(p->at, 0, sizeof p->at);
    for (int i = 0; i < p->stage_count; i++) {
        struct stage *s = &p->stages[i];
        memset(s->calls, 0, sizeof s->calls);
        // What is there from another step must not matter.
        for (int t = 0; t < s->model.count; t++) {
            const struct gang_tensor *tensor = &s->model.tensors[t];
            for (int64_t k = 0; k < tensor->rows * tensor->cols; k++) gang_net_gradients(s->net)[tensor->offset + k] = NAN;
        }
        gang_net_begin(s->net);
    }
    while (advance(p)) {}
    for (int c = 0; c < p->chunk_count; c++)
        for (int m = 0; m < MICRO_BATCHES; m++)
            if (p->at[c][m] != DONE) fail_msg("chunk %d, micro-batch %d: stuck at %d", c, m, (int)p->at[c][m]);
}

// ---- What must have come out ---------------------------------------------------------------------------------------

static void same_numbers(const char *what, const float *want, const float *got, int64_t n, double tolerance) {
    double off = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)want[i] - (double)got[i];
        off += d * d, size += (double)want[i] * (double)want[i];
    }
    if (!(sqrt(off) <= tolerance * sqrt(size)) || !(size > 0)) fail_msg("%s: off by %g of its norm %g", what, sqrt(off / size), sqrt(size));
}

// A tensor's gradient: of the stage that holds it, or of both for a tied embedding and its copy.
static void check_tensor(struct pipeline *p, const struct gang_tensor *t, double tolerance) {
    int64_t n = t->rows * t->cols;
    float *sum = calloc((size_t)n, sizeof *sum);
    int holders = 0;
    for (int i = 0; i < p->stage_count; i++) {
        const struct gang_tensor *part = gang_model_find(&p->stages[i].model, t->role, t->layer);
        if (!part) continue;
        holders++;
        const float *gradient = gang_net_gradients(p->stages[i].net) + part->offset;
        for (int64_t k = 0; k < n; k++) sum[k] += gradient[k];
    }
    // In the whole model head and embedding add in turn to what is one tensor.
    bool tied = t->role == GANG_ROLE_EMBED && p->whole->model.config.tied, copied = tied && p->stage_of[0] != p->stage_of[p->chunk_count - 1];
    assert_int_equal(holders, copied ? 2 : 1);
    same_numbers(t->name, gang_net_gradients(p->whole->net) + t->offset, sum, n, tied && tolerance < 1e-6 ? 1e-6 : tolerance);
    free(sum);
}

static void check_buckets(const struct pipeline *p, struct stage *s) {
    int64_t covered = 0;
    for (int b = 0; b < s->bucket_count; b++) {
        const struct gang_net_bucket *x = &s->buckets[b];
        assert_int_equal(s->calls[b], 1);
        assert_true(x->offset >= 0 && x->elements > 0 && x->offset % 16 == 0 && x->offset + x->elements <= s->model.elements);
        covered += x->elements;
        for (int other = 0; other < b; other++) {
            const struct gang_net_bucket *y = &s->buckets[other];
            assert_true(x->offset + x->elements <= y->offset || y->offset + y->elements <= x->offset);
            assert_true(x->chunk <= y->chunk);
        }
    }
    assert_int_equal(covered, s->model.elements);
    if (!p->way->split) assert_int_equal(s->last_call, s->bucket_count - 1);
    assert_memory_equal(s->sent, gang_net_gradients(s->net), (size_t)s->model.elements * sizeof(float));
}

static void check_way(const struct whole *whole, const struct way *way, const char *kind, double tolerance) {
    struct pipeline p;
    open_pipeline(&p, whole, way, kind);
    for (int round = 0; round < 2; round++) {
        step(&p);
        if (!(fabs(p.loss - whole->loss) <= tolerance * fabs(whole->loss)))
            fail_msg("%s %s: loss %.9g, whole %.9g", way->chunks, way->order, p.loss, whole->loss);
        for (int i = 0; i < whole->model.count; i++) check_tensor(&p, &whole->model.tensors[i], tolerance);
        for (int i = 0; i < p.stage_count; i++) check_buckets(&p, &p.stages[i]);
    }
    close_pipeline(&p);
}

static const int uneven[] = {1, 3, 2}, four[] = {1, 2, 2, 1};

// Orders in which additions happen as in the whole model.
static const struct way ways[] = {
    {.chunks = "0", .order = "FB", .slots = 3},
    {.chunks = "01", .order = "BF", .slots = 1},
    {.chunks = "01", .order = "FB", .slots = 3},
    {.chunks = "012", .order = "FB", .slots = 4, .layers = uneven},
    {.chunks = "0123", .order = "FB", .slots = 5, .layers = four},
    {.chunks = "012", .order = "BFW", .slots = 3, .split = true},
    {.chunks = "01", .order = "FBW", .slots = 5, .split = true},
    {.chunks = "01", .order = "WBF", .slots = 2, .split = true},
    {.chunks = "0101", .order = "FB", .slots = 3, .layers = four},
    {.chunks = "0101", .order = "BFW", .slots = 4, .layers = four, .split = true},
    {.chunks = "010", .order = "FB", .slots = 3}, // embedding and head on one stage
    {.chunks = "0110", .order = "FBW", .slots = 5, .layers = four, .split = true},
    {.chunks = "0", .order = "FB", .slots = 2, .recompute = true},
    {.chunks = "012", .order = "FB", .slots = 4, .recompute = true},
    {.chunks = "0101", .order = "FBW", .slots = 3, .layers = four, .recompute = true, .split = true},
};
enum { WAY_COUNT = sizeof ways / sizeof *ways };

static void all_ways(const char *kind, enum gang_compute compute, bool tied) {
    struct whole whole;
    open_whole(&whole, kind, compute, tied, &plain_shape);
    learn_whole(&whole);
    for (int i = 0; i < WAY_COUNT; i++) {
        struct way way = ways[i];
        for (int s = 0; s < MAX_STAGES; s++) way.compute[s] = compute;
        check_way(&whole, &way, kind, 0);
        if (i % 4 != 2) continue;
        way.shuffled = true;
        check_way(&whole, &way, kind, 1e-6);
    }
    close_whole(&whole);
}

static void test_reference(void **state) { (void)state, all_ways("ref", GANG_COMPUTE_F32, false); }
static void test_reference_tied(void **state) { (void)state, all_ways("ref", GANG_COMPUTE_F32, true); }
static void test_cpu(void **state) { (void)state, all_ways("cpu", GANG_COMPUTE_F32, false); }
static void test_cpu_tied(void **state) { (void)state, all_ways("cpu", GANG_COMPUTE_F32, true); }
// With messages in f32 nothing is rounded that the whole model does not round.
static void test_cpu_bf16(void **state) { (void)state, all_ways("cpu", GANG_COMPUTE_BF16, false); }

// Unlike devices in one pipeline, against the whole model in f32. (Whole in bf16 it is off by 0.06 to 0.09.)
static void test_rounded_messages(void **state) {
    (void)state;
    static const struct {
        enum gang_compute compute[MAX_STAGES];
        double tolerance;
    } mixes[] = {{{GANG_COMPUTE_BF16, GANG_COMPUTE_BF16, GANG_COMPUTE_BF16}, 0.15},
                 {{GANG_COMPUTE_F32, GANG_COMPUTE_BF16, GANG_COMPUTE_F32}, 0.07},
                 {{GANG_COMPUTE_F32, GANG_COMPUTE_F32, GANG_COMPUTE_F32}, 0.03}};
    struct whole whole;
    open_whole(&whole, "cpu", GANG_COMPUTE_F32, false, &plain_shape);
    learn_whole(&whole);
    for (int i = 0; i < 3; i++)
        for (int split = 0; split < 2; split++) {
            struct way way = {.chunks = "012", .order = "FBW", .slots = 3, .split = split, .message = GANG_COMPUTE_BF16};
            memcpy(way.compute, mixes[i].compute, sizeof way.compute);
            check_way(&whole, &way, "cpu", mixes[i].tolerance);
            way.message = GANG_COMPUTE_F32;
            check_way(&whole, &way, "cpu", mixes[i].tolerance);
        }
    close_whole(&whole);
}

// ---- Memory --------------------------------------------------------------------------------------------------------

static struct gang_memory memory_of(struct whole *w, int slots, bool split, bool recompute) {
    struct gang_memory memory;
    const struct gang_net_chunk chunk = {0, base.layers, slots};
    gang_net_memory(
        &w->model, w->device,
        &(struct gang_net_shape){.batch = BATCH, .length = LENGTH, .chunk_count = 1, .chunks = &chunk, .split = split, .recompute = recompute},
        &memory);
    return memory;
}

static void test_memory(void **state) {
    (void)state;
    struct whole w;
    struct gang_memory whole;
    open_whole(&w, "cpu", GANG_COMPUTE_F32, false, &plain_shape);
    gang_net_memory(&w.model, w.device, &plain_shape, &whole);
    const struct gang_memory one = memory_of(&w, 1, false, false), three = memory_of(&w, 3, false, false), split = memory_of(&w, 1, true, false),
                             again = memory_of(&w, 2, false, true), again1 = memory_of(&w, 1, false, true);
    assert_memory_equal(&whole, &one, sizeof one);
    assert_int_equal(three.activations, 3 * one.activations);
    assert_int_equal(three.total - one.total, 2 * one.activations);
    assert_true(split.activations > one.activations);
    assert_true(again1.activations < one.activations / 4 && again1.total < one.total);
    assert_int_equal(again.total - again1.total, again1.activations);
    close_whole(&w);
}

// ---- Update --------------------------------------------------------------------------------------------------------

static const struct gang_update update = {.rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .decay = 0.1, .clip = 0.01, .step = 1};

// Two owners of two ranges each, cut inside tensors, update what one does.
static void owners(const char *kind) {
    struct whole one, two[2];
    open_whole(&one, kind, GANG_COMPUTE_F32, false, &plain_shape);
    int64_t all = one.model.elements, cuts[] = {0, all / 5 / 16 * 16, all / 3, all / 2 + 7, all};
    struct gang_range owned[2][2];
    for (int r = 0; r < 4; r++) owned[r % 2][r / 2] = (struct gang_range){cuts[r], cuts[r + 1] - cuts[r]};
    for (int i = 0; i < 2; i++) {
        struct gang_net_shape shape = plain_shape;
        shape.owned = owned[i], shape.owned_count = 2;
        open_whole(&two[i], kind, GANG_COMPUTE_F32, false, &shape);
    }
    for (int s = 1; s <= 2; s++) {
        struct gang_update u = update;
        u.step = s;
        learn_whole(&one);
        double norm = gang_net_update(one.net, &u), squares = 0;
        for (int i = 0; i < 2; i++) {
            memcpy(gang_net_gradients(two[i].net), gang_net_gradients(one.net), (size_t)all * sizeof(float));
            for (int r = 0; r < 2; r++) squares += gang_net_sum_squares(two[i].net, owned[i][r].offset, owned[i][r].elements);
            for (int r = 0; r < 2; r++) gang_net_adamw(two[i].net, r, &u, norm);
        }
        if (!(fabs(sqrt(squares) - norm) <= 1e-4 * norm)) fail_msg("norm %g in parts, %g of all", sqrt(squares), norm);
    }
    for (int i = 0; i < 2; i++)
        for (int r = 0, at = 0; r < 2; at += (int)owned[i][r].elements, r++) {
            int64_t from = owned[i][r].offset, n = owned[i][r].elements;
            same_numbers("parameters", gang_net_parameters(one.net) + from, gang_net_parameters(two[i].net) + from, n, 1e-7);
            for (int which = 0; which < 2; which++)
                same_numbers("moments", gang_net_moments(one.net, which) + from, gang_net_moments(two[i].net, which) + at, n, 1e-7);
        }
    for (int i = 0; i < 2; i++) close_whole(&two[i]);
    close_whole(&one);
}

static void test_owners(void **state) {
    (void)state;
    owners("ref");
    owners("cpu");
}

// New parameters bucket by bucket, each refreshed, compute as if all had been.
static void refresh(bool tied) {
    struct whole w;
    struct gang_net_bucket buckets[MAX_BUCKETS];
    open_whole(&w, "cpu", GANG_COMPUTE_BF16, tied, &plain_shape);
    double before = gang_net_loss(w.net, w.tokens[0]);
    size_t bytes = (size_t)w.model.elements * sizeof(float);
    float *fresh = malloc(bytes), *p = gang_net_parameters(w.net);
    gang_model_randomise(&w.model, 77, fresh);
    int count = gang_net_buckets(&w.model, &plain_shape, NULL);
    assert_int_equal(count, base.layers + 2);
    gang_net_buckets(&w.model, &plain_shape, buckets);
    for (int i = 0; i < count; i++) {
        memcpy(p + buckets[i].offset, fresh + buckets[i].offset, (size_t)buckets[i].elements * sizeof(float));
        gang_net_refresh_bucket(w.net, i);
    }
    assert_memory_equal(p, fresh, bytes);
    double after = gang_net_loss(w.net, w.tokens[0]);
    gang_net_refresh(w.net);
    assert_true(after == gang_net_loss(w.net, w.tokens[0]) && after != before);
    free(fresh);
    close_whole(&w);
}

static void test_refresh(void **state) {
    (void)state;
    refresh(false);
    refresh(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference), cmocka_unit_test(test_reference_tied), cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_cpu_tied),  cmocka_unit_test(test_cpu_bf16),       cmocka_unit_test(test_rounded_messages),
        cmocka_unit_test(test_memory),    cmocka_unit_test(test_owners),         cmocka_unit_test(test_refresh),
    };
    return cmocka_run_group_tests_name("stage", tests, NULL, NULL);
}
