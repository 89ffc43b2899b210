"""The searcher over Optuna, as Ray Tune drives it.

What Ray's own OptunaSearch gets wrong is put right here: a pruned trial is told PRUNED and not COMPLETE, so that a
sampler never mixes budgets; a diverged or failed one is told FAIL and does not stay RUNNING for ever, and of the diverged
the sampler hears as of trials that violate a constraint (`sweeps.search.sampling.seen`), since of a FAIL it learns nothing
and goes there again and again; every result is reported at its own step. The study's journal is the only truth: Tune's
checkpoints of the searcher stay empty.

A sweep that goes on has a new searcher over the same journal. A trial that was interrupted is WAITING in it, one of a
driver that died is RUNNING: both are the same Optuna trials again, under their own numbers, when they go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from optuna.trial import FrozenTrial
from ray.tune.search import Searcher

from bitlora.config.metrics import LOSS
from bitlora.files.record import Status
from sweeps.search.agenda import Agenda, complete, end_early, why_ended
from sweeps.search.bounds import Bounds
from sweeps.search.budget import SearchBudget
from sweeps.search.cloning.population import became
from sweeps.search.confirm import REPEATS, Choose
from sweeps.search.metric import CLONES, STEP, Objective, name_of
from sweeps.search.open_trials import OpenTrials
from sweeps.search.rules import Wave
from sweeps.search.sampling.choice import sampler_of
from sweeps.search.sampling.drafts import Drafts
from sweeps.search.sampling.earlier import EarlierTrial
from sweeps.search.sampling.prior import RatePrior
from sweeps.search.steering.steered import SteeredSearch
from sweeps.search.study import EndedTrial, open_study, sync
from sweeps.search.twins import SAME_AS, SETTLED, Firsts, Outcome, Twin, reason_of
from sweeps.spec import space as spaces
from sweeps.spec.spec import Spec

ABANDONED: Final = "the sweep ended before it did"


def _none(_: object) -> None: ...


class OptunaSearcher(Searcher):  # type: ignore[misc]
    """Proposes trials out of an Optuna study on disk, and tells the study how each of them ended.

    Lives on the driver. Trials go by our own ids (`t0007`), Tune's are known in here alone.

    Args:
        spec: The sweep.
        journal: The study's file; one that is there already goes on: the trials in it that have not ended are handed out
            first, and all count towards `spec.search.trials`.
        objective: What is searched by.
        configure: Makes a trial's whole configuration of the values that were chosen for the axes.
        changed: Called when the journal has something new.
        essence: What of a whole configuration its numbers hang on. Of trials that are equal in it the first alone is handed
            out; the others have its result (`twin`). None: of this one there is no other.
        bounds: What an adapter may be. What is beyond it is no trial: the sampler hears of it, and the next is asked for.
        clock: Seconds.
        earlier: Trials of other sweeps that the sampler knows too.
        prior: What is known of learning rates before any trial.
        steps: Of a full trial; None: `train.steps` says it.
    """

    def __init__(
        self,
        spec: Spec,
        journal: Path,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
        configure: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        changed: Callable[[], object] = bool,
        essence: Callable[[dict[str, Any]], Hashable | None] = _none,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
        earlier: Sequence[EarlierTrial] = (),
        prior: RatePrior | None = None,
        steps: int | None = None,
    ) -> None:
        super().__init__(metric=LOSS, mode="min")  # for Tune, which looks whether results have it
        self.objective = objective
        self.spec = spec
        """The sweep; with the trials that a person adds."""
        self._space = spec.search.space
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._journal = journal
        self._study = open_study(spec, journal)
        self._agenda = Agenda(spec, self._study, bounds)
        sampler = sampler_of(spec.search)
        drafted = (bounds or earlier or prior or sampler == "gp") and sampler != "grid"
        full = steps or spec.train.steps or 1
        self._drafts = Drafts(spec, self._study, bounds, earlier, prior, full) if drafted else None
        self._budget = SearchBudget(spec.search, self._study, clock)
        size = bounds.bytes if bounds is not None and "bytes" in spec.search.objectives else None
        self._trials = OpenTrials(self._study, self._space, configure, size)
        self._changed = changed
        self._keep_best = spec.train.keep == "best"
        self._suggested: dict[str, dict[str, Any]] = {}
        self._ours: dict[str, str] = {}
        """Tune's id -> ours."""
        self._begun: dict[str, FrozenTrial] = {}
        """Those that go on, by our id, in the order of their numbers."""
        self.reported: dict[str, int] = {}
        """The last step that a trial of `begun` has reported; whoever knows says it here."""
        self.evaluations: dict[str, Sequence[tuple[int, float]]] = {}
        """Steps and losses that such a trial has on disk: the study may lack some of them, since in object storage its
        journal is not written anew for each result."""
        self.ended: dict[str, EndedTrial] = {}
        """How each trial ended that had ended when the journal was opened."""
        self._firsts = Firsts(essence)
        self._settled: dict[str, Outcome] = {}
        """Of trials that were trained to their end."""
        self.steered = SteeredSearch(self._study, self._space, self._agenda, self._trials, self._firsts, self._ask)
        """What a person does to the search."""
        self.open_ended = False
        """More trials may come while any has not ended: the search does not say before that it is over."""
        self.ended_early: Callable[[str], object] = bool
        """Told once why no more trials are asked for that search; whoever is to know says it here."""
        self.twin: Callable[[Twin], object] = bool
        """Told of a trial that is not handed out, since one has ended that is the same; whoever is to know says it here."""
        for trial in self._study.get_trials(deepcopy=False):
            name = trial.user_attrs.get("trial_id") or name_of(trial)
            self._agenda.clones += CLONES in trial.user_attrs
            if trial.state.is_finished():
                status = trial.user_attrs.get("status", "failed")
                reason = trial.user_attrs.get("reason", "")
                config, same_as = self._trials.config_of(trial), trial.user_attrs.get(SAME_AS, "")
                value = trial.values[0] if trial.values else None
                self.ended[name] = EndedTrial(status, reason, config, value, same_as)
                if status in SETTLED and config is not None and not same_as:
                    self._firsts.enter(name, config)
                    self._settled[name] = Outcome(status, reason, value, trial.intermediate_values)
                self._agenda.counted(trial.user_attrs)
            else:
                self._begun[name] = trial
        self._end_search_if_spent()

    @property
    def total(self) -> int:
        """Trials of the whole sweep; with `confirm`, at most."""
        return self._agenda.total

    def confirm_by(self, choose: Choose, told: Callable[[int], object] = bool) -> None:
        """When the search has ended, `choose` is asked for what `confirm` leaves open, and then `told` how many trials the
        sweep has."""
        self._agenda.choose, self._agenda.confirms = choose, told

    @property
    def searched(self) -> int:
        """Those of them that search."""
        return self._agenda.searched

    @property
    def members(self) -> int:
        """Those of these that had not ended when the journal was opened."""
        return self.searched - sum(not (found.config or {}).get("confirms") for found in self.ended.values())

    @property
    def attributes(self) -> dict[str, Any]:
        """The study's user attributes."""
        return self._study.user_attrs

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set attributes of the study. Returns when they are on the disk."""
        for name, value in attributes.items():
            self._study.set_user_attr(name, value)
        sync(self._journal)
        self._changed()

    @property
    def why_ended(self) -> str:
        """Why fewer trials were asked for than the spec has; nothing where that is not so."""
        return why_ended(self.spec, self._study)

    @property
    def refused(self) -> int:
        """Suggestions that were beyond the bounds."""
        return self._drafts.refused if self._drafts is not None else 0

    @property
    def by_prior(self) -> int:
        """Trials of this run whose learning rate is the prior's."""
        return self._drafts.by_prior if self._drafts is not None else 0

    def more(self, trials: int) -> str:
        """Let so many more trials search; gives why that cannot be, and nothing where it is done."""
        spent = self._budget.no_more(self.why_ended)
        if not (why := self._agenda.more(trials, spent and f"{spent}, when this sweep has ended")):
            search = self.spec.search.model_copy(update={"trials": self.spec.search.trials + trials})
            self.spec = self.spec.model_copy(update={"search": search})
        return why

    def trained(self, tokens: Mapping[str, int]) -> None:
        """Trials have been trained on so many tokens each, since their first step: those of an earlier run of the sweep."""
        self._budget.trained(tokens)
        self._end_search_if_spent()

    def config(self, trial_id: str) -> dict[str, Any] | None:
        """The whole configuration of a trial that was handed out, or had ended before; None: it has none."""
        if trial_id in self._suggested:
            return dict(self._suggested[trial_id]["config"])
        return self.ended[trial_id].config if trial_id in self.ended else None

    @property
    def left(self) -> int:
        """Trials that are still to be handed out."""
        return len(self._begun) + max(0, self.total - self._agenda.count - len(self._begun))

    @property
    def over(self) -> bool:
        """Have all trials of the sweep ended?"""
        return complete(self.spec, self._study)

    @property
    def begun(self) -> list[str]:
        """Our ids of the trials that have begun and are to go on."""
        return list(self._begun)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial for Tune's `trial_id`, or FINISHED.

        Returns:
            `{"trial_id": ours, "config": its configuration}`, with `reported`, the last step that it has reported, where
            it goes on. None: the search has to end before it is known what is to be confirmed, or more may be asked for.
        """
        ours = self._next()
        while ours is not None and ours != Searcher.FINISHED and self._has_been_had(ours):
            ours = self._next()
        if ours is None or ours == Searcher.FINISHED:
            waits = self.open_ended and any(True for _ in self._trials)
            # if the one that twins wait for fails, they are trained
            return None if waits or self._firsts.awaited else ours
        self._ours[trial_id] = ours
        self._budget.note()
        # whatever has files in the sweep's folder is known to the study, whatever the machine dies of
        sync(self._journal)
        self._changed()
        return self._suggested[ours]

    def _next(self) -> str | None:
        """Our id of the next trial, which is open now; else what `suggest` gives."""
        if ours := self._firsts.next_again(self._trials):
            return ours
        reported = {}
        self._end_search_if_spent()
        if self._begun:
            ours = next(iter(self._begun))
            self._take_up(ours)
            nothing = -1 if self._trials.config(ours).get("warm_start") else 0
            reported = {"reported": self.reported.get(ours, nothing)}
        elif (made := self.steered.next_made()) is not None:
            ours = made
        elif (point := self._agenda.point()) is not None:
            ours = self._ask(self._drafts.propose(point) if self._drafts else spaces.params(self._space, point), {})
        elif self._agenda.to_be_chosen and self._trials.search:
            return None
        elif (repeat := self._agenda.repeat()) is not None:
            best, own = repeat
            name = name_of(best)
            changed = became(self._study.user_attrs, name)
            ours = self._ask(best.params, {REPEATS: {**changed, **own, "confirms": name}})
        else:
            return str(Searcher.FINISHED)
        self._suggested[ours] = {"trial_id": ours, "config": self._trials.config(ours), **reported}
        return ours

    def _end_search_if_spent(self) -> None:
        """Where no more trials are to be asked for that search, though the spec has more, the study is told why."""
        begun = sum(not {REPEATS, CLONES} & trial.user_attrs.keys() for trial in self._begun.values())
        searched = self._agenda.searching + begun
        spent = self._budget.spent() if searched < self._agenda.searched else self._agenda.fewer
        if not (why := self.why_ended or spent):
            return
        self._agenda.end_search(searched)
        if not self.why_ended:
            end_early(self.spec, self._study, why)
            self.ended_early(why)

    def _has_been_had(self, trial_id: str) -> bool:
        """Has another trial had the configuration of this one? Then it ends with that one."""
        first = self._firsts.enter(trial_id, self._suggested[trial_id]["config"])
        if first is None:
            return False
        if first in self._settled:
            twin = self._end_as(trial_id, first, self._settled[first])
            sync(self._journal)
            self.twin(twin)
        else:
            self._firsts.follow(trial_id, first)
        return True

    def _end_as(self, trial_id: str, first: str, came_to: Outcome) -> Twin:
        reason = reason_of(first, came_to.reason)
        if came_to.status in SETTLED:
            self._trials.report_as(trial_id, first, came_to.losses, SAME_AS)
        self.finish(trial_id, came_to.status, came_to.value, reason)
        return Twin(self._suggested[trial_id], first, came_to.status, reason)

    def _ask(self, params: dict[str, Any], attributes: dict[str, Any]) -> str:
        ours = self._trials.ask(params, attributes)
        self._agenda.counted(attributes)
        return ours

    def _take_up(self, trial_id: str) -> None:
        """Open a trial of the journal again."""
        frozen = self._begun.pop(trial_id)
        self._trials.take_up(trial_id, frozen, self.evaluations.get(trial_id, ()))
        self._agenda.counted(frozen.user_attrs)

    def finish_resumed(self, trial_id: str, status: Status, value: float | None, reason: str = "") -> dict[str, Any]:
        """End a trial out of `begun` that needs no more training.

        Returns:
            Its configuration.
        """
        self._take_up(trial_id)
        config = self._trials.config(trial_id)
        self._firsts.enter(trial_id, config)
        self.finish(trial_id, status, value, reason)
        return config

    def heard(self, wave: Wave) -> None:
        """These trials, which search, were evaluated together. Their results follow, one by one."""
        if self._drafts is not None:
            self._drafts.heard(wave)

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Report a result to the study: finite ones, each step once."""
        ours = self._ours.get(trial_id, "")
        if ours not in self._trials:
            return
        if (tokens := result.get("tokens")) is not None:
            self._budget.trained({ours: tokens})
        if (step := result.get(STEP)) is not None:
            self._trials.report(ours, int(step), self.objective.of(result))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tune is done with a trial. How it ended is for `finish` to say: Tune cannot tell pruned from interrupted."""
        self.on_trial_result(trial_id, result or {})  # the one that the scheduler stopped at comes here alone

    def finish(self, trial_id: str, status: Status, value: float | None, reason: str = "") -> list[Twin]:
        """Tell the study how a trial ended. The first call counts: later ones for the same trial are dropped.

        Args:
            trial_id: Ours.
            value: The final result of a completed trial; with `train.keep: best` the study is told its best. One that is
                not finite is told FAIL. A pruned trial's is the last that was reported.
            reason: Kept as a user attribute beside the status.

        Returns:
            The trials that have ended with it, since they have its configuration.

        Raises:
            KeyError: no such trial was ever handed out.
        """
        if value is not None and self._keep_best:
            value = min([value, *self._trials.values_of(trial_id)])
        ended = self._trials.end(trial_id, status, value, reason)
        if ended is None:
            return []
        came_to, told = ended
        if told is not None:
            self._budget.ended(told)
        self._budget.note()
        waiting = [] if status == "failed" else self._firsts.followers(trial_id)
        if status in SETTLED:
            self._settled[trial_id] = came_to
        else:
            self._firsts.forget(trial_id)
        twins = [self._end_as(twin, trial_id, came_to) for twin in waiting if twin in self._trials]
        self._changed()
        return twins

    def unfinished(self) -> list[dict[str, Any]]:
        """What `suggest` gave for the trials that have not ended, oldest first."""
        return [self._suggested[trial_id] for trial_id in self._trials]

    def close(self) -> None:
        """Nothing stays RUNNING: what has not ended is interrupted."""
        for trial_id in self._trials:
            self.finish(trial_id, "interrupted", None, ABANDONED)
        sync(self._journal)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a new searcher over the same journal goes on."""
