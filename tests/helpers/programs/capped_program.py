"""Two trials, of batches of 4 and of 32 long rows, in a process whose address space may be capped.

Run by tests/sweeps/pack/test_memory.py: BASE OUT MEGABYTES PLANNED. The cap is so much beyond what the process has when its
base is loaded and it has computed once; 0: none. PLANNED: whether memory is settled before.
"""

import json
import resource
import sys
from pathlib import Path

import psutil
import torch
from adapters import trial

from bitlora.config.sections import BaseConfig
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.engine.memory import LongestRow
from bitlora.forward.inject import load_base
from sweeps.pack.memory import settle_memory

LENGTH = 250
BATCHES = (4, 32)
STEPS = 1


def rows(seed, count):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 90, (count * LENGTH,), generator=generator)
    return Batch(tokens, torch.arange(LENGTH).repeat(count) >= 2, (LENGTH,) * count)


def main(base, out, megabytes, planned):
    torch.set_num_threads(1)
    loaded = load_base(BaseConfig(model=base, quantization="none"), torch.float64, torch.device("cpu"))
    longest = LongestRow(LENGTH, LENGTH - 2)
    settle_memory(Engine(loaded, 1), trial("ternary", batch_size=2), longest, False, 1.0)  # threads have their memory
    if megabytes != "0":
        limit = psutil.Process().memory_info().vms + int(megabytes) * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    engine, lines = Engine(loaded, 2), []
    if planned == "planned":
        lines = settle_memory(engine, trial("ternary", rank=4, batch_size=max(BATCHES)), longest, False, 1.0)
    before = engine.pass_tokens
    slots = [engine.attach(trial("ternary", rank=4, seed=count, batch_size=count)) for count in BATCHES]
    steps = [
        engine.step({slot: rows(10 * step + slot, count) for slot, count in zip(slots, BATCHES, strict=True)})
        for step in range(STEPS)
    ]
    scores = engine.evaluate(slots, rows(99, 6))
    found = {
        "losses": [[stats[slot].loss for slot in slots] for stats in steps],
        "failed": [stats[slot].failed for stats in steps for slot in slots] + [scores[slot].failed for slot in slots],
        "scores": [scores[slot].losses for slot in slots],
        "slots": engine.size,
        "pass_tokens": [before, engine.pass_tokens],
        "lines": lines,
    }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
