// Byte pair encoding of one word: start with its bytes, then merge again and again the neighbouring pair of lowest rank,
// the leftmost of equals, until no pair has a rank.
//
// The symbols form a doubly linked list in an array indexed by their first byte; a heap holds the pairs that can merge,
// ordered by (rank, position), so a word of n bytes costs O(n log n) whatever it holds. Entries are not removed when a
// neighbour merges: an entry whose pair no longer stands at its position is stale and skipped. A symbol only ever grows, so
// the same pair of ids at the same position is the same pair.
//
// Text repeats its words: a direct-mapped cache of short ones comes first.
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

enum { CACHE_SLOTS = 1 << 14, CACHE_WORD_BYTES = 23, CACHE_IDS = 8 };

struct symbol {
    int32_t id; // -1: swallowed by its left neighbour
    int32_t prev, next;
};

struct candidate {
    uint64_t order; // rank << 32 | position
    uint64_t pair;  // left id << 32 | right id
};

struct cached {
    uint8_t word_bytes; // 0: empty
    char word[CACHE_WORD_BYTES];
    int32_t count;
    int32_t ids[CACHE_IDS];
};

struct gang_bpe {
    const struct gang_tokenizer *tokenizer;
    struct symbol *symbols;
    size_t symbol_cap;
    struct candidate *heap;
    size_t heap_len, heap_cap;
    struct cached *cache;
};

// ---- Tables --------------------------------------------------------------------------------------------------------

static uint64_t scatter(uint64_t key) {
    key *= 0x9e3779b97f4a7c15u; // Fibonacci hashing: the high bits are the good ones
    return key ^ (key >> 32);
}

void gang_table_init(struct gang_table *table, size_t most, struct gang_arena *arena) {
    size_t slots = 16;
    while (slots < 2 * most) slots *= 2;
    table->mask = slots - 1;
    table->slots = gang_arena_alloc(arena, slots * sizeof *table->slots);
}

static struct gang_table_slot *table_slot(const struct gang_table *table, uint64_t key) {
    uint64_t at = scatter(key) & table->mask;
    while (table->slots[at].key && table->slots[at].key != key + 1) at = (at + 1) & table->mask;
    return &table->slots[at];
}

void gang_table_put(struct gang_table *table, uint64_t key, uint32_t value) {
    *table_slot(table, key) = (struct gang_table_slot){.key = key + 1, .value = value};
}

bool gang_table_get(const struct gang_table *table, uint64_t key, uint32_t *value) {
    const struct gang_table_slot *slot = table_slot(table, key);
    if (!slot->key) return false;
    *value = slot->value;
    return true;
}

// The key under which a word is stored; `probe` counts on past words of equal hash.
uint64_t gang_word_key(const char *word, size_t bytes, uint64_t probe) { return (gang_hash(word, bytes, 0) >> 1) + probe; }

bool gang_word_find(const struct gang_tokenizer *tokenizer, const char *word, size_t bytes, int32_t *id) {
    if (bytes > tokenizer->word_bytes) return false;
    uint32_t value;
    for (uint64_t probe = 0; gang_table_get(&tokenizer->words, gang_word_key(word, bytes, probe), &value); probe++) {
        const struct gang_token *token = &tokenizer->tokens[value];
        if (token->len != bytes || memcmp(token->bytes, word, bytes) != 0) continue;
        *id = (int32_t)value;
        return true;
    }
    return false;
}

// ---- The heap of candidates ----------------------------------------------------------------------------------------

static void heap_push(struct gang_bpe *bpe, struct candidate item) {
    if (bpe->heap_len == bpe->heap_cap) {
        bpe->heap_cap = bpe->heap_cap ? 2 * bpe->heap_cap : 256;
        bpe->heap = realloc(bpe->heap, bpe->heap_cap * sizeof *bpe->heap);
        assert(bpe->heap && "out of memory");
    }
    size_t at = bpe->heap_len++;
    for (; at && bpe->heap[(at - 1) / 2].order > item.order; at = (at - 1) / 2) bpe->heap[at] = bpe->heap[(at - 1) / 2];
    bpe->heap[at] = item;
}

static struct candidate heap_pop(struct gang_bpe *bpe) {
    struct candidate top = bpe->heap[0], last = bpe->heap[--bpe->heap_len];
    size_t at = 0;
    for (size_t child; (child = 2 * at + 1) < bpe->heap_len; at = child) {
        if (child + 1 < bpe->heap_len && bpe->heap[child + 1].order < bpe->heap[child].order) child++;
        if (bpe->heap[child].order >= last.order) break;
        bpe->heap[at] = bpe->heap[child];
    }
    bpe->heap[at] = last;
    return top;
}

// ---- Merging -------------------------------------------------------------------------------------------------------

static uint64_t pair_at(const struct gang_bpe *bpe, int32_t at) {
    const struct symbol *left = &bpe->symbols[at];
    return (uint64_t)(uint32_t)left->id << 32 | (uint32_t)bpe->symbols[left->next].id;
}

static void consider(struct gang_bpe *bpe, int32_t at) {
    if (at < 0 || bpe->symbols[at].next < 0) return;
    uint64_t pair = pair_at(bpe, at);
    uint32_t rank;
    if (gang_table_get(&bpe->tokenizer->merges, pair, &rank))
        heap_push(bpe, (struct candidate){.order = (uint64_t)rank << 32 | (uint32_t)at, .pair = pair});
}

static void start_symbols(struct gang_bpe *bpe, const char *word, size_t bytes) {
    if (bytes > bpe->symbol_cap) {
        bpe->symbol_cap = bytes < 256 ? 256 : bytes;
        free(bpe->symbols);
        bpe->symbols = malloc(bpe->symbol_cap * sizeof *bpe->symbols);
        assert(bpe->symbols && "out of memory");
    }
    for (size_t i = 0; i < bytes; i++)
        bpe->symbols[i] = (struct symbol){.id = bpe->tokenizer->byte_ids[(uint8_t)word[i]], .prev = (int32_t)i - 1, .next = (int32_t)i + 1};
    bpe->symbols[bytes - 1].next = -1;
    bpe->heap_len = 0;
    for (size_t i = 0; i + 1 < bytes; i++) consider(bpe, (int32_t)i);
}

static void merge_word(struct gang_bpe *bpe, const char *word, size_t bytes) {
    start_symbols(bpe, word, bytes);
    while (bpe->heap_len) {
        struct candidate top = heap_pop(bpe);
        int32_t at = (int32_t)(uint32_t)top.order;
        struct symbol *left = &bpe->symbols[at];
        if (left->id < 0 || left->next < 0 || pair_at(bpe, at) != top.pair) continue;
        struct symbol *right = &bpe->symbols[left->next];
        left->id = bpe->tokenizer->merged[top.order >> 32];
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) bpe->symbols[left->next].prev = at;
        consider(bpe, left->prev);
        consider(bpe, at);
    }
}

// ---- A word --------------------------------------------------------------------------------------------------------

static void remember(struct cached *slot, const char *word, size_t bytes, const int32_t *ids, size_t count) {
    if (count > CACHE_IDS) return;
    slot->word_bytes = (uint8_t)bytes;
    memcpy(slot->word, word, bytes);
    slot->count = (int32_t)count;
    memcpy(slot->ids, ids, count * sizeof *ids);
}

void gang_bpe_word(struct gang_bpe *bpe, const char *word, size_t bytes, struct gang_ids *out) {
    if (!bytes) return;
    assert(bytes <= INT32_MAX);
    struct cached *slot = NULL;
    if (bytes <= CACHE_WORD_BYTES) {
        slot = &bpe->cache[gang_hash(word, bytes, 0) % CACHE_SLOTS];
        if (slot->word_bytes == bytes && memcmp(slot->word, word, bytes) == 0) {
            for (int32_t i = 0; i < slot->count; i++) gang_ids_append(out, slot->ids[i]);
            return;
        }
    }
    size_t start = out->count;
    int32_t whole;
    if (bpe->tokenizer->ignore_merges && gang_word_find(bpe->tokenizer, word, bytes, &whole)) {
        gang_ids_append(out, whole);
    } else {
        merge_word(bpe, word, bytes);
        for (int32_t at = 0; at >= 0; at = bpe->symbols[at].next) gang_ids_append(out, bpe->symbols[at].id);
    }
    if (slot) remember(slot, word, bytes, out->items + start, out->count - start);
}

struct gang_bpe *gang_bpe_new(const struct gang_tokenizer *tokenizer) {
    struct gang_bpe *bpe = calloc(1, sizeof *bpe);
    assert(bpe && "out of memory");
    bpe->tokenizer = tokenizer;
    bpe->cache = calloc(CACHE_SLOTS, sizeof *bpe->cache);
    assert(bpe->cache && "out of memory");
    return bpe;
}

void gang_bpe_free(struct gang_bpe *bpe) {
    if (!bpe) return;
    free(bpe->symbols);
    free(bpe->heap);
    free(bpe->cache);
    free(bpe);
}
