// What a run stands on: its tokenizer and data, the save that it goes on from, its output directory, its learning rate.
#include "train/train.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { MAX_JOB_BYTES = 1 << 20, MAX_METRICS_BYTES = 1 << 30 };

// ---- Input ---------------------------------------------------------------------------------------------------------

enum gang_status gang_job_config(const struct gang_job *job, struct gang_config *out) {
    enum gang_status status = gang_config_read(job->model, out);
    if (!status && job->sequence_length > out->max_positions)
        status = gang_fail(GANG_ERR_INPUT, "%s: sequence_length %lld is more than the model's max_position_embeddings %d", job->path,
                           (long long)job->sequence_length, out->max_positions);
    return status;
}

enum gang_status gang_job_tokenizer(const struct gang_job *job, const struct gang_config *config, struct gang_tokenizer **out) {
    struct gang_arena arena;
    const char *path = NULL;
    gang_arena_init(&arena);
    if (!strcmp(job->tokenizer, "auto")) {
        const char *beside = gang_arena_printf(&arena, "%s/tokenizer.json", job->model);
        if (gang_path_exists(beside)) path = beside;
    } else if (strcmp(job->tokenizer, "bytes") != 0) {
        path = job->tokenizer;
    }
    enum gang_status status = gang_tokenizer_open(path, out);
    gang_arena_release(&arena);
    if (status) return status;
    int vocab = gang_tokenizer_vocab(*out);
    if (vocab > config->vocab_size)
        return gang_fail(GANG_ERR_INPUT, "%s: vocab_size %d is less than the tokenizer's %d ids: choose a model and a tokenizer that belong together",
                         job->model, config->vocab_size, vocab);
    return GANG_OK;
}

enum gang_status gang_job_data(const struct gang_job *job, const struct gang_config *config, const struct gang_tokenizer *tokenizer,
                               bool (*progress)(void *context, int64_t done, int64_t all), void *context, struct gang_data **out) {
    struct gang_data_options options = {
        .sources = &job->data,
        .cache_dir = job->cache,
        .threads = (int)job->threads ? (int)job->threads : gang_cpu_count(),
        .end_token = config->eos_token < gang_tokenizer_vocab(tokenizer) ? config->eos_token : -1,
        .progress = progress,
        .context = context,
    };
    if (!gang_tokenizer_path(tokenizer)) options.end_token = -1; // every id is a byte of text
    enum gang_status status = gang_data_open(&options, tokenizer, out);
    return status ? status : gang_data_check(*out, (int)job->sequence_length);
}

// ---- Going on ------------------------------------------------------------------------------------------------------

enum gang_status gang_job_find_save(const struct gang_job *job, const struct gang_config *config, bool resume, struct gang_arena *arena, char **dir) {
    *dir = gang_arena_printf(arena, "%s/latest", job->output);
    char target[2];
    bool there = readlink(*dir, target, sizeof target) > 0 || gang_path_exists(*dir); // a link that leads nowhere is one too
    if (there && !resume)
        return gang_fail(GANG_ERR_INPUT, "%s: holds a run already: go on with --resume, or choose another output directory", job->output);
    if (!there && resume) return gang_fail(GANG_ERR_INPUT, "%s: holds no save to resume: start without --resume", job->output);
    if (!there) *dir = NULL;
    struct gang_config saved;
    enum gang_status status = there ? gang_config_read(*dir, &saved) : GANG_OK;
    return there && !status ? gang_config_check_same(&saved, config, *dir) : status;
}

static enum gang_status check_same(const char *dir, const char *what, int64_t saved, int64_t now) {
    if (saved == now) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT,
                     "%s: %s was %lld in the saved run and is %lld in the job: the run would not go on as it began; restore it, or start anew", dir,
                     what, (long long)saved, (long long)now);
}

enum gang_status gang_job_state(const struct gang_job *job, const struct gang_data *data, const char *dir, struct gang_state *out) {
    *out = (struct gang_state){.seed = job->seed,
                               .sequence_length = job->sequence_length,
                               .global_batch_tokens = job->global_batch_tokens,
                               .data_tokens = gang_data_tokens(data),
                               .data_checksum = gang_data_checksum(data),
                               .compute_bits = job->compute == GANG_COMPUTE_BF16 ? 16 : 32};
    if (!dir) return GANG_OK;
    struct gang_state saved;
    enum gang_status status = gang_save_state(dir, &saved);
    if (!status) status = check_same(dir, "seed", saved.seed, out->seed);
    if (!status) status = check_same(dir, "sequence_length", saved.sequence_length, out->sequence_length);
    if (!status) status = check_same(dir, "global_batch_tokens", saved.global_batch_tokens, out->global_batch_tokens);
    if (!status) status = check_same(dir, "the number of tokens of the data", saved.data_tokens, out->data_tokens);
    if (!status) status = check_same(dir, "the checksum of the data", saved.data_checksum, out->data_checksum);
    if (!status) status = check_same(dir, "the compute type's number of bits", saved.compute_bits, out->compute_bits);
    if (!status) *out = saved;
    return status;
}

double gang_job_rate(const struct gang_job *job, int64_t step) {
    if (step <= job->warmup_steps) return job->learning_rate * (double)step / (double)job->warmup_steps;
    double done = (double)(step - job->warmup_steps) / (double)(job->steps > job->warmup_steps ? job->steps - job->warmup_steps : 1);
    double wave = 0.5 * (1 + cos(3.141592653589793 * (done < 1 ? done : 1)));
    return job->learning_rate * (job->min_learning_rate + (1 - job->min_learning_rate) * wave);
}

// ---- Output --------------------------------------------------------------------------------------------------------

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
static enum gang_status lock_output(const struct gang_job *job, int *lock) {
    *lock = gang_os->open(job->output, O_RDONLY | O_DIRECTORY, 0);
    if (*lock < 0) return gang_fail_os("%s: cannot open the directory", job->output);
    if (!flock(*lock, LOCK_EX | LOCK_NB) || errno != EWOULDBLOCK) return GANG_OK; // file systems without locks serve too
    return gang_fail(GANG_ERR_INPUT, "%s: another process trains here: wait for its end, or choose another output directory", job->output);
}

enum gang_status gang_job_output_open(const struct gang_job *job, int64_t step, struct gang_job_output *out) {
    struct gang_buffer text = {0};
    struct gang_arena arena;
    *out = (struct gang_job_output){.job = job, .lock = -1};
    gang_arena_init(&arena);
    const char *copy = gang_arena_printf(&arena, "%s/job.yaml", job->output), *path = gang_arena_printf(&arena, "%s/metrics.jsonl", job->output);
    enum gang_status status = gang_mkdirs(job->output);
    if (!status) status = lock_output(job, &out->lock);
    if (!status) status = gang_file_read(job->path, MAX_JOB_BYTES, &text);
    if (!status) status = gang_file_publish(copy, text.data, text.len);
    gang_buffer_release(&text);
    if (!status) status = trim_metrics(path, step);
    if (!status) out->metrics = fopen(path, step ? "ae" : "we");
    if (!status && !out->metrics) status = gang_fail_os("%s: cannot open", path);
    gang_arena_release(&arena);
    return status;
}

void gang_job_output_close(struct gang_job_output *output) {
    if (output->metrics) fclose(output->metrics);
    if (output->lock >= 0) gang_os->close(output->lock);
    *output = (struct gang_job_output){.lock = -1};
}

void gang_job_record(struct gang_job_output *output, const struct gang_run_step *step) {
    if (!output->metrics) return;
    fprintf(output->metrics,
            "{\"step\": %lld, \"loss\": %.7g, \"gradient_norm\": %.5g, \"learning_rate\": %.6g, \"seconds\": %.6f, \"tokens\": %lld, "
            "\"tokens_per_second\": %.1f",
            (long long)step->step, step->loss, step->gradient_norm, step->rate, step->seconds, (long long)step->tokens, step->tokens_per_second);
    if (step->peak_fraction > 0) fprintf(output->metrics, ", \"peak_fraction\": %.4f", step->peak_fraction);
    fprintf(output->metrics, "}\n");
    if (!fflush(output->metrics)) return;
    gang_log(GANG_LOG_WARNING, "%s/metrics.jsonl: cannot write: %s: training goes on without it", output->job->output, strerror(errno));
    fclose(output->metrics);
    output->metrics = NULL;
}

// ---- Memory --------------------------------------------------------------------------------------------------------

double gang_resident_bytes(const char *which) { return gang_kernel_number("/proc/self/status", which) * 1024; }

void gang_resident_reset(void) {
    FILE *file = fopen("/proc/self/clear_refs", "we");
    if (!file) return;
    fputs("5", file);
    fclose(file);
}
