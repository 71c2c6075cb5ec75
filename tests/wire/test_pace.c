// Polite messages on a link with a clock of its own: they keep to their share of the rate, and nobody waits for them.
#include "../test.h"

#include "pair.h"
#include "sim.h"

enum { MESSAGE_BYTES = 400 << 10, CHUNK_LOG2 = 13 };
static const double rate = 0.01; // bytes per ns

static struct sim_side sides[2];

struct message {
    struct gang_link *from, *to;
    uint8_t *out, *in;
    int64_t sent_ns, here_ns; // here_ns 0: not yet
};

static struct sim sim;

static void on_complete(void *context, void *user, enum gang_status status) {
    struct message *message = user;
    assert_int_equal(status, GANG_OK);
    if (context == &sides[1]) message->here_ns = sim.now_ns;
}

static void on_state(void *context, enum gang_link_state state) {
    (void)context;
    assert_int_not_equal(state, LINK_DEAD);
}

static void open_link(int planes) {
    struct gang_link_config config = gang_link_defaults;
    struct gang_link_hooks hooks[2];
    sim = (struct sim){.seed = test_seed(), .next_fault_ns = SIM_NEVER};
    config.planes = planes;
    config.streams = 1;
    config.chunk_log2 = CHUNK_LOG2;
    for (int p = 0; p < planes; p++) sim.plane[p] = (struct sim_plane){.delay_ns = MS, .bytes_per_ns = rate / planes};
    for (int side = 0; side < 2; side++) {
        sides[side] = (struct sim_side){&sim, side};
        hooks[side] = (struct gang_link_hooks){&sides[side], on_complete, sim_on_reset, on_state};
    }
    sim_open(&sim, &config, hooks);
}

static void post(struct message *message, int tag, int priority, size_t bytes) {
    *message = (struct message){.out = calloc(1, bytes), .in = calloc(1, bytes), .sent_ns = sim.now_ns};
    assert_ok(gang_link_recv(sim.links[1], sim.now_ns, (uint32_t)tag, message->in, bytes, message));
    assert_ok(gang_link_send(sim.links[0], sim.now_ns, (uint32_t)tag, priority, message->out, bytes, message));
}

// Until it is there; how long it took.
static double carry(struct message *message) {
    while (!message->here_ns) sim_step(&sim, SIM_NEVER);
    return (double)(message->here_ns - message->sent_ns);
}

static void release(struct message *message) {
    for (int64_t end_ns = sim.now_ns + 100 * MS; sim.now_ns < end_ns;) sim_step(&sim, end_ns); // the sender knows, too
    free(message->out);
    free(message->in);
}

static void test_the_polite_keep_to_their_share(void **state) {
    (void)state;
    for (int planes = 1; planes <= 2; planes++) {
        struct message other, polite;
        open_link(planes);
        post(&other, 1, 0, MESSAGE_BYTES);
        double alone = carry(&other);
        release(&other);
        assert_true(alone < 1.3 * MESSAGE_BYTES / rate); // or there is nothing to measure
        for (double share = 0.5; share > 0.1; share /= 2) {
            gang_link_pace(sim.links[0], share);
            post(&polite, 2, WIRE_POLITE, MESSAGE_BYTES);
            double took = carry(&polite), got = MESSAGE_BYTES / rate / took;
            print_message("%d planes, %.3f asked for: %.3f of the rate\n", planes, share, got);
            assert_true(got > 0.8 * share && got < 1.1 * share);
            release(&polite);
        }
        gang_link_pace(sim.links[0], 0);
        post(&polite, 2, WIRE_POLITE, MESSAGE_BYTES);
        assert_true(carry(&polite) < 1.1 * alone);
        release(&polite);
        sim_close(&sim);
    }
}

// Beside others: they get what the polite leave, and the link is never idle.
static void test_others_do_not_wait_for_the_polite(void **state) {
    (void)state;
    enum { OTHERS = 8 };
    struct message others[OTHERS], polite;
    open_link(1);
    gang_link_pace(sim.links[0], 0.25);
    post(&others[0], 1, 0, MESSAGE_BYTES);
    double alone = carry(&others[0]);
    release(&others[0]);
    post(&polite, 2, WIRE_POLITE, MESSAGE_BYTES);
    for (int i = 0; i < OTHERS; i++) post(&others[i], 1, 0, MESSAGE_BYTES);
    double all = carry(&others[OTHERS - 1]);
    print_message("%d others took %.3f of the time that they take alone\n", OTHERS, all / (OTHERS * alone));
    assert_true(all < 1.1 * OTHERS * alone && !polite.here_ns);
    // What it could not use it does not make up for: it goes on at its share.
    double took = carry(&polite) - all, got = MESSAGE_BYTES / rate / took;
    print_message("and then it got %.3f of the rate\n", got);
    assert_true(got < 1.1 * 0.25);
    for (int i = 0; i < OTHERS; i++) release(&others[i]);
    release(&polite);
    sim_close(&sim);
}

// The same over sockets: whole, with others beside it.
static void test_the_polite_arrive(void **state) {
    (void)state;
    enum { BYTES = 3 << 20 };
    static uint8_t out[2][BYTES], in[2][BYTES];
    struct gang_wire_op ops[4];
    struct pair pair = open_pair(2, 1);
    gang_wire_pace(pair.links[0], 0.3);
    for (uint64_t round = 0; round < 3; round++) {
        for (int i = 0; i < 2; i++) {
            fill(out[i], BYTES, 2 * round + (uint64_t)i);
            assert_ok(gang_wire_recv(pair.links[1], 1 + (uint32_t)i, in[i], BYTES, &ops[i]));
            assert_ok(gang_wire_send(pair.links[0], 1 + (uint32_t)i, i ? GANG_WIRE_POLITE : 0, out[i], BYTES, &ops[2 + i]));
        }
        for (int i = 0; i < 4; i++) assert_ok(gang_wire_wait(&ops[i]));
        assert_memory_equal(in, out, sizeof in);
    }
    close_pair(&pair);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_polite_keep_to_their_share),
        cmocka_unit_test(test_others_do_not_wait_for_the_polite),
        cmocka_unit_test(test_the_polite_arrive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
