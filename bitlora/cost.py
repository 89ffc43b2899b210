"""What a base is made of, and what an adapter over it costs: from shapes alone. Imports no torch."""

from __future__ import annotations

import json
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

DTYPE_BYTES: Final = {"F32": 4, "F16": 2, "U8": 1}
"""A scale that is a statistic is a float32; a learned one is used, and so stored, as a float16."""


def adapter_params(shapes: Iterable[LayerShape], rank: int, quantizer: Quantizer = "none") -> int:
    """Trained parameters of an adapter: `rank * (in + out)` for every targeted layer, with `double_binary` also a scale for
    each of the `rank` rows of A and the `out` rows of B."""
    scales = quantizer == "double_binary"
    return sum(rank * (s.in_features + s.out_features) + scales * (rank + s.out_features) for s in shapes)


def packed_tensors(
    shapes: Iterable[LayerShape], rank: int, quantizer: Quantizer, granularity: Granularity = "tensor"
) -> dict[str, tuple[str, int]]:
    """The tensors of an adapter as packed (`bitlora.packing`), A and B of every targeted layer behind each other in each.

    A matrix has one scale, or with `component` one for each of `rank`; in `double_binary` A has one for each of its `rank`
    rows and B for each of its `out`.

    Returns:
        Name -> safetensors' name of its dtype, and its length; in the order in which they stand in the file.
    """
    layers = tuple(shapes)
    entries = sum(rank * (shape.in_features + shape.out_features) for shape in layers)
    if quantizer == "none":
        return {"weights": ("F16", entries)}
    codes = -(-entries // CODES_PER_BYTE[quantizer])
    if quantizer == "double_binary":
        return {"scales": ("F16", sum(rank + shape.out_features for shape in layers)), "codes": ("U8", codes)}
    return {"scales": ("F32", 2 * len(layers) * (rank if granularity == "component" else 1)), "codes": ("U8", codes)}


def adapter_bytes(
    shapes: Iterable[LayerShape], rank: int, quantizer: Quantizer, granularity: Granularity = "tensor"
) -> int:
    """Bytes of an adapter as packed: the size of its safetensors file, header included."""
    return _safetensors_bytes(packed_tensors(shapes, rank, quantizer, granularity))


def _safetensors_bytes(tensors: dict[str, tuple[str, int]]) -> int:
    """Bytes of a safetensors file without metadata: the header's length in 8 bytes, the header, which is compact JSON with
    spaces up to a multiple of 8, and the data."""
    header, end = {}, 0
    for name, (dtype, length) in tensors.items():
        start, end = end, end + DTYPE_BYTES[dtype] * length
        header[name] = {"dtype": dtype, "shape": [length], "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"))
    return 8 + -(-len(text) // 8) * 8 + end
