"""A sweep's folder on a disk or a mount: nothing moves, and other machines can tell that it is the same."""

import socket
import subprocess
import sys
import threading

import pytest

from bitlora import timeouts
from bitlora.files.opening import open_storage
from bitlora.files.storage import TOKEN, StorageError


def test_a_local_folder_is_used_as_it_is_and_needs_no_pyarrow(tmp_path):
    script = """
import sys
sys.modules["pyarrow"] = sys.modules["fsspec"] = None  # importing either fails
import pickle
from pathlib import Path
from bitlora.files.opening import open_storage
where = Path(sys.argv[1])
with open_storage(str(where)) as storage:
    assert storage.folder == where
    storage.check()
    assert not where.exists()  # looked at, and left as it was
    (where / "trials" / "t0").mkdir(parents=True)
    (where / "trials" / "t0" / "record.json").write_text("{}")
    storage.push("trials/t0", "no such file")
    storage.push_soon("study.journal")
    storage.pull("", only=["record.json"])
    storage.flush()
    assert storage.names("trials") == ["t0"] and storage.names("none") == []
    assert storage.exists("trials/t0/record.json") and not storage.exists("trials/t1")
    assert pickle.loads(pickle.dumps(storage)).folder == where
    token = storage.place_token()
    open_storage(f"file://{where}").sees(token)
    storage.delete("trials")
    storage.delete("trials")
    storage.delete(".storage-token")
assert where.is_dir() and not list(where.iterdir())
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a" / "b")], check=True, timeout=60)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/sweep: cannot be written: Not a directory; give"):
        open_storage(str(tmp_path / "file" / "sweep")).check()
    with pytest.raises(StorageError, match=r"/proc/sweep: cannot be written: "):
        open_storage("/proc/sweep").check()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_a_machine_that_has_another_disk_at_that_path_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(timeouts, "STORAGE_VISIBLE_S", 0.5)
    driver, other = open_storage(str(tmp_path / "mount")), open_storage(str(tmp_path / "own disk"))
    token = driver.place_token()
    driver.sees(token)
    missing = (
        f"^{socket.gethostname()}: cannot see .*/own disk: the driver's token file is not there; the folder of the"
    )
    with pytest.raises(StorageError, match=missing):
        other.sees(token)


def test_a_folder_that_a_mount_shows_a_little_later_is_seen(tmp_path):
    there = open_storage(str(tmp_path))
    threading.Timer(1.0, lambda: (tmp_path / TOKEN).write_text("t")).start()
    there.sees("t")
