// Published runs: from a row of a table to a task and a layout.
//
// What a row does not say is taken from its source's own words in `notes`, by the rules in read_software below; what neither
// says makes the row unusable, and the reason is kept. Nothing here looks at the measured value except to turn it into seconds.
#include "study/study.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct row {
    const struct gang_csv *table;
    int index;
    struct gang_arena *arena;
    const char *why_not;
};

static const char *cell(const struct row *row, const char *column) {
    const char *text = gang_csv_cell(row->table, row->index, column);
    return text ? text : "";
}

static void refuse(struct row *row, const char *why) {
    if (!row->why_not) row->why_not = why;
}

// Largest sizes and widths: no product of them overflows.
enum {
    MAX_LAYERS = 1 << 10,
    MAX_HIDDEN = 1 << 17,
    MAX_FFN = 1 << 20,
    MAX_VOCAB = 1 << 22,
    MAX_EXPERTS = 1 << 10,
    MAX_WIDTH = 1 << 12,
    MAX_DEVICES = 1 << 22
};

// A whole number from `min` on; an empty cell is `fallback`, or a reason to give up where that is negative. Always within bounds.
static int64_t number(struct row *row, const char *column, int64_t fallback, int64_t min, int64_t max) {
    const char *text = cell(row, column);
    int64_t value = fallback;
    if (!*text && fallback < 0) refuse(row, gang_arena_printf(row->arena, "%s is not stated", column));
    if (*text && gang_parse_int(column, text, min, max, &value)) refuse(row, gang_arena_strdup(row->arena, gang_error()));
    return value < min ? min : value > max ? max : value;
}

// The number right behind `words` in the notes; `fallback` where they do not stand there.
static double noted(const char *notes, const char *words, double fallback) {
    const char *at = strstr(notes, words);
    char text[32];
    double value = fallback;
    if (!at) return fallback;
    at += strlen(words);
    size_t len = strspn(at, "0123456789.");
    if (!len || len >= sizeof text) return fallback;
    memcpy(text, at, len);
    text[len] = 0;
    return gang_parse_real(words, text, 0, 1e12, &value) ? fallback : value;
}

static void read_model(struct row *row, struct gang_case *out) {
    struct gang_shape *s = &out->task.shape;
    const char *notes = out->notes;
    s->layers = number(row, "layers", -1, 1, MAX_LAYERS);
    s->hidden = number(row, "hidden", -1, 1, MAX_HIDDEN);
    s->heads = number(row, "heads", -1, 1, MAX_WIDTH);
    s->kv_heads = number(row, "kv_heads", s->heads, 1, MAX_WIDTH);
    s->ffn = number(row, "ffn", 4 * s->hidden, 1, MAX_FFN);
    // Megatron's GPT vocabulary, which the papers of rows without one name.
    s->vocab = number(row, "vocab", 51200, 1, MAX_VOCAB);
    s->gated = number(row, "gated_mlp", 0, 0, 1) != 0;
    s->qk_dim = s->v_dim = s->hidden / s->heads;
    if (strstr(notes, "MoE")) {
        s->experts = (int64_t)noted(notes, "MoE ", 0);
        s->experts_per_token = (int64_t)noted(notes, "top-", 0);
        s->expert_ffn = s->ffn;
        if (s->experts < 1 || s->experts > MAX_EXPERTS || s->experts_per_token < 1 || s->experts_per_token > s->experts) {
            refuse(row, "the number of experts is not stated");
            s->experts = s->experts_per_token = 0;
        }
    }
    out->task.sequence_length = number(row, "seq", -1, 1, 1 << 24);
    out->task.global_batch = number(row, "global_bs", -1, 1, 1 << 24);
    const char *dtype = out->dtype;
    if (!strcmp(dtype, "bf16") || !strcmp(dtype, "fp16"))
        out->task.math = GANG_MATH_F16;
    else if (!strcmp(dtype, "fp8"))
        out->task.math = GANG_MATH_F8;
    else
        refuse(row, "the data type is not stated");
}

// What the software does, by the source's words: FSDP (all that torchtitan does on one stage) shards everything (SHARD_GRAD_OP all but the weights),
// NeMo and Megatron shard the optimizer unless the row says otherwise, and exchange behind products where it says so. PyTorch's FSDP without
// torch.compile is eager: nothing is fused.
static void read_software(struct gang_case *out) {
    struct gang_layout *l = &out->layout;
    const char *notes = out->notes;
    bool titan = strstr(out->source, "torchtitan") != NULL, fsdp = strstr(notes, "FSDP") || (titan && l->pp == 1);
    l->zero = strstr(notes, "SHARD_GRAD_OP") ? 2 : fsdp ? 3 : strstr(notes, "not sharded") ? 0 : 1;
    bool nemo = !strncmp(out->source, "NVIDIA/NeMo:", 12);
    l->tp_overlap = nemo || strstr(notes, "TP/DP/PP overlap") != NULL || strstr(notes, "async TP") != NULL || strstr(notes, "AsyncTP") != NULL;
    if (strstr(notes, "vanilla TP")) l->tp_overlap = 0;
    l->fused = !fsdp || strstr(notes, "compile") || strstr(notes, "JAX");
    // Fused attention came in the middle of 2022; a source that names it without a version had the first.
    l->attention = strstr(out->source, "2022")                                             ? GANG_ATTENTION_UNFUSED
                   : strstr(notes, "FlashAttention") && !strstr(notes, "FlashAttention-2") ? GANG_ATTENTION_FIRST
                                                                                           : GANG_ATTENTION_FUSED;
    if (strstr(notes, "BF16 grad") || nemo) l->gradients = GANG_GRADIENTS_BF16;
    if (strstr(notes, "rowwise")) l->scaling = GANG_SCALING_ROWS;
}

static void read_layout(struct row *row, struct gang_case *out) {
    struct gang_layout *l = &out->layout;
    const char *recompute = cell(row, "recompute");
    gang_layout_init(l);
    l->tp = (int)number(row, "tp", 1, 1, MAX_WIDTH);
    l->pp = (int)number(row, "pp", 1, 1, MAX_WIDTH);
    l->vpp = (int)number(row, "vpp", 1, 1, MAX_WIDTH);
    l->cp = (int)number(row, "cp", 1, 1, MAX_WIDTH);
    l->ep = (int)number(row, "ep", 1, 1, MAX_WIDTH);
    l->sequence_parallel = number(row, "sp", l->tp > 1, 0, 1) != 0;
    l->micro_batch = (int)number(row, "micro_bs", -1, 1, 1 << 16);
    read_software(out);
    int64_t one = (int64_t)l->tp * l->pp * l->cp;
    if (out->devices % one) refuse(row, "tp x pp x cp does not divide the devices");
    l->dp = (int)(out->devices / one);
    if (l->pp == 1) l->vpp = 1;
    while (l->vpp > 1 && out->task.shape.layers < (int64_t)l->pp * l->vpp) l->vpp--;
    l->schedule = l->vpp > 1 ? GANG_SCHEDULE_INTERLEAVED : GANG_SCHEDULE_1F1B; // what Megatron, NeMo and torchtitan run
    if (!strcmp(recompute, "full"))
        l->recompute.at[0] = GANG_RECOMPUTE_FULL;
    else if (strstr(recompute, "SAC") || strstr(out->source, "torchtitan"))
        l->recompute.at[0] = GANG_RECOMPUTE_ALTERNATE;
    else if (!strncmp(recompute, "selective", 9) || strstr(recompute, "SAVE_DOT_ONLY")) // products are kept, the rest is made again
        l->recompute.at[0] = GANG_RECOMPUTE_SELECTIVE;
    else if (*recompute && strcmp(recompute, "none") != 0)
        refuse(row, gang_arena_printf(row->arena, "recompute policy '%s' is not modelled", recompute));
}

// Numbers of a row that cannot all be true.
static void check_row(struct row *row, struct gang_case *c) {
    struct gang_shape *s = &c->task.shape;
    const struct gang_layout *l = &c->layout;
    int64_t one = (int64_t)l->tp * l->pp * l->cp, dp = number(row, "dp", 0, 0, MAX_DEVICES);
    if (s->hidden % s->heads) refuse(row, "hidden is not a multiple of heads");
    // Sources count dp with expert parallelism inside or beside it.
    double stands = (double)dp * (double)one;
    if (dp && stands != (double)c->devices && stands * l->ep != (double)c->devices)
        refuse(row, gang_arena_printf(row->arena, "tp x pp x cp x dp is %lld: the row states %lld devices", (long long)dp * (long long)one,
                                      (long long)c->devices));
    if (row->why_not || !*cell(row, "params_b")) return;
    double stated = 0;
    if (gang_parse_real("params_b", cell(row, "params_b"), 1e-6, 1e6, &stated)) {
        refuse(row, "params_b is not a number above 0");
        return;
    }
    // No column says whether the head is the embedding: the count that is nearer does.
    double whole = (double)gang_shape_parameters(s) * 1e-9, tied = whole - (double)s->vocab * (double)s->hidden * 1e-9;
    s->tied = fabs(tied - stated) < fabs(whole - stated);
    double counted = s->tied ? tied : whole;
    if (fabs(counted / stated - 1) > 0.15)
        refuse(row, gang_arena_printf(row->arena, "states %.4g B parameters, its sizes give %.4g B", stated, counted));
}

static void read_measured(struct row *row, struct gang_case *out) {
    const char *metric = cell(row, "metric"), *text = cell(row, "value");
    double value = 0, tokens = (double)out->task.global_batch * (double)out->task.sequence_length;
    if (gang_parse_real("value", text, 1e-9, 1e12, &value)) {
        refuse(row, "the value is not a number above 0");
    } else if (!strcmp(metric, "s_per_iter")) {
        out->measured = value;
    } else if (!strcmp(metric, "tokens_per_s_per_gpu")) {
        out->measured = tokens / (value * (double)out->devices);
    } else {
        refuse(row, gang_arena_printf(row->arena, "%s depends on how the source counts FLOP: only seconds and tokens are compared", metric));
    }
    double gib = noted(out->notes, "peak mem ", 0);
    out->stated_peak_bytes = gib * 0x1p30;
}

static bool among(const struct gang_strings *strings, const char *text) {
    for (int i = 0; i < strings->count; i++)
        if (!strcmp(strings->items[i], text)) return true;
    return false;
}

static void read_row(struct row *row, const struct gang_list *kinds, struct gang_case *out) {
    *out = (struct gang_case){.id = cell(row, "id"),
                              .source = cell(row, "source"),
                              .model = cell(row, "model"),
                              .device = cell(row, "gpu"),
                              .dtype = cell(row, "dtype"),
                              .notes = cell(row, "notes")};
    if (strchr(out->device, ':')) refuse(row, "unlike devices: the source does not say which stage has which");
    if (strstr(out->notes, "SUSPECT")) refuse(row, "the source contradicts itself: see notes");
    out->kind = gang_kind_find(kinds, out->device);
    if (!out->kind) refuse(row, gang_arena_printf(row->arena, "device '%s' is no known kind", out->device));
    out->devices = number(row, "gpus", -1, 1, MAX_DEVICES);
    read_model(row, out);
    read_layout(row, out);
    check_row(row, out);
    read_measured(row, out);
    out->why_not = row->why_not;
    out->calibrated_on = out->kind && among(&out->kind->calibrated_on, out->id);
}

enum gang_status gang_cases_read(const char *path, const struct gang_list *kinds, struct gang_arena *arena, int *count, struct gang_case **out) {
    static const char *const needed[] = {"id", "source", "model",    "layers",    "hidden", "heads",  "seq",   "gpu",  "gpus",
                                         "tp", "pp",     "micro_bs", "global_bs", "dtype",  "metric", "value", "notes"};
    struct gang_csv table;
    enum gang_status status = gang_csv_read(path, 16 << 20, arena, &table);
    if (status) return status;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++)
        if (table.rows && !gang_csv_cell(&table, 0, needed[i])) return gang_fail(GANG_ERR_INPUT, "%s: the column '%s' is missing", path, needed[i]);
    if (!table.rows) return gang_fail(GANG_ERR_INPUT, "%s: no row below the header", path);
    *count = table.rows;
    *out = gang_arena_alloc(arena, (size_t)table.rows * sizeof **out);
    for (int i = 0; i < table.rows; i++) {
        struct row row = {.table = &table, .index = i, .arena = arena};
        read_row(&row, kinds, &(*out)[i]);
    }
    return GANG_OK;
}
