#include "control/spawn.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CAPTURE_BYTES = 1 << 20, CAPTURE_MS = 60000, EXIT_NOT_STARTED = 127 };
extern char **environ;

enum stage { STAGE_OWNER, STAGE_CGROUP, STAGE_CPU, STAGE_DESCRIPTORS, STAGE_EXEC };
static const char *const stage_texts[] = {"its starter is gone", "it cannot join its cgroup", "it cannot be pinned to its core",
                                          "it has no descriptors", "cannot start it"};
struct verdict {
    int stage, code;
};

void gang_fd_close(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static int above_standard(int fd) {
    if (fd < 0 || fd > 2) return fd;
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    close(fd);
    return higher;
}

enum gang_status gang_pipe_open(int *from, int *to) {
    int ends[2] = {-1, -1};
    *from = *to = -1;
    if (pipe2(ends, O_CLOEXEC)) return gang_fail_os("control: cannot make a pipe");
    *from = above_standard(ends[0]);
    *to = above_standard(ends[1]);
    if (*from >= 0 && *to >= 0 && fcntl(*from, F_SETFL, O_NONBLOCK) == 0) return GANG_OK;
    gang_fd_close(from);
    gang_fd_close(to);
    return gang_fail_os("control: cannot make a pipe");
}

// ---- In the child: only what is allowed between fork and exec ---------------------------------------------------------

static bool take_descriptors(const struct gang_spawn *spawn) {
    const int from[3] = {spawn->in, spawn->out, spawn->err};
    int moved[3];
    for (int i = 0; i < 3; i++) moved[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 3);
    for (int i = 0; i < 3; i++)
        if (moved[i] < 0 || dup2(moved[i], i) < 0) return false;
    return !spawn->keep || fcntl(spawn->keep, F_SETFD, 0) == 0;
}

static void reset_signals(void) {
    sigset_t none;
    for (int i = 1; i < NSIG; i++) signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static enum stage become(const struct gang_spawn *spawn, pid_t parent, char *const *environment) {
    cpu_set_t cpus;
    setpgid(0, 0);
    if (spawn->dies_by && (prctl(PR_SET_PDEATHSIG, spawn->dies_by) || getppid() != parent)) return STAGE_OWNER;
    if (spawn->procs && write(spawn->procs, "0", 1) != 1) return STAGE_CGROUP;
    CPU_ZERO(&cpus);
    if (spawn->cpu >= 0) CPU_SET((size_t)spawn->cpu, &cpus);
    if (spawn->cpu >= 0 && sched_setaffinity(0, sizeof cpus, &cpus)) return STAGE_CPU;
    if (!take_descriptors(spawn)) return STAGE_DESCRIPTORS;
    reset_signals();
    execvpe(spawn->argv[0][0] ? spawn->argv[0] : "/proc/self/exe", (char *const *)spawn->argv, environment);
    return STAGE_EXEC;
}

// ---- In the parent -------------------------------------------------------------------------------------------------

// The environment with `variable` in place of one of its name, without what is not to be in it.
static char **environment_for(const struct gang_spawn *spawn) {
    const char *variable = spawn->variable, *without = spawn->without;
    size_t count = 0, kept = 0, name = variable ? strcspn(variable, "=") + 1 : 0;
    while (environ[count]) count++;
    char **all = calloc(count + 2, sizeof *all);
    assert(all && "out of memory");
    for (size_t i = 0; i < count; i++) {
        bool replaced = variable && strncmp(environ[i], variable, name) == 0, dropped = without && strncmp(environ[i], without, strlen(without)) == 0;
        if (!replaced && !dropped) all[kept++] = environ[i];
    }
    all[kept] = (char *)variable;
    return all;
}

static const char *name_of(const struct gang_spawn *spawn) { return spawn->argv[0][0] ? spawn->argv[0] : "gangline"; }

static pid_t fork_quietly(const struct gang_spawn *spawn, char **environment, int verdict_fd) {
    sigset_t all, before;
    pid_t parent = getpid();
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t pid = fork();
    if (pid == 0) {
        struct verdict verdict = {.stage = (int)become(spawn, parent, environment)};
        verdict.code = errno;
        (void)!write(verdict_fd, &verdict, sizeof verdict);
        _Exit(EXIT_NOT_STARTED);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return pid;
}

static enum gang_status hear_verdict(const struct gang_spawn *spawn, pid_t pid, int from) {
    struct verdict verdict;
    ssize_t n;
    fcntl(from, F_SETFL, 0);
    while ((n = read(from, &verdict, sizeof verdict)) < 0 && errno == EINTR) {}
    if (n != (ssize_t)sizeof verdict) return GANG_OK;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {}
    errno = verdict.code;
    return gang_fail_os("%s: %s", name_of(spawn), stage_texts[verdict.stage]);
}

enum gang_status gang_spawn(const struct gang_spawn *spawn, pid_t *pid, int *pidfd) {
    int from, to;
    *pid = -1;
    *pidfd = -1;
    enum gang_status status = gang_pipe_open(&from, &to);
    if (status) return status;
    char **environment = environment_for(spawn);
    *pid = fork_quietly(spawn, environment, to);
    free(environment);
    gang_fd_close(&to);
    status = *pid < 0 ? gang_fail_os("%s: cannot fork", name_of(spawn)) : hear_verdict(spawn, *pid, from);
    gang_fd_close(&from);
    if (!status) *pidfd = (int)syscall(SYS_pidfd_open, *pid, 0);
    if (!status && *pidfd < 0) {
        status = gang_fail_os("%s: it cannot be watched", name_of(spawn));
        kill(*pid, SIGKILL);
        while (waitpid(*pid, NULL, 0) < 0 && errno == EINTR) {}
    }
    if (status) *pid = -1;
    return status;
}

// Until the end of what it prints, or the limit.
static void collect(int from, struct gang_buffer *out) {
    char chunk[4096];
    int64_t limit_ns = gang_os->now_ns() + (int64_t)CAPTURE_MS * 1000000;
    for (ssize_t n = -1; n != 0 && out->len < CAPTURE_BYTES;) {
        int64_t left_ns = limit_ns - gang_os->now_ns();
        if (left_ns <= 0) return;
        struct pollfd poller = {.fd = from, .events = POLLIN};
        if (poll(&poller, 1, (int)(left_ns / 1000000) + 1) <= 0) continue;
        n = read(from, chunk, sizeof chunk);
        if (n > 0) gang_buffer_append(out, chunk, (size_t)n);
    }
}

enum gang_status gang_capture(const char *const *argv, struct gang_buffer *out) {
    int from, to, pidfd, wait_status = 0, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    pid_t pid;
    *out = (struct gang_buffer){0};
    enum gang_status status = gang_pipe_open(&from, &to);
    if (!status) status = gang_spawn(&(struct gang_spawn){.argv = argv, .in = null, .out = to, .err = to, .cpu = -1}, &pid, &pidfd);
    gang_fd_close(&to);
    gang_fd_close(&null);
    if (!status) {
        collect(from, out);
        kill(-pid, SIGKILL); // it has ended, or it is late
        while (waitpid(pid, &wait_status, 0) < 0 && errno == EINTR) {}
        gang_fd_close(&pidfd);
    }
    gang_fd_close(&from);
    while (out->len && out->data[out->len - 1] == '\n') out->data[--out->len] = 0;
    const char *last = out->len ? strrchr(out->data, '\n') : NULL;
    if (!status && wait_status) status = gang_fail(GANG_ERR_PEER, "%s: %s", argv[0], last ? last + 1 : out->len ? out->data : "it failed");
    return status;
}
