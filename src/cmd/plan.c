// gangline plan: the best way to split a job over what there is.
#include "cmd/cmd.h"
#include "cmd/show.h"

#include <stdio.h>
#include <string.h>

static const char *limit_of(const struct gang_summary *s) {
    const struct {
        const char *name;
        double seconds;
    } parts[] = {{"tensor exchange", s->tensor},   {"expert exchange", s->expert}, {"context exchange", s->context}, {"weights gathered", s->gather},
                 {"gradients reduced", s->reduce}, {"pipeline idle", s->pipeline}, {"vector work", s->vector}};
    int most = 0;
    for (int i = 1; i < 7; i++)
        if (parts[i].seconds > parts[most].seconds) most = i;
    return parts[most].name;
}

static bool unlike(const struct gang_pool *pool) {
    for (int g = 1; g < pool->group_count; g++)
        if (pool->groups[g]->kind != pool->groups[0]->kind) return true;
    return false;
}

static void show_search(const struct gang_search *search, struct gang_arena *arena) {
    char n[GANG_HUMAN_BYTES];
    printf("  looked  at %s layouts by closed form (%.2f million a second), %lld fit, %lld simulated\n",
           gang_human_count((double)search->considered, n), (double)search->considered / search->estimate_seconds / 1e6, (long long)search->fitting,
           (long long)search->simulated);
    printf("  bound   %.4g s: every product and attention at its device's full reach and nothing else; the best is %.1f %% above it\n",
           search->bound_seconds, 100 * (search->found[0].summary.step_seconds / search->bound_seconds - 1));
    printf("     step s   MFU %%  memory %%  costs most after products   layout\n");
    for (int i = 0; i < search->count; i++) {
        const struct gang_found *f = &search->found[i];
        printf("  %9.4g  %6.1f  %8.0f  %-26s  %s (%s)\n", f->summary.step_seconds, 100 * f->summary.mfu, 100 * f->memory_used, limit_of(&f->summary),
               gang_layout_print(&f->layout, arena), gang_schedule_names[f->schedule]);
    }
}

static void show_search_json(const struct gang_search *search, const struct gang_answer *answer, struct gang_arena *arena) {
    printf("{\"considered\": %lld, \"fitting\": %lld, \"simulated\": %lld, \"bound_seconds\": %.9g, \"top\": [", (long long)search->considered,
           (long long)search->fitting, (long long)search->simulated, search->bound_seconds);
    for (int i = 0; i < search->count; i++)
        printf("%s{\"layout\": \"%s\", \"step_seconds\": %.9g, \"memory_used\": %.4g}", i ? ", " : "",
               gang_layout_print(&search->found[i].layout, arena), search->found[i].summary.step_seconds, search->found[i].memory_used);
    printf("], \"best\": ");
    gang_show_json(answer, NULL, arena);
    printf("}\n");
}

static enum gang_status emit(const char *trainer, const struct gang_task *task, const struct gang_answer *answer) {
    int t = 0;
    while (gang_trainer_names[t] && strcmp(gang_trainer_names[t], trainer) != 0) t++;
    if (!gang_trainer_names[t]) return gang_fail(GANG_ERR_INPUT, "--emit: '%s' is no trainer: expected megatron, torchtitan or deepspeed", trainer);
    struct gang_buffer text = {0};
    gang_emit((enum gang_trainer)t, task, answer, &text);
    printf("%s", text.data);
    gang_buffer_release(&text);
    return GANG_OK;
}

static enum gang_status plan(const char *path, const char *cluster, const char *layout_text, const char *trainer, enum gang_objective objective,
                             int64_t top, bool json, struct gang_arena *arena) {
    struct gang_task task;
    struct gang_pool pool;
    struct gang_search search;
    struct gang_answer answer;
    enum gang_status status = gang_task_read(path, cluster, arena, &task, &pool);
    if (status) return status;
    if (layout_text) {
        struct gang_layout layout;
        status = gang_layout_parse(layout_text, &layout);
        if (!status) status = gang_evaluate(&task, &pool, &layout, 0, arena, &answer);
    } else {
        status = gang_search_run(&task, &pool, objective, (int)top, arena, &search);
        if (!status) status = gang_evaluate(&task, &pool, &search.found[0].layout, 0, arena, &answer);
    }
    if (status) return status;
    if (trainer) return emit(trainer, &task, &answer);
    if (json && layout_text) {
        gang_show_json(&answer, NULL, arena);
        printf("\n");
    } else if (json) {
        show_search_json(&search, &answer, arena);
    } else {
        gang_show_task(&task, &pool);
        if (!layout_text) show_search(&search, arena);
        gang_show_answer(&task, &pool, &answer);
        double parts = !layout_text && unlike(&pool) ? gang_sum_of_parts(&task, &pool, arena) : 0;
        if (parts > 0)
            printf("  parts   each group by itself does %.4g tokens/s in sum: together they do %.1f %% of that\n", parts,
                   100 * answer.summary.tokens_per_second / parts);
    }
    return GANG_OK;
}

static int run_plan(int argc, char **argv) {
    const char *path[1] = {NULL}, *cluster = NULL, *layout = NULL, *trainer = NULL, *top_text = "5", *objective_text = "time";
    bool json = false;
    int64_t top = 0;
    const struct gang_option options[] = {{"--layout", &layout, NULL}, {"--cluster", &cluster, NULL},
                                          {"--emit", &trainer, NULL},  {"--objective", &objective_text, NULL},
                                          {"--top", &top_text, NULL},  {"--json", NULL, &json}};
    int code = gang_options(&gang_command_plan, argc, argv, options, 6, 1, 1, path);
    if (code >= 0) return code;
    int objective = 0;
    while (gang_objective_names[objective] && strcmp(gang_objective_names[objective], objective_text) != 0) objective++;
    if (!gang_objective_names[objective]) {
        fprintf(stderr, "gangline: plan: --objective %s: expected time, energy or price\n", objective_text);
        return EXIT_USAGE;
    }
    if (gang_parse_int("--top", top_text, 1, GANG_MAX_FOUND, &top)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    struct gang_arena arena;
    gang_arena_init(&arena);
    code = gang_report(plan(path[0], cluster, layout, trainer, (enum gang_objective)objective, top, json, &arena));
    gang_arena_release(&arena);
    return code;
}

const struct gang_command gang_command_plan = {
    .name = "plan",
    .arguments = "JOB.yaml",
    .summary = "Find the best way to split a job over a pool of devices",
    .run = run_plan,
    .help = "  --top N          how many of the best to list (5)\n"
            "  --objective O    time (the default), energy (tokens per joule) or price (tokens per what the groups' price counts)\n"
            "  --layout L       evaluate this layout instead of searching; its fields are in 'gangline simulate --help'\n"
            "  --emit TRAINER   print the chosen layout's launch flags for megatron, torchtitan or deepspeed, nothing else\n"
            "  --cluster FILE   instead of the job's cluster\n"
            "  --json           one JSON object, nothing else\n\n"
            "Every layout of the space is priced by closed form, the most promising are simulated, and the best by simulated time wins.\n\n"
            "example: gangline plan examples/plan/cities300.yaml\n",
};
