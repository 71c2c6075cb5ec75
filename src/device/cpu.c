// The CPU device: which compilation of the kernels serves here, and the peak loop that tells what it could do at best.
#include "device/cpu.h"

#include <sched.h>
#include <string.h>

#define DECLARE(variant)                                          \
    extern const struct gang_kernels gang_cpu_table_##variant;    \
    extern gang_cpu_row_kernel gang_cpu_linear_row_##variant;     \
    extern gang_cpu_multiply_kernel gang_cpu_multiply_##variant;  \
    extern gang_cpu_pack_kernel gang_cpu_pack_weight_##variant;   \
    extern gang_cpu_round_kernel gang_cpu_round_weight_##variant; \
    double gang_cpu_peak_##variant(int64_t rounds);
#define VARIANT(variant)                                                                                                       \
    {                                                                                                                          \
        &gang_cpu_table_##variant, gang_cpu_linear_row_##variant, gang_cpu_multiply_##variant, gang_cpu_pack_weight_##variant, \
            gang_cpu_round_weight_##variant, gang_cpu_peak_##variant                                                           \
    }
#define ISA(isa, pairs)                                          \
    {                                                            \
#isa, pairs, { VARIANT(isa##_f32), VARIANT(isa##_bf16) } \
    }

DECLARE(generic_f32)
DECLARE(generic_bf16)
#ifdef __x86_64__
DECLARE(avx2_f32)
DECLARE(avx2_bf16)
DECLARE(avx512_f32)
DECLARE(avx512_bf16)
DECLARE(avx512bf16_f32)
DECLARE(avx512bf16_bf16)
#endif

// From the best down.
static const struct gang_cpu_isa isas[] = {
#ifdef __x86_64__
    ISA(avx512bf16, true),
    ISA(avx512, false),
    ISA(avx2, false),
#endif
    ISA(generic, false),
};

static bool supported(const char *name) {
#ifdef __x86_64__
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
    if (!strcmp(name, "avx2")) return avx2;
    if (!strcmp(name, "avx512")) return avx512;
    if (!strcmp(name, "avx512bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
    return !strcmp(name, "generic");
}

const struct gang_cpu_isa *gang_cpu_isa_find(const char *name) {
    for (size_t i = 0; i < sizeof isas / sizeof *isas; i++)
        if ((!name || !strcmp(name, isas[i].name)) && supported(isas[i].name)) return &isas[i];
    return NULL;
}

size_t gang_cpu_attention_bytes(const struct gang_attention *shape) {
    const size_t block = GANG_CPU_ATTENTION_BLOCK;
    size_t blocks = ((size_t)shape->length + block - 1) / block, panel = block * (((size_t)shape->dim + 15) / 16 * 16);
    return (5 * blocks * panel + 6 * panel + 5 * block * block) * sizeof(float);
}

int gang_cpu_count(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? 1 : CPU_COUNT(&set);
}

int gang_cpu_at(int index) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) return -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set) && !index--) return cpu;
    return -1;
}

bool gang_cpu_has_bf16(void) { return gang_cpu_isa_find(NULL)->bf16_pairs; }

enum gang_status gang_cpu_open(struct gang_device *device, const char *instructions) {
    const struct gang_cpu_isa *isa = gang_cpu_isa_find(instructions);
    if (!isa)
        return gang_fail(GANG_ERR_UNSUPPORTED,
                         "cpu device: instruction set '%s' is not known or not on this processor: expected one of%s%s%s generic", instructions,
                         supported("avx512bf16") ? " avx512bf16" : "", supported("avx512") ? " avx512" : "", supported("avx2") ? " avx2" : "");
    device->k = isa->variants[device->compute].kernels;
    device->name = isa->name;
    enum gang_status status = gang_cpu_linear_open(device, isa);
    if (status) gang_cpu_linear_close(device);
    return status;
}

void gang_cpu_close(struct gang_device *device) { gang_cpu_linear_close(device); }
