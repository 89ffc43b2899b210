"""Scratch copies: forgotten when they are away and not needed; those that killed processes left are removed."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import s3

from bitlora.files.opening import open_storage
from bitlora.files.scratch import KEPT, PREFIX, Scratch
from bitlora.files.storage import StorageError

ADAPTER, CHECKPOINT = "trials/t0/adapter", "trials/t0/checkpoint.safetensors"


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_away_is_forgotten_and_can_be_fetched_again(server, out, opened, write):
    here = opened(out)
    write(here.folder, trials__t0__adapter__w=b"1", trials__t0__adapter__c=b"2", trials__t0__metrics_jsonl=b"3")
    write(here.folder, trials__t0__checkpoint_safetensors=b"4")
    here.push(ADAPTER, CHECKPOINT, "trials/t0/metrics.jsonl")
    here.forget(ADAPTER)
    here.forget(CHECKPOINT)
    here.forget("trials/t1")
    assert names(here.folder) == ["trials", "trials/t0", "trials/t0/metrics.jsonl"]
    assert server.get(f"{out}/{CHECKPOINT}") == b"4"
    here.pull(ADAPTER)
    assert (here.folder / ADAPTER / "w").read_bytes() == b"1"
    here.forget(ADAPTER)
    assert not (here.folder / ADAPTER).exists()


def test_what_is_not_there_as_it_is_here_stays(server, out, opened, write):
    here = opened(out)
    write(here.folder, trials__t0__adapter__w=b"1", trials__t0__adapter__c=b"2")
    here.forget(ADAPTER)  # not put at all
    assert (here.folder / ADAPTER / "w").read_bytes() == b"1"
    here.push(ADAPTER)
    write(here.folder, trials__t0__adapter__w=b"new")
    write(here.folder, trials__t0__adapter__d=b"3")
    server.fault = lambda request: s3.refusal(403, "AccessDenied")
    with pytest.raises(StorageError):
        here.push(f"{ADAPTER}/d")
    server.fault = None
    here.forget(ADAPTER)
    assert sorted(path.name for path in (here.folder / ADAPTER).iterdir()) == ["d", "w"]
    here.push(ADAPTER)
    here.forget("trials")
    assert names(here.folder) == []
    assert server.get(f"{out}/{ADAPTER}/w") == b"new"


def test_a_folder_on_a_disk_forgets_nothing(tmp_path, write):
    here = open_storage(str(tmp_path))
    write(tmp_path, trials__t0__adapter__w=b"1")
    here.push("trials")
    here.forget("trials")
    assert (tmp_path / ADAPTER / "w").read_bytes() == b"1"


# ---- folders of processes that were killed


@pytest.fixture
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def aged(folder, hours):
    then = time.time() - hours * 3600
    os.utime(folder, (then, then))
    return folder


def killed(temp):
    """The scratch folder of a process that was killed."""
    program = "from bitlora.files.scratch import Scratch; print(Scratch().folder, flush=True); os.kill(os.getpid(), 9)"
    command, environment = [sys.executable, "-c", f"import os; {program}"], {**os.environ, "TMPDIR": str(temp)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    folder = Path(ended.stdout.strip())
    assert folder.parent == temp
    (folder / "trials").mkdir()
    (folder / "trials" / "w").write_bytes(b"1")
    return folder


def test_what_killed_processes_left_is_removed_after_a_day(temp):
    old, young = aged(killed(temp), 25), aged(killed(temp), 23)
    mine = Scratch()
    aged(mine.folder, 100)
    (temp / f"{PREFIX}notes.txt").write_text("a file")
    other = temp / "bitlora-sweeps"
    other.mkdir()
    aged(other, 100)
    link = temp / f"{PREFIX}link"
    link.symlink_to(other)
    os.utime(link, (0, 0), follow_symlinks=False)
    another = Scratch()
    assert not old.exists()
    left = {young, mine.folder, other, another.folder, link, temp / f"{PREFIX}notes.txt"}
    assert set(temp.iterdir()) == left
    another.remove()
    mine.remove()
    assert set(temp.iterdir()) == left - {mine.folder, another.folder}


def test_what_could_not_be_put_is_kept_for_good(server, out, temp, write):
    server.fault = lambda request: s3.refusal(403, "AccessDenied")
    lost = open_storage(out)
    write(lost.folder, a=b"2")
    lost.push_soon("a")
    with pytest.raises(StorageError, match=r"what was written is kept in .*bitlora-kept-"):
        lost.close()
    aged(lost.folder, 1000)
    Scratch().remove()
    assert [path.name.startswith(KEPT) for path in temp.iterdir()] == [True]
    assert (lost.folder / "a").read_bytes() == b"2"
