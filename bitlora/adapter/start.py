"""The weights that an adapter starts from, by its trial's seed alone.

All start as an exact no-op, but for `orthogonal`, which starts as one up to rounding, and `pissa`, whose first values are
the base's own and taken out of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import pi, sqrt

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.config.trial import LayerAdapter, TrialConfig
from bitlora.quantizers.weights import DOUBLE_BINARY_B


def principal_parts(found: tuple[Tensor, Tensor, Tensor], layer: LayerAdapter) -> tuple[Tensor, Tensor]:
    """A and B whose product, times the layer's scaling, is the sum of a weight's largest principal components (PiSSA, arXiv
    2404.02948), as PEFT has them.

    Args:
        found: the first singular vectors and values, U (O, R), S (R,) and V (R, I).
    """
    u, s, v = found
    root = (s / layer.scaling).sqrt()
    return root[:, None] * v, u * root


def start_adapter(layers: Sequence[Latent], config: TrialConfig, experts: Sequence[int] | None = None) -> None:
    """Write the first values into the latent weights, which are zero; as PEFT draws them in each layer.

    Args:
        experts: how many have a part of each layer's; None: one.

    `default`: A is uniform in ±1/sqrt(in). `gaussian`: A is normal with a standard deviation of 1/rank. B is zero. In
    `double_binary` B's scales are zero instead, so that it starts as the same exact no-op; its latent weights are normal
    with standard deviation 0.01, and the scales of A begin at the mean size of its weights. `orthogonal`: the odd and the
    even rows of a random orthogonal matrix (rank, rank) go into A and into B, mixed at random and a tenth as large, so that
    neither is zero and their product is (https://datta0.github.io/posts/rethink-lora-init).
    """
    generator = torch.Generator().manual_seed(config.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    for layer, count in zip(layers, experts or [1] * len(layers), strict=True):
        rank, inputs = layer.a.shape[0] // count, layer.a.shape[1]
        if config.init == "orthogonal":
            q, _ = torch.linalg.qr(normal(rank, rank))
            layer.a.copy_((normal(inputs, rank // 2) @ q[0::2]).T / 10)
            layer.b.copy_(normal(rank // 2, layer.b.shape[0]).T @ q[1::2] / 10)
            continue
        bound = inputs**-0.5
        first = torch.empty(layer.a.shape)
        if config.init == "gaussian":
            first.normal_(0, 1 / rank, generator=generator)
        else:
            first.uniform_(-bound, bound, generator=generator)
        layer.a.copy_(first)
        if layer.a_scales is not None:
            layer.a_scales.fill_(sqrt(2 / pi) / rank if config.init == "gaussian" else bound / 2)
            layer.b.copy_(torch.empty(layer.b.shape).normal_(0, DOUBLE_BINARY_B, generator=generator))
