// Token data sets: find a cached one or build it, check it, draw samples from it. The form on disk: data_internal.h.
//
// Opening takes the lock shared, reads manifest and shards, and is done if all is as it should be. Otherwise it takes the
// lock exclusively and looks again, for another process may have built meanwhile; if it did not, this one builds. A process
// that has the old shards mapped keeps them: publication replaces names, not contents.
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <time.h>

#include "model/data_internal.h"

// Part of every fingerprint: raise it when the same sources begin to give other tokens or another form.
enum { FORMAT_VERSION = 1, MANIFEST_HEADER_BYTES = 32, FEISTEL_ROUNDS = 6 };
enum { LOCK_POLL_MS = 50, LOCK_LIMIT_S = 24 * 3600 };

static const struct gang_data_sizes usual_sizes = {.segment_bytes = 1 << 20, .shard_tokens = (int64_t)1 << 27};
static const size_t max_manifest_bytes = (size_t)1 << 30;

struct gang_data {
    int token_bytes;
    int64_t tokens, shard_tokens;
    uint64_t checksum; // chained over the shards'
    int shards;
    struct gang_map *maps; // [shards]
};

// ---- Lock ----------------------------------------------------------------------------------------------------------

static enum gang_status lock(const struct gang_data_build *build, int fd, int kind) {
    const struct gang_data_options *options = build->options;
    double start = gang_seconds();
    while (flock(fd, kind | LOCK_NB)) {
        if (errno != EWOULDBLOCK && errno != EINTR) return gang_fail_os("data: %s.lock: cannot lock", build->name);
        if (options->progress && !options->progress(options->context, 0, build->sources->bytes))
            return gang_fail(GANG_ERR_STOPPED, "data: stopped while another process tokenises the same data");
        if (gang_seconds() - start > LOCK_LIMIT_S)
            return gang_fail(GANG_ERR_OS, "data: %s.lock: another process has held it for %d hours: end that process", build->name,
                             LOCK_LIMIT_S / 3600);
        nanosleep(&(struct timespec){.tv_nsec = LOCK_POLL_MS * 1000000L}, NULL);
    }
    return GANG_OK;
}

// ---- Fingerprint and manifest --------------------------------------------------------------------------------------

static void append_number(struct gang_buffer *buffer, uint64_t value) {
    uint8_t bytes[8];
    gang_put_le(bytes, value, 8);
    gang_buffer_append(buffer, bytes, 8);
}

static void append_text(struct gang_buffer *buffer, const char *text) {
    append_number(buffer, strlen(text));
    gang_buffer_append(buffer, text, strlen(text));
}

static void append_rules(struct gang_buffer *out, const struct gang_data_build *build) {
    append_number(out, FORMAT_VERSION);
    append_number(out, gang_tokenizer_hash(build->tokenizer));
    append_number(out, (uint64_t)(int64_t)build->options->end_token);
    append_number(out, (uint64_t)build->sizes.segment_bytes);
    append_number(out, (uint64_t)build->sizes.shard_tokens);
}

static void make_fingerprint(const struct gang_data_build *build, struct gang_buffer *out) {
    append_rules(out, build);
    append_number(out, (uint64_t)build->sources->count);
    for (int i = 0; i < build->sources->count; i++) {
        const struct gang_source *source = &build->sources->items[i];
        append_text(out, source->path);
        append_number(out, (uint64_t)source->bytes);
        append_number(out, (uint64_t)source->mtime_ns);
        append_number(out, source->ends_hash);
    }
}

// What was asked for, not what was found: changed sources are built in the old one's place.
static uint64_t make_key(const struct gang_data_build *build) {
    struct gang_buffer text = {0};
    append_rules(&text, build);
    for (int i = 0; i < build->options->sources->count; i++) append_text(&text, build->options->sources->items[i]);
    uint64_t key = gang_hash(text.data, text.len, 0);
    gang_buffer_release(&text);
    return key;
}

static enum gang_status write_manifest(const char *path, const struct gang_buffer *fingerprint, const struct gang_shards *shards) {
    struct gang_buffer text = {0};
    append_number(&text, fingerprint->len);
    gang_buffer_append(&text, fingerprint->data, fingerprint->len);
    append_number(&text, (uint64_t)shards->count);
    for (int i = 0; i < shards->count; i++) {
        append_number(&text, (uint64_t)shards->items[i].tokens);
        append_number(&text, shards->items[i].checksum);
    }
    uint8_t header[MANIFEST_HEADER_BYTES] = "GANGDSET";
    gang_put_le(header + 8, FORMAT_VERSION, 8);
    gang_put_le(header + 16, text.len, 8);
    gang_put_le(header + 24, gang_hash(text.data, text.len, 0), 8);
    struct gang_out out = {0};
    enum gang_status status = gang_out_open(&out, path);
    if (!status) status = gang_out_write(&out, header, sizeof header);
    if (!status) status = gang_out_write(&out, text.data, text.len);
    if (!status) status = gang_out_publish(&out);
    gang_out_discard(&out);
    gang_buffer_release(&text);
    return status;
}

// The shards that a manifest lists; false if it is damaged or its fingerprint is another.
static bool parse_manifest(const struct gang_buffer *file, const struct gang_buffer *fingerprint, struct gang_shards *out) {
    const uint8_t *at = (const uint8_t *)file->data;
    if (file->len < MANIFEST_HEADER_BYTES || memcmp(at, "GANGDSET", 8) != 0 || gang_get_le(at + 8, 8) != FORMAT_VERSION) return false;
    uint64_t len = gang_get_le(at + 16, 8), hash = gang_get_le(at + 24, 8);
    at += MANIFEST_HEADER_BYTES;
    if (len != file->len - MANIFEST_HEADER_BYTES || gang_hash(at, len, 0) != hash) return false;
    if (len < fingerprint->len + 16 || gang_get_le(at, 8) != fingerprint->len) return false;
    if (memcmp(at + 8, fingerprint->data, fingerprint->len) != 0) return false;
    at += 8 + fingerprint->len;
    uint64_t count = gang_get_le(at, 8);
    if (count > INT32_MAX || len != fingerprint->len + 16 + 16 * count) return false;
    for (uint64_t i = 0; i < count; i++)
        gang_shards_add(out, (struct gang_shard){.tokens = (int64_t)gang_get_le(at + 8 + 16 * i, 8), .checksum = gang_get_le(at + 16 + 16 * i, 8)});
    return true;
}

// ---- Reading shards ------------------------------------------------------------------------------------------------

// Gives mapped pages back to the page cache, so that reading does not count as memory of ours. The kernel maps neighbours
// of a page that is touched, never beyond a 2 MiB border: the range is widened to these.
static void drop_pages(const struct gang_map *map, const uint8_t *from, const uint8_t *to) {
    const uintptr_t border = (uintptr_t)2 << 20;
    size_t before = (uintptr_t)from % border, after = (border - (uintptr_t)to % border) % border;
    size_t room_before = (size_t)(from - map->data), room_after = (size_t)(map->data + map->bytes - to);
    const uint8_t *begin = from - (before < room_before ? before : room_before);
    const uint8_t *end = to + (after < room_after ? after : room_after);
    madvise((void *)begin, (size_t)(end - begin), MADV_DONTNEED); // the kernel rounds the length up to pages
}

static bool ids_below(const uint8_t *at, size_t bytes, int width, int limit) {
    uint64_t highest = 0;
    for (size_t i = 0; i < bytes; i += (size_t)width) {
        uint64_t id = gang_get_le(at + i, width);
        highest = id > highest ? id : highest;
    }
    return highest < (uint64_t)limit;
}

static bool shard_is_sound(const struct gang_data_build *build, const struct gang_map *map, int number, const struct gang_shard *shard) {
    uint8_t header[GANG_SHARD_HEADER_BYTES];
    gang_shard_header(build, number, header);
    if (shard->tokens < 0 || shard->tokens > build->sizes.shard_tokens) return false;
    size_t bytes = (size_t)shard->tokens * (size_t)build->token_bytes;
    if (map->bytes != sizeof header + bytes || memcmp(map->data, header, sizeof header) != 0) return false;
    uint64_t checksum = 0;
    bool sound = true;
    for (size_t done = 0, chunk; done < bytes; done += chunk) {
        const uint8_t *at = map->data + sizeof header + done;
        chunk = bytes - done < GANG_CHECKSUM_CHUNK_BYTES ? bytes - done : GANG_CHECKSUM_CHUNK_BYTES;
        checksum = gang_hash(at, chunk, checksum);
        sound = sound && ids_below(at, chunk, build->token_bytes, build->token_limit);
        drop_pages(map, at, at + chunk);
    }
    return sound && checksum == shard->checksum;
}

// Maps and checks the shards; false if one is missing or damaged (`data` then holds what was mapped).
static bool map_shards(const struct gang_data_build *build, const struct gang_shards *shards, struct gang_data *data) {
    data->maps = calloc((size_t)shards->count + 1, sizeof *data->maps);
    assert(data->maps && "out of memory");
    struct gang_buffer path = {0};
    bool sound = true;
    for (int i = 0; sound && i < shards->count; i++) {
        gang_shard_path(build->name, i, &path);
        // Samples find their shard by division.
        bool full = i + 1 == shards->count || shards->items[i].tokens == build->sizes.shard_tokens;
        sound = full && gang_map_open(path.data, &data->maps[i]) == GANG_OK && shard_is_sound(build, &data->maps[i], i, &shards->items[i]);
        data->shards += data->maps[i].data != NULL;
        data->tokens += shards->items[i].tokens;
        data->checksum = gang_hash(&shards->items[i].checksum, sizeof shards->items[i].checksum, data->checksum);
    }
    if (!sound) gang_log(GANG_LOG_WARNING, "data: %s: missing or damaged: the text is tokenised again", path.data);
    gang_buffer_release(&path);
    return sound;
}

static void unmap_shards(struct gang_data *data) {
    for (int i = 0; i < data->shards; i++) gang_map_close(&data->maps[i]);
    free(data->maps);
    *data = (struct gang_data){.token_bytes = data->token_bytes, .shard_tokens = data->shard_tokens};
}

// ---- Opening -------------------------------------------------------------------------------------------------------

static bool open_cached(const struct gang_data_build *build, const char *manifest, const struct gang_buffer *fingerprint, struct gang_data *data) {
    struct gang_buffer file = {0};
    if (!gang_path_exists(manifest) || gang_file_read(manifest, max_manifest_bytes, &file)) return false;
    struct gang_shards shards = {0};
    bool good = parse_manifest(&file, fingerprint, &shards) && map_shards(build, &shards, data);
    if (!good) unmap_shards(data);
    free(shards.items);
    gang_buffer_release(&file);
    return good;
}

// Shards of an earlier, larger data set under the same name.
static void remove_shards_from(const struct gang_data_build *build, int first) {
    struct gang_buffer path = {0};
    do {
        gang_shard_path(build->name, first++, &path);
    } while (gang_os->unlink(path.data) == 0);
    gang_buffer_release(&path);
}

static enum gang_status build_all(const struct gang_data_build *build, const char *manifest, const struct gang_buffer *fingerprint) {
    struct gang_shards shards = {0};
    enum gang_status status = gang_data_build_shards(build, &shards);
    if (!status && !shards.count)
        status = gang_fail(GANG_ERR_INPUT, "data: the data set is empty: the tokenizer makes no token of its %d files", build->sources->count);
    if (!status) status = write_manifest(manifest, fingerprint, &shards);
    if (!status) remove_shards_from(build, shards.count);
    free(shards.items);
    return status;
}

static enum gang_status open_or_build(const struct gang_data_build *build, struct gang_data *data) {
    struct gang_buffer manifest = {0}, lock_path = {0}, fingerprint = {0};
    gang_buffer_printf(&manifest, "%s.manifest", build->name);
    gang_buffer_printf(&lock_path, "%s.lock", build->name);
    make_fingerprint(build, &fingerprint);
    enum gang_status status = GANG_OK;
    int fd = gang_os->open(lock_path.data, O_RDWR | O_CREAT, 0644);
    if (fd < 0) {
        status = gang_fail_os("data: %s: cannot create: choose a cache directory that can be written", lock_path.data);
        goto out;
    }
    if ((status = lock(build, fd, LOCK_SH)) || open_cached(build, manifest.data, &fingerprint, data)) goto out;
    flock(fd, LOCK_UN); // two that hold it shared would wait for each other
    if ((status = lock(build, fd, LOCK_EX)) || open_cached(build, manifest.data, &fingerprint, data)) goto out;
    if ((status = build_all(build, manifest.data, &fingerprint))) goto out;
    if (!open_cached(build, manifest.data, &fingerprint, data))
        status = gang_fail(GANG_ERR_OS, "data: %s: what was just written does not read back: check the disk", manifest.data);
out:
    if (fd >= 0) gang_os->close(fd); // and with it the lock
    gang_buffer_release(&manifest);
    gang_buffer_release(&lock_path);
    gang_buffer_release(&fingerprint);
    return status;
}

enum gang_status gang_data_open_sized(const struct gang_data_options *options, const struct gang_tokenizer *tokenizer, struct gang_data_sizes sizes,
                                      struct gang_data **out) {
    assert(sizes.segment_bytes >= 16 && sizes.shard_tokens >= 1);
    *out = NULL;
    int limit = gang_tokenizer_vocab(tokenizer);
    if (options->end_token >= limit) limit = options->end_token + 1; // a model may have an end token that its tokenizer lacks
    struct gang_sources sources = {0};
    struct gang_buffer name = {0};
    struct gang_data *data = calloc(1, sizeof *data);
    assert(data && "out of memory");
    enum gang_status status = gang_sources_find(options->sources, options->cache_dir, &sources);
    if (!status) status = gang_mkdirs(options->cache_dir);
    if (!status) {
        struct gang_data_build build = {.options = options, .tokenizer = tokenizer, .sources = &sources, .sizes = sizes, .token_limit = limit};
        build.token_bytes = limit <= 1 << 16 ? 2 : 4;
        build.key = make_key(&build);
        gang_buffer_printf(&name, "%s/tokens-%016llx", options->cache_dir, (unsigned long long)build.key);
        build.name = name.data;
        data->token_bytes = build.token_bytes;
        data->shard_tokens = sizes.shard_tokens;
        status = open_or_build(&build, data);
    }
    gang_sources_release(&sources);
    gang_buffer_release(&name);
    if (status)
        gang_data_free(data);
    else
        *out = data;
    return status;
}

enum gang_status gang_data_open(const struct gang_data_options *options, const struct gang_tokenizer *tokenizer, struct gang_data **out) {
    return gang_data_open_sized(options, tokenizer, usual_sizes, out);
}

void gang_data_free(struct gang_data *data) {
    if (!data) return;
    unmap_shards(data);
    free(data);
}

// ---- Samples -------------------------------------------------------------------------------------------------------

int64_t gang_data_tokens(const struct gang_data *data) { return data->tokens; }
int64_t gang_data_checksum(const struct gang_data *data) { return (int64_t)(data->checksum & INT64_MAX); }

enum gang_status gang_data_check(const struct gang_data *data, int length) {
    if (length >= 1 && data->tokens > length) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT, "data: %lld tokens are too few for a sequence length of %d: give more text or a sequence shorter than the text",
                     (long long)data->tokens, length);
}

// A Feistel network on the smallest even number of bits that holds `count`, walked until it lands inside: a bijection
// because each round is (Black and Rogaway 2002, ciphers with arbitrary finite domains). Fewer than four walks on average.
int64_t gang_data_permute(uint64_t seed, uint64_t epoch, int64_t count, int64_t index) {
    int half = 1;
    while (half < 31 && ((uint64_t)1 << 2 * half) < (uint64_t)count) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, x = (uint64_t)index;
    do {
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < FEISTEL_ROUNDS; round++) {
            uint64_t mixed = left ^ (gang_random_at(seed, epoch, round << 32 | right) & mask);
            left = right;
            right = mixed;
        }
        x = left << half | right;
    } while (x >= (uint64_t)count);
    return (int64_t)x;
}

static void copy_tokens(const struct gang_data *data, int64_t from, int64_t count, int32_t *out) {
    while (count) {
        const struct gang_map *map = &data->maps[from / data->shard_tokens];
        int64_t first = from % data->shard_tokens, here = data->shard_tokens - first < count ? data->shard_tokens - first : count;
        const uint8_t *at = map->data + GANG_SHARD_HEADER_BYTES + first * data->token_bytes;
        if (data->token_bytes == 2)
            for (int64_t i = 0; i < here; i++) out[i] = (int32_t)gang_get_le(at + 2 * i, 2);
        else
            for (int64_t i = 0; i < here; i++) out[i] = (int32_t)gang_get_le(at + 4 * i, 4);
        drop_pages(map, at, at + here * data->token_bytes);
        from += here;
        out += here;
        count -= here;
    }
}

void gang_data_sample(const struct gang_data *data, uint64_t seed, uint64_t index, int length, int32_t *out) {
    int64_t windows = (data->tokens - 1) / length;
    assert(windows >= 1 && "gang_data_check comes first");
    uint64_t epoch = index / (uint64_t)windows;
    int64_t window = gang_data_permute(seed, epoch, windows, (int64_t)(index % (uint64_t)windows));
    copy_tokens(data, window * length, length + 1, out);
}
