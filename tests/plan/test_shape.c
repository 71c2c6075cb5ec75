// Parameters and FLOPs against published figures and Megatron's formula.
#include "../test.h"

#include <math.h>

#include "plan/plan.h"

static struct gang_shape read_example(const char *name) {
    char path[256];
    struct gang_shape shape;
    snprintf(path, sizeof path, "%s/../examples/plan/models/%s.json", TESTS_DIR, name);
    assert_ok(gang_shape_read(path, &shape));
    return shape;
}

static void test_parameters(void **state) {
    (void)state;
    // The exact counts of the published checkpoints (their safetensors indexes); DeepSeek-V3 without its multi-token
    // prediction layer, as arXiv:2412.19437 counts: 671 B, 37 B active.
    static const struct {
        const char *name;
        int64_t parameters;
    } models[] = {{"llama2-7b", 6738415616}, {"llama2-70b", 68976648192}, {"llama3-405b", 405853388800}, {"mixtral-8x7b", 46702792704}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct gang_shape shape = read_example(models[i].name);
        assert_int_equal(gang_shape_parameters(&shape), models[i].parameters);
    }
    struct gang_shape mixtral = read_example("mixtral-8x7b"), deepseek = read_example("deepseek-v3");
    assert_float_equal((double)gang_shape_active_parameters(&mixtral), 12.9e9, 0.05e9);
    assert_float_equal((double)gang_shape_parameters(&deepseek), 671e9, 0.5e9);
    assert_float_equal((double)gang_shape_active_parameters(&deepseek), 37.5e9, 0.5e9);
}

static void test_config_agrees(void **state) {
    (void)state;
    // The table of tensors and the arithmetic count the same parameters.
    struct gang_config config = {
        .vocab_size = 1000, .hidden_size = 64, .intermediate_size = 176, .layers = 3, .heads = 8, .kv_heads = 2, .head_dim = 8};
    for (int tied = 0; tied < 2; tied++) {
        struct gang_arena arena;
        struct gang_model model;
        struct gang_shape shape;
        gang_arena_init(&arena);
        config.tied = tied;
        gang_model_init(&model, &config, &arena);
        gang_shape_from_config(&config, &shape);
        assert_int_equal(gang_shape_parameters(&shape), model.parameters);
        gang_arena_release(&arena);
    }
}

static void test_megatron_flops(void **state) {
    (void)state;
    // Narayanan et al. 2021, equation 3: 96 B s l h^2 (1 + s / 6h + V / 16 l h) with full recomputation, which is four times a forward
    // pass in the layers; the head's term counts three (6 B s h V).
    static const struct { double l, h, V, s; } models[] = {{24, 2304, 51200, 2048}, {96, 12288, 51200, 2048}, {128, 25600, 51200, 2048}};
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        double l = models[i].l, h = models[i].h, V = models[i].V, s = models[i].s;
        struct gang_shape shape = {
            .layers = (int64_t)l, .hidden = (int64_t)h, .heads = 16, .kv_heads = 16, .ffn = 4 * (int64_t)h, .vocab = (int64_t)V};
        shape.qk_dim = shape.v_dim = shape.hidden / 16;
        double layers = l * gang_shape_layer_flops(&shape, false, (int64_t)s), all = gang_shape_flops(&shape, (int64_t)s);
        double megatron = 96 * l * h * h * (1 + s / (6 * h) + V / (16 * l * h));
        assert_float_equal((4 * layers + 3 * (all - layers)) / megatron, 1, 1e-9);
    }
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"{\"model_type\": \"mixtral\"}", "num_hidden_layers: missing"},
        {"{\"model_type\": \"gpt_bigcode\"}", "not supported"},
        {"{\"model_type\": \"mixtral\", \"vocab_size\": 10, \"hidden_size\": 8, \"intermediate_size\": 16, \"num_hidden_layers\": 2, "
         "\"num_attention_heads\": 2, "
         "\"num_local_experts\": 4, \"num_experts_per_tok\": 5}",
         "5 of 4 experts"},
        {"{\"model_type\": \"mixtral\", \"num_hidden_layers\": 2, \"hidden_size\": \"x\"}", "expected a whole number"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gang_shape shape;
        char path[64];
        snprintf(path, sizeof path, "/tmp/gang_shape_%d.json", (int)i);
        assert_ok(gang_file_publish(path, cases[i].text, strlen(cases[i].text)));
        enum gang_status status = gang_shape_read(path, &shape);
        gang_os->unlink(path);
        assert_int_not_equal(status, GANG_OK);
        if (!strstr(gang_error(), cases[i].words)) fail_msg("'%s' is not in '%s'", cases[i].words, gang_error());
    }
}

static void test_collectives(void **state) {
    (void)state;
    // Closed forms: a ring of n moves 2 (n - 1) / n of the buffer in 2 (n - 1) hops.
    assert_float_equal(gang_cost_ring_all_reduce(8, 8e9, 100e9, 1e-6), 2 * 7.0 / 8 * 8e9 / 100e9 + 14e-6, 1e-9);
    assert_float_equal(gang_cost_ring_reduce_scatter(8, 8e9, 100e9, 1e-6), 7.0 / 8 * 8e9 / 100e9 + 7e-6, 1e-9);
    assert_float_equal(gang_cost_all_to_all(4, 1e9, 1e9, 0), 0.75, 1e-9);
    assert_float_equal(gang_cost_ring_all_reduce(1, 8e9, 100e9, 1), 0, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_parameters), cmocka_unit_test(test_config_agrees), cmocka_unit_test(test_megatron_flops),
                                       cmocka_unit_test(test_refuses), cmocka_unit_test(test_collectives)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
