"""What an adapter costs, from shapes alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from bitlora.config import Quantizer


class Shape(Protocol):
    """A targeted linear layer (`bitlora.base.LayerShape`)."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...


SCALE_BYTES: Final = 4
"""A quantized matrix has one scale, in float32."""


def adapter_params(shapes: Iterable[Shape], rank: int) -> int:
    """Trained parameters of an adapter: `rank * (in + out)` for every targeted layer."""
    return sum(rank * (shape.in_features + shape.out_features) for shape in shapes)


def matrix_bytes(entries: int, quantizer: Quantizer) -> int:
    """Bytes of one matrix as packed: 2 an entry at full precision, 1 bit at `binary`, five trits a byte at `ternary`."""
    if quantizer == "none":
        return 2 * entries
    per_byte = 8 if quantizer == "binary" else 5
    return -(-entries // per_byte) + SCALE_BYTES


def adapter_bytes(shapes: Iterable[Shape], rank: int, quantizer: Quantizer) -> int:
    """Bytes of an adapter as packed, A and B of every targeted layer."""
    return sum(matrix_bytes(rank * width, quantizer) for s in shapes for width in (s.in_features, s.out_features))
