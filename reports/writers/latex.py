"""A table of a report for a paper: a booktabs `tabular`.

Signs that TeX reads as commands, as ligatures or as options come out as themselves under pdfLaTeX, LuaLaTeX and XeLaTeX,
and the mathematical ones that text fonts lack come out of the mathematical font. Letters stay letters: pdfLaTeX sets the
Latin ones in the T1 encoding, LuaLaTeX and XeLaTeX all that the font has.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from reports.document.document import DIRECTIONS, Column, Table

NEEDS: Final = r"% Needs \usepackage{booktabs}; under pdfLaTeX also \usepackage[T1]{fontenc}."
_SIGNS: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",  # babel's shorthand in some languages
    "`": r"\textasciigrave{}",
    "[": "{[}",  # after \\ an option, as is the star
    "*": "{*}",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\textellipsis{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "µ": r"$\mu$",
    "σ": r"$\sigma$",
    "Δ": r"$\Delta$",
    "\u00a0": "~",
    "\u2009": r"\,",
    "\u202f": r"\,",
}


def latex(table: Table) -> str:
    """`table` as LaTeX to `\\input`: a comment that names the packages, and a `tabular` with all rows."""
    layout = "".join("r" if column.right else "l" for column in table.columns)
    head = _line([escape(column.name) for column in table.columns])
    rows = [
        _line([_cell(cell.text, column) for cell, column in zip(row, table.columns, strict=True)]) for row in table.rows
    ]
    begin, end = rf"\begin{{tabular}}{{@{{}}{layout}@{{}}}}", r"\end{tabular}"
    return "\n".join([NEEDS, begin, r"\toprule", head, r"\midrule", *rows, r"\bottomrule", end, ""])


def escape(text: str) -> str:
    """`text` as LaTeX that prints it, in one line; controls of its direction are left out."""
    line = "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in text)
    line = "".join(_SIGNS.get(c, c) for c in line if c not in DIRECTIONS)
    return re.sub(r"([-,'])(?=\1)", r"\1{}", line).strip()  # -- would be a dash, ,, and '' quotation marks


def _cell(text: str, column: Column) -> str:
    cell = escape(text)
    return re.sub(r"^-(?=[\d.])", "$-$", cell) if column.right else cell  # a minus, not a hyphen


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
