"""The verdict in words: what won, by how much, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.cells import counted, gap, loss, percent, value
from reports.document import Code, Inline, Paragraph, Strong, plain
from reports.stats import Comparable, Rival, Row, Verdict
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
        exact = _rival(said, said.rivals[0]) if said.rivals else ()
        return Paragraph((*_listed(said.best, axes), " ", Strong("tie exactly"), f" with {of}", *exact, "."))
    if not said.rivals:
        which = "was confirmed" if confirmed else "completed its full budget"
        only = f" that {which}, with {of}, so there is nothing to compare it with."
        return Paragraph((*_named(lead, axes), " is ", Strong("the only one"), only))
    if said.tied:
        others = (" with ", *_listed([rival.row for rival in said.tied], axes), f": {of}", *_rival(said, said.tied[0]))
        return Paragraph((*_named(lead, axes), " is ", Strong("tied"), *others, "."))
    how = (" ", Strong("won")) if all(rival.interval for rival in said.rivals) else (" is ", Strong("ahead"))
    return Paragraph((*_named(lead, axes), *how, f" with {of}", *_rival(said, said.rivals[0]), "."))


def note(said: Verdict, groups: Comparable) -> Paragraph:
    """What the sentence can be relied on for."""
    confirmed = len(groups.confirmed) > 0
    parts: list[Inline] = []
    interval = next((rival.interval for rival in said.rivals if rival.interval is not None), None)
    if interval is None:
        if said.rivals or len(said.best) > 1:
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
    said = f"{loss(float(row['loss']), row['error'])} nats per completion token"
    return f"{said} (mean ± standard error over {row['seeds']} seeds)" if math.isfinite(row["error"]) else said


def _rival(said: Verdict, rival: Rival) -> Parts:
    """How far the best is below a rival."""
    share = "" if rival.percent is None else f" ({percent(rival.percent)})"
    below = f", {gap(rival.gap)} nats{share} below"
    at = f" at {loss(float(rival.row['loss']), rival.row['error'])}"
    if (interval := rival.interval) is not None:
        over = f"{interval.examples:,} paired examples" + (f" and {interval.seeds} seeds" if interval.seeds > 1 else "")
        at += f" (95 % interval of the gap {interval.low:.4f} to {interval.high:.4f}, over {over})"
    other = Strong(plain(rival.row["name"], 60))
    if said.across:
        next_ = " of the next quantizer" if rival is said.rivals[0] else ""
        quantizer = plain(rival.row.get("config.quantizer", ""), 60)
        return (f"{below} the best{next_}, {quantizer}: " if next_ else f"{below} the best of {quantizer}, ", other, at)
    which = "the next, " if rival is said.rivals[0] else ""
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
    said = [f"{key.replace('_', ' ')} {value(key, row.get(f'config.{key}'))}" for key in shown]
    return (Strong(plain(row["name"], 60)), f" ({', '.join(said)})")
