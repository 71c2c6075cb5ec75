// Coordinator, agents and workers, over each launcher that is there: all join, talk, print and end; whoever dies is named and
// nothing is left behind.
#include "../test.h"
#include "../scratch.h"
#include "hands.h"

static const char *const nodes[] = {"alpha", "beta"}, *const worker_argv[] = {"", "worker", NULL};
static const struct gang_control_worker workers[] = {{0, 0, -1}, {1, 0, -1}, {1, 0, 0}};
enum { NODES = 2, WORKERS = 3 };

static struct gang_control_options options(void) {
    return (struct gang_control_options){
        .node_count = NODES, .nodes = nodes, .worker_count = WORKERS, .workers = workers, .worker_argv = worker_argv};
}

static void hands_open(struct gang_worker *worker) { (void)worker; }

static void test_they_talk(void **state) {
    (void)state;
    struct gang_control *control;
    struct gang_control_options o = options();
    int before = descriptors();
    assert_ok(gang_control_open(&o, &control));
    static char big[3000000];
    memset(big, 7, sizeof big);
    assert_ok(gang_control_broadcast(control, DO_ECHO, big, sizeof big));
    for (int i = 0; i < WORKERS; i++) {
        struct gang_control_event event = next_event(control, false);
        assert_int_equal(event.kind, GANG_EVENT_MESSAGE);
        assert_int_equal(event.bytes, sizeof big);
        assert_memory_equal(event.data, big, sizeof big);
    }
    for (int w = 0; w < WORKERS; w++) assert_int_equal(tell(control, w).number, w);
    gang_control_close(control);
    assert_int_equal(descriptors(), before);
    await_no_descendants();
}

int main(int argc, char **argv) {
    hands_main(argc, argv);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_they_talk),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
