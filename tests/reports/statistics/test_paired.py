"""The interval of a difference: held against scipy's bootstrap and against simulations."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.statistics.paired import paired as compared


def paired(first, second):
    """Of one trial each."""
    return compared(*({0: side} if side is not None else {} for side in (first, second)))


def scores(losses, tokens):
    ids = [f"e{index}" for index in range(len(tokens))]
    return pd.DataFrame({"example_id": ids, "loss": losses, "tokens": tokens})


def pair(rng, n, shift=0.0, spread=0.3):
    """Two trials over n examples of different length: what they share, and what is each one's own."""
    tokens = rng.integers(3, 60, n)
    shared = tokens * rng.normal(3.0, 0.5, n)
    first, second = (
        shared + tokens * rng.normal(0.0, spread, n) + np.sqrt(tokens) * rng.normal(0, spread, n) for _ in "ab"
    )
    return scores(first, tokens), scores(second + shift * tokens, tokens)


def test_the_difference_is_that_of_the_eval_losses_in_any_order():
    first, second = pair(np.random.default_rng(1), 40, shift=0.1)
    found = paired(first, second.sample(frac=1, random_state=0))
    by_hand = second["loss"].sum() / second["tokens"].sum() - first["loss"].sum() / first["tokens"].sum()
    assert found.difference == pytest.approx(by_hand, rel=1e-12)
    assert found.examples == 40
    back = paired(second, first)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_it_is_as_wide_as_a_paired_bootstrap_says():
    first, second = pair(np.random.default_rng(2), 200, shift=0.05)
    found = paired(first, second)

    def difference(a, b, t, axis):
        return b.sum(axis) / t.sum(axis) - a.sum(axis) / t.sum(axis)

    columns = (first["loss"].to_numpy(), second["loss"].to_numpy(), first["tokens"].to_numpy())
    boot = stats.bootstrap(
        columns, difference, paired=True, n_resamples=4000, rng=np.random.default_rng(3), method="basic"
    )
    width = boot.confidence_interval.high - boot.confidence_interval.low
    assert found.high - found.low == pytest.approx(width, rel=0.1)


def test_it_covers():
    """No true difference: called undecided in at least 93 % of 500; one of three standard errors: decided in 80 %."""
    rng = np.random.default_rng(4)
    none = [paired(*pair(rng, 48)) for _ in range(500)]
    assert sum(not found.decided for found in none) >= 0.93 * 500
    error = np.mean([(found.high - found.low) / 2 / stats.t.ppf(0.975, 47) for found in none])
    some = [paired(*pair(rng, 48, shift=3 * error)) for _ in range(500)]
    assert sum(found.decided and found.difference > 0 for found in some) >= 0.80 * 500


def test_what_cannot_be_paired_has_no_interval():
    first, second = pair(np.random.default_rng(5), 20)
    assert paired(first, None) is None
    assert paired(first, second.iloc[1:]) is None
    assert paired(first, second.assign(tokens=second["tokens"] + 1)) is None
    assert paired(first.iloc[:4], second.iloc[:4]) is None
    assert paired(first, second.assign(loss=np.nan)) is None


def test_equal_losses_are_undecided():
    first, _ = pair(np.random.default_rng(6), 20)
    found = paired(first, first)
    assert (found.difference, found.low, found.high, found.decided) == (0.0, 0.0, 0.0, False)


def several(rng, seeds, examples, shift=0.0, between=0.02, interaction=0.1):
    """Two configurations on the same seeds: examples differ, seeds differ, and each seed does with each example."""
    tokens = rng.integers(3, 60, examples)
    shared = tokens * rng.normal(3.0, 0.5, examples)
    sides = []
    for side in range(2):
        own = tokens * rng.normal(0, 0.1, examples)
        sides.append(
            {
                seed: scores(
                    shared
                    + own
                    + tokens * (rng.normal(0, between) + rng.normal(0, interaction, examples) + side * shift),
                    tokens,
                )
                for seed in range(seeds)
            }
        )
    return sides


@pytest.mark.parametrize("between", [0.0, 0.02, 0.1])
def test_with_seeds_it_covers(between):
    """No true difference, three seeds: called undecided in at least 93 % of 500, however much seeds matter."""
    rng = np.random.default_rng(9)
    found = [compared(*several(rng, 3, 48, between=between)) for _ in range(500)]
    assert {(each.seeds, each.examples) for each in found} == {(3, 48)}
    assert sum(not each.decided for each in found) >= 0.93 * 500


def test_with_seeds_a_difference_is_found():
    rng = np.random.default_rng(10)
    found = [compared(*several(rng, 3, 96, shift=0.15, between=0.02)) for _ in range(200)]
    assert sum(each.decided and each.difference > 0 for each in found) >= 0.80 * 200


def test_with_seeds_it_is_as_wide_as_the_variances_by_hand():
    one, other = several(np.random.default_rng(11), 4, 30)
    tokens = one[0]["tokens"].to_numpy()
    apart = np.array([other[s]["loss"].to_numpy() - one[s]["loss"].to_numpy() for s in range(4)])
    by_seed = apart.sum(1) / tokens.sum()
    seeds = np.var(by_seed, ddof=1) / 4
    rest = apart.mean(0) - by_seed.mean() * tokens
    examples = (rest @ rest) * 30 / 29 / tokens.sum() ** 2
    freedom = (seeds + examples) ** 2 / (seeds**2 / 3 + examples**2 / 29)
    found = compared(one, other)
    assert found.difference == pytest.approx(by_seed.mean(), rel=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(
        stats.t.ppf(0.975, freedom) * np.sqrt(seeds + examples), rel=1e-9
    )


def test_only_the_seeds_that_both_have_are_paired():
    one, other = several(np.random.default_rng(12), 3, 30)
    assert compared(one, {2: other[2]}) == paired(one[2], other[2])
    assert compared({0: one[0]}, {7: other[0]}) == paired(one[0], other[0])
