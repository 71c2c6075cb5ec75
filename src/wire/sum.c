// Sums of several parts, element by element, in one fixed order.
#include "wire/sum.h"

#include <string.h>

enum { BLOCK = 2048 }; // elements that are summed at a time: the accumulator stays in the first cache

static float from_bf16(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

// Which of two NaNs a sum takes its bits from is the compiler's choice, so a sum that is none gets these.
static const uint32_t nan_f32 = 0x7fc00000;
static const uint16_t nan_bf16 = 0x7fc0;

static void put_f32(float *to, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits = value != value ? nan_f32 : bits;
    memcpy(to, &bits, sizeof bits);
}

// To nearest, ties to even.
static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value != value ? nan_bf16 : (uint16_t)rounded;
}

void gang_sum_reference(void *to, const void *const *parts, int count, size_t elements, enum gang_element type) {
    for (size_t i = 0; i < elements; i++) {
        float sum = 0;
        for (int p = 0; p < count; p++) {
            float value = type == GANG_ELEMENT_F32 ? ((const float *)parts[p])[i] : from_bf16(((const uint16_t *)parts[p])[i]);
            sum = p ? sum + value : value;
        }
        if (type == GANG_ELEMENT_F32) {
            put_f32((float *)to + i, sum);
        } else {
            ((uint16_t *)to)[i] = to_bf16(sum);
        }
    }
}

// Two parts are the common case and need no accumulator.
static void add_f32(float *to, const float *a, const float *b, size_t n) {
    for (size_t i = 0; i < n; i++) put_f32(to + i, a[i] + b[i]);
}

static void sum_f32(float *to, const float *const *parts, int count, size_t at, size_t n) {
    float sum[BLOCK];
    if (count == 2) {
        add_f32(to + at, parts[0] + at, parts[1] + at, n);
        return;
    }
    memcpy(sum, parts[0] + at, n * sizeof *sum);
    for (int p = 1; p < count; p++)
        for (size_t i = 0; i < n; i++) sum[i] += parts[p][at + i];
    for (size_t i = 0; i < n; i++) put_f32(to + at + i, sum[i]);
}

static void sum_bf16(uint16_t *to, const uint16_t *const *parts, int count, size_t at, size_t n) {
    float sum[BLOCK];
    for (size_t i = 0; i < n; i++) sum[i] = from_bf16(parts[0][at + i]);
    for (int p = 1; p < count; p++)
        for (size_t i = 0; i < n; i++) sum[i] += from_bf16(parts[p][at + i]);
    for (size_t i = 0; i < n; i++) to[at + i] = to_bf16(sum[i]);
}

void gang_sum(void *to, const void *const *parts, int count, size_t elements, enum gang_element type) {
    for (size_t at = 0; at < elements; at += BLOCK) {
        size_t n = elements - at < BLOCK ? elements - at : BLOCK;
        if (type == GANG_ELEMENT_F32) {
            sum_f32(to, (const float *const *)parts, count, at, n);
        } else {
            sum_bf16(to, (const uint16_t *const *)parts, count, at, n);
        }
    }
}
