// cmd: the command line. The only place that prints to the terminal or exits. One file per subcommand.
#ifndef GANG_CMD_H
#define GANG_CMD_H

#include "base/base.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

struct gang_command {
    const char *name;
    const char *arguments;
    const char *summary;               // one line
    int (*run)(int argc, char **argv); // argv[0] is the subcommand; returns the exit status
    const char *help;                  // the rest of --help
};

extern const struct gang_command gang_command_train, gang_command_generate, gang_command_probe, gang_command_plan, gang_command_simulate,
    gang_command_validate, gang_command_bench, gang_command_wan, gang_command_agent, gang_command_rank, gang_command_rehearse;

// Options of a subcommand. `value` NULL: a flag, sets *seen. Otherwise the option takes a value.
struct gang_option {
    const char *name; // "--json"
    const char **value;
    bool *seen;
};
// Sorts argv into options and at least `least`, at most `most` plain arguments. Returns -1 to go on, or an exit status: EXIT_OK
// after --help, EXIT_USAGE after saying what is wrong.
int gang_options(const struct gang_command *command, int argc, char **argv, const struct gang_option *options, int option_count, int least, int most,
                 const char **plain);

// Says what is wrong with the command line; returns EXIT_USAGE.
int gang_usage(const struct gang_command *command, const char *what, const char *argument);

// Prints "gangline: TEXT" and the status that follows from the error.
int gang_report(enum gang_status status);

// Set by the first Ctrl-C, SIGTERM, SIGHUP or SIGPIPE; a second Ctrl-C or SIGTERM ends the process at once.
extern volatile int gang_interrupted;
void gang_catch_interrupts(void);

#endif
