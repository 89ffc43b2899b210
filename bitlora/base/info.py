"""What is known of a base without its weights: its shapes, its size, where it comes from. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
    """The hub's commit, or a fingerprint of what a folder or a package holds (`bitlora.base.revision`)."""
    targets: tuple[LayerShape, ...]
    vocab_size: int
    params: int
    config_digest: str = ""
    """Of a folder or a package, what sweeps took for its revision before."""

    @property
    def adapted_params(self) -> int:
        """Parameters in the layers that get adapters, biases aside; of a base with routed experts a small part of all."""
        return sum(shape.in_features * shape.out_features for shape in self.targets)

    def provenance(self) -> dict[str, Any]:
        """What a record says of its base."""
        return {
            "model": self.model,
            "quantization": self.quantization,
            "revision": self.revision,
            "params": self.params,
            "targets": len(self.targets),
            "adapted_params": self.adapted_params,
        }
