"""The report of a sweep: one Markdown page that a person reads, made from what is on disk alone.

The same records give the same bytes: it holds no time of day and no path of this machine.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from bitlora.record import RECORD, STATUSES, write_text
from reports import tables
from reports.load import SPEC, TRIALS, UNKNOWN, Found, Sweep, load_eval, load_sweep
from reports.stats import Row, Verdict, comparable, verdict
from reports.tables import SHOWN, Axes, text, value

REPORT: Final = "report.md"
CSV: Final = "trials.csv"

EVAL_LOSS = "Eval loss is the mean cross-entropy in nats per completion token over the eval split; lower is better."
NO_INTERVAL = (
    "One seed, no interval: this says how these runs ended, not whether a gap of this size is more than chance."
)
INTERVAL = (
    "The interval is Student's t over the eval examples, each scored by both trials: it says what other examples of the"
    " kind could change, and nothing of another seed. Tied: it holds zero."
)


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write report.md, and beside it trials.csv: every trial, with its `place` where it has one.

    Args:
        folders: the folder of a sweep; exactly one for now.
        out: the folder to write to, made if needed; None: `report` in the sweep's folder.

    Returns:
        The path of report.md.

    Raises:
        ValueError: not exactly one folder, no sweep's folder, or `out` is a file; one line for the user.
        OSError: it cannot be written.
    """
    if not folders:
        raise ValueError("no folder given: a report needs the folder of a sweep")
    if len(folders) > 1:
        raise ValueError(f"{folders[1]}: a report over several sweeps is not there yet; give one folder")
    sweep = load_sweep(folders[0])
    out = out if out is not None else sweep.folder / "report"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out}: is a file; the report needs a folder")
    write_text(out / CSV, trials_csv(sweep))
    write_text(out / REPORT, document(sweep))
    return out / REPORT


def trials_csv(sweep: Sweep) -> str:
    """Every trial as CSV, by trial_id: `Sweep.trials`, and the `place` of those that rank."""
    places = comparable(sweep.trials).ranked.set_index("trial_id")["place"]
    table = sweep.trials.copy()
    table.insert(1, "place", table["trial_id"].map(places).astype("Int64"))
    return table.to_csv(index=False, lineterminator="\n")


def document(sweep: Sweep) -> str:
    """The report on `sweep`, as Markdown."""
    trials, groups = sweep.trials, comparable(sweep.trials)
    space = _mapping(sweep.spec, "search", "space")
    axes = tables.axes(trials, space)
    choices = space.get("quantizer", _mapping(sweep.spec, "adapter").get("quantizer"))
    asked = [name for name in (choices if isinstance(choices, list) else [choices]) if isinstance(name, str)]
    said = verdict(groups.ranked, lambda trial_id: load_eval(sweep.folder, trial_id))
    chance = INTERVAL if said.interval is not None else NO_INTERVAL
    note = textwrap.fill(f"*{chance} {EVAL_LOSS}*", 120) + "\n"

    parts = [f"# Sweep {text(sweep.name)}\n", sentence(said, len(trials), axes), *([note] if said.best else [])]
    parts += ["## Set-up\n", set_up(sweep, axes)]
    lines = tables.quantizer_bests(trials, groups, asked)
    parts += [
        "## Quantizers side by side\n",
        tables.draw_quantizers(lines, axes.varying) if lines else "No trial, and no quantizer asked for.\n",
    ]
    parts += ["## Leaderboard\n"]
    if groups.ranked.empty:
        parts += ["No trial completed its full budget with a finite eval loss.\n"]
    else:
        budget = groups.ranked["budget"].iloc[0]
        parts += [f"{_trials(len(groups.ranked))} at equal budget: {budget:,} optimizer steps, all completed.\n"]
        parts += [tables.draw_ranked(groups.ranked, axes.varying)]
    if not groups.other.empty:
        parts += [
            "## Completed at another budget\n",
            "Not ranked: they did not train for as many steps as those above.\n",
        ]
        parts += [tables.draw_unranked(groups.other, axes.varying)]
    parts += ["## Pruned\n"]
    if groups.pruned.empty:
        parts += ["No trial was pruned.\n"]
    else:
        parts += ["Not ranked: each stopped early, so its loss compares only with others at the same step.\n"]
        parts += [tables.draw_unranked(groups.pruned, axes.varying)]
    parts += [
        "## How the trials ended\n",
        _counts(trials),
        *([tables.draw_endings(tables.endings(trials))] if len(trials) else []),
    ]
    parts += ["## Problems on disk\n", problems(sweep.problems)]
    parts += ["## How to repeat it\n", repeat(sweep)]
    return "\n".join(parts)


def sentence(said: Verdict, begun: int, axes: Axes) -> str:
    """One sentence: what won, and by how much, or that nothing did."""
    if not said.best:
        if not begun:
            return "**No trial has begun**, so there is nothing to compare.\n"
        return (
            f"**No trial gave a usable result**: none of {_trials(begun)} completed its full budget with a finite eval"
            " loss.\n"
        )
    lead = said.best[0]
    nats = f"{tables.loss(lead['eval_loss'])} nats per completion token"
    rival = _rival(said)
    if len(said.best) > 1:
        tied = [_named(row, axes) for row in said.best[:3]]
        rest = [f"{len(said.best) - 3:,} more"] if len(said.best) > 3 else []
        *most, last = tied + rest
        return f"{', '.join(most)} and {last} **tie exactly** with an eval loss of {nats}{rival}.\n"
    if not rival:
        return (
            f"{_named(lead, axes)} is **the only trial** that completed its full budget, with an eval loss of {nats},"
            " so there is nothing to compare it with.\n"
        )
    if said.tied and said.rival is not None:
        return f"{_named(lead, axes)} and {_named(said.rival, axes)} are **tied**: an eval loss of {nats}{rival}.\n"
    return f"{_named(lead, axes)} **won** with an eval loss of {nats}{rival}.\n"


def _rival(said: Verdict) -> str:
    if said.rival is None:
        return ""
    share = "" if said.percent is None else f" ({_percent(said.percent)})"
    other = f"{_bold(said.rival)} at {tables.loss(said.rival['eval_loss'])}"
    below = f", {tables.gap(said.gap)} nats{share} below"
    quantizer = text(said.rival.get("config.quantizer", ""), 60)
    if said.interval is not None:
        low, high = (f"{end:.4f}" for end in (said.interval.low, said.interval.high))
        other += f" (95 % interval of the gap {low} to {high}, over {said.interval.examples:,} paired examples)"
    if said.across:
        return f"{below} the best trial of the next quantizer, {quantizer}: {other}"
    return f"{below} the next trial, {other}; no other quantizer has a trial at full budget"


def _named(row: Row, axes: Axes) -> str:
    shown = ["quantizer", "rank", "alpha", "learning_rate"]
    if "activations" in axes.varying:
        shown.insert(1, "activations")
    said = [f"{key.replace('_', ' ')} {value(key, row.get(f'config.{key}'))}" for key in shown]
    return f"{_bold(row)} ({', '.join(said)})"


def _bold(row: Row) -> str:
    return f"**{text(row['trial_id'], 60)}**"


def _percent(share: float) -> str:
    return "under 0.01 %" if 0 < share < 0.005 else f"{share:.2f} %"


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count:,} trials"


def set_up(sweep: Sweep, axes: Axes) -> str:
    """What was asked for, on what, with which versions: a few lines."""
    search, scheduler = _mapping(sweep.spec, "search"), _mapping(sweep.spec, "scheduler")
    space = _mapping(search, "space")
    begun = f"{len(sweep.trials):,} began"
    asked = f"{value('trials', search['trials'])} asked for, {begun}" if "trials" in search else begun
    by = [("sampler", search.get("sampler")), ("scheduler", scheduler.get("name"))]
    asked += "".join(f"; {role} {text(name, 60)}" for role, name in by if name is not None)
    options = [f"{text(key, 40)} {value(key, scheduler[key])}" for key in ("grace", "reduction") if key in scheduler]
    asked += f" ({', '.join(options)})" if options and scheduler.get("name") not in (None, "none") else ""
    varied = [f"{text(key, 40).replace('_', ' ')}{_domain(key, space.get(key))}" for key in axes.varying]
    fixed = [f"{text(key, 40).replace('_', ' ')} {value(key, held)}" for key, held in axes.fixed.items()]
    lines = {
        "Base": _said(sweep.base or _scalars(_mapping(sweep.spec, "base")), "model"),
        "Data": _said(sweep.data or _scalars(_mapping(sweep.spec, "data")), "source"),
        "Trials": asked,
        "Varied": "; ".join(varied),
        "Held fixed": ", ".join(fixed),
        "Versions": ", ".join(f"{text(name, 60)} {_values(found)}" for name, found in sorted(sweep.versions.items())),
    }
    return "".join(f"- {title}: {line or tables.NOTHING}\n" for title, line in lines.items())


def _domain(key: str, domain: object) -> str:
    """Where the searcher looked: choices, a range, or one that hangs on another axis."""
    if isinstance(domain, list):
        return f" ({', '.join(value(key, choice) for choice in domain)})"
    if isinstance(domain, dict) and {"low", "high"} <= domain.keys():
        scale = ", log" if domain.get("log") else ""
        return f" ({value(key, domain['low'])} to {value(key, domain['high'])}{scale})"
    if isinstance(domain, dict) and "by" in domain:
        return f" (its range hangs on {text(domain['by'], 40)})"
    return " (differs between trials)"


def _said(found: Found, first: str) -> str:
    """`found` in one line; the value of the key `first` stands in front without its name, notes at the end."""
    named = [key for key in sorted(found) if key not in (first, "notes")]
    rest = [f"{text(key, 40).replace('_', ' ')} {_values(found[key])}" for key in named]
    line = ", ".join([_values(found[first])] * (first in found) + rest)
    return f"{line}. {'; '.join(text(note) for note in found['notes'])}" if "notes" in found else line


def _values(found: tuple[str, ...]) -> str:
    # A long whole number is a count (rows, parameters); a hash that is all digits is longer still.
    said = [f"{int(v):,}" if re.fullmatch(r"[1-9][0-9]{3,11}", v) else text(v) for v in found]
    return said[0] if len(said) == 1 else f"{' and '.join(said)} (trials differ)"


def _scalars(mapping: dict[str, Any]) -> Found:
    return {
        key: (str(held),) for key, held in mapping.items() if isinstance(held, str | int) and not isinstance(held, bool)
    }


def _mapping(mapping: dict[str, Any], *path: str) -> dict[str, Any]:
    """The mapping at `path` inside `mapping`; {} where there is none, since the file may be anybody's."""
    for key in path:
        found = mapping.get(key)
        mapping = found if isinstance(found, dict) else {}
    return {str(key): held for key, held in mapping.items()}


def _counts(trials: pd.DataFrame) -> str:
    if trials.empty:
        return "No trial has begun.\n"
    count = Counter(trials["status"])
    ended = [f"{count[status]:,} {status}" for status in (*STATUSES, UNKNOWN) if count[status]]
    return f"{_trials(len(trials))}: {', '.join(ended)}.\n"


def problems(lines: Sequence[str]) -> str:
    """A list of what could not be read or used."""
    shown = "".join(f"- {text(line, 300)}\n" for line in lines[:SHOWN])
    return (shown or "All that is there could be read.\n") + (
        f"\nand {len(lines) - SHOWN:,} more\n" if len(lines) > SHOWN else ""
    )


def repeat(sweep: Sweep) -> str:
    """The command that runs the sweep again, and how to go on with its files."""
    folder = _shown(sweep.folder)
    again = f"bitlora sweep {shlex.quote(f'{folder}/{SPEC}')} --out {shlex.quote(f'{folder}-again')}"
    code = f"""\
import json, pathlib, pandas as pd
records = pathlib.Path({folder!r}).glob("{TRIALS}/*/{RECORD}")
trials = pd.json_normalize([json.loads(record.read_text()) for record in records])
"""
    command = (
        _fenced("sh", again + "\n") if sweep.spec else f"{SPEC} cannot be read, so there is nothing to run again.\n"
    )
    return f"""{command}
Every trial is a line of {CSV}, beside this report. Or from the records:

{_fenced("python", code)}
Beside each record stand metrics.jsonl (a line per evaluation), eval.parquet (the loss of each example) and adapter/.
"""


def _fenced(language: str, code: str) -> str:
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}{fence}\n"


def _shown(folder: Path) -> str:
    """`folder` as it is printed: as given, but never absolute."""
    if not folder.is_absolute() and folder.name not in ("", ".."):
        return folder.as_posix()
    here, there = Path.cwd(), folder.resolve()
    return there.relative_to(here).as_posix() if here in there.parents else there.name
