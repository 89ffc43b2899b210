"""The interval of a share against definitions written out, and how often it holds the true one in simulated sweeps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from reports.inference import fieller


def drawn(rng, rows=80, share=0.9, groups=None, noise=0.1):
    """Examples of 5 to 60 tokens whose gain is `share` of full precision's 0.3 nats a token, give or take."""
    tokens = rng.integers(5, 60, rows).astype(float)
    per = np.zeros(rows) if groups is None else rng.normal(0, noise, groups.max() + 1)[groups]
    whole = 0.3 + per + rng.normal(0, noise, rows)
    part = share * whole + rng.normal(0, noise / 4, rows)
    return np.stack([part * tokens, whole * tokens]), tokens


@pytest.mark.parametrize("grouped", [False, True])
def test_its_ends_are_where_the_difference_is_just_as_far_as_chance_allows(grouped):
    """At the true share r the gains n - r d sum to nothing: Student's t of that, searched for r with no algebra."""
    rng = np.random.default_rng(3)
    groups = rng.integers(0, 40, 80) if grouped else None
    apart, tokens = drawn(rng, groups=groups)
    low, high = fieller.interval(apart, tokens, [fieller.over_examples(apart, tokens, groups)])
    labels = np.arange(80) if groups is None else groups
    names = np.unique(labels)
    held = np.array([tokens[labels == name].sum() for name in names])
    free = (held**2).sum() ** 2 / (held**4).sum() - 1

    def beyond(r):
        e = apart[0] - r * apart[1]
        e = e - e.sum() / tokens.sum() * tokens
        sums = np.array([e[labels == name].sum() for name in names])
        error = np.sqrt(len(names) / (len(names) - 1) * (sums**2).sum())
        return abs((apart[0] - r * apart[1]).sum()) / error - stats.t.ppf(0.975, free)

    middle = apart[0].sum() / apart[1].sum()
    assert low == pytest.approx(optimize.brentq(beyond, middle - 1, middle), abs=1e-9)
    assert high == pytest.approx(optimize.brentq(beyond, middle, middle + 1), abs=1e-9)
    assert low < middle < high


def test_of_a_clear_gain_it_is_about_what_drawing_the_examples_again_gives():
    rng = np.random.default_rng(4)
    apart, tokens = drawn(rng, rows=400)
    low, high = fieller.interval(apart, tokens, [fieller.over_examples(apart, tokens)])
    again = apart[:, rng.integers(0, 400, (4000, 400))].sum(axis=2)
    shares = again[0] / again[1]
    assert (low, high) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=0.15 * (high - low))


def test_there_is_none_where_the_whole_gain_may_be_nothing():
    rng = np.random.default_rng(5)
    apart, tokens = drawn(rng, rows=40, noise=2.0)
    apart[1] -= (apart[1].sum() / tokens.sum() - 0.1) * tokens
    parts = [fieller.over_examples(apart, tokens)]
    assert fieller.half_width(parts) > 0.1
    assert fieller.interval(apart, tokens, parts) is None


def test_seeds_widen_it_by_what_they_tell_of_each_other():
    """Two losses by seed that go up and down together leave the share alone as far as the share goes with them."""
    rng = np.random.default_rng(6)
    apart, tokens = drawn(rng, share=0.5)
    examples = fieller.over_examples(apart, tokens)
    alone = fieller.interval(apart, tokens, [examples])
    shared = np.array([0.01, -0.02, 0.01])
    r = apart[0].sum() / apart[1].sum()
    covariance, free = fieller.over_seeds(np.stack([r * shared, shared]))
    assert free == 2
    assert covariance == pytest.approx(np.array([[r * r, r], [r, 1]]) * 1e-4, rel=1e-12)
    with_them = fieller.interval(apart, tokens, [examples, (covariance, free)])
    apart_from = fieller.interval(apart, tokens, [examples, fieller.over_seeds(np.stack([-r * shared, shared]))])
    width = [high - low for low, high in (alone, with_them, apart_from)]
    assert width[0] <= width[1] < 1.2 * width[0] < width[2]


@pytest.mark.parametrize("kind", ["examples", "groups", "seeds"])
def test_it_holds_the_true_share_in_95_of_100_sweeps(kind):
    """A share of 0.9; with seeds the losses of both sides shift from seed to seed."""
    rng = np.random.default_rng(7)
    groups = np.repeat(np.arange(50), 2) if kind == "groups" else None
    held, of = 0, 600
    for _ in range(of):
        apart, tokens = drawn(rng, rows=100, groups=groups)
        parts = []
        if kind == "seeds":
            shifts = rng.normal(0, 0.01, (2, 5))
            apart = apart + shifts.mean(axis=1)[:, None] * tokens
            parts = [fieller.over_seeds(shifts)]
        parts.append(fieller.over_examples(apart, tokens, groups))
        low, high = fieller.interval(apart, tokens, parts)
        held += low <= 0.9 <= high
    # Three standard errors of 600 draws; with parts that add up it is never too narrow, and may be somewhat wide.
    assert 0.95 - 0.027 <= held / of <= (0.999 if kind == "seeds" else 0.95 + 0.027)
