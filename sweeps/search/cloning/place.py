"""Where a trial begins, or goes on: at its own first step, or as a copy of what another has come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Source:
    """Whose latent weights, moments and steps a trial begins with."""

    trial_id: str
    step: int
    """As they were at this step, at which that trial left its slot (`Place.until`)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a trial begins or goes on, and how far."""

    source: Source | None = None
    """What it is a copy of, of itself or of another; None: it begins at its first step, or where its checkpoint is."""
    until: int | None = None
    """The step at which it leaves its slot until it is said how it goes on; None: it goes on to its end."""
    config: dict[str, Any] | None = None
    """`bitlora.config.trial.TrialConfig`, where it is no longer the one that was suggested."""
