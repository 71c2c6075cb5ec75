// gangline probe: measure this machine.
#include "cmd/cmd.h"
#include "device/device.h"

#include <stdio.h>
#include <stdlib.h>

static void print_profile(const struct gang_profile *p) {
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES], c[GANG_HUMAN_BYTES], d[GANG_HUMAN_BYTES];
    printf("%s, %d threads, %s\n", p->device, p->threads, p->instructions);
    printf("  f32   peak %7.1f GFLOP/s, matrix products %7.1f (%.0f %%)\n", p->peak_f32 / 1e9, p->sustained_f32 / 1e9,
           100 * p->sustained_f32 / p->peak_f32);
    if (p->peak_bf16 > 0)
        printf("  bf16  peak %7.1f GFLOP/s, matrix products %7.1f (%.0f %%)\n", p->peak_bf16 / 1e9, p->sustained_bf16 / 1e9,
               100 * p->sustained_bf16 / p->peak_bf16);
    printf("  memory %s, read %.1f GB/s, triad %.1f GB/s\n", gang_human_bytes(p->memory_bytes, a), p->read_bytes_per_s / 1e9,
           p->triad_bytes_per_s / 1e9);
    printf("  caches %s, %s, %s; %d cores\n", gang_human_bytes(p->l1_bytes, b), gang_human_bytes(p->l2_bytes, c), gang_human_bytes(p->l3_bytes, d),
           p->cores);
    printf("  measured in %.1f s\n", p->seconds);
}

static int run_probe(int argc, char **argv) {
    const char *output = NULL, *threads_text = "0";
    bool json = false;
    const struct gang_option options[] = {{"-o", &output, NULL}, {"--json", NULL, &json}, {"--threads", &threads_text, NULL}};
    int code = gang_options(&gang_command_probe, argc, argv, options, 3, 0, 0, NULL);
    if (code >= 0) return code;
    int64_t threads;
    if (gang_parse_int("probe: --threads", threads_text, 0, 1024, &threads)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    struct gang_profile profile;
    enum gang_status status = gang_profile_measure((int)threads, &profile);
    if (!status && !json) print_profile(&profile);
    if (!status && json) {
        char *text = gang_profile_json(&profile);
        puts(text);
        free(text);
    }
    if (!status && output) status = gang_profile_write(&profile, output);
    return gang_report(status);
}

const struct gang_command gang_command_probe = {
    .name = "probe",
    .arguments = "[-o FILE] [--json]",
    .summary = "Measure this machine: FLOP/s, memory bandwidth, caches",
    .run = run_probe,
    .help = "  -o FILE       write the profile as JSON\n"
            "  --json        print the profile as JSON\n"
            "  --threads N   measure with N threads (0: all cores this process may use)\n\n"
            "Peak is a loop of multiply-adds in registers; matrix products are those of a transformer layer.\n\n"
            "example: gangline probe -o profile.json\n",
};
