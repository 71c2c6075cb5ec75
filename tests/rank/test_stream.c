// Streams of arrays between two wires of this process: what comes, and that the next ones come before one is taken.
#include "../test.h"

#include "rank/internal.h"

#include <pthread.h>
#include <string.h>

enum { COUNT = 3 * GANG_STREAM_AHEAD, LARGEST = 40 << 10 };

struct pair {
    struct gang_wire *wires[2];
    struct gang_wire_link *links[2]; // of 0 to 1, of 1 to 0
};

static void open_pair(struct pair *p) {
    for (int i = 0; i < 2; i++)
        assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0", .cluster = 9, .dead_ms = 20000}, &p->wires[i]));
    for (int i = 0; i < 2; i++) {
        const struct gang_wire_plane plane = {.remote = gang_wire_address(p->wires[1])};
        const struct gang_wire_link_options options = {.peer = 1 - i, .planes = 1, .plane = i ? NULL : &plane};
        assert_ok(gang_wire_join(p->wires[i], &options, &p->links[i]));
    }
}

static size_t size_of(int i) { return (size_t)(gang_random_at(1, 2, (uint64_t)i) % LARGEST) / 4 * 4 + GANG_WIRE_EAGER_BYTES + 4; }

static float *make(int i) {
    float *data = malloc(size_of(i));
    assert_non_null(data);
    for (size_t k = 0; k < size_of(i) / sizeof *data; k++) data[k] = (float)i + (float)k;
    return data;
}

static void comes(struct gang_wire_op *op) {
    double until = gang_seconds() + 20;
    while (!gang_wire_done(op) && gang_seconds() < until) gang_sleep_until(gang_seconds() + 1e-4);
    assert_true(gang_wire_done(op));
    assert_ok(gang_wire_wait(op));
}

// Gives all of them, one after another.
static void *give_all(void *context) {
    struct gang_stream out;
    gang_stream_init(&out, context);
    enum gang_status status = GANG_OK;
    for (int i = 0; i < COUNT && !status; i++) {
        float *data = make(i);
        status = gang_stream_give(&out, data, size_of(i), data);
    }
    assert_ok(gang_stream_close(&out, status));
    return NULL;
}

static void test_in_order(void **state) {
    (void)state;
    struct pair pair;
    struct gang_stream in;
    size_t sizes[COUNT];
    pthread_t thread;
    open_pair(&pair);
    for (int i = 0; i < COUNT; i++) sizes[i] = size_of(i);
    assert_int_equal(pthread_create(&thread, NULL, give_all, pair.links[1]), 0);
    gang_stream_init(&in, pair.links[0]);
    assert_ok(gang_stream_expect(&in, sizes, COUNT));
    for (int i = 0; i < COUNT; i++) {
        float *data, *expected = make(i);
        assert_ok(gang_stream_take(&in, &data));
        assert_memory_equal(data, expected, size_of(i));
        free(expected);
        assert_true(in.next - in.first <= GANG_STREAM_AHEAD && in.held <= GANG_STREAM_AHEAD_BYTES);
    }
    assert_ok(gang_stream_close(&in, GANG_OK));
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++) gang_wire_close(pair.wires[i]);
}

// While one is in the taker's hands those that may be under way beside it arrive, and the next one no more.
static void test_ahead(void **state) {
    (void)state;
    struct pair pair;
    struct gang_stream in;
    size_t sizes[GANG_STREAM_AHEAD + 1];
    struct gang_wire_op ops[GANG_STREAM_AHEAD + 1] = {0};
    float *data[GANG_STREAM_AHEAD + 1], *taken;
    open_pair(&pair);
    gang_stream_init(&in, pair.links[0]);
    for (int i = 0; i <= GANG_STREAM_AHEAD; i++) sizes[i] = size_of(i), data[i] = make(i);
    assert_ok(gang_stream_expect(&in, sizes, GANG_STREAM_AHEAD + 1));
    for (int i = 0; i <= GANG_STREAM_AHEAD; i++) assert_ok(gang_wire_send(pair.links[1], TAG_SAVE, PRIORITY_SAVE, data[i], sizes[i], &ops[i]));
    assert_ok(gang_stream_take(&in, &taken));
    for (int i = 0; i < GANG_STREAM_AHEAD; i++) comes(&ops[i]);
    assert_false(gang_wire_done(&ops[GANG_STREAM_AHEAD]));
    for (int i = 1; i <= GANG_STREAM_AHEAD; i++) assert_ok(gang_stream_take(&in, &taken));
    assert_memory_equal(taken, data[GANG_STREAM_AHEAD], sizes[GANG_STREAM_AHEAD]);
    assert_ok(gang_wire_wait(&ops[GANG_STREAM_AHEAD]));
    assert_ok(gang_stream_close(&in, GANG_OK));
    for (int i = 0; i < 2; i++) gang_wire_close(pair.wires[i]);
    for (int i = 0; i <= GANG_STREAM_AHEAD; i++) free(data[i]);
}

// Buffers of more than the limit come one at a time.
static void test_large(void **state) {
    (void)state;
    struct pair pair;
    struct gang_stream in;
    const size_t sizes[3] = {GANG_STREAM_AHEAD_BYTES, 4, 4};
    open_pair(&pair);
    gang_stream_init(&in, pair.links[0]);
    assert_ok(gang_stream_expect(&in, sizes, 3));
    assert_int_equal(in.next, 1);
    char *data = calloc(1, GANG_STREAM_AHEAD_BYTES);
    struct gang_wire_op ops[3] = {0};
    float *taken;
    for (int i = 0; i < 3; i++) assert_ok(gang_wire_send(pair.links[1], TAG_SAVE, PRIORITY_SAVE, data, sizes[i], &ops[i]));
    for (int i = 0; i < 3; i++) assert_ok(gang_stream_take(&in, &taken));
    assert_int_equal(in.next, 3);
    assert_ok(gang_stream_close(&in, GANG_OK));
    for (int i = 0; i < 3; i++) assert_ok(gang_wire_wait(&ops[i]));
    for (int i = 0; i < 2; i++) gang_wire_close(pair.wires[i]);
    free(data);
}

// The peer goes in the middle: what is under way ends with an error that names it, and the caller's own error stays the first.
static void test_lost(void **state) {
    (void)state;
    struct pair pair;
    struct gang_stream in;
    const size_t sizes[3] = {1 << 16, 1 << 16, 1 << 16};
    float *taken, *data = calloc(1, 1 << 16);
    struct gang_wire_op op = {0};
    open_pair(&pair);
    gang_stream_init(&in, pair.links[0]);
    assert_ok(gang_stream_expect(&in, sizes, 3));
    assert_ok(gang_wire_send(pair.links[1], TAG_SAVE, PRIORITY_SAVE, data, sizes[0], &op));
    assert_ok(gang_stream_take(&in, &taken));
    assert_ok(gang_wire_wait(&op));
    gang_wire_close(pair.wires[1]);
    assert_fails(GANG_ERR_PEER, "rank 1", gang_stream_take(&in, &taken));
    assert_fails(GANG_ERR_OS, "the disk", gang_stream_close(&in, gang_fail(GANG_ERR_OS, "the disk")));
    assert_int_equal(in.first, in.next);
    gang_wire_close(pair.wires[0]);
    free(data);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_in_order), cmocka_unit_test(test_ahead), cmocka_unit_test(test_large),
                                       cmocka_unit_test(test_lost)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
