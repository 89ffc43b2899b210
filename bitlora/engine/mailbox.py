"""What the first worker of a pack tells the others."""

from __future__ import annotations

import pickle
from typing import Any


class Mailbox:
    """Messages that travel with the workers' sums (`bitlora.engine.workers.Workers.sum`).

    The rule: what the first worker posts goes out with its next sum, and every worker, the first among them, finds it after
    that same sum, in the order of posting, until it takes it. Nothing is dropped and nothing arrives twice, however many
    sums lie between two takings. What another worker posts goes nowhere.
    """

    def __init__(self) -> None:
        self._posted: list[Any] = []
        self._received: list[Any] = []

    def post(self, *messages: Any) -> None:
        """Have messages go out with the next sum. Whatever pickle takes."""
        self._posted += messages

    def take(self) -> list[Any]:
        """All that has arrived since the last call, oldest first."""
        taken, self._received = self._received, []
        return taken

    # ---- for the sum alone

    def collect(self) -> bytes:
        """What goes out with this sum; empty where nothing was posted."""
        posted, self._posted = self._posted, []
        return pickle.dumps(posted) if posted else b""

    def deliver(self, collected: bytes) -> None:
        """What came with this sum, as `collect` gave it to the first worker."""
        if collected:
            self._received += pickle.loads(collected)
