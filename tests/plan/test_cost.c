// Prices: what each setting must add or take, from the bytes it stands for.
#include "../test.h"

#include <math.h>

#include "plan/plan.h"

static const struct gang_shape shape = {
    .layers = 8, .hidden = 4096, .heads = 32, .kv_heads = 8, .qk_dim = 128, .v_dim = 128, .ffn = 14336, .vocab = 32000, .gated = true};

// The price of a layer of `shape` on 16 H100 for the layout's text.
static void price(const char *text, enum gang_math math, int64_t devices, struct gang_price *out, struct gang_chunk_cost *chunk) {
    const struct gang_task task = {.shape = shape, .sequence_length = 4096, .global_batch = 64, .math = math};
    struct gang_arena arena;
    struct gang_list kinds;
    struct gang_pool pool;
    struct gang_layout layout;
    gang_arena_init(&arena);
    gang_kinds_builtin(&arena, &kinds);
    gang_pool_uniform(gang_kind_find(&kinds, "H100-80GB"), devices, 8, &arena, &pool);
    assert_ok(gang_layout_parse(text, &layout));
    if (!layout.dp) layout.dp = (int)devices;
    gang_price_fill(&task, &layout, layout.tp, layout.micro_batch, pool.groups[0], out);
    gang_price_chunk(&task, &layout, out, (enum gang_recompute)gang_of_stage(&layout.recompute, 0), 1, 0, false, false, chunk);
    gang_arena_release(&arena);
}

enum { DEVICES = 16 };
static const double memory = 3.35e12 * 0.85; // bytes/s

static void test_gradient_sums(void **state) {
    (void)state;
    struct gang_price f32, bf16;
    struct gang_chunk_cost chunk;
    price("gradients=f32", GANG_MATH_F16, DEVICES, &f32, &chunk);
    price("gradients=bf16", GANG_MATH_F16, DEVICES, &bf16, &chunk);
    // Read and written: 8 bytes a weight against 4; norms are summed elsewhere.
    double weights = f32.layer[0][0].parameters - 2 * (double)shape.hidden;
    assert_float_equal(f32.layer[0][0].weight.matmul - bf16.layer[0][0].weight.matmul, 4 * weights / memory, 1e-9);
    assert_float_equal(f32.layer[0][0].forward.matmul, bf16.layer[0][0].forward.matmul, 0);
}

static void test_slowest(void **state) {
    (void)state;
    struct gang_price few, many;
    struct gang_chunk_cost chunk;
    price("tp=1", GANG_MATH_F16, 8, &few, &chunk);
    price("tp=1", GANG_MATH_F16, 1024, &many, &chunk);
    double more = many.layer[0][0].forward.attention / few.layer[0][0].forward.attention;
    // The largest of 8 and of 1,024 normal numbers lie 1.42 and 3.25 standard deviations of 1.5 % above the mean.
    assert_float_equal(more, 1 + 0.015 * (3.25 - 1.42), 0.005);
    assert_true(many.layer[0][0].forward.matmul > few.layer[0][0].forward.matmul);
    assert_float_equal(many.layer[0][0].forward.vector, few.layer[0][0].forward.vector, 0);
}

static void test_overlap(void **state) {
    (void)state;
    struct gang_price whole, behind;
    struct gang_chunk_cost chunk;
    price("tp=8", GANG_MATH_F16, DEVICES, &whole, &chunk);
    price("tp=8,tp_overlap=1", GANG_MATH_F16, DEVICES, &behind, &chunk);
    double least = whole.layer[0][0].forward.tensor - whole.layer[0][0].forward.matmul;
    assert_true(behind.layer[0][0].forward.tensor < whole.layer[0][0].forward.tensor);
    assert_true(behind.layer[0][0].forward.tensor >= fmax(least, 0));
}

static void test_scaling(void **state) {
    (void)state;
    struct gang_price tensor, rows;
    struct gang_chunk_cost chunk;
    price("scaling=tensor", GANG_MATH_F8, DEVICES, &tensor, &chunk);
    price("scaling=rows", GANG_MATH_F8, DEVICES, &rows, &chunk);
    assert_true(rows.layer[0][0].forward.vector > tensor.layer[0][0].forward.vector &&
                rows.layer[0][0].input.vector > tensor.layer[0][0].input.vector);
    assert_float_equal(rows.layer[0][0].forward.matmul, tensor.layer[0][0].forward.matmul, 0);
}

static void test_sharded(void **state) {
    (void)state;
    struct gang_price price1, price3;
    struct gang_chunk_cost one, three;
    price("zero=1", GANG_MATH_F16, DEVICES, &price1, &one);
    price("zero=3", GANG_MATH_F16, DEVICES, &price3, &three);
    // 2 + 4 a parameter and 12 of a shard; all of 16 of a shard.
    assert_float_equal(one.parameter_bytes + one.gradient_bytes + one.optimizer_bytes, one.parameters * (6 + 12.0 / DEVICES), 1);
    assert_float_equal(three.parameter_bytes + three.gradient_bytes + three.optimizer_bytes, three.parameters * 16 / DEVICES, 1);
    // Weights arrive twice at 8 bytes and gradients leave at 18, through memory; nothing of that without sharding.
    double bytes = (three.forward.gather + three.input.gather) * memory;
    assert_float_equal(one.forward.gather + one.input.gather, 0, 0);
    assert_true(bytes >= three.parameters * (2 * 8 + 18) && bytes < three.parameters * (2 * 8 + 18) * 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_gradient_sums), cmocka_unit_test(test_slowest), cmocka_unit_test(test_overlap),
                                       cmocka_unit_test(test_scaling), cmocka_unit_test(test_sharded)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
