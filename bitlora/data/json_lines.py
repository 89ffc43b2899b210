"""Examples from a JSONL file."""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bitlora.data.examples import Example
from bitlora.data.shapes import examples_of


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


@dataclass(slots=True)
class DataFiles:
    """Which files stand for their names, and which were read."""

    places: Mapping[str, Path] = field(default_factory=dict)
    """By name: where that file lies, in the place of its name."""
    read: dict[str, SourceFile] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        return self.places.get(name) or Path(name).expanduser()


def _read_file(name: str, label: str, errors: list[str], files: DataFiles) -> list[Example]:
    path = files.path(name)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        errors.append(f"{name}: no such file{_nearest_file(path)}")
        return []
    except IsADirectoryError:
        inside = ", ".join(sorted(each.name for each in path.glob("*.jsonl"))[:5])
        errors.append(f"{name}: a folder; name the JSONL files in it{f' ({inside})' if inside else ''}")
        return []
    except OSError as error:
        errors.append(f"{name}: cannot be read: {error.strerror}")
        return []
    digest = hashlib.sha256(raw).hexdigest()
    files.read[name] = SourceFile(name=name, path=path.absolute(), bytes=len(raw), sha256=digest)
    found: list[Example] = []
    lines = raw.removeprefix(codecs.BOM_UTF8).splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        try:
            if text := line.decode("utf-8").strip():
                found += examples_of(json.loads(text), f"{label}:{number}", where, errors)
        except UnicodeDecodeError as error:
            errors.append(f"{where}: not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            errors.append(f"{where}: not JSON: {error.msg} at column {error.colno}; each line holds one object")
    if not any(line.strip() for line in lines):
        errors.append(f"{name}: the file is empty")
    return found


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""
