"""Who lets a sweep go on with more than it had is written down, as it is of one that runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bitlora.files.record import SteeringAct
from bitlora.files.storage import Storage
from sweeps.driver.requests import somebody
from sweeps.driver.resume import as_begun
from sweeps.driver.underway.noted import grow
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.study import read_study
from sweeps.spec.spec import Spec, dump_spec, load_spec

SPEC: dict[str, Any] = {
    "name": "quick",
    "base": {"model": "a"},
    "data": {"source": "b"},
    "search": {"trials": 8, "sampler": "random", "hours": 2, "tokens": 1000, "space": {"rank": [4, 8]}},
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Of a sweep with one trial, of eight."""
    (tmp_path / "quick.yaml").write_text(json.dumps(SPEC))
    folder = tmp_path / "quick"
    folder.mkdir()
    begun = load_spec(tmp_path / "quick.yaml")
    (folder / "sweep.yaml").write_text(dump_spec(begun))
    searcher = OptunaSearcher(begun, folder / "study.journal")
    searcher.suggest("tune0")
    searcher.close()
    return Storage(str(folder), folder)


def asked(storage: Storage, *sets: str) -> Spec:
    """What `--resume` with these `--set` goes on by."""
    return as_begun(load_spec(storage.folder.with_suffix(".yaml"), sets), storage.folder)


def acts(storage: Storage) -> list[dict[str, Any]]:
    """What study and file have, which is the same."""
    lines = (storage.folder / "steered.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert found == read_study(storage.folder / "study.journal").user_attrs["steered"]
    return found


def test_who_asked_for_more_and_when(storage: Storage) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    larger = asked(storage, "search.trials=11", "search.hours=2.5", "search.tokens=null", "confirm={top: 2, seeds: 1}")
    grow(larger, storage)
    assert load_spec(storage.folder / "sweep.yaml") == larger
    found = [SteeringAct(**{**act, "trials": tuple(act["trials"])}) for act in acts(storage)]
    assert [(act.what, act.result) for act in found] == [
        ("add 3 trials", "3 more trials: 11 search now"),
        ("search.hours: 2.5", "search.hours is 2.5, and was 2"),
        ("search.tokens: null", "search.tokens is null, and was 1,000"),
        ("confirm", "the best are confirmed when the search has ended: top 2, seeds 1"),
    ]
    assert {(act.by, act.trials) for act in found} == {(somebody(), ())}
    assert len({act.id for act in found}) == 4
    assert all(before <= datetime.fromisoformat(act.at) <= datetime.now(UTC) for act in found)
    # a run that goes on knows it
    searcher = OptunaSearcher(larger, storage.folder / "study.journal")
    assert [act["what"] for act in searcher.steered.acts] == [act.what for act in found]
    assert searcher.begun == ["t0000"]


def test_one_that_goes_on_as_it_was_was_steered_by_nobody(storage: Storage) -> None:
    before = {path: path.read_bytes() for path in storage.folder.iterdir()}
    for sets in ((), ("search.trials=4",)):
        grow(asked(storage, *sets), storage)
    assert {path: path.read_bytes() for path in storage.folder.iterdir()} == before
    for _ in range(2):  # the second time it has them already
        grow(asked(storage, "search.trials=9"), storage)
    assert [act["what"] for act in acts(storage)] == ["add 1 trials"]
