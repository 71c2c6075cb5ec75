// tiny: a model, a text and jobs small enough to train in a blink. Include after "test.h" and "scratch.h".
#ifndef GANG_TINY_H
#define GANG_TINY_H

#include "train/train.h"

#include <jansson.h>

static const char *const tiny_config = "{\"model_type\": \"llama\", \"vocab_size\": 256, \"hidden_size\": 16, \"intermediate_size\": 24,"
                                       "\"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2,"
                                       "\"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";

// scratch/model.json, scratch/text.txt (15,000 bytes), and a cache of its own for the machine's profile.
static inline int tiny_open(void **state) {
    if (scratch_open(state)) return -1;
    setenv("XDG_CACHE_HOME", scratch_dir, 1);
    scratch_text("model.json", tiny_config);
    struct gang_buffer text = {0};
    for (int i = 0; text.len < 15000; i++) gang_buffer_printf(&text, "%d dogs of different strength, one pull. ", i);
    scratch_write("text.txt", text.data, 15000);
    gang_buffer_release(&text);
    return 0;
}

// A job over the tiny model that writes to scratch/NAME; `more` holds the lines that matter to the test.
static inline const char *tiny_job(const char *name, const char *more) {
    char file[64], text[2048];
    snprintf(file, sizeof file, "%s.yaml", name);
    snprintf(text, sizeof text, "model: model.json\ndata: text.txt\noutput: %s\nthreads: 2\nsequence_length: 16\n%s", name, more);
    return scratch_text(file, text);
}

// What a run told, and when it is to stop.
struct tiny_run {
    int64_t stop_at; // the step after which the user asks for an end; 0: never
    volatile int stop;
    int steps, saves;
    double losses[64], rates[64];
    bool fresh;
    struct gang_run_result result;
};

static inline void tiny_started(void *context, const struct gang_run_start *start) { ((struct tiny_run *)context)->fresh = start->fresh; }

static inline void tiny_stepped(void *context, const struct gang_run_step *step) {
    struct tiny_run *run = context;
    assert_in_range(run->steps, 0, 63);
    run->losses[run->steps] = step->loss;
    run->rates[run->steps++] = step->rate;
    run->stop = step->step == run->stop_at;
}

static inline void tiny_saved(void *context, const char *dir, int64_t step) {
    (void)dir, (void)step;
    ((struct tiny_run *)context)->saves++;
}

// Runs a job file until it is done, or until after step run->stop_at.
static inline enum gang_status tiny_train(const char *path, bool resume, struct tiny_run *run) {
    const struct gang_run_events events = {.context = run, .started = tiny_started, .stepped = tiny_stepped, .saved = tiny_saved};
    struct gang_arena arena;
    struct gang_job job;
    gang_arena_init(&arena);
    enum gang_status status = gang_job_read(path, &arena, &job);
    if (!status) status = gang_train_run(&job, resume, &events, &run->stop, &run->result);
    gang_arena_release(&arena);
    return status;
}

// Two files hold the same bytes.
static inline void tiny_same_file(const char *a, const char *b) {
    struct gang_buffer x = {0}, y = {0};
    assert_ok(gang_file_read(a, 1 << 24, &x));
    assert_ok(gang_file_read(b, 1 << 24, &y));
    if (x.len != y.len || memcmp(x.data, y.data, x.len) != 0) fail_msg("%s and %s differ", a, b);
    gang_buffer_release(&x);
    gang_buffer_release(&y);
}

// The newest saves of two runs hold the same weights and optimizer state, bit for bit.
static inline void tiny_same_save(const char *a, const char *b) {
    static const char *const files[] = {"model.safetensors", "optimizer.safetensors", "config.json", "state.json"};
    for (int i = 0; i < 4; i++) {
        char x[128], y[128];
        snprintf(x, sizeof x, "%s/latest/%s", a, files[i]);
        snprintf(y, sizeof y, "%s/latest/%s", b, files[i]);
        tiny_same_file(scratch_path(x), scratch_path(y));
    }
}

#endif
