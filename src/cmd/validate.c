// gangline validate: published runs against what the simulator says of them.
#include "cmd/cmd.h"
#include "study/study.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static double error_of(const struct gang_case *c) { return 100 * (c->predicted / c->measured - 1); }

static void show_set(const struct gang_error_summary *s) {
    printf("  %-21s %-5s %-58.58s %4d %7.1f %7.1f %7.1f %7.1f %+7.1f %7.1f\n", s->device, s->dtype, s->source, s->rows, 100 * s->mean,
           100 * s->median, 100 * s->p95, 100 * s->largest, 100 * s->bias, 100 * s->null_mean);
}

static void show(const struct gang_validation *v) {
    int skipped = 0;
    printf("  id           measured s  predicted s  error %%\n");
    for (int i = 0; i < v->count; i++) {
        const struct gang_case *c = &v->cases[i];
        if (c->why_not)
            skipped++;
        else
            printf("  %-12s %10.4g  %11.4g  %+7.1f%s\n", c->id, c->measured, c->predicted, error_of(c), c->calibrated_on ? "  calibrated on" : "");
    }
    printf("\n  not predicted: %d of %d\n", skipped, v->count);
    for (int i = 0; i < v->count; i++)
        if (v->cases[i].why_not) printf("  %-12s %s\n", v->cases[i].id, v->cases[i].why_not);
    printf("\n  errors in %%, of rows that no calibration used; null: one constant MFU for the device and type, the best in hindsight\n");
    printf("  %-21s %-5s %-58s %4s %7s %7s %7s %7s %7s %7s\n", "device", "type", "source", "rows", "mean", "median", "95th", "largest", "bias",
           "null");
    for (int i = 0; i < v->set_count; i++) show_set(&v->sets[i]);
    for (int i = 0; i < v->kind_count; i++) show_set(&v->kinds[i]);
    struct gang_error_summary all = v->blind;
    all.device = "all";
    show_set(&all);
    printf("  Kendall's tau within %d groups of the same model, device and device count: %.3f\n", v->tau_groups, v->tau);
    printf("  peak memory: %d rows state it, mean error %.1f %%\n", v->memory_rows, 100 * v->memory_mean);
}

static json_t *summary_json(const struct gang_error_summary *s) {
    return json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:f, s:f, s:f, s:f}", "device", s->device, "dtype", s->dtype, "source", s->source, "rows",
                     s->rows, "mean_pct", 100 * s->mean, "median_pct", 100 * s->median, "p95_pct", 100 * s->p95, "largest_pct", 100 * s->largest,
                     "bias_pct", 100 * s->bias, "null_mean_pct", 100 * s->null_mean);
}

static void show_json(const struct gang_validation *v) {
    json_t *rows = json_array(), *skipped = json_array(), *sets = json_array(), *kinds = json_array();
    for (int i = 0; i < v->count; i++) {
        const struct gang_case *c = &v->cases[i];
        if (c->why_not) {
            json_array_append_new(skipped, json_pack("{s:s, s:s}", "id", c->id, "why", c->why_not));
            continue;
        }
        json_t *row = json_pack("{s:s, s:f, s:f, s:f, s:b, s:f}", "id", c->id, "measured", c->measured, "predicted", c->predicted, "error_pct",
                                error_of(c), "calibrated_on", c->calibrated_on, "peak_bytes", c->peak_bytes);
        if (c->stated_peak_bytes > 0) json_object_set_new(row, "stated_peak_bytes", json_real(c->stated_peak_bytes));
        json_array_append_new(rows, row);
    }
    for (int i = 0; i < v->set_count; i++) json_array_append_new(sets, summary_json(&v->sets[i]));
    for (int i = 0; i < v->kind_count; i++) json_array_append_new(kinds, summary_json(&v->kinds[i]));
    json_t *blind = summary_json(&v->blind);
    json_object_set_new(blind, "kendall_tau", isnan(v->tau) ? json_null() : json_real(v->tau));
    json_object_set_new(blind, "tau_groups", json_integer(v->tau_groups));
    json_object_set_new(blind, "memory_rows", json_integer(v->memory_rows));
    json_object_set_new(blind, "memory_mean_pct", json_real(100 * v->memory_mean));
    json_object_set_new(blind, "sets", sets);
    json_object_set_new(blind, "kinds", kinds);
    json_t *all = json_pack("{s:o, s:o, s:o}", "rows", rows, "skipped", skipped, "summary", blind);
    char *text = json_dumps(all, JSON_REAL_PRECISION(9));
    printf("%s\n", text);
    free(text);
    json_decref(all);
}

// ---- The report: docs/accuracy.md ----------------------------------------------------------------------------------

static void report_set(struct gang_buffer *out, const struct gang_error_summary *s) {
    gang_buffer_printf(out, "| %s | %s | %s | %d | %.1f | %.1f | %.1f | %.1f | %+.1f | %.1f |\n", s->device, s->dtype, s->source, s->rows,
                       100 * s->mean, 100 * s->median, 100 * s->p95, 100 * s->largest, 100 * s->bias, 100 * s->null_mean);
}

static enum gang_status write_report(const struct gang_validation *v, const char *cases, const char *path) {
    struct gang_buffer out = {0};
    gang_buffer_printf(
        &out,
        "# How far off the predictions are\n\nMade by `gangline validate %s --report %s`; do not edit.\n\n"
        "Every row is a run that somebody else measured; it is simulated from its model, device and layout alone. Rows that a calibration in\n"
        "`data/devices.yaml` used are predicted but count in no figure. Errors in %% of the measured seconds; null is one constant MFU for the\n"
        "device and type, the best in hindsight.\n\n"
        "| device | type | source | rows | mean | median | 95th | largest | bias | null |\n|---|---|---|---:|---:|---:|---:|---:|---:|---:|\n",
        cases, path);
    for (int i = 0; i < v->set_count; i++) report_set(&out, &v->sets[i]);
    for (int i = 0; i < v->kind_count; i++) report_set(&out, &v->kinds[i]);
    struct gang_error_summary all = v->blind;
    all.device = "all";
    report_set(&out, &all);
    gang_buffer_printf(&out,
                       "\nKendall's tau within %d groups of rows that share model, device and device count: %.3f.\n"
                       "Peak memory: %d rows state it, mean error %.1f %%.\n\n## Rows\n\n"
                       "| id | model | measured s | predicted s | error %% | |\n|---|---|---:|---:|---:|---|\n",
                       v->tau_groups, v->tau, v->memory_rows, 100 * v->memory_mean);
    for (int i = 0; i < v->count; i++) {
        const struct gang_case *c = &v->cases[i];
        if (!c->why_not)
            gang_buffer_printf(&out, "| %s | %s | %.4g | %.4g | %+.1f | %s |\n", c->id, c->model, c->measured, c->predicted, error_of(c),
                               c->calibrated_on ? "calibrated on" : "");
    }
    gang_buffer_printf(&out, "\n## Not predicted\n\n| id | why |\n|---|---|\n");
    for (int i = 0; i < v->count; i++)
        if (v->cases[i].why_not) gang_buffer_printf(&out, "| %s | %s |\n", v->cases[i].id, v->cases[i].why_not);
    enum gang_status status = gang_file_publish(path, out.data, out.len);
    gang_buffer_release(&out);
    return status;
}

// ---- Far and unlike ------------------------------------------------------------------------------------------------

static const char apart_heading[] = "efficiency in %: of the same devices in one room, or of the sum of what unlike devices do by themselves";

// "97.3", or "97 to 99".
static const char *percent_range(double low, double high, char out[32]) {
    snprintf(out, 32, high - low < 5e-4 ? "%.4g" : "%.4g to %.4g", 100 * low, 100 * high);
    return out;
}

static void show_apart(const struct gang_apart *apart) {
    char stated[32], predicted[32];
    printf("  %s\n  %-10s %-12s %-32s %-30s %13s %18s %11s\n", apart_heading, "id", "model", "devices", "crossing", "measured", "predicted",
           "points off");
    for (int i = 0; i < apart->count; i++) {
        const struct gang_apart_case *c = &apart->cases[i];
        printf("  %-10s %-12s %-32.32s %-30s ", c->id, c->model, c->devices, c->crossing);
        if (c->why_not)
            printf("%s\n", c->why_not);
        else
            printf("%13s %18s %11.2f\n", percent_range(c->stated_low, c->stated_high, stated), percent_range(c->low, c->high, predicted),
                   100 * c->off);
    }
}

static void show_apart_json(const struct gang_apart *apart) {
    json_t *rows = json_array(), *skipped = json_array();
    for (int i = 0; i < apart->count; i++) {
        const struct gang_apart_case *c = &apart->cases[i];
        if (c->why_not)
            json_array_append_new(skipped, json_pack("{s:s, s:s}", "id", c->id, "why", c->why_not));
        else
            json_array_append_new(rows, json_pack("{s:s, s:s, s:[ff], s:[ff], s:f}", "id", c->id, "what", c->what, "stated", c->stated_low,
                                                  c->stated_high, "predicted", c->low, c->high, "off_points", 100 * c->off));
    }
    json_t *all = json_pack("{s:o, s:o, s:f}", "rows", rows, "skipped", skipped, "worst_points", 100 * apart->worst);
    char *text = json_dumps(all, JSON_REAL_PRECISION(9));
    printf("%s\n", text);
    free(text);
    json_decref(all);
}

static int validate_apart(const char *path, bool json, const char *report) {
    struct gang_arena arena;
    struct gang_apart apart;
    gang_arena_init(&arena);
    enum gang_status status = report ? gang_fail(GANG_ERR_INPUT,
                                                 "validate: --report is for tables of training runs: %s is one of far and unlike ones", path)
                                     : GANG_OK;
    if (!status) status = gang_apart_read(path, &arena, &apart);
    if (!status) (json ? show_apart_json : show_apart)(&apart);
    gang_arena_release(&arena);
    return gang_report(status);
}

static int run_validate(int argc, char **argv) {
    const char *path[1] = {NULL}, *report = NULL;
    bool json = false;
    const struct gang_option options[] = {{"--json", NULL, &json}, {"--report", &report, NULL}};
    int code = gang_options(&gang_command_validate, argc, argv, options, 2, 1, 1, path);
    if (code >= 0) return code;
    if (gang_apart_is(path[0])) return validate_apart(path[0], json, report);
    struct gang_arena arena;
    struct gang_validation validation;
    gang_arena_init(&arena);
    enum gang_status status = gang_validate(path[0], &arena, &validation);
    if (!status && report) status = write_report(&validation, path[0], report);
    if (!status) (json ? show_json : show)(&validation);
    gang_arena_release(&arena);
    return gang_report(status);
}

const struct gang_command gang_command_validate = {
    .name = "validate",
    .arguments = "CASES.csv",
    .summary = "Predict published runs and say how far off that is",
    .run = run_validate,
    .help = "  --report FILE   also write it as Markdown\n"
            "  --json          {\"rows\": [...], \"skipped\": [...], \"summary\": {...}}\n\n"
            "CASES.csv has the columns of data/cases/training_runs.csv. Rows that cannot be predicted are listed with the reason. A\n"
            "row that a calibration in data/devices.yaml used (calibrated_on) is predicted too, but counts in no error.\n\n"
            "Or those of data/cases/far_and_unlike.csv: what distance costs, and what unlike devices do together, as ranges over\n"
            "the batches, layouts and networks that the sources leave open.\n\n"
            "example: gangline validate data/cases/training_runs.csv\n",
};
