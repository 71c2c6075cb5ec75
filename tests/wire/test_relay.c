// The relay, and the link over it: distance, rate, outages, cuts of one plane and of all, flipped bits.
#include "../test.h"
#include "pair.h"

struct far {
    struct gang_relay *relays[2];
    struct pair pair;
};

// A link whose planes go through relays of their own.
static struct far open_far(int planes, int streams, struct gang_relay_options options) {
    struct far far = {0};
    const char *addresses[2];
    for (int i = 0; i < 2; i++) far.pair.wires[i] = open_wire(i);
    options.listen = "127.0.0.1:0";
    options.to = gang_wire_address(far.pair.wires[1]);
    for (int p = 0; p < planes; p++) {
        options.seed++;
        assert_ok(gang_relay_open(&options, &far.relays[p]));
        addresses[p] = gang_relay_address(far.relays[p]);
    }
    far.pair.links[1] = join_to(far.pair.wires[1], 0, NULL, planes, streams);
    far.pair.links[0] = join_to(far.pair.wires[0], 1, addresses, planes, streams);
    return far;
}

static void close_far(struct far *far) {
    close_pair(&far->pair);
    gang_relay_close(far->relays[0]);
    gang_relay_close(far->relays[1]);
}

static void test_distance_and_rate(void **state) {
    (void)state;
    struct far far = open_far(1, 1, (struct gang_relay_options){.rtt_s = 0.005, .bytes_per_s = 50e6});
    double least = 1;
    for (int i = 0; i < 30; i++) {
        double s = round_trip(&far.pair);
        least = s < least ? s : least;
    }
    print_message("round trip %.3f ms\n", 1e3 * least);
    // Data may leave up to 0.1 ms early each way. Exact figures are the benchmark's: here the machine may be busy.
    assert_true(least >= 0.0048 && least < 0.02);
    struct transfer t;
    double start = gang_seconds();
    start_transfer(&t, &far.pair, 20 << 20, 1);
    end_transfer(&t);
    double rate = (20 << 20) / (gang_seconds() - start);
    print_message("rate %.1f MB/s of 50\n", rate / 1e6);
    assert_true(rate < 51e6 && rate > 5e6);
    close_far(&far);
}

static void test_routes_share_the_rate(void **state) {
    (void)state;
    enum { ROUTES = 3 };
    static const double rate = 40e6;
    struct gang_relay *relay;
    struct far far[ROUTES] = {0};
    struct transfer t[ROUTES];
    assert_ok(gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0", .rtt_s = 0.002, .bytes_per_s = rate}, &relay));
    assert_string_equal(gang_relay_address(relay), "");
    for (int i = 0; i < ROUTES; i++) {
        char address[GANG_ADDRESS_TEXT];
        for (int k = 0; k < 2; k++) far[i].pair.wires[k] = open_wire(k);
        assert_ok(gang_relay_add(relay, gang_wire_address(far[i].pair.wires[1]), address));
        far[i].pair.links[1] = join_to(far[i].pair.wires[1], 0, NULL, 1, 1);
        far[i].pair.links[0] = join_directly(far[i].pair.wires[0], 1, address, 1, 1);
        assert_true(round_trip(&far[i].pair) >= 0.002);
    }
    double start = gang_seconds();
    for (int i = 0; i < ROUTES; i++) start_transfer(&t[i], &far[i].pair, 6 << 20, (uint64_t)i);
    for (int i = 0; i < ROUTES; i++) end_transfer(&t[i]);
    double got = (double)ROUTES * (6 << 20) / (gang_seconds() - start);
    print_message("%d routes together %.1f MB/s of %.1f\n", ROUTES, got / 1e6, rate / 1e6);
    assert_true(got < 1.05 * rate);
    struct gang_relay_report report;
    gang_relay_report(relay, &report);
    assert_true(report.connections >= ROUTES); // more where a starved one was given up and made anew
    for (int i = 0; i < ROUTES; i++) close_far(&far[i]);
    gang_relay_close(relay);
}

static void test_both_planes_are_filled(void **state) {
    (void)state;
    struct far far = open_far(2, 1, (struct gang_relay_options){.rtt_s = 0.002, .bytes_per_s = 40e6});
    struct transfer t;
    start_transfer(&t, &far.pair, 24 << 20, 2);
    end_transfer(&t);
    for (int p = 0; p < 2; p++) {
        struct gang_relay_report report;
        gang_relay_report(far.relays[p], &report);
        print_message("plane %d carried %.1f MB\n", p, (double)report.bytes[0] / 1e6);
        assert_true(report.bytes[0] > 6 << 20); // a fourth at least
    }
    close_far(&far);
}

static void wait_for_planes(struct gang_wire_link *link, bool first, bool second) {
    struct gang_wire_report report = {0};
    double start = gang_seconds();
    do gang_wire_report(link, &report);
    while ((report.plane[0].up != first || report.plane[1].up != second) && gang_seconds() - start < 20);
    assert_true(report.plane[0].up == first && report.plane[1].up == second && !report.dead);
}

// Again and again: a plane falls silent during a transfer, its chunks leave on the other, it heals and is taken back.
static void test_a_plane_cut_and_healed(void **state) {
    (void)state;
    struct far far = open_far(2, 2, (struct gang_relay_options){.rtt_s = 0.003, .bytes_per_s = 60e6});
    struct transfer t;
    start_transfer(&t, &far.pair, 1 << 20, 1);
    end_transfer(&t);
    for (uint64_t round = 0; round < 6; round++) {
        int victim = (int)(round % 2);
        wait_for_planes(far.pair.links[0], true, true);
        start_transfer(&t, &far.pair, 8 << 20, round);
        gang_relay_cut(far.relays[victim], true);
        wait_for_planes(far.pair.links[0], victim != 0, victim != 1);
        end_transfer(&t);
        gang_relay_cut(far.relays[victim], false);
    }
    wait_for_planes(far.pair.links[0], true, true);
    close_far(&far);
}

static void test_an_outage_of_all_planes_is_only_time(void **state) {
    (void)state;
    struct far far = open_far(2, 1, (struct gang_relay_options){.rtt_s = 0.003, .bytes_per_s = 40e6, .outage_s = 0.05, .outage_every_s = 0.2});
    struct transfer t;
    start_transfer(&t, &far.pair, 40 << 20, 3);
    end_transfer(&t);
    close_far(&far);
}

static void test_flipped_bits_are_mended(void **state) {
    (void)state;
    struct far far = open_far(2, 2, (struct gang_relay_options){.rtt_s = 0.001, .flips = 2e-8});
    for (uint64_t i = 0; i < 4; i++) {
        struct transfer t;
        start_transfer(&t, &far.pair, 16 << 20, i);
        end_transfer(&t);
    }
    struct gang_relay_report report[2];
    for (int i = 0; i < 2; i++) gang_relay_report(far.relays[i], &report[i]);
    print_message("%llu bits flipped\n", (unsigned long long)(report[0].flipped + report[1].flipped));
    assert_true(report[0].flipped + report[1].flipped > 0);
    close_far(&far);
}

static void test_all_planes_cut_is_death_once(void **state) {
    (void)state;
    struct far far = open_far(2, 1, (struct gang_relay_options){.rtt_s = 0.002});
    struct transfer t;
    start_transfer(&t, &far.pair, 1 << 20, 1);
    end_transfer(&t);
    struct gang_wire_op recv[2];
    char byte;
    for (int i = 0; i < 2; i++) assert_ok(gang_wire_recv(far.pair.links[i], 5, &byte, 1, &recv[i]));
    gang_relay_cut(far.relays[0], true);
    gang_relay_cut(far.relays[1], true);
    for (int i = 0; i < 2; i++) assert_fails(GANG_ERR_PEER, "has been silent on all 2 planes", gang_wire_wait(&recv[i]));
    assert_fails(GANG_ERR_PEER, "has been silent", gang_wire_recv(far.pair.links[0], 5, &byte, 1, &recv[0]));
    close_far(&far);
}

static void test_bad_addresses(void **state) {
    (void)state;
    struct gang_relay *relay;
    assert_fails(GANG_ERR_INPUT, "relay: to", gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0", .to = "x"}, &relay));
    assert_null(relay);
    char address[GANG_ADDRESS_TEXT];
    assert_ok(gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0"}, &relay));
    assert_fails(GANG_ERR_INPUT, "relay: to", gang_relay_add(relay, "x", address));
    gang_relay_close(relay);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distance_and_rate),       cmocka_unit_test(test_both_planes_are_filled),
        cmocka_unit_test(test_a_plane_cut_and_healed),  cmocka_unit_test(test_an_outage_of_all_planes_is_only_time),
        cmocka_unit_test(test_flipped_bits_are_mended), cmocka_unit_test(test_all_planes_cut_is_death_once),
        cmocka_unit_test(test_routes_share_the_rate),   cmocka_unit_test(test_bad_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
