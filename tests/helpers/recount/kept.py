"""What share of full precision's gain over the bare base a configuration keeps, by pandas and scipy's distributions alone:
its interval is searched for, share by share, with no formula for its ends.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
from judged import by_seed, ratio
from scipy import optimize, stats


@dataclass
class Gain:
    """The base and full precision on a split; `compared`: those whose shares have an interval."""

    base: pd.DataFrame
    full: Any
    compared: list[Any] = field(default_factory=list)
    known: dict[int, tuple[float, float | None, float | None]] = field(default_factory=dict)
    """By a configuration's place in memory what is kept of it: several tables ask for the same."""

    @property
    def loss(self) -> float:
        return ratio(self.base)

    @cached_property
    def untold(self) -> str:
        """A part of why no share is told; empty where they are."""
        if self.full is None:
            return "nothing in full precision"
        scored = by_seed(self.full, self.full.split)
        if not scored:
            return "scores of full precision cannot be read"
        if any(sorted(frame.index) != sorted(self.base.index) for frame in scored.values()):
            return "not scored on the same examples"
        if self.groups.nunique() < 30:
            return "it takes 30 examples"
        whole = self.ratio_of(self.below(self.full, []))
        return "" if whole > self.allowed(self.full, lambda own, full: full) else "is not clear of zero"

    @cached_property
    def groups(self) -> pd.Series:
        frame = next(iter(by_seed(self.full, self.full.split).values())).loc[self.base.index]
        own = pd.Series([f"example {name}" for name in frame.index], frame.index)
        return frame["group"].where(frame["group"].notna(), own) if "group" in frame else own

    def below(self, configuration: Any, seeds: list[int]) -> pd.Series:
        """How far its summed losses, the mean over these seeds, are below the base's on each example."""
        scored = by_seed(configuration, configuration.split)
        used = [scored[seed]["loss"].loc[self.base.index] for seed in seeds or sorted(scored)]
        return self.base["loss"] - sum(used) / len(used)

    def ratio_of(self, apart: pd.Series) -> float:
        return float(apart.sum() / self.base["tokens"].sum())

    def allowed(self, configuration: Any, mix: Any) -> float:
        """How far from zero chance may bring `mix` of its gain and full precision's."""
        of, full = (by_seed(each, each.split) for each in (configuration, self.full))
        seeds = sorted(of.keys() & full.keys())
        tokens = self.base["tokens"].astype(float)
        e = mix(self.below(configuration, seeds), self.below(self.full, seeds))
        e = (e - self.ratio_of(e) * tokens).groupby(self.groups).sum()
        w = tokens.groupby(self.groups).sum()
        examples = len(w) / (len(w) - 1) * (e**2).sum() / tokens.sum() ** 2
        wide = examples * stats.t.ppf(0.975, (w**2).sum() ** 2 / (w**4).sum() - 1) ** 2
        if len(seeds) > 1:
            mixed = pd.Series([mix(ratio(of[seed]), ratio(full[seed])) for seed in seeds])
            wide += mixed.var(ddof=1) / len(seeds) * stats.t.ppf(0.975, len(seeds) - 1) ** 2
        return math.sqrt(wide)

    def kept(self, configuration: Any) -> tuple[float, float | None, float | None]:
        """The share, and the two ends of its interval where it has one."""
        if id(configuration) not in self.known:
            self.known[id(configuration)] = self._kept(configuration)
        return self.known[id(configuration)]

    def _kept(self, configuration: Any) -> tuple[float, float | None, float | None]:
        share = (self.loss - configuration.loss) / (self.loss - self.full.loss)
        scored = by_seed(configuration, configuration.split)
        paired = scored and all(sorted(frame.index) == sorted(self.base.index) for frame in scored.values())
        if configuration is self.full or not any(configuration is each for each in self.compared) or not paired:
            return share, None, None
        seeds = sorted(scored.keys() & by_seed(self.full, self.full.split).keys())
        own, full = (self.ratio_of(self.below(each, seeds)) for each in (configuration, self.full))

        def beyond(r: float) -> float:
            return abs(own - r * full) - self.allowed(configuration, lambda own, full: own - r * full)

        ends = []
        for way in (-1, 1):
            far = 1e-6
            while beyond(own / full + way * far) < 0:
                far *= 2
                if far > 1e6:  # any share may be the true one
                    return share, None, None
            ends.append(optimize.brentq(beyond, *sorted((own / full, own / full + way * far)), xtol=1e-13))
        return share, ends[0], ends[1]
