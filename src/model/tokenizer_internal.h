// What the files of the tokenizer share: tokenizer.c loads, pattern.c cuts text into words, bpe.c merges a word's bytes,
// encode.c drives them and decodes. Private to src/model and its tests.
#ifndef GANG_MODEL_TOKENIZER_INTERNAL_H
#define GANG_MODEL_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "model/model.h"

enum {
    GANG_MAX_TOKEN_ID = (1 << 22) - 1, // the largest published vocabularies hold about 2^18
    GANG_MAX_STEPS = 16,               // of a pre_tokenizer
    GANG_MAX_ADDED_BYTES = 1024,       // of one added token
};

// ---- Tables --------------------------------------------------------------------------------------------------------

// Open addressing from a 64-bit key (not UINT64_MAX) to a number; sized once, in an arena, at most half full.
struct gang_table {
    uint64_t mask;
    struct gang_table_slot {
        uint64_t key; // plus one; 0: empty
        uint32_t value;
    } * slots;
};

void gang_table_init(struct gang_table *table, size_t most, struct gang_arena *arena);
void gang_table_put(struct gang_table *table, uint64_t key, uint32_t value); // replaces
bool gang_table_get(const struct gang_table *table, uint64_t key, uint32_t *value);

// ---- Tokenizer -----------------------------------------------------------------------------------------------------

struct gang_token {
    const char *bytes; // what it decodes to; NULL: no token has this id
    uint32_t len;
    bool special, added;
    bool word; // spelt in byte-level letters: merges can make it
};

struct gang_added {
    const char *text; // as searched for: normalised if the token is
    uint32_t len;
    int32_t id;
    bool special, lstrip, rstrip;
};

// Added tokens that are searched for together, as a trie: edge (node, byte) -> node, node 0 is the root.
struct gang_added_set {
    int count;
    struct gang_added *items;
    struct gang_table edges;
    int32_t *ends; // per node: index into `items`, -1
    bool first[256];
};

// One step of the pre-tokenizer, applied to every word that the step before made.
struct gang_step {
    pcre2_code *pattern; // owned; NULL: put a space in front of a word that has none
    bool removed;        // the separators are dropped, otherwise each is a word
    bool invert;         // what lies between matches is the separator
};

struct gang_tokenizer {
    char *path; // in the arena; NULL: bytes
    uint64_t hash;
    int vocab;
    struct gang_arena arena;
    struct gang_token *tokens; // [vocab]
    int32_t byte_ids[256];
    bool ignore_merges, nfc, byte_level;
    bool puts_space;          // in front of a word that has none (add_prefix_space)
    uint32_t word_bytes;      // of the longest token
    struct gang_table words;  // hash of the bytes -> id (collisions: next key)
    struct gang_table merges; // (left id, right id) -> rank
    int32_t *merged;          // [rank] -> id
    int step_count;
    struct gang_step steps[GANG_MAX_STEPS];
    struct gang_added_set added[2]; // searched in the raw text; in the normalised rest
    bool strips;                    // an added token takes the white space beside it
};

// ---- Encoding ------------------------------------------------------------------------------------------------------

// Scratch of one thread, reused from text to text.
struct gang_encoder {
    const struct gang_tokenizer *tokenizer;
    struct gang_ids *out;
    bool specials;
    bool continued; // no space is put in front of the next word: it does not begin its text
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    struct gang_buffer prefixed;
    struct gang_bpe *bpe;
};

void gang_encoder_init(struct gang_encoder *encoder, const struct gang_tokenizer *tokenizer);
void gang_encoder_release(struct gang_encoder *encoder);
// gang_encode, with `continued` for a text that is the continuation of another.
GANG_CHECK_RESULT enum gang_status gang_encoder_run(struct gang_encoder *encoder, const char *text, size_t bytes, bool specials, bool continued,
                                                    struct gang_ids *out);

void gang_ids_append(struct gang_ids *ids, int32_t id);

// bpe.c
struct gang_bpe *gang_bpe_new(const struct gang_tokenizer *tokenizer);
void gang_bpe_free(struct gang_bpe *bpe);
// Appends the ids of one word, bytes < 2^31.
void gang_bpe_word(struct gang_bpe *bpe, const char *word, size_t bytes, struct gang_ids *out);
uint64_t gang_word_key(const char *word, size_t bytes, uint64_t probe);
bool gang_word_find(const struct gang_tokenizer *tokenizer, const char *word, size_t bytes, int32_t *id);

// pattern.c
// Compiles a pattern of tokenizer.json (Oniguruma) for PCRE2; `where` is for messages. `literal`: the text itself.
GANG_CHECK_RESULT enum gang_status gang_pattern_compile(const char *where, const char *pattern, bool literal, pcre2_code **out);
// Cuts `text` (valid UTF-8) by the steps from `step` on and appends the ids of each word.
GANG_CHECK_RESULT enum gang_status gang_pretokenize(struct gang_encoder *encoder, int step, const char *text, size_t bytes);

// encode.c
void gang_added_init(struct gang_added_set *set, struct gang_added *items, int count, struct gang_arena *arena);
// NFC of valid UTF-8. Returns `text` itself where nothing changes, otherwise heap memory that the caller frees.
GANG_CHECK_RESULT enum gang_status gang_nfc(const char *text, size_t bytes, char **out, size_t *out_bytes);

// ---- UTF-8 ---------------------------------------------------------------------------------------------------------

// Length of the character at `text`, 0 if it is not valid UTF-8 (RFC 3629).
size_t gang_utf8_char(const char *text, size_t bytes);
// Length of the longest valid prefix.
size_t gang_utf8_valid(const char *text, size_t bytes);
// Length of the white space character (Unicode's White_Space) that `text` begins with or ends with, 0 if none.
size_t gang_space_at_start(const char *text, size_t bytes);
size_t gang_space_at_end(const char *text, size_t bytes);

// ---- Cutting a document --------------------------------------------------------------------------------------------

// How far around a position gang_cut_is_safe may look.
enum { GANG_CUT_CONTEXT = 4096 };

// True if the ids of text[0, at) followed by those of text[at, bytes) are those of the whole, for the pre-tokenizers of
// GPT-2, Llama 3 and Qwen (why: encode.c). Looks at most GANG_CUT_CONTEXT bytes to either side.
bool gang_cut_is_safe(const struct gang_tokenizer *tokenizer, const char *text, size_t bytes, size_t at);

#endif
