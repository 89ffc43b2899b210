"""Designs of a confirmation: held against the exact power of the t-test (scipy's noncentral t), and against simulated
confirmations of equals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from reports.inference.differences import over_examples, over_seeds, ratio
from reports.inference.noninferiority import TAIL, above, parts_at
from reports.inference.power import Design, FirstLook, cheapest, least

LOSS = 2.5


def look(variance=4e-6, of_seed=5e-5, rows=100, tail=TAIL):
    return FirstLook(LOSS, rows, variance, rows - 1.0, of_seed, tail)


def exact_power(margin, error, freedom, tail=TAIL):
    """Of a one-sided t-test of equals: how often N - m X, with this standard error, is found below zero."""
    return float(stats.nct.sf(stats.t.isf(tail, freedom), freedom, margin * LOSS / error))


@pytest.mark.parametrize("rows", [40, 100, 400, 2000])
def test_over_rows_alone_the_least_margin_has_a_power_of_four_in_five(rows):
    found = least([look()], Design(1, rows), 2)
    power = exact_power(found, math.sqrt(4e-6 * 100 / rows), rows - 1)
    assert power == pytest.approx(0.80, abs=0.01)


@pytest.mark.parametrize("margin", [0.001, 0.002, 0.004])
def test_over_rows_alone_it_takes_as_many_as_the_exact_power_asks_for(margin):
    found = cheapest([look()], margin, 2, [1], (30, 100_000), lambda design: design.rows)
    single = math.sqrt(4e-6 * 100)  # of one row
    wanted = optimize.brentq(lambda n: exact_power(margin, single / math.sqrt(n), n - 1) - 0.80, 3, 1e5)
    assert found == Design(1, found.rows)
    assert found.rows == pytest.approx(max(30, wanted), abs=2)


@pytest.mark.parametrize(("configurations", "seeds"), [(2, 5), (4, 5), (9, 3), (3, 20)])
def test_over_seeds_alone_the_power_is_that_of_the_t_test_with_pooled_degrees_of_freedom(configurations, seeds):
    found = least([look(variance=0.0)], Design(seeds, 100), configurations)
    power = exact_power(found, math.sqrt(5e-5 / seeds), (configurations - 1) * (seeds - 1))
    assert power == pytest.approx(0.80, abs=0.03)


def test_the_cheapest_is_that_of_all_designs_tried_one_by_one():
    looks, rows, seeds = [look(), look(variance=9e-6, tail=TAIL / 2)], (30, 120), range(2, 9)

    def cost(design):
        return design.seeds * (200 + 0.5 * design.rows)

    decided = set()
    for margin in (0.001, 0.004, 0.006, 0.01):
        every = [Design(count, size) for count in seeds for size in range(rows[0], rows[1] + 1)]
        fits = [design for design in every if least(looks, design, 3) <= margin]
        expected = min(fits, key=lambda design: (cost(design), design), default=None)
        assert cheapest(looks, margin, 3, seeds, rows, cost) == expected
        decided.add(expected)
    assert None in decided
    assert len(decided) > 2


@pytest.mark.parametrize("configurations", [3, 6])
def test_what_it_chooses_shows_the_margin_of_equals_in_four_of_five_simulated_confirmations(configurations):
    """1,000 of each: what is simulated has the variances that the first look knows, a row its own on each seed too."""
    rng = np.random.default_rng(configurations)
    own, between, sweeps, margin = 0.1, 0.005, 1000, 0.007
    known = FirstLook(LOSS, 100, 2 * own**2 / 100, 99.0, ((1 + margin) * math.sqrt(2) * between) ** 2)
    design = cheapest([known], margin, configurations, range(2, 21), (30, 2000), lambda d: d.seeds * (400 + d.rows / 2))
    assert design is not None
    assert least([known], design, configurations) <= margin
    tokens = np.ones(design.rows)
    losses = LOSS + rng.normal(0, own, (sweeps, configurations, 1, design.rows))
    losses = losses + rng.normal(0, between, (sweeps, configurations, design.seeds, 1))
    full, other = losses[:, 0].mean(axis=1), losses[:, 1].mean(axis=1)
    by_seed = losses.mean(axis=-1)
    variance, freedom = over_seeds(by_seed)
    alone = by_seed[:, 0].var(axis=-1, ddof=1)
    seeds = variance / design.seeds, alone / design.seeds, freedom
    parts = parts_at(margin, other - full, full, tokens, None, seeds)
    shown = (above(margin, other - full, full, tokens, parts) < 0).mean()
    assert 0.75 <= shown <= 0.90
    error = over_examples(other - full, tokens)[0].mean()  # what the first look said of the rows
    assert error == pytest.approx(known.variance * 100 / design.rows, rel=0.05)
    assert abs(ratio(other - full, tokens).mean()) < 1e-3
