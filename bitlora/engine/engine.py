"""The engine: many trials' adapters trained at once over one frozen base. It knows no Ray.

A slot is one flat vector of latent weights with its gradient and its moments, a row of the pack's (`bitlora.engine.slot`);
the layers see views of all of them. Between optimizer steps trials are attached and detached; a step takes one batch for
each slot and does one forward and one backward pass over all of them, in operations that each hold all slots.

The promise: what a trial goes through is what it would go through alone, in a plain loop over stock PEFT layers
(`tests/bitlora/engine/test_promise.py`).
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.config.explain import one_line
from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch, Piece, split_pass, split_rows
from bitlora.engine.optim import clip, learning_rate
from bitlora.engine.slot import Bank, Slot, SlotState
from bitlora.engine.vector import VectorLayout
from bitlora.engine.workers import Workers
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.host import read, send
from bitlora.forward.inject import Base
from bitlora.quantizers.weights import QUANTIZERS

EVAL_TOKENS = 4096
"""Tokens of one forward pass in evaluation, about, until so many do not fit."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepStats:
    """What one optimizer step did to one slot."""

    loss: float
    """Nats per completion token of the batch, before the step."""
    tokens: int
    """All tokens of the batch, prompts included."""
    grad_norm: float
    """2-norm over the whole adapter, before clipping."""
    finite: bool
    """False: loss or gradient was not finite, nothing was changed, and the slot is parked."""
    skipped: bool = False
    """True: the gradient overflowed in float16, so the weights stay, and the next loss is scaled by half."""
    failed: str = ""
    """Why the slot cannot take this step, in one line: an error that its own rows raise. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """An evaluation, example by example."""

    losses: list[float]
    """Nats, summed over the example's completion tokens."""
    tokens: list[int]
    failed: str = ""
    """Why the slot cannot be scored, in one line; its losses are then not all there."""

    @property
    def loss(self) -> float:
        """Nats per completion token: the ratio of the sums."""
        return math.fsum(self.losses) / sum(self.tokens)


class Engine:
    """Slots over a base.

    Args:
        base: loaded, with room for adapters; one engine alone uses it.
        slots: how many trials fit at once.
        workers: who shares the batches; each has an engine of its own, and all are told the same.
    """

    def __init__(self, base: Base, slots: int, workers: Workers | None = None) -> None:
        self.base = base
        self.size = slots
        self.workers = workers or Workers()
        self.latent_dtype = torch.promote_types(base.dtype, torch.float32)
        self.bank = Bank([*base.linears.values()], self.latent_dtype, base.dtype, base.device)
        # Not in float64: transformers' norms run in float32 there, and whether gradients are summed before or after one
        # is then seen in the eighth digit.
        self.share_prefixes = base.dtype != torch.float64
        self.pass_tokens: int | None = None
        """Tokens of a forward and backward pass, at most: what is known to fit, or was found when a larger one raised."""
        self.eval_tokens = EVAL_TOKENS
        """Tokens of a pass in evaluation, at most, but at least one row for each slot."""

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The taken slots, by number."""
        return self.bank.slots

    @property
    def free(self) -> list[int]:
        """The empty slots, lowest first."""
        return [slot for slot in range(self.size) if slot not in self.slots]

    def attach(self, config: TrialConfig, slot: int | None = None, state: SlotState | None = None) -> int:
        """Give a trial a slot. Where it starts (`bitlora.engine.slot.Slot`) depends on its seed alone.

        Args:
            slot: which one; the lowest free one by default.
            state: go on from here (`state`) instead.

        Returns:
            The slot.

        Raises:
            ValueError: it is taken, or none is free; or the state is of another adapter.
        """
        if not self.free or slot not in (None, *self.free):
            raise ValueError(f"slot {slot} is not free" if slot is not None else f"all {self.size} slots are taken")
        slot = self.free[0] if slot is None else slot
        layers = self.base.adapter_layers(config)
        self.bank.add(slot, config, [layers.get(name) for name in self.base.linears], state)
        return slot

    def detach(self, slot: int) -> None:
        """Empty a slot. Nothing of its trial stays behind.

        Raises:
            KeyError: it is empty.
        """
        self.bank.remove(slot)

    def latent(self, slot: int) -> dict[str, Latent]:
        """Copies of a slot's latent weights, of the layers that its adapter is on: layer name -> A (R, I), B (O, R), and
        where scales are learned theirs."""
        state = self.slots[slot]
        names = [name for name, layer in zip(self.base.linears, state.layers, strict=True) if layer is not None]
        return dict(zip(names, state.latent_layers(), strict=True))

    def weights(self, config: TrialConfig) -> int:
        """How many numbers a trial's adapter has: the length of the vectors of its `state`."""
        layers = [(self.base.linears[name], found.rank) for name, found in self.base.adapter_layers(config).items()]
        return VectorLayout.make(layers, QUANTIZERS[config.quantizer].learns_scales, config.dora).size

    def state(self, slot: int) -> SlotState:
        """A copy of what a trial would go on from."""
        return self.slots[slot].state()

    def step(self, batches: Mapping[int, Batch]) -> dict[int, StepStats]:
        """One optimizer step of every slot in `batches`, each on its own batch; of many workers each computes its rows.

        A slot whose loss or gradient is not finite is parked: its weights stay as they were, and its neighbours' numbers
        are what they would have been. In float16 a gradient that is not finite skips the slot's step instead, and halves
        its loss scale; the slot is parked when there is nothing left to halve.

        Where a pass raises, on any worker, all do the step again slot by slot, each in fewer rows until it succeeds, with
        the same sums. A slot whose single row still raises has `StepStats.failed`, and takes no step; a lack of memory
        that was everybody's makes later passes smaller.

        Raises:
            torch.AcceleratorError: the device is lost, which is no slot's fault.
        """
        counts = {slot: batch.learned for slot, batch in sorted(batches.items())}
        reasons: dict[int, str] = {}
        for slot in counts:
            self.slots[slot].grad.zero_()
        found, error = attempt(self._backward, self._passes(batches), counts)
        sums = torch.zeros(len(counts), dtype=torch.float64, device=self.base.device) if found is None else found
        if self.workers.sum([sums, *(self.slots[slot].grad for slot in counts)], self.latent_dtype, bool(error)):
            sums, reasons = self._step_slot_by_slot(batches, counts)
        failed = {slot: StepStats(math.nan, 0, math.nan, False, failed=why) for slot, why in reasons.items()}
        states = {slot: self.slots[slot] for slot in counts if slot not in reasons}
        if not states:
            return failed
        for state in states.values():
            if state.loss_scale.value != 1:
                state.grad.div_(state.loss_scale.value)
        self.bank.backward_to_latent(states)
        norms = torch.stack([torch.linalg.vector_norm(state.grad) for state in states.values()])
        found_sums, found_norms = np.split(read(torch.cat([sums, norms.double()])), [len(counts)])
        totals = dict(zip(counts, found_sums.tolist(), strict=True))
        losses = {slot: totals[slot] / counts[slot] for slot in states}
        tokens = {slot: sum(batch.lengths) for slot, batch in batches.items()}
        return failed | self._update(losses, dict(zip(states, found_norms.tolist(), strict=True)), tokens)

    def _backward(self, passes: Iterable[Sequence[Piece]], counts: Mapping[int, int]) -> Tensor:
        """Forward and backward of these passes: gradients are added to the slots'.

        Args:
            counts: tokens that count in the loss, of each slot's whole batch.

        Returns:
            The summed losses of the slots in `counts`, (slots,) float64.
        """
        totals = dict.fromkeys(counts, torch.zeros((), dtype=torch.float64, device=self.base.device))
        for pieces in passes:
            ordered = self._by_place(pieces)
            hidden, targets, learned = self._hidden(ordered)
            shares = [self.slots[piece.slot].loss_scale.value / counts[piece.slot] for piece in ordered]
            (weights,) = send([np.repeat(shares, learned)], self.base.device)
            losses = self.base.head.backward(hidden, targets, weights.to(self.latent_dtype))
            sums = torch.stack([loss.sum() for loss in losses.split(learned)]).double()
            for piece, total in zip(ordered, sums.unbind(), strict=True):
                totals[piece.slot] = totals[piece.slot] + total
        return torch.stack([*totals.values()])

    def _step_slot_by_slot(
        self, batches: Mapping[int, Batch], counts: Mapping[int, int]
    ) -> tuple[Tensor, dict[int, str]]:
        """The sums and gradients of a step whose passes raised; and of the slots that cannot take it, why."""
        passes = self._passes(batches)
        sums = torch.zeros(len(counts), dtype=torch.float64, device=self.base.device)
        reasons: dict[int, str] = {}
        largest = 0
        for place, slot in enumerate(counts):
            pieces = [piece for each in passes for piece in each if piece.slot == slot]
            rows = max((len(piece.batch.lengths) for piece in pieces), default=1)
            while True:
                cut = [[part] for piece in pieces for part in split_rows(piece, rows)]
                self.slots[slot].grad.zero_()
                found, error = attempt(self._backward, cut, {slot: counts[slot]})
                if found is not None:
                    sums[place] = found[0]
                    largest = max([largest, *(len(part.batch.tokens) for (part,) in cut)])
                    break
                if rows == 1:
                    self.slots[slot].grad.zero_()
                    reasons[slot] = error
                    break
                rows //= 2
        reasons = _first_of(self.workers.gather(reasons))
        self.workers.sum([sums, *(self.slots[slot].grad for slot in counts)], self.latent_dtype)
        if not reasons:  # together they did not fit
            together = max(sum(len(piece.batch.tokens) for piece in each) for each in passes) if passes else 0
            self.pass_tokens = max(largest, together // 2, 1)
        return sums, reasons

    def _update(
        self, losses: Mapping[int, float], norms: Mapping[int, float], tokens: Mapping[int, int]
    ) -> dict[int, StepStats]:
        """The optimizer steps of slots with these losses, along gradients with these norms."""
        states = [self.slots[slot] for slot in losses]
        clip([state.grad for state in states], [*norms.values()], [state.config.max_grad_norm for state in states])
        stats: dict[int, StepStats] = {}
        changed: list[int] = []
        for state in states:
            loss, norm = losses[state.number], norms[state.number]
            finite = math.isfinite(norm)
            skipped = not finite and math.isfinite(loss) and state.loss_scale.value > 1 and not state.parked
            state.parked = state.parked or not (math.isfinite(loss) and (finite or skipped))
            state.step += 1
            if self.base.dtype == torch.float16 and not state.parked:
                state.loss_scale = state.loss_scale.after(finite)
            if not state.parked and not skipped:
                state.take_step(learning_rate(state.config, state.step))
                changed.append(state.number)
            stats[state.number] = StepStats(loss, tokens[state.number], norm, not state.parked, skipped)
        self.bank.quantize(changed)
        return stats

    def evaluate(self, slots: Sequence[int], batch: Batch) -> dict[int, EvalResult]:
        """Score the rows of `batch` with each slot's adapter as it would be deployed: quantized, without dropout.

        Where a pass raises, all is scored again slot by slot and row by row, as in `step`.
        """
        ends = np.cumsum(batch.lengths)
        tokens = np.diff(np.cumsum(batch.learn.numpy())[ends - 1], prepend=0).tolist()
        losses = torch.zeros(len(slots), len(tokens), dtype=torch.float64)
        first, last = self.workers.share(len(tokens))
        reasons: dict[int, str] = {}
        rows, all_slots = range(first, last), range(len(slots))
        _, error = attempt(self._score, slots, all_slots, batch, tokens, rows, losses, self.eval_tokens)
        if self.workers.sum([losses], torch.float64, bool(error)):
            losses.zero_()
            for place, slot in enumerate(slots):
                _, error = attempt(self._score, slots, [place], batch, tokens, rows, losses, 1)
                if error:
                    reasons[slot] = error
            reasons = _first_of(self.workers.gather(reasons))
            self.workers.sum([losses], torch.float64)
            if not reasons:  # together they did not fit
                self.eval_tokens = max(1, self.eval_tokens // 2)
        return {
            slot: EvalResult(row, tokens, reasons.get(slot, ""))
            for slot, row in zip(slots, losses.tolist(), strict=True)
        }

    def _score(
        self,
        slots: Sequence[int],
        places: Sequence[int],
        batch: Batch,
        tokens: Sequence[int],
        rows: range,
        losses: Tensor,
        most: int,
    ) -> None:
        """Write the losses of `rows` of `batch` with the slots at `places` of `slots` into `losses` (slots, rows).

        Args:
            most: tokens of a pass, but at least one row.
        """
        start = rows.start
        found: list[Tensor] = []
        of: list[tuple[int, int]] = []  # of each part of `found` the place of its slot and its row
        with torch.no_grad():
            while start < rows.stop:
                stop = start + 1
                while stop < rows.stop and sum(batch.lengths[start : stop + 1]) * len(places) <= most:
                    stop += 1
                chosen, _ = batch.rows(start, stop)
                ordered = self._by_place([Piece(slots[place], chosen) for place in places])
                hidden, targets, _ = self._hidden(ordered)
                found.append(self.base.head.losses(hidden, targets))
                of += [(slots.index(piece.slot), row) for piece in ordered for row in range(start, stop)]
                start = stop
        if found:
            parts = np.split(read(torch.cat(found)), np.cumsum([tokens[row] for _, row in of])[:-1])
            for (place, row), part in zip(of, parts, strict=True):
                losses.numpy()[place, row] = part.sum()

    def _passes(self, batches: Mapping[int, Batch]) -> list[list[Piece]]:
        """This worker's rows as forward passes, none larger than what is known to fit."""
        return [part for each in self._micro_batches(batches) for part in split_pass(each, self.pass_tokens)]

    def _micro_batches(self, batches: Mapping[int, Batch]) -> list[list[Piece]]:
        """This worker's rows cut into forward passes: in the k-th, each slot's k-th micro-batch."""
        passes: list[list[Piece]] = []
        for turn, (slot, batch) in enumerate(sorted(batches.items())):
            state = self.slots[slot]
            first, last = self.workers.share(len(batch.lengths), turn)
            size = state.config.micro_batch or max(1, last - first)
            for number, start in enumerate(range(first, last, size)):
                if number == len(passes):
                    passes.append([])
                piece, before = batch.rows(start, min(start + size, last))
                seed = (state.config.seed, state.step) if state.config.dropout else None
                passes[number].append(Piece(slot, piece, before, len(batch.tokens), seed))
        return passes

    def _by_place(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces in the order of their slots' places in the bank."""
        return sorted(pieces, key=lambda piece: self.slots[piece.slot].place)

    def _hidden(self, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor, list[int]]:
        """What the head is given for every completion token of pieces in the order of their places: (K, width); those
        tokens, (K,) int64; and how many each piece has."""
        # A dropout mask is drawn for every token of every row, so there the rows have nothing in common.
        shared = [piece.batch.common_prefix() if self.share_prefixes and not piece.seed else 0 for piece in pieces]
        folded = [piece.batch.folded(common) for piece, common in zip(pieces, shared, strict=True)]
        ends = [*accumulate(len(tokens) for tokens, _ in folded)]
        spans = [
            Span(piece.slot, start, end, piece.batch_start, piece.batch_tokens, piece.seed)
            for piece, start, end in zip(pieces, [0, *ends], ends, strict=False)
        ]
        plan = ForwardPlan.make(spans, [piece.batch.lengths for piece in pieces], shared, self.base.device)
        tokens, learn = (np.concatenate(parts) for parts in zip(*folded, strict=True))
        inputs, keep, targets = send([tokens, np.flatnonzero(learn) - 1, tokens[learn]], self.base.device)
        return self.base.hidden(plan, inputs, keep), targets, [int(np.count_nonzero(own)) for _, own in folded]


def attempt(work: Callable[..., T], *arguments: Any) -> tuple[T | None, str]:
    """What `work` gives, or None and the error that it raised in one line, with the memory that it held freed.

    Raises:
        torch.AcceleratorError: the device itself is lost: nothing that is tried on it again tells anything.
    """
    try:
        return work(*arguments), ""
    except torch.AcceleratorError:
        raise
    except Exception as error:  # whatever a layer raises is its trial's, until more is known
        reason = f"{type(error).__name__}: {one_line(error)}"
    # Outside the handler: the error's frames, and what they held, are gone.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, reason


def _first_of(reasons: Sequence[Mapping[int, str]]) -> dict[int, str]:
    """Of each slot the reason of the first worker that has one."""
    return {slot: why for each in reversed(reasons) for slot, why in each.items()}
