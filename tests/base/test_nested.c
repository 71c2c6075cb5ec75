// Nested YAML and numbers with units: what is read, and the exact words for what is refused.
#include "../test.h"
#include "../scratch.h"

struct inner {
    struct gang_place place;
    char *name;
    double rate, memory, delay, length, flops;
};
struct outer {
    struct gang_place place;
    struct gang_list inners;
    int64_t count;
};

#define IN(member) offsetof(struct inner, member)
static const struct gang_field inner_fields[] = {
    {"name", GANG_FIELD_STRING, IN(name), NULL, 0, 0, NULL, "of it"},    {"rate", GANG_FIELD_RATE, IN(rate), "0bps", 0, 1e15, NULL, NULL},
    {"memory", GANG_FIELD_BYTES, IN(memory), "0B", 0, 1e15, NULL, NULL}, {"delay", GANG_FIELD_TIME, IN(delay), "0s", 0, 10, NULL, NULL},
    {"length", GANG_FIELD_LENGTH, IN(length), "0m", 0, 4e7, NULL, NULL}, {"flops", GANG_FIELD_FLOPS, IN(flops), "0FLOPS", 0, 1e18, NULL, NULL},
};
static const struct gang_schema inner_schema = {inner_fields, 6, sizeof(struct inner)};
static const struct gang_field outer_fields[] = {
    {"inners", GANG_FIELD_MAPPINGS, offsetof(struct outer, inners), NULL, 0, 0, &inner_schema, "parts"},
    {"count", GANG_FIELD_INT, offsetof(struct outer, count), "3", 0, 9, NULL, NULL},
};
static const struct gang_schema outer_schema = {outer_fields, 2, sizeof(struct outer)};

static void test_reads(void **state) {
    (void)state;
    struct gang_arena arena;
    gang_arena_init(&arena);
    struct outer o = {0};
    const char *text =
        "inners:\n  - name: a\n    rate: 200Gbps\n    memory: 80GiB\n  - {name: b, rate: 3.35 TB/s, delay: 5ms, length: 1e3km, flops: 989TFLOPS}\n";
    assert_ok(gang_yaml_bind_nested(scratch_text("n.yaml", text), NULL, &outer_schema, &o, &arena));
    const struct inner *i = o.inners.items;
    assert_int_equal(o.inners.count, 2);
    assert_int_equal(o.count, 3);
    assert_float_equal(i[0].rate, 25e9, 1);
    assert_float_equal(i[0].memory, 80.0 * (1 << 30), 1);
    assert_int_equal(i[0].place.line, 2);
    assert_int_equal(i[1].place.line, 5);
    assert_int_equal(i[1].place.column, 5);
    assert_float_equal(i[1].rate, 3.35e12, 1);
    assert_float_equal(i[1].delay, 5e-3, 1e-12);
    assert_float_equal(i[1].length, 1e6, 1e-6);
    assert_float_equal(i[1].flops, 989e12, 1);
    gang_arena_release(&arena);
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"inners:\n  - name: a\n    rate: 200GB\n",
         "n.yaml:3:5: rate: '200GB' is not a number with a unit of its kind: expected for example 200Gbps"},
        {"inners:\n  - name: a\n    rate: 200\n", "n.yaml:3:5: rate: '200' is not a number with a unit"},
        {"inners:\n  - name: a\n    rate: Gbps\n", "n.yaml:3:5: rate: 'Gbps' is not a number with a unit"},
        {"inners:\n  - name: a\n    delay: 20s\n", "n.yaml:3:5: delay: '20s' is out of range: expected 0 to 10 s"},
        {"inners:\n  - name: a\n    delay: -1ms\n", "n.yaml:3:5: delay: '-1ms' is out of range"},
        {"inners:\n  - name: a\n    ratte: 1bps\n", "n.yaml:3:5: ratte: unknown field: did you mean 'rate'?"},
        {"inners:\n  - rate: 1bps\n", "n.yaml:2:5: name: missing: this field is required (of it)"},
        {"inners: text\n", "n.yaml:1:1: inners: 'text' is text: expected a list of mappings"},
        {"inners: []\n", "n.yaml:1:1: inners: the list is empty"},
        {"inners: [a]\n", "n.yaml:1:10: not a mapping"},
        {"inners: {name: a}\n", "n.yaml:1:1: inners: is a mapping: expected a list of mappings"},
        {"inners:\n  - name: a\n    name: b\n", "n.yaml:3:5: name: given twice"},
        {"count: 3\n", "inners: missing: this field is required (parts)"},
        {"inners:\n  - {name: a, rate: 1e400bps}\n", "rate: '1e400' is out of range"},
        {"inners:\n  - {name: a, rate: 1111111111111111111111111111111111111111111bps}\n", "is not a number with a unit"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct gang_arena arena;
        gang_arena_init(&arena);
        struct outer o = {0};
        assert_fails(GANG_ERR_INPUT, cases[c].words, gang_yaml_bind_nested(scratch_text("n.yaml", cases[c].text), NULL, &outer_schema, &o, &arena));
        gang_arena_release(&arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reads), cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
