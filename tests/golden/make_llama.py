#!/usr/bin/env python3
"""Golden files for the model: loss, logits, gradients and an AdamW trajectory of four tiny Llamas.

    /usr/bin/python3 tests/golden/make_llama.py          (Debian's python3-torch; a few seconds)

A plain Llama with the semantics of Hugging Face's modeling_llama, written to be read and not to be fast, in float64
throughout. Weights are drawn, rounded to float32 and then used in float64, so what is stored as float32 is the right answer
to the last bit, save where float64 itself falls within its rounding of a tie. Each case is a directory:

    config.json, model.safetensors    as Hugging Face writes them
    expected.safetensors              F32:
        tokens            [B, T + 1]  whole numbers; position t of a row predicts token t + 1
        loss              [1]         mean cross-entropy over the B * T predictions, natural logarithm
        logits            [B * T, V]
        grad.NAME         as NAME     d loss / d NAME for every tensor of model.safetensors
      and in plain-mha, after three steps of AdamW on the same tokens (settings below):
        step_loss         [3]         loss before each update
        step_norm         [3]         global L2 norm of the gradient before clipping
        step3.NAME        as NAME
"""
import json
import math
import pathlib
import sys

import numpy
import torch

sys.dont_write_bytecode = True
import safetensors_io

HERE = pathlib.Path(__file__).resolve().parent / "llama"

# AdamW: lr fixed, decoupled decay on matrices (embedding and head are matrices, norms are not),
# gradients scaled by min(1, CLIP / norm).
LR, BETAS, EPS, DECAY, CLIP, STEPS = 1e-2, (0.9, 0.95), 1e-8, 0.1, 1.0, 3

COMMON = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "num_hidden_layers": 2,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}

# name: (B, T, the rest of config.json)
CASES = {
    "plain-mha": (2, 24, dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=4,
                              max_position_embeddings=64, rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None,
                              tie_word_embeddings=False)),
    "gqa-tied": (2, 17, dict(vocab_size=97, hidden_size=48, intermediate_size=80, num_attention_heads=6, num_key_value_heads=2,
                             max_position_embeddings=64, rms_norm_eps=1e-6, rope_theta=500000.0, rope_scaling=None,
                             tie_word_embeddings=True)),
    "gqa-linear-rope": (3, 9, dict(vocab_size=96, hidden_size=40, intermediate_size=64, num_attention_heads=5, num_key_value_heads=1,
                                   max_position_embeddings=128, rms_norm_eps=1e-5, rope_theta=10000.0,
                                   rope_scaling={"type": "linear", "factor": 4.0}, tie_word_embeddings=False)),
    # Wavelengths run from 6 to 20,000 positions, and 64 / 4 and 64 / 1 bound the blended band: all three bands occur.
    "llama3-rope": (2, 33, dict(vocab_size=96, hidden_size=32, intermediate_size=56, num_attention_heads=4, num_key_value_heads=2,
                                head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5, rope_theta=10000.0,
                                rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                              "original_max_position_embeddings": 64},
                                tie_word_embeddings=False)),
}


def head_dim(config):
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def tensor_shapes(config):
    hidden, ffn, width = config["hidden_size"], config["intermediate_size"], head_dim(config)
    q, kv = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes[at + "input_layernorm.weight"] = (hidden,)
        shapes[at + "self_attn.q_proj.weight"] = (q, hidden)
        shapes[at + "self_attn.k_proj.weight"] = (kv, hidden)
        shapes[at + "self_attn.v_proj.weight"] = (kv, hidden)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, q)
        shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        shapes[at + "mlp.gate_proj.weight"] = (ffn, hidden)
        shapes[at + "mlp.up_proj.weight"] = (ffn, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, ffn)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    return shapes


def draw_weights(config, random):
    """Larger than a fresh model's, so that attention is far from uniform and every term shows."""
    weights = {}
    for name, shape in tensor_shapes(config).items():
        values = torch.randn(shape, generator=random, dtype=torch.float64)
        wide = "embed" in name and not config["tie_word_embeddings"]
        values = 1 + 0.2 * values if len(shape) == 1 else values * (1.0 if wide else 1.5 / math.sqrt(shape[1]))
        weights[name] = values.float().double().requires_grad_()
    return weights


def rope_frequencies(config):
    width, theta, scaling = head_dim(config), config["rope_theta"], config["rope_scaling"] or {}
    frequencies = [theta ** (-2 * i / width) for i in range(width // 2)]
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return [f / scaling["factor"] for f in frequencies]
    if kind == "llama3":
        original, low, high = scaling["original_max_position_embeddings"], scaling["low_freq_factor"], scaling["high_freq_factor"]
        scaled = []
        for f in frequencies:
            wavelength = 2 * math.pi / f
            if wavelength < original / high:
                scaled.append(f)
            elif wavelength > original / low:
                scaled.append(f / scaling["factor"])
            else:
                smooth = (original / wavelength - low) / (high - low)
                scaled.append((1 - smooth) * f / scaling["factor"] + smooth * f)
        return scaled
    assert kind == "default"
    return frequencies


def rms_norm(x, weight, eps):
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def rotate(x, cos, sin):
    """Rotary embedding of [..., T, head_dim]: element i pairs with element i + head_dim / 2."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(config, weights, at, x):
    """Causal self-attention of x [B, T, hidden]."""
    batch, length, _ = x.shape
    heads, kv_heads, width = config["num_attention_heads"], config["num_key_value_heads"], head_dim(config)

    def project(name, count):
        return (x @ weights[f"{at}self_attn.{name}_proj.weight"].T).view(batch, length, count, width).transpose(1, 2)

    angles = torch.arange(length, dtype=torch.float64)[:, None] * torch.tensor(rope_frequencies(config), dtype=torch.float64)
    q = rotate(project("q", heads), angles.cos(), angles.sin())
    k = rotate(project("k", kv_heads), angles.cos(), angles.sin()).repeat_interleave(heads // kv_heads, dim=1)
    v = project("v", kv_heads).repeat_interleave(heads // kv_heads, dim=1)
    scores = q @ k.transpose(2, 3) / math.sqrt(width)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    mixed = torch.softmax(scores.masked_fill(future, -math.inf), dim=-1) @ v
    return mixed.transpose(1, 2).reshape(batch, length, heads * width) @ weights[at + "self_attn.o_proj.weight"].T


def feed_forward(weights, at, x):
    gate, up = x @ weights[at + "mlp.gate_proj.weight"].T, x @ weights[at + "mlp.up_proj.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ weights[at + "mlp.down_proj.weight"].T


def forward(config, weights, tokens):
    """tokens [B, T + 1] -> loss, logits [B * T, V]"""
    eps = config["rms_norm_eps"]
    x = weights["model.embed_tokens.weight"][tokens[:, :-1]]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        x = x + attention(config, weights, at, rms_norm(x, weights[at + "input_layernorm.weight"], eps))
        x = x + feed_forward(weights, at, rms_norm(x, weights[at + "post_attention_layernorm.weight"], eps))
    x = rms_norm(x, weights["model.norm.weight"], eps)
    head = weights["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    logits = (x @ head.T).reshape(-1, config["vocab_size"])
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 1:].reshape(-1))
    return loss, logits


def train(config, weights, tokens):
    decay = [w for w in weights.values() if w.dim() > 1]
    plain = [w for w in weights.values() if w.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}],
                                  lr=LR, betas=BETAS, eps=EPS)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, _ = forward(config, weights, tokens)
        loss.backward()
        norm = math.sqrt(sum(float((w.grad * w.grad).sum()) for w in weights.values()))
        for w in weights.values():
            w.grad *= min(1.0, CLIP / norm)
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm)
    assert max(norms) > CLIP, "clipping must act"
    return losses, norms


def f32(values):
    array = values.detach().numpy() if torch.is_tensor(values) else numpy.array(values)
    array = numpy.ascontiguousarray(array, dtype="<f4")
    return "F32", array.shape, array.tobytes()


def make_case(name, seed, batch, length, config):
    random = torch.Generator().manual_seed(seed)
    weights = draw_weights(config, random)
    tokens = torch.randint(config["vocab_size"], (batch, length + 1), generator=random)
    directory = HERE / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors_io.write(directory / "model.safetensors", {key: f32(w) for key, w in weights.items()})

    loss, logits = forward(config, weights, tokens)
    loss.backward()
    expected = {"tokens": f32(tokens), "loss": f32([loss.item()]), "logits": f32(logits)}
    for key, w in weights.items():
        expected["grad." + key] = f32(w.grad)
    if name == "plain-mha":
        losses, norms = train(config, weights, tokens)
        expected["step_loss"], expected["step_norm"] = f32(losses), f32(norms)
        for key, w in weights.items():
            expected["step3." + key] = f32(w)
        print(f"  steps: loss {losses}, norm {norms}")
    safetensors_io.write(directory / "expected.safetensors", expected)
    print(f"{name}: loss {loss.item():.6f}, {sum(w.numel() for w in weights.values())} parameters")


def main():
    torch.set_num_threads(1)
    for seed, (name, (batch, length, config)) in enumerate(CASES.items(), start=1):
        make_case(name, seed, batch, length, {**COMMON, **config})


if __name__ == "__main__":
    main()
