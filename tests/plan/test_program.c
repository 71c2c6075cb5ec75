// Programs: the text form there and back, what the verifier refuses, damaged texts. Layouts: what is refused, and who takes how much.
#include "../test.h"

#include <math.h>

#include "study/study.h"

struct made {
    struct gang_arena arena;
    struct gang_task task;
    struct gang_pool pool;
    struct gang_answer answer;
};

static void make(const char *layout_text, int64_t devices, struct made *out) {
    struct gang_list kinds;
    struct gang_layout layout;
    *out = (struct made){0};
    gang_arena_init(&out->arena);
    gang_kinds_builtin(&out->arena, &kinds);
    gang_pool_uniform(gang_kind_find(&kinds, "H100-80GB"), devices, devices < 8 ? devices : 8, &out->arena, &out->pool);
    out->task = (struct gang_task){
        .shape = {.layers = 16, .hidden = 1024, .heads = 16, .kv_heads = 16, .qk_dim = 64, .v_dim = 64, .ffn = 4096, .vocab = 32000, .gated = true},
        .sequence_length = 1024,
        .global_batch = 64};
    assert_ok(gang_layout_parse(layout_text, &layout));
    assert_ok(gang_evaluate(&out->task, &out->pool, &layout, 0, &out->arena, &out->answer));
}

static void test_round_trip(void **state) {
    (void)state;
    static const char *const layouts[] = {
        "pp=4,dp=2", "pp=2,vpp=4,tp=2", "dp=8", "pp=8,schedule=zero-bubble", "pp=4,vpp=2,schedule=interleaved,mb=2", "tp=4/2/2,pp=3"};
    for (int i = 0; i < 6; i++) {
        struct made m;
        struct gang_program back;
        struct gang_program_facts facts;
        struct gang_buffer a = {0}, b = {0};
        make(layouts[i], 8, &m);
        gang_program_print(&m.answer.program, &a);
        assert_ok(gang_program_parse("text", 1, a.data, a.len, &m.arena, &back));
        gang_program_print(&back, &b);
        assert_string_equal(a.data, b.data);
        assert_ok(gang_program_verify(&back, NULL, &m.arena, &facts));
        assert_int_equal(facts.instructions, m.answer.facts.instructions);
        gang_buffer_release(&a);
        gang_buffer_release(&b);
        gang_arena_release(&m.arena);
    }
}

static const char good[] = "gangline-program 1\nstages 2 chunks 2 buffers 1\nreplica copies 3 micro-batches 2 size 4\nrank 0\n"
                           "forward c0 m0\nsend activation c0 m0 r1\nforward c0 m1\nsend activation c0 m1 r1\n"
                           "receive gradient c1 m0 r1\nbackward c0 m0\nreceive gradient c1 m1 r1\nreduce c0\nbackward c0 m1\noptimizer\n"
                           "rank 1\ngather c1\nreceive activation c0 m0 r0\nforward c1 m0\nbackward c1 m0\nsend gradient c1 m0 r0\n"
                           "receive activation c0 m1 r0\nforward c1 m1\nreduce c1\nbackward c1 m1\nsend gradient c1 m1 r0\noptimizer\nend\n";

static enum gang_status check(const char *text, size_t bytes) {
    struct gang_arena arena;
    struct gang_program program;
    struct gang_program_facts facts;
    gang_arena_init(&arena);
    enum gang_status status = gang_program_parse("p", 1, text, bytes, &arena, &program);
    if (!status) status = gang_program_verify(&program, NULL, &arena, &facts);
    gang_arena_release(&arena);
    return status;
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *words;
    } cases[] = {
        {"reduce c0\nbackward c0 m1\n", "", "never backward"},
        {"forward c1 m1\n", "forward c1 m0\n", "a second forward"},
        {"send activation c0 m1 r1\n", "", "waits for ever: deadlock"},
        {"receive activation c0 m1 r0\n", "", "its activation has not been received"},
        {"receive gradient c1 m0 r1\n", "", "its gradient has not been received"},
        {"send gradient c1 m1 r0\n", "send gradient c1 m0 r0\n", "sent twice"},
        {"send activation c0 m0 r1", "send activation c0 m0 r0", "the peer is the wrong one"},
        {"reduce c1\nbackward c1 m1", "backward c1 m1\nreduce c1", "right before the chunk's last backward"},
        {"reduce c1\n", "", "gradients are never reduced"},
        {"gather c1\nreceive activation c0 m0 r0\nforward c1 m0\n", "receive activation c0 m0 r0\nforward c1 m0\ngather c1\n",
         "gathered after its first forward"},
        {"gather c1\n", "gather c1\ngather c1\n", "gathered twice"},
        {"backward c1 m1\nsend gradient c1 m1 r0\noptimizer", "backward c1 m1\noptimizer\nsend gradient c1 m1 r0", "the optimizer must come last"},
        {"send gradient c1 m1 r0\noptimizer\n", "send gradient c1 m1 r0\n", "ends without the optimizer"},
        {"forward c0 m0\n", "forward c1 m0\n", "another stage's"},
        {"backward c1 m0\n", "backward-weight c1 m0\n", "weight half before the input half"},
        {"forward c0 m0\nsend activation c0 m0 r1\n", "send activation c0 m0 r1\nforward c0 m0\n", "sent before it is made"},
        {"program 1", "program 2", "not a program of version 1"},
        {"chunks 2", "chunks 3", "a multiple of stages"},
        {"rank 1", "rank 7", "expected a number from 1 to 1"},
        {"forward c0 m1", "forward c0 m9", "p:7: 'm9': expected a number from 0 to 1"},
        {"forward c0 m1", "forwrd c0 m1", "'forwrd' is no instruction"},
        {"forward c0 m1", "forward c0 m1 r1", "words too many"},
        {"end\n", "", "ends without 'end'"},
        {"end\n", "end\nend\n", "text behind 'end'"},
        {"micro-batches 2", "micro-batches 1000000", "fewer instructions than its work needs"},
        {"size 4", "size 0", "expected a number from 1 to 65536"},
        {" size 4", "", "expected 'size' and a number"},
    };
    assert_ok(check(good, strlen(good)));
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char text[2048];
        const char *at = strstr(good, cases[c].from);
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, cases[c].to, at + strlen(cases[c].from));
        enum gang_status status = check(text, strlen(text));
        if (status != GANG_ERR_FORMAT || !strstr(gang_error(), cases[c].words))
            fail_msg("case %zu: expected '%s', got %d '%s'", c, cases[c].words, status, gang_error());
    }
}

static void test_buffers(void **state) {
    (void)state;
    // Both stages send before they receive: with room for it a program, without it a deadlock.
    const char *text =
        "gangline-program 1\nstages 2 chunks 2 buffers %d\nreplica copies 1 micro-batches 3 size 1\nrank 0\n"
        "forward c0 m0\nsend activation c0 m0 r1\nforward c0 m1\nsend activation c0 m1 r1\nforward c0 m2\nsend activation c0 m2 r1\n"
        "receive gradient c1 m2 r1\nbackward c0 m2\nreceive gradient c1 m1 r1\nbackward c0 m1\nreceive gradient c1 m0 r1\nbackward c0 m0\noptimizer\n"
        "rank 1\nreceive activation c0 m2 r0\nforward c1 m2\nbackward c1 m2\nsend gradient c1 m2 r0\nreceive activation c0 m1 r0\nforward c1 m1\n"
        "backward c1 m1\nsend gradient c1 m1 r0\nreceive activation c0 m0 r0\nforward c1 m0\nbackward c1 m0\nsend gradient c1 m0 "
        "r0\noptimizer\nend\n";
    char with[2048], without[2048];
    snprintf(with, sizeof with, text, 3);
    snprintf(without, sizeof without, text, 2);
    assert_ok(check(with, strlen(with)));
    assert_fails(GANG_ERR_FORMAT, "deadlock", check(without, strlen(without)));
}

static void test_thousand_ranks(void **state) {
    (void)state;
    struct made m;
    struct gang_program program;
    struct gang_program_facts facts;
    enum gang_schedule used;
    make("pp=16,dp=64", 1024, &m);
    assert_ok(gang_program_build(&m.task, &m.pool, &m.answer.layout, &m.answer.placement, &m.answer.costs, false, &m.arena, &program, &used));
    assert_int_equal(program.replicas * program.stages, 1024);
    assert_ok(gang_program_verify(&program, NULL, &m.arena, &facts));
    // One micro-batch a replica: 15 hops there and back each.
    assert_int_equal(facts.messages, 64 * 2 * 15);
    gang_arena_release(&m.arena);
}

static void test_mutations(void **state) {
    (void)state;
    // Damaged bytes: refused with a message, or a program that verifies; nothing else.
    uint64_t seed = test_seed();
    size_t bytes = strlen(good);
    int accepted = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        char text[sizeof good];
        memcpy(text, good, sizeof good);
        for (uint64_t k = 0; k <= gang_random_at(seed, i, 0) % 3; k++) {
            uint64_t at = gang_random_at(seed, i, 2 * k + 1) % bytes, value = gang_random_at(seed, i, 2 * k + 2);
            text[at] = value & 1 ? (char)(value >> 8) : good[(value >> 8) % bytes];
        }
        size_t cut = gang_random_at(seed, i, 99) % 8 ? bytes : gang_random_at(seed, i, 98) % bytes;
        enum gang_status status = check(text, cut);
        assert_true(status == GANG_OK || (status == GANG_ERR_FORMAT && gang_error()[0]));
        accepted += status == GANG_OK;
    }
    assert_true(accepted < 5000);
}

static void test_layouts(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } parse[] = {
        {"tp=8,qq=1", "'qq' is no field: expected one of layers, tp"},
        {"tp=8,tp=4", "'tp' is given twice"},
        {"tp", "expected fields of the form tp=8"},
        {"tp=x", "'x' is not a whole number"},
        {"tp=0", "out of range"},
        {"recompute=some", "none, selective, alternate, full"},
        {"recompute=full/some", "recompute=some: expected none, selective"},
        {"recompute=full/", "recompute=: expected none, selective"},
        {"place=stages/stages", "expected stages or replicas"},
        {"tp=8,", "a comma at the end"},
        {"layers=1/a", "'a' is not a whole number"},
        {"zero=4", "out of range"},
        {"mb=4/", "'' is not a whole number"},
        {"mb=4/0", "out of range"},
        {"mb=1/2/3/4/5/6/7/8/9", "mb=: expected at most 8 numbers"},
        {"pp=1/2", "pp=: expected at most 1 numbers"},
        {"tp=4/", "'' is not a whole number"},
        {"tp=4/0", "out of range"},
        {"tp=4/5000", "out of range"},
    };
    struct gang_layout layout;
    for (size_t i = 0; i < sizeof parse / sizeof *parse; i++) assert_fails(GANG_ERR_INPUT, parse[i].words, gang_layout_parse(parse[i].text, &layout));
    static const struct {
        const char *text, *words;
    } place[] = {
        {"tp=3", "tp=3 does not divide the model's 16 heads"},
        {"pp=4,vpp=8", "makes 32 chunks of 16 layers"},
        {"pp=4,layers=4/4/4", "names 3 chunks: expected pp * vpp = 4"},
        {"offload=optimizer", "offload on stage 0: give group 'H100-80GB' host_memory and host_bandwidth, and its kind host_link"},
        {"pp=4,recompute=full/none/none", "recompute= names 3 stages: expected one word, or pp = 4"},
        {"pp=4,layers=4/4/4/5", "adds up to 17: the model has 16"},
        {"tp=8,pp=2", "needs 16 devices, the pool has 8"},
        {"dp=16", "needs 16 devices, the pool has 8: dp at most 8"},
        {"mb=3", "mb=3 does not divide the batch of 64 sequences: choose for example mb=2"},
        {"mb=2/1", "names 2 sizes: expected one for all, or one for each of the 1 kinds of replicas"},
        {"dp=8,mb=64", "dp=8 replicas for 1 micro-batches"},
        {"ep=2", "the model has no experts"},
        {"cp=3", "cp=3 times tp=1 does not divide"},
        {"tp=2/2/4,pp=2", "tp= names 3 stages: expected one number, or pp = 2"},
        {"tp=4/3,pp=2", "tp=4 of stage 0 and tp=3 of stage 1, which follows it: one must divide the other"},
        {"tp=2/1/3,pp=3,vpp=2", "tp=3 of stage 2 and tp=2 of stage 0, which follows it"},
        {"tp=2/1/3,pp=3", "tp=3 of stage 2 does not divide the model's 16 heads"},
        {"tp=2/8,pp=2", "dp=1 replicas of stages as wide as tp= says, times cp=1, need 10 devices, the pool has 8"},
        {"tp=2/1,pp=2,dp=3", "dp=3 replicas of stages as wide as tp= says, times cp=1, need 9 devices, the pool has 8"},
    };
    struct made m;
    make("dp=8", 8, &m);
    for (size_t i = 0; i < sizeof place / sizeof *place; i++) {
        struct gang_answer answer;
        assert_ok(gang_layout_parse(place[i].text, &layout));
        assert_fails(GANG_ERR_INPUT, place[i].words, gang_evaluate(&m.task, &m.pool, &layout, 0, &m.arena, &answer));
    }
    struct gang_answer answer;
    m.task.shape.hidden = 16384, m.task.shape.layers = 64, m.task.shape.ffn = 65536;
    assert_ok(gang_layout_parse("dp=8", &layout));
    assert_fails(GANG_ERR_MEMORY, "on stage 0 (weights, gradients and optimizer", gang_evaluate(&m.task, &m.pool, &layout, 0, &m.arena, &answer));
    gang_arena_release(&m.arena);
}

// What each stage has by itself: the costs of a layout where all stages have it, and what the formulas say.
static void test_recompute_by_stage(void **state) {
    (void)state;
    static const enum gang_recompute wanted[] = {GANG_RECOMPUTE_FULL, GANG_RECOMPUTE_NONE, GANG_RECOMPUTE_NONE, GANG_RECOMPUTE_SELECTIVE};
    struct made mixed, same[GANG_RECOMPUTES];
    make("pp=4,vpp=2,recompute=full/none/none/selective", 8, &mixed);
    for (int r = 0; r < GANG_RECOMPUTES; r++) {
        char text[64];
        snprintf(text, sizeof text, "pp=4,vpp=2,recompute=%s", gang_recompute_names[r]);
        make(text, 8, &same[r]);
    }
    for (int c = 0; c < 8; c++) {
        const struct gang_chunk_cost *cost = gang_costs_chunk(&mixed.answer.costs, 0, c);
        assert_memory_equal(cost, gang_costs_chunk(&same[wanted[c % 4]].answer.costs, 0, c), sizeof *cost);
    }
    // Of two layers in the first chunk, made again: their inputs are kept, in two bytes; the input's half has the forward pass before it.
    const struct gang_chunk_cost *full = gang_costs_chunk(&mixed.answer.costs, 0, 4), *none = gang_costs_chunk(&same[0].answer.costs, 0, 4);
    double tokens = (double)mixed.task.sequence_length, stream = 2 * tokens * (double)mixed.task.shape.hidden;
    assert_float_equal(full->activation_bytes, 2 * stream, 1);
    assert_float_equal(gang_time_sum(&full->input), gang_time_sum(&none->input) + gang_time_sum(&none->forward), 1e-12);
    // Selective keeps neither the two norms' results nor what the activation made.
    const struct gang_chunk_cost *some = gang_costs_chunk(&mixed.answer.costs, 0, 3), *all = gang_costs_chunk(&same[0].answer.costs, 0, 3);
    assert_float_equal(all->activation_bytes - some->activation_bytes, 2 * (2 * stream + 2 * tokens * (double)mixed.task.shape.ffn), 1);
    assert_true(mixed.answer.memory[0].activations < same[0].answer.memory[0].activations);
    struct gang_layout all_alike;
    assert_ok(gang_layout_parse("pp=4,recompute=full/full/full/full", &all_alike));
    assert_ok(gang_evaluate(&mixed.task, &mixed.pool, &all_alike, 0, &mixed.arena, &mixed.answer));
    assert_string_equal(gang_layout_print(&mixed.answer.layout, &mixed.arena), "tp=1,pp=4,dp=2,recompute=full");
    for (int r = 0; r < GANG_RECOMPUTES; r++) gang_arena_release(&same[r].arena);
    gang_arena_release(&mixed.arena);
}

// What each stage has by its own width: the costs and the memory of a layout where all stages are as wide, and devices counted one by one.
static void test_widths_by_stage(void **state) {
    (void)state;
    static const int wanted[] = {4, 2, 1, 1};
    struct made mixed;
    make("tp=4/2/1/1,pp=4,vpp=2,dp=1", 16, &mixed);
    assert_string_equal(gang_layout_print(&mixed.answer.layout, &mixed.arena), "tp=4/2/1/1,pp=4,dp=1,vpp=2");
    for (int s = 0; s < 4; s++) {
        struct made same;
        char text[64];
        snprintf(text, sizeof text, "tp=%d,pp=4,vpp=2,dp=1,schedule=interleaved", wanted[s]);
        make(text, 16, &same);
        for (int c = s; c < 8; c += 4)
            assert_memory_equal(gang_costs_chunk(&mixed.answer.costs, 0, c), gang_costs_chunk(&same.answer.costs, 0, c),
                                sizeof(struct gang_chunk_cost));
        const struct gang_memory_use *a = &mixed.answer.memory[s], *b = &same.answer.memory[s];
        assert_true(a->weights == b->weights && a->gradients == b->gradients && a->optimizer == b->optimizer && a->buffers == b->buffers);
        assert_true(mixed.answer.costs.optimizer_seconds[s] == same.answer.costs.optimizer_seconds[s]);
        gang_arena_release(&same.arena);
    }
    // 4 + 2 + 1 + 1 devices; on that many the model's three passes.
    double flops = 3 * gang_shape_flops(&mixed.task.shape, 1024) * 64 * 1024;
    assert_int_equal(mixed.answer.summary.devices, 8);
    assert_float_equal(mixed.answer.summary.mfu, flops / mixed.answer.summary.step_seconds / (8 * mixed.pool.groups[0]->kind->peak[GANG_MATH_F16]),
                       1e-9);
    // Stage 2 takes longest, which the closed form must see: it holds what stage 1 holds, on half as many devices.
    struct gang_layout alike;
    double memory_used = 0;
    mixed.task.shape.hidden = 8192, mixed.task.shape.qk_dim = mixed.task.shape.v_dim = 512, mixed.task.shape.ffn = 28672;
    assert_ok(gang_layout_parse("tp=2/2/1/2,pp=4", &alike));
    assert_ok(gang_evaluate(&mixed.task, &mixed.pool, &alike, GANG_EVALUATE_ANY_MEMORY, &mixed.arena, &mixed.answer));
    double estimate = gang_estimate(&mixed.task, &mixed.pool, &mixed.answer.layout, &mixed.answer.placement, &mixed.arena, &memory_used);
    assert_float_equal(estimate / mixed.answer.summary.step_seconds, 1, 0.1);
    assert_ok(gang_layout_parse("tp=2/2,pp=2", &alike));
    assert_ok(gang_evaluate(&mixed.task, &mixed.pool, &alike, GANG_EVALUATE_ANY_MEMORY, &mixed.arena, &mixed.answer));
    assert_string_equal(gang_layout_print(&mixed.answer.layout, &mixed.arena), "tp=2,pp=2,dp=4");
    gang_arena_release(&mixed.arena);
}

// Between stages of unlike widths the narrower one's devices bound the rate, each way: by their NICs (88 % of 50 GB/s) from node to node, by
// the fast network (80 % of 450 GB/s) inside. The exchange between replicas goes over a stage's own cells.
static void test_widths_meet(void **state) {
    (void)state;
    struct made far, near, pair;
    struct gang_hop there, back;
    struct gang_answer answer;
    struct gang_layout layout;
    make("tp=8/2,pp=2,dp=1", 16, &far);
    gang_hop_between(&far.pool, &far.answer.layout, &far.answer.placement, 0, 0, 1, &there);
    gang_hop_between(&far.pool, &far.answer.layout, &far.answer.placement, 0, 1, 0, &back);
    assert_true(!there.fast && !back.fast);
    assert_float_equal(there.bandwidth, 2 * 50e9 * 0.88, 1);
    assert_float_equal(back.bandwidth, there.bandwidth, 0);
    assert_float_equal(far.answer.sim.sent_bytes, 2.0 * 64 * 1024 * 1024 * 2, 1); // 64 sequences of 1,024 rows of 1,024 numbers, both ways
    // A wide stage behind a narrow one would begin in one node and end in the next.
    assert_ok(gang_layout_parse("tp=2/8,pp=2,dp=1", &layout));
    assert_fails(GANG_ERR_INPUT, "tp=8 of stage 1: its devices would lie in two high-bandwidth domains",
                 gang_evaluate(&far.task, &far.pool, &layout, 0, &far.arena, &answer));
    make("tp=4/2,pp=2,dp=1", 8, &near);
    gang_hop_between(&near.pool, &near.answer.layout, &near.answer.placement, 0, 0, 1, &there);
    assert_true(there.fast);
    assert_float_equal(there.bandwidth, 2 * 450e9 * 0.80, 1);
    // Two replicas of 4 + 4 + 2: two cells of stage 1 are one node, two of stage 2 begin the next; so far from stage 0 no fast network reaches.
    make("tp=4/4/2,pp=3,dp=2", 24, &pair);
    gang_hop_between(&pair.pool, &pair.answer.layout, &pair.answer.placement, 0, 0, 1, &there);
    assert_true(!there.fast);
    for (int s = 0; s < 3; s++) {
        struct gang_ways ways;
        gang_ways_of(&pair.pool, &pair.answer.layout, &pair.answer.placement, s, &ways);
        assert_true(ways.members == 2 && ways.lanes == (s < 2 ? 4 : 2));
        assert_float_equal(ways.bandwidth, 450e9 * 0.80, 1);
        assert_int_equal(gang_cell_at(&pair.answer.layout, 1, s), s == 0 ? 4 : s == 1 ? 12 : 18);
    }
    gang_arena_release(&far.arena);
    gang_arena_release(&near.arena);
    gang_arena_release(&pair.arena);
}

// A stage's state in its node's memory: it frees the device, and each step pays gradients there, the update there, and weights back.
static void test_offload_by_stage(void **state) {
    (void)state;
    struct made plain, moved;
    struct gang_layout layout;
    struct gang_answer answer;
    make("pp=2,dp=4", 8, &plain);
    make("pp=2,dp=4", 8, &moved);
    struct gang_group *group = moved.pool.groups[0];
    group->host_memory = 1e12, group->host_bandwidth = 400e9;
    assert_ok(gang_layout_parse("pp=2,dp=4,offload=none/optimizer", &layout));
    assert_ok(gang_evaluate(&moved.task, &moved.pool, &layout, 0, &moved.arena, &answer));
    assert_string_equal(gang_layout_print(&answer.layout, &moved.arena), "tp=1,pp=2,dp=4,offload=none/optimizer");
    const struct gang_memory_use *before = plain.answer.memory, *after = answer.memory;
    assert_memory_equal(&after[0].optimizer, &before[0].optimizer, sizeof(double));
    assert_true(after[0].host == 0 && after[1].optimizer == 0 && before[1].optimizer > 0);
    assert_float_equal(after[1].host, before[1].optimizer, 1);
    assert_float_equal(after[1].host_limit, 1e12 / 8, 1);
    // Parameters by 12 bytes of state: 4 of gradient over the link, 30 through an eighth of the node's memory, 2 back; both hold 80 %.
    double n = before[1].optimizer / 12, seconds = n * (4 + 2) / (64e9 * 0.8) + n * 30 / (400e9 / 8 * 0.8);
    assert_float_equal(answer.costs.optimizer_seconds[1], seconds, 0.01 * seconds);
    assert_true(answer.costs.optimizer_seconds[0] == plain.answer.costs.optimizer_seconds[0]);
    assert_true(answer.sim.step_seconds > plain.answer.sim.step_seconds && answer.sim.step_seconds < plain.answer.sim.step_seconds + 1.01 * seconds);
    group->host_memory = 8 * after[1].host;
    assert_fails(GANG_ERR_MEMORY, "of its node's memory for each device", gang_evaluate(&moved.task, &moved.pool, &layout, 0, &moved.arena, &answer));
    gang_arena_release(&plain.arena);
    gang_arena_release(&moved.arena);
}

// What is kept leaves while the next pass computes and comes back before its own: two passes' are on the device, the rest in its node's
// memory, and a pass takes as long as its copies where these take longer.
static void test_offload_of_activations(void **state) {
    (void)state;
    struct made plain, moved;
    struct gang_layout layout;
    struct gang_answer answer;
    make("pp=4,dp=2,mb=2,schedule=1f1b", 8, &plain);
    make("pp=4,dp=2,mb=2,schedule=1f1b", 8, &moved);
    struct gang_group *group = moved.pool.groups[0];
    group->host_memory = 1e12, group->host_bandwidth = 100e12;
    assert_ok(gang_layout_parse("pp=4,dp=2,mb=2,schedule=1f1b,offload=activations/both/optimizer/none", &layout));
    assert_ok(gang_evaluate(&moved.task, &moved.pool, &layout, 0, &moved.arena, &answer));
    assert_string_equal(gang_layout_print(&answer.layout, &moved.arena), "tp=1,pp=4,dp=2,mb=2,offload=activations/both/optimizer/none,schedule=1f1b");
    const struct gang_memory_use *before = plain.answer.memory, *after = answer.memory;
    double one = gang_costs_chunk(&answer.costs, 0, 0)->activation_bytes, state_bytes = before[1].optimizer;
    assert_float_equal(before[0].activations, 4 * one, 1); // 4, 3, 2 and 1 under way
    assert_float_equal(after[0].activations, 2 * one, 1);
    assert_float_equal(after[0].host_activations, 3 * one, 1);
    assert_float_equal(after[0].optimizer, before[0].optimizer, 1);
    assert_float_equal(after[1].activations, 2 * one, 1);
    assert_float_equal(after[1].host, 2 * one + state_bytes, 1);
    assert_true(after[1].optimizer == 0 && after[2].host_activations == 0 && after[3].host == 0);
    assert_float_equal(after[2].activations, before[2].activations, 1);
    assert_float_equal(gang_costs_chunk(&answer.costs, 0, 0)->copy_seconds, one / (64e9 * 0.8), 1e-12);
    assert_true(gang_costs_chunk(&answer.costs, 0, 2)->copy_seconds == 0);
    group->host_bandwidth = 8 * 10e9; // each device's part of it is less than its link
    assert_ok(gang_evaluate(&moved.task, &moved.pool, &layout, 0, &moved.arena, &answer));
    assert_float_equal(gang_costs_chunk(&answer.costs, 0, 1)->copy_seconds, one / (10e9 * 0.8), 1e-12);
    group->host_memory = 8 * 3 * one;
    assert_fails(GANG_ERR_MEMORY, "offload on stage 1: needs", gang_evaluate(&moved.task, &moved.pool, &layout, 0, &moved.arena, &answer));
    gang_arena_release(&plain.arena);
    gang_arena_release(&moved.arena);
}

// One device does nothing but its passes: forward and backward take their work or their copies, whichever are longer.
static void test_copies_beside_passes(void **state) {
    (void)state;
    struct made plain;
    struct gang_layout layout;
    make("dp=1,mb=4", 1, &plain);
    const struct gang_chunk_cost *cost = gang_costs_chunk(&plain.answer.costs, 0, 0);
    double forward = gang_time_sum(&cost->forward), input = gang_time_sum(&cost->input), weight = gang_time_sum(&cost->weight);
    double m = 64 / 4, hidden = 0.9 * forward, half = 1.5 * forward, shown = 3 * (input + weight);
    const struct { double copy, more; } cases[] = {{hidden, 0}, {half, 0.5 * forward}, {shown, shown - forward + shown - input - weight}};
    assert_true(half < input + weight);
    assert_ok(gang_layout_parse("dp=1,mb=4,offload=activations", &layout));
    for (int i = 0; i < 3; i++) {
        struct made moved;
        struct gang_answer answer;
        double memory_used = 0;
        make("dp=1,mb=4", 1, &moved);
        struct gang_kind kind = *moved.pool.groups[0]->kind;
        kind.host_link = cost->activation_bytes / cases[i].copy / 0.8;
        moved.pool.groups[0]->kind = &kind;
        moved.pool.groups[0]->host_memory = 1e12, moved.pool.groups[0]->host_bandwidth = 100e12;
        assert_ok(gang_evaluate(&moved.task, &moved.pool, &layout, 0, &moved.arena, &answer));
        double step = plain.answer.sim.step_seconds + m * cases[i].more;
        assert_float_equal(answer.sim.step_seconds, step, 1e-9 * step);
        assert_float_equal(answer.summary.copies, m * cases[i].more, 1e-9 * step);
        double before = gang_estimate(&plain.task, &plain.pool, &plain.answer.layout, &plain.answer.placement, &plain.arena, &memory_used);
        double after = gang_estimate(&moved.task, &moved.pool, &answer.layout, &answer.placement, &moved.arena, &memory_used);
        assert_float_equal(after, before + m * cases[i].more, 1e-9 * step);
        gang_arena_release(&moved.arena);
    }
    // Halves that are run apart bring back their own.
    struct gang_chunk_cost apart = *cost;
    apart.copy_seconds = input + weight;
    assert_true(gang_copy_shown(&apart, GANG_OP_BACKWARD) == 0);
    assert_float_equal(gang_copy_shown(&apart, GANG_OP_BACKWARD_INPUT), weight, 1e-12);
    assert_float_equal(gang_copy_shown(&apart, GANG_OP_BACKWARD_WEIGHT), input, 1e-12);
    gang_arena_release(&plain.arena);
}

// Two kinds of replicas, of 1 to 4 each, with micro-batches of 1 to 12 sequences, and a batch of 1 to 90.
struct shared {
    struct made made;
    struct gang_layout layout;
    int64_t replicas[2];
    struct gang_placement placement;
};

static void draw_shared(uint64_t seed, struct shared *out) {
    static const char *const names[] = {"H100-80GB", "A100-40GB", "RTX-4090", "cpu-2core"};
    struct gang_list kinds;
    struct made *m = &out->made;
    uint64_t draw = 0;
#define DRAW(n) (int)(gang_random_at(seed, 5, draw++) % (uint64_t)(n))
    make("dp=8", 8, m);
    gang_kinds_builtin(&m->arena, &kinds);
    struct gang_group **groups = gang_arena_alloc(&m->arena, 2 * sizeof *groups);
    for (int g = 0; g < 2; g++) {
        out->replicas[g] = 1 + DRAW(4);
        gang_pool_uniform(gang_kind_find(&kinds, names[(g + 2 * DRAW(2)) % 4]), out->replicas[g], out->replicas[g], &m->arena, &m->pool);
        groups[g] = m->pool.groups[0];
    }
    m->pool.groups = groups, m->pool.group_count = 2, m->pool.devices = out->replicas[0] + out->replicas[1];
    m->task.global_batch = 1 + DRAW(90);
    m->task.math = GANG_MATH_F32;
    gang_layout_init(&out->layout);
    out->layout.sizes[0] = out->layout.micro_batch = 1 + DRAW(12);
    out->layout.sizes[1] = out->layout.sizes[0] % 12 + 1 + DRAW(3);
    out->layout.size_count = 2;
}

// Seconds until the last replica is done where the kinds do `count` micro-batches in all.
static double makespan(const struct shared *s, const double *seconds, const int64_t *count) {
    double end = 0;
    for (int k = 0; k < 2; k++) end = fmax(end, (double)((count[k] + s->replicas[k] - 1) / s->replicas[k]) * seconds[k]);
    return end;
}

// The least, over every way to make the batch; INFINITY if there is none.
static double best_makespan(const struct shared *s, int64_t batch, const double *seconds) {
    double best = INFINITY;
    int64_t count[2];
    for (count[0] = s->replicas[0]; count[0] * s->layout.sizes[0] <= batch; count[0]++) {
        int64_t left = batch - count[0] * s->layout.sizes[0];
        count[1] = left / s->layout.sizes[1];
        if (left % s->layout.sizes[1] == 0 && count[1] >= s->replicas[1]) best = fmin(best, makespan(s, seconds, count));
    }
    return best;
}

// What was shared out adds up, and ends as soon as any way to share it out.
static void check_shares(struct shared *s, uint64_t seed) {
    struct gang_costs costs;
    double seconds[2] = {0};
    int64_t sequences = 0, replicas = 0, count[2] = {0};
    gang_costs_fill(&s->made.task, &s->made.pool, &s->layout, &s->placement, &s->made.arena, &costs);
    for (int c = 0; c < s->placement.class_count; c++) {
        const struct gang_class *class = &s->placement.classes[c];
        const struct gang_chunk_cost *cost = gang_costs_chunk(&costs, c, 0);
        assert_true(class->micro_batches > 0 && class->micro_batch == s->layout.sizes[class->kind]);
        seconds[class->kind] = gang_time_sum(&cost->forward) + gang_time_sum(&cost->input) + gang_time_sum(&cost->weight);
        count[class->kind] += class->replicas * class->micro_batches;
        sequences += class->replicas * class->micro_batches * class->micro_batch;
        replicas += class->replicas;
    }
    assert_int_equal(sequences, s->made.task.global_batch);
    assert_int_equal(replicas, s->made.pool.devices);
    double best = best_makespan(s, s->made.task.global_batch, seconds), own = makespan(s, seconds, count);
    if (own > best * (1 + 1e-9)) fail_msg("seed %llu: %g s, best %g", (unsigned long long)seed, own, best);
}

static void test_shares(void **state) {
    (void)state;
    static const double any[2] = {1, 1};
    uint64_t first = test_seed();
    int shared = 0, refused = 0;
    for (uint64_t i = 0; i < 2000; i++) {
        struct shared s;
        uint64_t seed = gang_random_at(first, i, 7);
        draw_shared(seed, &s);
        int64_t batch = s.made.task.global_batch;
        bool possible = isfinite(best_makespan(&s, batch, any));
        enum gang_status status = gang_layout_place(&s.made.task, &s.made.pool, &s.layout, &s.made.arena, &s.placement);
        assert_int_equal(status, possible ? GANG_OK : GANG_ERR_INPUT);
        if (possible) {
            shared++;
            check_shares(&s, seed);
        } else if (strstr(gang_error(), "the nearest")) {
            long long below, above;
            refused++;
            assert_int_equal(sscanf(strstr(gang_error(), "they do are") + 11, "%lld and %lld", &below, &above), 2);
            for (int64_t b = below; b <= above; b++) assert_int_equal(isfinite(best_makespan(&s, b, any)), b == below || b == above);
            assert_true(below < batch && batch < above);
        } else {
            int64_t least = s.replicas[0] * s.layout.sizes[0] + s.replicas[1] * s.layout.sizes[1];
            assert_true(strstr(gang_error(), "choose fewer replicas or a smaller mb") && least > batch);
        }
        gang_arena_release(&s.made.arena);
    }
    print_message("%d shared, %d refused with the nearest\n", shared, refused);
    assert_true(shared > 500 && refused > 50);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),          cmocka_unit_test(test_refuses),         cmocka_unit_test(test_buffers),
        cmocka_unit_test(test_mutations),           cmocka_unit_test(test_layouts),         cmocka_unit_test(test_shares),
        cmocka_unit_test(test_recompute_by_stage),  cmocka_unit_test(test_widths_by_stage), cmocka_unit_test(test_widths_meet),
        cmocka_unit_test(test_offload_by_stage),    cmocka_unit_test(test_thousand_ranks),  cmocka_unit_test(test_offload_of_activations),
        cmocka_unit_test(test_copies_beside_passes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
