"""Whose the tokens of a pass are, as the layers need it: what of them is dropped, and what passes through 8 bits or DoRA.

Axes: T tokens of the pack, M layers of a group, R rank, I in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from bitlora.forward.dora import DoraTokens
from bitlora.forward.dropout import dropout_mask
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.host import send
from bitlora.forward.products import SlotProducts
from bitlora.quantizers.activations import int8


@dataclass(frozen=True, slots=True)
class SlotTraits:
    """What the forward pass must know of a slot in a layer."""

    place: int
    """Of its matrices among the S."""
    rank: int
    """0: it has no adapter there; its matrices are zero."""
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
    """Whose the tokens of this pass are: found at the first of the layers in which the slots are alike. None: nobody's that
    has an adapter in these layers.

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
        SlotProducts(plan, [one.place for one in traits], device),
        column([1 - one.dropout for one in traits]) if masked else None,
        masked,
        tuple(Int8Part(start, stop, widths[start:stop]) for start, stop in parts),
        DoraTokens.of(
            [(a, b) for a, b, one in every if one.dora], [one.place for _, _, one in every if one.dora], device
        ),
    )
