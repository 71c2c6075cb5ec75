// Plain sockets: what there is to reach on this machine, now.
#include "cmd/bench.h"
#include "wire/wire.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

enum { PUMP_BYTES = 256 << 10, ROUND_TRIP_BYTES = 8, KEY_BYTES = 32 };

// ---- Connections ---------------------------------------------------------------------------------------------------

static bool wait_for_caller(int listener) {
    struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
    return poll(&poll_fd, 1, -1) == 1;
}

enum gang_status gang_plain_open(struct gang_plain *plain, struct gang_relay *relay) {
    struct gang_address address;
    char here[GANG_ADDRESS_TEXT], through[GANG_ADDRESS_TEXT];
    int listener = -1;
    *plain = (struct gang_plain){{-1, -1}};
    enum gang_status status = gang_address_resolve("bench", "127.0.0.1:0", &address);
    if (!status) status = gang_socket_listen(&address, &listener);
    if (!status) status = gang_socket_address(listener, &address);
    if (!status && relay) status = gang_relay_add(relay, gang_address_text(&address, here), through);
    if (!status && relay) status = gang_address_resolve("bench", through, &address);
    if (!status) status = gang_socket_connect(NULL, &address, &plain->fds[0]);
    if (!status && (!wait_for_caller(listener) || (plain->fds[1] = gang_socket_accept(listener)) < 0)) status = gang_fail_os("bench: cannot accept");
    if (listener >= 0) close(listener);
    for (int i = 0; i < 2 && !status; i++) {
        gang_socket_no_delay(plain->fds[i]);
        if (fcntl(plain->fds[i], F_SETFL, 0)) status = gang_fail_os("bench: cannot make a socket block");
    }
    return status;
}

void gang_plain_close(struct gang_plain *plain) {
    for (int i = 0; i < 2; i++)
        if (plain->fds[i] >= 0) close(plain->fds[i]);
}

static bool put_all(int fd, const uint8_t *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = send(fd, data + done, bytes - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

static bool get_all(int fd, uint8_t *data, size_t bytes) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = recv(fd, data + done, bytes - done, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        done += (size_t)n;
    }
    return true;
}

// ---- TLS -----------------------------------------------------------------------------------------------------------

static const unsigned char key[KEY_BYTES] = "not a secret: for the benchmark", identity[] = "bench", suite[2] = {0x13, 0x01};

static SSL_SESSION *session_of(SSL *ssl) {
    SSL_SESSION *session = SSL_SESSION_new();
    if (session && SSL_SESSION_set1_master_key(session, key, sizeof key) && SSL_SESSION_set_cipher(session, SSL_CIPHER_find(ssl, suite)) &&
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
        return session;
    SSL_SESSION_free(session);
    return NULL;
}

static int use_session(SSL *ssl, const EVP_MD *digest, const unsigned char **id, size_t *id_bytes, SSL_SESSION **session) {
    (void)digest;
    *session = session_of(ssl);
    *id = identity;
    *id_bytes = sizeof identity;
    return *session != NULL;
}

static int find_session(SSL *ssl, const unsigned char *id, size_t id_bytes, SSL_SESSION **session) {
    (void)id, (void)id_bytes;
    *session = session_of(ssl);
    return 1;
}

// As a plain program would: OpenSSL's own socket, a cipher suite as the wire's.
static SSL *tls_open(int fd, bool accepts) {
    SSL_CTX *context = SSL_CTX_new(TLS_method());
    SSL *ssl = NULL;
    if (context && SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") && SSL_CTX_set_num_tickets(context, 0)) {
        SSL_CTX_set_psk_use_session_callback(context, use_session);
        SSL_CTX_set_psk_find_session_callback(context, find_session);
        SSL_CTX_set_read_ahead(context, 1);
        SSL_CTX_set_default_read_buffer_len(context, PUMP_BYTES);
        ssl = SSL_new(context);
    }
    SSL_CTX_free(context);
    if (ssl && SSL_set_fd(ssl, fd) && (accepts ? SSL_accept(ssl) : SSL_connect(ssl)) == 1) return ssl;
    SSL_free(ssl);
    return NULL;
}

// ---- One way, as fast as it goes ---------------------------------------------------------------------------------------

struct stream {
    struct gang_plain plain;
    uint8_t *data;
    double seconds, bytes;
};

static void *send_stream(void *context) {
    struct stream *s = context;
    double end = gang_seconds() + s->seconds;
    for (size_t at = 0; gang_seconds() < end; at = (at + PUMP_BYTES) % gang_bench_large)
        if (!put_all(s->plain.fds[0], s->data + at, PUMP_BYTES)) break;
    shutdown(s->plain.fds[0], SHUT_WR);
    return NULL;
}

static void *receive_stream(void *context) {
    struct stream *s = context;
    double start = gang_seconds();
    // Into a buffer as large as the wire's, or the caches would do half of the work.
    for (size_t at = 0; get_all(s->plain.fds[1], s->data + gang_bench_most + at, PUMP_BYTES); at = (at + PUMP_BYTES) % gang_bench_large)
        s->bytes += PUMP_BYTES;
    s->seconds = gang_seconds() - start;
    return NULL;
}

static void *send_tls(void *context) {
    struct stream *s = context;
    SSL *ssl = tls_open(s->plain.fds[0], false);
    double end = gang_seconds() + s->seconds;
    for (size_t at = 0; ssl && gang_seconds() < end; at = (at + PUMP_BYTES) % gang_bench_large)
        if (SSL_write(ssl, s->data + at, PUMP_BYTES) != PUMP_BYTES) break;
    shutdown(s->plain.fds[0], SHUT_WR);
    SSL_free(ssl);
    return NULL;
}

static void *receive_tls(void *context) {
    struct stream *s = context;
    SSL *ssl = tls_open(s->plain.fds[1], true);
    double start = gang_seconds();
    size_t at = 0;
    for (int n; ssl && (n = SSL_read(ssl, s->data + gang_bench_most + at, (int)(PUMP_BYTES - at % PUMP_BYTES))) > 0;) {
        at = (at + (size_t)n) % gang_bench_large;
        s->bytes += n;
    }
    s->seconds = gang_seconds() - start;
    SSL_free(ssl);
    return NULL;
}

// ---- One thread for all streams of an end ------------------------------------------------------------------------------

struct alone {
    const struct gang_plain *plain;
    int streams;
    uint8_t *data;
    double seconds; // to send for; then, how long it took from the start until all was received
    double start;
    size_t bytes; // to send at most; then, that were received
};

static void watch_all(const struct alone *a, int end, struct pollfd watched[GANG_BENCH_STREAMS]) {
    for (int i = 0; i < a->streams; i++) watched[i] = (struct pollfd){.fd = a->plain[i].fds[end], .events = end ? POLLIN : POLLOUT};
}

static void *send_alone(void *context) {
    struct alone *a = context;
    struct pollfd watched[GANG_BENCH_STREAMS];
    size_t at[GANG_BENCH_STREAMS] = {0}, sent = 0;
    double end = gang_seconds() + a->seconds;
    watch_all(a, 0, watched);
    while (sent < a->bytes && gang_seconds() < end && poll(watched, (nfds_t)a->streams, -1) > 0)
        for (int i = 0; i < a->streams && sent < a->bytes; i++) {
            size_t piece = PUMP_BYTES - at[i] % PUMP_BYTES, left = a->bytes - sent;
            if (!watched[i].revents) continue;
            ssize_t n = send(watched[i].fd, a->data + at[i], piece < left ? piece : left, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n <= 0) continue;
            at[i] = (at[i] + (size_t)n) % gang_bench_large;
            sent += (size_t)n;
        }
    a->bytes = sent;
    return NULL;
}

// Until `bytes` are here, or all streams have ended.
static void *receive_alone(void *context) {
    struct alone *a = context;
    struct pollfd watched[GANG_BENCH_STREAMS];
    size_t at[GANG_BENCH_STREAMS] = {0}, came = 0;
    watch_all(a, 1, watched);
    for (int open = a->streams; open && came < a->bytes && poll(watched, (nfds_t)a->streams, -1) > 0;)
        for (int i = 0; i < a->streams; i++) {
            if (!watched[i].revents) continue;
            ssize_t n = recv(watched[i].fd, a->data + gang_bench_most + at[i], PUMP_BYTES - at[i] % PUMP_BYTES, MSG_DONTWAIT);
            if (n < 0) continue;
            if (n == 0) {
                watched[i].fd = -1;
                open--;
            }
            at[i] = (at[i] + (size_t)n) % gang_bench_large;
            came += (size_t)n;
        }
    a->seconds = gang_seconds() - a->start;
    a->bytes = came;
    return NULL;
}

static enum gang_status run_alone(struct alone *sender, struct alone *receiver, bool end) {
    pthread_t thread;
    receiver->start = gang_seconds();
    if (pthread_create(&thread, NULL, receive_alone, receiver)) return gang_fail_os("bench: cannot start a thread");
    send_alone(sender);
    for (int i = 0; i < sender->streams && end; i++) shutdown(sender->plain[i].fds[0], SHUT_WR);
    pthread_join(thread, NULL);
    return receiver->bytes == sender->bytes ? GANG_OK : gang_fail(GANG_ERR_OS, "bench: a plain stream broke");
}

enum gang_status gang_plain_transfer(const struct gang_plain *plain, int streams, size_t bytes, uint8_t *data, double *took) {
    struct alone sender = {.plain = plain, .streams = streams, .data = data, .seconds = 1e9, .bytes = bytes}, receiver = sender;
    enum gang_status status = run_alone(&sender, &receiver, false);
    *took = receiver.seconds;
    return status;
}

static enum gang_status pump_alone(struct stream *streams, int count, double *rate) {
    struct gang_plain plain[GANG_BENCH_STREAMS];
    for (int i = 0; i < count; i++) plain[i] = streams[i].plain;
    struct alone sender = {.plain = plain, .streams = count, .data = streams->data, .seconds = streams->seconds, .bytes = SIZE_MAX},
                 receiver = sender;
    enum gang_status status = run_alone(&sender, &receiver, true);
    *rate = (double)receiver.bytes / receiver.seconds;
    return status;
}

static enum gang_status pump_threads(enum gang_pump kind, struct stream *streams, int count, double *rate) {
    pthread_t threads[2 * GANG_BENCH_STREAMS];
    void *(*const receiver)(void *) = kind == GANG_PUMP_TLS ? receive_tls : receive_stream;
    void *(*const sender)(void *) = kind == GANG_PUMP_TLS ? send_tls : send_stream;
    for (int i = 0; i < 2 * count; i++)
        if (pthread_create(&threads[i], NULL, i % 2 ? sender : receiver, &streams[i / 2])) return gang_fail_os("bench: cannot start a thread");
    *rate = 0;
    for (int i = 0; i < 2 * count; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < count; i++) *rate += streams[i].bytes / streams[i].seconds;
    // Per direction.
    if (kind == GANG_PUMP_DUPLEX) *rate /= 2;
    return *rate > 0 ? GANG_OK : gang_fail(GANG_ERR_OS, "bench: a plain stream broke");
}

enum gang_status gang_pump(enum gang_pump kind, int streams, double seconds, uint8_t *data, double *rate) {
    struct stream all[GANG_BENCH_STREAMS];
    enum gang_status status = GANG_OK;
    int count = 0;
    assert(streams > 0 && streams <= GANG_BENCH_STREAMS);
    for (; count < streams && !status; count++) {
        struct stream *s = &all[count];
        *s = (struct stream){.data = data, .seconds = seconds};
        status = gang_plain_open(&s->plain, NULL);
        if (kind == GANG_PUMP_DUPLEX && count % 2) s->plain = (struct gang_plain){{s->plain.fds[1], s->plain.fds[0]}};
    }
    if (!status) status = kind == GANG_PUMP_ALONE ? pump_alone(all, streams, rate) : pump_threads(kind, all, streams, rate);
    for (int i = 0; i < count; i++) gang_plain_close(&all[i].plain);
    return status;
}

// ---- There and back --------------------------------------------------------------------------------------------------

static void *echo(void *context) {
    const struct gang_plain *plain = context;
    uint8_t data[ROUND_TRIP_BYTES];
    while (get_all(plain->fds[1], data, sizeof data) && put_all(plain->fds[1], data, sizeof data)) {}
    return NULL;
}

enum gang_status gang_plain_round_trip(double seconds, double *each_s) {
    struct gang_plain plain;
    pthread_t thread;
    enum gang_status status = gang_plain_open(&plain, NULL);
    if (status) return status;
    if (pthread_create(&thread, NULL, echo, &plain)) return gang_fail_os("bench: cannot start a thread");
    uint8_t data[ROUND_TRIP_BYTES] = {0};
    double start = gang_seconds(), rounds = 0;
    while (gang_seconds() - start < seconds && put_all(plain.fds[0], data, sizeof data) && get_all(plain.fds[0], data, sizeof data)) rounds++;
    *each_s = (gang_seconds() - start) / rounds;
    shutdown(plain.fds[0], SHUT_RDWR);
    pthread_join(thread, NULL);
    gang_plain_close(&plain);
    return GANG_OK;
}
