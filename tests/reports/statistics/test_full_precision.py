"""Margins on 20 constructed sweeps, held against the definitions written out with pandas and scipy (of the recount): other
numbers of configurations, seeds, examples, groups, gaps and margins."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from recount_margin import held_to

from reports.load.baseline import BareLoss
from reports.statistics.full_precision import Margin, against
from reports.statistics.verdict import verdict


def constructed(number):
    """Scores by configuration, the first in full precision, and the base's."""
    rng = np.random.default_rng(number)
    examples = int(rng.integers(30, 90))
    tokens = rng.integers(3, 60, examples)
    names = [f"e{index}" for index in range(examples)]
    groups = {} if number % 3 else {"group": [f"g{index % (examples // 2 + 15)}" for index in range(examples)]}
    shared = rng.normal(3.0, 0.5, examples)

    def table(own):
        return pd.DataFrame({"example_id": names, "loss": tokens * own, "tokens": tokens, **groups})

    quantizers = ["none", "binary", "int4", *(["binary"] * (number % 2))]
    sides = []
    for quantizer in quantizers:
        own = shared + rng.normal(0, 0.03, examples) + (quantizer != "none") * rng.exponential(0.02)
        noise = rng.normal(0, 0.02, (1 + number % 4, examples))
        sides.append((quantizer, {s: table(own + rng.normal(0, 0.01) + noise[s]) for s in range(1 + number % 4)}))
    return sides, table(shared + 0.5 + rng.normal(0, 0.1, examples))


@pytest.mark.parametrize("of", ["loss", "gain"])
@pytest.mark.parametrize("number", range(20))
def test_a_margin_is_told_as_the_definitions_written_out_tell_it(number, of):
    sides, bare = constructed(number)
    share = 0.01 * (1 + number % 3) * (1 if of == "loss" else 5)
    held = [
        {
            "trial_id": f"t{at}", "name": f"t{at}", "config.quantizer": quantizer, "adapter_bytes": 10 - at,
            "loss": float(np.mean([frame["loss"].sum() / frame["tokens"].sum() for frame in scores.values()])), "at": at,
        }
        for at, (quantizer, scores) in enumerate(sides)
    ]  # fmt: skip
    contest = pd.DataFrame(held).sort_values("loss", ignore_index=True)
    contest["place"] = range(1, len(contest) + 1)
    told = verdict(contest, lambda row: sides[row["at"]][1], confirmed=True)
    base = BareLoss(float(bare["loss"].sum() / bare["tokens"].sum()), bare)
    lines = against(told, lambda row: sides[row["at"]][1], Margin(share, of), base)

    def configuration(at):
        trials = [
            SimpleNamespace(config={"seed": seed}, scores={"eval": frame.set_index("example_id")})
            for seed, frame in sides[at][1].items()
        ]
        return SimpleNamespace(trials=trials, split="eval")

    full, *others = (configuration(line.row["at"]) for line in lines)
    for line, other in zip(lines[1:], others, strict=True):
        count = sum(quantizer == line.row["config.quantizer"] for quantizer, _ in sides)
        one = held_to(share, of, full, other, [full, *others], count, bare.set_index("example_id"))
        assert (line.within.shown, line.within.smallest) == (one.shown, pytest.approx(one.smallest, rel=1e-9))
        assert line.within.bound == (one.most if one.most is None else pytest.approx(one.most, abs=1e-7))
