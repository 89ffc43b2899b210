"""What the parts of a recount share: the sweep, the page, and the cells that many tables have."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from printed_page import (
    Cell,
    Page,
    count,
    fixed,
    short,
    size,
)
from sweep_files import Configuration, Gap, Sweep, Trial, edge


class Cells:
    def __init__(self, folder: Path, sweep: Sweep | None = None) -> None:
        self.sweep = sweep or Sweep(folder)
        self.report = folder / "report"
        self.page = Page((self.report / "report.md").read_text(), [trial.id for trial in self.sweep.trials])
        self.of = {trial.id: trial for trial in self.sweep.trials}

    def loss(self, where: str, cell: Cell, configuration: Configuration) -> None:
        value, plus, error = cell.text.partition(" ± ")
        self.page.check(where, Cell(value, cell.start), configuration.loss, fixed(4))
        self.page.holds(
            f"{where}: a standard error if there are seeds", bool(plus) == (configuration.error is not None)
        )
        if plus and configuration.error is not None:
            at = cell.start + len(value) + len(plus)
            self.page.check(f"{where}, standard error", Cell(error, at), configuration.error, fixed(4))

    def interval(self, where: str, cell: Cell, of: Gap | None, unit: float = 1.0, digits: int = 4) -> None:
        match = re.fullmatch(r"(-?[\d.]+) to (-?[\d.]+)( \(tied\))?", cell.text)
        if of is None or match is None:
            self.page.check(where, cell, "–" if of is None else f"{of.low} to {of.high}")
            return
        self.page.check(f"{where}, low end", cell.part(match, 1), unit * of.low, fixed(digits))
        self.page.check(f"{where}, high end", cell.part(match, 2), unit * of.high, fixed(digits))
        self.page.holds(f"{where}: says tied where it holds zero", bool(match[3]) == of.tied)

    def behind(self, where: str, row: dict[str, Cell], best: Configuration, other: Configuration) -> None:
        """The gap to the best and, if it is held against that, its interval."""
        found = self.sweep.gap(other) if other is not best else None
        self.page.check(f"{where}, gap", row["gap to best"], other.loss - best.loss, fixed(4))
        self.interval(f"{where}, interval", row["95 % interval of the gap"], found)

    def gain(self, where: str, row: dict[str, Cell], configuration: Configuration) -> None:
        """The share of the gain that is kept, with its interval where it has one; no such column where none is told."""
        of, there = self.sweep.gain(configuration.split), "gain kept, %" in row
        told = of is not None and not of.untold
        self.page.holds(f"{where}: shares of the gain are {'' if told else 'not '}told", there == told)
        if of is None or not told or not there:
            return
        cell, (share, low, high) = row["gain kept, %"], of.kept(configuration)
        if match := self.page.one(where, cell, r"^(-?[\d.]+)(?: \((-?[\d.]+) to (-?[\d.]+)\))?$"):
            self.page.check(f"{where}, gain kept", cell.part(match, 1), 100 * share, fixed(2))
            self.page.holds(f"{where}: interval of the gain kept", bool(match[2]) == (low is not None))
            if match[2] and low is not None and high is not None:
                self.page.check(f"{where}, gain kept, low end", cell.part(match, 2), 100 * low, fixed(2))
                self.page.check(f"{where}, gain kept, high end", cell.part(match, 3), 100 * high, fixed(2))

    def settings(self, where: str, row: dict[str, Cell], config: dict[str, Any], record: dict[str, Any]) -> None:
        """The columns that show a trial's configuration and size, as far as the table has them."""
        for name, cell in row.items():
            key = name.replace(" ", "_")
            if key in config and name != "steps":
                self.setting(f"{where}, {name}", cell, key, config)
        if "packed size" in row:
            self.page.check(f"{where}, packed size", row["packed size"], record["adapter_bytes"], size)
        if "parameters" in row:
            self.page.check(f"{where}, parameters", row["parameters"], record["adapter_params"], count)
        if "bits per parameter" in row:
            bits = 8 * record["adapter_bytes"] / record["adapter_params"]
            self.page.check(f"{where}, bits per parameter", row["bits per parameter"], bits, fixed(2))

    def pairs(self, where: str, cell: Cell, values: dict[str, Any], holds: Callable[[str, Any], bool] = short) -> None:
        """`name value, name value`: each as it is in `values`, where a value may have words and commas."""
        names = "|".join(re.escape(name.replace("_", " ")) for name in sorted(values, key=len, reverse=True))
        for match in re.finditer(rf"({names}|[^,]+?) ((?:(?!, [a-z]).)+)(?:, |$)", cell.text):
            key = match[1].replace(" ", "_")
            if key not in values:
                key = match[1]
            if key in values:  # `beta1` is a name with a digit
                self.page.claim(cell.start + match.start(1), cell.start + match.end(1))
            self.page.check(f"{where}, {match[1]}", cell.part(match, 2), values.get(key), holds)

    def setting(self, where: str, cell: Cell, key: str, config: dict[str, Any]) -> None:
        """A value, and behind it a word where the table marks edges: the lowest or the highest that was searched."""
        value, _, mark = cell.text.partition(" (")
        self.page.check(where, Cell(value, cell.start), config[key], short)
        if where.startswith(("confirmed", "quantizers")) and "unranked" not in where:
            right = edge(key, config, self.sweep.spec)
            self.page.holds(f"{where}: marked {mark.rstrip(')')!r}, should be {right!r}", mark.rstrip(")") == right)

    def saved(self, trials: list[Trial]) -> int:
        """Steps that stopping saved: what the stopped had left of their budget."""
        return sum(t.config["steps"] - t.record["steps"] for t in trials if t.status == "pruned")

    @property
    def stopped(self) -> list[Trial]:
        """The furthest first, and of those the best."""
        those = [trial for trial in self.sweep.trained if trial.status == "pruned"]
        return sorted(
            those, key=lambda t: (-t.record["steps"], t.in_part, not t.in_part and t.record["eval_loss"], t.id)
        )

    @property
    def worker_seconds(self) -> float:
        return sum(run["worker_seconds"] for run in self.sweep.runs)
