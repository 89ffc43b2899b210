"""What surrounds a sweep on the driver: signals, the folder's lock, and where everything that is logged goes."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from sweeps.spec.errors import InputError

LOG_BYTES: Final = 1_000_000
"""Of each of Ray's log files that is kept."""


class Interrupt:
    """Ctrl-C and SIGTERM: the first asks the sweep to end, the second stops asking."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
        self.arm()
        return self

    def arm(self) -> None:
        """Take the signals, once more after Ray has: it ends the process at SIGTERM."""
        for number in self._before:
            signal.signal(number, self._on)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder against other runs of it, as long as this process lives. Object storage has no such lock.

    Raises:
        InputError: there is another one.
    """
    with (folder / "logs" / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError([f"{folder}: another run of this sweep is under way; wait for it, or end it"]) from None
        except OSError:  # a file system that has no locks
            pass
        yield


def log_to(path: Path) -> None:
    """Send what Ray and Optuna log in this process to a file instead of the terminal, once Ray has set up its own."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    logging.raiseExceptions = (
        False  # a full disk is said once, and not by a traceback of each line that could not be kept
    )
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "optuna", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler] if name in ("ray", "optuna", "py.warnings") else []
        logger.propagate = name.startswith("ray.")


def keep_logs(session: Path, into: Path) -> None:
    """Copy what Ray's processes said into the sweep's folder."""
    for file in session.rglob("*"):
        if file.is_file() and not file.is_symlink() and 0 < file.stat().st_size <= LOG_BYTES:
            target = into / file.relative_to(session)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                shutil.copyfile(file, target)
