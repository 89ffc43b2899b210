"""The shapes that a row of data may have, and the examples that it then holds.

A new shape is a function here under `@shape(…)`, and nothing else: messages, the nearest key and the documentation go by
the table (CONTRIBUTING.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from bitlora.data.examples import Example, Message, pair

ROLES: Final = ("system", "user", "assistant")

Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Fields:
    """What a row holds, read key by key; what is wrong with it is collected."""

    row: Mapping[str, Any]
    where: str
    """Names the row in errors."""
    errors: list[str]

    def given(self, key: str) -> bool:
        """Is it there, and not null?"""
        return self.row.get(key) is not None

    def text(self, key: str) -> str:
        """The string under `key`; anything else is an error, and an empty string here."""
        if key not in self.row:
            self.errors.append(f"{self.where}: no {key!r}: found {_listed(self.row)}")
            return ""
        value = self.row[key]
        if not isinstance(value, str):
            self.errors.append(f"{self.where}: {key!r} is {_kind(value)}; it must be a string")
            return ""
        if any("\ud800" <= char <= "\udfff" for char in ("" if value.isascii() else value)):
            self.errors.append(f"{self.where}: {key!r} holds half of a surrogate pair, which is no character")
        return value

    def objects(self, key: str, one: str) -> list[Fields]:
        """The objects in the list under `key`; anything else is an error, and no objects here.

        Args:
            one: what each of them is called in errors.
        """
        value = self.row[key]
        if not isinstance(value, list) or not value:
            found = "an empty list" if value == [] else _kind(value)
            self.errors.append(f"{self.where}: {key} is {found}; it must be a list of objects")
            return []
        wrong = [number for number, each in enumerate(value, 1) if not isinstance(each, Mapping)]
        self.errors.extend(
            f"{self.where}: {key}: {_kind(value[number - 1])} at place {number}, must be an object" for number in wrong
        )
        if wrong:
            return []
        return [Fields(each, f"{self.where}: {one} {number}", self.errors) for number, each in enumerate(value, 1)]


Read = Callable[[Fields], Conversation | list[Conversation]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A line of the table."""

    keys: tuple[str, ...]
    """A row of this shape has all of them."""
    optional: tuple[str, ...]
    """It may have these."""
    unless: tuple[str, ...]
    """A row that has one of these is of another shape."""
    name: str
    """As messages and documentation print it."""
    read: Read
    """The conversation in such a row; or a list of them, which are numbered from 1."""

    def fits(self, row: Mapping[str, Any]) -> bool:
        return all(key in row for key in self.keys) and not any(key in row for key in self.unless)


SHAPES: Final[list[Shape]] = []
"""In the order in which they are named; a row is of the first that it fits."""


def shape(
    *keys: str, optional: tuple[str, ...] = (), unless: tuple[str, ...] = (), name: str = ""
) -> Callable[[Read], Read]:
    """Puts a function into the table. The arguments are those of `Shape`; its name is its keys unless told otherwise."""

    def register(read: Read) -> Read:
        SHAPES.append(Shape(keys, optional, unless, name or " + ".join(keys), read))
        return read

    return register


@shape("prompt", "completion", unless=("messages",))
def prompted(row: Fields) -> Conversation:
    """A user's turn and the assistant's."""
    return pair(row.text("prompt"), row.text("completion"))


@shape(
    "instruction",
    "output",
    optional=("input",),
    unless=("messages", "instances"),
    name="instruction (+ input) + output",
)
def instructed(row: Fields) -> Conversation:
    """The user's turn is the instruction, and below it the input where it is not empty."""
    return _instructed(row.text("instruction"), row)


@shape("instruction", "instances", unless=("messages",))
def instances(row: Fields) -> list[Conversation]:
    """One instruction with a list of `input` and `output`: an example for each of them."""
    instruction = row.text("instruction")
    return [_instructed(instruction, instance) for instance in row.objects("instances", "instance")]


@shape("messages")
def conversation(row: Fields) -> Conversation:
    """A list of turns with `role` (`system`, `user` or `assistant`) and `content`; each of the assistant's is learned."""
    turns = []
    before = len(row.errors)
    for turn in row.objects("messages", "message"):
        role = turn.text("role")
        if role and role not in ROLES:
            near = difflib.get_close_matches(role, ROLES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            row.errors.append(f"{turn.where}: unknown role {role!r}; roles are {', '.join(ROLES)}{hint}")
        turns.append(Message(role, turn.text("content")))
    if len(row.errors) == before:
        if all(turn.role != "assistant" for turn in turns):
            row.errors.append(f"{row.where}: no assistant turn, so nothing to learn")
        elif turns[0].role == "assistant":
            row.errors.append(f"{row.where}: begins with the assistant's turn; a user's turn comes first")
    return tuple(turns)


def examples_of(row: object, example_id: str, where: str, errors: list[str]) -> list[Example]:
    """The examples in one row of data: one, or one for each conversation in it. What is wrong with it is added to `errors`.

    Args:
        row: what JSON gave, an object of one of the `SHAPES`.
        where: names the row in errors.
    """
    if not isinstance(row, Mapping):
        errors.append(f"{where}: {_kind(row)} where an object belongs ({_known_shapes()})")
        return []
    fitting = next((shape for shape in SHAPES if shape.fits(row)), None)
    if fitting is None:
        errors.append(f"{where}: no known shape: found {_listed(row)}; known are {_known_shapes()}{_near_key(row)}")
        return []
    found = fitting.read(Fields(row, where, errors))
    if isinstance(found, list):
        return [Example(f"{example_id}/{number}", messages) for number, messages in enumerate(found, 1)]
    return [Example(example_id, found)]


def _instructed(instruction: str, row: Fields) -> Conversation:
    given = row.text("input") if row.given("input") else ""
    return pair(f"{instruction}\n\n{given}" if given.strip() else instruction, row.text("output"))


def _known_shapes() -> str:
    *names, last = (shape.name for shape in SHAPES)
    return f"{', '.join(names)}, or {last}"


def _near_key(row: Mapping[str, Any]) -> str:
    """The end of a message about a row without a shape: a key that may have been meant."""
    known = sorted({key for shape in SHAPES for key in (*shape.keys, *shape.optional)} - row.keys())
    near = [(key, match[0]) for key in row if (match := difflib.get_close_matches(str(key), known, n=1))]
    return f"; did you mean {near[0][1]!r} by {near[0][0]!r}?" if near else ""


def _listed(keys: Iterable[object]) -> str:
    return ", ".join(repr(key) for key in keys) or "no keys"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, (int, float)) else type(value).__name__)
