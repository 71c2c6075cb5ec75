// scratch: a directory that a test may fill, and files in it. Include after "test.h".
#ifndef GANG_SCRATCH_H
#define GANG_SCRATCH_H

#include <unistd.h>

static char scratch_dir[64];

// As setup and teardown of a cmocka group.
static inline int scratch_open(void **state) {
    (void)state;
    snprintf(scratch_dir, sizeof scratch_dir, "/tmp/gang_test_XXXXXX");
    return mkdtemp(scratch_dir) ? 0 : -1;
}
static inline int scratch_close(void **state) {
    (void)state;
    return gang_dir_remove(scratch_dir) ? -1 : 0;
}

// The path of a file in the directory; one of four buffers in turn.
static inline const char *scratch_path(const char *name) {
    static char paths[4][256];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof *paths, "%s/%s", scratch_dir, name);
    return path;
}

static inline const char *scratch_write(const char *name, const void *data, size_t bytes) {
    const char *path = scratch_path(name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, bytes, file), bytes);
    assert_int_equal(fclose(file), 0);
    return path;
}

static inline const char *scratch_text(const char *name, const char *text) { return scratch_write(name, text, strlen(text)); }

#endif
