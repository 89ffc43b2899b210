"""What a confirmation on so many seeds and rows could show of a margin, before it is run, from a first look.

The first look tells the variance of N - m X (`reports.inference.noninferiority`) over its rows, and that of one seed. Over
n rows in the place of n0 the first falls to n0 / n of itself, over S seeds the second to 1 / S, and the degrees of freedom
grow with them: so the smallest margin that is shown of equals in four of five cases is known of every design, and of those
for which it is small enough the cheapest is taken. What one seed adds on single rows is counted with the rows and taken not
to fall with the seeds: the design is rather too large than too small by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reports.inference.noninferiority import TAIL, smallest
from reports.inference.steps import Parts


class Design(NamedTuple):
    """How something is confirmed."""

    seeds: int
    rows: int


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What is known of one that is to be held to a margin, in nats per token."""

    amount: float
    """X."""
    rows: int
    """That it was scored on."""
    variance: float
    """Of N - m X over these."""
    freedom: float
    """Degrees of freedom of that."""
    of_seed: float
    """The variance of N - m X on one seed."""
    tail: float = TAIL
    """Its part of the 5 %, where several of one kind may be picked from."""

    def parts(self, design: Design, configurations: int) -> Parts:
        """The variance in its parts, as `design` with so many configurations would have it."""
        times = design.rows / self.rows
        over_rows = np.asarray(self.variance / times), max(1.0, (self.freedom + 1) * times - 1)
        if design.seeds == 1:
            return [over_rows]
        # they are pooled over all that are compared, at least the two
        freedom = max(1, configurations - 1) * (design.seeds - 1)
        return [over_rows, (np.asarray(self.of_seed / design.seeds), float(freedom))]


def least(looks: Sequence[FirstLook], design: Design, configurations: int) -> float:
    """The smallest margin that is shown of each of `looks` in four of five cases, if it is truly equal."""
    return max(smallest(look.parts(design, configurations), look.amount, look.tail) for look in looks)


def cheapest(
    looks: Sequence[FirstLook],
    margin: float,
    configurations: int,
    seeds: Sequence[int],
    rows: tuple[int, int],
    cost: Callable[[Design], float],
) -> Design | None:
    """The cheapest design that shows `margin` of equals in four of five cases.

    Args:
        looks: of each that is to be held to the margin; at least one.
        configurations: that are confirmed, full precision included.
        seeds: numbers of them that are possible.
        rows: the fewest, and the most.
        cost: grows with both.

    Returns:
        None where there is none.
    """
    found = []
    for count in seeds:
        low, high = rows
        if least(looks, Design(count, high), configurations) > margin:
            continue
        while low < high:  # more rows never show less
            middle = (low + high) // 2
            if least(looks, Design(count, middle), configurations) > margin:
                low = middle + 1
            else:
                high = middle
        found.append(Design(count, high))
    return min(found, key=lambda design: (cost(design), design), default=None)
