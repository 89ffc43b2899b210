"""An example is a conversation, whatever it is read from; errors are collected, not met one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

SHOWN: Final = 20


class DataError(ValueError):
    """The data cannot be used; for users, without a traceback.

    `errors` has every error, one complete line each; `lines` the first 20 of them and how many more there are.
    """

    def __init__(self, errors: Iterable[str]) -> None:
        self.errors = tuple(errors)
        super().__init__(self.errors)

    @property
    def lines(self) -> list[str]:
        """What to show, one line per error."""
        more = len(self.errors) - SHOWN
        return [*self.errors[:SHOWN], *([f"and {more} more"] if more > 0 else [])]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation; it is learned to say what the assistant says in it."""

    example_id: str
    """Where it comes from: `<file name>:<line>`, `<hub id>:<row>` or a qualified name; unique within a source."""
    messages: tuple[Message, ...]


def pair(prompt: str, completion: str) -> tuple[Message, ...]:
    """A prompt and its completion as a conversation."""
    return (Message("user", prompt), Message("assistant", completion))
