from __future__ import annotations

from reports.load.sweep import load_sweep
from reports.statistics.axes import axes as axes_of


def test_axes_are_what_varies_or_was_searched(folder, add):
    add("a", eval_loss=2.5, rank=8, batch_size=4, steps=32)
    add("b", eval_loss=2.5, rank=16, batch_size=4, eval_every=8)
    axes = axes_of(load_sweep(folder).trials, ["alpha"])
    assert axes.varying == ("rank", "alpha")
    assert axes.fixed["batch_size"] == 4
    assert axes.fixed["quantizer"] == "none"
    assert not {"rank", "alpha"} & axes.fixed.keys()
