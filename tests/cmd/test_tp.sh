#!/bin/sh
# Tensor parallelism from the outside: a run whose ranks are two devices each has the losses of a run on one device, either goes on from
# the other's save, and what cannot be cut is refused. Speaks cmocka's lines, as tests/run wants.
set -u
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
export XDG_CACHE_HOME="$dir"
failed=0

check() { # NAME STATUS
    if [ "$2" = 0 ]; then echo "[       OK ] $1"; else echo "[  FAILED  ] $1"; failed=1; fi
}

cat >model.json <<'J'
{"model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
J
i=0
while [ $i -lt 400 ]; do echo "$i dogs of different strength, one pull."; i=$((i + 1)); done >text.txt
for nodes in 1 2; do
    echo "sites: [{name: here, groups: [{name: box, device: cpu, nodes: $nodes, devices: $((4 / nodes))}]}]"
done | { read -r one; read -r two; echo "$one" >node.yaml; echo "$two" >nodes.yaml; }

job() { # NAME STEPS LINES...
    name=$1 steps=$2
    shift 2
    printf '%s\n' "model: model.json" "data: text.txt" "output: $name" "threads: 1" "compute: f32" "sequence_length: 16" \
        "micro_batch: 2" "global_batch_tokens: 128" "min_learning_rate: 1" "learning_rate: 0.01" "steps: $steps" "$@" >"$name.yaml"
}
train() { "$GANGLINE" train "$@" >out 2>err || { cat out err; return 1; }; }
same_losses() { # RUN: as `plain`, to 1e-4
    paste plain/metrics.jsonl "$1/metrics.jsonl" | tr ',:' '  ' | awk '
        { n = 0; for (i = 1; i <= NF; i++) if ($i ~ /"loss"/) loss[n++] = $(i + 1)
          d = loss[0] / loss[1] - 1; if (n != 2 || d > 1e-4 || d < -1e-4) bad = 1 }
        END { exit bad || NR != 6 }' || { cat plain/metrics.jsonl "$1/metrics.jsonl"; return 1; }
}

job plain 6
train plain.yaml
bad=$?
job cut 6 "cluster: node.yaml" "layout: tp=2,pp=2,dp=1,mb=2"
train cut.yaml && same_losses cut || bad=1
job uncut_rows 6 "cluster: node.yaml" "layout: tp=2,dp=2,mb=2,sp=0"
train uncut_rows.yaml && same_losses uncut_rows || bad=1
check test_losses_of_one_device $bad

bad=0
job from_cut 3 "cluster: node.yaml" "layout: tp=2,dp=2,mb=2"
train from_cut.yaml || bad=1
job from_cut 6
train from_cut.yaml --resume && same_losses from_cut || bad=1
job to_cut 3
train to_cut.yaml || bad=1
job to_cut 6 "cluster: node.yaml" "layout: tp=2,dp=2,mb=2"
train to_cut.yaml --resume && same_losses to_cut || bad=1
check test_goes_on_either_way $bad

refused() { # WORDS CLUSTER LAYOUT
    job refused 6 "cluster: $2" "layout: $3"
    "$GANGLINE" train refused.yaml >out 2>err
    [ $? = 1 ] && grep -qF -e "$1" err || { cat out err; return 1; }
}
bad=0
refused "key/value heads" node.yaml tp=4,mb=2 || bad=1
sed -i 's/devices: 2/devices: 3/' nodes.yaml
refused "on two nodes" nodes.yaml tp=2,dp=2,mb=2 || bad=1
check test_refusals $bad

printf '%s\n' "model: model.json" "cluster: node.yaml" "compute: f32" "sequence_length: 16" "global_batch_tokens: 128" >task.yaml
"$GANGLINE" rehearse task.yaml --layout tp=2,pp=2,dp=1,mb=2 --steps 2 >out 2>err && grep -q ", 4 devices" out || { cat out err; false; }
check test_rehearsal $?
exit $failed
