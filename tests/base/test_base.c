// Errors, arenas, buffers, numbers; files on an operating system that fails each of its calls in turn.
#include "../test.h"
#include "../scratch.h"

#include <errno.h>
#include <math.h>
#include <sys/stat.h>

// ---- Error text ----------------------------------------------------------------------------------------------------

static void test_status(void **state) {
    (void)state;
    assert_int_equal(gang_fail(GANG_ERR_INPUT, "a: %d", 7), GANG_ERR_INPUT);
    assert_string_equal(gang_error(), "a: 7");
    // A message may quote the one before it.
    assert_int_equal(gang_fail(GANG_ERR_FORMAT, "b: %s", gang_error()), GANG_ERR_FORMAT);
    assert_string_equal(gang_error(), "b: a: 7");
    errno = ENOSPC;
    assert_int_equal(gang_fail_os("c"), GANG_ERR_OS);
    assert_string_equal(gang_error(), "c: No space left on device");
    // Text from a file cannot drive the terminal or fake a second line.
    assert_int_equal(gang_fail(GANG_ERR_INPUT, "%s", "x\033[2J\ny\x7f"), GANG_ERR_INPUT);
    assert_string_equal(gang_error(), "x [2J y ");
    char *text = malloc(5000);
    memset(text, 'a', 4999);
    text[4999] = 0;
    assert_int_equal(gang_fail(GANG_ERR_INPUT, "%s", text), GANG_ERR_INPUT);
    assert_int_equal(strlen(gang_error()), GANG_ERROR_BYTES - 1);
    free(text);
}

// ---- Memory --------------------------------------------------------------------------------------------------------

static void test_arena(void **state) {
    (void)state;
    struct gang_arena arena;
    gang_arena_init(&arena);
    size_t sizes[] = {0, 1, 63, 64, 65, 5000, 65536, 70000, 1 << 20, 3};
    unsigned char *blocks[10];
    for (int i = 0; i < 10; i++) {
        blocks[i] = gang_arena_alloc(&arena, sizes[i]);
        assert_int_equal((uintptr_t)blocks[i] % 64, 0);
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(blocks[i][k], 0);
        memset(blocks[i], i + 1, sizes[i]);
    }
    for (int i = 0; i < 10; i++)
        for (size_t k = 0; k < sizes[i]; k++) assert_int_equal(blocks[i][k], i + 1);
    assert_string_equal(gang_arena_strdup(&arena, "text"), "text");
    assert_string_equal(gang_arena_printf(&arena, "%d-%s", 7, "x"), "7-x");
    // Reset keeps one block, and what it hands out again is zeroed.
    const struct gang_arena_block *kept = arena.head;
    gang_arena_reset(&arena);
    assert_ptr_equal(arena.head, kept);
    const char *again = gang_arena_alloc(&arena, 100);
    for (int i = 0; i < 100; i++) assert_int_equal(again[i], 0);
    assert_int_equal(arena.used_bytes, 128);
    gang_arena_release(&arena);
    gang_arena_reset(&arena);
    assert_null(arena.head);
}

static void test_big_alloc(void **state) {
    (void)state;
    void *block = NULL;
    assert_ok(gang_big_alloc(5000000, &block));
    assert_int_equal((uintptr_t)block % (2 << 20), 0);
    assert_int_equal(((char *)block)[4999999], 0);
    memset(block, 1, 5000000);
    // Of a part whole pages only, and of those around it nothing.
    memset(block, 1, 20000);
    gang_big_forget((char *)block + 100, 12300);
    for (int i = 0; i < 20000; i++) assert_int_equal(((char *)block)[i], i < 4096 || i >= 12288);
    gang_big_forget((char *)block + 100, 5000);
    assert_int_equal(((char *)block)[4000], 1);
    gang_big_free(block, 5000000);
    gang_big_free(NULL, 0);
    assert_fails(GANG_ERR_MEMORY, "cannot reserve", gang_big_alloc((size_t)1 << 60, &block));
}

static void test_buffer(void **state) {
    (void)state;
    struct gang_buffer buffer = {0}, copy = {0};
    for (int i = 0; i < 1000; i++) gang_buffer_printf(&buffer, "%d,", i);
    assert_int_equal(buffer.len, 3890);
    assert_int_equal(buffer.data[buffer.len], 0);
    assert_string_equal(buffer.data + buffer.len - 8, "998,999,");
    gang_buffer_append(&copy, "a\0b", 3);
    gang_buffer_append(&copy, NULL, 0);
    assert_int_equal(copy.len, 3);
    assert_memory_equal(copy.data, "a\0b", 4);
    gang_buffer_release(&buffer);
    gang_buffer_release(&copy);
    assert_null(copy.data);
}

// ---- Files ---------------------------------------------------------------------------------------------------------

static void test_read(void **state) {
    (void)state;
    struct gang_buffer text = {0};
    const char *path = scratch_text("read", "hello");
    assert_ok(gang_file_read(path, 5, &text));
    assert_int_equal(text.len, 5);
    assert_string_equal(text.data, "hello");
    gang_buffer_release(&text);
    assert_fails(GANG_ERR_INPUT, "5 bytes, more than the 4", gang_file_read(path, 4, &text));
    assert_fails(GANG_ERR_OS, "absent: cannot open: No such file", gang_file_read(scratch_path("absent"), 4, &text));
    assert_fails(GANG_ERR_INPUT, "not a regular file", gang_file_read(scratch_dir, 4, &text));
    assert_int_equal(mkfifo(scratch_path("pipe"), 0600), 0);
    alarm(10); // a pipe that is opened as a file is never read to its end
    assert_fails(GANG_ERR_INPUT, "not a regular file", gang_file_read(scratch_path("pipe"), 4, &text));
    alarm(0);

    struct gang_map map;
    assert_ok(gang_map_open(path, &map));
    assert_int_equal(map.bytes, 5);
    assert_memory_equal(map.data, "hello", 5);
    gang_map_close(&map);
    assert_ok(gang_map_open(scratch_text("empty", ""), &map));
    assert_null(map.data);
    gang_map_close(&map);
    assert_fails(GANG_ERR_OS, "cannot open", gang_map_open(scratch_path("absent"), &map));
}

static void test_pread_short(void **state) {
    (void)state;
    const char *path = scratch_text("short", "0123456789");
    int fd = gang_os->open(path, 0, 0);
    char data[16];
    assert_ok(gang_file_pread(fd, path, data, 4, 3));
    assert_memory_equal(data, "3456", 4);
    assert_fails(GANG_ERR_FORMAT, "ends at byte 10, 2 bytes early", gang_file_pread(fd, path, data, 4, 8));
    gang_os->close(fd);
}

static void test_directories(void **state) {
    (void)state;
    assert_ok(gang_mkdirs(scratch_path("d/e//f/")));
    assert_ok(gang_mkdirs(scratch_path("d/e/f")));
    assert_true(gang_path_is_dir(scratch_path("d/e/f")));
    assert_fails(GANG_ERR_OS, "cannot make the directory", gang_mkdirs(scratch_path("read/x")));
    scratch_text("kept", "precious");
    scratch_text("d/e/file", "x");
    assert_int_equal(symlink(scratch_path("kept"), scratch_path("d/link")), 0);
    assert_int_equal(symlink(scratch_dir, scratch_path("d/e/up")), 0);
    assert_ok(gang_dir_remove(scratch_path("d")));
    assert_false(gang_path_exists(scratch_path("d")));
    assert_true(gang_path_exists(scratch_path("kept")));
    assert_ok(gang_dir_remove(scratch_path("d")));
}

// ---- Publication while the system fails ----------------------------------------------------------------------------

// The calls of one publication are counted over all kinds; number `fault_at` fails with `fault_errno`.
static int calls, fault_at, fault_errno;
static char trace[64]; // a letter for each call

static bool faulty(char letter) {
    if (calls < (int)sizeof trace - 1) trace[calls] = letter;
    if (++calls != fault_at) return false;
    errno = fault_errno;
    return true;
}
static int bad_open(const char *path, int flags, int mode) { return faulty('o') ? -1 : gang_os_real.open(path, flags, mode); }
static int bad_close(int fd) {
    bool bad = faulty('c');
    int result = gang_os_real.close(fd);
    if (bad) errno = fault_errno;
    return bad ? -1 : result;
}
// A full disk takes a part first.
static ssize_t bad_write(int fd, const void *data, size_t bytes) {
    return faulty('w') ? -1 : gang_os_real.write(fd, data, bytes > 100 ? bytes / 2 : bytes);
}
static int bad_fsync(int fd) { return faulty('s') ? -1 : gang_os_real.fsync(fd); }
static int bad_rename(const char *from, const char *to) { return faulty('r') ? -1 : gang_os_real.rename(from, to); }
static int bad_unlink(const char *path) { return gang_os_real.unlink(path); }

static const struct gang_os *faulty_os(int at, int error) {
    static struct gang_os os;
    os = gang_os_real;
    os.open = bad_open;
    os.close = bad_close;
    os.write = bad_write;
    os.fsync = bad_fsync;
    os.rename = bad_rename;
    os.unlink = bad_unlink;
    calls = 0;
    memset(trace, 0, sizeof trace);
    fault_at = at;
    fault_errno = error;
    return &os;
}

static void expect_content(const char *path, const char *a, const char *b, size_t bytes) {
    struct gang_buffer text = {0};
    assert_ok(gang_file_read(path, 1 << 20, &text));
    assert_int_equal(text.len, bytes);
    assert_true(!memcmp(text.data, a, bytes) || !memcmp(text.data, b, bytes));
    gang_buffer_release(&text);
}

static void test_publish_survives_every_fault(void **state) {
    (void)state;
    enum { BYTES = 5000 };
    char *old = malloc(BYTES), *new = malloc(BYTES);
    memset(old, 'o', BYTES);
    memset(new, 'n', BYTES);
    const char *path = scratch_path("published"), *tmp = scratch_path("published.tmp");
    int failures = 0;
    for (int at = 1;; at++) {
        assert_ok(gang_file_publish(path, old, BYTES));
        gang_os = faulty_os(at, ENOSPC);
        enum gang_status status = gang_file_publish(path, new, BYTES);
        gang_os = &gang_os_real;
        bool reached = calls >= at;
        if (reached && status) {
            failures++;
            assert_int_equal(status, GANG_ERR_OS);
            assert_non_null(strstr(gang_error(), scratch_dir));
            assert_non_null(strstr(gang_error(), "No space left on device"));
            // Whole: the old file before the rename, the new one behind it, and nothing lies about.
            expect_content(path, old, new, BYTES);
        }
        assert_false(gang_path_exists(tmp));
        if (reached) continue;
        assert_int_equal(status, GANG_OK);
        expect_content(path, new, new, BYTES);
        break;
    }
    // open, several writes, fsync, close, rename, open and fsync of the directory; its close may fail unheard.
    assert_in_range(failures, 8, 30);
    free(old);
    free(new);
}

static void test_full_disk_keeps_the_old_file(void **state) {
    (void)state;
    const char *path = scratch_path("full");
    assert_ok(gang_file_publish(path, "old", 3));
    gang_os = faulty_os(3, ENOSPC); // open, a first part, then nothing more fits
    char data[1000] = {0};
    enum gang_status status = gang_file_publish(path, data, sizeof data);
    gang_os = &gang_os_real;
    assert_fails(GANG_ERR_OS, "full.tmp: cannot write: No space left", status);
    expect_content(path, "old", "old", 3);
}

// Durable before it is visible, and the name durable before success is told.
static void test_publish_in_order(void **state) {
    (void)state;
    gang_os = faulty_os(0, 0);
    enum gang_status status = gang_file_publish(scratch_path("ordered"), "x", 1);
    gang_os = &gang_os_real;
    assert_ok(status);
    assert_string_equal(trace, "owscrosc");
}

static void test_interrupted_write_goes_on(void **state) {
    (void)state;
    const char *path = scratch_path("interrupted");
    gang_os = faulty_os(2, EINTR);
    enum gang_status status = gang_file_publish(path, "whole", 5);
    gang_os = &gang_os_real;
    assert_ok(status);
    expect_content(path, "whole", "whole", 5);
}

static void test_discard(void **state) {
    (void)state;
    struct gang_out out = {0};
    gang_out_discard(&out);
    assert_ok(gang_out_open(&out, scratch_path("discarded")));
    char *data = calloc(1, 3 << 20); // beyond the write-behind buffer
    assert_ok(gang_out_write(&out, "head", 4));
    assert_ok(gang_out_write(&out, data, 3 << 20));
    free(data);
    gang_out_discard(&out);
    gang_out_discard(&out);
    assert_false(gang_path_exists(scratch_path("discarded")));
    assert_false(gang_path_exists(scratch_path("discarded.tmp")));
}

// ---- Numbers -------------------------------------------------------------------------------------------------------

static void test_parse_int(void **state) {
    (void)state;
    int64_t value = 0;
    assert_ok(gang_parse_int("n", "42", 0, 100, &value));
    assert_int_equal(value, 42);
    assert_ok(gang_parse_int("n", "-9223372036854775808", INT64_MIN, INT64_MAX, &value));
    assert_true(value == INT64_MIN);
    static const char *const bad[] = {"", " 1", "1 ", "1.5", "1e3", "0x10", "many", "\t3", "1_000", "--1", "12a"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_fails(GANG_ERR_INPUT, "not a whole number: expected 0 to 100", gang_parse_int("n", bad[i], 0, 100, &value));
    static const char *const out[] = {"101", "-1", "9223372036854775808", "-99999999999999999999"};
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        assert_fails(GANG_ERR_INPUT, "out of range: expected 0 to 100", gang_parse_int("n", out[i], 0, 100, &value));
    assert_fails(GANG_ERR_INPUT, "out of range", gang_parse_int("n", "9223372036854775808", INT64_MIN, INT64_MAX, &value));
    assert_true(value == INT64_MIN); // untouched by failures
}

static void test_parse_real(void **state) {
    (void)state;
    double value = 0;
    assert_ok(gang_parse_real("x", "3e-4", 0, 1, &value));
    assert_true(value == 3e-4);
    assert_ok(gang_parse_real("x", "-.5", -1, 1, &value));
    assert_true(value == -0.5);
    static const char *const bad[] = {"", " 1", "nan", "inf", "-infinity", "0x1p3", "1,5", "1e", "."};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_fails(GANG_ERR_INPUT, "is not a number: expected 0 to 1", gang_parse_real("x", bad[i], 0, 1, &value));
    static const char *const out[] = {"1.1", "-1e-9", "1e999"};
    for (size_t i = 0; i < sizeof out / sizeof *out; i++)
        assert_fails(GANG_ERR_INPUT, "out of range: expected 0 to 1", gang_parse_real("x", out[i], 0, 1, &value));
}

static void test_human(void **state) {
    (void)state;
    char text[GANG_HUMAN_BYTES];
    assert_string_equal(gang_human_bytes(0, text), "0 B");
    assert_string_equal(gang_human_bytes(1023, text), "1023 B");
    assert_string_equal(gang_human_bytes(1536, text), "1.50 KiB");
    assert_string_equal(gang_human_bytes(12.3 * 1073741824, text), "12.3 GiB");
    assert_string_equal(gang_human_count(1234567, text), "1.23 M");
    assert_string_equal(gang_human_count(999, text), "999");
    assert_string_equal(gang_human_seconds(59.4, text), "59 s");
    assert_string_equal(gang_human_seconds(61, text), "1 min 01 s");
    assert_string_equal(gang_human_seconds(7200, text), "2.0 h");
}

static void test_random(void **state) {
    (void)state;
    assert_true(gang_random_at(1, 2, 3) == gang_random_at(1, 2, 3));
    assert_true(gang_random_at(1, 2, 3) != gang_random_at(2, 1, 3));
    assert_true(gang_random_at(1, 2, 3) != gang_random_at(1, 3, 2));
    enum { DRAWS = 100000 };
    double sum = 0, squares = 0, uniform = 0;
    for (uint64_t i = 0; i < DRAWS; i++) {
        double x = gang_normal_at(5, 6, i);
        assert_true(isfinite(x));
        sum += x;
        squares += x * x;
        uniform += gang_uniform(gang_random_at(5, 7, i));
    }
    // Five standard errors.
    assert_true(fabs(sum / DRAWS) < 5 / sqrt(DRAWS));
    assert_true(fabs(squares / DRAWS - 1) < 5 * sqrt(2.0 / DRAWS));
    assert_true(fabs(uniform / DRAWS - 0.5) < 5 * sqrt(1.0 / 12 / DRAWS));
    assert_true(gang_hash("abc", 3, 0) == gang_hash("abc", 3, 0));
    assert_true(gang_hash("abc", 3, 0) != gang_hash("abc", 3, 1));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_status),
        cmocka_unit_test(test_arena),
        cmocka_unit_test(test_big_alloc),
        cmocka_unit_test(test_buffer),
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_pread_short),
        cmocka_unit_test(test_directories),
        cmocka_unit_test(test_publish_survives_every_fault),
        cmocka_unit_test(test_full_disk_keeps_the_old_file),
        cmocka_unit_test(test_publish_in_order),
        cmocka_unit_test(test_interrupted_write_goes_on),
        cmocka_unit_test(test_discard),
        cmocka_unit_test(test_parse_int),
        cmocka_unit_test(test_parse_real),
        cmocka_unit_test(test_human),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
