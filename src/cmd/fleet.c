// A run on many devices on the terminal.
#include "cmd/fleet.h"
#include "cmd/cmd.h"
#include "cmd/show.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

// ---- While it runs -------------------------------------------------------------------------------------------------

static void show_measuring(void *context, int devices) {
    const struct gang_fleet_screen *s = context;
    if (s->json) return;
    printf("  measure %d devices: a layer of this model on each (kept for the next time)\n", devices);
    fflush(stdout);
}

static void show_ranks(const struct gang_fleet_start *start) {
    enum { MOST = 16 };
    const struct gang_answer *a = start->answer;
    int ranks = a->program.replicas * a->program.stages;
    for (int r = 0; r < ranks && r < MOST; r++) {
        char memory[GANG_HUMAN_BYTES];
        int node, stage = r % a->program.stages, replica = r / a->program.stages;
        const struct gang_group *group = gang_fleet_group(start->pool, start->device[r], &node);
        printf("    rank %-3d %s/%s, node %d: replica %d (%lld micro-batches of %lld), stage %d, layers", r,
               gang_pool_site(start->pool, group->site)->name, group->name, node, replica, (long long)a->program.micro_batches[replica],
               (long long)a->program.sizes[replica], stage);
        for (int c = stage; c < a->layout.layer_count; c += a->program.stages) printf("%s%d", c > stage ? "+" : " ", a->layout.layers[c]);
        int tp = gang_tp_of(&a->layout, stage);
        if (tp > 1) printf(", on %d devices", tp);
        if (start->memory[r]) printf(", %s%s", tp > 1 ? "each " : "", gang_human_bytes((double)start->memory[r], memory));
        printf("\n");
    }
    if (ranks > MOST) printf("    and %d more\n", ranks - MOST);
}

static void show_started(void *context, const struct gang_fleet_start *start) {
    const struct gang_fleet_screen *s = context;
    const struct gang_answer *a = start->answer;
    struct gang_arena arena;
    if (s->json) return;
    double tokens = (double)(start->task->global_batch * start->task->sequence_length);
    gang_arena_init(&arena);
    printf("  plan    %s (%s), %lld devices: %.4g s a step, %.4g tokens/s predicted from %s\n", gang_layout_print(&a->layout, &arena),
           gang_schedule_names[a->schedule], (long long)a->placement.devices_used, start->seconds, tokens / start->seconds,
           start->measured ? "what was measured here" : "the devices' kinds");
    show_ranks(start);
    if (start->pool->sites.count > 1) printf("  lost    to distance %.1f %% by prediction\n", 100 * (1 - start->near_seconds / start->seconds));
    if (start->parts > 0)
        printf("  parts   each group by itself does %.4g tokens/s in sum by prediction: without distance they do %.1f %% of that together\n",
               start->parts, 100 * tokens / start->near_seconds / start->parts);
    for (int i = 0; i < start->pool->links.count; i++) {
        const struct gang_link *link = gang_pool_link(start->pool, i);
        printf("  link    %s - %s: %.4g Gbit/s, round trip %.3g ms%s\n", link->between.items[0], link->between.items[1], link->bandwidth * 8e-9,
               2e3 * link->delay, start->emulated ? " (made by a relay on this machine)" : "");
    }
    fflush(stdout);
    gang_arena_release(&arena);
}

static void show_step(void *context, const struct gang_fleet_step *p) {
    struct gang_fleet_screen *s = context;
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES];
    gang_curve_add(&s->curve, p->step, p->steps, p->loss);
    if (s->json) {
        printf("{\"step\": %lld, \"loss\": %.7g, \"gradient_norm\": %.5g, \"seconds\": %.6f, \"tokens_per_second\": %.1f, "
               "\"fraction_of_prediction\": %.4f, "
               "\"slowest_rank\": %d, \"slowest_busy\": %.4f}\n",
               (long long)p->step, p->loss, p->gradient_norm, p->seconds, p->tokens_per_second, p->fraction, p->slowest, p->slowest_busy);
        fflush(stdout);
        return;
    }
    double now = gang_seconds();
    bool last = p->step == p->steps;
    if (!s->live && !last && now - s->last_line < 2) return;
    s->last_line = now;
    printf("%s  step %lld/%lld", s->live ? "\r" : "", (long long)p->step, (long long)p->steps);
    if (p->loss > 0) printf("  loss %.4f", p->loss);
    printf("  %s tokens/s  %.0f %% of the prediction  rank %d computes %.0f %% of the time  %s left%s", gang_human_count(p->tokens_per_second, a),
           100 * p->fraction, p->slowest, 100 * p->slowest_busy, gang_human_seconds(p->left, b), s->live && !last ? "\033[K" : "\n");
    fflush(stdout);
}

static void show_saved(void *context, const char *dir, int64_t step) {
    const struct gang_fleet_screen *s = context;
    (void)step;
    if (!s->json) printf("%s  saved   %s%s\n", s->live ? "\r" : "", dir, s->live ? "\033[K" : "");
}

static void show_log(void *context, int node, int worker, const char *line) {
    const struct gang_fleet_screen *s = context;
    if (worker < 0)
        fprintf(stderr, "%snode %d: %s\n", s->live ? "\n" : "", node, line);
    else
        fprintf(stderr, "%sdevice %d: %s\n", s->live ? "\n" : "", worker, line);
}

// ---- At the end ----------------------------------------------------------------------------------------------------

static double off(double predicted, double measured) { return predicted > 0 ? 100 * (measured / predicted - 1) : 0; }

// Forward and backward together, the optimizer, waiting for messages, waiting for gradients and all ranks.
static void explain(const struct gang_fleet_result *r) {
    printf("  seconds of a step, predicted | measured\n");
    printf("    rank      forward            backward           optimizer          waiting for messages  for gradients\n");
    for (int i = 0; i < r->ranks; i++) {
        const struct gang_fleet_kind *k = r->kinds[i];
        double p = 0, m = 0;
        for (int op = GANG_OP_BACKWARD; op <= GANG_OP_BACKWARD_WEIGHT; op++) p += k[op].predicted, m += k[op].measured;
        printf("    %-4d  %8.4f | %-8.4f %8.4f | %-8.4f %8.4f | %-8.4f %8.4f | %-8.4f   %8.4f | %-8.4f\n", i, k[GANG_OP_FORWARD].predicted,
               k[GANG_OP_FORWARD].measured, p, m, k[GANG_OP_OPTIMIZER].predicted, k[GANG_OP_OPTIMIZER].measured, k[GANG_OP_RECEIVE].predicted,
               k[GANG_OP_RECEIVE].measured, k[GANG_OP_REDUCE].predicted, k[GANG_OP_REDUCE].measured);
    }
}

static void say_most(const struct gang_fleet_result *r) {
    int rank = 0, op = 0;
    double most = 0;
    for (int i = 0; i < r->ranks; i++)
        for (int o = 0; o < GANG_OPS; o++)
            if (fabs(r->kinds[i][o].measured - r->kinds[i][o].predicted) > most)
                most = fabs(r->kinds[i][o].measured - r->kinds[i][o].predicted), rank = i, op = o;
    if (most > 0)
        printf("    they differ most in rank %d's %s: %.4f s predicted, %.4f s measured\n", rank, gang_ops[op].name, r->kinds[rank][op].predicted,
               r->kinds[rank][op].measured);
}

static void show_end(const struct gang_fleet_screen *s, const struct gang_fleet_result *r) {
    if (r->stopped) printf("%s  stopped after %lld steps\n", s->live ? "\n" : "", (long long)r->steps_done);
    if (!r->steps_done) return;
    printf("  step    %.4f s predicted, %.4f s measured (median of %lld; %+.1f %%), %.1f tokens/s\n", r->predicted_seconds, r->step_seconds,
           (long long)r->steps_done, off(r->predicted_seconds, r->step_seconds), r->tokens_per_second);
    gang_show_curve(&s->curve);
    if (r->first_loss > 0) printf("  loss    %.4f to %.4f\n", r->first_loss, r->last_loss);
    double worst = 0;
    int rank = 0;
    for (int i = 0; i < r->ranks; i++)
        if (r->said_bytes[i] > 0 && fabs(off(r->said_bytes[i], r->peak_bytes[i])) >= fabs(worst))
            worst = off(r->said_bytes[i], r->peak_bytes[i]), rank = i;
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES];
    if (r->said_bytes[rank] > 0)
        printf("  memory  furthest off is rank %d: peak %s by the kernel's account, %s said before (%+.1f %%)\n", rank,
               gang_human_bytes(r->peak_bytes[rank], a), gang_human_bytes(r->said_bytes[rank], b), worst);
    if (r->link_bytes > 0)
        printf("  link    %s crossed the long link one way, %.3g Mbit/s on average\n", gang_human_bytes(r->link_bytes, a),
               r->link_bytes * 8e-6 / r->link_seconds);
    if (s->explain) {
        explain(r);
        say_most(r);
    }
}

// What was predicted and what came of it, as one JSON object on a line.
static void print_report(const struct gang_fleet_start *start, const struct gang_fleet_result *r, struct gang_buffer *out) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    gang_buffer_printf(out,
                       "{\"layout\": \"%s\", \"schedule\": \"%s\", \"predicted_seconds\": %.9g, \"seconds\": %.9g, \"tokens_per_second\": %.9g, "
                       "\"near_seconds\": %.9g, \"parts_tokens_per_second\": %.9g, \"link_bytes\": %.9g, \"ranks\": [",
                       gang_layout_print(&start->answer->layout, &arena), gang_schedule_names[start->answer->schedule], r->predicted_seconds,
                       r->step_seconds, r->tokens_per_second, start->near_seconds, start->parts, r->link_bytes);
    for (int i = 0; i < r->ranks; i++) {
        gang_buffer_printf(out, "%s{\"said_bytes\": %.0f, \"peak_bytes\": %.0f", i ? ", " : "", r->said_bytes[i], r->peak_bytes[i]);
        for (int op = 0; op < GANG_OPS; op++)
            if (r->kinds[i][op].measured > 0 || r->kinds[i][op].predicted > 0)
                gang_buffer_printf(out, ", \"%s\": [%.9g, %.9g]", gang_ops[op].name, r->kinds[i][op].predicted, r->kinds[i][op].measured);
        gang_buffer_printf(out, "}");
    }
    gang_buffer_printf(out, "]}\n");
    gang_arena_release(&arena);
}

// Printed with --json, and kept in the run's directory.
static enum gang_status report(const struct gang_fleet_options *options, const struct gang_fleet_screen *s, const struct gang_fleet_start *start,
                               const struct gang_fleet_result *r) {
    struct gang_buffer text = {0}, path = {0};
    enum gang_status status = GANG_OK;
    print_report(start, r, &text);
    if (s->json) printf("%s", text.data);
    if (options->job) {
        gang_buffer_printf(&path, "%s/report.json", options->job->output);
        status = gang_file_publish(path.data, text.data, text.len);
    }
    gang_buffer_release(&text);
    gang_buffer_release(&path);
    return status;
}

static enum gang_status write_trace(const char *path, const struct gang_fleet_start *start, const struct gang_fleet_result *r) {
    struct gang_buffer text = {0};
    gang_sim_trace_pair(&start->answer->sim, &r->real, &start->answer->program, &text);
    enum gang_status status = gang_file_publish(path, text.data, text.len);
    gang_buffer_release(&text);
    return status;
}

enum gang_status gang_show_fleet(const struct gang_fleet_options *options, struct gang_fleet_screen *s, struct gang_fleet_result *result) {
    struct gang_arena arena;
    struct gang_fleet_start start = {0};
    const struct gang_fleet_events events = {s, show_measuring, show_started, show_step, show_saved, show_log};
    gang_arena_init(&arena);
    gang_catch_interrupts();
    enum gang_status status = gang_fleet_run(options, &events, &gang_interrupted, &arena, &start, result);
    if (s->live && status && result->steps_done) printf("\n");
    if (!status && !s->json) show_end(s, result);
    if (!status && result->steps_done) status = report(options, s, &start, result);
    if (!status && s->trace) status = write_trace(s->trace, &start, result);
    gang_arena_release(&arena);
    return status;
}
