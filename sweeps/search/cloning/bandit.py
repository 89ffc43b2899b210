"""Where the values of a trial move when it goes on as a copy of a better one, by what values were worth before: the explore
of PB2 (population-based bandits, Parker-Holder et al. 2020, arXiv 2002.02518).

What the steps between two rungs gained is a Gaussian process over where the values stood, and when:

    k((x, t), (x', t')) = exp(-|x - x'|² / 2ℓ²) (1 - ω)^(|t - t'| / 2)

`x` are places in the domains, from 0 to 1, and how far behind the others the member was before, since who is behind gains
more (Ray's PB2 takes the reward before); `t` counts rungs. Out of `DRAWN` values those are taken that have the highest mean
+ √β σ², with β = 0.2 + max(0, ln 0.4 n) after n gains: the bound that Ray's PB2 has, where the paper has σ, with which a
population came to no lower losses in `tests/benchmarks/search/population.py`. Who goes on at a rung chooses in turn: where
others have chosen, or stay, σ² is already what it will be when they have been there, and the mean is not (GP-BUCB,
Desautels et al. 2014).

Other than there, gains are standardised among the members of a rung, since losses fall ever slower; and ℓ, ω and the noise
are the likeliest of a few, since a population is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from random import Random
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bitlora.config.trial import TrialConfig
from sweeps.search.cloning.explore import chosen_of, movable, resampled
from sweeps.spec.space import Choices, Range, Space, domain_of

Floats = npt.NDArray[np.float64]
LENGTHS: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
"""ℓ is one of these."""
DECAYS: Final = (0.0, 0.1, 0.3, 0.5)
"""ω is one of these."""
NOISES: Final = (0.01, 0.1, 0.3, 0.6, 0.9)
"""Of the variance of gains, what no values explain."""
DRAWN: Final = 1000
"""Values that are drawn, of which one is chosen."""
RECENT: Final = 400
"""Gains that are remembered; of more the latest."""
CLIPPED: Final = 2.0
"""So many standard deviations from the mean a gain is at most, as in Ray's PB2."""

Came = Mapping[str, Mapping[str, Any]]
"""What members came to at a rung: our id -> `loss` (null: diverged), `gain`, by how much it fell (null: diverged), `behind`
and `at`, of before and during the steps that gained it (`Bandit.point`)."""


class Points(NamedTuple):
    """Where gains are known, or asked for."""

    x: Floats
    """[N, D] of each."""
    t: Floats
    """[N] the interval, counted from 1."""


class GainProcess(NamedTuple):
    """The process. Of gains with variance 1."""

    length: float
    decay: float
    noise: float

    def kernel(self, one: Points, other: Points) -> Floats:
        """[N, M] of what values explain."""
        squares = ((one.x[:, None] - other.x[None]) ** 2).sum(-1)
        since = np.abs(one.t[:, None] - other.t[None])
        found: Floats = (1 - self.noise) * np.exp(-squares / (2 * self.length**2)) * (1 - self.decay) ** (since / 2)
        return found

    def root(self, seen: Points) -> Floats:
        """[N, N] lower, Cholesky's, of the covariance of gains."""
        return np.asarray(np.linalg.cholesky(self.kernel(seen, seen) + self.noise * np.eye(len(seen.x))), np.float64)

    def likelihood(self, seen: Points, gains: Floats) -> float:
        """The logarithm of that of [N] gains, but for a constant."""
        root = self.root(seen)
        return float(-(_solve(root, gains) ** 2).sum() / 2 - np.log(np.diag(root)).sum())

    def mean(self, seen: Points, gains: Floats, where: Points) -> Floats:
        """[M] what is expected there, after [N] gains."""
        root = self.root(seen)
        found: Floats = _solve(root, self.kernel(seen, where)).T @ _solve(root, gains)
        return found

    def variance(self, seen: Points, where: Points) -> Floats:
        """[M] of that, whatever the gains are: σ²."""
        across = _solve(self.root(seen), self.kernel(seen, where))
        found: Floats = np.maximum(1 - self.noise - (across**2).sum(axis=0), 0.0)
        return found


def _solve(root: Floats, values: Floats) -> Floats:
    from scipy.linalg import solve_triangular

    found: Floats = solve_triangular(root, values, lower=True)
    return found


def likeliest(seen: Points, gains: Floats) -> GainProcess:
    """The process under which these gains are the likeliest; of equals the first."""
    processes = [GainProcess(*each) for each in product(LENGTHS, DECAYS, NOISES)]
    return max(processes, key=lambda process: process.likelihood(seen, gains))


def standardised(gains: Sequence[float | None]) -> list[float]:
    """Gains at one rung, with mean 0 and standard deviation 1, or all 0; None, of who has diverged, is as the worst."""
    worst = min((gain for gain in gains if gain is not None), default=0.0)
    found = np.array([worst if gain is None else gain for gain in gains])
    away = found - found.mean()
    return list(np.clip(away / (away.std() or 1.0), -CLIPPED, CLIPPED))


class Bandit:
    """Chooses for those that go on as copies at a rung, one after the other.

    Args:
        came: by interval, counted from 1, up to this rung.
        losses: what all came to at this rung.
        staying: those that go on as they are.
    """

    def __init__(
        self,
        space: Space,
        came: Mapping[int, Came],
        losses: Mapping[str, float],
        staying: Mapping[str, TrialConfig],
    ) -> None:
        self._space, self._axes = space, movable(space)
        self._behind, self._next = behind(losses), float(max(came) + 1)
        rows = [(t, row) for t, rung in sorted(came.items()) for _, row in sorted(rung.items())][-RECENT:]
        gains = [gain for _, rung in sorted(came.items()) for gain in standardised(_gains(rung))][-RECENT:]
        self._gains = np.array(gains)
        self._seen = self._points([[row["behind"], *row["at"]] for _, row in rows], [t for t, _ in rows])
        self._process = likeliest(self._seen, self._gains)
        self._pending = [
            [self._behind[name], *places(space, chosen_of(config, space))] for name, config in sorted(staying.items())
        ]

    def moved(self, other: str, config: TrialConfig, chance: Random) -> TrialConfig:
        """This configuration, the one of the member `other`, with the values that may gain the most."""
        drawn = [self._drawn(chosen_of(config, self._space), chance) for _ in range(DRAWN)]
        rows = [[self._behind[other], *places(self._space, chosen)] for chosen in drawn]
        best = int(np.argmax(self._bounds(rows)))
        self._pending.append(rows[best])
        return config.model_copy(update={axis: drawn[best][axis] for axis in self._axes})

    def _drawn(self, chosen: dict[str, Any], chance: Random) -> dict[str, Any]:
        for axis in self._axes:
            chosen[axis] = resampled(domain_of(self._space, axis, chosen), chance)
        return chosen

    def _bounds(self, rows: list[list[float]]) -> Floats:
        """[M] upper confidence bounds."""
        where, pending = (self._points(some, [self._next] * len(some)) for some in (rows, self._pending))
        soon = Points(np.concatenate([self._seen.x, pending.x]), np.concatenate([self._seen.t, pending.t]))
        beta = 0.2 + max(0.0, math.log(0.4 * len(self._gains)))
        mean, variance = self._process.mean(self._seen, self._gains, where), self._process.variance(soon, where)
        found: Floats = mean + math.sqrt(beta) * variance
        return found

    def _points(self, rows: Sequence[Sequence[float]], t: Sequence[float]) -> Points:
        return Points(np.array(rows, float).reshape(len(rows), len(self._axes) + 1), np.array(t, float))


def behind(losses: Mapping[str, float]) -> dict[str, float]:
    """Member -> the share of the others that had a lower loss, from 0 to 1."""
    others = max(1, len(losses) - 1)
    return {name: sum(other < own for other in losses.values()) / others for name, own in losses.items()}


def places(space: Space, chosen: Mapping[str, Any]) -> list[float]:
    """Where the values that move stand in their domains, from 0 to 1. `chosen`: a value for every axis."""
    return [_place(domain_of(space, axis, chosen), chosen[axis]) for axis in movable(space)]


def _place(domain: Choices | Range, value: float) -> float:
    """In the order of a list's numbers, by the logarithm where the range goes by it; in the middle where it is the only
    value."""
    if isinstance(domain, Choices):
        ordered = sorted(set(domain.values))
        return ordered.index(value) / (len(ordered) - 1) if len(ordered) > 1 else 0.5
    low, high, own = (math.log(each) if domain.log else each for each in (domain.low, domain.high, value))
    return (own - low) / (high - low) if high > low else 0.5


def _gains(rung: Came) -> list[float | None]:
    return [row["gain"] for _, row in sorted(rung.items())]
