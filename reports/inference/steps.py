"""Several judged together: which of them may be the best, so that none that is truly best is left out by chance.

The one with the lowest loss is picked by looking, so a rival is not held against it as if the two had been named before. Of
m that are truly equal, the two furthest apart lie within Tukey's studentized range of m in 95 % of all cases. Step by step
(as Newman and Keuls have it): the rival that is furthest behind the lowest is out if it is behind by more than the range of
all m allows; then the next, if by more than that of m - 1; up to the first that is not. What is left may be the best. The
steps are sound where only the lowest is compared, since of all differences among equals just those of the truly best can be
judged wrongly, and these are still in when they are.

Each difference has a variance of its own (Games and Howell's way for the range), of parts with degrees of freedom of their
own: the interval is as wide as the root of the sum of v t^2 over these (Banerjee, Sankhya 22, 1960: never too narrow, as
Satterthwaite's is where three seeds happen to lie close together).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

import numpy as np

from reports.inference.differences import Numbers

CONFIDENCE: Final = 0.95

Parts = Sequence[tuple[Numbers, Numbers | float]]
"""Variances [...] that add up, each with its degrees of freedom."""


@cache
def limit(of: int) -> float:
    """How many standard errors the two of `of` equals that are furthest apart are so at most, in 95 % of all cases: 1.96
    for two."""
    from scipy import stats

    return float(stats.studentized_range.ppf(CONFIDENCE, of, np.inf)) / 2**0.5


def reach(parts: Parts, errors: Numbers | float) -> Numbers:
    """Half the width [...] of an interval that is as wide as so many standard errors of the normal: 1.96 for 95 %."""
    from scipy import special

    tail = special.ndtr(-errors)
    return np.asarray(np.sqrt(sum(variance * special.stdtrit(freedom, tail) ** 2 for variance, freedom in parts)))


def step_down(differences: Numbers, parts: Parts) -> tuple[Numbers, Numbers]:
    """Which rivals of the lowest may be the best.

    Args:
        differences: [..., m - 1], how far each is behind; NaN: it cannot be compared, and stays.
        parts: its variances.

    Returns:
        Whether each may be the best, and how many standard errors its interval is wide to either side: then it holds zero
        exactly for those that may.
    """
    behind = np.abs(differences)
    stays, errors = np.ones(behind.shape, dtype=bool), np.zeros(behind.shape)
    going = np.ones(behind.shape[:-1], dtype=bool)
    for of in range(behind.shape[-1] + 1, 1, -1):
        errors = np.where(stays & going[..., None], limit(of), errors)
        allowed = reach(parts, limit(of))
        with np.errstate(divide="ignore", invalid="ignore"):
            by = np.where(stays & (behind > allowed), behind / allowed, 0.0)
        going &= by.max(axis=-1) > 0
        furthest = by.argmax(axis=-1)[..., None]
        kept = np.take_along_axis(stays, furthest, axis=-1) & ~going[..., None]
        np.put_along_axis(stays, furthest, kept, axis=-1)
    return stays, errors
