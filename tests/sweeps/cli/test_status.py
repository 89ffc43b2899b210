"""Where a sweep stands, from its folder alone: for a person, and for a program."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bitlora import timeouts
from bitlora.files.opening import open_storage
from bitlora.files.record import Metrics, Record, append_metrics, read_record, write_record
from bitlora.files.writing import write_json
from reports.document.cells import seconds
from sweeps.cli.app import app
from sweeps.cli.status import draw, sparkline, standing
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import dump_spec, load_spec

SPEC: dict[str, Any] = {
    "name": "quick",
    "base": {"model": "a"},
    "data": {"source": "b"},
    "train": {"steps": 16, "eval_every": 4},
    "search": {"trials": 6, "space": {"rank": [4, 8]}},
    "resources": {"price_per_hour": 3.6},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sweep of six trials: one has completed, one is at its half, one has just begun."""
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(SPEC))
    folder = tmp_path / "quick"
    folder.mkdir()
    (folder / "sweep.yaml").write_text(dump_spec(load_spec(path)))
    for number, steps in enumerate((16, 8, 0)):
        trial = folder / "trials" / f"t{number:04d}"
        trial.mkdir(parents=True)
        write_json(trial / "config.json", {"rank": 4, "steps": 16, "confirms": None})
        for step in range(4, steps + 1, 4):
            more = {"learning_rate": 0.1, "seconds": float(step), "train_loss": 2.0}
            append_metrics(trial, Metrics(step=step, tokens=10 * step, eval_loss=3 - step / 16, **more))
    numbers: dict[str, Any] = {"eval_loss": 2.0, "steps": 16, "tokens": 160, "seconds": 16.0, "adapter_params": 8}
    whose: dict[str, Any] = {"base": {}, "data": {}, "versions": {}, "adapter_bytes": 16, "config": {"rank": 4}}
    write_record(
        folder / "trials" / "t0000", Record(trial_id="t0000", status="completed", reason="", **whose, **numbers)
    )
    (folder / "runs.jsonl").write_text('{"worker_seconds": 1000.0}\n')
    return folder


def drawn(folder: Path) -> str:
    said = io.StringIO()
    with open_storage(str(folder)) as storage:
        draw(Console(file=said, width=200), standing(storage))
    return said.getvalue()


def test_a_sweep_that_runs(folder: Path) -> None:
    said = drawn(folder)
    assert "of 6 trials have ended: 1 completed" in said
    assert "best so far: t0000 2.0000" in said
    # t0001 takes a step a second: 8 of its own, 16 of t0002, and 16 of each of the three that have not begun
    assert f"to come: {seconds(72)} at most, at this pace" in said
    assert f"spent: 240 tokens, {seconds(1000)} of workers, which cost 1.00" in said
    [line] = [line for line in said.splitlines() if line.startswith("t0001")]
    assert line.split() == ["t0001", "8/16", "2.5000", "█▁", "rank", "4"]


def test_as_json_for_a_program(folder: Path) -> None:
    ended = CliRunner().invoke(app, ["status", str(folder), "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found.pop("quiet_seconds") >= 0
    assert found == {
        "name": "quick",
        "exit_code": None,
        "trials": 6,
        "search_ended": None,
        "began": 3,
        "ended": {"completed": 1},
        "best": {"trial": "t0000", "eval_loss": 2.0},
        "running": [
            {
                "trial": "t0001",
                "step": 8,
                "steps": 16,
                "eval_loss": 2.5,
                "config": {"rank": 4},
                "curve": [[4, 2.75], [8, 2.5]],
            },
            {"trial": "t0002", "step": 0, "steps": 16, "eval_loss": None, "config": {"rank": 4}, "curve": []},
        ],
        "eta_seconds": 72.0,
        "tokens": 240,
        "slot_seconds": 24.0,
        "worker_seconds": 1000.0,
        "cost": 1.0,
    }
    page = (Path(__file__).parents[3] / "docs" / "commands.md").read_text()
    assert all(f"`{field}`" in page for field in found)


def test_what_is_to_confirm_the_best_is_to_come_too(folder: Path) -> None:
    spec = load_spec(folder / "sweep.yaml", ["confirm={top: 2, seeds: 3}"])
    (folder / "sweep.yaml").write_text(dump_spec(spec))

    def eta() -> float | None:
        with open_storage(str(folder)) as storage:
            return standing(storage).eta_seconds

    assert eta() == 72 + 6 * 16
    # the search ends with one that completed, and of the three that confirm it one begins
    searcher = OptunaSearcher(spec, folder / "study.journal")
    for number in range(6):
        assert isinstance(searcher.suggest(f"tune{number}"), dict)
        searcher.finish(f"t{number:04d}", "failed" if number else "completed", None if number else 2.0)
    assert eta() == 72 + 6 * 16
    assert isinstance(searcher.suggest("tune6"), dict)
    trial = folder / "trials" / "t0006"
    trial.mkdir()
    write_json(trial / "config.json", {"rank": 4, "steps": 16, "confirms": "t0000"})
    assert eta() == 72 + 3 * 16


def test_of_two_objectives_the_front_so_far(folder: Path) -> None:
    spec = load_spec(folder / "sweep.yaml", ["search.objectives=[loss, bytes]"])
    (folder / "sweep.yaml").write_text(dump_spec(spec))
    done = read_record(folder / "trials" / "t0000")
    others = {"t0003": (1.5, 64), "t0004": (2.5, 4), "t0005": (2.5, 16), "t0006": (1.5, 64), "t0007": (1.0, 99)}
    for trial, (loss, count) in others.items():
        status = "pruned" if trial == "t0007" else "completed"
        path = folder / "trials" / trial
        path.mkdir()
        write_record(path, replace(done, trial_id=trial, status=status, eval_loss=loss, adapter_bytes=count))
    again = folder / "trials" / "t0008"  # confirms another: no trial of the search
    again.mkdir()
    write_record(again, replace(done, trial_id="t0008", eval_loss=1.1, config={"rank": 4, "confirms": "t0003"}))
    assert "on the front so far: 3, from t0003 1.5000 at 64 B to t0004 2.5000 at 4 B" in drawn(folder)
    found = json.loads(CliRunner().invoke(app, ["status", str(folder), "--json"]).stdout)
    told = [(one["trial"], one["eval_loss"], one["adapter_bytes"]) for one in found["front"]]
    assert told == [("t0003", 1.5, 64), ("t0000", 2.0, 16), ("t0004", 2.5, 4)]
    assert found["best"] == {"trial": "t0003", "eval_loss": 1.5}


def test_a_search_that_may_end_sooner_and_one_that_has(folder: Path) -> None:
    spec = load_spec(folder / "sweep.yaml", ["search.patience=2"])
    (folder / "sweep.yaml").write_text(dump_spec(spec))
    assert "of at most 6 trials have ended" in drawn(folder)
    from sweeps.search.agenda import end_early
    from sweeps.search.study import open_study

    end_early(spec, open_study(spec, folder / "study.journal"), "search.patience (2) is over")
    said = drawn(folder)
    assert "of 3 trials have ended" in said
    assert "no more trials are asked for: search.patience (2) is over" in said


def test_it_is_watched_until_it_has_ended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look(wait: float) -> None:
        looks.append(wait)
        if len(looks) == 2:
            (folder / "exit_code").write_text("0\n")

    monkeypatch.setattr("time.sleep", look)
    ended = CliRunner().invoke(app, ["status", str(folder), "--watch"])
    assert ended.exit_code == 0, ended.output
    assert looks == [timeouts.WATCH_S] * 2
    assert "ended with exit code 0" in ended.output


def test_both_at_once_are_refused(folder: Path) -> None:
    ended = CliRunner().invoke(app, ["status", str(folder), "--watch", "--json"])
    assert ended.exit_code == 2
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "bars"),
    [([], ""), ([2.0], "▁"), ([3.0, 2.0, 1.0], "█▅▁"), ([1.0, float("nan"), 2.0], "▁█"), ([1.0] * 40, "▁" * 24)],
)
def test_bars(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars
