"""What `bitlora report --against` names: a sweep, or a trial of one."""

from __future__ import annotations

from collections.abc import Sequence

from bitlora.config.explain import nearest
from bitlora.files.record import TRIALS
from reports.pages.versus import Control


def control(places: Sequence[str], against: str) -> Control:
    """The one of `places` that `against` names, and the trial where it names one.

    Raises:
        ValueError: it names none; one line for the user.
    """
    known = [place.rstrip("/") for place in places]
    sweep, _, trial = against.rstrip("/").partition(f"/{TRIALS}/")
    if sweep not in known:
        hint = nearest(sweep, known)
        raise ValueError(
            f"--against: {against}: give a folder that is compared, or DIR/{TRIALS}/ID of a trial in it{hint}"
        )
    return Control(known.index(sweep), trial or None)
