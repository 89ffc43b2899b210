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
from sweeps.search.metric import Objective

if TYPE_CHECKING:
    from pathlib import Path

    from bitlora.data.rows import Rows
    from bitlora.data.split import Dataset
    from bitlora.engine.engine import Engine, EvalResult
    from bitlora.files.origin import Origin

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


class Scoring:
    """Scores the slots of an engine.

    Args:
        measures: what is measured beside the loss; None: nothing.
        objective: what is searched by.
    """

    def __init__(
        self,
        dataset: Dataset,
        engine: Engine,
        measures: Measures | None = None,
        objective: Objective = Objective(),  # noqa: B008 (frozen)
    ) -> None:
        self._rows = {record.EVAL: dataset.eval, record.TEST: dataset.test}
        self._eval = Batch.of(dataset.eval)
        self._engine, self._measures, self._objective = engine, measures, objective
        self.tests = len(dataset.test) > 0
        """Is there a test split?"""

    def score(self, slots: Sequence[int], split: str = record.EVAL, most: int | None = None) -> dict[int, Scored]:
        """Score slots on a split, by its file's name, and measure them: on all of its rows, or on the first so many of the
        test split. Every worker must call it."""
        if not slots:
            return {}
        rows, measures = self._rows[split].first(most), self._measures
        batch = self._eval if split == record.EVAL else Batch.of(rows)
        if measures is None:
            return {slot: Scored(result) for slot, result in self._engine.evaluate(slots, batch).items()}
        results = self._engine.evaluate(slots, batch, measures.hits)
        found = measures.measure(self._engine, results, rows, sets=split == record.EVAL)
        return {slot: Scored(result, found[slot]) for slot, result in results.items()}

    def value(self, scored: Scored) -> float | None:
        """What is searched by, lower where it is better; None: it is not finite."""
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
    files = [record.EVAL]
    write_scores(folder / record.EVAL, dataset.eval, scored.result, origin, scored.measured.columns)
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
