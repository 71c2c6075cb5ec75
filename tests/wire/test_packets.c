// The packet relay between two sites of their own: distance, rate and all that can befall a packet, seen by plain sockets and by a
// link. Where there is no root, or the kernel lacks something, only the errors are looked at.
#include "../test.h"

#include "../scratch.h"
#include "pair.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>

static struct gang_relay_report report_of(const struct gang_sites *sites) {
    struct gang_relay_report report;
    gang_relay_report(gang_sites_relay(sites), &report);
    return report;
}

// Skips the test where sites cannot be made.
static struct gang_sites *open_sites(struct gang_relay_options options) {
    struct gang_sites *sites;
    options.seed = test_seed();
    enum gang_status status = gang_sites_open(&options, &sites);
    if (status == GANG_OK) return sites;
    if (geteuid() == 0 && status != GANG_ERR_OS) fail_msg("%s", gang_error());
    print_message("not on this machine: %s\n", gang_error());
    skip();
    return NULL;
}

// ---- Datagrams: every packet by its number -----------------------------------------------------------------------------

enum { DATAGRAMS = 3000, TOGETHER = 64, DATAGRAM_BYTES = 1000, WIRE_BYTES = DATAGRAM_BYTES + 8 + 20 + 14 };

struct datagrams {
    int fds[2]; // from, to
    double left[DATAGRAMS], came[DATAGRAMS];
    int times[DATAGRAMS], overtaken, order[2 * DATAGRAMS], count;
};

static int socket_in(const struct gang_sites *sites, int site, int type, struct sockaddr_in *address) {
    static const int bytes = 64 << 20;
    socklen_t length = sizeof *address;
    assert_ok(gang_sites_enter(sites, site));
    int fd = socket(AF_INET, type, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET};
    inet_pton(AF_INET, gang_sites_host(site), &address->sin_addr);
    assert_int_equal(bind(fd, (struct sockaddr *)address, sizeof *address), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)address, &length), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes), 0);
    assert_ok(gang_sites_enter(sites, -1));
    return fd;
}

// Takes what is there, waiting for it for at most so long. False: nothing came.
static bool take(struct datagrams *d, int wait_ms) {
    uint32_t data[DATAGRAM_BYTES / 4];
    struct pollfd readable = {.fd = d->fds[1], .events = POLLIN};
    if (poll(&readable, 1, wait_ms) != 1) return false;
    assert_int_equal(recv(d->fds[1], data, sizeof data, 0), DATAGRAM_BYTES);
    if (data[0] >= DATAGRAMS) return true; // of the greeting
    assert_true(d->count < 2 * DATAGRAMS);
    if (d->count && d->order[d->count - 1] > (int)data[0]) d->overtaken++;
    d->order[d->count++] = (int)data[0];
    if (!d->times[data[0]]++) d->came[data[0]] = gang_seconds();
    return true;
}

static void send_one(const struct datagrams *d, uint32_t number) {
    uint32_t data[DATAGRAM_BYTES / 4] = {number};
    assert_int_equal(send(d->fds[0], data, sizeof data, 0), DATAGRAM_BYTES);
}

static void exchange(const struct gang_sites *sites, struct datagrams *d) {
    struct sockaddr_in from, to;
    d->fds[0] = socket_in(sites, 0, SOCK_DGRAM, &from);
    d->fds[1] = socket_in(sites, 1, SOCK_DGRAM, &to);
    assert_int_equal(connect(d->fds[0], (struct sockaddr *)&to, sizeof to), 0);
    do send_one(d, UINT32_MAX); // until the sites have found each other
    while (!take(d, 50));
    while (take(d, 500)) {}
    uint64_t before = report_of(sites).packets;
    for (uint32_t i = 0; i < DATAGRAMS; i++) {
        d->left[i] = gang_seconds();
        send_one(d, i);
        while (take(d, 0)) {}
        // No more at a time than the queues of any kernel hold.
        while (i % TOGETHER == 0 && report_of(sites).packets < before + i) (void)take(d, 1);
    }
    while (take(d, 500)) {}
    close(d->fds[0]);
    close(d->fds[1]);
}

static void test_no_packet_comes_before_its_time(void **state) {
    (void)state;
    static const double rate = 20e6;
    static struct datagrams d;
    struct gang_sites *sites = open_sites((struct gang_relay_options){.rtt_s = 0.4, .bytes_per_s = rate});
    memset(&d, 0, sizeof d);
    exchange(sites, &d);
    for (int i = 0; i < DATAGRAMS; i++) {
        assert_int_equal(d.times[i], 1);
        assert_true(d.came[i] - d.left[i] >= 0.2);
        assert_true(d.came[i] - d.left[0] >= 0.2 + (i + 1) * WIRE_BYTES / rate - 1e-6);
    }
    assert_int_equal(d.overtaken, 0);
    struct gang_relay_report report = report_of(sites);
    assert_true(report.bytes[0] >= (uint64_t)DATAGRAMS * WIRE_BYTES);
    assert_true(report.overflowed + report.lost + report.doubled + report.reordered == 0);
    gang_sites_close(sites);
}

static void test_the_queue_is_a_round_trip_of_the_rate(void **state) {
    (void)state;
    static struct datagrams d;
    struct gang_sites *sites = open_sites((struct gang_relay_options){.rtt_s = 0.01, .bytes_per_s = 1e6});
    memset(&d, 0, sizeof d);
    exchange(sites, &d);
    struct gang_relay_report report = report_of(sites);
    print_message("%d of %d came; %llu found the queue full, %llu missed\n", d.count, DATAGRAMS, (unsigned long long)report.overflowed,
                  (unsigned long long)report.missed);
    assert_true(d.count < DATAGRAMS && d.count > 5 && (int)report.overflowed >= DATAGRAMS - d.count);
    gang_sites_close(sites);
}

static void test_faults_are_as_many_as_said(void **state) {
    (void)state;
    static struct datagrams d;
    struct gang_sites *sites = open_sites((struct gang_relay_options){.rtt_s = 0.002, .loss = 0.02, .doubled = 0.02, .reordered = 0.02});
    memset(&d, 0, sizeof d);
    exchange(sites, &d);
    struct gang_relay_report report = report_of(sites);
    int lost = 0, doubled = 0;
    for (int i = 0; i < DATAGRAMS; i++) {
        assert_true(d.times[i] <= 2);
        lost += !d.times[i];
        doubled += d.times[i] == 2;
    }
    print_message("%d lost, %d doubled, %d overtaken; the relay says %llu, %llu, %llu\n", lost, doubled, d.overtaken, (unsigned long long)report.lost,
                  (unsigned long long)report.doubled, (unsigned long long)report.reordered);
    uint64_t others = report.packets - DATAGRAMS; // greetings, and what the kernels say to each other
    assert_in_range(lost, DATAGRAMS * 0.01, DATAGRAMS * 0.03);
    assert_in_range(doubled, DATAGRAMS * 0.01, DATAGRAMS * 0.03);
    assert_in_range(report.lost - (uint64_t)lost, 0, others);
    assert_in_range(report.doubled - (uint64_t)doubled, 0, others);
    assert_in_range(d.overtaken, 1, report.reordered);
    gang_sites_close(sites);
}

// ---- TCP: frames of many packets ---------------------------------------------------------------------------------------

struct stream {
    int fd;
    uint8_t *data;
    size_t bytes;
};

static void *send_stream(void *context) {
    struct stream *s = context;
    for (size_t done = 0; done < s->bytes;) {
        ssize_t n = send(s->fd, s->data + done, s->bytes - done, MSG_NOSIGNAL);
        if (n <= 0) break;
        done += (size_t)n;
    }
    return NULL;
}

static void *receive_stream(void *context) {
    struct stream *s = context;
    if (recv(s->fd, s->data, s->bytes, MSG_WAITALL) != (ssize_t)s->bytes) s->bytes = 0;
    return NULL;
}

static void connect_tcp(const struct gang_sites *sites, int fds[2]) {
    struct sockaddr_in from, to;
    int listener = socket_in(sites, 1, SOCK_STREAM, &to);
    assert_int_equal(listen(listener, 1), 0);
    fds[0] = socket_in(sites, 0, SOCK_STREAM, &from);
    assert_int_equal(connect(fds[0], (struct sockaddr *)&to, sizeof to), 0);
    fds[1] = accept(listener, NULL, NULL);
    close(listener);
}

// Bits that differ after the way through a plain connection, both ways at once.
static uint64_t through_tcp(const struct gang_sites *sites, size_t bytes) {
    int fds[2];
    struct stream out[2], in[2];
    pthread_t threads[4];
    uint64_t differ = 0;
    connect_tcp(sites, fds);
    for (int i = 0; i < 2; i++) {
        out[i] = (struct stream){fds[i], malloc(bytes), bytes};
        in[i] = (struct stream){fds[!i], calloc(1, bytes), bytes};
        fill(out[i].data, bytes, (uint64_t)i + 1);
        assert_int_equal(pthread_create(&threads[2 * i], NULL, send_stream, &out[i]), 0);
        assert_int_equal(pthread_create(&threads[2 * i + 1], NULL, receive_stream, &in[i]), 0);
    }
    for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(in[i].bytes, bytes);
        for (size_t k = 0; k < bytes; k++) differ += (uint64_t)__builtin_popcount(out[i].data[k] ^ in[i].data[k]);
        close(fds[i]);
        free(out[i].data);
        free(in[i].data);
    }
    return differ;
}

static void test_tcp_comes_whole_through_all_faults(void **state) {
    (void)state;
    struct gang_sites *sites = open_sites(
        (struct gang_relay_options){.rtt_s = 0.002, .bytes_per_s = 100e6, .jitter_s = 0.001, .loss = 0.002, .doubled = 0.002, .reordered = 0.002});
    assert_int_equal(through_tcp(sites, 16 << 20), 0);
    for (int i = 0; i < 60; i++) assert_int_equal(through_tcp(sites, 200000), 0); // the queues run empty in between
    struct gang_relay_report report = report_of(sites);
    print_message("%llu packets, %llu lost, %llu doubled, %llu reordered\n", (unsigned long long)report.packets, (unsigned long long)report.lost,
                  (unsigned long long)report.doubled, (unsigned long long)report.reordered);
    assert_true(report.packets > 2 * (16 << 20) / 1500); // not frames of 64 KiB
    assert_true(report.lost && report.doubled && report.reordered);
    gang_sites_close(sites);
}

static void test_flipped_bits_pass_tcp_unseen(void **state) {
    (void)state;
    struct gang_sites *sites = open_sites((struct gang_relay_options){.rtt_s = 0.001, .flips = 1e-7});
    uint64_t differ = through_tcp(sites, 16 << 20), flipped = report_of(sites).flipped;
    print_message("%llu bits differ, %llu flipped\n", (unsigned long long)differ, (unsigned long long)flipped);
    assert_true(differ > 0 && differ <= flipped); // fewer where a packet was sent again
    gang_sites_close(sites);
}

// ---- A link --------------------------------------------------------------------------------------------------------

static struct gang_wire *open_wire_in(const struct gang_sites *sites, int site, int64_t dead_ms) {
    char listen[GANG_ADDRESS_TEXT];
    const char *secret = scratch_text("secret", "0123456789abcdef0123456789abcdef");
    struct gang_wire *wire;
    assert_int_equal(chmod(secret, 0600), 0);
    assert_ok(gang_sites_enter(sites, site));
    snprintf(listen, sizeof listen, "%s:0", gang_sites_host(site));
    assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = site, .listen = listen, .secret_path = secret, .dead_ms = dead_ms}, &wire));
    return wire;
}

// The calling thread stays in site 0, which connects.
static struct pair open_pair_in(const struct gang_sites *sites, int64_t dead_ms) {
    struct pair pair;
    for (int i = 1; i >= 0; i--) pair.wires[i] = open_wire_in(sites, i, dead_ms);
    pair.links[1] = join_to(pair.wires[1], 0, NULL, 1, 2);
    pair.links[0] = join_directly(pair.wires[0], 1, gang_wire_address(pair.wires[1]), 1, 2);
    return pair;
}

static void close_pair_in(struct gang_sites *sites, struct pair *pair) {
    close_pair(pair);
    assert_ok(gang_sites_enter(sites, -1));
    gang_sites_close(sites);
}

// TCP whose retransmission is lost as well stands still for longer, up to seconds here: nobody may be given up for that.
enum { PATIENT_MS = 20000 };

static void test_a_link_through_all_faults(void **state) {
    (void)state;
    struct gang_sites *sites = open_sites((struct gang_relay_options){.rtt_s = 0.005,
                                                                      .bytes_per_s = 100e6,
                                                                      .jitter_s = 0.001,
                                                                      .loss = 0.001,
                                                                      .doubled = 0.001,
                                                                      .reordered = 0.001,
                                                                      .flips = 2e-8,
                                                                      .outage_s = 0.05,
                                                                      .outage_every_s = 0.4});
    struct pair pair = open_pair_in(sites, PATIENT_MS);
    assert_true(round_trip(&pair) >= 0.005);
    struct gang_relay_report report;
    uint64_t round = 0;
    do { // until all of it has happened
        struct transfer t;
        double start = gang_seconds();
        start_transfer(&t, &pair, 8 << 20, round++);
        end_transfer(&t);
        assert_true(gang_seconds() - start >= (8 << 20) / 100e6); // nothing is faster than the rate
        report = report_of(sites);
    } while ((!report.lost || !report.doubled || !report.reordered || !report.flipped || !report.blocked) && round < 40);
    print_message("%llu packets, %llu lost, %llu doubled, %llu reordered, %llu in outages, %llu bits flipped\n", (unsigned long long)report.packets,
                  (unsigned long long)report.lost, (unsigned long long)report.doubled, (unsigned long long)report.reordered,
                  (unsigned long long)report.blocked, (unsigned long long)report.flipped);
    assert_true(report.lost && report.doubled && report.reordered && report.flipped && report.blocked);
    close_pair_in(sites, &pair);
}

static void test_a_cut_is_death_and_a_short_one_is_not(void **state) {
    (void)state;
    struct gang_sites *sites = open_sites((struct gang_relay_options){.rtt_s = 0.002, .bytes_per_s = 50e6});
    struct pair pair = open_pair_in(sites, 0);
    struct transfer t;
    start_transfer(&t, &pair, 8 << 20, 1);
    gang_relay_cut(gang_sites_relay(sites), true);
    while (!report_of(sites).blocked) usleep(1000);
    gang_relay_cut(gang_sites_relay(sites), false);
    end_transfer(&t);
    struct gang_wire_op recv;
    char byte;
    assert_ok(gang_wire_recv(pair.links[0], 5, &byte, 1, &recv));
    gang_relay_cut(gang_sites_relay(sites), true);
    assert_fails(GANG_ERR_PEER, "has been silent", gang_wire_wait(&recv));
    close_pair_in(sites, &pair);
}

static void test_errors_are_named(void **state) {
    (void)state;
    struct gang_relay *relay;
    struct gang_sites *sites;
    if (geteuid() == 0) {
        assert_fails(GANG_ERR_INPUT, "relay: no network interface 'no0'",
                     gang_relay_open(&(struct gang_relay_options){.between = {"no0", "lo"}}, &relay));
        assert_fails(GANG_ERR_INPUT, "two interfaces are needed", gang_relay_open(&(struct gang_relay_options){.between = {"lo", "lo"}}, &relay));
        assert_int_equal(seteuid(65534), 0);
    }
    assert_fails(GANG_ERR_INPUT, "packets need root", gang_relay_open(&(struct gang_relay_options){.between = {"lo", "no0"}}, &relay));
    assert_null(relay);
    assert_fails(GANG_ERR_INPUT, "need root", gang_sites_open(&(struct gang_relay_options){0}, &sites));
    assert_null(sites);
    if (getuid() == 0) assert_int_equal(seteuid(0), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_errors_are_named),
        cmocka_unit_test(test_no_packet_comes_before_its_time),
        cmocka_unit_test(test_the_queue_is_a_round_trip_of_the_rate),
        cmocka_unit_test(test_faults_are_as_many_as_said),
        cmocka_unit_test(test_tcp_comes_whole_through_all_faults),
        cmocka_unit_test(test_flipped_bits_pass_tcp_unseen),
        cmocka_unit_test(test_a_link_through_all_faults),
        cmocka_unit_test(test_a_cut_is_death_and_a_short_one_is_not),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
