"""What pool, packs and trials say to each other: one type for each message. Plain data, pickled by Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from bitlora.files.record import Metrics, Status
from sweeps.search.cloning.place import Source
from sweeps.search.rules import Wave

UNANSWERED: Final = "the pool could not take it, or gave no answer: see logs/driver.log"
"""Why a trial has failed of which the driver hears no more, though the pool is there."""

# ---- pool -> pack, in order


@dataclass(frozen=True, slots=True)
class Attach:
    """Give the trial a slot, or a place in the queue for the next one that is free."""

    trial_id: str
    config: dict[str, Any]
    """`bitlora.config.trial.TrialConfig`."""
    reported: int
    """The last step it has reported; until it is past it, it is silent."""
    resumes: bool
    """It was in a pack before, so there may be a checkpoint."""
    source: Source | None = None
    """What it begins as a copy of, where it has no checkpoint of its own that is further. Where that is not to be had, it
    begins at its own first step."""
    until: int | None = None
    """The step at which it leaves its slot, evaluated, until it is said how it goes on (`sweeps.pool.pool.Pool.go_on`)."""

    @property
    def needs_files(self) -> bool:
        """Does it begin with something that was written before?"""
        return self.resumes or self.source is not None or self.config.get("warm_start") is not None


@dataclass(frozen=True, slots=True)
class Detach:
    """The trial is stopped: empty its slot."""

    trial_id: str


@dataclass(frozen=True, slots=True)
class Continue:
    """The trial is not stopped for its last evaluation."""

    trial_id: str


@dataclass(frozen=True, slots=True)
class Extend:
    """The trial has more steps: this is its configuration from now on, the same up to the budget that it had."""

    trial_id: str
    config: dict[str, Any]
    """`bitlora.config.trial.TrialConfig`."""


@dataclass(frozen=True, slots=True)
class Peers:
    """These were evaluated in another pack, or in an earlier run of the sweep: whom trials are held against at a rung."""

    wave: Wave


@dataclass(frozen=True, slots=True)
class Leave:
    """This machine goes away: save what has been done, and end."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End."""


Command = Attach | Detach | Continue | Extend | Peers | Leave | Stop

# ---- pack -> pool -> trial


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResult:
    """A trial was evaluated, or has ended."""

    trial_id: str
    status: Status | Literal["running"]
    """How it ended, if it has."""
    step: int
    eval_loss: float
    """Nats per completion token; NaN where it was not evaluated."""
    reason: str = ""
    metrics: Metrics | None = None
    """Of an evaluation."""
    wave: Wave = field(default_factory=dict)
    """Those that search and were evaluated together with it, itself among them."""
    left: bool = False
    """It has left its slot, and goes on when it is said how. Without `metrics` it has diverged, for `reason`."""
    fatal: bool = False
    """The sweep cannot go on: no pack can be started."""

    @property
    def ended(self) -> bool:
        return self.status != "running"

    def flat(self) -> dict[str, Any]:
        """As Ray Tune takes a result. Its loggers would draw a wave's losses, and those of rows, as the trial's own: these
        are left out."""
        own = {"trial_id": self.trial_id, "status": self.status, "reason": self.reason, "fatal": self.fatal}
        scores = {"step": self.step, "eval_loss": self.eval_loss}
        metrics = {k: v for k, v in self.metrics.line().items() if v is not None} if self.metrics is not None else {}
        metrics.pop("row_losses", None)
        return {**metrics, **own, **scores}


@dataclass(frozen=True, slots=True)
class StepProgress:
    """A trial's last optimizer step."""

    step: int
    train_loss: float
    """Nats per completion token of its batch."""


# ---- pool -> driver


@dataclass(frozen=True, slots=True)
class PackCounts:
    """Packs by where they stand."""

    ready: int = 0
    loading: int = 0
    """Their base, or about to."""
    waiting: int = 0
    """For a machine."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """What is shown while a sweep runs."""

    waiting: tuple[str, ...]
    """Trials without a pack."""
    running: dict[str, StepProgress | None]
    """Trials in a pack; None: it has not taken a step there."""
    packs: PackCounts
    notes: tuple[str, ...] = ()
    """What a person should know of the packs, each once."""
