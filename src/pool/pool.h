// pool: what there is. Sites, groups of like nodes, the links between sites, and what a device of each kind can do.
//
// A pool is read once from cluster.yaml and never changes; everything in it lives in the arena it was read into and may be
// read from any thread. Units are SI: bytes, bytes per second and direction, FLOP per second, seconds, metres.
#ifndef GANG_POOL_H
#define GANG_POOL_H

#include "base/base.h"

// The type that matrix products compute in.
enum gang_math { GANG_MATH_F16, GANG_MATH_F8, GANG_MATH_F32, GANG_MATHS };
extern const char *const gang_math_names[]; // ends with NULL; f16 stands for fp16 and bf16

enum gang_provenance { GANG_SPECIFICATION, GANG_CALIBRATED, GANG_MEASURED };
const char *gang_provenance_name(enum gang_provenance provenance);

// Seconds that a device was measured to take for the layers of one model at one sequence length, at each of `count` micro-batch sizes
// (samples, ascending). What the ends cost is beyond the layers of their chunks.
enum { GANG_TIMES_SIZES = 8 };
struct gang_times {
    int count;
    int64_t size[GANG_TIMES_SIZES];
    double forward[GANG_TIMES_SIZES], input[GANG_TIMES_SIZES], weight[GANG_TIMES_SIZES]; // of a layer
    double first_forward[GANG_TIMES_SIZES], first_backward[GANG_TIMES_SIZES];            // embedding
    double last_forward[GANG_TIMES_SIZES], last_backward[GANG_TIMES_SIZES];              // final norm; head and loss, both ways
    double optimizer;                                                                    // of a parameter
};

// A kind of device. Fields as data/devices.yaml explains them.
struct gang_kind {
    struct gang_place place;
    char *name;
    double memory_bytes, memory_bandwidth;
    double memory_reach;      // of the bandwidth, by kernels that stream
    double peak[GANG_MATHS];  // FLOP/s; 0: not supported
    double reach[GANG_MATHS]; // of the peak, by large products
    double attention_reach;   // of the f16 peak (f32 where the math is f32)
    double fast_bandwidth, nic_bandwidth;
    double host_link; // to its node's memory, a direction; 0: not stated
    double power_watt;
    int64_t cores, fast_domain;
    struct gang_strings measured, calibrated; // names of fields
    struct gang_strings calibrated_on;        // ids of the published rows that they were fitted to
    const struct gang_times *times;           // NULL: by the figures above
};

// Where a field's figure comes from.
enum gang_provenance gang_kind_provenance(const struct gang_kind *kind, const char *field);

enum gang_group_compute { GANG_GROUP_COMPUTE_JOB, GANG_GROUP_COMPUTE_F32, GANG_GROUP_COMPUTE_BF16 }; // the job's own type, or one of these

// Like nodes under one network of a site.
struct gang_group {
    struct gang_place place;
    char *name, *device;
    const struct gang_kind *kind;
    int site;               // index into the pool's sites
    int64_t nodes, devices; // devices: per node
    int64_t fast_domain;    // devices that share the high-bandwidth network; divides or is a multiple of `devices`
    double fast_bandwidth, nic_bandwidth;
    double nic_latency;                 // seconds, one way, inside the site
    double host_memory, host_bandwidth; // a node's own, bytes and bytes/s; 0: not stated
    int64_t leaf_nodes;                 // nodes under one leaf switch; 0: one flat network
    int64_t failure_domain;             // nodes that fail together: a rack, a power feed; 0: not stated
    // Of device "cpu", the processor of the node itself: how much of it one device is.
    int64_t threads;
    char *instructions;        // "": the best there is
    int compute;               // enum gang_group_compute
    double share;              // of a core; 0: all
    struct gang_strings hosts; // names of the nodes, for what starts ranks on them; none: this machine
    double price;              // of one device for an hour, in whatever money the file counts; 0: not stated
    double oversubscription;   // of the leaf's uplinks: 1 is none, 3 is 3:1
};

enum gang_site_launcher { GANG_SITE_LAUNCH_JOB, GANG_SITE_LAUNCH_LOCAL, GANG_SITE_LAUNCH_SSH, GANG_SITE_LAUNCH_SLURM };

struct gang_site {
    struct gang_place place;
    char *name;
    int launcher;                      // enum gang_site_launcher: how its ranks start
    char *slurm_conf, *login;          // of a Slurm of its own; "": not given
    struct gang_strings slurm_options; // of its allocation
    struct gang_list groups;           // of struct gang_group, as in the file
};

struct gang_link {
    struct gang_place place;
    struct gang_strings between;        // two names of sites
    int a, b;                           // their indices
    double bandwidth;                   // all planes together, each direction
    int64_t planes;                     // separate paths, as wide as each other
    double price;                       // of a gigabyte carried, either direction, in the same money as the groups' price; 0: nothing
    double outage_every, outage_length; // seconds; mean between two outages of one plane, and how long one lasts; 0: not stated
    double distance_m, rtt;             // one of the two is given
    double delay;                       // one way, seconds
};

enum { GANG_MAX_SITES = 32, GANG_MAX_LINKS = 32, GANG_MAX_ROUTE = 8 };

// The way from one site to another: links by index, and the sum of their delays. count 0 within a site.
struct gang_route {
    int count;
    int links[GANG_MAX_ROUTE];
    double delay;
};

struct gang_pool {
    struct gang_place place;
    char *path, *name;
    struct gang_list sites, links, kinds; // struct gang_site, gang_link, gang_kind (the user's own)
    int group_count;
    struct gang_group **groups; // of all sites, in the file's order
    int64_t devices;
    struct gang_route *routes; // [sites * sites]
};

static inline const struct gang_site *gang_pool_site(const struct gang_pool *pool, int i) { return (const struct gang_site *)pool->sites.items + i; }
static inline const struct gang_link *gang_pool_link(const struct gang_pool *pool, int i) { return (const struct gang_link *)pool->links.items + i; }
static inline const struct gang_route *gang_pool_route(const struct gang_pool *pool, int from, int to) {
    return &pool->routes[from * pool->sites.count + to];
}

// The built-in kinds, parsed once per call into `arena`; struct gang_kind.
void gang_kinds_builtin(struct gang_arena *arena, struct gang_list *out);
// By name among `kinds`; NULL if there is none.
const struct gang_kind *gang_kind_find(const struct gang_list *kinds, const char *name);

// A group's device whose name ends in .json is a profile that `gangline probe` wrote, its path relative to the file.
// Reads a cluster file. GANG_ERR_INPUT with file, line and column for unknown names and fields, wrong units, impossible values, links that
// leave a site apart.
GANG_CHECK_RESULT enum gang_status gang_pool_read(const char *path, struct gang_arena *arena, struct gang_pool *out);
// The same from a text; `path` is what errors call it.
GANG_CHECK_RESULT enum gang_status gang_pool_parse(const char *path, const struct gang_buffer *text, struct gang_arena *arena, struct gang_pool *out);
// A pool of one site and one group: `devices` of `kind` in nodes of `per_node`.
void gang_pool_uniform(const struct gang_kind *kind, int64_t devices, int64_t per_node, struct gang_arena *arena, struct gang_pool *out);

// Whether the file says all that offloading needs to know of the group.
static inline bool gang_group_offloads(const struct gang_group *group) {
    return group->host_memory > 0 && group->host_bandwidth > 0 && group->kind->host_link > 0;
}

// Whether the group's devices are processors that this program itself computes on.
bool gang_group_is_cpu(const struct gang_group *group);

// The smallest bandwidth on a route, bytes/s; INFINITY for none.
double gang_route_bandwidth(const struct gang_pool *pool, const struct gang_route *route);

#endif
