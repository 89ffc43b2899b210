"""What of a trial's configuration its numbers hang on: of two trials that are equal in this, all numbers are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from bitlora.config.trial import LayerAdapter, TrialConfig
from bitlora.quantizers.weights import QUANTIZERS

FOLDED = ("rank", "alpha", "scaling", "targets", "rank_pattern", "alpha_pattern", "warmup")
"""Keys that matter by what they come to in a layer or at a step alone."""


def essence(config: TrialConfig, layers: Mapping[str, LayerAdapter]) -> Hashable:
    """What of `config` its numbers hang on, over the same base and data.

    Left out is what makes no difference: where alpha and rank come to the same factor, how they are given; the granularity
    of scales where there are none, or learned ones; the floor of a schedule that never falls.

    Args:
        layers: what the adapter is in each layer that it is on (`bitlora.config.trial.adapter_layers`).
    """
    kept = {key: value for key, value in config.model_dump().items() if key not in FOLDED}
    quantizer = QUANTIZERS[config.quantizer]
    if quantizer.levels is None or quantizer.learns_scales:
        del kept["granularity"]
    if config.schedule == "constant":
        del kept["floor"]
    kept["warmup"] = round(config.warmup * config.steps)
    if config.stages:
        kept["stages"] = tuple(tuple(stage.model_dump(exclude={"trial"}).values()) for stage in config.stages)
    return tuple(sorted(kept.items())), tuple(sorted(layers.items()))
