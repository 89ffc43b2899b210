"""Numbers and names as a report prints them, in plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from reports.document.document import NOTHING, Cell, Column, plain

NAMED: Final = 6
"""Trials named in one cell."""


def value(key: str, anything: object) -> str:
    """A configuration's value under `key`: learning rates as 2e-4, what is missing or not finite as a dash."""
    if not isinstance(anything, str) and missing(anything):
        return NOTHING
    if isinstance(anything, bool):
        return str(anything).lower()
    if isinstance(anything, int | float):
        if key == "learning_rate" or 0 < abs(anything) < 1e-2:
            mantissa, exponent = f"{anything:.2e}".split("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
        return f"{anything:g}" if isinstance(anything, float) else str(anything)
    return plain(anything, 60) or NOTHING


def missing(anything: object) -> bool:
    """None, pandas' NA, and what is not finite."""
    if anything is None or anything is pd.NA:
        return True
    return isinstance(anything, float) and not math.isfinite(anything)


def loss(nats: object, error: object = None) -> str:
    """Nats per completion token, four decimals, with the standard error where there is one."""
    if not isinstance(nats, float) or not math.isfinite(nats):
        return NOTHING
    return f"{nats:.4f}" + (f" ± {error:.4f}" if isinstance(error, float) and math.isfinite(error) else "")


def gap(nats: float | None) -> str:
    """A difference of losses: one that is there but too small for four decimals is not printed as zero."""
    if nats is None or not math.isfinite(nats):
        return NOTHING
    return "under 0.0001" if 0 < nats < 0.00005 else f"{nats:.4f}"


def percent(share: float | None) -> str:
    """Per cent, two decimals."""
    if share is None or not math.isfinite(share):
        return NOTHING
    return "under 0.01 %" if 0 < share < 0.005 else f"{share:.2f} %"


def size(count: object) -> str:
    """Bytes in powers of 1000."""
    if not isinstance(count, int):
        return NOTHING
    number, unit = float(count), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if number < 999.95:
            break
        number, unit = number / 1000, larger
    return f"{count} B" if unit == "B" else f"{number:.1f} {unit}"


def bits(row: Mapping[str, Any]) -> float | None:
    """Bits that the packed adapter of `row` spends on a parameter, scales included."""
    params, packed = row["adapter_params"], row["adapter_bytes"]
    return 8 * packed / params if isinstance(params, int) and isinstance(packed, int) and params else None


def whole(count: object) -> str:
    """A whole number with its thousands apart."""
    return f"{count:,}" if isinstance(count, int) else NOTHING


def seconds(count: object) -> str:
    """A time, in the unit that suits it."""
    if not isinstance(count, int | float) or not math.isfinite(count):
        return NOTHING
    if count < 120:
        return f"{count:.0f} s"
    minutes = round(count / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def joined(found: Sequence[str], most: int | None = None) -> str:
    """`a, b and c`; of more than `most`, `a, b, c and 2 more`."""
    if most is not None and len(found) > most:
        found = [*found[:most], f"{len(found) - most:,} more"]
    return f"{', '.join(found[:-1])} and {found[-1]}" if len(found) > 1 else "".join(found)


def names(trial_ids: Sequence[str], limit: int = NAMED) -> str:
    """The first of `trial_ids`, and how many more there are."""
    shown = ", ".join(plain(trial_id, 60) for trial_id in trial_ids[:limit])
    return f"{shown} and {len(trial_ids) - limit:,} more" if len(trial_ids) > limit else shown


def folder_name(folder: Path) -> str:
    """`folder` as it is printed: as given, but never absolute."""
    if not folder.is_absolute() and folder.name not in ("", ".."):
        return folder.as_posix()
    here, there = Path.cwd(), folder.resolve()
    return there.relative_to(here).as_posix() if here in there.parents else there.name


def counted(count: int, one: str, many: str = "") -> str:
    """`1 trial`, `2 trials`."""
    return f"1 {one}" if count == 1 else f"{count:,} {many or one + 's'}"


def cell(text: str, behind: object = None, *parts: tuple[str, float]) -> Cell:
    """A cell that prints `text`; `behind`: the value that sorts it, where that is a number that can be used."""
    usable = isinstance(behind, int | float | str) and not isinstance(behind, bool) and not missing(behind)
    return Cell(text, behind if usable else None, parts)  # type: ignore[arg-type]


def head(key: str, right: bool = False) -> Column:
    """The column of a configuration's key."""
    return Column(plain(key, 40).replace("_", " "), right)
