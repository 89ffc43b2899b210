"""PED-ANOVA (arXiv 2304.10255), Optuna's default importance, and what of it is chance.

What sets the best trials apart from all: on each axis the Pearson divergence between the densities of both, estimated with
normal kernels of Scott's width on a grid, or by counting choices. Where an axis does nothing, the best have some of its
values all the same, and few trials make that look like much; so each axis is shuffled over the trials and measured again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from reports.inference.differences import Codes, Numbers

STEPS: Final = 50
"""Points of the grid over a range."""
SHUFFLES: Final = 1000
TINY: Final = 1e-12


@dataclass(frozen=True, slots=True)
class GridAxis:
    """An axis of the search space, as where each trial lies on it."""

    cells: Codes
    """[trials], from 0: the point of the grid, or the choice."""
    size: int
    """How many of these there are."""
    ordered: bool
    """Whether they lie on a range."""
    branches: Codes | None = None
    """[trials], the value of the axis that this one hangs on; it is shuffled within these alone. None: on none."""

    def shuffled(self) -> Iterator[Codes]:
        """`cells` in `SHUFFLES` other orders, always the same ones."""
        rng = np.random.default_rng(0)
        branches = np.zeros(len(self.cells), dtype=np.int64) if self.branches is None else self.branches
        for _ in range(SHUFFLES):
            mixed = self.cells.copy()
            for branch in np.unique(branches):
                held = np.flatnonzero(branches == branch)
                mixed[held] = self.cells[rng.permutation(held)]
            yield mixed


def on_range(values: Numbers) -> Codes:
    """The points of a grid over the range of `values` [trials], which has a width, that are nearest to each."""
    low, high = values.min(), values.max()
    nearest = np.ceil((values - low) / ((high - low) / (STEPS - 1)) - 0.5)
    return np.asarray(np.clip(nearest, 0, STEPS - 1), dtype=np.int64)


def best_of(losses: Numbers, count: int) -> npt.NDArray[np.bool_]:
    """Which trials are among the best `count`, and those equal to the last of these."""
    return np.asarray(losses <= np.sort(losses)[count - 1])


def divergence(axis: GridAxis, best: npt.NDArray[np.bool_]) -> float:
    """How far the best trials are from all on this axis; 0: not at all."""
    return float(_divergences(axis, np.bincount(axis.cells[best], minlength=axis.size)[None])[0])


def by_chance(axis: GridAxis, best: npt.NDArray[np.bool_]) -> Numbers:
    """The same, [`SHUFFLES`], where the axis has been shuffled and can have done nothing."""
    counts = np.array([np.bincount(cells[best], minlength=axis.size) for cells in axis.shuffled()])
    distinct, back = np.unique(counts, axis=0, return_inverse=True)
    return _divergences(axis, distinct)[back.ravel()]


def _divergences(axis: GridAxis, counts: Codes) -> Numbers:
    density = _on_grid if axis.ordered else _of_choices
    every = density(np.bincount(axis.cells, minlength=axis.size)) + TINY
    return np.array([every @ ((density(best) + TINY) / every - 1) ** 2 for best in counts])


def _on_grid(counts: Codes) -> Numbers:
    """Over a range, [size]: a kernel where there are trials, and a wide one of weight 1 in the middle."""
    from scipy import special

    at = np.flatnonzero(counts)
    weights, total = counts[at], int(counts.sum())
    seen = np.cumsum(weights)
    mean = at @ weights / total
    deviation = np.sqrt((at - mean) ** 2 @ weights / max(1, total - 1))
    quarters = np.searchsorted(seen, total // 4), np.searchsorted(seen, total * 3 // 4, side="right")
    between = int(at[min(len(at) - 1, int(quarters[1]))]) - int(at[int(quarters[0])])
    width = max(1.059 * min(between / 1.34, float(deviation)) * float(total) ** -0.2, 0.5 / 1.64)
    centres, widths = np.append(at, (len(counts) - 1) / 2), np.append(np.full(len(at), width), float(len(counts)))
    edges = np.arange(len(counts) + 1) - 0.5
    mass = np.diff(special.ndtr((edges - centres[:, None]) / widths[:, None]), axis=1)
    mass /= mass.sum(axis=1, keepdims=True)
    return np.asarray(np.append(weights, 1) @ mass / (total + 1))


def _of_choices(counts: Codes) -> Numbers:
    """Over choices, [size]: a kernel for each that a trial has, mixed with a uniform one, and a uniform one of weight 1."""
    at, size = np.flatnonzero(counts), len(counts)
    share = 1 / (len(at) + 1)
    spread = counts[at].sum() * share / (1 + size * share) + 1 / size
    own = np.zeros(size)
    own[at] = counts[at] / (1 + size * share)
    return np.asarray((own + spread) / (counts.sum() + 1))
