// The wire through relays: connections, packets, sums over two sites; beside plain TCP through the same relay.
#include "cmd/bench.h"

#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

enum { FAR_STREAMS = 2, FAR_ROUNDS = 5 };
static const double far_rtt_s = 0.005;
static const useconds_t rest_us = 20000; // before each transfer, as gang_ends_transfer does

// ---- One transfer ------------------------------------------------------------------------------------------------------

struct far {
    struct gang_relay *relay;
    struct gang_ends ends;
    struct gang_plain plain[FAR_STREAMS];
    double rate;
};

static enum gang_status far_open(struct far *f, double gbps) {
    *f = (struct far){.rate = gbps * 1e9 / 8, .plain = {{{-1, -1}}, {{-1, -1}}}};
    struct gang_wire *target = NULL;
    enum gang_status status = gang_wire_open(&(struct gang_wire_options){.rank = 1, .listen = "127.0.0.1:0"}, &target);
    f->ends.wires[1] = target;
    struct gang_relay_options options = {.listen = "127.0.0.1:0", .rtt_s = far_rtt_s, .bytes_per_s = f->rate};
    if (!status) options.to = gang_wire_address(target);
    if (!status) status = gang_relay_open(&options, &f->relay);
    const char *through[1] = {f->relay ? gang_relay_address(f->relay) : NULL};
    if (!status) status = gang_ends_open(&f->ends, 1, FAR_STREAMS, NULL, target, through);
    for (int i = 0; i < FAR_STREAMS && !status; i++) status = gang_plain_open(&f->plain[i], f->relay);
    return status;
}

static void far_close(struct far *f) {
    for (int i = 0; i < FAR_STREAMS; i++) gang_plain_close(&f->plain[i]);
    gang_ends_close(&f->ends);
    gang_relay_close(f->relay);
}

static enum gang_status far_pair(struct gang_bench *b, struct far *f, size_t bytes, double *ours_s, double *plain_s) {
    enum gang_status status = gang_ends_transfer(&f->ends, b->data, bytes, 1, 1, ours_s, NULL);
    usleep(rest_us);
    return status ? status : gang_plain_transfer(f->plain, FAR_STREAMS, bytes, b->data, plain_s);
}

// How much of the rate one transfer gets, from its start until the last byte is there.
static enum gang_status bench_far(struct gang_bench *b, double gbps) {
    static const size_t sizes[] = {(size_t)256 << 20, (size_t)16 << 20};
    static const double goals[] = {0.95, 0.9};
    struct far f;
    double ours_s = 0, plain_s = 0;
    enum gang_status status = far_open(&f, gbps);
    if (!status) status = far_pair(b, &f, sizes[1], &ours_s, &plain_s); // connect, grow
    for (int i = 0; i < 2 && !status; i++) {
        double shares[FAR_ROUNDS], plain[FAR_ROUNDS], bytes = (double)sizes[i], bound = bytes / (bytes + f.rate * far_rtt_s / 2);
        char name[64], human[GANG_HUMAN_BYTES];
        for (int k = 0; k < FAR_ROUNDS && !status; k++) {
            status = far_pair(b, &f, sizes[i], &ours_s, &plain_s);
            shares[k] = bytes / ours_s / f.rate;
            plain[k] = bytes / plain_s / f.rate;
        }
        if (status) break;
        double share = gang_bench_median(shares, FAR_ROUNDS), plain_share = gang_bench_median(plain, FAR_ROUNDS);
        if (!b->json)
            printf("  %g Gbit/s, %.0f ms round trip, %s: %.3f of the rate; plain TCP %.3f; the way there leaves %.3f\n", gbps, 1e3 * far_rtt_s,
                   gang_human_bytes(bytes, human), share, plain_share, bound);
        snprintf(name, sizeof name, "wire.far.%ggbps.%zuMiB.share", gbps, sizes[i] >> 20);
        gang_bench_add(b, name, share, "ratio", true, goals[i], "of the relay's rate, 5 ms round trip, from the call until the last byte is there");
        snprintf(name, sizeof name, "wire.far.%ggbps.%zuMiB.plain_share", gbps, sizes[i] >> 20);
        gang_bench_add(b, name, plain_share, "ratio", true, 0, "likewise plain TCP through the same relay, two streams");
    }
    far_close(&f);
    return status;
}

// What the relay of connections carries at most, and how exactly.
static enum gang_status bench_relay(struct gang_bench *b) {
    static const double rate = 1e9;
    struct gang_relay *relay = NULL;
    struct gang_plain plain[FAR_STREAMS] = {{{-1, -1}}, {{-1, -1}}};
    struct gang_relay_report report;
    double took = 0, shares[FAR_ROUNDS];
    enum gang_status status = gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0", .rtt_s = far_rtt_s, .bytes_per_s = rate}, &relay);
    for (int i = 0; i < FAR_STREAMS && !status; i++) status = gang_plain_open(&plain[i], relay);
    for (int k = 0; k < FAR_ROUNDS && !status; k++) {
        status = gang_plain_transfer(plain, FAR_STREAMS, 4 * gang_bench_most, b->data, &took);
        shares[k] = (double)(4 * gang_bench_most) / (took - far_rtt_s / 2) / rate;
    }
    if (!status) gang_relay_report(relay, &report);
    for (int i = 0; i < FAR_STREAMS; i++) gang_plain_close(&plain[i]);
    gang_relay_close(relay);
    if (status) return status;
    double share = gang_bench_median(shares, FAR_ROUNDS);
    if (!b->json)
        printf("  relay of 8 Gbit/s, 5 ms round trip, plain TCP: %.3f of the rate, %.3f ms late on average, %.1f ms at most\n", share,
               1e3 * report.late_s, 1e3 * report.late_most_s);
    gang_bench_add(b, "wire.relay.8gbps.share", share, "ratio", true, 0.98, "of the rate, plain TCP, two streams, 1 GiB at a time");
    gang_bench_add(b, "wire.relay.8gbps.late_ms", 1e3 * report.late_s, "ms", false, 0.2, "later than meant data left, on average");
    return GANG_OK;
}

// ---- Packets -----------------------------------------------------------------------------------------------------------

// Of a transfer between two sites, as part of the rate of the packet relay between them.
static enum gang_status share_of_packets(const struct gang_sites *sites, uint8_t *data, const char *secret_path, double rate, double *share) {
    struct gang_ends ends = {{NULL, NULL}, {NULL, NULL}};
    char listen[GANG_ADDRESS_TEXT];
    double took = 0, shares[FAR_ROUNDS];
    snprintf(listen, sizeof listen, "%s:0", gang_sites_host(1));
    enum gang_status status = gang_sites_enter(sites, 1);
    if (!status) status = gang_wire_open(&(struct gang_wire_options){.rank = 1, .listen = listen, .secret_path = secret_path}, &ends.wires[1]);
    if (!status) status = gang_sites_enter(sites, 0);
    if (!status) status = gang_ends_open(&ends, 1, FAR_STREAMS, secret_path, ends.wires[1], NULL);
    if (!status) status = gang_ends_transfer(&ends, data, (size_t)16 << 20, 1, 1, &took, NULL); // connect, grow
    for (int k = 0; k < FAR_ROUNDS && !status; k++) {
        status = gang_ends_transfer(&ends, data, gang_bench_most, 1, 1, &took, NULL);
        shares[k] = (double)gang_bench_most / took / rate;
    }
    gang_ends_close(&ends);
    enum gang_status back = gang_sites_enter(sites, -1);
    if (status || back) return status ? status : back;
    *share = gang_bench_median(shares, FAR_ROUNDS);
    return GANG_OK;
}

static enum gang_status bench_packets(struct gang_bench *b, double loss, const char *name, double goal) {
    static const double rate = 125e6;
    char path[GANG_SECRET_PATH];
    double share = 0;
    struct gang_sites *sites;
    if (gang_sites_open(&(struct gang_relay_options){.rtt_s = far_rtt_s, .bytes_per_s = rate, .loss = loss, .seed = 1}, &sites)) {
        if (!b->json) printf("  %g %% of packets lost: not on this machine: %s\n", 100 * loss, gang_error());
        return GANG_OK;
    }
    enum gang_status status = gang_bench_secret(path);
    if (!status) {
        status = share_of_packets(sites, b->data, path, rate, &share);
        unlink(path);
    }
    gang_sites_close(sites);
    if (status) return status;
    if (!b->json) printf("  1 Gbit/s, 5 ms round trip, %g %% of packets lost, TLS, 256 MiB: %.3f of the rate\n", 100 * loss, share);
    gang_bench_add(b, name, share, "ratio", true, goal, "of the packet relay's rate, headers included, 256 MiB over TLS at 1 Gbit/s and 5 ms");
    return GANG_OK;
}

// ---- Sums over two sites -----------------------------------------------------------------------------------------------

struct sites {
    int ranks;
    struct gang_relay *relay;
    struct gang_plain plain[2]; // there and back
    struct gang_wire *wires[GANG_BENCH_RANKS];
    struct gang_wire_link *links[GANG_BENCH_RANKS][GANG_BENCH_RANKS];
    struct gang_comm *groups[GANG_BENCH_RANKS];
};

// Through the relay, or in shared memory: the two cores that carry a site's own traffic here have the relay to carry as well.
static enum gang_status sites_join(struct sites *s, int i, int j) {
    char address[GANG_ADDRESS_TEXT + sizeof "shm:"];
    struct gang_wire_plane plane = {.remote = address};
    struct gang_wire_link_options options = {.peer = i, .planes = 1, .streams = 1};
    bool long_way = i / (s->ranks / 2) != j / (s->ranks / 2);
    enum gang_status status = long_way ? gang_relay_add(s->relay, gang_wire_address(s->wires[j]), address) : GANG_OK;
    if (!long_way) snprintf(address, sizeof address, "shm:%s", gang_wire_address(s->wires[j]));
    if (!status) status = gang_wire_join(s->wires[j], &options, &s->links[j][i]);
    options.peer = j;
    options.plane = &plane;
    return status ? status : gang_wire_join(s->wires[i], &options, &s->links[i][j]);
}

static enum gang_status sites_open(struct sites *s, int ranks, double rate) {
    int site_of[GANG_BENCH_RANKS];
    *s = (struct sites){.ranks = ranks, .plain = {{{-1, -1}}, {{-1, -1}}}};
    enum gang_status status = gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0", .rtt_s = far_rtt_s, .bytes_per_s = rate},
                                              &s->relay);
    for (int i = 0; i < 2 && !status; i++) {
        status = gang_plain_open(&s->plain[i], s->relay);
        if (i) s->plain[i] = (struct gang_plain){{s->plain[i].fds[1], s->plain[i].fds[0]}};
    }
    for (int i = 0; i < ranks && !status; i++) {
        site_of[i] = i / (ranks / 2);
        status = gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0"}, &s->wires[i]);
        for (int j = 0; j < i && !status; j++) status = sites_join(s, i, j);
    }
    for (int i = 0; i < ranks && !status; i++) {
        status = gang_comm_new(s->wires[i], s->links[i], ranks, i, 100, &s->groups[i]);
        if (!status) status = gang_comm_sites(s->groups[i], site_of);
    }
    return status;
}

static void sites_close(struct sites *s) {
    for (int i = 0; i < s->ranks; i++) gang_comm_free(s->groups[i]);
    for (int i = 0; i < s->ranks; i++) gang_wire_close(s->wires[i]);
    for (int i = 0; i < 2; i++) gang_plain_close(&s->plain[i]);
    gang_relay_close(s->relay);
}

struct crossing {
    const struct gang_plain *plain;
    uint8_t *data;
    double took;
    enum gang_status status;
};

static void *cross(void *context) {
    struct crossing *c = context;
    c->status = gang_plain_transfer(c->plain, 1, gang_bench_large, c->data, &c->took);
    return NULL;
}

// The buffer there and, at once, another back: what a sum needs at least.
static enum gang_status swap(const struct sites *s, uint8_t *data, double *took) {
    struct crossing ways[2] = {{&s->plain[0], data, 0, GANG_OK}, {&s->plain[1], data + gang_bench_large, 0, GANG_OK}};
    pthread_t thread;
    if (pthread_create(&thread, NULL, cross, &ways[0])) return gang_fail_os("bench: cannot start a thread");
    cross(&ways[1]);
    pthread_join(thread, NULL);
    *took = ways[0].took > ways[1].took ? ways[0].took : ways[1].took;
    return ways[0].status ? ways[0].status : ways[1].status;
}

// Seconds of the same sum where the line has no rate: what the cores need for it.
static enum gang_status sum_unlimited(struct gang_bench *b, int ranks, double *each_s) {
    double each[FAR_ROUNDS];
    struct sites sites;
    enum gang_status status = sites_open(&sites, ranks, 0);
    if (!status) status = gang_bench_all_reduce(sites.groups, ranks, b->data, gang_bench_large, 1, each);
    for (int i = 0; i < FAR_ROUNDS && !status; i++) status = gang_bench_all_reduce(sites.groups, ranks, b->data, gang_bench_large, 1, &each[i]);
    sites_close(&sites);
    if (!status) *each_s = gang_bench_median(each, FAR_ROUNDS);
    return status;
}

static enum gang_status bench_sites(struct gang_bench *b, int ranks, double goal) {
    static const double rate = 250e6;
    double each = 0, swapped = 0, unlimited = 0, shares[FAR_ROUNDS], plain[FAR_ROUNDS], buffer_s = (double)gang_bench_large / rate;
    struct sites sites;
    char name[64];
    enum gang_status status = sites_open(&sites, ranks, rate);
    if (!status) status = gang_bench_all_reduce(sites.groups, ranks, b->data, gang_bench_large, 1, &each);
    for (int i = 0; i < FAR_ROUNDS && !status; i++) {
        status = swap(&sites, b->data, &swapped);
        if (!status) status = gang_bench_all_reduce(sites.groups, ranks, b->data, gang_bench_large, 1, &each);
        shares[i] = buffer_s / each;
        plain[i] = buffer_s / swapped;
    }
    sites_close(&sites);
    if (!status) status = sum_unlimited(b, ranks, &unlimited);
    if (status) return status;
    double share = gang_bench_median(shares, FAR_ROUNDS), plain_share = gang_bench_median(plain, FAR_ROUNDS);
    if (!b->json)
        printf("  all-reduce of 64 MiB by %d ranks on two sites, 2 Gbit/s, 5 ms round trip: %.3f of the link's bound; plain TCP both ways %.3f\n",
               ranks, share, plain_share);
    if (!b->json) printf("    with no limit on the rate it takes %.2f of the time that the link needs\n", unlimited / buffer_s);
    snprintf(name, sizeof name, "wire.sites.all_reduce.%dranks.unlimited", ranks);
    gang_bench_add(b, name, unlimited / buffer_s, "ratio", false, 1, "the time where the relay has no rate, of what the link needs");
    snprintf(name, sizeof name, "wire.sites.all_reduce.%dranks.share", ranks);
    gang_bench_add(b, name, share, "ratio", true, goal,
                   "64 MiB f32, relay of 2 Gbit/s and 5 ms, shared memory in a site; the bound: the buffer crosses once each way");
    snprintf(name, sizeof name, "wire.sites.all_reduce.%dranks.plain_share", ranks);
    gang_bench_add(b, name, plain_share, "ratio", true, 0, "plain TCP through the same relay, as much there and back at once");
    return GANG_OK;
}

enum gang_status gang_bench_far(struct gang_bench *b) {
    enum gang_status status = bench_far(b, 1);
    if (!status) status = bench_far(b, 4);
    if (!status) status = bench_relay(b);
    if (!status) status = bench_packets(b, 0, "wire.packets.lossless.share", 0.85);
    if (!status) status = bench_packets(b, 0.001, "wire.packets.loss1e-3.share", 0.85);
    if (!status) status = bench_sites(b, 2, 0.95);
    if (!status) status = bench_sites(b, GANG_BENCH_RANKS, 0.93);
    return status;
}
