// The closed form's quick sums against the costs that programs are made of, over random tasks, pools and layouts.
#include "../test.h"

#include <math.h>

#include "../plan/random.h"
#include "study/estimate.h"

struct made {
    struct gang_arena arena;
    struct gang_task task;
    struct gang_pool pool;
    struct gang_layout layout;
    struct gang_placement placement;
    const struct gang_parts *parts[GANG_MAX_REPLICA_KINDS];
};

static void make(uint64_t seed, struct made *out) {
    struct gang_prices prices;
    gang_arena_init(&out->arena);
    gang_random_task(gang_random_at(seed, 1, 0), &out->task);
    struct gang_shape *shape = &out->task.shape;
    if (seed % 2) shape->experts = 4, shape->experts_per_token = 2, shape->expert_ffn = shape->hidden, shape->dense_layers = (int64_t)(seed / 2 % 4);
    gang_random_pool(gang_random_at(seed, 1, 1), &out->arena, &out->pool);
    gang_random_layout(gang_random_at(seed, 1, 2), &out->task, &out->pool, &out->layout);
    if (gang_random_at(seed, 1, 4) % 2) gang_random_widths(gang_random_at(seed, 1, 5), &out->task, &out->pool, &out->layout);
    struct gang_layout placed = out->layout;
    placed.zero = (int)(gang_random_at(seed, 1, 3) % 4);
    if (!gang_layout_place(&out->task, &out->pool, &placed, &out->arena, &out->placement))
        out->layout = placed;
    else // replicas far apart take no more than zero=1
        assert_ok(gang_layout_place(&out->task, &out->pool, &out->layout, &out->arena, &out->placement));
    gang_prices_fill(&out->task, &out->pool, &out->layout, &out->arena, &prices);
    for (int k = 0; k < out->placement.kind_count; k++) out->parts[k] = gang_parts_new(&out->task, &out->layout, &prices, k, &out->arena);
}

#define assert_near(a, b) assert_float_equal(a, b, 1e-30 + 1e-9 * fabs(b))

// Stage by stage, in every class: seconds, copies that show included, and bytes.
static void check_stage(const struct made *m, const struct gang_costs *costs, int c, int stage) {
    const struct gang_layout *l = &m->layout;
    const struct gang_class *class = &m->placement.classes[c];
    struct gang_stage_sum sum = {0}, slow = {0};
    struct gang_memory_use use;
    gang_sum_stage(&m->task, l, gang_parts_at(&m->parts[class->kind][class->groups[stage]], gang_tp_of(l, stage)), stage, NULL, &sum);
    for (int chunk = stage; chunk < costs->chunks; chunk += l->pp) {
        const struct gang_chunk_cost *cost = gang_costs_chunk(costs, c, chunk);
        slow.forward += gang_time_sum(&cost->forward) + gang_copy_shown(cost, GANG_OP_FORWARD);
        slow.input += gang_time_sum(&cost->input) + gang_copy_shown(cost, GANG_OP_BACKWARD);
        slow.weight += gang_time_sum(&cost->weight);
        slow.activation = fmax(slow.activation, cost->activation_bytes);
    }
    gang_memory_of(&m->task, l, costs, c, stage, &(struct gang_held){0}, &use);
    assert_near(sum.forward, slow.forward);
    assert_near(sum.input, slow.input);
    assert_near(sum.weight, slow.weight);
    assert_near(sum.seconds, slow.forward + slow.input + slow.weight);
    assert_near(sum.activation, slow.activation);
    assert_near(sum.fixed, use.total);
    assert_near(sum.host, use.host);
    assert_near(sum.host_limit, use.host_limit);
    assert_true(sum.away == isfinite(costs->stays[c * l->pp + stage]));
}

// The exchanges of runs that are summed once, of whatever was asked before: as long as alone.
static void check_exchanges(const struct made *m, struct gang_ground *used, const struct gang_costs *costs) {
    const struct gang_layout *l = &m->layout;
    double seconds[GANG_MAX_REPLICA_KINDS];
    gang_ground_sum(used, &m->task, l, m->parts, seconds);
    for (int i = 0; i < used->run_count; i++)
        for (int s = used->runs[i]; s < used->runs[i + 1]; s++) {
            double reduce = 0, gather = 0;
            for (int chunk = s; chunk < costs->chunks; chunk += l->pp) {
                const struct gang_exchange *x[2] = {&costs->reduce[chunk], &costs->gather[chunk]};
                // Weights go round in the type in which each keeps them.
                if (l->zero == 1 || l->zero == 2) assert_near(x[1]->bytes, 4 * gang_costs_chunk(costs, 0, chunk)->parameters);
                double *sum[2] = {&reduce, &gather};
                for (int k = 0; k < 2; k++) {
                    double one = x[k]->fast_seconds;
                    for (int link = 0; link < m->pool.links.count; link++)
                        one = fmax(one, x[k]->link_bytes[link] * l->pp / gang_pool_link(&m->pool, link)->bandwidth);
                    *sum[k] += one;
                }
            }
            assert_near(used->sums[i].reduce, reduce);
            assert_near(used->sums[i].gather, gather);
        }
}

// Hop by hop: runs of like ones are looked at once.
static void check_hops(const struct made *m, const struct gang_ground *ground) {
    int stage = 0;
    for (int i = 0; i < ground->hop_count; i++)
        for (int k = 0; k < ground->hops[i].count; k++, stage++) {
            struct gang_hop hop;
            gang_hop_between(&m->pool, &m->layout, &m->placement, 0, stage, stage + 1, &hop);
            assert_near(ground->hops[i].delay, hop.delay);
            assert_near(ground->hops[i].bandwidth, hop.bandwidth);
        }
    assert_int_equal(stage, m->layout.pp - 1);
}

static void test_sums(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int away = 0, sharded = 0, chunked = 0, experts = 0, wide = 0;
    for (uint64_t i = 0; i < 500; i++) {
        struct made m;
        struct gang_costs costs;
        struct gang_ground ground;
        make(gang_random_at(seed, 5, i), &m);
        gang_costs_fill(&m.task, &m.pool, &m.layout, &m.placement, &m.arena, &costs);
        for (int c = 0; c < costs.classes; c++)
            for (int s = 0; s < m.layout.pp; s++) check_stage(&m, &costs, c, s);
        gang_ground_open(&m.pool, &m.layout, &m.placement, &m.arena, &ground);
        check_hops(&m, &ground);
        for (int again = 0; again < 2; again++) check_exchanges(&m, &ground, &costs);
        for (int s = 0; s < m.layout.pp; s++) away += gang_of_stage(&m.layout.offload, s) >= GANG_OFFLOAD_ACTIVATIONS;
        sharded += m.layout.zero >= 2, chunked += m.layout.vpp > 1, experts += m.task.shape.experts > 0, wide += m.layout.width_count > 0;
        gang_arena_release(&m.arena);
    }
    assert_true(away > 20 && sharded > 20 && chunked > 20 && experts > 20 && wide > 20);
}

// The batch shared out by the quick sums is the batch shared out by the costs.
static void test_shares(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int several = 0, wide = 0;
    for (uint64_t i = 0; i < 500; i++) {
        struct made m;
        struct gang_ground ground;
        struct gang_placement shared;
        double seconds[GANG_MAX_REPLICA_KINDS];
        make(gang_random_at(seed, 6, i), &m);
        assert_ok(gang_layout_locate(&m.task, &m.pool, &m.layout, &m.arena, &shared));
        gang_ground_open(&m.pool, &m.layout, &shared, &m.arena, &ground);
        gang_ground_sum(&ground, &m.task, &m.layout, m.parts, seconds);
        assert_ok(gang_layout_share(&m.task, &m.pool, &m.layout, seconds, &m.arena, &shared));
        assert_int_equal(shared.class_count, m.placement.class_count);
        for (int c = 0; c < shared.class_count; c++) {
            const struct gang_class *a = &shared.classes[c], *b = &m.placement.classes[c];
            assert_true(a->replicas == b->replicas && a->micro_batches == b->micro_batches && a->micro_batch == b->micro_batch);
        }
        several += shared.class_count > 1, wide += m.layout.width_count > 0;
        gang_arena_release(&m.arena);
    }
    assert_true(several > 50 && wide > 20);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_sums), cmocka_unit_test(test_shares)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
