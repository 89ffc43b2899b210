"""What a pack has to do with the rest of the world.

Only its first worker has a link to anybody (`sweeps.pack.first_link`); the others have a `Link`, which is silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bitlora.config.trial import TrialConfig
from bitlora.files import record
from sweeps.pack.bare import BareScores
from sweeps.pack.measuring.measuring import Scored
from sweeps.pool.messages import Command, StepProgress
from sweeps.search.cloning.place import Source
from sweeps.search.rules import Wave

if TYPE_CHECKING:
    from bitlora.adapter.latent import Latent
    from bitlora.engine.checkpoint import Checkpoint, TrialProgress
    from bitlora.engine.slots.slot import SlotState
    from bitlora.forward.host import Coming


class Link:
    """The link of a worker that speaks to nobody."""

    def poll(self, wait: float) -> list[Command]:
        """The pool's commands, as soon as there are some; none after so many seconds."""
        return []

    def wants_base(self) -> bool:
        """Is the base to be scored here, before any trial?"""
        return False

    def base_scored(self, scores: BareScores) -> None:
        """Write what the base comes to without an adapter."""

    def restore(self, trial_id: str, config: TrialConfig, reported: int) -> Checkpoint | None:
        """A trial begins, or goes on: what it goes on from."""
        return None

    def losses(self, trial_id: str, until: int) -> list[float]:
        """The eval losses of a trial's evaluations up to this step, oldest first, that were written before it came here."""
        return []

    def copy_of(self, source: Source, trial_id: str) -> Checkpoint | None:
        """What a trial goes on from that begins as a copy of one which is not here."""
        return None

    def evaluated(
        self,
        trial_id: str,
        config: TrialConfig,
        metrics: record.Metrics,
        scored: Scored,
        latent: Coming[dict[str, Latent]] | None,
        test: Scored | None,
        wave: Wave,
        left: Checkpoint | None = None,
        over: str = "",
    ) -> None:
        """Write what an evaluation came to, and report it.

        Args:
            latent: the weights; None: an earlier evaluation was better, and its files stay.
            test: on the test split, of a confirming trial at an evaluation that may be its last, or best.
            wave: what was evaluated together with it.
            left: of a trial that has left its slot there, what it goes on from.
            over: why the trial ends with it, short of its budget; empty: it does not.
        """

    def save(self, trial_id: str, config: TrialConfig, state: Coming[SlotState], progress: TrialProgress) -> None:
        """Write a checkpoint."""

    def latent_of(self, config: TrialConfig) -> dict[str, Latent] | None:
        """The weights that a trial begins with which are another's (`TrialConfig.warm_start`).

        Raises:
            ValueError: they are not there, or not such as it has; one line for a user.
        """
        return None

    def extended(self, trial_id: str, config: TrialConfig) -> None:
        """Write a trial's configuration anew, which has more steps, and report that it has heard of it."""

    def ended(self, trial_id: str, status: Literal["diverged", "failed"], step: int, reason: str) -> None:
        """Report that a trial has ended, but not by having taken all its steps."""

    def strayed(self, trial_id: str, until: int, reason: str) -> None:
        """Report that a trial has diverged, and has left its slot as it would have done at that step."""

    def released(self, trial_id: str) -> None:
        """Report that a trial's slot is empty, when all its files are written."""

    def progress(self, steps: dict[str, StepProgress]) -> None:
        """Report the last steps of the pack's trials."""

    def log_event(self, event: str, *trials: str) -> None:
        """Add a line to the pack's log."""

    def close(self) -> None:
        """Returns when all is written."""
