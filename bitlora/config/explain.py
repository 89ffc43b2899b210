"""What is wrong with a value, in plain words: what was found, what would be right, the nearest valid name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


_WANTED: Final = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "bool_type": "true or false",
    "list_type": "a list",
    "too_short": "a list with at least one value",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
"""pydantic's error types -> what would have been right."""


def explain(errors: Iterable[ErrorDetails], found: object) -> str:
    """pydantic's errors about one value, in plain words: what was found and what would be right.

    A union gives an error per member; together they are one line.
    """
    wanted: list[str] = []
    names: list[str] = []
    for error in errors:
        ctx = error.get("ctx", {})
        if error["type"] == "literal_error":
            names += re.findall(r"'([^']*)'", ctx["expected"])
        elif error["type"] == "value_error":
            return str(ctx["error"])
        elif error["type"] in _WANTED:
            wanted.append(_WANTED[error["type"]].format(**ctx))
    if not wanted and not names:
        return f"found {show(found)}: not valid here"
    every = list(dict.fromkeys([*wanted, *names]))
    right = " or ".join(part for part in (", ".join(every[:-1]), every[-1]) if part)
    close = difflib.get_close_matches(str(found), names, 1) if isinstance(found, str) else []
    return f"found {show(found)}; give {right}" + (f"; did you mean {close[0]}?" if close and len(every) > 1 else "")


def show(value: object) -> str:
    """A value out of YAML, short, as its author wrote it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:60] + "…")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "a mapping" if isinstance(value, dict) else f"a {type(value).__name__}"


def nearest(name: object, valid: Iterable[object]) -> str:
    """The end of a message about a wrong name: the nearest valid one, else all of them."""
    names = [str(one) for one in valid]
    close = difflib.get_close_matches(str(name), names, 1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; valid: {', '.join(names)}" if names else ""


def one_line(error: BaseException) -> str:
    """An error in one line for a person: its message's first, or its type where it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
