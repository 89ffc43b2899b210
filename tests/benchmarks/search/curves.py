"""Learning curves of 96 configurations, recorded once: what searches are tried on without training anything.

    nice -n 10 env OMP_NUM_THREADS=1 python tests/benchmarks/search/curves.py [--packs 1] [--set KEY=VALUE]

The quickstart's base, data and recipe, but for `RECORDED`; every quantizer, rank, alpha and learning rate of `AXES` with
every other, eight trials to a pack. What a trial comes to depends on its configuration alone, so who shares its pack does
not matter. A pack that is in the table already is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import time
from itertools import product
from pathlib import Path
from typing import Any, Final

DATA: Final = Path(__file__).parents[1] / "data"
CURVES: Final = DATA / "curves.csv"
"""A line for each evaluation: the configuration, step, tokens so far, eval loss in nats per completion token, and at the
last step what each row of the eval split comes to, in nats, summed over the row's completion tokens."""
AXES: Final[dict[str, list[Any]]] = {
    "quantizer": ["none", "binary", "ternary"],
    "rank": [8, 32],
    "alpha": [8, 32],
    "learning_rate": [float(f"{1e-4 * 50 ** (step / 7):.3g}") for step in range(8)],
}
"""As in the quickstart, whose learning rates are a range: here eight of it, the ends among them."""
RECORDED: Final = ("train.eval_every=3", "train.batch_size=1", "data.max_length=48", "data.eval_rows=8")
"""Evaluations at a quarter of the budget already; about a quarter of the quickstart's tokens, and a sixth of its eval rows,
so that all of it is minutes on one core."""
FIELDS: Final = (*AXES, "step", "tokens", "eval_loss", "row_losses")
PACK: Final = 8


def points() -> list[dict[str, Any]]:
    """All configurations, of a pack those that differ in the learning rate alone."""
    return [dict(zip(AXES, values, strict=True)) for values in product(*AXES.values())]


def recorded(path: Path) -> set[tuple[str, ...]]:
    """The configurations that are in the table."""
    if not path.exists():
        return set()
    with path.open(newline="") as file:
        return {tuple(row[axis] for axis in AXES) for row in csv.DictReader(file) if row["row_losses"]}


def record(overrides: list[str], packs: int | None, path: Path) -> None:
    """Train what is missing, and append it pack by pack."""
    import torch

    from bitlora.base.load import resolve_dtype
    from bitlora.data.batches import batch_rows
    from bitlora.engine.batch import Batch
    from bitlora.engine.engine import Engine
    from bitlora.forward.inject import load_base
    from sweeps.driver.prepare import prepare
    from sweeps.spec.spec import load_spec

    spec = load_spec(Path("sweeps/quickstart.yaml"), [*RECORDED, *overrides])
    prepared = prepare(spec)
    train, scored = prepared.dataset.train, Batch.of(prepared.dataset.eval)
    device = torch.device("cpu")
    dtype = resolve_dtype(spec.train.dtype, device)
    engine = Engine(load_base(spec.base, dtype, device), PACK)
    print(f"{dtype}, {torch.get_num_threads()} threads, {len(prepared.dataset.eval)} rows to score")
    done = recorded(path)
    missing = [point for point in points() if tuple(map(str, point.values())) not in done]
    for number, start in enumerate(range(0, len(missing), PACK)):
        chosen = missing[start : start + PACK]
        if number == packs:
            break
        began, stepping = time.monotonic(), 0.0
        trials = {engine.attach(config := prepared.trial(spec, point)): (point, config) for point in chosen}
        tokens, lines = dict.fromkeys(trials, 0), []
        for step in range(config.steps):
            before = time.monotonic()
            rows = batch_rows(len(train), config.batch_size, config.seed, step)
            batches = {slot: Batch.of(train.take(rows)) for slot in trials}
            for slot, stats in engine.step(batches).items():
                tokens[slot] += stats.tokens
            stepping += time.monotonic() - before
            if (step + 1) % config.eval_every and step + 1 < config.steps:
                continue
            for slot, result in engine.evaluate([*trials], scored).items():
                last = " ".join(f"{loss:.4f}" for loss in result.losses) if step + 1 == config.steps else ""
                about = {"step": step + 1, "tokens": tokens[slot], "eval_loss": f"{result.loss:.6f}"}
                lines.append({**trials[slot][0], **about, "row_losses": last})
        for slot in trials:
            engine.detach(slot)
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerows(sorted(lines, key=lambda line: [*map(str, line.values())]))
        took = time.monotonic() - began
        print(f"pack {number + 1}: {took:.1f} s, of which {stepping:.1f} s steps", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--packs", type=int, help="at most so many packs of eight")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="as of `bitlora sweep`")
    parser.add_argument("--csv", type=Path, default=CURVES)
    given = parser.parse_args()
    record(given.overrides, given.packs, given.csv)
