// YAML by schema: a mapping of scalars and lists of scalars, bound to a struct.
//
// A first pass over libyaml's events holds the file against our limits; then libyaml composes it into nodes that know their
// line. An alias is the index of its node, nothing is expanded. We read two levels: the mapping at the root and its values.
// Every value goes through one reader for its kind, the defaults of the schema too.
//
// Scalars follow the YAML 1.2 core schema: only a plain (unquoted) scalar can be a number, a truth value or null, and the
// truth values are `true` and `false`; `yes` and `no` are text.
#include "base/base.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

enum { MAX_FILE_BYTES = 1 << 20, MAX_DEPTH = 8, MAX_ANCHORS = 64, MAX_FIELDS = 128, MAX_NAME = 64, WHERE_BYTES = 512 };

// What a value looks like before its kind is known.
struct scalar {
    const char *text;
    bool plain;
};

static bool any_of(const char *text, const char *const *words) {
    for (; *words; words++)
        if (!strcmp(text, *words)) return true;
    return false;
}

static bool is_null(struct scalar value) {
    static const char *const nulls[] = {"", "~", "null", "Null", "NULL", NULL};
    return value.plain && any_of(value.text, nulls);
}

// ---- One value into its member -------------------------------------------------------------------------------------
// `where` is "FILE:LINE: field", the head of every message.

static enum gang_status read_bool(const char *where, const char *text, bool *out) {
    static const char *const yes[] = {"true", "True", "TRUE", NULL}, *const no[] = {"false", "False", "FALSE", NULL};
    *out = any_of(text, yes);
    if (*out || any_of(text, no)) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT, "%s: '%s' is not a truth value: expected true or false", where, text);
}

static enum gang_status read_choice(const char *where, const char *text, const char *const *choices, int *out) {
    char list[256] = "";
    for (int i = 0; choices[i]; i++) {
        if (!strcmp(text, choices[i])) {
            *out = i;
            return GANG_OK;
        }
        size_t len = strlen(list);
        snprintf(list + len, sizeof list - len, "%s%s", i ? ", " : "", choices[i]);
    }
    return gang_fail(GANG_ERR_INPUT, "%s: '%s' is not a choice: expected one of: %s", where, text, list);
}

static const char *kind_name(enum gang_field_kind kind) {
    static const char *const names[] = {"text", "text or a list of texts", "a whole number", "a number", "true or false", "a choice"};
    return names[kind];
}

static enum gang_status read_scalar(const char *where, const struct gang_field *field, struct scalar value, void *member, struct gang_arena *arena) {
    if (is_null(value))
        return gang_fail(GANG_ERR_INPUT, "%s: has no value: expected %s%s", where, kind_name(field->kind),
                         field->fallback ? ", or no such line for the default" : "");
    bool number = field->kind == GANG_FIELD_INT || field->kind == GANG_FIELD_REAL || field->kind == GANG_FIELD_BOOL;
    if (number && !value.plain)
        return gang_fail(GANG_ERR_INPUT, "%s: '%s' in quotes is text: expected %s, without quotes", where, value.text, kind_name(field->kind));

    switch (field->kind) {
    case GANG_FIELD_STRING:
        *(char **)member = gang_arena_strdup(arena, value.text);
        return GANG_OK;
    case GANG_FIELD_STRINGS: {
        struct gang_strings *strings = member;
        strings->count = 1;
        strings->items = gang_arena_alloc(arena, sizeof *strings->items);
        strings->items[0] = gang_arena_strdup(arena, value.text);
        return GANG_OK;
    }
    case GANG_FIELD_INT:
        return gang_parse_int(where, value.text, (int64_t)field->min, (int64_t)field->max, member);
    case GANG_FIELD_REAL:
        return gang_parse_real(where, value.text, field->min, field->max, member);
    case GANG_FIELD_BOOL:
        return read_bool(where, value.text, member);
    case GANG_FIELD_ENUM:
        return read_choice(where, value.text, field->choices, member);
    }
    assert(!"field kind");
    return GANG_ERR_INPUT;
}

// ---- The document --------------------------------------------------------------------------------------------------

struct reader {
    const char *path;
    yaml_document_t *document;
    const struct gang_field *fields;
    size_t count;
    struct gang_arena *arena;
};

static size_t line_of(const yaml_node_t *node) { return node->start_mark.line + 1; }

// The text of a scalar node; a node that is none, or holds a NUL, gives false.
static bool scalar_of(const yaml_node_t *node, struct scalar *out) {
    if (node->type != YAML_SCALAR_NODE) return false;
    out->text = (const char *)node->data.scalar.value;
    out->plain = node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    return strlen(out->text) == node->data.scalar.length;
}

static enum gang_status read_list(const struct reader *reader, const char *where, const yaml_node_t *node, struct gang_strings *out) {
    const yaml_node_item_t *start = node->data.sequence.items.start;
    size_t count = (size_t)(node->data.sequence.items.top - start);
    if (!count) return gang_fail(GANG_ERR_INPUT, "%s: the list is empty: expected at least one entry", where);
    out->items = gang_arena_alloc(reader->arena, count * sizeof *out->items);
    for (size_t i = 0; i < count; i++) {
        struct scalar value;
        if (!scalar_of(yaml_document_get_node(reader->document, start[i]), &value) || is_null(value))
            return gang_fail(GANG_ERR_INPUT, "%s: entry %zu of the list is not text: expected one text a line, '- text'", where, i + 1);
        out->items[i] = gang_arena_strdup(reader->arena, value.text);
    }
    out->count = (int)count;
    return GANG_OK;
}

static enum gang_status read_value(const struct reader *reader, const struct gang_field *field, const yaml_node_t *key, const yaml_node_t *node,
                                   void *member) {
    char where[WHERE_BYTES];
    snprintf(where, sizeof where, "%s:%zu: %s", reader->path, line_of(key), field->name);
    struct scalar value;
    if (scalar_of(node, &value)) return read_scalar(where, field, value, member, reader->arena);
    if (node->type == YAML_SEQUENCE_NODE && field->kind == GANG_FIELD_STRINGS) return read_list(reader, where, node, member);
    const char *what = node->type == YAML_SEQUENCE_NODE ? "a list" : node->type == YAML_MAPPING_NODE ? "a mapping" : "text with a zero byte";
    return gang_fail(GANG_ERR_INPUT, "%s: is %s: expected %s", where, what, kind_name(field->kind));
}

// Levenshtein distance with one row; both names shorter than MAX_NAME.
static size_t edit_distance(const char *a, const char *b) {
    size_t row[MAX_NAME], width = strlen(b);
    for (size_t j = 0; j <= width; j++) row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= width; j++) {
            size_t above = row[j], best = diagonal + (a[i - 1] != b[j - 1]);
            if (above + 1 < best) best = above + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = above;
            row[j] = best;
        }
    }
    return row[width];
}

static enum gang_status fail_unknown(const struct reader *reader, size_t line, const char *name) {
    const char *near = NULL;
    size_t best = strlen(name) / 3 + 1;
    for (size_t i = 0; i < reader->count && strlen(name) < MAX_NAME; i++) {
        size_t distance = edit_distance(name, reader->fields[i].name);
        if (distance > best || (near && distance == best)) continue;
        best = distance;
        near = reader->fields[i].name;
    }
    if (near) return gang_fail(GANG_ERR_INPUT, "%s:%zu: %s: unknown field: did you mean '%s'?", reader->path, line, name, near);
    char list[640] = "";
    for (size_t i = 0; i < reader->count; i++) {
        size_t len = strlen(list);
        snprintf(list + len, sizeof list - len, "%s%s", i ? ", " : "", reader->fields[i].name);
    }
    return gang_fail(GANG_ERR_INPUT, "%s:%zu: %.*s: unknown field: expected one of: %s", reader->path, line, MAX_NAME, name, list);
}

static enum gang_status read_pairs(const struct reader *reader, const yaml_node_t *root, char *out, bool *seen) {
    const yaml_node_pair_t *top = root->data.mapping.pairs.top;
    for (const yaml_node_pair_t *pair = root->data.mapping.pairs.start; pair < top; pair++) {
        const yaml_node_t *key = yaml_document_get_node(reader->document, pair->key);
        struct scalar name;
        if (!scalar_of(key, &name))
            return gang_fail(GANG_ERR_INPUT, "%s:%zu: a field's name is not text: expected lines of the form 'field: value'", reader->path,
                             line_of(key));
        size_t i = 0;
        while (i < reader->count && strcmp(reader->fields[i].name, name.text) != 0) i++;
        if (i == reader->count) return fail_unknown(reader, line_of(key), name.text);
        if (seen[i]) return gang_fail(GANG_ERR_INPUT, "%s:%zu: %s: given twice: expected one such line", reader->path, line_of(key), name.text);
        seen[i] = true;
        const yaml_node_t *value = yaml_document_get_node(reader->document, pair->value);
        enum gang_status status = read_value(reader, &reader->fields[i], key, value, out + reader->fields[i].offset);
        if (status) return status;
    }
    return GANG_OK;
}

static enum gang_status read_document(const struct reader *reader, char *out) {
    bool seen[MAX_FIELDS] = {false};
    const yaml_node_t *root = yaml_document_get_root_node(reader->document);
    // An empty file, or one of comments only, is a mapping without fields.
    if (root && root->type != YAML_MAPPING_NODE)
        return gang_fail(GANG_ERR_INPUT, "%s:%zu: not a mapping: expected lines of the form 'field: value'", reader->path, line_of(root));
    enum gang_status status = root ? read_pairs(reader, root, out, seen) : GANG_OK;
    for (size_t i = 0; !status && i < reader->count; i++) {
        const struct gang_field *field = &reader->fields[i];
        if (!seen[i] && !field->fallback)
            status = gang_fail(GANG_ERR_INPUT, "%s: %s: missing: this field is required (%s)", reader->path, field->name,
                               field->help ? field->help : kind_name(field->kind));
    }
    return status;
}

// Defaults stand in the program, not in the file: one that does not parse is our bug.
static void set_defaults(const struct gang_field *fields, size_t count, char *out, struct gang_arena *arena) {
    assert(count <= MAX_FIELDS);
    for (size_t i = 0; i < count; i++) {
        assert(strlen(fields[i].name) < MAX_NAME);
        if (!fields[i].fallback) continue;
        // The empty text is a fine default for a string, and so not the plain scalar that means null.
        bool text = fields[i].kind == GANG_FIELD_STRING || fields[i].kind == GANG_FIELD_STRINGS || fields[i].kind == GANG_FIELD_ENUM;
        struct scalar value = {.text = fields[i].fallback, .plain = !text};
        enum gang_status status = read_scalar("default", &fields[i], value, out + fields[i].offset, arena);
        assert(status == GANG_OK && "the schema's default does not fit its field");
    }
}

// ---- The parser ----------------------------------------------------------------------------------------------------

static enum gang_status fail_syntax(const yaml_parser_t *parser, const char *path, const struct gang_buffer *text) {
    const char *problem = parser->problem ? parser->problem : "damaged YAML";
    if (parser->error == YAML_MEMORY_ERROR) return gang_fail(GANG_ERR_MEMORY, "%s: no memory to read it", path);
    size_t line = parser->problem_mark.line + 1, column = parser->problem_mark.column + 1;
    if (parser->error == YAML_READER_ERROR) { // knows the byte only
        line = 1;
        for (size_t i = 0; i < parser->problem_offset && i < text->len; i++) line += text->data[i] == '\n';
        return gang_fail(GANG_ERR_INPUT, "%s:%zu: %s: expected UTF-8 text without control characters", path, line, problem);
    }
    const char *hint = strstr(problem, "tab")                      ? ": indent by spaces"
                       : strstr(problem, "cannot start any token") ? ": indent by spaces, and put text with special characters in quotes"
                                                                   : "";
    return gang_fail(GANG_ERR_INPUT, "%s:%zu:%zu: %s%s%s%s", path, line, column, problem, parser->context ? " " : "",
                     parser->context ? parser->context : "", hint);
}

static enum gang_status parser_open(yaml_parser_t *parser, const char *path, const struct gang_buffer *text) {
    if (!yaml_parser_initialize(parser)) return gang_fail(GANG_ERR_MEMORY, "%s: no memory to read it", path);
    yaml_parser_set_input_string(parser, (const unsigned char *)text->data, text->len);
    return GANG_OK;
}

// What one pass over the events counts against the limits.
struct tally {
    int documents, depth, anchors;
};

static enum gang_status count_event(const char *path, const yaml_event_t *event, struct tally *tally) {
    const yaml_char_t *anchor = NULL;
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        tally->documents++;
        break;
    case YAML_SCALAR_EVENT:
        anchor = event->data.scalar.anchor;
        break;
    case YAML_SEQUENCE_START_EVENT:
        anchor = event->data.sequence_start.anchor;
        tally->depth++;
        break;
    case YAML_MAPPING_START_EVENT:
        anchor = event->data.mapping_start.anchor;
        tally->depth++;
        break;
    case YAML_SEQUENCE_END_EVENT:
    case YAML_MAPPING_END_EVENT:
        tally->depth--;
        break;
    default:
        break;
    }
    tally->anchors += anchor != NULL;
    size_t line = event->start_mark.line + 1;
    if (tally->documents > 1) return gang_fail(GANG_ERR_INPUT, "%s:%zu: a second document begins: expected one in the file", path, line);
    if (tally->depth > MAX_DEPTH)
        return gang_fail(GANG_ERR_INPUT, "%s:%zu: nested deeper than %d levels: expected 'field: value'", path, line, MAX_DEPTH);
    if (tally->anchors > MAX_ANCHORS) return gang_fail(GANG_ERR_INPUT, "%s:%zu: more than %d anchors (&name)", path, line, MAX_ANCHORS);
    return GANG_OK;
}

// Refuses what would make libyaml's composer slow before it composes: its work grows by the square of depth and anchors.
static enum gang_status check_limits(const char *path, const struct gang_buffer *text) {
    yaml_parser_t parser;
    enum gang_status status = parser_open(&parser, path, text);
    if (status) return status;
    struct tally tally = {0};
    for (bool more = true; more && !status;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            status = fail_syntax(&parser, path, text);
            break;
        }
        more = event.type != YAML_STREAM_END_EVENT;
        status = count_event(path, &event, &tally);
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return status;
}

static enum gang_status bind_text(const char *path, const struct gang_buffer *text, const struct gang_field *fields, size_t count, void *out,
                                  struct gang_arena *arena) {
    enum gang_status status = check_limits(path, text);
    if (status) return status;
    yaml_parser_t parser;
    status = parser_open(&parser, path, text);
    if (status) return status;
    yaml_document_t document;
    if (!yaml_parser_load(&parser, &document)) {
        status = fail_syntax(&parser, path, text);
    } else {
        struct reader reader = {.path = path, .document = &document, .fields = fields, .count = count, .arena = arena};
        status = read_document(&reader, out);
        yaml_document_delete(&document);
    }
    yaml_parser_delete(&parser);
    return status;
}

enum gang_status gang_yaml_bind(const char *path, const struct gang_field *fields, size_t count, void *out, struct gang_arena *arena) {
    set_defaults(fields, count, out, arena);
    struct gang_buffer text = {0};
    enum gang_status status = gang_file_read(path, MAX_FILE_BYTES, &text);
    if (!status) status = bind_text(path, &text, fields, count, out, arena);
    gang_buffer_release(&text);
    return status;
}
