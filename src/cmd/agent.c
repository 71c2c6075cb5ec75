// gangline agent: what a coordinator starts on each node.
#include "cmd/cmd.h"
#include "control/control.h"

static int run_agent(int argc, char **argv) {
    int code = gang_options(&gang_command_agent, argc, argv, NULL, 0, 0, 0, NULL);
    return code >= 0 ? code : gang_report(gang_agent_run(0));
}

const struct gang_command gang_command_agent = {
    .name = "agent",
    .arguments = "",
    .summary = "Serve a coordinator on this node",
    .run = run_agent,
    .help = "'gangline train' starts one agent per node, here, by ssh or by Slurm; nobody else need. It hears of its\n"
            "coordinator on standard input and ends with it.\n\n"
            "example: gangline agent --help\n",
};
