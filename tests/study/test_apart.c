// Tables of runs over distance and on unlike devices: what is understood, what is refused and why, damaged cells.
#include "../test.h"
#include "../scratch.h"

#include <math.h>

#include "study/study.h"

#define HEADER "id,what,model,devices,sites,distance_km,long_link_tbps,crossing,metric,value,unit,source,note\n"
static const char good[] = HEADER "base,far,LLaMA2-70B,1024 x BR106M,1,0,,none,throughput,300,tokens/s/device,s,baseline for PP\n"
                                  "three,far,LLaMA2-70B,512+384+128 x BR106M,3,400 (300+50+50),12.8,PP,throughput,297,tokens/s/device,s,loss 1 %\n"
                                  "mixed,unlike,Llama2-3.8B,H20 x8 + BR106M x8,1,,,PP uneven over RDMA,efficiency,95 to 96,%,s,\n";

static enum gang_status read_table(const char *text, struct gang_arena *arena, struct gang_apart *out) {
    gang_arena_init(arena);
    return gang_apart_read(scratch_text("apart.csv", text), arena, out);
}

static void test_understood(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_apart apart;
    assert_ok(read_table(good, &arena, &apart));
    assert_true(gang_apart_is(scratch_text("apart.csv", good)));
    assert_false(gang_apart_is(scratch_text("other.csv", "id,model\na,b\n")));
    assert_int_equal(apart.count, 3);
    assert_non_null(strstr(apart.cases[0].why_not, "others are compared with"));
    for (int i = 1; i < 3; i++) {
        const struct gang_apart_case *c = &apart.cases[i];
        if (c->why_not) fail_msg("%s", c->why_not);
        assert_true(c->low > 0.5 && c->low < c->high && c->high < 1.05);
    }
    assert_float_equal(apart.cases[1].stated_low, 0.99, 1e-9);
    assert_float_equal(apart.cases[2].stated_high, 0.96, 1e-9);
    // A pipeline over 400 km loses next to nothing, so the row that says 1 % lies beside the range, by that much.
    assert_true(apart.cases[1].low > 0.995);
    assert_float_equal(apart.cases[1].off, apart.cases[1].low - 0.99, 1e-6);
    assert_float_equal(apart.worst, fmax(apart.cases[1].off, apart.cases[2].off), 1e-6);
    gang_arena_release(&arena);
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *words;
        int row;
    } cases[] = {
        {"three,far,LLaMA2-70B", "three,far,LLaMA9", "model 'LLaMA9' is not known", 1},
        {"512+384+128 x BR106M", "512+384+128 x BR107", "device 'BR107' is no known kind", 1},
        {"512+384+128 x BR106M", "many x BR106M", "devices are not understood", 1},
        {"400 (300+50+50),12.8", "400 (300+50+50),", "the link is not stated", 1},
        {"400 (300", "x (300", "the link is not stated", 1},
        {"throughput,297", "throughput,x", "the value is not a number", 1},
        {"baseline for PP", "whole for PP", "no row is the baseline", 1},
        {"H20 x8 + BR106M x8", "H20 x8 + BR106M x9", "devices are not understood", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[2048];
        const char *at = strstr(good, cases[i].from);
        struct gang_arena arena;
        struct gang_apart apart;
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, cases[i].to, at + strlen(cases[i].from));
        assert_ok(read_table(text, &arena, &apart));
        const char *why = apart.cases[cases[i].row].why_not;
        if (!why || !strstr(why, cases[i].words)) fail_msg("case %zu: '%s' expected, got '%s'", i, cases[i].words, why ? why : "a prediction");
        gang_arena_release(&arena);
    }
}

static void test_mutations(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    // The far rows, whose simulations are short.
    size_t head = strlen(HEADER), bytes = (size_t)(strstr(good, "mixed,") - good);
    for (uint64_t i = 0; i < 100; i++) {
        char text[sizeof good];
        memcpy(text, good, bytes);
        text[bytes] = 0;
        for (uint64_t k = 0; k <= gang_random_at(seed, i, 0) % 4; k++) {
            uint64_t value = gang_random_at(seed, i, 2 * k + 2);
            char *at = &text[head + gang_random_at(seed, i, 2 * k + 1) % (bytes - head)];
            if (*at != '\n') *at = "0123456789+-,.\"x ("[value % 18];
        }
        struct gang_arena arena;
        struct gang_apart apart;
        enum gang_status status = read_table(text, &arena, &apart);
        assert_true(status == GANG_OK || status == GANG_ERR_INPUT);
        for (int c = 0; !status && c < apart.count; c++)
            assert_true(apart.cases[c].why_not || (isfinite(apart.cases[c].low) && apart.cases[c].low > 0 && apart.cases[c].off >= 0));
        gang_arena_release(&arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_understood), cmocka_unit_test(test_refused), cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
