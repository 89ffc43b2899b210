"""The verdict in words: what won, by how much, and how sure that is."""

from __future__ import annotations

import math

from reports.cells import counted, gap, loss, percent, value
from reports.document import Code, Inline, Paragraph, Strong, plain
from reports.stats import Comparable, Row, Verdict
from reports.tables import Axes

Parts = tuple[Inline, ...]

DEFINED = "Loss is the mean cross-entropy in nats per completion token; lower is better."


def sentence(said: Verdict, begun: int, axes: Axes, confirmed: bool) -> Paragraph:
    """One sentence: what won, and by how much, or that nothing did."""
    if not said.best:
        if not begun:
            return Paragraph((Strong("No trial has begun"), ", so there is nothing to compare."))
        rest = f": none of {counted(begun, 'trial')} completed its full budget with a finite eval loss."
        return Paragraph((Strong("No trial gave a usable result"), rest))
    lead = said.best[0]
    of = f"{'a test loss' if confirmed else 'an eval loss'} of {_scored(lead)}"
    if len(said.best) > 1:
        names = [_named(row, axes) for row in said.best[:3]]
        if len(said.best) > 3:
            names.append((f"{len(said.best) - 3:,} more",))
        tied: list[Inline] = []
        for index, name in enumerate(names):
            tied += [*([" and " if index == len(names) - 1 else ", "] if index else []), *name]
        return Paragraph((*tied, " ", Strong("tie exactly"), f" with {of}", *_rival(said), "."))
    if said.rival is None:
        only = f" that completed its full budget, with {of}, so there is nothing to compare it with."
        return Paragraph((*_named(lead, axes), " is ", Strong("the only one"), only))
    if said.tied:
        both = (*_named(lead, axes), " and ", *_named(said.rival, axes), " are ", Strong("tied"))
        return Paragraph((*both, f": {of}", *_rival(said), "."))
    return Paragraph((*_named(lead, axes), " ", Strong("won"), f" with {of}", *_rival(said), "."))


def note(said: Verdict, groups: Comparable) -> Paragraph:
    """What the sentence can be relied on for."""
    confirmed = len(groups.confirmed) > 0
    parts: list[Inline] = []
    interval = said.interval
    if interval is None:
        if said.rival is not None or len(said.best) > 1:
            parts.append("No interval could be computed, so a gap of this size may be chance. ")
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
    said = f"{loss(float(row['loss']), row['error'])} nats per completion token"
    return f"{said} (mean ± standard error over {row['seeds']} seeds)" if math.isfinite(row["error"]) else said


def _rival(said: Verdict) -> Parts:
    if said.rival is None:
        return ()
    share = "" if said.percent is None else f" ({percent(said.percent)})"
    below = f", {gap(said.gap)} nats{share} below"
    at = f" at {loss(float(said.rival['loss']), said.rival['error'])}"
    if said.interval is not None:
        over = f"{said.interval.examples:,} paired examples"
        over += f" and {said.interval.seeds} seeds" if said.interval.seeds > 1 else ""
        at += f" (95 % interval of the gap {said.interval.low:.4f} to {said.interval.high:.4f}, over {over})"
    other = Strong(plain(said.rival["name"], 60))
    if said.across:
        quantizer = plain(said.rival.get("config.quantizer", ""), 60)
        return (f"{below} the best of the next quantizer, {quantizer}: ", other, at)
    return (f"{below} the next, ", other, f"{at}; no other quantizer is in the comparison")


def _named(row: Row, axes: Axes) -> Parts:
    shown = ["quantizer", "rank", "alpha", "learning_rate"]
    if "activations" in axes.varying:
        shown.insert(1, "activations")
    said = [f"{key.replace('_', ' ')} {value(key, row.get(f'config.{key}'))}" for key in shown]
    return (Strong(plain(row["name"], 60)), f" ({', '.join(said)})")
