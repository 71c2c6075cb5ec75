// The plain TCP carrier. Large payloads go by reference: their pages pass through a pipe into the socket, and nobody copies them on
// this side. They must not change until the peer has them; that is when an operation is done, and not before. Where bytes of a
// chunk may still be on their way when its operation has ended, since they went again on another plane or it was called off, the
// peer knows the chunk already and looks at nothing of it.
#include "wire/endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { REFERENCE_LEAST = 32 << 10, PIPE_BYTES = 1 << 20 };

static bool plain_open(struct gang_wire *wire, struct gang_pipe *pipe, bool accepts) {
    (void)wire, (void)pipe, (void)accepts;
    return true;
}

static int plain_handshake(struct gang_pipe *pipe) {
    (void)pipe;
    return 1;
}

static ssize_t plain_read(struct gang_pipe *pipe, const struct iovec *iov, int count) { return readv(pipe->fd, iov, count); }

static void close_through(struct gang_pipe *pipe) {
    for (int i = 0; i < 2 && pipe->refers; i++) close(pipe->through[i]);
    pipe->refers = false;
}

// Made when it is first needed: strangers need none. Who may have no more of them copies.
static bool can_refer(struct gang_pipe *pipe) {
    if (pipe->refers || pipe->copies) return pipe->refers;
    pipe->refers = pipe2(pipe->through, O_CLOEXEC | O_NONBLOCK) == 0;
    if (pipe->refers && fcntl(pipe->through[1], F_SETPIPE_SZ, PIPE_BYTES) < PIPE_BYTES) close_through(pipe);
    pipe->copies = !pipe->refers;
    return pipe->refers;
}

// On to the socket with what is in the pipe. False, with errno, when not all could go.
static bool push_quietly(struct gang_pipe *pipe) {
    while (pipe->inside) {
        ssize_t n = splice(pipe->through[0], NULL, pipe->fd, NULL, pipe->inside, SPLICE_F_NONBLOCK);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        pipe->inside -= (size_t)n;
    }
    return true;
}

// splice knows no MSG_NOSIGNAL: the SIGPIPE of a peer that has gone is kept from this thread, and one that was there already is not.
static bool push(struct gang_pipe *pipe) {
    sigset_t broken, before, waiting;
    if (!pipe->inside) return true;
    sigemptyset(&broken);
    sigaddset(&broken, SIGPIPE);
    sigpending(&waiting);
    pthread_sigmask(SIG_BLOCK, &broken, &before);
    bool all = push_quietly(pipe);
    int code = errno;
    if (!all && code == EPIPE && !sigismember(&waiting, SIGPIPE)) (void)sigtimedwait(&broken, NULL, &(struct timespec){0});
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = code;
    return all;
}

// What has been put into the pipe is on its way, whether the socket has taken it or not.
static ssize_t refer(struct gang_pipe *pipe, const struct iovec *iov) {
    size_t done = 0;
    while (done < iov->iov_len && !pipe->pending) {
        ssize_t n = vmsplice(pipe->through[1], &(struct iovec){(uint8_t *)iov->iov_base + done, iov->iov_len - done}, 1, SPLICE_F_NONBLOCK);
        if (n <= 0) return done ? (ssize_t)done : n;
        done += (size_t)n;
        pipe->inside += (size_t)n;
        pipe->pending = !push(pipe);
        if (pipe->pending && errno != EAGAIN && errno != EWOULDBLOCK) return -1;
    }
    return (ssize_t)done;
}

static bool is_large(const struct gang_pipe *pipe, const struct iovec *iov) { return iov->iov_len >= REFERENCE_LEAST && !pipe->copies; }

static ssize_t copy(struct gang_pipe *pipe, const struct iovec *iov, int count, bool more) {
    struct msghdr message = {.msg_iov = (struct iovec *)iov, .msg_iovlen = (size_t)count};
    return sendmsg(pipe->fd, &message, MSG_NOSIGNAL | (more ? MSG_MORE : 0));
}

static ssize_t plain_write(struct gang_pipe *pipe, const struct iovec *iov, int count) {
    size_t done = 0;
    pipe->pending = !push(pipe);
    for (int i = 0, next; i < count && !pipe->pending; i = next) {
        size_t bytes = iov[i].iov_len;
        bool large = is_large(pipe, &iov[i]) && can_refer(pipe);
        for (next = i + 1; !large && next < count && !is_large(pipe, &iov[next]); next++) bytes += iov[next].iov_len;
        ssize_t n = large ? refer(pipe, &iov[i]) : copy(pipe, iov + i, next - i, next < count);
        if (n < 0) return done ? (ssize_t)done : n;
        done += (size_t)n;
        if ((size_t)n < bytes) break;
    }
    return done || !pipe->pending ? (ssize_t)done : -1;
}

static void plain_close(struct gang_pipe *pipe) {
    close_through(pipe);
    close(pipe->fd);
}

const struct gang_carrier gang_carrier_tcp = {"tcp", false, plain_open, plain_handshake, plain_read, plain_write, plain_close};
