# Real Slurms of this user's own, with nodes on this machine; sourced. $dir is where they live; they end with the script.
dir=$(mktemp -d)
pids=
export dir
until_true() { # COMMAND...: waits until it succeeds, within limits
    n=0
    until "$@"; do
        n=$((n + 1))
        [ $n -lt 300 ] || return 1
        sleep 0.1
    done
}
no_jobs() {
    for c in "$dir"/*.conf; do [ -z "$(SLURM_CONF=$c squeue -h 2>/dev/null)" ] || return 1; done
}
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

# The daemons want to be told their ports: if another program takes one before they do, with others.
free_ports() { # COUNT
    python3 -c "import socket
s = [socket.create_server(('127.0.0.1', 0)) for _ in range($1)]
print(*[x.getsockname()[1] for x in s])"
}
configure() { # NAME NODES PORT...
    name=$1 nodes=$2 here=$(hostname -s) user=$(id -un)
    cat <<CONFIG
ClusterName=$name
SlurmctldHost=$here(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/none
CredType=cred/none
SlurmctldPort=$3
SlurmctldPidFile=$dir/$name/slurmctld.pid
SlurmdPidFile=$dir/%n/slurmd.pid
StateSaveLocation=$dir/$name
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
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONFIG
    shift 3
    for node in $nodes; do
        echo "NodeName=$node NodeAddr=127.0.0.1 NodeHostname=$here Port=$1 CPUs=2"
        shift
    done
}
all_idle() { sinfo -h -o '%T %D' 2>/dev/null | grep -q "^idle $1"; }
start() { # LOG PROGRAM ARGUMENT...
    log=$dir/$1.log
    shift
    "$@" >"$log" 2>&1 &
    pids="$pids $!"
}
# start_slurm NAME NODE...: a cluster whose file is $dir/NAME.conf, which is SLURM_CONF from now on.
start_slurm() {
    cluster=$1
    shift
    export SLURM_CONF="$dir/$cluster.conf"
    mkdir "$dir/$cluster"
    for node in "$@"; do mkdir "$dir/$node"; done
    # shellcheck disable=SC2046
    configure "$cluster" "$*" $(free_ports $(($# + 1))) >"$SLURM_CONF"
    start "$cluster" /usr/sbin/slurmctld -D -c
    for node in "$@"; do start "$node" /usr/sbin/slurmd -D -N "$node"; done
    until_true all_idle $# || {
        cat "$dir"/*.log
        exit 1
    }
}
