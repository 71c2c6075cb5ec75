// The YAML schema: what is read, and the exact words for what is refused.
#include "../test.h"
#include "../scratch.h"

#include <jansson.h>

struct job {
    char *model, *note;
    struct gang_strings data;
    int64_t steps;
    double learning_rate;
    bool shuffle;
    int type;
};

static const char *const types[] = {"f32", "bf16", NULL};

static const struct gang_field fields[] = {
    {"model", GANG_FIELD_STRING, offsetof(struct job, model), NULL, 0, 0, NULL, "a directory or config.json"},
    {"data", GANG_FIELD_STRINGS, offsetof(struct job, data), NULL, 0, 0, NULL, "files, directories, globs"},
    {"note", GANG_FIELD_STRING, offsetof(struct job, note), "", 0, 0, NULL, NULL},
    {"steps", GANG_FIELD_INT, offsetof(struct job, steps), "100", 1, 1e9, NULL, NULL},
    {"learning_rate", GANG_FIELD_REAL, offsetof(struct job, learning_rate), "3e-4", 0, 10, NULL, NULL},
    {"shuffle", GANG_FIELD_BOOL, offsetof(struct job, shuffle), "true", 0, 0, NULL, NULL},
    {"type", GANG_FIELD_ENUM, offsetof(struct job, type), "bf16", 0, 0, types, NULL},
};
enum { FIELDS = sizeof fields / sizeof *fields };

struct bound {
    struct gang_arena arena;
    struct job job;
};

static enum gang_status bind_text(const char *text, size_t bytes, struct bound *out) {
    *out = (struct bound){0};
    gang_arena_init(&out->arena);
    return gang_yaml_bind(scratch_write("job.yaml", text, bytes), fields, FIELDS, &out->job, &out->arena);
}

// The message without the directory in front.
static void expect_error(const char *text, const char *message) {
    struct bound bound;
    enum gang_status status = bind_text(text, strlen(text), &bound);
    gang_arena_release(&bound.arena);
    assert_int_equal(status, GANG_ERR_INPUT);
    const char *said = strstr(gang_error(), "job.yaml");
    assert_non_null(said);
    assert_string_equal(said, message);
}

static void test_defaults(void **state) {
    (void)state;
    struct bound b;
    const char *text = "model: m\ndata: d\n";
    assert_ok(bind_text(text, strlen(text), &b));
    assert_string_equal(b.job.model, "m");
    assert_string_equal(b.job.note, "");
    assert_int_equal(b.job.data.count, 1);
    assert_string_equal(b.job.data.items[0], "d");
    assert_int_equal(b.job.steps, 100);
    assert_true(b.job.learning_rate == 3e-4);
    assert_true(b.job.shuffle);
    assert_int_equal(b.job.type, 1);
    gang_arena_release(&b.arena);
}

static void test_all_fields(void **state) {
    (void)state;
    struct bound b;
    const char *text = "# a job\n"
                       "model: &dir 'it''s'\n"
                       "data: [*dir, \"b: c\", 7]\n"
                       "note: |\n  two\n  lines\n"
                       "steps: 1000000000\nlearning_rate: 1\nshuffle: false\ntype: f32\n";
    assert_ok(bind_text(text, strlen(text), &b));
    assert_string_equal(b.job.model, "it's");
    assert_int_equal(b.job.data.count, 3);
    assert_string_equal(b.job.data.items[0], "it's");
    assert_string_equal(b.job.data.items[1], "b: c");
    assert_string_equal(b.job.data.items[2], "7");
    assert_string_equal(b.job.note, "two\nlines\n");
    assert_int_equal(b.job.steps, 1000000000);
    assert_true(b.job.learning_rate == 1);
    assert_false(b.job.shuffle);
    assert_int_equal(b.job.type, 0);
    gang_arena_release(&b.arena);
}

static void test_notations(void **state) {
    (void)state;
    struct bound b;
    const char *text = "\xef\xbb\xbf--- {\"model\": \"m\", \"data\": [\"d\"], \"steps\": 5}\r\n...\r\n"; // BOM, flow, CR LF
    assert_ok(bind_text(text, strlen(text), &b));
    assert_int_equal(b.job.steps, 5);
    gang_arena_release(&b.arena);
}

static void test_wrong_values(void **state) {
    (void)state;
    expect_error("model: m\ndata: d\nsteps: many\n", "job.yaml:3: steps: 'many' is not a whole number: expected 1 to 1000000000");
    expect_error("model: m\nsteps: 1.5\n", "job.yaml:2: steps: '1.5' is not a whole number: expected 1 to 1000000000");
    expect_error("model: m\nsteps: 0\n", "job.yaml:2: steps: '0' is out of range: expected 1 to 1000000000");
    expect_error("model: m\nsteps: '5'\n", "job.yaml:2: steps: '5' in quotes is text: expected a whole number, without quotes");
    expect_error("learning_rate: fast\n", "job.yaml:1: learning_rate: 'fast' is not a number: expected 0 to 10");
    expect_error("learning_rate: .nan\n", "job.yaml:1: learning_rate: '.nan' is not a number: expected 0 to 10");
    expect_error("learning_rate: 11\n", "job.yaml:1: learning_rate: '11' is out of range: expected 0 to 10");
    expect_error("shuffle: yes\n", "job.yaml:1: shuffle: 'yes' is not a truth value: expected true or false");
    expect_error("\n\ntype: f16\n", "job.yaml:3: type: 'f16' is not a choice: expected one of: f32, bf16");
    expect_error("model:\ndata: d\n", "job.yaml:1: model: has no value: expected text");
    expect_error("steps: ~\n", "job.yaml:1: steps: has no value: expected a whole number, or no such line for the default");
    expect_error("model: [a]\n", "job.yaml:1: model: is a list: expected text");
    expect_error("steps: {a: b}\n", "job.yaml:1: steps: is a mapping: expected a whole number");
    expect_error("data: []\n", "job.yaml:1: data: the list is empty: expected at least one entry");
    expect_error("data:\n  - a\n  - [b]\n", "job.yaml:1: data: entry 2 of the list is not text: expected one text a line, '- text'");
    expect_error("data:\n  - a\n  -\n", "job.yaml:1: data: entry 2 of the list is not text: expected one text a line, '- text'");
    expect_error("model: \"a\\0b\"\n", "job.yaml:1: model: is text with a zero byte: expected text");
}

static void test_wrong_fields(void **state) {
    (void)state;
    expect_error("model: m\ndata: d\nlearning_rat: 1\n", "job.yaml:3: learning_rat: unknown field: did you mean 'learning_rate'?");
    expect_error("modle: m\n", "job.yaml:1: modle: unknown field: did you mean 'model'?");
    expect_error("zzz: m\n", "job.yaml:1: zzz: unknown field: expected one of: model, data, note, steps, learning_rate, shuffle, type");
    expect_error("<<: {model: m}\n", "job.yaml:1: <<: unknown field: expected one of: model, data, note, steps, learning_rate, shuffle, type");
    expect_error("model: m\nsteps: 1\nsteps: 1\n", "job.yaml:3: steps: given twice: expected one such line");
    expect_error("model: m\n", "job.yaml: data: missing: this field is required (files, directories, globs)");
    expect_error("", "job.yaml: model: missing: this field is required (a directory or config.json)");
    expect_error("# nothing\n", "job.yaml: model: missing: this field is required (a directory or config.json)");
    expect_error("? [a]\n: b\n", "job.yaml:1: a field's name is not text: expected lines of the form 'field: value'");
    expect_error("- a\n", "job.yaml:1: not a mapping: expected lines of the form 'field: value'");
    expect_error("just text\n", "job.yaml:1: not a mapping: expected lines of the form 'field: value'");
}

static void test_wrong_syntax(void **state) {
    (void)state;
    expect_error("model: m\n---\nmodel: n\n", "job.yaml:2: a second document begins: expected one in the file");
    expect_error("model: m\n\tdata: d\n",
                 "job.yaml:2:1: found a tab character that violates indentation while scanning a plain scalar: indent by spaces");
    expect_error("model: m\ndata: @d\n", "job.yaml:2:7: found character that cannot start any token while scanning for the next token: "
                                         "indent by spaces, and put text with special characters in quotes");
    expect_error("model: m\ndata: *d\n", "job.yaml:2:7: found undefined alias");
    expect_error("model: m\n\xff\n", "job.yaml:2: invalid leading UTF-8 octet: expected UTF-8 text without control characters");
    expect_error("model: m\ndata: \"d\n", "job.yaml:3:1: found unexpected end of stream while scanning a quoted scalar");
}

// Each of these would take libyaml's composer seconds to hours.
static void test_bombs(void **state) {
    (void)state;
    struct gang_buffer text = {0};
    for (int i = 0; i < 500000; i++) gang_buffer_append(&text, "[", 1);
    expect_error(text.data, "job.yaml:1: nested deeper than 8 levels: expected 'field: value'");
    text.len = 0;
    for (int i = 0; i < 300000; i++) gang_buffer_append(&text, "- ", 2);
    expect_error(text.data, "job.yaml:1: nested deeper than 8 levels: expected 'field: value'");
    text.len = 0;
    gang_buffer_printf(&text, "data:\n");
    for (int i = 0; i < 60000; i++) gang_buffer_printf(&text, "- &a%d b\n", i);
    expect_error(text.data, "job.yaml:66: more than 64 anchors (&name)");
    text.len = 0;
    for (int i = 0; i < 100000; i++) gang_buffer_printf(&text, "# fill the file up\n");
    struct bound b;
    assert_fails(GANG_ERR_INPUT, "more than the 1048576", bind_text(text.data, text.len, &b));
    gang_arena_release(&b.arena);
    gang_buffer_release(&text);
}

// Whatever is in the file: a status, a message, no crash. The long form is tests/fuzz/fuzz_yaml.c.
static void test_mutations(void **state) {
    (void)state;
    const char *seed_text = "# job\nmodel: &m x\ndata: [*m, \"b\", 'c']\nsteps: 10\nlearning_rate: 3e-4\nshuffle: true\ntype: f32\nnote: >\n  a\n";
    static const char pieces[] = "\n\t :-[]{}&*!|>'\"%@#?,\\\0\xff"
                                 "9a";
    uint64_t seed = test_seed(), draw = 0;
    char text[256];
    int accepted = 0, refused = 0;
    for (int round = 0; round < 3000; round++) {
        size_t len = strlen(seed_text);
        memcpy(text, seed_text, len);
        for (int edits = 1 + round % 3; edits; edits--) {
            size_t place = gang_random_at(seed, 0, draw++) % len;
            text[place] = pieces[gang_random_at(seed, 0, draw++) % (sizeof pieces - 1)];
        }
        struct bound b;
        enum gang_status status = bind_text(text, len, &b);
        gang_arena_release(&b.arena);
        accepted += status == GANG_OK;
        refused += status == GANG_ERR_INPUT && strstr(gang_error(), "job.yaml:");
    }
    assert_int_equal(accepted + refused, 3000);
    assert_true(accepted > 0 && refused > 0);
}

static void test_json(void **state) {
    (void)state;
    json_t *root = NULL;
    assert_ok(gang_json_read(scratch_text("a.json", "{\"a\": [1, 2.5, \"x\"]}"), 1000, &root));
    assert_int_equal(json_array_size(json_object_get(root, "a")), 3);
    json_decref(root);
    assert_fails(GANG_ERR_FORMAT, "a.json:2:", gang_json_read(scratch_text("a.json", "{\"a\":\n oops}"), 1000, &root));
    assert_null(root);
    assert_fails(GANG_ERR_FORMAT, "duplicate object key", gang_json_read(scratch_text("a.json", "{\"a\": 1, \"a\": 2}"), 1000, &root));
    assert_fails(GANG_ERR_FORMAT, "expected JSON", gang_json_read(scratch_text("a.json", "{} {}"), 1000, &root));
    assert_fails(GANG_ERR_FORMAT, "expected JSON", gang_json_read(scratch_text("a.json", ""), 1000, &root));
    assert_fails(GANG_ERR_FORMAT, "a.json", gang_json_read(scratch_text("a.json", "{\"a\": \"\\u0000\"}"), 1000, &root));
    assert_fails(GANG_ERR_FORMAT, "a.json", gang_json_read(scratch_text("a.json", "[1e999]"), 1000, &root));
    assert_fails(GANG_ERR_INPUT, "more than the 5", gang_json_read(scratch_text("a.json", "[1, 2, 3]"), 5, &root));
    char *deep = malloc(100001);
    memset(deep, '[', 100000);
    deep[100000] = 0;
    assert_fails(GANG_ERR_FORMAT, "depth", gang_json_read(scratch_text("a.json", deep), 1 << 20, &root));
    free(deep);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),     cmocka_unit_test(test_all_fields),   cmocka_unit_test(test_notations),
        cmocka_unit_test(test_wrong_values), cmocka_unit_test(test_wrong_fields), cmocka_unit_test(test_wrong_syntax),
        cmocka_unit_test(test_bombs),        cmocka_unit_test(test_mutations),    cmocka_unit_test(test_json),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
