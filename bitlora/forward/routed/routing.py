"""Where a layer's router sends each token, and products of every copy of a token with its own expert's matrix, or with its
own slot's adapter of that expert.

A token goes to some experts, a copy of it to each. The copies stand in the order of their experts, and of one expert in
the order of their slots: so those of an expert are next to each other, and so are those of a slot with an expert. A product
with another matrix for each such group is one operation on a GPU (`torch.nn.functional.grouped_mm`), however many slots
there are; on a CPU it is one for each group, over views. Both ways of a token's copies, there and back, are gathers, in the
backward pass too: nothing is added where two may write at once, so that sums come out alike each time.

Axes: T tokens of the pack, P copies (T times the experts of a token), E experts, S slots, K and M any widths.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.host import send

GROUPED: Final = (torch.float32, torch.bfloat16, torch.float16)
"""What `grouped_mm` knows."""


class GroupProducts:
    """Products with another matrix for each group of rows that are next to each other.

    Args:
        ends: (G,) int64, the row behind each group.
        slots: how many groups an expert has: the g-th is of the expert g // slots, and of the slot g % slots.
        absent: slots whose matrices are zero in this layer; on a CPU nothing is computed for them.
        grouped: with `grouped_mm`; None: where that is one operation.
    """

    def __init__(self, ends: Tensor, slots: int, absent: Collection[int] = (), grouped: bool | None = None) -> None:
        self._ends = ends
        self._slots = slots
        self._absent = absent
        self._grouped = ends.device.type == "cuda" if grouped is None else grouped

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Each row by its group's matrix: (P, K), (E, S, K, M) -> (P, M), of one dtype."""
        if x.dtype in GROUPED and self._grouped:
            found = F.grouped_mm(_wide(x), _wide(_wide(matrices.flatten(0, 1), -2)), offs=self._offsets)
            return found[:, : matrices.shape[-1]]
        out = x.new_zeros(len(x), matrices.shape[-1])
        for expert, slot, rows in self._runs:
            torch.mm(x[rows], matrices[expert, slot], out=out[rows])
        return out

    def add_times(self, into: Tensor, x: Tensor, matrices: Tensor) -> None:
        """into += `times(x, matrices)`, where `into` may have another dtype."""
        if into.dtype != x.dtype or (x.dtype in GROUPED and self._grouped):
            into += self.times(x, matrices)
            return
        for expert, slot, rows in self._runs:
            into[rows].addmm_(x[rows], matrices[expert, slot])

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add to each group's matrix the product of its rows: (E, S, K, M) += (P, K)ᵀ (P, M), where `into` may have another
        dtype than the other two."""
        if left.dtype in GROUPED and self._grouped:
            found = F.grouped_mm(_wide(left).mT, _wide(right), offs=self._offsets)
            found.masked_fill_(self._empty, 0)
            into += found[:, : left.shape[1], : right.shape[1]].view(into.shape)
            return
        for expert, slot, rows in self._runs:
            into[expert, slot] += left[rows].mT @ right[rows]

    @cached_property
    def _offsets(self) -> Tensor:
        return self._ends.to(torch.int32)

    @cached_property
    def _empty(self) -> Tensor:
        """(G, 1, 1) bool."""
        return (torch.diff(self._ends, prepend=self._ends.new_zeros(1)) == 0)[:, None, None]

    @cached_property
    def _runs(self) -> list[tuple[int, int, slice]]:
        """The expert, the slot and the rows of each group that has any; none on the meta device, which computes nothing."""
        if self._ends.device.type == "meta":
            return []
        ends: list[int] = self._ends.tolist()
        return [
            (*divmod(group, self._slots), slice(start, stop))
            for group, (start, stop) in enumerate(zip([0, *ends], ends, strict=False))
            if start < stop and group % self._slots not in self._absent
        ]


def _wide(x: Tensor, axis: int = -1) -> Tensor:
    """With zeros behind an axis where rows would not begin at a multiple of 16 bytes, as `grouped_mm` wants it."""
    missing = -x.shape[axis] % (16 // x.itemsize)
    if not missing:
        return x
    return F.pad(x, (0, missing) if axis == -1 else (0, 0, 0, missing))


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """Where the copies of the tokens of one pass stand in one layer."""

    copies: int
    """Of each token."""
    order: Tensor  # (P,) int64: the copy that stands at each place, counted token by token
    inverse: Tensor  # (P,) int64: the place of each
    expert: Tensor  # (P,) int64: at each place, whose
    ends: Tensor  # (E * S,) int64
    slots: int
    """S; 1 where no token has an adapter."""

    @classmethod
    def make(cls, chosen: Tensor, experts: int, owners: Tensor | None, slots: int) -> Routing:
        """Of one layer.

        Args:
            chosen: (T, copies) int64, the router's.
            owners: (T,) int64, the place of each token's slot among the S; None: no token has an adapter.
        """
        copies = chosen.shape[1]
        if owners is None:
            slots, key = 1, chosen.reshape(-1)
        else:
            key = (chosen * slots + owners[:, None]).reshape(-1)
        order = torch.argsort(key, stable=True)
        places = torch.arange(len(key), device=key.device)
        inverse = torch.empty_like(order).index_copy_(0, order, places)
        ordered = key.index_select(0, order)
        ends = torch.searchsorted(ordered, torch.arange(1, experts * slots + 1, device=key.device))
        return cls(copies, order, inverse, ordered // slots, ends, slots)

    def by_expert(self) -> GroupProducts:
        """Products with a matrix of each expert: (E, 1, K, M)."""
        return GroupProducts(self.ends[self.slots - 1 :: self.slots], 1)

    def by_owner(self, absent: Collection[int]) -> GroupProducts:
        """Products with a matrix of each expert and slot: (E, S, K, M)."""
        return GroupProducts(self.ends, self.slots, absent)

    def spread(self, x: Tensor) -> Tensor:
        """A copy of each token at each of its places: (T, K) -> (P, K)."""
        return _Spread.apply(x, self)  # type: ignore[no-untyped-call, no-any-return]

    def gathered(self, y: Tensor) -> Tensor:
        """The sum of a token's copies: (P, K) -> (T, K)."""
        return _SummedCopies.apply(y, self)  # type: ignore[no-untyped-call, no-any-return]

    def placed(self, weights: Tensor) -> Tensor:
        """What the router weighs each copy with, at its place: (T, copies) -> (P, 1)."""
        return _Placed.apply(weights.reshape(-1, 1), self)  # type: ignore[no-untyped-call, no-any-return]


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return x.index_select(0, routing.order // routing.copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum_of_copies(grads[0], ctx.routing), None


class _SummedCopies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return _sum_of_copies(y, routing)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.routing.order // ctx.routing.copies), None


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        return weights.index_select(0, routing.order)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(0, ctx.routing.inverse), None


def _sum_of_copies(y: Tensor, routing: Routing) -> Tensor:
    return y.index_select(0, routing.inverse).view(-1, routing.copies, y.shape[1]).sum(1)


_OWNERS: Final[WeakKeyDictionary[ForwardPlan, Tensor]] = WeakKeyDictionary()


def owners(plan: ForwardPlan, places: dict[int, int], device: torch.device) -> Tensor:
    """Whose each token of a pass is, found once: (T,) int64, the place of its slot.

    Args:
        plan: its spans have all T tokens.
        places: of each slot, by number.
    """
    found = _OWNERS.get(plan)
    if found is None:
        of = np.zeros(plan.tokens, dtype=np.int64)
        for number, span in enumerate(plan.grid):
            of[number * plan.grid_tokens : (number + 1) * plan.grid_tokens] = places[plan.spans[span].slot]
        for tail in plan.tails:
            of[tail.start : tail.stop] = places[plan.spans[tail.span].slot]
        found = _OWNERS[plan] = send([of], device)[0]
    return found
