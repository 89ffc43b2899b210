"""The plan of one forward pass: which tokens there are, whose they are, and where attention finds the rows again.

The rows of all slots stand behind each other in one sequence of T tokens without padding, and what the rows of a slot
begin with in common (a system prompt, say) stands there once: the frozen layers, which are most of the work, compute
nothing twice and nothing for nothing. Only attention must know the rows apart. It gathers them just for itself, whole and
padded to the longest row, on the right: under a causal mask no real token ever looks at a padding one.

A plan never changes. It reaches the layers inside a transformers model, whose calls have no room for it, by being bound
for as long as the call lasts (`ForwardPlan.bound`); a checkpointed block is recomputed under the plan it first ran under.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one slot in a forward pass, and where they stand in the slot's whole batch."""

    slot: int
    start: int
    stop: int
    batch_start: int = 0
    """First token, counted within the trial's own batch (a micro-batch may begin in its middle)."""
    batch_tokens: int = 0
    """Tokens of the trial's whole batch: the dropout masks are drawn for all of them."""
    seed: tuple[int, int] | None = None
    """(trial seed, step) of the dropout masks; None in evaluation."""


@dataclass(frozen=True, slots=True, eq=False)
class ForwardPlan:
    """One forward pass over T tokens."""

    spans: tuple[Span, ...]
    """Who owns which tokens."""
    positions: Tensor  # (1, T) int64: each token's position in its row
    longest: int
    """Tokens of the longest row."""
    pad: Tensor  # (rows * longest,) int64: the token at each place of the padded form
    unpad: Tensor  # (T,) int64: a place in the padded form of each token

    @property
    def tokens(self) -> int:
        """T."""
        return self.positions.shape[1]

    @classmethod
    def make(
        cls, spans: Sequence[Span], rows: Sequence[Sequence[int]], shared: Sequence[int], device: torch.device
    ) -> ForwardPlan:
        """Lay out rows.

        Args:
            spans: who owns which tokens.
            rows: for each span the lengths of its rows.
            shared: for each span how many first tokens all its rows have in common; they stand in T once.
        """
        longest = max(max(lengths) for lengths in rows)
        pad: list[int] = []
        unpad: list[int] = []
        positions: list[int] = []
        for lengths, common in zip(rows, shared, strict=True):
            prefix = range(len(positions), len(positions) + common)
            for number, length in enumerate(lengths):
                row = len(pad)
                new = range(0 if number == 0 else common, length)
                own = range(len(positions), len(positions) + len(new))
                whole = [*own] if number == 0 else [*prefix, *own]
                # Padding repeats the row's own last token: a row that is not finite stays the only one.
                pad += whole + [whole[-1]] * (longest - length)
                unpad += range(row + new.start, row + length)
                positions += new
        return cls(
            tuple(spans),
            torch.tensor(positions, device=device)[None],
            longest,
            torch.tensor(pad, device=device),
            torch.tensor(unpad, device=device),
        )

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """What runs inside, on this thread, runs by this plan."""
        before = _BOUND.set(self)
        try:
            yield
        finally:
            _BOUND.reset(before)


_BOUND: Final[ContextVar[ForwardPlan]] = ContextVar("forward_plan")


def bound_plan() -> ForwardPlan:
    """The plan that this call runs by.

    Raises:
        RuntimeError: a layer of an injected base was called without one.
    """
    try:
        return _BOUND.get()
    except LookupError:
        raise RuntimeError(
            "a base with injected adapters runs by a plan alone: call it through `Base.logits`"
        ) from None


def recomputation() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """The contexts of a checkpointed block's two runs (`context_fn` of `torch.utils.checkpoint.checkpoint`): it is
    recomputed in the backward pass, maybe on another thread, under the plan that is bound now."""
    return contextlib.nullcontext(), bound_plan().bound()
