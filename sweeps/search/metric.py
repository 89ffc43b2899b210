"""The result that a sweep minimizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

STEP: Final = "step"
"""Of a result: the optimizer steps that the trial has taken."""
METRIC: Final = "eval_loss"
"""Nats per completion token; lower is better."""


def finite(value: object) -> float | None:
    """`value` where it is a number that can be compared."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def at_least_as_good(one: Sequence[float], other: Sequence[float]) -> bool:
    """Is `one` as good as `other` in every objective? Less is better."""
    return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
