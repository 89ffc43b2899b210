"""A document as plain data: all that a report says, before it is Markdown, HTML or LaTeX.

Text in here is plain: whoever writes it escapes it (`reports.writers`), so that a name out of a record means only itself
in every format.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final

NOTHING: Final = "–"
"""What is missing or not finite."""
DIRECTIONS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
"""Characters that change the direction of the text around them."""


@dataclass(frozen=True, slots=True)
class Strong:
    """Words that stand out."""

    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """A file's name, a flag, a command inside a sentence."""

    text: str


Inline = str | Strong | Code


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of a section: level 1 is the document's own, of which there is one."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences. `note`: an explanation in smaller or slanted print."""

    parts: tuple[Inline, ...]
    note: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short lines."""

    items: tuple[tuple[Inline, ...], ...]


@dataclass(frozen=True, slots=True)
class Listing:
    """Code to copy."""

    language: str
    code: str


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. `right`: its cells are numbers, and stand to the right."""

    name: str
    right: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """What one cell prints, and the value behind it, which sorts it and stands in the CSV; None: the text does.

    `parts`: the numbers that it prints, where these are several, each with its name in the CSV; "" is the column's own.
    """

    text: str
    value: float | int | str | None = None
    parts: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under columns.

    `name`: of its files, out of `a-z` and `-`. `shown`: how many rows are drawn at once; the rest is folded away.
    """

    name: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: int = 30


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing: the stem of its files, what it shows for who cannot see it, and what to look at."""

    name: str
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Fold:
    """What a reader can skip: folded away under a line that says what it is."""

    summary: str
    blocks: tuple[Block, ...]


Block = Heading | Paragraph | Bullets | Listing | Table | Figure | Fold


@dataclass(frozen=True, slots=True)
class Document:
    """A report."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def tables(self) -> tuple[Table, ...]:
        """All of them, those folded away included."""
        return _tables(self.blocks)


def _tables(blocks: tuple[Block, ...]) -> tuple[Table, ...]:
    inside = (_tables(block.blocks) if isinstance(block, Fold) else (block,) for block in blocks)
    return tuple(block for part in inside for block in part if isinstance(block, Table))


def plain(anything: object, limit: int = 200) -> str:
    """`anything` as one line that cannot disturb what stands around it: no control characters, no overlong text.

    Right-to-left text is isolated, so that it cannot reorder the numbers beside it.
    """
    line = str(anything).encode("utf-8", "replace").decode("utf-8")
    line = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in line if c not in DIRECTIONS)
    line = " ".join(line.split())
    if len(line) > limit:
        line = line[: limit - 1] + "…"
    leftward = any(unicodedata.bidirectional(c) in ("R", "AL", "AN") for c in line)
    return f"\u2068{line}\u2069" if leftward else line
