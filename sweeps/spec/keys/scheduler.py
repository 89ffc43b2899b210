"""The key `scheduler` of a spec: which trials are stopped before their budget."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from bitlora.config.sections import Config, Positive

POPULATIONS: Final = ("pbt", "pb2")
"""Schedulers under which all trials train at once, in step."""


class SchedulerConfig(Config):
    """Which trials are stopped before their budget, or go on as copies of others."""

    name: Literal["asha", "hyperband", "bohb", "median", "pbt", "pb2", "none"] = "asha"
    """ASHA (arXiv 1810.05934); HyperBand (arXiv 1603.06560), in brackets of which each judges later than the one before;
    BOHB (arXiv 1807.01774), which is HyperBand under `search.sampler: tpe`; the median stopping rule; population-based
    training (arXiv 1711.09846), in which all trials train at once and nobody is stopped, but the worst go on as copies of
    the best; PB2 (arXiv 2002.02518), in which these move to where a Gaussian process expects most; or none of it. Whichever
    it is, all that were evaluated together are known before one of them is judged."""
    grace: Positive = 8
    """Steps that every trial gets: but for the median rule a multiple of `train.eval_every`. Left out, 8 or what fits."""
    reduction: Annotated[int, Field(ge=2)] = 2
    """But for the median rule: one in so many goes on from each rung to the next, which is so many times further."""
    scoring: Literal["all", "sequential"] = "all"
    """On which of the eval rows a trial is scored at a rung: all, or block by block until it is clear that it is stopped.
    Whoever goes on is scored on all."""
    interval: Positive = 8
    """Of PBT and PB2: steps between two rungs, at which all trials are compared: a multiple of `train.eval_every`. Left
    out, 8 or what fits."""
    quantile: Annotated[float, Field(gt=0.0, le=0.5)] = 0.25
    """Of PBT and PB2: the share of the trials that become copies at a rung, and of those that they are copies of."""
    resample: Annotated[float, Field(ge=0.0, le=1.0)] = 0.25
    """Of PBT, and of the first rung of PB2: how likely a copy draws a value anew; else it moves to a neighbour in its list,
    or by a fifth."""

    @property
    def population(self) -> bool:
        """Do all trials train at once, in step?"""
        return self.name in POPULATIONS
