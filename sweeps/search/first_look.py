"""Seeds and rows that `confirm` leaves open: chosen when the search has ended by what it left on disk; before it, what can
be said of that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bitlora.files.baseline import BASE
from bitlora.files.record import CHOSEN, EVAL, TRIALS
from bitlora.files.writing import write_json
from reports.design.first_look import ASSUMED, Asked, Candidate, Choice, choose
from reports.inference.power import FirstLook, cheapest
from reports.load.baseline import read_scores
from reports.load.chosen import ChosenDesign
from reports.load.scores import load_scores, scores_of
from reports.load.sweep import load_sweep
from reports.load.values import finite
from reports.statistics.comparable import comparable, rows
from reports.statistics.full_precision import Margin
from sweeps.search.confirm import Choose, Finalist, most_finalists
from sweeps.search.twins import SAME_AS
from sweeps.spec.keys.confirm import MOST_SEEDS, SEEDS, ConfirmConfig
from sweeps.spec.spec import Spec

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from bitlora.files.storage import Storage


def asked(spec: Spec, test_rows: int, trained: int) -> Asked:
    """What `spec` leaves open, of which there are so many test rows, and trials that are trained on so many."""
    confirm = spec.confirm
    assert confirm is not None
    assert confirm.margin is not None  # a clash of the spec otherwise
    margin = Margin(confirm.margin.share, confirm.margin.of)
    return Asked(margin, confirm.seeds, confirm.rows, MOST_SEEDS, SEEDS, test_rows, trained)


def chooser(
    spec: Spec, storage: Storage, test_rows: int, steps: int, say: Callable[[str], object], fresh: bool = True
) -> Choose:
    """What chooses for a sweep, says what it chose, why, and what it costs, and leaves that in the sweep's folder.

    Args:
        storage: of the sweep's folder, with the trials' scores by the time that it is asked.
        test_rows: that there are.
        steps: of a trial in full.
        fresh: the whole search runs from now on, so that it is known how long it took.
    """
    began = time.monotonic()

    def choose_of(finalists: Sequence[Finalist], searched: Sequence[FrozenTrial]) -> Mapping[str, int]:
        batch = spec.train.batch_size
        batches = [finalist.params.get("batch_size", batch) for finalist in finalists]
        trained = round(steps * sum(batches) / len(batches))
        taken = [
            max(trial.intermediate_values, default=0) * trial.params.get("batch_size", batch)
            for trial in searched
            if SAME_AS not in trial.user_attrs
        ]
        storage.pull(BASE)
        held = [_candidate(spec, storage, finalist) for finalist in finalists]
        choice = choose(held, asked(spec, test_rows, trained), read_scores(storage.folder / BASE / EVAL))
        for line in choice.words(round(sum(taken)), time.monotonic() - began if fresh else 0.0):
            say(line)
        looked_at = [name for finalist in finalists for name in finalist.scored.values()]
        write_json(storage.folder / CHOSEN, asdict(_as_chosen(choice, looked_at, held)))
        storage.push_soon(CHOSEN)
        return choice.design._asdict()

    return choose_of


def _as_chosen(choice: Choice, looked_at: list[str], held: Sequence[Candidate]) -> ChosenDesign:
    tables = (table for candidate in held for table in candidate.scores.values())
    known = choice.known
    return ChosenDesign(
        seeds=choice.design.seeds,
        rows=choice.design.rows,
        looked_at=looked_at,
        eval_rows=max(map(len, tables), default=0),
        shows=choice.shows,
        least=finite(choice.least),
        apart=None if known is None else finite(known.apart),
        freedom=0 if known is None else known.freedom,
        untold=choice.untold,
    )


def _candidate(spec: Spec, storage: Storage, finalist: Finalist) -> Candidate:
    scores = {}
    for seed, name in finalist.scored.items():
        storage.pull(f"{TRIALS}/{name}", only=(EVAL,))
        if (table := load_scores(storage.folder, name, EVAL)) is not None:
            scores[seed] = table
    return Candidate(str(finalist.params.get("quantizer", spec.adapter.quantizer)), scores)


def planned(spec: Spec, test_rows: int, steps: int) -> list[str]:
    """What can be said of it before the sweep runs, line by line: by what is in its folder, where a search has been there;
    nothing where `confirm` leaves nothing open."""
    confirm = spec.confirm
    if confirm is None or not confirm.open:
        return []
    of = asked(spec, test_rows, steps * spec.train.batch_size)
    if (found := _looked_at(spec, confirm, of)) is not None:
        return found
    lines = [f"confirm: seeds and rows are chosen when the search has ended, {MOST_SEEDS} seeds at most"]
    if confirm.seeds == "auto" and of.margin.of == "loss":
        one = most_finalists(confirm, spec.search.space)
        look = FirstLook(1.0, 1, 0.0, 1.0, ((1 + of.margin.share) * ASSUMED) ** 2)
        least = cheapest([look], of.margin.share, max(2, one), of.possible_seeds, (1, 1), of.cost)
        takes = f"more than {MOST_SEEDS} seeds"
        if least is not None:
            times = least.seeds * one / spec.search.trials
            takes = f"at least {least.seeds} seeds: {least.seeds * one} trials, {times:.2g} times those of the search"
        share = f"{100 * of.margin.share:g} % of the loss"
        lines.append(
            f"before anything is known: where a seed puts two {100 * ASSUMED:g} % apart, {share} takes {takes}"
        )
    return lines


def _looked_at(spec: Spec, confirm: ConfirmConfig, of: Asked) -> list[str] | None:
    """By what the sweep's folder holds of a search; None where there is none."""
    folder = Path(spec.place)
    if not (folder / TRIALS).is_dir():
        return None
    sweep = load_sweep(folder)
    ranked = rows(comparable(sweep).ranked)
    if confirm.axes:
        places: dict[str, int] = {}
        for row in ranked:
            value = str([row.get(f"config.{axis}") for axis in confirm.axes])
            row["taken"] = places[value] = places.get(value, 0) + 1
        ranked = tuple(row for row in ranked if row["taken"] <= confirm.top)
    else:
        ranked = ranked[: confirm.top]
    if not ranked:
        return None
    read = scores_of(sweep, EVAL)
    held = [Candidate(str(row["config.quantizer"]), read(row)) for row in ranked]
    choice = choose(held, of, sweep.bare.eval.scores if sweep.bare is not None else None)
    searched = sweep.trained[sweep.trained["config.confirms"].isna()]
    trained = (searched["steps"].fillna(0) * searched["config.batch_size"].fillna(0)).sum()
    alone = len(searched) == len(sweep.trained)  # else the time is of both
    return choice.words(int(trained), sweep.spent("seconds") if alone else 0.0)
