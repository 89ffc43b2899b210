"""Scoring that stops when it knows: which trials lose at a rung, seen on the first rows of the eval split already.

A rung asks one thing: are there as many better trials as stop this one? All trials are scored on the same rows in the same
random order, block by block. After each block a trial is held, row by row, against every other of its rung; one that is
worse than so many of them beyond doubt is scored no further. Whoever goes on is scored on all rows.

A gap is beyond doubt where Student's t of the paired differences, with the correction for a finite population, says so at
`ERROR` shared out over the blocks (Bonferroni). What it is a statement on is the order of the rows alone, so it holds
whatever the rows are: the chance that all rows would put this pair the other way round is at most `ERROR`, over all looks
at it. (W. G. Cochran, Sampling Techniques, 1977, sections 2.5 and 2.8.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sweeps.search.rules import Halving, HyperBand, RungRule, Wave, make_rule

if TYPE_CHECKING:
    from bitlora.files.record import Metrics
    from sweeps.spec.keys.scheduler import SchedulerConfig

ERROR: Final = 0.05
"""The chance that a pair of trials is the other way round on all rows, of one that was called clear."""
FEWEST: Final = 8
"""Rows of a block: fewer differences say nothing of how they vary."""
BLOCKS: Final = 8
"""At most."""
Losses = npt.NDArray[np.float64]
"""[..., rows] nats, summed over each row's completion tokens, in the order of scoring."""


class RowLoss(float):
    """An eval loss with what each row came to. Of two, that is the lower which is lower over the rows that both have;
    beside a plain number it is one itself."""

    rows: tuple[float, ...]
    sums: tuple[float, ...]
    """Over the first row, the first two, …"""

    def __new__(cls, loss: float, rows: tuple[float, ...]) -> RowLoss:
        """
        Args:
            loss: nats per completion token over `rows`.
            rows: nats, of the first rows in the order of scoring.
        """
        made = super().__new__(cls, loss)
        made.rows, made.sums = rows, tuple(accumulate(rows))
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return RowLoss, (float(self), self.rows)

    def _over_common_rows(self, other: float) -> tuple[float, float]:
        if not isinstance(other, RowLoss):
            return float(self), float(other)
        last = min(len(self.rows), len(other.rows)) - 1
        return self.sums[last], other.sums[last]

    def __lt__(self, other: float) -> bool:
        own, theirs = self._over_common_rows(other)
        return own < theirs

    def __le__(self, other: float) -> bool:
        own, theirs = self._over_common_rows(other)
        return own <= theirs

    def __gt__(self, other: float) -> bool:
        own, theirs = self._over_common_rows(other)
        return own > theirs

    def __ge__(self, other: float) -> bool:
        own, theirs = self._over_common_rows(other)
        return own >= theirs


def scoring_order(rows: int) -> npt.NDArray[np.int64]:
    """[rows] the order in which so many rows are scored, in every sweep and for every trial."""
    return np.random.default_rng(0).permutation(rows)


def blocks(rows: int) -> list[range]:
    """So many rows in at most `BLOCKS` blocks of at least `FEWEST`, as even as they come."""
    count = max(1, min(BLOCKS, rows // FEWEST))
    ends = [rows * number // count for number in range(count + 1)]
    return [range(start, stop) for start, stop in pairwise(ends)]


@cache
def _doubt(rows: int, looks: int) -> float:
    from scipy import special

    return float(special.stdtrit(rows - 1, 1 - ERROR / looks))


def clearly_worse(own: Losses, other: Losses, rows: int, looks: int) -> npt.NDArray[np.bool_]:
    """Is `own` worse than `other` beyond doubt?

    Args:
        own, other: [..., n] on the same n rows, out of `rows`.
        looks: how often each pair is looked at.
    """
    count = own.shape[-1]
    with np.errstate(invalid="ignore"):  # of what is not finite nothing is beyond doubt
        gaps = own - other
        error = gaps.std(axis=-1, ddof=1) * np.sqrt((1 - count / rows) / count)
        mean = gaps.mean(axis=-1)
        return np.asarray((mean > 0) & (mean > _doubt(count, looks) * error))


def loss_of(line: Metrics) -> float:
    """What a trial came to, as rungs take it."""
    return line.eval_loss if line.row_losses is None else RowLoss(line.eval_loss, tuple(line.row_losses))


class Rungs:
    """The rungs of a sweep as a pack knows them: what every row came to, of all trials that stand there.

    Args:
        rule: what the sweep's scheduler goes by.
        rows: of the eval split.
    """

    def __init__(self, rule: RungRule, rows: int) -> None:
        self._rule, self._rows = rule, rows
        self.blocks = blocks(rows)
        self._losses: dict[tuple[int, int], dict[str, Losses]] = {}
        """Bracket and rung -> trial -> its losses at the first evaluation there."""

    def heard(self, wave: Wave) -> None:
        """These were evaluated, here or in another pack. Said more than once, the first word counts."""
        for trial_id, (step, loss) in wave.items():
            rung = self._rule.rung(trial_id, step)
            if rung is not None and isinstance(loss, RowLoss):
                self._losses.setdefault(rung, {}).setdefault(trial_id, np.array(loss.rows))

    def judges(self, trial_id: str, step: int) -> bool:
        """May a trial be stopped for its evaluation at `step`?"""
        rung = self._rule.rung(trial_id, step)
        return rung is not None and trial_id not in self._losses.get(rung, {})

    def lost(self, wave: Mapping[str, tuple[int, Losses]]) -> set[str]:
        """Of trials that are scored together, those that are stopped whatever the other rows say.

        Args:
            wave: all that are judged in this wave: step, and losses on the rows so far; of those that have lost already,
                what they were scored on.
        """
        rungs: dict[tuple[int, int], dict[str, Losses]] = {}
        for trial_id, (step, losses) in wave.items():
            if (rung := self._rule.rung(trial_id, step)) is not None:
                rungs.setdefault(rung, dict(self._losses.get(rung, {})))[trial_id] = losses
        return {
            trial_id
            for rung in rungs.values()
            for trial_id in wave.keys() & rung.keys()
            if self._better(trial_id, rung) >= self._rule.going_on(len(rung))
        }

    def _better(self, trial_id: str, rung: Mapping[str, Losses]) -> int:
        """How many of a rung are better than this trial beyond doubt."""
        own = rung[trial_id]
        by_rows: dict[int, list[Losses]] = {}
        for name, other in rung.items():
            if name != trial_id:
                by_rows.setdefault(min(len(own), len(other)), []).append(other)
        looks = max(1, len(self.blocks) - 1)
        return sum(
            int(clearly_worse(own[:common], np.stack([other[:common] for other in others]), self._rows, looks).sum())
            for common, others in by_rows.items()
        )


def make_rungs(
    asked: SchedulerConfig, budget: int, rows: int, past: Mapping[str, Sequence[tuple[int, float]]]
) -> Rungs | None:
    """The rungs of a sweep that scores until it knows; None: it scores all rows.

    Args:
        budget: steps of a full trial.
        rows: of the eval split.
        past: what trials came to in an earlier run of the sweep: step and loss, by trial.
    """
    rule = make_rule(asked, budget)
    if asked.scoring == "all" or not isinstance(rule, Halving | HyperBand):
        return None
    rungs = Rungs(rule, rows)
    for trial_id, curve in past.items():
        for evaluation in curve:
            rungs.heard({trial_id: evaluation})
    return rungs
