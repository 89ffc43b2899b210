"""What a cluster can lose under a sweep: a machine after notice, its head; and storage that answers late.

In float64, without a scheduler and over a grid, so that what comes out is what an undisturbed sweep gives.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import contract
import fake_cluster as fake
import pytest
import s3
import yaml
from faults import EVERY, STEPS, evaluations, events, results, same, wait_for
from metadata import Metadata

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

NODE_OF = """
import sys, ray
ray.init(sys.argv[1], logging_level="ERROR")
from ray.util.placement_group import placement_group_table
groups = [info for info in placement_group_table().values() if info["name"].startswith("pack-")]
print(*{node for info in groups for node in info["bundles_to_node_id"].values()})
"""


def steps_of(trial, pack):
    return sum(event["event"] == "step" and trial in event["trials"] for event in pack)


def evaluated(pack):
    return {trial for event in pack if event["event"] == "evaluated" for trial in event["trials"]}


def index_of(what, trial, pack):
    return next(i for i, event in enumerate(pack) if event["event"] == what and trial in event["trials"])


def ask(env, program, *args):
    command = [sys.executable, "-c", program, *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout.split()


@contextlib.contextmanager
def watched(node, env):
    """A machine that asks its cloud whether it must go; gives the function that lets the cloud say so."""
    command = [sys.executable, "-m", "sweeps.drain", "--node", node]
    with Metadata("aws") as metadata:
        options = {"env": env, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        watcher = subprocess.Popen([*command, "--metadata", metadata.url], **options)
        wait_for(lambda: len(metadata.asked) > 3 or watcher.poll() is not None, "questions to the metadata service", 60)
        assert watcher.poll() is None, watcher.communicate()

        def notice():
            metadata.notice = {"action": "terminate", "time": f"{datetime.now(UTC) + timedelta(seconds=60):%FT%TZ}"}
            said, _ = watcher.communicate(timeout=60)
            assert watcher.returncode == 0, said
            assert f"AWS: spot: terminate; Ray node {node} is drained, " in said.splitlines()[-1]

        try:
            yield notice
        finally:
            watcher.kill()
            watcher.wait()


def stop_pod(env):
    """What Kubernetes runs in a worker's pod before it stops it: the very command of rayjob.yaml, on this machine."""
    _, job = yaml.safe_load_all((Path(__file__).parents[2] / "rayjob.yaml").read_text())
    (worker,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    env = env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    command = worker["lifecycle"]["preStop"]["exec"]["command"]
    began = time.monotonic()
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count(" is drained, 110 s before its end") == 1, ended.stdout
    return time.monotonic() - began


def test_machines_give_notice_and_then_the_head_is_lost(bitlora, resumable, undisturbed, pace, tmp_path):
    """At a spot machine's notice the pack saves what it has and goes elsewhere; so it does when its pod is stopped, which
    waits for it. Without a head there is a new one, and --resume."""
    folder, spec = tmp_path / "quick", resumable(packs=1)
    cluster = fake.Cluster(bitlora.env, cpus=0)
    try:
        cluster.add(gpus=1), cluster.add(gpus=1)
        wait_for(lambda: len(cluster.titled("raylet/raylet")) == 3, "the machines")
        env = bitlora.env | cluster.env
        process = bitlora.start("sweep", spec, "--address", cluster.address, env=env)
        (node,) = wait_for(lambda: ask(env, NODE_OF, cluster.address), "a pack's machine")
        with watched(node, env) as notice:
            wait_for(evaluations(folder, 4), "evaluations")
            notice()
        wait_for(lambda: len(events(folder)) == 2, "another pack")
        wait_for(lambda: {"t0000", "t0001"} <= evaluated(events(folder)[1]), "evaluations of the second pack")
        # It went on at the very step at which the first one left, which was hardly one that is evaluated.
        first, second = events(folder)
        for trial in ("t0000", "t0001"):
            before, until = steps_of(trial, first), steps_of(trial, second[: index_of("evaluated", trial, second)])
            print(f"{trial}: {before} steps before the notice, {until} after it until the next evaluation")
            assert (before + until) % EVERY == 0
        # Of what is left of this machine's nodes the hook drains all but the head.
        print(f"a worker's pod was stopped in {stop_pod(env):.1f} s")
        assert len(cluster.titled("raylet/raylet")) == 1
        fake.kill(fake.below({cluster.head}, fake.running()))
        out, err = process.communicate(timeout=200)
        assert process.returncode not in (0, 2), out + err
        pace.unlink()
    finally:
        cluster.close()
    cluster = fake.Cluster(bitlora.env, cpus=0)
    try:
        cluster.add(gpus=1)
        wait_for(lambda: len(cluster.titled("raylet/raylet")) == 2, "the machine")
        done = bitlora("sweep", spec, "--resume", "--address", cluster.address, env=bitlora.env | cluster.env)
        assert done.code == 0, done.out + done.err
    finally:
        cluster.close()
    assert contract.statuses(contract.holds(folder)) == {"completed": 4}
    same(results(folder), undisturbed)
    # Twice a pack left, then a head was lost, and not a step was done again.
    assert [sum(steps_of(trial, pack) for pack in events(folder)) for trial in ("t0000", "t0001")] == [STEPS, STEPS]


def test_storage_in_s3_that_answers_late(bitlora, resumable, undisturbed, pace, tmp_path):
    """No step waits for it; a killed driver's sweep goes on from what is there."""
    with s3.serve_s3() as server:
        place = f"s3://{server.make_bucket('sweeps')}/quick"
        env = bitlora.env | server.env
        spec = resumable(out=place)
        server.fault = s3.late(0.15)
        process = bitlora.start("sweep", spec, env=env)

        def reported():
            return sum(path.endswith("metrics.jsonl") for path in server.paths("PUT")) > 6

        wait_for(lambda: reported() or process.poll() is not None, "evaluations in the bucket")
        assert process.poll() is None, process.communicate()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        pace.unlink()
        time.sleep(1)
        done = bitlora("sweep", spec, "--resume", env=env, timeout=400)
        assert done.code == 0, done.out + done.err
        again = bitlora("report", place, env=env)
        assert again.code == 0, again.err
        standing = bitlora("status", place, env=env)
        assert "4 completed" in standing.out
        server.fault = None
        from bitlora.files.opening import open_storage

        old = {name: os.environ.get(name) for name in server.env}
        os.environ.update(server.env)
        try:
            with open_storage(place, tmp_path / "mirror") as storage:
                storage.pull("")
        finally:
            for name, value in old.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    assert contract.statuses(contract.holds(tmp_path / "mirror")) == {"completed": 4}
    same(results(tmp_path / "mirror"), undisturbed)
