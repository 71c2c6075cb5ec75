// Sums and gathers of members that share memory: the threads of the collective move the data themselves, without messages.
//
// A group whose members all reach the first of them through shared memory (planes "shm:...") gets, at its first sum or gather, a
// memory of its own. The first member makes it (a memfd) and hands it to the others over Unix sockets; all agree whether everybody
// has it, and if not, the group goes on with messages (reduce.c).
//
// In it every member has a box of SLOTS slots, each of which holds one segment of every part. The elements are cut into one part
// per member, its owner, and parts into segments, as in reduce.c. With segment k a member
//
//   puts   its contributions to the others' parts into slot k of its box,
//   sums   its own part out of the others' boxes, into its data and over what its successor put,
//   takes  the others' sums from where they were left into its data,
//
// and after each of the three counts k + 1 for the others to see. An all-gather puts nothing and has a sum of one, a reduce-scatter
// takes nothing. A small all-reduce is one segment that everybody puts whole and sums whole.
//
// What has just been written by one core and is still in its second cache comes to another core half as fast as from the third, which they
// have in common. So segments are large, and each step is some segments behind the step before it; members need not keep in step then.
// For the same reason sums are left where contributions stood: a line that is written anew must be fetched first.
//
// Segments are numbered on from one collective to the next. Invariants:
//  1. A slot is put into again only when all members have taken what it held: then nobody reads it any more. A contribution is
//     written over by its reader alone.
//  2. Nobody waits for a count that depends on a later step of its own: puts wait for what was taken SLOTS segments before, and
//     SLOTS is more than the steps are apart.
//  3. What others write is only data and counts. Where and how much is read and written follows from the caller's arguments and
//     the number of members alone, so a broken member gives wrong sums, or makes others wait, and no more. That all
//     members mean the same collective is checked by what each says of it beside its count.
//
// Who waits looks for about as long as it takes to wake a thread, since the others mostly do the same work at the same time, then
// sleeps on the count (a futex) and says so beside it; where members outnumber cores it sleeps at once. It wakes now and then to see whether
// a link has died or a notice has come, as with messages.
#include "wire/group.h"
#include "wire/sum.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SLOTS = 8, SLOT_BYTES = 256 << 10, LINE = 128, BLOCK_BYTES = 8 << 10, LOOKS = 400, SUM_BEHIND = 2, TAKE_BEHIND = 4 };
static const int64_t sleep_ns = 20000000;
enum { SMALL_BYTES = 64 << 10 };
_Static_assert((int)SMALL_BYTES <= (int)SLOT_BYTES && (int)TAKE_BEHIND < (int)SLOTS, "a small sum fits a slot; see invariant 2");

struct count {
    uint32_t value, waits; // waits: somebody sleeps; whoever clears it wakes
};

// What a member says, each count on lines of its own.
struct says {
    _Alignas(LINE) struct count put;
    uint64_t means[SLOTS]; // which collective that is
    _Alignas(LINE) struct count summed;
    _Alignas(LINE) struct count taken;
};

struct gang_shared {
    struct says *says; // by member; then the boxes
    uint8_t *boxes;
    size_t bytes;  // of all
    size_t piece;  // bytes of a segment, at most
    int looks;     // before who waits sleeps
    uint32_t next; // segment
};

// ---- Making the memory ----------------------------------------------------------------------------------------------

struct offer { // of a member to the first
    uint8_t shares;
    char name[WIRE_NAME_CHARS + 24]; // where it listens for the memory; "": nowhere
};

static size_t memory_bytes(int members) { return (size_t)members * (sizeof(struct says) + (size_t)SLOTS * SLOT_BYTES); }

static struct gang_shared *new_shared(int members, int fd) {
    struct gang_shared *s = calloc(1, sizeof *s);
    assert(s && "out of memory");
    s->bytes = memory_bytes(members);
    s->piece = SLOT_BYTES / (size_t)members / LINE * LINE;
    s->looks = sysconf(_SC_NPROCESSORS_ONLN) < members ? 0 : LOOKS;
    s->says = gang_shared_map(fd, s->bytes);
    s->boxes = s->says ? (uint8_t *)(s->says + members) : NULL;
    return s;
}

void gang_shared_free(struct gang_shared *s) {
    if (!s) return;
    gang_shared_unmap(s->says, s->bytes);
    free(s);
}

static enum gang_status tell(struct gang_comm *g, int member, const void *data, size_t bytes) {
    struct gang_wire_op *op = &g->slots[0].parts_out[member];
    enum gang_status status = gang_comm_start(g, false, member, GROUP_TAG_OTHER, (void *)data, bytes, op);
    return status ? status : gang_comm_await(g, op);
}

static enum gang_status hear(struct gang_comm *g, int member, void *data, size_t bytes) {
    struct gang_wire_op *op = &g->slots[0].parts_in[member];
    enum gang_status status = gang_comm_start(g, true, member, GROUP_TAG_OTHER, data, bytes, op);
    return status ? status : gang_comm_await(g, op);
}

static enum gang_status tell_all(struct gang_comm *g, uint8_t what) {
    enum gang_status status = GANG_OK;
    for (int i = 0; i < g->members && !status; i++)
        if (i != g->me) status = tell(g, i, &what, 1);
    return status;
}

// What is sent stands in the socket before it is accepted.
static bool hand_to(const char *name, int memory) {
    int fd;
    if (gang_local_connect(name, &fd)) return false;
    bool passed = gang_local_same_user(fd) && gang_local_pass(fd, memory);
    close(fd);
    return passed;
}

static bool hand_out(struct gang_comm *g, const struct offer *offers) {
    int memory = gang_shared_new(memory_bytes(g->members));
    if (memory < 0) return false;
    g->shared = new_shared(g->members, memory);
    bool good = g->shared->says;
    for (int i = 0; i < g->members && good; i++)
        if (i != g->me) good = hand_to(offers[i].name, memory);
    close(memory);
    return good;
}

static enum gang_status lead(struct gang_comm *g, uint8_t *all) {
    struct offer offers[GANG_COMM_MEMBERS];
    enum gang_status status = GANG_OK;
    *all = 1;
    for (int i = 0; i < g->members && !status; i++) {
        if (i == g->me) continue;
        status = hear(g, i, &offers[i], sizeof *offers);
        offers[i].name[sizeof offers->name - 1] = 0;
        *all = *all && (offers[i].shares || gang_wire_shares(g->links[i])) && offers[i].name[0];
    }
    if (status) return status;
    *all = *all && hand_out(g, offers);
    status = tell_all(g, *all);
    if (status || !*all) return status;
    for (int i = 0; i < g->members && !status; i++) {
        uint8_t mapped = 0;
        if (i == g->me) continue;
        status = hear(g, i, &mapped, 1);
        *all = *all && mapped;
    }
    return status ? status : tell_all(g, *all);
}

static bool take_in(struct gang_comm *g, int listener) {
    int fd = gang_socket_accept(listener);
    if (fd < 0) return false;
    int memory = gang_local_same_user(fd) ? gang_local_take(fd) : -1;
    close(fd);
    if (memory < 0) return false;
    g->shared = new_shared(g->members, memory);
    close(memory);
    return g->shared->says;
}

static enum gang_status follow(struct gang_comm *g, int first, uint8_t *all) {
    struct offer offer = {.shares = gang_wire_shares(g->links[first])};
    int listener = -1;
    snprintf(offer.name, sizeof offer.name, "gangline-group %s %d %u", gang_wire_address(g->wire), first, g->tag);
    if (gang_local_listen(offer.name, &listener)) offer.name[0] = 0;
    enum gang_status status = tell(g, first, &offer, sizeof offer);
    if (!status) status = hear(g, first, all, 1);
    if (!status && *all) {
        uint8_t mapped = take_in(g, listener);
        status = tell(g, first, &mapped, 1);
        if (!status) status = hear(g, first, all, 1);
    }
    if (listener >= 0) close(listener);
    return status;
}

enum gang_status gang_shared_meet(struct gang_comm *g) {
    uint8_t all = 0;
    if (g->met) return GANG_OK;
    g->met = true;
    if (g->members == 1 || g->far.sites > 1) return GANG_OK;
    enum gang_status status = g->me ? follow(g, 0, &all) : lead(g, &all);
    if (status || all) return status;
    gang_shared_free(g->shared);
    g->shared = NULL;
    return GANG_OK;
}

// ---- Counting and waiting --------------------------------------------------------------------------------------------

static void publish(struct count *count, uint32_t value) {
    __atomic_store_n(&count->value, value, __ATOMIC_SEQ_CST);
    // The value is told before we look whether somebody sleeps, who says so before looking at the value: one of the two sees the other.
    if (__atomic_load_n(&count->waits, __ATOMIC_SEQ_CST) && __atomic_exchange_n(&count->waits, 0, __ATOMIC_SEQ_CST)) gang_shared_wake(&count->value);
}

static bool reached(uint32_t value, uint32_t wanted) { return value - wanted < UINT32_MAX / 2; }

static enum gang_status sleep_until(struct gang_comm *g, struct count *count, uint32_t wanted) {
    for (;;) {
        __atomic_store_n(&count->waits, 1, __ATOMIC_SEQ_CST);
        uint32_t value = __atomic_load_n(&count->value, __ATOMIC_SEQ_CST);
        if (reached(value, wanted)) return GANG_OK;
        gang_shared_sleep(&count->value, value, sleep_ns);
        if (reached(__atomic_load_n(&count->value, __ATOMIC_ACQUIRE), wanted)) return GANG_OK;
        if (gang_wire_lost(g->wire, g->links, g->notice_in, g->members)) return gang_comm_break_up(g);
    }
}

static void breathe(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static enum gang_status await(struct gang_comm *g, struct count *count, uint32_t wanted) {
    for (int i = 0; i <= g->shared->looks; i++) {
        if (reached(__atomic_load_n(&count->value, __ATOMIC_ACQUIRE), wanted)) return GANG_OK;
        breathe();
    }
    return sleep_until(g, count, wanted);
}

// ---- The steps -------------------------------------------------------------------------------------------------------

struct sharing {
    struct gang_comm *group;
    struct gang_shared *shared;
    uint8_t *data;
    size_t count, size, segment; // elements, bytes of one, elements of a segment at most
    enum gang_element type;
    bool scatter, gather, small;
    uint64_t means;
    uint32_t first; // segment
};

static uint8_t *piece(const struct sharing *r, int member, uint32_t k, int owner) {
    const struct gang_shared *s = r->shared;
    return s->boxes + ((size_t)member * SLOTS + k % SLOTS) * SLOT_BYTES + (size_t)owner * s->piece;
}

// Where the owner leaves what it summed.
static uint8_t *sum_of(const struct sharing *r, uint32_t k, int owner) { return piece(r, (owner + 1) % r->group->members, k, owner); }

// Segment k of a member's part, and its bytes. The part of a small sum is the whole.
static size_t segment_of(const struct sharing *r, int owner, uint32_t k, uint8_t **at) {
    size_t first = 0, length = r->count, from = (k - r->first) * r->segment;
    if (!r->small) gang_comm_part(r->group, r->count, owner, &first, &length);
    *at = r->data + (first + from) * r->size;
    if (from >= length) return 0;
    return (length - from < r->segment ? length - from : r->segment) * r->size;
}

static enum gang_status put(const struct sharing *r, uint32_t k) {
    struct gang_comm *g = r->group;
    struct says *mine = &r->shared->says[g->me];
    enum gang_status status = GANG_OK;
    for (int i = 0; i < g->members && !status; i++)
        if (i != g->me) status = await(g, &r->shared->says[i].taken, k - SLOTS + 1);
    if (status) return status;
    for (int owner = 0; owner < g->members && r->scatter; owner++) {
        uint8_t *at;
        if (r->small ? owner > 0 : owner == g->me) continue;
        size_t bytes = segment_of(r, owner, k, &at);
        if (bytes) memcpy(piece(r, g->me, k, owner), at, bytes);
    }
    mine->means[k % SLOTS] = r->means;
    publish(&mine->put, k + 1);
    return GANG_OK;
}

static enum gang_status await_puts(const struct sharing *r, uint32_t k) {
    struct gang_comm *g = r->group;
    for (int i = 0; i < g->members; i++) {
        if (i == g->me) continue;
        struct says *theirs = &r->shared->says[i];
        enum gang_status status = await(g, &theirs->put, k + 1);
        if (status) return status;
        if (__atomic_load_n(&theirs->means[k % SLOTS], __ATOMIC_RELAXED) == r->means) continue;
        (void)gang_fail(GANG_ERR_PEER, "the group's members disagree: rank %d is at another collective, or one of another size", g->links[i]->peer);
        return gang_comm_break_up(g);
    }
    return GANG_OK;
}

// What is summed into `mine` goes into `box`, too, while it is in the first cache; NULL: nowhere. `box` may be one of the parts.
static void sum_segment(const struct sharing *r, uint32_t k, uint8_t *mine, uint8_t *box, size_t bytes) {
    const struct gang_comm *g = r->group;
    const int *order = g->flat.by_site;
    for (size_t at = 0; at < bytes; at += BLOCK_BYTES) {
        const void *parts[GANG_COMM_MEMBERS];
        size_t n = bytes - at < BLOCK_BYTES ? bytes - at : BLOCK_BYTES;
        for (int i = 0; i < g->members; i++) parts[i] = order[i] == g->me ? mine + at : piece(r, order[i], k, r->small ? 0 : g->me) + at;
        gang_sum(mine + at, parts, g->canonical ? g->flat.shards : NULL, g->members, n / r->size, r->type);
        if (box) memcpy(box + at, mine + at, n);
    }
}

static enum gang_status sum(const struct sharing *r, uint32_t k) {
    struct gang_comm *g = r->group;
    uint8_t *at;
    enum gang_status status = await_puts(r, k);
    if (status) return status;
    size_t bytes = segment_of(r, g->me, k, &at);
    uint8_t *box = r->gather && !r->small ? sum_of(r, k, g->me) : NULL;
    if (r->scatter) {
        sum_segment(r, k, at, box, bytes);
    } else if (bytes) {
        memcpy(box, at, bytes);
    }
    publish(&r->shared->says[g->me].summed, k + 1);
    return GANG_OK;
}

static enum gang_status take(const struct sharing *r, uint32_t k) {
    struct gang_comm *g = r->group;
    enum gang_status status = GANG_OK;
    for (int d = 1; d < g->members && r->gather && !r->small; d++) {
        int owner = (g->me + d) % g->members; // not all from the same first
        uint8_t *at;
        size_t bytes = segment_of(r, owner, k, &at);
        status = await(g, &r->shared->says[owner].summed, k + 1);
        if (status) return status;
        if (bytes) memcpy(at, sum_of(r, k, owner), bytes);
    }
    publish(&r->shared->says[g->me].taken, k + 1);
    return GANG_OK;
}

enum gang_status gang_shared_reduce(struct gang_comm *g, enum gang_reduction kind, void *data, size_t count, enum gang_element type) {
    struct gang_shared *s = g->shared;
    enum gang_status status = gang_comm_check(g);
    size_t size = type == GANG_ELEMENT_F32 ? sizeof(float) : sizeof(uint16_t), first, longest;
    bool small = kind == GANG_ALL_REDUCE && count * size * (size_t)(g->members - 1) <= SMALL_BYTES;
    gang_comm_part(g, count, 0, &first, &longest);
    struct sharing r = {.group = g, .shared = s, .data = data, .count = count, .size = size, .type = type, .small = small, .first = s->next};
    r.segment = small ? count : s->piece / size;
    r.scatter = kind != GANG_ALL_GATHER;
    r.gather = kind != GANG_REDUCE_SCATTER;
    r.means = (uint64_t)count << 3 | (uint64_t)kind << 1 | (type == GANG_ELEMENT_BF16);
    uint32_t segments = small ? 1 : (uint32_t)((longest + r.segment - 1) / r.segment);
    for (uint32_t k = 0; k < segments + TAKE_BEHIND && !status; k++) {
        if (k < segments) status = put(&r, s->next + k);
        if (!status && k >= SUM_BEHIND && k - SUM_BEHIND < segments) status = sum(&r, s->next + k - SUM_BEHIND);
        if (!status && k >= TAKE_BEHIND) status = take(&r, s->next + k - TAKE_BEHIND);
    }
    s->next += segments;
    return status;
}
