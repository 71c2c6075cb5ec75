// The wire's life on real sockets: two processes that send to each other over every kind of plane, while planes are cut and
// healed, processes stopped and killed and strangers knock, all at random.
//
// What a round does is a pure function of its seed. GANG_TEST_SEED=n runs that round alone, GANG_TEST_RUNS=n runs rounds 1 to n.
// GANG_TEST_CUTS=n cuts a plane n times during one transfer, and waits longer in between, so that the rates it tells mean something.
#include "../test.h"
#include "../holdings.h"
#include "../scratch.h"
#include "pair.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum {
    RUNS = 8,
    ROUND_LIMIT_S = 120, // a round that takes longer hangs
    WINDOW = 12,         // messages of each direction that are under way
    TAGS = 3,
    LONGEST = 600 << 10,
    FAULTS = 3,
    PLANES = 2,
    KNOCKS = 8,
    PATIENT_MS = 20000,     // on a busy machine a second of silence is nobody's death
    GROWTH_BYTES = 1 << 20, // of the heap from the first fourth of the rounds to the last
    CHILD_LOST = 3,
    CHILD_WRONG = 4, // how a child ends beside well
};

// ---- A round -------------------------------------------------------------------------------------------------------

enum way { WAY_TCP, WAY_TLS, WAY_MEMORY, WAY_FAR, WAY_BOTH, WAYS }; // BOTH: a plane of memory and one far away
enum end { END_WELL, END_KILLED, END_STOPPED, END_CUT };
enum fault { FAULT_STOP, FAULT_KNOCK, FAULT_CUT_ONE, FAULT_CUT_ALL, FAULT_KINDS };

struct round {
    uint64_t seed;
    enum way way;
    enum end end;
    int planes, streams;
    bool child_connects;
    int64_t dead_ms;
    int messages, end_at; // of each direction; the end comes after so many
    struct {
        enum fault kind;
        int at, plane, ms;
    } faults[FAULTS];
};

static uint64_t draw(const struct round *round, uint64_t what, uint64_t below) { return gang_random_at(round->seed, 40, what) % below; }

static bool is_far(const struct round *round, int plane) { return round->way == WAY_FAR || (round->way == WAY_BOTH && plane == 1); }

static struct round draw_round(uint64_t seed) {
    struct round r = {.seed = seed, .way = (enum way)(seed % WAYS)};
    r.planes = r.way == WAY_BOTH ? 2 : 1 + (int)draw(&r, 1, PLANES);
    r.streams = 1 + (int)draw(&r, 2, 2);
    r.child_connects = draw(&r, 3, 2);
    uint64_t end = draw(&r, 4, 10);
    r.end = end < 5 ? END_WELL : end < 8 ? END_KILLED : end < 9 || r.way != WAY_FAR ? END_STOPPED : END_CUT;
    r.dead_ms = r.end == END_WELL ? PATIENT_MS : 1000;
    r.messages = r.end == END_WELL ? 100 + (int)draw(&r, 5, 200) : INT32_MAX;
    r.end_at = (int)draw(&r, 6, 150);
    for (uint64_t f = 0; f < FAULTS; f++) {
        uint64_t kinds = is_far(&r, r.planes - 1) ? FAULT_KINDS : FAULT_CUT_ONE;
        r.faults[f].kind = (enum fault)draw(&r, 10 + f, kinds);
        r.faults[f].at = (int)draw(&r, 20 + f, 100);
        r.faults[f].plane = (int)draw(&r, 30 + f, (uint64_t)r.planes);
        // Seconds now and then, where nobody may be given up for it.
        bool longer = r.end == END_WELL && r.faults[f].kind == FAULT_STOP && draw(&r, 40 + f, 16) == 0;
        r.faults[f].ms = 1 + (int)draw(&r, 50 + f, longer ? 3000 : 300);
    }
    return r;
}

// ---- What both sides do --------------------------------------------------------------------------------------------

struct message {
    struct gang_wire_op op;
    bool started;
    uint8_t data[LONGEST];
};
static struct message messages[WINDOW][2]; // sent, received

static size_t size_of(const struct round *round, int from, int i) {
    uint64_t r = gang_random_at(round->seed, 50 + (uint64_t)from, (uint64_t)i);
    return (r & 3) == 0 ? (r >> 8) % 100 : (r & 3) == 1 ? (r >> 8) % (2 * GANG_WIRE_EAGER_BYTES) : (r >> 8) % LONGEST;
}

static void fill_message(const struct round *round, int from, int i, uint8_t *data) {
    fill(data, size_of(round, from, i), round->seed * 1000003 + (uint64_t)i * 2 + (uint64_t)from);
}

static enum gang_status start(const struct round *round, struct gang_wire_link *link, int rank, int i) {
    struct message *out = &messages[i % WINDOW][0], *in = &messages[i % WINDOW][1];
    uint32_t tag = (uint32_t)(i % TAGS);
    enum gang_status status = GANG_OK;
    fill_message(round, rank, i, out->data);
    // The send first, or the receive.
    for (int k = 0; k < 2 && !status; k++) {
        if ((gang_random_at(round->seed, 60 + (uint64_t)rank, (uint64_t)i) + (uint64_t)k) % 2) {
            status = gang_wire_send(link, tag, i % GANG_WIRE_PRIORITIES, out->data, size_of(round, rank, i), &out->op);
            out->started = !status;
        } else {
            memset(in->data, 0xcc, size_of(round, !rank, i));
            status = gang_wire_recv(link, tag, in->data, size_of(round, !rank, i), &in->op);
            in->started = !status;
        }
    }
    return status;
}

// Waits for what was started; true only if what came is what was sent.
static enum gang_status finish(const struct round *round, int rank, int i, bool *intact) {
    static uint8_t expected[LONGEST];
    enum gang_status status = GANG_OK;
    for (int k = 0; k < 2; k++) {
        struct message *message = &messages[i % WINDOW][k];
        enum gang_status one = message->started ? gang_wire_wait(&message->op) : GANG_ERR_PEER;
        message->started = false;
        if (one) status = one;
        if (one || !k) continue;
        fill_message(round, !rank, i, expected);
        *intact = *intact && memcmp(expected, message->data, size_of(round, !rank, i)) == 0;
    }
    return status;
}

// Sends and receives the round's messages; `*done` counts on. After an error everything that was started has ended as well.
static enum gang_status talk(const struct round *round, struct gang_wire_link *link, int rank, int *done, bool *intact) {
    enum gang_status status = GANG_OK;
    char error[GANG_ERROR_BYTES] = "";
    int started = 0, finished = 0;
    *intact = true;
    while (finished < round->messages && *intact) {
        if (!status && started < round->messages && started - finished < WINDOW) {
            status = start(round, link, rank, started++);
        } else if (finished < started) {
            enum gang_status one = finish(round, rank, finished++, intact);
            status = status ? status : one;
        } else {
            break;
        }
        if (status && !error[0]) snprintf(error, sizeof error, "%s", gang_error());
        __atomic_store_n(done, finished, __ATOMIC_RELAXED);
    }
    return status ? gang_fail(status, "%s", error) : GANG_OK;
}

static enum gang_status open_side(const struct round *round, int rank, const char *secret, struct gang_wire **wire) {
    return gang_wire_open(&(struct gang_wire_options){.rank = rank,
                                                      .listen = "127.0.0.1:0",
                                                      .cluster = 7,
                                                      .secret_path = round->way == WAY_TLS ? secret : NULL,
                                                      .dead_ms = round->dead_ms,
                                                      .connect_ms = PATIENT_MS},
                          wire);
}

static enum gang_status join_side(const struct round *round, struct gang_wire *wire, int rank, const char *const *remotes,
                                  struct gang_wire_link **link) {
    struct gang_wire_plane planes[PLANES] = {{0}};
    for (int p = 0; remotes && p < round->planes; p++) planes[p].remote = remotes[p];
    const struct gang_wire_link_options options = {
        .peer = !rank, .planes = round->planes, .streams = round->streams, .plane = remotes ? planes : NULL};
    return gang_wire_join(wire, &options, link);
}

static void no_log(enum gang_log_level level, const char *line) { (void)level, (void)line; }

// ---- The child: rank 1 -----------------------------------------------------------------------------------------------

// Arguments: seed, secret, and the addresses of the planes if it connects. Says its address if it does not, and at its end its
// error if it has one. Stays until its input ends.
static int be_rank_1(int argc, char **argv) {
    int64_t seed;
    struct gang_wire *wire;
    struct gang_wire_link *link;
    bool intact;
    int done;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    gang_log_to(no_log);
    if (gang_parse_int("seed", argv[2], 0, INT64_MAX, &seed)) return CHILD_WRONG;
    struct round round = draw_round((uint64_t)seed);
    enum gang_status status = open_side(&round, 1, argv[3], &wire);
    if (!status) status = join_side(&round, wire, 1, argc > 4 ? (const char *const *)argv + 4 : NULL, &link);
    if (!status && argc == 4) printf("%s\n", gang_wire_address(wire));
    fflush(stdout);
    if (!status) status = talk(&round, link, 1, &done, &intact);
    if (status) printf("%s\n", gang_error());
    fflush(stdout);
    if (!intact) return CHILD_WRONG;
    char byte;
    while (!status && read(STDIN_FILENO, &byte, 1) < 0 && errno == EINTR) {}
    gang_wire_close(wire);
    return status == GANG_ERR_PEER ? CHILD_LOST : status ? CHILD_WRONG : 0;
}

struct child {
    pid_t pid;
    int in;    // its standard input
    FILE *out; // its standard output
};

static void start_child(struct child *child, const char *const *arguments) {
    int in[2], out[2];
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    child->pid = fork();
    assert_true(child->pid >= 0);
    if (!child->pid) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        execv("/proc/self/exe", (char *const *)arguments);
        _exit(CHILD_WRONG);
    }
    close(in[0]);
    close(out[1]);
    child->in = in[1];
    child->out = fdopen(out[0], "r");
    assert_non_null(child->out);
}

static const char *read_line(struct child *child, char line[GANG_ERROR_BYTES]) {
    if (!fgets(line, GANG_ERROR_BYTES, child->out)) line[0] = 0;
    line[strcspn(line, "\n")] = 0;
    return line;
}

// ---- Faults --------------------------------------------------------------------------------------------------------

struct soak {
    struct round round;
    struct gang_wire *wire;
    struct gang_wire_link *link;
    struct child child;
    struct gang_relay *relays[PLANES];
    char listener[GANG_ADDRESS_TEXT];
    int done;  // messages; atomic
    bool over; // atomic
    int knocks[KNOCKS];
};

static void pause_ms(int64_t ms) { gang_sleep_until(gang_seconds() + 1e-3 * (double)ms); }

static bool reached(const struct soak *soak, int at) {
    while (__atomic_load_n(&soak->done, __ATOMIC_RELAXED) < at && !__atomic_load_n(&soak->over, __ATOMIC_RELAXED)) pause_ms(1);
    return !__atomic_load_n(&soak->over, __ATOMIC_RELAXED);
}

static void cut(struct soak *soak, int plane, bool all, bool yes) {
    for (int p = 0; p < soak->round.planes; p++)
        if (soak->relays[p] && (all || p == plane)) gang_relay_cut(soak->relays[p], yes);
}

// Strangers that say nothing, half a greeting, or nonsense, and stay.
static void knock(struct soak *soak) {
    static const char greeting[] = "GLW1\1\1\0\0\0\0\0\0";
    struct gang_address address;
    if (gang_address_resolve("knock", soak->listener, &address)) return;
    for (int i = 0; i < KNOCKS; i++) {
        if (soak->knocks[i] >= 0) close(soak->knocks[i]);
        soak->knocks[i] = -1;
        if (gang_socket_connect(NULL, &address, &soak->knocks[i])) continue;
        (void)!send(soak->knocks[i], i % 4 == 3 ? "\x16\3\1\2\0\1" : greeting, (size_t)(i % 4) * 2, MSG_NOSIGNAL | MSG_DONTWAIT);
    }
}

static void *make_faults(void *context) {
    struct soak *soak = context;
    const struct round *round = &soak->round;
    for (int f = 0; f < FAULTS && reached(soak, round->faults[f].at); f++) {
        bool all = round->faults[f].kind == FAULT_CUT_ALL;
        if (round->faults[f].kind == FAULT_KNOCK) knock(soak);
        if (round->faults[f].kind == FAULT_STOP) kill(soak->child.pid, SIGSTOP);
        if (round->faults[f].kind >= FAULT_CUT_ONE) cut(soak, round->faults[f].plane, all, true);
        if (round->faults[f].kind != FAULT_KNOCK) pause_ms(all ? round->faults[f].ms / 3 : round->faults[f].ms);
        cut(soak, 0, true, false);
        kill(soak->child.pid, SIGCONT);
    }
    if (round->end == END_WELL || !reached(soak, round->end_at)) return NULL;
    if (round->end == END_KILLED) kill(soak->child.pid, SIGKILL);
    if (round->end == END_STOPPED) kill(soak->child.pid, SIGSTOP);
    if (round->end == END_CUT) cut(soak, 0, true, true);
    return NULL;
}

// ---- The parent: rank 0 --------------------------------------------------------------------------------------------

static const char *secret;

// The addresses at which who connects finds each plane of who listens at `to`.
static void lay_planes(struct soak *soak, const char *to, char text[PLANES][GANG_ADDRESS_TEXT + 4], const char *remotes[PLANES]) {
    snprintf(soak->listener, sizeof soak->listener, "%s", to);
    for (int p = 0; p < soak->round.planes; p++) {
        const struct gang_relay_options options = {.listen = "127.0.0.1:0", .to = to, .rtt_s = 0.001, .seed = soak->round.seed};
        if (is_far(&soak->round, p)) assert_ok(gang_relay_open(&options, &soak->relays[p]));
        bool memory = soak->round.way == WAY_MEMORY || soak->round.way == WAY_BOTH;
        snprintf(text[p], sizeof text[p], "%s%s", memory && !soak->relays[p] ? "shm:" : "",
                 soak->relays[p] ? gang_relay_address(soak->relays[p]) : to);
        remotes[p] = text[p];
    }
}

static void open_soak(struct soak *soak, uint64_t seed) {
    char text[PLANES][GANG_ADDRESS_TEXT + 4], number[32], line[GANG_ERROR_BYTES];
    const char *arguments[5 + PLANES] = {"test_soak", "rank", number, secret}, *remotes[PLANES] = {NULL};
    *soak = (struct soak){.round = draw_round(seed)};
    for (int i = 0; i < KNOCKS; i++) soak->knocks[i] = -1;
    snprintf(number, sizeof number, "%llu", (unsigned long long)seed);
    assert_ok(open_side(&soak->round, 0, secret, &soak->wire));
    if (soak->round.child_connects) lay_planes(soak, gang_wire_address(soak->wire), text, &arguments[4]);
    start_child(&soak->child, arguments);
    if (!soak->round.child_connects) lay_planes(soak, read_line(&soak->child, line), text, remotes);
    assert_ok(join_side(&soak->round, soak->wire, 0, soak->round.child_connects ? NULL : remotes, &soak->link));
}

static void wait_for_all_planes(const struct soak *soak) {
    struct gang_wire_report report;
    for (bool up = false; !up; pause_ms(1)) {
        gang_wire_report(soak->link, &report);
        assert_false(report.dead);
        up = true;
        for (int p = 0; p < soak->round.planes; p++) up = up && report.plane[p].up;
    }
}

// The child ended as it had to; its own error names us.
static void judge_child(struct soak *soak) {
    char line[GANG_ERROR_BYTES] = "";
    int status = 0;
    close(soak->child.in);
    assert_int_equal(waitpid(soak->child.pid, &status, 0), soak->child.pid);
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    read_line(&soak->child, line);
    if (code > 0) print_message("%s\n", line);
    if (soak->round.end == END_WELL) assert_int_equal(code, 0);
    if (soak->round.end == END_KILLED) assert_true(code == CHILD_LOST || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
    if (soak->round.end >= END_STOPPED) assert_int_equal(code, CHILD_LOST);
    if (code == CHILD_LOST) assert_non_null(strstr(line, "rank 0"));
    fclose(soak->child.out);
}

static void run_round(uint64_t seed) {
    struct soak soak;
    pthread_t thread;
    bool intact;
    alarm(ROUND_LIMIT_S);
    open_soak(&soak, seed);
    const struct round *round = &soak.round;
    assert_int_equal(pthread_create(&thread, NULL, make_faults, &soak), 0);
    enum gang_status status = talk(round, soak.link, 0, &soak.done, &intact);
    __atomic_store_n(&soak.over, true, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    assert_true(intact);
    if (status) print_message("%s\n", gang_error());
    if (round->end == END_WELL) assert_ok(status);
    if (round->end == END_WELL) wait_for_all_planes(&soak);
    if (round->end != END_WELL) assert_fails(GANG_ERR_PEER, "rank 1", status);
    // Who was stopped comes back to a peer that has given it up, or has gone.
    bool gone = round->end == END_STOPPED && draw(round, 7, 2);
    if (gone) gang_wire_close(soak.wire);
    kill(soak.child.pid, SIGCONT);
    judge_child(&soak);
    if (!gone) gang_wire_close(soak.wire);
    for (int p = 0; p < PLANES; p++) gang_relay_close(soak.relays[p]);
    for (int i = 0; i < KNOCKS; i++)
        if (soak.knocks[i] >= 0) close(soak.knocks[i]);
    alarm(0);
}

// ---- A plane cut and healed during a long transfer -------------------------------------------------------------------

enum { CUTS = 3, CUTS_MAX = 1000, BLOCKS = 64, BLOCK_BYTES = 128 << 10, SHORT_SPAN = 40, LONG_SPAN = 200, TRACE_MAX = 1 << 19 };
static const double plane_rate = 60e6, distance_s = 0.005;

struct stream_of_blocks {
    struct gang_wire *wires[2];
    struct gang_wire_link *links[2]; // 0 sends, 1 receives
    struct gang_relay *relays[2];
    long cuts, span; // blocks between a cut and its healing, and until the next
    long came;       // blocks; atomic
    bool over;       // no more faults; atomic
    struct {
        double cut, down, healed, up;
    } times[CUTS_MAX];
};
static uint8_t blocks[2][BLOCKS][BLOCK_BYTES];
static double came_at[TRACE_MAX];

static void post_block(struct stream_of_blocks *t, struct gang_wire_op ops[2][BLOCKS], long i) {
    long slot = i % BLOCKS;
    fill(blocks[0][slot], BLOCK_BYTES, (uint64_t)i);
    memset(blocks[1][slot], 0xcc, BLOCK_BYTES);
    assert_ok(gang_wire_recv(t->links[1], 1, blocks[1][slot], BLOCK_BYTES, &ops[1][slot]));
    assert_ok(gang_wire_send(t->links[0], 1, 1, blocks[0][slot], BLOCK_BYTES, &ops[0][slot]));
}

// Until there are no more faults; every block is looked at.
static void transfer_blocks(struct stream_of_blocks *t) {
    static struct gang_wire_op ops[2][BLOCKS];
    long posted = 0, came = 0;
    for (; came < posted || !posted; came++) {
        while (posted < came + BLOCKS && posted < TRACE_MAX && !__atomic_load_n(&t->over, __ATOMIC_RELAXED)) post_block(t, ops, posted++);
        for (int k = 0; k < 2; k++) assert_ok(gang_wire_wait(&ops[!k][came % BLOCKS]));
        came_at[came] = gang_seconds();
        assert_memory_equal(blocks[1][came % BLOCKS], blocks[0][came % BLOCKS], BLOCK_BYTES);
        __atomic_store_n(&t->came, came + 1, __ATOMIC_RELAXED);
    }
}

static void await_blocks(const struct stream_of_blocks *t, long more) {
    long goal = __atomic_load_n(&t->came, __ATOMIC_RELAXED) + more;
    while (__atomic_load_n(&t->came, __ATOMIC_RELAXED) < (goal < TRACE_MAX ? goal : TRACE_MAX)) pause_ms(1);
}

static void await_plane(const struct stream_of_blocks *t, int plane, bool up) {
    struct gang_wire_report report[2] = {{0}};
    do {
        pause_ms(1);
        for (int i = 0; i < 2; i++) gang_wire_report(t->links[i], &report[i]);
    } while (up ? !report[0].plane[plane].up || !report[1].plane[plane].up : report[0].plane[plane].up);
}

static void *cut_and_heal(void *context) {
    struct stream_of_blocks *t = context;
    for (long i = 0; i < t->cuts; i++) {
        int victim = (int)(i % 2);
        await_plane(t, victim, true);
        t->times[i].up = gang_seconds();
        await_blocks(t, t->span);
        t->times[i].cut = gang_seconds();
        gang_relay_cut(t->relays[victim], true);
        await_plane(t, victim, false);
        t->times[i].down = gang_seconds();
        await_blocks(t, t->span);
        gang_relay_cut(t->relays[victim], false);
        t->times[i].healed = gang_seconds();
    }
    for (int p = 0; p < 2; p++) await_plane(t, p, true);
    __atomic_store_n(&t->over, true, __ATOMIC_RELAXED);
    return NULL;
}

static double rate_between(const struct stream_of_blocks *t, double from, double to) {
    long count = 0;
    for (long i = 0; i < t->came; i++) count += came_at[i] > from && came_at[i] <= to;
    return (double)count * BLOCK_BYTES / (to - from);
}

static double longest_gap(const struct stream_of_blocks *t, double from, double to) {
    double last = from, gap = 0;
    for (long i = 0; i < t->came; i++) {
        if (came_at[i] <= from || last > to) continue;
        gap = came_at[i] - last > gap ? came_at[i] - last : gap;
        last = came_at[i];
    }
    return gap;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// A busy machine spoils these figures: they are told, not judged.
static void tell_times(const struct stream_of_blocks *t) {
    static double stalls[CUTS_MAX], single[CUTS_MAX], both[CUTS_MAX];
    size_t n = (size_t)t->cuts;
    for (size_t i = 0; i < n; i++) {
        stalls[i] = 1e3 * longest_gap(t, t->times[i].cut, t->times[i].healed);
        single[i] = rate_between(t, (t->times[i].down + t->times[i].healed) / 2, t->times[i].healed) / plane_rate;
        both[i] = rate_between(t, t->times[i].up, t->times[i].cut) / (2 * plane_rate);
    }
    qsort(stalls, n, sizeof *stalls, by_size);
    qsort(single, n, sizeof *single, by_size);
    qsort(both, n, sizeof *both, by_size);
    print_message("%ld cuts in %.2f GiB: stall %.0f ms (median), %.0f (95th percentile), %.0f (longest)\n", t->cuts,
                  (double)t->came * BLOCK_BYTES / (1 << 30), stalls[n / 2], stalls[n * 95 / 100], stalls[n - 1]);
    if (t->span < LONG_SPAN) return; // too short for a rate
    print_message("of the rate of one plane while the other is cut %.2f, of both after healing %.2f (medians)\n", single[n / 2], both[n / 2]);
}

static void test_cuts_of_a_long_transfer(void **state) {
    (void)state;
    static struct stream_of_blocks t;
    pthread_t thread;
    const char *addresses[2], *cuts = getenv("GANG_TEST_CUTS");
    int64_t count = CUTS;
    if (cuts) assert_ok(gang_parse_int("GANG_TEST_CUTS", cuts, 1, CUTS_MAX, &count));
    t = (struct stream_of_blocks){.cuts = (long)count, .span = cuts ? LONG_SPAN : SHORT_SPAN};
    alarm((unsigned)(ROUND_LIMIT_S + 10 * count));
    struct round patient = {.way = WAY_FAR, .planes = 2, .streams = 1, .dead_ms = PATIENT_MS};
    for (int i = 0; i < 2; i++) assert_ok(open_side(&patient, i, secret, &t.wires[i]));
    for (int p = 0; p < 2; p++) {
        const struct gang_relay_options options = {
            .listen = "127.0.0.1:0", .to = gang_wire_address(t.wires[1]), .rtt_s = distance_s, .bytes_per_s = plane_rate};
        assert_ok(gang_relay_open(&options, &t.relays[p]));
        addresses[p] = gang_relay_address(t.relays[p]);
    }
    for (int i = 1; i >= 0; i--) assert_ok(join_side(&patient, t.wires[i], i, i ? NULL : addresses, &t.links[i]));
    assert_int_equal(pthread_create(&thread, NULL, cut_and_heal, &t), 0);
    transfer_blocks(&t);
    pthread_join(thread, NULL);
    assert_true(t.over);
    tell_times(&t);
    for (int i = 0; i < 2; i++) gang_wire_close(t.wires[i]);
    for (int p = 0; p < 2; p++) gang_relay_close(t.relays[p]);
    alarm(0);
}

// ---- What is left behind -------------------------------------------------------------------------------------------

static int shared_maps(void) {
    int count = 0;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    while (fgets(line, sizeof line, maps)) count += strstr(line, "memfd:") != NULL;
    fclose(maps);
    return count;
}

static void on_alarm(int signal) {
    static const char text[] = "the round hangs\n";
    (void)signal;
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    abort();
}

static void test_random_rounds(void **state) {
    (void)state;
    const char *seed = getenv("GANG_TEST_SEED"), *runs_text = getenv("GANG_TEST_RUNS");
    int64_t runs = RUNS, first = 1;
    if (runs_text) assert_ok(gang_parse_int("GANG_TEST_RUNS", runs_text, 1, 1000000000, &runs));
    if (seed) first = runs = (int64_t)test_seed();
    size_t before = 0;
    const char *sanitized = getenv("GANG_SANITIZED");
    const struct holdings held = gang_test_holdings();
    int fds = held.descriptors, threads = held.threads;
    if (sanitized && strcmp(sanitized, "thread") == 0) threads++; // the sanitizer starts one of its own
    for (int64_t i = first; i <= runs; i++) {
        print_message("round %lld (GANG_TEST_SEED)\n", (long long)i);
        run_round((uint64_t)i);
        assert_int_equal(gang_test_holdings().descriptors, fds);
        assert_int_equal(shared_maps(), 0);
        while (gang_test_holdings().threads != threads) pause_ms(1); // who has been joined may still be listed
        if (i == first + (runs - first) / 4) before = gang_test_holdings().bytes;
    }
    print_message("heap: %zu KiB after a fourth of the rounds, %zu KiB at the end\n", before >> 10, gang_test_holdings().bytes >> 10);
    if (!sanitized) assert_true(gang_test_holdings().bytes < before + GROWTH_BYTES);
}

static int set_up(void **state) {
    signal(SIGALRM, on_alarm);
    gang_log_to(no_log);
    if (scratch_open(state)) return -1;
    secret = strdup(scratch_text("secret", "0123456789abcdef0123456789abcdef"));
    return chmod(secret, 0600);
}

int main(int argc, char **argv) {
    if (argc > 3 && strcmp(argv[1], "rank") == 0) return be_rank_1(argc, argv);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_rounds),
        cmocka_unit_test(test_cuts_of_a_long_transfer),
    };
    return cmocka_run_group_tests(tests, set_up, scratch_close);
}
