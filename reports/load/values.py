"""Values out of files that may be anybody's: what of them can be used."""

from __future__ import annotations

import json
import math
from typing import Any

import pandas as pd

from bitlora.files.record import in_order


def finite(value: object) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole_number(value: object) -> int | None:
    """`value` where it is a whole number that 64 bits hold, else None."""
    number = finite(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**63 else None


def as_text(value: object) -> str:
    """`value` as text that UTF-8 can hold: a file's name and a JSON string may carry half a character."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "; ".join(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def ids_in_order(column: pd.Series[Any]) -> pd.Series[Any]:
    """What pandas is to sort a column by: ids of trials in the order in which they were given, all else by itself."""
    return column.map(in_order) if column.name == "trial_id" else column


def mapping(held: dict[str, Any], *path: str) -> dict[str, Any]:
    """The mapping at `path` inside `held`; {} where there is none, since the file may be anybody's."""
    for key in path:
        found = held.get(key)
        held = found if isinstance(found, dict) else {}
    return {str(key): each for key, each in held.items()}
