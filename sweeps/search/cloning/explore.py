"""Where the values of a trial move when it goes on as a copy of a better one (PBT's explore, arXiv 1711.09846).

Ray's own `explore` does not know the space: a number that is multiplied leaves its range, one that is 0 or an integer 1
stays where it is for ever, and a list's neighbours end at its ends alone. Here all stay inside, and all can move.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, Final

from bitlora.config.sections import MOVED
from bitlora.config.trial import TrialConfig
from sweeps.spec.space import Choices, Range, Space, domain_of, fitted, order

Explore = Callable[[str, TrialConfig, Random], TrialConfig]
"""The configuration of a member -> the same with values that have moved. Asked once for each that goes on as its copy."""

FACTORS: Final = (0.8, 1.2)
"""One of them multiplies a number, as in PBT."""
SHARE: Final = 0.1
"""Of its range a number moves by so much where neither factor moves it: 0, or one on a coarse grid."""


def resampled(domain: Choices | Range, chance: Random) -> Any:
    """A value out of the domain, each as likely as any other (of a range with `log` by its logarithm)."""
    if isinstance(domain, Choices):
        return chance.choice(domain.values)
    if domain.log:
        return fitted(domain, math.exp(chance.uniform(math.log(domain.low), math.log(domain.high))))
    return fitted(domain, chance.uniform(domain.low, domain.high))


def perturbed(domain: Choices | Range, value: Any, chance: Random) -> Any:
    """A value beside `value`: a neighbour in the list, or a number a fifth smaller or larger. It is another one wherever
    the domain has another one."""
    first = chance.random() < 0.5
    if isinstance(domain, Choices):
        if value not in domain.values:
            return chance.choice(domain.values)
        place = domain.values.index(value)
        beside = [at for at in (place - 1, place + 1) if 0 <= at < len(domain.values)]
        return domain.values[beside[-first] if len(beside) > 1 else (beside or [place])[0]]
    step = max(SHARE * (domain.high - domain.low), domain.step or isinstance(domain.low, int))
    ways = [(factor * value, value + sign * step) for factor, sign in zip(FACTORS, (-1, 1), strict=True)]
    tries = [way[how] for how in (0, 1) for way in (ways if first else ways[::-1])]
    return next((found for number in tries if (found := fitted(domain, number)) != value), value)


def moved(config: TrialConfig, space: Space, resample: float, chance: Random) -> TrialConfig:
    """This configuration with all beside where they are that can be moved; or, as often as `resample` says, drawn anew."""
    chosen, axes = chosen_of(config, space), movable(space)
    for axis in axes:
        domain = domain_of(space, axis, chosen)
        again = chance.random() < resample
        chosen[axis] = resampled(domain, chance) if again else perturbed(domain, chosen[axis], chance)
    return config.model_copy(update={axis: chosen[axis] for axis in axes})


def movable(space: Space) -> list[str]:
    """The axes that can be moved, each after the one it hangs on."""
    return [axis for axis in order(space) if axis in MOVED]


def chosen_of(config: TrialConfig, space: Space) -> dict[str, Any]:
    """What a configuration has of each axis."""
    return {axis: getattr(config, axis) for axis in space}
