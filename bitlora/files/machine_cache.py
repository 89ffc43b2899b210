"""What a machine keeps for the next process: it took time to make, and can be made again.

    $BITLORA_CACHE/<kind>/<name>-<digest>/    one thing, whole; its time says when it was last used

The digest is over all that the thing hangs on, so nothing in a folder is ever out of date. Safe for many processes at once:
a folder appears only when it is whole, one process makes a thing while the others wait for it, and what somebody uses is
removed by nobody. All of it may be removed by hand while nothing runs. Every machine has its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitlora import timeouts
from bitlora.files.writing import write_text

logger = logging.getLogger(__name__)

TEXT: Final = "text"
VARIABLE: Final = "BITLORA_CACHE"
"""In the environment: where the cache is."""


def cache_folder() -> Path:
    """$BITLORA_CACHE, else `bitlora` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitlora"
    return Path(os.environ.get(VARIABLE) or default)


class Use:
    """Holds a thing of the cache: as long as this lives, or its process, nobody removes the thing."""

    def __init__(self, handle: int | None = None) -> None:
        self._handle = handle

    def end(self) -> None:
        """Let it go."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __del__(self) -> None:
        self.end()


@dataclass(frozen=True, slots=True)
class CachePlace:
    """The place of one thing, whether it is there or not."""

    folder: Path

    @classmethod
    def of(cls, kind: str, name: str, about: object) -> CachePlace:
        """The place of a thing on this machine.

        Args:
            kind: the folder beside others of its kind.
            name: for people; what cannot stand in a file's name is replaced.
            about: all that the thing hangs on, as JSON has it.
        """
        digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        plain = "".join(char if char.isalnum() else "-" for char in name)[-40:]
        return cls(cache_folder() / kind / f"{plain}-{digest}")

    def use(self) -> Use | None:
        """Hold it, and mark it as used now; None: it is not there."""
        held = _lock(self.folder, fcntl.LOCK_SH)
        if held is None and not self.folder.is_dir():
            return None
        with contextlib.suppress(OSError):
            os.utime(self.folder)
        return Use(held)

    def keep(self, write: Callable[[Path], None]) -> bool:
        """Let `write` fill the folder; another process that was first with the same is as good.

        What nobody has used for long is removed then, and the least recently used where the cache takes more than half of
        what its disk could give it.

        Returns:
            Whether it is there now. A disk that is full or must not be written to is no error.
        """
        part = None
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}.", suffix=".part", dir=self.folder.parent))
            write(part)
            part.chmod(0o755)
            with contextlib.suppress(FileExistsError):
                _rename(part, self.folder)
        except OSError as error:
            logger.warning("%s: cannot be kept: %s", self.folder, error.strerror or error)
            return False
        finally:
            if part is not None:
                shutil.rmtree(part, ignore_errors=True)
        tidy(self.folder)
        return True

    def discard(self, why: str) -> None:
        """Remove what cannot be read, to be made again."""
        logger.warning("%s: cannot be read (%s), and is made again", self.folder, why)
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process makes it. Where files cannot be locked, several make it, and one is kept."""
        handle = None
        with contextlib.suppress(OSError):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder.parent / f".{self.folder.name}.lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if handle is not None:
                os.close(handle)


def remembered(kind: str, name: str, about: object, compute: Callable[[], str]) -> str:
    """A short text that took time to compute, from here or else computed and kept here. Arguments as of `CachePlace.of`."""
    place = CachePlace.of(kind, name, about)
    if place.use() is not None:
        with contextlib.suppress(OSError, ValueError):
            text, _, check = (place.folder / TEXT).read_text(encoding="utf-8").rpartition(" ")
            if check == _check(text):
                return text
        place.discard("not whole")
    computed = compute()
    place.keep(lambda folder: write_text(folder / TEXT, f"{computed} {_check(computed)}"))
    return computed


def _check(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def tidy(spared: Path) -> None:
    """Remove what nobody has used for long or, if there is too much, the least recently used; never `spared`, nor what
    somebody holds."""
    root = cache_folder()
    try:
        found = sorted((entry.stat().st_mtime, entry) for entry in _entries(root))
        sizes = {entry: _size(entry) for _, entry in found}
        most = (sum(sizes.values()) + shutil.disk_usage(root).free) // 2
    except OSError:  # another process tidies up as well
        return
    total = sum(sizes.values())
    for used, entry in found:
        old = time.time() - used > timeouts.CACHE_KEPT_S
        unfinished = entry.name.startswith(".")  # somebody may be at it
        if entry != spared and (old or (total > most and not unfinished)) and _remove(entry):
            total -= sizes[entry]


def _entries(root: Path) -> Iterator[Path]:
    """What is kept, and what a process that was killed has not finished."""
    for kind in root.iterdir():
        if kind.is_dir():
            yield from (entry for entry in kind.iterdir() if entry.is_dir() and _is_entry(entry))


def _is_entry(entry: Path) -> bool:
    """Is its name one that `CachePlace` gives? A folder that is moved here by hand is nobody's to remove."""
    digest = entry.name.removesuffix(".part").split(".")[1 if entry.name.startswith(".") else 0].rpartition("-")[2]
    return len(digest) == 16 and all(char in "0123456789abcdef" for char in digest)


def _remove(entry: Path) -> bool:
    held = _lock(entry, fcntl.LOCK_EX)
    if held is None:
        return False
    shutil.rmtree(entry, ignore_errors=True)
    os.close(held)
    return True


def _lock(folder: Path, how: int) -> int | None:
    """Lock a folder without waiting, for as long as the handle is open; None: it is not there, or another's."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _rename(part: Path, folder: Path) -> None:
    """Raises FileExistsError: it is there already."""
    try:
        part.rename(folder)
    except OSError:
        if folder.is_dir():
            raise FileExistsError(folder) from None
        raise


def _size(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
