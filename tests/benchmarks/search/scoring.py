"""How a search that scores until it knows who is stopped decides, against one that scores all rows, on the rows of sweeps
that were recorded.

    PYTHONPATH=tests/benchmarks/search python tests/benchmarks/search/scoring.py [--seeds 200]

The rows are those of the completed trials of `reports/examples`, which nobody stopped: at full budget they are closer to
each other than at a rung. Each search takes the trials and the rows in an order of its own, four trials at a time, and
judges each by those that were there until then.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import numpy as np

from sweeps.search.rules import Halving
from sweeps.search.rungs.sequential import RowLoss, Rungs, scoring_order

EXAMPLES: Final = Path(__file__).parents[3] / "reports/examples"
AT_ONCE: Final = 4
SWEEPS: Final = ("lowbit", "full-precision", "quickstart")


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


def table(seeds: int) -> None:
    print(f"{'':<16} {'trials':>6} {'rows':>5} {'one in':>6} {'decided alike':>14} {'rows scored':>12}")
    for name in SWEEPS:
        losses = completed(name)
        for reduction in (2, 3, 4):
            runs = [decisions(losses, reduction, seed) for seed in range(seeds)]
            same, share = np.mean([run[0] for run in runs]), np.mean([run[1] for run in runs])
            trials, rows = losses.shape
            print(f"{name:<16} {trials:>6} {rows:>5} {reduction:>6} {same:>14.1%} {share:>12.1%}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    table(parser.parse_args().seeds)
