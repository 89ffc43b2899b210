"""The rows of one trial in one step, and what of them one forward pass takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bitlora.data.rows import Rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one trial, without padding, on the base's device."""

    tokens: Tensor  # (N,) int64
    learn: Tensor  # (N,) bool: the token is predicted, and counts in the loss
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Batch:
        """The rows as tensors."""
        tokens = torch.from_numpy(rows.tokens).to(device, torch.long)
        return cls(tokens, torch.from_numpy(rows.learn).to(device), tuple(rows.lengths.tolist()))

    def common_prefix(self) -> int:
        """How many first tokens all rows have in common, short of what is learned and of the token that predicts it."""
        starts = [sum(self.lengths[:row]) for row in range(len(self.lengths))]
        if len(starts) == 1:
            return 0
        limit = min(self.lengths)
        heads = torch.stack([self.tokens[start : start + limit] for start in starts])
        learn = torch.stack([self.learn[start : start + limit] for start in starts])
        differs = (heads != heads[0]).any(0) | learn.any(0)
        first = int(differs.nonzero()[0]) if bool(differs.any()) else limit
        return max(0, first - 1)

    def folded(self, shared: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask with the `shared` first tokens of all rows but the first left out."""
        if not shared:
            return self.tokens, self.learn
        keep = torch.ones_like(self.learn)
        start = 0
        for length in self.lengths[:-1]:
            start += length
            keep[start : start + shared] = False
        return self.tokens[keep], self.learn[keep]

    def rows(self, start: int, stop: int) -> tuple[Batch, int]:
        """Rows `start` to `stop`, and the tokens before them."""
        before = sum(self.lengths[:start])
        lengths = self.lengths[start:stop]
        piece = slice(before, before + sum(lengths))
        return Batch(self.tokens[piece], self.learn[piece], lengths), before


@dataclass(frozen=True, slots=True)
class Piece:
    """What one slot has in one forward pass: its batch, a part of it, or rows to evaluate."""

    slot: int
    batch: Batch
    batch_start: int = 0
    batch_tokens: int = 0
    seed: tuple[int, int] | None = None
    """As in `bitlora.forward.forward_plan.Span`."""
