"""One worker of a pack, as a program: settles its memory among workers of which each may hold another amount.

Run by tests/sweeps/pack/test_memory_of_workers.py: RANK SIZE MEETING BASE OUT BYTES…, of each worker the bytes that it may
hold; 0: as many as it likes.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from adapters import trial
from torch import distributed as dist

from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.engine.gauge import Budget
from bitlora.engine.memory import LongestRow, MemoryNeeds
from bitlora.engine.workers import Workers
from bitlora.forward.inject import load_base
from sweeps.pack import memory

KNOWN = MemoryNeeds(base=1000.0, slot=100.0, token=1.0, eval_token=0.5, row=20)
PLENTY = 10**15


def main(rank, size, meeting, base, out, *allowed):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    loaded = load_base(BaseConfig(model=base, quantization="none"), torch.float64, torch.device("cpu"))
    widest, found, kept = trial("ternary", rank=4, batch_size=8), [], []
    for known, budget in ((None, PLENTY), (None, 0), (asdict(KNOWN), int(allowed[rank]))):
        memory.budget = lambda device, sharing, budget=budget: Budget(budget, "the moon")
        engine = Engine(loaded, 4, Workers(rank, size))
        lines = memory.settle_memory(
            engine, widest, LongestRow(20, 15), False, 1.0, lambda known=known: known, kept.append
        )
        found.append([engine.size, engine.pass_tokens, lines])
    Path(out).write_text(json.dumps({"found": found, "kept": kept}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
