// The agent of a node: starts workers, passes on what they print and how they end, and takes them along when it goes.
//
// It ends when it is told to, when its standard input ends or when its link to the coordinator does. It never reads more from a
// worker's pipe than its link takes: a worker that floods is held back by its full pipe, not by our memory.
#include "control/mail.h"
#include "control/spawn.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    GREETING_BYTES = 1 << 20,
    ARGUMENTS_MAX = 1024,
    LAST_BYTES = 512,
    LOG_LETTERS = 64, // lines that may be under way; the rest of the letters are for what matters more
    LINES_PER_TURN = 64,
    PIPE_BYTES = 1 << 20, // what a worker that has ended can have left in a pipe
    EXIT_NOT_STARTED = 127,
};
static const int64_t ms = 1000000;

enum hand_state { HAND_RUNS, HAND_ENDED, HAND_REPORTED };

// A worker, seen from its agent.
struct hand {
    enum hand_state state;
    uint32_t number;
    pid_t pid;
    int pidfd, code, signal;
    int64_t ended_ns;
    struct gang_cgroup cgroup;
    struct gang_lines lines[2];
    uint64_t limit[2]; // of bytes to be read once it has ended
    char last[LAST_BYTES], why[LAST_BYTES];
};

struct agent {
    int input, notify, secret, null;
    bool lost, stopping, announced;
    int64_t stop_ns; // when the next, harder signal is due
    int stop_signal;
    int64_t node, nodes_told, cluster;
    char *address;
    char secret_path[SECRET_PATH_BYTES];
    struct gang_wire *wire;
    struct gang_mail mail;
    struct hand *hands;
    size_t count;
    struct pollfd *polls;
};

// ---- The greeting --------------------------------------------------------------------------------------------------

// Up to the empty line that ends it, byte by byte: what follows is not ours.
static enum gang_status read_greeting(int input, struct gang_buffer *out) {
    char byte;
    while (out->len < 2 || memcmp(out->data + out->len - 2, "\n\n", 2) != 0) {
        ssize_t n = out->len < GREETING_BYTES ? read(input, &byte, 1) : 0;
        if (n < 0 && errno == EINTR) continue;
        if (n != 1)
            return gang_fail(GANG_ERR_INPUT, "agent: no coordinator speaks on standard input: 'gangline train' starts agents, nobody else need");
        gang_buffer_append(out, &byte, 1);
    }
    return GANG_OK;
}

static const char *value_of(const char *line, const char *name) {
    size_t length = strlen(name);
    return strncmp(line, name, length) == 0 && line[length] == ' ' ? line + length + 1 : NULL;
}

// "node INDEX NAME", or without a name where Slurm chooses the nodes: of several, the one that Slurm says we are.
static enum gang_status take_node(struct agent *agent, char *text) {
    const char *name = getenv("SLURMD_NODENAME"), *task = getenv("SLURM_PROCID");
    char *space = strchr(text, ' ');
    int64_t turn = agent->nodes_told++, mine = -1;
    if (space) *space = 0;
    enum gang_status status = !space && task ? gang_parse_int("agent: SLURM_PROCID", task, 0, GANG_CONTROL_NODES - 1, &mine) : GANG_OK;
    bool ours = space ? name && !strcmp(space + 1, name) : mine == turn;
    if (status || (agent->node >= 0 && !ours)) return status;
    return gang_parse_int("agent: node", text, 0, GANG_CONTROL_NODES - 1, &agent->node);
}

static enum gang_status take_line(struct agent *agent, char *line) {
    const char *value;
    if ((value = value_of(line, "coordinator"))) {
        free(agent->address);
        agent->address = strdup(value);
        assert(agent->address && "out of memory");
        return GANG_OK;
    }
    if ((value = value_of(line, "cluster"))) return gang_parse_int("agent: cluster", value, 0, INT64_MAX, &agent->cluster);
    if ((value = value_of(line, "secret"))) {
        if (strlen(value) != SECRET_CHARS || agent->secret >= 0) return gang_fail(GANG_ERR_INPUT, "agent: the greeting's secret is damaged");
        return gang_secret_keep(value, &agent->secret, agent->secret_path);
    }
    if ((value = value_of(line, "node"))) return take_node(agent, line + (value - line));
    return *line ? gang_fail(GANG_ERR_INPUT, "agent: the greeting is damaged: '%.40s'", line) : GANG_OK;
}

static enum gang_status be_greeted(struct agent *agent) {
    struct gang_buffer text = {0};
    enum gang_status status = read_greeting(agent->input, &text);
    char *rest = text.data, *line = status ? NULL : strsep(&rest, "\n");
    const char *version = line ? value_of(line, "gangline-agent") : NULL;
    if (!status && !version) status = gang_fail(GANG_ERR_INPUT, "agent: what comes on standard input is no greeting of a coordinator");
    if (!status && strcmp(version, GANG_VERSION) != 0)
        status = gang_fail(GANG_ERR_UNSUPPORTED, "agent: this is Gangline %s and the coordinator is %s: install the same version on all nodes",
                           GANG_VERSION, version);
    while (!status && (line = strsep(&rest, "\n"))) status = take_line(agent, line);
    if (!status && (!agent->address || agent->secret < 0 || agent->node < 0))
        status = gang_fail(GANG_ERR_INPUT, "agent: the greeting lacks an address, a secret or a node");
    if (text.data) explicit_bzero(text.data, text.len);
    gang_buffer_release(&text);
    return status;
}

// ---- To the coordinator ----------------------------------------------------------------------------------------------

static void send_packed(struct agent *agent, uint32_t type, struct gang_buffer *packed) {
    if (gang_mail_send(&agent->mail, type, packed->data, packed->len)) agent->lost = true;
    gang_buffer_release(packed);
}

static void send_line(struct agent *agent, struct hand *hand, int stream) {
    const char *line = hand->lines[stream].line;
    struct gang_buffer packed = {0};
    gang_put_u32(&packed, hand->number);
    gang_put_u32(&packed, (uint32_t)stream + 1);
    gang_put_u64(&packed, (uint64_t)gang_os->now_ns());
    gang_put_text(&packed, line);
    send_packed(agent, MAIL_LOG, &packed);
    if (stream == 1 && *line) snprintf(hand->last, sizeof hand->last, "%s", line);
}

static void send_exit(struct agent *agent, struct hand *hand) {
    struct gang_buffer packed = {0};
    gang_put_u32(&packed, hand->number);
    gang_put_u32(&packed, (uint32_t)hand->code);
    gang_put_u32(&packed, (uint32_t)hand->signal);
    gang_put_u64(&packed, (uint64_t)hand->ended_ns);
    gang_put_text(&packed, hand->why);
    gang_put_text(&packed, hand->last);
    send_packed(agent, MAIL_EXIT, &packed);
    hand->state = HAND_REPORTED;
}

static bool room_for_lines(struct agent *agent) { return gang_mail_room(&agent->mail) && agent->mail.letters < LOG_LETTERS; }

// Passes on what the worker has printed; reports its end when there is no more.
static void pass_on(struct agent *agent, struct hand *hand) {
    bool drained = true;
    for (int s = 0; s < 2; s++) {
        struct gang_lines *lines = &hand->lines[s];
        enum gang_line line = LINE_READY;
        for (int i = 0; i < LINES_PER_TURN && line == LINE_READY && room_for_lines(agent); i++)
            if ((line = gang_lines_next(lines)) == LINE_READY) send_line(agent, hand, s);
        bool over = line != LINE_READY || lines->taken > hand->limit[s];
        if (hand->state == HAND_ENDED && over && gang_lines_rest(lines) == LINE_READY) send_line(agent, hand, s);
        drained = drained && over;
    }
    if (hand->state == HAND_ENDED && drained && gang_mail_room(&agent->mail)) send_exit(agent, hand);
}

// ---- Workers -------------------------------------------------------------------------------------------------------

static void end_badly(struct hand *hand, const char *why) {
    snprintf(hand->last, sizeof hand->last, "%s", why);
    hand->code = EXIT_NOT_STARTED;
    hand->ended_ns = gang_os->now_ns();
    hand->state = HAND_ENDED;
}

static void start_hand(struct agent *agent, struct hand *hand, const char *const *argv, double share, int cpu) {
    char variable[256];
    int out = -1, err = -1;
    hand->pid = hand->pidfd = hand->lines[0].fd = hand->lines[1].fd = -1;
    snprintf(variable, sizeof variable, GANG_WORKER_VARIABLE "=%s %s %lld %u %d %d", GANG_VERSION, agent->address, (long long)agent->cluster,
             hand->number, agent->secret, (int)getpid());
    enum gang_status status = gang_pipe_open(&hand->lines[0].fd, &out);
    if (!status) status = gang_pipe_open(&hand->lines[1].fd, &err);
    if (!status && share > 0) status = gang_cgroup_make((int)hand->number, share, &hand->cgroup);
    if (!status)
        status = gang_spawn(&(struct gang_spawn){.argv = argv,
                                                 .variable = variable,
                                                 .in = agent->null,
                                                 .out = out,
                                                 .err = err,
                                                 .keep = agent->secret,
                                                 .procs = hand->cgroup.procs,
                                                 .cpu = cpu,
                                                 .dies_by = SIGKILL},
                            &hand->pid, &hand->pidfd);
    gang_fd_close(&out);
    gang_fd_close(&err);
    if (status) {
        end_badly(hand, gang_error());
        gang_cgroup_remove(&hand->cgroup);
    }
}

static void reap(struct hand *hand, bool wait) {
    siginfo_t info = {0};
    int status = 0;
    if (hand->pid < 0 || hand->state != HAND_RUNS) return;
    while (waitid(P_PID, (id_t)hand->pid, &info, WEXITED | WNOWAIT | (wait ? 0 : WNOHANG)) && errno == EINTR) {}
    if (!info.si_pid) return;
    // What it has started goes with it; until it is reaped nobody else has its number.
    kill(-hand->pid, SIGKILL);
    while (waitpid(hand->pid, &status, 0) < 0 && errno == EINTR) {}
    hand->code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    hand->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    hand->ended_ns = gang_os->now_ns();
    hand->state = HAND_ENDED;
    for (int s = 0; s < 2; s++) hand->limit[s] = hand->lines[s].taken + PIPE_BYTES;
    gang_fd_close(&hand->pidfd);
    gang_cgroup_remove(&hand->cgroup);
}

static void signal_all(struct agent *agent, int signal_number) {
    for (size_t i = 0; i < agent->count; i++)
        if (agent->hands[i].state == HAND_RUNS) kill(-agent->hands[i].pid, signal_number);
}

// ---- From the coordinator --------------------------------------------------------------------------------------------

static enum gang_status start_workers(struct agent *agent, struct gang_reader *packed) {
    const char *argv[ARGUMENTS_MAX + 1] = {NULL};
    const char *directory = gang_get_text(packed);
    uint32_t arguments = gang_get_u32(packed);
    if (agent->hands || arguments < 1 || arguments > ARGUMENTS_MAX) return gang_fail(GANG_ERR_PEER, "agent: the order to start is damaged");
    for (uint32_t i = 0; i < arguments; i++) argv[i] = gang_get_text(packed);
    uint32_t count = gang_get_u32(packed);
    if (packed->bad || count > GANG_CONTROL_WORKERS) return gang_fail(GANG_ERR_PEER, "agent: the order to start is damaged");
    if (chdir(directory)) gang_log(GANG_LOG_WARNING, "agent: %s: %s: workers start in the home directory", directory, strerror(errno));
    agent->hands = calloc(count + 1, sizeof *agent->hands);
    agent->polls = calloc(2 + 3 * (size_t)count, sizeof *agent->polls);
    assert(agent->hands && agent->polls && "out of memory");
    for (uint32_t i = 0; i < count; i++) {
        uint32_t number = gang_get_u32(packed), cpu = gang_get_u32(packed), share_ppm = gang_get_u32(packed);
        if (packed->bad) return gang_fail(GANG_ERR_PEER, "agent: the order to start is damaged");
        agent->hands[i].number = number;
        agent->count = i + 1;
        start_hand(agent, &agent->hands[i], argv, share_ppm * 1e-6, (int)cpu);
    }
    return GANG_OK;
}

static void kill_one(struct agent *agent, struct gang_reader *packed) {
    uint32_t number = gang_get_u32(packed);
    const char *why = gang_get_text(packed);
    for (size_t i = 0; i < agent->count; i++) {
        struct hand *hand = &agent->hands[i];
        if (hand->number != number || hand->state != HAND_RUNS) continue;
        snprintf(hand->why, sizeof hand->why, "%s", why);
        kill(-hand->pid, SIGKILL);
    }
}

static enum gang_status hear(struct agent *agent) {
    enum gang_status status = GANG_OK;
    while (!status && gang_mail_poll(&agent->mail)) {
        struct gang_reader packed = {.data = agent->mail.data, .left = agent->mail.bytes};
        if (agent->mail.type == MAIL_START) status = start_workers(agent, &packed);
        if (agent->mail.type == MAIL_KILL) kill_one(agent, &packed);
        if (agent->mail.type == MAIL_STOP && !agent->stopping) {
            agent->stopping = true;
            agent->stop_signal = SIGTERM;
            agent->stop_ns = gang_os->now_ns() + CONTROL_ASK_MS * ms;
        }
        gang_mail_done(&agent->mail);
    }
    if (agent->mail.state == MAIL_DEAD) agent->lost = true;
    return status;
}

// ---- The loop ------------------------------------------------------------------------------------------------------

static volatile sig_atomic_t told_to_end;
static int waker = -1; // of the loop

static void on_term(int signal_number) {
    int code = errno;
    told_to_end = signal_number;
    (void)eventfd_write(waker, 1);
    errno = code;
}

// Who ends a whole job (Slurm) signals all its processes; the coordinator decides what happens then.
static void announce_end(struct agent *agent) {
    struct gang_buffer nothing = {0};
    if (!told_to_end || agent->announced) return;
    agent->announced = true;
    send_packed(agent, MAIL_ENDS, &nothing);
}

static bool all_reported(const struct agent *agent) {
    for (size_t i = 0; i < agent->count; i++)
        if (agent->hands[i].state != HAND_REPORTED) return false;
    return true;
}

static int stop_harder(struct agent *agent) {
    if (!agent->stopping || !agent->stop_signal) return -1;
    int64_t now = gang_os->now_ns();
    if (now < agent->stop_ns) return (int)((agent->stop_ns - now) / ms) + 1;
    signal_all(agent, agent->stop_signal);
    agent->stop_signal = agent->stop_signal == SIGTERM ? SIGKILL : 0;
    agent->stop_ns = now + CONTROL_TERM_MS * ms;
    return agent->stop_signal ? CONTROL_TERM_MS : -1;
}

static void wait_for_something(struct agent *agent, int timeout_ms) {
    struct pollfd few[2], *polls = agent->polls ? agent->polls : few;
    nfds_t count = 0;
    eventfd_t value;
    char byte;
    polls[count++] = (struct pollfd){.fd = agent->input, .events = POLLIN};
    polls[count++] = (struct pollfd){.fd = agent->notify, .events = POLLIN};
    bool room = room_for_lines(agent);
    for (size_t i = 0; i < agent->count; i++) {
        const struct hand *hand = &agent->hands[i];
        polls[count++] = (struct pollfd){.fd = hand->pidfd, .events = POLLIN};
        for (int s = 0; s < 2; s++) polls[count++] = (struct pollfd){.fd = room ? hand->lines[s].fd : -1, .events = POLLIN};
    }
    if (poll(polls, count, timeout_ms) < 0) return;
    if (polls[1].revents) (void)eventfd_read(agent->notify, &value);
    ssize_t n = polls[0].revents ? read(agent->input, &byte, 1) : 1;
    if (n == 0 || (n < 0 && errno != EINTR && errno != EAGAIN)) agent->lost = true;
}

static enum gang_status serve(struct agent *agent) {
    enum gang_status status = GANG_OK;
    while (!status && !agent->lost && !(agent->stopping && all_reported(agent))) {
        bool more = false;
        status = hear(agent);
        announce_end(agent);
        for (size_t i = 0; i < agent->count; i++) {
            struct hand *hand = &agent->hands[i];
            reap(hand, false);
            if (hand->state != HAND_REPORTED) pass_on(agent, hand);
            more = more || (hand->state == HAND_ENDED && room_for_lines(agent));
            for (int s = 0; s < 2; s++) more = more || (hand->lines[s].at < hand->lines[s].got && room_for_lines(agent));
        }
        int timeout_ms = stop_harder(agent);
        if (!status && !agent->lost && !(agent->stopping && all_reported(agent))) wait_for_something(agent, more ? 0 : timeout_ms);
    }
    if (status || !agent->lost) return status;
    if (agent->hands) return gang_fail(GANG_ERR_PEER, "agent: the coordinator is gone: this node's workers are ended");
    return gang_fail(GANG_ERR_PEER,
                     "agent: the coordinator cannot be reached at %s: has it ended, is this its address, does a firewall stand between?",
                     agent->address);
}

static enum gang_status find_coordinator(struct agent *agent) {
    struct gang_wire_link *link = NULL;
    struct gang_wire_options options = {.rank = CONTROL_RANK + 1 + (int)agent->node,
                                        .listen = "127.0.0.1:0",
                                        .cluster = (uint64_t)agent->cluster,
                                        .secret_path = agent->secret_path,
                                        .heartbeat_ms = CONTROL_HEARTBEAT_MS,
                                        .dead_ms = CONTROL_DEAD_MS,
                                        .notify = agent->notify};
    struct gang_wire_plane plane = {.remote = agent->address};
    struct gang_buffer packed = {0};
    char host[256] = "?";
    const char *name = getenv("SLURMD_NODENAME");
    enum gang_status status = gang_wire_open(&options, &agent->wire);
    if (!status) status = gang_wire_join(agent->wire, &(struct gang_wire_link_options){.peer = CONTROL_RANK, .planes = 1, .plane = &plane}, &link);
    if (status) return status;
    gang_mail_init(&agent->mail, link);
    (void)gethostname(host, sizeof host - 1);
    gang_put_text(&packed, name ? name : host);
    gang_put_u64(&packed, (uint64_t)gang_os->wall_ns());
    send_packed(agent, MAIL_READY, &packed);
    return GANG_OK;
}

static void end_all(struct agent *agent) {
    signal_all(agent, SIGKILL);
    for (size_t i = 0; i < agent->count; i++) {
        struct hand *hand = &agent->hands[i];
        reap(hand, true);
        for (int s = 0; s < 2; s++) gang_fd_close(&hand->lines[s].fd);
    }
    gang_wire_close(agent->wire);
    if (agent->wire) gang_mail_release(&agent->mail);
    gang_fd_close(&agent->secret);
    gang_fd_close(&agent->notify);
    gang_fd_close(&agent->null);
    free(agent->hands);
    free(agent->polls);
    free(agent->address);
}

enum gang_status gang_agent_run(int input) {
    struct agent agent = {.input = input, .secret = -1, .node = -1, .notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .null = -1};
    agent.null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    waker = agent.notify;
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_term}, NULL);
    signal(SIGPIPE, SIG_IGN);
    enum gang_status status = be_greeted(&agent);
    if (!status) gang_cgroup_sweep();
    if (!status) status = find_coordinator(&agent);
    if (!status) status = serve(&agent);
    signal(SIGTERM, SIG_IGN);
    end_all(&agent);
    return status;
}
