// cpu: private to src/device. The CPU device is made of kernels compiled once per instruction set and compute type
// (cpu_kernels.c, cpu_attention.c, cpu_product.c), and of linear layers (cpu_linear.c), which choose the product.
#ifndef GANG_DEVICE_CPU_H
#define GANG_DEVICE_CPU_H

#include "device/device.h"

enum { GANG_CPU_ATTENTION_BLOCK = 64 };

typedef void gang_cpu_row_kernel(struct gang_device *device, void *y, bool y_f32, const void *weight, const void *x, int64_t out, int64_t in);

// A matrix as the right operand of products: panels of columns, padded to a multiple of STRIP, in units of 32 bits along the
// depth; so columns, padded, x units of memory, aligned to 64 bytes. The width of a panel is the variant's business.
enum { GANG_CPU_PACK_STRIP = 16 };
// What AdamW needs beside the parameters.
struct gang_cpu_step {
    float *m, *v;
    const float *g;
    const struct gang_adamw *o;
};
// `forward` becomes the right operand [in, out], `input` (bf16 only) [out, in], after the step of the masters if there is one.
typedef void gang_cpu_pack_kernel(struct gang_device *device, void *forward, void *input, float *master, const struct gang_cpu_step *step,
                                  int64_t out, int64_t in);
typedef void gang_cpu_round_kernel(struct gang_device *device, void *to, const float *from, int64_t n);

// Units of working memory of every thread: a block of the left operand's rows and columns of the right one, a chunk deep.
enum { GANG_CPU_PRODUCT_CHUNK = 1024, GANG_CPU_PRODUCT_BLOCK = 64, GANG_CPU_PRODUCT_COLUMNS = 2048 };
enum { GANG_CPU_PRODUCT_OWN = GANG_CPU_PRODUCT_CHUNK * (GANG_CPU_PRODUCT_BLOCK + GANG_CPU_PRODUCT_COLUMNS) };

enum gang_cpu_b_form { GANG_CPU_B_PACKED, GANG_CPU_B_ROWS, GANG_CPU_B_TURNED };

// C[rows, columns] = or += sum over depth of A B.
struct gang_cpu_product {
    int64_t rows, columns, depth;
    const void *a; // act [rows, depth], or [depth, rows] if turned; then C is f32
    int64_t a_stride;
    bool a_turned;
    const void *b; // packed; act [depth, columns]; act [columns, depth]
    int64_t b_stride;
    enum gang_cpu_b_form b_form;
    void *c;
    bool c_f32, add; // add: only to f32
    uint32_t *own;   // GANG_CPU_PRODUCT_OWN units for each thread
};
typedef void gang_cpu_multiply_kernel(struct gang_device *device, const struct gang_cpu_product *product);

// One compilation of the kernels.
struct gang_cpu_variant {
    const struct gang_kernels *kernels;
    gang_cpu_row_kernel *row;
    gang_cpu_multiply_kernel *multiply;
    gang_cpu_pack_kernel *pack;
    gang_cpu_round_kernel *round;
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
void gang_cpu_linear_update(struct gang_device *device, struct gang_linear *linear, float *p, float *m, float *v, const float *g,
                            const struct gang_adamw *o);
void gang_cpu_linear(struct gang_device *device, const struct gang_linear *linear, void *y, bool y_f32, const void *x, int64_t M);
void gang_cpu_linear_input(struct gang_device *device, const struct gang_linear *linear, void *dx, const void *dy, int64_t M);
void gang_cpu_linear_weight(struct gang_device *device, const struct gang_linear *linear, float *dw, const void *dy, const void *x, bool accumulate,
                            int64_t M);

// ---- ref.c ---------------------------------------------------------------------------------------------------------

void gang_ref_open(struct gang_device *device);

#endif
