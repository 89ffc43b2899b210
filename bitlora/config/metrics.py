"""What a trial is measured by beside its loss: the keys `metrics` and `generation` of a spec."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from bitlora.config.explain import nearest, show
from bitlora.config.sections import Config, Positive

LOSS: Final = "eval_loss"
"""The result that there always is: nats per completion token."""
LOWER: Final = "lower is better"
HIGHER: Final = "higher is better"


class MetricKind(NamedTuple):
    """A kind of metric."""

    higher: bool
    """Is more of it better?"""
    of_set: bool = False
    """It is over an eval set of its own."""
    generated: bool = False
    """It is over generated text."""


KINDS: Final = {
    "token_accuracy": MetricKind(higher=True),
    "exact_match": MetricKind(higher=True, generated=True),
    "choice_accuracy": MetricKind(higher=True, of_set=True),
    "perplexity": MetricKind(higher=False, of_set=True),
}
"""But for users' own functions."""
FUNCTION: Final = MetricKind(higher=True, generated=True)
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}")
TAKEN: Final = frozenset(
    ("bytes", "eval_loss", "example_id", "group", "learning_rate", "loss", "seconds", "step", "test_loss", "tokens",
     "train_loss")
)  # fmt: skip
"""Names that results and columns have already."""


def _kind(value: str) -> str:
    if value in KINDS or _FUNCTION.fullmatch(value):
        return value
    raise ValueError(f"found {show(value)}; give {', '.join(KINDS)}, or module:function{nearest(value, KINDS)}")


class MetricConfig(Config):
    """One metric. Instead of the mapping its kind alone will do."""

    kind: Annotated[str, AfterValidator(_kind)]
    """`token_accuracy`: the share of the completions' tokens that are the likeliest where they stand; `exact_match`: the
    share of rows whose generated text is the completion, white space around both apart; `choice_accuracy`: the share of
    the questions of an eval set of which the right choice is the likeliest; `perplexity` of an eval set: e to its loss;
    or `module:function`, a function of your own over generated text."""
    set: Annotated[str, Field(min_length=1)] | None = None
    """The eval set (`data.eval_sets`), of `choice_accuracy` and `perplexity`; the others are over the eval split."""
    by: Literal["sum", "token"] = "sum"
    """Of `choice_accuracy`: choices are compared by their log-likelihood, or by that per token."""
    direction: Literal["max", "min"] | None = None
    """Of your own function: more of it is better (null, or `max`), or less."""

    @property
    def what(self) -> MetricKind:
        """What there is to know of its kind."""
        return KINDS.get(self.kind, FUNCTION)

    @property
    def is_function(self) -> bool:
        return self.kind not in KINDS

    @property
    def higher(self) -> bool:
        """Is more of it better?"""
        return self.what.higher if self.direction is None else self.direction == "max"


class GenerationConfig(Config):
    """How text is generated for the metrics that are over it: the likeliest token after the other (greedy)."""

    max_tokens: Positive = 32
    """Of an output, at most."""
    stop: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Texts that end an output, beside the tokens that end one of the base; they are no part of it."""


def _short(value: Any) -> Any:
    """`exact_match` for `{kind: exact_match}`."""
    return {"kind": value} if isinstance(value, str) else value


def _named(metrics: dict[str, MetricConfig]) -> dict[str, MetricConfig]:
    for name in metrics:
        if not _NAME.fullmatch(name) or name in TAKEN:
            why = "is taken" if name in TAKEN else "is none"
            raise ValueError(f"the name {show(name)} {why}; give another out of small letters, digits and _")
    return metrics


Metrics = Annotated[
    dict[str, Annotated[MetricConfig, BeforeValidator(_short)]],
    AfterValidator(_named),
    Field(description="a mapping from names to kinds, or to mappings"),
]
"""By the names that results, records and reports have them under."""


def is_higher_better(name: str, metrics: Mapping[str, MetricConfig]) -> bool:
    """Is more of a result better? The one place that knows."""
    return name != LOSS and metrics[name].higher
