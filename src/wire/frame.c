// Encoding and decoding of frames. Every byte that comes in is hostile until it has passed here.
#include "wire/frame.h"

#include <string.h>

static const uint8_t magic[4] = {'G', 'L', 'W', '1'};

static void put(uint8_t *to, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) to[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *from, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)from[i] << (8 * i);
    return value;
}

// Header: magic 4, version 1, type 1, flags 1, chunk_log2 1, number 8, floor_back 4, epoch 4, tag 4, payload_bytes 4,
// message 8, total 8, offset 8, payload_crc 4, header_crc 4.
void gang_frame_encode(const struct gang_frame *f, uint8_t h[WIRE_HEADER_BYTES]) {
    memcpy(h, magic, 4);
    h[4] = WIRE_VERSION;
    h[5] = f->type;
    h[6] = f->flags;
    h[7] = f->chunk_log2;
    put(h + 8, f->number, 8);
    put(h + 16, f->floor_back, 4);
    put(h + 20, f->epoch, 4);
    put(h + 24, f->tag, 4);
    put(h + 28, f->payload_bytes, 4);
    put(h + 32, f->message, 8);
    put(h + 40, f->total, 8);
    put(h + 48, f->offset, 8);
    put(h + 56, f->payload_crc, 4);
    put(h + 60, gang_crc32c(h, 60), 4);
}

static const char *check_chunk(const struct gang_frame *f) {
    if (f->chunk_log2 < WIRE_CHUNK_LOG2_MIN || f->chunk_log2 > WIRE_CHUNK_LOG2_MAX) return "the chunk size is out of range";
    uint64_t chunk = (uint64_t)1 << f->chunk_log2;
    if (f->total > WIRE_MESSAGE_MAX_BYTES || f->total > chunk * WIRE_CHUNKS_MAX) return "the message is too long";
    if (f->offset >= f->total || f->offset % chunk) return "the offset is not that of a chunk";
    uint64_t left = f->total - f->offset;
    return f->payload_bytes != (left < chunk ? left : chunk) ? "the payload is not one chunk" : NULL;
}

static const char *check_fields(const struct gang_frame *f) {
    bool numbered = f->type != WIRE_HELLO && f->type != WIRE_ACK && f->type != WIRE_BYE;
    if (numbered != (f->number != 0)) return "the frame number does not fit the type";
    if (numbered && (f->floor_back >= WIRE_PN_WINDOW || f->floor_back >= f->number)) return "the window is too wide";
    switch (f->type) {
    case WIRE_HELLO:
        return f->payload_bytes != WIRE_HELLO_BYTES ? "the hello has a wrong length" : NULL;
    case WIRE_CHUNK:
        return check_chunk(f);
    case WIRE_EAGER:
        return f->payload_bytes > WIRE_EAGER_MAX_BYTES || f->total != f->payload_bytes || f->offset ? "the small message has a wrong length" : NULL;
    case WIRE_POST:
    case WIRE_CREDIT:
    case WIRE_PING:
        return f->payload_bytes ? "the frame must be empty" : NULL;
    case WIRE_ACK:
        return f->payload_bytes < WIRE_ACK_FIXED_BYTES || f->payload_bytes > WIRE_ACK_MAX_BYTES || f->payload_bytes % 8
                   ? "the acknowledgement has a wrong length"
                   : NULL;
    case WIRE_BYE:
        return f->payload_bytes > WIRE_BYE_MAX_BYTES ? "the farewell is too long" : NULL;
    default:
        return "the type is unknown";
    }
}

enum gang_status gang_frame_decode(const uint8_t h[WIRE_HEADER_BYTES], struct gang_frame *f) {
    if (memcmp(h, magic, 4) != 0) return gang_fail(GANG_ERR_FORMAT, "frame: not Gangline's wire: the magic is wrong");
    if (get(h + 60, 4) != gang_crc32c(h, 60)) return gang_fail(GANG_ERR_FORMAT, "frame: the header is damaged");
    if (h[4] != WIRE_VERSION) return gang_fail(GANG_ERR_UNSUPPORTED, "frame: version %d; this program speaks %d", h[4], WIRE_VERSION);
    *f = (struct gang_frame){
        .type = h[5],
        .flags = h[6],
        .chunk_log2 = h[7],
        .number = get(h + 8, 8),
        .floor_back = (uint32_t)get(h + 16, 4),
        .epoch = (uint32_t)get(h + 20, 4),
        .tag = (uint32_t)get(h + 24, 4),
        .payload_bytes = (uint32_t)get(h + 28, 4),
        .message = get(h + 32, 8),
        .total = get(h + 40, 8),
        .offset = get(h + 48, 8),
        .payload_crc = (uint32_t)get(h + 56, 4),
    };
    const char *problem = check_fields(f);
    return problem ? gang_fail(GANG_ERR_FORMAT, "frame of type %d: %s", f->type, problem) : GANG_OK;
}

size_t gang_ack_encode(const struct gang_ack *ack, uint8_t payload[WIRE_ACK_MAX_BYTES]) {
    size_t words = ack->largest < ack->base ? 0 : (size_t)(ack->largest - ack->base) / 64 + 1;
    put(payload, ack->largest, 8);
    put(payload + 8, ack->base, 8);
    put(payload + 16, ack->rx_bytes, 8);
    for (size_t i = 0; i < words; i++) put(payload + WIRE_ACK_FIXED_BYTES + 8 * i, ack->good[i], 8);
    return WIRE_ACK_FIXED_BYTES + 8 * words;
}

enum gang_status gang_ack_decode(const uint8_t *payload, size_t bytes, struct gang_ack *ack) {
    *ack = (struct gang_ack){.largest = get(payload, 8), .base = get(payload + 8, 8), .rx_bytes = get(payload + 16, 8)};
    size_t words = (bytes - WIRE_ACK_FIXED_BYTES) / 8;
    bool empty = ack->largest < ack->base;
    if (empty ? words != 0 : ack->largest - ack->base >= WIRE_PN_WINDOW || words != (ack->largest - ack->base) / 64 + 1)
        return gang_fail(GANG_ERR_FORMAT, "frame: the acknowledgement's bits do not fit its numbers");
    for (size_t i = 0; i < words; i++) ack->good[i] = get(payload + WIRE_ACK_FIXED_BYTES + 8 * i, 8);
    return GANG_OK;
}

// Hello: version_min 4, version_max 4, from 4, to 4, cluster 8, session 8, epoch 4, plane 2, stream 2, planes 2, streams 2,
// zeros.
void gang_hello_encode(const struct gang_hello *hello, uint8_t p[WIRE_HELLO_BYTES]) {
    memset(p, 0, WIRE_HELLO_BYTES);
    put(p, hello->version_min, 4);
    put(p + 4, hello->version_max, 4);
    put(p + 8, hello->from, 4);
    put(p + 12, hello->to, 4);
    put(p + 16, hello->cluster, 8);
    put(p + 24, hello->session, 8);
    put(p + 32, hello->epoch, 4);
    put(p + 36, hello->plane, 2);
    put(p + 38, hello->stream, 2);
    put(p + 40, hello->planes, 2);
    put(p + 42, hello->streams, 2);
}

enum gang_status gang_hello_decode(const uint8_t p[WIRE_HELLO_BYTES], struct gang_hello *hello) {
    *hello = (struct gang_hello){
        .version_min = (uint32_t)get(p, 4),
        .version_max = (uint32_t)get(p + 4, 4),
        .from = (uint32_t)get(p + 8, 4),
        .to = (uint32_t)get(p + 12, 4),
        .cluster = get(p + 16, 8),
        .session = get(p + 24, 8),
        .epoch = (uint32_t)get(p + 32, 4),
        .plane = (uint16_t)get(p + 36, 2),
        .stream = (uint16_t)get(p + 38, 2),
        .planes = (uint16_t)get(p + 40, 2),
        .streams = (uint16_t)get(p + 42, 2),
    };
    if (hello->plane >= hello->planes || hello->stream >= hello->streams || !hello->session || !hello->epoch)
        return gang_fail(GANG_ERR_FORMAT, "hello: plane %u of %u, stream %u of %u: not possible", hello->plane, hello->planes, hello->stream,
                         hello->streams);
    if (hello->version_min > WIRE_VERSION || hello->version_max < WIRE_VERSION)
        return gang_fail(GANG_ERR_UNSUPPORTED, "hello: rank %u speaks wire versions %u to %u, this program %d: run the same release on both",
                         hello->from, hello->version_min, hello->version_max, WIRE_VERSION);
    return GANG_OK;
}
