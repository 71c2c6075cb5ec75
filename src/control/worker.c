#include "control/mail.h"
#include "control/spawn.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { VARIABLE_BYTES = 512, FIELDS = 6, LEAVE_MS = 5000, SOON_MS = 100 };
static const int64_t ms = 1000000;

struct gang_worker {
    int number, notify, secret;
    int64_t cluster;
    char address[VARIABLE_BYTES], secret_path[SECRET_PATH_BYTES];
    struct gang_wire *wire;
    struct gang_mail mail;
    bool taken; // the caller has the message until the next call
    bool stopped, dismissed;
};

int gang_worker_number(const struct gang_worker *worker) { return worker->number; }
const char *gang_worker_secret_path(const struct gang_worker *worker) { return worker->secret_path; }
uint64_t gang_worker_cluster(const struct gang_worker *worker) { return (uint64_t)worker->cluster; }

enum gang_status gang_worker_host(const struct gang_worker *worker, char out[GANG_ADDRESS_TEXT]) {
    struct gang_address remote, local;
    enum gang_status status = gang_address_resolve("worker: the coordinator", worker->address, &remote);
    if (!status) status = gang_address_towards(&remote, &local);
    if (!status) gang_address_text(&local, out);
    return status;
}

// ---- Joining -------------------------------------------------------------------------------------------------------

static enum gang_status read_variable(struct gang_worker *worker) {
    char text[VARIABLE_BYTES], *rest = text, *fields[FIELDS] = {NULL};
    const char *given = getenv(GANG_WORKER_VARIABLE);
    int64_t number, secret, agent;
    if (!given) return gang_fail(GANG_ERR_INPUT, "worker: no agent has started this process: 'gangline train' starts workers, nobody else need");
    snprintf(text, sizeof text, "%s", given);
    for (int i = 0; i < FIELDS; i++) fields[i] = strsep(&rest, " ");
    if (!fields[FIELDS - 1] || rest) return gang_fail(GANG_ERR_INPUT, "worker: %s in the environment is damaged", GANG_WORKER_VARIABLE);
    if (strcmp(fields[0], GANG_VERSION) != 0)
        return gang_fail(GANG_ERR_UNSUPPORTED, "worker: this is Gangline %s and its agent is %s: install the same version on all nodes", GANG_VERSION,
                         fields[0]);
    enum gang_status status = gang_parse_int("worker: cluster", fields[2], 0, INT64_MAX, &worker->cluster);
    if (!status) status = gang_parse_int("worker: number", fields[3], 0, GANG_CONTROL_WORKERS - 1, &number);
    if (!status) status = gang_parse_int("worker: secret", fields[4], 3, INT32_MAX, &secret);
    if (!status) status = gang_parse_int("worker: agent", fields[5], 1, INT32_MAX, &agent);
    if (status) return status;
    if (getppid() != (pid_t)agent) return gang_fail(GANG_ERR_PEER, "worker: its agent is gone, or is not what has started this process");
    worker->number = (int)number;
    worker->secret = (int)secret;
    snprintf(worker->address, sizeof worker->address, "%s", fields[1]);
    snprintf(worker->secret_path, sizeof worker->secret_path, "/proc/self/fd/%d", worker->secret);
    return GANG_OK;
}

enum gang_status gang_worker_join(struct gang_worker **out) {
    struct gang_worker *worker = calloc(1, sizeof *worker);
    struct gang_wire_link *link = NULL;
    assert(worker && "out of memory");
    *out = NULL;
    worker->secret = -1;
    worker->notify = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    enum gang_status status = read_variable(worker);
    // Not for the processes that this one may start. A program that the agent's child has started in its own place loses the
    // kernel's promise if it gained rights on the way: it is renewed.
    if (!status && (fcntl(worker->secret, F_SETFD, FD_CLOEXEC) || prctl(PR_SET_PDEATHSIG, SIGKILL)))
        status = gang_fail_os("worker: the descriptor of the secret is not there");
    if (!status)
        status = gang_wire_open(&(struct gang_wire_options){.rank = worker->number,
                                                            .listen = "127.0.0.1:0",
                                                            .cluster = (uint64_t)worker->cluster,
                                                            .secret_path = worker->secret_path,
                                                            .heartbeat_ms = CONTROL_HEARTBEAT_MS,
                                                            .dead_ms = CONTROL_DEAD_MS,
                                                            .notify = worker->notify},
                                &worker->wire);
    struct gang_wire_plane plane = {.remote = worker->address};
    if (!status) status = gang_wire_join(worker->wire, &(struct gang_wire_link_options){.peer = CONTROL_RANK, .planes = 1, .plane = &plane}, &link);
    if (!status) {
        gang_mail_init(&worker->mail, link);
        status = gang_mail_send(&worker->mail, MAIL_JOIN, NULL, 0);
    }
    if (!status) {
        *out = worker;
        return GANG_OK;
    }
    worker->mail.state = MAIL_DEAD;
    gang_worker_leave(worker);
    return status;
}

// ---- Talking -------------------------------------------------------------------------------------------------------

// Until something comes or the time is up. False when a signal came.
static bool rest_until(struct gang_worker *worker, int64_t limit_ns) {
    eventfd_t value;
    struct pollfd poller = {.fd = worker->notify, .events = POLLIN};
    int64_t left_ms = limit_ns == INT64_MAX ? -1 : (limit_ns - gang_os->now_ns()) / ms + 1;
    int ready = poll(&poller, 1, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms);
    if (ready > 0) (void)eventfd_read(worker->notify, &value);
    return ready >= 0;
}

static enum gang_status say_gone(const struct gang_worker *worker) {
    return gang_fail(GANG_ERR_PEER, "worker %d: the coordinator at %s is gone", worker->number, worker->address);
}

enum gang_status gang_worker_send(struct gang_worker *worker, uint32_t type, const void *data, size_t bytes) {
    assert(type < GANG_CONTROL_TYPES);
    while (!gang_mail_room(&worker->mail)) {
        if (worker->mail.state != MAIL_FULL) (void)gang_mail_poll(&worker->mail);
        if (worker->mail.state == MAIL_DEAD) return say_gone(worker);
        (void)rest_until(worker, gang_os->now_ns() + SOON_MS * ms);
    }
    enum gang_status status = gang_mail_send(&worker->mail, type, data, bytes);
    return status == GANG_ERR_PEER ? say_gone(worker) : status;
}

// Takes what is for us; true when a message for the caller is there.
static bool hear(struct gang_worker *worker) {
    while (gang_mail_poll(&worker->mail)) {
        if (worker->mail.type < GANG_CONTROL_TYPES) return true;
        if (worker->mail.type == MAIL_STOP) worker->stopped = true;
        if (worker->mail.type == MAIL_LEAVE) worker->dismissed = true;
        gang_mail_done(&worker->mail);
    }
    return false;
}

static void take_back(struct gang_worker *worker) {
    if (worker->taken && worker->mail.state == MAIL_FULL) gang_mail_done(&worker->mail);
    worker->taken = false;
}

enum gang_status gang_worker_next(struct gang_worker *worker, int64_t timeout_ms, struct gang_worker_event *out) {
    int64_t limit_ns = timeout_ms < 0 ? INT64_MAX : gang_os->now_ns() + timeout_ms * ms;
    *out = (struct gang_worker_event){0};
    take_back(worker);
    for (;;) {
        if (hear(worker)) {
            worker->taken = true;
            *out = (struct gang_worker_event){worker->mail.type, worker->mail.data, worker->mail.bytes};
            return GANG_OK;
        }
        if (worker->stopped) return gang_fail(GANG_ERR_STOPPED, "worker %d: the coordinator ends the run", worker->number);
        if (worker->mail.state == MAIL_DEAD) return say_gone(worker);
        if (gang_os->now_ns() >= limit_ns || !rest_until(worker, limit_ns)) return GANG_OK;
    }
}

void gang_worker_leave(struct gang_worker *worker) {
    if (!worker) return;
    int64_t limit_ns = gang_os->now_ns() + LEAVE_MS * ms;
    take_back(worker);
    if (worker->mail.link && gang_mail_send(&worker->mail, MAIL_LEAVE, NULL, 0)) worker->mail.state = MAIL_DEAD;
    while (worker->mail.link && !worker->dismissed && worker->mail.state != MAIL_DEAD && gang_os->now_ns() < limit_ns) {
        while (hear(worker)) gang_mail_done(&worker->mail);
        if (!worker->dismissed && worker->mail.state != MAIL_DEAD) (void)rest_until(worker, limit_ns);
    }
    gang_wire_close(worker->wire);
    gang_mail_release(&worker->mail);
    gang_fd_close(&worker->secret);
    gang_fd_close(&worker->notify);
    free(worker);
}
