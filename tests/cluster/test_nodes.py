"""A machine that vanishes while a pack trains on it."""

import json
import time

import contract
import fake_cluster as fake
import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]


def events(folder, what):
    """(time, trials) of what the packs noted."""
    lines = [line for file in folder.glob("logs/pack-*.jsonl") for line in file.read_text().splitlines()]
    return sorted((e["time"], e["trials"]) for e in map(json.loads, lines) if e["event"] == what)


def test_a_machine_is_lost_while_its_pack_trains(bitlora, write_spec, tmp_path):
    cluster = fake.Cluster(bitlora.env, cpus=1)
    try:
        bitlora.env.update(cluster.env)
        machines = [cluster.add(), cluster.add()]
        folder = tmp_path / "quick"
        spec = write_spec(train={"steps": 400, "eval_every": 20, "batch_size": 4}, search={"trials": 3})
        process = bitlora.start("sweep", spec, "--address", cluster.address)
        fake.wait_for(lambda: [p for p in folder.glob("trials/*/metrics.jsonl") if p.read_text()], "an evaluation")
        trees = [fake.below([machine.pid], fake.running()) for machine in machines]
        (busy,) = [pids for pids in trees if pids & set(cluster.titled("RayTrainWorker"))]
        lost = time.time()
        fake.kill(busy)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        assert contract.statuses(contract.holds(folder)) == {"completed": 3}
        back = next(at for at, _ in events(folder, "attach") if at > lost)
        print(f"machine lost -> its trials train again: {back - lost:.1f} s")
    finally:
        cluster.close()
