// Bodies of messages: JSON objects, whose numbers come out as they went in.
#include "fleet/internal.h"

#include <stdio.h>

enum gang_status gang_fleet_parse(const void *data, size_t bytes, json_t **out) {
    json_error_t error;
    *out = json_loadb(data, bytes, JSON_REJECT_DUPLICATES, &error);
    if (json_is_object(*out)) return GANG_OK;
    json_decref(*out);
    *out = NULL;
    return gang_fail(GANG_ERR_FORMAT, "run: a message that is no JSON object: %s", error.text);
}

double gang_fleet_number(const json_t *object, const char *key) { return json_number_value(json_object_get(object, key)); }

enum gang_status gang_fleet_numbers(const json_t *object, const char *key, int count, double *out) {
    const json_t *array = json_object_get(object, key);
    if (!json_is_array(array) || json_array_size(array) != (size_t)count)
        return gang_fail(GANG_ERR_FORMAT, "run: message lacks %s: expected %d numbers", key, count);
    for (int i = 0; i < count; i++) out[i] = json_number_value(json_array_get(array, (size_t)i));
    return GANG_OK;
}

void gang_fleet_sum(const char *path, char out[17]) {
    enum { MAX_BYTES = 1 << 24 };
    struct gang_buffer text = {0};
    *out = 0;
    if (!gang_file_read(path, MAX_BYTES, &text)) snprintf(out, 17, "%016llx", (unsigned long long)gang_hash(text.data, text.len, 0));
    gang_buffer_release(&text);
}

void gang_fleet_sum_model(const char *path, char out[17]) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    gang_fleet_sum(gang_path_is_dir(path) ? gang_arena_printf(&arena, "%s/config.json", path) : path, out);
    gang_arena_release(&arena);
}

json_t *gang_fleet_array(int count, const double *values) {
    json_t *array = json_array();
    for (int i = 0; i < count; i++) json_array_append_new(array, json_real(values[i]));
    return array;
}

// The arrays of struct gang_times by name.
#define TIMES(name) \
    { #name, offsetof(struct gang_times, name) }
static const struct {
    const char *name;
    size_t offset;
} times_fields[] = {TIMES(forward),        TIMES(input),        TIMES(weight),       TIMES(first_forward),
                    TIMES(first_backward), TIMES(last_forward), TIMES(last_backward)};
enum { TIMES_FIELDS = sizeof times_fields / sizeof *times_fields };

json_t *gang_fleet_times_json(const struct gang_times *t) {
    json_t *object = json_object();
    double sizes[GANG_TIMES_SIZES];
    for (int i = 0; i < t->count; i++) sizes[i] = (double)t->size[i];
    json_object_set_new(object, "sizes", gang_fleet_array(t->count, sizes));
    for (int f = 0; f < TIMES_FIELDS; f++)
        json_object_set_new(object, times_fields[f].name, gang_fleet_array(t->count, (const double *)((const char *)t + times_fields[f].offset)));
    json_object_set_new(object, "optimizer", json_real(t->optimizer));
    return object;
}

enum gang_status gang_fleet_times_parse(const json_t *object, struct gang_times *out) {
    size_t count = json_array_size(json_object_get(object, "sizes"));
    double sizes[GANG_TIMES_SIZES] = {0};
    if (!count || count > GANG_TIMES_SIZES) return gang_fail(GANG_ERR_FORMAT, "run: times of %zu sizes: expected 1 to %d", count, GANG_TIMES_SIZES);
    *out = (struct gang_times){.count = (int)count, .optimizer = gang_fleet_number(object, "optimizer")};
    if (!(out->optimizer >= 0 && out->optimizer < 1e6)) return gang_fail(GANG_ERR_FORMAT, "run: times: optimizer is %g s", out->optimizer);
    enum gang_status status = gang_fleet_numbers(object, "sizes", out->count, sizes);
    for (int i = 0; i < out->count; i++) out->size[i] = (int64_t)sizes[i];
    for (int f = 0; f < TIMES_FIELDS && !status; f++) {
        double *values = (double *)((char *)out + times_fields[f].offset);
        status = gang_fleet_numbers(object, times_fields[f].name, out->count, values);
        for (int i = 0; i < out->count && !status; i++)
            if (!(values[i] >= 0 && values[i] < 1e6) || out->size[i] < 1 || (i && out->size[i] <= out->size[i - 1]))
                status = gang_fail(GANG_ERR_FORMAT, "run: times: %s at size %lld is %g s", times_fields[f].name, (long long)out->size[i], values[i]);
    }
    return status;
}
