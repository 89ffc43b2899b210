"""What is said while a sweep runs and its output goes to a file: something every few seconds, and what is left. And its
end: a report that cannot be made costs nothing: records and exit code stand, and it is made later."""

from __future__ import annotations

import io
import resource
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bitlora import timeouts
from bitlora.files.opening import open_storage
from bitlora.files.record import Record, write_record
from sweeps.cli.app import app
from sweeps.driver import meanwhile
from sweeps.driver.meanwhile import Heartbeat
from sweeps.driver.provenance import Run
from sweeps.driver.run import _finish
from sweeps.driver.underway import progress
from sweeps.driver.underway.progress import Display, Pace
from sweeps.pool.messages import PackCounts, PoolStatus, StepProgress

RUN = Run(began="", seconds=1.0, worker_seconds=1.0, worker={"CPU": 2.0}, machines={}, git=None)


def waited_for(output, text, seconds=20.0):
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if text in output.getvalue():
            return True
        time.sleep(0.01)
    return False


def test_a_log_never_stands_still(monkeypatch):
    assert timeouts.QUIET_S < 15
    monkeypatch.setattr(timeouts, "QUIET_S", 0.05)
    output = io.StringIO()
    with Heartbeat(Console(file=output, soft_wrap=True), "starting Ray") as heartbeat:
        assert waited_for(output, "s] starting Ray\n")
        heartbeat.doing = lambda: "something [else]"
        assert waited_for(output, "s] something [else]\n")
    time.sleep(0.1)
    ended = output.getvalue()
    time.sleep(0.2)
    assert output.getvalue() == ended


def test_nothing_is_said_while_other_lines_are_or_on_a_terminal(monkeypatch):
    output, display = io.StringIO(), io.StringIO()
    monkeypatch.setattr(timeouts, "QUIET_S", 30.0)
    with Heartbeat(Console(file=output, soft_wrap=True), "work") as heartbeat:
        heartbeat.say("a line")
        heartbeat.say("another", timed=True)
    monkeypatch.setattr(timeouts, "QUIET_S", 0.01)
    with Heartbeat(Console(file=display, force_terminal=True), "work"):
        time.sleep(0.1)
    assert output.getvalue() == "a line\n[     0 s] another\n"
    assert display.getvalue() == ""


class Trial:
    """As Tune has it."""

    def __init__(self, trial_id, **last):
        self.config = {"trial_id": trial_id, "config": {"steps": 12, "rank": 8}}
        self.last_result = last


@pytest.fixture
def display(monkeypatch):
    clock = [100.0]
    for module in (meanwhile, progress):
        monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), soft_wrap=True)
    shown = Display(console, Heartbeat(console, ""), None, ["rank"], total=4)

    def at(seconds, packs, **running):
        clock[0] = 100.0 + seconds
        shown._status = PoolStatus((), {t: p and StepProgress(p, 2.0) for t, p in running.items()}, packs)
        shown._pace.at(shown._taken())
        return shown.where()

    shown.at = at
    return shown


def test_a_search_that_ends_early_is_said_and_fewer_are_to_come(display):
    for trial_id in ("t0", "t1"):
        display.on_trial_start(0, [], Trial(trial_id))
    assert display.at(1, PackCounts(ready=1), t0=1, t1=1).endswith("; 4 of 4 trials to end")
    display.search_ends("search.hours (2) are over", 2)
    assert display._console.file.getvalue() == (
        "no new trial is asked for: search.hours (2) are over; what has begun goes on to its end\n"
    )
    assert display.at(1, PackCounts(ready=1), t0=1, t1=1).endswith("; 2 of 2 trials to end")


@pytest.mark.parametrize(
    ("keep_best", "said"), [(False, ["", "", "  (best so far)", "", "  (best so far)"]),
                            (True, ["", "", "  (best so far, with 2.0000)", "", ""])]
)  # fmt: skip
def test_the_best_is_by_what_a_trial_comes_to(display, keep_best, said):
    """Where that is its best evaluation, also of one that ended short of its budget."""
    display._keep_best = keep_best
    results = [("t0", 4, 2.5), ("t0", 8, 2.0), ("t0", 10, 2.75), ("t1", 8, 2.25), ("t1", 12, 2.25)]
    for trial_id, step, loss in results:
        status = "completed" if step in (10, 12) else "running"
        display.on_trial_result(0, [], Trial(trial_id), {"step": step, "eval_loss": loss, "status": status})
    lines = display._console.file.getvalue().splitlines()
    ends = [line.partition(f"eval loss {loss:.4f}")[2] for line, (_, _, loss) in zip(lines, results, strict=True)]
    assert ends == said


def test_who_confirms_is_not_the_best(display):
    again = Trial("t2")
    again.config["config"]["confirms"] = "t0"
    for trial, loss in ((Trial("t0"), 2.0), (again, 1.0)):
        display.on_trial_result(0, [], trial, {"step": 12, "eval_loss": loss, "status": "completed"})
    assert [line.endswith("(best so far)") for line in display._console.file.getvalue().splitlines()] == [True, False]


def test_where_a_sweep_stands(display):
    up = PackCounts(ready=1)
    for trial_id in ("t0", "t1", "t2"):
        display.on_trial_start(0, [], Trial(trial_id))
    assert display.at(0, PackCounts(waiting=2)) == "packs that wait for a machine: 2; 4 of 4 trials to end"
    assert display.at(5, PackCounts(loading=1)) == "a pack starts: it loads the base; 4 of 4 trials to end"
    assert display.at(9, up) == "a pack measures its memory and scores the base alone; 4 of 4 trials to end"
    assert display.at(20, up, t0=1, t1=1) == "2 training, at step 1 of 12; 4 of 4 trials to end"
    # 2 steps at 20 s and 8 at 26: one a second, and 48 - 8 are left at most
    assert (
        display.at(26, up, t0=5, t1=3)
        == "2 training, at steps 3 to 5 of 12; 4 of 4 trials to end; at this pace 40 s at most"
    )
    display.on_trial_complete(0, [], Trial("t0", step=6, status="pruned", eval_loss=2.0))
    # 9 steps at 27 s, of the 36 of the three that are left 3 are done
    assert display.at(27, up, t1=3).endswith("3 of 4 trials to end; at this pace 33 s at most")


def test_the_pace_is_known_after_the_second_look(monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    pace = Pace()
    pace.at(0)
    assert pace.seconds_for(5) is None
    pace.at(4)
    assert pace.seconds_for(5) is None
    pace.at(8)
    pace.at(14)
    assert pace.seconds_for(6) == 18.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "quick"
    trial = path / "trials" / "t0000"
    trial.mkdir(parents=True)
    config = {"quantizer": "none", "rank": 4, "steps": 8, "seed": 0}
    shared = {"base": {"model": "a"}, "data": {"source": "b"}, "versions": {}}
    numbers = {"eval_loss": 2.5, "steps": 8, "tokens": 80, "seconds": 1.0, "adapter_params": 8, "adapter_bytes": 16}
    write_record(trial, Record(trial_id="t0000", status="completed", reason="", config=config, **shared, **numbers))
    return path


def finish(folder: Path, code: int = 0) -> str:
    said = io.StringIO()
    with open_storage(str(folder)) as storage:
        _finish(storage, RUN, code, Console(file=said, soft_wrap=True))
    return said.getvalue()


def test_a_disk_too_full_for_the_report(folder: Path) -> None:
    """Files may have 8 KB: trials.csv and the tables fit, a figure does not."""
    before = (folder / "trials" / "t0000" / "record.json").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        said = finish(folder, code=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"no report: [Errno 27] File too large; try again: bitlora report {folder}" in said
    assert (folder / "exit_code").read_text() == "3\n"
    assert (folder / "trials" / "t0000" / "record.json").read_bytes() == before
    assert not (folder / "report" / "report.md").exists()
    assert not list(folder.rglob("*.part"))
    later = CliRunner().invoke(app, ["report", str(folder)])
    assert later.exit_code == 0, later.output
    assert "**t0000**" in (folder / "report" / "report.md").read_text()


def test_whatever_a_report_fails_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a drawing library's own\nsecond line")

    monkeypatch.setattr("sweeps.driver.run.write_report", broken)
    assert "no report: a drawing library's own; try again" in finish(folder)
    assert (folder / "exit_code").read_text() == "0\n"
    assert len((folder / "runs.jsonl").read_text().splitlines()) == 1


def test_a_broken_record_is_said_in_the_report(folder: Path) -> None:
    other = folder / "trials" / "t0001"
    other.mkdir()
    (other / "record.json").write_text("{")
    assert "report: " in finish(folder)
    assert "trials/t0001/record.json: not JSON" in (folder / "report" / "report.md").read_text()
