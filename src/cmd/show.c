// An answer for people and for machines.
#include "cmd/show.h"

#include <stdio.h>
#include <string.h>

void gang_show_task(const struct gang_task *task, const struct gang_pool *pool) {
    char a[GANG_HUMAN_BYTES], b[GANG_HUMAN_BYTES], c[GANG_HUMAN_BYTES];
    const struct gang_shape *s = &task->shape;
    double all = (double)gang_shape_parameters(s), active = (double)gang_shape_active_parameters(s);
    printf("  model   %s parameters%s%s%s: %lld layers of %lld, vocabulary %lld\n", gang_human_count(all, a), s->experts ? ", " : "",
           s->experts ? gang_human_count(active, b) : "", s->experts ? " active" : "", (long long)s->layers, (long long)s->hidden,
           (long long)s->vocab);
    printf("  step    %lld sequences of %lld = %s tokens, products in %s\n", (long long)task->global_batch, (long long)task->sequence_length,
           gang_human_count((double)task->global_batch * (double)task->sequence_length, c), gang_math_names[task->math]);
    for (int g = 0; g < pool->group_count; g++) {
        const struct gang_group *group = pool->groups[g];
        printf("  pool    %lld x %s (%s) at %s: %lld nodes of %lld; its peak is by %s, what it holds of that by %s\n",
               (long long)group->nodes * (long long)group->devices, group->kind->name, group->name, gang_pool_site(pool, group->site)->name,
               (long long)group->nodes, (long long)group->devices,
               gang_provenance_name(gang_kind_provenance(group->kind, gang_math_names[task->math])),
               gang_provenance_name(gang_kind_provenance(group->kind, task->math == GANG_MATH_F16  ? "f16_reach"
                                                                      : task->math == GANG_MATH_F8 ? "f8_reach"
                                                                                                   : "f32_reach")));
    }
    for (int l = 0; l < pool->links.count; l++) {
        const struct gang_link *link = gang_pool_link(pool, l);
        printf("  link    %s - %s: %.4g Gbit/s on %lld plane%s, %.3g ms one way\n", gang_pool_site(pool, link->a)->name,
               gang_pool_site(pool, link->b)->name, link->bandwidth * 8e-9, (long long)link->planes, link->planes > 1 ? "s" : "", link->delay * 1e3);
    }
}

struct part {
    const char *name;
    double seconds;
};
enum { PARTS = 11 };

static void parts_of(const struct gang_summary *s, struct part out[PARTS]) {
    const struct part parts[PARTS] = {{"products", s->matmul},         {"attention", s->attention},      {"vector work", s->vector},
                                      {"tensor exchange", s->tensor},  {"expert exchange", s->expert},   {"context exchange", s->context},
                                      {"weights gathered", s->gather}, {"gradients reduced", s->reduce}, {"pipeline idle", s->pipeline},
                                      {"optimizer", s->optimizer},     {"copies to host", s->copies}};
    memcpy(out, parts, sizeof parts);
}

static void show_memory(const struct gang_answer *a) {
    char text[9][GANG_HUMAN_BYTES];
    int stages = a->layout.pp, most = stages <= 8 ? stages : 8;
    printf("  memory  on one device, by stage (%.0f %% of a device is left alone)\n", 100 * gang_memory_margin);
    for (int c = 0; c < a->costs.classes; c++)
        for (int s = 0; s < most; s++) {
            const struct gang_memory_use *u = &a->memory[c * stages + (s < most - 1 ? s : stages - 1)];
            printf("    %3d   %9s of %s: weights %s, gradients %s, optimizer %s, activations %s", s < most - 1 ? s : stages - 1,
                   gang_human_bytes(u->total, text[0]), gang_human_bytes(u->limit, text[1]), gang_human_bytes(u->weights, text[2]),
                   gang_human_bytes(u->gradients, text[3]), gang_human_bytes(u->optimizer, text[4]), gang_human_bytes(u->activations, text[5]));
            if (u->host > 0)
                printf("; in the node's memory optimizer %s, activations %s of %s", gang_human_bytes(u->host_optimizer, text[6]),
                       gang_human_bytes(u->host_activations, text[7]), gang_human_bytes(u->host_limit, text[8]));
            printf("\n");
        }
}

void gang_show_answer(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *a) {
    const struct gang_summary *s = &a->summary;
    char n[GANG_HUMAN_BYTES];
    struct gang_arena arena;
    struct part parts[PARTS];
    gang_arena_init(&arena);
    (void)task;
    printf("  layout  %s on %lld of %lld devices; schedule %s\n", gang_layout_print(&a->layout, &arena), (long long)s->devices,
           (long long)pool->devices, gang_schedule_names[a->schedule]);
    for (int c = 0; c < a->placement.class_count && a->placement.class_count > 1; c++)
        printf("          %lld replicas of %lld micro-batches of %d, from group %s on\n", (long long)a->placement.classes[c].replicas,
               (long long)a->placement.classes[c].micro_batches, a->placement.classes[c].micro_batch,
               pool->groups[a->placement.classes[c].groups[0]]->name);
    printf("  step    %.4g s, %s tokens/s, %.1f tokens/s/device, MFU %.1f %%, bubble %.1f %%\n", s->step_seconds,
           gang_human_count(s->tokens_per_second, n), s->tokens_per_second_per_device, 100 * s->mfu, 100 * s->bubble_fraction);
    parts_of(s, parts);
    printf("  where  ");
    for (int i = 0; i < PARTS; i++)
        if (parts[i].seconds > 0.0005 * s->step_seconds) printf(" %s %.1f %%,", parts[i].name, 100 * parts[i].seconds / s->step_seconds);
    printf(" of the mean device's step\n");
    if (s->long_link_bytes > 0)
        printf("  link    %s over the busiest long link in a step, %.4g Gbit/s at most\n", gang_human_bytes(s->long_link_bytes, n),
               s->long_link_peak_bps * 1e-9);
    show_memory(a);
    gang_arena_release(&arena);
}

void gang_show_json(const struct gang_answer *a, const struct gang_fault_result *f, struct gang_arena *arena) {
    const struct gang_summary *s = &a->summary;
    printf("{\"layout\": \"%s\", \"schedule\": \"%s\", \"devices\": %lld, \"step_seconds\": %.9g, \"tokens_per_second\": %.9g, "
           "\"tokens_per_second_per_device\": %.9g, "
           "\"mfu\": %.6g, \"bubble_fraction\": %.6g, \"tokens_per_joule\": %.6g, \"tokens_per_price\": %.6g, ",
           gang_layout_print(&a->layout, arena), gang_schedule_names[a->schedule], (long long)s->devices, s->step_seconds, s->tokens_per_second,
           s->tokens_per_second_per_device, s->mfu, s->bubble_fraction, s->tokens_per_joule, s->tokens_per_price);
    printf("\"compute_seconds\": {\"matmul\": %.9g, \"attention\": %.9g, \"vector\": %.9g, \"optimizer\": %.9g}, ", s->matmul, s->attention,
           s->vector, s->optimizer);
    printf("\"exposed_seconds\": {\"tensor\": %.9g, \"expert\": %.9g, \"context\": %.9g, \"gather\": %.9g, \"reduce\": %.9g, \"copies\": %.9g, "
           "\"pipeline\": "
           "%.9g}, ",
           s->tensor, s->expert, s->context, s->gather, s->reduce, s->copies, s->pipeline);
    printf("\"peak_bytes\": [");
    for (int i = 0; i < a->costs.classes * a->layout.pp; i++) printf("%s%.0f", i ? ", " : "", a->memory[i].total);
    printf("], \"host_bytes\": [");
    for (int i = 0; i < a->costs.classes * a->layout.pp; i++) printf("%s%.0f", i ? ", " : "", a->memory[i].host);
    printf("], \"fits\": %s, \"long_link_bytes\": %.0f, \"long_link_peak_bps\": %.9g", a->memory_used <= 1 ? "true" : "false", s->long_link_bytes,
           s->long_link_peak_bps);
    if (f)
        printf(", \"availability\": %.6g, \"availability_low\": %.6g, \"availability_high\": %.6g, \"failures\": %.6g, "
               "\"checkpoint_interval_seconds\": %.6g, "
               "\"effective_compute\": %.6g",
               f->availability, f->low, f->high, f->failures, f->interval, (double)s->devices * s->mfu * f->availability);
    printf("}");
}

// ---- The timeline --------------------------------------------------------------------------------------------------

enum { WIDTH = 120, MAX_LINES = 16 };

void gang_show_timeline(const struct gang_answer *a) {
    int stages = a->layout.pp;
    char lines[MAX_LINES][WIDTH + 1];
    if (stages > MAX_LINES) return;
    for (int s = 0; s < stages; s++) {
        memset(lines[s], '.', WIDTH);
        lines[s][WIDTH] = 0;
    }
    for (size_t i = 0; i < a->sim.span_count; i++) {
        const struct gang_span *span = &a->sim.spans[i];
        if (span->rank >= stages || !gang_ops[span->op].compute) continue;
        static const char marks[] = {[GANG_OP_FORWARD] = '0',
                                     [GANG_OP_BACKWARD] = 'a',
                                     [GANG_OP_BACKWARD_INPUT] = 'a',
                                     [GANG_OP_BACKWARD_WEIGHT] = 'w',
                                     [GANG_OP_OPTIMIZER] = '*'};
        char mark = marks[span->op];
        if (mark == '0') mark = (char)('0' + span->micro % 10);
        if (mark == 'a') mark = (char)('a' + span->micro % 10);
        int from = (int)(span->start / a->sim.step_seconds * WIDTH), to = (int)(span->end / a->sim.step_seconds * WIDTH);
        for (int x = from; x < to && x < WIDTH; x++) lines[span->rank][x] = mark;
    }
    printf("  time    digits: forward of that micro-batch; letters a, b, ...: its backward; w: weights' half; *: optimizer; .: idle\n");
    for (int s = 0; s < stages; s++) printf("    %3d   %s\n", s, lines[s]);
}

void gang_curve_add(struct gang_curve *c, int64_t step, int64_t steps, double loss) {
    int64_t bin = (step - 1) * GANG_CURVE_BINS / steps;
    c->losses[bin] += loss;
    c->counts[bin]++;
}

void gang_show_curve(const struct gang_curve *c) {
    static const char *const bars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    double low = 1e300, high = -1e300;
    for (int i = 0; i < GANG_CURVE_BINS; i++) {
        if (!c->counts[i]) continue;
        double mean = c->losses[i] / c->counts[i];
        low = mean < low ? mean : low;
        high = mean > high ? mean : high;
    }
    if (high <= low) return;
    printf("  loss    ");
    for (int i = 0; i < GANG_CURVE_BINS; i++)
        if (c->counts[i]) printf("%s", bars[(int)((c->losses[i] / c->counts[i] - low) / (high - low) * 7.99)]);
    printf("  %.2f to %.2f\n", high, low);
}
