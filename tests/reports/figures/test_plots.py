"""The figures: what they draw is what is in the frame, whatever is in the frame, twice the same."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from functools import partial
from pathlib import Path

import figures
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from reports.figures import plot_gaps, plots
from reports.figures.style import DARK, LIGHT, drawn, mark, png, svg

ROOT = Path(__file__).parents[3]
NAN = float("nan")
HOSTILE = [
    "$x_1$",
    "$\\frac{",
    "a_b^c",
    "<b>&|--",
    "two\nlines\t",
    "שלום עולם",
    "مرحبا",
    "漢字",
    "x" * 200,
    "",
    "\x00",
]
LOOKS = [LIGHT, DARK]

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=figures.FIGURES)
def figure(request):
    """A function that draws one of the figures, and its frame."""
    draw, frame = figures.FIGURES[request.param]
    return draw, frame()


def words(drawing):
    from matplotlib.text import Text

    drawing.draw_without_rendering()
    beyond = set()  # matplotlib keeps ticks that lie outside the axes, and draws none of them
    for axes in drawing.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            far = [
                tick for tick in axis.get_major_ticks() if not axis.get_visible() or not low <= tick.get_loc() <= high
            ]
            beyond |= {id(text) for tick in far for text in (tick.label1, tick.label2)}
    found = [text for text in drawing.findobj(Text) if text.get_visible() and text.get_text()]
    return [text for text in found if id(text) not in beyond]


def survives(draw, frame):
    """Draws and saves it; its size on the page is sane and its SVG is XML."""
    drawing = draw(frame, LIGHT)
    assert drawing is not None
    text = svg(drawing, LIGHT)
    ElementTree.fromstring(text)
    assert "nan" not in text.lower().split("base64")[0]
    return drawing


# --- the same bytes, no state


def program(env):
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "tests/helpers/figures.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_the_same_data_gives_the_same_bytes_in_any_process_and_under_any_settings(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.grid: True\nlines.linewidth: 9\nsvg.fonttype: none\n")
    first = program({"PYTHONHASHSEED": "1"})
    second = program({"PYTHONHASHSEED": "2", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "TZ": "Asia/Tokyo"})
    assert first == second
    assert len(set(first.values())) == len(figures.FIGURES) + 1
    assert figures.digest(svg(plot_gaps.gaps(figures.gaps(), LIGHT), LIGHT)) == first["gaps"]


def test_matplotlib_is_imported_late_and_pyplot_never():
    code = f"""
import sys, pathlib
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests/helpers")!r}]
import figures
assert "matplotlib" not in sys.modules
from reports.figures.style import LIGHT
figures.plot_gaps.gaps(figures.gaps(), LIGHT)
import matplotlib
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_are_left_as_they_were():
    import matplotlib

    before = dict(matplotlib.rcParams)
    drawn(partial(plot_gaps.gaps, figures.gaps()))
    assert dict(matplotlib.rcParams) == before


def test_files_name_no_program_and_no_date(figure):
    files = drawn(partial(figure[0], figure[1]))
    for text in (files.light, files.dark):
        ElementTree.fromstring(text)
        assert "matplotlib" not in text.lower().replace("matplotlib.org", "")
        assert "<dc:date" not in text
        assert "<style" not in text
        assert "<text" not in text
        assert len(text) < 500_000
    assert LIGHT.background in files.light
    assert DARK.background in files.dark
    from PIL import Image

    with Image.open(io.BytesIO(files.png)) as image:
        assert set(image.info) <= {"dpi"}
        assert image.width == 1600
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert len(files.png) < 200_000


def test_a_png_keeps_the_colours_of_quantizers_exact():
    from PIL import Image

    with Image.open(io.BytesIO(png(plots.learning_curves(figures.curves(200), LIGHT), LIGHT))) as image:
        found = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    for name in ("none", "binary", "ternary"):
        assert tuple(bytes.fromhex(mark(name, LIGHT).colour[1:])) in found


# --- whatever is in the frame


def test_nothing_to_draw(figure):
    draw, frame = figure
    values = frame.select_dtypes("number").columns
    for nothing in (
        frame.head(0),
        frame.assign(**dict.fromkeys(values, NAN)),
        frame.assign(**dict.fromkeys(values, None)),
    ):
        assert draw(nothing, LIGHT) is None
        assert drawn(partial(draw, nothing)) is None


def test_one_row_and_equal_rows(figure):
    draw, frame = figure
    survives(draw, frame.head(1))
    survives(draw, pd.concat([frame.head(1)] * 5))
    for value in (0, 3, -1e-300, 1e50):
        values = dict.fromkeys(frame.select_dtypes("number").columns, value)
        if draw is not plots.quality_size or value > 0:
            drawing = draw(frame.assign(**values), LIGHT)
            assert drawing is None or svg(drawing, LIGHT)


def test_what_is_missing_or_not_finite_is_left_out(figure):
    draw, frame = figure
    values = [str(column) for column in frame.select_dtypes("number").columns]
    broken = [frame.head(1).assign(**{column: bad}) for column in values for bad in (NAN, np.inf, -np.inf, 1e300)]
    mixed = pd.concat([frame, *broken], ignore_index=True)
    assert svg(survives(draw, mixed.convert_dtypes()), LIGHT) == svg(survives(draw, mixed), LIGHT)
    survives(
        draw, pd.concat([frame.astype(object), frame.head(1).astype(object).assign(**dict.fromkeys(values, pd.NA))])
    )


def test_hostile_words(figure):
    draw, frame = figure
    texts = ["label", "quantizer", "trial_id", "axis", "status", "schedule"]
    frame = pd.concat([frame] * 4, ignore_index=True).head(max(len(frame), len(HOSTILE)))
    names = [HOSTILE[i % len(HOSTILE)] for i in range(len(frame))]
    frame = frame.assign(**{column: names for column in texts if column in frame})
    for text in words(survives(draw, frame)):
        assert not text.get_parse_math()
        assert len(text.get_text()) < 70


def test_words_lie_inside_the_figure_and_can_be_read(figure):
    draw, frame = figure
    for column in ("label", "trial_id", "axis"):
        if column in frame:
            frame = frame.assign(**{column: [f"{value} with a name that goes on and on" for value in frame[column]]})
    drawing = draw(frame, LIGHT)
    width, height = drawing.bbox.width, drawing.bbox.height
    for text in words(drawing):
        box = text.get_window_extent()
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= width + 1, text
        assert box.y1 <= height + 1, text
        assert text.get_fontsize() * 96 / 72 >= 10, text


def test_words_do_not_overlap(figure):
    draw, frame = figure
    boxes = [text.get_window_extent() for text in words(draw(frame, LIGHT))]
    for one, other in itertools.combinations(boxes, 2):
        assert not (
            min(one.x1, other.x1) - max(one.x0, other.x0) > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
        )


def test_very_many():
    frame = figures.curves(2000)
    began = time.monotonic()
    drawing = plots.learning_curves(frame, LIGHT)
    assert time.monotonic() - began < 5
    assert len(svg(drawing, LIGHT)) < 500_000
    assert len(png(drawing, LIGHT)) < 200_000
    for drawing in (plots.quality_size(figures.quality(2000), LIGHT), figures.slices(figures.trials(2000), LIGHT)):
        assert len(svg(drawing, LIGHT)) < 500_000
        assert len(png(drawing, LIGHT)) < 200_000


def test_many_quantizers_are_counted_in_the_legend():
    frame = figures.quality(40).assign(quantizer=[f"q{i:02d}" for i in range(40)])
    found = [text.get_text() for text in plots.quality_size(frame, LIGHT).legends[0].get_texts()]
    assert {f"q{i:02d}" for i in range(12)} | {"and 28 more"} < set(found)
    assert "q12" not in found


# --- what is drawn is what is in the frame


def test_quality_size_draws_the_frame():
    frame = figures.quality()
    axes = plots.quality_size(frame, LIGHT).axes[0]
    assert figures.drawn_points(axes) == Counter(zip(frame["adapter_bytes"], frame["eval_loss"], strict=True))
    front = frame[frame["front"]]
    (steps,) = axes.lines
    np.testing.assert_array_equal(steps.get_xydata(), front[["adapter_bytes", "eval_loss"]])
    assert steps.get_drawstyle() == "steps-post"
    assert {text.get_text() for text in axes.texts} == set(front["label"])
    bars = next(c for c in axes.collections if type(c).__name__ == "LineCollection")
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    known = frame[frame["error"].notna()]
    np.testing.assert_allclose(ends.mean(1), known["eval_loss"])
    np.testing.assert_allclose(np.diff(ends).ravel() / 2, known["error"])
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["300 KB", "1 MB", "3 MB", "10 MB"]


def test_the_front_is_never_beyond_the_axis():
    frame = figures.quality().assign(error=NAN)
    frame.loc[[0, 2], "eval_loss"] = 50.0, 60.0
    drawing = plots.quality_size(frame, LIGHT)
    assert 50 < drawing.axes[0].get_ylim()[1] < 60
    assert "1 beyond the axis" in [text.get_text() for text in drawing.legends[0].get_texts()]
    assert survives(plots.quality_size, frame.assign(front=False)).axes[0].get_ylim()[1] < 4
    assert survives(plots.quality_size, frame.assign(front=True))


def test_learning_curves_draw_the_frame():
    frame = figures.curves()
    axes = plots.learning_curves(frame, LIGHT).axes[0]
    lines = [c for c in axes.collections if type(c).__name__ == "LineCollection"]
    found = sorted(segment.tolist() for c in lines for segment in c.get_segments())
    assert found == sorted(part[["step", "eval_loss"]].values.tolist() for _, part in frame.groupby("trial_id"))
    ends = frame.groupby("trial_id").last()
    assert figures.drawn_points(axes) == Counter(zip(ends["step"], ends["eval_loss"], strict=True))
    best = next(c for c in lines if len(c.get_segments()) == 1 and c.get_linewidth()[0] > 2)
    assert best.get_segments()[0].tolist() == frame.loc[frame["best"], ["step", "eval_loss"]].values.tolist()
    assert [text.get_text() for text in axes.texts] == ["best: t0001"]


def test_learning_curves_with_no_best_and_with_several():
    frame = figures.curves()
    assert survives(plots.learning_curves, frame.assign(best=False)).axes[0].get_title(loc="left") == plots.LOSS
    tie = survives(plots.learning_curves, frame.assign(best=frame["trial_id"].isin(["t0000", "t0001", "t0003"])))
    assert [text.get_text() for text in tie.axes[0].texts] == ["best: t0000 and 2 that tie"]


def test_a_diverging_curve_leaves_the_axes_and_is_counted():
    frame = figures.curves()
    drawing = plots.learning_curves(frame, LIGHT)
    usual = frame.loc[frame["status"] != "diverged", "eval_loss"].max()
    assert usual <= drawing.axes[0].get_ylim()[1] < usual + 1
    assert "1 beyond the axis" in [text.get_text() for text in drawing.legends[0].get_texts()]
    calm = plots.learning_curves(frame[frame["status"] != "diverged"], LIGHT)
    assert not any("beyond" in text.get_text() for text in calm.legends[0].get_texts())


def test_the_base_stays_on_the_axes_unless_it_would_squash_the_curves_and_is_never_counted_as_one_that_left():
    frame = figures.curves()
    calm = frame[frame["status"] != "diverged"]
    lowest, highest = calm["eval_loss"].min(), calm["eval_loss"].max()
    begun = calm.drop_duplicates("trial_id").assign(step=0)
    for above, shown in ((2, True), (40, False)):
        own = highest + above * (highest - lowest)
        drawing = plots.learning_curves(pd.concat([begun.assign(eval_loss=own), calm]), LIGHT)
        top = drawing.axes[0].get_ylim()[1]
        assert (top > own) if shown else (highest <= top < highest + 1)
        assert drawing.axes[0].get_xlim()[0] <= 0
        assert not any("beyond" in text.get_text() for text in drawing.legends[0].get_texts())


def test_where_higher_is_better_the_base_may_lie_far_below():
    frame = figures.curves().rename(columns={"eval_loss": "value"})
    frame = frame[frame["status"] != "diverged"]
    lowest, highest = frame["value"].min(), frame["value"].max()
    begun = frame.drop_duplicates("trial_id").assign(step=0)
    for below, shown in ((2, True), (40, False)):
        own = lowest - below * (highest - lowest)
        axes = plots.metric_curves(pd.concat([begun.assign(value=own), frame]), "hits", True, LIGHT).axes[0]
        bottom, top = axes.get_ylim()
        assert (bottom < own) if shown else (lowest - (highest - lowest) < bottom <= lowest)
        assert top > highest


def test_where_there_is_one_value_the_base_squashes_nothing():
    frame = figures.curves(1, 1)
    drawing = plots.learning_curves(pd.concat([frame.assign(step=0, eval_loss=90.0), frame]), LIGHT)
    assert drawing.axes[0].get_ylim()[1] > 90


def test_importances_are_sorted_and_printed():
    axes = plots.importances(figures.bars(), LIGHT).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.71, 0.2, 0.002]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["learning rate", "rank", "alpha"]
    assert [text.get_text() for text in axes.texts] == [
        "0.71 (by chance 0.40)",
        "0.20 (by chance 0.30)",
        "< 0.01 (by chance 0.10)",
    ]
    filled = [to_hex(bar.get_facecolor()) == to_hex(LIGHT.accent) for bar in axes.patches]
    assert filled == [True, False, False]  # hollow: within chance
    marks = [segment[0][0] for lines in axes.collections for segment in lines.get_segments()]
    assert marks == [0.4, 0.3, 0.1]


def test_slices_draw_the_frame():
    frame = figures.trials()
    panels = figures.slices(frame, LIGHT).axes
    places = frame["schedule"].map({"cosine": 0, "linear": 1})
    for axes, x in zip(panels, [frame["learning_rate"], frame["rank"], frame["dropout"], places], strict=True):
        assert figures.drawn_points(axes) == Counter(zip(x.astype(float), frame["eval_loss"], strict=True))
    hollow = [c for c in panels[0].collections if len(c.get_facecolor()) == 0]
    assert sum(len(c.get_offsets()) for c in hollow) == (~frame["ranked"]).sum()
    assert [tick.get_text() for tick in panels[1].get_xticklabels()] == ["4", "8", "16", "32"]
    assert [tick.get_text() for tick in panels[3].get_xticklabels()] == ["cosine", "linear"]


def test_slices_of_what_an_axis_cannot_hold():
    frame = figures.trials().assign(
        rank=[0, 8] * 15, dropout=NAN, flag=[True, False] * 15, schedule=[None, "cosine"] * 15
    )
    drawing = plots.slices(frame, [("rank", True), ("dropout", False), ("flag", True), ("schedule", False)], LIGHT)
    assert [axes.get_xlabel() for axes in drawing.axes] == ["rank, log scale", "flag", "schedule"]
    assert figures.drawn_points(drawing.axes[0]).total() == figures.drawn_points(drawing.axes[2]).total() == 15
    with pytest.raises(KeyError):
        plots.slices(frame, [("no_such", False)], LIGHT)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 12])
def test_any_number_of_slices(count):
    frame = figures.trials().assign(**{f"a{i}": np.arange(30.0) for i in range(count)})
    drawing = plots.slices(frame, [(f"a{i}", False) for i in range(count)], LIGHT)
    assert sum(axes.get_visible() for axes in drawing.axes) == count


def test_budget_draws_the_frame():
    rows = figures.budget()
    axes = plots.budget(rows, LIGHT).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [*rows["steps_run"], *rows["steps_saved"]]
    assert [bar.get_x() for bar in axes.patches][3:] == list(rows["steps_run"])
    assert [text.get_text() for text in axes.texts] == ["4,800", "3,410 + 8,990 saved", "150 + 650 saved"]
