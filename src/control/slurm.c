// Slurm, by its commands only.
#include "control/launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAMES_MAX = 1 << 16 };

// ---- Inside an allocation --------------------------------------------------------------------------------------------

bool gang_slurm_asks(const struct gang_control_site *site) {
    return site->launcher == GANG_LAUNCH_SLURM && (site->login || site->slurm_conf || !getenv("SLURM_JOB_ID") || !getenv("SLURM_JOB_NODELIST"));
}

static enum gang_status allocation(struct gang_arena *arena, const char **names, int *count) {
    struct gang_buffer text = {0};
    const char *job = getenv("SLURM_JOB_ID"), *list = getenv("SLURM_JOB_NODELIST");
    *count = 0;
    enum gang_status status = gang_capture((const char *const[]){"scontrol", "show", "hostnames", list, NULL}, &text);
    char *rest = status ? NULL : gang_arena_strdup(arena, text.data ? text.data : "");
    for (char *name; (name = strsep(&rest, "\n"));)
        if (*name && *count < NAMES_MAX) names[(*count)++] = name;
    gang_buffer_release(&text);
    return status ? gang_fail(status, "control: slurm: the nodes of job %s are not to be had: %s", job, gang_error()) : GANG_OK;
}

static int find(const char *const *names, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (names[i] && !strcmp(names[i], name)) return i;
    return -1;
}

// Those that sites name, then for each of the others the next that is left. Taken ones become NULL in `names`.
static enum gang_status share_out(const struct gang_control_options *options, const char **names, int count, const char **out) {
    for (int pass = 0; pass < 2; pass++)
        for (int s = 0, n = 0, next = 0; s < options->site_count; n += options->sites[s++].node_count) {
            const struct gang_control_site *site = &options->sites[s];
            bool named = site->nodes;
            if (site->launcher != GANG_LAUNCH_SLURM || gang_slurm_asks(site) || named != !pass) continue;
            for (int i = 0; i < site->node_count; i++) {
                int at = named ? find(names, count, site->nodes[i]) : next;
                while (!named && at < count && !names[at]) at++;
                if (at < 0 || at >= count)
                    return gang_fail(GANG_ERR_INPUT, "control: slurm: node '%s' is not in the allocation, or is named twice: ask for --nodelist",
                                     named        ? site->nodes[i]
                                     : site->name ? site->name
                                                  : "?");
                out[n + i] = names[at];
                names[at] = NULL;
                next = at + 1;
            }
        }
    return GANG_OK;
}

enum gang_status gang_slurm_nodes(const struct gang_control_options *options, struct gang_arena *arena, const char **out) {
    int count, needed = 0;
    for (int s = 0; s < options->site_count; s++)
        if (options->sites[s].launcher == GANG_LAUNCH_SLURM && !gang_slurm_asks(&options->sites[s])) needed += options->sites[s].node_count;
    if (!needed) return GANG_OK;
    const char **names = gang_arena_alloc(arena, NAMES_MAX * sizeof *names);
    enum gang_status status = allocation(arena, names, &count);
    if (!status && count < needed)
        status = gang_fail(GANG_ERR_INPUT, "control: slurm: the allocation has %d nodes and the run needs %d: ask for --nodes=%d", count, needed,
                           needed);
    return status ? status : share_out(options, names, count, out);
}

// ---- Outside -------------------------------------------------------------------------------------------------------

// sbatch reads its directives word by word: what could end a word or a line has no place in them.
static enum gang_status check_text(const char *what, const char *text) {
    for (const char *p = text; *p; p++)
        if (*p <= 0x20 || *p == 0x7f || strchr("'\"\\%#", *p))
            return gang_fail(GANG_ERR_INPUT, "control: slurm: the job's %s, '%s', has a character that sbatch would not take as it is", what, text);
    return *text ? GANG_OK : gang_fail(GANG_ERR_INPUT, "control: slurm: the job has no %s", what);
}

static void write_script(const struct gang_slurm_job *job, struct gang_arena *arena, struct gang_buffer *script) {
    gang_buffer_printf(script, "#!/bin/sh\n#SBATCH --job-name=%s\n#SBATCH --nodes=%d\n#SBATCH --ntasks-per-node=1\n", job->name, job->nodes);
    gang_buffer_printf(script, "#SBATCH --output=%s/%s-%%j.log\n#SBATCH --open-mode=append\n#SBATCH --%s\n", job->dir, job->name,
                       job->requeue ? "requeue" : "no-requeue");
    if (job->limit_s) gang_buffer_printf(script, "#SBATCH --time=%lld:%02lld\n", (long long)job->limit_s / 60, (long long)job->limit_s % 60);
    if (job->notice_s) gang_buffer_printf(script, "#SBATCH --signal=B:TERM@%lld\n", (long long)job->notice_s);
    for (int i = 0; job->options && job->options[i]; i++) gang_buffer_printf(script, "#SBATCH %s\n", job->options[i]);
    // In the shell's place, so that the signal reaches it.
    gang_buffer_printf(script, "exec");
    for (int i = 0; job->argv[i]; i++) gang_buffer_printf(script, " %s", gang_shell_quoted(arena, job->argv[i]));
    gang_buffer_printf(script, "\n");
}

enum gang_status gang_slurm_submit(const struct gang_slurm_job *job, int64_t *job_id) {
    struct gang_buffer script = {0}, answer = {0};
    struct gang_arena arena;
    gang_arena_init(&arena);
    *job_id = 0;
    enum gang_status status = check_text("name", job->name);
    if (!status) status = check_text("directory", job->dir);
    for (int i = 0; !status && job->options && job->options[i]; i++) status = check_text("option", job->options[i]);
    if (!status && job->nodes < 1) status = gang_fail(GANG_ERR_INPUT, "control: slurm: a job on %d nodes", job->nodes);
    const char *path = gang_arena_printf(&arena, "%s/%s.sbatch", job->dir, job->name);
    if (!status) {
        write_script(job, &arena, &script);
        status = gang_file_publish(path, script.data, script.len);
    }
    if (!status) status = gang_capture((const char *const[]){"sbatch", "--parsable", path, NULL}, &answer);
    if (!status) {
        // "ID" or "ID;CLUSTER", after whatever warnings there were.
        char *last = answer.data ? strrchr(answer.data, '\n') : NULL, *id = last ? last + 1 : answer.data ? answer.data : "";
        if (strchr(id, ';')) *strchr(id, ';') = 0;
        status = gang_parse_int("control: slurm: sbatch's answer", id, 1, INT64_MAX, job_id);
    }
    gang_buffer_release(&script);
    gang_buffer_release(&answer);
    gang_arena_release(&arena);
    return status;
}
