"""Forward passes laid out before they are run: what they need of the host is made there and sent while the device is at
something else.

A step's rows hang on a trial's seed and step alone, so the next step's are laid out while this one is computed, and an
evaluation's once for all evaluations. A layout is of the slots that there are: when one comes or goes, it is made again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from bitlora.engine.batch import Batch, Piece
from bitlora.engine.slots.slot import Slot
from bitlora.engine.workers import Workers
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.host import send

KEPT_TOKENS: Final = 2**20
"""Of laid-out evaluations that are kept, at most: some 60 bytes each."""


@dataclass(frozen=True, slots=True, eq=False)
class LaidOutPass:
    """One forward pass, with all that it needs on the device."""

    pieces: tuple[Piece, ...]
    """In the order of their slots' places."""
    plan: ForwardPlan
    tokens: Tensor  # (T,) int64, in the rows' order
    keep: Tensor  # (K,) int64: the places whose next token is to be predicted
    targets: Tensor  # (K,) int64: those tokens
    shares: Tensor  # (K,) float64: of each in its slot's loss, one part of all that the slot learns in the step
    learned: tuple[int, ...]
    """How many of the K are each piece's."""

    @classmethod
    def make(
        cls, pieces: Sequence[Piece], counts: Mapping[int, int], share_prefixes: bool, device: torch.device
    ) -> LaidOutPass:
        """Lay out a pass.

        Args:
            pieces: in the order of their slots' places.
            counts: tokens that count in the loss, of each slot's whole batch.
            share_prefixes: what all rows of a piece begin with is computed once.
        """
        # A dropout mask is drawn for every token of every row, so there the rows have nothing in common.
        shared = [piece.batch.common_prefix() if share_prefixes and not piece.seed else 0 for piece in pieces]
        folded = [piece.batch.folded(common) for piece, common in zip(pieces, shared, strict=True)]
        ends = [*accumulate(len(tokens) for tokens, _ in folded)]
        spans = [
            Span(piece.slot, start, end, piece.batch_start, piece.batch_tokens, piece.seed)
            for piece, start, end in zip(pieces, [0, *ends], ends, strict=False)
        ]
        plan = ForwardPlan.make(spans, [piece.batch.lengths for piece in pieces], shared, device)
        tokens, learn = (np.concatenate(parts) for parts in zip(*folded, strict=True))
        learned = tuple(int(np.count_nonzero(own)) for _, own in folded)
        shares = np.repeat([1 / counts[piece.slot] for piece in pieces], learned)
        # Numbers of eight bytes each: they travel together, whatever they are.
        sent = send([tokens, np.flatnonzero(learn) - 1, tokens[learn], shares.view(np.int64)], device)
        inputs, keep, targets, parts = sent
        return cls(tuple(pieces), plan, inputs, keep, targets, parts.view(torch.float64), learned)


def micro_batches(
    batches: Mapping[int, Batch], slots: Mapping[int, Slot], workers: Workers, later: int = 0
) -> list[list[Piece]]:
    """This worker's rows of a step cut into forward passes: in the k-th, each slot's k-th micro-batch.

    Args:
        later: it is the step that comes so many steps after the next one.
    """
    passes: list[list[Piece]] = []
    for turn, (slot, batch) in enumerate(sorted(batches.items())):
        state = slots[slot]
        first, last = workers.share(len(batch.lengths), turn)
        size = state.config.micro_batch or max(1, last - first)
        for number, start in enumerate(range(first, last, size)):
            if number == len(passes):
                passes.append([])
            piece, before = batch.rows(start, min(start + size, last))
            seed = (state.config.seed, state.step + later) if state.config.dropout else None
            passes[number].append(Piece(slot, piece, before, len(batch.tokens), seed))
    return passes


@dataclass(frozen=True, slots=True, eq=False)
class StepLayout:
    """The passes of a step that has not begun."""

    members: Mapping[int, Any]
    """The slots that there are, all of them: another mapping when one comes or goes."""
    batches: Mapping[int, Batch]
    steps: Mapping[int, int]
    """Of each slot in `batches`, how many steps it has taken by then."""
    pass_tokens: int | None
    passes: tuple[LaidOutPass, ...]

    def is_of(
        self,
        members: Mapping[int, Any],
        batches: Mapping[int, Batch],
        steps: Mapping[int, int],
        pass_tokens: int | None,
    ) -> bool:
        """Is it what this step needs?"""
        return (
            self.members is members
            and self.batches.keys() == batches.keys()
            and all(self.batches[slot] is batch for slot, batch in batches.items())
            and (self.steps, self.pass_tokens) == (steps, pass_tokens)
        )


@dataclass(slots=True)
class KeptLayouts:
    """The passes of evaluations, for the next ones: of the same rows, with the same slots."""

    _of: tuple[Mapping[int, Any], Batch] | None = None
    """The slots that there are, and the rows."""
    _kept: dict[Hashable, tuple[LaidOutPass, ...]] = field(default_factory=dict)

    def passes(
        self,
        members: Mapping[int, Any],
        batch: Batch,
        what: Hashable,
        lay_out: Callable[[], Iterable[LaidOutPass]],
    ) -> Iterator[LaidOutPass]:
        """The passes, from here or else laid out one by one, and kept once all are used.

        Args:
            what: of the rows which, for which slots, in passes of which size.
            lay_out: makes them.
        """
        if self._of is None or self._of[0] is not members or self._of[1] is not batch:
            self._of, self._kept = (members, batch), {}
        known = self._kept.get(what)
        if known is not None:
            yield from known
            return
        room = KEPT_TOKENS - sum(each.plan.tokens for passes in self._kept.values() for each in passes)
        made: list[LaidOutPass] = []
        for each in lay_out():
            room -= each.plan.tokens
            if room >= 0:
                made.append(each)
            else:
                made.clear()
            yield each
        if room >= 0:
            self._kept[what] = tuple(made)
