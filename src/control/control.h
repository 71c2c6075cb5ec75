// control: starts processes on the nodes of a run and hears from them. A coordinator (whoever calls gang_control_open) starts one
// agent per node, by fork here, by ssh or by Slurm, each site in its own way; each agent starts the workers of its node. It knows
// nothing of training.
//
//     const char *const nodes[] = {"a", "b"}, *const argv[] = {"", "rank", NULL};            // "": the agent's own program
//     const struct gang_control_worker workers[] = {{.node = 0, .cpu = -1}, {.node = 1, .cpu = -1, .share = 0.5}};
//     const struct gang_control_site site = {.launcher = GANG_LAUNCH_SSH, .node_count = 2, .nodes = nodes};
//     struct gang_control_options options = {.site_count = 1, .sites = &site, .worker_count = 2, .workers = workers, .worker_argv = argv};
//     struct gang_control *control;
//     struct gang_control_event event;
//     enum gang_status status = gang_control_open(&options, &control);                       // all have joined, or an error that says why
//     if (!status) status = gang_control_broadcast(control, MY_JOB, job, job_bytes);
//     for (int living = 2; !status && living;) {
//         status = gang_control_next(control, 1000, &event);
//         if (event.kind == GANG_EVENT_MESSAGE) handle(event.worker, event.type, event.data, event.bytes);
//         if (event.kind == GANG_EVENT_LOG) printf("%d: %s\n", event.worker, (const char *)event.data);
//         if (event.kind == GANG_EVENT_EXIT) living--, note(event.at_ns, event.data);        // the earliest failure is the cause
//         if (event.kind == GANG_EVENT_NODE_LOST) break;
//     }
//     gang_control_close(control);                                                           // nothing is left, here or there
//
//     struct gang_worker *worker;                                                            // `gangline rank`, on a node
//     enum gang_status status = gang_worker_join(&worker);
//     if (!status) status = gang_worker_send(worker, MY_RESULT, "done", 4);
//     gang_worker_leave(worker);
//
// What holds. All traffic runs over src/wire under TLS with a secret of the run's own, which lives in memory only: it reaches
// agents over their standard input and workers as an inherited descriptor, so no command line, environment or file has it.
// Whoever is lost takes along what hangs on it: workers die with their agent at once, agents and workers within two seconds
// of the coordinator, even when it is killed. Process groups are killed as a whole; a grandchild that made a session
// of its own is beyond that, except where its worker has a share (a cgroup).
//
// A gang_control or gang_worker belongs to one thread. Errors: GANG_ERR_INPUT and GANG_ERR_UNSUPPORTED for what was asked,
// GANG_ERR_PEER for what happened to other processes.
#ifndef GANG_CONTROL_H
#define GANG_CONTROL_H

#include "base/base.h"

enum gang_launcher { GANG_LAUNCH_LOCAL, GANG_LAUNCH_SSH, GANG_LAUNCH_SLURM };
extern const char *const gang_launcher_names[]; // ends with NULL

enum {
    GANG_CONTROL_MESSAGE_BYTES = 64 << 20, // at most
    GANG_CONTROL_LINE_BYTES = 4096,        // longer log lines are cut
    GANG_CONTROL_TYPES = 1 << 30,          // message types are below this
    GANG_CONTROL_NODES = 1024,
    GANG_CONTROL_WORKERS = 4096,
};

// ---- The coordinator -----------------------------------------------------------------------------------------------

struct gang_control_worker {
    int node;
    double share; // of a core, 0.01 and more; 0: all there is. By a cgroup of the worker's own: needs root on the node
    int cpu;      // pinned to this core; -1: any
};

// Nodes that are started alike.
struct gang_control_site {
    const char *name; // for messages; NULL: none
    enum gang_launcher launcher;
    int node_count;           // the next so many of all
    const char *const *nodes; // host names for ssh; local: any names, for messages; slurm: NULL: whichever the allocation has
    // Of slurm. An srun runs inside the allocation that surrounds this process; where there is none, and for a cluster that is named
    // here, it asks for one of its own, which ends with it.
    const char *slurm_conf;           // of another cluster than this host's; NULL: this host's
    const char *login;                // a host of the cluster on which srun is started, by ssh; NULL: here
    const char *const *slurm_options; // for an allocation of its own, such as --partition=gpu; ends with NULL; NULL: none
};

struct gang_control_options {
    const char *program; // of gangline on the nodes; NULL: this very program
    int site_count;
    const struct gang_control_site *sites;
    int worker_count;
    const struct gang_control_worker *workers;
    const char *const *worker_argv; // ends with NULL; argv[0] "" is the agent's own program, else looked up in PATH
    const char *listen;             // "host:port" of the coordinator; NULL: 127.0.0.1 if all is local, else this host's name; any port
    const char *const *ssh_options; // further arguments of ssh, ends with NULL; NULL: none
    int64_t start_ms;               // to have all workers up once Slurm has given what was asked for; 0: 60000
};

struct gang_control;

enum gang_event {
    GANG_EVENT_NONE,      // the time is up
    GANG_EVENT_MESSAGE,   // from a worker
    GANG_EVENT_LOG,       // a line of a worker's stdout (type 1) or stderr (type 2); worker -1: the node's launcher or agent
    GANG_EVENT_EXIT,      // the worker has ended; `data` says how, with its last line on stderr
    GANG_EVENT_NODE_ENDS, // its agent was sent SIGTERM: by Slurm before a limit or a kill, by a machine that shuts down; `data` says it
    GANG_EVENT_NODE_LOST, // the agent is gone and with it all workers of the node, for which no EXIT comes; `data` says why
};

// `data` is valid until the next call, followed by a 0 byte, and for all others one line of printable UTF-8. All messages of
// a worker come in order and before its EXIT if it called gang_worker_leave; all its lines of one stream come in order and before
// its EXIT.
struct gang_control_event {
    enum gang_event kind;
    int worker, node;
    uint32_t type;
    const void *data;
    size_t bytes;
    int64_t at_ns;    // when it happened, by this process's monotonic clock; between nodes exact to the delay of a message
    int code, signal; // of EXIT: the exit status, or the signal if not 0
};

// Starts everything and returns when all workers have joined. On failure all is ended and the error names the node.
// gang_control_open never touches signal handlers; the caller ends a run on SIGTERM (Slurm's scancel and time limit) by calling
// gang_control_close, which takes at most GANG_CONTROL_CLOSE_MS. The caller may close standard input, but must not reap children
// that are not its own (no wait for any child).
GANG_CHECK_RESULT enum gang_status gang_control_open(const struct gang_control_options *options, struct gang_control **out);
// "host:port" of the coordinator, and the secret and cluster number for wires of the caller's own; the path opens in this
// process only.
const char *gang_control_address(const struct gang_control *control);
const char *gang_control_secret_path(const struct gang_control *control);
const char *gang_control_node(const struct gang_control *control, int node); // its name
uint64_t gang_control_cluster(const struct gang_control *control);
// Copies and queues; never waits. GANG_ERR_PEER when the worker has ended, or has let 200 messages pile up.
GANG_CHECK_RESULT enum gang_status gang_control_send(struct gang_control *control, int worker, uint32_t type, const void *data, size_t bytes);
// To all that have not ended.
GANG_CHECK_RESULT enum gang_status gang_control_broadcast(struct gang_control *control, uint32_t type, const void *data, size_t bytes);
// Until something happens; timeout_ms 0: only looks, -1: for ever. A signal that interrupts it gives GANG_EVENT_NONE.
GANG_CHECK_RESULT enum gang_status gang_control_next(struct gang_control *control, int64_t timeout_ms, struct gang_control_event *out);
// Ends all: workers are asked (gang_worker_next gives GANG_ERR_STOPPED), after a second get SIGTERM, after another SIGKILL.
// NULL is fine.
enum { GANG_CONTROL_CLOSE_MS = 8000 };
void gang_control_close(struct gang_control *control);

// ---- Slurm ---------------------------------------------------------------------------------------------------------
//
// GANG_LAUNCH_SLURM works with Slurm's own commands: one srun places all agents of a site. Slurm announces an end by SIGTERM:
// `scancel --batch --signal=TERM JOB` and the time limit of a submitted job tell the coordinator alone, a plain scancel tells every
// process of the job at once and kills what is left after Slurm's KillWait. An agent passes it on as GANG_EVENT_NODE_ENDS; a
// worker that has something to save ignores it and waits for its coordinator's word.

struct gang_slurm_job {
    const char *name;
    const char *dir; // for the script and the output; it exists, and all nodes see it
    int nodes;
    int64_t limit_s;            // of time; 0: the partition's
    int64_t notice_s;           // SIGTERM so long before the limit
    bool requeue;               // start again after a node failure or a preemption
    const char *const *options; // further ones of sbatch, which win over those above; ends with NULL; NULL: none
    const char *const *argv;    // the coordinator, ends with NULL
};
// Writes DIR/NAME.sbatch and submits it. The output goes to DIR/NAME-JOBID.log.
GANG_CHECK_RESULT enum gang_status gang_slurm_submit(const struct gang_slurm_job *job, int64_t *job_id);

// ---- A worker ------------------------------------------------------------------------------------------------------

struct gang_worker;

struct gang_worker_event {
    uint32_t type;
    const void *data; // NULL: the time is up. Valid until the next call
    size_t bytes;
};

// Finds its coordinator by what the agent has set up. GANG_ERR_INPUT when started by hand.
GANG_CHECK_RESULT enum gang_status gang_worker_join(struct gang_worker **out);
int gang_worker_number(const struct gang_worker *worker);
// "host:0" of this node, by which it reaches the coordinator: where a wire of the worker's own may listen.
GANG_CHECK_RESULT enum gang_status gang_worker_host(const struct gang_worker *worker, char out[GANG_ADDRESS_TEXT]);
// For the wires that workers open among themselves: options.secret_path and options.cluster.
const char *gang_worker_secret_path(const struct gang_worker *worker);
uint64_t gang_worker_cluster(const struct gang_worker *worker);
// Copies; waits only while much is under way already. GANG_ERR_PEER when the coordinator is gone: end then.
GANG_CHECK_RESULT enum gang_status gang_worker_send(struct gang_worker *worker, uint32_t type, const void *data, size_t bytes);
// Also GANG_ERR_STOPPED: the coordinator wants the end. A signal that interrupts it counts as time up.
GANG_CHECK_RESULT enum gang_status gang_worker_next(struct gang_worker *worker, int64_t timeout_ms, struct gang_worker_event *out);
// Says good-bye: returns when the coordinator has taken all that was sent, or after five seconds. NULL is fine.
void gang_worker_leave(struct gang_worker *worker);

// ---- An agent ------------------------------------------------------------------------------------------------------

// `gangline agent`: serves the coordinator that speaks on this descriptor, until it ends.
GANG_CHECK_RESULT enum gang_status gang_agent_run(int input);

#endif
