// Published runs over distance and on unlike devices: from a row of a table to a range of efficiencies.
//
// The sources state neither batch nor layout, of networks in a room not even the rate. All of that is varied, nothing is fitted:
//
// - far: tp=8, pp=8, the way that crosses as the row says; 1, 2 and 4 M tokens a step. The same devices in one room are the whole.
//   Devices that are not named are H100 with a NIC of the rate that the row gives "at the computing side".
// - unlike: 256 K and 1 M tokens a step; the NICs at 1, 5, 10 and 25 Gbit/s where the row says TCP, at 100 and 200 where it says RDMA, at
//   25 to 200 where it says nothing. A pipeline lies with each stage in one group, uneven; replicas with each in one group and as many
//   micro-batches as its speed gives. Of all widths, micro-batches and recomputation the fastest that fits is taken: what a run can
//   achieve, which is what the sources print. Every group by itself, by the fastest of the same, summed, is the whole.
#include "study/study.h"

#include <math.h>
#include <string.h>

struct group {
    int64_t devices;
    const char *kind;
    double km; // from the site before it
};

enum { MAX_GROUPS = 4, MIB_TOKENS = 1 << 20, MAX_BYTES = 16 << 20, MAX_DEVICES = 1 << 16 };

struct row {
    struct gang_arena *arena;
    const struct gang_list *kinds;
    struct gang_apart_case *out;
    struct gang_task task;
    int groups;
    struct group group[MAX_GROUPS];
    double link_tbps, nic_gbps; // of the links between sites; of a device, 0: its kind's
};

static void refuse(struct row *row, const char *why) {
    if (!row->out->why_not) row->out->why_not = why;
}

// The number that `*text` begins with, behind spaces; the text behind it.
static bool leading(const char **text, double *out) {
    char number[32];
    const char *at = *text + strspn(*text, " ");
    size_t len = strspn(at, "0123456789.");
    if (!len || len >= sizeof number) return false;
    memcpy(number, at, len);
    number[len] = 0;
    *text = at + len;
    return !gang_parse_real("number", number, 0, 1e12, out);
}

// ---- What a row says -----------------------------------------------------------------------------------------------

static void read_model(struct row *row) {
    // 3.8 B: the source does not say how the 7 B was cut; as many of its layers as make that.
    static const struct {
        const char *name;
        struct gang_shape shape;
    } models[] = {
        {"LLaMA2-70B", {.layers = 80, .hidden = 8192, .heads = 64, .kv_heads = 8, .ffn = 28672, .vocab = 32000}},
        {"177B", {.layers = 96, .hidden = 12288, .heads = 96, .kv_heads = 96, .ffn = 33792, .vocab = 64000}},
        {"Llama2-7B", {.layers = 32, .hidden = 4096, .heads = 32, .kv_heads = 32, .ffn = 11008, .vocab = 32000}},
        {"Llama2-3.8B", {.layers = 18, .hidden = 4096, .heads = 32, .kv_heads = 32, .ffn = 11008, .vocab = 32000}},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        if (strcmp(models[i].name, row->out->model) != 0) continue;
        row->task.shape = models[i].shape;
        row->task.shape.qk_dim = row->task.shape.v_dim = 128;
        row->task.shape.gated = true;
        row->task.sequence_length = 4096;
        return;
    }
    refuse(row, gang_arena_printf(row->arena, "model '%s' is not known", row->out->model));
}

static void add_group(struct row *row, double devices, const char *kind, size_t kind_len) {
    if (row->groups == MAX_GROUPS || (fmod(devices, 8) != 0 && devices != 4) || devices < 1 || devices > MAX_DEVICES) {
        refuse(row, "the devices are not understood");
        return;
    }
    // A kind by its name, or by what stands before its memory's size: H20 is H20-96GB.
    const struct gang_kind *kinds = row->kinds->items;
    int k = 0;
    while (k < row->kinds->count && (strncmp(kinds[k].name, kind, kind_len) != 0 || !strchr("-", kinds[k].name[kind_len]))) k++;
    if (k == row->kinds->count)
        refuse(row, gang_arena_printf(row->arena, "device '%.*s' is no known kind", (int)kind_len, kind));
    else
        row->group[row->groups++] = (struct group){.devices = (int64_t)devices, .kind = kinds[k].name};
}

// "512+384 x KIND": groups of one kind; "KIND x4 + KIND x8": one each; "1024 GPUs (102.4 Tbit/s at the computing side)".
static void read_devices(struct row *row) {
    const char *text = row->out->devices, *times = strstr(text, " x ");
    double count = 0;
    if (times) {
        while (text < times && leading(&text, &count)) {
            add_group(row, count, times + 3, strlen(times + 3));
            text += *text == '+';
        }
    } else if (leading(&text, &count) && !strncmp(text, " GPUs (", 7)) {
        double tbps = 0;
        text += 7;
        if (leading(&text, &tbps)) row->nic_gbps = 1000 * tbps / count;
        for (int i = 0; i < 2; i++) add_group(row, count / 2, "H100-80GB", 9);
    } else {
        for (text = row->out->devices; *text; text += strspn(text, " +")) {
            size_t len = strcspn(text, " ");
            const char *kind = text, *number = text + len + strspn(text + len, " x");
            if (!leading(&number, &count)) break;
            add_group(row, count, kind, len);
            text = number;
        }
        if (*text) row->groups = 0;
    }
    if (row->groups < 1) refuse(row, "the devices are not understood");
}

// "300", or "400 (300+50+50)": the first stretch joins the first two sites, all others the next two as one.
static void read_distance(struct row *row, const char *text) {
    double all = 0, first = 0;
    if (!leading(&text, &all)) return;
    first = all;
    if (!strncmp(text, " (", 2)) {
        text += 2;
        if (!leading(&text, &first)) return;
    }
    if (row->groups > 1) row->group[1].km = first;
    if (row->groups > 2) row->group[2].km = all - first;
}

static bool found_in(const char *text, const char *word) { return strstr(text, word) != NULL; }

// Of a throughput the row that the source names as its baseline is the whole.
static void read_stated(struct row *row, const struct gang_csv *table, int index) {
    const char *value = gang_csv_cell(table, index, "value"), *note = gang_csv_cell(table, index, "note");
    double low = 0, high = 0, whole = 100;
    if (!leading(&value, &low)) refuse(row, "the value is not a number");
    high = low;
    if (!strncmp(value, " to ", 4)) {
        value += 4;
        if (!leading(&value, &high)) refuse(row, "the value is not a number");
    }
    if (!strcmp(gang_csv_cell(table, index, "metric"), "throughput")) {
        const char *base = gang_arena_printf(row->arena, "baseline for %s", row->out->crossing);
        whole = 0;
        for (int i = 0; i < table->rows; i++) {
            const char *number = gang_csv_cell(table, i, "value");
            if (!strcmp(gang_csv_cell(table, i, "note"), base) && !leading(&number, &whole)) whole = 0;
        }
        if (found_in(note, "baseline")) refuse(row, "the run that others are compared with");
        if (!(whole > 0)) refuse(row, "no row is the baseline of its crossing");
    }
    row->out->stated_low = low / whole;
    row->out->stated_high = high / whole;
}

// ---- What would be: pools and layouts ------------------------------------------------------------------------------

static enum gang_status make_pool(const struct row *row, bool far, double nic_gbps, struct gang_arena *arena, struct gang_pool *out) {
    struct gang_buffer text = {0};
    gang_buffer_printf(&text, "sites:\n");
    for (int g = 0; g < row->groups; g++) {
        int64_t devices = row->group[g].devices, node = devices < 8 ? devices : 8;
        if (!g || far) gang_buffer_printf(&text, "  - name: s%d\n    groups:\n", g);
        gang_buffer_printf(&text, "      - {nodes: %lld, devices: %lld, device: %s", (long long)(devices / node), (long long)node,
                           row->group[g].kind);
        if (nic_gbps > 0) gang_buffer_printf(&text, ", nic: %gGbps", nic_gbps);
        gang_buffer_printf(&text, "}\n");
    }
    for (int g = 1; g < row->groups && far; g++)
        gang_buffer_printf(&text, "%s  - {between: [s%d, s%d], bandwidth: %gTbps, distance: %gkm}\n", g == 1 ? "links:\n" : "", g - 1, g,
                           row->link_tbps, row->group[g].km);
    enum gang_status status = gang_pool_parse("the row's devices", &text, arena, out);
    gang_buffer_release(&text);
    return status;
}

static void widen(struct row *row, double efficiency) {
    struct gang_apart_case *out = row->out;
    if (!(out->high > 0)) out->low = efficiency;
    out->low = fmin(out->low, efficiency);
    out->high = fmax(out->high, efficiency);
}

// Seconds of a step of this layout; INFINITY where it does not fit.
static double step_of(const struct row *row, const struct gang_pool *pool, const struct gang_layout *layout, struct gang_arena *arena) {
    struct gang_answer answer;
    return gang_evaluate(&row->task, pool, layout, 0, arena, &answer) ? INFINITY : answer.summary.step_seconds;
}

static void predict_far(struct row *row) {
    for (int way = GANG_PLACE_STAGES; way <= GANG_PLACE_REPLICAS; way++) {
        if (!found_in(row->out->crossing, way == GANG_PLACE_STAGES ? "PP" : "DP")) continue;
        for (int m = 1; m <= 4; m *= 2) {
            struct gang_arena arena;
            struct gang_pool far, room;
            struct gang_layout layout;
            gang_arena_init(&arena);
            gang_layout_init(&layout);
            layout.tp = layout.pp = 8;
            layout.sequence_parallel = 1;
            layout.place = way;
            row->task.global_batch = m * (MIB_TOKENS / row->task.sequence_length);
            enum gang_status status = make_pool(row, true, row->nic_gbps, &arena, &far);
            if (!status) status = make_pool(row, false, row->nic_gbps, &arena, &room);
            double apart = status ? INFINITY : step_of(row, &far, &layout, &arena), whole = status ? INFINITY : step_of(row, &room, &layout, &arena);
            if (isfinite(apart) && isfinite(whole))
                widen(row, whole / apart);
            else
                refuse(row, gang_arena_strdup(row->arena, gang_error()));
            gang_arena_release(&arena);
        }
    }
}

// The fastest layout that fits, by closed form, of those with `width` devices to a cell's row: over all replicas of a stage, or in a replica.
static void best_of_width(const struct row *row, const struct gang_pool *pool, int way, int64_t width, struct gang_arena *arena, double *seconds,
                          struct gang_layout *best) {
    for (int tp = 1; tp <= width && tp <= 8; tp *= 2)
        for (int mb = 1; mb <= 4; mb *= 2)
            for (int recompute = GANG_RECOMPUTE_NONE; recompute <= GANG_RECOMPUTE_FULL; recompute++) {
                struct gang_layout layout;
                struct gang_placement placement;
                double memory = 0;
                if (width % tp) continue;
                gang_layout_init(&layout);
                layout.tp = tp;
                layout.pp = (int)(way == GANG_PLACE_STAGES ? pool->devices / width : width / tp);
                layout.dp = (int)(pool->devices / ((int64_t)layout.pp * tp));
                layout.sequence_parallel = tp > 1;
                layout.micro_batch = mb;
                layout.recompute.at[0] = (uint8_t)recompute;
                layout.place = way;
                gang_search_layers(&row->task, pool, &layout, arena);
                if (gang_layout_place(&row->task, pool, &layout, arena, &placement)) continue;
                double estimate = gang_estimate(&row->task, pool, &layout, &placement, arena, &memory);
                if (memory > 1 || estimate >= *seconds) continue;
                *seconds = estimate;
                *best = layout;
            }
}

// Seconds of the fastest layout's step on these devices; INFINITY where none fits.
static double best_step(const struct row *row, const struct gang_pool *pool, int way, struct gang_arena *arena) {
    struct gang_layout best;
    double estimate = INFINITY;
    for (int64_t width = 1; width <= row->group[0].devices; width *= 2) {
        bool whole = true;
        for (int g = 0; g < row->groups; g++) whole &= row->group[g].devices % width == 0;
        if (whole) best_of_width(row, pool, way, width, arena, &estimate, &best);
    }
    return isfinite(estimate) ? step_of(row, pool, &best, arena) : INFINITY;
}

// Tokens a second that the groups do by themselves, each by the fastest of the layouts that are tried for all together; 0 for one on which
// none fits. Each is one node: no NIC in it.
static double sum_of_parts(const struct row *row, const struct gang_pool *pool, struct gang_arena *arena) {
    double sum = 0;
    for (int g = 0; g < pool->group_count; g++) {
        struct row part = *row;
        struct gang_pool alone = *pool;
        alone.groups = &pool->groups[g];
        part.groups = alone.group_count = 1;
        part.group[0] = row->group[g];
        alone.devices = row->group[g].devices;
        double seconds = INFINITY;
        for (int way = GANG_PLACE_STAGES; way <= GANG_PLACE_REPLICAS; way++) seconds = fmin(seconds, best_step(&part, &alone, way, arena));
        sum += (double)(row->task.global_batch * row->task.sequence_length) / seconds;
    }
    return sum;
}

static void predict_unlike(struct row *row) {
    static const double tcp[] = {1, 5, 10, 25, 0}, rdma[] = {100, 200, 0}, silent[] = {25, 100, 200, 0};
    const double *rates = found_in(row->out->crossing, "TCP") ? tcp : found_in(row->out->crossing, "RDMA") ? rdma : silent;
    int way = found_in(row->out->crossing, "PP") ? GANG_PLACE_STAGES : GANG_PLACE_REPLICAS;
    for (int m = 1; m <= 4; m *= 4) {
        double parts = 0;
        row->task.global_batch = m * (MIB_TOKENS / 4 / row->task.sequence_length);
        for (int i = 0; rates[i] > 0; i++) {
            struct gang_arena arena;
            struct gang_pool pool;
            gang_arena_init(&arena);
            if (make_pool(row, false, rates[i], &arena, &pool)) {
                refuse(row, gang_arena_strdup(row->arena, gang_error()));
            } else {
                if (!i) parts = sum_of_parts(row, &pool, &arena);
                double seconds = best_step(row, &pool, way, &arena);
                if (isfinite(seconds) && parts > 0) widen(row, (double)(row->task.global_batch * row->task.sequence_length) / seconds / parts);
            }
            gang_arena_release(&arena);
        }
    }
    if (!(row->out->high > 0)) refuse(row, "no layout fits these devices");
}

// ---- The table -----------------------------------------------------------------------------------------------------

static const char *const columns[] = {"id", "what", "model", "devices", "distance_km", "long_link_tbps", "crossing", "metric", "value", "note"};

bool gang_apart_is(const char *path) {
    struct gang_arena arena;
    struct gang_csv table;
    gang_arena_init(&arena);
    bool is = !gang_csv_read(path, MAX_BYTES, &arena, &table) && table.rows && gang_csv_cell(&table, 0, "crossing");
    gang_arena_release(&arena);
    return is;
}

static void predict(struct row *row, const struct gang_csv *table, int index) {
    struct gang_apart_case *out = row->out;
    const char *tbps = gang_csv_cell(table, index, "long_link_tbps");
    read_model(row);
    read_devices(row);
    read_distance(row, gang_csv_cell(table, index, "distance_km"));
    read_stated(row, table, index);
    bool far = !strcmp(out->what, "far");
    if (far && (!leading(&tbps, &row->link_tbps) || !(row->group[1].km > 0))) refuse(row, "the link is not stated");
    if (!far && row->groups < 2) refuse(row, "all devices are alike");
    if (!out->why_not) (far ? predict_far : predict_unlike)(row);
    out->off = out->why_not ? 0 : fmax(0, fmax(out->low - out->stated_high, out->stated_low - out->high));
}

enum gang_status gang_apart_read(const char *path, struct gang_arena *arena, struct gang_apart *out) {
    struct gang_csv table;
    struct gang_list kinds;
    enum gang_status status = gang_csv_read(path, MAX_BYTES, arena, &table);
    if (status) return status;
    gang_kinds_builtin(arena, &kinds);
    for (size_t i = 0; i < sizeof columns / sizeof *columns; i++)
        if (table.rows && !gang_csv_cell(&table, 0, columns[i])) return gang_fail(GANG_ERR_INPUT, "%s: the column '%s' is missing", path, columns[i]);
    *out = (struct gang_apart){.count = table.rows, .cases = gang_arena_alloc(arena, (size_t)table.rows * sizeof *out->cases)};
    for (int i = 0; i < table.rows; i++) {
        struct gang_apart_case *c = &out->cases[i];
        *c = (struct gang_apart_case){.id = gang_csv_cell(&table, i, "id"),
                                      .what = gang_csv_cell(&table, i, "what"),
                                      .model = gang_csv_cell(&table, i, "model"),
                                      .devices = gang_csv_cell(&table, i, "devices"),
                                      .crossing = gang_csv_cell(&table, i, "crossing")};
        struct row row = {.arena = arena, .kinds = &kinds, .out = c, .task.math = GANG_MATH_F16};
        predict(&row, &table, i);
        out->worst = fmax(out->worst, c->off);
    }
    return GANG_OK;
}
