// launch: the process that brings agents to nodes: an agent here, an ssh, an srun for all of a site. Internal to src/control.
#ifndef GANG_CONTROL_LAUNCH_H
#define GANG_CONTROL_LAUNCH_H

#include "control/mail.h"
#include "control/spawn.h"

struct gang_launch {
    pid_t pid; // -1: not running
    int pidfd;
    int input; // the agents' standard input; at its end they end
    const struct gang_control_site *site;
    int first_node, nodes;
    const char *const *names; // of its nodes; NULL: Slurm chooses them
    bool asks, killed;        // srun asks for an allocation; it was killed
    char job_name[40];        // of the allocation
    struct gang_lines lines;  // what it and its agents print
    char last[256];           // of them
    char end[64];             // how it ended, in words
};

// Starts it and hands over the greeting.
GANG_CHECK_RESULT enum gang_status gang_launch_start(const struct gang_control_options *options, const struct gang_buffer *greeting,
                                                     struct gang_launch *launch);
// False while it runs; true, and `end` is set, when it has ended.
bool gang_launch_ended(struct gang_launch *launch);
void gang_launch_kill(struct gang_launch *launch, int signal_number); // with its process group
// Kills what runs. An srun that was killed, here or by others, would leave its job behind: it is cancelled.
void gang_launch_release(const struct gang_control_options *options, struct gang_launch *launch);

// Whether the site's srun asks for an allocation, rather than working inside the one that surrounds us.
bool gang_slurm_asks(const struct gang_control_site *site);
// The names of the nodes of the surrounding allocation that the sites which work inside it are to use, one site after the other;
// says what to do where it is too small.
GANG_CHECK_RESULT enum gang_status gang_slurm_nodes(const struct gang_control_options *options, struct gang_arena *arena, const char **out);
const char *gang_shell_quoted(struct gang_arena *arena, const char *text);

// "exit status 1", "signal 9 (Killed)".
void gang_say_end(int code, int signal_number, char *out, size_t bytes);

#endif
