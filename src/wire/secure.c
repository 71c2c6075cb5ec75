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

enum {
    SECRET_LEAST_BYTES = 16,
    SECRET_MOST_BYTES = 4096,
    KEY_BYTES = 32,
    RECORD_BYTES = 16 << 10,
    DIRECT_BYTES = 4 << 10,
    READ_BYTES = 128 << 10,
    OUT_BYTES = 256 << 10
};
static const char identity[] = "gangline-wire-1";
static const unsigned char suite[2] = {0x13, 0x01}; // TLS_AES_128_GCM_SHA256

struct gang_secure {
    SSL_CTX *context;
    BIO_METHOD *method;
    unsigned char key[KEY_BYTES];
};

// ---- The socket below ----------------------------------------------------------------------------------------------
//
// OpenSSL's own would raise SIGPIPE and make one call per record. This one gathers records and sends many at once.

struct tls_out {
    int fd;
    size_t start, end;
    uint8_t bytes[OUT_BYTES];
};

static bool must_wait(ssize_t n) { return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR); }

// False, with errno, when not all could be sent.
static bool flush(struct tls_out *out) {
    while (out->start < out->end) {
        ssize_t n = send(out->fd, out->bytes + out->start, out->end - out->start, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        out->start += (size_t)n;
    }
    out->start = out->end = 0;
    return true;
}

static int bio_write(BIO *bio, const char *data, int bytes) {
    struct tls_out *out = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    if (out->end == OUT_BYTES && !flush(out)) {
        if (must_wait(-1)) BIO_set_retry_write(bio);
        return -1;
    }
    size_t n = (size_t)bytes < OUT_BYTES - out->end ? (size_t)bytes : OUT_BYTES - out->end;
    memcpy(out->bytes + out->end, data, n);
    out->end += n;
    return (int)n;
}

static int bio_read(BIO *bio, char *data, int bytes) {
    struct tls_out *out = BIO_get_data(bio);
    ssize_t n = recv(out->fd, data, (size_t)bytes, 0);
    BIO_clear_retry_flags(bio);
    if (must_wait(n)) BIO_set_retry_read(bio);
    return (int)n;
}

static long bio_control(BIO *bio, int command, long number, void *pointer) {
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH;
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
    SSL_CTX_set_mode(secure->context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_CTX_set_read_ahead(secure->context, 1);
    SSL_CTX_set_default_read_buffer_len(secure->context, READ_BYTES);
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
    BIO *bio = BIO_new(wire->secure->method);
    pipe->ssl = SSL_new(wire->secure->context);
    pipe->out = calloc(1, sizeof *pipe->out);
    if (!pipe->ssl || !bio || !pipe->out) {
        BIO_free(bio);
        return false;
    }
    pipe->out->fd = pipe->fd;
    BIO_set_data(bio, pipe->out);
    BIO_set_init(bio, 1);
    SSL_set_bio(pipe->ssl, bio, bio);
    if (accepts) {
        SSL_set_accept_state(pipe->ssl);
    } else {
        SSL_set_connect_state(pipe->ssl);
    }
    return true;
}

// As a system call would report it: -1 and EAGAIN when it must wait, 0 when the peer has gone.
static ssize_t tls_error(const struct gang_pipe *pipe, int n) {
    int code = SSL_get_error(pipe->ssl, n);
    ERR_clear_error();
    if (code == SSL_ERROR_ZERO_RETURN) return 0;
    errno = code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE ? EAGAIN : code == SSL_ERROR_SSL ? EPROTO : ECONNRESET;
    return -1;
}

static int tls_handshake(struct gang_pipe *pipe) {
    int n = SSL_do_handshake(pipe->ssl);
    int code = n == 1 || tls_error(pipe, n) < 0 ? errno : ECONNRESET;
    // Its last word, an alert perhaps, goes out whatever it was.
    (void)flush(pipe->out);
    errno = code;
    return n == 1 ? 1 : code == EAGAIN ? 0 : -1;
}

static ssize_t tls_read(struct gang_pipe *pipe, const struct iovec *iov, int count) {
    size_t done = 0;
    for (int i = 0; i < count; i++)
        for (size_t at = 0; at < iov[i].iov_len;) {
            size_t left = iov[i].iov_len - at;
            int n = SSL_read(pipe->ssl, (uint8_t *)iov[i].iov_base + at, left < INT32_MAX ? (int)left : INT32_MAX);
            if (n <= 0) {
                ssize_t error = tls_error(pipe, n);
                return done ? (ssize_t)done : error; // an end is met again at the next call
            }
            at += (size_t)n;
            done += (size_t)n;
        }
    return (ssize_t)done;
}

// Sends what lies ready; `done` if it can, or has something to show already.
static ssize_t send_ready(struct gang_pipe *pipe, ssize_t done) {
    pipe->pending = !flush(pipe->out);
    if (pipe->pending && !must_wait(-1)) return -1;
    return done;
}

// Small pieces share a record. After EAGAIN the next call must begin with the same bytes: it does, since the head of a
// stream's queue stays until it has gone.
static ssize_t tls_write(struct gang_pipe *pipe, const struct iovec *iov, int count) {
    uint8_t record[RECORD_BYTES];
    size_t done = 0, skip = 0;
    for (int i = 0; i < count;) {
        const uint8_t *data = (const uint8_t *)iov[i].iov_base + skip;
        size_t bytes = iov[i].iov_len - skip;
        if (bytes < DIRECT_BYTES) {
            bytes = 0;
            for (int k = i; k < count && bytes < RECORD_BYTES; k++) {
                size_t from = k == i ? skip : 0, part = iov[k].iov_len - from;
                part = part < RECORD_BYTES - bytes ? part : RECORD_BYTES - bytes;
                memcpy(record + bytes, (const uint8_t *)iov[k].iov_base + from, part);
                bytes += part;
            }
            data = record;
        }
        int n = SSL_write(pipe->ssl, data, bytes < INT32_MAX ? (int)bytes : INT32_MAX);
        if (n <= 0) {
            ssize_t error = tls_error(pipe, n);
            return done ? send_ready(pipe, (ssize_t)done) : error;
        }
        done += (size_t)n;
        skip += (size_t)n;
        while (i < count && skip >= iov[i].iov_len) skip -= iov[i++].iov_len;
    }
    return send_ready(pipe, (ssize_t)done);
}

static void tls_close(struct gang_pipe *pipe) {
    SSL_free(pipe->ssl);
    free(pipe->out);
    pipe->ssl = NULL;
    pipe->out = NULL;
    ERR_clear_error();
    close(pipe->fd);
}

const struct gang_carrier gang_carrier_tls = {"tls", false, tls_open, tls_handshake, tls_read, tls_write, tls_close};
