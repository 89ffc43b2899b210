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
    found = np.array(losses)
    best = found <= np.sort(found)[max(BEST, math.ceil(len(found) / 10)) - 1]
    divergences = {}
    for axis, values in ranges.items():
        low, high = min(values), max(values)
        at = np.ceil((np.array(values) - low) / ((high - low) / (STEPS - 1)) - 0.5).astype(int)
        at = np.clip(at, 0, STEPS - 1)
        divergences[axis] = divergence(*(on_grid(np.bincount(at[of], minlength=STEPS)) for of in (best, slice(None))))
    for axis, values in choices.items():
        known = sorted(set(values), key=str)
        at = np.array([known.index(value) for value in values])
        counts = (np.bincount(at[of], minlength=len(known)) for of in (best, slice(None)))
        divergences[axis] = divergence(*(of_choices(count) for count in counts))
    total = sum(divergences.values())
    shares = {axis: value / total if total else 1 / len(divergences) for axis, value in divergences.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


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
