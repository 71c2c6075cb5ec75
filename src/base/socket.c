// TCP sockets: addresses, listening, connecting, tuning.
#include "base/base.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { HOST_CHARS = 256, BACKLOG = 128 };

// Splits "host:port" or "[host]:port".
static bool split(const char *text, char host[HOST_CHARS], const char **port) {
    const char *colon = strrchr(text, ':');
    if (!colon || !colon[1] || colon == text) return false;
    bool bracketed = text[0] == '[' && colon[-1] == ']';
    if (!bracketed && memchr(text, ':', (size_t)(colon - text))) return false;
    size_t length = (size_t)(colon - text) - (bracketed ? 2 : 0);
    if (!length || length >= HOST_CHARS) return false;
    memcpy(host, text + bracketed, length);
    host[length] = 0;
    *port = colon + 1;
    return true;
}

enum gang_status gang_address_resolve(const char *what, const char *text, struct gang_address *out) {
    char host[HOST_CHARS];
    const char *port;
    int64_t number;
    if (!split(text, host, &port)) return gang_fail(GANG_ERR_INPUT, "%s: '%s' is not an address: expected host:port", what, text);
    enum gang_status status = gang_parse_int(what, port, 0, 65535, &number);
    if (status) return status;
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    int code = getaddrinfo(host, port, &hints, &found);
    if (code) return gang_fail(GANG_ERR_INPUT, "%s: cannot resolve '%s': %s", what, host, gai_strerror(code));
    *out = (struct gang_address){.bytes = found->ai_addrlen};
    memcpy(&out->storage, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return GANG_OK;
}

const char *gang_address_text(const struct gang_address *address, char out[GANG_ADDRESS_TEXT]) {
    char host[GANG_ADDRESS_TEXT - 16], port[8];
    if (getnameinfo((const struct sockaddr *)&address->storage, address->bytes, host, sizeof host, port, sizeof port,
                    NI_NUMERICHOST | NI_NUMERICSERV)) {
        snprintf(out, GANG_ADDRESS_TEXT, "?");
        return out;
    }
    snprintf(out, GANG_ADDRESS_TEXT, strchr(host, ':') ? "[%s]:%s" : "%s:%s", host, port);
    return out;
}

bool gang_address_is_loopback(const struct gang_address *address) {
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)&address->storage;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&address->storage;
    if (address->storage.ss_family == AF_INET) return ntohl(v4->sin_addr.s_addr) >> 24 == IN_LOOPBACKNET;
    return address->storage.ss_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

struct gang_address gang_address_with_port(const struct gang_address *address, uint16_t port) {
    struct gang_address out = *address;
    if (out.storage.ss_family == AF_INET) ((struct sockaddr_in *)&out.storage)->sin_port = htons(port);
    if (out.storage.ss_family == AF_INET6) ((struct sockaddr_in6 *)&out.storage)->sin6_port = htons(port);
    return out;
}

enum gang_status gang_address_towards(const struct gang_address *remote, struct gang_address *out) {
    char text[GANG_ADDRESS_TEXT];
    int fd = socket(remote->storage.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    *out = (struct gang_address){.bytes = sizeof out->storage};
    enum gang_status status = GANG_OK;
    if (fd < 0 || connect(fd, (const struct sockaddr *)&remote->storage, remote->bytes) ||
        getsockname(fd, (struct sockaddr *)&out->storage, &out->bytes))
        status = gang_fail_os("%s: no way there", gang_address_text(remote, text));
    if (fd >= 0) close(fd);
    *out = gang_address_with_port(out, 0);
    return status;
}

static int open_socket(const struct gang_address *address) {
    return socket(address->storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
}

static void set(int fd, int level, int option, int value) {
    // Tuning only: a kernel that refuses is slower, not wrong.
    (void)setsockopt(fd, level, option, &value, sizeof value);
}

enum gang_status gang_socket_listen(const struct gang_address *address, int *fd) {
    char text[GANG_ADDRESS_TEXT];
    gang_address_text(address, text);
    *fd = open_socket(address);
    if (*fd < 0) return gang_fail_os("%s: cannot make a socket", text);
    set(*fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (bind(*fd, (const struct sockaddr *)&address->storage, address->bytes) == 0 && listen(*fd, BACKLOG) == 0) return GANG_OK;
    enum gang_status status = gang_fail_os("%s: cannot listen", text);
    close(*fd);
    *fd = -1;
    return status;
}

enum gang_status gang_socket_address(int fd, struct gang_address *out) {
    *out = (struct gang_address){.bytes = sizeof out->storage};
    return getsockname(fd, (struct sockaddr *)&out->storage, &out->bytes) ? gang_fail_os("a socket's own address is not to be had") : GANG_OK;
}

enum gang_status gang_socket_connect(const struct gang_address *local, const struct gang_address *remote, int *fd) {
    char text[GANG_ADDRESS_TEXT];
    enum gang_status status = GANG_OK;
    *fd = open_socket(remote);
    if (*fd < 0) return gang_fail_os("%s: cannot make a socket", gang_address_text(remote, text));
    if (local && bind(*fd, (const struct sockaddr *)&local->storage, local->bytes)) {
        status = gang_fail_os("%s: cannot connect from here", gang_address_text(local, text));
    } else if (connect(*fd, (const struct sockaddr *)&remote->storage, remote->bytes) && errno != EINPROGRESS) {
        status = gang_fail_os("%s: cannot connect", gang_address_text(remote, text));
    }
    if (!status) return GANG_OK;
    close(*fd);
    *fd = -1;
    return status;
}

int gang_socket_error(int fd) {
    int code = 0;
    socklen_t bytes = sizeof code;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &bytes) ? errno : code;
}

int gang_socket_accept(int listener) { return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC); }

void gang_socket_no_delay(int fd) { set(fd, IPPROTO_TCP, TCP_NODELAY, 1); }

void gang_socket_unsent(int fd, size_t bytes) { set(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, (int)bytes); }

void gang_socket_wake_at(int fd, size_t bytes) { set(fd, SOL_SOCKET, SO_RCVLOWAT, (int)bytes); }

void gang_socket_buffers(int fd, size_t bytes) {
    // Loopback's segments are of 64 KiB: with room for less than a few, TCP waits for timers between them.
    enum { LEAST = 256 << 10 };
    int value = bytes > INT32_MAX / 2 ? INT32_MAX / 2 : bytes < LEAST ? LEAST : (int)bytes;
    if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &value, sizeof value)) set(fd, SOL_SOCKET, SO_SNDBUF, value);
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &value, sizeof value)) set(fd, SOL_SOCKET, SO_RCVBUF, value);
}

bool gang_socket_congested_by(int fd, const char *name) {
    char used[32] = "";
    socklen_t bytes = sizeof used - 1;
    return getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, used, &bytes) == 0 && strcmp(used, name) == 0;
}

bool gang_socket_congestion(int fd, const char *name) { return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name)) == 0; }
