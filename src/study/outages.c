// What faults need to know of a plan: which nodes fall together, and what a lost plane costs.
#include "study/study.h"

int64_t gang_nodes_used(const struct gang_pool *pool, const struct gang_placement *placement, int group) {
    int64_t left = placement->devices_used, nodes = 0;
    for (int g = 0; g < pool->group_count && left > 0; g++) {
        int64_t here = pool->groups[g]->nodes * pool->groups[g]->devices, used = left < here ? left : here;
        if (group < 0 || group == g) nodes += (used + pool->groups[g]->devices - 1) / pool->groups[g]->devices;
        left -= used;
    }
    return nodes;
}

static enum gang_status add_domains(const struct gang_pool *pool, const struct gang_placement *placement, struct gang_arena *arena,
                                    struct gang_faults *f) {
    f->domains = gang_arena_alloc(arena, (size_t)pool->group_count * sizeof *f->domains);
    if (!(f->domain_mtbf > 0)) return GANG_OK;
    if (f->domain_nodes) {
        f->domains[f->domain_count++] = (struct gang_fault_domains){gang_nodes_used(pool, placement, -1) / f->domain_nodes, f->domain_nodes};
        return GANG_OK;
    }
    for (int g = 0; g < pool->group_count; g++) {
        int64_t size = pool->groups[g]->failure_domain, nodes = gang_nodes_used(pool, placement, g);
        if (size && nodes) f->domains[f->domain_count++] = (struct gang_fault_domains){(nodes + size - 1) / size, size};
    }
    if (f->domain_count) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT,
                     "faults: domain_mtbf says how often a domain fails, and nobody how large it is: give domain_nodes there, or "
                     "failure_domain to a group of %s",
                     pool->path);
}

// Seconds of the answer's step with the bandwidth of one link cut down to `part`.
static enum gang_status step_with(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *answer, int link, double part,
                                  double *seconds) {
    struct gang_arena arena;
    gang_arena_init(&arena);
    struct gang_pool cut = *pool;
    struct gang_link *links = gang_arena_alloc(&arena, (size_t)pool->links.count * sizeof *links);
    for (int l = 0; l < pool->links.count; l++) links[l] = *gang_pool_link(pool, l);
    links[link].bandwidth *= part;
    cut.links.items = links;
    struct gang_costs costs;
    struct gang_sim sim;
    gang_costs_fill(task, &cut, &answer->layout, &answer->placement, &arena, &costs);
    const struct gang_sim_input input = {
        .pool = &cut, .layout = &answer->layout, .placement = &answer->placement, .costs = &costs, .program = &answer->program};
    enum gang_status status = gang_sim_run(&input, &arena, &sim);
    if (!status) *seconds = sim.step_seconds;
    gang_arena_release(&arena);
    return status;
}

enum gang_status gang_faults_complete(const struct gang_task *task, const struct gang_pool *pool, const struct gang_answer *answer,
                                      struct gang_arena *arena, struct gang_faults *f) {
    int64_t planes = 0;
    enum gang_status status = add_domains(pool, &answer->placement, arena, f);
    f->links = gang_arena_alloc(arena, ((size_t)pool->links.count + 1) * sizeof *f->links);
    for (int l = 0; l < pool->links.count; l++) planes += gang_pool_link(pool, l)->planes;
    for (int l = 0; l < pool->links.count && !status; l++) {
        const struct gang_link *link = gang_pool_link(pool, l);
        bool own = f->link_mtbf > 0;
        double every = own ? f->link_mtbf * (double)planes : link->outage_every;
        if (!(every > 0) || !(answer->sim.link_bytes[l] > 0)) continue; // what the step does not cross it does not miss
        struct gang_fault_link *out = &f->links[f->link_count++];
        *out = (struct gang_fault_link){.planes = link->planes, .every = every, .length = own ? f->link_outage : link->outage_length};
        out->speed = gang_arena_alloc(arena, (size_t)(link->planes + 1) * sizeof *out->speed);
        out->speed[0] = 1;
        for (int64_t k = 1; k < link->planes && !status; k++) {
            double seconds = 0;
            status = step_with(task, pool, answer, l, (double)(link->planes - k) / (double)link->planes, &seconds);
            out->speed[k] = answer->sim.step_seconds / seconds;
        }
    }
    return status;
}
