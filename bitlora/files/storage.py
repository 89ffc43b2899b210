"""Where a sweep's folder lives: on a disk, on a mount that machines share, or in object storage.

All other code writes and reads plain files below `Storage.folder` (see `bitlora.files.record`). On a disk or a mount that
is the sweep's folder itself. For object storage it is a scratch folder of this process that mirrors what the process
needs: `push` what it has written, `pull` what it wants to read. Object storage is reached through pyarrow, or through
fsspec where pyarrow has no client of its own; credentials come from the environment and are never passed on.

Of each file there is one writer, as everywhere: nothing here merges.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from bitlora import timeouts
from bitlora.files.lease import Lease
from bitlora.files.writing import write_text

TOKEN: Final = ".storage-token"
"""The file by which other machines know the sweep's folder again."""
SHARED: Final = (
    "the folder of the sweep must be on storage that every machine shares: "
    "a mount that all of them have at this path, or s3://…"
)


class StorageError(OSError):
    """The storage cannot be used, in one line for a user."""


class Storage:
    """A sweep's folder on this machine's disk or on a mount: what is written there is there; nothing moves.

    `push`, `pull`, `delete`, `exists` and `names` take paths below the folder, with `/`; "" is the folder itself.
    Safe for several threads. Pickled, it opens the same `out` wherever it arrives.

    Args:
        out: what the user called it.
        folder: its files as this process sees them.
    """

    def __init__(self, out: str, folder: Path) -> None:
        self.out = out
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.out, self.folder.absolute())

    def __enter__(self) -> Storage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def push(self, *relative: str) -> None:
        """Put files and whole sub-folders there, in this order; each file is there whole or not at all.

        What is being written (`.*.part`, `.*.old`) stays here; what is only there is left alone.

        Raises:
            FileNotFoundError: there is no such file here.
            StorageError: it was tried for STORAGE_RETRY_S, or cannot succeed.
        """

    def push_soon(self, relative: str) -> None:
        """`push` in the background, and cheap to call: of a file that changes often, the latest content goes."""

    def flush(self) -> None:
        """Returns when all that was to be pushed soon is there.

        Raises:
            StorageError: something could not be put there since the last `flush`, nor its successor; the last such error.
        """

    def pull(self, *relative: str, only: Collection[str] | None = None) -> None:
        """Fetch files and whole sub-folders; each takes its place in one step. What is not there is left out.

        Args:
            only: names of files (`record.json`); None: all.

        Raises:
            StorageError: as for `push`.
        """

    def forget(self, relative: str) -> None:
        """Remove the scratch copies of a file or a whole sub-folder, but for what is not there as it is here.

        Cheap, and to be called when this process needs them no more; `pull` fetches them again. On a disk, where there
        are no copies, nothing.
        """

    def lease(self) -> Lease | None:
        """What holds the folder against other drivers; None: a lock on this disk is to do that."""
        return None

    def written(self, *relative: str) -> float | None:
        """When a file below any of these was last written, by the storage's own clock: seconds since 1970.

        None: there is none, or the storage does not say. Raises StorageError.
        """
        times = []
        for part in relative:
            path = self.folder / part
            for file in path.rglob("*") if path.is_dir() else (path,):
                with contextlib.suppress(OSError):  # it has just been replaced or removed
                    times.append(file.stat().st_mtime)
        return max(times, default=None)

    def close(self) -> None:
        """`flush`, and remove the scratch folder if it was made here.

        Raises:
            StorageError: as `flush`; the scratch folder is then kept, and named.
        """

    def delete(self, relative: str) -> None:
        """Remove a file or a whole sub-folder, there and here; it need not exist. Raises StorageError."""
        path = self.folder / relative
        try:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{self.out}: {relative} cannot be removed: {error.strerror or error}") from None

    def exists(self, relative: str) -> bool:
        """Is there such a file or sub-folder? Raises StorageError."""
        return (self.folder / relative).exists()

    def names(self, relative: str = "") -> list[str]:
        """What is directly below a sub-folder, sorted; nothing if there is none. Raises StorageError."""
        path = self.folder / relative
        return sorted(child.name for child in path.iterdir()) if path.is_dir() else []

    def check(self) -> None:
        """Write, read and remove a small file; leaves no file behind.

        Raises:
            StorageError: that failed, or took longer than STORAGE_CHECK_S: which `out`, what was found and would be right.
        """
        self._bounded(self._probe)

    def place_token(self) -> str:
        """Write a file by which other machines know the folder again; gives what `sees` is to be asked there."""
        token = secrets.token_hex(16)
        write_text(self.folder / TOKEN, token)
        self.push(TOKEN)
        return token

    def sees(self, token: str) -> None:
        """Is what this machine finds at `out` the folder in which `place_token` gave `token`?

        Raises:
            StorageError: it is not, or did not answer within STORAGE_CHECK_S; the message names this machine.
        """
        try:
            self._bounded(lambda: self._look(token))
        except StorageError as error:
            found = str(error).removeprefix(f"{self.out}: ")
            raise StorageError(f"{socket.gethostname()}: cannot see {self.out}: {found}; {SHARED}") from None

    def _bounded(self, call: Callable[[], None]) -> None:
        """`call`, for at most STORAGE_CHECK_S: a dead mount hangs for ever, and clients have retries of their own."""
        done: Future[None] = Future()

        def run() -> None:
            try:
                call()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="storage-check", daemon=True).start()
        try:
            done.result(timeouts.STORAGE_CHECK_S)
        except TimeoutError:
            raise StorageError(f"{self.out}: no answer within {timeouts.STORAGE_CHECK_S:.0f} s") from None

    def _probe(self) -> None:
        probe, content, made = self.folder / f".check-{secrets.token_hex(8)}", secrets.token_bytes(16), []
        try:
            for folder in reversed((self.folder, *self.folder.parents)):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            try:
                probe.write_bytes(content)
                if probe.read_bytes() != content:
                    raise OSError("what was written is not what is read")
            finally:
                with contextlib.suppress(OSError):
                    probe.unlink()
        except OSError as error:
            why = error.strerror or error
            raise StorageError(f"{self.out}: cannot be written: {why}; give a folder that can, or s3://…") from None
        finally:
            for folder in reversed(made):
                with contextlib.suppress(OSError):
                    folder.rmdir()

    def _look(self, token: str) -> None:
        end = time.monotonic() + timeouts.STORAGE_VISIBLE_S
        while (found := self._token()) != token:
            if time.monotonic() > end:
                what = "the driver's token file is not there" if found is None else "its token is another sweep's"
                raise StorageError(f"{self.out}: {what}")
            time.sleep(timeouts.STORAGE_POLL_S)

    def _token(self) -> str | None:
        try:
            return (self.folder / TOKEN).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.out}: {error}") from None
