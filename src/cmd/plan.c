// gangline plan: the best way to split a job over what there is.
#include "cmd/cmd.h"
#include "cmd/show.h"
#include "cmd/task.h"

#include <stdio.h>
#include <string.h>

static const char *limit_of(const struct gang_summary *s) {
    const struct {
        const char *name;
        double seconds;
    } parts[] = {{"tensor exchange", s->tensor},   {"expert exchange", s->expert}, {"context exchange", s->context}, {"weights gathered", s->gather},
                 {"gradients reduced", s->reduce}, {"pipeline idle", s->pipeline}, {"vector work", s->vector},       {"copies to host", s->copies}};
    int most = 0;
    for (int i = 1; i < 8; i++)
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

struct request {
    const char *path, *cluster, *layout, *trainer, *out;
    enum gang_objective objective;
    int64_t top;
    bool json, unfolded;
};

static void show(const struct request *r, const struct gang_task *task, const struct gang_pool *pool, const struct gang_search *search,
                 const struct gang_answer *answer, struct gang_arena *arena) {
    if (r->json && r->layout) {
        gang_show_json(answer, NULL, arena);
        printf("\n");
        return;
    }
    if (r->json) {
        show_search_json(search, answer, arena);
        return;
    }
    gang_show_task(task, pool);
    if (!r->layout) show_search(search, arena);
    gang_show_answer(task, pool, answer);
    double parts = !r->layout && unlike(pool) ? gang_sum_of_parts(task, pool, arena) : 0;
    if (parts > 0)
        printf("  parts   each group by itself does %.4g tokens/s in sum: together they do %.1f %% of that\n", parts,
               100 * answer->summary.tokens_per_second / parts);
    if (r->out) printf("  plan    %s\n", r->out);
}

static enum gang_status find(const struct request *r, struct gang_arena *arena) {
    struct gang_task task;
    struct gang_pool pool;
    struct gang_layout layout;
    struct gang_search search;
    struct gang_answer answer;
    struct gang_plan plan;
    if (gang_plan_is(r->path)) return gang_fail(GANG_ERR_INPUT, "%s: a plan: 'gangline simulate' runs it", r->path);
    enum gang_status status = gang_task_open(r->path, r->cluster, arena, &task, &pool, &plan);
    if (!status && r->layout) status = gang_layout_parse(r->layout, &layout);
    if (!status && !r->layout) {
        status = gang_search_run(&task, &pool, r->objective, (int)r->top, arena, &search);
        if (!status) layout = search.found[0].layout;
    }
    if (!status) status = gang_evaluate(&task, &pool, &layout, r->unfolded ? GANG_EVALUATE_UNFOLDED : 0, arena, &answer);
    if (!status && r->out) status = gang_plan_write(r->out, r->path, &task, &pool, &answer);
    if (status) return status;
    if (r->trainer) return emit(r->trainer, &task, &answer);
    show(r, &task, &pool, &search, &answer, arena);
    return GANG_OK;
}

static int run_plan(int argc, char **argv) {
    struct request r = {0};
    const char *top = "5", *objective = "time";
    const struct gang_option options[] = {{"--layout", &r.layout, NULL}, {"--cluster", &r.cluster, NULL},   {"--emit", &r.trainer, NULL},
                                          {"-o", &r.out, NULL},          {"--unfolded", NULL, &r.unfolded}, {"--objective", &objective, NULL},
                                          {"--top", &top, NULL},         {"--json", NULL, &r.json}};
    int code = gang_options(&gang_command_plan, argc, argv, options, 8, 1, 1, &r.path), o = 0;
    if (code >= 0) return code;
    while (gang_objective_names[o] && strcmp(gang_objective_names[o], objective) != 0) o++;
    if (!gang_objective_names[o]) {
        fprintf(stderr, "gangline: plan: --objective %s: expected time, energy or price\n", objective);
        return EXIT_USAGE;
    }
    if (gang_parse_int("--top", top, 1, GANG_MAX_FOUND, &r.top)) {
        gang_report(GANG_ERR_INPUT);
        return EXIT_USAGE;
    }
    r.objective = (enum gang_objective)o;
    struct gang_arena arena;
    gang_arena_init(&arena);
    code = gang_report(find(&r, &arena));
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
            "  -o FILE          write the plan: the layout and every rank's program, verified; 'gangline simulate FILE' runs it\n"
            "  --unfolded       with every replica's program by itself, instead of one for each kind of replica\n"
            "  --json           one JSON object, nothing else\n\n"
            "Every layout of the space is priced by closed form, the most promising are simulated, and the best by simulated time wins.\n\n"
            "example: gangline plan examples/plan/cities300.yaml\n",
};
