// What the files of `gangline bench wire` share: figures; plain sockets to hold them against; two ranks in this process.
#ifndef GANG_CMD_BENCH_H
#define GANG_CMD_BENCH_H

#include "wire/wire.h"

enum { GANG_BENCH_FIGURES = 80, GANG_BENCH_ROUNDS = 5, GANG_BENCH_STREAMS = 4, GANG_BENCH_BATCH = 256, GANG_BENCH_RANKS = 4, GANG_SECRET_PATH = 32 };
// What is sent, and received, is gone through in turn up to LARGE; half of the data is for either.
static const size_t gang_bench_large = (size_t)64 << 20, gang_bench_most = (size_t)256 << 20;

struct gang_bench {
    struct gang_figure {
        char name[64];
        double value, goal;
        const char *unit, *note;
        bool at_least;
    } figures[GANG_BENCH_FIGURES];
    int count;
    bool json;
    double seconds; // per figure
    uint8_t *data;  // twice gang_bench_most
};

// A goal of at least 0: the figure is there to hold others against.
void gang_bench_add(struct gang_bench *bench, const char *name, double value, const char *unit, bool at_least, double goal, const char *note);
double gang_bench_median(double *values, int count); // sorts them

GANG_CHECK_RESULT enum gang_status gang_bench_near(struct gang_bench *bench); // on this machine
GANG_CHECK_RESULT enum gang_status gang_bench_far(struct gang_bench *bench);  // through relays
GANG_CHECK_RESULT enum gang_status gang_bench_cuts(struct gang_bench *bench); // one of two planes cut and healed

// ---- Plain sockets, bench_plain.c ------------------------------------------------------------------------------------

struct gang_plain {
    int fds[2]; // who sends, who receives
};

// `relay` NULL: a connection over loopback. Sockets block, as those of a plain program.
GANG_CHECK_RESULT enum gang_status gang_plain_open(struct gang_plain *plain, struct gang_relay *relay);
void gang_plain_close(struct gang_plain *plain);

enum gang_pump {
    GANG_PUMP_THREADS, // each stream has a thread at either end
    GANG_PUMP_DUPLEX,  // likewise, every other stream goes back; the rate is that of one direction
    GANG_PUMP_ALONE,   // one thread at either end for all streams
    GANG_PUMP_TLS,     // threads, over OpenSSL as it is
};
// Bytes per second of so many streams.
GANG_CHECK_RESULT enum gang_status gang_pump(enum gang_pump kind, int streams, double seconds, uint8_t *data, double *rate);
// Seconds until `bytes` have gone over connections that stand.
GANG_CHECK_RESULT enum gang_status gang_plain_transfer(const struct gang_plain *plain, int streams, size_t bytes, uint8_t *data, double *took);
GANG_CHECK_RESULT enum gang_status gang_plain_round_trip(double seconds, double *each_s);

// ---- Two ranks, bench_wire.c -------------------------------------------------------------------------------------------

struct gang_ends {
    struct gang_wire *wires[2];
    struct gang_wire_link *links[2];
};

// `target`: rank 1, opened already, to be reached through these addresses, one for each plane; NULL: to be opened, and reached directly.
GANG_CHECK_RESULT enum gang_status gang_ends_open(struct gang_ends *ends, int planes, int streams, const char *secret_path, struct gang_wire *target,
                                                  const char *const *through);
GANG_CHECK_RESULT enum gang_status gang_ends_open_shared(struct gang_ends *ends); // over memory that both map
void gang_ends_close(struct gang_ends *ends);

struct gang_arrivals {
    int64_t count; // atomic
    double *at;    // in gang_seconds
};
// Sends `count` messages one way; seconds from the first until the receiver has the last. `arrivals` NULL: nobody asks.
GANG_CHECK_RESULT enum gang_status gang_ends_transfer(struct gang_ends *ends, uint8_t *data, size_t bytes, int64_t count, int in_flight, double *took,
                                                      struct gang_arrivals *arrivals);
// Bytes per second with messages of one size, after a run to warm up that also tells how many fit the time.
GANG_CHECK_RESULT enum gang_status gang_ends_carry(struct gang_ends *ends, uint8_t *data, size_t bytes, int in_flight, double seconds, double *rate);
// Seconds per all-reduce of f32; each rank has its own part of `data`.
GANG_CHECK_RESULT enum gang_status gang_bench_all_reduce(struct gang_comm *const *groups, int ranks, uint8_t *data, size_t bytes, int rounds,
                                                         double *each_s);
// A file for TLS; the caller removes it.
GANG_CHECK_RESULT enum gang_status gang_bench_secret(char path[GANG_SECRET_PATH]);

#endif
