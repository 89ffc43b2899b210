"""A report in one line, and in a small JSON file: for a terminal, a chat, a dashboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from reports.document.cells import counted, gap, joined, loss, size, value
from reports.document.document import NOTHING, plain
from reports.load.sweep import Sweep
from reports.load.values import finite
from reports.sections.measured.metrics import Contest, searched
from reports.sections.verdict import by_what, on_seeds, side
from reports.statistics.comparable import Row, rows
from reports.statistics.findings import Findings
from reports.statistics.gain import Gains
from reports.statistics.paired import Interval
from reports.statistics.quantizers import quantizer_bests
from reports.statistics.verdict import Verdict

SUMMARY: Final = "summary.json"
LONGEST: Final = 200
"""Characters of the line."""
VERSION: Final = 1
"""Of the file's layout: a key that is there keeps its meaning."""
NAMED: Final = 3
"""Quantizers or configurations that the line names, at most."""

HEADS: Final = (
    "quantizer", "at full budget", "best trial", "eval loss", "gap to best", "95 % interval", "packed size",
)  # fmt: skip
"""Of the quantizers' lines."""
LEFT: Final = (0, 2)
"""Which of these columns hold no numbers."""


def summary(found: Findings) -> dict[str, Any]:
    """What `summary.json` holds: plain data, nothing that is not finite.

    Losses and gaps are in nats per completion token; the losses of `best` are of the split `on`, `quantizers` of the
    eval split; `gain_kept` is a share, with its interval where it has one. `outcome`, `best` and `may_be_best` go by what
    was searched. Where that is not the loss there is also `searched`, the metric, its best configuration, and what that
    came to on average over its seeds; and `by_loss`, the same three by the loss.
    """
    contest, gains = searched(found), found.test_gains if found.confirmed else found.gains
    verdict, _ = by_what(found, contest)
    trials = found.sweep.trials
    quantizers = []
    for line in quantizer_bests(found.searched, found.groups, found.asked, found.search):
        at_full = line.gap is not None and line.best is not None
        quantizers.append(
            {
                "quantizer": line.quantizer,
                "began": line.began,
                "at_full_budget": line.full,
                "trial": line.best["trial_id"] if line.best and at_full else None,
                "eval_loss": finite(line.best["eval_loss"]) if line.best and at_full else None,
                "gap": line.gap,
                "interval": _ends(line.interval),
                "tied": None if line.interval is None else not line.interval.decided,
                "gain_kept": _kept(found.gains, line.best | {"loss": line.best["eval_loss"]})
                if line.best and at_full
                else None,
                "bytes": line.best["adapter_bytes"] if line.best and at_full else None,
            }
        )
    return {
        "version": VERSION,
        "sweep": found.sweep.name,
        "line": line_of(found),
        "outcome": verdict.outcome,
        "on": "test" if found.confirmed else "eval",
        **_verdict(found, verdict, gains),
        **({"front": [row["name"] for row in found.front]} if found.seeks_front else {}),
        **_searched(found, contest, gains),
        "base_loss": None if gains is None else gains.base,
        "quantizers": quantizers,
        "trials": {status: int(count) for status, count in sorted(trials["status"].value_counts().items())},
        "began": _began(found.sweep),
        "seconds": found.sweep.spent("seconds"),
        "worker_seconds": found.sweep.spent("worker_seconds"),
    }


def _verdict(found: Findings, verdict: Verdict, gains: Gains | None) -> dict[str, Any]:
    """What won."""
    return {
        "best": _best(_with_loss(found, verdict.best[0]), gains) if verdict.best else None,
        "may_be_best": [row["name"] for row in (*verdict.best, *(rival.row for rival in verdict.tied))],
    }


def _searched(found: Findings, contest: Contest | None, gains: Gains | None) -> dict[str, Any]:
    """What was searched by where that is not the loss, and the best of it; and who is best by the loss."""
    if contest is None:
        return {}
    best, metric = contest.verdict.best[0], contest.metric
    came_to = {"best": best["name"], "value": metric.shown(best["loss"])}
    own = {"metric": metric.name, "higher_is_better": metric.higher, **came_to}
    return {"searched": own, "by_loss": _verdict(found, found.verdict, gains)}


def _with_loss(found: Findings, row: Row) -> Row:
    """A configuration with its loss, where it is one of those by a metric."""
    return next(each for each in rows(found.groups.contest) if row["trial_id"] in each["trials"])


def line_of(found: Findings) -> str:
    """The verdict in at most `LONGEST` characters, plain text."""
    (verdict, wording), name = by_what(found, searched(found)), plain(found.sweep.name, 40)
    if verdict.outcome == "nothing":
        begun = len(found.sweep.trials)
        said = f"none of {counted(begun, 'trial')} gave a usable result" if begun else "no trial has begun"
        return f"{name}: {said}"
    lead = verdict.best[0]
    if front := found.front:
        ends = [f"{plain(row['name'], 30)} ({row['loss']:.4f} at {size(row['adapter_bytes'])})" for row in front]
        named = ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
        said = (
            f"{counted(len(front), 'configuration')} on the front, {'test' if found.confirmed else 'eval'} loss {named}"
        )
        return plain(f"{name}: {said}; {counted(len(found.searched), 'trial')}", LONGEST)
    on = f"{wording.short} {wording.value(lead):.4f}"
    who = f"{side(lead)} ({_configuration(lead)})"
    others = [rival.row for rival in verdict.tied]
    if verdict.outcome == "exact":
        said = f"{_named([row['name'] for row in verdict.best])} tie exactly, {on}"
    elif verdict.outcome == "only":
        said = f"only {who} can be compared, {on}"
    elif verdict.outcome == "tied":
        held = [side(row) for row in others] if verdict.across else [plain(row["name"], 30) for row in others]
        lowest = "lowest" if wording.metric is None else "best"
        said = f"nothing {''.join(on_seeds(verdict))}; {lowest} {on}, {who}; may be the best too: {_named(held)}"
    else:
        rival = verdict.decisive[0]
        apart = wording.apart(verdict, rival.gap, whose=False)
        won = f"has {wording.lowest}" if verdict.outcome == "lowest" else "".join(on_seeds(verdict))
        next_one = side(rival.row) if verdict.across else plain(rival.row["name"], 30)
        said = f"{side(lead)} {won}, {apart} {next_one}: {on} ({_configuration(lead)})"
    if wording.metric is not None:
        said = f"by {plain(wording.metric.name, 30)} ({wording.metric.direction}) {said}"
        said += f"; {'test' if found.confirmed else 'eval'} loss {_with_loss(found, lead)['loss']:.4f}"
    return plain(f"{name}: {said}; {counted(len(found.searched), 'trial')}", LONGEST)


def _configuration(row: Row) -> str:
    shown = {"rank": "rank", "learning_rate": "rate"}
    values = [f"{short} {value(key, row.get(f'config.{key}'))}" for key, short in shown.items()]
    return ", ".join([plain(row["name"], 30), *values])


def _named(found: list[str]) -> str:
    """Each once."""
    return joined(list(dict.fromkeys(found)), NAMED)


def _best(row: Row, gains: Gains | None) -> dict[str, Any]:
    left_out = {"config.confirms", *(["config.seed"] if row["seeds"] > 1 else [])}
    keys = [key for key in row if key.startswith("config.") and key not in left_out]
    config = {key.removeprefix("config."): _plain(row[key]) for key in keys}
    return {
        "trial": row["name"],
        "loss": finite(row["loss"]),
        "error": finite(row["error"]),
        "seeds": int(row["seeds"]),
        "gain_kept": _kept(gains, row),
        "bytes": row["adapter_bytes"],
        "config": {key: held for key, held in config.items() if held is not None},
    }


def _kept(gains: Gains | None, row: Row) -> dict[str, float | None] | None:
    kept = gains.kept(row) if gains is not None else None
    return None if kept is None else {"share": kept.share, "low": kept.low, "high": kept.high}


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _began(sweep: Sweep) -> str | None:
    """When the first run of the sweep began, as it was noted."""
    began = sweep.runs[0].get("began") if sweep.runs else None
    return began if isinstance(began, str) else None


def _plain(anything: object) -> Any:
    """A configuration's value as JSON has it; None for what is missing."""
    if anything is None or anything != anything:
        return None
    if isinstance(anything, str | bool | int | float | list | dict):
        return anything
    return list(anything) if isinstance(anything, tuple) else str(anything)


def quantizer_lines(told: Mapping[str, Any]) -> list[str]:
    """Of a `summary`, the quantizers side by side as lines of text, under their heads; none where there is no quantizer."""
    rows = [list(HEADS)]
    for each in told["quantizers"]:
        ends = each["interval"]
        interval = NOTHING if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}{' (tied)' if each['tied'] else ''}"
        rows.append(
            [
                plain(each["quantizer"], 30),
                f"{each['at_full_budget']} of {each['began']}",
                plain(each["trial"] or NOTHING, 30),
                loss(each["eval_loss"]),
                gap(each["gap"]),
                interval,
                size(each["bytes"]),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        sized = zip(row, widths, strict=True)
        cells = [text.ljust(width) if at in LEFT else text.rjust(width) for at, (text, width) in enumerate(sized)]
        lines.append("  ".join(cells).rstrip())
    return lines if len(rows) > 1 else []
