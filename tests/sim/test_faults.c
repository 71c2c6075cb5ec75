// The fault model against Daly's closed form, and what each kind of fault must do.
#include "../test.h"
#include "../scratch.h"

#include <math.h>

#include "sim/sim.h"

static struct gang_faults plain(void) {
    return (struct gang_faults){.length = 100 * 86400.0,
                                .trials = 300,
                                .seed = 1,
                                .node_mtbf = 200 * 86400.0,
                                .weibull_shape = 1,
                                .offender_factor = 1,
                                .slow_speed = 1,
                                .detect = 120,
                                .restart = 480,
                                .spare_nodes = 1000,
                                .repair = 86400,
                                .checkpoint_interval = 1800,
                                .checkpoint_cost = 60};
}

static double availability(const struct gang_faults *f, int64_t nodes) {
    struct gang_fault_result r;
    gang_faults_run(f, nodes, &r);
    assert_true(r.low <= r.availability + 1e-9 && r.high >= r.availability - 1e-9);
    return r.availability;
}

static void test_daly(void **state) {
    (void)state;
    struct gang_faults f = plain();
    for (int64_t nodes = 16; nodes <= 4096; nodes *= 4) {
        double expected = 1 / gang_daly_seconds(1, f.checkpoint_interval, f.checkpoint_cost, f.detect + f.restart, f.node_mtbf / (double)nodes);
        double found = availability(&f, nodes);
        // Faults do not fall into a stop here, in Daly's form they may: a difference of the second order.
        if (fabs(found - expected) > 0.01 + 0.05 * (1 - expected)) fail_msg("%lld nodes: %.4f, closed form %.4f", (long long)nodes, found, expected);
    }
}

static void test_kinds(void **state) {
    (void)state;
    struct gang_faults f = plain();
    double base = availability(&f, 512);
    assert_true(base == availability(&f, 512)); // to the bit
    struct gang_faults g = f;
    g.node_mtbf = 0;
    assert_float_equal(availability(&g, 512), 1800.0 / 1860, 1e-3); // only checkpoints
    g = f, g.offender_share = 0.05, g.offender_factor = 20;
    assert_true(availability(&g, 512) < base);
    struct gang_fault_domains domains[] = {{16, 16}, {8, 32}};
    g = f, g.domain_mtbf = 30 * 86400.0, g.domains = domains, g.domain_count = 1;
    double one = availability(&g, 512);
    g.domain_count = 2;
    assert_true(availability(&g, 512) < one && one < base);
    g = f, g.slow_mtbf = 500 * 86400.0, g.slow_speed = 0.5, g.slow_detect = 3600;
    assert_true(availability(&g, 512) < base);
    g = f, g.spare_nodes = 0;
    assert_true(availability(&g, 512) < base / 2); // every failure waits a day
    g = f, g.weibull_shape = 0.6;
    assert_true(availability(&g, 512) < base); // fresh nodes fail more: bursts at the start
}

static void test_planes(void **state) {
    (void)state;
    // Only links fail: the share of time with k of n planes out is binomial, and each has its speed.
    for (int64_t planes = 1; planes <= 4; planes++) {
        double speed[5] = {1, 0.9, 0.6, 0.3, 0}, expected = 0, out = 3600.0 / (86400 + 3600), choose = 1;
        struct gang_fault_link link = {.planes = planes, .every = 86400, .length = 3600, .speed = speed};
        struct gang_faults f = plain();
        speed[planes] = 0;
        f.node_mtbf = 0, f.checkpoint_cost = 0, f.links = &link, f.link_count = 1;
        for (int64_t k = 0; k <= planes; k++) {
            expected += choose * pow(out, (double)k) * pow(1 - out, (double)(planes - k)) * speed[k];
            choose = choose * (double)(planes - k) / (double)(k + 1);
        }
        assert_float_equal(availability(&f, 16), expected, 0.002);
        f.node_mtbf = 200 * 86400.0;
        assert_true(availability(&f, 512) < expected);
    }
}

static void test_best_interval(void **state) {
    (void)state;
    struct gang_faults f = plain();
    struct gang_fault_result r;
    f.checkpoint_interval = 0;
    gang_faults_run(&f, 512, &r);
    double young = sqrt(2 * f.checkpoint_cost * f.node_mtbf / 512);
    assert_true(r.interval > young / 2.1 && r.interval < young * 2.1);
    f.checkpoint_interval = r.interval * 4;
    assert_true(availability(&f, 512) < r.availability);
    f.checkpoint_interval = r.interval / 4;
    assert_true(availability(&f, 512) < r.availability);
}

static void test_file(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_faults f;
    gang_arena_init(&arena);
    assert_ok(gang_faults_read(scratch_text("f.yaml", "node_mtbf: 264d\n"), &arena, &f));
    assert_float_equal(f.node_mtbf, 264 * 86400.0, 1);
    assert_fails(GANG_ERR_INPUT, "node_mtbf: missing", gang_faults_read(scratch_text("f.yaml", "trials: 3\n"), &arena, &f));
    assert_fails(GANG_ERR_INPUT, "domain_nodes without domain_mtbf",
                 gang_faults_read(scratch_text("f.yaml", "node_mtbf: 1d\ndomain_nodes: 3\n"), &arena, &f));
    assert_fails(GANG_ERR_INPUT, "f.yaml:1:1: node_mtbf: '264' is not a number with a unit",
                 gang_faults_read(scratch_text("f.yaml", "node_mtbf: 264\n"), &arena, &f));
    gang_arena_release(&arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_daly), cmocka_unit_test(test_kinds), cmocka_unit_test(test_planes),
                                       cmocka_unit_test(test_best_interval), cmocka_unit_test(test_file)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
