"""An example is a conversation, whatever it is read from; errors are collected, not met one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from bitlora.reading.raw import OpenFile

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


class ToolCall(NamedTuple):
    """One call of a tool in an assistant's turn."""

    name: str
    arguments: Any
    """An object, as JSON gave it."""
    call_id: str | None = None


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    """`system`, `developer`, `user`, `assistant` or `tool`."""
    content: str
    learned: bool = True
    """False: an assistant's turn that is read and not learned."""
    reasoning: str = ""
    """What an assistant's turn thinks before it answers."""
    calls: tuple[ToolCall, ...] = ()
    more: tuple[tuple[str, str], ...] = ()
    """What templates read beside these: `name`, `tool_call_id`."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation; it is learned to say what the assistant says in it. Or one text, all of which is learned."""

    example_id: str
    """Where it comes from: `<file name>:<line>`, `<hub id>:<row>` or a qualified name; unique within a source."""
    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    """The tools that may be called, JSON schemas as OpenAI has them."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the chat template (`chat_template_kwargs`)."""
    text: str | None = None
    """A plain text, without turns: then there are no messages."""
    row: str = field(default="", compare=False)
    """The row of the source that it is from, where that holds several; else empty."""


@dataclass(slots=True)
class Reading:
    """What is noticed while examples are read."""

    errors: list[str] = field(default_factory=list)
    choices: bool = False
    """Rows are questions with choices, and each of these is an example: the right one first."""
    unused: dict[str, None] = field(default_factory=dict)
    """Names of columns, and of fields in them, that say something and are not used: in the order in which they are met."""
    opened: int = 0
    """Conversations whose first turn is the assistant's."""
    skipped: list[str] = field(default_factory=list)
    """Of each row that was left out because it is broken the first line of what is wrong with it."""
    mixed: str = ""
    """What is said of sources that are mixed."""
    files: list[OpenFile] = field(default_factory=list)
    """Those that were opened so far."""
    commits: dict[str, str] = field(default_factory=dict)
    """The commit of each data set of the hub, by its id, where it is known."""

    @property
    def bytes_read(self) -> int:
        """Of the files, so far."""
        return sum(each.size if each.file.closed else each.file.tell() for each in self.files)

    def notes(self) -> list[str]:
        """Plain sentences; none where there is nothing to say."""
        notes = [self.mixed] if self.mixed else []
        if self.skipped:
            were = "row is broken and was" if len(self.skipped) == 1 else "rows are broken and were"
            notes.append(f"{len(self.skipped)} {were} skipped (first: {self.skipped[0]})")
        if self.unused:
            notes.append(f"columns not used: {', '.join(self.unused)}")
        if self.opened:
            them = "1 conversation begins" if self.opened == 1 else f"{self.opened} conversations begin"
            notes.append(f"{them} with the assistant's turn, which is read and not learned: nothing asks for it")
        return notes


def pair(prompt: str, completion: str) -> tuple[Message, ...]:
    """A prompt and its completion as a conversation."""
    return (Message("user", prompt), Message("assistant", completion))
