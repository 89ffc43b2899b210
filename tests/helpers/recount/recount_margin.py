"""Whether a margin is shown to be kept, by pandas and scipy's distributions alone, and what a report says of that."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pandas as pd
from judged import apart, by_seed, ratio
from printed_page import fixed, short
from recount_cells import Cells
from scipy import optimize, stats
from sweep_files import Configuration


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


class Margins(Cells):
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
        count = Counter(c.quantizer for c in held if c is not full)
        found = {c.quantizer: held_to(share, of, full, c, [full, *others], count[c.quantizer], bare) for c in others}
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
