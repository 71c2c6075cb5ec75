// What a process holds, for tests that nothing is left behind.
#ifndef TESTS_HOLDINGS_H
#define TESTS_HOLDINGS_H

#include "test.h"

#include <dirent.h>
#include <malloc.h>

struct holdings {
    int descriptors, threads;
    size_t bytes; // of the heap
};

static inline int gang_test_entries(const char *path) {
    int count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

static inline struct holdings gang_test_holdings(void) {
    struct mallinfo2 info = mallinfo2();
    return (struct holdings){gang_test_entries("/proc/self/fd"), gang_test_entries("/proc/self/task"), info.uordblks + info.hblkhd};
}

#endif
