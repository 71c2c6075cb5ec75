// Linear layers on the CPU: which product, from which form of the weight.
//
// Weights for training are packed once per optimizer step: for the forward product in both types, for the input gradient in
// bf16 (in f32 the product packs the plain master itself: it would take as much memory again). Inference keeps a plain copy,
// which decoding streams row by row.
#include "device/cpu.h"

#include <assert.h>
#include <omp.h>
#include <stdlib.h>

struct gang_cpu {
    const struct gang_cpu_variant *variant;
    uint32_t *own; // working memory of products
};

struct gang_linear {
    enum gang_linear_use use;
    int64_t out, in;
    const void *plain;     // [out, in]: the f32 master, or a bf16 copy for inference
    void *forward, *input; // packed; NULL: not
    void *copy;            // where the bf16 copy goes
};

static struct gang_cpu *cpu_of(const struct gang_device *device) { return device->own; }

static size_t packed_bytes(const struct gang_device *device, int64_t columns, int64_t depth) {
    int64_t unit = device->compute == GANG_COMPUTE_BF16 ? 2 : 1, strip = GANG_CPU_PACK_STRIP;
    return (size_t)((columns + strip - 1) / strip * strip * ((depth + unit - 1) / unit)) * sizeof(uint32_t);
}

size_t gang_cpu_linear_bytes(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in) {
    bool bf16 = device->compute == GANG_COMPUTE_BF16;
    if (use == GANG_LINEAR_INFER) return bf16 ? (size_t)(out * in) * 2 : 0;
    return packed_bytes(device, out, in) + (bf16 ? packed_bytes(device, in, out) : 0);
}

struct gang_linear *gang_cpu_linear_new(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in, void *memory,
                                        struct gang_arena *arena) {
    struct gang_linear *l = gang_arena_alloc(arena, sizeof *l);
    *l = (struct gang_linear){.use = use, .out = out, .in = in};
    bool bf16 = device->compute == GANG_COMPUTE_BF16;
    if (use == GANG_LINEAR_INFER) {
        if (bf16) l->plain = l->copy = memory;
        return l;
    }
    l->forward = memory;
    if (bf16) l->input = (char *)memory + packed_bytes(device, out, in);
    return l;
}

void gang_cpu_linear_refresh(struct gang_device *device, struct gang_linear *l, const float *master) {
    const struct gang_cpu_variant *variant = cpu_of(device)->variant;
    if (device->compute == GANG_COMPUTE_F32) l->plain = master;
    if (l->forward) variant->pack(device, l->forward, l->input, (float *)master, NULL, l->out, l->in);
    if (l->copy) variant->round(device, l->copy, master, l->out * l->in);
}

void gang_cpu_linear_update(struct gang_device *device, struct gang_linear *l, float *p, float *m, float *v, const float *g,
                            const struct gang_adamw *o) {
    assert(l->forward && "for training");
    const struct gang_cpu_step step = {m, v, g, o};
    if (device->compute == GANG_COMPUTE_F32) l->plain = p;
    cpu_of(device)->variant->pack(device, l->forward, l->input, p, &step, l->out, l->in);
}

static void multiply(struct gang_device *device, struct gang_cpu_product product) {
    struct gang_cpu *cpu = cpu_of(device);
    product.own = cpu->own;
    cpu->variant->multiply(device, &product);
}

void gang_cpu_linear(struct gang_device *device, const struct gang_linear *l, void *y, bool y_f32, const void *x, int64_t M) {
    bool f32 = y_f32 || device->compute == GANG_COMPUTE_F32;
    if (M == 1 && l->plain)
        cpu_of(device)->variant->row(device, y, y_f32, l->plain, x, l->out, l->in);
    else
        multiply(device, (struct gang_cpu_product){.rows = M,
                                                   .columns = l->out,
                                                   .depth = l->in,
                                                   .a = x,
                                                   .a_stride = l->in,
                                                   .b = l->forward ? l->forward : l->plain,
                                                   .b_stride = l->in,
                                                   .b_form = l->forward ? GANG_CPU_B_PACKED : GANG_CPU_B_TURNED,
                                                   .c = y,
                                                   .c_f32 = f32});
}

void gang_cpu_linear_input(struct gang_device *device, const struct gang_linear *l, void *dx, const void *dy, int64_t M) {
    multiply(device, (struct gang_cpu_product){.rows = M,
                                               .columns = l->in,
                                               .depth = l->out,
                                               .a = dy,
                                               .a_stride = l->out,
                                               .b = l->input ? l->input : l->plain,
                                               .b_stride = l->in,
                                               .b_form = l->input ? GANG_CPU_B_PACKED : GANG_CPU_B_ROWS,
                                               .c = dx,
                                               .c_f32 = device->compute == GANG_COMPUTE_F32});
}

void gang_cpu_linear_weight(struct gang_device *device, const struct gang_linear *l, float *dw, const void *dy, const void *x, bool accumulate,
                            int64_t M) {
    multiply(device, (struct gang_cpu_product){.rows = l->out,
                                               .columns = l->in,
                                               .depth = M,
                                               .a = dy,
                                               .a_stride = l->out,
                                               .a_turned = true,
                                               .b = x,
                                               .b_stride = l->in,
                                               .b_form = GANG_CPU_B_ROWS,
                                               .c = dw,
                                               .c_f32 = true,
                                               .add = accumulate});
}

// ---- The device's part ---------------------------------------------------------------------------------------------

static size_t own_bytes(const struct gang_device *device) { return (size_t)device->threads * GANG_CPU_PRODUCT_OWN * sizeof(uint32_t); }

// Of every thread's part a block of A and as many columns of B as fit; in whole huge pages.
size_t gang_device_packing_bytes(const struct gang_device *device, int64_t depth, int64_t columns) {
    enum { CHUNK = GANG_CPU_PRODUCT_CHUNK, BLOCK = GANG_CPU_PRODUCT_BLOCK, PAGE = 2 << 20 };
    if (!device->own) return 0;
    int64_t units = device->compute == GANG_COMPUTE_BF16 ? (depth + 1) / 2 : depth;
    if (units > CHUNK) units = CHUNK;
    if (columns > CHUNK * (int64_t)GANG_CPU_PRODUCT_COLUMNS / units) columns = CHUNK * (int64_t)GANG_CPU_PRODUCT_COLUMNS / units;
    size_t bytes = (size_t)(units * (BLOCK + columns)) * sizeof(uint32_t);
    return (size_t)device->threads * ((bytes + PAGE - 1) / PAGE * PAGE);
}

void gang_device_rest(struct gang_device *device) {
    if (device->own) gang_big_forget(cpu_of(device)->own, own_bytes(device));
}

enum gang_status gang_cpu_linear_open(struct gang_device *device, const struct gang_cpu_isa *isa) {
    struct gang_cpu *cpu = calloc(1, sizeof *cpu);
    assert(cpu && "out of memory");
    device->own = cpu;
    cpu->variant = &isa->variants[device->compute];
    void *own = NULL;
    enum gang_status status = gang_big_alloc(own_bytes(device), &own);
    cpu->own = own;
    return status;
}

void gang_cpu_linear_close(struct gang_device *device) {
    struct gang_cpu *cpu = cpu_of(device);
    gang_big_free(cpu->own, own_bytes(device));
    free(cpu);
}
