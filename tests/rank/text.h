// The text that the ranks of these tests train on, as bytes, in the scratch directory.
#ifndef TESTS_RANK_TEXT_H
#define TESTS_RANK_TEXT_H

#include "../scratch.h"

#include "model/model.h"

static struct gang_data *data;

static int open_text(void **state) {
    if (scratch_open(state)) return -1;
    struct gang_buffer text = {0};
    struct gang_tokenizer *bytes;
    for (int i = 0; text.len < 15000; i++) gang_buffer_printf(&text, "%d dogs of different strength, one pull. ", i);
    scratch_write("text.txt", text.data, 15000);
    gang_buffer_release(&text);
    char *sources[] = {(char *)scratch_path("text.txt")};
    const struct gang_strings list = {1, sources};
    if (gang_tokenizer_open(NULL, &bytes)) return -1;
    enum gang_status status = gang_data_open(
        &(struct gang_data_options){.sources = &list, .cache_dir = scratch_path("cache"), .threads = 1, .end_token = -1}, bytes, &data);
    gang_tokenizer_free(bytes);
    return status ? -1 : 0;
}

static int close_text(void **state) {
    gang_data_free(data);
    return scratch_close(state);
}

#endif
