// TLS 1.3 records (RFC 8446, section 5), from when OpenSSL has done the handshake on. Its own SSL_write and SSL_read copy every
// byte twice and once more; here a record is sealed straight from where the data lies and opened straight to where it belongs,
// and many go in one call of the system. To a peer it is TLS as any other.
//
// What is opened straight to its place is there before its tag was looked at: a posted buffer may hold anything until its
// operation is done, and after a bad tag nothing is ever counted. Small records are opened aside, since they may be no data.
#include "wire/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>

enum {
    TYPE_HANDSHAKE = 22,
    TYPE_DATA = 23,
    HEADER_BYTES = 5,
    TAG_BYTES = 16,
    OVER_BYTES = HEADER_BYTES + 1 + TAG_BYTES, // what a record has beside its content: the inner type, too
    CONTENT_MOST = 16 << 10,
    RECORD_MOST = CONTENT_MOST + OVER_BYTES,
    ASIDE_BYTES = 4 << 10, // content that is shorter is opened aside
    KEY_BYTES = 16,
    IV_BYTES = 12,
    OUT_BYTES = 8 * RECORD_MOST,
    IN_BYTES = 8 * RECORD_MOST
};
uint64_t gang_records_per_key = 1 << 24; // the standard allows 2^24.5
static const uint8_t key_update[] = {24, 0, 0, 1, 0};

struct half {
    EVP_CIPHER_CTX *cipher;
    uint8_t secret[GANG_SECRET_BYTES], iv[IV_BYTES];
    uint64_t sequence;
};

struct gang_records {
    int fd;
    struct half out, in;
    size_t out_start, out_end, in_start, in_end, aside_start, aside_end;
    uint8_t aside[CONTENT_MOST], to_send[OUT_BYTES], came[IN_BYTES];
};

// ---- Keys ----------------------------------------------------------------------------------------------------------

// HKDF-Expand-Label without a context, for at most one block.
static bool expand(const uint8_t secret[GANG_SECRET_BYTES], const char *label, uint8_t *out, size_t bytes) {
    uint8_t info[32] = {0, (uint8_t)bytes}, block[EVP_MAX_MD_SIZE];
    int length = snprintf((char *)info + 3, sizeof info - 5, "tls13 %s", label);
    info[2] = (uint8_t)length;
    info[4 + length] = 1; // after the empty context the number of the block
    bool good = HMAC(EVP_sha256(), secret, GANG_SECRET_BYTES, info, (size_t)length + 5, block, NULL) != NULL;
    memcpy(out, block, bytes);
    OPENSSL_cleanse(block, sizeof block);
    return good;
}

static bool take_key(struct half *half, bool seals) {
    uint8_t key[KEY_BYTES];
    bool good = half->cipher && expand(half->secret, "key", key, sizeof key) && expand(half->secret, "iv", half->iv, sizeof half->iv) &&
                EVP_CipherInit_ex(half->cipher, EVP_aes_128_gcm(), NULL, key, NULL, seals);
    OPENSSL_cleanse(key, sizeof key);
    half->sequence = 0;
    return good;
}

static bool next_key(struct half *half, bool seals) {
    uint8_t next[GANG_SECRET_BYTES];
    bool good = expand(half->secret, "traffic upd", next, sizeof next);
    memcpy(half->secret, next, sizeof next);
    OPENSSL_cleanse(next, sizeof next);
    return good && take_key(half, seals);
}

struct gang_records *gang_records_new(int fd, const uint8_t out[GANG_SECRET_BYTES], const uint8_t in[GANG_SECRET_BYTES]) {
    struct gang_records *r = calloc(1, sizeof *r);
    assert(r && "out of memory");
    r->fd = fd;
    memcpy(r->out.secret, out, GANG_SECRET_BYTES);
    memcpy(r->in.secret, in, GANG_SECRET_BYTES);
    r->out.cipher = EVP_CIPHER_CTX_new();
    r->in.cipher = EVP_CIPHER_CTX_new();
    if (take_key(&r->out, true) && take_key(&r->in, false)) return r;
    gang_records_free(r);
    return NULL;
}

void gang_records_free(struct gang_records *r) {
    if (!r) return;
    EVP_CIPHER_CTX_free(r->out.cipher);
    EVP_CIPHER_CTX_free(r->in.cipher);
    OPENSSL_cleanse(r, sizeof *r);
    free(r);
}

// Begins the record of this header, which is authenticated with it.
static bool begin(struct half *half, const uint8_t header[HEADER_BYTES]) {
    uint8_t nonce[IV_BYTES];
    int n;
    memcpy(nonce, half->iv, IV_BYTES);
    for (int i = 0; i < 8; i++) nonce[IV_BYTES - 1 - i] ^= (uint8_t)(half->sequence >> 8 * i);
    half->sequence++;
    return EVP_CipherInit_ex(half->cipher, NULL, NULL, NULL, nonce, -1) && EVP_CipherUpdate(half->cipher, NULL, &n, header, HEADER_BYTES);
}

// ---- A list of places ------------------------------------------------------------------------------------------------

struct cursor {
    const struct iovec *iov;
    int count;
    size_t skip; // of the first
};

static size_t bytes_left(const struct cursor *c) {
    size_t bytes = 0;
    for (int i = 0; i < c->count; i++) bytes += c->iov[i].iov_len;
    return bytes - c->skip;
}

// The next place, of at most `most` bytes; 0 when there is none.
static size_t next_place(struct cursor *c, size_t most, uint8_t **place) {
    while (c->count && c->skip == c->iov->iov_len) {
        c->iov++;
        c->count--;
        c->skip = 0;
    }
    if (!c->count) return 0;
    size_t n = c->iov->iov_len - c->skip < most ? c->iov->iov_len - c->skip : most;
    *place = (uint8_t *)c->iov->iov_base + c->skip;
    c->skip += n;
    return n;
}

// ---- Out -------------------------------------------------------------------------------------------------------------

static bool seal(struct gang_records *r, struct cursor *from, size_t bytes, uint8_t type) {
    uint8_t *header = r->to_send + r->out_end, *to = header + HEADER_BYTES, *place = NULL;
    size_t length = bytes + 1 + TAG_BYTES;
    int n;
    memcpy(header, (uint8_t[]){TYPE_DATA, 3, 3, (uint8_t)(length >> 8), (uint8_t)length}, HEADER_BYTES);
    if (!begin(&r->out, header)) return false;
    for (size_t part; bytes && (part = next_place(from, bytes, &place)) > 0; bytes -= part, to += part)
        if (!EVP_CipherUpdate(r->out.cipher, to, &n, place, (int)part)) return false;
    if (!EVP_CipherUpdate(r->out.cipher, to, &n, &type, 1) || !EVP_CipherFinal_ex(r->out.cipher, to + 1, &n)) return false;
    if (!EVP_CIPHER_CTX_ctrl(r->out.cipher, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, to + 1)) return false;
    r->out_end += HEADER_BYTES + length;
    return true;
}

static bool renew_key(struct gang_records *r) {
    const struct iovec iov = {(void *)key_update, sizeof key_update};
    return seal(r, &(struct cursor){&iov, 1, 0}, sizeof key_update, TYPE_HANDSHAKE) && next_key(&r->out, true);
}

// False, with errno, when not all could be sent.
static bool flush(struct gang_records *r) {
    while (r->out_start < r->out_end) {
        ssize_t n = send(r->fd, r->to_send + r->out_start, r->out_end - r->out_start, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        r->out_start += (size_t)n;
    }
    r->out_start = r->out_end = 0;
    return true;
}

ssize_t gang_records_write(struct gang_records *r, const struct iovec *iov, int count, bool *pending) {
    struct cursor from = {iov, count, 0};
    const size_t all = bytes_left(&from);
    size_t done = 0;
    do {
        while (done < all && OUT_BYTES - r->out_end >= RECORD_MOST) {
            size_t bytes = all - done < CONTENT_MOST ? all - done : CONTENT_MOST;
            bool sealed = r->out.sequence < gang_records_per_key ? seal(r, &from, bytes, TYPE_DATA) : renew_key(r);
            if (!sealed) {
                errno = EPROTO;
                return -1;
            }
            if (r->out.sequence) done += bytes; // else it was the key that was renewed
        }
        *pending = !flush(r);
        if (*pending && errno != EAGAIN && errno != EWOULDBLOCK) return -1;
    } while (!*pending && done < all);
    return done || !*pending ? (ssize_t)done : -1;
}

// ---- In --------------------------------------------------------------------------------------------------------------

// Opens the record's content to there; false with EPROTO when it is not what the peer sent, or nothing that we understand.
static bool open_to(struct gang_records *r, struct cursor *to, size_t content, uint8_t *type) {
    uint8_t *record = r->came + r->in_start, *from = record + HEADER_BYTES, *place = NULL;
    int n;
    bool good = begin(&r->in, record);
    for (size_t part; good && content && (part = next_place(to, content, &place)) > 0; content -= part, from += part)
        good = EVP_CipherUpdate(r->in.cipher, place, &n, from, (int)part);
    r->aside_start = r->aside_end = 0;
    if (good && content) good = EVP_CipherUpdate(r->in.cipher, r->aside, &n, from, (int)content);
    r->aside_end = content;
    from += content;
    good = good && EVP_CipherUpdate(r->in.cipher, type, &n, from, 1) &&
           EVP_CIPHER_CTX_ctrl(r->in.cipher, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, from + 1) && EVP_CipherFinal_ex(r->in.cipher, type, &n);
    r->in_start = (size_t)(from + 1 + TAG_BYTES - r->came);
    return good;
}

// Bytes of content of the record that has come whole; 0: none has; -1: there will never be one.
static ssize_t whole_record(const struct gang_records *r) {
    const uint8_t *at = r->came + r->in_start;
    size_t have = r->in_end - r->in_start;
    if (have < HEADER_BYTES) return 0;
    size_t length = (size_t)at[3] << 8 | at[4];
    if (at[0] != TYPE_DATA || length <= 1 + TAG_BYTES || length > CONTENT_MOST + 1 + TAG_BYTES) return -1;
    return have < HEADER_BYTES + length ? 0 : (ssize_t)(length - 1 - TAG_BYTES);
}

// The next record, to its place or aside.
static bool open_record(struct gang_records *r, struct cursor *to, size_t content) {
    struct cursor none = {0};
    uint8_t type;
    if (!open_to(r, content < ASIDE_BYTES ? &none : to, content, &type)) return false;
    if (type == TYPE_DATA) return true;
    bool update = type == TYPE_HANDSHAKE && content == sizeof key_update && memcmp(r->aside, key_update, sizeof key_update) == 0;
    r->aside_end = 0;
    return update && next_key(&r->in, false);
}

static ssize_t receive(struct gang_records *r) {
    memmove(r->came, r->came + r->in_start, r->in_end - r->in_start);
    r->in_end -= r->in_start;
    r->in_start = 0;
    ssize_t n;
    do n = recv(r->fd, r->came + r->in_end, IN_BYTES - r->in_end, 0);
    while (n < 0 && errno == EINTR);
    if (n > 0) r->in_end += (size_t)n;
    return n;
}

size_t gang_records_held(const struct gang_records *r) { return r->in_end - r->in_start + r->aside_end - r->aside_start; }

ssize_t gang_records_read(struct gang_records *r, const struct iovec *iov, int count) {
    struct cursor to = {iov, count, 0};
    const size_t all = bytes_left(&to);
    for (;;) {
        uint8_t *place = NULL;
        for (size_t n; (n = next_place(&to, r->aside_end - r->aside_start, &place)) > 0; r->aside_start += n)
            memcpy(place, r->aside + r->aside_start, n);
        size_t done = all - bytes_left(&to);
        if (done == all) return (ssize_t)done;
        ssize_t content = whole_record(r);
        if (content < 0 || (content > 0 && !open_record(r, &to, (size_t)content))) {
            errno = EPROTO;
            return -1;
        }
        if (content > 0) continue;
        ssize_t n = receive(r);
        if (n <= 0) return done ? (ssize_t)done : n; // an end is met again at the next call
    }
}
