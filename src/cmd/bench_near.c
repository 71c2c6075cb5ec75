// The wire on this machine: one and several planes, TLS, shared memory, small messages, sums.
#include "cmd/bench.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { SMALL_BYTES = 64, ROUND_TRIP_BYTES = 8, IN_FLIGHT = 4, DEEP_BYTES = 256 << 10, SUM_ROUNDS = 3 };
static const size_t message_bytes = (size_t)16 << 20;

// ---- Large messages --------------------------------------------------------------------------------------------------

// What the wire carries, against each of two pumps and against the better of them; medians of the rounds.
struct against {
    double carried, pumped[2], ratio[2], to_better;
};

// In turns, so that a busy neighbour hits all of them.
static enum gang_status hold_against(const struct gang_bench *b, struct gang_ends *ends, int planes, const enum gang_pump kinds[2],
                                     struct against *out) {
    double carried[GANG_BENCH_ROUNDS], pumped[2][GANG_BENCH_ROUNDS], ratio[2][GANG_BENCH_ROUNDS], better[GANG_BENCH_ROUNDS];
    enum gang_status status = GANG_OK;
    for (int i = 0; i < GANG_BENCH_ROUNDS && !status; i++) {
        for (int k = 0; k < 2 && !status; k++) status = gang_pump(kinds[k], planes, b->seconds / 4, b->data, &pumped[k][i]);
        if (!status) status = gang_ends_carry(ends, b->data, message_bytes, IN_FLIGHT, b->seconds / 4, &carried[i]);
        if (status) return status;
        for (int k = 0; k < 2; k++) ratio[k][i] = carried[i] / pumped[k][i];
        better[i] = ratio[0][i] < ratio[1][i] ? ratio[0][i] : ratio[1][i];
    }
    out->carried = gang_bench_median(carried, GANG_BENCH_ROUNDS);
    out->to_better = gang_bench_median(better, GANG_BENCH_ROUNDS);
    for (int k = 0; k < 2; k++) {
        out->pumped[k] = gang_bench_median(pumped[k], GANG_BENCH_ROUNDS);
        out->ratio[k] = gang_bench_median(ratio[k], GANG_BENCH_ROUNDS);
    }
    return GANG_OK;
}

static enum gang_status bench_planes(struct gang_bench *b, int planes) {
    static const enum gang_pump kinds[] = {GANG_PUMP_THREADS, GANG_PUMP_ALONE};
    struct gang_ends ends;
    struct against a;
    char name[64], of[16] = "";
    enum gang_status status = gang_ends_open(&ends, planes, 1, NULL, NULL, NULL);
    if (!status) status = hold_against(b, &ends, planes, kinds, &a);
    gang_ends_close(&ends);
    if (status) return status;
    if (!b->json)
        printf("  %d plane%s       %6.3f GB/s; plain streams, as many: %.3f with a thread for each (ratio %.2f), %.3f with one for all (%.2f)\n",
               planes, planes > 1 ? "s" : " ", a.carried / 1e9, a.pumped[0] / 1e9, a.ratio[0], a.pumped[1] / 1e9, a.ratio[1]);
    if (planes > 1) snprintf(of, sizeof of, "planes%d.", planes);
    snprintf(name, sizeof name, "wire.loopback.%sratio_to_pump", of);
    gang_bench_add(b, name, a.to_better, "ratio", true, planes > 1 ? 0.95 : 0.9,
                   "16 MiB messages with checksums, against as many plain TCP streams, the better of a thread each and one for all");
    snprintf(name, sizeof name, "wire.loopback.%sratio_to_pump_of_one_thread", of);
    gang_bench_add(b, name, a.ratio[1], "ratio", true, 0, "against as many plain TCP streams with one thread at either end, as the wire has");
    return GANG_OK;
}

static enum gang_status bench_tls(struct gang_bench *b) {
    static const enum gang_pump kinds[] = {GANG_PUMP_THREADS, GANG_PUMP_TLS};
    struct gang_ends ends;
    struct against a;
    char path[GANG_SECRET_PATH];
    enum gang_status status = gang_bench_secret(path);
    if (status) return status;
    status = gang_ends_open(&ends, 1, 1, path, NULL, NULL);
    if (!status) status = hold_against(b, &ends, 1, kinds, &a);
    gang_ends_close(&ends);
    unlink(path);
    if (status) return status;
    if (!b->json)
        printf("  1 plane, TLS   %6.3f GB/s; a plain stream %.3f (ratio %.2f), OpenSSL over one %.3f (%.2f)\n", a.carried / 1e9, a.pumped[0] / 1e9,
               a.ratio[0], a.pumped[1] / 1e9, a.ratio[1]);
    gang_bench_add(b, "wire.loopback.tls.ratio_to_pump", a.ratio[0], "ratio", true, 0.5, "16 MiB messages under TLS, against a plain TCP stream");
    gang_bench_add(b, "wire.loopback.tls.ratio_to_openssl", a.ratio[1], "ratio", true, 0,
                   "against OpenSSL as it is over a plain stream, the same cipher, one thread at either end");
    return GANG_OK;
}

static enum gang_status bench_shared(struct gang_bench *b) {
    static const enum gang_pump kinds[] = {GANG_PUMP_THREADS, GANG_PUMP_ALONE};
    struct gang_ends ends;
    struct against a;
    enum gang_status status = gang_ends_open_shared(&ends);
    if (!status) status = hold_against(b, &ends, 1, kinds, &a);
    gang_ends_close(&ends);
    if (status) return status;
    if (!b->json) printf("  shared memory  %6.3f GB/s; a plain stream %.3f (ratio %.2f)\n", a.carried / 1e9, a.pumped[0] / 1e9, a.ratio[0]);
    gang_bench_add(b, "wire.shared.ratio_to_pump", a.to_better, "ratio", true, 1,
                   "16 MiB messages through shared memory, against a plain TCP stream");
    return GANG_OK;
}

// ---- Messages of all sizes -------------------------------------------------------------------------------------------

static enum gang_status bench_sizes(struct gang_bench *b) {
    static const size_t sizes[] = {SMALL_BYTES, 1 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20};
    struct gang_ends ends;
    enum gang_status status = gang_ends_open(&ends, 1, 1, NULL, NULL, NULL);
    if (!status && !b->json) printf("  message size    one plane\n");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && !status; i++) {
        double rate;
        char human[GANG_HUMAN_BYTES];
        status = gang_ends_carry(&ends, b->data, sizes[i], sizes[i] < DEEP_BYTES ? GANG_BENCH_BATCH : IN_FLIGHT, b->seconds / 2, &rate);
        if (status) break;
        if (!b->json)
            printf("  %-12s %8.3f GB/s  %10.0f messages/s\n", gang_human_bytes((double)sizes[i], human), rate / 1e9, rate / (double)sizes[i]);
        if (sizes[i] == SMALL_BYTES)
            gang_bench_add(b, "wire.small.messages_per_s", rate / SMALL_BYTES, "1/s", true, 300000, "64-byte messages, one link, loopback");
    }
    gang_ends_close(&ends);
    return status;
}

struct echoing {
    struct gang_wire_link *link;
    enum gang_status status;
};

static void *echo(void *context) {
    struct echoing *e = context;
    uint8_t data[ROUND_TRIP_BYTES];
    struct gang_wire_op op;
    do {
        e->status = gang_wire_recv(e->link, 1, data, sizeof data, &op);
        if (!e->status) e->status = gang_wire_wait(&op);
        if (!e->status) e->status = gang_wire_send(e->link, 2, 0, data, sizeof data, &op);
    } while (!e->status && !data[0]);
    return NULL;
}

static enum gang_status wire_round_trip(double seconds, double *each_s) {
    struct gang_ends ends;
    pthread_t thread;
    uint8_t data[ROUND_TRIP_BYTES] = {0};
    enum gang_status status = gang_ends_open(&ends, 1, 1, NULL, NULL, NULL);
    struct echoing echoing = {.link = ends.links[1]};
    if (!status && pthread_create(&thread, NULL, echo, &echoing)) status = gang_fail_os("bench: cannot start a thread");
    if (status) return status;
    double start = gang_seconds(), rounds = 0;
    for (; !data[0] && !status; rounds++) {
        struct gang_wire_op out, in;
        data[0] = gang_seconds() - start >= seconds; // the last one
        status = gang_wire_recv(ends.links[0], 2, data, sizeof data, &in);
        if (!status) status = gang_wire_send(ends.links[0], 1, 0, data, sizeof data, &out);
        if (!status) status = gang_wire_wait(&in);
    }
    *each_s = (gang_seconds() - start) / rounds;
    gang_wire_close(ends.wires[0]);
    pthread_join(thread, NULL);
    gang_wire_close(ends.wires[1]);
    return status;
}

static enum gang_status bench_round_trip(struct gang_bench *b) {
    double ratios[GANG_BENCH_ROUNDS], plain[GANG_BENCH_ROUNDS], wire[GANG_BENCH_ROUNDS];
    for (int i = 0; i < GANG_BENCH_ROUNDS; i++) {
        enum gang_status status = gang_plain_round_trip(b->seconds / 4, &plain[i]);
        if (!status) status = wire_round_trip(b->seconds / 4, &wire[i]);
        if (status) return status;
        ratios[i] = wire[i] / plain[i];
    }
    double ratio = gang_bench_median(ratios, GANG_BENCH_ROUNDS);
    if (!b->json)
        printf("  round trip    %8.1f us, plain TCP %.1f us, ratio %.2f\n", 1e6 * gang_bench_median(wire, GANG_BENCH_ROUNDS),
               1e6 * gang_bench_median(plain, GANG_BENCH_ROUNDS), ratio);
    gang_bench_add(b, "wire.small.round_trip_ratio", ratio, "ratio", false, 1.5, "8 bytes there and back, against plain TCP");
    return GANG_OK;
}

// ---- Sums ------------------------------------------------------------------------------------------------------------

static enum gang_status sum_size(struct gang_bench *b, struct gang_comm *const *groups, size_t bytes, bool shared, bool judged) {
    double each, once, both, ratios[SUM_ROUNDS], rates[SUM_ROUNDS];
    char name[64], human[GANG_HUMAN_BYTES];
    enum gang_status status = gang_bench_all_reduce(groups, 2, b->data, bytes, 2, &once);
    for (int i = 0; i < SUM_ROUNDS && !status; i++) {
        status = gang_pump(GANG_PUMP_DUPLEX, 2, b->seconds / 4, b->data, &both);
        if (!status) status = gang_bench_all_reduce(groups, 2, b->data, bytes, 1 + (int)(b->seconds / 4 / once), &each);
        if (status) break;
        rates[i] = (double)bytes / each;
        ratios[i] = rates[i] / both;
    }
    if (status) return status;
    double ratio = gang_bench_median(ratios, SUM_ROUNDS), rate = gang_bench_median(rates, SUM_ROUNDS) / 1e9;
    if (!b->json)
        printf("  all-reduce of %-10s by 2 ranks%s: %.3f GB/s of buffer, %.2f of plain TCP both ways\n", gang_human_bytes((double)bytes, human),
               shared ? ", shared memory" : "", rate, ratio);
    snprintf(name, sizeof name, "wire.%sall_reduce.%zuMiB.rate", shared ? "shared." : "", bytes >> 20);
    gang_bench_add(b, name, rate, "GB/s", true, 0, "of buffer, f32, 2 ranks; for the comparison with Open MPI");
    snprintf(name, sizeof name, "wire.%sall_reduce.%zuMiB.ratio_to_duplex_pump", shared ? "shared." : "", bytes >> 20);
    if (judged) gang_bench_add(b, name, ratio, "ratio", true, shared ? 1 : 0.8, "f32, 2 ranks, against plain TCP both ways at once");
    return GANG_OK;
}

static enum gang_status bench_all_reduce(struct gang_bench *b, bool shared) {
    static const size_t sizes[] = {(size_t)1 << 20, (size_t)16 << 20, (size_t)64 << 20};
    struct gang_ends ends;
    struct gang_comm *groups[2] = {NULL, NULL};
    enum gang_status status = shared ? gang_ends_open_shared(&ends) : gang_ends_open(&ends, 1, 1, NULL, NULL, NULL);
    memset(b->data, 0, 2 * gang_bench_most);
    for (int i = 0; i < 2 && !status; i++) {
        struct gang_wire_link *links[2] = {ends.links[i], ends.links[i]};
        status = gang_comm_new(ends.wires[i], links, 2, i, 100, &groups[i]);
    }
    for (int k = 0; k < 3 && !status; k++) status = sum_size(b, groups, sizes[k], shared, k == 2);
    gang_comm_free(groups[0]);
    gang_comm_free(groups[1]);
    gang_ends_close(&ends);
    return status;
}

enum gang_status gang_bench_near(struct gang_bench *b) {
    enum gang_status status = GANG_OK;
    for (int planes = 1; planes <= GANG_BENCH_STREAMS && !status; planes *= 2) status = bench_planes(b, planes);
    if (!status) status = bench_shared(b);
    if (!status) status = bench_tls(b);
    if (!status) status = bench_round_trip(b);
    if (!status) status = bench_sizes(b);
    if (!status) status = bench_all_reduce(b, false);
    if (!status) status = bench_all_reduce(b, true);
    return status;
}
