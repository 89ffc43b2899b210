"""How what a verdict goes by is said: the loss, or the metric that the sweep was searched by."""

from __future__ import annotations

import math
from dataclasses import dataclass

from reports.document.cells import gap, loss, percent
from reports.document.document import plain
from reports.load.measured import SweepMetric
from reports.statistics.comparable import Row
from reports.statistics.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Wording:
    """How the values of configurations, and gaps between them, are said. A metric's are turned, so that lower is better."""

    metric: SweepMetric | None
    """None: the loss."""
    on: str
    """What it is over: `test` or `eval`, the split; else the name of an eval set."""

    @property
    def lowest(self) -> str:
        """What the best has, where more is not known."""
        return "the lowest loss" if self.metric is None else "the best that was seen"

    @property
    def unit(self) -> str:
        """Of a gap, with a space before it."""
        return " nats" if self.metric is None or self.metric.logarithmic else ""

    @property
    def beyond(self) -> str:
        """On which side of another the better one is."""
        return "above" if self.metric is not None and self.metric.higher else "below"

    @property
    def short(self) -> str:
        """Of what, in a word or two, where there is no room for more."""
        return f"{self.on} {'loss' if self.metric is None else plain(self.metric.name, 30)}"

    def value(self, row: Row) -> float:
        """That of a configuration, as it was measured."""
        return float(row["loss"]) if self.metric is None else self.metric.shown(row["loss"])

    def shown(self, row: Row) -> str:
        """The same as it is printed, with the standard error over seeds where it has one."""
        return loss(self.value(row), self._error(row))

    def held(self, row: Row) -> str:
        """What a configuration has."""
        seeds = ""
        if math.isfinite(self._error(row)):
            seeds = f" (mean ± standard error over {row['seeds']} seeds)"
        if self.metric is not None:
            return f"{self.shown(row)}{seeds}"
        which = "a test loss" if self.on == "test" else "an eval loss"
        return f"{which} of {self.shown(row)} nats per completion token{seeds}"

    def apart(self, of: Verdict, behind: float, whose: bool = True) -> str:
        """By how much the best of a verdict is better than another.

        Args:
            whose: say of whose loss a per cent is.
        """
        share = of.percent(behind) if self.metric is None else None
        if not whose and share is not None:
            return f"{percent(share)} {self.beyond}"
        base = "its" if of.base is of.best[0] else "full precision's"
        of_base = "" if share is None else f" ({percent(share)} of {base} loss)"
        return f"{gap(behind)}{self.unit}{of_base} {self.beyond}"

    def _error(self, row: Row) -> float:
        """NaN also where the value is e to what has the error."""
        if self.metric is not None and self.metric.logarithmic:
            return math.nan
        return float(row["error"])
