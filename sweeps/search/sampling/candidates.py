"""Configurations of a space, out of which a model chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import Any, Final

from sweeps.search.cloning.explore import resampled
from sweeps.search.sampling.prior import RATE, RatePrior
from sweeps.spec import space as spaces
from sweeps.spec.space import Choices, Range, Space

LISTED: Final = 2000
"""Where all axes are lists, with so many points at most, all of them are looked at."""
STAYS: Final = 0.8
"""How likely a value out of a list is the same in a configuration near by."""
Chosen = dict[str, Any]


class Candidates:
    """Configurations of a space.

    Args:
        prior: half of the learning rates are drawn from it.
    """

    def __init__(self, space: Space, prior: RatePrior | None, chance: Random) -> None:
        self._space, self._prior, self._chance = space, prior, chance
        self._order = spaces.order(space)
        self.all = _all(space)
        """Every configuration; None where there is no end of them."""

    def drawn(self, planned: Mapping[str, Any]) -> Chosen:
        """One at random, with the values that are planned."""
        chosen = dict(planned)
        for axis in self._order:
            if axis not in planned:
                chosen[axis] = resampled(spaces.domain_of(self._space, axis, chosen), self._chance)
        if self._prior is not None and RATE not in planned and self._chance.random() < 0.5:
            chosen[RATE] = self._prior.rate(chosen, self._chance.random())
        return chosen

    def near(self, one: Mapping[str, Any], width: float, planned: Mapping[str, Any]) -> Chosen:
        """One that is near another.

        Args:
            width: the standard deviation of its numbers from the other's, as a share of their ranges.
        """
        chosen = dict(planned)
        for axis in self._order:
            if axis not in planned:
                chosen[axis] = self._near(spaces.domain_of(self._space, axis, chosen), one[axis], width)
        return chosen

    def _near(self, domain: Choices | Range, value: Any, width: float) -> Any:
        if isinstance(domain, Choices):
            return (
                value if value in domain.values and self._chance.random() < STAYS else resampled(domain, self._chance)
            )
        if domain.log:
            away = width * math.log(domain.high / domain.low)
            return spaces.fitted(domain, value * math.exp(self._chance.gauss(0, away)))
        return spaces.fitted(domain, value + self._chance.gauss(0, width * (domain.high - domain.low)))


def _all(space: Space) -> list[Chosen] | None:
    if spaces.endless(space):
        return None
    try:
        points = spaces.grid(space)
    except ValueError:  # more than a grid may have
        return None
    return points if len(points) <= LISTED else None
