// sim: two ends of a link over a seeded network with a clock of its own. Include after "test.h".
//
// Two kinds of carrier. Ordered, like TCP: bytes arrive in order and in pieces of any length, wait out a cut, and are lost only
// when the connection breaks. Packets: each frame on its own, dropped, doubled, delayed, overtaken, damaged. All that
// happens is a pure function of the seed.
//
// Each end has a clock, which may jump ahead, and may be stopped for a time, as a process or a virtual machine is: what comes
// meanwhile waits.
#ifndef GANG_SIM_H
#define GANG_SIM_H

#include "wire/link.h"

enum { SIM_PIECES = 512, SIM_PIPE_BYTES = 96 << 10, SIM_PACKET_BYTES = 8 << 10 };
static const int64_t SIM_NEVER = INT64_MAX, MS = 1000000, US = 1000;

struct sim_piece {
    int64_t at_ns;
    size_t bytes, done;
    uint8_t *data;
};

// One direction of one stream.
struct sim_pipe {
    struct sim_piece pieces[SIM_PIECES];
    int head, count;
    size_t bytes;
    int64_t last_at_ns;
};

struct sim_plane {
    int64_t delay_ns, jitter_ns;
    double bytes_per_ns;
    int64_t cut_until_ns[2]; // by direction of travel: from side 0, from side 1
};

struct sim_stream {
    struct sim_pipe pipes[2]; // by sending side
    uint32_t epoch;
    int64_t up_at_ns[2], down_at_ns[2]; // when a side learns; SIM_NEVER for nothing pending
};

struct sim {
    uint64_t seed, draws;
    int64_t now_ns;
    bool ordered;
    int planes, streams;
    double drop, twice, flip;         // chances per packet or piece
    double cut, breaks, jumps, stops; // chances per millisecond
    int64_t ahead_ns[2], stopped_until_ns[2];
    struct gang_link *links[2];
    int64_t tick_at_ns[2];
    struct sim_plane plane[WIRE_PLANES_MAX];
    struct sim_stream *stream[WIRE_PLANES_MAX][WIRE_STREAMS_MAX];
    bool dead_forever; // everything is cut for good
    int64_t next_fault_ns;
    uint64_t events;
};

static uint64_t sim_draw(struct sim *sim) { return gang_random_at(sim->seed, 77, sim->draws++); }
static uint64_t sim_below(struct sim *sim, uint64_t n) { return n ? sim_draw(sim) % n : 0; }
static bool sim_chance(struct sim *sim, double p) { return p > 0 && gang_uniform(sim_draw(sim)) < p; }

static int64_t sim_clock(const struct sim *sim, int side) { return sim->now_ns + sim->ahead_ns[side]; }
static bool sim_stopped(const struct sim *sim, int side) { return sim->stopped_until_ns[side] > sim->now_ns; }

static void sim_fail(struct sim *sim, const char *what) {
    fail_msg("%s: seed %llu at %.3f ms, event %llu (GANG_TEST_SEED=%llu repeats it)", what, (unsigned long long)sim->seed, (double)sim->now_ns * 1e-6,
             (unsigned long long)sim->events, (unsigned long long)sim->seed);
}
#define sim_assert(sim, condition)                   \
    do {                                             \
        if (!(condition)) sim_fail(sim, #condition); \
    } while (0)

static void pipe_drop_first(struct sim_pipe *pipe) {
    struct sim_piece *piece = &pipe->pieces[pipe->head];
    pipe->bytes -= piece->bytes;
    free(piece->data);
    pipe->head = (pipe->head + 1) % SIM_PIECES;
    pipe->count--;
}

static void pipe_clear(struct sim_pipe *pipe) {
    while (pipe->count) pipe_drop_first(pipe);
    pipe->last_at_ns = 0;
}

// Inserts by arrival, so that packets overtake; an ordered carrier's times only rise.
static void pipe_put(struct sim_pipe *pipe, int64_t at_ns, uint8_t *data, size_t bytes) {
    int i = pipe->count++;
    for (; i > 0; i--) {
        struct sim_piece *before = &pipe->pieces[(pipe->head + i - 1) % SIM_PIECES];
        if (before->at_ns <= at_ns) break;
        pipe->pieces[(pipe->head + i) % SIM_PIECES] = *before;
    }
    pipe->pieces[(pipe->head + i) % SIM_PIECES] = (struct sim_piece){.at_ns = at_ns, .bytes = bytes, .data = data};
    pipe->bytes += bytes;
}

static bool pipe_full(const struct sim_pipe *pipe) { return pipe->bytes >= SIM_PIPE_BYTES || pipe->count > SIM_PIECES - 2 * WIRE_QUEUE_FRAMES; }

static size_t iov_copy(uint8_t *to, size_t most, const struct iovec *iov, int count, size_t from) {
    size_t done = 0;
    for (int i = 0; i < count && done < most; i++) {
        if (from >= iov[i].iov_len) {
            from -= iov[i].iov_len;
            continue;
        }
        size_t n = iov[i].iov_len - from;
        n = n < most - done ? n : most - done;
        memcpy(to + done, (const uint8_t *)iov[i].iov_base + from, n);
        done += n;
        from = 0;
    }
    return done;
}

static void sim_carry(struct sim *sim, struct sim_plane *plane, struct sim_pipe *pipe, int side, const uint8_t *bytes, size_t count) {
    uint8_t *data = malloc(count);
    memcpy(data, bytes, count);
    if (sim_chance(sim, sim->flip)) data[sim_below(sim, count)] ^= (uint8_t)(1u << sim_below(sim, 8));
    int64_t at = sim->now_ns + plane->delay_ns + (int64_t)sim_below(sim, (uint64_t)plane->jitter_ns + 1),
            takes = (int64_t)((double)count / plane->bytes_per_ns);
    if (sim->ordered && at < pipe->last_at_ns) at = pipe->last_at_ns; // behind what went before
    at += takes;
    if (sim->ordered) {
        pipe->last_at_ns = at;
    } else if (plane->cut_until_ns[side] > sim->now_ns) {
        free(data); // a packet into a cut is gone
        return;
    }
    pipe_put(pipe, at, data, count);
}

static void sim_send_packets(struct sim *sim, struct gang_stream *stream, struct sim_plane *plane, struct sim_pipe *pipe, int side) {
    struct iovec iov[WIRE_IOV_MAX];
    static uint8_t packet[SIM_PACKET_BYTES];
    int count = gang_stream_gather(stream, sim_clock(sim, side), iov);
    size_t at = 0;
    while (count && !pipe_full(pipe)) {
        struct gang_frame frame;
        if (iov_copy(packet, WIRE_HEADER_BYTES, iov, count, at) < WIRE_HEADER_BYTES) break;
        sim_assert(sim, gang_frame_decode(packet, &frame) == GANG_OK);
        size_t bytes = WIRE_HEADER_BYTES + (size_t)frame.payload_bytes;
        sim_assert(sim, iov_copy(packet, bytes, iov, count, at) == bytes);
        at += bytes;
        if (sim_chance(sim, sim->drop)) continue;
        sim_carry(sim, plane, pipe, side, packet, bytes);
        if (sim_chance(sim, sim->twice)) sim_carry(sim, plane, pipe, side, packet, bytes);
    }
    gang_stream_gone(stream, at, sim_clock(sim, side));
}

static void sim_send_bytes(struct sim *sim, struct gang_stream *stream, struct sim_plane *plane, struct sim_pipe *pipe, int side) {
    struct iovec iov[WIRE_IOV_MAX];
    static uint8_t piece[SIM_PACKET_BYTES];
    while (!pipe_full(pipe)) {
        int count = gang_stream_gather(stream, sim_clock(sim, side), iov);
        // No piece takes longer than a millisecond: a slow network carries small packets.
        size_t most = plane->bytes_per_ns * (double)MS < sizeof piece ? (size_t)(plane->bytes_per_ns * (double)MS) : sizeof piece;
        if (sim_chance(sim, 0.2)) most = 1 + sim_below(sim, 100);
        size_t bytes = iov_copy(piece, most, iov, count, 0);
        if (!bytes) return;
        sim_carry(sim, plane, pipe, side, piece, bytes);
        gang_stream_gone(stream, bytes, sim_clock(sim, side));
    }
}

// Lets every stream of a side send what it wants and can.
static void sim_pump(struct sim *sim, int side) {
    if (sim_stopped(sim, side)) {
        sim->tick_at_ns[side] = sim->stopped_until_ns[side];
        return;
    }
    for (int p = 0; p < sim->planes; p++)
        for (int s = 0; s < sim->streams; s++) {
            struct gang_stream *stream = sim->links[side]->streams[p][s];
            struct sim_pipe *pipe = &sim->stream[p][s]->pipes[side];
            if (!stream->up || sim->stream[p][s]->up_at_ns[side] != SIM_NEVER) continue;
            (sim->ordered ? sim_send_bytes : sim_send_packets)(sim, stream, &sim->plane[p], pipe, side);
        }
    int64_t next = gang_link_tick(sim->links[side], sim_clock(sim, side));
    next = next == SIM_NEVER ? next : next - sim->ahead_ns[side];
    sim->tick_at_ns[side] = next > sim->now_ns ? next : sim->now_ns + US;
}

// The connection of a stream is gone; who brings it back will try until the plane is whole.
static void sim_break(struct sim *sim, int plane, int index) {
    struct sim_stream *stream = sim->stream[plane][index];
    // What was under way on a connection dies with it; packets still arrive, late.
    for (int side = 0; side < 2 && sim->ordered; side++) pipe_clear(&stream->pipes[side]);
    stream->epoch++;
    int64_t back = sim->now_ns + MS + (int64_t)sim_below(sim, (uint64_t)(20 * MS));
    for (int side = 0; side < 2; side++) {
        // Through a cut nobody hears of it.
        int64_t told = sim->now_ns + (int64_t)sim_below(sim, (uint64_t)sim->plane[plane].delay_ns + 1);
        int64_t cut = sim->plane[plane].cut_until_ns[0] > sim->plane[plane].cut_until_ns[1] ? sim->plane[plane].cut_until_ns[0]
                                                                                            : sim->plane[plane].cut_until_ns[1];
        stream->down_at_ns[side] = told > cut ? told : cut;
        stream->up_at_ns[side] = back + (int64_t)sim_below(sim, (uint64_t)sim->plane[plane].delay_ns + 1);
    }
}

struct sim_side {
    struct sim *sim;
    int side;
};

static void sim_on_reset(void *context, int plane, int stream) {
    struct sim_side *me = context;
    // Already broken from this or the other side: its return is on the way.
    if (me->sim->stream[plane][stream]->up_at_ns[me->side] == SIM_NEVER) sim_break(me->sim, plane, stream);
}

static bool sim_cut(const struct sim *sim, int plane, int side) { return sim->dead_forever || sim->plane[plane].cut_until_ns[side] > sim->now_ns; }

static void sim_connect(struct sim *sim, int plane, int index, int side) {
    struct sim_stream *stream = sim->stream[plane][index];
    if (sim_stopped(sim, side)) return;
    if (stream->down_at_ns[side] <= sim->now_ns) {
        stream->down_at_ns[side] = SIM_NEVER;
        gang_stream_down(sim->links[side]->streams[plane][index], sim_clock(sim, side));
    }
    if (stream->up_at_ns[side] > sim->now_ns) return;
    if (sim_cut(sim, plane, 0) || sim_cut(sim, plane, 1) || sim_stopped(sim, !side)) { // nobody answers
        stream->up_at_ns[side] = sim->now_ns + 5 * MS;
        return;
    }
    stream->up_at_ns[side] = stream->down_at_ns[side] = SIM_NEVER;
    gang_stream_up(sim->links[side]->streams[plane][index], stream->epoch, sim_clock(sim, side));
}

static void sim_damaged(struct sim *sim, int plane, int index, int side) {
    gang_stream_down(sim->links[side]->streams[plane][index], sim_clock(sim, side));
    sim_break(sim, plane, index);
}

static void sim_deliver_bytes(struct sim *sim, int p, int s, int side, struct sim_piece *piece) {
    struct gang_stream *stream = sim->links[side]->streams[p][s];
    while (piece->done < piece->bytes) {
        struct iovec iov[2];
        int count = gang_stream_space(stream, iov);
        size_t n = 0, left = piece->bytes - piece->done;
        for (int i = 0; i < count && n < left; i++) {
            size_t part = iov[i].iov_len < left - n ? iov[i].iov_len : left - n;
            memcpy(iov[i].iov_base, piece->data + piece->done + n, part);
            n += part;
        }
        piece->done += n;
        uint32_t epoch = sim->stream[p][s]->epoch;
        bool sound = gang_stream_came(stream, n, sim_clock(sim, side));
        if (sim->stream[p][s]->epoch != epoch) return; // broken meanwhile: the piece is gone
        if (!sound) {
            sim_damaged(sim, p, s, side);
            return;
        }
        if (!stream->up) return;
    }
}

// A pipe's first piece has arrived at `side`.
static void sim_arrive(struct sim *sim, int p, int s, int side) {
    struct sim_pipe *pipe = &sim->stream[p][s]->pipes[!side];
    struct sim_piece *piece = &pipe->pieces[pipe->head];
    struct gang_stream *stream = sim->links[side]->streams[p][s];
    struct gang_frame frame;
    uint32_t epoch = sim->stream[p][s]->epoch;
    // A network card drops a packet whose header is damaged.
    bool readable = stream->up && (sim->ordered || !gang_frame_decode(piece->data, &frame));
    if (readable) sim_deliver_bytes(sim, p, s, side, piece);
    if (sim->stream[p][s]->epoch == epoch && pipe->count) pipe_drop_first(pipe);
}

static int64_t sim_least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t sim_most(int64_t a, int64_t b) { return a > b ? a : b; }

// When the first piece of a pipe can be taken; a cut, or a side that is stopped or not up yet, holds it back.
static int64_t sim_ready(const struct sim *sim, int p, int s, int side) {
    const struct sim_stream *stream = sim->stream[p][s];
    const struct sim_pipe *pipe = &stream->pipes[!side];
    if (!pipe->count || sim->dead_forever) return SIM_NEVER;
    int64_t at = pipe->pieces[pipe->head].at_ns;
    if (stream->up_at_ns[side] != SIM_NEVER) return SIM_NEVER;
    at = sim_most(at, sim->stopped_until_ns[side]);
    return sim->ordered ? sim_most(at, sim->plane[p].cut_until_ns[!side]) : at;
}

static bool sim_any_cut(const struct sim *sim) {
    for (int p = 0; p < sim->planes; p++)
        if (sim->plane[p].cut_until_ns[0] > sim->now_ns || sim->plane[p].cut_until_ns[1] > sim->now_ns) return true;
    return false;
}

// A clock may jump as far as it likes; who stops does so for less than what the other side takes for death, and then not again
// before it could be heard.
static void sim_disturb(struct sim *sim) {
    if (sim_chance(sim, sim->jumps)) sim->ahead_ns[sim_below(sim, 2)] += (int64_t)sim_below(sim, (uint64_t)(10000 * MS));
    if (!sim_chance(sim, sim->stops) || sim_any_cut(sim)) return;
    for (int side = 0; side < 2; side++)
        if (sim->stopped_until_ns[side] + 300 * MS > sim->now_ns && sim->stopped_until_ns[side]) return;
    sim->stopped_until_ns[sim_below(sim, 2)] = sim->now_ns + (int64_t)sim_below(sim, (uint64_t)(600 * MS));
}

// Random faults: a cut of one plane, one way or both, or a broken connection. All planes together are never cut for
// long, unless that is the point.
static void sim_fault(struct sim *sim) {
    sim->next_fault_ns = sim->now_ns + MS;
    sim_disturb(sim);
    if (sim_chance(sim, sim->breaks)) {
        int p = (int)sim_below(sim, (uint64_t)sim->planes), s = (int)sim_below(sim, (uint64_t)sim->streams);
        if (sim->stream[p][s]->up_at_ns[0] == SIM_NEVER && sim->stream[p][s]->up_at_ns[1] == SIM_NEVER) sim_break(sim, p, s);
    }
    if (!sim_chance(sim, sim->cut)) return;
    int p = (int)sim_below(sim, (uint64_t)sim->planes), others = 0;
    for (int q = 0; q < sim->planes; q++)
        others += q != p && sim->plane[q].cut_until_ns[0] <= sim->now_ns && sim->plane[q].cut_until_ns[1] <= sim->now_ns;
    if (!others && (sim_any_cut(sim) || sim_stopped(sim, 0) || sim_stopped(sim, 1))) return;
    int64_t until = sim->now_ns + (int64_t)sim_below(sim, (uint64_t)((others ? 400 : 120) * MS));
    unsigned ways = 1 + (unsigned)sim_below(sim, 3);
    for (int side = 0; side < 2; side++)
        if (ways >> side & 1) sim->plane[p].cut_until_ns[side] = until;
}

// Goes to the next thing that happens, at most to `limit_ns`, and does it. Which streams act first is drawn.
static void sim_step(struct sim *sim, int64_t limit_ns) {
    int64_t next = sim_least(limit_ns, sim_least(sim->tick_at_ns[0], sim->tick_at_ns[1]));
    next = sim_least(next, sim->next_fault_ns);
    for (int p = 0; p < sim->planes; p++)
        for (int s = 0; s < sim->streams; s++)
            for (int side = 0; side < 2; side++) {
                const struct sim_stream *stream = sim->stream[p][s];
                int64_t changes = sim_least(stream->up_at_ns[side], stream->down_at_ns[side]);
                next = sim_least(next, sim_least(sim_ready(sim, p, s, side), sim_most(changes, sim->stopped_until_ns[side])));
            }
    if (next > sim->now_ns) sim->now_ns = next;
    sim->events++;
    if (sim->next_fault_ns <= sim->now_ns) sim_fault(sim);
    for (int p = 0; p < sim->planes; p++)
        for (int s = 0; s < sim->streams; s++)
            for (int side = 0; side < 2; side++) {
                sim_connect(sim, p, s, side);
                if (sim_ready(sim, p, s, side) <= sim->now_ns) sim_arrive(sim, p, s, side);
            }
    sim_pump(sim, 0);
    sim_pump(sim, 1);
}

static void sim_open(struct sim *sim, const struct gang_link_config *config, const struct gang_link_hooks hooks[2]) {
    sim->planes = config->planes;
    sim->streams = config->streams;
    sim->ordered = config->ordered;
    for (int side = 0; side < 2; side++) {
        struct gang_link_config mine = *config;
        mine.rank = side;
        mine.peer = !side;
        sim->links[side] = gang_link_new(&mine, &hooks[side], sim_clock(sim, side));
    }
    for (int p = 0; p < sim->planes; p++)
        for (int s = 0; s < sim->streams; s++) {
            struct sim_stream *stream = sim->stream[p][s] = calloc(1, sizeof *stream);
            for (int side = 0; side < 2; side++) {
                stream->up_at_ns[side] = sim->now_ns + (int64_t)sim_below(sim, (uint64_t)(5 * MS));
                stream->down_at_ns[side] = SIM_NEVER;
            }
            stream->epoch = 1;
        }
}

static void sim_close(struct sim *sim) {
    for (int p = 0; p < sim->planes; p++)
        for (int s = 0; s < sim->streams; s++) {
            pipe_clear(&sim->stream[p][s]->pipes[0]);
            pipe_clear(&sim->stream[p][s]->pipes[1]);
            free(sim->stream[p][s]);
        }
    gang_link_free(sim->links[0]);
    gang_link_free(sim->links[1]);
}

#endif
