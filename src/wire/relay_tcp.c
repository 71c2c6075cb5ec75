// The relay of connections: a delay line for each direction of each of them.
//
// What is read goes into a ring, and its pieces leave when the line says. The line takes no more than a short queue ahead;
// beyond that the sender feels the rate by back-pressure, as it would from a router with a small buffer. Of several connections
// that have data each gives a piece in turn, so that none has the line to itself. A ring that has run empty begins anew at its
// start: memory is what was ever on the way at a time, not PAIRS_MAX whole rings.
#include "wire/relay.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAIRS_MAX = 256, ROUTES_MAX = 256, PIECES_MAX = 1 << 15, READ_BYTES = 64 << 10, PIECE_LEAST = 1500 };
static const double socket_least = 128 << 10;
// Once awake, what is due so soon leaves along: each wake-up here, and each that it causes at an end, takes from processors that compute.
static const int64_t early_ns = 100000;

struct piece {
    int64_t at_ns;
    uint32_t bytes;
};

struct direction {
    int from, to; // sockets of the pair; the same two, crossed, in the other direction
    uint8_t *ring;
    uint64_t put, taken; // bytes ever
    struct piece *pieces;
    uint32_t head, count;
    int64_t last_at_ns;
    bool ended, passed_on; // the source has ended; and the target knows
};

struct pair {
    bool used, readable[2], writable[2], connecting;
    int fds[2]; // 0: who came, 1: to whom it goes
    struct direction ways[2];
};

enum source { SOURCE_ROUTE, SOURCE_PAIR }; // first member of what epoll points to

struct relay_end {
    enum source source;
    struct pair *pair;
    int end;
};

struct route { // what comes in at `listener` goes to `to`
    enum source source;
    int listener;
    struct gang_address to;
};

struct state {
    struct gang_address host; // routes listen here, port 0
    size_t socket_bytes;
    int64_t blocked_since_ns;
    struct route routes[ROUTES_MAX];
    int route_count;
    int top;        // no pair from here on was ever used
    unsigned first; // the pair that begins the next round
    struct pair pairs[PAIRS_MAX];
    struct relay_end ends[PAIRS_MAX][2];
};

// ---- Pairs ---------------------------------------------------------------------------------------------------------

static void close_pair(struct gang_relay *relay, struct pair *pair) {
    for (int i = 0; i < 2; i++) {
        if (pair->fds[i] >= 0) close(pair->fds[i]);
        gang_big_free(pair->ways[i].ring, relay->ring_bytes);
        free(pair->ways[i].pieces);
    }
    *pair = (struct pair){.fds = {-1, -1}};
}

static void open_pair(struct gang_relay *relay, const struct route *route, int fd) {
    struct state *state = relay->state;
    int i = 0;
    while (i < PAIRS_MAX && state->pairs[i].used) i++;
    if (i == PAIRS_MAX) {
        close(fd);
        return;
    }
    struct pair *pair = &state->pairs[i];
    if (i >= state->top) state->top = i + 1;
    *pair = (struct pair){.used = true, .fds = {fd, -1}, .connecting = true};
    bool good = gang_socket_connect(NULL, &route->to, &pair->fds[1]) == GANG_OK;
    for (int end = 0; end < 2 && good; end++) {
        struct direction *way = &pair->ways[end];
        void *ring = NULL;
        gang_socket_no_delay(pair->fds[end]);
        if (state->socket_bytes) gang_socket_buffers(pair->fds[end], state->socket_bytes);
        good = gang_big_alloc(relay->ring_bytes, &ring) == GANG_OK &&
               gang_relay_watch(relay, pair->fds[end], EPOLLIN | EPOLLOUT | EPOLLET, &state->ends[i][end]);
        *way = (struct direction){.from = pair->fds[end], .to = pair->fds[!end], .ring = ring, .pieces = calloc(PIECES_MAX, sizeof *way->pieces)};
        assert(way->pieces && "out of memory");
        state->ends[i][end] = (struct relay_end){SOURCE_PAIR, pair, end};
    }
    if (!good) close_pair(relay, pair);
    relay->report.connections += good;
}

static void stamp(struct gang_relay *relay, struct direction *way, int side, size_t bytes, int64_t now_ns) {
    while (bytes) {
        uint32_t n = bytes < relay->piece_bytes ? (uint32_t)bytes : relay->piece_bytes;
        int64_t at = gang_relay_stamp(relay, side, n, now_ns, &way->last_at_ns);
        way->pieces[(way->head + way->count++) % PIECES_MAX] = (struct piece){at, n};
        bytes -= n;
    }
}

// The ring's part of `bytes` from position `at`, in one or two places.
static int ring_iov(const struct gang_relay *relay, const struct direction *way, uint64_t at, size_t bytes, struct iovec iov[2]) {
    size_t offset = at % relay->ring_bytes, first = relay->ring_bytes - offset;
    first = first < bytes ? first : bytes;
    iov[0] = (struct iovec){way->ring + offset, first};
    iov[1] = (struct iovec){way->ring, bytes - first};
    return first < bytes ? 2 : 1;
}

// One read, if the line has room; *some when something came. False: the pair is broken.
static bool take_in(struct gang_relay *relay, struct pair *pair, int side, int64_t now_ns, bool *some) {
    struct direction *way = &pair->ways[side];
    while (pair->readable[side] && !way->ended && !gang_relay_full(relay, side, now_ns)) {
        if (way->put == way->taken) way->put = way->taken = 0;
        size_t room = relay->ring_bytes - (size_t)(way->put - way->taken);
        size_t most = room < READ_BYTES ? room : READ_BYTES;
        if (!most || way->count + READ_BYTES / PIECE_LEAST + 1 >= PIECES_MAX) return true;
        struct iovec iov[2];
        ssize_t n = readv(way->from, iov, ring_iov(relay, way, way->put, most, iov));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            pair->readable[side] = false;
            return true;
        }
        if (n < 0) return false;
        way->ended = n == 0;
        size_t done = 0;
        for (int i = 0; i < 2 && done < (size_t)n; i++) {
            size_t part = iov[i].iov_len < (size_t)n - done ? iov[i].iov_len : (size_t)n - done;
            gang_relay_flip(relay, iov[i].iov_base, part);
            done += part;
        }
        way->put += (uint64_t)n;
        stamp(relay, way, side, (size_t)n, now_ns);
        *some = true;
        return true;
    }
    return true;
}

static bool let_out(struct gang_relay *relay, struct pair *pair, int side, int64_t now_ns) {
    struct direction *way = &pair->ways[side];
    int64_t until_ns = now_ns;
    while (pair->writable[!side] && way->count && way->pieces[way->head].at_ns <= until_ns) {
        until_ns = now_ns + early_ns;
        size_t due = 0;
        for (uint32_t i = 0; i < way->count && due < 4 * READ_BYTES; i++) {
            struct piece *piece = &way->pieces[(way->head + i) % PIECES_MAX];
            if (piece->at_ns > until_ns) break;
            due += piece->bytes;
        }
        struct iovec iov[2];
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)ring_iov(relay, way, way->taken, due, iov)};
        ssize_t n = sendmsg(way->to, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) return false;
        pair->writable[!side] = n == (ssize_t)due;
        if (n < 0) break;
        way->taken += (uint64_t)n;
        relay->report.bytes[side] += (uint64_t)n;
        for (size_t left = (size_t)n; left;) {
            struct piece *piece = &way->pieces[way->head];
            gang_relay_left(relay, piece->at_ns, now_ns);
            uint32_t part = left < piece->bytes ? (uint32_t)left : piece->bytes;
            piece->bytes -= part;
            left -= part;
            if (piece->bytes) break;
            way->head = (way->head + 1) % PIECES_MAX;
            way->count--;
        }
    }
    if (way->ended && !way->count && !way->passed_on) {
        shutdown(way->to, SHUT_WR);
        way->passed_on = true;
    }
    return true;
}

// When the direction wants to be looked at again.
static int64_t due_at(const struct gang_relay *relay, const struct pair *pair, int side, int64_t now_ns) {
    const struct direction *way = &pair->ways[side];
    int64_t next = gang_relay_never_ns;
    if (way->count && pair->writable[!side]) next = way->pieces[way->head].at_ns;
    bool waits_for_line = pair->readable[side] && !way->ended && way->put - way->taken < relay->ring_bytes;
    int64_t line = relay->free_ns[side] - relay->queue_ns / 2;
    if (waits_for_line && line < next) next = line;
    return next < now_ns + gang_relay_step_ns ? now_ns + gang_relay_step_ns : next;
}

// ---- Turns ---------------------------------------------------------------------------------------------------------

static void note_event(struct gang_relay *relay, void *source, uint32_t events) {
    if (*(enum source *)source == SOURCE_ROUTE) {
        struct route *route = source;
        for (int fd; (fd = gang_socket_accept(route->listener)) >= 0;) open_pair(relay, route, fd);
        return;
    }
    struct relay_end *end = source;
    struct pair *pair = end->pair;
    if (!pair->used) return;
    if (pair->connecting && end->end == 1 && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        pair->connecting = false;
        if (gang_socket_error(pair->fds[1])) {
            close_pair(relay, pair);
            return;
        }
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) pair->readable[end->end] = true;
    if (events & EPOLLOUT) pair->writable[end->end] = true;
}

// After a time in which nothing passed everything is later by as much.
static void shift(struct gang_relay *relay, int64_t by_ns) {
    struct state *state = relay->state;
    for (int i = 0; i < state->top; i++)
        for (int side = 0; side < 2 && state->pairs[i].used; side++) {
            struct direction *way = &state->pairs[i].ways[side];
            way->last_at_ns += by_ns;
            for (uint32_t k = 0; k < way->count; k++) way->pieces[(way->head + k) % PIECES_MAX].at_ns += by_ns;
        }
    relay->free_ns[0] += by_ns;
    relay->free_ns[1] += by_ns;
}

// Rounds over the pairs, beginning where the last turn ended, while the line takes more.
static void take_all_in(struct gang_relay *relay, int64_t now_ns) {
    struct state *state = relay->state;
    for (bool some = true; some;) {
        some = false;
        for (int k = 0; k < state->top; k++) {
            struct pair *pair = &state->pairs[(state->first + (unsigned)k) % (unsigned)state->top];
            if (!pair->used || pair->connecting) continue;
            if (!take_in(relay, pair, 0, now_ns, &some) || !take_in(relay, pair, 1, now_ns, &some)) close_pair(relay, pair);
        }
    }
    state->first++;
}

static int64_t turn(struct gang_relay *relay, int64_t now_ns) {
    struct state *state = relay->state;
    int64_t next;
    if (gang_relay_blocked(relay, now_ns, &next)) {
        if (!state->blocked_since_ns) state->blocked_since_ns = now_ns;
        return next;
    }
    if (state->blocked_since_ns) shift(relay, now_ns - state->blocked_since_ns);
    state->blocked_since_ns = 0;
    take_all_in(relay, now_ns);
    for (int i = 0; i < state->top; i++) {
        struct pair *pair = &state->pairs[i];
        if (!pair->used || pair->connecting) continue;
        bool good = let_out(relay, pair, 0, now_ns) && let_out(relay, pair, 1, now_ns);
        if (!good || (pair->ways[0].passed_on && pair->ways[1].passed_on)) {
            close_pair(relay, pair);
            continue;
        }
        for (int side = 0; side < 2; side++) {
            int64_t at = due_at(relay, pair, side, now_ns);
            next = at < next ? at : next;
        }
    }
    return next;
}

// ---- Routes --------------------------------------------------------------------------------------------------------

static enum gang_status listen_for(struct gang_relay *relay, const struct gang_address *at, const char *to, char address[GANG_ADDRESS_TEXT]) {
    struct state *state = relay->state;
    struct route *route = &state->routes[state->route_count];
    struct gang_address bound;
    if (state->route_count == ROUTES_MAX) return gang_fail(GANG_ERR_INPUT, "relay: to %s: at most %d routes: open another relay", to, ROUTES_MAX);
    *route = (struct route){.source = SOURCE_ROUTE, .listener = -1};
    enum gang_status status = gang_address_resolve("relay: to", to, &route->to);
    if (!status) status = gang_socket_listen(at, &route->listener);
    if (!status) status = gang_socket_address(route->listener, &bound);
    if (!status && !gang_relay_watch(relay, route->listener, EPOLLIN, &route->source))
        status = gang_fail_os("relay: cannot watch a listening socket");
    if (!status) {
        gang_address_text(&bound, address);
        state->route_count++;
    } else if (route->listener >= 0) {
        close(route->listener);
    }
    return status;
}

static enum gang_status add(struct gang_relay *relay, const char *to, char *address) {
    return listen_for(relay, &((struct state *)relay->state)->host, to, address);
}

static enum gang_status open_tcp(struct gang_relay *relay) {
    struct gang_address address;
    struct state *state = relay->state = calloc(1, sizeof *state);
    assert(state && "out of memory");
    for (int i = 0; i < PAIRS_MAX; i++) state->pairs[i] = (struct pair){.fds = {-1, -1}};
    double socket_bytes = relay->options.bytes_per_s * (double)relay->queue_ns * 1e-9;
    state->socket_bytes = socket_bytes <= 0 ? 0 : socket_bytes < socket_least ? (size_t)socket_least : (size_t)socket_bytes;
    enum gang_status status = gang_address_resolve("relay: listen", relay->options.listen, &address);
    if (!status && relay->options.to) status = listen_for(relay, &address, relay->options.to, relay->address);
    if (!status) state->host = gang_address_with_port(&address, 0);
    return status;
}

static void close_tcp(struct gang_relay *relay) {
    struct state *state = relay->state;
    for (int i = 0; i < PAIRS_MAX; i++)
        if (state->pairs[i].used) close_pair(relay, &state->pairs[i]);
    for (int i = 0; i < state->route_count; i++) close(state->routes[i].listener);
    free(state);
}

const struct gang_relay_kind gang_relay_tcp = {
    .queue_least_ns = 2000000, .open = open_tcp, .add = add, .event = note_event, .turn = turn, .close = close_tcp};
