"""One trial: everything that makes it what it is, flat, and how a sweep's recipe and a searcher's choice make it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final

from pydantic import Field

from bitlora.config.sections import (
    Activations,
    AdapterConfig,
    Config,
    Fraction,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Scaling,
    ScheduleName,
    TrainConfig,
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
    granularity: Granularity = "tensor"
    """The default is what trials of before there was a choice had."""


AXES: Final[tuple[str, ...]] = (
    *AdapterConfig.model_fields,
    "learning_rate",
    "weight_decay",
    "batch_size",
    "max_grad_norm",
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
        "steps": steps,
        "eval_every": steps_per_epoch if train.eval_every == "epoch" else train.eval_every,
        "seed": seed,
    }
    return TrialConfig(**{**fixed, **chosen})


def scaling_of(config: AdapterConfig | TrialConfig) -> float:
    """What the adapter's output is multiplied by: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
    return config.alpha / (config.rank if config.scaling == "lora" else math.sqrt(config.rank))
