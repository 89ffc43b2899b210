"""What every eval row comes to at a rung, of the configurations of `curves.py`, recorded once; and what a search makes of
them that scores until it knows who is stopped, against one that scores all rows.

    nice -n 10 env OMP_NUM_THREADS=1 python tests/benchmarks/search/rows.py --record
    PYTHONPATH=tests/benchmarks/search python tests/benchmarks/search/rows.py [--seeds 200]

Held against each other are decisions: each trial of a search that begins them in an order of its own, four at a time, is
judged at the rung by those that were there until then. The other tables are the full budgets of `reports/examples`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, Final

import numpy as np
from curves import AXES, DATA, PACK, points

from sweeps.search.rules import Halving
from sweeps.search.sequential import RowLoss, Rungs, scoring_order

ROWS: Final = DATA / "rung_rows.csv"
"""A line for each configuration: its axes, and what each row of the eval split comes to at `STEP`, in nats, summed over the
row's completion tokens."""
RECORDED: Final = ("train.eval_every=6", "train.batch_size=1", "data.max_length=48")
"""The quickstart's, but for this: as of the curves, with all of the quickstart's eval rows."""
STEP: Final = 6
EVERY: Final = 3
"""One of so many of the curves' configurations, so that this is two minutes on one core."""
EXAMPLES: Final = Path(__file__).parents[3] / "reports/examples"
AT_ONCE: Final = 4


def record(path: Path) -> None:
    """Train every configuration to the rung, and write what its rows come to."""
    import torch

    from bitlora.base.load import resolve_dtype
    from bitlora.data.batches import batch_rows
    from bitlora.engine.batch import Batch
    from bitlora.engine.engine import Engine
    from bitlora.forward.inject import load_base
    from sweeps.driver.prepare import prepare
    from sweeps.spec.spec import load_spec

    spec = load_spec(Path("sweeps/quickstart.yaml"), [*RECORDED])
    prepared = prepare(spec)
    train, scored = prepared.dataset.train, Batch.of(prepared.dataset.eval)
    device = torch.device("cpu")
    engine = Engine(load_base(spec.base, resolve_dtype(spec.train.dtype, device), device), PACK)
    every = points()[::EVERY]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*AXES, "row_losses"])
        for start in range(0, len(every), PACK):
            trials = {
                engine.attach(c := prepared.trial(spec, point)): (point, c) for point in every[start : start + PACK]
            }
            for step in range(STEP):
                rows = {slot: batch_rows(len(train), c.batch_size, c.seed, step) for slot, (_, c) in trials.items()}
                engine.step({slot: Batch.of(train.take(chosen)) for slot, chosen in rows.items()})
            for slot, result in engine.evaluate([*trials], scored).items():
                writer.writerow([*trials[slot][0].values(), " ".join(f"{loss:.4f}" for loss in result.losses)])
                engine.detach(slot)
            file.flush()
            print(f"{start + len(trials)} of {len(every)}", flush=True)


def recorded() -> np.ndarray[Any, Any]:
    """[configurations, rows] of the table."""
    with ROWS.open(newline="") as file:
        return np.array([[float(loss) for loss in line["row_losses"].split()] for line in csv.DictReader(file)])


def completed(name: str) -> np.ndarray[Any, Any]:
    """[trials, rows] of the completed trials of an example that were scored on the eval split."""
    import pandas as pd

    from bitlora.files.record import read_record

    found = []
    for folder in sorted((EXAMPLES / name / "trials").iterdir()):
        trial = read_record(folder)
        if trial.status == "completed" and not trial.config.get("confirms"):
            found.append(pd.read_parquet(folder / "eval.parquet").sort_values("example_id")["loss"].to_numpy())
    return np.array(found)


def decisions(losses: np.ndarray[Any, Any], reduction: int, seed: int) -> tuple[np.ndarray[Any, Any], float]:
    """One search.

    Args:
        losses: [trials, rows] nats, of a row.

    Returns:
        [trials] Is each decided as on all rows? And the share of rows that were scored.
    """
    count, rows = losses.shape
    chance = np.random.default_rng(seed)
    losses = losses[chance.permutation(count)][:, chance.permutation(rows)[scoring_order(rows)]]
    every, some = Halving(1, reduction, 2), Halving(1, reduction, 2)
    rungs = Rungs(some, rows)
    same, scored = [], 0
    for start in range(0, count, AT_ONCE):
        wave = {f"t{n:04d}": losses[n] for n in range(start, min(start + AT_ONCE, count))}
        going_on, parts = set(wave), {}
        for block in rungs.blocks:
            parts |= {trial: wave[trial][: block.stop] for trial in going_on}
            if block.stop < rows:
                going_on -= rungs.lost({trial: (1, part) for trial, part in parts.items()})
        scored += sum(map(len, parts.values()))
        rungs.heard({trial: (1, RowLoss(float(part.mean()), tuple(part))) for trial, part in parts.items()})
        for trial, part in parts.items():
            every.enter(trial, 1, float(wave[trial].sum()))
            some.enter(trial, 1, RowLoss(float(part.mean()), tuple(part)))
        same += [every.goes_on(trial, 1) == some.goes_on(trial, 1) for trial in wave]
    return np.array(same), scored / losses.size


def table() -> None:
    known = {"at the rung": recorded(), **{f"{name}, at the end": completed(name) for name in ("lowbit", "quickstart")}}
    print(f"{'':<24} {'trials':>6} {'rows':>5} {'one in':>6} {'decided alike':>14} {'rows scored':>12}")
    for name, losses in known.items():
        for reduction in (2, 3, 4):
            runs = [decisions(losses, reduction, seed) for seed in range(given.seeds)]
            same, share = np.mean([run[0] for run in runs]), np.mean([run[1] for run in runs])
            trials, rows = losses.shape
            print(f"{name:<24} {trials:>6} {rows:>5} {reduction:>6} {same:>14.1%} {share:>12.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", action="store_true", help="make the table of rows anew")
    parser.add_argument("--seeds", type=int, default=200)
    given = parser.parse_args()
    record(ROWS) if given.record else table()
