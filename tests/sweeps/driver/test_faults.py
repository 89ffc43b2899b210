"""Faults that must not hang a sweep: each is done for real, and ends in a finished sweep or the right code and reason."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import contract
import psutil
import pytest
from faults import evaluations as training
from faults import events, pid_of, processes, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

LONG = {"train": {"steps": 600, "eval_every": 20, "batch_size": 4}, "search": {"trials": 3}}
"""Long enough to be in the middle of it: some 10 s of training."""


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
def running(bitlora, write_spec, tmp_path):
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
    assert ended.seconds < 100
    found = contract.holds(tmp_path / "quick")
    assert set(contract.statuses(found)) == {"failed"}
    assert all("the base could not be loaded" in record["reason"] for record in found.values())
    assert "no pack could be started: the base could not be loaded" in ended.out
    assert (tmp_path / "quick" / "exit_code").read_text() == "1\n"


@pytest.fixture
def head(bitlora):
    """A Ray head of the test's own that outlives the sweep: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bitlora.env["RAY_AUTH_MODE"] = "disabled"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={bitlora.env['RAY_TMPDIR']}", "--include-dashboard=false"]
    command += ["--num-cpus=2", "--disable-usage-stats"]
    process = subprocess.Popen(command, env=bitlora.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: "raylet" in processes(bitlora.env["RAY_TMPDIR"]).values(), "the head")
    yield f"127.0.0.1:{port}"
    for pid in [*processes(bitlora.env["RAY_TMPDIR"]), process.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(timeout=30)


LEFT = """
import json, sys, ray
from ray.util.placement_group import placement_group_table
ray.init(address=sys.argv[1], log_to_driver=False)
groups = [g for g in placement_group_table().values() if g["state"] != "REMOVED"]
print(json.dumps({"cpus": ray.available_resources().get("CPU"), "groups": len(groups)}))
"""


def test_a_worker_is_killed_at_the_start_and_a_host_while_training(bitlora, head, write_spec, tmp_path):
    """On a Ray that outlives the sweep, so that what stays taken can be seen."""
    temp, folder = bitlora.env["RAY_TMPDIR"], tmp_path / "quick"
    process = bitlora.start("sweep", write_spec(**LONG), "--address", head)
    os.kill(pid_of(temp, "ray::RayTrainWorker"), signal.SIGKILL)
    wait_for(training(folder), "an evaluation")
    began = time.monotonic()
    os.kill(pid_of(temp, "ray::PackHost"), signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert time.monotonic() - began < 105
    assert process.returncode == 0, out + err
    assert contract.statuses(contract.holds(folder)) == {"completed": 3}
    # The first pack never trained; the second was lost; the third got its CPUs, so the second's group was removed.
    assert len(events(folder)) == 2

    def nothing_left():
        command = [sys.executable, "-c", LEFT, head]
        left = subprocess.run(command, env=bitlora.env, capture_output=True, text=True, check=True)
        return json.loads(left.stdout) == {"cpus": 2.0, "groups": 0}

    wait_for(nothing_left, "CPUs and placement groups to be free", 15)
    titles = [t for t in processes(temp).values() if "ray::" in t and "IDLE" not in t]
    assert not [t for t in titles if any(word in t for word in ("Pack", "Pool", "Trial", "Train"))], titles


def test_a_worker_is_killed_while_training(running):
    process, temp, folder = running(train={**LONG["train"], "eval_every": 200})
    wait_for(training(folder), "an evaluation")
    seen = processes(temp)
    # A trial has no process: beside the pool there are those of the pack, and what Ray keeps ready.
    assert not [title for title in seen.values() if "Trainable" in title or "Elsewhere" in title]
    os.kill(pid_of(temp, "ray::RayTrainWorker"), signal.SIGKILL)
    out, err = finish(process, temp, seen, time.monotonic())
    assert process.returncode == 0, out + err
    assert contract.statuses(contract.holds(folder)) == {"completed": 3}
    assert len(events(folder)) == 2


@pytest.mark.parametrize(
    ("when", "send"),
    [
        ("start", lambda process: process.send_signal(signal.SIGINT)),
        ("training", lambda process: process.send_signal(signal.SIGTERM)),
        # As `timeout`, Slurm and systemd send it: Ray's processes are in the same group.
        pytest.param("training", lambda process: os.killpg(process.pid, signal.SIGTERM), marks=pytest.mark.slow),
        pytest.param("training", lambda process: os.killpg(process.pid, signal.SIGHUP), marks=pytest.mark.slow),
    ],
    ids=["ctrl-c", "kill", "kill of the group", "terminal closed"],
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
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, out + err
    assert "Traceback" not in err
    assert not (tmp_path / "quick").exists()
