// The carrier between ranks of one machine: two rings of bytes in memory that both map, one for each direction.
//
// Who connects makes the memory (a memfd: it has no name and is gone with the last who maps it) and passes it over a Unix
// socket. That socket carries nothing after that but single bytes that ring the other side's bell, and its end, which tells at
// once when the other process has died. Only processes of the same user meet here, and no secret is asked for.
//
// Nobody polls. Who finds its ring empty (to read) or full (to write) says so in the ring, looks once more, and goes; the other
// side sees it after its next move and rings. A writer is rung for when half of the ring is free, so that the two do not
// wake each other for every piece.
//
// The other side's positions are believed only as far as they lie within the ring: a broken peer breaks its own link, and
// what it writes is judged frame by frame, as what comes over TCP. Frames here are not checksummed but for their headers:
// this is memory, like the buffers on either side.
#include "wire/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RING_BYTES = 1 << 20, STEP_BYTES = 64 << 10, BELLS = 64 };

// Each on a line of its own: one side writes it, the other reads it.
struct ring {
    _Alignas(128) uint64_t put; // bytes ever written
    uint32_t reader_waits;      // and whoever clears it rings
    _Alignas(128) uint64_t taken;
    uint32_t writer_waits;
    _Alignas(128) uint8_t data[RING_BYTES];
};

struct gang_shm {
    struct ring *map, *out, *in;
    uint64_t put, taken; // our own; what stands in the rings is only told
    int fd;              // of the memory, to be passed; or -1
};

static bool shm_open_pipe(struct gang_wire *wire, struct gang_pipe *pipe, bool accepts) {
    (void)wire;
    struct gang_shm *shm = pipe->shm = calloc(1, sizeof *shm);
    assert(shm && "out of memory");
    shm->fd = -1;
    if (!gang_local_same_user(pipe->fd)) return false;
    if (accepts) return true;
    shm->fd = gang_shared_new(2 * sizeof *shm->map);
    shm->map = shm->fd < 0 ? NULL : gang_shared_map(shm->fd, 2 * sizeof *shm->map);
    if (!shm->map) return false;
    shm->out = &shm->map[0];
    shm->in = &shm->map[1];
    return true;
}

static int shm_handshake(struct gang_pipe *pipe) {
    struct gang_shm *shm = pipe->shm;
    if (shm->map) return gang_local_pass(pipe->fd, shm->fd) ? 1 : errno == EAGAIN ? 0 : -1;
    int fd = gang_local_take(pipe->fd);
    if (fd < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    shm->map = gang_shared_map(fd, 2 * sizeof *shm->map);
    close(fd);
    if (!shm->map) return -1;
    shm->in = &shm->map[0];
    shm->out = &shm->map[1];
    return 1;
}

// Our move is told before we look whether the other side waits; it says that it waits before it looks for our move. So one of
// the two sees the other, if all four steps are in one order: sequentially consistent.
static void ring_if(int fd, uint32_t *waits) {
    if (__atomic_load_n(waits, __ATOMIC_SEQ_CST) && __atomic_exchange_n(waits, 0, __ATOMIC_SEQ_CST)) (void)send(fd, "", 1, MSG_NOSIGNAL);
}

// False: there is nothing, or the other side's position is nonsense, which ends like nothing.
static bool some_in(const struct gang_shm *shm, uint64_t *bytes) {
    *bytes = __atomic_load_n(&shm->in->put, __ATOMIC_SEQ_CST) - shm->taken;
    return *bytes && *bytes <= RING_BYTES;
}

static bool room_out(const struct gang_shm *shm, uint64_t *bytes) {
    uint64_t used = shm->put - __atomic_load_n(&shm->out->taken, __ATOMIC_SEQ_CST);
    *bytes = RING_BYTES - used;
    return used < RING_BYTES;
}

static size_t piece(uint64_t bytes, uint64_t position, size_t most) {
    size_t n = RING_BYTES - position % RING_BYTES; // to the end of the ring
    n = bytes < n ? (size_t)bytes : n;
    n = most < n ? most : n;
    return n < STEP_BYTES ? n : STEP_BYTES;
}

// Until `to` is full or the ring is empty.
static size_t take(const struct gang_pipe *pipe, uint8_t *to, size_t most) {
    struct gang_shm *shm = pipe->shm;
    size_t done = 0;
    for (uint64_t bytes; done < most && some_in(shm, &bytes);) {
        size_t n = piece(bytes, shm->taken, most - done);
        memcpy(to + done, shm->in->data + shm->taken % RING_BYTES, n);
        done += n;
        shm->taken += n;
        __atomic_store_n(&shm->in->taken, shm->taken, __ATOMIC_SEQ_CST);
        if (bytes - n <= RING_BYTES / 2) ring_if(pipe->fd, &shm->in->writer_waits);
    }
    return done;
}

static size_t put(const struct gang_pipe *pipe, const uint8_t *from, size_t most) {
    struct gang_shm *shm = pipe->shm;
    size_t done = 0;
    for (uint64_t bytes; done < most && room_out(shm, &bytes);) {
        size_t n = piece(bytes, shm->put, most - done);
        memcpy(shm->out->data + shm->put % RING_BYTES, from + done, n);
        done += n;
        shm->put += n;
        __atomic_store_n(&shm->out->put, shm->put, __ATOMIC_SEQ_CST);
        ring_if(pipe->fd, &shm->out->reader_waits);
    }
    return done;
}

// Takes the bells that have rung, says that we wait, and looks once more. -1 and errno, 0 at the other side's end, 1: some came.
static int wait_for_more(const struct gang_pipe *pipe) {
    uint64_t bytes;
    char bells[BELLS];
    ssize_t n = recv(pipe->fd, bells, sizeof bells, 0);
    bool ended = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR);
    __atomic_store_n(&pipe->shm->in->reader_waits, 1, __ATOMIC_SEQ_CST);
    if (some_in(pipe->shm, &bytes)) return 1;
    errno = EAGAIN;
    return ended ? 0 : -1;
}

static ssize_t shm_read(struct gang_pipe *pipe, const struct iovec *iov, int count) {
    size_t done = 0;
    for (int i = 0; i < count; i++)
        for (size_t at = 0; at < iov[i].iov_len;) {
            size_t n = take(pipe, (uint8_t *)iov[i].iov_base + at, iov[i].iov_len - at);
            at += n;
            done += n;
            int more = at < iov[i].iov_len ? wait_for_more(pipe) : 1;
            if (more <= 0) return done ? (ssize_t)done : more; // an end is met again at the next call
        }
    return (ssize_t)done;
}

static ssize_t shm_write(struct gang_pipe *pipe, const struct iovec *iov, int count) {
    struct gang_shm *shm = pipe->shm;
    size_t done = 0;
    for (int i = 0; i < count; i++)
        for (size_t at = 0; at < iov[i].iov_len;) {
            uint64_t bytes;
            size_t n = put(pipe, (const uint8_t *)iov[i].iov_base + at, iov[i].iov_len - at);
            at += n;
            done += n;
            if (at == iov[i].iov_len) break;
            __atomic_store_n(&shm->out->writer_waits, 1, __ATOMIC_SEQ_CST);
            if (room_out(shm, &bytes)) continue;
            errno = EAGAIN;
            return done ? (ssize_t)done : -1;
        }
    return (ssize_t)done;
}

static void shm_close(struct gang_pipe *pipe) {
    if (pipe->shm->fd >= 0) close(pipe->shm->fd);
    gang_shared_unmap(pipe->shm->map, 2 * sizeof *pipe->shm->map);
    free(pipe->shm);
    pipe->shm = NULL;
    close(pipe->fd);
}

const struct gang_carrier gang_carrier_shm = {"shared memory", true, shm_open_pipe, shm_handshake, shm_read, shm_write, shm_close};
