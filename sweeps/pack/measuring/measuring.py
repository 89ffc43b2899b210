"""What a pack's trials come to on the eval and the test split: scored, measured, written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from bitlora.config.metrics import LOSS
from bitlora.engine.batch import Batch
from bitlora.files import record
from sweeps.pack.measuring.measures import Measured, Measures
from sweeps.pack.measuring.scoring import Judged, Scoring
from sweeps.search.metric import Objective

if TYPE_CHECKING:
    from pathlib import Path

    from bitlora.data.rows import Rows
    from bitlora.data.split import Dataset
    from bitlora.engine.engine import Engine, EvalResult
    from bitlora.files.origin import Origin
    from sweeps.search.rungs.sequential import Rungs

UNMEASURED: Final = Measured()


@dataclass(frozen=True, slots=True)
class Scored:
    """What one slot came to on one split."""

    result: EvalResult
    measured: Measured = UNMEASURED

    @property
    def loss(self) -> float:
        """Nats per completion token."""
        return self.result.loss


class Measuring:
    """Scores the slots of an engine, and measures them.

    Args:
        rungs: by which it is known who is stopped; None: everybody is scored on all rows.
        measures: what is measured beside the loss, on all rows; None: nothing.
        objective: what is searched by.
    """

    def __init__(
        self,
        dataset: Dataset,
        engine: Engine,
        rungs: Rungs | None = None,
        measures: Measures | None = None,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
    ) -> None:
        self._eval, self._test = dataset.eval, dataset.test
        self._scoring = Scoring(engine, dataset.eval, rungs)
        self._engine, self._measures, self._objective = engine, measures, objective
        self._hits = measures is not None and measures.hits
        self.tests = len(dataset.test) > 0
        """Is there a test split?"""
        self.judged, self.heard = self._scoring.judged, self._scoring.heard

    def evaluate(self, slots: Mapping[int, Judged | None]) -> dict[int, Scored]:
        """Score these slots on the eval split, those that are judged on as many rows as it takes, and measure them. Every
        worker must call it."""
        return self._measured(self._scoring.evaluate(slots, self._hits), self._eval, sets=True)

    def test(self, slots: Sequence[int], most: int | None = None) -> dict[int, Scored]:
        """The same on the test split, or on so many of its first rows."""
        if not slots:
            return {}
        rows = self._test.first(most)
        return self._measured(self._engine.evaluate(slots, Batch.of(rows), hits=self._hits), rows, sets=False)

    def _measured(self, results: dict[int, EvalResult], rows: Rows, sets: bool) -> dict[int, Scored]:
        if self._measures is None:
            return {slot: Scored(result) for slot, result in results.items()}
        found = self._measures.measure(self._engine, results, rows, sets=sets)
        return {slot: Scored(result, found[slot]) for slot, result in results.items()}

    def value(self, scored: Scored, judged: Judged | None = None) -> float | None:
        """What is searched by, lower where it is better; None: it is not finite."""
        if judged is not None:
            return self._scoring.by_rows(scored.result)
        return self._objective.of({LOSS: scored.loss, "metrics": scored.measured.values})


def write_scored(
    folder: Path,
    dataset: Dataset,
    scored: Scored,
    test: Scored | None,
    origin: Origin,
    test_rows: int | None = None,
) -> list[str]:
    """Write what a trial was scored with, and what each row adds to its metrics: eval.parquet, test.parquet and a file for
    each metric over an eval set.

    Args:
        test_rows: on so many first rows of the test split it was scored; None: on all.

    Returns:
        The files' names.

    Raises:
        OSError: one cannot be written.
    """
    files, which = [record.EVAL], scored.result.rows
    rows = dataset.eval if which is None else dataset.eval.take(which)
    write_scores(folder / record.EVAL, rows, scored.result, origin, scored.measured.columns)
    if test is not None:
        write_scores(folder / record.TEST, dataset.test.first(test_rows), test.result, origin, test.measured.columns)
        files.append(record.TEST)
    for metric, result in scored.measured.sets.items():
        files.append(record.of_set(metric))
        write_scores(folder / files[-1], dataset.sets[metric], result, origin)
    return files


def write_scores(
    path: Path,
    rows: Rows,
    scored: EvalResult,
    origin: Origin,
    columns: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> None:
    """Write one of those files: what each of `rows` was scored with, and by what."""
    counts = scored.tokens, rows.text_bytes.tolist()
    record.write_scores(path, rows.example_ids, scored.losses, *counts, origin, rows.groups, columns)
