"""The spec of a sweep: one YAML file, overrides laid over it, everything that is wrong with it at once.

Reading a spec imports neither torch nor ray nor optuna, so a wrong one is answered at once: a line for each wrong key,
with its line in the file or the override it came from. What the format knows but this version cannot do yet is refused
by name.
"""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bitlora.config.explain import show
from bitlora.config.metrics import GenerationConfig, Metrics
from bitlora.config.sections import AdapterConfig, BaseConfig, Config, DataConfig, TrainConfig
from bitlora.config.trial import AXES
from sweeps.spec.clashes import (
    Clash,
    adapter_clashes,
    base_clashes,
    budget_clashes,
    judging_clashes,
    measuring_clashes,
    metric_clashes,
    population_clashes,
    resource_clashes,
    search_clashes,
)
from sweeps.spec.draft import Draft, yaml
from sweeps.spec.errors import SpecError
from sweeps.spec.keys.confirm import ConfirmConfig
from sweeps.spec.keys.resources import ResourcesConfig
from sweeps.spec.keys.scheduler import SchedulerConfig
from sweeps.spec.keys.search import SearchConfig
from sweeps.spec.parse_space import parse, parse_points
from sweeps.spec.validate import overlap, validated

Tracker = Literal["tensorboard", "wandb", "mlflow"]


class Spec(Config):
    """A sweep as its YAML file says it, defaults filled in."""

    name: str
    """A folder's name; by default the file's, without `.yaml`."""
    out: Annotated[str, Field(min_length=1)] | None = None
    """The sweep's folder: a path, or `s3://bucket/prefix`; null: `runs/<name>`."""
    base: BaseConfig
    data: DataConfig
    adapter: AdapterConfig = AdapterConfig()
    train: TrainConfig = TrainConfig()
    metrics: Metrics = Field(default_factory=dict, description="a mapping from names to kinds, or to mappings")
    """What trials are measured by beside their loss, at every evaluation, under names of your own:
    `{exact: exact_match, mine: my_module:score}`."""
    generation: GenerationConfig = GenerationConfig()
    search: SearchConfig = SearchConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    confirm: ConfirmConfig | None = None
    """null: the best are not run again."""
    trackers: list[Tracker] = Field(default_factory=list)
    """Where results go beside the sweep's folder, by Ray Tune's own loggers."""
    resources: ResourcesConfig = ResourcesConfig()

    @property
    def place(self) -> str:
        """Where the sweep's folder is: a path, or a URL of object storage."""
        return self.out if self.out is not None else f"runs/{self.name}"

    @property
    def kept_back(self) -> dict[str, Any]:
        """What `bitlora.data.split.prepare_data` is told of the test split."""
        confirm = self.confirm
        return {"test_rows": 0} if confirm is None else {"test_rows": confirm.most_rows, "added": confirm.added}


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec in `path`, with `overrides` (`KEY=VALUE`: a dotted key, a value in YAML) laid over it.

    Raises:
        SpecError: something is wrong; all of it, one line each, in the order of the file, overrides last.
    """
    draft = Draft(path)
    problems = [problem for override in overrides for problem in draft.override(override)]
    data = {key: value for key, value in draft.data.items() if value is not None}  # `train:` alone: its defaults
    data = copy.deepcopy({"name": path.stem, **data})
    train, search = data.get("train"), data.get("search")
    if isinstance(train, dict) and train.get("steps") is not None and train.get("epochs") is not None:
        problems.append((("train", "epochs"), "steps is given too; keep one, or set the other to null"))
        del train["epochs"]
    axes: Any = ()
    if isinstance(search, dict):
        search |= {key: [] for key in ("first", "from") if search.get(key) is None}
        raw = {} if search.get("space") is None else search["space"]
        axes = raw if isinstance(raw, dict) else AXES
        search["space"], wrong = parse(raw)
        problems += [(("search", "space", *at), message) for at, message in wrong]
    spec, wrong = validated(Spec, data)
    problems += wrong
    first, wrong = parse_points(spec.search.first, spec.search.space, axes)
    problems += [(("search", "first", *at), message) for at, message in wrong]
    spec = _fitted(spec.model_copy(update={"search": spec.search.model_copy(update={"first": first})}))
    for key, others, message in _clashes(spec):
        paths = [tuple(dotted.split(".")) for dotted in (key, *others)]
        # a default that stands in for a wrong value proves nothing
        if not any(overlap(at, path) for at, _ in problems for path in paths):
            problems.append((paths[0], message))
    if problems:
        raise SpecError([line for _, line in sorted({draft.line(*problem) for problem in problems})])
    return spec


def dump_spec(spec: Spec) -> str:
    """The spec as YAML, every default filled in; `load_spec` reads it back to an equal one."""
    text = io.StringIO()
    writer = yaml()
    writer.default_flow_style = False
    writer.width = 4096
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(spec.model_dump(), text)
    return text.getvalue()


def _fitted(spec: Spec) -> Spec:
    """Defaults that depend on a value that was given: results every 8 steps, 8 steps of grace and 8 between rungs, where
    they fit."""
    train, scheduler = spec.train, spec.scheduler
    if "eval_every" not in train.model_fields_set and train.steps is not None:
        train = train.model_copy(update={"eval_every": min(8, train.steps)})
    if train.eval_every != "epoch":
        every, steps = train.eval_every, train.steps or 8 * train.eval_every
        wanted = -(-8 // every)
        fits = {
            "grace": min(max(1, min(wanted, steps // every)) * every, steps),
            "interval": max(1, min(wanted, (steps - 1) // every)) * every,
        }
        left_out = fits.keys() - scheduler.model_fields_set
        scheduler = scheduler.model_copy(update={key: fits[key] for key in left_out})
    return spec.model_copy(update={"train": train, "scheduler": scheduler})


def _clashes(spec: Spec) -> Iterator[Clash]:
    """Values that are right each by itself."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", spec.name):
        yield "name", (), f"found {show(spec.name)}; give a folder's name out of letters, digits, '.', '_' and '-'"
    yield from base_clashes(spec.base, spec.train)
    yield from metric_clashes(spec.metrics, spec.data, spec.train, spec.search)
    yield from adapter_clashes(spec.adapter, spec.search.space)
    yield from search_clashes(spec.search, spec.train, spec.confirm)
    yield from resource_clashes(spec.resources)
    yield from budget_clashes(spec.train, spec.scheduler, spec.search)
    yield from measuring_clashes(spec.metrics, spec.scheduler, spec.search, spec.confirm)
    yield from judging_clashes(spec.train, spec.scheduler, spec.search, spec.confirm)
    if spec.scheduler.population:
        yield from population_clashes(spec.train, spec.scheduler, spec.search)
