// Plan files: what was planned, for which task and pool, and the program, in one text that is read again by whoever runs it.
//
//     gangline-plan 1
//     job /where/the/job.yaml
//     cluster /where/the/cluster.yaml
//     for layers 32                           what the plan holds for, one fact a line: the model, the step, every group of the pool
//     ...
//     layout tp=2,pp=4,...
//     class 0 3 16                            of replicas of kind 0 three do 16 micro-batches each
//     ...
//     gangline-program 1
//     ...                                     the program's text form
//     end
//     checksum 0123456789abcdef               XXH3 of every byte before this line
//
// The checksum finds a file that was cut off or changed by accident. Nothing else rests on it: what it covers is checked as if
// somebody hostile had written it.
#include "study/study.h"

#include <stdio.h>
#include <string.h>

enum { MAX_BYTES = 1 << 30, SUM_BYTES = 9 + 16 + 1 }; // "checksum ", 16 digits, end of line

static const char magic[] = "gangline-plan 1\n";

// ---- What a plan holds for -----------------------------------------------------------------------------------------

#define SIZE(member) \
    { #member, offsetof(struct gang_shape, member) }
static const struct {
    const char *name;
    size_t offset;
} sizes[] = {SIZE(layers), SIZE(hidden),    SIZE(heads),   SIZE(kv_heads),          SIZE(qk_dim),     SIZE(v_dim),      SIZE(ffn),
             SIZE(vocab),  SIZE(positions), SIZE(experts), SIZE(experts_per_token), SIZE(expert_ffn), SIZE(shared_ffn), SIZE(dense_layers),
             SIZE(q_rank), SIZE(kv_rank),   SIZE(rope_dim)};

static void print_facts(const struct gang_task *task, const struct gang_pool *pool, struct gang_buffer *out) {
    const struct gang_shape *shape = &task->shape;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        gang_buffer_printf(out, "for %s %lld\n", sizes[i].name, (long long)*(const int64_t *)((const char *)shape + sizes[i].offset));
    gang_buffer_printf(out, "for gated %d\nfor tied %d\nfor biases %d\n", shape->gated, shape->tied, shape->biases);
    gang_buffer_printf(out, "for sequence_length %lld\nfor sequences %lld\nfor compute %s\n", (long long)task->sequence_length,
                       (long long)task->global_batch, gang_math_names[task->math]);
    for (int g = 0; g < pool->group_count; g++) {
        const struct gang_group *group = pool->groups[g];
        size_t start = out->len;
        gang_buffer_printf(out, "for group %d: %lld nodes of %lld x %s at %s", g, (long long)group->nodes, (long long)group->devices,
                           group->kind->name, gang_pool_site(pool, group->site)->name);
        for (char *c = out->data + start; *c; c++) // names are whatever a file says
            if ((unsigned char)*c < 0x20) *c = '?';
        gang_buffer_printf(out, "\n");
    }
}

// ---- Writing -------------------------------------------------------------------------------------------------------

enum gang_status gang_plan_write(const char *path, const char *job, const struct gang_task *task, const struct gang_pool *pool,
                                 const struct gang_answer *answer) {
    struct gang_arena arena;
    struct gang_buffer text = {0};
    char *paths[2] = {NULL, NULL};
    gang_arena_init(&arena);
    enum gang_status status = gang_path_absolute(job, &arena, &paths[0]);
    if (!status) status = gang_path_absolute(pool->path, &arena, &paths[1]);
    for (int i = 0; i < 2 && !status; i++)
        if (strchr(paths[i], '\n')) status = gang_fail(GANG_ERR_INPUT, "%s: a path with a line end in it cannot stand in a plan", paths[i]);
    if (!status) {
        struct gang_layout layout = answer->layout;
        layout.schedule = answer->schedule;
        gang_buffer_printf(&text, "%sjob %s\ncluster %s\n", magic, paths[0], paths[1]);
        print_facts(task, pool, &text);
        gang_buffer_printf(&text, "layout %s\n", gang_layout_print(&layout, &arena));
        for (int c = 0; c < answer->placement.class_count; c++) {
            const struct gang_class *class = &answer->placement.classes[c];
            gang_buffer_printf(&text, "class %d %lld %lld\n", class->kind, (long long)class->replicas, (long long)class->micro_batches);
        }
        gang_program_print(&answer->program, &text);
        gang_buffer_printf(&text, "checksum %016llx\n", (unsigned long long)gang_hash(text.data, text.len, 0));
        status = gang_file_publish(path, text.data, text.len);
    }
    gang_buffer_release(&text);
    gang_arena_release(&arena);
    return status;
}

// ---- Reading -------------------------------------------------------------------------------------------------------

bool gang_plan_is(const char *path) {
    struct gang_map map;
    if (gang_map_open(path, &map)) return false;
    bool is = map.bytes >= sizeof magic - 1 && !memcmp(map.data, magic, sizeof magic - 1);
    gang_map_close(&map);
    return is;
}

struct reader {
    const char *path, *at, *end;
    int64_t line; // that `at` begins
};

#define REFUSE(in, format, ...) gang_fail(GANG_ERR_FORMAT, "%s:%lld: " format, (in)->path, (long long)(in)->line, __VA_ARGS__)

// The rest of a line that begins with `name` and a space, in the arena; NULL, and nothing is taken, where it does not.
static char *take(struct reader *in, const char *name, struct gang_arena *arena) {
    size_t skip = strlen(name) + 1, left = (size_t)(in->end - in->at);
    const char *stop = memchr(in->at, '\n', left);
    if (!stop || (size_t)(stop - in->at) <= skip || strncmp(in->at, name, skip - 1) != 0 || in->at[skip - 1] != ' ' ||
        memchr(in->at, 0, (size_t)(stop - in->at)))
        return NULL;
    char *text = gang_arena_printf(arena, "%.*s", (int)(stop - in->at - (ptrdiff_t)skip), in->at + skip);
    in->at = stop + 1;
    in->line++;
    return text;
}

static enum gang_status check_sum(struct reader *in, const struct gang_buffer *text) {
    char sum[SUM_BYTES + 1];
    if (text->len < sizeof magic - 1 || memcmp(text->data, magic, sizeof magic - 1) != 0)
        return REFUSE(in, "not a plan of version 1: expected '%.15s'", magic);
    if (text->len < sizeof magic - 1 + SUM_BYTES) return REFUSE(in, "%s", "the file is cut off: expected a checksum at its end");
    in->end = text->data + text->len - SUM_BYTES;
    snprintf(sum, sizeof sum, "checksum %016llx\n", (unsigned long long)gang_hash(text->data, text->len - SUM_BYTES, 0));
    if (!memcmp(in->end, sum, SUM_BYTES)) return GANG_OK;
    for (const char *c = in->at; c < in->end; c++) in->line += *c == '\n';
    return REFUSE(in, "the file was cut off or changed since it was written; if you changed it yourself, let it end with '%.25s'", sum);
}

// Three numbers.
static enum gang_status parse_class(struct reader *in, char *text, struct gang_class *out) {
    int64_t values[3];
    char *at = text, *rest = text;
    for (int i = 0; i < 3; i++) {
        at = strsep(&rest, " ");
        if (!at || gang_parse_int("class", at, i ? 1 : 0, INT32_MAX, &values[i])) at = NULL;
        if (!at) break;
    }
    *out = (struct gang_class){.kind = (int)values[0], .replicas = values[1], .micro_batches = values[2]};
    if (at && !rest) return GANG_OK;
    in->line--;
    return REFUSE(in, "%s", "expected 'class' and three numbers: a kind, its replicas, their micro-batches");
}

static enum gang_status parse(struct reader *in, struct gang_arena *arena, struct gang_plan *out) {
    in->at += sizeof magic - 1;
    in->line++;
    out->job = take(in, "job", arena);
    if (!out->job) return REFUSE(in, "%s", "expected 'job' and a path");
    out->cluster = take(in, "cluster", arena);
    if (!out->cluster) return REFUSE(in, "%s", "expected 'cluster' and a path");
    const char *facts = in->at;
    out->facts_line = in->line;
    while (take(in, "for", arena)) continue;
    out->facts = gang_arena_printf(arena, "%.*s", (int)(in->at - facts), facts);
    const char *layout = take(in, "layout", arena);
    if (!layout) return REFUSE(in, "%s", "expected 'for' and a fact, or 'layout' and fields");
    if (gang_layout_parse(layout, &out->layout)) {
        in->line--;
        return REFUSE(in, "%s", gang_error());
    }
    for (char *text = take(in, "class", arena); text; text = take(in, "class", arena)) {
        if (out->class_count == GANG_MAX_CLASSES) return REFUSE(in, "more than %d classes", GANG_MAX_CLASSES);
        enum gang_status status = parse_class(in, text, &out->classes[out->class_count++]);
        if (status) return status;
    }
    return gang_program_parse(in->path, in->line, in->at, (size_t)(in->end - in->at), arena, &out->program);
}

enum gang_status gang_plan_read(const char *path, struct gang_arena *arena, struct gang_plan *out) {
    struct gang_buffer text = {0};
    *out = (struct gang_plan){.path = gang_arena_strdup(arena, path)};
    enum gang_status status = gang_file_read(path, MAX_BYTES, &text);
    if (!status) {
        struct reader in = {.path = path, .at = text.data, .line = 1};
        status = check_sum(&in, &text);
        if (!status) status = parse(&in, arena, out);
    }
    gang_buffer_release(&text);
    return status;
}

enum gang_status gang_plan_check(const struct gang_plan *plan, const struct gang_task *task, const struct gang_pool *pool) {
    struct gang_buffer now = {0};
    enum gang_status status = GANG_OK;
    int64_t line = plan->facts_line;
    print_facts(task, pool, &now);
    for (const char *a = plan->facts, *b = now.data; (*a || *b) && !status; line++) {
        size_t m = strcspn(a, "\n"), n = strcspn(b, "\n");
        if (m != n || memcmp(a, b, m) != 0)
            status = gang_fail(GANG_ERR_INPUT,
                               "%s:%lld: the plan is for '%.*s', what is given has '%.*s': make a plan for that with 'gangline plan -o'", plan->path,
                               (long long)line, m ? (int)m - 4 : 4, m ? a + 4 : "none", n ? (int)n - 4 : 4, n ? b + 4 : "none");
        a += m + (a[m] != 0);
        b += n + (b[n] != 0);
    }
    gang_buffer_release(&now);
    return status;
}
