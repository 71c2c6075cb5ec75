// The table of tensors, its layout in the flat array, fresh weights.
#include "../test.h"
#include "model/model.h"

#include <math.h>
#include <omp.h>

// Sizes that 16 does not divide, K's among them: V must follow it unaligned.
static const struct gang_config small = {.vocab_size = 97,
                                         .hidden_size = 20,
                                         .intermediate_size = 33,
                                         .layers = 3,
                                         .heads = 4,
                                         .kv_heads = 1,
                                         .head_dim = 6,
                                         .max_positions = 64,
                                         .norm_eps = 1e-5,
                                         .init_range = 0.02,
                                         .rope_theta = 10000};

static int64_t size_of(const struct gang_tensor *t) { return t->rows * t->cols; }

static void test_table(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_model model;
    gang_arena_init(&arena);
    gang_model_init(&model, &small, &arena);
    assert_int_equal(model.count, 2 + 9 * 3 + 1);
    // vocabulary twice; per layer q and o 24 x 20, k and v 6 x 20, three of 33 x 20, two norms; the last norm
    assert_int_equal(model.parameters, 2 * 97 * 20 + 3 * (2 * 24 * 20 + 2 * 6 * 20 + 3 * 33 * 20 + 2 * 20) + 20);
    static const char *const names[] = {"model.embed_tokens.weight",
                                        "model.layers.2.input_layernorm.weight",
                                        "model.layers.2.self_attn.q_proj.weight",
                                        "model.layers.2.self_attn.k_proj.weight",
                                        "model.layers.2.self_attn.v_proj.weight",
                                        "model.layers.2.self_attn.o_proj.weight",
                                        "model.layers.2.post_attention_layernorm.weight",
                                        "model.layers.2.mlp.gate_proj.weight",
                                        "model.layers.2.mlp.up_proj.weight",
                                        "model.layers.2.mlp.down_proj.weight",
                                        "model.norm.weight",
                                        "lm_head.weight"};
    static const int shapes[][2] = {{97, 20}, {1, 20},  {24, 20}, {6, 20},  {6, 20}, {20, 24},
                                    {1, 20},  {33, 20}, {33, 20}, {20, 33}, {1, 20}, {97, 20}};
    for (int role = GANG_ROLE_EMBED; role <= GANG_ROLE_HEAD; role++) {
        bool in_layer = role >= GANG_ROLE_NORM_ATTENTION && role <= GANG_ROLE_DOWN;
        const struct gang_tensor *t = gang_model_find(&model, (enum gang_role)role, in_layer ? 2 : -1);
        assert_string_equal(t->name, names[role]);
        assert_int_equal(t->rows, shapes[role][0]);
        assert_int_equal(t->cols, shapes[role][1]);
        assert_int_equal(gang_tensor_is_norm(t), strstr(t->name, "norm") != NULL);
    }
    gang_arena_release(&arena);
}

static void test_layout(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_model model;
    gang_arena_init(&arena);
    gang_model_init(&model, &small, &arena);
    int64_t end = 0;
    for (int i = 0; i < model.count; i++) {
        const struct gang_tensor *t = &model.tensors[i];
        assert_true(t->offset >= end && t->offset - end < 16);
        bool follows = t->role == GANG_ROLE_K || t->role == GANG_ROLE_V || t->role == GANG_ROLE_UP;
        if (follows)
            assert_int_equal(t->offset, end);
        else
            assert_int_equal(t->offset % 16, 0);
        end = t->offset + size_of(t);
    }
    assert_true(model.elements >= end && model.elements - end < 16 && model.elements % 16 == 0);
    gang_arena_release(&arena);
}

static void test_tied(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_model model;
    struct gang_config config = small;
    config.tied = true;
    gang_arena_init(&arena);
    gang_model_init(&model, &config, &arena);
    assert_int_equal(model.count, 2 + 9 * 3);
    assert_null(gang_model_find(&model, GANG_ROLE_HEAD, -1));
    gang_arena_release(&arena);
}

// Three ways to hold a part: what is there, in which order, with the whole's weights.
static void test_parts(void **state) {
    (void)state;
    static const bool ends[] = {true, false, true}, middle[] = {false, true, false}, none[] = {false, false, false};
    static const struct {
        struct gang_model_part part;
        bool tied;
        int count;
    } cases[] = {{{ends, true, false, 1, 0}, false, 19},  {{middle, false, false, 1, 0}, true, 9}, {{middle, false, true, 1, 0}, false, 11},
                 {{middle, false, true, 1, 0}, true, 11}, {{ends, true, true, 1, 0}, true, 20},    {{none, true, true, 1, 0}, false, 3}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct gang_arena arena;
        struct gang_model whole, part;
        struct gang_config config = small;
        config.tied = cases[c].tied;
        gang_arena_init(&arena);
        gang_model_init(&whole, &config, &arena);
        gang_model_init_part(&part, &config, &cases[c].part, &arena);
        assert_int_equal(part.count, cases[c].count);
        assert_true(whole.whole && !part.whole);
        float *all = gang_arena_alloc(&arena, (size_t)whole.elements * sizeof *all),
              *some = gang_arena_alloc(&arena, (size_t)part.elements * sizeof *all);
        gang_model_randomise(&whole, 7, all);
        gang_model_randomise(&part, 7, some);
        int64_t end = 0, parameters = 0;
        for (int i = 0; i < whole.count; i++) {
            const struct gang_tensor *w = &whole.tensors[i], *p = gang_model_find(&part, w->role, w->layer);
            bool held = w->layer >= 0 ? cases[c].part.layers[w->layer] : cases[c].part.head;
            if (w->role == GANG_ROLE_EMBED) held = cases[c].part.embed || (cases[c].part.head && config.tied);
            assert_int_equal(p != NULL, held);
            assert_int_equal(w->index, i);
            if (!p) continue;
            assert_true(p->index == i && p->rows == w->rows && p->cols == w->cols && !strcmp(p->name, w->name));
            assert_memory_equal(some + p->offset, all + w->offset, (size_t)size_of(w) * sizeof *all);
            parameters += size_of(p);
        }
        for (int i = 0; i < part.count; end = part.tensors[i].offset + size_of(&part.tensors[i]), i++)
            assert_true(part.tensors[i].offset >= end && part.tensors[i].offset - end < 16);
        assert_true(part.parameters == parameters && part.elements >= end && part.elements - end < 16);
        // A copy of a tied embedding stands where a head would.
        if (config.tied && cases[c].part.head && !cases[c].part.embed) assert_int_equal(part.tensors[part.count - 1].role, GANG_ROLE_EMBED);
        gang_arena_release(&arena);
    }
}

// The slices of each width tile the whole, bit for bit; widths that make them begin within a pair of drawn numbers.
static void test_slices(void **state) {
    (void)state;
    static const bool layers[] = {true, false, true};
    struct gang_config config = small;
    config.kv_heads = 4, config.head_dim = 5, config.intermediate_size = 36;
    for (int tp = 1; tp <= 4; tp *= 2) {
        struct gang_arena arena;
        struct gang_model whole, slice;
        gang_arena_init(&arena);
        gang_model_init(&whole, &config, &arena);
        float *all = gang_arena_alloc(&arena, (size_t)whole.elements * sizeof *all),
              *some = gang_arena_alloc(&arena, (size_t)whole.elements * sizeof *all);
        gang_model_randomise(&whole, 7, all);
        int64_t covered = 0;
        for (int index = 0; index < tp; index++) {
            gang_model_init_part(&slice, &config, &(struct gang_model_part){.layers = layers, .embed = true, .tp = tp, .tp_index = index}, &arena);
            assert_true(slice.tp == tp && !slice.whole && slice.count == 19);
            gang_model_randomise(&slice, 7, some);
            for (int i = 0; i < slice.count; i++) {
                const struct gang_tensor *t = &slice.tensors[i], *w = gang_model_find(&whole, t->role, t->layer);
                bool cut = t->layer >= 0 && !gang_tensor_is_norm(t) && tp > 1;
                assert_true(gang_tensor_is_slice(t) == cut && t->whole_rows == w->rows && t->whole_cols == w->cols);
                assert_true(t->row + t->rows <= w->rows && t->col + t->cols <= w->cols);
                if (cut) covered += size_of(t);
                for (int64_t r = 0; r < t->rows; r++)
                    assert_memory_equal(some + t->offset + r * t->cols, all + w->offset + (t->row + r) * w->cols + t->col,
                                        (size_t)t->cols * sizeof *all);
            }
        }
        assert_int_equal(covered, tp > 1 ? 2 * (4 * 20 * 20 + 3 * 36 * 20) : 0);
        gang_arena_release(&arena);
    }
}

// The bounds of config.c at once: nothing overflows.
static void test_largest(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_model model;
    struct gang_config config = {.vocab_size = 1 << 22,
                                 .hidden_size = 1 << 17,
                                 .intermediate_size = 1 << 20,
                                 .layers = 1024,
                                 .heads = 4096,
                                 .kv_heads = 4096,
                                 .head_dim = 1024};
    gang_arena_init(&arena);
    gang_model_init(&model, &config, &arena);
    assert_true(model.parameters > (int64_t)1 << 50 && model.parameters <= model.elements && model.elements < (int64_t)1 << 56);
    gang_arena_release(&arena);
}

static void test_randomise(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_model model;
    struct gang_config config = small;
    config.vocab_size = 5001;
    gang_arena_init(&arena);
    gang_model_init(&model, &config, &arena);
    size_t bytes = (size_t)model.elements * sizeof(float);
    float *a = malloc(bytes), *b = malloc(bytes);
    memset(a, 0xff, bytes);
    gang_model_randomise(&model, 7, a);
    // The same whatever the threads; another with another seed.
    int threads = omp_get_max_threads();
    omp_set_num_threads(threads == 3 ? 2 : 3);
    gang_model_randomise(&model, 7, b);
    omp_set_num_threads(threads);
    assert_memory_equal(a, b, bytes);
    gang_model_randomise(&model, 8, b);
    assert_true(memcmp(a, b, bytes) != 0);

    int64_t covered = 0, zeros = 0;
    for (int i = 0; i < model.count; i++) {
        const struct gang_tensor *t = &model.tensors[i];
        double sum = 0, squares = 0, n = (double)size_of(t);
        for (int64_t k = 0; k < size_of(t); k++) {
            double x = a[t->offset + k];
            sum += x;
            squares += x * x;
            if (gang_tensor_is_norm(t)) assert_true(x == 1);
        }
        covered += size_of(t);
        if (gang_tensor_is_norm(t)) continue;
        assert_true(fabs(sum / n) < 5 * 0.02 / sqrt(n));
        assert_true(fabs(squares / n / (0.02 * 0.02) - 1) < 5 * sqrt(2 / n));
    }
    for (int64_t k = 0; k < model.elements; k++) zeros += a[k] == 0;
    assert_int_equal(zeros, model.elements - covered); // the gaps, and only they
    // Tensors of one shape differ: each has its own stream.
    const struct gang_tensor *gate = gang_model_find(&model, GANG_ROLE_GATE, 0), *up = gang_model_find(&model, GANG_ROLE_UP, 0);
    assert_true(a[gate->offset] != a[up->offset]);
    free(a);
    free(b);
    gang_arena_release(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),     cmocka_unit_test(test_layout), cmocka_unit_test(test_tied),   cmocka_unit_test(test_largest),
        cmocka_unit_test(test_randomise), cmocka_unit_test(test_parts),  cmocka_unit_test(test_slices),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
