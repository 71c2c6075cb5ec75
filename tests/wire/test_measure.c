// A link measured: near, through a relay, again by another prober, and by one without the secret.
#include "../test.h"

#include "../scratch.h"
#include "pair.h"

#include <pthread.h>
#include <sys/stat.h>

struct server {
    const char *secret;
    volatile int stop;
    pthread_t thread;
    enum gang_status status;
};

static char address[GANG_ADDRESS_TEXT];
static volatile int listening;

static void note_address(const char *text) {
    snprintf(address, sizeof address, "%s", text);
    __atomic_store_n(&listening, 1, __ATOMIC_RELEASE);
}

static void *serve(void *context) {
    struct server *s = context;
    s->status = gang_link_serve("127.0.0.1:0", s->secret, note_address, &s->stop);
    return NULL;
}

static void open_server(struct server *s, const char *secret) {
    *s = (struct server){.secret = secret};
    listening = 0;
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
    while (!__atomic_load_n(&listening, __ATOMIC_ACQUIRE)) usleep(1000);
}

static void close_server(struct server *s) {
    s->stop = 1;
    pthread_join(s->thread, NULL);
    assert_ok(s->status);
}

static void check_profile(const struct gang_link_profile *p, int least_count) {
    assert_in_range(p->count, least_count, GANG_LINK_RATES);
    assert_true(p->streams == 1 || p->streams == 2 || p->streams == 4 || p->streams == 8);
    double most = 0;
    for (int i = 0; i < p->count; i++) {
        assert_int_equal(p->rates[i].message_bytes, (size_t)GANG_LINK_MESSAGE_LEAST << 2 * i);
        assert_true(p->rates[i].bytes_per_s > 0);
        most = p->rates[i].bytes_per_s > most ? p->rates[i].bytes_per_s : most;
    }
    assert_true(p->bytes_per_s == most && p->rtt_s > 0);
}

static void test_near_and_twice(void **state) {
    (void)state;
    struct server server;
    struct gang_link_profile profile;
    open_server(&server, NULL);
    for (int i = 0; i < 2; i++) {
        assert_ok(gang_link_measure(address, NULL, 0.01, &profile));
        check_profile(&profile, GANG_LINK_RATES);
    }
    close_server(&server);
}

static void test_through_a_relay(void **state) {
    (void)state;
    static const double rate = 10e6;
    struct server server;
    struct gang_link_profile profile;
    struct gang_relay *relay;
    open_server(&server, NULL);
    assert_ok(gang_relay_open(&(struct gang_relay_options){.listen = "127.0.0.1:0", .to = address, .rtt_s = 0.02, .bytes_per_s = rate}, &relay));
    assert_ok(gang_link_measure(gang_relay_address(relay), NULL, 0.05, &profile));
    print_message("round trip %.3f ms, %.2f MB/s of %.2f\n", 1e3 * profile.rtt_s, profile.bytes_per_s / 1e6, rate / 1e6);
    check_profile(&profile, 5);
    assert_true(profile.rtt_s >= 0.02);           // not nearer than it is
    assert_true(profile.bytes_per_s <= rate);     // nor faster
    assert_true(profile.count < GANG_LINK_RATES); // 64 MiB would take seconds
    gang_relay_close(relay);
    close_server(&server);
}

static void test_with_a_secret_and_without(void **state) {
    (void)state;
    struct server server;
    struct gang_link_profile profile;
    const char *secret = scratch_text("secret", "0123456789abcdef0123456789abcdef"),
               *other = scratch_text("other", "fedcba9876543210fedcba9876543210");
    assert_int_equal(chmod(secret, 0600) | chmod(other, 0600), 0);
    open_server(&server, secret);
    assert_fails(GANG_ERR_PEER, "with the same secret", gang_link_measure(address, other, 0.01, &profile));
    assert_ok(gang_link_measure(address, secret, 0.01, &profile)); // it still serves
    check_profile(&profile, GANG_LINK_RATES);
    close_server(&server);
}

static void test_errors_are_named(void **state) {
    (void)state;
    struct gang_link_profile profile;
    volatile int stop = 0;
    assert_fails(GANG_ERR_INPUT, "a cluster secret is needed", gang_link_serve("0.0.0.0:0", NULL, note_address, &stop));
    assert_fails(GANG_ERR_INPUT, "x", gang_link_measure("x", NULL, 0.01, &profile));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near_and_twice),
        cmocka_unit_test(test_through_a_relay),
        cmocka_unit_test(test_with_a_secret_and_without),
        cmocka_unit_test(test_errors_are_named),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
