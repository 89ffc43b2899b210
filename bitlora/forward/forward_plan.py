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
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from bitlora.forward.host import send
from bitlora.forward.kv_cache import SeenTokens

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
class RowGather:
    """Which token stands at each place of whole rows, and where each token stands."""

    index: Tensor  # (places,) int64: the token
    first: Tensor  # (T,) int64: a place of each token
    again: tuple[Tensor, Tensor] | None
    """(U,) int64: the tokens that several rows have; and (U, rows) int64: their further places, -1 where there are
    fewer."""

    def of(self, x: Tensor, axis: int) -> Tensor:
        """A token's numbers at each of its places: (…, T, …) -> (…, places, …)."""
        found: Tensor = _GatheredRows.apply(x, self, axis)  # type: ignore[no-untyped-call]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class RowBounds:
    """Where attention that needs no padding finds the rows: the tokens of each row behind those of the one before, as
    queries, without what it shares with the slot's first row; as keys, with it."""

    queries: Tensor  # (rows + 1,) int32: where the queries of each row begin, and where the last one's end
    keys: Tensor  # (rows + 1,) int32: the same of the keys
    most_queries: int
    """Queries of the row that has most; keys are `ForwardPlan.longest`."""
    chosen: RowGather | None
    """The place in the pass of each key; None: they are the pass as it stands."""


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
    again: tuple[Tensor, Tensor] | None
    """`RowGather.again`, in the padded form."""
    order: Tensor | None  # (T,) int64: the place in the rows' order of each token of the pass; None: the same
    inverse: Tensor | None  # (T,) int64: the place in the pass of each token in the rows' order
    grid: tuple[int, ...]
    """The spans that fill the grid, in order: the first `grid_tokens` tokens of each stand behind each other there."""
    grid_tokens: int
    tails: tuple[Tail, ...]
    """What is left of the spans, behind the grid."""
    past: SeenTokens | None = None
    """Where rows are written further, token by token: what is kept of them. None: the rows are whole."""

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
        shared_tokens: list[NDArray[np.int64]] = []
        shared_places: list[NDArray[np.int64]] = []
        most = max(map(len, rows)) - 1
        tokens = row = 0
        for lengths, common in zip(rows, shared, strict=True):
            prefix = np.arange(tokens, tokens + common)
            if common and len(lengths) > 1:
                places = np.full((common, most), -1)
                further = row + longest * np.arange(1, len(lengths))
                places[:, : len(further)] = further + np.arange(common)[:, None]
                shared_tokens.append(prefix)
                shared_places.append(places)
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
        again = [inverse[np.concatenate(shared_tokens)], np.concatenate(shared_places)] if shared_tokens else []
        if order is not None:
            position, pad, unpad, chosen = position[order], inverse[pad], unpad[order], inverse[chosen]
        plain = _stands(pad, tokens)
        counts = [len(own) for own in positions]
        bounds = [np.cumsum([0, *each]) for each in (counts, map(len, keys))]
        starts = np.cumsum([0, *map(len, keys)])

        def as_key(place: NDArray[np.int64]) -> NDArray[np.int64]:
            return np.where(place < 0, -1, starts[place // longest] + place % longest)

        chosen_too = [] if _stands(chosen, tokens) else [chosen, as_key(unpad), *map(as_key, again[1:])]

        arrays = [
            *[position, *bounds, *chosen_too],
            *([] if plain else [pad, unpad]),
            *again,
            *([] if order is None else [order, inverse]),
        ]
        sent = iter(send(arrays, device))
        place, query_ends, key_ends = next(sent)[None], next(sent).int(), next(sent).int()
        key_places = [next(sent) for _ in chosen_too]
        to_pad, from_pad = (None, None) if plain else (next(sent), next(sent))
        repeats = (next(sent), next(sent)) if again else None
        gather = None
        if key_places:
            key_repeats = None if repeats is None else (repeats[0], key_places[2])
            gather = RowGather(key_places[0], key_places[1], key_repeats)
        return cls(
            tuple(spans),
            place,
            longest,
            RowBounds(query_ends, key_ends, max(counts), gather),
            to_pad,
            from_pad,
            repeats,
            None if order is None else next(sent),
            None if order is None else next(sent),
            grid,
            grid_tokens,
            tails,
        )

    def padded(self, x: Tensor) -> Tensor:
        """Every row whole, padded to the longest: (heads, T, width) -> (rows, heads, longest, width)."""
        whole = x
        if self.pad is not None and self.unpad is not None:
            whole = RowGather(self.pad, self.unpad, self.again).of(x, 1)
        heads, _, width = x.shape
        return whole.view(heads, -1, self.longest, width).transpose(0, 1)

    def unpadded(self, x: Tensor) -> Tensor:
        """Each token where it stands in the pass: (rows, heads, longest, width) -> (T, heads, width)."""
        tokens = x.transpose(1, 2).flatten(0, 1)
        return tokens if self.unpad is None else _Unpadded.apply(tokens, self)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """What runs inside, on this thread, runs by this plan."""
        before = _BOUND.set(self)
        try:
            yield
        finally:
            _BOUND.reset(before)


class _GatheredRows(torch.autograd.Function):
    """Gathers rows; backward, what their tokens have.

    Nobody looks at padding, and so it has no gradient. A token that several rows begin with has the sum over them, always
    in the same order: adding each to it as it comes would give other last bits each time on a GPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: RowGather, axis: int) -> Tensor:
        ctx.gather, ctx.axis = gather, axis
        return x.index_select(axis, gather.index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        gather: RowGather = ctx.gather
        axis: int = ctx.axis
        (grad,) = grads
        dx = grad.index_select(axis, gather.first)
        if gather.again is not None:
            tokens, places = gather.again
            further = grad.index_select(axis, places.flatten().clamp(min=0)).unflatten(axis, places.shape)
            nowhere = (places < 0).view(*([1] * axis), *places.shape, *([1] * (grad.ndim - axis - 1)))
            dx.index_add_(axis, tokens, further.masked_fill(nowhere, 0).sum(axis + 1))  # each token once
        return dx, None, None


class _Unpadded(torch.autograd.Function):
    """Gathers the tokens from the rows that they are counted in; backward, puts them there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: ForwardPlan) -> Tensor:
        ctx.plan, ctx.places = plan, len(x)
        assert plan.unpad is not None
        return x.index_select(0, plan.unpad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad.new_zeros(ctx.places, *grad.shape[1:]).index_copy_(0, ctx.plan.unpad, grad), None


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
