// Random plans to their end: with stand-ins hundreds of them, with the real network tens, which must give what one rank gives; and a
// thousand starts and stops that leave nothing behind. Ranks are threads of this process, over real links.
// GANG_TEST_SEED=n begins with another plan, GANG_TEST_RUNS=n makes it so many.
#include "../test.h"
#include "../plan/random.h"
#include "../holdings.h"
#include "text.h"

#include "rank/rank.h"
#include "study/study.h"

#include <math.h>
#include <pthread.h>

enum { MAX_RANKS = 8, STEPS = 3, STAND_INS = 200, NETS = 24, MIXTURES = 8, CYCLES = 1000, WARM_CYCLES = 100 };

// A plan that is run, and what came out of it.
struct run {
    struct gang_task task;
    struct gang_answer answer;
    struct gang_config config;
    bool real;
    double slow;                  // of stand-ins
    enum gang_compute compute[2]; // of even and odd ranks
    int ranks, steps, widths[GANG_MAX_STAGES];
    double losses[STEPS], norms[STEPS];
    char output[256], saved[512];
    char *addresses[MAX_RANKS];
    pthread_barrier_t barrier;
};

struct party { // one rank
    struct run *run;
    int rank;
    struct gang_wire *wire;
    pthread_t thread;
};

static enum gang_compute message_of(const struct run *r) {
    return r->compute[0] == GANG_COMPUTE_F32 && r->compute[1] == GANG_COMPUTE_F32 ? GANG_COMPUTE_F32 : GANG_COMPUTE_BF16;
}

static void fill_stand_in(const struct run *r, int rank, double columns[4][GANG_MAX_CHUNKS], struct gang_stand_in *out) {
    const struct gang_answer *a = &r->answer;
    int class = 0;
    for (int64_t end = a->placement.classes[0].replicas; rank / a->layout.pp >= end; end += a->placement.classes[class].replicas) class ++;
    for (int c = 0; c < a->costs.chunks; c++) {
        const struct gang_chunk_cost *cost = gang_costs_chunk(&a->costs, class, c);
        columns[0][c] = gang_time_sum(&cost->forward);
        columns[1][c] = gang_time_sum(&cost->input);
        columns[2][c] = gang_time_sum(&cost->weight);
        columns[3][c] = a->layout.dp > 1 ? cost->parameters : 0;
    }
    *out = (struct gang_stand_in){.forward = columns[0],
                                  .input = columns[1],
                                  .weight = columns[2],
                                  .parameters = columns[3],
                                  .message_bytes = a->costs.message_bytes[class],
                                  .spread = 0.5,
                                  .slow = r->slow};
}

static void join_all(struct party *p, struct gang_wire_link **links) {
    for (int i = 0; i < p->run->ranks; i++) {
        const struct gang_wire_plane plane = {.remote = p->run->addresses[i]};
        const struct gang_wire_link_options options = {.peer = i, .planes = 1, .plane = p->rank < i ? &plane : NULL};
        if (gang_rank_talks_to(&p->run->answer.program, p->run->widths, p->rank, i)) assert_ok(gang_wire_join(p->wire, &options, &links[i]));
    }
}

static void do_steps(struct party *p, struct gang_rank *rank) {
    struct run *r = p->run;
    assert_ok(gang_rank_weights(rank, NULL, false));
    for (int s = 0; s < r->steps; s++) {
        const struct gang_update update = {.rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .decay = 0.1, .clip = 1, .step = s + 1};
        struct gang_rank_report report;
        assert_ok(gang_rank_step(rank, &update, false, &report));
        if (p->rank == 0) r->losses[s] = report.loss, r->norms[s] = report.gradient_norm;
    }
    const struct gang_state state = {.step = r->steps};
    assert_ok(gang_rank_save(rank, r->output, &state, NULL, 1, r->saved, sizeof r->saved));
}

static void *run_rank(void *context) {
    struct party *p = context;
    struct run *r = p->run;
    const struct gang_layout *l = &r->answer.layout;
    struct gang_wire_link *links[MAX_RANKS] = {NULL};
    struct gang_device *device = NULL;
    struct gang_rank *rank;
    double columns[4][GANG_MAX_CHUNKS];
    struct gang_stand_in stand_in;
    join_all(p, links);
    fill_stand_in(r, p->rank, columns, &stand_in);
    if (r->real) assert_ok(gang_device_open(&(struct gang_device_options){.kind = "cpu", .compute = r->compute[p->rank % 2], .threads = 1}, &device));
    const struct gang_rank_options options = {.program = &r->answer.program,
                                              .rank = p->rank,
                                              .widths = r->widths,
                                              .tp = 1,
                                              .layers = l->layers,
                                              .length = r->task.sequence_length,
                                              .sharded = l->zero == 1 && l->dp > 1,
                                              .recompute = gang_of_stage(&l->recompute, p->rank % l->pp) == GANG_RECOMPUTE_FULL,
                                              .message = message_of(r),
                                              .wire = p->wire,
                                              .links = links,
                                              .seed = 3,
                                              .data = r->real ? data : NULL,
                                              .config = r->real ? &r->config : NULL,
                                              .device = device,
                                              .stand_in = r->real ? NULL : &stand_in};
    assert_ok(gang_rank_new(&options, &rank));
    do_steps(p, rank);
    pthread_barrier_wait(&r->barrier); // nobody's links go before all are done
    gang_rank_stop(rank);
    gang_wire_close(p->wire);
    gang_rank_free(rank);
    gang_device_close(device);
    return NULL;
}

static void run_all(struct run *r) {
    struct party parties[MAX_RANKS];
    pthread_barrier_init(&r->barrier, NULL, (unsigned)r->ranks);
    for (int i = 0; i < r->ranks; i++) {
        parties[i] = (struct party){.run = r, .rank = i};
        assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0", .cluster = 7, .dead_ms = 30000, .connect_ms = 30000},
                                 &parties[i].wire));
        r->addresses[i] = (char *)gang_wire_address(parties[i].wire);
    }
    for (int i = 0; i < r->ranks; i++) assert_int_equal(pthread_create(&parties[i].thread, NULL, run_rank, &parties[i]), 0);
    for (int i = 0; i < r->ranks; i++) pthread_join(parties[i].thread, NULL);
    pthread_barrier_destroy(&r->barrier);
}

// ---- Plans ---------------------------------------------------------------------------------------------------------

static void evaluate(struct run *r, const struct gang_pool *pool, const struct gang_layout *layout, struct gang_arena *arena) {
    assert_ok(gang_evaluate(&r->task, pool, layout, GANG_EVALUATE_UNFOLDED | GANG_EVALUATE_ANY_MEMORY, arena, &r->answer));
    r->ranks = r->answer.program.replicas * r->answer.program.stages;
    for (int s = 0; s < r->answer.program.stages; s++) r->widths[s] = 1;
    r->steps = STEPS;
    assert_in_range(r->ranks, 1, MAX_RANKS);
}

// What `seed` draws, within what runs.
static void draw(uint64_t seed, bool real, bool mixed, struct gang_arena *arena, struct run *out, struct gang_pool *pool) {
    struct gang_layout layout;
    *out = (struct run){.real = real, .slow = seed % 2 ? 0 : 0.02};
    gang_random_task(seed, &out->task);
    if (real) out->task.shape.vocab = 256; // the data are bytes
    gang_random_pool(seed, arena, pool);
    gang_random_layout(seed, &out->task, pool, &layout);
    for (int s = 0; s < layout.pp; s++)
        if (layout.recompute.at[s] == GANG_RECOMPUTE_ALTERNATE) layout.recompute.at[s] = GANG_RECOMPUTE_FULL;
    layout.offload = (struct gang_by_stage){0};
    if (mixed) layout.zero = 1, out->compute[1] = GANG_COMPUTE_BF16; // replicas of unlike types
    evaluate(out, pool, &layout, arena);
    const struct gang_shape *s = &out->task.shape;
    out->config = (struct gang_config){.vocab_size = (int)s->vocab,
                                       .hidden_size = (int)s->hidden,
                                       .intermediate_size = (int)s->ffn,
                                       .layers = (int)s->layers,
                                       .heads = (int)s->heads,
                                       .kv_heads = (int)s->kv_heads,
                                       .head_dim = (int)s->qk_dim,
                                       .max_positions = 64,
                                       .norm_eps = 1e-5,
                                       .init_range = 0.05,
                                       .rope_theta = 10000,
                                       .bos_token = -1,
                                       .eos_token = -1,
                                       .tied = s->tied};
}

// The same task on one rank.
static void draw_alone(const struct run *r, const struct gang_pool *pool, enum gang_compute compute, struct gang_arena *arena, struct run *out) {
    struct gang_layout layout;
    assert_ok(gang_layout_parse("dp=1,mb=1", &layout));
    *out = (struct run){.task = r->task, .config = r->config, .real = true, .compute = {compute, compute}};
    evaluate(out, pool, &layout, arena);
    snprintf(out->output, sizeof out->output, "%s", scratch_path("alone"));
}

static uint64_t first_seed(void) {
    int64_t seed = 1;
    const char *text = getenv("GANG_TEST_SEED");
    if (text) assert_ok(gang_parse_int("GANG_TEST_SEED", text, 0, INT64_MAX / 2, &seed));
    return (uint64_t)seed;
}

// Under a sanitizer, which makes everything many times slower, a tenth.
static int runs(int usual) {
    int64_t count = getenv("GANG_SANITIZED") ? (usual + 9) / 10 : usual;
    const char *text = getenv("GANG_TEST_RUNS");
    if (text) assert_ok(gang_parse_int("GANG_TEST_RUNS", text, 1, 1 << 20, &count));
    return (int)count;
}

// ---- What must hold ------------------------------------------------------------------------------------------------

static void read_file(const char *dir, const char *name, struct gang_buffer *out) {
    char path[600];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_ok(gang_file_read(path, 1 << 26, out));
}

static void same_bits(const struct run *a, const struct run *b, const char *what) {
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors"};
    for (int f = 0; f < 2; f++) {
        struct gang_buffer x = {0}, y = {0};
        read_file(a->saved, files[f], &x);
        read_file(b->saved, files[f], &y);
        if (x.len != y.len || memcmp(x.data, y.data, x.len) != 0) fail_msg("%s: run twice, %s differs", what, files[f]);
        gang_buffer_release(&x);
        gang_buffer_release(&y);
    }
    if (memcmp(a->losses, b->losses, sizeof a->losses) != 0) fail_msg("%s: run twice, the losses differ", what);
}

// The largest difference of the weights, against each tensor's norm.
static double apart(const char *a, const char *b) {
    char x[600], y[600];
    struct gang_safetensors s, t;
    double worst = 0;
    snprintf(x, sizeof x, "%s/model.safetensors", a);
    snprintf(y, sizeof y, "%s/model.safetensors", b);
    assert_ok(gang_safetensors_open(x, &s));
    assert_ok(gang_safetensors_open(y, &t));
    assert_int_equal(s.count, t.count);
    for (int i = 0; i < s.count; i++) {
        const struct gang_st_entry *e = &s.entries[i], *f = gang_safetensors_find(&t, e->name);
        assert_true(f && f->elements == e->elements);
        double off = 0, size = 0;
        for (int64_t k = 0; k < e->elements; k++) {
            float v, w;
            gang_st_to_f32(e, k, 1, &v);
            gang_st_to_f32(f, k, 1, &w);
            off += ((double)v - (double)w) * ((double)v - (double)w);
            size += (double)v * (double)v;
        }
        worst = fmax(worst, sqrt(off / (size + 1e-30)));
    }
    gang_safetensors_close(&s);
    gang_safetensors_close(&t);
    return worst;
}

static void close_to(const struct run *one, const struct run *many, double loss, double norm, double weights, const char *what) {
    for (int s = 0; s < STEPS; s++) {
        if (!(fabs(many->losses[s] / one->losses[s] - 1) < loss))
            fail_msg("%s: loss of step %d is %.9g, alone %.9g", what, s + 1, many->losses[s], one->losses[s]);
        if (!(fabs(many->norms[s] / one->norms[s] - 1) < norm))
            fail_msg("%s: gradient norm of step %d is %.9g, alone %.9g", what, s + 1, many->norms[s], one->norms[s]);
    }
    double off = apart(one->saved, many->saved);
    if (!(off < weights)) fail_msg("%s: the weights are off by %g", what, off);
}

static const char *describe(uint64_t seed, const struct run *r, struct gang_arena *arena) {
    return gang_arena_printf(arena, "seed %llu: %s (%s), %lld layers of %lld, %lld samples of %lld%s", (unsigned long long)seed,
                             gang_layout_print(&r->answer.layout, arena), gang_schedule_names[r->answer.schedule], (long long)r->task.shape.layers,
                             (long long)r->task.shape.hidden, (long long)r->task.global_batch, (long long)r->task.sequence_length,
                             r->task.shape.tied ? ", tied" : "");
}

// ---- The tests -----------------------------------------------------------------------------------------------------

static void test_stand_ins(void **state) {
    (void)state;
    uint64_t first = first_seed();
    int count = runs(STAND_INS), several = 0;
    for (uint64_t seed = first; seed < first + (uint64_t)count; seed++) {
        struct gang_arena arena;
        struct gang_pool pool;
        struct run r;
        gang_arena_init(&arena);
        draw(seed, false, false, &arena, &r, &pool);
        several += r.ranks > 1;
        run_all(&r);
        gang_arena_release(&arena);
    }
    print_message("%d plans from seed %llu, %d of several ranks\n", count, (unsigned long long)first, several);
    assert_true(count < 10 || several > count / 4);
}

static void test_nets(void **state) {
    (void)state;
    uint64_t first = first_seed(), seed = first;
    for (int count = runs(NETS); count > 0; seed++) {
        struct gang_arena arena;
        struct gang_pool pool;
        struct run one, many, again;
        gang_arena_init(&arena);
        draw(seed, true, false, &arena, &many, &pool);
        if (many.ranks > 1) {
            const char *what = describe(seed, &many, &arena);
            count--;
            again = many;
            snprintf(many.output, sizeof many.output, "%s", scratch_path("many"));
            snprintf(again.output, sizeof again.output, "%s", scratch_path("again"));
            draw_alone(&many, &pool, GANG_COMPUTE_F32, &arena, &one);
            run_all(&one);
            run_all(&many);
            run_all(&again);
            close_to(&one, &many, 1e-4, 1e-4, 1e-4, what);
            same_bits(&many, &again, what);
        }
        gang_arena_release(&arena);
    }
    print_message("seeds %llu to %llu\n", (unsigned long long)first, (unsigned long long)seed);
}

// Ranks of both types: off by no more than bf16's rounding is from the run of one rank in bf16.
static void test_mixtures(void **state) {
    (void)state;
    uint64_t first = first_seed(), seed = first;
    for (int count = runs(MIXTURES); count > 0; seed++) {
        struct gang_arena arena;
        struct gang_pool pool;
        struct run one, many;
        gang_arena_init(&arena);
        draw(seed, true, true, &arena, &many, &pool);
        if (many.ranks > 1) {
            count--;
            snprintf(many.output, sizeof many.output, "%s", scratch_path("many"));
            draw_alone(&many, &pool, GANG_COMPUTE_BF16, &arena, &one);
            run_all(&one);
            run_all(&many);
            close_to(&one, &many, 2e-3, 3e-2, 2e-2, describe(seed, &many, &arena));
        }
        gang_arena_release(&arena);
    }
    print_message("seeds %llu to %llu\n", (unsigned long long)first, (unsigned long long)seed);
}

static void test_starts_and_stops(void **state) {
    (void)state;
    enum { SLACK_BYTES = 64 << 10 };
    struct holdings before = {0}, after;
    struct gang_arena arena;
    struct gang_pool pool;
    struct gang_list kinds;
    struct run r = {.steps = 1};
    struct gang_layout layout;
    gang_arena_init(&arena);
    gang_kinds_builtin(&arena, &kinds);
    gang_random_task(1, &r.task);
    r.task.global_batch = 2;
    gang_pool_uniform(gang_kind_find(&kinds, "cpu"), 2, 1, &arena, &pool);
    assert_ok(gang_layout_parse("dp=2,mb=1", &layout));
    evaluate(&r, &pool, &layout, &arena);
    r.steps = 1;
    for (int i = 0; i < runs(CYCLES) + WARM_CYCLES; i++) {
        if (i == WARM_CYCLES) before = gang_test_holdings();
        run_all(&r);
    }
    after = gang_test_holdings();
    gang_arena_release(&arena);
    assert_int_equal(after.descriptors, before.descriptors);
    assert_int_equal(after.threads, before.threads);
    if (after.bytes > before.bytes + SLACK_BYTES) fail_msg("%zu bytes grew to %zu", before.bytes, after.bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stand_ins),
        cmocka_unit_test(test_nets),
        cmocka_unit_test(test_mixtures),
        cmocka_unit_test(test_starts_and_stops),
    };
    return cmocka_run_group_tests(tests, open_text, close_text);
}
