"""The process against its formulas, written out with plain loops and SciPy's normal distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import multivariate_normal, norm

from sweeps.search.sampling.process import AMPLITUDES, JITTER, LENGTHS, OFFSET, CurveProcess, Places

CATEGORIES = np.array([False, True, False])
MEDIANS = np.array([1.2, 1.0, 0.6])


def places(count: int, seed: int) -> Places:
    chance = np.random.default_rng(seed)
    points = np.column_stack([chance.normal(size=count), chance.integers(0, 3, count), chance.random(count)])
    trials = np.arange(count) // 3
    points = points[trials * 3]  # evaluations of a trial are of one configuration
    return Places(points, chance.random(count // 3 + 1)[trials], np.tile([0.75, 0.25, 0.0], count)[:count], trials)


def kernel(one: np.ndarray, other: np.ndarray, lengths: np.ndarray) -> float:
    total = 0.0
    for axis in range(3):
        gap = float(one[axis] != other[axis]) if CATEGORIES[axis] else one[axis] - other[axis]
        total += (gap / lengths[axis]) ** 2
    r = math.sqrt(total)
    return (1 + math.sqrt(5) * r + 5 * total / 3) * math.exp(-math.sqrt(5) * r)


def covariance(one: Places, other: Places, logs: np.ndarray) -> np.ndarray:
    end, gain, same, own = (math.exp(log) ** 2 for log in logs[6:10])
    found = np.zeros((len(one.left), len(other.left)))
    for row in range(len(one.left)):
        for column in range(len(other.left)):
            near = [kernel(one.points[row], other.points[column], np.exp(logs[at : at + 3])) for at in (0, 3)]
            left = min(one.left[row], other.left[column])
            is_own = one.trials[row] == other.trials[column]
            found[row, column] = end * near[0] + left * (gain * near[1] + same + own * is_own)
    return found


def surprise(logs: np.ndarray, seen: Places, losses: np.ndarray) -> float:
    """Minus the logarithm of the posterior, constants and all."""
    full = covariance(seen, seen, logs) + (math.exp(logs[10]) ** 2 + JITTER) * np.eye(len(losses))
    likely = multivariate_normal(math.exp(logs[11]) * seen.offsets, full).logpdf(losses)
    priors = [(median, LENGTHS) for median in (*MEDIANS, *MEDIANS)] + [*AMPLITUDES.values(), OFFSET]
    for log, (median, spread) in zip(logs, priors, strict=True):
        likely += norm(math.log(median), spread).logpdf(log)
    return -float(likely)


def arguments(process: Any, seen: Places, losses: np.ndarray) -> tuple[Any, ...]:
    left = np.minimum(seen.left[:, None], seen.left[None])
    own = (seen.trials[:, None] == seen.trials[None]).astype(float)
    return process._squares(seen, seen), left, own, losses, seen.offsets


def test_the_posterior_and_its_gradient() -> None:
    process, seen = CurveProcess(MEDIANS, CATEGORIES), places(12, 0)
    losses = np.random.default_rng(1).normal(size=12)
    given = arguments(process, seen, losses)
    at = [np.log(process_logs) for process_logs in (np.linspace(0.3, 1.5, 12), np.linspace(1.2, 0.1, 12))]
    ours = [process._surprise(logs, *given)[0] for logs in at]
    theirs = [surprise(logs, seen, losses) for logs in at]
    assert ours[0] - ours[1] == pytest.approx(theirs[0] - theirs[1], rel=1e-9)
    for logs in at:
        wrong = check_grad(lambda x: process._surprise(x, *given)[0], lambda x: process._surprise(x, *given)[1], logs)
        assert wrong < 1e-4 * max(1.0, float(np.linalg.norm(process._surprise(logs, *given)[1])))


def test_what_is_told_is_the_conditional_normal_distribution() -> None:
    process, seen, where = CurveProcess(MEDIANS, CATEGORIES), places(9, 2), places(6, 3)
    where = where._replace(trials=where.trials + 1)  # two of them are trials of which something is known
    losses = np.random.default_rng(4).normal(3.0, 0.2, 9)
    process.fit(seen, losses)
    logs, ended = process._logs, losses[seen.left == 0]
    assert not np.allclose(logs, process._middle)
    b, full = math.exp(logs[11]), covariance(seen, seen, logs) + (math.exp(logs[10]) ** 2 + JITTER) * np.eye(9)
    gain = covariance(where, seen, logs) @ np.linalg.inv(full)
    scaled = (losses - ended.mean()) / losses.std()
    mean = b * where.offsets + gain @ (scaled - b * seen.offsets)
    rest = covariance(where, where, logs) - gain @ covariance(seen, where, logs)
    expected, deviation = process.tell(where)
    assert expected == pytest.approx(ended.mean() + losses.std() * mean, rel=1e-8)
    assert deviation == pytest.approx(losses.std() * np.sqrt(np.diag(rest)), rel=1e-5)


def test_it_learns_that_slow_starters_end_best() -> None:
    """Six trials of each of two kinds have ended: one kind is ahead at first and ends last. Of a trial of each that has
    just begun it expects that too, though the slow one is behind by far."""
    kinds, numbers = np.repeat([0.0, 1.0], 12), np.repeat(np.arange(12), 2)
    points = np.column_stack([np.linspace(0, 1, 24), kinds, np.zeros(24)])
    points[:, 0] = points[::2, 0].repeat(2)
    left = np.tile([0.75, 0.0], 12)
    losses = np.where(left > 0, 3.0 + kinds, 2.5 - 0.3 * kinds) + 0.02 * np.random.default_rng(0).normal(size=24)
    began = Places(np.array([[0.5, 0, 0], [0.5, 1, 0]]), np.zeros(2), np.full(2, 0.75), np.array([12, 13]))
    seen = Places(points, np.zeros(24), left, numbers)
    both = Places(*(np.concatenate(pair) for pair in zip(seen, began, strict=True)))
    process = CurveProcess(MEDIANS, CATEGORIES)
    process.fit(both, np.concatenate([losses, [3.0, 4.0]]))
    mean, deviation = process.tell(began._replace(left=np.zeros(2)))
    assert mean == pytest.approx([2.5, 2.2], abs=0.1)
    assert (deviation < 0.1).all()
