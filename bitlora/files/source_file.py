"""A file of data as it was read: what tells it from another file of that name."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitlora import timeouts
from bitlora.files.machine_cache import remembered

LARGE: Final = 2**24
"""Bytes of a file whose digest takes a moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """A data file as it was read."""

    name: str
    """As the user calls it."""
    path: Path
    """Where it was read."""
    bytes: int
    sha256: str
    """In hex."""

    @classmethod
    def of(cls, name: str, path: Path) -> SourceFile:
        """The file at `path`. Raises OSError."""
        return cls(name=name, path=path.absolute(), bytes=path.stat().st_size, sha256=digest(path))


def digest(path: Path) -> str:
    """A file's SHA-256, in hex; of a large file kept on this machine until that is written to. Raises OSError."""
    found = path.stat()
    if found.st_size < LARGE:
        return _computed(path)
    # what is written to in the same tick of the file system's clock has the same times
    if time.time() - max(found.st_mtime, found.st_ctime) < timeouts.FILE_CLOCK_S:
        return _computed(path)
    return remembered("sha256", path.name, _state(found), lambda: _computed(path))


def _state(found: os.stat_result) -> list[int]:
    """What changes when a file is written to, or another takes its place."""
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _computed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
