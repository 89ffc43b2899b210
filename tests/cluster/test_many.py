"""Many trials on many machines, with an engine that costs nothing: what is left is what a trial costs by itself."""

import json
import subprocess
import sys

import fake_cluster as fake
import pytest
import trivial_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

MACHINES, TRIALS = 8, 200
FLAT_MB = 25
"""What a process may grow by over the second half of the trials."""


@pytest.fixture
def cluster(bitlora):
    made = fake.Cluster(bitlora.env)
    try:
        made.add_small(MACHINES)
        yield made
    finally:
        made.close()


def test_no_trial_is_lost_and_memory_stays_flat(cluster, write_spec, tmp_path):
    spec = write_spec(
        search={"trials": TRIALS, "space": {"rank": {"low": 1, "high": 500}}},
        resources={"packs": MACHINES, "slots": 1},
    )
    command = [sys.executable, trivial_sweep.__file__, str(spec), cluster.address, cluster.temp]
    ended = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["code"] == 0
    records = [json.loads(path.read_text()) for path in (tmp_path / "quick").glob("trials/*/record.json")]
    assert len(records) == TRIALS
    assert {record["status"] for record in records} == {"completed"}
    assert {record["steps"] for record in records} == {8}
    running = [sample for sample in found["samples"] if 0 < sample[1] < TRIALS and sample[3]]
    half = [sample for sample in running if sample[1] >= TRIALS / 2]
    assert len(half) >= 4, running
    grown = [max(sample[column] for sample in half) - half[0][column] for column in (2, 3)]
    overhead = (running[-1][0] - running[0][0]) / (running[-1][1] - running[0][1])
    print(
        f"{TRIALS} trials: {overhead:.2f} s each; driver {running[-1][2]:.0f} MB, pool {running[-1][3]:.0f} MB, "
        f"in the second half {grown[0]:+.1f} and {grown[1]:+.1f} MB"
    )
    assert max(grown) < FLAT_MB
