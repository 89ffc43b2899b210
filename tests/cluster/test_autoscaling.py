"""Under an autoscaler, machines come for the packs that trials wait for, and go when those have ended."""

import signal
import time

import contract
import fake_cluster as fake
import pytest
from faults import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(400)]

IDLE_S = 6.0
"""How long the autoscaler leaves a machine without work."""


@pytest.fixture
def cluster(bitlora):
    made = fake.autoscaling_cluster(bitlora.env, machines=2, idle_s=IDLE_S)
    bitlora.env.update(made.env)
    yield made
    made.close()


def test_gpu_machines_come_and_go_with_the_packs(cluster, bitlora, write_spec, tmp_path):
    folder = tmp_path / "quick"
    spec = write_spec(
        train={"steps": 160, "eval_every": 80},
        search={"trials": 8},
        resources={"packs": {"min": 0, "max": 2}, "slots": 4},
    )
    seen = cluster.watch()
    assert seen[-1]["nodes"] == 0
    ended = bitlora("sweep", spec, "--address", cluster.address)
    assert ended.code == 0, ended.out + ended.err
    assert contract.statuses(contract.holds(folder)) == {"completed": 8}
    last = max(path.stat().st_mtime for path in folder.glob("trials/*/record.json"))
    wait_for(lambda: seen[-1]["nodes"] == 0, "the machines to go", 60)
    shape = [seen[0]["nodes"]]
    for look in seen:
        if look["nodes"] != shape[-1]:
            shape.append(look["nodes"])
    assert max(shape) == 2
    assert shape[-1] == 0
    first = contract.study(folder).trials[0].datetime_start.timestamp()
    asked = next(look["time"] for look in seen if look["starting"] or look["nodes"])
    both = next(look["time"] for look in seen if look["nodes"] == 2)
    gone = next(look["time"] for look in seen if look["time"] > last and look["nodes"] == 0)
    print(
        f"first trial -> a machine is asked for: {asked - first:+.1f} s, both are there: {both - first:.1f} s; "
        f"last record -> none is left: {gone - last:.1f} s (idle timeout {IDLE_S:.0f} s); sweep: {ended.seconds:.1f} s"
    )

    # A pack that is cancelled while it waits for its machine takes its demand away.
    again = write_spec("again", search={"trials": 8}, resources={"packs": 2, "slots": 4})
    looks = len(seen)
    process = bitlora.start("sweep", again, "--address", cluster.address)
    wait_for(lambda: any(look["demand"] for look in seen[looks:]), "a pack to ask for a machine", 60)
    process.send_signal(signal.SIGINT)
    interrupted = time.time()
    out, err = process.communicate(timeout=90)
    assert process.returncode == 130, out + err
    wait_for(lambda: not (seen[-1]["demand"] or seen[-1]["starting"]), "the demand to go", 30)
    no_demand = next(look["time"] for look in seen if look["time"] > interrupted and not look["demand"])
    wait_for(lambda: seen[-1]["nodes"] == 0, "the machines to go", 60)
    print(f"cancelled -> no demand: {no_demand - interrupted:.1f} s; none is left: {time.time() - interrupted:.1f} s")
