"""A search as a person steers it: trials that are copies of others, and budgets that grow.

All of it is in the study, so that a sweep which goes on knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from sweeps.search.agenda import Agenda
from sweeps.search.metric import ACTS, APART, CLONES, OVERLAY, name_of
from sweeps.search.open_trials import OpenTrials
from sweeps.search.twins import Firsts
from sweeps.spec import space as spaces
from sweeps.spec.space import Space


def note(study: optuna.Study, act: Mapping[str, Any]) -> None:
    """The study has it: something was done (`bitlora.files.record.SteeringAct`)."""
    study.set_user_attr(ACTS, [*study.user_attrs.get(ACTS, []), dict(act)])


class SteeredSearch:
    """Trials go by our own ids.

    Args:
        asks: makes a trial of the study, of parameters and attributes, and opens it.
        firsts: who was the first with a configuration.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: Space,
        agenda: Agenda,
        trials: OpenTrials,
        firsts: Firsts,
        asks: Callable[[dict[str, Any], dict[str, Any]], str],
    ) -> None:
        self._study, self._space, self._agenda, self._trials, self._firsts = study, space, agenda, trials, firsts
        self._asks = asks
        self._made: list[str] = []
        """Clones that were not handed out yet."""

    # ---- what there is

    @property
    def names(self) -> list[str]:
        """Our ids of all trials, oldest first."""
        return [name_of(trial) for trial in self._study.get_trials(deepcopy=False)]

    def _frozen(self, trial_id: str) -> FrozenTrial:
        return next(trial for trial in self._study.get_trials(deepcopy=False) if name_of(trial) == trial_id)

    def ended(self, trial_id: str) -> str:
        """How a trial has ended; nothing where it has not."""
        trial = self._frozen(trial_id)
        return str(trial.user_attrs.get("status", "failed")) if trial.state.is_finished() else ""

    def config(self, trial_id: str) -> dict[str, Any] | None:
        """The whole configuration of a trial, open or ended; None where nothing was chosen yet."""
        if trial_id in self._trials:
            return self._trials.config(trial_id)
        return self._trials.config_of(self._frozen(trial_id))

    @property
    def acts(self) -> list[dict[str, Any]]:
        """What was done so far, oldest first (`bitlora.files.record.SteeringAct`)."""
        return list(self._study.user_attrs.get(ACTS, []))

    def acts_on(self, trial_id: str) -> list[dict[str, Any]]:
        """What of that was done to a trial, or made it."""
        return [act for act in self.acts if trial_id in act["trials"]]

    # ---- what is done

    def note(self, act: Mapping[str, Any]) -> None:
        """Something was done."""
        note(self._study, act)

    def clone(self, of: str, config: Mapping[str, Any]) -> str:
        """Make a trial with this configuration (as in JSON), to be handed out next; gives its id.

        Where it lies in the search space it is a trial of the search like any other, beyond those that were asked for.
        Else nothing is learned of it: its parameters are then those of the trial that it is made of.
        """
        point = {axis: config[axis] for axis in self._space}
        params = self._frozen(of).params
        if spaces.contains(self._space, point):
            params = spaces.params(self._space, point)
        attributes: dict[str, Any] = {CLONES: of}
        suggested = self._trials.config_with(params)
        if overlay := {key: value for key, value in config.items() if suggested.get(key) != value}:
            attributes |= {OVERLAY: overlay, APART: True}
        self._agenda.clones += 1
        made = self._asks(params, attributes)
        self._made.append(made)
        return made

    def next_made(self) -> str | None:
        """The next clone that is to be handed out."""
        while self._made:
            if (made := self._made.pop(0)) in self._trials:
                return made
        return None

    def extended(self, trial_id: str, overlay: Mapping[str, Any]) -> None:
        """An open trial has another budget: `overlay` is what that changes of its configuration, as in JSON. Trials that
        waited for what it comes to are trained after all."""
        self._trials.overlay(trial_id, overlay)
        self._firsts.forget(trial_id)
