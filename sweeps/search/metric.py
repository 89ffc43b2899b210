"""The result that a sweep searches by, how the study's trials are called, and what a person's steering leaves in it. What
searchers, stopping rules and the study see of the result is lower where it is better, whatever it is: here alone it is
turned round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bitlora.config.metrics import LOSS, MetricConfig, is_higher_better

STEP: Final = "step"
"""Of a result: the optimizer steps that the trial has taken."""

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

AT_BUDGET: Final = "loss_at_budget"
"""Attribute of such a trial with several objectives: its loss there. Optuna keeps no losses by step of it."""


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


def name_of(trial: Any) -> str:
    """Our id of a trial of the study."""
    return f"t{trial.number:04d}"


def values_in_search(trial: Any) -> list[float] | None:
    """What a trial of the study came to at the budget that trials of the search have; None where it did not get there."""
    budget, values = trial.user_attrs.get(BUDGET), trial.values
    if budget is None or not values:
        return list(values) if values else None
    loss = trial.intermediate_values.get(budget, trial.user_attrs.get(AT_BUDGET))
    return None if loss is None else [loss, *values[1:]]


def at_least_as_good(one: Sequence[float], other: Sequence[float]) -> bool:
    """Is `one` as good as `other` in every objective? Less is better."""
    return all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
