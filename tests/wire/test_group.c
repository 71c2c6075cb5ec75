// Collectives against a plain reference: the same bits on every member; a member that leaves, stops or falls silent is
// named by all others.
#include "../test.h"
#include "pair.h"
#include "wire/group.h"
#include "wire/sum.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMBERS_MAX = 7 };

struct mesh {
    int members;
    struct gang_wire *wires[MEMBERS_MAX];
    struct gang_wire_link *links[MEMBERS_MAX][MEMBERS_MAX];
    struct gang_comm *groups[MEMBERS_MAX];
    int sites[MEMBERS_MAX];
    struct gang_relay *relay; // NULL, or between the sites
    bool shared;              // inside a site: memory
};

static void join_both(struct mesh *mesh, int i, int j, int planes) {
    char address[GANG_ADDRESS_TEXT + 4];
    bool same = mesh->sites[i] == mesh->sites[j];
    snprintf(address, sizeof address, "%s%s", same && mesh->shared ? "shm:" : "", gang_wire_address(mesh->wires[j]));
    if (mesh->relay && !same) assert_ok(gang_relay_add(mesh->relay, gang_wire_address(mesh->wires[j]), address));
    mesh->links[j][i] = join_to(mesh->wires[j], i, NULL, planes, 1);
    mesh->links[i][j] = join_directly(mesh->wires[i], j, address, planes, 1);
}

static void open_sites(struct mesh *mesh, int members, int planes, const int *sites, const struct gang_relay_options *between) {
    *mesh = (struct mesh){.members = members, .shared = sites != NULL};
    if (sites) memcpy(mesh->sites, sites, (size_t)members * sizeof *sites);
    if (between) assert_ok(gang_relay_open(between, &mesh->relay));
    // Patient: on a busy machine a second of silence is nobody's death.
    for (int i = 0; i < members; i++)
        assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0", .cluster = 7, .dead_ms = 60000}, &mesh->wires[i]));
    for (int i = 0; i < members; i++)
        for (int j = 0; j < i; j++) join_both(mesh, i, j, planes);
    for (int i = 0; i < members; i++) {
        assert_ok(gang_comm_new(mesh->wires[i], mesh->links[i], members, i, 100, &mesh->groups[i]));
        if (sites) assert_ok(gang_comm_sites(mesh->groups[i], sites));
    }
}

static void open_mesh(struct mesh *mesh, int members, int planes) { open_sites(mesh, members, planes, NULL, NULL); }

static void close_mesh(struct mesh *mesh) {
    for (int i = 0; i < mesh->members; i++) gang_comm_free(mesh->groups[i]);
    for (int i = 0; i < mesh->members; i++) gang_wire_close(mesh->wires[i]);
    gang_relay_close(mesh->relay);
}

struct job {
    struct gang_comm *group;
    const int *sites;
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

// The sites' sums, then their sum, in order.
static void sum_reference(const struct job *job, const void *const *before, uint8_t *expected) {
    void *sums[MEMBERS_MAX];
    int count = 0;
    for (int site = 0; site < GANG_COMM_MEMBERS; site++) {
        const void *theirs[MEMBERS_MAX];
        int n = 0;
        for (int i = 0; i < job->members; i++)
            if (job->sites[i] == site) theirs[n++] = before[i];
        if (!n) continue;
        sums[count] = malloc(job->count * size_of(job->type) + 1);
        gang_sum_reference(sums[count++], theirs, NULL, n, job->count, job->type);
    }
    gang_sum_reference(expected, (const void *const *)sums, NULL, count, job->count, job->type);
    for (int i = 0; i < count; i++) free(sums[i]);
}

static void check_sum(const struct job *job, const uint8_t *const *before, uint8_t *expected) {
    size_t first = 0, length = job->count, size = size_of(job->type), all = length * size;
    sum_reference(job, (const void *const *)before, expected);
    if (job->kind == REDUCE_SCATTER) gang_comm_part(job->group, job->count, job->member, &first, &length);
    first *= size;
    length *= size;
    assert_true(length == 0 || memcmp(job->data + first, expected + first, length) == 0);
    // What is not the member's is as it was.
    assert_true(memcmp(job->data, before[job->member], first) == 0);
    assert_true(memcmp(job->data + first + length, before[job->member] + first + length, all - first - length) == 0);
}

static void check_job(const struct job *job, const uint8_t *const *before, uint8_t *expected) {
    size_t size = size_of(job->type);
    if (job->kind == ALL_REDUCE || job->kind == REDUCE_SCATTER) check_sum(job, before, expected);
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
                               .sites = mesh->sites,
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
    for (int members = 1; members <= 5; members++) {
        struct mesh mesh;
        open_mesh(&mesh, members, 1 + members % 2);
        for (int i = 0; i < rounds * KINDS; i++) try_one(&mesh, seed * 1000 + (uint64_t)(members * 100 + i), i % KINDS);
        close_mesh(&mesh);
    }
}

static void test_over_sites_against_the_reference(void **state) {
    (void)state;
    static const int sites[][MEMBERS_MAX] = {{0, 1}, {0, 0, 0, 1, 1}, {3, 9, 3, 9}, {1, 0, 0, 2, 1, 0, 0}, {0, 1, 2}, {5, 5, 5}, {1, 0, 0, 0, 0}};
    static const int members[] = {2, 5, 4, 7, 3, 3, 5};
    uint64_t seed = test_seed();
    int rounds = getenv("GANG_SANITIZED") ? 2 : 12;
    for (size_t m = 0; m < sizeof members / sizeof *members; m++) {
        struct mesh mesh;
        open_sites(&mesh, members[m], 1, sites[m], NULL);
        for (int i = 0; i < rounds * KINDS; i++) try_one(&mesh, seed * 2000 + m * 100 + (uint64_t)i, i % KINDS);
        close_mesh(&mesh);
    }
    struct mesh mesh;
    open_mesh(&mesh, 2, 1);
    assert_fails(GANG_ERR_INPUT, "sites are numbered from 0", gang_comm_sites(mesh.groups[0], (const int[]){0, -1}));
    close_mesh(&mesh);
}

static const int one_site[MEMBERS_MAX];

static void test_in_shared_memory_against_the_reference(void **state) {
    (void)state;
    uint64_t seed = test_seed();
    int rounds = getenv("GANG_SANITIZED") ? 2 : 16;
    for (int members = 2; members <= MEMBERS_MAX; members++) {
        struct mesh mesh;
        open_sites(&mesh, members, 1, one_site, NULL);
        for (int i = 0; i < rounds * KINDS; i++) try_one(&mesh, seed * 3000 + (uint64_t)(members * 100 + i), i % KINDS);
        for (int i = 0; i < members; i++) assert_non_null(mesh.groups[i]->shared);
        close_mesh(&mesh);
    }
}

// A group with one link that is not memory has none.
static void test_a_group_that_cannot_share(void **state) {
    (void)state;
    struct mesh mesh = {.members = 3, .shared = true};
    for (int i = 0; i < 3; i++) mesh.wires[i] = open_wire(i);
    join_both(&mesh, 1, 0, 1);
    mesh.shared = false;
    join_both(&mesh, 2, 0, 1);
    join_both(&mesh, 2, 1, 1);
    for (int i = 0; i < 3; i++) assert_ok(gang_comm_new(mesh.wires[i], mesh.links[i], 3, i, 100, &mesh.groups[i]));
    for (int i = 0; i < KINDS; i++) try_one(&mesh, 55 + (uint64_t)i, i);
    for (int i = 0; i < 3; i++) assert_null(mesh.groups[i]->shared);
    close_mesh(&mesh);
}

static void test_members_that_disagree_say_so(void **state) {
    (void)state;
    struct mesh mesh;
    struct job jobs[2];
    open_sites(&mesh, 2, 1, one_site, NULL);
    try_one(&mesh, 99, ALL_REDUCE);
    for (int i = 0; i < 2; i++) {
        jobs[i] = (struct job){.group = mesh.groups[i], .kind = ALL_REDUCE, .count = 100000 + (size_t)i};
        jobs[i].data = calloc(jobs[i].count, 4);
    }
    run_all(jobs, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(jobs[i].status, GANG_ERR_PEER);
        if (!strstr(jobs[i].error, "another collective")) fail_msg("member %d says '%s'", i, jobs[i].error);
        free(jobs[i].data);
    }
    close_mesh(&mesh);
}

// What crosses, counted by the relay between the sites: the data once each way, half of it to be summed and half as sums.
// The canonical order costs nothing more when the sites hold whole subtrees.
static void count_what_crosses(const int *shards) {
    enum { MEMBERS = 5, COUNT = 5 << 20 };
    static const int sites[MEMBERS] = {0, 0, 0, 1, 1};
    static const double shares[][2] = {
        [ALL_REDUCE] = {1, 1}, [REDUCE_SCATTER] = {0.6, 0.4}, [ALL_GATHER] = {0.4, 0.6}, [BROADCAST] = {0, 0.25}}; // to site 0, to site 1; bytes
    // What is not acknowledged in time goes out once more, and under a sanitizer many things are late.
    const double most = getenv("GANG_SANITIZED") ? 1.15 : 1.02;
    struct mesh mesh;
    struct job jobs[MEMBERS];
    struct gang_relay_report before = {0}, after;
    open_sites(&mesh, MEMBERS, 1, sites, &(struct gang_relay_options){.listen = "127.0.0.1:0", .rtt_s = 0.002});
    for (int i = 0; i < MEMBERS && shards; i++) assert_ok(gang_comm_canonical(mesh.groups[i], shards));
    for (int kind = ALL_REDUCE; kind <= BROADCAST; kind++) {
        for (int i = 0; i < MEMBERS; i++) {
            jobs[i] = (struct job){.group = mesh.groups[i], .member = i, .members = MEMBERS, .kind = kind, .root = 1, .count = COUNT};
            jobs[i].data = calloc(COUNT, sizeof(float));
        }
        run_all(jobs, MEMBERS);
        for (int i = 0; i < MEMBERS; i++)
            if (jobs[i].status) fail_msg("%s", jobs[i].error);
        gang_relay_report(mesh.relay, &after);
        for (int way = 0; way < 2; way++) {
            double share = (double)(after.bytes[way] - before.bytes[way]) / (COUNT * sizeof(float));
            static const char *const names[] = {"both", "parts", "sums", "broadcast"};
            print_message("%s to site %d: %.4f of the data\n", names[kind], way, share);
            assert_true(share >= shares[kind][way] && share < most * shares[kind][way] + 0.01);
        }
        before = after;
        for (int i = 0; i < MEMBERS; i++) free(jobs[i].data);
    }
    close_mesh(&mesh);
}

static void test_the_long_way_carries_the_data_once(void **state) {
    (void)state;
    count_what_crosses(NULL);
    count_what_crosses((const int[]){6, 4, 7, 1, 0});
}

// ---- The canonical order ---------------------------------------------------------------------------------------------

enum { SHARDS = 8, SHARD_COUNT_MAX = 300000 };

static float value_of(const uint8_t *data, size_t i, enum gang_element type) {
    uint32_t bits = 0;
    float value;
    memcpy((uint8_t *)&bits + (4 - size_of(type)), data + i * size_of(type), size_of(type));
    memcpy(&value, &bits, sizeof value);
    return value;
}

// The definition at its plainest: the halves of the range, each by itself, without what is not there.
static bool sum_tree(uint8_t *const *by_shard, int first, int shards, size_t i, enum gang_element type, float *sum) {
    float right = 0;
    if (shards == 1 && by_shard[first]) *sum = value_of(by_shard[first], i, type);
    if (shards == 1) return by_shard[first];
    bool left_is = sum_tree(by_shard, first, shards / 2, i, type, sum);
    bool right_is = sum_tree(by_shard, first + shards / 2, shards / 2, i, type, &right);
    if (right_is) *sum = left_is ? *sum + right : right;
    return left_is || right_is;
}

static void sum_shards(uint8_t *const *by_shard, int first, int shards, size_t count, enum gang_element type, uint8_t *out) {
    for (size_t i = 0; i < count; i++) {
        float sum = 0;
        sum_tree(by_shard, first, shards, i, type, &sum);
        const void *part = &sum;
        float rounded; // by the sum of one part: that is in the reference's hands already
        gang_sum_reference(&rounded, &part, NULL, 1, 1, GANG_ELEMENT_F32);
        uint32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        if (type == GANG_ELEMENT_BF16 && !isnan(rounded)) bits += 0x7fff + (bits >> 16 & 1);
        memcpy(out + i * size_of(type), (const uint8_t *)&bits + (4 - size_of(type)), size_of(type));
    }
}

struct placing {
    int members, planes, sites[MEMBERS_MAX], shards[MEMBERS_MAX], each; // each: shards that a member stands for, from its own
};

// All sums of these shards have the bits of `expected`.
static void check_placing(const struct placing *p, uint8_t *const *by_shard, size_t count, enum gang_element type, const uint8_t *expected) {
    struct mesh mesh;
    struct job jobs[MEMBERS_MAX];
    size_t bytes = count * size_of(type);
    open_sites(&mesh, p->members, p->planes, p->sites, NULL);
    for (int i = 0; i < p->members; i++) assert_ok(gang_comm_canonical(mesh.groups[i], p->shards));
    for (int kind = ALL_REDUCE; kind <= REDUCE_SCATTER; kind++) {
        for (int i = 0; i < p->members; i++) {
            jobs[i] = (struct job){.group = mesh.groups[i], .kind = kind, .type = type, .count = count, .data = malloc(bytes)};
            memcpy(jobs[i].data, by_shard[p->shards[i]], bytes);
            if (p->each > 1) sum_shards(by_shard, p->shards[i], p->each, count, type, jobs[i].data);
        }
        run_all(jobs, p->members);
        for (int i = 0; i < p->members; i++) {
            size_t first = 0, length = count;
            if (jobs[i].status) fail_msg("%s", jobs[i].error);
            if (kind == REDUCE_SCATTER) gang_comm_part(mesh.groups[i], count, i, &first, &length);
            assert_true(!memcmp(jobs[i].data + first * size_of(type), expected + first * size_of(type), length * size_of(type)));
            free(jobs[i].data);
        }
    }
    close_mesh(&mesh);
}

// Members in any order, on any sites, over one plane or two, one for each shard or one for several.
static void test_the_canonical_order_gives_the_same_bits(void **state) {
    (void)state;
    static const struct placing five[] = {
        {5, 1, {0}, {0, 1, 2, 3, 5}, 1},
        {5, 2, {0}, {3, 0, 5, 2, 1}, 1},
        {5, 1, {7, 7, 7, 7, 2}, {2, 0, 1, 3, 5}, 1}, // both sites have a whole subtree
        {5, 2, {0, 1, 0, 1, 1}, {0, 1, 2, 3, 5}, 1}, // neither
        {5, 1, {2, 0, 1, 0, 1}, {5, 3, 1, 2, 0}, 1}, // all three
    };
    static const struct placing eight[] = {{4, 1, {0}, {6, 0, 2, 4}, 2}, {4, 1, {0, 1, 1, 0}, {4, 2, 0, 6}, 2}, {2, 2, {1, 0}, {0, 4}, 4}};
    uint64_t seed = test_seed();
    static uint8_t data[SHARDS][SHARD_COUNT_MAX * 4], expected[SHARD_COUNT_MAX * 4];
    uint8_t *all[SHARDS], *some[SHARDS] = {NULL};
    for (int round = 0; round < 4; round++) {
        enum gang_element type = round % 2 ? GANG_ELEMENT_BF16 : GANG_ELEMENT_F32;
        size_t count = round < 2 ? 1001 : SHARD_COUNT_MAX;
        for (int s = 0; s < SHARDS; s++) {
            draw_numbers(data[s], sizeof data[s], seed * 100 + (uint64_t)s, false);
            draw_numbers(data[s], 2000, seed * 200 + (uint64_t)s, true); // NaN and infinities among them
            all[s] = data[s];
        }
        for (int i = 0; i < five[0].members; i++) some[five[0].shards[i]] = all[five[0].shards[i]];
        sum_shards(some, 0, SHARDS, count, type, expected);
        for (size_t i = 0; i < sizeof five / sizeof *five; i++) check_placing(&five[i], some, count, type, expected);
        if (type == GANG_ELEMENT_BF16) continue; // several shards' sum of bf16 is rounded
        sum_shards(all, 0, SHARDS, count, type, expected);
        for (size_t i = 0; i < sizeof eight / sizeof *eight; i++) check_placing(&eight[i], all, count, type, expected);
    }
}

static void test_shards_that_are_none(void **state) {
    (void)state;
    struct mesh mesh;
    open_mesh(&mesh, 2, 1);
    assert_fails(GANG_ERR_INPUT, "member 1 has shard 3", gang_comm_canonical(mesh.groups[0], (const int[]){3, 3}));
    assert_fails(GANG_ERR_INPUT, "member 0 has shard -1", gang_comm_canonical(mesh.groups[0], (const int[]){-1, 3}));
    close_mesh(&mesh);
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
            const int *shards = round / 2 % 2 ? (const int[]){0, 3, 4, 5, 9, 1 << 30} : NULL;
            gang_sum_reference(slow, pointers, shards, count, n, type ? GANG_ELEMENT_BF16 : GANG_ELEMENT_F32);
            gang_sum(fast, pointers, shards, count, n, type ? GANG_ELEMENT_BF16 : GANG_ELEMENT_F32);
            assert_memory_equal(fast, slow, n * (type ? 2 : 4));
        }
    }
}

// ---- Started, not waited for -----------------------------------------------------------------------------------------

enum { STARTED = 5, GROUPS = 3 };

struct started {
    struct gang_collective op;
    uint8_t *data;
    size_t count;
    enum gang_reduction kind;
};

static void start_one(struct gang_comm *group, struct started *s, size_t count, uint64_t seed) {
    s->count = count;
    s->kind = (enum gang_reduction)(seed % 3);
    s->data = malloc(count * 4 + 1);
    draw_numbers(s->data, count * 4, seed, false);
    enum gang_status (*start[])(struct gang_comm *, void *, size_t, enum gang_element,
                                struct gang_collective *) = {gang_all_reduce_start, gang_reduce_scatter_start, gang_all_gather_start};
    assert_ok(start[s->kind](group, s->data, count, GANG_ELEMENT_F32, &s->op));
}

// The blocking calls are the reference: the same data, one after the other.
static void check_started(struct mesh *mesh, struct started *s, const uint64_t *seeds) {
    struct job jobs[MEMBERS_MAX];
    for (int i = 0; i < mesh->members; i++) {
        jobs[i] = (struct job){.group = mesh->groups[i], .kind = (int)s[i].kind, .count = s[i].count};
        jobs[i].data = malloc(s[i].count * 4 + 1);
        draw_numbers(jobs[i].data, s[i].count * 4, seeds[i], false);
    }
    run_all(jobs, mesh->members);
    for (int i = 0; i < mesh->members; i++) {
        assert_int_equal(jobs[i].status, GANG_OK);
        assert_ok(gang_collective_wait(&s[i].op));
        assert_true(gang_collective_done(&s[i].op) && memcmp(s[i].data, jobs[i].data, s[i].count * 4) == 0);
        free(jobs[i].data);
        free(s[i].data);
    }
}

enum { MEMBERS = 3 };

static void start_several(const int *sites) {
    struct mesh mesh;
    struct gang_comm *groups[GROUPS][MEMBERS];
    static struct started started[GROUPS][STARTED][MEMBERS];
    uint64_t seed = test_seed(), seeds[GROUPS][STARTED][MEMBERS];
    open_sites(&mesh, MEMBERS, 1, sites, NULL);
    for (int g = 0; g < GROUPS; g++)
        for (int i = 0; i < MEMBERS; i++) {
            assert_ok(gang_comm_new(mesh.wires[i], mesh.links[i], MEMBERS, i, (uint32_t)(200 + g * GANG_COMM_TAGS), &groups[g][i]));
            if (g) assert_ok(gang_comm_sites(groups[g][i], sites));
        }
    for (int k = 0; k < STARTED; k++)
        for (int g = 0; g < GROUPS; g++)
            for (int i = 0; i < MEMBERS; i++) {
                uint64_t r = gang_random_at(seed, 11, (uint64_t)(k * GROUPS + g));
                seeds[g][k][i] = r % 300 * 30 + (uint64_t)(i * 3); // of one kind on all members
                start_one(groups[g][i], &started[g][k][i], r >> 20 & 1 ? (r >> 30) % 400000 : (r >> 30) % 4000, seeds[g][k][i]);
            }
    // A blocking call waits for what was started before it.
    struct job jobs[MEMBERS];
    for (int i = 0; i < MEMBERS; i++) jobs[i] = (struct job){.group = groups[1][i], .kind = BARRIER};
    run_all(jobs, MEMBERS);
    for (int i = 0; i < MEMBERS; i++)
        for (int k = 0; k < STARTED; k++) assert_true(!jobs[i].status && gang_collective_done(&started[1][k][i].op));
    for (int g = 0; g < GROUPS; g++) {
        struct mesh same = mesh;
        memcpy(same.groups, groups[g], sizeof groups[g]);
        for (int k = 0; k < STARTED; k++) check_started(&same, started[g][k], seeds[g][k]);
        for (int i = 0; i < MEMBERS; i++) gang_comm_free(groups[g][i]);
    }
    close_mesh(&mesh);
}

static void test_several_groups_with_several_under_way(void **state) {
    (void)state;
    start_several((const int[]){0, 0, 1});
    start_several(one_site);
}

static void test_all_that_was_started_ends_when_a_member_dies(void **state) {
    (void)state;
    struct mesh mesh;
    static struct started started[3][STARTED];
    open_mesh(&mesh, 3, 1);
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < (i == 2 ? 1 : STARTED); k++) start_one(mesh.groups[i], &started[i][k], 200000, 3);
    for (int i = 0; i < 3; i++) assert_ok(gang_collective_wait(&started[i][0].op));
    gang_comm_free(mesh.groups[2]);
    gang_wire_close(mesh.wires[2]);
    for (int i = 0; i < 2; i++) {
        for (int k = 1; k < STARTED; k++) assert_fails(GANG_ERR_PEER, "rank 2", gang_collective_wait(&started[i][k].op));
        struct gang_collective late;
        assert_ok(gang_all_reduce_start(mesh.groups[i], started[i][0].data, 1, GANG_ELEMENT_F32, &late));
        assert_fails(GANG_ERR_PEER, "rank 2", gang_collective_wait(&late));
    }
    for (int i = 0; i < 3; i++)
        for (int k = 0; k < STARTED; k++) free(started[i][k].data);
    mesh.members = 2;
    close_mesh(&mesh);
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

// Member 2 of 3, in a process of its own: takes part in so many sums and then says nothing more.
enum { SUMS_COUNT = 300000 };

static int be_silent(const char *first, const char *second, int sums) {
    struct gang_wire *wire = open_wire(2);
    const char *addresses[2] = {first, second};
    struct gang_wire_link *links[3] = {NULL};
    struct gang_comm *group;
    static float ones[SUMS_COUNT] = {1};
    for (int i = 0; i < 2; i++) links[i] = join_directly(wire, i, addresses[i], 1, 1);
    if (gang_comm_new(wire, links, 3, 2, 100, &group)) return 1;
    for (int i = 0; i < sums; i++)
        if (gang_all_reduce(group, ones, sums == 1 ? 1 : SUMS_COUNT, GANG_ELEMENT_F32)) return 1;
    raise(SIGSTOP);
    return 1;
}

// Members 0 and 1 here, the last as a process that takes part in so many sums.
static pid_t open_with_child(struct mesh *mesh, bool shared, const char *sums) {
    char addresses[2][GANG_ADDRESS_TEXT + 4];
    *mesh = (struct mesh){.members = 3, .shared = shared};
    for (int i = 0; i < 2; i++) {
        mesh->wires[i] = open_wire(i);
        snprintf(addresses[i], sizeof *addresses, "%s%s", shared ? "shm:" : "", gang_wire_address(mesh->wires[i]));
    }
    join_both(mesh, 1, 0, 1);
    for (int i = 0; i < 2; i++) {
        mesh->links[i][2] = join_to(mesh->wires[i], 2, NULL, 1, 1);
        assert_ok(gang_comm_new(mesh->wires[i], mesh->links[i], 3, i, 100, &mesh->groups[i]));
    }
    pid_t child = fork();
    if (child) return child;
    execl("/proc/self/exe", "test_group", addresses[0], addresses[1], sums, (char *)NULL);
    _exit(1);
}

static void close_with_child(struct mesh *mesh, pid_t child) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    mesh->members = 2;
    close_mesh(mesh);
}

static void test_a_silent_member_is_named(void **state) {
    (void)state;
    for (int shared = 0; shared < 2; shared++) {
        struct mesh mesh;
        struct job jobs[2];
        float ones[2] = {1, 1};
        pid_t child = open_with_child(&mesh, shared, "1");
        for (int i = 0; i < 2; i++)
            jobs[i] = (struct job){.group = mesh.groups[i], .member = i, .members = 3, .kind = ALL_REDUCE, .count = 1, .data = (uint8_t *)&ones[i]};
        run_all(jobs, 2);
        assert_true(!jobs[0].status && !jobs[1].status && ones[0] == 3 && ones[1] == 3);
        assert_true(!mesh.groups[0]->shared == !shared && !mesh.groups[1]->shared == !shared);
        expect_named(&mesh, 2, "rank 2");
        close_with_child(&mesh, child);
    }
}

struct endless {
    struct gang_comm *group;
    int done; // sums
    enum gang_status status;
    char error[GANG_ERROR_BYTES];
};

static void *sum_until_it_fails(void *context) {
    struct endless *e = context;
    float *data = calloc(SUMS_COUNT, sizeof *data);
    do {
        e->status = gang_all_reduce(e->group, data, SUMS_COUNT, GANG_ELEMENT_F32);
        __atomic_add_fetch(&e->done, 1, __ATOMIC_RELAXED);
    } while (!e->status);
    snprintf(e->error, sizeof e->error, "%s", gang_error());
    free(data);
    return NULL;
}

static void test_a_member_that_is_killed_in_the_middle_is_named(void **state) {
    (void)state;
    for (int round = 0; round < 6; round++) {
        struct mesh mesh;
        struct endless endless[2];
        pthread_t threads[2];
        pid_t child = open_with_child(&mesh, true, "1000000");
        for (int i = 0; i < 2; i++) endless[i] = (struct endless){.group = mesh.groups[i]};
        for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, sum_until_it_fails, &endless[i]), 0);
        while (__atomic_load_n(&endless[0].done, __ATOMIC_RELAXED) < 3 + round) usleep((useconds_t)(100 * round + 1));
        kill(child, SIGKILL);
        for (int i = 0; i < 2; i++) {
            pthread_join(threads[i], NULL);
            assert_int_equal(endless[i].status, GANG_ERR_PEER);
            if (!strstr(endless[i].error, "rank 2")) fail_msg("member %d says '%s'", i, endless[i].error);
            assert_non_null(mesh.groups[i]->shared);
        }
        close_with_child(&mesh, child);
    }
}

// ---- Planes that go while sites swap their sums ----------------------------------------------------------------------

struct cutting {
    struct gang_relay *relays[2];
    int stop;
};

static void *cut_in_turn(void *context) {
    struct cutting *c = context;
    for (int i = 0; !__atomic_load_n(&c->stop, __ATOMIC_RELAXED); i = !i) {
        gang_relay_cut(c->relays[i], true);
        gang_sleep_until(gang_seconds() + 0.03);
        gang_relay_cut(c->relays[i], false);
        gang_sleep_until(gang_seconds() + 0.03);
    }
    return NULL;
}

// Members alone in their sites send contributions from where the sums come to stand: what is lost goes again as it was.
static void test_what_is_lost_in_a_swap_goes_again_as_it_was(void **state) {
    (void)state;
    enum { COUNT = 4 << 20, ROUNDS = 12 };
    static const int sites[2] = {0, 1};
    struct mesh mesh = {.members = 2};
    struct cutting cutting = {{NULL, NULL}, 0};
    struct job jobs[2];
    const char *through[2];
    pthread_t thread;
    for (int i = 0; i < 2; i++)
        assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = i, .listen = "127.0.0.1:0", .dead_ms = 60000}, &mesh.wires[i]));
    for (int p = 0; p < 2; p++) {
        struct gang_relay_options options = {.listen = "127.0.0.1:0", .to = gang_wire_address(mesh.wires[1]), .rtt_s = 0.002, .bytes_per_s = 100e6};
        assert_ok(gang_relay_open(&options, &cutting.relays[p]));
        through[p] = gang_relay_address(cutting.relays[p]);
    }
    mesh.links[1][0] = join_to(mesh.wires[1], 0, NULL, 2, 1);
    mesh.links[0][1] = join_to(mesh.wires[0], 1, through, 2, 1);
    for (int i = 0; i < 2; i++) {
        assert_ok(gang_comm_new(mesh.wires[i], mesh.links[i], 2, i, 100, &mesh.groups[i]));
        assert_ok(gang_comm_sites(mesh.groups[i], sites));
        jobs[i] = (struct job){.group = mesh.groups[i], .member = i, .members = 2, .kind = ALL_REDUCE, .count = COUNT};
        jobs[i].data = malloc(COUNT * sizeof(float));
    }
    assert_int_equal(pthread_create(&thread, NULL, cut_in_turn, &cutting), 0);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < 2; i++)
            for (size_t k = 0; k < COUNT; k++) ((float *)jobs[i].data)[k] = (float)((k % 1009 + (size_t)round) << i);
        run_all(jobs, 2);
        for (int i = 0; i < 2; i++) {
            if (jobs[i].status) fail_msg("%s", jobs[i].error);
            for (size_t k = 0; k < COUNT; k++)
                if (((float *)jobs[i].data)[k] != (float)(3 * (k % 1009 + (size_t)round)))
                    fail_msg("round %d: member %d, element %zu: %g", round, i, k, (double)((float *)jobs[i].data)[k]);
        }
    }
    __atomic_store_n(&cutting.stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    struct gang_wire_report report;
    gang_wire_report(mesh.links[0][1], &report);
    assert_true(report.plane[0].losses + report.plane[1].losses > 0);
    for (int i = 0; i < 2; i++) free(jobs[i].data);
    for (int p = 0; p < 2; p++) gang_relay_close(cutting.relays[p]);
    close_mesh(&mesh);
}

int main(int argc, char **argv) {
    if (argc == 4) return be_silent(argv[1], argv[2], (int)strtol(argv[3], NULL, 10));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_equal_their_reference),
        cmocka_unit_test(test_against_the_reference),
        cmocka_unit_test(test_over_sites_against_the_reference),
        cmocka_unit_test(test_in_shared_memory_against_the_reference),
        cmocka_unit_test(test_a_group_that_cannot_share),
        cmocka_unit_test(test_members_that_disagree_say_so),
        cmocka_unit_test(test_the_long_way_carries_the_data_once),
        cmocka_unit_test(test_what_is_lost_in_a_swap_goes_again_as_it_was),
        cmocka_unit_test(test_the_canonical_order_gives_the_same_bits),
        cmocka_unit_test(test_shards_that_are_none),
        cmocka_unit_test(test_several_groups_with_several_under_way),
        cmocka_unit_test(test_all_that_was_started_ends_when_a_member_dies),
        cmocka_unit_test(test_a_member_that_left_is_named_and_the_rest_goes_on),
        cmocka_unit_test(test_a_silent_member_is_named),
        cmocka_unit_test(test_a_member_that_is_killed_in_the_middle_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
