// Jobs and runs: what a job file may say, and that a run learns, stops, goes on and repeats itself bit for bit.
#include "../test.h"
#include "../scratch.h"
#include "tiny.h"

#include <fcntl.h>
#include <math.h>
#include <sys/file.h>

// ---- job.yaml ------------------------------------------------------------------------------------------------------

static void test_job_defaults(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_job job;
    gang_arena_init(&arena);
    const char *path = scratch_text("defaults.yaml", "model: m\ndata: [a.txt, /b]\noutput: out\nsteps: 3\n");
    assert_ok(gang_job_read(path, &arena, &job));
    // Relative paths start at the file, absolute ones stay.
    assert_string_equal(job.path, path);
    assert_string_equal(job.model, scratch_path("m"));
    assert_string_equal(job.output, scratch_path("out"));
    assert_string_equal(job.cache, scratch_path("out/cache"));
    assert_int_equal(job.data.count, 2);
    assert_string_equal(job.data.items[0], scratch_path("a.txt"));
    assert_string_equal(job.data.items[1], "/b");
    assert_string_equal(job.tokenizer, "auto");
    assert_int_equal(job.global_batch_tokens, 8 * 256);
    assert_int_equal(job.steps, 3);
    assert_int_equal(job.tokens, 3 * 8 * 256);
    assert_true(job.learning_rate == 3e-4 && job.min_learning_rate == 0.1 && job.weight_decay == 0.1 && job.gradient_clip == 1);
    assert_true(job.beta1 == 0.9 && job.beta2 == 0.95 && job.epsilon == 1e-8);
    assert_int_equal(job.seed, 1);
    assert_int_equal(job.keep, 2);
    assert_int_equal(job.save_every, 0);
    assert_int_equal(job.compute, gang_cpu_has_bf16() ? GANG_COMPUTE_BF16 : GANG_COMPUTE_F32);
    assert_int_equal(job.weights, GANG_WEIGHTS_AUTO);
    gang_arena_release(&arena);
}

static void test_job_counts_tokens(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_job job;
    gang_arena_init(&arena);
    // Rounded up to whole steps of 2 x 16 x 3 tokens.
    assert_ok(gang_job_read(tiny_job("tokens", "micro_batch: 2\nglobal_batch_tokens: 96\ntokens: 97\ntokenizer: t\ncache: c\n"), &arena, &job));
    assert_int_equal(job.steps, 2);
    assert_int_equal(job.tokens, 192);
    assert_string_equal(job.tokenizer, scratch_path("t"));
    assert_string_equal(job.cache, scratch_path("c"));
    gang_arena_release(&arena);
}

// `lines` stand from line 6 of the job file on.
static void refuse_job(const char *lines, const char *words) {
    struct gang_arena arena;
    struct gang_job job;
    gang_arena_init(&arena);
    enum gang_status status = gang_job_read(tiny_job("refused", lines), &arena, &job);
    gang_arena_release(&arena);
    if (status != GANG_ERR_INPUT || !strstr(gang_error(), words) || !strstr(gang_error(), "refused.yaml"))
        fail_msg("'%s': status %d, '%s'; expected '%s'", lines, status, gang_error(), words);
}

static void test_job_refuses_fields(void **state) {
    (void)state;
    static const struct {
        const char *lines, *words;
    } cases[] = {
        {"steps: 0x10\n", "refused.yaml:6: steps: '0x10' is not a whole number"},
        {"steps: 3\nmicro_batch: 0\n", "refused.yaml:7: micro_batch: '0' is out of range: expected 1 to 65536"},
        {"steps: 3\nlearning_rate: fast\n", "refused.yaml:7: learning_rate: 'fast' is not a number"},
        {"steps: 3\nlearning_rate: 1.5\n", "refused.yaml:7: learning_rate: '1.5' is out of range"},
        {"steps: 3\nbeta1: 1\n", "refused.yaml:7: beta1: '1' is out of range"},
        {"steps: 3\nbeta2: -0.1\n", "refused.yaml:7: beta2: '-0.1' is out of range"},
        {"steps: 3\nepsilon: 0\n", "refused.yaml:7: epsilon: '0' is out of range"},
        {"steps: 3\nmin_learning_rate: 2\n", "refused.yaml:7: min_learning_rate"},
        {"steps: 3\nweight_decay: .nan\n", "refused.yaml:7: weight_decay"},
        {"steps: 3\ngradient_clip: -1\n", "refused.yaml:7: gradient_clip"},
        {"steps: 3\nwarmup_steps: 1.5\n", "refused.yaml:7: warmup_steps"},
        {"steps: 3\nseed: -1\n", "refused.yaml:7: seed"},
        {"steps: 3\ncompute: fp16\n", "refused.yaml:7: compute: 'fp16' is not a choice: expected one of: f32, bf16"},
        {"steps: 3\nweights: some\n", "refused.yaml:7: weights: 'some' is not a choice: expected one of: auto, fresh"},
        {"steps: 3\nkeep: 0\n", "refused.yaml:7: keep"},
        {"steps: 3\nsave_every: often\n", "refused.yaml:7: save_every"},
        {"steps: 3\nglobal_batch_tokens: [1]\n", "refused.yaml:7: global_batch_tokens: is a list"},
        {"steps: 3\nlearning_rat: 1\n", "refused.yaml:7: learning_rat: unknown field: did you mean 'learning_rate'?"},
        {"steps: 3\nsteps: 4\n", "refused.yaml:7: steps: given twice"},
        {"steps:\t3\n\tkeep: 1\n", "refused.yaml:7"},
        {"steps: 3\nthreads: 1\n", "refused.yaml:7: threads: given twice"},
        {"steps: 3\ntokens: 3\n", "give either steps or tokens"},
        {"", "give either steps or tokens"},
        {"steps: 3\nmicro_batch: 3\nglobal_batch_tokens: 100\n",
         "global_batch_tokens 100 is not a multiple of micro_batch x sequence_length = 48: choose for example 96"},
        {"steps: 3\nmicro_batch: 3\nglobal_batch_tokens: 5\n", "choose for example 48"},
        {"steps: 100000000\n", "refused.yaml:6: steps: '100000000' is out of range"},
        {"tokens: 1125899906842624\nmicro_batch: 1\n", "tokens make 70368744177664 steps: expected at most 99999999"},
        {"steps: 99999999\nmicro_batch: 1\nglobal_batch_tokens: 1099511627776\n", "more than the 1125899906842624 tokens that a job may have"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refuse_job(cases[i].lines, cases[i].words);
}

static void test_job_refuses_what_is_missing(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_job job;
    gang_arena_init(&arena);
    assert_fails(GANG_ERR_INPUT, "bare.yaml: model: missing: this field is required",
                 gang_job_read(scratch_text("bare.yaml", "steps: 1\n"), &arena, &job));
    assert_fails(GANG_ERR_INPUT, "data: missing", gang_job_read(scratch_text("bare.yaml", "model: m\noutput: o\nsteps: 1\n"), &arena, &job));
    assert_fails(GANG_ERR_INPUT, "data: the list is empty",
                 gang_job_read(scratch_text("bare.yaml", "model: m\noutput: o\ndata: []\nsteps: 1\n"), &arena, &job));
    assert_fails(GANG_ERR_OS, "absent.yaml: cannot open: No such file", gang_job_read(scratch_path("absent.yaml"), &arena, &job));
    assert_fails(GANG_ERR_INPUT, "not a regular file", gang_job_read(scratch_dir, &arena, &job));
    gang_arena_release(&arena);
}

// ---- Learning, and the same bits -----------------------------------------------------------------------------------

// A job of many steps costs memory by the steps that it does.
static void test_many_steps(void **state) {
    (void)state;
    struct tiny_run run = {.stop_at = 1};
    double before = gang_kernel_number("/proc/self/status", "VmHWM");
    assert_ok(tiny_train(tiny_job("many", "steps: 99999999\nmicro_batch: 2\n"), false, &run));
    assert_true(gang_kernel_number("/proc/self/status", "VmHWM") - before < 300e3);
}

static void test_learns(void **state) {
    (void)state;
    struct tiny_run run = {0};
    assert_ok(tiny_train(tiny_job("learns", "steps: 60\nmicro_batch: 16\nlearning_rate: 1e-2\n"), false, &run));
    assert_int_equal(run.steps, 60);
    assert_int_equal(run.result.steps_done, 60);
    assert_false(run.result.stopped);
    assert_true(run.fresh);
    // From guessing among 256 bytes to knowing which of them follow each other.
    assert_float_equal(run.result.first_loss, log(256), 0.1);
    if (!(run.result.last_loss < 2.2)) fail_msg("loss %g after 60 steps", run.result.last_loss);
    assert_string_equal(run.result.saved, scratch_path("learns/step-00000060"));
}

// The same job three ways: at once, at once again, and interrupted after step 5 of 9.
static void interrupt(const char *name, const char *lines) {
    char names[3][64];
    const char *jobs[3];
    char paths[3][256];
    for (int i = 0; i < 3; i++) {
        snprintf(names[i], sizeof names[i], "%s%d", name, i);
        jobs[i] = strcpy(paths[i], tiny_job(names[i], lines));
    }
    struct tiny_run whole = {0}, again = {0}, first = {.stop_at = 5}, second = {0};
    assert_ok(tiny_train(jobs[0], false, &whole));
    assert_ok(tiny_train(jobs[1], false, &again));
    tiny_same_save(names[0], names[1]);
    assert_ok(tiny_train(jobs[2], false, &first));
    assert_true(first.result.stopped);
    assert_int_equal(first.steps, 5);
    assert_ok(tiny_train(jobs[2], true, &second));
    assert_false(second.result.stopped);
    assert_int_equal(second.steps, 4);
    for (int i = 0; i < 9; i++) assert_true(whole.losses[i] == (i < 5 ? first.losses[i] : second.losses[i - 5]));
    tiny_same_save(names[0], names[2]);
}

static void test_resumed_equals_uninterrupted(void **state) {
    (void)state;
    interrupt("f32-", "steps: 9\nmicro_batch: 4\nlearning_rate: 1e-2\n");
    interrupt("accumulating-", "steps: 9\nmicro_batch: 2\nglobal_batch_tokens: 96\nlearning_rate: 1e-2\nwarmup_steps: 3\n");
    interrupt("bf16-", "steps: 9\nmicro_batch: 2\nglobal_batch_tokens: 64\nlearning_rate: 1e-2\ncompute: bf16\n");
}

static void test_seed_and_compute_change_the_bits(void **state) {
    (void)state;
    static const char *const lines[] = {"steps: 1\ncompute: f32\n", "steps: 1\nseed: 2\ncompute: f32\n", "steps: 1\ncompute: bf16\n"};
    double losses[3];
    for (int i = 0; i < 3; i++) {
        struct tiny_run run = {0};
        char name[32];
        snprintf(name, sizeof name, "bits%d", i);
        assert_ok(tiny_train(tiny_job(name, lines[i]), false, &run));
        losses[i] = run.result.last_loss;
    }
    assert_true(losses[0] != losses[1] && losses[0] != losses[2]);
}

// A run that starts from weights starts from those weights.
static void test_reads_weights(void **state) {
    (void)state;
    struct tiny_run first = {0}, second = {0}, third = {0};
    assert_ok(tiny_train(tiny_job("taught", "steps: 20\nmicro_batch: 16\nlearning_rate: 1e-2\n"), false, &first));
    const char *job = scratch_text("pupil.yaml",
                                   "model: taught/latest\ndata: text.txt\noutput: pupil\nsequence_length: 16\nsteps: 1\nlearning_rate: 0\n");
    assert_ok(tiny_train(job, false, &second));
    assert_false(second.fresh);
    if (!(second.result.first_loss < 3.5)) fail_msg("loss %g at the first step from trained weights", second.result.first_loss);
    job = scratch_text("rebel.yaml", "model: taught/latest\nweights: fresh\ndata: text.txt\noutput: rebel\nsequence_length: 16\nsteps: 1\n");
    assert_ok(tiny_train(job, false, &third));
    assert_true(third.fresh);
    assert_float_equal(third.result.first_loss, log(256), 0.1);
}

// ---- Metrics -------------------------------------------------------------------------------------------------------

// The metrics of a run: every line a JSON object, of the steps 1, 2, ... in turn; `field` of each into `out`. Returns how many.
static int read_metrics(const char *name, const char *field, double *out) {
    char path[128];
    struct gang_buffer text = {0};
    snprintf(path, sizeof path, "%s/metrics.jsonl", name);
    assert_ok(gang_file_read(scratch_path(path), 1 << 20, &text));
    int count = 0;
    for (char *line = strtok(text.data, "\n"); line; line = strtok(NULL, "\n")) {
        json_t *root = json_loads(line, 0, NULL);
        if (!root) fail_msg("%s: not JSON: %s", path, line);
        assert_int_equal(json_integer_value(json_object_get(root, "step")), count + 1);
        assert_true(json_is_number(json_object_get(root, field)));
        out[count++] = json_number_value(json_object_get(root, field));
        json_decref(root);
    }
    gang_buffer_release(&text);
    return count;
}

static void test_metrics_have_each_step_once(void **state) {
    (void)state;
    double losses[64];
    struct tiny_run first = {.stop_at = 3}, second = {0};
    const char *lines = "steps: 6\nsave_every: 2\nmicro_batch: 4\n";
    assert_ok(tiny_train(tiny_job("metrics", lines), false, &first));
    // As a kill would leave it: lines of steps that no save holds, the last of them torn.
    FILE *file = fopen(scratch_path("metrics/metrics.jsonl"), "a");
    fputs("{\"step\": 4, \"loss\": 1}\n{\"step\": 5, \"lo", file);
    fclose(file);
    assert_ok(tiny_train(tiny_job("metrics", lines), true, &second));
    assert_int_equal(read_metrics("metrics", "loss", losses), 6);
    for (int i = 0; i < 6; i++) assert_float_equal(losses[i], i < 3 ? first.losses[i] : second.losses[i - 3], 1e-5);
}

static void test_learning_rate(void **state) {
    (void)state;
    double rates[64];
    struct tiny_run run = {0};
    assert_ok(tiny_train(tiny_job("rate", "steps: 20\nwarmup_steps: 4\nlearning_rate: 1e-2\nmin_learning_rate: 0.2\nmicro_batch: 2\n"), false, &run));
    assert_int_equal(read_metrics("rate", "learning_rate", rates), 20);
    for (int i = 0; i < 4; i++) assert_float_equal(rates[i], 1e-2 * (i + 1) / 4, 1e-7);
    assert_float_equal(rates[11], 1e-2 * (0.2 + 0.8 / 2), 1e-7); // half of the cosine
    assert_float_equal(rates[19], 2e-3, 1e-7);
    for (int i = 4; i < 20; i++) assert_true(rates[i] < rates[i - 1]);
}

// ---- Saves of a run ------------------------------------------------------------------------------------------------

static void test_keeps_as_many_saves(void **state) {
    (void)state;
    struct tiny_run run = {0};
    assert_ok(tiny_train(tiny_job("keep", "steps: 7\nsave_every: 1\nkeep: 3\nmicro_batch: 2\n"), false, &run));
    assert_int_equal(run.saves, 7);
    for (int step = 1; step <= 7; step++) {
        char path[64];
        snprintf(path, sizeof path, "keep/step-%08d/model.safetensors", step);
        assert_int_equal(gang_path_exists(scratch_path(path)), step > 4);
    }
}

// Going back to an older save by hand: the saves of the later steps are not taken for newer ones.
static void test_keep_counts_from_the_newest(void **state) {
    (void)state;
    struct tiny_run first = {0}, second = {.stop_at = 4};
    const char *lines = "steps: 8\nsave_every: 1\nkeep: 8\nmicro_batch: 2\n", *fewer = "steps: 8\nsave_every: 1\nkeep: 1\nmicro_batch: 2\n";
    assert_ok(tiny_train(tiny_job("back", lines), false, &first));
    assert_int_equal(unlink(scratch_path("back/latest")), 0);
    assert_int_equal(symlink("step-00000003", scratch_path("back/latest")), 0);
    assert_ok(tiny_train(tiny_job("back", fewer), true, &second));
    assert_true(gang_path_exists(scratch_path("back/latest/model.safetensors")));
    assert_false(gang_path_exists(scratch_path("back/step-00000003")));
    assert_true(gang_path_exists(scratch_path("back/step-00000008")));
}

static void test_output_is_not_used_twice(void **state) {
    (void)state;
    struct tiny_run run = {0};
    const char *lines = "steps: 1\nmicro_batch: 2\n";
    assert_fails(GANG_ERR_INPUT, "twice: holds no save to resume: start without --resume", tiny_train(tiny_job("twice", lines), true, &run));
    assert_ok(tiny_train(tiny_job("twice", lines), false, &run));
    assert_fails(GANG_ERR_INPUT, "twice: holds a run already: go on with --resume", tiny_train(tiny_job("twice", lines), false, &run));
    // `latest` leads nowhere: a run was here all the same.
    assert_ok(gang_dir_remove(scratch_path("twice/step-00000001")));
    assert_fails(GANG_ERR_INPUT, "twice: holds a run already", tiny_train(tiny_job("twice", lines), false, &run));
    // A run that is done has nothing left to do.
    struct tiny_run done = {0}, more = {0};
    assert_ok(tiny_train(tiny_job("finished", lines), false, &done));
    assert_ok(tiny_train(tiny_job("finished", lines), true, &more));
    assert_int_equal(more.steps, 0);
}

static void test_output_is_locked(void **state) {
    (void)state;
    struct tiny_run run = {0};
    assert_ok(gang_mkdirs(scratch_path("locked")));
    int fd = open(scratch_path("locked"), O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    const char *lines = "steps: 1\nmicro_batch: 2\n";
    assert_fails(GANG_ERR_INPUT, "locked: another process trains here", tiny_train(tiny_job("locked", lines), false, &run));
    close(fd);
    assert_ok(tiny_train(tiny_job("locked", lines), false, &run));
    fd = open(scratch_path("locked"), O_RDONLY | O_DIRECTORY);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    struct tiny_run resumed = {0};
    assert_fails(GANG_ERR_INPUT, "locked: another process trains here", tiny_train(tiny_job("locked", lines), true, &resumed));
    assert_int_equal(resumed.result.steps_done, 0);
    close(fd);
}

static void refuse_change(const char *lines, const char *words) {
    struct tiny_run run = {0};
    assert_fails(GANG_ERR_INPUT, words, tiny_train(tiny_job("changed", lines), true, &run));
}

static void test_changed_job_is_refused(void **state) {
    (void)state;
    struct tiny_run begun = {.stop_at = 2}, run = {0};
    assert_ok(tiny_train(tiny_job("changed", "steps: 4\nmicro_batch: 2\ncompute: f32\n"), false, &begun));
    refuse_change("steps: 4\nmicro_batch: 2\nseed: 9\n", "seed was 1 in the saved run and is 9 in the job");
    if (gang_cpu_has_bf16())
        refuse_change("steps: 4\nmicro_batch: 2\ncompute: bf16\n", "the compute type's number of bits was 32 in the saved run and is 16");
    refuse_change("steps: 4\nmicro_batch: 4\n", "global_batch_tokens was 32 in the saved run and is 64");
    const char *job = scratch_text("changed.yaml",
                                   "model: model.json\ndata: text.txt\noutput: changed\nsequence_length: 8\nmicro_batch: 4\nsteps: 4\n");
    assert_fails(GANG_ERR_INPUT, "sequence_length was 16 in the saved run and is 8", tiny_train(job, true, &run));
    scratch_text("short.txt", "As good a text as any other, but not the one that the run began with.");
    job = scratch_text("changed.yaml", "model: model.json\ndata: short.txt\noutput: changed\nsequence_length: 16\nmicro_batch: 2\nsteps: 4\n");
    assert_fails(GANG_ERR_INPUT, "the number of tokens of the data was 15000 in the saved run and is 69", tiny_train(job, true, &run));
    // As long as before, but one letter is another.
    struct gang_buffer text = {0};
    assert_ok(gang_file_read(scratch_path("text.txt"), 1 << 20, &text));
    text.data[7000] ^= 1;
    scratch_write("short.txt", text.data, text.len);
    gang_buffer_release(&text);
    assert_fails(GANG_ERR_INPUT, "the checksum of the data was", tiny_train(job, true, &run));
    refuse_change("steps: 4\nmicro_batch: 2\nseed: 9\n", "seed was 1");
    // And back to what it was: it goes on.
    assert_ok(tiny_train(tiny_job("changed", "steps: 4\nmicro_batch: 2\ncompute: f32\n"), true, &run));
    assert_int_equal(run.steps, 2);
}

// ---- What cannot run -----------------------------------------------------------------------------------------------

static void refuse_run(enum gang_status status, const char *job, const char *words) {
    struct tiny_run run = {0};
    assert_fails(status, words, tiny_train(job, false, &run));
    assert_int_equal(run.steps, 0);
    assert_false(gang_path_exists(scratch_path("never")));
}

static const char *job_of_model(const char *config, const char *lines) {
    char text[1024];
    scratch_text("other.json", config);
    snprintf(text, sizeof text, "model: other.json\ndata: text.txt\noutput: never\n%s", lines);
    return scratch_text("never.yaml", text);
}

static void test_refused_before_the_start(void **state) {
    (void)state;
    const char *vast = "{\"model_type\": \"llama\", \"vocab_size\": 128000, \"hidden_size\": 16384, \"intermediate_size\": 53248,"
                       "\"num_hidden_layers\": 126, \"num_attention_heads\": 128, \"num_key_value_heads\": 8}";
    refuse_run(GANG_ERR_MEMORY, job_of_model(vast, "steps: 1\n"), "the model does not fit: needs");
    assert_non_null(strstr(gang_error(), "TiB ("));
    assert_non_null(strstr(gang_error(), "available: choose a smaller model, micro_batch or sequence_length"));
    // Sizes whose sum is beyond 64 bits.
    const char *beyond =
        "{\"model_type\": \"llama\", \"vocab_size\": 4194304, \"hidden_size\": 131072, \"intermediate_size\": 1048576, \"head_dim\": 1024,"
        "\"num_hidden_layers\": 1024, \"num_attention_heads\": 4096, \"max_position_embeddings\": 1048576}";
    refuse_run(GANG_ERR_MEMORY, job_of_model(beyond, "steps: 1\nmicro_batch: 65536\nsequence_length: 1048576\n"), "the model does not fit");
    refuse_run(GANG_ERR_OS, tiny_job("never", "steps: 1\ntokenizer: absent.json\n"), "absent.json: cannot open");
    refuse_run(GANG_ERR_INPUT, job_of_model(tiny_config, "steps: 1\nsequence_length: 65\n"),
               "sequence_length 65 is more than the model's max_position_embeddings 64");
    const char *small = "{\"model_type\": \"llama\", \"vocab_size\": 255, \"hidden_size\": 16, \"intermediate_size\": 24, \"num_hidden_layers\": 1,"
                        "\"num_attention_heads\": 4}";
    refuse_run(GANG_ERR_INPUT, job_of_model(small, "steps: 1\n"), "vocab_size 255 is less than the tokenizer's 256 ids");
}

static void test_too_little_text(void **state) {
    (void)state;
    struct tiny_run run = {0};
    scratch_text("window.txt", "0123456789abcdef");
    const char *form = "model: model.json\ndata: window.txt\noutput: %s\nsequence_length: %d\nmicro_batch: 2\nsteps: 3\n";
    char text[256];
    snprintf(text, sizeof text, form, "window16", 16);
    assert_fails(GANG_ERR_INPUT, "16 tokens are too few for a sequence length of 16", tiny_train(scratch_text("window.yaml", text), false, &run));
    snprintf(text, sizeof text, form, "window15", 15); // one window, read again and again
    assert_ok(tiny_train(scratch_text("window.yaml", text), false, &run));
    assert_int_equal(run.steps, 3);
    snprintf(text, sizeof text, form, "window1", 1);
    assert_ok(tiny_train(scratch_text("window.yaml", text), false, &run));
}

// scratch/broken: the tiny model with weights of which one is NaN.
static void write_broken_model(void) {
    struct gang_arena arena;
    struct gang_config config;
    struct gang_model model;
    gang_arena_init(&arena);
    assert_ok(gang_config_read(scratch_path("model.json"), &config));
    gang_model_init(&model, &config, &arena);
    float *weights = gang_arena_alloc(&arena, (size_t)model.elements * sizeof *weights);
    gang_model_randomise(&model, 1, weights);
    weights[gang_model_find(&model, GANG_ROLE_DOWN, 1)->offset + 5] = NAN;
    assert_ok(gang_mkdirs(scratch_path("broken")));
    assert_ok(gang_config_write(&config, scratch_path("broken")));
    assert_ok(gang_model_save(&model, &(struct gang_st_part){.prefix = "", .values = weights}, 1, scratch_path("broken/model.safetensors")));
    gang_arena_release(&arena);
}

static void test_stops_when_not_finite(void **state) {
    (void)state;
    struct tiny_run run = {0};
    write_broken_model();
    const char *job = scratch_text("broken.yaml", "model: broken\ndata: text.txt\noutput: diverged\nsequence_length: 16\nsteps: 4\n");
    assert_fails(GANG_ERR_INPUT, "step 1: loss nan and gradient norm nan are not finite", tiny_train(job, false, &run));
    assert_int_equal(run.steps, 0); // no listener is given a number that is none
    assert_int_equal(run.saves, 0);
    assert_false(gang_path_exists(scratch_path("diverged/latest")));
}

static void test_stopped_before_the_first_step(void **state) {
    (void)state;
    struct tiny_run run = {.stop = 1};
    enum gang_status status = tiny_train(tiny_job("early", "steps: 4\n"), false, &run);
    assert_int_equal(status, GANG_ERR_STOPPED);
    assert_int_equal(run.steps, 0);
    assert_false(gang_path_exists(scratch_path("early/latest")));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_job_defaults),
        cmocka_unit_test(test_job_counts_tokens),
        cmocka_unit_test(test_job_refuses_fields),
        cmocka_unit_test(test_job_refuses_what_is_missing),
        cmocka_unit_test(test_learns),
        cmocka_unit_test(test_many_steps),
        cmocka_unit_test(test_resumed_equals_uninterrupted),
        cmocka_unit_test(test_seed_and_compute_change_the_bits),
        cmocka_unit_test(test_reads_weights),
        cmocka_unit_test(test_metrics_have_each_step_once),
        cmocka_unit_test(test_learning_rate),
        cmocka_unit_test(test_keeps_as_many_saves),
        cmocka_unit_test(test_keep_counts_from_the_newest),
        cmocka_unit_test(test_output_is_not_used_twice),
        cmocka_unit_test(test_output_is_locked),
        cmocka_unit_test(test_changed_job_is_refused),
        cmocka_unit_test(test_refused_before_the_start),
        cmocka_unit_test(test_too_little_text),
        cmocka_unit_test(test_stops_when_not_finite),
        cmocka_unit_test(test_stopped_before_the_first_step),
    };
    return cmocka_run_group_tests_name("run", tests, tiny_open, scratch_close);
}
