"""How many slots fit, and how large a pass may be: measured by dry steps, decided by arithmetic.

What an engine holds at its peak is very nearly a straight line: what the base takes, with a chunk of the head's rows, so
much for each slot, and so much for each token of a forward and backward pass. Dry steps of the widest trial that a sweep
may have, over rows of the longest length that its data have, give the three numbers. They are small, a few rows of one
slot and of two, and none is taken that the one before does not promise to fit: where memory is short, a process may be
killed for asking.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import torch

from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch
from bitlora.engine.engine import EVAL_TOKENS, Engine
from bitlora.engine.gauge import CountAllocations, held, peak_during
from bitlora.engine.slots.slot import Slot
from bitlora.engine.workers import Workers, attempt
from bitlora.forward.inject import Base

if TYPE_CHECKING:
    from bitlora.data.split import Dataset

ROWS: Final = 8
"""Rows of a dry step, at most: enough for the slope, and a fraction of a real step where batches are larger."""
_LACKS: Final = ("OutOfMemoryError", "MemoryError", "out of memory", "can't allocate memory", "ALLOC_FAILED")
"""What the lack of memory is called: by Python, by PyTorch on a GPU and on a CPU, by cuBLAS."""


@dataclass(frozen=True, slots=True)
class LongestRow:
    """The longest row that a trial can meet."""

    tokens: int
    learned: int
    """Tokens that count in the loss: the most of any row, at most all but the first."""

    @classmethod
    def of(cls, dataset: Dataset) -> LongestRow:
        """Over all splits: each is trained on or scored."""
        splits = [rows for rows in (dataset.train, dataset.eval, dataset.test) if len(rows)]
        tokens = max(int(rows.lengths.max()) for rows in splits)
        return cls(tokens, min(tokens - 1, max(int(rows.learn_tokens.max()) for rows in splits)))

    def rows(self, count: int, vocabulary: int) -> Batch:
        """So many rows of it. They differ from their first token on, so that nothing of them is computed once."""
        tokens = torch.arange(self.tokens) * 7 + torch.arange(count)[:, None]
        learn = (torch.arange(self.tokens) >= self.tokens - self.learned).repeat(count)
        return Batch((tokens % vocabulary).flatten(), learn, (self.tokens,) * count)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeeds:
    """What an engine takes, in bytes: on a GPU of its memory, else of the process's resident memory."""

    base: float
    """The process with the base and what passes take of any size, without a slot."""
    slot: float
    """Of the widest trial: weights, gradient, moments, quantized copies, and copies on their way to be written."""
    token: float
    """Of a forward and backward pass."""
    eval_token: float
    """Of a pass without gradients."""
    row: int
    """Tokens of the longest row."""

    def at(self, slots: int, tokens: float) -> float:
        """The peak with so many slots and so many tokens in a forward and backward pass."""
        return self.base + slots * self.slot + tokens * self.token

    @classmethod
    def largest(cls, each: list[MemoryNeeds]) -> MemoryNeeds:
        """The most of each: what holds for all workers of a pack."""
        return cls(
            base=max(needs.base for needs in each),
            slot=max(needs.slot for needs in each),
            token=max(needs.token for needs in each),
            eval_token=max(needs.eval_token for needs in each),
            row=max(needs.row for needs in each),
        )

    @classmethod
    def read(cls, raw: Any) -> MemoryNeeds | None:
        """What was written as JSON; None where it is not that."""
        names = cls.__dataclass_fields__.keys()
        if not isinstance(raw, Mapping) or raw.keys() != names:
            return None
        fine = all(isinstance(value, int | float) and value > 0 for value in raw.values())
        return cls(**raw) if fine else None


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """What is made of it."""

    slots: int
    pass_tokens: int | None
    """Tokens of a forward and backward pass, at most; None: a whole step fits at once."""
    eval_tokens: int
    """Of a pass in evaluation."""
    fits: bool
    """False: not even a pass of one row for each slot does."""


def fit(needs: MemoryNeeds, budget: float, slots: int, rows: int, given: bool = False) -> MemoryFit:
    """How many slots, and how many tokens a pass, fit into `budget` bytes.

    A step in parts costs the same arithmetic as a whole one, while a slot less is a trial less at once: so rows are cut
    before slots are, and slots only where a pass with one row of each does not fit.

    Args:
        slots: at most.
        rows: that the widest trial has in a step (in a micro-batch, where it has those).
        given: a user has said how many slots; that stays.
    """

    def room(count: int) -> float:
        return budget - needs.base - count * needs.slot

    fitting = [count for count in range(1, slots + 1) if room(count) >= count * needs.row * needs.token]
    chosen = slots if given else max(fitting, default=1)
    tokens = int(max(0.0, room(chosen)) / needs.token)
    scored = int(max(0.0, room(chosen)) / needs.eval_token)
    whole = tokens >= chosen * rows * needs.row
    return MemoryFit(
        slots=chosen,
        pass_tokens=None if whole else max(needs.row, tokens),
        eval_tokens=max(1, min(EVAL_TOKENS, scored)),
        fits=chosen in fitting,
    )


def has_room_for(extra: float, needs: MemoryNeeds, found: MemoryFit, budget: float, rows: int) -> bool:
    """Are so many bytes more in `budget` with the same slots and passes?

    Args:
        found, rows: as `fit` gave and was given them.
    """
    beside = fit(replace(needs, base=needs.base + extra), budget, found.slots, rows, given=True)
    return found.fits and beside == found


class NotMeasured(RuntimeError):
    """A dry step of a single row of a single slot raised.

    Args:
        reason: what it raised, in one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.lack = any(word in reason for word in _LACKS)
        """It did not fit; else the row, or the configuration, cannot be computed at all."""


def rows_at_once(config: TrialConfig) -> int:
    """Rows of one slot in a pass."""
    return min(config.batch_size, config.micro_batch or config.batch_size)


def measure(
    base: Base, workers: Workers, widest: TrialConfig, longest: LongestRow, budget: Callable[[], int]
) -> MemoryNeeds:
    """What an engine over `base` takes with trials like `widest`. Every worker of a pack calls it at the same moment.

    Leaves nothing behind: no slot, no gradient, no random state; the engine that trains is another one.

    Args:
        budget: bytes that this process may hold, asked before each dry step.

    Raises:
        NotMeasured: one row of one slot raises.
    """
    chunk = base.head.rows
    # As one row has it: what the head takes is then the same in all dry steps, and no token's.
    base.head.rows = min(chunk, longest.learned)
    try:
        needs = _measure(base, workers, widest, longest, budget)
        more = (chunk - base.head.rows) * head_bytes(base)
    finally:
        base.head.rows = chunk
    return MemoryNeeds.largest(workers.gather(replace(needs, base=needs.base + more)))


def head_bytes(base: Base) -> float:
    """What the head takes of memory for each row of a chunk. Some pass must have been made."""
    rows = 8
    hidden = torch.zeros(rows, base.head.width, dtype=base.dtype, device=base.device, requires_grad=True)
    weights = torch.zeros(rows, dtype=torch.promote_types(base.dtype, torch.float32), device=base.device)
    targets = torch.zeros(rows, dtype=torch.long, device=base.device)
    with CountAllocations() as counted:
        base.head.backward(hidden, targets, weights)
    peak: int = counted.peak
    return peak / rows


def _measure(
    base: Base, workers: Workers, widest: TrialConfig, longest: LongestRow, budget: Callable[[], int]
) -> MemoryNeeds:
    """As `measure`, of this worker, with the head's chunks as they are."""
    dry = _DryRun(base, workers, widest, longest)
    dry.peaks(
        1, 1
    )  # what the first passes make and keep, such as compiled kernels and threads' memory, is not a token's
    one, _ = dry.peaks(1, 1)
    before = held(base.device)
    slot = dry.slot_bytes

    def promised(bytes_: float) -> bool:
        return all(workers.gather(bytes_ <= budget()))

    # The growth of one row holds the slot, too, so that many times as much is more than many rows will take.
    rows = next((count for count in _counts(widest) if promised(before + count * (one - before))), 1)
    many = two = scored = None
    while rows > 1 and many is None:
        try:
            many, _ = dry.peaks(1, rows)
        except NotMeasured:
            rows = rows // 4 * 2
    if many is not None and promised(many + slot):
        try:
            two, scored = dry.peaks(2, rows // 2, score=True)
        except NotMeasured:
            two = None
    length = longest.tokens
    token = max(1.0, (one - before - slot) / length if many is None else (many - one) / ((rows - 1) * length))
    if many is not None and two is not None:
        slot = max(slot, two - many)
    needs = MemoryNeeds(
        base=max(1.0, one - slot - length * token) + dry.draws,
        slot=slot,
        token=token,
        eval_token=token,
        row=length,
    )
    if scored is not None:
        eval_token = max(1.0, (scored - needs.base - 2 * slot) / dry.scored_tokens(rows // 2))
        needs = MemoryNeeds(base=needs.base, slot=slot, token=token, eval_token=min(token, eval_token), row=length)
    return needs


def _counts(widest: TrialConfig) -> Iterator[int]:
    """How many rows a dry step may have, the most first: even, so that two slots share them."""
    rows = max(2, min(ROWS, rows_at_once(widest)) // 2 * 2)
    while rows > 1:
        yield rows
        rows = rows // 4 * 2


class _DryRun:
    """Dry steps of trials like `widest`, on an engine of their own."""

    def __init__(self, base: Base, workers: Workers, widest: TrialConfig, longest: LongestRow) -> None:
        self._engine = Engine(base, 2, workers)
        self._config = widest.model_copy(update={"micro_batch": None})
        self._longest = longest
        self.slot_bytes = 0.0
        """What the vectors of a slot take, counted: the least that a slot takes."""
        widths = [base.linears[name].in_features for name in base.adapter_layers(widest)]
        self.draws = 2.0 * widest.batch_size * longest.tokens * max(widths) if widest.dropout else 0.0
        """Bytes of the random numbers for a whole batch's dropout in a layer, however small the pass."""

    def peaks(self, slots: int, rows: int, score: bool = False) -> tuple[int, int | None]:
        """The most bytes held in a step of so many slots with so many rows each; and in an evaluation of them.

        Raises:
            NotMeasured: it raised, on any worker.
        """
        engine, device = self._engine, self._engine.base.device
        engine.pass_tokens, engine.eval_tokens = None, EVAL_TOKENS
        batch = self._longest.rows(rows * engine.workers.size, engine.base.vocab_size)
        scored = None
        try:
            self._agree(attempt(self._attach, slots)[1])
            attached = [*engine.slots]
            # A checkpoint and an evaluation's adapter wait in host memory until they are written.
            waiting = [(engine.state(slot), engine.latent(slot)) for slot in attached if device.type == "cpu"]
            stats, step = peak_during(lambda: engine.step(dict.fromkeys(attached, batch)), device)
            del waiting
            place = engine.slots[attached[0]]
            summed = place.vector_bytes if engine.workers.size > 1 else 0
            self.slot_bytes = float(place.nbytes + copied_bytes(place) + summed)
            failed = [stats[slot].failed for slot in attached]
            if score and not any(failed):
                results, scored = peak_during(lambda: engine.evaluate(attached, batch), device)
                failed = [results[slot].failed for slot in attached]
        finally:
            for slot in list(engine.slots):
                engine.detach(slot)
        cut = engine.pass_tokens is not None or engine.eval_tokens != EVAL_TOKENS
        self._agree(next(filter(None, failed), "out of memory" if cut else ""))
        return step, scored

    def _attach(self, slots: int) -> None:
        """Slots as they are after a step: with moments."""
        for _ in range(slots):
            slot = self._engine.attach(self._config)
            self._engine.slots[slot].restore(self._engine.state(slot))

    def _agree(self, reason: str) -> None:
        """Raise on all workers what one has met."""
        reasons = [*filter(None, self._engine.workers.gather(reason))]
        if reasons:
            raise NotMeasured(reasons[0])

    def scored_tokens(self, rows: int) -> int:
        """Tokens of the largest pass when two slots score so many rows (`Engine.evaluate`)."""
        row = 2 * self._longest.tokens
        return row * min(rows, max(1, EVAL_TOKENS // row))


def copied_bytes(place: Slot) -> int:
    """What the copies of a slot take: a checkpoint's three vectors, and the weights of an evaluation. On a CPU they wait in
    its memory to be written, on a GPU they are in its memory until they have been copied into the host's."""
    return 4 * place.vector_bytes
