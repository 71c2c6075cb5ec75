#!/usr/bin/env bash
# The same run started here, over ssh and by Slurm: the same bits. Through the set-ups of tests/control, which bring an sshd and a
# Slurm of their own.
. "$(dirname "$0")/shell.sh"
mark=${3:-GANG_TEST_MARK=$$-$RANDOM}
export BUILD=${BUILD:-$repo/build}
BUILD=$(realpath "$BUILD" 2>/dev/null || realpath "$repo/$BUILD")

# cluster GROUP_A GROUP_B [SITE_A SITE_B]: cluster.yaml, a site with a device each, with such further fields.
cluster() {
    printf 'sites:\n- {name: a%s, groups: [{name: first, nodes: 1, devices: 1, device: cpu%s}]}\n' "${3-}" "$1"
    printf -- '- {name: b%s, groups: [{name: second, nodes: 1, devices: 1, device: cpu%s}]}\n' "${4-}" "$2"
    printf 'links:\n- {between: [a, b], bandwidth: 1Gbps, rtt: 1ms}\n'
} >cluster.yaml

job() {
    local name=$1
    shift
    { printf 'model: model.json\ndata: text.txt\noutput: %s\nsequence_length: 16\nglobal_batch_tokens: 128\ncompute: f32\n' "$name"
      printf 'learning_rate: 1e-3\nmin_learning_rate: 1\ncluster: cluster.yaml\nlayout: pp=2,mb=1\ncoordinator: 127.0.0.1\n'; printf '%s\n' "$@"; } >"$name.yaml"
}

processes() {
    local pid
    for pid in $(grep -lsa "$mark" /proc/[0-9]*/environ | cut -d/ -f3); do
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q -- "$1" && echo "$pid"
    done
}
nobody_is_left() {
    local tries=0
    while [ -n "$(processes " rank\| agent")" ]; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] || die "processes are left: $(processes " rank\| agent" | tr '\n' ' ')"
        sleep 0.05
    done
}

here() { [ -e here/latest ] || { cluster "" "" && job here "steps: 4" && run 0 train here.yaml; }; }
same_as_here() {
    for file in model.safetensors optimizer.safetensors; do cmp "here/latest/$file" "$1/latest/$file" || die "$1 is not what runs here"; done
}

# inside LAUNCHER: what is tested where the launcher works.
inside() {
    export "${mark?}"
    job "$1" "steps: 4" "launcher: $1"
    run 0 train "$1.yaml" && same_as_here "$1"
    if grep -qv ' srun: ' err; then die "something on stderr"; fi
    nobody_is_left
    # A rank dies.
    job endless "steps: 99999999" "launcher: $1" && rm -rf endless
    "$gangline" train endless.yaml --json >out 2>err </dev/null &
    background=$!
    until_true grep -q '"step": 2' out
    kill -KILL "$(processes " rank" | tail -n 1)" || die "no rank is found"
    wait "$background" && die "the run goes on without a rank"
    background=
    grep '^gangline: ' err | head -n 1 | grep -Eq 'rank [01] on ' || die "the first error does not say who"
    nobody_is_left
}

through_ssh() {
    mkdir -p bin && printf '#!/bin/sh\nexec /usr/bin/ssh -F "%s" "$@"\n' "$scratch/ssh.conf" >bin/ssh && chmod +x bin/ssh
    printf 'Host nowhere\nProxyCommand false\nHost *\nInclude %s\n' "$GANG_TEST_SSH_CONFIG" >ssh.conf
    PATH=$scratch/bin:$PATH
}

# other THERE HERE FIRST SECOND WORDS...: where a run's hosts are FIRST and SECOND, and on the one named `odd` the file or directory HERE
# is another, it ends before the first step with words that name the host.
other() {
    local there=$1 here=$2 words
    cluster ", hosts: [$3]" ", hosts: [$4]"
    shift 4
    { printf "Host odd\nProxyCommand unshare --mount sh -c 'mount --bind \"%s\" \"%s\" && exec %s'\n" "$there" "$here" \
        "$(sed -n 's/^ProxyCommand //p' "$GANG_TEST_SSH_CONFIG")"; cat usual.conf; } >ssh.conf
    rm -rf endless
    run 1 train endless.yaml
    grep '^gangline: ' err | head -n 1 | grep -q '[( ]odd[): ]' || die "no word of the host"
    for words in "$@"; do says err "$words"; done
    nobody_is_left
    [ ! -e endless/latest ] || die "a save of nothing"
}

an_odd_host_is_refused() {
    local real
    real=$(sed -n 's/^exec env .* \(\/.*\) "$@"$/\1/p' "$gangline" 2>/dev/null)
    real=$(realpath "${real:-$gangline}")
    cp ssh.conf usual.conf
    seq -f '%g cats' 300 >cats.txt && sed 's/: 24/: 32/' model.json >wide.json && mkdir -p empty
    printf 'MemAvailable: 30000 kB\n' >meminfo
    cp "$real" old && printf '#!/bin/sh\nread first\nprintf "gangline-agent 0.0.9\\n\\n" | "%s" agent\n' "$PWD/old" >older && chmod +x older
    other "$PWD/cats.txt" "$PWD/text.txt" one odd "text.txt: on this host the data are others" "give all hosts the same"
    other "$PWD/wide.json" "$PWD/model.json" odd two "model.json: on this host it is another file" "give all hosts the same"
    other "$PWD/empty" "$PWD/endless" odd two "where rank 0 would write the saves" "share it"
    other "$PWD/older" "$real" one odd "the coordinator is 0.0.9: install the same version on all nodes"
    sed -i 's/"hidden_size": 16/"hidden_size": 512/; s/: 24/: 2048/' model.json
    other "$PWD/meminfo" /proc/meminfo one odd "the model does not fit: needs" "29.3 MiB available: choose"
}

inside_ssh() {
    through_ssh
    cluster ", hosts: [one]" ", hosts: [two]"
    inside ssh
    cluster ", hosts: [one]" ", hosts: [nowhere]"
    rm -rf endless
    run 1 train endless.yaml && grep '^gangline: ' err | grep -q 'nowhere.*is the host up' || die "no word of the host and what to do"
    nobody_is_left
    [ "$(id -u)" != 0 ] || an_odd_host_is_refused
}

inside_slurm() {
    cluster "" ""
    inside slurm
    cluster ", hosts: [n1]" ", hosts: [n7]"
    rm -rf endless
    run 1 train endless.yaml && says err "n7" && says err "is not in the allocation"
    cluster "" "" && sed -i 's/name: second, nodes: 1/name: second, nodes: 2/' cluster.yaml
    run 1 train endless.yaml && says err "the allocation has 2 nodes and the run needs 3"
}

# ---- Two Slurms, and a Slurm beside others ---------------------------------------------------------------------------

jobs_of() { SLURM_CONF=$1 squeue -h -o '%i %T' "${@:2}"; }
no_jobs() { [ -z "$(jobs_of "$GANG_TEST_NORTH")$(jobs_of "$GANG_TEST_SOUTH")" ]; }
freed() {
    local tries=0
    until no_jobs; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] || die "jobs are left: $(jobs_of "$GANG_TEST_NORTH") $(jobs_of "$GANG_TEST_SOUTH")"
        sleep 0.05
    done
    nobody_is_left
}
in_background() { # NAME
    rm -rf "$1"
    "$gangline" train "$1.yaml" --json >out 2>err </dev/null &
    background=$!
}
ended() { # STATUS
    local status=0
    wait "$background" || status=$?
    background=
    [ "$status" = "$1" ] || die "the run ended with $status, expected $1"
}
is_queued() { SLURM_CONF=$GANG_TEST_SOUTH squeue -h -o "%j %T" | grep -q "gangline.* PENDING"; }

same_bits_everywhere() {
    local north=", launcher: slurm, slurm_conf: $GANG_TEST_NORTH" south=", launcher: slurm, slurm_conf: $GANG_TEST_SOUTH"
    local kind
    for kind in two mixed other login; do
        case $kind in
        two) cluster "" ", hosts: [s2]" "$north" "$south" ;;
        mixed) cluster "" "" "" "$south" ;;
        other) cluster ", hosts: [one]" "" ", launcher: ssh" "$south, slurm_options: [--exclusive]" ;;
        login) cluster "" "" "$north" "$south, login: one" ;;
        esac
        job "$kind" "steps: 4" && run 0 train "$kind.yaml" && same_as_here "$kind"
        if grep -qv 'srun: ' err; then die "something on stderr"; fi
        freed
    done
}

# part_of CONF WORD: the agent or the srun of that Slurm; not the process in which srun watches over itself.
part_of() {
    local pid
    for pid in $(processes "$2"); do
        grep -qsza "^SLURM_CONF=$1" "/proc/$pid/environ" || continue
        grep -qs srun "/proc/$(ps -o ppid= -p "$pid" | tr -d ' ')/comm" || echo "$pid"
    done
}

# However one of the two jobs ends, the run does and the other job is freed. A cancelled one leaves time for a save.
either_ends_all() {
    local conf part
    for conf in "$GANG_TEST_NORTH" "$GANG_TEST_SOUTH"; do
        in_background endless
        until_true grep -q '"step": 2' out
        SLURM_CONF=$conf scancel --user="$(id -un)"
        ended 0 && says err 'is about to end' && [ -e endless/latest/model.safetensors ] || die "no save"
        freed
        for part in '^[^ ]*gangline agent' '^srun '; do
            in_background endless
            until_true grep -q '"step": 2' out
            kill -KILL "$(part_of "$conf" "$part")" || die "no part to kill"
            ended 1 && grep '^gangline: ' err | head -n 1 | grep -Eq 'on [ns][12]|\([ns][12]\)' || die "the first error does not say where"
            freed
        done
    done
}

# Who waits in a queue and is told to end, or killed, waits there no more.
a_queue_is_left() {
    local way job
    for way in INT KILL srun; do
        job=$(SLURM_CONF=$GANG_TEST_SOUTH sbatch --parsable --exclusive --nodes=2 -o /dev/null --wrap 'sleep 600')
        in_background endless
        until_true is_queued
        [ $way = KILL ] || until_true grep -q 'b: srun: job .* queued' err
        if [ $way = srun ]; then
            kill -KILL "$(part_of "$GANG_TEST_SOUTH" '^srun ')"
        else
            kill -"$way" "$background"
        fi
        wait "$background" 2>/dev/null
        background=
        SLURM_CONF=$GANG_TEST_SOUTH scancel "$job"
        freed
    done
}

# A batch job that Slurm puts back into its queue goes on from its save; so does one whose coordinator is killed.
a_requeued_job_goes_on() {
    local job tries=0 before
    export SLURM_CONF=$GANG_TEST_NORTH
    cluster "" ", hosts: [n1]"
    job batch "steps: 99999999" "launcher: slurm"
    run 0 train batch.yaml --submit --json
    job=$(tr -dc 0-9 <out)
    background=$$
    until_true grep -qs '"step": 3' batch/metrics.jsonl
    scontrol requeue "$job"
    until_true [ -e batch/latest/model.safetensors ]
    before=$(wc -l <batch/metrics.jsonl)
    until_true has_begun_again
    until_true grows
    scancel "$job"
    background=
    freed
    python '
import json
steps = [json.loads(l)["step"] for l in open("batch/metrics.jsonl")]
assert steps == list(range(1, len(steps) + 1)), steps
'
    unset SLURM_CONF
}
has_begun_again() { scontrol update jobid="$job" starttime=now 2>/dev/null; [ "$(squeue -h -o %T -j "$job")" = RUNNING ] && [ "$(scontrol show job "$job" | grep -c 'Restarts=1')" = 1 ]; }
grows() { [ "$(wc -l <batch/metrics.jsonl)" -gt "$before" ]; }

inside_far() {
    local south=", launcher: slurm, slurm_conf: $GANG_TEST_SOUTH"
    export "${mark?}"
    through_ssh
    same_bits_everywhere
    cluster "" "" ", launcher: slurm, slurm_conf: $GANG_TEST_NORTH" "$south"
    job endless "steps: 99999999"
    either_ends_all
    a_queue_is_left
    a_requeued_job_goes_on
    cluster "" "" ", launcher: slurm, slurm_conf: $GANG_TEST_NORTH" "$south"
    sed -i 's/name: second, nodes: 1/name: second, nodes: 3/' cluster.yaml
    run 1 train endless.yaml && says err "(b) has no agent: srun ended"
    freed
    cluster "" "" "" "$south, login: nowhere"
    run 1 train endless.yaml && says err "(b) has no agent" && says err "nowhere true' work without a password"
    freed
    cluster "" "" ", login: one" ""
    run 1 train endless.yaml && says err "are for a site with launcher: slurm"
}

if [ $# = 3 ]; then # inside: LAUNCHER DIRECTORY MARK
    rm -rf "$scratch" && scratch=$2 && cd "$scratch" || exit 1
    trap '[ -z "$background" ] || kill -KILL "$background" 2>/dev/null' EXIT
    "inside_$1"
    exit 0
fi

test_ssh() {
    here
    GANG_TEST_ENVIRONMENT="$mark XDG_CACHE_HOME=$XDG_CACHE_HOME" "$repo/tests/control/test_ssh.sh" "$repo/tests/cmd/test_launchers.sh" ssh "$scratch" "$mark" || exit 1
}

test_slurm() {
    here
    "$repo/tests/control/test_slurm.sh" "$repo/tests/cmd/test_launchers.sh" slurm "$scratch" "$mark" || exit 1
}

test_far() {
    here
    GANG_TEST_ENVIRONMENT="$mark XDG_CACHE_HOME=$XDG_CACHE_HOME" "$repo/tests/control/test_ssh.sh" "$repo/tests/control/two_slurms.sh" \
        "$repo/tests/cmd/test_launchers.sh" far "$scratch" "$mark" || exit 1
}

test_examples() {
    for kind in local ssh slurm clusters; do
        run 0 plan "$repo/examples/run/$kind/job.yaml" --layout dp=1
        run 0 train --fields && sed 's/:.*//' "$repo/examples/run/$kind/job.yaml" | grep -v '^#' | while read -r field; do
            [ -z "$field" ] || says out "| \`$field\` |"
        done || exit 1
    done
}

cat >model.json <<'MODEL'
{"model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODEL
seq -f '%g dogs of different strength, one pull. ' 300 >text.txt

run_all "$0"
