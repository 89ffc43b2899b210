"""Where a layer's router sends each token, and products of every copy of a token with its own expert's matrix, or with its
own slot's adapter of that expert.

A token goes to some experts, a copy of it to each. The copies stand in the order of their experts, and of one expert in
the order of their slots: so those of an expert are next to each other, and so are those of a slot with an expert. A product
with another matrix for each such group is one operation on a GPU (`torch.nn.functional.grouped_mm`), however many slots
there are; on a CPU it is one for each group, over views. Both ways of a token's copies, there and back, are gathers, in the
backward pass too: nothing is added where two may write at once, so that sums come out alike each time.

Tokens of slots without adapters on a layer's experts are nobody's: their copies stand behind the others of an expert.

Axes: T tokens of the pack, P copies (T times the experts of a token), E experts, S slots that have room, K and M any
widths.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
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
from bitlora.forward.products import SlotTraits

GROUPED: Final = (torch.float32, torch.bfloat16, torch.float16)
"""What `grouped_mm` knows."""


class GroupProducts:
    """Products with another matrix for each group of rows that are next to each other.

    Args:
        ends: (G,) int64, the row behind each group.
        slots: S; the g-th group of an expert is of the slot g.
        absent: slots whose matrices are zero in this layer; on a CPU nothing is computed for them.
        others: behind those of the S slots an expert has one more group, nobody's: what comes of its rows is zero.
        grouped: with `grouped_mm`; None: where that is one operation.
    """

    def __init__(
        self,
        ends: Tensor,
        slots: int,
        absent: Collection[int] = (),
        others: bool = False,
        grouped: bool | None = None,
    ) -> None:
        self._ends = ends
        self._slots = slots
        self._groups = slots + others
        self._absent = {*absent, slots}
        self._grouped = ends.device.type == "cuda" if grouped is None else grouped

    def times(self, x: Tensor, matrices: Tensor) -> Tensor:
        """Each row by its group's matrix: (P, K), (E, S, K, M) -> (P, M), of one dtype."""
        if x.dtype in GROUPED and self._grouped:
            found = F.grouped_mm(_wide(x), _wide(_wide(matrices.flatten(0, 1), -2)), offs=self._offsets)
            return self._without_others(found[:, : matrices.shape[-1]])
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
            left, right = self._without_others(left), self._without_others(right)
            found = F.grouped_mm(_wide(left).mT, _wide(right), offs=self._offsets)
            found.masked_fill_(self._empty, 0)
            into += found[:, : left.shape[1], : right.shape[1]].view(into.shape)
            return
        for expert, slot, rows in self._runs:
            into[expert, slot] += left[rows].mT @ right[rows]

    @cached_property
    def _owned(self) -> Tensor:
        """(E * S,) int64: the row behind each slot's group, that of the last with nobody's."""
        if self._groups == self._slots:
            return self._ends
        ends = self._ends.view(-1, self._groups)
        return torch.cat([ends[:, : self._slots - 1], ends[:, -1:]], dim=1).flatten()

    @cached_property
    def _offsets(self) -> Tensor:
        return self._owned.to(torch.int32)

    @cached_property
    def _empty(self) -> Tensor:
        """(E * S, 1, 1) bool."""
        return (torch.diff(self._owned, prepend=self._owned.new_zeros(1)) == 0)[:, None, None]

    def _without_others(self, x: Tensor) -> Tensor:
        """x (P, K) with zeros in nobody's rows, finite or not."""
        if self._groups == self._slots:
            return x
        group = torch.searchsorted(self._ends, torch.arange(len(x), device=x.device), right=True)
        return x.masked_fill((group % self._groups == self._slots)[:, None], 0)

    @cached_property
    def _runs(self) -> list[tuple[int, int, slice]]:
        """The expert, the slot and the rows of each group that has any; none on the meta device, which computes nothing."""
        if self._ends.device.type == "meta":
            return []
        ends: list[int] = self._ends.tolist()
        return [
            (*divmod(group, self._groups), slice(start, stop))
            for group, (start, stop) in enumerate(zip([0, *ends], ends, strict=False))
            if start < stop and group % self._groups not in self._absent
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
    ends: Tensor  # (E * S,) int64, or (E * (S + 1),) with nobody's
    slots: int
    """S; 1 where no token has an adapter."""
    others: bool
    """Some tokens are nobody's."""

    @classmethod
    def make(cls, chosen: Tensor, experts: int, owners: Tensor | None, slots: int, others: bool = False) -> Routing:
        """Of one layer.

        Args:
            chosen: (T, copies) int64, the router's.
            owners: (T,) int64, the place of each token's slot among the S, S of nobody's; None: no token has an adapter.
        """
        copies, groups = chosen.shape[1], slots + others
        key = chosen.reshape(-1) if owners is None else (chosen * groups + owners[:, None]).reshape(-1)
        order = torch.argsort(key, stable=True)
        places = torch.arange(len(key), device=key.device)
        inverse = torch.empty_like(order).index_copy_(0, order, places)
        ordered = key.index_select(0, order)
        ends = torch.searchsorted(ordered, torch.arange(1, experts * groups + 1, device=key.device))
        return cls(copies, order, inverse, ordered // groups, ends, slots, others)

    def by_expert(self) -> GroupProducts:
        """Products with a matrix of each expert: (E, 1, K, M)."""
        groups = self.slots + self.others
        return GroupProducts(self.ends[groups - 1 :: groups], 1)

    def by_owner(self, absent: Collection[int]) -> GroupProducts:
        """Products with a matrix of each expert and slot: (E, S, K, M)."""
        return GroupProducts(self.ends, self.slots, absent, self.others)

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


_OWNERS: Final[WeakKeyDictionary[ForwardPlan, tuple[Mapping[int, SlotTraits], Tensor]]] = WeakKeyDictionary()


def owners(plan: ForwardPlan, slots: Mapping[int, SlotTraits], device: torch.device) -> Tensor:
    """Whose each token of a pass is, found once for all layers in which slots are alike: (T,) int64, the place of its slot.

    Args:
        plan: its spans have all T tokens.
        slots: by number.
    """
    known, found = _OWNERS.get(plan, (None, None))
    if found is None or known is not slots:
        of = np.zeros(plan.tokens, dtype=np.int64)
        for number, span in enumerate(plan.grid):
            of[number * plan.grid_tokens : (number + 1) * plan.grid_tokens] = slots[plan.spans[span].slot].place
        for tail in plan.tails:
            of[tail.start : tail.stop] = slots[plan.spans[tail.span].slot].place
        found = send([of], device)[0]
        _OWNERS[plan] = slots, found
    return found
