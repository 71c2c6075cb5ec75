// config.json: what Hugging Face writes is read, what would change the result is refused by name.
#include "../test.h"
#include "../scratch.h"
#include "model/model.h"

#include <jansson.h>
#include <math.h>

// A correct file; tests put fields over it.
static const char *const base_text = "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 96, \"hidden_size\": 64,"
                                     "\"intermediate_size\": 176, \"num_hidden_layers\": 2, \"num_attention_heads\": 8, \"num_key_value_heads\": 2,"
                                     "\"max_position_embeddings\": 512, \"rms_norm_eps\": 1e-05, \"rope_theta\": 500000.0, \"hidden_act\": \"silu\"}";

// The base with the fields of `changes` (a JSON object) put in; a field whose value is the text "-" is taken out.
static enum gang_status read_changed(const char *changes, struct gang_config *out) {
    json_t *root = json_loads(base_text, 0, NULL), *patch = json_loads(changes, 0, NULL);
    assert_non_null(root);
    if (!patch) fail_msg("the test's own JSON: %s", changes);
    assert_int_equal(json_object_update(root, patch), 0);
    const char *name;
    json_t *value;
    json_object_foreach(patch, name, value) if (json_is_string(value) && !strcmp(json_string_value(value), "-")) json_object_del(root, name);
    char *text = json_dumps(root, 0);
    enum gang_status status = gang_config_read(scratch_text("config.json", text), out);
    free(text);
    json_decref(patch);
    json_decref(root);
    return status;
}

static void expect_refusal(enum gang_status status, const char *changes, const char *words) {
    struct gang_config config;
    enum gang_status got = read_changed(changes, &config);
    if (got != status || !strstr(gang_error(), words)) fail_msg("%s: status %d, '%s'; expected %d, '%s'", changes, got, gang_error(), status, words);
    assert_non_null(strstr(gang_error(), "config.json: "));
}

static void test_reads_the_fields(void **state) {
    (void)state;
    struct gang_config c;
    assert_ok(read_changed("{\"eos_token_id\": [7, 8], \"bos_token_id\": 3, \"tie_word_embeddings\": true, \"initializer_range\": 0.01}", &c));
    assert_int_equal(c.vocab_size, 96);
    assert_int_equal(c.hidden_size, 64);
    assert_int_equal(c.intermediate_size, 176);
    assert_int_equal(c.layers, 2);
    assert_int_equal(c.heads, 8);
    assert_int_equal(c.kv_heads, 2);
    assert_int_equal(c.head_dim, 8);
    assert_int_equal(c.max_positions, 512);
    assert_true(c.norm_eps == 1e-5 && c.init_range == 0.01 && c.rope_theta == 500000);
    assert_true(c.tied);
    assert_int_equal(c.rope_kind, GANG_ROPE_PLAIN);
    assert_int_equal(c.bos_token, 3);
    assert_int_equal(c.eos_token, 7);
    // From the directory as well as from the file.
    struct gang_config again;
    assert_ok(gang_config_read(scratch_dir, &again));
    assert_memory_equal(&again, &c, sizeof c);
}

static void test_defaults(void **state) {
    (void)state;
    struct gang_config c;
    assert_ok(read_changed("{\"num_key_value_heads\": null, \"rms_norm_eps\": \"-\", \"rope_theta\": \"-\", \"max_position_embeddings\": \"-\","
                           "\"hidden_act\": \"-\", \"architectures\": null, \"eos_token_id\": null, \"bos_token_id\": []}",
                           &c));
    assert_int_equal(c.kv_heads, 8);
    assert_true(c.norm_eps == 1e-6 && c.rope_theta == 10000 && c.init_range == 0.02);
    assert_int_equal(c.max_positions, 2048);
    assert_false(c.tied);
    assert_int_equal(c.bos_token, -1);
    assert_int_equal(c.eos_token, -1);
    assert_ok(read_changed("{\"head_dim\": 32}", &c));
    assert_int_equal(c.head_dim, 32);
    assert_ok(read_changed("{\"hidden_size\": 60, \"head_dim\": 16}", &c));
}

static void test_harmless_fields(void **state) {
    (void)state;
    struct gang_config c;
    assert_ok(read_changed("{\"_name_or_path\": \"x\", \"torch_dtype\": \"bfloat16\", \"dtype\": \"float32\", \"transformers_version\": \"4.40.0\","
                           "\"use_cache\": true, \"pad_token_id\": -1, \"pretraining_tp\": 1, \"attention_bias\": false, \"mlp_bias\": false,"
                           "\"attention_dropout\": 0.0, \"sliding_window\": null, \"rope_scaling\": null, \"quantization_config\": null,"
                           "\"rope_interleaved\": false, \"is_llama_config\": true, \"id2label\": {\"0\": \"a\"}, \"temperature\": 1.0}",
                           &c));
}

static void test_mistral(void **state) {
    (void)state;
    struct gang_config c;
#define MISTRAL "\"architectures\": [\"MistralForCausalLM\"], \"model_type\": \"mistral\""
    assert_ok(read_changed("{" MISTRAL ", \"sliding_window\": null}", &c));
    assert_ok(read_changed("{" MISTRAL ", \"sliding_window\": null, \"num_key_value_heads\": \"-\"}", &c));
    assert_int_equal(c.kv_heads, 8);
    expect_refusal(GANG_ERR_UNSUPPORTED, "{" MISTRAL "}", "sliding_window: missing, which means 4096");
    expect_refusal(GANG_ERR_UNSUPPORTED, "{" MISTRAL ", \"sliding_window\": 4096}", "sliding_window: not supported at this value");
    expect_refusal(GANG_ERR_INPUT, "{\"model_type\": \"mistral\"}", "contradict each other");
}

static void test_refuses_what_changes_the_result(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{\"attention_bias\": true}", "attention_bias: not supported at this value: it changes the result, and only false is supported"},
        {"{\"mlp_bias\": true}", "mlp_bias: not supported"},
        {"{\"mlp_bias\": \"no\"}", "mlp_bias: not supported"},
        {"{\"attention_dropout\": 0.1}", "attention_dropout: not supported at this value: it changes the result, and only 0 is supported"},
        {"{\"pretraining_tp\": 2}", "pretraining_tp: not supported"},
        {"{\"quantization_config\": {\"bits\": 4}}", "quantization_config: not supported at this value: it changes the result, and only null"},
        {"{\"sliding_window\": 0}", "sliding_window: not supported"},
        {"{\"auto_map\": {}}", "auto_map: not supported"},
        {"{\"partial_rotary_factor\": 0.5}", "partial_rotary_factor: not supported"},
        {"{\"hidden_act\": \"gelu\"}", "hidden_act: 'gelu' is not supported: expected silu"},
        {"{\"hidden_act\": 3}", "hidden_act: 'not text'"},
        {"{\"model_type\": \"qwen2\", \"architectures\": null, \"use_mrope\": false}",
         "model_type: 'qwen2' is not supported: expected llama or mistral"},
        {"{\"architectures\": [\"LlamaModel\"]}", "architectures: 'LlamaModel' is not supported"},
        {"{\"logit_scale\": 2}", "logit_scale: unknown field: remove it if it does not change"},
        {"{\"logit_scale\": null}", "logit_scale: unknown field"},
        {"{\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}",
         "rope_scaling: rope_type: 'dynamic' is not supported: expected default, linear or llama3"},
        {"{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 2}}", "rope_scaling: rope_type: 'yarn'"},
        {"{\"rope_parameters\": {\"rope_type\": \"longrope\", \"factor\": 2}}", "rope_parameters: rope_type: 'longrope'"},
        {"{\"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 2, \"attention_factor\": 1.1}}",
         "rope_scaling: attention_factor: not supported"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_refusal(GANG_ERR_UNSUPPORTED, cases[i][0], cases[i][1]);
}

static void test_refuses_wrong_values(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"{\"vocab_size\": \"-\"}", "vocab_size: missing: this field is required"},
        {"{\"vocab_size\": null}", "vocab_size: missing"},
        {"{\"vocab_size\": \"96\"}", "vocab_size: not a whole number: expected 1 to 4194304"},
        {"{\"vocab_size\": 96.0}", "vocab_size: not a whole number"},
        {"{\"vocab_size\": true}", "vocab_size: not a whole number"},
        {"{\"hidden_size\": 0}", "hidden_size: 0 is out of range: expected 1 to 131072"},
        {"{\"hidden_size\": 9223372036854775807}", "hidden_size: 9223372036854775807 is out of range"},
        {"{\"intermediate_size\": -1}", "intermediate_size: -1 is out of range"},
        {"{\"num_hidden_layers\": 1025}", "num_hidden_layers: 1025 is out of range"},
        {"{\"num_attention_heads\": 5000}", "num_attention_heads: 5000 is out of range"},
        {"{\"num_key_value_heads\": 3}", "num_attention_heads: 8 is not a multiple of num_key_value_heads, 3"},
        {"{\"num_key_value_heads\": 16}", "not a multiple"},
        {"{\"hidden_size\": 65}", "hidden_size: 65 is not a multiple of num_attention_heads, 8, and head_dim is not given"},
        {"{\"hidden_size\": 8}", "head_dim: 1 (hidden_size / num_attention_heads if not given): expected an even number"},
        {"{\"head_dim\": 7}", "head_dim: 7"},
        {"{\"head_dim\": 2048}", "head_dim: 2048 is out of range"},
        {"{\"hidden_size\": 131072}", "head_dim: 16384"},
        {"{\"rms_norm_eps\": -1}", "rms_norm_eps: -1 is out of range"},
        {"{\"rms_norm_eps\": \"small\"}", "rms_norm_eps: not a number"},
        {"{\"rope_theta\": 0}", "rope_theta: 0 is out of range"},
        {"{\"tie_word_embeddings\": 1}", "tie_word_embeddings: not a truth value"},
        {"{\"eos_token_id\": 96}", "eos_token_id: 96 is out of range: expected -1 to 95"},
        {"{\"eos_token_id\": \"</s>\"}", "eos_token_id: not a whole number"},
        {"{\"model_type\": null, \"architectures\": null}", "neither model_type nor architectures"},
        {"{\"architectures\": []}", "architectures: expected a list of one name"},
        {"{\"architectures\": \"LlamaForCausalLM\"}", "architectures: expected a list of one name"},
        {"{\"model_type\": 7}", "model_type: not text"},
        {"{\"rope_scaling\": 2.0}", "rope_scaling: expected an object or null"},
        {"{\"rope_scaling\": {}}", "rope_scaling: rope_type: missing"},
        {"{\"rope_scaling\": {\"type\": \"linear\"}}", "rope_scaling: factor: missing"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 0.5}}", "rope_scaling: factor: 0.5 is out of range"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"llama3\", \"factor\": 2}}", "type and rope_type contradict"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4}}",
         "original_max_position_embeddings: missing"},
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4, "
         "\"original_max_position_embeddings\": 64}}",
         "high_freq_factor: 4 is not above low_freq_factor, 4"},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}, \"rope_parameters\": {\"rope_type\": \"default\"}}", "both given"},
        {"{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 1e4}}", "rope_theta: contradicts the one outside"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) expect_refusal(GANG_ERR_INPUT, cases[i][0], cases[i][1]);
    struct gang_config config;
    assert_fails(GANG_ERR_INPUT, "not an object", gang_config_read(scratch_text("config.json", "[]"), &config));
    assert_fails(GANG_ERR_FORMAT, "config.json:1:", gang_config_read(scratch_text("config.json", "{"), &config));
    assert_fails(GANG_ERR_OS, "No such file", gang_config_read(scratch_path("absent"), &config));
    assert_ok(gang_mkdirs(scratch_path("bare")));
    assert_fails(GANG_ERR_OS, "bare/config.json: cannot open", gang_config_read(scratch_path("bare"), &config));
}

static void test_round_trip(void **state) {
    (void)state;
    static const char *const cases[] = {
        "{}",
        "{\"tie_word_embeddings\": true, \"head_dim\": 32, \"bos_token_id\": 1, \"rms_norm_eps\": 1.2345678901234567e-06}",
        "{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.5}}",
        "{\"rope_parameters\": {\"rope_type\": \"linear\", \"factor\": 4}}",
        "{\"rope_theta\": \"-\", \"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 32.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": "
        "4.0,"
        " \"original_max_position_embeddings\": 8192, \"rope_theta\": 500000.0}}",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gang_config a, b;
        assert_ok(read_changed(cases[i], &a));
        assert_ok(gang_mkdirs(scratch_path("out")));
        assert_ok(gang_config_write(&a, scratch_path("out")));
        assert_ok(gang_config_read(scratch_path("out"), &b));
        assert_memory_equal(&a, &b, sizeof a);
    }
    struct gang_config c;
    assert_ok(read_changed("{}", &c));
    assert_fails(GANG_ERR_OS, "nowhere/config.json.tmp", gang_config_write(&c, scratch_path("nowhere")));
}

static void test_rope_frequencies(void **state) {
    (void)state;
    struct gang_config c = {.head_dim = 8, .rope_theta = 10000};
    double f[4];
    gang_rope_frequencies(&c, f);
    const double plain[] = {1, 0.1, 0.01, 0.001};
    for (int i = 0; i < 4; i++) assert_true(fabs(f[i] / plain[i] - 1) < 1e-14);
    c.rope_kind = GANG_ROPE_LINEAR;
    c.rope_factor = 4;
    gang_rope_frequencies(&c, f);
    for (int i = 0; i < 4; i++) assert_true(fabs(f[i] / plain[i] * 4 - 1) < 1e-14);

    // The settings of Llama 3.1, against the published form with its three branches.
    c = (struct gang_config){.head_dim = 128,
                             .rope_theta = 500000,
                             .rope_kind = GANG_ROPE_LLAMA3,
                             .rope_factor = 8,
                             .rope_low_freq = 1,
                             .rope_high_freq = 4,
                             .rope_original_positions = 8192};
    double g[64];
    gang_rope_frequencies(&c, g);
    int kept = 0, slowed = 0, blended = 0;
    for (int i = 0; i < 64; i++) {
        double inv = 1 / pow(500000, i / 64.0), wavelength = 2 * 3.14159265358979323846 / inv, expected;
        if (wavelength < 8192 / 4.0) {
            expected = inv;
            kept++;
        } else if (wavelength > 8192 / 1.0) {
            expected = inv / 8;
            slowed++;
        } else {
            double smooth = (8192 / wavelength - 1) / (4 - 1);
            expected = (1 - smooth) * inv / 8 + smooth * inv;
            blended++;
        }
        assert_true(fabs(g[i] / expected - 1) < 1e-12);
    }
    assert_int_equal(kept, 29);
    assert_int_equal(blended, 6);
    assert_int_equal(slowed, 29);
}

// Any bytes: a status and a message. The long form is tests/fuzz/fuzz_config.c.
static void test_mutations(void **state) {
    (void)state;
    static const char *const pieces[] = {"0", "-1", "9999999999", "1e308", "null",    "true", "[", "]", "{",
                                         "}", "\"", ",",          ":",     "\\u0000", "\xff", "2", "x"};
    uint64_t seed = test_seed(), draw = 0;
    int accepted = 0, refused = 0;
    for (int round = 0; round < 3000; round++) {
        struct gang_buffer text = {0};
        size_t len = strlen(base_text), at = gang_random_at(seed, 0, draw++) % len, cut = gang_random_at(seed, 0, draw++) % 4;
        const char *piece = pieces[gang_random_at(seed, 0, draw++) % (sizeof pieces / sizeof *pieces)];
        if (at + cut > len) cut = 0;
        gang_buffer_append(&text, base_text, at);
        gang_buffer_append(&text, piece, strlen(piece));
        gang_buffer_append(&text, base_text + at + cut, len - at - cut);
        struct gang_config config;
        enum gang_status status = gang_config_read(scratch_write("config.json", text.data, text.len), &config);
        gang_buffer_release(&text);
        accepted += status == GANG_OK;
        refused += status != GANG_OK && status != GANG_ERR_OS && strstr(gang_error(), "config.json");
        if (status) continue;
        struct gang_arena arena;
        struct gang_model model;
        gang_arena_init(&arena);
        gang_model_init(&model, &config, &arena);
        assert_true(model.elements >= model.parameters && model.parameters > 0);
        gang_arena_release(&arena);
    }
    assert_int_equal(accepted + refused, 3000);
    assert_true(accepted > 0 && refused > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_the_fields),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_harmless_fields),
        cmocka_unit_test(test_mistral),
        cmocka_unit_test(test_refuses_what_changes_the_result),
        cmocka_unit_test(test_refuses_wrong_values),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_rope_frequencies),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
