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
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from bitlora.config.explain import explain, nearest, show
from bitlora.config.sections import (
    REFUSED,
    AdapterConfig,
    BaseConfig,
    Config,
    DataConfig,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    TrainConfig,
)
from bitlora.config.trial import AXES
from sweeps.spec import space as spaces
from sweeps.spec.bounds import WhereConfig
from sweeps.spec.clashes import RUNGS, adapter_clashes, judging_clashes
from sweeps.spec.confirm import ConfirmConfig
from sweeps.spec.draft import Draft, yaml
from sweeps.spec.errors import SpecError
from sweeps.spec.parse_space import parse, parse_points
from sweeps.spec.space import Problem, Space

Tracker = Literal["tensorboard", "wandb", "mlflow"]
_CLONES: Final = ("pbt", "pb2")


def _space(value: Any) -> Space:
    domains = spaces.Choices | spaces.Range | spaces.By
    if isinstance(value, dict) and all(isinstance(domain, domains) for domain in value.values()):
        return value
    space, problems = parse(value)
    if problems:
        raise ValueError("; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in problems))
    return space


def _objectives(names: list[str]) -> list[str]:
    if names not in (["loss"], ["loss", "bytes"]):
        raise ValueError(f"found {show(names)}; give [loss] or [loss, bytes]")
    return names


class SearchConfig(Config):
    """How the configurations of the trials are chosen."""

    model_config = ConfigDict(serialize_by_alias=True)

    trials: Positive = 12
    """Configurations to try; of a grid at most all of its points. `confirm` adds its own."""
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    """Optuna's TPE over all axes together, its random sampler, or every point in turn."""
    startup: Annotated[int, Field(ge=0)] = 4
    """Random trials before the sampler models anything."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the sampler, and of every trial whose `seed` is not searched."""
    space: Annotated[Space, PlainValidator(_space), PlainSerializer(spaces.dump)] = Field(default_factory=dict)
    """What stands here replaces the fixed value in `adapter` or `train`."""
    first: list[dict[str, Any]] = Field(default_factory=list)
    """Configurations to try before any other; an axis that is left out is chosen by the sampler."""
    from_: list[str] = Field(default_factory=list, alias="from")
    """Folders of earlier sweeps over the same base and data: their completed trials that lie in this space, of as many
    steps, are known to the sampler. They are no trials of this sweep."""
    hours: PositiveFloat | None = None
    """When it has searched so long, in all runs of the sweep, no new trial is asked for. Those that have begun go on to
    their end, and `confirm` follows: both take time on top. null: no bound, as for the next two."""
    tokens: Positive | None = None
    """When the trials have been trained on so many in all, no new one is asked for."""
    patience: Positive | None = None
    """When so many trials in a row have ended without a new best at full budget, no new one is asked for."""
    where: WhereConfig | None = None
    """null: whatever the space has."""
    objectives: Annotated[list[Literal["loss", "bytes"]], AfterValidator(_objectives)] = Field(default=["loss"])
    """What is to be small: the eval loss, or `[loss, bytes]`, the adapter's bytes as packed too. Then the answer is a
    front: the trials that no other is as good as in both."""


class SchedulerConfig(Config):
    """Which trials are stopped before their budget."""

    name: Literal["asha", "hyperband", "bohb", "median", "none"] = "asha"
    """ASHA (arXiv 1810.05934); HyperBand (arXiv 1603.06560), in brackets of which each judges later than the one before;
    BOHB (arXiv 1807.01774), which is HyperBand under `search.sampler: tpe`; the median stopping rule; or nobody is stopped.
    Whichever it is, all that were evaluated together are known before one of them is judged."""
    grace: Positive = 8
    """Steps that every trial gets: but for the median rule a multiple of `train.eval_every`. Left out, 8 or what fits."""
    reduction: Annotated[int, Field(ge=2)] = 2
    """But for the median rule: one in so many goes on from each rung to the next, which is so many times further."""
    scoring: Literal["all", "sequential"] = "all"
    """Of the eval rows, those that a trial is scored on at a rung: all, or block by block until it is clear that it is
    stopped. Whoever goes on is scored on all."""


MOST_PACKS: Final = 990
"""At once: the process that starts a pack takes a thousandth of the head (`sweeps.onray.cluster.HEAD`), and so does the
pool."""


def _startable(packs: int) -> int:
    if packs > MOST_PACKS:
        raise ValueError(
            f"found {packs}; give at most {MOST_PACKS}: what starts a pack takes a thousandth of the cluster's head"
        )
    return packs


Packs = Annotated[Positive, AfterValidator(_startable)]


class PacksConfig(Config):
    """Between how many packs a sweep breathes."""

    min: Annotated[int, Field(ge=0)] = 0
    """Kept up until the sweep ends, trials or not."""
    max: Packs
    """At most so many at once."""


class ResourcesConfig(Config):
    """What the sweep may take of the cluster."""

    packs: Literal["auto"] | Packs | PacksConfig = "auto"
    """Bases at once, at most; or between how many. `auto`: as many as there are GPUs for, or as the autoscaler can start
    GPUs for; one where packs train on CPUs."""
    slots: Literal["auto"] | Positive = "auto"
    """Trials at once over a base; `auto`: as many as fit in memory, at most 4 on CPUs and 8 on a GPU. A number stays: where
    memory is short, passes get fewer rows, and the pack's log says so."""
    workers_per_pack: Positive = 1
    """GPUs, or machines' CPUs, that share each trial's batches."""
    gpus_per_worker: Literal["auto"] | NonNegativeFloat = "auto"
    """At most 1, and less only with one worker a pack; `auto`: 1 where the cluster has GPUs or can get some, else 0.
    Refused where no GPU is up and nothing says what else may come: under KubeRay, and while hosts of a fixed cluster are
    missing."""
    patience: PositiveFloat | None = None
    """Seconds that a pack may wait for room on the cluster; null: 1800, and 180 on this machine's own Ray. Where no pack
    ever finds room, the sweep ends after that."""
    price_per_hour: NonNegativeFloat | None = None
    """Of a GPU, or without one of a worker, in any currency: the report says what the sweep cost."""


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
    spec, wrong = _validate(data)
    problems += wrong
    first, wrong = parse_points(spec.search.first, spec.search.space, axes)
    problems += [(("search", "first", *at), message) for at, message in wrong]
    spec = _fitted(spec.model_copy(update={"search": spec.search.model_copy(update={"first": first})}))
    for key, others, message in _clashes(spec):
        paths = [tuple(dotted.split(".")) for dotted in (key, *others)]
        # a default that stands in for a wrong value proves nothing
        if not any(_overlap(at, path) for at, _ in problems for path in paths):
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


def _overlap(one: spaces.Path, other: spaces.Path) -> bool:
    short = min(len(one), len(other))
    return one[:short] == other[:short]


def _validate(data: dict[Any, Any]) -> tuple[Spec, list[Problem]]:
    """A spec out of `data` with defaults in the place of what is wrong with it, and what that is."""
    data = copy.deepcopy(data)
    problems: dict[spaces.Path, str] = {}
    filled: set[spaces.Path] = set()
    while True:
        data.setdefault("base", {})
        data.setdefault("data", {})
        try:
            return Spec.model_validate(data), list(problems.items())
        except ValidationError as error:
            errors = error.errors(include_url=False)
        found: dict[spaces.Path, list[Any]] = {}
        for one in errors:
            found.setdefault(_path(one["loc"], data, one["type"] == "missing"), []).append(one)
        for path, group in found.items():
            # of a union's errors the deepest says most
            inner = any(len(other) > len(path) and _overlap(path, other) for other in found)
            if not inner and not any(_overlap(path, known) for known in problems):
                problems[path] = _message(path, group, data)
        for path, group in found.items():
            missing = group[0]["type"] == "missing"
            # What stands in for a required key may be no value for it: then what it is a key of has to go.
            _drop(data, path[:-1] if path in filled and not missing else path, missing)
            filled |= {path} if missing else set()


def _path(loc: tuple[str | int, ...], data: Any, missing: bool) -> spaces.Path:
    """Where in `data` pydantic's `loc` is: without its names for the members of unions."""
    path: list[str | int] = []
    for part in loc:
        inside = range(len(data)) if isinstance(data, list) else data if isinstance(data, dict) else ()
        if part in inside:
            data = data[part]
            path.append(part)
    return (*path, loc[-1]) if missing else tuple(path)


def _drop(data: Any, path: spaces.Path, missing: bool) -> None:
    key = path[-1]
    for part in path[:-1]:
        if not isinstance(data.get(part), dict):
            key = part
            break
        data = data[part]
    data.pop(key, None)
    if missing:
        data[key] = "?"


def _message(path: spaces.Path, errors: list[Any], data: Any) -> str:
    kinds = {error["type"] for error in errors}
    for part in path:
        data = data[part] if not isinstance(data, dict) or part in data else None
    key = ".".join(map(str, path))
    if why := REFUSED.get(key) or REFUSED.get(f"{key}: {data}"):
        return f"not available: {why}" if key in REFUSED else f"{data} is not available: {why}"
    if kinds & {"extra_forbidden", "invalid_key"}:
        return f"unknown key{_hint(path)}"
    if "missing" in kinds:
        return "required key is missing"
    if any(error["loc"][-1] == "[key]" for error in errors):
        return "the name of a key is text"
    if path == ("scheduler", "name") and str(data).lower() in _CLONES:
        return f"{data} clones trials, which trials cannot do yet; give asha, hyperband, bohb, median or none"
    return explain(errors, data)


def _keys(model: type[Config], at: str = "") -> Iterator[str]:
    """Every dotted key there is."""
    for name, info in model.model_fields.items():
        yield at + (info.alias or name)
        for inner in (info.annotation, *get_args(info.annotation)):
            if isinstance(inner, type) and issubclass(inner, Config):
                yield from _keys(inner, f"{at}{name}.")


def _hint(path: spaces.Path) -> str:
    *above, name = map(str, path)
    keys = list(_keys(Spec))
    elsewhere = [key for key in keys if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return nearest(name, [key.rpartition(".")[2] for key in keys if key.rpartition(".")[0] == ".".join(above)])


def _fitted(spec: Spec) -> Spec:
    """Defaults that depend on a value that was given: results every 8 steps and 8 steps of grace, where they fit."""
    train, scheduler = spec.train, spec.scheduler
    if "eval_every" not in train.model_fields_set and train.steps is not None:
        train = train.model_copy(update={"eval_every": min(8, train.steps)})
    if "grace" not in scheduler.model_fields_set and train.eval_every != "epoch":
        steps = train.steps or 8 * train.eval_every
        evaluations = max(1, min(-(-8 // train.eval_every), steps // train.eval_every))
        scheduler = scheduler.model_copy(update={"grace": min(evaluations * train.eval_every, steps)})
    return spec.model_copy(update={"train": train, "scheduler": scheduler})


def _clashes(spec: Spec) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Key, the other keys involved, and what is wrong: values that are right each by itself."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", spec.name):
        yield "name", (), f"found {show(spec.name)}; give a folder's name out of letters, digits, '.', '_' and '-'"
    if spec.train.dtype == "float64" and spec.base.quantization != "none":
        yield "train.dtype", ("base.quantization",), "float64 needs base.quantization: none"
    if spec.base.quantization == "none" and (spec.base.quantized_as != "none" or spec.base.cache is True):
        key = "double_quantization" if spec.base.double_quantization else "quant_storage"
        key = "cache" if spec.base.cache is True else key
        yield f"base.{key}", ("base.quantization",), "an option of base.quantization: nf4, which is none"
    if "batch_size" in spec.search.space and (spec.train.epochs is not None or spec.train.eval_every == "epoch"):
        message = "with epochs, trials of different batch size take different steps; count in steps instead"
        yield "search.space.batch_size", ("train.epochs", "train.eval_every"), message
    yield from adapter_clashes(spec.adapter, spec.search.space)
    by = spec.confirm.by if spec.confirm is not None else None
    if by is not None and not isinstance(spec.search.space.get(by), spaces.Choices):
        lists = [axis for axis, domain in spec.search.space.items() if isinstance(domain, spaces.Choices)]
        right = f"an axis of search.space that is a list{nearest(by, lists)}"
        yield "confirm.by", ("search.space",), f"found {show(by)}; give {right}"
    packs = spec.resources.packs
    if isinstance(packs, PacksConfig) and packs.min > packs.max:
        message = f"{packs.min} is more than resources.packs.max {packs.max}; give at most {packs.max}"
        yield "resources.packs.min", ("resources.packs.max",), message
    workers = spec.resources.workers_per_pack
    if spec.resources.gpus_per_worker != "auto" and spec.resources.gpus_per_worker > 1:
        message = "an adapter's weights are one vector on one device, so a base cannot be spread over GPUs"
        right = "give 1, with base.quantization: nf4 or train.gradient_checkpointing: true for a large base"
        yield "resources.gpus_per_worker", (), f"{message}; {right}"
    elif spec.resources.gpus_per_worker != "auto" and 0 < spec.resources.gpus_per_worker < 1 < workers:
        message = f"{workers} workers of a pack cannot share a GPU: NCCL wants one for each"
        right = "give 1, or resources.workers_per_pack: 1"
        yield "resources.gpus_per_worker", ("resources.workers_per_pack",), f"{message}; {right}"
    steps, every, grace = spec.train.steps, spec.train.eval_every, spec.scheduler.grace
    if steps is not None and every != "epoch" and every > steps:
        yield "train.eval_every", ("train.steps",), f"{every} is more than train.steps {steps}; give at most {steps}"
    if spec.scheduler.name != "none" and steps is not None and grace > steps:
        others = ("train.steps", "scheduler.name")
        yield "scheduler.grace", others, f"{grace} is more than train.steps {steps}; give at most {steps}"
    elif spec.scheduler.name in RUNGS and every != "epoch" and grace % every:
        right = f"give a multiple of it, such as {-(-grace // every) * every}"
        message = f"{grace} is between evaluations, which come every {every} steps (train.eval_every); {right}"
        yield "scheduler.grace", ("train.eval_every", "train.steps", "scheduler.name"), message
    if spec.scheduler.name == "bohb" and spec.search.sampler != "tpe":
        right = "give search.sampler: tpe, or scheduler.name: hyperband"
        yield "scheduler.name", ("search.sampler",), f"bohb is HyperBand with configurations of TPE's; {right}"
    yield from judging_clashes(spec)
    if spec.search.from_ and spec.search.sampler != "tpe":
        message = f"sampler {spec.search.sampler} models nothing, so that it learns nothing of earlier sweeps"
        yield "search.from", ("search.sampler",), f"{message}; give search.sampler: tpe, or leave it out"
    if len(spec.search.first) > spec.search.trials:
        yield "search.first", ("search.trials",), f"more configurations than search.trials {spec.search.trials}"
    if spec.search.sampler == "grid":
        for axis in spaces.endless(spec.search.space):
            right = "give it a step or a list, or take another search.sampler"
            yield f"search.space.{axis}", ("search.sampler",), f"a grid cannot list a range; {right}"
        if not spaces.endless(spec.search.space):
            try:
                spaces.grid(spec.search.space)
            except ValueError as error:
                yield "search.space", ("search.sampler",), f"{error}; take another search.sampler"
