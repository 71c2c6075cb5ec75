// Linear layers on the CPU by oneDNN.
//
// Weights are packed once per optimizer step into the layouts that matmul primitives like best: for the forward product in
// both types, for the input gradient in bf16 (5 % faster than plain weights; in f32 dnnl_sgemm on the plain master is as fast
// there). The weight gradient takes both operands as they are: f32 by dnnl_sgemm, bf16 for a first micro-batch by the inner
// product's backward primitive, with operands exchanged so that it works on columns (5 to 10 % faster), for further ones by a
// matmul that adds into f32, which that primitive cannot. Primitives are made at first use for a shape and kept, so that a
// step after the first allocates nothing.
#include "device/cpu.h"

#include <assert.h>
#include <dnnl.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum product_kind { FORWARD, INPUT, WEIGHT, WEIGHT_FRESH };

struct product_key {
    enum product_kind kind;
    bool f32_out; // FORWARD
    bool packed;  // the weight is in the layout of `layouts`
    int64_t M, out, in;
};

struct product {
    struct product_key key;
    dnnl_primitive_t primitive;
    dnnl_memory_t a, b, c;
    int args[3]; // what oneDNN calls them
    struct product *next;
};

// Master weights to one packed layout.
struct reorder {
    dnnl_primitive_t primitive;
    dnnl_memory_t from, to;
    struct reorder *next;
};

struct gang_cpu {
    dnnl_data_type_t type; // of the products' operands
    struct reorder *reorders;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    struct product *products;
    gang_cpu_row_kernel *row;
    gang_cpu_pack_kernel *pack;
};

struct gang_linear {
    enum gang_linear_use use;
    int64_t out, in;
    const void *plain;          // [out, in]: the f32 master, or a bf16 copy for inference
    void *packed[2];            // by FORWARD, INPUT; NULL: not packed
    struct reorder *reorder[2]; // owned by the device; NULL where gang_cpu_pack_weight serves
};

// A failing call here is a bug of ours: every shape and type was checked when the device was opened and the layer made.
static void must(dnnl_status_t status) { assert(status == dnnl_success); }

static struct gang_cpu *cpu_of(const struct gang_device *device) { return device->own; }

static void strided(dnnl_memory_desc_t *desc, dnnl_data_type_t type, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
    dnnl_dims_t dims = {rows, cols}, strides = {row_stride, col_stride};
    must(dnnl_memory_desc_init_by_strides(desc, 2, dims, type, strides));
}

// The layout oneDNN wants for the weight in this direction. It depends on the number of rows only for a handful of rows.
static void packed_layout(struct gang_cpu *cpu, enum product_kind kind, int64_t out, int64_t in, dnnl_memory_desc_t *layout) {
    enum { ROWS = 1024 };
    int64_t inner = kind == FORWARD ? in : out, outer = kind == FORWARD ? out : in;
    dnnl_memory_desc_t a, b, c;
    dnnl_dims_t dims = {inner, outer};
    strided(&a, cpu->type, ROWS, inner, inner, 1);
    strided(&c, cpu->type, ROWS, outer, outer, 1);
    must(dnnl_memory_desc_init_by_tag(&b, 2, dims, cpu->type, dnnl_format_tag_any));
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    must(dnnl_matmul_desc_init(&desc, &a, &b, NULL, &c));
    must(dnnl_primitive_desc_create(&pd, &desc, NULL, cpu->engine, NULL));
    *layout = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    must(dnnl_primitive_desc_destroy(pd));
}

static void operand_layouts(struct gang_cpu *cpu, const struct product_key *k, dnnl_memory_desc_t *a, dnnl_memory_desc_t *b, dnnl_memory_desc_t *c) {
    switch (k->kind) {
    case FORWARD: // y[M,out] = x[M,in] W^T[in,out]
        strided(a, cpu->type, k->M, k->in, k->in, 1);
        strided(b, cpu->type, k->in, k->out, 1, k->in);
        strided(c, k->f32_out ? dnnl_f32 : cpu->type, k->M, k->out, k->out, 1);
        break;
    case INPUT: // dx[M,in] = dy[M,out] W[out,in]
        strided(a, cpu->type, k->M, k->out, k->out, 1);
        strided(b, cpu->type, k->out, k->in, k->in, 1);
        strided(c, cpu->type, k->M, k->in, k->in, 1);
        break;
    case WEIGHT: // dw[out,in] += dy^T[out,M] x[M,in]
        strided(a, cpu->type, k->out, k->M, 1, k->out);
        strided(b, cpu->type, k->M, k->in, k->in, 1);
        strided(c, dnnl_f32, k->out, k->in, k->in, 1);
        break;
    case WEIGHT_FRESH:
        strided(a, cpu->type, k->M, k->out, k->out, 1);
        strided(b, cpu->type, k->M, k->in, k->in, 1);
        strided(c, dnnl_f32, k->in, k->out, 1, k->in);
        break;
    }
    if (k->packed) packed_layout(cpu, k->kind, k->out, k->in, b);
}

// Adds to its destination if `add`.
static dnnl_primitive_t matmul_make(struct gang_cpu *cpu, const dnnl_memory_desc_t *a, const dnnl_memory_desc_t *b, const dnnl_memory_desc_t *c,
                                    bool add) {
    dnnl_primitive_attr_t attributes;
    must(dnnl_primitive_attr_create(&attributes));
    if (add) {
        dnnl_post_ops_t ops;
        must(dnnl_post_ops_create(&ops));
        must(dnnl_post_ops_append_sum(ops, 1));
        must(dnnl_primitive_attr_set_post_ops(attributes, ops));
        must(dnnl_post_ops_destroy(ops));
    }
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    dnnl_primitive_t primitive;
    must(dnnl_matmul_desc_init(&desc, a, b, NULL, c));
    must(dnnl_primitive_desc_create(&pd, &desc, attributes, cpu->engine, NULL));
    must(dnnl_primitive_create(&primitive, pd));
    must(dnnl_primitive_desc_destroy(pd));
    must(dnnl_primitive_attr_destroy(attributes));
    return primitive;
}

// dw = dy^T x, seen as the weight gradient [in, out] of a layer that maps dy to x, stored column by column.
static dnnl_primitive_t weight_fresh_make(struct gang_cpu *cpu, const dnnl_memory_desc_t *dy, const dnnl_memory_desc_t *x,
                                          const dnnl_memory_desc_t *dw) {
    dnnl_memory_desc_t weight;
    dnnl_dims_t dims = {dw->dims[0], dw->dims[1]};
    must(dnnl_memory_desc_init_by_tag(&weight, 2, dims, dnnl_bf16, dnnl_format_tag_any));
    dnnl_inner_product_desc_t forward, backward;
    dnnl_primitive_desc_t hint, pd;
    dnnl_primitive_t primitive;
    must(dnnl_inner_product_forward_desc_init(&forward, dnnl_forward_training, dy, &weight, NULL, x));
    must(dnnl_inner_product_backward_weights_desc_init(&backward, dy, dw, NULL, x));
    must(dnnl_primitive_desc_create(&hint, &forward, NULL, cpu->engine, NULL));
    must(dnnl_primitive_desc_create(&pd, &backward, NULL, cpu->engine, hint));
    must(dnnl_primitive_create(&primitive, pd));
    must(dnnl_primitive_desc_destroy(pd));
    must(dnnl_primitive_desc_destroy(hint));
    return primitive;
}

static struct product *product_make(struct gang_cpu *cpu, const struct product_key *key) {
    struct product *p = calloc(1, sizeof *p);
    assert(p && "out of memory");
    p->key = *key;
    dnnl_memory_desc_t a, b, c;
    operand_layouts(cpu, key, &a, &b, &c);
    if (key->kind == WEIGHT_FRESH) {
        p->args[0] = DNNL_ARG_SRC, p->args[1] = DNNL_ARG_DIFF_DST, p->args[2] = DNNL_ARG_DIFF_WEIGHTS;
        p->primitive = weight_fresh_make(cpu, &a, &b, &c);
    } else {
        p->args[0] = DNNL_ARG_SRC, p->args[1] = DNNL_ARG_WEIGHTS, p->args[2] = DNNL_ARG_DST;
        p->primitive = matmul_make(cpu, &a, &b, &c, key->kind == WEIGHT);
    }
    must(dnnl_memory_create(&p->a, &a, cpu->engine, DNNL_MEMORY_NONE));
    must(dnnl_memory_create(&p->b, &b, cpu->engine, DNNL_MEMORY_NONE));
    must(dnnl_memory_create(&p->c, &c, cpu->engine, DNNL_MEMORY_NONE));
    p->next = cpu->products;
    return cpu->products = p;
}

static void multiply(struct gang_cpu *cpu, const struct product_key *key, const void *a, const void *b, void *c) {
    struct product *p = cpu->products;
    while (p && (p->key.kind != key->kind || p->key.f32_out != key->f32_out || p->key.packed != key->packed || p->key.M != key->M ||
                 p->key.out != key->out || p->key.in != key->in))
        p = p->next;
    if (!p) p = product_make(cpu, key);
    must(dnnl_memory_set_data_handle(p->a, (void *)a));
    must(dnnl_memory_set_data_handle(p->b, (void *)b));
    must(dnnl_memory_set_data_handle(p->c, c));
    dnnl_exec_arg_t args[] = {{p->args[0], p->a}, {p->args[1], p->b}, {p->args[2], p->c}};
    must(dnnl_primitive_execute(p->primitive, cpu->stream, 3, args));
    must(dnnl_stream_wait(cpu->stream));
}

// ---- The layer -----------------------------------------------------------------------------------------------------

static size_t align(size_t bytes) { return (bytes + 63) / 64 * 64; }

// The layout is the one that gang_cpu_pack_kernel writes.
static bool packs_itself(const struct gang_cpu *cpu, const dnnl_memory_desc_t *layout) {
    bool bf16 = cpu->type == dnnl_bf16;
    int64_t rows = GANG_CPU_PACK_UNITS * (bf16 ? 2 : 1);
    dnnl_memory_desc_t own;
    must(dnnl_memory_desc_init_by_tag(&own, 2, layout->dims, cpu->type, bf16 ? dnnl_BA16a64b2a : dnnl_BA16a64b));
    return layout->dims[0] % rows == 0 && layout->dims[1] % GANG_CPU_PACK_OUTS == 0 && dnnl_memory_desc_equal(layout, &own);
}

size_t gang_cpu_linear_bytes(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in) {
    struct gang_cpu *cpu = cpu_of(device);
    bool f32 = cpu->type == dnnl_f32;
    if (use == GANG_LINEAR_INFER) return f32 ? 0 : align((size_t)(out * in) * 2);
    dnnl_memory_desc_t forward, input;
    packed_layout(cpu, FORWARD, out, in, &forward);
    if (f32) return packs_itself(cpu, &forward) ? align(dnnl_memory_desc_get_size(&forward)) : 0;
    packed_layout(cpu, INPUT, out, in, &input);
    return align(dnnl_memory_desc_get_size(&forward)) + align(dnnl_memory_desc_get_size(&input));
}

static struct reorder *reorder_make(struct gang_cpu *cpu, const dnnl_memory_desc_t *from, const dnnl_memory_desc_t *to, void *memory) {
    struct reorder *r = calloc(1, sizeof *r);
    assert(r && "out of memory");
    dnnl_primitive_desc_t pd;
    must(dnnl_reorder_primitive_desc_create(&pd, from, cpu->engine, to, cpu->engine, NULL));
    must(dnnl_primitive_create(&r->primitive, pd));
    must(dnnl_primitive_desc_destroy(pd));
    must(dnnl_memory_create(&r->from, from, cpu->engine, DNNL_MEMORY_NONE));
    must(dnnl_memory_create(&r->to, to, cpu->engine, memory));
    r->next = cpu->reorders;
    return cpu->reorders = r;
}

struct gang_linear *gang_cpu_linear_new(struct gang_device *device, enum gang_linear_use use, int64_t out, int64_t in, void *memory,
                                        struct gang_arena *arena) {
    struct gang_linear *l = gang_arena_alloc(arena, sizeof *l);
    *l = (struct gang_linear){.use = use, .out = out, .in = in};
    struct gang_cpu *cpu = cpu_of(device);
    if (cpu->type == dnnl_f32) {
        if (gang_cpu_linear_bytes(device, use, out, in)) l->packed[FORWARD] = memory;
        return l;
    }
    dnnl_memory_desc_t from, to, to_input;
    if (use == GANG_LINEAR_INFER) {
        strided(&from, dnnl_f32, out, in, in, 1);
        strided(&to, dnnl_bf16, out, in, in, 1);
        l->reorder[FORWARD] = reorder_make(cpu, &from, &to, memory);
        l->plain = memory;
        return l;
    }
    packed_layout(cpu, FORWARD, out, in, &to);
    packed_layout(cpu, INPUT, out, in, &to_input);
    l->packed[FORWARD] = memory;
    l->packed[INPUT] = (char *)memory + align(dnnl_memory_desc_get_size(&to));
    if (packs_itself(cpu, &to) && packs_itself(cpu, &to_input)) return l;
    strided(&from, dnnl_f32, in, out, 1, in);
    l->reorder[FORWARD] = reorder_make(cpu, &from, &to, l->packed[FORWARD]);
    strided(&from, dnnl_f32, out, in, in, 1);
    l->reorder[INPUT] = reorder_make(cpu, &from, &to_input, l->packed[INPUT]);
    return l;
}

void gang_cpu_linear_refresh(struct gang_device *device, struct gang_linear *l, const float *master) {
    struct gang_cpu *cpu = cpu_of(device);
    if (cpu->type == dnnl_f32) l->plain = master;
    if (l->packed[FORWARD] && !l->reorder[FORWARD]) cpu->pack(device, l->packed[FORWARD], l->packed[INPUT], master, l->out, l->in);
    for (int i = 0; i < 2; i++) {
        struct reorder *r = l->reorder[i];
        if (!r) continue;
        must(dnnl_memory_set_data_handle(r->from, (void *)master));
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, r->from}, {DNNL_ARG_TO, r->to}};
        must(dnnl_primitive_execute(r->primitive, cpu->stream, 2, args));
        must(dnnl_stream_wait(cpu->stream));
    }
}

void gang_cpu_linear(struct gang_device *device, const struct gang_linear *l, void *y, bool y_f32, const void *x, int64_t M) {
    struct gang_cpu *cpu = cpu_of(device);
    if (M == 1 && l->plain) {
        cpu->row(device, y, y_f32, l->plain, x, l->out, l->in);
    } else if (cpu->type == dnnl_f32 && !l->packed[FORWARD]) {
        must(dnnl_sgemm('N', 'T', M, l->out, l->in, 1, x, l->in, l->plain, l->in, 0, y, l->out));
    } else {
        struct product_key key = {.kind = FORWARD, .f32_out = y_f32, .packed = l->packed[FORWARD], .M = M, .out = l->out, .in = l->in};
        multiply(cpu, &key, x, l->packed[FORWARD] ? l->packed[FORWARD] : l->plain, y);
    }
}

void gang_cpu_linear_input(struct gang_device *device, const struct gang_linear *l, void *dx, const void *dy, int64_t M) {
    if (device->compute == GANG_COMPUTE_F32) {
        must(dnnl_sgemm('N', 'N', M, l->in, l->out, 1, dy, l->out, l->plain, l->in, 0, dx, l->in));
        return;
    }
    struct product_key key = {.kind = INPUT, .packed = true, .M = M, .out = l->out, .in = l->in};
    multiply(cpu_of(device), &key, dy, l->packed[INPUT], dx);
}

void gang_cpu_linear_weight(struct gang_device *device, const struct gang_linear *l, float *dw, const void *dy, const void *x, bool accumulate,
                            int64_t M) {
    if (device->compute == GANG_COMPUTE_F32) {
        must(dnnl_sgemm('T', 'N', l->out, l->in, M, 1, dy, l->out, x, l->in, accumulate ? 1 : 0, dw, l->in));
        return;
    }
    struct product_key key = {.kind = accumulate ? WEIGHT : WEIGHT_FRESH, .M = M, .out = l->out, .in = l->in};
    multiply(cpu_of(device), &key, dy, x, dw);
}

// ---- The device's part ---------------------------------------------------------------------------------------------

enum gang_status gang_cpu_linear_open(struct gang_device *device, const struct gang_cpu_isa *isa) {
    struct gang_cpu *cpu = calloc(1, sizeof *cpu);
    assert(cpu && "out of memory");
    device->own = cpu;
    cpu->type = device->compute == GANG_COMPUTE_F32 ? dnnl_f32 : dnnl_bf16;
    cpu->row = isa->variants[device->compute].row;
    cpu->pack = isa->variants[device->compute].pack;
    omp_set_num_threads(device->threads);                                                    // oneDNN asks OpenMP
    if (strncmp(isa->name, "avx512", 6) != 0) (void)dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2); // refused after first use; then it stays as it was
    if (dnnl_engine_create(&cpu->engine, dnnl_cpu, 0) || dnnl_stream_create(&cpu->stream, cpu->engine, dnnl_stream_default_flags))
        return gang_fail(GANG_ERR_UNSUPPORTED, "cpu device: oneDNN does not start on this processor");
    if (device->compute == GANG_COMPUTE_F32) return GANG_OK;
    dnnl_memory_desc_t a;
    strided(&a, dnnl_bf16, 16, 16, 16, 1);
    dnnl_matmul_desc_t desc;
    dnnl_primitive_desc_t pd;
    must(dnnl_matmul_desc_init(&desc, &a, &a, NULL, &a));
    if (dnnl_primitive_desc_create(&pd, &desc, NULL, cpu->engine, NULL))
        return gang_fail(GANG_ERR_UNSUPPORTED, "cpu device: compute type bf16 needs a processor with AVX-512: use f32");
    must(dnnl_primitive_desc_destroy(pd));
    return GANG_OK;
}

void gang_cpu_linear_close(struct gang_device *device) {
    struct gang_cpu *cpu = cpu_of(device);
    for (struct product *p = cpu->products, *next; p; p = next) {
        next = p->next;
        dnnl_primitive_destroy(p->primitive);
        dnnl_memory_destroy(p->a);
        dnnl_memory_destroy(p->b);
        dnnl_memory_destroy(p->c);
        free(p);
    }
    for (struct reorder *r = cpu->reorders, *next; r; r = next) {
        next = r->next;
        dnnl_primitive_destroy(r->primitive);
        dnnl_memory_destroy(r->from);
        dnnl_memory_destroy(r->to);
        free(r);
    }
    if (cpu->stream) dnnl_stream_destroy(cpu->stream);
    if (cpu->engine) dnnl_engine_destroy(cpu->engine);
    free(cpu);
}
