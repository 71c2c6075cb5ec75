// ref: the reference device. Every kernel as its formula reads, in double, one thread, no blocking: slow and clear. The
// tests hold the fast devices against it.
#include "device/cpu.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct gang_linear {
    int64_t out, in;
    const float *weight;
};

static double get(enum gang_compute type, const void *base, int64_t i) {
    if (type == GANG_COMPUTE_F32) return (double)((const float *)base)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)base)[i] << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static void set(enum gang_compute type, void *base, int64_t i, double value) {
    float x = (float)value;
    if (type == GANG_COMPUTE_F32) {
        ((float *)base)[i] = x;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bool nan = value != value;
    ((uint16_t *)base)[i] = (uint16_t)(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static double act_get(const struct gang_device *device, const void *base, int64_t i) { return get(device->compute, base, i); }
static void act_set(const struct gang_device *device, void *base, int64_t i, double value) { set(device->compute, base, i, value); }

static void embed(struct gang_device *device, float *x, const int32_t *ids, const float *table, int64_t M, int64_t C) {
    (void)device;
    for (int64_t m = 0; m < M; m++)
        for (int64_t c = 0; c < C; c++) x[m * C + c] = table[ids[m] * C + c];
}

static void embed_backward(struct gang_device *device, float *dtable, const int32_t *ids, const float *dx, int64_t M, int64_t C) {
    (void)device;
    for (int64_t m = 0; m < M; m++)
        for (int64_t c = 0; c < C; c++) dtable[ids[m] * C + c] += dx[m * C + c];
}

static void norm(struct gang_device *device, float *sum, void *y, float *rstd, const float *x, const void *delta, const float *w, float eps,
                 int64_t M, int64_t C) {
    for (int64_t m = 0; m < M; m++) {
        double squares = 0;
        for (int64_t c = m * C; c < (m + 1) * C; c++) {
            float s = (float)((double)x[c] + (delta ? act_get(device, delta, c) : 0)); // as it is stored
            if (delta) sum[c] = s;
            squares += (double)s * (double)s;
        }
        double r = 1 / sqrt(squares / (double)C + (double)eps);
        rstd[m] = (float)r;
        for (int64_t c = 0; c < C; c++) act_set(device, y, m * C + c, (double)(delta ? sum : x)[m * C + c] * r * (double)w[c]);
    }
}

static void norm_backward(struct gang_device *device, float *dx, const float *dx_in, void *rounded, void *dy, float *dw, bool accumulate,
                          const float *x, const float *rstd, const float *w, int64_t M, int64_t C) {
    for (int64_t c = 0; c < C; c++) {
        double sum = accumulate ? (double)dw[c] : 0;
        for (int64_t m = 0; m < M; m++) sum += act_get(device, dy, m * C + c) * (double)x[m * C + c] * (double)rstd[m];
        dw[c] = (float)sum;
    }
    for (int64_t m = 0; m < M; m++) {
        double mean = 0, r = (double)rstd[m];
        for (int64_t c = 0; c < C; c++) mean += act_get(device, dy, m * C + c) * (double)w[c] * (double)x[m * C + c] * r / (double)C;
        for (int64_t c = 0; c < C; c++) {
            int64_t i = m * C + c;
            double n = (double)x[i] * r, back = r * (act_get(device, dy, i) * (double)w[c] - n * mean);
            dx[i] = (float)((dx_in ? (double)dx_in[i] : 0) + back);
            if (rounded) act_set(device, rounded, i, (double)dx[i]);
            act_set(device, dy, i, n * (double)w[c]);
        }
    }
}

// Element d of query, key or value head `head` (counted over all heads of the row) at position t, rotated if `rotate`.
static double head_get(const struct gang_device *device, const void *qkv, const struct gang_attention *a, int64_t b, int64_t t, int64_t head,
                       int64_t d, bool rotate) {
    int64_t D = a->dim, half = D / 2, W = (a->heads + 2 * a->kv_heads) * D, at = (b * a->length + t) * W + head * D;
    double x = act_get(device, qkv, at + d);
    if (!rotate) return x;
    assert(half > 0);
    double c = (double)a->cos[t * half + d % half], s = (double)a->sin[t * half + d % half];
    return d < half ? x * c - act_get(device, qkv, at + d + half) * s : x * c + act_get(device, qkv, at + d - half) * s;
}

static double score(const struct gang_device *device, const void *qkv, const struct gang_attention *a, int64_t b, int64_t h, int64_t t, int64_t u) {
    int64_t group = a->heads / a->kv_heads;
    assert(group > 0);
    double sum = 0;
    int64_t kv = a->heads + h / group;
    for (int64_t d = 0; d < a->dim; d++) sum += head_get(device, qkv, a, b, t, h, d, true) * head_get(device, qkv, a, b, u, kv, d, true);
    return sum / sqrt((double)a->dim);
}

static void attention(struct gang_device *device, void *out, float *lse, const void *qkv, const struct gang_attention *a) {
    int64_t H = a->heads, D = a->dim, T = a->length;
    for (int64_t i = 0; i < a->batch * H * T; i++) {
        int64_t b = i / (H * T), h = i / T % H, t = i % T, v = H + a->kv_heads + h / (H / a->kv_heads);
        double high = -INFINITY, total = 0;
        for (int64_t u = 0; u <= t; u++) high = fmax(high, score(device, qkv, a, b, h, t, u));
        for (int64_t u = 0; u <= t; u++) total += exp(score(device, qkv, a, b, h, t, u) - high);
        lse[i] = (float)(high + log(total));
        for (int64_t d = 0; d < D; d++) {
            double sum = 0;
            for (int64_t u = 0; u <= t; u++)
                sum += exp(score(device, qkv, a, b, h, t, u) - high) / total * head_get(device, qkv, a, b, u, v, d, false);
            act_set(device, out, ((b * T + t) * H + h) * D + d, sum);
        }
    }
}

// Gradients of rotated q, k and of v in double, [B*T, W], un-rotated and rounded at the end.
static void attention_backward_pair(const struct gang_device *device, double *g, const void *dout, const void *qkv, const struct gang_attention *a,
                                    int64_t b, int64_t h, int64_t t, int64_t u, double p, double delta) {
    int64_t H = a->heads, K = a->kv_heads, D = a->dim, W = (H + 2 * K) * D, kv = h / (H / K), at = ((b * a->length + t) * H + h) * D;
    double dp = 0;
    for (int64_t d = 0; d < D; d++) dp += act_get(device, dout, at + d) * head_get(device, qkv, a, b, u, H + K + kv, d, false);
    double ds = p * (dp - delta) / sqrt((double)D);
    for (int64_t d = 0; d < D; d++) {
        g[(b * a->length + t) * W + h * D + d] += ds * head_get(device, qkv, a, b, u, H + kv, d, true);
        g[(b * a->length + u) * W + (H + kv) * D + d] += ds * head_get(device, qkv, a, b, t, h, d, true);
        g[(b * a->length + u) * W + (H + K + kv) * D + d] += p * act_get(device, dout, at + d);
    }
}

static void attention_backward(struct gang_device *device, void *dqkv, const void *dout, const void *out, const float *lse, const void *qkv,
                               const struct gang_attention *a) {
    int64_t H = a->heads, K = a->kv_heads, D = a->dim, T = a->length, W = (H + 2 * K) * D, half = D / 2;
    double *g = calloc((size_t)(a->batch * T * W), sizeof *g);
    if (!g) abort();
    for (int64_t i = 0; i < a->batch * H * T; i++) {
        int64_t b = i / (H * T), h = i / T % H, t = i % T;
        double delta = 0;
        for (int64_t d = 0; d < D; d++)
            delta += act_get(device, dout, ((b * T + t) * H + h) * D + d) * act_get(device, out, ((b * T + t) * H + h) * D + d);
        for (int64_t u = 0; u <= t; u++)
            attention_backward_pair(device, g, dout, qkv, a, b, h, t, u, exp(score(device, qkv, a, b, h, t, u) - (double)lse[i]), delta);
    }
    for (int64_t i = 0; i < a->batch * T * W; i++) {
        int64_t head = i % W / D, d = i % D, t = i / W % T;
        double c = (double)a->cos[t * half + d % half], s = (double)a->sin[t * half + d % half], value = g[i];
        if (head < H + K) value = d < half ? g[i] * c + g[i + half] * s : g[i] * c - g[i - half] * s;
        act_set(device, dqkv, i, value);
    }
    free(g);
}

static void cache_row(struct gang_device *device, void *k_cache, void *v_cache, const void *qkv, int64_t row, int64_t t,
                      const struct gang_attention *a) {
    int64_t H = a->heads, K = a->kv_heads, D = a->dim, half = D / 2, W = (H + 2 * K) * D;
    for (int64_t i = 0; i < K * D; i++) {
        int64_t d = i % D, at = row * W + H * D + i;
        double x = act_get(device, qkv, at), c = (double)a->cos[t * half + d % half], s = (double)a->sin[t * half + d % half];
        double other = act_get(device, qkv, d < half ? at + half : at - half);
        act_set(device, k_cache, t * K * D + i, d < half ? x * c - other * s : x * c + other * s);
        act_set(device, v_cache, t * K * D + i, act_get(device, qkv, row * W + (H + K) * D + i));
    }
}

static void cache_fill(struct gang_device *device, void *k_cache, void *v_cache, const void *qkv, int64_t n, const struct gang_attention *a) {
    for (int64_t t = 0; t < n; t++) cache_row(device, k_cache, v_cache, qkv, t, t, a);
}

static void attention_decode(struct gang_device *device, void *out, void *k_cache, void *v_cache, const void *qkv, int64_t past,
                             const struct gang_attention *a) {
    int64_t H = a->heads, K = a->kv_heads, D = a->dim, half = D / 2;
    cache_row(device, k_cache, v_cache, qkv, 0, past, a);
    double *p = calloc((size_t)past + 1, sizeof *p);
    if (!p) abort();
    for (int64_t h = 0; h < H; h++) {
        int64_t kv = h / (H / K);
        double total = 0, high = -INFINITY;
        for (int64_t u = 0; u <= past; u++) {
            p[u] = 0;
            for (int64_t d = 0; d < D; d++) {
                double c = (double)a->cos[past * half + d % half], s = (double)a->sin[past * half + d % half], x = act_get(device, qkv, h * D + d);
                double q = d < half ? x * c - act_get(device, qkv, h * D + d + half) * s : x * c + act_get(device, qkv, h * D + d - half) * s;
                p[u] += q * act_get(device, k_cache, (u * K + kv) * D + d) / sqrt((double)D);
            }
            high = fmax(high, p[u]);
        }
        for (int64_t u = 0; u <= past; u++) total += p[u] = exp(p[u] - high);
        for (int64_t d = 0; d < D; d++) {
            double sum = 0;
            for (int64_t u = 0; u <= past; u++) sum += p[u] / total * act_get(device, v_cache, (u * K + kv) * D + d);
            act_set(device, out, h * D + d, sum);
        }
    }
    free(p);
}

static void swiglu(struct gang_device *device, void *h, const void *gu, int64_t M, int64_t F) {
    for (int64_t i = 0; i < M * F; i++) {
        int64_t at = i / F * 2 * F + i % F;
        double g = act_get(device, gu, at);
        act_set(device, h, i, g / (1 + exp(-g)) * act_get(device, gu, at + F));
    }
}

static void swiglu_backward(struct gang_device *device, void *gu, void *dh, int64_t M, int64_t F) {
    for (int64_t i = 0; i < M * F; i++) {
        int64_t at = i / F * 2 * F + i % F;
        double g = act_get(device, gu, at), u = act_get(device, gu, at + F), d = act_get(device, dh, i), s = 1 / (1 + exp(-g));
        act_set(device, dh, i, g * s * u);
        act_set(device, gu, at, d * u * (s + g * s * (1 - s)));
        act_set(device, gu, at + F, d * g * s);
    }
}

static void cross_entropy(struct gang_device *device, float *loss, void *dlogits, const float *logits, const int32_t *targets, float scale, int64_t M,
                          int64_t V) {
    for (int64_t m = 0; m < M; m++) {
        const float *z = logits + m * V;
        double high = -INFINITY, total = 0, own = targets[m] < 0 ? 0 : (double)z[targets[m]];
        for (int64_t v = 0; v < V; v++) high = fmax(high, (double)z[v]);
        for (int64_t v = 0; v < V; v++) total += exp((double)z[v] - high);
        loss[m] = targets[m] < 0 ? 0 : (float)(log(total) + high - own);
        for (int64_t v = 0; v < V; v++) {
            double g = exp((double)z[v] - high) / total - (v == targets[m]);
            act_set(device, dlogits, m * V + v, targets[m] < 0 ? 0 : g * (double)scale);
        }
    }
}

static void pack(struct gang_device *device, void *out, enum gang_compute type, const float *x, const void *delta, int64_t n) {
    for (int64_t i = 0; i < n; i++) set(type, out, i, delta ? (double)x[i] + act_get(device, delta, i) : (double)x[i]);
}

static void unpack(struct gang_device *device, float *x, void *rounded, const void *in, enum gang_compute type, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        x[i] = (float)get(type, in, i);
        if (rounded) act_set(device, rounded, i, (double)x[i]);
    }
}

static double sum_squares(struct gang_device *device, const float *x, int64_t n) {
    (void)device;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sum;
}

static void adamw(struct gang_device *device, float *p, float *m, float *v, const float *g, int64_t n, const struct gang_adamw *o) {
    (void)device;
    for (int64_t i = 0; i < n; i++) {
        double grad = (double)g[i] * (double)o->gradient_scale;
        double m1 = (double)o->beta1 * (double)m[i] + (1 - (double)o->beta1) * grad;
        double v1 = (double)o->beta2 * (double)v[i] + (1 - (double)o->beta2) * grad * grad;
        double kept = (double)p[i] * (1 - (double)o->rate * (double)o->decay);
        m[i] = (float)m1;
        v[i] = (float)v1;
        p[i] = (float)(kept - (double)o->rate * (m1 / (double)o->correct1) / (sqrt(v1 / (double)o->correct2) + (double)o->epsilon));
    }
}

static size_t linear_bytes(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in) {
    (void)device, (void)use, (void)out, (void)in;
    return 0;
}

static struct gang_linear *linear_new(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in, void *memory,
                                      struct gang_arena *arena) {
    (void)device, (void)use, (void)memory;
    struct gang_linear *l = gang_arena_alloc(arena, sizeof *l);
    *l = (struct gang_linear){.out = out, .in = in};
    return l;
}

static void linear_refresh(struct gang_device *device, struct gang_linear *l, const float *master) {
    (void)device;
    l->weight = master;
}

static void linear_update(struct gang_device *device, struct gang_linear *l, float *p, float *m, float *v, const float *g,
                          const struct gang_adamw *o) {
    adamw(device, p, m, v, g, l->out * l->in, o);
    linear_refresh(device, l, p);
}

// The weight as the compute type sees it.
static double weight_at(const struct gang_device *device, const struct gang_linear *l, int64_t i) {
    uint16_t rounded;
    if (device->compute == GANG_COMPUTE_F32) return (double)l->weight[i];
    act_set(device, &rounded, 0, (double)l->weight[i]);
    return act_get(device, &rounded, 0);
}

static void linear(struct gang_device *device, const struct gang_linear *l, void *y, bool y_f32, const void *x, int64_t M) {
    for (int64_t i = 0; i < M * l->out; i++) {
        double sum = 0;
        for (int64_t c = 0; c < l->in; c++) sum += act_get(device, x, i / l->out * l->in + c) * weight_at(device, l, i % l->out * l->in + c);
        if (y_f32)
            ((float *)y)[i] = (float)sum;
        else
            act_set(device, y, i, sum);
    }
}

static void linear_input(struct gang_device *device, const struct gang_linear *l, void *dx, const void *dy, int64_t M) {
    for (int64_t i = 0; i < M * l->in; i++) {
        double sum = 0;
        for (int64_t o = 0; o < l->out; o++) sum += act_get(device, dy, i / l->in * l->out + o) * weight_at(device, l, o * l->in + i % l->in);
        act_set(device, dx, i, sum);
    }
}

static void linear_weight(struct gang_device *device, const struct gang_linear *l, float *dw, const void *dy, const void *x, bool accumulate,
                          int64_t M) {
    for (int64_t i = 0; i < l->out * l->in; i++) {
        double sum = accumulate ? (double)dw[i] : 0;
        for (int64_t m = 0; m < M; m++) sum += act_get(device, dy, m * l->out + i / l->in) * act_get(device, x, m * l->in + i % l->in);
        dw[i] = (float)sum;
    }
}

static const struct gang_kernels ref_table = {
    .embed = embed,
    .embed_backward = embed_backward,
    .norm = norm,
    .norm_backward = norm_backward,
    .attention = attention,
    .attention_backward = attention_backward,
    .attention_decode = attention_decode,
    .cache_fill = cache_fill,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .cross_entropy = cross_entropy,
    .pack = pack,
    .unpack = unpack,
    .sum_squares = sum_squares,
    .adamw = adamw,
    .linear_bytes = linear_bytes,
    .linear_new = linear_new,
    .linear_refresh = linear_refresh,
    .linear_update = linear_update,
    .linear = linear,
    .linear_input = linear_input,
    .linear_weight = linear_weight,
};

void gang_ref_open(struct gang_device *device) {
    device->k = &ref_table;
    device->name = "reference";
    device->threads = 1;
}
