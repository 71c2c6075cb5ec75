// CRC32C in three forms: a table (reference and fallback), the processor's crc32 instruction, and carry-less
// multiplication over 64-byte vectors.
//
// The vector form folds: a register R that stands D bits before the end contributes R * x^D mod P. Multiplying its 64-bit
// halves by x^(D+32) and x^(D-32) mod P and adding the product to the data D bits further on keeps the remainder. So
// 256 bytes are carried along until less is left, then brought to 64, and the crc32 instruction takes those 64 bytes as
// if they were the message. (Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", 2009)
#include "wire/frame.h"

#include <string.h>

static const uint32_t polynomial = 0x82f63b78; // 0x1edc6f41, bits reversed

static uint32_t table_step(uint32_t crc) {
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? polynomial : 0);
    return crc;
}

uint32_t gang_crc32c_table(const void *data, size_t bytes) {
    static uint32_t table[256];
    static int ready;
    if (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE)) {
        // Two threads may both fill it, with the same values.
        for (uint32_t i = 0; i < 256; i++) __atomic_store_n(&table[i], table_step(i), __ATOMIC_RELAXED);
        __atomic_store_n(&ready, 1, __ATOMIC_RELEASE);
    }
    const uint8_t *p = data;
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; i++) crc = (crc >> 8) ^ __atomic_load_n(&table[(crc ^ p[i]) & 0xff], __ATOMIC_RELAXED);
    return ~crc;
}

#if defined(__x86_64__)
#include <immintrin.h>

__attribute__((target("sse4.2"))) static uint32_t extend_instruction(uint32_t crc, const uint8_t *p, size_t bytes) {
    uint64_t wide = crc;
    for (; bytes >= 8; bytes -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = _mm_crc32_u64(wide, word);
    }
    crc = (uint32_t)wide;
    for (; bytes; bytes--, p++) crc = _mm_crc32_u8(crc, *p);
    return crc;
}

#define VECTOR __attribute__((target("avx512f,avx512dq,avx512bw,vpclmulqdq,pclmul,sse4.2")))

// x^(D+32) and x^(D-32) mod P, reversed and shifted by one, for D of 2048 and 512 bits.
struct fold {
    uint64_t low, high;
};
static const struct fold fold_2048 = {0x0dcb17aa4, 0x0b9e02b86}, fold_512 = {0x0740eef02, 0x09e4addf8};

VECTOR static inline __m512i fold_onto(__m512i acc, __m512i constant, __m512i data) {
    __m512i low = _mm512_clmulepi64_epi128(acc, constant, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(acc, constant, 0x11);
    return _mm512_ternarylogic_epi64(low, high, data, 0x96);
}

VECTOR static inline __m512i fold_constant(struct fold f) { return _mm512_broadcast_i64x2(_mm_set_epi64x((long long)f.high, (long long)f.low)); }

// At least 256 bytes.
VECTOR static uint32_t extend_vector(uint32_t crc, const uint8_t *p, size_t bytes) {
    __m512i far = fold_constant(fold_2048), near = fold_constant(fold_512);
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    __m512i b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
    for (p += 256, bytes -= 256; bytes >= 256; p += 256, bytes -= 256) {
        a = fold_onto(a, far, _mm512_loadu_si512(p));
        b = fold_onto(b, far, _mm512_loadu_si512(p + 64));
        c = fold_onto(c, far, _mm512_loadu_si512(p + 128));
        d = fold_onto(d, far, _mm512_loadu_si512(p + 192));
    }
    a = fold_onto(fold_onto(fold_onto(a, near, b), near, c), near, d);
    for (; bytes >= 64; p += 64, bytes -= 64) a = fold_onto(a, near, _mm512_loadu_si512(p));
    uint8_t rest[64];
    _mm512_storeu_si512(rest, a);
    return extend_instruction(extend_instruction(0, rest, sizeof rest), p, bytes);
}

uint32_t gang_crc32c(const void *data, size_t bytes) {
    if (!__builtin_cpu_supports("sse4.2")) return gang_crc32c_table(data, bytes);
    if (bytes >= 256 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("vpclmulqdq")) return ~extend_vector(~0u, data, bytes);
    return ~extend_instruction(~0u, data, bytes);
}
#else
uint32_t gang_crc32c(const void *data, size_t bytes) { return gang_crc32c_table(data, bytes); }
#endif
