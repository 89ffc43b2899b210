"""Adapters of one shape that began with the same values, averaged: a soup (arXiv 2203.05482).

A and B are averaged each by itself, and quantized as they were: the average has the shape, the bytes and the quantizer of
each of them. That is not the mean of what they add to the base, which has the rank of all together; it is near it where
their A have stayed near each other, so they have to have begun alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from bitlora.adapter.latent import AdapterLatent, Latent
from bitlora.config.trial import TrialConfig, as_written, layer_adapter

SHAPE: Final = ("quantizer", "granularity", "activations", "rank", "rank_pattern", "targets", "dora", "init", "seed")
"""What adapters have to have in common."""


def same_shape(one: TrialConfig, other: TrialConfig) -> bool:
    """Whether two adapters of a base may be averaged."""
    return all(getattr(one, key) == getattr(other, key) for key in SHAPE)


def rescaled(latent: AdapterLatent, config: TrialConfig, like: TrialConfig) -> dict[str, Latent]:
    """The same adapter with the scaling of another: the difference is in its B, which every quantizer follows."""
    written, target = as_written(config), as_written(like)
    made = {}
    for name, layer in latent.items():
        times = layer_adapter(written, name).scaling / layer_adapter(target, name).scaling
        learned = None if layer.b_scales is None else layer.b_scales * times
        made[name] = layer if times == 1 else layer._replace(b=layer.b * times, b_scales=learned)
    return made


def averaged(adapters: Sequence[AdapterLatent]) -> dict[str, Latent]:
    """The mean of latent weights of the same layers and shapes, in their dtype; summed in float64."""
    first = adapters[0]
    return {name: Latent._make(_mean([each[name][at] for each in adapters]) for at in range(5)) for name in first}


def _mean(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack([part.double() for part in there]).mean(0).to(there[0].dtype) if there else None
