// Spans as Chrome's trace events.
#include "sim/sim.h"

// Processes are numbered from `base`; `what` stands before their names.
static void print_events(const struct gang_sim *sim, const struct gang_program *program, int base, const char *what, struct gang_buffer *out) {
    for (int r = 0; r < sim->ranks; r++) {
        int replica = r / program->stages, stage = r % program->stages;
        if (!stage)
            gang_buffer_printf(out,
                               "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, \"args\": {\"name\": \"%sreplica %d (%lld alike)\"}},\n",
                               base + replica, what, replica, (long long)program->copies[replica]);
        gang_buffer_printf(out, "{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": %d, \"tid\": %d, \"args\": {\"name\": \"stage %d\"}},\n",
                           base + replica, 2 * stage, stage);
        gang_buffer_printf(out,
                           "{\"ph\": \"M\", \"name\": \"thread_name\", \"pid\": %d, \"tid\": %d, \"args\": {\"name\": \"stage %d exchanges\"}},\n",
                           base + replica, 2 * stage + 1, stage);
    }
    for (size_t i = 0; i < sim->span_count; i++) {
        const struct gang_span *s = &sim->spans[i];
        int replica = base + s->rank / program->stages, stage = s->rank % program->stages;
        bool exchange = s->op == GANG_OP_GATHER || s->op == GANG_OP_REDUCE;
        const char *name = gang_ops[s->op].name;
        if (s->op != GANG_OP_SEND) {
            gang_buffer_printf(out,
                               "{\"ph\": \"X\", \"name\": \"%s c%d m%d\", \"cat\": \"%s\", \"pid\": %d, \"tid\": %d, \"ts\": %.3f, \"dur\": %.3f},\n",
                               name, s->chunk, s->micro, name, replica, 2 * stage + exchange, s->start * 1e6, (s->end - s->start) * 1e6);
            continue;
        }
        for (int end = 0; end < 2; end++) {
            gang_buffer_printf(out, "{\"ph\": \"%s\", \"name\": ", end ? "e" : "b");
            if (s->chunk < 0)
                gang_buffer_printf(out, "\"tied head\"");
            else
                gang_buffer_printf(out, "\"send c%d m%d\"", s->chunk, s->micro);
            gang_buffer_printf(out, ", \"cat\": \"send\", \"id\": %zu, \"pid\": %d, \"tid\": %d, \"ts\": %.3f},\n", i, replica, 2 * stage + 1,
                               (end ? s->end : s->start) * 1e6);
        }
    }
}

static void print_all(const struct gang_sim *sims[2], const struct gang_program *program, struct gang_buffer *out) {
    gang_buffer_printf(out, "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n");
    print_events(sims[0], program, 0, sims[1] ? "predicted: " : "", out);
    if (sims[1]) print_events(sims[1], program, program->replicas, "real: ", out);
    gang_buffer_printf(out, "{\"ph\": \"M\", \"name\": \"end\", \"pid\": 0, \"args\": {}}\n]}\n");
}

void gang_sim_trace(const struct gang_sim *sim, const struct gang_program *program, struct gang_buffer *out) {
    print_all((const struct gang_sim *[2]){sim, NULL}, program, out);
}

void gang_sim_trace_pair(const struct gang_sim *predicted, const struct gang_sim *real, const struct gang_program *program, struct gang_buffer *out) {
    print_all((const struct gang_sim *[2]){predicted, real}, program, out);
}
