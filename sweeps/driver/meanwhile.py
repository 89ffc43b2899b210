"""What is said while something takes its time: on a terminal a bar, elsewhere a line now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitlora import timeouts


class ReadingBar:
    """How far the reading of data is: told that, shows it; nothing where it takes a moment.

    Args:
        console: None: the error output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._began = self._told = time.monotonic()
        self._bar: Progress | None = None

    def told(self, rows: int, share: float | None) -> None:
        """So many rows have been read, which is such a share of all; None: that is not known."""
        if not self._console.is_terminal:
            now = time.monotonic()
            if now - self._told >= timeouts.READING_LINE_S:
                self._told = now
                of = "" if share is None else f", {share:.0%} of the data"
                line = f"[{now - self._began:6.0f} s] reading data: {rows:,} rows{of}"
                self._console.print(line, markup=False, highlight=False)
            return
        if self._bar is None:
            columns = (
                TextColumn("reading data"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[rows]:,} rows"),
            )
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, *times, console=self._console, transient=True)
            self._bar.add_task("", total=None, rows=0)
            self._bar.start()
        [task] = self._bar.task_ids
        self._bar.update(task, rows=rows, total=None if share is None else 1.0, completed=share or 0.0)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Heartbeat:
    """Says lines, and where they go to a file, after `QUIET_S` without one, what is being done: a log never stands still.

    Args:
        console: where they go.
        doing: what is being done.
    """

    def __init__(self, console: Console, doing: str) -> None:
        self._console = console
        self._began = self._said = time.monotonic()
        self._stop = threading.Event()
        self.doing: Callable[[], str] = lambda: doing
        """Asked in a thread of its own."""

    def __enter__(self) -> Heartbeat:
        if not self._console.is_terminal:
            threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def say(self, text: str, timed: bool = False) -> None:
        """Say a line; with `timed` behind the seconds since it began."""
        self._said = time.monotonic()
        before = f"[{self._said - self._began:6.0f} s] " if timed else ""
        self._console.print(f"{before}{text}", markup=False, highlight=False)

    def _watch(self) -> None:
        while not self._stop.wait(max(0.01, self._said + timeouts.QUIET_S - time.monotonic())):
            if time.monotonic() - self._said >= timeouts.QUIET_S:
                self.say(self.doing(), timed=True)
