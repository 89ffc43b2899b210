"""How far configurations are from one of them, all judged together, and what share of full precision's gain over the bare
base one keeps: by pandas and scipy's distributions alone, the definitions written out, sharing nothing with the product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats


def ratio(scores: pd.DataFrame) -> float:
    return float(scores["loss"].sum() / scores["tokens"].sum())


@dataclass
class Gap:
    """How far `other` is behind `best`, over the examples and seeds that they have in common."""

    difference: float
    low: float
    high: float
    examples: int
    seeds: int
    groups: int
    pooled: int

    @property
    def tied(self) -> bool:
        return self.low <= 0 <= self.high


@dataclass
class Apart:
    """What an interval is made of: the difference, and its variances with their degrees of freedom."""

    difference: float
    parts: list[tuple[float, float]]
    examples: int
    seeds: int
    groups: int
    pooled: int

    def half(self, m: int) -> float:
        """Half the width of the interval where m are judged: as far in the tail as the studentized range of m is."""
        return math.sqrt(sum(variance * stats.t.isf(tail(m), freedom) ** 2 for variance, freedom in self.parts))


@cache
def tail(m: int) -> float:
    return float(stats.norm.sf(stats.studentized_range.ppf(0.95, m, np.inf) / math.sqrt(2)))


def gaps(best: Any, others: list[Any]) -> dict[int, Gap | None]:
    """Of each of `others`, configurations of `sweep_files`, by its place in the list: the difference to `best` of two ratio
    losses over the same examples and its 95 % interval, all judged together (none without such examples, or fewer than 30
    of them or of their groups).

    d of an example is what the other loses more on it than `best` (the mean over the seeds in common), t its tokens,
    R = sum(d) / sum(t); over the G groups, or else examples, e = sum(d - R t) and w = sum(t) of each, the variance of R is
    G / (G - 1) sum(e^2) / sum(t)^2 with sum(w^2)^2 / sum(w^4) - 1 degrees of freedom. With k > 1 seeds in common the
    variance of a seed is added, divided by k: twice the mean square of what is left of the losses by configuration and
    seed without the means of both, over all configurations with several seeds. Half the width of an interval is the root
    of the sum of each variance times the square of its t. From m judged on, the furthest beyond its interval goes, and
    the rest is judged as m - 1.
    """
    found = {number: apart(best, other, [best, *others]) for number, other in enumerate(others)}
    m = 1 + len(others)
    left, settled = {number for number, of in found.items() if of}, {}
    while left:
        beyond = {n: abs(found[n].difference) / max(found[n].half(m), 1e-300) for n in left}
        furthest = max(sorted(left), key=lambda n: beyond[n])
        if beyond[furthest] <= 1:
            break
        settled[furthest] = m
        left.remove(furthest)
        m -= 1
    closed: dict[int, Gap | None] = {}
    for number, of in found.items():
        half = of.half(settled.get(number, m)) if of else 0.0
        closed[number] = of and Gap(
            of.difference, of.difference - half, of.difference + half, of.examples, of.seeds, of.groups, of.pooled
        )
    return closed


def apart(best: Any, other: Any, compared: list[Any]) -> Apart | None:
    first, second = (by_seed(configuration, best.split) for configuration in (best, other))
    seeds = [seed for seed in sorted(first) if seed in second]
    if not seeds:
        return None
    frame = first[seeds[0]]
    if any(
        not own[seed].index.sort_values().equals(frame.index.sort_values()) for own in (first, second) for seed in seeds
    ):
        return None
    tokens, k = frame["tokens"].astype(float), len(seeds)
    d = sum((second[seed]["loss"] - first[seed]["loss"]).loc[frame.index] for seed in seeds) / k
    r = d.sum() / tokens.sum()
    own = pd.Series([f"example {name}" for name in frame.index], frame.index)
    groups = frame["group"].where(frame["group"].notna(), own) if "group" in frame else own
    e, w = ((d - r * tokens).groupby(groups).sum(), tokens.groupby(groups).sum())
    if len(w) < 30:
        return None
    variance = len(w) / (len(w) - 1) * (e**2).sum() / tokens.sum() ** 2
    parts = [(float(variance), float((w**2).sum() ** 2 / (w**4).sum() - 1))]
    pooled = 0
    if k > 1:
        several = [found for found in (by_seed(c, best.split) for c in compared) if len(found) > 1]
        shared = sorted(set.intersection(*map(set, several)))
        losses = pd.DataFrame([{seed: ratio(found[seed]) for seed in shared} for found in several])
        rest = losses.sub(losses.mean(axis=1), axis=0).sub(losses.mean(axis=0), axis=1) + losses.to_numpy().mean()
        degrees, pooled = (len(several) - 1) * (len(shared) - 1), len(several)
        parts.append((float(2 * (rest**2).to_numpy().sum() / degrees / k), degrees))
    return Apart(float(r), parts, len(frame), k, len(w) if len(w) < len(frame) else 0, pooled)


def by_seed(configuration: Any, split: str) -> dict[int, pd.DataFrame]:
    return {t.config["seed"]: t.scores[split] for t in configuration.trials if split in t.scores}


@dataclass
class Gain:
    """The base and full precision on a split; `compared`: those whose shares have an interval, which is searched for, share
    by share, with no formula for its ends."""

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
