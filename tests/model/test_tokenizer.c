// The tokenizer against the Rust library (golden files, see tests/golden/make_tokenizers.mjs), against any bytes, and
// against hostile files. GANG_SEED in the environment chooses the random bytes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model/tokenizer_internal.h"

static const char *const kinds[] = {"gpt2", "llama3", "qwen2", "mixed"};
enum { GPT2, LLAMA3, QWEN2, MIXED, KINDS };

static const char *golden_folder(void) {
    const char *folder = getenv("GANG_GOLDEN_TOKENIZERS"); // a larger set made for the occasion
    return folder ? folder : TESTS_DIR "/golden/tokenizers";
}

static struct gang_tokenizer *open_kind(int kind) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s.json", golden_folder(), kinds[kind]);
    struct gang_tokenizer *t = NULL;
    if (gang_tokenizer_open(path, &t)) fail_msg("%s", gang_error());
    return t;
}

static uint64_t seed_of_run(void) {
    int64_t seed = 7;
    const char *text = getenv("GANG_SEED");
    if (text) assert_int_equal(gang_parse_int("GANG_SEED", text, 0, INT64_MAX, &seed), GANG_OK);
    print_message("GANG_SEED=%lld\n", (long long)seed);
    return (uint64_t)seed;
}

static void encode(const struct gang_tokenizer *t, const char *text, size_t bytes, struct gang_ids *out) {
    out->count = 0;
    if (gang_encode(t, text, bytes, true, out)) fail_msg("%s", gang_error());
}

static void decode(const struct gang_tokenizer *t, const struct gang_ids *ids, struct gang_buffer *out) {
    out->len = 0;
    if (gang_decode(t, ids->items, ids->count, true, out)) fail_msg("%s", gang_error());
}

static void check_round_trip(const struct gang_tokenizer *t, const char *text, size_t bytes) {
    struct gang_ids ids = {0};
    struct gang_buffer back = {0};
    encode(t, text, bytes, &ids);
    decode(t, &ids, &back);
    assert_int_equal(back.len, bytes);
    if (bytes) assert_memory_equal(back.data, text, bytes);
    gang_ids_release(&ids);
    gang_buffer_release(&back);
}

// ---- Golden --------------------------------------------------------------------------------------------------------

static size_t from_base64(const char *text, char *out) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t len = 0;
    uint32_t bits = 0;
    for (int have = 0; *text && *text != '='; text++) {
        bits = bits << 6 | (uint32_t)(strchr(digits, *text) - digits);
        have += 6;
        if (have < 8) continue;
        have -= 8;
        out[len++] = (char)(bits >> have & 255);
    }
    return len;
}

static void check_case(const struct gang_tokenizer *t, const char *name, size_t index, const char *text, size_t bytes, json_t *expected) {
    struct gang_ids ids = {0};
    encode(t, text, bytes, &ids);
    bool same = ids.count == json_array_size(expected);
    for (size_t i = 0; same && i < ids.count; i++) same = ids.items[i] == json_integer_value(json_array_get(expected, i));
    if (!same) {
        for (size_t i = 0; i < ids.count; i++) print_message("%d ", ids.items[i]);
        char *want = json_dumps(expected, JSON_COMPACT);
        print_message("\nexpected %s\n", want);
        free(want);
        fail_msg("%s: case %zu differs: '%.*s'", name, index, (int)bytes, text);
    }
    gang_ids_release(&ids);
}

static void test_golden(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s/cases.json", golden_folder());
    json_t *cases = json_load_file(path, 0, NULL);
    assert_non_null(cases);
    json_t *texts = json_object_get(cases, "texts"), *text;
    assert_true(json_array_size(texts) >= 100);
    for (int kind = 0; kind < KINDS; kind++) {
        struct gang_tokenizer *t = open_kind(kind);
        json_t *expected = json_object_get(cases, kinds[kind]);
        assert_int_equal(json_array_size(expected), json_array_size(texts));
        size_t index;
        json_array_foreach(texts, index, text) {
            char *bytes = malloc(json_string_length(text) + 1);
            size_t len = from_base64(json_string_value(text), bytes);
            check_case(t, kinds[kind], index, bytes, len, json_array_get(expected, index));
            if (kind == GPT2 || kind == LLAMA3) check_round_trip(t, bytes, len); // the others change the text
            free(bytes);
        }
        gang_tokenizer_free(t);
    }
    json_decref(cases);
}

// ---- Any bytes -----------------------------------------------------------------------------------------------------

// Bytes, characters and pieces of characters, in the random mixture that broken text is.
static size_t random_text(uint64_t seed, uint64_t index, char *out, size_t cap) {
    static const char *const parts[] = {
        "the ", "\xc3",          "\xe6\xbc\xa2", "\xe6\xbc",         "\xf0\x9f\x91\x8d", "\xed\xa0\x80", "\xff\xfe",
        "  \n", "<|endoftext|>", "e\xcc",        "\xf4\x90\x80\x80", "\xc0\xaf",         "A1",
    };
    size_t len = 0, steps = gang_random_at(seed, index, 0) % 40;
    for (size_t i = 1; i <= steps && len + 16 < cap; i++) {
        uint64_t draw = gang_random_at(seed, index, i);
        if (draw % 3 == 0) {
            out[len++] = (char)(draw >> 8);
        } else {
            const char *part = parts[(draw >> 8) % (sizeof parts / sizeof *parts)];
            memcpy(out + len, part, strlen(part));
            len += strlen(part);
        }
    }
    return len;
}

static void test_any_bytes_round_trip(void **state) {
    (void)state;
    uint64_t seed = seed_of_run();
    struct gang_tokenizer *tokenizers[3] = {open_kind(GPT2), open_kind(LLAMA3), NULL};
    assert_int_equal(gang_tokenizer_open(NULL, &tokenizers[2]), GANG_OK);
    for (uint64_t i = 0; i < 3000; i++) {
        char text[1024];
        size_t len = random_text(seed, i, text, sizeof text);
        for (int k = 0; k < 3; k++) check_round_trip(tokenizers[k], text, len);
    }
    for (int k = 0; k < 3; k++) gang_tokenizer_free(tokenizers[k]);
}

static void test_nfc_leaves_broken_bytes_alone(void **state) {
    (void)state;
    struct gang_tokenizer *t = open_kind(QWEN2);
    check_round_trip(t, "\xff\xc3\xa9\xe6\xbc", 6);
    struct gang_ids ids = {0};
    struct gang_buffer back = {0};
    encode(t,
           "\xff"
           "e\xcc\x81\xcc",
           5, &ids); // e, combining acute, then half a character
    decode(t, &ids, &back);
    assert_string_equal(back.data, "\xff\xc3\xa9\xcc");
    gang_ids_release(&ids);
    gang_buffer_release(&back);
    gang_tokenizer_free(t);
}

// add_prefix_space puts a space before a text, not after broken bytes in it.
static void test_put_space(void **state) {
    (void)state;
    struct gang_tokenizer *t = open_kind(MIXED);
    struct gang_ids ids = {0};
    struct gang_buffer back = {0};
    encode(t,
           "a\xff"
           "b",
           3, &ids);
    decode(t, &ids, &back);
    assert_string_equal(back.data, " a\xff"
                                   "b");
    gang_ids_release(&ids);
    gang_buffer_release(&back);
    gang_tokenizer_free(t);
}

// \s is Unicode's White_Space, as in Oniguruma: PCRE2 alone would take U+180E too.
static void test_white_space(void **state) {
    (void)state;
    static const char *const texts[] = {" ", "\xc2\x85", "\xe3\x80\x80", "\xe1\xa0\x8e", "\xe2\x80\x8b", "a"};
    pcre2_code *space = NULL, *other = NULL;
    assert_int_equal(gang_pattern_compile("here", "\\s", false, &space), GANG_OK);
    assert_int_equal(gang_pattern_compile("here", "[^\\s]", false, &other), GANG_OK);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    for (int i = 0; i < 6; i++) {
        size_t len = strlen(texts[i]);
        assert_int_equal(pcre2_match(space, (PCRE2_SPTR)texts[i], len, 0, 0, match, NULL) > 0, i < 3);
        assert_int_equal(pcre2_match(other, (PCRE2_SPTR)texts[i], len, 0, 0, match, NULL) > 0, i >= 3);
        assert_int_equal(gang_space_at_start(texts[i], len) > 0, i < 3);
        assert_int_equal(gang_space_at_end(texts[i], len) > 0, i < 3);
    }
    pcre2_match_data_free(match);
    pcre2_code_free(space);
    pcre2_code_free(other);
}

// The merge algorithm in its plainest form, O(n²), as the reference.
static void slow_merge(const struct gang_tokenizer *t, const char *word, size_t bytes, struct gang_ids *out) {
    out->count = 0;
    for (size_t i = 0; i < bytes; i++) gang_ids_append(out, t->byte_ids[(uint8_t)word[i]]);
    for (;;) {
        uint32_t best = UINT32_MAX, rank;
        size_t at = 0;
        for (size_t i = 0; i + 1 < out->count; i++) {
            uint64_t pair = (uint64_t)(uint32_t)out->items[i] << 32 | (uint32_t)out->items[i + 1];
            if (!gang_table_get(&t->merges, pair, &rank) || rank >= best) continue;
            best = rank;
            at = i;
        }
        if (best == UINT32_MAX) return;
        out->items[at] = t->merged[best];
        out->count--;
        memmove(out->items + at + 1, out->items + at + 2, (out->count - at - 1) * sizeof *out->items);
    }
}

static void test_merges_equal_the_slow_ones(void **state) {
    (void)state;
    uint64_t seed = seed_of_run();
    struct gang_tokenizer *t = open_kind(GPT2);
    struct gang_bpe *bpe = gang_bpe_new(t);
    struct gang_ids fast = {0}, slow = {0};
    for (uint64_t i = 0; i < 2000; i++) {
        char word[64];
        size_t len = 1 + gang_random_at(seed, i, 0) % sizeof word;
        for (size_t k = 0; k < len; k++) word[k] = "aeinorst th"[gang_random_at(seed, i, k + 1) % 11];
        fast.count = 0;
        gang_bpe_word(bpe, word, len, &fast);
        slow_merge(t, word, len, &slow);
        assert_int_equal(fast.count, slow.count);
        assert_memory_equal(fast.items, slow.items, slow.count * sizeof *slow.items);
    }
    gang_ids_release(&fast);
    gang_ids_release(&slow);
    gang_bpe_free(bpe);
    gang_tokenizer_free(t);
}

static void test_long_word_is_no_trap(void **state) {
    (void)state;
    enum { BYTES = 1 << 20 }; // quadratic work here would be hours
    struct gang_tokenizer *t = open_kind(LLAMA3);
    char *text = malloc(BYTES);
    memset(text, 'e', BYTES);
    check_round_trip(t, text, BYTES);
    memset(text, ' ', BYTES);
    check_round_trip(t, text, BYTES);
    free(text);
    gang_tokenizer_free(t);
}

// ---- Specials, ids -------------------------------------------------------------------------------------------------

static void test_specials(void **state) {
    (void)state;
    struct gang_tokenizer *t = open_kind(LLAMA3);
    struct gang_ids ids = {0};
    struct gang_buffer back = {0};
    assert_int_equal(gang_encode(t, "a<|eot_id|>b", 12, false, &ids), GANG_OK);
    assert_true(ids.count > 3);
    for (size_t i = 0; i < ids.count; i++) assert_true(ids.items[i] < 701);
    encode(t, "a<|eot_id|>b", 12, &ids);
    assert_int_equal(ids.count, 3);
    assert_int_equal(ids.items[1], 703);
    assert_int_equal(gang_decode(t, ids.items, ids.count, false, &back), GANG_OK);
    assert_string_equal(back.data, "ab");
    gang_ids_release(&ids);
    gang_buffer_release(&back);
    gang_tokenizer_free(t);
}

static void test_ids_beyond_the_vocabulary(void **state) {
    (void)state;
    struct gang_tokenizer *t = open_kind(GPT2);
    struct gang_buffer out = {0};
    assert_int_equal(gang_tokenizer_vocab(t), 701);
    const int32_t wrong[] = {701, -1, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(gang_decode(t, &wrong[i], 1, true, &out), GANG_ERR_INPUT);
        assert_non_null(strstr(gang_error(), "expected 0 to 700"));
    }
    gang_buffer_release(&out);
    gang_tokenizer_free(t);
}

static void test_utf8(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t len;
    } cases[] = {
        {"a", 1},
        {"\x7f", 1},
        {"\x80", 0},
        {"\xc1\xbf", 0},
        {"\xc2\x80", 2},
        {"\xdf\xbf", 2},
        {"\xc3", 0},
        {"\xe0\x9f\xbf", 0},
        {"\xe0\xa0\x80", 3},
        {"\xed\x9f\xbf", 3},
        {"\xed\xa0\x80", 0},
        {"\xee\x80\x80", 3},
        {"\xe6\xbc", 0},
        {"\xf0\x8f\xbf\xbf", 0},
        {"\xf0\x90\x80\x80", 4},
        {"\xf4\x8f\xbf\xbf", 4},
        {"\xf4\x90\x80\x80", 0},
        {"\xf5\x80\x80\x80", 0},
        {"\xf0\x9f\x91", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_int_equal(gang_utf8_char(cases[i].text, strlen(cases[i].text)), cases[i].len);
}

// ---- Hostile files -------------------------------------------------------------------------------------------------

// A whole byte-level file; VOCAB_TAIL, MERGES, ADDED and the rest are what the cases change.
static json_t *sound_file(void) {
    struct gang_tokenizer *t = open_kind(GPT2);
    json_t *root = json_load_file(gang_tokenizer_path(t), 0, NULL);
    gang_tokenizer_free(t);
    assert_non_null(root);
    return root;
}

// Sets the value at a path such as "model.vocab.x" or "added_tokens.0.id" to a JSON text.
static void set_at(json_t *root, const char *path, const char *text) {
    char copy[128], *rest = copy;
    snprintf(copy, sizeof copy, "%s", path);
    char *key = strsep(&rest, ".");
    for (; rest; key = strsep(&rest, ".")) root = json_is_array(root) ? json_array_get(root, (size_t)(*key - '0')) : json_object_get(root, key);
    if (!text) {
        json_object_del(root, key);
        return;
    }
    json_t *value = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(value);
    if (json_is_array(root))
        json_array_set_new(root, (size_t)(*key - '0'), value);
    else
        json_object_set_new(root, key, value);
}

struct hostile {
    const char *path, *value;
    enum gang_status status;
    const char *word;
};

static const struct hostile hostiles[] = {
    {"model.vocab.zzz", "700", GANG_ERR_FORMAT, "added_tokens: '<|endoftext|>': id 700"},
    {"model.vocab.zzz", "5", GANG_ERR_FORMAT, "id 5 belongs to another token"},
    {"model.vocab.zzz", "-1", GANG_ERR_FORMAT, "'zzz': id -1 is out of range"},
    {"model.vocab.zzz", "9223372036854775807", GANG_ERR_FORMAT, "out of range"},
    {"model.vocab.zzz", "4194304", GANG_ERR_FORMAT, "out of range"},
    {"model.vocab.zzz", "\"7\"", GANG_ERR_FORMAT, "not a whole number"},
    {"model.vocab.zzz", "7.0", GANG_ERR_FORMAT, "not a whole number"},
    {"model.vocab.zzz", "null", GANG_ERR_FORMAT, "not a whole number"},
    {"model.vocab.", "701", GANG_ERR_FORMAT, "empty"},
    {"model.vocab.a", NULL, GANG_ERR_UNSUPPORTED, "no token for byte 0x61"},
    {"model.vocab", "[]", GANG_ERR_FORMAT, "model.vocab"},
    {"model.vocab", "{}", GANG_ERR_FORMAT, "model.vocab"},
    {"model.vocab", NULL, GANG_ERR_FORMAT, "model.vocab"},
    {"model.merges", NULL, GANG_ERR_FORMAT, "model.merges"},
    {"model.merges", "{}", GANG_ERR_FORMAT, "model.merges"},
    {"model.merges.0", "\"ab\"", GANG_ERR_FORMAT, "model.merges[0]: expected"},
    {"model.merges.0", "\"a b c\"", GANG_ERR_FORMAT, "model.merges[0]: expected"},
    {"model.merges.0", "[\"a\"]", GANG_ERR_FORMAT, "model.merges[0]: expected"},
    {"model.merges.0", "[\"a\", 1]", GANG_ERR_FORMAT, "model.merges[0]: expected"},
    {"model.merges.0", "7", GANG_ERR_FORMAT, "model.merges[0]: expected"},
    {"model.merges.0", "\"a qqqq\"", GANG_ERR_FORMAT, "'qqqq' is not in the vocabulary"},
    {"model.merges.0", "\"q x\"", GANG_ERR_FORMAT, "'qx' is not in the vocabulary"},
    {"model", NULL, GANG_ERR_FORMAT, "model: missing"},
    {"model", "7", GANG_ERR_FORMAT, "model: missing or not an object"},
    {"model.type", "\"Unigram\"", GANG_ERR_UNSUPPORTED, "'Unigram' is not supported"},
    {"model.type", "3", GANG_ERR_FORMAT, "model.type"},
    {"model.dropout", "0.1", GANG_ERR_UNSUPPORTED, "dropout"},
    {"model.byte_fallback", "true", GANG_ERR_UNSUPPORTED, "byte_fallback"},
    {"model.ignore_merges", "\"yes\"", GANG_ERR_FORMAT, "ignore_merges"},
    {"model.end_of_word_suffix", "\"</w>\"", GANG_ERR_UNSUPPORTED, "end_of_word_suffix"},
    {"model.continuing_subword_prefix", "\"##\"", GANG_ERR_UNSUPPORTED, "continuing_subword_prefix"},
    {"model.novelty", "true", GANG_ERR_UNSUPPORTED, "'novelty' is not supported"},
    {"novelty", "true", GANG_ERR_UNSUPPORTED, "'novelty' is not supported"},
    {"truncation", "{\"max_length\": 5}", GANG_ERR_UNSUPPORTED, "truncation"},
    {"padding", "{}", GANG_ERR_UNSUPPORTED, "padding"},
    {"normalizer", "{\"type\": \"NFKC\"}", GANG_ERR_UNSUPPORTED, "'NFKC' is not supported"},
    {"normalizer", "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}", GANG_ERR_UNSUPPORTED, "'Lowercase'"},
    {"normalizer", "\"NFC\"", GANG_ERR_FORMAT, "normalizer: not an object"},
    {"pre_tokenizer", "null", GANG_ERR_FORMAT, "pre_tokenizer: not an object"},
    {"pre_tokenizer", "{\"type\": \"Metaspace\"}", GANG_ERR_UNSUPPORTED, "'Metaspace' is not supported"},
    {"pre_tokenizer", "{\"type\": \"Digits\"}", GANG_ERR_UNSUPPORTED, "without ByteLevel"},
    {"pre_tokenizer", "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"ByteLevel\"}, {\"type\": \"Digits\"}]}", GANG_ERR_UNSUPPORTED,
     "after ByteLevel"},
    {"pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"MergedWithNext\", \"pattern\": {\"String\": \"a\"}}", GANG_ERR_UNSUPPORTED,
     "MergedWithNext"},
    {"pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"(a\"}}", GANG_ERR_FORMAT,
     "cannot read the pattern"},
    {"pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"\\\\w+\"}}", GANG_ERR_UNSUPPORTED, "\\w"},
    {"pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": {\"Regex\": \"\"}}", GANG_ERR_FORMAT, "empty"},
    {"pre_tokenizer", "{\"type\": \"Split\", \"behavior\": \"Isolated\", \"pattern\": \"a\"}", GANG_ERR_FORMAT, "pattern"},
    {"pre_tokenizer.use_regex", "1", GANG_ERR_FORMAT, "use_regex"},
    {"decoder", "{\"type\": \"WordPiece\"}", GANG_ERR_UNSUPPORTED, "'WordPiece' is not supported"},
    {"decoder", "null", GANG_ERR_FORMAT, "decoder"},
    {"added_tokens", "{}", GANG_ERR_FORMAT, "added_tokens: not an array"},
    {"added_tokens.0", "7", GANG_ERR_FORMAT, "added_tokens"},
    {"added_tokens.0.id", NULL, GANG_ERR_FORMAT, "the id is missing"},
    {"added_tokens.0.id", "-7", GANG_ERR_FORMAT, "out of range"},
    {"added_tokens.0.id", "1e99", GANG_ERR_FORMAT, "not a whole number"},
    {"added_tokens.0.id", "4", GANG_ERR_FORMAT, "contradicts"},
    {"added_tokens.0.content", "\"\"", GANG_ERR_FORMAT, "empty"},
    {"added_tokens.0.content", "7", GANG_ERR_FORMAT, "content"},
    {"added_tokens.0.content", "\"the\"", GANG_ERR_FORMAT, "contradicts"},
    {"added_tokens.0.single_word", "true", GANG_ERR_UNSUPPORTED, "single_word"},
    {"added_tokens.0.special", "\"no\"", GANG_ERR_FORMAT, "special"},
};

static void write_text(const char *path, const char *text, size_t bytes) {
    if (gang_file_publish(path, text, bytes)) fail_msg("%s", gang_error());
}

static void expect_refused(const char *path, enum gang_status status, const char *word) {
    struct gang_tokenizer *t = NULL;
    enum gang_status got = gang_tokenizer_open(path, &t);
    if (got != status || t || !strstr(gang_error(), word) || !strstr(gang_error(), path))
        fail_msg("expected status %d and '%s', got %d and '%s'", (int)status, word, (int)got, got ? gang_error() : "");
}

static void test_hostile_files(void **state) {
    const char *path = *state;
    for (size_t i = 0; i < sizeof hostiles / sizeof *hostiles; i++) {
        json_t *root = sound_file();
        set_at(root, hostiles[i].path, hostiles[i].value);
        char *text = json_dumps(root, JSON_COMPACT);
        write_text(path, text, strlen(text));
        expect_refused(path, hostiles[i].status, hostiles[i].word);
        free(text);
        json_decref(root);
    }
}

static void test_not_json(void **state) {
    const char *path = *state;
    static const char *const texts[] = {"", "{", "[1,2", "{\"model\": {\"vocab\": {\"a\": 1, \"a\": 2}}}", "\xff\xfe", "nul"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_text(path, texts[i], strlen(texts[i]));
        expect_refused(path, GANG_ERR_FORMAT, "not JSON");
    }
    write_text(path, "[]", 2);
    expect_refused(path, GANG_ERR_FORMAT, "not an object");
    expect_refused("/nonexistent/tokenizer.json", GANG_ERR_OS, "cannot open");
}

// Every truncation and many damaged bytes: an error or a tokenizer, never a crash.
static void test_damaged_files(void **state) {
    const char *path = *state;
    uint64_t seed = seed_of_run();
    json_t *root = sound_file();
    char *text = json_dumps(root, JSON_COMPACT);
    size_t len = strlen(text);
    for (uint64_t i = 0; i < 300; i++) {
        char *copy = strdup(text);
        size_t at = gang_random_at(seed, 1, i) % len, kept = i % 3 ? len : at;
        copy[at] = (char)gang_random_at(seed, 2, i);
        write_text(path, copy, kept);
        struct gang_tokenizer *t = NULL;
        if (!gang_tokenizer_open(path, &t)) check_round_trip(t, "any text", 8);
        assert_true(kept == len || !t);
        gang_tokenizer_free(t);
        free(copy);
    }
    free(text);
    json_decref(root);
}

static void test_ids_with_holes(void **state) {
    const char *path = *state;
    json_t *root = sound_file();
    set_at(root, "added_tokens.0.id", "900");
    char *text = json_dumps(root, JSON_COMPACT);
    write_text(path, text, strlen(text));
    struct gang_tokenizer *t = NULL;
    assert_int_equal(gang_tokenizer_open(path, &t), GANG_OK);
    assert_int_equal(gang_tokenizer_vocab(t), 901);
    struct gang_buffer out = {0};
    const int32_t ids[] = {899, 900};
    assert_int_equal(gang_decode(t, ids, 2, true, &out), GANG_OK);
    assert_string_equal(out.data, "<|endoftext|>");
    gang_buffer_release(&out);
    gang_tokenizer_free(t);
    free(text);
    json_decref(root);
}

static void test_hash_tells_files_apart(void **state) {
    (void)state;
    struct gang_tokenizer *a = open_kind(GPT2), *b = open_kind(LLAMA3), *c = open_kind(GPT2), *bytes = NULL;
    assert_int_equal(gang_tokenizer_open(NULL, &bytes), GANG_OK);
    assert_true(gang_tokenizer_hash(a) != gang_tokenizer_hash(b));
    assert_true(gang_tokenizer_hash(a) != gang_tokenizer_hash(bytes));
    assert_true(gang_tokenizer_hash(a) == gang_tokenizer_hash(c));
    assert_int_equal(gang_tokenizer_vocab(bytes), 256);
    assert_null(gang_tokenizer_path(bytes));
    gang_tokenizer_free(a);
    gang_tokenizer_free(b);
    gang_tokenizer_free(c);
    gang_tokenizer_free(bytes);
}

// ---- Cuts ----------------------------------------------------------------------------------------------------------

// Wherever a cut is called safe, the two halves give the ids of the whole: all golden texts, all positions.
static void test_safe_cuts(void **state) {
    (void)state;
    char path[512];
    snprintf(path, sizeof path, "%s/cases.json", golden_folder());
    json_t *cases = json_load_file(path, 0, NULL), *text;
    assert_non_null(cases);
    size_t index, cuts = 0;
    struct gang_ids whole = {0}, parts = {0};
    for (int kind = 0; kind < KINDS; kind++) {
        struct gang_tokenizer *t = open_kind(kind);
        struct gang_encoder encoder;
        gang_encoder_init(&encoder, t);
        json_array_foreach(json_object_get(cases, "texts"), index, text) {
            char *bytes = malloc(json_string_length(text) + 1);
            size_t len = from_base64(json_string_value(text), bytes);
            encode(t, bytes, len, &whole);
            for (size_t at = 1; at < len; at++) {
                if (!gang_cut_is_safe(t, bytes, len, at)) continue;
                parts.count = 0;
                assert_int_equal(gang_encoder_run(&encoder, bytes, at, true, false, &parts), GANG_OK);
                assert_int_equal(gang_encoder_run(&encoder, bytes + at, len - at, true, true, &parts), GANG_OK);
                if (parts.count != whole.count || memcmp(parts.items, whole.items, whole.count * sizeof *whole.items) != 0)
                    fail_msg("%s: case %zu cut at %zu: '%.*s'", kinds[kind], index, at, (int)len, bytes);
                cuts++;
            }
            free(bytes);
        }
        gang_encoder_release(&encoder);
        gang_tokenizer_free(t);
    }
    print_message("%zu safe cuts\n", cuts);
    assert_true(cuts > 500);
    gang_ids_release(&whole);
    gang_ids_release(&parts);
    json_decref(cases);
}

static char folder[] = "/tmp/gang_tokenizer_XXXXXX";

static int set_up(void **state) {
    static char path[64];
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    *state = path;
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    return gang_dir_remove(folder) ? -1 : 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_any_bytes_round_trip),
        cmocka_unit_test(test_nfc_leaves_broken_bytes_alone),
        cmocka_unit_test(test_put_space),
        cmocka_unit_test(test_white_space),
        cmocka_unit_test(test_merges_equal_the_slow_ones),
        cmocka_unit_test(test_long_word_is_no_trap),
        cmocka_unit_test(test_specials),
        cmocka_unit_test(test_ids_beyond_the_vocabulary),
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_hostile_files),
        cmocka_unit_test(test_not_json),
        cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_ids_with_holes),
        cmocka_unit_test(test_hash_tells_files_apart),
        cmocka_unit_test(test_safe_cuts),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
