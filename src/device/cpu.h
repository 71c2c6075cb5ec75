// cpu: private to src/device. The CPU device is made of kernels compiled once per instruction set and compute type
// (cpu_kernels.c, cpu_attention.c) and of linear layers by oneDNN (cpu_linear.c), which chooses its own code at run time.
#ifndef GANG_DEVICE_CPU_H
#define GANG_DEVICE_CPU_H

#include "device/device.h"

enum { GANG_CPU_ATTENTION_BLOCK = 64 };

typedef void gang_cpu_row_kernel(struct gang_device *device, void *y, bool y_f32, const void *weight, const void *x, int64_t out, int64_t in);

// The packed layouts of a weight [out, in] in one pass over its master: twice as fast as reorders. `forward` is the right
// operand [in, out], `input` (bf16 only) the right operand [out, in]; each in panels of 16 units and 64 columns, panels of one
// column block one behind another (oneDNN's BA16a64b and, with a unit of two interleaved rows, BA16a64b2a). out is a multiple
// of 32, in of 16 (f32) or 32 (bf16); columns that pad the last panel are not written and must be 0.
enum { GANG_CPU_PACK_OUTS = 32, GANG_CPU_PACK_UNITS = 16, GANG_CPU_PACK_COLUMNS = 64 };
typedef void gang_cpu_pack_kernel(struct gang_device *device, void *forward, void *input, const float *master, int64_t out, int64_t in);

// One compilation of the kernels.
struct gang_cpu_variant {
    const struct gang_kernels *kernels;
    gang_cpu_row_kernel *row;
    gang_cpu_pack_kernel *pack;
    double (*peak)(int64_t rounds);
};

struct gang_cpu_isa {
    const char *name;
    bool bf16_pairs;                     // multiplies pairs of bf16
    struct gang_cpu_variant variants[2]; // by enum gang_compute
};

// The best instruction set here, or the one named; NULL if it is unknown or this processor lacks it.
const struct gang_cpu_isa *gang_cpu_isa_find(const char *name);

// Attention's working memory of one thread, in bytes; the same for every variant.
size_t gang_cpu_attention_bytes(const struct gang_attention *shape);

GANG_CHECK_RESULT enum gang_status gang_cpu_open(struct gang_device *device, const char *instructions);
void gang_cpu_close(struct gang_device *device);

// ---- cpu_linear.c --------------------------------------------------------------------------------------------------

GANG_CHECK_RESULT enum gang_status gang_cpu_linear_open(struct gang_device *device, const struct gang_cpu_isa *isa);
void gang_cpu_linear_close(struct gang_device *device);

size_t gang_cpu_linear_bytes(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in);
struct gang_linear *gang_cpu_linear_new(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in, void *memory,
                                        struct gang_arena *arena);
void gang_cpu_linear_refresh(struct gang_device *device, struct gang_linear *linear, const float *master);
void gang_cpu_linear(struct gang_device *device, const struct gang_linear *linear, void *y, bool y_f32, const void *x, int64_t M);
void gang_cpu_linear_input(struct gang_device *device, const struct gang_linear *linear, void *dx, const void *dy, int64_t M);
void gang_cpu_linear_weight(struct gang_device *device, const struct gang_linear *linear, float *dw, const void *dy, const void *x, bool accumulate,
                            int64_t M);

// ---- ref.c ---------------------------------------------------------------------------------------------------------

void gang_ref_open(struct gang_device *device);

#endif
