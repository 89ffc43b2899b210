"""A sweep's folder in object storage, mirrored in a scratch folder: `bitlora.files.storage` says what each method promises.

Requests are tried again here, for a time that we choose, and not by the clients below: theirs differ, from seconds (S3)
to a quarter of an hour (Google's).
"""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar

from bitlora import timeouts
from bitlora.files.lease import LEASE, Lease, LeaseFile
from bitlora.files.object_client import _explain, _open, _options
from bitlora.files.scratch import Scratch
from bitlora.files.storage import TOKEN, Storage, StorageError
from bitlora.files.writing import replacing

T = TypeVar("T")
THREADS: Final = 16
"""Files at once; the S3 client keeps 25 connections."""
ROUNDS: Final = 3
"""How often `pull` looks for files that were replaced while it fetched them."""
Entry = tuple[int | None, Any]
"""A file as listed: bytes, when it was last written."""


class ObjectStorage(Storage):
    """See `bitlora.files.opening.open_storage`."""

    def __init__(self, out: str, scratch: Path | None = None, options: dict[str, str] | None = None) -> None:
        # Where the bucket is travels with the storage, as it was found where the sweep began; who one is does not.
        self._options = _options(out) if options is None else options
        self._made = Scratch() if scratch is None else None
        super().__init__(out, self._made.folder if self._made is not None else scratch or Path())
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sealed = False
        """The folder is another driver's: nothing is written there any more."""
        self._away: dict[str, tuple[int, int]] = {}
        """Files that are there as they are here: when they were written here (ns), bytes."""
        self._opened: tuple[Any, str] | None = None
        self._opening = threading.Lock()
        self._locks = [threading.Lock() for _ in range(64)]
        self._soon = _Soon(self.push)

    def __reduce__(self) -> tuple[Any, ...]:
        return ObjectStorage, (self.out, None, self._options)

    def push(self, *relative: str) -> None:
        for name in relative:
            path = self.folder / name
            if not path.exists():
                raise FileNotFoundError(f"{path}: there is no such file to put at {self.out}")
            _each(self._put, _files(self.folder, path) if path.is_dir() else [name])

    def push_soon(self, relative: str) -> None:
        self._soon.add(relative)

    def flush(self) -> None:
        self._soon.flush()

    def pull(self, *relative: str, only: Collection[str] | None = None) -> None:
        before: dict[str, Entry] = {}
        for _ in range(ROUNDS):
            found = {name: entry for part in relative for name, entry in self._list(part).items()}
            wanted = [name for name in found if only is None or PurePosixPath(name).name in only]
            # The client asks for a size first, and then for so many bytes: what is replaced in between comes cut short.
            changed = [name for name in wanted if found[name] != before.get(name)]
            if not changed:
                return
            _each(self._get, changed)
            before = found

    def close(self) -> None:
        try:
            self.flush()
        except OSError as error:
            if self._made is not None:
                self.folder = self._made.keep()
            raise StorageError(f"{error}; what was written is kept in {self.folder}") from None
        if self._made is not None:
            self._made.remove()

    def forget(self, relative: str) -> None:
        path = self.folder / relative
        for name in _files(self.folder, path) if path.is_dir() else [relative]:
            with self._lock(name), contextlib.suppress(OSError):
                if self._away.get(name) == _state(self.folder / name):
                    (self.folder / name).unlink()
                    del self._away[name]
        for folder in sorted((one for one in (path, *path.rglob("*")) if one.is_dir()), reverse=True):
            with contextlib.suppress(OSError):  # something is left in it
                folder.rmdir()

    def lease(self) -> Lease:
        def ask(doing: str, call: Callable[[], T]) -> T:
            return self._try(f"{doing} {LEASE}", call, timeouts.LEASE_RENEW_S)

        file = LeaseFile(
            read=lambda: ask("reading", lambda: self._read(LEASE)),
            write=lambda content: ask("writing", lambda: self._write(LEASE, content)),
            remove=lambda: ask("removing", lambda: self._remove(LEASE)),
            age=lambda: ask("asking the age of", lambda: self._age(LEASE)),
        )
        return Lease(self.out, file, self._seal)

    def written(self, *relative: str) -> float | None:
        times = [entry[1] for part in relative for entry in self._list(part).values() if entry[1] is not None]
        return max(times).timestamp() if times else None

    def delete(self, relative: str) -> None:
        if self._sealed:
            return
        self._try(f"removing {relative}", lambda: self._remove(relative))
        super().delete(relative)

    def exists(self, relative: str) -> bool:
        from pyarrow.fs import FileType

        return bool(
            self._try(f"looking for {relative or 'it'}", lambda: self._info(relative)).type != FileType.NotFound
        )

    def names(self, relative: str = "") -> list[str]:
        return sorted(info.base_name for info in self._below(relative, recursive=False))

    # ---- with what is here

    def _lock(self, name: str) -> threading.Lock:
        return self._locks[hash(name) % len(self._locks)]

    def _put(self, name: str) -> None:
        # Of two uploads of a file, the one that reads it last must also end last.
        with self._lock(name), contextlib.suppress(FileNotFoundError):
            state = _state(self.folder / name)
            content = (self.folder / name).read_bytes()
            if not self._sealed:
                self._try(f"writing {name}", lambda: self._write(name, content))
                self._away[name] = state

    def _seal(self) -> None:
        self._sealed = True

    def _get(self, name: str) -> None:
        content = self._try(f"reading {name}", lambda: self._read(name))
        if content is not None:
            with replacing(self.folder / name) as part:
                part.write_bytes(content)
            self._away[name] = _state(self.folder / name)

    def _list(self, relative: str) -> dict[str, Entry]:
        """The files below, by their paths below the folder; of a file, that file."""
        from pyarrow.fs import FileType

        it = self._try(f"looking for {relative or 'it'}", lambda: self._info(relative))
        if it.type != FileType.Directory:
            return {relative: (it.size, it.mtime)} if it.type == FileType.File else {}
        top = self._at("")[1].strip("/")
        found = {}
        for info in self._below(relative, recursive=True):
            name = info.path.strip("/").removeprefix(top).lstrip("/")
            if info.type == FileType.File and ".." not in name.split("/"):
                found[name] = (info.size, info.mtime)
        return found

    def _below(self, relative: str, recursive: bool) -> list[Any]:
        from pyarrow.fs import FileSelector

        def look() -> list[Any]:
            files, path = self._at(relative)
            return list(files.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=True)))

        return self._try(f"listing {relative or 'it'}", look)

    def _probe(self) -> None:
        name, content = f".check-{secrets.token_hex(8)}", secrets.token_bytes(16)
        self._try("writing", lambda: self._write(name, content), timeouts.STORAGE_CHECK_S / 3)
        if self._try("reading", lambda: self._read(name), timeouts.STORAGE_CHECK_S / 3) != content:
            raise StorageError(f"{self.out}: what was written is not what is read")
        self._try("removing", lambda: self._remove(name), timeouts.STORAGE_CHECK_S / 3)

    def _token(self) -> str | None:
        found = self._try("reading", lambda: self._read(TOKEN), timeouts.STORAGE_CHECK_S / 3)
        return None if found is None else found.decode(errors="replace")

    # ---- single requests

    def _at(self, relative: str) -> tuple[Any, str]:
        """The client, and the path that it knows `relative` by."""
        with self._opening:
            if self._opened is None:
                self._opened = _open(self.out, self._options)
            files, top = self._opened
        return files, f"{top}/{relative}".rstrip("/")

    def _info(self, relative: str) -> Any:
        files, path = self._at(relative)
        return files.get_file_info(path)

    def _write(self, name: str, content: bytes) -> None:
        files, path = self._at(name)
        with files.open_output_stream(path) as stream:
            stream.write(content)

    def _age(self, name: str) -> float:
        """Seconds since a file was written, by the store's clock, which is asked by writing another; 0: not known."""
        clock = f"{name}-{secrets.token_hex(8)}"
        self._write(clock, b"what time is it there?")
        now, then = self._info(clock).mtime, self._info(name).mtime
        self._remove(clock)
        return max(0.0, float((now - then).total_seconds())) if now is not None and then is not None else 0.0

    def _read(self, name: str) -> bytes | None:
        files, path = self._at(name)
        with contextlib.suppress(FileNotFoundError), files.open_input_file(path) as stream:
            return bytes(stream.read())
        return None

    def _remove(self, relative: str) -> None:
        from pyarrow.fs import FileType

        files, path = self._at(relative)
        kind = files.get_file_info(path).type
        if kind == FileType.Directory:
            files.delete_dir(path)
        elif kind != FileType.NotFound:
            files.delete_file(path)

    def _try(self, doing: str, call: Callable[[], T], seconds: float | None = None) -> T:
        """What `call` gives, tried again for so long while it fails for a reason that may pass."""
        end = time.monotonic() + (timeouts.STORAGE_RETRY_S if seconds is None else seconds)
        wait = timeouts.STORAGE_FIRST_WAIT_S
        while True:
            try:
                return call()
            except StorageError:
                raise
            except Exception as error:  # fsspec's packages each raise what they like
                reason, final = _explain(error, doing, self.out, self._options)
                if final or time.monotonic() + wait > end:
                    raise StorageError(f"{self.out}: {reason}") from None
            time.sleep(wait * random.uniform(0.5, 1.0))
            wait = min(2 * wait, timeouts.STORAGE_LONGEST_WAIT_S)


class _Soon:
    """Pushes in the background, one after the other, by a thread that ends when there is nothing to do."""

    def __init__(self, push: Callable[[str], None]) -> None:
        self._push = push
        self._change = threading.Condition()
        self._waiting: dict[str, None] = {}
        self._running = False
        self._errors: dict[str, OSError] = {}

    def add(self, relative: str) -> None:
        with self._change:
            self._waiting[relative] = None
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="storage-push", daemon=True).start()

    def flush(self) -> None:
        with self._change:
            self._change.wait_for(lambda: not self._running)
            errors, self._errors = self._errors, {}
        if errors:
            raise errors.popitem()[1]

    def _run(self) -> None:
        while True:
            with self._change:
                if not self._waiting:
                    self._running = False
                    self._change.notify_all()
                    return
                relative = next(iter(self._waiting))
                del self._waiting[relative]
            error = None
            try:
                self._push(relative)
            except OSError as failure:
                error = failure
            with self._change:
                self._errors.pop(relative, None)
                if error is not None:
                    self._errors[relative] = error


def _each(job: Callable[[str], None], names: Sequence[str]) -> None:
    """`job` for each name, several at once; at the first error those that have not begun are left out."""
    if len(names) == 1:
        job(names[0])
        return
    with ThreadPoolExecutor(THREADS, thread_name_prefix="storage") as pool:
        for _ in pool.map(job, names):
            pass


def _state(path: Path) -> tuple[int, int]:
    """What tells a file from what it was before it was replaced: when written (ns), bytes."""
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _files(folder: Path, below: Path) -> list[str]:
    """The finished files below a folder, as paths below `folder`."""
    found = (path.relative_to(folder) for path in sorted(below.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if not any(_unfinished(part) for part in path.parts)]


def _unfinished(name: str) -> bool:
    """Is it what `bitlora.files.record` calls a file or folder that it is about to put in its place?"""
    return name.startswith(".") and name.endswith((".part", ".old"))
