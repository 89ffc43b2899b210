"""A report that cannot be made costs nothing: records and exit code stand, and it is made later."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bitlora.files.opening import open_storage
from bitlora.files.record import Record, write_record
from sweeps.cli.app import app
from sweeps.driver.provenance import Run
from sweeps.driver.run import _finish

RUN = Run(began="", seconds=1.0, worker_seconds=1.0, worker={"CPU": 2.0}, machines={}, git=None)


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
