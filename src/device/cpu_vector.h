// cpu_vector: element access, the exponential and the small matrix product that the CPU kernels share. Included by files that
// are compiled once per instruction set and compute type (ACT_BF16 defined or not); all static.
#ifndef GANG_DEVICE_CPU_VECTOR_H
#define GANG_DEVICE_CPU_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
enum { VL = 16 };
#elif defined(__AVX2__)
enum { VL = 8 };
#else
enum { VL = 4 };
#endif

typedef float gang_vf __attribute__((vector_size(4 * VL), aligned(4), may_alias));

// The processor multiplies pairs of bf16 and adds them to f32.
#if defined(ACT_BF16) && defined(__AVX512BF16__)
#define HAVE_BF16_PAIRS
#endif
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef ACT_BF16
typedef uint16_t act;
#else
typedef float act;
#endif

static inline float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

static inline float from_act(act x) {
#ifdef ACT_BF16
    return bits_to_float((uint32_t)x << 16);
#else
    return x;
#endif
}

// To nearest, ties to even. A NaN stays one: its mantissa is made non-zero in the kept half.
static inline uint16_t to_bf16(float x) {
    uint32_t bits = float_to_bits(x);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x != x ? (bits >> 16) | 0x40 : rounded);
}

static inline act to_act(float x) {
#ifdef ACT_BF16
    return to_bf16(x);
#else
    return x;
#endif
}

// ---- Vectors of VL floats: loads and stores of up to VL elements, sums, the exponential ----------------------------

typedef int32_t gang_vi __attribute__((vector_size(4 * VL), may_alias));
typedef uint32_t gang_vu __attribute__((vector_size(4 * VL), may_alias));
typedef uint16_t gang_vh __attribute__((vector_size(2 * VL), aligned(2), may_alias));

static inline gang_vu bf16_to_bits(const uint16_t *x) {
#ifdef __AVX512F__
    return (gang_vu)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x)); // gcc 12 makes two halves of a conversion
#else
    return __builtin_convertvector(*(const gang_vh *)x, gang_vu);
#endif
}

static inline gang_vf bf16_to_vector(const uint16_t *x) { return (gang_vf)(bf16_to_bits(x) << 16); }

static inline void vector_to_bf16(uint16_t *to, gang_vf x) {
#ifdef __AVX512BF16__
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
    gang_vu bits = (gang_vu)x;
    gang_vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
    gang_vu is_nan = (gang_vu)(x != x);
    *(gang_vh *)to = __builtin_convertvector((nan & is_nan) | (rounded & ~is_nan), gang_vh);
#endif
}

// The first n (1 to VL) elements; the other lanes are 0. A short row's end goes through a buffer, so that one loop serves all.
static inline gang_vf load_bf16(const uint16_t *x, int64_t n) {
    if (__builtin_expect(n >= VL, 1)) return bf16_to_vector(x);
    uint16_t part[VL] = {0};
    memcpy(part, x, (size_t)n * sizeof *x);
    return bf16_to_vector(part);
}

static inline void store_bf16(uint16_t *to, gang_vf x, int64_t n) {
    uint16_t part[VL];
    if (__builtin_expect(n >= VL, 1)) {
        vector_to_bf16(to, x);
        return;
    }
    vector_to_bf16(part, x);
    memcpy(to, part, (size_t)n * sizeof *to);
}

static inline gang_vf load_f32(const float *x, int64_t n) {
    if (__builtin_expect(n >= VL, 1)) return *(const gang_vf *)x;
    float part[VL] = {0};
    memcpy(part, x, (size_t)n * sizeof *x);
    return *(const gang_vf *)part;
}

static inline void store_f32(float *to, gang_vf x, int64_t n) {
    if (__builtin_expect(n >= VL, 1))
        *(gang_vf *)to = x;
    else
        memcpy(to, &x, (size_t)n * sizeof *to);
}

#ifdef ACT_BF16
static inline gang_vf act_to_vector(const act *x) { return bf16_to_vector(x); }
static inline void vector_to_act(act *to, gang_vf x) { vector_to_bf16(to, x); }
static inline gang_vf load_act(const act *x, int64_t n) { return load_bf16(x, n); }
static inline void store_act(act *to, gang_vf x, int64_t n) { store_bf16(to, x, n); }
#else
static inline gang_vf act_to_vector(const act *x) { return *(const gang_vf *)x; }
static inline void vector_to_act(act *to, gang_vf x) { *(gang_vf *)to = x; }
static inline gang_vf load_act(const act *x, int64_t n) { return load_f32(x, n); }
static inline void store_act(act *to, gang_vf x, int64_t n) { store_f32(to, x, n); }
#endif

static inline float sum_lanes(gang_vf x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = 0;
    for (int i = 0; i < VL; i++) sum += x[i];
    return sum;
#endif
}

static inline float max_lanes(gang_vf x) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#else
    float high = x[0];
    for (int i = 1; i < VL; i++) high = x[i] > high ? x[i] : high;
    return high;
#endif
}

// The polynomial of exp_vector: e^r for |r| <= ln 2 / 2.
static inline gang_vf exp_reduced(gang_vf r) {
    gang_vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * r * r + r + 1.0f;
}

// e^x to 2 ulp, 0 where that is below the smallest normal number or nearly so, infinity above 88.7, NaN for NaN. Range
// reduction by ln 2 in two parts (Cody and Waite).
#ifdef __AVX512F__
static inline gang_vf max_vector(gang_vf a, gang_vf b) { return (gang_vf)_mm512_max_ps((__m512)a, (__m512)b); }

static inline gang_vf exp_vector(gang_vf x) {
    const gang_vf zero = {0};
    x = max_vector(zero - 104.0f, x); // and the scaling underflows to 0
    gang_vf n = (gang_vf)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
    return (gang_vf)_mm512_scalef_ps((__m512)exp_reduced(x - n * 0.693359375f + n * 2.12194440e-4f), (__m512)n);
}
#else
// mask ? a : b, lane by lane; a mask is what a comparison gives.
static inline gang_vf select_lanes(gang_vi mask, gang_vf a, gang_vf b) { return (gang_vf)((mask & (gang_vi)a) | (~mask & (gang_vi)b)); }
static inline gang_vf max_vector(gang_vf a, gang_vf b) { return select_lanes(a > b, a, b); }

static inline gang_vf exp_vector(gang_vf x) {
    const gang_vf zero = {0}, low = zero - 87.0f, high = zero + 88.0f;
    gang_vi below = x<low, above = x> high;
    x = select_lanes(below, low, select_lanes(above, high, x));
    gang_vf n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; // 1.5 * 2^23: the sum has no room for fractions
    gang_vi exponent = (__builtin_convertvector(n, gang_vi) + 127) << 23;
    gang_vf e = exp_reduced(x - n * 0.693359375f + n * 2.12194440e-4f) * (gang_vf)exponent;
    return select_lanes(below, zero, select_lanes(above, zero + INFINITY, e));
}
#endif

// e^x and 1 / x, no more exact than a result that is rounded to act can show: to 3e-6 and 7e-5 for bf16.
#if defined(__AVX512F__) && defined(ACT_BF16)
static inline gang_vf exp_act(gang_vf x) {
    const gang_vf zero = {0};
    x = max_vector(zero - 104.0f, x);
    gang_vf n = (gang_vf)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0), r = x * 1.44269504f - n;
    gang_vf p = r * 9.5700873e-3f + 5.5917859e-2f;
    p = p * r + 2.4024746e-1f;
    p = p * r + 6.9312179e-1f;
    return (gang_vf)_mm512_scalef_ps((__m512)(p * r + 9.9999928e-1f), (__m512)n);
}
static inline gang_vf reciprocal_act(gang_vf x) { return (gang_vf)_mm512_rcp14_ps((__m512)x); }
#else
static inline gang_vf exp_act(gang_vf x) { return exp_vector(x); }
static inline gang_vf reciprocal_act(gang_vf x) { return 1.0f / x; }
#endif

static inline float exp_scalar(float x) { return exp_vector((gang_vf){x})[0]; }

// ---- Turning squares -----------------------------------------------------------------------------------------------

// to[c][r] = from[r][c] for 16 x 16 units of 32 bits; strides in units.
#ifdef __AVX512F__
static inline void turn_square(uint32_t *to, int64_t to_stride, const uint32_t *from, int64_t from_stride) {
    __m512i r[16], t[16];
    for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 g + j] holds, in its 128-bit lane l, column 4 l + j of rows 4 g to 4 g + 3.
    for (int j = 0; j < 4; j++) {
        __m512i even01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), even23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        __m512i odd01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd), odd23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
        _mm512_storeu_si512(to + j * to_stride, _mm512_shuffle_i32x4(even01, even23, 0x88));
        _mm512_storeu_si512(to + (4 + j) * to_stride, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
        _mm512_storeu_si512(to + (8 + j) * to_stride, _mm512_shuffle_i32x4(even01, even23, 0xdd));
        _mm512_storeu_si512(to + (12 + j) * to_stride, _mm512_shuffle_i32x4(odd01, odd23, 0xdd));
    }
}
#else
static inline void turn_square(uint32_t *to, int64_t to_stride, const uint32_t *from, int64_t from_stride) {
    for (int c = 0; c < 16; c++)
        for (int r = 0; r < 16; r++) to[c * to_stride + r] = from[r * from_stride + c];
}
#endif

#endif
