"""A sweep that has ended goes on with more trials; none of the first runs again."""

from __future__ import annotations

from pathlib import Path

import contract
import pytest
from commands import CommandLine, SpecWriter
from faults import events

pytestmark = pytest.mark.cluster


def test_an_ended_sweep_of_12_gets_12_more(bitlora: CommandLine, write_spec: SpecWriter, tmp_path: Path) -> None:
    """Sampler and scheduler have the first ones from the folder (`test_steered`, `test_schedulers`)."""
    folder = tmp_path / "quick"
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "rank": [2, 4]}
    search = {"trials": 12, "sampler": "tpe", "startup": 4, "space": space}
    spec = write_spec(
        train={"steps": 4, "eval_every": 2, "batch_size": 1},
        search=search,
        scheduler={"name": "asha", "grace": 2, "reduction": 2},
        resources={"slots": 4},
    )
    first = bitlora("sweep", spec)
    assert first.code == 0, first.err
    before = {path: path.read_bytes() for path in folder.glob("trials/*/*") if path.is_file()}
    assert len({path.parent for path in before}) == 12
    begun = len(events(folder))
    more = bitlora("add", folder, "--trials", "12")
    assert more.code == 0, more.out + more.err
    found = contract.holds(folder)
    assert sorted(found) == [f"t{number:04d}" for number in range(24)]
    assert {path: path.read_bytes() for path in before} == before
    attached = {
        trial
        for log in events(folder)[begun:]
        for event in log
        if event["event"] == "attach"
        for trial in event["trials"]
    }
    assert attached
    assert min(attached) >= "t0012"
    assert "trials: 24" in (folder / "sweep.yaml").read_text()
    assert "24 trials" in (folder / "report" / "report.md").read_text()
