"""The weights of an adapter in one layer, by name: as they are trained, and as they are multiplied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from bitlora.quantizers.codes import quantize

if TYPE_CHECKING:
    from bitlora.config.trial import TrialConfig


class Latent(NamedTuple):
    """What is trained of one layer's adapter, float32 or float64; of the gradient and the moments the same shapes."""

    a: Tensor  # (R, I)
    b: Tensor  # (O, R)
    a_scales: Tensor | None = None  # (R, 1): where scales are learned (`double_binary`)
    b_scales: Tensor | None = None  # (O, 1)
    magnitude: Tensor | None = None  # (O, 1): of DoRA, what the norms of the merged weight's rows are brought to

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there."""
        return tuple(part for part in self if part is not None)

    def map(self, function: Callable[[Tensor], Tensor]) -> Latent:
        """The same with `function` applied to each tensor that is there."""
        return Latent._make(None if part is None else function(part) for part in self)

    def quantized(self, config: TrialConfig) -> Weights:
        """What the forward pass multiplies."""
        return Weights(
            quantize(config.quantizer, self.a, "A", config.granularity, self.a_scales),
            quantize(config.quantizer, self.b, "B", config.granularity, self.b_scales),
            self.magnitude,
        )


class Weights(NamedTuple):
    """What is multiplied of one layer's adapter: its latent weights through the quantizer."""

    a: Tensor  # (R, I)
    b: Tensor  # (O, R)
    magnitude: Tensor | None = None  # (O, 1)


AdapterLatent = Mapping[str, Latent]
"""Layer name -> its latent weights, in the model's order."""
AdapterWeights = Mapping[str, Weights]
"""Layer name -> what is multiplied, in the model's order."""


def quantized_weights(latent: AdapterLatent, config: TrialConfig) -> dict[str, Weights]:
    """The weights that the forward pass sees, layer by layer, in the latent weights' dtype."""
    return {name: layer.quantized(config) for name, layer in latent.items()}
