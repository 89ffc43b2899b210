"""The verdict in words: what won, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.document.cells import counted, gap, loss, percent, value
from reports.document.document import Code, Inline, Paragraph, Strong, plain
from reports.sections.parts import Section, section
from reports.statistics.axes import Axes
from reports.statistics.comparable import Comparable, Row
from reports.statistics.findings import Findings
from reports.statistics.verdict import Rival, Verdict

Parts = tuple[Inline, ...]
DEFINED = "Loss is the mean cross-entropy in nats per completion token; lower is better."


def who_won(findings: Findings) -> Section:
    """The verdict on top of the page, and what it can be relied on for."""
    verdict, groups = findings.verdict, findings.groups
    lead = sentence(verdict, len(findings.sweep.trials), findings.axes, findings.confirmed)
    return section("", lead, note(verdict, groups) if verdict.best else None)


def sentence(verdict: Verdict, begun: int, axes: Axes, confirmed: bool) -> Paragraph:
    """One sentence: what won, and by how much, or that nothing did."""
    if not verdict.best:
        if not begun:
            return Paragraph((Strong("No trial has begun"), ", so there is nothing to compare."))
        rest = f": none of {counted(begun, 'trial')} completed its full budget with a finite eval loss."
        return Paragraph((Strong("No trial gave a usable result"), rest))
    lead = verdict.best[0]
    of = f"{'a test loss' if confirmed else 'an eval loss'} of {_scored(lead)}"
    if len(verdict.best) > 1:
        exact = _rival(verdict, verdict.rivals[0]) if verdict.rivals else ()
        return Paragraph((*_listed(verdict.best, axes), " ", Strong("tie exactly"), f" with {of}", *exact, "."))
    if not verdict.rivals:
        which = "was confirmed" if confirmed else "completed its full budget"
        only = f" that {which}, with {of}, so there is nothing to compare it with."
        return Paragraph((*_named(lead, axes), " is ", Strong("the only one"), only))
    if verdict.tied:
        others = (" with ", *_listed([rival.row for rival in verdict.tied], axes))
        below = _rival(verdict, verdict.tied[0])
        return Paragraph((*_named(lead, axes), " is ", Strong("tied"), *others, f": {of}", *below, "."))
    how = (" ", Strong("won")) if all(rival.interval for rival in verdict.rivals) else (" is ", Strong("ahead"))
    return Paragraph((*_named(lead, axes), *how, f" with {of}", *_rival(verdict, verdict.rivals[0]), "."))


def note(verdict: Verdict, groups: Comparable) -> Paragraph:
    """What the sentence can be relied on for."""
    confirmed = len(groups.confirmed) > 0
    parts: list[Inline] = []
    interval = next((rival.interval for rival in verdict.rivals if rival.interval is not None), None)
    if interval is None:
        if verdict.rivals or len(verdict.best) > 1:
            parts.append("No interval could be computed, so there is no winner: a gap of this size may be chance. ")
    elif interval.seeds > 1:
        parts.append(
            f"The interval is Student's t over {interval.examples:,} examples and {interval.seeds} seeds, each scored and"
            " run by both: what other examples and seeds could change. Tied: it holds zero. "
        )
    else:
        parts.append(
            "The interval is Student's t over the examples, each scored by both: it says what other examples of the kind"
            " could change, and nothing of another seed. Tied: it holds zero. "
        )
    if confirmed:
        parts.append(
            "The best of the search were run again on fresh seeds and scored on rows that nobody was tuned on. "
        )
    elif len(groups.ranked) > 1:
        of = f"The best of {len(groups.ranked):,} was picked on the examples it is scored on, which flatters it; "
        parts += [of, Code("confirm"), " in the spec tries the best again. "]
    return Paragraph((*parts, DEFINED), note=True)


def _scored(row: Row) -> str:
    words = f"{loss(float(row['loss']), row['error'])} nats per completion token"
    return f"{words} (mean ± standard error over {row['seeds']} seeds)" if math.isfinite(row["error"]) else words


def _rival(verdict: Verdict, rival: Rival) -> Parts:
    """How far the best is below a rival."""
    share = "" if rival.percent is None else f" ({percent(rival.percent)})"
    below = f", {gap(rival.gap)} nats{share} below"
    at = f" at {loss(float(rival.row['loss']), rival.row['error'])}"
    if (interval := rival.interval) is not None:
        over = f"{interval.examples:,} paired examples" + (f" and {interval.seeds} seeds" if interval.seeds > 1 else "")
        at += f" (95 % interval of the gap {interval.low:.4f} to {interval.high:.4f}, over {over})"
    other = Strong(plain(rival.row["name"], 60))
    if verdict.across:
        next_ = " of the next quantizer" if rival is verdict.rivals[0] else ""
        quantizer = plain(rival.row.get("config.quantizer", ""), 60)
        return (f"{below} the best{next_}, {quantizer}: " if next_ else f"{below} the best of {quantizer}, ", other, at)
    which = "the next, " if rival is verdict.rivals[0] else ""
    return (f"{below} {which}", other, f"{at}; no other quantizer is in the comparison")


def _listed(found: Sequence[Row], axes: Axes) -> Parts:
    """`a, b, c and 2 more`."""
    names = [_named(row, axes) for row in found[:3]]
    if len(found) > 3:
        names.append((f"{len(found) - 3:,} more",))
    parts: list[Inline] = []
    for index, name in enumerate(names):
        parts += [*([" and " if index == len(names) - 1 else ", "] if index else []), *name]
    return tuple(parts)


def _named(row: Row, axes: Axes) -> Parts:
    shown = ["quantizer", "rank", "alpha", "learning_rate"]
    if "activations" in axes.varying:
        shown.insert(1, "activations")
    values = [f"{key.replace('_', ' ')} {value(key, row.get(f'config.{key}'))}" for key in shown]
    return (Strong(plain(row["name"], 60)), f" ({', '.join(values)})")
