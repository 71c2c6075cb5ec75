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

static inline gang_vf act_to_vector(const act *x) {
#ifdef ACT_BF16
    return (gang_vf)(__builtin_convertvector(*(const gang_vh *)x, gang_vu) << 16);
#else
    return *(const gang_vf *)x;
#endif
}

static inline void vector_to_act(act *to, gang_vf x) {
#if defined(HAVE_BF16_PAIRS)
    _mm256_storeu_si256((__m256i *)to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#elif defined(ACT_BF16)
    gang_vu bits = (gang_vu)x;
    gang_vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, nan = (bits >> 16) | 0x40;
    gang_vu is_nan = (gang_vu)(x != x);
    *(gang_vh *)to = __builtin_convertvector((nan & is_nan) | (rounded & ~is_nan), gang_vh);
#else
    *(gang_vf *)to = x;
#endif
}

// The first n (1 to VL) elements; the other lanes are 0. A short row's end goes through a buffer, so that one loop serves all.
static inline gang_vf load_act(const act *x, int64_t n) {
    if (__builtin_expect(n >= VL, 1)) return act_to_vector(x);
    act part[VL] = {0};
    memcpy(part, x, (size_t)n * sizeof *x);
    return act_to_vector(part);
}

static inline void store_act(act *to, gang_vf x, int64_t n) {
    act part[VL];
    if (__builtin_expect(n >= VL, 1)) {
        vector_to_act(to, x);
        return;
    }
    vector_to_act(part, x);
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

// mask ? a : b, lane by lane; a mask is what a comparison gives.
static inline gang_vf select_lanes(gang_vi mask, gang_vf a, gang_vf b) { return (gang_vf)((mask & (gang_vi)a) | (~mask & (gang_vi)b)); }
static inline gang_vf max_vector(gang_vf a, gang_vf b) { return select_lanes(a > b, a, b); }

// e^x to 2 ulp for x in [-87, 88], 0 below, e^88 above, NaN for NaN. Range reduction by ln 2 in two parts (Cody and Waite),
// degree-6 polynomial.
static inline gang_vf exp_vector(gang_vf x) {
    const gang_vf zero = {0}, low = zero - 87.0f, high = zero + 88.0f;
    gang_vi below = x < low;
    x = select_lanes(below, low, x);
    x = select_lanes(x > high, high, x);
    gang_vf n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; // 1.5 * 2^23: the sum has no room for fractions
    gang_vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    gang_vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    gang_vi exponent = (__builtin_convertvector(n, gang_vi) + 127) << 23;
    return select_lanes(below, zero, p * (gang_vf)exponent);
}

static inline float exp_scalar(float x) { return exp_vector((gang_vf){x})[0]; }

#endif
