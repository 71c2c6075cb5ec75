// study: questions asked of the planner and the simulator. What does a layout cost, which is best, how far off are the answers.
//
// Stands above sim, so that the search chooses by simulating the very programs that would run. No state; any thread.
#ifndef GANG_STUDY_H
#define GANG_STUDY_H

#include "sim/sim.h"

// ---- One layout: study/evaluate.c ----------------------------------------------------------------------------------

struct gang_answer {
    struct gang_layout layout; // with everything filled in
    struct gang_placement placement;
    struct gang_costs costs;
    struct gang_program program; // one replica per class, or every replica by itself
    struct gang_program_facts facts;
    enum gang_schedule schedule; // that was used
    struct gang_sim sim;
    struct gang_summary summary;
    struct gang_memory_use *memory; // [classes, stages]
    double memory_used;             // the largest share of a device's memory, margin counted as used
    int tightest_class, tightest_stage;
};

// Flags: memory is not checked; every replica is simulated by itself instead of one for each class.
enum { GANG_EVALUATE_ANY_MEMORY = 1, GANG_EVALUATE_UNFOLDED = 2 };

// Places, prices, orders, verifies and simulates. GANG_ERR_INPUT for a layout that does not fit the task or the pool,
// GANG_ERR_MEMORY (unless GANG_EVALUATE_ANY_MEMORY) with what is missing where.
GANG_CHECK_RESULT enum gang_status gang_evaluate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                                                 int flags, struct gang_arena *arena, struct gang_answer *out);

// Adds to faults read from a file what they leave to the pool: failure domains, outages of long links, and how fast the answer's program
// runs with planes lost, by simulating it. GANG_ERR_INPUT where domain_mtbf is given and nobody says what a domain is.
GANG_CHECK_RESULT enum gang_status gang_faults_complete(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *answer,
                                                        struct gang_arena *arena, struct gang_faults *faults);
// Nodes that the answer uses, each counted whole; of all groups, or of one (-1: all).
int64_t gang_nodes_used(const struct gang_pool *pool, const struct gang_placement *placement, int group);

// ---- Plan files: study/file.c --------------------------------------------------------------------------------------

// A file that gang_plan_write wrote, or that somebody changed: a layout and a program for it, and what both hold for.
struct gang_plan {
    const char *path;
    char *job, *cluster; // the files that it was made from; the cluster's may be another than the job names
    char *facts;         // what it holds for, a line each, and where the first stands
    int64_t facts_line;
    struct gang_layout layout; // nothing left to be chosen, the schedule that made the program included
    int class_count;           // how the batch is shared out; of each class kind, replicas and micro_batches
    struct gang_class classes[GANG_MAX_CLASSES];
    struct gang_program program;
};

// Publishes the answer's layout and program, as they were evaluated (folded or not), for this task and pool; `job` is the file
// that they were read from.
GANG_CHECK_RESULT enum gang_status gang_plan_write(const char *path, const char *job, const struct gang_task *task, const struct gang_pool *pool,
                                                   const struct gang_answer *answer);
// Whether the file begins as a plan does.
bool gang_plan_is(const char *path);
// GANG_ERR_FORMAT with file and line for anything that is not a plan. What it says is not proven yet: gang_evaluate_plan does that.
GANG_CHECK_RESULT enum gang_status gang_plan_read(const char *path, struct gang_arena *arena, struct gang_plan *out);
// GANG_ERR_INPUT names the first fact of the model, the step or the pool for which the plan was not made.
GANG_CHECK_RESULT enum gang_status gang_plan_check(const struct gang_plan *plan, const struct gang_task *task, const struct gang_pool *pool);
// gang_evaluate of a plan that gang_plan_check has taken: its shares and its program in the place of new ones. Checks that the program is one
// for its layout (its stages, chunks, replicas and micro-batches, in the order of its classes) and verifies it before it runs.
GANG_CHECK_RESULT enum gang_status gang_evaluate_plan(const struct gang_task *task, const struct gang_pool *pool, const struct gang_plan *plan,
                                                      int flags, struct gang_arena *arena, struct gang_answer *out);

// ---- The best layout: study/search.c, study/layers.c ---------------------------------------------------------------

enum gang_objective { GANG_OBJECTIVE_TIME, GANG_OBJECTIVE_ENERGY, GANG_OBJECTIVE_PRICE };
extern const char *const gang_objective_names[]; // ends with NULL

struct gang_found {
    struct gang_layout layout;
    double score;                // what the objective makes least: seconds, joules or money for a step
    double estimate;             // seconds by closed form
    struct gang_summary summary; // by simulation
    enum gang_schedule schedule;
    double memory_used;
};

enum { GANG_MAX_FOUND = 16 };

struct gang_search {
    int64_t considered, fitting, simulated; // layouts by closed form, those within memory, those simulated
    double estimate_seconds;                // that the closed forms took
    int count;
    struct gang_found found[GANG_MAX_FOUND]; // the best first
    // No layout can be faster on these devices: every product and every attention at its device's full reach, nothing else.
    double bound_seconds;
};

// Seconds of a step and the share of memory by closed form; what the search sorts by. Layout placed and filled in, as
// gang_layout_place leaves it.
double gang_estimate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout,
                     const struct gang_placement *placement, struct gang_arena *arena, double *memory_used);

// Looks at every layout of the space (see the essay in search.c), simulates the most promising and returns the best `top` by the
// objective; for energy and price also layouts on fewer devices. GANG_ERR_INPUT where the pool does not state what the objective
// counts. GANG_ERR_MEMORY says what the least hungry layout lacks where none fits.
GANG_CHECK_RESULT enum gang_status gang_search_run(const struct gang_task *task, const struct gang_pool *pool, enum gang_objective objective, int top,
                                                   struct gang_arena *arena, struct gang_search *out);

// Gives a layout that leaves its layers open as many on each stage as its devices' speed and memory allow, each at least one. It stays
// as it is where devices are alike, with virtual stages, and where it does not fit at all.
void gang_search_layers(const struct gang_task *task, const struct gang_pool *pool, struct gang_layout *layout, struct gang_arena *arena);

// Tokens a second of the best layout of every group by itself, summed: what unlike devices would do without each other. Groups on
// which the model does not fit count 0.
double gang_sum_of_parts(const struct gang_task *task, const struct gang_pool *pool, struct gang_arena *arena);

// The launch flags of a layout for another trainer, and as comments what that trainer cannot express of it: study/emit.c
enum gang_trainer { GANG_MEGATRON, GANG_TORCHTITAN, GANG_DEEPSPEED };
extern const char *const gang_trainer_names[]; // ends with NULL
void gang_emit(enum gang_trainer trainer, const struct gang_task *task, const struct gang_answer *answer, struct gang_buffer *out);

// ---- Published runs: study/cases.c, study/validate.c ---------------------------------------------------------------

// A row of a table with the columns of data/cases/training_runs.csv, as the planner understands it.
struct gang_case {
    const char *id, *source, *model, *device, *dtype, *notes;
    const char *why_not; // NULL, or why nothing is predicted
    const struct gang_kind *kind;
    struct gang_task task;
    struct gang_layout layout;
    int64_t devices;
    double measured; // seconds of a step
    double predicted;
    double peak_bytes;        // predicted, of the fullest device
    double stated_peak_bytes; // 0: not stated
    bool calibrated_on;
};

// Error of a set of rows, as fractions of the measured value.
struct gang_error_summary {
    const char *device, *dtype, *source; // "" where all; device "dense" or "experts": of all devices
    int rows;
    double mean, median, p95, largest;
    double null_mean; // of one constant MFU for the device and type, its best
    double bias;      // mean of the signed errors
};

struct gang_validation {
    int count;
    struct gang_case *cases;
    struct gang_error_summary blind; // rows that no calibration used
    int set_count, kind_count;
    struct gang_error_summary *sets;  // by device, type and source
    struct gang_error_summary *kinds; // dense models, those with experts, then by device
    double tau;                       // Kendall's, mean over groups of rows that share model, device and device count
    int tau_groups;
    int memory_rows; // that state a peak, and the mean error of the predicted one
    double memory_mean;
};

// Reads and predicts. Rows without enough data, or that their source contradicts, are kept with the reason.
GANG_CHECK_RESULT enum gang_status gang_validate(const char *path, struct gang_arena *arena, struct gang_validation *out);
GANG_CHECK_RESULT enum gang_status gang_cases_read(const char *path, const struct gang_list *kinds, struct gang_arena *arena, int *count,
                                                   struct gang_case **out);

// ---- Published runs over distance and on unlike devices: study/apart.c ---------------------------------------------

// A row of a table with the columns of data/cases/far_and_unlike.csv. Efficiencies are fractions: of the same devices in one room, or
// of the sum of what unlike devices do by themselves.
struct gang_apart_case {
    const char *id, *what, *model, *devices, *crossing;
    const char *why_not;            // NULL, or why nothing is predicted
    double stated_low, stated_high; // alike where the source gives one figure
    double low, high;               // predicted, over all that the source does not state
    double off;                     // how far the two lie apart; 0 where they overlap
};

struct gang_apart {
    int count;
    struct gang_apart_case *cases;
    double worst; // the largest `off`
};

// Whether the file is a table with the columns of far_and_unlike.csv.
bool gang_apart_is(const char *path);
// Predicts every row by simulation, over the batches, layouts and networks that its source leaves open (the essay in apart.c names them).
GANG_CHECK_RESULT enum gang_status gang_apart_read(const char *path, struct gang_arena *arena, struct gang_apart *out);

// Kendall's tau-b of two lists.
double gang_kendall(int count, const double *a, const double *b);

// Part of a device's memory that plans leave alone.
extern const double gang_memory_margin;

#endif
