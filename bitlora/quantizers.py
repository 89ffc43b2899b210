"""Quantizers: pure functions latent weight -> quantized weight, and the 8-bit activations that can go with them.

A quantizer gives integer codes and the scales they are multiplied by: `w_q = codes * scales`, whatever it is. So what the
forward pass sees is to the last bit what a packed file can hold. `none` alone has no codes.

A scale is a statistic of the latent weights: of the whole matrix it is given (one matrix A or B of one adapter, its real
entries only), or of each rank component (a row of A, a column of B). `double_binary` learns its scales instead.

Straight-through: the gradient of the latent weight is the gradient of the quantized one. So nothing here needs autograd
for the weights; the engine quantizes once per optimizer step and hands the gradient on. The activations do need one:
`int8_backward` is the straight-through gradient of `int8`.

In every quantizer below a matrix (or component) of zeros has scale 0 and stays zero, so that B starts as an exact no-op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor

from bitlora.config import Granularity, Quantizer

NORM_EPS: Final = 1e-12
"""Smallest length a row is divided by (the default of `torch.nn.functional.normalize`)."""

Side = Literal["A", "B"]
"""Which of an adapter's two matrices: A is (rank, in), B is (out, rank)."""

Codes = tuple[Tensor, Tensor]
"""Codes in the shape and dtype of the weight, and scales that broadcast over it: (1, 1), (rows, 1) or (1, columns)."""

Axes = tuple[int, ...]
"""What a scale's statistic runs over: (0, 1) the whole matrix, (1,) each row, (0,) each column."""


def binary(w: Tensor, axes: Axes) -> Codes:
    """1 bit: `sign(w - mean(w)) * mean|w|` (BitNet, arXiv 2310.11453, eq. 1-3).

    As in eq. 2 an entry equal to the mean is -1: `torch.sign`, which the article has, would give it a third code.
    """
    return _signs(w - _mean(w, axes)), _mean(w.abs(), axes)


def ternary(w: Tensor, axes: Axes) -> Codes:
    """1.58 bits: `clip(round(w / (mean|w| / 2 + 1e-4)), -1, 1) * mean|w|`, the variant of BitNet b1.58 in "Bit-LoRA as an
    application of BitNet and 1.58 bit neural network technologies" (Towards Data Science, 2024)."""
    scale = _mean(w.abs(), axes)
    return (w / (scale / 2 + 1e-4)).round().clamp(-1, 1), scale


def absmean(w: Tensor, axes: Axes) -> Codes:
    """1.58 bits: `clip(round(w / mean|w|), -1, 1) * mean|w|` (BitNet b1.58, arXiv 2402.17764, eq. 1-3).

    The paper's epsilon beside the mean is left out: it is there against a division by zero, and next to the small values
    of a young B it would be a dead zone.
    """
    scale = _mean(w.abs(), axes)
    return _divided(w, scale).round().clamp(-1, 1), scale


def twn(w: Tensor, axes: Axes) -> Codes:
    """1.58 bits: `sign(w)` where `|w| > 0.7 mean|w|`, else 0, times the mean of those `|w|` (Ternary Weight Networks, arXiv
    1605.04711, eq. 3-6): nearly the closest ternary matrix there is."""
    size = w.abs()
    kept = (size > 0.7 * _mean(size, axes)).to(w.dtype)
    scale = (size * kept).sum(axes, keepdim=True) / kept.sum(axes, keepdim=True).clamp_min(1)
    return w.sign() * kept, scale


def weights_int2(w: Tensor, axes: Axes) -> Codes:
    """2 bits: the nearest of `{-3, -1, 1, 3} * s` with `s = 0.625 mean|w|`.

    Levels between the steps (mid-rise), because four codes have no middle: a level at 0 would leave three symmetric ones,
    which is `absmean`. A step of 2 s = 1.25 mean|w| is the best of four levels for a Gaussian (0.996 standard
    deviations; Max, "Quantizing for minimum distortion", 1960). From the largest weight, as in `weights_int4`, the step
    would be several times that and nearly all weights would fall on two levels.
    """
    scale = 0.625 * _mean(w.abs(), axes)
    return (_divided(w, 2 * scale).floor().clamp(-2, 1) * 2).add_(1), scale


def weights_int4(w: Tensor, axes: Axes) -> Codes:
    """4 bits, symmetric: `round(w / s) * s` with `s = max|w| / 7`, codes -7 to 7 (absmax, arXiv 2208.07339, section 2)."""
    return _absmax(w, axes, 7)


def weights_int8(w: Tensor, axes: Axes) -> Codes:
    """8 bits, symmetric: `round(w / s) * s` with `s = max|w| / 127`, codes -127 to 127 (as `weights_int4`)."""
    return _absmax(w, axes, 127)


def double_binary(w: Tensor, learned: Tensor) -> Codes:
    """1 bit with learned scales: `sign(w) * s`, a scale s for each row of A and of B (LoRDBA, arXiv 2605.24058).

    With it an adapter is two sign matrices between three diagonal ones, B's rows being the outputs. The scales are trained
    beside the latent weights, which pass their gradient `s * dL/dw_q` straight through the sign, and are used as float16
    numbers: there are as many as outputs, so that in float32 they would weigh as much as the signs of rank 32.

    Args:
        w: (rows, columns).
        learned: (rows, 1), float32 or float64.
    """
    return _signs(w), learned.half().to(w.dtype)


QUANTIZERS: Final[dict[Quantizer, Callable[[Tensor, Axes], Codes]]] = {
    "binary": binary,
    "ternary": ternary,
    "absmean": absmean,
    "twn": twn,
    "int2": weights_int2,
    "int4": weights_int4,
    "int8": weights_int8,
}
"""The quantizers whose scales are statistics of the weights. The registry's other two are `none` and `double_binary`."""


def encode(
    quantizer: Quantizer,
    w: Tensor,
    side: Side = "A",
    granularity: Granularity = "tensor",
    learned: Tensor | None = None,
) -> Codes:
    """What `quantizer` makes of a latent weight, as a file would hold it.

    Args:
        w: (rank, in) for A, (out, rank) for B; a floating dtype.
        learned: (rows, 1), the scales of `double_binary`; of the others None.

    Returns:
        Codes (int8, the shape of w: -1 to 1; of int2 -3, -1, 1, 3; of int4 -7 to 7; of int8 -127 to 127) and their scales
        in the dtype of w.

    Raises:
        ValueError: `none`, which has no codes.
    """
    if quantizer == "none":
        raise ValueError("full precision has no codes")
    codes, scales = _codes(quantizer, w, side, granularity, learned)
    return codes.to(torch.int8), scales


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """The quantized weight of `encode`, to the last bit what `quantize` gives: `codes * scales` in the dtype of scales."""
    return codes.to(scales.dtype) * scales


def quantize(
    quantizer: Quantizer,
    w: Tensor,
    side: Side = "A",
    granularity: Granularity = "tensor",
    learned: Tensor | None = None,
) -> Tensor:
    """The quantized weight in the shape and dtype of w (arguments as for `encode`).

    `none` is the weight itself: classic LoRA (arXiv 2106.09685), QLoRA over an NF4 base (arXiv 2305.14314).
    """
    if quantizer == "none":
        return w
    codes, scales = _codes(quantizer, w, side, granularity, learned)
    return codes.mul_(scales)


def _codes(quantizer: Quantizer, w: Tensor, side: Side, granularity: Granularity, learned: Tensor | None) -> Codes:
    if quantizer == "double_binary":
        assert learned is not None
        return double_binary(w, learned)
    component = 1 if side == "A" else 0
    return QUANTIZERS[quantizer](w, (0, 1) if granularity == "tensor" else (component,))


def _mean(w: Tensor, axes: Axes) -> Tensor:
    # The same kernel as `w.mean()`, so that one scale for the matrix is the textbook's to the last bit.
    return w.mean().view(1, 1) if len(axes) == 2 else w.mean(axes, keepdim=True)


def _signs(w: Tensor) -> Tensor:
    return (w > 0).to(w.dtype).mul_(2).sub_(1)


def _divided(w: Tensor, by: Tensor) -> Tensor:
    return w / by.clamp_min(torch.finfo(w.dtype).tiny)


def _absmax(w: Tensor, axes: Axes, most: int) -> Codes:
    scale = w.abs().amax(axes, keepdim=True) / most
    return _divided(w, scale).round().clamp(-most, most), scale


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
