"""One worker of a pack, as a program: trains four trials and writes what it saw. Run by test_workers.py."""

import json
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.engine.workers import Workers
from bitlora.forward.inject import load_base

STEPS = 6
RECIPE = {
    "activations": "full",
    "alpha": 8,
    "scaling": "lora",
    "learning_rate": 5e-3,
    "weight_decay": 0.01,
    "max_grad_norm": 0.5,
    "schedule": "cosine",
    "warmup": 0.2,
    "floor": 0.1,
    "steps": STEPS,
    "eval_every": 3,
}
TRIALS = [
    TrialConfig(quantizer="ternary", rank=4, dropout=0.2, batch_size=5, micro_batch=2, seed=1, **RECIPE),
    TrialConfig(quantizer="none", rank=2, dropout=0.0, batch_size=1, micro_batch=None, seed=2, **RECIPE),
    TrialConfig(quantizer="binary", rank=8, dropout=0.1, batch_size=4, micro_batch=None, seed=3, **RECIPE),
    TrialConfig(quantizer="double_binary", rank=3, dropout=0.0, batch_size=3, micro_batch=1, seed=4, **RECIPE),
]


def batch(seed, rows):
    """Rows of different length with a random tail to learn."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (rows,), generator=generator).tolist()
    tokens = torch.randint(3, 90, (sum(lengths),), generator=generator)
    learn = torch.cat([torch.arange(length) >= 2 for length in lengths])
    return Batch(tokens, learn, tuple(lengths))


def main(rank, size, meeting, base, out):
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    torch.set_num_threads(1)
    loaded = load_base(BaseConfig(model=base, quantization="none"), torch.float64, torch.device("cpu"))
    workers = Workers(rank, size)
    engine = Engine(loaded, 4, workers)
    slots = [engine.attach(config) for config in TRIALS]
    seen, received = [], []
    for step in range(STEPS):
        workers.mailbox.post(*[f"from {rank} at {step}"] * (step % 2))
        batches = {
            slot: batch(100 * slot + step, config.batch_size) for slot, config in zip(slots, TRIALS, strict=True)
        }
        stats = engine.step(batches)
        received.append("".join(workers.mailbox.take()))
        seen.append([[stats[slot].loss, stats[slot].grad_norm, stats[slot].tokens] for slot in slots])
    scores = engine.evaluate(slots, batch(999, 7))
    found = {
        "steps": seen,
        "received": received,
        "evals": [[scores[slot].losses, scores[slot].tokens] for slot in slots],
        "weights": [engine.state(slot).latent.tolist() for slot in slots],
    }
    Path(out).write_text(json.dumps(found))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
