// Causal attention in blocks of 64 x 64 with a running softmax (Dao et al. 2022), forward, backward and for one position.
// Never a T x T matrix in memory. Compiled once per instruction set and compute type.
//
// One task is one key/value head of one sequence: it owns its rows of dk and dv, so no two threads add to the same place
// and the bits do not depend on who came first. Rotary embedding is applied while blocks are loaded, and undone while
// gradients are stored; q|k|v in memory stay as the projection wrote them.
//
// All products run on 32-bit units: a unit is one f32, or two bf16 neighbours along the summed dimension where the
// processor multiplies such pairs (UNIT = 2). From an f32 tile X[rows][cols] three operand layouts are made:
//   pack_row(X)  [rows][cols/UNIT]  left operand, summed along cols
//   pack_sum(X)  [rows/UNIT][cols]  right operand (or left, read column-wise), summed along rows
//   pack_turn(X) [cols/UNIT][rows]  right operand, summed along cols
// Forward  S = Q K^T, O += P V.  Backward works on transposed scores, so that only dQ reads an operand column-wise:
// S^T = K Q^T, dP^T = V dO^T, dV += P^T dO, dK += dS^T Q, dQ += dS K.
//
// Letters: T positions padded to Tp (a multiple of BLOCK), D head dimension padded to Dp (a multiple of 16); paddings are 0.
#include "device/cpu.h"
#include "device/cpu_names.h"
#include "device/cpu_vector.h"

#include <omp.h>

#ifdef HAVE_BF16_PAIRS
enum { UNIT = 2 };
#else
enum { UNIT = 1 };
#endif

enum { BLOCK = GANG_CPU_ATTENTION_BLOCK, STRIP = 16, TURN = 16 };

// ---- Small products ------------------------------------------------------------------------------------------------

static inline gang_vf multiply_add(gang_vf acc, uint32_t a, const uint32_t *b) {
#ifdef HAVE_BF16_PAIRS
    return (gang_vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32((int)a), (__m512bh)_mm512_loadu_si512(b));
#else
    return acc + bits_to_float(a) * *(const gang_vf *)b;
#endif
}

// acc[MR][NV] stays in registers: all bounds are constants after inlining.
static inline __attribute__((always_inline)) void tile(float *C, int64_t ldc, const uint32_t *A, int64_t am, int64_t ak, const uint32_t *B,
                                                       int64_t ldb, int K, bool add, const int MR, const int NV) {
    gang_vf acc[4][4];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NV; j++) acc[i][j] = add ? *(const gang_vf *)(C + i * ldc + j * VL) : (gang_vf){0};
    for (int k = 0; k < K; k++)
#pragma GCC unroll 4
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
            for (int j = 0; j < NV; j++) acc[i][j] = multiply_add(acc[i][j], A[i * am + k * ak], B + k * ldb + j * VL);
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NV; j++) *(gang_vf *)(C + i * ldc + j * VL) = acc[i][j];
}

// C[M][N] = or += sum over K units of A(m, k) B(k, n). M is a multiple of 4, N of 16.
static void product(float *C, int64_t ldc, const uint32_t *A, int64_t am, int64_t ak, const uint32_t *B, int64_t ldb, int M, int N, int K, bool add) {
    enum { WIDE = VL == 16 ? 4 : 2 };
    for (int m = 0; m < M; m += 4) {
        int n = 0;
        for (; n + WIDE * VL <= N; n += WIDE * VL) tile(C + m * ldc + n, ldc, A + m * am, am, ak, B + n, ldb, K, add, 4, WIDE);
        for (; n < N; n += VL) tile(C + m * ldc + n, ldc, A + m * am, am, ak, B + n, ldb, K, add, 4, 1);
    }
}

// ---- Operand layouts -----------------------------------------------------------------------------------------------

// n is a multiple of 16.
static void pack_row(uint32_t *to, const float *from, int64_t n) {
#ifdef HAVE_BF16_PAIRS
    for (int64_t i = 0; i < n; i += 16) _mm256_storeu_si256((__m256i *)(to + i / 2), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i)));
#else
    if ((const void *)to != from) memcpy(to, from, (size_t)n * sizeof *from);
#endif
}

// VL elements of a row operand.
static inline void put_row(uint32_t *to, int64_t at, gang_vf x) {
#ifdef HAVE_BF16_PAIRS
    vector_to_act((act *)to + at, x);
#else
    *(gang_vf *)(to + at) = x;
#endif
}

static void pack_sum(uint32_t *to, const float *from, int64_t cols) {
#ifdef HAVE_BF16_PAIRS
    for (int64_t r = 0; r < BLOCK; r += 2)
        for (int64_t c = 0; c < cols; c += 16) {
            __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + r * cols + c)));
            __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + (r + 1) * cols + c)));
            _mm512_storeu_si512(to + r / 2 * cols + c, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
        }
#else
    if ((const void *)to != from) memcpy(to, from, (size_t)(BLOCK * cols) * sizeof *from);
#endif
}

// Converts 16 rows at a time, then turns whole units; a last square of 8 units (bf16, Dp an odd multiple of 16) by hand.
static void pack_turn(uint32_t *restrict to, const float *restrict from, int64_t cols) {
    int64_t units = cols / UNIT, c;
    uint32_t rows[STRIP * TURN];
    for (int64_t r = 0; r < BLOCK; r += STRIP) {
        for (c = 0; c + TURN <= units; c += TURN) {
            const float *square = from + r * cols + c * UNIT;
            for (int64_t i = 0; UNIT > 1 && i < STRIP; i++) pack_row(rows + i * TURN, square + i * cols, TURN * UNIT);
            turn_square(to + c * BLOCK + r, BLOCK, UNIT > 1 ? rows : (const uint32_t *)square, UNIT > 1 ? TURN : cols);
        }
        if (c == units) continue;
        for (int64_t i = 0; i < STRIP; i++) pack_row(rows + i * TURN, from + (r + i) * cols + c * UNIT, (units - c) * UNIT);
        for (int64_t k = c; k < units; k++)
            for (int64_t i = 0; i < STRIP; i++) to[k * BLOCK + r + i] = rows[i * TURN + k - c];
    }
}

// The row that comes a few rows later: they lie too far apart for the processor to guess.
static inline void fetch_ahead(const act *row, int64_t stride, int64_t D) {
    enum { AHEAD = 12 };
    for (int64_t d = 0; d < D; d += 64 / (int64_t)sizeof(act)) __builtin_prefetch(row + AHEAD * stride + d);
}

// Rows [from, from + BLOCK) of one head as f32 [BLOCK][Dp], rotated if `shape` is given; rows at and beyond T are 0.
static void load_block(float *restrict tile_, const act *src, int64_t stride, int64_t from, int64_t T, int64_t D, int64_t Dp,
                       const struct gang_attention *rotate) {
    int64_t rows = T - from < BLOCK ? T - from : BLOCK, half = D / 2;
    if (rows < BLOCK || D < Dp) memset(tile_, 0, (size_t)(BLOCK * Dp) * sizeof *tile_);
    for (int64_t r = 0; r < rows; r++) {
        const act *restrict x = src + (from + r) * stride;
        float *restrict y = tile_ + r * Dp;
        fetch_ahead(x, stride, D);
        if (!rotate) {
            for (int64_t d = 0; d < D; d += VL) store_f32(y + d, load_act(x + d, D - d), D - d);
            continue;
        }
        const float *restrict c = rotate->cos + (from + r) * half, *restrict s = rotate->sin + (from + r) * half;
        for (int64_t d = 0; d < half; d += VL) {
            int64_t n = half - d;
            gang_vf low = load_act(x + d, n), high = load_act(x + d + half, n), turn = load_f32(c + d, n), side = load_f32(s + d, n);
            store_f32(y + d, low * turn - high * side, n);
            store_f32(y + d + half, high * turn + low * side, n);
        }
    }
}

// The inverse for gradients: un-rotates if `rotate` is given.
static void store_block(act *to, int64_t stride, const float *tile_, int64_t from, int64_t T, int64_t D, int64_t Dp,
                        const struct gang_attention *rotate) {
    int64_t rows = T - from < BLOCK ? T - from : BLOCK, half = D / 2;
    for (int64_t r = 0; r < rows; r++) {
        act *restrict y = to + (from + r) * stride;
        const float *restrict x = tile_ + r * Dp;
        if (!rotate) {
            for (int64_t d = 0; d < D; d += VL) store_act(y + d, load_f32(x + d, D - d), D - d);
            continue;
        }
        const float *restrict c = rotate->cos + (from + r) * half, *restrict s = rotate->sin + (from + r) * half;
        for (int64_t d = 0; d < half; d += VL) {
            int64_t n = half - d;
            gang_vf low = load_f32(x + d, n), high = load_f32(x + d + half, n), turn = load_f32(c + d, n), side = load_f32(s + d, n);
            store_act(y + d, low * turn + high * side, n);
            store_act(y + d + half, high * turn - low * side, n);
        }
    }
}

// ---- Geometry ------------------------------------------------------------------------------------------------------

struct layout {
    int64_t T, D, Dp, blocks, W;
    int64_t panel; // units of one packed block of BLOCK x Dp
    float scale;
};

static struct layout layout_of(const struct gang_attention *a) {
    int64_t Dp = (a->dim + 15) / 16 * 16;
    return (struct layout){.T = a->length,
                           .D = a->dim,
                           .Dp = Dp,
                           .blocks = (a->length + BLOCK - 1) / BLOCK,
                           .W = (a->heads + 2 * a->kv_heads) * a->dim,
                           .panel = BLOCK * Dp,
                           .scale = 1.0f / sqrtf((float)a->dim)};
}

static float *thread_scratch(const struct gang_device *device, const struct gang_attention *shape) {
    return (float *)((char *)device->scratch + (size_t)omp_get_thread_num() * gang_cpu_attention_bytes(shape));
}

// ---- Forward -------------------------------------------------------------------------------------------------------

struct forward {
    uint32_t *k_turn, *v_sum; // all blocks of this key/value head
    uint32_t *q_row, *p_row;  // one block
    float *tile, *s, *o;      // [BLOCK][Dp], [BLOCK][BLOCK], [BLOCK][Dp]
    float high[BLOCK], total[BLOCK][VL];
};

// The sign bits of lanes first + lane <= last, as a mask.
static inline gang_vi lanes_upto(int first, int last) {
    gang_vi lane;
    for (int i = 0; i < VL; i++) lane[i] = i;
    return lane <= last - first;
}

// Scores of one row of a block become probabilities against the running maximum, packed; what was summed before is rescaled.
// Only the first n keys count, on the diagonal those up to the query's own. Sums stay apart by lane until the end.
static inline __attribute__((always_inline)) void softmax_row(struct forward *f, const struct layout *l, int r, bool diagonal) {
    const float *s = f->s + r * BLOCK;
    const int n = diagonal ? (r / STRIP + 1) * STRIP : BLOCK;
    gang_vf v[BLOCK / VL], top = {0}, none = {0};
    top += f->high[r];
    none -= INFINITY;
    for (int i = 0; i * VL < n; i++) {
        v[i] = *(const gang_vf *)(s + i * VL) * l->scale;
        if (diagonal) {
            gang_vi seen = lanes_upto(i * VL, r);
            v[i] = (gang_vf)(((gang_vi)v[i] & seen) | ((gang_vi)none & ~seen));
        }
        top = max_vector(v[i], top);
    }
    float high = max_lanes(top);
    gang_vf *total = (gang_vf *)f->total[r];
    if (high > f->high[r]) {
        float shrink = exp_scalar(f->high[r] - high);
        float *o = f->o + r * l->Dp;
        for (int64_t d = 0; d < l->Dp; d += VL) *(gang_vf *)(o + d) *= shrink;
        *total *= shrink;
        f->high[r] = high;
    }
    for (int i = 0; i * VL < n; i++) {
        v[i] = exp_act(v[i] - high);
        put_row(f->p_row, r * BLOCK + i * VL, v[i]);
        *total += v[i];
    }
}

static void softmax_block(struct forward *f, const struct layout *l, bool diagonal) {
    if (diagonal)
        for (int r = 0; r < BLOCK; r++) softmax_row(f, l, r, true);
    else
        for (int r = 0; r < BLOCK; r++) softmax_row(f, l, r, false);
}

static void forward_block(struct forward *f, const struct layout *l, int64_t i, int64_t j) {
    bool diagonal = i == j;
    const uint32_t *k = f->k_turn + j * l->panel, *v = f->v_sum + j * l->panel;
    int64_t row = l->Dp / UNIT, prow = BLOCK / UNIT;
    // On the diagonal a strip of queries needs only the keys up to its own end.
    for (int m = 0; m < BLOCK; m += STRIP)
        product(f->s + m * BLOCK, BLOCK, f->q_row + m * row, row, 1, k, BLOCK, STRIP, diagonal ? m + STRIP : BLOCK, (int)row, false);
    softmax_block(f, l, diagonal);
    for (int m = 0; m < BLOCK; m += STRIP)
        product(f->o + m * l->Dp, l->Dp, f->p_row + m * prow, prow, 1, v, l->Dp, STRIP, (int)l->Dp, (diagonal ? m + STRIP : BLOCK) / UNIT, true);
}

static void forward_head(struct forward *f, const struct layout *l, act *out, int64_t out_stride, float *lse, const act *q,
                         const struct gang_attention *shape) {
    for (int64_t i = 0; i < l->blocks; i++) {
        load_block(f->tile, q, l->W, i * BLOCK, l->T, l->D, l->Dp, shape);
        pack_row(f->q_row, f->tile, l->panel);
        memset(f->o, 0, (size_t)l->panel * sizeof *f->o);
        memset(f->total, 0, sizeof f->total);
        for (int r = 0; r < BLOCK; r++) f->high[r] = -1e30f;
        for (int64_t j = 0; j <= i; j++) forward_block(f, l, i, j);
        for (int64_t r = 0; r < BLOCK && i * BLOCK + r < l->T; r++) {
            float total = sum_lanes(*(const gang_vf *)f->total[r]), inverse = 1 / total;
            for (int64_t d = 0; d < l->Dp; d++) f->o[r * l->Dp + d] *= inverse;
            lse[i * BLOCK + r] = f->high[r] + logf(total);
        }
        store_block(out, out_stride, f->o, i * BLOCK, l->T, l->D, l->Dp, NULL);
    }
}

void CPU_NAME(gang_cpu_attention)(struct gang_device *device, void *out, float *lse, const void *qkv, const struct gang_attention *shape) {
    const struct layout l = layout_of(shape);
    const int64_t H = shape->heads, K = shape->kv_heads, D = l.D;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t task = 0; task < shape->batch * K; task++) {
        int64_t b = task / K, kv = task % K;
        const act *base = (const act *)qkv + b * l.T * l.W, *k = base + (H + kv) * D, *v = base + (H + K + kv) * D;
        float *at = thread_scratch(device, shape);
        struct forward f = {.k_turn = (uint32_t *)at, .v_sum = (uint32_t *)at + l.blocks * l.panel};
        at += 2 * l.blocks * l.panel;
        f.q_row = (uint32_t *)at;
        f.tile = at + l.panel;
        f.o = at + 2 * l.panel;
        f.s = at + 3 * l.panel;
        f.p_row = (uint32_t *)f.s + (UNIT == 1 ? 0 : BLOCK * BLOCK); // an f32 row operand is the tile itself
        for (int64_t j = 0; j < l.blocks; j++) {
            load_block(f.tile, k, l.W, j * BLOCK, l.T, D, l.Dp, shape);
            pack_turn(f.k_turn + j * l.panel, f.tile, l.Dp);
            load_block(f.tile, v, l.W, j * BLOCK, l.T, D, l.Dp, NULL);
            pack_sum(f.v_sum + j * l.panel, f.tile, l.Dp);
        }
        for (int64_t h = kv * (H / K); h < (kv + 1) * (H / K); h++)
            forward_head(&f, &l, (act *)out + (b * l.T * H + h) * D, H * D, lse + (b * H + h) * l.T, base + h * D, shape);
    }
}

// ---- Backward ------------------------------------------------------------------------------------------------------

struct backward {
    uint32_t *k_row, *k_sum, *v_row; // all blocks of this key/value head
    float *dk, *dv;
    uint32_t *q_turn, *q_sum, *do_turn, *do_sum; // one block
    float *tile, *dq;                            // [BLOCK][Dp]
    float *p, *ds;                               // P^T and dS^T: [key][query]
    uint32_t *p_row, *ds_row, *ds_sum;
    float lse[BLOCK], delta[BLOCK]; // delta = scale * sum over d of dO * O
};

static void load_queries(struct backward *w, const struct layout *l, const act *q, const act *dout, const act *out, int64_t stride, const float *lse,
                         int64_t i, const struct gang_attention *shape) {
    load_block(w->tile, q, l->W, i * BLOCK, l->T, l->D, l->Dp, shape);
    pack_turn(w->q_turn, w->tile, l->Dp);
    pack_sum(w->q_sum, w->tile, l->Dp);
    load_block(w->tile, dout, stride, i * BLOCK, l->T, l->D, l->Dp, NULL);
    pack_turn(w->do_turn, w->tile, l->Dp);
    pack_sum(w->do_sum, w->tile, l->Dp);
    for (int64_t r = 0; r < BLOCK; r++) {
        w->lse[r] = 0;
        w->delta[r] = 0;
        int64_t t = i * BLOCK + r;
        if (t >= l->T) continue;
        gang_vf sum = {0};
        fetch_ahead(out + t * stride, stride, l->D);
        for (int64_t d = 0; d < l->D; d += VL) sum += load_act(out + t * stride + d, l->D - d) * *(const gang_vf *)(w->tile + r * l->Dp + d);
        w->lse[r] = lse[t];
        w->delta[r] = sum_lanes(sum) * l->scale;
    }
}

// P^T = exp(S^T scale - lse) and dS^T = P^T (dP^T - delta) scale of VL queries of one key, the row operands; returns dS^T. 0 where
// the query precedes the key.
static inline gang_vf score_backward(struct backward *w, const struct layout *l, int k, int q, bool diagonal) {
    gang_vf s = *(const gang_vf *)(w->p + k * BLOCK + q), dp = *(const gang_vf *)(w->ds + k * BLOCK + q);
    gang_vf p = exp_act(s * l->scale - *(const gang_vf *)(w->lse + q));
    if (diagonal) p = (gang_vf)((gang_vi)p & ~lanes_upto(q, k - 1));
    gang_vf ds = p * (dp * l->scale - *(const gang_vf *)(w->delta + q));
    put_row(w->p_row, k * BLOCK + q, p);
    put_row(w->ds_row, k * BLOCK + q, ds);
    return ds;
}

// On the diagonal nobody reads strips of queries before the key's own.
static inline __attribute__((always_inline)) void scores_backward(struct backward *w, const struct layout *l, bool diagonal) {
    for (int k = 0; k < BLOCK; k += UNIT)
        for (int q = diagonal ? k / STRIP * STRIP : 0; q < BLOCK; q += VL) {
#ifdef HAVE_BF16_PAIRS
            __m256i low = (__m256i)_mm512_cvtneps_pbh((__m512)score_backward(w, l, k, q, diagonal));
            __m256i high = (__m256i)_mm512_cvtneps_pbh((__m512)score_backward(w, l, k + 1, q, diagonal));
            __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
            _mm512_storeu_si512(w->ds_sum + k / 2 * BLOCK + q, pairs);
#else
            score_backward(w, l, k, q, diagonal);
#endif
        }
}

static void backward_block(struct backward *w, const struct layout *l, int64_t i, int64_t j) {
    bool diagonal = i == j;
    int64_t row = l->Dp / UNIT, prow = BLOCK / UNIT;
    int Dp = (int)l->Dp;
    const uint32_t *k_row = w->k_row + j * l->panel, *v_row = w->v_row + j * l->panel;
    for (int m = 0; m < BLOCK; m += STRIP) {
        int from = diagonal ? m : 0; // the first query that sees a key of this strip
        product(w->p + m * BLOCK + from, BLOCK, k_row + m * row, row, 1, w->q_turn + from, BLOCK, STRIP, BLOCK - from, (int)row, false);
        product(w->ds + m * BLOCK + from, BLOCK, v_row + m * row, row, 1, w->do_turn + from, BLOCK, STRIP, BLOCK - from, (int)row, false);
    }
    if (diagonal)
        scores_backward(w, l, true);
    else
        scores_backward(w, l, false);
    for (int m = 0; m < BLOCK; m += STRIP) {
        int from = diagonal ? m / UNIT : 0, upto = (diagonal ? m + STRIP : BLOCK) / UNIT;
        float *dk = w->dk + j * l->panel + m * l->Dp, *dv = w->dv + j * l->panel + m * l->Dp;
        product(dv, l->Dp, w->p_row + m * prow + from, prow, 1, w->do_sum + from * l->Dp, l->Dp, STRIP, Dp, (int)prow - from, true);
        product(dk, l->Dp, w->ds_row + m * prow + from, prow, 1, w->q_sum + from * l->Dp, l->Dp, STRIP, Dp, (int)prow - from, true);
        product(w->dq + m * l->Dp, l->Dp, w->ds_sum + m, 1, BLOCK, w->k_sum + j * l->panel, l->Dp, STRIP, Dp, upto, true);
    }
}

static void backward_place(struct backward *w, const struct layout *l, float *at) {
    int64_t all = l->blocks * l->panel, square = BLOCK * BLOCK;
    uint32_t **units[] = {&w->k_row, &w->k_sum, &w->v_row};
    for (int i = 0; i < 3; i++, at += all) *units[i] = (uint32_t *)at;
    w->dk = at;
    w->dv = at + all;
    at += 2 * all;
    uint32_t **block_units[] = {&w->q_turn, &w->q_sum, &w->do_turn, &w->do_sum};
    for (int i = 0; i < 4; i++, at += l->panel) *block_units[i] = (uint32_t *)at;
    w->tile = at;
    w->dq = at + l->panel;
    at += 2 * l->panel;
    w->p = at;
    w->ds = at + square;
    // An f32 row or sum operand is the tile itself.
    w->p_row = UNIT == 1 ? (uint32_t *)w->p : (uint32_t *)at + 2 * square;
    w->ds_row = UNIT == 1 ? (uint32_t *)w->ds : (uint32_t *)at + 3 * square;
    w->ds_sum = UNIT == 1 ? (uint32_t *)w->ds : (uint32_t *)at + 4 * square;
}

void CPU_NAME(gang_cpu_attention_backward)(struct gang_device *device, void *dqkv, const void *dout, const void *out, const float *lse,
                                           const void *qkv, const struct gang_attention *shape) {
    const struct layout l = layout_of(shape);
    const int64_t H = shape->heads, K = shape->kv_heads, D = l.D;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t task = 0; task < shape->batch * K; task++) {
        int64_t b = task / K, kv = task % K, base = b * l.T * l.W, k_at = base + (H + kv) * D, v_at = base + (H + K + kv) * D;
        struct backward w;
        backward_place(&w, &l, thread_scratch(device, shape));
        memset(w.dk, 0, 2 * (size_t)(l.blocks * l.panel) * sizeof *w.dk);
        for (int64_t j = 0; j < l.blocks; j++) {
            load_block(w.tile, (const act *)qkv + k_at, l.W, j * BLOCK, l.T, D, l.Dp, shape);
            pack_row(w.k_row + j * l.panel, w.tile, l.panel);
            pack_sum(w.k_sum + j * l.panel, w.tile, l.Dp);
            load_block(w.tile, (const act *)qkv + v_at, l.W, j * BLOCK, l.T, D, l.Dp, NULL);
            pack_row(w.v_row + j * l.panel, w.tile, l.panel);
        }
        for (int64_t h = kv * (H / K); h < (kv + 1) * (H / K); h++)
            for (int64_t i = 0; i < l.blocks; i++) {
                int64_t o_at = (b * l.T * H + h) * D;
                load_queries(&w, &l, (const act *)qkv + base + h * D, (const act *)dout + o_at, (const act *)out + o_at, H * D,
                             lse + (b * H + h) * l.T, i, shape);
                memset(w.dq, 0, (size_t)l.panel * sizeof *w.dq);
                for (int64_t j = 0; j <= i; j++) backward_block(&w, &l, i, j);
                store_block((act *)dqkv + base + h * D, l.W, w.dq, i * BLOCK, l.T, D, l.Dp, shape);
            }
        for (int64_t j = 0; j < l.blocks; j++) {
            store_block((act *)dqkv + k_at, l.W, w.dk + j * l.panel, j * BLOCK, l.T, D, l.Dp, shape);
            store_block((act *)dqkv + v_at, l.W, w.dv + j * l.panel, j * BLOCK, l.T, D, l.Dp, NULL);
        }
    }
}

// ---- One position at a time ----------------------------------------------------------------------------------------

static void rotate_row(act *restrict y, const act *restrict x, int64_t D, const float *restrict c, const float *restrict s) {
    for (int64_t d = 0; d < D / 2; d++) {
        float low = from_act(x[d]), high = from_act(x[d + D / 2]);
        y[d] = to_act(low * c[d] - high * s[d]);
        y[d + D / 2] = to_act(high * c[d] + low * s[d]);
    }
}

void CPU_NAME(gang_cpu_cache_fill)(struct gang_device *device, void *k_cache, void *v_cache, const void *qkv, int64_t n,
                                   const struct gang_attention *shape) {
    const int64_t H = shape->heads, K = shape->kv_heads, D = shape->dim, W = (H + 2 * K) * D;
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t t = 0; t < n; t++) {
        const act *row = (const act *)qkv + t * W;
        for (int64_t h = 0; h < K; h++)
            rotate_row((act *)k_cache + (t * K + h) * D, row + (H + h) * D, D, shape->cos + t * (D / 2), shape->sin + t * (D / 2));
        memcpy((act *)v_cache + t * K * D, row + (H + K) * D, (size_t)(K * D) * sizeof(act));
    }
}

// One pass over the cache with a running softmax: bound by reading keys and values once.
static void decode_head(float *o, const float *q, const act *k, const act *v, int64_t n, int64_t D, int64_t stride, float scale) {
    float high = -1e30f, total = 0;
    memset(o, 0, (size_t)D * sizeof *o);
    for (int64_t t = 0; t < n; t++) {
        gang_vf sum = {0};
        for (int64_t d = 0; d < D; d += VL) sum += load_f32(q + d, D - d) * load_act(k + t * stride + d, D - d);
        float score = sum_lanes(sum) * scale, shrink = 1;
        if (score > high) {
            shrink = exp_scalar(high - score);
            high = score;
        }
        float p = exp_scalar(score - high);
        total = total * shrink + p;
        for (int64_t d = 0; d < D; d += VL) store_f32(o + d, load_f32(o + d, D - d) * shrink + load_act(v + t * stride + d, D - d) * p, D - d);
    }
    for (int64_t d = 0; d < D; d++) o[d] /= total;
}

void CPU_NAME(gang_cpu_attention_decode)(struct gang_device *device, void *out, void *k_cache, void *v_cache, const void *qkv, int64_t past,
                                         const struct gang_attention *shape) {
    const int64_t H = shape->heads, K = shape->kv_heads, D = shape->dim;
    const float *c = shape->cos + past * (D / 2), *s = shape->sin + past * (D / 2);
    const act *row = qkv;
    for (int64_t h = 0; h < K; h++) rotate_row((act *)k_cache + (past * K + h) * D, row + (H + h) * D, D, c, s);
    memcpy((act *)v_cache + past * K * D, row + (H + K) * D, (size_t)(K * D) * sizeof(act));
#pragma omp parallel for schedule(static) num_threads(device->threads)
    for (int64_t h = 0; h < H; h++) {
        float *q = thread_scratch(device, shape), *o = q + D;
        act *rotated = (act *)(o + D);
        rotate_row(rotated, row + h * D, D, c, s);
        for (int64_t d = 0; d < D; d++) q[d] = from_act(rotated[d]);
        int64_t kv = h / (H / K);
        decode_head(o, q, (const act *)k_cache + kv * D, (const act *)v_cache + kv * D, past + 1, D, K * D, 1.0f / sqrtf((float)D));
        for (int64_t d = 0; d < D; d++) ((act *)out)[h * D + d] = to_act(o[d]);
    }
}
