// safetensors: golden files of other writers, hostile headers, directories with weights, saving and restoring.
#include "../test.h"
#include "../scratch.h"
#include "model/model.h"

#include <errno.h>
#include <math.h>

// ---- Files by hand -------------------------------------------------------------------------------------------------

static const char *write_file(const char *name, uint64_t claimed, const char *header, const void *data, size_t bytes) {
    struct gang_buffer file = {0};
    gang_buffer_append(&file, &claimed, sizeof claimed);
    gang_buffer_append(&file, header, strlen(header));
    gang_buffer_append(&file, data, bytes);
    const char *path = scratch_write(name, file.data, file.len);
    gang_buffer_release(&file);
    return path;
}

static const char *write_tensors(const char *name, const char *header, const void *data, size_t bytes) {
    return write_file(name, strlen(header), header, data, bytes);
}

static enum gang_status try_open(const char *path) {
    struct gang_safetensors st;
    enum gang_status status = gang_safetensors_open(path, &st);
    if (!status) gang_safetensors_close(&st);
    return status;
}

// ---- Numbers -------------------------------------------------------------------------------------------------------

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// The value of a half-precision pattern by its definition; NaN apart.
static double value_of(unsigned half, int exponent_bits, int fraction_bits) {
    int exponent = half >> fraction_bits & ((1 << exponent_bits) - 1), fraction = half & ((1 << fraction_bits) - 1),
        bias = (1 << (exponent_bits - 1)) - 1;
    double magnitude = exponent == (1 << exponent_bits) - 1 ? INFINITY
                       : exponent                           ? ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits)
                                                            : ldexp(fraction, 1 - bias - fraction_bits);
    return half & 0x8000 ? -magnitude : magnitude;
}

static void check_all_patterns(enum gang_dtype type, int exponent_bits, int fraction_bits) {
    static uint16_t patterns[65536];
    static float values[65536];
    for (int i = 0; i < 65536; i++) patterns[i] = (uint16_t)i;
    struct gang_st_entry entry = {.readable = true, .type = type, .elements = 65536, .data = (const uint8_t *)patterns};
    gang_st_to_f32(&entry, 0, 65536, values);
    for (unsigned i = 0; i < 65536; i++) {
        bool special = (i >> fraction_bits & ((1u << exponent_bits) - 1)) == (1u << exponent_bits) - 1,
             nan = special && (i & ((1u << fraction_bits) - 1));
        if (nan)
            assert_true(isnan(values[i]) && (bits_of(values[i]) >> 31) == i >> 15);
        else
            assert_int_equal(bits_of(values[i]), bits_of((float)value_of(i, exponent_bits, fraction_bits)));
    }
    float part[3];
    gang_st_to_f32(&entry, 0x3c00, 3, part);
    assert_memory_equal(part, values + 0x3c00, sizeof part);
}

static void test_half_precision(void **state) {
    (void)state;
    check_all_patterns(GANG_F16, 5, 10);
    check_all_patterns(GANG_BF16, 8, 7);
    assert_int_equal(gang_dtype_bytes(GANG_F32), 4);
    assert_int_equal(gang_dtype_bytes(GANG_BF16), 2);
    assert_int_equal(gang_dtype_bytes(GANG_F16), 2);
}

// ---- Files of others -----------------------------------------------------------------------------------------------

static void expect_same(const struct gang_safetensors *st, const char *name, const char *twin) {
    const struct gang_st_entry *a = gang_safetensors_find(st, name), *b = gang_safetensors_find(st, twin);
    assert_non_null(a);
    assert_non_null(b);
    assert_int_equal(a->elements, b->elements);
    float x[16], y[16];
    gang_st_to_f32(a, 0, a->elements, x);
    gang_st_to_f32(b, 0, b->elements, y);
    assert_memory_equal(x, y, (size_t)a->elements * sizeof *x);
}

static void test_golden_mixed(void **state) {
    (void)state;
    struct gang_safetensors st;
    assert_ok(gang_safetensors_open(TESTS_DIR "/golden/mixed.safetensors", &st));
    assert_int_equal(st.count, 10);
    for (int i = 1; i < st.count; i++) assert_true(strcmp(st.entries[i - 1].name, st.entries[i].name) < 0);
    expect_same(&st, "zebra.f16", "zebra.f16.f32");
    expect_same(&st, "alpha.bf16", "alpha.bf16.f32");
    assert_int_equal(gang_safetensors_find(&st, "zebra.f16")->type, GANG_F16);
    assert_int_equal(gang_safetensors_find(&st, "scalar")->dims, 0);
    assert_int_equal(gang_safetensors_find(&st, "scalar")->elements, 1);
    assert_int_equal(gang_safetensors_find(&st, "empty")->elements, 0);
    const struct gang_st_entry *deep = gang_safetensors_find(&st, "deep"), *ids = gang_safetensors_find(&st, "position_ids");
    assert_int_equal(deep->dims, 5);
    float last;
    gang_st_to_f32(deep, 23, 1, &last);
    assert_true(last == 23);
    assert_false(ids->readable);
    assert_string_equal(ids->type_name, "I64");
    assert_non_null(gang_safetensors_find(&st, "special \xc3\xa9"));
    assert_null(gang_safetensors_find(&st, "absent"));
    assert_null(gang_safetensors_find(&st, "__metadata__"));
    gang_safetensors_close(&st);
}

// What Python wrote is read, and written again the same to the byte: reader and writer agree with an independent one.
static void test_golden_llamas(void **state) {
    (void)state;
    static const char *const cases[] = {"plain-mha", "gqa-tied", "gqa-linear-rope", "llama3-rope"};
    for (int i = 0; i < 4; i++) {
        struct gang_arena arena;
        gang_arena_init(&arena);
        const char *dir = gang_arena_printf(&arena, TESTS_DIR "/golden/llama/%s", cases[i]);
        struct gang_config config;
        struct gang_model model;
        assert_ok(gang_config_read(dir, &config));
        gang_model_init(&model, &config, &arena);
        float *parameters = gang_arena_alloc(&arena, (size_t)model.elements * sizeof *parameters);
        assert_true(gang_model_has_weights(dir));
        assert_ok(gang_model_load(&model, dir, parameters, NULL));
        struct gang_st_part part = {.prefix = "", .values = parameters};
        assert_ok(gang_model_save(&model, &part, 1, scratch_path("again.safetensors")));
        struct gang_buffer ours = {0}, theirs = {0};
        assert_ok(gang_file_read(scratch_path("again.safetensors"), 1 << 20, &ours));
        assert_ok(gang_file_read(gang_arena_printf(&arena, "%s/model.safetensors", dir), 1 << 20, &theirs));
        assert_int_equal(ours.len, theirs.len);
        assert_memory_equal(ours.data, theirs.data, ours.len);
        gang_buffer_release(&ours);
        gang_buffer_release(&theirs);

        struct gang_safetensors st;
        assert_ok(gang_safetensors_open(gang_arena_printf(&arena, "%s/expected.safetensors", dir), &st));
        for (int k = 0; k < model.count; k++) {
            const struct gang_st_entry *grad = gang_safetensors_find(&st, gang_arena_printf(&arena, "grad.%s", model.tensors[k].name));
            assert_non_null(grad);
            assert_int_equal(grad->elements, model.tensors[k].rows * model.tensors[k].cols);
        }
        gang_safetensors_close(&st);
        gang_arena_release(&arena);
    }
}

// ---- Hostile headers -----------------------------------------------------------------------------------------------

#define F32_AT(shape, begin, end) "{\"dtype\":\"F32\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end "]}"

static void test_bad_headers(void **state) {
    (void)state;
    // Each with 16 bytes of data behind it.
    static const char *const cases[][2] = {
        {"{\"a\":" F32_AT("[4]", 0, 16) "} x", "header, byte "},
        {"[1]", "the header is not an object"},
        {"{\"a\":" F32_AT("[2]", 0, 8) ",\"a\":" F32_AT("[2]", 8, 16) "}", "duplicate object key"},
        {"{\"a\":7}", "tensor 'a': its description is not an object"},
        {"{\"a\":{\"shape\":[4],\"data_offsets\":[0,16]}}", "dtype is missing"},
        {"{\"a\":{\"dtype\":\"F31\",\"shape\":[4],\"data_offsets\":[0,16]}}", "dtype is none that safetensors has"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4]}}", "no less and no more"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16],\"strides\":[1]}}", "no less and no more"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":4,\"data_offsets\":[0,16]}}", "shape is not a list"},
        {"{\"a\":" F32_AT("[1,1,1,1,1,1,1,1,4]", 0, 16) "}", "more than 8 dimensions"},
        {"{\"a\":" F32_AT("[-4]", 0, 16) "}", "something other than whole numbers"},
        {"{\"a\":" F32_AT("[4.0]", 0, 16) "}", "something other than whole numbers"},
        {"{\"a\":" F32_AT("[4294967296,4294967296]", 0, 16) "}", "more elements than can be counted"},
        {"{\"a\":" F32_AT("[4611686018427387908]", 0, 16) "}", "more bytes than can be counted"},
        {"{\"a\":" F32_AT("[18446744073709551615]", 0, 16) "}", "header, byte"},
        {"{\"a\":" F32_AT("[4]", 16, 0) "}", "not a rising pair"},
        {"{\"a\":" F32_AT("[4]", -16, 0) "}", "not a rising pair"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0]}}", "not a pair"},
        {"{\"a\":" F32_AT("[8]", 0, 32) "}", "beyond the end of the file"},
        {"{\"a\":" F32_AT("[3]", 0, 16) "}", "contradicts shape and dtype"},
        {"{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,0]}}", "contradicts shape and dtype"},
        {"{\"a\":" F32_AT("[3]", 0, 12) ",\"b\":" F32_AT("[2]", 8, 16) "}", "tensor 'b': overlaps"},
        {"{\"a\":" F32_AT("[4]", 0, 16) ",\"b\":" F32_AT("[4]", 0, 16) "}", "overlaps"},
        {"{\"a\":" F32_AT("[1]", 0, 4) ",\"b\":" F32_AT("[2]", 8, 16) "}", "tensor 'b': does not follow the tensor before it: there is a hole"},
        {"{\"a\":" F32_AT("[3]", 4, 16) "}", "hole"},
        {"{\"a\":" F32_AT("[2]", 0, 8) "}", "8 bytes behind the last tensor"},
        {"{}", "16 bytes behind the last tensor"},
        {"{\"__metadata__\":{\"a\":1},\"a\":" F32_AT("[4]", 0, 16) "}", "__metadata__ is not a table of texts"},
        {"{\"__metadata__\":7,\"a\":" F32_AT("[4]", 0, 16) "}", "__metadata__ is not a table of texts"},
    };
    const char data[16] = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        enum gang_status status = try_open(write_tensors("bad.safetensors", cases[i][0], data, sizeof data));
        if (status != GANG_ERR_FORMAT || !strstr(gang_error(), cases[i][1]))
            fail_msg("%s: status %d, '%s'; expected '%s'", cases[i][0], status, gang_error(), cases[i][1]);
        assert_non_null(strstr(gang_error(), "bad.safetensors: "));
    }
    assert_ok(try_open(write_tensors("good.safetensors", "{\"__metadata__\":null,\"a\":" F32_AT("[4]", 0, 16) "}   ", data, sizeof data)));
    assert_ok(try_open(write_tensors("good.safetensors", "{}", data, 0)));
}

static void test_bad_lengths(void **state) {
    (void)state;
    const char *header = "{}";
    assert_fails(GANG_ERR_FORMAT, "too few", try_open(scratch_text("bad", "")));
    assert_fails(GANG_ERR_FORMAT, "7 bytes are too few", try_open(scratch_text("bad", "1234567")));
    assert_fails(GANG_ERR_FORMAT, "claims 3 bytes of a file of 10", try_open(write_file("bad", 3, header, "", 0)));
    assert_fails(GANG_ERR_FORMAT, "claims 18446744073709551615 bytes", try_open(write_file("bad", UINT64_MAX, header, "", 0)));
    assert_fails(GANG_ERR_FORMAT, "claims 18446744073709551608 bytes", try_open(write_file("bad", (uint64_t)-8, header, "", 0)));
    assert_fails(GANG_ERR_FORMAT, "header, byte", try_open(write_file("bad", 0, "", "", 0)));
    assert_fails(GANG_ERR_OS, "absent: cannot open", try_open(scratch_path("absent")));
    assert_fails(GANG_ERR_INPUT, "not a regular file", try_open(scratch_dir));
}

// Every byte of the tensors that an accepted header tells of may be read. The long form is tests/fuzz/fuzz_safetensors.c.
static void test_mutations(void **state) {
    (void)state;
    static const char header[] = "{\"__metadata__\":{\"format\":\"pt\"},\"a\":" F32_AT(
        "[2,2]", 0, 16) ",\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[16,22]},"
                        "\"c\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[22,30]}}";
    static const char pieces[] = "0123456789-.,:[]{}\"eFaB_\\ \xff";
    uint64_t seed = test_seed(), draw = 0;
    int accepted = 0, refused = 0;
    for (int round = 0; round < 4000; round++) {
        unsigned char file[8 + sizeof header - 1 + 30] = {0};
        uint64_t length = sizeof header - 1;
        memcpy(file, &length, 8);
        memcpy(file + 8, header, sizeof header - 1);
        for (int edits = round % 3; edits >= 0; edits--) {
            size_t at = gang_random_at(seed, 0, draw++) % (8 + sizeof header - 1);
            file[at] = (unsigned char)pieces[gang_random_at(seed, 0, draw++) % (sizeof pieces - 1)];
        }
        size_t bytes = sizeof file - (round % 10 ? 0 : gang_random_at(seed, 0, draw++) % sizeof file);
        struct gang_safetensors st;
        enum gang_status status = gang_safetensors_open(scratch_write("mutant.safetensors", file, bytes), &st);
        refused += status == GANG_ERR_FORMAT && strstr(gang_error(), "mutant.safetensors: ");
        if (status) continue;
        accepted++;
        float values[32];
        for (int i = 0; i < st.count; i++)
            if (st.entries[i].readable) gang_st_to_f32(&st.entries[i], 0, st.entries[i].elements, values);
        gang_safetensors_close(&st);
    }
    assert_int_equal(accepted + refused, 4000);
    assert_true(accepted > 0 && refused > 0);
}

// ---- Directories ---------------------------------------------------------------------------------------------------

static const struct gang_config tiny = {.vocab_size = 5,
                                        .hidden_size = 6,
                                        .intermediate_size = 7,
                                        .layers = 2,
                                        .heads = 2,
                                        .kv_heads = 1,
                                        .head_dim = 2,
                                        .max_positions = 8,
                                        .norm_eps = 1e-5,
                                        .init_range = 1,
                                        .rope_theta = 10000};

// A model with fresh weights, and room for others.
struct fixture {
    struct gang_arena arena;
    struct gang_model model;
    float *weights, *loaded;
    size_t bytes;
};

static void fixture_of(struct fixture *f, const struct gang_config *config) {
    gang_arena_init(&f->arena);
    gang_model_init(&f->model, config, &f->arena);
    f->bytes = (size_t)f->model.elements * sizeof(float);
    f->weights = gang_arena_alloc(&f->arena, f->bytes);
    f->loaded = gang_arena_alloc(&f->arena, f->bytes);
    memset(f->loaded, 0xee, f->bytes);
    gang_model_randomise(&f->model, 3, f->weights);
    assert_ok(gang_dir_remove(scratch_path("model")));
    assert_ok(gang_mkdirs(scratch_path("model")));
}

static void fixture_init(struct fixture *f, bool tied) {
    struct gang_config config = tiny;
    config.tied = tied;
    fixture_of(f, &config);
}

// Writes tensors [from, to) of the fixture into a file, then `extra` of the header with its data.
struct writing {
    int from, to;
    const char *type;       // F32 when NULL
    const char *extra_name; // one more tensor, a copy of the embedding
    int skip, reshape;      // tensor left out, tensor written as one row; -1: none
    float change;           // added to the extra tensor
};

static void write_part(const struct fixture *f, const char *file, struct writing w) {
    struct gang_buffer header = {0}, data = {0};
    bool half = w.type && !strcmp(w.type, "BF16");
    gang_buffer_printf(&header, "{");
    for (int i = w.from; i < w.to + (w.extra_name != NULL); i++) {
        const struct gang_tensor *t = &f->model.tensors[i < w.to ? i : 0];
        if (i == w.skip && i < w.to) continue;
        int64_t elements = t->rows * t->cols;
        size_t begin = data.len;
        for (int64_t k = 0; k < elements; k++) {
            float x = f->weights[t->offset + k] + (i < w.to ? 0 : w.change);
            uint16_t top = (uint16_t)(bits_of(x) >> 16);
            if (half)
                gang_buffer_append(&data, &top, 2);
            else
                gang_buffer_append(&data, &x, 4);
        }
        gang_buffer_printf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", header.len > 1 ? "," : "", i < w.to ? t->name : w.extra_name,
                           w.type ? w.type : "F32");
        if (gang_tensor_is_norm(t) || i == w.reshape)
            gang_buffer_printf(&header, "%lld", (long long)elements);
        else
            gang_buffer_printf(&header, "%lld,%lld", (long long)t->rows, (long long)t->cols);
        gang_buffer_printf(&header, "],\"data_offsets\":[%zu,%zu]}", begin, data.len);
    }
    gang_buffer_printf(&header, "}");
    write_tensors(file, header.data, data.data, data.len);
    gang_buffer_release(&header);
    gang_buffer_release(&data);
}

#define WHOLE(f) .from = 0, .to = (f)->model.count, .skip = -1, .reshape = -1
static const char single[] = "model/model.safetensors";

static enum gang_status load(struct fixture *f) { return gang_model_load(&f->model, scratch_path("model"), f->loaded, NULL); }

static void test_load_single(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f, false);
    assert_false(gang_model_has_weights(scratch_path("model")));
    assert_fails(GANG_ERR_INPUT, "no weights: expected model.safetensors", load(&f));
    write_part(&f, single, (struct writing){WHOLE(&f), .extra_name = "model.layers.0.self_attn.rotary_emb.inv_freq"});
    assert_true(gang_model_has_weights(scratch_path("model")));
    assert_ok(load(&f));
    assert_memory_equal(f.loaded, f.weights, f.bytes);

    write_part(&f, single, (struct writing){WHOLE(&f), .type = "BF16"});
    assert_ok(load(&f));
    for (int64_t i = 0; i < f.model.elements; i++) assert_int_equal(bits_of(f.loaded[i]), bits_of(f.weights[i]) & 0xffff0000);

    struct writing w = {WHOLE(&f)};
    w.skip = 4;
    write_part(&f, single, w);
    assert_fails(GANG_ERR_INPUT, "the weights lack model.layers.0.self_attn.v_proj.weight", load(&f));
    w.skip = f.model.count - 1;
    write_part(&f, single, w);
    assert_fails(GANG_ERR_INPUT, "lack lm_head.weight: does config.json want \"tie_word_embeddings\": true?", load(&f));
    w = (struct writing){WHOLE(&f)};
    w.reshape = 2;
    write_part(&f, single, w);
    assert_fails(GANG_ERR_INPUT,
                 "model.layers.0.self_attn.q_proj.weight: its shape [24] contradicts the model's configuration, which asks for [4, 6]", load(&f));
    write_part(&f, single, (struct writing){WHOLE(&f), .type = "I32"});
    assert_fails(GANG_ERR_UNSUPPORTED, "model.embed_tokens.weight: its type I32 is not supported: expected F32, BF16 or F16", load(&f));
    write_part(&f, single, (struct writing){WHOLE(&f), .extra_name = "model.layers.0.self_attn.q_proj.bias"});
    assert_fails(GANG_ERR_UNSUPPORTED, "q_proj.bias: a tensor that the model of config.json does not have", load(&f));
    gang_arena_release(&f.arena);
}

static void test_load_tied(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f, true);
    write_part(&f, single, (struct writing){WHOLE(&f)});
    assert_ok(load(&f));
    assert_memory_equal(f.loaded, f.weights, f.bytes);
    write_part(&f, single, (struct writing){WHOLE(&f), .extra_name = "lm_head.weight"});
    assert_ok(load(&f));
    write_part(&f, single, (struct writing){WHOLE(&f), .extra_name = "lm_head.weight", .change = 1});
    assert_fails(GANG_ERR_UNSUPPORTED, "lm_head.weight: differs from the embedding", load(&f));
    gang_arena_release(&f.arena);
}

// weight_map of tensors [0, cut) in a.safetensors and the rest in b.safetensors, with one more line.
static void write_index(const struct fixture *f, int cut, const char *line) {
    struct gang_buffer text = {0};
    gang_buffer_printf(&text, "{\"metadata\":{\"total_size\":1},\"weight_map\":{%s", line);
    for (int i = 0; i < f->model.count; i++)
        gang_buffer_printf(&text, "%s\"%s\":\"%s\"", i || *line ? "," : "", f->model.tensors[i].name, i < cut ? "a.safetensors" : "b.safetensors");
    gang_buffer_printf(&text, "}}");
    scratch_text("model/model.safetensors.index.json", text.data);
    gang_buffer_release(&text);
}

static void test_load_sharded(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f, false);
    const char *a = "model/a.safetensors", *b = "model/b.safetensors";
    write_part(&f, a, (struct writing){.from = 0, .to = 7, .skip = -1, .reshape = -1, .type = "BF16"});
    write_part(&f, b, (struct writing){.from = 7, .to = f.model.count, .skip = -1, .reshape = -1});
    write_index(&f, 7, "");
    assert_true(gang_model_has_weights(scratch_path("model")));
    assert_ok(load(&f));
    for (int64_t i = 0; i < f.model.elements; i++)
        assert_int_equal(bits_of(f.loaded[i]), bits_of(f.weights[i]) & (i < f.model.tensors[7].offset ? 0xffff0000 : 0xffffffff));

    write_index(&f, 8, "");
    assert_fails(GANG_ERR_FORMAT, "a.safetensors: model.layers.0.mlp.gate_proj.weight: missing, though the index says that it is here", load(&f));
    write_index(&f, 7, "");
    write_part(&f, b, (struct writing){.from = 6, .to = f.model.count, .skip = -1, .reshape = -1});
    assert_fails(GANG_ERR_FORMAT, "post_attention_layernorm.weight: is here, though the index says a.safetensors", load(&f));
    write_part(&f, b, (struct writing){.from = 7, .to = f.model.count, .skip = -1, .reshape = -1, .extra_name = "more"});
    assert_fails(GANG_ERR_FORMAT, "b.safetensors: more: is here, though the index says nothing of it", load(&f));
    static const char *const escapes[] = {
        "\"x\":\"../a.safetensors\"", "\"x\":\"/etc/passwd\"", "\"x\":\"..\"", "\"x\":\"\"", "\"x\":\".hidden\"", "\"x\":7", "\"x\":null"};
    for (size_t i = 0; i < sizeof escapes / sizeof *escapes; i++) {
        write_index(&f, 7, escapes[i]);
        assert_fails(GANG_ERR_FORMAT, "weight_map: x: expected the name of a file in the same directory", load(&f));
    }
    write_index(&f, 7, "\"x\":\"absent.safetensors\"");
    assert_fails(GANG_ERR_OS, "absent.safetensors: cannot open", load(&f));
    scratch_text("model/model.safetensors.index.json", "{}");
    assert_fails(GANG_ERR_FORMAT, "weight_map: missing or not an object", load(&f));
    gang_arena_release(&f.arena);
}

static void test_foreign_weights(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f, false);
    scratch_text("model/pytorch_model.bin", "pickle");
    assert_true(gang_model_has_weights(scratch_path("model")));
    assert_fails(GANG_ERR_UNSUPPORTED, "pytorch_model.bin: only safetensors", load(&f));
    gang_arena_release(&f.arena);
}

// ---- Saving and restoring ------------------------------------------------------------------------------------------

static void test_save_restore(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f, false);
    gang_model_randomise(&f.model, 4, f.loaded);
    float *a = gang_arena_alloc(&f.arena, f.bytes), *b = gang_arena_alloc(&f.arena, f.bytes);
    memset(a, 0xee, f.bytes);
    memset(b, 0xee, f.bytes);
    const char *path = scratch_path("state.safetensors");
    const struct gang_st_part out[] = {{.prefix = "exp_avg.", .values = f.weights}, {.prefix = "exp_avg_sq.", .values = f.loaded}},
                              in[] = {{.prefix = "exp_avg_sq.", .values = b}, {.prefix = "exp_avg.", .values = a}};
    assert_ok(gang_model_save(&f.model, out, 2, path));
    assert_ok(gang_model_restore(&f.model, in, 2, path));
    assert_memory_equal(a, f.weights, f.bytes);
    assert_memory_equal(b, f.loaded, f.bytes);

    assert_fails(GANG_ERR_FORMAT, "holds 42 tensors: expected 1 arrays of 21", gang_model_restore(&f.model, in, 1, path));
    const struct gang_st_part wrong[] = {{.prefix = "exp_avg.", .values = a}, {.prefix = "step.", .values = b}};
    assert_fails(GANG_ERR_FORMAT, "lacks step.model.embed_tokens.weight", gang_model_restore(&f.model, wrong, 2, path));
    struct gang_config config = tiny;
    config.intermediate_size = 8;
    struct gang_model other;
    gang_model_init(&other, &config, &f.arena);
    float *room = gang_arena_alloc(&f.arena, (size_t)other.elements * sizeof *room);
    const struct gang_st_part into[] = {{.prefix = "exp_avg.", .values = room}, {.prefix = "exp_avg_sq.", .values = room}};
    assert_fails(GANG_ERR_INPUT, "gate_proj.weight: its shape [7, 6] contradicts the model's configuration, which asks for [8, 6]",
                 gang_model_restore(&other, into, 2, path));
    gang_arena_release(&f.arena);
}

// Every tensor of a part or of slices has the bits that the whole has there.
static void same_tensors(const struct fixture *f, const struct gang_model *part, const float *values) {
    for (int i = 0; i < part->count; i++) {
        const struct gang_tensor *t = &part->tensors[i], *w = gang_model_find(&f->model, t->role, t->layer);
        for (int64_t r = 0; r < t->rows; r++)
            assert_memory_equal(values + t->offset + r * t->cols, f->weights + w->offset + (t->row + r) * w->cols + t->col,
                                (size_t)t->cols * sizeof(float));
    }
}

// Parts take their tensors out of files of the whole, and of their own.
static void test_parts(void **state) {
    (void)state;
    static const bool first[] = {true, false}, last[] = {false, true};
    static const struct gang_model_part parts[] = {{first, true, false, 1, 0}, {last, false, true, 1, 0}, {last, true, false, 1, 0}};
    for (int i = 0; i < 6; i++) {
        struct fixture f;
        struct gang_model part;
        fixture_init(&f, i >= 3);
        gang_model_init_part(&part, &f.model.config, &parts[i % 3], &f.arena);
        const struct gang_st_part whole = {.prefix = "", .values = f.weights},
                                  in = {.prefix = "", .values = gang_arena_alloc(&f.arena, (size_t)part.elements * sizeof(float))};
        assert_ok(gang_model_save(&f.model, &whole, 1, scratch_path(single)));
        assert_ok(gang_model_load(&part, scratch_path("model"), (float *)in.values, NULL));
        same_tensors(&f, &part, in.values);
        memset((float *)in.values, 0xee, (size_t)part.elements * sizeof(float));
        assert_ok(gang_model_restore(&part, &in, 1, scratch_path(single)));
        same_tensors(&f, &part, in.values);
        const char *own = scratch_path("part.safetensors");
        assert_ok(gang_model_save(&part, &in, 1, own));
        memset((float *)in.values, 0xee, (size_t)part.elements * sizeof(float));
        assert_ok(gang_model_restore(&part, &in, 1, own));
        same_tensors(&f, &part, in.values);
        assert_fails(GANG_ERR_FORMAT, "tensors: expected 1 arrays of", gang_model_restore(&f.model, &in, 1, own));
        gang_arena_release(&f.arena);
    }
    // A part is no excuse for files that are not of this model.
    struct fixture f;
    struct gang_model part;
    fixture_init(&f, false);
    gang_model_init_part(&part, &f.model.config, &parts[0], &f.arena);
    write_part(&f, single, (struct writing){WHOLE(&f), .extra_name = "model.layers.2.mlp.gate_proj.weight"});
    assert_fails(GANG_ERR_UNSUPPORTED, "model.layers.2.mlp.gate_proj.weight", gang_model_load(&part, scratch_path("model"), f.loaded, NULL));
    write_part(&f, single, (struct writing){.to = f.model.count - 1, .skip = -1, .reshape = -1});
    assert_fails(GANG_ERR_INPUT, "lack lm_head.weight", gang_model_load(&part, scratch_path("model"), f.loaded, NULL));
    gang_arena_release(&f.arena);
}

// Slices come out of files of the whole, and out of saves.
static void test_slices(void **state) {
    (void)state;
    static const bool layers[] = {true, true};
    struct gang_config config = tiny;
    config.kv_heads = 2, config.intermediate_size = 10;
    for (int index = 0; index < 2; index++) {
        const struct gang_model_part part = {.layers = layers, .embed = true, .head = true, .tp = 2, .tp_index = index};
        struct fixture f;
        struct gang_model slice;
        fixture_of(&f, &config);
        gang_model_init_part(&slice, &config, &part, &f.arena);
        const struct gang_st_part whole = {.prefix = "exp_avg.", .values = f.weights}, in = {.prefix = "exp_avg.", .values = f.loaded};
        write_part(&f, single, (struct writing){WHOLE(&f)});
        assert_ok(gang_model_load(&slice, scratch_path("model"), f.loaded, NULL));
        same_tensors(&f, &slice, f.loaded);
        memset(f.loaded, 0xee, f.bytes);
        assert_ok(gang_model_save(&f.model, &whole, 1, scratch_path("state.safetensors")));
        assert_ok(gang_model_restore(&slice, &in, 1, scratch_path("state.safetensors")));
        same_tensors(&f, &slice, f.loaded);
        write_part(&f, single, (struct writing){.to = f.model.count, .skip = -1, .reshape = 3});
        assert_fails(GANG_ERR_INPUT, "contradicts the model's configuration, which asks for [4, 6]",
                     gang_model_load(&slice, scratch_path("model"), f.loaded, NULL));
        gang_arena_release(&f.arena);
    }
}

static int writes_left;
static ssize_t full_disk(int fd, const void *data, size_t bytes) {
    if (writes_left-- > 0) return gang_os_real.write(fd, data, bytes > 64 ? 64 : bytes);
    errno = ENOSPC;
    return -1;
}

static void test_full_disk(void **state) {
    (void)state;
    struct fixture f;
    fixture_init(&f, false);
    const struct gang_st_part old = {.prefix = "", .values = f.weights}, new = {.prefix = "", .values = f.loaded},
                              in = {.prefix = "", .values = gang_arena_alloc(&f.arena, f.bytes)};
    const char *path = scratch_path("state.safetensors");
    assert_ok(gang_model_save(&f.model, &old, 1, path));
    struct gang_os os = gang_os_real;
    os.write = full_disk;
    for (int room = 0; room < 40; room += 13) {
        writes_left = room;
        gang_os = &os;
        enum gang_status status = gang_model_save(&f.model, &new, 1, path);
        gang_os = &gang_os_real;
        assert_fails(GANG_ERR_OS, "state.safetensors.tmp: cannot write: No space left on device", status);
        assert_ok(gang_model_restore(&f.model, &in, 1, path));
        assert_memory_equal(in.values, f.weights, f.bytes);
    }
    assert_false(gang_path_exists(scratch_path("state.safetensors.tmp")));
    gang_arena_release(&f.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half_precision),  cmocka_unit_test(test_golden_mixed), cmocka_unit_test(test_golden_llamas),
        cmocka_unit_test(test_bad_headers),     cmocka_unit_test(test_bad_lengths),  cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_load_single),     cmocka_unit_test(test_load_tied),    cmocka_unit_test(test_load_sharded),
        cmocka_unit_test(test_foreign_weights), cmocka_unit_test(test_save_restore), cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_parts),           cmocka_unit_test(test_slices),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
