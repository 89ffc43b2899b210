"""What would be learned of a spec's data, token by token: on a terminal in colour, else with marks, or as HTML."""

from __future__ import annotations

import html
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text

from bitlora.files.writing import write_text
from sweeps.driver.meanwhile import ReadingBar
from sweeps.spec.errors import InputError
from sweeps.spec.spec import Spec

if TYPE_CHECKING:
    from bitlora.data.rows import Picked, Rows
    from bitlora.data.split import Dataset

STYLES: Final = {True: ("bold black on green", "bold black on bright_green"), False: ("dim", "dim reverse")}
"""Of tokens that are learned and of those that are read, in turns, so that one can be told from the next."""
OPEN: Final = "⟦"
CLOSE: Final = "⟧"
"""Around what is learned, where there are no colours."""
BETWEEN: Final = "·"
"""Between two tokens, where there are no colours."""


class ShownToken(NamedTuple):
    """A token as a person reads it."""

    text: str
    learned: bool


def read(spec: Spec) -> tuple[Dataset, Any]:
    """A spec's data, and the tokenizer.

    Raises:
        InputError: one of them cannot be used.
    """
    from bitlora.base.load import load_tokenizer
    from bitlora.base.locate import BaseError
    from bitlora.data.examples import DataError
    from bitlora.data.split import prepare_data

    bar = ReadingBar()
    try:
        tokenizer = load_tokenizer(spec.base.model, spec.base.revision)
        return prepare_data(spec.data, tokenizer, seen=bar.told, **spec.kept_back), tokenizer
    except BaseError as error:
        raise InputError([str(error)]) from None
    except DataError as error:
        raise InputError(error.lines) from None
    finally:
        bar.end()


def draw(console: Console, dataset: Dataset, tokenizer: Any, most: int) -> None:
    """Print counts, lengths, what became of the rest, and the first rows of each split.

    Args:
        most: rows of each split.
    """
    for line in facts(dataset):
        console.print(line, markup=False, highlight=False)
    for name, rows in _splits(dataset):
        for number in range(min(most, len(rows))):
            console.print()
            console.print(_headline(name, rows, number), markup=False, highlight=False, style="bold")
            console.print(_drawn(shown(rows, number, tokenizer), console.is_terminal), markup=False, highlight=False)


def facts(dataset: Dataset) -> list[str]:
    """Counts, lengths, and what became of the rest, a line each."""
    summary = dataset.summary
    lines = [
        f"{summary.source}: {summary.rows_read} rows read, {summary.truncated} truncated, {summary.dropped} dropped, "
        f"{summary.copies} copies; fingerprint {summary.fingerprint}"
    ]
    for name, rows in _splits(dataset):
        lines.append(
            f"{name}: {len(rows)} rows, {rows.lengths.sum():,} tokens ({_spread(rows.lengths)} a row), "
            f"{rows.learn_tokens.sum():,} learned ({_spread(rows.learn_tokens)}), {rows.text_bytes.sum():,} bytes of text"
        )
    return [*lines, *summary.notes]


def shown(rows: Picked | Rows, number: int, tokenizer: Any) -> list[ShownToken]:
    """The tokens of a row."""
    row = rows.take([number])
    marked = zip(row.tokens.tolist(), row.learn.tolist(), strict=True)
    return [ShownToken(_readable(token, tokenizer), learned) for token, learned in marked]


def page(dataset: Dataset, tokenizer: Any, most: int) -> str:
    """The same as an HTML page."""
    parts = [HEAD, *(f"<p>{html.escape(line)}</p>" for line in facts(dataset))]
    for name, rows in _splits(dataset):
        for number in range(min(most, len(rows))):
            tokens = "".join(
                f'<span class="{"learned" if token.learned else "read"}">{html.escape(token.text)}</span>'
                for token in shown(rows, number, tokenizer)
            )
            parts.append(f"<h2>{html.escape(_headline(name, rows, number))}</h2>\n<pre>{tokens}</pre>")
    return "\n".join([*parts, "</body></html>", ""])


def write_page(path: Path, text: str) -> None:
    """Raises InputError: it cannot be written."""
    try:
        write_text(path, text)
    except OSError as error:
        raise InputError([f"--html: {path}: {error.strerror or error}"]) from None


def _splits(dataset: Dataset) -> Iterator[tuple[str, Picked | Rows]]:
    for name, rows in (("train", dataset.train), ("eval", dataset.eval), ("test", dataset.test)):
        if len(rows):
            yield name, rows


def _headline(name: str, rows: Picked | Rows, number: int) -> str:
    learned, length = rows.learn_tokens[number], rows.lengths[number]
    return f"{name} {rows.example_ids[number]}: {length} tokens, {learned} learned"


def _spread(counts: Any) -> str:
    low, middle, high = np.quantile(counts, [0, 0.5, 1], method="nearest")
    return f"{low} to {high}, median {middle}"


def _readable(token: int, tokenizer: Any) -> str:
    text: str = tokenizer.decode([token])
    if "\ufffd" in text or not text:  # a part of a character, or nothing by itself
        text = str(tokenizer.convert_ids_to_tokens(token))
    return text.replace("\r", "␍").replace("\t", "␉").replace("\n", "⏎\n")


def _drawn(tokens: list[ShownToken], colours: bool) -> Text:
    text = Text()
    if colours:
        for number, token in enumerate(tokens):
            text.append(token.text, STYLES[token.learned][number % 2])
        return text
    for learned, run in groupby(tokens, lambda token: token.learned):
        joined = BETWEEN.join(token.text for token in run)
        text.append(f"{OPEN}{joined}{CLOSE}" if learned else joined)
    return text


HEAD: Final = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>What is learned</title><style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }
h2 { font-size: 1em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ccc; padding: .6em; }
pre span { border-radius: 2px; }
.read { color: #666; }
.read:nth-child(even) { background: #f1f1f1; }
.learned { background: #b9e6b9; color: #000; }
.learned:nth-child(even) { background: #93d693; }
</style></head><body>
<h1>What is learned</h1>"""
