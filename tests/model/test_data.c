// Token data sets: the same tokens for any number of threads and any segment, rebuilt when anything changed or broke,
// samples that are pure functions. GANG_SEED in the environment chooses the texts.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "model/data_internal.h"

static char folder[] = "/tmp/gang_data_XXXXXX";
static char text_dir[64], cache_dir[64];
static uint64_t seed = 11;

static const struct gang_data_sizes usual = {.segment_bytes = 1 << 20, .shard_tokens = 1 << 20};

static const char *at(const char *name) {
    static char path[4][256];
    static int next;
    char *out = path[next++ % 4];
    snprintf(out, sizeof path[0], "%s/%s", text_dir, name);
    return out;
}

static void write_file(const char *path, const char *text, size_t bytes) {
    if (gang_file_publish(path, text, bytes)) fail_msg("%s", gang_error());
}

static struct gang_tokenizer *open_tokenizer(const char *kind) {
    char path[512];
    snprintf(path, sizeof path, "%s/golden/tokenizers/%s.json", TESTS_DIR, kind);
    struct gang_tokenizer *t = NULL;
    if (gang_tokenizer_open(path, &t)) fail_msg("%s", gang_error());
    return t;
}

static struct gang_tokenizer *open_bytes(void) {
    struct gang_tokenizer *t = NULL;
    assert_int_equal(gang_tokenizer_open(NULL, &t), GANG_OK);
    return t;
}

struct source_list {
    char *items[2];
    struct gang_strings strings;
    struct gang_data_options options;
};

static struct gang_data_options *one_source(struct source_list *list, const char *source) {
    list->items[0] = (char *)source;
    list->strings = (struct gang_strings){.count = 1, .items = list->items};
    list->options = (struct gang_data_options){.sources = &list->strings, .cache_dir = cache_dir, .threads = 2, .end_token = -1};
    return &list->options;
}

// ---- What was called, by way of the OS table -----------------------------------------------------------------------

static atomic_int shards_created;
static int counting_open(const char *path, int flags, int mode) {
    shards_created += (flags & O_CREAT) && strstr(path, ".bin.tmp");
    return gang_os_real.open(path, flags, mode);
}

// Opens and tells whether shards were written.
static struct gang_data *open_data(const struct gang_data_options *options, const struct gang_tokenizer *t, struct gang_data_sizes sizes,
                                   bool *built) {
    struct gang_os table = gang_os_real;
    table.open = counting_open;
    gang_os = &table;
    shards_created = 0;
    struct gang_data *data = NULL;
    enum gang_status status = gang_data_open_sized(options, t, sizes, &data);
    gang_os = &gang_os_real;
    if (status) fail_msg("%s", gang_error());
    if (built) *built = shards_created > 0;
    return data;
}

// All tokens, through samples of one window each.
static int32_t *all_tokens(const struct gang_data *data) {
    int64_t count = gang_data_tokens(data);
    int32_t *tokens = malloc((size_t)count * sizeof *tokens);
    assert_true(count >= 2 && count < INT32_MAX);
    gang_data_sample(data, 0, 0, (int)count - 1, tokens);
    return tokens;
}

static void expect_tokens(const struct gang_data *data, const int32_t *expected, size_t count) {
    assert_int_equal(gang_data_tokens(data), count);
    int32_t *tokens = all_tokens(data);
    assert_memory_equal(tokens, expected, count * sizeof *expected);
    free(tokens);
}

static void expect_refused(const struct gang_data_options *options, enum gang_status status, const char *word) {
    struct gang_tokenizer *t = open_bytes();
    struct gang_data *data = NULL;
    enum gang_status got = gang_data_open(options, t, &data);
    if (got != status || data || !strstr(gang_error(), word))
        fail_msg("expected status %d and '%s', got %d and '%s'", (int)status, word, (int)got, got ? gang_error() : "");
    gang_tokenizer_free(t);
}

// ---- Texts ---------------------------------------------------------------------------------------------------------

static size_t make_text(uint64_t stream, size_t bytes, char **out) {
    static const char *const parts[] = {
        " the",
        " licence",
        "\n",
        "\n\n",
        "  ",
        " caf\xc3\xa9",
        "\xe6\xbc\xa2\xe5\xad\x97",
        " 2024",
        ".",
        "<|endoftext|>",
        "\xff\xfe",
        "\xf0\x9f\x91\x8d",
        "Word",
        "\r\n",
        "'s",
        " e\xcc\x81",
        "!?",
    };
    struct gang_buffer text = {0};
    for (uint64_t i = 0; text.len < bytes; i++) {
        const char *part = parts[gang_random_at(seed, stream, i) % (sizeof parts / sizeof *parts)];
        gang_buffer_append(&text, part, strlen(part));
    }
    *out = text.data;
    return text.len;
}

// ---- Tests ---------------------------------------------------------------------------------------------------------

static void test_threads_and_segments_change_nothing(void **state) {
    (void)state;
    static const char *const kinds[] = {"gpt2", "llama3", "qwen2", "mixed"};
    char *text;
    size_t bytes = make_text(1, 60000, &text);
    write_file(at("big.txt"), text, bytes);
    for (int kind = 0; kind < 4; kind++) {
        struct gang_tokenizer *t = open_tokenizer(kinds[kind]);
        struct gang_ids whole = {0};
        assert_int_equal(gang_encode(t, text, bytes, true, &whole), GANG_OK);
        gang_ids_append(&whole, 5);
        for (int run = 0; run < 4; run++) {
            struct source_list list;
            struct gang_data_options *options = one_source(&list, at("big.txt"));
            options->threads = 1 + 2 * run;
            options->end_token = 5;
            struct gang_data_sizes sizes = {.segment_bytes = (int64_t[]){1 << 20, 4000, 700, 301}[run], .shard_tokens = 1000 + run};
            struct gang_data *data = open_data(options, t, sizes, NULL);
            expect_tokens(data, whole.items, whole.count);
            gang_data_free(data);
        }
        gang_ids_release(&whole);
        gang_tokenizer_free(t);
    }
    free(text);
}

// Without a safe cut anywhere the tokens may differ, but not between runs, and no byte is lost.
static void test_a_line_without_end(void **state) {
    (void)state;
    enum { BYTES = 9001 };
    char *text = malloc(BYTES);
    for (size_t i = 0; i < BYTES; i++) text[i] = "\xe6\xbc\xa2"[i % 3];
    write_file(at("line.txt"), text, BYTES);
    struct gang_tokenizer *t = open_tokenizer("llama3");
    int32_t *first = NULL;
    for (int threads = 1; threads < 5; threads += 3) {
        struct source_list list;
        struct gang_data_options *options = one_source(&list, at("line.txt"));
        options->threads = threads;
        assert_int_equal(gang_dir_remove(cache_dir), GANG_OK);
        struct gang_data *data = open_data(options, t, (struct gang_data_sizes){.segment_bytes = 64, .shard_tokens = 500}, NULL);
        int32_t *tokens = all_tokens(data);
        size_t count = (size_t)gang_data_tokens(data);
        struct gang_buffer back = {0};
        assert_int_equal(gang_decode(t, tokens, count, true, &back), GANG_OK);
        assert_int_equal(back.len, BYTES);
        assert_memory_equal(back.data, text, BYTES);
        if (first) assert_memory_equal(tokens, first, count * sizeof *first);
        free(first);
        first = tokens;
        gang_buffer_release(&back);
        gang_data_free(data);
    }
    free(first);
    free(text);
    gang_tokenizer_free(t);
}

static void test_sources_in_order(void **state) {
    (void)state;
    assert_int_equal(gang_mkdirs(at("set/b/deep")), GANG_OK);
    write_file(at("set/c.txt"), "3", 1);
    write_file(at("set/b/deep/x.txt"), "2", 1);
    write_file(at("set/a.txt"), "1", 1);
    write_file(at("set/.hidden"), "9", 1);
    write_file(at("set/empty.txt"), "", 0);
    assert_int_equal(symlink("a.txt", at("set/d.txt")), 0);
    assert_int_equal(symlink(".", at("set/loop")), 0);
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("set"));
    options->end_token = 256;
    struct gang_data *data = open_data(options, t, usual, NULL);
    expect_tokens(data, (int32_t[]){'1', 256, '2', 256, '3', 256, '1', 256}, 8);
    gang_data_free(data);
    options->end_token = -1;
    list.items[0] = (char *)at("set/[ac]*.txt");
    list.items[1] = (char *)at("set/b");
    list.strings.count = 2;
    data = open_data(options, t, usual, NULL);
    expect_tokens(data, (int32_t[]){'1', '3', '2'}, 3);
    gang_data_free(data);
    gang_tokenizer_free(t);
}

static void test_cache_inside_the_sources(void **state) {
    (void)state;
    assert_int_equal(gang_mkdirs(at("self")), GANG_OK);
    write_file(at("self/a.txt"), "text", 4);
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("self"));
    options->cache_dir = at("self/cache");
    for (int i = 0; i < 3; i++) {
        bool built;
        struct gang_data *data = open_data(options, t, usual, &built);
        assert_int_equal(gang_data_tokens(data), 4);
        assert_int_equal(built, i == 0);
        gang_data_free(data);
    }
    gang_tokenizer_free(t);
}

static void test_rebuilt_when_something_changed(void **state) {
    (void)state;
    struct gang_tokenizer *bytes = open_bytes(), *gpt2 = open_tokenizer("gpt2");
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("change.txt"));
    write_file(at("change.txt"), "hello world", 11);
    bool built;
    for (int i = 0; i < 2; i++) {
        gang_data_free(open_data(options, bytes, usual, &built));
        assert_int_equal(built, i == 0); // the second time from the cache
    }
    gang_data_free(open_data(options, gpt2, usual, &built));
    assert_true(built);
    options->end_token = 3;
    gang_data_free(open_data(options, bytes, usual, &built));
    assert_true(built);
    options->end_token = -1;
    gang_data_free(open_data(options, bytes, usual, &built));
    assert_false(built);
    // The same length and the same time stamp: the content tells.
    struct stat before;
    assert_int_equal(stat(at("change.txt"), &before), 0);
    write_file(at("change.txt"), "hello_world", 11);
    struct timespec times[2] = {before.st_atim, before.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, at("change.txt"), times, 0), 0);
    struct gang_data *data = open_data(options, bytes, usual, &built);
    assert_true(built);
    int32_t *tokens = all_tokens(data);
    assert_int_equal(tokens[5], '_');
    free(tokens);
    gang_data_free(data);
    // The time stamp alone.
    times[1].tv_nsec ^= 1;
    assert_int_equal(utimensat(AT_FDCWD, at("change.txt"), times, 0), 0);
    gang_data_free(open_data(options, bytes, usual, &built));
    assert_true(built);
    gang_tokenizer_free(bytes);
    gang_tokenizer_free(gpt2);
}

// The only file in the cache whose name ends so.
static void find_in_cache(const char *end, char *out, size_t cap) {
    char command[256];
    snprintf(command, sizeof command, "ls %s/*%s", cache_dir, end);
    FILE *list = popen(command, "r");
    assert_non_null(list);
    assert_non_null(fgets(out, (int)cap, list));
    pclose(list);
    out[strcspn(out, "\n")] = 0;
}

static void damage(const char *path, int way, uint64_t draw) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    off_t bytes = lseek(fd, 0, SEEK_END), where = (off_t)(draw % (uint64_t)bytes);
    char byte;
    if (way == 0) {
        assert_int_equal(pread(fd, &byte, 1, where), 1);
        byte ^= (char)(1 << (draw >> 40) % 8);
        assert_int_equal(pwrite(fd, &byte, 1, where), 1);
    } else if (way == 1) {
        assert_int_equal(ftruncate(fd, where), 0);
    } else if (way == 2) {
        assert_int_equal(pwrite(fd, "x", 1, bytes), 1);
    } else {
        assert_int_equal(unlink(path), 0);
    }
    close(fd);
}

static void test_damage_is_never_used(void **state) {
    (void)state;
    static const char *const ends[] = {"-00000.bin", "-00001.bin", "-00002.bin", ".manifest"};
    char *text;
    size_t bytes = make_text(2, 2500, &text);
    write_file(at("damage.txt"), text, bytes);
    assert_int_equal(gang_dir_remove(cache_dir), GANG_OK);
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("damage.txt"));
    const struct gang_data_sizes sizes = {.segment_bytes = 512, .shard_tokens = 1000};
    struct gang_data *data = open_data(options, t, sizes, NULL);
    int32_t *expected = all_tokens(data);
    gang_data_free(data);
    for (uint64_t i = 0; i < 200; i++) {
        char path[256];
        find_in_cache(ends[gang_random_at(seed, 3, i) % 4], path, sizeof path);
        damage(path, (int)(i % 4), gang_random_at(seed, 4, i));
        bool built;
        data = open_data(options, t, sizes, &built);
        assert_true(built);
        expect_tokens(data, expected, bytes);
        gang_data_free(data);
    }
    free(expected);
    free(text);
    gang_tokenizer_free(t);
}

static void test_fewer_shards_leave_none_behind(void **state) {
    (void)state;
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("shrink.txt"));
    const struct gang_data_sizes sizes = {.segment_bytes = 512, .shard_tokens = 2};
    assert_int_equal(gang_dir_remove(cache_dir), GANG_OK);
    write_file(at("shrink.txt"), "abcdefgh", 8);
    gang_data_free(open_data(options, t, sizes, NULL));
    char path[256];
    find_in_cache("-00003.bin", path, sizeof path);
    write_file(at("shrink.txt"), "abc", 3);
    gang_data_free(open_data(options, t, sizes, NULL));
    assert_false(gang_path_exists(path));
    find_in_cache("-00001.bin", path, sizeof path);
    gang_tokenizer_free(t);
}

static void test_two_processes_build_at_once(void **state) {
    (void)state;
    char *text;
    size_t bytes = make_text(5, 300000, &text);
    write_file(at("race.txt"), text, bytes);
    struct gang_tokenizer *t = open_tokenizer("gpt2");
    struct gang_ids whole = {0};
    assert_int_equal(gang_encode(t, text, bytes, true, &whole), GANG_OK);
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("race.txt"));
    options->threads = 1;
    const struct gang_data_sizes sizes = {.segment_bytes = 4096, .shard_tokens = 5000};
    pid_t children[3];
    for (int i = 0; i < 3; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i]) continue;
        struct gang_data *data = NULL;
        if (gang_data_open_sized(options, t, sizes, &data)) _exit(1);
        int32_t *tokens = all_tokens(data);
        _exit((size_t)gang_data_tokens(data) == whole.count && memcmp(tokens, whole.items, whole.count * sizeof *tokens) == 0 ? 0 : 2);
    }
    for (int i = 0; i < 3; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 0);
    }
    gang_ids_release(&whole);
    gang_tokenizer_free(t);
    free(text);
}

static void test_permutation(void **state) {
    (void)state;
    int64_t same = 0;
    for (int64_t count = 1; count < 300; count += 1 + count / 40) {
        char *seen = calloc((size_t)count, 1);
        for (int64_t i = 0; i < count; i++) {
            int64_t to = gang_data_permute(seed, 3, count, i);
            assert_true(to >= 0 && to < count && !seen[to]);
            seen[to] = 1;
            same += count > 200 && to == gang_data_permute(seed, 4, count, i);
        }
        free(seen);
    }
    assert_true(same < 60); // another epoch, another order: about one in `count` falls on the same place
    assert_true(gang_data_permute(seed, 0, (int64_t)1 << 40, 12345) < (int64_t)1 << 40);
}

static void test_samples(void **state) {
    (void)state;
    enum { LENGTH = 7, TOKENS = 1003, WINDOWS = (TOKENS - 1) / LENGTH };
    char text[TOKENS];
    for (int i = 0; i < TOKENS; i++) text[i] = (char)(gang_random_at(seed, 6, (uint64_t)i) & 0xff);
    write_file(at("samples.txt"), text, sizeof text);
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    const struct gang_data_sizes sizes = {.segment_bytes = 100, .shard_tokens = 10};
    struct gang_data *data = open_data(one_source(&list, at("samples.txt")), t, sizes, NULL);
    for (uint64_t epoch = 0; epoch < 2; epoch++) {
        char seen[WINDOWS] = {0};
        for (uint64_t i = 0; i < WINDOWS; i++) {
            int32_t sample[LENGTH + 1], again[LENGTH + 1];
            gang_data_sample(data, 9, epoch * WINDOWS + i, LENGTH, sample);
            int64_t window = gang_data_permute(9, epoch, WINDOWS, (int64_t)i);
            assert_false(seen[window]);
            seen[window] = 1;
            for (int k = 0; k <= LENGTH; k++) assert_int_equal(sample[k], (uint8_t)text[window * LENGTH + k]);
            gang_data_sample(data, 10, i, LENGTH, again); // what else was asked for does not matter
            gang_data_sample(data, 9, epoch * WINDOWS + i, LENGTH, again);
            assert_memory_equal(sample, again, sizeof sample);
        }
    }
    assert_int_equal(gang_data_check(data, TOKENS - 1), GANG_OK);
    assert_int_equal(gang_data_check(data, TOKENS), GANG_ERR_INPUT);
    assert_non_null(strstr(gang_error(), "too few"));
    assert_int_equal(gang_data_check(data, 0), GANG_ERR_INPUT);
    gang_data_free(data);
    gang_tokenizer_free(t);
}

static void test_wide_tokens(void **state) {
    (void)state;
    write_file(at("wide.txt"), "ab", 2);
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("wide.txt"));
    for (int end = 65535; end <= 65536; end++) {
        options->end_token = end;
        struct gang_data *data = open_data(options, t, usual, NULL);
        expect_tokens(data, (int32_t[]){'a', 'b', end}, 3);
        gang_data_free(data);
    }
    gang_tokenizer_free(t);
}

static long mapped_kib(void) {
    char line[256];
    long kib = -1;
    FILE *file = fopen("/proc/self/status", "r");
    assert_non_null(file);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, "RssFile:", 8) == 0) {
            int64_t value;
            char *number = line + 8 + strspn(line + 8, " \t");
            number[strspn(number, "0123456789")] = 0;
            assert_int_equal(gang_parse_int("RssFile", number, 0, INT64_MAX, &value), GANG_OK);
            kib = (long)value;
        }
    fclose(file);
    return kib;
}

static void test_reading_does_not_count_as_memory(void **state) {
    (void)state;
    enum { BYTES = 24 << 20, LENGTH = 4096 };
    char *text = malloc(BYTES);
    memset(text, 'x', BYTES);
    write_file(at("large.txt"), text, BYTES);
    free(text);
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    long before = mapped_kib();
    const struct gang_data_sizes sizes = {.segment_bytes = 1 << 20, .shard_tokens = 1 << 30};
    struct gang_data *data = open_data(one_source(&list, at("large.txt")), t, sizes, NULL);
    assert_true(mapped_kib() - before < 4096); // opening reads the 48 MiB too
    int32_t *sample = malloc((LENGTH + 1) * sizeof *sample);
    for (uint64_t i = 0; i < BYTES / LENGTH - 1; i++) gang_data_sample(data, 1, i, LENGTH, sample);
    assert_true(mapped_kib() - before < 4096);
    free(sample);
    gang_data_free(data);
    gang_tokenizer_free(t);
}

// ---- Errors --------------------------------------------------------------------------------------------------------

static void test_bad_sources(void **state) {
    (void)state;
    struct source_list list;
    assert_int_equal(gang_mkdirs(at("nothing")), GANG_OK);
    expect_refused(one_source(&list, at("nothing")), GANG_ERR_INPUT, "the data set is empty: no file found");
    write_file(at("nothing/empty.txt"), "", 0);
    expect_refused(one_source(&list, at("nothing")), GANG_ERR_INPUT, "none of its 1 files holds any text");
    expect_refused(one_source(&list, at("missing.txt")), GANG_ERR_OS, "missing.txt: cannot look at it: No such file");
    expect_refused(one_source(&list, at("missing*.txt")), GANG_ERR_INPUT, "nothing matches");
    expect_refused(one_source(&list, "/dev/null"), GANG_ERR_INPUT, "neither a file nor a directory");
    struct gang_data_options *options = one_source(&list, at("nothing"));
    list.strings.count = 0;
    expect_refused(options, GANG_ERR_INPUT, "empty");
    write_file(at("sound.txt"), "text", 4);
    one_source(&list, at("sound.txt"))->cache_dir = "/proc/no/cache";
    expect_refused(&list.options, GANG_ERR_OS, "cannot make the directory");
}

static int failing_errno;
static const char *failing_name;
static int failing_open(const char *path, int flags, int mode) {
    if (!strstr(path, failing_name)) return gang_os_real.open(path, flags, mode);
    errno = failing_errno;
    return -1;
}

static int calls_until_failure;
static ssize_t failing_write(int fd, const void *data, size_t bytes) {
    if (calls_until_failure-- > 0) return gang_os_real.write(fd, data, bytes);
    errno = ENOSPC;
    return -1;
}
static ssize_t failing_pread(int fd, void *data, size_t bytes, off_t where) {
    if (calls_until_failure-- > 0) return gang_os_real.pread(fd, data, bytes, where);
    errno = EIO;
    return -1;
}

static void test_unreadable_file(void **state) {
    (void)state; // by the OS table, because root reads everything
    struct source_list list;
    write_file(at("secret.txt"), "text", 4);
    struct gang_os table = gang_os_real;
    table.open = failing_open;
    failing_name = "secret.txt";
    failing_errno = EACCES;
    gang_os = &table;
    expect_refused(one_source(&list, at("secret.txt")), GANG_ERR_OS, "secret.txt: cannot read: Permission denied");
    gang_os = &gang_os_real;
}

// Each read and each write fails once; the next try, on a sound disk, gives the right tokens.
static void test_failing_disk(void **state) {
    (void)state;
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("disk.txt"));
    const struct gang_data_sizes sizes = {.segment_bytes = 16, .shard_tokens = 16};
    write_file(at("disk.txt"), "forty bytes of text, cut in a few pieces", 40);
    for (int kind = 0; kind < 2; kind++) {
        int failures = 0;
        for (int after = 0;; after++) {
            assert_int_equal(gang_dir_remove(cache_dir), GANG_OK);
            struct gang_os table = gang_os_real;
            if (kind)
                table.write = failing_write;
            else
                table.pread = failing_pread;
            options->threads = 1;
            calls_until_failure = after;
            gang_os = &table;
            struct gang_data *data = NULL;
            enum gang_status status = gang_data_open_sized(options, t, sizes, &data);
            gang_os = &gang_os_real;
            gang_data_free(data);
            if (calls_until_failure >= 0) break; // it was never reached
            assert_int_equal(status, GANG_ERR_OS);
            failures++;
            data = open_data(options, t, sizes, NULL);
            assert_int_equal(gang_data_tokens(data), 40);
            gang_data_free(data);
        }
        assert_true(failures >= 4);
    }
    gang_tokenizer_free(t);
}

static bool stop_after(void *context, int64_t done, int64_t all) {
    assert_true(done <= all);
    return done < *(int64_t *)context;
}

static void test_stopped(void **state) {
    (void)state;
    char *text;
    size_t bytes = make_text(7, 100000, &text);
    write_file(at("stop.txt"), text, bytes);
    struct gang_tokenizer *t = open_bytes();
    struct source_list list;
    struct gang_data_options *options = one_source(&list, at("stop.txt"));
    int64_t limit = 50000;
    options->progress = stop_after;
    options->context = &limit;
    struct gang_data *data = NULL;
    const struct gang_data_sizes sizes = {.segment_bytes = 1000, .shard_tokens = 1 << 20};
    assert_int_equal(gang_data_open_sized(options, t, sizes, &data), GANG_ERR_STOPPED);
    assert_null(data);
    limit = INT64_MAX;
    data = open_data(options, t, sizes, NULL);
    assert_int_equal(gang_data_tokens(data), bytes);
    gang_data_free(data);
    gang_tokenizer_free(t);
    free(text);
}

static int set_up(void **state) {
    (void)state;
    const char *text = getenv("GANG_SEED");
    int64_t value = 11;
    if (text && gang_parse_int("GANG_SEED", text, 0, INT64_MAX, &value)) return -1;
    seed = (uint64_t)value;
    print_message("GANG_SEED=%lld\n", (long long)value);
    if (!mkdtemp(folder)) return -1;
    snprintf(text_dir, sizeof text_dir, "%s/text", folder);
    snprintf(cache_dir, sizeof cache_dir, "%s/cache", folder);
    return gang_mkdirs(text_dir) ? -1 : 0;
}

static int tear_down(void **state) {
    (void)state;
    return gang_dir_remove(folder) ? -1 : 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_threads_and_segments_change_nothing),
        cmocka_unit_test(test_a_line_without_end),
        cmocka_unit_test(test_sources_in_order),
        cmocka_unit_test(test_cache_inside_the_sources),
        cmocka_unit_test(test_rebuilt_when_something_changed),
        cmocka_unit_test(test_damage_is_never_used),
        cmocka_unit_test(test_fewer_shards_leave_none_behind),
        cmocka_unit_test(test_two_processes_build_at_once),
        cmocka_unit_test(test_permutation),
        cmocka_unit_test(test_samples),
        cmocka_unit_test(test_wide_tokens),
        cmocka_unit_test(test_reading_does_not_count_as_memory),
        cmocka_unit_test(test_bad_sources),
        cmocka_unit_test(test_unreadable_file),
        cmocka_unit_test(test_failing_disk),
        cmocka_unit_test(test_stopped),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
