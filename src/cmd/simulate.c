// gangline simulate: a step of a job in virtual time.
#include "cmd/cmd.h"
#include "cmd/show.h"
#include "cmd/task.h"

#include <stdio.h>

struct request {
    const char *path, *cluster, *layout, *trace, *ranks, *faults;
    bool json, timeline, unfolded;
};

// Simulates the answer's step again and keeps what the chosen ranks did; writes it as a trace if one is wanted.
static enum gang_status trace(const struct request *request, const struct gang_pool *pool, struct gang_arena *arena, struct gang_answer *answer) {
    struct gang_buffer text = {0};
    bool *traced = NULL;
    enum gang_status status = request->ranks ? gang_ranks_parse(request->ranks, answer->sim.ranks, arena, &traced) : GANG_OK;
    const struct gang_sim_input input = {.pool = pool,
                                         .layout = &answer->layout,
                                         .placement = &answer->placement,
                                         .costs = &answer->costs,
                                         .program = &answer->program,
                                         .spans = true,
                                         .traced = traced};
    if (!status) status = gang_sim_run(&input, arena, &answer->sim);
    if (status || !request->trace) return status;
    gang_sim_trace(&answer->sim, &answer->program, traced, &text);
    status = gang_file_publish(request->trace, text.data, text.len);
    gang_buffer_release(&text);
    return status;
}

static void show_faults(const struct gang_faults *f, const struct gang_fault_result *r, const struct gang_summary *s) {
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES], c[GANG_HUMAN_BYTES], d[GANG_HUMAN_BYTES], e[GANG_HUMAN_BYTES];
    printf("  faults  %s of %lld nodes, %lld trials: %.1f failures; %.2f %% of the time is useful (%.2f to %.2f)\n", gang_human_seconds(f->length, a),
           (long long)r->nodes, (long long)f->trials, r->failures, 100 * r->availability, 100 * r->low, 100 * r->high);
    printf("          a checkpoint every %s%s; lost since the last one %s, stopped %s, checkpoints %s\n", gang_human_seconds(r->interval, b),
           f->checkpoint_interval > 0 ? "" : " (the best found)", gang_human_seconds(r->lost_seconds, c), gang_human_seconds(r->down_seconds, d),
           gang_human_seconds(r->checkpoint_seconds, e));
    printf("          effective compute %lld devices x %.1f %% MFU x %.2f %% = %.1f devices at their peak\n", (long long)s->devices, 100 * s->mfu,
           100 * r->availability, (double)s->devices * s->mfu * r->availability);
}

static enum gang_status evaluate(const struct request *request, struct gang_arena *arena, struct gang_task *task, struct gang_pool *pool,
                                 struct gang_answer *answer) {
    struct gang_layout layout;
    struct gang_plan plan;
    int flags = request->unfolded ? GANG_EVALUATE_UNFOLDED : 0;
    enum gang_status status = GANG_OK;
    if (gang_plan_is(request->path)) {
        if (request->layout || request->unfolded)
            return gang_fail(GANG_ERR_INPUT, "%s: a plan has its layout and program: --layout and --unfolded are for jobs", request->path);
        status = gang_task_open(request->path, request->cluster, arena, task, pool, &plan);
        return status ? status : gang_evaluate_plan(task, pool, &plan, flags, arena, answer);
    }
    status = gang_task_open(request->path, request->cluster, arena, task, pool, &plan);
    if (!status) status = gang_layout_parse(request->layout ? request->layout : "", &layout);
    return status ? status : gang_evaluate(task, pool, &layout, flags, arena, answer);
}

static enum gang_status simulate(const struct request *request, struct gang_arena *arena) {
    struct gang_task task;
    struct gang_pool pool;
    struct gang_answer answer;
    struct gang_faults faults;
    struct gang_fault_result result;
    enum gang_status status = request->faults ? gang_faults_read(request->faults, arena, &faults) : GANG_OK;
    if (!status) status = evaluate(request, arena, &task, &pool, &answer);
    if (!status && (request->trace || request->timeline)) status = trace(request, &pool, arena, &answer);
    if (!status && request->faults) status = gang_faults_complete(&task, &pool, &answer, arena, &faults);
    if (status) return status;
    if (request->faults) gang_faults_run(&faults, gang_nodes_used(&pool, &answer.placement, -1), &result);
    if (request->json) {
        gang_show_json(&answer, request->faults ? &result : NULL, arena);
        printf("\n");
        return GANG_OK;
    }
    gang_show_task(&task, &pool);
    gang_show_answer(&task, &pool, &answer);
    if (request->faults) show_faults(&faults, &result, &answer.summary);
    if (request->timeline) gang_show_timeline(&answer);
    return GANG_OK;
}

static int run_simulate(int argc, char **argv) {
    struct request r = {0};
    const struct gang_option options[] = {{"--layout", &r.layout, NULL}, {"--cluster", &r.cluster, NULL},   {"--trace", &r.trace, NULL},
                                          {"--faults", &r.faults, NULL}, {"--timeline", NULL, &r.timeline}, {"--unfolded", NULL, &r.unfolded},
                                          {"--json", NULL, &r.json},     {"--ranks", &r.ranks, NULL}};
    int code = gang_options(&gang_command_simulate, argc, argv, options, 8, 1, 1, &r.path);
    if (code < 0 && r.ranks && !r.trace && !r.timeline) code = gang_usage(&gang_command_simulate, "neither --trace nor --timeline beside", "--ranks");
    if (code >= 0) return code;
    struct gang_arena arena;
    gang_arena_init(&arena);
    code = gang_report(simulate(&r, &arena));
    gang_arena_release(&arena);
    return code;
}

const struct gang_command gang_command_simulate = {
    .name = "simulate",
    .arguments = "JOB.yaml --layout L | PLAN",
    .summary = "Run a step of a job or a plan in virtual time, without devices",
    .run = run_simulate,
    .help = "  --layout L       how the work is split, such as tp=8,pp=16,dp=64,vpp=2,mb=1. Fields: tp, pp, dp, vpp, cp, ep, mb\n"
            "                   (4/2: one for each kind of replicas), zero (0 to 3), sp, tp_overlap, dp_overlap, fused (0 or 1),\n"
            "                   gradients (f32, bf16), attention (fused, fused1, unfused), scaling (tensor, rows), recompute\n"
            "                   (none, selective, alternate, full; for all stages or, as in full/none, for each), offload (none,\n"
            "                   optimizer, activations, both; as recompute), place (stages, replicas: what lies outermost over the pool), schedule\n"
            "                   (auto, 1f1b, interleaved, zero-bubble, list), layers (of each chunk, 10/11/11)\n"
            "  --cluster FILE   instead of the job's cluster, or the plan's\n"
            "  --unfolded       simulate every replica by itself instead of one for each kind of replica; the figures are the same\n"
            "  --timeline       a picture of the step, up to 16 stages\n"
            "  --trace FILE     write the step as a trace for Perfetto or chrome://tracing\n"
            "  --ranks LIST     only these ranks in trace and timeline, such as 0-7,64; a rank is replica x pp + stage\n"
            "  --faults FILE    also months of such steps with faults drawn by the file's statistics; its fields: length, trials,\n"
            "                   seed, node_mtbf, weibull_shape, offender_share, offender_factor, domain_nodes, domain_mtbf,\n"
            "                   slow_mtbf, slow_speed, slow_detect, link_mtbf, link_outage, detect, restart, spare_nodes, repair,\n"
            "                   checkpoint_interval, checkpoint_cost\n"
            "  --json           one JSON object, nothing else\n\n"
            "A job for planning names model, cluster, sequence_length, global_batch_tokens and compute (bf16, f8, f32). A plan is what\n"
            "'gangline plan -o' wrote: its program is verified, and run if it was made for what its job says now.\n\n"
            "example: gangline simulate examples/plan/node8.yaml --layout tp=2,pp=4,mb=1 --timeline\n",
};
