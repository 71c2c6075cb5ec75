// safetensors: eight bytes of header length, a JSON header, then the data.
//
// The header maps each name to {"dtype", "shape", "data_offsets": [begin, end)}, the offsets counted from the end of the
// header. The file comes from the network, so nothing in it is believed before it is checked:
//   1. the header lies in the file, is at most 100 MB (the limit of the reference implementation) and names nothing twice;
//   2. a tensor's bytes are its elements times the size of its type, computed without overflow;
//   3. sorted by offset, the tensors cover the data from its first byte to its last: no overlap, no hole, nothing behind.
// After gang_safetensors_open every entry's bytes may be read. Types that Gangline does not convert are allowed to stand in
// a file (old checkpoints carry integer buffers) and are refused by whoever wants to read one.
//
// The mapping is shared: a file that another process cuts short while it is mapped ends this one by SIGBUS. Publishing by
// rename, as we and Hugging Face do, never does that.
#include "model/model.h"

#include <assert.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor data is little-endian and copied as it is");

enum { LENGTH_BYTES = 8, MAX_HEADER_BYTES = 100000000 };

// ---- Types ---------------------------------------------------------------------------------------------------------

struct type {
    const char *name;
    int bits;
    int readable; // enum gang_dtype, or -1
};

// Those of safetensors 0.6.
static const struct type types[] = {
    {"F32", 32, GANG_F32}, {"BF16", 16, GANG_BF16}, {"F16", 16, GANG_F16}, {"F64", 64, -1},    {"I64", 64, -1},
    {"I32", 32, -1},       {"I16", 16, -1},         {"I8", 8, -1},         {"U64", 64, -1},    {"U32", 32, -1},
    {"U16", 16, -1},       {"U8", 8, -1},           {"BOOL", 8, -1},       {"F8_E4M3", 8, -1}, {"F8_E5M2", 8, -1},
    {"F8_E8M0", 8, -1},    {"C64", 64, -1},         {"F4", 4, -1},         {"F6_E2M3", 6, -1}, {"F6_E3M2", 6, -1},
};

static const struct type *find_type(const char *name) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (!strcmp(types[i].name, name)) return &types[i];
    return NULL;
}

size_t gang_dtype_bytes(enum gang_dtype type) { return type == GANG_F32 ? 4 : 2; }

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float from_bf16(uint16_t half) { return float_of((uint32_t)half << 16); }

static float from_f16(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, exponent = half >> 10 & 0x1f, fraction = half & 0x3ff;
    if (exponent == 0x1f) return float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent) return float_of(sign | (exponent + 127 - 15) << 23 | fraction << 13);
    float magnitude = (float)fraction * 0x1p-24f; // zero and subnormals: exact, f32 has them as normal numbers
    return sign ? -magnitude : magnitude;
}

void gang_st_to_f32(const struct gang_st_entry *entry, int64_t from, int64_t count, float *out) {
    assert(entry->readable && from >= 0 && count >= 0 && from <= entry->elements - count);
    const uint8_t *data = entry->data + (size_t)from * gang_dtype_bytes(entry->type); // of any alignment
    if (entry->type == GANG_F32) {
        if (count) memcpy(out, data, (size_t)count * sizeof *out);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        uint16_t half;
        memcpy(&half, data + 2 * i, sizeof half);
        out[i] = entry->type == GANG_BF16 ? from_bf16(half) : from_f16(half);
    }
}

// ---- The header ----------------------------------------------------------------------------------------------------

// An entry with its place, as the header tells it.
struct span {
    uint64_t begin, end;
    int64_t entry;
};

struct reader {
    const char *path;
    const uint8_t *data; // behind the header
    uint64_t data_bytes;
    struct gang_safetensors *out;
    struct span *spans;
};

static enum gang_status fail_entry(const struct reader *in, const char *name, const char *problem) {
    return gang_fail(GANG_ERR_FORMAT, "%s: tensor '%.200s': %s: the file is damaged", in->path, name, problem);
}

// A whole number from 0 to INT64_MAX; -1 for anything else.
static int64_t whole(const json_t *value) { return json_is_integer(value) && json_integer_value(value) >= 0 ? json_integer_value(value) : -1; }

static enum gang_status read_shape(const struct reader *in, const json_t *shape, struct gang_st_entry *entry) {
    if (!json_is_array(shape)) return fail_entry(in, entry->name, "shape is not a list");
    if (json_array_size(shape) > GANG_MAX_DIMS) return fail_entry(in, entry->name, "shape has more than 8 dimensions");
    entry->dims = (int)json_array_size(shape);
    entry->elements = 1;
    for (int i = 0; i < entry->dims; i++) {
        entry->shape[i] = whole(json_array_get(shape, (size_t)i));
        if (entry->shape[i] < 0) return fail_entry(in, entry->name, "shape holds something other than whole numbers");
        if (__builtin_mul_overflow(entry->elements, entry->shape[i], &entry->elements))
            return fail_entry(in, entry->name, "shape has more elements than can be counted");
    }
    return GANG_OK;
}

static enum gang_status read_offsets(const struct reader *in, const json_t *offsets, const struct type *type, const struct gang_st_entry *entry,
                                     struct span *span) {
    if (json_array_size(offsets) != 2) return fail_entry(in, entry->name, "data_offsets is not a pair");
    int64_t begin = whole(json_array_get(offsets, 0)), end = whole(json_array_get(offsets, 1)), bits;
    if (begin < 0 || end < begin) return fail_entry(in, entry->name, "data_offsets is not a rising pair of whole numbers");
    if ((uint64_t)end > in->data_bytes) return fail_entry(in, entry->name, "data_offsets reaches beyond the end of the file");
    if (__builtin_mul_overflow(entry->elements, type->bits, &bits)) return fail_entry(in, entry->name, "shape has more bytes than can be counted");
    if (bits % 8 || bits / 8 != end - begin) return fail_entry(in, entry->name, "data_offsets contradicts shape and dtype");
    span->begin = (uint64_t)begin;
    span->end = (uint64_t)end;
    return GANG_OK;
}

static enum gang_status read_entry(const struct reader *in, const char *name, const json_t *value, struct gang_st_entry *entry, struct span *span) {
    entry->name = gang_arena_strdup(&in->out->arena, name);
    if (!json_is_object(value)) return fail_entry(in, name, "its description is not an object");
    const char *type_name = json_string_value(json_object_get(value, "dtype"));
    if (!type_name) return fail_entry(in, name, "dtype is missing or not text");
    const struct type *type = find_type(type_name);
    if (!type) return fail_entry(in, name, "dtype is none that safetensors has");
    if (json_object_size(value) != 3) return fail_entry(in, name, "expected dtype, shape and data_offsets, no less and no more");
    entry->type_name = gang_arena_strdup(&in->out->arena, type_name);
    entry->readable = type->readable >= 0;
    entry->type = entry->readable ? (enum gang_dtype)type->readable : GANG_F32;
    enum gang_status status = read_shape(in, json_object_get(value, "shape"), entry);
    if (!status) status = read_offsets(in, json_object_get(value, "data_offsets"), type, entry, span);
    if (!status) entry->data = in->data + span->begin;
    return status;
}

static enum gang_status check_metadata(const struct reader *in, const json_t *metadata) {
    if (!metadata || json_is_null(metadata)) return GANG_OK;
    bool fine = json_is_object(metadata);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)metadata, key, value) fine = fine && json_is_string(value);
    return fine ? GANG_OK : gang_fail(GANG_ERR_FORMAT, "%s: __metadata__ is not a table of texts: the file is damaged", in->path);
}

static int by_place(const void *a, const void *b) {
    const struct span *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int by_name(const void *a, const void *b) {
    const struct gang_st_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

// Invariant 3. An empty tensor may lie on any border.
static enum gang_status check_cover(const struct reader *in) {
    const struct gang_safetensors *st = in->out;
    qsort(in->spans, (size_t)st->count, sizeof *in->spans, by_place);
    uint64_t at = 0;
    for (int i = 0; i < st->count; i++) {
        const char *name = st->entries[in->spans[i].entry].name;
        if (in->spans[i].begin < at) return fail_entry(in, name, "overlaps the tensor before it");
        if (in->spans[i].begin > at) return fail_entry(in, name, "does not follow the tensor before it: there is a hole");
        at = in->spans[i].end;
    }
    if (at == in->data_bytes) return GANG_OK;
    return gang_fail(GANG_ERR_FORMAT, "%s: %llu bytes behind the last tensor: the file is damaged", in->path,
                     (unsigned long long)(in->data_bytes - at));
}

static enum gang_status read_header(struct reader *in, const json_t *header) {
    if (!json_is_object(header)) return gang_fail(GANG_ERR_FORMAT, "%s: the header is not an object: the file is damaged", in->path);
    struct gang_safetensors *out = in->out;
    size_t count = json_object_size(header);
    out->entries = gang_arena_alloc(&out->arena, count * sizeof *out->entries);
    in->spans = gang_arena_alloc(&out->arena, count * sizeof *in->spans);
    enum gang_status status = check_metadata(in, json_object_get(header, "__metadata__"));
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)header, name, value) {
        if (status) return status;
        if (!strcmp(name, "__metadata__")) continue;
        in->spans[out->count].entry = out->count;
        status = read_entry(in, name, value, &out->entries[out->count], &in->spans[out->count]);
        out->count++;
    }
    if (!status) status = check_cover(in);
    if (!status) qsort(out->entries, (size_t)out->count, sizeof *out->entries, by_name);
    return status;
}

// Length and place of the header, then the JSON in it.
static enum gang_status read_file(const char *path, struct gang_safetensors *out) {
    const struct gang_map *map = &out->map;
    if (map->bytes < LENGTH_BYTES) return gang_fail(GANG_ERR_FORMAT, "%s: %zu bytes are too few for a safetensors file", path, map->bytes);
    uint64_t length;
    memcpy(&length, map->data, sizeof length);
    if (length > MAX_HEADER_BYTES || length > map->bytes - LENGTH_BYTES)
        return gang_fail(GANG_ERR_FORMAT, "%s: the header claims %llu bytes of a file of %zu (at most %d): truncated, or not safetensors", path,
                         (unsigned long long)length, map->bytes, MAX_HEADER_BYTES);
    const char *text = (const char *)map->data + LENGTH_BYTES;
    json_error_t error;
    json_t *header = json_loadb(text, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!header) return gang_fail(GANG_ERR_FORMAT, "%s: header, byte %d: %s: the file is damaged", path, error.position, error.text);
    struct reader in = {.path = path, .out = out};
    in.data = map->data + LENGTH_BYTES + length;
    in.data_bytes = map->bytes - LENGTH_BYTES - length;
    enum gang_status status = read_header(&in, header);
    json_decref(header);
    return status;
}

enum gang_status gang_safetensors_open(const char *path, struct gang_safetensors *out) {
    *out = (struct gang_safetensors){0};
    gang_arena_init(&out->arena);
    enum gang_status status = gang_map_open(path, &out->map);
    if (!status) status = read_file(path, out);
    if (status) gang_safetensors_close(out);
    return status;
}

void gang_safetensors_close(struct gang_safetensors *st) {
    gang_map_close(&st->map);
    gang_arena_release(&st->arena);
    *st = (struct gang_safetensors){0};
}

const struct gang_st_entry *gang_safetensors_find(const struct gang_safetensors *st, const char *name) {
    struct gang_st_entry key = {.name = (char *)name};
    return st->count ? bsearch(&key, st->entries, (size_t)st->count, sizeof key, by_name) : NULL;
}
