// The relay: a delay line for each direction of each connection, and one rate for each direction of the whole.
//
// What is read goes into a ring and is stamped, piece by piece, with the time at which it may leave: when the line is
// free, plus the time it takes at the rate, plus the delay. Pieces are small, so that time is fine: 50 us of the rate. The
// line takes no more than a short queue ahead; beyond that the sender feels the rate by back-pressure, as it would from a
// router with a small buffer. Of several connections that have data each gives a piece in turn, so that none has the line
// to itself. A ring that has run empty begins anew at its start: memory is what was ever on the way at a time, not PAIRS_MAX
// whole rings.
#include "wire/wire.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { PAIRS_MAX = 256, ROUTES_MAX = 256, PIECES_MAX = 1 << 15, READ_BYTES = 64 << 10, PIECE_LEAST = 1500, EVENTS = 64 };
static const int64_t second_ns = 1000000000, queue_ns = 2000000, step_ns = 20000, never_ns = INT64_MAX;
static const double piece_s = 50e-6, slack_bytes = 1 << 20, unlimited_bytes = 64 << 20, most_bytes = (double)((uint64_t)1 << 30);

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

enum source { SOURCE_KICK, SOURCE_ROUTE, SOURCE_PAIR }; // first member of what epoll points to

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

struct gang_relay {
    struct gang_relay_options options;
    struct gang_address host; // routes listen here, port 0
    char address[GANG_ADDRESS_TEXT];
    enum source kick_source;
    int epoll, kick;
    pthread_t thread;
    pthread_mutex_t lock; // of all but `stop` and `cut`
    struct gang_relay_report report;
    bool started;
    int stop, cut; // atomic
    size_t ring_bytes;
    uint32_t piece_bytes;
    int64_t start_ns, delay_ns, line_free_ns[2], blocked_since_ns;
    uint64_t draws, until_flip; // bits until the next one is flipped
    double late_s, pieces;
    struct route routes[ROUTES_MAX];
    int route_count;
    int top;        // no pair from here on was ever used
    unsigned first; // the pair that begins the next round
    struct pair pairs[PAIRS_MAX];
    struct relay_end ends[PAIRS_MAX][2];
};

static int64_t ns_of(double seconds) { return (int64_t)(seconds * 1e9); }

// ---- Faults --------------------------------------------------------------------------------------------------------

static double draw(struct gang_relay *relay) { return gang_uniform(gang_random_at(relay->options.seed, 3, relay->draws++)); }

static void draw_flip(struct gang_relay *relay) {
    double bits = log1p(-draw(relay)) / log1p(-relay->options.flips);
    relay->until_flip = bits < 1e18 ? (uint64_t)bits : UINT64_MAX;
}

static void flip_bits(struct gang_relay *relay, uint8_t *data, size_t bytes) {
    if (relay->options.flips <= 0) return;
    uint64_t bits = 8 * (uint64_t)bytes, at = 0;
    while (relay->until_flip < bits - at) {
        at += relay->until_flip;
        data[at / 8] ^= (uint8_t)(1u << at % 8);
        at++;
        relay->report.flipped++;
        draw_flip(relay);
        if (at >= bits) return;
    }
    relay->until_flip -= bits - at;
}

// Whether nothing passes now; *until_ns is when to look again at the latest.
static bool blocked(const struct gang_relay *relay, int64_t now_ns, int64_t *until_ns) {
    const struct gang_relay_options *o = &relay->options;
    double t = (double)(now_ns - relay->start_ns) * 1e-9, next = INFINITY;
    bool cut = __atomic_load_n(&relay->cut, __ATOMIC_RELAXED);
    if (o->cut_at_s > 0) {
        cut = cut || (t >= o->cut_at_s && (o->heal_at_s <= 0 || t < o->heal_at_s));
        next = t < o->cut_at_s ? o->cut_at_s : o->heal_at_s > t ? o->heal_at_s : INFINITY;
    }
    if (o->outage_every_s > 0) {
        double phase = fmod(t, o->outage_every_s), begin = t - phase;
        bool out = begin > 0 && phase < o->outage_s;
        cut = cut || out;
        double change = begin + (out ? o->outage_s : o->outage_every_s);
        next = change < next ? change : next;
    }
    *until_ns = isfinite(next) ? relay->start_ns + ns_of(next) : never_ns;
    return cut;
}

// ---- Pairs ---------------------------------------------------------------------------------------------------------

static void close_pair(struct gang_relay *relay, struct pair *pair) {
    for (int i = 0; i < 2; i++) {
        if (pair->fds[i] >= 0) close(pair->fds[i]);
        gang_big_free(pair->ways[i].ring, relay->ring_bytes);
        free(pair->ways[i].pieces);
    }
    *pair = (struct pair){.fds = {-1, -1}};
}

static bool watch(struct gang_relay *relay, int fd, uint32_t events, void *source) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(relay->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void open_pair(struct gang_relay *relay, const struct route *route, int fd) {
    int i = 0;
    while (i < PAIRS_MAX && relay->pairs[i].used) i++;
    if (i == PAIRS_MAX) {
        close(fd);
        return;
    }
    struct pair *pair = &relay->pairs[i];
    if (i >= relay->top) relay->top = i + 1;
    *pair = (struct pair){.used = true, .fds = {fd, -1}, .connecting = true};
    bool good = gang_socket_connect(NULL, &route->to, &pair->fds[1]) == GANG_OK;
    for (int end = 0; end < 2 && good; end++) {
        struct direction *way = &pair->ways[end];
        void *ring = NULL;
        gang_socket_no_delay(pair->fds[end]);
        good = gang_big_alloc(relay->ring_bytes, &ring) == GANG_OK &&
               watch(relay, pair->fds[end], EPOLLIN | EPOLLOUT | EPOLLET, &relay->ends[i][end]);
        *way = (struct direction){.from = pair->fds[end], .to = pair->fds[!end], .ring = ring, .pieces = calloc(PIECES_MAX, sizeof *way->pieces)};
        assert(way->pieces && "out of memory");
        relay->ends[i][end] = (struct relay_end){SOURCE_PAIR, pair, end};
    }
    if (!good) close_pair(relay, pair);
    relay->report.connections += good;
}

static void stamp(struct gang_relay *relay, struct direction *way, int side, size_t bytes, int64_t now_ns) {
    int64_t *line = &relay->line_free_ns[side];
    double rate = relay->options.bytes_per_s;
    int64_t jitter = relay->options.jitter_s > 0 ? ns_of(draw(relay) * relay->options.jitter_s) : 0;
    while (bytes) {
        uint32_t n = bytes < relay->piece_bytes ? (uint32_t)bytes : relay->piece_bytes;
        if (*line < now_ns) *line = now_ns;
        if (rate > 0) *line += (int64_t)((double)n / rate * 1e9);
        int64_t at = *line + relay->delay_ns + jitter;
        if (at < way->last_at_ns) at = way->last_at_ns;
        way->last_at_ns = at;
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
    while (pair->readable[side] && !way->ended && relay->line_free_ns[side] - now_ns < queue_ns) {
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
            flip_bits(relay, iov[i].iov_base, part);
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
    while (pair->writable[!side] && way->count && way->pieces[way->head].at_ns <= now_ns) {
        size_t due = 0;
        for (uint32_t i = 0; i < way->count && due < 4 * READ_BYTES; i++) {
            struct piece *piece = &way->pieces[(way->head + i) % PIECES_MAX];
            if (piece->at_ns > now_ns) break;
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
            double late = (double)(now_ns - piece->at_ns) * 1e-9;
            relay->late_s += late;
            relay->pieces++;
            if (late > relay->report.late_most_s) relay->report.late_most_s = late;
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
    int64_t next = never_ns;
    if (way->count && pair->writable[!side]) next = way->pieces[way->head].at_ns;
    bool waits_for_line = pair->readable[side] && !way->ended && way->put - way->taken < relay->ring_bytes;
    int64_t line = relay->line_free_ns[side] - queue_ns / 2;
    if (waits_for_line && line < next) next = line;
    // A wake-up for every piece would cost more than it gains.
    return next < now_ns + step_ns ? now_ns + step_ns : next;
}

// ---- The loop ------------------------------------------------------------------------------------------------------

static void note_event(struct gang_relay *relay, void *source, uint32_t events) {
    if (*(enum source *)source == SOURCE_ROUTE) {
        struct route *route = source;
        for (int fd; (fd = gang_socket_accept(route->listener)) >= 0;) open_pair(relay, route, fd);
        return;
    }
    if (*(enum source *)source == SOURCE_KICK) return;
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
    for (int i = 0; i < relay->top; i++)
        for (int side = 0; side < 2 && relay->pairs[i].used; side++) {
            struct direction *way = &relay->pairs[i].ways[side];
            way->last_at_ns += by_ns;
            for (uint32_t k = 0; k < way->count; k++) way->pieces[(way->head + k) % PIECES_MAX].at_ns += by_ns;
        }
    relay->line_free_ns[0] += by_ns;
    relay->line_free_ns[1] += by_ns;
}

// Rounds over the pairs, beginning where the last turn ended, while the line takes more.
static void take_all_in(struct gang_relay *relay, int64_t now_ns) {
    for (bool some = true; some;) {
        some = false;
        for (int k = 0; k < relay->top; k++) {
            struct pair *pair = &relay->pairs[(relay->first + (unsigned)k) % (unsigned)relay->top];
            if (!pair->used || pair->connecting) continue;
            if (!take_in(relay, pair, 0, now_ns, &some) || !take_in(relay, pair, 1, now_ns, &some)) close_pair(relay, pair);
        }
    }
    relay->first++;
}

static int64_t turn(struct gang_relay *relay, int64_t now_ns) {
    int64_t next;
    if (blocked(relay, now_ns, &next)) {
        if (!relay->blocked_since_ns) relay->blocked_since_ns = now_ns;
        return next;
    }
    if (relay->blocked_since_ns) shift(relay, now_ns - relay->blocked_since_ns);
    relay->blocked_since_ns = 0;
    take_all_in(relay, now_ns);
    for (int i = 0; i < relay->top; i++) {
        struct pair *pair = &relay->pairs[i];
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
    relay->report.late_s = relay->pieces > 0 ? relay->late_s / relay->pieces : 0;
    return next;
}

static void *run(void *context) {
    struct gang_relay *relay = context;
    struct epoll_event events[EVENTS];
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    int64_t next = never_ns;
    while (!__atomic_load_n(&relay->stop, __ATOMIC_RELAXED)) {
        int64_t wait = next - gang_os->now_ns();
        if (wait < 0) wait = 0;
        struct timespec timeout = {wait / second_ns, wait % second_ns};
        int count = epoll_pwait2(relay->epoll, events, EVENTS, next == never_ns ? NULL : &timeout, NULL);
        pthread_mutex_lock(&relay->lock);
        for (int i = 0; i < count; i++) note_event(relay, events[i].data.ptr, events[i].events);
        next = turn(relay, gang_os->now_ns());
        pthread_mutex_unlock(&relay->lock);
    }
    return NULL;
}

static enum gang_status listen_for(struct gang_relay *relay, const struct gang_address *at, const char *to, char address[GANG_ADDRESS_TEXT]) {
    struct route *route = &relay->routes[relay->route_count];
    struct gang_address bound;
    if (relay->route_count == ROUTES_MAX) return gang_fail(GANG_ERR_INPUT, "relay: to %s: at most %d routes: open another relay", to, ROUTES_MAX);
    *route = (struct route){.source = SOURCE_ROUTE, .listener = -1};
    enum gang_status status = gang_address_resolve("relay: to", to, &route->to);
    if (!status) status = gang_socket_listen(at, &route->listener);
    if (!status) status = gang_socket_address(route->listener, &bound);
    if (!status && !watch(relay, route->listener, EPOLLIN, &route->source)) status = gang_fail_os("relay: cannot watch a listening socket");
    if (!status) {
        gang_address_text(&bound, address);
        relay->route_count++;
    } else if (route->listener >= 0) {
        close(route->listener);
    }
    return status;
}

enum gang_status gang_relay_add(struct gang_relay *relay, const char *to, char address[GANG_ADDRESS_TEXT]) {
    pthread_mutex_lock(&relay->lock);
    enum gang_status status = listen_for(relay, &relay->host, to, address);
    pthread_mutex_unlock(&relay->lock);
    return status;
}

static enum gang_status start(struct gang_relay *relay) {
    struct gang_address address;
    relay->epoll = epoll_create1(EPOLL_CLOEXEC);
    relay->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (relay->epoll < 0 || relay->kick < 0 || !watch(relay, relay->kick, EPOLLIN | EPOLLET, &relay->kick_source))
        return gang_fail_os("relay: cannot make an event queue");
    enum gang_status status = gang_address_resolve("relay: listen", relay->options.listen, &address);
    if (!status && relay->options.to) status = listen_for(relay, &address, relay->options.to, relay->address);
    if (status) return status;
    relay->host = gang_address_with_port(&address, 0);
    relay->started = pthread_create(&relay->thread, NULL, run, relay) == 0;
    return relay->started ? GANG_OK : gang_fail_os("relay: cannot start a thread");
}

enum gang_status gang_relay_open(const struct gang_relay_options *options, struct gang_relay **out) {
    struct gang_relay *relay = calloc(1, sizeof *relay);
    assert(relay && "out of memory");
    relay->options = *options;
    relay->epoll = relay->kick = -1;
    relay->kick_source = SOURCE_KICK;
    for (int i = 0; i < PAIRS_MAX; i++) relay->pairs[i] = (struct pair){.fds = {-1, -1}};
    pthread_mutex_init(&relay->lock, NULL);
    relay->start_ns = gang_os->now_ns();
    relay->delay_ns = ns_of(options->rtt_s / 2);
    double rate = options->bytes_per_s;
    double bytes = rate > 0 ? rate * (options->rtt_s / 2 + options->jitter_s + (double)queue_ns * 2e-9) + slack_bytes : unlimited_bytes;
    relay->ring_bytes = (size_t)(bytes < most_bytes ? bytes : most_bytes);
    double piece = rate > 0 ? rate * piece_s : READ_BYTES;
    relay->piece_bytes = piece < PIECE_LEAST ? PIECE_LEAST : piece > READ_BYTES ? READ_BYTES : (uint32_t)piece;
    if (options->flips > 0) draw_flip(relay);
    enum gang_status status = start(relay);
    if (status) {
        gang_relay_close(relay);
        relay = NULL;
    }
    *out = relay;
    return status;
}

const char *gang_relay_address(const struct gang_relay *relay) { return relay->address; }

void gang_relay_cut(struct gang_relay *relay, bool cut) {
    __atomic_store_n(&relay->cut, cut, __ATOMIC_RELAXED);
    (void)eventfd_write(relay->kick, 1);
}

void gang_relay_report(struct gang_relay *relay, struct gang_relay_report *out) {
    pthread_mutex_lock(&relay->lock);
    *out = relay->report;
    pthread_mutex_unlock(&relay->lock);
}

void gang_relay_close(struct gang_relay *relay) {
    if (!relay) return;
    if (relay->started) {
        __atomic_store_n(&relay->stop, 1, __ATOMIC_RELAXED);
        (void)eventfd_write(relay->kick, 1);
        pthread_join(relay->thread, NULL);
    }
    for (int i = 0; i < PAIRS_MAX; i++)
        if (relay->pairs[i].used) close_pair(relay, &relay->pairs[i]);
    for (int i = 0; i < relay->route_count; i++) close(relay->routes[i].listener);
    if (relay->kick >= 0) close(relay->kick);
    if (relay->epoll >= 0) close(relay->epoll);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}
