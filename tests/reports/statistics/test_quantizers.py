from __future__ import annotations

import pytest

from reports.load.sweep import load_sweep
from reports.statistics.comparable import comparable
from reports.statistics.quantizers import quantizer_bests
from reports.statistics.verdict import verdict


def test_quantizers_ranked_first_then_the_furthest_then_none(folder, add):
    add("a", eval_loss=2.6, quantizer="ternary")
    add("b", eval_loss=2.5, quantizer="none")
    add("c", "pruned", eval_loss=2.2, steps=8, quantizer="binary")
    add("d", "pruned", eval_loss=2.4, steps=16, quantizer="binary")
    add("e", "diverged", quantizer="ternary")
    sweep = load_sweep(folder)
    groups = comparable(sweep)
    lines = quantizer_bests(sweep.trials, groups, ["none", "binary", "ternary", "int4"], verdict(groups.contest))
    assert [(li.quantizer, li.full, li.began, li.best and li.best["trial_id"]) for li in lines] == [
        ("none", 1, 1, "b"),
        ("ternary", 1, 2, "a"),
        ("binary", 0, 2, "d"),
        ("int4", 0, 0, None),
    ]
    assert [li.gap for li in lines] == [0, pytest.approx(0.1), None, None]
