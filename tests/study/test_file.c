// Plan files: what is written is read, runs to the same time, and holds only for what it was made for; damage is refused with its line.
#include "../test.h"

#include "../scratch.h"
#include "study/study.h"

struct made {
    struct gang_arena arena;
    struct gang_task task;
    struct gang_pool pool;
    struct gang_answer answer;
    char job[256], file[256];
};

static void make(const char *layout_text, int flags, struct made *out) {
    struct gang_list kinds;
    struct gang_layout layout;
    *out = (struct made){0};
    gang_arena_init(&out->arena);
    gang_kinds_builtin(&out->arena, &kinds);
    gang_pool_uniform(gang_kind_find(&kinds, "A100-80GB"), 8, 8, &out->arena, &out->pool);
    if (strstr(layout_text, "mb=")) { // a size for each of two kinds of replicas
        struct gang_pool other;
        gang_pool_uniform(gang_kind_find(&kinds, "H100-80GB"), 4, 4, &out->arena, &other);
        struct gang_group *groups[] = {out->pool.groups[0], other.groups[0]};
        out->pool.groups = memcpy(gang_arena_alloc(&out->arena, sizeof groups), groups, sizeof groups);
        out->pool.group_count = 2, out->pool.devices = 12;
    }
    out->task = (struct gang_task){
        .shape = {.layers = 8, .hidden = 1024, .heads = 8, .kv_heads = 8, .qk_dim = 128, .v_dim = 128, .ffn = 4096, .vocab = 32000, .gated = true},
        .sequence_length = 512,
        .global_batch = 24};
    snprintf(out->job, sizeof out->job, "%s", scratch_text("job.yaml", "x"));
    snprintf(out->file, sizeof out->file, "%s", scratch_path("plan"));
    out->pool.path = out->job;
    assert_ok(gang_layout_parse(layout_text, &layout));
    assert_ok(gang_evaluate(&out->task, &out->pool, &layout, flags, &out->arena, &out->answer));
    assert_ok(gang_plan_write(out->file, out->job, &out->task, &out->pool, &out->answer));
}

static void test_back(void **state) {
    (void)state;
    static const char *const layouts[] = {"tp=2,pp=4",
                                          "pp=2,dp=3,layers=3/5",
                                          "pp=2,vpp=2,dp=4,zero=0",
                                          "dp=7",
                                          "pp=4,dp=2,schedule=zero-bubble",
                                          "pp=4,dp=3,mb=2/3,place=replicas",
                                          "pp=4,recompute=full/none/none/selective"};
    for (int i = 0; i < 14; i++) {
        struct made m;
        struct gang_plan plan;
        struct gang_answer again;
        make(layouts[i / 2], i % 2 ? GANG_EVALUATE_UNFOLDED : 0, &m);
        assert_true(gang_plan_is(m.file) && !gang_plan_is(m.job) && !gang_plan_is("/nowhere"));
        assert_ok(gang_plan_read(m.file, &m.arena, &plan));
        assert_string_equal(plan.job, m.job);
        assert_string_equal(plan.cluster, m.job);
        assert_ok(gang_evaluate_plan(&m.task, &m.pool, &plan, 0, &m.arena, &again));
        assert_true(again.sim.step_seconds == m.answer.sim.step_seconds && again.memory_used == m.answer.memory_used);
        assert_int_equal(again.schedule, m.answer.schedule);
        assert_string_equal(gang_layout_print(&again.layout, &m.arena), gang_layout_print(&plan.layout, &m.arena));
        assert_int_equal(again.program.replicas, i % 2 ? m.answer.layout.dp : m.answer.placement.class_count);
        // Unfolded it is what an unfolded evaluation makes.
        struct gang_answer whole;
        struct gang_buffer text[2] = {{0}};
        assert_ok(gang_evaluate_plan(&m.task, &m.pool, &plan, GANG_EVALUATE_UNFOLDED, &m.arena, &again));
        assert_ok(gang_evaluate(&m.task, &m.pool, &m.answer.layout, GANG_EVALUATE_UNFOLDED, &m.arena, &whole));
        gang_program_print(&again.program, &text[0]);
        gang_program_print(&whole.program, &text[1]);
        assert_string_equal(text[0].data, text[1].data);
        for (int t = 0; t < 2; t++) gang_buffer_release(&text[t]);
        gang_arena_release(&m.arena);
    }
}

static void test_other(void **state) {
    (void)state;
    struct made m;
    struct gang_plan plan;
    make("pp=2", 0, &m);
    assert_ok(gang_plan_read(m.file, &m.arena, &plan));
    assert_ok(gang_plan_check(&plan, &m.task, &m.pool));
    m.task.shape.hidden = 2048;
    assert_fails(GANG_ERR_INPUT, "/plan:5: the plan is for 'hidden 1024', what is given has 'hidden 2048'", gang_plan_check(&plan, &m.task, &m.pool));
    m.task.shape.hidden = 1024, m.task.shape.tied = true;
    assert_fails(GANG_ERR_INPUT, "'tied 0'", gang_plan_check(&plan, &m.task, &m.pool));
    m.task.shape.tied = false, m.task.math = GANG_MATH_F32;
    assert_fails(GANG_ERR_INPUT, "'compute f16'", gang_plan_check(&plan, &m.task, &m.pool));
    m.task.math = GANG_MATH_F16, m.pool.groups[0]->nodes = 2;
    assert_fails(GANG_ERR_INPUT, "'group 0: 1 nodes", gang_plan_check(&plan, &m.task, &m.pool));
    m.pool.groups[0]->nodes = 1, m.pool.group_count = 0;
    assert_fails(GANG_ERR_INPUT, "what is given has 'none'", gang_plan_check(&plan, &m.task, &m.pool));
    gang_arena_release(&m.arena);
}

// Writes `text` with the checksum that belongs to it, and reads and evaluates that.
static enum gang_status run(const struct made *m, struct gang_buffer *text) {
    struct gang_arena arena;
    struct gang_plan plan;
    struct gang_answer answer;
    gang_buffer_printf(text, "checksum %016llx\n", (unsigned long long)gang_hash(text->data, text->len, 0));
    assert_ok(gang_file_publish(m->file, text->data, text->len));
    gang_arena_init(&arena);
    enum gang_status status = gang_plan_read(m->file, &arena, &plan);
    if (!status) status = gang_plan_check(&plan, &m->task, &m->pool);
    if (!status) status = gang_evaluate_plan(&m->task, &m->pool, &plan, 0, &arena, &answer);
    gang_arena_release(&arena);
    return status;
}

// What was written, without the checksum's line.
static void read_body(const struct made *m, struct gang_buffer *out) {
    *out = (struct gang_buffer){0};
    assert_ok(gang_file_read(m->file, 1 << 20, out));
    out->len -= 26;
    out->data[out->len] = 0;
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *words;
    } cases[] = {
        {"gangline-plan 1", "gangline-plan 2", ":1: not a plan of version 1"},
        {"\njob ", "\njobs ", ":2: expected 'job' and a path"},
        {"\ncluster ", "\n", ":3: expected 'cluster' and a path"},
        {"\nfor layers", "\nfr layers", ":4: expected 'for' and a fact"},
        {"\nfor layers 8", "", ":4: the plan is for 'hidden 1024'"},
        {"layout tp=1,", "layout tq=1,", ":28: layout: 'tq' is no field"},
        {"layout tp=1,", "layout tp=5,", "tp=5 does not divide"},
        {"gangline-program 1", "gangline-program 3", ":30: not a program of version 1"},
        {"layout tp=1,pp=2", "layout tp=1,pp=1", "2 stages and 2 chunks: the layout has 1 and 1"},
        {"copies 4", "copies 3", "fewer replicas"},
        {"class 0 4 6", "class 0 4", ":29: expected 'class' and three numbers"},
        {"class 0 4 6", "class 0 4 6 1", ":29: expected 'class' and three numbers"},
        {"class 0 4 6", "class 1 4 6", "class 0: 4 replicas of kind 1: the layout has fewer"},
        {"class 0 4 6", "class 0 5 6", "class 0: 5 replicas of kind 0: the layout has fewer"},
        {"class 0 4 6", "class 0 3 6", "1 replicas of kind 0 are in no class"},
        {"class 0 4 6", "class 0 4 5", "the classes share out 20 sequences: the batch has 24"},
        {"class 0 4 6", "class 0 4 2000000000", "class 0: shares out more than the batch's 24 sequences"},
        {"copies 4", "copies 5", "replica 0: 5 copies of 6 micro-batches of 1: the layout has 4 of 6 of 1"},
        {" size 1", " size 2", "replica 0: 4 copies of 6 micro-batches of 2: the layout has 4 of 6 of 1"},
        {"gather c0\n", "", "other than the layout's sharding needs"},
        {"\nend\n", "\nend\nend\n", "text behind 'end'"},
    };
    struct made m;
    make("pp=2,schedule=1f1b", 0, &m);
    struct gang_buffer body;
    read_body(&m, &body);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct gang_buffer text = {0};
        const char *at = strstr(body.data, cases[c].from);
        assert_non_null(at);
        gang_buffer_printf(&text, "%.*s%s%s", (int)(at - body.data), body.data, cases[c].to, at + strlen(cases[c].from));
        enum gang_status status = run(&m, &text);
        if (!status || !strstr(gang_error(), cases[c].words))
            fail_msg("case %zu: expected '%s', got %d '%s'", c, cases[c].words, status, gang_error());
        gang_buffer_release(&text);
    }
    struct gang_plan plan;
    assert_ok(gang_file_publish(m.file, body.data, body.len));
    assert_fails(GANG_ERR_FORMAT, "cut off", gang_plan_read(m.file, &m.arena, &plan));
    assert_ok(gang_file_publish(m.file, "gangline-plan 1\n", 16));
    assert_fails(GANG_ERR_FORMAT, ":1: the file is cut off", gang_plan_read(m.file, &m.arena, &plan));
    gang_buffer_release(&body);
    gang_arena_release(&m.arena);
}

static void test_mutations(void **state) {
    (void)state;
    // Damaged bytes under a right checksum: refused with a message that names the file, or a plan that runs.
    uint64_t seed = test_seed();
    struct made m;
    make("pp=2,dp=2,mb=4", 0, &m);
    struct gang_buffer body;
    read_body(&m, &body);
    int accepted = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        struct gang_buffer text = {0};
        gang_buffer_append(&text, body.data, gang_random_at(seed, i, 99) % 8 ? body.len : gang_random_at(seed, i, 98) % body.len);
        for (uint64_t k = 0; text.len && k <= gang_random_at(seed, i, 0) % 3; k++) {
            uint64_t at = gang_random_at(seed, i, 2 * k + 1) % text.len, value = gang_random_at(seed, i, 2 * k + 2);
            text.data[at] = value & 1 ? (char)(value >> 8) : body.data[(value >> 8) % body.len];
        }
        enum gang_status status = run(&m, &text);
        assert_true(status == GANG_OK || gang_error()[0]);
        accepted += status == GANG_OK;
        gang_buffer_release(&text);
    }
    assert_in_range(accepted, 1, 1000);
    gang_buffer_release(&body);
    gang_arena_release(&m.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_back), cmocka_unit_test(test_other), cmocka_unit_test(test_refuses),
                                       cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
