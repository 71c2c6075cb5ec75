// The element-wise kernels of the CPU device: loops over vectors of the widest kind, fused so that each
// pass over memory does all it can. Compiled once per instruction set and compute type; CPU_NAME gives each
// its own names.
//
// Everything here is bound by memory bandwidth (a core does about 11 FLOP in the time of one byte), so what counts is how
// often a tensor is read and written. Reductions over threads go through per-thread partial sums added in thread order:
// the same bits every time.
#include "device/cpu.h"
#include "device/cpu_names.h"
#include "device/cpu_vector.h"

#include <omp.h>

// One multiply-add of the peak loop and the FLOP of one of its lanes.
#ifdef HAVE_BF16_PAIRS
#define PEAK_STEP(acc, a, b) ((gang_vf)_mm512_dpbf16_ps((__m512)(acc), (__m512bh)(a), (__m512bh)(b)))
enum { PEAK_FLOP = 4 };
#else
#define PEAK_STEP(acc, a, b) ((acc) * (a) + (b))
enum { PEAK_FLOP = 2 };
#endif

// An operand of inline assembly that keeps a vector in a register; "x" would leave out half of AVX-512's.
#ifdef __AVX512F__
#define VECTOR_REGISTER(value) "+v"(value)
#elif defined(__x86_64__)
#define VECTOR_REGISTER(value) "+x"(value)
#else
#define VECTOR_REGISTER(value) "+w"(value)
#endif

#define PARALLEL_ROWS _Pragma("omp parallel for schedule(static) num_threads(device->threads)")

static void embed(struct gang_device *device, float *x, const int32_t *ids, const float *table, int64_t M, int64_t C) {
    PARALLEL_ROWS
    for (int64_t m = 0; m < M; m++) memcpy(x + m * C, table + ids[m] * C, (size_t)C * sizeof *x);
}

// Threads own columns, not rows: two rows may hold the same id.
static void embed_backward(struct gang_device *device, float *dtable, const int32_t *ids, const float *dx, int64_t M, int64_t C) {
#pragma omp parallel num_threads(device->threads)
    {
        int64_t from = C * omp_get_thread_num() / omp_get_num_threads(), to = C * (omp_get_thread_num() + 1) / omp_get_num_threads();
        for (int64_t m = 0; m < M; m++) {
            float *restrict row = dtable + ids[m] * C;
            const float *restrict add = dx + m * C;
            for (int64_t c = from; c < to; c++) row[c] += add[c];
        }
    }
}

static float norm_row(float *sum, act *y, const float *x, const act *delta, const float *w, float eps, int64_t C) {
    gang_vf squares = {0};
    for (int64_t c = 0; c < C; c += VL) {
        gang_vf v = load_f32(x + c, C - c);
        if (delta) {
            v += load_act(delta + c, C - c);
            store_f32(sum + c, v, C - c);
        }
        squares += v * v;
    }
    float rstd = 1.0f / sqrtf(sum_lanes(squares) / (float)C + eps);
    const float *from = delta ? sum : x;
    for (int64_t c = 0; c < C; c += VL) store_act(y + c, load_f32(from + c, C - c) * rstd * load_f32(w + c, C - c), C - c);
    return rstd;
}

static void norm(struct gang_device *device, float *sum, void *y, float *rstd, const float *x, const void *delta, const float *w, float eps,
                 int64_t M, int64_t C) {
    PARALLEL_ROWS
    for (int64_t m = 0; m < M; m++)
        rstd[m] = norm_row(sum + m * C, (act *)y + m * C, x + m * C, delta ? (const act *)delta + m * C : NULL, w, eps, C);
}

// One row of norm_backward. With n = x rstd and g = dy w: dx = rstd (g - n mean(g n)), dw += dy n, y = n w.
static void norm_backward_row(float *dx, const float *dx_in, act *rounded, act *dy, float *dw, const float *x, float rstd, const float *w,
                              int64_t C) {
    gang_vf dot = {0};
    for (int64_t c = 0; c < C; c += VL) dot += load_act(dy + c, C - c) * load_f32(w + c, C - c) * load_f32(x + c, C - c);
    float mean = sum_lanes(dot) * rstd / (float)C;
    for (int64_t c = 0; c < C; c += VL) {
        int64_t left = C - c;
        gang_vf n = load_f32(x + c, left) * rstd, d = load_act(dy + c, left), weight = load_f32(w + c, left);
        gang_vf back = (d * weight - n * mean) * rstd;
        if (dx_in) back += load_f32(dx_in + c, left);
        store_f32(dx + c, back, left);
        store_f32(dw + c, load_f32(dw + c, left) + d * n, left);
        store_act(dy + c, n * weight, left);
    }
    // By itself: as a fourth stream of stores in the loop above it made that three times as slow.
    for (int64_t c = 0; rounded && c < C; c += VL) store_act(rounded + c, load_f32(dx + c, C - c), C - c);
}

static void norm_backward(struct gang_device *device, float *dx, const float *dx_in, void *rounded, void *dy, float *dw, bool accumulate,
                          const float *x, const float *rstd, const float *w, int64_t M, int64_t C) {
    float *partials = device->scratch; // [threads, C]
#pragma omp parallel num_threads(device->threads)
    {
        int threads = omp_get_num_threads();
        float *mine = partials + omp_get_thread_num() * C;
        memset(mine, 0, (size_t)C * sizeof *mine);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++)
            norm_backward_row(dx + m * C, dx_in ? dx_in + m * C : NULL, rounded ? (act *)rounded + m * C : NULL, (act *)dy + m * C, mine, x + m * C,
                              rstd[m], w, C);
#pragma omp for schedule(static)
        for (int64_t c = 0; c < C; c++) {
            float sum = accumulate ? dw[c] : 0;
            for (int t = 0; t < threads; t++) sum += partials[t * C + c];
            dw[c] = sum;
        }
    }
}

static void swiglu(struct gang_device *device, void *h, const void *gu, int64_t M, int64_t F) {
    PARALLEL_ROWS
    for (int64_t m = 0; m < M; m++) {
        const act *g = (const act *)gu + m * 2 * F, *u = g + F;
        act *out = (act *)h + m * F;
        for (int64_t f = 0; f < F; f += VL) {
            gang_vf x = load_act(g + f, F - f), sigmoid = reciprocal_act(exp_act(-x) + 1.0f), silu = x * sigmoid;
            store_act(out + f, silu * load_act(u + f, F - f), F - f);
        }
    }
}

static void swiglu_backward(struct gang_device *device, void *gu, void *dh, int64_t M, int64_t F) {
    PARALLEL_ROWS
    for (int64_t m = 0; m < M; m++) {
        act *g = (act *)gu + m * 2 * F, *u = g + F, *d = (act *)dh + m * F;
        for (int64_t f = 0; f < F; f += VL) {
            int64_t left = F - f;
            gang_vf x = load_act(g + f, left), up = load_act(u + f, left), grad = load_act(d + f, left);
            gang_vf sigmoid = reciprocal_act(exp_act(-x) + 1.0f), silu = x * sigmoid;
            store_act(d + f, silu * up, left);
            store_act(g + f, grad * up * sigmoid * (1.0f + x - silu), left);
            store_act(u + f, grad * silu, left);
        }
    }
}

static float cross_entropy_row(act *d, const float *z, int32_t target, float scale, int64_t V) {
    float at_target = z[target], high = z[0];
    for (int64_t v = 0; v < V; v++) high = z[v] > high ? z[v] : high;
    gang_vf total = {0};
    int64_t whole = V / VL * VL;
    for (int64_t v = 0; v < whole; v += VL) total += exp_vector(*(const gang_vf *)(z + v) - high);
    float sum = sum_lanes(total);
    for (int64_t v = whole; v < V; v++) sum += exp_scalar(z[v] - high);
    float inverse = scale / sum;
    for (int64_t v = 0; v < V; v += VL) store_act(d + v, exp_vector(load_f32(z + v, V - v) - high) * inverse, V - v);
    d[target] = to_act(exp_scalar(at_target - high) * inverse - scale);
    return logf(sum) + high - at_target;
}

static void cross_entropy(struct gang_device *device, float *loss, void *dlogits, const float *logits, const int32_t *targets, float scale, int64_t M,
                          int64_t V) {
    PARALLEL_ROWS
    for (int64_t m = 0; m < M; m++) {
        act *d = (act *)dlogits + m * V;
        if (targets[m] >= 0) {
            loss[m] = cross_entropy_row(d, logits + m * V, targets[m], scale, V);
        } else {
            loss[m] = 0;
            memset(d, 0, (size_t)V * sizeof *d);
        }
    }
}

static void pack(struct gang_device *device, void *out, enum gang_compute type, const float *x, const void *delta, int64_t n) {
    PARALLEL_ROWS
    for (int64_t i = 0; i < n; i += VL) {
        gang_vf sum = load_f32(x + i, n - i);
        if (delta) sum += load_act((const act *)delta + i, n - i);
        if (type == GANG_COMPUTE_F32)
            store_f32((float *)out + i, sum, n - i);
        else
            store_bf16((uint16_t *)out + i, sum, n - i);
    }
}

static void unpack(struct gang_device *device, float *x, void *rounded, const void *in, enum gang_compute type, int64_t n) {
    PARALLEL_ROWS
    for (int64_t i = 0; i < n; i += VL) {
        gang_vf v = type == GANG_COMPUTE_F32 ? load_f32((const float *)in + i, n - i) : load_bf16((const uint16_t *)in + i, n - i);
        store_f32(x + i, v, n - i);
        if (rounded) store_act((act *)rounded + i, v, n - i);
    }
}

// Blocks of fixed size, summed in order: independent of the number of threads.
static double sum_squares(struct gang_device *device, const float *x, int64_t n) {
    enum { BLOCK = 1 << 16, BLOCKS = 256 };
    double total = 0;
    for (int64_t base = 0; base < n; base += (int64_t)BLOCK * BLOCKS) {
        double sums[BLOCKS];
        int64_t left = n - base, blocks = left >= (int64_t)BLOCK * BLOCKS ? BLOCKS : (left + BLOCK - 1) / BLOCK;
        PARALLEL_ROWS
        for (int64_t b = 0; b < blocks; b++) {
            const float *from = x + base + b * BLOCK;
            int64_t count = left - b * BLOCK < BLOCK ? left - b * BLOCK : BLOCK;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t i = 0; i < count; i++) sum += from[i] * from[i];
            sums[b] = (double)sum;
        }
        for (int64_t b = 0; b < blocks; b++) total += sums[b];
    }
    return total;
}

// Loshchilov and Hutter 2019 (decoupled weight decay), the form PyTorch uses.
void CPU_NAME(gang_cpu_adamw)(float *restrict p, const struct gang_cpu_step *step, int64_t from, int64_t n) {
    const struct gang_adamw *o = step->o;
    const float b1 = o->beta1, b2 = o->beta2, scale = o->gradient_scale, keep = 1 - o->rate * o->decay;
    const float rate = o->rate / o->correct1, inv2 = 1 / sqrtf(o->correct2), eps = o->epsilon;
    float *restrict m = step->m, *restrict v = step->v;
    const float *restrict g = step->g;
#pragma omp simd
    for (int64_t i = from; i < from + n; i++) {
        float grad = g[i] * scale;
        float m1 = b1 * m[i] + (1 - b1) * grad, v1 = b2 * v[i] + (1 - b2) * grad * grad;
        m[i] = m1;
        v[i] = v1;
        p[i] = p[i] * keep - rate * m1 / (sqrtf(v1) * inv2 + eps);
    }
}

static void adamw(struct gang_device *device, float *p, float *m, float *v, const float *g, int64_t n, const struct gang_adamw *o) {
    enum { BLOCK = 4096 };
    const struct gang_cpu_step step = {m, v, g, o};
    PARALLEL_ROWS
    for (int64_t i = 0; i < n; i += BLOCK) CPU_NAME(gang_cpu_adamw)(p, &step, i, n - i < BLOCK ? n - i : BLOCK);
}

// w . x over n elements, as one stream through w that is fetched ahead of its use: a row alone is too short for the
// processor's own prefetcher to get going, and w is read once, from memory.
static inline float dot(const act *w, const act *x, int64_t n) {
    enum { AHEAD = 4096 / sizeof(act), LINE = 64 / sizeof(act) };
    int64_t i = 0;
#ifdef HAVE_BF16_PAIRS
    __m512 a = _mm512_setzero_ps(), b = a;
    for (; i + 2 * LINE <= n; i += 2 * LINE) {
        __builtin_prefetch(w + i + AHEAD);
        __builtin_prefetch(w + i + AHEAD + LINE);
        a = _mm512_dpbf16_ps(a, (__m512bh)_mm512_loadu_si512(w + i), (__m512bh)_mm512_loadu_si512(x + i));
        b = _mm512_dpbf16_ps(b, (__m512bh)_mm512_loadu_si512(w + i + LINE), (__m512bh)_mm512_loadu_si512(x + i + LINE));
    }
    float sum = sum_lanes((gang_vf)(a + b));
#else
    enum { CHAINS = 4 };
    gang_vf acc[CHAINS] = {{0}};
    for (; i + CHAINS * VL <= n; i += CHAINS * VL) {
        __builtin_prefetch(w + i + AHEAD);
        __builtin_prefetch(w + i + AHEAD + LINE);
        for (int c = 0; c < CHAINS; c++) acc[c] += act_to_vector(x + i + c * VL) * act_to_vector(w + i + c * VL);
    }
    float sum = sum_lanes((acc[0] + acc[1]) + (acc[2] + acc[3]));
#endif
    for (; i < n; i++) sum += from_act(w[i]) * from_act(x[i]);
    return sum;
}

// One row times a weight [out, in]: bound by reading the weight once.
void CPU_NAME(gang_cpu_linear_row)(struct gang_device *device, void *y, bool y_f32, const void *weight, const void *x, int64_t out, int64_t in) {
    PARALLEL_ROWS
    for (int64_t o = 0; o < out; o++) {
        float sum = dot((const act *)weight + o * in, x, in);
        if (y_f32)
            ((float *)y)[o] = sum;
        else
            ((act *)y)[o] = to_act(sum);
    }
}

void CPU_NAME(gang_cpu_round_weight)(struct gang_device *device, void *to, const float *from, int64_t n) {
    PARALLEL_ROWS
    for (int64_t i = 0; i < n; i += VL) store_act((act *)to + i, load_f32(from + i, n - i), n - i);
}

// Enough chains to hide the latency of the multiply-add, few enough to stay in registers. The barriers keep the compiler
// from folding rounds or chains into one.
double CPU_NAME(gang_cpu_peak)(int64_t rounds) {
    enum { CHAINS = VL == 16 ? 16 : 10 };
    gang_vf acc[CHAINS], a = {0}, b = {0};
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; i++) acc[i] = (gang_vf){0};
    for (int64_t r = 0; r < rounds; r++) {
        __asm__ volatile("" : VECTOR_REGISTER(a), VECTOR_REGISTER(b));
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            acc[i] = PEAK_STEP(acc[i], a, b);
            __asm__ volatile("" : VECTOR_REGISTER(acc[i]));
        }
    }
    return (double)rounds * CHAINS * VL * PEAK_FLOP;
}

const struct gang_kernels CPU_NAME(gang_cpu_table) = {
    .embed = embed,
    .embed_backward = embed_backward,
    .norm = norm,
    .norm_backward = norm_backward,
    .attention = CPU_NAME(gang_cpu_attention),
    .attention_backward = CPU_NAME(gang_cpu_attention_backward),
    .attention_decode = CPU_NAME(gang_cpu_attention_decode),
    .cache_fill = CPU_NAME(gang_cpu_cache_fill),
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .cross_entropy = cross_entropy,
    .pack = pack,
    .unpack = unpack,
    .sum_squares = sum_squares,
    .adamw = adamw,
    .linear_bytes = gang_cpu_linear_bytes,
    .linear_new = gang_cpu_linear_new,
    .linear_refresh = gang_cpu_linear_refresh,
    .linear_update = gang_cpu_linear_update,
    .linear = gang_cpu_linear,
    .linear_input = gang_cpu_linear_input,
    .linear_weight = gang_cpu_linear_weight,
};
