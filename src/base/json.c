// JSON through jansson: strict (no doubled key, no zero byte in text, nesting bounded by jansson at 2048), with places.
#include "base/base.h"

#include <jansson.h>

enum gang_status gang_json_read(const char *path, size_t max_bytes, struct json_t **out) {
    *out = NULL;
    struct gang_buffer text = {0};
    enum gang_status status = gang_file_read(path, max_bytes, &text);
    if (status) return status;
    json_error_t error;
    *out = json_loadb(text.data, text.len, JSON_REJECT_DUPLICATES, &error);
    if (!*out) status = gang_fail(GANG_ERR_FORMAT, "%s:%d:%d: %s: expected JSON", path, error.line, error.column, error.text);
    gang_buffer_release(&text);
    return status;
}
