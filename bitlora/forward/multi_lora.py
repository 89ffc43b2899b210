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
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlora.base.linears import features
from bitlora.forward.forward_plan import ForwardPlan, bound_plan
from bitlora.forward.frozen import FrozenWeights, leading, merged_norms, nearly_principal, square_norms
from bitlora.forward.products import NO_SLOTS, Ownership, SlotTraits, ownership
from bitlora.quantizers.activations import int8_backward


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
    gain: tuple[Tensor, ...] = ()  # each (S, O, 1): of DoRA (`bitlora.forward.products`); empty where no slot has it
    grad_gain: tuple[Tensor, ...] = ()  # each (S, O, 1)
    out_a: Tensor | None = None  # (S, M * R, I): of what is taken out of the base for some slots (PiSSA); frozen
    out_b: tuple[Tensor, ...] = ()  # each (S, O, R), negative


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
        owned = [
            (part, own)
            for part in self.adapters
            if (own := ownership(plan, part.slots, part.a.dtype, x.device)) is not None
        ]
        found = _BaseAndAdapters.apply(x.reshape(-1, x.shape[-1]), anchor, self, owned)  # type: ignore[no-untyped-call]
        return tuple(y.view(*x.shape[:-1], -1) for y in found)


@dataclass(slots=True, eq=False)
class _Ready:
    """What a group has computed of one input, until its layers ask for it."""

    group: LayerGroup
    x: Tensor
    version: int
    outputs: dict[MultiLoraLinear, Tensor]


PRINCIPAL_KEPT: Final = 32
"""Of a frozen weight's principal components, so many at least are kept: trials of several ranks need one
decomposition."""
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
        base: the frozen layer: `nn.Linear`, one of bitsandbytes', or transformers' `Conv1D`.
        name: its name in the model.
        index: its number among the linear layers of the model's blocks; the dropout masks hang on it.
        dtype: what the products are computed in.
    """

    def __init__(self, base: nn.Module, name: str, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base: Any = base
        self.experts = 1
        self.routes: int | None = None
        """Of routed experts, what is alike in the layers whose tokens are sorted at once."""
        self.in_features, self.out_features = features(base)
        self.name = name
        self.index = index
        self.dtype = dtype
        self.slots: Mapping[int, SlotTraits] = NO_SLOTS
        """The slots that there are, by number; whoever changes them gives another mapping, the same one to all layers in
        which they are alike."""
        self.alone = self.group = LayerGroup((self,))
        """By itself, and with those that are given the same input."""
        self._squares: Tensor | None = None
        self._principal: tuple[Tensor, Tensor, Tensor] | None = None

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

    def merged_norms(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        """Of the rows of the frozen weight plus B A: (S, R, I), (S, O, R) -> (S, O) in `dtype`."""
        weight = self.alone.weights().matrix()
        if self._squares is None:
            self._squares = square_norms(weight, dtype)
        return merged_norms(weight, self._squares, a, b)

    def principal(
        self, rank: int, dtype: torch.dtype, rounds: int | None = None, seed: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The first singular vectors and values of the frozen weight, U (O, rank), S (rank,) and V (rank, I); zeros behind
        the last that there is.

        Args:
            rounds, seed: of `nearly_principal`; None: exact, and found once, which takes long.
        """
        known = self._principal
        if rounds is not None:
            known = nearly_principal(self.alone.weights().matrix().to(dtype), rank, rounds, seed)
        elif known is None or len(known[1]) < rank:
            parts = torch.linalg.svd(self.alone.weights().matrix().to(dtype), full_matrices=False)
            known = self._principal = leading(parts, max(rank, PRINCIPAL_KEPT))
        u, s, v = leading(known, rank)
        pad = rank - len(s)
        return F.pad(u, (0, pad)), F.pad(s, (0, pad)), F.pad(v, (0, 0, 0, pad))


def _version(x: Tensor) -> int:
    """It grows whenever somebody writes into x."""
    return x._version  # noqa: SLF001


_Owned = Sequence[tuple[GroupAdapters, Ownership]]


class _BaseAndAdapters(torch.autograd.Function):
    """The products of a group's frozen weights and of all its adapters, with their gradients written out.

    Autograd is told of x alone; `anchor` makes it call `backward` also where x needs no gradient (the first block).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor | None, group: LayerGroup, owned: _Owned) -> tuple[Tensor, ...]:
        weights = group.weights()
        matrix = weights.matrix()
        y = F.linear(x, matrix, weights.bias)
        # `data`: each stands for itself, and whoever is given one may write into it.
        ys = (y,) if len(group.layers) == 1 else tuple(part.data for part in y.split(_widths(group), dim=1))
        kept: list[Tensor | None] = []
        for part, own in owned:
            layer = group.layers[part.members[0]]
            keep = own.drawn(layer.index, x)
            dropped = own.dropped(x.to(part.a.dtype), keep)
            h = own.entering(dropped)
            z = own.products.times(h, part.a.mT)
            entering = own.inside(_by_member(z, part))
            for number, (member, b) in enumerate(zip(part.members, part.b, strict=True)):
                own.products.add_times(ys[member], entering[:, number], b.mT)
            if part.out_a is not None:
                inner = _by_member(own.products.times(x.to(part.a.dtype), part.out_a.mT), part)
                for number, (member, b) in enumerate(zip(part.members, part.out_b, strict=True)):
                    own.products.add_times(ys[member], inner[:, number], b.mT)
            kept += [keep, entering, z if own.int8 else None]
            if own.dora is None:
                continue
            for number, (member, gain) in enumerate(zip(part.members, part.gain, strict=True)):
                if keep is None:
                    whole = own.dora.take(ys[member])
                    whole = whole if weights.bias is None else whole - weights.bias.split(_widths(group))[member]
                else:  # what is dropped for the adapter is dropped for the weight that it grows with
                    whole = own.dora.take(own.products.times(entering[:, number], part.b[number].mT)).to(x.dtype)
                    whole.addmm_(own.dora.take(dropped).to(x.dtype), matrix.split(_widths(group))[member].T)
                own.dora.add(ys[member], own.dora.grown(whole, gain))
                kept.append(whole)
        ctx.group, ctx.owned = group, owned
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *kept)
        return ys

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        x, *kept = ctx.saved_tensors
        saved = iter(kept)
        group: LayerGroup = ctx.group
        dys = [
            x.new_zeros(len(x), width) if grad is None else grad.contiguous()
            for grad, width in zip(grads, _widths(group), strict=True)
        ]
        grown: list[tuple[list[Tensor], Tensor | None, Any, Any, Any]] = []
        for part, own in ctx.owned:
            keep, entering, z = next(saved), next(saved), next(saved)
            own_dys, through = [dys[member] for member in part.members], None
            if own.dora is not None:
                for number, (member, gain, grad_gain) in enumerate(
                    zip(part.members, part.gain, part.grad_gain, strict=True)
                ):
                    own_dys[number], through = own.dora.backward(
                        own.products, dys[member], next(saved), gain, grad_gain
                    )
                    if keep is None:
                        dys[member] = own_dys[number]
            grown.append((own_dys, None if keep is None else through, keep, entering, z))
        dx = None
        weights = group.weights().matrix().split(_widths(group)) if ctx.needs_input_grad[0] else ()
        for dy, weight in zip(dys, weights, strict=False):
            dx = dy @ weight if dx is None else dx.addmm_(dy, weight)
        for (part, own), (own_dys, through, *rest) in zip(ctx.owned, grown, strict=True):
            if part.out_a is not None and dx is not None:
                given = [dys[member].to(part.a.dtype) for member in part.members]
                own.products.add_times(dx, _before_b(part, own, given, part.out_b), part.out_a)
            if through is not None and dx is not None:
                through = through @ weights[part.members[0]]
            _backward(part, own, x, own_dys, dx, through, *rest)
        return dx, None, None, None


def _backward(
    part: GroupAdapters,
    own: Ownership,
    x: Tensor,  # (T, I)
    dys: Sequence[Tensor],  # each (T, O)
    dx: Tensor | None,  # (T, I)
    through: Tensor | None,  # (N, I): what DoRA gives to the dropped x of its N tokens by the frozen weights
    keep: Tensor | None,
    entering: Tensor,  # (T, M, R)
    z: Tensor | None,
) -> None:
    """Add the gradients of the adapters, and to dx their share."""
    products, dtype = own.products, part.a.dtype
    dys = [dy.to(dtype) for dy in dys]
    dz = _before_b(part, own, dys, part.b)
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
    if through is not None and own.dora is not None:
        own.dora.add(dh, through.to(dtype))
    dx += own.dropped(dh, keep)


def _before_b(part: GroupAdapters, own: Ownership, dys: Sequence[Tensor], bs: Sequence[Tensor]) -> Tensor:
    """The gradient of what each B (S, O, R) was given, from that of what it gave (T, O): (T, M * R)."""
    if len(dys) == 1:
        return own.products.times(dys[0], bs[0])
    dz = dys[0].new_empty(len(dys[0]), part.a.shape[1])
    for number, (dy, b) in enumerate(zip(dys, bs, strict=True)):
        own.products.times(dy, b, out=_by_member(dz, part)[:, number])
    return dz


def _widths(group: LayerGroup) -> list[int]:
    return [layer.out_features for layer in group.layers]


def _by_member(z: Tensor, part: GroupAdapters) -> Tensor:
    """(T, M * R) -> (T, M, R), a view."""
    return z.view(len(z), len(part.members), -1)
