"""The adapters' products of a layer, forward and backward, in four forms, in milliseconds beside the frozen layer's own.

    python tests/benchmarks/forms/products.py [SLOTS]

In turn, medians of 30. Shapes of SmolLM2-135M, rank 16, float32.
"""

import statistics
import sys
import time

import torch
from torch.nn import functional as F

RANK = 16


def medians(ways, rounds=30):
    took = {way: [] for way in ways}
    for way in ways:
        way()
    for _ in range(rounds):
        for way in ways:
            began = time.perf_counter()
            way()
            took[way].append(1e3 * (time.perf_counter() - began))
    return {way.__name__: statistics.median(times) for way, times in took.items()}


def forms(slots, tokens, inputs, outputs):
    """`tokens` of each slot; y and dx are what the adapters' shares are added to, y also serves as the gradient."""
    total = slots * tokens
    x, y, dx = torch.randn(total, inputs), torch.randn(total, outputs) / 100, torch.randn(total, inputs)
    a, b = torch.randn(slots, RANK, inputs) / 100, torch.randn(slots, outputs, RANK) / 100
    grad_a, grad_b, weight = torch.zeros_like(a), torch.zeros_like(b), torch.randn(outputs, inputs)
    ends = torch.arange(1, slots + 1, dtype=torch.int32) * tokens
    place = torch.arange(total)

    def frozen():
        F.linear(x, weight)
        y @ weight

    def loop():
        inner = []
        for slot in range(slots):
            own = slice(slot * tokens, (slot + 1) * tokens)
            inner.append(x[own] @ a[slot].T)
            y[own].addmm_(inner[-1], b[slot].T, alpha=0.5)
        for slot in range(slots):
            own = slice(slot * tokens, (slot + 1) * tokens)
            dz = y[own] @ b[slot] * 0.5
            grad_b[slot].addmm_(y[own].T, inner[slot], alpha=0.5)
            grad_a[slot].addmm_(dz.T, x[own])
            dx[own].addmm_(dz, a[slot])

    def grid():
        into, out, back = x.view(slots, tokens, -1), y.view(slots, tokens, -1), dx.view(slots, tokens, -1)
        z = torch.bmm(into, a.mT).mul_(0.5)
        out.baddbmm_(z, b.mT)
        dz = torch.bmm(out, b).mul_(0.5)
        grad_b.baddbmm_(out.mT, z)
        grad_a.baddbmm_(dz.mT, into)
        back.baddbmm_(dz, a)

    def padded():
        into = x.index_select(0, place).view(slots, tokens, -1)
        z = torch.bmm(into, a.mT).mul_(0.5)
        y.add_(torch.bmm(z, b.mT).flatten(0, 1).index_select(0, place))
        out = y.index_select(0, place).view(slots, tokens, -1)
        dz = torch.bmm(out, b).mul_(0.5)
        grad_b.baddbmm_(out.mT, z)
        grad_a.baddbmm_(dz.mT, into)
        dx.add_(torch.bmm(dz, a).flatten(0, 1).index_select(0, place))

    def grouped_mm():
        z = F.grouped_mm(x, a.mT, offs=ends).mul_(0.5)
        y.add_(F.grouped_mm(z, b.mT, offs=ends))
        dz = F.grouped_mm(y, b, offs=ends).mul_(0.5)
        grad_b.add_(F.grouped_mm(y.mT, z, offs=ends))
        grad_a.add_(F.grouped_mm(dz.mT, x, offs=ends))
        dx.add_(F.grouped_mm(dz, a, offs=ends))

    return [frozen, loop, grid, padded, grouped_mm]


def main(slots):
    for inputs, outputs in ((576, 576), (576, 1536), (1536, 576)):
        for tokens in (32, 128, 512):
            found = medians(forms(slots, tokens, inputs, outputs))
            print(inputs, outputs, tokens, " ".join(f"{name} {ms:.2f}" for name, ms in found.items()), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
