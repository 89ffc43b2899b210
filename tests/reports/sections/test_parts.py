"""What a section is, and how one is added to the report."""

from __future__ import annotations

import pandas as pd

from reports import report as reports
from reports.document.cells import cell
from reports.document.document import Column, Document, Figure, Fold, Heading, Paragraph, Table
from reports.figures.figures import Plot
from reports.load.sweep import load_sweep
from reports.sections.parts import section

TABLE = Table("widths", (Column("rank", True),), ((cell("8", 8),),))
PLOT = Plot(Figure("ranks", "Ranks.", "All of them."), pd.DataFrame({"rank": [8]}), lambda look: None)


def test_parts_stand_below_the_heading_in_their_order():
    made = section("Ranks", "There is one.", None, PLOT, TABLE)
    assert made.blocks == (Heading(2, "Ranks"), Paragraph(("There is one.",)), PLOT.figure, TABLE)
    assert made.plots == (PLOT,)


def test_without_a_title_there_is_no_heading():
    assert section("", "Words.").blocks == (Paragraph(("Words.",)),)


def test_a_section_that_can_be_skipped_is_folded_below_its_heading():
    made = section("Ranks", TABLE, PLOT, folded="All of them")
    assert made.blocks == (Heading(2, "Ranks"), Fold("All of them", (TABLE, PLOT.figure)))
    assert made.plots == (PLOT,)
    assert Document("", (*made.blocks, TABLE)).tables == (TABLE, TABLE)


def test_no_section_is_there_that_says_nothing(folder, add):
    """Of a sweep that has not begun, and of one of which nothing was trained."""
    assert titles(folder) == ["Set-up", "Quantizers side by side", "How to repeat it"]
    add("t0", "failed", steps=0)
    assert titles(folder) == ["Set-up", "Quantizers side by side", "How the trials ended", "How to repeat it"]
    (folder / "sweep.yaml").write_text("name: empty\n")
    assert titles(folder) == ["Set-up", "Quantizers side by side", "How the trials ended", "How to repeat it"]


def titles(folder):
    document = reports.report(load_sweep(folder)).document
    return [block.text for block in document.blocks if isinstance(block, Heading)]


def test_a_section_is_added_by_a_line_of_the_table(folder, add, monkeypatch):
    add("t0", eval_loss=2.5, rank=8)

    def ranks(findings):
        return section("Ranks", f"{len(findings.searched)} of them.", TABLE, drawn)

    def draw(look):
        from matplotlib.figure import Figure

        return Figure()

    drawn = Plot(PLOT.figure, PLOT.data, draw)
    before = reports.write_report([folder]).read_text()
    monkeypatch.setattr(reports, "SECTIONS", (reports.SECTIONS[0], lambda findings: None, ranks, *reports.SECTIONS[1:]))
    path = reports.write_report([folder])
    page = path.read_text()
    start, end = page.index("## Ranks\n\n1 of them.\n"), page.index("## Set-up\n")
    assert page[:start] + page[end:] == before
    assert (path.parent / "tables" / "widths.csv").read_text() == "rank\n8\n"
    assert (path.parent / "figures" / "ranks.csv").read_text() == "rank\n8\n"
    assert (path.parent / "figures" / "ranks.png").exists()
    assert '<img alt="Ranks." src="figures/ranks.svg"' in page[start:end]
