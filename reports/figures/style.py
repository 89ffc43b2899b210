"""How figures look and how they are saved: two looks, a colour, marker and dash for each quantizer, text as it is, ticks.

Hues are those of Okabe and Ito (jfly.uni-koeln.de/color), darker on white and lighter on the dark page where their contrast
asks for it. Colour never stands alone: markers and dashes say the same in black and white. matplotlib is imported where it
is used, since the command line starts without it, and never through pyplot: no window, no state.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import pandas as pd

from reports.document.document import DIRECTIONS, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH: Final = 8.0
"""Inches: 768 pixels of CSS, which a page of GitHub (830) shows as they are."""
HEIGHT: Final = 4.5
DPI: Final = 100
SVG_DPI: Final = 150
"""Of the image inside an SVG of very many points."""
PNG_DPI: Final = 200
"""Twice what the page shows, for screens of high density."""
FONT: Final = 9.0
"""Points of the text; 9 are 12 pixels on the page."""
SMALL: Final = 8.0
LONGEST: Final = 40
"""Characters of a label."""
HEAVIEST: Final = 190_000
"""Bytes of a PNG, past which it has fewer colours."""
MANY: Final = 800
"""Shapes of one figure above which an SVG holds them as an image: a file of a few hundred KB instead of many MB."""


@dataclass(frozen=True, slots=True)
class Look:
    """The colours of a page."""

    dark: bool
    background: str
    ink: str
    quiet: str
    """Of what explains: ticks, notes, zero lines."""
    grid: str
    accent: str
    """Of bars that stand for no quantizer."""

    def faded(self, colour: str, share: float) -> str:
        """`colour` at this share over the page: opaque, so that what lies under it does not show."""
        pairs = zip(_channels(colour), _channels(self.background), strict=True)
        return "#" + "".join(f"{round(share * over + (1 - share) * under):02x}" for over, under in pairs)

    def context(self) -> AbstractContextManager[None]:
        """matplotlib's own defaults (no file of this machine's user counts), and this look; mathtext is off."""
        from matplotlib import style

        settings: dict[str, Any] = {
            "figure.facecolor": self.background,
            "figure.dpi": DPI,
            "axes.facecolor": self.background,
            "axes.edgecolor": self.quiet,
            "axes.labelcolor": self.ink,
            "axes.labelsize": FONT,
            "axes.linewidth": 0.8,
            "axes.axisbelow": True,
            "axes.spines.left": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.formatter.useoffset": False,
            "font.family": "DejaVu Sans",
            "font.size": FONT,
            "grid.color": self.grid,
            "grid.linewidth": 0.7,
            "hatch.color": self.accent,
            "hatch.linewidth": 0.8,
            "legend.fontsize": SMALL,
            "lines.solid_capstyle": "round",
            "savefig.facecolor": self.background,
            "svg.fonttype": "path",
            "svg.hashsalt": "bitlora",
            "text.color": self.ink,
            "text.parse_math": False,
            "xtick.color": self.quiet,
            "ytick.color": self.quiet,
            "xtick.labelsize": SMALL,
            "ytick.labelsize": SMALL,
            "ytick.major.size": 0,
        }
        return style.context(["default", settings])


def _channels(colour: str) -> bytes:
    return bytes.fromhex(colour.removeprefix("#"))


LIGHT: Final = Look(False, "#ffffff", "#1f2328", "#59636e", "#e6e9ed", "#0072b2")
DARK: Final = Look(True, "#0d1117", "#e6edf3", "#9198a1", "#262c36", "#58a6dd")


# --- a quantizer's mark


@dataclass(frozen=True, slots=True)
class Mark:
    """How a quantizer is drawn, in every figure."""

    colour: str
    marker: str
    dash: tuple[float, ...]
    """On, off, … in widths of the line; () is solid."""

    @property
    def line(self) -> Any:
        """The dash as matplotlib takes it."""
        return (0.0, self.dash) if self.dash else "solid"

    @property
    def scale(self) -> float:
        """What the marker's area takes to look as large as a circle."""
        return {"*": 2.2, "P": 1.5, "X": 1.4, "D": 0.8, "s": 0.85}.get(self.marker, 1.2)


# Light, dark, marker, dash. The first three also lie far apart in luminance.
KNOWN: Final[dict[str, tuple[str, str, str, tuple[float, ...]]]] = {
    "none": ("#1f2328", "#e6edf3", "o", ()),
    "binary": ("#d55e00", "#ffa257", "s", (4, 1.5)),
    "ternary": ("#00598f", "#3d93d6", "^", (1, 1.5)),
    "absmean": ("#009e73", "#2cc295", "D", (5, 1.5, 1, 1.5)),
    "twn": ("#b85c8f", "#e29ac4", "v", (8, 2)),
    "int2": ("#b07800", "#f2b632", "P", (3, 1, 1, 1, 1, 1)),
    "int4": ("#2e8bc0", "#8fd0f5", "<", (2, 2)),
    "int8": ("#8f8500", "#f0e442", ">", (8, 2, 3, 2)),
    "double_binary": ("#8a3b1e", "#d9775a", "*", (6, 1, 1, 1, 1, 1)),
}
_MARKERS: Final = ("d", "p", "H", "8", "X")
"""Of quantizers that are not known here."""


def mark(quantizer: str, look: Look) -> Mark:
    """The mark of `quantizer`. One that is not known gets its own from its name alone, so that all figures agree; of many
    such, two may share a colour or a marker."""
    if quantizer in KNOWN:
        light, dark, marker, dash = KNOWN[quantizer]
        return Mark(dark if look.dark else light, marker, dash)
    number = int.from_bytes(hashlib.sha256(quantizer.encode("utf-8", "replace")).digest()[:6], "big")
    number, hue = divmod(number, len(KNOWN) - 1)
    number, shape = divmod(number, len(_MARKERS))
    known = list(KNOWN.values())[1:]
    light, dark, _, _ = known[hue]
    return Mark(dark if look.dark else light, _MARKERS[shape], known[number % len(known)][3])


def ordered(quantizers: Iterable[str]) -> list[str]:
    """Each once: those known here in their order, then the others by name."""
    places = {name: place for place, name in enumerate(KNOWN)}
    return sorted(set(quantizers), key=lambda name: (places.get(name, len(places)), name))


# --- text


def label(anything: object, limit: int = LONGEST) -> str:
    """`anything` as one line of at most `limit` characters; what the font cannot draw (CJK, say) is a box."""
    line = plain("".join(c for c in str(anything) if unicodedata.category(c) != "Cf"), limit)
    return "".join(c if ord(c) in _drawable() else "□" for c in line if c not in DIRECTIONS)


@cache
def _drawable() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def size(count: float) -> str:
    """Bytes in powers of 1000, three digits: 500 KB, 1.5 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def number(value: float) -> str:
    """A hyperparameter's value: 16, 0.05, 5e-4."""
    if value and not 1e-2 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"


def whole(value: float) -> str:
    """A count with its thousands apart."""
    return f"{value:,.0f}" if abs(value) < 1e12 else number(value)


# --- files

Draw = Callable[[Look], "Figure | None"]


class Plane(NamedTuple):
    """Where the first axes of a figure lie on it, in parts of its width and its height from its top left corner, and the
    values at their ends."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    @classmethod
    def of(cls, figure: Figure) -> Plane | None:
        """None: it has no axes."""
        if not figure.axes:
            return None
        axes = figure.axes[0]
        box = axes.get_position()
        return cls(box.x0, 1 - box.y1, box.x1, 1 - box.y0, axes.get_xlim(), axes.get_ylim())


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure as files: the same data gives the same bytes."""

    light: str
    """SVG, its text as outlines: it reads the same everywhere."""
    dark: str
    png: bytes
    """Light."""
    plane: Plane | None


def drawn(draw: Draw) -> Drawn | None:
    """The files of what `draw` draws; None where it has nothing to draw."""
    light, dark = draw(LIGHT), draw(DARK)
    if light is None or dark is None:
        return None
    return Drawn(svg(light, LIGHT), svg(dark, DARK), png(light, LIGHT), Plane.of(light))


def svg(figure: Figure, look: Look) -> str:
    """`figure` as SVG without a date, the program's name, or a style that would reach the page around it."""
    out = io.StringIO()
    with look.context():
        figure.savefig(out, format="svg", dpi=SVG_DPI, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)  # every text once more
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, count=1, flags=re.DOTALL)
    text = text.replace("<svg ", '<svg style="stroke-linejoin: round; stroke-linecap: butt" ', 1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them
    # Coordinates to a hundredth of a point; factors stand in brackets and keep all their digits.
    text = re.sub(r'(?<=[ "])-?\d+\.\d{3,}(?=[\s"])', lambda found: f"{float(found[0]):.2f}", text)
    return re.sub(r"(?<=base64,)[^\"]+", lambda found: _lighter(found[0]), text)


def _lighter(image: str) -> str:
    """A PNG inside an SVG with a palette: a third of the bytes."""
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image))) as whole_colours:
        colours = whole_colours.quantize(64, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        colours.save(out, "PNG", optimize=True)
    return base64.b64encode(out.getvalue()).decode("ascii")


def png(figure: Figure, look: Look) -> bytes:
    """`figure` as PNG with a palette, which is a third of the bytes, without a date or the program's name."""
    from PIL import Image

    raw = io.BytesIO()
    with look.context():
        figure.savefig(raw, format="png", dpi=PNG_DPI, pil_kwargs={"compress_level": 0})
    with Image.open(raw) as image:
        drawn = image.convert("RGB")
    # Colours that mean something stay what they are, whatever the others come to.
    held = [look.background, look.ink, look.quiet, look.accent, *(mark(name, look).colour for name in KNOWN)]
    place, found = pd.factorize((np.asarray(drawn, dtype=np.int32) @ (1 << 16, 1 << 8, 1)).ravel(), sort=True)
    shades = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.float32)
    for colours in (256, 128, 64, 32):
        usual = drawn.quantize(colours - len(held), dither=Image.Dither.NONE).getpalette() or []
        palette = np.array([*b"".join(map(_channels, held)), *usual][: 3 * colours], dtype=np.float32).reshape(-1, 3)
        apart = (palette**2).sum(1) - 2 * shades @ palette.T
        small = Image.fromarray(apart.argmin(1).astype(np.uint8)[place].reshape(drawn.height, drawn.width))
        small.putpalette(palette.astype(np.uint8).tobytes())
        out = io.BytesIO()
        small.save(out, "PNG", optimize=True)
        if out.tell() <= HEAVIEST:
            break
    return out.getvalue()
