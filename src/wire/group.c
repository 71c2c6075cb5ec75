// Collectives over a group of ranks.
//
// Reductions. The elements are cut into one part per member; a part is summed by its member alone, from what all the others
// send it, in the order of the members: so the order of the sum is the same whatever the way of the bytes. Every member
// receives (n-1)/n of the data and sends as much, then the same again for the sums, which is as little as a ring moves, in
// two steps instead of 2(n-1). Parts travel in segments, several at a time: while one is summed, the next ones are under
// way, and a summed one leaves at once. Small sums go to everybody whole and are summed by everybody, in one step.
//
// Invariants:
//  1. Segment k of a part is received into data only from its summed state, and a member sends that only after it has
//     received everybody's contribution to it. So contributions may be sent from the very place where sums arrive: nobody
//     needs the old bytes any more, and a chunk that is sent again after that is known to the receiver and not looked at.
//  2. Scratch slot k modulo WINDOW belongs to segment k until its receives are done and it is summed.
//  3. After any error all operations of the call are done or called off before the call returns.
//
// A group ends in one of two ways for its members: a link to one of them dies, or a notice comes on the last tag from a
// member that saw one die. Either way everybody is told, once, and the group is broken.
#include "wire/endpoint.h"
#include "wire/sum.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 8, AHEAD = 4, NOTICE_BYTES = 128 };
enum { TAG_PARTS, TAG_SUMS, TAG_OTHER, TAG_NOTICE }; // of GANG_COMM_TAGS
static const size_t segment_bytes = (size_t)512 << 10, small_bytes = 64 << 10;

struct slot { // a segment under way
    struct gang_wire_op parts_out[GANG_COMM_MEMBERS], parts_in[GANG_COMM_MEMBERS], sums_out[GANG_COMM_MEMBERS], sums_in[GANG_COMM_MEMBERS];
};

struct gang_comm {
    struct gang_wire *wire;
    struct gang_wire_link *links[GANG_COMM_MEMBERS];
    int members, me;
    uint32_t tag;
    uint8_t *scratch;
    size_t scratch_bytes;
    char error[NOTICE_BYTES]; // why it is broken; "" while it is not
    char notices[GANG_COMM_MEMBERS][NOTICE_BYTES];
    struct gang_wire_op notice_in[GANG_COMM_MEMBERS], notice_out[GANG_COMM_MEMBERS];
    char told[NOTICE_BYTES];
    struct slot slots[WINDOW];
};

// ---- Errors --------------------------------------------------------------------------------------------------------

static void call_off(struct gang_wire_op *ops, int count) {
    for (int i = 0; i < count; i++)
        if (ops[i].link) gang_wire_cancel(&ops[i]);
}

// Finds out why, tells everybody, and calls off what is under way.
static enum gang_status break_up(struct gang_comm *g) {
    struct gang_wire_report report;
    if (!g->error[0]) {
        for (int i = 0; i < g->members && !g->error[0]; i++)
            if (g->links[i] && g->notice_in[i].link && gang_wire_done(&g->notice_in[i]) && !g->notice_in[i].status)
                snprintf(g->error, sizeof g->error, "%.*s", NOTICE_BYTES - 1, g->notices[i]);
        for (int i = 0; i < g->members && !g->error[0]; i++) {
            if (!g->links[i]) continue;
            gang_wire_report(g->links[i], &report);
            if (report.dead)
                snprintf(g->error, sizeof g->error, "the group lost rank %d: %.*s", g->links[i]->peer, NOTICE_BYTES - 48, gang_wire_why(g->links[i]));
        }
        if (!g->error[0]) snprintf(g->error, sizeof g->error, "%.*s", NOTICE_BYTES - 1, gang_error());
        memcpy(g->told, g->error, sizeof g->told);
        for (int i = 0; i < g->members; i++)
            if (g->links[i] && gang_wire_send(g->links[i], g->tag + TAG_NOTICE, 0, g->told, NOTICE_BYTES, &g->notice_out[i]))
                g->notice_out[i].link = NULL;
    }
    for (int k = 0; k < WINDOW; k++) {
        call_off(g->slots[k].parts_out, g->members);
        call_off(g->slots[k].parts_in, g->members);
        call_off(g->slots[k].sums_out, g->members);
        call_off(g->slots[k].sums_in, g->members);
        g->slots[k] = (struct slot){0};
    }
    return gang_fail(GANG_ERR_PEER, "%s", g->error);
}

static enum gang_status await(struct gang_comm *g, struct gang_wire_op *op) {
    if (!op->link) return GANG_OK;
    gang_wire_wait_any(g->wire, op, g->links, g->notice_in, g->members);
    bool good = gang_wire_done(op) && !op->status;
    if (good) op->link = NULL;
    return good ? GANG_OK : break_up(g);
}

static enum gang_status await_all(struct gang_comm *g, struct gang_wire_op *ops) {
    enum gang_status status = GANG_OK;
    for (int i = 0; i < g->members && !status; i++) status = await(g, &ops[i]);
    return status;
}

static enum gang_status start(struct gang_comm *g, bool receive, int member, uint32_t tag, void *data, size_t bytes, struct gang_wire_op *op) {
    enum gang_status status = receive ? gang_wire_recv(g->links[member], g->tag + tag, data, bytes, op)
                                      : gang_wire_send(g->links[member], g->tag + tag, 0, data, bytes, op);
    if (!status) return GANG_OK;
    op->link = NULL;
    return break_up(g);
}

static enum gang_status check(const struct gang_comm *g) { return g->error[0] ? gang_fail(GANG_ERR_PEER, "%s", g->error) : GANG_OK; }

// ---- The group -----------------------------------------------------------------------------------------------------

enum gang_status gang_comm_new(struct gang_wire *wire, struct gang_wire_link *const *links, int members, int me, uint32_t tag,
                               struct gang_comm **out) {
    *out = NULL;
    if (members < 1 || members > GANG_COMM_MEMBERS || me < 0 || me >= members)
        return gang_fail(GANG_ERR_INPUT, "group: member %d of %d: at most %d members", me, members, GANG_COMM_MEMBERS);
    struct gang_comm *g = calloc(1, sizeof *g);
    assert(g && "out of memory");
    *g = (struct gang_comm){.wire = wire, .members = members, .me = me, .tag = tag};
    enum gang_status status = GANG_OK;
    for (int i = 0; i < members && !status; i++) {
        if (i == me) continue;
        g->links[i] = links[i];
        status = gang_wire_recv(links[i], tag + TAG_NOTICE, g->notices[i], NOTICE_BYTES, &g->notice_in[i]);
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
    call_off(g->notice_in, g->members);
    call_off(g->notice_out, g->members);
    free(g->scratch);
    free(g);
}

void gang_comm_part(const struct gang_comm *g, size_t count, int member, size_t *first, size_t *length) {
    size_t n = (size_t)g->members, m = (size_t)member, base = count / n, more = count % n;
    *first = m * base + (m < more ? m : more);
    *length = base + (m < more);
}

static uint8_t *scratch(struct gang_comm *g, size_t bytes) {
    if (bytes > g->scratch_bytes) {
        free(g->scratch);
        g->scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
        assert(g->scratch && "out of memory");
        g->scratch_bytes = bytes;
    }
    return g->scratch;
}

static size_t element_bytes(enum gang_element type) { return type == GANG_ELEMENT_F32 ? sizeof(float) : sizeof(uint16_t); }

// ---- Reductions over parts -----------------------------------------------------------------------------------------

struct reduction {
    struct gang_comm *group;
    uint8_t *data, *scratch;
    size_t count, size; // elements, bytes of one
    size_t segment;     // elements
    size_t segments;    // of the longest part
    enum gang_element type;
    bool scatter, gather; // sum the own part; bring the sums to all
};

// Segment k of a member's part: false when it is empty.
static bool segment_of(const struct reduction *r, int member, size_t k, uint8_t **at, size_t *elements) {
    size_t first, length, from = k * r->segment;
    gang_comm_part(r->group, r->count, member, &first, &length);
    if (from >= length) return false;
    *elements = length - from < r->segment ? length - from : r->segment;
    *at = r->data + (first + from) * r->size;
    return true;
}

static uint8_t *place_for(const struct reduction *r, size_t k, int member) {
    return r->scratch + ((k % WINDOW) * (size_t)r->group->members + (size_t)member) * r->segment * r->size;
}

static enum gang_status finish_segment(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    struct slot *slot = &g->slots[k % WINDOW];
    enum gang_status status = await_all(g, slot->parts_out);
    if (!status) status = await_all(g, slot->sums_in);
    return status ? status : await_all(g, slot->sums_out);
}

static enum gang_status start_segment(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    struct slot *slot = &g->slots[k % WINDOW];
    uint8_t *mine, *theirs;
    size_t n = 0, m;
    bool have = segment_of(r, g->me, k, &mine, &n);
    enum gang_status status = GANG_OK;
    for (int i = 0; i < g->members && !status; i++) {
        if (i == g->me) continue;
        if (r->scatter && have) status = start(g, true, i, TAG_PARTS, place_for(r, k, i), n * r->size, &slot->parts_in[i]);
        if (status || !segment_of(r, i, k, &theirs, &m)) continue;
        if (r->scatter) status = start(g, false, i, TAG_PARTS, theirs, m * r->size, &slot->parts_out[i]);
        if (!status && r->gather) status = start(g, true, i, TAG_SUMS, theirs, m * r->size, &slot->sums_in[i]);
    }
    return status;
}

static enum gang_status sum_segment(const struct reduction *r, size_t k) {
    struct gang_comm *g = r->group;
    struct slot *slot = &g->slots[k % WINDOW];
    uint8_t *mine;
    size_t n;
    if (!segment_of(r, g->me, k, &mine, &n)) return GANG_OK;
    enum gang_status status = await_all(g, slot->parts_in);
    if (status) return status;
    const void *parts[GANG_COMM_MEMBERS];
    for (int i = 0; i < g->members; i++) parts[i] = i == g->me ? mine : place_for(r, k, i);
    if (r->scatter) gang_sum(mine, parts, g->members, n, r->type);
    for (int i = 0; i < g->members && !status && r->gather; i++)
        if (i != g->me) status = start(g, false, i, TAG_SUMS, mine, n * r->size, &slot->sums_out[i]);
    return status;
}

static enum gang_status run_reduction(struct reduction *r) {
    struct gang_comm *g = r->group;
    enum gang_status status = check(g);
    r->size = element_bytes(r->type);
    r->segment = segment_bytes / r->size;
    size_t first, longest;
    gang_comm_part(g, r->count, 0, &first, &longest);
    r->segments = (longest + r->segment - 1) / r->segment;
    if (r->segments == 1) r->segment = longest;
    if (r->scatter) r->scratch = scratch(g, (r->segments < WINDOW ? r->segments : WINDOW) * (size_t)g->members * r->segment * r->size);
    for (size_t k = 0; k < r->segments + AHEAD && !status; k++) {
        if (k < r->segments) {
            if (k >= WINDOW) status = finish_segment(r, k - WINDOW);
            if (!status) status = start_segment(r, k);
        }
        if (!status && k >= AHEAD && k - AHEAD < r->segments) status = sum_segment(r, k - AHEAD);
    }
    for (size_t k = r->segments < WINDOW ? 0 : r->segments - WINDOW; k < r->segments && !status; k++) status = finish_segment(r, k);
    return status;
}

// Everybody sends everything to everybody and sums by itself.
static enum gang_status reduce_small(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    enum gang_status status = check(g);
    size_t bytes = count * element_bytes(type);
    uint8_t *place = scratch(g, (size_t)g->members * bytes);
    struct slot *slot = &g->slots[0];
    const void *parts[GANG_COMM_MEMBERS];
    for (int i = 0; i < g->members && !status; i++) {
        parts[i] = i == g->me ? data : place + (size_t)i * bytes;
        if (i != g->me) status = start(g, true, i, TAG_PARTS, place + (size_t)i * bytes, bytes, &slot->parts_in[i]);
    }
    for (int i = 0; i < g->members && !status; i++)
        if (i != g->me) status = start(g, false, i, TAG_PARTS, data, bytes, &slot->parts_out[i]);
    if (!status) status = await_all(g, slot->parts_in);
    if (!status) status = await_all(g, slot->parts_out);
    if (!status) gang_sum(data, parts, g->members, count, type);
    return status;
}

enum gang_status gang_all_reduce(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    if (count * element_bytes(type) * (size_t)(g->members - 1) <= small_bytes) return reduce_small(g, data, count, type);
    return run_reduction(&(struct reduction){.group = g, .data = data, .count = count, .type = type, .scatter = true, .gather = true});
}

enum gang_status gang_reduce_scatter(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    return run_reduction(&(struct reduction){.group = g, .data = data, .count = count, .type = type, .scatter = true});
}

enum gang_status gang_all_gather(struct gang_comm *g, void *data, size_t count, enum gang_element type) {
    return run_reduction(&(struct reduction){.group = g, .data = data, .count = count, .type = type, .gather = true});
}

// ---- The others ----------------------------------------------------------------------------------------------------

// A binomial tree from the root; long data in segments, so that all levels are busy at once.
enum gang_status gang_broadcast(struct gang_comm *g, int root, void *data, size_t bytes) {
    enum gang_status status = check(g);
    int rank = (g->me - root + g->members) % g->members, lowest = 1;
    while (lowest < g->members && !(rank & lowest)) lowest <<= 1; // the root's reaches beyond everybody
    size_t segments = (bytes + segment_bytes - 1) / segment_bytes;
    for (size_t k = 0; k < segments + WINDOW && !status; k++) {
        struct slot *slot = &g->slots[k % WINDOW];
        if (k >= WINDOW) status = await_all(g, slot->parts_out);
        // Receives are posted ahead; sends follow as the data comes.
        if (!status && k < segments && rank) {
            size_t n = bytes - k * segment_bytes < segment_bytes ? bytes - k * segment_bytes : segment_bytes;
            status = start(g, true, (rank - lowest + root) % g->members, TAG_OTHER, (uint8_t *)data + k * segment_bytes, n, &slot->parts_in[0]);
        }
        if (status || k < AHEAD || k - AHEAD >= segments) continue;
        size_t s = k - AHEAD, n = bytes - s * segment_bytes < segment_bytes ? bytes - s * segment_bytes : segment_bytes;
        struct slot *ready = &g->slots[s % WINDOW];
        status = await(g, &ready->parts_in[0]);
        for (int step = lowest >> 1, child = 0; step && !status; step >>= 1, child++)
            if (rank + step < g->members)
                status = start(g, false, (rank + step + root) % g->members, TAG_OTHER, (uint8_t *)data + s * segment_bytes, n,
                               &ready->parts_out[child]);
    }
    return status;
}

enum gang_status gang_all_to_all(struct gang_comm *g, const void *out, void *in, size_t bytes) {
    enum gang_status status = check(g);
    struct slot *slot = &g->slots[0];
    for (int i = 0; i < g->members && !status; i++)
        if (i != g->me) status = start(g, true, i, TAG_OTHER, (uint8_t *)in + (size_t)i * bytes, bytes, &slot->parts_in[i]);
    // Each starts with its successor, so that not all send to the first member first.
    for (int d = 1; d < g->members && !status; d++) {
        int i = (g->me + d) % g->members;
        status = start(g, false, i, TAG_OTHER, (uint8_t *)out + (size_t)i * bytes, bytes, &slot->parts_out[i]);
    }
    if (!status && bytes) memcpy((uint8_t *)in + (size_t)g->me * bytes, (const uint8_t *)out + (size_t)g->me * bytes, bytes);
    if (!status) status = await_all(g, slot->parts_in);
    return status ? status : await_all(g, slot->parts_out);
}

// In round j everybody tells who is 2^j further; after the last all have heard of all.
enum gang_status gang_barrier(struct gang_comm *g) {
    enum gang_status status = check(g);
    for (int step = 1; step < g->members && !status; step <<= 1) {
        struct slot *slot = &g->slots[0];
        status = start(g, true, (g->me - step + g->members) % g->members, TAG_OTHER, NULL, 0, &slot->parts_in[0]);
        if (!status) status = start(g, false, (g->me + step) % g->members, TAG_OTHER, NULL, 0, &slot->parts_out[0]);
        if (!status) status = await(g, &slot->parts_in[0]);
        if (!status) status = await(g, &slot->parts_out[0]);
    }
    return status;
}
