// From a layout to an answer: the whole way once.
#include "study/study.h"

#include <math.h>

const double gang_memory_margin = 0.05;

static void measure_memory(const struct gang_task *task, struct gang_arena *arena, struct gang_answer *out) {
    int stages = out->layout.pp;
    out->memory = gang_arena_alloc(arena, (size_t)(out->costs.classes * stages) * sizeof *out->memory);
    for (int c = 0, first = 0; c < out->costs.classes; c++) {
        for (int s = 0; s < stages; s++) {
            struct gang_memory_use *use = &out->memory[c * stages + s];
            gang_memory_of(task, &out->layout, &out->costs, c, s, &out->sim.rank[first * stages + s].held, use);
            double share = use->total / (use->limit * (1 - gang_memory_margin));
            if (use->host > 0) share = fmax(share, use->host / (use->host_limit * (1 - gang_memory_margin)));
            if (share > out->memory_used) out->memory_used = share, out->tightest_class = c, out->tightest_stage = s;
        }
        for (int64_t seen = 0; seen < out->placement.classes[c].replicas;) seen += out->program.copies[first++];
    }
}

static enum gang_status check_memory(const struct gang_answer *out) {
    char need[GANG_HUMAN_BYTES], has[GANG_HUMAN_BYTES], weights[GANG_HUMAN_BYTES], kept[GANG_HUMAN_BYTES];
    const struct gang_memory_use *use = &out->memory[out->tightest_class * out->layout.pp + out->tightest_stage];
    if (out->memory_used <= 1) return GANG_OK;
    if (use->host > use->host_limit * (1 - gang_memory_margin))
        return gang_fail(GANG_ERR_MEMORY,
                         "layout: offload on stage %d: needs %s of its node's memory for each device, whose part is %s and %.0f %% of it stays free: "
                         "a higher zero, more stages, recompute or a smaller mb need less",
                         out->tightest_stage, gang_human_bytes(use->host, need), gang_human_bytes(use->host_limit, has), 100 * gang_memory_margin);
    return gang_fail(
        GANG_ERR_MEMORY,
        "layout: needs %s on stage %d (weights, gradients and optimizer %s, activations %s), device has %s and %.0f %% of it stays free: "
        "more stages or tensor parallelism, recompute=full, a smaller mb, a higher zero or offload=both need less",
        gang_human_bytes(use->total, need), out->tightest_stage, gang_human_bytes(use->weights + use->gradients + use->optimizer, weights),
        gang_human_bytes(use->activations, kept), gang_human_bytes(use->limit, has), 100 * gang_memory_margin);
}

// A program from a file must be one for this layout: what the simulator takes from the layout has to be true of it. Its replicas
// are those of the classes one after another, each standing for one or several.
static enum gang_status check_replicas(const char *path, const struct gang_program *program, const struct gang_placement *placement) {
    int class = 0;
    int64_t seen = 0;
    for (int r = 0; r < program->replicas; r++) {
        const struct gang_class *of = class < placement->class_count ? &placement->classes[class] : NULL;
        seen += program->copies[r];
        if (!of || seen > of->replicas || program->micro_batches[r] != of->micro_batches || program->sizes[r] != of->micro_batch)
            return gang_fail(GANG_ERR_FORMAT, "%s: replica %d: %lld copies of %lld micro-batches of %lld: the layout has %lld of %lld of %d", path, r,
                             (long long)program->copies[r], (long long)program->micro_batches[r], (long long)program->sizes[r],
                             of ? (long long)(of->replicas - seen + program->copies[r]) : 0LL, of ? (long long)of->micro_batches : 0LL,
                             of ? of->micro_batch : 0);
        if (seen == of->replicas) class ++, seen = 0;
    }
    if (class < placement->class_count) return gang_fail(GANG_ERR_FORMAT, "%s: fewer replicas than the layout has", path);
    return GANG_OK;
}

static enum gang_status check_exchanges(const char *path, const struct gang_program *program, const struct gang_costs *costs) {
    for (int r = 0; r < program->replicas * program->stages; r++) {
        int64_t exchanges = 0, wanted = 0;
        for (int c = r % program->stages; c < program->chunks; c += program->stages)
            wanted += (costs->reduce[c].bytes > 0) + (costs->gather[c].bytes > 0);
        for (int i = 0; i < program->ranks[r].count; i++) {
            const struct gang_instruction *in = &program->ranks[r].items[i];
            bool gather = in->op == GANG_OP_GATHER;
            if (!gather && in->op != GANG_OP_REDUCE) continue;
            exchanges += (gather ? costs->gather : costs->reduce)[in->chunk].bytes > 0 ? 1 : wanted + 1;
        }
        if (exchanges != wanted)
            return gang_fail(GANG_ERR_FORMAT, "%s: rank %d: gathers and reduces other than the layout's sharding needs", path, r);
    }
    return GANG_OK;
}

// The plan's shares of the batch, which speeds known since would make others.
static enum gang_status take_classes(const struct gang_plan *plan, const struct gang_task *task, struct gang_arena *arena,
                                     struct gang_placement *placement) {
    int64_t sequences = 0, left[GANG_MAX_REPLICA_KINDS] = {0};
    const struct gang_class *kinds = placement->classes;
    for (int c = 0; c < placement->class_count; c++) left[kinds[c].kind] += kinds[c].replicas;
    placement->classes = gang_arena_alloc(arena, GANG_MAX_CLASSES * sizeof *placement->classes);
    placement->class_count = plan->class_count;
    for (int c = 0; c < plan->class_count; c++) {
        struct gang_class *class = &placement->classes[c];
        *class = plan->classes[c];
        if (class->kind >= placement->kind_count || class->replicas > left[class->kind])
            return gang_fail(GANG_ERR_FORMAT, "%s: class %d: %lld replicas of kind %d: the layout has fewer", plan->path, c,
                             (long long)class->replicas, class->kind);
        left[class->kind] -= class->replicas;
        class->groups = kinds[class->kind].groups;
        class->micro_batch = kinds[class->kind].micro_batch;
        int64_t each = class->replicas * class->micro_batch;
        if (class->micro_batches > (task->global_batch - sequences) / each)
            return gang_fail(GANG_ERR_FORMAT, "%s: class %d: shares out more than the batch's %lld sequences", plan->path, c,
                             (long long)task->global_batch);
        sequences += each * class->micro_batches;
    }
    for (int k = 0; k < placement->kind_count; k++)
        if (left[k]) return gang_fail(GANG_ERR_FORMAT, "%s: %lld replicas of kind %d are in no class", plan->path, (long long)left[k], k);
    if (sequences != task->global_batch)
        return gang_fail(GANG_ERR_FORMAT, "%s: the classes share out %lld sequences: the batch has %lld", plan->path, (long long)sequences,
                         (long long)task->global_batch);
    return GANG_OK;
}

static enum gang_status take_program(const struct gang_plan *plan, bool fold, struct gang_arena *arena, struct gang_answer *out) {
    const struct gang_program *p = &plan->program;
    if (p->stages != out->layout.pp || p->chunks != out->costs.chunks)
        return gang_fail(GANG_ERR_FORMAT, "%s: a program of %d stages and %d chunks: the layout has %d and %d", plan->path, p->stages, p->chunks,
                         out->layout.pp, out->costs.chunks);
    enum gang_status status = check_replicas(plan->path, p, &out->placement);
    if (!status) status = check_exchanges(plan->path, p, &out->costs);
    if (status || fold) {
        out->program = *p;
        return status;
    }
    return gang_program_unfold(p, arena, &out->program);
}

static enum gang_status evaluate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                                 const struct gang_plan *plan, int flags, struct gang_arena *arena, struct gang_answer *out) {
    *out = (struct gang_answer){.layout = *layout};
    enum gang_status status = gang_layout_place(task, pool, &out->layout, arena, &out->placement);
    if (!status && plan) status = take_classes(plan, task, arena, &out->placement);
    if (status) return status;
    gang_costs_fill(task, pool, &out->layout, &out->placement, arena, &out->costs);
    bool fold = !(flags & GANG_EVALUATE_UNFOLDED);
    out->schedule = (enum gang_schedule)layout->schedule;
    status = plan ? take_program(plan, fold, arena, out)
                  : gang_program_build(task, pool, &out->layout, &out->placement, &out->costs, fold, arena, &out->program, &out->schedule);
    if (!status) status = gang_program_verify(&out->program, &out->costs, arena, &out->facts);
    if (status) return status;
    const struct gang_sim_input input = {
        .pool = pool, .layout = &out->layout, .placement = &out->placement, .costs = &out->costs, .program = &out->program};
    status = gang_sim_run(&input, arena, &out->sim);
    if (status) return status;
    gang_sim_summarise(&input, task, &out->sim, &out->summary);
    measure_memory(task, arena, out);
    return flags & GANG_EVALUATE_ANY_MEMORY ? GANG_OK : check_memory(out);
}

enum gang_status gang_evaluate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout, int flags,
                               struct gang_arena *arena, struct gang_answer *out) {
    return evaluate(task, pool, layout, NULL, flags, arena, out);
}

enum gang_status gang_evaluate_plan(const struct gang_task *task, const struct gang_pool *pool, const struct gang_plan *plan, int flags,
                                    struct gang_arena *arena, struct gang_answer *out) {
    return evaluate(task, pool, &plan->layout, plan, flags, arena, out);
}
