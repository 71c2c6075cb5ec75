// cluster.yaml and data/devices.yaml: fields, what must agree between them, and the ways between sites.
#include "pool/pool.h"

#include <assert.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

extern const char gang_devices_yaml[];
extern const size_t gang_devices_yaml_bytes;

const char *const gang_math_names[] = {"f16", "f8", "f32", NULL};

// Light in fibre, seconds per metre: refractive index 1.468 (ITU-T G.652 at 1,550 nm).
static const double fibre_seconds_per_m = 1.468 / 299792458.0;

#define KIND(member) offsetof(struct gang_kind, member)
static const struct gang_field kind_fields[] = {
    {"name", GANG_FIELD_STRING, KIND(name), NULL, 0, 0, NULL, "of the kind"},
    {"memory", GANG_FIELD_BYTES, KIND(memory_bytes), NULL, 1e6, 1e15, NULL, "of one device, such as 80GiB"},
    {"memory_bandwidth", GANG_FIELD_RATE, KIND(memory_bandwidth), NULL, 1e8, 1e15, NULL, "such as 3.35TB/s"},
    // STREAM-like kernels hold 85 to 92 % of the data sheet's bandwidth on A100 and H100 (BabelStream's published tables).
    {"memory_reach", GANG_FIELD_REAL, KIND(memory_reach), "0.85", 0.01, 1, NULL, "fraction of the bandwidth that streaming holds"},
    {"f16", GANG_FIELD_FLOPS, KIND(peak[GANG_MATH_F16]), "0FLOPS", 0, 1e18, NULL, "dense peak in fp16 or bf16"},
    {"f8", GANG_FIELD_FLOPS, KIND(peak[GANG_MATH_F8]), "0FLOPS", 0, 1e18, NULL, "dense peak in fp8"},
    {"f32", GANG_FIELD_FLOPS, KIND(peak[GANG_MATH_F32]), "0FLOPS", 0, 1e18, NULL, "peak in f32"},
    {"f16_reach", GANG_FIELD_REAL, KIND(reach[GANG_MATH_F16]), "0.7", 0.01, 1, NULL, "fraction of the peak that products hold"},
    {"f8_reach", GANG_FIELD_REAL, KIND(reach[GANG_MATH_F8]), "0.6", 0.01, 1, NULL, "the same in fp8"},
    {"f32_reach", GANG_FIELD_REAL, KIND(reach[GANG_MATH_F32]), "0.8", 0.01, 1, NULL, "the same in f32"},
    {"attention_reach", GANG_FIELD_REAL, KIND(attention_reach), "0.4", 0.01, 1, NULL, "fraction of the peak that attention holds"},
    {"cores", GANG_FIELD_INT, KIND(cores), "0", 0, 100000, NULL, "units a product is spread over; 0: unknown"},
    {"fast_bandwidth", GANG_FIELD_RATE, KIND(fast_bandwidth), "32GB/s", 1e6, 1e14, NULL, "inside the high-bandwidth domain, a direction"},
    {"fast_domain", GANG_FIELD_INT, KIND(fast_domain), "1", 1, 100000, NULL, "devices in the high-bandwidth domain"},
    {"nic", GANG_FIELD_RATE, KIND(nic_bandwidth), "100Gbps", 1e5, 1e14, NULL, "one device to the outside, a direction"},
    {"host_link", GANG_FIELD_RATE, KIND(host_link), "0B/s", 0, 1e14, NULL, "to the node's own memory, a direction; 0: not stated"},
    {"power", GANG_FIELD_REAL, KIND(power_watt), "0", 0, 1e6, NULL, "watts under load"},
    {"measured", GANG_FIELD_STRINGS, KIND(measured), "", 0, 0, NULL, "fields that somebody measured"},
    {"calibrated", GANG_FIELD_STRINGS, KIND(calibrated), "", 0, 0, NULL, "fields fitted to published runs"},
    {"calibrated_on", GANG_FIELD_STRINGS, KIND(calibrated_on), "", 0, 0, NULL, "ids of those runs"},
};
static const struct gang_schema kind_schema = {kind_fields, sizeof kind_fields / sizeof *kind_fields, sizeof(struct gang_kind)};

static const char *const group_computes[] = {"job", "f32", "bf16", NULL}; // by enum gang_group_compute

#define GROUP(member) offsetof(struct gang_group, member)
static const struct gang_field group_fields[] = {
    {"name", GANG_FIELD_STRING, GROUP(name), "", 0, 0, NULL, "of the group; the device's if not given"},
    {"nodes", GANG_FIELD_INT, GROUP(nodes), NULL, 1, 1000000, NULL, "like nodes"},
    {"devices", GANG_FIELD_INT, GROUP(devices), NULL, 1, 10000, NULL, "in one node"},
    {"device", GANG_FIELD_STRING, GROUP(device), NULL, 0, 0, NULL, "a kind by name"},
    {"fast_domain", GANG_FIELD_INT, GROUP(fast_domain), "0", 0, 100000, NULL, "devices; 0: the kind's, at most a node"},
    {"fast_bandwidth", GANG_FIELD_RATE, GROUP(fast_bandwidth), "0B/s", 0, 1e14, NULL, "0: the kind's"},
    {"nic", GANG_FIELD_RATE, GROUP(nic_bandwidth), "0bps", 0, 1e14, NULL, "of one device, all planes; 0: the kind's"},
    {"latency", GANG_FIELD_TIME, GROUP(nic_latency), "5us", 0, 1, NULL, "one way, device to device, inside the site"},
    {"host_memory", GANG_FIELD_BYTES, GROUP(host_memory), "0B", 0, 1e16, NULL, "of a node, for what offload puts there; 0: not stated"},
    {"host_bandwidth", GANG_FIELD_RATE, GROUP(host_bandwidth), "0B/s", 0, 1e14, NULL, "of a node's memory; 0: not stated"},
    {"leaf_nodes", GANG_FIELD_INT, GROUP(leaf_nodes), "0", 0, 100000, NULL, "nodes under one leaf; 0: no leaves"},
    {"threads", GANG_FIELD_INT, GROUP(threads), "1", 1, 1024, NULL, "of device cpu"},
    {"instructions", GANG_FIELD_STRING, GROUP(instructions), "", 0, 0, NULL,
     "of device cpu: generic, avx2, avx512, avx512bf16; the best if not given"},
    {"compute", GANG_FIELD_ENUM, GROUP(compute), "job", 0, 0, group_computes, "type of device cpu's products"},
    {"share", GANG_FIELD_REAL, GROUP(share), "0", 0, 1, NULL, "of a core, of device cpu; 0: all"},
    {"hosts", GANG_FIELD_STRINGS, GROUP(hosts), "", 0, 0, NULL, "of the nodes, one each, for the launchers ssh and slurm"},
    {"failure_domain", GANG_FIELD_INT, GROUP(failure_domain), "0", 0, 1000000, NULL, "nodes that fail together"},
    {"price", GANG_FIELD_REAL, GROUP(price), "0", 0, 1e9, NULL, "of one device for an hour"},
    {"oversubscription", GANG_FIELD_REAL, GROUP(oversubscription), "1", 1, 100, NULL, "of a leaf's uplinks"},
};
static const struct gang_schema group_schema = {group_fields, sizeof group_fields / sizeof *group_fields, sizeof(struct gang_group)};

static const char *const site_launchers[] = {"job", "local", "ssh", "slurm", NULL}; // by enum gang_site_launcher

#define SITE(member) offsetof(struct gang_site, member)
static const struct gang_field site_fields[] = {
    {"name", GANG_FIELD_STRING, SITE(name), NULL, 0, 0, NULL, "of the site"},
    {"launcher", GANG_FIELD_ENUM, SITE(launcher), "job", 0, 0, site_launchers, "what starts its ranks; the job's launcher if not given"},
    {"slurm_conf", GANG_FIELD_STRING, SITE(slurm_conf), "", 0, 0, NULL, "of launcher slurm: slurm.conf of the site's own cluster"},
    {"login", GANG_FIELD_STRING, SITE(login), "", 0, 0, NULL, "of launcher slurm: a host of that cluster, where srun is started by ssh"},
    {"slurm_options", GANG_FIELD_STRINGS, SITE(slurm_options), "", 0, 0, NULL, "of launcher slurm: of its allocation, [--partition=gpu]"},
    {"groups", GANG_FIELD_MAPPINGS, SITE(groups), NULL, 0, 0, &group_schema, "groups of like nodes"},
};
static const struct gang_schema site_schema = {site_fields, sizeof site_fields / sizeof *site_fields, sizeof(struct gang_site)};

#define LINK(member) offsetof(struct gang_link, member)
static const struct gang_field link_fields[] = {
    {"between", GANG_FIELD_STRINGS, LINK(between), NULL, 0, 0, NULL, "two sites, [a, b]"},
    {"bandwidth", GANG_FIELD_RATE, LINK(bandwidth), NULL, 1e3, 1e15, NULL, "all planes together, each direction"},
    {"distance", GANG_FIELD_LENGTH, LINK(distance_m), "0m", 0, 4e7, NULL, "of fibre; or give rtt"},
    {"rtt", GANG_FIELD_TIME, LINK(rtt), "0s", 0, 10, NULL, "round-trip time; or give distance"},
    {"planes", GANG_FIELD_INT, LINK(planes), "1", 1, 64, NULL, "separate paths, as wide as each other"},
    {"price", GANG_FIELD_REAL, LINK(price), "0", 0, 1e9, NULL, "of a gigabyte carried"},
    {"outage_every", GANG_FIELD_TIME, LINK(outage_every), "0s", 0, 1e11, NULL, "mean between two outages of one plane"},
    {"outage_length", GANG_FIELD_TIME, LINK(outage_length), "0s", 0, 1e9, NULL, "of one outage"},
};
static const struct gang_schema link_schema = {link_fields, sizeof link_fields / sizeof *link_fields, sizeof(struct gang_link)};

#define POOL(member) offsetof(struct gang_pool, member)
static const struct gang_field pool_fields[] = {
    {"name", GANG_FIELD_STRING, POOL(name), "", 0, 0, NULL, "for people"},
    {"sites", GANG_FIELD_MAPPINGS, POOL(sites), NULL, 0, 0, &site_schema, "places"},
    {"links", GANG_FIELD_MAPPINGS, POOL(links), "", 0, 0, &link_schema, "between sites"},
    {"kinds", GANG_FIELD_MAPPINGS, POOL(kinds), "", 0, 0, &kind_schema, "device kinds of your own"},
};
static const struct gang_schema pool_schema = {pool_fields, sizeof pool_fields / sizeof *pool_fields, sizeof(struct gang_pool)};

struct kinds_file {
    struct gang_place place;
    struct gang_list kinds;
};
static const struct gang_field kinds_file_fields[] = {
    {"kinds", GANG_FIELD_MAPPINGS, offsetof(struct kinds_file, kinds), NULL, 0, 0, &kind_schema, "device kinds"},
};
static const struct gang_schema kinds_file_schema = {kinds_file_fields, 1, sizeof(struct kinds_file)};

// ---- Kinds ---------------------------------------------------------------------------------------------------------

const char *gang_provenance_name(enum gang_provenance provenance) {
    static const char *const names[] = {"specification", "calibrated", "measured"};
    return names[provenance];
}

static bool holds(const struct gang_strings *strings, const char *text) {
    for (int i = 0; i < strings->count; i++)
        if (!strcmp(strings->items[i], text)) return true;
    return false;
}

enum gang_provenance gang_kind_provenance(const struct gang_kind *kind, const char *field) {
    return holds(&kind->measured, field) ? GANG_MEASURED : holds(&kind->calibrated, field) ? GANG_CALIBRATED : GANG_SPECIFICATION;
}

static bool is_kind_field(const char *name) {
    for (size_t i = 0; i < kind_schema.count; i++)
        if (!strcmp(kind_fields[i].name, name)) return true;
    return !*name;
}

static enum gang_status check_kind(const char *path, const struct gang_kind *kind) {
    const struct gang_strings *lists[] = {&kind->measured, &kind->calibrated};
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < lists[l]->count; i++)
            if (!is_kind_field(lists[l]->items[i]))
                return gang_fail(GANG_ERR_INPUT, "%s:%d:%d: kind '%s': '%s' under measured or calibrated is no field of a kind", path,
                                 kind->place.line, kind->place.column, kind->name, lists[l]->items[i]);
    for (int m = 0; m < GANG_MATHS; m++)
        if (kind->peak[m] > 0) return GANG_OK;
    return gang_fail(GANG_ERR_INPUT, "%s:%d:%d: kind '%s': computes nothing: give at least one of f16, f8, f32", path, kind->place.line,
                     kind->place.column, kind->name);
}

void gang_kinds_builtin(struct gang_arena *arena, struct gang_list *out) {
    struct kinds_file file = {0};
    const struct gang_buffer text = {.data = (char *)gang_devices_yaml, .len = gang_devices_yaml_bytes};
    enum gang_status status = gang_yaml_bind_nested("data/devices.yaml", &text, &kinds_file_schema, &file, arena);
    assert(status == GANG_OK && "data/devices.yaml is part of the program and must parse");
    *out = file.kinds;
}

const struct gang_kind *gang_kind_find(const struct gang_list *kinds, const char *name) {
    const struct gang_kind *items = kinds->items;
    for (int i = 0; i < kinds->count; i++)
        if (!strcmp(items[i].name, name)) return &items[i];
    return NULL;
}

// ---- A profile of `gangline probe` ---------------------------------------------------------------------------------

static double profile_number(const json_t *root, const char *name) {
    const json_t *value = json_object_get(root, name);
    return json_is_number(value) ? json_number_value(value) : -1;
}

static enum gang_status read_profile(const char *path, struct gang_arena *arena, struct gang_kind *out) {
    static char *measured[] = {"memory", "memory_bandwidth", "memory_reach", "f16", "f32", "f16_reach", "f32_reach"};
    json_t *root = NULL;
    enum gang_status status = gang_json_read(path, 1 << 20, &root);
    if (status) return status;
    const char *name = json_string_value(json_object_get(root, "device"));
    double f32 = profile_number(root, "peak_f32"), f16 = profile_number(root, "peak_bf16"), memory = profile_number(root, "memory_bytes");
    double f32_held = profile_number(root, "sustained_f32"), f16_held = profile_number(root, "sustained_bf16"),
           triad = profile_number(root, "triad_bytes_per_s");
    if (!name || !(f32 > 0) || !(f32_held > 0) || !(memory > 0) || !(triad > 0) || f16 < 0)
        status = gang_fail(GANG_ERR_INPUT, "%s: not a profile: expected a file that 'gangline probe -o' wrote", path);
    if (!status) {
        *out = (struct gang_kind){
            .name = gang_arena_strdup(arena, name),
            .memory_bytes = memory,
            .memory_bandwidth = triad,
            .memory_reach = 1, // triad is what streaming holds
            .peak = {[GANG_MATH_F32] = f32, [GANG_MATH_F16] = f16},
            .reach = {[GANG_MATH_F32] = fmin(f32_held / f32, 1), [GANG_MATH_F16] = f16 > 0 ? fmin(f16_held / f16, 1) : 1, [GANG_MATH_F8] = 1},
            .attention_reach = 0.3,
            .fast_bandwidth = triad / 2,
            .fast_domain = 1,
            .nic_bandwidth = 125e6,
            .measured = {sizeof measured / sizeof *measured, measured}};
    }
    json_decref(root);
    return status;
}

static enum gang_status find_kind(const struct gang_pool *pool, const struct gang_list *builtin, struct gang_arena *arena, struct gang_group *group) {
    size_t len = strlen(group->device);
    if (len > 5 && !strcmp(group->device + len - 5, ".json")) {
        const char *slash = strrchr(pool->path, '/');
        const char *path = *group->device == '/' || !slash
                               ? group->device
                               : gang_arena_printf(arena, "%.*s/%s", (int)(slash - pool->path), pool->path, group->device);
        struct gang_kind *kind = gang_arena_alloc(arena, sizeof *kind);
        enum gang_status status = read_profile(path, arena, kind);
        if (!status) group->kind = kind;
        return status;
    }
    group->kind = gang_kind_find(&pool->kinds, group->device);
    if (!group->kind) group->kind = gang_kind_find(builtin, group->device);
    return GANG_OK;
}

// ---- What must agree -----------------------------------------------------------------------------------------------

#define FAIL_AT(place, format, ...) gang_fail(GANG_ERR_INPUT, "%s:%d:%d: " format, pool->path, (place).line, (place).column, __VA_ARGS__)

static enum gang_status settle_group(const struct gang_pool *pool, const struct gang_list *builtin, struct gang_arena *arena,
                                     struct gang_group *group) {
    enum gang_status status = find_kind(pool, builtin, arena, group);
    if (status) return status;
    if (!group->kind) {
        char list[512] = "";
        const struct gang_kind *kinds = builtin->items;
        for (int i = 0; i < builtin->count; i++) snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", i ? ", " : "", kinds[i].name);
        return FAIL_AT(group->place, "device '%s' is no known kind: expected one of %s, one of your own under kinds, or a profile.json",
                       group->device, list);
    }
    if (!*group->name) group->name = group->device;
    if (group->hosts.count == 1 && !*group->hosts.items[0]) group->hosts.count = 0;
    if (group->hosts.count && group->hosts.count != group->nodes)
        return FAIL_AT(group->place, "hosts: %d names for %lld nodes", group->hosts.count, (long long)group->nodes);
    if (!group->fast_bandwidth) group->fast_bandwidth = group->kind->fast_bandwidth;
    if (!group->nic_bandwidth) group->nic_bandwidth = group->kind->nic_bandwidth;
    if (!group->fast_domain) group->fast_domain = group->kind->fast_domain < group->devices ? group->kind->fast_domain : group->devices;
    if (group->devices % group->fast_domain && group->fast_domain % group->devices)
        return FAIL_AT(group->place, "fast_domain %lld neither divides the node's %lld devices nor is a multiple of them",
                       (long long)group->fast_domain, (long long)group->devices);
    if (group->failure_domain > group->nodes)
        return FAIL_AT(group->place, "failure_domain %lld: the group has %lld nodes", (long long)group->failure_domain, (long long)group->nodes);
    return GANG_OK;
}

static enum gang_status settle_groups(struct gang_pool *pool, const struct gang_list *builtin, struct gang_arena *arena) {
    struct gang_site *sites = pool->sites.items;
    for (int s = 0; s < pool->sites.count; s++) pool->group_count += sites[s].groups.count;
    pool->groups = gang_arena_alloc(arena, (size_t)pool->group_count * sizeof *pool->groups);
    int next = 0;
    for (int s = 0; s < pool->sites.count; s++) {
        struct gang_group *groups = sites[s].groups.items;
        for (int g = 0; g < sites[s].groups.count; g++) {
            groups[g].site = s;
            enum gang_status status = settle_group(pool, builtin, arena, &groups[g]);
            if (status) return status;
            pool->groups[next++] = &groups[g];
            pool->devices += groups[g].nodes * groups[g].devices;
        }
    }
    return GANG_OK;
}

static enum gang_status settle_site(const struct gang_pool *pool, struct gang_site *site) {
    struct gang_strings *options = &site->slurm_options;
    if (options->count == 1 && !*options->items[0]) options->count = 0;
    if (site->launcher != GANG_SITE_LAUNCH_SLURM && (*site->slurm_conf || *site->login || options->count))
        return FAIL_AT(site->place, "site '%s': slurm_conf, login and slurm_options are for a site with launcher: slurm", site->name);
    return GANG_OK;
}

static int site_by_name(const struct gang_pool *pool, const char *name) {
    for (int i = 0; i < pool->sites.count; i++)
        if (!strcmp(gang_pool_site(pool, i)->name, name)) return i;
    return -1;
}

static enum gang_status settle_link(const struct gang_pool *pool, struct gang_link *link) {
    if (link->between.count != 2) return FAIL_AT(link->place, "between: %d sites: expected two, [a, b]", link->between.count);
    int ends[2];
    for (int i = 0; i < 2; i++) {
        ends[i] = site_by_name(pool, link->between.items[i]);
        if (ends[i] < 0) return FAIL_AT(link->place, "between: '%s' is no site of this file", link->between.items[i]);
    }
    if (ends[0] == ends[1]) return FAIL_AT(link->place, "between: a link from '%s' to itself", link->between.items[0]);
    if (!link->distance_m == !link->rtt) return FAIL_AT(link->place, "give either distance or rtt%s", link->rtt ? ", not both" : ", above 0");
    if (!(link->outage_every > 0) != !(link->outage_length > 0))
        return FAIL_AT(link->place, "give both outage_every and outage_length, or neither%s", "");
    link->a = ends[0], link->b = ends[1];
    link->delay = link->rtt ? link->rtt / 2 : link->distance_m * fibre_seconds_per_m;
    return GANG_OK;
}

// ---- Ways: Floyd and Warshall over the delays ----------------------------------------------------------------------

static void join(struct gang_route *to, const struct gang_route *a, const struct gang_route *b) {
    if (a->count + b->count > GANG_MAX_ROUTE) return;
    struct gang_route route = *a;
    memcpy(route.links + a->count, b->links, (size_t)b->count * sizeof *b->links);
    route.count += b->count;
    route.delay += b->delay;
    *to = route;
}

static enum gang_status settle_routes(struct gang_pool *pool, struct gang_arena *arena) {
    int n = pool->sites.count;
    pool->routes = gang_arena_alloc(arena, (size_t)(n * n) * sizeof *pool->routes);
    for (int i = 0; i < n * n; i++) pool->routes[i].delay = i / n == i % n ? 0 : INFINITY;
    for (int l = 0; l < pool->links.count; l++) {
        const struct gang_link *link = gang_pool_link(pool, l);
        struct gang_route *ways[] = {&pool->routes[link->a * n + link->b], &pool->routes[link->b * n + link->a]};
        for (int w = 0; w < 2; w++)
            if (link->delay < ways[w]->delay) *ways[w] = (struct gang_route){.count = 1, .links = {l}, .delay = link->delay};
    }
    for (int k = 0; k < n; k++)
        for (int i = 0; i < n; i++)
            for (int j = 0; j < n; j++) {
                const struct gang_route *a = &pool->routes[i * n + k], *b = &pool->routes[k * n + j];
                if (a->delay + b->delay < pool->routes[i * n + j].delay) join(&pool->routes[i * n + j], a, b);
            }
    for (int j = 1; j < n; j++)
        if (isinf(pool->routes[j].delay))
            return FAIL_AT(gang_pool_site(pool, j)->place, "site '%s' cannot be reached from '%s': expected links that join all sites",
                           gang_pool_site(pool, j)->name, gang_pool_site(pool, 0)->name);
    return GANG_OK;
}

static enum gang_status settle(struct gang_pool *pool, struct gang_arena *arena) {
    struct gang_list builtin;
    gang_kinds_builtin(arena, &builtin);
    enum gang_status status = GANG_OK;
    const struct gang_kind *kinds = pool->kinds.items;
    for (int i = 0; i < pool->kinds.count && !status; i++) status = check_kind(pool->path, &kinds[i]);
    if (!status && pool->sites.count > GANG_MAX_SITES)
        status = gang_fail(GANG_ERR_INPUT, "%s: %d sites: expected at most %d", pool->path, pool->sites.count, GANG_MAX_SITES);
    if (!status && pool->links.count > GANG_MAX_LINKS)
        status = gang_fail(GANG_ERR_INPUT, "%s: %d links: expected at most %d", pool->path, pool->links.count, GANG_MAX_LINKS);
    for (int i = 0; i < pool->sites.count && !status; i++) {
        struct gang_site *site = (struct gang_site *)pool->sites.items + i;
        if (site_by_name(pool, site->name) != i) status = FAIL_AT(site->place, "a second site '%s'", site->name);
        if (!status) status = settle_site(pool, site);
    }
    if (!status) status = settle_groups(pool, &builtin, arena);
    struct gang_link *links = pool->links.items;
    for (int i = 0; i < pool->links.count && !status; i++) status = settle_link(pool, &links[i]);
    if (!status) status = settle_routes(pool, arena);
    return status;
}

enum gang_status gang_pool_parse(const char *path, const struct gang_buffer *text, struct gang_arena *arena, struct gang_pool *out) {
    *out = (struct gang_pool){0};
    enum gang_status status = gang_yaml_bind_nested(path, text, &pool_schema, out, arena);
    if (status) return status;
    out->path = gang_arena_strdup(arena, path);
    return settle(out, arena);
}

enum gang_status gang_pool_read(const char *path, struct gang_arena *arena, struct gang_pool *out) { return gang_pool_parse(path, NULL, arena, out); }

void gang_pool_uniform(const struct gang_kind *kind, int64_t devices, int64_t per_node, struct gang_arena *arena, struct gang_pool *out) {
    assert(devices % per_node == 0);
    struct gang_group *group = gang_arena_alloc(arena, sizeof *group);
    struct gang_site *site = gang_arena_alloc(arena, sizeof *site);
    *group = (struct gang_group){.name = kind->name,
                                 .device = kind->name,
                                 .kind = kind,
                                 .nodes = devices / per_node,
                                 .devices = per_node,
                                 .fast_domain = kind->fast_domain < per_node ? kind->fast_domain : per_node,
                                 .fast_bandwidth = kind->fast_bandwidth,
                                 .nic_bandwidth = kind->nic_bandwidth,
                                 .nic_latency = 5e-6,
                                 .oversubscription = 1};
    *site = (struct gang_site){.name = gang_arena_strdup(arena, "site"), .groups = {1, group}};
    *out = (struct gang_pool){
        .path = gang_arena_strdup(arena, "(uniform)"), .name = kind->name, .sites = {1, site}, .group_count = 1, .devices = devices};
    out->groups = gang_arena_alloc(arena, sizeof *out->groups);
    out->groups[0] = group;
    out->routes = gang_arena_alloc(arena, sizeof *out->routes);
}

bool gang_group_is_cpu(const struct gang_group *group) { return !strcmp(group->device, "cpu"); }

double gang_route_bandwidth(const struct gang_pool *pool, const struct gang_route *route) {
    double least = INFINITY;
    for (int i = 0; i < route->count; i++) least = fmin(least, gang_pool_link(pool, route->links[i])->bandwidth);
    return least;
}
