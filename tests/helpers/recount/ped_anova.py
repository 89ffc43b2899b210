"""PED-ANOVA importances (arXiv 2304.10255) by numpy and scipy alone, with Optuna's default settings
but for how many trials are the best.

What sets the best of the trials apart from all of them: for each axis the Pearson divergence between the densities
of both, estimated by kernels on a grid; then divided by the sum over the axes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import norm

STEPS = 50  # of the grid over a range
BEST = 5  # trials, and at least a tenth
TINY = 1e-12


def importances(losses: list[float], ranges: dict[str, Any], choices: dict[str, list[Any]]) -> dict[str, float]:
    """Axis -> share, the largest first.

    `ranges` holds the values of each axis that is a range, as logarithms where it is searched so, and `choices` those of
    each axis of choices; the domain of either is what the trials have, not what the spec would have allowed.
    """
    best = the_best(losses)
    divergences = {axis: of_axis(places, kind, best) for axis, (places, kind) in placed(ranges, choices).items()}
    total = sum(divergences.values())
    shares = {axis: value / total if total else 1 / len(divergences) for axis, value in divergences.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def chances(
    losses: list[float], ranges: dict[str, Any], choices: dict[str, list[Any]], hang: dict[str, list[Any]]
) -> dict[str, float]:
    """Axis -> the share, of what all axes have, that it stays below by chance.

    Of a thousand shuffles by numpy's generator of seed 0, within the trials of one value of the axis that it hangs on (in
    the order in which these first come), it is the quantile that none of all axes passes in 95 %.
    """
    key = (tuple(losses), *((axis, tuple(values)) for axis, values in {**ranges, **choices, **hang}.items()))
    if key not in KNOWN:
        best, all_placed = the_best(losses), placed(ranges, choices)
        own = {axis: of_axis(places, kind, best) for axis, (places, kind) in all_placed.items()}
        KNOWN[key] = {}
        for axis, (places, kind) in all_placed.items():
            rng, found = np.random.default_rng(0), []
            branches = np.array(hang.get(axis, [0] * len(losses)))
            for _ in range(1000):
                mixed = places.copy()
                for branch in dict.fromkeys(branches.tolist()):
                    held = np.flatnonzero(branches == branch)
                    mixed[held] = places[rng.permutation(held)]
                found.append(of_axis(mixed, kind, best))
            limit = float(np.quantile(found, 0.95 ** (1 / len(all_placed))))
            KNOWN[key][axis] = limit / sum(own.values())
    return KNOWN[key]


KNOWN: dict[Any, dict[str, float]] = {}  # a recount is asked for the same many times


def the_best(losses: list[float]) -> np.ndarray:
    found = np.array(losses)
    return found <= np.sort(found)[max(BEST, math.ceil(len(found) / 10)) - 1]


def placed(ranges: dict[str, Any], choices: dict[str, list[Any]]) -> dict[str, tuple[np.ndarray, int]]:
    """Axis -> where each trial is on its grid, or among its choices, and how many of these there are (0: a grid)."""
    found = {}
    for axis, values in ranges.items():
        low, high = min(values), max(values)
        at = np.ceil((np.array(values) - low) / ((high - low) / (STEPS - 1)) - 0.5).astype(int)
        found[axis] = (np.clip(at, 0, STEPS - 1), 0)
    for axis, values in choices.items():
        known = sorted(set(values), key=str)
        found[axis] = (np.array([known.index(value) for value in values]), len(known))
    return found


def of_axis(places: np.ndarray, kinds: int, best: np.ndarray) -> float:
    counts = [np.bincount(places[of], minlength=kinds or STEPS) for of in (best, slice(None))]
    return divergence(*(of_choices(count) if kinds else on_grid(count) for count in counts))


def divergence(best: np.ndarray, every: np.ndarray) -> float:
    return float((every + TINY) @ (((best + TINY) / (every + TINY) - 1) ** 2))


def on_grid(counts: np.ndarray) -> np.ndarray:
    """The density at each point of a grid with so many trials at each: normal kernels of Scott's width, and a wide one
    of weight 1 in the middle, each cut off half a step outside the grid."""
    points = np.flatnonzero(counts)
    weights = counts[points]
    upto = np.cumsum(weights)
    total, last = int(upto[-1]), len(counts) - 1
    mean = points @ weights / total
    spread = math.sqrt((points - mean) ** 2 @ weights / max(1, total - 1))
    first = points[np.searchsorted(upto, total // 4, side="left")]
    third = points[min(len(points) - 1, np.searchsorted(upto, total * 3 // 4, side="right"))]
    width = max(1.059 * min((third - first) / 1.34, spread) * total**-0.2, 0.5 / 1.64)
    centres = np.append(points, last / 2)
    widths = np.append(np.full(len(points), width), last + 1)
    edges = np.arange(len(counts) + 1)[:, None] - 0.5
    mass = np.diff(norm.cdf((edges - centres) / widths), axis=0)
    return mass / mass.sum(axis=0) @ np.append(weights, 1) / (total + 1)


def of_choices(counts: np.ndarray) -> np.ndarray:
    """The same over choices: a kernel for each choice that a trial has, mixed with a uniform one."""
    points = np.flatnonzero(counts)
    kernels = np.full((len(points) + 1, len(counts)), 1 / (len(points) + 1))
    kernels[np.arange(len(points)), points] += 1
    kernels /= kernels.sum(axis=1, keepdims=True)
    return np.append(counts[points], 1) / (counts.sum() + 1) @ kernels
