// Tables of published runs: what is understood, what is refused and why, damaged cells.
#include "../test.h"
#include "../scratch.h"

#include <math.h>

#include "study/study.h"

#define HEADER                                                                                                                                   \
    "id,source,model,params_b,layers,hidden,heads,kv_heads,ffn,vocab,seq,gated_mlp,gpu,gpus,tp,pp,dp,vpp,ep,cp,sp,recompute,micro_bs,global_bs," \
    "dtype,metric,value,notes\n"
static const char good[] = HEADER "a,s,m,7,32,4096,32,32,16384,51200,2048,0,A100-80GB,16,2,2,4,1,1,1,1,full,1,64,bf16,s_per_iter,3.5,FSDP\n"
                                  "b,s,m,7,32,4096,32,32,16384,51200,2048,0,A100-80GB,16,2,2,4,1,1,1,1,none,1,64,bf16,tokens_per_s_per_gpu,2000,x\n";

static enum gang_status validate(const char *text, struct gang_arena *arena, struct gang_validation *out) {
    gang_arena_init(arena);
    return gang_validate(scratch_text("cases.csv", text), arena, out);
}

static void test_understood(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_validation v;
    assert_ok(validate(good, &arena, &v));
    assert_int_equal(v.count, 2);
    for (int i = 0; i < 2; i++) {
        if (v.cases[i].why_not) fail_msg("%s", v.cases[i].why_not);
        assert_true(v.cases[i].predicted > 0);
    }
    assert_float_equal(v.cases[0].measured, 3.5, 1e-12);
    assert_float_equal(v.cases[1].measured, 64 * 2048 / (2000.0 * 16), 1e-9);
    assert_int_equal(v.cases[0].layout.recompute.at[0], GANG_RECOMPUTE_FULL);
    assert_int_equal(v.blind.rows, 2);
    gang_arena_release(&arena);
}

static void test_refused(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *words;
    } cases[] = {
        {"A100-80GB", "Q100", "device 'Q100' is no known kind"},
        {"A100-80GB", "A100-80GB:8+L20:8", "unlike devices"},
        {",16,2,2,4,", ",16,2,2,3,", "the row states 16 devices"},
        {",16,2,2,4,", ",0,2,2,4,", "out of range"},
        {"a,s,m,7,", "a,s,m,70,", "states 70 B parameters"},
        {"4096,32,32", "4096,33,33", "hidden is not a multiple of heads"},
        {"bf16,s_per", ",s_per", "the data type is not stated"},
        {"s_per_iter,3.5", "mfu_pct,50", "only seconds and tokens are compared"},
        {"s_per_iter,3.5", "s_per_iter,-1", "the value is not a number above 0"},
        {"full,1,64", "full,,64", "micro_bs is not stated"},
        {"full,1,64", "some,1,64", "recompute policy 'some' is not modelled"},
        {"FSDP", "SUSPECT", "the source contradicts itself"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char text[2048];
        const char *at = strstr(good, cases[c].from);
        struct gang_arena arena;
        struct gang_validation v;
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, cases[c].to, at + strlen(cases[c].from));
        assert_ok(validate(text, &arena, &v));
        if (!v.cases[0].why_not || !strstr(v.cases[0].why_not, cases[c].words))
            fail_msg("case %zu: '%s' expected, got '%s'", c, cases[c].words, v.cases[0].why_not);
        assert_null(v.cases[1].why_not); // the other row stands
        gang_arena_release(&arena);
    }
}

static void test_mutations(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    size_t head = strlen(HEADER), bytes = strlen(good);
    for (uint64_t i = 0; i < 600; i++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        for (uint64_t k = 0; k <= gang_random_at(seed, i, 0) % 4; k++) {
            uint64_t value = gang_random_at(seed, i, 2 * k + 2);
            char *at = &text[head + gang_random_at(seed, i, 2 * k + 1) % (bytes - head)];
            if (*at != '\n') *at = "0123456789999-,.\"x"[value % 18];
        }
        struct gang_arena arena;
        struct gang_validation v;
        enum gang_status status = validate(text, &arena, &v);
        assert_true(status == GANG_OK || status == GANG_ERR_INPUT);
        for (int c = 0; !status && c < v.count; c++) assert_true(v.cases[c].why_not || (isfinite(v.cases[c].predicted) && v.cases[c].predicted > 0));
        gang_arena_release(&arena);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_understood), cmocka_unit_test(test_refused), cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
