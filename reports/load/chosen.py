"""Seeds and rows of a confirmation that its spec left open, as they were chosen when the search had ended, and from what.

Written by the driver, as `confirm.json` in the sweep's folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from bitlora.files.record import CHOSEN
from reports.load.folder import FolderReader
from reports.load.values import finite, whole_number


@dataclass(frozen=True, kw_only=True, slots=True)
class ChosenDesign:
    """What was chosen for each configuration, and the first look that it was chosen from."""

    seeds: int
    rows: int
    """Of the test split."""
    looked_at: list[str]
    """The trials of the search whose eval scores are the first look."""
    eval_rows: int
    """That each of them was scored on."""
    shows: bool
    """The margin of the spec is shown of equals in four of five cases."""
    least: float | None
    """The smallest margin that is; None: not known."""
    apart: float | None
    """How far a seed was taken to put two configurations apart, as a share of the loss; None: not known."""
    freedom: int
    """Degrees of freedom of that; 0: it was assumed."""
    untold: str
    """Why nothing could be computed, and the usual was taken; empty where it could."""


def load_chosen(reader: FolderReader) -> ChosenDesign | None:
    """What `confirm.json` says; None: there is none, or it cannot be used, which is noted."""
    path = reader.root / CHOSEN
    if not path.exists():
        return None
    try:
        found = ChosenDesign(**json.loads(path.read_text(encoding="utf-8")))
        if None in [whole_number(each) for each in (found.seeds, found.rows, found.eval_rows, found.freedom)]:
            raise ValueError("a count of it is no whole number")
        if any(each is not None and finite(each) is None for each in (found.least, found.apart)):
            raise ValueError("a share of it is no number")
        if not isinstance(found.looked_at, list):
            raise ValueError("looked_at is no list")
    except (OSError, ValueError, TypeError) as error:
        reader.note_error(path, error)
        return None
    return found
