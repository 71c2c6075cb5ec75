// The coordinator: from a job and a cluster to ranks that run, and through to the end.
//
// Workers are asked for one thing at a time and all of them for the same: ready, built, done. Whatever goes wrong anywhere ends the
// run. When one rank fails the others soon fail because of it, so the error that is told is not the first that arrives but,
// of those that come within a moment, the first that is not about a peer.
#include "fleet/lead.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LOOK_MS = 100, GRACE_MS = 700, MOST_DEVICES = 1024 };

// ---- What comes in -------------------------------------------------------------------------------------------------

static const char *who(const struct gang_lead *l, int worker, char out[128]) {
    const struct gang_fleet_member *m = &l->members[worker];
    int width = m->rank >= 0 ? l->widths[m->rank % l->answer.layout.pp] : 1;
    if (width > 1)
        snprintf(out, 128, "rank %d (device %d of its %d) on %s", m->rank, m->tp_index, width, l->nodes[m->node]);
    else if (m->rank >= 0)
        snprintf(out, 128, "rank %d on %s", m->rank, l->nodes[m->node]);
    else
        snprintf(out, 128, "device %d on %s", worker, l->nodes[m->node]);
    return out;
}

static void note(struct gang_lead_failure *f, enum gang_status status, bool own, int64_t at_ns, const char *name, const char *text) {
    if (!f->status) f->until_ns = gang_os->now_ns() + (int64_t)GRACE_MS * 1000000;
    if (f->status && (f->own > own || (f->own == own && f->at_ns <= at_ns))) return;
    f->status = status;
    f->own = own;
    f->at_ns = at_ns;
    snprintf(f->text, sizeof f->text, "%s: %s", name, text);
}

static void note_failure(struct gang_lead *l, const struct gang_control_event *e) {
    struct gang_lead_failure *f = &l->failure;
    char name[128];
    if (e->kind == GANG_EVENT_NODE_LOST) {
        note(f, GANG_ERR_PEER, true, e->at_ns, "run", e->data);
    } else if (e->kind == GANG_EVENT_EXIT) {
        note(f, GANG_ERR_PEER, e->signal != 0, e->at_ns, who(l, e->worker, name), e->data);
    } else {
        json_t *body = NULL;
        if (gang_fleet_parse(e->data, e->bytes, &body)) return;
        const char *text = json_string_value(json_object_get(body, "error"));
        double status = gang_fleet_number(body, "status");
        bool own = status > GANG_OK && status < GANG_ERR_STOPPED;
        note(f, own ? (enum gang_status)status : GANG_ERR_PEER, own, e->at_ns, who(l, e->worker, name), text ? text : "failed");
        json_decref(body);
    }
}

static void record(struct gang_lead *l, const struct gang_fleet_step *s) {
    const struct gang_job *job = l->options->job;
    gang_job_record(l->output, &(struct gang_run_step){.step = s->step,
                                                       .steps = s->steps,
                                                       .loss = s->loss,
                                                       .gradient_norm = s->gradient_norm,
                                                       .rate = gang_job_rate(job, s->step),
                                                       .seconds = s->seconds,
                                                       .tokens_per_second = s->tokens_per_second,
                                                       .tokens = s->step * job->global_batch_tokens});
}

static void take_step(struct gang_lead *l, int worker, const json_t *body) {
    struct gang_fleet_member *m = &l->members[worker];
    struct gang_fleet_result *r = l->result;
    m->busy = gang_fleet_number(body, "busy");
    m->seconds = gang_fleet_number(body, "seconds");
    if (m->rank != 0 || m->tp_index != 0) return;
    double loss = gang_fleet_number(body, "loss");
    if (!r->steps_done) r->first_loss = loss;
    r->last_loss = loss;
    l->rates[r->steps_done++ % GANG_LEAD_RATES] = m->seconds;
    l->elapsed += m->seconds;
    struct gang_fleet_step s = {.step = l->first_step + r->steps_done,
                                .elapsed = l->elapsed,
                                .steps = l->steps,
                                .loss = loss,
                                .gradient_norm = gang_fleet_number(body, "norm"),
                                .seconds = m->seconds};
    s.tokens_per_second = (double)(l->task.global_batch * l->task.sequence_length) / s.seconds;
    s.fraction = l->answer.sim.step_seconds * (l->options->job ? 1 : l->options->slow) / s.seconds;
    for (int i = 0; i < l->count; i++)
        if (l->members[i].rank >= 0 && l->members[i].busy > s.slowest_busy) s.slowest = l->members[i].rank, s.slowest_busy = l->members[i].busy;
    s.slowest_busy /= s.seconds;
    s.left = s.elapsed / (double)r->steps_done * (double)(s.steps - s.step);
    if (l->options->job) record(l, &s);
    if (l->events->stepped) l->events->stepped(l->events->context, &s);
}

static enum gang_status take_ready(struct gang_lead *l, int worker, const json_t *body) {
    struct gang_fleet_member *m = &l->members[worker];
    const char *address = json_string_value(json_object_get(body, "address")), *about = json_string_value(json_object_get(body, "about"));
    const json_t *times = json_object_get(body, "times");
    if (!address) return gang_fail(GANG_ERR_FORMAT, "run: device %d is ready without an address", worker);
    m->address = gang_arena_strdup(l->arena, address);
    m->about = gang_arena_strdup(l->arena, about ? about : "");
    m->memory = gang_fleet_number(body, "memory");
    m->timed = times != NULL;
    return times ? gang_fleet_times_parse(times, &m->times) : GANG_OK;
}

static void take_measure(struct gang_lead *l) {
    if (!l->measuring && l->events->measuring) l->events->measuring(l->events->context, l->count);
    l->measuring = true;
}

// Whether this is ready, built or done from one that has not said so before.
static bool is_news(struct gang_lead *l, const struct gang_control_event *e) {
    struct gang_fleet_member *m = &l->members[e->worker];
    bool counts = e->type == FLEET_READY || (m->rank >= 0 && (e->type == FLEET_BUILT || e->type == FLEET_DONE));
    if (!counts || m->heard >= e->type) return false;
    m->heard = e->type;
    return true;
}

static enum gang_status take(struct gang_lead *l, const struct gang_control_event *e, bool news) {
    json_t *body = NULL;
    enum gang_status status = gang_fleet_parse(e->data, e->bytes, &body);
    if (status) return status;
    int rank = l->members[e->worker].rank;
    if (e->type == FLEET_MEASURE) take_measure(l);
    if (e->type == FLEET_READY && news) status = take_ready(l, e->worker, body);
    bool first = l->members[e->worker].tp_index == 0; // its memory and spans stand for all devices of the rank
    if (e->type == FLEET_BUILT && news && first) {
        l->result->said_bytes[rank] = gang_fleet_number(body, "memory");
        l->memory[rank] = (int64_t)fmin(fmax(l->result->said_bytes[rank], 0), 1e18);
    }
    if (e->type == FLEET_STEP && rank >= 0 && l->rates && (rank || l->first_step + l->result->steps_done < l->steps)) take_step(l, e->worker, body);
    if (e->type == FLEET_DONE && news && first) status = gang_lead_take_spans(l, rank, body);
    if (e->type == FLEET_SAVED) {
        const char *dir = json_string_value(json_object_get(body, "dir"));
        snprintf(l->result->saved, sizeof l->result->saved, "%s", dir ? dir : "");
        if (l->events->saved) l->events->saved(l->events->context, l->result->saved, (int64_t)gang_fleet_number(body, "step"));
    }
    json_decref(body);
    return status;
}

// To one that has ended: collect will hear why.
static enum gang_status say(struct gang_lead *l, int worker, enum gang_fleet_message type, const char *text) {
    enum gang_status status = gang_control_send(l->control, worker, type, text, strlen(text));
    return status == GANG_ERR_PEER ? GANG_OK : status;
}

static enum gang_status tell_ranks(struct gang_lead *l, enum gang_fleet_message type) {
    enum gang_status status = GANG_OK;
    for (int i = 0; i < l->count && !status; i++)
        if (l->members[i].rank >= 0) status = say(l, i, type, "{}");
    return status;
}

// Follows events until `wanted` workers have sent this message, and if something fails until the cause is known.
static enum gang_status collect(struct gang_lead *l, enum gang_fleet_message type, int wanted) {
    const struct gang_lead_failure *failure = &l->failure;
    bool told = false;
    enum gang_status status = GANG_OK;
    while ((wanted > 0 || failure->status) && !status) {
        struct gang_control_event e;
        status = gang_control_next(l->control, LOOK_MS, &e);
        if (failure->status && gang_os->now_ns() > failure->until_ns) return gang_fail(failure->status, "%s", failure->text);
        if (*l->stop && type != FLEET_DONE) return gang_fail(GANG_ERR_STOPPED, "stopped before the first step");
        if ((*l->stop || l->ending) && !told && !status) {
            status = tell_ranks(l, FLEET_STOP);
            told = true;
        }
        if (status || e.kind == GANG_EVENT_NONE) continue;
        if (e.kind == GANG_EVENT_NODE_ENDS && type != FLEET_DONE)
            return gang_fail(GANG_ERR_PEER, "run: before the first step: %s", (const char *)e.data);
        if (e.kind == GANG_EVENT_NODE_ENDS) {
            if (!l->ending) gang_log(GANG_LOG_WARNING, "%s: the run stops and saves", (const char *)e.data);
            l->ending = true;
        } else if (e.kind == GANG_EVENT_LOG) {
            if (l->events->log) l->events->log(l->events->context, e.node, e.worker, e.data);
        } else if (e.kind != GANG_EVENT_MESSAGE || e.type == FLEET_FAIL) {
            bool unused = e.kind == GANG_EVENT_EXIT && l->members[e.worker].gone;
            if (!unused) note_failure(l, &e);
        } else {
            bool news = is_news(l, &e);
            status = take(l, &e, news);
            wanted -= news && e.type == (uint32_t)type;
        }
    }
    return status;
}

// ---- From step to step ---------------------------------------------------------------------------------------------

static enum gang_status send_body(struct gang_lead *l, int worker, enum gang_fleet_message type, json_t *body) {
    char *text = json_dumps(body, JSON_COMPACT);
    enum gang_status status = say(l, worker, type, text);
    free(text);
    json_decref(body);
    return status;
}

// Ranks of one thread on this machine get cores of their own as long as there are enough.
static int core_for(const struct gang_lead *l, int worker) {
    int64_t threads = 0;
    for (int i = 0; i < l->count; i++) threads += l->members[i].group->threads;
    return l->options->job && l->local && threads == l->count ? gang_cpu_at(worker) : -1;
}

// NULL: the control's own choice.
static const char *listen_of(const struct gang_lead *l) {
    const struct gang_job *job = l->options->job;
    if (!job || l->local || !strcmp(job->coordinator, "auto")) return NULL;
    return gang_arena_printf(l->arena, strchr(job->coordinator, ':') ? "[%s]:0" : "%s:0", job->coordinator);
}

// What a site's agents start by. Slurm is asked for as many cores of a node as the devices of the fullest one take.
static struct gang_control_site site_of(const struct gang_lead *l, int s, int first_node) {
    const struct gang_site *site = gang_pool_site(l->pool, s);
    const struct gang_strings *given = &site->slurm_options;
    struct gang_control_site out = {.name = site->name,
                                    .launcher = l->options->job ? gang_fleet_launcher(site, l->options->launcher) : GANG_LAUNCH_LOCAL,
                                    .slurm_conf = *site->slurm_conf ? site->slurm_conf : NULL,
                                    .login = *site->login ? site->login : NULL};
    const struct gang_group *groups = site->groups.items;
    bool named = out.launcher != GANG_LAUNCH_SLURM; // else whichever the allocation has
    int64_t cores = 1;
    for (int g = 0; g < site->groups.count; g++) {
        out.node_count += (int)groups[g].nodes;
        named = named || groups[g].hosts.count;
        if (groups[g].devices * groups[g].threads > cores) cores = groups[g].devices * groups[g].threads;
    }
    if (named) out.nodes = l->nodes + first_node;
    const char **options = gang_arena_alloc(l->arena, (size_t)(given->count + 2) * sizeof *options);
    options[0] = gang_arena_printf(l->arena, "--cpus-per-task=%lld", (long long)cores);
    for (int i = 0; i < given->count; i++) options[i + 1] = given->items[i];
    out.slurm_options = options;
    return out;
}

// By the names that the nodes have given themselves.
static void rename_nodes(struct gang_lead *l) {
    for (int n = 0; n < l->node_count; n++) l->nodes[n] = gang_arena_strdup(l->arena, gang_control_node(l->control, n));
}

static enum gang_status start_workers(struct gang_lead *l) {
    static const char *const argv[] = {"", "rank", NULL};
    if (l->count > MOST_DEVICES) return gang_fail(GANG_ERR_UNSUPPORTED, "run: %d devices: at most %d of them run today", l->count, MOST_DEVICES);
    struct gang_control_worker *workers = gang_arena_alloc(l->arena, (size_t)l->count * sizeof *workers);
    struct gang_control_site *sites = gang_arena_alloc(l->arena, (size_t)l->pool->sites.count * sizeof *sites);
    for (int s = 0, n = 0; s < l->pool->sites.count; n += sites[s++].node_count) sites[s] = site_of(l, s, n);
    for (int i = 0; i < l->count; i++)
        workers[i] = (struct gang_control_worker){
            .node = l->members[i].node, .share = l->options->job ? l->members[i].group->share : 0, .cpu = core_for(l, i)};
    const struct gang_control_options options = {.site_count = l->pool->sites.count,
                                                 .sites = sites,
                                                 .worker_count = l->count,
                                                 .workers = workers,
                                                 .worker_argv = argv,
                                                 .listen = listen_of(l)};
    enum gang_status status = gang_control_open(&options, &l->control);
    if (!status) rename_nodes(l);
    for (int i = 0; i < l->count && !status; i++) status = send_body(l, i, FLEET_SETUP, gang_lead_setup(l, i));
    return status ? status : collect(l, FLEET_READY, l->count);
}

// Devices of a host have looked each for itself whether there is memory; here for all of them.
static enum gang_status check_hosts(const struct gang_lead *l) {
    for (int r = 0; r < l->ranks && l->options->job; r++) {
        const struct gang_fleet_member *m = gang_lead_member(l, r);
        double sum = 0;
        int count = 0;
        char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES];
        for (int i = 0; i < l->count; i++)
            if (l->members[i].rank >= 0 && gang_lead_same_host(l, &l->members[i], m)) sum += (double)l->memory[l->members[i].rank], count++;
        if (sum > m->memory)
            return gang_fail(
                GANG_ERR_MEMORY,
                "%s: its %d devices need %s together, %s are available: choose more stages on other hosts, recompute=full or a smaller mb "
                "in the layout",
                l->nodes[m->node], count, gang_human_bytes(sum, a), gang_human_bytes(m->memory, b));
    }
    return GANG_OK;
}

static enum gang_status assign(struct gang_lead *l) {
    enum gang_status status = l->local ? gang_fleet_relays_open(l->pool, l->options->job ? 1 : l->options->slow, &l->relays) : GANG_OK;
    for (int i = 0; i < l->count && !status; i++) {
        json_t *body = NULL;
        l->members[i].gone = l->members[i].rank < 0;
        if (l->members[i].gone) {
            status = say(l, i, FLEET_END, "{}");
            continue;
        }
        status = gang_lead_assignment(l, i, &body);
        if (!status) status = send_body(l, i, FLEET_ASSIGN, body);
    }
    if (!status) status = collect(l, FLEET_BUILT, l->devices);
    return status ? status : check_hosts(l);
}

// What runs today of what a pool may hold.
static enum gang_status check_kinds(const struct gang_lead *l) {
    for (int g = 0; g < l->pool->group_count && l->options->job; g++) {
        const struct gang_group *group = l->pool->groups[g];
        if (!gang_group_is_cpu(group))
            return gang_fail(
                GANG_ERR_UNSUPPORTED,
                "%s:%d: group '%s': devices of kind '%s' do not train yet, only processors do (device: cpu): 'gangline rehearse' runs the "
                "job with stand-ins for them",
                l->pool->path, group->place.line, group->name, group->device);
    }
    return GANG_OK;
}

// Tokenised once here, before many would want it; and what a run's directory needs.
static enum gang_status open_job(struct gang_lead *l, struct gang_job_output *output) {
    const struct gang_job *job = l->options->job;
    struct gang_config config;
    struct gang_tokenizer *tokenizer = NULL;
    struct gang_data *data = NULL;
    enum gang_status status = gang_job_config(job, &config);
    if (!status) status = gang_job_find_save(job, &config, l->options->resume, l->arena, &l->resume);
    if (!status && l->resume) status = gang_path_absolute(l->resume, l->arena, &l->resume);
    if (!status) status = gang_job_tokenizer(job, &config, &tokenizer);
    if (!status) status = gang_job_data(job, &config, tokenizer, NULL, NULL, &data);
    if (!status) status = gang_job_state(job, data, l->resume, &l->state);
    if (!status) status = gang_job_output_open(job, l->state.step, output);
    gang_fleet_sum(job->path, l->job_sum);
    gang_fleet_sum_model(job->model, l->model_sum);
    l->first_step = l->state.step;
    l->steps = job->steps;
    gang_data_free(data);
    gang_tokenizer_free(tokenizer);
    return status;
}

static void prepare_result(struct gang_lead *l) {
    struct gang_fleet_result *r = l->result;
    r->ranks = l->ranks;
    r->kinds = gang_arena_alloc(l->arena, (size_t)l->ranks * sizeof *r->kinds);
    r->peak_bytes = gang_arena_alloc(l->arena, (size_t)l->ranks * sizeof *r->peak_bytes);
    r->said_bytes = gang_arena_alloc(l->arena, (size_t)l->ranks * sizeof *r->said_bytes);
    l->rates = gang_arena_alloc(l->arena, GANG_LEAD_RATES * sizeof *l->rates);
}

static void tell_start(struct gang_lead *l, struct gang_fleet_start *out) {
    bool emulated = false;
    double slow = l->options->job ? 1 : l->options->slow;
    for (int i = 0; i < l->relays.count; i++) emulated |= l->relays.relay[i] != NULL;
    *out = (struct gang_fleet_start){.task = &l->task,
                                     .pool = l->pool,
                                     .answer = &l->answer,
                                     .device = l->device,
                                     .memory = l->memory,
                                     .measured = l->options->job != NULL,
                                     .emulated = emulated,
                                     .seconds = slow * l->answer.sim.step_seconds,
                                     .near_seconds = slow * gang_lead_near_seconds(l),
                                     .parts = l->pool->group_count > 1 ? gang_sum_of_parts(&l->task, l->pool, l->arena) / slow : 0};
    // The caller keeps what it needs of the run beyond our own life.
    struct gang_lead *kept = gang_arena_alloc(l->arena, sizeof *kept);
    *kept = *l;
    out->task = &kept->task;
    out->answer = &kept->answer;
    if (l->events->started) l->events->started(l->events->context, out);
}

static void read_relays(struct gang_lead *l) {
    for (int i = 0; i < l->relays.count; i++) {
        struct gang_relay_report report;
        if (!l->relays.relay[i]) continue;
        gang_relay_report(l->relays.relay[i], &report);
        double most = (double)(report.bytes[0] > report.bytes[1] ? report.bytes[0] : report.bytes[1]);
        if (most > l->result->link_bytes) l->result->link_bytes = most;
        l->result->link_seconds = gang_seconds() - l->relays.began;
    }
}

// Everybody may go; those that measured keep what they have learnt. Not where a cell's exchange is in what its ranks took.
static enum gang_status end_all(struct gang_lead *l) {
    enum gang_status status = GANG_OK;
    for (int i = 0; i < l->count && !status; i++) {
        const struct gang_fleet_member *m = &l->members[i];
        struct gang_times times;
        if (m->rank < 0) continue;
        json_t *body = json_object();
        if (m->timed && l->result->steps_done > 4 && l->widths[m->rank % l->answer.layout.pp] == 1) {
            gang_lead_learn(l, m->rank, &times);
            json_object_set_new(body, "times", gang_fleet_times_json(&times));
            json_object_set_new(body, "about", json_string(m->about));
        }
        status = send_body(l, i, FLEET_END, body);
    }
    return status;
}

static enum gang_status run(struct gang_lead *l, struct gang_fleet_start *start) {
    enum gang_status status = start_workers(l);
    if (!status) status = gang_lead_plan(l);
    if (status) return status;
    prepare_result(l);
    status = assign(l);
    if (status) return status;
    tell_start(l, start);
    status = tell_ranks(l, FLEET_GO);
    if (!status) status = collect(l, FLEET_DONE, l->devices);
    read_relays(l);
    if (status) return status;
    l->result->stopped = l->first_step + l->result->steps_done < l->steps;
    gang_lead_account(l);
    return end_all(l);
}

enum gang_status gang_fleet_run(const struct gang_fleet_options *options, const struct gang_fleet_events *events, const volatile int *stop,
                                struct gang_arena *arena, struct gang_fleet_start *start, struct gang_fleet_result *out) {
    struct gang_lead lead = {.options = options, .events = events, .stop = stop, .arena = arena, .result = out, .steps = options->steps};
    struct gang_job_output output = {.lock = -1};
    *out = (struct gang_fleet_result){0};
    gang_lead_line_up(&lead);
    lead.output = &output;
    enum gang_status status = check_kinds(&lead);
    if (!status) status = gang_lead_check(&lead);
    if (!status && options->job) status = open_job(&lead, &output);
    if (!status) status = run(&lead, start);
    char error[GANG_ERROR_BYTES];
    snprintf(error, sizeof error, "%s", gang_error());
    gang_control_close(lead.control);
    gang_fleet_relays_close(&lead.relays);
    gang_job_output_close(&output);
    return status ? gang_fail(status, "%s", error) : GANG_OK;
}

void gang_fleet_task(const struct gang_job *job, const struct gang_config *config, struct gang_task *out) {
    *out = (struct gang_task){.sequence_length = job->sequence_length,
                              .global_batch = job->global_batch_tokens / job->sequence_length,
                              .math = job->compute == GANG_COMPUTE_BF16 ? GANG_MATH_F16 : GANG_MATH_F32};
    gang_shape_from_config(config, &out->shape);
}
