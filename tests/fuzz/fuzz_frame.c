// A hostile peer: any bytes into a link's stream, with the checksums of headers mended so that the fuzzer gets past them.
// Nothing may be written outside the posted buffers, and no invariant may break.
#include "fuzz.h"
#include "wire/link.h"

enum { POSTED = 4, BYTES = 20000 };

static void on_complete(void *context, void *user, enum gang_status status) { (void)context, (void)user, (void)status; }
static void on_reset(void *context, int plane, int stream) { (void)context, (void)plane, (void)stream; }
static void on_state(void *context, enum gang_link_state state) { (void)context, (void)state; }

static void mend(uint8_t *header) {
    memcpy(header, "GLW1\1", 5);
    header[5] = (uint8_t)(1 + header[5] % (WIRE_TYPE_END - 1));
    memset(header + 20, 0, 4);
    header[20] = 1; // the epoch
    uint32_t crc = gang_crc32c(header, 60);
    for (int b = 0; b < 4; b++) header[60 + b] = (uint8_t)(crc >> (8 * b));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static uint8_t buffers[2 * POSTED][BYTES];
    struct gang_link_config config = gang_link_defaults;
    config.peer = config.planes = config.streams = 1;
    config.chunk_log2 = WIRE_CHUNK_LOG2_MIN;
    config.eager_slots = 4;
    const struct gang_link_hooks hooks = {NULL, on_complete, on_reset, on_state};
    struct gang_link *link = gang_link_new(&config, &hooks, 1);
    struct gang_stream *stream = link->streams[0][0];
    gang_stream_up(stream, 1, 1);
    for (int i = 0; i < POSTED; i++) {
        assert(!gang_link_recv(link, 1, (uint32_t)i % 2, buffers[i], i ? BYTES : 100, NULL));
        assert(!gang_link_send(link, 1, (uint32_t)i % 2, 0, buffers[POSTED + i], i ? BYTES : 100, NULL));
    }
    int64_t now = 2;
    for (size_t at = 0; at < bytes && stream->up; now += 100000) {
        struct iovec out[WIRE_IOV_MAX], in[2];
        size_t sent = 0;
        int count = gang_stream_gather(stream, now, out);
        for (int i = 0; i < count; i++) sent += out[i].iov_len;
        if (count) gang_stream_gone(stream, sent, now);
        gang_stream_space(stream, in);
        uint8_t *to = in[0].iov_base;
        bool header = stream->landing.mode == LANDING_NONE && bytes - at >= WIRE_HEADER_BYTES && in[0].iov_len >= WIRE_HEADER_BYTES;
        size_t n = header ? WIRE_HEADER_BYTES : bytes - at < in[0].iov_len ? bytes - at : in[0].iov_len;
        memcpy(to, data + at, n);
        if (header) mend(to);
        at += n;
        if (!gang_stream_came(stream, n, now)) gang_stream_down(stream, now);
        gang_link_tick(link, now);
        assert(link->credit_used <= link->credit_limit && link->free_send_count <= WIRE_OPS_MAX && link->free_recv_count <= WIRE_OPS_MAX);
    }
    gang_link_free(link);
    return 0;
}
