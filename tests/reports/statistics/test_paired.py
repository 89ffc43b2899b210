"""The interval of a difference: held against scipy's bootstrap and against simulations."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from reports.statistics.paired import paired as compared
from reports.statistics.paired import together


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
    first, second = pair(np.random.default_rng(5), 40)
    assert paired(first, None) is None
    assert paired(first, second.iloc[1:]) is None
    assert paired(first, second.assign(tokens=second["tokens"] + 1)) is None
    assert paired(first.iloc[:29], second.iloc[:29]) is None
    assert paired(first.iloc[:30], second.iloc[:30]) is not None
    assert paired(first, second.assign(loss=np.nan)) is None


def test_equal_losses_are_undecided():
    first, _ = pair(np.random.default_rng(6), 30)
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
    effective = (tokens.astype(float) ** 2).sum() ** 2 / (tokens.astype(float) ** 4).sum()
    found = compared(one, other)
    assert found.difference == pytest.approx(by_seed.mean(), rel=1e-12)
    wide = examples * stats.t.ppf(0.975, effective - 1) ** 2 + seeds * stats.t.ppf(0.975, 3) ** 2
    assert (found.high - found.low) / 2 == pytest.approx(np.sqrt(wide), rel=1e-9)


def test_only_the_seeds_that_both_have_are_paired():
    one, other = several(np.random.default_rng(12), 3, 30)
    assert compared(one, {2: other[2]}) == paired(one[2], other[2])
    assert compared({0: one[0]}, {7: other[0]}) == paired(one[0], other[0])


def by_group(table, names):
    return table.assign(group=names)


def test_examples_that_belong_together_are_drawn_together():
    """By hand: the residuals summed over each group, and no more degrees of freedom than groups."""
    rng = np.random.default_rng(13)
    first, second = pair(rng, 120)
    names = [f"g{index % 40}" for index in range(120)]
    found = paired(by_group(first, names), by_group(second, names))
    assert (found.examples, found.groups) == (120, 40)
    table = pd.DataFrame({"d": second["loss"] - first["loss"], "t": first["tokens"], "g": names})
    ratio = table["d"].sum() / table["t"].sum()
    sums = (table["d"] - ratio * table["t"]).groupby(table["g"]).sum()
    tokens = table["t"].groupby(table["g"]).sum().astype(float)
    error = np.sqrt(40 / 39 * (sums**2).sum()) / table["t"].sum()
    freedom = (tokens**2).sum() ** 2 / (tokens**4).sum() - 1
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, freedom) * error, rel=1e-9)
    alone = paired(by_group(first, [f"g{index}" for index in range(120)]), second)
    assert (alone.low, alone.high) == pytest.approx((paired(first, second).low, paired(first, second).high))


def test_fewer_than_thirty_groups_have_no_interval_and_a_missing_group_is_one_of_its_own():
    first, second = pair(np.random.default_rng(14), 60)
    assert paired(by_group(first, [index % 29 for index in range(60)]), second) is None
    found = paired(by_group(first, [f"g{index % 29}" if index < 58 else None for index in range(60)]), second)
    assert found.groups == 31


def test_the_variance_of_seeds_is_pooled_over_all_that_are_compared():
    rng = np.random.default_rng(15)
    sides = [several(rng, 3, 40)[0] for _ in range(2)]
    tokens = sides[0][0]["tokens"]
    sides = [{seed: table.assign(tokens=tokens) for seed, table in side.items()} for side in sides]
    sides.append({seed: table.assign(loss=table["loss"] + seed * tokens) for seed, table in sides[0].items()})
    first, near, wild = sides
    (alone,), (pooled, _) = together(first, [near]), together(first, [near, wild])
    assert (alone.pooled, pooled.pooled) == (2, 3)
    by_seed = np.array([[side[s]["loss"].sum() / tokens.sum() for s in range(3)] for side in sides])
    residuals = by_seed - by_seed.mean(1, keepdims=True) - by_seed.mean(0) + by_seed.mean()
    seeds = 2 * (residuals**2).sum() / 4 / 3
    apart = np.mean([near[s]["loss"] - first[s]["loss"] for s in range(3)], axis=0)
    rest = apart - apart.sum() / tokens.sum() * tokens
    examples = 40 / 39 * (rest**2).sum() / tokens.sum() ** 2
    weights = tokens.to_numpy(dtype=float)
    freedom = (weights**2).sum() ** 2 / (weights**4).sum() - 1
    tail = stats.norm.cdf(-stats.studentized_range.ppf(0.95, 3, np.inf) / np.sqrt(2))
    wide = examples * stats.t.ppf(tail, freedom) ** 2 + seeds * stats.t.ppf(tail, 4) ** 2
    assert (pooled.high - pooled.low) / 2 == pytest.approx(np.sqrt(wide), rel=1e-9)
