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
    struct gang_program program; // folded: one replica per class
    struct gang_program_facts facts;
    enum gang_schedule schedule; // that was used
    struct gang_sim sim;
    struct gang_summary summary;
    struct gang_memory_use *memory; // [classes, stages]
    double memory_used;             // the largest share of a device's memory, margin counted as used
    int tightest_class, tightest_stage;
};

enum { GANG_EVALUATE_ANY_MEMORY = 1, GANG_EVALUATE_SPANS = 2 };

// Places, prices, orders, verifies and simulates. GANG_ERR_INPUT for a layout that does not fit the task or the pool,
// GANG_ERR_MEMORY (unless GANG_EVALUATE_ANY_MEMORY) with what is missing where.
GANG_CHECK_RESULT enum gang_status gang_evaluate(const struct gang_task *task, const struct gang_pool *pool, const struct gang_layout *layout, int flags,
                                                 struct gang_arena *arena, struct gang_answer *out);

// Part of a device's memory that plans leave alone.
extern const double gang_memory_margin;

#endif
