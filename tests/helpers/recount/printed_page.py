"""A report's page as it is printed: its sections, tables and numbers, and which of these something has accounted for."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?|\d+")
COUNT = r"(\d+(?:,\d{3})*)"
LOSS = r"-?\d+\.\d+(?: ± \d+\.\d+)?"
PLAIN = r"-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"


# How numbers are printed -------------------------------------------------------------------------------------------


def value_of(text: str) -> float:
    return float(text.replace(",", ""))


def fixed(places: int) -> Callable[[str, float], bool]:
    """A number rounded to so many decimals, all of them printed."""

    def holds(text: str, value: float) -> bool:
        if not re.fullmatch(rf"-?\d[\d,]*\.\d{{{places}}}" if places else r"-?\d[\d,]*", text):
            return False
        return abs(value_of(text) - value) <= 0.5 * 10**-places * (1 + 1e-6)

    return holds


def count(text: str, value: float) -> bool:
    """A whole number, with a comma before every three digits."""
    return value == round(value) and text == f"{round(value):,}"


def short(text: str, value: Any) -> bool:
    """Three significant digits, without zeros at the end; what is no number is itself."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text == (str(value).lower() if isinstance(value, bool) else str(value))
    if not re.fullmatch(PLAIN, text):
        return False
    return abs(value_of(text) - value) <= 0.5 * 10 ** (math.floor(math.log10(abs(value))) - 2) if value else text == "0"


def size(text: str, value: float) -> bool:
    """Bytes in thousands, with a decimal."""
    number, _, unit = text.partition(" ")
    factor = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}.get(unit)
    if factor is None:
        return False
    return count(number, value) if unit == "B" else fixed(1)(number, value / factor) and value_of(number) < 1000


def duration(text: str, value: float) -> bool:
    """Days, hours, minutes, seconds: right to half of the smallest that is printed."""
    parts = re.findall(r"([\d.]+) (d|h|min|s)\b", text)
    unit = {"d": 86400, "h": 3600, "min": 60, "s": 1}
    if not parts or " ".join(f"{number} {name}" for number, name in parts) != text:
        return False
    places = len(parts[-1][0].partition(".")[2])
    printed = sum(float(number) * unit[name] for number, name in parts)
    return abs(printed - value) <= 0.5 * unit[parts[-1][1]] * 10**-places * (1 + 1e-6)


def same(text: str, value: Any) -> bool:
    return text == str(value)


# The page ------------------------------------------------------------------------------------------------------------


@dataclass
class Cell:
    text: str
    start: int

    def part(self, match: re.Match[str], group: int | str) -> Cell:
        return Cell(match[group], self.start + match.start(group))


class Row(dict[str, Cell]):
    """Name -> cell; that one is missing is wrong, and no reason to stop."""

    def __init__(self, cells: dict[str, Cell], where: str, wrong: list[str]) -> None:
        super().__init__(cells)
        self.where, self.wrong = where, wrong

    def __missing__(self, name: str) -> Cell:
        self.wrong.append(f"{self.where}: no {name}")
        return Cell("", 0)


class Page:
    """The text of a report, which of it is accounted for, and what is wrong with it."""

    def __init__(self, text: str, ids: list[str]) -> None:
        self.text = text
        self.wrong: list[str] = []
        self.checked = 0
        self.claimed = bytearray(len(text))
        names = "|".join(re.escape(name) for name in sorted(ids, key=len, reverse=True)) or r"(?!)"
        for pattern in (
            r"(?ms)^```.*?^```$",
            r"`[^`\n]*`",
            r"\bint[248]\b",  # quantizers
            r'<source [^>]*>|src(set)?="[^"]*"|width="\d+"',
            rf"(?<![\w.-])(?:{names})(?![\w-])",
        ):
            for match in re.finditer(pattern, text):
                self.claim(match.start(), match.end())

    def claim(self, start: int, end: int) -> None:
        self.claimed[start:end] = b"\1" * (end - start)

    def check(self, where: str, cell: Cell, value: Any, holds: Callable[[str, Any], bool] = same) -> None:
        """What is printed in `cell` is `value`; either way it is accounted for."""
        self.claim(cell.start, cell.start + len(cell.text))
        self.checked += 1
        try:
            right = holds(cell.text, value)
        except (ValueError, TypeError):
            right = False
        if not right:
            self.wrong.append(f"{where}: printed {cell.text}, recomputed {value}")

    def holds(self, where: str, right: bool) -> None:
        self.checked += 1
        if not right:
            self.wrong.append(where)

    def section(self, title: str) -> Cell:
        """What stands below a heading; below the page's own for an empty title."""
        match = re.search(rf"(?ms)^{'##' if title else '#'} {title}.*?$(.*?)(?=^## |\Z)", self.text)
        return Cell(match[1], match.start(1)) if match else Cell("", 0)

    def each(self, cell: Cell, pattern: str) -> Iterator[re.Match[str]]:
        return re.compile(pattern).finditer(cell.text)

    def one(self, where: str, cell: Cell, pattern: str) -> re.Match[str] | None:
        """The one place where `pattern` stands; that there is none is wrong."""
        match = re.search(pattern, cell.text)
        if match is None:
            self.wrong.append(f"{where}: nothing like {pattern!r}")
        return match

    def table(self, where: str, cell: Cell) -> list[dict[str, Cell]]:
        """The first table: header -> cell, for each row; those folded away below it too."""
        rows: list[tuple[re.Match[str], list[Cell]]] = []
        folded: tuple[Cell, int] | None = None  # how many more it says, and the rows before them
        for line in re.finditer(r"(?m)^\|.*\|$", cell.text):
            end = rows[-1][0].end() if rows else 0
            if rows and cell.text[end : line.start()].strip():
                more = re.compile(r"\s*<details>\s*<summary>([\d,]+) more</summary>\s*").fullmatch(
                    cell.text, end, line.start()
                )
                if more is None or folded:
                    break
                folded = cell.part(more, 1), len(rows)
            bars = [m.start() for m in re.finditer(r"(?<!\\)\|", line[0])]
            cells = []
            for left, right in itertools.pairwise(bars):
                inside = line[0][left + 1 : right]
                skipped = len(inside) - len(inside.lstrip())
                cells.append(Cell(inside.strip(), cell.start + line.start() + left + 1 + skipped))
            rows.append((line, cells))
        if len(rows) < 3:
            self.wrong.append(f"{where}: no table")
            return []
        if folded:
            self.check(f"{where}, folded away", folded[0], len(rows) - folded[1] - 2, count)
            heads = [[name.text for name in rows[at][1]] for at in (0, folded[1])]
            self.holds(f"{where}: folded under other names", heads[0] == heads[1])
            del rows[folded[1] : folded[1] + 2]
        names = [name.text for name in rows[0][1]]
        return [Row(dict(zip(names, cells, strict=False)), where, self.wrong) for _, cells in rows[2:]]

    def rest(self) -> list[str]:
        """The numbers that nothing accounts for."""
        found = []
        for match in NUMBER.finditer(self.text):
            if not all(self.claimed[match.start() : match.end()]):
                line = self.text.count("\n", 0, match.start()) + 1
                around = self.text[max(0, match.start() - 30) : match.end() + 20].replace("\n", " ")
                found.append(f"line {line}: {match[0]} is not accounted for: …{around}…")
        return found
