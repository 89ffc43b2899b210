"""What share of the gain is kept: when it is told, of whom, and that it is the quotient of printed losses."""

from __future__ import annotations

import io
import json
import math

import pandas as pd
import pytest
from constructed import write_base

from reports.figures import figures
from reports.load.sweep import load_sweep
from reports.report import report, trials_csv
from reports.sections.leaderboard import leaderboard
from reports.sections.quality_size import quality_size
from reports.statistics.findings import findings
from reports.writers.markdown import markdown


def means(loss, apart=0.1, examples=40):
    """Mean losses of examples, around `loss`."""
    found = [math.sin(1.7 * index + loss) * apart for index in range(examples)]
    return [loss + each - sum(found) / examples for each in found]


def by_quantizer(found):
    return {row["config.quantizer"]: row for row in found.search.held}


@pytest.fixture
def swept(folder, add):
    for number, (quantizer, loss) in enumerate([("none", 2.5), ("ternary", 2.52), ("binary", 2.56), ("binary", 2.6)]):
        add(f"t{number}", eval_loss=loss, scores=means(loss), quantizer=quantizer, rank=8 + number)
    return folder


def test_a_share_is_what_of_full_precisions_gain_is_there_and_its_interval_holds_it(swept):
    write_base(swept, means(3.0))
    found = findings(load_sweep(swept))
    held = by_quantizer(found)
    assert found.gains.base == pytest.approx(3.0)
    assert found.gains.full["trial_id"] == "t0"
    assert found.test_gains is None
    kept = {name: found.gains.kept(row) for name, row in held.items()}
    assert {name: each.share for name, each in kept.items()} == pytest.approx(
        {"none": 1, "ternary": 0.96, "binary": 0.88}
    )
    assert kept["none"].low is None  # the whole, by definition
    for name in ("ternary", "binary"):
        assert kept[name].low < kept[name].share < kept[name].high
    last = found.gains.kept({"trial_id": "t3", "loss": 2.6})  # not held against the best, and drawn
    assert last.share == pytest.approx(0.8)
    assert last.low < last.share < last.high


def test_who_is_not_drawn_has_no_interval_but_who_is_on_the_front_or_compared(swept, monkeypatch):
    monkeypatch.setattr("reports.statistics.findings.DRAWN", 1)
    write_base(swept, means(3.0))
    found = findings(load_sweep(swept))
    assert found.unbeaten["trial_id"].tolist() == ["t1", "t0"]  # the others are larger than t1, and worse
    assert found.gains.intervals.keys() == {"t1", "t2"}
    assert found.gains.kept({"trial_id": "t3", "loss": 2.6}).low is None


def test_every_trial_that_ranks_has_its_share_beside_it(swept, add):
    write_base(swept, means(3.0))
    add("t9", "pruned", eval_loss=2.9, steps=8)
    sweep = load_sweep(swept)
    table = pd.read_csv(io.StringIO(trials_csv(findings(sweep))), index_col="trial_id")
    assert set(table["base_loss"].round(9)) == {3.0}
    assert table["gain_kept"].round(9).to_dict() == pytest.approx(
        {"t0": 1.0, "t1": 0.96, "t2": 0.88, "t3": 0.8, "t9": math.nan}, nan_ok=True
    )
    assert (table["gain_kept_low"] < table["gain_kept_high"]).tolist() == [False, True, True, True, False]
    curves = figures.learning_curves(sweep, "t0").data
    begun = curves[curves["step"] == 0]
    assert begun["trial_id"].tolist() == ["t0", "t1", "t2", "t3", "t9"]
    assert set(begun["eval_loss"].round(9)) == {3.0}


def test_over_seeds_the_share_is_that_of_the_means(folder, add):
    for number, (quantizer, loss) in enumerate([("none", 2.5), ("ternary", 2.52)]):
        for seed in range(3):
            own = loss + 0.001 * (seed - 1) * (1 + number)
            add(f"t{number}{seed}", eval_loss=own, scores=means(own), quantizer=quantizer, seed=seed)
    write_base(folder, means(3.0))
    several = findings(load_sweep(folder))
    row = by_quantizer(several)["ternary"]
    kept = several.gains.kept(row)
    assert kept.share == pytest.approx(0.96)
    assert kept.low < 0.96 < kept.high


def test_each_row_that_is_drawn_has_its_interval(swept):
    write_base(swept, means(3.0))
    found = findings(load_sweep(swept))
    for table in (leaderboard(found).blocks[-1], quality_size(found).blocks[-1]):
        at = [column.name for column in table.columns].index("gain kept, %")
        kept = {row[1 if table.name == "leaderboard" else 0].text: row[at].text for row in table.rows}
        assert kept.pop("t0") == "100.00"
        assert all(" to " in text for text in kept.values())
        assert set(kept) == ({"t1", "t2", "t3"} if table.name == "leaderboard" else {"t1"})


def without_full_precision(folder, add):
    for number, quantizer in enumerate(("ternary", "binary")):
        add(f"t{number}", eval_loss=2.5, scores=means(2.5), quantizer=quantizer)
    write_base(folder, means(3.0))


def with_a_gain_that_may_be_nothing(folder, add):
    add("t0", eval_loss=2.99, scores=means(2.99, 1.0), quantizer="none")
    add("t1", eval_loss=2.98, scores=means(2.98), quantizer="binary")
    write_base(folder, means(3.0, 2.0))


def with_few_examples(folder, add):
    add("t0", eval_loss=2.5, scores=means(2.5, examples=20), quantizer="none")
    write_base(folder, means(3.0, examples=20))


def without_scores(folder, add):
    add("t0", eval_loss=2.5, quantizer="none")
    write_base(folder, means(3.0))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (without_full_precision, "there is nothing in full precision"),
        (with_a_gain_that_may_be_nothing, "is not clear of zero"),
        (with_few_examples, "it takes 30 examples"),
        (without_scores, "the scores of full precision cannot be read"),
    ],
)
def test_where_no_share_can_be_told_the_report_says_why(folder, add, make, why):
    make(folder, add)
    found = findings(load_sweep(folder))
    assert why in found.gains.untold
    assert found.gains.kept(found.best) is None
    page = markdown(report(found.sweep).document)
    assert f"No share of the gain over the base is told: {found.gains.untold}." in page
    assert "gain kept" not in page
    assert "Without an adapter: eval loss 3.0000, in nats per completion token" in page


# ---- what is read of it


def test_a_sweep_of_before_has_no_base_and_says_nothing_of_it(swept):
    sweep = load_sweep(swept)
    assert sweep.bare is None
    assert sweep.problems == ()
    page = markdown(report(sweep).document)
    assert "ain kept" not in page
    assert "ithout an adapter" not in page
    assert "base_loss" not in trials_csv(findings(sweep))


def test_a_base_that_scored_other_examples_is_left_out_with_a_word(swept):
    write_base(swept, means(3.0, examples=39))
    sweep = load_sweep(swept)
    assert sweep.bare is None
    assert sweep.problems == ("base/eval.parquet: other examples than those of trials/t0; the base's loss is left out",)


def test_a_test_split_that_is_of_no_use_leaves_the_eval_split(swept):
    write_base(swept, means(3.0), means(3.1))
    (swept / "base" / "test.parquet").write_bytes(b"no table")
    sweep = load_sweep(swept)
    assert sweep.bare.eval.loss == pytest.approx(3.0)
    assert sweep.bare.test is None
    assert sweep.problems == ("base/test.parquet: cannot be read",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"eval_loss": 3.0', ": not JSON: "),
        ('{"eval_loss": 3.0}', ": not a record: missing 4 required"),
        (None, ": missing"),
    ],
)
def test_a_record_of_the_base_that_cannot_be_read_is_left_out_with_a_word(swept, text, said):
    write_base(swept, means(3.0))
    path = swept / "base" / "record.json"
    path.unlink() if text is None else path.write_text(text)
    sweep = load_sweep(swept)
    assert sweep.bare is None
    [problem] = sweep.problems
    assert problem.startswith(f"base/record.json{said}")


def test_a_loss_that_is_no_number_is_left_out_with_a_word(swept):
    write_base(swept, means(3.0))
    path = swept / "base" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eval_loss": "low"}))
    sweep = load_sweep(swept)
    assert sweep.bare is None
    assert sweep.problems == ("base/eval.parquet: the record's loss of it is low",)
