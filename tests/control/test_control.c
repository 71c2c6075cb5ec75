// Coordinator, agents and workers: all join, talk, print and end; whoever dies is named and nothing is left behind. By itself
// over the local launcher; test_ssh.sh and test_slurm.sh run it again with
//     GANG_TEST_LAUNCHER=ssh|slurm  GANG_TEST_NODES="a b"  GANG_TEST_SSH_CONFIG=file
#include "../test.h"
#include "../scratch.h"
#include "hands.h"

#include <fcntl.h>
#include <sys/stat.h>

static const char *nodes[] = {"alpha", "beta"}, *ssh_options[] = {"-F", NULL, NULL};
static const char *const worker_argv[] = {"", "worker", NULL};
static enum gang_launcher launcher;
static const struct gang_control_worker workers[] = {{0, 0, -1}, {1, 0, -1}, {1, 0, 0}};
enum { NODES = 2, WORKERS = 3 };

static struct gang_control_site site;

static struct gang_control_options options(void) {
    site = (struct gang_control_site){.name = "here", .launcher = launcher, .node_count = NODES, .nodes = nodes};
    return (struct gang_control_options){.site_count = 1,
                                         .sites = &site,
                                         .worker_count = WORKERS,
                                         .workers = workers,
                                         .worker_argv = worker_argv,
                                         .listen = "127.0.0.1:0",
                                         .ssh_options = ssh_options};
}

static struct gang_control *open_all(void) {
    struct gang_control *control;
    struct gang_control_options o = options();
    assert_ok(gang_control_open(&o, &control));
    return control;
}

// Ends it, and checks that nothing is left: no process, no descriptor, no cgroup.
static void close_all(struct gang_control *control, int descriptors_before) {
    gang_control_close(control);
    assert_int_equal(descriptors(), descriptors_before);
    await_nobody();
}

static void order(struct gang_control *control, int worker, uint32_t type) { assert_ok(gang_control_send(control, worker, type, NULL, 0)); }

static struct gang_control_event expect(struct gang_control *control, enum gang_event kind, int worker, const char *words) {
    struct gang_control_event event = next_event(control, false);
    if (event.kind != kind || event.worker != worker || (words && !strstr(event.data, words)))
        fail_msg("expected event %d of %d with '%s', got event %d of %d: %s", kind, worker, words ? words : "", event.kind, event.worker,
                 event.data ? (const char *)event.data : "");
    return event;
}

static void test_they_talk_and_leave(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    static char big[3000000];
    for (size_t i = 0; i < sizeof big; i++) big[i] = (char)(i * i);
    for (int i = 0; i < 20; i++) assert_ok(gang_control_broadcast(control, DO_ECHO, big, i % 3 ? (size_t)i * 100 : sizeof big - (size_t)i));
    int answers[3] = {0};
    for (int i = 0; i < 20 * WORKERS; i++) {
        struct gang_control_event event = next_event(control, false);
        assert_int_equal(event.kind, GANG_EVENT_MESSAGE);
        int turn = answers[event.worker]++;
        assert_int_equal(event.bytes, turn % 3 ? (size_t)turn * 100 : sizeof big - (size_t)turn);
        assert_memory_equal(event.data, big, event.bytes);
    }
    for (int w = 0; w < WORKERS; w++) {
        assert_int_equal(tell(control, w).number, w);
        assert_ok(gang_control_send(control, w, DO_EXIT, &(unsigned char){(unsigned char)(40 + w)}, 1));
        struct gang_control_event event = expect(control, GANG_EVENT_EXIT, w, nodes[workers[w].node]);
        assert_int_equal(event.code, 40 + w);
        assert_int_equal(event.node, workers[w].node);
        assert_fails(GANG_ERR_PEER, "has ended", gang_control_send(control, w, DO_ECHO, NULL, 0));
    }
    close_all(control, before);
}

static void test_lines_come_whole_and_in_order(void **state) {
    (void)state;
    int before = descriptors(), living = WORKERS, next[3][2] = {{0}};
    const int32_t count = 2000;
    struct gang_control *control = open_all();
    assert_ok(gang_control_broadcast(control, DO_PRINT, &count, sizeof count));
    assert_ok(gang_control_broadcast(control, DO_EXIT, NULL, 0));
    while (living) {
        struct gang_control_event event = next_event(control, true);
        if (event.kind == GANG_EVENT_LOG && event.worker >= 0) { // others are the launcher's own remarks
            char expected[32];
            snprintf(expected, sizeof expected, event.type == 1 ? "out %d" : "err %d", next[event.worker][event.type - 1]++);
            assert_string_equal(event.data, expected);
            assert_int_equal(event.bytes, strlen(expected));
        }
        if (event.kind != GANG_EVENT_EXIT) continue;
        living--;
        for (int s = 0; s < 2; s++) assert_int_equal(next[event.worker][s], count);
    }
    close_all(control, before);
}

static void test_lines_are_made_safe(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    order(control, 1, DO_MUMBLE);
    struct gang_control_event event = next_event(control, true);
    assert_int_equal(event.bytes, GANG_CONTROL_LINE_BYTES);
    event = next_event(control, true);
    assert_string_equal(event.data, "?[31mred?????turned gr\xc3\xbcn");
    event = next_event(control, true);
    assert_string_equal(event.data, "no end");
    expect(control, GANG_EVENT_EXIT, 1, "exit status 0");
    close_all(control, before);
}

static void test_who_dies_is_named(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    order(control, 2, DO_FAIL);
    struct gang_control_event event = expect(control, GANG_EVENT_EXIT, 2, "exit status 3; its last line: 'the disk is full'");
    int64_t first_ns = event.at_ns;
    order(control, 0, DO_DIE);
    event = expect(control, GANG_EVENT_EXIT, 0, "signal 9 (Killed)");
    assert_int_equal(event.signal, SIGKILL);
    assert_true(event.at_ns > first_ns && event.at_ns <= gang_os->now_ns());
    order(control, 1, DO_HANG);
    expect(control, GANG_EVENT_EXIT, 1, "did not answer any more");
    close_all(control, before);
}

static void test_what_a_worker_starts_goes_with_it(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    for (int i = 0; i < 3; i++) order(control, 0, DO_FORK);
    order(control, 0, DO_EXIT);
    expect(control, GANG_EVENT_EXIT, 0, "exit status 0");
    close_all(control, before);
}

static void test_who_resists_is_killed(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    tell(control, 1);
    order(control, 1, DO_RESIST);
    order(control, 0, DO_FLOOD);
    close_all(control, before);
}

static long resident_pages(int pid) {
    char path[64];
    long size = 0, resident = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", pid);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%ld %ld", &size, &resident), 2);
    fclose(file);
    return resident;
}

static void test_a_flood_is_held_back(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    struct gang_control_event event;
    struct told told = tell(control, 1);
    long agent_pages = resident_pages(told.parent), own_pages = resident_pages(getpid());
    order(control, 1, DO_FLOOD);
    // Another worker on the same node is heard all the same.
    for (int i = 0; i < 20000; i++) assert_ok(gang_control_next(control, 20000, &event));
    order(control, 2, DO_ECHO);
    do assert_ok(gang_control_next(control, 20000, &event));
    while (event.kind == GANG_EVENT_LOG);
    assert_int_equal(event.kind, GANG_EVENT_MESSAGE);
    // Nobody listens now: the flood must stop at the pipe. (A sanitizer keeps what is freed.)
    usleep(200000);
    long grown = resident_pages(told.parent) - agent_pages + resident_pages(getpid()) - own_pages;
    assert_true(grown < 4096 || getenv("GANG_SANITIZED"));
    close_all(control, before);
}

static void test_an_agent_that_dies_is_a_lost_node(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    struct told told = tell(control, 2);
    order(control, 1, DO_RESIST);
    kill(told.parent, SIGKILL);
    struct gang_control_event event = expect(control, GANG_EVENT_NODE_LOST, -1, "is lost");
    assert_int_equal(event.node, 1);
    assert_non_null(strstr(event.data, nodes[1]));
    if (launcher == GANG_LAUNCH_LOCAL) assert_non_null(strstr(event.data, "signal 9 (Killed)"));
    assert_fails(GANG_ERR_PEER, "has ended", gang_control_send(control, 2, DO_ECHO, NULL, 0));
    assert_int_equal(tell(control, 0).number, 0);
    close_all(control, before);
}

static void test_an_agent_that_hangs_is_a_lost_node(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control = open_all();
    kill(tell(control, 0).parent, SIGSTOP);
    struct gang_control_event event = expect(control, GANG_EVENT_NODE_LOST, -1, "does not answer any more");
    assert_int_equal(event.node, 0);
    close_all(control, before);
}

// A coordinator in a process of its own, killed: all that it has started ends by itself.
static void test_nothing_outlives_the_coordinator(void **state) {
    (void)state;
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct gang_control *control = open_all();
        order(control, 0, DO_RESIST);
        order(control, 1, DO_FLOOD);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    kill(pid, SIGKILL);
    await_nobody();
}

static void test_many_starts_leave_nothing(void **state) {
    (void)state;
    int before = descriptors();
    struct gang_control *control;
    struct gang_control_options o = options();
    site.node_count = 1;
    o.workers = (struct gang_control_worker[]){{0, 0, -1}};
    o.worker_count = 1;
    for (int i = 0; i < (launcher == GANG_LAUNCH_LOCAL ? 100 : 3); i++) {
        assert_ok(gang_control_open(&o, &control));
        gang_control_close(control);
    }
    assert_int_equal(descriptors(), before);
    await_nobody();
}

// ---- Cores ---------------------------------------------------------------------------------------------------------

static void test_a_worker_is_pinned(void **state) {
    (void)state;
    struct gang_control *control = open_all();
    struct told told = tell(control, 2);
    assert_int_equal(told.cpus, 1);
    assert_int_equal(told.cpu, 0);
    gang_control_close(control);
}

static int cgroups(void) {
    int count = 0;
    DIR *dir = opendir(access("/sys/fs/cgroup/cpu/cgroup.procs", F_OK) ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu");
    for (struct dirent *entry; dir && (entry = readdir(dir));) count += strncmp(entry->d_name, "gangline-", 9) == 0;
    if (dir) closedir(dir);
    return count;
}

static void test_a_worker_has_a_share(void **state) {
    (void)state;
    int before = descriptors(), groups = cgroups();
    const struct gang_control_worker sharing[] = {{0, 0.25, -1}, {0, 0.02, -1}};
    struct gang_control_options o = options();
    struct gang_control *control;
    o.workers = sharing;
    o.worker_count = 2;
    enum gang_status status = gang_control_open(&o, &control);
    if (status && strstr(gang_error(), "needs root and cgroups")) skip();
    assert_ok(status);
    assert_int_equal(cgroups(), groups + 2);
    order(control, 0, DO_FORK);
    order(control, 0, DO_DIE);
    expect(control, GANG_EVENT_EXIT, 0, "Killed");
    kill(tell(control, 1).parent, SIGKILL);
    expect(control, GANG_EVENT_NODE_LOST, -1, "Killed");
    close_all(control, before);
    assert_int_equal(cgroups(), groups);
}

// ---- What is refused -------------------------------------------------------------------------------------------------

static void expect_failure(const struct gang_control_options *o, enum gang_status status, const char *words) {
    int before = descriptors();
    struct gang_control *control;
    assert_fails(status, words, gang_control_open(o, &control));
    print_message("%s\n", gang_error());
    assert_null(control);
    assert_int_equal(descriptors(), before);
    await_nobody();
}

static void test_bad_options_are_named(void **state) {
    (void)state;
    struct gang_control_options o = options();
    o.worker_count = 0;
    expect_failure(&o, GANG_ERR_INPUT, "0 workers on 2 nodes");
    o = options();
    site.node_count = 1;
    expect_failure(&o, GANG_ERR_INPUT, "worker 1: there is no node 1 among 1");
    o = options();
    o.workers = (struct gang_control_worker[]){{0, -1, -1}, {0}, {0}};
    expect_failure(&o, GANG_ERR_INPUT, "share of -1");
    o.workers = (struct gang_control_worker[]){{0, 0, -2}, {0}, {0}};
    expect_failure(&o, GANG_ERR_INPUT, "no core -2");
    o = options();
    site.nodes = (const char *[]){"alpha", "beta\nsecret x"};
    expect_failure(&o, GANG_ERR_INPUT, "is no name of a host");
}

static void test_what_cannot_start_is_named(void **state) {
    (void)state;
    struct gang_control_options o = options();
    o.program = "/no/such/gangline";
    expect_failure(&o, GANG_ERR_OS, "node 0 (alpha): /no/such/gangline: cannot start it: No such file");
    o = options();
    o.worker_argv = (const char *[]){"/no/such/worker", NULL};
    expect_failure(&o, GANG_ERR_PEER, "'/no/such/worker: cannot start it: No such file or directory'");
    o.worker_argv = (const char *[]){"sh", "-c", "echo no such model >&2; exit 5", NULL};
    expect_failure(&o, GANG_ERR_PEER, "exit status 5; its last line: 'no such model'");
    o.worker_argv = (const char *[]){"", "idler", NULL};
    o.start_ms = 500;
    expect_failure(&o, GANG_ERR_PEER, "worker 0 on node 0 (alpha) has not joined within 0.5 s");
    o = options();
    o.workers = (struct gang_control_worker[]){{0, 0, -1}, {0, 0, 1000}, {0, 0, -1}};
    expect_failure(&o, GANG_ERR_PEER, "worker 1 on node 0 (alpha) ended with exit status 127");
}

static void test_another_version_is_refused(void **state) {
    (void)state;
    struct gang_control_options o = options();
    char self[256] = {0}, script[1024];
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(script, sizeof script, "#!/bin/sh\nread first\nprintf 'gangline-agent 0.0.9\\n\\n' | '%s' agent\n", self);
    o.program = scratch_text("old", script);
    assert_int_equal(chmod(o.program, 0700), 0);
    expect_failure(&o, GANG_ERR_PEER, "and the coordinator is 0.0.9: install the same version");
    o.program = scratch_text("silent", "#!/bin/sh\nexec sleep 100\n");
    assert_int_equal(chmod(o.program, 0700), 0);
    o.start_ms = 500;
    expect_failure(&o, GANG_ERR_PEER, "node 0 (alpha): its agent has not come within 0.5 s");
}

static void test_clocks_that_disagree(void **state) {
    (void)state;
    struct gang_control_options o = options();
    setenv("GANG_TEST_CLOCK", "3600", 1);
    expect_failure(&o, GANG_ERR_PEER, "): its clock is 3600 s ahead of this host's: set both right, by NTP");
    setenv("GANG_TEST_CLOCK", "-90", 1);
    expect_failure(&o, GANG_ERR_PEER, "): its clock is 90 s behind this host's");
    unsetenv("GANG_TEST_CLOCK");
}

static void test_nobody_starts_by_hand(void **state) {
    (void)state;
    struct gang_worker *worker;
    assert_fails(GANG_ERR_INPUT, "no agent has started this process", gang_worker_join(&worker));
    assert_int_equal(setenv("GANGLINE_WORKER", "x", 1), 0);
    assert_fails(GANG_ERR_INPUT, "damaged", gang_worker_join(&worker));
    assert_int_equal(setenv("GANGLINE_WORKER", "0.0.9 127.0.0.1:1 1 1 3 1", 1), 0);
    assert_fails(GANG_ERR_UNSUPPORTED, "its agent is 0.0.9", gang_worker_join(&worker));
    assert_int_equal(setenv("GANGLINE_WORKER", GANG_VERSION " 127.0.0.1:1 1 1 3 1", 1), 0);
    assert_fails(GANG_ERR_PEER, "its agent is gone", gang_worker_join(&worker));
    unsetenv("GANGLINE_WORKER");
    int null = open("/dev/null", O_RDONLY);
    assert_fails(GANG_ERR_INPUT, "no coordinator speaks", gang_agent_run(null));
    close(null);
    const char *junk = scratch_text("junk", "GET / HTTP/1.1\n\n");
    null = open(junk, O_RDONLY);
    assert_fails(GANG_ERR_INPUT, "no greeting", gang_agent_run(null));
    close(null);
}

static void test_no_way_to_a_host(void **state) {
    (void)state;
    struct gang_control_options o = options();
    site.nodes = (const char *[]){"no-such-host.invalid", "no-such-host.invalid"};
    o.ssh_options = (const char *const[]){"-F", "none", NULL};
    expect_failure(&o, GANG_ERR_PEER, "does 'ssh -o BatchMode=yes no-such-host.invalid true' work without a password?");
    site.nodes = nodes;
    o.ssh_options = ssh_options;
    o.program = "/no/such/gangline";
    expect_failure(&o, GANG_ERR_PEER, "is gangline installed there, as /no/such/gangline?");
}

// ---- Slurm ---------------------------------------------------------------------------------------------------------

static void test_an_allocation_that_does_not_fit(void **state) {
    (void)state;
    struct gang_control_options o = options();
    site.nodes = NULL;
    site.node_count = 5;
    expect_failure(&o, GANG_ERR_INPUT, "the allocation has 2 nodes and the run needs 5: ask for --nodes=5");
    o = options();
    site.nodes = (const char *[]){nodes[0], "n9"};
    expect_failure(&o, GANG_ERR_INPUT, "node 'n9' is not in the allocation");
    o = options();
    o.program = "/no/such/gangline";
    expect_failure(&o, GANG_ERR_PEER, "is gangline installed there, as /no/such/gangline?");
}

// Outside an allocation, and for a cluster that is named: srun asks for one.
static void test_an_allocation_of_our_own(void **state) {
    (void)state;
    static const char *const further[] = {"--exclusive", NULL}, *const too_many[] = {"--partition=none", NULL};
    int before = descriptors();
    struct gang_control *control;
    struct gang_control_options o = options();
    site.slurm_conf = getenv("SLURM_CONF");
    site.nodes = NULL;
    site.slurm_options = too_many;
    expect_failure(&o, GANG_ERR_PEER, "node 0 (here) has no agent: srun ended with exit status 1: 'srun: error:");
    site.slurm_options = further;
    site.node_count = 1;
    o.workers = (struct gang_control_worker[]){{0, 0, -1}};
    o.worker_count = 1;
    assert_ok(gang_control_open(&o, &control));
    assert_string_equal(gang_control_node(control, 0), "n3"); // the surrounding one has the others
    int agent = tell(control, 0).parent;
    kill(agent, SIGTERM);
    expect(control, GANG_EVENT_NODE_ENDS, -1, "node 0 (n3) is about to end");
    assert_int_equal(tell(control, 0).parent, agent);
    // The node is taken now: who waits for it is told to end, and leaves nothing in the queue.
    pid_t pid = fork();
    if (pid == 0) {
        struct gang_control *second;
        _exit(gang_control_open(&o, &second) ? 3 : 4);
    }
    assert_int_equal(system("until squeue -h -t PD -o %j | grep -q gangline; do sleep 0.05; done"), 0);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(system("while squeue -h -t PD -o %i | grep -q .; do sleep 0.05; done"), 0);
    close_all(control, before);
    assert_int_equal(system("while squeue -h -o %j | grep -q gangline; do sleep 0.05; done"), 0);
}

static volatile sig_atomic_t told_to_end;
static void on_term(int signal_number) { told_to_end = signal_number; }

// What a job runs: a coordinator that ends when it is told to, and says in the file how far it is.
static int run_job(const char *path) {
    struct gang_control_options o = options();
    struct gang_control_event event;
    struct gang_control *control;
    sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_term}, NULL);
    site.nodes = NULL;
    site.node_count = 1;
    o.worker_count = 1;
    enum gang_status status = gang_control_open(&o, &control);
    if (!status) status = gang_file_publish(path, "up", 2);
    while (!status && !told_to_end) status = gang_control_next(control, 100, &event);
    gang_control_close(control);
    if (!status) status = gang_file_publish(path, "ended", 5);
    if (status) printf("%s\n", gang_error());
    return status;
}

static void await_text(const char *path, const char *text) {
    int64_t limit = gang_os->now_ns() + 20000000000;
    struct gang_buffer found = {0};
    for (bool same = false; !same; usleep(10000)) {
        if (gang_os->now_ns() > limit) fail_msg("%s never says '%s'", path, text);
        if (gang_path_exists(path) && !gang_file_read(path, 100, &found)) same = !strcmp(found.data, text);
        gang_buffer_release(&found);
    }
}

static void test_a_submitted_job_ends_when_told(void **state) {
    (void)state;
    static const char *const ways[] = {"scancel --batch --signal=TERM %d", "scancel %d"};
    char self[256] = {0}, command[300];
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    for (int i = 0; i < 2; i++) {
        const char *path = scratch_path(i ? "second" : "first");
        const char *const argv[] = {self, "job", path, NULL};
        struct gang_slurm_job job = {.name = "gang-test", .dir = scratch_dir, .nodes = 1, .limit_s = 90, .notice_s = 30, .argv = argv};
        int64_t id;
        assert_ok(gang_slurm_submit(&job, &id));
        await_text(path, "up");
        snprintf(command, sizeof command, ways[i], (int)id);
        assert_int_equal(system(command), 0);
        await_text(path, "ended");
        await_nobody();
    }
    struct gang_slurm_job job = {.name = "two words", .dir = scratch_dir, .nodes = 1, .argv = worker_argv};
    int64_t id;
    assert_fails(GANG_ERR_INPUT, "has a character", gang_slurm_submit(&job, &id));
    job.name = "too-large";
    job.nodes = 77;
    assert_fails(GANG_ERR_PEER, "sbatch: ", gang_slurm_submit(&job, &id));
}

// What GANG_TEST_LAUNCHER and its like ask for.
static void take_environment(void) {
    static char names[256];
    const char *asked = getenv("GANG_TEST_LAUNCHER");
    char *rest = names;
    if (!asked) return;
    for (int i = 0; gang_launcher_names[i]; i++)
        if (!strcmp(gang_launcher_names[i], asked)) launcher = (enum gang_launcher)i;
    snprintf(names, sizeof names, "%s", getenv("GANG_TEST_NODES"));
    for (int n = 0; n < NODES; n++) nodes[n] = strsep(&rest, " ");
    ssh_options[1] = getenv("GANG_TEST_SSH_CONFIG");
}

int main(int argc, char **argv) {
    take_environment();
    if (argc == 3 && !strcmp(argv[1], "job")) return run_job(argv[2]);
    hands_main(argc, argv);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    const struct CMUnitTest everywhere[] = {
        cmocka_unit_test(test_they_talk_and_leave),
        cmocka_unit_test(test_lines_come_whole_and_in_order),
        cmocka_unit_test(test_who_dies_is_named),
        cmocka_unit_test(test_who_resists_is_killed),
        cmocka_unit_test(test_a_flood_is_held_back),
        cmocka_unit_test(test_an_agent_that_dies_is_a_lost_node),
        cmocka_unit_test(test_nothing_outlives_the_coordinator),
        cmocka_unit_test(test_many_starts_leave_nothing),
    };
    const struct CMUnitTest locally[] = {
        cmocka_unit_test(test_lines_are_made_safe),
        cmocka_unit_test(test_what_a_worker_starts_goes_with_it),
        cmocka_unit_test(test_an_agent_that_hangs_is_a_lost_node),
        cmocka_unit_test(test_a_worker_is_pinned),
        cmocka_unit_test(test_a_worker_has_a_share),
        cmocka_unit_test(test_bad_options_are_named),
        cmocka_unit_test(test_what_cannot_start_is_named),
        cmocka_unit_test(test_another_version_is_refused),
        cmocka_unit_test(test_clocks_that_disagree),
        cmocka_unit_test(test_nobody_starts_by_hand),
    };
    const struct CMUnitTest by_ssh[] = {cmocka_unit_test(test_no_way_to_a_host)};
    const struct CMUnitTest by_slurm[] = {
        cmocka_unit_test(test_an_allocation_that_does_not_fit),
        cmocka_unit_test(test_an_allocation_of_our_own),
        cmocka_unit_test(test_a_submitted_job_ends_when_told),
    };
    int failed = cmocka_run_group_tests(everywhere, scratch_open, scratch_close);
    if (launcher == GANG_LAUNCH_LOCAL) failed += cmocka_run_group_tests(locally, scratch_open, scratch_close);
    if (launcher == GANG_LAUNCH_SSH) failed += cmocka_run_group_tests(by_ssh, scratch_open, scratch_close);
    if (launcher == GANG_LAUNCH_SLURM) failed += cmocka_run_group_tests(by_slurm, scratch_open, scratch_close);
    return failed;
}
