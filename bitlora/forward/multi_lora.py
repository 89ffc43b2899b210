"""Many adapters over frozen linear layers.

The tokens of a pack stand in one sequence without padding: x is (T, I), and each token is a slot's. The frozen layer is
called once for all T; the adapters of all slots are then added in products that hold them all
(`bitlora.forward.products`). Their matrices stand in one tensor, with zeros beyond a slot's own rank: those give zeros,
and zeros as their gradient, so that they stay zero. A slot's arithmetic never sees another slot's numbers, and the norm of
`int8` activations counts real entries alone.

Layers that are given one input (queries, keys and values; gate and up) are a group, which is computed when the first of
them is called: one product with the frozen weights of all, and one with their A. Which layers those are is seen from a run
of the model (`bitlora.forward.inject.share_inputs`); at each call it is the tensor itself that must be the same. Where
anything is dropped, each layer has a mask of its own, and so its adapters are computed by themselves.

The quantizer is outside autograd: a `GroupAdapters` holds the quantized copies in the compute dtype, B times the slot's
scaling, and their gradients are added straight into the latent weights' (straight-through).

Axes: T tokens of the pack, N tokens of a slot, S slots, R the largest rank, M layers of a group, I in, O out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlora.base.linears import features
from bitlora.forward.dropout import dropout_mask
from bitlora.forward.forward_plan import ForwardPlan, Span, bound_plan
from bitlora.forward.frozen import FrozenWeights
from bitlora.forward.host import send
from bitlora.forward.products import SlotProducts
from bitlora.quantizers.activations import int8, int8_backward


@dataclass(frozen=True, slots=True)
class SlotTraits:
    """What the forward pass must know of a slot in a layer."""

    place: int
    """Of its matrices among the S."""
    rank: int
    """0: it has no adapter there; its matrices are zero."""
    dropout: float
    int8: bool


NO_SLOTS: Final[Mapping[int, SlotTraits]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class GroupAdapters:
    """The adapters of all slots in layers that are given one input."""

    slots: Mapping[int, SlotTraits]
    members: tuple[int, ...]
    """Which layers of their group those are; one, where a slot drops anything."""
    a: Tensor  # (S, M * R, I) quantized, zero beyond a slot's rank; the adapters' products are computed in its dtype
    b: tuple[Tensor, ...]  # each (S, O, R) quantized and times the slot's scaling, the same dtype
    grad_a: Tensor  # (S, M * R, I) float32 (float64): views of the slots' flat gradients
    grad_b: tuple[Tensor, ...]  # each (S, O, R)


@dataclass(slots=True, eq=False)
class LayerGroup:
    """Layers that are given one input, and are computed together; or one layer."""

    layers: tuple[MultiLoraLinear, ...]
    frozen: FrozenWeights | None = None
    """None, of one layer: its own."""
    values: FrozenWeights | None = None
    """The same as plain numbers, where those of a quantized base are kept (`bitlora.forward.inject.Base.keep_values`)."""
    adapters: tuple[GroupAdapters, ...] = ()

    def weights(self) -> FrozenWeights:
        """Of all layers, (O, I) with O their outputs together."""
        return self.values or self.quantized()

    def quantized(self) -> FrozenWeights:
        """As the base holds them."""
        return self.frozen or FrozenWeights.of(self.layers[0].base, self.layers[0].dtype)

    def outputs(self, x: Tensor, plan: ForwardPlan) -> tuple[Tensor, ...]:
        """(..., I) -> each layer's (..., O)."""
        anchor = None
        if not x.requires_grad and torch.is_grad_enabled():
            anchor = torch.empty(0, device=x.device, requires_grad=True)
        owned = [(part, own) for part in self.adapters if (own := _ownership(plan, part, x.device)) is not None]
        found = _BaseAndAdapters.apply(x.reshape(-1, x.shape[-1]), anchor, self, owned)  # type: ignore[no-untyped-call]
        return tuple(y.view(*x.shape[:-1], -1) for y in found)


@dataclass(slots=True, eq=False)
class _Ready:
    """What a group has computed of one input, until its layers ask for it."""

    group: LayerGroup
    x: Tensor
    version: int
    outputs: dict[MultiLoraLinear, Tensor]


_READY: Final[WeakKeyDictionary[ForwardPlan, _Ready]] = WeakKeyDictionary()


@dataclass(slots=True)
class Heard:
    """Which layer was called with what."""

    calls: list[tuple[MultiLoraLinear, Tensor, int]] = field(default_factory=list)


_LISTENING: Final[ContextVar[Heard | None]] = ContextVar("listening", default=None)


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """The layers called inside compute nothing, and give zeros: it is noted what they are given."""
    heard = Heard()
    before = _LISTENING.set(heard)
    try:
        yield heard
    finally:
        _LISTENING.reset(before)


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
        self.experts = 1
        self.in_features, self.out_features = features(base)
        self.name = name
        self.index = index
        self.dtype = dtype
        self.slots: Mapping[int, SlotTraits] = NO_SLOTS
        """The slots that there are, by number; whoever changes them gives another mapping, the same one to all layers in
        which they are alike."""
        self.alone = self.group = LayerGroup((self,))
        """By itself, and with those that are given the same input."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), where the leading axes hold the T tokens of the plan that this call runs by."""
        plan = bound_plan()
        if x.numel() != plan.tokens * x.shape[-1]:
            raise NotImplementedError(f"{self.name} is not called with every token: routed layers cannot be packed yet")
        if (heard := _LISTENING.get()) is not None:
            heard.calls.append((self, x, _version(x)))
            return x.new_zeros(*x.shape[:-1], self.out_features)
        if self.group is self.alone:
            return self.alone.outputs(x, plan)[0]
        ready = _READY.get(plan)
        if ready is None or ready.group is not self.group:
            outputs = dict(zip(self.group.layers, self.group.outputs(x, plan), strict=True))
            ready = _READY[plan] = _Ready(self.group, x, _version(x), outputs)
        elif ready.x is not x or ready.version != _version(x) or self not in ready.outputs:
            return self.alone.outputs(x, plan)[0]  # the others are given something else here
        y = ready.outputs.pop(self)
        if not ready.outputs:
            del _READY[plan]
        return y


def _version(x: Tensor) -> int:
    """It grows whenever somebody writes into x."""
    return x._version  # noqa: SLF001


class _Int8Part(NamedTuple):
    """Tokens next to each other that pass the 8-bit activations."""

    start: int
    stop: int
    rank: Tensor  # (stop - start, 1, 1): of their slot

    @property
    def tokens(self) -> slice:
        return slice(self.start, self.stop)


@dataclass(frozen=True, slots=True, eq=False)
class _Ownership:
    """Whose the tokens of one pass are, as the layers need it."""

    slots: Mapping[int, SlotTraits]
    products: SlotProducts
    kept_share: Tensor | None  # (T, 1) float32 or float64: 1 - dropout; None where nothing is dropped
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
        """What B is given of z (T, M, R): z itself where no slot has 8-bit activations, else a copy."""
        if not self.int8:
            return z
        z = z.clone()
        for part in self.int8:
            z[part.tokens] = int8(z[part.tokens], part.rank)
        return z


_OWNERSHIP: Final[WeakKeyDictionary[ForwardPlan, dict[int, _Ownership]]] = WeakKeyDictionary()


def lay_out_slots(plan: ForwardPlan, adapters: GroupAdapters, device: torch.device) -> None:
    """Make what layers in which the slots are alike need to know of a pass, before they are called with it."""
    _ownership(plan, adapters, device)


def _ownership(plan: ForwardPlan, adapters: GroupAdapters, device: torch.device) -> _Ownership | None:
    """Whose the tokens of this pass are: found before it, or at the first of the layers in which the slots are alike. None:
    nobody's that has an adapter in these layers."""
    if not any(adapters.slots[span.slot].rank for span in plan.spans):
        return None
    known = _OWNERSHIP.setdefault(plan, {})
    found = known.get(id(adapters.slots))
    if found is None or found.slots is not adapters.slots:
        found = known[id(adapters.slots)] = _make_ownership(plan, adapters.slots, adapters.a.dtype, device)
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
        return send([np.array(values, dtype=np.float64)[owner]], device)[0][:, None].to(high)

    parts: list[tuple[int, int]] = []
    for start, stop in sorted(
        (a, b) for one, places in zip(traits, stands, strict=True) for _, a, b in places if one.int8
    ):
        if parts and parts[-1][1] == start:
            start = parts.pop()[0]
        parts.append((start, stop))
    widths = column([one.rank for one in traits])[..., None]
    masked = tuple(
        (span, one.dropout, tuple(places))
        for span, one, places in zip(plan.spans, traits, stands, strict=True)
        if one.dropout > 0 and span.seed is not None
    )
    return _Ownership(
        slots,
        SlotProducts(
            plan,
            [one.place for one in traits],
            device,
            {number for number, one in enumerate(traits) if not one.rank},
        ),
        column([1 - one.dropout for one in traits]) if masked else None,
        masked,
        tuple(_Int8Part(start, stop, widths[start:stop]) for start, stop in parts),
    )


_Owned = Sequence[tuple[GroupAdapters, _Ownership]]


class _BaseAndAdapters(torch.autograd.Function):
    """The products of a group's frozen weights and of all its adapters, with their gradients written out.

    Autograd is told of x alone; `anchor` makes it call `backward` also where x needs no gradient (the first block).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, group: LayerGroup, owned: _Owned) -> tuple[Tensor, ...]:
        weights = group.weights()
        y = F.linear(x, weights.matrix(), weights.bias)
        # `data`: each stands for itself, and whoever is given one may write into it.
        ys = (y,) if len(group.layers) == 1 else tuple(part.data for part in y.split(_widths(group), dim=1))
        kept: list[Tensor | None] = []
        for part, own in owned:
            layer = group.layers[part.members[0]]
            keep = own.drawn(layer.index, x)
            h = own.entering(own.dropped(x.to(part.a.dtype), keep))
            z = own.products.times(h, part.a.mT)
            entering = own.inside(_by_member(z, part))
            for number, (member, b) in enumerate(zip(part.members, part.b, strict=True)):
                own.products.add_times(ys[member], entering[:, number], b.mT)
            kept += [keep, entering, z if own.int8 else None]
        ctx.group, ctx.owned = group, owned
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *kept)
        return ys

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        x, *kept = ctx.saved_tensors
        group: LayerGroup = ctx.group
        dys = [
            x.new_zeros(len(x), width) if grad is None else grad.contiguous()
            for grad, width in zip(grads, _widths(group), strict=True)
        ]
        dx = None
        if ctx.needs_input_grad[0]:
            for dy, weight in zip(dys, group.weights().matrix().split(_widths(group)), strict=True):
                dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
        owned: _Owned = ctx.owned
        for number, (part, own) in enumerate(owned):
            _backward(part, own, x, [dys[member] for member in part.members], dx, *kept[3 * number : 3 * number + 3])
        return dx, None, None, None


def _backward(
    part: GroupAdapters,
    own: _Ownership,
    x: Tensor,  # (T, I)
    dys: Sequence[Tensor],  # each (T, O)
    dx: Tensor | None,  # (T, I)
    keep: Tensor | None,
    entering: Tensor,  # (T, M, R)
    z: Tensor | None,
) -> None:
    """Add the gradients of the adapters, and to dx their share."""
    products, dtype = own.products, part.a.dtype
    dys = [dy.to(dtype) for dy in dys]
    if len(dys) == 1:
        dz = products.times(dys[0], part.b[0])
    else:
        dz = x.new_empty(len(x), part.a.shape[1], dtype=dtype)
        for number, (dy, b) in enumerate(zip(dys, part.b, strict=True)):
            products.times(dy, b, out=_by_member(dz, part)[:, number])
    inner = _by_member(dz, part)
    for number, (dy, grad_b) in enumerate(zip(dys, part.grad_b, strict=True)):
        products.add_outer(grad_b, dy, entering[:, number])
    for tokens in own.int8:
        assert z is not None
        before = _by_member(z, part)[tokens.tokens]
        inner[tokens.tokens] = int8_backward(inner[tokens.tokens], before, tokens.rank)
    dropped = own.dropped(x.to(dtype), keep)
    products.add_outer(part.grad_a, dz, own.entering(dropped))
    if dx is None:
        return
    if keep is None and not own.int8:
        products.add_times(dx, dz, part.a)
        return
    dh = products.times(dz, part.a)
    for tokens in own.int8:
        dh[tokens.tokens] = int8_backward(dh[tokens.tokens], dropped[tokens.tokens])
    dx += own.dropped(dh, keep)


def _widths(group: LayerGroup) -> list[int]:
    return [layer.out_features for layer in group.layers]


def _by_member(z: Tensor, part: GroupAdapters) -> Tensor:
    """(T, M * R) -> (T, M, R), a view."""
    return z.view(len(z), len(part.members), -1)
