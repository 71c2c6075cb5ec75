// Collectives against a plain reference: the same bits on every member; a member that leaves, stops or falls silent is
// named by all others.
#include "../test.h"
#include "pair.h"
#include "wire/sum.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMBERS_MAX = 5 };

struct mesh {
    int members;
    struct gang_wire *wires[MEMBERS_MAX];
    struct gang_wire_link *links[MEMBERS_MAX][MEMBERS_MAX];
    struct gang_comm *groups[MEMBERS_MAX];
};

static void open_mesh(struct mesh *mesh, int members, int planes) {
    *mesh = (struct mesh){.members = members};
    for (int i = 0; i < members; i++) mesh->wires[i] = open_wire(i);
    for (int i = 0; i < members; i++)
        for (int j = 0; j < i; j++) {
            mesh->links[j][i] = join_to(mesh->wires[j], i, NULL, planes, 1);
            mesh->links[i][j] = join_directly(mesh->wires[i], j, gang_wire_address(mesh->wires[j]), planes, 1);
        }
    for (int i = 0; i < members; i++) assert_ok(gang_comm_new(mesh->wires[i], mesh->links[i], members, i, 100, &mesh->groups[i]));
}

static void close_mesh(struct mesh *mesh) {
    for (int i = 0; i < mesh->members; i++) gang_comm_free(mesh->groups[i]);
    for (int i = 0; i < mesh->members; i++) gang_wire_close(mesh->wires[i]);
}

struct job {
    struct gang_comm *group;
    int member, members, kind, root;
    enum gang_element type;
    size_t count;
    uint8_t *data, *in;
    enum gang_status status;
    char error[GANG_ERROR_BYTES];
};

enum { ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, ALL_TO_ALL, BARRIER, KINDS };

static void *run_job(void *context) {
    struct job *job = context;
    switch (job->kind) {
    case ALL_REDUCE:
        job->status = gang_all_reduce(job->group, job->data, job->count, job->type);
        break;
    case REDUCE_SCATTER:
        job->status = gang_reduce_scatter(job->group, job->data, job->count, job->type);
        break;
    case ALL_GATHER:
        job->status = gang_all_gather(job->group, job->data, job->count, job->type);
        break;
    case BROADCAST:
        job->status = gang_broadcast(job->group, job->root, job->data, job->count);
        break;
    case ALL_TO_ALL:
        job->status = gang_all_to_all(job->group, job->data, job->in, job->count);
        break;
    default:
        job->status = gang_barrier(job->group);
    }
    snprintf(job->error, sizeof job->error, "%s", gang_error());
    return NULL;
}

static void run_all(struct job *jobs, int members) {
    pthread_t threads[MEMBERS_MAX];
    for (int i = 0; i < members; i++) assert_int_equal(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
    for (int i = 0; i < members; i++) pthread_join(threads[i], NULL);
}

// Random bits make numbers of every size, NaN and infinities among them.
static void draw_numbers(uint8_t *data, size_t bytes, uint64_t seed, bool any_bits) {
    fill(data, bytes, seed);
    for (size_t i = 0; i + 4 <= bytes && !any_bits; i += 4) {
        float value = (float)((int)(data[i] | data[i + 1] << 8) - 32768) / 1000;
        memcpy(data + i, &value, 4);
    }
}

static size_t size_of(enum gang_element type) { return type == GANG_ELEMENT_F32 ? 4 : 2; }

static void check_sum(const struct job *job, const void *const *before, uint8_t *expected) {
    size_t first = 0, length = job->count, size = size_of(job->type);
    gang_sum_reference(expected, before, job->members, job->count, job->type);
    if (job->kind == REDUCE_SCATTER) gang_comm_part(job->group, job->count, job->member, &first, &length);
    assert_true(length == 0 || memcmp(job->data + first * size, expected + first * size, length * size) == 0);
}

static void check_job(const struct job *job, const uint8_t *const *before, uint8_t *expected) {
    size_t size = size_of(job->type);
    if (job->kind == ALL_REDUCE || job->kind == REDUCE_SCATTER) check_sum(job, (const void *const *)before, expected);
    for (int i = 0; i < job->members && job->kind == ALL_GATHER; i++) {
        size_t first, length;
        gang_comm_part(job->group, job->count, i, &first, &length);
        assert_true(!length || memcmp(job->data + first * size, before[i] + first * size, length * size) == 0);
    }
    if (job->kind == BROADCAST) assert_true(!job->count || memcmp(job->data, before[job->root], job->count) == 0);
    for (int i = 0; i < job->members && job->kind == ALL_TO_ALL; i++)
        assert_true(!job->count || memcmp(job->in + (size_t)i * job->count, before[i] + (size_t)job->member * job->count, job->count) == 0);
}

static void try_one(struct mesh *mesh, uint64_t seed, int kind) {
    struct job jobs[MEMBERS_MAX];
    uint8_t *before[MEMBERS_MAX];
    uint64_t r = gang_random_at(seed, 1, 1);
    size_t count = r % 5 == 0 ? r >> 20 & 7 : r % 5 < 3 ? (r >> 20) % 30000 : (r >> 20) % 900000;
    if (kind == ALL_TO_ALL) count /= 4;
    enum gang_element type = r >> 60 & 1 ? GANG_ELEMENT_BF16 : GANG_ELEMENT_F32;
    size_t bytes = kind == ALL_TO_ALL ? count * (size_t)mesh->members : kind == BROADCAST ? count : count * size_of(type);
    for (int i = 0; i < mesh->members; i++) {
        jobs[i] = (struct job){.group = mesh->groups[i],
                               .member = i,
                               .members = mesh->members,
                               .kind = kind,
                               .root = (int)(r >> 50) % mesh->members,
                               .type = type,
                               .count = count};
        jobs[i].data = malloc(bytes + 1);
        jobs[i].in = calloc(1, bytes + 1);
        before[i] = malloc(bytes + 1);
        draw_numbers(jobs[i].data, bytes, seed * 10 + (uint64_t)i, r >> 59 & 1);
        memcpy(before[i], jobs[i].data, bytes);
    }
    run_all(jobs, mesh->members);
    uint8_t *expected = malloc(bytes + 1);
    for (int i = 0; i < mesh->members; i++) {
        if (jobs[i].status) fail_msg("%s", jobs[i].error);
        check_job(&jobs[i], (const uint8_t *const *)before, expected);
    }
    free(expected);
    for (int i = 0; i < mesh->members; i++) {
        free(jobs[i].data);
        free(jobs[i].in);
        free(before[i]);
    }
}

static void test_against_the_reference(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int rounds = getenv("GANG_SANITIZED") ? 3 : 12;
    for (int members = 1; members <= MEMBERS_MAX; members++) {
        struct mesh mesh;
        open_mesh(&mesh, members, 1 + members % 2);
        for (int i = 0; i < rounds * KINDS; i++) try_one(&mesh, seed * 1000 + (uint64_t)(members * 100 + i), i % KINDS);
        close_mesh(&mesh);
    }
}

static void test_sums_equal_their_reference(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    for (uint64_t round = 0; round < 60; round++) {
        enum { N = 5000 };
        static uint8_t parts[6][N * 4], fast[N * 4], slow[N * 4];
        int count = 1 + (int)(gang_random_at(seed, 5, round) % 6);
        size_t n = gang_random_at(seed, 6, round) % N;
        const void *pointers[6];
        for (int i = 0; i < 6; i++) draw_numbers(parts[i], sizeof parts[i], seed + round * 10 + (uint64_t)i, round % 2), pointers[i] = parts[i];
        for (int type = 0; type < 2; type++) {
            gang_sum_reference(slow, pointers, count, n, type ? GANG_ELEMENT_BF16 : GANG_ELEMENT_F32);
            gang_sum(fast, pointers, count, n, type ? GANG_ELEMENT_BF16 : GANG_ELEMENT_F32);
            assert_memory_equal(fast, slow, n * (type ? 2 : 4));
        }
    }
}

// ---- Members that go -----------------------------------------------------------------------------------------------

// All but the last member try to sum; the last one has left already, or never comes.
static void expect_named(struct mesh *mesh, int living, const char *words) {
    struct job jobs[MEMBERS_MAX];
    double start = gang_seconds();
    for (int i = 0; i < living; i++) {
        jobs[i] = (struct job){
            .group = mesh->groups[i], .member = i, .members = mesh->members, .kind = ALL_REDUCE, .type = GANG_ELEMENT_F32, .count = 700000};
        jobs[i].data = calloc(jobs[i].count, 4);
    }
    run_all(jobs, living);
    print_message("all knew after %.0f ms: %s\n", 1e3 * (gang_seconds() - start), jobs[0].error);
    for (int i = 0; i < living; i++) {
        assert_int_equal(jobs[i].status, GANG_ERR_PEER);
        if (!strstr(jobs[i].error, words)) fail_msg("member %d says '%s'", i, jobs[i].error);
        assert_fails(GANG_ERR_PEER, words, gang_barrier(mesh->groups[i]));
        free(jobs[i].data);
    }
}

static void test_a_member_that_left_is_named_and_the_rest_goes_on(void **state) {
    (void)state;
    struct mesh mesh;
    open_mesh(&mesh, 4, 1);
    try_one(&mesh, 77, ALL_REDUCE);
    gang_comm_free(mesh.groups[3]);
    gang_wire_close(mesh.wires[3]);
    expect_named(&mesh, 3, "rank 3");
    // The living make a new group.
    for (int i = 0; i < 3; i++) {
        gang_comm_free(mesh.groups[i]);
        assert_ok(gang_comm_new(mesh.wires[i], mesh.links[i], 3, i, 200, &mesh.groups[i]));
    }
    mesh.members = 3;
    for (uint64_t i = 0; i < 6; i++) try_one(&mesh, 78 + i, (int)i % KINDS);
    close_mesh(&mesh);
}

// Member 2 of 3, in a process of its own: takes part once and then says nothing more.
static int be_silent(const char *first, const char *second) {
    struct gang_wire *wire = open_wire(2);
    const char *addresses[2] = {first, second};
    struct gang_wire_link *links[3] = {NULL};
    struct gang_comm *group;
    float one = 1;
    for (int i = 0; i < 2; i++) links[i] = join_directly(wire, i, addresses[i], 1, 1);
    if (gang_comm_new(wire, links, 3, 2, 100, &group) || gang_all_reduce(group, &one, 1, GANG_ELEMENT_F32)) return 1;
    raise(SIGSTOP);
    return 1;
}

static void test_a_silent_member_is_named(void **state) {
    (void)state;
    struct mesh mesh = {.members = 3};
    for (int i = 0; i < 2; i++) mesh.wires[i] = open_wire(i);
    mesh.links[0][1] = join_to(mesh.wires[0], 1, NULL, 1, 1);
    mesh.links[1][0] = join_directly(mesh.wires[1], 0, gang_wire_address(mesh.wires[0]), 1, 1);
    for (int i = 0; i < 2; i++) {
        mesh.links[i][2] = join_to(mesh.wires[i], 2, NULL, 1, 1);
        assert_ok(gang_comm_new(mesh.wires[i], mesh.links[i], 3, i, 100, &mesh.groups[i]));
    }
    pid_t child = fork();
    if (!child) {
        execl("/proc/self/exe", "test_group", gang_wire_address(mesh.wires[0]), gang_wire_address(mesh.wires[1]), (char *)NULL);
        _exit(1);
    }
    struct job jobs[2];
    float ones[2] = {1, 1};
    for (int i = 0; i < 2; i++)
        jobs[i] = (struct job){.group = mesh.groups[i], .member = i, .members = 3, .kind = ALL_REDUCE, .count = 1, .data = (uint8_t *)&ones[i]};
    run_all(jobs, 2);
    assert_true(!jobs[0].status && !jobs[1].status && ones[0] == 3 && ones[1] == 3);
    expect_named(&mesh, 2, "rank 2");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    for (int i = 0; i < 2; i++) gang_comm_free(mesh.groups[i]);
    for (int i = 0; i < 2; i++) gang_wire_close(mesh.wires[i]);
}

int main(int argc, char **argv) {
    if (argc == 3) return be_silent(argv[1], argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_equal_their_reference),
        cmocka_unit_test(test_against_the_reference),
        cmocka_unit_test(test_a_member_that_left_is_named_and_the_rest_goes_on),
        cmocka_unit_test(test_a_silent_member_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
