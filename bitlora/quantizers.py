"""Quantizers: pure functions latent weight -> quantized weight, and the 8-bit activations that can go with them.

The default recipe comes from "Bit-LoRA as an application of BitNet and 1.58 bit neural network technologies" (Towards
Data Science, 2024), whose formulas these are. A statistic is taken over the whole matrix it is given: one matrix A or B
of one adapter, its real entries only.

Straight-through: the gradient of the latent weight is the gradient of the quantized one. So nothing here needs autograd
for the weights; the engine quantizes once per optimizer step and hands the gradient on. The activations do need one:
`int8_backward` is the straight-through gradient of `int8`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from bitlora.config import Quantizer

NORM_EPS: Final = 1e-12
"""Smallest length a row is divided by (the default of `torch.nn.functional.normalize`)."""


def none(w: Tensor) -> Tensor:
    """Full precision: the weight itself. Classic LoRA (arXiv 2106.09685), QLoRA over an NF4 base (arXiv 2305.14314)."""
    return w


def binary(w: Tensor) -> Tensor:
    """1 bit: `sign(w - mean(w)) * mean|w|` (BitNet, arXiv 2310.11453, eq. 1-3).

    An entry equal to the mean becomes 0, as `torch.sign` has it: so a matrix of zeros stays zero, and B starts as a no-op.
    """
    return (w - w.mean()).sign() * w.abs().mean()


def ternary(w: Tensor) -> Tensor:
    """1.58 bits: `clip(round(w / (mean|w| / 2 + 1e-4)), -1, 1) * mean|w|` (the article's variant of BitNet b1.58)."""
    scale = w.abs().mean()
    return (w / (scale / 2 + 1e-4)).round().clamp(-1, 1) * scale


QUANTIZERS: Final[dict[Quantizer, Callable[[Tensor], Tensor]]] = {"none": none, "binary": binary, "ternary": ternary}
"""The registry: every name a configuration may use. Shape and dtype are kept."""


def int8(x: Tensor) -> Tensor:
    """Parameter-free RMSNorm, then 8 bits per token (BitNet, arXiv 2310.11453, section 2.2, as the article codes it).

    `y = x / max(‖x‖, 1e-12) * dim**-0.5`, `scale = 127 / max(max|y|, 1e-5)`, `clip(round(y * scale), -128, 127) / scale`.
    Norm and scale run in float32 at least: in float16 they overflow at usual widths.

    Args:
        x: `(..., dim)`, any floating dtype.

    Returns:
        `(..., dim)` in the dtype of x.
    """
    high: Tensor = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = high.norm(dim=-1, keepdim=True).clamp_min(NORM_EPS)
    y: Tensor = high / norm * x.shape[-1] ** -0.5
    scale = 127 / y.abs().amax(dim=-1, keepdim=True).clamp_min(1e-5)
    codes = (y * scale).round_().clamp_(-128, 127)
    return (codes / scale).to(x.dtype)


def int8_backward(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of `int8` at x: rounding and clipping are passed straight through, the norm is differentiated.

    Args:
        grad: `(..., dim)`, with respect to the output of `int8`.
        x: `(..., dim)`, its input.

    Returns:
        `(..., dim)` in the dtype of grad.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    high, g = x.to(dtype), grad.to(dtype) * x.shape[-1] ** -0.5
    length = high.norm(dim=-1, keepdim=True)
    norm: Tensor = length.clamp_min(NORM_EPS)
    unit: Tensor = high / norm
    along = (unit * g).sum(dim=-1, keepdim=True) * (length >= NORM_EPS)
    dx: Tensor = (g - unit * along) / norm
    return dx.to(grad.dtype)
