"""What trials were measured by beside their loss, as a sweep's folder has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import ValidationError

from bitlora.config.metrics import HIGHER, LOSS, LOWER, MetricConfig
from bitlora.files.record import EVAL, TEST, TRIALS, of_set
from reports.load.scores import by_seed
from reports.load.sweep import Sweep
from reports.load.values import mapping


@dataclass(frozen=True, slots=True)
class SweepMetric:
    """One of a sweep's metrics."""

    name: str
    config: MetricConfig

    @property
    def higher(self) -> bool:
        """Is more of it better?"""
        return self.config.higher

    @property
    def direction(self) -> str:
        """That in words."""
        return HIGHER if self.higher else LOWER

    @property
    def logarithmic(self) -> bool:
        """It is e to a loss: what is compared, and has an interval, is that loss."""
        return self.config.kind == "perplexity"

    def turned(self, values: pd.Series[float]) -> pd.Series[float]:
        """Values so that lower is better."""
        if self.logarithmic:
            return values.map(np.log)
        return -values if self.higher else values

    def shown(self, turned: float) -> float:
        """The other way round."""
        return float(np.exp(turned)) if self.logarithmic else -turned if self.higher else turned

    def column(self, test: bool) -> str:
        """Of `Sweep.trials`, that has it: an eval set has no test split."""
        return f"{'test_' if self.on_test(test) else ''}metric.{self.name}"

    def on_test(self, test: bool) -> bool:
        """Is it over the test split, where that is asked for?"""
        return test and self.config.set is None

    def read(self, folder: Path, test: bool) -> pd.DataFrame | None:
        """What the examples of a trial in `folder` add to it, as `reports.load.scores` has losses: what is summed as
        `loss`, turned, and what that is divided by as `tokens`. None where there is nothing that can be read."""
        file = of_set(self.name) if self.config.set is not None else TEST if self.on_test(test) else EVAL
        try:
            table = pd.read_parquet(folder / file)
        except (OSError, ValueError):
            return None
        groups = table[["group"]] if "group" in table else pd.DataFrame(index=table.index)
        if self.config.kind == "choice_accuracy":
            return self._questions(table)
        if self.logarithmic:
            return pd.concat([table[["example_id", "loss", "tokens"]], groups], axis=1)
        if self.name not in table:
            return None
        weights = table["tokens"] if self.config.kind == "token_accuracy" else 1.0
        own = pd.DataFrame(
            {"example_id": table["example_id"], "loss": self.turned(table[self.name]), "tokens": weights}
        )
        return pd.concat([own, groups], axis=1)

    def _questions(self, table: pd.DataFrame) -> pd.DataFrame:
        """Of each question whether the right choice, its first, is the likeliest."""
        scores = table["loss"] / (table["tokens"] if self.config.by == "token" else 1)
        right = scores.groupby(table["group"], sort=False).agg(lambda own: float(own.iloc[0] < own.iloc[1:].min()))
        return pd.DataFrame({"example_id": right.index, "loss": -right.to_numpy(), "tokens": 1.0})

    def scores(self, sweep: Sweep, test: bool) -> Any:
        """Reads them of configurations, by seed."""
        return by_seed(sweep, lambda trial: self.read(sweep.folder / TRIALS / trial, test))


def metrics_of(spec: dict[str, Any]) -> tuple[SweepMetric, ...]:
    """The metrics of a sweep.yaml, in its order; without those that nobody could have written there."""
    found = []
    for name, entry in mapping(spec, "metrics").items():
        try:
            config = {"kind": entry} if isinstance(entry, str) else entry
            found.append(SweepMetric(str(name), MetricConfig.model_validate(config)))
        except ValidationError:
            continue
    return tuple(found)


def searched_by(spec: dict[str, Any]) -> str:
    """The name of what the sweep searched by."""
    named = mapping(spec, "search").get("metric")
    return named if isinstance(named, str) else LOSS
