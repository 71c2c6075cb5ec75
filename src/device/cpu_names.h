// cpu_names: what differs between the compilations of cpu_kernels.c and cpu_attention.c. The build defines CPU_VARIANT, for
// example avx512_bf16, and ACT_BF16 for the variants that compute in bf16.
#ifndef GANG_DEVICE_CPU_NAMES_H
#define GANG_DEVICE_CPU_NAMES_H

#include "device/cpu.h"

#define CPU_JOIN_(name, variant) name##_##variant
#define CPU_JOIN(name, variant) CPU_JOIN_(name, variant)
#define CPU_NAME(name) CPU_JOIN(name, CPU_VARIANT)

extern const struct gang_kernels CPU_NAME(gang_cpu_table);
void CPU_NAME(gang_cpu_attention)(struct gang_device *device, void *out, float *lse, const void *qkv, const struct gang_attention *shape);
void CPU_NAME(gang_cpu_attention_backward)(struct gang_device *device, void *dqkv, const void *dout, const void *out, const float *lse,
                                           const void *qkv, const struct gang_attention *shape);
void CPU_NAME(gang_cpu_attention_decode)(struct gang_device *device, void *out, void *k_cache, void *v_cache, const void *qkv, int64_t past,
                                         const struct gang_attention *shape);
void CPU_NAME(gang_cpu_cache_fill)(struct gang_device *device, void *k_cache, void *v_cache, const void *qkv, int64_t n,
                                   const struct gang_attention *shape);
void CPU_NAME(gang_cpu_linear_row)(struct gang_device *device, void *y, bool y_f32, const void *weight, const void *x, int64_t out, int64_t in);
void CPU_NAME(gang_cpu_multiply)(struct gang_device *device, const struct gang_cpu_product *product);
void CPU_NAME(gang_cpu_pack_weight)(struct gang_device *device, void *forward, void *input, float *master, const struct gang_cpu_step *step,
                                    int64_t out, int64_t in);
// AdamW of elements [from, from + n), on the calling thread.
void CPU_NAME(gang_cpu_adamw)(float *p, const struct gang_cpu_step *step, int64_t from, int64_t n);
void CPU_NAME(gang_cpu_round_weight)(struct gang_device *device, void *to, const float *from, int64_t n);
// FLOP done by `rounds` rounds of multiply-adds that stay in registers, on the calling thread.
double CPU_NAME(gang_cpu_peak)(int64_t rounds);

#endif
