"""A sweep's folder in object storage, mirrored in a scratch folder: `bitlora.storage` says what each method promises.

Requests are tried again here, for a time that we choose, and not by the clients below: theirs differ, from seconds (S3)
to a quarter of an hour (Google's).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlsplit

from bitlora.record import replacing
from bitlora.storage import CHECK_S, RETRY_S, TOKEN, Storage, StorageError

T = TypeVar("T")

FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 10.0
"""Between two attempts: doubled from the first to the longest, each shortened at random by up to a half."""
CONNECT_S: Final = 5.0
REQUEST_S: Final = 9.0
"""How long a request may go without an answer: late is not dead (the S3 client's own default is 3). To this curl adds
the 5 s that it averages over; CHECK_S is the sum and some, since a process cannot end before its client has given up."""
THREADS: Final = 16
"""Files at once; the S3 client keeps 25 connections."""
ROUNDS: Final = 3
"""How often `pull` looks for files that were replaced while it fetched them."""

S3_OPTIONS: Final = ("region", "scheme", "endpoint_override")
"""What may stand in the query of an s3:// URI."""
CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)

Entry = tuple[int | None, Any]
"""A file as listed: bytes, when it was last written."""


class ObjectStorage(Storage):
    """See `bitlora.storage.open_storage`."""

    def __init__(self, out: str, scratch: Path | None = None, options: dict[str, str] | None = None) -> None:
        # Where the bucket is travels with the storage, as it was found where the sweep began; who one is does not.
        self._options = _options(out) if options is None else options
        super().__init__(out, scratch or Path(tempfile.mkdtemp(prefix="bitlora-")))
        self.folder.mkdir(parents=True, exist_ok=True)
        self._made = scratch is None
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
            raise StorageError(f"{error}; what was written is kept in {self.folder}") from None
        if self._made:
            shutil.rmtree(self.folder, ignore_errors=True)

    def delete(self, relative: str) -> None:
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

    def _put(self, name: str) -> None:
        # Of two uploads of a file, the one that reads it last must also end last.
        with self._locks[hash(name) % len(self._locks)], contextlib.suppress(FileNotFoundError):
            content = (self.folder / name).read_bytes()
            self._try(f"writing {name}", lambda: self._write(name, content))

    def _get(self, name: str) -> None:
        content = self._try(f"reading {name}", lambda: self._read(name))
        if content is not None:
            with replacing(self.folder / name) as part:
                part.write_bytes(content)

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
        self._try("writing", lambda: self._write(name, content), CHECK_S / 3)
        if self._try("reading", lambda: self._read(name), CHECK_S / 3) != content:
            raise StorageError(f"{self.out}: what was written is not what is read")
        self._try("removing", lambda: self._remove(name), CHECK_S / 3)

    def _token(self) -> str | None:
        found = self._try("reading", lambda: self._read(TOKEN), CHECK_S / 3)
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
        end = time.monotonic() + (RETRY_S if seconds is None else seconds)
        wait = FIRST_WAIT_S
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
            wait = min(2 * wait, LONGEST_WAIT_S)


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


def _files(folder: Path, below: Path) -> list[str]:
    """The finished files below a folder, as paths below `folder`."""
    found = (path.relative_to(folder) for path in sorted(below.rglob("*")) if path.is_file())
    return [path.as_posix() for path in found if not any(_unfinished(part) for part in path.parts)]


def _unfinished(name: str) -> bool:
    """Is it what `bitlora.record` calls a file or folder that it is about to put in its place?"""
    return name.startswith(".") and name.endswith((".part", ".old"))


def _options(out: str) -> dict[str, str]:
    """Where the server of an s3:// URI is: from its query, else from the environment. Other schemes have none.

    Raises:
        StorageError: there is no bucket, or the query has what is not known, or a secret is in it.
    """
    uri = urlsplit(out)
    if uri.scheme != "s3":
        return {}
    if "@" in uri.netloc:
        where = f"s3://{uri.netloc.rpartition('@')[2]}{uri.path}"
        raise StorageError(f"{where}: has credentials in it; give them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if not uri.netloc:
        raise StorageError(f"{out}: names no bucket; give s3://bucket/prefix")
    options = dict(parse_qsl(uri.query))
    if unknown := sorted(options.keys() - set(S3_OPTIONS)):
        raise StorageError(f"{out}: unknown {', '.join(unknown)} after '?'; there are {', '.join(S3_OPTIONS)}")
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if url and "endpoint_override" not in options:
        scheme, _, host = url.rpartition("://")
        options |= {"scheme": scheme or "https", "endpoint_override": host.rstrip("/")}
    if "endpoint_override" in options:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        options.setdefault("region", region or "us-east-1")
    return options


def _open(out: str, options: dict[str, str]) -> tuple[Any, str]:
    """A client for `out`, and its path in it.

    Raises:
        StorageError: no client for it is installed.
        Exception: what the client raises.
    """
    import pyarrow as pa
    from pyarrow import fs

    uri = urlsplit(out)
    if uri.scheme == "s3":
        # A bucket of another region than this machine's answers with an error: ask where it is.
        region = options.get("region") or fs.resolve_s3_region(uri.netloc)
        client = fs.S3FileSystem(
            **{**options, "region": region},
            connect_timeout=CONNECT_S,
            request_timeout=REQUEST_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
            allow_delayed_open=True,  # one request for a small file
        )
        return client, (uri.netloc + uri.path).strip("/")
    if uri.scheme in ("gs", "gcs") and "retry_limit_seconds" not in uri.query:
        out += f"{'&' if uri.query else '?'}retry_limit_seconds={REQUEST_S:.0f}"
    with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
        client, path = fs.FileSystem.from_uri(out)
        return client, path.rstrip("/")
    try:
        import fsspec  # type: ignore[import-untyped]

        client, path = fsspec.core.url_to_fs(out)
    except (ImportError, ValueError) as error:
        raise StorageError(f"{out}: {_line(error)}; give a folder, s3://… or gs://…") from None
    return fs.PyFileSystem(fs.FSSpecHandler(client)), path.rstrip("/")


def _explain(error: Exception, doing: str, out: str, options: dict[str, str]) -> tuple[str, bool]:
    """What went wrong, for a user; and whether it would again."""
    text = re.sub("^When .*?: AWS Error ", "", _line(error))

    def says(pattern: str) -> bool:
        return re.search(pattern, text, re.IGNORECASE) is not None

    if says("no_?such_?bucket|bucket '.*' not found"):
        return f"there is no bucket {urlsplit(out).netloc!r}; create it first, or correct the name", True
    if says("invalid_?access_?key|signature_?does_?not_?match|invalid_?client_?token|expired_?token|invalid_?token"):
        return f"the credentials are not accepted ({text}); look at AWS_ACCESS_KEY_ID and its companions", True
    if says("access_?denied|HTTP status 403") or isinstance(error, PermissionError):
        if out.startswith("s3://") and not _credentials():
            keys = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            return f"{doing} is denied, and there are no credentials here; set {keys}, or give the machine a role", True
        return f"{doing} is denied ({text}); allow these credentials to read, write, list and delete there", True
    if says("network_connection|curlCode|resolve host") or isinstance(error, ConnectionError):
        server = options.get("endpoint_override")
        at = f" at {options.get('scheme', 'https')}://{server}" if server else ""
        return f"cannot be reached{at} ({text}); look at the network{' and AWS_ENDPOINT_URL' if server else ''}", False
    return f"{doing} failed: {text}", False


def _credentials() -> bool:
    file = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    return any(os.environ.get(name) for name in CREDENTIALS) or file.exists()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
