#include "control/mail.h"
#include "control/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

enum gang_status gang_secret_make(char text[SECRET_CHARS + 1]) {
    unsigned char random[SECRET_CHARS / 2];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random) return gang_fail_os("control: no random numbers");
    for (size_t i = 0; i < sizeof random; i++) snprintf(text + 2 * i, 3, "%02x", random[i]);
    explicit_bzero(random, sizeof random);
    return GANG_OK;
}

enum gang_status gang_secret_keep(const char *text, int *fd, char path[SECRET_PATH_BYTES]) {
    int first = memfd_create("gangline-secret", MFD_CLOEXEC);
    // Above the standard descriptors, which may be closed here and will be others' in a worker.
    *fd = first < 0 ? -1 : fcntl(first, F_DUPFD_CLOEXEC, 3);
    gang_fd_close(&first);
    if (*fd < 0 || fchmod(*fd, 0600) || write(*fd, text, strlen(text)) != (ssize_t)strlen(text)) {
        enum gang_status status = gang_fail_os("control: the secret cannot be kept in memory");
        gang_fd_close(fd);
        return status;
    }
    snprintf(path, SECRET_PATH_BYTES, "/proc/self/fd/%d", *fd);
    return GANG_OK;
}
