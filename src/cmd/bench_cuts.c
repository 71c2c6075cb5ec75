// One of two planes cut again and again under a long transfer: how long nothing comes, what the other plane carries, and what both
// carry when the first is back.
#include "cmd/bench.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

// Blocks: before the first cut, between the healing and the next cut, while a plane is cut; and until it is noticed and back.
enum { CUTS = 20, WARM = 200, BOTH = 300, ONE = 200, CHANGE = 100, BLOCKS = WARM + BOTH + CUTS * (BOTH + ONE + CHANGE), IN_FLIGHT = 64 };
static const size_t block_bytes = 128 << 10;
static const double plane_rate = 60e6, rtt_s = 0.005;

struct cutting {
    struct gang_ends ends;
    struct gang_relay *relays[2];
    struct gang_arrivals arrivals;
    struct {
        double cut, down, healed, up, next;
    } times[CUTS];
    int done; // cuts
};

static void await_blocks(const struct cutting *c, int64_t more) {
    int64_t goal = __atomic_load_n(&c->arrivals.count, __ATOMIC_ACQUIRE) + more;
    while (__atomic_load_n(&c->arrivals.count, __ATOMIC_ACQUIRE) < (goal < BLOCKS ? goal : BLOCKS)) usleep(1000);
}

static void await_plane(const struct cutting *c, int plane, bool up) {
    struct gang_wire_report reports[2];
    do {
        usleep(1000);
        for (int i = 0; i < 2; i++) gang_wire_report(c->ends.links[i], &reports[i]);
    } while (up ? !reports[0].plane[plane].up || !reports[1].plane[plane].up : reports[0].plane[plane].up);
}

// As many as the blocks last for.
static void *cut_and_heal(void *context) {
    struct cutting *c = context;
    await_blocks(c, WARM + BOTH);
    for (int i = 0; i < CUTS; i++) {
        int victim = i % 2;
        c->times[i].cut = gang_seconds();
        gang_relay_cut(c->relays[victim], true);
        await_plane(c, victim, false);
        c->times[i].down = gang_seconds();
        await_blocks(c, ONE);
        gang_relay_cut(c->relays[victim], false);
        c->times[i].healed = gang_seconds();
        await_plane(c, victim, true);
        c->times[i].up = gang_seconds();
        await_blocks(c, BOTH);
        c->times[i].next = gang_seconds();
        if (__atomic_load_n(&c->arrivals.count, __ATOMIC_ACQUIRE) == BLOCKS) break;
        c->done++;
    }
    return NULL;
}

static double rate_between(const struct cutting *c, double from, double to) {
    int64_t count = 0;
    for (int64_t i = 0; i < BLOCKS; i++) count += c->arrivals.at[i] > from && c->arrivals.at[i] <= to;
    return (double)count * (double)block_bytes / (to - from);
}

static double longest_gap(const struct cutting *c, double from, double to) {
    double last = from, gap = 0;
    for (int64_t i = 0; i < BLOCKS && last <= to; i++) {
        if (c->arrivals.at[i] <= from) continue;
        gap = c->arrivals.at[i] - last > gap ? c->arrivals.at[i] - last : gap;
        last = c->arrivals.at[i];
    }
    return gap;
}

static void tell(struct gang_bench *b, const struct cutting *c) {
    double stalls[CUTS], one[CUTS], both[CUTS], before = rate_between(c, c->arrivals.at[WARM], c->times[0].cut);
    for (int i = 0; i < c->done; i++) {
        stalls[i] = 1e3 * longest_gap(c, c->times[i].cut, c->times[i].healed);
        one[i] = rate_between(c, c->times[i].down, c->times[i].healed) / plane_rate;
        both[i] = rate_between(c, c->times[i].up, c->times[i].next) / before;
    }
    double stall = gang_bench_median(stalls, c->done), late = stalls[c->done * 95 / 100];
    double other = gang_bench_median(one, c->done), healed = gang_bench_median(both, c->done);
    if (!b->json)
        printf("  one of two planes cut %d times, 0.48 Gbit/s each, 5 ms round trip: stall %.0f ms (median), %.0f (95th percentile);\n"
               "    then %.3f of the other plane's rate; both before %.3f of theirs, after healing %.3f of that\n",
               c->done, stall, late, other, before / (2 * plane_rate), healed);
    gang_bench_add(b, "wire.cut.stall_ms", stall, "ms", false, 50, "longest pause between blocks of 128 KiB when one of two planes is cut, median");
    gang_bench_add(b, "wire.cut.stall_ms.p95", late, "ms", false, 50, "likewise, the 95th percentile");
    gang_bench_add(b, "wire.cut.other_plane.share", other, "ratio", true, 0.95, "of the other plane's rate, from when the cut is noticed");
    gang_bench_add(b, "wire.cut.healed.share", healed, "ratio", true, 0.95,
                   "of what both planes carried before the first cut, from when the plane is back");
}

enum gang_status gang_bench_cuts(struct gang_bench *b) {
    struct cutting c = {.arrivals = {.at = calloc(BLOCKS, sizeof(double))}};
    const char *through[2];
    struct gang_wire *target = NULL;
    pthread_t thread;
    double took;
    enum gang_status status = c.arrivals.at ? GANG_OK : gang_fail(GANG_ERR_MEMORY, "bench: no memory");
    if (!status) status = gang_wire_open(&(struct gang_wire_options){.rank = 1, .listen = "127.0.0.1:0"}, &target);
    for (int p = 0; p < 2 && !status; p++) {
        const struct gang_relay_options options = {
            .listen = "127.0.0.1:0", .to = gang_wire_address(target), .rtt_s = rtt_s, .bytes_per_s = plane_rate};
        status = gang_relay_open(&options, &c.relays[p]);
        if (!status) through[p] = gang_relay_address(c.relays[p]);
    }
    if (!status) status = gang_ends_open(&c.ends, 2, 1, NULL, target, through);
    bool started = !status && pthread_create(&thread, NULL, cut_and_heal, &c) == 0;
    if (!status && !started) status = gang_fail_os("bench: cannot start a thread");
    if (!status) status = gang_ends_transfer(&c.ends, b->data, block_bytes, BLOCKS, IN_FLIGHT, &took, &c.arrivals);
    if (status) __atomic_store_n(&c.arrivals.count, BLOCKS, __ATOMIC_RELEASE);
    if (started) pthread_join(thread, NULL);
    if (!status && !c.done) status = gang_fail(GANG_ERR_OS, "bench: no cut was over before the transfer was: the machine is too busy");
    if (!status) tell(b, &c);
    gang_ends_close(&c.ends);
    for (int p = 0; p < 2; p++) gang_relay_close(c.relays[p]);
    free(c.arrivals.at);
    return status;
}
