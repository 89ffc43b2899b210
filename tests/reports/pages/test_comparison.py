"""Several sweeps against each other: nats where the tokens are the same, bits per byte where the text is, else nothing."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from constructed import page_of, spread

from bitlora.files.record import write_scores
from reports.load.sweep import load_sweep
from reports.pages.contenders import BITS, NATS, contenders, grouped
from reports.report import write_report


@pytest.fixture
def two(folder, add):
    """Two sweeps over the same examples: the first is 0.1 nats better."""
    add("a", eval_loss=2.5, quantizer="none", scores=spread(2.5, 0.1))
    other = Path("runs/other")
    shutil.copytree(folder, other)
    shutil.rmtree(other / "trials" / "a")
    add("b", eval_loss=2.6, quantizer="ternary", scores=spread(2.6, 0.11))
    shutil.move(folder / "trials" / "b", other / "trials" / "b")
    spec = (other / "sweep.yaml").read_text().replace("quickstart", "other").replace("grace: 8", "grace: 4")
    (other / "sweep.yaml").write_text(spec)
    return folder, other


def groups(*folders):
    found, without = contenders([load_sweep(folder) for folder in folders])
    return grouped(found), without


def test_the_same_tokens_are_compared_in_nats(two):
    (group,), without = groups(*two)
    assert (group.unit, without) == (NATS, [])
    (first, loss, none, _), (second, other, apart, interval) = group.lines
    assert (first.label, loss, none) == ("quickstart", pytest.approx(2.5), 0)
    assert (second.label, other, apart) == ("other", pytest.approx(2.6), pytest.approx(0.1))
    assert interval.low < 0.1 < interval.high
    assert interval.decided


def rewrite(folder, trial, tokens, text_bytes, prefix="eval.parquet"):
    """Other tokens for the same text: the summed losses stay."""
    path = folder / "trials" / trial / "eval.parquet"
    losses = pd.read_parquet(path)["loss"].tolist()
    ids = [f"{prefix}{index}" for index in range(40)]
    write_scores(path, ids, losses, [tokens] * 40, [text_bytes] * 40)


def test_other_tokens_for_the_same_text_are_compared_in_bits_per_byte(two):
    rewrite(two[1], "b", tokens=12, text_bytes=40)
    (group,), _ = groups(*two)
    assert group.unit == BITS
    # 40 examples of 25 and 26 nats over 40 bytes each
    assert [line[1] for line in group.lines] == pytest.approx([25 / 40 / math.log(2), 26 / 40 / math.log(2)])
    interval = group.lines[1][3]
    assert interval.low < 1 / 40 / math.log(2) < interval.high


@pytest.mark.parametrize("other", [{"prefix": "else"}, {"text_bytes": 41}])
def test_other_examples_or_another_text_are_not_compared(two, other):
    rewrite(two[1], "b", **{"tokens": 12, "text_bytes": 40, **other})
    found, _ = groups(*two)
    assert [len(group.lines) for group in found] == [1, 1]
    page = page_of(*two)
    assert "**No two of these sweeps can be compared**" in page
    assert "Between these groups nothing is compared" in page


def test_a_sweep_without_a_result_is_said(two):
    shutil.rmtree(two[1] / "trials" / "b")
    _, without = groups(*two)
    assert without == [("other", "no trial completed its full budget with a finite eval loss")]
    assert "**other** is in no comparison: no trial completed" in page_of(*two)


def test_the_page(two, tmp_path):
    path = write_report(two)
    assert path == Path("runs/comparison/report.md")
    page = path.read_text()
    assert page.startswith("# Comparison of 2 sweeps\n\n**quickstart** (a: quantizer none, rank 16")
    assert (
        "**is ahead on these seeds**: 2.5000 nats per completion token, 0.1000 below other at 2.6000 (95 % interval of"
        " the gap 0.0" in page
    )
    assert re.search(r"^\| scheduler.grace +\| 8 +\| 4 +\|$", page, re.M)
    assert {p.name for p in path.parent.iterdir()} == {"report.md", "report.html", "figures", "tables"}
    again = write_report(two, tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()


def test_sweeps_of_one_name_go_by_their_folders(two):
    spec = two[1] / "sweep.yaml"
    spec.write_text(spec.read_text().replace("other", "quickstart"))
    (group,), _ = groups(*two)
    assert [line[0].label for line in group.lines] == ["runs/quickstart", "runs/other"]
