"""Which trial makes its packs die: a lost pack's trials begin again in smaller groups, until one dies alone.

A process that is killed (the kernel's out-of-memory killer, a crash inside a layer) does not say for whom. So every
trial that was in such a pack is a suspect. Suspects share a pack with at most half as many trials as before and with nobody
who is none, until they have got past the step at which it happened; who dies alone, twice, without having got any further,
is blamed. What is no trial's doing (a machine that is gone, a preemption, a host process that died) makes nobody a suspect.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

DEATHS: Final = 2
"""Packs that may die with a trial alone in them: one of them may have been killed by somebody else."""
MARGIN: Final = 1
"""Steps past that of the loss until a trial is beyond suspicion: the last step's message may have died with the pack."""


@dataclass(slots=True)
class Suspicion:
    """What is held against one trial."""

    active: bool = False
    """It is a suspect: it has not got past `step`."""
    group: int | None = None
    """Trials, itself included, that its pack may hold while it is a suspect. It never grows until the trial reports."""
    step: int = 0
    """The last step that it had taken when its pack was lost."""
    deaths: int = 0
    """Packs that have died since with it alone in them."""

    def lost(self, together: int, step: int) -> bool:
        """A pack with `together` trials in it was lost when this one had taken `step` steps. Is it to blame?"""
        self.active = True
        self.step = max(self.step, step)
        self.group = max(1, min(self.group or together, (together + 1) // 2))
        self.deaths += together == 1
        return self.deaths >= DEATHS

    def took(self, step: int) -> None:
        """It has taken a step."""
        if step > self.step + MARGIN:
            self.active, self.deaths = False, 0

    def reported(self, step: int) -> None:
        """It was evaluated: what was before does not count any more."""
        if step > self.step:
            self.active, self.group, self.deaths = False, None, 0

    def may_join(self, others: Collection[Suspicion]) -> bool:
        """May it be put into a pack that holds `others`?"""
        together = len(others) + 1
        if self.active:
            return all(other.active for other in others) and all(
                each.group is None or together <= each.group for each in (self, *others)
            )
        return not any(other.active for other in others)
