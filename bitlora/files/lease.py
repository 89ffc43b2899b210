"""A lease on a sweep's folder where there are no locks: who drives it, renewed for as long as they do.

One small file. Nobody can take it in one step, since not every store has a conditional write: so a driver writes it,
waits a moment and looks whose it is, and each renewal looks first. Of two drivers that pass all that, the earlier one finds
at its next renewal that its lease is another's, and writes no more.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bitlora import timeouts

LEASE: Final = ".lease.json"
"""Its file in the sweep's folder."""


@dataclass(frozen=True, slots=True)
class LeaseFile:
    """How its file is reached. Each raises OSError when the store cannot be asked."""

    read: Callable[[], bytes | None]
    """What is in it; None: there is none."""
    write: Callable[[bytes], None]
    remove: Callable[[], None]
    age: Callable[[], float]
    """Seconds since it was written, by the store's own clock; 0 where there is none, or the store does not say."""


class HeldError(Exception):
    """Another driver has the folder, in one line for a user."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has a lease."""

    host: str
    pid: int
    user: str
    since: str
    """UTC, ISO 8601."""
    machine: str
    """What tells this machine, since it was started, and in it this space of process ids, from all others."""
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def __str__(self) -> str:
        return f"the driver of {self.user} on {self.host} (process {self.pid}, since {self.since})"

    @property
    def lives(self) -> bool | None:
        """Is its process there? None: it is not one of this machine."""
        if self.machine != _machine():
            return None
        import psutil

        try:
            return bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False


class Lease:
    """A lease on one folder.

    Args:
        place: what the user calls the folder.
        file: the lease's in that folder.
        seal: called when the lease is found to be another's: nothing may be written from then on.
    """

    def __init__(self, place: str, file: LeaseFile, seal: Callable[[], object]) -> None:
        self._place = place
        self._file = file
        self._seal = seal
        self._me = _me()
        self._renewals = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self.lost = ""
        """Why the folder is no longer this driver's, in one line for a user; empty while it is."""

    def take(self, say: Callable[[str], object], asked: Callable[[], bool]) -> None:
        """Take the lease, and renew it from now on. One whose driver does not live is taken over, which is said.

        Args:
            asked: whether a person wants this to end.

        Raises:
            HeldError: another driver has it, and lives.
            KeyboardInterrupt: `asked`.
            OSError: the store cannot be asked.
        """
        if (content := self._file.read()) is not None:
            self._take_over(content, say, asked)
        self._file.write(self._content())
        time.sleep(timeouts.LEASE_SETTLE_S)
        if (holder := _holder(self._file.read())) is None or holder.token != self._me.token:
            raise HeldError(f"{self._place}: {holder or 'another driver'} began at the same moment; let it run")
        self._thread.start()

    def release(self) -> None:
        """Give it back, if it is still this driver's."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):
            holder = _holder(self._file.read())
            if not self.lost and holder is not None and holder.token == self._me.token:
                self._file.remove()

    def _take_over(self, content: bytes, say: Callable[[str], object], asked: Callable[[], bool]) -> None:
        """Returns when whoever wrote `content` is known not to live."""
        holder, age = _holder(content), self._file.age()
        who = holder or "another driver"
        if age <= timeouts.LEASE_STALE_S:
            lives = holder.lives if holder is not None else None
            if lives is None:
                wait = timeouts.LEASE_STALE_S - age
                say(
                    f"{self._place}: {who} renewed its lease {age:.0f} s ago; looking for {wait:.0f} s whether it lives"
                )
                lives = self._renewed(content, wait, asked)
            if lives:
                raise HeldError(
                    f"{self._place}: {who} has this sweep, and renewed its lease {self._file.age():.0f} s ago; "
                    "wait for it, or end it"
                )
        say(
            f"{self._place}: {who} is gone (it last renewed its lease {self._file.age():.0f} s ago); this one takes over"
        )

    def _renewed(self, content: bytes, seconds: float, asked: Callable[[], bool]) -> bool:
        """Does the lease change within so many seconds? One that is given back has not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if asked():
                raise KeyboardInterrupt
            time.sleep(min(timeouts.LEASE_POLL_S, max(0.0, end - time.monotonic())))
            if (now := self._file.read()) != content:
                return now is not None
        return False

    def _keep(self) -> None:
        while not self.lost and not self._over.wait(timeouts.LEASE_RENEW_S):
            with contextlib.suppress(OSError):  # the store is away, for others too: whose it is shows when it is back
                self._renew()

    def _renew(self) -> None:
        holder = _holder(self._file.read())
        if holder is not None and holder.token != self._me.token:
            self.lost = f"{self._place}: {holder} took this sweep over; this one stops, and writes nothing more there"
            self._seal()
        else:
            self._file.write(self._content())

    def _content(self) -> bytes:
        """Another one each time: that it changes is how others see that its driver lives."""
        self._renewals += 1
        return json.dumps({**asdict(self._me), "renewals": self._renewals}, indent=2).encode()


def _me() -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        user = str(os.getuid())
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Holder(socket.gethostname(), os.getpid(), user, since, _machine())


def _holder(content: bytes | None) -> Holder | None:
    """Who wrote a lease; None: nobody that can be read."""
    try:
        found = json.loads(content or b"")
        found.pop("renewals", None)
        return Holder(**found)
    except (ValueError, TypeError, AttributeError):
        return None


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {os.getuid()}"
