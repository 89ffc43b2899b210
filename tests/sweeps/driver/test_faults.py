"""Faults that must not hang a sweep: each is done for real, and ends in a finished sweep or the right code and reason."""

import os
import shutil
import signal
import time

import contract
import psutil
import pytest
from faults import EVERY, STEPS, events, pid_of, processes, wait_for
from faults import evaluations as training

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LONG = {"train": {"steps": STEPS, "eval_every": EVERY, "batch_size": 4}, "search": {"trials": 3}}
"""In the middle of it while there is `pace`."""


def finish(process, temp, seen, since, limit=60):
    """Wait for the end; it comes within `limit` seconds of the fault, and 15 s later no process is left."""
    out, err = process.communicate(timeout=300)
    took = time.monotonic() - since
    assert took < limit + 45, f"{took:.0f} s\n{out}\n{err}"
    alive = wait_for(lambda: [0] if not [p for p in seen if psutil.pid_exists(p)] else [], "processes to end", 15)
    assert alive
    assert not processes(temp)
    return out, err


@pytest.fixture
def running(bitlora, write_spec, pace, tmp_path):
    """Starts a long sweep; gives its process, its Ray's temp dir and its folder."""
    started = []

    def start(**sections):
        process = bitlora.start("sweep", write_spec(**{**LONG, **sections}), start_new_session=True)
        started.append(process)
        return process, bitlora.env["RAY_TMPDIR"], tmp_path / "quick"

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_the_base_fails_to_load(bitlora, write_spec, tmp_path, tiny_base):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    ended = bitlora("sweep", write_spec(base={"model": str(broken)}))
    assert ended.code == 1, ended.err
    assert ended.seconds < 240  # beside another test, on a busy machine
    found = contract.holds(tmp_path / "quick")
    assert set(contract.statuses(found)) == {"failed"}
    assert all("the base could not be loaded" in record["reason"] for record in found.values())
    assert "no pack could be started: the base could not be loaded" in ended.out
    assert (tmp_path / "quick" / "exit_code").read_text() == "1\n"


def test_a_worker_is_killed_while_training(running, pace):
    process, temp, folder = running()
    wait_for(training(folder), "an evaluation")
    seen = processes(temp)
    # A trial has no process: beside the pool there are those of the pack, and what Ray keeps ready.
    assert not [title for title in seen.values() if "Trainable" in title or "Elsewhere" in title]
    os.kill(pid_of(temp, "ray::RayTrainWorker"), signal.SIGKILL)
    pace.unlink()
    out, err = finish(process, temp, seen, time.monotonic())
    assert process.returncode == 0, out + err
    assert contract.statuses(contract.holds(folder)) == {"completed": 3}
    assert len(events(folder)) == 2


@pytest.mark.parametrize(
    ("when", "send"),
    [
        ("start", lambda process: process.send_signal(signal.SIGINT)),
        # As `timeout`, Slurm and systemd send it: the driver's, and Ray's processes are in the same group.
        ("training", lambda process: os.killpg(process.pid, signal.SIGTERM)),
        pytest.param("training", lambda process: os.killpg(process.pid, signal.SIGHUP), marks=pytest.mark.slow),
    ],
    ids=["ctrl-c", "kill of the group", "terminal closed"],
)
def test_a_signal_ends_a_sweep_in_order(running, when, send):
    process, temp, folder = running(search={"trials": 5})
    if when == "training":
        wait_for(training(folder), "an evaluation")
    else:
        pid_of(temp, "ray::PackHost")
    seen = processes(temp)
    began = time.monotonic()
    send(process)
    out, err = finish(process, temp, seen, began, limit=30)
    assert process.returncode == 130, out + err
    assert (folder / "report" / "report.md").exists()
    assert (folder / "exit_code").read_text() == "130\n"
    found = contract.holds(folder)
    assert set(contract.statuses(found)) == {"interrupted"}
    if when == "training":
        assert [record for record in found.values() if record["steps"]]


def test_ctrl_c_before_anything_began(bitlora, write_spec, tmp_path):
    process = bitlora.start("sweep", write_spec())
    assert "reading base and data" in process.stderr.readline()  # before that nobody catches it but Python
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert not (tmp_path / "quick").exists()
