"""Whether one loss is above another's by less than a margin, which is a share of an amount that is measured too.

N is how far the one is above the other, X the amount: the other's loss, or its gain over the base. That N is below m X is
shown with 95 % where N - m X, one number for each example and so as sure or unsure as any difference here, lies below
zero by more than its one-sided reach allows: no ratio is estimated, so nothing is assumed of X (the linear form of
Fieller's, as Hauschke and others have it for margins in per cent, Statistics in Medicine 18, 1999, pages 93 to 105). Where
several of one kind may be picked from, each is held to its part of the 5 % (Bonferroni).

What seeds do to N is pooled over all that are compared (`reports.inference.differences`); what they do to m X is added as
if it went the same way, which is never too little.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from reports.inference.differences import Codes, Numbers, over_examples, ratio
from reports.inference.steps import Parts, reach

TAIL: Final = 0.05
"""How often a margin may be said to be kept where the loss lies just at it."""
POWER: Final = 0.80
"""How often what is truly equal is to be found within the margin."""


def standard_errors(tail: float) -> float:
    """How many standard errors of the normal leave so much above them."""
    from scipy import special

    return float(-special.ndtri(tail))


def parts_at(
    share: float,
    apart: Numbers,
    amount: Numbers,
    weights: Numbers,
    groups: Codes | None = None,
    by_seed: tuple[Numbers, Numbers, float] | None = None,
) -> Parts:
    """The variance of N - m X, in its parts.

    Args:
        share: m.
        apart, amount: [..., n], of each example what is summed for N and for X.
        weights: [n], its tokens.
        groups: [n], the group that it is in; None: each is its own.
        by_seed: where there are several seeds, the variance of N and that of X over them [...], and degrees of freedom.
    """
    parts = [over_examples(apart - share * amount, weights, groups)]
    if by_seed is not None:
        of_apart, of_amount, freedom = by_seed
        parts.append(((np.sqrt(of_apart) + abs(share) * np.sqrt(of_amount)) ** 2, freedom))
    return parts


def above(share: float, apart: Numbers, amount: Numbers, weights: Numbers, parts: Parts, tail: float = TAIL) -> Numbers:
    """How far N - m X may lie above zero [...]: the margin is kept for sure where this is below it."""
    return ratio(apart - share * amount, weights) + reach(parts, standard_errors(tail))


def bound(
    apart: Numbers,
    amount: Numbers,
    weights: Numbers,
    groups: Codes | None = None,
    by_seed: tuple[Numbers, Numbers, float] | None = None,
    tail: float = TAIL,
) -> float | None:
    """The smallest share that is kept for sure, for one pair: what N is at most of X with 95 %; None: no share up to all of
    X is."""
    from scipy import optimize

    def over(share: float) -> float:
        parts = parts_at(share, apart, amount, weights, groups, by_seed)
        return float(above(share, apart, amount, weights, parts, tail))

    low, high = -1.0, 1.0
    if not over(high) < 0:
        return None
    return low if over(low) < 0 else float(optimize.brentq(over, low, high, xtol=1e-9))


def smallest(parts: Parts, amount: float, tail: float = TAIL) -> float:
    """The smallest share of X that would be shown in four of five cases of a loss that is truly equal."""
    from scipy import special

    found = 0.0
    for variance, freedom in parts:
        errors = -special.stdtrit(freedom, tail) + special.stdtrit(freedom, POWER)
        found += float(variance) * errors**2
    return float(np.sqrt(found)) / amount
