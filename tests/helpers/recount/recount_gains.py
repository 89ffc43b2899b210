"""What a report says of the base without an adapter, of the gain over it, and of metrics beside the loss."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from judged import Gap, gaps
from printed_page import COUNT, LOSS, Cell, count, fixed
from recount_cells import Cells
from sweep_files import Configuration, Trial, best_of_each_quantizer


class Gains(Cells):
    def bare_files(self) -> None:
        """The record of the base is of the rows beside it, which are those of the trials."""
        if not self.sweep.bare:
            return
        record = json.loads((self.sweep.folder / "base" / "record.json").read_text())
        for split, frame in self.sweep.bare.items():
            loss = frame["loss"].sum() / frame["tokens"].sum()
            told = record[f"{split}_loss"]
            self.page.holds(f"base: {split}_loss is {told}, by its rows {loss}", math.isclose(told, loss, rel_tol=1e-9))
            for trial in self.sweep.trials:
                if split in trial.scores:
                    scored = trial.scores[split]["tokens"].sort_index()
                    rows = frame["tokens"]
                    if trial.in_part:
                        rows = rows[rows.index.isin(scored.index)]
                    same = scored.equals(rows.sort_index())
                    self.page.holds(f"base: other {split} rows than {trial.id}", same)
        self.page.holds("base: completion tokens", record["tokens"] == self.sweep.bare["eval"]["tokens"].sum())

    def bare(self) -> None:
        """The set-up's line, and the sentences below the tables."""
        page, sweep = self.page, self.sweep
        cell = page.section("Set-up")
        if not sweep.bare:
            page.holds("set-up: nobody scored the base", "Without an adapter" not in cell.text)
            return
        pattern = rf"Without an adapter: eval loss ({LOSS})(?:, test loss ({LOSS}))?, in nats"
        if match := page.one("set-up", cell, pattern):
            page.check("set-up, eval loss of the base", cell.part(match, 1), sweep.bare_loss("eval"), fixed(4))
            page.holds("set-up: test loss of the base", bool(match[2]) == ("test" in sweep.bare))
            if match[2]:
                page.check("set-up, test loss of the base", cell.part(match, 2), sweep.bare_loss("test"), fixed(4))
        if sweep.ranking:
            cell, of = page.section("Quantizers side by side"), sweep.gain("eval")
            if not self.said(cell, of):
                pattern = (
                    rf"without an adapter \(({LOSS})\), in per cent of .*? \((\S+), ({LOSS})\)[^.]* above (\d+) it"
                )
                if match := page.one("gain kept", cell, pattern):
                    page.check("gain kept, loss of the base", cell.part(match, 1), of.loss, fixed(4))
                    page.holds(f"gain kept: the best in full precision is {of.full.ids}", match[2] in of.full.ids)
                    page.check("gain kept, loss of full precision", cell.part(match, 3), of.full.loss, fixed(4))
                    page.check("gain kept, all of it", cell.part(match, 4), 100, count)
        if sweep.confirmed and "test" in sweep.bare:
            cell, of = page.section("Confirmed"), sweep.gain("test")
            if not self.said(cell, of) and (match := page.one("gain kept", cell, rf"whose test loss is ({LOSS})\.")):
                page.check("gain kept, test loss of the base", cell.part(match, 1), of.loss, fixed(4))

    def said(self, cell: Cell, of: Any) -> bool:
        """Is no share told, and does the page say why?"""
        match = self.page.one("gain", cell, r"is told: (?:\D|(30))*?\.\n") if of.untold else None
        if match:
            self.page.holds(f"gain: should say {of.untold!r}", of.untold in match[0])
            if match[1]:
                self.page.check("gain, fewest", cell.part(match, 1), 30, count)
        return bool(of.untold)


HIGHER = ("token_accuracy", "exact_match", "choice_accuracy")


@dataclass
class Metric:
    name: str
    kind: str
    set: str | None
    by: str
    higher: bool

    def rows(self, folder: Path, split: str) -> pd.DataFrame:
        """What is summed over what, by example; less of it is better."""
        if self.set is not None:
            frame = pd.read_parquet(folder / f"eval-{self.name}.parquet")
        else:
            frame = pd.read_parquet(folder / f"{split}.parquet")
        if self.kind == "perplexity":
            return frame.set_index("example_id")
        if self.kind == "choice_accuracy":
            right = {}
            for group, own in frame.groupby("group", sort=False):
                each = (own["loss"] / own["tokens"] if self.by == "token" else own["loss"]).tolist()
                right[group] = -1.0 if all(each[0] < other for other in each[1:]) else 0.0
            return pd.DataFrame({"loss": right, "tokens": 1.0})
        own = frame.set_index("example_id")
        value = -own[self.name] if self.higher else own[self.name]
        own = own.assign(loss=value)
        return own if self.kind == "token_accuracy" else own.assign(tokens=1.0)

    def shown(self, turned: float) -> float:
        return math.exp(turned) if self.kind == "perplexity" else -turned if self.higher else turned


def metrics_of(spec: dict[str, Any]) -> list[Metric]:
    found = []
    for name, entry in (spec.get("metrics") or {}).items():
        of = {"kind": entry} if isinstance(entry, str) else entry
        higher = of["kind"] in HIGHER or (of["kind"] != "perplexity" and of.get("direction") != "min")
        found.append(Metric(name, of["kind"], of.get("set"), of.get("by") or "sum", higher))
    return found


class Measured(Cells):
    def contest(self, metric: Metric) -> tuple[list[Configuration], list[Gap | None]]:
        """The configurations by a metric, the best first, and how far those that are compared are behind it."""
        sweep = self.sweep
        split = "test" if sweep.confirmed and metric.set is None else "eval"

        def of(trial: Trial) -> Trial:
            rows = metric.rows(sweep.folder / "trials" / trial.id, split)
            return Trial(trial.id, trial.record, trial.metrics, {split: rows})

        found = [
            Configuration([of(trial) for trial in each.trials], split, each.confirmed)
            for each in sweep.confirmed or sweep.ranking
        ]
        found.sort(key=lambda c: (c.loss, c.trials[0].id))
        compared = self.compared(found)
        judged = gaps(found[0], compared[1:])
        by = {each.trials[0].id: judged[number] for number, each in enumerate(compared[1:])}
        return found, [by.get(each.trials[0].id) for each in found]

    def compared(self, found: list[Configuration]) -> list[Configuration]:
        """Those of a contest that are held against its best, itself first; what ties with that to the last bit is not."""
        equal = [c for c in found[1:] if math.isclose(c.loss, found[0].loss, rel_tol=1e-13, abs_tol=1e-13)]
        left = [c for c in found if all(c is not each for each in equal)]
        if self.sweep.confirmed:
            return left
        own = {c.quantizer for c in (found[0], *equal)}
        others = best_of_each_quantizer([c for c in left if c.quantizer not in own])
        return [found[0], *others.values()] if others else left[:10]

    def metrics(self) -> None:
        page, sweep = self.page, self.sweep
        cell = page.section("Metrics")
        asked = metrics_of(sweep.spec)
        if not asked or not sweep.ranking:
            page.holds("metrics: there are none", not cell.text)
            return
        searched = (sweep.spec.get("search") or {}).get("metric") or "eval_loss"
        contests = {metric.name: self.contest(metric) for metric in asked}
        for metric in asked:
            self.sentence(cell, metric, *contests[metric.name])
        order = contests.get(searched, (sweep.confirmed or sweep.ranking, []))
        rows = page.table("metrics", cell)
        page.holds(f"metrics: {len(order[0])} rows", len(rows) == len(order[0]))
        key = "test loss" if sweep.confirmed else "eval loss"
        for number, (row, configuration) in enumerate(zip(rows, order[0], strict=False)):
            trials = {trial.id for trial in configuration.trials}
            where = f"metrics, {configuration.ids[0]}"
            page.check(where, row["configuration"], configuration.ids[0])
            plain = next(c for c in sweep.confirmed or sweep.ranking if trials == {trial.id for trial in c.trials})
            page.check(f"{where}, {key}", row[key], plain.loss, fixed(4))
            for metric in asked:
                column = row[f"{metric.name} ({'↑' if metric.higher else '↓'})"]
                own = next(c for c in contests[metric.name][0] if trials == {trial.id for trial in c.trials})
                self.value(f"{where}, {metric.name}", column, metric, own)
            if searched in contests:
                name = next(name for name in row if name.startswith(f"behind by {searched}"))
                self.interval(f"{where}, behind", row[name], order[1][number])
            self.settings(where, row, plain.config, plain.trials[0].record)
        self.alone(cell, asked)
        self.metric_figure(next((m for m in asked if m.name == searched), asked[0]))

    def value(self, where: str, cell: Cell, metric: Metric, of: Configuration) -> None:
        value, plus, error = cell.text.partition(" ± ")
        self.page.check(where, Cell(value, cell.start), metric.shown(of.loss), fixed(4))
        told = of.error is not None and metric.kind != "perplexity"
        self.page.holds(f"{where}: a standard error if there are seeds", bool(plus) == told)
        if plus and of.error is not None:
            at = cell.start + len(value) + len(plus)
            self.page.check(f"{where}, standard error", Cell(error, at), of.error, fixed(4))

    def sentence(self, cell: Cell, metric: Metric, found: list[Configuration], behind: list[Gap | None]) -> None:
        """Who is best by it, with how much, and who may be as good."""
        page = self.page
        better = "higher is better" if metric.higher else "lower is better"
        if match := page.one(f"{metric.name}", cell, rf"`{metric.name}` \({better}; over [^)]*\): (.*)"):

            def value(where: str, cell: Cell, of: Configuration) -> None:
                self.value(where, cell, metric, of)

            self.in_short(cell.part(match, 1), metric.name, found, behind, value)

    def in_short(
        self,
        said: Cell,
        name: str,
        found: list[Configuration],
        behind: list[Gap | None],
        value: Callable[[str, Cell, Configuration], None],
    ) -> None:
        """Who is best by something, with how much, and who may be as good."""
        page, best = self.page, found[0]
        page.holds(f"{name}: the best is {best.ids[0]}", said.text.startswith(best.ids[0]))
        if number := page.one(name, said, LOSS):
            value(f"{name}, the best", said.part(number, 0), best)
        equal = sum(c.loss == best.loss for c in found)
        own = best.quantizer
        across = len({c.quantizer for c in found}) > 1
        tied = [
            c.ids[0]
            for c, gap in zip(found, behind, strict=True)
            if gap is not None and gap.low <= 0 and (not across or c.quantizer != own)
        ]
        if equal == 1:
            page.holds(f"{name}: {tied} may be as good", ("may be as good" in said.text) == bool(tied))
            page.holds(f"{name}: names {tied}", all(each in said.text for each in tied[:5]))
            if len(tied) > 5 and (match := page.one(name, said, rf" and {COUNT} more may be")):
                page.check(f"{name}, more that may be", said.part(match, 1), len(tied) - 5, count)
        else:
            page.holds(f"{name}: {equal} tie exactly", "tie exactly" in said.text)

    def alone(self, cell: Cell, asked: list[Metric]) -> None:
        """The base without an adapter."""
        base = self.sweep.folder / "base"
        match = re.search(r"The base without an adapter, on the eval split and sets: (.*)\.\n", cell.text)
        self.page.holds("metrics: the base", bool(match) == (base / "record.json").exists())
        if match is None:
            return
        said = cell.part(match, 1)
        for metric in asked:
            rows = metric.rows(base, "eval")
            if number := self.page.one(f"base, {metric.name}", said, rf"{metric.name} ({LOSS})"):
                value = metric.shown(float(rows["loss"].sum() / rows["tokens"].sum()))
                self.page.check(f"base, {metric.name}", said.part(number, 1), value, fixed(4))

    def metric_figure(self, metric: Metric) -> None:
        """The data of its curves."""
        table = pd.read_csv(self.report / "figures" / f"metric-{metric.name.replace('_', '-')}.csv")
        expected = {
            (trial.id, int(line["step"])): line["metrics"][metric.name]
            for trial in self.sweep.trials
            for _, line in trial.metrics.iterrows()
            if isinstance(line.get("metrics"), dict) and metric.name in line["metrics"]
        }
        base = self.sweep.folder / "base"
        told = json.loads((base / "record.json").read_text()) if self.sweep.bare else {}
        if metric.name in (told.get("metrics") or {}):
            rows = metric.rows(base, "eval")
            value = metric.shown(float(rows["loss"].sum() / rows["tokens"].sum()))
            measured = {trial for trial, _ in expected}
            expected |= {
                (trial.id, 0): value for trial in self.sweep.trials if trial.begins_bare and trial.id in measured
            }
        told = {(row["trial_id"], int(row["step"])): row["value"] for _, row in table.iterrows()}
        same = told.keys() == expected.keys() and all(math.isclose(told[key], expected[key]) for key in told)
        self.page.holds(f"metric-{metric.name}.csv is not what the trials noted", same)
