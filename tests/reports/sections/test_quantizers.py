from __future__ import annotations

from reports.load.sweep import load_sweep
from reports.sections.quantizers import quantizer_table
from reports.statistics.comparable import comparable
from reports.statistics.quantizers import quantizer_bests
from reports.statistics.verdict import verdict


def test_what_is_not_at_equal_budget_is_marked(folder, add):
    add("b", eval_loss=2.5, quantizer="none")
    add("d", "pruned", eval_loss=2.4, steps=16, quantizer="binary", activations="int8")
    trials = load_sweep(folder).trials
    groups = comparable(trials)
    lines = quantizer_bests(trials, groups, ["none", "ternary", "binary"], verdict(groups.contest))
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
