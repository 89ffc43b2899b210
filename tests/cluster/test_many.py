"""Many trials in many packs, with an engine that costs nothing: what is left is what a trial costs by itself.

The numbers of docs/how-it-works.md are of the same test, larger:
`BITLORA_MANY=2000,40,8 python -m pytest -s tests/cluster/test_many.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_cluster as fake
import pytest
import trivial_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1500)]

TRIALS, PACKS, SLOTS = map(int, os.environ.get("BITLORA_MANY", "400,12,8").split(","))
PER_MACHINE = 4
"""Packs."""
PROCESSES = 0.1
"""That a trial may cost, those of the packs and the pool included."""
FLAT_MB = 25
"""What a process may grow by over the second half of the trials."""


@pytest.fixture
def cluster(bitlora):
    made = fake.Cluster(bitlora.env)
    try:
        made.add_small(-(-PACKS // PER_MACHINE), gpus=PER_MACHINE)
        yield made
    finally:
        made.close()


def processes(cluster):
    """How many worker processes there ever were on the cluster: each has its log."""
    return len(list(Path(cluster.temp).glob("session_2*/logs/python-core-worker-*.log")))


def test_no_trial_is_lost_and_none_has_a_process_and_memory_stays_flat(cluster, write_spec, tmp_path):
    spec = write_spec(
        search={"trials": TRIALS, "space": {"rank": {"low": 1, "high": 500}, "dropout": {"low": 0.0, "high": 0.5}}},
        resources={"packs": {"min": PACKS, "max": PACKS}, "slots": SLOTS},
    )
    command = [sys.executable, trivial_sweep.__file__, str(spec), cluster.address, cluster.temp]
    before = processes(cluster)
    ended = subprocess.run(command, env=cluster.env, capture_output=True, text=True, timeout=1400)
    started = processes(cluster) - before
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["code"] == 0
    assert 2 * PACKS < started <= PROCESSES * TRIALS
    assert len(list((tmp_path / "quick" / "logs" / "up").iterdir())) == PACKS
    folder = tmp_path / "quick" / "trials"
    assert sorted(path.name for path in folder.iterdir()) == [f"t{number:04d}" for number in range(TRIALS)]
    for trial in folder.iterdir():
        record = json.loads((trial / "record.json").read_text())
        # The trivial engine's loss says whose it is.
        loss = 1 / 8 + record["config"]["rank"] / 1000
        assert (record["trial_id"], record["status"], record["steps"]) == (trial.name, "completed", 8)
        assert record["eval_loss"] == pytest.approx(loss)
        assert [json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()] == [4, 8]
    running = [sample for sample in found["samples"] if 0 < sample[1] < TRIALS and sample[3]]
    half = [sample for sample in running if sample[1] >= TRIALS / 2]
    assert len(half) >= 4, running
    grown = [max(sample[column] for sample in half) - half[0][column] for column in (2, 3)]
    overhead = (running[-1][0] - running[0][0]) / (running[-1][1] - running[0][1])
    print(
        f"{TRIALS} trials, {PACKS} packs of {SLOTS}: {overhead:.3f} s each, {started / TRIALS:.3f} processes each; driver "
        f"{running[-1][2]:.0f} MB, pool {running[-1][3]:.0f} MB, in the second half {grown[0]:+.1f} and {grown[1]:+.1f} MB"
    )
    assert max(grown) < FLAT_MB
