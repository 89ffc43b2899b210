"""What a report says of itself: its title, the set-up, the files behind it."""

from __future__ import annotations

import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Any

from printed_page import (
    COUNT,
    Cell,
    Row,
    count,
    duration,
    fixed,
    same,
    short,
)
from recount_cells import Cells
from sweep_files import ratio


def digits(text: str, value: float) -> bool:
    """Three of them."""
    return math.isclose(float(text), value, rel_tol=5.1e-3)


class Words(Cells):
    def files(self) -> None:
        """Records, curves and scores agree with each other: the page is made of all three."""
        for trial in self.sweep.trials:
            for split in trial.scores:
                loss, told = ratio(trial.scores[split]), trial.record.get(f"{split}_loss")
                right = told is not None and math.isclose(loss, told, rel_tol=1e-9)
                self.page.holds(f"{trial.id}: {split}_loss is {told}, by {split}.parquet {loss}", right)
            if "eval" in trial.scores:
                rows, told = len(trial.scores["eval"]), trial.record.get("data", {}).get("eval_rows")
                told = trial.record.get("eval_rows") or told  # of one that was stopped on fewer
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
            whole = lines[name].text
            # several files have commas between them
            first = facts[main] if whole.startswith(f"{facts[main]}, ") else whole.partition(", ")[0]
            rest = whole[len(first) + 2 :]
            page.check(f"set-up, {main}", Cell(first, lines[name].start), facts[main])
            self.pairs(f"set-up, {key}", Cell(rest, lines[name].start + len(first) + 2), facts, counted)
            said = {match[1] for match in re.finditer(r"(?:^|, )([a-z ]+) \S", rest)}
            absent = {k.replace("_", " ") for k, v in facts.items() if k != main and v is not None} - said
            page.holds(f"set-up: {sorted(absent)} of {key} is missing", not absent)
        self.pairs("set-up, version of", lines["Versions"], records[0]["versions"], same)
        page.holds("set-up: versions differ", all(r["versions"] == records[0]["versions"] for r in records))
        if "Adapters on" in lines:
            self.adapted(lines["Adapters on"], [r["base"] for r in records])
        self.asked(lines["Trials"])
        self.axes(lines["Varied"])
        self.pairs("set-up, held fixed", lines["Held fixed"], self.fixed_values())
        if match := page.one("set-up", lines["Spec"], r"SHA-256 ([0-9a-f]+)…"):
            digest = hashlib.sha256((sweep.folder / "sweep.yaml").read_bytes()).hexdigest()
            page.check("set-up, SHA-256", lines["Spec"].part(match, 1), digest[:16])
        if "A trial in full" in lines:
            self.in_full(lines["A trial in full"])
        if sweep.runs:
            self.ran(lines)

    def adapted(self, cell: Cell, bases: list[dict[str, Any]]) -> None:
        """The share of the base that is in layers with adapters: of all trials, or the least and the most."""
        shares = [100 * base["adapted_params"] / base["params"] for base in bases]
        found = list(re.finditer(r"([\d.]+) %", cell.text))
        ends = [min(shares)] if len(found) == 1 else [min(shares), max(shares)]
        for match, share in zip(found, ends, strict=True):
            self.page.check("set-up, adapters on", cell.part(match, 1), share, fixed(1))
        self.page.holds("set-up: adapters on as much everywhere", len(found) > 1 or max(shares) - min(shares) < 0.1)

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
            page.check("set-up, trials that began", cell.part(match, 1), len(self.sweep.begun), count)
        if match := re.search(r"sampler (\w+)", cell.text):
            page.check("set-up, sampler", cell.part(match, 1), search.get("sampler"))
        if match := re.search(r"scheduler (\w+)(?: \(([^)]*)\))?", cell.text):
            scheduler = spec.get("scheduler") or {}
            page.check("set-up, scheduler", cell.part(match, 1), scheduler.get("name"))
            if match[2]:
                self.pairs("set-up, scheduler", cell.part(match, 2), scheduler)
        for prior in {run["prior"] for run in self.sweep.runs if run.get("prior")}:  # as the driver told it
            at = cell.text.find(prior)
            page.check("set-up, prior", Cell(prior if at >= 0 else "", cell.start + at), prior)
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
        if match := page.one("set-up, time", cell, r"^(?:([\d-]+ [\d:]+) UTC, )?([\w. ]+?) in all"):
            began = datetime.fromisoformat(runs[0]["began"]).astimezone(UTC).isoformat(" ", "minutes")
            if match[1]:  # reports of before do not say it
                page.check("set-up, began", cell.part(match, 1), began.removesuffix("+00:00"))
            page.check("set-up, time in all", cell.part(match, 2), sum(run["seconds"] for run in runs), duration)
        if match := re.search(r"; ([\w. ]+?) of workers with ([\d.]+) (GPU|CPU)", cell.text):
            page.check("set-up, time of workers", cell.part(match, 1), self.worker_seconds, duration)
            page.check("set-up, of a worker", cell.part(match, 2), last["worker"].get(match[3]), short)
        price = (self.sweep.spec.get("resources") or {}).get("price_per_hour")
        if price is not None and (
            match := page.one("set-up, cost", cell, r"; (\S+) (?:GPU|worker) hours at (\S+) are (\S+)$")
        ):
            hours = self.worker_seconds / 3600 * (last["worker"].get("GPU") or 1)
            for group, value, holds in ((1, hours, digits), (2, price, short), (3, hours * price, fixed(2))):
                page.check("set-up, cost", cell.part(match, group), value, holds)
        page.holds("set-up: a cost without a price", price is not None or "hours at" not in cell.text)

    def in_full(self, cell: Cell) -> None:
        """Steps, rows and epochs of a trial that is not stopped, where all trials have them alike."""
        each = [(t.config["steps"], t.config["batch_size"], t.record["data"]["train_rows"]) for t in self.sweep.trials]
        pattern = rf"^{COUNT} steps? of {COUNT} rows?, (\S+) (% of an epoch|epochs)$"
        if match := self.page.one("set-up, a trial in full", cell, pattern):
            self.page.holds("set-up: trials differ in steps, rows or data", len(set(each)) == 1)
            steps, batch, rows = each[0]
            share = steps * batch / rows * (100 if "%" in match[4] else 1)
            for group, value, holds in ((1, steps, count), (2, batch, count), (3, share, digits)):
                self.page.check("set-up, a trial in full", cell.part(match, group), value, holds)
