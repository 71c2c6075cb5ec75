// endpoint: between wire.c (threads, the calls of wire.h) and tcp.c (connections). Internal to src/wire; everything here
// is touched only under wire->lock.
#ifndef GANG_WIRE_ENDPOINT_H
#define GANG_WIRE_ENDPOINT_H

#include "wire/link.h"
#include "wire/wire.h"

#include <pthread.h>

enum {
    WIRE_STRANGERS_MAX = 16,
    WIRE_GREETING_BYTES = WIRE_HEADER_BYTES + WIRE_BYE_MAX_BYTES,
    WIRE_EVENTS = 64,
    WIRE_NAME_CHARS = GANG_ADDRESS_TEXT + 16
};

enum gang_source { SOURCE_STREAM, SOURCE_STRANGER, SOURCE_LISTENER, SOURCE_LOCAL_LISTENER, SOURCE_KICK }; // first member of what epoll points to

struct gang_secure; // secure.c: the cluster's secret
struct gang_tls;    // and a connection's state

struct gang_pipe {
    const struct gang_carrier *carrier;
    int fd;              // -1: closed
    bool pending;        // bytes that `write` took still wait for the socket; call it again, with none if there are no more
    size_t held;         // bytes that were read and not given out yet, at most
    int through[2];      // of plain.c: a pipe, if it refers
    size_t inside;       // bytes in it
    bool refers, copies; // copies: it may not have one
    struct gang_tls *tls;
    struct gang_shm *shm;
};

// How bytes move over a connection: plain, under TLS, or beside it, in shared memory.
struct gang_carrier {
    const char *name;
    bool trusted;                                                                 // needs no checksum over payload: nothing alters it unnoticed
    bool (*open)(struct gang_wire *wire, struct gang_pipe *pipe, bool accepts);   // the connection stands
    int (*handshake)(struct gang_pipe *pipe);                                     // 1 done, 0 not yet, -1 failed
    ssize_t (*read)(struct gang_pipe *pipe, const struct iovec *iov, int count);  // as readv
    ssize_t (*write)(struct gang_pipe *pipe, const struct iovec *iov, int count); // as writev, without a signal
    void (*close)(struct gang_pipe *pipe);
};
extern const struct gang_carrier gang_carrier_tcp, gang_carrier_tls, gang_carrier_shm;

GANG_CHECK_RESULT enum gang_status gang_secure_new(const char *path, struct gang_secure **out);
void gang_secure_free(struct gang_secure *secure);

// record.c: what passes over a connection once TLS's handshake is done, as readv and writev; `pending` as of a pipe.
enum { GANG_SECRET_BYTES = 32 };
extern uint64_t gang_records_per_key; // until the key is renewed; tests set it
struct gang_records;
struct gang_records *gang_records_new(int fd, const uint8_t out[GANG_SECRET_BYTES], const uint8_t in[GANG_SECRET_BYTES]); // NULL: OpenSSL fails
void gang_records_free(struct gang_records *records);
ssize_t gang_records_read(struct gang_records *records, const struct iovec *iov, int count);
size_t gang_records_held(const struct gang_records *records); // bytes, sealed or not, that are here and were not given out
ssize_t gang_records_write(struct gang_records *records, const struct iovec *iov, int count, bool *pending);

// A greeting that is being received: one HELLO, or a BYE.
struct gang_greeting {
    uint8_t bytes[WIRE_GREETING_BYTES];
    size_t got;
};

struct gang_stranger {
    enum gang_source source;
    struct gang_pipe pipe; // closed: free
    bool secured;          // its handshake is done
    int64_t deadline_ns;
    struct gang_greeting greeting;
};

enum gang_conn_state { CONN_IDLE, CONN_CONNECTING, CONN_SECURING, CONN_GREETING, CONN_UP };

// The carrier of one stream.
struct gang_conn {
    enum gang_source source;
    enum gang_conn_state state;
    struct gang_wire_link *link;
    int plane, stream;
    struct gang_pipe pipe;
    bool readable, far;
    bool ending;  // no more comes than what is there
    bool refused; // nobody listens there any more
    bool left;    // the peer closed what it shares with us
    uint32_t epoch;
    int64_t deadline_ns, retry_ns, pause_ns;
    size_t wake_at;  // bytes that must have come to wake us
    int64_t read_ns; // last looked
    struct gang_greeting greeting;
};

struct gang_wire_link {
    struct gang_wire *wire;
    struct gang_wire_link *next;
    struct gang_link *core;
    int peer, planes, streams;
    bool connects, has_local[WIRE_PLANES_MAX];
    struct gang_address local[WIRE_PLANES_MAX], remote[WIRE_PLANES_MAX];
    char shm[WIRE_PLANES_MAX][WIRE_NAME_CHARS]; // the peer's name when the plane is shared memory; or ""
    size_t buffer_bytes;
    uint64_t peer_session;
    int outstanding;         // operations that are not done
    bool stirred;            // something has happened to it: it must be looked at
    int held;                // small messages that wait for others to go along
    int64_t sent_ns, due_ns; // last sent on by a caller; what is due next
    struct gang_conn conns[WIRE_PLANES_MAX][WIRE_STREAMS_MAX];
};

enum gang_driver { DRIVER_NONE, DRIVER_PROGRESS, DRIVER_USER };

struct gang_wire {
    pthread_mutex_t lock;
    pthread_cond_t baton, park; // users wait for the baton, the progress thread parks
    pthread_t thread;
    bool thread_started, closing, stop, again; // again: some connection has more to read
    bool timeless;                             // a caller drives and sleeps until an event comes
    bool holds;                                // some link holds messages
    enum gang_driver driver;
    int wanting;                           // users that wait for the baton
    int64_t user_ns, next_ns;              // a user drove last; what is due next
    int64_t sleep_until_ns, park_until_ns; // the driver sleeps until; the progress thread is parked until; 0: neither
    int64_t parked_ns, park_span_ns;       // user_ns when it parked last; for how long
    int rank;
    uint64_t cluster, session;
    const struct gang_carrier *carrier; // of TCP connections
    struct gang_secure *secure;         // NULL: plain
    struct gang_link_config config;
    char address[GANG_ADDRESS_TEXT];
    int epoll, kick, listener, local_listener;
    int notify; // of the options
    enum gang_source listener_source, local_source, kick_source;
    struct gang_wire_link *links;
    struct gang_stranger strangers[WIRE_STRANGERS_MAX];
};

// wire.c
// Waits until the operation is done, or one of `links` (NULLs are skipped) is dead, or `notice` of any of them is done.
void gang_wire_wait_any(struct gang_wire *wire, struct gang_wire_op *op, struct gang_wire_link *const *links, const struct gang_wire_op *notices,
                        int count);
bool gang_wire_lost(struct gang_wire *wire, struct gang_wire_link *const *links, const struct gang_wire_op *notices, int count); // one of these is
bool gang_wire_shares(const struct gang_wire_link *link);     // this side knows that a plane of it is memory: it connects
void gang_wire_cancel(struct gang_wire_op *op);               // if it is not done
const char *gang_wire_why(const struct gang_wire_link *link); // a dead link's error: it does not change any more

// tcp.c
void gang_tcp_event(struct gang_wire *wire, void *source, uint32_t events, int64_t now_ns);
void gang_tcp_read_rest(struct gang_wire *wire, int64_t now_ns);    // those that had more
void gang_tcp_flush(struct gang_wire_link *link, int64_t now_ns);   // sends what can be sent
int64_t gang_tcp_tick(struct gang_wire_link *link, int64_t now_ns); // connects; returns when it is due again
int64_t gang_tcp_tick_strangers(struct gang_wire *wire, int64_t now_ns);
void gang_tcp_close(struct gang_conn *conn, int64_t now_ns);
void gang_tcp_end(struct gang_pipe *pipe);              // closes it if it is open
void gang_tcp_reset(void *link, int plane, int stream); // the core's hook
bool gang_epoll_add(struct gang_wire *wire, int fd, uint32_t events, void *source);

#endif
