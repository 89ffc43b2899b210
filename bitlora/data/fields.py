"""What a row of data holds, read key by key; what is wrong with it is collected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from bitlora.data.examples import Reading


@dataclass(frozen=True, slots=True)
class Fields:
    """An object in the data: a row, or a part of one. A key whose value is null counts as absent."""

    row: Mapping[str, Any]
    where: str
    """Names it in errors."""
    reading: Reading
    path: str = ""
    """What stands before its keys where columns are named: empty for a row, `messages[].` for a turn."""
    used: set[str] = field(default_factory=set)
    """The keys that were asked for."""

    @property
    def errors(self) -> list[str]:
        """What is wrong, a line each."""
        return self.reading.errors

    def wrong(self, what: str) -> None:
        """Something is wrong with it."""
        self.errors.append(f"{self.where}: {what}")

    def given(self, key: str) -> bool:
        """Is it there, and not null?"""
        self.used.add(key)
        return self.row.get(key) is not None

    def text(self, key: str) -> str:
        """The string under `key`; anything else is an error, and an empty string here."""
        self.used.add(key)
        if key not in self.row:
            self.wrong(f"no {key!r}: found {listed(self.row)}")
            return ""
        return self.string(self.row[key], repr(key))

    def text_if_given(self, key: str) -> str:
        """The same, and an empty string where it is absent."""
        return self.text(key) if self.given(key) else ""

    def string(self, value: object, name: str) -> str:
        """`value`, which must be a string."""
        if not isinstance(value, str):
            self.wrong(f"{name} is {kind(value)}; it must be a string")
            return ""
        if any("\ud800" <= char <= "\udfff" for char in ("" if value.isascii() else value)):
            self.wrong(f"{name} holds half of a surrogate pair, which is no character")
        return value

    def objects(self, key: str, one: str) -> list[Fields]:
        """The objects in the list under `key`; anything else is an error, and no objects here.

        Args:
            one: what each of them is called in errors.
        """
        self.used.add(key)
        value = self.row[key]
        if not isinstance(value, list) or not value:
            found = "an empty list" if value == [] else kind(value)
            self.wrong(f"{key} is {found}; it must be a list of objects")
            return []
        wrong = [number for number, each in enumerate(value, 1) if not isinstance(each, Mapping)]
        for number in wrong:
            self.wrong(f"{key}: {kind(value[number - 1])} at place {number}, must be an object")
        if wrong:
            return []
        path = f"{self.path}{key}[]."
        return [
            Fields(each, f"{self.where}: {one} {number}", self.reading, path) for number, each in enumerate(value, 1)
        ]

    def weight(self, key: str = "weight") -> bool:
        """Is what stands here learned? By its `weight`, 0 or 1; where there is none, yes."""
        if not self.given(key):
            return True
        value = self.row[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1):
            found = f"{value:g}" if type(value) in (int, float) else kind(value)
            self.wrong(f"{key!r} is {found}; give 0 (not learned) or 1")
        return bool(value)

    def note_unused(self) -> None:
        """Notes the keys that say something and were not asked for."""
        for key, value in self.row.items():
            if key not in self.used and value not in (None, "", [], {}):
                self.reading.unused.setdefault(f"{self.path}{key}")


def choices_of(row: Fields) -> list[str]:
    """The texts of a row's `choices`, the one first that `answer` says; none where one of them is wrong."""
    before, given, answer = len(row.errors), row.row["choices"], row.row["answer"]
    row.used.update(("choices", "answer"))
    labels: list[object] = []
    if isinstance(given, Mapping):
        labels, given = list(given.get("label") or []), given.get("text")
    if not isinstance(given, list) or len(given) < 2:
        row.wrong(f"'choices' is {kind(given)}; it must be a list of at least two texts")
        return []
    texts = [row.string(text, f"choice {number}") for number, text in enumerate(given, 1)]
    if len(row.errors) > before:
        return []
    right = None
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        right = answer
    elif isinstance(answer, str):
        named = labels or [chr(ord("A") + number) for number in range(len(texts))]
        right = next((each.index(answer) for each in (labels, texts, named) if answer in each), None)
    if right is None or right >= len(texts):
        shown = repr(answer) if isinstance(answer, str | int) else kind(answer)
        row.wrong(f"'answer' is {shown}; it must be the place of a choice from 0, its label or its text")
        return []
    return [texts[right], *(text for number, text in enumerate(texts) if number != right)]


def listed(keys: Iterable[object]) -> str:
    """Names, as messages have them."""
    return ", ".join(repr(key) for key in keys) or "no keys"


def kind(value: object) -> str:
    """What a value is, in JSON's words."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    if isinstance(value, date):  # of a table that has such a type, or whose reader made one of text
        return "a date"
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
