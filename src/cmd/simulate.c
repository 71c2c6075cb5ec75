// gangline simulate: a step of a job in virtual time.
#include "cmd/cmd.h"
#include "cmd/show.h"

#include <stdio.h>

static enum gang_status simulate(const char *path, const char *cluster, const char *layout_text, bool json, bool timeline, const char *program_path,
                                 struct gang_arena *arena) {
    struct gang_task task;
    struct gang_pool pool;
    struct gang_layout layout;
    struct gang_answer answer;
    enum gang_status status = gang_task_read(path, cluster, arena, &task, &pool);
    if (!status) status = gang_layout_parse(layout_text, &layout);
    if (!status) status = gang_evaluate(&task, &pool, &layout, timeline ? GANG_EVALUATE_SPANS : 0, arena, &answer);
    if (!status && program_path) {
        struct gang_buffer text = {0};
        gang_program_print(&answer.program, &text);
        status = gang_file_publish(program_path, text.data, text.len);
        gang_buffer_release(&text);
    }
    if (status) return status;
    if (json) {
        gang_show_json(&answer, arena);
        printf("\n");
        return GANG_OK;
    }
    gang_show_task(&task, &pool);
    gang_show_answer(&task, &pool, &answer);
    if (timeline) gang_show_timeline(&answer);
    return GANG_OK;
}

static int run_simulate(int argc, char **argv) {
    const char *path[1] = {NULL}, *cluster = NULL, *layout = "", *program = NULL;
    bool json = false, timeline = false;
    const struct gang_option options[] = {
        {"--layout", &layout, NULL}, {"--cluster", &cluster, NULL}, {"--program", &program, NULL}, {"--timeline", NULL, &timeline}, {"--json", NULL, &json}};
    int code = gang_options(&gang_command_simulate, argc, argv, options, 5, 1, 1, path);
    if (code >= 0) return code;
    struct gang_arena arena;
    gang_arena_init(&arena);
    code = gang_report(simulate(path[0], cluster, layout, json, timeline, program, &arena));
    gang_arena_release(&arena);
    return code;
}

const struct gang_command gang_command_simulate = {
    .name = "simulate",
    .arguments = "JOB.yaml --layout L",
    .summary = "Run a step of a job in virtual time, without devices",
    .run = run_simulate,
    .help = "  --layout L       how the work is split, such as tp=8,pp=16,dp=64,vpp=2,mb=1. Fields: tp, pp, dp, vpp, cp, ep, mb,\n"
            "                   zero (0 to 3), sp, tp_overlap, dp_overlap, fused (0 or 1), gradients (f32, bf16), attention\n"
            "                   (fused, fused1, unfused), recompute (none, selective, alternate, full), place\n"
            "                   (stages, replicas: what lies outermost over the pool), schedule (auto, 1f1b, interleaved,\n"
            "                   zero-bubble, list), layers (of each chunk, 10/11/11)\n"
            "  --cluster FILE   instead of the job's cluster\n"
            "  --timeline       a picture of the step, up to 16 stages\n"
            "  --program FILE   write the verified program that was run\n"
            "  --json           one JSON object, nothing else\n\n"
            "A job for planning names model, cluster, sequence_length, global_batch_tokens and compute (bf16, f8, f32).\n\n"
            "example: gangline simulate examples/plan/node8.yaml --layout tp=2,pp=4,mb=1 --timeline\n",
};
