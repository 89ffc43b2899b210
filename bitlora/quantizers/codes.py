"""A latent weight as codes and scales, and codes as bytes at their true density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from bitlora.quantizers.weights import QUANTIZERS, Granularity, Levels, Quantizer, double_binary

if TYPE_CHECKING:
    from bitlora.quantizers.weights import Codes

Side = Literal["A", "B"]
"""Which of an adapter's two matrices: A is (rank, in), B is (out, rank)."""


def encode(
    quantizer: Quantizer,
    w: Tensor,
    side: Side = "A",
    granularity: Granularity = "tensor",
    learned: Tensor | None = None,
) -> Codes:
    """What `quantizer` makes of a latent weight, as a file would hold it.

    Args:
        w: (…, rank, in) for A, (…, out, rank) for B; a floating dtype. Leading axes stack matrices of one shape.
        learned: (…, rows, 1), the scales of `double_binary`; of the others None.

    Returns:
        Codes (int8, the shape of w; `bitlora.quantizers.weights.Levels`) and their scales in the dtype of w.

    Raises:
        ValueError: `none`, which has no codes.
    """
    if QUANTIZERS[quantizer].levels is None:
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
    if QUANTIZERS[quantizer].levels is None:
        return w
    codes, scales = _codes(quantizer, w, side, granularity, learned)
    return codes.mul_(scales)


def _codes(quantizer: Quantizer, w: Tensor, side: Side, granularity: Granularity, learned: Tensor | None) -> Codes:
    encode = QUANTIZERS[quantizer].encode
    if encode is None:
        assert learned is not None
        return double_binary(w, learned)
    component = -1 if side == "A" else -2
    return encode(w, (-2, -1) if granularity == "tensor" else (component,))


def levels_of(quantizer: Quantizer) -> Levels:
    """The codes of a quantizer that has some.

    Raises:
        ValueError: `none`.
    """
    levels = QUANTIZERS[quantizer].levels
    if levels is None:
        raise ValueError("full precision has no codes")
    return levels


def to_bytes(codes: Tensor, quantizer: Quantizer) -> Tensor:
    """Codes as bytes, the first code in a byte's lowest place.

    Args:
        codes: (n,) int8, those of `quantizer` (`encode`).

    Returns:
        (⌈n / codes per byte⌉,) uint8; the last byte is filled up with the lowest code.
    """
    levels = levels_of(quantizer)
    digits = (codes.to(torch.int16) - levels.lowest) // levels.step
    digits = torch.nn.functional.pad(digits, (0, -len(digits) % levels.per_byte)).view(-1, levels.per_byte)
    return (digits * _places(levels)).sum(1).to(torch.uint8)


def from_bytes(packed: Tensor, count: int, quantizer: Quantizer) -> Tensor:
    """The first `count` codes of `to_bytes`, (count,) int8.

    Raises:
        ValueError: a byte that no codes give.
    """
    levels = levels_of(quantizer)
    values = levels.count**levels.per_byte
    if len(packed) and int(packed.max()) >= values:
        raise ValueError(f"byte {int(packed.max())} among codes of {quantizer}, which go up to {values - 1}")
    table = torch.arange(values)[:, None] // _places(levels) % levels.count * levels.step + levels.lowest
    return table.to(torch.int8)[packed.long()].flatten()[:count]


def _places(levels: Levels) -> Tensor:
    return torch.tensor([levels.count**place for place in range(levels.per_byte)], dtype=torch.int16)
