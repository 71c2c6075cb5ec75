// A hostile config.json: refused with a message, or a model can be laid out by it, and writing it loses nothing.
#include "fuzz.h"
#include "model/model.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const char *path = fuzz_file(data, bytes);
    struct gang_config config;
    if (gang_config_read(path, &config)) {
        fuzz_check_refusal(path);
        return 0;
    }
    static double frequencies[512];
    assert(config.head_dim / 2 <= 512);
    gang_rope_frequencies(&config, frequencies);
    for (int i = 0; i < config.head_dim / 2; i++) assert(isfinite(frequencies[i]) && frequencies[i] >= 0 && frequencies[i] <= 1);

    struct gang_arena arena;
    struct gang_model model;
    gang_arena_init(&arena);
    gang_model_init(&model, &config, &arena);
    assert(model.parameters > 0 && model.parameters <= model.elements && model.elements < (int64_t)1 << 56);
    gang_arena_release(&arena);

    struct gang_config again;
    assert(gang_config_write(&config, "/dev/shm") == GANG_OK && gang_config_read("/dev/shm", &again) == GANG_OK);
    assert(again.hidden_size == config.hidden_size && again.norm_eps == config.norm_eps && again.rope_theta == config.rope_theta &&
           again.rope_kind == config.rope_kind && again.rope_factor == config.rope_factor && again.eos_token == config.eos_token);
    return 0;
}
