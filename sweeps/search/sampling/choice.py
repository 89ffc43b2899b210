"""Which sampler a search has: known before anything starts, without Optuna."""

from __future__ import annotations

from typing import Final, Literal

from sweeps.spec.keys.search import SearchConfig

MOST_FOR_GP: Final = 250
"""Trials from which on a Gaussian process costs more time than it saves, as OptunaHub's AutoSampler has it."""


def sampler_of(search: SearchConfig) -> Literal["tpe", "gp", "random", "grid"]:
    """The sampler of a search: what `auto` stands for, or the one that is asked for.

    OptunaHub's AutoSampler takes a Gaussian process up to 250 trials where it can model the space; here it models lists and
    axes that hang on others too. Beyond that it is TPE, as with two objectives.
    """
    if search.sampler != "auto":
        return search.sampler
    one = len(search.objectives) == 1
    return "gp" if one and search.space and search.trials <= MOST_FOR_GP else "tpe"
