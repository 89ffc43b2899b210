"""What a base is made of, and what an adapter over it costs: from shapes alone. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bitlora.config import Granularity, Quantizer


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


CODES_PER_BYTE: Final[dict[Quantizer, int]] = {
    "binary": 8,
    "ternary": 5,
    "absmean": 5,
    "twn": 5,
    "int2": 4,
    "int4": 2,
    "int8": 1,
    "double_binary": 8,
}
"""How many codes a byte holds; five of three values (3**5 = 243)."""

SCALE_BYTES: Final = 4
"""A scale that is a statistic is a float32."""

LEARNED_SCALE_BYTES: Final = 2
"""A learned one is used, and so stored, as a float16."""


def adapter_params(shapes: Iterable[LayerShape], rank: int, quantizer: Quantizer = "none") -> int:
    """Trained parameters of an adapter: `rank * (in + out)` for every targeted layer, with `double_binary` also a scale for
    each of the `rank` rows of A and the `out` rows of B."""
    scales = quantizer == "double_binary"
    return sum(rank * (s.in_features + s.out_features) + scales * (rank + s.out_features) for s in shapes)


def matrix_bytes(entries: int, quantizer: Quantizer, scales: int = 1) -> int:
    """Bytes of one matrix as packed: 2 an entry at full precision, else its codes at their true density and its scales."""
    if quantizer == "none":
        return 2 * entries
    scale_bytes = LEARNED_SCALE_BYTES if quantizer == "double_binary" else SCALE_BYTES
    return -(-entries // CODES_PER_BYTE[quantizer]) + scale_bytes * scales


def adapter_bytes(
    shapes: Iterable[LayerShape], rank: int, quantizer: Quantizer, granularity: Granularity = "tensor"
) -> int:
    """Bytes of an adapter as packed, A and B of every targeted layer.

    A matrix has one scale, or with `component` one for each of `rank`; in `double_binary` A has one for each of its `rank`
    rows and B for each of its `out`.
    """
    total = 0
    for shape in shapes:
        scales = (rank, rank) if granularity == "component" else (1, 1)
        if quantizer == "double_binary":
            scales = (rank, shape.out_features)
        total += matrix_bytes(rank * shape.in_features, quantizer, scales[0])
        total += matrix_bytes(rank * shape.out_features, quantizer, scales[1])
    return total
