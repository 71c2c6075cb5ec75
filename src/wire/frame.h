// frame: what stands on the wire. A frame is a header of 64 bytes, little-endian, then up to one chunk of payload.
// The header has a checksum of its own, so a damaged length is never believed. Internal to src/wire.
#ifndef GANG_WIRE_FRAME_H
#define GANG_WIRE_FRAME_H

#include "base/base.h"

enum {
    WIRE_HEADER_BYTES = 64,
    WIRE_VERSION = 2,
    WIRE_EAGER_MAX_BYTES = 8192, // the largest payload that may arrive without a buffer of its own
    WIRE_CHUNK_LOG2_MIN = 10,
    WIRE_CHUNK_LOG2_MAX = 24,
    WIRE_CHUNKS_MAX = 1 << 16, // per message
    WIRE_PN_WINDOW = 1024,     // frames of one stream that may be unacknowledged at a time
    WIRE_ACK_FIXED_BYTES = 24, // largest, base, bytes received; then one bit per frame from base to largest
    WIRE_ACK_MAX_BYTES = WIRE_ACK_FIXED_BYTES + WIRE_PN_WINDOW / 8,
    WIRE_BYE_MAX_BYTES = WIRE_ACK_MAX_BYTES,
    WIRE_HELLO_BYTES = 64,
};
#define WIRE_MESSAGE_MAX_BYTES ((uint64_t)WIRE_CHUNKS_MAX << WIRE_CHUNK_LOG2_MAX)

enum gang_frame_type {
    WIRE_HELLO = 1, // first frame of a connection, both ways
    WIRE_CHUNK,     // part of a message whose receive is posted
    WIRE_EAGER,     // a whole small message
    WIRE_POST,      // `message`: receives of channel `tag` are posted up to this number
    WIRE_CREDIT,    // `message`: so many eager messages may have been sent without a posted receive
    WIRE_PING,      // asks for an acknowledgement
    WIRE_ACK,
    WIRE_BYE, // the link ends; the payload says why
    WIRE_TYPE_END,
};

enum { WIRE_FLAG_CREDITED = 1 }; // this eager message uses up a credit

struct gang_frame {
    uint8_t type, flags, chunk_log2;
    uint32_t floor_back; // number - floor_back: the lowest frame number that is still unresolved
    uint32_t epoch;      // which life of the stream
    uint32_t tag;
    uint32_t payload_bytes, payload_crc;
    uint64_t number;  // of the frame in its stream, from 1; 0: neither numbered nor acknowledged
    uint64_t message; // of the message in its channel, from 0
    uint64_t total;   // bytes of the whole message
    uint64_t offset;  // of the payload in it
};

void gang_frame_encode(const struct gang_frame *frame, uint8_t header[WIRE_HEADER_BYTES]);
// Checks magic, version, checksum, and every field against the type's limits. On failure says what is wrong.
GANG_CHECK_RESULT enum gang_status gang_frame_decode(const uint8_t header[WIRE_HEADER_BYTES], struct gang_frame *frame);

struct gang_ack {
    uint64_t largest;  // frame number seen, whether good or not
    uint64_t base;     // bit i of `good` is frame base + i
    uint64_t rx_bytes; // bytes of the stream that have arrived
    uint64_t good[WIRE_PN_WINDOW / 64];
};
size_t gang_ack_encode(const struct gang_ack *ack, uint8_t payload[WIRE_ACK_MAX_BYTES]);
GANG_CHECK_RESULT enum gang_status gang_ack_decode(const uint8_t *payload, size_t bytes, struct gang_ack *ack);

struct gang_hello {
    uint32_t version_min, version_max;
    uint32_t from, to; // ranks
    uint64_t cluster;  // both must name the same
    uint64_t session;  // of the sender's process; 0 in no hello
    uint32_t epoch;
    uint16_t plane, stream, planes, streams;
};
void gang_hello_encode(const struct gang_hello *hello, uint8_t payload[WIRE_HELLO_BYTES]);
GANG_CHECK_RESULT enum gang_status gang_hello_decode(const uint8_t payload[WIRE_HELLO_BYTES], struct gang_hello *hello);

// CRC32C (Castagnoli). The fastest form that this processor has; gang_crc32c_table is the slow, clear reference.
uint32_t gang_crc32c(const void *data, size_t bytes);
uint32_t gang_crc32c_table(const void *data, size_t bytes);

#endif
