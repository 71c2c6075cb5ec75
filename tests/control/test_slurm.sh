#!/bin/sh
# test_control inside an allocation of a real Slurm, which this script sets up as this user, with three nodes on this machine, and
# takes down again. Speaks cmocka's lines, as tests/run wants.
set -u
build=${BUILD:?}
dir=$(mktemp -d)
pids=
until_true() { # COMMAND...: waits until it succeeds, within limits
    n=0
    until "$@"; do
        n=$((n + 1))
        [ $n -lt 150 ] || return 1
        sleep 0.1
    done
}
no_jobs() { [ -z "$(squeue -h 2>/dev/null)" ]; }
all_gone() {
    for p in $pids; do ! kill -0 "$p" 2>/dev/null || return 1; done
}
take_down() {
    until_true no_jobs # a step that cannot report its end stays
    for p in $pids; do kill "$p" 2>/dev/null; done
    until_true all_gone || for p in $pids; do kill -KILL "$p" 2>/dev/null; done
    rm -rf "$dir"
}
trap take_down EXIT
trap 'exit 1' INT TERM
host=$(hostname -s) user=$(id -un)
mkdir "$dir/state" "$dir/n1" "$dir/n2" "$dir/n3"
export SLURM_CONF="$dir/slurm.conf"

# The daemons want to be told their ports: if another program takes one before they do, with others.
free_ports() {
    python3 -c 'import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*[x.getsockname()[1] for x in s])'
}
configure() { # PORTS
    cat >"$SLURM_CONF" <<CONFIG
ClusterName=gangtest
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/none
CredType=cred/none
SlurmctldPort=$1
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n/slurmd.pid
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n
TmpFS=$dir/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
EnforcePartLimits=ALL
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName=n1 NodeAddr=127.0.0.1 NodeHostname=$host Port=$2 CPUs=2
NodeName=n2 NodeAddr=127.0.0.1 NodeHostname=$host Port=$3 CPUs=2
NodeName=n3 NodeAddr=127.0.0.1 NodeHostname=$host Port=$4 CPUs=2
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONFIG
}
start() { # PROGRAM ARGUMENTS...
    "$@" >"$dir/log.$#.$3" 2>&1 &
    pids="$pids $!"
}
all_idle() { sinfo -h -o '%T %D' 2>/dev/null | grep -q '^idle 3'; }
# shellcheck disable=SC2046
configure $(free_ports)
start /usr/sbin/slurmctld -D -c
for node in n1 n2 n3; do start /usr/sbin/slurmd -D -N $node; done
until_true all_idle || {
    cat "$dir"/log.*
    exit 1
}
export GANG_TEST_LAUNCHER=slurm GANG_TEST_NODES="n2 n1"
salloc --quiet --nodes=2 --ntasks-per-node=1 "$build/test_control"
