"""One trial: everything that makes it what it is, flat, and how a sweep's recipe and a searcher's choice make it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Final, NamedTuple

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from bitlora.config.sections import (
    MOVED,
    Activations,
    AdapterConfig,
    Config,
    Fraction,
    Init,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Scaling,
    ScheduleName,
    Stage,
    TrainConfig,
    init_kind,
)
from bitlora.config.targets import (
    NO_PATTERN,
    OF_BASE,
    AlphaPattern,
    RankPattern,
    Targets,
    of_pattern,
    pattern,
    targeted,
)
from bitlora.quantizers.weights import Granularity, Quantizer


class TrialConfig(Config):
    """Everything that makes one trial what it is, flat: the `config` of its record. One adapter, one budget, one seed."""

    quantizer: Quantizer
    activations: Activations
    rank: Positive
    alpha: PositiveFloat
    dropout: Fraction
    scaling: Scaling
    learning_rate: PositiveFloat
    weight_decay: NonNegativeFloat
    batch_size: Positive
    micro_batch: Positive | None
    max_grad_norm: PositiveFloat
    schedule: ScheduleName
    warmup: Fraction
    floor: Annotated[float, Field(ge=0.0, le=1.0)]
    steps: Positive
    """Optimizer steps of the full budget."""
    eval_every: Positive
    """Optimizer steps between two evaluations; the last step is always evaluated."""
    seed: Annotated[int, Field(ge=0)]
    """Of the adapter's first values, of the batch order and of the dropout masks."""
    confirms: str | None = None
    """The trial whose configuration this one repeats on a fresh seed; it is scored on the test split at its end."""
    confirm_rows: Positive | None = None
    """On so many rows of that, the first ones; None: on all."""
    granularity: Granularity = "tensor"
    """The default is what trials of before there was a choice had, as are those that follow."""
    targets: Targets = OF_BASE
    rank_pattern: RankPattern = NO_PATTERN
    alpha_pattern: AlphaPattern = NO_PATTERN
    init: Init = "default"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    loraplus_ratio: PositiveFloat = 1.0
    dora: bool = False
    patience: Positive | None = None
    """It ends after so many evaluations in a row without a new lowest eval loss; null: at its budget."""
    warm_start: str | None = None
    """`t0003@8`: it begins with the weights that this trial had at that step; null: as `init` says. Its steps are its own,
    so that it cannot be compared at equal steps with a trial that began anew."""
    stages: Annotated[tuple[Stage, ...], Field(strict=False)] = ()
    """What held before, oldest first; the values above hold from the last of them on. No others are in the files of a trial
    that has none."""

    def at(self, step: int) -> TrialConfig:
        """What holds after so many steps, for the next one."""
        held = next((stage for stage in self.stages if step < stage.until), None)
        moved = {key: value for key in MOVED if (value := getattr(held, key, None)) is not None}
        return self.model_copy(update={**moved, "stages": ()}) if self.stages else self

    @property
    def apart(self) -> bool:
        """Is it never held against others at equal steps: does it confirm one, or did it begin with the weights of one?"""
        return self.confirms is not None or self.warm_start is not None

    def same_until(self, other: TrialConfig, step: int) -> bool:
        """Has it been the same trial as `other` up to this step? What comes after may differ, where it has more steps."""
        turns = {0, *(stage.until for stage in (*self.stages, *other.stages) if stage.until < step)}
        return all(self.at(turn) == other.at(turn) for turn in turns)

    def with_steps(self, steps: int) -> TrialConfig:
        """The same trial with a larger budget: up to the one that it had all is as before, from there on its learning rates
        are those of a trial of so many steps."""
        return self.model_copy(update={"steps": steps}).after(self, self.steps)

    def after(self, other: TrialConfig, step: int, trial: str | None = None) -> TrialConfig:
        """This configuration from `step` on, over what `other` came to until then.

        Args:
            trial: whose `other` is, where it is another trial.
        """
        stages = tuple(stage for stage in other.stages if stage.until <= step)
        if not stages or stages[-1].until < step:
            held = {key: getattr(other.at(step - 1), key) for key in MOVED}
            stages = (*stages, Stage(until=step, trial=trial, **held))
        return self.model_copy(update={"stages": stages})

    @model_serializer(mode="wrap")
    def _without_no_stages(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = dump(self)
        return found if self.stages else {key: value for key, value in found.items() if key != "stages"}


AXES: Final[tuple[str, ...]] = (
    *AdapterConfig.model_fields,
    "targets",
    "learning_rate",
    "loraplus_ratio",
    "weight_decay",
    "beta1",
    "beta2",
    "batch_size",
    "max_grad_norm",
    "schedule",
    "warmup",
    "floor",
    "seed",
)
"""The keys of a trial that a search space may vary. The budget is not among them: trials are compared at equal steps."""


def trial_config(
    adapter: AdapterConfig, train: TrainConfig, train_rows: int, seed: int, chosen: dict[str, Any]
) -> TrialConfig:
    """The configuration of one trial: the fixed recipe with the searcher's choice laid over it.

    Args:
        train_rows: rows of the training split; turns `epochs` into steps.
        chosen: a value for each axis that the search varies (keys out of `AXES`).

    Raises:
        pydantic.ValidationError: a chosen value is outside its axis.
    """
    batch_size = chosen.get("batch_size", train.batch_size)
    steps_per_epoch = -(-train_rows // batch_size)
    steps = train.steps if train.steps is not None else steps_per_epoch * (train.epochs or 1)
    fixed = {
        **adapter.model_dump(),
        "learning_rate": train.learning_rate,
        "weight_decay": train.weight_decay,
        "batch_size": train.batch_size,
        "micro_batch": train.micro_batch,
        "max_grad_norm": train.max_grad_norm,
        "schedule": train.schedule.name,
        "warmup": train.schedule.warmup,
        "floor": train.schedule.floor,
        "beta1": train.beta1,
        "beta2": train.beta2,
        "loraplus_ratio": train.loraplus_ratio,
        "steps": steps,
        "eval_every": steps_per_epoch if train.eval_every == "epoch" else train.eval_every,
        "seed": seed,
        "patience": train.patience,
        "stages": tuple(train.stages),
    }
    return TrialConfig(**{**fixed, **chosen})


def as_written(config: TrialConfig) -> TrialConfig:
    """The trial as files describe its adapter. One with `init: pissa` is written with what A and B began as taken off:
    over the base as it is an ordinary adapter, of twice the rank and the same scaling."""
    if init_kind(config.init) != "pissa":
        return config
    more = 2 if config.scaling == "lora" else math.sqrt(2)  # scaling is alpha / rank, or alpha / sqrt(rank)
    ranks, alphas = pattern(config.rank_pattern), pattern(config.alpha_pattern)
    shape = {
        "rank": 2 * config.rank,
        "alpha": more * config.alpha,
        "rank_pattern": ", ".join(f"{key}: {2 * rank}" for key, rank in ranks.items()) or NO_PATTERN,
        "alpha_pattern": ", ".join(f"{key}: {more * alpha}" for key, alpha in alphas.items()) or NO_PATTERN,
    }
    return config.model_copy(update={**shape, "init": "default"})


class LayerAdapter(NamedTuple):
    """What an adapter is in one layer."""

    rank: int
    """Of routed experts the sum over them."""
    scaling: float
    """What its output is multiplied by."""
    experts: int = 1
    """How many have one of their own there."""

    def of_each(self, experts: int) -> LayerAdapter:
        """The same for each of so many experts."""
        return self._replace(rank=experts * self.rank, experts=experts)


def refused_on_experts(
    dropout: float = 0.0, activations: Activations = "full", init: Init = "default", dora: bool = False
) -> str:
    """Why such an adapter cannot be on routed experts; nothing where it can.

    PEFT adds an expert's adapter to its weights before they are multiplied: so nothing can be done to its inputs alone.
    """
    if dropout:
        return f"dropout: {dropout}: an adapter of routed experts has no inputs of its own to drop (nor in PEFT)"
    if activations != "full":
        return f"activations: {activations}: an adapter of routed experts has no inputs of its own to round"
    if dora:
        return "dora: true is not there for adapters of routed experts (nor in PEFT)"
    if init_kind(init) in ("orthogonal", "pissa"):
        return f"init: {init} is not there for adapters of routed experts (nor in PEFT); give default or gaussian"
    return ""


def layer_adapter(config: TrialConfig, name: str) -> LayerAdapter:
    """What the adapter is in the layer `name`: rank and alpha of the first key of its pattern that matches, as in PEFT, and
    alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
    rank = int(of_pattern(pattern(config.rank_pattern), name, config.rank))
    alpha = of_pattern(pattern(config.alpha_pattern), name, config.alpha)
    return LayerAdapter(rank, alpha / (rank if config.scaling == "lora" else math.sqrt(rank)))


def adapter_layers(config: TrialConfig, linears: Iterable[str], default: Iterable[str]) -> dict[str, LayerAdapter]:
    """Name -> what the adapter is there, for the layers that it is on, in the model's order.

    Args:
        linears: the names of all linear layers of the base's blocks.
        default: those of the sweep's `base.targets`.
    """
    names = default if config.targets == OF_BASE else targeted(config.targets, linears)
    return {name: layer_adapter(config, name) for name in names}
