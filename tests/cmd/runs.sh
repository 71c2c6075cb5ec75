#!/usr/bin/env bash
# What tests of runs on several devices share; sourced. There is a tiny model, text and a cluster of two sites, near.yaml.
. "$(dirname "$0")/shell.sh"

# Every process of a run carries this in its environment, so that what is left of it can be found.
mark=GANG_TEST_MARK=$$-$RANDOM
program=$gangline
gangline=$scratch/marked
printf '#!/bin/sh\nexec env %s %s "$@"\n' "$mark" "$program" >"$gangline" && chmod +x "$gangline"
trap 'end_all; rm -rf "$scratch"' EXIT

# processes WORD: the run's processes whose command line has the word ("": all).
processes() {
    local pid
    for pid in $(grep -lsa "$mark" /proc/[0-9]*/environ | cut -d/ -f3); do
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -q -- "$1" && echo "$pid"
    done
}
end_all() { for pid in $(processes ""); do kill -KILL "$pid" 2>/dev/null; done; }

nobody_is_left() {
    local tries=0
    while [ -n "$(processes "")" ]; do
        tries=$((tries + 1))
        [ $tries -lt 200 ] || { ps -o pid,ppid,stat,args -p "$(processes "" | paste -sd,)"; die "processes are left"; }
        sleep 0.05
    done
}

# cluster NAME RTT A B: NAME.yaml, a site with a group of such fields each.
cluster() {
    printf 'sites:\n- {name: a, groups: [{name: first, nodes: 1, devices: 1, device: cpu%s}]}\n' "$3" >"$1.yaml"
    printf -- '- {name: b, groups: [{name: second, nodes: 1, devices: 1, device: cpu%s}]}\n' "$4" >>"$1.yaml"
    printf 'links:\n- {between: [a, b], bandwidth: 1Gbps, rtt: %s}\n' "$2" >>"$1.yaml"
}

# job NAME LINE...: NAME.yaml over the tiny model, output in NAME; its rate is constant, so that steps can be added.
job() {
    local name=$1
    shift
    { printf 'model: model.json\ndata: text.txt\noutput: %s\nsequence_length: 16\nmicro_batch: 1\nglobal_batch_tokens: 128\n' "$name"
      printf 'threads: 1\ncompute: f32\nlearning_rate: 1e-3\nmin_learning_rate: 1\n'; printf '%s\n' "$@"; } >"$name.yaml"
}
steps_of() { sed -i "s/^steps: .*/steps: $2/" "$1.yaml"; }

# endless NAME: the job in the background.
endless() {
    : >steps
    "$gangline" train "$1.yaml" --json >steps 2>err </dev/null &
    background=$!
}
steps_at_least() { [ "$(wc -l <steps)" -ge "$1" ]; }
exists() { [ -n "$(processes "$1")" ]; }
ended() {
    local status=0
    wait "$background" 2>/dev/null || status=$?
    background=
    [ "$status" = "$1" ] || die "the run ended with $status, expected $1"
}

cat >model.json <<'MODEL'
{"model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODEL
seq -f '%g dogs of different strength, one pull. ' 300 >text.txt
cluster near 2ms "" ""
