// Saves: a directory that appears whole or not at all.
//
// OUTPUT/step-NNNNNNNN.tmp is filled and made durable file by file, then renamed; only then OUTPUT/latest is turned to it,
// and only then older saves go. Whatever breaks off in between leaves the previous save and `latest` as they were, and at
// most a *.tmp beside them, which the next save sweeps up.
#include "train/train.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_STATE_BYTES = 1 << 16, MAX_TOKENIZER_BYTES = 256 << 20 };

struct state_field {
    const char *name;
    size_t offset;
};

static const struct state_field state_fields[] = {
    {"step", offsetof(struct gang_state, step)},
    {"tokens", offsetof(struct gang_state, tokens)},
    {"seed", offsetof(struct gang_state, seed)},
    {"sequence_length", offsetof(struct gang_state, sequence_length)},
    {"global_batch_tokens", offsetof(struct gang_state, global_batch_tokens)},
    {"data_tokens", offsetof(struct gang_state, data_tokens)},
    {"data_checksum", offsetof(struct gang_state, data_checksum)},
    {"compute_bits", offsetof(struct gang_state, compute_bits)},
};
enum { STATE_FIELDS = sizeof state_fields / sizeof *state_fields };

static const char *in(struct gang_arena *arena, const char *dir, const char *name) { return gang_arena_printf(arena, "%s/%s", dir, name); }

static int64_t *field_of(struct gang_state *state, int i) { return (int64_t *)((char *)state + state_fields[i].offset); }

static enum gang_status write_state(const char *path, const struct gang_state *state) {
    struct gang_buffer text = {0};
    for (int i = 0; i < STATE_FIELDS; i++)
        gang_buffer_printf(&text, "%s\"%s\": %lld", i ? ",\n  " : "{\n  ", state_fields[i].name, (long long)*field_of((struct gang_state *)state, i));
    gang_buffer_printf(&text, "\n}\n");
    enum gang_status status = gang_file_publish(path, text.data, text.len);
    gang_buffer_release(&text);
    return status;
}

static enum gang_status parse_state(const char *path, const json_t *root, struct gang_state *out) {
    for (int i = 0; i < STATE_FIELDS; i++) {
        const json_t *value = json_object_get(root, state_fields[i].name);
        if (!json_is_integer(value) || json_integer_value(value) < 0)
            return gang_fail(GANG_ERR_FORMAT, "%s: %s: expected a whole number of at least 0", path, state_fields[i].name);
        *field_of(out, i) = json_integer_value(value);
    }
    return GANG_OK;
}

enum gang_status gang_save_state(const char *dir, struct gang_state *out) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    const char *path = in(&arena, dir, "state.json");
    json_t *root = NULL;
    enum gang_status status = gang_json_read(path, MAX_STATE_BYTES, &root);
    if (!status) status = parse_state(path, root, out);
    json_decref(root);
    gang_arena_release(&arena);
    return status;
}

static enum gang_status copy_file(const char *from, const char *to) {
    struct gang_buffer text = {0};
    enum gang_status status = gang_file_read(from, MAX_TOKENIZER_BYTES, &text);
    if (!status) status = gang_file_publish(to, text.data, text.len);
    gang_buffer_release(&text);
    return status;
}

const char *const gang_save_prefixes[GANG_SAVE_PARTS] = {"", "exp_avg.", "exp_avg_sq."};

void gang_save_parts(struct gang_net *net, struct gang_st_part parts[GANG_SAVE_PARTS]) {
    for (int p = 0; p < GANG_SAVE_PARTS; p++)
        parts[p] = (struct gang_st_part){.prefix = gang_save_prefixes[p], .values = p ? gang_net_moments(net, p - 1) : gang_net_parameters(net)};
}

static enum gang_status fill(struct gang_arena *arena, const char *dir, const struct gang_state *state, const struct gang_model *model,
                             const struct gang_st_part *parts, const char *tokenizer) {
    enum gang_status status = gang_mkdirs(dir);
    if (!status) status = gang_config_write(&model->config, dir);
    if (!status) status = gang_model_save(model, parts, 1, in(arena, dir, "model.safetensors"));
    if (!status) status = gang_model_save(model, parts + 1, 2, in(arena, dir, "optimizer.safetensors"));
    if (!status && tokenizer) status = copy_file(tokenizer, in(arena, dir, "tokenizer.json"));
    if (!status) status = write_state(in(arena, dir, "state.json"), state);
    return status ? status : gang_dir_sync(dir);
}

static enum gang_status point_latest(struct gang_arena *arena, const char *output, const char *name) {
    const char *link = in(arena, output, "latest"), *tmp = in(arena, output, "latest.tmp");
    gang_os->unlink(tmp);
    if (symlink(name, tmp)) return gang_fail_os("%s: cannot make the link", tmp);
    if (gang_os->rename(tmp, link)) {
        enum gang_status status = gang_fail_os("%s: cannot rename to %s", tmp, link);
        gang_os->unlink(tmp);
        return status;
    }
    return gang_dir_sync(output);
}

static bool is_latest(struct gang_arena *arena, const char *output, const char *name) {
    char target[64];
    ssize_t len = readlink(in(arena, output, "latest"), target, sizeof target);
    return len == (ssize_t)strlen(name) && !memcmp(target, name, (size_t)len);
}

static const char unfinished[] = ".tmp";
enum { NAME_LEN = 13 };

static bool starts_as_save(const char *name) { return !strncmp(name, "step-", 5) && strspn(name + 5, "0123456789") == NAME_LEN - 5; }

static int by_name(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }
static int only_saves(const struct dirent *entry) { return starts_as_save(entry->d_name) && !entry->d_name[NAME_LEN]; }
static int only_unfinished(const struct dirent *entry) { return starts_as_save(entry->d_name) && !strcmp(entry->d_name + NAME_LEN, unfinished); }

// What cannot be removed stays: it costs room, not correctness.
static void remove_or_warn(const char *dir) {
    if (gang_dir_remove(dir)) gang_log(GANG_LOG_WARNING, "an old save stays: %s", gang_error());
}

static void drop_unfinished(struct gang_arena *arena, const char *output) {
    struct dirent **names = NULL;
    int count = scandir(output, &names, only_unfinished, by_name);
    for (int i = 0; i < count; i++) {
        remove_or_warn(in(arena, output, names[i]->d_name));
        free(names[i]);
    }
    free(names);
}

// Of the saves before `name` the newest keep - 1 stay. Later ones are of a run that somebody went back from: not ours to drop.
static void drop_old(struct gang_arena *arena, const char *output, const char *name, int keep) {
    struct dirent **names = NULL;
    int count = scandir(output, &names, only_saves, by_name), older = 0;
    while (older < count && strcmp(names[older]->d_name, name) < 0) older++;
    for (int i = 0; i < count; i++) {
        const char *dir = in(arena, output, names[i]->d_name), *tmp = gang_arena_printf(arena, "%s%s", dir, unfinished);
        // First it loses its name: no save is ever half there.
        if (i <= older - keep) remove_or_warn(gang_os->rename(dir, tmp) ? dir : tmp);
        free(names[i]);
    }
    free(names);
}

// After a failure the half-made directory goes; the error that counts is the first.
static enum gang_status abandon(enum gang_status status, const char *tmp) {
    char first[GANG_ERROR_BYTES];
    snprintf(first, sizeof first, "%s", gang_error());
    if (gang_dir_remove(tmp)) gang_log(GANG_LOG_WARNING, "a half-made save stays: %s", gang_error());
    return gang_fail(status, "%s", first);
}

static enum gang_status publish(struct gang_arena *arena, const char *output, const char *name, const struct gang_state *state,
                                const struct gang_model *model, const struct gang_st_part *parts, const char *tokenizer) {
    const char *dir = in(arena, output, name), *tmp = gang_arena_printf(arena, "%s%s", dir, unfinished);
    enum gang_status status = gang_dir_remove(tmp);
    if (!status) status = fill(arena, tmp, state, model, parts, tokenizer);
    // A save of this step that `latest` does not name was cut off just before its turn; this one takes its place.
    if (!status) status = gang_dir_remove(dir);
    if (!status && gang_os->rename(tmp, dir)) status = gang_fail_os("%s: cannot rename to %s", tmp, dir);
    if (!status) status = gang_dir_sync(output);
    if (!status) status = point_latest(arena, output, name);
    return status ? abandon(status, tmp) : GANG_OK;
}

enum gang_status gang_save_write(const char *output, const struct gang_state *state, const struct gang_model *model,
                                 const struct gang_st_part parts[GANG_SAVE_PARTS], const char *tokenizer_path, int keep, char *saved,
                                 size_t saved_bytes) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    const char *name = gang_arena_printf(&arena, "step-%08lld", (long long)state->step);
    // Where `latest` names this step already, a save of it failed at the very last call: what is there is whole, and to take
    // it away for another try would leave `latest` without a save for a while.
    enum gang_status status = is_latest(&arena, output, name) ? gang_dir_sync(output)
                                                              : publish(&arena, output, name, state, model, parts, tokenizer_path);
    if (!status) {
        drop_unfinished(&arena, output);
        drop_old(&arena, output, name, keep);
        snprintf(saved, saved_bytes, "%s", in(&arena, output, name));
    }
    gang_arena_release(&arena);
    return status;
}

enum gang_status gang_save_load(const char *dir, struct gang_net *net, const struct gang_model *model) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    struct gang_st_part parts[GANG_SAVE_PARTS];
    gang_save_parts(net, parts);
    enum gang_status status = gang_model_restore(model, parts, 1, in(&arena, dir, "model.safetensors"));
    if (!status) status = gang_model_restore(model, parts + 1, 2, in(&arena, dir, "optimizer.safetensors"));
    if (!status) gang_net_refresh(net);
    gang_arena_release(&arena);
    return status;
}

enum gang_status gang_save_resolve(const char *path, struct gang_arena *arena, char **dir) {
    char *latest = gang_arena_printf(arena, "%s/latest", path), *config = gang_arena_printf(arena, "%s/config.json", path);
    *dir = gang_path_exists(config) ? gang_arena_strdup(arena, path) : latest;
    if (gang_path_is_dir(*dir)) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT, "%s: neither a model directory (no config.json) nor a run with a save (no latest): give one of these", path);
}
