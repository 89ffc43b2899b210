"""The plan of one forward pass: which tokens there are, whose they are, and where attention finds the rows again.

The rows of all slots stand behind each other in one sequence of T tokens without padding, and what the rows of a slot
begin with in common (a system prompt, say) stands there once: the frozen layers, which are most of the work, compute
nothing twice and nothing for nothing. Only attention must know the rows apart. It gathers them just for itself, whole and
padded to the longest row, on the right: under a causal mask no real token ever looks at a padding one.

The slots' adapters are products of many matrices with many matrices, of equal shapes, so in the pass equally many tokens
of each slot come first, a grid, and behind it what longer slots have left. Callers see none of that: they give and get
tokens in the rows' order.

A plan never changes. It reaches the layers inside a transformers model, whose calls have no room for it, by being bound
for as long as the call lasts (`ForwardPlan.bound`); a checkpointed block is recomputed under the plan it first ran under.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from bitlora.forward.host import send

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
class Tail:
    """The tokens of a span that stand behind the grid, one after another."""

    span: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class RowBounds:
    """Where attention that needs no padding finds the rows: the tokens of each row behind those of the one before, as
    queries, without what it shares with the slot's first row; as keys, with it."""

    queries: Tensor  # (rows + 1,) int32: where the queries of each row begin, and where the last one's end
    keys: Tensor  # (rows + 1,) int32: the same of the keys
    most_queries: int
    """Queries of the row that has most; keys are `ForwardPlan.longest`."""
    chosen: Tensor | None  # (keys,) int64: the place in the pass of each key; None: they are the pass as it stands


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ForwardPlan:
    """One forward pass over T tokens."""

    spans: tuple[Span, ...]
    """Who owns which tokens, in the rows' order."""
    positions: Tensor  # (1, T) int64: each token's position in its row
    longest: int
    """Tokens of the longest row."""
    rows: RowBounds
    pad: (
        Tensor | None
    )  # (rows * longest,) int64: the token at each place of the padded form; None: it is T as it stands
    unpad: Tensor | None  # (T,) int64: a place in the padded form of each token
    order: Tensor | None  # (T,) int64: the place in the rows' order of each token of the pass; None: the same
    inverse: Tensor | None  # (T,) int64: the place in the pass of each token in the rows' order
    grid: tuple[int, ...]
    """The spans that fill the grid, in order: the first `grid_tokens` tokens of each stand behind each other there."""
    grid_tokens: int
    tails: tuple[Tail, ...]
    """What is left of the spans, behind the grid."""

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
        pads: list[NDArray[np.int64]] = []
        unpads: list[NDArray[np.int64]] = []
        keys: list[NDArray[np.int64]] = []
        positions: list[NDArray[np.int64]] = []
        tokens = row = 0
        for lengths, common in zip(rows, shared, strict=True):
            prefix = np.arange(tokens, tokens + common)
            for number, length in enumerate(lengths):
                first = 0 if number == 0 else common
                own = np.arange(tokens, tokens + length - first)
                # Padding repeats the row's own last token: a row that is not finite stays the only one.
                whole = own if number == 0 else np.concatenate([prefix, own])
                keys.append(whole)
                pads.append(np.concatenate([whole, np.full(longest - length, own[-1])]))
                unpads.append(np.arange(row + first, row + length))
                positions.append(np.arange(first, length))
                tokens += length - first
                row += longest
        position, pad, unpad, chosen = (np.concatenate(parts) for parts in (positions, pads, unpads, keys))
        order, inverse, grid, grid_tokens, tails = _arranged(spans, tokens)
        if order is not None:
            position, pad, unpad, chosen = position[order], inverse[pad], unpad[order], inverse[chosen]
        plain = _stands(pad, tokens)
        counts = [len(own) for own in positions]
        bounds = [np.cumsum([0, *each]) for each in (counts, map(len, keys))]
        chosen_too = [] if _stands(chosen, tokens) else [chosen]

        arrays = [
            *[position, *bounds, *chosen_too],
            *([] if plain else [pad, unpad]),
            *([] if order is None else [order, inverse]),
        ]
        sent = iter(send(arrays, device))
        return cls(
            tuple(spans),
            next(sent)[None],
            longest,
            RowBounds(next(sent).int(), next(sent).int(), max(counts), next(sent) if chosen_too else None),
            None if plain else next(sent),
            None if plain else next(sent),
            None if order is None else next(sent),
            None if order is None else next(sent),
            grid,
            grid_tokens,
            tails,
        )

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """What runs inside, on this thread, runs by this plan."""
        before = _BOUND.set(self)
        try:
            yield
        finally:
            _BOUND.reset(before)


def _stands(places: NDArray[np.int64], tokens: int) -> bool:
    """Are these the places of all tokens, in order?"""
    return len(places) == tokens and np.array_equal(places, np.arange(tokens))


def _arranged(
    spans: Sequence[Span], tokens: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64], tuple[int, ...], int, tuple[Tail, ...]]:
    """The pass's order of tokens: a grid of as many tokens of each span as fill the largest one, and what is left."""
    identity = np.arange(tokens)
    lengths = [span.stop - span.start for span in spans]
    if not spans:
        return None, identity, (), 0, ()
    height = max(lengths, key=lambda length: (length * sum(other >= length for other in lengths), length))
    grid = tuple(number for number, length in enumerate(lengths) if length >= height)
    parts = [np.arange(spans[number].start, spans[number].start + height) for number in grid]
    tails: list[Tail] = []
    end = height * len(grid)
    for number, span in enumerate(spans):
        start = span.start + height if number in grid else span.start
        if start < span.stop:
            parts.append(np.arange(start, span.stop))
            tails.append(Tail(number, end, end + span.stop - start))
            end += span.stop - start
    order = np.concatenate(parts)
    if np.array_equal(order, identity):
        return None, identity, grid, height, tuple(tails)
    inverse = np.empty_like(order)
    inverse[order] = identity
    return order, inverse, grid, height, tuple(tails)


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
            "a base with injected adapters runs by a plan alone: call it through `Base.hidden`"
        ) from None


def recomputation() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """The contexts of a checkpointed block's two runs (`context_fn` of `torch.utils.checkpoint.checkpoint`): it is
    recomputed in the backward pass, maybe on another thread, under the plan that is bound now."""
    return contextlib.nullcontext(), bound_plan().bound()
