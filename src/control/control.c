// The coordinator while it runs: what comes from launchers, agents and workers becomes events.
//
// Memory is bounded: notes stop at NOTES_MAX, then agents are no longer read, they stop reading pipes, and workers wait in
// their printing. Messages of workers stay where the wire holds them back, one each.
#include "control/coordinator.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

enum { NOTES_MAX = 256, TEXT_BYTES = 2048, CLOCKS_APART_S = 30 };
static const int64_t ms = 1000000;

const char *const gang_launcher_names[] = {"local", "ssh", "slurm", NULL};

const char *gang_control_address(const struct gang_control *control) { return gang_wire_address(control->wire); }
const char *gang_control_secret_path(const struct gang_control *control) { return control->secret_path; }
uint64_t gang_control_cluster(const struct gang_control *control) { return control->cluster; }
const char *gang_control_node(const struct gang_control *control, int node) { return control->nodes[node].name; }

// ---- Notes ---------------------------------------------------------------------------------------------------------

static struct gang_note *pop(struct gang_control *control) {
    struct gang_note *note = control->notes;
    control->notes = note->next;
    if (!control->notes) control->notes_end = &control->notes;
    control->note_count--;
    return note;
}

static void add_note(struct gang_control *control, struct gang_control_event event, const char *text) {
    if (control->closing) return;
    // Nobody asks yet: of what is printed the latest is kept.
    if (control->starting && control->note_count >= NOTES_MAX) free(pop(control));
    size_t bytes = strlen(text);
    struct gang_note *note = malloc(sizeof *note + bytes + 1);
    assert(note && "out of memory");
    *note = (struct gang_note){.event = event};
    memcpy(note->data, text, bytes + 1);
    gang_text_clean(note->data);
    note->event.data = note->data;
    note->event.bytes = bytes;
    *control->notes_end = note;
    control->notes_end = &note->next;
    control->note_count++;
}

static bool room_for_notes(const struct gang_control *control) { return control->starting || control->closing || control->note_count < NOTES_MAX; }

// ---- Nodes ---------------------------------------------------------------------------------------------------------

static void say_remedy(const struct gang_control *control, const struct gang_node *node, char *out, size_t bytes) {
    const char *end = node->launch->end;
    const struct gang_control_site *site = node->launch->site;
    bool by_ssh = site->launcher == GANG_LAUNCH_SSH || site->login;
    *out = 0;
    if (node->ready) return;
    if (!strcmp(end, site->launcher == GANG_LAUNCH_SLURM ? "exit status 2" : "exit status 127"))
        snprintf(out, bytes, ": is gangline installed there, as %.256s?", control->options.program);
    if (by_ssh && !strcmp(end, "exit status 255"))
        snprintf(out, bytes, ": is the host up, and does 'ssh -o BatchMode=yes %.256s true' work without a password?",
                 site->login ? site->login : node->name);
}

static void lose_node(struct gang_control *control, int n) {
    struct gang_node *node = &control->nodes[n];
    static const char *const programs[] = {"the agent", "ssh", "srun"};
    char text[TEXT_BYTES], remedy[TEXT_BYTES / 2];
    if (node->lost) return;
    node->lost = true;
    say_remedy(control, node, remedy, sizeof remedy);
    int used = snprintf(text, sizeof text, "node %d (%s) %s: ", n, node->name, node->ready ? "is lost" : "has no agent");
    if (node->launch->end[0]) {
        snprintf(text + used, sizeof text - (size_t)used, "%s ended with %s%s%s%s%s",
                 programs[node->launch->site->login ? GANG_LAUNCH_SSH : node->launch->site->launcher], node->launch->end,
                 node->launch->last[0] ? ": '" : "", node->launch->last, node->launch->last[0] ? "'" : "", remedy);
    } else {
        snprintf(text + used, sizeof text - (size_t)used, "its agent does not answer any more");
        if (node->launch->nodes == 1) gang_launch_kill(node->launch, SIGKILL);
    }
    add_note(control, (struct gang_control_event){.kind = GANG_EVENT_NODE_LOST, .worker = -1, .node = n, .at_ns = gang_os->now_ns()}, text);
    for (int w = 0; w < control->options.worker_count; w++) {
        struct gang_member *member = &control->members[w];
        if (member->how.node != n || member->ended) continue;
        member->ended = true;
        // Where only the agent hangs they can still be told.
        if (member->joined) (void)!gang_mail_send(&member->mail, MAIL_STOP, NULL, 0);
    }
}

// Whether the line is to be quoted rather than the one before: what srun says about a task's end is worth less than what the task said.
static bool tells_more(const char *line, const char *last) {
    static const char srun[] = "srun: ";
    size_t n = sizeof srun - 1;
    return *line && (strncmp(line, srun, n) != 0 || !*last || strncmp(last, srun, n) == 0);
}

static void hear_launch(struct gang_control *control, struct gang_launch *launch) {
    bool ended = launch->pidfd >= 0 && gang_launch_ended(launch);
    while (room_for_notes(control) && gang_lines_next(&launch->lines) == LINE_READY) {
        if (tells_more(launch->lines.line, launch->last)) snprintf(launch->last, sizeof launch->last, "%.255s", launch->lines.line);
        gang_text_clean(launch->last);
        // What Slurm says of its queue is for now, not for when the waiting is over.
        if (control->starting && !strncmp(launch->lines.line, "srun: job ", 10)) {
            gang_log(GANG_LOG_INFO, "%s%s%.255s", launch->site->name ? launch->site->name : "", launch->site->name ? ": " : "", launch->lines.line);
            continue;
        }
        add_note(control,
                 (struct gang_control_event){.kind = GANG_EVENT_LOG, .worker = -1, .node = launch->first_node, .type = 2, .at_ns = gang_os->now_ns()},
                 launch->lines.line);
    }
    if (!ended) return;
    gang_fd_close(&launch->pidfd);
    for (int n = launch->first_node; n < launch->first_node + launch->nodes; n++) lose_node(control, n);
}

// ---- What agents say -------------------------------------------------------------------------------------------------

// The worker of this number, if it is on the node.
static struct gang_member *member_of(struct gang_control *control, int node, uint32_t number) {
    if (number >= (uint32_t)control->options.worker_count || control->members[number].how.node != node) return NULL;
    return &control->members[number];
}

static void note_line(struct gang_control *control, int node, struct gang_reader *packed) {
    struct gang_control_event event = {.kind = GANG_EVENT_LOG, .node = node};
    uint32_t number = gang_get_u32(packed);
    event.type = gang_get_u32(packed);
    event.at_ns = (int64_t)gang_get_u64(packed) + control->nodes[node].mail.offset_ns;
    const char *line = gang_get_text(packed);
    event.worker = (int)number;
    if (!packed->bad && member_of(control, node, number)) add_note(control, event, line);
}

static void note_exit(struct gang_control *control, int node, struct gang_reader *packed) {
    struct gang_control_event event = {.kind = GANG_EVENT_EXIT, .node = node};
    char text[TEXT_BYTES], end[64];
    uint32_t number = gang_get_u32(packed);
    event.code = (int)gang_get_u32(packed);
    event.signal = (int)gang_get_u32(packed);
    event.at_ns = (int64_t)gang_get_u64(packed) + control->nodes[node].mail.offset_ns;
    const char *why = gang_get_text(packed), *last = gang_get_text(packed);
    struct gang_member *member = member_of(control, node, number);
    if (packed->bad || !member || member->ended) return;
    member->ended = true;
    event.worker = (int)number;
    gang_say_end(event.code, event.signal, end, sizeof end);
    snprintf(text, sizeof text, "worker %u on node %d (%s) ended with %s%s%.512s%s%.512s%s", number, node, control->nodes[node].name, end,
             *why ? ": " : "", why, *last ? "; its last line: '" : "", last, *last ? "'" : "");
    add_note(control, event, text);
}

// The run itself goes by clocks that nobody sets; but what is written here and there, and who looks at it, does not.
static bool clocks_agree(struct gang_control *control, int n, int64_t wall_ns) {
    double apart = (double)(wall_ns - gang_os->wall_ns()) * 1e-9;
    char text[TEXT_BYTES];
    if (fabs(apart) < CLOCKS_APART_S) return true;
    snprintf(text, sizeof text, "node %d (%s): its clock is %.0f s %s this host's: set both right, by NTP", n, control->nodes[n].name, fabs(apart),
             apart > 0 ? "ahead of" : "behind");
    add_note(control, (struct gang_control_event){.kind = GANG_EVENT_NODE_LOST, .worker = -1, .node = n, .at_ns = gang_os->now_ns()}, text);
    return false;
}

static void greet_node(struct gang_control *control, int n, struct gang_reader *packed) {
    struct gang_node *node = &control->nodes[n];
    const char *name = gang_get_text(packed);
    int64_t wall_ns = (int64_t)gang_get_u64(packed);
    node->ready = true;
    if (!node->named && *name) {
        char *copy = gang_arena_strdup(&control->arena, name);
        gang_text_clean(copy);
        node->name = copy;
    }
    if (clocks_agree(control, n, wall_ns) && gang_control_order(control, n)) lose_node(control, n);
}

static void note_end(struct gang_control *control, int n) {
    char text[TEXT_BYTES];
    snprintf(text, sizeof text, "node %d (%s) is about to end: its agent was sent SIGTERM, by Slurm or by who shuts the machine down", n,
             control->nodes[n].name);
    add_note(control, (struct gang_control_event){.kind = GANG_EVENT_NODE_ENDS, .worker = -1, .node = n, .at_ns = gang_os->now_ns()}, text);
}

static void hear_node(struct gang_control *control, int n) {
    struct gang_node *node = &control->nodes[n];
    while (!node->lost && room_for_notes(control) && gang_mail_poll(&node->mail)) {
        struct gang_reader packed = {.data = node->mail.data, .left = node->mail.bytes};
        if (node->mail.type == MAIL_READY && !node->ready) greet_node(control, n, &packed);
        if (node->mail.type == MAIL_ENDS) note_end(control, n);
        if (node->mail.type == MAIL_LOG) note_line(control, n, &packed);
        if (node->mail.type == MAIL_EXIT) note_exit(control, n, &packed);
        gang_mail_done(&node->mail);
    }
    if (node->mail.state != MAIL_DEAD || node->lost) return;
    // What started it knows better why, if it has ended too.
    hear_launch(control, node->launch);
    lose_node(control, n);
}

// ---- What workers say ------------------------------------------------------------------------------------------------

bool gang_control_hear_member(struct gang_control *control, int w) {
    struct gang_member *member = &control->members[w];
    while (gang_mail_poll(&member->mail)) {
        if (member->mail.type < GANG_CONTROL_TYPES && member->joined) return true;
        if (member->mail.type == MAIL_JOIN) member->joined = true;
        if (member->mail.type == MAIL_LEAVE) {
            member->left = true;
            if (gang_mail_send(&member->mail, MAIL_LEAVE, NULL, 0)) member->ended = true;
        }
        gang_mail_done(&member->mail);
    }
    struct gang_node *node = &control->nodes[member->how.node];
    if (member->mail.state == MAIL_DEAD && !member->left && !member->ended && !member->condemned && !control->closing) {
        struct gang_buffer packed = {0};
        member->condemned = true;
        gang_put_u32(&packed, (uint32_t)w);
        gang_put_text(&packed, "it did not answer any more");
        if (gang_mail_send(&node->mail, MAIL_KILL, packed.data, packed.len)) lose_node(control, member->how.node);
        gang_buffer_release(&packed);
    }
    return false;
}

static int find_message(struct gang_control *control) {
    int count = control->options.worker_count;
    for (int i = 0; i < count; i++) {
        int w = (control->turn + i) % count;
        if (gang_control_hear_member(control, w)) return w;
    }
    return -1;
}

void gang_control_pump(struct gang_control *control) {
    for (int i = 0; i < control->launch_count; i++) hear_launch(control, &control->launches[i]);
    for (int n = 0; n < control->node_count; n++) hear_node(control, n);
}

bool gang_control_sleep(struct gang_control *control, int64_t timeout_ms) {
    nfds_t count = 0;
    eventfd_t value;
    bool room = room_for_notes(control);
    control->polls[count++] = (struct pollfd){.fd = control->notify, .events = POLLIN};
    for (int i = 0; i < control->launch_count; i++) {
        control->polls[count++] = (struct pollfd){.fd = control->launches[i].pidfd, .events = POLLIN};
        control->polls[count++] = (struct pollfd){.fd = room ? control->launches[i].lines.fd : -1, .events = POLLIN};
    }
    int ready = poll(control->polls, count, timeout_ms < 0 ? -1 : timeout_ms > INT32_MAX ? INT32_MAX : (int)timeout_ms);
    if (ready > 0 && control->polls[0].revents) (void)eventfd_read(control->notify, &value);
    return ready >= 0;
}

// ---- The calls -----------------------------------------------------------------------------------------------------

enum gang_status gang_control_send(struct gang_control *control, int worker, uint32_t type, const void *data, size_t bytes) {
    assert(worker >= 0 && worker < control->options.worker_count && type < GANG_CONTROL_TYPES);
    struct gang_member *member = &control->members[worker];
    if (member->ended) return gang_fail(GANG_ERR_PEER, "worker %d has ended: it takes no more messages", worker);
    enum gang_status status = gang_mail_send(&member->mail, type, data, bytes);
    return status == GANG_ERR_PEER ? gang_fail(status, "worker %d: %s", worker, gang_error()) : status;
}

enum gang_status gang_control_broadcast(struct gang_control *control, uint32_t type, const void *data, size_t bytes) {
    enum gang_status status = GANG_OK;
    for (int w = 0; !status && w < control->options.worker_count; w++)
        if (!control->members[w].ended) status = gang_control_send(control, w, type, data, bytes);
    return status;
}

static void take_back(struct gang_control *control) {
    if (control->taken && control->taken->state == MAIL_FULL) gang_mail_done(control->taken);
    free(control->given);
    control->taken = NULL;
    control->given = NULL;
}

static bool give(struct gang_control *control, struct gang_control_event *out) {
    int w = control->notes && control->notes_next ? -1 : find_message(control);
    control->notes_next = w >= 0;
    if (w >= 0) {
        struct gang_mail *mail = control->taken = &control->members[w].mail;
        control->turn = w + 1;
        *out = (struct gang_control_event){.kind = GANG_EVENT_MESSAGE,
                                           .worker = w,
                                           .node = control->members[w].how.node,
                                           .type = mail->type,
                                           .data = mail->data,
                                           .bytes = mail->bytes,
                                           .at_ns = mail->at_ns};
        return true;
    }
    if (!control->notes) return false;
    control->given = pop(control);
    *out = control->given->event;
    return true;
}

enum gang_status gang_control_next(struct gang_control *control, int64_t timeout_ms, struct gang_control_event *out) {
    int64_t limit_ns = timeout_ms < 0 ? INT64_MAX : gang_os->now_ns() + timeout_ms * ms;
    *out = (struct gang_control_event){.worker = -1, .node = -1};
    take_back(control);
    for (;;) {
        gang_control_pump(control);
        if (give(control, out)) return GANG_OK;
        int64_t left_ns = limit_ns - gang_os->now_ns();
        if (timeout_ms >= 0 && left_ns <= 0) return GANG_OK;
        if (!gang_control_sleep(control, timeout_ms < 0 ? -1 : left_ns / ms + 1)) return GANG_OK;
    }
}
