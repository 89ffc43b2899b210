"""The trials of a study that have not ended: asked for or taken up again, what they report, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import optuna
from optuna.trial import BaseTrial, FixedTrial, FrozenTrial, TrialState

from bitlora.files.record import Status
from sweeps.search.confirm import REPEATS
from sweeps.search.metric import AT_BUDGET, BUDGET, OVERLAY, finite, name_of
from sweeps.search.sampling.seen import DIVERGED
from sweeps.search.study import reopen, set_aside
from sweeps.search.twins import Outcome
from sweeps.spec import space as spaces
from sweeps.spec.space import Space


class OpenTrials:
    """They go by our own ids (`t0007`).

    Args:
        configure: makes a trial's whole configuration of the values that were chosen for the axes.
        size: bytes of the adapter for which these were chosen, where they are an objective.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        configure: Callable[[dict[str, Any]], dict[str, Any]],
        size: Callable[[dict[str, Any]], int] | None = None,
    ) -> None:
        self._study, self._space, self._configure, self._size = study, space, configure, size
        self._open: dict[str, optuna.Trial] = {}
        self._values: dict[str, dict[int, float]] = {}
        """The steps of which the study has a value, and that."""
        self._told: set[str] = set()

    def __contains__(self, trial_id: object) -> bool:
        return trial_id in self._open

    def __iter__(self) -> Iterator[str]:
        return iter([*self._open])

    @property
    def search(self) -> bool:
        """Is there one that searches, and does not confirm?"""
        return any(REPEATS not in trial.user_attrs for trial in self._open.values())

    def ask(self, params: dict[str, Any], attributes: dict[str, Any]) -> str:
        """A new trial of the study with these parameters; those that are missing are the sampler's."""
        if params or attributes:
            self._study.enqueue_trial(params, user_attrs=attributes)
        trial = self._study.ask()
        ours = name_of(trial)
        trial.set_user_attr("trial_id", ours)
        self._open[ours], self._values[ours] = trial, {}
        return ours

    def take_up(self, trial_id: str, frozen: FrozenTrial, evaluations: Iterable[tuple[int, float]]) -> None:
        """Open a trial of the journal again.

        Args:
            evaluations: steps and losses that it has on disk, of which the study may lack some.
        """
        self._open[trial_id] = reopen(self._study, frozen)
        self._open[trial_id].set_user_attr("trial_id", trial_id)
        self._values[trial_id] = dict(frozen.intermediate_values)
        for step, loss in evaluations:
            self.report(trial_id, step, loss)

    def config(self, trial_id: str) -> dict[str, Any]:
        """The whole configuration of an open trial."""
        trial = self._open[trial_id]
        return self._configure(self._chosen(trial, trial.user_attrs))

    def config_of(self, ended: FrozenTrial) -> dict[str, Any] | None:
        """That of one that has ended; None where its driver died before all was chosen."""
        try:
            return self._configure(self._chosen(FixedTrial(ended.params), ended.user_attrs))
        except ValueError:
            return None

    def _chosen(self, trial: BaseTrial, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """What is chosen for a trial: by the sampler, for one that confirms also by the searcher, and by a person."""
        chosen = spaces.suggest(trial, self._space)
        return {**chosen, **attributes.get(REPEATS, {}), **attributes.get(OVERLAY, {})}

    def config_with(self, params: dict[str, Any]) -> dict[str, Any]:
        """The whole configuration that these parameters come to."""
        return self._configure(self._chosen(FixedTrial(params), {}))

    def overlay(self, trial_id: str, changes: Mapping[str, Any]) -> None:
        """An open trial has these from now on, though they were not suggested: another budget among them."""
        trial = self._open[trial_id]
        if BUDGET not in trial.user_attrs:
            trial.set_user_attr(BUDGET, self.config(trial_id)["steps"])
        trial.set_user_attr(OVERLAY, {**trial.user_attrs.get(OVERLAY, {}), **changes})

    def report(self, trial_id: str, step: int, loss: Any) -> None:
        """An open trial was evaluated: finite losses are told, each step once."""
        if (value := finite(loss)) is None or step in self._values[trial_id]:
            return
        if self._size is None:  # Optuna takes no reports of a trial with several objectives
            self._open[trial_id].report(value, step)
        self._values[trial_id][step] = value

    def values_of(self, trial_id: str) -> list[float]:
        """Of which the study knows, of an open trial."""
        return list(self._values.get(trial_id, {}).values())

    def report_as(self, trial_id: str, first: str, losses: Mapping[int, float], attribute: str) -> None:
        """An open trial has another's losses, and says so in an attribute."""
        self._open[trial_id].set_user_attr(attribute, first)
        for step in sorted(losses):
            self.report(trial_id, step, losses[step])

    def end(
        self, trial_id: str, status: Status, value: float | None, reason: str
    ) -> tuple[Outcome, FrozenTrial | None] | None:
        """Tell the study how a trial ended.

        Args:
            value: the final result of a completed trial; one that is not finite is told FAIL. A pruned trial's is the last
                that was reported.
            reason: kept as a user attribute beside the status.

        Returns:
            What it came to, and what the study has of it, unless it was interrupted: for the study such a one has not
            ended. None: it had ended already.

        Raises:
            KeyError: there never was such a trial.
        """
        if trial_id not in self._open and trial_id not in self._told:
            raise KeyError(trial_id)
        trial = self._open.pop(trial_id, None)
        if trial is None:
            return None
        came_to = Outcome(status, reason, value, self._values.pop(trial_id))
        self._told.add(trial_id)
        trial.set_user_attr("status", status)
        if reason:
            trial.set_user_attr("reason", reason)
        if status == DIVERGED:
            trial.set_constraint(DIVERGED, 1.0)
        if status == "completed" and (loss := finite(value)) is not None:
            size = [] if self._size is None else [self._size(self._chosen(trial, trial.user_attrs))]
            if size and (before := came_to.losses.get(trial.user_attrs.get(BUDGET, -1))) is not None:
                trial.set_user_attr(AT_BUDGET, before)
            return came_to, self._study.tell(trial, [loss, *size])
        if status == "interrupted":  # it goes on when the sweep does
            set_aside(self._study, trial)
            return came_to, None
        state = TrialState.PRUNED if status == "pruned" else TrialState.FAIL
        return came_to, self._study.tell(trial, state=state)
