// launch: the process that brings agents to nodes: an agent here, an ssh, an srun. Internal to src/control.
#ifndef GANG_CONTROL_LAUNCH_H
#define GANG_CONTROL_LAUNCH_H

#include "control/mail.h"
#include "control/spawn.h"

struct gang_launch {
    pid_t pid; // -1: not running
    int pidfd;
    int input; // the agents' standard input; at its end they end
    int first_node, nodes;
    struct gang_lines lines; // what it and its agents print
    char last[256];          // of them
    char end[64];            // how it ended, in words
};

// Starts it and hands over the greeting. `node_names` are those that it serves.
GANG_CHECK_RESULT enum gang_status gang_launch_start(const struct gang_control_options *options, const struct gang_buffer *greeting,
                                                     struct gang_launch *launch);
// False while it runs; true, and `end` is set, when it has ended.
bool gang_launch_ended(struct gang_launch *launch);
void gang_launch_kill(struct gang_launch *launch, int signal_number); // with its process group
void gang_launch_release(struct gang_launch *launch);                 // kills what runs

// The names of the nodes of this allocation that a run of `options` is to use, in the arena; says what to do where there is none or
// it is too small.
GANG_CHECK_RESULT enum gang_status gang_slurm_nodes(const struct gang_control_options *options, struct gang_arena *arena, const char *const **out);
const char *gang_shell_quoted(struct gang_arena *arena, const char *text);

// "exit status 1", "signal 9 (Killed)".
void gang_say_end(int code, int signal_number, char *out, size_t bytes);

#endif
