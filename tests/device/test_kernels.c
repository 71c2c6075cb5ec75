// Every kernel of the CPU device, for every instruction set this processor has and both compute types, against the
// reference device over random shapes; and the reference's gradients against finite differences.
#include "../test.h"
#include "device/device.h"

#include <math.h>

struct pair {
    struct gang_device *ref, *cpu;
    uint64_t seed, draws;
};

// Blocks that know their size and are followed by a guard, so that a kernel that writes past the end is caught.
enum { GUARD_BYTES = 64 };
struct block {
    size_t bytes;
    _Alignas(64) char data[];
};

static void *memory(size_t bytes) {
    struct block *block = aligned_alloc(64, (sizeof *block + bytes + GUARD_BYTES + 63) / 64 * 64);
    assert_non_null(block);
    block->bytes = bytes;
    memset(block->data, 0, bytes);
    memset(block->data + bytes, 0x5a, GUARD_BYTES);
    return block->data;
}

static void release(const void *data) {
    if (!data) return;
    struct block *block = (struct block *)((char *)data - offsetof(struct block, data));
    for (int i = 0; i < GUARD_BYTES; i++) assert_int_equal(block->data[block->bytes + (size_t)i], 0x5a);
    free(block);
}

static int64_t draw(struct pair *p, int64_t low, int64_t high) {
    return low + (int64_t)(gang_random_at(p->seed, 1, p->draws++) % (uint64_t)(high - low + 1));
}

static float *random_f32(struct pair *p, int64_t n, float scale) {
    float *x = memory((size_t)n * sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = scale * (float)gang_normal_at(p->seed, 2, p->draws++);
    return x;
}

static float act_at(const struct gang_device *d, const void *base, int64_t i) {
    if (d->compute == GANG_COMPUTE_F32) return ((const float *)base)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)base)[i] << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static void *random_act(struct pair *p, int64_t n, float scale) {
    float *x = random_f32(p, n, scale);
    if (p->ref->compute == GANG_COMPUTE_F32) return x;
    uint16_t *y = memory((size_t)n * 2);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], 4);
        y[i] = (uint16_t)(bits >> 16);
    }
    release(x);
    return y;
}

static void *copy_act(const struct pair *p, const void *x, int64_t n) {
    size_t bytes = (size_t)n * gang_device_act_bytes(p->ref);
    return memcpy(memory(bytes), x, bytes);
}

// How far a result is off, element by element and as a whole.
struct gap {
    double worst, largest, off, size;
};

static void gap_add(struct gap *g, double want, double got) {
    double d = fabs(want - got);
    if (d > g->worst || d != d) g->worst = d;
    if (fabs(want) > g->largest) g->largest = fabs(want);
    g->off += d * d;
    g->size += want * want;
}

// No element off by more than `tolerance` of the largest, the whole by no more than a third of that of its norm. NaN fails.
static void gap_check(const char *what, const struct gap *g, double tolerance) {
    double element = g->worst / (g->largest + 1e-30), whole = sqrt(g->off / (g->size + 1e-60));
    if (!(element <= tolerance && whole <= tolerance / 3))
        fail_msg("%s: an element is off by %g of the largest, all by %g of the norm, allowed %g and a third of it", what, element, whole, tolerance);
}

static void same_f32(const char *what, const float *want, const float *got, int64_t n, double tolerance) {
    struct gap g = {0};
    for (int64_t i = 0; i < n; i++) gap_add(&g, (double)want[i], (double)got[i]);
    gap_check(what, &g, tolerance);
}

static void same_act(const char *what, const struct pair *p, const void *want, const void *got, int64_t n, double tolerance) {
    struct gap g = {0};
    for (int64_t i = 0; i < n; i++) gap_add(&g, (double)act_at(p->ref, want, i), (double)act_at(p->ref, got, i));
    gap_check(what, &g, tolerance);
}

// A rounding to bf16 or two (each at most 1/256); a little arithmetic noise in f32.
static double tolerance(const struct pair *p) { return p->ref->compute == GANG_COMPUTE_F32 ? 1e-5 : 1.5e-2; }

static void check_norm(struct pair *p) {
    int64_t M = draw(p, 1, 40), C = draw(p, 1, 200);
    float *x = random_f32(p, M * C, 1), *w = random_f32(p, C, 1), *dx = random_f32(p, M * C, 1);
    void *delta = random_act(p, M * C, 1), *dy = random_act(p, M * C, 1);
    float *sum[2], *rstd[2], *back[2], *dw[2];
    void *y[2], *rounded[2], *d[2];
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        sum[i] = memory((size_t)(M * C) * 4), rstd[i] = memory((size_t)M * 4), back[i] = memory((size_t)(M * C) * 4), dw[i] = memory((size_t)C * 4);
        y[i] = memory((size_t)(M * C) * 4), rounded[i] = memory((size_t)(M * C) * 4), d[i] = copy_act(p, dy, M * C);
        for (int64_t c = 0; c < C; c++) dw[i][c] = 1;
        device[i]->k->norm(device[i], sum[i], y[i], rstd[i], x, delta, w, 1e-5f, M, C);
        device[i]->k->norm_backward(device[i], back[i], dx, rounded[i], d[i], dw[i], true, sum[i], rstd[i], w, M, C);
    }
    double t = tolerance(p);
    same_f32("norm: sum", sum[0], sum[1], M * C, 2e-6);
    same_f32("norm: rstd", rstd[0], rstd[1], M, 1e-5);
    same_act("norm: y", p, y[0], y[1], M * C, t);
    same_f32("norm: dx", back[0], back[1], M * C, 5e-5);
    same_act("norm: dx rounded", p, rounded[0], rounded[1], M * C, t);
    same_act("norm: y again", p, d[0], d[1], M * C, t);
    same_f32("norm: dw", dw[0], dw[1], C, 5e-5);
    // Without a delta, without an incoming gradient, setting dw.
    for (int i = 0; i < 2; i++) {
        memcpy(d[i], dy, (size_t)(M * C) * gang_device_act_bytes(p->ref));
        device[i]->k->norm(device[i], NULL, y[i], rstd[i], x, NULL, w, 1e-5f, M, C);
        device[i]->k->norm_backward(device[i], back[i], NULL, NULL, d[i], dw[i], false, x, rstd[i], w, M, C);
    }
    same_act("norm: y without delta", p, y[0], y[1], M * C, t);
    same_f32("norm: dx from nothing", back[0], back[1], M * C, 5e-5);
    same_f32("norm: dw set", dw[0], dw[1], C, 5e-5);
    for (int i = 0; i < 2; i++)
        release(sum[i]), release(rstd[i]), release(back[i]), release(dw[i]), release(y[i]), release(rounded[i]), release(d[i]);
    release(x), release(w), release(dx), release(delta), release(dy);
}

static void check_embed(struct pair *p) {
    int64_t M = draw(p, 1, 60), C = draw(p, 1, 100), V = draw(p, 1, 30);
    float *table = random_f32(p, V * C, 1), *dx = random_f32(p, M * C, 1);
    int32_t *ids = memory((size_t)M * 4);
    for (int64_t m = 0; m < M; m++) ids[m] = (int32_t)draw(p, 0, V - 1);
    float *x[2], *dt[2];
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        x[i] = memory((size_t)(M * C) * 4), dt[i] = memory((size_t)(V * C) * 4);
        device[i]->k->embed(device[i], x[i], ids, table, M, C);
        device[i]->k->embed_backward(device[i], dt[i], ids, dx, M, C);
    }
    assert_memory_equal(x[0], x[1], (size_t)(M * C) * 4);
    same_f32("embed: dtable", dt[0], dt[1], V * C, 1e-6);
    for (int i = 0; i < 2; i++) release(x[i]), release(dt[i]);
    release(table), release(dx), release(ids);
}

static void rotation(struct gang_attention *a) {
    float *c = memory((size_t)(a->length * a->dim / 2) * 4), *s = memory((size_t)(a->length * a->dim / 2) * 4);
    for (int64_t i = 0; i < a->length * a->dim / 2; i++) {
        double angle = (double)(i / (a->dim / 2)) * pow(1e4, -2.0 * (double)(i % (a->dim / 2)) / (double)a->dim);
        c[i] = (float)cos(angle), s[i] = (float)sin(angle);
    }
    a->cos = c, a->sin = s;
}

static void reserve(struct pair *p, const struct gang_attention *a, int64_t columns) {
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        release(device[i]->scratch);
        device[i]->scratch = memory(gang_device_scratch_bytes(device[i], a, columns));
        // What was left there must not matter.
        memset(device[i]->scratch, 0xff, gang_device_scratch_bytes(device[i], a, columns));
    }
}

static void check_attention(struct pair *p, int64_t T) {
    int64_t K = draw(p, 1, 3), D = 2 * draw(p, 1, 24), group = draw(p, 1, 3);
    struct gang_attention a = {.batch = draw(p, 1, 2), .length = T, .heads = K * group, .kv_heads = K, .dim = D};
    int64_t W = (a.heads + 2 * K) * D, M = a.batch * T, O = a.heads * D;
    rotation(&a);
    reserve(p, &a, W);
    void *qkv = random_act(p, M * W, 1), *dout = random_act(p, M * O, 1), *out[2], *dqkv[2], *kc[2], *vc[2], *one[2];
    float *lse[2];
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        out[i] = memory((size_t)(M * O) * 4), lse[i] = memory((size_t)(M * a.heads) * 4), dqkv[i] = memory((size_t)(M * W) * 4);
        kc[i] = memory((size_t)(T * K * D) * 4), vc[i] = memory((size_t)(T * K * D) * 4), one[i] = memory((size_t)O * 4);
        device[i]->k->attention(device[i], out[i], lse[i], qkv, &a);
        // The same forward results for both, so that only the backward pass is compared.
        device[i]->k->attention_backward(device[i], dqkv[i], dout, out[0], lse[0], qkv, &a);
        if (T > 1) device[i]->k->cache_fill(device[i], kc[i], vc[i], qkv, T - 1, &a);
        const char *last = (const char *)qkv + (size_t)((T - 1) * W) * gang_device_act_bytes(p->ref);
        device[i]->k->attention_decode(device[i], one[i], kc[i], vc[i], last, T - 1, &a);
    }
    double t = tolerance(p);
    same_act("attention: out", p, out[0], out[1], M * O, t);
    same_f32("attention: lse", lse[0], lse[1], M * a.heads, t / 2);
    same_act("attention: dqkv", p, dqkv[0], dqkv[1], M * W, 2 * t);
    same_act("attention: k cache", p, kc[0], kc[1], T * K * D, t);
    same_act("attention: v cache", p, vc[0], vc[1], T * K * D, 0);
    same_act("attention: decode", p, one[0], one[1], O, t);
    // One position at a time gives what the whole sequence gave (batch 0, last row).
    same_act("attention: decode against whole", p, (const char *)out[0] + (size_t)((T - 1) * O) * gang_device_act_bytes(p->ref), one[1], O, 2 * t);
    for (int i = 0; i < 2; i++) release(out[i]), release(lse[i]), release(dqkv[i]), release(kc[i]), release(vc[i]), release(one[i]);
    release(qkv), release(dout), release(a.cos), release(a.sin);
}

static void check_swiglu(struct pair *p) {
    int64_t M = draw(p, 1, 20), F = draw(p, 1, 150);
    void *gu = random_act(p, M * 2 * F, 3), *dh = random_act(p, M * F, 1), *h[2], *g[2], *d[2];
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        h[i] = memory((size_t)(M * F) * 4), g[i] = copy_act(p, gu, M * 2 * F), d[i] = copy_act(p, dh, M * F);
        device[i]->k->swiglu(device[i], h[i], gu, M, F);
        device[i]->k->swiglu_backward(device[i], g[i], d[i], M, F);
    }
    double t = tolerance(p);
    same_act("swiglu: h", p, h[0], h[1], M * F, t);
    same_act("swiglu: h again", p, h[1], d[1], M * F, 0);
    same_act("swiglu: dgu", p, g[0], g[1], M * 2 * F, t);
    for (int i = 0; i < 2; i++) release(h[i]), release(g[i]), release(d[i]);
    release(gu), release(dh);
}

static void check_cross_entropy(struct pair *p) {
    int64_t M = draw(p, 1, 20), V = draw(p, 2, 400);
    float *logits = random_f32(p, M * V, 4), *loss[2];
    int32_t *targets = memory((size_t)M * 4);
    for (int64_t m = 0; m < M; m++) targets[m] = (int32_t)draw(p, -1, V - 1);
    void *d[2];
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        loss[i] = memory((size_t)M * 4), d[i] = memory((size_t)(M * V) * 4);
        device[i]->k->cross_entropy(device[i], loss[i], d[i], logits, targets, 0.25f, M, V);
    }
    double t = tolerance(p);
    same_f32("cross-entropy: loss", loss[0], loss[1], M, 1e-5);
    same_act("cross-entropy: dlogits", p, d[0], d[1], M * V, t);
    for (int i = 0; i < 2; i++) release(loss[i]), release(d[i]);
    release(logits), release(targets);
}

static bool close_to(float want, float got, enum gang_compute type) {
    if (isnan(want) || isinf(want)) return isnan(want) ? isnan(got) : got == want;
    return fabsf(got - want) <= fabsf(want) * (type == GANG_COMPUTE_F32 ? 0 : 1.0f / 256);
}

// Messages of either type, with and without a delta: close to what was sent, and the same bits from either device.
static void check_message(struct pair *p, enum gang_compute type, const float *x, const void *delta, int64_t n) {
    size_t bytes = (size_t)n * (type == GANG_COMPUTE_F32 ? 4 : 2);
    void *out[2], *rounded[2];
    float *back[2];
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        out[i] = memory(bytes), back[i] = memory((size_t)n * 4), rounded[i] = memory((size_t)n * 4);
        device[i]->k->pack(device[i], out[i], type, x, delta, n);
        device[i]->k->unpack(device[i], back[i], NULL, out[i], type, n);
        for (int64_t k = 0; k < n; k++) {
            float sum = delta ? x[k] + act_at(p->ref, delta, k) : x[k];
            if (!close_to(sum, back[i][k], type)) fail_msg("message: element %lld: %g came as %g", (long long)k, (double)sum, (double)back[i][k]);
        }
        memset(back[i], 0xff, (size_t)n * 4);
        device[i]->k->unpack(device[i], back[i], rounded[i], out[0], type, n);
    }
    if (!delta) assert_memory_equal(out[0], out[1], bytes);
    assert_memory_equal(back[0], back[1], (size_t)n * 4);
    assert_memory_equal(rounded[0], rounded[1], (size_t)n * gang_device_act_bytes(p->ref));
    for (int64_t k = 0; k < n; k++) assert_true(close_to(back[0][k], act_at(p->ref, rounded[0], k), p->ref->compute));
    for (int i = 0; i < 2; i++) release(out[i]), release(back[i]), release(rounded[i]);
}

static void check_messages(struct pair *p) {
    int64_t n = draw(p, 1, 3000);
    float *x = random_f32(p, n, 1);
    void *delta = random_act(p, n, 1);
    static const float odd[] = {INFINITY, -INFINITY, 1.00390625f, 1.01171875f, 3.3e38f, -0.0f, 0};
    for (int64_t i = 0; i < 7 && i < n; i++) x[i] = odd[i];
    for (int i = 0; i < 4; i++) check_message(p, i & 1 ? GANG_COMPUTE_BF16 : GANG_COMPUTE_F32, x, i & 2 ? delta : NULL, n);
    x[n / 2] = NAN; // of which the bits may differ
    uint16_t *out = memory((size_t)n * 2);
    p->cpu->k->pack(p->cpu, out, GANG_COMPUTE_BF16, x, NULL, n);
    assert_true((out[n / 2] & 0x7fff) > 0x7f80);
    release(x), release(delta), release(out);
}

static const struct gang_adamw adamw = {
    .rate = 1e-2f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .decay = 0.1f, .correct1 = 0.19f, .correct2 = 0.1f, .gradient_scale = 0.5f};

static void check_optimizer(struct pair *p) {
    int64_t n = draw(p, 1, 200000);
    float *g = random_f32(p, n, 1), *from[3], *state[2][3];
    for (int j = 0; j < 3; j++) from[j] = random_f32(p, n, 1);
    for (int64_t i = 0; i < n; i++) from[2][i] = fabsf(from[2][i]);
    struct gang_device *device[2] = {p->ref, p->cpu};
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 3; j++) state[i][j] = memcpy(memory((size_t)n * 4), from[j], (size_t)n * 4);
        device[i]->k->adamw(device[i], state[i][0], state[i][1], state[i][2], g, n, &adamw);
    }
    for (int j = 0; j < 3; j++) same_f32("adamw", state[0][j], state[1][j], n, 1e-5);
    double want = p->ref->k->sum_squares(p->ref, g, n), got = p->cpu->k->sum_squares(p->cpu, g, n);
    struct gap gap = {0};
    gap_add(&gap, want, got);
    gap_check("sum of squares", &gap, 3e-5); // blocks of 65536 are summed in f32
    for (int j = 0; j < 3; j++) release(from[j]), release(state[0][j]), release(state[1][j]);
    release(g);
}

// A step of the weight itself gives the bits of a step of its elements, and leaves what a refresh would.
static void check_update(struct gang_device *d, struct gang_linear *l, const float *w, const void *x, const void *dy, int64_t M, int64_t out,
                         int64_t in) {
    size_t bytes = (size_t)(out * in) * 4, y_bytes = (size_t)(M * out) * 4, dx_bytes = (size_t)(M * in) * gang_device_act_bytes(d);
    float *state[2][3], *y[2];
    void *dx[2];
    for (int i = 0; i < 2; i++) {
        for (int j = 0; j < 3; j++) state[i][j] = memcpy(memory(bytes), w, bytes);
        for (int64_t j = 0; j < out * in; j++) state[i][2][j] = fabsf(w[j]);
        y[i] = memory(y_bytes), dx[i] = memory(dx_bytes);
        if (i) {
            d->k->linear_update(d, l, state[i][0], state[i][1], state[i][2], w, &adamw);
        } else {
            d->k->adamw(d, state[i][0], state[i][1], state[i][2], w, out * in, &adamw);
            d->k->linear_refresh(d, l, state[i][0]);
        }
        d->k->linear(d, l, y[i], true, x, M);
        d->k->linear_input(d, l, dx[i], dy, M);
    }
    for (int j = 0; j < 3; j++) assert_memory_equal(state[0][j], state[1][j], bytes);
    assert_memory_equal(y[0], y[1], y_bytes);
    assert_memory_equal(dx[0], dx[1], dx_bytes);
    for (int i = 0; i < 2; i++) release(state[i][0]), release(state[i][1]), release(state[i][2]), release(y[i]), release(dx[i]);
}

static void check_linear(struct pair *p, enum gang_linear_use use, int64_t M, int64_t out, int64_t in) {
    float *w = random_f32(p, out * in, 1), *dw[2], *wide[2];
    void *x = random_act(p, M * in, 1), *dy = random_act(p, M * out, 1), *y[2], *dx[2];
    struct gang_device *device[2] = {p->ref, p->cpu};
    struct gang_arena arena;
    gang_arena_init(&arena);
    for (int i = 0; i < 2; i++) {
        struct gang_device *d = device[i];
        void *packed = gang_arena_alloc(&arena, d->k->linear_bytes(d, use, out, in) + 64);
        packed = (char *)packed + (64 - (uintptr_t)packed % 64) % 64;
        struct gang_linear *l = d->k->linear_new(d, use, out, in, packed, &arena);
        if (use == GANG_LINEAR_TRAIN) check_update(d, l, w, x, dy, M, out, in);
        d->k->linear_refresh(d, l, w);
        y[i] = memory((size_t)(M * out) * 4), dx[i] = memory((size_t)(M * in) * 4), dw[i] = memory((size_t)(out * in) * 4),
        wide[i] = memory((size_t)(M * out) * 4);
        d->k->linear(d, l, y[i], false, x, M);
        d->k->linear(d, l, wide[i], true, x, M);
        if (use == GANG_LINEAR_INFER) continue;
        d->k->linear_input(d, l, dx[i], dy, M);
        d->k->linear_weight(d, l, dw[i], dy, x, false, M);
        d->k->linear_weight(d, l, dw[i], dy, x, true, M);
    }
    double t = tolerance(p);
    same_act("linear: y", p, y[0], y[1], M * out, t);
    same_f32("linear: y in f32", wide[0], wide[1], M * out, 1e-4);
    same_act("linear: dx", p, dx[0], dx[1], M * in, t);
    same_f32("linear: dw", dw[0], dw[1], out * in, 1e-4);
    for (int i = 0; i < 2; i++) release(y[i]), release(dx[i]), release(dw[i]), release(wide[i]);
    gang_arena_release(&arena);
    release(w), release(x), release(dy);
}

static void against_reference(enum gang_compute compute, const char *isa) {
    struct pair p = {.seed = test_seed()};
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = "ref", .compute = compute}, &p.ref));
    if (gang_device_open(&(struct gang_device_options){.kind = "cpu", .compute = compute, .threads = 2, .instructions = isa}, &p.cpu)) {
        print_message("%s: %s\n", isa, gang_error());
        gang_device_close(p.ref);
        skip();
    }
    struct gang_attention a = {.batch = 1, .length = 64, .heads = 1, .kv_heads = 1, .dim = 64};
    reserve(&p, &a, 4096);
    for (int round = 0; round < 8; round++) {
        check_norm(&p);
        check_embed(&p);
        check_swiglu(&p);
        check_cross_entropy(&p);
        check_messages(&p);
        check_linear(&p, GANG_LINEAR_TRAIN, draw(&p, 1, 70), draw(&p, 1, 96), draw(&p, 1, 96));
        check_linear(&p, GANG_LINEAR_TRAIN, 2 * draw(&p, 1, 35), 16 * draw(&p, 1, 12), 16 * draw(&p, 1, 12));
        check_linear(&p, GANG_LINEAR_INFER, draw(&p, 0, 2) ? draw(&p, 2, 70) : 1, draw(&p, 1, 96), draw(&p, 1, 96));
    }
    // Each side in turn longer than what a product takes at once: a chunk of depth (2,048 bf16), columns, a block of rows.
    check_linear(&p, GANG_LINEAR_TRAIN, 2101, 20, 4201);
    check_linear(&p, GANG_LINEAR_TRAIN, 10, 4201, 48);
    check_linear(&p, GANG_LINEAR_TRAIN, 20, 32, 2051);
    check_linear(&p, GANG_LINEAR_INFER, 130, 60, 2051);
    check_optimizer(&p);
    // Around the block size, and enough blocks that all kinds occur.
    static const int64_t lengths[] = {1, 2, 17, 63, 64, 65, 128, 150};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) check_attention(&p, lengths[i]);
    release(p.ref->scratch), release(p.cpu->scratch);
    gang_device_close(p.ref);
    gang_device_close(p.cpu);
}

#define AGAINST(isa)                                                                                       \
    static void test_##isa##_f32(void **state) { (void)state, against_reference(GANG_COMPUTE_F32, #isa); } \
    static void test_##isa##_bf16(void **state) { (void)state, against_reference(GANG_COMPUTE_BF16, #isa); }
AGAINST(avx512bf16)
AGAINST(avx512)
AGAINST(avx2)
AGAINST(generic)

// ---- Finite differences on the reference ---------------------------------------------------------------------------

// d/dx of sum(g * f(x)) by central differences against what backward says, for a random choice of elements.
typedef void forward_function(struct gang_device *d, void *context, const float *x, float *y);

static void compare_slopes(struct pair *p, const char *what, forward_function *f, void *context, float *x, int64_t n, const float *g, int64_t m,
                           const float *dx) {
    float *up = memory((size_t)m * 4), *down = memory((size_t)m * 4);
    for (int round = 0; round < 30; round++) {
        int64_t i = draw(p, 0, n - 1);
        float kept = x[i], step = 1e-2f;
        x[i] = kept + step;
        f(p->ref, context, x, up);
        x[i] = kept - step;
        f(p->ref, context, x, down);
        x[i] = kept;
        double slope = 0;
        for (int64_t j = 0; j < m; j++) slope += (double)g[j] * ((double)up[j] - (double)down[j]) / (2 * (double)step);
        if (!(fabs(slope - (double)dx[i]) <= 2e-3 + 5e-3 * fabs(slope)))
            fail_msg("%s: element %lld: slope %g, backward says %g", what, (long long)i, slope, (double)dx[i]);
    }
    release(up), release(down);
}

struct norm_context {
    int64_t M, C;
    float *w, *rstd;
};

static void norm_forward(struct gang_device *d, void *context, const float *x, float *y) {
    struct norm_context *c = context;
    d->k->norm(d, NULL, y, c->rstd, x, NULL, c->w, 1e-5f, c->M, c->C);
}

static void attention_forward(struct gang_device *d, void *context, const float *x, float *y) {
    const struct gang_attention *a = context;
    float *lse = memory((size_t)(a->batch * a->heads * a->length) * 4);
    d->k->attention(d, y, lse, x, a);
    release(lse);
}

static void swiglu_forward(struct gang_device *d, void *context, const float *x, float *y) {
    const int64_t *shape = context;
    d->k->swiglu(d, y, x, shape[0], shape[1]);
}

static void test_finite_differences(void **state) {
    (void)state;
    struct pair p = {.seed = test_seed()};
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = "ref", .compute = GANG_COMPUTE_F32}, &p.ref));
    struct gang_device *d = p.ref;

    struct norm_context nc = {.M = 3, .C = 7, .w = random_f32(&p, 7, 1), .rstd = memory(12)};
    float *x = random_f32(&p, 21, 1), *g = random_f32(&p, 21, 1), *dy = memcpy(memory(84), g, 84), *y = memory(84), *dx = memory(84),
          *dw = memory(28);
    norm_forward(d, &nc, x, y);
    d->k->norm_backward(d, dx, NULL, NULL, dy, dw, false, x, nc.rstd, nc.w, 3, 7);
    compare_slopes(&p, "norm", norm_forward, &nc, x, 21, g, 21, dx);
    release(x), release(g), release(dy), release(y), release(dx), release(dw), release(nc.w), release(nc.rstd);

    struct gang_attention a = {.batch = 2, .length = 5, .heads = 4, .kv_heads = 2, .dim = 6};
    rotation(&a);
    int64_t n = 2 * 5 * 8 * 6, m = 2 * 5 * 4 * 6;
    x = random_f32(&p, n, 1), g = random_f32(&p, m, 1), y = memory((size_t)m * 4), dx = memory((size_t)n * 4);
    float *lse = memory(2 * 5 * 4 * 4);
    d->k->attention(d, y, lse, x, &a);
    d->k->attention_backward(d, dx, g, y, lse, x, &a);
    compare_slopes(&p, "attention", attention_forward, &a, x, n, g, m, dx);
    release(x), release(g), release(y), release(dx), release(lse), release(a.cos), release(a.sin);

    int64_t shape[2] = {4, 6};
    x = random_f32(&p, 48, 1), g = random_f32(&p, 24, 1);
    float *gu = memcpy(memory(48 * 4), x, 48 * 4), *dh = memcpy(memory(24 * 4), g, 24 * 4);
    d->k->swiglu_backward(d, gu, dh, 4, 6);
    compare_slopes(&p, "swiglu", swiglu_forward, shape, x, 48, g, 24, gu);
    release(x), release(g), release(gu), release(dh);
    gang_device_close(d);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finite_differences), cmocka_unit_test(test_avx512bf16_f32), cmocka_unit_test(test_avx512bf16_bf16),
        cmocka_unit_test(test_avx512_f32),         cmocka_unit_test(test_avx512_bf16),    cmocka_unit_test(test_avx2_f32),
        cmocka_unit_test(test_generic_f32),        cmocka_unit_test(test_avx2_bf16),      cmocka_unit_test(test_generic_bf16),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
