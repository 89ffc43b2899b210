"""The figures of gaps: what they draw is what is in the frame. What all figures share is in test_plots.py."""

from __future__ import annotations

import itertools
from collections import Counter

import figures
import pandas as pd
import pytest

from reports.figures import plot_gaps
from reports.figures.style import LIGHT

pytestmark = pytest.mark.filterwarnings("error")


def test_gaps_draw_the_frame():
    rows = figures.gaps()
    drawing = plot_gaps.gaps(rows, LIGHT)
    axes = drawing.axes[0]
    assert figures.drawn_points(axes) == Counter((x, float(place)) for place, x in enumerate(rows["difference"]))
    lines = [c.get_segments()[0] for c in axes.collections if type(c).__name__ == "LineCollection"]
    assert [line[:, 0].tolist() for line in lines] == [[-0.004, 0.042], [0.003, 0.034]]
    filled = [c.get_facecolor()[0].tolist() for c in axes.collections if type(c).__name__ == "PathCollection"]
    assert [face == [1, 1, 1, 1] for face in filled] == [False, True, False, False]
    assert [text.get_text() for text in axes.texts] == [
        "0",
        "+0.019  (−0.004 to +0.042)",
        "+0.019  (+0.003 to +0.034)",
        "+0.120  (no interval)",
    ]
    assert axes.yaxis_inverted()


def test_rows_beyond_forty_are_counted():
    rows = pd.concat([figures.gaps()] * 20, ignore_index=True)
    axes = plot_gaps.gaps(rows, LIGHT).axes[0]
    assert len(axes.get_yticks()) == 40
    assert "first 40 of 80" in axes.get_xlabel()


def test_size_gaps_draw_the_frame():
    rows = figures.size_gaps()
    axes = plot_gaps.size_gaps(rows, LIGHT).axes[0]
    places = plot_gaps.side_by_side(rows["adapter_bytes"])
    marks = [c for c in axes.collections if type(c).__name__ == "PathCollection"]
    assert [c.get_offsets()[0].tolist() for c in marks] == [list(p) for p in zip(places, rows["percent"], strict=True)]
    lines = [c.get_segments()[0] for c in axes.collections if type(c).__name__ == "LineCollection"]
    known = rows["low"].notna()
    assert [line[:, 1].tolist() for line in lines] == rows.loc[known, ["low", "high"]].to_numpy().tolist()
    assert [line[0, 0] for line in lines] == [place for place, is_known in zip(places, known, strict=True) if is_known]
    hollow = [c.get_facecolor()[0].tolist() == [1, 1, 1, 1] for c in marks]
    assert hollow == [False, True, False, True, False, False]  # those whose interval holds zero
    bottom, top = axes.get_ylim()
    assert bottom < -0.3
    assert top > 0.9


def test_sizes_that_are_nearly_equal_stand_side_by_side_and_others_where_they_are():
    sizes = pd.Series([1e7, 978_700, 2e6, 978_712, 978_700, 6e5])
    places = plot_gaps.side_by_side(sizes)
    assert [places[at] for at in (0, 2, 5)] == pytest.approx([1e7, 2e6, 6e5])
    near = [places[at] for at in (1, 4, 3)]
    assert near == sorted(near)
    assert all(1.04 < b / a < 1.1 for a, b in itertools.pairwise(near))
    assert near[1] == pytest.approx(978_704, rel=1e-4)
    assert plot_gaps.side_by_side(pd.Series([5.0])) == pytest.approx([5.0])
