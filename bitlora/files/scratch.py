"""Scratch folders: one for each process that mirrors object storage, known as its own for as long as it lives.

A process that is killed leaves its folder behind; whoever makes the next one on that machine removes it, after a day.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

from bitlora import timeouts

PREFIX: Final = "bitlora-scratch-"
"""How their names begin. Those that are to be kept have another one, and are nobody's to remove."""
KEPT: Final = "bitlora-kept-"


class Scratch:
    """A fresh scratch folder in the temporary directory."""

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._held: int | None = _hold(self.folder)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._let_go()

    def keep(self) -> Path:
        """Leave it where nobody removes it: what is in it exists nowhere else. Gives where that is."""
        kept = self.folder.with_name(self.folder.name.replace(PREFIX, KEPT, 1))
        with contextlib.suppress(OSError):
            self.folder.rename(kept)
            self.folder = kept
        self._let_go()
        return self.folder

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _hold(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None: it is removed, another's, or no folder can be locked here."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _sweep(where: Path) -> None:
    """Remove the scratch folders of this user that are older than SCRATCH_KEEP_S and no living process's."""
    for folder in where.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.lstat()
            old = time.time() - found.st_mtime > timeouts.SCRATCH_KEEP_S
            if not old or found.st_uid != os.getuid() or not re.fullmatch(rf"{PREFIX}\w+", folder.name):
                continue
            if (handle := _hold(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(handle)
