"""Searches over recorded learning curves: packs with slots, a sampler, a rule that stops trials; nothing is trained.

A search ends when a configuration is completed whose loss is within 0.5 % of the best of the table. What it has cost until
then are the tokens that all trials were trained on, and the work: steps, and evaluations at what they take beside a step.
"""

from __future__ import annotations

import csv
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import optuna
from curves import AXES, CURVES
from optuna.trial import TrialState

from bitlora.base.info import BaseInfo, LayerShape
from sweeps.search.sampling.drafts import Drafts
from sweeps.search.sampling.prior import rate_prior
from sweeps.spec.spec import Spec

CLOSE: Final = 1.005
EVALUATION: Final = 7.0
"""Steps of a slot that its evaluation on the quickstart's 48 rows takes: 7.8 measured where the curves were recorded, 6 on
a CPU without AVX-512."""
AHEAD: Final = 2
"""Trials that are chosen before there is a slot for them, as in the product."""
Point = Mapping[str, Any]


ARTICLE: Final = {"quantizer": "none", "rank": 32, "alpha": 32, "learning_rate": 1.75e-4}
"""The article's recipe, the nearest that the table has."""
LAYER: Final = LayerShape("model.layers.0.self_attn.q_proj", 576, 576)
BASE: Final = BaseInfo("smollm2", "nf4", "", (LAYER,), (LAYER.name,), 49152, 134_515_008)
"""SmolLM2, as far as the prior looks at it: its width."""


@cache
def sweep(seed: int, listed: bool, sampler: str = "tpe") -> Spec:
    """The quickstart with the table's axes."""
    rates = AXES["learning_rate"]
    space = AXES if listed else {**AXES, "learning_rate": {"low": rates[0], "high": rates[-1], "log": True}}
    search = {"space": space, "seed": seed, "startup": 4, "sampler": sampler, "first": [ARTICLE]}
    return Spec.model_validate(
        {"name": "s", "base": {"model": "smollm2"}, "data": {"source": "pydoc"}, "search": search}
    )


class Table:
    """What each configuration comes to. Between two learning rates that were recorded, losses lie on a line over its
    logarithm."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.tokens: dict[int, int] = {}
        """Steps -> tokens that a trial was trained on until then; all have the same rows."""
        self._curves: dict[tuple[Any, ...], dict[float, dict[int, float]]] = {}
        for row in rows:
            step = int(row["step"])
            self.tokens[step] = int(row["tokens"])
            key = row["quantizer"], int(row["rank"]), int(row["alpha"])
            rates = self._curves.setdefault(key, {})
            rates.setdefault(float(row["learning_rate"]), {})[step] = float(row["eval_loss"])
        self.steps = max(self.tokens)
        self.best = min(curve[self.steps] for rates in self._curves.values() for curve in rates.values())

    @classmethod
    def read(cls, path: Path = CURVES) -> Table:
        with path.open(newline="") as file:
            return cls([*csv.DictReader(file)])

    def loss(self, point: Point, step: int) -> float:
        rates = self._curves[point["quantizer"], point["rank"], point["alpha"]]
        rate = point["learning_rate"]
        if rate in rates:
            return rates[rate][step]
        low, high = next((low, high) for low, high in pairwise(sorted(rates)) if low <= rate <= high)
        share = math.log(rate / low) / math.log(high / low)
        return (1 - share) * rates[low][step] + share * rates[high][step]


class Judge(Protocol):
    """What stops trials."""

    def heard(self, wave: Mapping[str, tuple[int, float]]) -> None: ...
    def goes_on(self, trial: str, step: int, loss: float) -> bool: ...
    def taken_up(self) -> str | None: ...


class ByRule:
    """This build: a rule of the product's, told of the whole wave."""

    def __init__(self, rule: Any) -> None:
        self._rule = rule

    def heard(self, wave: Mapping[str, tuple[int, float]]) -> None:
        for trial, (step, loss) in wave.items():
            self._rule.enter(trial, step, loss)

    def goes_on(self, trial: str, step: int, loss: float) -> bool:
        return bool(self._rule.goes_on(trial, step))

    def taken_up(self) -> str | None:
        return None


class Nobody:
    """Stops nobody."""

    def heard(self, wave: Mapping[str, tuple[int, float]]) -> None: ...

    def goes_on(self, trial: str, step: int, loss: float) -> bool:
        return True

    def taken_up(self) -> str | None:
        return None


class ByRay:
    """Ray's own ASHA, one result after the other: the first of a wave meets an empty rung."""

    def __init__(self, grace: int, reduction: int, budget: int) -> None:
        from ray.tune.schedulers import ASHAScheduler

        self._asha = ASHAScheduler(time_attr="step", metric="loss", mode="min", max_t=budget, grace_period=grace,
                                   reduction_factor=reduction)  # fmt: skip
        self._trials: dict[str, Any] = {}

    def heard(self, wave: Mapping[str, tuple[int, float]]) -> None: ...

    def goes_on(self, trial: str, step: int, loss: float) -> bool:
        if trial not in self._trials:
            self._trials[trial] = type("Trial", (), {"trial_id": trial})()
            self._asha.on_trial_add(None, self._trials[trial])
        return bool(self._asha.on_trial_result(None, self._trials[trial], {"step": step, "loss": loss}) == "CONTINUE")

    def taken_up(self) -> str | None:
        return None


class ByPromotion:
    """ASHA as it is in its paper: nobody is stopped; a trial that is not among the best `1 / reduction` of its rung now is
    set aside, and taken up when it is."""

    def __init__(self, grace: int, reduction: int, budget: int) -> None:
        self._reduction = reduction
        self._rungs: dict[int, dict[str, float]] = {}
        self._promoted: set[tuple[str, int]] = set()
        while grace < budget:
            self._rungs[grace] = {}
            grace *= reduction

    def heard(self, wave: Mapping[str, tuple[int, float]]) -> None:
        for trial, (step, loss) in wave.items():
            if step in self._rungs:
                self._rungs[step].setdefault(trial, loss)

    def _best(self, step: int) -> list[str]:
        losses = self._rungs[step]
        return sorted(losses, key=losses.__getitem__)[: len(losses) // self._reduction]

    def goes_on(self, trial: str, step: int, loss: float) -> bool:
        if step in self._rungs and trial not in self._best(step):
            return False
        self._promoted.add((trial, step))
        return True

    def taken_up(self) -> str | None:
        for step in sorted(self._rungs, reverse=True):
            for trial in self._best(step):
                if (trial, step) not in self._promoted:
                    self._promoted.add((trial, step))
                    return trial
        return None


@dataclass(frozen=True)
class Way:
    """How a search is done."""

    name: str
    judge: Callable[[int], Judge]
    """Of a budget in steps."""
    every: int
    """Steps between evaluations."""
    packs: int = 1
    slots: int = 4
    stock: bool = False
    """Ray's OptunaSearch: its sampler, every trial told as completed whatever stopped it, none chosen ahead."""
    once: bool = False
    """An equal configuration is not trained again."""
    prior: bool = False
    """What is known of learning rates beforehand counts."""
    sampler: str = "tpe"
    """Of the product's, with which trials are chosen ahead but for `gp`."""
    first: bool = True
    """The article's recipe is tried first, as in the quickstart."""
    sets_aside: bool = False
    """Who does not go on may be taken up again."""


@dataclass
class Run:
    """What a search has cost when it found what it looked for."""

    tokens: int = 0
    work: float = 0.0
    trials: int = 0
    trained: int = 0
    """Trials that took a step."""
    found: bool = False
    best: float = math.inf
    """The lowest loss that has been completed."""


@dataclass
class _Trial:
    name: str
    point: dict[str, Any]
    asked: optuna.Trial
    step: int = 0
    twins: list[_Trial] = field(default_factory=list)


class Search:
    """One search.

    Args:
        listed: the learning rate is one of the eight recorded, not any between them.
        most: trials, at most.
    """

    def __init__(self, table: Table, way: Way, seed: int, listed: bool = False, most: int = 200) -> None:
        self._table, self._way, self._listed, self._most = table, way, listed, most
        self._judge = way.judge(table.steps)
        if way.stock:
            sampler = optuna.samplers.TPESampler(seed=seed)
        else:  # as `sweeps.search.sampling.seen.SeeingTPE`
            sampler = optuna.samplers.TPESampler(
                seed=seed, n_startup_trials=4, multivariate=True, group=True, constant_liar=True
            )
        self._study = optuna.create_study(direction="minimize", sampler=sampler)
        self._planned = [ARTICLE] if way.first and not way.stock else []
        self._drafts = None
        if way.prior or way.sampler != "tpe":
            spec = sweep(seed, listed, way.sampler)
            prior = rate_prior(spec, BASE, table.steps) if way.prior else None
            self._drafts = Drafts(spec, self._study, None, (), prior, table.steps)
        self._waiting: deque[_Trial] = deque()
        self._aside: dict[str, _Trial] = {}
        self._known: dict[tuple[Any, ...], _Trial] = {}
        self._running = 0
        self.run = Run()
        self.begun: list[_Trial] = []

    def _choose(self) -> None:
        """Ask for trials while there is room for them; those that were trained before end at once."""
        ahead = 0 if self._way.stock or self._way.sampler == "gp" else AHEAD
        room = self._way.packs * self._way.slots + ahead
        while self._running + len(self._waiting) < room and self.run.trials < self._most:
            planned = self._planned.pop() if self._planned else {}
            if params := self._drafts.propose(planned) if self._drafts else planned:
                self._study.enqueue_trial(params)
            asked = self._study.ask()
            point = {
                axis: asked.suggest_categorical(axis, values)
                for axis, values in AXES.items()
                if axis != "learning_rate"
            }
            rates = AXES["learning_rate"]
            point["learning_rate"] = (
                asked.suggest_categorical("learning_rate", rates)
                if self._listed
                else asked.suggest_float("learning_rate", rates[0], rates[-1], log=True)
            )
            trial = _Trial(f"t{self.run.trials:04d}", point, asked)
            self.run.trials += 1
            if self._way.once and (first := self._known.get(tuple(point.values()))) is not None:
                self._repeat(first, trial)
                continue
            self._known[tuple(point.values())] = trial
            self._waiting.append(trial)

    def _repeat(self, first: _Trial, twin: _Trial) -> None:
        known = self._study.trials[first.asked.number]
        if not known.state.is_finished():
            first.twins.append(twin)
            return
        for step, loss in known.intermediate_values.items():
            twin.asked.report(loss, step)
        complete = known.state == TrialState.COMPLETE
        self._study.tell(twin.asked, known.value if complete else None, state=known.state)

    def _end(self, trial: _Trial, loss: float, completed: bool) -> None:
        self._running -= 1
        if completed or self._way.stock:
            self._study.tell(trial.asked, loss)
        else:
            self._study.tell(trial.asked, state=TrialState.PRUNED)
        for twin in trial.twins:
            self._repeat(trial, twin)
        if completed:
            self.run.best = min(self.run.best, loss)
            self.run.found = loss <= CLOSE * self._table.best

    def _next(self) -> _Trial | None:
        if (name := self._judge.taken_up()) is not None:
            self._running += 1
            return self._aside.pop(name)
        self._choose()
        if not self._waiting:
            return None
        trial = self._waiting.popleft()
        self._running += 1
        self.run.trained += 1
        self.begun.append(trial)
        return trial

    def _turn(self, slots: list[_Trial]) -> float:
        """A pack fills its slots, and trains to the next evaluation of any of them; gives the work it took."""
        while len(slots) < self._way.slots and (trial := self._next()) is not None:
            slots.append(trial)
        if not slots:
            return math.inf
        steps = min(self._way.every - trial.step % self._way.every for trial in slots)
        for trial in slots:
            before = self._table.tokens.get(trial.step, 0)
            trial.step += steps
            self.run.tokens += self._table.tokens[trial.step] - before
        due = [trial for trial in slots if trial.step % self._way.every == 0]
        losses = {trial.name: (trial.step, self._table.loss(trial.point, trial.step)) for trial in due}
        work = steps * len(slots) + EVALUATION * len(due)
        self.run.work += work
        self._judge.heard(losses)
        if self._drafts is not None:
            self._drafts.heard(losses)
        for trial in due:
            step, loss = losses[trial.name]
            trial.asked.report(loss, step)
            if step == self._table.steps:
                self._end(trial, loss, completed=True)
            elif self._judge.goes_on(trial.name, step, loss):
                continue
            elif self._way.sets_aside:
                self._aside[trial.name] = trial
                self._running -= 1
                slots.remove(trial)
                continue
            else:
                self._end(trial, loss, completed=False)
            slots.remove(trial)
            if self.run.found:
                break
            self._choose()
        return work

    def until_found(self) -> Run:
        """Search. Packs go their own ways; whichever is behind the others goes next."""
        packs: list[tuple[float, int, list[_Trial]]] = [(0.0, number, []) for number in range(self._way.packs)]
        while packs and not self.run.found:
            at, number, slots = heapq.heappop(packs)
            work = self._turn(slots)
            if work < math.inf:
                heapq.heappush(packs, (at + work, number, slots))
        return self.run


@cache
def table() -> Table:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return Table.read()


def made_up(seed: int = 0) -> Table:
    """A table with noise that falls with the steps, for tests: the true one is not needed for those."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for quantizer in AXES["quantizer"]:
        for rank in AXES["rank"]:
            for alpha in AXES["alpha"]:
                for number, rate in enumerate(AXES["learning_rate"]):
                    end = 3.0 + 0.03 * (number - 5) ** 2 + 0.2 * chance.random()
                    for step in (3, 6, 9, 12):
                        loss = end + 1.2 * (1 - step / 12) + chance.gauss(0, 0.05) * (1 - step / 12)
                        rows.append({"quantizer": quantizer, "rank": rank, "alpha": alpha, "learning_rate": rate,
                                     "step": step, "tokens": 149 * step, "eval_loss": loss})  # fmt: skip
    return Table(rows)
