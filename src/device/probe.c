// What this machine is worth: peak and sustained FLOP/s per type, memory bandwidth, caches. Every figure is the best of
// several short rounds: disturbances only ever slow a round down.
#include "device/cpu.h"

#include <assert.h>
#include <hwloc.h>
#include <jansson.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum { MAX_PROFILE_BYTES = 1 << 20, PROFILE_VERSION = 1 };

// ---- Memory that may be used ---------------------------------------------------------------------------------------

double gang_kernel_number(const char *path, const char *key) {
    char line[256];
    double value = -1;
    FILE *file = fopen(path, "re");
    while (file && value < 0 && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, strlen(key)) != 0) continue;
        char *from = line + strlen(key) + strspn(line + strlen(key), " \t:"), digits[32];
        snprintf(digits, sizeof digits, "%.*s", (int)strspn(from, "0123456789"), from);
        int64_t number;
        if (*digits && !gang_parse_int(path, digits, 0, INT64_MAX, &number)) value = (double)number;
    }
    if (file) fclose(file);
    return value;
}

void gang_processor_name(char *out, size_t bytes) {
    static const char key[] = "model name";
    char line[256];
    FILE *file = fopen("/proc/cpuinfo", "re");
    snprintf(out, bytes, "cpu");
    while (file && fgets(line, sizeof line, file)) {
        if (strncmp(line, key, sizeof key - 1) != 0) continue;
        const char *from = line + strcspn(line, ":");
        from += strspn(from, ": ");
        snprintf(out, bytes, "%.*s", (int)strcspn(from, "\n"), from);
        break;
    }
    if (file) fclose(file);
}

// The files of a cgroup's memory, by version.
struct memory_files {
    const char *root, *limit, *used, *idle; // idle: the field of memory.stat that counts what is given up at once
};
static const struct memory_files memory_v1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"};
static const struct memory_files memory_v2 = {"/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"};

static double number_in(const char *dir, const char *name, const char *key) {
    char path[2048];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return gang_kernel_number(path, key);
}

// What a cgroup and those around it leave. `path` is the kernel's, which in a container may mean nothing: then its root counts.
static double cgroup_leaves(double available, const struct memory_files *files, const char *path) {
    char dir[1536];
    snprintf(dir, sizeof dir, "%s%s", files->root, path);
    for (char *end = dir + strlen(dir); end; end = strrchr(dir, '/')) {
        *end = 0; // each in turn, from the inside
        if (strlen(dir) < strlen(files->root)) break;
        double limit = number_in(dir, files->limit, ""), used = number_in(dir, files->used, "") - fmax(0, number_in(dir, "memory.stat", files->idle));
        if (limit >= 0 && limit - used < available) available = fmax(0, limit - used);
    }
    return available;
}

double gang_memory_available(void) {
    static const char name_v1[] = ":memory:", name_v2[] = "0::";
    char line[1024];
    double available = gang_kernel_number("/proc/meminfo", "MemAvailable") * 1024, mapped = gang_kernel_number("/proc/self/status", "VmSize") * 1024;
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY) available = fmin(available, fmax(0, (double)limit.rlim_cur - mapped));
    FILE *file = fopen("/proc/self/cgroup", "re");
    while (file && fgets(line, sizeof line, file)) {
        const char *v1 = strstr(line, name_v1);
        line[strcspn(line, "\n")] = 0;
        if (v1) available = cgroup_leaves(available, &memory_v1, v1 + sizeof name_v1 - 1);
        if (!strncmp(line, name_v2, sizeof name_v2 - 1)) available = cgroup_leaves(available, &memory_v2, line + sizeof name_v2 - 1);
    }
    if (file) fclose(file);
    return available;
}

// ---- Measuring -----------------------------------------------------------------------------------------------------

static double peak_once(const struct gang_cpu_variant *variant, int threads, int64_t rounds) {
    double flop = 0, began = gang_seconds();
#pragma omp parallel num_threads(threads) reduction(+ : flop)
    flop += variant->peak(rounds);
    return flop / (gang_seconds() - began);
}

static double peak(const struct gang_cpu_variant *variant, int threads) {
    enum { ROUNDS = 20, START = 1 << 20 };
    double best = peak_once(variant, threads, START);
    // About 25 ms a round, by what the first one showed; a lane does at least 2 FLOP a multiply-add.
    int64_t rounds = (int64_t)(best * 0.025 / threads / variant->peak(1));
    for (int i = 0; i < ROUNDS; i++) {
        double now = peak_once(variant, threads, rounds);
        best = now > best ? now : best;
    }
    return best;
}

// The three products of a linear layer of a mid-sized transformer, as training does them.
static enum gang_status sustained(enum gang_compute compute, int threads, double *out) {
    enum { M = 1024, IN = 1024, OUT = 2816, ROUNDS = 6 };
    struct gang_device *device;
    enum gang_status status = gang_device_open(&(struct gang_device_options){.kind = "cpu", .compute = compute, .threads = threads}, &device);
    if (status) return status;
    struct gang_arena arena;
    gang_arena_init(&arena);
    float *weight = gang_arena_alloc(&arena, sizeof(float) * OUT * IN), *gradient = gang_arena_alloc(&arena, sizeof(float) * OUT * IN);
    void *x = gang_arena_alloc(&arena, sizeof(float) * M * IN), *y = gang_arena_alloc(&arena, sizeof(float) * M * OUT);
    void *packed = gang_arena_alloc(&arena, device->k->linear_bytes(device, GANG_LINEAR_TRAIN, OUT, IN) + 64);
    packed = (char *)packed + (64 - (uintptr_t)packed % 64) % 64;
    struct gang_linear *linear = device->k->linear_new(device, GANG_LINEAR_TRAIN, OUT, IN, packed, &arena);
    device->k->linear_refresh(device, linear, weight);
    double best = 0;
    for (int i = 0; i < ROUNDS; i++) {
        double began = gang_seconds();
        device->k->linear(device, linear, y, false, x, M);
        device->k->linear_input(device, linear, x, y, M);
        device->k->linear_weight(device, linear, gradient, y, x, false, M);
        double now = 3 * 2.0 * M * IN * OUT / (gang_seconds() - began);
        best = now > best ? now : best;
    }
    *out = best;
    gang_arena_release(&arena);
    gang_device_close(device);
    return GANG_OK;
}

// Bytes/s of reading one array and of a[i] = b[i] + s c[i] (counted as three arrays), each far larger than any cache.
static enum gang_status bandwidth(int threads, double cache_bytes, double *read_rate, double *triad_rate) {
    enum { ROUNDS = 5, LINE = 16, AHEAD = 64 };                     // floats of a cache line, lines fetched ahead
    int64_t n = (int64_t)(cache_bytes > 32e6 ? cache_bytes : 32e6); // floats: four times the last cache
    void *block;
    enum gang_status status = gang_big_alloc((size_t)n * 3 * sizeof(float), &block);
    if (status) return status;
    float *a = block, *b = a + n, *c = b + n, sink = 0;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) a[i] = b[i] = c[i] = 1;
    *read_rate = *triad_rate = 0;
    for (int round = 0; round < ROUNDS; round++) {
        double began = gang_seconds();
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : sink)
        for (int64_t i = 0; i < n / LINE; i++) {
            __builtin_prefetch(a + (i + AHEAD) * LINE);
#pragma omp simd reduction(+ : sink)
            for (int64_t j = i * LINE; j < (i + 1) * LINE; j++) sink += a[j];
        }
        double rate = (double)n * sizeof(float) / (gang_seconds() - began);
        *read_rate = rate > *read_rate ? rate : *read_rate;
        began = gang_seconds();
#pragma omp parallel for simd schedule(static) num_threads(threads)
        for (int64_t i = 0; i < n; i++) a[i] = b[i] + 0.5f * c[i];
        rate = 3 * (double)n * sizeof(float) / (gang_seconds() - began);
        *triad_rate = rate > *triad_rate ? rate : *triad_rate;
    }
    assert(sink > 0); // and so the reads are not left out
    gang_big_free(block, (size_t)n * 3 * sizeof(float));
    return GANG_OK;
}

static double cache_bytes(hwloc_topology_t topology, int level) {
    hwloc_obj_t object = NULL;
    int depth = hwloc_get_cache_type_depth(topology, (unsigned)level, HWLOC_OBJ_CACHE_UNIFIED);
    if (depth < 0) depth = hwloc_get_cache_type_depth(topology, (unsigned)level, HWLOC_OBJ_CACHE_DATA);
    if (depth >= 0) object = hwloc_get_obj_by_depth(topology, depth, 0);
    return object ? (double)object->attr->cache.size : 0;
}

static void describe(struct gang_profile *p) {
    p->memory_bytes = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    hwloc_topology_t topology;
    if (hwloc_topology_init(&topology)) return;
    if (!hwloc_topology_load(topology)) {
        hwloc_obj_t package = hwloc_get_obj_by_type(topology, HWLOC_OBJ_PACKAGE, 0);
        const char *model = package ? hwloc_obj_get_info_by_name(package, "CPUModel") : NULL;
        snprintf(p->device, sizeof p->device, "%s", model ? model : "CPU");
        p->cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
        p->l1_bytes = cache_bytes(topology, 1);
        p->l2_bytes = cache_bytes(topology, 2);
        p->l3_bytes = cache_bytes(topology, 3);
    }
    hwloc_topology_destroy(topology);
}

enum gang_status gang_profile_measure(int threads, struct gang_profile *out) {
    const struct gang_cpu_isa *isa = gang_cpu_isa_find(NULL);
    double began = gang_seconds();
    *out = (struct gang_profile){.threads = threads ? threads : gang_cpu_count()};
    describe(out);
    snprintf(out->instructions, sizeof out->instructions, "%s", isa->name);
    out->peak_f32 = peak(&isa->variants[GANG_COMPUTE_F32], out->threads);
    enum gang_status status = sustained(GANG_COMPUTE_F32, out->threads, &out->sustained_f32);
    if (!status && !sustained(GANG_COMPUTE_BF16, out->threads, &out->sustained_bf16)) {
        // Without an instruction for pairs of bf16 the f32 multiply-adds do the work, and their peak bounds it.
        out->peak_bf16 = isa->bf16_pairs ? peak(&isa->variants[GANG_COMPUTE_BF16], out->threads) : out->peak_f32;
    }
    if (!status) status = bandwidth(out->threads, out->l3_bytes, &out->read_bytes_per_s, &out->triad_bytes_per_s);
    out->seconds = gang_seconds() - began;
    return status;
}

// ---- Keeping -------------------------------------------------------------------------------------------------------

struct profile_field {
    const char *name;
    size_t offset;
};

// Sizes in bytes, rates in FLOP/s and bytes/s.
static const struct profile_field numbers[] = {
    {"memory_bytes", offsetof(struct gang_profile, memory_bytes)},
    {"l1_bytes", offsetof(struct gang_profile, l1_bytes)},
    {"l2_bytes", offsetof(struct gang_profile, l2_bytes)},
    {"l3_bytes", offsetof(struct gang_profile, l3_bytes)},
    {"peak_f32", offsetof(struct gang_profile, peak_f32)},
    {"peak_bf16", offsetof(struct gang_profile, peak_bf16)},
    {"sustained_f32", offsetof(struct gang_profile, sustained_f32)},
    {"sustained_bf16", offsetof(struct gang_profile, sustained_bf16)},
    {"read_bytes_per_s", offsetof(struct gang_profile, read_bytes_per_s)},
    {"triad_bytes_per_s", offsetof(struct gang_profile, triad_bytes_per_s)},
    {"seconds", offsetof(struct gang_profile, seconds)},
};
enum { NUMBERS = sizeof numbers / sizeof *numbers };

char *gang_profile_json(const struct gang_profile *p) {
    json_t *root = json_pack("{s:i, s:s, s:s, s:s, s:i, s:i}", "version", PROFILE_VERSION, "provenance", "measured", "device", p->device,
                             "instructions", p->instructions, "cores", p->cores, "threads", p->threads);
    assert(root && "out of memory");
    for (int i = 0; i < NUMBERS; i++) json_object_set_new(root, numbers[i].name, json_real(*(const double *)((const char *)p + numbers[i].offset)));
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(15));
    json_decref(root);
    assert(text && "out of memory");
    return text;
}

enum gang_status gang_profile_write(const struct gang_profile *p, const char *path) {
    struct gang_buffer line = {0};
    char *text = gang_profile_json(p);
    gang_buffer_printf(&line, "%s\n", text);
    free(text);
    enum gang_status status = gang_file_publish(path, line.data, line.len);
    gang_buffer_release(&line);
    return status;
}

static enum gang_status read_count(const char *path, const json_t *root, const char *name, int *out) {
    const json_t *value = json_object_get(root, name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > INT32_MAX)
        return gang_fail(GANG_ERR_FORMAT, "%s: %s: expected a whole number of at least 0", path, name);
    *out = (int)json_integer_value(value);
    return GANG_OK;
}

static enum gang_status profile_parse(const char *path, const json_t *root, struct gang_profile *out) {
    *out = (struct gang_profile){0};
    if (json_integer_value(json_object_get(root, "version")) != PROFILE_VERSION)
        return gang_fail(GANG_ERR_FORMAT, "%s: version: expected %d: measure again with 'gangline probe'", path, PROFILE_VERSION);
    const char *device = json_string_value(json_object_get(root, "device")), *instructions = json_string_value(json_object_get(root, "instructions"));
    if (!device || !instructions) return gang_fail(GANG_ERR_FORMAT, "%s: device and instructions: expected text", path);
    snprintf(out->device, sizeof out->device, "%s", device);
    snprintf(out->instructions, sizeof out->instructions, "%s", instructions);
    enum gang_status status = read_count(path, root, "cores", &out->cores);
    if (!status) status = read_count(path, root, "threads", &out->threads);
    if (status) return status;
    for (int i = 0; i < NUMBERS; i++) {
        const json_t *value = json_object_get(root, numbers[i].name);
        if (!json_is_number(value) || json_number_value(value) < 0)
            return gang_fail(GANG_ERR_FORMAT, "%s: %s: expected a number of at least 0", path, numbers[i].name);
        *(double *)((char *)out + numbers[i].offset) = json_number_value(value);
    }
    if (out->peak_f32 > 0) return GANG_OK;
    return gang_fail(GANG_ERR_FORMAT, "%s: peak_f32: expected a number above 0", path);
}

enum gang_status gang_profile_read(const char *path, struct gang_profile *out) {
    json_t *root = NULL;
    enum gang_status status = gang_json_read(path, MAX_PROFILE_BYTES, &root);
    if (!status) status = profile_parse(path, root, out);
    json_decref(root);
    return status;
}

enum gang_status gang_profile_here(int threads, struct gang_profile *out) {
    struct gang_profile here = {0};
    describe(&here);
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    struct gang_buffer dir = {0}, path = {0};
    gang_buffer_printf(&dir, "%s%s/gangline", cache && *cache ? cache : home ? home : "/tmp", cache && *cache ? "" : "/.cache");
    gang_buffer_printf(&path, "%s/profile-%d.json", dir.data, threads);
    enum gang_status status = gang_profile_read(path.data, out);
    bool fits = !status && out->threads == threads && !strcmp(out->device, here.device) && !strcmp(out->instructions, gang_cpu_isa_find(NULL)->name);
    if (!fits) {
        status = gang_profile_measure(threads, out);
        // Keeping it saves the next run some seconds, no more: a home that cannot be written to is no error.
        if (!status && (gang_mkdirs(dir.data) || gang_profile_write(out, path.data)))
            gang_log(GANG_LOG_WARNING, "the profile is not kept: %s", gang_error());
    }
    gang_buffer_release(&dir);
    gang_buffer_release(&path);
    return status;
}
