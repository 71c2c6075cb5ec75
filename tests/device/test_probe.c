// The machine's profile: written and read, refused when damaged, measured anew when it does not fit.
#include "../test.h"
#include "../scratch.h"
#include "device/device.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct gang_profile sample(void) {
    return (struct gang_profile){.device = "A \"quoted\" processor",
                                 .instructions = "avx512",
                                 .cores = 6,
                                 .threads = 3,
                                 .memory_bytes = 17179869184,
                                 .l1_bytes = 32768,
                                 .l2_bytes = 1048576,
                                 .l3_bytes = 0,
                                 .peak_f32 = 1.25e11,
                                 .peak_bf16 = 2.5e11,
                                 .sustained_f32 = 1e11,
                                 .sustained_bf16 = 2e11,
                                 .read_bytes_per_s = 3e10,
                                 .triad_bytes_per_s = 2e10,
                                 .seconds = 1.5};
}

static void test_round_trip(void **state) {
    (void)state;
    struct gang_profile written = sample(), read;
    const char *path = scratch_path("profile.json");
    assert_ok(gang_profile_write(&written, path));
    assert_ok(gang_profile_read(path, &read));
    char *a = gang_profile_json(&written), *b = gang_profile_json(&read);
    assert_string_equal(a, b);
    free(a);
    free(b);
    // Sizes are exact.
    assert_true(read.memory_bytes == written.memory_bytes && read.l2_bytes == written.l2_bytes && read.peak_f32 == written.peak_f32);
    assert_string_equal(read.device, written.device);
    assert_int_equal(read.cores, 6);
    assert_int_equal(read.threads, 3);
}

// Replaces `from` by `to` in the text of a written profile, and reads the result.
static void refuse(const char *from, const char *to, const char *words) {
    struct gang_profile profile = sample();
    struct gang_buffer text = {0};
    char *whole = gang_profile_json(&profile), *at = strstr(whole, from);
    if (!at) fail_msg("no '%s' in %s", from, whole);
    gang_buffer_printf(&text, "%.*s%s%s", (int)(at - whole), whole, to, at + strlen(from));
    enum gang_status status = gang_profile_read(scratch_text("damaged.json", text.data), &profile);
    if (!status || !strstr(gang_error(), words) || !strstr(gang_error(), "damaged.json"))
        fail_msg("'%s' for '%s': status %d, '%s'; expected '%s'", to, from, status, gang_error(), words);
    gang_buffer_release(&text);
    free(whole);
}

static void test_damage_is_refused(void **state) {
    (void)state;
    refuse("\"version\": 1", "\"version\": 2", "version: expected 1: measure again with 'gangline probe'");
    refuse("\"version\": 1,", "", "version: expected 1");
    refuse("\"avx512\"", "512", "device and instructions: expected text");
    refuse("\"peak_f32\": 125000000000.0", "\"peak_f32\": \"fast\"", "peak_f32: expected a number");
    refuse("\"peak_f32\": 125000000000.0", "\"peak_f32\": 0", "peak_f32: expected a number above 0");
    refuse("\"peak_f32\": 125000000000.0", "\"peak_f32\": -1", "peak_f32: expected a number");
    refuse("\"l2_bytes\"", "\"l4_bytes\"", "l2_bytes: expected a number");
    refuse("\"cores\": 6", "\"cores\": \"six\"", "cores: expected a whole number");
    refuse("\"threads\": 3", "\"threads\": 4294967299", "threads: expected a whole number");
    refuse("}", "", "damaged.json:");
    struct gang_profile profile;
    assert_fails(GANG_ERR_FORMAT, "empty.json", gang_profile_read(scratch_text("empty.json", ""), &profile));
    assert_fails(GANG_ERR_FORMAT, "version", gang_profile_read(scratch_text("list.json", "[1]"), &profile));
    assert_fails(GANG_ERR_OS, "absent.json", gang_profile_read(scratch_path("absent.json"), &profile));
}

// The kept profile with another peak and processor, as the file of this machine.
static void keep(const struct gang_profile *profile, double peak, const char *device) {
    struct gang_profile other = *profile;
    other.peak_f32 = peak;
    if (device) snprintf(other.device, sizeof other.device, "%s", device);
    assert_ok(gang_profile_write(&other, scratch_path("gangline/profile-1.json")));
}

static void test_kept_while_it_fits(void **state) {
    (void)state;
    struct gang_profile first, second;
    setenv("XDG_CACHE_HOME", scratch_dir, 1);
    assert_ok(gang_profile_here(1, &first));
    assert_int_equal(first.threads, 1);
    assert_true(first.cores >= 1 && first.memory_bytes > 1e6 && *first.device && *first.instructions);
    assert_true(first.peak_f32 > 1e8 && first.sustained_f32 > 1e7 && first.read_bytes_per_s > 1e7 && first.triad_bytes_per_s > 1e7);
    // A figure that no measurement gives shows that the file is what was read.
    keep(&first, 12345, NULL);
    assert_ok(gang_profile_here(1, &second));
    assert_true(second.peak_f32 == 12345);
    // Of another processor, and cut off: neither is used, and a good one takes its place.
    keep(&first, 12345, "Another processor");
    assert_ok(gang_profile_here(1, &second));
    assert_true(second.peak_f32 > 1e8);
    assert_ok(gang_profile_read(scratch_path("gangline/profile-1.json"), &second));
    assert_string_equal(second.device, first.device);
    assert_int_equal(truncate(scratch_path("gangline/profile-1.json"), 100), 0);
    assert_ok(gang_profile_here(1, &second));
    assert_true(second.peak_f32 > 1e8);
    assert_ok(gang_profile_read(scratch_path("gangline/profile-1.json"), &second));
}

static void test_kernel_number(void **state) {
    (void)state;
    const char *path = scratch_text("meminfo", "MemTotal:   100 kB\nMemAvailable:\t 42 kB\nHuge: none\n");
    assert_true(gang_kernel_number(path, "MemAvailable") == 42);
    assert_true(gang_kernel_number(path, "MemTotal") == 100);
    assert_true(gang_kernel_number(path, "Huge") == -1);
    assert_true(gang_kernel_number(path, "Absent") == -1);
    assert_true(gang_kernel_number(scratch_path("absent"), "") == -1);
    assert_true(gang_kernel_number(scratch_text("max", "max\n"), "") == -1);
    assert_true(gang_kernel_number(scratch_text("max", "8589934592\n"), "") == 8589934592.0);
    assert_true(gang_memory_available() > 1e6);
}

// In a process of its own, whose status says whether what it sees is below the limit that is set there.
static void expect_limited(bool (*set)(double limit), double limit) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        if (!set(limit)) _exit(77);
        double available = gang_memory_available();
        _exit(available > 0 && available <= limit ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WEXITSTATUS(status) == 77) skip();
    assert_int_equal(status, 0);
}

static bool limit_addresses(double limit) {
    double mapped = gang_kernel_number("/proc/self/status", "VmSize") * 1024;
    rlim_t most = (rlim_t)(mapped + limit);
    return setrlimit(RLIMIT_AS, &(struct rlimit){most, most}) == 0;
}

static bool put(const char *dir, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "w");
    bool good = file && fputs(text, file) >= 0;
    return file && fclose(file) == 0 && good;
}

static char group[200];
static const char *const limit_files[] = {"memory.limit_in_bytes", "memory.max"};

// The process's group is one inside that which has the limit, as Slurm's steps and tasks are.
static bool enter_group(double limit) {
    char text[32], inner[220];
    snprintf(text, sizeof text, "%.0f", limit);
    snprintf(inner, sizeof inner, "%s/task", group);
    bool limited = put(group, limit_files[0], text) || put(group, limit_files[1], text);
    return limited && mkdir(inner, 0755) == 0 && put(inner, "cgroup.procs", "0");
}

static void test_memory_under_limits(void **state) {
    (void)state;
    const double limit = 256 << 20;
    assert_true(gang_memory_available() > 0);
    if (!getenv("GANG_SANITIZED")) expect_limited(limit_addresses, limit); // a sanitizer maps more than there is
    const char *root = access("/sys/fs/cgroup/memory/cgroup.procs", F_OK) ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory";
    snprintf(group, sizeof group, "%s/gangline-test-%d", root, (int)getpid());
    if (mkdir(group, 0755)) skip();
    expect_limited(enter_group, limit);
}

static int leave_groups(void **state) {
    char inner[220];
    (void)state;
    snprintf(inner, sizeof inner, "%s/task", group);
    rmdir(inner);
    rmdir(group);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_damage_is_refused),
        cmocka_unit_test(test_kept_while_it_fits),
        cmocka_unit_test(test_kernel_number),
        cmocka_unit_test_teardown(test_memory_under_limits, leave_groups),
    };
    return cmocka_run_group_tests_name("probe", tests, scratch_open, scratch_close);
}
