"""The key `search` of a spec: which configurations are tried, and how many."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, PlainValidator

from bitlora.config.metrics import LOSS
from bitlora.config.sections import Config, Positive, PositiveFloat
from sweeps.spec import space as spaces
from sweeps.spec.keys.where import WhereConfig
from sweeps.spec.parse_space import parse
from sweeps.spec.space import Space


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
        raise ValueError(f"found [{', '.join(names)}]; give [loss] or [loss, bytes]")
    return names


class SearchConfig(Config):
    """How the configurations of the trials are chosen."""

    model_config = ConfigDict(serialize_by_alias=True)

    trials: Positive = 12
    """Configurations to try; of a grid at most all of its points. `confirm` adds its own."""
    sampler: Literal["tpe", "gp", "auto", "random", "grid"] = "tpe"
    """Optuna's TPE over all axes together; a Gaussian process over configurations and their learning curves; one of these
    two (`auto`: `gp` for at most 250 trials with one objective, else `tpe`); at random; or every point in turn."""
    metric: Annotated[str, Field(min_length=1)] = LOSS
    """What is searched by, stopped by and confirmed by: the eval loss, or a name out of `metrics`, of which more or less is
    better as its kind has it."""
    startup: Annotated[int, Field(ge=0)] = 4
    """Trials before the sampler models anything: drawn at random, or spread out over what `prior` says."""
    prior: Literal["auto", "none"] = "auto"
    """`auto`: learning rates are first tried where they are known to be good, and the more trials have ended, the less that
    counts; `bitlora plan` and the report say which. `none`: nothing is taken to be known. Samplers that model nothing,
    `random` and `grid`, do without."""
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
    front: the trials than which no other is better in one and as good in the other."""
