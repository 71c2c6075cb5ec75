// Choosing a token: greedy, and that draws follow the probabilities they should.
#include "../test.h"
#include "train/train.h"

#include <math.h>

enum { V = 6, DRAWS = 20000 };

// Not in order, with a tie between 1 and 4.
static const float logits[V] = {-1.0f, 0.5f, 2.0f, -3.0f, 0.5f, 1.2f};

static int32_t draw(double temperature, double top_p, uint64_t seed, uint64_t index) {
    struct gang_candidate work[V];
    return gang_sample(logits, V, &(struct gang_sampling){.temperature = temperature, .top_p = top_p, .seed = seed}, index, work);
}

// The exact probabilities: softmax of logits / temperature over the ids of `kept`, 0 elsewhere.
static void expected(double temperature, const char *kept, double p[V]) {
    double sum = 0;
    for (int v = 0; v < V; v++) sum += p[v] = kept[v] == '1' ? exp((double)logits[v] / temperature) : 0;
    for (int v = 0; v < V; v++) p[v] /= sum;
}

// Counts over DRAWS draws lie within five standard errors of the probabilities; what has none is never drawn.
static void check_draws(double temperature, double top_p, const char *kept) {
    int counts[V] = {0};
    double p[V];
    uint64_t seed = test_seed();
    expected(temperature, kept, p);
    for (uint64_t i = 0; i < DRAWS; i++) {
        int32_t id = draw(temperature, top_p, seed, i);
        assert_in_range(id, 0, V - 1);
        counts[id]++;
    }
    for (int v = 0; v < V; v++) {
        double off = fabs(counts[v] - DRAWS * p[v]), allowed = 5 * sqrt(DRAWS * p[v] * (1 - p[v]));
        if (off > allowed)
            fail_msg("temperature %g, top_p %g: token %d drawn %d times, expected %.0f", temperature, top_p, v, counts[v], DRAWS * p[v]);
    }
}

static void test_greedy(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 100; i++) assert_int_equal(draw(0, 1, i, i), 2);
    struct gang_candidate work[3];
    const struct gang_sampling greedy = {.temperature = 0, .top_p = 0.5, .seed = 1};
    assert_int_equal(gang_sample((const float[]){1, 3, 3}, 3, &greedy, 0, work), 1); // the first of equals
    assert_int_equal(gang_sample((const float[]){-INFINITY, -5, -INFINITY}, 3, &greedy, 0, work), 1);
    assert_int_equal(gang_sample((const float[]){7}, 1, &greedy, 0, work), 0);
}

static void test_temperature(void **state) {
    (void)state;
    check_draws(1, 1, "111111");
    check_draws(0.5, 1, "111111");
    check_draws(3, 1, "111111");
}

// At temperature 1: token 2 has 0.51, 5 has 0.23, 1 and 4 have 0.11 each, 0 has 0.03.
static void test_top_p(void **state) {
    (void)state;
    check_draws(1, 0.4, "001000");
    check_draws(1, 0.6, "001001");
    check_draws(1, 0.8, "011001"); // of equals the lower id
    check_draws(1, 0.9, "011011");
    check_draws(1, 0.98, "111011");
    check_draws(1, 0, "001000"); // at least one
}

// So cold and so hot that a careless exponential overflows.
static void test_extreme_temperatures(void **state) {
    (void)state;
    for (uint64_t i = 0; i < 100; i++) assert_int_equal(draw(1e-6, 1, 3, i), 2);
    check_draws(100, 1, "111111");
    struct gang_candidate work[3];
    const struct gang_sampling cold = {.temperature = 1e-30, .top_p = 0.9, .seed = 1};
    assert_int_equal(gang_sample((const float[]){1e30f, 3e38f, -3e38f}, 3, &cold, 0, work), 1);
}

// A draw is a pure function of seed and index.
static void test_deterministic(void **state) {
    (void)state;
    int same = 0, shifted = 0;
    for (uint64_t i = 0; i < 1000; i++) {
        assert_int_equal(draw(1, 0.95, 5, i), draw(1, 0.95, 5, i));
        same += draw(1, 0.95, 5, i) == draw(1, 0.95, 6, i);
        shifted += draw(1, 0.95, 5, i) == draw(1, 0.95, 5, i + 1);
    }
    assert_in_range(same, 100, 600); // independent draws agree in sum of p squared, about a third
    assert_in_range(shifted, 100, 600);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),        cmocka_unit_test(test_temperature),
        cmocka_unit_test(test_top_p),         cmocka_unit_test(test_extreme_temperatures),
        cmocka_unit_test(test_deterministic),
    };
    return cmocka_run_group_tests_name("sample", tests, NULL, NULL);
}
