// A model in slices, each on a device and in a thread of its own, against the whole model: loss and gradients are the same, and what
// every device holds alike gets the same bits on all of them.
#include "../test.h"
#include "train/train.h"
#include "wire/sum.h"

#include <math.h>
#include <pthread.h>

enum { MOST = 4, MICRO_BATCHES = 2, BATCH = 2, LENGTH = 10, ROWS = BATCH * LENGTH };

// Widths whose slices begin at odd places.
static const struct gang_config base = {.vocab_size = 83,
                                        .hidden_size = 24,
                                        .intermediate_size = 36,
                                        .layers = 3,
                                        .heads = 8,
                                        .kv_heads = 4,
                                        .head_dim = 6,
                                        .max_positions = 64,
                                        .norm_eps = 1e-5,
                                        .init_range = 0.2,
                                        .rope_theta = 10000};

struct way {
    int tp; // 1: whole
    bool split, recompute, tied, rows;
    const char *kind;
    enum gang_compute compute;
};

struct cell {
    const struct way *way;
    int32_t tokens[MICRO_BATCHES][BATCH * (LENGTH + 1)];
    pthread_barrier_t barrier;
    const void *parts[MOST];
    int sums, gathers; // of the first device
};

struct member {
    struct cell *cell;
    int index;
    struct gang_arena arena;
    struct gang_model model;
    struct gang_device *device;
    struct gang_net *net;
    double loss;
    pthread_t thread;
};

static size_t size_of(enum gang_compute type) { return type == GANG_COMPUTE_F32 ? 4 : 2; }

static void sum(void *context, void *data, int64_t elements, enum gang_compute type) {
    const struct member *m = context;
    struct cell *c = m->cell;
    float work[ROWS * 24];
    assert_int_equal(elements, ROWS * base.hidden_size);
    c->parts[m->index] = data;
    pthread_barrier_wait(&c->barrier);
    gang_sum(work, c->parts, NULL, c->way->tp, (size_t)elements, type == GANG_COMPUTE_F32 ? GANG_ELEMENT_F32 : GANG_ELEMENT_BF16);
    pthread_barrier_wait(&c->barrier);
    size_t all = (size_t)elements * size_of(type), part = c->way->rows ? all / (size_t)c->way->tp : all,
           at = c->way->rows ? part * (size_t)m->index : 0;
    memset(data, 0x7f, all); // what is not this device's is nobody's
    memcpy((char *)data + at, (char *)work + at, part);
    if (m->index == 0) c->sums++;
}

static void gather(void *context, void *data, int64_t elements, enum gang_compute type) {
    const struct member *m = context;
    struct cell *c = m->cell;
    size_t part = (size_t)(elements / c->way->tp) * size_of(type);
    assert_true(c->way->rows && elements == ROWS * base.hidden_size);
    c->parts[m->index] = data;
    pthread_barrier_wait(&c->barrier);
    for (int i = 0; i < c->way->tp; i++)
        if (i != m->index) memcpy((char *)data + (size_t)i * part, (const char *)c->parts[i] + (size_t)i * part, part);
    pthread_barrier_wait(&c->barrier);
    if (m->index == 0) c->gathers++;
}

static void *learn(void *context) {
    static const bool layers[] = {true, true, true};
    struct member *m = context;
    const struct way *way = m->cell->way;
    struct gang_config config = base;
    config.tied = way->tied;
    const struct gang_model_part part = {.layers = layers, .embed = true, .head = true, .tp = way->tp, .tp_index = m->index};
    const struct gang_net_cell hook = {m, way->rows, sum, gather};
    const struct gang_net_shape shape = {
        .batch = BATCH, .length = LENGTH, .split = way->split, .recompute = way->recompute, .cell = way->tp > 1 ? &hook : NULL};
    gang_arena_init(&m->arena);
    gang_model_init_part(&m->model, &config, &part, &m->arena);
    assert_ok(gang_device_open(&(struct gang_device_options){.kind = way->kind, .compute = way->compute, .threads = 1}, &m->device));
    assert_ok(gang_net_new(&m->model, m->device, &shape, &m->net));
    gang_model_randomise(&m->model, 5, gang_net_parameters(m->net));
    gang_net_refresh(m->net);
    gang_net_begin(m->net);
    for (int i = 0; i < MICRO_BATCHES; i++) {
        const float scale = 1.0f / (MICRO_BATCHES * ROWS);
        gang_net_forward(m->net, 0, 0, m->cell->tokens[i], NULL, NULL);
        m->loss += gang_net_backward(m->net, 0, 0, way->split ? GANG_HALF_INPUT : GANG_HALF_BOTH, scale, NULL, NULL, NULL);
        if (way->split) gang_net_backward(m->net, 0, 0, GANG_HALF_WEIGHT, scale, NULL, NULL, NULL);
    }
    return NULL;
}

static void run(struct cell *c, const struct way *way, struct member members[MOST]) {
    *c = (struct cell){.way = way};
    for (int i = 0; i < MICRO_BATCHES * BATCH * (LENGTH + 1); i++)
        c->tokens[i / (BATCH * (LENGTH + 1))][i % (BATCH * (LENGTH + 1))] = (int32_t)(gang_random_at(5, 9, (uint64_t)i) % (uint64_t)base.vocab_size);
    pthread_barrier_init(&c->barrier, NULL, (unsigned)way->tp);
    for (int i = 0; i < way->tp; i++) {
        members[i] = (struct member){.cell = c, .index = i};
        assert_int_equal(pthread_create(&members[i].thread, NULL, learn, &members[i]), 0);
    }
    for (int i = 0; i < way->tp; i++) pthread_join(members[i].thread, NULL);
    pthread_barrier_destroy(&c->barrier);
}

static void close_members(struct member *members, int count) {
    for (int i = 0; i < count; i++) {
        gang_net_free(members[i].net);
        gang_device_close(members[i].device);
        gang_arena_release(&members[i].arena);
    }
}

// One device's tensor against its place in the whole one, where all devices' parts of it have been added.
static void check_slice(const struct member *whole, const struct member *m, int i, double tolerance) {
    const struct gang_tensor *t = &m->model.tensors[i], *w = &whole->model.tensors[i];
    const float *got = gang_net_gradients(m->net) + t->offset, *want = gang_net_gradients(whole->net) + w->offset;
    double off = 0, size = 0;
    assert_true(t->whole_rows == w->rows && t->whole_cols == w->cols && t->index == w->index);
    for (int64_t r = 0; r < t->rows; r++)
        for (int64_t k = 0; k < t->cols; k++) {
            double a = (double)want[(t->row + r) * w->cols + t->col + k], d = a - (double)got[r * t->cols + k];
            off += d * d, size += a * a;
        }
    if (!(sqrt(off) <= tolerance * sqrt(size)) || !(size > 0))
        fail_msg("%s on device %d of %d: off by %g of its norm", t->name, m->index, m->model.tp, sqrt(off / size));
}

// Every device's rows give a part of an uncut tensor's gradient; the first device gets the sum.
static void add_parts(struct member *slices, int tp) {
    for (int i = 0; i < slices->model.count; i++) {
        const struct gang_tensor *t = &slices->model.tensors[i];
        for (int m = 1; m < tp && !gang_tensor_is_slice(t); m++)
            for (int64_t k = t->offset; k < t->offset + t->rows * t->cols; k++)
                gang_net_gradients(slices->net)[k] += gang_net_gradients(slices[m].net)[k];
        for (int m = 1; m < tp && !gang_tensor_is_slice(t); m++)
            memcpy(gang_net_gradients(slices[m].net) + t->offset, gang_net_gradients(slices->net) + t->offset,
                   (size_t)(t->rows * t->cols) * sizeof(float));
    }
    for (int m = 1; m < tp; m++) slices->loss += slices[m].loss;
    for (int m = 1; m < tp; m++) slices[m].loss = slices->loss;
}

static void check_way(const struct way *way, double tolerance) {
    struct member whole[MOST], slices[MOST];
    struct cell one, many;
    const struct way alone = {.tp = 1, .tied = way->tied, .kind = way->kind, .compute = way->compute};
    run(&one, &alone, whole);
    run(&many, way, slices);
    int64_t covered = 0;
    if (way->rows) add_parts(slices, way->tp);
    for (int m = 0; m < way->tp; m++) {
        if (!(fabs(slices[m].loss / whole->loss - 1) <= tolerance)) fail_msg("loss %.9g, whole %.9g", slices[m].loss, whole->loss);
        assert_true(slices[m].loss == slices[0].loss);
        for (int i = 0; i < whole->model.count; i++) {
            const struct gang_tensor *t = &slices[m].model.tensors[i];
            check_slice(whole, &slices[m], i, tolerance);
            if (gang_tensor_is_slice(t)) covered += t->rows * t->cols;
            if (gang_tensor_is_slice(t) || m == 0) continue;
            assert_memory_equal(gang_net_gradients(slices[m].net) + t->offset, gang_net_gradients(slices[0].net) + t->offset,
                                (size_t)(t->rows * t->cols) * sizeof(float));
        }
    }
    const int64_t a = (int64_t)base.heads * base.head_dim, k = (int64_t)base.kv_heads * base.head_dim;
    assert_int_equal(covered, base.layers * base.hidden_size * (2 * a + 2 * k + 3 * base.intermediate_size));
    assert_int_equal(many.sums, MICRO_BATCHES * base.layers * (way->recompute ? 5 : 4));
    assert_int_equal(many.gathers, way->rows ? MICRO_BATCHES * base.layers * (way->recompute ? 8 : 6) : 0);
    close_members(whole, 1);
    close_members(slices, way->tp);
}

static void all_ways(const char *kind, enum gang_compute compute, double tolerance) {
    for (int i = 0; i < 32; i++) {
        const struct way way = {
            .tp = i & 1 ? 4 : 2, .split = i & 2, .recompute = i & 4, .tied = i & 8, .rows = i & 16, .kind = kind, .compute = compute};
        check_way(&way, tolerance);
    }
}

static void test_reference(void **state) { (void)state, all_ways("ref", GANG_COMPUTE_F32, 2e-6); }
static void test_cpu(void **state) { (void)state, all_ways("cpu", GANG_COMPUTE_F32, 2e-6); }
// The whole model rounds once where the slices round each part and then the sum.
static void test_cpu_bf16(void **state) { (void)state, all_ways("cpu", GANG_COMPUTE_BF16, 0.1); }

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reference), cmocka_unit_test(test_cpu), cmocka_unit_test(test_cpu_bf16)};
    return cmocka_run_group_tests_name("slices", tests, NULL, NULL);
}
