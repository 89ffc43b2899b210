"""A study's journal as its writer left it when it was killed: with a line that has no end, with a lock.

`tests/contracts/test_optuna.py` holds what Optuna does with both.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bitlora import timeouts

LOCK: Final = ".lock"
"""What Optuna adds to a journal's name for the lock that it takes to write."""


def mend(journal: Path, say: Callable[[str], object], asked: Callable[[], bool]) -> None:
    """Make a journal ready to be gone on with, whatever the process that wrote it died of; what was done is said.

    Nobody else may write to it meanwhile, but for a dashboard.

    Args:
        asked: whether a person wants this to end.

    Raises:
        KeyboardInterrupt: `asked`, while a lock was waited for.
    """
    _free(Path(f"{journal}{LOCK}"), say, asked)
    if journal.exists() and (done := _cut(journal)):
        say(f"{journal}: {done}")


def _free(lock: Path, say: Callable[[str], object], asked: Callable[[], bool]) -> None:
    """Wait until a lock is given back or changes hands; one that does neither is removed.

    Optuna itself would wait for half a minute, or without end and without a pause where the lock, a link to the journal by
    its path, leads nowhere since the sweep's folder was moved.
    """
    if (held := _identity(lock)) is None:
        return
    say(f"{lock}: a process holds it, or was killed holding it; waiting {timeouts.JOURNAL_LOCK_S:.0f} s at most")
    end = time.monotonic() + timeouts.JOURNAL_LOCK_S
    while time.monotonic() < end:
        if asked():
            raise KeyboardInterrupt
        time.sleep(timeouts.JOURNAL_LOCK_POLL_S)
        if _identity(lock) != held:
            return
    lock.unlink(missing_ok=True)
    say(f"{lock}: left behind by a process that was killed; removed")


def _identity(lock: Path) -> tuple[int, int] | None:
    """What tells a lock from the next one; None: there is none."""
    try:
        found = os.lstat(lock)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _cut(journal: Path) -> str:
    """Cut off a last line that was not written to its end: Optuna would write on behind it, and then read neither.

    In place and in one step, which a full disk does not keep from being done. Gives what was done; empty: nothing.
    """
    content = journal.read_bytes()
    end = len(content)
    while end and not _whole(last := content[content.rfind(b"\n", 0, end - 1) + 1 : end]):
        if _whole(last + b"\n"):  # it has all but its end
            with journal.open("ab") as file:
                file.write(b"\n")
            return "the end of its last line was missing; added"
        end -= len(last)
    if end == len(content):
        return ""
    os.truncate(journal, end)
    return f"its last line was cut short, as by a kill or a full disk; removed ({len(content) - end} bytes)"


def broken(journal: Path) -> int | None:
    """The number of the first line that cannot be read, from 1."""
    with journal.open("rb") as file:
        return next((number for number, line in enumerate(file, 1) if not _whole(line)), None)


def _whole(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False
