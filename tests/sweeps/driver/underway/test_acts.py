"""What a person asks of a search is done under Ray Tune's own controller, searcher and scheduler: no Ray is started."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train._internal import storage as ray_storage
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.search_generator import SearchGenerator

from bitlora.config.sections import AdapterConfig
from bitlora.config.trial import trial_config
from bitlora.files.storage import Storage
from sweeps.driver.requests import SteeringAnswer, SteeringRequest
from sweeps.driver.underway import steering as module
from sweeps.driver.underway.steering import Steering
from sweeps.onray.schedulers import make_scheduler
from sweeps.onray.trials import trials_from
from sweeps.search.searcher import OptunaSearcher
from sweeps.spec.spec import load_spec

SPEC: dict[str, Any] = {
    "name": "steered",
    "base": {"model": "a"},
    "data": {"source": "b"},
    "train": {"steps": 8, "eval_every": 4},
    "scheduler": {"name": "none", "grace": 4},
    "search": {
        "trials": 3,
        "sampler": "random",
        "space": {"rank": [4, 8], "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}},
    },
}
HOST = "anna@box"


class World:
    """A search whose trials take four steps each time that they are told to go on, with a pool that answers at once."""

    def __init__(self, folder: Path, **search: Any) -> None:
        path = folder / "sweep.yaml"
        path.write_text(json.dumps({**SPEC, "search": {**SPEC["search"], **search}}))
        self.folder, self.spec = folder, load_spec(path)
        self.searcher = OptunaSearcher(
            self.spec,
            folder / "study.journal",
            configure=lambda chosen: trial_config(AdapterConfig(), self.spec.train, 40, 0, chosen).model_dump(),
        )
        self.searcher.open_ended = True
        self.queue: list[tuple[str, dict[str, Any]]] = []
        self.steps: dict[str, int] = {}
        self.budgets: dict[str, int] = {}
        self.ended: dict[str, tuple[str, str]] = {}
        self.requests: list[SteeringRequest] = []
        self.answers: dict[str, SteeringAnswer] = {}
        self.said: list[str] = []
        self.total = self.searcher.total
        self.interrupted = ""
        self.ending: tuple[str, str] | None = None
        self.held: set[str] = set()
        """Trials that do not go on after their first evaluation."""

    # the feed

    def begin(self, config: dict[str, Any]) -> None:
        trial_id = config["trial_id"]
        self.steps[trial_id], self.budgets[trial_id] = 0, config["config"]["steps"]
        self.proceed(trial_id)

    def proceed(self, trial_id: str) -> None:
        if trial_id in self.ended or (trial_id in self.held and self.steps[trial_id]):
            return
        self.steps[trial_id] += 4
        step = self.steps[trial_id]
        done = step == self.budgets[trial_id]
        result = {"step": step, "eval_loss": 1 / step, "status": "completed" if done else "running", "done": done}
        self.queue.append((trial_id, result))

    def next(self, timeout: float) -> tuple[str, dict[str, Any]] | None:
        return self.queue.pop(0) if self.queue else None

    # the pool

    def remote(self, method: str) -> Any:
        def call(*arguments: Any) -> Future[Any]:
            answer: Future[Any] = Future()
            answer.set_result(getattr(self, f"pool_{method}")(*arguments))
            return answer

        return SimpleNamespace(remote=call)

    def pool_stop(self, trial_id: str, reason: str) -> tuple[str, int]:
        if trial_id not in self.steps:
            return "unknown", 0
        step = self.steps[trial_id]
        result = {"step": step, "eval_loss": math.nan, "status": "pruned", "reason": f"{reason} at step {step}"}
        self.queue.insert(0, (trial_id, {**result, "done": True}))
        return "stopped", step

    def pool_extend(self, trial_id: str, config: dict[str, Any]) -> bool:
        if self.steps[trial_id] == self.budgets[trial_id]:
            return False
        self.budgets[trial_id] = config["steps"]
        return True

    def pool_interrupt(self, reason: str) -> None:
        self.interrupted = reason

    # the recorder, a callback of Tune's

    def end(self, trial: Any) -> None:
        result, trial_id = trial.last_result, trial.config["trial_id"]
        self.ended[trial_id] = (result["status"], result.get("reason", ""))
        self.searcher.finish(trial_id, result["status"], result["eval_loss"], result.get("reason", ""))

    # the inbox

    def take(self) -> list[SteeringRequest]:
        taken, self.requests = self.requests, []
        return taken

    def answer(self, request: SteeringRequest, done: bool, answer: str) -> None:
        self.answers[request.id] = SteeringAnswer(request=request, done=done, answer=answer)

    def ask(self, act: Any, **what: Any) -> Callable[[], SteeringAnswer | None]:
        request = SteeringRequest(act=act, by=HOST, **what)
        self.requests.append(request)
        return lambda: self.answers.get(request.id)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    monkeypatch.setattr(ray_storage, "_get_ray_train_session_dir", lambda: str(tmp_path / "session"))
    monkeypatch.setattr(module, "keep_weights", lambda storage, trial_id: 4)
    folder = tmp_path / "quick"
    folder.mkdir()

    def world(**search: Any) -> World:
        found: Any = World(folder, **search)
        pool = SimpleNamespace(**{name: found.remote(name) for name in ("stop", "extend", "interrupt")})
        found.steering = Steering(
            found, found.spec, Storage(str(folder), folder), pool, found.searcher, found, found.said.append,
            lambda total: setattr(found, "total", total),
        )  # fmt: skip
        recorder: Any = type("Ends", (module.Callback,), {})()
        recorder.on_trial_complete = lambda iteration, trials, trial, **info: found.end(trial)
        with trials_from(found) as trainable:
            generator = SearchGenerator(ConcurrencyLimiter(found.searcher, max_concurrent=2))
            experiment = Experiment("tune", trainable, num_samples=sys.maxsize, storage_path=str(tmp_path))
            generator.add_configurations([experiment])
            found.controller = TuneController(
                search_alg=generator,
                scheduler=make_scheduler(found.spec, 8),
                callbacks=[found.steering, recorder],
                storage=experiment.storage,
                checkpoint_period=3600,
            )
            found.controller.update_max_pending_trials()
        return found  # type: ignore[no-any-return]

    return world


def run(world: Any, until: Callable[[], object] = lambda: False, steps: int = 400) -> None:
    for _ in range(steps):
        if until():
            return
        assert not world.controller.is_finished()
        world.controller.step()
    raise AssertionError("it does not come to that")


def to_its_end(world: Any) -> None:
    run(world, world.controller.is_finished)
    world.steering.close()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steered.jsonl").read_text().splitlines()]


def test_every_act(make: Callable[..., Any]) -> None:
    world = make()
    world.held |= {"t0000", "t0001"}
    run(world, lambda: len(world.steps) == 2 and not world.queue)
    stop, longer = world.ask("stop", trial="t0001"), world.ask("extend", trial="t0000", steps=16)
    run(world, lambda: stop() and longer())
    assert stop() == SteeringAnswer(request=stop().request, done=True, answer="t0001 is stopped at step 4")
    assert longer().answer.startswith("t0000 goes on to step 16: up to step 8 at the rates it had")
    run(world, lambda: "t0001" in world.ended)
    assert world.ended["t0001"] == ("pruned", f"stopped by {HOST} at step 4")
    warm = world.ask("clone", trial="t0001", changes={"weight_decay": 0.1}, warm_start=True)
    run(world, warm)
    clone = warm().answer.split()[0]
    assert warm().answer == (
        f"{clone} is a clone of t0001 with weight_decay 0.1; it begins with the weights that t0001 had at step 4"
    )
    more = world.ask("add", trials=2)
    run(world, more)
    assert more().answer == "2 more trials: 5 search now"
    assert world.total == 6
    world.held.clear()
    world.proceed("t0000")
    to_its_end(world)
    assert sorted(world.ended) == [f"t{number:04d}" for number in range(6)]
    assert world.steps["t0000"] == 16
    assert load_spec(world.folder / "sweep.yaml").search.trials == 5
    config = world.searcher.steered.config(clone)
    assert (config["weight_decay"], config["warm_start"]) == (0.1, "t0001@4")
    acts = lines(world.folder)
    assert [act["what"] for act in acts] == [
        "stop t0001",
        "extend t0000 to 16 steps",
        "clone t0001 with its weights: weight_decay=0.1",
        "add 2 trials",
    ]
    assert acts == world.searcher.steered.acts
    assert [act["what"] for act in world.searcher.steered.acts_on(clone)] == [acts[2]["what"]]
    assert world.said == [f"{act['result']} ({HOST})" for act in acts]


@pytest.mark.parametrize(
    ("act", "what", "said"),
    [
        ("stop", {"trial": "t0009"}, "t0009: this sweep has no such trial; did you mean t000"),
        ("extend", {"trial": "t0000", "steps": 8}, "--steps 8: t0000 has 8 already; give more"),
        ("clone", {"trial": "t0000"}, "a clone of t0000 without --set and --warm-start would be t0000 again"),
        ("clone", {"trial": "t0000", "changes": {"rnk": 4}}, "--set rnk: a trial has no such key that can be set; did"),
        ("clone", {"trial": "t0000", "changes": {"steps": 4}}, "--set steps: a trial has no such key that can be set"),
        ("clone", {"trial": "t0000", "changes": {"learning_rate": -1}}, "--set learning_rate: found -1; give a number"),
        (
            "clone",
            {"trial": "t0000", "changes": {"rank": 16}},
            "--set rank=16: packs are made for what search.space has",
        ),
        ("clone", {"trial": "t0000", "changes": {"batch_size": 64}}, "--set batch_size=64: packs are made for what"),
    ],
)
def test_what_cannot_be_done_is_a_line_and_changes_nothing(
    make: Callable[..., Any], act: str, what: dict[str, Any], said: str
) -> None:
    world = make()
    world.held |= {"t0000", "t0001"}
    run(world, lambda: len(world.steps) == 2 and not world.queue)
    before = (world.folder / "study.journal").read_bytes()
    answer = world.ask(act, **what)
    run(world, answer)
    assert (answer().done, answer().answer.startswith(said), "\n" in answer().answer) == (False, True, False), answer()
    assert (world.folder / "study.journal").read_bytes() == before
    assert not (world.folder / "steered.jsonl").exists()


def test_weights_of_another_shape_are_refused(make: Callable[..., Any]) -> None:
    world = make(first=[{"rank": 4, "learning_rate": 1e-3}])
    world.held |= {"t0000", "t0001"}
    run(world, lambda: len(world.steps) == 2 and not world.queue)
    answer = world.ask("clone", trial="t0000", changes={"rank": 8}, warm_start=True)
    run(world, answer)
    assert answer().answer == "--warm-start: the weights of t0000 have rank 4; leave it so"


def test_who_has_ended_is_neither_stopped_nor_given_more_but_may_be_cloned(make: Callable[..., Any]) -> None:
    world = make(trials=2)
    world.held.add("t0001")
    run(world, lambda: "t0000" in world.ended and not world.queue)
    for act, more in (("stop", {}), ("extend", {"steps": 16})):
        answer = world.ask(act, trial="t0000", **more)
        run(world, answer)
        assert answer().answer == "t0000 has ended (completed); clone it, or give one that runs"
    clone = world.ask("clone", trial="t0000", changes={"learning_rate": 5e-3})
    run(world, clone)
    assert clone().answer == "t0002 is a clone of t0000 with learning_rate 0.005"
    world.held.clear()
    world.proceed("t0001")
    to_its_end(world)
    assert world.ended["t0002"] == ("completed", "")


def test_no_trials_are_added_to_a_search_that_is_over(make: Callable[..., Any]) -> None:
    world = make(trials=9, patience=1)
    world.held.add("t0002")
    run(world, lambda: world.searcher.why_ended and not world.queue)
    spec = (world.folder / "sweep.yaml").read_bytes()
    answer = world.ask("add", trials=3)
    run(world, answer)
    assert answer().done is False
    assert answer().answer.startswith("add 3 trials: search.patience (1) is over: so many trials in a row ended")
    assert (world.folder / "sweep.yaml").read_bytes() == spec
    assert not (world.folder / "steered.jsonl").exists()


@pytest.mark.parametrize("act", ["extend", "clone", "add"])
def test_a_population_stays_as_it_is(make: Callable[..., Any], act: str) -> None:
    world = make()
    scheduler = world.spec.scheduler.model_copy(update={"name": "pb2"})
    world.steering._spec = world.spec.model_copy(update={"scheduler": scheduler})
    answer = world.ask(act, trial="t0000", steps=16, trials=1)
    run(world, answer)
    assert answer().answer.endswith("the members of a population begin together and have one budget")


def test_the_sweep_is_stopped(make: Callable[..., Any]) -> None:
    world = make()
    answer = world.ask("end")
    run(world, answer)
    assert answer().answer == "the sweep ends; go on with it by the same command and --resume"
    assert (world.ending, world.interrupted) == (("interrupted", f"stopped by {HOST}"), f"stopped by {HOST}")


def test_what_was_done_is_not_done_again(make: Callable[..., Any]) -> None:
    """Its driver died between the act and the answer."""
    world = make(trials=2)
    world.held |= {"t0000", "t0001"}
    first = world.ask("add", trials=1)
    run(world, first)
    request = first().request
    again = make(trials=2)
    again.held |= {"t0000", "t0001"}
    again.requests.append(request)
    run(again, lambda: again.answers)
    assert again.answers[request.id].answer == first().answer
    assert len(lines(again.folder)) == 1
