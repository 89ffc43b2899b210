"""What a sweep's folder holds of an earlier run of it, and whether that can be gone on with."""

from __future__ import annotations

import contextlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from bitlora.config.metrics import LOSS
from bitlora.files import record
from bitlora.files.record import Metrics, Record
from sweeps.driver.prepare import Prepared
from sweeps.pool.measured import MEMORY
from sweeps.search.metric import Objective
from sweeps.search.rules import plateau
from sweeps.search.rungs.sequential import loss_of
from sweeps.spec.errors import SpecError
from sweeps.spec.spec import Spec, load_spec

SPEC: Final = "sweep.yaml"
JOURNAL: Final = "study.journal"
EXIT_CODE: Final = "exit_code"
DECIDING: Final = (
    SPEC,
    JOURNAL,
    record.CONFIG,
    record.METRICS,
    record.RECORD,
    record.EVAL,
    record.TEST,
    record.RUNS,
    record.STEERED,
    record.CHOSEN,
    record.KEPT,
    MEMORY,
)
"""Names of the files that a run of the sweep which goes on looks at."""
DATA, BASE, TEST = "data", "base", "test"
"""Attributes of the study: what the sweep began with."""
FREE: Final = (
    "out",
    "resources.",
    "train.checkpoint_every",
    "trackers",
    "base.cache",
    "base.revision",
    "data.revision",
    "search.from",
    "confirm.added",
)
"""Keys of a spec, or how they begin, that may differ when a sweep goes on: they decide no number, or what they come to is
compared (`changed`)."""


GROWING: Final = ("search.trials", "search.hours", "search.tokens", "search.patience")
"""Keys of a spec that may be larger, or null, when a sweep goes on. Of trials it has as many as it ever had, also where a
spec says fewer: a person may have added some."""


@dataclass(frozen=True, slots=True)
class Past:
    """By trial: what is there. A trial that is not ended may have each, all or none of them."""

    metrics: dict[str, list[Metrics]]
    records: dict[str, Record]
    configs: dict[str, dict[str, Any]]

    def curve(self, trial_id: str, objective: Objective) -> list[tuple[int, float]]:
        """Steps of a trial, and what is searched by, lower where it is better; where that is not finite, a NaN."""
        if objective.name == LOSS:
            return [(line.step, loss_of(line)) for line in self.metrics.get(trial_id, ())]
        found = [(line.step, objective.of(asdict(line))) for line in self.metrics.get(trial_id, ())]
        return [(step, math.nan if value is None else value) for step, value in found]

    def curves(self, objective: Objective) -> dict[str, list[tuple[int, float]]]:
        """`curve` of each trial that searches and was trained: of no copies, of none that confirms, and of none that began
        with another's weights."""
        copies = self._copies
        apart = {t for t, config in self.configs.items() if config.get("confirms") or config.get("warm_start")}
        return {
            trial_id: self.curve(trial_id, objective) for trial_id in self.metrics if trial_id not in copies | apart
        }

    def over(self, trial_id: str) -> str | None:
        """Why a trial has ended by what it left here: nothing where it has taken all its steps; None: it has not ended."""
        lines, config = self.metrics.get(trial_id), self.configs.get(trial_id)
        if not lines or not config:
            return None
        step, steps = lines[-1].step, config["steps"]
        if step == steps:
            return ""
        return plateau([line.eval_loss for line in lines], config.get("patience"), step, steps) or None

    @property
    def short(self) -> list[str]:
        """Trials that ended by themselves short of their budget."""
        return [trial_id for trial_id in self.metrics if self.over(trial_id)]

    @property
    def tokens(self) -> dict[str, int]:
        """On how many tokens each trial was trained; of no copies."""
        return {t: lines[-1].tokens for t, lines in self.metrics.items() if lines and t not in self._copies}

    @property
    def _copies(self) -> set[str]:
        """Trials that have another's result."""
        return {trial_id for trial_id, found in self.records.items() if found.same_as}

    @property
    def completed(self) -> dict[str, record.Record]:
        """The trials of the search that completed; those that confirm others are none of it."""
        return {
            trial_id: found
            for trial_id, found in self.records.items()
            if found.status == "completed" and found.config.get("confirms") is None
        }

    def best(self, objective: Objective) -> tuple[float, str] | None:
        """Of the search's completed trials the best by what is searched, lower where it is better, and its id."""
        values = {t: objective.of({LOSS: r.eval_loss, "metrics": r.metrics}) for t, r in self.completed.items()}
        return min(((value, trial_id) for trial_id, value in values.items() if value is not None), default=None)


def look(folder: Path) -> Past:
    """Read what is in a sweep's folder; a file that is cut short or broken counts as missing."""
    past = Past({}, {}, {})
    for trial in sorted((folder / "trials").glob("*/"), key=lambda found: record.in_order(found.name)):
        with contextlib.suppress(OSError, ValueError):
            past.metrics[trial.name] = record.read_metrics(trial)
        with contextlib.suppress(OSError, ValueError):
            past.records[trial.name] = record.read_record(trial)
        with contextlib.suppress(OSError, ValueError):
            past.configs[trial.name] = json.loads((trial / record.CONFIG).read_text(encoding="utf-8"))
    return past


def cannot_resume(spec: Spec, folder: Path) -> list[str]:
    """What keeps the sweep in `folder` from being gone on with by `spec`, a line each."""
    path = folder / SPEC
    if not path.exists():
        return [f"{spec.place}: there is no sweep to go on with (no {SPEC}); run it without --resume, or --resume auto"]
    try:
        begun = load_spec(path)
    except SpecError as error:
        return error.lines
    spec, begun = _without_what_was_added(spec, begun)
    now, then = _flat(spec.model_dump(mode="json")), _flat(begun.model_dump(mode="json"))
    return [
        f"{key}: {_shown(now.get(key))}, but the sweep in {spec.place} was begun with {_shown(then.get(key))}; "
        "a sweep goes on as it was begun"
        for key in sorted(now.keys() | then.keys())
        if not key.startswith(FREE) and now.get(key) != then.get(key) and not _grows(key, now.get(key), then.get(key))
    ] or _no_more(spec, begun, folder)


def _no_more(spec: Spec, begun: Spec, folder: Path) -> list[str]:
    """Why the trials that `spec` has beyond those that the sweep has would not be what it says, in a line; or nothing."""
    from sweeps.search.budget import SearchBudget
    from sweeps.search.cloning.population import decided
    from sweeps.search.study import StudyError, read_study

    if spec.search.trials <= begun.search.trials or not (folder / JOURNAL).exists():
        return []
    try:
        study = read_study(folder / JOURNAL)
    except StudyError:  # for the run to speak of, which mends what it can
        return []
    if spec.scheduler.population and decided(study.user_attrs):
        why = f"the {begun.search.trials} members of its population ({spec.scheduler.name}) have gone through rungs already"
        why += f", where no others can join them; give a new sweep that has search.from: [{spec.place}]"
    else:
        budget = SearchBudget(spec.search, study)
        budget.trained(look(folder).tokens)
        why = budget.no_more()
    return [f"search.trials: {spec.search.trials}, but {why}"] if why else []


def _without_what_was_added(spec: Spec, begun: Spec) -> tuple[Spec, Spec]:
    """Both without `confirm` where it differs rightly: a sweep that was begun without may get it, and then keeps it."""
    if begun.confirm is None or (begun.confirm.added and spec.confirm is None):
        spec, begun = (one.model_copy(update={"confirm": None}) for one in (spec, begun))
    return spec, begun


def _grows(key: str, now: Any, then: Any) -> bool:
    if key == "search.trials":
        return True
    return key in GROWING and then is not None and (now is None or now > then)


def grown(spec: Spec, folder: Path) -> Spec | None:
    """What sweep.yaml is to say where the sweep in `folder` goes on and may search more than before; None: it may not."""
    begun = load_spec(folder / SPEC)
    asked = {key: getattr(spec.search, key) for key in (name.partition(".")[2] for name in GROWING)}
    more = begun.model_copy(update={"search": begun.search.model_copy(update=asked), "confirm": spec.confirm})
    return more if more != begun else None


def began_with(prepared: Prepared) -> dict[str, str]:
    """What a sweep may not change under way, beside its spec."""
    summary = prepared.dataset.summary
    added = {TEST: summary.added} if summary.added else {}
    return {DATA: summary.fingerprint, BASE: prepared.base.revision, **added}


def changed(prepared: Prepared, folder: Path, place: str) -> list[str]:
    """What is no longer what the sweep in `folder` began with, a line each."""
    from sweeps.search.study import StudyError, read_study

    if not (folder / JOURNAL).exists():
        return []
    try:
        study = read_study(folder / JOURNAL)
    except StudyError as error:
        return [str(error)]
    what = {DATA: "data.source: the rows", BASE: "base.model: the model", TEST: "confirm: the rows to confirm on"}
    return [
        f"{what[key]} changed since the sweep in {place} began (was {then}, is {now}); give what it began with"
        for key, now in began_with(prepared).items()
        # of a folder or a package, sweeps of before knew the configuration alone
        if (then := study.user_attrs.get(key, now)) not in (now, (key == BASE and prepared.base.config_digest) or now)
    ]


def as_begun(spec: Spec, folder: Path) -> Spec:
    """The spec with the revisions that the sweep in `folder` began with, where it leaves them open: what is on a hub by now
    may be another one. And with the trials that it has by now, where it says fewer, and with the `confirm` that it has, or
    gets."""
    begun = load_spec(folder / SPEC)
    base = spec.base.model_copy(update={"revision": spec.base.revision or begun.base.revision})
    data = spec.data.model_copy(update={"revision": spec.data.revision or begun.data.revision})
    search = spec.search.model_copy(update={"trials": max(spec.search.trials, begun.search.trials)})
    confirm = begun.confirm or (spec.confirm and spec.confirm.model_copy(update={"added": True}))
    return spec.model_copy(update={"base": base, "data": data, "search": search, "confirm": confirm})


def begun_in(folder: Path) -> str | None:
    """What the trials of the sweep in `folder` were computed in, by torch's name; None: none was evaluated."""
    for path in sorted(folder.glob(f"trials/*/{record.EVAL}")):
        with contextlib.suppress(OSError, ValueError):
            if (origin := record.origin_of(path)) is not None:
                return origin.dtype
    return None


def measured(folder: Path) -> dict[str, Any]:
    """What the sweep in `folder` has measured of memory; nothing where that cannot be read, since it can be done again."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / MEMORY).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def finished(spec: Spec, folder: Path) -> int | None:
    """The exit code of a sweep that has ended with all its trials; None: there is something to go on with."""
    from sweeps.search.agenda import complete
    from sweeps.search.study import read_study

    try:
        code = int((folder / EXIT_CODE).read_text(encoding="utf-8"))
        study = read_study(folder / JOURNAL)
    except (OSError, ValueError):  # no such file, or one that is for the run to speak of
        return None
    return code if complete(spec, study) else None


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {at: value}
    return {
        key: leaf for name, inner in value.items() for key, leaf in _flat(inner, f"{at}.{name}" if at else name).items()
    }
