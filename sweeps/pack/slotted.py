"""A trial in its slot of a pack, beside what the engine has of it: how far it is, and whether it has come to anything."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Final

from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch
from bitlora.engine.checkpoint import TrialProgress
from sweeps.search.rules import plateau

DIVERGED: Final = 1.1
"""A trial has diverged when its eval loss is this many times that of its own first step, …"""
UNIFORM: Final = 0.99
"""… and at least this share of what uniform guessing over the vocabulary gives: a collapsed model lands just there."""


@dataclass(frozen=True, slots=True)
class Settled:
    """From the first worker to the others: nobody waits any longer for what becomes of the trials that were evaluated."""


@dataclass(slots=True)
class SlottedTrial:
    """A trial in its slot."""

    trial_id: str
    config: TrialConfig
    slot: int
    began: float
    reported: int
    """The last step it reported before it came here; it is silent until it is past it."""
    tokens: int = 0
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""
    scored: list[float] = field(default_factory=list)
    """Of those between it and the one before."""
    first_loss: float | None = None
    evaluated: list[float] = field(default_factory=list)
    """Its eval losses so far, oldest first, where the best counts."""
    ready: tuple[int, Batch] | None = None
    """The newest batch that was made, and the steps before it."""
    until: int | None = None
    """The step at which it leaves its slot."""

    def due(self, step: int) -> bool:
        """Is it evaluated at this step?"""
        budgets = (self.config.steps, *(stage.steps for stage in self.config.stages))
        return step % self.config.eval_every == 0 or step in budgets

    def progress(self, step: int) -> TrialProgress:
        """What it goes on with; it is at this step."""
        return TrialProgress(
            step=step,
            tokens=self.tokens,
            seconds=time.monotonic() - self.began,
            losses=list(self.losses or self.scored),
            first_loss=self.first_loss or 0.0,
        )

    def improves(self, loss: float) -> bool:
        """Is this eval loss lower than all before?"""
        return all(loss < other for other in self.evaluated)

    def plateau(self, step: int) -> str:
        """Why it ends at this step, short of its budget; empty: it does not."""
        return plateau(self.evaluated, self.config.patience, step, self.config.steps)

    def worthless(self, loss: float, uniform: float, step: int) -> str:
        """Why it has diverged by its eval loss at this step; empty: it has not.

        Args:
            uniform: what guessing uniformly gives, in nats.
        """
        worst = max(UNIFORM * uniform, DIVERGED * (self.first_loss or 0.0)) if step else math.inf  # it took no step yet
        if math.isfinite(loss) and loss <= worst:
            return ""
        found = f"{loss:.4g}" if math.isfinite(loss) else "not finite"
        guess = f"no better than guessing (uniform: {uniform:.4g} nats)"
        return f"the eval loss at step {step} was {found}, {guess}"
