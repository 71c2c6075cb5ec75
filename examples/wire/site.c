// A rank at one of two sites: joins the other over a link and sums a buffer with it again and again. Run by the scripts beside it.
//
//     site 1 LISTEN SECRET          waits for rank 0; says first where it listens
//     site 0 LISTEN SECRET PEER     connects to PEER: rank 1, or a relay on the way there
#include "wire/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 40, TAG = 1, COUNT = 1 << 20 }; // 4 MiB of f32

static enum gang_status join(struct gang_wire *wire, int rank, const char *peer, struct gang_wire_link **link) {
    // Rank 0 says by which planes (independent paths, such as two cards) it reaches the other: one here, with two TCP streams.
    const struct gang_wire_plane plane = {.remote = peer};
    return gang_wire_join(wire, &(struct gang_wire_link_options){.peer = !rank, .planes = 1, .streams = 2, .plane = peer ? &plane : NULL}, link);
}

// The ranks are 0 and 1, so the sum of what they put in is known.
static enum gang_status sum(struct gang_comm *group, int rank, float *data) {
    double start = gang_seconds(), before = start;
    for (int round = 1; round <= ROUNDS; round++) {
        for (int i = 0; i < COUNT; i++) data[i] = (float)(rank ? 2 * i : i + round);
        enum gang_status status = gang_all_reduce(group, data, COUNT, GANG_ELEMENT_F32);
        if (status) return status;
        for (int i = 0; i < COUNT; i++)
            if (data[i] != (float)(2 * i) + (float)(i + round)) return gang_fail(GANG_ERR_PEER, "round %d: element %d is wrong", round, i);
        double now = gang_seconds();
        if (!rank) printf("%6.2f s: sum %2d of 4 MiB took %5.0f ms\n", now - start, round, 1e3 * (now - before));
        before = now;
    }
    return GANG_OK;
}

static enum gang_status run(struct gang_wire *wire, int rank, const char *peer) {
    struct gang_wire_link *links[2] = {NULL, NULL};
    struct gang_comm *group = NULL;
    float *data = calloc(COUNT, sizeof *data);
    enum gang_status status = data ? join(wire, rank, peer, &links[!rank]) : gang_fail(GANG_ERR_MEMORY, "4 MiB do not fit");
    if (!status) status = gang_comm_new(wire, links, 2, rank, TAG, &group);
    if (!status) status = sum(group, rank, data);
    if (!status) status = gang_barrier(group); // both have the last sum before one leaves
    gang_comm_free(group);
    free(data);
    return status;
}

int main(int argc, char **argv) {
    struct gang_wire *wire = NULL;
    if (argc < 4 || (strcmp(argv[1], "0") != 0 && strcmp(argv[1], "1") != 0) || (argc == 5) != (argv[1][0] == '0')) {
        fprintf(stderr, "usage: site 1 LISTEN SECRET, or site 0 LISTEN SECRET PEER\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    // A link is lost after one second of silence unless something else is asked for: the cut that is shown here is longer.
    const struct gang_wire_options options = {
        .rank = argv[1][0] - '0', .listen = argv[2], .secret_path = argv[3], .dead_ms = 20000, .connect_ms = 20000};
    enum gang_status status = gang_wire_open(&options, &wire);
    if (!status) {
        if (options.rank) printf("%s\n", gang_wire_address(wire));
        status = run(wire, options.rank, argv[4]);
        gang_wire_close(wire);
    }
    if (status) fprintf(stderr, "site %d: %s\n", options.rank, gang_error());
    return status ? 1 : 0;
}
