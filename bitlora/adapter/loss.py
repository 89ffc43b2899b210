"""The loss that an adapter over its base, or merged into it, is held by: a plain loop, sharing no code with the engine."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from bitlora.data.rows import Rows


PASS_TOKENS: Final = 1024
"""Tokens of one forward pass of `example_losses`, padding included, at most (or one row)."""


def example_losses(model: Any, rows: Rows) -> list[float]:
    """The loss of each row, in nats, summed over its completion tokens: a plain loop over padded batches.

    It shares no code with the engine, so that it can tell what the engine had in mind from what was written.

    Args:
        model: a causal LM, with or without PEFT's layers.
    """
    lengths = rows.lengths.tolist()
    losses = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lengths.__getitem__, reverse=True)
    model.eval()
    while order:
        longest = lengths[order[0]]
        count = max(1, PASS_TOKENS // longest)
        chosen, order = order[:count], order[count:]
        tokens = torch.zeros(len(chosen), longest, dtype=torch.long)
        learn = torch.zeros_like(tokens, dtype=torch.bool)
        for place, row in enumerate(chosen):
            cut = slice(int(rows.offsets[row]), int(rows.offsets[row + 1]))
            tokens[place, : lengths[row]] = torch.from_numpy(rows.tokens[cut])
            learn[place, : lengths[row]] = torch.from_numpy(rows.learn[cut])
        mask = torch.arange(longest) < torch.tensor([lengths[row] for row in chosen])[:, None]
        tokens, learn, mask = (part.to(model.device) for part in (tokens, learn, mask.long()))
        with torch.no_grad():
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, :-1]
        for place, row in enumerate(chosen):  # in high precision one row alone: these are the largest tensors there are
            length = lengths[row]
            own = logits[place, : length - 1]
            high = own.to(torch.promote_types(own.dtype, torch.float32))
            each = F.cross_entropy(high, tokens[place, 1:length], reduction="none")
            losses[row] = float((each.double() * learn[place, 1:length]).sum())
    return losses


def eval_loss(model: Any, rows: Rows) -> float:
    """Nats per completion token over `rows`: the ratio of the sums."""
    return math.fsum(example_losses(model, rows)) / int(rows.learn.sum())
