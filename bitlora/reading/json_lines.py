"""Rows of JSON: an object a line, or one array of objects."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from itertools import chain
from typing import IO, Any

from bitlora.reading.raw import RawRow


def read_json(file: IO[bytes], name: str, label: str, errors: list[str]) -> Iterator[RawRow]:
    """The rows of a file of JSON: line by line; where it begins with an array, or with an object that is longer than its
    line, as a whole.

    Args:
        name: stands for the file in errors.
        label: stands for it in the rows' ids.
        errors: gets what is wrong with it, a line each.
    """
    lines: Iterator[tuple[int, bytes]] = enumerate(_lines(file), 1)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        errors.append(f"{name}: the file is empty")
        return
    opening = first[1].lstrip()
    if opening.startswith(b"[") or (opening.startswith(b"{") and not opening.rstrip().endswith(b"}")):
        taken = [first, *lines]
        lines = iter(taken)
        whole = _whole(taken, name, errors)
        if isinstance(whole, list):
            for number, value in enumerate(whole):
                yield RawRow(f"{label}:{number}", f"{name}: row {number}", value)
            return
        if isinstance(whole, dict):
            yield RawRow(f"{label}:{first[0]}", f"{name}:{first[0]}", whole)
            return
        if whole is not None:
            return
    else:
        lines = chain([first], lines)
    for number, line in lines:
        try:
            if text := line.decode("utf-8").strip():
                yield RawRow(f"{label}:{number}", f"{name}:{number}", json.loads(text))
        except (ValueError, RecursionError) as error:
            yield RawRow(f"{label}:{number}", f"{name}:{number}", None, _why(error, line))


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file):
        line = line.rstrip(b"\r\n")
        yield line.removeprefix(codecs.BOM_UTF8) if number == 0 else line


def _whole(lines: list[tuple[int, bytes]], name: str, errors: list[str]) -> Any:
    """What the lines are together; None: nothing, they are to be looked at one by one; False: it is said what is wrong."""
    text = b"\n".join(line for _, line in lines)
    try:
        return json.loads(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        if not lines[0][1].lstrip().startswith(b"[") or _is_json(lines[0][1]):  # lines of JSON after all
            return None
        number = lines[0][0] + error.lineno - 1
        errors.append(f"{name}:{number}: not JSON: {error.msg} at column {error.colno}")
    except UnicodeDecodeError:
        return None  # the line will say so
    except (ValueError, RecursionError) as error:
        if not lines[0][1].lstrip().startswith(b"["):
            return None
        errors.append(f"{name}: {_why(error, text)}")
    return False


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _why(error: BaseException, line: bytes) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg} at column {error.colno}; each line holds one object"
    # a number of thousands of digits, lists in lists without end
    return f"not JSON that can be read: {str(error).splitlines()[0]}"
