"""The result that a sweep minimizes, how the study's trials are called, and what a person's steering leaves in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

STEP: Final = "step"
"""Of a result: the optimizer steps that the trial has taken."""
METRIC: Final = "eval_loss"
"""Nats per completion token; lower is better."""

ACTS: Final = "steered"
"""Attribute of a study: what a person did, oldest first (`bitlora.files.record.SteeringAct`)."""
CLONES: Final = "clones"
"""Attribute of a trial that a person made of another one: our id of that one. It comes on top of those that search."""
OVERLAY: Final = "overlay"
"""Attribute of a trial whose configuration a person changed: what it has other than what was suggested."""
APART: Final = "apart"
"""Attribute of a trial that no sampler learns of, and that is not confirmed: it is not what its parameters say."""
BUDGET: Final = "budget"
"""Attribute of a trial that was given more steps: the budget that it had before, and that the others have."""


def finite(value: object) -> float | None:
    """`value` where it is a number that can be compared."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def name_of(trial: Any) -> str:
    """Our id of a trial of the study."""
    return f"t{trial.number:04d}"


def values_in_search(trial: Any) -> list[float] | None:
    """What a trial of the study came to at the budget that trials of the search have; None where it did not get there."""
    budget, values = trial.user_attrs.get(BUDGET), trial.values
    if budget is None or not values:
        return list(values) if values else None
    loss = trial.intermediate_values.get(budget)
    return None if loss is None else [loss, *values[1:]]


def at_least_as_good(one: Sequence[float], other: Sequence[float]) -> bool:
    """Is `one` as good as `other` in every objective? Less is better."""
    return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
