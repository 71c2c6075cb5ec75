// A hostile job.yaml: refused with a message, or every field is inside its bounds.
#include "fuzz.h"

struct job {
    char *model;
    struct gang_strings data;
    int64_t steps;
    double rate;
    bool shuffle;
    int type;
};

static const char *const types[] = {"f32", "bf16", NULL};

static const struct gang_field fields[] = {
    {"model", GANG_FIELD_STRING, offsetof(struct job, model), "m", 0, 0, NULL, NULL},
    {"data", GANG_FIELD_STRINGS, offsetof(struct job, data), "d", 0, 0, NULL, NULL},
    {"steps", GANG_FIELD_INT, offsetof(struct job, steps), "100", 1, 1e9, NULL, NULL},
    {"rate", GANG_FIELD_REAL, offsetof(struct job, rate), "3e-4", 0, 10, NULL, NULL},
    {"shuffle", GANG_FIELD_BOOL, offsetof(struct job, shuffle), "true", 0, 0, NULL, NULL},
    {"type", GANG_FIELD_ENUM, offsetof(struct job, type), "bf16", 0, 0, types, NULL},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const char *path = fuzz_file(data, bytes);
    struct gang_arena arena;
    struct job job = {0};
    gang_arena_init(&arena);
    if (gang_yaml_bind(path, fields, sizeof fields / sizeof *fields, &job, &arena)) {
        fuzz_check_refusal(path);
    } else {
        assert(job.model && job.data.count > 0 && job.steps >= 1 && job.steps <= 1000000000 && job.rate >= 0 && job.rate <= 10);
        assert(job.type == 0 || job.type == 1);
        for (int i = 0; i < job.data.count; i++) assert(strlen(job.data.items[i]) <= bytes + 1);
    }
    gang_arena_release(&arena);
    return 0;
}
