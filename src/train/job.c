// job.yaml: its fields, their defaults, and what must agree between them.
#include "train/train.h"

#include <string.h>

static const char *const computes[] = {"f32", "bf16", "auto", NULL}; // by enum gang_compute, then COMPUTE_AUTO
enum { COMPUTE_AUTO = 2 };
// Names of saves have eight digits for the step; products of steps and tokens are far from 2^63.
enum { MAX_STEPS = 99999999 };
static const int64_t max_tokens = 1LL << 50;

static const char *const launchers[] = {"local", "ssh", "slurm", NULL}; // by enum gang_launcher
static const char *const weights[] = {"auto", "fresh", NULL};

#define AT(member) offsetof(struct gang_job, member)

const struct gang_field gang_job_fields[] = {
    {"model", GANG_FIELD_STRING, AT(model), NULL, 0, 0, NULL, "config.json, or a Hugging Face directory that holds one"},
    {"data", GANG_FIELD_STRINGS, AT(data), NULL, 0, 0, NULL, "text: files, directories, globs"},
    {"output", GANG_FIELD_STRING, AT(output), NULL, 0, 0, NULL, "directory of the run: saves and metrics"},
    {"tokenizer", GANG_FIELD_STRING, AT(tokenizer), "auto", 0, 0, NULL, "tokenizer.json or its directory; bytes; auto: the model's, else bytes"},
    {"weights", GANG_FIELD_ENUM, AT(weights), "auto", 0, 0, weights, "auto: the model directory's if it has any, else fresh; fresh: random"},
    {"compute", GANG_FIELD_ENUM, AT(compute), "auto", 0, 0, computes,
     "type of the products (masters stay f32): f32; bf16; auto: bf16 where it is fast"},
    {"sequence_length", GANG_FIELD_INT, AT(sequence_length), "256", 1, 1 << 20, NULL, "tokens of a sample"},
    {"micro_batch", GANG_FIELD_INT, AT(micro_batch), "8", 1, 1 << 16, NULL, "samples that are computed at once; on a cluster the layout says"},
    {"global_batch_tokens", GANG_FIELD_INT, AT(global_batch_tokens), "0", 0, 1LL << 40, NULL, "tokens of an optimizer step; 0: one micro-batch"},
    {"steps", GANG_FIELD_INT, AT(steps), "0", 0, MAX_STEPS, NULL, "optimizer steps; give this or tokens"},
    {"tokens", GANG_FIELD_INT, AT(tokens), "0", 0, 1LL << 50, NULL, "tokens to train on, rounded up to whole steps"},
    {"learning_rate", GANG_FIELD_REAL, AT(learning_rate), "3e-4", 0, 1, NULL, "peak, after the warm-up"},
    {"min_learning_rate", GANG_FIELD_REAL, AT(min_learning_rate), "0.1", 0, 1, NULL, "end of the cosine, as a fraction of the peak"},
    {"warmup_steps", GANG_FIELD_INT, AT(warmup_steps), "0", 0, 1000000000, NULL, "steps of linear warm-up"},
    {"weight_decay", GANG_FIELD_REAL, AT(weight_decay), "0.1", 0, 1, NULL, "AdamW's, on matrices only"},
    {"beta1", GANG_FIELD_REAL, AT(beta1), "0.9", 0, 0.999999, NULL, "AdamW's first moment"},
    {"beta2", GANG_FIELD_REAL, AT(beta2), "0.95", 0, 0.999999, NULL, "AdamW's second moment"},
    {"epsilon", GANG_FIELD_REAL, AT(epsilon), "1e-8", 1e-30, 1, NULL, "AdamW's"},
    {"gradient_clip", GANG_FIELD_REAL, AT(gradient_clip), "1.0", 0, 1e9, NULL, "largest gradient norm; 0: no clipping"},
    {"seed", GANG_FIELD_INT, AT(seed), "1", 0, 1LL << 53, NULL, "of fresh weights and of the order of samples"},
    {"threads", GANG_FIELD_INT, AT(threads), "0", 0, 1024, NULL, "0: all cores this process may use"},
    {"save_every", GANG_FIELD_INT, AT(save_every), "0", 0, 1000000000, NULL, "steps between saves; 0: only at the end"},
    {"keep", GANG_FIELD_INT, AT(keep), "2", 1, 1000000, NULL, "saves that are kept, the newest"},
    {"cluster", GANG_FIELD_STRING, AT(cluster), "", 0, 0, NULL, "cluster.yaml: train on all of it; none: on this machine's processor alone"},
    {"layout", GANG_FIELD_STRING, AT(layout), "auto", 0, 0, NULL,
     "how a cluster splits the work, such as pp=2,dp=2,mb=1; auto: the best that is found"},
    {"launcher", GANG_FIELD_ENUM, AT(launcher), "local", 0, 0, launchers,
     "what starts the ranks of sites that name nothing else: processes here; ssh; slurm"},
    {"coordinator", GANG_FIELD_STRING, AT(coordinator), "auto", 0, 0, NULL,
     "name or address by which other nodes reach the one that starts the run; auto: its host name"},
    {"cache", GANG_FIELD_STRING, AT(cache), "auto", 0, 0, NULL, "directory of tokenised data; auto: OUTPUT/cache"},
};
const size_t gang_job_field_count = sizeof gang_job_fields / sizeof *gang_job_fields;

static void resolve(struct gang_arena *arena, const char *job_path, char **path) {
    const char *slash = strrchr(job_path, '/');
    if (**path == '/' || !slash) return;
    *path = gang_arena_printf(arena, "%.*s/%s", (int)(slash - job_path), job_path, *path);
}

static enum gang_status settle_batch(const char *path, struct gang_job *job) {
    // On a cluster the plan chooses the micro-batches.
    int64_t micro = job->micro_batch * job->sequence_length, unit = *job->cluster ? job->sequence_length : micro;
    if (!job->global_batch_tokens) job->global_batch_tokens = micro;
    if (job->global_batch_tokens % unit != 0) {
        int64_t down = job->global_batch_tokens / unit * unit;
        return gang_fail(GANG_ERR_INPUT, "%s: global_batch_tokens %lld is not a multiple of %ssequence_length = %lld: choose for example %lld", path,
                         (long long)job->global_batch_tokens, *job->cluster ? "" : "micro_batch x ", (long long)unit,
                         (long long)(down ? down : unit));
    }
    if (!job->steps == !job->tokens) return gang_fail(GANG_ERR_INPUT, "%s: give either steps or tokens, above 0", path);
    if (!job->steps) job->steps = (job->tokens + job->global_batch_tokens - 1) / job->global_batch_tokens;
    if (job->steps > MAX_STEPS)
        return gang_fail(GANG_ERR_INPUT, "%s: %lld tokens make %lld steps: expected at most %d: choose a larger global_batch_tokens", path,
                         (long long)job->tokens, (long long)job->steps, MAX_STEPS);
    if (job->steps > max_tokens / job->global_batch_tokens)
        return gang_fail(GANG_ERR_INPUT, "%s: %lld steps of %lld tokens are more than the %lld tokens that a job may have: choose fewer", path,
                         (long long)job->steps, (long long)job->global_batch_tokens, (long long)max_tokens);
    job->tokens = job->steps * job->global_batch_tokens;
    return GANG_OK;
}

enum gang_status gang_job_read(const char *path, struct gang_arena *arena, struct gang_job *job) {
    *job = (struct gang_job){0};
    enum gang_status status = gang_yaml_bind(path, gang_job_fields, gang_job_field_count, job, arena);
    if (status) return status;
    job->path = gang_arena_strdup(arena, path);
    resolve(arena, path, &job->model);
    resolve(arena, path, &job->output);
    if (*job->cluster) resolve(arena, path, &job->cluster);
    for (int i = 0; i < job->data.count; i++) resolve(arena, path, &job->data.items[i]);
    if (strcmp(job->tokenizer, "auto") != 0 && strcmp(job->tokenizer, "bytes") != 0) resolve(arena, path, &job->tokenizer);
    if (!strcmp(job->cache, "auto"))
        job->cache = gang_arena_printf(arena, "%s/cache", job->output);
    else
        resolve(arena, path, &job->cache);
    if (job->compute == COMPUTE_AUTO) job->compute = gang_cpu_has_bf16() ? GANG_COMPUTE_BF16 : GANG_COMPUTE_F32;
    if (!job->data.count) return gang_fail(GANG_ERR_INPUT, "%s: data names no file: give at least one file, directory or glob", path);
    return settle_batch(path, job);
}
