// The wire over real sockets: messages of all sizes, strangers and garbage, refusals, peers that die or stop.
#include "../test.h"
#include "pair.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

// ---- Messages ------------------------------------------------------------------------------------------------------

enum { BATCH = 24, LARGEST = 3 << 20 };

static size_t draw_bytes(uint64_t seed, uint64_t i) {
    uint64_t r = gang_random_at(seed, 1, i);
    return (r & 3) == 0 ? (r >> 8) % 100 : (r & 3) == 1 ? (r >> 8) % (2 * GANG_WIRE_EAGER_BYTES) : (r >> 8) % LARGEST;
}

static const char *shared(const char *address, char out[GANG_ADDRESS_TEXT + 4]) {
    snprintf(out, GANG_ADDRESS_TEXT + 4, "shm:%s", address);
    return out;
}

// A pair of whose planes the first few are shared memory.
static struct pair open_shared(int planes, int shms, int streams) {
    struct pair pair;
    char address[GANG_ADDRESS_TEXT + 4];
    const char *addresses[GANG_WIRE_PLANES];
    for (int i = 0; i < 2; i++) pair.wires[i] = open_wire(i);
    shared(gang_wire_address(pair.wires[1]), address);
    for (int p = 0; p < planes; p++) addresses[p] = p < shms ? address : gang_wire_address(pair.wires[1]);
    pair.links[1] = join_to(pair.wires[1], 0, NULL, planes, streams);
    pair.links[0] = join_to(pair.wires[0], 1, addresses, planes, streams);
    return pair;
}

static void exchange_batch(struct pair *pair, uint64_t seed) {
    struct gang_wire_op sends[2 * BATCH], recvs[2 * BATCH];
    uint8_t *out[2 * BATCH], *in[2 * BATCH];
    for (int i = 0; i < 2 * BATCH; i++) {
        size_t bytes = draw_bytes(seed, (uint64_t)i);
        out[i] = malloc(bytes + 1);
        in[i] = calloc(1, bytes + 1);
        fill(out[i], bytes, seed + (uint64_t)i);
        uint32_t tag = (uint32_t)(i % 3);
        // Every other receive is posted after its message was sent.
        if (i % 2) assert_ok(gang_wire_recv(pair->links[i < BATCH], tag + 10u * (i % 2), in[i], bytes, &recvs[i]));
        assert_ok(gang_wire_send(pair->links[i >= BATCH], tag + 10u * (i % 2), i % GANG_WIRE_PRIORITIES, out[i], bytes, &sends[i]));
    }
    for (int i = 0; i < 2 * BATCH; i += 2)
        assert_ok(gang_wire_recv(pair->links[i < BATCH], (uint32_t)(i % 3), in[i], draw_bytes(seed, (uint64_t)i), &recvs[i]));
    for (int i = 0; i < 2 * BATCH; i++) {
        assert_ok(gang_wire_wait(&sends[i]));
        assert_ok(gang_wire_wait(&recvs[i]));
        size_t bytes = draw_bytes(seed, (uint64_t)i);
        assert_true(bytes == 0 || memcmp(out[i], in[i], bytes) == 0);
        free(out[i]);
        free(in[i]);
    }
}

static void test_messages_of_all_sizes(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    for (int shape = 0; shape < 4; shape++) {
        struct pair pair = open_pair(1 + shape % 3, 1 + shape);
        for (uint64_t round = 0; round < 4; round++) exchange_batch(&pair, seed * 1000 + round);
        close_pair(&pair);
    }
}

static void test_messages_through_shared_memory(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    for (int shape = 0; shape < 3; shape++) {
        struct pair pair = open_shared(1 + shape, 1 + shape / 2, 1 + shape % 2);
        for (uint64_t round = 0; round < 4; round++) exchange_batch(&pair, seed * 1000 + round);
        close_pair(&pair);
    }
}

static void test_many_small_messages_before_any_receive(void **state) {
    (void)state;
    enum { COUNT = 1000 };
    struct pair pair = open_pair(2, 1);
    static struct gang_wire_op sends[COUNT];
    static uint32_t values[COUNT];
    struct gang_wire_op recv;
    uint32_t value = 77;
    // More than there is credit for, on a tag that nobody wants yet; then another tag, whose receive must not starve.
    for (uint32_t i = 0; i < 900; i++) values[i] = i;
    for (int i = 0; i < 900; i++) assert_ok(gang_wire_send(pair.links[0], 1, 0, &values[i], 4, &sends[i]));
    assert_ok(gang_wire_recv(pair.links[1], 2, &value, sizeof value, &recv));
    values[COUNT - 1] = 5;
    assert_ok(gang_wire_send(pair.links[0], 2, 0, &values[COUNT - 1], 4, &sends[COUNT - 1]));
    assert_ok(gang_wire_wait(&recv));
    assert_int_equal(value, 5);
    for (int i = 0; i < 500; i++) {
        assert_ok(gang_wire_recv(pair.links[1], 1, &value, sizeof value, &recv));
        assert_ok(gang_wire_wait(&recv));
        assert_int_equal(value, i);
    }
    close_pair(&pair);
}

static void test_what_was_sent_before_closing_arrives(void **state) {
    (void)state;
    struct pair pair = open_pair(1, 2);
    struct gang_wire_op sends[10], recvs[10];
    uint32_t in[10];
    for (uint32_t i = 0; i < 10; i++) assert_ok(gang_wire_recv(pair.links[1], 4, &in[i], 4, &recvs[i]));
    uint32_t hello = 0;
    struct gang_wire_op first;
    assert_ok(gang_wire_recv(pair.links[0], 4, &hello, 4, &first));
    assert_ok(gang_wire_send(pair.links[1], 4, 0, &(uint32_t){1}, 4, &sends[0]));
    assert_ok(gang_wire_wait(&first)); // they are connected
    for (uint32_t i = 0; i < 10; i++) assert_ok(gang_wire_send(pair.links[0], 4, 0, &i, 4, &sends[i]));
    gang_wire_close(pair.wires[0]);
    for (uint32_t i = 0; i < 10; i++) {
        assert_ok(gang_wire_wait(&recvs[i]));
        assert_int_equal(in[i], i);
    }
    assert_ok(gang_wire_recv(pair.links[1], 4, in, 4, &recvs[0]) ? GANG_OK : gang_wire_wait(&recvs[0]) == GANG_ERR_PEER ? GANG_OK : GANG_ERR_INPUT);
    gang_wire_close(pair.wires[1]);
}

// ---- Bad input -----------------------------------------------------------------------------------------------------

static void expect_refusal(struct gang_wire_link *link, const char *words) {
    struct gang_wire_op op;
    char byte;
    enum gang_status status = gang_wire_recv(link, 1, &byte, 1, &op);
    assert_fails(GANG_ERR_PEER, words, status ? status : gang_wire_wait(&op));
}

static void test_refusals_are_named(void **state) {
    (void)state;
    struct gang_wire *one = open_wire(1), *other;
    join_to(one, 0, NULL, 2, 1);
    struct gang_wire *zero = open_wire(0);
    expect_refusal(join_directly(zero, 5, gang_wire_address(one), 2, 1), "here is rank 1, not rank 5");
    expect_refusal(join_directly(zero, 1, gang_wire_address(one), 3, 1), "rank 1 expects 2 planes of 1 streams, not 3 of 1");
    assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = 0, .listen = "127.0.0.1:0", .cluster = 8}, &other));
    expect_refusal(join_directly(other, 1, gang_wire_address(one), 2, 1), "rank 1 belongs to another cluster");
    struct gang_wire *quick;
    assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = 9, .listen = "127.0.0.1:0", .connect_ms = 100}, &quick));
    expect_refusal(join_to(quick, 3, NULL, 1, 1), "no connection with rank 3 within 100 ms");
    struct gang_wire *taken;
    assert_fails(GANG_ERR_OS, "cannot listen", gang_wire_open(&(struct gang_wire_options){.listen = gang_wire_address(one)}, &taken));
    assert_fails(GANG_ERR_INPUT, "cannot resolve", gang_wire_open(&(struct gang_wire_options){.listen = "no.such.host.invalid:1"}, &taken));
    assert_fails(GANG_ERR_INPUT, "expected host:port", gang_wire_open(&(struct gang_wire_options){.listen = "nonsense"}, &taken));
    gang_wire_close(quick);
    gang_wire_close(other);
    gang_wire_close(zero);
    gang_wire_close(one);
}

static void test_sizes_that_differ_are_named(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct pair pair = open_pair(1, 1);
        static uint8_t data[100000];
        struct gang_wire_op send, recv;
        assert_ok(gang_wire_recv(pair.links[1], 3, data, i ? 50000 : 10, &recv));
        enum gang_status status = gang_wire_send(pair.links[0], 3, 0, data, i ? 60000 : 20, &send);
        assert_fails(GANG_ERR_PEER, i ? "rank 0 sends 60000 bytes and rank 1 expects 50000" : "rank 0 sends 20 bytes and rank 1 expects 10",
                     gang_wire_wait(&recv));
        if (!status && i) assert_fails(GANG_ERR_PEER, "rank 1 expects 50000", gang_wire_wait(&send));
        close_pair(&pair);
    }
}

static int connect_raw(const char *text) {
    struct gang_address address;
    int fd;
    assert_ok(gang_address_resolve("test", text, &address));
    assert_ok(gang_socket_connect(NULL, &address, &fd));
    return fd;
}

static void test_strangers_break_nothing(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    struct pair pair = open_pair(2, 2);
    exchange_batch(&pair, seed);
    enum { STRANGERS = 60 };
    int fds[STRANGERS];
    for (int i = 0; i < STRANGERS; i++) fds[i] = connect_raw(gang_wire_address(pair.wires[1]));
    for (int i = 0; i < STRANGERS; i++) {
        uint8_t junk[300];
        fill(junk, sizeof junk, seed + (uint64_t)i);
        if (i % 3 == 1) memcpy(junk, "GLW1\1\1", 6);
        if (i % 3 == 2) memcpy(junk, "GET / HTTP/1.1\r\n\r\n", 18);
        // It may have been thrown out already.
        if (i % 4) (void)!send(fds[i], junk, i % 4 * 100, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
    exchange_batch(&pair, seed + 1);
    for (int i = 0; i < STRANGERS; i++) close(fds[i]);
    exchange_batch(&pair, seed + 2);
    close_pair(&pair);
}

// Who comes to the door of shared memory and brings nothing, garbage, or memory that is not what it should be.
static void test_strangers_at_the_local_door(void **state) {
    (void)state;
    enum { STRANGERS = 40 };
    int fds[STRANGERS];
    char name[GANG_ADDRESS_TEXT + 16];
    struct pair pair = open_shared(1, 1, 1);
    exchange_batch(&pair, 5);
    snprintf(name, sizeof name, "gangline-wire %s", gang_wire_address(pair.wires[1]));
    for (int i = 0; i < STRANGERS; i++) {
        assert_ok(gang_local_connect(name, &fds[i]));
        assert_true(gang_local_same_user(fds[i]));
        int memory = i % 4 == 1 ? gang_shared_new(4096) : i % 4 == 2 ? open("/proc/self/exe", O_RDONLY) : -1;
        if (memory >= 0) (void)!gang_local_pass(fds[i], memory);
        if (memory >= 0) close(memory);
        if (i % 4 == 3) (void)!send(fds[i], "garbage", 7, MSG_NOSIGNAL);
    }
    exchange_batch(&pair, 6);
    for (int i = 0; i < STRANGERS; i++) close(fds[i]);
    exchange_batch(&pair, 7);
    close_pair(&pair);
    assert_fails(GANG_ERR_OS, "cannot connect", gang_local_connect(name, &fds[0]));
}

// ---- Peers that die or stop ----------------------------------------------------------------------------------------

// Connects as rank 1 and sends numbered messages until it is ended. Runs in a process of its own.
static int send_numbered(const char *address, size_t bytes) {
    struct gang_wire *wire = open_wire(1);
    struct gang_wire_link *link = join_directly(wire, 0, address, 2, 1);
    uint8_t *data = malloc(bytes);
    for (uint64_t i = 0;; i++) {
        struct gang_wire_op op;
        fill(data, bytes, i);
        if (gang_wire_send(link, 1, 0, data, bytes, &op) || gang_wire_wait(&op)) return 1;
    }
}

// This program again: a process that has threads cannot just be forked.
static pid_t start_sender(const char *address, size_t bytes) {
    char text[32];
    snprintf(text, sizeof text, "%zu", bytes);
    pid_t child = fork();
    assert_true(child >= 0);
    if (!child) {
        execl("/proc/self/exe", "test_wire", address, text, (char *)NULL);
        _exit(1);
    }
    return child;
}

static enum gang_status receive_numbered(struct gang_wire_link *link, size_t bytes, uint64_t number) {
    struct gang_wire_op op;
    uint8_t *data = malloc(bytes), *expected = malloc(bytes);
    enum gang_status status = gang_wire_recv(link, 1, data, bytes, &op);
    if (!status) status = gang_wire_wait(&op);
    fill(expected, bytes, number);
    if (!status) assert_memory_equal(data, expected, bytes);
    free(data);
    free(expected);
    return status;
}

static void test_a_killed_peer_is_named(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    for (uint64_t round = 0; round < 6; round++) {
        char address[GANG_ADDRESS_TEXT + 4];
        struct gang_wire *wire = open_wire(0);
        struct gang_wire_link *link = join_to(wire, 1, NULL, 2, 1);
        size_t bytes = round > 1 ? 300000 : 100;
        bool memory = round % 2;
        pid_t child = start_sender(memory ? shared(gang_wire_address(wire), address) : gang_wire_address(wire), bytes);
        uint64_t count = 1 + gang_random_at(seed, 3, round) % 20, i = 0;
        for (; i < count; i++) assert_ok(receive_numbered(link, bytes, i));
        kill(child, SIGKILL);
        double start = gang_seconds();
        enum gang_status status;
        while (!(status = receive_numbered(link, bytes, i))) i++;
        assert_fails(GANG_ERR_PEER, memory ? "rank 1 is gone" : "rank 1", status);
        print_message("noticed after %.0f ms\n", 1e3 * (gang_seconds() - start));
        assert_true(gang_seconds() - start < 20);
        waitpid(child, NULL, 0);
        gang_wire_close(wire);
    }
}

static void test_a_stopped_peer_is_waited_for_and_then_given_up(void **state) {
    (void)state;
    struct gang_wire *wire;
    // Long enough that on a busy machine it is seen to be suspect before it is lost.
    assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = 0, .listen = "127.0.0.1:0", .cluster = 7, .dead_ms = 5000}, &wire));
    struct gang_wire_link *link = join_to(wire, 1, NULL, 2, 1);
    pid_t child = start_sender(gang_wire_address(wire), 100000);
    uint64_t i = 0;
    for (; i < 10; i++) assert_ok(receive_numbered(link, 100000, i));
    for (int round = 0; round < 3; round++) {
        kill(child, SIGSTOP);
        struct gang_wire_report report = {0};
        // Held, then suspect, but not lost.
        for (; !report.suspect && !report.dead; usleep(1000)) gang_wire_report(link, &report);
        assert_true(report.suspect && !report.dead);
        kill(child, SIGCONT);
        for (int n = 0; n < 10; n++, i++) assert_ok(receive_numbered(link, 100000, i));
    }
    kill(child, SIGSTOP);
    enum gang_status status;
    while (!(status = receive_numbered(link, 100000, i))) i++;
    assert_fails(GANG_ERR_PEER, "rank 1 has been silent on all 2 planes", status);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    gang_wire_close(wire);
}

int main(int argc, char **argv) {
    int64_t bytes;
    if (argc == 3 && !gang_parse_int("bytes", argv[2], 1, INT32_MAX, &bytes)) return send_numbered(argv[1], (size_t)bytes);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_of_all_sizes),
        cmocka_unit_test(test_messages_through_shared_memory),
        cmocka_unit_test(test_many_small_messages_before_any_receive),
        cmocka_unit_test(test_what_was_sent_before_closing_arrives),
        cmocka_unit_test(test_refusals_are_named),
        cmocka_unit_test(test_sizes_that_differ_are_named),
        cmocka_unit_test(test_strangers_break_nothing),
        cmocka_unit_test(test_strangers_at_the_local_door),
        cmocka_unit_test(test_a_killed_peer_is_named),
        cmocka_unit_test(test_a_stopped_peer_is_waited_for_and_then_given_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
