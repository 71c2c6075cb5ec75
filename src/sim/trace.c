// Spans as Chrome's trace events.
#include "sim/sim.h"

#include <string.h>

enum gang_status gang_ranks_parse(const char *text, int ranks, struct gang_arena *arena, bool **out) {
    *out = gang_arena_alloc(arena, (size_t)ranks * sizeof **out);
    do {
        char part[32], *dash;
        size_t len = strcspn(text, ",");
        int64_t first = 0, last = 0;
        if (len >= sizeof part)
            return gang_fail(GANG_ERR_INPUT, "ranks: '%.40s...': expected ranks and ranges with commas between, such as 0-7,64", text);
        memcpy(part, text, len);
        part[len] = 0;
        dash = strchr(part, '-');
        if (dash) *dash = 0;
        enum gang_status status = gang_parse_int("ranks", part, 0, ranks - 1, &first);
        last = first;
        if (!status && dash) status = gang_parse_int("ranks", dash + 1, first, ranks - 1, &last);
        if (status) return status;
        for (int64_t r = first; r <= last; r++) (*out)[r] = true;
        text += len;
    } while (*text++ == ',');
    return GANG_OK;
}

// Processes are numbered from `base`; `what` stands before their names.
static void print_events(const struct gang_sim *sim, const struct gang_program *program, const bool *traced, int base, const char *what,
                         struct gang_buffer *out) {
    for (int r = 0, named = -1; r < sim->ranks; r++) {
        int replica = r / program->stages, stage = r % program->stages;
        if (traced && !traced[r]) continue;
        if (replica != named)
            gang_buffer_printf(out,
                               "{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": %d, \"args\": {\"name\": \"%sreplica %d (%lld alike)\"}},\n",
                               base + replica, what, replica, (long long)program->copies[replica]);
        named = replica;
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

static const char head[] = "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [\n";
static const char tail[] = "{\"ph\": \"M\", \"name\": \"end\", \"pid\": 0, \"args\": {}}\n]}\n";

void gang_sim_trace(const struct gang_sim *sim, const struct gang_program *program, const bool *traced, struct gang_buffer *out) {
    gang_buffer_printf(out, "%s", head);
    print_events(sim, program, traced, 0, "", out);
    gang_buffer_printf(out, "%s", tail);
}

void gang_sim_trace_pair(const struct gang_sim *predicted, const struct gang_sim *real, const struct gang_program *program, struct gang_buffer *out) {
    gang_buffer_printf(out, "%s", head);
    print_events(predicted, program, NULL, 0, "predicted: ", out);
    print_events(real, program, NULL, program->replicas, "real: ", out);
    gang_buffer_printf(out, "%s", tail);
}
