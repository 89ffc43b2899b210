"""Steering a sweep that runs, from another process: every command once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import contract
import pytest
import s3
from commands import CommandLine, Ended, SpecWriter
from faults import wait_for

pytestmark = pytest.mark.cluster

LONG: dict[str, Any] = {
    "train": {"steps": 4000, "eval_every": 20, "batch_size": 2, "checkpoint_every": 200},
    "search": {
        "trials": 2,
        "sampler": "random",
        "hours": 2.0,
        "where": {"adapter_bytes": {"max": "1MB"}},
        "first": [{"rank": 4, "learning_rate": 9.5e-4}],
    },
}
"""Trials that end when they are told to: nobody can be too late."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steer_all(
    bitlora: CommandLine, spec: Path, place: str, has_evaluated: Callable[[str], bool], env: dict[str, str]
) -> str:
    """Every command on a sweep of two slots, one after another, until it has ended; gives the clone."""
    process = bitlora.start("sweep", spec, env=env)

    def say(*words: str, code: int = 0) -> Ended:
        ended = bitlora(*words, env=env, timeout=120)
        assert ended.code == code, (words, ended.out, ended.err)
        return ended

    def evaluated(trial: str) -> bool:
        assert process.poll() is None, process.communicate()
        return has_evaluated(trial)

    try:
        wait_for(lambda: evaluated("t0000") and evaluated("t0001"), "both trials to be evaluated", 240)
        # what cannot be done is said in a line, and nothing has changed
        assert "this sweep has no such trial" in say("trial", "stop", place, "t0077", code=2).err
        assert "t0000 goes on to step 8000" in say("trial", "extend", place, "t0000", "--steps", "8000").out
        made = say("trial", "clone", place, "t0000", "--set", "learning_rate=5e-4", "--warm-start").out
        assert "is a clone of t0000 with learning_rate 0.0005; it begins with the weights" in made
        clone = made.split()[0]
        assert "t0001 is stopped at step" in say("trial", "stop", place, "t0001").out
        wait_for(lambda: evaluated(clone), "the clone to be evaluated", 240)
        assert "3 more trials: 5 search now" in say("add", place, "--trials", "3").out
        assert "the sweep ends" in say("stop", place).out
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 130, out + err
    assert "--resume" in out
    assert "does not run any more" in say("trial", "stop", place, "t0000", code=2).err
    return clone


def holds(folder: Path, clone: str) -> None:
    """What was done is in the sweep's files."""
    contract.holds(folder)
    acts = lines(folder / "steered.jsonl")
    assert [act["what"].split()[0] for act in acts] == ["extend", "clone", "stop", "add", "stop"]
    assert all("@" in act["by"] and act["at"].startswith("20") for act in acts)
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("trials/*/record.json")}
    stopped = records["t0001"]
    at = stopped["steps"]
    assert stopped["status"] == "pruned"
    assert stopped["reason"].startswith(f"stopped by {acts[2]['by']} at step ")
    assert [act["what"] for act in stopped["steered"]] == ["stop t0001"]
    assert lines(folder / "trials" / "t0001" / "metrics.jsonl")[-1]["step"] == at
    extended = records["t0000"]
    assert extended["config"]["steps"] == 8000
    assert [(stage["until"], stage["steps"]) for stage in extended["schedule"]] == [(4000, 4000)]
    # a clone with warm start begins at its parent's loss
    warm = records[clone]
    parent, step = warm["config"]["warm_start"].split("@")
    assert (parent, warm["config"]["learning_rate"]) == ("t0000", 5e-4)
    began = lines(folder / "trials" / clone / "metrics.jsonl")[0]
    there = next(line for line in lines(folder / "trials" / parent / "metrics.jsonl") if line["step"] == int(step))
    assert began["step"] == 0
    assert math.isclose(began["eval_loss"], there["eval_loss"], rel_tol=1e-6)
    report = (folder / "report" / "report.md").read_text()
    section = report.split("## Steered")[1].split("\n## ")[0]
    for act in acts:
        assert act["by"] in section
        assert act["result"] in section
    assert "trials: 5" in (folder / "sweep.yaml").read_text()
    assert not [name for name in (folder / "requests").iterdir() if name.suffix == ".json"]


def test_every_command_on_a_sweep_in_a_folder(bitlora: CommandLine, write_spec: SpecWriter, tmp_path: Path) -> None:
    folder = tmp_path / "quick"
    clone = steer_all(
        bitlora,
        write_spec(**LONG),
        str(folder),
        lambda trial: bool(lines(folder / "trials" / trial / "metrics.jsonl")),
        bitlora.env,
    )
    holds(folder, clone)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_on_a_sweep_in_object_storage(
    bitlora: CommandLine, write_spec: SpecWriter, tmp_path: Path
) -> None:
    """Whoever steers has another copy of it than the driver: what they say to each other goes through the bucket."""
    with s3.serve_s3() as server:
        place, env = f"s3://{server.make_bucket('steered')}/quick", bitlora.env | server.env
        spec = write_spec(**LONG)
        spec.write_text(json.dumps({**json.loads(spec.read_text()), "out": place}))

        def has_evaluated(trial: str) -> bool:
            """The file is put there once when a trial begins, and again with each evaluation."""
            return sum(path.endswith(f"/{trial}/metrics.jsonl") for path in server.paths("PUT")) > 1

        clone = steer_all(bitlora, spec, place, has_evaluated, env)
        folder = server.mirror(place, tmp_path / "copy")
        holds(folder, clone)
        began_with = json.loads((folder / "trials" / clone / "config.json").read_text())["warm_start"]
        assert (folder / "starts" / began_with / "adapter_model.safetensors").exists()
