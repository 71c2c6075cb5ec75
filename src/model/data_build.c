// Tokenising the sources into shards.
//
// A file is cut into segments of about segment_bytes, so that memory stays bounded whatever the size of a document. Cut k
// is the last safe position (gang_cut_is_safe) at or before byte k * segment_bytes; where none lies within BACK_BYTES (a
// line of that length without a space), the last border of a character, and there the tokens may differ from those of the
// uncut text. The rule looks at nothing but the bytes around: each thread finds both ends of its segment alone, and the
// tokens are the same for any number of threads.
//
// Segments are worked off in batches: threads take the next one from a counter, the calling thread among them; when all
// have ended it writes the ids in order and reports progress.
#include <assert.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "model/data_internal.h"

enum { BACK_BYTES = 1 << 16, BATCH_SEGMENTS = 4, MAX_BATCH_JOBS = 512, MAX_THREADS = 512 };

// ---- One segment ---------------------------------------------------------------------------------------------------

struct job {
    const struct gang_source *source;
    int64_t segment;
    struct gang_ids ids; // out; the memory is used again
    enum gang_status status;
    char error[GANG_ERROR_BYTES];
};

// A part of a file: byte `at` of the file is data[at - from].
struct window {
    char *data;
    size_t cap;
    int64_t from, to;
};

static int64_t clamp(int64_t value, int64_t most) { return value < 0 ? 0 : value > most ? most : value; }

static int64_t last_border(const struct window *window, int64_t at) {
    for (int64_t p = at; p > at - 4 && p > window->from; p--)
        if (((uint8_t)window->data[p - window->from] & 0xC0) != 0x80) return p;
    return at;
}

static int64_t find_cut(const struct gang_data_build *build, const struct window *window, int64_t file_bytes, int64_t segment) {
    int64_t size = build->sizes.segment_bytes, nominal = segment * size;
    if (segment == 0) return 0;
    if (nominal >= file_bytes) return file_bytes;
    int64_t back = size / 2 < BACK_BYTES ? size / 2 : BACK_BYTES;
    // The context is the same whatever the window, so both neighbours find the same cut.
    for (int64_t at = nominal; at > nominal - back; at--) {
        int64_t from = clamp(at - GANG_CUT_CONTEXT, file_bytes), to = clamp(at + GANG_CUT_CONTEXT, file_bytes);
        if (gang_cut_is_safe(build->tokenizer, window->data + (from - window->from), (size_t)(to - from), (size_t)(at - from))) return at;
    }
    return last_border(window, nominal);
}

static enum gang_status read_window(const struct gang_data_build *build, const struct job *job, struct window *window) {
    int64_t size = build->sizes.segment_bytes, begin = job->segment * size, margin = BACK_BYTES + GANG_CUT_CONTEXT;
    window->from = clamp(begin - margin, job->source->bytes);
    window->to = clamp(begin + size + margin, job->source->bytes);
    size_t bytes = (size_t)(window->to - window->from);
    if (bytes > window->cap) {
        free(window->data);
        window->data = malloc(bytes);
        assert(window->data && "out of memory");
        window->cap = bytes;
    }
    int fd = gang_os->open(job->source->path, O_RDONLY, 0);
    if (fd < 0) return gang_fail_os("data: %s: cannot read", job->source->path);
    enum gang_status status = gang_file_pread(fd, job->source->path, window->data, bytes, window->from);
    gang_os->close(fd);
    return status;
}

static enum gang_status tokenise(const struct gang_data_build *build, struct gang_encoder *encoder, struct window *window, struct job *job) {
    job->ids.count = 0;
    enum gang_status status = read_window(build, job, window);
    if (status) return status;
    int64_t bytes = job->source->bytes;
    int64_t from = find_cut(build, window, bytes, job->segment), to = find_cut(build, window, bytes, job->segment + 1);
    status = gang_encoder_run(encoder, window->data + (from - window->from), (size_t)(to - from), true, from > 0, &job->ids);
    if (!status && to == bytes && build->options->end_token >= 0) gang_ids_append(&job->ids, build->options->end_token);
    return status;
}

// ---- A batch of segments -------------------------------------------------------------------------------------------

struct worker {
    struct batch *batch;
    struct gang_encoder encoder;
    struct window window;
    pthread_t thread;
    bool started;
};

struct batch {
    const struct gang_data_build *build;
    int workers;
    struct worker *crew; // [workers]; the first is the calling thread
    struct job *jobs;    // [MAX_BATCH_JOBS]
    int count;
    atomic_int next;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    struct batch *batch = worker->batch;
    for (int i; (i = atomic_fetch_add(&batch->next, 1)) < batch->count;) {
        struct job *job = &batch->jobs[i];
        job->status = tokenise(batch->build, &worker->encoder, &worker->window, job);
        if (job->status) memcpy(job->error, gang_error(), sizeof job->error);
    }
    return NULL;
}

// GANG_OK or the error of the first segment that failed, whichever thread had it.
static enum gang_status run_batch(struct batch *batch) {
    atomic_store(&batch->next, 0);
    for (int i = 1; i < batch->workers && i < batch->count; i++) // a thread that cannot start is done without
        batch->crew[i].started = pthread_create(&batch->crew[i].thread, NULL, work, &batch->crew[i]) == 0;
    work(&batch->crew[0]);
    for (int i = 1; i < batch->workers; i++) {
        if (batch->crew[i].started) pthread_join(batch->crew[i].thread, NULL);
        batch->crew[i].started = false;
    }
    for (int i = 0; i < batch->count; i++)
        if (batch->jobs[i].status) return gang_fail(batch->jobs[i].status, "%s", batch->jobs[i].error);
    return GANG_OK;
}

static void batch_init(struct batch *batch, const struct gang_data_build *build) {
    int workers = build->options->threads;
    workers = workers < 1 ? 1 : workers > MAX_THREADS ? MAX_THREADS : workers;
    *batch = (struct batch){.build = build, .workers = workers};
    batch->crew = calloc((size_t)workers, sizeof *batch->crew);
    batch->jobs = calloc(MAX_BATCH_JOBS, sizeof *batch->jobs);
    assert(batch->crew && batch->jobs && "out of memory");
    for (int i = 0; i < workers; i++) {
        batch->crew[i].batch = batch;
        gang_encoder_init(&batch->crew[i].encoder, build->tokenizer);
    }
}

static void batch_release(struct batch *batch) {
    for (int i = 0; i < batch->workers; i++) {
        gang_encoder_release(&batch->crew[i].encoder);
        free(batch->crew[i].window.data);
    }
    for (int i = 0; i < MAX_BATCH_JOBS; i++) gang_ids_release(&batch->jobs[i].ids);
    free(batch->crew);
    free(batch->jobs);
}

// Where the batches stand in the sources.
struct cursor {
    int file;
    int64_t segment;
};

// Fills the batch with the next segments; returns their bytes, 0 at the end.
static int64_t fill_batch(struct batch *batch, struct cursor *cursor) {
    const struct gang_sources *sources = batch->build->sources;
    int64_t size = batch->build->sizes.segment_bytes, bytes = 0;
    batch->count = 0;
    while (cursor->file < sources->count && batch->count < MAX_BATCH_JOBS && bytes < BATCH_SEGMENTS * batch->workers * size) {
        const struct gang_source *source = &sources->items[cursor->file];
        int64_t begin = cursor->segment * size;
        if (begin >= source->bytes) {
            *cursor = (struct cursor){.file = cursor->file + 1};
            continue;
        }
        struct job *job = &batch->jobs[batch->count++];
        job->source = source;
        job->segment = cursor->segment++;
        bytes += source->bytes - begin < size ? source->bytes - begin : size;
    }
    return bytes;
}

// ---- Shards --------------------------------------------------------------------------------------------------------

struct writer {
    const struct gang_data_build *build;
    struct gang_shards *shards;
    struct gang_out out; // closed between shards
    struct gang_shard shard;
    uint8_t *chunk; // [GANG_CHECKSUM_CHUNK_BYTES]
    size_t len;
};

void gang_shards_add(struct gang_shards *shards, struct gang_shard shard) {
    if (shards->count == shards->cap) {
        shards->cap = shards->cap ? 2 * shards->cap : 16;
        shards->items = realloc(shards->items, (size_t)shards->cap * sizeof *shards->items);
        assert(shards->items && "out of memory");
    }
    shards->items[shards->count++] = shard;
}

void gang_shard_path(const char *name, int shard, struct gang_buffer *out) {
    out->len = 0;
    gang_buffer_printf(out, "%s-%05d.bin", name, shard);
}

void gang_shard_header(const struct gang_data_build *build, int shard, uint8_t out[GANG_SHARD_HEADER_BYTES]) {
    memcpy(out, "GANGTOKN", 8);
    gang_put_le(out + 8, 1, 4);
    gang_put_le(out + 12, (uint64_t)build->token_bytes, 4);
    gang_put_le(out + 16, build->key, 8);
    gang_put_le(out + 24, (uint64_t)shard, 8);
}

static enum gang_status open_shard(struct writer *writer) {
    struct gang_buffer path = {0};
    gang_shard_path(writer->build->name, writer->shards->count, &path);
    enum gang_status status = gang_out_open(&writer->out, path.data);
    gang_buffer_release(&path);
    if (status) return status;
    uint8_t header[GANG_SHARD_HEADER_BYTES];
    gang_shard_header(writer->build, writer->shards->count, header);
    writer->shard = (struct gang_shard){0};
    return gang_out_write(&writer->out, header, sizeof header);
}

static enum gang_status flush_chunk(struct writer *writer) {
    if (!writer->len) return GANG_OK;
    writer->shard.checksum = gang_hash(writer->chunk, writer->len, writer->shard.checksum);
    enum gang_status status = gang_out_write(&writer->out, writer->chunk, writer->len);
    writer->len = 0;
    return status;
}

static enum gang_status close_shard(struct writer *writer) {
    if (!writer->out.path) return GANG_OK;
    enum gang_status status = flush_chunk(writer);
    if (status) return status;
    gang_shards_add(writer->shards, writer->shard);
    return gang_out_publish(&writer->out);
}

static enum gang_status write_ids(struct writer *writer, const struct gang_ids *ids) {
    int width = writer->build->token_bytes;
    for (size_t i = 0; i < ids->count; i++) {
        enum gang_status status = writer->out.path ? GANG_OK : open_shard(writer);
        if (status) return status;
        assert(ids->items[i] >= 0 && ids->items[i] < writer->build->token_limit);
        gang_put_le(writer->chunk + writer->len, (uint64_t)ids->items[i], width);
        writer->len += (size_t)width;
        writer->shard.tokens++;
        if (writer->len == GANG_CHECKSUM_CHUNK_BYTES) status = flush_chunk(writer);
        if (!status && writer->shard.tokens == writer->build->sizes.shard_tokens) status = close_shard(writer);
        if (status) return status;
    }
    return GANG_OK;
}

static enum gang_status report(const struct gang_data_build *build, int64_t done) {
    const struct gang_data_options *options = build->options;
    if (!options->progress || options->progress(options->context, done, build->sources->bytes)) return GANG_OK;
    return gang_fail(GANG_ERR_STOPPED, "data: stopped while tokenising");
}

enum gang_status gang_data_build_shards(const struct gang_data_build *build, struct gang_shards *out) {
    struct batch batch;
    struct cursor cursor = {0};
    struct writer writer = {.build = build, .shards = out, .chunk = malloc(GANG_CHECKSUM_CHUNK_BYTES)};
    assert(writer.chunk && "out of memory");
    batch_init(&batch, build);
    enum gang_status status = report(build, 0);
    for (int64_t bytes, done = 0; !status && (bytes = fill_batch(&batch, &cursor));) {
        status = run_batch(&batch);
        for (int i = 0; !status && i < batch.count; i++) status = write_ids(&writer, &batch.jobs[i].ids);
        done += bytes;
        if (!status) status = report(build, done);
    }
    if (!status) status = close_shard(&writer);
    gang_out_discard(&writer.out);
    batch_release(&batch);
    free(writer.chunk);
    return status;
}
