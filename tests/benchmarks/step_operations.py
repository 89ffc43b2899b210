"""How many operations one optimizer step over SmolLM2-135M dispatches, by slots: none, binary, ternary and twn in turn,
rank 16, 32 tokens a slot, NF4. On a GPU each is a launch.

    PYTHONPATH=tests/helpers python tests/benchmarks/step_operations.py [--cells 1x32,8x32]
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from adapters import trial
from bases import RANK, base, batch
from measuring import Ratio, Settings, cells, ratio, table
from operations import CountOperations

from bitlora.engine.engine import Engine

CELLS = [(1, 32), (4, 32), (8, 32), (32, 32)]


def measure(settings: Settings) -> Iterator[Ratio]:
    device, dtype = torch.device(settings.device), getattr(torch, settings.dtype)
    loaded = base(settings.model, dtype, device)
    first = 0
    for slots, tokens in cells(settings, CELLS):
        engine = Engine(loaded, slots)
        for number in range(slots):
            engine.attach(trial(("none", "binary", "ternary", "twn")[number % 4], rank=RANK, seed=number))
        batches = {number: batch(tokens, 128, loaded.vocab_size, number) for number in range(slots)}
        engine.step(batches)
        with CountOperations() as counted:
            engine.step(batches)
        first = first or counted.total
        yield ratio([counted.total], [first], table="operations", model=settings.model, dtype=settings.dtype,
                    slots=slots, tokens=tokens, unit="", what="operations of a step / those of the first row")  # fmt: skip
        for number in range(slots):
            engine.detach(number)


def plan(settings: Settings) -> list[str]:
    return [f"operations: {settings.model}, a step of {slots} slots" for slots, _ in cells(settings, CELLS)]


if __name__ == "__main__":
    table(measure, plan)
