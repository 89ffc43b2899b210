"""Whether a margin is shown to be kept, and what a confirmation was chosen to show of it, by pandas and scipy's
distributions alone, and what a report says of that."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from judged import apart, by_seed, ratio
from printed_page import COUNT, count, fixed, short
from recount_cells import Cells
from scipy import optimize, stats
from sweep_files import Configuration


def two(text: str, value: float) -> bool:
    """Two significant digits."""
    return math.isclose(float(text), value, rel_tol=5.1e-2)


@dataclass
class Kept:
    """One that is held to a margin."""

    shown: bool
    most: float | None  # a share; None: all of it, or more
    smallest: float


def held_to(
    share: float, of: str, full: Any, other: Any, compared: list[Any], count: int, bare: pd.DataFrame | None
) -> Kept | None:
    """`other` against `full`, where it is the best of `count` of its quantizer; `compared`: all whose seeds are pooled.

    d of an example is what `other` loses more on it than `full`, less the share of what the margin is of: full's own loss,
    or what it is below the base. The variance of R = sum(d) / sum(t) is over examples or groups; with seeds in common there
    is added what they do to the difference, pooled, and what they do to the share of full's loss, as if both went the same
    way. It is kept where R, and t standard errors one-sided, are below zero: t at 5 % over `count`.
    """
    pair = apart(full, other, compared)
    if pair is None or (of == "gain" and bare is None):
        return None
    first, second = by_seed(full, full.split), by_seed(other, full.split)
    seeds = sorted(first.keys() & second.keys())
    frame = first[seeds[0]]
    tokens = frame["tokens"].astype(float)
    one, two = (sum(side[seed]["loss"].loc[frame.index] for seed in seeds) / len(seeds) for side in (first, second))
    amount = one if of == "loss" else bare["loss"].loc[frame.index] - one
    own = pd.Series([f"example {name}" for name in frame.index], frame.index)
    groups = frame["group"].where(frame["group"].notna(), own) if "group" in frame else own
    alone = pd.Series([ratio(first[seed]) for seed in seeds]).var(ddof=1) / len(seeds) if len(seeds) > 1 else 0.0

    def parts(m: float) -> list[tuple[float, float]]:
        d = two - one - m * amount
        e = (d - d.sum() / tokens.sum() * tokens).groupby(groups).sum()
        found = [(len(e) / (len(e) - 1) * (e**2).sum() / tokens.sum() ** 2, pair.parts[0][1])]
        if len(seeds) > 1:
            variance, degrees = pair.parts[1]
            found.append(((math.sqrt(variance) + abs(m) * math.sqrt(alone)) ** 2, degrees))
        return found

    tail = 0.05 / count

    def over(m: float) -> float:
        at = (two - one - m * amount).sum() / tokens.sum()
        return float(at + math.sqrt(sum(v * stats.t.isf(tail, free) ** 2 for v, free in parts(m))))

    ends = over(-1.0), over(1.0)
    most = None if ends[1] >= 0 else -1.0 if ends[0] < 0 else optimize.brentq(over, -1, 1, xtol=1e-10)
    seen = sum(v * (stats.t.isf(tail, free) + stats.t.ppf(0.8, free)) ** 2 for v, free in parts(share))
    whole = amount.sum() / tokens.sum()
    return Kept(over(share) < 0, most, math.sqrt(seen) / whole) if whole > 0 else None


@dataclass
class Look:
    """What the search told of the confirmation to come."""

    apart: float  # of two on one seed, as a share of the loss
    freedom: float
    least: float  # the smallest margin that is shown of equals in four of five cases


def first_look(
    share: float, of: str, held: list[Configuration], bare: pd.DataFrame | None, seeds: int, rows: int
) -> Look:
    """What `held`, the configurations that were confirmed as they were in the search, tell of so many seeds and rows.

    Of the best of each quantizer against the best in full precision there is N - m X of each row, N what it loses more and
    X what the margin is of. Its variance falls as rows grow, and its degrees of freedom grow by one for each; what seeds do
    to two configurations falls with the seeds: pooled over all with several, else 0.3 % of the loss.
    """
    full = next(c for c in held if c.quantizer == "none")
    scored = {c.ids[0]: by_seed(c, "eval") for c in held}
    own = scored[full.ids[0]]
    frame = own[min(own)]
    tokens, total = frame["tokens"].astype(float), frame["tokens"].sum()
    whole = sum(each["loss"].loc[frame.index] for each in own.values()) / len(own)
    amount = whole if of == "loss" else bare["loss"].loc[frame.index] - whole
    level, variance, freedom = whole.sum() / total, (0.003 * whole.sum() / total) ** 2, 0.0
    several = [found for found in scored.values() if len(found) > 1]
    if several:
        losses = pd.DataFrame([{seed: ratio(each) for seed, each in found.items()} for found in several])
        shared = losses.dropna(axis=1)
        if len(several) > 1 and shared.shape[1] > 1:
            rest = shared.sub(shared.mean(axis=1), axis=0).sub(shared.mean(axis=0), axis=1) + shared.to_numpy().mean()
            freedom = (shared.shape[0] - 1) * (shared.shape[1] - 1)
            variance = 2 * (rest**2).to_numpy().sum() / freedom
        else:
            freedom = (losses.count(axis=1) - 1).sum()
            variance = 2 * ((losses.count(axis=1) - 1) * losses.var(axis=1, ddof=1)).sum() / freedom
    groups = frame["group"].where(frame["group"].notna(), "") if "group" in frame else pd.Series("", frame.index)
    groups = groups.where(groups != "", pd.Series([f"example {name}" for name in frame.index], frame.index))
    alike, least = Counter(c.quantizer for c in held if c is not full), 0.0
    for quantizer, times in alike.items():
        if quantizer == "none":
            continue
        best = scored[next(c for c in held if c.quantizer == quantizer).ids[0]]
        both = sorted(best.keys() & own.keys())
        n = sum(best[seed]["loss"].loc[frame.index] - own[seed]["loss"] for seed in both) / len(both)
        d = n - share * amount
        e = (d - d.sum() / total * tokens).groupby(groups).sum()
        w = tokens.groupby(groups).sum()
        over_rows = len(e) / (len(e) - 1) * (e**2).sum() / total**2
        free = (w**2).sum() ** 2 / (w**4).sum() - 1
        grown = rows / len(frame)
        parts = [(over_rows / grown, max(1.0, (free + 1) * grown - 1))]
        if seeds > 1:
            parts.append(((1 + share) ** 2 * variance / seeds, max(1, len(held) - 1) * (seeds - 1)))
        seen = sum(v * (stats.t.isf(0.05 / times, f) + stats.t.ppf(0.8, f)) ** 2 for v, f in parts)
        least = max(least, math.sqrt(seen) / (amount.sum() / total))
    return Look(math.sqrt(variance) / level, freedom, least)


class Margins(Cells):
    def chosen(self) -> None:
        """That seeds and rows were chosen, where the folder says so: how many, and from what."""
        page, sweep = self.page, self.sweep
        cell, asked = page.section("Confirmed"), sweep.spec.get("confirm") or {}
        left = [key for key in ("seeds", "rows") if asked.get(key) == "auto"]
        there = (sweep.folder / "confirm.json").exists()
        page.holds("confirmed: says what was chosen", ("chosen by `auto`" in cell.text) == (there and bool(left)))
        if not there or not left or not sweep.confirmed:
            return
        words = " and ".join(left).capitalize()
        pattern = rf"{words} were chosen by `auto`[^:]* at the {COUNT} eval rows on which it had scored ([^:]*):"
        names = [c.confirmed.id for c in sweep.confirmed if c.confirmed]
        held = [c for c in sweep.ranking if any(trial.id in names for trial in c.trials)]
        if match := page.one("chosen", cell, pattern):
            page.check("chosen, eval rows", cell.part(match, 1), len(held[0].trials[0].scores["eval"]), count)
            looked = {trial.id for c in held for trial in c.trials}
            said = match[2].partition(" and ")[0].split(", ")
            page.holds(f"chosen: from {sorted(looked)}", set(said) <= looked and len(said) == min(6, len(looked)))
            if more := re.search(rf"and {COUNT} more", match[2]):
                page.check(
                    "chosen, more that were looked at", cell.part(match, 2).part(more, 1), len(looked) - 6, count
                )
        seeds = len({trial.config["seed"] for trial in sweep.trials if trial.confirms})
        rows = len(sweep.confirmed[0].trials[0].scores["test"])
        if match := page.one("chosen", cell, rf": {COUNT} seeds? and {COUNT} test rows for each"):
            page.check("chosen, seeds", cell.part(match, 1), seeds, count)
            page.check("chosen, test rows", cell.part(match, 2), rows, count)
        share, of = asked["margin"]["share"], asked["margin"]["of"]
        for match in page.each(
            cell, rf"(\S+) % of the {of} (?:of equals|was not known)|may be taken shows (\S+) % of the"
        ):
            page.check("chosen, margin", cell.part(match, match.lastindex or 1), 100 * share, short)
        if match := re.search(rf"since it takes (30) test rows, and there are {COUNT}\.", cell.text):
            page.check("chosen, fewest rows", cell.part(match, 1), 30, count)
            page.check("chosen, rows there are", cell.part(match, 2), rows, count)
        if "was not known, since" in cell.text:
            return
        look = first_look(share, of, held, (sweep.bare or {}).get("eval"), seeds, rows)
        shown = "the cheapest that show" in cell.text
        page.holds(f"chosen: of equals {look.least} is shown", shown == (look.least <= share * (1 + 1e-9)))
        if not shown and (match := page.one("chosen", cell, r"They show (\S+) % of equals")):
            page.check("chosen, shown of equals", cell.part(match, 1), 100 * look.least, two)
        if seeds > 1 and (match := page.one("chosen", cell, r"put two (\S+) % of the loss apart, (as|which)")):
            page.check("chosen, seeds apart", cell.part(match, 1), 100 * look.apart, two)
            page.holds("chosen: says what was assumed", (match[2] == "which") == (not look.freedom))
            if look.freedom and (match := page.one("chosen", cell, rf"with {COUNT} degrees? of freedom")):
                page.check("chosen, degrees of freedom", cell.part(match, 1), look.freedom, count)

    def margin(self) -> None:
        """The columns and the note of a margin, where the spec has one."""
        page, asked = self.page, (self.sweep.spec.get("confirm") or {}).get("margin")
        cell, shown = page.section("Against full precision"), self.sweep.against_full
        page.holds("margin: of a spec without one", bool(asked) or "less than" not in cell.text)
        if not asked or not shown:
            return
        share, of = asked["share"], asked["of"]
        full, *others = (configuration for configuration, _ in shown)
        held = self.held(full)
        bare = (self.sweep.bare or {}).get(full.split)
        alike = Counter(c.quantizer for c in held if c is not full)
        found = {c.quantizer: held_to(share, of, full, c, [full, *others], alike[c.quantizer], bare) for c in others}
        head = re.compile(rf"less than (\S+) % of the {of}|by less than (\S+) % of its {of}")
        for match in page.each(cell, head.pattern):
            page.check("margin", cell.part(match, match.lastindex or 1), 100 * share, short)
        for row in page.table("full-precision", cell)[1:]:
            name = row["quantizer"].text
            one, where = found[name], f"margin, {name}"
            said = row[f"less than {100 * share:g} % of the {of}"].text
            page.holds(f"{where}: {said}", said == ("–" if one is None else "shown" if one.shown else "not shown"))
            printed = row[f"at most, % of the {of}"]
            if one is not None and one.most is not None:
                page.check(f"{where}, at most", printed, 100 * one.most, fixed(2))
        for match in page.each(cell, r"with (95) % \(one-sided|part of the (5) %"):
            page.claim(cell.start + match.start(match.lastindex), cell.start + match.end(match.lastindex))
        least = re.search(r"in four of five cases, (.*)\.", cell.text)
        for match in re.finditer(r"([\d.]+) % \(([^)]+)\)", least[1] if least else ""):
            one = found.get(match[2])
            at = cell.part(least, 1).part(match, 1)
            page.check(f"margin, {match[2]}, smallest", at, one and 100 * one.smallest, fixed(2))

    def held(self, full: Configuration) -> list[Configuration]:
        """Those among which `full` was compared: the contest, or else the search."""
        return next(held for held in (self.sweep.contest, self.sweep.compared) if any(c is full for c in held))
