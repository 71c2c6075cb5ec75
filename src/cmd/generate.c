// gangline generate: what a trained model says.
#include "cmd/cmd.h"
#include "train/train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct speaker {
    struct gang_arena arena;
    struct gang_config config;
    struct gang_model model;
    struct gang_tokenizer *tokenizer;
    struct gang_device *device;
    struct gang_net *net;
    struct gang_ids ids; // the prompt, then what was generated
};

struct request {
    const char *prompt;
    int64_t tokens, threads, compute;
    struct gang_sampling sampling;
};

static void take(void *net, int from, int to) { gang_net_take(net, from, to); }

static enum gang_status open_speaker(struct speaker *s, const char *path, const struct request *request) {
    char *dir;
    gang_arena_init(&s->arena);
    enum gang_status status = gang_save_resolve(path, &s->arena, &dir);
    if (!status) status = gang_config_read(dir, &s->config);
    if (status) return status;
    const char *tokenizer = gang_arena_printf(&s->arena, "%s/tokenizer.json", dir);
    status = gang_tokenizer_open(gang_path_exists(tokenizer) ? tokenizer : NULL, &s->tokenizer);
    if (!status) status = gang_encode(s->tokenizer, request->prompt, strlen(request->prompt), true, &s->ids);
    if (!status && !s->ids.count) status = gang_fail(GANG_ERR_INPUT, "generate: the prompt is empty: give at least one character");
    int64_t length = (int64_t)s->ids.count + request->tokens;
    if (!status && length > s->config.max_positions)
        status = gang_fail(
            GANG_ERR_INPUT,
            "generate: %zu tokens of prompt and %lld to generate are more than the model's %d positions: give --tokens or a shorter prompt",
            s->ids.count, (long long)request->tokens, s->config.max_positions);
    for (size_t i = 0; !status && i < s->ids.count; i++)
        if (s->ids.items[i] >= s->config.vocab_size)
            status = gang_fail(GANG_ERR_INPUT, "generate: token %d of the prompt is beyond the model's vocabulary of %d", (int)s->ids.items[i],
                               s->config.vocab_size);
    if (!status)
        status = gang_device_open(
            &(struct gang_device_options){.kind = "cpu", .compute = (enum gang_compute)request->compute, .threads = (int)request->threads},
            &s->device);
    if (status) return status;
    gang_model_init(&s->model, &s->config, &s->arena);
    const struct gang_net_shape shape = {.batch = 1, .length = length, .inference = true};
    struct gang_memory memory;
    gang_net_memory(&s->model, s->device, &shape, &memory);
    status = gang_memory_check(&memory, "choose a smaller model or fewer --tokens");
    if (!status) status = gang_net_new(&s->model, s->device, &shape, &s->net);
    const struct gang_load_hook hook = {take, s->net};
    if (!status) status = gang_model_load(&s->model, dir, gang_net_parameters(s->net), &hook);
    return status;
}

static void close_speaker(struct speaker *s) {
    gang_net_free(s->net);
    gang_device_close(s->device);
    gang_tokenizer_free(s->tokenizer);
    gang_ids_release(&s->ids);
    gang_arena_release(&s->arena);
}

static enum gang_status print_token(struct speaker *s, int32_t id) {
    struct gang_buffer text = {0};
    enum gang_status status = GANG_OK;
    // A model may have more rows than its tokenizer has ids; those say nothing.
    if (id < gang_tokenizer_vocab(s->tokenizer)) status = gang_decode(s->tokenizer, &id, 1, false, &text);
    if (text.len) fwrite(text.data, 1, text.len, stdout);
    fflush(stdout);
    gang_buffer_release(&text);
    return status;
}

// Bytes that must be read for one token: every linear weight once, and the keys and values so far.
static double bytes_per_token(const struct speaker *s, int64_t past) {
    const struct gang_config *c = &s->config;
    double act = (double)gang_device_act_bytes(s->device), weights = 0;
    for (int i = 0; i < s->model.count; i++) {
        const struct gang_tensor *t = &s->model.tensors[i];
        if (!gang_tensor_is_norm(t) && (t->role != GANG_ROLE_EMBED || c->tied)) weights += (double)(t->rows * t->cols);
    }
    return act * (weights + 2.0 * c->layers * c->kv_heads * c->head_dim * (double)past);
}

static enum gang_status speak(struct speaker *s, const struct request *request, bool quiet) {
    int64_t V = s->config.vocab_size, prompt = (int64_t)s->ids.count, made = 0;
    struct gang_candidate *work = gang_arena_alloc(&s->arena, (size_t)V * sizeof *work);
    double began = gang_seconds(), decoding = 0;
    const float *logits = gang_net_feed(s->net, s->ids.items, prompt);
    double prompt_seconds = gang_seconds() - began;
    enum gang_status status = GANG_OK;
    while (!status && made < request->tokens && !gang_interrupted) {
        int32_t id = gang_sample(logits, V, &request->sampling, (uint64_t)made, work);
        if (id == s->config.eos_token && gang_tokenizer_path(s->tokenizer)) break;
        status = print_token(s, id);
        made++;
        if (made == request->tokens) break;
        double at = gang_seconds();
        logits = gang_net_feed(s->net, &id, 1);
        decoding += gang_seconds() - at;
    }
    printf("\n");
    if (status || quiet || made < 2) return status;
    double rate = (double)(made - 1) / decoding;
    fflush(stdout);
    fprintf(stderr, "\n  %lld tokens of prompt in %.2f s; %lld generated, %.1f tokens/s, %.1f GB/s of weights and cache\n", (long long)prompt,
            prompt_seconds, (long long)made, rate, rate * bytes_per_token(s, prompt + made / 2) / 1e9);
    return status;
}

static int run_generate(int argc, char **argv) {
    const char *plain[2] = {NULL, NULL}, *tokens = "128", *temperature = "0.8", *top_p = "0.95", *seed = "1", *compute = "auto", *threads = "0";
    bool quiet = false;
    const struct gang_option options[] = {{"--tokens", &tokens, NULL}, {"--temperature", &temperature, NULL}, {"--top-p", &top_p, NULL},
                                          {"--seed", &seed, NULL},     {"--compute", &compute, NULL},         {"--threads", &threads, NULL},
                                          {"--quiet", NULL, &quiet}};
    int code = gang_options(&gang_command_generate, argc, argv, options, 7, 2, 2, plain);
    if (code >= 0) return code;
    struct request request = {.prompt = plain[1]};
    int64_t seed_value = 0;
    enum gang_status status = gang_parse_int("generate: --tokens", tokens, 1, 1 << 24, &request.tokens);
    if (!status) status = gang_parse_real("generate: --temperature", temperature, 0, 100, &request.sampling.temperature);
    if (!status) status = gang_parse_real("generate: --top-p", top_p, 0, 1, &request.sampling.top_p);
    if (!status) status = gang_parse_int("generate: --seed", seed, 0, INT64_MAX, &seed_value);
    if (!status) status = gang_parse_int("generate: --threads", threads, 0, 1024, &request.threads);
    if (!status && strcmp(compute, "auto") != 0 && strcmp(compute, "f32") != 0 && strcmp(compute, "bf16") != 0)
        status = gang_fail(GANG_ERR_INPUT, "generate: --compute: '%s' is unknown: expected auto, f32 or bf16", compute);
    if (status) {
        gang_report(status);
        return EXIT_USAGE;
    }
    request.sampling.seed = (uint64_t)seed_value;
    // Half the bytes, so twice the speed, where the processor has what bf16 takes.
    request.compute = !strcmp(compute, "bf16") || (!strcmp(compute, "auto") && gang_cpu_has_bf16()) ? GANG_COMPUTE_BF16 : GANG_COMPUTE_F32;
    gang_catch_interrupts();
    struct speaker speaker = {0};
    status = open_speaker(&speaker, plain[0], &request);
    if (!status && !quiet) printf("%s", request.prompt);
    if (!status) status = speak(&speaker, &request, quiet);
    close_speaker(&speaker);
    return gang_report(status);
}

const struct gang_command gang_command_generate = {
    .name = "generate",
    .arguments = "DIR PROMPT",
    .summary = "Continue a text with a trained model",
    .run = run_generate,
    .help = "DIR is a Hugging Face directory of the Llama family, or the output directory of a run (its newest save).\n\n"
            "  --tokens N        how many to generate (128)\n"
            "  --temperature X   0: always the most likely token (0.8)\n"
            "  --top-p X         only the most likely tokens that make up this probability (0.95)\n"
            "  --seed N          the same seed gives the same text (1)\n"
            "  --compute TYPE    f32, bf16, or auto: bf16 where the processor has it (auto)\n"
            "  --threads N       0: all cores this process may use (0)\n"
            "  --quiet           only what was generated\n\n"
            "example: gangline generate examples/demo/run \"In the beginning\" --tokens 200\n",
};
