// Small messages: a burst goes out in few calls of the system.
#include "../test.h"
#include "pair.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int calls;

// In the place of the C library's: counts.
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
    return syscall(SYS_sendmsg, fd, message, flags);
}

enum { COUNT = 4096, BURST = 256, MESSAGE_BYTES = 64 };

static void send_burst(struct gang_wire_link *link, int first) {
    struct gang_wire_op ops[BURST];
    for (int i = 0; i < BURST; i++) {
        uint8_t data[MESSAGE_BYTES];
        fill(data, sizeof data, (uint64_t)(first + i));
        assert_ok(gang_wire_send(link, 1, 0, data, sizeof data, &ops[i]));
        if (!gang_wire_done(&ops[i])) assert_ok(gang_wire_wait(&ops[i])); // from the sender's memory, since all places are taken
    }
}

static void receive_burst(struct gang_wire_link *link, int first, int count) {
    for (int i = 0; i < count; i++) {
        uint8_t data[MESSAGE_BYTES], expected[MESSAGE_BYTES];
        struct gang_wire_op op;
        assert_ok(gang_wire_recv(link, 1, data, sizeof data, &op));
        assert_ok(gang_wire_wait(&op));
        fill(expected, sizeof expected, (uint64_t)(first + i));
        assert_memory_equal(data, expected, sizeof data);
    }
}

static void test_a_burst_goes_in_few_calls(void **state) {
    (void)state;
    struct pair pair = open_pair(1, 1);
    send_burst(pair.links[0], 0);
    receive_burst(pair.links[1], 0, BURST); // they are connected
    int before = __atomic_load_n(&calls, __ATOMIC_RELAXED);
    for (int i = 0; i < COUNT; i += BURST) {
        send_burst(pair.links[0], i);
        receive_burst(pair.links[1], i, BURST);
    }
    int took = __atomic_load_n(&calls, __ATOMIC_RELAXED) - before;
    print_message("%d messages in %d calls, reports and all\n", COUNT, took);
    // Sanitizers make a burst so slow that it is none.
    if (!getenv("GANG_SANITIZED")) assert_true(took < COUNT / 2);
    close_pair(&pair);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_burst_goes_in_few_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
