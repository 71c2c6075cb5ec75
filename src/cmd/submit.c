// gangline train --submit: the run as a batch job of Slurm's.
#include "cmd/cmd.h"
#include "cmd/fleet.h"

#include <stdio.h>
#include <unistd.h>

enum { NOTICE_S = 60, PATH_BYTES = 4096 };

// Those that are to run inside the job's own allocation.
static bool is_of_job(const struct gang_job *job, const struct gang_site *site) {
    return gang_fleet_launcher(site, (enum gang_launcher)job->launcher) == GANG_LAUNCH_SLURM && !*site->slurm_conf && !*site->login;
}

// Nodes, and the options that ask for them: as many cores as the devices of the fullest one take, then what the sites say.
static const char **options_of(const struct gang_job *job, const struct gang_pool *pool, struct gang_arena *arena, int64_t *nodes) {
    size_t count = 1;
    int64_t cores = 1;
    *nodes = 0;
    for (int s = 0; s < pool->sites.count; s++) count += (size_t)gang_pool_site(pool, s)->slurm_options.count;
    const char **options = gang_arena_alloc(arena, (count + 1) * sizeof *options);
    count = 1;
    for (int s = 0; s < pool->sites.count; s++) {
        const struct gang_site *site = gang_pool_site(pool, s);
        const struct gang_group *groups = site->groups.items;
        if (!is_of_job(job, site)) continue;
        for (int i = 0; i < site->slurm_options.count; i++) options[count++] = site->slurm_options.items[i];
        for (int g = 0; g < site->groups.count; g++) {
            *nodes += groups[g].nodes;
            if (groups[g].devices * groups[g].threads > cores) cores = groups[g].devices * groups[g].threads;
        }
    }
    options[0] = gang_arena_printf(arena, "--cpus-per-task=%lld", (long long)cores);
    return options;
}

enum gang_status gang_submit(const struct gang_job *job, const struct gang_pool *pool, const char *path, bool resume, bool json,
                             struct gang_arena *arena) {
    char self[PATH_BYTES] = {0}, *absolute, *dir;
    int64_t nodes, id;
    const char *const *options = options_of(job, pool, arena, &nodes);
    if (!nodes)
        return gang_fail(GANG_ERR_INPUT, "%s: --submit: no site of it starts by Slurm in the allocation of the job: name launcher: slurm in the job",
                         job->path);
    enum gang_status status = gang_mkdirs(job->output);
    if (!status) status = gang_path_absolute(job->output, arena, &dir);
    if (!status) status = gang_path_absolute(path, arena, &absolute);
    if (!status && readlink("/proc/self/exe", self, sizeof self - 1) < 0) status = gang_fail_os("--submit: where this program is");
    if (status) return status;
    const char *const argv[] = {self, "train", absolute, resume ? "--resume" : NULL, NULL};
    status = gang_slurm_submit(
        &(struct gang_slurm_job){
            .name = "gangline", .dir = dir, .nodes = (int)nodes, .notice_s = NOTICE_S, .requeue = true, .options = options, .argv = argv},
        &id);
    if (!status && json) printf("{\"job\": %lld}\n", (long long)id);
    if (!status && !json)
        printf("  job     %lld of Slurm's on %lld nodes, by %s/gangline.sbatch\n  prints  to %s/gangline-%lld.log\n  ends    with a save by: scancel "
               "%lld\n",
               (long long)id, (long long)nodes, dir, dir, (long long)id, (long long)id);
    return status;
}
