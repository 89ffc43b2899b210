"""The report of a sweep that looked for a low loss and few bytes."""

from __future__ import annotations

from pathlib import Path

from recount import recount

from reports.load.sweep import load_sweep
from reports.pages.summary import line_of
from reports.report import write_report
from reports.statistics.findings import findings

LOSSES = {
    "t0000": ("none", 16, 2.5),
    "t0001": ("none", 8, 2.6),
    "t0002": ("binary", 16, 2.7),
    "t0003": ("binary", 32, 2.65),
    "t0004": ("binary", 8, 2.72),
    "t0005": ("none", 32, 2.55),
}
"""Quantizer, rank, loss. Bytes are 153 kB a rank in full precision and 9.5 kB a rank in one bit: t0005 alone is beaten."""


def test_the_verdict_names_the_front_and_each_of_its_numbers_is_the_recomputed_one(folder: Path, add) -> None:
    spec = folder / "sweep.yaml"
    spec.write_text(spec.read_text().replace("search:", "search:\n  objectives: [loss, bytes]", 1))
    for trial, (quantizer, rank, loss) in LOSSES.items():
        scores = [loss + 0.1 * (row % 3 - 1) for row in range(48)]
        add(trial, eval_loss=loss, quantizer=quantizer, rank=rank, scores=scores)
    found = findings(load_sweep(folder))
    names = ["t0000", "t0001", "t0003", "t0002", "t0004"]
    assert [row["name"] for row in found.front] == names
    ends = "t0000 (2.5000 at 2.4 MB) to t0004 (2.7200 at 76.3 KB)"
    assert line_of(found) == f"quickstart: 5 configurations on the front, eval loss {ends}; 6 trials"
    page = write_report([folder]).read_text()
    assert (
        "**5 configurations on the front**, than which no other has a lower loss in an adapter that is no larger"
        in page
    )
    assert "What no other beats in eval loss and packed size at once" in page
    assert recount(folder) == []
    add("t0006", eval_loss=2.4, quantizer="binary", rank=4, scores=[2.4] * 48)
    assert [row["name"] for row in findings(load_sweep(folder)).front] == ["t0006"]
