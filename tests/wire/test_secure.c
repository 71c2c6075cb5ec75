// The wire under TLS 1.3 with the cluster's secret: it carries, and who has another secret or none does not get in.
#include "../test.h"
#include "../scratch.h"
#include "pair.h"

#include <sys/stat.h>

static const char *write_secret(const char *name, const char *text, int mode) {
    const char *path = scratch_text(name, text);
    assert_int_equal(chmod(path, (mode_t)mode), 0);
    return path;
}

static struct gang_wire *open_with(int rank, const char *secret_path) {
    struct gang_wire *wire;
    assert_ok(
        gang_wire_open(&(struct gang_wire_options){.rank = rank, .listen = "127.0.0.1:0", .secret_path = secret_path, .connect_ms = 3000}, &wire));
    return wire;
}

static void test_messages_under_tls(void **state) {
    (void)state;
    const char *secret = write_secret("secret", "0123456789abcdef0123456789abcdef", 0600);
    struct pair pair;
    for (int i = 0; i < 2; i++) pair.wires[i] = open_with(i, secret);
    pair.links[1] = join_to(pair.wires[1], 0, NULL, 2, 2);
    pair.links[0] = join_directly(pair.wires[0], 1, gang_wire_address(pair.wires[1]), 2, 2);
    uint64_t seed = test_seed();
    for (uint64_t i = 0; i < 60; i++) {
        size_t bytes = gang_random_at(seed, 1, i) % (i % 3 ? 9000 : 3000000);
        uint8_t *out = malloc(bytes + 1), *in = calloc(2, bytes + 1);
        fill(out, bytes, i);
        struct gang_wire_op send[2], recv[2];
        for (int k = 0; k < 2; k++) assert_ok(gang_wire_recv(pair.links[k], 1, in + (size_t)k * bytes, bytes, &recv[k]));
        for (int k = 0; k < 2; k++) assert_ok(gang_wire_send(pair.links[!k], 1, 0, out, bytes, &send[k]));
        for (int k = 0; k < 2; k++) {
            assert_ok(gang_wire_wait(&recv[k]));
            assert_ok(gang_wire_wait(&send[k]));
            assert_true(!bytes || memcmp(in + (size_t)k * bytes, out, bytes) == 0);
        }
        free(out);
        free(in);
    }
    close_pair(&pair);
}

static void expect_no_entry(const char *mine, const char *theirs, const char *words) {
    struct gang_wire *one = open_with(1, theirs), *zero = open_with(0, mine);
    join_to(one, 0, NULL, 1, 1);
    struct gang_wire_link *link = join_directly(zero, 1, gang_wire_address(one), 1, 1);
    struct gang_wire_op op;
    char byte;
    enum gang_status status = gang_wire_recv(link, 1, &byte, 1, &op);
    assert_fails(GANG_ERR_PEER, words, status ? status : gang_wire_wait(&op));
    gang_wire_close(zero);
    gang_wire_close(one);
}

static void test_without_the_secret_nobody_gets_in(void **state) {
    (void)state;
    const char *secret = write_secret("secret", "0123456789abcdef0123456789abcdef", 0600);
    const char *other = write_secret("other", "fedcba9876543210fedcba9876543210", 0600);
    expect_no_entry(other, secret, "is the cluster's secret the same?");
    expect_no_entry(NULL, secret, "no connection with rank 1");
    expect_no_entry(secret, NULL, "rank 1");
}

// A handshake that fails on one plane says nothing against a peer whose secret was right on another.
static void test_a_damaged_handshake_is_tried_again(void **state) {
    (void)state;
    const char *secret = write_secret("secret", "0123456789abcdef0123456789abcdef", 0600);
    struct pair pair;
    struct gang_relay *relay;
    struct gang_relay_report report;
    struct transfer t;
    for (int i = 0; i < 2; i++) pair.wires[i] = open_with(i, secret);
    const char *direct = gang_wire_address(pair.wires[1]);
    assert_ok(gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0", .to = direct, .flips = 5e-3, .seed = test_seed()}, &relay));
    gang_relay_cut(relay, true); // until the other plane is up
    pair.links[1] = join_to(pair.wires[1], 0, NULL, 2, 1);
    pair.links[0] = join_to(pair.wires[0], 1, (const char *[]){direct, gang_relay_address(relay)}, 2, 1);
    (void)round_trip(&pair);
    gang_relay_cut(relay, false);
    do {
        start_transfer(&t, &pair, 100000, 1);
        end_transfer(&t);
        gang_relay_report(relay, &report);
    } while (report.connections < 8);
    assert_true(report.flipped > 0);
    close_pair(&pair);
    gang_relay_close(relay);
}

static void test_bad_secrets_are_named(void **state) {
    (void)state;
    struct gang_wire *wire;
    struct gang_wire_options options = {.listen = "127.0.0.1:0"};
    options.secret_path = write_secret("open", "0123456789abcdef0123456789abcdef", 0644);
    assert_fails(GANG_ERR_INPUT, "others than its owner", gang_wire_open(&options, &wire));
    options.secret_path = write_secret("short", "abc", 0600);
    assert_fails(GANG_ERR_INPUT, "too short", gang_wire_open(&options, &wire));
    options.secret_path = "/no/such/secret";
    assert_fails(GANG_ERR_OS, "/no/such/secret", gang_wire_open(&options, &wire));
    options = (struct gang_wire_options){.listen = "0.0.0.0:0"};
    assert_fails(GANG_ERR_INPUT, "a cluster secret is needed", gang_wire_open(&options, &wire));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_messages_under_tls),
        cmocka_unit_test(test_without_the_secret_nobody_gets_in),
        cmocka_unit_test(test_a_damaged_handshake_is_tried_again),
        cmocka_unit_test(test_bad_secrets_are_named),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
