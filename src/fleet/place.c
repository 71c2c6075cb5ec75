// Where ranks run, and by which way they reach one another.
#include "fleet/internal.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

// ---- Ranks to devices ----------------------------------------------------------------------------------------------

const struct gang_group *gang_fleet_group(const struct gang_pool *pool, int64_t device, int *node) {
    *node = 0;
    for (int g = 0; g < pool->group_count; g++) {
        const struct gang_group *group = pool->groups[g];
        if (device < group->nodes * group->devices) {
            *node += (int)(device / group->devices);
            return group;
        }
        device -= group->nodes * group->devices;
        *node += (int)group->nodes;
    }
    assert(!"a device of the pool");
    return NULL;
}

enum gang_launcher gang_fleet_launcher(const struct gang_site *site, enum gang_launcher of_job) {
    return site->launcher == GANG_SITE_LAUNCH_JOB ? of_job : (enum gang_launcher)(site->launcher - GANG_SITE_LAUNCH_LOCAL);
}

// The layout's replicas lie on the line in order; the program's are sorted by class. Each takes the next of its class.
void gang_fleet_devices(const struct gang_pool *pool, const struct gang_answer *a, int *device) {
    const struct gang_layout *l = &a->layout;
    int64_t taken[GANG_MAX_CLASSES] = {0}, first[GANG_MAX_CLASSES] = {0};
    for (int c = 1; c < a->placement.class_count; c++) first[c] = first[c - 1] + a->placement.classes[c - 1].replicas;
    for (int64_t r = 0; r < l->dp; r++)
        for (int c = 0; c < a->placement.class_count; c++) {
            const struct gang_class *class = &a->placement.classes[c];
            bool fits = taken[c] < class->replicas;
            int node;
            for (int s = 0; s < l->pp && fits; s++) fits = gang_fleet_group(pool, gang_cell_at(l, r, s), &node) == pool->groups[class->groups[s]];
            if (!fits) continue;
            int64_t replica = first[c] + taken[c]++;
            for (int s = 0; s < l->pp; s++) device[replica * l->pp + s] = (int)gang_cell_at(l, r, s);
            break;
        }
}

// ---- Relays --------------------------------------------------------------------------------------------------------

// Below this one-way delay a link is taken for the machine's own.
static const double least_delay = 50e-6;

enum gang_status gang_fleet_relays_open(const struct gang_pool *pool, double slow, struct gang_fleet_relays *out) {
    enum gang_status status = GANG_OK;
    *out = (struct gang_fleet_relays){.began = gang_seconds()};
    for (int i = 0; i < pool->links.count && !status; i++) {
        const struct gang_link *link = gang_pool_link(pool, i);
        const struct gang_relay_options options = {
            .listen = "127.0.0.1:0", .rtt_s = 2 * link->delay * slow, .bytes_per_s = link->bandwidth / slow, .seed = 1};
        out->count = i + 1;
        if (link->delay >= least_delay) status = gang_relay_open(&options, &out->relay[i]);
    }
    if (status) gang_fleet_relays_close(out);
    return status;
}

void gang_fleet_relays_close(struct gang_fleet_relays *r) {
    for (int i = 0; i < r->count; i++)
        if (r->relay[i]) gang_relay_close(r->relay[i]);
    *r = (struct gang_fleet_relays){0};
}

enum gang_status gang_fleet_relays_way(struct gang_fleet_relays *r, const struct gang_pool *pool, int from_site, int to_site, const char *to,
                                       char *out) {
    const struct gang_route *route = gang_pool_route(pool, from_site, to_site);
    enum gang_status status = GANG_OK;
    snprintf(out, GANG_ADDRESS_TEXT, "%s", to);
    for (int i = route->count - 1; i >= 0 && !status; i--) {
        char next[GANG_ADDRESS_TEXT];
        if (!r->relay[route->links[i]]) continue;
        snprintf(next, sizeof next, "%s", out);
        status = gang_relay_add(r->relay[route->links[i]], next, out);
    }
    return status;
}
