// Loading a tokenizer: the 256 bytes, or a tokenizer.json of kind BPE with byte level as GPT-2, Llama 3 and Qwen write it.
//
// Everything in the file is either carried out, known not to touch the ids (offsets, post-processing), or refused by name.
// Tables are sized by what the file holds, never by a number that it claims.
//
// Byte level: the vocabulary is spelt in letters that stand for bytes. Printable Latin-1 stands for itself, the other 68
// bytes for U+0100 onwards in their order. A token with any other letter cannot come out of a merge; it is kept as it is.
#include <assert.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

// Part of gang_tokenizer_hash: raise it when the same file begins to give other ids.
enum { ENCODING_VERSION = 1 };

static const size_t max_file_bytes = (size_t)256 << 20;

static const char gpt2_pattern[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// ---- JSON, with the file's name in every complaint -----------------------------------------------------------------

static enum gang_status bad(const struct gang_tokenizer *t, const char *where, const char *what) {
    return gang_fail(GANG_ERR_FORMAT, "%s: %s: %s", t->path, where, what);
}

static enum gang_status unsupported(const struct gang_tokenizer *t, const char *where, const char *what) {
    return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %s: %s is not supported", t->path, where, what);
}

// `keys` ends with NULL.
static enum gang_status only_keys(const struct gang_tokenizer *t, const char *where, json_t *object, const char *const *keys) {
    if (!json_is_object(object)) return bad(t, where, "missing or not an object");
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value) {
        const char *const *known = keys;
        while (*known && strcmp(*known, key) != 0) known++;
        if (!*known) return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %s: the field '%.64s' is not supported", t->path, where, key);
    }
    return GANG_OK;
}

static enum gang_status get_bool(const struct gang_tokenizer *t, const char *where, json_t *object, const char *key, bool fallback, bool *out) {
    json_t *value = json_object_get(object, key);
    *out = value && !json_is_null(value) ? json_is_true(value) : fallback;
    if (!value || json_is_null(value) || json_is_boolean(value)) return GANG_OK;
    return gang_fail(GANG_ERR_FORMAT, "%s: %s: %s: expected true or false", t->path, where, key);
}

static enum gang_status get_string(const struct gang_tokenizer *t, const char *where, json_t *object, const char *key, const char **out) {
    *out = json_string_value(json_object_get(object, key));
    return *out ? GANG_OK : gang_fail(GANG_ERR_FORMAT, "%s: %s: %s: missing or not a string", t->path, where, key);
}

static bool has_value(json_t *object, const char *key) {
    json_t *value = json_object_get(object, key);
    return value && !json_is_null(value);
}

// ---- Byte level ----------------------------------------------------------------------------------------------------

static bool stands_for_itself(unsigned byte) { return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE; }

// letter[code point] -> byte, -1 for none; all letters are below U+0144.
enum { LETTERS = 0x100 + 68 };

static void byte_letters(int16_t letter[LETTERS]) {
    for (int i = 0; i < LETTERS; i++) letter[i] = -1;
    int next = 0x100;
    for (int byte = 0; byte < 256; byte++) letter[stands_for_itself((unsigned)byte) ? byte : next++] = (int16_t)byte;
}

// The bytes that `spelling` (valid UTF-8) stands for, into `out` of at least strlen(spelling); false: not all are letters.
static bool unspell(const int16_t letter[LETTERS], const char *spelling, size_t len, char *out, uint32_t *out_len) {
    uint32_t count = 0;
    for (size_t i = 0; i < len; i++) {
        unsigned code = (uint8_t)spelling[i];
        if (code >= 0xC2 && code <= 0xDF && i + 1 < len)
            code = (code & 0x1Fu) << 6 | ((uint8_t)spelling[++i] & 0x3Fu);
        else if (code >= 0x80)
            return false;
        if (code >= LETTERS || letter[code] < 0) return false;
        out[count++] = (char)letter[code];
    }
    *out_len = count;
    return true;
}

// ---- Vocabulary ----------------------------------------------------------------------------------------------------

static enum gang_status check_id(const struct gang_tokenizer *t, const char *where, const char *token, json_t *value, int32_t *id) {
    if (!json_is_integer(value)) return gang_fail(GANG_ERR_FORMAT, "%s: %s: '%.64s': the id is missing or not a whole number", t->path, where, token);
    json_int_t number = json_integer_value(value);
    if (number < 0 || number > GANG_MAX_TOKEN_ID)
        return gang_fail(GANG_ERR_FORMAT, "%s: %s: '%.64s': id %lld is out of range: expected 0 to %d", t->path, where, token, (long long)number,
                         GANG_MAX_TOKEN_ID);
    *id = (int32_t)number;
    return GANG_OK;
}

// t->vocab becomes the highest id of vocabulary and added tokens, plus one.
static enum gang_status count_ids(struct gang_tokenizer *t, json_t *vocab, json_t *added) {
    if (!json_is_object(vocab) || !json_object_size(vocab)) return bad(t, "model.vocab", "missing, empty or not an object");
    if (added && !json_is_null(added) && !json_is_array(added)) return bad(t, "added_tokens", "not an array");
    int32_t id = 0;
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value) {
        enum gang_status status = check_id(t, "model.vocab", key, value, &id);
        if (status) return status;
        if (id >= t->vocab) t->vocab = id + 1;
    }
    size_t index;
    json_array_foreach(added, index, value) {
        enum gang_status status = check_id(t, "added_tokens", "id", json_object_get(value, "id"), &id);
        if (status) return status;
        if (id >= t->vocab) t->vocab = id + 1;
    }
    return GANG_OK;
}

static void add_word(struct gang_tokenizer *t, int32_t id) {
    const struct gang_token *token = &t->tokens[id];
    uint64_t probe = 0;
    uint32_t other;
    while (gang_table_get(&t->words, gang_word_key(token->bytes, token->len, probe), &other)) probe++;
    gang_table_put(&t->words, gang_word_key(token->bytes, token->len, probe), (uint32_t)id);
    if (token->len > t->word_bytes) t->word_bytes = token->len;
    if (token->len == 1) t->byte_ids[(uint8_t)token->bytes[0]] = id;
}

static enum gang_status load_vocab(struct gang_tokenizer *t, json_t *vocab) {
    int16_t letter[LETTERS];
    byte_letters(letter);
    gang_table_init(&t->words, json_object_size(vocab), &t->arena);
    for (int i = 0; i < 256; i++) t->byte_ids[i] = -1;
    size_t text_bytes = 0;
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value) text_bytes += strlen(key);
    char *text = gang_arena_alloc(&t->arena, text_bytes + 1);
    json_object_foreach(vocab, key, value) {
        int32_t id = (int32_t)json_integer_value(value);
        struct gang_token *token = &t->tokens[id];
        size_t len = strlen(key);
        if (token->bytes) return gang_fail(GANG_ERR_FORMAT, "%s: model.vocab: '%.64s': id %d belongs to another token too", t->path, key, id);
        if (!len) return bad(t, "model.vocab", "a token is empty");
        token->word = unspell(letter, key, len, text, &token->len);
        if (!token->word) token->len = (uint32_t)len;
        if (!token->word) memcpy(text, key, len);
        token->bytes = text;
        text += token->len;
        if (token->word) add_word(t, id);
    }
    for (int i = 0; i < 256; i++)
        if (t->byte_ids[i] < 0)
            return gang_fail(GANG_ERR_UNSUPPORTED, "%s: model.vocab: no token for byte 0x%02x: only complete byte-level vocabularies are supported",
                             t->path, (unsigned)i);
    return GANG_OK;
}

// ---- Merges --------------------------------------------------------------------------------------------------------

// Splits "left right" or ["left", "right"]; the strings live in `copy`.
static bool read_pair(json_t *merge, struct gang_buffer *copy, const char **left, const char **right) {
    if (json_is_array(merge)) {
        *left = json_string_value(json_array_get(merge, 0));
        *right = json_string_value(json_array_get(merge, 1));
        return json_array_size(merge) == 2 && *left && *right;
    }
    const char *text = json_string_value(merge), *space = text ? strchr(text, ' ') : NULL;
    if (!space || strchr(space + 1, ' ')) return false;
    copy->len = 0;
    gang_buffer_append(copy, text, strlen(text));
    copy->data[space - text] = 0;
    *left = copy->data;
    *right = copy->data + (space - text) + 1;
    return true;
}

static enum gang_status load_merge(struct gang_tokenizer *t, json_t *vocab, json_t *merge, size_t rank, struct gang_buffer *copy,
                                   struct gang_buffer *joined) {
    const char *left = NULL, *right = NULL;
    if (!read_pair(merge, copy, &left, &right))
        return gang_fail(GANG_ERR_FORMAT, "%s: model.merges[%zu]: expected \"left right\" or [\"left\", \"right\"]", t->path, rank);
    joined->len = 0;
    gang_buffer_printf(joined, "%s%s", left, right);
    const char *parts[3] = {left, right, joined->data};
    int32_t ids[3];
    for (int i = 0; i < 3; i++) {
        json_t *id = json_object_get(vocab, parts[i]);
        if (!id) return gang_fail(GANG_ERR_FORMAT, "%s: model.merges[%zu]: the token '%.64s' is not in the vocabulary", t->path, rank, parts[i]);
        ids[i] = (int32_t)json_integer_value(id);
    }
    gang_table_put(&t->merges, (uint64_t)(uint32_t)ids[0] << 32 | (uint32_t)ids[1], (uint32_t)rank);
    t->merged[rank] = ids[2];
    return GANG_OK;
}

static enum gang_status load_merges(struct gang_tokenizer *t, json_t *vocab, json_t *merges) {
    if (!json_is_array(merges)) return bad(t, "model.merges", "missing or not an array");
    size_t count = json_array_size(merges);
    gang_table_init(&t->merges, count, &t->arena);
    t->merged = gang_arena_alloc(&t->arena, count * sizeof *t->merged);
    struct gang_buffer copy = {0}, joined = {0};
    enum gang_status status = GANG_OK;
    for (size_t i = 0; !status && i < count; i++) status = load_merge(t, vocab, json_array_get(merges, i), i, &copy, &joined);
    gang_buffer_release(&copy);
    gang_buffer_release(&joined);
    return status;
}

static enum gang_status load_model(struct gang_tokenizer *t, json_t *model, json_t *added) {
    static const char *const keys[] = {
        "type",  "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges",
        "vocab", "merges",  NULL};
    enum gang_status status;
    const char *type = json_string_value(json_object_get(model, "type"));
    if (type && strcmp(type, "BPE") != 0) return gang_fail(GANG_ERR_UNSUPPORTED, "%s: model: kind '%.64s' is not supported, only BPE", t->path, type);
    if ((status = only_keys(t, "model", model, keys))) return status;
    if (has_value(model, "type") && !type) return bad(t, "model.type", "not a string");
    json_t *dropout = json_object_get(model, "dropout");
    if (has_value(model, "dropout") && !(json_is_number(dropout) && json_number_value(dropout) == 0)) return unsupported(t, "model", "dropout");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *affix = json_string_value(json_object_get(model, affixes[i]));
        if (has_value(model, affixes[i]) && !(affix && !*affix)) return unsupported(t, "model", affixes[i]);
    }
    bool fallback = false;
    if ((status = get_bool(t, "model", model, "byte_fallback", false, &fallback))) return status;
    if (fallback) return unsupported(t, "model", "byte_fallback");
    if ((status = get_bool(t, "model", model, "ignore_merges", false, &t->ignore_merges))) return status;
    // unk_token and fuse_unk: with a token for every byte nothing is unknown.
    json_t *vocab = json_object_get(model, "vocab");
    if ((status = count_ids(t, vocab, added))) return status;
    t->tokens = gang_arena_alloc(&t->arena, (size_t)t->vocab * sizeof *t->tokens);
    if ((status = load_vocab(t, vocab))) return status;
    return load_merges(t, vocab, json_object_get(model, "merges"));
}

// ---- Normaliser, pre-tokenizer, decoder ----------------------------------------------------------------------------

// The kind of a part such as the normaliser: its "type".
static enum gang_status kind_of(const struct gang_tokenizer *t, const char *where, json_t *part, const char **kind) {
    if (!json_is_object(part)) return bad(t, where, "not an object");
    return get_string(t, where, part, "type", kind);
}

// Calls `load` for each part of a Sequence, whose parts stand under `key`.
static enum gang_status load_sequence(struct gang_tokenizer *t, const char *where, json_t *sequence, const char *key,
                                      enum gang_status (*load)(struct gang_tokenizer *, json_t *)) {
    json_t *parts = json_object_get(sequence, key), *part;
    if (!json_is_array(parts)) return gang_fail(GANG_ERR_FORMAT, "%s: %s: %s: missing or not an array", t->path, where, key);
    if (json_array_size(parts) > GANG_MAX_STEPS) return unsupported(t, where, "a Sequence of so many parts");
    size_t index;
    enum gang_status status = GANG_OK;
    json_array_foreach(parts, index, part) if (!status) status = load(t, part);
    return status;
}

static enum gang_status load_normalizer(struct gang_tokenizer *t, json_t *part) {
    if (!part || json_is_null(part)) return GANG_OK;
    const char *kind = NULL;
    enum gang_status status = kind_of(t, "normalizer", part, &kind);
    if (status) return status;
    if (strcmp(kind, "Sequence") == 0) return load_sequence(t, "normalizer", part, "normalizers", load_normalizer);
    if (strcmp(kind, "NFC") != 0) return gang_fail(GANG_ERR_UNSUPPORTED, "%s: normalizer: '%.64s' is not supported, only NFC", t->path, kind);
    t->nfc = true;
    return GANG_OK;
}

static enum gang_status add_step(struct gang_tokenizer *t, struct gang_step **step) {
    if (t->step_count == GANG_MAX_STEPS) return unsupported(t, "pre_tokenizer", "a Sequence of so many parts");
    *step = &t->steps[t->step_count++];
    **step = (struct gang_step){0};
    return GANG_OK;
}

static enum gang_status add_pattern(struct gang_tokenizer *t, const char *pattern, bool literal, bool removed, bool invert) {
    struct gang_step *step = NULL;
    enum gang_status status = add_step(t, &step);
    if (status) return status;
    step->removed = removed;
    step->invert = invert;
    char *where = gang_arena_printf(&t->arena, "%s: pre_tokenizer", t->path);
    status = gang_pattern_compile(where, pattern, literal, &step->pattern);
    if (status) t->step_count--;
    return status;
}

static enum gang_status load_split(struct gang_tokenizer *t, json_t *part) {
    static const char *const keys[] = {"type", "pattern", "behavior", "invert", NULL};
    const char *behaviour = NULL;
    bool invert = false;
    enum gang_status status = only_keys(t, "pre_tokenizer Split", part, keys);
    if (!status) status = get_string(t, "pre_tokenizer Split", part, "behavior", &behaviour);
    if (!status) status = get_bool(t, "pre_tokenizer Split", part, "invert", false, &invert);
    if (status) return status;
    bool removed = strcmp(behaviour, "Removed") == 0;
    if (!removed && strcmp(behaviour, "Isolated") != 0)
        return gang_fail(GANG_ERR_UNSUPPORTED, "%s: pre_tokenizer Split: behavior '%.64s' is not supported, only Isolated and Removed", t->path,
                         behaviour);
    json_t *pattern = json_object_get(part, "pattern");
    const char *regex = json_string_value(json_object_get(pattern, "Regex")), *text = json_string_value(json_object_get(pattern, "String"));
    if (!regex == !text) return bad(t, "pre_tokenizer Split: pattern", "expected {\"Regex\": ...} or {\"String\": ...}");
    return add_pattern(t, regex ? regex : text, !regex, removed, invert);
}

static enum gang_status load_byte_level(struct gang_tokenizer *t, json_t *part) {
    static const char *const keys[] = {"type", "add_prefix_space", "trim_offsets", "use_regex", NULL};
    bool space = false, regex = false;
    enum gang_status status = only_keys(t, "pre_tokenizer ByteLevel", part, keys);
    if (!status) status = get_bool(t, "pre_tokenizer ByteLevel", part, "add_prefix_space", true, &space);
    if (!status) status = get_bool(t, "pre_tokenizer ByteLevel", part, "use_regex", true, &regex);
    if (status) return status;
    struct gang_step *step = NULL;
    if (space && (status = add_step(t, &step))) return status;
    if (regex && (status = add_pattern(t, gpt2_pattern, false, false, false))) return status;
    t->byte_level = true;
    t->puts_space = space;
    return GANG_OK;
}

static enum gang_status load_digits(struct gang_tokenizer *t, json_t *part) {
    static const char *const keys[] = {"type", "individual_digits", NULL};
    bool single = false;
    enum gang_status status = only_keys(t, "pre_tokenizer Digits", part, keys);
    if (!status) status = get_bool(t, "pre_tokenizer Digits", part, "individual_digits", false, &single);
    return status ? status : add_pattern(t, single ? "\\p{N}" : "\\p{N}+", false, false, false);
}

static enum gang_status load_pretokenizer(struct gang_tokenizer *t, json_t *part) {
    const char *kind = NULL;
    enum gang_status status = kind_of(t, "pre_tokenizer", part, &kind);
    if (status) return status;
    if (t->byte_level) return unsupported(t, "pre_tokenizer", "a step after ByteLevel");
    if (strcmp(kind, "Sequence") == 0) return load_sequence(t, "pre_tokenizer", part, "pretokenizers", load_pretokenizer);
    if (strcmp(kind, "Split") == 0) return load_split(t, part);
    if (strcmp(kind, "ByteLevel") == 0) return load_byte_level(t, part);
    if (strcmp(kind, "Digits") == 0) return load_digits(t, part);
    return gang_fail(GANG_ERR_UNSUPPORTED, "%s: pre_tokenizer: '%.64s' is not supported, only ByteLevel, Split, Digits and Sequence", t->path, kind);
}

static enum gang_status check_decoder(struct gang_tokenizer *t, json_t *part) {
    const char *kind = NULL;
    enum gang_status status = kind_of(t, "decoder", part, &kind);
    if (status) return status;
    if (strcmp(kind, "Sequence") == 0) return load_sequence(t, "decoder", part, "decoders", check_decoder);
    if (strcmp(kind, "ByteLevel") == 0) return GANG_OK;
    return gang_fail(GANG_ERR_UNSUPPORTED, "%s: decoder: '%.64s' is not supported, only ByteLevel", t->path, kind);
}

// ---- Added tokens --------------------------------------------------------------------------------------------------

// Claims the id in t->tokens. The id may already be that of the same text in the vocabulary.
static enum gang_status claim_id(struct gang_tokenizer *t, json_t *vocab, const char *content, int32_t id, bool special) {
    json_t *known = json_object_get(vocab, content);
    struct gang_token *token = &t->tokens[id];
    if (known ? json_integer_value(known) != id : token->bytes != NULL)
        return gang_fail(GANG_ERR_FORMAT, "%s: added_tokens: '%.64s': id %d contradicts the vocabulary or another added token", t->path, content, id);
    if (token->added) return gang_fail(GANG_ERR_FORMAT, "%s: added_tokens: '%.64s' stands there twice", t->path, content);
    // It decodes to its text, as the text decodes to it; only the token of a byte stays that byte.
    if (!token->word || token->len > 1) {
        token->bytes = gang_arena_strdup(&t->arena, content);
        token->len = (uint32_t)strlen(content);
    }
    token->special = special;
    token->added = true;
    return GANG_OK;
}

static enum gang_status load_added_token(struct gang_tokenizer *t, json_t *vocab, json_t *entry, struct gang_added *out, bool *normalized) {
    static const char *const keys[] = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", NULL};
    const char *content = NULL;
    bool single = false;
    enum gang_status status = only_keys(t, "added_tokens", entry, keys);
    if (!status) status = get_string(t, "added_tokens", entry, "content", &content);
    if (status) return status;
    size_t len = strlen(content);
    if (!len || len > GANG_MAX_ADDED_BYTES) return bad(t, "added_tokens", "a token is empty or too long");
    *out = (struct gang_added){.text = content, .len = (uint32_t)len, .id = (int32_t)json_integer_value(json_object_get(entry, "id"))};
    if ((status = get_bool(t, "added_tokens", entry, "special", false, &out->special))) return status;
    if ((status = get_bool(t, "added_tokens", entry, "normalized", !out->special, normalized))) return status;
    if ((status = get_bool(t, "added_tokens", entry, "lstrip", false, &out->lstrip))) return status;
    if ((status = get_bool(t, "added_tokens", entry, "rstrip", false, &out->rstrip))) return status;
    if ((status = get_bool(t, "added_tokens", entry, "single_word", false, &single))) return status;
    if (single) return gang_fail(GANG_ERR_UNSUPPORTED, "%s: added_tokens: '%.64s': single_word is not supported", t->path, content);
    return claim_id(t, vocab, content, out->id, out->special);
}

// The text to search for outlives the JSON, normalised where the text that is searched will be.
static enum gang_status keep_text(struct gang_tokenizer *t, struct gang_added *item, bool normalized) {
    char *text = (char *)item->text;
    size_t len = item->len;
    enum gang_status status = normalized && t->nfc ? gang_nfc(item->text, item->len, &text, &len) : GANG_OK;
    if (status) return status;
    char *kept = memcpy(gang_arena_alloc(&t->arena, len + 1), text, len);
    if (text != item->text) free(text);
    item->text = kept;
    item->len = (uint32_t)len;
    return GANG_OK;
}

static enum gang_status load_added(struct gang_tokenizer *t, json_t *vocab, json_t *added) {
    size_t total = json_array_size(added), index;
    struct gang_added *items[2];
    int counts[2] = {0, 0};
    for (int set = 0; set < 2; set++) items[set] = gang_arena_alloc(&t->arena, (total + 1) * sizeof *items[set]);
    json_t *entry;
    json_array_foreach(added, index, entry) {
        struct gang_added item = {0};
        bool normalized = false;
        enum gang_status status = load_added_token(t, vocab, entry, &item, &normalized);
        if (!status) status = keep_text(t, &item, normalized);
        if (status) return status;
        t->strips |= item.lstrip || item.rstrip;
        items[normalized][counts[normalized]++] = item;
    }
    for (int set = 0; set < 2; set++) gang_added_init(&t->added[set], items[set], counts[set], &t->arena);
    return GANG_OK;
}

// ---- The whole file ------------------------------------------------------------------------------------------------

static enum gang_status load_root(struct gang_tokenizer *t, json_t *root) {
    static const char *const keys[] = {"version",       "truncation",     "padding", "added_tokens", "normalizer",
                                       "pre_tokenizer", "post_processor", "decoder", "model",        NULL};
    enum gang_status status = only_keys(t, "the file", root, keys);
    if (status) return status;
    if (has_value(root, "truncation")) return unsupported(t, "truncation", "a limit on the length of a text");
    if (has_value(root, "padding")) return unsupported(t, "padding", "filling up a text");
    json_t *model = json_object_get(root, "model"), *added = json_object_get(root, "added_tokens");
    if ((status = load_model(t, model, added))) return status;
    if ((status = load_normalizer(t, json_object_get(root, "normalizer")))) return status;
    if ((status = load_pretokenizer(t, json_object_get(root, "pre_tokenizer")))) return status;
    if (!t->byte_level) return unsupported(t, "pre_tokenizer", "a tokenizer without ByteLevel");
    if ((status = check_decoder(t, json_object_get(root, "decoder")))) return status;
    return load_added(t, json_object_get(model, "vocab"), added);
}

// Not gang_json_read: the hash must be of the very bytes that were parsed.
static enum gang_status load_file(struct gang_tokenizer *t) {
    struct gang_buffer file = {0};
    enum gang_status status = gang_file_read(t->path, max_file_bytes, &file);
    if (status) return status;
    t->hash = gang_hash(file.data, file.len, ENCODING_VERSION);
    json_error_t where;
    json_t *root = json_loadb(file.data, file.len, JSON_REJECT_DUPLICATES, &where);
    gang_buffer_release(&file);
    if (!root) return gang_fail(GANG_ERR_FORMAT, "%s:%d:%d: not JSON that can be read: %s", t->path, where.line, where.column, where.text);
    status = load_root(t, root);
    json_decref(root);
    return status;
}

static void load_bytes(struct gang_tokenizer *t) {
    t->vocab = 256;
    t->hash = gang_hash("bytes", 5, ENCODING_VERSION);
    t->tokens = gang_arena_alloc(&t->arena, 256 * sizeof *t->tokens);
    char *text = gang_arena_alloc(&t->arena, 256);
    for (int i = 0; i < 256; i++) {
        text[i] = (char)i;
        t->tokens[i] = (struct gang_token){.bytes = text + i, .len = 1};
    }
}

enum gang_status gang_tokenizer_open(const char *path, struct gang_tokenizer **out) {
    struct gang_tokenizer *t = calloc(1, sizeof *t);
    assert(t && "out of memory");
    gang_arena_init(&t->arena);
    enum gang_status status = GANG_OK;
    if (path) {
        t->path = gang_path_is_dir(path) ? gang_arena_printf(&t->arena, "%s/tokenizer.json", path) : gang_arena_strdup(&t->arena, path);
        status = load_file(t);
    } else {
        load_bytes(t);
    }
    if (status) gang_tokenizer_free(t);
    *out = status ? NULL : t;
    return status;
}

void gang_tokenizer_free(struct gang_tokenizer *tokenizer) {
    if (!tokenizer) return;
    for (int i = 0; i < tokenizer->step_count; i++) pcre2_code_free(tokenizer->steps[i].pattern);
    gang_arena_release(&tokenizer->arena);
    free(tokenizer);
}

int gang_tokenizer_vocab(const struct gang_tokenizer *tokenizer) { return tokenizer->vocab; }
uint64_t gang_tokenizer_hash(const struct gang_tokenizer *tokenizer) { return tokenizer->hash; }
const char *gang_tokenizer_path(const struct gang_tokenizer *tokenizer) { return tokenizer->path; }
