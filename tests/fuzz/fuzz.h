// fuzz: the input as a file. Each harness is a libFuzzer target; tests/fuzz/run builds and runs one:
//
//     tests/fuzz/run fuzz_safetensors 120        (seconds; corpus and findings in build/fuzz)
//
// The short, seeded form of each stands as test_mutations in the ordinary tests.
#ifndef GANG_FUZZ_H
#define GANG_FUZZ_H

#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/base.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

// A file in memory that holds `data`; its path, which is good until the next call.
static inline const char *fuzz_file(const uint8_t *data, size_t bytes) {
    static char path[64];
    static int fd = -1;
    if (fd < 0) fd = memfd_create("input", 0);
    assert(fd >= 0 && ftruncate(fd, 0) == 0);
    assert(pwrite(fd, data, bytes, 0) == (ssize_t)bytes);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return path;
}

// A refusal has a message that names the file, on one line.
static inline void fuzz_check_refusal(const char *path) {
    assert(strstr(gang_error(), path) && !strchr(gang_error(), '\n'));
    assert(gang_error()[strlen(path)] == ':');
}

#endif
