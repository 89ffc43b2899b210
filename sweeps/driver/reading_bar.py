"""How far the reading of data is: a bar on a terminal, a line now and then elsewhere; nothing where it takes a moment."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bitlora import timeouts


class ReadingBar:
    """Told how far it is, shows it.

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
