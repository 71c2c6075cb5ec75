// pair: two wires in one process, joined by a link; and bytes that can be checked. Include after "test.h".
#ifndef GANG_TEST_PAIR_H
#define GANG_TEST_PAIR_H

#include "wire/wire.h"

struct pair {
    struct gang_wire *wires[2];
    struct gang_wire_link *links[2]; // 0 connects
};

static inline struct gang_wire *open_wire(int rank) {
    struct gang_wire *wire;
    assert_ok(gang_wire_open(&(struct gang_wire_options){.rank = rank, .listen = "127.0.0.1:0", .cluster = 7}, &wire));
    return wire;
}

static inline struct gang_wire_link *join_to(struct gang_wire *wire, int peer, const char *const *addresses, int planes, int streams) {
    struct gang_wire_plane plane[GANG_WIRE_PLANES];
    for (int p = 0; addresses && p < planes; p++) plane[p] = (struct gang_wire_plane){.remote = addresses[p]};
    struct gang_wire_link *link;
    assert_ok(gang_wire_join(
        wire, &(struct gang_wire_link_options){.peer = peer, .planes = planes, .streams = streams, .plane = addresses ? plane : NULL}, &link));
    return link;
}

static inline struct gang_wire_link *join_directly(struct gang_wire *wire, int peer, const char *address, int planes, int streams) {
    const char *addresses[GANG_WIRE_PLANES];
    for (int p = 0; p < planes; p++) addresses[p] = address;
    return join_to(wire, peer, addresses, planes, streams);
}

static inline struct pair open_pair(int planes, int streams) {
    struct pair pair;
    for (int i = 0; i < 2; i++) pair.wires[i] = open_wire(i);
    pair.links[1] = join_to(pair.wires[1], 0, NULL, planes, streams);
    pair.links[0] = join_directly(pair.wires[0], 1, gang_wire_address(pair.wires[1]), planes, streams);
    return pair;
}

static inline void close_pair(struct pair *pair) {
    gang_wire_close(pair->wires[0]);
    gang_wire_close(pair->wires[1]);
}

static inline void fill(uint8_t *data, size_t bytes, uint64_t seed) {
    uint64_t x = gang_random_at(seed, 9, 9) | 1;
    for (size_t i = 0; i < bytes; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(data + i, &x, bytes - i < 8 ? bytes - i : 8);
    }
}

// A message from link 0 to link 1.
struct transfer {
    uint8_t *out, *in;
    size_t bytes;
    struct gang_wire_op send, recv;
};

static inline void start_transfer(struct transfer *t, struct pair *pair, size_t bytes, uint64_t seed) {
    t->bytes = bytes;
    t->out = malloc(bytes);
    t->in = calloc(1, bytes);
    fill(t->out, bytes, seed);
    assert_ok(gang_wire_recv(pair->links[1], 1, t->in, bytes, &t->recv));
    assert_ok(gang_wire_send(pair->links[0], 1, 1, t->out, bytes, &t->send));
}

static inline void end_transfer(struct transfer *t) {
    assert_ok(gang_wire_wait(&t->recv));
    assert_ok(gang_wire_wait(&t->send));
    assert_true(memcmp(t->out, t->in, t->bytes) == 0);
    free(t->out);
    free(t->in);
}

static inline double round_trip(struct pair *pair) {
    uint8_t byte[2];
    struct gang_wire_op out, there, back, in;
    assert_ok(gang_wire_recv(pair->links[1], 8, &byte[0], 1, &there));
    assert_ok(gang_wire_recv(pair->links[0], 9, &byte[1], 1, &in));
    double start = gang_seconds();
    assert_ok(gang_wire_send(pair->links[0], 8, 0, "x", 1, &out));
    assert_ok(gang_wire_wait(&there));
    assert_ok(gang_wire_send(pair->links[1], 9, 0, "y", 1, &back));
    assert_ok(gang_wire_wait(&in));
    return gang_seconds() - start;
}

#endif
