#!/usr/bin/env bash
# The program as a person or a script meets it: $GANGLINE (build/gangline), run in a directory of its own.
# Prints a line per test as cmocka does; a test fails at its first check that does not hold.
. "$(dirname "$0")/shell.sh"

# job NAME LINE...: NAME.yaml over the tiny model, output in NAME.
job() {
    local name=$1
    shift
    { printf 'model: model.json\ndata: text.txt\noutput: %s\nsequence_length: 16\nmicro_batch: 2\nthreads: 1\n' "$name"; printf '%s\n' "$@"; } >"$name.yaml"
}

# ---- Tests -----------------------------------------------------------------------------------------------------------

test_help() {
    run 0 --help && says out "usage: gangline COMMAND" && says out probe
    run 0 --version && says out "gangline 0."
    for command in train generate probe; do
        run 0 $command --help
        says out "usage: gangline $command" && says out "example: gangline $command"
        [ ! -s err ] || die "$command --help writes to stderr"
    done
}

test_usage_errors() {
    run 2 && says err "usage: gangline COMMAND"
    run 2 trian && one_error && says err "unknown command 'trian'"
    run 2 train && one_error && says err "an argument is missing"
    run 2 train --jsn a.yaml && one_error && says err "train: unknown option '--jsn': see 'gangline train --help'"
    run 2 train a.yaml b.yaml && one_error && says err "one argument too many 'b.yaml'"
    run 2 generate dir && one_error
    run 2 generate dir text --seed && one_error && says err "a value is missing after '--seed'"
    run 2 generate dir text --seed one && one_error && says err "--seed: 'one' is not a whole number"
    run 2 generate dir text --tokens 0 && one_error && says err "expected 1 to"
    run 2 generate dir text --temperature nan && one_error
    run 2 generate dir text --top-p 1.5 && one_error && says err "out of range: expected 0 to 1"
    run 2 generate dir text --compute f16 && one_error && says err "expected auto, f32 or bf16"
    run 2 probe --threads 1025 && one_error
    run 2 probe extra && one_error
}

test_documented_fields() {
    run 0 train --fields
    [ "$(grep '^|' "$repo/docs/job.md")" = "$(cat out)" ] || die "docs/job.md is not what train --fields prints"
}

test_missing_files() {
    run 1 train absent.yaml && one_error && says err "gangline: absent.yaml: cannot open: No such file or directory"
    run 1 train . && one_error && says err "not a regular file"
    run 1 generate absent "text" && one_error && says err "absent: neither a model directory (no config.json) nor a run with a save (no latest): give"
    job lost "steps: 1" && sed -i 's/text.txt/gone.txt/' lost.yaml
    run 1 train lost.yaml && one_error && says err "gone.txt: cannot look at it: No such file"
    job lost "steps: 1" && sed -i 's/model.json/gone.json/' lost.yaml
    run 1 train lost.yaml && one_error && says err "gone.json: cannot open"
    job lost "steps: 1" "kepp: 3"
    run 1 train lost.yaml && one_error && says err "lost.yaml:8: kepp: unknown field: did you mean 'keep'?"
}

test_bad_output() {
    : >file
    job blocked "steps: 1" && sed -i 's|output: .*|output: file/run|' blocked.yaml
    run 1 train blocked.yaml && one_error && says err "gangline: file: cannot make the directory"
    job blocked "steps: 1" "cache: kept" && sed -i 's|output: .*|output: /proc/run|' blocked.yaml
    run 1 train blocked.yaml && one_error && says err "/proc/run: cannot make the directory"
}

test_plain_lines() {
    job plain "steps: 3"
    rm -rf plain && run 0 train plain.yaml
    says out "parameters: 2 layers of 16" && says out "step 3/3" && says out "saved plain/step-00000003" && says out "memory  peak"
    [ ! -s err ] || die "a good run writes to stderr"
    if grep -q "$(printf '\033')" out; then die "escapes where there is no terminal"; fi
}

test_json_lines() {
    job json "steps: 5" "save_every: 2" "learning_rate: 1e-2"
    run 0 train json.yaml --json
    cp out steps && [ ! -s err ] || die "--json writes to stderr"
    python '
import json, math
for name, fields in ("steps", {"seconds_left"}), ("json/metrics.jsonl", set()):
    lines = [json.loads(line, parse_constant=lambda x: 1 / 0) for line in open(name)]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5], lines
    for line in lines:
        assert set(line) == fields | {"step", "loss", "gradient_norm", "learning_rate", "seconds", "tokens", "tokens_per_second", "peak_fraction"}, line
        assert all(math.isfinite(x) and x >= 0 for x in line.values()), line
        assert line["tokens"] == 32 * line["step"]
'
}

test_other_model_resumed() {
    job other "steps: 2"
    rm -rf other && run 0 train other.yaml
    sed 's/"vocab_size"/"rms_norm_eps": 0.001, "vocab_size"/' model.json >theirs.json
    sed -i 's/model.json/theirs.json/; s/steps: 2/steps: 3/' other.yaml
    run 1 train other.yaml --resume && one_error
    says err 'other/latest: the model'"'"'s config.json said "rms_norm_eps": ' && says err 'and says "rms_norm_eps": 0.001, now: restore it'
}

# A run in the background that goes on for as long as it is let; its steps go to the file steps.
endless() {
    job "$1" "steps: 99999999" "save_every: $2"
    : >steps # those of a run before must not be taken for this one's
    "$gangline" train "$1.yaml" --json >steps 2>errors </dev/null &
    background=$!
}

steps_at_least() { [ "$(wc -l <steps)" -ge "$1" ]; }

# ended STATUS: the run in the background has ended with this status.
ended() {
    local status=0
    wait "$background" 2>/dev/null || status=$?
    background=
    [ "$status" = "$1" ] || { cat errors; die "the run ended with $status, expected $1"; }
}

# The next step of a resumed run is the one behind the save that `latest` names.
resumes() {
    local saved
    saved=$(readlink "$1/latest")
    saved=$((10#${saved#step-}))
    sed -i "s/^steps: .*/steps: $((saved + 2))/" "$1.yaml"
    run 0 train "$1.yaml" --resume --json
    python "
import json
steps = [json.loads(line)['step'] for line in open('$1/metrics.jsonl')]
assert steps == list(range(1, $saved + 3)), steps[-5:]
"
}

test_interrupt_saves() {
    endless interrupted 0
    until_true steps_at_least 3
    kill -INT "$background"
    ended 0
    [ "$(readlink interrupted/latest)" = "$(printf 'step-%08d' "$(wc -l <steps)")" ] || die "latest is not the last step"
    resumes interrupted
}

test_terminal_and_pipe_gone() {
    for signal in HUP PIPE TERM; do
        rm -rf gone
        endless gone 0
        until_true steps_at_least 2
        kill -$signal "$background"
        ended 0
        [ -e gone/latest/model.safetensors ] || die "no save after SIG$signal"
    done
    # A reader that has seen enough.
    rm -rf gone
    "$gangline" train gone.yaml --json 2>errors | head -n 2 >steps
    [ -e gone/latest/model.safetensors ] || die "no save when the reader of stdout went away"
}

test_kill_loses_no_save() {
    endless killed 1
    until_true test -e killed/latest/state.json
    local seen
    seen=$(wc -l <steps)
    until_true steps_at_least $((seen + 3)) # so that it is amid steps and saves
    kill -KILL "$background"
    ended 137
    run 0 generate killed "dogs" --tokens 4 --temperature 0
    resumes killed
}

test_one_run_per_directory() {
    endless shared 1
    until_true test -e shared/latest/state.json
    run 1 train shared.yaml --resume && one_error && says err "shared: another process trains here"
    kill -INT "$background"
    ended 0
}

# A finished run of three steps, in plain.
finished() { [ -e plain/latest ] || { job plain "steps: 3" && run 0 train plain.yaml; }; }

test_generate() {
    finished
    run 0 generate plain "dogs " --tokens 8 --temperature 0 && cp out first
    run 0 generate plain "dogs " --tokens 8 --temperature 0 --seed 9 && cmp -s out first || die "greedy text differs"
    head -c 5 out | grep -q '^dogs ' || die "the prompt does not come first"
    run 0 generate plain "dogs " --tokens 32 --temperature 2 --seed 1 --quiet && cp out first
    run 0 generate plain "dogs " --tokens 32 --temperature 2 --seed 1 --quiet && cmp -s out first || die "the same seed, another text"
    [ "$(wc -c <first)" = 33 ] || die "expected 32 bytes and a line end"
    run 0 generate plain "dogs " --tokens 32 --temperature 2 --seed 2 --quiet
    if cmp -s out first; then die "another seed, the same text"; fi
    run 0 generate plain/step-00000003 "$(printf '\377\300\200')" --tokens 2 # no UTF-8 at all
    run 1 generate plain "" && one_error && says err "the prompt is empty"
    run 1 generate plain "dogs" --tokens 61 && one_error && says err "4 tokens of prompt and 61 to generate are more than the model's 64 positions"
}

# The weights as numpy sees them, against a run that changed nothing since they were read: learning rate 0.
test_independent_reader() {
    finished
    printf 'model: plain/latest\ndata: text.txt\noutput: copy\nsequence_length: 16\nthreads: 1\nsteps: 1\nlearning_rate: 0\n' >copy.yaml
    run 0 train copy.yaml && says out "weights from the model's directory"
    python '
import json, numpy, safetensors_io
config = json.load(open("plain/latest/config.json"))
assert config["architectures"] == ["LlamaForCausalLM"] and config["hidden_size"] == 16, config
model, copy = (safetensors_io.read(run + "/latest/model.safetensors") for run in ("plain", "copy"))
assert model == copy
names = {"model.embed_tokens.weight": [256, 16], "model.norm.weight": [16], "lm_head.weight": [256, 16]}
for i in 0, 1:
    for name, shape in ("self_attn.q_proj", [16, 16]), ("self_attn.k_proj", [8, 16]), ("self_attn.v_proj", [8, 16]), ("self_attn.o_proj", [16, 16]), \
            ("mlp.gate_proj", [24, 16]), ("mlp.up_proj", [24, 16]), ("mlp.down_proj", [16, 24]), ("input_layernorm", [16]), ("post_attention_layernorm", [16]):
        names[f"model.layers.{i}.{name}.weight"] = shape
assert {name: shape for name, (_, shape, _) in model.items()} == names
for name, (dtype, shape, data) in model.items():
    values = numpy.frombuffer(data, "<f4").reshape(shape)
    assert dtype == "F32" and numpy.isfinite(values).all() and abs(values).max() < 2 and values.std() < 0.1, name
'
}

test_model_that_does_not_fit() {
    mkdir -p vast
    sed 's/"hidden_size": 16/"hidden_size": 65536/; s/"num_hidden_layers": 2/"num_hidden_layers": 200/; s/: 24/: 262144/; s/"num_attention_heads": 4/"num_attention_heads": 64/' model.json >vast/config.json
    run 1 generate vast "dogs" --tokens 2 && one_error && says err "the model does not fit: needs" && says err "TiB"
}

test_probe() {
    run 0 probe --json -o profile.json
    cmp -s out profile.json || die "what is printed is not what is written"
    python '
import json, os
p = json.load(open("profile.json"))
assert p["version"] == 1 and p["provenance"] == "measured" and p["device"] and p["instructions"], p
assert 1 <= p["threads"] == len(os.sched_getaffinity(0)) and p["cores"] >= 1, p
assert p["memory_bytes"] == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), p
assert 1e8 < p["peak_f32"] < 1e14 and 1e8 < p["sustained_f32"] < 1e14 and 1e8 < p["sustained_bf16"] < 1e14, p
assert 1e8 < p["read_bytes_per_s"] < 1e13 and 1e8 < p["triad_bytes_per_s"] < 1e13, p
assert 0 <= p["l1_bytes"] <= 1 << 24 and 0 < p["seconds"] < 600, p
'
    run 1 probe -o absent/profile.json && says err "absent/profile.json.tmp: cannot create"
}

# ---- All of them -----------------------------------------------------------------------------------------------------

cat >model.json <<'END'
{"model_type": "llama", "vocab_size": 256, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
END
seq -f '%g dogs of different strength, one pull. ' 300 >text.txt

run_all "$0"
