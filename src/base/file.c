// The OS table and files on top of it. Publication is write, fsync, rename, fsync of the directory: a reader sees the old
// file or the new one, never a part.
#include "base/base.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int real_open(const char *path, int flags, int mode) { return open(path, flags | O_CLOEXEC, mode); }
static int real_mkdir(const char *path, int mode) { return mkdir(path, (mode_t)mode); }
static int64_t read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}
static int64_t real_now_ns(void) { return read_clock(CLOCK_MONOTONIC); }
static int64_t real_wall_ns(void) { return read_clock(CLOCK_REALTIME); }

const struct gang_os gang_os_real = {
    .open = real_open,
    .close = close,
    .pread = pread,
    .write = write,
    .fsync = fsync,
    .rename = rename,
    .unlink = unlink,
    .mkdir = real_mkdir,
    .now_ns = real_now_ns,
    .wall_ns = real_wall_ns,
};
const struct gang_os *gang_os = &gang_os_real;

void gang_sleep_until(double seconds) {
    int64_t at = (int64_t)(seconds * 1e9);
    const struct timespec when = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR) continue;
}

bool gang_path_exists(const char *path) {
    struct stat st;
    return stat(path, &st) == 0;
}

bool gang_path_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

enum gang_status gang_path_absolute(const char *path, struct gang_arena *arena, char **out) {
    char *found = realpath(path, NULL);
    if (!found) return gang_fail_os("%s: cannot find", path);
    *out = gang_arena_strdup(arena, found);
    free(found);
    return GANG_OK;
}

enum gang_status gang_file_pread(int fd, const char *path, void *data, size_t bytes, int64_t at) {
    for (size_t done = 0; done < bytes;) {
        ssize_t got = gang_os->pread(fd, (char *)data + done, bytes - done, (off_t)(at + (int64_t)done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return gang_fail_os("%s: cannot read", path);
        if (got == 0)
            return gang_fail(GANG_ERR_FORMAT, "%s: the file ends at byte %lld, %zu bytes early", path, (long long)at + (long long)done, bytes - done);
        done += (size_t)got;
    }
    return GANG_OK;
}

// Opens a regular file for reading and tells its size. A pipe that nobody writes to would block at open: O_NONBLOCK.
static enum gang_status open_regular(const char *path, int *fd, size_t *bytes) {
    *fd = gang_os->open(path, O_RDONLY | O_NONBLOCK, 0);
    if (*fd < 0) return gang_fail_os("%s: cannot open", path);
    struct stat st;
    if (fstat(*fd, &st) == 0 && S_ISREG(st.st_mode)) {
        *bytes = (size_t)st.st_size;
        return GANG_OK;
    }
    gang_os->close(*fd);
    return gang_fail(GANG_ERR_INPUT, "%s: not a regular file", path);
}

enum gang_status gang_file_read(const char *path, size_t max_bytes, struct gang_buffer *out) {
    int fd;
    size_t bytes;
    enum gang_status status = open_regular(path, &fd, &bytes);
    if (status) return status;
    *out = (struct gang_buffer){0};
    if (bytes > max_bytes) {
        status = gang_fail(GANG_ERR_INPUT, "%s: %zu bytes, more than the %zu that such a file may have", path, bytes, max_bytes);
        goto out;
    }
    out->data = malloc(bytes + 1);
    if (!out->data) {
        status = gang_fail(GANG_ERR_MEMORY, "%s: no memory for %zu bytes", path, bytes);
        goto out;
    }
    out->len = bytes;
    out->cap = bytes + 1;
    out->data[bytes] = 0;
    status = gang_file_pread(fd, path, out->data, bytes, 0);
out:
    gang_os->close(fd);
    if (status) gang_buffer_release(out);
    return status;
}

enum gang_status gang_map_open(const char *path, struct gang_map *out) {
    int fd;
    *out = (struct gang_map){0};
    enum gang_status status = open_regular(path, &fd, &out->bytes);
    if (status) return status;
    if (out->bytes) {
        void *map = mmap(NULL, out->bytes, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            status = gang_fail_os("%s: cannot map %zu bytes", path, out->bytes);
            *out = (struct gang_map){0};
        } else {
            out->data = map;
        }
    }
    gang_os->close(fd);
    return status;
}

void gang_map_close(struct gang_map *map) {
    if (map->data) munmap((void *)map->data, map->bytes);
    *map = (struct gang_map){0};
}

// ---- Publication ---------------------------------------------------------------------------------------------------

static const size_t out_buffer_bytes = (size_t)1 << 20;

static char *heap_printf(const char *format, const char *a, const char *b) {
    char *text = NULL;
    int len = asprintf(&text, format, a, b);
    assert(len >= 0 && "out of memory");
    return text;
}

enum gang_status gang_out_open(struct gang_out *out, const char *path) {
    char *tmp = heap_printf("%s%s", path, ".tmp");
    int fd = gang_os->open(tmp, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) {
        enum gang_status status = gang_fail_os("%s: cannot create", tmp);
        free(tmp);
        return status;
    }
    *out = (struct gang_out){.path = strdup(path), .tmp = tmp, .fd = fd, .data = malloc(out_buffer_bytes)};
    assert(out->path && out->data && "out of memory");
    return GANG_OK;
}

static enum gang_status out_write_through(struct gang_out *out, const char *data, size_t bytes) {
    while (bytes) {
        ssize_t put = gang_os->write(out->fd, data, bytes);
        if (put < 0 && errno == EINTR) continue;
        if (put < 0) return gang_fail_os("%s: cannot write", out->tmp);
        data += put;
        bytes -= (size_t)put;
    }
    return GANG_OK;
}

static enum gang_status out_flush(struct gang_out *out) {
    // NOLINTNEXTLINE(clang-analyzer-unix.Malloc): `out` owns the buffer until out_close
    enum gang_status status = out_write_through(out, out->data, out->len);
    out->len = 0;
    return status;
}

enum gang_status gang_out_write(struct gang_out *out, const void *data, size_t bytes) {
    if (out->len + bytes > out_buffer_bytes) {
        enum gang_status status = out_flush(out);
        if (status) return status;
    }
    if (bytes >= out_buffer_bytes) return out_write_through(out, data, bytes);
    if (bytes) memcpy(out->data + out->len, data, bytes);
    out->len += bytes;
    return GANG_OK;
}

static void out_close(struct gang_out *out) {
    free(out->path);
    free(out->tmp);
    free(out->data);
    *out = (struct gang_out){0};
}

static enum gang_status sync_parent(const char *path) {
    const char *slash = strrchr(path, '/');
    if (!slash) return gang_dir_sync(".");
    char *dir = strndup(path, slash == path ? 1 : (size_t)(slash - path));
    assert(dir && "out of memory");
    enum gang_status status = gang_dir_sync(dir);
    free(dir);
    return status;
}

enum gang_status gang_out_publish(struct gang_out *out) {
    enum gang_status status = out_flush(out);
    if (!status && gang_os->fsync(out->fd)) status = gang_fail_os("%s: cannot make durable", out->tmp);
    if (gang_os->close(out->fd) && !status) status = gang_fail_os("%s: cannot close", out->tmp);
    if (!status && gang_os->rename(out->tmp, out->path)) status = gang_fail_os("%s: cannot rename to %s", out->tmp, out->path);
    if (status) {
        gang_os->unlink(out->tmp);
    } else {
        status = sync_parent(out->path);
    }
    out_close(out);
    return status;
}

void gang_out_discard(struct gang_out *out) {
    if (!out->path) return;
    gang_os->close(out->fd);
    gang_os->unlink(out->tmp);
    out_close(out);
}

enum gang_status gang_file_publish(const char *path, const void *data, size_t bytes) {
    struct gang_out out = {0};
    enum gang_status status = gang_out_open(&out, path);
    if (!status) status = gang_out_write(&out, data, bytes);
    if (!status) return gang_out_publish(&out);
    gang_out_discard(&out);
    return status;
}

// ---- Directories ---------------------------------------------------------------------------------------------------

enum gang_status gang_dir_sync(const char *path) {
    int fd = gang_os->open(path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0) return gang_fail_os("%s: cannot open the directory", path);
    enum gang_status status = GANG_OK;
    if (gang_os->fsync(fd)) status = gang_fail_os("%s: cannot make the directory durable", path);
    gang_os->close(fd);
    return status;
}

enum gang_status gang_mkdirs(const char *path) {
    char *copy = strdup(path);
    assert(copy && "out of memory");
    enum gang_status status = GANG_OK;
    for (char *p = copy; !status && *p;) {
        p += strspn(p, "/");
        p += strcspn(p, "/");
        char kept = *p;
        *p = 0;
        if (gang_os->mkdir(copy, 0755) && !(errno == EEXIST && gang_path_is_dir(copy))) status = gang_fail_os("%s: cannot make the directory", copy);
        *p = kept;
    }
    free(copy);
    return status;
}

static enum gang_status remove_entry(int parent, const char *path, const char *name, unsigned char type) {
    struct stat st;
    // Not every file system tells the type while listing.
    if (type == DT_UNKNOWN && !fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) && S_ISDIR(st.st_mode)) type = DT_DIR;
    if (type != DT_DIR) return unlinkat(parent, name, 0) ? gang_fail_os("%s/%s: cannot remove", path, name) : GANG_OK;
    char *sub = heap_printf("%s/%s", path, name);
    enum gang_status status = gang_dir_remove(sub);
    free(sub);
    return status;
}

enum gang_status gang_dir_remove(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? GANG_OK : gang_fail_os("%s: cannot open the directory", path);
    DIR *dir = fdopendir(fd);
    assert(dir && "out of memory");
    enum gang_status status = GANG_OK;
    for (struct dirent *entry; !status && (entry = readdir(dir));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) status = remove_entry(fd, path, entry->d_name, entry->d_type);
    closedir(dir);
    if (!status && rmdir(path)) status = gang_fail_os("%s: cannot remove the directory", path);
    return status;
}
