// cluster.yaml: what is read, what is refused and with which words; the built-in kinds.
#include "../test.h"
#include "../scratch.h"

#include <math.h>

#include "pool/pool.h"

static void test_builtin(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_list kinds;
    gang_arena_init(&arena);
    gang_kinds_builtin(&arena, &kinds);
    static const char *const wanted[] = {"A100-40GB",   "A100-80GB", "H100-80GB", "H200-141GB", "GH200-96GB", "B200",     "L40S",
                                         "L20",         "H20-96GB",  "A10",       "MI250X",     "MI300X",     "RTX-3090", "RTX-4090",
                                         "Ascend-910B", "BR106M",    "TPU-v5e",   "TPU-v5p",    "cpu-2core",  "cpu"};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        const struct gang_kind *kind = gang_kind_find(&kinds, wanted[i]);
        if (!kind) fail_msg("%s is missing", wanted[i]);
        for (int m = 0; m < GANG_MATHS; m++) assert_true(kind->reach[m] > 0 && kind->reach[m] <= 1);
        assert_true(kind->peak[GANG_MATH_F16] > 0 && kind->memory_bytes > 1e9);
        // A device needs at least a few FLOP a byte to be worth the name, and has no more than a few thousand.
        double intensity = kind->peak[GANG_MATH_F16] / kind->memory_bandwidth;
        if (intensity < 10 || intensity > 1000) fail_msg("%s: %g FLOP a byte", wanted[i], intensity);
    }
    const struct gang_kind *h100 = gang_kind_find(&kinds, "H100-80GB");
    assert_int_equal(gang_kind_provenance(h100, "f16"), GANG_SPECIFICATION);
    assert_int_equal(gang_kind_provenance(h100, "f16_reach"), GANG_CALIBRATED);
    assert_int_equal(gang_kind_provenance(h100, "attention_reach"), GANG_MEASURED);
    gang_arena_release(&arena);
}

static const char two_sites[] = "sites:\n"
                                "  - name: a\n"
                                "    groups:\n"
                                "      - {nodes: 2, devices: 8, device: H100-80GB, failure_domain: 2, host_memory: 2TB, host_bandwidth: 600GB/s}\n"
                                "  - name: b\n"
                                "    groups:\n"
                                "      - {nodes: 1, devices: 4, device: own}\n"
                                "  - name: c\n"
                                "    groups:\n"
                                "      - {nodes: 1, devices: 4, device: own, nic: 10Gbps}\n"
                                "links:\n"
                                "  - {between: [a, b], bandwidth: 1Tbps, distance: 300km, planes: 4, price: 0.02,\n"
                                "     outage_every: 90d, outage_length: 2h}\n"
                                "  - {between: [c, b], bandwidth: 10Gbps, rtt: 4ms}\n"
                                "kinds:\n"
                                "  - {name: own, memory: 10GB, memory_bandwidth: 1TB/s, f16: 100TFLOPS, measured: [f16]}\n";

static void test_reads(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_pool pool;
    gang_arena_init(&arena);
    assert_ok(gang_pool_read(scratch_text("c.yaml", two_sites), &arena, &pool));
    assert_int_equal(pool.devices, 24);
    assert_int_equal(pool.group_count, 3);
    assert_int_equal(pool.groups[0]->fast_domain, 8);
    assert_float_equal(pool.groups[2]->nic_bandwidth, 1.25e9, 1);
    assert_int_equal(pool.groups[0]->failure_domain, 2);
    assert_int_equal(pool.groups[1]->failure_domain, 0);
    assert_true(pool.groups[0]->host_memory == 2e12 && pool.groups[0]->host_bandwidth == 600e9 && pool.groups[0]->kind->host_link == 64e9);
    assert_true(gang_group_offloads(pool.groups[0]) && !gang_group_offloads(pool.groups[1]));
    const struct gang_link *wide = gang_pool_link(&pool, 0), *plain = gang_pool_link(&pool, 1);
    assert_true(wide->planes == 4 && wide->price == 0.02 && wide->outage_every == 90 * 86400.0 && wide->outage_length == 7200);
    assert_true(plain->planes == 1 && plain->price == 0 && plain->outage_every == 0);
    // Light takes 4.9 microseconds a kilometre of fibre.
    assert_float_equal(gang_pool_route(&pool, 0, 1)->delay, 300e3 * 1.468 / 299792458.0, 1e-9);
    const struct gang_route *far = gang_pool_route(&pool, 0, 2), *back = gang_pool_route(&pool, 2, 0);
    assert_int_equal(far->count, 2);
    assert_int_equal(far->links[0], 0);
    assert_int_equal(back->links[0], 1);
    assert_float_equal(far->delay, 300e3 * 1.468 / 299792458.0 + 2e-3, 1e-9);
    assert_float_equal(gang_route_bandwidth(&pool, far), 1.25e9, 1);
    assert_true(isinf(gang_route_bandwidth(&pool, gang_pool_route(&pool, 1, 1))));
    gang_arena_release(&arena);
}

static void test_profile(void **state) {
    (void)state;
    struct gang_arena arena;
    struct gang_pool pool;
    gang_arena_init(&arena);
    scratch_text(
        "p.json",
        "{\"version\": 1, \"device\": \"a laptop\", \"memory_bytes\": 8e9, \"peak_f32\": 5e11, \"peak_bf16\": 1e12, \"sustained_f32\": 4e11, "
        "\"sustained_bf16\": 9e11, \"triad_bytes_per_s\": 4e10}");
    const char *text = "sites:\n  - name: a\n    groups:\n      - {nodes: 1, devices: 1, device: p.json, nic: 1Gbps}\n";
    assert_ok(gang_pool_read(scratch_text("c.yaml", text), &arena, &pool));
    const struct gang_kind *kind = pool.groups[0]->kind;
    assert_string_equal(kind->name, "a laptop");
    assert_float_equal(kind->reach[GANG_MATH_F16], 0.9, 1e-12);
    assert_int_equal(gang_kind_provenance(kind, "f16_reach"), GANG_MEASURED);
    scratch_text("p.json", "{\"version\": 1}");
    assert_fails(GANG_ERR_INPUT, "not a profile", gang_pool_read(scratch_text("c.yaml", text), &arena, &pool));
    gang_arena_release(&arena);
}

static void test_refuses(void **state) {
    (void)state;
    static const struct {
        const char *from, *to, *words;
    } cases[] = {
        {"device: H100-80GB", "device: H1000", "c.yaml:4:9: device 'H1000' is no known kind: expected one of A100-40GB"},
        {"nodes: 2", "nodes: 0", "c.yaml:4:10: nodes: '0' is out of range"},
        {"name: b", "name: a", "a second site 'a'"},
        {"[a, b]", "[a, x]", "c.yaml:12:5: between: 'x' is no site of this file"},
        {"[a, b]", "[a, a]", "a link from 'a' to itself"},
        {"[a, b]", "[a, b, c]", "between: 3 sites: expected two"},
        {"distance: 300km", "distance: 300km, rtt: 1ms", "give either distance or rtt, not both"},
        {", distance: 300km", "", "give either distance or rtt, above 0"},
        {"distance: 300km", "distance: 300GB", "'300GB' is not a number with a unit of its kind: expected for example 300km"},
        {"[c, b]", "[a, b]", "site 'c' cannot be reached from 'a'"},
        {"f16: 100TFLOPS, measured: [f16]", "measured: [power]", "kind 'own': computes nothing"},
        {"measured: [f16]", "measured: [speed]", "'speed' under measured or calibrated is no field"},
        {"devices: 8, device: H100-80GB", "devices: 8, fast_domain: 3, device: H100-80GB", "fast_domain 3 neither divides"},
        {"planes: 4", "planes: 0", "c.yaml:12:58: planes: '0' is out of range"},
        {"planes: 4", "plane: 4", "unknown field: did you mean 'planes'?"},
        {"price: 0.02", "price: -1", "price: '-1' is out of range"},
        {", outage_length: 2h", "", "c.yaml:12:5: give both outage_every and outage_length, or neither"},
        {"outage_every: 90d", "outage_every: 90km", "'90km' is not a number with a unit of its kind"},
        {"failure_domain: 2", "failure_domain: 3", "c.yaml:4:9: failure_domain 3: the group has 2 nodes"},
        {"bandwidth: 1Tbps", "bandwidth: 0bps", "bandwidth: '0bps' is out of range"},
        {"name: b\n", "name: b\n    login: l\n", "c.yaml:5:5: site 'b': slurm_conf, login and slurm_options are for a site with launcher: slurm"},
        {"name: b\n", "name: b\n    launcher: srun\n", "launcher: 'srun'"},
        {"links:", "linsk:", "unknown field: did you mean 'links'?"},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char text[2048];
        const char *at = strstr(two_sites, cases[c].from);
        assert_non_null(at);
        snprintf(text, sizeof text, "%.*s%s%s", (int)(at - two_sites), two_sites, cases[c].to, at + strlen(cases[c].from));
        struct gang_arena arena;
        struct gang_pool pool;
        gang_arena_init(&arena);
        assert_fails(GANG_ERR_INPUT, cases[c].words, gang_pool_read(scratch_text("c.yaml", text), &arena, &pool));
        gang_arena_release(&arena);
    }
}

// Damaged bytes: refused with a message, or a pool whose figures are sane.
static void test_mutations(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    size_t bytes = strlen(two_sites);
    int read = 0;
    for (uint64_t i = 0; i < 1500; i++) {
        char text[sizeof two_sites];
        memcpy(text, two_sites, sizeof two_sites);
        for (uint64_t k = 0; k <= gang_random_at(seed, i, 0) % 2; k++) {
            uint64_t value = gang_random_at(seed, i, 2 * k + 2);
            text[gang_random_at(seed, i, 2 * k + 1) % bytes] = value & 1 ? (char)(32 + (value >> 8) % 95) : two_sites[(value >> 8) % bytes];
        }
        struct gang_arena arena;
        struct gang_pool pool;
        gang_arena_init(&arena);
        enum gang_status status = gang_pool_read(scratch_text("c.yaml", text), &arena, &pool);
        if (status) {
            assert_non_null(strstr(gang_error(), "c.yaml"));
        } else {
            read++;
            for (int g = 0; g < pool.group_count; g++)
                assert_true(pool.groups[g]->kind && pool.groups[g]->nic_bandwidth > 0 && pool.groups[g]->nodes > 0);
            for (int r = 0; r < pool.sites.count * pool.sites.count; r++) assert_true(isfinite(pool.routes[r].delay));
        }
        gang_arena_release(&arena);
    }
    assert_true(read < 1200);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_builtin), cmocka_unit_test(test_reads), cmocka_unit_test(test_profile),
                                       cmocka_unit_test(test_refuses), cmocka_unit_test(test_mutations)};
    return cmocka_run_group_tests(tests, scratch_open, scratch_close);
}
