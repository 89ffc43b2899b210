"""The same gap never stands on a page with two percentages: the verdict, the line and the table against full precision all
give gaps in per cent of full precision's loss, where that is compared."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from constructed import spread

from reports.report import write_report

EXAMPLES = Path(__file__).parents[3] / "reports" / "examples"
BELOW = r"below the next(?: quantizer, [^:]*: |, )\*\*(\S+)\*\*"


def stated(folder):
    """Pair of trials -> the percentages that are printed of the gap between them, each without its sign."""
    page = (folder / "report.md").read_text()
    found = {}

    def note(one, other, percent):
        found.setdefault(frozenset((one, other)), []).append(abs(float(percent)))

    lead = page.split("\n## ")[0]
    best = re.search(r"\*\*(\S+)\*\* \(quantizer", lead)
    for match in re.finditer(rf"nats \(([\d.]+) % of [\w' ]+ loss\) {BELOW}", lead):
        note(best[1], match[2], match[1])
    table = folder / "tables" / "full-precision.csv"
    if table.exists():
        rows = pd.read_csv(table)
        full = rows.loc[rows["quantizer"] == "none", "best trial"].item()
        for _, row in rows.iterrows():
            if row["best trial"] != full:
                note(full, row["best trial"], row["gap, %"])
    summary = folder / "summary.json"
    if summary.exists() and (match := re.search(r", ([\d.]+) % below", json.loads(summary.read_text())["line"])):
        other = re.search(BELOW, lead)
        note(best[1], other[1], match[1])
    return found


def agree(found):
    """All printed to two places at most, so half of the last is what they may be apart."""
    return all(max(each) - min(each) <= 0.0051 for each in found.values())


@pytest.mark.parametrize(
    "name", ["quickstart", "frontier", "frontier-instructions", "lowbit", "full-precision", "article"]
)
def test_of_the_examples(name):
    assert agree(stated(EXAMPLES / name / "report"))


LOSSES = {"none": (2.6, 2.5), "binary": (2.5, 2.6), "ternary": (2.55, 2.58)}
"""Quantizer -> a loss where it is ahead of full precision, and one where it is behind."""


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("confirmed", [True, False])
def test_of_a_page_that_has_the_gap_in_three_places(folder, add, ahead, confirmed):
    """Whether full precision is the best or behind it: twice and more the same gap, once the same percentage."""
    for number, (quantizer, losses) in enumerate(LOSSES.items()):
        loss = losses[not ahead]
        add(f"t{number}", eval_loss=loss, quantizer=quantizer, scores=spread(loss, 0.2 + number / 10))
        for seed in (11, 12) if confirmed else ():
            test = spread(loss + 0.01 * number + 0.002 * seed, 0.2 + seed / 100)
            add(
                f"c{number}-{seed}", eval_loss=loss, quantizer=quantizer, seed=seed, confirms=f"t{number}",
                scores=spread(loss, 0.2), test=test,
            )  # fmt: skip
    write_report([folder])
    found = stated(folder / "report")
    assert max(map(len, found.values())) > 1  # the same gap is there more than once
    assert agree(found)
