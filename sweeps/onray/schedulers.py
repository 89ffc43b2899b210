"""The scheduler: which trials are stopped before their budget, as Ray Tune asks for it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from sweeps.search.cloning.place import Place
from sweeps.search.cloning.population import Population
from sweeps.search.metric import STEP, Objective, finite
from sweeps.search.rules import SizeOf, StoppingRule, Wave, alike, make_rule
from sweeps.spec.spec import Spec

Past = Mapping[str, Sequence[tuple[int, float]]]
"""Our id -> (step, what is searched by, lower where it is better) of each evaluation."""


def make_scheduler(
    spec: Spec,
    max_steps: int,
    past: Past | None = None,
    population: Population | None = None,
    size: SizeOf = alike,
    short: Collection[str] = (),
) -> WaveScheduler:
    """The scheduler of a sweep whose full trials take `max_steps` optimizer steps.

    Args:
        population: of a sweep with `scheduler.name: pbt` or `pb2`.
        past: what trials that search have reported before this scheduler came, whether they go on or not.
        size: of each adapter; counts where bytes are an objective.
        short: those of `past` that ended by themselves short of their budget.
    """
    objective = Objective.of_spec(spec.search.metric, spec.metrics)
    rule = make_rule(spec.scheduler, max_steps, size if "bytes" in spec.search.objectives else alike)
    scheduler = WaveScheduler(rule, objective) if population is None else PopulationScheduler(population, objective)
    for trial_id, curve in (past or {}).items():
        for step, loss in curve:
            scheduler.recall(trial_id, step, loss)
        if trial_id in short:
            scheduler.finish(trial_id)
    return scheduler


class WaveScheduler(FIFOScheduler):  # type: ignore[misc]
    """Asks a rule of each result, which it has told of all that were evaluated with it (`heard`).

    A result without a finite loss decides nothing, and never becomes something that others are held against. Nobody stops
    a trial that confirms, nor is one that searches held against it. What a trial reported in an earlier run of the sweep
    is known and not decided again.
    """

    def __init__(self, rule: StoppingRule | None, objective: Objective = Objective()) -> None:  # noqa: B008 (frozen)
        super().__init__()
        self._objective = objective
        self._rule = rule
        self.go_on: Callable[[str, Place], object] = lambda trial_id, place: None
        """Told how a trial goes on that has left its slot; whoever is to see to that says it here."""
        self._best: dict[str, float] = {}
        """Trial -> the lowest that it came to."""
        self._stopped: set[str] = set()
        """Whose packs may not have heard of it yet: what they come to from then on counts for nobody."""

    def __getstate__(self) -> dict[str, Any]:
        """Pickled as nothing: Tune writes it into files that no resume uses, and it holds on to what lives here alone."""
        return {}

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Every trial that there is may begin, in the order in which they came: the controller sees to that by itself.
        Tune's own schedulers would look through all trials for one, those that have ended first, before each result."""

    def recall(self, trial_id: str, step: int, loss: float) -> None:
        """A trial was evaluated in an earlier run of the sweep, and judged."""
        if finite(loss) is not None and self._rule is not None:
            self._enter(self._rule, trial_id, step, loss)
            self._rule.goes_on(trial_id, step)

    def _enter(self, rule: StoppingRule, trial_id: str, step: int, loss: float) -> None:
        rule.enter(trial_id, step, loss)
        self._best[trial_id] = min(loss, self._best.get(trial_id, loss))

    def finish(self, trial_id: str) -> None:
        """A trial has ended by itself short of its budget."""
        if trial_id in self._best and self._rule is not None:
            self._rule.finish(trial_id, self._best[trial_id])

    def place(self, trial_id: str) -> Place:
        """Where a trial begins; asked when the pool is given it."""
        return Place()

    def heard(self, wave: Wave) -> None:
        """These trials, which search, were evaluated together; none of them is judged before."""
        if self._rule is not None:
            for trial_id, (step, loss) in wave.items():
                if trial_id not in self._stopped and finite(loss) is not None:
                    self._enter(self._rule, trial_id, step, loss)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        config = trial.config.get("config", {})
        if result.get("status") == "completed" and result[STEP] < config.get("steps", 0):
            self.finish(trial.config["trial_id"])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        config = trial.config.get("config", {})
        apart = config.get("confirms") or config.get("warm_start")
        loss, trial_id = self._objective.of(result), trial.config["trial_id"]
        if apart or loss is None or self._rule is None:
            return str(TrialScheduler.CONTINUE)
        self.heard({trial_id: (result[STEP], loss)})
        if self._rule.goes_on(trial_id, result[STEP]):
            return str(TrialScheduler.CONTINUE)
        self._stopped.add(trial_id)
        return str(TrialScheduler.STOP)


class PopulationScheduler(WaveScheduler):
    """Stops nobody: says how each goes on when all have come to a rung. To Tune a trial that has left its slot is one whose
    next result is not there yet.
    """

    def __init__(self, population: Population, objective: Objective = Objective()) -> None:  # noqa: B008 (frozen)
        super().__init__(None, objective)
        self._population = population
        self._placed: set[str] = set()
        """Members that the pool has."""

    def recall(self, trial_id: str, step: int, loss: float) -> None:
        self._population.enter(trial_id, step, finite(loss))

    def place(self, trial_id: str) -> Place:
        self._placed.add(trial_id)
        return self._population.place(trial_id)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        config = trial.config["config"]
        if not (config.get("confirms") or config.get("warm_start")):
            self._population.begin(trial.config["trial_id"], config)
            self._settle()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self._population.enter(trial.config["trial_id"], result[STEP], self._objective.of(result))
        self._settle()
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._end(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        self._end(trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        self._end(trial)

    def _end(self, trial: Any) -> None:
        self._population.end(trial.config["trial_id"])
        self._settle()

    def _settle(self) -> None:
        while self._population.decide():
            for trial_id in self._population.members:
                if trial_id in self._placed:
                    self.go_on(trial_id, self._population.place(trial_id))
