// From a layout to an answer: the whole way once.
#include "study/study.h"

const double gang_memory_margin = 0.05;

static void measure_memory(const struct gang_task *task, struct gang_arena *arena, struct gang_answer *out) {
    int stages = out->layout.pp;
    out->memory = gang_arena_alloc(arena, (size_t)(out->costs.classes * stages) * sizeof *out->memory);
    for (int c = 0, first = 0; c < out->costs.classes; c++) {
        for (int s = 0; s < stages; s++) {
            struct gang_memory_use *use = &out->memory[c * stages + s];
            gang_memory_of(task, &out->layout, &out->costs, c, s, out->sim.rank[first * stages + s].peak_activation_bytes, use);
            double share = use->total / (use->limit * (1 - gang_memory_margin));
            if (share > out->memory_used) out->memory_used = share, out->tightest_class = c, out->tightest_stage = s;
        }
        first += out->program.replicas == out->costs.classes ? 1 : (int)out->placement.classes[c].replicas;
    }
}

static enum gang_status check_memory(const struct gang_answer *out) {
    char need[GANG_HUMAN_BYTES], has[GANG_HUMAN_BYTES], weights[GANG_HUMAN_BYTES], kept[GANG_HUMAN_BYTES];
    const struct gang_memory_use *use = &out->memory[out->tightest_class * out->layout.pp + out->tightest_stage];
    if (out->memory_used <= 1) return GANG_OK;
    return gang_fail(
        GANG_ERR_MEMORY,
        "layout: needs %s on stage %d (weights, gradients and optimizer %s, activations %s), device has %s and %.0f %% of it stays free: "
        "more stages or tensor parallelism, recompute=full, a smaller mb or a higher zero need less",
        gang_human_bytes(use->total, need), out->tightest_stage, gang_human_bytes(use->weights + use->gradients + use->optimizer, weights),
        gang_human_bytes(use->activations, kept), gang_human_bytes(use->limit, has), 100 * gang_memory_margin);
}

// A program from a file must be one for this layout: what the simulator takes from the layout has to be true of it.
static enum gang_status read_program(const char *path, const struct gang_answer *a, struct gang_arena *arena, struct gang_program *out) {
    enum { MAX_BYTES = 1 << 30 };
    struct gang_buffer text = {0};
    enum gang_status status = gang_file_read(path, MAX_BYTES, &text);
    if (!status) status = gang_program_parse(path, text.data ? text.data : "", text.len, arena, out);
    gang_buffer_release(&text);
    if (status) return status;
    if (out->stages != a->layout.pp || out->chunks != a->costs.chunks || out->replicas != a->placement.class_count)
        return gang_fail(GANG_ERR_FORMAT, "%s: %d stages, %d chunks, %d kinds of replicas: the layout has %d, %d, %d", path, out->stages, out->chunks,
                         out->replicas, a->layout.pp, a->costs.chunks, a->placement.class_count);
    for (int r = 0; r < out->replicas; r++) {
        const struct gang_class *class = &a->placement.classes[r];
        if (out->copies[r] != class->replicas || out->micro_batches[r] != class->micro_batches)
            return gang_fail(GANG_ERR_FORMAT, "%s: replica %d: %lld copies of %lld micro-batches: the layout has %lld of %lld", path, r,
                             (long long)out->copies[r], (long long)out->micro_batches[r], (long long)class->replicas,
                             (long long)class->micro_batches);
    }
    for (int r = 0; r < out->replicas * out->stages; r++) {
        int64_t exchanges = 0, wanted = 0;
        for (int c = r % out->stages; c < out->chunks; c += out->stages) wanted += (a->costs.reduce[c].bytes > 0) + (a->costs.gather[c].bytes > 0);
        for (int i = 0; i < out->ranks[r].count; i++) {
            const struct gang_instruction *in = &out->ranks[r].items[i];
            bool gather = in->op == GANG_OP_GATHER;
            if (!gather && in->op != GANG_OP_REDUCE) continue;
            exchanges += (gather ? a->costs.gather : a->costs.reduce)[in->chunk].bytes > 0 ? 1 : wanted + 1;
        }
        if (exchanges != wanted)
            return gang_fail(GANG_ERR_FORMAT, "%s: rank %d: gathers and reduces other than the layout's sharding needs", path, r);
    }
    return GANG_OK;
}

static enum gang_status evaluate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                                 const char *program_path, int flags, struct gang_arena *arena, struct gang_answer *out) {
    *out = (struct gang_answer){.layout = *layout};
    enum gang_status status = gang_layout_place(task, pool, &out->layout, arena, &out->placement);
    if (status) return status;
    gang_costs_fill(task, pool, &out->layout, &out->placement, arena, &out->costs);
    bool fold = !(flags & GANG_EVALUATE_UNFOLDED);
    out->schedule = (enum gang_schedule)layout->schedule;
    status = program_path ? read_program(program_path, out, arena, &out->program)
                          : gang_program_build(task, pool, &out->layout, &out->placement, &out->costs, fold, arena, &out->program, &out->schedule);
    if (!status) status = gang_program_verify(&out->program, &out->costs, arena, &out->facts);
    if (status) return status;
    const struct gang_sim_input input = {.pool = pool,
                                         .layout = &out->layout,
                                         .placement = &out->placement,
                                         .costs = &out->costs,
                                         .program = &out->program,
                                         .spans = flags & GANG_EVALUATE_SPANS};
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

enum gang_status gang_evaluate_program(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout, const char *path,
                                       int flags, struct gang_arena *arena, struct gang_answer *out) {
    return evaluate(task, pool, layout, path, flags, arena, out);
}
