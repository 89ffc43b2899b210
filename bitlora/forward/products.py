"""Whose the tokens of a pass are, and products of each slot's tokens with each slot's matrix, all slots in one operation.

The tokens of a pass are a grid of equally many tokens of each slot, which is a batch of matrices as it stands, and tails
(`bitlora.forward.forward_plan`), which are padded with zeros into a second batch. Both are batched products: a slot's
numbers never meet another's, be they finite or not, and how many operations there are does not depend on the slots.

DoRA (arXiv 2402.09353) brings the rows of a slot's merged weight W + B A to norms that are trained:

    y = bias + (magnitude / norm) * (W x + B A x)      norm: of each row of W + B A, a constant in the backward pass

A pack computes y without it for all slots, and adds `gain * (y - bias)` to the tokens of those that have it, with gain =
magnitude / norm - 1: at the start that is exactly zero.

Axes: T tokens, N those of slots with DoRA, S slots that have room, I in, O out, R rank, K and M any widths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from bitlora.forward.dropout import dropout_mask
from bitlora.forward.forward_plan import ForwardPlan, Span, Tail
from bitlora.forward.host import send
from bitlora.quantizers.activations import int8


@dataclass(frozen=True, slots=True, eq=False)
class _Tails:
    """The tails of a pass, padded: (tails, longest, K)."""

    tokens: slice | Tensor
    count: int
    longest: int
    place: Tensor  # (tokens of the tails,) int64: in the padded form
    chosen: slice | Tensor

    def padded(self, x: Tensor) -> Tensor:
        """(T, K) -> (tails, longest, K), with zeros behind each tail."""
        out = x.new_zeros(self.count * self.longest, x.shape[1])
        return out.index_copy_(0, self.place, x[self.tokens]).view(self.count, self.longest, -1)

    def flat(self, x: Tensor) -> Tensor:
        """(tails, longest, K) -> (tokens of the tails, K)."""
        return x.flatten(0, 1).index_select(0, self.place)


class SlotProducts:
    """The products of one pass.

    Args:
        plan: its spans have all T tokens.
        places: for each span its slot's matrix among the S.
        absent: whether each span has none; left out, all have one. Nothing is computed for those that have none; where they
            stand between others, the others' tokens are copied.
    """

    def __init__(
        self, plan: ForwardPlan, places: Sequence[int], device: torch.device, absent: Sequence[bool] = ()
    ) -> None:
        absent = absent or [False] * len(places)
        there = [number for number, span in enumerate(plan.grid) if not absent[span]]
        tails = [tail for tail in plan.tails if not absent[tail.span]]
        self._grid = (len(plan.grid), plan.grid_tokens)
        self._there = _choice(there, device)
        self._chosen = _choice([places[plan.grid[number]] for number in there], device)
        self._tails: _Tails | None = None
        self._whole = len(there) == len(plan.grid) and len(tails) == len(plan.tails)
        if tails:
            longest = max(tail.stop - tail.start for tail in tails)
            place = [
                number * longest + token for number, tail in enumerate(tails) for token in range(tail.stop - tail.start)
            ]
            self._tails = _Tails(
                _tokens_of(tails, device),
                len(tails),
                longest,
                send([np.array(place)], device)[0],
                _choice([places[tail.span] for tail in tails], device),
            )

    def times(self, x: Tensor, matrices: Tensor, out: Tensor | None = None) -> Tensor:
        """Each token's row by its slot's matrix: (T, K), (S, K, M) -> (T, M), of one dtype; `out` where it is given."""
        tails, grid = self._tails, self._on_grid(x)
        if out is None:
            if tails is None and self._whole:
                return torch.bmm(grid, matrices[self._chosen]).flatten(0, 1)
            out = x.new_empty(len(x), matrices.shape[2])
        if not self._whole:
            out.zero_()
        if isinstance(self._there, slice):
            torch.bmm(grid, matrices[self._chosen], out=self._on_grid(out))
        else:
            self._grid_of(out).index_copy_(0, self._there, torch.bmm(grid, matrices[self._chosen]))
        if tails is not None:
            out[tails.tokens] = tails.flat(torch.bmm(tails.padded(x), matrices[tails.chosen]))
        return out

    def add_times(self, into: Tensor, x: Tensor, matrices: Tensor) -> None:
        """into += `times(x, matrices)`, where `into` may have another dtype."""
        if into.dtype != x.dtype:
            into += self.times(x, matrices)
            return
        if isinstance(self._there, slice):
            self._on_grid(into).baddbmm_(self._on_grid(x), matrices[self._chosen])
        else:
            self._grid_of(into).index_add_(0, self._there, torch.bmm(self._on_grid(x), matrices[self._chosen]))
        if (tails := self._tails) is not None:
            into[tails.tokens] += tails.flat(torch.bmm(tails.padded(x), matrices[tails.chosen]))

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add to each slot's matrix the product of its tokens: (S, K, M) += (T, K)ᵀ (T, M), where `into` may have another
        dtype than the other two."""
        _add_outer(into, self._chosen, self._on_grid(left), self._on_grid(right))
        if (tails := self._tails) is not None:
            _add_outer(into, tails.chosen, tails.padded(left), tails.padded(right))

    def _grid_of(self, x: Tensor) -> Tensor:
        spans, tokens = self._grid
        return x[: spans * tokens].view(spans, tokens, x.shape[1])

    def _on_grid(self, x: Tensor) -> Tensor:
        """Of x (T, K) those spans of the grid that have matrices, (spans, tokens, K): a view where they stand together."""
        return self._grid_of(x) if self._whole else self._grid_of(x)[self._there]


def _tokens_of(tails: Sequence[Tail], device: torch.device) -> slice | Tensor:
    """Their tokens, as a slice where they stand behind each other."""
    if all(one.stop == other.start for one, other in pairwise(tails)):
        return slice(tails[0].start, tails[-1].stop)
    return send([np.concatenate([np.arange(tail.start, tail.stop) for tail in tails])], device)[0]


def _choice(places: Sequence[int], device: torch.device) -> slice | Tensor:
    """These places, as a slice (which copies nothing) where they stand next to each other."""
    first = places[0] if places else 0
    if [*places] == [*range(first, first + len(places))]:
        return slice(first, first + len(places))
    return send([np.array(places)], device)[0]


def _add_outer(into: Tensor, chosen: slice | Tensor, left: Tensor, right: Tensor) -> None:
    if isinstance(chosen, Tensor):
        into.index_add_(0, chosen, torch.bmm(left.mT, right).to(into.dtype))
    elif into.dtype == left.dtype:
        into[chosen].baddbmm_(left.mT, right)
    else:
        into[chosen] += torch.bmm(left.mT, right)


@dataclass(frozen=True, slots=True, eq=False)
class DoraTokens:
    """The tokens of one pass whose slots have DoRA."""

    tokens: tuple[slice, ...]
    """Where they stand among the T; few, since such slots stand next to each other."""
    places: Tensor
    """(N,) int64: the place of each token's slot among the S."""

    @classmethod
    def of(cls, tokens: Sequence[tuple[int, int]], owners: Sequence[int], device: torch.device) -> DoraTokens | None:
        """None: there are none.

        Args:
            tokens: (start, stop), in order; those that are next to each other become one.
            owners: of each of them, the place of its slot.
        """
        if not tokens:
            return None
        joined: list[tuple[int, int]] = []
        for start, stop in tokens:
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, stop))
        places = np.repeat(owners, [stop - start for start, stop in tokens])
        return cls(tuple(slice(start, stop) for start, stop in joined), send([places], device)[0])

    def take(self, x: Tensor) -> Tensor:
        """Their rows of x (T, K), a copy: (N, K)."""
        return torch.cat([x[part] for part in self.tokens])

    def add(self, into: Tensor, rows: Tensor) -> None:
        """Add rows (N, K) to theirs of `into` (T, K)."""
        for part, own in zip(self.tokens, rows.split([part.stop - part.start for part in self.tokens]), strict=True):
            into[part] += own

    def grown(self, rows: Tensor, gain: Tensor) -> Tensor:
        """rows (N, O) times their slots' gain (S, O, 1)."""
        return rows * gain[..., 0].index_select(0, self.places).to(rows.dtype)

    def backward(
        self,
        products: SlotProducts,
        dy: Tensor,  # (T, O)
        whole: Tensor,  # (N, O): W x + B A x
        gain: Tensor,  # (S, O, 1)
        grad_gain: Tensor,  # (S, O, 1)
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of the gain; give dy as B and A see it, (T, O), and what of it is the gain's, (N, O)."""
        own = self.take(dy)
        each = torch.zeros_like(dy)
        self.add(each, own * whole)
        products.add_outer(grad_gain, each, each.new_ones(len(each), 1))
        grown = self.grown(own, gain)
        more = dy.clone()
        self.add(more, grown)
        return more, grown


@dataclass(frozen=True, slots=True)
class SlotTraits:
    """What the forward pass must know of a slot in a layer."""

    place: int
    """Of its matrices among the S of the slots that have room in the layer; S: it has none."""
    rank: int
    """0: it has no adapter there; where it has room, its matrices are zero."""
    dropout: float
    int8: bool
    dora: bool = False


NO_SLOTS: Final[Mapping[int, SlotTraits]] = {}


class Int8Part(NamedTuple):
    """Tokens next to each other that pass the 8-bit activations."""

    start: int
    stop: int
    rank: Tensor  # (stop - start, 1, 1): of their slot

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True, eq=False)
class Ownership:
    """Whose the tokens of one pass are, as the layers need it."""

    slots: Mapping[int, SlotTraits]
    products: SlotProducts
    kept_share: Tensor | None  # (T, 1) float32 or float64: 1 - dropout; None where nothing is dropped
    masked: tuple[tuple[Span, float, tuple[tuple[int, int, int], ...]], ...]
    """The spans that drop, how much, and where their tokens stand: (first token in the span, start, stop)."""
    int8: tuple[Int8Part, ...]
    dora: DoraTokens | None

    def drawn(self, layer: int, x: Tensor) -> Tensor | None:
        """Which entries of x (T, I) are kept: (T, I) bool; None: all."""
        if not self.masked:
            return None
        keep = torch.ones(x.shape, dtype=torch.bool, device=x.device)
        for span, dropout, stands in self.masked:
            mask = dropout_mask(span, layer, x.shape[1], dropout, x.device)
            for first, start, stop in stands:
                keep[start:stop] = mask[first : first + stop - start]
        return keep

    def dropped(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x (T, I) after dropout, or its gradient before it."""
        if keep is None or self.kept_share is None:
            return x
        return torch.where(keep, (x / self.kept_share).to(x.dtype), 0)

    def entering(self, h: Tensor) -> Tensor:
        """What A is given of h (T, I)."""
        if not self.int8:
            return h
        h = h.clone()
        for part in self.int8:
            h[part.tokens] = int8(h[part.tokens])
        return h

    def inside(self, z: Tensor) -> Tensor:
        """What B is given of z (T, M, R): z itself where no slot has 8-bit activations, else a copy."""
        if not self.int8:
            return z
        z = z.clone()
        for part in self.int8:
            z[part.tokens] = int8(z[part.tokens], part.rank)
        return z


_KNOWN: Final[WeakKeyDictionary[ForwardPlan, dict[int, Ownership]]] = WeakKeyDictionary()


def ownership(
    plan: ForwardPlan, slots: Mapping[int, SlotTraits], dtype: torch.dtype, device: torch.device
) -> Ownership | None:
    """Whose the tokens of this pass are: found before it, or at the first of the layers in which the slots are alike. None:
    nobody's that has an adapter in these layers.

    Args:
        dtype: what the adapters' products are computed in.
    """
    if not any(slots[span.slot].rank for span in plan.spans):
        return None
    known = _KNOWN.setdefault(plan, {})
    found = known.get(id(slots))
    if found is None or found.slots is not slots:
        found = known[id(slots)] = _make(plan, slots, dtype, device)
    return found


def _make(plan: ForwardPlan, slots: Mapping[int, SlotTraits], dtype: torch.dtype, device: torch.device) -> Ownership:
    traits = [slots[span.slot] for span in plan.spans]
    stands: list[list[tuple[int, int, int]]] = [[] for _ in traits]
    for place, span in enumerate(plan.grid):
        stands[span].append((0, place * plan.grid_tokens, (place + 1) * plan.grid_tokens))
    for tail in plan.tails:
        stands[tail.span].append((plan.grid_tokens * len(stands[tail.span]), tail.start, tail.stop))
    owner = np.zeros(plan.tokens, dtype=np.int64)
    for number, places in enumerate(stands):
        for _, start, stop in places:
            owner[start:stop] = number
    high = torch.promote_types(dtype, torch.float32)

    def column(values: Sequence[float]) -> Tensor:
        return send([np.array(values, dtype=np.float64)[owner]], device)[0][:, None].to(high)

    parts: list[tuple[int, int]] = []
    every = [(a, b, one) for one, places in zip(traits, stands, strict=True) for _, a, b in places]
    every.sort(key=lambda part: part[:2])
    for start, stop in ((a, b) for a, b, one in every if one.int8):
        if parts and parts[-1][1] == start:
            start = parts.pop()[0]
        parts.append((start, stop))
    widths = column([one.rank for one in traits])[..., None]
    masked = tuple(
        (span, one.dropout, tuple(places))
        for span, one, places in zip(plan.spans, traits, stands, strict=True)
        if one.dropout > 0 and span.seed is not None
    )
    return Ownership(
        slots,
        SlotProducts(plan, [one.place for one in traits], device, [not one.rank for one in traits]),
        column([1 - one.dropout for one in traits]) if masked else None,
        masked,
        tuple(Int8Part(start, stop, widths[start:stop]) for start, stop in parts),
        DoraTokens.of(
            [(a, b) for a, b, one in every if one.dora], [one.place for _, _, one in every if one.dora], device
        ),
    )
