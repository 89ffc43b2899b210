"""cluster-local.yaml for real, by the README's commands: a cluster over ssh, and each way to send it a sweep.

One cluster for all of them, so the tests go in their order: `ray up` first, `ray down` last.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import contract
import pytest
import yaml

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(300)]


QUICK = {
    "train": {"steps": 2, "eval_every": 2},
    "search": {"trials": 1, "startup": 1},
    "scheduler": {"grace": 2},
}


@pytest.fixture
def quick(write_spec):
    return lambda name="quick", **sections: write_spec(name, **{**QUICK, **sections})


@pytest.fixture
def broken(tiny_base, tmp_path):
    """A base whose weights are cut."""
    folder = tmp_path / "broken"
    shutil.copytree(tiny_base, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


def finished(folder):
    """A sweep of one completed trial that ends in a report."""
    assert contract.statuses(contract.holds(folder)) == {"completed": 1}
    assert (folder / "exit_code").read_text() == "0\n"
    return True


def test_ray_up(machine):
    ended = machine.run("ray", "up", "--yes", machine.config)
    assert ended.returncode == 0, ended.stdout
    titles = [" ".join(process.cmdline()) for process in machine.processes()]
    assert [title for title in titles if "raylet/raylet" in title], ended.stdout
    # The token that ray up brought is asked for.
    code = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
    asked = machine.run(sys.executable, "-c", code, f"{machine.jobs}/api/version")
    assert "401" in asked.stdout
    # Training gets all cores, although ray up's shells say OMP_NUM_THREADS=1.
    (raylet,) = [p for p in machine.processes() if "raylet/raylet" in " ".join(p.cmdline())]
    assert "OMP_NUM_THREADS" not in raylet.environ()
    assert raylet.environ()["RAY_enable_autoscaler_v2"] == "1"


def submit(machine, spec, *args):
    """`ray submit`: its exit code, and the lines that came from over there; Ray adds some of its own to a failure."""
    ended = machine.run("ray", "submit", machine.config, "sweeps/submit.py", "--", spec, *args)
    ours = ended.stdout.partition("Error: Command failed:")[0]
    return ended.returncode, [line for line in ours.splitlines() if not line.startswith("Shared connection")]


def test_ray_submit(machine, quick, tmp_path):
    code, shown = submit(machine, quick(), "--set", "search.seed=1")
    assert code == 0, "\n".join(shown)
    assert shown[-1] == "exit code: 0"
    assert finished(tmp_path / "quick")
    begun = next(number for number, line in enumerate(shown) if line.startswith("reading base and data"))
    ours = shown[begun:]
    assert not [line for line in ours if "\x1b" in line]
    assert [line for line in ours if re.match(r"\[ +\d+ s\] t0000  step 2/2", line)], ours


def test_ray_submit_of_a_bad_spec(machine, quick):
    code, shown = submit(machine, quick(train={"stepz": 3}))
    assert code == 1
    assert shown[-1] == "exit code: 2"
    assert "train.stepz: unknown key; did you mean steps?" in shown[-2]


def test_ray_submit_of_a_sweep_whose_trials_fail(machine, quick, tmp_path, broken):
    code, shown = submit(machine, quick(base={"model": str(broken)}))
    assert code == 1
    assert shown[-1] == "exit code: 1"
    assert (tmp_path / "quick" / "exit_code").read_text() == "1\n"
    assert contract.statuses(contract.holds(tmp_path / "quick")) == {"failed": 1}


def ray_job(machine, folder, *command):
    return machine.run("ray", "job", "submit", "--address", machine.jobs, "--working-dir", folder, "--", *command)


def test_ray_job_submit(machine, quick, tmp_path):
    # A folder that travels: the spec, and the data it names by a path inside.
    spec, job = quick(), tmp_path / "job"
    job.mkdir()
    content = json.loads(spec.read_text())
    shutil.copyfile(content["data"]["source"], job / "sums.jsonl")
    (job / "quick.yaml").write_text(json.dumps({**content, "data": {**content["data"], "source": "sums.jsonl"}}))
    ended = ray_job(machine, job, "python", "-m", "sweeps", "sweep", "quick.yaml")
    assert ended.returncode == 0, ended.stdout
    assert "succeeded" in ended.stdout
    assert finished(tmp_path / "quick")


def test_ray_job_submit_of_what_would_go_with_the_job(machine, quick, tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    shutil.copyfile(quick(), job / "quick.yaml")
    ended = ray_job(machine, job, "python", "-m", "sweeps", "sweep", "quick.yaml", "--out", "runs/quick")
    assert ended.returncode == 1
    assert "out: runs/quick would lie in the job's own folder" in ended.stdout
    assert "exit code 2" in ended.stdout


def address(machine, *args, **options):
    """`bitlora sweep --address http://…`, begun."""
    command = [sys.executable, "-m", "sweeps", "sweep", *map(str, args), "--address", machine.jobs]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, env=machine.env, **pipes, **options)


def test_sweep_with_the_address_of_a_job_server(machine, quick, tmp_path, arithmetic, bitlora):
    # The data is a file of this side: it is named by a path that means nothing over there.
    spec = quick(data={"source": arithmetic.name})
    process = address(machine, spec, cwd=arithmetic.parent)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    assert finished(tmp_path / "quick")
    assert f"report: {tmp_path}/quick/report/report.md" in out
    # The job's folder is gone; the sweep's has the name that was given, and what was read under it.
    begun = yaml.safe_load((tmp_path / "quick" / "sweep.yaml").read_text())
    assert begun["data"]["source"] == arithmetic.name
    assert (tmp_path / "quick" / "data" / f"0-{arithmetic.name}").read_text() == arithmetic.read_text()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    trial = tmp_path / "quick" / "trials" / "t0000"
    exported = bitlora("export", trial, "--to", "packed", "--out", tmp_path / "packed", cwd=elsewhere)
    assert exported.code == 0, exported.out + exported.err
    assert "checked: eval loss" in exported.out
    (tmp_path / "quick" / "exit_code").unlink()  # as if the driver had been killed at the very end
    resumed = bitlora("sweep", spec, "--resume", cwd=elsewhere)
    assert resumed.code == 0, resumed.out + resumed.err
    assert finished(tmp_path / "quick")
    # The true code, of a job that finds out for itself: the folder is full now.
    process = address(machine, spec, cwd=arithmetic.parent)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, out + err
    assert f"{tmp_path}/quick: already holds a sweep" in out


def test_sweep_with_an_address_and_the_wrong_token(machine, quick, tmp_path):
    machine.env["RAY_AUTH_TOKEN"] = "f" * 64
    try:
        _, err = (process := address(machine, quick())).communicate(timeout=60)
    finally:
        del machine.env["RAY_AUTH_TOKEN"]
    assert process.returncode == 2
    assert len(err.splitlines()) == 1, err
    assert "RAY_AUTH_MODE=token" in err
    assert not (tmp_path / "quick").exists()


def test_ctrl_c_stops_the_job_and_waits_for_its_end(machine, quick, tmp_path):
    process = address(machine, quick(train={"steps": 3000, "eval_every": 500}))
    folder = tmp_path / "quick"
    deadline = time.monotonic() + 120
    while not list(folder.glob("trials/*/config.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no trial began"
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert (folder / "exit_code").read_text() == "130\n"
    assert contract.statuses(contract.holds(folder)) == {"interrupted": 1}


def test_ray_down(machine):
    ended = machine.run("ray", "down", "--yes", machine.config)
    assert ended.returncode == 0, ended.stdout
    assert "No nodes remaining" in ended.stdout
    deadline = time.monotonic() + 20
    while left := machine.processes():
        assert time.monotonic() < deadline, [p.cmdline() for p in left]
        time.sleep(0.5)
