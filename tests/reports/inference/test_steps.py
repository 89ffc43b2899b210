"""The rules of the verdict in simulated sweeps, 1,000 of each kind: how often they name a winner that is none, and find one
that is."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from reports.inference.differences import over_examples, over_seeds, ratio
from reports.inference.steps import limit, reach, step_down

SWEEPS = 1000
EXAMPLES = 90
GROUPS = np.arange(EXAMPLES) // 3
OWN, WITHIN, EACH = 0.1, 0.1, 0.1
"""Nats per token, as standard deviations: what a configuration does to an example, to a group, on one seed."""
CHANCE = 0.05 + 1.96 * (0.05 * 0.95 / SWEEPS) ** 0.5
"""What a rule that errs in 5 % may show of 1,000."""


def swept(rng, rivals, seeds, between, clustered):
    """Summed losses [sweeps, configurations, seeds, examples] of equals, and the examples' tokens."""
    tokens = rng.integers(3, 60, EXAMPLES).astype(float)
    shape = (SWEEPS, rivals + 1)
    losses = tokens * rng.normal(0, OWN, (*shape, 1, EXAMPLES))
    losses = losses + tokens * rng.normal(0, between, (*shape, seeds, 1))
    losses += tokens * rng.normal(0, EACH, (*shape, seeds, EXAMPLES))
    if clustered:
        losses += tokens * rng.normal(0, WITHIN, (*shape, 1, GROUPS[-1] + 1))[..., GROUPS]
    return losses, tokens


def standard_error(tokens, seeds, between, clustered):
    """The true one of a difference of two."""
    share = tokens / tokens.sum()
    grouped = np.bincount(GROUPS, share) if clustered else np.zeros(1)
    single = (OWN**2 + EACH**2 / seeds) * (share**2).sum() + WITHIN**2 * (grouped**2).sum() + between**2 / seeds
    return float(np.sqrt(2 * single))


def judged(losses, tokens, clustered):
    """The lowest of each sweep, and which of the others may be the best too, as configurations."""
    sweeps, configurations, seeds, _ = losses.shape
    lowest = losses.sum(axis=(2, 3)).argmin(axis=1)
    every = np.arange(sweeps)
    others = np.array([[k for k in range(configurations) if k != first] for first in lowest])
    apart = (losses[every[:, None], others] - losses[every, lowest][:, None]).mean(axis=2)
    parts = [over_examples(apart, tokens, GROUPS if clustered else None)]
    if seeds > 1:
        variance, freedom = over_seeds(losses.sum(axis=-1) / tokens.sum())
        parts.append((np.broadcast_to((variance / seeds)[:, None], others.shape), freedom))
    differences = ratio(apart, tokens)
    stays, errors = step_down(differences, parts)
    # What the report prints agrees: the interval holds zero exactly for those that stay.
    assert np.array_equal(np.abs(differences) <= reach(parts, errors), stays)
    return lowest, stays


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(("seeds", "between"), [(1, 0.0), (3, 0.02), (3, 0.1), (5, 0.02), (5, 0.1)])
def test_no_more_than_five_per_cent_name_a_winner_among_equals_or_leave_one_out(seeds, between, clustered):
    """With 1 to 9 equal rivals, whatever seeds do, clustered rows included."""
    rng = np.random.default_rng(100 * seeds + int(1000 * between) + clustered)
    for rivals in range(1, 10):
        _, stays = judged(*swept(rng, rivals, seeds, between, clustered), clustered)
        won, left_out = (~stays.any(axis=1)).mean(), (~stays.all(axis=1)).mean()
        assert won <= CHANCE, (rivals, won)
        assert left_out <= CHANCE, (rivals, left_out)


def power(rivals, seeds, between, clustered, seed=0):
    """How often the truly best wins: the next is three standard errors behind, the others six."""
    rng = np.random.default_rng(seed)
    losses, tokens = swept(rng, rivals, seeds, between, clustered)
    behind = np.array([0.0, 3.0, *[6.0] * (rivals - 1)]) * standard_error(tokens, seeds, between, clustered)
    lowest, stays = judged(losses + tokens * behind[:, None, None], tokens, clustered)
    return float((~stays.any(axis=1) & (lowest == 0)).mean())


@pytest.mark.parametrize("clustered", [False, True])
def test_three_standard_errors_are_found_in_eighty_per_cent(clustered):
    """Over one seed with any number of rivals; over several once their variance is pooled over ten configurations."""
    for rivals in (1, 3, 9):
        assert power(rivals, 1, 0.0, clustered) >= 0.80
    assert power(9, 5, 0.1, clustered) >= 0.80
    assert power(9, 3, 0.1, clustered) >= 0.78


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(("rivals", "seeds"), [(1, 3), (1, 5), (2, 5), (3, 5), (4, 5), (9, 3), (9, 5)])
def test_over_few_seeds_it_finds_what_an_exact_t_test_would(rivals, seeds, clustered):
    """Where seeds decide there are (C - 1) (S - 1) degrees of freedom, pooled over all C configurations, and of these hangs
    what any test can find: with 4 of them 0.62 (noncentral t, of two named before), with 16 and more four of five."""
    freedom = rivals * (seeds - 1)
    exact = float(stats.nct.sf(stats.t.isf(0.025, freedom), freedom, 3.0))
    assert power(rivals, seeds, 0.1, clustered) == pytest.approx(exact, abs=0.065)
    assert (exact >= 0.80) == (freedom >= 16)


def test_limits_are_those_of_tables_of_the_studentized_range():
    """Its 95 % points for infinite degrees of freedom: 2.772, 3.314, 3.633, 4.474 (for 2, 3, 4 and 10)."""
    assert [round(limit(of) * 2**0.5, 3) for of in (2, 3, 4, 10)] == [2.772, 3.314, 3.633, 4.474]


def test_one_that_cannot_be_compared_stays_and_counts():
    parts = [(np.full(3, 0.01), 50.0)]
    stays, errors = step_down(np.array([np.nan, 9.0, 0.05]), parts)
    assert stays.tolist() == [True, False, True]
    assert errors.tolist() == [limit(3), limit(4), limit(3)]


def test_equals_to_the_last_bit_stay_and_a_constant_gap_goes():
    stays, _ = step_down(np.array([0.0, 0.1]), [(np.zeros(2), 20.0)])
    assert stays.tolist() == [True, False]
