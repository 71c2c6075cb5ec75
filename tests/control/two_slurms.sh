#!/bin/sh
# two_slurms.sh COMMAND...: the command beside two real Slurms of this user's own, each with two nodes on this machine, n1 and n2,
# s1 and s2. GANG_TEST_NORTH and GANG_TEST_SOUTH are their slurm.conf.
set -u
. "$(dirname "$0")/slurm.sh"
start_slurm north n1 n2
start_slurm south s1 s2
export GANG_TEST_NORTH="$dir/north.conf" GANG_TEST_SOUTH="$dir/south.conf"
unset SLURM_CONF
"$@"
