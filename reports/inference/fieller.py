"""How sure the ratio of two differences is, where the lower one is clear of zero.

Of N / D, both estimated, the 95 % interval holds every r for which N - r D is not further from zero than chance allows
(Fieller, Some problems in interval estimation, Journal of the Royal Statistical Society B 16, 1954, pages 175 to 185). As
everywhere here the variance of N - r D is a sum of parts, over examples and over seeds, each with its degrees of freedom,
and what is allowed is the root of the sum of v t^2 over these (Banerjee, Sankhya 22, 1960). Each part is quadratic in r,
and so is the condition: (N - r D)^2 <= sum t^2 (v_NN - 2 r v_ND + r^2 v_DD), whose ends are the roots of a parabola.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from reports.inference.differences import Codes, Numbers, freedom, ratio, residuals

TAIL: Final = 0.025

Covariances = Sequence[tuple[Numbers, float]]
"""Covariances [2, 2] of (N, D) that add up, each with its degrees of freedom."""


def over_examples(apart: Numbers, weights: Numbers, groups: Codes | None = None) -> tuple[Numbers, float]:
    """The covariance [2, 2] of two ratios to the same `weights`, over examples or groups, and its degrees of freedom.

    Args:
        apart: [2, n], of each example the two differences of its summed losses.
        weights: [n], its tokens.
        groups: [n], the group that it is in; None: each is its own.
    """
    left, drawn = residuals(apart, weights, groups)
    n = drawn.shape[-1]
    return n / (n - 1) * left @ left.T / weights.sum() ** 2, freedom(drawn)


def over_seeds(losses: Numbers) -> tuple[Numbers, float]:
    """The same of two means over S seeds, from `losses` [2, S] of both on each; S is at least two."""
    seeds = losses.shape[1]
    return np.cov(losses) / seeds, seeds - 1.0


def interval(apart: Numbers, weights: Numbers, parts: Covariances) -> tuple[float, float] | None:
    """The 95 % interval of the ratio of the first of `apart` [2, n] to the second; None where the second is not clear of
    zero, and any ratio may be the true one."""
    above, below = ratio(apart, weights).tolist()
    (nn, nd), (_, dd) = sum(covariance * quantile(free) ** 2 for covariance, free in parts).tolist()  # type: ignore[union-attr]
    a, b, c = below**2 - dd, above * below - nd, above**2 - nn
    if not a > 0:
        return None
    wide = math.sqrt(max(0.0, b**2 - a * c))
    return (b - wide) / a, (b + wide) / a


def half_width(parts: Covariances) -> float:
    """Half the width of the 95 % interval of D alone."""
    return math.sqrt(sum(float(covariance[1, 1]) * quantile(free) ** 2 for covariance, free in parts))


def quantile(free: float) -> float:
    """How many standard errors with so many degrees of freedom a 95 % interval reaches to either side."""
    from scipy import special

    return float(special.stdtrit(free, 1 - TAIL))
