// gangline probe: measure this machine, or the link to another one.
#include "cmd/cmd.h"
#include "device/device.h"
#include "wire/wire.h"

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

// ---- Links -----------------------------------------------------------------------------------------------------------

static const double figure_s = 0.3;

static void say_address(const char *address) {
    printf("serving at %s; from the other machine: gangline probe --link %s\n", address, address);
    fflush(stdout);
}

static void print_link(const struct gang_link_profile *p, const char *to) {
    char human[GANG_HUMAN_BYTES];
    printf("link to %s: round trip %.3f ms, best with %d stream%s\n", to, 1e3 * p->rtt_s, p->streams, p->streams > 1 ? "s" : "");
    for (int i = 0; i < p->count; i++)
        printf("  messages of %-10s %10.1f Mbit/s  %5.1f %%\n", gang_human_bytes((double)p->rates[i].message_bytes, human),
               8e-6 * p->rates[i].bytes_per_s, 100 * p->rates[i].bytes_per_s / p->bytes_per_s);
    printf("for a cluster file, with the names of your sites:\n  - {between: [here, there], bandwidth: %.1fMbps, rtt: %.3fms}\n",
           8e-6 * p->bytes_per_s, 1e3 * p->rtt_s);
}

static void print_link_json(const struct gang_link_profile *p) {
    printf("{\"rtt_seconds\": %.6g, \"streams\": %d, \"bytes_per_second\": %.6g, \"curve\": [", p->rtt_s, p->streams, p->bytes_per_s);
    for (int i = 0; i < p->count; i++)
        printf("%s{\"message_bytes\": %zu, \"bytes_per_second\": %.6g}", i ? ", " : "", p->rates[i].message_bytes, p->rates[i].bytes_per_s);
    printf("]}\n");
}

static int run_link(const char *link, const char *serve, const char *secret_path, bool json) {
    gang_catch_interrupts();
    if (serve) return gang_report(gang_link_serve(serve, secret_path, say_address, &gang_interrupted));
    struct gang_link_profile profile;
    enum gang_status status = gang_link_measure(link, secret_path, figure_s, &profile);
    if (!status && json)
        print_link_json(&profile);
    else if (!status)
        print_link(&profile, link);
    return gang_report(status);
}

static int run_probe(int argc, char **argv) {
    const char *output = NULL, *threads_text = NULL, *link = NULL, *serve = NULL, *secret = NULL;
    bool json = false;
    const struct gang_option options[] = {{"-o", &output, NULL},   {"--json", NULL, &json},   {"--threads", &threads_text, NULL},
                                          {"--link", &link, NULL}, {"--serve", &serve, NULL}, {"--secret", &secret, NULL}};
    int code = gang_options(&gang_command_probe, argc, argv, options, sizeof options / sizeof *options, 0, 0, NULL);
    if (code >= 0) return code;
    if ((link || serve) && (output || threads_text || (link && serve) || (serve && json)))
        return gang_usage(&gang_command_probe, "does not go with the other options:", link ? "--link" : "--serve");
    if (link || serve) return run_link(link, serve, secret, json);
    int64_t threads;
    if (gang_parse_int("probe: --threads", threads_text ? threads_text : "0", 0, 1024, &threads)) {
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
    .arguments = "[--link ADDR] [--json]",
    .summary = "Measure this machine, or the link to another",
    .run = run_probe,
    .help = "  -o FILE       write the profile as JSON\n"
            "  --json        print the profile as JSON\n"
            "  --threads N   measure with N threads (0: all cores this process may use)\n\n"
            "Peak is a loop of multiply-adds in registers; matrix products are those of a transformer layer.\n\n"
            "  --serve ADDR  answer those who measure the link to here, host:port, until Ctrl-C\n"
            "  --link ADDR   measure the link to who serves there: round trip, streams, rate by size of message\n"
            "  --secret F    the cluster's secret, a file that only its owner may read; needed between machines\n\n"
            "A link is measured the way data goes from here; start it from the other end for the way back.\n\n"
            "examples: gangline probe -o profile.json\n"
            "          gangline probe --serve 0.0.0.0:7000 --secret secret\n"
            "          gangline probe --link north1:7000 --secret secret\n",
};
