// relay: what both kinds of relay stand on. relay.c has the line, which says when what came may leave, and the thread;
// relay_tcp.c passes connections on, relay_packet.c packets.
#ifndef GANG_RELAY_H
#define GANG_RELAY_H

#include "wire/wire.h"

#include <pthread.h>

struct gang_relay;

struct gang_relay_kind {
    int64_t queue_least_ns, queue_rtts;                                               // so long what waits for the line may be
    enum gang_status (*open)(struct gang_relay *relay);                               // by the options
    enum gang_status (*add)(struct gang_relay *relay, const char *to, char *address); // NULL: it has no routes
    void (*event)(struct gang_relay *relay, void *source, uint32_t events);
    int64_t (*turn)(struct gang_relay *relay, int64_t now_ns); // does what is due; when to be called again
    void (*report)(struct gang_relay *relay);                  // brings the report up to date
    void (*close)(struct gang_relay *relay);
};
extern const struct gang_relay_kind gang_relay_tcp, gang_relay_packets;

struct gang_relay {
    const struct gang_relay_kind *kind;
    void *state; // the kind's
    struct gang_relay_options options;
    char address[GANG_ADDRESS_TEXT];
    int epoll, kick;
    pthread_t thread;
    pthread_mutex_t lock; // of all but `stop` and `cut`
    struct gang_relay_report report;
    bool started;
    int stop, cut; // atomic
    size_t ring_bytes;
    uint32_t piece_bytes; // what travels together at most: time is as fine
    int64_t start_ns, delay_ns, queue_ns;
    int64_t free_ns[2]; // when each direction's line has sent all that it was given
    int64_t jitter_ns[2], jitter_until_ns[2];
    uint64_t draws, until_flip; // bits until the next one is flipped
    double late_s, pieces;
};

// A wake-up for every piece would cost more than it gains.
static const int64_t gang_relay_step_ns = 20000, gang_relay_never_ns = INT64_MAX;

double gang_relay_draw(struct gang_relay *relay); // uniform in [0, 1)
void gang_relay_flip(struct gang_relay *relay, uint8_t *data, size_t bytes);
// Whether nothing passes now; *until_ns is when to look again at the latest.
bool gang_relay_blocked(const struct gang_relay *relay, int64_t now_ns, int64_t *until_ns);
// Whether the line of this direction has as much to do as it takes.
bool gang_relay_full(const struct gang_relay *relay, int side, int64_t now_ns);
// Gives the line `bytes` that came at `came_ns`; returns when they leave: never before what left last.
int64_t gang_relay_stamp(struct gang_relay *relay, int side, uint32_t bytes, int64_t came_ns, int64_t *last_at_ns);
void gang_relay_left(struct gang_relay *relay, int64_t due_ns, int64_t now_ns); // for the account of how exact it is
bool gang_relay_watch(struct gang_relay *relay, int fd, uint32_t events, void *source);

#endif
