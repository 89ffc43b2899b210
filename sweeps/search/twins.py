"""Trials whose configuration another trial has had already: nothing is trained twice."""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bitlora.files.record import Status

SAME_AS: Final = "same_as"
"""Attribute of a trial of the study that has another's result: our id of that one."""
SETTLED: Final[tuple[Status, ...]] = ("completed", "pruned", "diverged")
"""What a configuration comes to, whoever has it. A trial that failed, or was interrupted, says nothing of that."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial came to."""

    status: Status
    reason: str
    value: float | None
    """Of one that has completed."""
    losses: Mapping[int, float]
    """Eval losses by step."""


@dataclass(frozen=True, slots=True)
class Twin:
    """A trial that ended with the one whose configuration it has."""

    suggestion: dict[str, Any]
    """As `sweeps.search.searcher.OptunaSearcher.suggest` gives it."""
    first: str
    """Our id of the one that was trained."""
    status: Status
    reason: str


def reason_of(first: str, reason: str) -> str:
    """Why a twin ended as it did; `reason`: why the first did."""
    return f"same configuration as {first}" + (f": {reason}" if reason else ", whose result is used")


class Firsts:
    """Which trial was the first with its configuration.

    Args:
        essence: what of a configuration its numbers hang on; None for one that is never another's twin.
    """

    def __init__(self, essence: Callable[[dict[str, Any]], Hashable | None]) -> None:
        self._essence = essence
        self._firsts: dict[Hashable, str] = {}
        self._followers: dict[str, list[str]] = {}
        """First -> twins that wait for what it comes to."""
        self._again: list[str] = []

    def enter(self, trial_id: str, config: Mapping[str, Any]) -> str | None:
        """A trial begins, or has settled. Gives the one that has its configuration already; None: it is the first."""
        essence = self._essence(dict(config))
        if essence is None:
            return None
        first = self._firsts.setdefault(essence, trial_id)
        return None if first == trial_id else first

    def follow(self, twin: str, first: str) -> None:
        """`twin` ends when `first` does."""
        self._followers.setdefault(first, []).append(twin)

    @property
    def awaited(self) -> bool:
        """Does any twin wait for its first?"""
        return bool(self._followers)

    def followers(self, first: str) -> list[str]:
        """The twins that end now, since `first` has."""
        return self._followers.pop(first, [])

    def next_again(self, among: Container[str]) -> str | None:
        """The next of the twins `among` these that is to be trained after all, since the one that it waited for failed."""
        while self._again:
            if (twin := self._again.pop(0)) in among:
                return twin
        return None

    def forget(self, first: str) -> None:
        """What it comes to is not known: the next with its configuration is trained, and those that still wait for it."""
        self._again += self.followers(first)
        self._firsts = {essence: trial_id for essence, trial_id in self._firsts.items() if trial_id != first}
