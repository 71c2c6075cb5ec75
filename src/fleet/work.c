// The worker: a device of the run. It does what the coordinator says, in the order of enum gang_fleet_message.
#include "fleet/internal.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { MOST_WIDE = 4096, WAIT_MS = 1000, DEAD_MS = 15000, CONNECT_MS = 60000 };

// A rank's part of an assignment, out of its JSON.
struct assignment {
    int rank, tp_index, ranks, devices;
    int *widths; // [stages]
    struct gang_program program;
    uint16_t *layers;
    double *forward, *input, *weight, *parameters;
    struct gang_stand_in stand_in;
    json_t *body;
};

struct work {
    struct gang_worker *worker;
    struct gang_arena arena;
    json_t *setup;
    bool has_job;
    struct gang_job job;
    struct gang_config config;
    struct gang_device *device;
    struct gang_tokenizer *tokenizer;
    struct gang_data *data;
    struct gang_wire *wire;
    struct gang_wire_link **links;
    int *sites; // of every device of the run
    struct assignment assignment;
    struct gang_rank *rank;
    struct gang_state state;
    char *resume;
    double said_bytes;
    bool stop;
    double totals[GANG_OPS]; // seconds of the rank's own time by instruction, in all steps but the first
    int64_t counted;
};

// ---- Talking -------------------------------------------------------------------------------------------------------

static enum gang_status tell(struct work *w, enum gang_fleet_message type, json_t *body) {
    char *text = json_dumps(body, JSON_COMPACT);
    enum gang_status status = gang_worker_send(w->worker, type, text, strlen(text));
    free(text);
    json_decref(body);
    return status;
}

// The next message, which must be of this kind.
static enum gang_status await(struct work *w, enum gang_fleet_message type, json_t **body) {
    struct gang_worker_event event = {0};
    enum gang_status status = GANG_OK;
    // Who has done all its steps when the user asks for an end may hear of it late.
    while (!status && (!event.data || event.type == FLEET_STOP)) status = gang_worker_next(w->worker, WAIT_MS, &event);
    if (status) return status;
    if (event.type == FLEET_END && type != FLEET_END) return gang_fail(GANG_ERR_STOPPED, "rank: the coordinator has no use for this device");
    if (event.type != (uint32_t)type) return gang_fail(GANG_ERR_PEER, "rank: message %u from the coordinator: expected %d", event.type, type);
    return body ? gang_fleet_parse(event.data, event.bytes, body) : GANG_OK;
}

static int integer(const json_t *object, const char *key) { return (int)json_integer_value(json_object_get(object, key)); }
static const char *text(const json_t *object, const char *key) {
    const char *value = json_string_value(json_object_get(object, key));
    return value ? value : "";
}

// ---- What this device is -------------------------------------------------------------------------------------------

static enum gang_status open_device(struct work *w) {
    int threads = integer(w->setup, "threads"), cores = gang_cpu_count();
    if (threads > cores)
        return gang_fail(GANG_ERR_INPUT, "cluster: %d threads for a device where there are %d cores: choose threads: %d or fewer", threads, cores,
                         cores);
    const struct gang_device_options options = {.kind = "cpu",
                                                .compute = !strcmp(text(w->setup, "compute"), "bf16") ? GANG_COMPUTE_BF16 : GANG_COMPUTE_F32,
                                                .threads = integer(w->setup, "threads"),
                                                .instructions = *text(w->setup, "instructions") ? text(w->setup, "instructions") : NULL};
    return gang_device_open(&options, &w->device);
}

static enum gang_status check_same(const char *path, const char *sum, const char *expected) {
    if (!strcmp(sum, expected)) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT, "%s: on this host it is another file than where the run was started: give all hosts the same", path);
}

static enum gang_status read_job(struct work *w) {
    const char *path = text(w->setup, "job");
    char job_sum[17], model_sum[17];
    w->has_job = *path;
    if (!w->has_job) return GANG_OK;
    enum gang_status status = gang_job_read(path, &w->arena, &w->job);
    if (!status) status = gang_job_config(&w->job, &w->config);
    if (status) return status;
    gang_fleet_sum(path, job_sum);
    gang_fleet_sum_model(w->job.model, model_sum);
    status = check_same(path, job_sum, text(w->setup, "job_sum"));
    if (!status) status = check_same(w->job.model, model_sum, text(w->setup, "model_sum"));
    w->job.compute = integer(w->setup, "job_compute"); // what `auto` means where the run was started
    return status ? status : open_device(w);
}

// Everything that times depend on, in words; the key of those that are kept.
static const char *about_device(struct work *w) {
    const struct gang_config *c = &w->config;
    char processor[96] = "";
    gang_processor_name(processor, sizeof processor);
    return gang_arena_printf(&w->arena,
                             "%s, %s, %d threads, share %g of a core, %s, %d devices on the node; C %d F %d H %d/%d D %d V %d, T %d, sizes %s",
                             processor, w->device->name, w->device->threads, gang_fleet_number(w->setup, "share"), text(w->setup, "compute"),
                             integer(w->setup, "neighbours"), c->hidden_size, c->intermediate_size, c->heads, c->kv_heads, c->head_dim, c->vocab_size,
                             (int)w->job.sequence_length, text(w->setup, "sizes_text"));
}

static enum gang_status find_times(struct work *w, json_t *ready) {
    const json_t *sizes = json_object_get(w->setup, "sizes");
    int64_t size[GANG_TIMES_SIZES];
    struct gang_times times;
    int count = 0;
    for (size_t i = 0; i < json_array_size(sizes) && i < GANG_TIMES_SIZES; i++) size[count++] = json_integer_value(json_array_get(sizes, i));
    const char *about = about_device(w);
    enum gang_status status = GANG_OK;
    if (!gang_fleet_times_recall(about, &times)) {
        status = tell(w, FLEET_MEASURE, json_object());
        if (!status)
            status = gang_fleet_measure(&w->config, w->device, gang_fleet_number(w->setup, "share") > 0,
                                        integer(w->setup, "message") == 16 ? GANG_COMPUTE_BF16 : GANG_COMPUTE_F32, w->job.sequence_length, count,
                                        size, &times);
        if (!status && gang_fleet_times_keep(about, &times)) gang_log(GANG_LOG_WARNING, "measured times are not kept: %s", gang_error());
    }
    if (status) return status;
    json_object_set_new(ready, "times", gang_fleet_times_json(&times));
    json_object_set_new(ready, "about", json_string(about));
    return GANG_OK;
}

static enum gang_status get_ready(struct work *w) {
    enum gang_status status = await(w, FLEET_SETUP, &w->setup);
    if (!status) status = read_job(w);
    if (status) return status;
    json_t *ready = json_object();
    if (w->has_job) status = find_times(w, ready);
    char listen[GANG_ADDRESS_TEXT];
    if (!status) status = gang_worker_host(w->worker, listen);
    const struct gang_wire_options options = {.rank = gang_worker_number(w->worker),
                                              .listen = listen,
                                              .cluster = gang_worker_cluster(w->worker) + 1,
                                              .secret_path = json_is_true(json_object_get(w->setup, "secret")) ? gang_worker_secret_path(w->worker)
                                                                                                               : NULL,
                                              .dead_ms = DEAD_MS,
                                              .connect_ms = CONNECT_MS};
    if (!status) status = gang_wire_open(&options, &w->wire);
    if (status) {
        json_decref(ready);
        return status;
    }
    json_object_set_new(ready, "address", json_string(gang_wire_address(w->wire)));
    json_object_set_new(ready, "memory", json_real(gang_memory_available()));
    return tell(w, FLEET_READY, ready);
}

// ---- Its rank ------------------------------------------------------------------------------------------------------

// The devices of the ranks of each stage, and which of its own rank's this one is.
static enum gang_status read_widths(struct work *w) {
    struct assignment *a = &w->assignment;
    int stages = a->program.stages;
    double *widths = gang_arena_alloc(&w->arena, (size_t)stages * sizeof *widths);
    a->widths = gang_arena_alloc(&w->arena, (size_t)stages * sizeof *a->widths);
    enum gang_status status = gang_fleet_numbers(a->body, "widths", stages, widths);
    for (int s = 0; s < stages && !status; s++) {
        a->widths[s] = widths[s] >= 1 && widths[s] <= MOST_WIDE ? (int)widths[s] : 0;
        if (!a->widths[s]) status = gang_fail(GANG_ERR_FORMAT, "rank %d: stage %d on %g devices", a->rank, s, widths[s]);
    }
    if (status) return status;
    a->devices = gang_rank_device(&a->program, a->widths, a->ranks);
    a->tp_index = integer(a->body, "tp_index");
    if (a->tp_index >= 0 && a->tp_index < a->widths[a->rank % stages]) return GANG_OK;
    return gang_fail(GANG_ERR_FORMAT, "rank %d: device %d of %d", a->rank, a->tp_index, a->widths[a->rank % stages]);
}

static enum gang_status read_assignment(struct work *w) {
    struct assignment *a = &w->assignment;
    enum gang_status status = await(w, FLEET_ASSIGN, &a->body);
    if (status) return status;
    const char *program = text(a->body, "program");
    struct gang_program_facts facts;
    status = gang_program_parse("program", 1, program, strlen(program), &w->arena, &a->program);
    if (!status) status = gang_program_verify(&a->program, NULL, &w->arena, &facts);
    if (status) return status;
    a->rank = integer(a->body, "rank");
    a->ranks = a->program.replicas * a->program.stages;
    if (a->rank < 0 || a->rank >= a->ranks) return gang_fail(GANG_ERR_FORMAT, "rank %d of a program of %d ranks", a->rank, a->ranks);
    status = read_widths(w);
    if (status) return status;
    int chunks = a->program.chunks;
    double *layers = gang_arena_alloc(&w->arena, (size_t)chunks * sizeof *layers);
    a->layers = gang_arena_alloc(&w->arena, (size_t)chunks * sizeof *a->layers);
    status = gang_fleet_numbers(a->body, "layers", chunks, layers);
    for (int c = 0, sum = 0; c < chunks && !status; c++) {
        bool whole = layers[c] >= 0 && layers[c] <= UINT16_MAX;
        a->layers[c] = whole ? (uint16_t)layers[c] : 0;
        sum += a->layers[c];
        if (!whole || (w->has_job && c == chunks - 1 && sum != w->config.layers))
            status = gang_fail(GANG_ERR_FORMAT, "rank %d: the plan's layers are not those of %s: does this host have another model?", a->rank,
                               w->job.model);
    }
    if (w->has_job || status) return status;
    double **arrays[] = {&a->forward, &a->input, &a->weight, &a->parameters};
    static const char *const names[] = {"forward", "input", "weight", "parameters"};
    for (int i = 0; i < 4 && !status; i++) {
        *arrays[i] = gang_arena_alloc(&w->arena, (size_t)chunks * sizeof **arrays[i]);
        status = gang_fleet_numbers(a->body, names[i], chunks, *arrays[i]);
    }
    a->stand_in = (struct gang_stand_in){.forward = a->forward,
                                         .input = a->input,
                                         .weight = a->weight,
                                         .parameters = a->parameters,
                                         .optimizer = gang_fleet_number(a->body, "optimizer"),
                                         .message_bytes = gang_fleet_number(a->body, "message_bytes"),
                                         .spread = gang_fleet_number(a->body, "spread"),
                                         .slow = gang_fleet_number(a->body, "slow")};
    return status;
}

static enum gang_status join_links(struct work *w) {
    const struct assignment *a = &w->assignment;
    const json_t *workers = json_object_get(a->body, "workers"), *ways = json_object_get(a->body, "ways"),
                 *buffers = json_object_get(a->body, "buffers");
    enum gang_status status = GANG_OK;
    int me = gang_rank_device(&a->program, a->widths, a->rank) + a->tp_index, devices = a->devices;
    const json_t *sites = json_object_get(a->body, "sites");
    w->links = gang_arena_alloc(&w->arena, (size_t)devices * sizeof *w->links);
    w->sites = gang_arena_alloc(&w->arena, (size_t)devices * sizeof *w->sites);
    for (int i = 0; i < devices; i++) {
        w->sites[i] = (int)json_integer_value(json_array_get(sites, (size_t)i));
        if (w->sites[i] < 0 || w->sites[i] >= GANG_MAX_SITES) return gang_fail(GANG_ERR_FORMAT, "rank %d: site %d is none", a->rank, w->sites[i]);
    }
    for (int i = 0; i < devices && !status; i++) {
        if (!gang_rank_talks_to(&a->program, a->widths, me, i)) continue;
        const struct gang_wire_plane plane = {.remote = json_string_value(json_array_get(ways, (size_t)i))};
        const struct gang_wire_link_options options = {.peer = (int)json_integer_value(json_array_get(workers, (size_t)i)),
                                                       .planes = 1,
                                                       .plane = me < i ? &plane : NULL,
                                                       .buffer_bytes = (size_t)json_number_value(json_array_get(buffers, (size_t)i))};
        if (me < i && !plane.remote) return gang_fail(GANG_ERR_FORMAT, "rank %d: no way to device %d", a->rank, i);
        status = gang_wire_join(w->wire, &options, &w->links[i]);
    }
    return status;
}

// Where the run was started the output directory was made, with a copy of the job; rank 0 writes the saves.
static enum gang_status check_output(const struct work *w) {
    char path[4096];
    snprintf(path, sizeof path, "%s/job.yaml", w->job.output);
    if (w->assignment.rank > 0 || w->assignment.tp_index > 0 || gang_path_exists(path)) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT,
                     "%s: not there on this host, where rank 0 would write the saves: share it between this host and the one where the run was "
                     "started, or name this site later in the cluster file",
                     w->job.output);
}

static enum gang_status open_data(struct work *w) {
    const struct assignment *a = &w->assignment;
    int stage = a->rank % a->program.stages;
    if (!w->has_job || (stage > 0 && stage < a->program.stages - 1)) return GANG_OK;
    enum gang_status status = gang_job_tokenizer(&w->job, &w->config, &w->tokenizer);
    if (!status) status = gang_job_data(&w->job, &w->config, w->tokenizer, NULL, NULL, &w->data);
    if (!status) status = gang_job_state(&w->job, w->data, w->resume, &w->state);
    if (status) return status;
    if (json_integer_value(json_object_get(a->body, "data_tokens")) != w->state.data_tokens ||
        json_integer_value(json_object_get(a->body, "data_checksum")) != w->state.data_checksum)
        return gang_fail(GANG_ERR_INPUT, "%s: on this host the data are others than where the run was started: give all hosts the same",
                         w->job.data.items[0]);
    return check_output(w);
}

static enum gang_status load(struct work *w) {
    if (w->resume) return gang_rank_weights(w->rank, w->resume, true);
    bool has = w->has_job && w->job.weights == GANG_WEIGHTS_AUTO && gang_path_is_dir(w->job.model) && gang_model_has_weights(w->job.model);
    return gang_rank_weights(w->rank, has ? w->job.model : NULL, false);
}

static enum gang_status build(struct work *w) {
    enum gang_status status = read_assignment(w);
    if (status) return status;
    const struct assignment *a = &w->assignment;
    const char *resume = text(a->body, "resume");
    if (*resume) w->resume = gang_arena_strdup(&w->arena, resume);
    w->state.step = integer(a->body, "first_step");
    status = join_links(w);
    if (!status) status = open_data(w);
    const struct gang_rank_options options = {.program = &a->program,
                                              .rank = a->rank,
                                              .widths = a->widths,
                                              .tp = a->widths[a->rank % a->program.stages],
                                              .tp_index = a->tp_index,
                                              .sequence_parallel = json_is_true(json_object_get(a->body, "sequence_parallel")),
                                              .layers = a->layers,
                                              .length = integer(a->body, "length"),
                                              .sharded = json_is_true(json_object_get(a->body, "sharded")),
                                              .recompute = json_is_true(json_object_get(a->body, "recompute")),
                                              .message = integer(w->setup, "message") == 16 ? GANG_COMPUTE_BF16 : GANG_COMPUTE_F32,
                                              .wire = w->wire,
                                              .links = w->links,
                                              .sites = w->sites,
                                              .seed = (uint64_t)w->job.seed,
                                              .data = w->data,
                                              .config = w->has_job ? &w->config : NULL,
                                              .device = w->device,
                                              .stand_in = w->has_job ? NULL : &a->stand_in};
    struct gang_rank_memory memory;
    gang_rank_memory(&options, &memory);
    memory.net.workspace += memory.messages;
    memory.net.total += memory.messages;
    if (!status) status = gang_memory_check(&memory.net, "choose more stages, recompute=full or a smaller mb in the layout");
    if (w->device) gang_device_rest(w->device); // after measuring
    gang_resident_reset();
    w->said_bytes = gang_resident_bytes("VmRSS") + (double)memory.total;
    if (!status) status = gang_rank_new(&options, &w->rank);
    if (!status) status = load(w);
    return status ? status : tell(w, FLEET_BUILT, json_pack("{s:f}", "memory", w->said_bytes));
}

// ---- Steps ---------------------------------------------------------------------------------------------------------

static enum gang_status save(struct work *w, bool last) {
    char saved[512] = "";
    if (!w->has_job) return GANG_OK;
    enum gang_status status = gang_rank_save(w->rank, w->job.output, &w->state, w->tokenizer ? gang_tokenizer_path(w->tokenizer) : NULL,
                                             (int)w->job.keep, saved, sizeof saved);
    if (status && status != GANG_ERR_PEER && !last) {
        gang_log(GANG_LOG_WARNING, "step %lld is not saved, training goes on: %s", (long long)w->state.step, gang_error());
        return GANG_OK;
    }
    if (status || !*saved) return status;
    return tell(w, FLEET_SAVED, json_pack("{s:s, s:I}", "dir", saved, "step", (json_int_t)w->state.step));
}

// The first steps count only where no others follow.
static void count_spans(struct work *w, int64_t done) {
    size_t count;
    const struct gang_span *spans = gang_rank_spans(w->rank, &count);
    if (done == WARM_STEPS) {
        memset(w->totals, 0, sizeof w->totals);
        w->counted = 0;
    }
    for (size_t i = 0; i < count; i++) {
        // What the lane does beside the computing is no part of it.
        bool beside = (spans[i].op == GANG_OP_REDUCE || spans[i].op == GANG_OP_GATHER) && spans[i].chunk >= 0;
        if (!beside) w->totals[spans[i].op] += spans[i].end - spans[i].start;
    }
    w->counted++;
}

static struct gang_update update_of(const struct work *w) {
    const struct gang_job *job = &w->job;
    int64_t step = w->state.step + 1;
    if (!w->has_job) return (struct gang_update){.step = step};
    return (struct gang_update){.rate = gang_job_rate(job, step),
                                .beta1 = job->beta1,
                                .beta2 = job->beta2,
                                .epsilon = job->epsilon,
                                .decay = job->weight_decay,
                                .clip = job->gradient_clip,
                                .step = step};
}

static enum gang_status look_for_stop(struct work *w) {
    struct gang_worker_event event;
    enum gang_status status = gang_worker_next(w->worker, 0, &event);
    if (!status && event.data && event.type == FLEET_STOP) w->stop = true;
    return status;
}

static enum gang_status one_step(struct work *w, int64_t done, bool *stop) {
    struct gang_rank_report report;
    const struct gang_update update = update_of(w);
    enum gang_status status = gang_rank_step(w->rank, &update, w->stop, &report);
    if (status) return status;
    if (!isfinite(report.loss) || !isfinite(report.gradient_norm))
        return gang_fail(
            GANG_ERR_INPUT,
            "step %lld: loss %g and gradient norm %g are not finite: the last save is kept as it was; lower learning_rate, or check the data",
            (long long)update.step, report.loss, report.gradient_norm);
    w->state.step++;
    w->state.tokens += w->job.global_batch_tokens;
    count_spans(w, done);
    *stop = report.stop;
    return tell(w, FLEET_STEP,
                json_pack("{s:I, s:f, s:f, s:f, s:f}", "step", (json_int_t)w->state.step, "loss", report.loss, "norm", report.gradient_norm,
                          "seconds", report.seconds, "busy", report.busy));
}

// The last step's spans, the mean step by instruction, and the most memory so far.
static json_t *account(struct work *w) {
    size_t count;
    double means[GANG_OPS] = {0};
    const struct gang_span *spans = gang_rank_spans(w->rank, &count);
    json_t *rows = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(rows, json_pack("[i, i, i, f, f]", spans[i].op, spans[i].chunk, spans[i].micro, spans[i].start, spans[i].end));
    for (int op = 0; op < GANG_OPS && w->counted; op++) means[op] = w->totals[op] / (double)w->counted;
    return json_pack("{s:o, s:o, s:f}", "spans", rows, "means", gang_fleet_array(GANG_OPS, means), "peak", gang_resident_bytes("VmHWM"));
}

static enum gang_status run_steps(struct work *w) {
    int64_t steps = w->has_job ? w->job.steps : integer(w->assignment.body, "steps"), every = w->job.save_every, saved = w->state.step;
    bool stop = false;
    enum gang_status status = await(w, FLEET_GO, NULL);
    for (int64_t done = 0; w->state.step < steps && !stop && !status; done++) {
        status = look_for_stop(w);
        if (!status) status = one_step(w, done, &stop);
        if (!status && every && w->state.step % every == 0 && w->state.step < steps && !stop) {
            status = save(w, false);
            saved = w->state.step;
        }
    }
    if (status) return status;
    json_t *body = account(w); // before the save, which takes memory of its own
    if (w->state.step > saved) status = save(w, true);
    if (!status) return tell(w, FLEET_DONE, body);
    json_decref(body);
    return status;
}

// ---- From the first message to the last ----------------------------------------------------------------------------

// What the run has taught about this device is kept for the next plan.
static enum gang_status learn(struct work *w) {
    json_t *body = NULL;
    struct gang_times times;
    enum gang_status status = await(w, FLEET_END, &body);
    const json_t *learnt = json_object_get(body, "times");
    if (!status && learnt) {
        const char *about = text(body, "about");
        status = gang_fleet_times_parse(learnt, &times);
        if (!status && gang_fleet_times_keep(about, &times)) gang_log(GANG_LOG_WARNING, "measured times are not kept: %s", gang_error());
    }
    json_decref(body);
    return status;
}

static enum gang_status live(struct work *w) {
    enum gang_status status = get_ready(w);
    if (!status) status = build(w);
    if (!status) status = run_steps(w);
    // Nobody's links go before all are done.
    if (!status) status = learn(w);
    return status == GANG_ERR_STOPPED ? GANG_OK : status;
}

static void close_all(struct work *w) {
    if (w->rank) gang_rank_stop(w->rank);
    if (w->wire) gang_wire_close(w->wire);
    gang_rank_free(w->rank);
    gang_device_close(w->device);
    gang_data_free(w->data);
    gang_tokenizer_free(w->tokenizer);
    json_decref(w->assignment.body);
    json_decref(w->setup);
    gang_arena_release(&w->arena);
}

enum gang_status gang_fleet_work(bool *told) {
    struct work w = {0};
    *told = false;
    gang_arena_init(&w.arena);
    signal(SIGTERM, SIG_IGN); // Slurm sends it to all of a job: the coordinator says when to save and end
    enum gang_status status = gang_worker_join(&w.worker);
    if (status) return status;
    status = live(&w);
    if (status) {
        // The lane may hang in an exchange with ranks that are gone: the process ends, and nothing is taken apart.
        char error[GANG_ERROR_BYTES];
        snprintf(error, sizeof error, "%s", gang_error());
        *told = !tell(&w, FLEET_FAIL, json_pack("{s:s, s:i}", "error", error, "status", (int)status));
        gang_worker_leave(w.worker);
        return gang_fail(status, "%s", error);
    }
    close_all(&w);
    gang_worker_leave(w.worker);
    return GANG_OK;
}
