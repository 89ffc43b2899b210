"""A sweep that has ended goes on: with more trials, and with a confirmation that nobody thought of. None of the first runs
again. It searches by loss and bytes, so that all of it is seen with a front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import contract
import pandas as pd
import pytest
from commands import CommandLine, SpecWriter
from faults import events

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "rank": [2, 4], "quantizer": ["none", "binary"]}
SWEEP: dict[str, Any] = {
    "data": {"eval_fraction": 0.3},
    "train": {"steps": 4, "eval_every": 2, "batch_size": 1},
    "search": {"trials": 12, "sampler": "tpe", "startup": 4, "space": SPACE, "objectives": ["loss", "bytes"]},
    "scheduler": {"name": "asha", "grace": 2, "reduction": 2},
    "resources": {"slots": 4},
}


def test_an_ended_sweep_of_12_gets_12_more_and_then_a_confirmation(
    bitlora: CommandLine, write_spec: SpecWriter, tmp_path: Path
) -> None:
    """Sampler and scheduler have the first ones from the folder (`test_steered`, `test_schedulers`)."""
    folder = tmp_path / "quick"
    spec = write_spec(**SWEEP)
    first = bitlora("sweep", spec)
    assert first.code == 0, first.err
    assert "on the front" in first.out
    before = files(folder)
    assert len({path.parent for path in before}) == 12
    begun = len(events(folder))
    more = bitlora("add", folder, "--trials", "12")
    assert more.code == 0, more.out + more.err
    found = contract.holds(folder)
    assert sorted(found) == [f"t{number:04d}" for number in range(24)]
    assert {path: path.read_bytes() for path in before} == before
    assert min(attached(folder, begun)) >= "t0012"
    assert "trials: 24" in (folder / "sweep.yaml").read_text()
    assert "24 trials" in (folder / "report" / "report.md").read_text()
    (added,) = steered(folder)
    assert added["what"] == "add 12 trials"

    before, begun, best = files(folder), len(events(folder)), front(found)
    done = bitlora("sweep", spec, "--resume", "--set", "confirm={top: 2, seeds: 1}")
    assert done.code == 0, done.out + done.err
    found = contract.holds(folder)
    confirming = {trial: record for trial, record in found.items() if record["config"]["confirms"]}
    assert min(confirming) == "t0024"
    assert {path: path.read_bytes() for path in before} == before
    assert attached(folder, begun) == {*confirming}
    # of a front longer than two both ends
    assert [record["config"]["confirms"] for record in confirming.values()] == [best[0], best[-1]][: len(best)]
    rows = [pd.read_parquet(folder / "base" / name)["example_id"] for name in ("eval.parquet", "test.parquet")]
    assert not {*rows[0]} & {*rows[1]}
    assert (len(rows[0]), len(rows[1])) == (12, 24)
    for trial, record in confirming.items():
        tested = pd.read_parquet(folder / "trials" / trial / "test.parquet")
        assert [*tested["example_id"]] == [*rows[1]]
        assert record["test_loss"] == pytest.approx(tested["loss"].sum() / tested["tokens"].sum(), rel=1e-12)
        assert record["data"]["fingerprint"] == found["t0000"]["data"]["fingerprint"]
    assert "scored on the test split: 24 rows that nobody was tuned on" in (folder / "report" / "report.md").read_text()
    summary = json.loads((folder / "report" / "summary.json").read_text())
    assert {*summary["front"]} <= {record["config"]["confirms"] for record in confirming.values()}
    assert [act["what"] for act in steered(folder)] == [added["what"], "confirm"]
    section = (folder / "report" / "report.md").read_text().split("## Steered")[1]
    assert f"{added['by']} | add 12 trials" in section
    # from now on it has that, whoever asks
    again = bitlora("sweep", spec, "--resume")
    assert again.code == 0
    assert "this sweep has ended with all its trials (exit code 0)" in again.out


def steered(folder: Path) -> list[dict[str, Any]]:
    """What a person did to the sweep."""
    return [json.loads(line) for line in (folder / "steered.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[Path, bytes]:
    """What there is of the trials."""
    return {path: path.read_bytes() for path in folder.glob("trials/*/*") if path.is_file()}


def attached(folder: Path, since: int) -> set[str]:
    """The trials that packs had after the first so many packs."""
    of_packs = [event for log in events(folder)[since:] for event in log if event["event"] == "attach"]
    return {trial for event in of_packs for trial in event["trials"]}


def front(found: dict[str, Any]) -> list[str]:
    """The completed trials that no other is as good as in loss and in bytes, by their loss."""
    done = {t: (r["eval_loss"], r["adapter_bytes"]) for t, r in found.items() if r["status"] == "completed"}
    ranked = sorted((trial for trial in done if not found[trial]["same_as"]), key=lambda trial: done[trial])
    return [
        trial
        for place, trial in enumerate(ranked)
        if not any(done[better][1] <= done[trial][1] for better in ranked[:place])
    ]
