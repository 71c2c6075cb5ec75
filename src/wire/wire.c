// The calls of wire.h and who runs the loop.
//
// Everything is under one lock. One thread at a time drives: it sleeps in epoll without the lock and handles what comes with
// it. That is the progress thread, unless a caller waits for an operation: then the caller takes the baton and drives
// itself, which saves two changes of thread per message. The progress thread parks meanwhile and takes the baton back when no
// caller has driven for takeover_ns, or at once when long messages are under way: these need somebody who moves them, short
// ones stand in the sockets. To arm a timer for every short sleep would cost a caller more than anything else, so it sleeps
// without one and the parked thread keeps the time, and looks ever more rarely while a caller drives on.
//
// Sending happens in the caller's thread, as far as the sockets take it. If that makes something due before the sleeping
// driver means to wake, it is kicked. Small messages in quick succession are held and go together, in one call of the
// system: when HELD_MOST of them stand there, when a caller waits for anything, and at the latest after hold_ns. A message
// that comes alone is never held.
//
// Only links that something has happened to (`stirred`), or to which something is due, are looked at.
#include "wire/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { HELD_MOST = WIRE_QUEUE_FRAMES / 2, HELD_BYTES = 1024 };
static const int64_t takeover_ns = 1000000, park_least_ns = 20000, park_most_ns = 100000000, flush_limit_ns = 1000000000, second_ns = 1000000000,
                     ms = 1000000;
static const int64_t burst_ns = 2000, hold_ns = 50000; // what follows sooner belongs to a burst; and how late it may go

// ---- Driving -------------------------------------------------------------------------------------------------------

static int64_t min_ns(int64_t a, int64_t b) { return a < b ? a : b; }

// Somebody sleeps and would wake too late.
static void wake_sleeper(struct gang_wire *wire) {
    if (wire->sleep_until_ns > wire->next_ns) (void)eventfd_write(wire->kick, 1);
    if (wire->park_until_ns > wire->next_ns) pthread_cond_signal(&wire->park);
}

// Sends what can be sent, does what is due, and notes when more will be. Called after anything has changed.
static void turn(struct gang_wire *wire, int64_t now_ns) {
    int64_t next = gang_tcp_tick_strangers(wire, now_ns);
    for (struct gang_wire_link *link = wire->links; link; link = link->next) {
        if (link->stirred || link->due_ns <= now_ns) {
            link->stirred = false;
            link->held = 0;
            gang_tcp_flush(link, now_ns);
            link->due_ns = gang_link_tick(link->core, now_ns);
            link->due_ns = min_ns(link->due_ns, gang_tcp_tick(link, now_ns));
            gang_tcp_flush(link, now_ns);
        }
        next = min_ns(next, link->due_ns);
    }
    wire->holds = false;
    wire->next_ns = next;
    wake_sleeper(wire);
}

static void turn_link(struct gang_wire_link *link, int64_t now_ns) {
    link->stirred = true;
    turn(link->wire, now_ns);
}

// Something will have to be done with the link, not later than that.
static void expect(struct gang_wire_link *link, int64_t at_ns) {
    struct gang_wire *wire = link->wire;
    link->due_ns = min_ns(link->due_ns, at_ns);
    if (at_ns >= wire->next_ns) return;
    wire->next_ns = at_ns;
    wake_sleeper(wire);
}

static void drive_once(struct gang_wire *wire) {
    struct epoll_event events[WIRE_EVENTS];
    int64_t now = gang_os->now_ns();
    int64_t wait = wire->again || wire->next_ns <= now ? 0 : wire->next_ns - now;
    struct timespec timeout = {wait / second_ns, wait % second_ns};
    // To arm a timer for each sleep is dear: while a caller drives, the parked progress thread keeps the time.
    bool timeless = wire->driver == DRIVER_USER && wait > 0;
    wire->sleep_until_ns = wire->again || timeless ? 0 : wire->next_ns;
    wire->timeless = timeless;
    pthread_mutex_unlock(&wire->lock);
    int count = epoll_pwait2(wire->epoll, events, WIRE_EVENTS, timeless ? NULL : &timeout, NULL);
    pthread_mutex_lock(&wire->lock);
    wire->sleep_until_ns = 0;
    wire->timeless = false;
    now = gang_os->now_ns();
    if (wire->again) gang_tcp_read_rest(wire, now);
    for (int i = 0; i < count; i++) gang_tcp_event(wire, events[i].data.ptr, events[i].events, now);
    turn(wire, now);
}

// While callers drive, the progress thread does what falls due, and looks whether they have stopped.
static void park(struct gang_wire *wire, int64_t now_ns) {
    if (wire->next_ns <= now_ns) turn(wire, now_ns);
    bool driven = wire->driver == DRIVER_USER;
    if (driven && wire->closing) (void)eventfd_write(wire->kick, 1); // it waits for a time, too
    wire->park_span_ns = driven && wire->parked_ns == wire->user_ns ? min_ns(2 * wire->park_span_ns, park_most_ns) : takeover_ns;
    wire->parked_ns = wire->user_ns;
    int64_t until = driven ? now_ns + wire->park_span_ns : wire->user_ns + takeover_ns;
    until = min_ns(until, wire->next_ns);
    if (until < now_ns + park_least_ns) until = now_ns + park_least_ns; // also when a caller is about to take the baton
    struct timespec at = {until / second_ns, until % second_ns};
    wire->park_until_ns = until;
    pthread_cond_timedwait(&wire->park, &wire->lock, &at);
    wire->park_until_ns = 0;
}

static void *progress(void *context) {
    struct gang_wire *wire = context;
    pthread_mutex_lock(&wire->lock);
    while (!wire->stop) {
        int64_t now = gang_os->now_ns();
        if (wire->driver == DRIVER_NONE && !wire->wanting && now - wire->user_ns >= takeover_ns) {
            wire->driver = DRIVER_PROGRESS;
            drive_once(wire);
            wire->driver = DRIVER_NONE;
            if (wire->wanting) pthread_cond_broadcast(&wire->baton);
        } else {
            park(wire, now);
        }
    }
    pthread_mutex_unlock(&wire->lock);
    return NULL;
}

static bool any_long(const struct gang_wire *wire) {
    for (const struct gang_wire_link *link = wire->links; link; link = link->next)
        if (link->core->long_ops) return true;
    return false;
}

// Drives, or waits for who drives, until `ready` says so.
static void drive_until(struct gang_wire *wire, bool (*ready)(void *context), void *context) {
    bool drove = false;
    while (!ready(context)) {
        if (wire->holds) {
            turn(wire, gang_os->now_ns());
            continue;
        }
        if (wire->driver == DRIVER_NONE) {
            wire->driver = DRIVER_USER;
            drive_once(wire);
            wire->driver = DRIVER_NONE;
            drove = true;
            if (wire->wanting) pthread_cond_broadcast(&wire->baton); // perhaps it is theirs that is done
            continue;
        }
        wire->wanting++;
        if (wire->driver == DRIVER_PROGRESS && wire->sleep_until_ns) (void)eventfd_write(wire->kick, 1);
        pthread_cond_wait(&wire->baton, &wire->lock);
        wire->wanting--;
    }
    if (!drove) return;
    if (wire->wanting) return;
    int64_t now = gang_os->now_ns();
    wire->user_ns = any_long(wire) ? 0 : now;
    if (!wire->user_ns || wire->park_until_ns > now + takeover_ns) pthread_cond_signal(&wire->park);
}

// ---- The core's hooks ----------------------------------------------------------------------------------------------

static void on_complete(void *context, void *user, enum gang_status status) {
    struct gang_wire_link *link = context;
    struct gang_wire_op *op = user;
    op->status = status;
    __atomic_store_n(&op->done, true, __ATOMIC_RELEASE); // from here on it is the caller's
    link->outstanding--;
    // A caller that sleeps without a limit may be waiting for this.
    if (link->wire->timeless) (void)eventfd_write(link->wire->kick, 1);
    if (link->wire->notify) (void)eventfd_write(link->wire->notify, 1);
}

static void on_state(void *context, enum gang_link_state state) {
    struct gang_wire_link *link = context;
    if (link->wire->timeless) (void)eventfd_write(link->wire->kick, 1);
    if (link->wire->notify) return;
    if (state == LINK_SUSPECT) gang_log(GANG_LOG_WARNING, "rank %d: rank %d is silent on all %d planes", link->wire->rank, link->peer, link->planes);
    // A peer that leaves when nothing is under way is no news.
    bool news = !link->wire->stop && !(link->core->peer_left && !link->outstanding);
    if (state == LINK_DEAD && news) gang_log(GANG_LOG_WARNING, "%s", link->core->error);
}

// ---- Opening and closing -------------------------------------------------------------------------------------------

// Ranks of one machine meet by the address that they listen at: it is unique in a network namespace, as the name must be.
static const char *local_name(const struct gang_address *address, char name[WIRE_NAME_CHARS]) {
    char text[GANG_ADDRESS_TEXT];
    snprintf(name, WIRE_NAME_CHARS, "gangline-wire %s", gang_address_text(address, text));
    return name;
}

static enum gang_status start_listening(struct gang_wire *wire, const char *text) {
    struct gang_address address;
    enum gang_status status = gang_address_resolve("wire: listen", text, &address);
    if (!status && !wire->secure && !gang_address_is_loopback(&address))
        return gang_fail(GANG_ERR_INPUT, "wire: listen: '%s' can be reached from other machines: a cluster secret is needed", text);
    if (!status) status = gang_socket_listen(&address, &wire->listener);
    if (!status) status = gang_socket_address(wire->listener, &address);
    if (status) return status;
    gang_address_text(&address, wire->address);
    char name[WIRE_NAME_CHARS];
    return gang_local_listen(local_name(&address, name), &wire->local_listener);
}

static enum gang_status start_polling(struct gang_wire *wire) {
    wire->epoll = epoll_create1(EPOLL_CLOEXEC);
    wire->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wire->epoll < 0 || wire->kick < 0) return gang_fail_os("wire: cannot make an event queue");
    if (!gang_epoll_add(wire, wire->kick, EPOLLIN | EPOLLET, &wire->kick_source)) return gang_fail_os("wire: cannot watch the event queue");
    if (!gang_epoll_add(wire, wire->listener, EPOLLIN, &wire->listener_source)) return gang_fail_os("wire: cannot watch the listening socket");
    if (!gang_epoll_add(wire, wire->local_listener, EPOLLIN, &wire->local_source)) return gang_fail_os("wire: cannot watch the local socket");
    if (getrandom(&wire->session, sizeof wire->session, 0) != (ssize_t)sizeof wire->session) return gang_fail_os("wire: no random numbers");
    wire->session |= 1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&wire->park, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_cond_init(&wire->baton, NULL);
    pthread_mutex_init(&wire->lock, NULL);
    wire->thread_started = pthread_create(&wire->thread, NULL, progress, wire) == 0;
    return wire->thread_started ? GANG_OK : gang_fail_os("wire: cannot start the progress thread");
}

static void set_ms(int64_t *ns, int64_t value_ms) {
    if (value_ms) *ns = value_ms * ms;
}

enum gang_status gang_wire_open(const struct gang_wire_options *options, struct gang_wire **out) {
    struct gang_wire *wire = calloc(1, sizeof *wire);
    assert(wire && "out of memory");
    wire->rank = options->rank;
    wire->cluster = options->cluster;
    wire->notify = options->notify;
    wire->epoll = wire->kick = wire->listener = wire->local_listener = -1;
    wire->local_source = SOURCE_LOCAL_LISTENER;
    wire->listener_source = SOURCE_LISTENER;
    wire->kick_source = SOURCE_KICK;
    wire->next_ns = INT64_MAX;
    wire->config = gang_link_defaults;
    set_ms(&wire->config.heartbeat_ns, options->heartbeat_ms);
    set_ms(&wire->config.hold_ns, options->hold_ms);
    set_ms(&wire->config.dead_ns, options->dead_ms);
    set_ms(&wire->config.connect_ns, options->connect_ms);
    for (int i = 0; i < WIRE_STRANGERS_MAX; i++) wire->strangers[i].pipe.fd = -1;
    wire->carrier = options->secret_path ? &gang_carrier_tls : &gang_carrier_tcp;
    enum gang_status status = options->secret_path ? gang_secure_new(options->secret_path, &wire->secure) : GANG_OK;
    if (!status) status = start_listening(wire, options->listen);
    if (!status) status = start_polling(wire);
    if (status) {
        gang_wire_close(wire);
        wire = NULL;
    }
    *out = wire;
    return status;
}

const char *gang_wire_address(const struct gang_wire *wire) { return wire->address; }

struct closing {
    struct gang_wire *wire;
    int64_t limit_ns;
};

static bool flushed(void *context) {
    struct closing *closing = context;
    if (gang_os->now_ns() >= closing->limit_ns) return true;
    for (struct gang_wire_link *link = closing->wire->links; link; link = link->next)
        if (link->core->state != LINK_DEAD && link->core->state != LINK_CONNECTING && !gang_link_flushed(link->core)) return false;
    return true;
}

static void free_link(struct gang_wire_link *link) {
    for (int p = 0; p < link->planes; p++)
        for (int s = 0; s < link->streams; s++) gang_tcp_end(&link->conns[p][s].pipe);
    gang_link_free(link->core);
    free(link);
}

void gang_wire_close(struct gang_wire *wire) {
    if (!wire) return;
    if (wire->thread_started) {
        pthread_mutex_lock(&wire->lock);
        struct closing closing = {wire, gang_os->now_ns() + flush_limit_ns};
        wire->closing = true;
        drive_until(wire, flushed, &closing);
        wire->stop = true;
        for (struct gang_wire_link *link = wire->links; link; link = link->next) gang_link_fail(link->core, true, "rank %d left", wire->rank);
        pthread_cond_signal(&wire->park);
        (void)eventfd_write(wire->kick, 1);
        pthread_mutex_unlock(&wire->lock);
        pthread_join(wire->thread, NULL);
        pthread_mutex_destroy(&wire->lock);
        pthread_cond_destroy(&wire->baton);
        pthread_cond_destroy(&wire->park);
    }
    for (struct gang_wire_link *link = wire->links, *next; link; link = next) {
        next = link->next;
        free_link(link);
    }
    for (int i = 0; i < WIRE_STRANGERS_MAX; i++) gang_tcp_end(&wire->strangers[i].pipe);
    if (wire->listener >= 0) close(wire->listener);
    if (wire->local_listener >= 0) close(wire->local_listener);
    if (wire->kick >= 0) close(wire->kick);
    if (wire->epoll >= 0) close(wire->epoll);
    gang_secure_free(wire->secure);
    free(wire);
}

static const char shm_prefix[] = "shm:";

static enum gang_status resolve_planes(struct gang_wire_link *link, const struct gang_wire_link_options *options) {
    enum gang_status status = GANG_OK;
    for (int p = 0; !status && options->plane && p < link->planes; p++) {
        const struct gang_wire_plane *plane = &options->plane[p];
        if (strncmp(plane->remote, shm_prefix, strlen(shm_prefix)) == 0) {
            status = gang_address_resolve("wire: plane", plane->remote + strlen(shm_prefix), &link->remote[p]);
            if (!status && plane->local) status = gang_fail(GANG_ERR_INPUT, "wire: plane: '%s' has no local address", plane->remote);
            local_name(&link->remote[p], link->shm[p]);
            continue;
        }
        status = gang_address_resolve("wire: plane", plane->remote, &link->remote[p]);
        link->has_local[p] = plane->local != NULL;
        if (!status && plane->local) status = gang_address_resolve("wire: plane", plane->local, &link->local[p]);
        if (!status && !link->wire->secure && !gang_address_is_loopback(&link->remote[p]))
            status = gang_fail(GANG_ERR_INPUT, "wire: plane: '%s' is another machine: a cluster secret is needed", plane->remote);
    }
    return status;
}

enum gang_status gang_wire_join(struct gang_wire *wire, const struct gang_wire_link_options *options, struct gang_wire_link **out) {
    int streams = options->streams ? options->streams : 1;
    if (options->planes < 1 || options->planes > WIRE_PLANES_MAX || streams < 1 || streams > WIRE_STREAMS_MAX)
        return gang_fail(GANG_ERR_INPUT, "wire: %d planes of %d streams to rank %d: at most %d of %d", options->planes, streams, options->peer,
                         WIRE_PLANES_MAX, WIRE_STREAMS_MAX);
    struct gang_wire_link *link = calloc(1, sizeof *link);
    assert(link && "out of memory");
    *link = (struct gang_wire_link){.wire = wire,
                                    .peer = options->peer,
                                    .planes = options->planes,
                                    .streams = streams,
                                    .connects = options->plane != NULL,
                                    .due_ns = INT64_MAX,
                                    .buffer_bytes = options->buffer_bytes};
    enum gang_status status = resolve_planes(link, options);
    if (status) {
        free(link);
        return status;
    }
    struct gang_link_config config = wire->config;
    config.rank = wire->rank;
    config.peer = options->peer;
    config.planes = options->planes;
    config.streams = streams;
    int64_t now = gang_os->now_ns();
    for (int p = 0; p < link->planes; p++)
        for (int s = 0; s < streams; s++)
            link->conns[p][s] = (struct gang_conn){
                .source = SOURCE_STREAM, .link = link, .plane = p, .stream = s, .pipe = {.fd = -1}, .retry_ns = now, .pause_ns = 10 * ms};
    pthread_mutex_lock(&wire->lock);
    link->core = gang_link_new(&config, &(struct gang_link_hooks){link, on_complete, gang_tcp_reset, on_state}, now);
    link->next = wire->links;
    wire->links = link;
    turn_link(link, now);
    pthread_mutex_unlock(&wire->lock);
    *out = link;
    return GANG_OK;
}

// ---- Operations ----------------------------------------------------------------------------------------------------

static bool room_to_send(void *link) { return gang_link_room_to_send(((struct gang_wire_link *)link)->core); }
static bool room_to_recv(void *link) { return gang_link_room_to_recv(((struct gang_wire_link *)link)->core); }

void gang_wire_pace(struct gang_wire_link *link, double share) {
    pthread_mutex_lock(&link->wire->lock);
    gang_link_pace(link->core, share);
    turn_link(link, gang_os->now_ns());
    pthread_mutex_unlock(&link->wire->lock);
}

// Whether a message that was sent just now may stand for a moment, for others to go along.
static bool hold(struct gang_wire_link *link, size_t bytes, int64_t now_ns) {
    bool burst = now_ns - link->sent_ns < burst_ns;
    if (!burst || bytes > HELD_BYTES || ++link->held > HELD_MOST) return false;
    link->stirred = link->wire->holds = true;
    if (link->held == 1) expect(link, now_ns + hold_ns);
    return true;
}

enum gang_status gang_wire_send(struct gang_wire_link *link, uint32_t tag, int priority, const void *data, size_t bytes, struct gang_wire_op *op) {
    struct gang_wire *wire = link->wire;
    *op = (struct gang_wire_op){.link = link};
    pthread_mutex_lock(&wire->lock);
    drive_until(wire, room_to_send, link);
    int64_t now = gang_os->now_ns();
    link->outstanding++;
    enum gang_status status = gang_link_send(link->core, now, tag, priority, data, bytes, op);
    if (status) link->outstanding--;
    bool held = hold(link, bytes, now);
    if (!held) turn_link(link, now);
    link->sent_ns = held ? now : gang_os->now_ns();
    pthread_mutex_unlock(&wire->lock);
    return status;
}

enum gang_status gang_wire_recv(struct gang_wire_link *link, uint32_t tag, void *data, size_t bytes, struct gang_wire_op *op) {
    struct gang_wire *wire = link->wire;
    *op = (struct gang_wire_op){.link = link};
    pthread_mutex_lock(&wire->lock);
    drive_until(wire, room_to_recv, link);
    int64_t now = gang_os->now_ns();
    link->outstanding++;
    enum gang_status status = gang_link_recv(link->core, now, tag, data, bytes, op);
    if (status) link->outstanding--;
    int64_t due = gang_link_owes(link->core, now);
    if (due <= now) {
        turn_link(link, now);
    } else {
        expect(link, due);
    }
    pthread_mutex_unlock(&wire->lock);
    return status;
}

bool gang_wire_done(struct gang_wire_op *op) { return __atomic_load_n(&op->done, __ATOMIC_ACQUIRE); }

static bool is_done(void *op) { return gang_wire_done(op); }

enum gang_status gang_wire_wait(struct gang_wire_op *op) {
    struct gang_wire_link *link = op->link;
    if (!gang_wire_done(op)) {
        pthread_mutex_lock(&link->wire->lock);
        drive_until(link->wire, is_done, op);
        pthread_mutex_unlock(&link->wire->lock);
    }
    return op->status ? gang_fail(op->status, "%s", link->core->error) : GANG_OK;
}

struct wait_any {
    const struct gang_wire_op *op, *notices;
    struct gang_wire_link *const *links;
    int count;
};

static bool any_ready(void *context) {
    const struct wait_any *w = context;
    if (w->op && w->op->done) return true;
    for (int i = 0; i < w->count; i++)
        if (w->links[i] && (w->links[i]->core->state == LINK_DEAD || w->notices[i].done)) return true;
    return false;
}

void gang_wire_wait_any(struct gang_wire *wire, struct gang_wire_op *op, struct gang_wire_link *const *links, const struct gang_wire_op *notices,
                        int count) {
    pthread_mutex_lock(&wire->lock);
    drive_until(wire, any_ready, &(struct wait_any){op, notices, links, count});
    pthread_mutex_unlock(&wire->lock);
}

bool gang_wire_lost(struct gang_wire *wire, struct gang_wire_link *const *links, const struct gang_wire_op *notices, int count) {
    pthread_mutex_lock(&wire->lock);
    bool lost = any_ready(&(struct wait_any){NULL, notices, links, count});
    pthread_mutex_unlock(&wire->lock);
    return lost;
}

bool gang_wire_shares(const struct gang_wire_link *link) {
    bool shares = false;
    for (int p = 0; p < link->planes; p++) shares = shares || link->shm[p][0];
    return shares;
}

void gang_wire_cancel(struct gang_wire_op *op) {
    struct gang_wire *wire = op->link->wire;
    pthread_mutex_lock(&wire->lock);
    if (!op->done) gang_link_cancel(op->link->core, op);
    turn_link(op->link, gang_os->now_ns());
    pthread_mutex_unlock(&wire->lock);
}

const char *gang_wire_why(const struct gang_wire_link *link) { return link->core->error; }

void gang_wire_report(struct gang_wire_link *link, struct gang_wire_report *out) {
    pthread_mutex_lock(&link->wire->lock);
    const struct gang_link *core = link->core;
    *out = (struct gang_wire_report){.dead = core->state == LINK_DEAD, .suspect = core->state == LINK_SUSPECT, .planes = link->planes};
    for (int p = 0; p < link->planes; p++) {
        const struct gang_plane *plane = &core->planes[p];
        out->plane[p] = (struct gang_wire_plane_report){plane->ups > 0, (double)plane->srtt_ns * 1e-9, gang_plane_rate(plane), plane->losses};
    }
    pthread_mutex_unlock(&link->wire->lock);
}
