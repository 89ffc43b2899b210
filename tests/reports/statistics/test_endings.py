from __future__ import annotations

from reports.load.sweep import load_sweep
from reports.statistics.endings import endings, in_common


def test_endings_are_grouped_by_status_and_reason(folder, add):
    for trial_id, status, reason in (
        ("a", "failed", "no memory"),
        ("b", "pruned", "asha"),
        ("c", "failed", "lost"),
        ("d", "failed", "lost"),
    ):
        add(trial_id, status, eval_loss=2.5, record={"reason": reason})
    add("e", "completed")
    assert [(e.status, e.reason, e.trial_ids) for e in endings(load_sweep(folder).trials)] == [
        ("completed", "without a usable eval loss: not ranked", ("e",)),
        ("pruned", "asha", ("b",)),
        ("failed", "lost", ("c", "d")),
        ("failed", "no memory", ("a",)),
    ]


def test_what_the_diverged_have_in_common(folder, add):
    for number, rate in enumerate((1e-4, 5e-4, 1e-3, 4e-3)):
        add(f"good{number}", eval_loss=2.5, learning_rate=rate, quantizer=("none", "binary")[number % 2])
    for number, rate in enumerate((3e-3, 9e-3)):
        add(f"bad{number}", "diverged", learning_rate=rate, quantizer="binary", rank=8 * (number + 1))
    add("lone", "failed", quantizer="ternary")
    found = in_common(load_sweep(folder).trials, ["quantizer", "rank", "learning_rate"])
    assert [(s.status, s.trials, s.axis, s.values, s.others, s.of) for s in found] == [
        ("diverged", 2, "quantizer", "binary", 2, 5),
        ("diverged", 2, "learning_rate", "3e-3 to 9e-3", 1, 5),
    ]
