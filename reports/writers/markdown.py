"""A document as Markdown that GitHub renders."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

from reports.document.document import (
    Block,
    Bullets,
    Code,
    Column,
    Document,
    Figure,
    Fold,
    Heading,
    Inline,
    Listing,
    Paragraph,
    Strong,
    Table,
)

WIDTH: Final = 120
"""Of the lines of a note; all other text stands in one line."""
FOLDED: Final = 300
"""Rows of a table, beyond those that are shown, that can be folded out."""


def markdown(document: Document) -> str:
    """The page. Figures and tables are linked to as `figures/<name>.svg` and `tables/<name>.csv`."""
    return "\n".join([f"# {escape(document.title)}\n", *(_block(block) for block in document.blocks)])


def escape(text: str) -> str:
    """`text` as Markdown that means only itself, in a sentence and in a table's cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def _inline(parts: Iterable[Inline]) -> str:
    drawn = []
    for part in parts:
        if isinstance(part, Strong):
            drawn.append(f"**{escape(part.text)}**")
        elif isinstance(part, Code):
            drawn.append(_code(part.text))
        else:
            drawn.append(escape(part))
    return "".join(drawn)


def _code(text: str) -> str:
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {escape(block.text)}\n"
    if isinstance(block, Paragraph):
        text = _inline(block.parts)
        return textwrap.fill(f"*{text}*", WIDTH) + "\n" if block.note else f"{text}\n"
    if isinstance(block, Bullets):
        return "".join(f"- {_inline(item)}\n" for item in block.items)
    if isinstance(block, Listing):
        fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.code)), default=0))
        return f"{fence}{block.language}\n{block.code}{fence}\n"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Fold):
        inside = "\n".join(_block(part) for part in block.blocks)
        return f"<details>\n<summary>{escape(block.summary)}</summary>\n\n{inside}\n</details>\n"
    return _figure(block)


def _figure(figure: Figure) -> str:
    """As HTML: GitHub picks the drawing for its dark theme by the `media` of a source."""
    alt = escape(figure.alt).replace('"', "&quot;")
    path = f"figures/{figure.name}"
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{path}-dark.svg">\n'
        f'<img alt="{alt}" src="{path}.svg" width="800">\n</picture>\n\n{escape(figure.caption)}\n'
    )


def _table(table: Table) -> str:
    cells = [[escape(cell.text) for cell in row] for row in table.rows]
    drawn = _drawn(table.columns, cells[: table.shown])
    rest = cells[table.shown : table.shown + FOLDED]
    if rest:
        rows = _drawn(table.columns, rest)
        drawn += f"\n<details>\n<summary>{len(rest):,} more</summary>\n\n{rows}\n</details>\n"
    if (left := len(cells) - table.shown - len(rest)) > 0:
        drawn += f"\nand {left:,} more in [tables/{table.name}.csv](tables/{table.name}.csv)\n"
    return drawn


def _drawn(columns: Sequence[Column], lines: Sequence[Sequence[str]]) -> str:
    cells = [[escape(column.name) for column in columns], *lines]
    right = [column.right for column in columns]
    # Padded, so that it also reads well unrendered; a last column of words may be long and is left ragged.
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(columns))]
    widths[-1] = widths[-1] if right[-1] else 3
    rule = ["-" * (width - 1) + ":" if r else "-" * width for width, r in zip(widths, right, strict=True)]

    def line(parts: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(parts, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(cells[0]), line(rule), *(line(each) for each in lines)]) + "\n"
