// The link's planes and streams: numbering, acknowledgement, loss, time, life and death.
//
// The idea. Every frame that matters gets a number in its stream, new for each transmission. The receiver reports which
// numbers came whole; what something later has overtaken is lost and its content goes out again under a new number on
// whatever stream is best now. There is no retransmission timer: while anything is unacknowledged a ping follows every
// heartbeat, and the acknowledgement of the ping shows what is missing before it. What a frame carries is idempotent:
// chunks are known by (channel, message, offset), credit and posts are running totals.
//
// Invariants (tests/wire/test_link.c checks them after each event):
//  1. Each chunk of a send is exactly one of: never sent, in one flight, marked lost, acknowledged.
//  2. A stream's queue and flights point only at operations that are not complete; a stream that goes down forgets all.
//  3. At most one stream writes into a given chunk of a posted buffer, and none into a chunk that has been verified: a later
//     arrival takes the place over, the earlier one's rest goes to the sink.
//  4. An operation completes once. After the link's death none is outstanding and none starts.
//  5. credit_used <= credit_limit; eager messages that wait <= eager_slots; flights <= WIRE_PN_WINDOW per stream.
//
// States of a plane: up while one of its streams is. It goes down when the carrier breaks, or when it is silent (something
// is unacknowledged and neither a report that something arrived has come for three heartbeats, counted from a round trip
// after the oldest such frame, nor any byte, unless reports deny that anything arrives) and the peer has been heard on another plane since. If
// all are silent nothing is torn down: the link is held, SUSPECT after hold_ns, DEAD after dead_ns. Any progress makes it UP again. Who carries
// bytes brings planes back by gang_stream_up, as often as it likes.
//
// Silence is what was watched: the time that this end slept through, stopped or suspended or while the clock jumped, does not count.
#include "wire/link.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MISSED_HEARTBEATS = 3, STUCK_HEARTBEATS = 2, MEAN_CHUNKS = 16 };
static const int64_t never_ns = INT64_MAX, ms = 1000000;
static const int64_t unknown_rtt_ns = 100000000; // before the first sample
static const int64_t small_ack_ns = 1000000;     // small frames are acknowledged within this
static const double rate_decay = 0.75;

const struct gang_link_config gang_link_defaults = {
    .ordered = true,
    .chunk_log2 = 18,
    .eager_bytes = WIRE_EAGER_MAX_BYTES,
    .eager_slots = WIRE_EAGER_SLOTS,
    .heartbeat_ns = 4000000,
    .idle_ns = 100000000,
    .hold_ns = 100000000,
    .dead_ns = 1000000000,
    .connect_ns = 10000000000,
    .stall_ns = 250000000,
};

static int64_t max_ns(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t min_ns(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- Birth and end -------------------------------------------------------------------------------------------------

static void *must_alloc(size_t count, size_t bytes) {
    void *block = calloc(count, bytes);
    assert(block && "out of memory");
    return block;
}

static struct gang_stream *stream_new(struct gang_link *link, int plane, int index) {
    struct gang_stream *stream = must_alloc(1, sizeof *stream);
    *stream = (struct gang_stream){.link = link, .plane = plane, .index = index};
    stream->staging = must_alloc(1, WIRE_STAGING_BYTES);
    return stream;
}

struct gang_link *gang_link_new(const struct gang_link_config *config, const struct gang_link_hooks *hooks, int64_t now_ns) {
    assert(config->planes > 0 && config->planes <= WIRE_PLANES_MAX && config->streams > 0 && config->streams <= WIRE_STREAMS_MAX);
    assert(config->eager_bytes >= 0 && config->eager_bytes <= WIRE_EAGER_MAX_BYTES);
    assert(config->eager_slots > 0 && config->eager_slots <= WIRE_EAGER_SLOTS);
    struct gang_link *link = must_alloc(1, sizeof *link);
    link->config = *config;
    link->hooks = *hooks;
    link->born_ns = link->quiet_ns = link->promised_ns = now_ns;
    link->sends = must_alloc(WIRE_OPS_MAX, sizeof *link->sends);
    link->recvs = must_alloc(WIRE_OPS_MAX, sizeof *link->recvs);
    link->slots_out = must_alloc((size_t)config->eager_slots, (size_t)config->eager_bytes + 1);
    link->slots_in = must_alloc((size_t)config->eager_slots, (size_t)config->eager_bytes + 1);
    link->sink = must_alloc(1, WIRE_STAGING_BYTES);
    link->credit_limit = link->credit_told = (uint64_t)config->eager_slots;
    for (int i = WIRE_OPS_MAX - 1; i >= 0; i--) link->free_sends[link->free_send_count++] = link->free_recvs[link->free_recv_count++] = (uint16_t)i;
    for (int i = config->eager_slots - 1; i >= 0; i--) link->free_out[link->free_out_count++] = link->free_in[link->free_in_count++] = (uint16_t)i;
    for (int p = 0; p < config->planes; p++)
        for (int s = 0; s < config->streams; s++) link->streams[p][s] = stream_new(link, p, s);
    return link;
}

void gang_link_free(struct gang_link *link) {
    if (!link) return;
    for (int i = 0; i < WIRE_OPS_MAX; i++) {
        gang_chunks_clear(&link->sends[i].lost);
        gang_chunks_clear(&link->recvs[i].done);
        for (int p = 0; p < link->config.planes && link->sends[i].busy; p++)
            for (int s = 0; s < link->config.streams; s++) free(link->sends[i].aside[p][s]);
    }
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++) {
            free(link->streams[p][s]->staging);
            free(link->streams[p][s]);
        }
    for (int i = 0; i < link->channel_count; i++) free(link->channels[i]);
    free(link->sends);
    free(link->recvs);
    free(link->slots_out);
    free(link->slots_in);
    free(link->sink);
    free(link);
}

static void enter(struct gang_link *link, enum gang_link_state state) {
    if (link->state == state) return;
    link->state = state;
    link->hooks.state(link->hooks.context, state);
}

void gang_link_fail(struct gang_link *link, bool tell, const char *format, ...) {
    if (link->state == LINK_DEAD) return;
    va_list args;
    va_start(args, format);
    vsnprintf(link->error, sizeof link->error, format, args);
    va_end(args);
    if (tell) snprintf(link->bye, sizeof link->bye, "%.*s", (int)sizeof link->bye - 1, link->error);
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++) {
            // The carrier may still have to send the farewell: it is told before the stream forgets where in a frame it is.
            if (!link->streams[p][s]->up) continue;
            link->hooks.reset(link->hooks.context, p, s);
            gang_stream_down(link->streams[p][s], 0);
        }
    enter(link, LINK_DEAD);
    gang_send_abort(link);
    gang_recv_abort(link);
}

size_t gang_link_bye(const struct gang_link *link, uint8_t frame[WIRE_HEADER_BYTES + WIRE_BYE_MAX_BYTES]) {
    size_t bytes = strlen(link->bye);
    if (!bytes) return 0;
    memcpy(frame + WIRE_HEADER_BYTES, link->bye, bytes);
    gang_frame_encode(&(struct gang_frame){.type = WIRE_BYE, .payload_bytes = (uint32_t)bytes, .payload_crc = gang_crc32c(link->bye, bytes)}, frame);
    return WIRE_HEADER_BYTES + bytes;
}

struct gang_channel *gang_link_channel(struct gang_link *link, uint32_t tag) {
    for (int i = 0; i < link->channel_count; i++)
        if (link->channels[i]->tag == tag) return link->channels[i];
    if (link->channel_count == WIRE_CHANNELS_MAX) {
        gang_link_fail(link, true, "link %d-%d: more than %d channels: use fewer tags", link->config.rank, link->config.peer, WIRE_CHANNELS_MAX);
        return NULL;
    }
    struct gang_channel *channel = must_alloc(1, sizeof *channel);
    channel->tag = tag;
    return link->channels[link->channel_count++] = channel;
}

// ---- Streams up and down -------------------------------------------------------------------------------------------

void gang_stream_up(struct gang_stream *stream, uint32_t epoch, int64_t now_ns) {
    struct gang_link *link = stream->link;
    if (stream->up) gang_stream_down(stream, now_ns);
    if (link->state == LINK_DEAD) return;
    struct gang_plane *plane = &link->planes[stream->plane];
    stream->up = true;
    stream->blocked = false;
    stream->epoch = epoch;
    stream->queue_head = stream->queue_count = 0;
    stream->head_done = stream->queue_bytes = 0;
    stream->next_number = stream->floor = 1;
    stream->sample_from = 1;
    stream->gone = 0;
    stream->peer_rx_bytes = 0;
    stream->start = stream->end = 0;
    stream->landing = (struct gang_landing){0};
    stream->rx_floor = 1;
    stream->rx_largest = stream->rx_bytes = stream->rx_reported = 0;
    memset(stream->rx_good, 0, sizeof stream->rx_good);
    stream->ack_count = 0;
    stream->ack_now = false;
    stream->ping_now = true; // the first round trip is measured at once
    stream->ping_ns = stream->progress_ns = stream->ack_sent_ns = now_ns;
    plane->progress_ns = plane->advance_ns = now_ns;
    plane->stuck = false;
    plane->denied_ns = 0;
    plane->ups++;
    if (link->state != LINK_UP) {
        enter(link, LINK_UP);
        link->quiet_ns = 0;
    }
}

static void resolve(struct gang_stream *stream, struct gang_flight *flight) {
    struct gang_plane *plane = &stream->link->planes[stream->plane];
    stream->flight_count--;
    stream->flight_pings -= flight->kind == WIRE_PING;
    flight->kind = 0;
    stream->flight_bytes -= flight->bytes;
    plane->flight_count--;
    plane->flight_bytes -= flight->bytes;
}

static void lose(struct gang_stream *stream, struct gang_flight *flight) {
    struct gang_flight lost = *flight;
    resolve(stream, flight);
    struct gang_link *link = stream->link;
    if (lost.kind == WIRE_CHUNK || lost.kind == WIRE_EAGER) gang_send_lost(link, &lost);
    if (lost.kind == WIRE_CREDIT) link->credit_dirty = true;
    if (lost.kind == WIRE_POST) link->channels[lost.index]->post_dirty = link->any_post_dirty = true;
}

void gang_stream_down(struct gang_stream *stream, int64_t now_ns) {
    if (!stream->up) return;
    struct gang_link *link = stream->link;
    struct gang_plane *plane = &link->planes[stream->plane];
    stream->up = false;
    stream->queue_head = stream->queue_count = 0;
    stream->head_done = stream->queue_bytes = 0;
    stream->landing = (struct gang_landing){0};
    stream->start = stream->end = 0;
    for (uint64_t n = stream->floor; n < stream->next_number; n++)
        if (stream->flights[n % WIRE_PN_WINDOW].kind) lose(stream, &stream->flights[n % WIRE_PN_WINDOW]);
    stream->floor = stream->next_number;
    assert(!stream->flight_count && !stream->flight_bytes);
    if (!--plane->ups) plane->losses++;
    for (int p = 0; p < link->config.planes; p++)
        if (link->planes[p].ups) return;
    if (!link->quiet_ns) link->quiet_ns = now_ns;
}

static void reset(struct gang_stream *stream, int64_t now_ns) {
    if (!stream->up) return;
    gang_stream_down(stream, now_ns);
    stream->link->hooks.reset(stream->link->hooks.context, stream->plane, stream->index);
}

// ---- The queue of a stream -----------------------------------------------------------------------------------------

// One place is kept for an acknowledgement.
bool gang_stream_has_room(const struct gang_stream *stream) {
    return stream->queue_count < WIRE_QUEUE_FRAMES - 1 && stream->next_number - stream->floor < WIRE_PN_WINDOW;
}

static void take_off(struct gang_stream *stream, const struct gang_flight *flight, uint64_t number, int64_t now_ns) {
    struct gang_plane *plane = &stream->link->planes[stream->plane];
    struct gang_flight *slot = &stream->flights[number % WIRE_PN_WINDOW];
    assert(!slot->kind);
    *slot = *flight;
    slot->sent_ns = now_ns;
    if (!plane->flight_count++) {
        plane->delivered_ns = plane->span_ns = now_ns;
        plane->span_delivered = plane->delivered;
    }
    slot->delivered = plane->delivered;
    slot->delivered_ns = plane->delivered_ns;
    plane->flight_bytes += flight->bytes;
    stream->flight_count++;
    stream->flight_pings += flight->kind == WIRE_PING;
    stream->flight_bytes += flight->bytes;
    stream->ping_ns = now_ns;
}

struct gang_out_frame *gang_stream_push(struct gang_stream *stream, struct gang_frame *frame, const struct gang_flight *flight, int64_t now_ns) {
    assert(stream->queue_count < WIRE_QUEUE_FRAMES);
    struct gang_out_frame *out = &stream->queue[(stream->queue_head + stream->queue_count++) % WIRE_QUEUE_FRAMES];
    out->payload = NULL;
    out->payload_bytes = frame->payload_bytes;
    out->number = 0;
    if (flight) {
        frame->number = out->number = stream->next_number++;
        frame->floor_back = (uint32_t)(frame->number - stream->floor);
        take_off(stream, flight, frame->number, now_ns);
    }
    frame->epoch = stream->epoch;
    gang_frame_encode(frame, out->header);
    stream->queue_bytes += WIRE_HEADER_BYTES + frame->payload_bytes;
    return out;
}

static void push_ack(struct gang_stream *stream, int64_t now_ns) {
    struct gang_ack ack = {.largest = stream->rx_largest, .base = stream->rx_floor, .rx_bytes = stream->rx_bytes};
    for (uint64_t n = ack.base; n <= ack.largest; n++)
        if (stream->rx_good[n / 64 % (WIRE_PN_WINDOW / 64)] >> (n % 64) & 1) ack.good[(n - ack.base) / 64] |= (uint64_t)1 << ((n - ack.base) % 64);
    uint8_t payload[WIRE_ACK_MAX_BYTES];
    size_t bytes = gang_ack_encode(&ack, payload);
    struct gang_frame frame = {.type = WIRE_ACK, .payload_bytes = (uint32_t)bytes, .payload_crc = gang_crc32c(payload, bytes)};
    struct gang_out_frame *out = gang_stream_push(stream, &frame, NULL, now_ns);
    memcpy(out->small, payload, bytes);
    out->payload = out->small;
    stream->ack_now = false;
    stream->ack_count = 0;
    stream->ack_sent_ns = now_ns;
    stream->rx_reported = stream->rx_bytes;
}

static void push_posts(struct gang_stream *stream, int64_t now_ns) {
    struct gang_link *link = stream->link;
    link->any_post_dirty = false;
    for (int i = 0; i < link->channel_count; i++) {
        struct gang_channel *channel = link->channels[i];
        if (!channel->post_dirty) continue;
        if (!gang_stream_has_room(stream)) {
            link->any_post_dirty = true;
            return;
        }
        channel->post_dirty = false;
        channel->advertised = channel->recv_next;
        struct gang_frame frame = {.type = WIRE_POST, .tag = channel->tag, .message = channel->recv_next};
        gang_stream_push(stream, &frame, &(struct gang_flight){.kind = WIRE_POST, .index = (uint16_t)i}, now_ns);
    }
}

static void fill(struct gang_stream *stream, int64_t now_ns) {
    struct gang_link *link = stream->link;
    bool small_due = stream->ack_count >= WIRE_ACK_EVERY || (stream->ack_count && stream->ack_due_ns <= now_ns);
    if ((stream->ack_now || small_due) && stream->queue_count < WIRE_QUEUE_FRAMES) push_ack(stream, now_ns);
    if (link->credit_dirty && gang_stream_has_room(stream)) {
        link->credit_dirty = false;
        link->credit_told = link->credited_done + (uint64_t)link->config.eager_slots;
        struct gang_frame frame = {.type = WIRE_CREDIT, .message = link->credit_told};
        gang_stream_push(stream, &frame, &(struct gang_flight){.kind = WIRE_CREDIT}, now_ns);
    }
    if (link->any_post_dirty) push_posts(stream, now_ns);
    if (stream->ping_now && gang_stream_has_room(stream)) {
        stream->ping_now = false;
        struct gang_frame frame = {.type = WIRE_PING};
        gang_stream_push(stream, &frame, &(struct gang_flight){.kind = WIRE_PING}, now_ns);
    }
    while (stream->queue_bytes < WIRE_QUEUE_BYTES && gang_stream_has_room(stream) && gang_send_next(stream, now_ns)) {}
}

int gang_stream_gather(struct gang_stream *stream, int64_t now_ns, struct iovec iov[WIRE_IOV_MAX]) {
    if (!stream->up) return 0;
    fill(stream, now_ns);
    int count = 0;
    size_t skip = stream->head_done;
    for (unsigned i = 0; i < stream->queue_count; i++) {
        struct gang_out_frame *out = &stream->queue[(stream->queue_head + i) % WIRE_QUEUE_FRAMES];
        if (skip < WIRE_HEADER_BYTES) iov[count++] = (struct iovec){out->header + skip, WIRE_HEADER_BYTES - skip};
        skip = skip > WIRE_HEADER_BYTES ? skip - WIRE_HEADER_BYTES : 0;
        if (out->payload_bytes) iov[count++] = (struct iovec){(void *)(out->payload + skip), out->payload_bytes - skip};
        skip = 0;
    }
    return count;
}

void gang_stream_gone(struct gang_stream *stream, size_t bytes, int64_t now_ns) {
    assert(bytes <= stream->queue_bytes - stream->head_done);
    stream->head_done += bytes;
    while (stream->queue_count) {
        struct gang_out_frame *out = &stream->queue[stream->queue_head];
        size_t all = WIRE_HEADER_BYTES + (size_t)out->payload_bytes;
        if (stream->head_done < all) break;
        stream->head_done -= all;
        stream->queue_bytes -= all;
        stream->queue_head = (stream->queue_head + 1) % WIRE_QUEUE_FRAMES;
        stream->queue_count--;
        if (!out->number) continue;
        stream->gone = out->number;
        stream->flights[out->number % WIRE_PN_WINDOW].sent_ns = now_ns;
    }
}

// ---- Acknowledgements ----------------------------------------------------------------------------------------------

static void sample_rtt(struct gang_plane *plane, int64_t rtt_ns) {
    if (rtt_ns < 1) rtt_ns = 1;
    if (!plane->srtt_ns) {
        plane->srtt_ns = plane->min_rtt_ns = rtt_ns;
        plane->rttvar_ns = rtt_ns / 2;
        return;
    }
    int64_t error = rtt_ns - plane->srtt_ns;
    plane->srtt_ns += error / 8;
    plane->rttvar_ns += ((error < 0 ? -error : error) - plane->rttvar_ns) / 4;
    plane->min_rtt_ns = min_ns(plane->min_rtt_ns, rtt_ns);
}

// There is more to send and it is the path that holds it back: not our own limit on what is in flight, nor our own pace, or what
// is paced by a share of the rate would slow down the rate.
static bool held_back(const struct gang_stream *stream, const struct gang_plane *plane) {
    return gang_send_unpaced(stream->link) && (stream->blocked || (double)plane->srtt_ns * 1e-9 > gang_plane_span_s(plane));
}

// The most that was seen is more than the path carries, since reports come in bunches; a mean over many chunks is not.
static void sample_mean(const struct gang_stream *stream, struct gang_plane *plane, int64_t now_ns) {
    uint64_t bytes = plane->delivered - plane->span_delivered;
    int64_t elapsed = now_ns - plane->span_ns;
    if (bytes < (uint64_t)MEAN_CHUNKS << stream->link->config.chunk_log2 || elapsed < plane->srtt_ns) return;
    double mean = (double)bytes * 1e9 / (double)elapsed;
    if (mean > plane->mean || held_back(stream, plane)) plane->mean = plane->mean > 0 ? rate_decay * plane->mean + (1 - rate_decay) * mean : mean;
    plane->span_ns = now_ns;
    plane->span_delivered = plane->delivered;
}

double gang_plane_rate(const struct gang_plane *plane) { return plane->mean > 0 ? plane->mean : plane->rate; }

// Bytes delivered between the flight's departure and now, over that time. It rises at once. It falls slowly, by the best of a
// round trip, since reports that stand behind data on their way back come in bunches; and only while the path holds us back.
static void sample_rate(const struct gang_stream *stream, struct gang_plane *plane, const struct gang_flight *flight, int64_t now_ns) {
    int64_t elapsed = now_ns - flight->delivered_ns;
    if (elapsed <= 0) return;
    double sample = (double)(plane->delivered - flight->delivered) * 1e9 / (double)elapsed;
    plane->best = sample > plane->best ? sample : plane->best;
    if (sample > plane->rate) plane->rate = sample;
    if (now_ns - plane->round_ns < plane->srtt_ns) return;
    if (held_back(stream, plane)) plane->rate = rate_decay * plane->rate + (1 - rate_decay) * plane->best;
    plane->round_ns = now_ns;
    plane->best = 0;
}

static int64_t expected_rtt(const struct gang_plane *plane) { return plane->srtt_ns ? plane->srtt_ns + 4 * plane->rttvar_ns : unknown_rtt_ns; }

// When the oldest unresolved frame left.
static int64_t oldest_ns(const struct gang_stream *stream) {
    return stream->flight_count ? stream->flights[stream->floor % WIRE_PN_WINDOW].sent_ns : never_ns;
}

// Since when the peer owes a report of something having arrived: a round trip after the oldest frame, or the last report.
static int64_t owed_at(const struct gang_link *link, int plane) {
    const struct gang_plane *p = &link->planes[plane];
    int64_t oldest = never_ns;
    for (int s = 0; s < link->config.streams; s++) oldest = min_ns(oldest, oldest_ns(link->streams[plane][s]));
    return oldest == never_ns ? never_ns : max_ns(p->advance_ns, oldest + expected_rtt(p));
}

static void acknowledge(struct gang_stream *stream, struct gang_flight *flight, bool sample, int64_t now_ns) {
    struct gang_plane *plane = &stream->link->planes[stream->plane];
    struct gang_flight acked = *flight;
    resolve(stream, flight);
    plane->delivered += acked.bytes;
    plane->delivered_ns = now_ns;
    // Only these are acknowledged without delay.
    if (sample && (acked.kind == WIRE_CHUNK || acked.kind == WIRE_PING)) sample_rtt(plane, now_ns - acked.sent_ns);
    if (acked.kind == WIRE_CHUNK) sample_rate(stream, plane, &acked, now_ns);
    if (acked.kind == WIRE_CHUNK) sample_mean(stream, plane, now_ns);
    if (acked.kind == WIRE_CHUNK || acked.kind == WIRE_EAGER) gang_send_acked(stream->link, &acked);
}

bool gang_stream_acked(struct gang_stream *stream, const struct gang_ack *ack, int64_t now_ns) {
    if (ack->largest > stream->gone) return false;
    struct gang_link *link = stream->link;
    bool progress = ack->rx_bytes > stream->peer_rx_bytes;
    if (progress) stream->peer_rx_bytes = ack->rx_bytes;
    uint64_t overtaken = link->config.ordered ? 0 : WIRE_REORDER;
    for (uint64_t n = stream->floor; n <= ack->largest; n++) {
        struct gang_flight *flight = &stream->flights[n % WIRE_PN_WINDOW];
        if (!flight->kind) continue;
        uint64_t bit = n - ack->base; // wraps far beyond the window below the base
        if (bit < WIRE_PN_WINDOW && ack->good[bit / 64] >> (bit % 64) & 1) {
            acknowledge(stream, flight, n >= stream->sample_from, now_ns);
            progress = true;
        } else if (ack->largest - n >= overtaken) {
            lose(stream, flight);
        }
    }
    while (stream->floor < stream->next_number && !stream->flights[stream->floor % WIRE_PN_WINDOW].kind) stream->floor++;
    struct gang_plane *plane = &link->planes[stream->plane];
    if (!progress) {
        // Reports that only repeat themselves: the way there is cut, the way back is not.
        if (!plane->stuck && plane->flight_count && now_ns - STUCK_HEARTBEATS * link->config.heartbeat_ns > owed_at(link, stream->plane)) {
            plane->stuck = true;
            plane->progress_ns = plane->advance_ns;
        }
        return true;
    }
    plane->stuck = false;
    stream->progress_ns = plane->progress_ns = plane->advance_ns = now_ns;
    return true;
}

// When the plane counts as silent; never while nothing is unacknowledged.
static int64_t silent_at(const struct gang_link *link, int plane) {
    if (!link->planes[plane].ups || !link->planes[plane].flight_count) return never_ns;
    return max_ns(link->planes[plane].progress_ns, owed_at(link, plane)) + MISSED_HEARTBEATS * link->config.heartbeat_ns;
}

// Reports may stand behind a long queue of data; while that data flows and no report denies it, the plane lives.
void gang_stream_heard(struct gang_stream *stream, int64_t now_ns) {
    struct gang_link *link = stream->link;
    struct gang_plane *plane = &link->planes[stream->plane];
    if (plane->stuck) return;
    // What waited for a peer that was stopped does not tell how far away it is. The last frame may: the way can have grown longer.
    // With one plane nothing is gained by noticing soon, and TCP on a poor way stands still for longer than the distance.
    for (int s = 0; s < link->config.streams && link->config.planes > 1 && silent_at(link, stream->plane) <= now_ns; s++)
        link->streams[stream->plane][s]->sample_from = link->streams[stream->plane][s]->next_number - 1;
    stream->progress_ns = plane->progress_ns = now_ns;
}

// ---- Time ----------------------------------------------------------------------------------------------------------

static void forgive_stream(struct gang_stream *stream, int64_t late_ns, int64_t now_ns) {
    stream->progress_ns = min_ns(now_ns, stream->progress_ns + late_ns);
    for (uint64_t n = stream->floor; n < stream->next_number; n++) {
        struct gang_flight *flight = &stream->flights[n % WIRE_PN_WINDOW];
        flight->sent_ns = min_ns(now_ns, flight->sent_ns + late_ns);
        flight->delivered_ns = min_ns(now_ns, flight->delivered_ns + late_ns);
    }
}

// What we slept through, stopped or on a machine that was, is nobody's silence and no round trip: it does not count, and what was
// silence before still does. Who wakes late every time, on a busy machine, would never call anybody dead otherwise.
void gang_link_woke(struct gang_link *link, int64_t now_ns) {
    int64_t late_ns = now_ns - link->promised_ns;
    if (late_ns <= link->config.heartbeat_ns) return;
    link->promised_ns = now_ns;
    for (int p = 0; p < link->config.planes; p++) {
        struct gang_plane *plane = &link->planes[p];
        plane->progress_ns = min_ns(now_ns, plane->progress_ns + late_ns);
        plane->advance_ns = min_ns(now_ns, plane->advance_ns + late_ns);
        plane->delivered_ns = min_ns(now_ns, plane->delivered_ns + late_ns);
        plane->span_ns = min_ns(now_ns, plane->span_ns + late_ns);
        for (int s = 0; s < link->config.streams; s++) forgive_stream(link->streams[p][s], late_ns, now_ns);
    }
    if (link->quiet_ns) link->quiet_ns += late_ns;
    link->born_ns += late_ns;
}

// When the next ping is due. Lone pings wait for their answers, or an idle link over a long way would never come to rest. On an
// idle plane one stream speaks for all, and one side: the other hears it and has no need to ask.
static int64_t ping_at(const struct gang_stream *stream) {
    const struct gang_link *link = stream->link;
    const struct gang_plane *plane = &link->planes[stream->plane];
    if (stream->flight_count > stream->flight_pings) return stream->ping_ns + link->config.heartbeat_ns;
    if (stream->flight_count) return stream->ping_ns + expected_rtt(plane) + link->config.heartbeat_ns;
    for (int s = 0; s < stream->index; s++)
        if (link->streams[stream->plane][s]->up) return never_ns;
    int64_t pause = link->config.rank < link->config.peer ? link->config.idle_ns : link->config.idle_ns * 3 / 2;
    return max_ns(stream->ping_ns, plane->progress_ns) + pause;
}

static int64_t tick_stream(struct gang_stream *stream, bool others_move, int64_t now_ns) {
    const struct gang_link_config *config = &stream->link->config;
    if (!stream->up) return never_ns;
    int64_t stalled_at = stream->flight_count ? max_ns(stream->progress_ns, oldest_ns(stream)) + config->stall_ns : never_ns;
    if (others_move && stalled_at <= now_ns) {
        reset(stream, now_ns);
        return never_ns;
    }
    int64_t due = ping_at(stream);
    if (due <= now_ns) {
        // With frames still queued the peer sees life as it is, and a ping would only stand behind them. A report goes along.
        stream->ping_now = stream->queue_count == 0;
        stream->ack_now = true;
        due = now_ns + config->heartbeat_ns;
    }
    int64_t report_at = stream->rx_bytes != stream->rx_reported ? stream->ack_sent_ns + config->heartbeat_ns : never_ns;
    if (report_at <= now_ns) {
        stream->ack_now = true;
        report_at = never_ns;
    }
    int64_t ack_at = stream->ack_count ? stream->ack_due_ns : never_ns;
    if (ack_at <= now_ns) ack_at = now_ns + small_ack_ns; // gathered after this tick, unless the carrier is blocked
    return min_ns(min_ns(due, report_at), min_ns(ack_at, stalled_at > now_ns ? stalled_at : never_ns));
}

// Asks the planes on which nothing is under way for a sign of life.
static void ask_idle(struct gang_link *link) {
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams && !link->planes[p].flight_count; s++) {
            if (!link->streams[p][s]->up) continue;
            link->streams[p][s]->ping_now = true;
            break;
        }
}

// Judges a plane; returns when to look again. It goes down when it is silent and the peer has been heard on another plane since
// it should have been on this one, and some time was left for it to be heard on this one as well: a peer that was stopped for a
// moment is silent on all, and heard on one of them first.
static int64_t judge_plane(struct gang_link *link, int index, int64_t now_ns, bool *ask) {
    const int64_t heartbeat_ns = link->config.heartbeat_ns, at = silent_at(link, index);
    struct gang_plane *plane = &link->planes[index];
    int64_t owed_ns = at - MISSED_HEARTBEATS * heartbeat_ns;
    if (at == never_ns || now_ns < owed_ns + heartbeat_ns) {
        plane->denied_ns = 0;
        return at == never_ns ? at : owed_ns + heartbeat_ns;
    }
    for (int p = 0; p < link->config.planes && !plane->denied_ns; p++)
        if (p != index && link->planes[p].ups && link->planes[p].progress_ns > owed_ns) plane->denied_ns = now_ns;
    *ask = *ask || !plane->denied_ns;
    if (!plane->denied_ns) return at > now_ns ? at : never_ns;
    int64_t down_ns = max_ns(at, plane->denied_ns + (MISSED_HEARTBEATS - 1) * heartbeat_ns);
    if (down_ns > now_ns) return down_ns;
    for (int s = 0; s < link->config.streams; s++) reset(link->streams[index][s], now_ns);
    return never_ns;
}

// Returns whether a plane is up that is not silent.
static bool judge_planes(struct gang_link *link, int64_t now_ns, int64_t *next_ns) {
    bool sound = false, ask = false;
    for (int p = 0; p < link->config.planes; p++) sound = sound || (link->planes[p].ups && silent_at(link, p) > now_ns);
    for (int p = 0; p < link->config.planes; p++) *next_ns = min_ns(*next_ns, judge_plane(link, p, now_ns, &ask));
    if (ask) ask_idle(link);
    return sound;
}

// A silent peer is looked at again within three heartbeats: only so can be told what was watched from what was slept through.
static void judge_link(struct gang_link *link, bool sound, int64_t now_ns, int64_t *next_ns) {
    const struct gang_link_config *config = &link->config;
    const int64_t watch_ns = MISSED_HEARTBEATS * config->heartbeat_ns;
    if (sound) {
        // A stream stalls while others move: not while nobody did.
        for (int p = 0; p < config->planes && link->quiet_ns; p++)
            for (int s = 0; s < config->streams; s++) link->streams[p][s]->progress_ns = now_ns;
        link->quiet_ns = 0;
        if (link->state == LINK_SUSPECT) enter(link, LINK_UP);
        return;
    }
    if (link->state == LINK_CONNECTING) {
        int64_t end = link->born_ns + config->connect_ns;
        if (end > now_ns) {
            *next_ns = min_ns(*next_ns, min_ns(end, now_ns + watch_ns));
            return;
        }
        gang_link_fail(link, false, "rank %d: no connection with rank %d within %lld ms: is it running, is its address right?", config->rank,
                       config->peer, (long long)(config->connect_ns / ms));
        return;
    }
    if (!link->quiet_ns) link->quiet_ns = now_ns - watch_ns;
    int64_t quiet = now_ns - link->quiet_ns;
    if (quiet >= config->dead_ns) {
        gang_link_fail(link, true, "rank %d: rank %d has been silent on all %d planes for %lld ms", config->rank, config->peer, config->planes,
                       (long long)(quiet / ms));
        return;
    }
    if (quiet >= config->hold_ns) enter(link, LINK_SUSPECT);
    int64_t limit_ns = link->quiet_ns + (quiet >= config->hold_ns ? config->dead_ns : config->hold_ns);
    *next_ns = min_ns(*next_ns, min_ns(limit_ns, now_ns + watch_ns));
}

static void advertise_small(struct gang_link *link) {
    link->lazy_post_ns = 0;
    for (int i = 0; i < link->channel_count; i++) {
        struct gang_channel *channel = link->channels[i];
        if (channel->recv_next <= channel->advertised || channel->recv_head == channel->recv_next) continue;
        channel->post_dirty = link->any_post_dirty = true;
    }
}

int64_t gang_link_tick(struct gang_link *link, int64_t now_ns) {
    if (link->state == LINK_DEAD) return never_ns;
    gang_link_woke(link, now_ns);
    int64_t next = never_ns;
    bool sound = judge_planes(link, now_ns, &next);
    judge_link(link, sound, now_ns, &next);
    if (link->state == LINK_DEAD) return never_ns;
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++) next = min_ns(next, tick_stream(link->streams[p][s], sound, now_ns));
    if (link->lazy_post_ns && link->lazy_post_ns <= now_ns) advertise_small(link);
    if (link->lazy_post_ns) next = min_ns(next, link->lazy_post_ns);
    if (gang_send_paced(link) > now_ns) next = min_ns(next, gang_send_paced(link));
    link->promised_ns = next;
    return next;
}

bool gang_link_flushed(const struct gang_link *link) {
    if (link->free_send_count < WIRE_OPS_MAX) return false;
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++)
            if (link->streams[p][s]->queue_count || link->streams[p][s]->ack_now) return false;
    return true;
}
