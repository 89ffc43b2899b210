"""The result that a sweep minimizes."""

from __future__ import annotations

import math
from typing import Final

STEP: Final = "step"
"""Of a result: the optimizer steps that the trial has taken."""
METRIC: Final = "eval_loss"
"""Nats per completion token; lower is better."""


def finite(value: object) -> float | None:
    """`value` where it is a number that can be compared."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
