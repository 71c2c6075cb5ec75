// Text to ids and back. The order is that of the Rust `tokenizers` library:
//
//   text ── added tokens, raw ── normaliser ── added tokens, normalised ── pre-tokenizer ── BPE of each word
//
// and before it a cut of our own: those stages know only valid UTF-8, so each maximal run of other bytes is a word by
// itself, and what lies between such runs is encoded as the library would encode it.
//
// Where a document may be cut (gang_cut_is_safe). The patterns of GPT-2, Llama 3 and Qwen have no look-behind, so matching
// can start anew at any border between two words; a cut is safe where such a border stands whatever the text around, and
// where the look-ahead of `\s+(?!\S)` cannot tell the cut from the end of the text. That is
//   A. before a space that follows something other than white space: no word of these patterns goes on across a space;
//   B. after a line feed that stands alone between two characters other than white space: it ends a word in all of them
//      (but add_prefix_space might put a space there).
// An added token that reaches across, or takes the white space beside the cut, makes it unsafe. (An added token written in
// another normal form than the text is not seen here; none is known that holds white space.)
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "model/tokenizer_internal.h"

// ---- UTF-8 ---------------------------------------------------------------------------------------------------------

static bool continues(char byte) { return ((uint8_t)byte & 0xC0) == 0x80; }

size_t gang_utf8_char(const char *text, size_t bytes) {
    if (!bytes) return 0;
    uint8_t first = (uint8_t)text[0], second = bytes > 1 ? (uint8_t)text[1] : 0;
    if (first < 0x80) return 1;
    if (first < 0xC2 || first > 0xF4 || bytes < 2 || !continues(text[1])) return 0;
    if (first < 0xE0) return 2;
    if (bytes < 3 || !continues(text[2])) return 0;
    if (first < 0xF0) return (first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ? 0 : 3;
    if (bytes < 4 || !continues(text[3])) return 0;
    return (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F) ? 0 : 4;
}

size_t gang_utf8_valid(const char *text, size_t bytes) {
    size_t at = 0;
    for (size_t len; at < bytes && (len = gang_utf8_char(text + at, bytes - at)); at += len) {}
    return at;
}

static bool is_space(const char *text, size_t len) {
    const uint8_t *c = (const uint8_t *)text;
    if (len == 1) return c[0] == ' ' || (c[0] >= '\t' && c[0] <= '\r');
    if (len == 2) return c[0] == 0xC2 && (c[1] == 0x85 || c[1] == 0xA0);
    if (len != 3) return false;
    uint32_t code = (c[0] & 0x0Fu) << 12 | (c[1] & 0x3Fu) << 6 | (c[2] & 0x3Fu);
    return code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 || code == 0x202F || code == 0x205F ||
           code == 0x3000;
}

size_t gang_space_at_start(const char *text, size_t bytes) {
    size_t len = gang_utf8_char(text, bytes);
    return is_space(text, len) ? len : 0;
}

size_t gang_space_at_end(const char *text, size_t bytes) {
    for (size_t len = 1; len <= 3 && len <= bytes; len++)
        if (gang_utf8_char(text + bytes - len, len) == len) return is_space(text + bytes - len, len) ? len : 0;
    return 0;
}

// ---- Added tokens --------------------------------------------------------------------------------------------------

void gang_added_init(struct gang_added_set *set, struct gang_added *items, int count, struct gang_arena *arena) {
    size_t bytes = 0;
    for (int i = 0; i < count; i++) bytes += items[i].len;
    *set = (struct gang_added_set){.count = count, .items = items};
    gang_table_init(&set->edges, bytes, arena);
    set->ends = gang_arena_alloc(arena, (bytes + 1) * sizeof *set->ends);
    set->ends[0] = -1;
    uint32_t nodes = 1;
    for (int i = 0; i < count; i++) {
        uint32_t node = 0;
        for (uint32_t k = 0; k < items[i].len; k++) {
            uint64_t edge = (uint64_t)node << 8 | (uint8_t)items[i].text[k];
            if (gang_table_get(&set->edges, edge, &node)) continue;
            gang_table_put(&set->edges, edge, nodes);
            set->ends[nodes] = -1;
            node = nodes++;
        }
        set->ends[node] = i;
        set->first[(uint8_t)items[i].text[0]] = true;
    }
}

// The longest added token that `text` begins with; NULL if none.
static const struct gang_added *longest_added(const struct gang_added_set *set, const char *text, size_t bytes) {
    const struct gang_added *best = NULL;
    uint32_t node = 0;
    for (size_t i = 0; i < bytes && gang_table_get(&set->edges, (uint64_t)node << 8 | (uint8_t)text[i], &node); i++)
        if (set->ends[node] >= 0) best = &set->items[set->ends[node]];
    return best;
}

// The leftmost added token of text[from, bytes), the longest of those that start there; *at: where.
static const struct gang_added *next_added(const struct gang_added_set *set, const char *text, size_t bytes, size_t from, size_t *at) {
    if (!set->count) return NULL;
    for (size_t i = from; i < bytes; i++) {
        if (!set->first[(uint8_t)text[i]]) continue;
        const struct gang_added *found = longest_added(set, text + i, bytes - i);
        if (!found) continue;
        *at = i;
        return found;
    }
    return NULL;
}

static enum gang_status after_added(struct gang_encoder *encoder, int set, const char *text, size_t bytes);

// Ids of the added tokens of `set` in `text`; what lies between them goes on.
static enum gang_status split_added(struct gang_encoder *encoder, int set, const char *text, size_t bytes) {
    size_t done = 0; // encoded up to here
    size_t at = 0, next = 0;
    const struct gang_added *found;
    while ((found = next_added(&encoder->tokenizer->added[set], text, bytes, next, &at))) {
        next = at + found->len;
        if (found->special && !encoder->specials) continue;
        size_t from = at, to = next;
        for (size_t len; found->lstrip && from > done && (len = gang_space_at_end(text + done, from - done)); from -= len) {}
        for (size_t len; found->rstrip && (len = gang_space_at_start(text + to, bytes - to)); to += len) {}
        if (from < done) from = done; // a token of white space, taken already by its neighbour
        enum gang_status status = after_added(encoder, set, text + done, from - done);
        if (status) return status;
        gang_ids_append(encoder->out, found->id);
        encoder->continued = false;
        done = to;
        if (next < done) next = done;
    }
    return after_added(encoder, set, text + done, bytes - done);
}

static enum gang_status after_added(struct gang_encoder *encoder, int set, const char *text, size_t bytes) {
    if (!bytes) return GANG_OK;
    if (set == 1) return gang_pretokenize(encoder, 0, text, bytes);
    if (!encoder->tokenizer->nfc) return split_added(encoder, 1, text, bytes);
    char *normal;
    size_t normal_bytes;
    enum gang_status status = gang_nfc(text, bytes, &normal, &normal_bytes);
    if (status) return status;
    status = split_added(encoder, 1, normal, normal_bytes);
    if (normal != text) free(normal);
    return status;
}

// ---- Normaliser ----------------------------------------------------------------------------------------------------

enum gang_status gang_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes) {
    *out = (char *)text;
    *out_bytes = bytes;
    // Nothing below U+0300 composes with its like or is decomposed; UTF-8 writes U+0300 as CC 80.
    size_t at = 0;
    while (at < bytes && (uint8_t)text[at] < 0xCC) at++;
    if (at == bytes) return GANG_OK;
    utf8proc_uint8_t *normal = NULL;
    utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)bytes, &normal, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (len == UTF8PROC_ERROR_NOMEM) return gang_fail(GANG_ERR_MEMORY, "cannot normalise %zu bytes of text: no memory", bytes);
    assert(len >= 0 && "valid UTF-8 can be normalised");
    *out = (char *)normal;
    *out_bytes = (size_t)len;
    return GANG_OK;
}

// ---- Encode --------------------------------------------------------------------------------------------------------

void gang_ids_append(struct gang_ids *ids, int32_t id) {
    if (ids->count == ids->cap) {
        ids->cap = ids->cap ? 2 * ids->cap : 256;
        ids->items = realloc(ids->items, ids->cap * sizeof *ids->items);
        assert(ids->items && "out of memory");
    }
    ids->items[ids->count++] = id;
}

void gang_ids_release(struct gang_ids *ids) {
    free(ids->items);
    *ids = (struct gang_ids){0};
}

void gang_encoder_init(struct gang_encoder *encoder, const struct gang_tokenizer *tokenizer) {
    *encoder = (struct gang_encoder){.tokenizer = tokenizer};
    if (!tokenizer->path) return;
    encoder->bpe = gang_bpe_new(tokenizer);
    encoder->match = pcre2_match_data_create(1, NULL);
    encoder->context = pcre2_match_context_create(NULL);
    encoder->stack = pcre2_jit_stack_create((size_t)32 << 10, (size_t)8 << 20, NULL);
    assert(encoder->match && encoder->context && "out of memory");
    if (encoder->stack) pcre2_jit_stack_assign(encoder->context, NULL, encoder->stack);
}

void gang_encoder_release(struct gang_encoder *encoder) {
    gang_bpe_free(encoder->bpe);
    pcre2_match_data_free(encoder->match);
    pcre2_match_context_free(encoder->context);
    pcre2_jit_stack_free(encoder->stack);
    gang_buffer_release(&encoder->prefixed);
    *encoder = (struct gang_encoder){0};
}

static size_t invalid_run(const char *text, size_t bytes) {
    size_t at = 0;
    while (at < bytes && !gang_utf8_char(text + at, bytes - at)) at++;
    return at;
}

enum gang_status gang_encoder_run(struct gang_encoder *encoder, const char *text, size_t bytes, bool specials, bool continued, struct gang_ids *out) {
    if (bytes > INT32_MAX)
        return gang_fail(GANG_ERR_INPUT, "cannot encode %zu bytes of text at once: more than %d: encode it in parts", bytes, INT32_MAX);
    if (!encoder->tokenizer->path) {
        for (size_t i = 0; i < bytes; i++) gang_ids_append(out, (uint8_t)text[i]);
        return GANG_OK;
    }
    encoder->out = out;
    encoder->specials = specials;
    encoder->continued = continued;
    for (size_t at = 0; at < bytes;) {
        size_t valid = gang_utf8_valid(text + at, bytes - at);
        enum gang_status status = valid ? split_added(encoder, 0, text + at, valid) : GANG_OK;
        if (status) return status;
        at += valid;
        size_t invalid = invalid_run(text + at, bytes - at);
        gang_bpe_word(encoder->bpe, text + at, invalid, out);
        at += invalid;
        encoder->continued = true;
    }
    return GANG_OK;
}

enum gang_status gang_encode(const struct gang_tokenizer *tokenizer, const char *text, size_t bytes, bool specials, struct gang_ids *out) {
    struct gang_encoder encoder;
    gang_encoder_init(&encoder, tokenizer);
    enum gang_status status = gang_encoder_run(&encoder, text, bytes, specials, false, out);
    gang_encoder_release(&encoder);
    return status;
}

// ---- Decode --------------------------------------------------------------------------------------------------------

enum gang_status gang_decode(const struct gang_tokenizer *tokenizer, const int32_t *ids, size_t count, bool specials, struct gang_buffer *out) {
    for (size_t i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= tokenizer->vocab)
            return gang_fail(GANG_ERR_INPUT, "cannot decode token id %d: expected 0 to %d, the vocabulary of %s", ids[i], tokenizer->vocab - 1,
                             tokenizer->path ? tokenizer->path : "the byte tokenizer");
        const struct gang_token *token = &tokenizer->tokens[ids[i]];
        if (token->bytes && (specials || !token->special)) gang_buffer_append(out, token->bytes, token->len);
    }
    return GANG_OK;
}

// ---- Cutting a document --------------------------------------------------------------------------------------------

// True if an added token lies across `at`, or touches the white space [lo, hi] around it that it might take.
static bool added_in_the_way(const struct gang_tokenizer *tokenizer, const char *text, size_t bytes, size_t lo, size_t at, size_t hi) {
    for (int set = 0; set < 2; set++) {
        const struct gang_added_set *added = &tokenizer->added[set];
        if (!added->count) continue;
        for (size_t from = lo > GANG_MAX_ADDED_BYTES ? lo - GANG_MAX_ADDED_BYTES : 0; from <= hi && from < bytes; from++) {
            const struct gang_added *found = added->first[(uint8_t)text[from]] ? longest_added(added, text + from, bytes - from) : NULL;
            if (!found) continue;
            size_t to = from + found->len;
            if (tokenizer->strips ? to >= lo : from < at && to > at) return true;
        }
    }
    return false;
}

bool gang_cut_is_safe(const struct gang_tokenizer *tokenizer, const char *text, size_t bytes, size_t at) {
    if (at == 0 || at >= bytes || !tokenizer->path) return true;
    enum { MAX_SPACE = GANG_CUT_CONTEXT / 2 };
    size_t lo = at, hi = at;
    for (size_t len; at - lo < MAX_SPACE && (len = gang_space_at_end(text, lo)); lo -= len) {}
    for (size_t len; hi - at < MAX_SPACE && (len = gang_space_at_start(text + hi, bytes - hi)); hi += len) {}
    if (hi - at >= MAX_SPACE) return false;
    bool before_space = lo == at && text[at] == ' ';
    bool after_line = at - lo == 1 && text[lo] == '\n' && hi == at && !tokenizer->puts_space;
    return (before_space || after_line) && !added_in_the_way(tokenizer, text, bytes, lo, at, hi);
}
