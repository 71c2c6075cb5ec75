// A model's parameters from a Hugging Face directory and into safetensors files.
//
// Loading checks everything before it copies anything: every tensor of the model is found, of a type that we read and of
// the shape that config.json asks for; every tensor of the files is one of the model's, or known to be of no weight. A
// directory holds one file, or an index (weight_map: tensor name to file) with shards; then index and shards must agree.
#include "model/model.h"

#include <assert.h>
#include <jansson.h>
#include <string.h>

enum { MAX_INDEX_BYTES = 64 << 20, MAX_SHARDS = 4096, DESCRIPTION_BYTES = 160 };

struct shard {
    char *file; // inside the directory
    char *path;
    struct gang_safetensors st;
};

struct weights {
    struct gang_arena arena;
    int shard_count;
    struct shard *shards;
    json_t *index; // NULL for a single file
};

// ---- One tensor against the model ----------------------------------------------------------------------------------

// "[4096, 1024]", cut short where it is long.
static const char *describe(int dims, const int64_t *shape, char out[DESCRIPTION_BYTES]) {
    struct gang_buffer text = {0};
    gang_buffer_printf(&text, "[");
    for (int i = 0; i < dims; i++) gang_buffer_printf(&text, "%s%lld", i ? ", " : "", (long long)shape[i]);
    gang_buffer_printf(&text, "]");
    size_t len = text.len < DESCRIPTION_BYTES ? text.len : DESCRIPTION_BYTES - 1;
    memcpy(out, text.data, len);
    out[len] = 0;
    gang_buffer_release(&text);
    return out;
}

static int shape_in_file(const struct gang_tensor *tensor, int64_t shape[2]) {
    bool norm = gang_tensor_is_norm(tensor);
    shape[0] = norm ? tensor->whole_cols : tensor->whole_rows;
    shape[1] = tensor->whole_cols;
    return norm ? 1 : 2;
}

static enum gang_status check_entry(const char *path, const struct gang_tensor *tensor, const struct gang_st_entry *entry) {
    if (!entry->readable)
        return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %s: its type %s is not supported: expected F32, BF16 or F16", path, entry->name,
                         entry->type_name);
    int64_t shape[2];
    int dims = shape_in_file(tensor, shape);
    if (entry->dims == dims && !memcmp(entry->shape, shape, (size_t)dims * sizeof *shape)) return GANG_OK;
    char has[DESCRIPTION_BYTES], wants[DESCRIPTION_BYTES];
    return gang_fail(GANG_ERR_INPUT, "%s: %s: its shape %s contradicts the model's configuration, which asks for %s", path, entry->name,
                     describe(entry->dims, entry->shape, has), describe(dims, shape, wants));
}

static void copy_slice(const struct gang_tensor *t, const struct gang_st_entry *entry, float *out) {
    bool together = t->cols == t->whole_cols;
    int64_t run = together ? t->rows * t->cols : t->cols;
    for (int64_t r = 0; r < (together ? 1 : t->rows); r++) gang_st_to_f32(entry, (t->row + r) * t->whole_cols + t->col, run, out + r * run);
}

// ---- The files of a directory --------------------------------------------------------------------------------------

static bool file_in(const char *dir, const char *name) {
    struct gang_buffer path = {0};
    gang_buffer_printf(&path, "%s/%s", dir, name);
    bool exists = gang_path_exists(path.data);
    gang_buffer_release(&path);
    return exists;
}

static const char single_file[] = "model.safetensors", index_file[] = "model.safetensors.index.json";
// Weights of another making, which we do not read.
static const char *const foreign_files[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth", "consolidated.safetensors"};
enum { FOREIGN_COUNT = sizeof foreign_files / sizeof *foreign_files };

bool gang_model_has_weights(const char *dir) {
    bool has = file_in(dir, single_file) || file_in(dir, index_file);
    for (int i = 0; i < FOREIGN_COUNT; i++) has = has || file_in(dir, foreign_files[i]);
    return has;
}

static enum gang_status open_shard(struct weights *weights, const char *dir, const char *file) {
    struct shard *shard = &weights->shards[weights->shard_count];
    shard->file = gang_arena_strdup(&weights->arena, file);
    shard->path = gang_arena_printf(&weights->arena, "%s/%s", dir, file);
    enum gang_status status = gang_safetensors_open(shard->path, &shard->st);
    if (!status) weights->shard_count++;
    return status;
}

static const struct shard *find_shard(const struct weights *weights, const char *file) {
    for (int i = 0; i < weights->shard_count; i++)
        if (!strcmp(weights->shards[i].file, file)) return &weights->shards[i];
    return NULL;
}

static bool plain_name(const char *file) { return *file && *file != '.' && !strchr(file, '/') && strlen(file) < 256; }

static enum gang_status open_shards(struct weights *weights, const char *dir, const char *path) {
    const json_t *map = json_object_get(weights->index, "weight_map");
    if (!json_is_object(map)) return gang_fail(GANG_ERR_FORMAT, "%s: weight_map: missing or not an object", path);
    weights->shards = gang_arena_alloc(&weights->arena, MAX_SHARDS * sizeof *weights->shards);
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)map, name, value) {
        const char *file = json_string_value(value);
        if (!file || !plain_name(file))
            return gang_fail(GANG_ERR_FORMAT, "%s: weight_map: %.200s: expected the name of a file in the same directory", path, name);
        if (find_shard(weights, file)) continue;
        if (weights->shard_count == MAX_SHARDS) return gang_fail(GANG_ERR_FORMAT, "%s: names more than %d files", path, MAX_SHARDS);
        enum gang_status status = open_shard(weights, dir, file);
        if (status) return status;
    }
    // Both ways: what the index promises is there, and what is there was promised, so no tensor stands in two files.
    json_object_foreach((json_t *)map, name, value) {
        const struct shard *shard = find_shard(weights, json_string_value(value));
        if (!gang_safetensors_find(&shard->st, name))
            return gang_fail(GANG_ERR_FORMAT, "%s: %.200s: missing, though the index says that it is here", shard->path, name);
    }
    for (int i = 0; i < weights->shard_count; i++) {
        const struct shard *shard = &weights->shards[i];
        for (int k = 0; k < shard->st.count; k++) {
            const char *file = json_string_value(json_object_get(map, shard->st.entries[k].name));
            if (file && !strcmp(file, shard->file)) continue;
            return gang_fail(GANG_ERR_FORMAT, "%s: %.200s: is here, though the index says %s", shard->path, shard->st.entries[k].name,
                             file ? file : "nothing of it");
        }
    }
    return GANG_OK;
}

static enum gang_status weights_open(const char *dir, struct weights *out) {
    *out = (struct weights){0};
    gang_arena_init(&out->arena);
    if (file_in(dir, single_file)) {
        out->shards = gang_arena_alloc(&out->arena, sizeof *out->shards);
        return open_shard(out, dir, single_file);
    }
    if (file_in(dir, index_file)) {
        const char *path = gang_arena_printf(&out->arena, "%s/%s", dir, index_file);
        enum gang_status status = gang_json_read(path, MAX_INDEX_BYTES, &out->index);
        return status ? status : open_shards(out, dir, path);
    }
    for (int i = 0; i < FOREIGN_COUNT; i++)
        if (file_in(dir, foreign_files[i]))
            return gang_fail(GANG_ERR_UNSUPPORTED, "%s/%s: only safetensors of Hugging Face's naming are read: convert it to model.safetensors", dir,
                             foreign_files[i]);
    return gang_fail(GANG_ERR_INPUT, "%s: no weights: expected %s or %s", dir, single_file, index_file);
}

static void weights_close(struct weights *weights) {
    for (int i = 0; i < weights->shard_count; i++) gang_safetensors_close(&weights->shards[i].st);
    json_decref(weights->index);
    gang_arena_release(&weights->arena);
}

static const struct gang_st_entry *weights_find(const struct weights *weights, const char *name, const char **path) {
    for (int i = 0; i < weights->shard_count; i++) {
        const struct gang_st_entry *entry = gang_safetensors_find(&weights->shards[i].st, name);
        if (!entry) continue;
        *path = weights->shards[i].path;
        return entry;
    }
    return NULL;
}

// ---- Loading -------------------------------------------------------------------------------------------------------

static bool ends_with(const char *text, const char *end) {
    size_t a = strlen(text), b = strlen(end);
    return a >= b && !strcmp(text + a - b, end);
}

static bool same_content(const struct gang_st_entry *a, const struct gang_st_entry *b) {
    return a->readable && b->readable && a->type == b->type && a->dims == b->dims && !memcmp(a->shape, b->shape, sizeof a->shape) &&
           !memcmp(a->data, b->data, (size_t)a->elements * gang_dtype_bytes(a->type));
}

// Finds every tensor of the model; sources[i] belongs to tensors[i].
static enum gang_status match(const struct gang_model *model, const struct weights *weights, const char *dir, const struct gang_st_entry **sources) {
    for (int i = 0; i < model->count; i++) {
        const struct gang_tensor *tensor = &model->tensors[i];
        const char *path = NULL;
        sources[i] = weights_find(weights, tensor->name, &path);
        if (!sources[i])
            return gang_fail(GANG_ERR_INPUT, "%s: the weights lack %s%s", dir, tensor->name,
                             tensor->role == GANG_ROLE_HEAD ? ": does config.json want \"tie_word_embeddings\": true?" : "");
        enum gang_status status = check_entry(path, tensor, sources[i]);
        if (status) return status;
    }
    return GANG_OK;
}

static bool is_used(const struct gang_st_entry *entry, const struct gang_st_entry *const *sources, int count) {
    for (int i = 0; i < count; i++)
        if (sources[i] == entry) return true;
    return false;
}

// Each tensor of the files is used, or a buffer that is computed anew, or a tied head that is the embedding once more.
static enum gang_status check_rest(const struct gang_model *model, const struct weights *weights, const struct gang_st_entry *const *sources) {
    for (int s = 0; s < weights->shard_count; s++) {
        const struct shard *shard = &weights->shards[s];
        for (int i = 0; i < shard->st.count; i++) {
            const struct gang_st_entry *entry = &shard->st.entries[i];
            if (is_used(entry, sources, model->count) || ends_with(entry->name, "rotary_emb.inv_freq")) continue;
            bool head = model->config.tied && !strcmp(entry->name, "lm_head.weight");
            if (head && same_content(entry, sources[0])) continue;
            return gang_fail(GANG_ERR_UNSUPPORTED, "%s: %.200s: %s", shard->path, entry->name,
                             head ? "differs from the embedding, though config.json says that they are tied"
                                  : "a tensor that the model of config.json does not have");
        }
    }
    return GANG_OK;
}

// Tensors [from, to) and the gaps behind them, which are 0.
static void load_tensors(const struct gang_model *model, const struct gang_st_entry *const *sources, int from, int to, float *parameters) {
#pragma omp parallel for schedule(dynamic)
    for (int i = from; i < to; i++) {
        const struct gang_tensor *tensor = &model->tensors[i];
        int64_t end = tensor->offset + tensor->rows * tensor->cols, next = i + 1 < model->count ? tensor[1].offset : model->elements;
        const struct gang_st_entry *source = sources[tensor->index];
        copy_slice(tensor, source, parameters + tensor->offset);
        gang_big_forget(source->data, (size_t)source->elements * gang_dtype_bytes(source->type));
        memset(parameters + end, 0, (size_t)(next - end) * sizeof *parameters);
    }
}

enum gang_status gang_model_load(const struct gang_model *model, const char *dir, float *parameters, const struct gang_load_hook *hook) {
    struct weights weights;
    struct gang_model whole;
    enum gang_status status = weights_open(dir, &weights);
    if (status) goto out;
    gang_model_init(&whole, &model->config, &weights.arena);
    const struct gang_st_entry **sources = gang_arena_alloc(&weights.arena, (size_t)whole.count * sizeof *sources);
    status = match(&whole, &weights, dir, sources);
    if (!status) status = check_rest(&whole, &weights, sources);
    if (status) goto out;
    for (int from = 0, to; from < model->count; from = to) {
        for (to = from + 1; to < model->count && model->tensors[to].layer == model->tensors[from].layer;) to++;
        load_tensors(model, sources, from, to, parameters);
        if (hook) hook->taken(hook->context, from, to);
    }
out:
    weights_close(&weights);
    return status;
}

// ---- Saving and restoring ------------------------------------------------------------------------------------------

static void print_header(const struct gang_model *model, const struct gang_st_part *parts, int part_count, struct gang_buffer *text) {
    long long at = 0;
    gang_buffer_printf(text, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int p = 0; p < part_count; p++) {
        for (int i = 0; i < model->count; i++) {
            const struct gang_tensor *tensor = &model->tensors[i];
            int64_t shape[2];
            gang_buffer_printf(text, ",\"%s%s\":{\"dtype\":\"F32\",\"shape\":", parts[p].prefix, tensor->name);
            if (shape_in_file(tensor, shape) == 1)
                gang_buffer_printf(text, "[%lld]", (long long)shape[0]);
            else
                gang_buffer_printf(text, "[%lld,%lld]", (long long)shape[0], (long long)shape[1]);
            long long end = at + (long long)(tensor->rows * tensor->cols * (int64_t)sizeof(float));
            gang_buffer_printf(text, ",\"data_offsets\":[%lld,%lld]}", at, end);
            at = end;
        }
    }
    gang_buffer_printf(text, "}");
    while (text->len % 8) gang_buffer_append(text, " ", 1);
}

enum gang_status gang_model_save(const struct gang_model *model, const struct gang_st_part *parts, int part_count, const char *path) {
    struct gang_buffer header = {0};
    struct gang_out out = {0};
    assert(model->tp == 1);
    print_header(model, parts, part_count, &header);
    enum gang_status status = gang_out_open(&out, path);
    uint64_t length = header.len;
    if (!status) status = gang_out_write(&out, &length, sizeof length);
    if (!status) status = gang_out_write(&out, header.data, header.len);
    for (int p = 0; p < part_count; p++) {
        for (int i = 0; !status && i < model->count; i++) {
            const struct gang_tensor *tensor = &model->tensors[i];
            const float *values = NULL;
            if (parts[p].values)
                values = parts[p].values + tensor->offset;
            else
                status = parts[p].fetch(parts[p].context, i, &values);
            if (!status) status = gang_out_write(&out, values, (size_t)(tensor->rows * tensor->cols) * sizeof(float));
        }
    }
    if (status)
        gang_out_discard(&out);
    else
        status = gang_out_publish(&out);
    gang_buffer_release(&header);
    return status;
}

static enum gang_status restore_part(const struct gang_model *model, const struct gang_st_part *part, const struct gang_safetensors *st,
                                     const char *path) {
    float *values = (float *)part->values; // const in gang_st_part for the sake of saving
    memset(values, 0, (size_t)model->elements * sizeof *values);
    for (int i = 0; i < model->count; i++) {
        const struct gang_tensor *tensor = &model->tensors[i];
        char name[DESCRIPTION_BYTES];
        size_t prefix = strlen(part->prefix), len = strlen(tensor->name);
        assert(prefix + len < sizeof name);
        memcpy(name, part->prefix, prefix);
        memcpy(name + prefix, tensor->name, len + 1);
        const struct gang_st_entry *entry = gang_safetensors_find(st, name);
        if (!entry) return gang_fail(GANG_ERR_FORMAT, "%s: lacks %s", path, name);
        enum gang_status status = check_entry(path, tensor, entry);
        if (status) return status;
        copy_slice(tensor, entry, values + tensor->offset);
    }
    return GANG_OK;
}

enum gang_status gang_model_restore(const struct gang_model *model, const struct gang_st_part *parts, int part_count, const char *path) {
    struct gang_safetensors st = {0};
    enum gang_status status = gang_safetensors_open(path, &st);
    if (status) return status;
    if (model->whole && st.count != part_count * model->count)
        status = gang_fail(GANG_ERR_FORMAT, "%s: holds %d tensors: expected %d arrays of %d", path, st.count, part_count, model->count);
    for (int p = 0; !status && p < part_count; p++) status = restore_part(model, &parts[p], &st, path);
    gang_safetensors_close(&st);
    return status;
}
