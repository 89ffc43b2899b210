"""The verdict in words: what won, by how much, and how sure that is; what was searched for it, and where that ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bitlora.config.metrics import LOSS
from reports.document.cells import counted, joined, loss, names, size, value
from reports.document.document import Bullets, Code, Inline, Paragraph, Strong, plain
from reports.load.measured import searched_by
from reports.sections.measured.metrics import Contest, in_short, searched
from reports.sections.measured.wording import Wording
from reports.sections.parts import Section, section
from reports.statistics.axes import Axes
from reports.statistics.comparable import Row
from reports.statistics.edges import edges
from reports.statistics.findings import Findings
from reports.statistics.paired import Interval
from reports.statistics.verdict import Rival, Verdict

Parts = tuple[Inline, ...]
FRONT: Final = 6
"""Configurations of a front that are named in its sentence, at most."""
DEFINED = "Loss is the mean cross-entropy in nats per completion token; lower is better."


def who_won(findings: Findings) -> Section:
    """The verdict on top of the page, what was searched for it, and what it can be relied on for. It goes by what the sweep
    was searched by; where that is a metric, the loss stays beside."""
    contest = searched(findings)
    verdict, wording = by_what(findings, contest)
    lead = sentence(verdict, len(findings.sweep.trials), findings.axes, findings.confirmed, wording)
    before: Paragraph | None = None
    beside: str | None = None
    if contest is None and (name := searched_by(findings.sweep.spec)) != LOSS:
        none = Code(name), ", which no trial at full budget has. By the loss:"
        before = Paragraph((Strong("Searched by"), " ", *none))
    elif contest is not None:
        lead = Paragraph((Strong("Searched by"), " ", *contest.what, *lead.parts))
        by_loss = Wording(None, "test" if findings.confirmed else "eval")
        beside = f"By the {by_loss.short}: {in_short(findings.verdict, by_loss)}"
    if not verdict.best:
        return section("", before, lead)
    front = on_front(findings)
    found = [
        line
        for line in (_effort(findings, verdict), _left_out(findings, verdict), _at_edges(findings, verdict))
        if line
    ]
    bullets = Bullets(tuple((line,) for line in found)) if found else None
    ranked = len(findings.groups.ranked if contest is None else contest.found)
    return section("", before, front, lead, beside, bullets, note(verdict, ranked, findings.confirmed))


def by_what(findings: Findings, contest: Contest | None) -> tuple[Verdict, Wording]:
    """The verdict by what the sweep was searched by, and how that is said.

    Args:
        contest: `searched`.
    """
    if contest is not None:
        return contest.verdict, contest.wording
    return findings.verdict, Wording(None, "test" if findings.confirmed else "eval")


def sentence(verdict: Verdict, begun: int, axes: Axes, confirmed: bool, wording: Wording) -> Paragraph:
    """What won, and by how much, or that nothing did."""
    outcome = verdict.outcome
    if outcome == "nothing":
        if not begun:
            return Paragraph((Strong("No trial has begun"), ", so there is nothing to compare."))
        rest = f": none of {counted(begun, 'trial')} completed its full budget with a finite eval loss."
        return Paragraph((Strong("No trial gave a usable result"), rest))
    lead = verdict.best[0]
    of = wording.held(lead)
    below = _rival(verdict, verdict.decisive[0], wording) if verdict.decisive else ()
    if outcome == "exact":
        return Paragraph((*_listed(verdict.best, axes), " ", Strong("tie exactly"), f" with {of}", *below, "."))
    which = "was confirmed" if confirmed else "completed its full budget"
    if outcome == "only":
        only = f" that {which}, with {of}, so there is nothing to compare it with."
        return Paragraph((*_named(lead, axes), " is ", Strong("the only one"), only))
    found: Parts = ("its best configuration found, ", *_named(lead, axes), f", has {of}", *below, ".")
    best = f"{wording.lowest[0].upper()}{wording.lowest[1:]}"
    own = side(lead)
    on = on_seeds(verdict)
    if outcome == "tied":
        if verdict.across:
            sides = tuple(dict.fromkeys((own, *(side(rival.row) for rival in verdict.tied))))
            all_of = len(sides) == len(verdict.quantizers)
            which = f"any of {len(sides)}" if all_of else f"{len(sides)} of {len(verdict.quantizers)}"
            what = f"{which} quantizers may be the best: {joined(sides)}. "
            return Paragraph((Strong(f"Nothing {on[0]}"), f"{on[1]}: {what}{best} is {own}'s: ", *found))
        held = _listed([lead, *(rival.row for rival in verdict.tied)], axes)
        lowest = (" may each be the best: ", *_named(lead, axes)[:1], f" has {of}", *below, ".")
        return Paragraph((Strong(f"Nothing {on[0]}"), f"{on[1]}: ", *held, *lowest))
    won = {"won": "won", "ahead": f"is ahead{on[1]}", "lowest": f"has {wording.lowest}"}[outcome]
    if verdict.across:
        return Paragraph((Strong(f"{own[0].upper()}{own[1:]} {won}"), ": ", *found))
    word = "is the best found" if outcome == "won" else won
    return Paragraph((*_named(lead, axes), " ", Strong(word), f" with {of}", *below, "."))


def on_front(findings: Findings) -> Paragraph | None:
    """The front, from the lowest loss to the smallest adapter; nothing where the loss alone was searched for."""
    front = findings.front
    if not front:
        return None
    parts: list[Inline] = [
        Strong(f"{counted(len(front), 'configuration')} on the front"),
        ", than which no other has a lower loss in an adapter that is no larger: ",
    ]
    for index, row in enumerate(front[:FRONT]):
        scored = f" with {loss(float(row['loss']))} at {size(row['adapter_bytes'])}"
        parts += [*(["; "] if index else []), *_named(row, findings.axes), scored]
    more = f"; and {len(front) - FRONT:,} more" if len(front) > FRONT else ""
    return Paragraph((*parts, f"{more}. By the loss alone:"))


def note(verdict: Verdict, ranked: int, confirmed: bool) -> Paragraph:
    """What the sentence can be relied on for.

    Args:
        ranked: configurations that the best was picked from.
    """
    parts: list[Inline] = []
    interval = next((rival.interval for rival in verdict.decisive if rival.interval is not None), None)
    if interval is None:
        if verdict.rivals or len(verdict.best) > 1:
            parts.append("No interval could be computed, so there is no winner: a gap of this size may be chance. ")
    else:
        parts += [_of_what(interval), _together(verdict), "Tied: it holds zero, so either may be the better one. "]
    if confirmed:
        parts.append(
            "The best of the search were run again on fresh seeds and scored on rows that nobody was tuned on. "
        )
    elif ranked > 1:
        of = f"The best of {ranked:,} was picked on the examples it is scored on, which flatters it; "
        parts += [of, Code("confirm"), " in the spec tries the best again. "]
    return Paragraph((*parts, DEFINED), note=True)


def _of_what(interval: Interval) -> str:
    grouped = f" in {interval.groups:,} groups that belong together" if interval.groups else ""
    if interval.seeds > 1:
        return (
            f"The interval is Student's t over {interval.examples:,} examples{grouped} and {interval.seeds} seeds, each"
            f" scored and run by both: what other examples and seeds could change. How far seeds are apart is pooled over"
            f" {interval.pooled} configurations. "
        )
    return (
        f"The interval is Student's t over the examples{grouped}, each scored by both: it says what other examples of the"
        " kind could change, and nothing of another seed, so nothing is said to have won. "
    )


def _together(verdict: Verdict) -> str:
    held = 1 + len(verdict.rivals)
    if held < 3:
        return ""
    return (
        f"All {held} were judged together (Tukey's range, step by step): with 95 % none that is truly the best is counted"
        " out. "
    )


def _effort(findings: Findings, verdict: Verdict) -> str:
    """How many trials at full budget stand behind each quantizer: the one that was tried more often was tuned harder."""
    ranked = findings.groups.ranked
    if not verdict.across:
        return ""
    spent = {
        name: sum(len(trials) for trials in ranked.loc[ranked["config.quantizer"] == name, "trials"])
        for name in verdict.quantizers
    }
    if len(set(spent.values())) == 1:
        trials = counted(next(iter(spent.values())), "trial")
        return f"Searched alike: {trials} at full budget for each of {len(spent)} quantizers."
    each = ", ".join(f"{side_of(name)} {count:,}" for name, count in spent.items())
    return f"Searched unequally, which favours the one with more: trials at full budget {each}."


def _left_out(findings: Findings, verdict: Verdict) -> str:
    """Quantizers that were searched and are not in the contest."""
    ranked, begun = (set(frame["config.quantizer"]) for frame in (findings.groups.ranked, findings.searched))
    lacks = "not confirmed" if findings.confirmed else "without what was searched by"
    left = []
    for name in findings.not_in(verdict):
        tried = "no trial at full budget" if name in begun else "not tried"
        left.append(f"{side_of(name)} ({lacks if name in ranked else tried})")
    return f"Asked for and not in the contest, so nothing is said of it: {', '.join(left)}." if left else ""


def _at_edges(findings: Findings, verdict: Verdict) -> str:
    """Of which of those that are compared the best lies at the edge of its range."""
    found = dict[tuple[str, str], list[str]]()
    for row in (*verdict.best, *(rival.row for rival in verdict.rivals)):
        for axis, which in edges(row, findings.space).items():
            found.setdefault((axis, which), []).append(f"{plain(row['name'], 60)} ({side(row)})")
    if not found:
        return ""
    words = [
        f"the {which} {plain(axis, 40).replace('_', ' ')} that was offered is that of {names(trials)}"
        for (axis, which), trials in found.items()
    ]
    return f"At the edge of what was searched: {'; '.join(words)}. What lies beyond was not tried."


def on_seeds(verdict: Verdict) -> tuple[str, str]:
    """`won`, or over one seed `is ahead` and on what."""
    intervals = [rival.interval for rival in verdict.decisive]
    if all(interval is not None and interval.seeds > 1 for interval in intervals):
        return "won", ""
    return "is ahead", " on this seed" if verdict.best[0]["seeds"] == 1 else " on these seeds"


def side(row: Row) -> str:
    """The quantizer of a configuration, as it is called."""
    return side_of(str(row["config.quantizer"]))


def side_of(quantizer: str) -> str:
    """A quantizer as it is called."""
    return "full precision" if quantizer == "none" else plain(quantizer, 60)


def _rival(verdict: Verdict, rival: Rival, wording: Wording) -> Parts:
    """How far the best is from a rival."""
    below = f", {wording.apart(verdict, rival.gap)}"
    at = f" at {wording.shown(rival.row)}"
    if (interval := rival.interval) is not None:
        grouped = f" in {interval.groups:,} groups" if interval.groups else ""
        seeds = f" and {interval.seeds} seeds" if interval.seeds > 1 else ""
        over = f"{interval.examples:,} paired examples{grouped}{seeds}"
        at += f" (95 % interval of the gap {interval.low:.4f} to {interval.high:.4f}, over {over})"
    other = Strong(plain(rival.row["name"], 60))
    if verdict.across:
        return (f"{below} the next quantizer, {side(rival.row)}: ", other, at)
    return (f"{below} the next, ", other, f"{at}; no other quantizer is in the comparison")


def _listed(found: Sequence[Row], axes: Axes) -> Parts:
    """`a, b, c and 2 more`."""
    named = [_named(row, axes) for row in found[:3]]
    if len(found) > 3:
        named.append((f"{len(found) - 3:,} more",))
    parts: list[Inline] = []
    for index, name in enumerate(named):
        parts += [*([" and " if index == len(named) - 1 else ", "] if index else []), *name]
    return tuple(parts)


def _named(row: Row, axes: Axes) -> Parts:
    shown = ["quantizer", "rank", "alpha", "learning_rate"]
    if "activations" in axes.varying:
        shown.insert(1, "activations")
    shown += [key for key in ("targets", "rank_pattern", "alpha_pattern", "init", "dora") if key in axes.varying]
    values = [f"{key.replace('_', ' ')} {value(key, row.get(f'config.{key}'))}" for key in shown]
    return (Strong(plain(row["name"], 60)), f" ({', '.join(values)})")
