// test: what the C tests share on top of cmocka: seeds that are printed and can be given, checks with figures.
#ifndef GANG_TEST_H
#define GANG_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

// GANG_TEST_SEED from the environment, or a fixed one; printed so that a failure can be repeated.
static inline uint64_t test_seed(void) {
    const char *text = getenv("GANG_TEST_SEED");
    int64_t seed = 1;
    if (text && gang_parse_int("GANG_TEST_SEED", text, 0, INT64_MAX, &seed)) fail_msg("%s", gang_error());
    print_message("seed %lld (GANG_TEST_SEED)\n", (long long)seed);
    return (uint64_t)seed;
}

#define assert_ok(call)                                      \
    do {                                                     \
        if ((call) != GANG_OK) fail_msg("%s", gang_error()); \
    } while (0)

// The call fails with this status and says these words.
#define assert_fails(status, words, call)                                                                        \
    do {                                                                                                         \
        assert_int_equal(call, status);                                                                          \
        if (!strstr(gang_error(), words)) fail_msg("expected '%s' in the error, got '%s'", words, gang_error()); \
    } while (0)

#endif
