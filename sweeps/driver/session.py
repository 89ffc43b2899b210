"""What surrounds a sweep on the driver: signals, the folder's lock or lease, GPUs, and where all that is logged goes."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from bitlora.files.lease import HeldError
from bitlora.files.storage import Storage
from sweeps.spec.errors import InputError

LOG_BYTES: Final = 1_000_000
"""Of each of Ray's log files that is kept."""


class Interrupt:
    """Ctrl-C, SIGTERM and SIGHUP: the first asks the sweep to end, the second stops asking."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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
def alone(storage: Storage, say: Callable[[str], object], asked: Callable[[], bool]) -> Iterator[Callable[[], str]]:
    """Hold a sweep's folder against other runs of it: on a disk by a lock, in object storage by a lease.

    Args:
        say: told what is waited for, and what of a driver that is gone is taken over.
        asked: whether a person wants this to end.

    Yields:
        Says why the folder is this run's no longer, in one line for a user; nothing while it is.

    Raises:
        InputError: there is another run.
        KeyboardInterrupt: `asked`, while it was not known.
        OSError: the folder cannot be written.
    """
    logs = storage.folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    if (lease := storage.lease()) is None:
        with _locked(logs / ".lock", storage.out):
            yield lambda: ""
        return
    try:
        lease.take(say, asked)
    except HeldError as error:
        raise InputError([str(error)]) from None
    try:
        yield lambda: lease.lost
    finally:
        lease.release()


@contextlib.contextmanager
def _locked(path: Path, place: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError([f"{place}: another run of this sweep is under way; wait for it, or end it"]) from None
        except OSError:  # a file system that has no locks
            pass
        yield


@contextlib.contextmanager
def hold_gpus(count: int, place: str, say: Callable[[str], object], locks: Path | None = None) -> Iterator[None]:
    """Hold this machine's GPUs, and say which another sweep has: each runs a Ray of its own, which knows nothing of the
    other's packs.

    Args:
        count: those that are visible here; which ones, CUDA_VISIBLE_DEVICES says, or they are the first.
        place: of this sweep's folder.
        locks: where the locks are; None: in the folder for temporary files.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else map(str, range(count))
    with contextlib.ExitStack() as stack:
        for name in names:
            path = (locks or Path(tempfile.gettempdir())) / f"bitlora-gpu-{name.strip().replace('/', '-')}.lock"
            with contextlib.suppress(OSError):  # without it nobody is told, which is no reason not to train
                file = stack.enter_context(path.open("a+" if os.access(path, os.W_OK) or not path.exists() else "r"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    who = file.read().strip() or "another sweep"
                    why = "neither knows what the other takes of its memory"
                    say(f"GPU {name}: {who} has it too, and {why}; give each its own by CUDA_VISIBLE_DEVICES")
                else:
                    file.truncate(0)
                    file.write(f"the sweep in {place} (process {os.getpid()})\n")
                    file.flush()
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
