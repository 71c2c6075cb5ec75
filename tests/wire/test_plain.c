// The plain carrier: what is large goes by reference, small and large in their order, and who writes to a peer that has gone hears it
// as an error, not as a signal.
#include "../test.h"
#include "wire/endpoint.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

enum { MOST = 3 << 20, PLACES = 6, STEPS = 100 };

static void connect_pair(struct gang_pipe pipes[2]) {
    struct gang_address address;
    int listener;
    assert_ok(gang_address_resolve("test", "127.0.0.1:0", &address));
    assert_ok(gang_socket_listen(&address, &listener));
    assert_ok(gang_socket_address(listener, &address));
    for (int i = 0; i < 2; i++) pipes[i] = (struct gang_pipe){.carrier = &gang_carrier_tcp, .fd = -1};
    assert_ok(gang_socket_connect(NULL, &address, &pipes[0].fd));
    assert_int_equal(poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, -1), 1);
    pipes[1].fd = gang_socket_accept(listener);
    assert_true(pipes[1].fd >= 0);
    close(listener);
}

// Cut into places of which some are large.
static void lay_out(uint64_t seed, uint64_t step, uint8_t *data, size_t bytes, struct iovec iov[PLACES]) {
    size_t done = 0;
    for (int i = 0; i < PLACES; i++) {
        size_t left = bytes - done, draw = gang_random_at(seed, 2 + (uint64_t)i, step), part = draw % 3 ? draw % 1000 : draw % (left + 1);
        part = i + 1 == PLACES || part > left ? left : part;
        iov[i] = (struct iovec){data + done, part};
        done += part;
    }
}

static void advance(struct iovec iov[PLACES], size_t bytes) {
    for (int i = 0; i < PLACES; i++) {
        size_t part = bytes < iov[i].iov_len ? bytes : iov[i].iov_len;
        iov[i].iov_base = (uint8_t *)iov[i].iov_base + part;
        iov[i].iov_len -= part;
        bytes -= part;
    }
}

static void test_bytes_keep_their_order(void **state) {
    (void)state;
    static uint8_t out[MOST], in[MOST];
    uint64_t seed = test_seed();
    struct gang_pipe pipes[2];
    connect_pair(pipes);
    for (uint64_t step = 0; step < STEPS; step++) {
        size_t bytes = 1 + gang_random_at(seed, 1, step) % (step % 4 ? 100000 : MOST), sent = 0, came = 0;
        struct iovec iov[PLACES];
        for (size_t i = 0; i < bytes; i++) out[i] = (uint8_t)(gang_random_at(seed, step + 100, i / 8) >> i % 8 * 8);
        lay_out(seed, step, out, bytes, iov);
        while (came < bytes) {
            if (sent < bytes || pipes[0].pending) {
                ssize_t n = pipes[0].carrier->write(&pipes[0], iov, sent < bytes ? PLACES : 0);
                assert_true(n >= 0 || errno == EAGAIN);
                if (n > 0) advance(iov, (size_t)n);
                sent += n > 0 ? (size_t)n : 0;
            }
            struct iovec place = {in + came, bytes - came};
            ssize_t n = pipes[1].carrier->read(&pipes[1], &place, 1);
            assert_true(n > 0 || (n < 0 && errno == EAGAIN));
            came += n > 0 ? (size_t)n : 0;
        }
        assert_int_equal(sent, bytes);
        assert_memory_equal(in, out, bytes);
    }
    for (int i = 0; i < 2; i++) pipes[i].carrier->close(&pipes[i]);
}

static void test_who_has_gone_is_an_error(void **state) {
    (void)state;
    static uint8_t data[1 << 20];
    struct iovec iov = {data, sizeof data};
    struct gang_pipe pipes[2];
    sigset_t waiting;
    signal(SIGPIPE, SIG_DFL);
    connect_pair(pipes);
    ssize_t n = pipes[0].carrier->write(&pipes[0], &iov, 1);
    assert_true(n > 0);
    pipes[1].carrier->close(&pipes[1]); // with bytes unread: a reset
    do n = pipes[0].carrier->write(&pipes[0], &iov, 1);
    while (n >= 0 || errno == EAGAIN);
    assert_true(errno == EPIPE || errno == ECONNRESET);
    n = pipes[0].carrier->write(&pipes[0], &iov, 1);
    assert_true(n < 0 && errno == EPIPE);
    sigpending(&waiting);
    assert_false(sigismember(&waiting, SIGPIPE));
    pipes[0].carrier->close(&pipes[0]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes_keep_their_order),
        cmocka_unit_test(test_who_has_gone_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
