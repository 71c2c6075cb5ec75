// The simulator against closed forms, itself unfolded, and what must be conserved.
#include "../test.h"

#include <math.h>

#include "sim/network.h"
#include "study/study.h"

// ---- Flows ---------------------------------------------------------------------------------------------------------

static void test_max_min(void **state) {
    (void)state;
    // Bertsekas and Gallager's kind of example: A over link 0, B over links 0 and 1, C over 1 with a cap. Capacities 10 and 20.
    struct gang_arena arena;
    struct gang_network n;
    gang_arena_init(&arena);
    gang_network_init(&n, 2, &arena);
    n.capacity[0] = 10, n.capacity[1] = 20;
    const struct gang_use a[] = {{0, 1}}, b[] = {{0, 1}, {1, 1}}, c[] = {{1, 1}};
    gang_network_add(&n, 1, 50, 100, a, 1);
    gang_network_add(&n, 2, 100, 100, b, 2);
    gang_network_add(&n, 3, 120, 12, c, 1);
    assert_float_equal(gang_network_next(&n), 10, 1e-12); // A: 5, B: 5, C: min(12, 15)
    assert_int_equal(gang_network_advance(&n, 10), 1);
    // A is through; C too at the same instant; B takes what is free.
    assert_float_equal(gang_network_next(&n), 10, 1e-12);
    assert_int_equal(gang_network_advance(&n, 10), 3);
    assert_float_equal(gang_network_next(&n), 15, 1e-9);
    assert_int_equal(gang_network_advance(&n, gang_network_next(&n)), 2);
    assert_true(isinf(gang_network_next(&n)));
    assert_float_equal(n.carried[0], 150, 1e-9);
    assert_float_equal(n.carried[1], 220, 1e-9);
    gang_network_release(&n);
    gang_arena_release(&arena);
}

// ---- Random pools and models ---------------------------------------------------------------------------------------

struct made {
    struct gang_arena arena;
    struct gang_task task;
    struct gang_pool pool;
};

static struct gang_group *new_group(struct gang_arena *arena, const struct gang_kind *kind, int site, int64_t nodes) {
    struct gang_group *group = gang_arena_alloc(arena, sizeof *group);
    *group = (struct gang_group){.name = kind->name,
                                 .device = kind->name,
                                 .kind = kind,
                                 .site = site,
                                 .nodes = nodes,
                                 .devices = 4,
                                 .fast_domain = 4,
                                 .fast_bandwidth = kind->fast_bandwidth,
                                 .nic_bandwidth = kind->nic_bandwidth,
                                 .nic_latency = 5e-6,
                                 .host_memory = 2e12,
                                 .host_bandwidth = 4e11,
                                 .oversubscription = 1};
    return group;
}

// Two sites, each of one group; unlike kinds unless `like`.
static void make(uint64_t seed, bool like, struct made *out) {
    static const char *const names[] = {"H100-80GB", "A100-80GB", "H20-96GB", "BR106M"};
    struct gang_list kinds;
    uint64_t draw = 100;
#define DRAW(n) (int)(gang_random_at(seed, 7, draw++) % (uint64_t)(n))
    *out = (struct made){0};
    gang_arena_init(&out->arena);
    gang_kinds_builtin(&out->arena, &kinds);
    struct gang_site *sites = gang_arena_alloc(&out->arena, 2 * sizeof *sites);
    struct gang_link *link = gang_arena_alloc(&out->arena, sizeof *link);
    int first = DRAW(4), second = like ? first : DRAW(4);
    sites[0].name = sites[1].name = kinds.items ? (char *)(uintptr_t)names[0] : NULL;
    *link = (struct gang_link){.a = 0, .b = 1, .bandwidth = 1e9 * (1 + DRAW(50)), .delay = 1e-3 * DRAW(5)};
    out->pool = (struct gang_pool){.sites = {2, sites}, .links = {1, link}, .group_count = 2, .devices = 32};
    out->pool.groups = gang_arena_alloc(&out->arena, 2 * sizeof *out->pool.groups);
    out->pool.groups[0] = new_group(&out->arena, gang_kind_find(&kinds, names[first]), 0, 4);
    out->pool.groups[1] = new_group(&out->arena, gang_kind_find(&kinds, names[second]), 1, 4);
    out->pool.routes = gang_arena_alloc(&out->arena, 4 * sizeof *out->pool.routes);
    out->pool.routes[1] = out->pool.routes[2] = (struct gang_route){.count = 1, .links = {0}, .delay = link->delay};
    out->task = (struct gang_task){
        .shape = {.layers = 8 * (1 + DRAW(2)), .hidden = 512 * (1 + DRAW(4)), .heads = 8, .kv_heads = 8, .vocab = 32000, .gated = true},
        .sequence_length = 512 << DRAW(3),
        .global_batch = 32 * (1 + DRAW(4))};
    out->task.shape.qk_dim = out->task.shape.v_dim = out->task.shape.hidden / 8;
    out->task.shape.ffn = out->task.shape.hidden * 4;
    if (DRAW(4) == 0) out->task.shape.experts = 8, out->task.shape.experts_per_token = 2, out->task.shape.expert_ffn = out->task.shape.hidden;
    out->task.shape.tied = DRAW(2);
}

static void draw_layout(uint64_t seed, struct gang_layout *out) {
    uint64_t draw = 200;
    gang_layout_init(out);
    out->tp = 1 << DRAW(3);
    out->pp = 1 << DRAW(3);
    out->vpp = out->pp > 1 ? 1 + DRAW(2) : 1;
    out->micro_batch = 1 << DRAW(2);
    out->recompute.at[0] = (uint8_t)DRAW(4);
    for (int s = 0; s < out->pp && DRAW(3); s++) out->recompute.at[s] = (uint8_t)DRAW(4), out->recompute.count = out->pp;
    for (int s = 0; s < out->pp && DRAW(2); s++) out->offload.at[s] = (uint8_t)DRAW(GANG_OFFLOADS), out->offload.count = out->pp;
    out->zero = DRAW(4);
    out->place = DRAW(2);
    out->dp_overlap = DRAW(2);
    out->tp_overlap = DRAW(2);
}

// A step of `program`; also checks what must hold of any.
static double simulate(const struct made *m, const struct gang_answer *a, const struct gang_program *program, struct gang_arena *arena,
                       struct gang_sim *sim) {
    const struct gang_sim_input in = {.pool = &m->pool, .layout = &a->layout, .placement = &a->placement, .costs = &a->costs, .program = program};
    assert_ok(gang_sim_run(&in, arena, sim));
    double longest = 0;
    for (int r = 0; r < sim->ranks; r++) {
        const struct gang_rank_time *t = &sim->rank[r];
        double sum = gang_time_sum(&t->compute) + t->optimizer + t->pipeline + t->gather + t->reduce + t->copies + t->end;
        assert_float_equal(sum / sim->step_seconds, 1, 1e-6);
        longest = fmax(longest, gang_time_sum(&t->compute) + t->optimizer);
    }
    assert_true(sim->step_seconds >= longest * (1 - 1e-9));
    assert_true(sim->sent_bytes == sim->received_bytes);
    return sim->step_seconds;
}

// Plan, verify, simulate; folded and unfolded alike; all micro-batches placed; the same bits twice.
static void test_random(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int ran = 0, copied = 0;
    for (uint64_t i = 0; i < 400; i++) {
        struct made m;
        struct gang_layout layout;
        struct gang_answer a, b;
        make(gang_random_at(seed, i, 0), i % 2, &m);
        draw_layout(gang_random_at(seed, i, 0), &layout);
        enum gang_status status = gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &a);
        if (status) { // refused, and with a reason
            assert_int_equal(status, GANG_ERR_INPUT);
            gang_arena_release(&m.arena);
            continue;
        }
        ran++;
        int64_t sequences = 0;
        for (int c = 0; c < a.placement.class_count; c++) {
            const struct gang_class *class = &a.placement.classes[c];
            sequences += class->replicas * class->micro_batches * class->micro_batch;
        }
        assert_int_equal(sequences, m.task.global_batch);
        assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &b));
        assert_memory_equal(&a.sim.step_seconds, &b.sim.step_seconds, sizeof(double));

        struct gang_program unfolded;
        struct gang_program_facts facts;
        struct gang_sim one, all;
        enum gang_schedule used;
        assert_ok(gang_program_build(&m.task, &m.pool, &a.layout, &a.placement, &a.costs, false, &m.arena, &unfolded, &used));
        assert_ok(gang_program_verify(&unfolded, &a.costs, &m.arena, &facts));
        double folded_seconds = simulate(&m, &a, &a.program, &m.arena, &one), seconds = simulate(&m, &a, &unfolded, &m.arena, &all);
        if (fabs(folded_seconds / seconds - 1) > 1e-6)
            fail_msg("case %llu: folded %.9g, unfolded %.9g", (unsigned long long)i, folded_seconds, seconds);
        assert_float_equal(one.link_bytes[0], all.link_bytes[0], 1e-6 * (1 + all.link_bytes[0]));
        for (int r = 0; r < all.ranks; r++) {
            assert_float_equal(all.rank[r].held.device, facts.held[r].device, 1 + 1e-9 * facts.held[r].device);
            assert_float_equal(all.rank[r].held.host, facts.held[r].host, 1 + 1e-9 * facts.held[r].host);
            copied += all.rank[r].copies > 0;
        }
        gang_arena_release(&m.arena);
    }
    print_message("%d of 400 ran; %d ranks waited for copies\n", ran, copied);
    assert_true(ran > 100 && copied > 100);
}

// Without links, delays and exchanges a pipeline's step is the closed form.
static void test_closed_form(void **state) {
    (void)state;
    struct made m;
    struct gang_layout layout;
    struct gang_answer a;
    make(1, true, &m);
    m.pool.groups[0]->nic_latency = m.pool.groups[1]->nic_latency = 0;
    m.pool.groups[0]->nic_bandwidth = m.pool.groups[1]->nic_bandwidth = 1e18;
    m.pool.groups[0]->fast_bandwidth = m.pool.groups[1]->fast_bandwidth = 1e18;
    ((struct gang_link *)m.pool.links.items)->bandwidth = 1e18;
    m.pool.routes[1].delay = m.pool.routes[2].delay = 0;
    m.task.shape.experts = 0;
    assert_ok(gang_layout_parse("pp=8,dp=1,zero=0,schedule=1f1b", &layout));
    m.task.shape.layers = 16;
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &a));
    // All but the last stage (which has the head) are alike: the step is the last stage's work and the way in and out.
    double f = 0, b = 0, all_f = 0, all_b = 0;
    for (int c = 0; c < 8; c++) {
        const struct gang_chunk_cost *cost = gang_costs_chunk(&a.costs, 0, c);
        f = gang_time_sum(&cost->forward), b = gang_time_sum(&cost->input) + gang_time_sum(&cost->weight);
        all_f += f, all_b += b;
    }
    double expected = all_f + all_b + (double)(m.task.global_batch - 1) * (f + b) + a.costs.optimizer_seconds[0];
    assert_float_equal(a.sim.step_seconds / expected, 1, 1e-3);
    gang_arena_release(&m.arena);
}

// A tied head far from its embedding: a copy in memory without optimizer, its gradient and its weights over the link, and no word of it
// on one stage.
static void test_tied(void **state) {
    (void)state;
    struct made m;
    struct gang_layout layout;
    struct gang_answer tied, plain, slow;
    make(1, true, &m);
    m.task.shape.experts = 0;
    double head = (double)(m.task.shape.vocab * m.task.shape.hidden);
    assert_ok(gang_layout_parse("tp=2,pp=2", &layout));
    m.task.shape.tied = false;
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &plain));
    m.task.shape.tied = true;
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &tied));
    assert_float_equal(tied.memory[1].weights, plain.memory[1].weights, 1);
    assert_float_equal(tied.memory[1].gradients, plain.memory[1].gradients, 1);
    assert_float_equal(tied.memory[1].optimizer, plain.memory[1].optimizer - 12 * head / 2 / 8, 1); // shared by tp and, sharded, by dp
    assert_float_equal(tied.memory[0].total, plain.memory[0].total, 1);
    assert_float_equal(tied.sim.link_carried[0] - plain.sim.link_carried[0], 2 * 4 * head * 8, 1); // there and back for each replica
    ((struct gang_link *)m.pool.links.items)->bandwidth = 1e7;
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &slow));
    m.task.shape.tied = false;
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &plain));
    // Eight replicas' copies come in before the first head and go out behind the last; the pipeline may use what it waited for.
    assert_true(slow.sim.step_seconds - plain.sim.step_seconds > 8 * 4 * head / 1e7);
    assert_true(slow.sim.step_seconds - plain.sim.step_seconds < 2.1 * 8 * 4 * head / 1e7);
    assert_ok(gang_layout_parse("tp=2", &layout));
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &plain));
    m.task.shape.tied = true;
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &tied));
    assert_float_equal(plain.memory[0].weights - tied.memory[0].weights, 2 * head / 2, 1);
    assert_true(tied.costs.copy_bytes == 0 && tied.sim.sent_bytes == 0);
    gang_arena_release(&m.arena);
}

// A stage that holds nothing but the embedding or the head is a stage like any other.
static void test_no_layers(void **state) {
    (void)state;
    static const char *const layouts[] = {"pp=2,dp=8,layers=0/8", "pp=2,dp=8,layers=8/0,dp_overlap=0",
                                          "pp=4,dp=4,layers=0/4/4/0,zero=3,schedule=list"};
    for (int i = 0; i < 6; i++) {
        struct made m;
        struct gang_layout layout;
        struct gang_answer a;
        make(1, true, &m);
        m.task.shape.experts = 0;
        m.task.shape.layers = 8;
        m.task.shape.tied = i >= 3;
        assert_ok(gang_layout_parse(layouts[i % 3], &layout));
        assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &a));
        assert_true(isfinite(a.sim.step_seconds) && a.sim.step_seconds > 0);
        gang_arena_release(&m.arena);
    }
}

// Gradients of d replicas over one link: the closed form of the exchange is what the simulator books.
static void test_data_parallel(void **state) {
    (void)state;
    struct made m;
    struct gang_layout layout;
    struct gang_answer a;
    make(3, true, &m);
    m.task.shape.experts = 0;
    m.task.global_batch = 32;
    assert_ok(gang_layout_parse("dp=32,zero=0,dp_overlap=0,place=replicas", &layout));
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &a));
    double bytes = gang_costs_chunk(&a.costs, 0, 0)->parameters * 4;
    assert_float_equal((double)gang_shape_parameters(&m.task.shape) * 4 / bytes, 1, 1e-9);
    assert_float_equal(a.sim.link_bytes[0], bytes, 1); // hierarchical: once in each direction
    double slow = bytes / gang_pool_link(&m.pool, 0)->bandwidth;
    assert_true(a.sim.rank[0].reduce >= slow * (1 - 1e-9));
    gang_arena_release(&m.arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_max_min), cmocka_unit_test(test_random),    cmocka_unit_test(test_closed_form),
                                       cmocka_unit_test(test_tied),    cmocka_unit_test(test_no_layers), cmocka_unit_test(test_data_parallel)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
