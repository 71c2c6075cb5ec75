// gangline: the subcommands, their options, errors and interrupts.
#include "cmd/cmd.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct gang_command *const commands[] = {&gang_command_train,    &gang_command_rehearse, &gang_command_generate,
                                                      &gang_command_probe,    &gang_command_plan,     &gang_command_simulate,
                                                      &gang_command_validate, &gang_command_wan,      &gang_command_bench};
enum { COMMANDS = sizeof commands / sizeof *commands };
// What other commands start; people need not know.
static const struct gang_command *const hidden[] = {&gang_command_agent, &gang_command_rank};
enum { HIDDEN = sizeof hidden / sizeof *hidden };

volatile int gang_interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    gang_interrupted = 1;
}

void gang_catch_interrupts(void) {
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)(SA_RESETHAND | SA_RESTART)}, before;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    // The terminal is closed, or the reader of stdout is gone: also an end with a save, and not cut short by the next such
    // signal. Under nohup the run goes on.
    action.sa_flags = SA_RESTART;
    sigaction(SIGPIPE, &action, NULL);
    sigaction(SIGHUP, &action, &before);
    if (before.sa_handler == SIG_IGN) sigaction(SIGHUP, &before, NULL);
}

int gang_report(enum gang_status status) {
    if (!status) return EXIT_OK;
    fprintf(stderr, "gangline: %s\n", gang_error());
    return EXIT_FAILED;
}

static void log_line(enum gang_log_level level, const char *line) {
    fprintf(stderr, "gangline: %s%s\n", level == GANG_LOG_WARNING ? "warning: " : "", line);
}

static void print_help(const struct gang_command *command) {
    printf("usage: gangline %s %s\n\n%s.\n\n%s", command->name, command->arguments, command->summary, command->help);
}

int gang_usage(const struct gang_command *command, const char *what, const char *argument) {
    fprintf(stderr, "gangline: %s: %s '%s': see 'gangline %s --help'\n", command->name, what, argument, command->name);
    return EXIT_USAGE;
}

int gang_options(const struct gang_command *command, int argc, char **argv, const struct gang_option *options, int option_count, int least, int most,
                 const char **plain) {
    int plain_count = 0;
    bool ended = false;
    for (int i = 1; i < argc; i++) {
        if (ended || argv[i][0] != '-' || !argv[i][1]) {
            if (plain_count == most) return gang_usage(command, "one argument too many", argv[i]);
            plain[plain_count++] = argv[i];
            continue;
        }
        if (!strcmp(argv[i], "--")) {
            ended = true;
            continue;
        }
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            print_help(command);
            return EXIT_OK;
        }
        int o = 0;
        while (o < option_count && strcmp(argv[i], options[o].name) != 0) o++;
        if (o == option_count) return gang_usage(command, "unknown option", argv[i]);
        if (options[o].seen) *options[o].seen = true;
        if (!options[o].value) continue;
        if (i + 1 == argc) return gang_usage(command, "a value is missing after", argv[i]);
        *options[o].value = argv[++i];
    }
    if (plain_count < least) return gang_usage(command, "an argument is missing: expected", command->arguments);
    return -1;
}

static void print_commands(FILE *to) {
    fprintf(to,
            "Gangline makes unlike accelerators in far-apart places train one model as if they were one machine.\n\nusage: gangline COMMAND ...\n\n");
    for (int i = 0; i < COMMANDS; i++) fprintf(to, "  %-10s %-26s %s\n", commands[i]->name, commands[i]->arguments, commands[i]->summary);
    fprintf(to, "\n'gangline COMMAND --help' tells more, with an example.\n");
}

// OpenMP's threads wait for each other by spinning, by default for so long that two programs on one machine all but stop
// each other. A short spin is as fast on an idle machine and harmless on a shared one. The library reads its settings before
// main, so the program starts itself once more; whoever has set them is left alone.
static void start_with_short_spin(char **argv) {
    if (getenv("GOMP_SPINCOUNT") || getenv("OMP_WAIT_POLICY")) return;
    setenv("GOMP_SPINCOUNT", "10000", 1);
    execv("/proc/self/exe", argv); // where this fails, the default serves
}

int main(int argc, char **argv) {
    start_with_short_spin(argv);
    gang_log_to(log_line);
    if (argc < 2) {
        print_commands(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_commands(stdout);
        return EXIT_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("gangline %s\n", GANG_VERSION);
        return EXIT_OK;
    }
    for (int i = 0; i < COMMANDS; i++)
        if (!strcmp(argv[1], commands[i]->name)) return commands[i]->run(argc - 1, argv + 1);
    for (int i = 0; i < HIDDEN; i++)
        if (!strcmp(argv[1], hidden[i]->name)) return hidden[i]->run(argc - 1, argv + 1);
    fprintf(stderr, "gangline: unknown command '%s': see 'gangline --help'\n", argv[1]);
    return EXIT_USAGE;
}
