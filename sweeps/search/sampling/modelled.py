"""`sampler: gp`: configurations chosen by what the curves of all trials say of where they end.

The next one is where the improvement to be expected on the best that has completed is greatest (Jones, Schonlau and Welch,
1998). Trials that have not ended are taken to come to what is expected of them, so that those that train at the same time
are unlike each other (the kriging believer of Ginsbourger, Le Riche and Carraro, 2010). Failed ones are too: what failed is
not tried again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from optuna.trial import FixedTrial, TrialState

from sweeps.search.metric import name_of, values_in_search
from sweeps.search.sampling.candidates import Candidates, Chosen
from sweeps.search.sampling.encoding import Encoding
from sweeps.search.sampling.prior import RatePrior
from sweeps.search.sampling.process import CurveProcess, Floats, Places
from sweeps.search.sampling.seen import DIVERGED, SeenStudy
from sweeps.spec import space as spaces

MOST: Final = 400
"""Evaluations that are learned of, which takes their number to the third power. Of more, the last of each trial; and of
more of those, the lowest."""
DRAWN: Final = 400
"""Configurations that are looked at where there is no end of them; then `NEAR` around each of the `BEST` of them."""
BEST: Final = 5
NEAR: Final = 30
WIDTHS: Final = (0.1, 0.03, 0.01)
"""How near, time by time, as a share of each range."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A trial of which something is known, or that trains."""

    chosen: Chosen
    curve: dict[int, float]
    """What it had come to at which step."""
    open: bool
    """Taken to come to what is expected of it."""
    diverged: bool


class CurveModel:
    """Chooses configurations.

    Args:
        seen: the study, as samplers see it.
        steps: of a full trial.
        prior: what is known of learning rates.
    """

    def __init__(
        self, space: spaces.Space, seen: SeenStudy, steps: int, prior: RatePrior | None, chance: Random
    ) -> None:
        self._space, self._seen, self._steps = space, seen, steps
        self._candidates = Candidates(space, prior, chance)
        self._encoding = Encoding(space, prior)
        self._process = CurveProcess(self._encoding.lengths, self._encoding.categories)
        self._learned: npt.NDArray[np.float64] = np.empty(0)
        """The losses that the process has its length scales of."""
        self._heard: dict[str, dict[int, float]] = {}

    def heard(self, wave: Mapping[str, tuple[int, float]]) -> None:
        """These trials were evaluated together; the study hears of them one by one."""
        for trial_id, (step, loss) in wave.items():
            self._heard.setdefault(trial_id, {})[step] = loss

    @property
    def begun(self) -> int:
        """Trials that have begun, those of earlier sweeps among them."""
        return len(self._known())

    def propose(self, planned: Mapping[str, Any], fits: Callable[[Chosen], bool]) -> Chosen | None:
        """The configuration to be tried next; None while no trial was evaluated, and where there is none that is new.

        Args:
            planned: the values that some axes are to have.
        """
        known = self._known()
        if not any(one.curve for one in known):
            return None
        best = self._learn(known)

        def promising(some: Sequence[Chosen], count: int) -> list[Chosen]:
            new = [one for one in some if fits(one) and not any(one == other.chosen for other in known)]
            if not new:
                return []
            mean, deviation = self._process.tell(self._ends(new))
            ranks = np.argsort(-_improvement(best, mean, deviation), kind="stable")
            return [new[at] for at in ranks[:count]]

        candidates = self._candidates
        if candidates.all is not None:
            matching = [one for one in candidates.all if planned.items() <= one.items()]
            return next(iter(promising(matching, 1)), None)
        found = promising([candidates.drawn(planned) for _ in range(DRAWN)], BEST)
        for width in WIDTHS:
            around = [candidates.near(one, width, planned) for one in found for _ in range(NEAR)]
            found = promising([*found, *around], BEST)
        return found[0] if found else None

    def _known(self) -> list[_Known]:
        """The trials that count. Of one that was given more steps than a full trial has, what it came to within those."""
        known = []
        for trial in self._seen.trials():
            begun, diverged = not trial.state.is_finished(), trial.user_attrs.get("status") == DIVERGED
            failed = trial.state == TrialState.FAIL
            curve = {step: loss for step, loss in trial.intermediate_values.items() if step < self._steps}
            if begun:
                heard = self._heard.get(name_of(trial), {})
                curve |= {step: loss for step, loss in heard.items() if step <= self._steps}
            elif trial.state == TrialState.COMPLETE and (values := values_in_search(trial)) is not None:
                curve[self._steps] = values[0]
            if not (curve or begun or diverged or failed):
                continue
            if len(trial.params) >= len(self._space):
                chosen = spaces.suggest(FixedTrial(trial.params), self._space)
                known.append(_Known(chosen, curve, failed or (begun and self._steps not in curve), diverged))
        return known

    def _learn(self, known: Sequence[_Known]) -> float:
        """Fit the process; gives the loss that is to be improved on, as the process has it."""
        curves = [(number, *one) for number, trial in enumerate(known) for one in sorted(trial.curve.items())]
        if len(curves) > MOST:
            last = {number: (step, loss) for number, step, loss in curves}
            curves = sorted(((number, *one) for number, one in last.items()), key=lambda one: one[2])[:MOST]
        worst = max(loss for *_, loss in curves)
        curves += [(number, self._steps, worst) for number, trial in enumerate(known) if trial.diverged]
        numbers, steps, values = (np.array(column) for column in zip(*curves, strict=True))
        losses = np.log(values) if values.min() > 0 else values.astype(np.float64)
        seen = self._places([known[number].chosen for number in numbers], 1 - steps / self._steps, numbers)
        self._process.fit(seen, losses, anew=not np.array_equal(losses, self._learned))
        self._learned = losses
        expected, _ = self._process.tell(self._ends([one.chosen for one in known], range(len(known))))
        ended = losses[steps == self._steps]
        if opened := [number for number, one in enumerate(known) if one.open]:
            running = self._ends([known[number].chosen for number in opened], opened)
            both = Places(*(np.concatenate(pair) for pair in zip(seen, running, strict=True)))
            self._process.fit(both, np.concatenate([losses, expected[opened]]), anew=False)
            ended = np.concatenate([ended, expected[opened]])
        return float(ended.min() if len(ended) else expected.min())

    def _places(self, chosen: Sequence[Chosen], left: Floats, trials: npt.NDArray[np.int64]) -> Places:
        return Places(*self._encoding.points(chosen), left, trials)

    def _ends(self, chosen: Sequence[Chosen], trials: Sequence[int] | None = None) -> Places:
        """The ends of trials, known ones by their numbers."""
        numbers = -1 - np.arange(len(chosen)) if trials is None else np.array(trials)
        return self._places(chosen, np.zeros(len(chosen)), numbers)


def _improvement(best: float, mean: Floats, deviation: Floats) -> Floats:
    """[N] by how much normally distributed losses are expected to be below `best`."""
    from scipy.special import ndtr

    below = (best - mean) / deviation
    density = np.exp(-(below**2) / 2) / np.sqrt(2 * np.pi)
    improvement: Floats = deviation * (below * ndtr(below) + density)
    return improvement
