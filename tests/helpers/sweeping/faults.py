"""Finding a sweep's processes, waiting for a moment of it, and holding what came out against a sweep without faults."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

STEPS, EVERY = 80, 8
"""Of a trial that is disturbed in the middle: its steps, and after how many it is evaluated."""
PACE_S = 0.5
"""What a step takes while a sweep must not end: four trials in two slots take 80 s then."""


def changed_by(env, **variables):
    """Let `tests/helpers/culprits/sitecustomize.py` change the product in every process of a command with `env`."""
    culprits = str(Path(__file__).parents[1] / "culprits")
    others = [part for part in env.get("PYTHONPATH", "").split(os.pathsep) if part not in ("", culprits)]
    env |= {**variables, "PYTHONPATH": os.pathsep.join([culprits, *others])}


def processes(temp):
    """Ray's processes of the sweep whose Ray has the folder `temp`: pid -> title."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        try:
            line = " ".join(process.info["cmdline"] or [])
            if temp in line and ("raylet" in line or "gcs_server" in line):
                found[process.pid] = "raylet" if "raylet/raylet" in line else "gcs"
                for child in process.children(recursive=True):
                    found[child.pid] = " ".join(child.cmdline())
        except psutil.Error:
            continue
    return found


def wait_for(condition, what, timeout=120):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {timeout} s for {what}")


def pid_of(temp, title, timeout=90):
    return wait_for(lambda: [p for p, t in processes(temp).items() if title in t], title, timeout)[0]


@contextlib.contextmanager
def ray_head(env):
    """A Ray head that outlives the sweeps on it, in the temp dir that `env` names; gives its address. Its workers have
    `env`, and so have all processes of the sweeps on it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env["RAY_AUTH_MODE"] = "disabled"
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={env['RAY_TMPDIR']}", "--include-dashboard=false"]
    command += ["--num-cpus=2", "--disable-usage-stats"]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: "raylet" in processes(env["RAY_TMPDIR"]).values(), "the head")
        yield f"127.0.0.1:{port}"
    finally:
        for pid in [*processes(env["RAY_TMPDIR"]), process.pid]:
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


def nothing_is_left(env, head):
    """Of sweeps on a head that have ended no process, CPU or placement group is taken, 15 s later at most."""

    def nothing_taken():
        command = [sys.executable, "-c", LEFT, head]
        left = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        return json.loads(left.stdout) == {"cpus": 2.0, "groups": 0}

    wait_for(nothing_taken, "CPUs and placement groups to be free", 15)
    titles = [t for t in processes(env["RAY_TMPDIR"]).values() if "ray::" in t and "IDLE" not in t]
    assert not [t for t in titles if any(word in t for word in ("Pack", "Pool", "Trial", "Train"))], titles


def evaluations(folder, at_least=1):
    """Have so many evaluations been written?"""
    return lambda: sum(len(p.read_text().splitlines()) for p in folder.glob("trials/*/metrics.jsonl")) >= at_least


def events(folder):
    """What the packs that had trials noted, pack by pack, in the order in which they began."""
    packs = [file.read_text().splitlines() for file in (folder / "logs").glob("pack-*.jsonl")]
    return sorted(
        ([json.loads(line) for line in lines] for lines in packs if any('"attach"' in line for line in lines)),
        key=lambda pack: pack[0]["time"],
    )


def results(folder):
    """What a sweep came to, without what two runs may differ in: trial -> (record, metrics)."""
    found = {}
    for trial in sorted((folder / "trials").iterdir()):
        record = json.loads((trial / "record.json").read_text())
        lines = [json.loads(line) for line in (trial / "metrics.jsonl").read_text().splitlines()]
        for one in (record, *lines):
            one.pop("seconds")
        record.pop("versions")
        found[trial.name] = (record, lines)
    return found


def same(found, reference):
    """Equal but for the last digits of losses: two workers add in another order than one."""
    assert found.keys() == reference.keys()
    for trial, (record, lines) in found.items():
        expected, curve = reference[trial]
        assert {**record, "eval_loss": 0} == {**expected, "eval_loss": 0}
        assert record["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-9)
        assert len(lines) == len(curve)
        for line, other in zip(lines, curve, strict=True):
            assert line == pytest.approx(other, rel=1e-9)
