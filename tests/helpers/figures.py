"""Frames for every figure of a report. As a program it prints a hash of each figure's file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from reports.figures import plot_gaps, plots
from reports.figures.style import KNOWN, LIGHT, drawn, svg

NAN = float("nan")
AXES = [("learning_rate", True), ("rank", True), ("dropout", False), ("schedule", False)]


def quality(n: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    names = list(KNOWN)
    frame = pd.DataFrame({"quantizer": [names[i % len(names)] for i in range(n)]})
    frame["adapter_bytes"] = np.geomspace(2e5, 2e7, n).round()
    frame["eval_loss"] = 3.3 + rng.gamma(1.5, 0.05, n) + 0.2 / np.arange(1, n + 1)
    frame["error"] = np.where(np.arange(n) % 3, rng.uniform(0.003, 0.02, n), NAN)
    frame["front"] = frame["eval_loss"] < frame["eval_loss"].cummin().shift(fill_value=9)
    frame["label"] = [f"{name} r{8 * (1 + i % 4)}" for i, name in enumerate(frame["quantizer"])]
    return frame


def curves(trials: int = 9, evals: int = 8) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    statuses = [
        "completed",
        "completed",
        "pruned",
        "completed",
        "diverged",
        "failed",
        "interrupted",
        "unknown",
        "completed",
    ]
    rows = []
    for trial in range(trials):
        status = statuses[trial % len(statuses)]
        final = 3.2 + rng.gamma(1.5, 0.1)
        for at in range(1, (evals if status == "completed" else evals // 2) + 1):
            loss = 4.0**at if status == "diverged" else final + np.exp(-at / 3) + rng.normal(0, 0.005)
            rows.append((f"t{trial:04d}", list(KNOWN)[trial % 3], 25 * at, loss, status))
    frame = pd.DataFrame(rows, columns=["trial_id", "quantizer", "step", "eval_loss", "status"])
    return frame.assign(best=frame["trial_id"] == "t0001")


def bars() -> pd.DataFrame:
    frame = pd.DataFrame({"axis": ["rank", "learning_rate", "alpha"], "importance": [0.2, 0.71, 0.002]})
    return frame.assign(chance=[0.3, 0.4, 0.1], told=[False, True, False])


def trials(n: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"quantizer": [list(KNOWN)[i % 3] for i in range(n)]})
    frame["learning_rate"] = 10 ** rng.uniform(-4.5, -2.3, n)
    frame["rank"] = rng.choice([4, 8, 16, 32], n)
    frame["dropout"] = rng.choice([0.0, 0.05, 0.1], n)
    frame["schedule"] = rng.choice(["cosine", "linear"], n)
    frame["eval_loss"] = 3.3 + 0.3 * (np.log10(frame["learning_rate"]) + 3.2) ** 2 + rng.normal(0, 0.02, n)
    return frame.assign(ranked=rng.random(n) < 0.6)


def gaps() -> pd.DataFrame:
    rows = [
        ("t0011", "none", 0.0, NAN, NAN),
        ("t0010", "ternary", 0.019, -0.004, 0.042),
        ("t0001", "binary", 0.019, 0.003, 0.034),
        ("t0000", "int8", 0.12, NAN, NAN),
    ]
    return pd.DataFrame(rows, columns=["label", "quantizer", "difference", "low", "high"])


def size_gaps() -> pd.DataFrame:
    rows = [
        ("none", 9_769_000, 0.0, NAN, NAN),
        ("int4", 2_443_000, -0.04, -0.3, 0.22),
        ("twn", 978_700, 0.31, 0.05, 0.57),
        ("ternary", 978_700, 0.12, -0.2, 0.44),
        ("absmean", 978_700, 0.9, NAN, NAN),
        ("binary", 612_400, 0.6, 0.4, 0.8),
    ]
    return pd.DataFrame(rows, columns=["quantizer", "adapter_bytes", "percent", "low", "high"])


def budget() -> pd.DataFrame:
    rows = [("completed", 12, 4800, 0), ("pruned", 31, 3410, 8990), ("diverged", 2, 150, 650)]
    return pd.DataFrame(rows, columns=["status", "trials", "steps_run", "steps_saved"])


def slices(frame: pd.DataFrame, look: Any) -> Any:
    return plots.slices(frame, AXES, look)


FIGURES: dict[str, tuple[Callable[..., Any], Callable[[], pd.DataFrame]]] = {
    "quality_size": (plots.quality_size, quality),
    "learning_curves": (plots.learning_curves, curves),
    "importances": (plots.importances, bars),
    "slices": (slices, trials),
    "gaps": (plot_gaps.gaps, gaps),
    "size_gaps": (plot_gaps.size_gaps, size_gaps),
    "budget": (plots.budget, budget),
}


def drawn_points(axes: Any) -> Counter[tuple[float, float]]:
    """The places of the marks that stand in the axes' own coordinates."""
    from matplotlib.collections import PathCollection

    found = [
        c for c in axes.collections if isinstance(c, PathCollection) and c.get_offset_transform() == axes.transData
    ]
    return Counter((float(x), float(y)) for c in found for x, y in c.get_offsets())


def digest(*files: str | bytes) -> str:
    data = b"".join(file.encode() if isinstance(file, str) else file for file in files)
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    crowd = drawn(partial(plots.learning_curves, curves(130)))
    assert crowd is not None
    made = {name: digest(svg(draw(frame(), LIGHT), LIGHT)) for name, (draw, frame) in FIGURES.items()}
    print(json.dumps({**made, "crowd": digest(crowd.light, crowd.dark, crowd.png)}))
