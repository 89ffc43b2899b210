from __future__ import annotations

import re

import pytest

from reports.document.document import NOTHING, Cell, Column, Table, plain
from reports.writers.latex import escape, latex


def test_a_whole_table():
    columns = (Column("trial"), Column("eval loss", right=True), Column("gap_to_best", right=True))
    rows = (
        (Cell("t_0"), Cell("2.7137", 2.71371), Cell(NOTHING)),
        (Cell("t1 †"), Cell("2.7320", 2.732), Cell("-0.5 %")),
    )
    table = r"""
% Needs \usepackage{booktabs}; under pdfLaTeX also \usepackage[T1]{fontenc}.
\begin{tabular}{@{}lrr@{}}
\toprule
trial & eval loss & gap\_to\_best \\
\midrule
t\_0 & 2.7137 & \textendash{} \\
t1 \textdagger{} & 2.7320 & $-$0.5 \% \\
\bottomrule
\end{tabular}
"""
    assert latex(Table("leaderboard", columns, rows, shown=1)) == table.lstrip()


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("\\", r"\textbackslash{}"),
        ("{a}", r"\{a\}"),
        ("$&#%_", r"\$\&\#\%\_"),
        ("^~", r"\textasciicircum{}\textasciitilde{}"),
        ("<|>", r"\textless{}\textbar{}\textgreater{}"),
        ("\\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("50 % \\\\ x", r"50 \% \textbackslash{}\textbackslash{} x"),
        ("±…—", r"$\pm$\textellipsis{}\textemdash{}"),
        ("−1 ≤ µ", r"$-$1 $\leq$ $\mu$"),
        ("é à ß ŁÓ", "é à ß ŁÓ"),
        ("--out ---", "-{}-out -{}-{}-"),
        ("''a,,b`` don't", "'{}'a,{},b\\textasciigrave{}\\textasciigrave{} don't"),
        ('"a', r"\symbol{34}a"),
        ("[2pt]", "{[}2pt]"),
        ("*", "{*}"),
        (plain("שלום 42"), "שלום 42"),
        ("\u2068א\u2069\u200f", "א"),
        ("a\n\n\\end{tabular}\r\tb\u2028c\x00", r"a  \textbackslash{}end\{tabular\}  b c"),
        ("1\u00a0000\u202f0", r"1~000\,0"),
    ],
)
def test_text_prints_itself(said, printed):
    assert escape(said) == printed


def test_no_cell_ends_its_cell_row_or_line():
    said = "a & b \\\\ % c\n\n[1ex] \\hline # ~ ^"
    table = latex(Table("nasty", (Column(said), Column(said, right=True)), ((Cell(said), Cell(said)),) * 2))
    lines = table.splitlines()
    assert len(lines) == 9
    assert [line for line in lines[1:] if re.search(r"(?<!\\)%", line)] == []
    for line in (lines[3], lines[5], lines[6]):
        assert len(re.findall(r"(?<!\\)&", line)) == 1
        assert line.endswith(r" \\")
        assert r"\\" not in line[:-2]


def test_only_a_number_begins_with_a_minus():
    columns = (Column("a"), Column("b", right=True))
    row = latex(Table("t", columns, ((Cell("-1"), Cell("-1")), (Cell("-x"), Cell("-x"))))).splitlines()[5:7]
    assert row == [r"-1 & $-$1 \\", r"-x & -x \\"]
