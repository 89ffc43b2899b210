"""What a base is made of, and what an adapter over it costs: from shapes alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bitlora.config import Quantizer


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A targeted linear layer: its name in the model, its inputs and outputs."""

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What is known of a base without its weights."""

    model: str
    quantization: str
    revision: str
    """The hub's commit, or 16 hex digits over the configuration."""
    targets: tuple[LayerShape, ...]
    vocab_size: int
    params: int

    def provenance(self) -> dict[str, Any]:
        """What a record says of its base."""
        return {
            "model": self.model,
            "quantization": self.quantization,
            "revision": self.revision,
            "params": self.params,
            "targets": len(self.targets),
        }


SCALE_BYTES: Final = 4
"""A quantized matrix has one scale, in float32."""


def adapter_params(shapes: Iterable[LayerShape], rank: int) -> int:
    """Trained parameters of an adapter: `rank * (in + out)` for every targeted layer."""
    return sum(rank * (shape.in_features + shape.out_features) for shape in shapes)


def matrix_bytes(entries: int, quantizer: Quantizer) -> int:
    """Bytes of one matrix as packed: 2 an entry at full precision, 1 bit at `binary`, five trits a byte at `ternary`."""
    if quantizer == "none":
        return 2 * entries
    per_byte = 8 if quantizer == "binary" else 5
    return -(-entries // per_byte) + SCALE_BYTES


def adapter_bytes(shapes: Iterable[LayerShape], rank: int, quantizer: Quantizer) -> int:
    """Bytes of an adapter as packed, A and B of every targeted layer."""
    return sum(matrix_bytes(rank * width, quantizer) for s in shapes for width in (s.in_features, s.out_features))
