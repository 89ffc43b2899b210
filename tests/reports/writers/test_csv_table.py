from __future__ import annotations

import csv
import io

from reports.document.document import NOTHING, Cell, Column, Table, plain
from reports.writers.csv_table import csv_table


def test_values_stand_unrounded_and_what_is_missing_is_empty():
    columns = tuple(Column(name) for name in ("trial", "eval loss", "steps", "gap", "lost"))
    row = (Cell("t0 †", "t0"), Cell("2.7137", 2.713712345678), Cell("1,000", 1000), Cell(NOTHING))
    rows = ((*row, Cell(NOTHING, float("nan"))), (*row, Cell("∞", float("inf"))))
    assert csv_table(Table("t", columns, rows, shown=0)) == (
        "trial,eval loss,steps,gap,lost\nt0,2.713712345678,1000,,\nt0,2.713712345678,1000,,inf\n"
    )


def test_text_comes_back_as_it_was():
    said = ['a,"b"', "two\nlines", "it's|]]>", "é א", " x "]
    table = Table("t", tuple(Column(text) for text in said), (tuple(Cell(text) for text in said),))
    assert list(csv.reader(io.StringIO(csv_table(table)))) == [said, said]


def test_isolates_are_for_drawing():
    assert csv_table(Table("t", (Column(plain("א 1")),), ((Cell(plain("ב 2")),),))) == "א 1\nב 2\n"
