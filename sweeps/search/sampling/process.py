"""A Gaussian process over configurations and how much of their training is left.

What a trial has come to when a share `r` of its steps is left is

    loss(x, r) = m + b * offset(x) + F(x) + D(x, r)

`F` is what it comes to at the end, `D` what is still to be gained, 0 at the end. Both are Gaussian processes over the
configuration, with Matérn-5/2 kernels and a length scale for each axis. Over `r`, `D` is a Brownian motion that begins at
the end of training: what is gained early says nothing of what is gained later, beyond what the configuration says. A part
of it is the same for all, a part each trial's own. So a loss on the way counts for as much as such losses have been worth:
where slow starters end best, that is learned from those that have ended. Freeze-thaw Bayesian optimization (arXiv
1406.3896) has the idea, with exponential decays that are alike for all configurations.

Length scales and amplitudes are where their posterior is highest; `AMPLITUDES` and `LENGTHS` are what is taken of them
before. Losses are brought to standard deviation 1.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
AMPLITUDES: Final = {"F": (0.5, 0.3), "D": (0.5, 0.35), "all": (0.7, 0.35), "own": (0.1, 0.35), "noise": (0.02, 0.35)}
"""Standard deviations of F; of D when all is left; of its part that is the same for all; of each trial's own; and of an
evaluation's noise. Each by its median and the standard deviation of its logarithm, which is normal."""
OFFSET: Final = (2.0, 0.35)
"""`b`, likewise."""
LENGTHS: Final = 0.35
"""The standard deviation of a length scale's logarithm."""
JITTER: Final = 1e-8
FURTHEST: Final = 4.0
"""So many standard deviations from what is taken of it before, a length scale or an amplitude is at most."""
FITS: Final = 25
"""Steps of the search for the highest posterior; it begins where the last one ended."""


class Places(NamedTuple):
    """Where losses are known, or are to be told."""

    points: Floats
    """[N, D] configurations (`sweeps.search.sampling.encoding`)."""
    offsets: Floats
    """[N] how far each is from what is known to be good; 0 where nothing is known."""
    left: Floats
    """[N] the share of the steps that is left, 0 at the end."""
    trials: npt.NDArray[np.int64]
    """[N] whose they are."""


class CurveProcess:
    """The process, and what has been seen of it.

    Args:
        lengths: [D] the median of each axis's length scale, in units of that axis.
        categories: [D] has it categories, of which any two are 1 apart?
    """

    def __init__(self, lengths: Floats, categories: npt.NDArray[np.bool_]) -> None:
        self._categories, self._axes = categories, len(lengths)
        medians, spreads = zip(*AMPLITUDES.values(), OFFSET, strict=True)
        self._middle = np.concatenate([np.log(lengths), np.log(lengths), np.log(medians)])
        self._spread = np.concatenate([np.full(2 * len(lengths), LENGTHS), spreads])
        self._logs = self._middle.copy()
        """The logarithms of F's lengths, D's lengths, the amplitudes and `b`."""

    def fit(self, seen: Places, losses: Floats, anew: bool = True) -> None:
        """Learn from [N] losses, lower where they are better; unless `anew`, mean, length scales and amplitudes stay."""
        from scipy import optimize

        if anew:
            ended = losses[seen.left == 0]
            self._mean, self._scale = float((ended if len(ended) > 1 else losses).mean()), float(losses.std()) or 1.0
        scaled = (losses - self._mean) / self._scale
        if anew:
            known = (self._squares(seen, seen), *_common(seen, seen), scaled, seen.offsets)
            bounds = optimize.Bounds(self._middle - FURTHEST * self._spread, self._middle + FURTHEST * self._spread)
            options = {"jac": True, "bounds": bounds, "options": {"maxiter": FITS}}
            self._logs = optimize.minimize(self._surprise, self._logs, known, "L-BFGS-B", **options).x
        covariance = self._covariance(seen, seen)
        covariance[np.diag_indices_from(covariance)] += self._amplitudes[-1] + JITTER
        self._seen, self._root = seen, np.linalg.cholesky(covariance)
        self._weighed = self._solve(scaled - self._b * seen.offsets)

    def tell(self, where: Places) -> tuple[Floats, Floats]:
        """[M] the loss that is expected at each place, and [M] its standard deviation."""
        across = self._solve(self._covariance(self._seen, where))
        mean = across.T @ self._weighed + self._b * where.offsets
        end, gain, same, own, _ = self._amplitudes
        variance = end + where.left * (gain + same + own) - (across**2).sum(axis=0)
        return mean * self._scale + self._mean, np.sqrt(np.maximum(variance, JITTER)) * self._scale

    @property
    def _amplitudes(self) -> Floats:
        """Squared."""
        amplitudes: Floats = np.exp(2 * self._logs[2 * self._axes : -1])
        return amplitudes

    @property
    def _b(self) -> float:
        return float(np.exp(self._logs[-1]))

    def _solve(self, values: Floats) -> Floats:
        from scipy.linalg import solve_triangular

        solved: Floats = solve_triangular(self._root, values, lower=True)
        return solved

    def _squares(self, one: Places, other: Places) -> Floats:
        """[D, N, M] squared distances along each axis."""
        gaps = one.points.T[:, :, None] - other.points.T[:, None, :]
        gaps[self._categories] = gaps[self._categories] != 0
        squares: Floats = gaps**2
        return squares

    def _covariance(self, one: Places, other: Places) -> Floats:
        squares, (left, own) = self._squares(one, other), _common(one, other)
        end, gain, same, its_own, _ = self._amplitudes
        near_end, near_gain = (_matern(squares, lengths)[0] for lengths in self._lengths(self._logs))
        covariance: Floats = end * near_end + left * (gain * near_gain + same + its_own * own)
        return covariance

    def _lengths(self, logs: Floats) -> tuple[Floats, Floats]:
        """Of F and of D: one over each squared length scale."""
        scales: Floats = np.exp(-2 * logs[: 2 * self._axes])
        return scales[: self._axes], scales[self._axes :]

    def _surprise(
        self, logs: Floats, squares: Floats, left: Floats, own: Floats, losses: Floats, offsets: Floats
    ) -> tuple[float, Floats]:
        """The posterior's negative logarithm, but for a constant, and its gradient (Rasmussen and Williams, Gaussian
        Processes for Machine Learning, 2006, equations 2.30 and 5.9)."""
        from scipy.linalg import lapack

        lengths_end, lengths_gain = self._lengths(logs)
        end, gain, same, its_own, noise = np.exp(2 * logs[2 * self._axes : -1])
        b = np.exp(logs[-1])
        (near_end, slope_end), (near_gain, slope_gain) = _matern(squares, lengths_end), _matern(squares, lengths_gain)
        covariance = end * near_end + left * (gain * near_gain + same + its_own * own)
        covariance[np.diag_indices_from(covariance)] += noise + JITTER
        root, failed = lapack.dpotrf(covariance, lower=1)
        if failed:
            return np.inf, np.zeros_like(logs)
        inverse = np.tril(lapack.dpotri(root, lower=1)[0])
        inverse += np.tril(inverse, -1).T
        rest = losses - b * offsets
        weights = inverse @ rest
        away = (logs - self._middle) / self._spread
        surprise = rest @ weights / 2 + np.log(np.diag(root)).sum() + away @ away / 2
        pull = inverse - np.outer(weights, weights)
        slopes = np.concatenate(
            [
                np.tensordot(squares, pull * slope_end, 2) * lengths_end * end / 2,
                np.tensordot(squares, pull * slope_gain * left, 2) * lengths_gain * gain / 2,
                [(pull * part).sum() for part in (end * near_end, left * gain * near_gain, left * same)],
                [(pull * left * own).sum() * its_own, pull.trace() * noise, -b * (offsets @ weights)],
            ]
        )
        return float(surprise), slopes + away / self._spread


def _common(one: Places, other: Places) -> tuple[Floats, Floats]:
    """[N, M] the steps that both have left, as a share; and whether they are one trial's."""
    return np.minimum(one.left[:, None], other.left[None]), np.equal.outer(one.trials, other.trials).astype(np.float64)


def _matern(squares: Floats, lengths: Floats) -> tuple[Floats, Floats]:
    """[N, M] the Matérn-5/2 kernel; and its slope by the logarithm of an axis's length scale, without that axis's own
    factor of the scaled square."""
    r = np.sqrt(5 * np.tensordot(lengths, squares, 1))
    decay = np.exp(-r)
    return (1 + r + r * r / 3) * decay, 5 / 3 * (1 + r) * decay
