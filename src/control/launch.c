#include "control/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HAND_OVER_MS = 5000, ARGUMENTS = 128 };

void gang_say_end(int code, int signal_number, char *out, size_t bytes) {
    if (signal_number) {
        snprintf(out, bytes, "signal %d (%s)", signal_number, strsignal(signal_number));
    } else {
        snprintf(out, bytes, "exit status %d", code);
    }
}

// For the shell on the other side, which ssh always asks.
const char *gang_shell_quoted(struct gang_arena *arena, const char *text) {
    char *out = gang_arena_alloc(arena, 4 * strlen(text) + 3), *p = out;
    *p++ = '\'';
    for (; *text; text++) {
        if (*text == '\'') {
            memcpy(p, "'\\''", 4);
            p += 4;
        } else {
            *p++ = *text;
        }
    }
    *p = '\'';
    return out;
}

struct words {
    const char *items[ARGUMENTS];
    int count;
};

static void add(struct words *words, const char *word) {
    if (words->count < ARGUMENTS - 1) words->items[words->count++] = word;
}

static void ssh_words(const struct gang_control_options *options, const char *host, const char *command, struct words *words) {
    add(words, "ssh");
    add(words, "-oBatchMode=yes"); // nobody is there to be asked for a password
    add(words, "-oConnectTimeout=10");
    add(words, "-T");
    for (int i = 0; options->ssh_options && options->ssh_options[i]; i++) add(words, options->ssh_options[i]);
    add(words, "--");
    add(words, host);
    add(words, command);
}

static void srun_words(const struct gang_launch *launch, const char *program, struct gang_arena *arena, struct words *words) {
    const char *const *further = launch->asks ? launch->site->slurm_options : NULL;
    struct gang_buffer list = {0};
    for (int n = 0; launch->names && n < launch->nodes; n++) gang_buffer_printf(&list, "%s%s", n ? "," : "--nodelist=", launch->names[n]);
    add(words, "srun");
    add(words, gang_arena_printf(arena, "--nodes=%d", launch->nodes));
    add(words, gang_arena_printf(arena, "--ntasks=%d", launch->nodes));
    add(words, "--ntasks-per-node=1");
    if (list.data) add(words, gang_arena_strdup(arena, list.data));
    add(words, launch->asks ? gang_arena_printf(arena, "--job-name=%s", launch->job_name) : "--overlap"); // with whatever else runs in the allocation
    add(words, "--cpu-bind=none");      // workers share the node out among themselves
    add(words, "--kill-on-bad-exit=0"); // a node that is lost takes no other with it
    add(words, "--no-kill");
    add(words, "--wait=0");
    for (int i = 0; further && further[i]; i++) add(words, further[i]);
    add(words, "--");
    add(words, program);
    add(words, "agent");
    gang_buffer_release(&list);
}

// On a host of the cluster. When ssh ends so does the server's process for it, and the kernel tells srun.
static const char *srun_elsewhere(const struct gang_control_site *site, const struct words *srun, struct gang_arena *arena) {
    const char *conf = site->slurm_conf ? gang_arena_printf(arena, "SLURM_CONF=%s ", gang_shell_quoted(arena, site->slurm_conf)) : "";
    const char *command = gang_arena_printf(arena, "%sexec setpriv --pdeathsig TERM", conf);
    for (int i = 0; i < srun->count; i++) command = gang_arena_printf(arena, "%s %s", command, gang_shell_quoted(arena, srun->items[i]));
    return command;
}

static void launch_words(const struct gang_control_options *options, const struct gang_launch *launch, struct gang_arena *arena,
                         struct words *words) {
    const struct gang_control_site *site = launch->site;
    struct words srun = {0};
    if (site->launcher == GANG_LAUNCH_SSH) {
        ssh_words(options, launch->names[0], gang_arena_printf(arena, "exec %s agent", gang_shell_quoted(arena, options->program)), words);
    } else if (site->launcher == GANG_LAUNCH_LOCAL) {
        add(words, options->program);
        add(words, "agent");
    } else if (site->login) {
        srun_words(launch, options->program, arena, &srun);
        ssh_words(options, site->login, srun_elsewhere(site, &srun, arena), words);
    } else {
        srun_words(launch, options->program, arena, words);
    }
}

static enum gang_status hand_over(struct gang_launch *launch, const struct gang_buffer *greeting) {
    for (size_t done = 0; done < greeting->len;) {
        ssize_t n = send(launch->input, greeting->data + done, greeting->len - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return GANG_OK; // it has ended, or hangs: both will be seen
        done += (size_t)n;
    }
    return GANG_OK;
}

enum gang_status gang_launch_start(const struct gang_control_options *options, const struct gang_buffer *greeting, struct gang_launch *launch) {
    struct gang_arena arena;
    struct words words = {0};
    int ends[2] = {-1, -1}, out = -1;
    gang_arena_init(&arena);
    launch_words(options, launch, &arena, &words);
    // Of another cluster: nothing of the allocation that may surround us is to reach its srun.
    const char *conf = launch->site->login ? NULL : launch->site->slurm_conf;
    enum gang_status status = GANG_OK;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) status = gang_fail_os("control: cannot make a socket");
    if (!status) status = gang_pipe_open(&launch->lines.fd, &out);
    if (!status)
        status = gang_spawn(&(struct gang_spawn){.argv = words.items,
                                                 .variable = conf ? gang_arena_printf(&arena, "SLURM_CONF=%s", conf) : NULL,
                                                 .without = conf ? "SLURM_" : NULL,
                                                 .in = ends[1],
                                                 .out = out,
                                                 .err = out,
                                                 .cpu = -1,
                                                 .dies_by = SIGTERM},
                            &launch->pid, &launch->pidfd);
    if (!status) {
        struct timeval limit = {.tv_sec = HAND_OVER_MS / 1000};
        launch->input = ends[0];
        ends[0] = -1;
        setsockopt(launch->input, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
        status = hand_over(launch, greeting);
    }
    gang_fd_close(&ends[0]);
    gang_fd_close(&ends[1]);
    gang_fd_close(&out);
    gang_arena_release(&arena);
    return status;
}

bool gang_launch_ended(struct gang_launch *launch) {
    int status = 0;
    if (launch->pid < 0) return true;
    if (waitpid(launch->pid, &status, WNOHANG) == 0) return false;
    gang_say_end(WIFEXITED(status) ? WEXITSTATUS(status) : 0, WIFSIGNALED(status) ? WTERMSIG(status) : 0, launch->end, sizeof launch->end);
    launch->killed = WIFSIGNALED(status);
    launch->pid = -1;
    return true;
}

void gang_launch_kill(struct gang_launch *launch, int signal_number) {
    if (launch->pid > 0) kill(-launch->pid, signal_number);
}

static void cancel_job(const struct gang_control_options *options, const struct gang_launch *launch) {
    struct gang_arena arena;
    struct gang_buffer said = {0};
    struct words words = {0};
    const struct gang_control_site *site = launch->site;
    gang_arena_init(&arena);
    const char *conf = site->slurm_conf ? gang_arena_printf(&arena, "SLURM_CONF=%s", site->slurm_conf) : "LC_ALL=C";
    const char *name = gang_arena_printf(&arena, "--name=%s", launch->job_name);
    if (site->login) {
        ssh_words(options, site->login, gang_arena_printf(&arena, "env %s scancel %s", gang_shell_quoted(&arena, conf), name), &words);
    } else {
        words = (struct words){{"env", conf, "scancel", name}, 4};
    }
    if (gang_capture(words.items, &said)) gang_log(GANG_LOG_WARNING, "job %s of Slurm's may be left: %s", launch->job_name, gang_error());
    gang_buffer_release(&said);
    gang_arena_release(&arena);
}

void gang_launch_release(const struct gang_control_options *options, struct gang_launch *launch) {
    launch->killed = launch->killed || launch->pid > 0;
    gang_launch_kill(launch, SIGKILL);
    while (launch->pid > 0 && waitpid(launch->pid, NULL, 0) < 0 && errno == EINTR) {}
    launch->pid = -1;
    if (launch->asks && launch->killed) cancel_job(options, launch);
    gang_fd_close(&launch->pidfd);
    gang_fd_close(&launch->input);
    gang_fd_close(&launch->lines.fd);
}
