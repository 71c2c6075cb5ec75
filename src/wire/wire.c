// The calls of wire.h and who runs the loop.
//
// Everything is under one lock. One thread at a time drives: it sleeps in epoll without the lock and handles what comes with
// it. That is the progress thread, unless a caller waits for an operation: then the caller takes the baton and drives
// itself, which saves two changes of thread per message. The progress thread parks meanwhile and takes the baton back when no
// caller has driven for a moment, or at once when something is still under way that needs it. To arm a timer for every short
// sleep would cost a caller more than anything else, so it sleeps without one and the parked thread keeps the time.
//
// Sending happens in the caller's thread, as far as the sockets take it. If that makes something due before the sleeping
// driver means to wake, it is kicked.
#include "wire/endpoint.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

static const int64_t park_ns = 1000000, park_least_ns = 100000, park_most_ns = 100000000, flush_limit_ns = 1000000000, second_ns = 1000000000,
                     ms = 1000000;

// ---- Driving -------------------------------------------------------------------------------------------------------

// Sends what can be sent, does what is due, and notes when more will be. Called after anything has changed.
static void turn(struct gang_wire *wire, int64_t now_ns) {
    int64_t next = gang_tcp_tick_strangers(wire, now_ns);
    for (struct gang_wire_link *link = wire->links; link; link = link->next) {
        gang_tcp_flush(link, now_ns);
        int64_t at = gang_link_tick(link->core, now_ns);
        next = at < next ? at : next;
        at = gang_tcp_tick(link, now_ns);
        next = at < next ? at : next;
        gang_tcp_flush(link, now_ns);
    }
    wire->next_ns = next;
    // Somebody sleeps and would wake too late.
    if (wire->sleep_until_ns > next) (void)eventfd_write(wire->kick, 1);
    if (wire->driver == DRIVER_USER && wire->park_until_ns > next) pthread_cond_signal(&wire->park);
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

// While a caller drives, the progress thread does what falls due; and it looks whether the caller has stopped.
static void park(struct gang_wire *wire, int64_t now_ns) {
    int64_t until = now_ns + park_ns;
    if (wire->driver == DRIVER_USER) {
        if (wire->next_ns <= now_ns) turn(wire, now_ns);
        if (wire->closing) (void)eventfd_write(wire->kick, 1); // it waits for a time, too
        until = wire->next_ns < now_ns + park_most_ns ? wire->next_ns : now_ns + park_most_ns;
        if (until < now_ns + park_least_ns) until = now_ns + park_least_ns;
    }
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
        if (wire->driver == DRIVER_NONE && !wire->wanting && now - wire->user_ns >= park_ns) {
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

static bool any_outstanding(const struct gang_wire *wire) {
    for (const struct gang_wire_link *link = wire->links; link; link = link->next)
        if (link->outstanding) return true;
    return false;
}

// Drives, or waits for who drives, until `ready` says so.
static void drive_until(struct gang_wire *wire, bool (*ready)(void *context), void *context) {
    bool drove = false;
    while (!ready(context)) {
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
    wire->user_ns = gang_os->now_ns();
    if (wire->wanting) return;
    if (any_outstanding(wire)) wire->user_ns = 0;
    if (!wire->user_ns || wire->park_until_ns > gang_os->now_ns() + park_ns) pthread_cond_signal(&wire->park);
}

// ---- The core's hooks ----------------------------------------------------------------------------------------------

static void on_complete(void *context, void *user, enum gang_status status) {
    struct gang_wire_link *link = context;
    struct gang_wire_op *op = user;
    op->status = status;
    op->done = true;
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

static enum gang_status start_listening(struct gang_wire *wire, const char *text) {
    struct gang_address address;
    enum gang_status status = gang_address_resolve("wire: listen", text, &address);
    if (!status && !wire->secure && !gang_address_is_loopback(&address))
        return gang_fail(GANG_ERR_INPUT, "wire: listen: '%s' can be reached from other machines: a cluster secret is needed", text);
    if (!status) status = gang_socket_listen(&address, &wire->listener);
    if (!status) status = gang_socket_address(wire->listener, &address);
    if (!status) gang_address_text(&address, wire->address);
    return status;
}

static enum gang_status start_polling(struct gang_wire *wire) {
    wire->epoll = epoll_create1(EPOLL_CLOEXEC);
    wire->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wire->epoll < 0 || wire->kick < 0) return gang_fail_os("wire: cannot make an event queue");
    if (!gang_epoll_add(wire, wire->kick, EPOLLIN | EPOLLET, &wire->kick_source)) return gang_fail_os("wire: cannot watch the event queue");
    if (!gang_epoll_add(wire, wire->listener, EPOLLIN, &wire->listener_source)) return gang_fail_os("wire: cannot watch the listening socket");
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
    wire->epoll = wire->kick = wire->listener = -1;
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
        for (int s = 0; s < link->streams; s++) gang_tcp_end(link->wire, &link->conns[p][s].pipe);
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
    for (int i = 0; i < WIRE_STRANGERS_MAX; i++) gang_tcp_end(wire, &wire->strangers[i].pipe);
    if (wire->listener >= 0) close(wire->listener);
    if (wire->kick >= 0) close(wire->kick);
    if (wire->epoll >= 0) close(wire->epoll);
    gang_secure_free(wire->secure);
    free(wire);
}

static enum gang_status resolve_planes(struct gang_wire_link *link, const struct gang_wire_link_options *options) {
    enum gang_status status = GANG_OK;
    for (int p = 0; !status && options->plane && p < link->planes; p++) {
        const struct gang_wire_plane *plane = &options->plane[p];
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
    turn(wire, now);
    pthread_mutex_unlock(&wire->lock);
    *out = link;
    return GANG_OK;
}

// ---- Operations ----------------------------------------------------------------------------------------------------

static bool room_to_send(void *link) { return gang_link_room_to_send(((struct gang_wire_link *)link)->core); }
static bool room_to_recv(void *link) { return gang_link_room_to_recv(((struct gang_wire_link *)link)->core); }

enum gang_status gang_wire_send(struct gang_wire_link *link, uint32_t tag, int priority, const void *data, size_t bytes, struct gang_wire_op *op) {
    struct gang_wire *wire = link->wire;
    *op = (struct gang_wire_op){.link = link};
    pthread_mutex_lock(&wire->lock);
    drive_until(wire, room_to_send, link);
    int64_t now = gang_os->now_ns();
    link->outstanding++;
    enum gang_status status = gang_link_send(link->core, now, tag, priority, data, bytes, op);
    if (status) link->outstanding--;
    turn(wire, now);
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
    turn(wire, now);
    pthread_mutex_unlock(&wire->lock);
    return status;
}

static bool is_done(void *op) { return ((struct gang_wire_op *)op)->done; }

enum gang_status gang_wire_wait(struct gang_wire_op *op) {
    struct gang_wire_link *link = op->link;
    pthread_mutex_lock(&link->wire->lock);
    drive_until(link->wire, is_done, op);
    enum gang_status status = op->status;
    if (status) status = gang_fail(status, "%s", link->core->error);
    pthread_mutex_unlock(&link->wire->lock);
    return status;
}

bool gang_wire_done(struct gang_wire_op *op) {
    pthread_mutex_lock(&op->link->wire->lock);
    bool done = op->done;
    pthread_mutex_unlock(&op->link->wire->lock);
    return done;
}

struct wait_any {
    const struct gang_wire_op *op, *notices;
    struct gang_wire_link *const *links;
    int count;
};

static bool any_ready(void *context) {
    const struct wait_any *w = context;
    if (w->op->done) return true;
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

void gang_wire_cancel(struct gang_wire_op *op) {
    struct gang_wire *wire = op->link->wire;
    pthread_mutex_lock(&wire->lock);
    if (!op->done) gang_link_cancel(op->link->core, op);
    turn(wire, gang_os->now_ns());
    pthread_mutex_unlock(&wire->lock);
}

const char *gang_wire_why(const struct gang_wire_link *link) { return link->core->error; }

void gang_wire_report(struct gang_wire_link *link, struct gang_wire_report *out) {
    pthread_mutex_lock(&link->wire->lock);
    const struct gang_link *core = link->core;
    *out = (struct gang_wire_report){.dead = core->state == LINK_DEAD, .suspect = core->state == LINK_SUSPECT, .planes = link->planes};
    for (int p = 0; p < link->planes; p++) {
        const struct gang_plane *plane = &core->planes[p];
        out->plane[p] = (struct gang_wire_plane_report){plane->ups > 0, (double)plane->srtt_ns * 1e-9, plane->rate, plane->losses};
    }
    pthread_mutex_unlock(&link->wire->lock);
}
