// gangline train: a job on this machine, with a live line, plain lines or JSON.
#include "cmd/cmd.h"
#include "cmd/fleet.h"
#include "cmd/task.h"
#include "train/train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct screen {
    bool json, live, tokenised;
    double last_line; // when a plain line was printed last
    struct gang_curve curve;
    double expected_bytes;
};

struct command {
    const char *path; // of the job or plan
    bool resume, submit;
};

static void show_tokenising(void *context, int64_t done, int64_t all) {
    struct screen *s = context;
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES];
    if (s->json || !s->live) return;
    printf("\r  reading %s of %s\033[K", gang_human_bytes((double)done, a), gang_human_bytes((double)all, b));
    fflush(stdout);
    s->tokenised = true;
}

static void show_start(void *context, const struct gang_run_start *r) {
    struct screen *s = context;
    const struct gang_job *job = r->job;
    const struct gang_config *c = &r->model->config;
    const struct gang_memory *m = &r->memory;
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES], d[GANG_HUMAN_BYTES], e[GANG_HUMAN_BYTES], f[GANG_HUMAN_BYTES];
    s->expected_bytes = r->baseline_bytes + (double)m->total;
    if (s->json) return;
    if (s->tokenised) printf("\r\033[K");
    const char *from = r->first_step ? "resumed" : r->fresh ? "fresh weights" : "weights from the model's directory";
    printf("  model   %s parameters: %d layers of %d, ffn %d, %d heads (%d key/value), vocabulary %d; %s\n",
           gang_human_count((double)r->model->parameters, a), c->layers, c->hidden_size, c->intermediate_size, c->heads, c->kv_heads, c->vocab_size,
           from);
    printf("  data    %s tokens; the job reads %s\n", gang_human_count((double)r->data_tokens, a), gang_human_count((double)job->tokens, b));
    printf("  device  cpu %s, %d threads, %s; measured peak %.0f GFLOP/s\n", r->device->name, r->device->threads,
           job->compute == GANG_COMPUTE_BF16 ? "bf16" : "f32", r->peak_flops / 1e9);
    printf("  step    %lld tokens = %lld x %lld samples of %lld; %lld steps\n", (long long)job->global_batch_tokens,
           (long long)(job->global_batch_tokens / (job->micro_batch * job->sequence_length)), (long long)job->micro_batch,
           (long long)job->sequence_length, (long long)job->steps);
    printf("  memory  %s at most: weights %s, gradients and optimizer %s, activations %s, the rest %s\n", gang_human_bytes(s->expected_bytes, a),
           gang_human_bytes((double)(m->parameters + m->packed), b), gang_human_bytes((double)(m->gradients + m->optimizer), d),
           gang_human_bytes((double)m->activations, e), gang_human_bytes(r->baseline_bytes + (double)(m->workspace + m->packing), f));
}

static void show_step(void *context, const struct gang_run_step *p) {
    struct screen *s = context;
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES];
    gang_curve_add(&s->curve, p->step, p->steps, p->loss);
    if (s->json) {
        printf("{\"step\": %lld, \"loss\": %.7g, \"gradient_norm\": %.5g, \"learning_rate\": %.6g, \"seconds\": %.6f, \"tokens\": %lld, "
               "\"tokens_per_second\": %.1f, \"peak_fraction\": %.4f, \"seconds_left\": %.1f}\n",
               (long long)p->step, p->loss, p->gradient_norm, p->rate, p->seconds, (long long)p->tokens, p->tokens_per_second, p->peak_fraction,
               p->left);
        fflush(stdout);
        return;
    }
    double now = gang_seconds();
    bool last = p->step == p->steps;
    if (!s->live && !last && now - s->last_line < 2) return;
    s->last_line = now;
    printf("%s  step %lld/%lld  loss %.4f  %s tokens/s  %.0f %% of peak  %s left%s", s->live ? "\r" : "", (long long)p->step, (long long)p->steps,
           p->loss, gang_human_count(p->tokens_per_second, a), 100 * p->peak_fraction, gang_human_seconds(p->left, b), s->live ? "\033[K" : "\n");
    if (s->live && last) printf("\n");
    fflush(stdout);
}

static void show_saved(void *context, const char *dir, int64_t step) {
    struct screen *s = context;
    (void)step;
    if (s->json) return;
    printf("%s  saved %s%s\n", s->live ? "\r" : "", dir, s->live ? "\033[K" : "");
}

static void print_end(const struct screen *s, const struct gang_job *job, const struct gang_run_result *r) {
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES], c[GANG_HUMAN_BYTES];
    if (r->stopped && r->saved[0]) printf("%s  stopped; go on with: gangline train %s --resume\n", s->live ? "\n" : "", job->path);
    if (r->stopped && !r->saved[0]) printf("  stopped before a step was done; nothing to save\n");
    if (!r->steps_done) return;
    gang_show_curve(&s->curve);
    printf("  %lld steps, loss %.4f to %.4f, %s tokens/s (median)\n", (long long)r->steps_done, r->first_loss, r->last_loss,
           gang_human_count(r->tokens_per_second, a));
    printf("  memory  peak %s by the kernel's account, %s said before (%+.1f %%)\n", gang_human_bytes(r->peak_bytes, b),
           gang_human_bytes(r->predicted_bytes, c), 100 * (r->peak_bytes / r->predicted_bytes - 1));
    if (r->saved[0]) printf("  try     gangline generate %s \"...\"\n", job->output);
}

// The table of docs/job.md, from the schema itself.
static void print_fields(void) {
    printf("| field | default | what |\n|---|---|---|\n");
    for (size_t i = 0; i < gang_job_field_count; i++) {
        const struct gang_field *f = &gang_job_fields[i];
        printf("| `%s` | %s | %s |\n", f->name, f->fallback ? f->fallback : "*required*", f->help);
    }
}

// Ranks may start elsewhere. A link stays one: what is beside it counts.
static enum gang_status make_absolute(struct gang_arena *arena, char **path) {
    char *here = NULL;
    enum gang_status status = **path == '/' ? GANG_OK : gang_path_absolute(".", arena, &here);
    if (here) *path = gang_arena_printf(arena, "%s/%s", here, *path);
    return status;
}

// Asked for, or Slurm has put the job back into its queue and starts it once more as it did.
static bool goes_on(const struct gang_job *job, const struct command *command, struct gang_arena *arena) {
    const char *again = getenv("SLURM_RESTART_COUNT");
    bool requeued = again && strcmp(again, "0") != 0;
    return command->resume || (requeued && gang_path_exists(gang_arena_printf(arena, "%s/latest", job->output)));
}

// On a cluster: every device that its file names. `plan` or NULL: how.
static enum gang_status train_fleet(struct gang_job *job, const struct gang_plan *plan, const struct command *command,
                                    struct gang_fleet_screen *screen, struct gang_arena *arena) {
    struct gang_config config;
    struct gang_task task;
    struct gang_pool pool;
    struct gang_layout layout;
    struct gang_fleet_result result;
    bool searched = !plan && !strcmp(job->layout, "auto");
    enum gang_status status = gang_job_config(job, &config);
    if (!status) status = make_absolute(arena, &job->path);
    if (!status) status = gang_pool_read(job->cluster, arena, &pool);
    if (plan) layout = plan->layout;
    if (!status && !plan && !searched) status = gang_layout_parse(job->layout, &layout);
    if (!status && command->submit) return gang_submit(job, &pool, command->path, command->resume, screen->json, arena);
    if (status) return status;
    gang_fleet_task(job, &config, &task);
    const struct gang_fleet_options options = {.job = job,
                                               .task = &task,
                                               .pool = &pool,
                                               .layout = searched ? NULL : &layout,
                                               .plan = plan,
                                               .launcher = (enum gang_launcher)job->launcher,
                                               .resume = goes_on(job, command, arena)};
    return gang_show_fleet(&options, screen, &result);
}

static enum gang_status train_plan(const struct command *command, struct gang_fleet_screen *screen, struct gang_arena *arena) {
    struct gang_plan plan;
    struct gang_job job;
    struct gang_task task;
    struct gang_pool pool;
    enum gang_status status = gang_task_open(command->path, NULL, arena, &task, &pool, &plan);
    if (!status) status = gang_job_read(plan.job, arena, &job);
    if (status) return status;
    job.cluster = plan.cluster;
    return train_fleet(&job, &plan, command, screen, arena);
}

static enum gang_status train_here(const struct gang_job *job, bool resume, struct screen *screen) {
    struct gang_run_result result = {0};
    const struct gang_run_events events = {screen, show_tokenising, show_start, show_step, show_saved};
    gang_catch_interrupts();
    enum gang_status status = gang_train_run(job, resume, &events, &gang_interrupted, &result);
    if (!screen->json && !status) print_end(screen, job, &result);
    if (screen->live && status && result.steps_done) printf("\n");
    return status;
}

static enum gang_status train_job(const struct command *command, struct screen *screen, struct gang_fleet_screen *fleet, struct gang_arena *arena) {
    struct gang_job job;
    enum gang_status status = gang_job_read(command->path, arena, &job);
    if (status) return status;
    if (*job.cluster) return train_fleet(&job, NULL, command, fleet, arena);
    if (command->submit) return gang_fail(GANG_ERR_INPUT, "%s: --submit: the job names no cluster: it needs none of Slurm's nodes", command->path);
    return train_here(&job, goes_on(&job, command, arena), screen);
}

static int run_train(int argc, char **argv) {
    struct screen screen = {0};
    struct gang_fleet_screen fleet = {0};
    struct command command = {0};
    bool fields = false;
    const struct gang_option options[] = {{"--json", NULL, &screen.json}, {"--resume", NULL, &command.resume}, {"--submit", NULL, &command.submit},
                                          {"--fields", NULL, &fields},    {"--explain", NULL, &fleet.explain}, {"--trace", &fleet.trace, NULL}};
    int code = gang_options(&gang_command_train, argc, argv, options, 6, 0, 1, &command.path);
    if (code >= 0) return code;
    if (fields) {
        print_fields();
        return EXIT_OK;
    }
    if (!command.path) return gang_usage(&gang_command_train, "an argument is missing: expected", gang_command_train.arguments);
    screen.live = fleet.live = isatty(STDOUT_FILENO) && !screen.json;
    fleet.json = screen.json;

    struct gang_arena arena;
    gang_arena_init(&arena);
    enum gang_status status = gang_plan_is(command.path) ? train_plan(&command, &fleet, &arena) : train_job(&command, &screen, &fleet, &arena);
    gang_arena_release(&arena);
    if (status == GANG_ERR_STOPPED) fprintf(stderr, "gangline: stopped before the first step; nothing to save\n");
    return status == GANG_ERR_STOPPED ? EXIT_OK : gang_report(status);
}

const struct gang_command gang_command_train = {
    .name = "train",
    .arguments = "JOB.yaml|PLAN [--resume] [--submit]",
    .summary = "Train a model as a job file says",
    .run = run_train,
    .help = "  --resume   go on from the last save of the job's output directory\n"
            "  --submit   write a batch job of Slurm's that runs this, and submit it; put back into the queue it resumes\n"
            "  --json     print one JSON object per step, nothing else\n"
            "  --fields   print what a job file may say, with defaults\n"
            "  --explain  on a cluster: predicted beside measured at the end, by rank and kind of work\n"
            "  --trace F  on a cluster: the predicted and a real step as a trace for Perfetto or chrome://tracing\n\n"
            "A job with a `cluster` runs on all devices of that file: they are measured, the best split is planned, and each gets a\n"
            "rank. Without, this machine's processor trains alone. A plan that 'gangline plan -o' wrote runs its job in its layout.\n\n"
            "Ctrl-C ends after the step that runs and saves. The output directory holds step-NNNNNNNN (a Hugging Face\n"
            "directory with the optimizer's state beside it), latest (a link to the newest), metrics.jsonl and cache.\n"
            "\nexample: gangline train examples/demo.yaml\n",
};
