#!/usr/bin/env bash
# A run on several devices, with real processes over the real wire: what it gives, what it refuses, and how it ends.
. "$(dirname "$0")/runs.sh"

losses_agree() {
    python "
import json
a, b = ([json.loads(l) for l in open(f)] for f in ('$1/metrics.jsonl', '$2/metrics.jsonl'))
assert len(a) == len(b) > 0 and [x['step'] for x in a] == [x['step'] for x in b], (len(a), len(b))
for x, y in zip(a, b):
    for what in 'loss', 'gradient_norm', 'learning_rate':
        assert abs(x[what] / y[what] - 1) < 1e-4, (what, x, y)
"
}

weights_agree() {
    python "
import numpy, safetensors_io
for file, limit in ('model', 1e-4), ('optimizer', 1e-3):
    a, b = (safetensors_io.read(f'{run}/latest/{file}.safetensors') for run in ('$1', '$2'))
    assert a.keys() == b.keys()
    for name in a:
        x, y = (numpy.frombuffer(z[name][2], '<f4').astype('f8') for z in (a, b))
        off = numpy.linalg.norm(x - y) / (numpy.linalg.norm(x) + 1e-30)
        assert off < limit, (file, name, off)
"
}

same_bits() {
    for file in model.safetensors optimizer.safetensors config.json state.json; do
        cmp "$1/latest/$file" "$2/latest/$file" || die "$1 and $2 differ in $file"
    done
}

# refused NAME WORDS...: ends with status 1 before the first step, in one line that has the words, and leaves nothing.
refused() {
    local name=$1 words
    shift
    run 1 train "$name.yaml"
    [ "$(wc -l <err)" = 1 ] && grep -q '^gangline: .*: ' err || die "expected one line 'gangline: what: why'"
    for words in "$@"; do says err "$words"; done
    if grep -q 'step 1/' out; then die "a step was done"; fi
    nobody_is_left
}

# ---- What it gives ---------------------------------------------------------------------------------------------------

# The plain run on one device, of 6 steps.
alone() { [ -e alone/latest ] || { job alone "steps: 6" && run 0 train alone.yaml; }; }

test_same_as_alone() {
    alone
    job stages "steps: 6" "cluster: near.yaml" "layout: pp=2,mb=1"
    run 0 train stages.yaml --json --trace trace.json
    [ ! -s err ] || die "something on stderr"
    losses_agree alone stages && weights_agree alone stages
    "$gangline" train stages.yaml --json 2>/dev/null && die "an output directory was used twice"
    python '
import json
trace = json.load(open("trace.json"))
events = trace["traceEvents"] if isinstance(trace, dict) else trace
names = [e["args"]["name"] for e in events if e.get("ph") == "M" and e["name"] == "process_name"]
assert len(names) >= 2, names
assert len({e["pid"] for e in events if e.get("ph") == "X"}) >= 2
'
    job replicas "steps: 6" "cluster: near.yaml" "layout: dp=2,mb=2,zero=1"
    run 0 train replicas.yaml --explain
    says out "predicted" && says out "they differ most" && says out "saved"
    losses_agree alone replicas && weights_agree alone replicas
    job sizes "steps: 6" "cluster: near.yaml" "layout: dp=2,mb=3/1,zero=1"
    run 0 train sizes.yaml && says out "mb=3/1"
    losses_agree alone sizes && weights_agree alone sizes
    run 0 generate stages "dogs " --tokens 8 --temperature 0 && cp out first
    run 0 generate replicas "dogs " --tokens 8 --temperature 0 && cmp -s out first || die "two splits, two texts"
    nobody_is_left
}

# mebibytes RANK: what the run said that this rank needs.
mebibytes() { sed -n "s/^ *rank $1 .*, \([0-9.]*\) MiB$/\1/p" out; }

# What a rank makes again is its stage's: of the two ranks' memory the part of the one that keeps all is larger.
test_recompute_of_each_stage() {
    local way first second
    for way in full/none none/full; do
        rm -rf again
        job again "steps: 2" "cluster: near.yaml" "layout: 'pp=2,mb=32,layers=2/2,schedule=1f1b,recompute=$way'"
        sed -i 's/^sequence_length: .*/sequence_length: 64/; s/^global_batch_tokens: .*/global_batch_tokens: 4096/' again.yaml
        run 0 train again.yaml
        first="${first-} $(mebibytes 0)" second="${second-} $(mebibytes 1)"
    done
    python "
a, b = ([float(x) for x in text.split()] for text in ('$first', '$second'))
assert b[0] - a[0] > b[1] - a[1] + 2, (a, b)
"
}

test_json_lines() {
    job lines "steps: 3" "cluster: near.yaml" "layout: dp=2,mb=1"
    run 0 train lines.yaml --json && cp out lines.json
    python '
import json, math
*lines, report = [json.loads(l) for l in open("lines.json")]
assert report == json.load(open("lines/report.json")) and report["layout"].startswith("tp=1,pp=1,dp=2") and len(report["ranks"]) == 2, report
assert [l["step"] for l in lines] == [1, 2, 3], lines
for l in lines:
    assert set(l) == {"step", "loss", "gradient_norm", "seconds", "tokens_per_second", "fraction_of_prediction", "slowest_rank", "slowest_busy"}, l
    assert all(math.isfinite(v) and v >= 0 for v in l.values()), l
'
}

test_plan_is_found() {
    job found "steps: 2" "cluster: near.yaml"
    run 0 train found.yaml && says out "predicted from what was measured here"
}

# Interrupted and resumed equals uninterrupted: bit for bit as it was split, to rounding split otherwise or not at all.
test_interrupted_and_resumed() {
    job cut "steps: 99999999" "cluster: near.yaml" "layout: pp=2,mb=1"
    endless cut
    until_true steps_at_least 2
    kill -INT "$background"
    ended 0
    nobody_is_left
    local done_ name
    done_=$(readlink cut/latest) && done_=$((10#${done_#step-}))
    [ "$done_" = "$(wc -l <cut/metrics.jsonl)" ] || die "the save is not of the last step"
    steps_of cut $((done_ + 3))
    for name in otherwise single; do
        cp -r cut $name
        sed "s/^output: .*/output: $name/" cut.yaml >$name.yaml
    done
    sed -i 's/^layout: .*/layout: dp=2,mb=2,zero=1/' otherwise.yaml
    sed -i '/^layout/d; /^cluster/d' single.yaml
    sed 's/^output: .*/output: whole/' cut.yaml >whole.yaml
    run 0 train whole.yaml
    run 0 train cut.yaml --resume && same_bits cut whole
    run 0 train otherwise.yaml --resume && weights_agree otherwise whole && losses_agree otherwise whole
    run 0 train single.yaml --resume && weights_agree single whole && losses_agree single whole
    # And from one device to several.
    job grown "steps: $done_" && run 0 train grown.yaml
    steps_of grown $((done_ + 3)) && printf 'cluster: near.yaml\nlayout: pp=2,mb=2\n' >>grown.yaml
    run 0 train grown.yaml --resume && weights_agree grown whole && losses_agree grown whole
}

says_measure() { grep -q '  measure ' out; }

test_times_are_kept() {
    cluster other 1ms ", threads: 2" ", threads: 2"
    job kept "steps: 2" "cluster: other.yaml" "layout: dp=2,mb=1"
    run 0 train kept.yaml && says_measure && stat -c '%n %i' cache/gangline/times-*.json >before
    rm -r kept
    run 0 train kept.yaml && stat -c '%n %i' cache/gangline/times-*.json >after
    cmp -s before after || die "measured again"
    if grep -q '  measure ' out; then die "says that it measures"; fi
    # What steps took corrects them.
    steps_of kept 8 && rm -r kept
    run 0 train kept.yaml && stat -c '%n %i' cache/gangline/times-*.json >after
    if cmp -s before after; then die "nothing was learnt"; fi
}

# Paths that are relative to a job that is reached by a link.
test_paths() {
    mkdir -p there/deep
    job there/deep/linked "steps: 1" "cluster: ../../near.yaml" "layout: dp=2,mb=1"
    sed -i 's|model.json|../../model.json|; s|text.txt|../../text.txt|; s|^output: .*|output: run|' there/deep/linked.yaml
    (cd there && run 0 train deep/linked.yaml) || exit 1
    [ -e there/deep/run/latest/model.safetensors ] || die "no save beside the job"
    ln -s there/deep/linked.yaml link.yaml
    sed -i 's|\.\./\.\./||' there/deep/linked.yaml
    sed -i 's|^output: .*|output: via|; s|\.\./\.\./||' there/deep/linked.yaml
    run 0 train link.yaml
    [ -e via/latest/model.safetensors ] && [ -e via/metrics.jsonl ] || die "the save and the metrics are not in one place"
}

# ---- What it refuses -------------------------------------------------------------------------------------------------

test_devices_that_are_not_there() {
    cluster odd 1ms ", instructions: nonsense" ""
    job refusal "steps: 2" "cluster: odd.yaml" "layout: dp=2,mb=1"
    refused refusal "on first" "nonsense"
    cluster odd 1ms "" ", threads: 1000"
    refused refusal "on second" "1000"
    cluster odd 1ms "" "" && sed -i 's/device: cpu/device: H100-80GB/' odd.yaml
    refused refusal "first" "'H100-80GB' do not train" "rehearse"
    cluster odd 1ms "" ", compute: f16" && refused refusal "odd.yaml" "compute"
    [ "$(id -u)" = 0 ] || { cluster odd 1ms "" ", share: 0.5" && refused refusal "second" "root"; }
    if ! grep -qw avx512f /proc/cpuinfo; then cluster odd 1ms ", instructions: avx512" "" && refused refusal "on first" "avx512"; fi
}

test_layouts_that_do_not_run() {
    job refusal "steps: 2" "cluster: near.yaml" "layout: ''"
    while IFS='|' read -r layout words; do
        sed -i "s|^layout: .*|layout: '$layout'|" refusal.yaml
        refused refusal "$words"
    done <<'LAYOUTS'
dp=4,mb=1|4 devices
pp=3,mb=1|3 devices
pp=5,mb=1|layers
dp=2,mb=3|mb
tp=nine|tp
dp=2,zero=3,mb=1|zero
pp=2,recompute=none/alternate,mb=1|recompute=alternate does not run yet
pp=2,offload=none/optimizer,mb=1|offload=optimizer does not run yet
pp=2,offload=activations,mb=1|offload=activations does not run yet
pp=2,offload=both/none,mb=1|offload=both does not run yet
LAYOUTS
    cluster unlike 1ms ", compute: f32" ", compute: bf16"
    sed -i "s/^layout: .*/layout: 'dp=2,mb=1,zero=0'/; s/near/unlike/" refusal.yaml
    refused refusal "zero=0" "choose zero=1"
}

test_jobs_that_make_no_sense() {
    job refusal "steps: 2" "cluster: near.yaml" "layout: dp=2,mb=1"
    sed -i 's/^sequence_length: .*/sequence_length: 128/; s/^global_batch_tokens.*/global_batch_tokens: 1024/' refusal.yaml
    refused refusal "sequence_length 128" "max_position_embeddings 64"
    # The plan chooses the micro-batch.
    job free "steps: 1" "cluster: near.yaml" "layout: dp=2,mb=2"
    sed -i 's/^micro_batch: .*/micro_batch: 3/' free.yaml # of no consequence
    run 0 train free.yaml
    sed -i 's/^global_batch_tokens: .*/global_batch_tokens: 100/; s/^output: .*/output: refusal/' free.yaml
    refused free "global_batch_tokens 100 is not a multiple of sequence_length"
    job refusal "steps: 2" "cluster: absent.yaml" && refused refusal "absent.yaml: cannot open"
}

test_too_little_memory() {
    sed 's/"hidden_size": 16/"hidden_size": 32768/; s/: 24/: 131072/; s/"num_attention_heads": 4/"num_attention_heads": 64/' model.json >huge.json
    job refusal "steps: 2" "cluster: near.yaml" "layout: pp=2,mb=1" && sed -i 's/model.json/huge.json/' refusal.yaml
    refused refusal " on " "the model does not fit: needs" "iB"
}

# Between the coordinator's look and the ranks' the data go, or change: as if one site had none, or others.
test_what_one_site_lacks() {
    local length status
    job lacking "steps: 2" "cluster: near.yaml" "layout: dp=2,mb=1" && sed -i 's/text.txt/own.txt/' lacking.yaml
    for length in 32 64; do
        sed -i "s/^sequence_length: .*/sequence_length: $length/" lacking.yaml
        status=0
        # Where the ranks had looked already it came too late, and the run is sound: once more.
        for _ in 1 2 3 4 5; do
            cp text.txt own.txt && rm -rf lacking cache/gangline/times-*.json
            "$gangline" train lacking.yaml >out 2>err </dev/null &
            background=$!
            # The coordinator has looked and is held for a moment, so that no rank has looked yet.
            until_true says_measure && kill -STOP "$background"
            if [ $length = 32 ]; then rm own.txt; else seq -f '%g cats' 300 >own.txt; fi
            kill -CONT "$background"
            wait "$background" || status=$?
            background=
            [ $status = 0 ] || break
        done
        [ $status = 1 ] || die "the run ended with $status, expected 1"
        grep -Eq '^gangline: rank [01] on (first|second): .*own.txt: ' err || die "no word of host and file"
        [ "$(wc -l <err)" = 1 ] || die "expected one line"
        nobody_is_left
        [ ! -e lacking/latest ] || die "a save of nothing"
    done
    says err "give all hosts the same"
}

test_plan_file() {
    job planned "steps: 2" "cluster: near.yaml"
    run 0 plan planned.yaml --layout pp=2,mb=2 -o plan
    run 0 train plan && says out "pp=2" && says out "mb=2"
    run 0 rehearse plan --steps 1 --json
    # Its very program, also where somebody ordered it otherwise.
    job planned "steps: 1" "cluster: one.yaml" && sed -i 's/output: planned/output: ordered/' planned.yaml
    printf 'sites:\n- {name: a, groups: [{name: first, nodes: 1, devices: 1, device: cpu}]}\n' >one.yaml
    run 0 plan planned.yaml --layout mb=1 -o plan
    python '
text = open("plan").read()
turned = text.replace("backward c0 m0\nforward c0 m1\n", "forward c0 m1\nbackward c0 m0\n")
assert turned != text
open("plan", "w").write(turned)'
    run 1 simulate plan
    sed -i "s/^checksum.*/$(sed "s/.*'\\(checksum [0-9a-f]*\\)'.*/\\1/" err)/" plan
    run 0 train plan --trace trace.json
    python '
import json
real = [e["name"] for e in json.load(open("trace.json"))["traceEvents"] if e["ph"] == "X" and e["pid"] == 1 and e["tid"] == 0]
assert real[:3] == ["forward c0 m0", "forward c0 m1", "backward c0 m0"], real'
    job planned "steps: 2" "cluster: near.yaml"
    # Others than it was made for.
    cp near.yaml nearer.yaml && sed -i 's/near.yaml/nearer.yaml/; s/output: planned/output: elsewhere/' planned.yaml
    run 0 plan planned.yaml --layout pp=2,mb=2 -o plan
    printf 'sites:\n- {name: a, groups: [{name: first, nodes: 1, devices: 3, device: cpu}]}\n' >nearer.yaml
    refused_plan train plan && refused_plan rehearse plan
    tail -c +2 plan >half && run 1 train half
}
refused_plan() { run 1 "$@" && one_error && says err "the plan is for 'group 0: 1 nodes of 1 x cpu at a'"; }

# ---- How it ends -----------------------------------------------------------------------------------------------------

# killed ROLE WHEN...: the process of this role is killed when the condition holds: the run fails, its first error names who, nothing is left.
killed() {
    local role=$1 victim
    shift
    rm -rf killed
    endless killed
    until_true "$@"
    until_true exists "$role"
    victim=$(processes "$role" | shuf -n 1 --random-source=<(yes "$seed"))
    kill -KILL "$victim"
    if [ "$role" = " train " ]; then
        ended 137
    else
        ended 1
        grep '^gangline: ' err | head -n 1 | grep -Eq "$first_error" || die "the first error does not say who"
    fi
    nobody_is_left
    [ ! -e killed/latest ] || run 0 generate killed "dogs" --tokens 2 --temperature 0
}

test_killed() {
    local first_error moment seed=${GANG_TEST_SEED:-$RANDOM}
    echo "seed $seed"
    RANDOM=$seed
    job killed "steps: 99999999" "cluster: near.yaml" "layout: pp=2,mb=1" "save_every: 2"
    for moment in 0 $((RANDOM % 20 + 1)); do
        first_error='(rank|device) [01] on (first|second)|node [01] \((first|second)\)'
        killed " rank" steps_at_least "$moment"
        first_error='node [01]|node (first|second)'
        killed " agent" steps_at_least "$moment"
        killed " train " steps_at_least "$moment"
    done
}

test_signals() {
    job ends "steps: 99999999" "cluster: near.yaml" "layout: dp=2,mb=1"
    for signal in HUP TERM; do
        rm -rf ends
        endless ends
        until_true steps_at_least 1
        kill -$signal "$background"
        ended 0
        [ -e ends/latest/model.safetensors ] || die "no save after SIG$signal"
        nobody_is_left
    done
    rm -rf ends
    "$gangline" train ends.yaml --json 2>err | head -n 2 >steps
    [ -e ends/latest/model.safetensors ] || die "no save when the reader of stdout went away"
    # Before the first step.
    rm -rf ends
    endless ends
    until_true exists " rank"
    kill -INT "$background"
    ended 0
    nobody_is_left
}

# ---- Stand-ins -------------------------------------------------------------------------------------------------------

test_rehearse() {
    run 0 rehearse "$repo/examples/plan/laptops.yaml" --layout pp=2,zero=0 --steps 2 --slow 0.02 --json
    [ "$(grep -c '"step"' out)" = 2 ] || die "expected two steps"
    nobody_is_left
}

run_all "$0"
