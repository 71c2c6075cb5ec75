// link: the wire's protocol between two ranks, without any input or output of its own.
//
// A link has planes (independent paths), a plane has streams (carriers of bytes, such as TCP connections). The caller moves
// the bytes: it asks gang_stream_gather what to send and reports what went, asks gang_stream_space where to put what came
// and reports how much, and passes the time. Nothing here calls the system, so the same code runs over sockets and
// under the seeded network of tests/wire/test_link.c.
//
// One thread at a time may be inside a link; the caller sees to it. Buffers handed to send and receive stay the caller's and
// must stay in place until the operation completes. Callbacks must not call back into the link. Internal to src/wire.
#ifndef GANG_WIRE_LINK_H
#define GANG_WIRE_LINK_H

#include "base/base.h"
#include "wire/frame.h"

#include <sys/uio.h>

enum {
    WIRE_PLANES_MAX = 8,
    WIRE_STREAMS_MAX = 8, // per plane
    WIRE_OPS_MAX = 1024,  // sends, and receives, that may be outstanding on a link
    WIRE_CHANNELS_MAX = 256,
    WIRE_PRIORITIES = 4, // 0 goes first
    WIRE_POLITE = WIRE_PRIORITIES - 1,
    WIRE_SEQ_WINDOW = 2048, // messages of a channel that may be unfinished at a time: at least ops + eager slots
    WIRE_EAGER_SLOTS = 512, // at most
    WIRE_QUEUE_FRAMES = 64, // frames handed to a stream and not yet taken by the carrier
    WIRE_QUEUE_BYTES = 512 << 10,
    WIRE_STAGING_BYTES = 64 << 10,
    WIRE_IOV_MAX = 2 * WIRE_QUEUE_FRAMES,
    WIRE_ACK_EVERY = 32, // small frames per acknowledgement
    WIRE_INLINE_CHUNKS = 256,
    WIRE_REORDER = 3, // frames that may overtake one another on a carrier that does not keep order
};

struct gang_link_config {
    int rank, peer;
    int planes, streams;
    bool ordered;         // the carrier keeps order and loses nothing until it breaks
    int chunk_log2;       // at least; longer messages take larger chunks
    int eager_bytes;      // at most WIRE_EAGER_MAX_BYTES
    int eager_slots;      // small messages that may wait for their receive, and for acknowledgement; both ends agree
    int64_t heartbeat_ns; // between signs of life while something is unacknowledged
    int64_t idle_ns;      // between signs of life otherwise
    int64_t hold_ns;      // all planes silent: suspect after this
    int64_t dead_ns;      // and lost after this
    int64_t connect_ns;   // to come up the first time
    int64_t stall_ns;     // a stream that makes no progress while others do is replaced
};
// The values that suit TCP; rank, peer, planes and streams are left 0.
extern const struct gang_link_config gang_link_defaults;

enum gang_link_state { LINK_CONNECTING, LINK_UP, LINK_SUSPECT, LINK_DEAD };

struct gang_link_hooks {
    void *context;
    void (*complete)(void *context, void *user, enum gang_status status); // a send or receive has ended
    void (*reset)(void *context, int plane, int stream);                  // drop the stream's carrier; the stream is down already
    void (*state)(void *context, enum gang_link_state state);             // changed; DEAD comes once
};

// A set of chunk indices.
struct gang_chunk_set {
    uint64_t few[WIRE_INLINE_CHUNKS / 64];
    uint64_t *many; // heap, instead of `few`; NULL for few
    uint32_t count;
};

struct gang_send {
    struct gang_send *prev, *next; // in a list of ops that have something to send, or that wait
    void *user;
    const uint8_t *data; // the user's buffer, or an eager slot
    uint64_t bytes, message;
    uint64_t age; // number of the send on the link
    struct gang_channel *channel;
    uint32_t generation, chunks, fresh, acked; // chunks: all, first never sent, acknowledged
    struct gang_chunk_set lost;                // sent, but to be sent again
    uint8_t chunk_log2, priority;
    bool eager, credited, copied;                      // copied: `data` is a slot and the user has been told already
    bool cancelled;                                    // the user has been told; what is queued was copied aside, nothing more is sent
    uint8_t *aside[WIRE_PLANES_MAX][WIRE_STREAMS_MAX]; // heap
    bool busy, ready;                                  // in use; in a list of those that may send
};

struct gang_recv {
    void *user;
    uint8_t *data;
    uint64_t bytes, message;
    struct gang_channel *channel;
    uint32_t chunks;
    uint8_t chunk_log2; // 0 until the first chunk told
    bool busy;
    struct gang_chunk_set done;
};

enum { SLOT_EMPTY = 0, SLOT_DONE = 0xffff, SLOT_EAGER = 0x8000 }; // else receive index + 1

struct gang_channel {
    uint32_t tag;
    uint64_t send_next; // number of the next message
    uint64_t peer_posted;
    struct gang_send *waiting;         // for peer_posted, in order
    uint64_t recv_next, recv_head;     // next to be posted; all below are complete
    uint64_t advertised;               // of recv_next
    bool post_dirty;                   // advertise at once
    uint16_t arrived[WIRE_SEQ_WINDOW]; // by message number: what is known of it
};

struct gang_out_frame {
    uint8_t header[WIRE_HEADER_BYTES];
    uint8_t small[WIRE_ACK_MAX_BYTES];
    const uint8_t *payload;
    uint32_t payload_bytes;
    uint64_t number;
};

struct gang_flight {
    uint8_t kind; // gang_frame_type; 0: free
    uint16_t index;
    uint32_t generation, chunk, bytes;
    int64_t sent_ns;
    uint64_t delivered; // by the plane when this left
    int64_t delivered_ns;
};

enum gang_landing_mode { LANDING_NONE, LANDING_STAGED, LANDING_DIRECT, LANDING_SINK };

struct gang_landing {
    enum gang_landing_mode mode;
    struct gang_frame frame;
    uint8_t *to; // DIRECT
    struct gang_recv *recv;
    uint32_t chunk;
    uint32_t got; // of frame.payload_bytes; DIRECT and SINK
    bool known;   // what the frame carries is here already: it is as good as received
};

struct gang_stream {
    struct gang_link *link;
    int plane, index;
    bool trusted;     // its carrier alters nothing: payload goes without a checksum (the caller sets it before the stream is up)
    bool up, blocked; // blocked: the carrier takes nothing now (the caller sets and clears it)
    uint32_t epoch;
    // Out.
    struct gang_out_frame queue[WIRE_QUEUE_FRAMES];
    unsigned queue_head, queue_count;
    size_t head_done, queue_bytes;
    struct gang_flight flights[WIRE_PN_WINDOW];
    uint64_t next_number, floor, gone; // to be given next; all below are resolved; all up to here have left
    uint64_t sample_from;              // frames below tell nothing of the distance
    unsigned flight_count, flight_pings;
    uint64_t flight_bytes;
    int64_t ping_ns;     // when a numbered frame left last
    int64_t progress_ns; // the peer showed life
    uint64_t peer_rx_bytes;
    bool ping_now;
    // In.
    uint8_t *staging;
    size_t start, end; // of the bytes in staging
    struct gang_landing landing;
    uint64_t rx_floor, rx_largest, rx_bytes, rx_reported;
    uint64_t rx_good[WIRE_PN_WINDOW / 64]; // by number modulo the window
    unsigned ack_count;
    bool ack_now;
    int64_t ack_due_ns, ack_sent_ns;
};

struct gang_plane {
    int ups;             // streams that are up
    int64_t progress_ns; // the peer showed life
    int64_t advance_ns;  // the peer reported that something arrived
    int64_t denied_ns;   // since then it is known to be heard elsewhere while it owes an answer here; 0: it is not
    int64_t chunk_ns;    // a chunk came whole
    bool stuck;          // it reports, but nothing arrives: what it sends is no proof of life
    unsigned flight_count;
    uint64_t flight_bytes;
    double rate; // bytes per second: the most that was seen lately
    double mean; // likewise over many chunks, smoothed; 0: not known yet
    uint64_t span_delivered;
    int64_t span_ns; // since when, and from what, the next mean is taken
    double best;     // of the samples since round_ns
    int64_t round_ns;
    int64_t srtt_ns, rttvar_ns, min_rtt_ns;
    uint64_t delivered;
    int64_t delivered_ns;
    uint64_t losses; // times that it went down
};

struct gang_link {
    struct gang_link_config config;
    struct gang_link_hooks hooks;
    enum gang_link_state state;
    char error[GANG_ERROR_BYTES]; // why it is dead
    char bye[WIRE_BYE_MAX_BYTES]; // what to tell the peer; "" for nothing
    bool peer_left;
    struct gang_plane planes[WIRE_PLANES_MAX];
    struct gang_stream *streams[WIRE_PLANES_MAX][WIRE_STREAMS_MAX];
    struct gang_channel *channels[WIRE_CHANNELS_MAX];
    int channel_count;
    struct gang_send *sends;
    struct gang_recv *recvs;
    uint16_t free_sends[WIRE_OPS_MAX], free_recvs[WIRE_OPS_MAX];
    int free_send_count, free_recv_count;
    struct gang_send *ready[WIRE_PRIORITIES]; // ops with something to send, in order
    struct gang_send *credit_waiting;         // small ones without credit
    double polite_share;                      // of the rate, for what is of priority WIRE_POLITE; 0: no limit
    int64_t polite_ns;                        // when the next frame of it may leave
    uint64_t sends_started;                   // ever
    uint64_t backlog;                         // bytes of ready ops not yet in flight
    int long_ops;                             // sends and receives of more than eager_bytes that are under way
    uint8_t *slots_out, *slots_in;            // WIRE_EAGER_SLOTS each
    uint16_t free_out[WIRE_EAGER_SLOTS], free_in[WIRE_EAGER_SLOTS];
    uint32_t slot_bytes[WIRE_EAGER_SLOTS]; // of the messages in slots_in
    bool slot_credited[WIRE_EAGER_SLOTS];
    int free_out_count, free_in_count;
    uint64_t credit_used, credit_limit;               // as sender
    uint64_t credited_in, credited_done, credit_told; // as receiver: arrived, handed over, granted
    bool credit_dirty, any_post_dirty;
    int64_t lazy_post_ns; // when small receives are advertised; 0: nothing to do
    int64_t born_ns, quiet_ns, promised_ns;
    uint8_t *sink; // where payload goes that nobody wants
};

// The link's memory is the caller's to release with gang_link_free, at any time.
struct gang_link *gang_link_new(const struct gang_link_config *config, const struct gang_link_hooks *hooks, int64_t now_ns);
void gang_link_free(struct gang_link *link);

// Starts an operation; hooks.complete follows, once, perhaps before this returns. GANG_ERR_MEMORY when WIRE_OPS_MAX are
// outstanding (see gang_link_room), GANG_ERR_PEER when the link is dead.
GANG_CHECK_RESULT enum gang_status gang_link_send(struct gang_link *link, int64_t now_ns, uint32_t tag, int priority, const void *data,
                                                  uint64_t bytes, void *user);
GANG_CHECK_RESULT enum gang_status gang_link_recv(struct gang_link *link, int64_t now_ns, uint32_t tag, void *data, uint64_t bytes, void *user);
// Ends an operation early: it completes with GANG_ERR_PEER and its buffer is the caller's again. What was under way is
// dropped at both ends; the peer must cancel its half as well, or it waits for ever. A small message takes its credit along.
void gang_link_cancel(struct gang_link *link, void *user);
// What is of priority WIRE_POLITE takes at most this share of the rate that is measured on the planes; 0: no limit.
void gang_link_pace(struct gang_link *link, double share);
bool gang_link_room_to_send(const struct gang_link *link);
bool gang_link_room_to_recv(const struct gang_link *link);
// When what receives have made necessary is to go out; INT64_MAX: nothing.
int64_t gang_link_owes(const struct gang_link *link, int64_t now_ns);
// Nothing is queued or unacknowledged.
bool gang_link_flushed(const struct gang_link *link);

// A carrier is there, or gone. `epoch` must differ from every earlier one of this stream.
void gang_stream_up(struct gang_stream *stream, uint32_t epoch, int64_t now_ns);
void gang_stream_down(struct gang_stream *stream, int64_t now_ns);

// Puts into the stream's queue what should go now and lists it; returns the number of entries, 0 for nothing. Then
// gang_stream_gone with the number of bytes that the carrier took.
int gang_stream_gather(struct gang_stream *stream, int64_t now_ns, struct iovec iov[WIRE_IOV_MAX]);
void gang_stream_gone(struct gang_stream *stream, size_t bytes, int64_t now_ns);

// Where the next bytes go, one or two places. Then gang_stream_came with how many there were. False: the peer sent what no
// sound peer sends; take the stream down.
int gang_stream_space(struct gang_stream *stream, struct iovec iov[2]);
GANG_CHECK_RESULT bool gang_stream_came(struct gang_stream *stream, size_t bytes, int64_t now_ns);
// So many bytes at least must still come before anything can be done.
size_t gang_stream_awaits(const struct gang_stream *stream);

// Does what the time asks for and returns when to be called again.
int64_t gang_link_tick(struct gang_link *link, int64_t now_ns);

// Ends the link: every operation completes with GANG_ERR_PEER and the text. `tell`: so is the peer.
GANG_PRINTF(3, 4) void gang_link_fail(struct gang_link *link, bool tell, const char *format, ...);
// The farewell frame; 0 bytes for none.
size_t gang_link_bye(const struct gang_link *link, uint8_t frame[WIRE_HEADER_BYTES + WIRE_BYE_MAX_BYTES]);

// ---- Between link.c, link_send.c, link_recv.c and stream.c ----------------------------------------------------------

struct gang_channel *gang_link_channel(struct gang_link *link, uint32_t tag);      // NULL: too many; the link has failed
bool gang_chunks_add(struct gang_chunk_set *set, uint32_t chunks, uint32_t index); // false: it was there
void gang_chunks_remove(struct gang_chunk_set *set, uint32_t index);
bool gang_chunks_has(const struct gang_chunk_set *set, uint32_t index);
uint32_t gang_chunks_first(const struct gang_chunk_set *set);
void gang_chunks_clear(struct gang_chunk_set *set);

// link_send.c
bool gang_send_next(struct gang_stream *stream, int64_t now_ns); // queues one frame of data if there is one to go
double gang_plane_rate(const struct gang_plane *plane);          // what it really carries, as far as is known
bool gang_send_unpaced(const struct gang_link *link);            // something is ready that need not wait for its time
int64_t gang_send_paced(const struct gang_link *link);           // until when what is polite waits for its time; INT64_MAX: nothing does
double gang_plane_span_s(const struct gang_plane *plane);        // what is in flight on it should be through within this
void gang_send_lost(struct gang_link *link, const struct gang_flight *flight);
void gang_send_acked(struct gang_link *link, const struct gang_flight *flight);
void gang_send_granted(struct gang_link *link, struct gang_channel *channel, uint64_t posted);
void gang_send_credit(struct gang_link *link, uint64_t limit);
void gang_send_abort(struct gang_link *link);

// link_recv.c
void gang_recv_frame(struct gang_stream *stream);                                           // a header has come: sets stream->landing
bool gang_recv_payload(struct gang_stream *stream, const uint8_t *payload, int64_t now_ns); // and its payload. True: good
void gang_recv_abort(struct gang_link *link);
bool gang_recv_cancel(struct gang_link *link, void *user); // false: no such receive

// link.c
struct gang_out_frame *gang_stream_push(struct gang_stream *stream, struct gang_frame *frame, const struct gang_flight *flight, int64_t now_ns);
bool gang_stream_has_room(const struct gang_stream *stream);
void gang_stream_heard(struct gang_stream *stream, int64_t now_ns); // bytes have come
void gang_link_woke(struct gang_link *link, int64_t now_ns);        // if that is later than promised: before anything else
bool gang_stream_acked(struct gang_stream *stream, const struct gang_ack *ack, int64_t now_ns);

#endif
