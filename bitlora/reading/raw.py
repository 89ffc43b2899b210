"""A row as it was written, and its place."""

from __future__ import annotations

from typing import IO, Any, NamedTuple


class OpenFile(NamedTuple):
    """A file that is being read, or has been."""

    file: IO[bytes]
    size: int
    """In bytes."""


class RawRow(NamedTuple):
    """One row of a source, before anybody looks for a conversation in it."""

    row_id: str
    """Unique within the source: `<file name>:<line>`, `<hub id>:<row>`."""
    where: str
    """Names the row in errors."""
    value: Any
    """What JSON gave, or what else is of the same types."""
    broken: str = ""
    """Why there is no value; empty: there is one."""
