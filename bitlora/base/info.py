"""What is known of a base without its weights: its shapes, its size, where it comes from. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bitlora.config.trial import TrialConfig, adapter_layers


@dataclass(frozen=True, slots=True)
class LayerShape:
    """A linear layer of the base's blocks, or a matrix of each of its routed experts: its name in the model, its inputs and
    outputs."""

    name: str
    in_features: int
    out_features: int
    experts: int = field(default=1, kw_only=True)
    """How many have one."""


@dataclass(frozen=True, slots=True)
class AdaptedLayer(LayerShape):
    """A layer that an adapter is on, and its rank there."""

    rank: int
    """Of routed experts the sum over them."""


@dataclass(frozen=True, slots=True)
class BaseInfo:
    """What is known of a base without its weights."""

    model: str
    quantization: str
    revision: str
    """The hub's commit, or a fingerprint of what a folder or a package holds (`bitlora.base.revision`)."""
    linears: tuple[LayerShape, ...]
    """All of the base's blocks, in the model's order."""
    targets: tuple[str, ...]
    """The names of those that `base.targets` is about."""
    vocab_size: int
    params: int
    config_digest: str = ""
    """Of a folder or a package, what sweeps took for its revision before."""
    experts: float = 0.0
    """Which share of the parameters are routed experts that cannot have adapters."""

    def layers(self, config: TrialConfig) -> list[AdaptedLayer]:
        """The layers that a trial's adapter is on."""
        ranks = adapter_layers(config, [shape.name for shape in self.linears], self.targets)
        return [
            AdaptedLayer(
                shape.name,
                shape.in_features,
                shape.out_features,
                shape.experts * ranks[shape.name].rank,
                experts=shape.experts,
            )
            for shape in self.linears
            if shape.name in ranks
        ]

    def provenance(self, config: TrialConfig) -> dict[str, Any]:
        """What a record says of its base, with how many layers the trial's adapter is on, and their parameters, biases
        aside: of a base with routed experts a small part of all."""
        layers = self.layers(config)
        return {
            "model": self.model,
            "quantization": self.quantization,
            "revision": self.revision,
            "params": self.params,
            "targets": len(layers),
            "adapted_params": adapted_params(layers),
        }


def adapted_params(layers: Iterable[LayerShape]) -> int:
    """Parameters of layers, biases aside."""
    return sum(layer.experts * layer.in_features * layer.out_features for layer in layers)
