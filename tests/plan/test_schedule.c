// Schedules against closed forms, and the list scheduler against all of them.
#include "../test.h"

#include <math.h>

#include "plan/plan.h"

enum { MOST = 64 };

struct setting {
    double forward[MOST], input[MOST], weight[MOST], delay[MOST];
    int64_t limit[MOST];
    struct gang_timing timing;
    struct gang_arena arena;
    struct gang_order orders[MOST];
    enum gang_schedule used;
};

static void open_setting(struct setting *s, int p, int v, int64_t m, double f, double b, double w, double delay) {
    *s = (struct setting){0};
    gang_arena_init(&s->arena);
    for (int c = 0; c < p * v; c++) s->forward[c] = f, s->input[c] = b, s->weight[c] = w;
    for (int i = 0; i < p; i++) s->delay[i] = delay, s->limit[i] = 1000000;
    s->timing = (struct gang_timing){p, p * v, m, s->forward, s->input, s->weight, s->delay, s->limit, NULL, NULL, NULL};
}

static double seconds(struct setting *s, enum gang_schedule schedule) {
    assert_ok(gang_schedule_make(&s->timing, schedule, &s->arena, s->orders, &s->used));
    return gang_schedule_seconds(&s->timing, s->orders);
}

static void test_1f1b(void **state) {
    (void)state;
    // (m + p - 1) (F + B): a bubble of (p - 1) / (m + p - 1) of the step; stage s holds p - s micro-batches.
    for (int p = 1; p <= 8; p++)
        for (int m = p; m <= 4 * p; m++) {
            struct setting s;
            open_setting(&s, p, 1, m, 1, 1, 1, 0);
            assert_float_equal(seconds(&s, GANG_SCHEDULE_1F1B), (m + p - 1) * 3.0, 1e-9);
            for (int i = 0; i < p; i++) assert_int_equal(gang_schedule_in_flight(&s.orders[i]), p - i);
            gang_arena_release(&s.arena);
        }
}

static void test_interleaved(void **state) {
    (void)state;
    // Narayanan et al. 2021: the bubble shrinks by v: m (F + B) + (p - 1) (F + B) / v.
    for (int p = 2; p <= 8; p *= 2)
        for (int v = 2; v <= 4; v++)
            for (int k = 1; k <= 4; k++) {
                struct setting s;
                int m = k * p;
                open_setting(&s, p, v, m, 1.0 / v, 1.0 / v, 1.0 / v, 0);
                assert_float_equal(seconds(&s, GANG_SCHEDULE_INTERLEAVED), m * 3.0 + (p - 1) * 3.0 / v, 1e-9);
                gang_arena_release(&s.arena);
            }
    struct setting s;
    open_setting(&s, 4, 2, 6, 1, 1, 1, 0);
    assert_fails(GANG_ERR_UNSUPPORTED, "interleaved", gang_schedule_make(&s.timing, GANG_SCHEDULE_INTERLEAVED, &s.arena, s.orders, &s.used));
    gang_arena_release(&s.arena);
}

static void test_zero_bubble(void **state) {
    (void)state;
    // Qi et al. 2023, table 2: ZB-H1 idles (p - 1) (F + B - W) a stage, a third of 1F1B's where F = B = W, with 1F1B's peak memory.
    for (int p = 2; p <= 8; p++)
        for (int m = 2 * p; m <= 4 * p; m += p) {
            struct setting s;
            open_setting(&s, p, 1, m, 1, 1, 1, 0);
            double time = seconds(&s, GANG_SCHEDULE_ZERO_BUBBLE);
            if (time > m * 3.0 + (p - 1) * 1.0 + 1e-9) fail_msg("p %d m %d: %g, H1 is %g", p, m, time, m * 3.0 + (p - 1));
            for (int i = 0; i < p; i++) assert_true(gang_schedule_in_flight(&s.orders[i]) <= p);
            gang_arena_release(&s.arena);
        }
}

static void test_long_link(void **state) {
    (void)state;
    // Two stages, 5 steps of delay between: 1F1B waits for every round trip, more in flight hides it.
    struct setting s;
    open_setting(&s, 2, 1, 64, 1, 1, 1, 5);
    double rule = seconds(&s, GANG_SCHEDULE_1F1B), found = seconds(&s, GANG_SCHEDULE_AUTO);
    assert_true(rule > 64 * 3 * 1.5);
    assert_true(found < 64 * 3.0 + 2 * 5 + 6);
    s.limit[0] = s.limit[1] = 2; // without the memory it cannot
    assert_true(seconds(&s, GANG_SCHEDULE_AUTO) > 64 * 3 * 1.2);
    for (int i = 0; i < 2; i++) assert_true(gang_schedule_in_flight(&s.orders[i]) <= 2);
    gang_arena_release(&s.arena);
}

// Over random times, delays and memory, auto is never slower than a rule that applies, and within memory.
// One stage of v chunks: in groups of all m micro-batches a chunk has m backward passes behind it while the next one's go on, and the
// exchanges but the last hide there; likewise the first forward passes hide the gathers but the first.
static void test_exchanges_hide_behind_groups(void **state) {
    (void)state;
    enum { V = 4, M = 8 };
    double gather[V], reduce[V];
    for (int k = 1; k <= M; k++) {
        struct setting s;
        open_setting(&s, 1, V, M, 1, 1, 1, 0);
        for (int c = 0; c < V; c++) gather[c] = k, reduce[c] = 2 * k;
        s.timing.gather = gather, s.timing.reduce = reduce;
        double best = M * V * 3.0 + (k - 1) + (2 * k - 2);
        assert_float_equal(seconds(&s, GANG_SCHEDULE_AUTO), best, 1e-9);
        // No more is held than hides them.
        int64_t held = gang_schedule_in_flight(&s.orders[0]), group = 1;
        while (group < k) group *= 2;
        assert_int_equal(held, (V - 1) * group + 1);
        s.limit[0] = V;
        assert_true(k == 1 || seconds(&s, GANG_SCHEDULE_AUTO) > best);
        assert_true(gang_schedule_in_flight(&s.orders[0]) <= V);
        gang_arena_release(&s.arena);
    }
}

// What is left over makes a smaller group.
static void test_groups_that_do_not_divide(void **state) {
    (void)state;
    double reduce[3] = {9, 9, 9};
    struct setting s;
    open_setting(&s, 1, 3, 5, 1, 1, 1, 0);
    s.timing.reduce = reduce;
    assert_float_equal(seconds(&s, GANG_SCHEDULE_AUTO), 5 * 9 + 7, 1e-9);
    assert_int_equal(s.orders[0].count, 2 * 3 * 5);
    gang_arena_release(&s.arena);
}

static void test_never_worse(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    for (uint64_t i = 0; i < 300; i++) {
        uint64_t draw = 0;
#define DRAW(n) (int)(gang_random_at(seed, i, draw++) % (uint64_t)(n))
        int p = 1 + DRAW(6), v = p > 1 ? 1 + DRAW(3) : 1, m = 1 + DRAW(20);
        if (DRAW(2)) m = p * (1 + DRAW(4));
        struct setting s;
        open_setting(&s, p, v, m, 1, 1, 1, DRAW(3) * 0.7);
        for (int c = 0; c < p * v; c++) s.forward[c] = 1 + DRAW(5) * 0.2, s.input[c] = 1 + DRAW(5) * 0.2, s.weight[c] = 0.2 + DRAW(5) * 0.2;
        for (int j = 0; j < p; j++) s.limit[j] = v + DRAW(3 * p * v);
        double best = seconds(&s, GANG_SCHEDULE_AUTO), bound = 0;
        assert_true(isfinite(best));
        for (int j = 0; j < p; j++) {
            double work = 0;
            for (int c = j; c < p * v; c += p) work += m * (s.forward[c] + s.input[c] + s.weight[c]);
            bound = fmax(bound, work);
            assert_true(gang_schedule_in_flight(&s.orders[j]) <= s.limit[j]);
        }
        assert_true(best >= bound - 1e-9);
        for (int k = GANG_SCHEDULE_1F1B; k <= GANG_SCHEDULE_LIST; k++) {
            if (gang_schedule_make(&s.timing, (enum gang_schedule)k, &s.arena, s.orders, &s.used)) continue;
            bool fits = true;
            for (int j = 0; j < p; j++) fits &= gang_schedule_in_flight(&s.orders[j]) <= s.limit[j];
            if (fits) assert_true(best <= gang_schedule_seconds(&s.timing, s.orders) * (1 + 1e-6));
        }
        gang_arena_release(&s.arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_1f1b),
                                       cmocka_unit_test(test_interleaved),
                                       cmocka_unit_test(test_zero_bubble),
                                       cmocka_unit_test(test_long_link),
                                       cmocka_unit_test(test_exchanges_hide_behind_groups),
                                       cmocka_unit_test(test_groups_that_do_not_divide),
                                       cmocka_unit_test(test_never_worse)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
