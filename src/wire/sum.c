// Sums of several parts, element by element, in one fixed order.
#include "wire/sum.h"

#include <string.h>

// Elements that are summed at a time: the accumulator stays in the first cache; in a tree there is one for each level.
enum { BLOCK = 2048, TREE_BLOCK = 512 };

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

// How many of the parts belong to the left operand of the last addition.
static int left_of(const int *shards, int count) {
    if (!shards) return count - 1;
    unsigned differ = (unsigned)(shards[0] ^ shards[count - 1]), left = 1;
    while (!((unsigned)shards[left] >> (31 - __builtin_clz(differ)) & 1)) left++;
    return (int)left;
}

static float sum_one(const void *const *parts, const int *shards, int count, size_t i, enum gang_element type) {
    if (count == 1) return type == GANG_ELEMENT_F32 ? ((const float *)parts[0])[i] : from_bf16(((const uint16_t *)parts[0])[i]);
    int left = left_of(shards, count);
    return sum_one(parts, shards, left, i, type) + sum_one(parts + left, shards ? shards + left : NULL, count - left, i, type);
}

void gang_sum_reference(void *to, const void *const *parts, const int *shards, int count, size_t elements, enum gang_element type) {
    for (size_t i = 0; i < elements; i++) {
        float sum = sum_one(parts, shards, count, i, type);
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

static void sum_tree(float *to, const void *const *parts, const int *shards, int count, size_t at, size_t n, enum gang_element type) {
    if (count == 1 && type == GANG_ELEMENT_F32) {
        memcpy(to, (const float *)parts[0] + at, n * sizeof *to);
    } else if (count == 1) {
        for (size_t i = 0; i < n; i++) to[i] = from_bf16(((const uint16_t *)parts[0])[at + i]);
    } else {
        float right[TREE_BLOCK];
        int left = left_of(shards, count);
        sum_tree(to, parts, shards, left, at, n, type);
        sum_tree(right, parts + left, shards + left, count - left, at, n, type);
        for (size_t i = 0; i < n; i++) to[i] += right[i];
    }
}

static void sum_by_tree(void *to, const void *const *parts, const int *shards, int count, size_t elements, enum gang_element type) {
    for (size_t at = 0; at < elements; at += TREE_BLOCK) {
        float sum[TREE_BLOCK];
        size_t n = elements - at < TREE_BLOCK ? elements - at : TREE_BLOCK;
        sum_tree(sum, parts, shards, count, at, n, type);
        for (size_t i = 0; i < n && type == GANG_ELEMENT_F32; i++) put_f32((float *)to + at + i, sum[i]);
        for (size_t i = 0; i < n && type == GANG_ELEMENT_BF16; i++) ((uint16_t *)to)[at + i] = to_bf16(sum[i]);
    }
}

void gang_sum(void *to, const void *const *parts, const int *shards, int count, size_t elements, enum gang_element type) {
    if (shards) {
        sum_by_tree(to, parts, shards, count, elements, type);
        return;
    }
    for (size_t at = 0; at < elements; at += BLOCK) {
        size_t n = elements - at < BLOCK ? elements - at : BLOCK;
        if (type == GANG_ELEMENT_F32) {
            sum_f32(to, (const float *const *)parts, count, at, n);
        } else {
            sum_bf16(to, (const uint16_t *const *)parts, count, at, n);
        }
    }
}
