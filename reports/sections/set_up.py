"""What was asked for, on what, with which code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import pandas as pd

from reports.document.cells import counted, loss, seconds, value
from reports.document.document import NOTHING, Bullets, plain
from reports.load.folder import SPEC
from reports.load.sweep import DistinctValues, Sweep
from reports.load.values import finite, mapping
from reports.sections.parts import Section, section
from reports.statistics.axes import Axes
from reports.statistics.findings import Findings

BUDGETS: Final = (
    ("hours", "hours of search"),
    ("tokens", "tokens to train on"),
    ("patience", "trials in a row without a new best"),
)
"""Keys of a spec after which no new trial is asked for, and what they count."""


def set_up(findings: Findings) -> Section:
    """What was asked for, on what, with which code."""
    what = "Base, data, what was varied and held fixed, versions, machine, time"
    return section("Set-up", facts(findings.sweep, findings.axes), folded=what)


def facts(sweep: Sweep, axes: Axes) -> Bullets:
    """A few lines: base, data, search, versions, machine, time."""
    search, scheduler = mapping(sweep.spec, "search"), mapping(sweep.spec, "scheduler")
    space = mapping(search, "space")
    confirming = int(sweep.trials["config.confirms"].notna().sum())
    begun = f"{len(sweep.trials) - confirming:,} began"
    asked = f"{value('trials', search['trials'])} asked for, {begun}" if "trials" in search else begun
    by = [("sampler", search.get("sampler")), ("scheduler", scheduler.get("name"))]
    asked += "".join(f"; {role} {plain(name, 60)}" for role, name in by if name is not None)
    keys = ("interval", "quantile", "resample") if scheduler.get("name") in ("pbt", "pb2") else ("grace", "reduction")
    options = [f"{plain(key, 40)} {value(key, scheduler[key])}" for key in keys if key in scheduler]
    asked += f" ({', '.join(options)})" if options and scheduler.get("name") not in (None, "none") else ""
    asked += _bounds(mapping(search, "where"))
    known = search.get("from")
    names = [plain(place, 60) for place in known] if isinstance(known, list) else []
    asked += f"; the sampler knew the trials of {', '.join(names)}" if names else ""
    priors = [str(run["prior"]) for run in sweep.runs if run.get("prior")]
    asked += "".join(f"; prior: {plain(prior, 200)}" for prior in dict.fromkeys(priors))
    budgets = [(search.get(key), what) for key, what in BUDGETS]
    asked += "".join(f"; at most {most:,} {what}" for most, what in budgets if isinstance(most, int | float))
    ended = [str(run["search_ended"]) for run in sweep.runs if run.get("search_ended")]
    asked += (
        f"; no more were asked for, since {plain(ended[-1], 200)}: what had begun went on to its end" if ended else ""
    )
    asked += f"; then {confirming} to confirm the best" if confirming else ""
    varied = [f"{plain(key, 40).replace('_', ' ')}{_domain(key, space.get(key))}" for key in axes.varying]
    fixed = [f"{plain(key, 40).replace('_', ' ')} {value(key, held)}" for key, held in axes.fixed.items()]
    lines = {
        "Base": _summary(sweep.base or _scalars(mapping(sweep.spec, "base")), "model"),
        **_adapted(sweep.base),
        **_bare(sweep),
        "Data": _summary(sweep.data or _scalars(mapping(sweep.spec, "data")), "source"),
        "Trials": asked,
        "Varied": "; ".join(varied),
        "Held fixed": ", ".join(fixed),
        **_optimizer(sweep),
        "Versions": ", ".join(f"{plain(name, 60)} {_values(found)}" for name, found in sorted(sweep.versions.items())),
        "Spec": f"{SPEC}, SHA-256 {sweep.spec_hash}…" if sweep.spec_hash else "",
        **_budget(sweep),
        **_runs(sweep),
    }
    return Bullets(tuple((f"{title}: {line or NOTHING}",) for title, line in lines.items()))


def _bounds(where: dict[str, Any]) -> str:
    """What adapters were held to before they were trained; nothing where they were not."""
    bounds = [(key, mapping(where, key).get("max")) for key in ("adapter_bytes", "adapter_params")]
    said = [f"{most:,} {key.removeprefix('adapter_')}" for key, most in bounds if isinstance(most, int)]
    return f"; no adapter of more than {' or '.join(said)}".replace("params", "parameters") if said else ""


def _adapted(base: DistinctValues) -> dict[str, str]:
    """Which share of the base is in layers with adapters; nothing where that was not recorded."""
    adapted, params = ([int(v) for v in base.get(key, ()) if v.isdecimal()] for key in ("adapted_params", "params"))
    if not adapted or not params or not all(params):
        return {}
    shares = dict.fromkeys(f"{each / params[0]:.1%}".replace("%", " %") for each in (min(adapted), max(adapted)))
    return {"Adapters on": f"layers that hold {' to '.join(shares)} of the base's parameters"}


def _bare(sweep: Sweep) -> dict[str, str]:
    """What the base scores without an adapter; nothing where nobody scored it."""
    if sweep.bare is None:
        return {}
    test = f", test loss {loss(sweep.bare.test.loss)}" if sweep.bare.test is not None else ""
    return {"Without an adapter": f"eval loss {loss(sweep.bare.eval.loss)}{test}, in nats per completion token"}


def _optimizer(sweep: Sweep) -> dict[str, str]:
    """What became of an optimizer that is not quite what its name says."""
    if mapping(sweep.spec, "train").get("optimizer") != "paged_adamw":
        return {}
    return {
        "Optimizer": "paged_adamw, here AdamW: in a pack a trial's moments are one small vector, there is nothing to page"
    }


def _budget(sweep: Sweep) -> dict[str, str]:
    """What a trial is trained on in full, and what share of the data that is; nothing where trials or data differ."""
    none = pd.Series(dtype=object)
    of = [set(sweep.trials.get(f"config.{key}", none).dropna()) for key in ("steps", "batch_size")]
    rows = sweep.data.get("train_rows", ())
    if any(len(found) != 1 for found in (*of, rows)) or not rows[0].isdecimal() or not int(rows[0]):
        return {}
    (steps,), (batch,) = of
    share = steps * batch / int(rows[0])
    epochs = f"{100 * share:.3g} % of an epoch" if share < 1 else f"{share:.3g} epochs"
    return {"A trial in full": f"{counted(int(steps), 'step')} of {counted(int(batch), 'row')}, {epochs}"}


def _cost(sweep: Sweep, used: float, gpu: object) -> str:
    """Hours of workers, and what they cost where the spec has a price."""
    price = finite(mapping(sweep.spec, "resources").get("price_per_hour"))
    if price is None or used <= 0:
        return ""
    hours = used / 3600 * (gpu if isinstance(gpu, int | float) and gpu else 1)
    what = "GPU" if gpu else "worker"
    return f"; {hours:.3g} {what} hours at {price:g} are {hours * price:.2f}"


def _runs(sweep: Sweep) -> dict[str, str]:
    """Code, machine and time, as the runs of the sweep recorded them; nothing where none did."""
    runs = sweep.runs
    if not runs:
        return {}
    code: dict[str, None] = {}
    for run in runs:
        git = mapping(run, "git")
        if "commit" in git:
            code[f"commit {plain(git['commit'])[:12]}{' and changes to it' if git.get('changed') else ''}"] = None
    machines, worker = mapping(runs[-1], "machines"), mapping(runs[-1], "worker")
    gpus = [f"{count} × {plain(kind, 40)}" for kind, count in mapping(machines, "gpus").items()]
    nodes = machines.get("nodes")
    parts = [
        f"{counted(nodes, 'machine')}" if isinstance(nodes, int) else "",
        ", ".join(gpus) or "no GPU",
        f"{value('cpus', machines.get('cpus'))} CPU cores ({plain(machines.get('cpu', NOTHING), 60)})",
        f"{value('memory_gb', machines.get('memory_gb'))} GB of memory on the driver's",
        plain(machines.get("system", NOTHING), 60),
    ]
    wall, used = sweep.spent("seconds"), sweep.spent("worker_seconds")
    gpu = worker.get("GPU")
    reserved = f"{gpu:g} GPU" if gpu else f"{value('CPU', worker.get('CPU'))} CPU cores"
    again = f", in {len(runs)} runs of the command" if len(runs) > 1 else ""
    return {
        "Code": " and ".join(code) or "not from a checkout",
        "Machine": ", ".join(part for part in parts if part),
        "Time": f"{_day(runs[0])}{seconds(wall)} in all{again}; {seconds(used)} of workers with {reserved} each"
        + _cost(sweep, used, gpu),
    }


def _day(run: Mapping[str, Any]) -> str:
    """When it began, to the minute, in UTC; nothing where the run does not say."""
    try:
        began = datetime.fromisoformat(str(run.get("began"))).astimezone(UTC)
    except (ValueError, OverflowError):
        return ""
    return f"{began:%Y-%m-%d %H:%M} UTC, "


def _domain(key: str, domain: object) -> str:
    """Where the searcher looked: choices, a range, or one that hangs on another axis."""
    if isinstance(domain, list):
        return f" ({', '.join(value(key, choice) for choice in domain)})"
    if isinstance(domain, dict) and {"low", "high"} <= domain.keys():
        scale = ", log" if domain.get("log") else ""
        return f" ({value(key, domain['low'])} to {value(key, domain['high'])}{scale})"
    if isinstance(domain, dict) and "by" in domain:
        return f" (its range hangs on {plain(domain['by'], 40)})"
    return " (differs between trials)"


def _summary(found: DistinctValues, first: str) -> str:
    """`found` in one line; the value of the key `first` stands in front without its name, notes at the end."""
    named = [key for key in sorted(found) if key not in (first, "notes")]
    rest = [f"{plain(key, 40).replace('_', ' ')} {_values(found[key])}" for key in named]
    line = ", ".join([_values(found[first])] * (first in found) + rest)
    return f"{line}. {'; '.join(plain(note) for note in found['notes'])}" if "notes" in found else line


def _values(found: tuple[str, ...]) -> str:
    # A long whole number is a count (rows, parameters); a hash that is all digits is longer still.
    words = [f"{int(v):,}" if re.fullmatch(r"[1-9][0-9]{3,11}", v) else plain(v) for v in found]
    return words[0] if len(words) == 1 else f"{' and '.join(words)} (trials differ)"


def _scalars(held: dict[str, Any]) -> DistinctValues:
    return {
        key: (str(each),) for key, each in held.items() if isinstance(each, str | int) and not isinstance(each, bool)
    }
