"""What stands on top of a report: the verdict by what the sweep was searched by, and by the loss beside it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from judged import Gap
from printed_page import COUNT, LOSS, Cell, count, fixed, size
from recount_gains import Measured, Metric, metrics_of
from sweep_files import Configuration, best_of_each_quantizer, edge, front


def full_name(quantizer: str) -> str:
    return "full precision" if quantizer == "none" else quantizer


@dataclass
class Head:
    """What a verdict goes by: configurations, the best first, those that are compared, and how far each is behind."""

    ranking: list[Configuration]
    contest: list[Configuration]
    gaps: dict[str, Gap | None]
    metric: Metric | None = None  # None: the loss

    def gap(self, of: Configuration) -> Gap | None:
        return self.gaps.get(of.trials[0].id)

    @property
    def equal(self) -> list[Configuration]:
        """Those that are the best to the last bit."""
        return [c for c in self.ranking if math.isclose(c.loss, self.ranking[0].loss, rel_tol=1e-13, abs_tol=1e-13)]

    @property
    def held(self) -> list[Configuration]:
        """All that something is said of: those, and what they are compared with."""
        return [*self.equal, *(c for c in self.contest if all(c is not each for each in self.equal))]

    @property
    def rivals(self) -> list[Configuration]:
        """Those that the best has to beat."""
        own = {c.quantizer for c in self.equal}
        others = [c for c in self.contest if all(c is not each for each in self.equal)]
        across = any(c.quantizer not in own for c in self.contest)
        return [c for c in others if not across or c.quantizer not in own]

    @property
    def across(self) -> bool:
        return len({c.quantizer for c in self.contest}) > 1


class Verdicts(Measured):
    def verdict(self) -> None:
        page, sweep = self.page, self.sweep
        cell = page.section("")
        by_loss = Head(sweep.headline, sweep.contest if sweep.headline else [], sweep.behind)
        if not by_loss.ranking:
            if match := page.one("verdict", cell, rf"none of {COUNT} trials"):
                page.check("verdict, trials", cell.part(match, 1), len(sweep.begun), count)
            return
        named = (sweep.spec.get("search") or {}).get("metric") or "eval_loss"
        metric = next((metric for metric in metrics_of(sweep.spec) if metric.name == named), None)
        page.holds(f"verdict: searched by {named}", ("**Searched by**" in cell.text) == (metric is not None))
        if metric is None:
            self.by(cell, by_loss)
            return
        found, behind = self.contest(metric)
        by_trial = {c.trials[0].id: gap for c, gap in zip(found, behind, strict=True)}
        over = "test split" if sweep.confirmed and metric.set is None else "eval split"
        over = over if metric.set is None else f"eval set {metric.set}"
        better = "higher is better" if metric.higher else "lower is better"
        start = f"**Searched by** `{metric.name}` ({better}; over the {over}): "
        page.holds(f"verdict: begins with {start!r}", cell.text.lstrip().startswith(start))
        self.by(cell, Head(found, self.compared(found), by_trial, metric))
        split = by_loss.ranking[0].split
        if match := page.one("verdict", cell, rf"(?m)^By the {split} loss: (.*)$"):
            beside = cell.part(match, 1)
            self.in_short(beside, "by the loss", by_loss.ranking, [by_loss.gap(c) for c in by_loss.ranking], self.loss)

    def by(self, cell: Cell, head: Head) -> None:
        """All that is said of one verdict."""
        page, best, metric = self.page, head.ranking[0], head.metric
        named = {name: c for c in head.ranking for name in c.ids}
        for match in page.each(cell, r"\*\*([^*]+)\*\* \(([^()]*)\)"):
            page.holds(f"verdict: {match[1]} is no ranked configuration", match[1] in named)
            if match[1] in named:
                start = cell.start + match.start(2)
                self.pairs(f"verdict, {match[1]}", Cell(match[2], start), named[match[1]].config)
        first = re.search(r"\*\*([^*]+)\*\* \(", cell.text)
        page.holds("verdict: the best comes first", first is not None and first[1] in best.ids)
        kind = self.sweep.headline[0].split
        seeds = r"( \(mean ± standard error over (\d+) seeds\))?"
        of = (
            rf"an? (eval|test) loss of ({LOSS}) nats per completion token"
            if metric is None
            else rf"(has|with) ({LOSS})"
        )
        if match := page.one("verdict", cell, of + seeds):
            page.holds(f"verdict: should be of the {kind} loss", metric is not None or match[1] == kind)
            self.printed("verdict, of the best", cell.part(match, 2), best, metric)
            told = "±" in match[2]
            page.holds("verdict: says over how many seeds", bool(match[3]) == told)
            if match[3]:
                page.check("verdict, seeds", cell.part(match, 4), len(best.trials), count)
        if self.sweep.spec.get("search", {}).get("objectives") == ["loss", "bytes"]:
            self.front(cell, head.ranking)
        if match := re.search(rf"best of {COUNT} was picked", cell.text):
            page.holds("verdict: nothing was picked on the test split", kind == "eval")
            page.check("verdict, best of so many", cell.part(match, 1), len(head.ranking), count)
        self.searched(cell, head)
        if len(head.equal) > 1:
            page.holds("verdict: ties exactly", "**tie exactly**" in cell.text)
            if len(head.equal) > 3 and (match := page.one("verdict", cell, rf" and {COUNT} more \*\*tie exactly")):
                page.check("verdict, more that tie", cell.part(match, 1), len(head.equal) - 3, count)
        elif head.rivals:
            self.outcome(cell, head)
        else:
            page.holds("verdict: the only one", "the only one" in cell.text)
        if head.rivals:
            self.against(cell, head)

    def printed(self, where: str, cell: Cell, of: Configuration, metric: Metric | None) -> None:
        """A value as it was measured."""
        if metric is None:
            self.loss(where, cell, of)
        else:
            self.value(where, cell, metric, of)

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

    def outcome(self, cell: Cell, head: Head) -> None:
        """What won, is ahead on this seed, or may be the best."""
        page, best, across = self.page, head.ranking[0], head.across
        found = [head.gap(rival) for rival in head.rivals]
        tied = [rival for rival, of in zip(head.rivals, found, strict=True) if of and of.low <= 0]
        seeds = all(of and of.seeds > 1 for of in found)
        side = full_name(best.quantizer) if across else ""
        lowest = "the lowest loss" if head.metric is None else "the best that was seen"
        ahead = "is ahead on this seed" if len(best.trials) == 1 else "is ahead on these seeds"
        if tied:
            right = "Nothing won" if seeds else "Nothing is ahead"
        elif not all(found):
            right = f"has {lowest}"
        elif across:
            right = "won" if seeds else ahead
        else:
            right = "is the best found" if seeds else ahead
        if across and not tied:
            right = f"{side[0].upper()}{side[1:]} {right}"
        page.holds(f"verdict: should say {right}", f"**{right}**" in cell.text)
        if across and tied:
            sides = list(dict.fromkeys(full_name(c.quantizer) for c in (best, *tied)))
            of = len(best_of_each_quantizer(head.contest))
            best_is = f"{lowest[0].upper()}{lowest[1:]} is"
            pattern = rf"(?:any of {COUNT}|{COUNT} of {COUNT}) quantizers may be the best: (.*?)\. {best_is}"
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

    def searched(self, cell: Cell, head: Head) -> None:
        """How many trials stand behind each quantizer, what is not in the contest, and what lies at an edge."""
        page, sweep = self.page, self.sweep
        in_contest = list(best_of_each_quantizer(head.held))
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
        at = {(c.ids[0], axis, e) for c in head.held for axis in space if (e := edge(axis, c.config, sweep.spec))}
        found = set()
        for match in page.each(cell, r"the (lowest|highest) ([\w ]+) that was offered is that of ([^;.]*)"):
            names = re.findall(r"(\S+) \(", match[3])
            for side in re.finditer(r"(\S+) \(([^)]*)\)", match[3]):
                own = self.of[side[1]].config["quantizer"] if side[1] in self.of else ""
                page.check(f"verdict, {side[1]}", cell.part(match, 3).part(side, 2), full_name(own))
            axis = match[2].replace(" ", "_")
            those = [c.ids[0] for c in head.held if (c.ids[0], axis, match[1]) in at]
            found |= {(name, axis, match[1]) for name in those}
            page.holds(f"verdict: at the {match[1]} {axis} are {those}", names == those[:6])
            if more := re.search(r"and (\d+) more", match[3]):
                page.check("verdict, more at an edge", cell.part(match, 3).part(more, 1), len(those) - 6, count)
        page.holds(f"verdict: at an edge are {sorted(at)}", found == at)

    OPPONENT = r"\*\*([^*]+)\*\* at (" + LOSS + ")"

    def against(self, cell: Cell, head: Head) -> None:
        """The verdict's comparison: with whom, how far behind, how sure."""
        page, best, other, metric = self.page, head.ranking[0], head.rivals[0], head.metric
        match = page.one("verdict", cell, self.OPPONENT)
        if match is None:
            return
        page.holds(f"verdict: compared with {other.ids}", match[1] in other.ids)
        self.printed("verdict, of the other", cell.part(match, 2), other, metric)
        difference = other.loss - best.loss
        if metric is not None:
            way = (" nats" if metric.kind == "perplexity" else "") + (" above" if metric.higher else " below")
            if match := page.one("verdict", cell, rf", (-?[\d.]+){way} the next"):
                page.check("verdict, gap", cell.part(match, 1), difference, fixed(4))
        elif match := page.one("verdict", cell, r"(-?[\d.]+) nats \(([\d.]+) % of (its|full precision's) loss\) below"):
            page.check("verdict, gap", cell.part(match, 1), difference, fixed(4))
            unit = self.sweep.unit
            page.check("verdict, per cent", cell.part(match, 2), 100 * difference / unit.loss, fixed(2))
            page.holds("verdict: per cent of what", (match[3] == "its") == (unit is best))
        of = head.gap(other)
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
        page.holds("verdict's note: judged together", bool(match) == (len(head.contest) > 2))
        if match:
            page.check("verdict's note, judged together", cell.part(match, 1), len(head.contest), count)
