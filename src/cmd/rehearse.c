// gangline rehearse: real processes over the real wire, with stand-ins that wait as long as the devices would work.
#include "cmd/cmd.h"
#include "cmd/fleet.h"
#include "cmd/task.h"

#include <stdio.h>
#include <unistd.h>

enum { MOST_STEPS = 1000000 };

static enum gang_status read_request(const char *path, const char *cluster, const char *layout_text, struct gang_arena *arena, struct gang_task *task,
                                     struct gang_pool *pool, struct gang_layout *layout, struct gang_plan *plan) {
    enum gang_status status = gang_task_open(path, cluster, arena, task, pool, plan);
    if (status || (!plan->path && !layout_text)) return status;
    *layout = plan->layout;
    if (plan->path) return layout_text ? gang_fail(GANG_ERR_INPUT, "%s: a plan has its layout: --layout is for jobs", path) : GANG_OK;
    return gang_layout_parse(layout_text, layout);
}

static int run_rehearse(int argc, char **argv) {
    struct gang_fleet_screen screen = {0};
    const char *path[1] = {NULL}, *layout_text = NULL, *cluster = NULL, *slow_text = "1", *spread_text = "0.01", *steps_text = "10";
    const struct gang_option options[] = {{"--layout", &layout_text, NULL},     {"--cluster", &cluster, NULL},   {"--slow", &slow_text, NULL},
                                          {"--spread", &spread_text, NULL},     {"--steps", &steps_text, NULL},  {"--json", NULL, &screen.json},
                                          {"--explain", NULL, &screen.explain}, {"--trace", &screen.trace, NULL}};
    int code = gang_options(&gang_command_rehearse, argc, argv, options, sizeof options / sizeof *options, 1, 1, path);
    if (code >= 0) return code;
    struct gang_fleet_options fleet = {0};
    if (gang_parse_real("--slow", slow_text, 0.001, 1e6, &fleet.slow) || gang_parse_real("--spread", spread_text, 0, 1, &fleet.spread) ||
        gang_parse_int("--steps", steps_text, 1, MOST_STEPS, &fleet.steps)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    struct gang_arena arena;
    struct gang_task task;
    struct gang_pool pool;
    struct gang_layout layout;
    struct gang_plan plan;
    struct gang_fleet_result result;
    gang_arena_init(&arena);
    screen.live = isatty(STDOUT_FILENO) && !screen.json;
    fleet.task = &task;
    fleet.pool = &pool;
    if (layout_text || gang_plan_is(path[0])) fleet.layout = &layout;
    enum gang_status status = read_request(path[0], cluster, layout_text, &arena, &task, &pool, &layout, &plan);
    if (plan.path) fleet.plan = &plan;
    if (!status) status = gang_show_fleet(&fleet, &screen, &result);
    gang_arena_release(&arena);
    return gang_report(status);
}

const struct gang_command gang_command_rehearse = {
    .name = "rehearse",
    .arguments = "JOB.yaml [--layout L] | PLAN",
    .summary = "Run a plan for real with stand-in devices",
    .run = run_rehearse,
    .help = "  --layout L       how the work is split (see 'gangline simulate --help'); without: the best that is found\n"
            "  --steps N        how many (10)\n"
            "  --slow F         everything F times slower than in truth, links between sites included (1)\n"
            "  --spread S       standard deviation of every wait, as a fraction of it (0.01)\n"
            "  --cluster FILE   instead of the job's cluster, or the plan's\n"
            "  --explain        predicted beside measured at the end, by rank and kind of work\n"
            "  --trace FILE     the predicted and a real step as a trace for Perfetto or chrome://tracing\n"
            "  --json           one JSON object per step, nothing else\n\n"
            "One process per device, here, with the real program, messages and exchanges of as many bytes as in truth; a relay makes\n"
            "the links between sites. Only the devices are stood in for: they wait.\n\n"
            "example: gangline rehearse examples/plan/laptops.yaml --steps 3\n",
};
