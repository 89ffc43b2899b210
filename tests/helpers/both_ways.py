"""One trial in the engine's words and in the oracle's, and its batches: to be trained both ways and compared."""

import math

import numpy as np
import oracle
import torch

from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch
from bitlora.forward.dropout import dropout_mask
from bitlora.forward.forward_plan import Span

CPU = torch.device("cpu")
VOCAB = 96
STEPS = 20


def make_rows(seed, count, low=5, high=20, prefix=0):
    """`count` rows of random tokens that begin with `prefix` tokens in common; the loss is on a random tail of each."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        n = int(rng.integers(low, high))
        prompt = int(rng.integers(1, n - 1))
        common = np.random.default_rng(seed // 1000).integers(3, VOCAB, prefix).tolist()
        tokens = [*common, *rng.integers(3, VOCAB, n).tolist()]
        rows.append((tokens, [i >= prompt + prefix for i in range(n + prefix)]))
    return rows


def batch_of(rows):
    tokens = torch.tensor([t for tokens, _ in rows for t in tokens])
    learn = torch.tensor([x for _, learn in rows for x in learn])
    return Batch(tokens, learn, tuple(len(tokens) for tokens, _ in rows))


class Trial:
    """A trial's configuration in the engine's words and in the oracle's, and its own batches."""

    def __init__(self, seed=1, sizes=(3, 4, 2), prefix=0, own=None, **recipe):
        """`own`: more of a `TrialConfig`, which the oracle has in words of its own."""
        self.recipe = oracle.Recipe(**{"steps": STEPS, **recipe})
        r = self.recipe
        self.seed = seed
        self.config = TrialConfig(
            quantizer=r.quantizer,
            granularity="component" if r.component else "tensor",
            activations="int8" if r.int8 else "full",
            rank=r.rank,
            alpha=r.alpha,
            dropout=r.dropout,
            scaling="rslora" if r.rslora else "lora",
            learning_rate=r.rate,
            weight_decay=r.weight_decay,
            batch_size=max(sizes),
            micro_batch=r.micro,
            max_grad_norm=r.max_norm,
            schedule=r.schedule,
            warmup=r.warmup,
            floor=r.floor,
            steps=r.steps,
            eval_every=5,
            seed=seed,
            **(own or {}),
        )
        self.batches = [
            make_rows(1000 * seed + step, sizes[step % len(sizes)], prefix=prefix) for step in range(r.steps)
        ]
        self.held_out = make_rows(1000 * seed + 999, 5, prefix=prefix)

    def alone(self, model, latents, row_order=None, targets="all-linear", order=None, parameters=()):
        """Its losses in the plain loop, and its eval loss at the end. `order`: the names of all of the base's linear
        layers, whose numbers the dropout masks hang on, where `latents` has not all."""
        order = order or [*latents]
        loop = oracle.PlainLoop(
            model, self.recipe, latents, row_order or (lambda n: list(range(n))), targets, parameters
        )
        losses = []
        for step, rows in enumerate(self.batches):
            masks = None
            if self.recipe.dropout:
                count = sum(len(tokens) for tokens, _ in rows)
                span = Span(0, 0, count, 0, count, (self.seed, step))
                masks = {
                    name: dropout_mask(span, order.index(name), a.shape[1], self.recipe.dropout, CPU)
                    for name, (a, *_) in latents.items()
                }
            losses.append(loop.step(rows, masks))
        return [*losses, loop.evaluate(self.held_out)]


def worst(ours, theirs):
    assert len(ours) == len(theirs)
    assert all(math.isfinite(x) for x in [*ours, *theirs])
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
