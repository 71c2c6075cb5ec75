#!/usr/bin/env python3
"""The rival: the same Llama, the same step, in PyTorch. Prints one JSON object.

Written the way a careful PyTorch user would for this CPU: fused projections, in-place-friendly element-wise code,
AdamW with foreach, cross-entropy on the full logits. bf16 is tried both as autocast and as pure bf16 parameters; the
faster one is what the benchmark quotes.
"""
import argparse
import json
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Block(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.heads, self.kv, self.hd = a.heads, a.kv_heads, a.hidden // a.heads
        self.n1 = RMSNorm(a.hidden, 1e-5)
        self.qkv = nn.Linear(a.hidden, (self.heads + 2 * self.kv) * self.hd, bias=False)
        self.o = nn.Linear(a.hidden, a.hidden, bias=False)
        self.n2 = RMSNorm(a.hidden, 1e-5)
        self.gu = nn.Linear(a.hidden, 2 * a.ffn, bias=False)
        self.down = nn.Linear(a.ffn, a.hidden, bias=False)

    def rope(self, x, cos, sin):
        h = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., h:], x[..., :h]), -1) * sin

    def forward(self, x, cos, sin, mask):
        b, t, c = x.shape
        q, k, v = self.qkv(self.n1(x)).split([self.heads * self.hd, self.kv * self.hd, self.kv * self.hd], -1)
        q = self.rope(q.view(b, t, self.heads, self.hd).transpose(1, 2), cos, sin)
        k = self.rope(k.view(b, t, self.kv, self.hd).transpose(1, 2), cos, sin)
        v = v.view(b, t, self.kv, self.hd).transpose(1, 2)
        if self.kv != self.heads:
            k = k.repeat_interleave(self.heads // self.kv, 1)
            v = v.repeat_interleave(self.heads // self.kv, 1)
        s = (q * self.hd**-0.5) @ k.transpose(-2, -1) + mask
        y = (torch.softmax(s, -1) @ v).transpose(1, 2).reshape(b, t, c)
        x = x + self.o(y)
        g, u = self.gu(self.n2(x)).chunk(2, -1)
        return x + self.down(F.silu(g) * u)


class Llama(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.embed = nn.Embedding(a.vocab, a.hidden)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.norm = RMSNorm(a.hidden, 1e-5)
        self.head = nn.Linear(a.hidden, a.vocab, bias=False)
        hd = a.hidden // a.heads
        f = torch.outer(torch.arange(a.seq).float(), 1e4 ** (-torch.arange(0, hd, 2).float() / hd))
        f = torch.cat((f, f), -1)
        self.register_buffer("cos", f.cos())
        self.register_buffer("sin", f.sin())
        self.register_buffer("mask", torch.full((a.seq, a.seq), float("-inf")).triu(1))

    def forward(self, ids):
        x = self.embed(ids)
        for b in self.blocks:
            x = b(x, self.cos, self.sin, self.mask)
        return self.head(self.norm(x))


def run(a, dtype):
    torch.manual_seed(1)
    m = Llama(a)
    for p in m.parameters():
        if p.dim() > 1:
            nn.init.normal_(p, 0, 0.02)
    params = sum(p.numel() for p in m.parameters())
    if dtype == "bf16":
        m = m.bfloat16()
    opt = torch.optim.AdamW(m.parameters(), lr=3e-4, foreach=a.foreach)
    data = torch.randint(a.vocab, (a.batch, a.seq + 1))
    times = []
    for i in range(a.steps + a.warmup):
        t0 = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            logits = m(data[:, :-1])
            loss = F.cross_entropy(logits.view(-1, a.vocab), data[:, 1:].reshape(-1))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0)
        opt.step()
        if i >= a.warmup:
            times.append(time.perf_counter() - t0)
    sec = statistics.median(times)
    return {"type": dtype, "params": params, "seconds": sec, "tokens_per_second": a.batch * a.seq / sec, "loss": float(loss)}


if __name__ == "__main__":
    p = argparse.ArgumentParser()
    for name, value in dict(hidden=512, layers=8, heads=8, kv_heads=8, ffn=1376, vocab=4096, seq=256, batch=8, steps=5, warmup=2, threads=2, foreach=0).items():
        p.add_argument("--" + name, type=int, default=value)
    p.add_argument("--type", default="f32", choices=["f32", "autocast", "bf16"])
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    print(json.dumps(run(a, a.type)))
