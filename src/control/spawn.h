// spawn: starting a process with all it needs, and the share of a core that it may have. Internal to src/control.
#ifndef GANG_CONTROL_SPAWN_H
#define GANG_CONTROL_SPAWN_H

#include "base/base.h"

struct gang_spawn {
    const char *const *argv; // argv[0] "": this program itself
    const char *variable;    // "NAME=value" that joins the environment; NULL: none
    const char *without;     // variables that begin so are left out; NULL: none
    int in, out, err;        // its standard descriptors
    int keep;                // stays open under its number (above 2); 0: none
    int procs;               // cgroup.procs of its cgroup; 0: none
    int cpu;                 // -1: any
    int dies_by;             // signal that it gets when the calling thread ends; 0: none
};
// The process leads a process group of its own and has no signal blocked or ignored. `pidfd` is the caller's.
GANG_CHECK_RESULT enum gang_status gang_spawn(const struct gang_spawn *spawn, pid_t *pid, int *pidfd);

// A pipe whose ends close on exec and are above 2; the reading end does not block.
GANG_CHECK_RESULT enum gang_status gang_pipe_open(int *from, int *to);
void gang_fd_close(int *fd); // if it is open; -1 then

// Runs a program and collects what it prints, both streams, up to 1 MiB. GANG_ERR_PEER, with its last line, when it fails
// or takes longer than a minute.
GANG_CHECK_RESULT enum gang_status gang_capture(const char *const *argv, struct gang_buffer *out);

struct gang_cgroup {
    char path[128]; // "": none
    int procs;
};
// A cgroup for worker `number` of this agent with `share` of a core. GANG_ERR_UNSUPPORTED where that cannot be had.
GANG_CHECK_RESULT enum gang_status gang_cgroup_make(int number, double share, struct gang_cgroup *out);
void gang_cgroup_remove(struct gang_cgroup *cgroup); // with the processes in it
void gang_cgroup_sweep(void);                        // removes those whose agent is gone

#endif
