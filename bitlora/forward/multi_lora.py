"""Many adapters over one frozen linear layer.

The tokens of a pack stand in one row without padding, those of a slot next to each other: x is (T, I), and slot s owns
x[start:stop]. The frozen layer is called once for all T; each slot's adapter then adds to its own tokens, at its own
rank, over its own matrices. So a slot's arithmetic never sees another slot's numbers, nor padding: a quantizer's
statistics and the norm of `int8` activations are over real entries because there are no others.

The quantizer is outside autograd: a `SlotAdapter` holds the quantized copies in the compute dtype, and their gradients are
added straight into the slot's flat gradient, which is the latent weights' (straight-through).

Axes: T tokens of the pack, N tokens of a slot, R rank, I in, O out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlora.forward.dropout import dropout_mask
from bitlora.forward.forward_plan import ForwardPlan, Span, bound_plan
from bitlora.quantizers.activations import int8, int8_backward


@dataclass(slots=True)
class SlotAdapter:
    """One slot's adapter of one layer, as the forward pass needs it."""

    a: Tensor  # (R, I) quantized; the products of this adapter are computed in its dtype
    b: Tensor  # (O, R) quantized, the same dtype
    grad_a: Tensor  # (R, I) float32 (float64): a view of the slot's flat gradient
    grad_b: Tensor  # (O, R)
    scaling: float
    dropout: float
    int8: bool


class MultiLoraLinear(nn.Module):
    """A frozen linear layer with an adapter for each slot.

    Args:
        base: the frozen layer: `nn.Linear` or bitsandbytes' `Linear4bit`.
        name: its name in the model.
        index: its number among the model's layers with adapters; the dropout masks hang on it.
        dtype: what the products are computed in.
    """

    def __init__(self, base: nn.Linear, name: str, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.name = name
        self.index = index
        self.dtype = dtype
        self.slots: dict[int, SlotAdapter] = {}

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    def base_weight(self) -> Tensor:
        """(O, I) in the compute dtype. NF4 is dequantized at each call, exactly as bitsandbytes' own products do it."""
        weight: Any = self.base.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            return weight.detach()  # type: ignore[no-any-return]
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.detach(), state).to(self.dtype)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O), where the leading axes hold the T tokens of the plan that this call runs by."""
        plan = bound_plan()
        if x[..., 0].numel() != plan.tokens:
            raise NotImplementedError(f"{self.name} is not called with every token: routed layers cannot be packed yet")
        anchor = torch.empty(0, device=x.device, requires_grad=torch.is_grad_enabled())
        y: Tensor = _BaseAndAdapters.apply(x.reshape(-1, x.shape[-1]), anchor, self, plan)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)


class _BaseAndAdapters(torch.autograd.Function):
    """The products of the base and of all adapters, with their gradients written out.

    Autograd is told of x alone; `anchor` makes it call `backward` also where x needs no gradient (the first block).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: MultiLoraLinear, plan: ForwardPlan) -> Tensor:
        y = F.linear(x, layer.base_weight(), layer.base.bias)
        kept: list[Tensor] = []
        used: list[tuple[Span, SlotAdapter, int, int | None]] = []
        for span in plan.spans:
            slot = layer.slots.get(span.slot)
            if slot is None:
                continue
            h = x[span.start : span.stop].to(slot.a.dtype)
            mask_at = None
            if slot.dropout > 0 and span.seed is not None:
                mask = dropout_mask(span, layer.index, x.shape[-1], slot.dropout, x.device)
                mask_at = len(kept)
                kept.append(mask)
                h = _dropped(h, mask, slot.dropout)
            z = (int8(h) if slot.int8 else h) @ slot.a.T
            _add(y[span.start : span.stop], int8(z) if slot.int8 else z, slot.b.T, slot.scaling)
            used.append((span, slot, len(kept), mask_at))
            kept.append(z)
        ctx.save_for_backward(x, *kept)
        ctx.layer, ctx.used = layer, used
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        dy = grads[0].contiguous()
        x, *kept = ctx.saved_tensors
        layer: MultiLoraLinear = ctx.layer
        dx = dy @ layer.base_weight() if ctx.needs_input_grad[0] else None
        for span, slot, z_at, mask_at in ctx.used:
            dys = dy[span.start : span.stop].to(slot.b.dtype)
            h = x[span.start : span.stop].to(slot.a.dtype)
            z = kept[z_at]
            mask = None if mask_at is None else kept[mask_at]
            if mask is not None:
                h = _dropped(h, mask, slot.dropout)
            dz = dys @ slot.b * slot.scaling
            _add(slot.grad_b, dys.T, int8(z) if slot.int8 else z, slot.scaling)
            if slot.int8:
                dz = int8_backward(dz, z)
            _add(slot.grad_a, dz.T, int8(h) if slot.int8 else h, 1.0)
            if dx is None:
                continue
            if mask is None and not slot.int8:
                _add(dx[span.start : span.stop], dz, slot.a, 1.0)
                continue
            dh = dz @ slot.a
            if slot.int8:
                dh = int8_backward(dh, h)
            dx[span.start : span.stop] += dh if mask is None else _dropped(dh, mask, slot.dropout)
        return dx, None, None, None


def _dropped(x: Tensor, keep: Tensor, dropout: float) -> Tensor:
    return torch.where(keep, x / (1 - dropout), 0)


def _add(into: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """into += scale * left @ right, where `into` may have another dtype."""
    if into.dtype == left.dtype:
        into.addmm_(left, right, alpha=scale)
    else:
        into.add_(left @ right, alpha=scale)
