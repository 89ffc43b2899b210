"""The 8-bit activations that can go with a quantizer: what an adapter's inputs pass through, and its gradient."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

NORM_EPS: Final = 1e-12
"""Smallest length a row is divided by (the default of `torch.nn.functional.normalize`)."""


def int8(x: Tensor, width: Tensor | None = None) -> Tensor:
    """Parameter-free RMSNorm, then 8 bits per token (BitNet, arXiv 2310.11453, section 2.2, as the article codes it).

    `y = x / max(‖x‖, 1e-12) * dim**-0.5`, `scale = 127 / max(max|y|, 1e-5)`, `clip(round(y * scale), -128, 127) / scale`.
    Norm and scale run in float32 at least: in float16 they overflow at usual widths.

    Args:
        x: `(..., dim)`, any floating dtype.
        width: `(..., 1)`, how many entries of each row are real, where the rest is padding with zeros; None: all dim.

    Returns:
        `(..., dim)` in the dtype of x.
    """
    high: Tensor = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = high.norm(dim=-1, keepdim=True).clamp_min(NORM_EPS)
    y: Tensor = high / norm * _unit(x, width)
    scale = 127 / y.abs().amax(dim=-1, keepdim=True).clamp_min(1e-5)
    codes = (y * scale).round_().clamp_(-128, 127)
    return (codes / scale).to(x.dtype)


def int8_backward(grad: Tensor, x: Tensor, width: Tensor | None = None) -> Tensor:
    """The gradient of `int8` at x: rounding and clipping are passed straight through, the norm is differentiated.

    Args:
        grad: `(..., dim)`, with respect to the output of `int8`.
        x: `(..., dim)`, its input.
        width: as there.

    Returns:
        `(..., dim)` in the dtype of grad.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    high, g = x.to(dtype), grad.to(dtype) * _unit(x, width)
    length = high.norm(dim=-1, keepdim=True)
    norm: Tensor = length.clamp_min(NORM_EPS)
    unit: Tensor = high / norm
    along = (unit * g).sum(dim=-1, keepdim=True) * (length >= NORM_EPS)
    dx: Tensor = (g - unit * along) / norm
    return dx.to(grad.dtype)


def _unit(x: Tensor, width: Tensor | None) -> Tensor | float:
    return float(x.shape[-1] ** -0.5) if width is None else width**-0.5
