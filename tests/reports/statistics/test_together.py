"""Many configurations judged together, held against the definitions written out with pandas (`judged`, of the recount) on
20 constructed sweeps: other numbers of configurations, seeds, examples, groups, and gaps."""

from __future__ import annotations

from types import SimpleNamespace

import judged
import numpy as np
import pandas as pd
import pytest

from reports.statistics.paired import together


def constructed(number):
    """The scores of some configurations, the lowest loss first."""
    rng = np.random.default_rng(number)
    configurations, examples = int(rng.integers(2, 11)), int(rng.integers(30, 120))
    tokens = rng.integers(3, 60, examples)
    names = [f"e{index}" for index in rng.permutation(examples)]
    groups = {} if number % 3 else {"group": [f"g{index % (examples // 2 + 15)}" for index in range(examples)]}
    if groups and number % 2:
        groups["group"][0] = None
    shared, sides = rng.normal(3.0, 0.5, examples), []
    for _ in range(configurations):
        own = shared + rng.normal(0, 0.05, examples) + rng.exponential(0.06)
        side = {}
        for seed in range(int(rng.choice([1, 3, 5])) if number % 4 == 0 else 1 + number % 5):
            losses = tokens * (own + rng.normal(0, 0.01) + rng.normal(0, 0.05, examples))
            side[seed] = pd.DataFrame({"example_id": names, "loss": losses, "tokens": tokens, **groups})
        sides.append(side)
    return sorted(sides, key=lambda side: np.mean([table["loss"].sum() for table in side.values()]))


def as_configuration(side):
    trials = [
        SimpleNamespace(config={"seed": seed}, scores={"eval": table.set_index("example_id")})
        for seed, table in side.items()
    ]
    return SimpleNamespace(trials=trials, split="eval")


@pytest.mark.parametrize("number", range(20))
def test_intervals_are_those_of_the_definitions_written_out(number):
    first, *others = constructed(number)
    found = together(first, others)
    expected = judged.gaps(as_configuration(first), [as_configuration(side) for side in others])
    for at, interval in enumerate(found):
        one = expected[at]
        assert (interval is None) == (one is None)
        if one is not None:
            ends = (interval.difference, interval.low, interval.high)
            assert ends == pytest.approx((one.difference, one.low, one.high), rel=1e-9, abs=1e-12)
            assert (interval.examples, interval.seeds, interval.groups or 0) == (one.examples, one.seeds, one.groups)
            assert interval.pooled == one.pooled


def test_the_sweeps_differ_in_what_is_found():
    """Some that may be the best, some that may not, in groups and without, over one seed and several."""
    found = [interval for number in range(20) for interval in together(*split(constructed(number))) if interval]
    for kind in ("behind", "groups"):
        assert len({bool(getattr(interval, kind)) for interval in found}) == 2
    assert {1, 3, 5} <= {interval.seeds for interval in found}


def split(sides):
    return sides[0], sides[1:]
