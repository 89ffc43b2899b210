"""Whole reports over constructed records, held against files that were read by a person.

After a change that is meant: `UPDATE_GOLDEN=1 python -m pytest tests/reports/test_golden.py`, then read the difference.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from constructed import spread, write_base, write_run

from reports.load.sweep import load_sweep
from reports.pages.summary import summary
from reports.report import report
from reports.statistics.findings import findings
from reports.writers.markdown import markdown

GOLDEN = Path(__file__).parent / "golden"


def clear_winner(folder, add):
    add("t0000", eval_loss=2.7313, scores=spread(2.7313, 0.2), quantizer="none", rank=32, learning_rate=2e-4)
    add("t0001", "pruned", eval_loss=2.9585, steps=8, quantizer="none", rank=16)
    add("t0002", eval_loss=2.7451, scores=spread(2.7451, 0.21), quantizer="binary", rank=8, learning_rate=6.75e-4)
    add("t0003", eval_loss=2.7137, scores=spread(2.7137, 0.2), quantizer="none", rank=8, learning_rate=1.5e-3)
    add("t0004", "diverged", quantizer="ternary", rank=8, record={"reason": "train loss is not finite at step 11"})
    add("t0005", "pruned", eval_loss=2.8949, steps=16, quantizer="ternary", rank=16, learning_rate=2.65e-3)
    add("t0006", "failed", steps=0, quantizer="binary", rank=32, record={"reason": "pack lost"})
    add("t0007", eval_loss=2.7320, scores=spread(2.7320, 0.202), quantizer="binary", rank=32, learning_rate=2.5e-3)
    write_run(folder)


def tie(folder, add):
    add("a", eval_loss=2.50, quantizer="none", scores=spread(2.50, 0.1))
    add("b", eval_loss=2.51, quantizer="ternary", scores=spread(2.51, -0.1))
    add("c", eval_loss=2.60, quantizer="binary", scores=spread(2.60, 0.101))


def all_failed(folder, add):
    for number in range(3):
        add(f"t000{number}", "diverged", quantizer="binary", learning_rate=3e-3 + number / 1000)
    add("t0003", "failed", steps=0, record={"reason": "no memory"})


def one_trial(folder, add):
    add("t0000", eval_loss=2.5, scores=spread(2.5, 0.1))


def three_seeds(folder, add):
    for number, (quantizer, loss) in enumerate((("none", 2.5), ("binary", 2.56), ("ternary", 2.52))):
        for seed in range(3):
            mean = loss + (seed - 1) * 0.01 * (number + 1)
            scores = spread(mean, 0.1 + number / 1000)
            add(f"t{number}s{seed}", eval_loss=mean, scores=scores, quantizer=quantizer, seed=seed, rank=8)


def confirmed(folder, add):
    add("t0000", eval_loss=2.50, scores=spread(2.50, 0.1), quantizer="none")
    add("t0001", eval_loss=2.52, scores=spread(2.52, 0.1), quantizer="ternary")
    for seed in (1, 2, 3):
        for name, loss, quantizer in (("t0000", 2.56, "none"), ("t0001", 2.54, "ternary")):
            mean = loss + seed / 1000
            tests = spread(mean, 0.1 + seed / 500)
            trial = f"t{2 * seed + (quantizer == 'ternary'):04d}"
            add(trial, eval_loss=mean - 0.05, test=tests, quantizer=quantizer, seed=seed, confirms=name)


def baseline(folder, add):
    confirmed(folder, add)
    add("t0008", "pruned", eval_loss=2.9, steps=8, quantizer="binary")
    write_base(folder, spread(3.1, 0.3), spread(3.2, 0.25))


def missing_eval(folder, add):
    add("a", eval_loss=2.5, quantizer="none", scores=spread(2.5, 0.1))
    add("b", eval_loss=2.6, quantizer="ternary")


def nan(folder, add):
    add("a", eval_loss=2.5)
    record = add("b", eval_loss=1.25, rank=8) / "record.json"
    record.write_text(record.read_text().replace("1.25", "NaN"))


def cut_short(folder, add):
    add("a", eval_loss=2.5)
    record = add("b", eval_loss=2.25, rank=8) / "record.json"
    record.write_bytes(record.read_bytes()[:100])


def hostile(folder, add):
    add("a|b", eval_loss=2.5, quantizer="<b>x</b>", scores=spread(2.5, 0.1))
    add("שלום", eval_loss=2.6, quantizer="$x_1$ `y` *z*", scores=spread(2.6, 0.1))
    add("x" * 90, "failed", record={"reason": "first | line\n\n# second <script>alert(1)</script> `code`"})
    (folder / "sweep.yaml").write_text('name: "a\\n# b | <i>"\n', encoding="utf-8")


SCENARIOS = (
    *(clear_winner, tie, all_failed, one_trial, three_seeds),
    *(confirmed, baseline, missing_eval, nan, cut_short, hostile),
)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_report_is_the_one_that_was_read(folder, add, scenario):
    scenario(folder, add)
    found = load_sweep(folder)
    read(f"{scenario.__name__}.md", markdown(report(found).document))
    read(f"{scenario.__name__}.json", json.dumps(rounded(summary(findings(found))), indent=2, allow_nan=False) + "\n")


def rounded(told):
    """Processors differ in the last digits of a sum."""
    return json.loads(json.dumps(told, allow_nan=False), parse_float=lambda digits: round(float(digits), 9))


def read(name, text):
    golden = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
