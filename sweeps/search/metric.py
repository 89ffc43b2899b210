"""The result that a sweep searches by. What searchers, stopping rules and the study see of it is lower where it is better,
whatever it is: here alone it is turned round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bitlora.config.metrics import LOSS, MetricConfig, is_higher_better

STEP: Final = "step"
"""Of a result: the optimizer steps that the trial has taken."""


def finite(value: object) -> float | None:
    """`value` where it is a number that can be compared."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True, slots=True)
class Objective:
    """What a sweep searches by."""

    name: str = LOSS
    """`eval_loss`, in nats per completion token; or one of the spec's `metrics`."""
    higher: bool = False
    """More of it is better."""

    @classmethod
    def of_spec(cls, name: str, metrics: Mapping[str, MetricConfig]) -> Objective:
        """What `search.metric` names."""
        return cls(name, is_higher_better(name, metrics))

    def shown(self, result: Mapping[str, Any]) -> float | None:
        """Its value in a result or a record, which have `eval_loss`, and `metrics` by name; None: none that is finite."""
        if self.name == LOSS:
            return finite(result.get(LOSS))
        return finite((result.get("metrics") or {}).get(self.name))

    def of(self, result: Mapping[str, Any]) -> float | None:
        """The same, lower where it is better."""
        return self.turned(self.shown(result))

    def turned(self, value: float | None) -> float | None:
        """A value as it is shown, lower where it is better; or the other way round."""
        return -value if value is not None and self.higher else value
