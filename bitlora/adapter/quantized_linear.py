"""A or B of an adapter in PEFT's layers: its weight goes through the quantizer, its inputs through 8 bits, with the
gradients of both written out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitlora.quantizers.activations import int8, int8_backward
from bitlora.quantizers.codes import Side, quantize
from bitlora.quantizers.weights import DOUBLE_BINARY_B, QUANTIZERS, Granularity, Quantizer, double_binary


class QuantizedLinear(nn.Linear):
    """A or B of one adapter: `x @ w_q.T`, where w_q is its weight through the quantizer, and x may go through 8 bits first.

    `weight` is the latent weight; `scales` (rows, 1) are learned ones, of `double_binary` alone. The gradients are those of
    `bitlora.engine.slots.bank.Bank.backward_to_latent`.

    Args:
        config: a `bitlora.adapter.peft_layers.BitLoraConfig`.
    """

    def __init__(self, linear: nn.Linear, side: Side, config: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.side = linear.weight, side
        self.register_parameter("bias", None)
        self.quantizer, self.granularity = config.quantizer, config.granularity
        self.int8 = config.activations == "int8"
        self.scales: nn.Parameter | None = None
        if QUANTIZERS[self.quantizer].learns_scales:
            # As an adapter of PEFT's is no no-op where init_lora_weights is False.
            starts = side == "A" or config.init_lora_weights is False
            start = 0.5 * self.in_features**-0.5 if starts else 0.0
            self.scales = nn.Parameter(torch.full_like(self.weight[:, :1], start))
            if side == "B":
                nn.init.normal_(self.weight, std=DOUBLE_BINARY_B)

    def quantized(self) -> Tensor:
        """The weight that is multiplied, (rows, columns) in the weight's dtype, with its gradients."""
        if self.scales is not None:
            return _DoubleBinary.apply(self.weight, self.scales)  # type: ignore[no-untyped-call, no-any-return]
        return _Quantized.apply(self.weight, self.quantizer, self.side, self.granularity)  # type: ignore[no-untyped-call, no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., rows)."""
        x = _Int8.apply(x) if self.int8 else x  # type: ignore[no-untyped-call]
        return F.linear(x, self.quantized())


class _Quantized(torch.autograd.Function):
    """Straight-through: the gradient of the latent weight is the gradient of the quantized one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, quantizer: Quantizer, side: Side, granularity: Granularity) -> Tensor:
        return quantize(quantizer, weight, side, granularity).view_as(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0], None, None, None


class _DoubleBinary(torch.autograd.Function):
    """Straight-through the sign, and through the rounding of the scales to float16."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scales: Tensor) -> Tensor:
        signs, used = double_binary(weight, scales)
        ctx.save_for_backward(signs, used)
        return signs * used

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        signs, used = ctx.saved_tensors
        return grads[0] * used, (grads[0] * signs).sum(1, keepdim=True)


class _Int8(torch.autograd.Function):
    """`bitlora.quantizers.activations.int8` with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return int8(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return int8_backward(grads[0], *ctx.saved_tensors)
