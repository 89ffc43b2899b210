from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from constructed import write_base

from reports.load.sweep import load_sweep
from reports.statistics.comparable import comparable


def edit(trial: Path, **changes: object) -> None:
    """Put `changes` into a trial's record, NaN and Infinity included, as a program with fewer scruples would."""
    record = json.loads((trial / "record.json").read_text())
    (trial / "record.json").write_text(json.dumps(record | changes))


def test_one_tidy_row_per_trial_failures_included(folder, add):
    add("t0001", "failed", steps=0, quantizer="ternary")
    add("t0000", eval_loss=2.5, rank=8)
    sweep = load_sweep(folder)
    trials = sweep.trials
    assert trials["trial_id"].tolist() == ["t0000", "t0001"]
    assert trials["status"].tolist() == ["completed", "failed"]
    assert trials["reason"].tolist() == ["", "failed for a reason"]
    assert trials["eval_loss"].tolist()[0] == 2.5
    assert pd.isna(trials["eval_loss"][1])
    assert trials["budget"].tolist() == [32, 32]
    assert trials["config.quantizer"].tolist() == ["none", "ternary"]
    assert trials["config.rank"].tolist() == [8, 16]
    assert sweep.name == "quickstart"
    assert sweep.spec["search"]["space"]["rank"] == [8, 16, 32]
    assert sweep.base == {"model": ("tiny",), "quantization": ("nf4",), "params": ("134515008",)}
    assert sweep.problems == ()


def test_what_differs_between_records_is_kept(folder, add):
    add("t0000", eval_loss=2.5)
    add("t0001", eval_loss=2.6, record={"versions": {"torch": "2.14.0"}})
    assert load_sweep(folder).versions == {"torch": ("2.13.0", "2.14.0")}


def test_a_record_cut_short_leaves_a_row_from_the_files_beside_it(folder, add):
    trial = add("t0000", eval_loss=2.5, steps=16, rank=8)
    (trial / "record.json").write_text((trial / "record.json").read_text()[:60])
    sweep = load_sweep(folder)
    (row,) = sweep.trials.to_dict("records")
    assert (row["status"], row["steps"], row["eval_loss"], row["config.rank"]) == ("unknown", 16, 2.5, 8)
    (problem,) = sweep.problems
    assert problem.startswith("trials/t0000/record.json: not JSON: ")


def test_a_trial_without_a_record_is_unknown(folder, add):
    trial = add("t0000")
    (trial / "record.json").unlink()
    sweep = load_sweep(folder)
    assert sweep.trials["status"].tolist() == ["unknown"]
    assert sweep.problems == ("trials/t0000/record.json: missing: the trial is still running, or was cut off",)


def test_a_write_that_did_not_finish_is_no_trial(folder, add):
    add("t0000", eval_loss=2.5)
    (folder / "trials" / ".t0001.abc.part").mkdir()
    (folder / "trials" / "notes.txt").write_text("mine")
    assert load_sweep(folder).trials["trial_id"].tolist() == ["t0000"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"eval_loss": float("nan")}, "status is completed, but eval_loss is not a number that can be used"),
        ({"eval_loss": float("inf")}, "status is completed, but eval_loss is not a number that can be used"),
        ({"eval_loss": None}, "status is completed, but eval_loss is missing"),
        ({"eval_loss": "2.5"}, "status is completed, but eval_loss is not a number that can be used"),
        ({"eval_loss": True}, "status is completed, but eval_loss is not a number that can be used"),
        ({"eval_loss": 10**400}, "status is completed, but eval_loss is not a number that can be used"),
        ({"steps": 31.5}, "status is completed, but steps is not a number that can be used"),
        ({"tokens": 2**63}, "status is completed, but tokens is not a number that can be used"),
        ({"config": [1]}, "config is not a mapping of keys to values"),
        ({"trial_id": "t9"}, "trial_id is t9; the folder's name is used instead"),
    ],
)
def test_a_value_that_cannot_be_used_is_a_problem(folder, add, changes, problem):
    edit(add("t0000", eval_loss=2.5), **changes)
    sweep = load_sweep(folder)
    assert sweep.problems == (f"trials/t0000/record.json: {problem}",)
    (row,) = sweep.trials.to_dict("records")
    assert row["trial_id"] == "t0000"
    if "eval_loss" in changes:
        assert pd.isna(row["eval_loss"])


def test_the_loss_of_a_diverged_trial_may_be_missing_without_a_problem(folder, add):
    add("t0000", "diverged")
    assert load_sweep(folder).problems == ()


def test_broken_metrics_are_a_problem_that_names_the_line(folder, add):
    trial = add("t0000", eval_loss=2.5)
    good = (trial / "metrics.jsonl").read_text()
    (trial / "metrics.jsonl").write_text(good + "{\n" + good)
    (problem,) = load_sweep(folder).problems
    assert problem.startswith("trials/t0000/metrics.jsonl:2: not a line of metrics: ")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "sweep.yaml: missing"),
        ("name: quickstart\nsearch: {trials: 8\n", "sweep.yaml:3: not YAML: "),
        ("- 1\n", "sweep.yaml: not a mapping of keys to values"),
        (b"name: \xff\n", "sweep.yaml: 'utf-8' codec"),
    ],
)
def test_a_spec_that_cannot_be_read_is_a_problem(folder, add, content, problem):
    add("t0000", eval_loss=2.5)
    if content is None:
        (folder / "sweep.yaml").unlink()
    else:
        (folder / "sweep.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    sweep = load_sweep(folder)
    assert sweep.spec == {}
    assert sweep.name == "quickstart"
    (found,) = sweep.problems
    assert found.startswith(problem)


def test_problems_name_paths_inside_the_folder_even_if_it_is_given_as_absolute(folder, add):
    (add("t0000") / "record.json").write_text("[]")
    (add("t0001", eval_loss=2.5) / "metrics.jsonl").write_text("?\n?\n")
    problems = load_sweep(folder.resolve()).problems
    assert len(problems) == 2
    assert all(problem.startswith("trials/t000") and str(Path.cwd()) not in problem for problem in problems)


def test_half_a_character_is_replaced(folder, add):
    edit(add("t0000", "failed"), reason="bad \ud800 text")
    assert load_sweep(folder).trials["reason"].tolist() == ["bad ? text"]


def test_no_sweeps_folder_is_refused_in_one_line(folder):
    with pytest.raises(ValueError, match=r"^runs/quikstart: no such folder; did you mean runs/quickstart\?$"):
        load_sweep(Path("runs/quikstart"))
    with pytest.raises(ValueError, match=r"^runs: not a sweep's folder: it has neither sweep\.yaml nor trials/$"):
        load_sweep(Path("runs"))


def test_trials_come_in_the_order_of_their_numbers(folder, add):
    """In the table, and where their losses are equal on the leaderboard too."""
    for name in ("t10000", "t9999", "t0002"):
        add(name, eval_loss=2.5, rank=int(name[1:]) + 1)
    sweep = load_sweep(folder)
    assert sweep.trials["trial_id"].tolist() == ["t0002", "t9999", "t10000"]
    assert comparable(sweep).ranked["trial_id"].tolist() == ["t0002", "t9999", "t10000"]


@pytest.mark.parametrize(("counts", "said"), [((0, 24, 0), ("24",)), ((0, 0), ("0",)), ((24, 30), ("24", "30"))])
def test_trials_of_before_a_confirmation_was_added_know_of_no_test_rows(folder, add, counts, said):
    for number, count in enumerate(counts):
        add(f"t{number}", eval_loss=2.5, record={"data": {"source": "pydoc", "test_rows": count}})
    assert load_sweep(folder).data == {"source": ("pydoc",), "test_rows": said}


def test_the_base_is_held_against_confirmed_trials_on_their_rows(folder, add):
    """They may be fewer than the test split has; other rows are a problem."""
    evals, tests = [3.0 + index / 100 for index in range(40)], [3.1 + index / 50 for index in range(40)]
    add("t0", eval_loss=2.5, scores=evals)
    trial = add("t1", eval_loss=2.5, scores=evals, test=tests[:30], seed=1, confirms="t0", confirm_rows=30)
    write_base(folder, evals, tests)
    sweep = load_sweep(folder)
    assert sweep.problems == ()
    assert sweep.bare.test.loss == pytest.approx(sum(tests[:30]) / 30)
    assert len(sweep.bare.test.scores) == 30
    scores = pd.read_parquet(trial / "test.parquet")
    scores.assign(tokens=11).to_parquet(trial / "test.parquet")
    found = load_sweep(folder)
    assert found.bare.test is None
    assert "other examples than those of trials/t1" in found.problems[0]
