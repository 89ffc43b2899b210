from __future__ import annotations

import numpy as np
import pytest
from constructed import write_base
from scipy import stats

from reports.load.sweep import load_sweep
from reports.report import report
from reports.sections.quantizers import quantizer_table
from reports.statistics.comparable import comparable
from reports.statistics.quantizers import quantizer_bests
from reports.statistics.verdict import verdict


def test_what_is_not_at_equal_budget_is_marked(folder, add):
    add("b", eval_loss=2.5, quantizer="none")
    add("d", "pruned", eval_loss=2.4, steps=16, quantizer="binary", activations="int8")
    sweep = load_sweep(folder)
    groups = comparable(sweep)
    lines = quantizer_bests(sweep.trials, groups, ["none", "ternary", "binary"], verdict(groups.contest))
    lines = sorted(lines, key=lambda line: line.quantizer == "ternary")
    table, notes = quantizer_table(lines, ["activations"], {"rank": [8, 16], "alpha": [8.0, 16.0, 32.0]})
    assert [column.name for column in table.columns][-4:] == [
        "activations",
        "parameters",
        "packed size",
        "bits per parameter",
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [
        [
            "none",
            "1 of 1",
            "b",
            "2.5000",
            "0.0000",
            "–",
            "16 (highest)",
            "16",
            "5e-4",
            "full",
            "1,221,120",
            "2.4 MB",
            "16.00",
        ],
        ["binary", "0 of 1", "d †", "2.4000", "–", "–", "16", "16", "5e-4", "int8", "1,221,120", "152.6 KB", "1.00"],
        ["ternary", "0 of 0", "none", *["–"] * 10],
    ]
    assert notes == [
        "† Not at equal budget: d was pruned at step 16 of 32, so its loss does not compare with the others."
    ]


@pytest.mark.parametrize("of", ["loss", "gain"])
def test_a_margin_is_shown_or_not_as_a_one_sided_t_test_of_it_says(folder, add, of):
    """Of one seed and examples of one length, against scipy's of one number for each example."""
    rng = np.random.default_rng(3)
    base = 3.3 + rng.normal(0, 0.5, 40)
    full = 2.5 + (base - 3.3) + rng.normal(0, 0.1, 40)
    others = {"binary": full + rng.normal(0.01, 0.05, 40), "ternary": full + rng.normal(0.06, 0.05, 40)}
    share = 0.02 if of == "loss" else 0.06
    with (folder / "sweep.yaml").open("a") as spec:
        spec.write(f"confirm: {{margin: {{share: {share}, of: {of}}}}}\n")
    write_base(folder, base.tolist())
    for number, (name, means) in enumerate([("none", full), *others.items()]):
        add(f"t{number}", eval_loss=float(means.mean()), quantizer=name, scores=means.tolist())
    blocks = report(load_sweep(folder)).document.blocks
    table = next(block for block in blocks if getattr(block, "name", "") == "full-precision")
    heads = [column.name for column in table.columns]
    shown, most = (
        heads.index(name) for name in (f"less than {100 * share:g} % of the {of}", f"at most, % of the {of}")
    )
    found = {row[0].text: (row[shown].text, row[most].value) for row in table.rows}
    assert found["none"] == ("–", None)
    amount = full if of == "loss" else base - full

    def p_value(name, margin):
        return stats.ttest_1samp(others[name] - full - margin * amount, 0, alternative="less").pvalue

    for name in others:
        assert found[name][0] == ("shown" if p_value(name, share) < 0.05 else "not shown")
        # The bound is the margin at which the test begins to pass.
        assert p_value(name, found[name][1] / 100) == pytest.approx(0.05, abs=1e-5)
    assert {says for says, _ in found.values()} == {"–", "shown", "not shown"}
    said = " ".join(str(part) for block in blocks for part in getattr(block, "parts", ()))
    assert (
        f"Shown: worse than full precision by less than {100 * share:g} % of its {'loss' if of == 'loss' else 'gain'}"
        in said
    )


def test_a_margin_of_the_gain_is_not_told_where_the_base_was_not_scored(folder, add):
    rng = np.random.default_rng(3)
    with (folder / "sweep.yaml").open("a") as spec:
        spec.write("confirm: {margin: {share: 0.05, of: gain}}\n")
    for number, name in enumerate(["none", "binary"]):
        means = rng.normal(2.5 + number / 100, 0.1, 40).tolist()
        add(f"t{number}", eval_loss=sum(means) / 40, quantizer=name, scores=means)
    blocks = report(load_sweep(folder)).document.blocks
    said = " ".join(str(part) for block in blocks for part in getattr(block, "parts", ()))
    assert "is not told: the base was not scored on these rows" in said
