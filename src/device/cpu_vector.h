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

// VL elements as f32.
static inline gang_vf load_act(const act *x) {
#ifdef ACT_BF16
    typedef uint16_t half __attribute__((vector_size(2 * VL), aligned(2), may_alias));
    typedef uint32_t whole __attribute__((vector_size(4 * VL)));
    return (gang_vf)(__builtin_convertvector(*(const half *)x, whole) << 16);
#else
    return *(const gang_vf *)x;
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

// e^x to 2 ulp for x in [-87, 88], flushed to e^-87 below. Range reduction by ln 2 in two parts (Cody and Waite), degree-6
// polynomial; branch-free so that loops over it become vector code.
static inline float fast_exp(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * bits_to_float((uint32_t)((int32_t)n + 127) << 23);
}

#endif
