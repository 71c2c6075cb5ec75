// From bytes to frames and back to their places. Headers and small payloads pass through the staging buffer; a chunk's
// payload goes straight to where the posted receive wants it, all but what came together with its header.
#include "wire/link.h"

#include <assert.h>
#include <string.h>

enum { LARGE_BYTES = 32 << 10 }; // behind a payload of this size another like it is expected: read only its header along

static size_t remaining(const struct gang_landing *landing) { return landing->frame.payload_bytes - landing->got; }

int gang_stream_space(struct gang_stream *stream, struct iovec iov[2]) {
    struct gang_landing *landing = &stream->landing;
    if (stream->start == stream->end) stream->start = stream->end = 0;
    if (landing->mode == LANDING_DIRECT || landing->mode == LANDING_SINK) {
        assert(!stream->end);
        size_t left = remaining(landing);
        if (landing->mode == LANDING_DIRECT) {
            iov[0] = (struct iovec){landing->to + landing->got, left};
        } else {
            iov[0] = (struct iovec){stream->link->sink, left < WIRE_STAGING_BYTES ? left : WIRE_STAGING_BYTES};
            if (left > WIRE_STAGING_BYTES) return 1;
        }
        iov[1] = (struct iovec){stream->staging, landing->frame.payload_bytes >= LARGE_BYTES ? WIRE_HEADER_BYTES : WIRE_STAGING_BYTES};
        return 2;
    }
    if (stream->start) {
        memmove(stream->staging, stream->staging + stream->start, stream->end - stream->start);
        stream->end -= stream->start;
        stream->start = 0;
    }
    iov[0] = (struct iovec){stream->staging + stream->end, WIRE_STAGING_BYTES - stream->end};
    return 1;
}

size_t gang_stream_awaits(const struct gang_stream *stream) {
    const struct gang_landing *landing = &stream->landing;
    return landing->mode == LANDING_DIRECT || landing->mode == LANDING_SINK ? remaining(landing) : 1;
}

// Takes one step with the bytes in staging. False: more are needed, or (*sound false) the stream is broken.
static bool step(struct gang_stream *stream, int64_t now_ns, bool *sound) {
    struct gang_landing *landing = &stream->landing;
    size_t have = stream->end - stream->start;
    const uint8_t *at = stream->staging + stream->start;
    if (landing->mode == LANDING_NONE) {
        if (have < WIRE_HEADER_BYTES) return false;
        *sound = !gang_frame_decode(at, &landing->frame);
        if (!*sound) return false;
        stream->start += WIRE_HEADER_BYTES;
        gang_recv_frame(stream);
        return stream->up;
    }
    size_t left = landing->mode == LANDING_STAGED ? landing->frame.payload_bytes : remaining(landing);
    const uint8_t *payload = landing->mode == LANDING_DIRECT ? landing->to : at;
    if (landing->mode == LANDING_STAGED) {
        if (have < left) return false;
        stream->start += left;
    } else {
        size_t n = have < left ? have : left;
        if (landing->mode == LANDING_DIRECT && n) memcpy(landing->to + landing->got, at, n);
        landing->got += (uint32_t)n;
        stream->start += n;
        if (n < left) return false;
    }
    *sound = gang_recv_payload(stream, payload, now_ns);
    landing->mode = LANDING_NONE;
    return *sound && stream->up;
}

bool gang_stream_came(struct gang_stream *stream, size_t bytes, int64_t now_ns) {
    struct gang_landing *landing = &stream->landing;
    gang_link_woke(stream->link, now_ns);
    stream->rx_bytes += bytes;
    if (bytes) gang_stream_heard(stream, now_ns);
    if (landing->mode == LANDING_DIRECT || landing->mode == LANDING_SINK) {
        size_t n = bytes < remaining(landing) ? bytes : remaining(landing);
        landing->got += (uint32_t)n;
        bytes -= n;
    }
    stream->end += bytes;
    assert(stream->end <= WIRE_STAGING_BYTES);
    bool sound = true;
    while (stream->up && step(stream, now_ns, &sound)) {}
    return sound;
}
