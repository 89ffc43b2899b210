"""The key `confirm` of a spec: the best once more, what may be lost to full precision, and how much it takes to show it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from bitlora.config.explain import show
from bitlora.config.sections import Config, Positive

Name = Annotated[str, Field(min_length=1)]
SEEDS: Final = 3
"""On so many, where nobody says otherwise."""
MOST_SEEDS: Final = 20
"""`auto` takes no more: a margin that these cannot show is another question."""
_MARGIN: Final = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*%\s*(?:of\s+(?:the\s+)?(loss|gain))?\s*")


class MarginConfig(Config):
    """By how much a loss may be above full precision's and still count as no worse."""

    share: Annotated[float, Field(gt=0, lt=1)]
    """0.005 is half a per cent."""
    of: Literal["loss", "gain"] = "loss"
    """Of full precision's loss, or of what it gains over the base without an adapter."""


def _margin(value: Any) -> Any:
    """`0.5 %`, `0.5 % of loss`, `5 % of gain`."""
    if value is None or isinstance(value, dict | MarginConfig):
        return value
    found = _MARGIN.fullmatch(value) if isinstance(value, str) else None
    if found is None or not 0 < float(found[1]) < 100:
        raise ValueError(f"found {show(value)}; give a share such as '0.5 %' (of the loss) or '5 % of gain'")
    return {"share": float(found[1]) / 100, "of": found[2] or "loss"}


class ConfirmConfig(Config):
    """The best once more, on fresh seeds, scored at the end on rows that nobody was tuned on."""

    top: Positive = 3
    """So many of the best configurations, seeds apart."""
    by: Name | Annotated[list[Name], Field(min_length=1)] | None = None
    """An axis of the search space: the best of each of its values. Or a list of axes: of each of their combinations."""
    seeds: Positive | Literal["auto"] = SEEDS
    """On how many fresh seeds each is run again. `auto`: on as many as it takes to show `margin` of what is equal, by what
    the search has shown, and no more than 20."""
    rows: Positive | Literal["auto"] | None = None
    """Of the test split, at most: what the eval split has beyond the rows that are evaluated. `auto`: as many as it takes,
    as with `seeds`; of seeds and rows that do, those that cost least."""
    margin: Annotated[MarginConfig | None, BeforeValidator(_margin)] = None
    """What the report holds each quantizer to: is it shown to be worse by less than this? Also as text: `0.5 %` (of the
    loss), `5 % of gain`."""

    added: bool = False
    """The sweep was begun without `confirm`: its trials are trained and evaluated on the rows that they have without, and
    the test split is what is left of the eval split, or where nothing is, rows that `data.rows` did not draw. Of a sweep
    that goes on its `sweep.yaml` says so by itself."""

    @property
    def axes(self) -> tuple[str, ...]:
        """What `by` names."""
        return (self.by,) if isinstance(self.by, str) else tuple(self.by or ())

    @property
    def open(self) -> bool:
        """Seeds or rows are chosen when the search has ended."""
        return "auto" in (self.seeds, self.rows)

    @property
    def most_rows(self) -> int | None:
        """Of the test split, at most; None: all."""
        return None if self.rows == "auto" else self.rows
