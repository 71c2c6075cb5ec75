// What the files of the token data sets share: data_sources.c finds the files, data_build.c tokenises them into shards,
// data.c opens, checks and reads. Private to src/model and its tests.
//
// On disk, all numbers little-endian, under a name that hashes what was asked for (NAME = CACHE_DIR/tokens-<16 hex>):
//   NAME.manifest      magic "GANGDSET", u32 version, u32 0, u64 payload bytes, u64 XXH3 of the payload; payload: u64 bytes
//                      of the fingerprint, the fingerprint, u64 shards, and of each shard u64 tokens, u64 checksum
//   NAME-<5 digits>.bin  magic "GANGTOKN", u32 version, u32 bytes per token, u64 key, u64 number of the shard; the tokens
//   NAME.lock          held shared while opening, exclusively while building
//
// The fingerprint names everything that the tokens depend on. A manifest whose fingerprint is not today's, or a shard whose
// length or checksum is not the manifest's, is never used: the whole set is built anew. The manifest is written last.
#ifndef GANG_MODEL_DATA_INTERNAL_H
#define GANG_MODEL_DATA_INTERNAL_H

#include "model/tokenizer_internal.h"

enum {
    GANG_SHARD_HEADER_BYTES = 32,
    GANG_CHECKSUM_CHUNK_BYTES = 1 << 20, // a shard's checksum is chained over chunks of this size
    GANG_MAX_SOURCE_FILES = 1 << 22,
};

struct gang_source {
    const char *path; // absolute
    int64_t bytes, mtime_ns;
    uint64_t ends_hash; // of the first and the last bytes: sees what a restored time stamp hides
};

struct gang_sources {
    int count, cap;
    struct gang_source *items; // heap
    int64_t bytes;             // of all
    struct gang_arena arena;   // the paths
};

// Files, directories and globs, in the order given; what a directory or glob yields is sorted by bytes. Entries whose name
// begins with a dot, and the cache directory itself, are passed over. A file named twice is read twice.
GANG_CHECK_RESULT enum gang_status gang_sources_find(const struct gang_strings *sources, const char *cache_dir, struct gang_sources *out);
void gang_sources_release(struct gang_sources *sources);

// Tests choose small ones.
struct gang_data_sizes {
    int64_t segment_bytes; // of text, tokenised at once by one thread; at least 16
    int64_t shard_tokens;  // in every shard but the last
};

struct gang_shard {
    int64_t tokens;
    uint64_t checksum;
};

struct gang_shards {
    int count, cap;
    struct gang_shard *items; // heap
};

struct gang_data_build {
    const struct gang_data_options *options;
    const struct gang_tokenizer *tokenizer;
    const struct gang_sources *sources;
    struct gang_data_sizes sizes;
    int token_bytes;  // 2 or 4
    int token_limit;  // ids are below
    uint64_t key;     // in the name and in every shard
    const char *name; // CACHE_DIR/tokens-<key>
};

// Writes the shards, publishing each. The caller holds the lock and writes the manifest.
GANG_CHECK_RESULT enum gang_status gang_data_build_shards(const struct gang_data_build *build, struct gang_shards *out);
void gang_shards_add(struct gang_shards *shards, struct gang_shard shard);
void gang_shard_path(const char *name, int shard, struct gang_buffer *out);
void gang_shard_header(const struct gang_data_build *build, int shard, uint8_t out[GANG_SHARD_HEADER_BYTES]);

// gang_data_open with the sizes given.
GANG_CHECK_RESULT enum gang_status gang_data_open_sized(const struct gang_data_options *options, const struct gang_tokenizer *tokenizer,
                                                        struct gang_data_sizes sizes, struct gang_data **out);

// Where `index` goes in the order of (seed, epoch): a permutation of [0, count).
int64_t gang_data_permute(uint64_t seed, uint64_t epoch, int64_t count, int64_t index);

// ---- Little-endian numbers -----------------------------------------------------------------------------------------

static inline void gang_put_le(uint8_t *at, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> 8 * i);
}

static inline uint64_t gang_get_le(const uint8_t *at, int bytes) {
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << 8 * i;
    return value;
}

#endif
