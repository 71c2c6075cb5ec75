// gangline wan: a relay that gives a link distance, a rate and faults.
#include "cmd/cmd.h"
#include "wire/wire.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SPAN_CHARS = 64 };
static const double metres_per_second_in_fibre = 2e8, most_rtt_s = 10, most_rate = 1e12, most_time_s = 1e7, look_s = 0.1;

struct texts {
    const char *listen, *to, *rtt, *distance, *rate, *jitter, *outage, *cut_at, *heal_at, *corrupt;
};

static enum gang_status quantity(const char *what, const char *text, enum gang_unit kind, double max, double *out) {
    return text ? gang_parse_quantity(what, text, kind, 0, max, out) : GANG_OK;
}

// "50ms@10s": so long, every so often.
static enum gang_status parse_outage(const char *text, struct gang_relay_options *options) {
    char span[SPAN_CHARS];
    const char *at = text ? strchr(text, '@') : NULL;
    if (!text) return GANG_OK;
    if (!at || (size_t)(at - text) >= sizeof span)
        return gang_fail(GANG_ERR_INPUT, "wan: --outage: '%s': expected so long @ every so often, like 50ms@10s", text);
    memcpy(span, text, (size_t)(at - text));
    span[at - text] = 0;
    enum gang_status status = gang_parse_quantity("wan: --outage", span, GANG_UNIT_TIME, 1e-4, most_time_s, &options->outage_s);
    if (!status) status = gang_parse_quantity("wan: --outage", at + 1, GANG_UNIT_TIME, options->outage_s, most_time_s, &options->outage_every_s);
    return status;
}

static enum gang_status parse(const struct texts *texts, struct gang_relay_options *options) {
    double metres = 0;
    if (!texts->listen || !texts->to) return gang_fail(GANG_ERR_INPUT, "wan: --listen and --to are needed: see 'gangline wan --help'");
    if (texts->rtt && texts->distance) return gang_fail(GANG_ERR_INPUT, "wan: --rtt and --distance: give one of them");
    if (texts->heal_at && !texts->cut_at) return gang_fail(GANG_ERR_INPUT, "wan: --heal-at without --cut-at");
    *options = (struct gang_relay_options){.listen = texts->listen, .to = texts->to, .seed = 1};
    enum gang_status status = quantity("wan: --rtt", texts->rtt, GANG_UNIT_TIME, most_rtt_s, &options->rtt_s);
    if (!status) status = quantity("wan: --distance", texts->distance, GANG_UNIT_LENGTH, most_rtt_s / 2 * metres_per_second_in_fibre, &metres);
    if (texts->distance) options->rtt_s = 2 * metres / metres_per_second_in_fibre;
    if (!status) status = quantity("wan: --rate", texts->rate, GANG_UNIT_RATE, most_rate, &options->bytes_per_s);
    if (!status) status = quantity("wan: --jitter", texts->jitter, GANG_UNIT_TIME, most_rtt_s, &options->jitter_s);
    if (!status) status = parse_outage(texts->outage, options);
    if (!status) status = quantity("wan: --cut-at", texts->cut_at, GANG_UNIT_TIME, most_time_s, &options->cut_at_s);
    if (!status) status = quantity("wan: --heal-at", texts->heal_at, GANG_UNIT_TIME, most_time_s, &options->heal_at_s);
    if (!status && texts->corrupt) status = gang_parse_real("wan: --corrupt", texts->corrupt, 0, 0.1, &options->flips);
    return status;
}

static int run_wan(int argc, char **argv) {
    struct texts t = {0};
    const struct gang_option options[] = {{"--listen", &t.listen, NULL},     {"--to", &t.to, NULL},         {"--rtt", &t.rtt, NULL},
                                          {"--distance", &t.distance, NULL}, {"--rate", &t.rate, NULL},     {"--jitter", &t.jitter, NULL},
                                          {"--outage", &t.outage, NULL},     {"--cut-at", &t.cut_at, NULL}, {"--heal-at", &t.heal_at, NULL},
                                          {"--corrupt", &t.corrupt, NULL}};
    int code = gang_options(&gang_command_wan, argc, argv, options, sizeof options / sizeof *options, 0, 0, NULL);
    if (code >= 0) return code;
    struct gang_relay_options relay_options;
    struct gang_relay *relay;
    if (parse(&t, &relay_options)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    gang_catch_interrupts();
    enum gang_status status = gang_relay_open(&relay_options, &relay);
    if (status) return gang_report(status);
    printf("relay %s to %s, round trip %.3f ms%s%s\n", gang_relay_address(relay), t.to, 1e3 * relay_options.rtt_s, t.rate ? ", rate " : "",
           t.rate ? t.rate : "");
    fflush(stdout);
    while (!gang_interrupted) usleep((useconds_t)(look_s * 1e6));
    struct gang_relay_report report;
    char there[GANG_HUMAN_BYTES], back[GANG_HUMAN_BYTES];
    gang_relay_report(relay, &report);
    printf("%llu connections, %s there, %s back; data left %.3f ms later than meant on average, %.3f ms at most; %llu bits flipped\n",
           (unsigned long long)report.connections, gang_human_bytes((double)report.bytes[0], there), gang_human_bytes((double)report.bytes[1], back),
           1e3 * report.late_s, 1e3 * report.late_most_s, (unsigned long long)report.flipped);
    gang_relay_close(relay);
    return EXIT_OK;
}

const struct gang_command gang_command_wan = {
    .name = "wan",
    .arguments = "--listen ADDR --to ADDR [...]",
    .summary = "Relay TCP connections over a made-up distance",
    .run = run_wan,
    .help = "  --listen ADDR    accept connections here, host:port (port 0: the kernel picks, see the first line)\n"
            "  --to ADDR        and connect each of them to here\n"
            "  --rtt T          round-trip time, half of it each way: 5ms\n"
            "  --distance D     the same as the length of a fibre, at 200,000 km/s: 500km\n"
            "  --rate R         for all connections together, each way: 3.2Gbps\n"
            "  --jitter T       up to so much later still; order is kept\n"
            "  --outage T@T     nothing passes for so long, every so often: 50ms@10s\n"
            "  --cut-at T       from then on nothing passes, in silence\n"
            "  --heal-at T      until then\n"
            "  --corrupt P      flip each bit with this chance: 1e-9\n\n"
            "It needs no root. It works on the bytes of connections, not on packets: what it delays is data, not the\n"
            "set-up of a connection; it loses and reorders nothing. Ctrl-C ends it and says how exact it was.\n\n"
            "example: gangline wan --listen 127.0.0.1:7001 --to 127.0.0.1:7000 --distance 500km --rate 3.2Gbps\n",
};
