// The protocol under a seeded network: every byte once and intact, whatever is dropped, doubled, damaged, cut and healed.
//
// GANG_TEST_SEED=n runs that one seed; GANG_TEST_RUNS=n runs n of them, from 1.
#include "../test.h"

#include "sim.h"

enum { TAGS = 3, MESSAGES = 12, OPS = TAGS * MESSAGES, LONG_BYTES = 24 << 10, TEST_CHUNK_LOG2 = 11, TEST_EAGER = 256, RUNS = 10000 };

struct app_op {
    struct app *app;
    bool receive, started, ended;
    enum gang_status status;
    int side, tag, number;
    size_t bytes;
    int64_t start_ns, cancel_ns; // cancel_ns 0: never
    uint8_t *data;
};

struct app {
    struct sim *sim;
    struct app_op ops[2][2][TAGS][MESSAGES]; // by sending side; receive or not
    int ended, all, deaths[2];
    bool cancels;
    enum gang_link_state state[2];
};

static struct app *current_app;
static struct sim_side sides[2];

static void pattern(uint8_t *to, size_t bytes, uint64_t a, uint64_t b) {
    uint64_t x = gang_random_at(a, b, 5) | 1;
    for (size_t i = 0; i < bytes; i += 8) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        memcpy(to + i, &x, bytes - i < 8 ? bytes - i : 8);
    }
}

static uint64_t name_of(const struct app_op *op) { return (uint64_t)(op->side * TAGS + op->tag) * MESSAGES + (uint64_t)op->number; }

static void on_complete(void *context, void *user, enum gang_status status) {
    struct app_op *op = user;
    (void)context;
    struct sim *sim = op->app->sim;
    sim_assert(sim, op->started && !op->ended);
    op->ended = true;
    op->status = status;
    op->app->ended++;
    if (status) {
        sim_assert(sim, status == GANG_ERR_PEER && (op->cancel_ns || sim->dead_forever));
    } else if (op->receive) {
        static uint8_t expected[LONG_BYTES];
        pattern(expected, op->bytes, sim->seed, name_of(op));
        sim_assert(sim, !op->bytes || !memcmp(expected, op->data, op->bytes));
    }
    // From here on the buffer is somebody else's.
    if (op->bytes) memset(op->data, 0xee, op->bytes);
    free(op->data);
    op->data = NULL;
}

static void on_state(void *context, enum gang_link_state state) {
    struct sim_side *me = context;
    current_app->state[me->side] = state;
    if (state == LINK_DEAD) current_app->deaths[me->side]++;
}

// ---- Invariants (numbered as in link.c) -----------------------------------------------------------------------------

static void check_flights(struct sim *sim, struct gang_link *link, uint32_t in_flight[OPS]) {
    for (int p = 0; p < link->config.planes; p++) {
        unsigned plane_count = 0;
        for (int s = 0; s < link->config.streams; s++) {
            struct gang_stream *stream = link->streams[p][s];
            unsigned count = 0;
            sim_assert(sim, stream->next_number - stream->floor <= WIRE_PN_WINDOW && stream->queue_count <= WIRE_QUEUE_FRAMES);
            for (uint64_t n = stream->floor; n < stream->next_number; n++) {
                struct gang_flight *f = &stream->flights[n % WIRE_PN_WINDOW];
                if (!f->kind) continue;
                count++;
                if (f->kind != WIRE_CHUNK && f->kind != WIRE_EAGER) continue;
                sim_assert(sim, f->index < OPS);
                struct gang_send *op = &link->sends[f->index];
                sim_assert(sim, op->busy && op->generation == f->generation && f->chunk < op->fresh && !gang_chunks_has(&op->lost, f->chunk));
                in_flight[f->index]++;
            }
            sim_assert(sim, count == stream->flight_count && (stream->up || !count));
            plane_count += count;
        }
        sim_assert(sim, plane_count == link->planes[p].flight_count);
    }
}

static void check_link(struct sim *sim, struct gang_link *link) {
    uint32_t in_flight[OPS] = {0}; // freed operations are taken again first, so that none beyond is ever used
    check_flights(sim, link, in_flight);
    uint64_t backlog = 0;
    for (int i = 0; i < OPS; i++) {
        struct gang_send *op = &link->sends[i];
        if (!op->busy) {
            sim_assert(sim, !in_flight[i]);
            continue;
        }
        sim_assert(sim, op->fresh == in_flight[i] + op->lost.count + op->acked && op->acked < op->chunks);
        sim_assert(sim, op->ready || (!op->lost.count && (op->fresh == op->chunks || !op->fresh)));
        if (op->ready) backlog++;
    }
    sim_assert(sim, backlog || !link->backlog);
    sim_assert(sim, link->credit_used <= link->credit_limit && link->credited_in <= link->credit_told);
    sim_assert(sim, link->state != LINK_DEAD || (link->free_send_count == WIRE_OPS_MAX && link->free_recv_count == WIRE_OPS_MAX));
    int claims = 0;
    struct gang_landing *seen[WIRE_PLANES_MAX * WIRE_STREAMS_MAX];
    for (int p = 0; p < link->config.planes; p++)
        for (int s = 0; s < link->config.streams; s++) {
            struct gang_landing *landing = &link->streams[p][s]->landing;
            if (landing->mode != LANDING_DIRECT) continue;
            sim_assert(sim, landing->recv->busy && !gang_chunks_has(&landing->recv->done, landing->chunk));
            for (int i = 0; i < claims; i++) sim_assert(sim, seen[i]->recv != landing->recv || seen[i]->chunk != landing->chunk);
            seen[claims++] = landing;
        }
}

// ---- The application -----------------------------------------------------------------------------------------------

static size_t draw_bytes(struct sim *sim) {
    switch (sim_below(sim, 4)) {
    case 0:
        return sim_below(sim, TEST_EAGER + 1);
    case 1:
        return TEST_EAGER + 1 + sim_below(sim, 2000);
    case 2:
        return (1 + sim_below(sim, 4)) << TEST_CHUNK_LOG2;
    default:
        return sim_below(sim, LONG_BYTES);
    }
}

static void app_open(struct app *app, struct sim *sim, int messages) {
    app->sim = sim;
    int64_t spread_ns = (int64_t)sim_below(sim, 2) ? 2 * MS : 200 * MS;
    for (int side = 0; side < 2; side++)
        for (int tag = 0; tag < TAGS; tag++)
            for (int i = 0; i < messages; i++) {
                size_t bytes = draw_bytes(sim);
                bool cancel = app->cancels && sim_chance(sim, 0.2);
                for (int receive = 0; receive < 2; receive++) {
                    struct app_op *op = &app->ops[side][receive][tag][i];
                    *op = (struct app_op){.app = app, .receive = receive, .side = side, .tag = tag, .number = i, .bytes = bytes};
                    op->start_ns = (int64_t)sim_below(sim, (uint64_t)spread_ns);
                    // Order within a channel is that of the calls.
                    if (i && op->start_ns < app->ops[side][receive][tag][i - 1].start_ns) op->start_ns = app->ops[side][receive][tag][i - 1].start_ns;
                    if (cancel) op->cancel_ns = op->start_ns + (int64_t)sim_below(sim, (uint64_t)(20 * MS));
                    app->all++;
                }
            }
}

static void app_start(struct app *app, struct app_op *op) {
    struct sim *sim = app->sim;
    int side = op->receive ? !op->side : op->side;
    struct gang_link *link = sim->links[side];
    op->started = true;
    op->data = malloc(op->bytes + 1);
    enum gang_status status;
    if (op->receive) {
        memset(op->data, 0xcc, op->bytes + 1);
        status = gang_link_recv(link, sim_clock(sim, side), (uint32_t)op->tag, op->data, op->bytes, op);
    } else {
        pattern(op->data, op->bytes, sim->seed, name_of(op));
        status = gang_link_send(link, sim_clock(sim, side), (uint32_t)op->tag, op->tag % WIRE_PRIORITIES, op->data, op->bytes, op);
    }
    if (!status) return;
    sim_assert(sim, status == GANG_ERR_PEER && link->state == LINK_DEAD);
    op->ended = true;
    op->app->ended++;
    free(op->data);
}

// Both halves of some messages are called off, each at its own time; a send may be done by then.
static void app_cancel(struct app *app, struct app_op *op) {
    if (!op->cancel_ns || op->ended || op->cancel_ns > app->sim->now_ns) return;
    gang_link_cancel(app->sim->links[op->receive ? !op->side : op->side], op);
    sim_assert(app->sim, op->ended);
}

// Starts what is due; returns when the next is.
static int64_t app_run(struct app *app, int messages) {
    int64_t next = SIM_NEVER;
    for (int side = 0; side < 2; side++)
        for (int receive = 0; receive < 2; receive++)
            for (int tag = 0; tag < TAGS; tag++)
                for (int i = 0; i < messages; i++) {
                    struct app_op *op = &app->ops[side][receive][tag][i];
                    if (op->started) {
                        app_cancel(app, op);
                        if (op->cancel_ns && !op->ended) next = sim_least(next, op->cancel_ns);
                        continue;
                    }
                    if (op->start_ns > app->sim->now_ns) {
                        next = sim_least(next, op->start_ns);
                        break;
                    }
                    app_start(app, op);
                    if (op->cancel_ns && !op->ended) next = sim_least(next, op->cancel_ns);
                }
    return next;
}

// Returns whether nothing at all goes wrong on it.
static bool draw_network(struct sim *sim) {
    double rough = (double)sim_below(sim, 3) * 0.5;
    sim->drop = sim->ordered ? 0 : 0.2 * rough * gang_uniform(sim_draw(sim));
    sim->twice = sim->ordered ? 0 : 0.1 * rough;
    sim->flip = (sim->ordered ? 0.01 : 0.1) * rough * gang_uniform(sim_draw(sim));
    sim->cut = 0.04 * rough * gang_uniform(sim_draw(sim));
    sim->breaks = 0.05 * rough * gang_uniform(sim_draw(sim));
    for (int p = 0; p < WIRE_PLANES_MAX; p++)
        sim->plane[p] = (struct sim_plane){.delay_ns = (int64_t)sim_below(sim, 3) * 2500 * US + 20 * US,
                                           .jitter_ns = (int64_t)sim_below(sim, sim->ordered ? 200 : 2000) * US,
                                           .bytes_per_ns = 0.001 * (double)(1 << sim_below(sim, 10))};
    if (sim_chance(sim, 0.3)) sim->jumps = 0.02 * gang_uniform(sim_draw(sim));
    if (sim_chance(sim, 0.3)) sim->stops = 0.02 * gang_uniform(sim_draw(sim));
    return rough == 0 && !sim->jumps && !sim->stops;
}

// The network heals; what is left must settle, and both ends agree on the credit.
static void drain(struct sim *sim) {
    sim->drop = sim->twice = sim->flip = sim->cut = sim->breaks = sim->jumps = sim->stops = 0;
    const int64_t limit_ns = sim->now_ns + 5000 * MS;
    struct gang_link *a = sim->links[0], *b = sim->links[1];
    while (!gang_link_flushed(a) || !gang_link_flushed(b) || a->credit_limit != b->credit_told || b->credit_limit != a->credit_told) {
        sim_step(sim, limit_ns);
        sim_assert(sim, sim->now_ns < limit_ns);
    }
    if (current_app->cancels) return; // what was called off keeps its credit
    sim_assert(sim, a->credited_done == a->credited_in && a->credited_in == b->credit_used);
    sim_assert(sim, b->credited_done == b->credited_in && b->credited_in == a->credit_used);
}

static uint64_t bytes_received(const struct sim *sim) {
    uint64_t bytes = 0;
    for (int i = 0; i < 2 * sim->planes * sim->streams; i++)
        bytes += sim->links[i % 2]->streams[i / 2 / sim->streams][i / 2 % sim->streams]->rx_bytes;
    return bytes;
}

// A link at rest says a word now and then, no more.
static void check_rest(struct sim *sim) {
    uint64_t before = bytes_received(sim);
    for (int64_t end_ns = sim->now_ns + 1000 * MS; sim->now_ns < end_ns;) sim_step(sim, end_ns);
    sim_assert(sim, bytes_received(sim) - before < (uint64_t)sim->planes * 2 * 12 * 4 * WIRE_HEADER_BYTES);
}

static void run_seed(uint64_t seed) {
    struct sim sim = {.seed = seed};
    static struct app app;
    app = (struct app){0};
    current_app = &app;
    struct gang_link_config config = gang_link_defaults;
    config.planes = 1 + (int)sim_below(&sim, 3);
    config.streams = 1 + (int)sim_below(&sim, 3);
    config.ordered = sim.ordered = sim_below(&sim, 3) != 0;
    config.chunk_log2 = TEST_CHUNK_LOG2;
    config.eager_bytes = TEST_EAGER;
    config.eager_slots = 1 + (int)sim_below(&sim, 8);
    bool calm = draw_network(&sim);
    struct gang_link_hooks hooks[2];
    for (int side = 0; side < 2; side++) {
        sides[side] = (struct sim_side){&sim, side};
        hooks[side] = (struct gang_link_hooks){&sides[side], on_complete, sim_on_reset, on_state};
    }
    sim_open(&sim, &config, hooks);
    int messages = 1 + (int)sim_below(&sim, MESSAGES);
    app.cancels = sim_chance(&sim, 0.2);
    app_open(&app, &sim, messages);
    int64_t end_ns = sim_chance(&sim, 0.05) ? (int64_t)sim_below(&sim, (uint64_t)(100 * MS)) + 10 * MS : SIM_NEVER;
    const int64_t limit_ns = 60000 * MS;
    int64_t next = 0;
    while (app.ended < app.all || (sim.dead_forever && (app.deaths[0] == 0 || app.deaths[1] == 0))) {
        if (sim.now_ns >= next) next = app_run(&app, messages);
        sim_step(&sim, sim_least(sim_least(next, end_ns), limit_ns));
        if (sim.now_ns >= end_ns) {
            sim.dead_forever = true;
            end_ns = SIM_NEVER;
        }
        if (sim.events % 8 == 0) {
            check_link(&sim, sim.links[0]);
            check_link(&sim, sim.links[1]);
        }
        sim_assert(&sim, sim.now_ns < limit_ns);                                  // no deadlock
        sim_assert(&sim, sim.dead_forever || (!app.deaths[0] && !app.deaths[1])); // no false death
    }
    sim_assert(&sim, app.deaths[0] == sim.dead_forever && app.deaths[1] == sim.dead_forever);
    if (!sim.dead_forever) drain(&sim);
    if (calm && !sim.dead_forever && seed % 8 == 0) check_rest(&sim);
    // On a sound network no plane is ever given up.
    for (int p = 0; p < sim.planes && calm && !sim.dead_forever; p++)
        sim_assert(&sim, !sim.links[0]->planes[p].losses && !sim.links[1]->planes[p].losses);
    sim_close(&sim);
}

static void test_random_networks(void **state) {
    (void)state;
    const char *seed = getenv("GANG_TEST_SEED"), *runs_text = getenv("GANG_TEST_RUNS");
    int64_t runs = getenv("GANG_SANITIZED") ? RUNS / 10 : RUNS;
    if (runs_text) assert_ok(gang_parse_int("GANG_TEST_RUNS", runs_text, 1, 1000000000, &runs));
    if (seed) {
        run_seed(test_seed());
        return;
    }
    for (int64_t i = 1; i <= runs; i++) run_seed((uint64_t)i);
    print_message("%lld seeds\n", (long long)runs);
}

static void no_completion(void *context, void *user, enum gang_status status) { (void)context, (void)user, (void)status; }
static void no_reset(void *context, int plane, int stream) { (void)context, (void)plane, (void)stream; }
static void note_state(void *context, enum gang_link_state state) { *(enum gang_link_state *)context = state; }

// A machine so busy that every wake-up comes late: what was slept through does not count as the peer's silence, the rest does.
static void test_who_wakes_late_still_finds_the_dead(void **state) {
    (void)state;
    enum gang_link_state now_is = LINK_CONNECTING;
    struct gang_link_config config = gang_link_defaults;
    config.peer = config.planes = config.streams = 1;
    int64_t now = 1000000000, limit = now + 20 * config.dead_ns;
    struct gang_link *link = gang_link_new(&config, &(struct gang_link_hooks){&now_is, no_completion, no_reset, note_state}, now);
    struct gang_stream *stream = link->streams[0][0];
    gang_stream_up(stream, 1, now);
    while (now_is != LINK_DEAD && now < limit) {
        int64_t next = gang_link_tick(link, now);
        struct iovec iov[WIRE_IOV_MAX];
        size_t bytes = 0;
        for (int i = 0, count = stream->up ? gang_stream_gather(stream, now, iov) : 0; i < count; i++) bytes += iov[i].iov_len;
        if (bytes) gang_stream_gone(stream, bytes, now);
        if (now_is != LINK_DEAD) now = (next > now ? next : now) + 2 * config.heartbeat_ns;
    }
    assert_int_equal(now_is, LINK_DEAD);
    gang_link_free(link);
}

// Nor does it count as time in which the peer could have connected.
static void test_who_wakes_late_still_waits_for_a_connection(void **state) {
    (void)state;
    enum gang_link_state now_is = LINK_CONNECTING;
    struct gang_link_config config = gang_link_defaults;
    config.peer = config.planes = config.streams = 1;
    int64_t start = 1000000000, now = start, slept = 6 * config.connect_ns;
    struct gang_link *link = gang_link_new(&config, &(struct gang_link_hooks){&now_is, no_completion, no_reset, note_state}, now);
    gang_link_tick(link, now);
    for (now += slept; now_is != LINK_DEAD; now += config.heartbeat_ns) gang_link_tick(link, now);
    int64_t waited = now - start - slept;
    assert_true(waited > config.connect_ns * 9 / 10 && waited <= config.connect_ns + 2 * config.heartbeat_ns);
    gang_link_free(link);
}

static void count_completion(void *context, void *user, enum gang_status status) {
    (void)context;
    *(int *)user += status == GANG_OK;
}
static void ignore_state(void *context, enum gang_link_state state) { (void)context, (void)state; }

// Moves a message from side 0 to side 1 and says how long it took.
static int64_t carry(struct sim *sim, const uint8_t *from, uint8_t *to, size_t bytes) {
    int64_t start_ns = sim->now_ns;
    int completed = 0;
    assert_ok(gang_link_recv(sim->links[1], sim_clock(sim, 1), 1, to, bytes, &completed));
    assert_ok(gang_link_send(sim->links[0], sim_clock(sim, 0), 1, 0, from, bytes, &completed));
    while (completed < 2) {
        sim_step(sim, SIM_NEVER);
        sim_assert(sim, sim->now_ns - start_ns < 10000 * MS);
    }
    return sim->now_ns - start_ns;
}

static void run_until(struct sim *sim, int64_t end_ns) {
    while (sim->now_ns < end_ns) sim_step(sim, end_ns);
}

// A pause of either side, on an idle link and in the middle of a message, costs no plane, and the next silence is noticed as
// soon as any.
static void test_a_pause_is_not_distance(void **state) {
    (void)state;
    enum { BYTES = 4 << 20 };
    static uint8_t from[BYTES], to[BYTES];
    struct sim sim = {.seed = 1, .ordered = true, .next_fault_ns = SIM_NEVER};
    struct gang_link_config config = gang_link_defaults;
    config.planes = 2;
    config.streams = 1;
    struct gang_link_hooks hooks[2];
    for (int side = 0; side < 2; side++) {
        sim.plane[side] = (struct sim_plane){.delay_ns = 2500 * US, .bytes_per_ns = 0.1};
        sides[side] = (struct sim_side){&sim, side};
        hooks[side] = (struct gang_link_hooks){&sides[side], count_completion, sim_on_reset, ignore_state};
    }
    sim_open(&sim, &config, hooks);
    for (int i = 0; i < 4; i++) {
        carry(&sim, from, to, BYTES);
        run_until(&sim, sim.now_ns + 300 * MS);
        sim.stopped_until_ns[i % 2] = sim.now_ns + 900 * MS;
        if (i / 2) carry(&sim, from, to, BYTES);
        run_until(&sim, sim.stopped_until_ns[i % 2] + 10 * MS);
        for (int k = 0; k < 4; k++) {
            const struct gang_plane *plane = &sim.links[k / 2]->planes[k % 2];
            assert_int_equal(plane->losses, 0);
            assert_true(plane->srtt_ns + 4 * plane->rttvar_ns < 100 * MS);
        }
    }
    sim_close(&sim);
}

// The bytes of the link's queue that are payload; what lies in `data` counts for `mine`.
static int payloads(struct gang_stream *stream, int64_t now_ns, const uint8_t *data, size_t bytes, int *mine) {
    struct iovec iov[WIRE_IOV_MAX];
    int count = gang_stream_gather(stream, now_ns, iov), all = 0;
    *mine = 0;
    for (int i = 0; i < count; i++) {
        const uint8_t *at = iov[i].iov_base;
        all += iov[i].iov_len > WIRE_HEADER_BYTES;
        *mine += at >= data && at < data + bytes;
    }
    return all;
}

// One buffer goes out twice and one of the two is called off: what is queued of the other stays where it is.
static void test_calling_off_leaves_others_alone(void **state) {
    (void)state;
    enum { BYTES = 100000 };
    static uint8_t data[BYTES];
    enum gang_link_state now_is = LINK_CONNECTING;
    struct gang_link_config config = gang_link_defaults;
    config.peer = config.planes = config.streams = 1;
    const int64_t now = 1000000000;
    struct gang_link *link = gang_link_new(&config, &(struct gang_link_hooks){&now_is, no_completion, no_reset, note_state}, now);
    struct gang_stream *stream = link->streams[0][0];
    int users[2], mine;
    gang_stream_up(stream, 1, now);
    for (uint32_t tag = 0; tag < 2; tag++) { // the peer has posted a receive on each
        struct iovec iov[2];
        assert_true(gang_stream_space(stream, iov) && iov[0].iov_len >= WIRE_HEADER_BYTES);
        gang_frame_encode(&(struct gang_frame){.type = WIRE_POST, .number = 1 + tag, .epoch = 1, .tag = tag, .message = 1}, iov[0].iov_base);
        assert_true(gang_stream_came(stream, WIRE_HEADER_BYTES, now));
        assert_ok(gang_link_send(link, now, tag, 0, data, BYTES, &users[tag]));
    }
    assert_int_equal(payloads(stream, now, data, BYTES, &mine), 2);
    assert_int_equal(mine, 2);
    gang_link_cancel(link, &users[0]);
    assert_int_equal(payloads(stream, now, data, BYTES, &mine), 2);
    assert_int_equal(mine, 1);
    gang_link_free(link);
}

// A message so long that one of its chunks is more than a plane may have in flight still goes.
static void test_chunks_larger_than_the_flight(void **state) {
    (void)state;
    const size_t bytes = ((size_t)WIRE_CHUNKS_MAX << 13) + 1; // of chunks of 16 KiB, where 8 of 1 KiB are the first flight
    uint8_t *nothing = calloc(1, bytes);
    enum gang_link_state now_is = LINK_CONNECTING;
    struct gang_link_config config = gang_link_defaults;
    config.peer = config.planes = config.streams = 1;
    config.chunk_log2 = WIRE_CHUNK_LOG2_MIN;
    const int64_t now = 1000000000;
    struct gang_link *link = gang_link_new(&config, &(struct gang_link_hooks){&now_is, no_completion, no_reset, note_state}, now);
    struct gang_stream *stream = link->streams[0][0];
    struct iovec iov[2];
    int mine;
    gang_stream_up(stream, 1, now);
    assert_true(gang_stream_space(stream, iov) && iov[0].iov_len >= WIRE_HEADER_BYTES);
    gang_frame_encode(&(struct gang_frame){.type = WIRE_POST, .number = 1, .epoch = 1, .tag = 0, .message = 1}, iov[0].iov_base);
    assert_true(gang_stream_came(stream, WIRE_HEADER_BYTES, now));
    assert_ok(gang_link_send(link, now, 0, 0, nothing, bytes, &now_is));
    (void)payloads(stream, now, nothing, bytes, &mine);
    assert_int_equal(mine, 1);
    gang_link_free(link);
    free(nothing);
}

// The numbers of the messages that a stream sends now, in their order.
static int messages_sent(struct gang_stream *stream, int64_t now_ns, uint64_t numbers[WIRE_QUEUE_FRAMES]) {
    struct iovec iov[WIRE_IOV_MAX];
    struct gang_frame frame;
    size_t bytes = 0;
    int places = gang_stream_gather(stream, now_ns, iov), count = 0;
    for (int i = 0; i < places; i++) {
        bytes += iov[i].iov_len;
        if (iov[i].iov_len == WIRE_HEADER_BYTES && !gang_frame_decode(iov[i].iov_base, &frame) && frame.type == WIRE_EAGER)
            numbers[count++] = frame.message;
    }
    gang_stream_gone(stream, bytes, now_ns);
    return count;
}

// What was on two streams of a plane that goes down leaves on the other plane in the order of the calls, before all else.
static void test_what_was_lost_keeps_its_order(void **state) {
    (void)state;
    enum { SENT = 40, AFTER = 5 };
    static const uint8_t data[1] = {0};
    enum gang_link_state now_is;
    struct gang_link_config config = gang_link_defaults;
    uint64_t numbers[WIRE_QUEUE_FRAMES];
    config.planes = config.streams = 2;
    config.peer = 1;
    struct gang_link *link = gang_link_new(&config, &(struct gang_link_hooks){&now_is, no_completion, no_reset, note_state}, 1000);
    for (int i = 0; i < 3; i++) gang_stream_up(link->streams[i / 2][i % 2], 1, 1000);
    for (int i = 0; i < SENT; i++) {
        assert_ok(gang_link_send(link, 1000, 1, 0, data, 1, NULL));
        assert_int_equal(messages_sent(link->streams[0][i / 3 % 2], 1000, numbers), 1);
    }
    for (int i = 0; i < AFTER; i++) assert_ok(gang_link_send(link, 1000, 1, 0, data, 1, NULL));
    for (int i = 0; i < 2; i++) gang_stream_down(link->streams[0][i], 1000);
    assert_int_equal(messages_sent(link->streams[1][0], 1000, numbers), SENT + AFTER);
    for (int i = 0; i < SENT + AFTER; i++) assert_int_equal(numbers[i], i);
    gang_link_free(link);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_networks),
        cmocka_unit_test(test_who_wakes_late_still_finds_the_dead),
        cmocka_unit_test(test_who_wakes_late_still_waits_for_a_connection),
        cmocka_unit_test(test_a_pause_is_not_distance),
        cmocka_unit_test(test_calling_off_leaves_others_alone),
        cmocka_unit_test(test_chunks_larger_than_the_flight),
        cmocka_unit_test(test_what_was_lost_keeps_its_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
