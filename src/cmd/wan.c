// gangline wan: a relay that gives a link distance, a rate and faults.
#include "cmd/cmd.h"
#include "wire/wire.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SPAN_CHARS = 64 };
static const double metres_per_second_in_fibre = 2e8, most_rtt_s = 10, most_rate = 1e12, most_time_s = 1e7, most_chance = 0.3, look_s = 0.1;

struct texts {
    const char *listen, *to, *between, *rtt, *distance, *rate, *jitter, *outage, *cut_at, *heal_at, *corrupt, *loss, *doubled, *reorder;
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

static enum gang_status chance(const char *what, const char *text, double *out) {
    return text ? gang_parse_real(what, text, 0, most_chance, out) : GANG_OK;
}

// "veth0,veth1"
static enum gang_status parse_between(const char *text, char names[2][SPAN_CHARS], struct gang_relay_options *options) {
    const char *comma = strchr(text, ',');
    if (!comma || comma == text || !comma[1] || strchr(comma + 1, ',') || strlen(text) >= SPAN_CHARS)
        return gang_fail(GANG_ERR_INPUT, "wan: --between: '%s': expected two network interfaces, like veth0,veth1", text);
    snprintf(names[0], SPAN_CHARS, "%.*s", (int)(comma - text), text);
    snprintf(names[1], SPAN_CHARS, "%s", comma + 1);
    for (int i = 0; i < 2; i++) options->between[i] = names[i];
    return GANG_OK;
}

// What is relayed: connections, or packets.
static enum gang_status parse_ends(const struct texts *texts, char names[2][SPAN_CHARS], struct gang_relay_options *options) {
    options->listen = texts->listen;
    options->to = texts->to;
    if (texts->between && (texts->listen || texts->to))
        return gang_fail(GANG_ERR_INPUT, "wan: --between relays packets, --listen and --to connections: give one of them");
    if (texts->between) return parse_between(texts->between, names, options);
    if (!texts->listen || !texts->to) return gang_fail(GANG_ERR_INPUT, "wan: --listen and --to, or --between, are needed: see 'gangline wan --help'");
    if (texts->loss || texts->doubled || texts->reorder)
        return gang_fail(GANG_ERR_INPUT, "wan: --loss, --duplicate and --reorder befall packets, which --between relays: connections lose nothing");
    return GANG_OK;
}

static enum gang_status parse(const struct texts *texts, char names[2][SPAN_CHARS], struct gang_relay_options *options) {
    double metres = 0;
    if (texts->rtt && texts->distance) return gang_fail(GANG_ERR_INPUT, "wan: --rtt and --distance: give one of them");
    if (texts->heal_at && !texts->cut_at) return gang_fail(GANG_ERR_INPUT, "wan: --heal-at without --cut-at");
    *options = (struct gang_relay_options){.seed = 1};
    enum gang_status status = parse_ends(texts, names, options);
    if (!status) status = quantity("wan: --rtt", texts->rtt, GANG_UNIT_TIME, most_rtt_s, &options->rtt_s);
    if (!status) status = quantity("wan: --distance", texts->distance, GANG_UNIT_LENGTH, most_rtt_s / 2 * metres_per_second_in_fibre, &metres);
    if (texts->distance) options->rtt_s = 2 * metres / metres_per_second_in_fibre;
    if (!status) status = quantity("wan: --rate", texts->rate, GANG_UNIT_RATE, most_rate, &options->bytes_per_s);
    if (!status) status = quantity("wan: --jitter", texts->jitter, GANG_UNIT_TIME, most_rtt_s, &options->jitter_s);
    if (!status) status = parse_outage(texts->outage, options);
    if (!status) status = quantity("wan: --cut-at", texts->cut_at, GANG_UNIT_TIME, most_time_s, &options->cut_at_s);
    if (!status) status = quantity("wan: --heal-at", texts->heal_at, GANG_UNIT_TIME, most_time_s, &options->heal_at_s);
    if (!status) status = chance("wan: --corrupt", texts->corrupt, &options->flips);
    if (!status) status = chance("wan: --loss", texts->loss, &options->loss);
    if (!status) status = chance("wan: --duplicate", texts->doubled, &options->doubled);
    if (!status) status = chance("wan: --reorder", texts->reorder, &options->reordered);
    return status;
}

static void print_report(struct gang_relay *relay, bool packets) {
    struct gang_relay_report r;
    char there[GANG_HUMAN_BYTES], back[GANG_HUMAN_BYTES];
    gang_relay_report(relay, &r);
    printf("%llu %s, %s there, %s back; data left %.3f ms later than meant on average, %.3f ms at most; %llu bits flipped\n",
           (unsigned long long)(packets ? r.packets : r.connections), packets ? "packets" : "connections",
           gang_human_bytes((double)r.bytes[0], there), gang_human_bytes((double)r.bytes[1], back), 1e3 * r.late_s, 1e3 * r.late_most_s,
           (unsigned long long)r.flipped);
    if (packets)
        printf("packets: %llu lost, %llu duplicated, %llu reordered, %llu lost in outages and cuts, %llu to a full queue, %llu because the relay was "
               "too slow\n",
               (unsigned long long)r.lost, (unsigned long long)r.doubled, (unsigned long long)r.reordered, (unsigned long long)r.blocked,
               (unsigned long long)r.overflowed, (unsigned long long)r.missed);
}

static int run_wan(int argc, char **argv) {
    struct texts t = {0};
    const struct gang_option options[] = {{"--listen", &t.listen, NULL},     {"--to", &t.to, NULL},           {"--rtt", &t.rtt, NULL},
                                          {"--distance", &t.distance, NULL}, {"--rate", &t.rate, NULL},       {"--jitter", &t.jitter, NULL},
                                          {"--outage", &t.outage, NULL},     {"--cut-at", &t.cut_at, NULL},   {"--heal-at", &t.heal_at, NULL},
                                          {"--corrupt", &t.corrupt, NULL},   {"--between", &t.between, NULL}, {"--loss", &t.loss, NULL},
                                          {"--duplicate", &t.doubled, NULL}, {"--reorder", &t.reorder, NULL}};
    int code = gang_options(&gang_command_wan, argc, argv, options, sizeof options / sizeof *options, 0, 0, NULL);
    if (code >= 0) return code;
    struct gang_relay_options relay_options;
    struct gang_relay *relay;
    char names[2][SPAN_CHARS];
    if (parse(&t, names, &relay_options)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    gang_catch_interrupts();
    enum gang_status status = gang_relay_open(&relay_options, &relay);
    if (status) return gang_report(status);
    if (t.between)
        printf("relay packets between %s and %s", names[0], names[1]);
    else
        printf("relay %s to %s", gang_relay_address(relay), t.to);
    printf(", round trip %.3f ms%s%s\n", 1e3 * relay_options.rtt_s, t.rate ? ", rate " : "", t.rate ? t.rate : "");
    fflush(stdout);
    while (!gang_interrupted) usleep((useconds_t)(look_s * 1e6));
    print_report(relay, t.between != NULL);
    gang_relay_close(relay);
    return EXIT_OK;
}

const struct gang_command gang_command_wan = {
    .name = "wan",
    .arguments = "--listen ADDR --to ADDR | --between IF,IF [...]",
    .summary = "Relay connections or packets over a made-up distance",
    .run = run_wan,
    .help = "  --listen ADDR    accept connections here, host:port (port 0: the kernel picks, see the first line)\n"
            "  --to ADDR        and connect each of them to here\n"
            "  --between IF,IF  or take packets from each of two network interfaces to the other; needs root\n"
            "  --rtt T          round-trip time, half of it each way: 5ms\n"
            "  --distance D     the same as the length of a fibre, at 200,000 km/s: 500km\n"
            "  --rate R         for all that passes together, each way: 3.2Gbps\n"
            "  --jitter T       up to so much later still; order is kept\n"
            "  --outage T@T     nothing passes for so long, every so often: 50ms@10s\n"
            "  --cut-at T       from then on nothing passes, in silence\n"
            "  --heal-at T      until then\n"
            "  --corrupt P      flip each bit with this chance: 1e-9\n\n"
            "of packets only, each with this chance:\n"
            "  --loss P         lose it: 0.001\n"
            "  --duplicate P    send it twice\n"
            "  --reorder P      send it 1 ms after its time\n\n"
            "Connections need no root: what is delayed then is data, not the set-up of a connection; nothing is lost, an outage\n"
            "holds everything back. Packets in an outage, or beyond a queue of a round trip of the rate, are lost. docs/wire.md\n"
            "says what either shows. Ctrl-C ends it and says how exact it was.\n\n"
            "examples: gangline wan --listen 127.0.0.1:7001 --to 127.0.0.1:7000 --distance 500km --rate 3.2Gbps\n"
            "          gangline wan --between veth0,veth1 --rtt 5ms --rate 1Gbps --loss 0.001\n",
};
