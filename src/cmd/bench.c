// gangline bench wire: what the wire carries, beside plain sockets on the same machine in the same run.
#include "cmd/cmd.h"
#include "wire/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PUMP_BYTES = 256 << 10,
    SMALL_BYTES = 64,
    ROUND_TRIP_BYTES = 8,
    ROUNDS_MAX = 15,
    IN_FLIGHT = 4,
    BATCH = 256,
    STREAMS_MAX = 4,
    FAR_STREAMS = 2,
    FAR_ROUNDS = 3,
    SECRET_PATH = 32,
    RANKS_MAX = 4
};
static const size_t large_bytes = (size_t)64 << 20, most_bytes = (size_t)256 << 20; // gone through in turn; each way at hand
static const double far_rtt_s = 0.005;
static const useconds_t posting_us = 20000;

struct entry {
    char name[64];
    double value, goal;
    const char *unit, *note;
    bool at_least;
};

enum { ENTRIES_MAX = 32 };
struct results {
    struct entry entries[ENTRIES_MAX];
    int count;
    bool json;
    double seconds; // per figure
};

static void add(struct results *r, const char *name, double value, const char *unit, bool at_least, double goal, const char *note) {
    if (r->count == ENTRIES_MAX) return;
    struct entry *e = &r->entries[r->count++];
    *e = (struct entry){.value = value, .goal = goal, .unit = unit, .note = note, .at_least = at_least};
    snprintf(e->name, sizeof e->name, "%s", name);
}

// ---- Plain sockets: what there is to reach -----------------------------------------------------------------------------

struct plain {
    int fds[2];
    uint8_t *data;
    double seconds, bytes, rounds;
};

static bool wait_for_caller(int listener) {
    struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
    return poll(&poll_fd, 1, -1) == 1;
}

static enum gang_status plain_open(struct plain *plain) {
    struct gang_address address;
    int listener = -1;
    enum gang_status status = gang_address_resolve("bench", "127.0.0.1:0", &address);
    if (!status) status = gang_socket_listen(&address, &listener);
    if (!status) status = gang_socket_address(listener, &address);
    if (!status) status = gang_socket_connect(NULL, &address, &plain->fds[0]);
    if (!status && (!wait_for_caller(listener) || (plain->fds[1] = gang_socket_accept(listener)) < 0)) status = gang_fail_os("bench: cannot accept");
    if (listener >= 0) close(listener);
    // Blocking, as a plain program would: one call less per message than with poll.
    for (int i = 0; i < 2 && !status; i++) {
        gang_socket_no_delay(plain->fds[i]);
        if (fcntl(plain->fds[i], F_SETFL, 0)) status = gang_fail_os("bench: cannot make a socket block");
    }
    return status;
}

static bool put_all(int fd, const uint8_t *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = send(fd, data + done, bytes - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

static bool get_all(int fd, uint8_t *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = recv(fd, data + done, bytes - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

static void *plain_send(void *context) {
    struct plain *plain = context;
    double end = gang_seconds() + plain->seconds;
    for (size_t at = 0; gang_seconds() < end; at = (at + PUMP_BYTES) % large_bytes)
        if (!put_all(plain->fds[0], plain->data + at, PUMP_BYTES)) break;
    shutdown(plain->fds[0], SHUT_WR);
    return NULL;
}

static void *plain_receive(void *context) {
    struct plain *plain = context;
    double start = gang_seconds();
    // Into a buffer as large as the wire's, or the caches would do half of the work.
    for (size_t at = 0; get_all(plain->fds[1], plain->data + most_bytes + at, PUMP_BYTES); at = (at + PUMP_BYTES) % large_bytes)
        plain->bytes += PUMP_BYTES;
    plain->seconds = gang_seconds() - start;
    return NULL;
}

static void *plain_echo(void *context) {
    struct plain *plain = context;
    uint8_t data[ROUND_TRIP_BYTES];
    while (get_all(plain->fds[1], data, sizeof data) && put_all(plain->fds[1], data, sizeof data)) {}
    return NULL;
}

static void plain_close(struct plain *plain) {
    close(plain->fds[0]);
    close(plain->fds[1]);
}

// Bytes per second of `count` plain streams, all one way or every other one back.
static enum gang_status pump(int count, bool back, double seconds, uint8_t *data, double *rate) {
    struct plain plain[STREAMS_MAX] = {0};
    pthread_t threads[2 * STREAMS_MAX];
    enum gang_status status = GANG_OK;
    for (int i = 0; i < count && !status; i++) {
        status = plain_open(&plain[i]);
        plain[i].seconds = seconds;
        plain[i].data = data;
        if (!back || i % 2 == 0) continue;
        int fd = plain[i].fds[0];
        plain[i].fds[0] = plain[i].fds[1];
        plain[i].fds[1] = fd;
    }
    if (status) return status;
    for (int i = 0; i < 2 * count; i++)
        if (pthread_create(&threads[i], NULL, i % 2 ? plain_send : plain_receive, &plain[i / 2])) return gang_fail_os("bench: cannot start a thread");
    *rate = 0;
    for (int i = 0; i < 2 * count; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < count; i++) {
        *rate += plain[i].bytes / plain[i].seconds;
        plain_close(&plain[i]);
    }
    return GANG_OK;
}

// Per direction.
static enum gang_status pump_both_ways(double seconds, uint8_t *data, double *rate) {
    enum gang_status status = pump(2, true, seconds, data, rate);
    if (!status) *rate /= 2;
    return status;
}

static enum gang_status plain_round_trip(double seconds, double *each_s) {
    struct plain plain = {0};
    pthread_t thread;
    enum gang_status status = plain_open(&plain);
    if (status) return status;
    if (pthread_create(&thread, NULL, plain_echo, &plain)) return gang_fail_os("bench: cannot start a thread");
    uint8_t data[ROUND_TRIP_BYTES] = {0};
    double start = gang_seconds(), rounds = 0;
    while (gang_seconds() - start < seconds && put_all(plain.fds[0], data, sizeof data) && get_all(plain.fds[0], data, sizeof data)) rounds++;
    *each_s = (gang_seconds() - start) / rounds;
    shutdown(plain.fds[0], SHUT_RDWR);
    pthread_join(thread, NULL);
    plain_close(&plain);
    return GANG_OK;
}

// ---- The wire ------------------------------------------------------------------------------------------------------

struct ends {
    struct gang_wire *wires[2];
    struct gang_wire_link *links[2];
};

// `target`: rank 1, opened already, to be reached at `through`; NULL: to be opened, and reached directly.
static enum gang_status ends_open(struct ends *ends, int planes, int streams, const char *secret_path, struct gang_wire *target,
                                  const char *through) {
    struct gang_wire_plane plane[GANG_WIRE_PLANES];
    enum gang_status status = GANG_OK;
    *ends = (struct ends){{NULL, target}, {NULL, NULL}};
    for (int i = 0; i < 2 && !status; i++)
        if (!ends->wires[i])
            status = gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0", .secret_path = secret_path}, &ends->wires[i]);
    if (status) return status;
    for (int p = 0; p < planes; p++) plane[p] = (struct gang_wire_plane){.remote = through ? through : gang_wire_address(ends->wires[1])};
    for (int i = 1; i >= 0 && !status; i--) {
        struct gang_wire_link_options options = {.peer = !i, .planes = planes, .streams = streams, .plane = i ? NULL : plane};
        status = gang_wire_join(ends->wires[i], &options, &ends->links[i]);
    }
    return status;
}

// Over memory that both map.
static enum gang_status ends_open_shared(struct ends *ends) {
    char address[GANG_ADDRESS_TEXT + sizeof "shm:"];
    struct gang_wire *target;
    enum gang_status status = gang_wire_open(&(struct gang_wire_options){.rank = 1, .listen = "127.0.0.1:0"}, &target);
    *ends = (struct ends){{NULL, NULL}, {NULL, NULL}};
    if (status) return status;
    snprintf(address, sizeof address, "shm:%s", gang_wire_address(target));
    return ends_open(ends, 1, 1, NULL, target, address);
}

static void ends_close(struct ends *ends) {
    gang_wire_close(ends->wires[0]);
    gang_wire_close(ends->wires[1]);
}

struct receiver {
    struct gang_wire_link *link;
    uint8_t *data;
    size_t bytes;
    int64_t count; // 0: echo until the link ends
    int in_flight;
    double end; // when the last one was here
    enum gang_status status;
};

static void *receive(void *context) {
    struct receiver *r = context;
    struct gang_wire_op ops[BATCH];
    size_t places = r->bytes < large_bytes ? large_bytes / r->bytes : 1;
    int64_t posted = 0;
    for (int64_t done = 0; done < r->count && !r->status; done++) {
        for (; posted < r->count && posted < done + r->in_flight && !r->status; posted++)
            r->status = gang_wire_recv(r->link, 1, r->data + most_bytes + (size_t)posted % places * r->bytes, r->bytes, &ops[posted % r->in_flight]);
        if (!r->status) r->status = gang_wire_wait(&ops[done % r->in_flight]);
    }
    r->end = gang_seconds();
    return NULL;
}

static void *echo(void *context) {
    struct receiver *r = context;
    uint8_t data[ROUND_TRIP_BYTES];
    struct gang_wire_op op;
    do {
        r->status = gang_wire_recv(r->link, 1, data, sizeof data, &op);
        if (!r->status) r->status = gang_wire_wait(&op);
        if (!r->status) r->status = gang_wire_send(r->link, 2, 0, data, sizeof data, &op);
    } while (!r->status && !data[0]);
    return NULL;
}

// Sends `count` messages one way; seconds from the first until the receiver has the last.
static enum gang_status transfer(struct ends *ends, uint8_t *data, size_t bytes, int64_t count, int in_flight, double *seconds) {
    struct receiver receiver = {.link = ends->links[1], .data = data, .bytes = bytes, .count = count, .in_flight = in_flight};
    struct gang_wire_op ops[BATCH];
    pthread_t thread;
    size_t places = bytes < large_bytes ? large_bytes / bytes : 1;
    int64_t posted = 0;
    enum gang_status status = GANG_OK;
    if (pthread_create(&thread, NULL, receive, &receiver)) return gang_fail_os("bench: cannot start a thread");
    if (in_flight == 1) usleep(posting_us); // a single receive is posted ahead, as programs do; a stream of them takes care of itself
    double start = gang_seconds();
    for (int64_t done = 0; done < count && !status; done++) {
        for (; posted < count && posted < done + in_flight && !status; posted++)
            status = gang_wire_send(ends->links[0], 1, 0, data + (size_t)posted % places * bytes, bytes, &ops[posted % in_flight]);
        if (!status) status = gang_wire_wait(&ops[done % in_flight]);
    }
    pthread_join(thread, NULL);
    *seconds = receiver.end - start;
    return status ? status : receiver.status;
}

// Bytes per second with messages of one size, after a run to warm up that also tells how many fit the time.
static enum gang_status carry(struct ends *ends, uint8_t *data, size_t bytes, int in_flight, double seconds, double *rate) {
    int64_t count = 2 * in_flight;
    double took = 0;
    enum gang_status status = transfer(ends, data, bytes, count, in_flight, &took);
    if (!status) status = transfer(ends, data, bytes, count, in_flight, &took);
    if (status) return status;
    count = (int64_t)((double)count * seconds / took) + 1;
    status = transfer(ends, data, bytes, count, in_flight, &took);
    *rate = (double)count * (double)bytes / took;
    return status;
}

static enum gang_status wire_round_trip(double seconds, double *each_s) {
    struct ends ends;
    pthread_t thread;
    uint8_t data[ROUND_TRIP_BYTES] = {0};
    enum gang_status status = ends_open(&ends, 1, 1, NULL, NULL, NULL);
    struct receiver receiver = {.link = ends.links[1]};
    if (!status && pthread_create(&thread, NULL, echo, &receiver)) status = gang_fail_os("bench: cannot start a thread");
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

// ---- The figures ---------------------------------------------------------------------------------------------------

static enum gang_status bench_sizes(struct results *r, uint8_t *data) {
    static const size_t sizes[] = {64, 1 << 10, 8 << 10, 64 << 10, 256 << 10, 1 << 20, 16 << 20};
    struct ends ends;
    enum gang_status status = ends_open(&ends, 1, 1, NULL, NULL, NULL);
    if (!status && !r->json) printf("  message size    one plane\n");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && !status; i++) {
        double rate;
        char human[GANG_HUMAN_BYTES];
        status = carry(&ends, data, sizes[i], sizes[i] < PUMP_BYTES ? BATCH : IN_FLIGHT, r->seconds / 2, &rate);
        if (status) break;
        if (!r->json)
            printf("  %-12s %8.3f GB/s  %10.0f messages/s\n", gang_human_bytes((double)sizes[i], human), rate / 1e9, rate / (double)sizes[i]);
        if (sizes[i] == SMALL_BYTES)
            add(r, "wire.small.messages_per_s", rate / SMALL_BYTES, "1/s", true, 300000, "64-byte messages, one link, loopback");
    }
    ends_close(&ends);
    return status;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return values[count / 2];
}

// Pump and wire in turns, so that a busy neighbour hits both; the median of the ratios.
static enum gang_status bench_shared(struct results *r, uint8_t *data) {
    double ratios[ROUNDS_MAX], pumped[ROUNDS_MAX] = {0}, carried[ROUNDS_MAX] = {0};
    struct ends ends;
    int rounds = 5;
    enum gang_status status = ends_open_shared(&ends);
    for (int i = 0; i < rounds && !status; i++) {
        status = pump(1, false, r->seconds / 4, data, &pumped[i]);
        if (!status) status = carry(&ends, data, (size_t)16 << 20, IN_FLIGHT, r->seconds / 4, &carried[i]);
        ratios[i] = carried[i] / pumped[i];
    }
    ends_close(&ends);
    if (status) return status;
    double ratio = median(ratios, rounds);
    if (!r->json)
        printf("  shared memory    %8.3f GB/s, 1 plain stream %.3f GB/s, ratio %.2f\n", median(carried, rounds) / 1e9, median(pumped, rounds) / 1e9,
               ratio);
    add(r, "wire.shared.ratio_to_pump", ratio, "ratio", true, 1, "16 MiB messages through shared memory, against a plain TCP stream");
    return GANG_OK;
}

static enum gang_status bench_planes(struct results *r, uint8_t *data, int planes, const char *secret_path) {
    double ratios[ROUNDS_MAX], pumped[ROUNDS_MAX] = {0}, carried[ROUNDS_MAX] = {0};
    struct ends ends;
    int rounds = 5;
    enum gang_status status = ends_open(&ends, planes, 1, secret_path, NULL, NULL);
    for (int i = 0; i < rounds && !status; i++) {
        status = pump(planes, false, r->seconds / 4, data, &pumped[i]);
        if (!status) status = carry(&ends, data, (size_t)16 << 20, IN_FLIGHT, r->seconds / 4, &carried[i]);
        ratios[i] = carried[i] / pumped[i];
    }
    ends_close(&ends);
    if (status) return status;
    char name[64];
    double ratio = median(ratios, rounds);
    if (!r->json)
        printf("  %d plane%s%s %8.3f GB/s, %d plain stream%s %.3f GB/s, ratio %.2f\n", planes, planes > 1 ? "s" : " ",
               secret_path ? ", TLS" : "     ", median(carried, rounds) / 1e9, planes, planes > 1 ? "s" : "", median(pumped, rounds) / 1e9, ratio);
    snprintf(name, sizeof name,
             secret_path  ? "wire.loopback.tls.ratio_to_pump"
             : planes > 1 ? "wire.loopback.planes%d.ratio_to_pump"
                          : "wire.loopback.ratio_to_pump",
             planes);
    add(r, name, ratio, "ratio", true,
        secret_path  ? 0.5
        : planes > 1 ? 0.95
                     : 0.9,
        "16 MiB messages with checksums, against as many plain TCP streams");
    return GANG_OK;
}

// A file for TLS; the caller removes it.
static enum gang_status write_secret(char path[SECRET_PATH]) {
    static const char secret[] = "not a secret: only for the benchmark";
    snprintf(path, SECRET_PATH, "/tmp/gangline_bench_XXXXXX");
    int fd = mkstemp(path); // readable by its owner only
    if (fd < 0) return gang_fail_os("bench: cannot make a file for the secret");
    enum gang_status status = write(fd, secret, sizeof secret) == (ssize_t)sizeof secret ? GANG_OK : gang_fail_os("%s: cannot write", path);
    close(fd);
    if (status) unlink(path);
    return status;
}

static enum gang_status bench_tls(struct results *r, uint8_t *data) {
    char path[SECRET_PATH];
    enum gang_status status = write_secret(path);
    if (status) return status;
    status = bench_planes(r, data, 1, path);
    unlink(path);
    return status;
}

static enum gang_status bench_round_trip(struct results *r) {
    double ratios[ROUNDS_MAX], plain[ROUNDS_MAX] = {0}, wire[ROUNDS_MAX] = {0};
    int rounds = 5;
    enum gang_status status = GANG_OK;
    for (int i = 0; i < rounds && !status; i++) {
        status = plain_round_trip(r->seconds / 4, &plain[i]);
        if (!status) status = wire_round_trip(r->seconds / 4, &wire[i]);
        ratios[i] = wire[i] / plain[i];
    }
    if (status) return status;
    double ratio = median(ratios, rounds);
    if (!r->json) printf("  round trip    %8.1f us, plain TCP %.1f us, ratio %.2f\n", 1e6 * median(wire, rounds), 1e6 * median(plain, rounds), ratio);
    add(r, "wire.small.round_trip_ratio", ratio, "ratio", false, 1.5, "8 bytes there and back, against plain TCP");
    return GANG_OK;
}

// Through a relay: how much of the rate one transfer gets, from its start until the last byte is there.
static enum gang_status bench_far(struct results *r, uint8_t *data, double gbps) {
    static const size_t sizes[] = {(size_t)256 << 20, (size_t)16 << 20};
    static const double goals[] = {0.95, 0.9};
    struct gang_relay *relay = NULL;
    struct ends ends = {{NULL, NULL}, {NULL, NULL}};
    double rate = gbps * 1e9 / 8, took;
    enum gang_status status = gang_wire_open(&(struct gang_wire_options){.rank = 1, .listen = "127.0.0.1:0"}, &ends.wires[1]);
    if (!status)
        status = gang_relay_open(
            &(struct gang_relay_options){.listen = "127.0.0.1:0", .to = gang_wire_address(ends.wires[1]), .rtt_s = far_rtt_s, .bytes_per_s = rate},
            &relay);
    if (!status) status = ends_open(&ends, 1, FAR_STREAMS, NULL, ends.wires[1], gang_relay_address(relay));
    if (!status) status = transfer(&ends, data, sizes[1], 1, 1, &took); // connect, grow
    for (int i = 0; i < 2 && !status; i++) {
        double shares[FAR_ROUNDS];
        char name[64], human[GANG_HUMAN_BYTES];
        for (int k = 0; k < FAR_ROUNDS && !status; k++) {
            status = transfer(&ends, data, sizes[i], 1, 1, &took);
            shares[k] = (double)sizes[i] / took / rate;
        }
        if (status) break;
        double share = median(shares, FAR_ROUNDS);
        if (!r->json)
            printf("  %g Gbit/s, %.0f ms round trip, %s: %.3f of the rate\n", gbps, 1e3 * far_rtt_s, gang_human_bytes((double)sizes[i], human),
                   share);
        snprintf(name, sizeof name, "wire.far.%ggbps.%zuMiB.share", gbps, sizes[i] >> 20);
        add(r, name, share, "ratio", true, goals[i], "of the relay's rate, 5 ms round trip, from the call until the last byte is there");
    }
    ends_close(&ends);
    gang_relay_close(relay);
    return status;
}

// Of a transfer between two sites, as part of the rate of the packet relay between them.
static enum gang_status share_of_packets(const struct gang_sites *sites, uint8_t *data, const char *secret_path, double rate, double *share) {
    struct ends ends = {{NULL, NULL}, {NULL, NULL}};
    char listen[GANG_ADDRESS_TEXT];
    double took, shares[FAR_ROUNDS];
    snprintf(listen, sizeof listen, "%s:0", gang_sites_host(1));
    enum gang_status status = gang_sites_enter(sites, 1);
    if (!status) status = gang_wire_open(&(struct gang_wire_options){.rank = 1, .listen = listen, .secret_path = secret_path}, &ends.wires[1]);
    if (!status) status = gang_sites_enter(sites, 0);
    if (!status) status = ends_open(&ends, 1, FAR_STREAMS, secret_path, ends.wires[1], gang_wire_address(ends.wires[1]));
    if (!status) status = transfer(&ends, data, (size_t)16 << 20, 1, 1, &took); // connect, grow
    for (int k = 0; k < FAR_ROUNDS && !status; k++) {
        status = transfer(&ends, data, most_bytes, 1, 1, &took);
        shares[k] = (double)most_bytes / took / rate;
    }
    ends_close(&ends);
    enum gang_status back = gang_sites_enter(sites, -1);
    if (status || back) return status ? status : back;
    *share = median(shares, FAR_ROUNDS);
    return GANG_OK;
}

static enum gang_status bench_packets(struct results *r, uint8_t *data, double loss, const char *name, double goal) {
    static const double rate = 125e6;
    char path[SECRET_PATH];
    double share = 0;
    struct gang_sites *sites;
    if (gang_sites_open(&(struct gang_relay_options){.rtt_s = far_rtt_s, .bytes_per_s = rate, .loss = loss, .seed = 1}, &sites)) {
        if (!r->json) printf("  %g %% of packets lost: not on this machine: %s\n", 100 * loss, gang_error());
        return GANG_OK;
    }
    enum gang_status status = write_secret(path);
    if (!status) {
        status = share_of_packets(sites, data, path, rate, &share);
        unlink(path);
    }
    gang_sites_close(sites);
    if (status) return status;
    if (!r->json) printf("  1 Gbit/s, 5 ms round trip, %g %% of packets lost, TLS, 256 MiB: %.3f of the rate\n", 100 * loss, share);
    add(r, name, share, "ratio", true, goal, "of the packet relay's rate, headers included, 256 MiB over TLS at 1 Gbit/s and 5 ms");
    return GANG_OK;
}

struct summing {
    struct gang_comm *group;
    float *data;
    size_t count;
    int rounds;
    enum gang_status status;
};

static void *sum(void *context) {
    struct summing *s = context;
    for (int i = 0; i < s->rounds && !s->status; i++) s->status = gang_all_reduce(s->group, s->data, s->count, GANG_ELEMENT_F32);
    return NULL;
}

// Seconds per all-reduce; each rank has its own part of `data`.
static enum gang_status all_reduce(struct gang_comm *const *groups, int ranks, uint8_t *data, size_t bytes, int rounds, double *each_s) {
    struct summing jobs[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    enum gang_status status = GANG_OK;
    for (int i = 0; i < ranks; i++)
        jobs[i] = (struct summing){groups[i], (float *)(data + (size_t)i * (2 * most_bytes / RANKS_MAX)), bytes / sizeof(float), rounds, GANG_OK};
    double start = gang_seconds();
    for (int i = 0; i < ranks; i++)
        if (pthread_create(&threads[i], NULL, sum, &jobs[i])) return gang_fail_os("bench: cannot start a thread");
    for (int i = 0; i < ranks; i++) {
        pthread_join(threads[i], NULL);
        status = status ? status : jobs[i].status;
    }
    *each_s = (gang_seconds() - start) / rounds;
    return status;
}

static enum gang_status bench_all_reduce(struct results *r, uint8_t *data, bool shared) {
    static const size_t sizes[] = {(size_t)1 << 20, (size_t)16 << 20, (size_t)64 << 20};
    struct ends ends;
    struct gang_comm *groups[2] = {NULL, NULL};
    enum gang_status status = shared ? ends_open_shared(&ends) : ends_open(&ends, 1, 1, NULL, NULL, NULL);
    memset(data, 0, most_bytes);
    memset(data + most_bytes, 0, most_bytes);
    for (int i = 0; i < 2 && !status; i++) {
        struct gang_wire_link *links[2] = {ends.links[i], ends.links[i]};
        status = gang_comm_new(ends.wires[i], links, 2, i, 100, &groups[i]);
    }
    for (int k = 0; k < 3 && !status; k++) {
        double each = 0, once = 0, both = 0, ratios[ROUNDS_MAX], rates[ROUNDS_MAX];
        int rounds = 3;
        char human[GANG_HUMAN_BYTES];
        status = all_reduce(groups, 2, data, sizes[k], 2, &once);
        for (int i = 0; i < rounds && !status; i++) {
            int count = 1 + (int)(r->seconds / 4 / once);
            status = pump_both_ways(r->seconds / 4, data, &both);
            if (!status) status = all_reduce(groups, 2, data, sizes[k], count, &each);
            rates[i] = (double)sizes[k] / each;
            ratios[i] = rates[i] / both;
        }
        if (status) break;
        double ratio = median(ratios, rounds);
        if (!r->json)
            printf("  all-reduce of %-10s by 2 ranks%s: %.3f GB/s of buffer, %.2f of plain TCP both ways\n",
                   gang_human_bytes((double)sizes[k], human), shared ? ", shared memory" : "", median(rates, rounds) / 1e9, ratio);
        char name[64];
        snprintf(name, sizeof name, "wire.%sall_reduce.%zuMiB.rate", shared ? "shared." : "", sizes[k] >> 20);
        add(r, name, median(rates, rounds) / 1e9, "GB/s", true, 0, "of buffer, f32, 2 ranks; for the comparison with Open MPI");
        if (k == 2)
            add(r, shared ? "wire.shared.all_reduce.64MiB.ratio_to_duplex_pump" : "wire.all_reduce.64MiB.ratio_to_duplex_pump", ratio, "ratio", true,
                shared ? 1 : 0.8, "f32, 2 ranks, against plain TCP both ways at once");
    }
    gang_comm_free(groups[0]);
    gang_comm_free(groups[1]);
    ends_close(&ends);
    return status;
}

// Ranks on two sites, with a relay between them.
struct sites {
    int ranks;
    struct gang_relay *relay;
    struct gang_wire *wires[RANKS_MAX];
    struct gang_wire_link *links[RANKS_MAX][RANKS_MAX];
    struct gang_comm *groups[RANKS_MAX];
};

static enum gang_status sites_join(struct sites *s, int i, int j) {
    char far[GANG_ADDRESS_TEXT];
    struct gang_wire_plane plane = {.remote = gang_wire_address(s->wires[j])};
    struct gang_wire_link_options options = {.peer = i, .planes = 1, .streams = 1};
    bool long_way = i / (s->ranks / 2) != j / (s->ranks / 2);
    enum gang_status status = long_way ? gang_relay_add(s->relay, plane.remote, far) : GANG_OK;
    if (long_way) plane.remote = far;
    if (!status) status = gang_wire_join(s->wires[j], &options, &s->links[j][i]);
    options.peer = j;
    options.plane = &plane;
    return status ? status : gang_wire_join(s->wires[i], &options, &s->links[i][j]);
}

static enum gang_status sites_open(struct sites *s, int ranks, double rate) {
    int site_of[RANKS_MAX];
    *s = (struct sites){.ranks = ranks};
    enum gang_status status = gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0", .rtt_s = far_rtt_s, .bytes_per_s = rate},
                                              &s->relay);
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
    gang_relay_close(s->relay);
}

static enum gang_status bench_sites(struct results *r, uint8_t *data, int ranks, double goal) {
    static const double rate = 250e6;
    double each, shares[FAR_ROUNDS];
    struct sites sites;
    char name[64];
    enum gang_status status = sites_open(&sites, ranks, rate);
    if (!status) status = all_reduce(sites.groups, ranks, data, large_bytes, 1, &each);
    for (int i = 0; i < FAR_ROUNDS && !status; i++) {
        status = all_reduce(sites.groups, ranks, data, large_bytes, 1, &each);
        shares[i] = (double)large_bytes / rate / each;
    }
    sites_close(&sites);
    if (status) return status;
    double share = median(shares, FAR_ROUNDS);
    if (!r->json) printf("  all-reduce of 64 MiB by %d ranks on two sites, 2 Gbit/s, 5 ms round trip: %.3f of the link's bound\n", ranks, share);
    snprintf(name, sizeof name, "wire.sites.all_reduce.%dranks.share", ranks);
    add(r, name, share, "ratio", true, goal, "64 MiB f32, relay of 2 Gbit/s and 5 ms; the bound: the buffer crosses once each way");
    return GANG_OK;
}

static void print_json(const struct results *r) {
    printf("[\n");
    for (int i = 0; i < r->count; i++) {
        const struct entry *e = &r->entries[i];
        bool holds = e->at_least ? e->value >= e->goal : e->value <= e->goal;
        printf("  {\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"goal\": \"%s %g\", \"holds\": %s, \"note\": \"%s\"}%s\n", e->name, e->value,
               e->unit, e->at_least ? ">=" : "<=", e->goal, holds ? "true" : "false", e->note, i + 1 < r->count ? "," : "");
    }
    printf("]\n");
}

static int run_bench(int argc, char **argv) {
    struct results results = {0};
    const char *area[1] = {NULL}, *seconds = "1s";
    const struct gang_option options[] = {{"--json", NULL, &results.json}, {"--time", &seconds, NULL}};
    int code = gang_options(&gang_command_bench, argc, argv, options, 2, 1, 1, area);
    if (code >= 0) return code;
    if (strcmp(area[0], "wire") != 0) {
        fprintf(stderr, "gangline: bench: unknown area '%s': expected wire\n", area[0]);
        return EXIT_USAGE;
    }
    if (gang_parse_quantity("bench: --time", seconds, GANG_UNIT_TIME, 0.01, 60, &results.seconds)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    void *data = NULL;
    enum gang_status status = gang_big_alloc(2 * most_bytes, &data);
    if (!status) memset(data, 0x5a, 2 * most_bytes);
    for (int planes = 1; planes <= STREAMS_MAX && !status; planes *= 2) status = bench_planes(&results, data, planes, NULL);
    if (!status) status = bench_shared(&results, data);
    if (!status) status = bench_tls(&results, data);
    if (!status) status = bench_round_trip(&results);
    if (!status) status = bench_sizes(&results, data);
    if (!status) status = bench_all_reduce(&results, data, false);
    if (!status) status = bench_all_reduce(&results, data, true);
    if (!status) status = bench_far(&results, data, 1);
    if (!status) status = bench_far(&results, data, 4);
    if (!status) status = bench_packets(&results, data, 0, "wire.packets.lossless.share", 0.85);
    if (!status) status = bench_packets(&results, data, 0.001, "wire.packets.loss1e-3.share", 0.85);
    if (!status) status = bench_sites(&results, data, 2, 0.95);
    if (!status) status = bench_sites(&results, data, RANKS_MAX, 0.93);
    gang_big_free(data, 2 * most_bytes);
    if (!status && results.json) print_json(&results);
    return gang_report(status);
}

const struct gang_command gang_command_bench = {
    .name = "bench",
    .arguments = "wire [--json]",
    .summary = "Measure the wire beside plain sockets",
    .run = run_bench,
    .help = "  --json      one object per figure: name, value, unit, goal, holds, note\n"
            "  --time T    about so long per figure (1s)\n\n"
            "Ratios come from one run, plain sockets and wire in turns. Two cores are busy while it runs.\n\n"
            "example: gangline bench wire\n",
};
