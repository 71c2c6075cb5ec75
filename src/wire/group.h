// group: what the collectives of group.c and reduce.c share. Internal to src/wire.
#ifndef GANG_WIRE_GROUP_H
#define GANG_WIRE_GROUP_H

#include "wire/endpoint.h"

enum {
    GROUP_WINDOW = 16, // segments under way at most
    GROUP_NOTICE_BYTES = 128,
    GROUP_SEGMENT_BYTES = 512 << 10,
    GROUP_PLACES = 2 * GANG_COMM_MEMBERS, // what one member gathers of one segment at most, see reduce.c
};
enum { GROUP_TAG_PARTS, GROUP_TAG_SUMS, GROUP_TAG_FORWARD, GROUP_TAG_OTHER, GROUP_TAG_NOTICE }; // of GANG_COMM_TAGS

struct group_slot { // a segment under way
    // By whose part it is:
    struct gang_wire_op parts_out[GANG_COMM_MEMBERS], up_out[GANG_COMM_MEMBERS], sums_in[GANG_COMM_MEMBERS];
    // By place:
    struct gang_wire_op parts_in[GROUP_PLACES], sums_out[GROUP_PLACES];
};

// Who is where. Sites are numbered from 0 without gaps, in the order of their sums; the members of a site likewise.
struct group_layout {
    int shards[GANG_COMM_MEMBERS], site_shard[GANG_COMM_MEMBERS];      // of the members, as in by_site; the lowest of each site
    int sites, site_of[GANG_COMM_MEMBERS], in_site[GANG_COMM_MEMBERS]; // in_site: a member's place among those of its site
    int by_site[GANG_COMM_MEMBERS], site_first[GANG_COMM_MEMBERS + 1]; // the members of site s: by_site[site_first[s] .. site_first[s + 1] - 1]
};

struct gang_comm {
    struct gang_wire *wire;
    struct gang_wire_link *links[GANG_COMM_MEMBERS];
    int members, me;
    uint32_t tag;
    int site[GANG_COMM_MEMBERS], shard[GANG_COMM_MEMBERS]; // as the caller says
    bool canonical;                                        // sums go by the tree over shards, not by the order of members and sites
    bool whole;                                            // every site's shards are all that there are in a subtree
    struct group_layout far, flat, lone;                   // with sites; all as of one; each as alone in one
    const struct group_layout *at;                         // of the collective under way
    uint8_t *scratch;
    size_t scratch_bytes;
    char error[GROUP_NOTICE_BYTES]; // why it is broken; "" while it is not
    char notices[GANG_COMM_MEMBERS][GROUP_NOTICE_BYTES];
    struct gang_wire_op notice_in[GANG_COMM_MEMBERS], notice_out[GANG_COMM_MEMBERS];
    char told[GROUP_NOTICE_BYTES];
    struct group_slot slots[GROUP_WINDOW];
    bool met;                   // it is known whether there is:
    struct gang_shared *shared; // memory of the group's own, or NULL
    // What was started, see collective.c.
    pthread_mutex_t lock; // of what follows
    pthread_cond_t started, finished;
    pthread_t worker;
    bool has_worker, stop;
    struct gang_collective *first; // the worker is at it
};

enum gang_status gang_comm_check(const struct gang_comm *g); // broken?
// Finds out why, tells everybody, and calls off what is under way; without a dead link or a notice the reason is gang_error().
enum gang_status gang_comm_break_up(struct gang_comm *g);
enum gang_status gang_comm_start(struct gang_comm *g, bool receive, int member, uint32_t tag, void *data, size_t bytes, struct gang_wire_op *op);
// Until it is done; one that was never started is.
enum gang_status gang_comm_await(struct gang_comm *g, struct gang_wire_op *op);
enum gang_status gang_comm_await_all(struct gang_comm *g, struct gang_wire_op *ops, int count);
uint8_t *gang_comm_scratch(struct gang_comm *g, size_t bytes);

// shared.c: sums and gathers through memory that all members map
enum gang_status gang_shared_meet(struct gang_comm *g); // at the first: makes it if it can be
enum gang_status gang_shared_reduce(struct gang_comm *g, enum gang_reduction kind, void *data, size_t count, enum gang_element type);
void gang_shared_free(struct gang_shared *shared);

// reduce.c
enum gang_status gang_comm_reduce(struct gang_comm *g, enum gang_reduction kind, void *data, size_t count, enum gang_element type);

// collective.c
void gang_collective_init(struct gang_comm *g);
void gang_collective_release(struct gang_comm *g);
enum gang_status gang_comm_enter(struct gang_comm *g); // when all that was started is done; broken?

#endif
