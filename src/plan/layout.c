// Layouts: their text, and how the cells of one lie on the pool.
//
// The pool's devices form one line, in the file's order. A cell is tp * cp neighbours on it and holds one stage of one
// replica; a stage's cells are as wide as each other. Cells follow each other by stage (place=stages: all replicas of stage 0, then of
// stage 1, ...; the pipeline crosses what lies between groups) or by replica (place=replicas: data parallelism crosses).
#include "plan/plan.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const gang_recompute_names[] = {"none", "selective", "alternate", "full", NULL};
const char *const gang_offload_names[] = {"none", "optimizer", "activations", "both", NULL};
const char *const gang_place_names[] = {"stages", "replicas", NULL};
const char *const gang_gradient_names[] = {"f32", "bf16", NULL};
const char *const gang_attention_names[] = {"fused", "fused1", "unfused", NULL};
const char *const gang_scaling_names[] = {"tensor", "rows", NULL};
const char *const gang_schedule_names[] = {"auto", "1f1b", "interleaved", "zero-bubble", "list", NULL};

struct layout_field {
    const char *name;
    size_t offset;
    int64_t min, max, standard;
    const char *const *choices; // NULL: a number; with max 1: one for each stage, a struct gang_by_stage
    const char *help;
};

#define FIELD(member) offsetof(struct gang_layout, member)
static const struct layout_field layout_fields[] = {
    {"tp", FIELD(tp), 1, 4096, 1, NULL, "tensor-parallel width; 8/4: of each stage"},
    {"pp", FIELD(pp), 1, GANG_MAX_STAGES, 1, NULL, "pipeline stages"},
    {"dp", FIELD(dp), 0, 1 << 20, 0, NULL, "replicas; 0: what the pool leaves"},
    {"vpp", FIELD(vpp), 1, 64, 1, NULL, "chunks of layers on a stage"},
    {"cp", FIELD(cp), 1, 1024, 1, NULL, "context-parallel width"},
    {"ep", FIELD(ep), 1, 4096, 1, NULL, "expert-parallel width, inside dp"},
    {"mb", FIELD(micro_batch), 1, 1 << 16, 1, NULL, "sequences of a micro-batch; 4/2: of each kind of replicas"},
    {"zero", FIELD(zero), 0, 3, 1, NULL, "sharding over dp"},
    {"sp", FIELD(sequence_parallel), 0, 1, 1, NULL, "sequence parallel beside tp"},
    {"tp_overlap", FIELD(tp_overlap), 0, 1, 0, NULL, "tensor exchange behind products"},
    {"dp_overlap", FIELD(dp_overlap), 0, 1, 1, NULL, "gradient exchange behind the backward pass"},
    {"fused", FIELD(fused), 0, 1, 1, NULL, "0: every element-wise operation by itself"},
    {"attention", FIELD(attention), 0, 0, 0, gang_attention_names, "fused, fused1, unfused"},
    {"gradients", FIELD(gradients), 0, 0, 0, gang_gradient_names, "f32 or bf16"},
    {"scaling", FIELD(scaling), 0, 0, 0, gang_scaling_names, "tensor or rows"},
    {"recompute", FIELD(recompute), 0, 1, 0, gang_recompute_names, "none, selective, alternate, full"},
    {"offload", FIELD(offload), 0, 1, 0, gang_offload_names, "none, optimizer, activations, both"},
    {"place", FIELD(place), 0, 0, 0, gang_place_names, "stages or replicas outermost"},
    {"schedule", FIELD(schedule), 0, 0, 0, gang_schedule_names, "auto, 1f1b, interleaved, zero-bubble, list"},
};
enum { LAYOUT_FIELDS = sizeof layout_fields / sizeof *layout_fields, TEXT_BYTES = 64 };

static bool is_by_stage(const struct layout_field *field) { return field->choices && field->max; }

static void *member_of(const struct gang_layout *layout, const struct layout_field *field) { return (char *)layout + field->offset; }

static void set_member(struct gang_layout *layout, const struct layout_field *field, int64_t value) {
    if (is_by_stage(field))
        *(struct gang_by_stage *)member_of(layout, field) = (struct gang_by_stage){.at = {(uint8_t)value}};
    else
        *(int *)member_of(layout, field) = (int)value;
}

void gang_layout_init(struct gang_layout *layout) {
    *layout = (struct gang_layout){0};
    for (int i = 0; i < LAYOUT_FIELDS; i++) set_member(layout, &layout_fields[i], layout_fields[i].standard);
}

// The part of a list up to the next /, and in *text what follows it; NULL behind the last.
static enum gang_status next_part(const char *name, int count, int most, const char **text, char part[TEXT_BYTES]) {
    size_t len = strcspn(*text, "/");
    if (len >= TEXT_BYTES || count == most)
        return gang_fail(GANG_ERR_INPUT, "layout: %s=: expected at most %d numbers or words with / between", name, most);
    memcpy(part, *text, len);
    part[len] = 0;
    *text = (*text)[len] ? *text + len + 1 : NULL;
    return GANG_OK;
}

// Numbers with / between.
static enum gang_status parse_list(const char *name, const char *text, int64_t min, int64_t max, int most, int *out, int *count) {
    char what[TEXT_BYTES * 2];
    snprintf(what, sizeof what, "layout: %.60s", name);
    while (text) {
        char number[TEXT_BYTES];
        int64_t value = 0;
        enum gang_status status = next_part(name, *count, most, &text, number);
        if (!status) status = gang_parse_int(what, number, min, max, &value);
        if (status) return status;
        out[(*count)++] = (int)value;
    }
    return GANG_OK;
}

static enum gang_status parse_choice(const struct layout_field *field, const char *value, int *out) {
    for (int i = 0; field->choices[i]; i++)
        if (!strcmp(field->choices[i], value)) {
            *out = i;
            return GANG_OK;
        }
    return gang_fail(GANG_ERR_INPUT, "layout: %s=%s: expected %s", field->name, value, field->help);
}

static enum gang_status parse_stages(const struct layout_field *field, const char *text, struct gang_by_stage *out) {
    int choice = 0;
    while (text) {
        char word[TEXT_BYTES];
        enum gang_status status = next_part(field->name, out->count, GANG_MAX_STAGES, &text, word);
        if (!status) status = parse_choice(field, word, &choice);
        if (status) return status;
        out->at[out->count++] = (uint8_t)choice;
    }
    if (out->count == 1) out->count = 0;
    return GANG_OK;
}

// As parse_list, for many of them.
static enum gang_status parse_shorts(const char *name, const char *text, int64_t min, int64_t max, int most, uint16_t *out, int *count) {
    int values[GANG_MAX_CHUNKS] = {0};
    enum gang_status status = parse_list(name, text, min, max, most, values, count);
    for (int i = 0; i < *count; i++) out[i] = (uint16_t)values[i];
    return status;
}

static enum gang_status parse_widths(const struct layout_field *field, const char *text, struct gang_layout *out) {
    enum gang_status status = parse_shorts(field->name, text, field->min, field->max, GANG_MAX_STAGES, out->widths, &out->width_count);
    out->tp = out->widths[0];
    if (out->width_count == 1) out->width_count = out->widths[0] = 0;
    return status;
}

static enum gang_status parse_sizes(const struct layout_field *field, const char *text, struct gang_layout *out) {
    bool alike = true;
    enum gang_status status = parse_list(field->name, text, field->min, field->max, GANG_MAX_REPLICA_KINDS, out->sizes, &out->size_count);
    for (int i = 1; i < out->size_count; i++) alike &= out->sizes[i] == out->sizes[0];
    out->micro_batch = out->sizes[0];
    if (alike) out->size_count = 0;
    return status;
}

static enum gang_status parse_field(const char *name, const char *value, bool *seen, struct gang_layout *out) {
    int f = 0;
    while (f < LAYOUT_FIELDS && strcmp(layout_fields[f].name, name) != 0) f++;
    if (f == LAYOUT_FIELDS && strcmp(name, "layers") != 0) {
        char list[256] = "layers";
        for (int i = 0; i < LAYOUT_FIELDS; i++) snprintf(list + strlen(list), sizeof list - strlen(list), ", %s", layout_fields[i].name);
        return gang_fail(GANG_ERR_INPUT, "layout: '%s' is no field: expected one of %s", name, list);
    }
    if (seen[f]) return gang_fail(GANG_ERR_INPUT, "layout: '%s' is given twice", name);
    seen[f] = true;
    if (f == LAYOUT_FIELDS) return parse_shorts(name, value, 0, 4096, GANG_MAX_CHUNKS, out->layers, &out->layer_count);
    const struct layout_field *field = &layout_fields[f];
    if (field->offset == FIELD(tp)) return parse_widths(field, value, out);
    if (field->offset == FIELD(micro_batch)) return parse_sizes(field, value, out);
    if (is_by_stage(field)) return parse_stages(field, value, member_of(out, field));
    if (field->choices) return parse_choice(field, value, member_of(out, field));
    int count = 0;
    return parse_list(name, value, field->min, field->max, 1, member_of(out, field), &count);
}

enum gang_status gang_layout_parse(const char *text, struct gang_layout *out) {
    bool seen[LAYOUT_FIELDS + 1] = {false};
    gang_layout_init(out);
    while (*text) {
        char part[16 * GANG_MAX_STAGES]; // a word for each stage, or a number for each chunk
        size_t len = strcspn(text, ",");
        if (len >= sizeof part) return gang_fail(GANG_ERR_INPUT, "layout: a field is longer than %zu characters", sizeof part - 1);
        memcpy(part, text, len);
        part[len] = 0;
        char *equals = strchr(part, '=');
        if (!equals || equals == part || equals - part >= TEXT_BYTES)
            return gang_fail(GANG_ERR_INPUT, "layout: '%.40s': expected fields of the form tp=8, with commas between", part);
        *equals = 0;
        enum gang_status status = parse_field(part, equals + 1, seen, out);
        if (status) return status;
        text += len;
        if (*text == ',' && !*++text) return gang_fail(GANG_ERR_INPUT, "layout: a comma at the end: expected another field");
    }
    return GANG_OK;
}

// What does not divide goes to the chunks in the middle: the ends hold the embedding and the head too.
static int even_layers(int64_t layers, int chunks, int chunk) {
    int64_t extra = layers % chunks, from = (chunks - extra) / 2;
    return (int)(layers / chunks + (chunk >= from && chunk < from + extra));
}

static void print_stages(const struct layout_field *field, const struct gang_by_stage *choices, struct gang_buffer *out) {
    if (!choices->count && choices->at[0] == field->standard) return;
    gang_buffer_printf(out, ",%s=", field->name);
    for (int i = 0; i < choices->count || !i; i++) gang_buffer_printf(out, "%s%s", i ? "/" : "", field->choices[choices->at[i]]);
}

char *gang_layout_print(const struct gang_layout *layout, struct gang_arena *arena) {
    struct gang_buffer text = {0};
    for (int i = 0; i < LAYOUT_FIELDS; i++) {
        const struct layout_field *field = &layout_fields[i];
        if (is_by_stage(field)) {
            print_stages(field, member_of(layout, field), &text);
            continue;
        }
        int value = *(int *)member_of(layout, field);
        bool sizes = field->offset == FIELD(micro_batch) && layout->size_count;
        if (i > 2 && value == field->standard && !sizes) continue; // tp, pp and dp always stand there
        if (field->choices)
            gang_buffer_printf(&text, ",%s=%s", field->name, field->choices[value]);
        else
            gang_buffer_printf(&text, ",%s=%d", field->name, value);
        for (int s = 1; s < layout->width_count && field->offset == FIELD(tp); s++) gang_buffer_printf(&text, "/%d", layout->widths[s]);
        for (int k = 1; k < layout->size_count && sizes; k++) gang_buffer_printf(&text, "/%d", layout->sizes[k]);
    }
    bool uneven = false;
    int64_t sum = 0;
    for (int i = 0; i < layout->layer_count; i++) sum += layout->layers[i];
    for (int i = 0; i < layout->layer_count; i++) uneven |= layout->layers[i] != even_layers(sum, layout->layer_count, i);
    for (int i = 0; i < layout->layer_count && uneven; i++) gang_buffer_printf(&text, "%s%d", i ? "/" : ",layers=", layout->layers[i]);
    char *copy = gang_arena_strdup(arena, text.data + 1);
    gang_buffer_release(&text);
    return copy;
}

// ---- The task ------------------------------------------------------------------------------------------------------

struct task_file {
    char *model, *cluster;
    int64_t sequence_length, global_batch_tokens;
    int compute;
};

static const char *const computes[] = {"bf16", "f8", "f32", NULL};
#define AT(member) offsetof(struct task_file, member)
static const struct gang_field task_fields[] = {
    {"model", GANG_FIELD_STRING, AT(model), NULL, 0, 0, NULL, "config.json, or a Hugging Face directory that holds one"},
    {"cluster", GANG_FIELD_STRING, AT(cluster), "", 0, 0, NULL, "cluster.yaml: what there is"},
    {"sequence_length", GANG_FIELD_INT, AT(sequence_length), NULL, 1, 1 << 24, NULL, "tokens of a sample"},
    {"global_batch_tokens", GANG_FIELD_INT, AT(global_batch_tokens), NULL, 1, 1LL << 40, NULL, "tokens of an optimizer step"},
    {"compute", GANG_FIELD_ENUM, AT(compute), "bf16", 0, 0, computes, "type of the products"},
};

static char *beside(struct gang_arena *arena, const char *file, char *path) {
    const char *slash = strrchr(file, '/');
    return *path == '/' || !slash ? path : gang_arena_printf(arena, "%.*s/%s", (int)(slash - file), file, path);
}

enum gang_status gang_task_read(const char *path, const char *cluster, struct gang_arena *arena, struct gang_task *task, struct gang_pool *pool) {
    struct task_file file = {0};
    *task = (struct gang_task){0};
    enum gang_status status = gang_yaml_bind(path, task_fields, sizeof task_fields / sizeof *task_fields, &file, arena);
    if (status) return status;
    if (!cluster && !*file.cluster) return gang_fail(GANG_ERR_INPUT, "%s: cluster: missing: name a cluster file, or give --cluster", path);
    if (file.global_batch_tokens % file.sequence_length)
        return gang_fail(GANG_ERR_INPUT, "%s: global_batch_tokens %lld is not a multiple of sequence_length %lld: choose for example %lld", path,
                         (long long)file.global_batch_tokens, (long long)file.sequence_length,
                         (long long)((file.global_batch_tokens / file.sequence_length + 1) * file.sequence_length));
    static const enum gang_math maths[] = {GANG_MATH_F16, GANG_MATH_F8, GANG_MATH_F32};
    task->sequence_length = file.sequence_length;
    task->global_batch = file.global_batch_tokens / file.sequence_length;
    task->math = maths[file.compute];
    status = gang_shape_read(beside(arena, path, file.model), &task->shape);
    if (!status) status = gang_pool_read(cluster ? cluster : beside(arena, path, file.cluster), arena, pool);
    return status;
}

// ---- Does it divide ------------------------------------------------------------------------------------------------

#define REFUSE(...) gang_fail(GANG_ERR_INPUT, "layout: " __VA_ARGS__)

// tp=, with the stage it is of where stages differ.
static const char *name_width(const struct gang_layout *l, int stage, char out[48]) {
    snprintf(out, 48, l->width_count ? "tp=%d of stage %d" : "tp=%d", gang_tp_of(l, stage), stage);
    return out;
}

static enum gang_status check_width(const struct gang_task *task, const struct gang_layout *l, int stage) {
    const struct gang_shape *s = &task->shape;
    char name[48];
    int tp = gang_tp_of(l, stage);
    if (s->heads % tp) return REFUSE("%s does not divide the model's %lld heads", name_width(l, stage, name), (long long)s->heads);
    if (s->ffn % tp || (s->experts && s->expert_ffn % tp)) return REFUSE("%s does not divide the feed-forward width", name_width(l, stage, name));
    if (task->sequence_length % ((int64_t)l->cp * tp) && l->sequence_parallel)
        return REFUSE("cp=%d times %s does not divide the sequence of %lld", l->cp, name_width(l, stage, name), (long long)task->sequence_length);
    return GANG_OK;
}

// As many as stages, and as one where all are alike. Messages go from a stage to the next, with virtual stages from the last to the first too.
static enum gang_status settle_widths(struct gang_layout *l) {
    bool alike = true;
    if (l->width_count && l->width_count != l->pp) return REFUSE("tp= names %d stages: expected one number, or pp = %d", l->width_count, l->pp);
    for (int s = 0; s < l->width_count; s++) {
        int next = (s + 1) % l->pp, tp = l->widths[s], other = l->widths[next];
        alike &= tp == other;
        if ((next || l->vpp > 1) && tp % other && other % tp)
            return REFUSE("tp=%d of stage %d and tp=%d of stage %d, which follows it: one must divide the other", tp, s, other, next);
    }
    if (l->width_count) l->tp = l->widths[0];
    if (alike && l->width_count) {
        memset(l->widths, 0, (size_t)l->pp * sizeof *l->widths);
        l->width_count = 0;
    }
    return GANG_OK;
}

static enum gang_status check_widths(const struct gang_task *task, const struct gang_layout *l) {
    const struct gang_shape *s = &task->shape;
    for (int stage = 0; stage < l->width_count || !stage; stage++) {
        enum gang_status status = check_width(task, l, stage);
        if (status) return status;
    }
    if (task->sequence_length % l->cp) return REFUSE("cp=%d does not divide the sequence of %lld", l->cp, (long long)task->sequence_length);
    if (l->ep > 1 && !s->experts) return REFUSE("ep=%d: the model has no experts", l->ep);
    if (l->ep > 1 && s->experts % l->ep) return REFUSE("ep=%d does not divide the %lld experts", l->ep, (long long)s->experts);
    return GANG_OK;
}

static enum gang_status settle_layers(const struct gang_task *task, struct gang_layout *l) {
    int chunks = l->pp * l->vpp;
    int64_t layers = task->shape.layers, sum = 0;
    if (chunks > GANG_MAX_CHUNKS) return REFUSE("pp=%d times vpp=%d: more than %d chunks", l->pp, l->vpp, GANG_MAX_CHUNKS);
    if (!l->layer_count) {
        if (layers < chunks)
            return REFUSE("pp=%d times vpp=%d makes %d chunks of %lld layers: choose at most %lld", l->pp, l->vpp, chunks, (long long)layers,
                          (long long)layers);
        for (int c = 0; c < chunks; c++) l->layers[c] = (uint16_t)even_layers(layers, chunks, c);
        l->layer_count = chunks;
    }
    if (l->layer_count != chunks) return REFUSE("layers= names %d chunks: expected pp * vpp = %d", l->layer_count, chunks);
    for (int c = 0; c < chunks; c++) sum += l->layers[c];
    if (sum != layers) return REFUSE("layers= adds up to %lld: the model has %lld", (long long)sum, (long long)layers);
    return GANG_OK;
}

// As many choices as stages; as one where all are alike.
static enum gang_status settle_stages(const struct gang_layout *l, const char *name, struct gang_by_stage *choices) {
    bool alike = true;
    if (choices->count && choices->count != l->pp) return REFUSE("%s= names %d stages: expected one word, or pp = %d", name, choices->count, l->pp);
    for (int s = 1; s < choices->count; s++) alike &= choices->at[s] == choices->at[0];
    if (alike) choices->count = 0;
    return GANG_OK;
}

static enum gang_status settle_width(const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *l) {
    int64_t one = gang_cells_devices(l, 0, l->pp);
    int64_t replicas = l->dp ? l->dp : 1;
    if (l->width_count && replicas * one > pool->devices)
        return REFUSE("dp=%lld replicas of stages as wide as tp= says, times cp=%d, need %lld devices, the pool has %lld", (long long)replicas, l->cp,
                      (long long)(replicas * one), (long long)pool->devices);
    if (one > pool->devices)
        return REFUSE("tp=%d x cp=%d x pp=%d needs %lld devices, the pool has %lld", l->tp, l->cp, l->pp, (long long)one, (long long)pool->devices);
    if (!l->dp) l->dp = (int)(pool->devices / one);
    if (one * l->dp > pool->devices)
        return REFUSE("tp=%d x cp=%d x pp=%d x dp=%d needs %lld devices, the pool has %lld: dp at most %lld", l->tp, l->cp, l->pp, l->dp,
                      (long long)(one * l->dp), (long long)pool->devices, (long long)(pool->devices / one));
    if (l->dp % l->ep) return REFUSE("ep=%d does not divide dp=%d", l->ep, l->dp);
    if (l->size_count) return GANG_OK; // see check_sizes
    if (task->global_batch % l->micro_batch) {
        int nearest = l->micro_batch;
        while (task->global_batch % nearest) nearest--;
        return REFUSE("mb=%d does not divide the batch of %lld sequences: choose for example mb=%d", l->micro_batch, (long long)task->global_batch,
                      nearest);
    }
    if (task->global_batch / l->micro_batch < l->dp)
        return REFUSE("dp=%d replicas for %lld micro-batches of mb=%d: choose dp at most %lld, or a smaller mb", l->dp,
                      (long long)(task->global_batch / l->micro_batch), l->micro_batch, (long long)(task->global_batch / l->micro_batch));
    return GANG_OK;
}

// ---- Where the cells lie -------------------------------------------------------------------------------------------

// The group that holds devices [at, at + count) of the line, or -1 where they lie in two; `begin`: the first, counted in the group.
static int group_at(const struct gang_pool *pool, int64_t at, int64_t count, int64_t *begin) {
    for (int g = 0; g < pool->group_count; g++) {
        int64_t size = pool->groups[g]->nodes * pool->groups[g]->devices;
        *begin = at;
        if (at < size) return at + count <= size ? g : -1;
        at -= size;
    }
    return -1;
}

static int compare_replicas(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

int64_t gang_cell_at(const struct gang_layout *l, int64_t replica, int stage) {
    int64_t before = gang_cells_devices(l, 0, stage);
    return l->place == GANG_PLACE_STAGES ? before * l->dp + replica * gang_cell_devices(l, stage)
                                         : before + replica * gang_cells_devices(l, 0, l->pp);
}

// The first replica with a device at or behind this place of the line, of the stage that lies there where stages are outermost.
static int64_t replica_at(const struct gang_layout *l, int64_t at) {
    if (l->place == GANG_PLACE_REPLICAS) return at / gang_cells_devices(l, 0, l->pp);
    for (int s = 0; s < l->pp; s++) {
        int64_t cell = gang_cell_devices(l, s);
        if (at < l->dp * cell) return at / cell;
        at -= l->dp * cell;
    }
    return l->dp;
}

// The replicas at which the groups under the stages change, sorted, with 0 in front and dp behind; between two of them all are alike.
static int find_changes(const struct gang_pool *pool, const struct gang_layout *l, int64_t *out) {
    int count = 0;
    int64_t edge = 0;
    out[count++] = 0;
    out[count++] = l->dp;
    for (int g = 0; g < pool->group_count; g++) {
        edge += pool->groups[g]->nodes * pool->groups[g]->devices;
        // The replica that the edge lies in or before, and the one behind it.
        for (int64_t r = replica_at(l, edge), end = r + 2; r < end; r++)
            if (r > 0 && r < l->dp) out[count++] = r;
    }
    qsort(out, (size_t)count, sizeof *out, compare_replicas);
    return count;
}

// Whether cells beginning at these devices of their group, `step` apart, have all devices of each tensor-parallel row in one high-bandwidth
// domain, as their price says: cells of one width do where that divides the nodes, behind cells of another width they may not.
static bool rows_lie_whole(const struct gang_layout *l, const struct gang_group *group, int stage, int64_t begin, int64_t step, int64_t count) {
    int64_t tp = gang_tp_of(l, stage), domain = group->fast_domain;
    if (tp > domain || (domain % tp == 0 && begin % tp == 0 && step % tp == 0)) return true;
    for (int64_t i = 0; i < count * l->cp; i++) {
        int64_t row = begin + i / l->cp * step + i % l->cp * tp;
        if (row / domain != (row + tp - 1) / domain) return false;
    }
    return true;
}

// The groups under the stages of replicas [r, r + count), which all lie alike.
static enum gang_status find_groups(const struct gang_pool *pool, const struct gang_layout *l, int64_t r, int64_t count, int *groups) {
    int64_t all = gang_cells_devices(l, 0, l->pp), before = 0; // before: of a replica's stages in front
    for (int s = 0; s < l->pp; s++) {
        int64_t cell = gang_cell_devices(l, s), step = l->place == GANG_PLACE_STAGES ? cell : all, begin = 0;
        int64_t at = (l->place == GANG_PLACE_STAGES ? before * l->dp : before) + r * step;
        groups[s] = group_at(pool, at, cell, &begin);
        if (groups[s] < 0)
            return REFUSE("the tp x cp = %lld devices of replica %lld, stage %d would lie in two groups of unlike nodes: choose widths that "
                          "divide the groups",
                          (long long)cell, (long long)r, s);
        if (l->width_count && !rows_lie_whole(l, pool->groups[groups[s]], s, begin, step, count))
            return REFUSE("tp=%d of stage %d: its devices would lie in two high-bandwidth domains of group '%s': let wide stages stand where "
                          "whole nodes are left",
                          gang_tp_of(l, s), s, pool->groups[groups[s]]->name);
        before += cell;
    }
    return GANG_OK;
}

static enum gang_status find_classes(const struct gang_pool *pool, const struct gang_layout *l, struct gang_arena *arena,
                                     struct gang_placement *out) {
    int *groups = gang_arena_alloc(arena, (size_t)l->pp * sizeof *groups);
    int64_t *changes = gang_arena_alloc(arena, (size_t)(2 + 2 * pool->group_count) * sizeof *changes);
    int change_count = find_changes(pool, l, changes);
    for (int i = 0; i + 1 < change_count; i++) {
        int64_t r = changes[i], alike = changes[i + 1] - r;
        if (!alike) continue;
        enum gang_status status = find_groups(pool, l, r, alike, groups);
        if (status) return status;
        int c = 0;
        while (c < out->class_count && memcmp(out->classes[c].groups, groups, (size_t)l->pp * sizeof *groups) != 0) c++;
        if (c == GANG_MAX_REPLICA_KINDS) return REFUSE("more than %d kinds of replicas: choose place=replicas, or widths that divide the groups", c);
        if (c == out->class_count) {
            out->classes[out->class_count++] = (struct gang_class){.kind = c, .groups = groups};
            groups = gang_arena_alloc(arena, (size_t)l->pp * sizeof *groups);
        }
        out->classes[c].replicas += alike;
    }
    out->kind_count = out->class_count;
    return GANG_OK;
}

static enum gang_status check_size_count(const struct gang_layout *l, const struct gang_placement *placement) {
    if (l->size_count && l->size_count != placement->kind_count)
        return REFUSE("mb= names %d sizes: expected one for all, or one for each of the %d kinds of replicas (those that lie on the same groups), "
                      "in the cluster's order",
                      l->size_count, placement->kind_count);
    return GANG_OK;
}

// Seconds of one micro-batch on a class's slowest stage.
static double class_seconds(const struct gang_task *task, const struct gang_prices *prices, const struct gang_layout *l,
                            const struct gang_class *class) {
    double slowest = 0;
    for (int s = 0; s < l->pp; s++) {
        double sum = 0, chunk = 0;
        if (s && class->groups[s] == class->groups[s - 1] && gang_stage_repeats(task, l, s)) continue;
        for (int c = s; c < l->layer_count; c += l->pp) {
            struct gang_chunk_cost cost;
            if (!gang_chunk_repeats(task, l, c)) {
                gang_chunk_of(task, l, gang_prices_of(prices, l, class, s), c, &cost);
                chunk = gang_time_sum(&cost.forward) + gang_time_sum(&cost.input) + gang_time_sum(&cost.weight) +
                        gang_copy_shown(&cost, GANG_OP_FORWARD) + gang_copy_shown(&cost, GANG_OP_BACKWARD);
            }
            sum += chunk;
        }
        slowest = gang_larger(slowest, sum);
    }
    return slowest;
}

// ---- Who takes how much --------------------------------------------------------------------------------------------

// The numbers of sequences that micro-batches of some sizes add up to. Of those with the same remainder by the smallest size all from the
// least one on: least[remainder], or only the multiples of the smallest size (NULL).
struct sums {
    int64_t smallest, *least;
};

// The kinds of replicas while the batch is shared out.
struct sharing {
    struct gang_class *kinds;
    int count;
    double seconds[GANG_MAX_REPLICA_KINDS];   // of a micro-batch
    int64_t level[GANG_MAX_REPLICA_KINDS];    // micro-batches that a replica may have
    int64_t taken[GANG_MAX_REPLICA_KINDS];    // by all replicas of the kind
    int order[GANG_MAX_REPLICA_KINDS];        // the largest micro-batch first, of equal ones the one that ends last
    struct sums sums[GANG_MAX_REPLICA_KINDS]; // of the kinds from order[i] on
};

static bool adds_up(const struct sums *sums, int64_t sequences) {
    if (sequences < 0) return false;
    assert(sums->smallest > 0);
    int64_t remainder = sequences % sums->smallest;
    return sums->least ? sums->least[remainder] <= sequences : remainder == 0;
}

// One size leads from remainder to remainder in circles, one for each number below the common divisor: twice round from anywhere passes
// the least one.
static void add_size(struct sums *sums, int64_t size) {
    int64_t divisor = sums->smallest, rest = size;
    while (rest) {
        int64_t next = divisor % rest;
        divisor = rest;
        rest = next;
    }
    for (int64_t start = 0; start < divisor; start++) {
        int64_t at = start;
        for (int rounds = 0; rounds < 2; rounds += at == start) {
            int64_t from = sums->least[at], next = (at + size) % sums->smallest;
            if (from < INT64_MAX && from + size < sums->least[next]) sums->least[next] = from + size;
            at = next;
        }
    }
}

static int64_t size_at(const struct sharing *s, int i) { return s->kinds[s->order[i]].micro_batch; }

static void find_sums(struct sharing *s, struct gang_arena *arena) {
    bool multiples = true;
    int64_t smallest = size_at(s, s->count - 1);
    for (int i = s->count - 1; i >= 0; i--) {
        struct sums *sums = &s->sums[i];
        *sums = (struct sums){.smallest = smallest};
        multiples &= size_at(s, i) % smallest == 0;
        if (multiples) continue;
        sums->least = gang_arena_alloc(arena, (size_t)smallest * sizeof *sums->least);
        for (int64_t r = 1; r < smallest; r++) sums->least[r] = INT64_MAX;
        for (int k = i; k < s->count; k++) add_size(sums, size_at(s, k));
    }
}

static double end_of(const struct sharing *s, int kind) { return (double)s->level[kind] * s->seconds[kind]; }

static void sort_kinds(struct sharing *s) {
    for (int k = 0; k < s->count; k++) {
        int at = k;
        for (; at; at--) {
            int other = s->order[at - 1];
            if (s->kinds[other].micro_batch > s->kinds[k].micro_batch) break;
            if (s->kinds[other].micro_batch == s->kinds[k].micro_batch && end_of(s, other) > end_of(s, k)) break;
            s->order[at] = other;
        }
        s->order[at] = k;
    }
}

// With a micro-batch for every replica, and what is left in whole micro-batches too.
static enum gang_status check_sizes(const struct gang_layout *l, const struct sharing *s, int64_t batch) {
    int64_t least = 0, below = batch, above = batch;
    for (int k = 0; k < s->count; k++) least += s->kinds[k].replicas * s->kinds[k].micro_batch;
    if (batch < least)
        return REFUSE("a micro-batch for each of the dp=%d replicas makes %lld sequences, the batch has %lld: choose fewer replicas or a smaller mb",
                      l->dp, (long long)least, (long long)batch);
    if (adds_up(s->sums, batch - least)) return GANG_OK;
    while (!adds_up(s->sums, below - least)) below--;
    while (!adds_up(s->sums, above - least)) above++;
    return REFUSE("micro-batches of these sizes do not add up to the batch of %lld sequences: the nearest that they do are %lld and %lld",
                  (long long)batch, (long long)below, (long long)above);
}

// Whether the batch can be made up of no more micro-batches than the levels allow. What they are too many for is taken away from one
// kind after another, as much as leaves what those behind it can give.
static bool fill_levels(struct sharing *s, int64_t batch) {
    int64_t surplus = -batch;
    for (int k = 0; k < s->count; k++) {
        s->taken[k] = s->level[k] * s->kinds[k].replicas;
        surplus += s->taken[k] * s->kinds[k].micro_batch;
    }
    if (!adds_up(s->sums, surplus)) return false;
    sort_kinds(s);
    for (int i = 0; i < s->count; i++) {
        int k = s->order[i];
        int64_t size = s->kinds[k].micro_batch, less = s->taken[k] - s->kinds[k].replicas;
        if (less > surplus / size) less = surplus / size;
        while (less > 0 && i + 1 < s->count && !adds_up(&s->sums[i + 1], surplus - less * size)) less--;
        s->taken[k] -= less;
        surplus -= less * size;
    }
    return surplus == 0;
}

// A kind whose micro-batches are not a multiple of its replicas becomes two classes.
static void settle_classes(const struct sharing *s, struct gang_placement *out) {
    for (int k = 0; k < s->count; k++) {
        struct gang_class *class = &out->classes[k];
        int64_t more = s->taken[k] % class->replicas;
        class->micro_batches = s->taken[k] / class->replicas;
        if (!more) continue;
        assert(out->class_count < GANG_MAX_CLASSES);
        out->classes[out->class_count] = *class;
        out->classes[out->class_count++].replicas = class->replicas - more;
        class->replicas = more;
        class->micro_batches++;
    }
}

static bool is_alike(const struct gang_pool *pool) {
    for (int g = 1; g < pool->group_count; g++)
        if (pool->groups[g]->kind != pool->groups[0]->kind) return false;
    return true;
}

// Whole micro-batches for every replica so that they end together as nearly as whole numbers allow, and add up exactly: from the
// shares by speed, rounded down, whoever would end first may take one more, until the batch can be made up.
enum gang_status gang_layout_share(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                                   const double seconds[GANG_MAX_REPLICA_KINDS], struct gang_arena *arena, struct gang_placement *out) {
    struct sharing s = {.kinds = out->classes, .count = out->kind_count};
    double speed = 0, batch = (double)task->global_batch;
    bool alike = !l->size_count && is_alike(pool);
    for (int k = 0; k < s.count; k++) s.kinds[k].micro_batch = gang_layout_size(l, k);
    sort_kinds(&s);
    find_sums(&s, arena);
    enum gang_status status = check_sizes(l, &s, task->global_batch);
    if (status) return status;
    for (int k = 0; k < s.count; k++) {
        s.seconds[k] = alike ? 1 : seconds[k];
        speed += (double)(s.kinds[k].replicas * s.kinds[k].micro_batch) / s.seconds[k];
    }
    for (int k = 0; k < s.count; k++) {
        s.level[k] = (int64_t)(batch / speed / s.seconds[k]);
        if (s.level[k] < 1) s.level[k] = 1;
    }
    while (!fill_levels(&s, task->global_batch)) {
        int first = 0;
        for (int k = 1; k < s.count; k++)
            if ((double)(s.level[k] + 1) * s.seconds[k] < (double)(s.level[first] + 1) * s.seconds[first]) first = k;
        s.level[first]++;
    }
    settle_classes(&s, out);
    return GANG_OK;
}

static enum gang_status check_devices(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *l,
                                      const struct gang_placement *placement) {
    for (int c = 0; c < placement->class_count; c++)
        for (int s = 0; s < l->pp; s++) {
            const struct gang_group *group = pool->groups[placement->classes[c].groups[s]];
            const struct gang_kind *kind = group->kind;
            if (!(kind->peak[task->math] > 0)) return REFUSE("device '%s' does not compute in %s", kind->name, gang_math_names[task->math]);
            if (task->math == GANG_MATH_F8 && !(kind->peak[GANG_MATH_F16] > 0))
                return REFUSE("device '%s' has no f16 for what f8 leaves", kind->name);
        }
    return GANG_OK;
}

static enum gang_status check_offload(const struct gang_pool *pool, const struct gang_layout *l, const struct gang_placement *placement) {
    for (int c = 0; c < placement->class_count; c++)
        for (int s = 0; s < l->pp; s++) {
            const struct gang_group *group = pool->groups[placement->classes[c].groups[s]];
            if (gang_of_stage(&l->offload, s) && !gang_group_offloads(group))
                return REFUSE("offload on stage %d: give group '%s' host_memory and host_bandwidth, and its kind host_link", s, group->name);
        }
    return GANG_OK;
}

bool gang_layout_is_near(const struct gang_pool *pool, const struct gang_layout *layout, const struct gang_placement *placement) {
    for (int s = 0; s < layout->pp; s++)
        for (int c = 1; c < placement->class_count; c++)
            if (pool->groups[placement->classes[c].groups[s]]->site != pool->groups[placement->classes[0].groups[s]]->site) return false;
    return true;
}

enum gang_status gang_layout_locate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                                    struct gang_arena *arena, struct gang_placement *out) {
    *out = (struct gang_placement){.devices_used = gang_cells_devices(layout, 0, layout->pp) * layout->dp};
    out->classes = gang_arena_alloc(arena, GANG_MAX_CLASSES * sizeof *out->classes);
    enum gang_status status = find_classes(pool, layout, arena, out);
    return status ? status : check_devices(task, pool, layout, out);
}

enum gang_status gang_layout_settle(const struct gang_task *task, struct gang_layout *layout) {
    enum gang_status status = settle_layers(task, layout);
    if (!status) status = settle_stages(layout, "recompute", &layout->recompute);
    return status ? status : settle_stages(layout, "offload", &layout->offload);
}

enum gang_status gang_layout_place(const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *layout, struct gang_arena *arena,
                                   struct gang_placement *out) {
    enum gang_status status = settle_widths(layout);
    if (!status) status = check_widths(task, layout);
    if (!status) status = gang_layout_settle(task, layout);
    if (!status) status = settle_width(task, pool, layout);
    if (!status) status = gang_layout_locate(task, pool, layout, arena, out);
    if (!status) status = check_size_count(layout, out);
    if (!status) status = check_offload(pool, layout, out);
    if (status) return status;
    if (layout->zero >= 2 && !gang_layout_is_near(pool, layout, out))
        return REFUSE("zero=%d would exchange over a long link in every micro-batch: choose zero=1, or place=%s so that a stage's replicas "
                      "share a site",
                      layout->zero, layout->place == GANG_PLACE_STAGES ? "replicas with fewer stages" : "stages");
    struct gang_prices prices;
    double seconds[GANG_MAX_REPLICA_KINDS] = {0};
    gang_prices_fill(task, pool, layout, arena, &prices);
    for (int k = 0; k < out->kind_count; k++) seconds[k] = class_seconds(task, &prices, layout, &out->classes[k]);
    return gang_layout_share(task, pool, layout, seconds, arena, out);
}
