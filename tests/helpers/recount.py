"""Every number of a sweep's report.md, and of the CSVs beside it, computed again from the sweep's files.

`python tests/helpers/recount.py DIR` prints a line for each printed number that is not the recomputed one, and for each
number of the page that nothing here accounts for; its exit code is 1 if there are any. Nothing of the product is used:
definitions are those of the README and of the report's own notes.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ped_anova import importances
from sweep_files import Configuration, Gap, Sweep, Trial, best_of_each_quantizer, front, gap, ratio

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?|\d+")
COUNT = r"(\d+(?:,\d{3})*)"
LOSS = r"-?\d+\.\d+(?: ± \d+\.\d+)?"
PLAIN = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"


# How numbers are printed -------------------------------------------------------------------------------------------


def value_of(text: str) -> float:
    return float(text.replace(",", ""))


def fixed(places: int) -> Callable[[str, float], bool]:
    """A number rounded to so many decimals, all of them printed."""

    def holds(text: str, value: float) -> bool:
        if not re.fullmatch(rf"-?\d[\d,]*\.\d{{{places}}}" if places else r"-?\d[\d,]*", text):
            return False
        return abs(value_of(text) - value) <= 0.5 * 10**-places * (1 + 1e-6)

    return holds


def count(text: str, value: float) -> bool:
    """A whole number, with a comma before every three digits."""
    return value == round(value) and text == f"{round(value):,}"


def short(text: str, value: Any) -> bool:
    """Three significant digits, without zeros at the end; what is no number is itself."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text == str(value)
    if not re.fullmatch(PLAIN, text):
        return False
    return abs(value_of(text) - value) <= 0.5 * 10 ** (math.floor(math.log10(abs(value))) - 2) if value else text == "0"


def size(text: str, value: float) -> bool:
    """Bytes in thousands, with a decimal."""
    number, _, unit = text.partition(" ")
    factor = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}.get(unit)
    if factor is None:
        return False
    return count(number, value) if unit == "B" else fixed(1)(number, value / factor) and value_of(number) < 1000


def duration(text: str, value: float) -> bool:
    """Days, hours, minutes, seconds: right to half of the smallest that is printed."""
    parts = re.findall(r"([\d.]+) (d|h|min|s)\b", text)
    unit = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    if not parts or " ".join(f"{number} {name}" for number, name in parts) != text:
        return False
    places = len(parts[-1][0].partition(".")[2])
    printed = sum(float(number) * unit[name] for number, name in parts)
    return abs(printed - value) <= 0.5 * unit[parts[-1][1]] * 10**-places * (1 + 1e-6)


def same(text: str, value: Any) -> bool:
    return text == str(value)


# The page ------------------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    text: str
    start: int

    def part(self, match: re.Match[str], group: int | str) -> Cell:
        return Cell(match[group], self.start + match.start(group))


class Row(dict[str, Cell]):
    """Name -> cell; that one is missing is wrong, and no reason to stop."""

    def __init__(self, cells: dict[str, Cell], where: str, wrong: list[str]) -> None:
        super().__init__(cells)
        self.where, self.wrong = where, wrong

    def __missing__(self, name: str) -> Cell:
        self.wrong.append(f"{self.where}: no {name}")
        return Cell("", 0)


class Page:
    """The text of a report, which of it is accounted for, and what is wrong with it."""

    def __init__(self, text: str, ids: list[str]) -> None:
        self.text = text
        self.wrong: list[str] = []
        self.checked = 0
        self.claimed = bytearray(len(text))
        names = "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True)) or r"(?!)"
        for pattern in (
            r"(?ms)^```.*?^```$",
            r"`[^`\n]*`",
            r'<source [^>]*>|src(set)?="[^"]*"|width="\d+"',
            rf"(?<![\w.-])(?:{names})(?![\w-])",
        ):
            for match in re.finditer(pattern, text):
                self.claim(match.start(), match.end())

    def claim(self, start: int, end: int) -> None:
        self.claimed[start:end] = b"\1" * (end - start)

    def check(self, where: str, cell: Cell, value: Any, holds: Callable[[str, Any], bool] = same) -> None:
        """What is printed in `cell` is `value`; either way it is accounted for."""
        self.claim(cell.start, cell.start + len(cell.text))
        self.checked += 1
        try:
            right = holds(cell.text, value)
        except (ValueError, TypeError):
            right = False
        if not right:
            self.wrong.append(f"{where}: printed {cell.text}, recomputed {value}")

    def holds(self, where: str, right: bool) -> None:
        self.checked += 1
        if not right:
            self.wrong.append(where)

    def section(self, title: str) -> Cell:
        """What stands below a heading; below the page's own for an empty title."""
        match = re.search(rf"(?ms)^{'##' if title else '#'} {title}.*?$(.*?)(?=^## |\Z)", self.text)
        return Cell(match[1], match.start(1)) if match else Cell("", 0)

    def each(self, cell: Cell, pattern: str) -> Iterator[re.Match[str]]:
        return re.compile(pattern).finditer(cell.text)

    def one(self, where: str, cell: Cell, pattern: str) -> re.Match[str] | None:
        """The one place where `pattern` stands; that there is none is wrong."""
        match = re.search(pattern, cell.text)
        if match is None:
            self.wrong.append(f"{where}: nothing like {pattern!r}")
        return match

    def table(self, where: str, cell: Cell) -> list[dict[str, Cell]]:
        """The first table: header -> cell, for each row."""
        rows = []
        for line in re.finditer(r"(?m)^\|.*\|$", cell.text):
            if rows and cell.text[rows[-1][0].end() : line.start()].strip():
                break
            bars = [m.start() for m in re.finditer(r"(?<!\\)\|", line[0])]
            cells = []
            for left, right in itertools.pairwise(bars):
                inside = line[0][left + 1 : right]
                skipped = len(inside) - len(inside.lstrip())
                cells.append(Cell(inside.strip(), cell.start + line.start() + left + 1 + skipped))
            rows.append((line, cells))
        if len(rows) < 3:
            self.wrong.append(f"{where}: no table")
            return []
        names = [name.text for name in rows[0][1]]
        return [Row(dict(zip(names, cells, strict=False)), where, self.wrong) for _, cells in rows[2:]]

    def rest(self) -> list[str]:
        """The numbers that nothing accounts for."""
        found = []
        for match in NUMBER.finditer(self.text):
            if not all(self.claimed[match.start() : match.end()]):
                line = self.text.count("\n", 0, match.start()) + 1
                around = self.text[max(0, match.start() - 30) : match.end() + 20].replace("\n", " ")
                found.append(f"line {line}: {match[0]} is not accounted for: …{around}…")
        return found


# What the numbers should be ------------------------------------------------------------------------------------------


class Recount:
    def __init__(self, folder: Path) -> None:
        self.sweep = Sweep(folder)
        self.report = folder / "report"
        self.page = Page((self.report / "report.md").read_text(), [trial.id for trial in self.sweep.trials])
        self.of = {trial.id: trial for trial in self.sweep.trials}

    def run(self) -> list[str]:
        self.files()
        self.title()
        self.verdict()
        self.setup()
        self.confirmed()
        self.quantizers()
        self.leaderboard()
        self.pareto()
        self.importances()
        self.budget()
        self.pruned()
        self.endings()
        self.problems()
        self.constants()
        self.figures()
        self.tables()
        return self.page.wrong + self.page.rest()

    # cells that many tables share

    def loss(self, where: str, cell: Cell, configuration: Configuration) -> None:
        value, plus, error = cell.text.partition(" ± ")
        self.page.check(where, Cell(value, cell.start), configuration.loss, fixed(4))
        self.page.holds(
            f"{where}: a standard error if there are seeds", bool(plus) == (configuration.error is not None)
        )
        if plus and configuration.error is not None:
            at = cell.start + len(value) + len(plus)
            self.page.check(f"{where}, standard error", Cell(error, at), configuration.error, fixed(4))

    def interval(self, where: str, cell: Cell, of: Gap | None) -> None:
        match = re.fullmatch(r"(-?[\d.]+) to (-?[\d.]+)( \(tied\))?", cell.text)
        if of is None or match is None:
            self.page.check(where, cell, "–" if of is None else f"{of.low} to {of.high}")
            return
        self.page.check(f"{where}, low end", cell.part(match, 1), of.low, fixed(4))
        self.page.check(f"{where}, high end", cell.part(match, 2), of.high, fixed(4))
        self.page.holds(f"{where}: says tied where it holds zero", bool(match[3]) == of.tied)

    def behind(self, where: str, row: dict[str, Cell], best: Configuration, other: Configuration) -> None:
        """The gap to the best and its interval."""
        found = gap(best, other) if other is not best else None
        difference = found.difference if found else other.loss - best.loss
        self.page.check(f"{where}, gap", row["gap to best"], difference, fixed(4))
        self.interval(f"{where}, interval", row["95 % interval of the gap"], found)

    def settings(self, where: str, row: dict[str, Cell], config: dict[str, Any], record: dict[str, Any]) -> None:
        """The columns that show a trial's configuration and size, as far as the table has them."""
        for name, cell in row.items():
            key = name.replace(" ", "_")
            if key in config and name != "steps":
                self.page.check(f"{where}, {name}", cell, config[key], short)
        if "packed size" in row:
            self.page.check(f"{where}, packed size", row["packed size"], record["adapter_bytes"], size)
        if "parameters" in row:
            self.page.check(f"{where}, parameters", row["parameters"], record["adapter_params"], count)
        if "bits per parameter" in row:
            bits = 8 * record["adapter_bytes"] / record["adapter_params"]
            self.page.check(f"{where}, bits per parameter", row["bits per parameter"], bits, fixed(2))

    # sections

    def files(self) -> None:
        """Records, curves and scores agree with each other: the page is made of all three."""
        for trial in self.sweep.trials:
            for split in trial.scores:
                loss, told = ratio(trial.scores[split]), trial.record.get(f"{split}_loss")
                right = told is not None and math.isclose(loss, told, rel_tol=1e-9)
                self.page.holds(f"{trial.id}: {split}_loss is {told}, by {split}.parquet {loss}", right)
            if "eval" in trial.scores:
                rows, told = len(trial.scores["eval"]), trial.record.get("data", {}).get("eval_rows")
                self.page.holds(f"{trial.id}: {told} eval rows, in eval.parquet {rows}", rows == told)
            if len(trial.scores) == 2:
                both = trial.scores["eval"].index.intersection(trial.scores["test"].index)
                self.page.holds(f"{trial.id}: {len(both)} examples of eval.parquet are in test.parquet", both.empty)
            if len(trial.metrics) and trial.status in ("completed", "pruned") and not trial.problem:
                last = trial.metrics.iloc[-1]
                for key in ("eval_loss", "tokens") if trial.record.get("eval_loss") is not None else ("tokens",):
                    told = trial.record[key]
                    where = f"{trial.id}: {key} is {told} in record.json, {last[key]} at last in metrics.jsonl"
                    self.page.holds(where, math.isclose(told, last[key], rel_tol=1e-9))
                self.page.holds(f"{trial.id}: steps of record and metrics", trial.record["steps"] == last["step"])

    def title(self) -> None:
        match = re.match(r"# Sweep (.*)", self.page.text)
        if match:
            self.page.check("title", Cell(match[1], match.start(1)), self.sweep.spec.get("name"))

    def verdict(self) -> None:
        page, ranking = self.page, self.sweep.headline
        cell = page.section("")
        if not ranking:
            if match := page.one("verdict", cell, rf"none of {COUNT} trials"):
                page.check("verdict, trials", cell.part(match, 1), len(self.sweep.searched), count)
            return
        best, by = ranking[0], best_of_each_quantizer(ranking)
        named = {name: c for c in ranking for name in c.ids}
        for match in page.each(cell, r"\*\*([^*]+)\*\* \(([^()]*)\)"):
            page.holds(f"verdict: {match[1]} is no ranked configuration", match[1] in named)
            if match[1] in named:
                start = cell.start + match.start(2)
                self.pairs(f"verdict, {match[1]}", Cell(match[2], start), named[match[1]].config)
        first = re.search(r"\*\*([^*]+)\*\*", cell.text)
        page.holds("verdict: the best comes first", first is not None and first[1] in best.ids)
        kind = best.split
        pattern = (
            rf"an? (eval|test) loss of ({LOSS}) nats per completion token( \(mean ± standard error over (\d+) seeds\))?"
        )
        if match := page.one("verdict", cell, pattern):
            page.holds(f"verdict: should be of the {kind} loss", match[1] == kind)
            self.loss("verdict, loss of the best", cell.part(match, 2), best)
            page.holds("verdict: says over how many seeds", bool(match[3]) == (len(best.trials) > 1))
            if match[3]:
                page.check("verdict, seeds", cell.part(match, 4), len(best.trials), count)
        if match := re.search(rf"best of {COUNT} was picked", cell.text):
            page.holds("verdict: nothing was picked on the test split", kind == "eval")
            page.check("verdict, best of so many", cell.part(match, 1), len(ranking), count)
        if match := re.search(rf"over {COUNT} examples and (\d+) seeds, each scored", cell.text):
            found = self.opponent(cell, named)
            if found and (of := gap(best, found)):
                page.check("verdict's note, examples", cell.part(match, 1), of.examples, count)
                page.check("verdict's note, seeds", cell.part(match, 2), of.seeds, count)
        if len(ranking) < 2:
            page.holds("verdict: the only one", "the only one" in cell.text)
            return
        self.against(cell, best, by, named)

    OPPONENT = r"\*\*([^*]+)\*\* at (" + LOSS + ")"

    def opponent(self, cell: Cell, named: dict[str, Configuration]) -> Configuration | None:
        match = re.search(self.OPPONENT, cell.text)
        return named.get(match[1]) if match else None

    def against(
        self, cell: Cell, best: Configuration, by: dict[str, Configuration], named: dict[str, Configuration]
    ) -> None:
        """The verdict's comparison: with whom, how far behind, how sure."""
        page, ranking = self.page, self.sweep.headline
        other = self.opponent(cell, named)
        page.holds("verdict: the best is compared with a ranked configuration", other is not None)
        if other is None:
            return
        rivals = [c for c in by.values() if c is not best] or ranking[1:2]
        page.holds("verdict: compared with the best of another quantizer, or else the second", other in rivals)
        gaps = [gap(best, rival) for rival in rivals]
        said = {word for word in ("won", "tied", "ahead") if f"**{word}**" in cell.text}
        sure = all(gaps) and not any(of.tied for of in gaps if of)
        right = {"won"} if sure else {"tied"} if all(gaps) else {"ahead"}
        page.holds(f"verdict: says {said}, should say {right}", said == right)
        if right == {"tied"}:
            tied = [rival.ids[0] for rival, of in zip(rivals, gaps, strict=True) if of and of.tied]
            names = re.findall(r"\*\*([^*]+)\*\* \(", cell.text)
            page.holds(f"verdict: tied are {tied}", set(tied) == set(names) - set(best.ids))
        if "the next quantizer" in cell.text:
            page.holds("verdict: not the next quantizer", other is rivals[0])
        match = re.search(self.OPPONENT, cell.text)
        assert match is not None
        self.loss("verdict, loss of the other", cell.part(match, 2), other)
        of = gap(best, other)
        difference = of.difference if of else other.loss - best.loss
        if match := page.one("verdict", cell, r"(-?[\d.]+) nats \(([\d.]+) %\) below"):
            page.check("verdict, gap", cell.part(match, 1), difference, fixed(4))
            page.check(
                "verdict, per cent of the other's loss", cell.part(match, 2), 100 * difference / other.loss, fixed(2)
            )
        if of is None:
            return
        pattern = (
            rf"\(95 % interval of the gap (-?[\d.]+) to (-?[\d.]+), over {COUNT} paired examples( and (\d+) seeds)?\)"
        )
        if match := page.one("verdict", cell, pattern):
            page.check("verdict, low end", cell.part(match, 1), of.low, fixed(4))
            page.check("verdict, high end", cell.part(match, 2), of.high, fixed(4))
            page.check("verdict, examples", cell.part(match, 3), of.examples, count)
            page.holds("verdict: says how many seeds", bool(match[4]) == (of.seeds > 1))
            if match[4]:
                page.check("verdict, seeds in common", cell.part(match, 5), of.seeds, count)

    def pairs(self, where: str, cell: Cell, values: dict[str, Any], holds: Callable[[str, Any], bool] = short) -> None:
        """`name value, name value`: each as it is in `values`."""
        for match in re.finditer(r"([^,]+?(?:,\d{3})*) ([^ ,]+(?:,\d{3})*)(?:, |$)", cell.text):
            key = match[1].replace(" ", "_")
            if key not in values:
                key = match[1]
            self.page.check(f"{where}, {match[1]}", cell.part(match, 2), values.get(key), holds)

    def setup(self) -> None:
        page, sweep = self.page, self.sweep
        cell = page.section("Set-up")
        found = {m[1]: Cell(m[2], cell.start + m.start(2)) for m in page.each(cell, r"(?m)^- ([^:]+): (.*)$")}
        lines = Row(found, "set-up", page.wrong)
        records = [t.record for t in sweep.trials if "base" in t.record]

        def counted(text: str, value: Any) -> bool:
            return count(text, value) if isinstance(value, int) else text == str(value)

        for name, key, main in (("Base", "base", "model"), ("Data", "data", "source")):
            facts = records[0][key]
            page.holds(f"set-up: {key} differs between records", all(r[key] == facts for r in records))
            first, _, rest = lines[name].text.partition(", ")
            page.check(f"set-up, {main}", Cell(first, lines[name].start), facts[main])
            self.pairs(f"set-up, {key}", Cell(rest, lines[name].start + len(first) + 2), facts, counted)
            said = {match[1] for match in re.finditer(r"(?:^|, )([a-z ]+) \S", rest)}
            absent = {k.replace("_", " ") for k, v in facts.items() if k != main and v is not None} - said
            page.holds(f"set-up: {sorted(absent)} of {key} is missing", not absent)
        self.pairs("set-up, version of", lines["Versions"], records[0]["versions"], same)
        page.holds("set-up: versions differ", all(r["versions"] == records[0]["versions"] for r in records))
        self.asked(lines["Trials"])
        self.axes(lines["Varied"])
        self.pairs("set-up, held fixed", lines["Held fixed"], self.fixed_values())
        if match := page.one("set-up", lines["Spec"], r"SHA-256 ([0-9a-f]+)…"):
            digest = hashlib.sha256((sweep.folder / "sweep.yaml").read_bytes()).hexdigest()
            page.check("set-up, SHA-256", lines["Spec"].part(match, 1), digest[:16])
        if sweep.runs:
            self.ran(lines)

    def fixed_values(self) -> dict[str, Any]:
        """What no two trials of the search differ in."""
        config = self.sweep.searched[0].config
        return {key: value for key, value in config.items() if key not in self.sweep.varied}

    def asked(self, cell: Cell) -> None:
        page, spec = self.page, self.sweep.spec
        search = spec.get("search") or {}
        if match := re.search(rf"{COUNT} asked for", cell.text):
            page.check("set-up, trials asked for", cell.part(match, 1), search.get("trials"), count)
        if match := page.one("set-up", cell, rf"{COUNT} began"):
            page.check("set-up, trials that began", cell.part(match, 1), len(self.sweep.searched), count)
        if match := re.search(r"sampler (\w+)", cell.text):
            page.check("set-up, sampler", cell.part(match, 1), search.get("sampler"))
        if match := re.search(r"scheduler (\w+)(?: \(([^)]*)\))?", cell.text):
            scheduler = spec.get("scheduler") or {}
            page.check("set-up, scheduler", cell.part(match, 1), scheduler.get("name"))
            if match[2]:
                self.pairs("set-up, scheduler", cell.part(match, 2), scheduler)
        if match := re.search(rf"then {COUNT} to confirm", cell.text):
            repeats = sum(bool(trial.confirms) for trial in self.sweep.trials)
            page.check("set-up, trials that confirm", cell.part(match, 1), repeats, count)

    def axes(self, cell: Cell) -> None:
        """`rank (4, 8); learning rate (1e-4 to 5e-3, log)`, as the spec has them."""
        space = (self.sweep.spec.get("search") or {}).get("space") or {}
        said = {match[1].replace(" ", "_") for match in re.finditer(r"([^;(]+?) \([^)]*\)(?:; |$)", cell.text)}
        self.page.holds(f"set-up: varied are {sorted(self.sweep.varied)}", said == self.sweep.varied)
        for match in re.finditer(r"([^;(]+) \(([^)]*)\)(?:; |$)", cell.text):
            axis, inside = space.get(match[1].replace(" ", "_")), cell.part(match, 2)
            where = f"set-up, {match[1]}"
            if isinstance(axis, list):
                at = inside.start
                values = inside.text.split(", ")
                self.page.holds(f"{where}: {len(axis)} values", len(values) == len(axis))
                for text, value in zip(values, axis, strict=False):
                    self.page.check(where, Cell(text, at), value, short)
                    at += len(text) + 2
            elif isinstance(axis, dict) and (ends := re.fullmatch(r"(\S+) to ([^ ,]+)(, log)?", inside.text)):
                self.page.check(f"{where}, low", inside.part(ends, 1), axis["low"], short)
                self.page.check(f"{where}, high", inside.part(ends, 2), axis["high"], short)
                self.page.holds(f"{where}: says log", bool(ends[3]) == bool(axis.get("log")))

    def ran(self, lines: dict[str, Cell]) -> None:
        """Code, machine and time, of runs.jsonl."""
        page, runs = self.page, self.sweep.runs
        last = runs[-1]
        if "Code" in lines and (match := page.one("set-up", lines["Code"], r"commit ([0-9a-f]+)( and changes to it)?")):
            page.check("set-up, commit", lines["Code"].part(match, 1), last["git"]["commit"][:12])
            page.holds("set-up: says changes to the code", bool(match[2]) == last["git"]["changed"])
        if "Machine" in lines:
            cell, there = lines["Machine"], last["machines"]
            for pattern, value in ((r"(\d+) machines?", "nodes"), (rf"{COUNT} CPU cores?", "cpus")):
                if match := page.one("set-up, machine", cell, pattern):
                    page.check(f"set-up, {value}", cell.part(match, 1), there[value], count)
            if match := page.one("set-up, machine", cell, r"([\d.]+) GB of memory"):
                page.check("set-up, memory", cell.part(match, 1), there["memory_gb"], short)
            gpus = {match[2]: cell.part(match, 1) for match in re.finditer(r"(\d+) × ([^,]+)", cell.text)}
            page.holds("set-up: GPUs", set(gpus) == set(there.get("gpus") or {}))
            for name, number in gpus.items():
                page.check(f"set-up, {name}", number, there["gpus"].get(name), count)
            for name in (there.get("cpu"), there.get("system"), *(there.get("gpus") or {})):
                if name and (at := cell.text.find(name)) >= 0:
                    page.check("set-up, machine", Cell(name, cell.start + at), name)
        cell = lines["Time"]
        if match := page.one("set-up, time", cell, r"^([\w. ]+?) in all"):
            page.check("set-up, time in all", cell.part(match, 1), sum(run["seconds"] for run in runs), duration)
        if match := re.search(r"; ([\w. ]+?) of workers with ([\d.]+) (GPU|CPU)", cell.text):
            page.check("set-up, time of workers", cell.part(match, 1), self.worker_seconds, duration)
            page.check("set-up, of a worker", cell.part(match, 2), last["worker"].get(match[3]), short)

    @property
    def worker_seconds(self) -> float:
        return sum(run["worker_seconds"] for run in self.sweep.runs)

    def confirmed(self) -> None:
        page, ranking = self.page, self.sweep.confirmed
        cell = page.section("Confirmed")
        if not cell.text and not ranking:
            return
        rows = page.table("confirmed", cell)
        page.holds(f"confirmed: {len(ranking)} rows", len(rows) == len(ranking))
        if match := re.search(rf"the test split: {COUNT} rows", cell.text):
            for trial in (trial for configuration in ranking for trial in configuration.trials):
                page.check("confirmed, rows", cell.part(match, 1), len(trial.scores["test"]), count)
        for place, (row, configuration) in enumerate(zip(rows, ranking, strict=False), 1):
            of = configuration.confirmed
            assert of is not None
            where = f"confirmed, {of.id}"
            page.check(f"{where}, place", row["place"], place, count)
            page.check(where, row["configuration of"], of.id)
            page.check(f"{where}, seeds", row["seeds"], len(configuration.trials), count)
            self.loss(f"{where}, test loss", row["test loss"], configuration)
            self.behind(where, row, ranking[0], configuration)
            evals = pd.Series([trial.loss("eval") for trial in configuration.trials])
            page.check(f"{where}, eval loss on these seeds", row["eval loss on these seeds"], evals.mean(), fixed(4))
            page.check(f"{where}, in the search", row["in the search"], of.loss("eval"), fixed(4))
            self.settings(where, row, of.config, of.record)

    def quantizers(self) -> None:
        page, sweep = self.page, self.sweep
        cell = page.section("Quantizers side by side")
        by = best_of_each_quantizer(sweep.ranking)
        rows = page.table("quantizers", cell)
        asked = sweep.spec.get("search", {}).get("space", {}).get("quantizer", []) if sweep.spec.get("search") else []
        names = {*asked, *(trial.config["quantizer"] for trial in sweep.searched)}
        shown = [row["quantizer"].text for row in rows]
        page.holds(f"quantizers: should be {sorted(names)}", set(shown) == names and len(shown) == len(names))
        page.holds(f"quantizers: should begin {list(by)}", shown[: len(by)] == list(by))
        for row in rows:
            name = row["quantizer"].text
            where = f"quantizers, {name}"
            page.check(where, row["quantizer"], name)
            with_it = [trial for trial in sweep.searched if trial.config["quantizer"] == name]
            if match := page.one(where, row["at full budget"], r"^(\d+) of (\d+)$"):
                full = sum(trial.usable for trial in with_it)
                page.check(f"{where}, at full budget", row["at full budget"].part(match, 1), full, count)
                page.check(f"{where}, trials", row["at full budget"].part(match, 2), len(with_it), count)
            if name in by:
                page.holds(f"{where}: best is {by[name].ids}", row["best trial"].text in by[name].ids)
                self.loss(f"{where}, eval loss", row["eval loss"], by[name])
                self.behind(where, row, sweep.ranking[0], by[name])
                self.settings(where, row, by[name].config, by[name].trials[0].record)
            elif "†" in row["best trial"].text:
                self.unranked(where, row, with_it, cell)

    def unranked(self, where: str, row: dict[str, Cell], with_it: list[Trial], cell: Cell) -> None:
        """The best of a quantizer of which none got to the end: the lowest loss of those that were stopped."""
        page = self.page
        best = min((t for t in with_it if t.status == "pruned"), key=lambda t: t.record["eval_loss"], default=None)
        page.holds(f"{where}: none was stopped", best is not None)
        if best is None:
            return
        page.check(where, row["best trial"], f"{best.id} †")
        page.check(f"{where}, eval loss", row["eval loss"], best.record["eval_loss"], fixed(4))
        self.settings(where, row, best.config, best.record)
        if match := page.one(where, cell, rf"{re.escape(best.id)} was pruned at step {COUNT} of {COUNT}"):
            page.check(f"{where}, step", cell.part(match, 1), best.record["steps"], count)
            page.check(f"{where}, budget", cell.part(match, 2), best.config["steps"], count)

    def leaderboard(self) -> None:
        page, ranking = self.page, self.sweep.ranking
        cell = page.section("Leaderboard")
        if not ranking:
            return
        trials = [trial for configuration in ranking for trial in configuration.trials]
        if match := page.one("leaderboard", cell, rf"{COUNT} trials? at equal budget: {COUNT} optimizer steps"):
            page.check("leaderboard, trials", cell.part(match, 1), len(trials), count)
            for trial in trials:
                page.check(f"leaderboard, steps of {trial.id}", cell.part(match, 2), trial.record["steps"], count)
        rows = page.table("leaderboard", cell)
        page.holds(f"leaderboard: {len(ranking)} rows", len(rows) == len(ranking))
        for place, (row, configuration) in enumerate(zip(rows, ranking, strict=False), 1):
            where = f"leaderboard, place {place}"
            page.check(where, row["place"], place, count)
            page.check(where, row.get("trial") or row["trials"], ", ".join(configuration.ids))
            self.loss(f"{where}, eval loss", row["eval loss"], configuration)
            self.behind(where, row, ranking[0], configuration)
            if "seeds" in row:
                page.check(f"{where}, seeds", row["seeds"], len(configuration.trials), count)
            self.settings(where, row, configuration.config, configuration.trials[0].record)

    def pareto(self) -> None:
        page, ranking = self.page, self.sweep.ranking
        cell = page.section("Quality against size")
        if not ranking:
            return
        kept = front([(c.loss, c.bytes, c.tokens) for c in ranking])
        best = sorted((c for c, keep in zip(ranking, kept, strict=True) if keep), key=lambda c: (c.bytes, c.loss))
        rows = page.table("pareto", cell)
        page.holds(f"pareto: {[c.ids for c in best]}", len(rows) == len(best))
        for row, configuration in zip(rows, best, strict=False):
            name = row["trial"].text
            page.holds(f"pareto: {name} should be {configuration.ids}", name in configuration.ids)
            self.loss(f"pareto, {name}, eval loss", row["eval loss"], configuration)
            page.check(f"pareto, {name}, tokens trained", row["tokens trained"], configuration.tokens, count)
            self.settings(f"pareto, {name}", row, configuration.config, configuration.trials[0].record)

    def importances(self) -> None:
        page, sweep = self.page, self.sweep
        cell = page.section("What mattered")
        full = sum(trial.usable for trial in sweep.searched)
        for match in page.each(cell, r"(?:over |to say: )(\d+) of (\d+)"):
            page.check("importances, trials", cell.part(match, 1), full, count)
            page.check("importances, of all", cell.part(match, 2), len(sweep.searched), count)
        if match := re.search(r"What sets the best (\d+) apart", cell.text):
            page.check("importances, the best", cell.part(match, 1), max(5, math.ceil(full / 10)), count)

    def shares(self) -> None:
        """PED-ANOVA over the trials at equal budget. An axis is one of choices if the spec lists them or its values are
        no numbers, and else a range; the learning rate's is of logarithms."""
        space = (self.sweep.spec.get("search") or {}).get("space") or {}
        trials = [trial for trial in self.sweep.searched if trial.usable]
        path = self.report / "figures/importances.csv"
        if not path.exists():
            return
        ranges, choices = {}, {}
        for axis in sorted(self.sweep.varied - {"seed"}):
            values = [trial.config[axis] for trial in trials]
            if len(set(values)) > 1 and (isinstance(space.get(axis), list) or isinstance(values[0], str | bool)):
                choices[axis] = values
            elif len(set(values)) > 1:
                ranges[axis] = [math.log(v) for v in values] if axis == "learning_rate" else values
        found = importances([trial.record["eval_loss"] for trial in trials], ranges, choices)  # to the last bit: ties
        table = pd.read_csv(path).set_index("axis")["importance"]
        self.page.holds(f"importances.csv: axes are {sorted(found)}", set(table.index) == set(found))
        for axis, share in found.items():
            self.page.holds(f"importances.csv, {axis}: recomputed {share}", abs(table.get(axis, 0) - share) < 1e-9)

    def saved(self, trials: list[Trial]) -> int:
        """Steps that stopping saved: what the stopped had left of their budget."""
        return sum(t.config["steps"] - t.record["steps"] for t in trials if t.status == "pruned")

    def budget(self) -> None:
        page, trials = self.page, self.sweep.trials
        cell = page.section("Budget and speed")
        steps, tokens = (sum(t.record[key] for t in trials) for key in ("steps", "tokens"))
        if match := page.one(
            "budget", cell, rf"{COUNT} optimizer steps? and {COUNT} tokens?, prompts included, were trained"
        ):
            page.check("budget, steps", cell.part(match, 1), steps, count)
            page.check("budget, tokens", cell.part(match, 2), tokens, count)
        saved = self.saved(trials)
        match = re.search(rf"Stopping saved {COUNT} steps?, ([\d.]+) %", cell.text)
        page.holds("budget: says what stopping saved", (match is not None) == (saved > 0))
        if match:
            page.check("budget, steps saved", cell.part(match, 1), saved, count)
            page.check("budget, share saved", cell.part(match, 2), 100 * saved / (steps + saved), fixed(2))
        if match := re.search(r"at the pace of those before, ([\w. ]+?) in slots", cell.text):
            stopped = [t for t in trials if t.status == "pruned" and t.record["steps"]]
            pace = [t.record["seconds"] / t.record["steps"] * (t.config["steps"] - t.record["steps"]) for t in stopped]
            page.check("budget, time saved", cell.part(match, 1), sum(pace), duration)
        if match := re.search(r"That is ([\d,.]+) tokens a second of a worker", cell.text):
            rate = tokens / self.worker_seconds
            page.check("budget, tokens a second", cell.part(match, 1), rate, fixed(len(match[1].partition(".")[2])))
        if match := re.search(r"the sweep took ([\w. ]+?) in all", cell.text):
            page.check("budget, time", cell.part(match, 1), sum(run["seconds"] for run in self.sweep.runs), duration)
        rows = page.table("budget", cell)
        statuses = {trial.status for trial in trials}
        page.holds(f"budget: {sorted(statuses)}", {row["status"].text for row in rows} == statuses)
        for row in rows:
            where = f"budget, {row['status'].text}"
            those = [trial for trial in trials if trial.status == row["status"].text]
            page.check(f"{where}, trials", row["trials"], len(those), count)
            for key in ("steps", "tokens"):
                page.check(f"{where}, {key}", row[key], sum(t.record[key] for t in those), count)
            page.check(f"{where}, steps saved", row["steps saved"], self.saved(those), count)
            page.check(f"{where}, in slots", row["in slots"], sum(t.record["seconds"] for t in those), duration)

    @property
    def stopped(self) -> list[Trial]:
        """The furthest first, and of those the best."""
        those = [trial for trial in self.sweep.trials if trial.status == "pruned"]
        return sorted(those, key=lambda t: (-t.record["steps"], t.record["eval_loss"], t.id))

    def pruned(self) -> None:
        page, stopped = self.page, self.stopped
        cell = page.section("Pruned")
        if not stopped:
            return
        rows = page.table("pruned", cell)
        page.holds(f"pruned: {len(stopped)} rows", len(rows) == len(stopped))
        for row, trial in zip(rows, stopped, strict=False):
            where = f"pruned, {trial.id}"
            page.check(where, row["trial"], trial.id)
            if match := page.one(where, row["step reached"], rf"^{COUNT} of {COUNT}$"):
                page.check(f"{where}, step", row["step reached"].part(match, 1), trial.record["steps"], count)
                page.check(f"{where}, budget", row["step reached"].part(match, 2), trial.config["steps"], count)
            page.check(f"{where}, eval loss", row["eval loss there"], trial.loss("eval"), fixed(4))
            self.settings(where, row, trial.config, trial.record)

    def endings(self) -> None:
        page, trials = self.page, self.sweep.trials
        cell = page.section("How the trials ended")
        if match := page.one("endings", cell, rf"(?m)^{COUNT} trials?: (.*)\.$"):
            page.check("endings, trials", cell.part(match, 1), len(trials), count)
            inside = cell.part(match, 2)
            said = {m[2]: inside.part(m, 1) for m in re.finditer(rf"{COUNT} (\w+)", match[2])}
            page.holds("endings: each status", set(said) == {trial.status for trial in trials})
            for status, number in said.items():
                page.check(f"endings, {status}", number, sum(t.status == status for t in trials), count)
        left = {trial.id for trial in trials}
        for row in page.table("endings", cell):
            where = f"endings, {row['status'].text}, {row['reason'].text}"
            names = re.split(r", | and (?=\d+ more)", row["which"].text)
            more = re.fullmatch(r"(\d+) more", names[-1])
            first = self.of.get(names[0])
            page.holds(f"{where}: {names[0]} is no trial", first is not None)
            if first is None:
                continue
            those = [
                t for t in trials if (t.status, t.reason, t.problem) == (first.status, first.reason, first.problem)
            ]
            page.check(f"{where}, trials", row["trials"], len(those), count)
            shown = names[:-1] if more else names
            page.holds(f"{where}: {shown}", shown == [t.id for t in those][: len(shown)])
            if more:
                at = row["which"].start + row["which"].text.rfind(names[-1])
                page.check(f"{where}, more", Cell(more[1], at), len(those) - len(shown), count)
            else:
                page.holds(f"{where}: all are named", len(shown) == len(those))
            if first.status in ("pruned", "failed", "diverged", "unknown", "interrupted"):
                page.check(f"{where}, reason", row["reason"], first.reason)
            left -= {t.id for t in those}
        page.holds(f"endings: {sorted(left)} in no row", not left)

        self.shared(cell)

    def shared(self, cell: Cell) -> None:
        """`All 3 diverged trials have rank 8 to 16; of 5 others, 2 have that.`"""
        page = self.page
        pattern = rf"All {COUNT} (\w+) trials have ([^;]*); of {COUNT} others?, (none|\d+) ha(?:s|ve) that"
        for match in page.each(cell, pattern):
            where = f"endings, all {match[2]}"
            those = [trial for trial in self.sweep.trials if trial.status == match[2]]
            others = [trial for trial in self.sweep.trials if trial.status != match[2]]
            axis = max((k for k in self.sweep.varied if match[3].startswith(k.replace("_", " ") + " ")), key=len)
            at = match.start(3) + len(axis) + 1
            low, _, high = match[3][len(axis) + 1 :].partition(" to ")
            values = [trial.config[axis] for trial in those]
            page.check(f"{where}, low", Cell(low, cell.start + at), min(values), short)
            if high:
                page.check(f"{where}, high", Cell(high, cell.start + at + len(low) + 4), max(values), short)
            else:
                page.holds(f"{where}: {axis} differs", len(set(values)) == 1)
            too = sum(min(values) <= trial.config[axis] <= max(values) for trial in others)
            page.check(where, cell.part(match, 1), len(those), count)
            page.check(f"{where}, others", cell.part(match, 4), len(others), count)
            page.check(f"{where}, others that have it", cell.part(match, 5), too or "none")

    def problems(self) -> None:
        cell = self.page.section("Problems on disk")
        for trial in self.sweep.trials:
            if trial.problem and (at := cell.text.find(trial.problem)) >= 0:
                self.page.check(f"problems, {trial.id}", Cell(trial.problem, cell.start + at), trial.problem)

    def constants(self) -> None:
        """Names: 95 %, at which the intervals were recomputed, SHA-256, and where the folder was when it was written."""
        for match in re.finditer(r"(95) %(?= intervals?\b)|SHA-(256)", self.page.text):
            self.page.claim(*match.span(match.lastindex or 0))
        for match in re.finditer(r"opens (\S+)/study\.journal", self.page.text):
            self.page.claim(match.start(1), match.end(1))

    # the CSVs beside the page: all digits are there

    def frame(self, name: str, key: str) -> pd.DataFrame | None:
        path = self.report / name
        if not path.exists():
            return None
        return pd.read_csv(path, keep_default_na=False, na_values=[""]).set_index(key, drop=False)

    def near(self, where: str, printed: Any, value: Any) -> None:
        """A cell of a CSV: empty for what is not there."""
        missing = isinstance(printed, float) and math.isnan(printed)
        absent = value is None or (isinstance(value, float) and math.isnan(value))
        if missing or absent:
            right = missing == absent
        elif isinstance(value, bool) or not isinstance(value, int | float):
            right = str(printed) == str(value)
        else:
            right = math.isclose(float(printed), value, rel_tol=1e-9, abs_tol=1e-12)
        self.page.holds(f"{where}: {printed} in the file, recomputed {value}", right)

    def rows(self, name: str, key: str, expected: dict[Any, dict[str, Any]]) -> None:
        """A CSV has the expected rows, and in each the expected cells."""
        table = self.frame(name, key)
        if table is None:
            self.page.holds(f"{name} is missing", not expected)
            return
        self.page.holds(f"{name}: rows {list(table.index)}, not {list(expected)}", list(table.index) == list(expected))
        for label, values in expected.items():
            if label in table.index:
                row = table.loc[label]
                extra = set(table.columns) - set(values) - {key}
                self.page.holds(f"{name}: column {sorted(extra)} is not accounted for", not extra)
                for column, value in values.items():
                    self.near(f"{name}, {label}, {column}", row.get(column, math.nan), value)

    def figures(self) -> None:
        sweep, ranking = self.sweep, self.sweep.ranking
        budget = {}
        for status in dict.fromkeys(row["status"].text for row in self.page.table("", self.page.section("Budget"))):
            those = [trial for trial in sweep.trials if trial.status == status]
            taken = sum(trial.record["steps"] for trial in those)
            budget[status] = {"trials": len(those), "steps_run": taken, "steps_saved": self.saved(those)}
        self.rows("figures/budget.csv", "status", budget)
        self.rows("figures/gaps.csv", "label", self.gaps())
        kept = front([(c.loss, c.bytes) for c in ranking])
        points = {}
        for configuration, keep in zip(ranking, kept, strict=True):
            points[configuration.ids[0]] = {
                "quantizer": configuration.quantizer,
                "eval_loss": configuration.loss,
                "error": configuration.error,
                "adapter_bytes": configuration.bytes,
                "tokens": configuration.tokens,
                "front": keep,
            }
        self.rows("figures/quality-size.csv", "label", points)
        self.curves()
        self.slices()
        self.shares()

    def gaps(self) -> dict[str, dict[str, Any]]:
        headline = self.sweep.headline
        shown = headline if self.sweep.confirmed else list(best_of_each_quantizer(headline).values())
        if len(shown) < 2:
            return {}
        found = {}
        for configuration in shown:
            of = gap(headline[0], configuration) if configuration is not headline[0] else None
            found[f"{configuration.ids[0]} {configuration.quantizer}"] = {
                "quantizer": configuration.quantizer,
                "difference": of.difference if of else configuration.loss - headline[0].loss,
                "low": of.low if of else None,
                "high": of.high if of else None,
            }
        return found

    def curves(self) -> None:
        path = self.report / "figures/learning-curves.csv"
        best = self.sweep.headline[0].ids[0] if self.sweep.headline else None
        expected = []
        for trial in self.sweep.trials:
            for _, line in trial.metrics.iterrows():
                told = {"quantizer": trial.config["quantizer"], "status": trial.status, "best": trial.id == best}
                expected.append(
                    {"trial_id": trial.id, "step": int(line["step"]), "eval_loss": line["eval_loss"], **told}
                )
        expected = [line for line in expected if pd.notna(line["eval_loss"])]
        if not path.exists():
            self.page.holds("learning-curves.csv is missing", not expected)
            return
        table = pd.read_csv(path, keep_default_na=False)
        self.page.holds(f"learning-curves.csv: {len(expected)} points, not {len(table)}", len(table) == len(expected))
        for (_, row), values in zip(table.iterrows(), expected, strict=False):
            for column, value in values.items():
                self.near(f"learning-curves.csv, {values['trial_id']}, {column}", row.get(column), value)

    def slices(self) -> None:
        table = self.frame("figures/slices.csv", "trial_id")
        if table is None:
            return
        columns = [name for name in table.columns if name not in ("trial_id", "quantizer", "eval_loss", "ranked")]
        expected = {}
        for trial in self.sweep.searched:
            if trial.status in ("completed", "pruned") and not trial.problem:
                told = {"quantizer": trial.config["quantizer"], "eval_loss": trial.loss("eval"), "ranked": trial.usable}
                expected[trial.id] = told | {name: trial.config[name] for name in columns}
        self.rows("figures/slices.csv", "trial_id", expected)

    def tables(self) -> None:
        """trials.csv: a row per trial. The CSVs of tables are held against the page, which has been checked."""
        table = self.frame("trials.csv", "trial_id")
        if table is None:
            return
        self.page.holds("trials.csv: a row for each trial", sorted(table.index) == sorted(self.of))
        places = {name: place for place, c in enumerate(self.sweep.ranking, 1) for name in c.ids}
        for trial in self.sweep.trials:
            if trial.id not in table.index or trial.problem:
                continue
            told = {key: trial.record.get(key) for key in ("status", "eval_loss", "steps", "tokens", "seconds")}
            told |= {key: trial.record.get(key) for key in ("adapter_params", "adapter_bytes", "test_loss")}
            told |= {"reason": trial.reason or None, "budget": trial.config.get("steps"), "place": places.get(trial.id)}
            told |= {f"config.{key}": value for key, value in trial.config.items()}
            for column, value in told.items():
                self.near(f"trials.csv, {trial.id}, {column}", table.loc[trial.id].get(column, math.nan), value)
        self.beside()

    def beside(self) -> None:
        """Each number of tables/*.csv is what the page rounds."""
        for name, title, columns in (
            ("confirmed", "Confirmed", {"test loss": fixed(4), "gap to best": fixed(4), "in the search": fixed(4)}),
            ("quantizers", "Quantizers side by side", {"eval loss": fixed(4), "gap to best": fixed(4)}),
            ("leaderboard", "Leaderboard", {"eval loss": fixed(4), "gap to best": fixed(4)}),
            ("pareto", "Quality against size", {"eval loss": fixed(4)}),
            ("pruned", "Pruned", {"eval loss there": fixed(4), "learning rate": short}),
            (
                "budget",
                "Budget and speed",
                {"steps": count, "steps saved": count, "tokens": count, "in slots": duration},
            ),
            ("endings", "How the trials ended", {"trials": count}),
        ):
            path = self.report / "tables" / f"{name}.csv"
            if not path.exists():
                continue
            table = pd.read_csv(path, keep_default_na=False, na_values=["", "–"])
            rows = self.page.table(name, self.page.section(title))
            self.page.holds(f"tables/{name}.csv has not the page's rows", len(rows) == len(table))
            numbers = columns | {"packed size": size, "parameters": count, "bits per parameter": fixed(2)}
            for (index, values), row in zip(table.iterrows(), rows, strict=False):
                for column, holds in numbers.items():
                    if column not in row or column not in table.columns or pd.isna(values[column]):
                        continue
                    printed, value = row[column].text.partition(" ± ")[0], values[column]
                    where = f"tables/{name}.csv, row {index}, {column}: {value}, on the page {printed}"
                    self.page.holds(where, holds(printed, float(value)))


def recount(folder: Path | str) -> list[str]:
    """A line for each number of the sweep's report that is not the recomputed one, or that nothing accounts for."""
    return Recount(Path(folder)).run()


def main(folders: list[str]) -> int:
    wrong = 0
    for folder in folders:
        of = Recount(Path(folder))
        lines = of.run()
        wrong += len(lines)
        total = len(NUMBER.findall(of.page.text))
        for line in lines:
            print(f"{folder}: {line}")
        print(f"{folder}: {total} numbers on the page, {of.page.checked} checks, {len(lines)} lines of what is wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
