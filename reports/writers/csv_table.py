"""A table of a report as CSV: the values behind its cells, to calculate with."""

from __future__ import annotations

import csv
import io
import math

from reports.document.document import NOTHING, Cell, Table

_ISOLATES = str.maketrans("", "", "\u2066\u2067\u2068\u2069")


def csv_table(table: Table) -> str:
    """`table` as CSV with the names of its columns on top.

    A cell gives its value (or its parts), unrounded, and where it has none its text, without the isolates that are there
    for drawing. What is missing is empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    # Of a column whose cells print several numbers, a column each.
    parts = [_parts([row[index] for row in table.rows]) for index in range(len(table.columns))]
    names = [(_text(column.name), named) for column, named in zip(table.columns, parts, strict=True)]
    writer.writerow([f"{name}, {part}" if part else name for name, named in names for part in named])
    for row in table.rows:
        writer.writerow([_part(each, part) for each, named in zip(row, parts, strict=True) for part in named])
    return file.getvalue()


def _parts(cells: list[Cell]) -> list[str]:
    return list(dict.fromkeys(name for cell in cells for name, _ in cell.parts)) or [""]


def _part(cell: Cell, part: str) -> float | int | str:
    if not cell.parts:
        return "" if part else _value(cell)
    return dict(cell.parts).get(part, "")


def _value(cell: Cell) -> float | int | str:
    value = _text(cell.text) if cell.value is None else cell.value
    missing = value == NOTHING if isinstance(value, str) else math.isnan(value)
    return "" if missing else value


def _text(text: str) -> str:
    return text.translate(_ISOLATES)
