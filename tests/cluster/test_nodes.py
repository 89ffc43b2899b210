"""A machine that vanishes while a pack trains on it."""

import time

import contract
import fake_cluster as fake
import pytest
from faults import evaluations, events, results, same, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]


def test_a_machine_is_lost_while_its_pack_trains(bitlora, resumable, undisturbed, pace, tmp_path):
    cluster = fake.Cluster(bitlora.env, cpus=1)
    try:
        bitlora.env.update(cluster.env)
        machines = [cluster.add(), cluster.add()]
        folder = tmp_path / "quick"
        process = bitlora.start("sweep", resumable(packs=1), "--address", cluster.address)
        wait_for(lambda: evaluations(folder, 4)() or process.poll() is not None, "evaluations")
        trees = [fake.below([machine.pid], fake.running()) for machine in machines]
        (busy,) = [pids for pids in trees if pids & set(cluster.titled("RayTrainWorker"))]
        lost = time.time()
        fake.kill(busy)
        pace.unlink()
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
        assert contract.statuses(contract.holds(folder)) == {"completed": 4}
        same(results(folder), undisturbed)
        back = events(folder)[1][0]["time"]
        print(f"machine lost -> its trials train again: {back - lost:.1f} s")
    finally:
        cluster.close()
