"""A study's journal after its writer was killed: cut anywhere it is gone on with; a lock holds nobody up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from bitlora import timeouts
from sweeps.search.journal import LOCK, mend
from sweeps.search.study import StudyError, open_study, read_study
from sweeps.spec.spec import Spec

SPEC = Spec.model_validate(
    {
        "name": "s",
        "base": {"model": "a"},
        "data": {"source": "b"},
        "search": {"sampler": "random", "space": {"rank": [4, 8]}},
    }
)


def train(study: optuna.Study) -> None:
    trial = study.ask()
    trial.set_user_attr("trial_id", f"t{trial.number:04d}")
    trial.report(float(trial.suggest_categorical("rank", (4, 8))), 4)
    study.tell(trial, 2.0)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A study of three trials that have ended and one that runs."""
    path = tmp_path / "study.journal"
    study = open_study(SPEC, path)
    for _ in range(3):
        train(study)
    study.ask().suggest_categorical("rank", (4, 8))
    return path


def mended(journal: Path) -> list[str]:
    said: list[str] = []
    mend(journal, said.append, lambda: False)
    return said


def entries(journal: Path) -> list[Any]:
    return [json.loads(line) for line in journal.read_bytes().splitlines()]


@pytest.mark.parametrize("behind", [b"", b"\n", bytes(64)], ids=["alone", "a line's end", "zeros of a power cut"])
def test_cut_at_each_of_its_last_200_bytes(journal: Path, behind: bytes) -> None:
    whole = journal.read_bytes()
    cuts = range(len(whole) - 200, len(whole) + 1) if behind == b"" else range(len(whole) - 200, len(whole), 9)
    for end in cuts:
        cut = whole[:end]
        journal.write_bytes(cut + behind)
        said = mended(journal)
        lines = [line for line in cut.split(b"\n") if line]
        kept = lines if _is_json(lines[-1]) else lines[:-1]
        assert journal.read_bytes() == b"".join(line + b"\n" for line in kept), end
        touched = journal.read_bytes() != cut + behind
        assert len(said) == touched, (end, said)
        assert all(line.startswith(f"{journal}: ") and "last line" in line for line in said)
        before = len(read_study(journal).trials)
        train(open_study(SPEC, journal))
        again = read_study(journal)
        assert len(again.trials) == before + 1
        assert again.trials[-1].value == 2.0
        assert entries(journal)[: len(kept)] == [json.loads(line) for line in kept]


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def test_what_is_whole_is_left_alone(journal: Path) -> None:
    before = journal.read_bytes(), journal.stat().st_mtime_ns
    assert mended(journal) == []
    assert (journal.read_bytes(), journal.stat().st_mtime_ns) == before
    missing = journal.with_name("none.journal")
    assert mended(missing) == []
    assert not missing.exists()


def test_one_that_was_written_on_behind_a_torn_line_is_refused_by_its_line(journal: Path) -> None:
    """As an earlier version left it: what came after the torn line is not thrown away unasked."""
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], lines[4][:20], *lines[4:]]))
    assert mended(journal) == []
    with pytest.raises(StudyError, match=r"study.journal: line 5 cannot be read; .*\(head -n 4\)$"):
        read_study(journal)


# ---- its lock


HOLD = """
import os, sys, time
from optuna.storages.journal import JournalFileSymlinkLock
JournalFileSymlinkLock(sys.argv[1]).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def killed(journal: Path) -> Path:
    """The lock of a process that was killed while it wrote."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(journal)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    lock = Path(f"{journal}{LOCK}")
    assert lock.is_symlink()
    return lock


@pytest.mark.parametrize("moved", [False, True])
def test_a_lock_of_a_process_that_was_killed_is_waited_for_and_removed(
    journal: Path, killed: Path, moved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the sweep's folder was moved since: the lock then leads nowhere, and Optuna would wait without end."""
    assert timeouts.JOURNAL_LOCK_S <= 30
    monkeypatch.setattr(timeouts, "JOURNAL_LOCK_S", 1.0)
    if moved:
        journal = journal.parent.rename(journal.parent.with_name("elsewhere")) / journal.name
        killed = Path(f"{journal}{LOCK}")
        assert killed.is_symlink()
        assert not killed.exists()
    began = time.monotonic()
    said = mended(journal)
    assert 0.9 < time.monotonic() - began < 5
    assert len(said) == 2
    assert "waiting 1 s at most" in said[0]
    assert said[1] == f"{killed}: left behind by a process that was killed; removed"
    began = time.monotonic()
    train(open_study(SPEC, journal))
    assert time.monotonic() - began < 5


def test_one_ctrl_c_ends_the_wait(journal: Path, killed: Path) -> None:
    asked = threading.Event()
    threading.Timer(0.5, asked.set).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        mend(journal, lambda _: None, asked.is_set)
    assert time.monotonic() - began < timeouts.JOURNAL_LOCK_S
    assert killed.is_symlink()


def test_a_lock_that_is_given_back_or_changes_hands_is_nobodys_to_remove(journal: Path, killed: Path) -> None:
    def change() -> None:  # at once: between two steps it would be nobody's
        other = killed.with_name("other")
        other.symlink_to(journal)
        other.replace(killed)

    threading.Timer(0.5, change).start()
    began = time.monotonic()
    assert len(mended(journal)) == 1
    assert time.monotonic() - began < timeouts.JOURNAL_LOCK_S
    assert killed.is_symlink()
    threading.Timer(0.5, killed.unlink).start()
    assert len(mended(journal)) == 1
