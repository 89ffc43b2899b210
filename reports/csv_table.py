"""A table of a report as CSV: the values behind its cells, to calculate with."""

from __future__ import annotations

import csv
import io
import math

from reports.document import NOTHING, Cell, Table

_ISOLATES = str.maketrans("", "", "\u2066\u2067\u2068\u2069")


def csv_table(table: Table) -> str:
    """`table` as CSV with the names of its columns on top.

    A cell gives its value, unrounded, and where it has none its text, without the isolates that are there for drawing.
    What is missing is empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([_text(column.name) for column in table.columns])
    writer.writerows([[_value(cell) for cell in row] for row in table.rows])
    return file.getvalue()


def _value(cell: Cell) -> float | int | str:
    value = _text(cell.text) if cell.value is None else cell.value
    missing = value == NOTHING if isinstance(value, str) else math.isnan(value)
    return "" if missing else value


def _text(text: str) -> str:
    return text.translate(_ISOLATES)
