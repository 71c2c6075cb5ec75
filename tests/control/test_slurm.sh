#!/bin/sh
# test_slurm.sh [COMMAND...]: test_control, or the command, inside an allocation of a real Slurm, which this script
# sets up as this user, with three nodes on this machine, and takes down again. Speaks cmocka's lines, as tests/run wants.
set -u
build=${BUILD:?}
. "$(dirname "$0")/slurm.sh"
start_slurm gangtest n1 n2 n3
export GANG_TEST_LAUNCHER=slurm GANG_TEST_NODES="n2 n1"
[ $# -gt 0 ] || set -- "$build/test_control"
salloc --quiet --nodes=2 --ntasks-per-node=1 "$@"
