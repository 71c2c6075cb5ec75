// The line between two ends, and the thread that works for it.
//
// What comes is stamped, piece by piece, with the time at which it may leave: when the line is free, plus the time it takes at
// the rate, plus the delay. Pieces are small, so that time is fine: 50 us of the rate. Each direction has a line of its own;
// all that passes shares it.
#include "wire/relay.h"

#include <assert.h>
#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { PIECE_LEAST = 1500, PIECE_MOST = 64 << 10, EVENTS = 64 };
static const int64_t second_ns = 1000000000, jitter_hold_ns = 5000000;
static const double piece_s = 50e-6, slack_bytes = 1 << 20, unlimited_bytes = 64 << 20, most_bytes = (double)((uint64_t)1 << 30);

static int64_t ns_of(double seconds) { return (int64_t)(seconds * 1e9); }

// ---- The line ------------------------------------------------------------------------------------------------------

double gang_relay_draw(struct gang_relay *relay) { return gang_uniform(gang_random_at(relay->options.seed, 3, relay->draws++)); }

static void draw_flip(struct gang_relay *relay) {
    double bits = log1p(-gang_relay_draw(relay)) / log1p(-relay->options.flips);
    relay->until_flip = bits < 1e18 ? (uint64_t)bits : UINT64_MAX;
}

void gang_relay_flip(struct gang_relay *relay, uint8_t *data, size_t bytes) {
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

bool gang_relay_blocked(const struct gang_relay *relay, int64_t now_ns, int64_t *until_ns) {
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
    *until_ns = isfinite(next) ? relay->start_ns + ns_of(next) : gang_relay_never_ns;
    return cut;
}

bool gang_relay_full(const struct gang_relay *relay, int side, int64_t now_ns) { return relay->free_ns[side] - now_ns >= relay->queue_ns; }

static int64_t jitter(struct gang_relay *relay, int side, int64_t now_ns) {
    if (relay->options.jitter_s > 0 && now_ns >= relay->jitter_until_ns[side]) {
        relay->jitter_ns[side] = ns_of(gang_relay_draw(relay) * relay->options.jitter_s);
        relay->jitter_until_ns[side] = now_ns + jitter_hold_ns;
    }
    return relay->jitter_ns[side];
}

int64_t gang_relay_stamp(struct gang_relay *relay, int side, uint32_t bytes, int64_t came_ns, int64_t *last_at_ns) {
    int64_t *line = &relay->free_ns[side];
    double rate = relay->options.bytes_per_s;
    if (*line < came_ns) *line = came_ns;
    if (rate > 0) *line += (int64_t)((double)bytes / rate * 1e9);
    int64_t at = *line + relay->delay_ns + jitter(relay, side, came_ns);
    if (at > *last_at_ns) *last_at_ns = at;
    return *last_at_ns;
}

void gang_relay_left(struct gang_relay *relay, int64_t due_ns, int64_t now_ns) {
    double late = (double)(now_ns - due_ns) * 1e-9;
    relay->late_s += late;
    relay->pieces++;
    if (late > relay->report.late_most_s) relay->report.late_most_s = late;
}

// ---- The thread ----------------------------------------------------------------------------------------------------

bool gang_relay_watch(struct gang_relay *relay, int fd, uint32_t events, void *source) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(relay->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void *run(void *context) {
    struct gang_relay *relay = context;
    struct epoll_event events[EVENTS];
    // A distance does not grow because the machine is busy: before all other threads, where we may.
    (void)pthread_setschedparam(pthread_self(), SCHED_RR, &(struct sched_param){.sched_priority = 1});
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
    int64_t next = gang_relay_never_ns;
    while (!__atomic_load_n(&relay->stop, __ATOMIC_RELAXED)) {
        int64_t wait = next - gang_os->now_ns();
        if (wait < 0) wait = 0;
        struct timespec timeout = {wait / second_ns, wait % second_ns};
        int count = epoll_pwait2(relay->epoll, events, EVENTS, next == gang_relay_never_ns ? NULL : &timeout, NULL);
        pthread_mutex_lock(&relay->lock);
        for (int i = 0; i < count; i++)
            if (events[i].data.ptr) relay->kind->event(relay, events[i].data.ptr, events[i].events);
        next = relay->kind->turn(relay, gang_os->now_ns());
        pthread_mutex_unlock(&relay->lock);
    }
    return NULL;
}

static enum gang_status start(struct gang_relay *relay) {
    relay->epoll = epoll_create1(EPOLL_CLOEXEC);
    relay->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (relay->epoll < 0 || relay->kick < 0 || !gang_relay_watch(relay, relay->kick, EPOLLIN | EPOLLET, NULL))
        return gang_fail_os("relay: cannot make an event queue");
    enum gang_status status = relay->kind->open(relay);
    if (status) return status;
    relay->started = pthread_create(&relay->thread, NULL, run, relay) == 0;
    return relay->started ? GANG_OK : gang_fail_os("relay: cannot start a thread");
}

enum gang_status gang_relay_open(const struct gang_relay_options *options, struct gang_relay **out) {
    struct gang_relay *relay = calloc(1, sizeof *relay);
    assert(relay && "out of memory");
    relay->options = *options;
    relay->kind = options->between[0] ? &gang_relay_packets : &gang_relay_tcp;
    relay->epoll = relay->kick = -1;
    pthread_mutex_init(&relay->lock, NULL);
    relay->start_ns = gang_os->now_ns();
    relay->delay_ns = ns_of(options->rtt_s / 2);
    relay->queue_ns = relay->kind->queue_rtts * ns_of(options->rtt_s);
    if (relay->queue_ns < relay->kind->queue_least_ns) relay->queue_ns = relay->kind->queue_least_ns;
    double rate = options->bytes_per_s;
    double bytes = rate > 0 ? rate * (options->rtt_s / 2 + options->jitter_s + (double)relay->queue_ns * 2e-9) + slack_bytes : unlimited_bytes;
    relay->ring_bytes = (size_t)(bytes < most_bytes ? bytes : most_bytes);
    double piece = rate > 0 ? rate * piece_s : PIECE_MOST;
    relay->piece_bytes = piece < PIECE_LEAST ? PIECE_LEAST : piece > PIECE_MOST ? PIECE_MOST : (uint32_t)piece;
    if (options->flips > 0) draw_flip(relay);
    enum gang_status status = start(relay);
    if (status) {
        gang_relay_close(relay);
        relay = NULL;
    }
    *out = relay;
    return status;
}

enum gang_status gang_relay_add(struct gang_relay *relay, const char *to, char address[GANG_ADDRESS_TEXT]) {
    assert(relay->kind->add && "a relay of packets has no routes");
    pthread_mutex_lock(&relay->lock);
    enum gang_status status = relay->kind->add(relay, to, address);
    pthread_mutex_unlock(&relay->lock);
    return status;
}

const char *gang_relay_address(const struct gang_relay *relay) { return relay->address; }

void gang_relay_cut(struct gang_relay *relay, bool cut) {
    __atomic_store_n(&relay->cut, cut, __ATOMIC_RELAXED);
    (void)eventfd_write(relay->kick, 1);
}

void gang_relay_report(struct gang_relay *relay, struct gang_relay_report *out) {
    pthread_mutex_lock(&relay->lock);
    relay->report.late_s = relay->pieces > 0 ? relay->late_s / relay->pieces : 0;
    if (relay->kind->report) relay->kind->report(relay);
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
    if (relay->state) relay->kind->close(relay);
    if (relay->kick >= 0) close(relay->kick);
    if (relay->epoll >= 0) close(relay->epoll);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}
