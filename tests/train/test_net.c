// The whole network against PyTorch's figures (tests/golden/make_llama.py): loss, logits, gradients, three optimizer
// steps; on the reference device and on the CPU device, in f32 and bf16. And that equal input gives equal bits.
#include "../test.h"
#include "train/train.h"

#include <math.h>

struct golden {
    struct gang_config config;
    struct gang_arena arena;
    struct gang_model model;
    struct gang_safetensors expected;
    struct gang_device *device;
    struct gang_net *net;
    int32_t *tokens;
    int64_t batch, length;
    char dir[512];
};

static const struct gang_st_entry *expect(const struct golden *g, const char *name) {
    const struct gang_st_entry *e = gang_safetensors_find(&g->expected, name);
    if (!e) fail_msg("%s: no tensor %s", g->dir, name);
    return e;
}

static float *values(const struct gang_st_entry *e) {
    float *x = malloc((size_t)e->elements * sizeof *x);
    assert_non_null(x);
    gang_st_to_f32(e, 0, e->elements, x);
    return x;
}

static void open_golden(struct golden *g, const char *name, const char *kind, enum gang_compute compute) {
    char path[600];
    snprintf(g->dir, sizeof g->dir, "%s/golden/llama/%s", TESTS_DIR, name);
    snprintf(path, sizeof path, "%s/expected.safetensors", g->dir);
    gang_arena_init(&g->arena);
    assert_ok(gang_config_read(g->dir, &g->config));
    gang_model_init(&g->model, &g->config, &g->arena);
    assert_ok(gang_safetensors_open(path, &g->expected));
    const struct gang_st_entry *e = expect(g, "tokens");
    g->batch = e->shape[0], g->length = e->shape[1] - 1;
    float *x = values(e);
    g->tokens = gang_arena_alloc(&g->arena, (size_t)e->elements * sizeof *g->tokens);
    for (int64_t i = 0; i < e->elements; i++) g->tokens[i] = (int32_t)x[i];
    free(x);
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = kind, .compute = compute, .threads = 2}, &g->device));
    assert_ok(gang_net_new(&g->model, g->device, &(struct gang_net_shape){.batch = g->batch, .length = g->length}, &g->net));
    assert_ok(gang_model_load(&g->model, g->dir, gang_net_parameters(g->net), NULL));
    gang_net_refresh(g->net);
}

static void close_golden(struct golden *g) {
    gang_net_free(g->net);
    gang_device_close(g->device);
    gang_safetensors_close(&g->expected);
    gang_arena_release(&g->arena);
}

// The difference's norm against the expected tensor's.
static void same(const struct golden *g, const char *name, const float *got, double tolerance) {
    const struct gang_st_entry *e = expect(g, name);
    float *want = values(e);
    double off = 0, size = 0;
    for (int64_t i = 0; i < e->elements; i++) {
        double d = (double)want[i] - (double)got[i];
        off += d * d;
        size += (double)want[i] * (double)want[i];
    }
    if (!(sqrt(off) <= tolerance * (sqrt(size) + 1e-30)))
        fail_msg("%s: %s off by %g of its norm, allowed %g", g->dir, name, sqrt(off / size), tolerance);
    free(want);
}

static void all_tensors(const struct golden *g, const char *prefix, const float *flat, double tolerance) {
    for (int i = 0; i < g->model.count; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefix, g->model.tensors[i].name);
        same(g, name, flat + g->model.tensors[i].offset, tolerance);
    }
}

static void check(const char *name, const char *kind, enum gang_compute compute, double tolerance) {
    struct golden g;
    open_golden(&g, name, kind, compute);
    int64_t M = g.batch * g.length;
    float *logits = malloc((size_t)(M * g.config.vocab_size) * sizeof *logits);
    gang_net_logits(g.net, g.tokens, logits);
    same(&g, "logits", logits, tolerance);
    free(logits);
    float loss = (float)(gang_net_loss(g.net, g.tokens) / (double)M);
    same(&g, "loss", &loss, tolerance);
    // In two halves of the same micro-batch: what is added must equal what is set.
    loss = (float)(gang_net_micro_batch(g.net, g.tokens, 0.25f / (float)M, true) / (double)M);
    same(&g, "loss", &loss, tolerance);
    gang_net_micro_batch(g.net, g.tokens, 0.75f / (float)M, false);
    all_tensors(&g, "grad.", gang_net_gradients(g.net), tolerance * 3);
    close_golden(&g);
}

static void all_cases(const char *kind, enum gang_compute compute, double tolerance) {
    check("plain-mha", kind, compute, tolerance);
    check("gqa-tied", kind, compute, tolerance);
    check("gqa-linear-rope", kind, compute, tolerance);
    check("llama3-rope", kind, compute, tolerance);
}

static void test_reference_f32(void **state) { (void)state, all_cases("ref", GANG_COMPUTE_F32, 2e-6); }
static void test_cpu_f32(void **state) { (void)state, all_cases("cpu", GANG_COMPUTE_F32, 5e-6); }
// 8 bits of mantissa: about 0.4 % a rounding, a few of them in a row.
static void test_reference_bf16(void **state) { (void)state, all_cases("ref", GANG_COMPUTE_BF16, 1.5e-2); }
static void test_cpu_bf16(void **state) { (void)state, all_cases("cpu", GANG_COMPUTE_BF16, 1.5e-2); }

static void three_steps(const char *kind, double tolerance) {
    struct golden g;
    open_golden(&g, "plain-mha", kind, GANG_COMPUTE_F32);
    struct gang_update u = {.rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .decay = 0.1, .clip = 1};
    for (u.step = 1; u.step <= 3; u.step++) {
        gang_net_micro_batch(g.net, g.tokens, 1 / (float)(g.batch * g.length), true);
        gang_net_update(g.net, &u);
    }
    all_tensors(&g, "step3.", gang_net_parameters(g.net), tolerance);
    close_golden(&g);
}

static void test_steps(void **state) {
    (void)state;
    three_steps("ref", 1e-5);
    three_steps("cpu", 1e-5);
}

static uint64_t bits_after_steps(enum gang_compute compute) {
    struct golden g;
    open_golden(&g, "gqa-tied", "cpu", compute);
    struct gang_update u = {.rate = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .decay = 0.1, .clip = 1};
    for (u.step = 1; u.step <= 4; u.step++) {
        for (int micro = 0; micro < 2; micro++) gang_net_micro_batch(g.net, g.tokens, 0.5f / (float)(g.batch * g.length), micro == 0);
        gang_net_update(g.net, &u);
    }
    uint64_t hash = gang_hash(gang_net_parameters(g.net), (size_t)g.model.elements * sizeof(float), 0);
    close_golden(&g);
    return hash;
}

static void test_same_bits(void **state) {
    (void)state;
    assert_true(bits_after_steps(GANG_COMPUTE_F32) == bits_after_steps(GANG_COMPUTE_F32));
    assert_true(bits_after_steps(GANG_COMPUTE_BF16) == bits_after_steps(GANG_COMPUTE_BF16));
    assert_true(bits_after_steps(GANG_COMPUTE_F32) != bits_after_steps(GANG_COMPUTE_BF16));
}

static void take(void *net, int from, int to) { gang_net_take(net, from, to); }

// Prompt at once or token by token, cached, gives the logits of the whole sequence.
static void feed(enum gang_compute compute, int64_t at_once, double tolerance) {
    struct golden g;
    open_golden(&g, "llama3-rope", "cpu", compute);
    int64_t V = g.config.vocab_size;
    float *want = malloc((size_t)(g.batch * g.length * V) * sizeof *want);
    gang_net_logits(g.net, g.tokens, want);
    struct gang_net *net = NULL;
    assert_ok(gang_net_new(&g.model, g.device, &(struct gang_net_shape){.batch = 1, .length = g.length, .inference = true}, &net));
    assert_ok(gang_model_load(&g.model, g.dir, gang_net_parameters(net), &(struct gang_load_hook){take, net}));
    for (int64_t t = 0; t < g.length;) {
        int64_t n = t == 0 ? at_once : 1;
        const float *logits = gang_net_feed(net, g.tokens + t, n);
        t += n;
        double off = 0, size = 0;
        for (int64_t v = 0; v < V; v++) {
            double w = (double)want[(t - 1) * V + v], d = w - (double)logits[v];
            off += d * d, size += w * w;
        }
        if (!(sqrt(off) <= tolerance * sqrt(size))) fail_msg("position %lld off by %g", (long long)t - 1, sqrt(off / size));
    }
    free(want);
    gang_net_free(net);
    g.device->scratch = NULL;
    gang_net_free(g.net);
    gang_device_close(g.device);
    gang_safetensors_close(&g.expected);
    gang_arena_release(&g.arena);
}

static void test_feed(void **state) {
    (void)state;
    feed(GANG_COMPUTE_F32, 1, 1e-5);
    feed(GANG_COMPUTE_F32, 7, 1e-5);
    feed(GANG_COMPUTE_BF16, 7, 2e-2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reference_f32), cmocka_unit_test(test_cpu_f32), cmocka_unit_test(test_reference_bf16),
        cmocka_unit_test(test_cpu_bf16),      cmocka_unit_test(test_steps),   cmocka_unit_test(test_same_bits),
        cmocka_unit_test(test_feed),
    };
    return cmocka_run_group_tests_name("net", tests, NULL, NULL);
}
