// What a device is worth for a job: seconds of one layer and of the two ends, forward and both halves of backward, at the
// micro-batch sizes in question, by running them.
//
// A layer is measured as half of a chunk of two; an end as what a layer takes longer with it. Of many rounds the lower quartile
// counts: a busy neighbour only ever slows a round down. Of a device that has a share of a core the mean counts, over many of the
// kernel's periods: within one it runs at full speed or not at all.
#include "fleet/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS_LEAST = 5, ROUNDS_MOST = 200 };
static const double least_seconds = 0.3, least_shared_seconds = 0.6;

// A chunk with or without the ends, opened for a size.
struct piece {
    struct gang_model model;
    struct gang_net *net;
    void *in, *out, *gradient;
    int32_t *tokens;
    bool first, last;
    struct gang_arena arena;
};

struct seconds {
    double forward, input, weight, optimizer;
};

// Of four layers the first brings the embedding, the last the head, those between neither.
enum { LAYERS = 4 };

static enum gang_status open_piece(struct piece *p, const struct gang_config *config, struct gang_device *device, enum gang_compute message,
                                   int64_t batch, int64_t length, int layers, bool first, bool last) {
    int from = first ? 0 : last ? LAYERS - layers : 1;
    *p = (struct piece){.first = first, .last = last};
    gang_arena_init(&p->arena);
    bool *held = gang_arena_alloc(&p->arena, (size_t)config->layers * sizeof *held);
    for (int i = from; i < from + layers; i++) held[i] = true;
    gang_model_init_part(&p->model, config, &(struct gang_model_part){.layers = held, .embed = first, .head = last}, &p->arena);
    const struct gang_net_chunk chunk = {.from = from, .to = from + layers, .slots = 1};
    const struct gang_net_shape shape = {.batch = batch, .length = length, .chunk_count = 1, .chunks = &chunk, .split = true, .message = message};
    struct gang_memory memory;
    gang_net_memory(&p->model, device, &shape, &memory);
    enum gang_status status = gang_memory_check(&memory, "choose a smaller micro-batch (layout: mb=)");
    if (!status) status = gang_net_new(&p->model, device, &shape, &p->net);
    if (status) return status;
    gang_model_randomise(&p->model, 1, gang_net_parameters(p->net));
    gang_net_refresh(p->net);
    size_t bytes = gang_net_message_bytes(p->net);
    p->in = gang_arena_alloc(&p->arena, bytes);
    p->out = gang_arena_alloc(&p->arena, bytes);
    p->gradient = gang_arena_alloc(&p->arena, bytes);
    p->tokens = gang_arena_alloc(&p->arena, (size_t)(batch * (length + 1)) * sizeof *p->tokens);
    for (int64_t i = 0; i < batch * (length + 1); i++) p->tokens[i] = (int32_t)(gang_random_at(1, 2, (uint64_t)i) % (uint64_t)config->vocab_size);
    return GANG_OK;
}

static void close_piece(struct piece *p) {
    gang_net_free(p->net);
    gang_arena_release(&p->arena);
}

static void run_once(struct piece *p, struct seconds *out) {
    const struct gang_update update = {.rate = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .decay = 0.1, .step = 1};
    double t0 = gang_seconds();
    gang_net_forward(p->net, 0, 0, p->tokens, p->first ? NULL : p->in, p->last ? NULL : p->out);
    double t1 = gang_seconds();
    gang_net_backward(p->net, 0, 0, GANG_HALF_INPUT, 1e-4f, p->last ? NULL : p->out, p->first ? NULL : p->gradient, NULL);
    double t2 = gang_seconds();
    gang_net_backward(p->net, 0, 0, GANG_HALF_WEIGHT, 1e-4f, NULL, NULL, NULL);
    double t3 = gang_seconds();
    gang_net_adamw(p->net, 0, &update, 1);
    gang_net_refresh(p->net);
    *out = (struct seconds){t1 - t0, t2 - t1, t3 - t2, gang_seconds() - t3};
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double typical(int count, const struct seconds *rounds, size_t field, bool shared) {
    double work[ROUNDS_MOST], sum = 0;
    for (int i = 0; i < count; i++) sum += work[i] = *(const double *)((const char *)&rounds[i] + field);
    qsort(work, (size_t)count, sizeof *work, ascending);
    return shared ? sum / count : work[count / 4];
}

static void measure_piece(struct piece *p, bool shared, struct seconds *out) {
    struct seconds rounds[ROUNDS_MOST];
    int count = 0;
    gang_net_begin(p->net);
    run_once(p, &rounds[0]); // warms up
    for (double began = gang_seconds();
         count < ROUNDS_MOST && (count < ROUNDS_LEAST || gang_seconds() - began < (shared ? least_shared_seconds : least_seconds)); count++)
        run_once(p, &rounds[count]);
    *out = (struct seconds){
        typical(count, rounds, offsetof(struct seconds, forward), shared), typical(count, rounds, offsetof(struct seconds, input), shared),
        typical(count, rounds, offsetof(struct seconds, weight), shared), typical(count, rounds, offsetof(struct seconds, optimizer), shared)};
}

static enum gang_status measure_at(const struct gang_config *config, struct gang_device *device, bool shared, enum gang_compute message,
                                   int64_t length, int i, struct gang_times *t) {
    static const struct {
        int layers;
        bool first, last;
    } kinds[] = {{LAYERS - 2, false, false}, {1, true, false}, {1, false, true}};
    struct gang_config four = *config;
    four.layers = LAYERS;
    struct seconds s[3];
    double parameters = 1;
    enum gang_status status = GANG_OK;
    for (int k = 0; k < 3 && !status; k++) {
        struct piece p;
        int layers = kinds[k].layers;
        status = open_piece(&p, &four, device, message, t->size[i], length, layers, kinds[k].first, kinds[k].last);
        if (!status) measure_piece(&p, shared, &s[k]);
        if (k == 0 && !status) {
            parameters = (double)p.model.parameters;
            s[k].forward /= layers, s[k].input /= layers, s[k].weight /= layers;
        }
        close_piece(&p);
    }
    if (status) return status;
    t->forward[i] = s[0].forward, t->input[i] = s[0].input, t->weight[i] = s[0].weight;
    t->first_forward[i] = fmax(0, s[1].forward - s[0].forward);
    t->first_backward[i] = fmax(0, s[1].input + s[1].weight - s[0].input - s[0].weight);
    t->last_forward[i] = fmax(0, s[2].forward - s[0].forward);
    t->last_backward[i] = fmax(0, s[2].input + s[2].weight - s[0].input - s[0].weight);
    t->optimizer = s[0].optimizer / parameters;
    return GANG_OK;
}

enum gang_status gang_fleet_measure(const struct gang_config *config, struct gang_device *device, bool shared, enum gang_compute message,
                                    int64_t length, int count, const int64_t *sizes, struct gang_times *out) {
    *out = (struct gang_times){.count = count};
    enum gang_status status = GANG_OK;
    for (int i = 0; i < count && !status; i++) {
        out->size[i] = sizes[i];
        status = measure_at(config, device, shared, message, length, i, out);
    }
    return status;
}

// ---- Kept between runs ---------------------------------------------------------------------------------------------

char *gang_fleet_times_path(const char *about, struct gang_arena *arena) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (!(cache && *cache == '/')) cache = gang_arena_printf(arena, "%s/.cache", home ? home : "/tmp");
    return gang_arena_printf(arena, "%s/gangline/times-%016llx.json", cache, (unsigned long long)gang_hash(about, strlen(about), 0));
}

enum gang_status gang_fleet_times_keep(const char *about, const struct gang_times *times) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    char *path = gang_fleet_times_path(about, &arena), *slash = strrchr(path, '/');
    json_t *object = gang_fleet_times_json(times);
    json_object_set_new(object, "about", json_string(about));
    char *text = json_dumps(object, JSON_INDENT(2));
    *slash = 0;
    enum gang_status status = gang_mkdirs(path);
    *slash = '/';
    // Like devices of a host measure at the same time: each publishes a file of its own, and the last one stays.
    const char *own = gang_arena_printf(&arena, "%s.%d", path, (int)getpid());
    if (!status) status = gang_file_publish(own, text, strlen(text));
    if (!status && rename(own, path)) status = gang_fail_os("%s: cannot be renamed to %s", own, path);
    free(text);
    json_decref(object);
    gang_arena_release(&arena);
    return status;
}

bool gang_fleet_times_recall(const char *about, struct gang_times *out) {
    enum { MAX_BYTES = 1 << 16 };
    struct gang_arena arena;
    gang_arena_init(&arena);
    char *path = gang_fleet_times_path(about, &arena);
    json_t *object = NULL;
    bool good = gang_path_exists(path) && !gang_json_read(path, MAX_BYTES, &object);
    const char *said = json_string_value(json_object_get(object, "about"));
    good = good && said && !strcmp(said, about) && !gang_fleet_times_parse(object, out);
    json_decref(object);
    gang_arena_release(&arena);
    return good;
}
