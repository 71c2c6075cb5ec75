// wire: what crosses between ranks. A process opens one wire, joins links to other ranks, and sends and receives messages on
// tags of a link; the wire brings every byte once and intact, over whatever planes of the link still work.
//
// Any thread may call anything here. A buffer belongs to the caller, but while its operation is under way nobody may
// change (send) or look at (receive) it. Messages of one tag match in the order of the calls: the n-th send of one side
// with the n-th receive of the other, whose sizes must be equal.
//
// When the peer dies, falls silent on all planes for dead_ms, or breaks the protocol, every operation on the link ends
// with GANG_ERR_PEER and a text that names it. That is the only error an operation under way can have.
#ifndef GANG_WIRE_H
#define GANG_WIRE_H

#include "base/base.h"

struct gang_wire;
struct gang_wire_link;

enum { GANG_WIRE_PLANES = 8, GANG_WIRE_STREAMS = 8, GANG_WIRE_EAGER_BYTES = 8192, GANG_WIRE_PRIORITIES = 4, GANG_WIRE_POLITE = 3 };

struct gang_wire_options {
    int rank;
    const char *listen;      // "host:port"; port 0 lets the kernel pick
    uint64_t cluster;        // both ends must name the same
    const char *secret_path; // a file that only its owner may read: TLS 1.3 with this secret. NULL: plain, for loopback only
    int64_t heartbeat_ms;    // 0: 4
    int64_t hold_ms;         // 0: 100; silence on all planes after which the link is suspect
    int64_t dead_ms;         // 0: 1000; and lost
    int64_t connect_ms;      // 0: 10000; to come up the first time
    int notify;              // an eventfd that is written whenever an operation ends, for callers that poll; 0: none. Who polls
                             // hears of a dead link by its operations: the wire logs nothing then
};

// Opens the listening port and starts the progress thread.
GANG_CHECK_RESULT enum gang_status gang_wire_open(const struct gang_wire_options *options, struct gang_wire **out);
// Ends all links (the peers are told) and frees everything. Messages that were sent are delivered first, if the peers take
// them within a second. No other call may be under way.
void gang_wire_close(struct gang_wire *wire);
// "host:port" that others connect to.
const char *gang_wire_address(const struct gang_wire *wire);

struct gang_wire_plane {
    const char *local;  // address to leave from; NULL: any
    const char *remote; // where the peer listens on this plane; "shm:host:port" is memory shared with the rank of this machine
                        // and user whose gang_wire_address that is: no secret is asked for, no payload is checked
};

struct gang_wire_link_options {
    int peer;
    int planes;                          // of both ends the same
    int streams;                         // per plane; 0: 1
    const struct gang_wire_plane *plane; // `planes` of them on the side that connects; NULL on the side that is connected to
    size_t buffer_bytes;                 // of each socket; 0: the system's. Twice bandwidth times delay over a long way
};

// Starts to connect, or to expect the peer. Messages may be sent and received at once; they wait.
GANG_CHECK_RESULT enum gang_status gang_wire_join(struct gang_wire *wire, const struct gang_wire_link_options *options, struct gang_wire_link **out);

// An operation. The caller's, zeroed; it must stay in place until it is done.
struct gang_wire_op {
    struct gang_wire_link *link;
    enum gang_status status;
    bool done;
};

// Starts to send or receive. Waits only while too many operations are outstanding on the link. Priority 0 goes first.
GANG_CHECK_RESULT enum gang_status gang_wire_send(struct gang_wire_link *link, uint32_t tag, int priority, const void *data, size_t bytes,
                                                  struct gang_wire_op *op);
GANG_CHECK_RESULT enum gang_status gang_wire_recv(struct gang_wire_link *link, uint32_t tag, void *data, size_t bytes, struct gang_wire_op *op);
// From now on messages of priority GANG_WIRE_POLITE take at most this share (up to 1; 0: no limit, as at first) of the rate that the
// link measures on its planes: for bulk in no hurry, such as copies of checkpoints, where a path carries other links too. All
// other messages go before these, as if they were not there. A link that has carried nothing else yet knows its rate too low.
void gang_wire_pace(struct gang_wire_link *link, double share);
// Until the operation is done; its status. A send of at most GANG_WIRE_EAGER_BYTES may be done before the peer has it.
GANG_CHECK_RESULT enum gang_status gang_wire_wait(struct gang_wire_op *op);
bool gang_wire_done(struct gang_wire_op *op);

struct gang_wire_plane_report {
    bool up;
    double rtt_s, bytes_per_s; // smoothed, measured on this link; 0 while unknown
    uint64_t losses;           // times that it went down
};
struct gang_wire_report {
    bool dead, suspect;
    int planes;
    struct gang_wire_plane_report plane[GANG_WIRE_PLANES];
};
void gang_wire_report(struct gang_wire_link *link, struct gang_wire_report *out);

// ---- Collectives ---------------------------------------------------------------------------------------------------
//
// A group is an ordered list of ranks; every member makes it alike. Collectives are called, or started, by all members in
// the same order with the same sizes, from one thread at a time; the group works on one at a time, in that order. Several
// groups may be busy at once.
//
// A sum is always taken in the same order, in f32, whatever way the bytes go: all members get the same bits, every time,
// whatever the number of planes and the size of the message. The order is that of the members, unless gang_comm_canonical gives another; in a group
// over several sites each site's members are summed in their order, a sum of bf16 is rounded to bf16, and the sites' sums are added in the order of
// the sites. NaN and infinities go as IEEE 754 says.
//
// When a member dies, or another member says so, the call ends with GANG_ERR_PEER and a text that names it, on all members;
// the group is broken then and every further call says so. The living make a new group, with other tags.

struct gang_comm;

enum { GANG_COMM_MEMBERS = 64, GANG_COMM_TAGS = 8 };
enum gang_element { GANG_ELEMENT_F32, GANG_ELEMENT_BF16 };

// `links[i]` leads to member i; links[me] is NULL. Uses the tags from `tag` to tag + GANG_COMM_TAGS - 1 of these links, alone
// and for ever. Free before the wire is closed, when nothing that was started is under way.
GANG_CHECK_RESULT enum gang_status gang_comm_new(struct gang_wire *wire, struct gang_wire_link *const *links, int members, int me, uint32_t tag,
                                                 struct gang_comm **out);
void gang_comm_free(struct gang_comm *group);
// Says in which site each member is, before the first collective and on every member alike; sites are numbered from 0 to
// GANG_COMM_MEMBERS - 1. Sums, gathers and broadcasts then go inside the sites first, and what must cross between two sites
// crosses once, not once per member: with two sites the data of an all-reduce once each way. The others do not care.
GANG_CHECK_RESULT enum gang_status gang_comm_sites(struct gang_comm *group, const int *site_of_member);
// From now on sums are taken by a fixed tree over numbered shards of the work, one number (from 0) for each member: the same
// bits however members are ordered, spread over sites or linked. The two halves of the numbers 0 to 2^k - 1 are summed each by
// itself, by the same rule, then added; what is not there is left out. A member that stands for several shards, an aligned range
// of 2^j, has the lowest of their numbers and adds them by the same rule before: so in f32 the bits are the same, too, for any
// number of members that divides the shards so. Before the first collective and on every member alike. Over sites sums cost
// more bytes if a site's shards are not all there are in such a range, or if they are of bf16; src/wire/reduce.c says how many.
GANG_CHECK_RESULT enum gang_status gang_comm_canonical(struct gang_comm *group, const int *shard_of_member);

// Sums `data` of all members; everybody gets the sum.
GANG_CHECK_RESULT enum gang_status gang_all_reduce(struct gang_comm *group, void *data, size_t count, enum gang_element type);
// `data` holds `count` elements, cut into parts as gang_comm_part says; member i gets the sum of part i in its place. The
// other parts are left as they were.
GANG_CHECK_RESULT enum gang_status gang_reduce_scatter(struct gang_comm *group, void *data, size_t count, enum gang_element type);
// The other way round: member i gives part i, everybody gets all parts.
GANG_CHECK_RESULT enum gang_status gang_all_gather(struct gang_comm *group, void *data, size_t count, enum gang_element type);

// The same, started: a thread of the group's, which sleeps when there is nothing to do, works on what was started in the
// order of the calls. The data is the collective's until it is done. The three calls above, and those below, wait until what
// was started before them is done.
enum gang_reduction { GANG_ALL_REDUCE, GANG_REDUCE_SCATTER, GANG_ALL_GATHER };
struct gang_collective { // the caller's; it must stay in place until it is done
    struct gang_comm *group;
    struct gang_collective *next;
    enum gang_reduction kind;
    enum gang_element type;
    void *data;
    size_t count;
    enum gang_status status;
    bool done;
    double began, ended; // when it was worked on, in gang_seconds
};
GANG_CHECK_RESULT enum gang_status gang_all_reduce_start(struct gang_comm *group, void *data, size_t count, enum gang_element type,
                                                         struct gang_collective *op);
GANG_CHECK_RESULT enum gang_status gang_reduce_scatter_start(struct gang_comm *group, void *data, size_t count, enum gang_element type,
                                                             struct gang_collective *op);
GANG_CHECK_RESULT enum gang_status gang_all_gather_start(struct gang_comm *group, void *data, size_t count, enum gang_element type,
                                                         struct gang_collective *op);
// Until it is done; its status. After a member is lost all that was started ends with GANG_ERR_PEER.
GANG_CHECK_RESULT enum gang_status gang_collective_wait(struct gang_collective *op);
bool gang_collective_done(struct gang_collective *op);

void gang_comm_part(const struct gang_comm *group, size_t count, int member, size_t *first, size_t *length);
GANG_CHECK_RESULT enum gang_status gang_broadcast(struct gang_comm *group, int root, void *data, size_t bytes);
// `out` and `in` hold `bytes` per member: what goes to it and what comes from it.
GANG_CHECK_RESULT enum gang_status gang_all_to_all(struct gang_comm *group, const void *out, void *in, size_t bytes);
GANG_CHECK_RESULT enum gang_status gang_barrier(struct gang_comm *group);

// ---- What a link is worth ----------------------------------------------------------------------------------------------

enum { GANG_LINK_MESSAGE_LEAST = 1 << 10, GANG_LINK_MESSAGE_MOST = 64 << 20, GANG_LINK_RATES = 9 };

struct gang_link_profile {
    double rtt_s;       // the least of many
    int streams;        // the fewest of 1, 2, 4, 8 that come within 5 % of the best
    double bytes_per_s; // the best of the rates below
    int count;
    struct gang_link_rate {
        size_t message_bytes;
        double bytes_per_s;   // with several messages on the way
    } rates[GANG_LINK_RATES]; // from 1 KiB to 64 MiB in steps of four; over a slow link only what takes seconds
};

// Serves those who measure the link to here, one after the other, until *stop; `listening` hears once at which address.
GANG_CHECK_RESULT enum gang_status gang_link_serve(const char *listen, const char *secret_path, void (*listening)(const char *address),
                                                   const volatile int *stop);
// Measures the link to who serves at `to`, about `seconds` per figure; what goes there, not what comes back.
GANG_CHECK_RESULT enum gang_status gang_link_measure(const char *to, const char *secret_path, double seconds, struct gang_link_profile *out);

// ---- A relay that gives a link distance, a rate and faults -----------------------------------------------------------
//
// Of connections: it accepts them, connects each to where its route leads, and passes the bytes on late, at a rate, with outages.
// What it delays is data, not the set-up of a connection; a loss or a reordering is nothing it can show. The rate is shared by all
// connections, each way its own. An outage or a cut holds everything back in silence.
//
// Of packets (root): it takes Ethernet frames from one network interface and gives them to another, and back. It loses, doubles
// and reorders; what comes during an outage or a cut, or finds the queue full (a round trip of the rate), is lost. Flipped bits
// are those of TCP's data, behind the back of its checksum: what a checksum finds is a loss.

struct gang_relay;

struct gang_relay_options {
    const char *listen, *to;         // of connections: "host:port"; `to` may be NULL: no route yet
    const char *between[2];          // of packets: interfaces in the caller's network namespace; [0] NULL: of connections
    double rtt_s;                    // half of it each way
    double jitter_s;                 // up to so much more each way, drawn anew every 5 ms; order is kept
    double bytes_per_s;              // 0: as fast as it goes; of packets with their headers
    double outage_s, outage_every_s; // 0: none
    double cut_at_s, heal_at_s;      // after the start; 0: never
    double flips;                    // chance per bit to be flipped
    double loss, doubled, reordered; // chance per packet; what is reordered comes 1 ms later than its neighbours
    uint64_t seed;
};

GANG_CHECK_RESULT enum gang_status gang_relay_open(const struct gang_relay_options *options, struct gang_relay **out); // starts its thread
const char *gang_relay_address(const struct gang_relay *relay); // of the first route; "" when `to` was NULL
// One more route, from a port that the kernel picks on the host of `listen`: `address` is where to connect. Rate, delay and
// faults are those of the whole: a long link between two sites carries the connections of many pairs of ranks.
GANG_CHECK_RESULT enum gang_status gang_relay_add(struct gang_relay *relay, const char *to, char address[GANG_ADDRESS_TEXT]);
void gang_relay_cut(struct gang_relay *relay, bool cut); // now, until healed; at any time, from any thread
void gang_relay_close(struct gang_relay *relay);

struct gang_relay_report {
    uint64_t bytes[2]; // towards `to`, or from between[0], and back; of all routes
    double late_s;     // how much later than meant data left, on average by piece
    double late_most_s;
    uint64_t connections, flipped;
    uint64_t packets, lost, doubled, reordered; // of packets: that came, and what was done to them as the options say
    uint64_t blocked, overflowed;               // lost in an outage or a cut; in the queue
    uint64_t missed;                            // lost because the relay was not fast enough
};
void gang_relay_report(struct gang_relay *relay, struct gang_relay_report *out);

// Two sites on one machine, for tests and demonstrations: network namespaces that only this process has, a packet relay between them.
// They are gone with the process, however it ends. Needs root.
struct gang_sites;
// `options` as for gang_relay_open; `between` is not looked at.
GANG_CHECK_RESULT enum gang_status gang_sites_open(const struct gang_relay_options *options, struct gang_sites **out);
// From now on the calling thread, and those that it starts, are in site 0 or 1; in -1 where gang_sites_open was called. A wire
// belongs to the site in which it is opened, and is to be used by threads of that site.
GANG_CHECK_RESULT enum gang_status gang_sites_enter(const struct gang_sites *sites, int site);
const char *gang_sites_host(int site); // "10.77.0.1", "10.77.0.2"
struct gang_relay *gang_sites_relay(const struct gang_sites *sites);
void gang_sites_close(struct gang_sites *sites);

#endif
