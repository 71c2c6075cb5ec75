// Collectives that sum: all-reduce, reduce-scatter, and all-gather, which is the second half of the first.
//
// The elements are cut into one part per member, its owner, who gets the sum of it; parts travel in segments, several at a
// time. In a site each segment has a head, who sums for the site. In the owner's own site that is the owner; in another site
// its members take turns, segment by segment, so that all share the work and all the connections of the long way are used.
//
//   parts    every member sends its contribution to the head of its site                      in the site
//   up       the head of another site sends its site's sum to the owner                       long way
//   sums     the owner sends the sum to the members of its site and to the other sites' heads both
//   forward  these send it on to the members of their site                                    in the site
//
// So a segment crosses to its owner's site once as a site's sum, and from there to every other site once as the sum: with
// two sites the whole data once each way, however many members they have. An all-reduce over two sites crosses but once, with as
// many bytes (`swap`): the heads of a segment send each other their sites' sums, both add them, in the same order, and give their
// sites what comes out, so that neither way ever waits for the other. In one site only `parts` and `sums` are left:
// every member receives (n-1)/n of the data and sends as much, twice, which is as little as a ring moves, in two steps
// instead of 2(n-1); two members alone swap up to 1 MiB as if each were a site: one step is sooner done than two. Each step works on a segment some
// places behind the step before it (`struct pace`), so while one waits for the long way the others are on it. Small sums go to everybody whole and
// are summed by everybody, in one step.
//
// The order of a sum is fixed, whatever the way of the bytes: within a site in the order of its members, then the sites' sums
// in the order of the sites. A site's sum of bf16 is rounded to bf16 before it travels.
//
// The canonical order is a tree over the members' shards (sum.h), whoever holds them and wherever. A site may sum first if its
// members are all there are in a subtree, and in f32, which nothing is rounded from: then it costs no more. Otherwise every
// contribution goes to the owner as if all were of one site, and only the sums take the way over the sites: of n members on two
// sites of equal size each way carries n/4 of the data with contributions, instead of half of it with sums.
//
// Invariants:
//  1. Segment k of a part is received into data only from its summed state, and that exists only after the head has received
//     all contributions of its site to it. So contributions may be sent from the very place where sums arrive: nobody needs
//     the old bytes any more, and a chunk that is sent again after that is known to the receiver and not looked at. Only the other
//     site's sum in a swap says nothing about ours: who sends that from data waits until it has arrived.
//  2. A slot's places in scratch belong to segment k until `finish` has seen all its operations done. What is not the
//     member's own part is summed there, never in data: a reduce-scatter leaves it as it was.
//  3. Two members meet on a tag at most once per segment and part, and both walk segments, then parts, in ascending order: so
//     the n-th message of one is what the other expects as its n-th.
//  4. After any error all operations of the call are done or called off before the call returns.
#include "wire/group.h"
#include "wire/sum.h"

#include <string.h>

static const size_t small_bytes = 64 << 10, pair_bytes = 1 << 20, segment_most = GROUP_SEGMENT_BYTES, scratch_about = (size_t)64 << 20;

// How many segments each step is behind the start of a segment.
struct pace {
    size_t up, sum, forward, finish;
};
static const struct pace one_site = {0, 4, 4, 8}, two_sites = {2, 12, 12, GROUP_WINDOW}, several_sites = {2, 8, 14, GROUP_WINDOW};

struct reduction {
    struct gang_comm *group;
    uint8_t *data, *scratch;
    size_t count, size; // elements, bytes of one
    size_t segment;     // elements
    size_t segments;    // of the longest part
    enum gang_element type;
    bool scatter, gather; // sum the own part; bring the sums to all
    bool swap;            // both, over two sites: see above
    struct pace pace;
};

static size_t element_bytes(enum gang_element type) { return type == GANG_ELEMENT_F32 ? sizeof(float) : sizeof(uint16_t); }

// ---- Who does what -------------------------------------------------------------------------------------------------

static int site_members(const struct gang_comm *g, int site) { return g->at->site_first[site + 1] - g->at->site_first[site]; }

// NULL: the order is that of the members.
static const int *shards_in(const struct gang_comm *g, int site) { return g->canonical ? &g->at->shards[g->at->site_first[site]] : NULL; }

static int my_site(const struct gang_comm *g) { return g->at->site_of[g->me]; }

// The place of a member among those who are not of this site.
static int outsider(const struct gang_comm *g, int site, int member) {
    int before = 0;
    for (int i = 0; i < member; i++) before += g->at->site_of[i] != site;
    return before;
}

static int head_of(const struct gang_comm *g, int site, int owner, size_t k) {
    if (g->at->site_of[owner] == site) return owner;
    return g->at->by_site[g->at->site_first[site] + (int)(((size_t)outsider(g, site, owner) + k) % (size_t)site_members(g, site))];
}

// What a head gathers of a segment lies in places: of its own part first those of its site, then one per other site; then, of
// each part that it heads for its site, those of its site and, in a swap, the other's.
static int first_place(const struct reduction *r, int owner) {
    const struct gang_comm *g = r->group;
    int others = site_members(g, my_site(g)) - 1;
    if (owner == g->me) return 0;
    return others + g->at->sites - 1 + outsider(g, my_site(g), owner) / (others + 1) * (others + r->swap);
}

static int places(const struct reduction *r) {
    const struct gang_comm *g = r->group;
    int mine = site_members(g, my_site(g));
    return mine - 1 + g->at->sites - 1 + (g->members - mine + mine - 1) / mine * (mine - 1 + r->swap);
}

static uint8_t *place(const struct reduction *r, size_t k, int index) {
    return r->scratch + ((k % r->pace.finish) * (size_t)places(r) + (size_t)index) * r->segment * r->size;
}

static struct group_slot *slot_of(const struct reduction *r, size_t k) { return &r->group->slots[k % r->pace.finish]; }

// Segment k of a member's part: false when it is empty.
static bool segment_of(const struct reduction *r, int member, size_t k, uint8_t **at, size_t *elements) {
    size_t first, length, from = k * r->segment;
    gang_comm_part(r->group, r->count, member, &first, &length);
    if (from >= length) return false;
    *elements = length - from < r->segment ? length - from : r->segment;
    *at = r->data + (first + from) * r->size;
    return true;
}

// Walks the members of my site but me, then, for the own part, the heads of the other sites, and for one that I head in a swap its
// owner; `index` runs from 0. -1: no more.
static int other(const struct reduction *r, int owner, size_t k, int index) {
    const struct gang_comm *g = r->group;
    int site = my_site(g), others = site_members(g, site) - 1;
    if (index < others) return g->at->by_site[g->at->site_first[site] + index + (index >= g->at->in_site[g->me])];
    int s = index - others + (index - others >= site);
    if (owner != g->me) return r->swap && index == others ? owner : -1;
    return s < g->at->sites ? head_of(g, s, owner, k) : -1;
}

// ---- The steps -----------------------------------------------------------------------------------------------------

static enum gang_status post_parts(const struct reduction *r, size_t k, int owner, size_t n) {
    struct gang_comm *g = r->group;
    enum gang_status status = GANG_OK;
    int first = first_place(r, owner);
    for (int i = 0, from; !status && (from = other(r, owner, k, i)) >= 0; i++)
        status = gang_comm_start(g, true, from, GROUP_TAG_PARTS, place(r, k, first + i), n * r->size, &slot_of(r, k)->parts_in[first + i]);
    return status;
}

static enum gang_status start_segment(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    struct group_slot *slot = slot_of(r, k);
    enum gang_status status = GANG_OK;
    for (int owner = 0; owner < g->members && !status; owner++) {
        uint8_t *at;
        size_t n;
        if (!segment_of(r, owner, k, &at, &n)) continue;
        int head = head_of(g, my_site(g), owner, k);
        if (r->scatter)
            status = head == g->me ? post_parts(r, k, owner, n)
                                   : gang_comm_start(g, false, head, GROUP_TAG_PARTS, at, n * r->size, &slot->parts_out[owner]);
        if (status || !r->gather || owner == g->me || (r->swap && head == g->me)) continue;
        bool forwarded = head != g->me && head != owner;
        status = gang_comm_start(g, true, forwarded ? head : owner, forwarded ? GROUP_TAG_FORWARD : GROUP_TAG_SUMS, at, n * r->size,
                                 &slot->sums_in[owner]);
    }
    return status;
}

// The sum of my site's contributions to a segment that I head: into `to`, in the order of the members.
static enum gang_status sum_site(const struct reduction *r, size_t k, int owner, const uint8_t *mine, size_t n, uint8_t *to) {
    struct gang_comm *g = r->group;
    const void *parts[GANG_COMM_MEMBERS];
    int count = site_members(g, my_site(g)), first = first_place(r, owner), me = g->at->in_site[g->me];
    enum gang_status status = gang_comm_await_all(g, &slot_of(r, k)->parts_in[first], count - 1);
    for (int i = 0; i < count; i++) parts[i] = i == me ? mine : place(r, k, first + i - (i > me));
    if (!status) gang_sum(to, parts, shards_in(g, my_site(g)), count, n, r->type);
    return status;
}

// Whether my site's sum of the segment is mine to make and goes to another site.
static bool heads_for_other(const struct reduction *r, size_t k, int owner, uint8_t **at, size_t *n) {
    const struct gang_comm *g = r->group;
    bool leaves = r->swap || g->at->site_of[owner] != my_site(g);
    return leaves && head_of(g, my_site(g), owner, k) == g->me && segment_of(r, owner, k, at, n);
}

// Where it is made. Who is alone in its site gives what it has.
static uint8_t *site_sum(const struct reduction *r, size_t k, int owner, uint8_t *mine) {
    return site_members(r->group, my_site(r->group)) > 1 ? place(r, k, first_place(r, owner)) : mine;
}

static enum gang_status send_up(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    enum gang_status status = GANG_OK;
    for (int owner = 0; owner < g->members && !status; owner++) {
        uint8_t *mine, *sum;
        size_t n;
        if (!heads_for_other(r, k, owner, &mine, &n)) continue;
        sum = site_sum(r, k, owner, mine);
        int to = owner == g->me ? head_of(g, !my_site(g), owner, k) : owner;
        if (sum != mine) status = sum_site(r, k, owner, mine, n, sum);
        if (!status) status = gang_comm_start(g, false, to, GROUP_TAG_PARTS, sum, n * r->size, &slot_of(r, k)->up_out[owner]);
    }
    return status;
}

static enum gang_status send_sums(const struct reduction *r, size_t k, int owner, uint8_t *sum, size_t n) {
    struct gang_comm *g = r->group;
    enum gang_status status = GANG_OK;
    int first = first_place(r, owner), others = site_members(g, my_site(g)) - 1;
    uint32_t tag = owner == g->me ? GROUP_TAG_SUMS : GROUP_TAG_FORWARD;
    for (int i = 0, to; !status && (i < others || !r->swap) && (to = other(r, owner, k, i)) >= 0; i++)
        status = gang_comm_start(g, false, to, tag, sum, n * r->size, &slot_of(r, k)->sums_out[first + i]);
    return status;
}

static enum gang_status sum_own(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    uint8_t *mine;
    size_t n;
    int others = site_members(g, my_site(g)) - 1, me = my_site(g);
    if (!segment_of(r, g->me, k, &mine, &n)) return GANG_OK;
    enum gang_status status = r->scatter ? sum_site(r, k, g->me, mine, n, mine) : GANG_OK;
    if (!status && r->scatter && g->at->sites > 1) {
        const void *sums[GANG_COMM_MEMBERS];
        for (int s = 0; s < g->at->sites; s++) sums[s] = s == me ? mine : place(r, k, others + s - (s > me));
        status = gang_comm_await_all(g, &slot_of(r, k)->parts_in[others], g->at->sites - 1);
        if (!status) gang_sum(mine, sums, g->canonical ? g->at->site_shard : NULL, g->at->sites, n, r->type);
    }
    return status || !r->gather ? status : send_sums(r, k, g->me, mine, n);
}

// The two sites' sums of what I head, added.
static enum gang_status sum_swapped(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    struct group_slot *slot = slot_of(r, k);
    enum gang_status status = GANG_OK;
    for (int owner = 0; owner < g->members && !status; owner++) {
        uint8_t *at;
        size_t n;
        if (!heads_for_other(r, k, owner, &at, &n)) continue;
        int theirs = first_place(r, owner) + site_members(g, my_site(g)) - 1;
        const void *sums[2];
        sums[my_site(g)] = site_sum(r, k, owner, at);
        sums[!my_site(g)] = place(r, k, theirs);
        status = gang_comm_await(g, &slot->parts_in[theirs]);
        // What is sent from here must have arrived before it changes: it may have to be sent again.
        if (!status && sums[my_site(g)] == at) status = gang_comm_await(g, &slot->up_out[owner]);
        if (!status) gang_sum(at, sums, g->canonical ? g->at->site_shard : NULL, 2, n, r->type);
        if (!status) status = send_sums(r, k, owner, at, n);
    }
    return status;
}

static enum gang_status forward(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    enum gang_status status = GANG_OK;
    for (int owner = 0; owner < g->members && !status; owner++) {
        uint8_t *at;
        size_t n;
        if (!heads_for_other(r, k, owner, &at, &n)) continue;
        status = gang_comm_await(g, &slot_of(r, k)->sums_in[owner]);
        if (!status) status = send_sums(r, k, owner, at, n);
    }
    return status;
}

static enum gang_status finish(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    struct group_slot *slot = slot_of(r, k);
    enum gang_status status = gang_comm_await_all(g, slot->parts_out, g->members);
    if (!status) status = gang_comm_await_all(g, slot->up_out, g->members);
    if (!status) status = gang_comm_await_all(g, slot->sums_in, g->members);
    return status ? status : gang_comm_await_all(g, slot->sums_out, places(r));
}

// ---- The collectives -----------------------------------------------------------------------------------------------

static bool due(const struct reduction *r, size_t k, size_t behind) { return k >= behind && k - behind < r->segments; }

static enum gang_status run(struct reduction *r) {
    struct gang_comm *g = r->group;
    enum gang_status status = gang_comm_check(g);
    bool far = g->at->sites > 1;
    size_t first, longest;
    r->swap = r->scatter && r->gather && g->at->sites == 2;
    r->pace = r->swap ? two_sites : far ? several_sites : one_site;
    r->size = element_bytes(r->type);
    size_t bytes = scratch_about / (r->pace.finish * (size_t)g->members);
    size_t most = g->members > 2 ? segment_most / 2 : segment_most; // the more members, the sooner each is to have its share of the work
    r->segment = (bytes < most ? bytes : most) / r->size;
    gang_comm_part(g, r->count, 0, &first, &longest);
    r->segments = (longest + r->segment - 1) / r->segment;
    if (r->segments == 1) r->segment = longest;
    size_t slots = r->segments < r->pace.finish ? r->segments : r->pace.finish;
    if (r->scatter) r->scratch = gang_comm_scratch(g, slots * (size_t)places(r) * r->segment * r->size);
    for (size_t k = 0; k < r->segments + r->pace.finish && !status; k++) {
        if (due(r, k, r->pace.finish)) status = finish(r, k - r->pace.finish);
        if (!status && k < r->segments) status = start_segment(r, k);
        if (!status && far && r->scatter && due(r, k, r->pace.up)) status = send_up(r, k - r->pace.up);
        if (!status && due(r, k, r->pace.sum)) status = r->swap ? sum_swapped(r, k - r->pace.sum) : sum_own(r, k - r->pace.sum);
        if (!status && far && r->gather && !r->swap && due(r, k, r->pace.forward)) status = forward(r, k - r->pace.forward);
    }
    return status;
}

// What run() computes, from the contributions of all, by member: they are overwritten.
static void sum_all(const struct gang_comm *g, void *to, void *const *parts, size_t count, enum gang_element type) {
    const void *sums[GANG_COMM_MEMBERS];
    for (int s = 0; s < g->at->sites; s++) {
        const void *theirs[GANG_COMM_MEMBERS];
        const int *members = &g->at->by_site[g->at->site_first[s]];
        int n = site_members(g, s);
        for (int i = 0; i < n; i++) theirs[i] = parts[members[i]];
        sums[s] = parts[members[0]];
        gang_sum(g->at->sites == 1 ? to : parts[members[0]], theirs, shards_in(g, s), n, count, type);
    }
    if (g->at->sites > 1) gang_sum(to, sums, NULL, g->at->sites, count, type);
}

// Everybody sends everything to everybody and sums by itself.
static enum gang_status reduce_small(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    enum gang_status status = gang_comm_check(g);
    size_t bytes = count * element_bytes(type);
    uint8_t *theirs = gang_comm_scratch(g, (size_t)g->members * bytes);
    struct group_slot *slot = &g->slots[0];
    void *parts[GANG_COMM_MEMBERS] = {NULL};
    for (int i = 0; i < g->members && !status; i++) {
        parts[i] = i == g->me ? data : theirs + (size_t)i * bytes;
        if (i != g->me) status = gang_comm_start(g, true, i, GROUP_TAG_PARTS, parts[i], bytes, &slot->parts_in[i]);
    }
    for (int i = 0; i < g->members && !status; i++)
        if (i != g->me) status = gang_comm_start(g, false, i, GROUP_TAG_PARTS, data, bytes, &slot->parts_out[i]);
    if (!status) status = gang_comm_await_all(g, slot->parts_in, g->members);
    if (!status) status = gang_comm_await_all(g, slot->parts_out, g->members);
    if (!status) sum_all(g, data, parts, count, type);
    return status;
}

enum gang_status gang_comm_reduce(struct gang_comm *g, enum gang_reduction kind, void *data, size_t count, enum gang_element type) {
    enum gang_status met = gang_comm_check(g);
    if (!met) met = gang_shared_meet(g);
    if (met) return met;
    if (g->shared) return gang_shared_reduce(g, kind, data, count, type);
    bool small = kind == GANG_ALL_REDUCE && count * element_bytes(type) * (size_t)(g->members - 1) <= small_bytes;
    bool flat = g->canonical && kind != GANG_ALL_GATHER && (small || !g->whole || type != GANG_ELEMENT_F32);
    struct reduction r = {
        .group = g, .data = data, .count = count, .type = type, .scatter = kind != GANG_ALL_GATHER, .gather = kind != GANG_REDUCE_SCATTER};
    bool pair = kind == GANG_ALL_REDUCE && g->members == 2 && count * element_bytes(type) <= pair_bytes;
    g->at = pair ? &g->lone : flat ? &g->flat : &g->far;
    if (small) return reduce_small(g, data, count, type);
    if (pair || !flat || kind != GANG_ALL_REDUCE) return run(&r);
    r.gather = false;
    enum gang_status status = run(&r);
    r.gather = !(r.scatter = false);
    g->at = &g->far;
    return status ? status : run(&r);
}
