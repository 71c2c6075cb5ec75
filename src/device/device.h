// device: one table of kernels per kind of device. Everything that computes on tensors goes through it.
//
// Letters for shapes, here and in the kernels: B sequences, T positions, M = B*T rows, C hidden, F ffn, V vocabulary,
// H query heads, K key/value heads, D head dimension, W = (H + 2K) D the width of a fused q|k|v row.
//
// Two element types: residual stream, weights' masters, gradients of weights, statistics are f32. `act` buffers hold
// activations in the device's compute type (f32 or bf16) and are passed as void *.
//
// A device is used by one thread at a time and brings its own worker threads. Kernels return when their work is done,
// allocate nothing, and give the same bits for the same input and number of threads.
#ifndef GANG_DEVICE_H
#define GANG_DEVICE_H

#include "base/base.h"

enum gang_compute { GANG_COMPUTE_F32, GANG_COMPUTE_BF16 };

struct gang_device;
struct gang_linear; // the weight of a linear layer in the form the device multiplies fastest

struct gang_attention {
    int64_t batch, length; // B, T
    int64_t heads, kv_heads, dim;
    const float *cos, *sin; // [T, D/2] each: rotation of position t
};

struct gang_adamw {
    float rate, beta1, beta2, epsilon, decay;
    float correct1, correct2; // 1 - beta^step
    float gradient_scale;     // from clipping
};

// What a linear layer's weight is for: training keeps both directions packed, inference one plain copy.
enum gang_linear_use { GANG_LINEAR_TRAIN, GANG_LINEAR_INFER };

struct gang_kernels {
    // x[M,C] = table[ids[m]]; dtable[ids[m]] += dx[m].
    void (*embed)(struct gang_device *device, float *x, const int32_t *ids, const float *table, int64_t M, int64_t C);
    void (*embed_backward)(struct gang_device *device, float *dtable, const int32_t *ids, const float *dx, int64_t M, int64_t C);

    // sum = x + delta (delta may be NULL; then sum is not written), y = sum * rstd * w, rstd[m] = 1/sqrt(mean(sum^2) + eps).
    void (*norm)(struct gang_device *device, float *sum, void *y, float *rstd, const float *x, const void *delta, const float *w, float eps,
                 int64_t M, int64_t C);
    // Adds the gradient that came through the norm: dx = dx_in + ..., dx_in NULL for 0 (may be dx). `dy` is replaced by y, which
    // the weight gradient of the next linear layer needs and nobody kept. rounded (may be NULL): dx in the compute type.
    // dw[C] is set, or added to if `accumulate`.
    void (*norm_backward)(struct gang_device *device, float *dx, const float *dx_in, void *rounded, void *dy, float *dw, bool accumulate,
                          const float *x, const float *rstd, const float *w, int64_t M, int64_t C);

    // Causal attention with rotary positions: qkv[M,W] as the projection wrote it, out[M,H*D], lse[B,H,T].
    void (*attention)(struct gang_device *device, void *out, float *lse, const void *qkv, const struct gang_attention *shape);
    void (*attention_backward)(struct gang_device *device, void *dqkv, const void *dout, const void *out, const float *lse, const void *qkv,
                               const struct gang_attention *shape);
    // One position behind `past` cached ones: rotates q and k of row qkv[W], puts k and v into the caches [*, K*D] at `past`.
    void (*attention_decode)(struct gang_device *device, void *out, void *k_cache, void *v_cache, const void *qkv, int64_t past,
                             const struct gang_attention *shape);
    // Rotated keys and values of rows qkv[n,W], positions 0..n-1, into the caches.
    void (*cache_fill)(struct gang_device *device, void *k_cache, void *v_cache, const void *qkv, int64_t n, const struct gang_attention *shape);

    // gu[M,2F] = gate|up: h[M,F] = silu(gate) * up. Backward: gu becomes its own gradient, dh becomes h.
    void (*swiglu)(struct gang_device *device, void *h, const void *gu, int64_t M, int64_t F);
    void (*swiglu_backward)(struct gang_device *device, void *gu, void *dh, int64_t M, int64_t F);

    // loss[m] = -log softmax(logits[m])[target]; dlogits = (softmax - onehot) * scale, in the compute type (for f32 it may be
    // logits itself). A target < 0 is ignored: loss 0, gradient 0.
    void (*cross_entropy)(struct gang_device *device, float *loss, void *dlogits, const float *logits, const int32_t *targets, float scale, int64_t M,
                          int64_t V);

    // Messages between devices: out[n] in `type` = x + delta (NULL for 0); x[n] = in, rounded (may be NULL) the same in the
    // compute type.
    void (*pack)(struct gang_device *device, void *out, enum gang_compute type, const float *x, const void *delta, int64_t n);
    void (*unpack)(struct gang_device *device, float *x, void *rounded, const void *in, enum gang_compute type, int64_t n);

    double (*sum_squares)(struct gang_device *device, const float *x, int64_t n);
    void (*adamw)(struct gang_device *device, float *p, float *m, float *v, const float *g, int64_t n, const struct gang_adamw *o);

    // ---- Linear layers: weight [out, in]. The handle lives in `arena`, its packed copies (bytes by linear_bytes) in `memory`,
    // aligned to 64 bytes.
    size_t (*linear_bytes)(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in);
    struct gang_linear *(*linear_new)(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in, void *memory,
                                      struct gang_arena *arena);
    // Takes over the master weights [out, in]; f32 keeps the pointer, so the master must stay.
    void (*linear_refresh)(struct gang_device *device, struct gang_linear *linear, const float *master);
    // adamw of the whole weight, then linear_refresh: each master is read once for both.
    void (*linear_update)(struct gang_device *device, struct gang_linear *linear, float *p, float *m, float *v, const float *g,
                          const struct gang_adamw *o);
    // y[M,out] = x[M,in] W^T. y is act, or f32 if `y_f32`.
    void (*linear)(struct gang_device *device, const struct gang_linear *linear, void *y, bool y_f32, const void *x, int64_t M);
    // dx[M,in] = dy[M,out] W.
    void (*linear_input)(struct gang_device *device, const struct gang_linear *linear, void *dx, const void *dy, int64_t M);
    // dw[out,in] = dy^T x, or += if `accumulate`.
    void (*linear_weight)(struct gang_device *device, const struct gang_linear *linear, float *dw, const void *dy, const void *x, bool accumulate,
                          int64_t M);
};

struct gang_device {
    const struct gang_kernels *k;
    enum gang_compute compute;
    int threads;
    const char *name; // of the kind and instruction set, e.g. "cpu avx512"
    void *own;        // the kind's private state
    void *scratch;    // the caller's; see gang_device_scratch_bytes
};

struct gang_device_options {
    const char *kind; // "cpu", or "ref": the slow, clear reference in plain loops
    enum gang_compute compute;
    int threads;              // 0: all cores this process may use
    const char *instructions; // NULL: the best here; "avx512", "avx2", "generic"
};

GANG_CHECK_RESULT enum gang_status gang_device_open(const struct gang_device_options *options, struct gang_device **out);
void gang_device_close(struct gang_device *device);
size_t gang_device_act_bytes(const struct gang_device *device); // of one act element

// Scratch that attention of this shape and norms over up to `columns` need, in bytes. The owner of the step's memory puts a
// block of that size into device->scratch before the first call; 64-byte aligned.
size_t gang_device_scratch_bytes(const struct gang_device *device, const struct gang_attention *shape, int64_t columns);

// What products pack their operands into, in bytes: of those that sum over up to `depth` and give up to `columns`, in f32 or bf16.
size_t gang_device_packing_bytes(const struct gang_device *device, int64_t depth, int64_t columns);
void gang_device_rest(struct gang_device *device); // gives that memory back until it is needed again

int gang_cpu_count(void);     // cores this process may run on
int gang_cpu_at(int index);   // the number of one of them; -1: there are not so many
bool gang_cpu_has_bf16(void); // has instructions for pairs of bf16

// ---- Profile: what a device is worth, measured --------------------------------------------------------------------

struct gang_profile {
    char device[96]; // processor's own name
    char instructions[16];
    int cores, threads;
    double memory_bytes, l1_bytes, l2_bytes, l3_bytes;
    double peak_f32, peak_bf16;           // FLOP/s of a register-only loop, all threads; 0: not supported
    double sustained_f32, sustained_bf16; // FLOP/s of matrix products of a transformer's shapes
    double read_bytes_per_s, triad_bytes_per_s;
    double seconds; // that the measurement took
};

GANG_CHECK_RESULT enum gang_status gang_profile_measure(int threads, struct gang_profile *out);
char *gang_profile_json(const struct gang_profile *profile); // heap; the caller frees
GANG_CHECK_RESULT enum gang_status gang_profile_write(const struct gang_profile *profile, const char *path);
GANG_CHECK_RESULT enum gang_status gang_profile_read(const char *path, struct gang_profile *out);
// The kept profile of this machine ($XDG_CACHE_HOME/gangline), measured and kept first if there is none that fits.
GANG_CHECK_RESULT enum gang_status gang_profile_here(int threads, struct gang_profile *out);
// The number behind `key` in a small file of the kernel's (/proc/meminfo and the like), -1 if there is none. With an empty
// key the file is the number.
double gang_kernel_number(const char *path, const char *key);
void gang_processor_name(char *out, size_t bytes); // as the kernel calls it
// Usable memory now: the smaller of what the kernel calls available and what the control group allows, in bytes.
double gang_memory_available(void);

#endif
