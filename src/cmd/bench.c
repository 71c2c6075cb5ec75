// gangline bench wire: what the wire carries, beside plain sockets on the same machine in the same run.
#include "cmd/bench.h"
#include "cmd/cmd.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void gang_bench_add(struct gang_bench *bench, const char *name, double value, const char *unit, bool at_least, double goal, const char *note) {
    assert(bench->count < GANG_BENCH_FIGURES);
    struct gang_figure *f = &bench->figures[bench->count++];
    *f = (struct gang_figure){.value = value, .goal = goal, .unit = unit, .note = note, .at_least = at_least};
    snprintf(f->name, sizeof f->name, "%s", name);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double gang_bench_median(double *values, int count) {
    qsort(values, (size_t)count, sizeof *values, by_value);
    return values[count / 2];
}

static void print_json(const struct gang_bench *bench) {
    printf("[\n");
    for (int i = 0; i < bench->count; i++) {
        const struct gang_figure *f = &bench->figures[i];
        bool holds = f->at_least ? f->value >= f->goal : f->value <= f->goal;
        printf("  {\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"goal\": \"%s %g\", \"holds\": %s, \"note\": \"%s\"}%s\n", f->name, f->value,
               f->unit, f->at_least ? ">=" : "<=", f->goal, holds ? "true" : "false", f->note, i + 1 < bench->count ? "," : "");
    }
    printf("]\n");
}

static int run_bench(int argc, char **argv) {
    struct gang_bench bench = {0};
    const char *area[1] = {NULL}, *seconds = "1s";
    const struct gang_option options[] = {{"--json", NULL, &bench.json}, {"--time", &seconds, NULL}};
    int code = gang_options(&gang_command_bench, argc, argv, options, 2, 1, 1, area);
    if (code >= 0) return code;
    if (strcmp(area[0], "wire") != 0) {
        fprintf(stderr, "gangline: bench: unknown area '%s': expected wire\n", area[0]);
        return EXIT_USAGE;
    }
    if (gang_parse_quantity("bench: --time", seconds, GANG_UNIT_TIME, 0.01, 60, &bench.seconds)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    void *data = NULL;
    enum gang_status status = gang_big_alloc(2 * gang_bench_most, &data);
    if (!status) memset(data, 0x5a, 2 * gang_bench_most);
    bench.data = data;
    if (!status) status = gang_bench_near(&bench);
    if (!status) status = gang_bench_far(&bench);
    if (!status) status = gang_bench_cuts(&bench);
    gang_big_free(data, 2 * gang_bench_most);
    if (!status && bench.json) print_json(&bench);
    return gang_report(status);
}

const struct gang_command gang_command_bench = {
    .name = "bench",
    .arguments = "wire [--json]",
    .summary = "Measure the wire beside plain sockets",
    .run = run_bench,
    .help = "  --json      one object per figure: name, value, unit, goal, holds, note\n"
            "  --time T    about so long per figure (1s)\n\n"
            "Ratios come from one run, plain sockets and wire in turns. Two cores are busy while it runs.\n\n"
            "example: gangline bench wire\n",
};
