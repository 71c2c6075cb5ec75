#include "control/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HAND_OVER_MS = 5000, ARGUMENTS = 64 };

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

static void ssh_words(const struct gang_control_options *options, const struct gang_launch *launch, struct gang_arena *arena, struct words *words) {
    add(words, "ssh");
    add(words, "-oBatchMode=yes"); // nobody is there to be asked for a password
    add(words, "-oConnectTimeout=10");
    add(words, "-T");
    for (int i = 0; options->ssh_options && options->ssh_options[i]; i++) add(words, options->ssh_options[i]);
    add(words, "--");
    add(words, options->nodes[launch->first_node]);
    add(words, gang_arena_printf(arena, "exec %s agent", gang_shell_quoted(arena, options->program)));
}

static void srun_words(const struct gang_control_options *options, struct gang_arena *arena, struct words *words) {
    struct gang_buffer list = {0};
    for (int n = 0; n < options->node_count; n++) gang_buffer_printf(&list, "%s%s", n ? "," : "", options->nodes[n]);
    add(words, "srun");
    add(words, gang_arena_printf(arena, "--nodes=%d", options->node_count));
    add(words, gang_arena_printf(arena, "--ntasks=%d", options->node_count));
    add(words, "--ntasks-per-node=1");
    add(words, gang_arena_printf(arena, "--nodelist=%s", list.data));
    add(words, "--overlap");            // with whatever else runs in the allocation
    add(words, "--cpu-bind=none");      // workers share the node out among themselves
    add(words, "--kill-on-bad-exit=0"); // a node that is lost takes no other with it
    add(words, "--no-kill");
    add(words, "--wait=0");
    add(words, "--");
    add(words, options->program);
    add(words, "agent");
    gang_buffer_release(&list);
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
    if (options->launcher == GANG_LAUNCH_SSH) {
        ssh_words(options, launch, &arena, &words);
    } else if (options->launcher == GANG_LAUNCH_SLURM) {
        srun_words(options, &arena, &words);
    } else {
        add(&words, options->program);
        add(&words, "agent");
    }
    enum gang_status status = GANG_OK;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) status = gang_fail_os("control: cannot make a socket");
    if (!status) status = gang_pipe_open(&launch->lines.fd, &out);
    if (!status)
        status = gang_spawn(&(struct gang_spawn){.argv = words.items, .in = ends[1], .out = out, .err = out, .cpu = -1}, &launch->pid,
                            &launch->pidfd);
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
    launch->pid = -1;
    return true;
}

void gang_launch_kill(struct gang_launch *launch, int signal_number) {
    if (launch->pid > 0) kill(-launch->pid, signal_number);
}

void gang_launch_release(struct gang_launch *launch) {
    gang_launch_kill(launch, SIGKILL);
    while (launch->pid > 0 && waitpid(launch->pid, NULL, 0) < 0 && errno == EINTR) {}
    launch->pid = -1;
    gang_fd_close(&launch->pidfd);
    gang_fd_close(&launch->input);
    gang_fd_close(&launch->lines.fd);
}
