// Flows that share capacities; inside sim only.
#ifndef GANG_SIM_NETWORK_H
#define GANG_SIM_NETWORK_H

#include "base/base.h"

struct gang_use {
    int resource;
    double share; // bytes on the resource for every byte of the flow
};

struct gang_flow {
    int id, tag; // tag: the owner's
    double left; // bytes
    double cap;  // bytes/s that it can do alone
    double rate;
    int use_count;
    struct gang_use *uses; // in the network's arena
};

struct gang_network {
    struct gang_arena *arena;
    int resource_count;
    double *capacity;         // [resources] bytes/s
    double *carried, *peak;   // [resources] bytes so far, bytes/s at most
    struct gang_buffer flows; // struct gang_flow, active
    int next_id;
    double now;
    bool dirty;            // rates must be worked out again
    double *room, *weight; // [resources] scratch
};

void gang_network_init(struct gang_network *network, int resources, struct gang_arena *arena);
void gang_network_release(struct gang_network *network);
int gang_network_add(struct gang_network *network, int tag, double bytes, double cap, const struct gang_use *uses, int use_count);
// When the next flow ends, if nothing is added before; INFINITY without flows.
double gang_network_next(struct gang_network *network);
// Lets time pass to `time`; the flow that ended is taken out and its tag given; -1 if none did.
int gang_network_advance(struct gang_network *network, double time);

#endif
