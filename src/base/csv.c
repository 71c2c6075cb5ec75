// CSV into a table.
#include "base/base.h"

#include <string.h>

enum { MAX_COLUMNS = 64 };

struct csv {
    const char *path;
    char *at; // fields are cut and unquoted in place
    int line;
};

// The field that begins at `at`; `last` says whether its row ends with it.
static enum gang_status next_field(struct csv *in, char **out, bool *last) {
    char *to = in->at;
    *out = to;
    if (*in->at == '"') {
        in->at++;
        for (;; in->at++) {
            if (!*in->at) return gang_fail(GANG_ERR_INPUT, "%s:%d: a quoted field does not end", in->path, in->line);
            if (*in->at == '"' && *++in->at != '"') break;
            in->line += *in->at == '\n';
            *to++ = *in->at;
        }
    } else {
        while (*in->at && *in->at != ',' && *in->at != '\n' && *in->at != '\r') *to++ = *in->at++;
    }
    if (*in->at == '\r' && in->at[1] == '\n') in->at++;
    char stop = *in->at;
    if (stop && stop != ',' && stop != '\n')
        return gang_fail(GANG_ERR_INPUT, "%s:%d: text behind a quoted field: expected a comma", in->path, in->line);
    *last = stop != ',';
    in->line += stop == '\n';
    if (stop) in->at++;
    *to = 0;
    return GANG_OK;
}

static enum gang_status read_row(struct csv *in, char **fields, int *count) {
    *count = 0;
    for (bool last = false; !last;) {
        if (*count == MAX_COLUMNS) return gang_fail(GANG_ERR_INPUT, "%s:%d: more than %d columns", in->path, in->line, MAX_COLUMNS);
        enum gang_status status = next_field(in, &fields[(*count)++], &last);
        if (status) return status;
    }
    return GANG_OK;
}

enum gang_status gang_csv_read(const char *path, size_t max_bytes, struct gang_arena *arena, struct gang_csv *out) {
    struct gang_buffer text = {0}, cells = {0}, lines = {0};
    char *fields[MAX_COLUMNS];
    *out = (struct gang_csv){0};
    enum gang_status status = gang_file_read(path, max_bytes, &text);
    struct csv in = {.path = path, .line = 1};
    if (!status) {
        in.at = gang_arena_alloc(arena, text.len + 1);
        if (text.len) memcpy(in.at, text.data, text.len);
        if (strlen(in.at) != text.len || !text.len)
            status = gang_fail(GANG_ERR_INPUT, "%s: not a table: %s", path, text.len ? "holds a zero byte" : "it is empty");
    }
    while (!status && *in.at) {
        int line = in.line, count = 0;
        status = read_row(&in, fields, &count);
        if (status) break;
        if (!out->columns) {
            out->columns = count;
        } else if (count != out->columns) {
            status = gang_fail(GANG_ERR_INPUT, "%s:%d: %d fields: the header has %d", path, line, count, out->columns);
            break;
        }
        gang_buffer_append(&cells, fields, (size_t)count * sizeof *fields);
        gang_buffer_append(&lines, &line, sizeof line);
    }
    if (!status && lines.len) {
        out->rows = (int)(lines.len / sizeof(int)) - 1;
        out->names = gang_arena_alloc(arena, cells.len);
        memcpy(out->names, cells.data, cells.len);
        out->cells = out->names + out->columns;
        out->lines = gang_arena_alloc(arena, lines.len);
        memcpy(out->lines, lines.data + sizeof(int), lines.len - sizeof(int));
    }
    gang_buffer_release(&text);
    gang_buffer_release(&cells);
    gang_buffer_release(&lines);
    return status;
}

const char *gang_csv_cell(const struct gang_csv *table, int row, const char *column) {
    for (int c = 0; c < table->columns; c++)
        if (!strcmp(table->names[c], column)) return table->cells[(size_t)row * (size_t)table->columns + (size_t)c];
    return NULL;
}
