// The training loop on one device: from a job to a run directory.
//
// OUTPUT holds step-NNNNNNNN (saves), latest (a link to the newest), metrics.jsonl (one JSON object a step), job.yaml (a
// copy) and cache (tokenised data). Sample i is a pure function of (seed, i), so a run that is resumed at step s reads
// samples s * samples_per_step and on, as it would have without the interruption.
#include "train/train.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RATES = 1 << 16 };

struct run {
    const struct gang_job *job;
    const struct gang_run_events *events;
    const volatile int *stop;
    struct gang_arena arena;
    struct gang_config config;
    struct gang_model model;
    struct gang_tokenizer *tokenizer;
    struct gang_data *data;
    struct gang_device *device;
    struct gang_net *net;
    struct gang_state state;
    struct gang_job_output output;
    int32_t *tokens; // one micro-batch
    double *rates;   // tokens/s of the last MAX_RATES steps of this call, as a ring
    int64_t first_step, last_saved;
    double peak_flops;
};

// ---- Setting up ----------------------------------------------------------------------------------------------------

static bool tokenising(void *context, int64_t done, int64_t all) {
    struct run *r = context;
    if (r->events->tokenising) r->events->tokenising(r->events->context, done, all);
    return !*r->stop;
}

static enum gang_status load_weights(struct run *r, const char *resume_dir, bool *fresh) {
    *fresh = false;
    if (resume_dir) return gang_save_load(resume_dir, r->net, &r->model);
    enum gang_status status = GANG_OK;
    *fresh = r->job->weights == GANG_WEIGHTS_FRESH || !gang_path_is_dir(r->job->model) || !gang_model_has_weights(r->job->model);
    if (*fresh)
        gang_model_randomise(&r->model, (uint64_t)r->job->seed, gang_net_parameters(r->net));
    else
        status = gang_model_load(&r->model, r->job->model, gang_net_parameters(r->net), NULL);
    if (!status) gang_net_refresh(r->net);
    return status;
}

static enum gang_status set_up(struct run *r, bool resume, struct gang_run_result *result) {
    const struct gang_job *job = r->job;
    char *dir = NULL;
    bool fresh;
    enum gang_status status = gang_job_config(job, &r->config);
    if (!status) status = gang_job_find_save(job, &r->config, resume, &r->arena, &dir);
    if (!status) status = gang_job_tokenizer(job, &r->config, &r->tokenizer);
    if (!status)
        status = gang_device_open(
            &(struct gang_device_options){.kind = "cpu", .compute = (enum gang_compute)job->compute, .threads = (int)job->threads}, &r->device);
    if (status) return status;

    gang_model_init(&r->model, &r->config, &r->arena);
    struct gang_net_shape shape = {.batch = job->micro_batch, .length = job->sequence_length};
    struct gang_run_start start = {.job = job, .model = &r->model, .device = r->device};
    gang_net_memory(&r->model, r->device, &shape, &start.memory);
    status = gang_memory_check(&start.memory, "choose a smaller model, micro_batch or sequence_length");
    if (!status) status = gang_job_data(job, &r->config, r->tokenizer, tokenising, r, &r->data);
    if (!status) status = gang_job_state(job, r->data, dir, &r->state);
    if (!status) r->first_step = r->last_saved = r->state.step;
    if (!status) status = gang_job_output_open(job, r->state.step, &r->output);
    struct gang_profile profile;
    if (!status) status = gang_profile_here(r->device->threads, &profile);
    if (status) return status;
    r->peak_flops = job->compute == GANG_COMPUTE_BF16 ? profile.peak_bf16 : profile.peak_f32;
    gang_resident_reset();
    start.baseline_bytes = gang_resident_bytes("VmRSS");
    result->predicted_bytes = start.baseline_bytes + (double)start.memory.total;
    status = gang_net_new(&r->model, r->device, &shape, &r->net);
    if (!status) status = load_weights(r, dir, &fresh);
    if (status) return status;
    r->tokens = gang_arena_alloc(&r->arena, (size_t)(job->micro_batch * (job->sequence_length + 1)) * sizeof *r->tokens);
    r->rates = gang_arena_alloc(&r->arena, (size_t)(job->steps < MAX_RATES ? job->steps : MAX_RATES) * sizeof *r->rates);
    start.peak_flops = r->peak_flops;
    start.data_tokens = gang_data_tokens(r->data);
    start.first_step = r->first_step;
    start.fresh = fresh;
    if (r->events->started) r->events->started(r->events->context, &start);
    return GANG_OK;
}

static void tear_down(struct run *r) {
    gang_job_output_close(&r->output);
    gang_net_free(r->net);
    gang_device_close(r->device);
    gang_data_free(r->data);
    gang_tokenizer_free(r->tokenizer);
    gang_arena_release(&r->arena);
}

// ---- Stepping ------------------------------------------------------------------------------------------------------

static double one_step(struct run *r, double rate, double *gradient_norm) {
    const struct gang_job *job = r->job;
    int64_t T = job->sequence_length, per_step = job->global_batch_tokens / T, micro_batches = per_step / job->micro_batch;
    uint64_t sample = (uint64_t)(r->state.step * per_step);
    float scale = 1 / (float)job->global_batch_tokens;
    double loss = 0;
    for (int64_t i = 0; i < micro_batches; i++) {
        for (int64_t b = 0; b < job->micro_batch; b++) gang_data_sample(r->data, (uint64_t)job->seed, sample++, (int)T, r->tokens + b * (T + 1));
        loss += gang_net_micro_batch(r->net, r->tokens, scale, i == 0);
    }
    struct gang_update update = {.rate = rate,
                                 .beta1 = job->beta1,
                                 .beta2 = job->beta2,
                                 .epsilon = job->epsilon,
                                 .decay = job->weight_decay,
                                 .clip = job->gradient_clip,
                                 .step = r->state.step + 1};
    *gradient_norm = gang_net_update(r->net, &update);
    r->state.step++;
    r->state.tokens += job->global_batch_tokens;
    return loss / (double)job->global_batch_tokens;
}

static enum gang_status save(struct run *r, struct gang_run_result *result) {
    struct gang_st_part parts[GANG_SAVE_PARTS];
    gang_save_parts(r->net, parts);
    enum gang_status status = gang_save_write(r->job->output, &r->state, &r->model, parts, gang_tokenizer_path(r->tokenizer), (int)r->job->keep,
                                              result->saved, sizeof result->saved);
    if (status) return status;
    r->last_saved = r->state.step;
    if (r->events->saved) r->events->saved(r->events->context, result->saved, r->state.step);
    return GANG_OK;
}

static enum gang_status after_step(struct run *r, double began, double step_began, double loss, double gradient_norm, double rate,
                                   struct gang_run_result *result) {
    double now = gang_seconds();
    int64_t done = r->state.step - r->first_step;
    struct gang_run_step s = {.step = r->state.step,
                              .steps = r->job->steps,
                              .loss = loss,
                              .gradient_norm = gradient_norm,
                              .rate = rate,
                              .seconds = now - step_began,
                              .elapsed = now - began,
                              .tokens = r->state.tokens};
    s.tokens_per_second = (double)r->job->global_batch_tokens / s.seconds;
    if (r->peak_flops > 0) s.peak_fraction = 6 * (double)r->model.parameters * s.tokens_per_second / r->peak_flops;
    s.left = s.elapsed / (double)done * (double)(s.steps - s.step);
    r->rates[(done - 1) % MAX_RATES] = s.tokens_per_second;
    if (done == 1) result->first_loss = loss;
    result->last_loss = loss;
    if (!isfinite(loss) || !isfinite(gradient_norm))
        return gang_fail(
            GANG_ERR_INPUT,
            "step %lld: loss %g and gradient norm %g are not finite: the last save is kept as it was; lower learning_rate, or check the data",
            (long long)s.step, loss, gradient_norm);
    if (r->events->stepped) r->events->stepped(r->events->context, &s);
    gang_job_record(&r->output, &s);
    return GANG_OK;
}

static enum gang_status loop(struct run *r, struct gang_run_result *result) {
    double began = gang_seconds();
    while (r->state.step < r->job->steps && !*r->stop) {
        double step_began = gang_seconds(), gradient_norm, rate = gang_job_rate(r->job, r->state.step + 1);
        double loss = one_step(r, rate, &gradient_norm);
        enum gang_status status = after_step(r, began, step_began, loss, gradient_norm, rate, result);
        if (status) return status;
        // A save on the way that fails costs the save, not the run: the next one may find room.
        if (r->job->save_every && r->state.step % r->job->save_every == 0 && r->state.step < r->job->steps && save(r, result))
            gang_log(GANG_LOG_WARNING, "step %lld is not saved, training goes on: %s", (long long)r->state.step, gang_error());
    }
    result->stopped = r->state.step < r->job->steps;
    return r->state.step > r->last_saved ? save(r, result) : GANG_OK;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

enum gang_status gang_train_run(const struct gang_job *job, bool resume, const struct gang_run_events *events, const volatile int *stop,
                                struct gang_run_result *result) {
    struct run r = {.job = job, .events = events, .stop = stop, .output = {.lock = -1}};
    *result = (struct gang_run_result){0};
    gang_arena_init(&r.arena);
    enum gang_status status = set_up(&r, resume, result);
    if (!status) status = loop(&r, result);
    result->steps_done = r.state.step - r.first_step;
    if (result->steps_done > 0) {
        int64_t count = result->steps_done < MAX_RATES ? result->steps_done : MAX_RATES;
        qsort(r.rates, (size_t)count, sizeof *r.rates, ascending);
        result->tokens_per_second = r.rates[count / 2];
    }
    result->peak_bytes = gang_resident_bytes("VmHWM");
    tear_down(&r);
    return status;
}
