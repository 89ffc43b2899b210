"""A real sweep by two builds, one after the other: how long until a good configuration is completed.

    python tests/benchmarks/search/side_by_side.py OLD NEW [--seeds 3] [--trials 16] [--out DIR]

OLD and NEW are checkouts with environments of their own (`.venv`). Both search the quickstart over the axes of the recorded
curves; OLD by TPE and ASHA, as its quickstart has them, NEW by `gp`, which stops nobody. Good is within 1 % of the lower of
the two best losses. Nothing is kept from one sweep to the next, and who goes first changes from seed to seed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from curves import AXES
from simulator import ARTICLE

GOOD: Final = 1.01
BY_MODEL: Final = ("search.sampler=gp", "scheduler.name=none")
BY_ASHA: Final = ("search.sampler=tpe", "scheduler={name: asha, grace: 6, reduction: 2}", "train.eval_every=6")


def completed(checkout: Path, overrides: tuple[str, ...], out: Path) -> list[tuple[float, float]]:
    """Run the sweep; gives of each trial that completed the seconds until then, and its loss."""
    command = [
        checkout / ".venv/bin/python",
        "-m",
        "sweeps",
        "sweep",
        checkout / "sweeps/quickstart.yaml",
        "--out",
        out,
    ]
    for each in overrides:
        command += ["--set", each]
    began, seen = time.monotonic(), dict[str, tuple[float, float]]()
    with (
        tempfile.TemporaryDirectory() as cache,
        out.with_suffix(".log").open("w") as log,
        subprocess.Popen(
            command, cwd=checkout, env={**os.environ, "BITLORA_CACHE": cache}, stdout=log, stderr=subprocess.STDOUT
        ) as running,
    ):
        while running.poll() is None:
            time.sleep(0.5)
            for file in out.glob("trials/*/record.json"):
                if file.parent.name not in seen:
                    record = json.loads(file.read_text())
                    loss = record["eval_loss"] if record["status"] == "completed" else math.inf
                    seen[file.parent.name] = (time.monotonic() - began, loss)
    if running.returncode:
        raise RuntimeError(f"{out.with_suffix('.log')}: the sweep ended with {running.returncode}")
    return sorted(each for each in seen.values() if each[1] < math.inf)


def until(trials: list[tuple[float, float]], bar: float) -> float:
    """Seconds until one of `trials` was at `bar` or below; inf: none came to that."""
    return min((seconds for seconds, loss in trials if loss <= bar), default=math.inf)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--out", type=Path, help="where the sweeps' folders go; a new one else")
    given = parser.parse_args()
    out = given.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    space = f"search.space={json.dumps(AXES)}", f"search.first={json.dumps([ARTICLE])}"
    ratios = []
    for seed in range(given.seeds):
        shared = (*space, f"search.trials={given.trials}", f"search.seed={seed}")
        builds = [(given.old, (*shared, *BY_ASHA)), (given.new, (*shared, *BY_MODEL))]
        ran = {}
        for number in (0, 1) if seed % 2 else (1, 0):
            checkout, overrides = builds[number]
            ran[number] = completed(checkout.resolve(), overrides, out.resolve() / f"{('old', 'new')[number]}{seed}")
        bar = GOOD * min(loss for trials in ran.values() for _, loss in trials)
        old, new = until(ran[0], bar), until(ran[1], bar)
        known = old if old < math.inf else max(seconds for seconds, _ in ran[0])
        ratios.append(new / known)
        never = "" if old < math.inf else " (its last completed trial: none is good)"
        best = " and ".join(f"{min(loss for _, loss in ran[number]):.4f}" for number in (0, 1))
        print(f"seed {seed}: old {known:.1f} s{never}, new {new:.1f} s, new / old {ratios[-1]:.2f}; best {best}")
    print(f"median of new / old {statistics.median(ratios):.2f}; sweeps in {out}")


if __name__ == "__main__":
    main()
