// Between processes of one machine and one user: sockets with a name, and memory that both see.
#include "base/base.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BACKLOG = 128 };
static const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

// Names live in the kernel, beside the file system: nothing is left behind by who dies.
static socklen_t name_address(const char *name, struct sockaddr_un *address) {
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    int length = snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "%s", name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length);
}

static enum gang_status open_named(const char *name, bool listens, int *fd) {
    struct sockaddr_un address;
    socklen_t bytes = name_address(name, &address);
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (*fd < 0) return gang_fail_os("%s: cannot make a socket", name);
    const struct sockaddr *to = (const struct sockaddr *)&address;
    if (listens ? bind(*fd, to, bytes) == 0 && listen(*fd, BACKLOG) == 0 : connect(*fd, to, bytes) == 0) return GANG_OK;
    enum gang_status status = gang_fail_os("%s: cannot %s", name, listens ? "listen" : "connect");
    int code = errno;
    close(*fd);
    *fd = -1;
    errno = code;
    return status;
}

enum gang_status gang_local_listen(const char *name, int *fd) { return open_named(name, true, fd); }
enum gang_status gang_local_connect(const char *name, int *fd) { return open_named(name, false, fd); }

bool gang_local_same_user(int fd) {
    struct ucred peer;
    socklen_t bytes = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0 && peer.uid == geteuid();
}

bool gang_local_pass(int fd, int passed) {
    char control[CMSG_SPACE(sizeof passed)] = {0};
    struct iovec iov = {"", 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof passed)};
    memcpy(CMSG_DATA(header), &passed, sizeof passed);
    return sendmsg(fd, &message, MSG_NOSIGNAL) == 1;
}

int gang_local_take(int fd) {
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    if (n < 0) return -1;
    const struct cmsghdr *header = n ? CMSG_FIRSTHDR(&message) : NULL;
    errno = EPROTO;
    if (!header || header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS || header->cmsg_len != CMSG_LEN(sizeof fd)) return -1;
    int passed;
    memcpy(&passed, CMSG_DATA(header), sizeof passed);
    return passed;
}

int gang_shared_new(size_t bytes) {
    int fd = memfd_create("gangline", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && fcntl(fd, F_ADD_SEALS, seals) == 0) return fd;
    if (fd >= 0) close(fd);
    return -1;
}

void *gang_shared_map(int fd, size_t bytes) {
    struct stat st;
    if (fstat(fd, &st) || (size_t)st.st_size != bytes || fcntl(fd, F_GET_SEALS) != seals) return NULL;
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return map == MAP_FAILED ? NULL : map;
}

void gang_shared_unmap(void *map, size_t bytes) {
    if (map) munmap(map, bytes);
}

void gang_shared_sleep(const uint32_t *word, uint32_t value, int64_t most_ns) {
    struct timespec most = {most_ns / 1000000000, most_ns % 1000000000};
    (void)syscall(SYS_futex, word, FUTEX_WAIT, value, &most, NULL, 0); // why it returns does not matter: callers look again
}

void gang_shared_wake(const uint32_t *word) { (void)syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }
