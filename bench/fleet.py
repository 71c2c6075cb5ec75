"""Many ranks, unlike and far apart, on this machine: what `gangline train` on a cluster loses to each, by the real command.

Devices are one core each. What together and apart are compared by runs side by side in time: parts run at once as separate
jobs, near and far in turn.
"""
import json
import os
import statistics
import subprocess

ROUNDS = 2
# Unlike by instruction set and type, about 2:1; unlike by share of a core, 70:58.
KINDS = [dict(compute="bf16"), dict(instructions="avx2", compute="f32")]
SHARES = [dict(compute="f32", share=0.70), dict(compute="f32", share=0.58)]
# A tenth of each core is left to the relay: what it needs it takes from no rank, near or far.
EVEN = [dict(compute="f32", share=0.90), dict(compute="f32", share=0.90)]
# 25 Gbit/s of loopback, and a thirty-second of it 500 km away. Both go through the relay, so that distance is all that differs.
NEAR, FAR = dict(rtt="0.2ms", bandwidth="25Gbps"), dict(rtt="5ms", bandwidth="780Mbps")
DEEP = dict(hidden=256, layers=40, heads=4, ffn=704, vocab=256)  # layers enough to share out finely
WIDE = dict(hidden=256, layers=8, heads=4, ffn=704, vocab=256)
# Stand-ins at several sites: what crosses, how it is split, of which model, how many tokens a step in sequences of what length, and how many
# times slower than in truth, long links alike: 33 processes and the relay share these cores, and must not be what is measured.
REHEARSED = [
    dict(sites=2, crossing="pipeline", layout="pp=4,dp=8,mb=1", hidden=512, layers=24, tokens=786432, length=1024, slow=4),
    dict(sites=2, crossing="data", layout="pp=2,dp=16,mb=4,vpp=2,place=replicas", hidden=256, layers=24, tokens=1572864, length=1024, slow=6),
    dict(sites=3, crossing="pipeline", layout="pp=3,dp=11,mb=1", hidden=256, layers=96, tokens=405504, length=256, slow=8),
]


def write(path, text):
    with open(path, "w") as f:
        f.write(text)


def write_model(work, name, s):
    write(f"{work}/{name}.json", json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": s["vocab"], "hidden_size": s["hidden"],
        "intermediate_size": s["ffn"], "num_hidden_layers": s["layers"], "num_attention_heads": s["heads"],
        "num_key_value_heads": s["heads"], "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "tie_word_embeddings": False}))


def write_cluster(path, devices, link=None):
    """One site, or with a link one site per device."""
    groups = [f"{{name: d{i}, nodes: 1, devices: 1, device: cpu, nic: 25Gbps, latency: 30us, {', '.join(f'{k}: {v}' for k, v in d.items())}}}"
              for i, d in enumerate(devices)]
    if link:
        sites = "".join(f"  - name: s{i}\n    groups: [{g}]\n" for i, g in enumerate(groups))
        links = "links:\n" + "".join(f"  - {{between: [s{i}, s{i + 1}], bandwidth: {link['bandwidth']}, rtt: {link['rtt']}}}\n"
                                     for i in range(len(groups) - 1))
    else:
        sites, links = "  - name: here\n    groups:\n" + "".join(f"      - {g}\n" for g in groups), ""
    write(path, f"sites:\n{sites}{links}")


class Job:
    """A job over a cluster; each run begins anew."""

    def __init__(self, build, work, name, model, devices, layout, sequences, steps, link=None, length=128, cores=None):
        self.build, self.work, self.name, self.cores, self.steps, self.tokens = build, work, name, cores, steps, sequences * length
        write_cluster(f"{work}/{name}-cluster.yaml", devices, link)
        write(f"{work}/{name}.yaml", f"model: {model}.json\ndata: text.txt\noutput: {name}\ncluster: {name}-cluster.yaml\nlayout: {layout}\n"
              f"sequence_length: {length}\nmicro_batch: 1\nglobal_batch_tokens: {self.tokens}\nsteps: {steps}\nlearning_rate: 1e-4\n"
              f"compute: f32\ncache: cache\n")

    def start(self):
        subprocess.run(["rm", "-rf", f"{self.work}/{self.name}"], check=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        env["XDG_CACHE_HOME"] = f"{self.work}/times"
        pin = ["taskset", "-c", str(self.cores)] if self.cores is not None else []
        return subprocess.Popen([*pin, f"{self.build}/gangline", "train", f"{self.work}/{self.name}.yaml", "--json"], env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def finish(self, process):
        out, err = process.communicate()
        if process.returncode:
            raise RuntimeError(f"{self.name}: {err}")
        lines = [json.loads(line) for line in out.splitlines()]
        rates = [line["seconds"] for line in lines[1:-1]]  # without the first step
        self.summary = lines[-1]
        return self.tokens / statistics.median(rates)

    def run(self):
        return self.finish(self.start())


def together_and_apart(build, work, name, model, devices, layout, mb, sequences, steps, layers=0):
    """Tokens/s of all together over the sum of what each does alone, both at once as separate jobs. With `layers` these are shared
    out by what each did alone in the first round."""
    whole = None
    parts = [Job(build, work, f"{name}-{i}", model, [d], f"mb={mb}", max(mb, sequences // 8), 2 * steps, cores=i) for i, d in enumerate(devices)]
    ratios, rates = [], []
    for _ in range(ROUNDS):
        processes = [p.start() for p in parts]
        alone = [p.finish(q) for p, q in zip(parts, processes)]
        first = round(layers * alone[0] / sum(alone))
        whole = whole or Job(build, work, name, model, devices, layout + (f",layers={first}/{layers - first}" if layers else ""), sequences, steps)
        rate = whole.run()
        ratios.append(rate / sum(alone))
        rates.append((rate, *alone))
    middle = rates[ratios.index(statistics.median_low(ratios))]
    note = f"{middle[0]:.0f} tokens/s together, {' and '.join(f'{a:.0f}' for a in middle[1:])} alone; {whole.summary['layout']}; {min(ratios):.3f} to {max(ratios):.3f}"
    return statistics.median(ratios), note, whole


def near_and_far(build, work, name, model, layout, sequences, steps):
    """Part of the speed that distance takes: the same plan with the sites 500 km apart and next to each other, in turn."""
    jobs = [Job(build, work, f"{name}-{kind}", model, EVEN, layout, sequences, steps, link) for kind, link in (("near", NEAR), ("far", FAR))]
    losses = []
    for _ in range(ROUNDS):
        near, far = (j.run() for j in jobs)
        losses.append(1 - far / near)
    predicted = 1 - jobs[1].summary["near_seconds"] / jobs[1].summary["predicted_seconds"]
    return statistics.median(losses), f"predicted {100 * predicted:.2f} %; {100 * min(losses):.2f} to {100 * max(losses):.2f} %", jobs[1]


def rehearse(build, work, cluster, layout, name, slow=1):
    """The steps on stand-ins but the first, and the summary."""
    out = subprocess.run([f"{build}/gangline", "rehearse", f"{work}/{name}.yaml", "--cluster", f"{work}/{cluster}", "--layout", layout, "--steps", "3",
                          "--spread", "0", "--slow", str(slow), "--json"], check=True, capture_output=True, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines()]
    return lines[1:-1], lines[-1]


def board_cluster(path, sites, per_site, link):
    """Boards of 4 TFLOP/s behind 5 Gbit/s, a node each; the long links have a thirty-second of what a site's boards have together."""
    rows = "".join(f"  - name: s{i}\n    groups: [{{name: b{i}, nodes: {per_site}, devices: 1, device: board, latency: 50us}}]\n" for i in range(sites))
    links = "".join(f"  - {{between: [s{i}, s{i + 1}], bandwidth: {link['bandwidth']}, rtt: {link['rtt']}}}\n" for i in range(sites - 1))
    write(path, f"sites:\n{rows}links:\n{links}kinds:\n  - {{name: board, memory: 64GiB, memory_bandwidth: 400GB/s, f16: 4TFLOPS, f32: 2TFLOPS, "
          "fast_bandwidth: 5Gbps, nic: 5Gbps}\n")


def rehearse_far(build, work, row):
    """Stand-ins, near and 500 km from each other, in turn."""
    sites = row["sites"]
    per_site = 32 // sites if 32 % sites == 0 else 11
    write_model(work, "boards", dict(hidden=row["hidden"], layers=row["layers"], heads=row["hidden"] // 64, ffn=row["hidden"] * 11 // 4, vocab=8192))
    link = dict(rtt="5ms", bandwidth=f"{per_site * 5 / 32:.3g}Gbps")
    board_cluster(f"{work}/near.yaml", sites, per_site, NEAR)
    board_cluster(f"{work}/far.yaml", sites, per_site, link)
    write(f"{work}/boards.yaml", f"model: boards.json\ncluster: near.yaml\nsequence_length: {row['length']}\nglobal_batch_tokens: {row['tokens']}\n")
    seconds, predicted = [], []
    for cluster in ("near.yaml", "far.yaml"):
        steps, summary = rehearse(build, work, cluster, row["layout"], "boards", row["slow"])
        seconds.append(statistics.median(s["seconds"] for s in steps))
        predicted.append(summary["predicted_seconds"])
    return 1 - seconds[0] / seconds[1], (f"{sites * per_site} ranks, {row['layout']}, {row['slow']} times slower than in truth; step {seconds[0]:.2f} s near, "
                                         f"{predicted[0]:.2f} predicted; {100 * (1 - predicted[0] / predicted[1]):.2f} % lost predicted")


def own_cost(build, work):
    """A one-rank program beside the plain loop, in turn; both with all cores."""
    cluster = Job(build, work, "one", "wide", [dict(compute="f32", threads=os.cpu_count())], "mb=8", 16, 8)
    write(f"{work}/plain.yaml", "model: wide.json\ndata: text.txt\noutput: plain\nsequence_length: 128\nmicro_batch: 8\nglobal_batch_tokens: 2048\n"
          "steps: 8\nlearning_rate: 1e-4\ncompute: f32\ncache: cache\n")
    ratios = []
    for _ in range(ROUNDS):
        subprocess.run(["rm", "-rf", f"{work}/plain"], check=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        env["XDG_CACHE_HOME"] = f"{work}/times"
        out = subprocess.run([f"{build}/gangline", "train", f"{work}/plain.yaml", "--json"], env=env, check=True, capture_output=True, text=True).stdout
        plain = 2048 / statistics.median(json.loads(line)["seconds"] for line in out.splitlines()[1:])
        ratios.append(cluster.run() / plain)
    return statistics.median(ratios), f"{min(ratios):.3f} to {max(ratios):.3f}"


def instruction_cost(build, work):
    """One rank, 1,000 micro-batches a step, a stand-in: the part of a step that is not the stand-in's, over its instructions."""
    write(f"{work}/one.yaml", "sites:\n  - name: s\n    groups: [{name: b, nodes: 1, devices: 1, device: board}]\nkinds:\n"
          "  - {name: board, memory: 64GiB, memory_bandwidth: 900000GB/s, f16: 900000TFLOPS, fast_bandwidth: 5Gbps, nic: 5Gbps}\n")
    write_model(work, "tiny", dict(hidden=16, layers=2, heads=2, ffn=32, vocab=256))
    write(f"{work}/quick.yaml", "model: tiny.json\ncluster: one.yaml\nsequence_length: 16\nglobal_batch_tokens: 16000\n")
    steps, _ = rehearse(build, work, "one.yaml", "pp=1,mb=1", "quick")
    costs = [1e6 * step["seconds"] * (1 - step["slowest_busy"]) / 2001 for step in steps]
    return statistics.median(costs), f"1,000 micro-batches forward and backward and the optimizer; {min(costs):.2f} to {max(costs):.2f}"


def measure(build, work, record):
    write_model(work, "deep", DEEP)
    write_model(work, "wide", WIDE)
    jobs = []
    for name, devices in (("unlike", KINDS), ("share", SHARES)):
        value, note, job = together_and_apart(build, work, f"{name}-pp", "deep", devices, "pp=2,mb=1", 1, 64, 5, DEEP["layers"])
        record(f"run.{name}.pipeline.efficiency", value, "of the sum", ">= 0.975", value >= 0.975, note)
        jobs.append(job)
        value, note, job = together_and_apart(build, work, f"{name}-dp", "wide", devices, "pp=1,dp=2,mb=2", 2, 384, 4)
        record(f"run.{name}.data.efficiency", value, "of the sum", ">= 0.97", value >= 0.97, note)
        jobs.append(job)
    for name, layout, goal, sequences in (("pipeline", "pp=2,mb=1", 0.01, 256), ("data", "pp=1,dp=2,vpp=4,mb=2", 0.02, 512)):
        value, note, job = near_and_far(build, work, f"far-{name}", "wide", layout, sequences, 4)
        record(f"run.far.{name}.loss", value, "of near", f"<= {goal}", value <= goal, note)
        jobs.append(job)
    for row in REHEARSED:
        value, note = rehearse_far(build, work, row)
        goal = {"pipeline": 0.01, "data": 0.02}[row["crossing"]]
        record(f"run.rehearse.sites{row['sites']}.{row['crossing']}.loss", value, "of near", f"<= {goal}", value <= goal, note)
    value, note = own_cost(build, work)
    record("run.one_rank.ratio_to_plain", value, "ratio", ">= 0.99", value >= 0.99, note)
    value, note = instruction_cost(build, work)
    record("run.instruction", value, "us", "< 20", value < 20, note)
    errors = [abs(j.summary["seconds"] / j.summary["predicted_seconds"] - 1) for j in jobs]
    record("run.predicted.step.error", statistics.median(errors), "", "<= 0.05", max(errors) <= 0.05, f"of {len(errors)} runs; at most {max(errors):.3f}")
    off = [abs(r["peak_bytes"] / r["said_bytes"] - 1) for j in jobs for r in j.summary["ranks"]]
    record("run.predicted.memory.error", statistics.median(off), "", "<= 0.05", max(off) <= 0.05, f"of {len(off)} ranks; at most {max(off):.3f}")
