// CSV: what is read, what is refused.
#include "../test.h"
#include "../scratch.h"

static void test_reads(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_csv t;
    gang_arena_init(&arena);
    assert_ok(gang_csv_read(scratch_text("t.csv", "a,b,c\n1,\"x, \"\"y\"\"\nz\",3\r\n,,\n"), 1000, &arena, &t));
    assert_int_equal(t.columns, 3);
    assert_int_equal(t.rows, 2);
    assert_string_equal(gang_csv_cell(&t, 0, "b"), "x, \"y\"\nz");
    assert_string_equal(gang_csv_cell(&t, 0, "c"), "3");
    assert_string_equal(gang_csv_cell(&t, 1, "a"), "");
    assert_null(gang_csv_cell(&t, 0, "d"));
    assert_int_equal(t.lines[1], 4);
    gang_arena_release(&arena);
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "it is empty"},
        {"a,b\n1\n", "t.csv:2: 1 fields: the header has 2"},
        {"a,b\n1,\"x\n", "a quoted field does not end"},
        {"a,b\n1,\"x\"y\n", "t.csv:2: text behind a quoted field"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct gang_arena arena;
        struct gang_csv t;
        gang_arena_init(&arena);
        assert_fails(GANG_ERR_INPUT, cases[i].words, gang_csv_read(scratch_text("t.csv", cases[i].text), 1000, &arena, &t));
        gang_arena_release(&arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reads), cmocka_unit_test(test_refuses)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
