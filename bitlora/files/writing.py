"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; on success it takes the place of `path` in one step, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(0o644)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON atomically.

    Raises:
        ValueError: a number is not finite: JSON has no word for it, so nothing is written.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Add `line` to a file, in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def write_folder(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a fresh folder, then put it in the place of `path`. A crash leaves the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    old = part.with_suffix(".old")
    try:
        part.chmod(0o755)
        write(part)
        if path.exists():
            path.rename(old)
        part.rename(path)
    finally:
        for leftover in (part, old):
            if leftover.exists():
                _remove(leftover)


def sweep_up(folder: Path) -> None:
    """Remove what a writer that was killed had not finished."""
    for left in (*folder.glob(".*.part"), *folder.glob(".*.old")):
        _remove(left) if left.is_dir() else left.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
