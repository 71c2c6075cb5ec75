// The search against exhaustive simulation on small pools, its closed form against the simulator, its bound, its refusals.
#include "../test.h"
#include "../scratch.h"

#include <math.h>

#include "../plan/random.h"
#include "study/study.h"

struct made {
    struct gang_arena arena;
    struct gang_task task;
    struct gang_pool pool;
};

static void make_nodes(uint64_t seed, bool unlike, int64_t a_node, struct made *out) {
    static const char *const names[] = {"H100-80GB", "A100-40GB", "L40S", "H20-96GB"};
    struct gang_list kinds;
    uint64_t draw = 0;
#define DRAW(n) (int)(gang_random_at(seed, 3, draw++) % (uint64_t)(n))
    *out = (struct made){0};
    gang_arena_init(&out->arena);
    gang_kinds_builtin(&out->arena, &kinds);
    gang_pool_uniform(gang_kind_find(&kinds, names[DRAW(4)]), 4, a_node, &out->arena, &out->pool);
    if (unlike) {
        struct gang_pool other;
        gang_pool_uniform(gang_kind_find(&kinds, names[DRAW(4)]), 4, a_node, &out->arena, &other);
        struct gang_group **groups = gang_arena_alloc(&out->arena, 2 * sizeof *groups);
        groups[0] = out->pool.groups[0], groups[1] = other.groups[0];
        out->pool.groups = groups, out->pool.group_count = 2, out->pool.devices = 8;
    }
    out->task = (struct gang_task){
        .shape = {.layers = 6 + DRAW(6), .hidden = 1024 * (1 + DRAW(3)), .heads = 8, .kv_heads = 8, .vocab = 32000, .gated = true},
        .sequence_length = 1024,
        .global_batch = 16 << DRAW(2)};
    out->task.shape.qk_dim = out->task.shape.v_dim = out->task.shape.hidden / 8;
    out->task.shape.ffn = out->task.shape.hidden * 3;
}

static void make(uint64_t seed, bool unlike, struct made *out) { make_nodes(seed, unlike, 4, out); }

// What simulating a grid of layouts has found.
struct grid {
    double best, best_alike; // seconds; with one micro-batch size for all
    double best_one;         // with one width for all
    int agree, all;          // layouts whose closed form is near, all of them
};

static void try_layout(const struct made *m, const struct gang_layout *l, struct grid *grid) {
    struct gang_arena arena;
    struct gang_answer answer;
    double memory_used = 0;
    gang_arena_init(&arena);
    if (!gang_evaluate(&m->task, &m->pool, l, 0, &arena, &answer)) {
        double estimate = gang_estimate(&m->task, &m->pool, &answer.layout, &answer.placement, &arena, &memory_used);
        grid->agree += fabs(estimate / answer.summary.step_seconds - 1) < 0.1;
        grid->all++;
        grid->best = fmin(grid->best, answer.summary.step_seconds);
        if (!l->size_count) grid->best_alike = fmin(grid->best_alike, answer.summary.step_seconds);
        if (!answer.layout.width_count) grid->best_one = fmin(grid->best_one, answer.summary.step_seconds);
    }
    gang_arena_release(&arena);
}

// Every pair of unlike sizes for two kinds of replicas.
static void try_sizes(const struct made *m, const struct gang_layout *l, struct grid *grid) {
    struct gang_layout mixed = *l;
    mixed.size_count = 2;
    for (mixed.place = 0; mixed.place < 2; mixed.place++)
        for (mixed.sizes[0] = 1; mixed.sizes[0] <= 8; mixed.sizes[0] *= 2)
            for (mixed.sizes[1] = 1; mixed.sizes[1] <= 8; mixed.sizes[1] *= 2) {
                mixed.micro_batch = mixed.sizes[0];
                if (mixed.sizes[0] != mixed.sizes[1]) try_layout(m, &mixed, grid);
            }
}

// Every choice of a width for each of two groups that fills both.
static void try_widths(const struct made *m, const struct gang_layout *l, struct grid *grid) {
    struct gang_group **groups = m->pool.groups;
    for (int a = 1; a <= groups[0]->fast_domain; a *= 2)
        for (int b = 1; b <= groups[1]->fast_domain; b *= 2) {
            struct gang_layout wide = *l;
            int64_t cells[] = {groups[0]->nodes * groups[0]->devices / a, groups[1]->nodes * groups[1]->devices / b};
            for (wide.dp = 1; wide.dp <= cells[0]; wide.dp++) {
                if (a == b || cells[0] % wide.dp || cells[1] % wide.dp) continue;
                wide.pp = wide.width_count = (int)(cells[0] + cells[1]) / wide.dp;
                if (wide.pp * wide.vpp > m->task.shape.layers || (wide.dp == 1 && wide.zero > 1)) continue;
                for (int s = 0; s < wide.pp; s++) wide.widths[s] = (uint16_t)(s < cells[0] / wide.dp ? a : b);
                for (wide.micro_batch = 1; wide.micro_batch <= 8; wide.micro_batch *= 2) try_layout(m, &wide, grid);
            }
        }
}

// Simulates every layout of a grid of the same widths.
static void exhaust(const struct made *m, struct grid *grid) {
    struct gang_layout l;
    gang_layout_init(&l);
    grid->best = grid->best_alike = grid->best_one = INFINITY;
    for (l.tp = 1; l.tp <= m->pool.groups[0]->fast_domain; l.tp *= 2)
        for (l.pp = 1; l.pp <= 4 && l.pp <= m->task.shape.layers; l.pp *= 2)
            for (l.vpp = 1; l.vpp <= 3; l.vpp++)
                for (l.recompute.at[0] = 0; l.recompute.at[0] < GANG_RECOMPUTES; l.recompute.at[0]++)
                    for (l.zero = 1; l.zero <= 3; l.zero++) {
                        if (l.tp == 1 && l.pp == (l.vpp > 1 ? 2 : 1) && m->pool.group_count == 2) try_widths(m, &l, grid);
                        l.dp = (int)(m->pool.devices / (l.tp * l.pp));
                        if (l.dp == 1 && (l.zero > 1 || l.pp < (l.vpp > 1 ? 2 : 1))) continue;
                        for (l.micro_batch = 1; l.micro_batch <= 8; l.micro_batch *= 2) try_layout(m, &l, grid);
                        if (m->pool.group_count == 2) try_sizes(m, &l, grid);
                    }
}

static void test_exhaustive(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    struct grid grid = {0};
    int wide = 0;
    for (uint64_t i = 0; i < 16; i++) {
        struct made m;
        struct gang_search search;
        make(gang_random_at(seed, 0, i), i % 2, &m);
        exhaust(&m, &grid);
        assert_true(isfinite(grid.best));
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &search));
        if (search.found[0].summary.step_seconds > grid.best * (1 + 1e-9))
            fail_msg("case %d: found %g, exhaustive %g", (int)i, search.found[0].summary.step_seconds, grid.best);
        assert_true(search.found[0].summary.step_seconds >= search.bound_seconds);
        wide += grid.best < grid.best_one * 0.999;
        for (int k = 1; k < search.count; k++) assert_true(search.found[k].summary.step_seconds >= search.found[k - 1].summary.step_seconds);
        gang_arena_release(&m.arena);
    }
    print_message("several widths were better in %d\n", wide);
    print_message("closed form within 10 %% of the simulator in %d of %d\n", grid.agree, grid.all);
    assert_true(grid.agree > 0.8 * grid.all);
}

// A node with a fast network beside one without, and a model too large for narrow stages: cells of one width for both are too wide for the
// slow network or too narrow for the memory.
static void test_widths(void **state) {
    (void)state;
    struct made m;
    struct gang_search search;
    struct gang_list kinds;
    struct gang_pool other;
    make_nodes(3, false, 4, &m);
    gang_kinds_builtin(&m.arena, &kinds);
    gang_pool_uniform(gang_kind_find(&kinds, "H100-80GB"), 8, 8, &m.arena, &m.pool);
    gang_pool_uniform(gang_kind_find(&kinds, "L40S"), 4, 4, &m.arena, &other);
    struct gang_group *groups[] = {m.pool.groups[0], other.groups[0]};
    m.pool.groups = groups, m.pool.group_count = 2, m.pool.devices = 12;
    m.task.shape = (struct gang_shape){
        .layers = 12, .hidden = 8192, .heads = 64, .kv_heads = 8, .qk_dim = 128, .v_dim = 128, .ffn = 28672, .vocab = 32000, .gated = true};
    m.task.sequence_length = 4096, m.task.global_batch = 16;
    assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, GANG_MAX_FOUND, &m.arena, &search));
    const struct gang_found *best = &search.found[0], *one = best;
    while (one < best + search.count && one->layout.width_count) one++;
    if (one == best + search.count) fail_msg("only unlike widths among the best");
    print_message("%s %g, one width %s %g\n", gang_layout_print(&best->layout, &m.arena), best->score, gang_layout_print(&one->layout, &m.arena),
                  one->score);
    assert_true(best->layout.width_count && best->layout.widths[0] > best->layout.widths[best->layout.pp - 1]);
    assert_true(best->score < 0.98 * one->score);
    gang_arena_release(&m.arena);
}

// The second group's devices get no more memory than micro-batches of one sequence need.
static void make_cramped(uint64_t seed, struct made *out) {
    struct gang_layout one;
    struct gang_answer answer;
    make_nodes(seed, true, 1, out);
    out->task.shape.layers = 1; // leaves nothing but replicas
    out->task.shape.vocab = 256;
    out->task.sequence_length = 128 << seed % 3;
    out->task.global_batch = 512;
    assert_ok(gang_layout_parse("mb=1", &one));
    assert_ok(gang_evaluate(&out->task, &out->pool, &one, 0, &out->arena, &answer));
    struct gang_kind *kind = gang_arena_alloc(&out->arena, sizeof *kind);
    *kind = *out->pool.groups[1]->kind;
    kind->memory_bytes = answer.memory[answer.costs.classes - 1].total / (1 - gang_memory_margin) * 1.001;
    out->pool.groups[1]->kind = kind;
}

// Where one kind of replicas has no room for a micro-batch that the other wants, each gets its own; the search finds the best pair.
static void test_sizes(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int gained = 0;
    for (uint64_t i = 0; i < 12; i++) {
        struct made m;
        struct grid grid = {0};
        struct gang_search search;
        make_cramped(gang_random_at(seed, 8, i), &m);
        exhaust(&m, &grid);
        assert_true(isfinite(grid.best));
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 1, &m.arena, &search));
        double found = search.found[0].summary.step_seconds;
        if (found > grid.best * (1 + 1e-9)) fail_msg("case %d: found %g, exhaustive %g", (int)i, found, grid.best);
        gained += search.found[0].layout.size_count > 0 && found < grid.best_alike * 0.99;
        gang_arena_release(&m.arena);
    }
    print_message("several micro-batch sizes were better by 1 %% in %d\n", gained);
    assert_true(gained > 2);
}

// Pipelines are what such devices do best, and their memory lies between what one of four stages takes with all made again and with nothing.
static void make_scarce(uint64_t seed, struct made *m) {
    struct gang_layout layout;
    struct gang_answer none, full;
    double part = 0.1 + 0.8 * (double)(gang_random_at(seed, 5, 1) % 1000) / 1000;
    for (int g = 0; g < m->pool.group_count; g++) m->pool.groups[g]->nic_bandwidth = 3e9, m->pool.groups[g]->fast_domain = 1;
    gang_layout_init(&layout);
    layout.pp = 4;
    layout.micro_batch = 1 << gang_random_at(seed, 5, 0) % 3;
    assert_ok(gang_evaluate(&m->task, &m->pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m->arena, &none));
    layout.recompute.at[0] = GANG_RECOMPUTE_FULL;
    assert_ok(gang_evaluate(&m->task, &m->pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m->arena, &full));
    for (int g = 0; g < m->pool.group_count; g++) {
        struct gang_kind *kind = gang_arena_alloc(&m->arena, sizeof *kind);
        *kind = *m->pool.groups[g]->kind;
        double least = full.memory_used * kind->memory_bytes, most = none.memory_used * kind->memory_bytes;
        kind->memory_bytes = least + part * (most - least);
        m->pool.groups[g]->kind = kind;
    }
}

// Every choice of what is made again on each stage.
static double exhaust_stages(const struct made *m, struct gang_layout *best) {
    double seconds = INFINITY;
    struct gang_layout l;
    gang_layout_init(&l);
    for (l.pp = 1; l.pp <= 4; l.pp *= 2)
        for (l.vpp = 1; l.vpp <= (l.pp > 1 ? 2 : 1); l.vpp++)
            for (l.micro_batch = 1; l.micro_batch <= 8; l.micro_batch *= 2)
                for (int code = 0; code < 1 << 2 * l.pp; code++) {
                    struct gang_arena arena;
                    struct gang_answer answer;
                    l.recompute.count = l.pp;
                    for (int s = 0; s < l.pp; s++) l.recompute.at[s] = (uint8_t)(code >> 2 * s & 3);
                    l.dp = (int)(m->pool.devices / l.pp);
                    gang_arena_init(&arena);
                    if (!gang_evaluate(&m->task, &m->pool, &l, 0, &arena, &answer) && answer.summary.step_seconds < seconds)
                        *best = answer.layout, seconds = answer.summary.step_seconds;
                    gang_arena_release(&arena);
                }
    return seconds;
}

static void test_recompute_by_stage(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int mixed = 0;
    for (uint64_t i = 0; i < 8; i++) {
        struct made m;
        struct gang_search search;
        struct gang_layout best;
        make(gang_random_at(seed, 1, i), i % 2, &m);
        make_scarce(gang_random_at(seed, 2, i), &m);
        double seconds = exhaust_stages(&m, &best);
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &search));
        if (search.found[0].summary.step_seconds > seconds * (1 + 1e-3))
            fail_msg("case %d: found %g with %s, exhaustive %g with %s", (int)i, search.found[0].summary.step_seconds,
                     gang_layout_print(&search.found[0].layout, &m.arena), seconds, gang_layout_print(&best, &m.arena));
        mixed += search.found[0].layout.recompute.count > 0;
        gang_arena_release(&m.arena);
    }
    assert_true(mixed);
}

// Every choice of what is made again and offloaded, alike on all stages or not.
static double exhaust_offload(const struct made *m, struct gang_layout *best) {
    double seconds = INFINITY;
    struct gang_layout l;
    gang_layout_init(&l);
    for (l.pp = 1; l.pp <= 2; l.pp++)
        for (l.zero = 1; l.zero <= 3; l.zero++)
            for (l.micro_batch = 1; l.micro_batch <= 8; l.micro_batch *= 2)
                for (int code = 0; code < 1 << 4 * l.pp; code++) {
                    struct gang_arena arena;
                    struct gang_answer answer;
                    l.recompute.count = l.offload.count = l.pp;
                    for (int s = 0; s < l.pp; s++) l.recompute.at[s] = (uint8_t)(code >> 4 * s & 3), l.offload.at[s] = code >> (4 * s + 2) & 3;
                    l.dp = (int)(m->pool.devices / l.pp);
                    gang_arena_init(&arena);
                    if (!gang_evaluate(&m->task, &m->pool, &l, 0, &arena, &answer) && answer.summary.step_seconds < seconds)
                        *best = answer.layout, seconds = answer.summary.step_seconds;
                    gang_arena_release(&arena);
                }
    return seconds;
}

// Nothing fits into little more than half of what the leanest pipeline takes; with the optimizer in the nodes' memory something does, if
// they have enough.
static void test_offload(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 4; i++) {
        struct made m;
        struct gang_search search;
        struct gang_layout best = {0}, layout;
        struct gang_answer answer;
        make(gang_random_at(17, 1, i), false, &m);
        m.task.global_batch = 4;
        gang_layout_init(&layout);
        layout.pp = 4;
        layout.recompute.at[0] = GANG_RECOMPUTE_FULL;
        assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &answer));
        struct gang_group *group = m.pool.groups[0];
        struct gang_kind *kind = gang_arena_alloc(&m.arena, sizeof *kind);
        *kind = *group->kind;
        kind->memory_bytes *= answer.memory_used * 0.55;
        group->fast_domain = 1;
        group->kind = kind;
        assert_fails(GANG_ERR_MEMORY, "on stage", gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &search));
        group->host_bandwidth = 400e9;
        group->host_memory = 1e9;
        assert_fails(GANG_ERR_MEMORY, "", gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &search));
        group->host_memory = 1e12;
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &search));
        double seconds = exhaust_offload(&m, &best);
        const struct gang_found *found = &search.found[0];
        assert_true(found->layout.offload.count || found->layout.offload.at[0]);
        if (found->summary.step_seconds > seconds * (1 + 1e-3))
            fail_msg("case %d: found %g with %s, exhaustive %g with %s", (int)i, found->summary.step_seconds,
                     gang_layout_print(&found->layout, &m.arena), seconds, gang_layout_print(&best, &m.arena));
        kind->memory_bytes *= 2; // some layout fits by itself
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &search));
        for (int k = 0; k < search.count; k++)
            for (int s = 0; s < search.found[k].layout.pp; s++)
                assert_true(!(gang_of_stage(&search.found[k].layout.offload, s) & GANG_OFFLOAD_OPTIMIZER));
        gang_arena_release(&m.arena);
    }
}

static void set_host(struct made *m, double memory, double link) {
    struct gang_group *group = m->pool.groups[0];
    struct gang_kind *kind = gang_arena_alloc(&m->arena, sizeof *kind);
    *kind = *group->kind;
    kind->host_link = link;
    group->kind = kind;
    group->host_memory = memory;
    group->host_bandwidth = 1e15;
}

// Pipelines of four stages, each of which makes all of its layers again or none, and keeps what it keeps here or in its node's memory.
static double exhaust_activations(const struct made *m, struct gang_layout *best) {
    static const uint8_t again[2] = {GANG_RECOMPUTE_NONE, GANG_RECOMPUTE_FULL}, away[2] = {GANG_OFFLOAD_NONE, GANG_OFFLOAD_ACTIVATIONS};
    double seconds = INFINITY;
    struct gang_layout l;
    gang_layout_init(&l);
    l.pp = l.recompute.count = l.offload.count = 4;
    for (l.micro_batch = 1; l.micro_batch <= 8; l.micro_batch *= 2)
        for (int code = 0; code < 1 << 2 * l.pp; code++) {
            struct gang_arena arena;
            struct gang_answer answer;
            l.dp = 1;
            for (int s = 0; s < l.pp; s++) l.recompute.at[s] = again[code >> 2 * s & 1], l.offload.at[s] = away[code >> (2 * s + 1) & 1];
            gang_arena_init(&arena);
            if (!gang_evaluate(&m->task, &m->pool, &l, 0, &arena, &answer) && answer.summary.step_seconds < seconds)
                *best = answer.layout, seconds = answer.summary.step_seconds;
            gang_arena_release(&arena);
        }
    return seconds;
}

static bool lays_away(const struct gang_layout *l) {
    for (int s = 0; s < l->pp; s++)
        if (gang_of_stage(&l->offload, s) & GANG_OFFLOAD_ACTIVATIONS) return true;
    return false;
}

// Where memory is short, activations go to the node's over a fast link and are made again beside a slow one; the search finds what
// simulating every choice finds.
static void test_offload_of_activations(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int gained = 0;
    for (uint64_t i = 0; i < 10; i++) {
        uint64_t from = i < 6 ? 1 : seed; // of the first, some gain
        struct made m;
        struct gang_search none, fast, slow;
        struct gang_layout best = {0};
        make(gang_random_at(from, 21, i), false, &m);
        make_scarce(gang_random_at(from, 22, i), &m);
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &none));
        set_host(&m, 1e12, 1e9);
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &slow));
        assert_true(!lays_away(&slow.found[0].layout) && slow.found[0].summary.step_seconds == none.found[0].summary.step_seconds);
        set_host(&m, 1e12, 400e9);
        double seconds = exhaust_activations(&m, &best);
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &fast));
        const struct gang_found *found = &fast.found[0];
        // Where another micro-batch size gains only by what the order of work makes of more room, the search may miss it.
        if (found->summary.step_seconds > seconds * 1.02)
            fail_msg("case %d: found %g with %s, exhaustive %g with %s", (int)i, found->summary.step_seconds,
                     gang_layout_print(&found->layout, &m.arena), seconds, gang_layout_print(&best, &m.arena));
        assert_true(found->summary.step_seconds <= none.found[0].summary.step_seconds * (1 + 1e-9));
        gained += lays_away(&found->layout) && found->summary.step_seconds < none.found[0].summary.step_seconds * 0.99;
        gang_arena_release(&m.arena);
    }
    print_message("laying activations away was better by 1 %% in %d\n", gained);
    assert_true(gained > 1);
}

static void test_objectives(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 4; i++) {
        struct made m;
        struct gang_search time, energy, price;
        make(gang_random_at(9, 0, i), i % 2, &m);
        assert_fails(GANG_ERR_INPUT, "does not state its price", gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_PRICE, 1, &m.arena, &price));
        for (int g = 0; g < m.pool.group_count; g++) m.pool.groups[g]->price = 2;
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 1, &m.arena, &time));
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_ENERGY, 1, &m.arena, &energy));
        assert_ok(gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_PRICE, 1, &m.arena, &price));
        assert_true(time.found[0].summary.step_seconds <= energy.found[0].summary.step_seconds * (1 + 1e-9));
        assert_true(energy.found[0].summary.tokens_per_joule >= time.found[0].summary.tokens_per_joule * (1 - 1e-9));
        assert_true(price.found[0].summary.tokens_per_price >= time.found[0].summary.tokens_per_price * (1 - 1e-9));
        gang_arena_release(&m.arena);
    }
}

static const char two_sites[] = "sites:\n"
                                "  - {name: a, groups: [{nodes: 2, devices: 4, device: A100-40GB, price: 2, failure_domain: 2}]}\n"
                                "  - {name: b, groups: [{nodes: 2, devices: 4, device: H100-80GB, price: 3}]}\n"
                                "links: [{between: [a, b], bandwidth: 100Gbps, distance: 100km, planes: 4, price: %s, outage_every: 30d,\n"
                                "    outage_length: 1h}]\n";

static void read_two_sites(const char *price, struct made *out) {
    char text[1024];
    make(3, false, out);
    snprintf(text, sizeof text, two_sites, price);
    assert_ok(gang_pool_read(scratch_text("c.yaml", text), &out->arena, &out->pool));
}

// What is carried costs: the closed form that the search sorts by says the same as the simulator, and dear bytes stay at home.
static void test_carried(void **state) {
    (void)state;
    static const char *const layouts[] = {"pp=2", "pp=4,vpp=2,mb=2", "tp=2,pp=2,place=replicas", "pp=2,place=replicas,zero=0"};
    for (int i = 0; i < 4; i++) {
        struct made m;
        struct gang_layout layout;
        struct gang_answer answer;
        read_two_sites("10", &m);
        m.task.shape.tied = i % 2;
        assert_ok(gang_layout_parse(layouts[i], &layout));
        assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &answer));
        double devices = answer.sim.step_seconds / 3600 * (8 * 2 + 8 * 3), carried = answer.sim.link_carried[0] * 1e-9 * 10;
        assert_true(answer.sim.link_bytes[0] > 0 && carried > 0);
        assert_float_equal(answer.summary.price_of_step, devices + carried, 1e-9 * (devices + carried));
        gang_arena_release(&m.arena);
    }
    struct made cheap, dear;
    struct gang_search a, b;
    read_two_sites("0", &cheap);
    read_two_sites("1000", &dear);
    cheap.task.shape.tied = dear.task.shape.tied = true;
    assert_ok(gang_search_run(&cheap.task, &cheap.pool, GANG_OBJECTIVE_PRICE, 1, &cheap.arena, &a));
    assert_ok(gang_search_run(&dear.task, &dear.pool, GANG_OBJECTIVE_PRICE, 1, &dear.arena, &b));
    assert_float_equal(a.found[0].score, a.found[0].summary.price_of_step, 1e-6 * a.found[0].score);
    assert_float_equal(b.found[0].score, b.found[0].summary.price_of_step, 1e-6 * b.found[0].score);
    assert_true(b.found[0].summary.long_link_bytes < a.found[0].summary.long_link_bytes || a.found[0].summary.long_link_bytes == 0);
    gang_arena_release(&cheap.arena);
    gang_arena_release(&dear.arena);
}

static void test_outages(void **state) {
    (void)state;
    struct made m;
    struct gang_layout layout;
    struct gang_answer answer;
    struct gang_faults f = {.domain_mtbf = 1e6};
    read_two_sites("0", &m);
    assert_ok(gang_layout_parse("pp=2,place=replicas,zero=0", &layout));
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &answer));
    assert_ok(gang_faults_complete(&m.task, &m.pool, &answer, &m.arena, &f));
    assert_int_equal(f.domain_count, 1); // only one group says what falls together
    assert_true(f.domains[0].count == 1 && f.domains[0].nodes == 2);
    assert_int_equal(f.link_count, 1);
    const struct gang_fault_link *link = &f.links[0];
    assert_true(link->planes == 4 && link->every == 30 * 86400.0 && link->length == 3600);
    assert_true(link->speed[0] == 1 && link->speed[1] < 1 && link->speed[2] < link->speed[1] && link->speed[3] < link->speed[2] &&
                link->speed[3] > 0 && link->speed[4] == 0);
    // The file's own figures count before the pool's.
    struct gang_faults own = {.domain_mtbf = 1e6, .domain_nodes = 4, .link_mtbf = 86400, .link_outage = 60};
    assert_ok(gang_faults_complete(&m.task, &m.pool, &answer, &m.arena, &own));
    assert_true(own.links[0].every == 4 * 86400.0 && own.links[0].length == 60 && own.domains[0].count == 1 && own.domains[0].nodes == 4);
    // On one site nothing crosses, and nobody misses the link.
    assert_ok(gang_layout_parse("pp=2,dp=2", &layout));
    assert_ok(gang_evaluate(&m.task, &m.pool, &layout, GANG_EVALUATE_ANY_MEMORY, &m.arena, &answer));
    f = (struct gang_faults){0};
    assert_ok(gang_faults_complete(&m.task, &m.pool, &answer, &m.arena, &f));
    assert_int_equal(f.link_count, 0);
    f = (struct gang_faults){.domain_mtbf = 1e6};
    m.pool.groups[0]->failure_domain = 0;
    assert_fails(GANG_ERR_INPUT, "domain_mtbf says how often", gang_faults_complete(&m.task, &m.pool, &answer, &m.arena, &f));
    gang_arena_release(&m.arena);
}

static void test_refuses(void **state) {
    (void)state;
    struct made m;
    struct gang_search search;
    make(1, false, &m);
    m.task.shape.layers = 100, m.task.shape.hidden = 16384, m.task.shape.ffn = 65536, m.task.shape.qk_dim = m.task.shape.v_dim = 2048;
    assert_fails(GANG_ERR_MEMORY, "on stage", gang_search_run(&m.task, &m.pool, GANG_OBJECTIVE_TIME, 3, &m.arena, &search));
    gang_arena_release(&m.arena);
}

// What random_layout saw; every one must occur.
struct seen {
    int pipeline, replicas, chunks, uneven, sizes, unlike, far, tied, full, picked, offload, away, widths, wide_replicas, wide_groups;
    int schedules[GANG_SCHEDULE_LIST + 1];
};

// Against the same order of work with all activations on the devices: no faster, no more there, and nothing lost on the way.
static bool check_away(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *a) {
    struct gang_arena arena;
    struct gang_layout here = a->layout;
    struct gang_answer b;
    bool rule = a->layout.schedule == GANG_SCHEDULE_1F1B || a->layout.schedule == GANG_SCHEDULE_INTERLEAVED; // whatever the memory
    if (!rule || !lays_away(&a->layout)) return false;
    for (int s = 0; s < GANG_MAX_STAGES; s++) here.offload.at[s] &= GANG_OFFLOAD_OPTIMIZER;
    gang_arena_init(&arena);
    assert_ok(gang_evaluate(task, pool, &here, GANG_EVALUATE_ANY_MEMORY, &arena, &b));
    bool same = a->costs.classes == b.costs.classes; // copies that show change speeds, and so the shares
    for (int c = 0; c < a->costs.classes && same; c++) same = a->placement.classes[c].micro_batches == b.placement.classes[c].micro_batches;
    assert_true(!same || a->sim.step_seconds >= b.sim.step_seconds * (1 - 1e-9));
    for (int i = 0; i < a->costs.classes * here.pp && same; i++) {
        const struct gang_memory_use *away = &a->memory[i], *all = &b.memory[i];
        assert_true(away->activations <= all->activations + 1 && away->activations + away->host_activations >= all->activations - 1);
        assert_true(gang_of_stage(&a->layout.offload, i % here.pp) & GANG_OFFLOAD_ACTIVATIONS || away->host_activations == 0);
        assert_float_equal(away->total - away->activations, all->total - all->activations, 1);
    }
    gang_arena_release(&arena);
    return same;
}

static void note(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *a, struct seen *seen) {
    const struct gang_layout *l = &a->layout;
    seen->pipeline += l->pp > 1, seen->replicas += l->dp > 1, seen->chunks += l->vpp > 1, seen->tied += task->shape.tied && l->pp > 1;
    for (int c = 1; c < l->layer_count; c++) seen->uneven += l->layers[c] > l->layers[0] + 1;
    for (int g = 1; g < pool->group_count; g++) seen->unlike += pool->groups[g]->kind != pool->groups[0]->kind;
    seen->sizes += l->size_count > 1;
    seen->far += a->sim.link_bytes[0] > 0;
    seen->full += l->recompute.at[0] == GANG_RECOMPUTE_FULL;
    seen->picked += l->recompute.count > 0;
    seen->offload += l->offload.count || l->offload.at[0];
    seen->widths += l->width_count > 1;
    seen->wide_replicas += l->width_count > 1 && l->dp > 1;
    seen->wide_groups += l->width_count > 1 && a->placement.classes[0].groups[0] != a->placement.classes[0].groups[l->pp - 1];
    seen->away += check_away(task, pool, a);
    seen->schedules[l->schedule]++;
}

static int group_of(const struct gang_pool *pool, int64_t device) {
    int g = 0;
    for (; device >= pool->groups[g]->nodes * pool->groups[g]->devices; g++) device -= pool->groups[g]->nodes * pool->groups[g]->devices;
    return g;
}

// The cells cover the line from its beginning, no device twice, each in one group; and as many replicas of each kind lie as the kind says.
static void check_cells(const struct gang_pool *pool, const struct gang_answer *a) {
    const struct gang_layout *l = &a->layout;
    bool taken[64] = {false};
    int64_t replicas[GANG_MAX_CLASSES] = {0};
    for (int64_t r = 0; r < l->dp; r++) {
        bool of[GANG_MAX_CLASSES];
        memset(of, true, sizeof of);
        for (int s = 0; s < l->pp; s++) {
            int64_t at = gang_cell_at(l, r, s), end = at + gang_cell_devices(l, s);
            assert_true(at >= 0 && end <= a->placement.devices_used);
            assert_int_equal(group_of(pool, at), group_of(pool, end - 1));
            for (; at < end; at++) {
                assert_false(taken[at]);
                taken[at] = true;
            }
            for (int c = 0; c < a->placement.class_count; c++) of[c] &= a->placement.classes[c].groups[s] == group_of(pool, end - 1);
        }
        for (int c = 0; c < a->placement.class_count; c++) replicas[a->placement.classes[c].kind] += of[c] && a->placement.classes[c].kind == c;
    }
    for (int64_t d = 0; d < a->placement.devices_used; d++) assert_true(taken[d]);
    for (int c = 0; c < a->placement.class_count; c++) replicas[a->placement.classes[c].kind] -= a->placement.classes[c].replicas;
    for (int c = 0; c < GANG_MAX_CLASSES; c++) assert_int_equal(replicas[c], 0);
}

// Every drawn layout is placed, ordered, verified and simulated; folded and not in the same time; nothing is lost on the way.
static void test_random_layouts(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    struct seen seen = {0};
    for (uint64_t i = 0; i < 600; i++) {
        struct gang_arena arena;
        struct gang_task task;
        struct gang_pool pool;
        struct gang_layout layout;
        struct gang_answer folded, whole;
        gang_arena_init(&arena);
        gang_random_task(gang_random_at(seed, i, 0), &task);
        gang_random_pool(gang_random_at(seed, i, 1), &arena, &pool);
        gang_random_layout(gang_random_at(seed, i, 2), &task, &pool, &layout);
        gang_random_widths(gang_random_at(seed, i, 3), &task, &pool, &layout);
        if (gang_evaluate(&task, &pool, &layout, 0, &arena, &folded)) fail_msg("case %d: %s", (int)i, gang_error());
        assert_ok(gang_evaluate(&task, &pool, &layout, GANG_EVALUATE_UNFOLDED, &arena, &whole));
        if (fabs(folded.sim.step_seconds / whole.sim.step_seconds - 1) > 1e-6)
            fail_msg("case %d: folded %.9g, unfolded %.9g", (int)i, folded.sim.step_seconds, whole.sim.step_seconds);
        assert_int_equal(whole.program.replicas, layout.dp);
        check_cells(&pool, &folded);
        assert_true(whole.sim.sent_bytes == whole.sim.received_bytes);
        int64_t sequences = 0, layers = 0;
        for (int r = 0; r < layout.dp; r++) sequences += whole.program.micro_batches[r] * whole.program.sizes[r];
        for (int c = 0; c < folded.layout.layer_count; c++) layers += folded.layout.layers[c];
        assert_int_equal(sequences, task.global_batch);
        struct gang_layout printed;
        assert_ok(gang_layout_parse(gang_layout_print(&layout, &arena), &printed));
        assert_true(printed.micro_batch == layout.micro_batch && printed.size_count == layout.size_count);
        assert_memory_equal(printed.sizes, layout.sizes, (size_t)layout.size_count * sizeof *layout.sizes);
        assert_true(printed.tp == layout.tp && printed.width_count == layout.width_count);
        assert_memory_equal(printed.widths, layout.widths, sizeof layout.widths);
        assert_int_equal(layers, task.shape.layers);
        note(&task, &pool, &folded, &seen);
        gang_arena_release(&arena);
    }
    const int *counts = (const int *)&seen;
    for (size_t i = 0; i < sizeof seen / sizeof *counts; i++)
        if (counts[i] < 5) fail_msg("feature %zu was drawn %d times", i, counts[i]);
}

static void test_kendall(void **state) {
    (void)state;
    const double a[] = {1, 2, 3, 4}, b[] = {1, 2, 4, 3}, c[] = {4, 3, 2, 1};
    assert_float_equal(gang_kendall(4, a, a), 1, 1e-12);
    assert_float_equal(gang_kendall(4, a, b), 4.0 / 6, 1e-12);
    assert_float_equal(gang_kendall(4, a, c), -1, 1e-12);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_exhaustive),     cmocka_unit_test(test_sizes),
                                       cmocka_unit_test(test_widths),         cmocka_unit_test(test_recompute_by_stage),
                                       cmocka_unit_test(test_offload),        cmocka_unit_test(test_offload_of_activations),
                                       cmocka_unit_test(test_objectives),     cmocka_unit_test(test_carried),
                                       cmocka_unit_test(test_outages),        cmocka_unit_test(test_refuses),
                                       cmocka_unit_test(test_random_layouts), cmocka_unit_test(test_kendall)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
