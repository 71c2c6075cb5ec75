// Two ranks in this process, and what is carried between them.
#include "cmd/bench.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const useconds_t posting_us = 20000;

enum gang_status gang_ends_open(struct gang_ends *ends, int planes, int streams, const char *secret_path, struct gang_wire *target,
                                const char *const *through) {
    struct gang_wire_plane plane[GANG_WIRE_PLANES];
    enum gang_status status = GANG_OK;
    *ends = (struct gang_ends){{NULL, target}, {NULL, NULL}};
    for (int i = 0; i < 2 && !status; i++)
        if (!ends->wires[i])
            status = gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0", .secret_path = secret_path}, &ends->wires[i]);
    if (status) return status;
    for (int p = 0; p < planes; p++) plane[p] = (struct gang_wire_plane){.remote = through ? through[p] : gang_wire_address(ends->wires[1])};
    for (int i = 1; i >= 0 && !status; i--) {
        struct gang_wire_link_options options = {.peer = !i, .planes = planes, .streams = streams, .plane = i ? NULL : plane};
        status = gang_wire_join(ends->wires[i], &options, &ends->links[i]);
    }
    return status;
}

enum gang_status gang_ends_open_shared(struct gang_ends *ends) {
    char address[GANG_ADDRESS_TEXT + sizeof "shm:"];
    const char *const through[] = {address};
    struct gang_wire *target;
    enum gang_status status = gang_wire_open(&(struct gang_wire_options){.rank = 1, .listen = "127.0.0.1:0"}, &target);
    *ends = (struct gang_ends){{NULL, NULL}, {NULL, NULL}};
    if (status) return status;
    snprintf(address, sizeof address, "shm:%s", gang_wire_address(target));
    return gang_ends_open(ends, 1, 1, NULL, target, through);
}

void gang_ends_close(struct gang_ends *ends) {
    gang_wire_close(ends->wires[0]);
    gang_wire_close(ends->wires[1]);
}

struct receiver {
    struct gang_wire_link *link;
    uint8_t *data;
    size_t bytes;
    int64_t count;
    int in_flight;
    double end; // when the last one was here
    struct gang_arrivals *arrivals;
    enum gang_status status;
};

static void *receive(void *context) {
    struct receiver *r = context;
    struct gang_wire_op ops[GANG_BENCH_BATCH];
    size_t places = r->bytes < gang_bench_large ? gang_bench_large / r->bytes : 1;
    int64_t posted = 0;
    for (int64_t done = 0; done < r->count && !r->status; done++) {
        for (; posted < r->count && posted < done + r->in_flight && !r->status; posted++)
            r->status = gang_wire_recv(r->link, 1, r->data + gang_bench_most + (size_t)posted % places * r->bytes, r->bytes,
                                       &ops[posted % r->in_flight]);
        if (!r->status) r->status = gang_wire_wait(&ops[done % r->in_flight]);
        r->end = gang_seconds();
        if (!r->arrivals) continue;
        r->arrivals->at[done] = r->end;
        __atomic_store_n(&r->arrivals->count, done + 1, __ATOMIC_RELEASE);
    }
    return NULL;
}

enum gang_status gang_ends_transfer(struct gang_ends *ends, uint8_t *data, size_t bytes, int64_t count, int in_flight, double *took,
                                    struct gang_arrivals *arrivals) {
    struct receiver receiver = {.link = ends->links[1], .data = data, .bytes = bytes, .count = count, .in_flight = in_flight, .arrivals = arrivals};
    struct gang_wire_op ops[GANG_BENCH_BATCH];
    pthread_t thread;
    size_t places = bytes < gang_bench_large ? gang_bench_large / bytes : 1;
    int64_t posted = 0;
    enum gang_status status = GANG_OK;
    assert(bytes && in_flight > 0 && in_flight <= GANG_BENCH_BATCH);
    if (pthread_create(&thread, NULL, receive, &receiver)) return gang_fail_os("bench: cannot start a thread");
    if (in_flight == 1) usleep(posting_us); // a single receive is posted ahead, as programs do; a stream of them takes care of itself
    double start = gang_seconds();
    for (int64_t done = 0; done < count && !status; done++) {
        for (; posted < count && posted < done + in_flight && !status; posted++)
            status = gang_wire_send(ends->links[0], 1, 0, data + (size_t)posted % places * bytes, bytes, &ops[posted % in_flight]);
        if (!status) status = gang_wire_wait(&ops[done % in_flight]);
    }
    pthread_join(thread, NULL);
    *took = receiver.end - start;
    return status ? status : receiver.status;
}

enum gang_status gang_ends_carry(struct gang_ends *ends, uint8_t *data, size_t bytes, int in_flight, double seconds, double *rate) {
    int64_t count = 2 * in_flight;
    double took = 0;
    enum gang_status status = gang_ends_transfer(ends, data, bytes, count, in_flight, &took, NULL);
    if (!status) status = gang_ends_transfer(ends, data, bytes, count, in_flight, &took, NULL);
    if (status) return status;
    count = (int64_t)((double)count * seconds / took) + 1;
    status = gang_ends_transfer(ends, data, bytes, count, in_flight, &took, NULL);
    *rate = (double)count * (double)bytes / took;
    return status;
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

enum gang_status gang_bench_all_reduce(struct gang_comm *const *groups, int ranks, uint8_t *data, size_t bytes, int rounds, double *each_s) {
    struct summing jobs[GANG_BENCH_RANKS];
    pthread_t threads[GANG_BENCH_RANKS];
    enum gang_status status = GANG_OK;
    for (int i = 0; i < ranks; i++)
        jobs[i] = (struct summing){groups[i], (float *)(data + (size_t)i * (2 * gang_bench_most / GANG_BENCH_RANKS)), bytes / sizeof(float), rounds,
                                   GANG_OK};
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

enum gang_status gang_bench_secret(char path[GANG_SECRET_PATH]) {
    static const char secret[] = "not a secret: only for the benchmark";
    snprintf(path, GANG_SECRET_PATH, "/tmp/gangline_bench_XXXXXX");
    int fd = mkstemp(path); // readable by its owner only
    if (fd < 0) return gang_fail_os("bench: cannot make a file for the secret");
    enum gang_status status = write(fd, secret, sizeof secret) == (ssize_t)sizeof secret ? GANG_OK : gang_fail_os("%s: cannot write", path);
    close(fd);
    if (status) unlink(path);
    return status;
}
