// Saves while the system fails: at every call, with every errno that counts, with the disk full after any number of bytes,
// and with the process gone between any two calls. The save before is whole, and `latest` leads to it, whatever happens.
#include "../test.h"
#include "../scratch.h"
#include "tiny.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <omp.h>
#include <sys/stat.h>
#include <sys/wait.h>

// ---- A network to save ---------------------------------------------------------------------------------------------

static struct {
    struct gang_arena arena;
    struct gang_config config;
    struct gang_model model;
    struct gang_device *device;
    struct gang_net *net;
} tiny;

static int open_net(void **state) {
    if (tiny_open(state)) return -1;
    omp_set_num_threads(1); // children are forked, and OpenMP's threads do not come along
    gang_arena_init(&tiny.arena);
    assert_ok(gang_config_read(scratch_path("model.json"), &tiny.config));
    gang_model_init(&tiny.model, &tiny.config, &tiny.arena);
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = "cpu", .threads = 1}, &tiny.device));
    assert_ok(gang_net_new(&tiny.model, tiny.device, &(struct gang_net_shape){.batch = 1, .length = 4}, &tiny.net));
    return 0;
}

static int close_net(void **state) {
    gang_os = &gang_os_real;
    gang_net_free(tiny.net);
    gang_device_close(tiny.device);
    gang_arena_release(&tiny.arena);
    return scratch_close(state);
}

// Parameters and moments that tell their step apart from any other.
static void fill_net(int64_t step) {
    float *parts[] = {gang_net_parameters(tiny.net), gang_net_moments(tiny.net, 0), gang_net_moments(tiny.net, 1)};
    for (int p = 0; p < 3; p++) gang_model_randomise(&tiny.model, (uint64_t)(3 * step + p), parts[p]);
}

static enum gang_status write_step(const char *output, int64_t step, int keep) {
    char saved[512];
    struct gang_state state = {.step = step, .tokens = 64 * step, .seed = 5, .sequence_length = 16, .global_batch_tokens = 64, .data_tokens = 1000};
    fill_net(step);
    struct gang_st_part parts[GANG_SAVE_PARTS];
    gang_save_parts(tiny.net, parts);
    return gang_save_write(output, &state, &tiny.model, parts, NULL, keep, saved, sizeof saved);
}

// `latest` leads to a save that loads, bit for bit that of one of two steps. Returns which.
static int64_t load_latest(const char *output, int64_t either, int64_t or) {
    char dir[512];
    struct gang_state state;
    snprintf(dir, sizeof dir, "%s/latest", output);
    assert_ok(gang_save_state(dir, &state));
    assert_true(state.step == either || state.step == or);
    assert_int_equal(state.tokens, 64 * state.step);
    assert_ok(gang_save_load(dir, tiny.net, &tiny.model));
    size_t bytes = (size_t)tiny.model.elements * sizeof(float);
    float *parts[] = {gang_net_parameters(tiny.net), gang_net_moments(tiny.net, 0), gang_net_moments(tiny.net, 1)}, *want = malloc(bytes);
    for (int p = 0; p < 3; p++) {
        gang_model_randomise(&tiny.model, (uint64_t)(3 * state.step + p), want);
        if (memcmp(parts[p], want, bytes) != 0) fail_msg("%s: array %d is not that of step %lld", dir, p, (long long)state.step);
    }
    free(want);
    return state.step;
}

static int count_entries(const char *output, const char *ending) {
    int count = 0;
    DIR *dir = opendir(output);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir));) {
        size_t len = strlen(entry->d_name);
        count += len >= strlen(ending) && !strcmp(entry->d_name + len - strlen(ending), ending);
    }
    closedir(dir);
    return count;
}

// ---- A system that fails -------------------------------------------------------------------------------------------

static struct {
    int calls, fault_at, fault_errno;
    bool for_good;  // every later call fails too
    bool die;       // the process ends instead
    long long room; // bytes that still fit on the disk; -1: enough
} bad;

static bool faulty(void) {
    bad.calls++;
    bool now = bad.calls == bad.fault_at || (bad.for_good && bad.fault_at && bad.calls > bad.fault_at);
    if (now && bad.die) _exit(0);
    if (now) errno = bad.fault_errno;
    return now;
}

static int bad_open(const char *path, int flags, int mode) { return faulty() ? -1 : gang_os_real.open(path, flags, mode); }
// Processes die here, the machine does not: a real fsync would only take time.
static int no_fsync(int fd) {
    (void)fd;
    return 0;
}
static int bad_fsync(int fd) { return faulty() ? -1 : no_fsync(fd); }
static int bad_rename(const char *from, const char *to) { return faulty() ? -1 : gang_os_real.rename(from, to); }
static int bad_mkdir(const char *path, int mode) { return faulty() ? -1 : gang_os_real.mkdir(path, mode); }
static int bad_close(int fd) {
    bool fails = faulty();
    int result = gang_os_real.close(fd);
    if (fails) errno = bad.fault_errno;
    return fails ? -1 : result;
}
// Cleaning up is not what fails: even a full disk lets files go.
static int bad_unlink(const char *path) {
    if (bad.die) faulty();
    return gang_os_real.unlink(path);
}
static ssize_t bad_write(int fd, const void *data, size_t bytes) {
    if (faulty()) return -1;
    if (bad.room < 0) return gang_os_real.write(fd, data, bytes);
    if (!bad.room) {
        errno = ENOSPC;
        return -1;
    }
    size_t fits = (long long)bytes < bad.room ? bytes : (size_t)bad.room;
    bad.room -= (long long)fits;
    return gang_os_real.write(fd, data, fits);
}

static void break_system(int fault_at, int fault_errno, long long room) {
    static struct gang_os os;
    os = gang_os_real;
    os.open = bad_open, os.close = bad_close, os.write = bad_write, os.fsync = bad_fsync, os.rename = bad_rename, os.unlink = bad_unlink,
    os.mkdir = bad_mkdir;
    memset(&bad, 0, sizeof bad);
    bad.fault_at = fault_at, bad.fault_errno = fault_errno, bad.room = room;
    gang_os = &os;
}

static void mend_system(void) {
    static struct gang_os os;
    os = gang_os_real;
    os.fsync = no_fsync;
    gang_os = &os;
}

// A fresh output directory with the save of step 1.
static const char *fresh_output(char path[256]) {
    mend_system();
    snprintf(path, 256, "%s", scratch_path("output"));
    assert_ok(gang_dir_remove(path));
    assert_ok(gang_mkdirs(path));
    assert_ok(write_step(path, 1, 2));
    return path;
}

// ---- Tests ---------------------------------------------------------------------------------------------------------

static void test_saves_and_loads(void **state) {
    (void)state;
    char output[256];
    fresh_output(output);
    assert_int_equal(load_latest(output, 1, 1), 1);
    for (int64_t step = 2; step <= 5; step++) assert_ok(write_step(output, step, 2));
    assert_int_equal(load_latest(output, 5, 5), 5);
    assert_int_equal(count_entries(output, "00000005") + count_entries(output, "00000004"), 2);
    assert_int_equal(count_entries(output, "00000003"), 0);
    assert_int_equal(count_entries(output, ".tmp"), 0);
}

// Every call of a save fails once, alone or with all that follow; then the next save must succeed.
static void each_call_fails(bool for_good, int error) {
    char output[256];
    int failures = 0;
    for (int at = 1;; at++) {
        fresh_output(output);
        break_system(at, error, -1);
        bad.for_good = for_good;
        enum gang_status status = write_step(output, 2, 2);
        bool reached = bad.calls >= at;
        mend_system();
        if (status) {
            failures++;
            assert_int_equal(status, GANG_ERR_OS);
            if (*gang_error() != '/' || !strstr(gang_error(), strerror(error))) fail_msg("call %d: the message is '%s'", at, gang_error());
        }
        // What is told is what is: success is the new save, an error may come too late to take it back.
        int64_t step = load_latest(output, 1, 2);
        assert_true(status || step == 2);
        assert_int_equal(count_entries(output, ".tmp"), 0);
        assert_ok(write_step(output, 3, 2));
        assert_int_equal(load_latest(output, 3, 3), 3);
        if (!reached) break;
    }
    assert_in_range(failures, 25, 200);
}

static void test_each_call_fails_once(void **state) {
    (void)state;
    each_call_fails(false, EIO);
    each_call_fails(false, ENOSPC);
}

static void test_each_call_fails_for_good(void **state) {
    (void)state;
    each_call_fails(true, EIO);
}

static long long bytes_of_save(void) {
    const long long plenty = 1LL << 40;
    char output[256];
    fresh_output(output);
    break_system(0, 0, plenty);
    enum gang_status status = write_step(output, 2, 2);
    long long used = plenty - bad.room;
    mend_system();
    assert_ok(status);
    return used;
}

static void test_full_disk(void **state) {
    (void)state;
    char output[256];
    long long whole = bytes_of_save();
    assert_true(whole > 3 * 4 * tiny.model.parameters);
    fresh_output(output);
    // Every length near both ends, steps of a prime between.
    for (long long room = 0; room < whole; room += room < 20 || room > whole - 20 ? 1 : 997) {
        break_system(0, 0, room);
        enum gang_status status = write_step(output, 2, 2);
        mend_system();
        assert_fails(GANG_ERR_OS, "No space left on device", status);
        assert_int_equal(count_entries(output, ".tmp"), 0);
        load_latest(output, 1, 1);
    }
    break_system(0, 0, whole);
    enum gang_status status = write_step(output, 2, 2);
    mend_system();
    assert_ok(status);
    load_latest(output, 2, 2);
}

// The process is gone at its call number `at`. Returns false when it had fewer calls and ended by itself.
static bool crash_at(const char *output, int64_t step, int at) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        break_system(at, 0, -1);
        bad.die = true;
        _exit(write_step(output, step, 1) ? 2 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) < 2);
    return WEXITSTATUS(status) == 0;
}

static void test_crash_between_any_two_calls(void **state) {
    (void)state;
    char output[256];
    int at = 1;
    for (bool crashed = true; crashed; at++) {
        fresh_output(output);
        crashed = crash_at(output, 2, at);
        int64_t step = load_latest(output, 1, 2);
        assert_true(crashed || step == 2);
        // The run goes on from there, and another step than the one cut off sweeps up what it left.
        assert_ok(write_step(output, 3, 2));
        assert_int_equal(load_latest(output, 3, 3), 3);
        assert_int_equal(count_entries(output, ".tmp"), 0);
    }
    assert_in_range(at, 25, 200);
}

// A save that failed as late as can be, when `latest` was turned already, is tried again; and that crashes.
static void test_crash_while_saving_a_step_again(void **state) {
    (void)state;
    char output[256];
    fresh_output(output);
    for (int at = 1; crash_at(output, 1, at); at++) load_latest(output, 1, 1);
    load_latest(output, 1, 1);
}

static void test_state_is_checked(void **state) {
    (void)state;
    struct gang_state saved;
    char output[256], dir[300];
    fresh_output(output);
    snprintf(dir, sizeof dir, "%s/latest", output);
    scratch_text("output/latest/state.json", "{\"step\": 1, \"tokens\": -3}");
    assert_fails(GANG_ERR_FORMAT, "state.json: tokens: expected a whole number", gang_save_state(dir, &saved));
    scratch_text("output/latest/state.json", "{\"step\": 1.5}");
    assert_fails(GANG_ERR_FORMAT, "state.json: step: expected a whole number", gang_save_state(dir, &saved));
    scratch_text("output/latest/state.json", "{");
    assert_fails(GANG_ERR_FORMAT, "state.json", gang_save_state(dir, &saved));
    assert_int_equal(truncate(scratch_path("output/latest/optimizer.safetensors"), 2000), 0);
    assert_fails(GANG_ERR_FORMAT, "optimizer.safetensors", gang_save_load(dir, tiny.net, &tiny.model));
    assert_int_equal(unlink(scratch_path("output/latest/model.safetensors")), 0);
    assert_fails(GANG_ERR_OS, "model.safetensors", gang_save_load(dir, tiny.net, &tiny.model));
}

static void test_resolve(void **state) {
    (void)state;
    struct gang_arena arena;
    char output[256], *dir;
    gang_arena_init(&arena);
    fresh_output(output);
    assert_ok(gang_save_resolve(output, &arena, &dir));
    assert_string_equal(dir, scratch_path("output/latest"));
    assert_ok(gang_save_resolve(scratch_path("output/step-00000001"), &arena, &dir));
    assert_string_equal(dir, scratch_path("output/step-00000001"));
    assert_fails(GANG_ERR_INPUT, "neither a model directory", gang_save_resolve(scratch_path("absent"), &arena, &dir));
    assert_fails(GANG_ERR_INPUT, "neither a model directory", gang_save_resolve(scratch_path("model.json"), &arena, &dir));
    gang_arena_release(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_saves_and_loads),
        cmocka_unit_test(test_each_call_fails_once),
        cmocka_unit_test(test_each_call_fails_for_good),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_crash_between_any_two_calls),
        cmocka_unit_test(test_crash_while_saving_a_step_again),
        cmocka_unit_test(test_state_is_checked),
        cmocka_unit_test(test_resolve),
    };
    return cmocka_run_group_tests_name("save", tests, open_net, close_net);
}
