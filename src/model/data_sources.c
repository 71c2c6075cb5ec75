// From the sources that a job names to the list of its files.
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "model/data_internal.h"

enum { MAX_DEPTH = 64, ENDS_BYTES = 4096 };

struct finder {
    struct gang_sources *out;
    struct stat cache; // of the cache directory; zero if there is none yet
};

static enum gang_status hash_ends(const char *path, int64_t bytes, uint64_t *hash) {
    uint8_t ends[2 * ENDS_BYTES];
    size_t head = bytes < ENDS_BYTES ? (size_t)bytes : ENDS_BYTES;
    int fd = gang_os->open(path, O_RDONLY, 0);
    if (fd < 0) return gang_fail_os("data: %s: cannot read", path);
    enum gang_status status = gang_file_pread(fd, path, ends, head, 0);
    if (!status) status = gang_file_pread(fd, path, ends + head, head, bytes - (int64_t)head);
    gang_os->close(fd);
    if (!status) *hash = gang_hash(ends, 2 * head, 0);
    return status;
}

static enum gang_status add_file(struct finder *finder, const char *path, const struct stat *st) {
    struct gang_sources *out = finder->out;
    if (out->count == GANG_MAX_SOURCE_FILES)
        return gang_fail(GANG_ERR_INPUT, "data: %s: more than %d files: join small files", path, GANG_MAX_SOURCE_FILES);
    char *absolute = realpath(path, NULL);
    if (!absolute) return gang_fail_os("data: %s: cannot find its place", path);
    struct gang_source source = {
        .path = gang_arena_strdup(&out->arena, absolute),
        .bytes = st->st_size,
        .mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec,
    };
    free(absolute);
    enum gang_status status = hash_ends(source.path, source.bytes, &source.ends_hash);
    if (status) return status;
    if (out->count == out->cap) {
        out->cap = out->cap ? 2 * out->cap : 64;
        out->items = realloc(out->items, (size_t)out->cap * sizeof *out->items);
        assert(out->items && "out of memory");
    }
    out->items[out->count++] = source;
    out->bytes += source.bytes;
    return GANG_OK;
}

static bool is_cache(const struct finder *finder, const struct stat *st) {
    return finder->cache.st_nlink && st->st_dev == finder->cache.st_dev && st->st_ino == finder->cache.st_ino;
}

static int visible(const struct dirent *entry) { return entry->d_name[0] != '.'; }
static int by_bytes(const struct dirent **a, const struct dirent **b) { return strcmp((*a)->d_name, (*b)->d_name); }

static enum gang_status add_dir(struct finder *finder, const char *path, int depth);

// One entry of a directory. Links to files are followed, links to directories are not: they may lead in a circle.
static enum gang_status add_entry(struct finder *finder, const char *path, int depth) {
    struct stat st, link;
    if (lstat(path, &link) || stat(path, &st)) return gang_fail_os("data: %s: cannot look at it", path);
    if (S_ISREG(st.st_mode)) return add_file(finder, path, &st);
    if (!S_ISDIR(link.st_mode) || is_cache(finder, &st)) return GANG_OK;
    return add_dir(finder, path, depth + 1);
}

static enum gang_status add_dir(struct finder *finder, const char *path, int depth) {
    if (depth > MAX_DEPTH) return gang_fail(GANG_ERR_INPUT, "data: %s: directories nested more than %d deep", path, MAX_DEPTH);
    struct dirent **entries = NULL;
    int count = scandir(path, &entries, visible, by_bytes);
    if (count < 0) return gang_fail_os("data: %s: cannot read the directory", path);
    enum gang_status status = GANG_OK;
    struct gang_buffer child = {0};
    for (int i = 0; i < count; i++) {
        child.len = 0;
        gang_buffer_printf(&child, "%s/%s", path, entries[i]->d_name);
        if (!status) status = add_entry(finder, child.data, depth);
        free(entries[i]);
    }
    free(entries);
    gang_buffer_release(&child);
    return status;
}

// A file or directory that the job names itself, or that its glob yields.
static enum gang_status add_path(struct finder *finder, const char *path) {
    struct stat st;
    if (stat(path, &st)) return gang_fail_os("data: %s: cannot look at it", path);
    if (S_ISDIR(st.st_mode)) return add_dir(finder, path, 0);
    if (S_ISREG(st.st_mode)) return add_file(finder, path, &st);
    return gang_fail(GANG_ERR_INPUT, "data: %s: neither a file nor a directory", path);
}

static int compare_strings(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static enum gang_status add_glob(struct finder *finder, const char *pattern) {
    glob_t found = {0};
    int code = glob(pattern, GLOB_ERR | GLOB_NOSORT, NULL, &found);
    enum gang_status status = GANG_OK;
    if (code == GLOB_NOMATCH)
        status = gang_fail(GANG_ERR_INPUT, "data: %s: nothing matches: name text files, directories of them, or a glob that finds some", pattern);
    else if (code)
        status = gang_fail_os("data: %s: cannot search", pattern);
    if (!code) qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, compare_strings); // not by the locale
    for (size_t i = 0; !status && i < found.gl_pathc; i++) status = add_path(finder, found.gl_pathv[i]);
    globfree(&found);
    return status;
}

enum gang_status gang_sources_find(const struct gang_strings *sources, const char *cache_dir, struct gang_sources *out) {
    *out = (struct gang_sources){0};
    struct finder finder = {.out = out};
    if (stat(cache_dir, &finder.cache)) finder.cache = (struct stat){0};
    for (int i = 0; i < sources->count; i++) {
        const char *source = sources->items[i];
        bool pattern = strpbrk(source, "*?[") && !gang_path_exists(source);
        enum gang_status status = pattern ? add_glob(&finder, source) : add_path(&finder, source);
        if (status) return status;
    }
    if (out->bytes) return GANG_OK;
    if (!out->count)
        return gang_fail(GANG_ERR_INPUT, "data: the data set is empty: no file found in '%s': name text files, directories of them, or globs",
                         sources->count ? sources->items[0] : "");
    return gang_fail(GANG_ERR_INPUT, "data: the data set is empty: none of its %d files holds any text, for example %s", out->count,
                     out->items[0].path);
}

void gang_sources_release(struct gang_sources *sources) {
    free(sources->items);
    gang_arena_release(&sources->arena);
    *sources = (struct gang_sources){0};
}
