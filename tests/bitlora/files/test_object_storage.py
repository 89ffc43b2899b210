"""A sweep's folder in object storage: what is put, what is fetched, and in which order."""

import pickle
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import s3

from bitlora import timeouts
from bitlora.files.opening import open_storage
from bitlora.files.storage import StorageError


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_files_and_folders_go_there_and_come_back(out, opened, write):
    here, there = opened(out), opened(out)
    write(here.folder, sweep_yaml=b"a: 1", trials__t0__record_json=b"{}", trials__t0__adapter__w_bin=b"\0" * 3_000_000)
    write(here.folder, trials__t1__record_json=b"[]", trials__t1__empty=b"")
    here.push("")
    assert there.names() == ["sweep.yaml", "trials"]
    assert there.names("trials") == ["t0", "t1"]
    assert there.names("nothing") == []
    assert there.exists("trials/t0")
    assert there.exists("sweep.yaml")
    assert not there.exists("trials/t")
    there.pull("trials/t1", "sweep.yaml", "nothing", "trials/t9/record.json")
    assert tree(there.folder) == {"sweep.yaml": b"a: 1", "trials/t1/record.json": b"[]", "trials/t1/empty": b""}
    there.pull("")
    assert tree(there.folder) == tree(here.folder)
    there.delete("trials/t0")
    there.delete("trials/t1/empty")
    there.delete("trials/t1/empty")
    assert tree(there.folder) == {"sweep.yaml": b"a: 1", "trials/t1/record.json": b"[]"}
    assert there.names("trials") == ["t1"]
    third = opened(out)
    third.pull("")
    assert tree(third.folder) == tree(there.folder)


def test_a_package_of_fsspec_does_what_pyarrow_cannot(opened, write):
    out = f"memory://{uuid.uuid4().hex}/one"
    here, there = opened(out), opened(out)
    here.check()
    write(here.folder, sweep_yaml=b"a: 1", trials__t0__record_json=b"{}")
    here.push("trials", "sweep.yaml")
    there.pull("")
    assert tree(there.folder) == tree(here.folder)
    assert there.names() == ["sweep.yaml", "trials"]
    there.sees(here.place_token())
    there.delete("trials")
    assert not here.exists("trials/t0/record.json")
    assert here.exists("sweep.yaml")


def test_files_are_put_in_the_order_given(server, out, opened, write):
    here = opened(out)
    write(here.folder, t__eval_parquet=b"1", t__adapter__a=b"2", t__adapter__b=b"3", t__metrics_jsonl=b"4")
    server.fault = lambda request: time.sleep(0.05 if "adapter" in request.path else 0)
    here.push("t/eval.parquet", "t/adapter", "t/metrics.jsonl")
    put = [path.rpartition("/t/")[2] for path in server.paths("PUT")]
    assert (put[0], set(put[1:3]), put[3:]) == ("eval.parquet", {"adapter/a", "adapter/b"}, ["metrics.jsonl"])


def test_what_is_being_written_stays_here(out, opened, write):
    here, there = opened(out), opened(out)
    write(here.folder, t__record_json=b"{}", t__adapter__w=b"1")
    for name in (".record.json.x1.part", ".adapter.x2.part/w", ".adapter.x3.old/w", "adapter/.w.x4.part"):
        write(here.folder / "t" / Path(name).parent, x=b"half")
        (here.folder / "t" / name).write_bytes(b"half")
    here.push("t")
    there.pull("")
    assert sorted(tree(there.folder)) == ["t/adapter/w", "t/adapter/x", "t/record.json", "t/x"]


def test_what_does_not_exist_cannot_be_put(out, opened):
    with pytest.raises(FileNotFoundError, match=r"t/record.json: there is no such file to put at s3://"):
        opened(out).push("t/record.json")


def test_only_the_files_wanted_are_fetched(server, out, opened, write):
    here, there = opened(out), opened(out)
    write(here.folder, trials__t0__record_json=b"{}", trials__t0__adapter__w=b"1", trials__t1__record_json=b"{}")
    here.push("trials")
    server.requests.clear()
    there.pull("trials", only=["record.json"])
    assert sorted(tree(there.folder)) == ["trials/t0/record.json", "trials/t1/record.json"]
    assert not [path for path in server.paths("GET") if "adapter" in path]


def test_a_file_pulled_is_the_old_one_or_the_new_one(server, out, opened, write):
    here, there = opened(out), opened(out)
    old, new = b"o" * 4_000_000, b"n" * 5_000_000
    write(here.folder, w=old)
    here.push("w")
    there.pull("w")
    write(here.folder, w=new)
    here.push("w")
    seen, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            seen.add(hash((there.folder / "w").read_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    there.pull("w")
    done.set()
    watcher.join()
    assert seen <= {hash(old), hash(new)}
    assert (there.folder / "w").read_bytes() == new

    server.fault = lambda request: s3.refusal(403, "AccessDenied") if request.headers.get("Range") else None
    write(here.folder, w=old)
    server.put(f"{out}/w", old)
    with pytest.raises(StorageError, match="reading w is denied"):
        there.pull("w")
    assert tree(there.folder) == {"w": new}


def test_a_file_replaced_while_it_is_fetched_comes_whole(server, out, opened):
    there = opened(out)
    server.put(f"{out}/metrics.jsonl", b"1\n")
    replaced = []

    def replace(request):  # after the client has asked for the size
        if request.headers.get("Range") and not replaced:
            replaced.append(server.put(f"{out}/metrics.jsonl", b"1\n2\n3\n"))

    server.fault = replace
    there.pull("metrics.jsonl")
    assert replaced
    assert tree(there.folder) == {"metrics.jsonl": b"1\n2\n3\n"}


def test_many_files_are_fetched_several_at_once(server, out, opened, write):
    here, there = opened(out), opened(out)
    for number in range(100):
        write(here.folder / f"trials/t{number:04}", record_json=b"%d" % number, metrics_jsonl=b"{}\n")
    here.push("trials")
    server.requests.clear()
    server.fault = s3.late(0.05)
    began = time.monotonic()
    there.pull("", only=["record.json"])
    took = time.monotonic() - began
    assert len(tree(there.folder)) == 100
    assert (there.folder / "trials/t0042/record.json").read_bytes() == b"42"
    # All folders are listed at once, and a file is two requests; one after the other, they would take 10 s.
    assert len(server.requests) < 2 * 100 + 10
    assert took < 5


def test_threads_share_a_storage(out, opened, write):
    here, there = opened(out), opened(out)
    for number in range(8):
        write(here.folder / f"t{number}", a=b"%d" % number, b=b"2")
    threads = [threading.Thread(target=here.push, args=(f"t{n}/a", f"t{n}")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there.pull("")
    assert tree(there.folder) == tree(here.folder)


# ---- other machines


def test_another_machine_sees_the_folder_or_says_that_it_does_not(out, opened, monkeypatch):
    monkeypatch.setattr(timeouts, "STORAGE_VISIBLE_S", 0.5)
    here, there = opened(out), opened(out)
    cannot = f"^{socket.gethostname()}: cannot see {out}: "
    with pytest.raises(StorageError, match=cannot + "the driver's token file is not there; the folder"):
        there.sees("0" * 32)
    token = here.place_token()
    there.sees(token)
    with pytest.raises(StorageError, match=cannot + "its token is another sweep's; .*every machine shares"):
        there.sees("0" * 32)


def test_it_travels_without_scratch_folder_and_credentials(out, opened, monkeypatch, write):
    here = opened(out)
    write(here.folder, a=b"1")
    here.push("a")
    sent = pickle.dumps(here)
    assert b"hush-hush" not in sent
    monkeypatch.delenv("AWS_ENDPOINT_URL")  # the other machine has credentials, and not the address
    script = """
import pickle, sys
storage = pickle.load(sys.stdin.buffer)
storage.pull("")
print(storage.folder, (storage.folder / "a").read_text())
storage.close()
assert not storage.folder.exists()
assert "torch" not in sys.modules and "ray" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", script], input=sent, capture_output=True, check=True, timeout=60)
    folder, content = ended.stdout.decode().split()
    assert content == "1"
    assert folder != str(here.folder)


# ---- in the background


def test_a_file_that_changes_often_is_put_seldom_and_its_last_content_stays(server, out, opened, write):
    here = opened(out)
    write(here.folder, sweep_yaml=b"a: 1")
    server.fault = s3.late(0.2)
    began = time.monotonic()
    for number in range(50):
        write(here.folder, study_journal=b"%d" % number)
        here.push_soon("study.journal")
        here.push_soon("sweep.yaml")
    assert time.monotonic() - began < 0.2
    here.flush()
    assert server.get(f"{out}/study.journal") == b"49"
    assert server.get(f"{out}/sweep.yaml") == b"a: 1"
    assert len(server.paths("PUT")) <= 4


def test_what_could_not_be_put_in_the_background_is_said_once(server, out, opened, write):
    here = opened(out)
    write(here.folder, a=b"1", b=b"2")
    server.fault = lambda request: s3.refusal(403, "AccessDenied")
    here.push_soon("a")
    with pytest.raises(StorageError, match="writing a is denied"):
        here.flush()
    here.flush()
    here.push_soon("a")
    while here._soon._running:
        time.sleep(0.01)
    server.fault = None
    here.push_soon("a")
    here.flush()  # its successor went through
    assert server.get(f"{out}/a") == b"1"


def test_closing_puts_what_waits_and_removes_what_it_made(server, out, tmp_path, monkeypatch, write):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_storage(out) as made:
        write(made.folder, a=b"1")
        made.push_soon("a")
    assert server.get(f"{out}/a") == b"1"
    assert not made.folder.exists()
    with open_storage(out, tmp_path / "mine") as given:
        write(given.folder, a=b"1")
    assert tree(tmp_path / "mine") == {"a": b"1"}

    server.fault = lambda request: s3.refusal(403, "AccessDenied")
    lost = open_storage(out)
    write(lost.folder, a=b"2")
    lost.push_soon("a")
    with pytest.raises(StorageError, match=f"denied.*; what was written is kept in {tmp_path}/bitlora-kept-"):
        lost.close()
    assert tree(lost.folder) == {"a": b"2"}


def test_when_something_was_last_written_is_the_stores_to_say(server, out, opened, tmp_path, write):
    """And not that of copies that have just been fetched."""
    here = opened(out)
    assert here.written("trials", "sweep.yaml") is None
    began = time.time()
    server.put(f"{out}/sweep.yaml", b"a: 1")
    server.put(f"{out}/trials/t0/record.json", b"{}")
    time.sleep(3)
    server.put(f"{out}/other", b"")
    here.pull("")
    assert here.written("trials", "sweep.yaml") == pytest.approx(began, abs=1.5)
    assert here.written("sweep.yaml") == pytest.approx(began, abs=1.5)
    assert here.written("other") == pytest.approx(began + 3, abs=1.5)
    disk = open_storage(str(tmp_path / "disk"))
    assert disk.written("trials") is None
    write(disk.folder, trials__t0__record_json=b"{}")
    assert disk.written("trials", "none") == (disk.folder / "trials/t0/record.json").stat().st_mtime
