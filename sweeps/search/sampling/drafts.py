"""Suggestions that are looked at before they are trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import Any, Final

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sweeps.search.bounds import Bounds
from sweeps.search.rules import Wave
from sweeps.search.sampling.choice import sampler_of
from sweeps.search.sampling.earlier import EarlierTrial
from sweeps.search.sampling.modelled import CurveModel
from sweeps.search.sampling.prior import RATE, STRENGTH, FirstPoints, RatePrior
from sweeps.search.sampling.samplers import make_sampler
from sweeps.search.sampling.seen import SeenStudy
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

MISSES: Final = 50
"""So many suggestions in a row may be beyond `search.where`; then one that fits is drawn from the space itself."""


ANEW: Final = 20
"""So often another is drawn where one of before anything is known has been had: more slots than `search.startup` would
all ask for the same, and equal trials are trained once."""


class Drafts:
    """What a sampler proposes, to be looked at before it is a trial of the study: what is refused is none, and is nowhere
    in the journal.

    It stands in a study of its own in memory, with trials of earlier sweeps, which are none of this one either. The sampler
    sees all: the study's trials, those, and of the drafts those that were refused, as pruned ones that violate constraints.
    A sweep that goes on knows no draft any more, and learns that anew.

    Args:
        steps: of a full trial.
    """

    def __init__(
        self,
        spec: Spec,
        study: optuna.Study,
        bounds: Bounds | None,
        earlier: Sequence[EarlierTrial],
        prior: RatePrior | None = None,
        steps: int = 1,
    ) -> None:
        self._space, self._bounds, self._prior = spec.search.space, bounds, prior
        self._startup = spec.search.startup
        self._chance = Random(spec.search.seed + len(study.trials))
        self.refused = 0
        """Suggestions that were beyond the bounds."""
        self.by_prior = 0
        """Suggestions whose learning rate is the prior's."""
        objectives = spec.search.objectives
        self._study = optuna.create_study(directions=[StudyDirection.MINIMIZE for _ in objectives])
        self._study.sampler = optuna.samplers.RandomSampler()
        for one in earlier:
            draft = self._ask(one.chosen)
            spaces.suggest(draft, self._space)
            size = [bounds.bytes(one.chosen)] if bounds is not None and "bytes" in objectives else []
            self._study.tell(draft, [one.value, *size])
        self._study.sampler = make_sampler(spec, study, self._study)
        self._seen = SeenStudy(study, self._study, self._startup)
        self._model = None
        if sampler_of(spec.search) == "gp":
            self._model = CurveModel(self._space, self._seen, steps, prior, self._chance)
        self._firsts = FirstPoints(self._space, max(1, self._startup - len(spec.search.first)), self._chance)
        study.sampler = optuna.samplers.RandomSampler()  # whose trials are given all their parameters

    def propose(self, planned: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a trial within the bounds.

        Args:
            planned: values of some axes; the sampler chooses the others, or the prior.
        """
        model = self._model
        if model is not None and model.begun >= self._startup and (found := model.propose(planned, self._fits)):
            return spaces.params(self._space, found)
        if self._prior is None or RATE in planned:
            return self._draw(planned)[0]
        told = self._seen.told
        begins = model is not None or told < self._startup
        params, chosen = self._draw(planned, self._firsts.point() if begins else {})
        if not begins and self._chance.random() >= STRENGTH / (STRENGTH + told):
            return params
        self.by_prior += 1
        found = self._at(params, chosen, self._firsts.share() if begins else self._chance.random())
        for _ in range(ANEW if begins else 0):
            if not any(found == one.params for one in self._seen.trials()):
                break
            found = self._at(*self._draw(planned), self._chance.random())
        return found

    def _at(self, params: dict[str, Any], chosen: dict[str, Any], share: float) -> dict[str, Any]:
        """These parameters with the prior's rate at this share."""
        assert self._prior is not None
        return {**params, spaces.option(self._space, RATE, chosen)[0]: self._prior.rate(chosen, share)}

    def heard(self, wave: Wave) -> None:
        """These trials were evaluated together; nothing is proposed before all of them are known."""
        if self._model is not None:
            self._model.heard(wave)

    def _fits(self, chosen: dict[str, Any]) -> bool:
        return self._bounds is None or not self._bounds.over(chosen)

    def _draw(
        self, planned: Mapping[str, Any], rather: Mapping[str, Any] = MappingProxyType({})
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """A draft that fits, as Optuna's parameters and as values of the axes; with the values of `rather` if that fits."""
        for number in range(MISSES):
            draft = self._ask({**rather, **planned} if number == 0 else planned)
            chosen = spaces.suggest(draft, self._space)
            if self._bounds is None or not (over := self._bounds.over(chosen)):
                return self._take(draft), chosen
            for name, much in over.items():
                draft.set_constraint(name, much)
            self._study.tell(draft, state=TrialState.PRUNED)
            self.refused += 1
        assert self._bounds is not None
        draft = self._ask({**planned, **self._bounds.fitting(planned, self._chance)})
        chosen = spaces.suggest(draft, self._space)
        return self._take(draft), chosen

    def _take(self, draft: optuna.Trial) -> dict[str, Any]:
        self._study.tell(draft, state=TrialState.FAIL)  # of a draft nothing is learned: it is a trial of the study now
        return draft.params

    def _ask(self, planned: Mapping[str, Any]) -> optuna.Trial:
        if params := spaces.params(self._space, planned):
            self._study.enqueue_trial(params)
        return self._study.ask()
