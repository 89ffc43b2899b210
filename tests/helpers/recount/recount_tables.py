"""A report's tables, and the sentences about them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pandas as pd
from judged import gaps
from ped_anova import chances, importances
from printed_page import (
    COUNT,
    LOSS,
    Cell,
    count,
    duration,
    fixed,
    short,
)
from recount_cells import Cells
from sweep_files import Configuration, Trial, best_of_each_quantizer, read_scores


class Tables(Cells):
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
            self.gain(where, row, configuration)
            evals = pd.Series([trial.loss("eval") for trial in configuration.trials])
            page.check(f"{where}, eval loss on these seeds", row["eval loss on these seeds"], evals.mean(), fixed(4))
            before = next((c.loss for c in self.sweep.ranking if of.id in c.ids), of.loss("eval"))  # over its seeds
            page.check(f"{where}, in the search", row["in the search"], before, fixed(4))
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
                self.gain(where, row, by[name])
                self.settings(where, row, by[name].config, by[name].trials[0].record)
            elif "†" in row["best trial"].text:
                self.unranked(where, row, with_it, cell)

    def full_precision(self) -> None:
        """Each quantizer's best behind that of full precision, in per cent of its loss."""
        page, expected = self.page, self.sweep.against_full
        cell = page.section("Against full precision")
        if not expected:
            page.holds("against: nothing to hold against full precision", not cell.text)
            return
        rows = page.table("full-precision", cell)
        named = [configuration.quantizer for configuration, _ in expected]
        page.holds(f"against: {named}", [row["quantizer"].text for row in rows] == named)
        full = expected[0][0]
        for row, (configuration, found) in zip(rows, expected, strict=False):
            where = f"against, {configuration.quantizer}"
            page.check(f"{where}, trial", row["best trial"], configuration.ids[0])
            self.settings(where, row, {"quantizer": configuration.quantizer}, configuration.trials[0].record)
            page.check(f"{where}, size", row["size, %"], 100 * configuration.bytes / full.bytes, fixed(2))
            self.loss(f"{where}, loss", row.get("test loss") or row["eval loss"], configuration)
            page.check(f"{where}, gap", row["gap, %"], 100 * (configuration.loss / full.loss - 1), fixed(2))
            self.interval(f"{where}, interval", row["95 % interval of the gap, %"], found, 100 / full.loss, 2)
            self.gain(where, row, configuration)

    def unranked(self, where: str, row: dict[str, Cell], with_it: list[Trial], cell: Cell) -> None:
        """The best of a quantizer of which none got to the end: the lowest loss of those that were stopped."""
        page = self.page
        stopped = [t for t in with_it if t.status == "pruned" and not t.in_part]
        best = min(stopped, key=lambda t: t.record["eval_loss"], default=None)
        page.holds(f"{where}: none was stopped", best is not None)
        if best is None:
            return
        page.check(where, row["best trial"], f"{best.id} †")
        page.check(f"{where}, eval loss", row["eval loss"], best.record["eval_loss"], fixed(4))
        self.settings(f"{where}, unranked", row, best.config, best.record)
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
        if match := re.search(r"those of the first (\d+):", cell.text):
            page.check("leaderboard, with an interval", cell.part(match, 1), 10, count)
        if match := re.search(r"Those of the gain kept are of the first (\d+),", cell.text):
            page.check("leaderboard, with an interval of the gain", cell.part(match, 1), 30, count)
        rows = page.table("leaderboard", cell)
        page.holds(f"leaderboard: {len(ranking)} rows", len(rows) == len(ranking))
        for place, (row, configuration) in enumerate(zip(rows, ranking, strict=False), 1):
            where = f"leaderboard, place {place}"
            page.check(where, row["place"], place, count)
            page.check(where, row.get("trial") or row["trials"], ", ".join(configuration.ids))
            self.loss(f"{where}, eval loss", row["eval loss"], configuration)
            self.behind(where, row, ranking[0], configuration)
            self.gain(where, row, configuration)
            if "seeds" in row:
                page.check(f"{where}, seeds", row["seeds"], len(configuration.trials), count)
            self.settings(where, row, configuration.config, configuration.trials[0].record)

    def pareto(self) -> None:
        page, ranking = self.page, self.sweep.ranking
        cell = page.section("Quality against size")
        if not ranking:
            return
        best = self.sweep.front
        rows = page.table("pareto", cell)
        page.holds(f"pareto: {[c.ids for c in best]}", len(rows) == len(best))
        for row, configuration in zip(rows, best, strict=False):
            name = row["trial"].text
            page.holds(f"pareto: {name} should be {configuration.ids}", name in configuration.ids)
            self.loss(f"pareto, {name}, eval loss", row["eval loss"], configuration)
            self.gain(f"pareto, {name}", row, configuration)
            page.check(f"pareto, {name}, tokens trained", row["tokens trained"], configuration.tokens, count)
            self.settings(f"pareto, {name}", row, configuration.config, configuration.trials[0].record)

    def importances(self) -> None:
        page, sweep = self.page, self.sweep
        cell = page.section("What mattered")
        full = sum(trial.usable for trial in sweep.searched)
        for match in page.each(cell, r"(?:over |from chance: |budget \()(\d+) of (\d+)(?:, not (\d+))?"):
            page.check("importances, trials", cell.part(match, 1), full, count)
            page.check("importances, of all", cell.part(match, 2), len(sweep.searched), count)
            page.holds("importances: drawn from so many on", bool(match[3]) == (full < 30))
            if match[3]:
                page.check("importances, fewest", cell.part(match, 3), 30, count)
        if match := re.search(r"What sets the best (\d+) apart", cell.text):
            page.check("importances, the best", cell.part(match, 1), max(5, math.ceil(full / 10)), count)

    def shares(self) -> None:
        """PED-ANOVA over the trials at equal budget. An axis is one of choices if the spec lists them (for every
        quantizer, where it hangs on that) or its values are no numbers, and else a range; the learning rate's is of
        logarithms."""
        space = (self.sweep.spec.get("search") or {}).get("space") or {}
        trials = [trial for trial in self.sweep.searched if trial.usable]
        path = self.report / "figures/importances.csv"
        if len(trials) < 30:
            self.page.holds("importances.csv of too few trials", not path.exists())
            return
        ranges, choices, hang = {}, {}, {}
        for axis in sorted(self.sweep.varied - {"seed"}):
            values = [trial.config[axis] for trial in trials]
            asked = space.get(axis)
            given = [part for key, part in asked.items() if key != "by"] if isinstance(asked, dict) else [asked]
            if isinstance(asked, dict) and "by" in asked:
                hang[axis] = [trial.config[asked["by"]] for trial in trials]
            listed = all(isinstance(part, list) for part in given)
            if len(set(values)) > 1 and (listed or isinstance(values[0], str | bool)):
                choices[axis] = values
            elif len(set(values)) > 1:
                ranges[axis] = [math.log(v) for v in values] if axis == "learning_rate" else values
        losses = [trial.record["eval_loss"] for trial in trials]  # to the last bit: ties
        found, limits = importances(losses, ranges, choices), chances(losses, ranges, choices, hang)
        beyond = {axis for axis, share in found.items() if share > limits[axis]}
        self.page.holds(f"importances: beyond chance are {sorted(beyond)}", path.exists() == bool(beyond))
        table = pd.read_csv(path).set_index("axis") if path.exists() else pd.DataFrame()
        self.page.holds(f"importances.csv: axes are {sorted(found)}", not beyond or set(table.index) == set(found))
        cell, page = self.page.section("What mattered"), self.page
        for axis, share in found.items():
            for column, value in (("importance", share), ("chance", limits[axis]), ("told", axis in beyond)):
                right = not beyond or (
                    axis in table.index and abs(float(table.loc[axis, column]) - float(value)) < 1e-9
                )
                page.holds(f"importances.csv, {axis}, {column}: recomputed {value}", right)
            if match := page.one("importances", cell, rf"{axis.replace('_', ' ')} \(([\d.]+), chance ([\d.]+)\)"):
                page.check(f"importances, {axis}", cell.part(match, 1), share, fixed(2))
                page.check(f"importances, {axis}, chance", cell.part(match, 2), limits[axis], fixed(2))
                within = cell.text.find("Within chance:")
                page.holds(f"importances, {axis}: within chance", (0 <= within < match.start()) == (axis not in beyond))

    def budget(self) -> None:
        page, trials = self.page, self.sweep.trained
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
            column = "on fewer rows" if trial.in_part else "eval loss there"
            page.check(f"{where}, eval loss", row[column], trial.loss("eval"), fixed(4))
            if trial.in_part:
                page.check(f"{where}, rows", row["rows"], len(trial.scores["eval"]), count)
                page.holds(f"{where}: no loss over all rows", row["eval loss there"].text == "–")
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
        match = re.search(rf"Of these, {COUNT} took over the result of another", cell.text)
        twins = len(trials) - len(self.sweep.trained)
        page.holds("endings: says that trials have another's result", bool(match) == bool(twins))
        if match:
            page.check("endings, with another's result", cell.part(match, 1), twins, count)
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
            those = [trial for trial in self.sweep.trained if trial.status == match[2]]
            others = [trial for trial in self.sweep.trained if trial.status != match[2]]
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

    def soup(self) -> None:
        """The average of finalists and they, by what `soup/` says that each scored, all judged together."""
        page, folder = self.page, self.sweep.folder / "soup"
        cell = page.section("A soup of the finalists")
        page.holds("soup: it is there, or is not", bool(cell.text) == (folder / "record.json").exists())
        if not cell.text:
            return
        of = json.loads((folder / "record.json").read_text())["of"]
        seeds = sorted(set.intersection(*({int(seed) for seed in trials} for trials in of.values())))

        def scored(places: dict[int, Path]) -> Configuration:
            return Configuration(
                [Trial("", {"config": {"seed": seed}}, None, {"test": read_scores(at, "test")})
                 for seed, at in places.items()], "test",
            )  # fmt: skip

        own = scored({seed: folder / str(seed) for seed in seeds})
        others = {
            name: scored({seed: folder / str(seed) / trials[str(seed)] for seed in seeds})
            for name, trials in of.items()
        }
        apart = dict(zip(others, gaps(own, list(others.values())).values(), strict=True))
        if match := page.one("soup", cell, rf"on the {COUNT} rows of\sthe\stest\ssplit, on {COUNT} seeds?\."):
            page.check("soup, rows", cell.part(match, 1), len(own.trials[0].scores["test"]), count)
            page.check("soup, seeds", cell.part(match, 2), len(seeds), count)
        least = min(other.loss for other in others.values())
        if own.loss >= least:
            right, wanted = "The soup is not better", rf"its test loss is ({LOSS}), the best of them has ({LOSS})\."
        elif all(gap is not None and gap.low > 0 for gap in apart.values()):
            right, wanted = "The soup is better than each of them", rf"with (?:95) %, .*?: its test loss is ({LOSS})"
        else:
            right, wanted = "The soup has the lowest loss, and may be no better", rf"its test loss is ({LOSS});"
        page.holds(f"soup: should say {right}", f"**{right}**" in cell.text)
        if match := page.one("soup", cell, wanted):
            page.check("soup, its loss", cell.part(match, 1), own.loss, fixed(4))
            if match.lastindex == 2:
                page.check("soup, the best of them", cell.part(match, 2), least, fixed(4))
        rows = {row["adapter"].text: row for row in page.table("soup", cell)}
        order = sorted(others, key=lambda name: others[name].loss)
        page.holds("soup: all are there, the best first", list(rows) == ["soup", *order])
        for name, configuration in {"soup": own, **others}.items():
            page.check(f"soup, {name}", rows[name]["test loss"], configuration.loss, fixed(4))
            if name in apart:
                self.interval(f"soup, above it, {name}", rows[name]["above the soup, 95 %"], apart[name])

    def problems(self) -> None:
        cell = self.page.section("Problems on disk")
        for trial in self.sweep.trials:
            if trial.problem and (at := cell.text.find(trial.problem)) >= 0:
                self.page.check(f"problems, {trial.id}", Cell(trial.problem, cell.start + at), trial.problem)

    def constants(self) -> None:
        """Names: 95 %, at which the intervals were recomputed, SHA-256, and where the folder was when it was written."""
        for match in re.finditer(
            r"(95) %(?= intervals?\b|\snone\sthat|, all axes|, all judged| +\|)|SHA-(256)", self.page.text
        ):
            self.page.claim(*match.span(match.lastindex or 0))
        for match in re.finditer(r"opens (\S+)/study\.journal", self.page.text):
            self.page.claim(match.start(1), match.end(1))
