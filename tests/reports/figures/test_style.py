"""How figures look: colours, marks, words."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from reports.figures.style import DARK, KNOWN, LIGHT, label, mark, number, ordered, size

LOOKS = [LIGHT, DARK]


def linear(colour):
    share = np.array(list(bytes.fromhex(colour[1:]))) / 255
    return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """WCAG 2.2."""
    low, high = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (one, other))
    return high / low


def lab(rgb):
    """CIE L*a*b* of linear sRGB, D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.maximum(to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SEEN = {
    "all": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("look", LOOKS)
def test_every_colour_stands_off_the_page(look):
    for name in KNOWN:
        assert contrast(mark(name, look).colour, look.background) >= 3, name
    for colour in (look.ink, look.quiet):
        assert contrast(colour, look.background) >= 4.5
    assert contrast(look.accent, look.background) >= 3


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("sight", SEEN)
def test_colours_are_told_apart_by_colour_blind_readers_too(look, sight):
    colours = {name: lab(np.asarray(SEEN[sight]) @ linear(mark(name, look).colour)) for name in KNOWN}
    for one, other in itertools.combinations(("none", "binary", "ternary"), 2):
        assert np.linalg.norm(colours[one] - colours[other]) > 30, (one, other)
        if sight == "all":  # in print without colour
            assert abs(colours[one][0] - colours[other][0]) > 12, (one, other)


@pytest.mark.parametrize("look", LOOKS)
def test_each_known_quantizer_has_its_own_colour_marker_and_dash(look):
    marks = [mark(name, look) for name in KNOWN]
    for of in ("colour", "marker", "dash"):
        assert len({getattr(one, of) for one in marks}) == len(marks)


def test_an_unknown_quantizer_has_a_mark_of_its_name_alone():
    known = {mark(name, LIGHT).marker for name in KNOWN}
    for name in ("nf3", "fp4", "$", "", "漢", "\ud800"):
        assert mark(name, LIGHT) == mark(name, LIGHT)
        assert mark(name, LIGHT).marker not in known
        assert mark(name, LIGHT).marker == mark(name, DARK).marker
    assert ordered(["zeta", "ternary", "alpha", "none", "zeta"]) == ["none", "ternary", "alpha", "zeta"]
    assert (mark("nf3", LIGHT).marker, mark("nf3", LIGHT).dash) != (mark("fp4", LIGHT).marker, mark("fp4", LIGHT).dash)


def test_words_of_numbers():
    sizes = [0, 1, 999, 1000, 152_640, 999_600, 1_500_000, 19_537_920, 3e12]
    assert [size(n) for n in sizes] == ["0 B", "1 B", "999 B", "1 KB", "153 KB", "1 MB", "1.5 MB", "19.5 MB", "3 TB"]
    assert [number(n) for n in (0.0005, 2.5e-4, 0.05, 16.0, 0.0, 1e6)] == ["5e-4", "2.5e-4", "0.05", "16", "0", "1e6"]


def test_labels():
    assert label("$x$\n<b>  y") == "$x$ <b> y"
    assert label("漢字 a") == "□□ a"
    assert label("x" * 41) == "x" * 39 + "…"
    assert label("a\u202eb\u2068c") == "abc"
    assert label("שלום") == "שלום"
    assert label(7) == "7"
