// From devices to a plan, and from the plan to what every rank is told.
#include "fleet/lead.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- The line of devices -------------------------------------------------------------------------------------------

static bool computes_bf16(const struct gang_lead *l, const struct gang_group *g) {
    if (g->compute != GANG_GROUP_COMPUTE_JOB) return g->compute == GANG_GROUP_COMPUTE_BF16;
    return l->options->job && l->options->job->compute == GANG_COMPUTE_BF16;
}

// Groups get kinds of their own, so that measured times have a place.
static void copy_pool(struct gang_lead *l) {
    const struct gang_pool *from = l->options->pool;
    l->pool = gang_arena_alloc(l->arena, sizeof *l->pool);
    *l->pool = *from;
    l->pool->groups = gang_arena_alloc(l->arena, (size_t)from->group_count * sizeof *l->pool->groups);
    for (int g = 0; g < from->group_count; g++) {
        struct gang_kind *kind = gang_arena_alloc(l->arena, sizeof *kind);
        *kind = *from->groups[g]->kind;
        l->pool->groups[g] = gang_arena_alloc(l->arena, sizeof *l->pool->groups[g]);
        *l->pool->groups[g] = *from->groups[g];
        l->pool->groups[g]->kind = kind;
        l->pool->groups[g]->host_memory = 0; // nothing is offloaded yet: the search shall not choose it
    }
}

// By the group's hosts where it names them, else by the group's own name.
static void name_nodes(struct gang_lead *l) {
    l->nodes = gang_arena_alloc(l->arena, (size_t)l->node_count * sizeof *l->nodes);
    for (int i = 0, k = 0; i < l->count; i++) {
        const struct gang_fleet_member *m = &l->members[i];
        const struct gang_group *g = m->group;
        if (i && l->members[i - 1].node == m->node) continue;
        k = i && l->members[i - 1].group == g ? k + 1 : 0;
        l->nodes[m->node] = k < g->hosts.count ? g->hosts.items[k] : g->nodes > 1 ? gang_arena_printf(l->arena, "%s-%d", g->name, k + 1) : g->name;
    }
}

void gang_lead_line_up(struct gang_lead *l) {
    copy_pool(l);
    l->task = *l->options->task;
    l->task.gathers_f32 = true;
    l->count = (int)l->pool->devices;
    l->members = gang_arena_alloc(l->arena, (size_t)l->count * sizeof *l->members);
    l->message_f32 = true;
    l->local = true;
    for (int s = 0; s < l->pool->sites.count && l->options->job; s++)
        l->local = l->local && gang_fleet_launcher(gang_pool_site(l->pool, s), l->options->launcher) == GANG_LAUNCH_LOCAL;
    for (int i = 0; i < l->count; i++) {
        struct gang_fleet_member *m = &l->members[i];
        m->group = gang_fleet_group(l->pool, i, &m->node);
        m->rank = -1;
        if (m->node + 1 > l->node_count) l->node_count = m->node + 1;
        if (computes_bf16(l, m->group)) l->message_f32 = false;
    }
    if (l->options->job) l->task.math = l->message_f32 ? GANG_MATH_F32 : GANG_MATH_F16;
    name_nodes(l);
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

// Micro-batch sizes that a plan may choose: those that divide the batch, up to 8 samples; or those that the layout names.
static int sizes_of(const struct gang_lead *l, int64_t *size) {
    enum { MOST = 8 };
    int count = 0;
    const struct gang_layout *given = l->options->layout;
    if (given) {
        int64_t named[GANG_MAX_REPLICA_KINDS];
        int kinds = given->size_count ? given->size_count : 1;
        for (int k = 0; k < kinds; k++) named[k] = gang_layout_size(given, k);
        qsort(named, (size_t)kinds, sizeof *named, ascending);
        for (int k = 0; k < kinds; k++)
            if (!k || named[k] != named[k - 1]) size[count++] = named[k];
        return count;
    }
    for (int64_t b = 1; b <= MOST && b <= l->task.global_batch; b *= 2)
        if (l->task.global_batch % b == 0) size[count++] = b;
    return count;
}

json_t *gang_lead_setup(const struct gang_lead *l, int worker) {
    const struct gang_fleet_member *m = &l->members[worker];
    int64_t size[GANG_TIMES_SIZES];
    int count = sizes_of(l, size), neighbours = 0;
    json_t *sizes = json_array();
    struct gang_buffer text = {0};
    for (int i = 0; i < count; i++) {
        json_array_append_new(sizes, json_integer(size[i]));
        gang_buffer_printf(&text, "%s%lld", i ? "/" : "", (long long)size[i]);
    }
    for (int i = 0; i < l->count; i++) neighbours += gang_lead_same_host(l, &l->members[i], m);
    json_t *body = json_pack("{s:s, s:i, s:f, s:s, s:s, s:i, s:i, s:o, s:s, s:b}", "job", l->options->job ? l->options->job->path : "", "threads",
                             (int)m->group->threads, "share", m->group->share, "instructions", m->group->instructions ? m->group->instructions : "",
                             "compute", computes_bf16(l, m->group) ? "bf16" : "f32", "message", l->message_f32 ? 32 : 16, "neighbours", neighbours,
                             "sizes", sizes, "sizes_text", text.data, "secret", !l->local);
    gang_buffer_release(&text);
    if (l->options->job)
        json_object_update_new(
            body, json_pack("{s:s, s:s, s:i}", "job_sum", l->job_sum, "model_sum", l->model_sum, "job_compute", l->options->job->compute));
    return body;
}

// ---- The plan ------------------------------------------------------------------------------------------------------

static double *times_field(struct gang_times *t, int field) {
    double *const fields[] = {t->forward, t->input, t->weight, t->first_forward, t->first_backward, t->last_forward, t->last_backward};
    return field < 7 ? fields[field] : NULL;
}

// The mean of a group's devices; its peak is what its layers reach at their best size, so that nothing here is a data sheet's.
static void settle_kind(struct gang_lead *l, struct gang_group *group) {
    struct gang_times *times = gang_arena_alloc(l->arena, sizeof *times);
    struct gang_kind *kind = (struct gang_kind *)group->kind;
    int n = 0, on_host = 0;
    double memory = INFINITY;
    for (int i = 0; i < l->count; i++) {
        struct gang_fleet_member *m = &l->members[i];
        if (m->group != group || !m->timed) continue;
        on_host = 0;
        for (int k = 0; k < l->count; k++) on_host += gang_lead_same_host(l, m, &l->members[k]);
        if (!n++) *times = (struct gang_times){.count = m->times.count};
        memcpy(times->size, m->times.size, sizeof times->size);
        for (int f = 0; f < 7; f++)
            for (int s = 0; s < times->count; s++) times_field(times, f)[s] += times_field(&m->times, f)[s];
        times->optimizer += m->times.optimizer;
        memory = fmin(memory, m->memory);
    }
    if (!n) return;
    for (int f = 0; f < 7; f++)
        for (int s = 0; s < times->count; s++) times_field(times, f)[s] /= n;
    times->optimizer /= n;
    double best = 0, flops = gang_shape_layer_flops(&l->task.shape, false, l->task.sequence_length) * (double)l->task.sequence_length;
    for (int s = 0; s < times->count; s++)
        best = fmax(best, 3 * flops * (double)times->size[s] / (times->forward[s] + times->input[s] + times->weight[s]));
    kind->times = times;
    kind->memory_bytes = memory / on_host;
    for (int m = 0; m < GANG_MATHS; m++) kind->peak[m] = best, kind->reach[m] = 1;
    kind->attention_reach = 1;
}

// What runs today of what the planner knows; of what does not, what runs instead.
static const char *cannot_run(const struct gang_layout *l) {
    if (l->cp > 1) return "cp above 1 does not run yet: choose cp=1";
    if (l->ep > 1) return "ep above 1 does not run yet: choose ep=1";
    if (l->zero > 1) return "zero above 1 does not run yet: choose zero=1";
    if (l->gradients != GANG_GRADIENTS_F32) return "gradients other than f32 do not run yet: choose gradients=f32";
    static const char *const offloads[GANG_OFFLOADS] = {NULL, "offload=optimizer does not run yet: choose offload=none",
                                                        "offload=activations does not run yet: choose offload=none",
                                                        "offload=both does not run yet: choose offload=none"};
    for (int s = 0; s < l->pp; s++)
        if (gang_of_stage(&l->offload, s)) return offloads[gang_of_stage(&l->offload, s)];
    for (int s = 0; s < l->pp; s++)
        if (gang_of_stage(&l->recompute, s) == GANG_RECOMPUTE_ALTERNATE) return "recompute=alternate does not run yet: choose recompute=full or none";
    for (int c = 0; c < l->layer_count; c++)
        if (!l->layers[c]) return "a chunk without layers does not run yet: give every chunk at least one";
    return NULL;
}

// The devices of a cell exchange in the middle of every layer: they are neighbours on a node, and each has whole heads.
static const char *cannot_cut(const struct gang_lead *l, const struct gang_layout *given) {
    struct gang_layout layout = *given;
    if (layout.width_count && layout.width_count != layout.pp) return NULL; // the evaluation says so
    int64_t all = gang_cells_devices(&layout, 0, layout.pp);
    assert(all > 0);
    if (!layout.dp) layout.dp = (int)(l->pool->devices / all);
    if (l->task.shape.tied && gang_tp_of(&layout, 0) != gang_tp_of(&layout, layout.pp - 1))
        return "a tied head on a stage that is wider or narrower than the first does not run yet: choose one width for the two";
    for (int s = 0; s < layout.pp; s++) {
        int64_t tp = gang_tp_of(&layout, s);
        if (l->task.shape.kv_heads % tp) return "tp does not divide the model's key/value heads: choose one that does";
        for (int r = 0; r < layout.dp; r++) {
            int first, last;
            int64_t at = gang_cell_at(&layout, r, s);
            if (at + tp > l->pool->devices) break;
            gang_fleet_group(l->pool, at, &first);
            gang_fleet_group(l->pool, at + tp - 1, &last);
            if (first != last) return "a rank's tp devices would lie on two nodes: choose a tp that divides the devices of a node";
        }
    }
    return NULL;
}

enum gang_status gang_lead_check(const struct gang_lead *l) {
    const struct gang_layout *given = l->options->layout;
    const char *why = given ? cannot_run(given) : NULL;
    if (given && !why) why = cannot_cut(l, given);
    return why ? gang_fail(GANG_ERR_UNSUPPORTED, "layout: %s", why) : GANG_OK;
}

// What a search chose to make again in part, whole instead: that keeps less still.
static void make_whole_again(struct gang_layout *l) {
    for (int s = 0; s < l->pp; s++)
        if (l->recompute.at[s] == GANG_RECOMPUTE_ALTERNATE) l->recompute.at[s] = GANG_RECOMPUTE_FULL;
}

static enum gang_status choose(struct gang_lead *l, struct gang_layout *out) {
    struct gang_search *search = gang_arena_alloc(l->arena, sizeof *search);
    gang_layout_init(out);
    if (l->options->layout) {
        *out = *l->options->layout;
        if (!out->layer_count) gang_search_layers(&l->task, l->pool, out, l->arena);
        return GANG_OK;
    }
    enum gang_status status = gang_search_run(&l->task, l->pool, GANG_OBJECTIVE_TIME, GANG_MAX_FOUND, l->arena, search);
    if (status) return status;
    for (int i = 0; i < search->count; i++) {
        *out = search->found[i].layout;
        make_whole_again(out);
        if (!cannot_run(out) && !cannot_cut(l, out)) return GANG_OK;
    }
    const char *why = cannot_run(out);
    return gang_fail(GANG_ERR_UNSUPPORTED, "plan: none of the %d best layouts runs (%s): name one in the job's layout", search->count,
                     why ? why : cannot_cut(l, out));
}

// Replicas of a stage on unlike devices would drift apart if each updated everything by itself.
static enum gang_status check_alike(const struct gang_lead *l) {
    const struct gang_placement *p = &l->answer.placement;
    for (int c = 1; c < p->class_count && l->options->job && l->answer.layout.zero == 0; c++)
        if (memcmp(p->classes[c].groups, p->classes[0].groups, (size_t)l->answer.layout.pp * sizeof *p->classes[c].groups) != 0)
            return gang_fail(GANG_ERR_INPUT,
                             "layout: zero=0 with replicas on unlike devices, whose weights would drift apart by rounding: choose zero=1");
    return GANG_OK;
}

// The same run once more with what every rank did when, to be compared with what they will do.
static enum gang_status keep_spans(struct gang_lead *l) {
    struct gang_answer *a = &l->answer;
    const struct gang_sim_input input = {
        .pool = l->pool, .layout = &a->layout, .placement = &a->placement, .costs = &a->costs, .program = &a->program, .spans = true};
    return gang_sim_run(&input, l->arena, &a->sim);
}

// A device of the run, counted rank after rank.
static struct gang_fleet_member *device_member(const struct gang_lead *l, int device) {
    struct gang_rank_place place = gang_rank_place(&l->answer.program, l->widths, device);
    return gang_lead_member(l, place.rank) + place.tp_index;
}

enum gang_status gang_lead_plan(struct gang_lead *l) {
    struct gang_layout layout;
    for (int g = 0; g < l->pool->group_count; g++) settle_kind(l, l->pool->groups[g]);
    enum gang_status status = choose(l, &layout);
    int flags = GANG_EVALUATE_UNFOLDED | (l->options->job ? GANG_EVALUATE_ANY_MEMORY : 0);
    if (!status)
        status = l->options->plan ? gang_evaluate_plan(&l->task, l->pool, l->options->plan, flags, l->arena, &l->answer)
                                  : gang_evaluate(&l->task, l->pool, &layout, flags, l->arena, &l->answer);
    if (!status) status = check_alike(l);
    if (!status) status = keep_spans(l);
    if (status) return status;
    l->ranks = l->answer.program.replicas * l->answer.program.stages;
    l->device = gang_arena_alloc(l->arena, (size_t)l->ranks * sizeof *l->device);
    l->memory = gang_arena_alloc(l->arena, (size_t)l->ranks * sizeof *l->memory);
    gang_fleet_devices(l->pool, &l->answer, l->device);
    l->widths = gang_arena_alloc(l->arena, (size_t)l->answer.layout.pp * sizeof *l->widths);
    for (int s = 0; s < l->answer.layout.pp; s++) l->widths[s] = gang_tp_of(&l->answer.layout, s);
    l->devices = gang_rank_device(&l->answer.program, l->widths, l->ranks);
    for (int i = 0; i < l->devices; i++) {
        struct gang_rank_place place = gang_rank_place(&l->answer.program, l->widths, i);
        struct gang_fleet_member *m = device_member(l, i);
        m->rank = place.rank;
        m->tp_index = place.tp_index;
    }
    return GANG_OK;
}

double gang_lead_near_seconds(const struct gang_lead *l) {
    struct gang_pool near = *l->pool;
    struct gang_answer *answer = gang_arena_alloc(l->arena, sizeof *answer);
    if (l->pool->sites.count < 2) return l->answer.sim.step_seconds;
    near.groups = gang_arena_alloc(l->arena, (size_t)near.group_count * sizeof *near.groups);
    for (int g = 0; g < near.group_count; g++) {
        near.groups[g] = gang_arena_alloc(l->arena, sizeof *near.groups[g]);
        *near.groups[g] = *l->pool->groups[g];
        near.groups[g]->site = 0;
    }
    enum gang_status status = gang_evaluate(&l->task, &near, &l->answer.layout, GANG_EVALUATE_ANY_MEMORY, l->arena, answer);
    return status ? l->answer.sim.step_seconds : answer->sim.step_seconds;
}

// ---- Assignments ---------------------------------------------------------------------------------------------------

static int class_of(const struct gang_answer *a, int replica) {
    int c = 0;
    for (int64_t end = a->placement.classes[0].replicas; replica >= end; end += a->placement.classes[c].replicas) c++;
    return c;
}

// Bytes of a socket's buffers over a route: twice bandwidth times round trip where that is more than the system grows them to by
// itself (tcp_rmem and tcp_wmem: some MiB); 0 leaves them to the system.
static double buffers_for(const struct gang_pool *pool, const struct gang_route *route) {
    enum { SYSTEM_GROWS_TO = 4 << 20 };
    double bytes = route->count ? 4 * route->delay * gang_route_bandwidth(pool, route) : 0;
    return bytes > SYSTEM_GROWS_TO ? bytes : 0;
}

// Ranks of one machine share memory; a rehearsal keeps to the network between its nodes.
static bool share_memory(const struct gang_lead *l, const struct gang_fleet_member *a, const struct gang_fleet_member *b) {
    return a->node == b->node || (l->options->job && a->group->site == b->group->site && gang_lead_same_host(l, a, b));
}

// By which way a device of the run reaches those that it connects to, and how large the sockets' buffers are.
static enum gang_status add_ways(struct gang_lead *l, int device, json_t *body) {
    json_t *workers = json_array(), *ways = json_array(), *buffers = json_array(), *sites = json_array();
    enum gang_status status = GANG_OK;
    const struct gang_fleet_member *me = device_member(l, device);
    for (int i = 0; i < l->devices; i++) {
        const struct gang_fleet_member *other = device_member(l, i);
        const struct gang_route *route = gang_pool_route(l->pool, me->group->site, other->group->site);
        char way[GANG_ADDRESS_TEXT] = "";
        bool needed = device < i && gang_rank_talks_to(&l->answer.program, l->widths, device, i);
        if (needed && share_memory(l, me, other))
            snprintf(way, sizeof way, "shm:%s", other->address);
        else if (needed && !status)
            status = gang_fleet_relays_way(&l->relays, l->pool, me->group->site, other->group->site, other->address, way);
        json_array_append_new(sites, json_integer(other->group->site));
        json_array_append_new(workers, json_integer(other - l->members));
        json_array_append_new(ways, json_string(way));
        json_array_append_new(buffers, json_real(buffers_for(l->pool, route)));
    }
    json_object_set_new(body, "workers", workers);
    json_object_set_new(body, "ways", ways);
    json_object_set_new(body, "buffers", buffers);
    json_object_set_new(body, "sites", sites);
    return status;
}

static void add_stand_in(const struct gang_lead *l, int rank, json_t *body) {
    const struct gang_answer *a = &l->answer;
    int chunks = a->costs.chunks, class = class_of(a, rank / a->layout.pp);
    double *columns = gang_arena_alloc(l->arena, 4 * (size_t)chunks * sizeof *columns);
    for (int c = 0; c < chunks; c++) {
        const struct gang_chunk_cost *cost = gang_costs_chunk(&a->costs, class, c);
        columns[c] = gang_time_sum(&cost->forward);
        columns[chunks + c] = gang_time_sum(&cost->input);
        columns[2 * chunks + c] = gang_time_sum(&cost->weight);
        columns[3 * chunks + c] = a->layout.dp > 1 ? cost->parameters : 0;
    }
    static const char *const names[] = {"forward", "input", "weight", "parameters"};
    for (int i = 0; i < 4; i++) json_object_set_new(body, names[i], gang_fleet_array(chunks, columns + i * chunks));
    json_object_set_new(body, "optimizer", json_real(a->costs.optimizer_seconds[class * a->costs.stages + rank % a->layout.pp]));
    json_object_set_new(body, "message_bytes",
                        json_real(a->costs.message_bytes[class] / (a->layout.sequence_parallel ? l->widths[rank % a->layout.pp] : 1)));
    json_object_set_new(body, "spread", json_real(l->options->spread));
    json_object_set_new(body, "slow", json_real(l->options->slow));
}

enum gang_status gang_lead_assignment(struct gang_lead *l, int worker, json_t **out) {
    const struct gang_layout *layout = &l->answer.layout;
    int rank = l->members[worker].rank, tp_index = l->members[worker].tp_index;
    struct gang_buffer program = {0};
    json_t *layers = json_array(), *widths = json_array();
    gang_program_print(&l->answer.program, &program);
    for (int c = 0; c < layout->layer_count; c++) json_array_append_new(layers, json_integer(layout->layers[c]));
    for (int s = 0; s < layout->pp; s++) json_array_append_new(widths, json_integer(l->widths[s]));
    *out = json_pack("{s:i, s:o, s:i, s:b, s:s, s:o, s:I, s:b, s:b, s:s, s:I, s:I}", "rank", rank, "widths", widths, "tp_index", tp_index,
                     "sequence_parallel", layout->sequence_parallel, "program", program.data, "layers", layers, "length",
                     (json_int_t)l->task.sequence_length, "sharded", layout->zero == 1 && layout->dp > 1, "recompute",
                     gang_of_stage(&layout->recompute, rank % layout->pp) == GANG_RECOMPUTE_FULL, "resume", l->resume ? l->resume : "", "first_step",
                     (json_int_t)l->first_step, "steps", (json_int_t)l->steps);
    gang_buffer_release(&program);
    if (!l->options->job) add_stand_in(l, rank, *out);
    json_object_set_new(*out, "data_tokens", json_integer(l->state.data_tokens));
    json_object_set_new(*out, "data_checksum", json_integer(l->state.data_checksum));
    enum gang_status status = add_ways(l, gang_rank_device(&l->answer.program, l->widths, rank) + tp_index, *out);
    if (status) json_decref(*out);
    return status;
}
