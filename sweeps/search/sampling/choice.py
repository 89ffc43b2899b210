"""Which sampler a search has, and what that needs: known before anything starts, without Optuna."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final, Literal

from sweeps.spec.keys.search import SearchConfig
from sweeps.spec.space import Range

MOST_FOR_GP: Final = 250
"""Trials from which on a Gaussian process costs more time than it saves, as OptunaHub's AutoSampler has it."""
GP_NEEDS: Final = ("scipy", "torch")
"""What Optuna 5 imports for its GPSampler when it fits the first model, so not before the random trials have ended."""


def sampler_of(search: SearchConfig) -> Literal["tpe", "gp", "random", "grid"]:
    """The sampler of a search: what `auto` stands for, or the one that is asked for.

    OptunaHub's AutoSampler chooses by the space and by the trials: TPE where an axis is a list or hangs on another, else a
    Gaussian process up to 250 trials. Beyond that it takes CMA-ES where nothing is constrained and TPE where something is;
    here trials that diverge or are larger than `search.where` allows are constraints, so that it is TPE.
    """
    if search.sampler != "auto":
        return search.sampler
    ranges = all(isinstance(domain, Range) for domain in search.space.values())
    one = len(search.objectives) == 1
    return "gp" if one and ranges and search.space and search.trials <= MOST_FOR_GP else "tpe"


def lacking(search: SearchConfig) -> list[str]:
    """A line for each package that the sampler needs and that is not there."""
    if sampler_of(search) != "gp":
        return []
    why = "search.sampler: gp" if search.sampler == "gp" else "search.sampler: auto, which is gp for this space,"
    missing = [name for name in GP_NEEDS if find_spec(name) is None]
    return [f"{why} needs {name}, which is not installed; pip install {name}, or give tpe" for name in missing]
