"""Which trials are stopped before their budget: rules over steps and losses alone, which know no Ray.

A pack evaluates its trials together. So a rule is told of all that were evaluated together, a wave, before it is asked of
any of them: judged one by one as they are told, the first of a wave would meet nobody and pass, however bad it is.
Trials go by our own ids. A loss is what the sweep searches by (`sweeps.search.metric`), turned so that lower is better: by
itself the eval loss, in nats per completion token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from sweeps.spec.keys.scheduler import SchedulerConfig

Wave = Mapping[str, tuple[int, float]]
"""Trials that were evaluated together: our id -> step and loss, which is finite."""
SizeOf = Callable[[str], float]
"""Our id -> bytes of the trial's adapter, where they are an objective beside the loss."""
MEDIAN_OF: Final = 3
"""Other trials that the median rule needs before it stops anybody."""


def plateau(losses: Sequence[float], patience: int | None, step: int, steps: int) -> str:
    """Why a trial that came to these eval losses, oldest first, ends at `step`, short of its budget of `steps`; nothing
    where it does not, as without patience it never does."""
    if patience is None or step >= steps or not losses or len(losses) - losses.index(min(losses)) <= patience:
        return ""
    evaluations = "1 evaluation" if patience == 1 else f"{patience} evaluations in a row"
    return f"no lower eval loss in {evaluations}: it ended at step {step} of {steps}"


def alike(_: str) -> float:
    """All adapters count as of one size."""
    return 0.0


class StoppingRule(Protocol):
    """What a scheduler goes by."""

    def enter(self, trial_id: str, step: int, loss: float) -> None:
        """A trial was evaluated. Said more than once, the first word counts."""

    def goes_on(self, trial_id: str, step: int) -> bool:
        """Does a trial go on after its evaluation at `step`, which has been entered? Each is judged once."""

    def finish(self, trial_id: str, loss: float) -> None:
        """A trial that was told of has ended short of its budget by itself, and came to `loss`: the others are held against
        that where it would have been."""


class RungRule(StoppingRule, Protocol):
    """A rule that judges at rungs, by how many are better there."""

    def rung(self, trial_id: str, step: int) -> tuple[int, int] | None:
        """The bracket and the rung that a trial stands at, or has passed; None: before the first, and at the end."""

    def going_on(self, reached: int) -> int:
        """Of so many that have reached a rung, how many go on: whoever has as many better than itself does not."""


class Halving:
    """Successive halving that waits for nobody, by stopping (ASHA, arXiv 1810.05934): at each rung the best `1 / reduction`
    of all that have reached it go on, the best of them always.

    Where trials are judged as they come, as here, a trial that is stopped is not taken up again when later ones turn out
    worse.

    Args:
        grace: steps to the first rung; each further one is `reduction` times as far.
        budget: steps of a full trial, where nobody is judged any more.
        size: where it counts, another is better than a trial only if its adapter is no larger either.
    """

    def __init__(self, grace: int, reduction: int, budget: int, size: SizeOf = alike) -> None:
        self._reduction, self._budget, self._size = reduction, budget, size
        self._rungs: list[tuple[int, dict[str, float]]] = []
        """Steps, and the losses of those that have reached them."""
        self._reached: dict[str, int] = {}
        """The last rung of each trial."""
        self._judged: set[tuple[str, int]] = set()
        while grace < budget:
            self._rungs.append((grace, {}))
            grace *= reduction

    def _rung(self, step: int) -> int:
        """The last rung that a trial at `step` has passed or stands at; -1: none."""
        return sum(steps <= step for steps, _ in self._rungs) - 1

    def rung(self, trial_id: str, step: int) -> tuple[int, int] | None:
        rung = self._rung(step)
        return (0, rung) if rung >= 0 and step < self._budget else None

    def going_on(self, reached: int) -> int:
        return max(1, reached // self._reduction)

    def enter(self, trial_id: str, step: int, loss: float) -> None:
        rung = self._rung(step)
        if rung > self._reached.get(trial_id, -1):
            self._reached[trial_id] = rung
            self._rungs[rung][1][trial_id] = loss

    def finish(self, trial_id: str, loss: float) -> None:
        for rung in range(self._reached.get(trial_id, -1) + 1, len(self._rungs)):
            self._rungs[rung][1][trial_id] = loss
        self._reached[trial_id] = len(self._rungs) - 1

    def goes_on(self, trial_id: str, step: int) -> bool:
        rung = self._rung(step)
        losses = self._rungs[rung][1] if rung >= 0 and step < self._budget else {}
        if trial_id not in losses or (trial_id, rung) in self._judged:
            return True
        self._judged.add((trial_id, rung))
        own, size = losses[trial_id], self._size(trial_id)
        better = sum(loss < own and self._size(other) <= size for other, loss in losses.items())
        return better < self.going_on(len(losses))


class HyperBand:
    """HyperBand's brackets (arXiv 1603.06560), each of them a `Halving` whose first rung is `reduction` times as far as
    that of the one before; in the last nobody is stopped.

    Trials are dealt to brackets by their numbers, so that a sweep which goes on deals them as before: in each round first
    those of the bracket that stops the soonest, and of each so many as HyperBand gives it.
    """

    def __init__(self, grace: int, reduction: int, budget: int, size: SizeOf = alike) -> None:
        self._brackets = brackets = [Halving(grace, reduction, budget, size)]
        while grace < budget:
            grace *= reduction
            brackets.append(Halving(grace, reduction, budget, size))
        self._round: list[Halving] = []
        for left, bracket in zip(reversed(range(len(brackets))), brackets, strict=True):
            self._round += [bracket] * -(-len(brackets) * reduction**left // (left + 1))

    def bracket(self, trial_id: str) -> Halving:
        """That of a trial, `t0007` the eighth."""
        number = int("".join(filter(str.isdigit, trial_id)) or 0)
        return self._round[number % len(self._round)]

    def rung(self, trial_id: str, step: int) -> tuple[int, int] | None:
        bracket = self.bracket(trial_id)
        rung = bracket.rung(trial_id, step)
        return None if rung is None else (self._brackets.index(bracket), rung[1])

    def going_on(self, reached: int) -> int:
        return self._brackets[0].going_on(reached)

    def enter(self, trial_id: str, step: int, loss: float) -> None:
        self.bracket(trial_id).enter(trial_id, step, loss)

    def finish(self, trial_id: str, loss: float) -> None:
        self.bracket(trial_id).finish(trial_id, loss)

    def goes_on(self, trial_id: str, step: int) -> bool:
        return self.bracket(trial_id).goes_on(trial_id, step)


class MedianRule:
    """The median stopping rule of Google Vizier (KDD 2017): a trial stops where the best that it has come to is worse than
    the median, over the others that have come as far, of the means of their losses up to there.

    Args:
        grace: steps that every trial gets; losses before count in no mean.
    """

    def __init__(self, grace: int) -> None:
        self._grace = grace
        self._curves: dict[str, dict[int, float]] = {}
        self._judged: dict[str, int] = {}
        self._finished: set[str] = set()
        """They count as having come as far as any."""

    def finish(self, trial_id: str, loss: float) -> None:
        self._finished.add(trial_id)

    def enter(self, trial_id: str, step: int, loss: float) -> None:
        self._curves.setdefault(trial_id, {}).setdefault(step, loss)

    def goes_on(self, trial_id: str, step: int) -> bool:
        curve = self._curves.get(trial_id, {})
        if step < self._grace or step not in curve or step <= self._judged.get(trial_id, 0):
            return True
        self._judged[trial_id] = step
        means = [
            fmean(scoped)
            for other, losses in self._curves.items()
            if other != trial_id and (other in self._finished or max(losses) >= step)
            if (scoped := [loss for at, loss in losses.items() if self._grace <= at <= step])
        ]
        best = min(loss for at, loss in curve.items() if at <= step)
        return len(means) < MEDIAN_OF or best <= median(means)


def make_rule(asked: SchedulerConfig, budget: int, size: SizeOf = alike) -> StoppingRule | None:
    """The rule that a spec asks for, of a sweep whose full trials take `budget` steps; None: nobody is stopped."""
    grace = min(asked.grace, budget)
    match asked.name:
        case "asha":
            return Halving(grace, asked.reduction, budget, size)
        case "hyperband" | "bohb":
            return HyperBand(grace, asked.reduction, budget, size)
        case "median":
            return MedianRule(grace)
    return None
