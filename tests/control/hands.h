// hands: the worker that the tests of control start: it does what the coordinator's messages say. And what a coordinator asks of it.
// The test program itself is agent and worker too: call hands_main first. Include after "test.h".
#ifndef GANG_HANDS_H
#define GANG_HANDS_H

#include "control/control.h"

#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DO_ECHO = 1, DO_PRINT, DO_EXIT, DO_DIE, DO_FAIL, DO_HANG, DO_FORK, DO_FLOOD, DO_RESIST, DO_TELL, DO_MUMBLE };

struct told { // the answer to DO_TELL
    int32_t number, pid, parent, cpus, cpu;
};

static inline struct told hands_tell(const struct gang_worker *worker) {
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    return (struct told){gang_worker_number(worker), getpid(), getppid(), CPU_COUNT(&cpus), sched_getcpu()};
}

static inline void hands_print(struct gang_worker *worker, const void *data) {
    int32_t count;
    memcpy(&count, data, sizeof count);
    for (int i = 0; i < count; i++) {
        printf("out %d\n", i);
        fprintf(stderr, "err %d\n", i);
    }
    fflush(stdout);
    if (gang_worker_send(worker, DO_PRINT, NULL, 0)) exit(9);
}

static inline void hands_mumble(void) {
    char long_line[3 * GANG_CONTROL_LINE_BYTES];
    memset(long_line, 'x', sizeof long_line);
    fwrite(long_line, 1, sizeof long_line, stdout);
    printf("\n\033[31mred\x80\xff\xe2\x80\xaeturned\tgr\xc3\xbcn\nno end");
    fflush(stdout);
}

// What ends badly: never returns.
static inline void hands_end(struct gang_worker *worker, const struct gang_worker_event *event) {
    if (event->type == DO_DIE) raise(SIGKILL);
    if (event->type == DO_HANG) raise(SIGSTOP);
    if (event->type == DO_FAIL) fprintf(stderr, "first words\nthe disk is full\n");
    if (event->type == DO_RESIST) {
        signal(SIGTERM, SIG_IGN);
        for (;;) pause();
    }
    while (event->type == DO_FLOOD) printf("a line of a flood that nobody asked for and that is long enough to fill memory soon\n");
    int code = event->type == DO_FAIL ? 3 : event->bytes ? *(const unsigned char *)event->data : 0;
    gang_worker_leave(worker);
    exit(code);
}

static inline int hands_work(void) {
    struct gang_worker *worker;
    struct gang_worker_event event;
    enum gang_status status = gang_worker_join(&worker);
    while (!status && !(status = gang_worker_next(worker, -1, &event))) {
        struct told told = hands_tell(worker);
        if (event.type == DO_ECHO) status = gang_worker_send(worker, DO_ECHO, event.data, event.bytes);
        if (event.type == DO_TELL) status = gang_worker_send(worker, DO_TELL, &told, sizeof told);
        if (event.type == DO_PRINT) hands_print(worker, event.data);
        if (event.type == DO_MUMBLE) hands_mumble();
        if (event.type == DO_FORK && fork() == 0) {
            for (;;) pause();
        }
        if (event.type != DO_ECHO && event.type != DO_TELL && event.type != DO_PRINT && event.type != DO_FORK) hands_end(worker, &event);
    }
    if (status != GANG_ERR_STOPPED) fprintf(stderr, "%s\n", gang_error());
    gang_worker_leave(worker);
    return status == GANG_ERR_STOPPED ? 0 : 1;
}

// An agent whose clock somebody has set wrong.
static inline int64_t hands_wall_ns(void) { return gang_os_real.wall_ns() + (int64_t)atoi(getenv("GANG_TEST_CLOCK")) * 1000000000; }

static inline void hands_set_clock(void) {
    static struct gang_os os;
    os = gang_os_real;
    os.wall_ns = hands_wall_ns;
    gang_os = &os;
}

// As the first call in main: agents and workers do not come back from it.
static inline void hands_main(int argc, char **argv) {
    if (argc < 2) return;
    int code = 2;
    if (!strcmp(argv[1], "agent")) {
        if (getenv("GANG_TEST_CLOCK")) hands_set_clock();
        code = gang_agent_run(0);
        if (code) fprintf(stderr, "%s\n", gang_error());
    }
    if (!strcmp(argv[1], "worker")) code = hands_work();
    if (!strcmp(argv[1], "idler"))
        for (;;) pause();
    exit(code);
}

// ---- Of the coordinator's side ---------------------------------------------------------------------------------------

static inline int descriptors(void) {
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

// Another process that lives and runs this very program; 0: none.
static inline int another_of_us(void) {
    char self[256] = {0}, path[300], exe[256], state[512];
    int found = 0, pid;
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    DIR *dir = opendir("/proc");
    for (struct dirent *entry; !found && (entry = readdir(dir));) {
        if (sscanf(entry->d_name, "%d", &pid) != 1 || pid == getpid()) continue;
        snprintf(path, sizeof path, "/proc/%d/exe", pid);
        ssize_t n = readlink(path, exe, sizeof exe - 1);
        exe[n > 0 ? n : 0] = 0;
        snprintf(path, sizeof path, "/proc/%d/stat", pid);
        FILE *file = n > 0 && !strcmp(exe, self) ? fopen(path, "r") : NULL;
        if (file && fgets(state, sizeof state, file) && !strstr(state, ") Z ") && !strstr(state, ") X ")) found = pid;
        if (file) fclose(file);
    }
    closedir(dir);
    return found;
}

// Waits until no agent or worker lives, whoever its parent is, and none of this process's descendants (orphans become its
// children: call prctl(PR_SET_CHILD_SUBREAPER, 1) first).
static inline void await_nobody(void) {
    int64_t start = gang_os->now_ns(), limit = start + 10000000000;
    int left = 0;
    while (waitpid(-1, NULL, WNOHANG) >= 0 || (left = another_of_us())) {
        if (gang_os->now_ns() > limit) fail_msg("process %d is left", left);
        usleep(1000);
    }
    print_message("nobody is left after %.0f ms\n", (double)(gang_os->now_ns() - start) * 1e-6);
}

// The next event that is not a line, or is one if `lines`.
static inline struct gang_control_event next_event(struct gang_control *control, bool lines) {
    struct gang_control_event event;
    do {
        assert_ok(gang_control_next(control, 20000, &event));
        assert_int_not_equal(event.kind, GANG_EVENT_NONE);
    } while (event.kind == GANG_EVENT_LOG && !lines);
    return event;
}

static inline struct told tell(struct gang_control *control, int worker) {
    struct told told;
    assert_ok(gang_control_send(control, worker, DO_TELL, NULL, 0));
    struct gang_control_event event = next_event(control, false);
    assert_int_equal(event.kind, GANG_EVENT_MESSAGE);
    assert_int_equal(event.worker, worker);
    assert_int_equal(event.bytes, sizeof told);
    memcpy(&told, event.data, sizeof told);
    return told;
}

#endif
