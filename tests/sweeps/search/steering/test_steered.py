"""A search as a person steers it: clones, more trials, larger budgets; all of it is there when the sweep goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from sweeps.search.sampling.seen import SeenStudy
from sweeps.search.searcher import OptunaSearcher
from sweeps.search.study import read_study
from sweeps.spec.spec import Spec, load_spec

SPEC: dict[str, Any] = {
    "name": "steered",
    "base": {"model": "a"},
    "data": {"source": "b"},
    "train": {"steps": 8, "eval_every": 4},
    "search": {
        "trials": 2,
        "sampler": "random",
        "space": {"rank": [4, 8], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    },
}


def configured(chosen: dict[str, Any]) -> dict[str, Any]:
    """As `sweeps.driver.prepare.Prepared.trial` has it, in short."""
    return {"rank": 1, "learning_rate": 1.0, "weight_decay": 0.0, "steps": 8, "warm_start": None} | chosen


class Run:
    """A searcher over the journal in a folder, as a run of the sweep has it."""

    def __init__(self, folder: Path, essence: Any = lambda config: str(sorted(config.items())), **search: Any) -> None:
        path = folder / "spec.yaml"
        path.write_text(json.dumps({**SPEC, "search": {**SPEC["search"], **search}}))
        self.spec: Spec = load_spec(path)
        self.journal = folder / "study.journal"
        self.searcher = OptunaSearcher(self.spec, self.journal, configure=configured, essence=essence)
        self.searcher.open_ended = True
        self._asked = 0

    def next(self) -> Any:
        self._asked += 1
        return self.searcher.suggest(f"tune{self._asked}")

    def begin(self, count: int) -> list[dict[str, Any]]:
        return [self.next() for _ in range(count)]


def seen_by_samplers(run: Run) -> Any:
    return SeenStudy(read_study(run.journal), None, 0)._get_trials()


def test_a_clone_within_the_space_is_a_trial_of_the_search_beyond_those_asked_for(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.begin(1)[0]
    made = run.searcher.steered.clone(first["trial_id"], {**first["config"], "learning_rate": 5e-3})
    assert made == "t0001"
    clone, second = run.begin(2)
    assert (clone["trial_id"], clone["config"]) == (made, {**first["config"], "learning_rate": 5e-3})
    assert second["trial_id"] == "t0002"
    assert run.searcher.total == 3
    assert run.next() is None  # more may be asked for
    for one in (first, clone, second):
        run.searcher.finish(one["trial_id"], "completed", 2.0)
    assert run.next() == Searcher.FINISHED
    assert run.searcher.over
    trial = read_study(run.journal).trials[1]
    assert trial.params["learning_rate"] == 5e-3
    assert len(seen_by_samplers(run)) == 3


def test_no_sampler_learns_of_one_that_is_not_what_its_parameters_say(tmp_path: Path) -> None:
    run = Run(tmp_path, trials=3)
    first = run.begin(1)[0]
    asked = {**first["config"], "weight_decay": 0.1, "warm_start": "t0000@4"}
    run.searcher.steered.clone("t0000", asked)
    clone = run.next()
    assert clone["config"] == asked
    for one in (first, clone):
        run.searcher.finish(one["trial_id"], "completed", 1.0)
    assert len(seen_by_samplers(run)) == 1
    again = Run(tmp_path, trials=3)
    assert again.searcher.total == 4
    assert again.searcher.ended["t0001"].config == asked
    assert len([one for one in again.begin(2) if one]) == 2
    assert again.next() is None


def test_a_clone_that_was_not_handed_out_is_when_the_sweep_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.begin(1)[0]
    asked = {**first["config"], "warm_start": "t0000@4"}
    made = run.searcher.steered.clone("t0000", asked)
    again = Run(tmp_path)  # its driver died
    assert again.searcher.total == 3
    suggested = {one["trial_id"]: one for one in again.begin(3)}
    assert suggested[made]["config"] == asked
    assert suggested[made]["reported"] == -1  # not even before its first step
    assert suggested["t0000"]["reported"] == 0


def test_more_steps_stay_with_a_trial_and_the_search_has_its_value_at_the_old_budget(tmp_path: Path) -> None:
    run = Run(tmp_path)
    first = run.begin(1)[0]
    overlay = {"steps": 16, "stages": [{"until": 8, "steps": 8}]}
    run.searcher.steered.extended("t0000", overlay)
    assert run.searcher.steered.config("t0000") == {**first["config"], **overlay}
    again = Run(tmp_path)
    assert again.next()["config"] == {**first["config"], **overlay}
    for step, loss in ((4, 3.0), (8, 2.5), (16, 1.5)):
        again.searcher.on_trial_result("tune1", {"step": step, "eval_loss": loss})
    again.searcher.finish("t0000", "completed", 1.5)
    [seen] = seen_by_samplers(run)
    assert seen.value == 2.5
    assert read_study(run.journal).trials[0].value == 1.5


def test_a_twin_of_a_trial_that_is_given_more_steps_is_trained_after_all(tmp_path: Path) -> None:
    points = [{"rank": 4, "learning_rate": 1e-3}, {"rank": 4, "learning_rate": 2e-3}]
    run = Run(tmp_path, lambda config: config["rank"], trials=2, first=points)
    first = run.next()
    assert run.next() is None  # the second waits for what the first comes to
    run.searcher.steered.extended(first["trial_id"], {"steps": 16})
    assert run.next()["trial_id"] == "t0001"


def test_more_trials(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin(2)
    assert run.next() is None
    assert run.searcher.more(2) == ""
    assert [one["trial_id"] for one in run.begin(2)] == ["t0002", "t0003"]
    assert run.next() is None


def test_a_grid_has_no_more_points_than_it_has(tmp_path: Path) -> None:
    run = Run(tmp_path, sampler="grid", trials=1, space={"rank": [4, 8]})
    assert run.searcher.more(2) == "the grid has 2 points, of which 1 are asked for"
    assert run.searcher.more(1) == ""


def test_an_ended_sweep_of_12_gets_12_more(tmp_path: Path) -> None:
    """None of the first is handed out again; the sampler knows them, and draws no other than it would have drawn."""
    run = Run(tmp_path, trials=12, sampler="tpe", startup=4)
    first = run.begin(12)
    for number, one in enumerate(first):
        run.searcher.finish(one["trial_id"], "completed", 2.0 + number / 100)
    assert run.next() == Searcher.FINISHED
    run.searcher.close()
    more = Run(tmp_path, trials=24, sampler="tpe", startup=4)
    assert not more.searcher.over
    assert (more.searcher.total, more.searcher.left) == (24, 12)
    assert [one["trial_id"] for one in more.begin(12)] == [f"t{number:04d}" for number in range(12, 24)]
    assert more.next() is None
    assert len(more.searcher.ended) == 12


@pytest.mark.parametrize(("later", "over"), [({}, True), ({"trials": 9}, True), ({"patience": 3}, False)])
def test_a_search_that_ended_early_goes_on_where_what_ended_it_has_grown(
    tmp_path: Path, later: dict[str, Any], over: bool
) -> None:
    asked = {"trials": 8, "patience": 1}
    run = Run(tmp_path, **asked)
    for value in (1.0, 2.0):
        run.searcher.finish(run.next()["trial_id"], "completed", value)
    assert run.next() == Searcher.FINISHED
    assert "search.patience (1)" in run.searcher.why_ended
    again = Run(tmp_path, **{**asked, **later})
    assert again.searcher.over == over
    following = again.next()
    assert following == Searcher.FINISHED if over else following["trial_id"] == "t0002"
