"""Many adapters over one frozen linear layer.

The tokens of a pack stand in one sequence without padding: x is (T, I), and each token is a slot's. The frozen layer is
called once for all T; the adapters of all slots are then added in products that hold them all
(`bitlora.forward.products`). Their matrices stand in one tensor, with zeros beyond a slot's own rank: those give zeros,
and zeros as their gradient, so that they stay zero. A slot's arithmetic never sees another slot's numbers, and the norm of
`int8` activations counts real entries alone.

The quantizer is outside autograd: a `LayerAdapters` holds the quantized copies in the compute dtype, and their gradients
are added straight into the latent weights' (straight-through).

Axes: T tokens of the pack, N tokens of a slot, S slots, R the largest rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlora.base.linears import features, plain_weight
from bitlora.forward.dropout import dropout_mask
from bitlora.forward.forward_plan import ForwardPlan, Span, bound_plan
from bitlora.forward.products import SlotProducts
from bitlora.quantizers.activations import int8, int8_backward


@dataclass(frozen=True, slots=True)
class SlotTraits:
    """What the forward pass must know of a slot in a layer."""

    place: int
    """Of its matrices among the S."""
    rank: int
    """0: it has no adapter there; its matrices are zero."""
    scaling: float
    dropout: float
    int8: bool


@dataclass(slots=True)
class LayerAdapters:
    """The adapters of all slots in one layer."""

    a: Tensor  # (S, R, I) quantized, zero beyond a slot's rank; the adapters' products are computed in its dtype
    b: Tensor  # (S, O, R) quantized, the same dtype
    grad_a: Tensor  # (S, R, I) float32 (float64): views of the slots' flat gradients
    grad_b: Tensor  # (S, O, R)


NO_SLOTS: Final[Mapping[int, SlotTraits]] = {}


class MultiLoraLinear(nn.Module):
    """A frozen linear layer with an adapter for each slot.

    Args:
        base: the frozen layer: `nn.Linear`, bitsandbytes' `Linear4bit`, or transformers' `Conv1D`.
        name: its name in the model.
        index: its number among the linear layers of the model's blocks; the dropout masks hang on it.
        dtype: what the products are computed in.
    """

    def __init__(self, base: nn.Module, name: str, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base: Any = base
        self.in_features, self.out_features = features(base)
        self.name = name
        self.index = index
        self.dtype = dtype
        self.slots: Mapping[int, SlotTraits] = NO_SLOTS
        """The slots that there are, by number; whoever changes them gives another mapping, the same one to all layers in
        which they are alike."""
        self.adapters: LayerAdapters | None = None

    def base_weight(self) -> Tensor:
        """(O, I) in the compute dtype. NF4 is dequantized at each call, exactly as bitsandbytes' own products do it."""
        weight: Any = self.base.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return plain_weight(self.base)
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.detach(), state).to(self.dtype)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), where the leading axes hold the T tokens of the plan that this call runs by."""
        plan = bound_plan()
        if x[..., 0].numel() != plan.tokens:
            raise NotImplementedError(f"{self.name} is not called with every token: routed layers cannot be packed yet")
        anchor = None
        if not x.requires_grad and torch.is_grad_enabled():
            anchor = torch.empty(0, device=x.device, requires_grad=True)
        owned = _ownership(plan, self, x.device)
        y: Tensor = _BaseAndAdapters.apply(x.reshape(-1, x.shape[-1]), anchor, self, owned)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


class _Int8Part(NamedTuple):
    """Tokens next to each other that pass the 8-bit activations."""

    start: int
    stop: int
    rank: Tensor  # (stop - start, 1): of their slot

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True, eq=False)
class _Ownership:
    """Whose the tokens of one pass are, as the layers need it."""

    slots: Mapping[int, SlotTraits]
    products: SlotProducts
    scaling: Tensor  # (T, 1) float32 or float64
    kept_share: Tensor | None  # (T, 1), the same: 1 - dropout; None where nothing is dropped
    masked: tuple[tuple[Span, float, tuple[tuple[int, int, int], ...]], ...]
    """The spans that drop, how much, and where their tokens stand: (first token in the span, start, stop)."""
    int8: tuple[_Int8Part, ...]

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
        """What B is given of z (T, R): z itself where no slot has 8-bit activations, else a copy."""
        if not self.int8:
            return z
        z = z.clone()
        for part in self.int8:
            z[part.tokens] = int8(z[part.tokens], part.rank)
        return z


_OWNERSHIP: Final[WeakKeyDictionary[ForwardPlan, dict[int, _Ownership]]] = WeakKeyDictionary()


def _ownership(plan: ForwardPlan, layer: MultiLoraLinear, device: torch.device) -> _Ownership | None:
    """Whose the tokens of this pass are: found at the first layer of those in which the slots are alike. None: nobody's
    that has an adapter in this layer."""
    if layer.adapters is None or not any(layer.slots[span.slot].rank for span in plan.spans):
        return None
    known = _OWNERSHIP.setdefault(plan, {})
    found = known.get(id(layer.slots))
    if found is None or found.slots is not layer.slots:
        found = known[id(layer.slots)] = _make_ownership(plan, layer.slots, layer.adapters.a.dtype, device)
    return found


def _make_ownership(
    plan: ForwardPlan, slots: Mapping[int, SlotTraits], dtype: torch.dtype, device: torch.device
) -> _Ownership:
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
        return torch.tensor(values, dtype=high)[torch.from_numpy(owner), None].to(device)

    parts: list[tuple[int, int]] = []
    for start, stop in sorted(
        (a, b) for one, places in zip(traits, stands, strict=True) for _, a, b in places if one.int8
    ):
        if parts and parts[-1][1] == start:
            start = parts.pop()[0]
        parts.append((start, stop))
    widths = column([one.rank for one in traits])
    masked = tuple(
        (span, one.dropout, tuple(places))
        for span, one, places in zip(plan.spans, traits, stands, strict=True)
        if one.dropout > 0 and span.seed is not None
    )
    return _Ownership(
        slots,
        SlotProducts(plan, [one.place for one in traits], device),
        column([one.scaling for one in traits]),
        column([1 - one.dropout for one in traits]) if masked else None,
        masked,
        tuple(_Int8Part(start, stop, widths[start:stop]) for start, stop in parts),
    )


class _BaseAndAdapters(torch.autograd.Function):
    """The products of the base and of all adapters, with their gradients written out.

    Autograd is told of x alone; `anchor` makes it call `backward` also where x needs no gradient (the first block).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, layer: MultiLoraLinear, owned: _Ownership | None) -> Tensor:
        y = F.linear(x, layer.base_weight(), layer.base.bias)
        ctx.layer, ctx.owned = layer, owned
        if owned is None or layer.adapters is None:
            ctx.save_for_backward(x)
            return y
        adapters = layer.adapters
        keep = owned.drawn(layer.index, x)
        h = owned.entering(owned.dropped(x.to(adapters.a.dtype), keep))
        z = owned.products.times(h, adapters.a.mT)
        scaled = owned.inside(z).mul_(owned.scaling)
        owned.products.add_times(y, scaled, adapters.b.mT)
        ctx.save_for_backward(x, scaled, keep, z if owned.int8 else None)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        dy = grads[0].contiguous()
        x, *kept = ctx.saved_tensors
        layer: MultiLoraLinear = ctx.layer
        owned: _Ownership | None = ctx.owned
        dx = dy @ layer.base_weight() if ctx.needs_input_grad[0] else None
        if owned is None or layer.adapters is None:
            return dx, None, None, None
        adapters, products = layer.adapters, owned.products
        scaled, keep, z = kept
        dys = dy.to(adapters.b.dtype)
        dropped = owned.dropped(x.to(adapters.a.dtype), keep)
        dz = products.times(dys, adapters.b).mul_(owned.scaling)
        products.add_outer(adapters.grad_b, dys, scaled)
        for part in owned.int8:
            dz[part.tokens] = int8_backward(dz[part.tokens], z[part.tokens], part.rank)
        products.add_outer(adapters.grad_a, dz, owned.entering(dropped))
        if dx is None:
            return None, None, None, None
        if keep is None and not owned.int8:
            products.add_times(dx, dz, adapters.a)
            return dx, None, None, None
        dh = products.times(dz, adapters.a)
        for part in owned.int8:
            dh[part.tokens] = int8_backward(dh[part.tokens], dropped[part.tokens])
        dx += owned.dropped(dh, keep)
        return dx, None, None, None
