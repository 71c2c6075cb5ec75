// What comes in: where its payload goes, whether it is known already, and what it completes.
#include "wire/link.h"

#include <assert.h>
#include <string.h>

static const int64_t lazy_post_ns = 1000000; // small receives are advertised this late, and together
static const int64_t small_ack_ns = 1000000;
enum { CREDITS_PER_FRAME = 4 }; // credit is granted when a fourth of it is back

static size_t slot_stride(const struct gang_link *link) { return (size_t)link->config.eager_bytes + 1; }

// ---- Channels and receives -----------------------------------------------------------------------------------------

static uint16_t *arrived(struct gang_channel *channel, uint64_t message) { return &channel->arrived[message % WIRE_SEQ_WINDOW]; }

static void complete_message(struct gang_link *link, struct gang_channel *channel, uint64_t message, void *user, enum gang_status status) {
    *arrived(channel, message) = SLOT_DONE;
    while (*arrived(channel, channel->recv_head) == SLOT_DONE) *arrived(channel, channel->recv_head++) = SLOT_EMPTY;
    link->hooks.complete(link->hooks.context, user, status);
}

static void credit_back(struct gang_link *link) {
    link->credited_done++;
    uint64_t slots = (uint64_t)link->config.eager_slots, back = link->credited_done + slots - link->credit_told;
    if (back * CREDITS_PER_FRAME >= slots) link->credit_dirty = true;
}

static void sizes_differ(struct gang_link *link, uint32_t tag, uint64_t message, uint64_t sent, uint64_t expected) {
    gang_link_fail(link, true, "rank %d: message %llu of tag %u: rank %d sends %llu bytes and rank %d expects %llu", link->config.rank,
                   (unsigned long long)message, tag, link->config.peer, (unsigned long long)sent, link->config.rank, (unsigned long long)expected);
}

static void violation(struct gang_link *link, const char *what) {
    gang_link_fail(link, true, "rank %d: rank %d broke the protocol: %s", link->config.rank, link->config.peer, what);
}

// A small message came before its receive was posted.
static enum gang_status take_waiting(struct gang_link *link, struct gang_channel *channel, uint64_t message, void *data, uint64_t bytes, void *user) {
    unsigned slot = *arrived(channel, message) & ~(unsigned)SLOT_EAGER;
    if (link->slot_bytes[slot] != bytes) {
        sizes_differ(link, channel->tag, message, link->slot_bytes[slot], bytes);
        return gang_fail(GANG_ERR_PEER, "%s", link->error);
    }
    if (bytes) memcpy(data, link->slots_in + slot * slot_stride(link), bytes);
    link->free_in[link->free_in_count++] = (uint16_t)slot;
    credit_back(link);
    complete_message(link, channel, message, user, GANG_OK);
    return GANG_OK;
}

bool gang_link_room_to_recv(const struct gang_link *link) { return link->free_recv_count > 0; }

enum gang_status gang_link_recv(struct gang_link *link, int64_t now_ns, uint32_t tag, void *data, uint64_t bytes, void *user) {
    if (bytes > WIRE_MESSAGE_MAX_BYTES)
        return gang_fail(GANG_ERR_INPUT, "receive from rank %d: %llu bytes in one message: too many", link->config.peer, (unsigned long long)bytes);
    struct gang_channel *channel = link->state == LINK_DEAD ? NULL : gang_link_channel(link, tag);
    if (!channel) return gang_fail(GANG_ERR_PEER, "%s", link->error);
    if (!link->free_recv_count || channel->recv_next - channel->recv_head >= WIRE_OPS_MAX)
        return gang_fail(GANG_ERR_MEMORY, "receive from rank %d: %d receives are outstanding already", link->config.peer, WIRE_OPS_MAX);
    uint64_t message = channel->recv_next++;
    if (*arrived(channel, message) & SLOT_EAGER) return take_waiting(link, channel, message, data, bytes, user);
    uint16_t index = link->free_recvs[--link->free_recv_count];
    link->recvs[index] = (struct gang_recv){.user = user, .data = data, .bytes = bytes, .message = message, .channel = channel, .busy = true};
    *arrived(channel, message) = (uint16_t)(index + 1);
    if (bytes > (uint64_t)link->config.eager_bytes) {
        link->long_ops++;
        channel->post_dirty = link->any_post_dirty = true;
    } else if (!link->lazy_post_ns) {
        link->lazy_post_ns = now_ns + lazy_post_ns;
    }
    return GANG_OK;
}

int64_t gang_link_owes(const struct gang_link *link, int64_t now_ns) {
    if (link->any_post_dirty || link->credit_dirty) return now_ns;
    return link->lazy_post_ns ? link->lazy_post_ns : INT64_MAX;
}

static void release(struct gang_link *link, struct gang_recv *recv) {
    gang_chunks_clear(&recv->done);
    link->long_ops -= recv->bytes > (uint64_t)link->config.eager_bytes;
    recv->busy = false;
    link->free_recvs[link->free_recv_count++] = (uint16_t)(recv - link->recvs);
}

static void complete_recv(struct gang_link *link, struct gang_recv *recv) {
    struct gang_channel *channel = recv->channel;
    uint64_t message = recv->message;
    void *user = recv->user;
    release(link, recv);
    complete_message(link, channel, message, user, GANG_OK);
}

void gang_recv_abort(struct gang_link *link) {
    for (int i = 0; i < WIRE_OPS_MAX; i++) {
        if (!link->recvs[i].busy) continue;
        void *user = link->recvs[i].user;
        release(link, &link->recvs[i]);
        link->hooks.complete(link->hooks.context, user, GANG_ERR_PEER);
    }
}

// The message counts as done: what still comes of it is known already and goes to the sink.
bool gang_recv_cancel(struct gang_link *link, void *user) {
    struct gang_recv *recv = NULL;
    for (int i = 0; i < WIRE_OPS_MAX && !recv; i++)
        if (link->recvs[i].busy && link->recvs[i].user == user) recv = &link->recvs[i];
    if (!recv) return false;
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++) {
            struct gang_landing *landing = &link->streams[p][s]->landing;
            if (landing->mode != LANDING_DIRECT || landing->recv != recv) continue;
            landing->mode = LANDING_SINK;
            landing->known = true;
        }
    struct gang_channel *channel = recv->channel;
    uint64_t message = recv->message;
    release(link, recv);
    complete_message(link, channel, message, user, GANG_ERR_PEER);
    return true;
}

// ---- Headers -------------------------------------------------------------------------------------------------------

static void mark_good(struct gang_stream *stream, uint64_t number) {
    stream->rx_good[number / 64 % (WIRE_PN_WINDOW / 64)] |= (uint64_t)1 << (number % 64);
}

// Moves the window up to what the sender says is its lowest unresolved frame. False: this frame came before.
static bool note_number(struct gang_stream *stream, const struct gang_frame *frame) {
    uint64_t floor = frame->number - frame->floor_back;
    if (floor > stream->rx_floor) {
        if (floor - stream->rx_floor >= WIRE_PN_WINDOW) {
            memset(stream->rx_good, 0, sizeof stream->rx_good);
        } else {
            for (uint64_t n = stream->rx_floor; n < floor; n++) stream->rx_good[n / 64 % (WIRE_PN_WINDOW / 64)] &= ~((uint64_t)1 << (n % 64));
        }
        stream->rx_floor = floor;
    }
    return frame->number >= stream->rx_floor && !(stream->rx_good[frame->number / 64 % (WIRE_PN_WINDOW / 64)] >> (frame->number % 64) & 1);
}

// Takes the chunk's place away from a stream that is still bringing an earlier copy.
static void take_over(struct gang_link *link, const struct gang_recv *recv, uint32_t chunk) {
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++) {
            struct gang_landing *other = &link->streams[p][s]->landing;
            if (other->mode == LANDING_DIRECT && other->recv == recv && other->chunk == chunk) other->mode = LANDING_SINK;
        }
}

static void land_chunk(struct gang_stream *stream, struct gang_channel *channel) {
    struct gang_link *link = stream->link;
    struct gang_landing *landing = &stream->landing;
    const struct gang_frame *f = &landing->frame;
    uint16_t slot = f->message < channel->recv_head ? SLOT_DONE : *arrived(channel, f->message);
    landing->known = slot == SLOT_DONE;
    if (landing->known) return;
    if (slot == SLOT_EMPTY || slot & SLOT_EAGER) {
        violation(link, "a chunk came for which no receive is posted");
        return;
    }
    struct gang_recv *recv = &link->recvs[slot - 1];
    if (f->total != recv->bytes) {
        sizes_differ(link, f->tag, f->message, f->total, recv->bytes);
        return;
    }
    if (!recv->chunk_log2) {
        recv->chunk_log2 = f->chunk_log2;
        recv->chunks = (uint32_t)((recv->bytes + ((uint64_t)1 << f->chunk_log2) - 1) >> f->chunk_log2);
    }
    if (recv->chunk_log2 != f->chunk_log2) {
        violation(link, "the chunk size changed within a message");
        return;
    }
    uint32_t chunk = (uint32_t)(f->offset >> f->chunk_log2);
    landing->known = gang_chunks_has(&recv->done, chunk);
    if (landing->known) return;
    take_over(link, recv, chunk);
    landing->mode = LANDING_DIRECT;
    landing->recv = recv;
    landing->chunk = chunk;
    landing->to = recv->data + f->offset;
}

void gang_recv_frame(struct gang_stream *stream) {
    struct gang_link *link = stream->link;
    struct gang_landing *landing = &stream->landing;
    const struct gang_frame *f = &landing->frame;
    landing->mode = LANDING_SINK;
    landing->got = 0;
    landing->known = false;
    if (f->type == WIRE_HELLO) {
        violation(link, "a second hello");
        return;
    }
    if (f->epoch != stream->epoch && f->type != WIRE_BYE) {
        landing->frame.type = 0; // from an earlier life of the stream
        return;
    }
    if (f->number && !note_number(stream, f)) {
        landing->frame.type = 0;
        stream->ack_now = true; // it was sent again, so our acknowledgement may be lost
        return;
    }
    if (f->type != WIRE_CHUNK && f->type != WIRE_EAGER) {
        landing->mode = LANDING_STAGED;
        return;
    }
    struct gang_channel *channel = gang_link_channel(link, f->tag);
    if (!channel) return;
    if (f->message >= channel->recv_head + WIRE_SEQ_WINDOW) {
        violation(link, "a message is too far ahead");
    } else if (f->type == WIRE_CHUNK) {
        land_chunk(stream, channel);
    } else {
        landing->mode = LANDING_STAGED;
    }
}

// ---- Payload -------------------------------------------------------------------------------------------------------

static void keep_eager(struct gang_link *link, const struct gang_frame *f, uint16_t *slot, const uint8_t *payload) {
    if (!(f->flags & WIRE_FLAG_CREDITED) || !link->free_in_count || f->total > (uint64_t)link->config.eager_bytes) {
        violation(link, "a small message came without credit");
        return;
    }
    uint16_t free_slot = link->free_in[--link->free_in_count];
    memcpy(link->slots_in + free_slot * slot_stride(link), payload, f->total);
    link->slot_bytes[free_slot] = (uint32_t)f->total;
    *slot = (uint16_t)(SLOT_EAGER | free_slot);
}

static void take_eager(struct gang_link *link, const struct gang_frame *f, const uint8_t *payload) {
    struct gang_channel *channel = gang_link_channel(link, f->tag);
    if (!channel || f->message < channel->recv_head) return;
    uint16_t *slot = arrived(channel, f->message);
    if (*slot & SLOT_EAGER) return; // here already, waiting or done
    if (f->flags & WIRE_FLAG_CREDITED && ++link->credited_in > link->credit_told) {
        violation(link, "more small messages than credit");
        return;
    }
    if (*slot == SLOT_EMPTY) {
        keep_eager(link, f, slot, payload);
        return;
    }
    struct gang_recv *recv = &link->recvs[*slot - 1];
    if (f->total != recv->bytes) {
        sizes_differ(link, f->tag, f->message, f->total, recv->bytes);
        return;
    }
    if (f->total) memcpy(recv->data, payload, f->total);
    if (f->flags & WIRE_FLAG_CREDITED) credit_back(link);
    complete_recv(link, recv);
}

static void take_chunk(struct gang_stream *stream) {
    struct gang_recv *recv = stream->landing.recv;
    bool added = gang_chunks_add(&recv->done, recv->chunks, stream->landing.chunk);
    assert(added);
    stream->landing.mode = LANDING_NONE;
    if (recv->done.count == recv->chunks) complete_recv(stream->link, recv);
}

static void take_post(struct gang_link *link, const struct gang_frame *f) {
    struct gang_channel *channel = gang_link_channel(link, f->tag);
    if (!channel) return;
    if (f->message > channel->send_next + WIRE_OPS_MAX) {
        violation(link, "more receives posted than it may have");
        return;
    }
    gang_send_granted(link, channel, f->message);
}

static bool take_control(struct gang_stream *stream, const uint8_t *payload, int64_t now_ns) {
    struct gang_link *link = stream->link;
    const struct gang_frame *f = &stream->landing.frame;
    struct gang_ack ack;
    switch (f->type) {
    case WIRE_POST:
        take_post(link, f);
        return true;
    case WIRE_CREDIT:
        if (f->message > link->credit_used + (uint64_t)link->config.eager_slots) return false;
        gang_send_credit(link, f->message);
        return true;
    case WIRE_ACK:
        stream->rx_reported += WIRE_HEADER_BYTES + f->payload_bytes; // reports ask for no report, or they would never end
        return !gang_ack_decode(payload, f->payload_bytes, &ack) && gang_stream_acked(stream, &ack, now_ns);
    case WIRE_BYE:
        link->peer_left = true;
        if (f->payload_bytes)
            gang_link_fail(link, false, "rank %d ended the link: %.*s", link->config.peer, (int)f->payload_bytes, (const char *)payload);
        return true;
    default:
        return true;
    }
}

bool gang_recv_payload(struct gang_stream *stream, const uint8_t *payload, int64_t now_ns) {
    struct gang_link *link = stream->link;
    struct gang_landing *landing = &stream->landing;
    const struct gang_frame *f = &landing->frame;
    uint8_t type = f->type;
    bool small = type == WIRE_EAGER || type == WIRE_POST || type == WIRE_CREDIT;
    if (!type) return true;
    // What is here already needs no second look; a stream that lost its place brought nothing.
    bool data = type == WIRE_CHUNK || type == WIRE_EAGER, checked = !(stream->trusted && data);
    bool good = landing->mode == LANDING_SINK ? landing->known : !checked || gang_crc32c(payload, f->payload_bytes) == f->payload_crc;
    if (f->number) {
        if (f->number > stream->rx_largest) stream->rx_largest = f->number;
        if (small && good) {
            if (!stream->ack_count++) stream->ack_due_ns = now_ns + small_ack_ns;
        } else {
            stream->ack_now = true;
        }
    }
    if (!good) return true;
    if (f->number) mark_good(stream, f->number);
    if (landing->mode == LANDING_SINK) return true;
    if (type == WIRE_CHUNK) {
        link->planes[stream->plane].chunk_ns = now_ns;
        take_chunk(stream);
    } else if (type == WIRE_EAGER) {
        take_eager(link, f, payload);
    } else {
        return take_control(stream, payload, now_ns);
    }
    return true;
}
