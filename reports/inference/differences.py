"""How far two losses are apart, and how sure that is: over examples, or groups of them, and over seeds.

A loss is a ratio, the summed loss of all examples over their tokens. Both sides score the same examples with the same
tokens, so their difference is one ratio too, R = sum(d) / sum(t), where d is the difference of an example's summed losses
(their mean over the seeds) and t its tokens. Its variance over examples is that of a ratio estimator, from the residuals
d - R t (Cochran, Sampling Techniques, 3rd ed., section 6.3); where examples belong together, from the sums of these over
each group (section 9A.8). With seeds in common the variance of a mean over them is added: examples and seeds are crossed,
and the sum is never below the variance of R (Owen and Eckles, arXiv 1106.2125, section 3: what both share is counted
twice). Three seeds tell little of how far seeds are apart, so that variance is pooled over all that are compared.

In shapes, `...` is any number of comparisons made at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


def ratio(apart: Numbers, weights: Numbers) -> Numbers:
    """`apart` [..., n] summed over what `weights` [n] sum to: [...]."""
    return np.asarray(apart.sum(axis=-1) / weights.sum())


def over_examples(apart: Numbers, weights: Numbers, groups: Codes | None = None) -> tuple[Numbers, float]:
    """The variance of `ratio(apart, weights)` over examples, or over groups of them.

    Args:
        apart: [..., n], of each example the difference of its summed losses.
        weights: [n], its tokens.
        groups: [n], the group that it is in; None: each is its own.

    Returns:
        The variance [...] and its degrees of freedom: Kish's effective number of examples or groups, less one, since the
        residuals of long ones are large and few of these carry most of the variance. NaN for a single one.
    """
    left, drawn = residuals(apart, weights, groups)
    n = drawn.shape[-1]
    if n < 2:
        return np.full(left.shape[:-1], np.nan), 1.0
    return n / (n - 1) * (left**2).sum(axis=-1) / weights.sum() ** 2, freedom(drawn)


def residuals(apart: Numbers, weights: Numbers, groups: Codes | None = None) -> tuple[Numbers, Numbers]:
    """What is left of `apart` [..., n] without its ratio to `weights` [n], as [..., m], and the weights, as [m]: of each
    example, or of each group."""
    left = apart - ratio(apart, weights)[..., None] * weights
    if groups is None:
        return left, weights
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    return np.add.reduceat(left[..., order], starts, axis=-1), np.add.reduceat(weights[order], starts)


def freedom(drawn: Numbers) -> float:
    """Degrees of freedom of what was drawn with these weights [m]: Kish's effective number, less one."""
    return max(1.0, float((drawn**2).sum() ** 2 / (drawn**4).sum()) - 1)


def over_seeds(losses: Numbers) -> tuple[Numbers, int]:
    """The variance of the difference of two configurations on one seed, pooled over all of them.

    What a seed does to all is taken out: the residuals of the two-way layout. With two configurations it is the variance
    of their differences by seed.

    Args:
        losses: [..., C, S], of each configuration on each seed; at least two of both.

    Returns:
        The variance [...] and its degrees of freedom, (C - 1) (S - 1).
    """
    rows, columns = losses.mean(axis=-1, keepdims=True), losses.mean(axis=-2, keepdims=True)
    residuals = losses - rows - columns + losses.mean(axis=(-2, -1), keepdims=True)
    freedom = (losses.shape[-2] - 1) * (losses.shape[-1] - 1)
    return 2 * (residuals**2).sum(axis=(-2, -1)) / freedom, freedom
