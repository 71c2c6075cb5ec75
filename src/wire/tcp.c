// Connections: who may come in, how a stream's carrier is made, lost and made again, and the moving of bytes.
//
// Of two ranks one connects and keeps trying; the other accepts. A connection begins with one HELLO each way. Until its
// HELLO has passed every check a caller is a stranger: it gets one of WIRE_STRANGERS_MAX places of fixed size for one second (the
// oldest makes room), is answered only if its frame is sound, and nothing it sends is ever kept.
#include "wire/endpoint.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { READS_PER_TURN = 16, ACCEPTS_PER_TURN = 64 };
static const int64_t connecting_ns = 300000000, greeting_ns = 1000000000, // a lost SYN is better sent anew than waited for
    pause_least_ns = 10000000, pause_most_ns = 160000000;
static const uint32_t stream_events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
static const size_t unsent_bytes = 256 << 10;
static const int64_t long_way_us = 1000; // from this round trip on BBR
static const size_t wake_least = 64 << 10, wake_most = 256 << 10;
static const int64_t look_ns = 2000000; // after a rest so long at what came of a chunk

void gang_tcp_end(struct gang_pipe *pipe) {
    if (pipe->fd < 0) return;
    pipe->carrier->close(pipe);
    *pipe = (struct gang_pipe){.carrier = pipe->carrier, .fd = -1};
}

bool gang_epoll_add(struct gang_wire *wire, int fd, uint32_t events, void *source) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    return epoll_ctl(wire->epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

// ---- Frames outside of streams: greetings and refusals ----------------------------------------------------------------

static bool send_all(struct gang_pipe *pipe, const void *data, size_t bytes) {
    // The first bytes of a connection, or the last: they fit the socket's buffer or the peer is not worth waiting for.
    struct iovec iov = {(void *)data, bytes};
    return pipe->carrier->write(pipe, &iov, 1) == (ssize_t)bytes;
}

static bool send_hello(struct gang_conn *conn) {
    const struct gang_wire_link *link = conn->link;
    struct gang_wire *wire = link->wire;
    uint8_t bytes[WIRE_HEADER_BYTES + WIRE_HELLO_BYTES];
    struct gang_hello hello = {
        .version_min = WIRE_VERSION,
        .version_max = WIRE_VERSION,
        .from = (uint32_t)wire->rank,
        .to = (uint32_t)link->peer,
        .cluster = wire->cluster,
        .session = wire->session,
        .epoch = conn->epoch,
        .plane = (uint16_t)conn->plane,
        .stream = (uint16_t)conn->stream,
        .planes = (uint16_t)link->planes,
        .streams = (uint16_t)link->streams,
    };
    gang_hello_encode(&hello, bytes + WIRE_HEADER_BYTES);
    gang_frame_encode(&(struct gang_frame){.type = WIRE_HELLO,
                                           .payload_bytes = WIRE_HELLO_BYTES,
                                           .payload_crc = gang_crc32c(bytes + WIRE_HEADER_BYTES, WIRE_HELLO_BYTES)},
                      bytes);
    return send_all(&conn->pipe, bytes, sizeof bytes);
}

GANG_PRINTF(2, 3) static void refuse(struct gang_pipe *pipe, const char *format, ...) {
    uint8_t bytes[WIRE_GREETING_BYTES];
    char text[WIRE_BYE_MAX_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t length = strlen(text);
    memcpy(bytes + WIRE_HEADER_BYTES, text, length);
    gang_frame_encode(&(struct gang_frame){.type = WIRE_BYE, .payload_bytes = (uint32_t)length, .payload_crc = gang_crc32c(text, length)}, bytes);
    (void)send_all(pipe, bytes, WIRE_HEADER_BYTES + length);
}

enum gang_greeted { GREETED_NOT_YET, GREETED, GREETED_BADLY };

// Reads no byte beyond the greeting: what follows belongs to the stream.
static enum gang_greeted read_greeting(struct gang_pipe *pipe, struct gang_greeting *greeting, struct gang_frame *frame) {
    for (;;) {
        size_t want = WIRE_HEADER_BYTES;
        if (greeting->got >= WIRE_HEADER_BYTES) {
            if (gang_frame_decode(greeting->bytes, frame) || (frame->type != WIRE_HELLO && frame->type != WIRE_BYE)) return GREETED_BADLY;
            want += frame->payload_bytes;
        }
        if (greeting->got == want) break;
        struct iovec iov = {greeting->bytes + greeting->got, want - greeting->got};
        ssize_t n = pipe->carrier->read(pipe, &iov, 1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return GREETED_NOT_YET;
        if (n <= 0) return GREETED_BADLY;
        greeting->got += (size_t)n;
    }
    return gang_crc32c(greeting->bytes + WIRE_HEADER_BYTES, frame->payload_bytes) == frame->payload_crc ? GREETED : GREETED_BADLY;
}

// ---- A stream's connection -----------------------------------------------------------------------------------------

static struct gang_stream *stream_of(const struct gang_conn *conn) { return conn->link->core->streams[conn->plane][conn->stream]; }

static void drop(struct gang_conn *conn, int64_t now_ns) {
    if (conn->pipe.fd < 0) return;
    gang_tcp_end(&conn->pipe);
    conn->state = CONN_IDLE;
    conn->readable = false;
    conn->retry_ns = now_ns + conn->pause_ns;
    conn->pause_ns = conn->pause_ns * 2 < pause_most_ns ? conn->pause_ns * 2 : pause_most_ns;
}

// The carrier is gone: so is the stream.
void gang_tcp_close(struct gang_conn *conn, int64_t now_ns) {
    gang_stream_down(stream_of(conn), now_ns);
    drop(conn, now_ns);
}

void gang_tcp_reset(void *context, int plane, int stream) {
    struct gang_wire_link *link = context;
    struct gang_conn *conn = &link->conns[plane][stream];
    uint8_t bye[WIRE_GREETING_BYTES];
    size_t bytes = gang_link_bye(link->core, bye);
    // In the middle of a frame nothing can be said.
    if (bytes && conn->state == CONN_UP && stream_of(conn)->up && !stream_of(conn)->head_done) (void)send_all(&conn->pipe, bye, bytes);
    drop(conn, gang_os->now_ns());
}

static void come_up(struct gang_conn *conn, int64_t now_ns) {
    struct tcp_info info;
    socklen_t bytes = sizeof info;
    conn->state = CONN_UP;
    conn->pause_ns = pause_least_ns;
    conn->refused = conn->left = false;
    conn->far = conn->ending = false;
    conn->wake_at = 1;
    // Over a long way losses must not halve the rate; on a short one BBR's timers cost more than they gain, and what else the system
    // uses was chosen for its network.
    if (getsockopt(conn->pipe.fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0) {
        if (info.tcpi_rtt >= long_way_us)
            gang_socket_congestion(conn->pipe.fd, "bbr");
        else if (gang_socket_congested_by(conn->pipe.fd, "bbr"))
            gang_socket_congestion(conn->pipe.fd, "cubic");
    }
    stream_of(conn)->trusted = conn->pipe.carrier->trusted;
    gang_stream_up(stream_of(conn), conn->epoch, now_ns);
    conn->readable = true;
    conn->link->wire->again = true;
}

static void start_connecting(struct gang_conn *conn, int64_t now_ns) {
    struct gang_wire_link *link = conn->link;
    conn->retry_ns = now_ns + conn->pause_ns;
    int p = conn->plane;
    conn->pipe.carrier = link->shm[p][0] ? &gang_carrier_shm : link->wire->carrier;
    if (link->shm[p][0] ? gang_local_connect(link->shm[p], &conn->pipe.fd)
                        : gang_socket_connect(link->has_local[p] ? &link->local[p] : NULL, &link->remote[p], &conn->pipe.fd)) {
        conn->refused = errno == ECONNREFUSED;
        return;
    }
    if (link->buffer_bytes) gang_socket_buffers(conn->pipe.fd, link->buffer_bytes);
    conn->state = CONN_CONNECTING;
    conn->greeting.got = 0;
    conn->deadline_ns = now_ns + connecting_ns;
    conn->epoch++;
    if (!gang_epoll_add(link->wire, conn->pipe.fd, stream_events, conn)) drop(conn, now_ns);
}

// The other side's answer to our hello.
static void hear_answer(struct gang_conn *conn, int64_t now_ns) {
    struct gang_wire_link *link = conn->link;
    struct gang_frame frame;
    struct gang_hello hello;
    enum gang_greeted greeted = read_greeting(&conn->pipe, &conn->greeting, &frame);
    if (greeted == GREETED_NOT_YET) return;
    if (greeted == GREETED_BADLY) {
        drop(conn, now_ns);
        return;
    }
    const uint8_t *payload = conn->greeting.bytes + WIRE_HEADER_BYTES;
    if (frame.type == WIRE_BYE) {
        gang_link_fail(link->core, false, "rank %d: plane %d: refused: %.*s", link->wire->rank, conn->plane, (int)frame.payload_bytes,
                       (const char *)payload);
        drop(conn, now_ns);
        return;
    }
    if (gang_hello_decode(payload, &hello) || hello.from != (uint32_t)link->peer || hello.to != (uint32_t)link->wire->rank) {
        gang_link_fail(link->core, false, "rank %d: plane %d: an answer that does not fit: %s", link->wire->rank, conn->plane, gang_error());
        drop(conn, now_ns);
        return;
    }
    if (link->peer_session && link->peer_session != hello.session) {
        gang_link_fail(link->core, true, "rank %d: rank %d was started again", link->wire->rank, link->peer);
        drop(conn, now_ns);
        return;
    }
    link->peer_session = hello.session;
    come_up(conn, now_ns);
}

static void connected(struct gang_conn *conn, int64_t now_ns) {
    int code = gang_socket_error(conn->pipe.fd);
    conn->refused = code == ECONNREFUSED;
    gang_socket_no_delay(conn->pipe.fd); // the handshake's frames are small too
    if (code || !conn->pipe.carrier->open(conn->link->wire, &conn->pipe, false)) {
        drop(conn, now_ns);
        return;
    }
    conn->state = CONN_SECURING;
    conn->deadline_ns = now_ns + greeting_ns;
}

static void secure(struct gang_conn *conn, int64_t now_ns) {
    struct gang_wire *wire = conn->link->wire;
    int done = conn->pipe.carrier->handshake(&conn->pipe);
    if (!done) return;
    // Whoever has shown the secret once has it: then it is bits that flipped.
    bool refused = done < 0 && errno == EPROTO && !conn->link->peer_session;
    if (done < 0 || !send_hello(conn)) {
        drop(conn, now_ns);
        if (refused)
            gang_link_fail(conn->link->core, false, "rank %d: plane %d: rank %d does not accept the %s handshake: is the cluster's secret the same?",
                           wire->rank, conn->plane, conn->link->peer, wire->carrier->name);
        return;
    }
    conn->state = CONN_GREETING;
}

// To be woken for each piece of a chunk costs both ends more than to copy it, and nothing can be done before it is whole. That it
// moves at all is seen by looking, gang_tcp_tick.
static void await_chunk(struct gang_conn *conn) {
    size_t awaited = gang_stream_awaits(stream_of(conn)), held = conn->pipe.held;
    size_t at = awaited < wake_least + held ? 1 : awaited - held < wake_most ? awaited - held : wake_most;
    if (at == conn->wake_at || conn->pipe.shm) return;
    conn->wake_at = at;
    gang_socket_wake_at(conn->pipe.fd, at);
}

static void read_stream(struct gang_conn *conn, int64_t now_ns) {
    conn->read_ns = now_ns;
    for (int i = 0; i < READS_PER_TURN && conn->state == CONN_UP && conn->readable; i++) {
        struct gang_stream *stream = stream_of(conn);
        struct iovec iov[2] = {{0}};
        int count = gang_stream_space(stream, iov);
        size_t room = iov[0].iov_len + iov[1].iov_len;
        ssize_t n = conn->pipe.carrier->read(&conn->pipe, iov, count);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            conn->readable = false;
        } else if (n <= 0 || !gang_stream_came(stream, (size_t)n, now_ns)) {
            conn->left = n == 0 && conn->pipe.shm;
            gang_tcp_close(conn, now_ns);
        } else if ((size_t)n < room && !conn->ending) {
            conn->readable = false; // edge-triggered: more will be told, but not an end that has been told already
        }
    }
    if (conn->readable) {
        conn->link->wire->again = true;
    } else if (conn->state == CONN_UP) {
        await_chunk(conn);
    }
}

void gang_tcp_read_rest(struct gang_wire *wire, int64_t now_ns) {
    wire->again = false;
    for (struct gang_wire_link *link = wire->links; link; link = link->next)
        for (int p = 0; p < link->planes; p++)
            for (int s = 0; s < link->streams; s++)
                if (link->conns[p][s].readable) {
                    link->stirred = true;
                    read_stream(&link->conns[p][s], now_ns);
                }
}

// Over a long way acknowledgements must not wait behind megabytes of data that the kernel holds unsent; on a short one they do
// not wait long, and a kernel that is kept fed carries more.
static void tune(struct gang_conn *conn) {
    int64_t rtt_ns = conn->link->core->planes[conn->plane].min_rtt_ns;
    bool far = rtt_ns >= long_way_us * 1000;
    if (far == conn->far) return;
    conn->far = far;
    gang_socket_unsent(conn->pipe.fd, far ? unsent_bytes : 0);
}

static void write_stream(struct gang_conn *conn, int64_t now_ns) {
    struct gang_stream *stream = stream_of(conn);
    tune(conn);
    while (stream->up && !stream->blocked) {
        struct iovec iov[WIRE_IOV_MAX];
        int count = gang_stream_gather(stream, now_ns, iov);
        if (!count && !conn->pipe.pending) return;
        size_t all = 0;
        for (int i = 0; i < count; i++) all += iov[i].iov_len;
        ssize_t n = conn->pipe.carrier->write(&conn->pipe, iov, count);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) {
            gang_tcp_close(conn, now_ns);
            return;
        }
        if (n > 0) gang_stream_gone(stream, (size_t)n, now_ns);
        stream->blocked = n < (ssize_t)all || conn->pipe.pending;
    }
}

void gang_tcp_flush(struct gang_wire_link *link, int64_t now_ns) {
    for (int p = 0; p < link->planes; p++)
        for (int s = 0; s < link->streams; s++)
            if (link->conns[p][s].state == CONN_UP) write_stream(&link->conns[p][s], now_ns);
}

// ---- Strangers -----------------------------------------------------------------------------------------------------

static struct gang_wire_link *link_to(struct gang_wire *wire, uint32_t peer) {
    for (struct gang_wire_link *link = wire->links; link; link = link->next)
        if ((uint32_t)link->peer == peer) return link;
    return NULL;
}

// The link that the hello is for, or NULL: not to be let in, and told so if it helps.
static struct gang_wire_link *admit(struct gang_wire *wire, struct gang_pipe *pipe, const struct gang_hello *hello) {
    if (hello->cluster != wire->cluster) {
        refuse(pipe, "rank %d belongs to another cluster", wire->rank);
        return NULL;
    }
    if (hello->to != (uint32_t)wire->rank) {
        refuse(pipe, "here is rank %d, not rank %u", wire->rank, hello->to);
        return NULL;
    }
    struct gang_wire_link *link = link_to(wire, hello->from);
    if (!link) return NULL; // it may be expected later: the caller tries again
    if (link->core->state == LINK_DEAD) {
        refuse(pipe, "rank %d has given up this link: %s", wire->rank, link->core->error);
    } else if (link->connects) {
        refuse(pipe, "ranks %d and %u both connect", wire->rank, hello->from);
    } else if (hello->planes != link->planes || hello->streams != link->streams) {
        refuse(pipe, "rank %d expects %d planes of %d streams, not %u of %u", wire->rank, link->planes, link->streams, hello->planes, hello->streams);
    } else if (link->peer_session && link->peer_session != hello->session) {
        refuse(pipe, "the link to rank %d belongs to an earlier process of rank %u", wire->rank, hello->from);
    } else {
        link->peer_session = hello->session;
        return link;
    }
    return NULL;
}

static void hear_stranger(struct gang_wire *wire, struct gang_stranger *stranger, int64_t now_ns) {
    struct gang_frame frame;
    struct gang_hello hello;
    int secured = stranger->secured ? 1 : stranger->pipe.carrier->handshake(&stranger->pipe);
    if (!secured) return;
    stranger->secured = true;
    enum gang_greeted greeted = secured < 0 ? GREETED_BADLY : read_greeting(&stranger->pipe, &stranger->greeting, &frame);
    if (greeted == GREETED_NOT_YET) return;
    struct gang_wire_link *link = NULL;
    if (greeted == GREETED && frame.type == WIRE_HELLO) {
        enum gang_status status = gang_hello_decode(stranger->greeting.bytes + WIRE_HEADER_BYTES, &hello);
        if (status == GANG_ERR_UNSUPPORTED) refuse(&stranger->pipe, "%s", gang_error());
        if (!status) link = admit(wire, &stranger->pipe, &hello);
    }
    if (!link) {
        gang_tcp_end(&stranger->pipe);
        return;
    }
    struct gang_conn *conn = &link->conns[hello.plane][hello.stream];
    link->stirred = true;
    gang_tcp_close(conn, now_ns); // a newer connection replaces the older
    conn->pipe = stranger->pipe;
    stranger->pipe = (struct gang_pipe){.fd = -1};
    conn->epoch = hello.epoch;
    if (link->buffer_bytes) gang_socket_buffers(conn->pipe.fd, link->buffer_bytes);
    struct epoll_event event = {.events = stream_events, .data.ptr = conn};
    if (epoll_ctl(wire->epoll, EPOLL_CTL_MOD, conn->pipe.fd, &event) || !send_hello(conn)) {
        drop(conn, now_ns);
        return;
    }
    come_up(conn, now_ns);
}

static struct gang_stranger *place_for_stranger(struct gang_wire *wire) {
    struct gang_stranger *oldest = &wire->strangers[0];
    for (int i = 0; i < WIRE_STRANGERS_MAX; i++) {
        struct gang_stranger *stranger = &wire->strangers[i];
        if (stranger->pipe.fd < 0) return stranger;
        if (stranger->deadline_ns < oldest->deadline_ns) oldest = stranger;
    }
    gang_tcp_end(&oldest->pipe);
    return oldest;
}

static void accept_strangers(struct gang_wire *wire, int listener, const struct gang_carrier *carrier, int64_t now_ns) {
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = gang_socket_accept(listener);
        if (fd < 0) return; // none left, or none to be had now: the listener stays level-triggered
        gang_socket_no_delay(fd);
        struct gang_stranger *stranger = place_for_stranger(wire);
        *stranger = (struct gang_stranger){.source = SOURCE_STRANGER, .pipe = {.carrier = carrier, .fd = fd}, .deadline_ns = now_ns + greeting_ns};
        if (!carrier->open(wire, &stranger->pipe, true) || !gang_epoll_add(wire, fd, EPOLLIN | EPOLLET, stranger)) gang_tcp_end(&stranger->pipe);
    }
}

int64_t gang_tcp_tick_strangers(struct gang_wire *wire, int64_t now_ns) {
    int64_t next = INT64_MAX;
    for (int i = 0; i < WIRE_STRANGERS_MAX; i++) {
        struct gang_stranger *stranger = &wire->strangers[i];
        if (stranger->pipe.fd < 0) continue;
        if (stranger->deadline_ns <= now_ns) {
            gang_tcp_end(&stranger->pipe);
        } else if (stranger->deadline_ns < next) {
            next = stranger->deadline_ns;
        }
    }
    return next;
}

// ---- Events and time -----------------------------------------------------------------------------------------------

static void conn_event(struct gang_conn *conn, uint32_t events, int64_t now_ns) {
    if (conn->pipe.fd < 0) return; // closed by an earlier event of the same turn
    conn->link->stirred = true;
    if (conn->state == CONN_CONNECTING && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) connected(conn, now_ns);
    if (conn->state == CONN_SECURING) secure(conn, now_ns);
    if (conn->state == CONN_GREETING) hear_answer(conn, now_ns);
    if (conn->state != CONN_UP) return;
    // In shared memory one bell serves both directions.
    if (events & EPOLLOUT || conn->pipe.shm) stream_of(conn)->blocked = false;
    if (events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP)) conn->ending = true;
    if (events & EPOLLIN || conn->ending) {
        conn->readable = true;
        read_stream(conn, now_ns);
    }
}

void gang_tcp_event(struct gang_wire *wire, void *source, uint32_t events, int64_t now_ns) {
    switch (*(enum gang_source *)source) {
    case SOURCE_STREAM:
        conn_event(source, events, now_ns);
        break;
    case SOURCE_STRANGER:
        if (((struct gang_stranger *)source)->pipe.fd >= 0) hear_stranger(wire, source, now_ns);
        break;
    case SOURCE_LISTENER:
        accept_strangers(wire, wire->listener, wire->carrier, now_ns);
        break;
    case SOURCE_LOCAL_LISTENER:
        accept_strangers(wire, wire->local_listener, &gang_carrier_shm, now_ns);
        break;
    case SOURCE_KICK:
        break; // only to wake the sleeper; edge-triggered, so that nobody need read it
    }
}

// The link has been down for as long as a switch-over takes, and the peer's host refuses connections on every plane, or the peer
// has let go of the memory that it shared: a process that lives and drops a stream comes back sooner.
static void notice_gone(struct gang_wire_link *link, int64_t now_ns) {
    struct gang_link *core = link->core;
    if (core->state != LINK_UP && core->state != LINK_SUSPECT) return;
    if (!core->quiet_ns || now_ns - core->quiet_ns < core->config.hold_ns) return;
    bool left = false, refused = true;
    for (int p = 0; p < link->planes; p++) {
        if (core->planes[p].ups) return;
        refused = refused && link->conns[p][0].refused;
        for (int s = 0; s < link->streams; s++) left = left || link->conns[p][s].left;
    }
    if (!left && !refused) return;
    gang_link_fail(core, false, "rank %d: rank %d is gone: its process has ended", link->wire->rank, link->peer);
}

// Reads what has come of chunks that nobody was woken for; returns when to look again.
static int64_t look(struct gang_wire_link *link, int64_t now_ns) {
    int64_t next = INT64_MAX;
    bool again = link->wire->again;
    for (int p = 0; p < link->planes; p++)
        for (int s = 0; s < link->streams; s++) {
            struct gang_conn *conn = &link->conns[p][s];
            if (conn->state != CONN_UP || conn->wake_at == 1) continue;
            if (conn->read_ns + look_ns <= now_ns) {
                conn->readable = true;
                read_stream(conn, now_ns);
            }
            next = conn->read_ns + look_ns < next ? conn->read_ns + look_ns : next;
        }
    if (link->wire->again && !again) (void)eventfd_write(link->wire->kick, 1); // who sleeps may not be who looked
    return next;
}

int64_t gang_tcp_tick(struct gang_wire_link *link, int64_t now_ns) {
    int64_t next = look(link, now_ns);
    notice_gone(link, now_ns);
    if (!link->connects || link->core->state == LINK_DEAD) return next;
    for (int p = 0; p < link->planes; p++)
        for (int s = 0; s < link->streams; s++) {
            struct gang_conn *conn = &link->conns[p][s];
            if (conn->state == CONN_UP) continue;
            if (conn->state != CONN_IDLE && conn->deadline_ns <= now_ns) drop(conn, now_ns);
            if (conn->state == CONN_IDLE && conn->retry_ns <= now_ns) start_connecting(conn, now_ns);
            int64_t at = conn->state == CONN_IDLE ? conn->retry_ns : conn->deadline_ns;
            next = at < next ? at : next;
        }
    return next;
}
