// gangline rank: what an agent starts for each device of a run.
#include "cmd/cmd.h"
#include "fleet/fleet.h"

#include <stdlib.h>

static int run_rank(int argc, char **argv) {
    int code = gang_options(&gang_command_rank, argc, argv, NULL, 0, 0, 0, NULL);
    if (code >= 0) return code;
    bool told;
    enum gang_status status = gang_fleet_work(&told);
    if (told) _Exit(EXIT_FAILED); // its threads may be at work still: nothing is taken apart under them
    return gang_report(status);
}

const struct gang_command gang_command_rank = {
    .name = "rank",
    .arguments = "",
    .summary = "Do one device's part of a run",
    .run = run_rank,
    .help = "'gangline train' and 'gangline rehearse' start one rank per device; nobody else need.\n\n"
            "example: gangline rank --help\n",
};
