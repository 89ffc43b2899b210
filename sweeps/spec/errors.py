"""What is wrong with what a user gave: one line for each thing."""

from __future__ import annotations

from collections.abc import Sequence


class SpecError(ValueError):
    """A spec that cannot be used. `lines`: one line for each thing that is wrong with it."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = list(lines)


class InputError(ValueError):
    """Base or data cannot be used. `lines`: one line for each thing that is wrong."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
