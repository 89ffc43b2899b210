"""A function of many things, one after the other, in this process and in others that are started for it.

Another process is a bare interpreter with two pipes, of which it has one end each and nobody else has the same: it ends
when this process is no more, however that ends. What another process does not bring back (it was killed, the function
raised there, its answer or the function cannot be sent) is made here, where it raises what it raises, in its turn.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, Pipe
from typing import Final, Generic, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

PROGRAM: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[3])
from bitlora.tokenized.processes import work
work(int(sys.argv[1]), int(sys.argv[2]))
"""
PIPE: Final = 2**20
"""Bytes that a pipe is to hold; what Linux lets anybody have."""
MOST: Final = 4
"""Other processes: reading, which is done here, keeps no more of them busy."""
AHEAD: Final = 4
"""Things per process that are made or on their way while the first of them is waited for."""


def cores() -> int:
    """Cores of this machine that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each_made(
    make: Callable[[Given], Made], things: Iterable[Given], others: int, after: int = 0
) -> Generator[Made, None, None]:
    """What `make` makes of each thing, in their order; as if it were made here, one after the other.

    Args:
        make: the same wherever it is; where it can be pickled, with all that it needs, other processes get it once.
        others: how many other processes at most; 0: none.
        after: things that are made before the others are started.
    """
    team: list[_Other[Given, Made]] = []
    waiting: deque[_Part[Given, Made]] = deque()
    try:
        for number, thing in enumerate(things):
            if number == after and others > 0:
                team = _team(make, min(others, MOST))
            part = _Part[Given, Made](thing)
            if not _given_away(part, team):
                part.make(make)
            waiting.append(part)
            while waiting and (waiting[0].is_made or len(waiting) > AHEAD * (1 + len(team))):
                yield waiting.popleft().awaited(make)
        while waiting:
            yield waiting.popleft().awaited(make)
    finally:
        for other in team:
            other.end()


class _Part(Generic[Given, Made]):
    """A thing, and what becomes of it."""

    def __init__(self, thing: Given) -> None:
        self.thing = thing
        self.size = 0
        self.other: _Other[Given, Made] | None = None
        """Who makes it."""
        self._made: list[Made] = []

    @property
    def is_made(self) -> bool:
        return bool(self._made)

    def has(self, made: Made) -> None:
        self._made.append(made)

    def make(self, make: Callable[[Given], Made]) -> None:
        self._made.append(make(self.thing))

    def awaited(self, make: Callable[[Given], Made]) -> Made:
        while not self._made:
            if self.other is None:
                self.make(make)
            else:
                self.other.collect(wait=True)
        return self._made[0]


class _Other(Generic[Given, Made]):
    """Another process."""

    def __init__(self, make: bytes) -> None:
        its_things, self._things = Pipe(duplex=False)
        self._results, its_results = Pipe(duplex=False)
        self._room = min(_widened(each.fileno()) for each in (its_things, its_results))
        ends = its_things.fileno(), its_results.fileno()
        command = [sys.executable, "-c", PROGRAM, *map(str, ends), json.dumps(sys.path)]
        # one thread each: all cores are busy already
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(command, pass_fds=ends, stdin=subprocess.DEVNULL, env=environment)
        its_things.close()
        its_results.close()
        self._parts: deque[_Part[Given, Made]] = deque()
        self._ready = False
        self._lost = False
        with self._losing():
            self._things.send_bytes(make)

    def takes(self, size: int) -> bool:
        """Is it free for a thing of so many bytes? What is sent must not wait: it may wait in turn for what it sends."""
        return self._ready and (not self._parts or sum(part.size for part in self._parts) + size <= self._room)

    def load(self) -> int:
        """Things that it has."""
        return len(self._parts)

    def give(self, part: _Part[Given, Made], content: bytes) -> None:
        """A thing to make."""
        part.size, part.other = len(content), self
        self._parts.append(part)
        with self._losing():
            self._things.send_bytes(content)

    def collect(self, wait: bool = False) -> None:
        """Take what it has made; with `wait` at least one thing, unless it is lost."""
        with self._losing():
            while not self._lost and (self._parts or not self._ready) and self._results.poll(None if wait else 0):
                content = self._results.recv_bytes()
                if not self._ready:
                    self._ready = True
                    continue
                self._parts.popleft().has(pickle.loads(content))
                wait = False

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError):
            self._lost, self._ready = True, False
            for part in self._parts:
                part.other = None
            self._parts.clear()

    def end(self) -> None:
        """It is no longer needed, whatever it is at."""
        self._things.close()
        self._results.close()
        self._process.kill()
        self._process.wait()


def _team(make: Callable[[Given], Made], count: int) -> list[_Other[Given, Made]]:
    try:
        content = pickle.dumps(make)
    except Exception:  # whatever a class of somebody else's raises that is not made for it
        return []
    team: list[_Other[Given, Made]] = []
    with suppress(OSError):  # no memory, or no more processes
        for _ in range(count):
            team.append(_Other(content))
    return team


def _given_away(part: _Part[Given, Made], team: list[_Other[Given, Made]]) -> bool:
    for other in team:
        other.collect()
    free = [other for other in team if other.takes(0)]
    if not free:
        return False
    content = pickle.dumps(part.thing)
    for other in sorted(free, key=_Other.load):
        if other.takes(len(content)):
            other.give(part, content)
            return True
    return False


def _widened(pipe: int) -> int:
    """Makes a pipe hold more; gives the bytes of which two messages may be in it."""
    if not hasattr(fcntl, "F_SETPIPE_SZ"):
        return 0
    with suppress(OSError):  # somebody else has many of them
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE)
    return int(fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)) // 4 * 3  # a page may be begun and not filled


def work(things: int, results: int) -> None:
    """Of another process all that it does, with its ends of the two pipes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the one that started this
    given, made = Connection(things, writable=False), Connection(results, readable=False)
    with suppress(Exception):  # where this ends, the other side makes what is missing, and raises
        make = pickle.loads(given.recv_bytes())
        made.send_bytes(b"ready")
        while True:
            made.send_bytes(pickle.dumps(make(pickle.loads(given.recv_bytes()))))
