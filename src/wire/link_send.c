// What goes out: which operation, which chunk, and whether this plane is the one to take it.
//
// A large message waits until its receive is known to be posted, a small one until there is a credit or its receive is
// posted; then it is ready. Ready operations stand in one list per priority. A stream that can take bytes asks for the next
// frame and gets it unless the rest of the link would have sent everything there is before this plane could deliver
// it (earliest completion first): a slow plane must not hold the tail of a transfer.
//
// What is polite (bulk in no hurry, on a path that it shares with other links) is paced: each of its frames moves the time of
// the next by as long as its share of the rate takes to carry it. Meanwhile it does not stand in anybody's way.
#include "wire/link.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

// Chunks in flight per stream while the plane's rate is unknown, and at least. What is in flight on a plane that is cut must be
// sent again, behind what is in flight on the others: so no more than it takes.
enum { FLIGHT_CHUNKS_FIRST = 8, FLIGHT_CHUNKS_MIN = 4 };
static const double flight_slack_s = 0.002;       // for acknowledgements that dawdle
static const int64_t polite_slack_ns = 5000000;   // who comes late to its time may make up for so much
static const int64_t polite_first_ns = 100000000; // between frames while the rate is unknown

// ---- Sets of chunks ------------------------------------------------------------------------------------------------

static uint64_t *bits_of(struct gang_chunk_set *set) { return set->many ? set->many : set->few; }

bool gang_chunks_has(const struct gang_chunk_set *set, uint32_t index) {
    if (!set->many && index >= WIRE_INLINE_CHUNKS) return false;
    return (set->many ? set->many : set->few)[index / 64] >> (index % 64) & 1;
}

bool gang_chunks_add(struct gang_chunk_set *set, uint32_t chunks, uint32_t index) {
    assert(index < chunks);
    if (chunks > WIRE_INLINE_CHUNKS && !set->many) {
        set->many = calloc((chunks + 63) / 64, sizeof *set->many);
        assert(set->many && "out of memory");
    }
    if (gang_chunks_has(set, index)) return false;
    bits_of(set)[index / 64] |= (uint64_t)1 << (index % 64);
    set->count++;
    return true;
}

void gang_chunks_remove(struct gang_chunk_set *set, uint32_t index) {
    assert(gang_chunks_has(set, index));
    bits_of(set)[index / 64] &= ~((uint64_t)1 << (index % 64));
    set->count--;
}

uint32_t gang_chunks_first(const struct gang_chunk_set *set) {
    assert(set->count);
    const uint64_t *bits = set->many ? set->many : set->few;
    uint32_t word = 0;
    while (!bits[word]) word++;
    return word * 64 + (uint32_t)__builtin_ctzll(bits[word]);
}

void gang_chunks_clear(struct gang_chunk_set *set) {
    free(set->many);
    *set = (struct gang_chunk_set){0};
}

// ---- Lists of operations: circular, the head is first ----------------------------------------------------------------

static void list_append(struct gang_send **head, struct gang_send *op) {
    if (!*head) {
        *head = op->prev = op->next = op;
        return;
    }
    op->next = *head;
    op->prev = (*head)->prev;
    op->prev->next = op->next->prev = op;
}

// By age: what was lost goes first, and of it what the peer has waited for longest.
static void list_insert(struct gang_send **head, struct gang_send *op) {
    struct gang_send *at = *head;
    bool first = !at || op->age < at->age;
    while (at && !first && at->age < op->age && (at = at->next) != *head) {}
    list_append(at ? &at : head, op);
    if (first) *head = op;
}

static void list_remove(struct gang_send **head, struct gang_send *op) {
    op->prev->next = op->next;
    op->next->prev = op->prev;
    if (*head == op) *head = op->next == op ? NULL : op->next;
}

// ---- Starting ------------------------------------------------------------------------------------------------------

static uint64_t chunk_bytes(const struct gang_send *op, uint32_t chunk) {
    uint64_t offset = (uint64_t)chunk << op->chunk_log2;
    uint64_t left = op->bytes - offset, size = (uint64_t)1 << op->chunk_log2;
    return left < size ? left : size;
}

static void make_ready(struct gang_link *link, struct gang_send *op) {
    op->ready = true;
    link->backlog += op->bytes;
    list_append(&link->ready[op->priority], op);
}

// A copy of a small message frees the user's buffer at once; without a slot it is sent from where it is.
static void copy_eager(struct gang_link *link, struct gang_send *op) {
    if (!link->free_out_count) return;
    uint8_t *slot = link->slots_out + (size_t)link->free_out[--link->free_out_count] * ((size_t)link->config.eager_bytes + 1);
    if (op->bytes) memcpy(slot, op->data, op->bytes);
    op->data = slot;
    op->copied = true;
    link->hooks.complete(link->hooks.context, op->user, GANG_OK);
}

static void start(struct gang_link *link, struct gang_send *op) {
    if (op->message < op->channel->peer_posted) {
        make_ready(link, op);
    } else if (!op->eager) {
        list_append(&op->channel->waiting, op);
    } else if (link->credit_used < link->credit_limit) {
        link->credit_used++;
        op->credited = true;
        make_ready(link, op);
    } else {
        list_append(&link->credit_waiting, op);
    }
}

bool gang_link_room_to_send(const struct gang_link *link) { return link->free_send_count > 0; }

enum gang_status gang_link_send(struct gang_link *link, int64_t now_ns, uint32_t tag, int priority, const void *data, uint64_t bytes, void *user) {
    (void)now_ns;
    assert(priority >= 0 && priority < WIRE_PRIORITIES);
    if (bytes > WIRE_MESSAGE_MAX_BYTES)
        return gang_fail(GANG_ERR_INPUT, "send to rank %d: %llu bytes in one message: too many", link->config.peer, (unsigned long long)bytes);
    struct gang_channel *channel = link->state == LINK_DEAD ? NULL : gang_link_channel(link, tag);
    if (!channel) return gang_fail(GANG_ERR_PEER, "%s", link->error);
    if (!link->free_send_count)
        return gang_fail(GANG_ERR_MEMORY, "send to rank %d: %d sends are outstanding already", link->config.peer, WIRE_OPS_MAX);
    struct gang_send *op = &link->sends[link->free_sends[--link->free_send_count]];
    uint32_t generation = op->generation;
    *op = (struct gang_send){.user = user,
                             .data = data,
                             .bytes = bytes,
                             .message = channel->send_next++,
                             .age = link->sends_started++,
                             .channel = channel,
                             .generation = generation,
                             .priority = (uint8_t)priority,
                             .busy = true,
                             .chunk_log2 = (uint8_t)link->config.chunk_log2};
    op->eager = bytes <= (uint64_t)link->config.eager_bytes;
    while (bytes > (uint64_t)WIRE_CHUNKS_MAX << op->chunk_log2) op->chunk_log2++;
    op->chunks = op->eager ? 1 : (uint32_t)((bytes + ((uint64_t)1 << op->chunk_log2) - 1) >> op->chunk_log2);
    if (op->eager) copy_eager(link, op);
    link->long_ops += !op->eager;
    start(link, op);
    return GANG_OK;
}

// ---- Leave to send -------------------------------------------------------------------------------------------------

void gang_send_granted(struct gang_link *link, struct gang_channel *channel, uint64_t posted) {
    if (posted <= channel->peer_posted) return;
    channel->peer_posted = posted;
    while (channel->waiting && channel->waiting->message < posted) {
        struct gang_send *op = channel->waiting;
        list_remove(&channel->waiting, op);
        make_ready(link, op);
    }
    struct gang_send *op = link->credit_waiting, *last = op ? op->prev : NULL;
    while (op) {
        struct gang_send *next = op == last ? NULL : op->next;
        if (op->channel == channel && op->message < posted) {
            list_remove(&link->credit_waiting, op);
            make_ready(link, op);
        }
        op = next;
    }
}

void gang_send_credit(struct gang_link *link, uint64_t limit) {
    if (limit <= link->credit_limit) return;
    link->credit_limit = limit;
    while (link->credit_waiting && link->credit_used < limit) {
        struct gang_send *op = link->credit_waiting;
        list_remove(&link->credit_waiting, op);
        link->credit_used++;
        op->credited = true;
        make_ready(link, op);
    }
}

// ---- Sending -------------------------------------------------------------------------------------------------------

// Twice what fills the path.
double gang_plane_span_s(const struct gang_plane *plane) { return 2 * ((double)plane->min_rtt_ns * 1e-9 + flight_slack_s); }

// What a stream of this plane may have in flight. Where data comes back on the same plane, reports stand behind it.
static double flight_limit(const struct gang_link *link, const struct gang_plane *plane, const struct gang_send *op, int64_t now_ns) {
    uint64_t chunk = (uint64_t)1 << link->config.chunk_log2;
    double span_s = gang_plane_span_s(plane);
    if ((double)(now_ns - plane->chunk_ns) * 1e-9 < span_s) span_s *= 2;
    double path = plane->rate * span_s / (plane->ups ? plane->ups : 1);
    if (!op->eager && op->bytes < chunk) chunk = op->bytes;
    double least = (double)((uint64_t)(plane->rate > 0 ? FLIGHT_CHUNKS_MIN : FLIGHT_CHUNKS_FIRST) * chunk);
    return path > least ? path : least;
}

// When this plane would have delivered `bytes` more, in seconds from now.
static double finish_s(const struct gang_plane *plane, double bytes) {
    return ((double)plane->flight_bytes + bytes) / plane->rate + (double)plane->srtt_ns * 0.5e-9;
}

// Whether the other planes together would be done with all there is before this plane could deliver one chunk. Only a
// plane that is beaten by a single other one stands back, so that the best never does and there is always one that sends.
static bool others_are_sooner(const struct gang_link *link, int plane, uint64_t bytes) {
    const struct gang_plane *mine = &link->planes[plane];
    if (mine->rate <= 0) return false;
    double ours = finish_s(mine, (double)bytes), rate = 0, flight = 0, soonest_rtt = 1e9;
    bool beaten = false;
    for (int p = 0; p < link->config.planes; p++) {
        const struct gang_plane *other = &link->planes[p];
        if (p == plane || !other->ups || other->rate <= 0) continue;
        rate += other->rate;
        flight += (double)other->flight_bytes;
        double rtt = (double)other->srtt_ns * 1e-9;
        soonest_rtt = rtt < soonest_rtt ? rtt : soonest_rtt;
        beaten = beaten || finish_s(other, (double)bytes) < ours;
    }
    return beaten && ours > (flight + (double)link->backlog) / rate + soonest_rtt / 2;
}

void gang_link_pace(struct gang_link *link, double share) {
    link->polite_share = share;
    link->polite_ns = 0;
}

int64_t gang_send_paced(const struct gang_link *link) { return link->polite_share > 0 && link->ready[WIRE_POLITE] ? link->polite_ns : INT64_MAX; }

bool gang_send_unpaced(const struct gang_link *link) {
    for (int p = 0; p < WIRE_PRIORITIES; p++)
        if (link->ready[p] && (p != WIRE_POLITE || !link->polite_share)) return true;
    return false;
}

static void pace(struct gang_link *link, uint64_t bytes, int64_t now_ns) {
    double rate = 0;
    for (int p = 0; p < link->config.planes; p++) rate += link->planes[p].ups ? gang_plane_rate(&link->planes[p]) : 0;
    if (link->polite_ns < now_ns - polite_slack_ns) link->polite_ns = now_ns - polite_slack_ns;
    link->polite_ns += rate > 0 ? (int64_t)((double)bytes / (link->polite_share * rate) * 1e9) : polite_first_ns;
}

static struct gang_send *first_ready(struct gang_link *link, int64_t now_ns) {
    for (int p = 0; p < WIRE_PRIORITIES; p++)
        if (link->ready[p] && (p != WIRE_POLITE || !link->polite_share || link->polite_ns <= now_ns)) return link->ready[p];
    return NULL;
}

bool gang_send_next(struct gang_stream *stream, int64_t now_ns) {
    struct gang_link *link = stream->link;
    struct gang_send *op = first_ready(link, now_ns);
    if (!op) return false;
    uint32_t chunk = op->lost.count ? gang_chunks_first(&op->lost) : op->fresh;
    uint64_t bytes = chunk_bytes(op, chunk);
    // One may always be in flight: a very long message's chunks may each be more than the limit.
    if (stream->flight_bytes && (double)stream->flight_bytes + (double)bytes > flight_limit(link, &link->planes[stream->plane], op, now_ns))
        return false;
    if (others_are_sooner(link, stream->plane, bytes)) return false;
    if (op->lost.count) {
        gang_chunks_remove(&op->lost, chunk);
    } else {
        op->fresh++;
    }
    if (!op->lost.count && op->fresh == op->chunks) {
        list_remove(&link->ready[op->priority], op);
        op->ready = false;
    }
    link->backlog -= bytes;
    if (op->priority == WIRE_POLITE && link->polite_share > 0) pace(link, bytes, now_ns);
    uint64_t offset = (uint64_t)chunk << op->chunk_log2;
    struct gang_frame frame = {
        .type = op->eager ? WIRE_EAGER : WIRE_CHUNK,
        .flags = op->credited ? WIRE_FLAG_CREDITED : 0,
        .chunk_log2 = op->chunk_log2,
        .tag = op->channel->tag,
        .payload_bytes = (uint32_t)bytes,
        .payload_crc = stream->trusted ? 0 : gang_crc32c(op->data + offset, bytes),
        .message = op->message,
        .total = op->bytes,
        .offset = offset,
    };
    struct gang_flight flight = {
        .kind = frame.type, .index = (uint16_t)(op - link->sends), .generation = op->generation, .chunk = chunk, .bytes = (uint32_t)bytes};
    gang_stream_push(stream, &frame, &flight, now_ns)->payload = op->data + offset;
    return true;
}

static struct gang_send *op_of(struct gang_link *link, const struct gang_flight *flight) {
    struct gang_send *op = &link->sends[flight->index];
    assert(op->busy && op->generation == flight->generation);
    return op;
}

static void finish(struct gang_link *link, struct gang_send *op, enum gang_status status) {
    if (op->copied) {
        link->free_out[link->free_out_count++] = (uint16_t)((size_t)(op->data - link->slots_out) / ((size_t)link->config.eager_bytes + 1));
    } else if (!op->cancelled) {
        link->hooks.complete(link->hooks.context, op->user, status);
    }
    for (int p = 0; p < link->config.planes && op->cancelled; p++)
        for (int s = 0; s < link->config.streams; s++) free(op->aside[p][s]);
    gang_chunks_clear(&op->lost);
    link->long_ops -= !op->eager;
    op->busy = op->ready = false;
    op->generation++;
    link->free_sends[link->free_send_count++] = (uint16_t)(op - link->sends);
}

void gang_send_acked(struct gang_link *link, const struct gang_flight *flight) {
    struct gang_send *op = op_of(link, flight);
    if (++op->acked == op->chunks) finish(link, op, GANG_OK);
}

void gang_send_lost(struct gang_link *link, const struct gang_flight *flight) {
    struct gang_send *op = op_of(link, flight);
    if (op->cancelled) {
        gang_send_acked(link, flight);
        return;
    }
    bool added = gang_chunks_add(&op->lost, op->chunks, flight->chunk);
    assert(added);
    link->backlog += flight->bytes;
    if (op->ready) return;
    op->ready = true;
    list_insert(&link->ready[op->priority], op);
}

// Frames of the operation that stand in a stream's queue keep bytes of their own: they may be half sent.
static void set_aside(struct gang_stream *stream, struct gang_send *op) {
    size_t bytes = 0;
    struct gang_out_frame *frames[WIRE_QUEUE_FRAMES];
    int count = 0;
    for (unsigned i = 0; i < stream->queue_count; i++) {
        struct gang_out_frame *out = &stream->queue[(stream->queue_head + i) % WIRE_QUEUE_FRAMES];
        const struct gang_flight *flight = &stream->flights[out->number % WIRE_PN_WINDOW]; // what has not left is not resolved either
        bool data = out->number && (flight->kind == WIRE_CHUNK || flight->kind == WIRE_EAGER);
        if (!data || !out->payload_bytes || &stream->link->sends[flight->index] != op || flight->generation != op->generation) continue;
        frames[count++] = out;
        bytes += out->payload_bytes;
    }
    if (!count) return;
    uint8_t *to = op->aside[stream->plane][stream->index] = malloc(bytes);
    assert(to && "out of memory");
    for (int i = 0; i < count; i++) {
        memcpy(to, frames[i]->payload, frames[i]->payload_bytes);
        frames[i]->payload = to;
        to += frames[i]->payload_bytes;
    }
}

static void cancel_send(struct gang_link *link, struct gang_send *op) {
    uint64_t unsent = op->fresh < op->chunks ? op->bytes - ((uint64_t)op->fresh << op->chunk_log2) : 0;
    if (op->ready) {
        list_remove(&link->ready[op->priority], op);
        while (op->lost.count) {
            uint32_t chunk = gang_chunks_first(&op->lost);
            unsent += chunk_bytes(op, chunk);
            gang_chunks_remove(&op->lost, chunk);
            op->acked++;
        }
        link->backlog -= unsent;
    } else if (op->fresh < op->chunks) {
        list_remove(op->eager ? &link->credit_waiting : &op->channel->waiting, op);
    }
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++) set_aside(link->streams[p][s], op);
    op->ready = false;
    op->cancelled = true;
    op->chunks = op->fresh;
    link->hooks.complete(link->hooks.context, op->user, GANG_ERR_PEER);
    if (op->acked == op->chunks) finish(link, op, GANG_ERR_PEER);
}

void gang_link_cancel(struct gang_link *link, void *user) {
    if (gang_recv_cancel(link, user)) return;
    for (int i = 0; i < WIRE_OPS_MAX; i++) {
        struct gang_send *op = &link->sends[i];
        if (!op->busy || op->user != user || op->copied || op->cancelled) continue;
        cancel_send(link, op);
        return;
    }
}

void gang_send_abort(struct gang_link *link) {
    for (int i = 0; i < WIRE_OPS_MAX; i++)
        if (link->sends[i].busy) finish(link, &link->sends[i], GANG_ERR_PEER);
    for (int p = 0; p < WIRE_PRIORITIES; p++) link->ready[p] = NULL;
    for (int i = 0; i < link->channel_count; i++) link->channels[i]->waiting = NULL;
    link->credit_waiting = NULL;
    link->backlog = 0;
}
