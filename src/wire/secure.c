// TLS 1.3 with a secret that the whole cluster shares, and nothing else: no certificates, no tickets, one cipher suite. Who has not
// the secret fails in the handshake, before the first frame. Forward secrecy is that of (EC)DHE.
#include "wire/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECRET_LEAST_BYTES = 16, SECRET_MOST_BYTES = 4096, KEY_BYTES = 32, OUT_BYTES = 16 << 10 };
static const char identity[] = "gangline-wire-1";
static const unsigned char suite[2] = {0x13, 0x01}; // TLS_AES_128_GCM_SHA256

struct gang_secure {
    SSL_CTX *context;
    BIO_METHOD *method;
    unsigned char key[KEY_BYTES];
};

// ---- The handshake ---------------------------------------------------------------------------------------------------
//
// OpenSSL's own socket would raise SIGPIPE. It is given no byte beyond the handshake: what follows belongs to the records.

struct gang_tls {
    SSL *ssl; // until the handshake is done
    int fd;
    bool accepts;
    size_t start, end;
    uint8_t bytes[OUT_BYTES];              // of the handshake, to be sent
    uint8_t secrets[2][GANG_SECRET_BYTES]; // of what the connecting side sends, and of what the accepting one does
    bool known[2];
    struct gang_records *records; // from then on
};

static bool must_wait(ssize_t n) { return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR); }

// What does not fit the socket's buffer at once is of no sound handshake.
static void flush(struct gang_tls *tls) {
    while (tls->start < tls->end) {
        ssize_t n = send(tls->fd, tls->bytes + tls->start, tls->end - tls->start, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return;
        tls->start += (size_t)n;
    }
    tls->start = tls->end = 0;
}

static int bio_write(BIO *bio, const char *data, int bytes) {
    struct gang_tls *tls = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if ((size_t)bytes > OUT_BYTES - tls->end) return -1;
    memcpy(tls->bytes + tls->end, data, (size_t)bytes);
    tls->end += (size_t)bytes;
    return bytes;
}

static int bio_read(BIO *bio, char *data, int bytes) {
    struct gang_tls *tls = BIO_get_data(bio);
    ssize_t n = recv(tls->fd, data, (size_t)bytes, 0);
    BIO_clear_retry_flags(bio);
    if (must_wait(n)) BIO_set_retry_read(bio);
    return (int)n;
}

static long bio_control(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
}

// "LABEL client-random secret", in hexadecimal digits.
static void keep_secret(const SSL *ssl, const char *line) {
    static const char *const labels[] = {"CLIENT_TRAFFIC_SECRET_0 ", "SERVER_TRAFFIC_SECRET_0 "};
    struct gang_tls *tls = SSL_get_app_data(ssl);
    const char *digits = strrchr(line, ' ');
    size_t bytes;
    for (int i = 0; i < 2; i++)
        if (strncmp(line, labels[i], strlen(labels[i])) == 0 && digits)
            tls->known[i] = OPENSSL_hexstr2buf_ex(tls->secrets[i], GANG_SECRET_BYTES, &bytes, digits + 1, '\0') && bytes == GANG_SECRET_BYTES;
}

// ---- The secret ----------------------------------------------------------------------------------------------------

static enum gang_status read_secret(const char *path, unsigned char key[KEY_BYTES]) {
    struct gang_buffer text = {0};
    struct stat st;
    unsigned length = 0;
    if (stat(path, &st) == 0 && st.st_mode & (S_IRWXG | S_IRWXO))
        return gang_fail(GANG_ERR_INPUT, "%s: others than its owner may read or change the cluster's secret: chmod 600 %s", path, path);
    enum gang_status status = gang_file_read(path, SECRET_MOST_BYTES, &text);
    if (!status && text.len < SECRET_LEAST_BYTES)
        status = gang_fail(GANG_ERR_INPUT, "%s: a secret of %zu bytes is too short: head -c 32 /dev/urandom >%s", path, text.len, path);
    EVP_MD_CTX *digest = EVP_MD_CTX_new();
    bool good = digest && EVP_DigestInit_ex(digest, EVP_sha256(), NULL) && EVP_DigestUpdate(digest, identity, sizeof identity) &&
                EVP_DigestUpdate(digest, text.data, text.len) && EVP_DigestFinal_ex(digest, key, &length);
    if (!status && !good) status = gang_fail(GANG_ERR_OS, "%s: OpenSSL has no SHA-256", path);
    EVP_MD_CTX_free(digest);
    if (text.data) OPENSSL_cleanse(text.data, text.len);
    gang_buffer_release(&text);
    return status;
}

static SSL_SESSION *session_of(SSL *ssl) {
    const struct gang_secure *secure = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));
    const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, suite);
    SSL_SESSION *session = SSL_SESSION_new();
    if (cipher && session && SSL_SESSION_set1_master_key(session, secure->key, KEY_BYTES) && SSL_SESSION_set_cipher(session, cipher) &&
        SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION))
        return session;
    SSL_SESSION_free(session);
    return NULL;
}

static int use_session(SSL *ssl, const EVP_MD *digest, const unsigned char **id, size_t *id_bytes, SSL_SESSION **session) {
    (void)digest;
    *session = session_of(ssl);
    *id = (const unsigned char *)identity;
    *id_bytes = sizeof identity;
    return *session != NULL;
}

static int find_session(SSL *ssl, const unsigned char *id, size_t id_bytes, SSL_SESSION **session) {
    bool ours = id_bytes == sizeof identity && memcmp(id, identity, id_bytes) == 0;
    *session = ours ? session_of(ssl) : NULL;
    return 1;
}

enum gang_status gang_secure_new(const char *path, struct gang_secure **out) {
    struct gang_secure *secure = calloc(1, sizeof *secure);
    assert(secure && "out of memory");
    enum gang_status status = read_secret(path, secure->key);
    if (!status) {
        secure->context = SSL_CTX_new(TLS_method());
        secure->method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "gangline");
        if (!secure->context || !secure->method || !SSL_CTX_set_min_proto_version(secure->context, TLS1_3_VERSION) ||
            !SSL_CTX_set_ciphersuites(secure->context, "TLS_AES_128_GCM_SHA256") || !SSL_CTX_set_num_tickets(secure->context, 0))
            status = gang_fail(GANG_ERR_OS, "wire: OpenSSL cannot do TLS 1.3");
    }
    *out = secure;
    if (status) {
        gang_secure_free(secure);
        *out = NULL;
        return status;
    }
    BIO_meth_set_write(secure->method, bio_write);
    BIO_meth_set_read(secure->method, bio_read);
    BIO_meth_set_ctrl(secure->method, bio_control);
    SSL_CTX_set_app_data(secure->context, secure);
    SSL_CTX_set_keylog_callback(secure->context, keep_secret);
    SSL_CTX_set_psk_use_session_callback(secure->context, use_session);
    SSL_CTX_set_psk_find_session_callback(secure->context, find_session);
    return GANG_OK;
}

void gang_secure_free(struct gang_secure *secure) {
    if (!secure) return;
    SSL_CTX_free(secure->context);
    BIO_meth_free(secure->method);
    OPENSSL_cleanse(secure->key, KEY_BYTES);
    free(secure);
}

// ---- The carrier ---------------------------------------------------------------------------------------------------

static bool tls_open(struct gang_wire *wire, struct gang_pipe *pipe, bool accepts) {
    struct gang_tls *tls = pipe->tls = calloc(1, sizeof *tls);
    BIO *bio = BIO_new(wire->secure->method);
    if (tls) tls->ssl = SSL_new(wire->secure->context);
    if (!tls || !tls->ssl || !bio) {
        BIO_free(bio);
        return false;
    }
    tls->fd = pipe->fd;
    tls->accepts = accepts;
    BIO_set_data(bio, tls);
    BIO_set_init(bio, 1);
    SSL_set_bio(tls->ssl, bio, bio);
    SSL_set_app_data(tls->ssl, tls);
    if (accepts) {
        SSL_set_accept_state(tls->ssl);
    } else {
        SSL_set_connect_state(tls->ssl);
    }
    return true;
}

static bool start_records(struct gang_tls *tls) {
    SSL_free(tls->ssl);
    tls->ssl = NULL;
    if (tls->known[0] && tls->known[1]) tls->records = gang_records_new(tls->fd, tls->secrets[tls->accepts], tls->secrets[!tls->accepts]);
    OPENSSL_cleanse(tls->secrets, sizeof tls->secrets);
    return tls->records != NULL;
}

// 1 done, 0 not yet, -1 and errno failed.
static int tls_handshake(struct gang_pipe *pipe) {
    struct gang_tls *tls = pipe->tls;
    int n = SSL_do_handshake(tls->ssl), code = n == 1 ? SSL_ERROR_NONE : SSL_get_error(tls->ssl, n);
    ERR_clear_error();
    flush(tls); // its last word, an alert perhaps, goes out whatever it was
    if (n == 1 && tls->start == tls->end && start_records(tls)) return 1;
    if (code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE) return 0;
    errno = code == SSL_ERROR_SSL ? EPROTO : ECONNRESET;
    return -1;
}

static ssize_t tls_read(struct gang_pipe *pipe, const struct iovec *iov, int count) {
    ssize_t n = gang_records_read(pipe->tls->records, iov, count);
    pipe->held = gang_records_held(pipe->tls->records);
    return n;
}

static ssize_t tls_write(struct gang_pipe *pipe, const struct iovec *iov, int count) {
    return gang_records_write(pipe->tls->records, iov, count, &pipe->pending);
}

static void tls_close(struct gang_pipe *pipe) {
    if (pipe->tls) {
        SSL_free(pipe->tls->ssl);
        gang_records_free(pipe->tls->records);
        OPENSSL_cleanse(pipe->tls, sizeof *pipe->tls);
    }
    free(pipe->tls);
    pipe->tls = NULL;
    ERR_clear_error();
    close(pipe->fd);
}

const struct gang_carrier gang_carrier_tls = {"tls", true, tls_open, tls_handshake, tls_read, tls_write, tls_close};
