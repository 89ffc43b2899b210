"""`--resume`, alone or with `auto`: what begins, what goes on, what has ended; and how old object storage says it is."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s3
from rich.console import Console
from typer.testing import CliRunner

from bitlora.files.lease import LEASE
from bitlora.files.opening import open_storage
from bitlora.files.record import Record, write_record
from bitlora.files.storage import StorageError
from sweeps.cli.app import app
from sweeps.cli.begin import errors_to_begin, goes_on, spelled
from sweeps.cli.job import entrypoint
from sweeps.cli.status import draw, standing
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import dump_spec, load_spec

SPEC: dict[str, Any] = {
    "name": "quick",
    "base": {"model": "a"},
    "data": {"source": "b"},
    "search": {"trials": 4, "sampler": "grid", "space": {"rank": [4, 8]}},
}


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text(json.dumps({**SPEC, "out": str(tmp_path / "quick")}))
    return path


@pytest.fixture
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.S3Server]:
    with s3.serve_s3() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def end(folder: Path, spec_file: Path, code: int = 3, trials: int = 2) -> None:
    """Leave a sweep that has ended in `folder`, with its last trial failed, and without a report."""
    spec = load_spec(spec_file)
    searcher = OptunaSearcher(spec, folder / "study.journal")
    (folder / "sweep.yaml").write_text(dump_spec(spec))
    for number in range(trials):
        given = searcher.suggest(f"tune{number}")
        assert isinstance(given, dict)
        done = number < 1
        searcher.finish(given["trial_id"], "completed" if done else "failed", 2.5 if done else None, "a reason")
        trial = folder / "trials" / given["trial_id"]
        trial.mkdir(parents=True)
        config = {"quantizer": "none", "rank": 4, "steps": 8, "seed": 0}
        numbers = {"eval_loss": 2.5 if done else None, "steps": 8, "tokens": 80, "seconds": 1.0}
        shared = {"base": {"model": "a"}, "data": {"source": "b"}, "versions": {}, "adapter_params": 8}
        write_record(
            trial,
            Record(
                trial_id=trial.name,
                status="completed" if done else "failed",
                reason="" if done else "a reason",
                config=config,
                adapter_bytes=16,
                **shared,
                **numbers,
            ),
        )
    (folder / "exit_code").write_text(f"{code}\n")


# ---- how it is spelled


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (["a.yaml"], ["a.yaml"]),
        (["a.yaml", "--resume"], ["a.yaml", "--resume=always"]),
        (["--resume", "a.yaml"], ["--resume=always", "a.yaml"]),
        (["--resume", "auto", "a.yaml"], ["--resume=auto", "a.yaml"]),
        (["a.yaml", "--resume", "auto"], ["a.yaml", "--resume=auto"]),
        (["a.yaml", "--resume=auto", "--out", "x"], ["a.yaml", "--resume=auto", "--out", "x"]),
        (["--resume", "--out", "auto", "a.yaml"], ["--resume=always", "--out", "auto", "a.yaml"]),
        (["auto", "--", "--resume", "auto"], ["auto", "--", "--resume", "auto"]),
    ],
)
def test_resume_may_stand_alone_or_before_auto(args: list[str], found: list[str]) -> None:
    assert spelled(args) == found


@pytest.mark.parametrize(
    ("args", "resume"),
    [([], None), (["--resume"], "always"), (["--resume", "auto"], "auto"), (["--resume=auto"], "auto")],
)
def test_it_arrives_at_a_job_as_it_was_given(
    spec_file: Path, args: list[str], resume: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sweeps.cli.commands.sweep._submit", lambda path, spec, address, given: 0 if given == resume else 1
    )
    ended = CliRunner().invoke(app, ["sweep", str(spec_file), *args, "--address", "http://127.0.0.1:1"])
    assert ended.exit_code == 0
    # and the job's own command reads it again
    words = entrypoint(resume).split()
    assert words[:5] == ["python", "-m", "sweeps", "sweep", "spec.yaml"]
    assert spelled(words[5:]) == ([] if resume is None else [f"--resume={resume}"])


def test_anything_else_is_refused(spec_file: Path) -> None:
    ended = CliRunner().invoke(app, ["sweep", str(spec_file), "--resume=no"])
    assert ended.exit_code == 2
    assert "auto" in ended.output


# ---- begin, or go on


def test_auto_goes_on_where_there_is_a_sweep_and_begins_elsewhere(tmp_path: Path) -> None:
    there = open_storage(str(tmp_path / "quick"))
    assert goes_on(there, "always")
    assert not goes_on(there, None)
    assert not goes_on(there, "auto")
    assert errors_to_begin(there) == []
    (tmp_path / "quick" / "logs").mkdir(parents=True)  # a driver that was killed before it had written the spec
    assert not goes_on(there, "auto")
    assert errors_to_begin(there) == []
    (tmp_path / "quick" / "notes.txt").write_text("mine")
    assert not goes_on(there, "auto")
    assert errors_to_begin(there) == [f"{there.out}: is not empty; give another folder with --out"]
    (tmp_path / "quick" / "sweep.yaml").write_text("name: quick\n")
    assert goes_on(there, "auto")
    assert not goes_on(there, None)
    assert errors_to_begin(there) == [
        f"{there.out}: already holds a sweep; go on with it with --resume, or give another folder with --out"
    ]
    with pytest.raises(StorageError, match="cannot be written"):
        goes_on(open_storage("/proc/sweep"), "auto")


NO_RAY = """
import sys
sys.modules["ray"] = None  # importing it fails
from sweeps.cli.app import app
app()
"""


def run(*args: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", NO_RAY, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)


@pytest.mark.parametrize("how", [["--resume"], ["--resume", "auto"]])
def test_a_sweep_that_has_ended_is_said_and_its_report_made_without_ray(
    spec_file: Path, tmp_path: Path, how: list[str]
) -> None:
    folder = tmp_path / "quick"
    end(folder, spec_file)
    journal = (folder / "study.journal").read_bytes()
    ended = run("sweep", spec_file, *how)
    assert (ended.returncode, ended.stderr) == (3, "")
    said = ended.stdout.splitlines()
    assert said == [
        f"{folder}: this sweep has ended with all its trials (exit code 3); nothing is left to do",
        f"report: {folder}/report/report.md",
    ]
    assert (folder / "study.journal").read_bytes() == journal
    made = (folder / "report" / "report.md").stat().st_mtime_ns
    again = run("sweep", spec_file, *how)
    assert again.returncode == 3
    assert again.stdout.splitlines() == said[:1]
    assert (folder / "report" / "report.md").stat().st_mtime_ns == made


@pytest.mark.parametrize("left", ["a trial", "its exit code"])
def test_one_that_has_not_goes_on(spec_file: Path, tmp_path: Path, left: str) -> None:
    """It looks at base and data, of which there are none here."""
    folder = tmp_path / "quick"
    end(folder, spec_file, trials=1 if left == "a trial" else 2)
    if left == "its exit code":
        (folder / "exit_code").unlink()
    ended = run("sweep", spec_file, "--resume")
    assert "reading base and data" in ended.stderr
    assert "has ended" not in ended.stdout


def test_trials_that_would_never_be_asked_for_are_not_added(spec_file: Path, tmp_path: Path) -> None:
    """Base and data, which are read meanwhile, have lines of their own."""
    spec_file.write_text(
        json.dumps({**SPEC, "search": {**SPEC["search"], "sampler": "random", "trials": 8, "patience": 1}})
    )
    folder = tmp_path / "quick"
    end(folder, spec_file)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ended = CliRunner().invoke(app, ["add", str(folder), "--trials", "3"])
    assert ended.exit_code == 2
    assert (
        "search.trials: 11, but search.patience (1) is over: so many trials in a row ended without a new best at full "
        "budget; give --resume --set search.patience=N with more than 1, or null"
    ) in ended.stderr.splitlines()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_one_in_object_storage_that_has_ended(spec_file: Path, tmp_path: Path, s3_server: s3.S3Server) -> None:
    place = f"s3://{s3_server.make_bucket('b-ended')}/quick"
    spec_file.write_text(json.dumps({**SPEC, "out": place}))
    end(tmp_path / "quick", spec_file)
    with open_storage(place, tmp_path / "quick") as storage:
        storage.push("")
    temp = tmp_path / "temp"
    temp.mkdir()
    ended = run("sweep", spec_file, "--resume", "auto", env={**os.environ, "TMPDIR": str(temp)})
    assert (ended.returncode, ended.stderr) == (3, "")
    assert f"{place}: this sweep has ended with all its trials" in ended.stdout
    assert b"t0000" in s3_server.get(f"{place}/report/report.md")
    assert list(temp.glob("bitlora-*")) == []  # no scratch folder stays


# ---- status of a sweep in object storage


def test_status_says_how_long_ago_the_store_was_written_to(
    spec_file: Path, tmp_path: Path, s3_server: s3.S3Server
) -> None:
    place = f"s3://{s3_server.make_bucket('b-status')}/quick"
    spec_file.write_text(json.dumps({**SPEC, "out": place}))
    end(tmp_path / "quick", spec_file)
    (tmp_path / "quick" / "exit_code").unlink()
    (tmp_path / "quick" / "trials" / "t0000" / "eval.parquet").write_bytes(b"large")
    with open_storage(place, tmp_path / "quick") as storage:
        storage.push("")
    time.sleep(3)
    s3_server.put(f"{place}/{LEASE}", b"renewed just now")
    with open_storage(place, tmp_path / "mirror") as storage:
        found = standing(storage)
    assert 2 < found.quiet < 20
    said = io.StringIO()
    draw(Console(file=said, width=200), found)
    assert f"last written {found.quiet:.0f} s ago" in said.getvalue()
    assert "1 completed, 1 failed" in said.getvalue()
    assert not list((tmp_path / "mirror").rglob("eval.parquet"))  # not fetched to be looked at


def test_a_ctrl_c_that_a_library_swallows_ends_the_command_all_the_same(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started and nothing written."""

    def prepare(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:  # as a library does while it is imported
            return

    def run_sweep(*_: object) -> None:
        raise AssertionError("the sweep began")

    monkeypatch.setattr("sweeps.cli.commands.sweep.look", prepare)
    monkeypatch.setattr("sweeps.driver.run.run_sweep", run_sweep)
    before = signal.getsignal(signal.SIGINT)
    ended = CliRunner().invoke(app, ["sweep", str(spec_file), "--out", str(tmp_path / "new")])
    assert ended.exit_code == 130, ended.output
    assert signal.getsignal(signal.SIGINT) is before
    assert not (tmp_path / "new").exists()
