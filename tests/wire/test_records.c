// TLS's records of our own making against OpenSSL's: either understands the other, keys are renewed, and nothing altered passes.
#include "../test.h"
#include "../scratch.h"
#include "wire/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <sys/stat.h>

enum { MOST = 200000, STEPS = 1500, PLACES = 5 };
static const char secret[] = "0123456789abcdef0123456789abcdef", identity[] = "gangline-wire-1";

static void make_pair(int fds[2]) { assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0); }

// ---- OpenSSL's end ---------------------------------------------------------------------------------------------------

static SSL_SESSION *session_of(SSL *ssl) {
    static const unsigned char suite[2] = {0x13, 0x01};
    unsigned char key[32];
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    assert_true(EVP_DigestInit_ex(digest, EVP_sha256(), NULL) && EVP_DigestUpdate(digest, identity, sizeof identity) &&
                EVP_DigestUpdate(digest, secret, strlen(secret)) && EVP_DigestFinal_ex(digest, key, NULL));
    EVP_MD_CTX_free(digest);
    SSL_SESSION *session = SSL_SESSION_new();
    assert_true(SSL_SESSION_set1_master_key(session, key, sizeof key) && SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, suite)) &&
                SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION));
    return session;
}

static int use_session(SSL *ssl, const EVP_MD *digest, const unsigned char **id, size_t *bytes, SSL_SESSION **session) {
    (void)digest;
    *session = session_of(ssl);
    *id = (const unsigned char *)identity;
    *bytes = sizeof identity;
    return 1;
}

static int find_session(SSL *ssl, const unsigned char *id, size_t bytes, SSL_SESSION **session) {
    assert_int_equal(bytes, sizeof identity);
    assert_memory_equal(id, identity, bytes);
    *session = session_of(ssl);
    return 1;
}

static SSL *openssl_end(int fd, bool accepts) {
    SSL_CTX *context = SSL_CTX_new(TLS_method());
    SSL_CTX_set_psk_use_session_callback(context, use_session);
    SSL_CTX_set_psk_find_session_callback(context, find_session);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    assert_true(SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") && SSL_CTX_set_num_tickets(context, 0));
    SSL *ssl = SSL_new(context);
    SSL_CTX_free(context);
    assert_true(SSL_set_fd(ssl, fd));
    if (accepts) {
        SSL_set_accept_state(ssl);
    } else {
        SSL_set_connect_state(ssl);
    }
    return ssl;
}

// ---- Both talk -------------------------------------------------------------------------------------------------------

static uint8_t byte_at(uint64_t seed, uint64_t at) { return (uint8_t)(gang_random_at(seed, 7, at / 8) >> 8 * (at % 8)); }

struct way {
    uint64_t seed, sent, came;
};

static void expect_bytes(struct way *way, const uint8_t *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) assert_int_equal(data[i], byte_at(way->seed, way->came + i));
    way->came += bytes;
}

static int random_places(uint64_t seed, uint64_t step, uint8_t *data, size_t bytes, struct iovec iov[PLACES]) {
    size_t done = 0;
    for (int i = 0; i < PLACES; i++) {
        size_t part = i + 1 < PLACES ? gang_random_at(seed, 11 + (uint64_t)i, step) % (bytes - done + 1) / 2 : bytes - done;
        iov[i] = (struct iovec){data + done, part};
        done += part;
    }
    return PLACES;
}

static void send_ours(struct gang_pipe *pipe, struct way *way, uint64_t step, size_t most) {
    static uint8_t data[MOST];
    struct iovec iov[PLACES];
    for (size_t i = 0; i < most; i++) data[i] = byte_at(way->seed, way->sent + i);
    ssize_t n = pipe->carrier->write(pipe, iov, random_places(way->seed, step, data, most, iov));
    assert_true(n >= 0 || errno == EAGAIN);
    if (n > 0) way->sent += (uint64_t)n;
}

static void receive_ours(struct gang_pipe *pipe, struct way *way, uint64_t step, size_t most) {
    static uint8_t data[MOST];
    struct iovec iov[PLACES];
    ssize_t n = pipe->carrier->read(pipe, iov, random_places(way->seed, step, data, most, iov));
    assert_true(n > 0 || errno == EAGAIN);
    if (n > 0) expect_bytes(way, data, (size_t)n);
}

static void send_theirs(SSL *ssl, struct way *way, size_t most) {
    static uint8_t data[MOST];
    for (size_t i = 0; i < most; i++) data[i] = byte_at(way->seed, way->sent + i);
    int n = SSL_write(ssl, data, (int)most);
    assert_true(n > 0 || SSL_get_error(ssl, n) == SSL_ERROR_WANT_WRITE);
    if (n > 0) way->sent += (uint64_t)n;
}

static void receive_theirs(SSL *ssl, struct way *way, size_t most) {
    static uint8_t data[MOST];
    int n = SSL_read(ssl, data, (int)most);
    assert_true(n > 0 || SSL_get_error(ssl, n) == SSL_ERROR_WANT_READ);
    if (n > 0) expect_bytes(way, data, (size_t)n);
}

static void talk(struct gang_pipe *pipe, SSL *ssl, uint64_t seed) {
    struct way there = {.seed = seed}, back = {.seed = seed + 1};
    for (uint64_t step = 0; step < STEPS || there.came < there.sent || back.came < back.sent || pipe->pending; step++) {
        uint64_t draw = gang_random_at(seed, 1, step);
        size_t most = 1 + (draw >> 8) % (draw % 3 ? 3000 : MOST);
        if (step < STEPS && draw & 16) send_ours(pipe, &there, step, most);
        if (step < STEPS && draw & 32) send_theirs(ssl, &back, most);
        if (step < STEPS && draw % 97 == 0) assert_true(SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED));
        if (pipe->pending) assert_true(pipe->carrier->write(pipe, NULL, 0) >= 0 || errno == EAGAIN);
        if (draw & 64 || step >= STEPS) receive_theirs(ssl, &there, most);
        if (draw & 128 || step >= STEPS) receive_ours(pipe, &back, step, most);
    }
    assert_true(there.came > MOST && back.came > MOST);
}

static void shake_and_talk(bool accepts, uint64_t seed) {
    int fds[2], done = 0;
    struct gang_wire wire = {0};
    const char *path = scratch_text("secret", secret);
    assert_int_equal(chmod(path, 0600), 0);
    assert_ok(gang_secure_new(path, &wire.secure));
    make_pair(fds);
    struct gang_pipe pipe = {.carrier = &gang_carrier_tls, .fd = fds[0]};
    SSL *ssl = openssl_end(fds[1], !accepts);
    assert_true(pipe.carrier->open(&wire, &pipe, accepts));
    for (bool theirs = false; !done || !theirs;) {
        if (!done) done = pipe.carrier->handshake(&pipe);
        assert_true(done >= 0);
        theirs = theirs || SSL_do_handshake(ssl) == 1;
    }
    talk(&pipe, ssl, seed);
    SSL_free(ssl);
    close(fds[1]);
    pipe.carrier->close(&pipe);
    gang_secure_free(wire.secure);
}

static void test_openssl_understands_us(void **state) {
    (void)state;
    uint64_t seed = test_seed(), per_key = gang_records_per_key;
    for (int accepts = 0; accepts < 2; accepts++) shake_and_talk(accepts, seed + 10 * (uint64_t)accepts);
    gang_records_per_key = 50;
    for (int accepts = 0; accepts < 2; accepts++) shake_and_talk(accepts, seed + 100 + 10 * (uint64_t)accepts);
    gang_records_per_key = per_key;
}

// ---- What was altered ------------------------------------------------------------------------------------------------

static void test_nothing_altered_passes(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    static uint8_t data[40000], sealed[sizeof data + 1000], out[sizeof data];
    for (uint64_t i = 0; i < 300; i++) {
        int fds[2][2];
        bool pending;
        uint8_t secrets[2][GANG_SECRET_BYTES] = {{1}, {2}};
        for (int k = 0; k < 2; k++) make_pair(fds[k]);
        struct gang_records *from = gang_records_new(fds[0][0], secrets[0], secrets[1]), *to = gang_records_new(fds[1][1], secrets[1], secrets[0]);
        size_t bytes = 1 + gang_random_at(seed, 3, i) % (i % 2 ? 100 : sizeof data);
        struct iovec iov = {data, bytes}, place = {out, bytes};
        assert_int_equal(gang_records_write(from, &iov, 1, &pending), bytes);
        ssize_t n = recv(fds[0][1], sealed, sizeof sealed, 0);
        assert_true(n > (ssize_t)bytes);
        bool alter = i % 10 != 0;
        if (alter) sealed[gang_random_at(seed, 4, i) % (uint64_t)n] ^= (uint8_t)(1u << i % 8);
        assert_int_equal(send(fds[1][0], sealed, (size_t)n, 0), n);
        size_t came = 0;
        ssize_t got = 0;
        for (; came < bytes; came += (size_t)got, place = (struct iovec){out + came, bytes - came})
            if ((got = gang_records_read(to, &place, 1)) <= 0) break;
        // A length that grew waits for the rest, and gets none; all else is noticed. What came before was sound.
        assert_true(alter ? came < bytes && (errno == EPROTO || errno == EAGAIN) : came == bytes);
        assert_memory_equal(out, data, came);
        gang_records_free(from);
        gang_records_free(to);
        for (int k = 0; k < 4; k++) close(fds[k / 2][k % 2]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_openssl_understands_us),
        cmocka_unit_test(test_nothing_altered_passes),
    };
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
