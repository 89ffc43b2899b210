"""Configurations as points, for a model of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sweeps.search.sampling.prior import RATE, SPREAD, TINY, RatePrior
from sweeps.spec.space import By, Choices, Range, Space

Floats = npt.NDArray[np.float64]
LENGTHS: Final = {RATE: 1.2, "rank": 5.5}
"""Length scales, beforehand, of axes whose meaning is known, in units of the logarithm: a loss hangs on the learning rate
within a factor of three, and hardly on the rank (Schulman et al., "LoRA Without Regret", 2025)."""
NUMBER: Final = 1.5
"""That of another axis of numbers, in units of its extent."""
CATEGORY: Final = 1.2
"""That of an axis of categories, of which any two are 1 apart."""
FAR: Final = 4.0
"""So many standard deviations from the likeliest learning rate: there nothing is learned, or all is lost, and further off
it is no worse."""


class Encoding:
    """The axes of a space as numbers: those with positive numbers go by their logarithm, lists of them too; what is no
    number is a category.

    Args:
        prior: what is known of learning rates: these then go by how far they are from the likeliest one.
    """

    def __init__(self, space: Space, prior: RatePrior | None) -> None:
        self._prior = prior
        self._values = {axis: _values(domain) for axis, domain in space.items()}
        self._numeric = {axis: all(map(_is_number, values)) for axis, values in self._values.items()}
        self._positive = {axis: self._numeric[axis] and min(values) > 0 for axis, values in self._values.items()}
        self.categories: npt.NDArray[np.bool_] = ~np.array(list(self._numeric.values()), bool)
        """[D] has the axis categories?"""
        self.lengths: Floats = np.array([self._length(axis) for axis in space])
        """[D] the median of its length scale."""

    def _length(self, axis: str) -> float:
        if not self._numeric[axis]:
            return CATEGORY
        if self._positive[axis] and axis in LENGTHS:
            return LENGTHS[axis]
        ends = [self._number(axis, value) for value in self._values[axis]]
        return NUMBER * (max(ends) - min(ends) or 1.0)

    def _number(self, axis: str, value: Any) -> float:
        if not self._numeric[axis]:
            return float(self._values[axis].index(value))
        return math.log(value) if self._positive[axis] else float(value)

    def points(self, chosen: Sequence[Mapping[str, Any]]) -> tuple[Floats, Floats]:
        """[N, D] configurations, each a value for every axis; and [N] how improbable their learning rates are: 0 of the
        likeliest, 1 of one that is two standard deviations off."""
        points = np.array([[self._number(axis, one[axis]) for axis in self._values] for one in chosen])
        if self._prior is None:
            return points, np.zeros(len(chosen))
        away = np.array([math.log(max(one[RATE], TINY) / self._prior.likeliest(one)) for one in chosen])
        points[:, list(self._values).index(RATE)] = away
        return points, np.minimum((away / SPREAD) ** 2, FAR**2) / 4


def _values(domain: Choices | Range | By) -> tuple[Any, ...]:
    """All of a list, the ends of a range, of every branch."""
    if isinstance(domain, Choices):
        return domain.values
    if isinstance(domain, Range):
        return domain.low, domain.high
    branches = [*domain.branches.values(), *([domain.default] if domain.default is not None else [])]
    return tuple(value for branch in branches for value in _values(branch))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
