"""What a person asks of a sweep while it runs: small files in its folder, each answered by a file beside it.

Whoever steers writes `requests/<time>-<id>.json`, from any machine that sees the folder. The driver picks it up, does it or
refuses it, writes the answer into `requests/done/` under the same name, and removes the request. So of each file there is
one writer, and nobody has to reach the driver's machine.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import queue
import secrets
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from bitlora import timeouts
from bitlora.config.explain import one_line
from bitlora.config.sections import Config, Positive
from bitlora.files.storage import Storage, StorageError
from bitlora.files.writing import write_text

REQUESTS: Final = "requests"
DONE: Final = f"{REQUESTS}/done"


def somebody() -> str:
    """Who this is: user@host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class SteeringRequest(Config):
    """What is asked for, by whom, and when."""

    act: Literal["stop", "extend", "clone", "add", "end"]
    """`stop`, `extend` and `clone` a trial, `add` trials to the sweep, `end` the sweep."""
    trial: str | None = None
    steps: Positive | None = None
    """Of `extend`: the new budget."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Of `clone`: what its configuration has other than the trial's."""
    warm_start: bool = False
    """Of `clone`: it begins with the trial's weights."""
    trials: Positive | None = None
    """Of `add`: how many more."""
    by: Annotated[str, Field(min_length=1)] = Field(default_factory=somebody)
    at: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """UTC, ISO 8601."""
    id: Annotated[str, Field(pattern="^[0-9a-f]{8,32}$")] = Field(default_factory=lambda: secrets.token_hex(4))

    @property
    def file(self) -> str:
        """Its file's name: in a folder they stand in the order in which they were asked."""
        return f"{''.join(c for c in self.at if c.isdigit())[:14]}-{self.id}.json"

    @property
    def what(self) -> str:
        """It in words."""
        match self.act:
            case "extend":
                return f"extend {self.trial} to {self.steps} steps"
            case "clone":
                changes = ", ".join(f"{key}={value}" for key, value in self.changes.items())
                warm = " with its weights" if self.warm_start else ""
                return f"clone {self.trial}{warm}" + (f": {changes}" if changes else "")
            case "add":
                return f"add {self.trials} trials"
            case "end":
                return "stop the sweep"
            case "stop":
                return f"stop {self.trial}"


class SteeringAnswer(Config):
    """What became of a request."""

    request: SteeringRequest
    done: bool
    """False: it was refused, and nothing has changed."""
    answer: str
    """In a line."""


# ---- the side of whoever steers


def ask(storage: Storage, request: SteeringRequest) -> None:
    """Leave a request in the sweep's folder. Raises OSError."""
    _write(storage, f"{REQUESTS}/{request.file}", request)


def answer_to(storage: Storage, request: SteeringRequest, seconds: float) -> SteeringAnswer | None:
    """The driver's answer, waited for; None: there was none within so many seconds.

    Raises:
        OSError: the storage does not answer.
        ValueError: what is there is no answer.
    """
    where, end = f"{DONE}/{request.file}", time.monotonic() + seconds
    while not storage.exists(where):
        if time.monotonic() >= end:
            return None
        time.sleep(timeouts.STEER_ANSWER_POLL_S)
    storage.pull(where)
    return SteeringAnswer.model_validate_json((storage.folder / where).read_bytes())


def withdraw(storage: Storage, request: SteeringRequest) -> None:
    """Take a request away again that nobody has answered. Raises OSError."""
    storage.delete(f"{REQUESTS}/{request.file}")


# ---- the side of the driver


class Inbox:
    """The requests in a sweep's folder, looked for and answered in threads of their own.

    Args:
        seconds: between two looks.
    """

    def __init__(self, storage: Storage, seconds: float = timeouts.STEER_POLL_S) -> None:
        self._storage = storage
        self._seconds = seconds
        self._known: set[str] = set()
        self._came: queue.SimpleQueue[SteeringRequest] = queue.SimpleQueue()
        self._over = threading.Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._thread = threading.Thread(target=self._watch, name="requests", daemon=True)

    def __enter__(self) -> Inbox:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What came and was not taken is refused; returns when all answers are written."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._look()
        for request in self.take():
            self.answer(request, False, "the sweep ended before it was done")
        self._writer.shutdown()

    def take(self) -> list[SteeringRequest]:
        """What came since the last time, in its order."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._came.get_nowait())
        return found

    def answer(self, request: SteeringRequest, done: bool, answer: str) -> None:
        """Say what became of a request."""
        self._writer.submit(self._answer, request, SteeringAnswer(request=request, done=done, answer=answer))

    def _answer(self, request: SteeringRequest, answer: SteeringAnswer) -> None:
        with contextlib.suppress(OSError):  # whoever asked sees no answer, and can look at the sweep
            _write(self._storage, f"{DONE}/{request.file}", answer)
            self._storage.delete(f"{REQUESTS}/{request.file}")

    def _watch(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):  # the store is away: asked again
                self._look()
            self._over.wait(self._seconds)

    def _look(self) -> None:
        for name in self._storage.names(REQUESTS):
            if name.startswith(".") or not name.endswith(".json") or name in self._known:
                continue
            where = f"{REQUESTS}/{name}"
            self._storage.pull(where)
            try:
                content = (self._storage.folder / where).read_bytes()
            except FileNotFoundError:  # withdrawn meanwhile
                continue
            self._known.add(name)
            try:
                request = SteeringRequest.model_validate_json(content)
            except ValidationError as error:
                why = f"{where}: not a request: {one_line(error)}"
                self._writer.submit(self._put_aside, name, why)
                continue
            if self._storage.exists(f"{DONE}/{name}"):  # its driver died before it could take it away
                self._storage.delete(where)
            else:
                self._came.put(request)

    def _put_aside(self, name: str, why: str) -> None:
        with contextlib.suppress(OSError):
            write_text(self._storage.folder / DONE / name, f"{why}\n")
            self._storage.push(f"{DONE}/{name}")
            self._storage.delete(f"{REQUESTS}/{name}")


def _write(storage: Storage, where: str, what: SteeringRequest | SteeringAnswer) -> None:
    try:
        write_text(storage.folder / where, what.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise StorageError(f"{storage.out}: cannot be written: {error.strerror or error}") from None
    storage.push(where)
