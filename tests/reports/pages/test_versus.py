"""Every configuration of some sweeps against one of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sweep_files
from constructed import add_extended, spread, write_base

from reports.load.sweep import load_sweep
from reports.pages.versus import Control, versus
from reports.report import write_report
from reports.sections.parts import KEPT
from sweeps.cli.commands.against import control


@pytest.fixture
def two(folder, add):
    """Two sweeps over the same examples, of three and of two configurations."""
    other = Path("runs/other")
    shutil.copytree(folder, other)
    (other / "sweep.yaml").write_text((other / "sweep.yaml").read_text().replace("quickstart", "other"))
    add("a", eval_loss=2.5, quantizer="none", scores=spread(2.5, 0.1))
    add("b", eval_loss=2.52, quantizer="binary", scores=spread(2.52, 0.5))
    add("c", eval_loss=2.7, quantizer="int4", rank=8, scores=spread(2.7, 0.1))
    for name, loss, quantizer in (("d", 2.6, "none"), ("e", 2.61, "ternary")):
        add(name, eval_loss=loss, quantizer=quantizer, scores=spread(loss, 0.12))
        shutil.move(folder / "trials" / name, other / "trials" / name)
    return folder, other


def held(document):
    """Configuration, how far it is above, and what is sure: of each line of the table."""
    (table, *_) = document.tables
    return [(row[1].text, row[3].text, row[5].text) for row in table.rows]


def test_each_configuration_of_all_is_held_against_a_sweeps_best(two):
    document, (plot,) = versus([load_sweep(folder) for folder in two], Control(1))
    assert held(document) == [
        ("a", "-0.1000", "better"),
        ("b", "-0.0800", "tied"),
        ("d", "0", "held against"),
        ("e", "+0.0100", "worse"),
        ("c", "+0.1000", "worse"),
    ]
    assert plot.data["label"].tolist() == ["other: d", "quickstart: a", "quickstart: b", "other: e", "quickstart: c"]
    assert plot.data["difference"].round(9).tolist() == [0, -0.1, -0.08, 0.01, 0.1]


def test_or_against_a_trial_of_one(two):
    document, _ = versus([load_sweep(two[0])], Control(0, "c"))
    assert held(document) == [("a", "-0.2000", "better"), ("b", "-0.1800", "better"), ("c", "0", "held against")]


def test_what_scored_other_text_is_left_out_and_counted(two):
    for folder, name in ((two[1], "e"), (two[0], "a")):
        (folder / "trials" / name / "eval.parquet").unlink()
    document, _ = versus([load_sweep(folder) for folder in two], Control(1))
    assert [line[0] for line in held(document)] == ["b", "d", "c"]
    assert "Left out: 2 configurations without scores of the same text." in document.blocks[1].parts[0]


def test_a_trial_that_was_given_more_steps_takes_nobodys_place(two, add):
    add_extended(add, "g", 2.1, quantizer="binary", rank=4, scores=spread(2.1, 0.1))
    document, _ = versus([load_sweep(folder) for folder in two], Control(1))
    assert [line[0] for line in held(document)] == ["a", "b", "d", "e", "c"]
    document, _ = versus([load_sweep(two[0])], Control(0))
    assert [line[0] for line in held(document)] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="quickstart: g was given more steps than the others have"):
        versus([load_sweep(two[0])], Control(0, "g"))


@pytest.mark.parametrize(
    ("which", "why"),
    [
        (Control(0, "t7"), "quickstart: t7 is no trial of it that completed its full budget with a finite eval loss"),
        (Control(0, "a"), "quickstart: the eval.parquet of a cannot be read, so nothing is held against it"),
    ],
)
def test_what_cannot_be_held_against_is_said(two, which, why):
    (two[0] / "trials" / "a" / "eval.parquet").unlink()
    with pytest.raises(ValueError, match=why):
        versus([load_sweep(two[0])], which)


def test_the_page(two):
    path = write_report([two[0]], against=Control(0, "b"))
    assert path == Path("runs/comparison/report.md")
    page = path.read_text()
    assert page.startswith("# Against quickstart: b\n\nAgainst **quickstart: b** (b: quantizer binary, rank 16")
    assert "on the eval split: of 2 configurations 1 tied, 1 worse." in page
    assert "All 3 are judged together" in page
    again = write_report([two[0]], Path("again"), Control(0, "b"))
    assert again.read_bytes() == path.read_bytes()


def test_confirmed_configurations_are_held_against_each_other_on_their_rows(folder, add):
    for name, loss in (("t0", 2.5), ("t1", 2.55)):
        trial = add(name, eval_loss=loss, scores=spread(loss, 0.1), quantizer="none" if name == "t0" else "binary")
        of = json.loads((trial / "config.json").read_text())
        for seed in (1, 2):
            tests = spread(loss + seed / 1000, 0.1)
            add(f"{name}s{seed}", eval_loss=loss, test=tests, **(of | {"seed": seed, "confirms": name}))
    document, _ = versus([load_sweep(folder)], Control(0, "t1"))
    assert held(document) == [("t0", "-0.0500", "better"), ("t1", "0", "held against")]
    assert "on the test split" in document.blocks[0].parts[2]


# ---- the gain that is kept


def kept(document):
    """Configuration and gain kept of each line of the table; None where there is no such column."""
    (table, *_) = document.tables
    names = [column.name for column in table.columns]
    return [(row[1].text, row[names.index(KEPT)].text if KEPT in names else None) for row in table.rows]


def recomputed(folder, split):
    """What the recount, which shares nothing with the product, has of each configuration."""
    sweep = sweep_files.Sweep(folder)
    of = sweep.gain(split)
    found = {c.ids[0]: of.kept(c) for c in (sweep.confirmed if split == "test" else sweep.ranking)}
    return {
        name: f"{100 * share:.2f}" + ("" if low is None else f" ({100 * low:.2f} to {100 * high:.2f})")
        for name, (share, low, high) in found.items()
    }


def test_what_each_keeps_of_the_gain_of_its_own_sweep(two):
    assert {text for _, text in kept(versus([load_sweep(folder) for folder in two], Control(1))[0])} == {None}
    write_base(two[0], spread(3.1, 0.3))
    document, _ = versus([load_sweep(folder) for folder in two], Control(1))
    right = recomputed(two[0], "eval") | {"d": "–", "e": "–"}  # nobody scored the base of that sweep
    assert kept(document) == [(name, right[name]) for name in "abdec"]
    assert "(" not in right["a"]
    assert "(" in right["b"]
    assert "(" in right["c"]
    assert "best in full precision of the same sweep" in document.blocks[1].parts[0]
    write_base(two[1], spread(3.2, 0.3))
    document, _ = versus([load_sweep(folder) for folder in two], Control(0, "c"))
    right |= recomputed(two[1], "eval")
    assert kept(document) == [(name, right[name]) for name in "abdec"]


def test_where_no_share_is_told_the_page_says_of_whom_and_why(two):
    write_base(two[0], spread(3.1, 0.3))
    write_base(two[1], spread(3.2, 0.3))
    shutil.rmtree(two[1] / "trials" / "d")
    document, _ = versus([load_sweep(folder) for folder in two], Control(0))
    assert kept(document)[2] == ("e", "–")
    why = "No share of the gain over the base is told of other: there is nothing in full precision to hold it against."
    assert why in document.blocks[1].parts[0]


def test_confirmed_ones_keep_it_on_the_test_split(folder, add):
    for name, loss in (("t0", 2.5), ("t1", 2.55)):
        trial = add(name, eval_loss=loss, scores=spread(loss, 0.1), quantizer="none" if name == "t0" else "binary")
        of = json.loads((trial / "config.json").read_text())
        for seed in (1, 2):
            tests = spread(loss + seed * (1 + (name == "t1")) / 1000, 0.1)
            add(f"{name}s{seed}", eval_loss=loss, test=tests, **(of | {"seed": seed, "confirms": name}))
    write_base(folder, spread(3.1, 0.3), spread(3.3, 0.2))
    document, _ = versus([load_sweep(folder)], Control(0, "t1"))
    right = recomputed(folder, "test")
    assert kept(document) == [("t0", "100.00"), ("t1", right["t1"])]
    assert right["t1"] != recomputed(folder, "eval")["t1"]


def test_what_the_command_line_names():
    assert control(["runs/a/", "runs/b"], "runs/b") == Control(1)
    assert control(["runs/a/"], "runs/a/trials/t0007/") == Control(0, "t0007")
    with pytest.raises(ValueError, match=r"--against: runs/ab: give a folder that is compared.*did you mean runs/a\?"):
        control(["runs/a"], "runs/ab")
