"""A population that trains in step: lost under way it goes on, and a schedule alone gives what a member came to."""

import contract
import pytest
from commands import spec_writer
from faults import evaluations, processes, results, same, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 32
TRAIN = {"steps": STEPS, "eval_every": STEPS // 16, "batch_size": 4, "dtype": "float64"}
SWEEP = {
    "train": TRAIN,
    "adapter": {"dropout": 0.1, "rank": 4},
    "search": {"trials": 4, "sampler": "grid", "space": {"learning_rate": [2e-5, 1e-4, 1e-3, 5e-3]}},
    "scheduler": {"name": "pbt", "interval": STEPS // 4},
    "confirm": {"top": 1, "seeds": 1},
    "resources": {"slots": 2},
}
"""Two slots for four members: who has come to a rung takes none."""


def schedules(found):
    """Trial -> how its values moved, and whose steps it has."""
    return {trial: record["schedule"] for trial, (record, _) in found.items()}


def test_a_population_that_is_killed_in_the_middle_goes_on_and_its_best_is_trained_again_from_its_schedule(
    bitlora, tmp_path, float64_base, arithmetic, pace
):
    write = spec_writer(tmp_path, float64_base, arithmetic)
    pace.unlink()

    ended = bitlora("sweep", write("whole", **SWEEP), timeout=600)
    assert ended.code == 0, ended.out + ended.err
    whole = results(tmp_path / "whole")
    assert contract.statuses(contract.holds(tmp_path / "whole")) == {"completed": 5}
    assert not list(tmp_path.glob("whole/trials/*/rung-*"))

    killed = tmp_path / "killed"
    pace.touch()
    process = bitlora.start("sweep", write("killed", **SWEEP))
    wait_for(lambda: evaluations(killed, 22)() or process.poll() is not None, "the second rung", 300)
    assert process.poll() is None, process.communicate()
    process.kill()
    process.wait()
    pace.unlink()
    wait_for(lambda: not processes(bitlora.env["RAY_TMPDIR"]), "Ray to end with its driver", 30)
    ended = bitlora("sweep", write("killed", **SWEEP), "--resume", timeout=600)
    assert ended.code == 0, ended.out + ended.err
    same(results(killed), whole)

    # Three rungs, and at each the worst became a copy of the best.
    moved = {trial: schedule for trial, schedule in schedules(whole).items() if schedule}
    assert moved
    searched = {trial: found for trial, found in whole.items() if found[0]["config"]["confirms"] is None}
    best = min(searched, key=lambda trial: searched[trial][0]["eval_loss"])
    [confirming] = whole.keys() - searched.keys()
    assert whole[confirming][0]["schedule"] == whole[best][0]["schedule"]
    assert whole[confirming][0]["config"]["seed"] != whole[best][0]["config"]["seed"]

    trial = next(iter(moved))
    config, stages = whole[trial][0]["config"], moved[trial]
    again = write(
        "again",
        train={**TRAIN, "learning_rate": config["learning_rate"], "stages": stages},
        adapter=SWEEP["adapter"],
        search={"trials": 1, "seed": config["seed"], "space": {}},
        confirm=SWEEP["confirm"],  # so that the eval rows are the same ones
    )
    assert bitlora("sweep", again, timeout=600).code == 0
    _, replayed = results(tmp_path / "again")["t0000"]
    ends = [*(stage["until"] for stage in stages), STEPS]
    takers = [*(stage["trial"] or trial for stage in stages), trial]
    for line in replayed:
        taker = next(taker for end, taker in zip(ends, takers, strict=True) if line["step"] <= end)
        [other] = [one for one in whole[taker][1] if one["step"] == line["step"]]
        assert line == pytest.approx(other, rel=1e-9)
