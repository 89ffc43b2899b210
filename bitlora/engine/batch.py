"""The rows of one trial in one step, and what of them one forward pass takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitlora.data.rows import Rows


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one trial, without padding, in host memory: what a pass is made of is made there, and sent in one copy."""

    tokens: Tensor  # (N,) int64
    learn: Tensor  # (N,) bool: the token is predicted, and counts in the loss
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Rows) -> Batch:
        """The rows as tensors."""
        tokens = torch.from_numpy(rows.tokens.astype(np.int64, copy=False))
        return cls(tokens, torch.from_numpy(rows.learn), tuple(rows.lengths.tolist()))

    @property
    def learned(self) -> int:
        """How many tokens count in the loss."""
        return int(np.count_nonzero(self.learn.numpy()))

    def common_prefix(self) -> int:
        """How many first tokens all rows have in common, short of what is learned and of the token that predicts it."""
        if len(self.lengths) == 1:
            return 0
        limit = min(self.lengths)
        at = np.cumsum((0, *self.lengths[:-1]))[:, None] + np.arange(limit)
        heads, learn = self.tokens.numpy()[at], self.learn.numpy()[at]
        differs = np.flatnonzero((heads != heads[0]).any(0) | learn.any(0))
        return max(0, (int(differs[0]) if len(differs) else limit) - 1)

    def folded(self, shared: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Tokens and mask with the `shared` first tokens of all rows but the first left out."""
        tokens, learn = self.tokens.numpy(), self.learn.numpy()
        if not shared:
            return tokens, learn
        keep = np.ones_like(learn)
        for start in accumulate(self.lengths[:-1]):
            keep[start : start + shared] = False
        return tokens[keep], learn[keep]

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

    def rows(self, start: int, stop: int) -> Piece:
        """The piece of its rows `start` to `stop`."""
        batch, before = self.batch.rows(start, stop)
        return Piece(self.slot, batch, self.batch_start + before, self.batch_tokens, self.seed)


def split_rows(piece: Piece, rows: int) -> list[Piece]:
    """The piece in pieces of at most so many rows, in order."""
    count = len(piece.batch.lengths)
    return [piece.rows(start, min(start + rows, count)) for start in range(0, count, rows)]


def split_rows_by_tokens(batch: Batch, rows: range, tokens: int) -> Iterator[Batch]:
    """These rows of a batch, next to each other in parts of at most so many tokens each, but at least one row."""
    start = rows.start
    while start < rows.stop:
        stop, taken = start + 1, batch.lengths[start]
        while stop < rows.stop and taken + batch.lengths[stop] <= tokens:
            taken += batch.lengths[stop]
            stop += 1
        yield batch.rows(start, stop)[0]
        start = stop


def split_pass(pieces: Sequence[Piece], tokens: int | None) -> list[list[Piece]]:
    """One forward pass as several of at most `tokens` tokens each, but at least one row; None: as it is.

    What is summed over the passes is the same: the rows are, and no row is split.
    """
    if tokens is None or sum(len(piece.batch.tokens) for piece in pieces) <= tokens:
        return [list(pieces)]
    passes: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        lengths, start = piece.batch.lengths, 0
        while start < len(lengths):
            stop, taken = start, 0
            while stop < len(lengths) and taken + lengths[stop] <= room:
                taken += lengths[stop]
                stop += 1
            if stop == start:  # the next row needs a pass of its own, or a new one that others join
                passes.append([])
                room = max(tokens, lengths[start])
                continue
            passes[-1].append(piece.rows(start, stop))
            room -= taken
            start = stop
    return passes
