#!/usr/bin/env bash
# Tensor parallelism from the outside: runs whose ranks are two devices each have the losses and weights of a run on one device, either
# goes on from the other's save, and what cannot be cut is refused.
. "$(dirname "$0")/shell.sh"

# job NAME STEPS LINE...: NAME.yaml over the tiny model, output in NAME; its rate is constant, so that steps can be added.
job() {
    local name=$1 steps=$2
    shift 2
    { printf 'model: model.json\ndata: text.txt\noutput: %s\nsequence_length: 16\nmicro_batch: 2\nglobal_batch_tokens: 128\n' "$name"
      printf 'threads: 1\ncompute: f32\nlearning_rate: 0.01\nmin_learning_rate: 1\nsteps: %s\n' "$steps"; printf '%s\n' "$@"; } >"$name.yaml"
}

agrees_with_plain() {
    python "
import json, numpy, safetensors_io
a, b = ([json.loads(l) for l in open(f)] for f in ('plain/metrics.jsonl', '$1/metrics.jsonl'))
assert len(a) == len(b) == 6, (len(a), len(b))
for x, y in zip(a, b):
    for what in 'step', 'loss', 'gradient_norm':
        assert abs(x[what] / y[what] - 1) < 1e-4, (what, x, y)
for file in 'model', 'optimizer':
    a, b = (safetensors_io.read(f'{run}/latest/{file}.safetensors') for run in ('plain', '$1'))
    assert a.keys() == b.keys()
    for name in a:
        x, y = (numpy.frombuffer(z[name][2], '<f4').astype('f8') for z in (a, b))
        assert numpy.linalg.norm(x - y) < 1e-3 * numpy.linalg.norm(x), (file, name)
"
}

test_same_as_alone() {
    job slices 6 "cluster: node.yaml" "layout: tp=2,dp=2,mb=2,sp=0" && run 0 train slices.yaml
    agrees_with_plain slices
    job rows 6 "cluster: node.yaml" "layout: tp=2,pp=2,mb=2" && run 0 train rows.yaml
    agrees_with_plain rows
    job widths 6 "cluster: node.yaml" "layout: tp=2/1,pp=2,mb=2" && run 0 train widths.yaml
    says out ", on 2 devices" && agrees_with_plain widths
}

test_goes_on_either_way() {
    job joined 3 "cluster: node.yaml" "layout: tp=2,dp=2,mb=2" && run 0 train joined.yaml
    job joined 6 && run 0 train joined.yaml --resume
    agrees_with_plain joined
    job cut 3 && run 0 train cut.yaml
    job cut 6 "cluster: node.yaml" "layout: tp=2,pp=2,mb=2" && run 0 train cut.yaml --resume
    agrees_with_plain cut
    job apart 3 "cluster: node.yaml" "layout: tp=1/2,pp=2,mb=1,sp=0" && run 0 train apart.yaml
    job apart 6 "cluster: node.yaml" "layout: tp=2/1,pp=2,mb=2" && run 0 train apart.yaml --resume
    agrees_with_plain apart
}

test_what_cannot_be_cut() {
    job refused 6 "cluster: node.yaml" "layout: tp=4,mb=2" && run 1 train refused.yaml && says err "layout: tp does not divide the model's key/value heads"
    job refused 6 "cluster: nodes.yaml" "layout: tp=2,dp=2,mb=2" && run 1 train refused.yaml && says err "layout: a rank's tp devices would lie on two nodes"
    rm -rf refused
    sed 's/"max_position/"tie_word_embeddings": true, &/' model.json >tied.json
    job refused 6 "cluster: node.yaml" "layout: tp=2/1,pp=2,mb=2" && sed -i s/model.json/tied.json/ refused.yaml
    run 1 train refused.yaml && says err "layout: a tied head on a stage that is wider or narrower than the first does not run yet"
    [ ! -e refused ] || die "its output was made all the same"
}

test_rehearse() {
    printf 'model: model.json\ncluster: node.yaml\ncompute: f32\nsequence_length: 16\nglobal_batch_tokens: 128\n' >task.yaml
    run 0 rehearse task.yaml --layout tp=2,pp=2,mb=2 --steps 2
    says out ", 4 devices" && says out "step 2/2"
    run 0 rehearse task.yaml --layout tp=1/2,pp=2,mb=2 --steps 2
    says out ", 3 devices" && says out "step 2/2"
}

cat >model.json <<'MODEL'
{"model_type": "llama", "vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
MODEL
seq -f '%g dogs of different strength, one pull. ' 300 >text.txt
echo 'sites: [{name: here, groups: [{name: box, device: cpu, nodes: 1, devices: 4}]}]' >node.yaml
echo 'sites: [{name: here, groups: [{name: box, device: cpu, nodes: 2, devices: 3}]}]' >nodes.yaml
job plain 6 && run 0 train plain.yaml

run_all "$0"
