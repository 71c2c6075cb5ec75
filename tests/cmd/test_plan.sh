#!/bin/sh
# The planner's examples and its refusals, from the outside.
set -u
cd "$(dirname "$0")/../.."
bad=0
ok() { echo "[       OK ] $1"; }
failed() { echo "[  FAILED  ] test_$1"; bad=1; }
# run NAME ARGUMENTS...: must succeed and print a step.
run() {
    name=$1; shift
    out=$("$GANGLINE" "$@" --json 2>&1) && echo "$out" | grep -q '"step_seconds": [0-9]' && ok "$name" || { echo "$out"; failed "$name"; }
}
# refuse NAME WORDS ARGUMENTS...: exit status 1 and these words.
refuse() {
    name=$1 words=$2; shift 2
    out=$("$GANGLINE" "$@" 2>&1)
    [ $? = 1 ] && echo "$out" | grep -qF -e "$words" && ok "$name" || { echo "$out"; failed "$name"; }
}
e=examples/plan
run simulate_laptops simulate $e/laptops.yaml --layout pp=2,zero=0
run simulate_node8 simulate $e/node8.yaml --layout tp=2,pp=4,mb=1 --timeline
run simulate_mixed simulate $e/mixed.yaml --layout tp=8,pp=2,mb=2,layers=13/19
run simulate_cities300 simulate $e/cities300.yaml --layout tp=8,pp=8
run simulate_cities500 simulate $e/cities500.yaml --layout tp=8,pp=16
run simulate_llama405 simulate $e/llama405.yaml --layout tp=8,pp=16,dp=128,mb=1
run simulate_deepseek simulate $e/deepseek.yaml --layout pp=16,ep=64,recompute=full
run simulate_widths simulate $e/mixed.yaml --layout tp=8/4/4,pp=3
run plan_node8 plan $e/node8.yaml
run plan_laptops plan $e/laptops.yaml
run plan_mixed plan $e/mixed.yaml
run plan_three_kinds plan $e/three-kinds.yaml
run plan_cities300 plan $e/cities300.yaml
run plan_llama405 plan $e/llama405.yaml
run plan_deepseek plan $e/deepseek.yaml
run plan_energy plan $e/three-kinds.yaml --objective energy
refuse plan_price "does not state its price" plan $e/node8.yaml --objective price
run plan_layout plan $e/node8.yaml --layout tp=2,pp=4
refuse plan_fits_nowhere "on stage" plan $e/llama405.yaml --cluster $e/clusters/node8.yaml
out=$("$GANGLINE" validate data/cases/training_runs.csv --json) && echo "$out" | python3 -c '
import json, sys
v = json.load(sys.stdin)
rows, skipped, s = v["rows"], v["skipped"], v["summary"]
table = open("data/cases/training_runs.csv").read().count("\n") - 1
assert len(rows) + len(skipped) == table, "a row was dropped"
assert all(r["predicted"] > 0 for r in rows) and all(x["why"] for x in skipped)
assert s["rows"] == sum(not r["calibrated_on"] for r in rows) > 200
kinds = {k["device"]: k for k in s["kinds"]}
assert kinds["dense"]["rows"] + kinds["experts"]["rows"] == s["rows"] and kinds["dense"]["mean_pct"] < 5.5, kinds
assert sum(k["rows"] for k in s["kinds"]) == 2 * s["rows"] and "H100-80GB" in kinds
assert s["mean_pct"] < 6 and s["mean_pct"] < s["null_mean_pct"] and s["kendall_tau"] > 0.95, s
memory = [abs(r["peak_bytes"] / r["stated_peak_bytes"] - 1) for r in rows if "stated_peak_bytes" in r]
assert len(memory) == s["memory_rows"] >= 8 and max(memory) < 0.05 and abs(100 * sum(memory) / len(memory) - s["memory_mean_pct"]) < 1e-3, memory
' && ok validate_accuracy || { echo "$out" | tail -c 300; failed validate_accuracy; }
out=$("$GANGLINE" validate data/cases/far_and_unlike.csv --json) && echo "$out" | python3 -c '
import json, sys
v = json.load(sys.stdin)
assert len(v["rows"]) == 11 and len(v["skipped"]) == 2, v
for r in v["rows"]:
    assert r["off_points"] < (1 if r["what"] == "far" else 1.5), r
' && ok validate_apart || { echo "$out" | tail -c 300; failed validate_apart; }
refuse validate_no_table "the column 'id' is missing" validate data/cases/faults.csv
run simulate_faults simulate $e/llama405.yaml --layout tp=8,pp=16,dp=128,vpp=4,recompute=selective --faults $e/faults-llama3.yaml
trace=$(mktemp)
"$GANGLINE" simulate $e/node8.yaml --layout tp=2,pp=4 --trace "$trace" --json | grep -q step_seconds && python3 -c '
import json, sys
t = json.load(open(sys.argv[1]))["traceEvents"]
assert sum(x["ph"] == "X" for x in t) >= 4 * 2 * 256
assert sum(x["ph"] == "b" for x in t) == sum(x["ph"] == "e" for x in t) == 2 * 3 * 256
' "$trace" && ok simulate_trace || failed simulate_trace
"$GANGLINE" simulate $e/llama405.yaml --layout tp=8,pp=16,dp=128,vpp=4,recompute=selective --unfolded --trace "$trace" --ranks 0-3,2047 --json | grep -q step_seconds && python3 -c '
import json, sys
t = json.load(open(sys.argv[1]))["traceEvents"]
ranks = {16 * x["pid"] + x["tid"] // 2 for x in t if x["ph"] == "X"}
assert ranks == {0, 1, 2, 3, 2047}, ranks
assert sum(x["ph"] == "X" and x["name"].startswith("forward") for x in t) == 5 * 4 * 16
assert {x["name"].split()[0] for x in t if x["ph"] == "X" and x["pid"] == 127} >= {"forward", "gather", "reduce", "optimizer"}
' "$trace" && ok trace_ranks || failed trace_ranks
rm -f "$trace"
refuse trace_ranks_beyond "ranks: '4'" simulate $e/node8.yaml --layout tp=2,pp=4 --trace "$trace" --ranks 0-1,4
refuse trace_ranks_text "ranks: 'x'" simulate $e/node8.yaml --layout tp=2,pp=4 --trace "$trace" --ranks 1,x
for trainer in megatron torchtitan deepspeed; do
    "$GANGLINE" plan $e/llama405.yaml --layout tp=8,pp=16,vpp=4,recompute=selective --emit $trainer | grep -qi "$trainer" && ok emit_$trainer || failed emit_$trainer
done
for trainer in megatron torchtitan deepspeed; do
    "$GANGLINE" plan $e/node8.yaml --layout pp=2,recompute=full/none --emit $trainer | grep -q "not expressed: recompute of each stage full/none; on all of them full fits" && ok emit_stages_$trainer || failed emit_stages_$trainer
done
for trainer in megatron torchtitan deepspeed; do
    "$GANGLINE" plan $e/mixed.yaml --layout tp=8/4,pp=2 --emit $trainer | grep -q "not expressed: tensor-parallel width of each stage 8/4; above stands the first stage's" && ok emit_widths_$trainer || failed emit_widths_$trainer
done
refuse offload_unstated "give group '" simulate $e/node8.yaml --layout pp=2,offload=optimizer
host=$(mktemp)
sed 's/device: H100-80GB/&, host_memory: 2TB, host_bandwidth: 600GB\/s/' $e/clusters/node8.yaml >"$host"
run simulate_offload simulate $e/node8.yaml --cluster "$host" --layout pp=4,dp=2,offload=activations/both/optimizer/none
"$GANGLINE" simulate $e/node8.yaml --cluster "$host" --layout pp=4,dp=2,offload=activations/both/optimizer/none |
    grep -q "0 .*in the node's memory optimizer 0 B, activations [0-9.]* GiB of" && ok show_offload || failed show_offload
emits() { # emits NAME TRAINER LAYOUT WORDS
    "$GANGLINE" plan $e/node8.yaml --cluster "$host" --layout "$3" --emit "$2" | grep -qF -e "$4" && ok "$1" || failed "$1"
}
emits emit_offload_megatron megatron pp=4,offload=activations "--fine-grained-activation-offloading --offload-modules attn_norm qkv_linear core_attn attn_proj mlp_norm"
emits emit_offload_megatron_full megatron pp=4,offload=activations,recompute=full "# not expressed: offload of activations together with recompute=full"
emits emit_offload_torchtitan torchtitan pp=4,offload=activations "# not expressed: offload of activations"
emits emit_offload_deepspeed deepspeed pp=4,offload=activations "# not expressed: offload of activations; cpu_checkpointing"
emits emit_offload_deepspeed_full deepspeed pp=4,offload=both,recompute=full '"partition_activations": true, "cpu_checkpointing": true'
emits emit_offload_stages megatron pp=4,offload=activations/none/none/none "# not expressed: offload of single stages activations/none/none/none"
rm "$host"
refuse emit_unknown "expected megatron, torchtitan or deepspeed" plan $e/node8.yaml --layout dp=8 --emit jax
folded=$("$GANGLINE" simulate $e/cities300.yaml --layout tp=8,pp=8 --json | cut -d, -f1-6)
[ "$folded" = "$("$GANGLINE" simulate $e/cities300.yaml --layout tp=8,pp=8 --unfolded --json | cut -d, -f1-6)" ] && ok unfolded || failed unfolded
# A plan written out, run again, and spoiled.
work=$(mktemp -d)
l="--layout tp=2,pp=2,dp=2,vpp=2"
a=$("$GANGLINE" plan $e/node8.yaml $l -o "$work/plan" --json)
b=$("$GANGLINE" plan $e/node8.yaml $l -o "$work/unfolded" --unfolded --json | cut -d, -f1-6)
[ -n "$a" ] && [ "$(echo "$a" | sed 's/"layout[^}]*//')" = "$("$GANGLINE" simulate "$work/plan" --json | sed 's/"layout[^}]*//')" ] && ok run_plan || failed run_plan
grep -c '^rank' "$work/plan" "$work/unfolded" | tr '\n' ' ' | grep -q 'plan:2 .*unfolded:4 ' && [ "$b" = "$(echo "$a" | cut -d, -f1-6)" ] && ok plan_unfolded || failed plan_unfolded
run run_unfolded simulate "$work/unfolded"
a=$("$GANGLINE" plan $e/mixed.yaml --layout tp=8/4,pp=2,layers=16/16 -o "$work/widths" --json)
echo "$a" | grep -q '"layout": "tp=8/4,pp=2,dp=1", .*"devices": 12,' && grep -q '^layout tp=8/4,pp=2' "$work/widths" &&
    [ "$(echo "$a" | sed 's/"layout[^}]*//')" = "$("$GANGLINE" simulate "$work/widths" --json | sed 's/"layout[^}]*//')" ] && ok plan_widths || { echo "$a"; failed plan_widths; }
refuse plan_other_pool "the plan is for 'group 0: 1 nodes of 8" simulate "$work/plan" --cluster $e/clusters/laptops.yaml
refuse plan_with_layout "layout and --unfolded are for jobs" simulate "$work/plan" $l
sed '0,/^send activation/{/^send activation/d}' "$work/plan" >"$work/spoiled"
refuse plan_changed "changed since it was written" simulate "$work/spoiled"
sum=$("$GANGLINE" simulate "$work/spoiled" 2>&1 | sed "s/.*'\(checksum [0-9a-f]*\)'.*/\1/")
sed -i "s/^checksum.*/$sum/" "$work/spoiled"
refuse plan_deadlock "deadlock" simulate "$work/spoiled"
rm -r "$work"
# What distance costs (data/cases/far_and_unlike.csv), the same devices in one room against two or three. The sources state no batch:
# with 2 M tokens a step every row is within one point of its printed loss.
work=$(mktemp -d)
sed "s/4194304/2097152/; s#models/#$PWD/$e/models/#; s#clusters/#$PWD/$e/clusters/#" $e/cities300.yaml >"$work/job.yaml"
step() { "$GANGLINE" simulate "$work/job.yaml" --json "$@" | sed 's/.*"step_seconds": \([0-9.]*\).*/\1/'; }
far() { # far NAME CLUSTER PLACE PRINTED
    sed 's/12.8Tbps/1000Tbps/; s/[0-9]*km}/1m}/' "$e/clusters/$2.yaml" >"$work/near.yaml"
    far=$(step --layout tp=8,pp=8,place=$3 --cluster "$e/clusters/$2.yaml") room=$(step --layout tp=8,pp=8,place=$3 --cluster "$work/near.yaml")
    awk "BEGIN { off = 100 * ($far / $room - 1) - $4; exit !($far > 0 && off > -1 && off < 1) }" && ok "$1" || { echo "$far $room"; failed "$1"; }
}
far far_dp_2 cities300 replicas 1.95
far far_dp_3 cities300-three replicas 0.78
far far_pp_2 cities300 stages 0.13
far far_pp_3 cities300-three stages 0.14
rm -r "$work"
refuse simulate_too_big "needs " simulate $e/cities500.yaml --layout tp=2,pp=2
refuse simulate_no_division "does not divide" simulate $e/node8.yaml --layout tp=3
refuse simulate_no_cluster "nowhere.yaml" simulate $e/node8.yaml --cluster nowhere.yaml
[ $bad = 0 ]
