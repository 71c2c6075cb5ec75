// The training loop on one device: from a job to a run directory.
//
// OUTPUT holds step-NNNNNNNN (saves), latest (a link to the newest), metrics.jsonl (one JSON object a step), job.yaml (a
// copy) and cache (tokenised data). Sample i is a pure function of (seed, i), so a run that is resumed at step s reads
// samples s * samples_per_step and on, as it would have without the interruption.
#include "train/train.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { MAX_JOB_BYTES = 1 << 20, MAX_METRICS_BYTES = 1 << 30, MAX_RATES = 1 << 16 };

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
    FILE *metrics;
    int32_t *tokens; // one micro-batch
    double *rates;   // tokens/s of the last MAX_RATES steps of this call, as a ring
    int lock;        // of the output directory, -1: none
    int64_t first_step, last_saved;
    double peak_flops;
};

// ---- Setting up ----------------------------------------------------------------------------------------------------

static enum gang_status open_tokenizer(struct run *r) {
    const char *path = NULL;
    if (!strcmp(r->job->tokenizer, "auto")) {
        const char *beside = gang_arena_printf(&r->arena, "%s/tokenizer.json", r->job->model);
        if (gang_path_exists(beside)) path = beside;
    } else if (strcmp(r->job->tokenizer, "bytes") != 0) {
        path = r->job->tokenizer;
    }
    enum gang_status status = gang_tokenizer_open(path, &r->tokenizer);
    if (status) return status;
    int vocab = gang_tokenizer_vocab(r->tokenizer);
    if (vocab > r->config.vocab_size)
        return gang_fail(GANG_ERR_INPUT, "%s: vocab_size %d is less than the tokenizer's %d ids: choose a model and a tokenizer that belong together",
                         r->job->model, r->config.vocab_size, vocab);
    return GANG_OK;
}

static bool tokenising(void *context, int64_t done, int64_t all) {
    struct run *r = context;
    if (r->events->tokenising) r->events->tokenising(r->events->context, done, all);
    return !*r->stop;
}

static enum gang_status open_data(struct run *r) {
    struct gang_data_options options = {
        .sources = &r->job->data,
        .cache_dir = r->job->cache,
        .threads = (int)r->job->threads ? (int)r->job->threads : gang_cpu_count(),
        .end_token = r->config.eos_token < gang_tokenizer_vocab(r->tokenizer) ? r->config.eos_token : -1,
        .progress = tokenising,
        .context = r,
    };
    if (!gang_tokenizer_path(r->tokenizer)) options.end_token = -1; // every id is a byte of text
    enum gang_status status = gang_data_open(&options, r->tokenizer, &r->data);
    return status ? status : gang_data_check(r->data, (int)r->job->sequence_length);
}

// VmRSS (now) or VmHWM (the most so far) of this process in bytes.
static double resident_bytes(const char *which) { return gang_kernel_number("/proc/self/status", which) * 1024; }

// Forgets the peak of what came before (probing, tokenising), so that it is this run's.
static void reset_peak(void) {
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (!file) return;
    fputs("5", file);
    fclose(file);
}

static enum gang_status load_weights(struct run *r, const char *resume_dir, bool *fresh) {
    *fresh = false;
    if (resume_dir) return gang_save_load(resume_dir, r->net, &r->model);
    enum gang_status status = GANG_OK;
    *fresh = r->job->weights == GANG_WEIGHTS_FRESH || !gang_path_is_dir(r->job->model) || !gang_model_has_weights(r->job->model);
    if (*fresh)
        gang_model_randomise(&r->model, (uint64_t)r->job->seed, gang_net_parameters(r->net));
    else
        status = gang_model_load(&r->model, r->job->model, gang_net_parameters(r->net));
    if (!status) gang_net_refresh(r->net);
    return status;
}

// The save to go on from, NULL for a new run; an output directory is not silently used twice.
static enum gang_status find_save(struct run *r, bool resume, char **dir) {
    *dir = gang_arena_printf(&r->arena, "%s/latest", r->job->output);
    char target[2];
    bool there = readlink(*dir, target, sizeof target) > 0 || gang_path_exists(*dir); // a link that leads nowhere is one too
    if (there && !resume)
        return gang_fail(GANG_ERR_INPUT, "%s: holds a run already: go on with --resume, or choose another output directory", r->job->output);
    if (!there && resume) return gang_fail(GANG_ERR_INPUT, "%s: holds no save to resume: start without --resume", r->job->output);
    if (!there) *dir = NULL;
    return GANG_OK;
}

static enum gang_status check_same(const char *dir, const char *what, int64_t saved, int64_t now) {
    if (saved == now) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT,
                     "%s: %s was %lld in the saved run and is %lld in the job: the run would not go on as it began; restore it, or start anew", dir,
                     what, (long long)saved, (long long)now);
}

static enum gang_status settle_state(struct run *r, const char *dir) {
    const struct gang_job *job = r->job;
    r->state = (struct gang_state){.seed = job->seed,
                                   .sequence_length = job->sequence_length,
                                   .global_batch_tokens = job->global_batch_tokens,
                                   .data_tokens = gang_data_tokens(r->data),
                                   .data_checksum = gang_data_checksum(r->data),
                                   .compute_bits = job->compute == GANG_COMPUTE_BF16 ? 16 : 32};
    if (!dir) return GANG_OK;
    struct gang_state saved;
    enum gang_status status = gang_save_state(dir, &saved);
    if (!status) status = check_same(dir, "seed", saved.seed, r->state.seed);
    if (!status) status = check_same(dir, "sequence_length", saved.sequence_length, r->state.sequence_length);
    if (!status) status = check_same(dir, "global_batch_tokens", saved.global_batch_tokens, r->state.global_batch_tokens);
    if (!status) status = check_same(dir, "the number of tokens of the data", saved.data_tokens, r->state.data_tokens);
    if (!status) status = check_same(dir, "the checksum of the data", saved.data_checksum, r->state.data_checksum);
    if (!status) status = check_same(dir, "the compute type's number of bits", saved.compute_bits, r->state.compute_bits);
    if (status) return status;
    r->state = saved;
    r->first_step = r->last_saved = saved.step;
    return GANG_OK;
}

// Keeps the lines of steps up to `step`: what came after the save is done again.
static enum gang_status trim_metrics(const char *path, int64_t step) {
    struct gang_buffer text = {0}, kept = {0};
    if (!gang_path_exists(path)) return GANG_OK;
    enum gang_status status = gang_file_read(path, MAX_METRICS_BYTES, &text);
    for (char *line = text.data, *end; !status && line && *line; line = end + 1) {
        end = strchrnul(line, '\n');
        if (!*end) break; // torn by a crash
        *end = 0;
        json_t *root = json_loads(line, 0, NULL);
        const json_t *at = json_object_get(root, "step");
        if (json_is_integer(at) && json_integer_value(at) <= step) gang_buffer_printf(&kept, "%s\n", line);
        json_decref(root);
    }
    if (!status) status = gang_file_publish(path, kept.data ? kept.data : "", kept.len);
    gang_buffer_release(&text);
    gang_buffer_release(&kept);
    return status;
}

// Two runs in one directory would take each other's saves for their own. The lock goes with the process.
static enum gang_status lock_output(struct run *r) {
    r->lock = gang_os->open(r->job->output, O_RDONLY | O_DIRECTORY, 0);
    if (r->lock < 0) return gang_fail_os("%s: cannot open the directory", r->job->output);
    if (!flock(r->lock, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK) return GANG_OK; // file systems without locks serve too
    return gang_fail(GANG_ERR_INPUT, "%s: another process trains here: wait for its end, or choose another output directory", r->job->output);
}

static enum gang_status open_output(struct run *r) {
    struct gang_buffer text = {0};
    const char *copy = gang_arena_printf(&r->arena, "%s/job.yaml", r->job->output),
               *path = gang_arena_printf(&r->arena, "%s/metrics.jsonl", r->job->output);
    enum gang_status status = gang_mkdirs(r->job->output);
    if (!status) status = lock_output(r);
    if (!status) status = gang_file_read(r->job->path, MAX_JOB_BYTES, &text);
    if (!status) status = gang_file_publish(copy, text.data, text.len);
    gang_buffer_release(&text);
    if (!status) status = trim_metrics(path, r->state.step);
    if (status) return status;
    r->metrics = fopen(path, r->state.step ? "ae" : "we");
    return r->metrics ? GANG_OK : gang_fail_os("%s: cannot open", path);
}

static enum gang_status set_up(struct run *r, bool resume, struct gang_run_result *result) {
    const struct gang_job *job = r->job;
    char *dir = NULL;
    bool fresh;
    enum gang_status status = gang_config_read(job->model, &r->config);
    if (!status && job->sequence_length > r->config.max_positions)
        status = gang_fail(GANG_ERR_INPUT, "%s: sequence_length %lld is more than the model's max_position_embeddings %d", job->path,
                           (long long)job->sequence_length, r->config.max_positions);
    if (!status) status = find_save(r, resume, &dir);
    if (!status) status = open_tokenizer(r);
    if (!status)
        status = gang_device_open(
            &(struct gang_device_options){.kind = "cpu", .compute = (enum gang_compute)job->compute, .threads = (int)job->threads}, &r->device);
    if (status) return status;

    gang_model_init(&r->model, &r->config, &r->arena);
    struct gang_net_shape shape = {.batch = job->micro_batch, .length = job->sequence_length};
    struct gang_run_start start = {.job = job, .model = &r->model, .device = r->device};
    gang_net_memory(&r->model, r->device, &shape, &start.memory);
    status = gang_memory_check(&start.memory, "choose a smaller model, micro_batch or sequence_length");
    if (!status) status = open_data(r);
    if (!status) status = settle_state(r, dir);
    if (!status) status = open_output(r);
    struct gang_profile profile;
    if (!status) status = gang_profile_here(r->device->threads, &profile);
    if (status) return status;
    r->peak_flops = job->compute == GANG_COMPUTE_BF16 ? profile.peak_bf16 : profile.peak_f32;
    reset_peak();
    start.baseline_bytes = resident_bytes("VmRSS") + gang_device_overhead_bytes(r->device);
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
    if (r->metrics) fclose(r->metrics);
    if (r->lock >= 0) gang_os->close(r->lock);
    gang_net_free(r->net);
    gang_device_close(r->device);
    gang_data_free(r->data);
    gang_tokenizer_free(r->tokenizer);
    gang_arena_release(&r->arena);
}

// ---- Stepping ------------------------------------------------------------------------------------------------------

// Linear warm-up, then a cosine to min_learning_rate of the peak (Loshchilov and Hutter 2017). `step` counts from 1.
static double learning_rate(const struct gang_job *job, int64_t step) {
    if (step <= job->warmup_steps) return job->learning_rate * (double)step / (double)job->warmup_steps;
    double done = (double)(step - job->warmup_steps) / (double)(job->steps > job->warmup_steps ? job->steps - job->warmup_steps : 1);
    double wave = 0.5 * (1 + cos(3.141592653589793 * (done < 1 ? done : 1)));
    return job->learning_rate * (job->min_learning_rate + (1 - job->min_learning_rate) * wave);
}

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

// A metrics file that cannot be written costs the metrics, not the run.
static void record(struct run *r, const struct gang_run_step *s) {
    if (!r->metrics) return;
    fprintf(r->metrics,
            "{\"step\": %lld, \"loss\": %.7g, \"gradient_norm\": %.5g, \"learning_rate\": %.6g, \"seconds\": %.6f, \"tokens\": %lld, "
            "\"tokens_per_second\": %.1f, \"peak_fraction\": %.4f}\n",
            (long long)s->step, s->loss, s->gradient_norm, s->rate, s->seconds, (long long)s->tokens, s->tokens_per_second, s->peak_fraction);
    if (!fflush(r->metrics)) return;
    gang_log(GANG_LOG_WARNING, "%s/metrics.jsonl: cannot write: %s: training goes on without it", r->job->output, strerror(errno));
    fclose(r->metrics);
    r->metrics = NULL;
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
    record(r, &s);
    return GANG_OK;
}

static enum gang_status loop(struct run *r, struct gang_run_result *result) {
    double began = gang_seconds();
    while (r->state.step < r->job->steps && !*r->stop) {
        double step_began = gang_seconds(), gradient_norm, rate = learning_rate(r->job, r->state.step + 1);
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
    struct run r = {.job = job, .events = events, .stop = stop, .lock = -1};
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
    result->peak_bytes = resident_bytes("VmHWM");
    tear_down(&r);
    return status;
}
