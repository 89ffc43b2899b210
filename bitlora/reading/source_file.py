"""A file of data as it was read: what tells it from another file of that name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


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
    """A file's SHA-256, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
