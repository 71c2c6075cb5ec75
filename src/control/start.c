// The coordinator's way up and down.
#include "control/coordinator.h"

#include <assert.h>
#include <errno.h>
#include <ifaddrs.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <unistd.h>

enum { START_MS = 60000, AGENTS_MS = 1500, LAUNCHERS_MS = 1000, CORES_MAX = 1024, FILES_SPARE = 64, PATH_BYTES = 4096 };
static const int64_t ms = 1000000;
static const double least_share = 0.01, most_share = 1024;

// ---- What was asked ------------------------------------------------------------------------------------------------

static bool is_word(const char *text) {
    for (const char *p = text; *p; p++)
        if (*p <= 0x20 || *p >= 0x7f) return false;
    return *text != 0;
}

static enum gang_status check_workers(const struct gang_control_options *options, int nodes) {
    for (int w = 0; w < options->worker_count; w++) {
        const struct gang_control_worker *worker = &options->workers[w];
        if (worker->node < 0 || worker->node >= nodes)
            return gang_fail(GANG_ERR_INPUT, "control: worker %d: there is no node %d among %d", w, worker->node, nodes);
        if (worker->share != 0 && !(worker->share >= least_share && worker->share <= most_share))
            return gang_fail(GANG_ERR_INPUT, "control: worker %d: a share of %g of a core: expected %g to %g", w, worker->share, least_share,
                             most_share);
        if (worker->cpu < -1 || worker->cpu >= CORES_MAX) return gang_fail(GANG_ERR_INPUT, "control: worker %d: there is no core %d", w, worker->cpu);
    }
    return GANG_OK;
}

static int count_nodes(const struct gang_control_options *options) {
    int count = 0;
    for (int s = 0; s < options->site_count; s++) count += options->sites[s].node_count;
    return count;
}

static enum gang_status check_site(const struct gang_control_site *site) {
    assert(site->nodes || site->launcher == GANG_LAUNCH_SLURM);
    for (int n = 0; n < site->node_count && site->nodes; n++)
        if (!is_word(site->nodes[n])) return gang_fail(GANG_ERR_INPUT, "control: '%s' is no name of a host", site->nodes[n]);
    if (site->login && !is_word(site->login)) return gang_fail(GANG_ERR_INPUT, "control: '%s' is no name of a host", site->login);
    return GANG_OK;
}

static enum gang_status check(const struct gang_control_options *options) {
    int nodes = count_nodes(options);
    if (nodes < 1 || nodes > GANG_CONTROL_NODES || options->worker_count < 1 || options->worker_count > GANG_CONTROL_WORKERS)
        return gang_fail(GANG_ERR_INPUT, "control: %d workers on %d nodes: expected 1 to %d on 1 to %d", options->worker_count, nodes,
                         GANG_CONTROL_WORKERS, GANG_CONTROL_NODES);
    for (int s = 0; s < options->site_count; s++) {
        enum gang_status status = check_site(&options->sites[s]);
        if (status) return status;
    }
    struct rlimit files;
    rlim_t need = (rlim_t)options->worker_count + 5 * (rlim_t)nodes + FILES_SPARE;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < need)
        return gang_fail(GANG_ERR_INPUT, "control: %llu open files are needed and %llu allowed: ulimit -n %llu", (unsigned long long)need,
                         (unsigned long long)files.rlim_cur, (unsigned long long)need);
    return check_workers(options, nodes);
}

static const char *const *copy_texts(struct gang_arena *arena, const char *const *from, int count) {
    const char **to = gang_arena_alloc(arena, ((size_t)count + 1) * sizeof *to);
    for (int i = 0; i < count; i++) to[i] = gang_arena_strdup(arena, from[i]);
    return to;
}

static void keep_sites(struct gang_control *control, const struct gang_control_options *options) {
    struct gang_control_site *sites = gang_arena_alloc(&control->arena, (size_t)options->site_count * sizeof *sites);
    control->local = true;
    for (int s = 0; s < options->site_count; s++) {
        const struct gang_control_site *from = &options->sites[s];
        int further = 0;
        while (from->slurm_options && from->slurm_options[further]) further++;
        sites[s] = *from;
        if (from->name) sites[s].name = gang_arena_strdup(&control->arena, from->name);
        if (from->nodes) sites[s].nodes = copy_texts(&control->arena, from->nodes, from->node_count);
        if (from->slurm_conf) sites[s].slurm_conf = gang_arena_strdup(&control->arena, from->slurm_conf);
        if (from->login) sites[s].login = gang_arena_strdup(&control->arena, from->login);
        if (further) sites[s].slurm_options = copy_texts(&control->arena, from->slurm_options, further);
        control->local = control->local && from->launcher == GANG_LAUNCH_LOCAL;
    }
    control->options.sites = sites;
}

// The caller's options with what is left out filled in; names and arguments copied.
static void keep_options(struct gang_control *control, const struct gang_control_options *options) {
    struct gang_control_options *mine = &control->options;
    int arguments = 0;
    *mine = *options;
    keep_sites(control, options);
    while (options->worker_argv[arguments]) arguments++;
    mine->worker_argv = copy_texts(&control->arena, options->worker_argv, arguments);
    if (!mine->start_ms) mine->start_ms = START_MS;
    if (!mine->program && control->local) mine->program = "";
    if (!mine->program) {
        char path[PATH_BYTES] = "gangline";
        ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
        if (n > 0) path[n] = 0;
        mine->program = gang_arena_strdup(&control->arena, path);
    }
}

// Names of all nodes that are known before, and what brings agents to them.
static enum gang_status line_up(struct gang_control *control) {
    const char **names = gang_arena_alloc(&control->arena, (size_t)control->node_count * sizeof *names);
    enum gang_status status = gang_slurm_nodes(&control->options, &control->arena, names);
    for (int s = 0, n = 0; !status && s < control->options.site_count; s++) {
        const struct gang_control_site *site = &control->options.sites[s];
        struct gang_launch *launch = NULL;
        for (int i = 0; i < site->node_count; i++, n++) {
            struct gang_node *node = &control->nodes[n];
            if (site->nodes) names[n] = site->nodes[i];
            node->named = names[n] != NULL;
            node->name = names[n] ? names[n] : site->name ? site->name : "not known yet";
            if (!i || site->launcher != GANG_LAUNCH_SLURM) {
                launch = &control->launches[control->launch_count++];
                launch->site = site;
                launch->first_node = n;
                launch->names = node->named ? names + n : NULL;
                launch->asks = gang_slurm_asks(site);
                snprintf(launch->job_name, sizeof launch->job_name, "gangline-%016llx-%d", (unsigned long long)control->cluster, s);
            }
            launch->nodes++;
            node->launch = launch;
        }
    }
    return status;
}

// ---- Up ------------------------------------------------------------------------------------------------------------

static enum gang_status listen_text(const struct gang_control *control, char out[300]) {
    char host[256] = "localhost";
    struct gang_address address;
    if (control->options.listen || control->local) {
        snprintf(out, 300, "%s", control->options.listen ? control->options.listen : "127.0.0.1:0");
        return GANG_OK;
    }
    (void)gethostname(host, sizeof host - 1);
    snprintf(out, 300, "%s:0", host);
    enum gang_status status = gang_address_resolve("control: this host's name", out, &address);
    if (!status && gang_address_is_loopback(&address))
        status = gang_fail(GANG_ERR_INPUT, "control: this host's name, %s, means this host only: say at which address the nodes can reach it", host);
    return status;
}

static enum gang_status open_wire(struct gang_control *control) {
    char listen[300], secret[SECRET_CHARS + 1];
    control->notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (control->notify < 0 || getrandom(&control->cluster, sizeof control->cluster, 0) != (ssize_t)sizeof control->cluster)
        return gang_fail_os("control: cannot be set up");
    control->cluster >>= 1; // it travels as a positive number
    enum gang_status status = gang_secret_make(secret);
    if (!status) status = gang_secret_keep(secret, &control->secret, control->secret_path);
    explicit_bzero(secret, sizeof secret);
    if (!status) status = listen_text(control, listen);
    if (!status)
        status = gang_wire_open(&(struct gang_wire_options){.rank = CONTROL_RANK,
                                                            .listen = listen,
                                                            .cluster = control->cluster,
                                                            .secret_path = control->secret_path,
                                                            .heartbeat_ms = CONTROL_HEARTBEAT_MS,
                                                            .dead_ms = CONTROL_DEAD_MS,
                                                            .connect_ms = 2 * control->options.start_ms,
                                                            .notify = control->notify},
                                &control->wire);
    return status;
}

static enum gang_status expect(struct gang_control *control, int rank, struct gang_mail *mail) {
    struct gang_wire_link *link;
    enum gang_status status = gang_wire_join(control->wire, &(struct gang_wire_link_options){.peer = rank, .planes = 1}, &link);
    if (!status) gang_mail_init(mail, link);
    return status;
}

static enum gang_status expect_all(struct gang_control *control) {
    enum gang_status status = GANG_OK;
    for (int n = 0; !status && n < control->node_count; n++) status = expect(control, CONTROL_RANK + 1 + n, &control->nodes[n].mail);
    for (int w = 0; !status && w < control->options.worker_count; w++) status = expect(control, w, &control->members[w].mail);
    return status;
}

static enum gang_status launch(struct gang_control *control, struct gang_launch *launch) {
    struct gang_buffer greeting = {0}, secret = {0};
    enum gang_status status = gang_file_read(control->secret_path, SECRET_CHARS, &secret);
    if (!status) {
        gang_buffer_printf(&greeting, "gangline-agent %s\ncoordinator %s\ncluster %llu\nsecret %s\n", GANG_VERSION, gang_wire_address(control->wire),
                           (unsigned long long)control->cluster, secret.data);
        for (int n = launch->first_node; n < launch->first_node + launch->nodes; n++)
            gang_buffer_printf(&greeting, control->nodes[n].named ? "node %d %s\n" : "node %d\n", n, control->nodes[n].name);
        gang_buffer_printf(&greeting, "\n");
        status = gang_launch_start(&control->options, &greeting, launch);
        if (status)
            status = gang_fail(status, "control: node %d (%s): %s", launch->first_node, control->nodes[launch->first_node].name, gang_error());
    }
    if (greeting.data) explicit_bzero(greeting.data, greeting.len);
    if (secret.data) explicit_bzero(secret.data, secret.len);
    gang_buffer_release(&greeting);
    gang_buffer_release(&secret);
    return status;
}

static enum gang_status launch_all(struct gang_control *control) {
    enum gang_status status = GANG_OK;
    for (int i = 0; !status && i < control->launch_count; i++) status = launch(control, &control->launches[i]);
    return status;
}

enum gang_status gang_control_order(struct gang_control *control, int node) {
    struct gang_buffer packed = {0};
    char directory[PATH_BYTES] = "/";
    uint32_t arguments = 0, count = 0;
    (void)!getcwd(directory, sizeof directory);
    gang_put_text(&packed, directory);
    while (control->options.worker_argv[arguments]) arguments++;
    gang_put_u32(&packed, arguments);
    for (uint32_t i = 0; i < arguments; i++) gang_put_text(&packed, control->options.worker_argv[i]);
    for (int w = 0; w < control->options.worker_count; w++) count += control->members[w].how.node == node;
    gang_put_u32(&packed, count);
    for (int w = 0; w < control->options.worker_count; w++) {
        const struct gang_control_worker *how = &control->members[w].how;
        if (how->node != node) continue;
        gang_put_u32(&packed, (uint32_t)w);
        gang_put_u32(&packed, (uint32_t)how->cpu);
        gang_put_u32(&packed, (uint32_t)lround(how->share * 1e6));
    }
    enum gang_status status = gang_mail_send(&control->nodes[node].mail, MAIL_START, packed.data, packed.len);
    gang_buffer_release(&packed);
    return status;
}

static enum gang_status say_missing(const struct gang_control *control) {
    double seconds = (double)control->options.start_ms * 1e-3;
    for (int n = 0; n < control->node_count; n++)
        if (!control->nodes[n].ready)
            return gang_fail(GANG_ERR_PEER, "control: node %d (%s): its agent has not come within %g s: can it reach %s, this coordinator?%s%s", n,
                             control->nodes[n].name, seconds, gang_wire_address(control->wire), control->nodes[n].launch->last[0] ? " It says: " : "",
                             control->nodes[n].launch->last);
    for (int w = 0; w < control->options.worker_count; w++)
        if (!control->members[w].joined)
            return gang_fail(GANG_ERR_PEER, "control: worker %d on node %d (%s) has not joined within %g s: does its program call gang_worker_join?",
                             w, control->members[w].how.node, control->nodes[control->members[w].how.node].name, seconds);
    return GANG_OK;
}

// The first end of a node or worker, if there is one.
static enum gang_status say_failed(const struct gang_control *control) {
    const struct gang_note *first = NULL;
    for (const struct gang_note *note = control->notes; note; note = note->next)
        if (note->event.kind != GANG_EVENT_LOG && (!first || note->event.at_ns < first->event.at_ns)) first = note;
    return first ? gang_fail(GANG_ERR_PEER, "control: at the start: %s", first->data) : GANG_OK;
}

static bool all_joined(struct gang_control *control) {
    bool all = true;
    for (int w = 0; w < control->options.worker_count; w++) {
        (void)gang_control_hear_member(control, w);
        all = all && control->members[w].joined;
    }
    return all;
}

// Nobody of it has come.
static bool is_silent(const struct gang_control *control, const struct gang_launch *launch) {
    for (int n = launch->first_node; n < launch->first_node + launch->nodes; n++)
        if (control->nodes[n].ready) return false;
    return true;
}

static bool any_queues(const struct gang_control *control) {
    for (int i = 0; i < control->launch_count; i++)
        if (control->launches[i].asks && is_silent(control, &control->launches[i])) return true;
    return false;
}

static enum gang_status wait_for_all(struct gang_control *control) {
    int64_t limit_ns = gang_os->now_ns() + control->options.start_ms * ms;
    for (;;) {
        gang_control_pump(control);
        bool all = all_joined(control);
        enum gang_status status = say_failed(control);
        if (status || all) return status;
        if (any_queues(control)) limit_ns = gang_os->now_ns() + control->options.start_ms * ms;
        int64_t left_ns = limit_ns - gang_os->now_ns();
        if (left_ns <= 0) return say_missing(control);
        if (!gang_control_sleep(control, left_ns / ms + 1)) return gang_fail(GANG_ERR_STOPPED, "control: interrupted while starting");
    }
}

static struct gang_control *control_new(const struct gang_control_options *options) {
    struct gang_control *control = calloc(1, sizeof *control);
    assert(control && "out of memory");
    gang_arena_init(&control->arena);
    control->starting = true;
    control->notify = control->secret = -1;
    control->notes_end = &control->notes;
    keep_options(control, options);
    size_t nodes = (size_t)count_nodes(options);
    control->node_count = (int)nodes;
    control->nodes = gang_arena_alloc(&control->arena, nodes * sizeof *control->nodes);
    control->launches = gang_arena_alloc(&control->arena, nodes * sizeof *control->launches);
    control->members = gang_arena_alloc(&control->arena, (size_t)options->worker_count * sizeof *control->members);
    control->polls = gang_arena_alloc(&control->arena, (2 * nodes + 1) * sizeof *control->polls);
    for (size_t n = 0; n < nodes; n++) {
        control->nodes[n].mail.state = MAIL_DEAD;
        control->launches[n] = (struct gang_launch){.pid = -1, .pidfd = -1, .input = -1, .lines.fd = -1};
    }
    for (int w = 0; w < options->worker_count; w++) control->members[w] = (struct gang_member){.how = options->workers[w], .mail.state = MAIL_DEAD};
    return control;
}

enum gang_status gang_control_open(const struct gang_control_options *options, struct gang_control **out) {
    *out = NULL;
    enum gang_status status = check(options);
    if (status) return status;
    struct gang_control *control = control_new(options);
    status = open_wire(control);
    if (!status) status = line_up(control);
    if (!status) status = expect_all(control);
    if (!status) status = launch_all(control);
    if (!status) status = wait_for_all(control);
    control->starting = false;
    if (!status) {
        *out = control;
        return GANG_OK;
    }
    char text[GANG_ERROR_BYTES];
    snprintf(text, sizeof text, "%s", gang_error());
    gang_control_close(control);
    return gang_fail(status, "%s", text);
}

// ---- Down ----------------------------------------------------------------------------------------------------------

static bool all_ended(struct gang_control *control) {
    bool all = true;
    for (int i = 0; i < control->launch_count; i++) all = all && control->launches[i].pid < 0;
    return all;
}

static void await_launches(struct gang_control *control, int64_t within_ms) {
    int64_t limit_ns = gang_os->now_ns() + within_ms * ms;
    while (!all_ended(control) && gang_os->now_ns() < limit_ns) {
        gang_control_pump(control);
        for (int w = 0; w < control->options.worker_count; w++)
            while (gang_control_hear_member(control, w)) gang_mail_done(&control->members[w].mail);
        if (!all_ended(control)) (void)gang_control_sleep(control, (limit_ns - gang_os->now_ns()) / ms + 1);
    }
}

static void ask_to_end(struct gang_control *control) {
    for (int w = 0; w < control->options.worker_count; w++)
        if (control->members[w].joined && !control->members[w].ended) (void)!gang_mail_send(&control->members[w].mail, MAIL_STOP, NULL, 0);
    for (int n = 0; n < control->node_count; n++) {
        struct gang_node *node = &control->nodes[n];
        bool told = node->ready && !node->lost && !gang_mail_send(&node->mail, MAIL_STOP, NULL, 0);
        if (!told && node->launch->nodes == 1) gang_fd_close(&node->launch->input);
    }
    // Who has not come is not waited for.
    for (int i = 0; i < control->launch_count; i++)
        if (is_silent(control, &control->launches[i])) {
            gang_fd_close(&control->launches[i].input);
            gang_launch_kill(&control->launches[i], SIGTERM);
        }
}

static void end_launches(struct gang_control *control) {
    ask_to_end(control);
    await_launches(control, CONTROL_ASK_MS + CONTROL_TERM_MS + AGENTS_MS);
    for (int i = 0; i < control->launch_count; i++) gang_fd_close(&control->launches[i].input);
    await_launches(control, AGENTS_MS);
    for (int i = 0; i < control->launch_count; i++) gang_launch_kill(&control->launches[i], SIGTERM);
    await_launches(control, LAUNCHERS_MS);
    for (int i = 0; i < control->launch_count; i++) gang_launch_release(&control->options, &control->launches[i]);
}

void gang_control_close(struct gang_control *control) {
    if (!control) return;
    control->closing = true;
    if (control->taken && control->taken->state == MAIL_FULL) gang_mail_done(control->taken);
    if (control->launch_count) end_launches(control);
    gang_wire_close(control->wire);
    for (int n = 0; n < control->node_count; n++) gang_mail_release(&control->nodes[n].mail);
    for (int w = 0; w < control->options.worker_count; w++) gang_mail_release(&control->members[w].mail);
    if (control->local) gang_cgroup_sweep();
    for (struct gang_note *note = control->notes, *next; note; note = next) {
        next = note->next;
        free(note);
    }
    free(control->given);
    gang_fd_close(&control->secret);
    gang_fd_close(&control->notify);
    gang_arena_release(&control->arena);
    free(control);
}
