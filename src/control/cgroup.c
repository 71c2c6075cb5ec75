// A share of a core is a quota of CPU time per period, which the kernel keeps for cgroups: version 1 has a hierarchy for the
// CPU alone, version 2 has one for all.
#include "control/spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char root_v1[] = "/sys/fs/cgroup/cpu", root_v2[] = "/sys/fs/cgroup", prefix[] = "gangline-";
enum { PERIOD_US = 10000, LEAST_QUOTA_US = 1000, REMOVE_TRIES = 200, REMOVE_PAUSE_US = 5000, PIDS_BYTES = 1 << 16 };

static const char *root(bool *v1) {
    struct stat st;
    *v1 = stat("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &st) == 0 || stat("/sys/fs/cgroup/cpu/cgroup.procs", &st) == 0;
    return *v1 ? root_v1 : root_v2;
}

GANG_PRINTF(3, 4) static bool write_to(const char *dir, const char *name, const char *format, ...) {
    char path[256], text[64];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool good = fd >= 0 && write(fd, text, (size_t)length) == length;
    int code = errno;
    if (fd >= 0) close(fd);
    errno = code;
    return good;
}

static bool limit(const char *path, bool v1, double share) {
    // A quota has a least value; a small share has a longer period.
    long period_us = share * PERIOD_US >= LEAST_QUOTA_US ? PERIOD_US : (long)(LEAST_QUOTA_US / share), quota_us = (long)(share * (double)period_us);
    if (quota_us < LEAST_QUOTA_US) quota_us = LEAST_QUOTA_US;
    if (!v1) return write_to(path, "cpu.max", "%ld %ld", quota_us, period_us);
    return write_to(path, "cpu.cfs_period_us", "%ld", period_us) && write_to(path, "cpu.cfs_quota_us", "%ld", quota_us);
}

enum gang_status gang_cgroup_make(int number, double share, struct gang_cgroup *out) {
    char procs[sizeof out->path + 16];
    bool v1;
    *out = (struct gang_cgroup){0};
    const char *base = root(&v1);
    if (!v1) (void)write_to(base, "cgroup.subtree_control", "+cpu"); // if it fails, there is no cpu.max below
    snprintf(out->path, sizeof out->path, "%s/%s%d-%d", base, prefix, (int)getpid(), number);
    snprintf(procs, sizeof procs, "%s/cgroup.procs", out->path);
    bool good = mkdir(out->path, 0755) == 0 && limit(out->path, v1, share) && (out->procs = open(procs, O_WRONLY | O_CLOEXEC)) > 0;
    if (good) return GANG_OK;
    enum gang_status status = gang_fail(GANG_ERR_UNSUPPORTED,
                                        "%s: a share of %.3g of a core cannot be had: %s: it needs root and cgroups of the CPU; without a share a "
                                        "worker takes what it gets",
                                        out->path, share, strerror(errno));
    if (out->procs < 0) out->procs = 0;
    gang_cgroup_remove(out);
    return status;
}

static void kill_all_in(const char *path) {
    char procs[256], pids[PIDS_BYTES];
    snprintf(procs, sizeof procs, "%s/cgroup.procs", path);
    int fd = open(procs, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, pids, sizeof pids - 1);
    if (fd >= 0) close(fd);
    pids[n > 0 ? n : 0] = 0;
    int64_t pid;
    for (char *rest = pids, *line; (line = strsep(&rest, "\n")) && rest;)
        if (!gang_parse_int("pid", line, 2, INT32_MAX, &pid)) kill((pid_t)pid, SIGKILL);
}

static void remove_group(const char *path) {
    for (int i = 0; i < REMOVE_TRIES && rmdir(path) && errno == EBUSY; i++) {
        kill_all_in(path);
        usleep(REMOVE_PAUSE_US);
    }
}

void gang_cgroup_remove(struct gang_cgroup *cgroup) {
    if (cgroup->procs) close(cgroup->procs);
    if (cgroup->path[0]) remove_group(cgroup->path);
    *cgroup = (struct gang_cgroup){0};
}

void gang_cgroup_sweep(void) {
    bool v1;
    const char *base = root(&v1);
    DIR *dir = opendir(base);
    if (!dir) return;
    for (struct dirent *entry; (entry = readdir(dir));) {
        char name[64], path[256];
        int64_t pid;
        if (strncmp(entry->d_name, prefix, sizeof prefix - 1) != 0) continue;
        snprintf(name, sizeof name, "%s", entry->d_name + sizeof prefix - 1);
        name[strcspn(name, "-")] = 0;
        if (gang_parse_int("cgroup", name, 1, INT32_MAX, &pid) || kill((pid_t)pid, 0) == 0 || errno != ESRCH) continue;
        if (snprintf(path, sizeof path, "%s/%s", base, entry->d_name) < (int)sizeof path) remove_group(path);
    }
    closedir(dir);
}
