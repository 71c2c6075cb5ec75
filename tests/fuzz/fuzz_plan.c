// A hostile plan under a right checksum: refused with file and line, or its program is verified and runs.
#include "fuzz.h"
#include "study/study.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    struct gang_buffer text = {0};
    struct gang_arena arena;
    struct gang_plan plan;
    gang_arena_init(&arena);
    gang_buffer_append(&text, data, bytes);
    gang_buffer_printf(&text, "checksum %016llx\n", (unsigned long long)gang_hash(data, bytes, 0));
    const char *path = fuzz_file((const uint8_t *)text.data, text.len);
    if (gang_plan_read(path, &arena, &plan)) {
        fuzz_check_refusal(path);
    } else {
        static struct gang_arena kept;
        static struct gang_task task;
        static struct gang_pool pool;
        struct gang_answer answer;
        if (!pool.devices) assert(gang_task_read("examples/plan/laptops.yaml", NULL, &kept, &task, &pool) == GANG_OK);
        if (!gang_plan_check(&plan, &task, &pool) && !gang_evaluate_plan(&task, &pool, &plan, 0, &arena, &answer))
            assert(isfinite(answer.sim.step_seconds));
    }
    gang_arena_release(&arena);
    gang_buffer_release(&text);
    return 0;
}
