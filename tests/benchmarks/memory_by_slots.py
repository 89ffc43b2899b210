"""What a step takes at its peak above what is held before it, by slots: bytes, and against one slot.

    PYTHONPATH=tests/helpers python tests/benchmarks/memory_by_slots.py [--model large-vocabulary --cells 1x512,8x512]

On a GPU PyTorch's own peak, else the process's resident memory. The slots' weights, gradients and moments are held before.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from adapters import trial
from bases import RANK, base, batch
from measuring import Ratio, Settings, cells, ratio, table

from bitlora.engine.engine import Engine
from bitlora.engine.gauge import held, peak_during, trim

CPU_CELLS = [(1, 128), (4, 128), (8, 128)]
GPU_CELLS = [(1, 512), (2, 512), (4, 512), (8, 512), (16, 512)]


def own_cells(settings: Settings) -> list[tuple[int, int]]:
    return cells(settings, CPU_CELLS if settings.device == "cpu" else GPU_CELLS)


def measure(settings: Settings) -> Iterator[Ratio]:
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    loaded = base(settings.model, dtype, device)
    first = 0.0
    for slots, tokens in own_cells(settings):
        engine = Engine(loaded, slots)
        for number in range(slots):
            engine.attach(trial("none", rank=RANK, seed=number, learning_rate=1e-4))
        batches = {number: batch(tokens, 128, loaded.vocab_size, number) for number in range(slots)}
        trim()
        before = held(device)
        _, peak = peak_during(lambda engine=engine, batches=batches: engine.step(batches), device)
        above = (peak - before) / 1e9
        first = first or above
        yield ratio(
            [above], [first], table="memory", model=settings.model, dtype=settings.dtype, slots=slots, tokens=tokens,
            unit="GB", what="peak of a step above what is held before / that of the first row",
        )  # fmt: skip
        for number in range(slots):
            engine.detach(number)


def plan(settings: Settings) -> list[str]:
    return [f"memory: {settings.model} in {settings.dtype}, a step of {slots} slots × {tokens} tokens"
            for slots, tokens in own_cells(settings)]  # fmt: skip


if __name__ == "__main__":
    table(measure, plan)
