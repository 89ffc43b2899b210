"""What is wrong with values that are right each by itself, whichever of them the space or the spec has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from bitlora.config.explain import nearest, show
from bitlora.config.metrics import LOSS, MetricConfig
from bitlora.config.sections import MOVED, AdapterConfig, BaseConfig, DataConfig, TrainConfig, init_kind
from bitlora.config.targets import pattern
from bitlora.config.trial import AXES
from sweeps.spec import space as spaces
from sweeps.spec.keys.confirm import ConfirmConfig
from sweeps.spec.keys.resources import PacksConfig, ResourcesConfig
from sweeps.spec.keys.scheduler import SchedulerConfig
from sweeps.spec.keys.search import SearchConfig

Clash = tuple[str, tuple[str, ...], str]
"""Key, the other keys involved, and what is wrong."""

ONLY: Final[tuple[tuple[str, Any, str, Any, str], ...]] = (
    ("dora", True, "activations", "full",
     "divides by the norms of the merged weight, and with activations: int8 no weight does what the adapter does"),
    ("init", "orthogonal", "quantizer", "none",
     "orthogonal starts where B times A is zero, and quantized they no longer are"),
    ("init", "pissa", "quantizer", "none",
     "pissa takes out of the base what A and B begin as, and quantized they are no longer that"),
    ("init", "pissa", "activations", "full",
     "pissa takes out of the base what A and B begin as, and of inputs in 8 bits they give something else"),
    ("init", "pissa", "dora", False, "the norms of a base without its principal components are not computed"),
)  # fmt: skip
"""A value of an axis, another axis, its one value that goes with it, and why."""

_RUNGS: Final = ("asha", "hyperband", "bohb")
"""Schedulers that judge at rungs, where there must be an evaluation."""


def base_clashes(base: BaseConfig, train: TrainConfig) -> Iterator[Clash]:
    """What options of `base` do not go together."""
    if train.dtype == "float64" and base.quantization != "none":
        yield "train.dtype", ("base.quantization",), "float64 needs base.quantization: none"
    if base.quantization != "nf4" and base.quantized_as != base.quantization:
        key = "double_quantization" if base.double_quantization else "quant_storage"
        yield (
            f"base.{key}",
            ("base.quantization",),
            f"an option of base.quantization: nf4, which is {base.quantization}",
        )
    if base.quantization == "none" and base.cache is True:
        yield "base.cache", ("base.quantization",), "an option of base.quantization: nf4 or int8, which is none"


def adapter_clashes(adapter: AdapterConfig, space: spaces.Space) -> Iterator[Clash]:
    """What values of `adapter` do not go together."""
    for axis, value, other, right, why in ONLY:
        if value in _possible(adapter, space, axis) and _possible(adapter, space, other) != {right}:
            shown = str(right).lower() if isinstance(right, bool) else right
            yield _key(space, axis), (_key(space, other),), f"{why}; give {other}: {shown}"
    if "orthogonal" not in _possible(adapter, space, "init"):
        return
    ranks = space.get("rank")
    ranges = [ranks, *ranks.branches.values(), ranks.default] if isinstance(ranks, spaces.By) else [ranks]
    steps = any(isinstance(one, spaces.Range) and (one.log or (one.step or 1) % 2) for one in ranges)
    every = _possible(adapter, space, "rank") | {
        r for text in _possible(adapter, space, "rank_pattern") for r in pattern(text).values()
    }
    if steps or any(rank % 2 for rank in every):
        message = "orthogonal needs even ranks; give a list of even ones, or a range with a step of 2"
        yield _key(space, "init"), (_key(space, "rank"), _key(space, "rank_pattern")), message


def metric_clashes(
    metrics: Mapping[str, MetricConfig], data: DataConfig, train: TrainConfig, search: SearchConfig
) -> Iterator[Clash]:
    """What metrics need and do not have, or have and do not need; and what is searched by that is none of them."""
    if search.metric != LOSS and search.metric not in metrics:
        right = f"{LOSS}, or a name out of metrics{nearest(search.metric, metrics)}"
        yield "search.metric", ("metrics",), f"found {show(search.metric)}; give {right}"
    if search.metric != LOSS and train.keep == "best":
        message = f"keeps the evaluation of the lowest eval loss, and what is searched by is {search.metric}"
        yield "train.keep", ("search.metric",), f"{message}; give train.keep: last"
    for name, metric in metrics.items():
        key = f"metrics.{name}"
        if metric.what.of_set and metric.set is None:
            right = f"{{kind: {metric.kind}, set: NAME}}, a name out of data.eval_sets"
            message = f"{metric.kind} is over an eval set; give {right}"
            yield f"{key}.set", ("data.eval_sets",), message
        elif metric.set is not None and not metric.what.of_set:
            yield f"{key}.set", (), f"{metric.kind} is over the eval split; leave it out"
        elif metric.set is not None and metric.set not in data.eval_sets:
            right = f"a name out of data.eval_sets{nearest(metric.set, data.eval_sets)}"
            yield f"{key}.set", ("data.eval_sets",), f"found {show(metric.set)}; give {right}"
        if metric.by != "sum" and metric.kind != "choice_accuracy":
            yield f"{key}.by", (), f"{metric.kind} compares no choices; leave it out"
        if metric.direction is not None and not metric.is_function:
            yield f"{key}.direction", (), f"of {metric.kind} it is known; leave it out"
    idle = [name for name in data.eval_sets if all(metric.set != name for metric in metrics.values())]
    for name in idle:
        message = "no metric is over it; give one, such as {kind: perplexity, set: " + name + "}"
        yield f"data.eval_sets.{name}", ("metrics",), message


def search_clashes(search: SearchConfig, train: TrainConfig, confirm: ConfirmConfig | None) -> Iterator[Clash]:
    """What of `search` does not go with itself, or with what is trained and confirmed."""
    space, first = search.space, search.first
    if "batch_size" in space and (train.epochs is not None or train.eval_every == "epoch"):
        message = "with epochs, trials of different batch size take different steps; count in steps instead"
        yield "search.space.batch_size", ("train.epochs", "train.eval_every"), message
    for by in confirm.axes if confirm is not None else ():
        if spaces.listed(space.get(by)):
            continue
        lists = [axis for axis, domain in space.items() if spaces.listed(domain)]
        right = f"an axis of search.space that is a list{nearest(by, lists)}"
        yield "confirm.by", ("search.space",), f"found {show(by)}; give {right}"
    for key in ("seeds", "rows") if confirm is not None and confirm.margin is None else ():
        if getattr(confirm, key) == "auto":
            why = "auto needs to know what is to be shown; give confirm.margin: 0.5 %"
            yield f"confirm.{key}", ("confirm.margin",), why
    if search.from_ and search.sampler in ("random", "grid"):
        message = f"sampler {search.sampler} models nothing, so that it learns nothing of earlier sweeps"
        yield "search.from", ("search.sampler",), f"{message}; give search.sampler: tpe or gp, or leave it out"
    if len(first) > search.trials:
        yield "search.first", ("search.trials",), f"more configurations than search.trials {search.trials}"
    if search.sampler == "grid":
        for axis in spaces.endless(space):
            right = "give it a step or a list, or take another search.sampler"
            yield f"search.space.{axis}", ("search.sampler",), f"a grid cannot list a range; {right}"
        if not spaces.endless(space):
            try:
                spaces.grid(space)
            except ValueError as error:
                yield "search.space", ("search.sampler",), f"{error}; take another search.sampler"


def budget_clashes(train: TrainConfig, scheduler: SchedulerConfig, search: SearchConfig) -> Iterator[Clash]:
    """What does not go together of how long trials train, when they are judged, and by whom."""
    steps, every, grace = train.steps, train.eval_every, scheduler.grace
    if steps is not None and every != "epoch" and every > steps:
        yield "train.eval_every", ("train.steps",), f"{every} is more than train.steps {steps}; give at most {steps}"
    if scheduler.name != "none" and steps is not None and grace > steps:
        others = ("train.steps", "scheduler.name")
        yield "scheduler.grace", others, f"{grace} is more than train.steps {steps}; give at most {steps}"
    elif scheduler.name in _RUNGS and every != "epoch" and grace % every:
        right = f"give a multiple of it, such as {-(-grace // every) * every}"
        message = f"{grace} is between evaluations, which come every {every} steps (train.eval_every); {right}"
        yield "scheduler.grace", ("train.eval_every", "train.steps", "scheduler.name"), message
    ends = [stage.until for stage in train.stages]
    if ends != sorted(set(ends)):
        yield (
            "train.stages",
            (),
            f"found stages until {', '.join(map(str, ends))}; give them in the order of their steps",
        )
    elif steps is not None and ends and ends[-1] >= steps:
        message = f"a stage until {ends[-1]} leaves no step after it; give less than train.steps {steps}"
        yield "train.stages", ("train.steps",), message
    if train.patience is not None and train.keep != "best":
        message = f"after {train.patience} evaluations without a new best one a trial's last is not its best"
        yield "train.patience", ("train.keep",), f"{message}; give train.keep: best"
    if scheduler.name == "bohb" and search.sampler != "tpe":
        right = "give search.sampler: tpe, or scheduler.name: hyperband"
        yield "scheduler.name", ("search.sampler",), f"bohb is HyperBand with configurations of TPE's; {right}"


def measuring_clashes(
    metrics: Mapping[str, MetricConfig], scheduler: SchedulerConfig, search: SearchConfig, confirm: ConfirmConfig | None
) -> Iterator[Clash]:
    """What does not go with metrics, or with a search by one of them."""
    if metrics and scheduler.scoring == "sequential" and scheduler.name in _RUNGS:
        message = "sequential does not go with metrics, which are over all rows of the eval split; give all"
        yield "scheduler.scoring", ("metrics",), message
    if search.metric == LOSS:
        return
    if len(search.objectives) > 1:
        message = f"[loss, bytes] is a front of the eval loss, and what is searched by is {search.metric}; give [loss]"
        yield "search.objectives", ("search.metric",), message
    for key in ("seeds", "rows") if confirm is not None else ():
        if getattr(confirm, key) == "auto":
            message = f"auto goes by the eval loss, and what is searched by is {search.metric}; give a number"
            yield f"confirm.{key}", ("search.metric",), message


def judging_clashes(
    train: TrainConfig, scheduler: SchedulerConfig, search: SearchConfig, confirm: ConfirmConfig | None
) -> Iterator[Clash]:
    """What does not go with scoring until it is known who is stopped, or with a front."""
    rungs = ", ".join(_RUNGS)
    if scheduler.scoring == "sequential" and scheduler.name not in _RUNGS:
        message = f"scheduler.name {scheduler.name} judges at no rung; give all, or one of {rungs}"
        yield "scheduler.scoring", ("scheduler.name",), message
    elif scheduler.scoring == "sequential" and train.keep == "best":
        message = "sequential does not go with train.keep: best: a loss over some rows compares with none over all"
        yield "scheduler.scoring", ("train.keep",), f"{message}; give all"
    if len(search.objectives) < 2:
        return
    front = "search.objectives: [loss, bytes]"
    if search.sampler == "gp":
        yield "search.sampler", ("search.objectives",), f"gp does not go with {front}; give tpe"
    if scheduler.name not in (*_RUNGS, "none"):
        message = f"{scheduler.name} does not go with {front}; give {rungs} or none"
        yield "scheduler.name", ("search.objectives",), message
    if scheduler.scoring == "sequential" and scheduler.name in _RUNGS:
        yield "scheduler.scoring", ("search.objectives",), f"sequential does not go with {front}; give all"
    if confirm is not None and confirm.axes:
        yield "confirm.by", ("search.objectives",), f"with {front} the front is confirmed; leave it out"


def population_clashes(train: TrainConfig, scheduler: SchedulerConfig, search: SearchConfig) -> Iterator[Clash]:
    """What does not go with a population that trains in step."""
    steps, every, interval, name = train.steps, train.eval_every, scheduler.interval, scheduler.name
    if every == "epoch":
        yield "train.eval_every", ("scheduler.name",), f"{name} compares trials at steps; give a number of steps"
    elif interval % every:
        right = f"give a multiple of it, such as {-(-interval // every) * every}"
        message = f"{interval} is between evaluations, which come every {every} steps (train.eval_every); {right}"
        yield "scheduler.interval", ("train.eval_every", "train.steps", "scheduler.name"), message
    if steps is not None and interval >= steps:
        message = f"{interval} leaves no step after the first rung; give less than train.steps {steps}"
        yield "scheduler.interval", ("train.steps", "train.eval_every", "scheduler.name"), message
    if not search.space.keys() & set(MOVED):
        movable = ", ".join(axis for axis in MOVED if axis in AXES)
        yield "search.space", ("scheduler.name",), f"{name} moves {movable}: give one of them an axis"
    if search.trials < 2:
        yield "search.trials", ("scheduler.name",), f"{name} compares trials; give at least 2"
    for key in ("hours", "tokens", "patience"):
        if getattr(search, key) is not None:
            message = f"all trials of {name} begin at once, so that none can be left out; leave it out"
            yield f"search.{key}", ("scheduler.name",), message
    if train.keep == "best":
        message = "a member that has become a copy has no files of what it was a copy of before; give last"
        yield "train.keep", ("scheduler.name",), message
    if train.stages:
        yield "train.stages", ("scheduler.name",), f"the stages of a trial are what {name} makes; leave them out"


def resource_clashes(resources: ResourcesConfig) -> Iterator[Clash]:
    """What of `resources` does not go together."""
    packs, workers, gpus = resources.packs, resources.workers_per_pack, resources.gpus_per_worker
    if isinstance(packs, PacksConfig) and packs.min > packs.max:
        message = f"{packs.min} is more than resources.packs.max {packs.max}; give at most {packs.max}"
        yield "resources.packs.min", ("resources.packs.max",), message
    if gpus != "auto" and gpus > 1:
        message = "an adapter's weights are one vector on one device, so a base cannot be spread over GPUs"
        right = "give 1, with base.quantization: nf4 or train.gradient_checkpointing: true for a large base"
        yield "resources.gpus_per_worker", (), f"{message}; {right}"
    elif gpus != "auto" and 0 < gpus < 1 < workers:
        message = f"{workers} workers of a pack cannot share a GPU: NCCL wants one for each"
        right = "give 1, or resources.workers_per_pack: 1"
        yield "resources.gpus_per_worker", ("resources.workers_per_pack",), f"{message}; {right}"


def _possible(adapter: AdapterConfig, space: spaces.Space, axis: str) -> set[Any]:
    domain = space.get(axis)
    values = {getattr(adapter, axis)} if domain is None else spaces.extent(domain)
    return {init_kind(value) for value in values} if axis == "init" else values


def _key(space: spaces.Space, axis: str) -> str:
    """Where the spec says what an axis of the adapter may be."""
    return f"search.space.{axis}" if axis in space else f"adapter.{axis}"
