"""Rows of a JSONL file."""

from __future__ import annotations

import codecs
import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from bitlora.reading.raw import RawRow


def read_file(name: str, label: str, errors: list[str]) -> Iterator[RawRow]:
    """The rows of a file of JSON objects, one a line.

    Args:
        label: stands for the file in the rows' ids.
        errors: gets what is wrong with the file, a line each.
    """
    path = Path(name).expanduser()
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        errors.append(f"{name}: no such file{_nearest_file(path)}")
        return
    except IsADirectoryError:
        files = ", ".join(sorted(each.name for each in path.glob("*.jsonl"))[:5])
        errors.append(f"{name}: a folder; name the JSONL files in it{f' ({files})' if files else ''}")
        return
    except OSError as error:
        errors.append(f"{name}: cannot be read: {error.strerror}")
        return
    lines = raw.removeprefix(codecs.BOM_UTF8).splitlines()
    for number, line in enumerate(lines, 1):
        where = f"{name}:{number}"
        try:
            if text := line.decode("utf-8").strip():
                yield RawRow(f"{label}:{number}", where, json.loads(text))
        except UnicodeDecodeError as error:
            errors.append(f"{where}: not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line")
        except json.JSONDecodeError as error:
            errors.append(f"{where}: not JSON: {error.msg} at column {error.colno}; each line holds one object")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists without end
            errors.append(f"{where}: not JSON that can be read: {str(error).splitlines()[0]}")
    if not any(line.strip() for line in lines):
        errors.append(f"{name}: the file is empty")


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; the folder {path.parent} does not exist"
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""
