"""What a report says in sentences: the verdict, the set-up, the files behind it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from printed_page import (
    COUNT,
    LOSS,
    Cell,
    Row,
    count,
    duration,
    fixed,
    same,
    short,
    size,
)
from recount_cells import Cells
from sweep_files import Configuration, best_of_each_quantizer, edge, front, ratio


def digits(text: str, value: float) -> bool:
    """Three of them."""
    return math.isclose(float(text), value, rel_tol=5.1e-3)


def full_name(quantizer: str) -> str:
    return "full precision" if quantizer == "none" else quantizer


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

    def verdict(self) -> None:
        page, ranking = self.page, self.sweep.headline
        cell = page.section("")
        if not ranking:
            if match := page.one("verdict", cell, rf"none of {COUNT} trials"):
                page.check("verdict, trials", cell.part(match, 1), len(self.sweep.searched), count)
            return
        best, sweep = ranking[0], self.sweep
        named = {name: c for c in ranking for name in c.ids}
        for match in page.each(cell, r"\*\*([^*]+)\*\* \(([^()]*)\)"):
            page.holds(f"verdict: {match[1]} is no ranked configuration", match[1] in named)
            if match[1] in named:
                start = cell.start + match.start(2)
                self.pairs(f"verdict, {match[1]}", Cell(match[2], start), named[match[1]].config)
        first = re.search(r"\*\*([^*]+)\*\* \(", cell.text)
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
        if sweep.spec.get("search", {}).get("objectives") == ["loss", "bytes"]:
            self.front(cell, ranking)
        if match := re.search(rf"best of {COUNT} was picked", cell.text):
            page.holds("verdict: nothing was picked on the test split", kind == "eval")
            page.check("verdict, best of so many", cell.part(match, 1), len(ranking), count)
        self.searched(cell)
        sides = best_of_each_quantizer(sweep.contest)
        across = len(sides) > 1
        rivals = [c for c in sweep.contest[1:] if not across or c.quantizer != best.quantizer]
        if not rivals:
            page.holds("verdict: the only one", "the only one" in cell.text)
            return
        self.outcome(cell, best, rivals, across)
        self.against(cell, best, rivals)

    def front(self, cell: Cell, ranking: list[Configuration]) -> None:
        """Those on the front: how many, and each by its loss and its bytes, the lowest loss first."""
        kept = front([(c.loss, c.bytes) for c in ranking])
        best = sorted((c for c, keep in zip(ranking, kept, strict=True) if keep), key=lambda c: (c.loss, c.bytes))
        if match := self.page.one("front", cell, rf"\*\*{COUNT} configurations? on the front\*\*"):
            self.page.check("front, how many", cell.part(match, 1), len(best), count)
        if match := re.search(rf"; and {COUNT} more\. By the loss alone", cell.text):
            self.page.check("front, more", cell.part(match, 1), len(best) - 6, count)
        said = list(self.page.each(cell, rf"\*\*([^*]+)\*\* \([^()]*\) with ({LOSS}) at ([\d.]+ [KMG]?B)"))
        self.page.holds("front: how many are named", len(said) == min(6, len(best)))
        for match, configuration in zip(said, best, strict=False):
            self.page.holds(f"front: {match[1]} is not {configuration.ids}", match[1] in configuration.ids)
            self.page.check("front, loss", cell.part(match, 2), configuration.loss, fixed(4))
            self.page.check("front, size", cell.part(match, 3), configuration.bytes, size)

    def outcome(self, cell: Cell, best: Configuration, rivals: list[Configuration], across: bool) -> None:
        """What won, is ahead on this seed, or may be the best."""
        page, sweep = self.page, self.sweep
        found = [sweep.gap(rival) for rival in rivals]
        tied = [rival for rival, of in zip(rivals, found, strict=True) if of and of.low <= 0]
        seeds = all(of and of.seeds > 1 for of in found)
        side = full_name(best.quantizer) if across else ""
        if tied:
            right = "Nothing won" if seeds else "Nothing is ahead"
        elif not all(found):
            right = "has the lowest loss"
        elif across:
            right = "won" if seeds else "is ahead on this seed"
        else:
            right = "is the best found" if seeds else "is ahead on this seed"
        if across and not tied:
            right = f"{side[0].upper()}{side[1:]} {right}"
        page.holds(f"verdict: should say {right}", f"**{right}**" in cell.text)
        if across and tied:
            sides = list(dict.fromkeys(full_name(c.quantizer) for c in (best, *tied)))
            of = len(best_of_each_quantizer(sweep.contest))
            pattern = rf"(?:any of {COUNT}|{COUNT} of {COUNT}) quantizers may be the best: (.*?)\. The lowest"
            if match := page.one("verdict", cell, pattern):
                for group, value in ((1, of), (2, len(sides)), (3, of)):
                    if match[group]:
                        page.check("verdict, how many may be the best", cell.part(match, group), value, count)
                page.holds("verdict: any where all may be", bool(match[1]) == (len(sides) == of))
                page.holds(f"verdict: may be the best: {sides}", re.split(r", | and ", match[4]) == sides)
                page.claim(cell.start + match.start(4), cell.start + match.end(4))
        elif tied:
            names = re.findall(r"\*\*([^*]+)\*\* \(", cell.text)
            page.holds("verdict: tied", names == [c.ids[0] for c in (best, *tied)][:3])
            if len(tied) > 2 and (match := page.one("verdict", cell, rf" and {COUNT} more may each")):
                page.check("verdict, more that are tied", cell.part(match, 1), len(tied) - 2, count)

    def searched(self, cell: Cell) -> None:
        """How many trials stand behind each quantizer, what is not in the contest, and what lies at an edge."""
        page, sweep = self.page, self.sweep
        in_contest = list(best_of_each_quantizer(sweep.contest))
        spent = {name: sum(t.usable and t.config["quantizer"] == name for t in sweep.searched) for name in in_contest}
        if len(spent) > 1 and len(set(spent.values())) == 1:
            if match := page.one("verdict", cell, rf"alike: {COUNT} trials? at full budget for each of {COUNT} quant"):
                page.check("verdict, trials of each", cell.part(match, 1), max(spent.values()), count)
                page.check("verdict, quantizers", cell.part(match, 2), len(spent), count)
        elif len(spent) > 1 and (match := page.one("verdict", cell, r"trials at full budget ([^.]*)\.")):
            self.pairs("verdict, trials", cell.part(match, 1), {full_name(k): v for k, v in spent.items()}, count)
        space = (sweep.spec.get("search") or {}).get("space") or {}
        asked = space.get("quantizer", [(sweep.spec.get("adapter") or {}).get("quantizer", "none")])
        searched = {t.config["quantizer"] for t in sweep.searched} | set(asked)
        left = {full_name(name) for name in searched - set(in_contest)}
        match = re.search(r"nothing is said of it: (.*)\.", cell.text)
        said = set(re.findall(r"(?:^|, )([^,(]+) \(", match[1])) if match else set()
        page.holds(f"verdict: not in the contest are {sorted(left)}", said == left)
        at = {(c.ids[0], axis, e) for c in sweep.contest for axis in space if (e := edge(axis, c.config, sweep.spec))}
        found = set()
        for match in page.each(cell, r"the (lowest|highest) ([\w ]+) that was offered is that of ([^;.]*)"):
            names = re.findall(r"(\S+) \(", match[3])
            for side in re.finditer(r"(\S+) \(([^)]*)\)", match[3]):
                own = self.of[side[1]].config["quantizer"] if side[1] in self.of else ""
                page.check(f"verdict, {side[1]}", cell.part(match, 3).part(side, 2), full_name(own))
            axis = match[2].replace(" ", "_")
            those = [c.ids[0] for c in sweep.contest if (c.ids[0], axis, match[1]) in at]
            found |= {(name, axis, match[1]) for name in those}
            page.holds(f"verdict: at the {match[1]} {axis} are {those}", names == those[:6])
            if more := re.search(r"and (\d+) more", match[3]):
                page.check("verdict, more at an edge", cell.part(match, 3).part(more, 1), len(those) - 6, count)
        page.holds(f"verdict: at an edge are {sorted(at)}", found == at)

    OPPONENT = r"\*\*([^*]+)\*\* at (" + LOSS + ")"

    def against(self, cell: Cell, best: Configuration, rivals: list[Configuration]) -> None:
        """The verdict's comparison: with whom, how far behind, how sure."""
        page, sweep, other = self.page, self.sweep, rivals[0]
        match = page.one("verdict", cell, self.OPPONENT)
        if match is None:
            return
        page.holds(f"verdict: compared with {other.ids}", match[1] in other.ids)
        self.loss("verdict, loss of the other", cell.part(match, 2), other)
        difference = other.loss - best.loss
        if match := page.one("verdict", cell, r"(-?[\d.]+) nats \(([\d.]+) % of (its|full precision's) loss\) below"):
            page.check("verdict, gap", cell.part(match, 1), difference, fixed(4))
            page.check("verdict, per cent", cell.part(match, 2), 100 * difference / sweep.unit.loss, fixed(2))
            page.holds("verdict: per cent of what", (match[3] == "its") == (sweep.unit is best))
        of = sweep.gap(other)
        if of is None:
            return
        pattern = (
            rf"\(95 % interval of the gap (-?[\d.]+) to (-?[\d.]+), over {COUNT} paired examples(?: in {COUNT} groups)?"
            r"( and (\d+) seeds)?\)"
        )
        if match := page.one("verdict", cell, pattern):
            page.check("verdict, low end", cell.part(match, 1), of.low, fixed(4))
            page.check("verdict, high end", cell.part(match, 2), of.high, fixed(4))
            page.check("verdict, examples", cell.part(match, 3), of.examples, count)
            page.holds("verdict: says how many groups", bool(match[4]) == bool(of.groups))
            if match[4]:
                page.check("verdict, groups", cell.part(match, 4), of.groups, count)
            page.holds("verdict: says how many seeds", bool(match[5]) == (of.seeds > 1))
            if match[5]:
                page.check("verdict, seeds in common", cell.part(match, 6), of.seeds, count)
        pattern = rf"over {COUNT} examples(?: in {COUNT} groups that belong together)? and (\d+) seeds, each\s"
        if match := re.search(pattern, cell.text):
            page.check("verdict's note, examples", cell.part(match, 1), of.examples, count)
            if match[2]:
                page.check("verdict's note, groups", cell.part(match, 2), of.groups, count)
            page.check("verdict's note, seeds", cell.part(match, 3), of.seeds, count)
        elif match := re.search(rf"over the examples in {COUNT} groups", cell.text):
            page.check("verdict's note, groups", cell.part(match, 1), of.groups, count)
        if match := re.search(r"pooled over\s(\d+)\sconfigurations", cell.text):
            page.check("verdict's note, pooled", cell.part(match, 1), of.pooled, count)
        match = re.search(r"All (\d+) were judged together", cell.text)
        page.holds("verdict's note: judged together", bool(match) == (len(sweep.contest) > 2))
        if match:
            page.check("verdict's note, judged together", cell.part(match, 1), len(sweep.contest), count)

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
