from __future__ import annotations

import pandas as pd
import pytest

from reports import cells, tables
from reports.document import plain
from reports.load import load_sweep
from reports.markdown import escape
from reports.stats import comparable


def test_axes_are_what_varies_or_was_searched(folder, add):
    add("a", eval_loss=2.5, rank=8, batch_size=4, steps=32)
    add("b", eval_loss=2.5, rank=16, batch_size=4, eval_every=8)
    axes = tables.axes(load_sweep(folder).trials, ["alpha"])
    assert axes.varying == ("rank", "alpha")
    assert axes.fixed["batch_size"] == 4
    assert axes.fixed["quantizer"] == "none"
    assert not {"rank", "alpha"} & axes.fixed.keys()


def test_quantizers_ranked_first_then_the_furthest_then_none(folder, add):
    add("a", eval_loss=2.6, quantizer="ternary")
    add("b", eval_loss=2.5, quantizer="none")
    add("c", "pruned", eval_loss=2.2, steps=8, quantizer="binary")
    add("d", "pruned", eval_loss=2.4, steps=16, quantizer="binary")
    add("e", "diverged", quantizer="ternary")
    trials = load_sweep(folder).trials
    lines = tables.quantizer_bests(trials, comparable(trials), ["none", "binary", "ternary", "int4"])
    assert [(li.quantizer, li.full, li.began, li.best and li.best["trial_id"]) for li in lines] == [
        ("none", 1, 1, "b"),
        ("ternary", 1, 2, "a"),
        ("binary", 0, 2, "d"),
        ("int4", 0, 0, None),
    ]
    assert [li.gap for li in lines] == [0, pytest.approx(0.1), None, None]


def test_what_is_not_at_equal_budget_is_marked(folder, add):
    add("b", eval_loss=2.5, quantizer="none")
    add("d", "pruned", eval_loss=2.4, steps=16, quantizer="binary", activations="int8")
    trials = load_sweep(folder).trials
    lines = tables.quantizer_bests(trials, comparable(trials), ["ternary"])
    table, notes = tables.quantizer_table(lines, ["activations"])
    assert [column.name for column in table.columns][-4:] == [
        "activations",
        "parameters",
        "packed size",
        "bits per parameter",
    ]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["none", "1 of 1", "b", "2.5000", "0.0000", "–", "16", "16", "5e-4", "full", "1,221,120", "2.4 MB", "16.00"],
        ["binary", "0 of 1", "d †", "2.4000", "–", "–", "16", "16", "5e-4", "int8", "1,221,120", "152.6 KB", "1.00"],
        ["ternary", "0 of 0", "none", *["–"] * 10],
    ]
    assert notes == [
        "† Not at equal budget: d was pruned at step 16 of 32, so its loss does not compare with the others."
    ]


def test_endings_are_grouped_by_status_and_reason(folder, add):
    for trial_id, status, reason in (
        ("a", "failed", "no memory"),
        ("b", "pruned", "asha"),
        ("c", "failed", "lost"),
        ("d", "failed", "lost"),
    ):
        add(trial_id, status, eval_loss=2.5, record={"reason": reason})
    add("e", "completed")
    assert [(e.status, e.reason, e.trial_ids) for e in tables.endings(load_sweep(folder).trials)] == [
        ("completed", "without a usable eval loss: not ranked", ("e",)),
        ("pruned", "asha", ("b",)),
        ("failed", "lost", ("c", "d")),
        ("failed", "no memory", ("a",)),
    ]


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        ("a|b", r"a\|b"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("&amp;", "&amp;amp;"),
        ("one\r\ntwo\u2028three\x00\ttab", "one two three tab"),
        ("`code` *bold* ~~gone~~ [link](x) back\\slash", r"\`code\` \*bold\* \~\~gone\~\~ \[link\](x) back\\slash"),
        ("learning_rate _it_", r"learning_rate \_it\_"),
        ("שלום", "\u2068שלום\u2069"),
        ("right\u202eto left\u202c", "rightto left"),
        ("half \ud800", "half ?"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_text_means_only_itself(given, drawn):
    assert escape(plain(given)) == drawn


@pytest.mark.parametrize(
    ("key", "given", "drawn"),
    [
        ("learning_rate", 2e-4, "2e-4"),
        ("learning_rate", 0.00146779, "1.47e-3"),
        ("learning_rate", 0.5, "5e-1"),
        ("weight_decay", 0.001, "1e-3"),
        ("weight_decay", 0.0, "0"),
        ("alpha", 16.0, "16"),
        ("dropout", 0.05, "0.05"),
        ("rank", 8, "8"),
        ("flag", True, "true"),
        ("quantizer", "a|b", "a|b"),
        ("quantizer", "", "–"),
        ("rank", None, "–"),
        ("rank", pd.NA, "–"),
        ("alpha", float("nan"), "–"),
        ("alpha", float("inf"), "–"),
    ],
)
def test_values(key, given, drawn):
    assert cells.value(key, given) == drawn


@pytest.mark.parametrize(
    ("given", "drawn"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 KB"),
        (999_949, "999.9 KB"),
        (999_950, "1.0 MB"),
        (19_537_920, "19.5 MB"),
        (None, "–"),
        (pd.NA, "–"),
    ],
)
def test_sizes_in_powers_of_1000(given, drawn):
    assert cells.size(given) == drawn


def test_a_small_gap_is_not_printed_as_zero():
    assert [cells.gap(g) for g in (0.0, 4e-5, 6e-5, 0.25, None)] == ["0.0000", "under 0.0001", "0.0001", "0.2500", "–"]
