"""The one thread that runs the engine: prompts wait for it, and each step writes a token of every row that is under way.

Rows join between two steps, and leave when they are over, or when nobody waits for them any more. How many wait and what is
kept of those under way is bounded, whatever is asked. Where a step raises, its rows go on one by one, so that the row at
fault fails alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from bitlora.adapter.latent import AdapterLatent
from bitlora.config.trial import TrialConfig, as_written, layer_adapter
from bitlora.engine.engine import Engine
from bitlora.engine.generation.decoder import Decoder
from bitlora.engine.generation.greedy import KEPT_TOKENS
from bitlora.engine.generation.sampling import Sampling
from bitlora.engine.slots.slot import SlotState
from bitlora.engine.workers import attempt

MOST_ROWS: Final = 32
"""Under way at once: on CPUs a step of so many takes little longer than one of half of them."""
MOST_WAITING: Final = 256
"""Beyond those: a prompt takes kilobytes, and who comes later would wait for minutes."""


class AnswerEnd(NamedTuple):
    """Why a row is over."""

    why: Literal["stop", "length", "failed"]
    """A token that ends answers; as many tokens as asked for; an error."""
    error: str = ""


@dataclass(slots=True, eq=False)
class AskedRow:
    """A prompt, and what has been written after it."""

    slot: int
    prompt: Sequence[int]
    most: int
    """Tokens of the answer."""
    tell: Callable[[int | AnswerEnd], None]
    """Told each token, then the end, in the engine's thread. A token that ends answers is no part of them."""
    sampling: Sampling | None = None
    """None: each next token is the likeliest."""
    written: list[int] = field(default_factory=list)
    alone: bool = False
    """A step with other rows raised: this one goes on by itself."""
    left: bool = False
    """Nobody waits for it any more."""

    @property
    def length(self) -> int:
        """Tokens that it may come to."""
        return len(self.prompt) + self.most


class TooManyError(Exception):
    """As many wait as may."""


class EngineThread:
    """The engine's thread.

    Args:
        engine: with an adapter in each slot that is asked. Nobody else uses it while the thread runs.
        ends: tokens that end an answer.
        rows: under way at once, at most.
        waiting: beside them, at most.
        kept: tokens that are kept, of all lanes (`bitlora.forward.kv_cache`), or of a longer row alone.
    """

    def __init__(
        self,
        engine: Engine,
        ends: frozenset[int],
        rows: int = MOST_ROWS,
        waiting: int = MOST_WAITING,
        kept: int = KEPT_TOKENS,
    ) -> None:
        self.engine = engine
        self.error = ""
        """What the thread has died of."""
        self.died: Callable[[], object] = lambda: None
        """Called when it does."""
        self._ends, self._most_rows, self._most_waiting, self._kept = ends, rows, waiting, kept
        self._decoder = Decoder(engine)
        self._lanes = self._longest = 0  # of what the decoder keeps
        self._running: dict[int, AskedRow] = {}
        self._waiting: deque[AskedRow] = deque()
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """No step is begun any more; who still waits is told so."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def ask(self, row: AskedRow) -> None:
        """Let a row wait for its turn.

        Raises:
            TooManyError: as many wait as may.
            RuntimeError: the thread has ended, or is about to.
        """
        with self._changed:
            if self._closing:
                raise RuntimeError(self.error or "the server ends")
            if len(self._waiting) >= self._most_waiting:
                raise TooManyError(f"{len(self._waiting)} requests wait already; ask again later")
            self._waiting.append(row)
            self._changed.notify()

    def leave(self, row: AskedRow) -> None:
        """Nobody waits for this row any more; it may have ended."""
        with self._changed:
            row.left = True
            if row in self._waiting:
                self._waiting.remove(row)

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many are under way."""
        return len(self._running)

    def _run(self) -> None:
        try:
            while self._joined():
                self._step()
        except BaseException as error:
            self.error = f"{type(error).__name__}: {error}".splitlines()[0]
            self.died()
            raise
        finally:
            with self._changed:
                self._closing = True
                rows = [*self._running.values(), *self._waiting]
                self._running.clear()
                self._waiting.clear()
            for row in rows:
                row.tell(AnswerEnd("failed", self.error or "the server ends"))

    def _joined(self) -> bool:
        """Wait for something to do; those who wait join, oldest first, while there is room. False: it is over."""
        with self._changed:
            for number in [number for number, row in self._running.items() if row.left]:
                self._drop(number)
            while not (self._running or self._waiting or self._closing):
                self._changed.wait()
            if not self._running:  # what the rows before have kept is freed
                self._decoder, self._lanes, self._longest = Decoder(self.engine), 0, 0
            while self._waiting and self._fits(self._waiting[0]):
                row = self._waiting.popleft()
                self._running[self._decoder.add(row.slot, [*row.prompt, *row.written], row.sampling)] = row
                self._lanes = max(self._lanes, len(self._running))
                self._longest = max(self._longest, row.length)
            return not self._closing

    def _fits(self, row: AskedRow) -> bool:
        """Every lane is as long as the longest row that was in any: nothing of it is given back while one is under way."""
        if not self._running:
            return True
        if row.alone or any(other.alone for other in self._running.values()):
            return False
        lanes = max(self._lanes, len(self._running) + 1)
        return lanes <= self._most_rows and lanes * max(self._longest, row.length) <= self._kept

    def _step(self) -> None:
        """The next token of every row."""
        found, error = attempt(self._decoder.step)
        if found is None:
            self._go_on_apart(error)
            return
        for number, token in found.items():
            row = self._running[number]
            if token in self._ends:
                self._drop(number).tell(AnswerEnd("stop"))
                continue
            row.written.append(token)
            row.tell(token)
            if len(row.written) >= row.most:
                self._drop(number).tell(AnswerEnd("length"))

    def _drop(self, number: int) -> AskedRow:
        self._decoder.drop(number)
        return self._running.pop(number)

    def _go_on_apart(self, error: str) -> None:
        """A step has raised: its rows go on one by one, each before all who wait; or once more together, where there was
        something that nothing needs, and it went first."""
        rows = [*self._running.values()]
        self._running.clear()
        spared = self.engine.base.keep_values(False)
        if len(rows) == 1 and not spared:
            rows[0].tell(AnswerEnd("failed", error))
            return
        for row in rows:
            row.alone = row.alone or not spared
        with self._changed:
            self._waiting.extendleft(row for row in reversed(rows) if not row.left)


def put_adapter(engine: Engine, config: TrialConfig, latent: AdapterLatent) -> int:
    """Give a trial's adapter, as its files have it, a slot, in which nothing trains it.

    Returns:
        The slot.

    Raises:
        ValueError: it is of another base; or no slot is free.
    """
    import torch

    config, linears = as_written(config), engine.base.linears
    if strange := [name for name in latent if name not in linears]:
        raise ValueError(f"the base has no layer {strange[0]} that an adapter can be on")
    if not engine.free:
        raise ValueError(f"all {engine.size} slots are taken")
    slot = engine.free[0]
    ordered = {name: latent[name] for name in linears if name in latent}
    layers = [
        layer_adapter(config, name).of_each(linears[name].experts) if name in latent else None for name in linears
    ]
    numbers = torch.cat([part.flatten() for layer in ordered.values() for part in layer.tensors])
    none = torch.zeros_like(numbers)
    made = engine.bank.add(slot, config, layers, SlotState(config.steps, numbers, none, none))
    for (name, given), own in zip(ordered.items(), made.latent, strict=True):
        if [part.shape for part in given.tensors] != [part.shape for part in own.tensors]:
            engine.detach(slot)
            raise ValueError(f"the adapter's {name} is of another shape than the base's")
    return slot
