// A hostile safetensors file: refused with a message, or every byte of every tensor may be read.
#include "fuzz.h"
#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    const char *path = fuzz_file(data, bytes);
    struct gang_safetensors st;
    if (gang_safetensors_open(path, &st)) {
        fuzz_check_refusal(path);
        return 0;
    }
    for (int i = 0; i < st.count; i++) {
        const struct gang_st_entry *entry = &st.entries[i];
        assert(i == 0 || strcmp(st.entries[i - 1].name, entry->name) < 0);
        assert(gang_safetensors_find(&st, entry->name) == entry);
        assert(entry->data >= st.map.data && entry->data <= st.map.data + st.map.bytes);
        float value;
        for (int64_t k = 0; entry->readable && k < entry->elements; k++) gang_st_to_f32(entry, k, 1, &value);
    }
    gang_safetensors_close(&st);
    return 0;
}
