"""The rows of a source, tokenized once on a machine and kept there: packs, resumes and other sweeps map the same files.

What they hang on is what they are found by: the contents of the source's files (or the commit on the hub), every key that
changes a row, the tokenizer with its template, the code that reads and tokenizes, the versions of what it calls. What is
small, and a source of which this cannot be told, is read each time.
"""

from __future__ import annotations

import errno
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bitlora.data.examples import Example, Reading
from bitlora.data.rows import Rows, RowsWriter, rows_at
from bitlora.data.sources import How, bytes_of, contents, stream_examples
from bitlora.data.tokens import tokenize_into
from bitlora.files.machine_cache import CachePlace
from bitlora.tokenized.arrays import ArraysError, read_about
from bitlora.tokenized.processes import cores

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KIND: Final = "data"
CODE: Final = ("data", "reading", "tokenized")
"""The rooms whose code makes rows."""
MADE_BY: Final = ("transformers", "tokenizers", "jinja2", "datasets", "pyarrow", "numpy")

SMALL: Final = 2000
"""Examples that are read in about a second."""
EVERY: Final = 1000
"""Examples between two words of how far it is."""
Seen = Callable[[int, float | None], object]
"""Told how many examples have been read so far, and which share of the source's files; None: that is not known."""


@dataclass(frozen=True, slots=True)
class LoadedRows:
    """The rows of a source, and what became of it."""

    rows: Rows
    read: int
    truncated: int
    dropped: int
    notes: list[str]
    """What a reader should know of it, a plain sentence each."""
    commits: dict[str, str]
    """The commit of each data set of the hub, by its id."""


def load_rows(
    source: str | list[str],
    how: How,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    seen: Seen = lambda *_: None,
) -> LoadedRows:
    """The rows of a source: those that are kept, or else made, and kept where that can be.

    Args:
        max_length: tokens; a longer row is cut at its end.
        seen: told how far it is, where they have to be made.

    Raises:
        DataError: it cannot be used.
    """
    place = _place(source, how, tokenizer, max_length)
    if place is not None and (found := _kept(place)) is not None:
        return found
    job = _Making(source, how, tokenizer, max_length, seen)
    if place is not None and not job.is_small():
        with place.alone():
            found = _kept(place)
            if found is None and place.keep(lambda folder: job.make(folder, place)):
                found = _kept(place)
        if found is not None:
            return found
    return job.in_memory()


class _Making:
    """The rows of a source, on their way. The arguments are those of `load_rows`."""

    def __init__(
        self, source: str | list[str], how: How, tokenizer: PreTrainedTokenizerBase, max_length: int, seen: Seen
    ) -> None:
        self._source, self._how, self._seen = source, how, seen
        self._tokenizer, self._max_length = tokenizer, max_length
        self._begin()

    def _begin(self) -> None:
        self._reading = Reading()
        self._examples: Iterator[Example] = self._counted(stream_examples(self._source, self._how, self._reading))
        self._begun = False

    def _counted(self, examples: Iterator[Example]) -> Iterator[Example]:
        total = bytes_of(self._source, self._how)
        for number, example in enumerate(examples):
            if number and number % EVERY == 0:
                self._seen(number, min(1.0, self._reading.bytes_read / total) if total else None)
            yield example

    def is_small(self) -> bool:
        """Are there so few examples that it is no use to keep them? Raises DataError."""
        first = list(islice(self._examples, SMALL))
        self._examples = chain(first, self._examples)
        return len(first) < SMALL

    def make(self, folder: Path, place: CachePlace) -> None:
        """Write them to a folder that becomes `place`. Raises DataError; OSError: that cannot be."""
        writer = RowsWriter(folder)
        try:
            writer.close(self._fill(writer, cores() - 1))
        finally:
            writer.abandon()
        if _place(self._source, self._how, self._tokenizer, self._max_length) != place:
            raise OSError(errno.EAGAIN, "the data changed while they were read")

    def in_memory(self) -> LoadedRows:
        """All of them. Raises DataError."""
        writer = RowsWriter(None)
        about = self._fill(writer)
        return _loaded(writer.close({}), about)

    def _fill(self, writer: RowsWriter, others: int = 0) -> dict[str, Any]:
        """Write the rows, with the help of other processes; gives what `LoadedRows` has beside them."""
        if self._begun:
            self._begin()
        self._begun, reading = True, self._reading
        skipped = reading.skipped if self._how.skip else None
        counts = tokenize_into(writer, self._examples, self._tokenizer, self._max_length, skipped, others)
        return {
            "read": counts.read,
            "truncated": counts.truncated,
            "dropped": counts.dropped,
            "notes": [*reading.notes(), *counts.notes(self._max_length)],
            "commits": reading.commits,
        }


def _place(source: str | list[str], how: How, tokenizer: PreTrainedTokenizerBase, max_length: int) -> CachePlace | None:
    """Where the rows are kept; None: it is not known on what they hang."""
    found = contents(source, how)
    if found is None or not tokenizer.is_fast:
        return None
    reading = how._replace(places=None, revision=None, seed=how.seed if how.weights else 0)
    about = {
        "contents": found,
        "how": list(reading),
        "length": max_length,
        "tokenizer": _tokenizer(tokenizer),
        "code": _code(),
        "bytes": sys.byteorder,
    }
    names = [source] if isinstance(source, str) else source
    return CachePlace.of(KIND, Path(names[0]).name, about)


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that makes tokens of conversations."""
    parts = [
        type(tokenizer).__name__,
        tokenizer.chat_template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        getattr(tokenizer, "split_special_tokens", None),
    ]
    whole = json.dumps(parts, sort_keys=True) + tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(whole.encode()).hexdigest()


@cache
def _code() -> list[str]:
    """Of the code that makes rows, and the versions of what it calls."""
    digest = hashlib.sha256()
    for room in CODE:
        for file in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return [digest.hexdigest(), platform.python_version(), *(f"{name} {_version(name)}" for name in MADE_BY)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _kept(place: CachePlace) -> LoadedRows | None:
    if place.use() is None:
        return None
    try:
        return _loaded(rows_at(place.folder), read_about(place.folder))
    except (ArraysError, KeyError) as error:
        place.discard(str(error))
        return None


def _loaded(rows: Rows, about: dict[str, Any]) -> LoadedRows:
    return LoadedRows(
        rows, about["read"], about["truncated"], about["dropped"], list(about["notes"]), dict(about["commits"])
    )
