// Groups: making and ending them, errors, and the collectives that only move bytes. Those that sum are in reduce.c.
//
// A group ends in one of two ways for its members: a link to one of them dies, or a notice comes on the last tag from a
// member that saw one die. Either way everybody is told, once, and the group is broken.
#include "wire/group.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AHEAD = GROUP_WINDOW / 2 }; // of what a broadcast may have under way: half to come, half to go
static const size_t segment_bytes = GROUP_SEGMENT_BYTES;

// ---- Errors --------------------------------------------------------------------------------------------------------

static void call_off(struct gang_wire_op *ops, int count) {
    for (int i = 0; i < count; i++)
        if (ops[i].link) gang_wire_cancel(&ops[i]);
}

enum gang_status gang_comm_break_up(struct gang_comm *g) {
    struct gang_wire_report report;
    if (!g->error[0]) {
        for (int i = 0; i < g->members && !g->error[0]; i++)
            if (g->links[i] && g->notice_in[i].link && gang_wire_done(&g->notice_in[i]) && !g->notice_in[i].status)
                snprintf(g->error, sizeof g->error, "%.*s", GROUP_NOTICE_BYTES - 1, g->notices[i]);
        for (int i = 0; i < g->members && !g->error[0]; i++) {
            if (!g->links[i]) continue;
            gang_wire_report(g->links[i], &report);
            if (report.dead)
                snprintf(g->error, sizeof g->error, "the group lost rank %d: %.*s", g->links[i]->peer, GROUP_NOTICE_BYTES - 48,
                         gang_wire_why(g->links[i]));
        }
        if (!g->error[0]) snprintf(g->error, sizeof g->error, "%.*s", GROUP_NOTICE_BYTES - 1, gang_error());
        memcpy(g->told, g->error, sizeof g->told);
        for (int i = 0; i < g->members; i++)
            if (g->links[i] && gang_wire_send(g->links[i], g->tag + GROUP_TAG_NOTICE, 0, g->told, GROUP_NOTICE_BYTES, &g->notice_out[i]))
                g->notice_out[i].link = NULL;
    }
    for (int k = 0; k < GROUP_WINDOW; k++) {
        struct group_slot *slot = &g->slots[k];
        call_off(slot->parts_out, g->members);
        call_off(slot->up_out, g->members);
        call_off(slot->sums_in, g->members);
        call_off(slot->parts_in, GROUP_PLACES);
        call_off(slot->sums_out, GROUP_PLACES);
        *slot = (struct group_slot){0};
    }
    return gang_fail(GANG_ERR_PEER, "%s", g->error);
}

enum gang_status gang_comm_await(struct gang_comm *g, struct gang_wire_op *op) {
    if (!op->link) return GANG_OK;
    gang_wire_wait_any(g->wire, op, g->links, g->notice_in, g->members);
    bool good = gang_wire_done(op) && !op->status;
    if (good) op->link = NULL;
    return good ? GANG_OK : gang_comm_break_up(g);
}

enum gang_status gang_comm_await_all(struct gang_comm *g, struct gang_wire_op *ops, int count) {
    enum gang_status status = GANG_OK;
    for (int i = 0; i < count && !status; i++) status = gang_comm_await(g, &ops[i]);
    return status;
}

enum gang_status gang_comm_start(struct gang_comm *g, bool receive, int member, uint32_t tag, void *data, size_t bytes, struct gang_wire_op *op) {
    enum gang_status status = receive ? gang_wire_recv(g->links[member], g->tag + tag, data, bytes, op)
                                      : gang_wire_send(g->links[member], g->tag + tag, 0, data, bytes, op);
    if (!status) return GANG_OK;
    op->link = NULL;
    return gang_comm_break_up(g);
}

enum gang_status gang_comm_check(const struct gang_comm *g) { return g->error[0] ? gang_fail(GANG_ERR_PEER, "%s", g->error) : GANG_OK; }

// ---- The group -----------------------------------------------------------------------------------------------------

// Whether member i stands before j: by site, then by shard. Sites stand by number or, in the canonical order, by their lowest shard.
static bool stands_before(const struct gang_comm *g, const int *site, int i, int j) {
    int lowest[2] = {g->shard[i], g->shard[j]};
    if (site[i] == site[j]) return g->shard[i] < g->shard[j];
    if (!g->canonical) return site[i] < site[j];
    for (int m = 0; m < g->members; m++)
        for (int k = 0; k < 2; k++)
            if (site[m] == site[k ? j : i] && g->shard[m] < lowest[k]) lowest[k] = g->shard[m];
    return lowest[0] < lowest[1];
}

static void lay_out(const struct gang_comm *g, const int *site, struct group_layout *l) {
    *l = (struct group_layout){0};
    for (int i = 0; i < g->members; i++) {
        int place = i;
        for (; place && stands_before(g, site, i, l->by_site[place - 1]); place--) l->by_site[place] = l->by_site[place - 1];
        l->by_site[place] = i;
    }
    for (int k = 0; k < g->members; k++) {
        int i = l->by_site[k];
        if (!k || site[i] != site[l->by_site[k - 1]]) {
            l->site_shard[l->sites] = g->shard[i];
            l->site_first[l->sites++] = k;
        }
        l->shards[k] = g->shard[i];
        l->site_of[i] = l->sites - 1;
        l->in_site[i] = k - l->site_first[l->sites - 1];
    }
    l->site_first[l->sites] = g->members;
}

// Whether each site's shards are all that there are in some subtree.
static bool whole_sites(const struct group_layout *l) {
    for (int s = 0; s < l->sites; s++) {
        int first = l->site_first[s], end = l->site_first[s + 1];
        unsigned differ = (unsigned)(l->shards[first] ^ l->shards[end - 1]);
        int bits = differ ? 32 - __builtin_clz(differ) : 0, others = 0;
        for (int k = 0; k < l->site_first[l->sites]; k++) others += (k < first || k >= end) && l->shards[k] >> bits == l->shards[first] >> bits;
        if (others) return false;
    }
    return true;
}

static void lay_out_all(struct gang_comm *g) {
    static const int one[GANG_COMM_MEMBERS];
    lay_out(g, g->site, &g->far);
    lay_out(g, one, &g->flat);
    lay_out(g, g->shard, &g->lone);
    g->whole = whole_sites(&g->far);
}

enum gang_status gang_comm_new(struct gang_wire *wire, struct gang_wire_link *const *links, int members, int me, uint32_t tag,
                               struct gang_comm **out) {
    *out = NULL;
    if (members < 1 || members > GANG_COMM_MEMBERS || me < 0 || me >= members)
        return gang_fail(GANG_ERR_INPUT, "group: member %d of %d: at most %d members", me, members, GANG_COMM_MEMBERS);
    struct gang_comm *g = calloc(1, sizeof *g);
    assert(g && "out of memory");
    *g = (struct gang_comm){.wire = wire, .members = members, .me = me, .tag = tag};
    for (int i = 0; i < members; i++) g->shard[i] = i;
    lay_out_all(g);
    gang_collective_init(g);
    enum gang_status status = GANG_OK;
    for (int i = 0; i < members && !status; i++) {
        if (i == me) continue;
        g->links[i] = links[i];
        status = gang_wire_recv(links[i], tag + GROUP_TAG_NOTICE, g->notices[i], GROUP_NOTICE_BYTES, &g->notice_in[i]);
        if (status) g->notice_in[i].link = NULL;
    }
    *out = g;
    if (!status) return GANG_OK;
    gang_comm_free(g);
    *out = NULL;
    return status;
}

void gang_comm_free(struct gang_comm *g) {
    if (!g) return;
    gang_collective_release(g);
    call_off(g->notice_in, g->members);
    call_off(g->notice_out, g->members);
    gang_shared_free(g->shared);
    free(g->scratch);
    free(g);
}

enum gang_status gang_comm_sites(struct gang_comm *g, const int *site_of_member) {
    for (int i = 0; i < g->members; i++)
        if (site_of_member[i] < 0 || site_of_member[i] >= GANG_COMM_MEMBERS)
            return gang_fail(GANG_ERR_INPUT, "group: member %d is of site %d: sites are numbered from 0 to %d", i, site_of_member[i],
                             GANG_COMM_MEMBERS - 1);
    memcpy(g->site, site_of_member, (size_t)g->members * sizeof *g->site);
    lay_out_all(g);
    return GANG_OK;
}

enum gang_status gang_comm_canonical(struct gang_comm *g, const int *shard_of_member) {
    for (int i = 0; i < g->members; i++)
        for (int j = 0; j <= i; j++)
            if (shard_of_member[i] < 0 || (j < i && shard_of_member[i] == shard_of_member[j]))
                return gang_fail(GANG_ERR_INPUT, "group: member %d has shard %d: shards are numbered from 0, each member has its own", i,
                                 shard_of_member[i]);
    memcpy(g->shard, shard_of_member, (size_t)g->members * sizeof *g->shard);
    g->canonical = true;
    lay_out_all(g);
    return GANG_OK;
}

void gang_comm_part(const struct gang_comm *g, size_t count, int member, size_t *first, size_t *length) {
    size_t n = (size_t)g->members, m = (size_t)member, base = count / n, more = count % n;
    *first = m * base + (m < more ? m : more);
    *length = base + (m < more);
}

uint8_t *gang_comm_scratch(struct gang_comm *g, size_t bytes) {
    if (bytes > g->scratch_bytes) {
        free(g->scratch);
        g->scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
        assert(g->scratch && "out of memory");
        g->scratch_bytes = bytes;
    }
    return g->scratch;
}

// ---- The others ----------------------------------------------------------------------------------------------------

struct branch { // of a tree that data goes down
    int parent, children[2 * GANG_COMM_MEMBERS], count;
};

// Adds what a binomial tree over `count` places gives the one that is `rank` places behind its root: member(place) is at[place].
static void add_binomial(struct branch *b, const int *at, int count, int root, int rank) {
    int lowest = 1;
    while (lowest < count && !(rank & lowest)) lowest <<= 1; // the root's reaches beyond everybody
    if (rank) b->parent = at[(rank - lowest + root) % count];
    for (int step = lowest >> 1; step; step >>= 1)
        if (rank + step < count) b->children[b->count++] = at[(rank + step + root) % count];
}

// Over sites, from head to head, and inside each: so that every site gets the data once. The root heads its site, the first member another.
static struct branch branch_of(const struct gang_comm *g, int root) {
    const struct group_layout *l = &g->far;
    struct branch b = {.parent = -1};
    int heads[GANG_COMM_MEMBERS] = {0}, site = l->site_of[g->me], root_site = l->site_of[root], first = l->site_first[site];
    int size = l->site_first[site + 1] - first, head = site == root_site ? l->in_site[root] : 0;
    for (int s = 0; s < l->sites; s++) heads[s] = s == root_site ? root : l->by_site[l->site_first[s]];
    if (g->me == heads[site]) add_binomial(&b, heads, l->sites, root_site, (site - root_site + l->sites) % l->sites);
    add_binomial(&b, &l->by_site[first], size, head, (l->in_site[g->me] - head + size) % size);
    return b;
}

// Long data goes in segments, so that all levels are busy at once.
enum gang_status gang_broadcast(struct gang_comm *g, int root, void *data, size_t bytes) {
    enum gang_status status = gang_comm_enter(g);
    struct branch b = branch_of(g, root);
    size_t segments = (bytes + segment_bytes - 1) / segment_bytes;
    for (size_t k = 0; k < segments + GROUP_WINDOW && !status; k++) {
        struct group_slot *slot = &g->slots[k % GROUP_WINDOW];
        if (k >= GROUP_WINDOW) status = gang_comm_await_all(g, slot->parts_out, b.count);
        // Receives are posted ahead; sends follow as the data comes.
        if (!status && k < segments && b.parent >= 0) {
            size_t n = bytes - k * segment_bytes < segment_bytes ? bytes - k * segment_bytes : segment_bytes;
            status = gang_comm_start(g, true, b.parent, GROUP_TAG_OTHER, (uint8_t *)data + k * segment_bytes, n, &slot->parts_in[0]);
        }
        if (status || k < AHEAD || k - AHEAD >= segments) continue;
        size_t s = k - AHEAD, n = bytes - s * segment_bytes < segment_bytes ? bytes - s * segment_bytes : segment_bytes;
        struct group_slot *ready = &g->slots[s % GROUP_WINDOW];
        status = gang_comm_await(g, &ready->parts_in[0]);
        for (int i = 0; i < b.count && !status; i++)
            status = gang_comm_start(g, false, b.children[i], GROUP_TAG_OTHER, (uint8_t *)data + s * segment_bytes, n, &ready->parts_out[i]);
    }
    return status;
}

enum gang_status gang_all_to_all(struct gang_comm *g, const void *out, void *in, size_t bytes) {
    enum gang_status status = gang_comm_enter(g);
    struct group_slot *slot = &g->slots[0];
    for (int i = 0; i < g->members && !status; i++)
        if (i != g->me) status = gang_comm_start(g, true, i, GROUP_TAG_OTHER, (uint8_t *)in + (size_t)i * bytes, bytes, &slot->parts_in[i]);
    // Each starts with its successor, so that not all send to the first member first.
    for (int d = 1; d < g->members && !status; d++) {
        int i = (g->me + d) % g->members;
        status = gang_comm_start(g, false, i, GROUP_TAG_OTHER, (uint8_t *)out + (size_t)i * bytes, bytes, &slot->parts_out[i]);
    }
    if (!status && bytes) memcpy((uint8_t *)in + (size_t)g->me * bytes, (const uint8_t *)out + (size_t)g->me * bytes, bytes);
    if (!status) status = gang_comm_await_all(g, slot->parts_in, g->members);
    return status ? status : gang_comm_await_all(g, slot->parts_out, g->members);
}

// In round j everybody tells who is 2^j further; after the last all have heard of all.
enum gang_status gang_barrier(struct gang_comm *g) {
    enum gang_status status = gang_comm_enter(g);
    for (int step = 1; step < g->members && !status; step <<= 1) {
        struct group_slot *slot = &g->slots[0];
        status = gang_comm_start(g, true, (g->me - step + g->members) % g->members, GROUP_TAG_OTHER, NULL, 0, &slot->parts_in[0]);
        if (!status) status = gang_comm_start(g, false, (g->me + step) % g->members, GROUP_TAG_OTHER, NULL, 0, &slot->parts_out[0]);
        if (!status) status = gang_comm_await(g, &slot->parts_in[0]);
        if (!status) status = gang_comm_await(g, &slot->parts_out[0]);
    }
    return status;
}
