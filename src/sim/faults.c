// Months of training with faults: how much of the time is useful.
//
// A trial plays the run from fault to fault. Every node has its own next failure (Weibull, repeat offenders more often), every
// domain and every plane of a long link theirs; a heap holds them. Between faults the run computes for an interval, then stops for a
// checkpoint. A failure throws away what was computed since the last checkpoint and costs detection and restart, and, when no spare is
// left, the wait for the first repair; a lost plane slows the run until it is back, and only the last of a link pauses it; a slow node
// slows everything until it is noticed and replaced from the last checkpoint. Faults that fall into a stop happen when the run goes on.
//
// With exponential failures alone this is Daly's model, and the test holds it against his closed form.
#include "sim/sim.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum source { SOURCE_NODE, SOURCE_DOMAIN, SOURCE_SLOW, SOURCE_LINK };
enum { MAX_NODES = 1 << 20, GRID = 13 };

#define AT(member) offsetof(struct gang_faults, member)
#define YEAR (366.0 * 86400)
static const struct gang_field fault_fields[] = {
    {"length", GANG_FIELD_TIME, AT(length), "54d", 3600, 10 * YEAR, NULL, "of the run"},
    {"trials", GANG_FIELD_INT, AT(trials), "200", 1, 1000000, NULL, "runs that are drawn"},
    {"seed", GANG_FIELD_INT, AT(seed), "1", 0, 1LL << 53, NULL, "of the draws"},
    {"node_mtbf", GANG_FIELD_TIME, AT(node_mtbf), NULL, 0, 1000 * YEAR, NULL, "mean time between failures of one node, such as 264d"},
    {"weibull_shape", GANG_FIELD_REAL, AT(weibull_shape), "1", 0.2, 5, NULL, "1: exponential; below: bursts"},
    {"offender_share", GANG_FIELD_REAL, AT(offender_share), "0", 0, 1, NULL, "part of the nodes that fail more often"},
    {"offender_factor", GANG_FIELD_REAL, AT(offender_factor), "1", 1, 1000, NULL, "how many times as often"},
    {"domain_nodes", GANG_FIELD_INT, AT(domain_nodes), "0", 0, 100000, NULL, "nodes that fail together; 0: the groups' failure_domain"},
    {"domain_mtbf", GANG_FIELD_TIME, AT(domain_mtbf), "0s", 0, 1000 * YEAR, NULL, "of one such domain"},
    {"slow_mtbf", GANG_FIELD_TIME, AT(slow_mtbf), "0s", 0, 1000 * YEAR, NULL, "mean time until one node turns slow"},
    {"slow_speed", GANG_FIELD_REAL, AT(slow_speed), "0.8", 0.01, 1, NULL, "of the whole run meanwhile"},
    {"slow_detect", GANG_FIELD_TIME, AT(slow_detect), "1h", 0, YEAR, NULL, "until it is noticed"},
    {"link_mtbf", GANG_FIELD_TIME, AT(link_mtbf), "0s", 0, 1000 * YEAR, NULL,
     "between outages of a plane of whichever long link; 0: the links' outage_every"},
    {"link_outage", GANG_FIELD_TIME, AT(link_outage), "1min", 0, YEAR, NULL, "how long one lasts"},
    {"detect", GANG_FIELD_TIME, AT(detect), "3min", 0, YEAR, NULL, "until a failure is noticed"},
    {"restart", GANG_FIELD_TIME, AT(restart), "10min", 0, YEAR, NULL, "until the run computes again"},
    {"spare_nodes", GANG_FIELD_INT, AT(spare_nodes), "16", 0, 1000000, NULL, "that wait"},
    {"repair", GANG_FIELD_TIME, AT(repair), "2d", 0, YEAR, NULL, "of a node"},
    {"checkpoint_interval", GANG_FIELD_TIME, AT(checkpoint_interval), "0s", 0, YEAR, NULL, "useful time between two; 0: the best"},
    {"checkpoint_cost", GANG_FIELD_TIME, AT(checkpoint_cost), "10s", 0, 86400, NULL, "that the run stops for one"},
};
static const struct gang_schema fault_schema = {fault_fields, sizeof fault_fields / sizeof *fault_fields, sizeof(struct gang_faults)};

enum gang_status gang_faults_read(const char *path, struct gang_arena *arena, struct gang_faults *out) {
    *out = (struct gang_faults){0};
    enum gang_status status = gang_yaml_bind_nested(path, NULL, &fault_schema, out, arena);
    if (status) return status;
    if (out->domain_nodes && !(out->domain_mtbf > 0)) return gang_fail(GANG_ERR_INPUT, "%s: domain_nodes without domain_mtbf: give both", path);
    return GANG_OK;
}

double gang_daly_seconds(double work, double interval, double cost, double down, double mtbf) {
    return mtbf * exp(down / mtbf) * expm1((interval + cost) / mtbf) * work / interval;
}

// ---- Draws ---------------------------------------------------------------------------------------------------------

struct fault {
    double time;
    enum source source;
    bool out;    // a plane that is lost and comes back then
    int64_t who; // node, kind of domains, link
};

struct trial {
    const struct gang_faults *f;
    uint64_t seed;
    uint64_t draws;
    struct fault *heap; // by time
    int64_t count;
    double *repairs; // [spare_nodes + 1] when each node that is away comes back, unordered
    int64_t away;
    int64_t *lost; // [links] planes that are out
};

static double uniform(struct trial *t) { return 1 - gang_uniform(gang_random_at(t->seed, 1, t->draws++)); } // never 0

static double mean_of(const struct gang_faults *f, enum source source, int64_t who, int64_t nodes) {
    bool offender = (double)who < f->offender_share * (double)nodes;
    switch (source) {
    case SOURCE_NODE:
        return f->node_mtbf / (offender ? f->offender_factor : 1);
    case SOURCE_DOMAIN:
        return f->domain_mtbf;
    case SOURCE_SLOW:
        return f->slow_mtbf;
    case SOURCE_LINK:
        return f->links[who].every;
    }
    return 0;
}

// Seconds to the next fault of this source. Only nodes' failures are Weibull; its scale is mean / gamma(1 + 1 / shape).
static double draw_gap(struct trial *t, enum source source, double mean) {
    double e = -log(uniform(t));
    if (source != SOURCE_NODE || t->f->weibull_shape == 1) return mean * e;
    return mean / tgamma(1 + 1 / t->f->weibull_shape) * pow(e, 1 / t->f->weibull_shape);
}

static void sink(struct trial *t, int64_t i) {
    struct fault moving = t->heap[i];
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= t->count) break;
        if (child + 1 < t->count && t->heap[child + 1].time < t->heap[child].time) child++;
        if (t->heap[child].time >= moving.time) break;
        t->heap[i] = t->heap[child];
        i = child;
    }
    t->heap[i] = moving;
}

static void add_source(struct trial *t, enum source source, int64_t who, int64_t nodes) {
    double mean = mean_of(t->f, source, who, nodes);
    if (mean > 0) t->heap[t->count++] = (struct fault){draw_gap(t, source, mean), source, false, who};
}

static void add_sources(struct trial *t, int64_t nodes) {
    for (int64_t i = 0; i < nodes; i++) add_source(t, SOURCE_NODE, i, nodes);
    for (int d = 0; d < t->f->domain_count; d++)
        for (int64_t i = 0; i < t->f->domains[d].count; i++) add_source(t, SOURCE_DOMAIN, d, nodes);
    for (int64_t i = 0; i < nodes; i++) add_source(t, SOURCE_SLOW, i, nodes);
    for (int l = 0; l < t->f->link_count; l++)
        for (int64_t i = 0; i < t->f->links[l].planes; i++) add_source(t, SOURCE_LINK, l, nodes);
    for (int64_t i = t->count / 2; i-- > 0;) sink(t, i);
}

// ---- One trial -----------------------------------------------------------------------------------------------------

struct account {
    double now, useful, unsaved; // unsaved: useful time since the last checkpoint
    double failures, lost, down, checkpoints;
};

// Computes until `until` at `speed`, with checkpoints when an interval of useful time is full.
static void compute(const struct gang_faults *f, double interval, double speed, double until, struct account *a) {
    while (a->now < until) {
        double left = (interval - a->unsaved) / speed;
        if (a->now + left > until) {
            a->useful += (until - a->now) * speed;
            a->unsaved += (until - a->now) * speed;
            a->now = until;
            return;
        }
        a->now += left;
        a->useful += left * speed;
        double cost = fmin(f->checkpoint_cost, until - a->now);
        a->now += cost;
        a->checkpoints += cost;
        // A fault in the middle of a checkpoint leaves the one before.
        a->unsaved = cost < f->checkpoint_cost ? interval : 0;
        if (cost < f->checkpoint_cost) return;
    }
}

// How long the run waits for as many nodes as it lost; spares first, then the repairs that end first.
static double wait_for_nodes(struct trial *t, double now, int64_t lost) {
    double wait = 0;
    for (int64_t i = 0; i < lost; i++) {
        int64_t back = 0;
        for (int64_t k = 0; k < t->away; k++)
            if (t->repairs[k] > now) t->repairs[back++] = t->repairs[k];
        t->away = back;
        if (t->away < t->f->spare_nodes) {
            t->repairs[t->away++] = now + t->f->repair;
            continue;
        }
        int64_t first = 0;
        for (int64_t k = 1; k < t->away; k++)
            if (t->repairs[k] < t->repairs[first]) first = k;
        double ready = t->away ? t->repairs[first] : now + t->f->repair;
        wait = fmax(wait, ready - now);
        if (t->away) t->repairs[first] = now + t->f->repair;
    }
    return wait;
}

static void fail(struct trial *t, int64_t nodes_lost, double detect, struct account *a) {
    double down = detect + t->f->restart + wait_for_nodes(t, a->now, nodes_lost);
    a->useful -= a->unsaved;
    a->lost += a->unsaved;
    a->unsaved = 0;
    a->now += down;
    a->down += down;
    a->failures++;
}

static void suffer(struct trial *t, struct fault *fault, double interval, struct account *a) {
    const struct gang_faults *f = t->f;
    switch (fault->source) {
    case SOURCE_NODE:
        fail(t, 1, f->detect, a);
        return;
    case SOURCE_DOMAIN:
        fail(t, f->domains[fault->who].nodes, f->detect, a);
        return;
    case SOURCE_SLOW:
        compute(f, interval, f->slow_speed, a->now + f->slow_detect, a);
        fail(t, 1, 0, a);
        return;
    case SOURCE_LINK:
        fault->out = !fault->out;
        t->lost[fault->who] += fault->out ? 1 : -1;
        return;
    }
}

static double speed_now(const struct trial *t) {
    double least = 1;
    for (int l = 0; l < t->f->link_count; l++) least = fmin(least, t->f->links[l].speed[t->lost[l]]);
    return least;
}

static void run_trial(struct trial *t, int64_t nodes, double interval, struct account *a) {
    const struct gang_faults *f = t->f;
    *a = (struct account){0};
    t->count = t->away = 0;
    t->draws = 0;
    for (int l = 0; l < f->link_count; l++) t->lost[l] = 0;
    add_sources(t, nodes);
    while (a->now < f->length) {
        double next = t->count ? t->heap[0].time : INFINITY, until = fmin(fmax(next, a->now), f->length), speed = speed_now(t);
        if (speed > 0) {
            compute(f, interval, speed, until, a);
        } else {
            a->down += until - a->now;
            a->now = until;
        }
        if (next >= f->length || a->now >= f->length) break;
        struct fault *fault = &t->heap[0];
        suffer(t, fault, interval, a);
        fault->time = a->now + (fault->out ? f->links[fault->who].length : draw_gap(t, fault->source, mean_of(f, fault->source, fault->who, nodes)));
        sink(t, 0);
    }
}

// ---- All trials ----------------------------------------------------------------------------------------------------

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void run_trials(struct trial *t, int64_t nodes, double interval, int64_t trials, double *shares, struct gang_fault_result *out) {
    *out = (struct gang_fault_result){.interval = interval, .nodes = nodes};
    for (int64_t i = 0; i < trials; i++) {
        struct account a;
        t->seed = gang_random_at((uint64_t)t->f->seed, 0, (uint64_t)i);
        run_trial(t, nodes, interval, &a);
        shares[i] = a.useful / fmax(a.now, t->f->length);
        double n = (double)trials;
        out->availability += shares[i] / n, out->failures += a.failures / n, out->lost_seconds += a.lost / n;
        out->down_seconds += a.down / n, out->checkpoint_seconds += a.checkpoints / n;
    }
    qsort(shares, (size_t)trials, sizeof *shares, compare);
    out->low = shares[(int64_t)(0.05 * (double)(trials - 1))];
    out->high = shares[(int64_t)(0.95 * (double)(trials - 1))];
}

void gang_faults_run(const struct gang_faults *f, int64_t nodes, struct gang_fault_result *out) {
    assert(nodes >= 1 && nodes <= MAX_NODES);
    struct gang_arena arena;
    gang_arena_init(&arena);
    struct trial t = {.f = f};
    int64_t sources = 2 * nodes;
    double domains = 0;
    for (int d = 0; d < f->domain_count; d++) sources += f->domains[d].count, domains += (double)f->domains[d].count;
    for (int l = 0; l < f->link_count; l++) sources += f->links[l].planes;
    t.heap = gang_arena_alloc(&arena, (size_t)sources * sizeof *t.heap);
    t.lost = gang_arena_alloc(&arena, (size_t)(f->link_count + 1) * sizeof *t.lost);
    t.repairs = gang_arena_alloc(&arena, (size_t)(f->spare_nodes + 1) * sizeof *t.repairs);
    double *shares = gang_arena_alloc(&arena, (size_t)f->trials * sizeof *shares);
    double interval = f->checkpoint_interval;
    if (!(interval > 0)) {
        // Around Young's sqrt(2 C M); the same draws for every candidate, fewer of them.
        double rate = (f->node_mtbf > 0 ? (double)nodes / f->node_mtbf : 0) + (f->domain_mtbf > 0 ? domains / f->domain_mtbf : 0) +
                      (f->slow_mtbf > 0 ? (double)nodes / f->slow_mtbf : 0);
        double young = rate > 0 ? sqrt(2 * fmax(f->checkpoint_cost, 0.1) / rate) : f->length, best = -1;
        for (int i = 0; i < GRID; i++) {
            struct gang_fault_result one;
            double candidate = young * pow(2, (i - (GRID - 1) / 2.0) / 2);
            run_trials(&t, nodes, candidate, f->trials < 20 ? f->trials : 20, shares, &one);
            if (one.availability > best) best = one.availability, interval = candidate;
        }
    }
    run_trials(&t, nodes, interval, f->trials, shares, out);
    gang_arena_release(&arena);
}
