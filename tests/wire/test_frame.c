// Frames: the checksum's forms agree, what is encoded decodes, what is damaged or hostile is refused.
#include "../test.h"
#include "wire/frame.h"

static void test_crc_forms_agree(void **state) {
    (void)state;
    assert_int_equal(gang_crc32c("123456789", 9), 0xe3069283u); // the check value of the catalogue
    assert_int_equal(gang_crc32c_table("123456789", 9), 0xe3069283u);
    uint64_t seed = test_seed();
    static uint8_t data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)gang_random_at(seed, 1, i);
    for (uint64_t i = 0; i < 4000; i++) {
        size_t at = gang_random_at(seed, 2, i) % 64, bytes = i < 700 ? i : gang_random_at(seed, 3, i) % (sizeof data - 64);
        assert_int_equal(gang_crc32c(data + at, bytes), gang_crc32c_table(data + at, bytes));
    }
}

static struct gang_frame draw_chunk(uint64_t seed, uint64_t i) {
    uint64_t r = gang_random_at(seed, 4, i);
    struct gang_frame f = {.type = WIRE_CHUNK,
                           .chunk_log2 = (uint8_t)(WIRE_CHUNK_LOG2_MIN + r % 15),
                           .number = 1 + (r >> 8),
                           .epoch = (uint32_t)(r >> 3),
                           .tag = (uint32_t)r};
    uint64_t chunk = (uint64_t)1 << f.chunk_log2;
    f.floor_back = (uint32_t)(f.number - 1 < WIRE_PN_WINDOW - 1 ? f.number - 1 : WIRE_PN_WINDOW - 1);
    f.total = 1 + gang_random_at(seed, 5, i) % (chunk * 100);
    f.offset = gang_random_at(seed, 6, i) % ((f.total + chunk - 1) / chunk) * chunk;
    f.payload_bytes = (uint32_t)(f.total - f.offset < chunk ? f.total - f.offset : chunk);
    f.payload_crc = (uint32_t)(r >> 11);
    f.message = r >> 5;
    return f;
}

static void test_frames_return(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    for (uint64_t i = 0; i < 2000; i++) {
        struct gang_frame in = draw_chunk(seed, i), out = {0};
        uint8_t header[WIRE_HEADER_BYTES], again[WIRE_HEADER_BYTES];
        gang_frame_encode(&in, header);
        assert_ok(gang_frame_decode(header, &out));
        gang_frame_encode(&out, again);
        assert_memory_equal(header, again, sizeof header);
        assert_true(out.total == in.total && out.offset == in.offset && out.message == in.message && out.number == in.number);
    }
}

static void test_any_flipped_bit_is_refused(void **state) {
    (void)state;
    struct gang_frame in = draw_chunk(1, 1), out;
    uint8_t header[WIRE_HEADER_BYTES];
    gang_frame_encode(&in, header);
    for (int bit = 0; bit < 8 * WIRE_HEADER_BYTES; bit++) {
        header[bit / 8] ^= (uint8_t)(1 << bit % 8);
        assert_int_not_equal(gang_frame_decode(header, &out), GANG_OK);
        header[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static void refuse(struct gang_frame frame, const char *words) {
    uint8_t header[WIRE_HEADER_BYTES];
    struct gang_frame out;
    gang_frame_encode(&frame, header);
    assert_fails(GANG_ERR_FORMAT, words, gang_frame_decode(header, &out));
}

static void test_hostile_fields_are_refused(void **state) {
    (void)state;
    struct gang_frame chunk = {.type = WIRE_CHUNK, .chunk_log2 = 18, .number = 9, .total = 1 << 20, .offset = 1 << 18, .payload_bytes = 1 << 18}, f;
    f = chunk, f.offset = 5, refuse(f, "offset");
    f = chunk, f.offset = 1 << 20, refuse(f, "offset");
    f = chunk, f.payload_bytes = 77, refuse(f, "payload");
    f = chunk, f.payload_bytes = UINT32_MAX, refuse(f, "payload");
    f = chunk, f.total = UINT64_MAX, refuse(f, "too long");
    f = chunk, f.chunk_log2 = 63, refuse(f, "chunk size");
    f = chunk, f.number = 0, refuse(f, "number");
    f = chunk, f.floor_back = WIRE_PN_WINDOW, refuse(f, "window");
    f = chunk, f.floor_back = 9, refuse(f, "window");
    refuse((struct gang_frame){.type = WIRE_EAGER, .number = 1, .payload_bytes = WIRE_EAGER_MAX_BYTES + 1, .total = WIRE_EAGER_MAX_BYTES + 1},
           "small message");
    refuse((struct gang_frame){.type = WIRE_PING, .number = 1, .payload_bytes = 1}, "empty");
    refuse((struct gang_frame){.type = WIRE_ACK, .payload_bytes = 25}, "acknowledgement");
    refuse((struct gang_frame){.type = WIRE_BYE, .payload_bytes = 100000}, "farewell");
    refuse((struct gang_frame){.type = 200, .number = 1}, "unknown");
}

static void test_a_future_version_is_named(void **state) {
    (void)state;
    struct gang_hello in = {.version_min = 7, .version_max = 9, .from = 3, .planes = 1, .streams = 1, .session = 1, .epoch = 1}, out;
    uint8_t payload[WIRE_HELLO_BYTES];
    gang_hello_encode(&in, payload);
    assert_fails(GANG_ERR_UNSUPPORTED, "rank 3 speaks wire versions 7 to 9", gang_hello_decode(payload, &out));
    in.version_min = 1;
    gang_hello_encode(&in, payload);
    assert_ok(gang_hello_decode(payload, &out));
    assert_true(out.from == 3 && out.version_max == 9);
    in.plane = 1;
    gang_hello_encode(&in, payload);
    assert_fails(GANG_ERR_FORMAT, "plane 1 of 1", gang_hello_decode(payload, &out));
}

// The short form of tests/fuzz/fuzz_frame.c: with the checksum mended, fields are what stands between us and the world.
static void test_mutations(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    for (uint64_t i = 0; i < 50000; i++) {
        struct gang_frame in = draw_chunk(seed, i), out;
        uint8_t header[WIRE_HEADER_BYTES];
        gang_frame_encode(&in, header);
        for (uint64_t n = 0; n < 1 + gang_random_at(seed, 7, i) % 4; n++)
            header[4 + gang_random_at(seed, 8 + n, i) % 56] = (uint8_t)gang_random_at(seed, 20 + n, i);
        uint32_t crc = gang_crc32c(header, 60);
        for (int b = 0; b < 4; b++) header[60 + b] = (uint8_t)(crc >> (8 * b));
        if (gang_frame_decode(header, &out)) continue;
        assert_true(out.payload_bytes <= (out.type == WIRE_CHUNK ? 1u << WIRE_CHUNK_LOG2_MAX : WIRE_EAGER_MAX_BYTES));
        assert_true(out.type != WIRE_CHUNK || out.offset + out.payload_bytes <= out.total);
        if (out.type != WIRE_ACK) continue;
        struct gang_ack ack;
        uint8_t payload[WIRE_ACK_MAX_BYTES];
        for (size_t b = 0; b < sizeof payload; b++) payload[b] = (uint8_t)(gang_random_at(seed, 30 + b, i) % 3);
        if (!gang_ack_decode(payload, out.payload_bytes, &ack)) assert_true(ack.largest < ack.base || ack.largest - ack.base < WIRE_PN_WINDOW);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_crc_forms_agree),
        cmocka_unit_test(test_frames_return),
        cmocka_unit_test(test_any_flipped_bit_is_refused),
        cmocka_unit_test(test_hostile_fields_are_refused),
        cmocka_unit_test(test_a_future_version_is_named),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
