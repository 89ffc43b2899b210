"""A sweep that is lost under way goes on, or `--resume` finishes it, with the numbers it would have had."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import contract
import pytest
import s3
from faults import STEPS, evaluations, events, pid_of, processes, results, same, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]


def run_to(process, moment, what):
    """Wait for a moment of a sweep that must not end before."""
    wait_for(lambda: moment() or process.poll() is not None, what, 300)
    assert process.poll() is None, process.communicate()


def test_a_worker_is_killed(bitlora, resumable, undisturbed, pace, tmp_path):
    folder, temp = tmp_path / "quick", bitlora.env["RAY_TMPDIR"]
    process = bitlora.start("sweep", resumable(workers_per_pack=2))
    run_to(process, evaluations(folder, 4), "evaluations")
    os.kill(pid_of(temp, "ray::RayTrainWorker"), signal.SIGKILL)
    pace.unlink()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    assert contract.statuses(contract.holds(folder)) == {"completed": 4}
    same(results(folder), undisturbed)
    first, second = events(folder)
    scored = [["the base without an adapter" in event["event"] for event in log].count(True) for log in (first, second)]
    assert scored == [1, 0]
    assert "(as measured before)" in second[0]["event"]
    begun = {trial for event in second if event["event"] == "attach" for trial in event["trials"]}
    assert sum(len(event["trials"]) for event in second if event["event"] == "step") < STEPS * len(begun)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own with room for little."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system of its own needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_the_disk_is_full(bitlora, resumable, undisturbed, pace, small_disk):
    folder = small_disk / "quick"
    spec = resumable(out=folder)
    process = bitlora.start("sweep", spec)
    run_to(process, evaluations(folder, 4), "evaluations")
    filler = small_disk / "filler"
    with contextlib.suppress(OSError):  # full at last
        filler.write_bytes(bytes(16 * 2**20))
    pace.unlink()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, out + err
    assert "No space left" in out + err
    assert "Traceback" not in err
    filler.unlink()
    done = bitlora("sweep", spec, "--resume")
    assert done.code == 0, done.out + done.err
    assert contract.statuses(contract.holds(folder)) == {"completed": 4}
    same(results(folder), undisturbed)


def test_what_is_not_the_sweep_that_was_begun_is_refused(bitlora, resumable, undisturbed_folder, tmp_path):
    """A line for each thing that differs; nothing is started or written."""
    folder = tmp_path / "quick"
    nothing = bitlora("sweep", resumable(), "--resume")
    assert nothing.code == 2
    assert f"{folder}: there is no sweep to go on with" in nothing.err

    shutil.copytree(undisturbed_folder, folder)
    (folder / "exit_code").unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    data = Path(json.loads(resumable().read_text())["data"]["source"])
    changed = tmp_path / data.name
    changed.write_text(data.read_text().replace("3", "4"))
    sets = [f"--set={key}" for key in ("train.steps=500", "adapter.alpha=9", f"data.source={changed}")]
    other = bitlora("sweep", resumable(), "--resume", *sets)
    assert other.code == 2
    assert f"adapter.alpha: 9, but the sweep in {folder} was begun with 8; a sweep goes on as it was begun" in other.err
    assert "train.steps: 500, but" in other.err
    assert f'data.source: "{changed}", but' in other.err
    rows = data.read_text()
    try:
        data.write_text(rows.replace("3", "4"))
        rewritten = bitlora("sweep", resumable(), "--resume")
    finally:
        data.write_text(rows)
    assert rewritten.code == 2
    assert "data.source: the rows changed since the sweep" in rewritten.err
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    fresh = bitlora("sweep", resumable())
    assert fresh.code == 2
    assert "already holds a sweep; go on with it with --resume" in fresh.err


def test_a_torn_journal_and_the_lock_of_a_killed_driver(bitlora, resumable, undisturbed, pace, tmp_path):
    """Both are mended before Ray starts; `--resume auto` is all that is needed, and one Ctrl-C ends the wait."""
    spec, folder = resumable(), tmp_path / "quick"
    process = bitlora.start("sweep", spec, "--resume", "auto")
    run_to(process, evaluations(folder, 4), "evaluations")
    process.kill()
    process.wait()
    pace.unlink()
    wait_for(lambda: not processes(bitlora.env["RAY_TMPDIR"]), "Ray to end with its driver", 30)
    journal = folder / "study.journal"
    with journal.open("ab") as file:
        file.write(journal.read_bytes().splitlines()[-1][:40])
    moved = folder.rename(tmp_path / "moved")
    (moved / "study.journal.lock").symlink_to(journal)  # as the driver left it; it leads nowhere now
    waiting = bitlora.start("sweep", spec, "--resume", "auto", "--out", moved)
    assert any("waiting 10 s at most" in line for line in waiting.stdout)
    waiting.send_signal(signal.SIGINT)
    began = time.monotonic()
    out, err = waiting.communicate(timeout=60)
    assert (waiting.returncode, "Traceback" in err, "Ray" in out) == (130, False, False)
    assert time.monotonic() - began < 8
    done = bitlora("sweep", spec, "--resume", "auto", "--out", moved)
    assert done.code == 0, done.out + done.err
    assert "study.journal.lock: left behind by a process that was killed; removed" in done.out
    assert "study.journal: its last line was cut short, as by a kill or a full disk; removed (40 bytes)" in done.out
    assert contract.statuses(contract.holds(moved)) == {"completed": 4}
    same(results(moved), undisturbed)
    again = bitlora("sweep", spec, "--resume", "auto", "--out", moved)
    assert again.code == 0
    assert "this sweep has ended with all its trials (exit code 0)" in again.out
    assert "Ray" not in again.out + again.err


def test_two_drivers_of_one_folder_in_object_storage(bitlora, resumable, pace):
    """The second is refused; one that took the lease over makes the first one stop, which writes no exit code there. Its
    steps keep their pace to the end."""
    with s3.serve_s3() as server:
        place = f"s3://{server.make_bucket('sweeps')}/quick"
        spec, env = resumable(out=place), bitlora.env | server.env
        process = bitlora.start("sweep", spec, env=env)
        run_to(process, lambda: sum(path.endswith("metrics.jsonl") for path in server.paths("PUT")) > 6, "evaluations")
        second = bitlora("sweep", spec, "--resume", env=env)
        assert second.code == 2, second.out + second.err
        assert f"on {socket.gethostname()} (process {process.pid}, since " in second.err
        assert "has this sweep, and renewed its lease" in second.err
        assert "starting Ray" not in second.out
        held = json.loads(server.get(f"{place}/.lease.json"))
        server.put(f"{place}/.lease.json", json.dumps({**held, "token": "another", "host": "far-away"}).encode())
        out, err = process.communicate(timeout=120)
        assert process.returncode == 130, out + err
        assert "on far-away" in out
        assert "took this sweep over; this one stops, and writes nothing more there" in out
        assert "--resume" not in out
        assert not [path for path in server.paths("PUT") if path.endswith(("exit_code", "report.md"))]
        assert json.loads(server.get(f"{place}/.lease.json"))["host"] == "far-away"


def test_status_says_where_a_sweep_stands(bitlora, undisturbed_folder, tmp_path):
    folder = tmp_path / "quick"
    shutil.copytree(undisturbed_folder, folder)
    ended = bitlora("status", folder)
    assert ended.code == 0
    assert "ended with exit code 0; of 4 trials have ended: 4 completed" in ended.out
    for name in ("exit_code", "trials/t0003/record.json"):
        (folder / name).unlink()
    running = bitlora("status", folder)
    assert "last written" in running.out
    assert "3 completed" in running.out
    assert "t0003" in running.out
    assert f"{STEPS}/{STEPS}" in running.out
    nowhere = bitlora("status", tmp_path / "nowhere")
    assert nowhere.code == 2
    assert nowhere.err.count("\n") == 1
