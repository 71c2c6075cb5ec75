// coordinator: what control.c (the calls) and start.c (the way up and down) share. Internal to src/control.
#ifndef GANG_CONTROL_COORDINATOR_H
#define GANG_CONTROL_COORDINATOR_H

#include "control/launch.h"
#include "control/mail.h"

// An event that waits to be asked for.
struct gang_note {
    struct gang_note *next;
    struct gang_control_event event;
    char data[];
};

struct gang_node {
    const char *name;
    struct gang_launch *launch;
    struct gang_mail mail;
    bool named, ready, lost; // named: before its agent said who it is
};

struct gang_member { // a worker
    struct gang_control_worker how;
    struct gang_mail mail;
    bool joined, left, ended, condemned;
};

struct gang_control {
    struct gang_control_options options; // as given, with defaults filled in; what it points to is in the arena
    int node_count;
    bool local; // all of it
    struct gang_arena arena;
    struct gang_wire *wire;
    int notify, secret;
    char secret_path[SECRET_PATH_BYTES];
    uint64_t cluster;
    struct gang_launch *launches;
    int launch_count;
    struct gang_node *nodes;
    struct gang_member *members;
    struct pollfd *polls;
    bool starting, closing;
    struct gang_note *notes, **notes_end, *given; // given: the caller has it until the next call
    int note_count;
    struct gang_mail *taken; // the caller has its message until the next call
    int turn;                // the worker to be looked at first
    bool notes_next;         // notes and messages take turns
};

// Takes in all that has come; what is for the caller becomes a note or stays in a member's mail.
void gang_control_pump(struct gang_control *control);
// Takes what worker `w` says to us; true when a message for the caller is there.
bool gang_control_hear_member(struct gang_control *control, int w);
// Until something comes or the time is up. False when a signal came.
bool gang_control_sleep(struct gang_control *control, int64_t timeout_ms);

// start.c
GANG_CHECK_RESULT enum gang_status gang_control_order(struct gang_control *control, int node); // tells a ready agent what to start

#endif
