// Devices of ranks as threads of this process, over real links: every way to split a tiny model gives the weights and losses of one rank.
#include "../test.h"
#include "text.h"

#include "rank/rank.h"
#include "study/study.h"

#include <math.h>
#include <pthread.h>

enum { LENGTH = 16, BATCH = 8, MAX_DEVICES = 8, MAX_STEPS = 32 };

static const struct gang_config config = {.vocab_size = 256,
                                          .hidden_size = 16,
                                          .intermediate_size = 24,
                                          .layers = 4,
                                          .heads = 4,
                                          .kv_heads = 2,
                                          .head_dim = 4,
                                          .max_positions = 64,
                                          .norm_eps = 1e-5,
                                          .init_range = 0.05,
                                          .rope_theta = 10000,
                                          .bos_token = -1,
                                          .eos_token = -1};

// A split and what came out of it.
static const double slow_nic = 1e7;

struct trial {
    const char *layout;
    bool tied;
    int first;                    // devices of the first of two unlike groups; 0: all alike
    bool slow;                    // a network between the devices that takes longer than their passes: exchanges hide behind groups of these
    enum gang_compute compute[2]; // of even and odd devices
    int steps;
    // Results: of the steps, on all devices alike; the whole model as the first of rank 0 saved it.
    double losses[MAX_STEPS], norms[MAX_STEPS];
    char output[256], saved[512];
    bool sizes; // replicas had unlike micro-batches
};

struct party { // one device of a rank
    struct trial *trial;
    struct gang_answer *answer;
    struct gang_config config;
    int device, devices, widths[MAX_DEVICES];
    double losses[MAX_STEPS], norms[MAX_STEPS];
    struct gang_wire *wire;
    char **addresses;
    pthread_barrier_t *barrier;
    pthread_t thread;
};

static bool all_f32(const struct trial *t) { return t->compute[0] == GANG_COMPUTE_F32 && t->compute[1] == GANG_COMPUTE_F32; }

static void *run_rank(void *context) {
    struct party *p = context;
    struct trial *t = p->trial;
    struct gang_wire_link *links[MAX_DEVICES] = {NULL};
    const struct gang_program *program = &p->answer->program;
    struct gang_device *device;
    struct gang_rank *rank;
    const struct gang_layout *l = &p->answer->layout;
    for (int i = 0; i < p->devices; i++) {
        const struct gang_wire_plane plane = {.remote = p->addresses[i]};
        struct gang_wire_link_options options = {.peer = i, .planes = 1, .plane = p->device < i ? &plane : NULL};
        if (gang_rank_talks_to(program, p->widths, p->device, i)) assert_ok(gang_wire_join(p->wire, &options, &links[i]));
    }
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = "cpu", .compute = t->compute[p->device % 2], .threads = 1}, &device));
    const struct gang_rank_place place = gang_rank_place(program, p->widths, p->device);
    const struct gang_rank_options options = {.program = program,
                                              .rank = place.rank,
                                              .widths = p->widths,
                                              .tp = gang_tp_of(l, place.rank % l->pp),
                                              .tp_index = place.tp_index,
                                              .sequence_parallel = l->sequence_parallel,
                                              .layers = l->layers,
                                              .length = LENGTH,
                                              .sharded = l->zero == 1 && l->dp > 1,
                                              .recompute = gang_of_stage(&l->recompute, place.rank % l->pp) == GANG_RECOMPUTE_FULL,
                                              .message = all_f32(t) ? GANG_COMPUTE_F32 : GANG_COMPUTE_BF16,
                                              .wire = p->wire,
                                              .links = links,
                                              .seed = 3,
                                              .data = data,
                                              .config = &p->config,
                                              .device = device};
    assert_ok(gang_rank_new(&options, &rank));
    assert_ok(gang_rank_weights(rank, NULL, false));
    for (int s = 0; s < t->steps; s++) {
        struct gang_update update = {.rate = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .decay = 0.1, .clip = 1, .step = s + 1};
        struct gang_rank_report report;
        assert_ok(gang_rank_step(rank, &update, false, &report));
        p->losses[s] = report.loss;
        p->norms[s] = report.gradient_norm;
    }
    const struct gang_state state = {.step = t->steps};
    assert_ok(gang_rank_save(rank, t->output, &state, NULL, 1, t->saved, sizeof t->saved));
    pthread_barrier_wait(p->barrier); // nobody's links go before all are done
    gang_rank_stop(rank);
    gang_wire_close(p->wire);
    gang_rank_free(rank);
    gang_device_close(device);
    return NULL;
}

// The second group's devices are the slower ones.
static void make_pool(const struct trial *t, int devices, int a_node, struct gang_arena *arena, struct gang_pool *out) {
    struct gang_list kinds;
    struct gang_pool slower;
    gang_kinds_builtin(arena, &kinds);
    gang_pool_uniform(gang_kind_find(&kinds, "A100-40GB"), t->first ? t->first : devices, t->slow ? 1 : a_node, arena, out);
    if (t->slow) out->groups[0]->nic_bandwidth = slow_nic;
    if (!t->first) return;
    gang_pool_uniform(gang_kind_find(&kinds, "RTX-4090"), devices - t->first, a_node, arena, &slower);
    struct gang_group **groups = gang_arena_alloc(arena, 2 * sizeof *groups);
    groups[0] = out->groups[0], groups[1] = slower.groups[0];
    out->groups = groups, out->group_count = 2, out->devices = devices;
}

static void run_trial(struct trial *t) {
    struct gang_arena arena;
    struct gang_pool pool;
    struct gang_layout layout;
    struct gang_answer answer;
    struct party parties[MAX_DEVICES];
    char *addresses[MAX_DEVICES];
    pthread_barrier_t barrier;
    gang_arena_init(&arena);
    struct gang_task task = {.sequence_length = LENGTH, .global_batch = BATCH, .math = GANG_MATH_F32};
    struct gang_config this_config = config;
    this_config.tied = t->tied;
    gang_shape_from_config(&this_config, &task.shape);
    snprintf(t->output, sizeof t->output, "%s", scratch_path(t->layout));
    assert_ok(gang_dir_remove(t->output));
    assert_ok(gang_layout_parse(t->layout, &layout));
    int devices = (int)gang_cells_devices(&layout, 0, layout.pp) * (layout.dp ? layout.dp : 1);
    assert_in_range(devices, 1, MAX_DEVICES);
    make_pool(t, devices, layout.width_count ? devices : layout.tp, &arena, &pool);
    assert_ok(gang_evaluate(&task, &pool, &layout, GANG_EVALUATE_UNFOLDED, &arena, &answer));
    // First micro-batch after micro-batch through the first chunk.
    const struct gang_instruction *item = answer.program.ranks[0].items;
    while (item->op == GANG_OP_GATHER) item++;
    if (t->slow) assert_true(item[1].op == GANG_OP_FORWARD && item[1].chunk == 0 && item[1].micro == 1);
    for (int r = 1; r < answer.program.replicas; r++) t->sizes |= answer.program.sizes[r] != answer.program.sizes[0];
    pthread_barrier_init(&barrier, NULL, (unsigned)devices);
    for (int i = 0; i < devices; i++) {
        parties[i] = (struct party){
            .trial = t, .answer = &answer, .config = this_config, .device = i, .devices = devices, .addresses = addresses, .barrier = &barrier};
        for (int s = 0; s < layout.pp; s++) parties[i].widths[s] = gang_tp_of(&answer.layout, s);
        assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0", .cluster = 5, .dead_ms = 20000}, &parties[i].wire));
        addresses[i] = (char *)gang_wire_address(parties[i].wire);
    }
    for (int i = 0; i < devices; i++) assert_int_equal(pthread_create(&parties[i].thread, NULL, run_rank, &parties[i]), 0);
    for (int i = 0; i < devices; i++) pthread_join(parties[i].thread, NULL);
    memcpy(t->losses, parties[0].losses, sizeof t->losses);
    memcpy(t->norms, parties[0].norms, sizeof t->norms);
    for (int i = 1; i < devices; i++) {
        assert_memory_equal(parties[i].losses, t->losses, sizeof t->losses);
        assert_memory_equal(parties[i].norms, t->norms, sizeof t->norms);
    }
    pthread_barrier_destroy(&barrier);
    gang_arena_release(&arena);
}

// The largest difference of the two saves' tensors, against each tensor's norm.
static double apart(const char *a, const char *b, const char *file) {
    char x[600], y[600];
    struct gang_safetensors s, t;
    snprintf(x, sizeof x, "%s/%s", a, file);
    snprintf(y, sizeof y, "%s/%s", b, file);
    assert_ok(gang_safetensors_open(x, &s));
    assert_ok(gang_safetensors_open(y, &t));
    assert_int_equal(s.count, t.count);
    double worst = 0;
    for (int i = 0; i < s.count; i++) {
        const struct gang_st_entry *e = &s.entries[i], *f = gang_safetensors_find(&t, e->name);
        assert_true(f && f->elements == e->elements);
        float *v = malloc((size_t)e->elements * sizeof *v), *w = malloc((size_t)e->elements * sizeof *w);
        gang_st_to_f32(e, 0, e->elements, v);
        gang_st_to_f32(f, 0, f->elements, w);
        double off = 0, size = 0;
        for (int64_t k = 0; k < e->elements; k++) {
            off += ((double)v[k] - (double)w[k]) * ((double)v[k] - (double)w[k]);
            size += (double)v[k] * (double)v[k];
        }
        worst = fmax(worst, sqrt(off / (size + 1e-30)));
        free(v);
        free(w);
    }
    gang_safetensors_close(&s);
    gang_safetensors_close(&t);
    return worst;
}

static void same(struct trial many) {
    // After one step the first moments are a tenth of the (clipped) gradient.
    const char *layout = many.layout;
    struct trial one = {.layout = "mb=2", .tied = many.tied, .steps = 1};
    many.steps = 1;
    run_trial(&one);
    run_trial(&many);
    if (many.first && !many.sizes) fail_msg("%s: one micro-batch size", layout);
    double off = apart(one.saved, many.saved, "optimizer.safetensors");
    if (!(off < 1e-5)) fail_msg("%s: gradients of step 1 off by %g", layout, off);
    one.steps = many.steps = 20;
    run_trial(&one);
    run_trial(&many);
    for (int s = 0; s < 20; s++) {
        if (!(fabs(one.losses[s] / many.losses[s] - 1) < 1e-4))
            fail_msg("%s: loss of step %d %g, alone %g", layout, s + 1, many.losses[s], one.losses[s]);
        if (!(fabs(one.norms[s] / many.norms[s] - 1) < 1e-4))
            fail_msg("%s: gradient norm of step %d %g, alone %g", layout, s + 1, many.norms[s], one.norms[s]);
    }
    off = apart(one.saved, many.saved, "model.safetensors");
    if (!(off < 1e-4)) fail_msg("%s: weights after 20 steps off by %g", layout, off);
}

static void same_on(int first, const char *layout, bool tied) { same((struct trial){.layout = layout, .tied = tied, .first = first}); }

static void same_as_one(const char *layout, bool tied) { same_on(0, layout, tied); }

static void test_pipelines(void **state) {
    (void)state;
    same_as_one("pp=2,mb=1,schedule=1f1b", false);
    same_as_one("pp=3,mb=2,layers=1/2/1", false);
    same_as_one("pp=4,mb=1,schedule=zero-bubble", false);
    same_as_one("pp=2,vpp=2,mb=1,schedule=interleaved", false);
    same_as_one("pp=2,mb=2,recompute=full", false);
    same_as_one("pp=3,mb=1,layers=1/2/1,recompute=full/none/full", false);
}

static void test_replicas(void **state) {
    (void)state;
    same_as_one("dp=2,mb=1,zero=0", false);
    same_as_one("dp=2,mb=1,zero=1", false);
    same_as_one("dp=3,mb=1,zero=1", false); // 8 micro-batches: 3, 3, 2
    same_as_one("dp=4,mb=1,zero=0,recompute=full", false);
}

static void test_mixtures(void **state) {
    (void)state;
    same_as_one("pp=2,dp=2,mb=1,zero=1,schedule=zero-bubble", false);
    same_as_one("pp=2,vpp=2,dp=2,mb=1,zero=1,recompute=full/selective", false);
    same_as_one("pp=4,dp=2,mb=1,zero=0,place=replicas", false);
}

// A stage that is the whole model, in chunks: depth first, and in the groups that hide its exchanges.
static void test_chunks_of_one_stage(void **state) {
    (void)state;
    same_as_one("vpp=2,mb=1,schedule=interleaved", true);
    same_as_one("vpp=3,mb=2,layers=1/2/1,schedule=list,recompute=full", false);
    same_as_one("vpp=4,dp=2,mb=1,zero=0", true);
    same_as_one("vpp=4,dp=2,mb=1,zero=1", true);
    same_as_one("tp=2,vpp=2,dp=2,mb=1,zero=1", false);
    same_on(1, "vpp=2,dp=2,mb=2/1,zero=1", false);
    same((struct trial){.layout = "vpp=2,dp=2,mb=1,zero=0", .slow = true, .tied = true});
    same((struct trial){.layout = "vpp=4,dp=2,mb=1,zero=1", .slow = true});
}

static void test_tied(void **state) {
    (void)state;
    same_as_one("pp=2,mb=1", true);
    same_as_one("pp=2,dp=2,mb=1,zero=1", true);
    same_as_one("pp=2,vpp=2,dp=2,mb=1,zero=0", true);
}

static void test_slices(void **state) {
    (void)state;
    same_as_one("tp=2,sp=0,mb=2", false);
    same_as_one("tp=2,sp=0,mb=2,recompute=full", false);
    same_as_one("tp=2,sp=0,pp=2,mb=1,schedule=zero-bubble", false);
    same_as_one("tp=2,sp=0,dp=2,mb=1,zero=1", false);
    same_as_one("tp=2,sp=0,pp=2,dp=2,mb=1,zero=1", true);
}

// Sequence parallelism is what tp brings unless sp=0 stands there.
static void test_rows(void **state) {
    (void)state;
    same_as_one("tp=2,mb=2", false);
    same_as_one("tp=2,mb=1,recompute=full", true);
    same_as_one("tp=2,pp=2,mb=1,schedule=zero-bubble", false);
    same_as_one("tp=2,dp=2,mb=1,zero=1", false);
    same_as_one("tp=2,pp=2,mb=1,recompute=full/none", false);
    same_as_one("tp=2,dp=2,mb=1,zero=0", false);
    same_as_one("tp=2,pp=2,dp=2,mb=1,zero=1", true);
}

// Stages of unlike widths: parts of messages go to and come from several devices.
static void test_widths(void **state) {
    (void)state;
    same_as_one("tp=2/1,pp=2,mb=1", false);
    same_as_one("tp=1/2,pp=2,mb=2", false);
    same_as_one("tp=2/1,pp=2,mb=2,sp=0", false);
    same_as_one("tp=1/2,pp=2,mb=1,sp=0,recompute=full/none", false);
    same_as_one("tp=1/2/1,pp=3,mb=1,layers=1/2/1,schedule=zero-bubble", true);
    same_as_one("tp=2/1,pp=2,vpp=2,mb=1", false);
    same_as_one("tp=2/1,pp=2,dp=2,mb=1,zero=1", false);
    same_as_one("tp=1/2,pp=2,dp=2,mb=1,zero=0,sp=0,place=replicas", false);
}

// Replicas on unlike devices, each kind with a micro-batch of its own; the first number is the first group's devices.
static void test_sizes(void **state) {
    (void)state;
    same_on(1, "dp=2,mb=2/1,zero=0", false);
    same_on(1, "dp=2,mb=1/4,zero=1", false);
    same_on(1, "dp=3,mb=3/1,zero=1", true); // such as 3 + 3, 1, 1
    same_on(2, "dp=3,mb=1/3,zero=1,recompute=full", false);
    same_on(2, "pp=2,dp=2,mb=2/1,place=replicas,zero=1,schedule=zero-bubble", false);
    same_on(2, "pp=2,dp=2,mb=3/1,place=replicas,zero=0,schedule=1f1b", true);
    same_on(2, "pp=2,vpp=2,dp=2,mb=1/2,place=replicas,zero=1", true);
    same_on(2, "tp=2,dp=2,mb=3/1,zero=1", false);
    same_on(2, "tp=2,sp=0,dp=2,mb=1/2,zero=1", true);
    same_on(4, "tp=2,pp=2,dp=2,mb=2/1,place=replicas,zero=1", true);
}

// Sums and rows in bf16, rounded once more than on one device.
static void test_rounded(void **state) {
    (void)state;
    static const char *const layouts[] = {"tp=2,pp=2,mb=2", "tp=2,dp=2,mb=2,sp=0", "tp=2,dp=2,mb=2/1,zero=1"};
    struct trial one = {.layout = "mb=2", .compute = {GANG_COMPUTE_BF16, GANG_COMPUTE_BF16}, .steps = 20};
    run_trial(&one);
    for (int i = 0; i < 3; i++) {
        struct trial many = one;
        many.layout = layouts[i];
        many.first = i == 2 ? 2 : 0;
        run_trial(&many);
        assert_int_equal(many.sizes, i == 2);
        for (int s = 0; s < 20; s++)
            if (!(fabs(one.losses[s] / many.losses[s] - 1) < 1e-2))
                fail_msg("%s: loss of step %d %g, alone %g", layouts[i], s + 1, many.losses[s], one.losses[s]);
        double off = apart(one.saved, many.saved, "model.safetensors");
        if (!(off < 0.1)) fail_msg("%s: weights after 20 steps off by %g", layouts[i], off);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pipelines), cmocka_unit_test(test_replicas),
        cmocka_unit_test(test_mixtures),  cmocka_unit_test(test_chunks_of_one_stage),
        cmocka_unit_test(test_tied),      cmocka_unit_test(test_slices),
        cmocka_unit_test(test_rows),      cmocka_unit_test(test_widths),
        cmocka_unit_test(test_sizes),     cmocka_unit_test(test_rounded),
    };
    return cmocka_run_group_tests(tests, open_text, close_text);
}
