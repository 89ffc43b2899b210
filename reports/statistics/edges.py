"""Where the best that was found lies at the edge of what was searched: then a better one may lie beyond."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from reports.statistics.comparable import Row

NEAR: Final = 0.05
"""The part of a range, in logarithms where it is searched so, that counts as its edge."""

Edge = Literal["lowest", "highest"]


def edges(row: Row, space: dict[str, Any]) -> dict[str, Edge]:
    """The axes on which `row` lies at an edge of where `space` was searched, for those of numbers: `lowest` or `highest`.

    `space`: the spec's search space. A range that hangs on another axis is that of the value that `row` has there. Of
    choices the edges are the smallest and the largest.
    """
    found: dict[str, Edge] = {}
    for axis, domain in space.items():
        value = row.get(f"config.{axis}")
        ends = _ends(_branch(domain, row))
        if ends is None or value is None or not _number(value):
            continue
        low, high = ends
        if value <= low:
            found[axis] = "lowest"
        elif value >= high:
            found[axis] = "highest"
    return found


def _branch(domain: object, row: Row) -> object:
    if isinstance(domain, dict) and "by" in domain:
        choices = {str(key): each for key, each in domain.items() if key != "by"}
        return choices.get(str(row.get(f"config.{domain['by']}")), choices.get("default"))
    return domain


def _ends(domain: object) -> tuple[float, float] | None:
    """At or beyond which a value is at the edge; None where there is no order, or nothing to choose."""
    if isinstance(domain, list):
        if not all(_number(each) for each in domain) or len(set(domain)) < 2:
            return None
        return min(domain), max(domain)
    if not isinstance(domain, dict) or not (_number(domain.get("low")) and _number(domain.get("high"))):
        return None
    low, high = float(domain["low"]), float(domain["high"])
    if not low < high:
        return None
    if domain.get("log") is True and low > 0:
        factor = math.exp(NEAR * math.log(high / low))
        return low * factor, high / factor
    return low + NEAR * (high - low), high - NEAR * (high - low)


def _number(anything: object) -> bool:
    return isinstance(anything, int | float) and not isinstance(anything, bool) and math.isfinite(anything)
