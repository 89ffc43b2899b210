"""A document as one HTML file that opens anywhere: nothing in it, and nothing it does, asks for another file.

The same document and figures give the same bytes. Without JavaScript every row and every word is there; with it, a table
sorts by the header that is clicked, can be filtered and folds its long tail away, a curve says whose it is, by pointer and
by keyboard, and code can be copied.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count
from types import MappingProxyType
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from reports.document.document import (
    NOTHING,
    Block,
    Bullets,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Fold,
    Heading,
    Listing,
    Paragraph,
    Strong,
    Table,
)

NUMBER: Final = re.compile(r"(\d[\d.,]*(?:e-\d+| %))")
"""What browsers would break: 5e-3 after its hyphen, 0.67 % at its space."""
LONG: Final = 40
"""Characters from which on a cell may break into lines."""
FILTERED: Final = 8
"""Rows above which a table can be filtered."""
NO_CURVES: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType({})


def html(
    document: Document, figures: Mapping[str, tuple[str, str]], curves: Mapping[str, Mapping[str, Any]] = NO_CURVES
) -> str:
    """`document` as HTML.

    Args:
        document: its text is plain; all of it is escaped here. Its heading of level 1, or where it has none its title,
            stands on top.
        figures: for the name of a figure, its drawing for a light page and for a dark one, as the text of an SVG. A
            figure that is not among them shows its caption, and says that it could not be drawn.
        curves: for the name of a figure of them, what its curves are (`reports.figures.figures.pointed`), so that the
            page says whose one is under the pointer.

    Returns:
        The text of the file, to be written as UTF-8.
    """
    top = next((block for block in document.blocks if _level(block) == 1), Heading(1, document.title))
    blocks = [block for block in document.blocks if block is not top]
    first = next((index for index, block in enumerate(blocks) if _level(block) == 2), len(blocks))
    headings = [block for block in blocks if isinstance(block, Heading)]
    ids = anchors(heading.text for heading in headings)
    page = _environment().get_template("report.html.jinja")
    return page.render(
        title=document.title,
        top=top,
        lead=blocks[:first],
        sections=blocks[first:],
        contents=[(anchor, heading.text) for heading, anchor in zip(headings, ids, strict=True) if heading.level == 2],
        next_anchor=iter(ids).__next__,  # headings are drawn in the order of `ids`
        figures={name: (_uri(light), _uri(dark)) for name, (light, dark) in figures.items()},
        curves=curves,
        filtered=FILTERED,
    )


def anchors(titles: Iterable[str]) -> list[str]:
    """An id for each of `titles`, made of its letters and digits; no two are equal."""
    taken: set[str] = set()
    found = []
    for title in titles:
        slug = re.sub(r"[\W_]+", "-", title.lower()).strip("-") or "section"
        free = next(name for name in _numbered(slug) if name not in taken)
        taken.add(free)
        found.append(free)
    return found


def _numbered(slug: str) -> Iterator[str]:
    yield slug
    for number in count(2):
        yield f"{slug}-{number}"


def _level(block: Block) -> int | None:
    return block.level if isinstance(block, Heading) else None


def _attributes(cell: Cell, column: Column) -> dict[str, str | None]:
    """Attributes of a `td`: how it looks, and what the script sorts it by where that is not its text."""
    value = cell.text if cell.value is None else cell.value
    missing = value == NOTHING if isinstance(value, str) else not math.isfinite(value)
    looks = {"right": column.right, "missing": missing, "long": len(cell.text) > LONG}
    found: dict[str, str | None] = {"class": " ".join(name for name, holds in looks.items() if holds) or None}
    if missing:
        found["data-missing"] = ""
    elif not isinstance(value, str):
        found["data-number"] = repr(float(value)).removesuffix(".0")
    elif value != cell.text:
        found["data-text"] = value
    return found


def _unbroken(text: str) -> Markup:
    """`text`, escaped, with numbers that stay in one line."""
    pieces = enumerate(NUMBER.split(text))  # every second one is a number
    return Markup("").join(Markup('<span class="whole">{}</span>').format(p) if i % 2 else p for i, p in pieces)


def _uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode('ascii')}"


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reports.writers", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"attributes": _attributes, "unbroken": _unbroken}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    for kind in (Strong, Code, Heading, Paragraph, Bullets, Listing, Table, Figure, Fold):
        environment.tests[kind.__name__.lower()] = _is(kind)
    return environment


def _is(kind: type) -> Callable[[object], bool]:
    return lambda thing: isinstance(thing, kind)
