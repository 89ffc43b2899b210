"""The engine: many trials' adapters trained at once over one frozen base. It knows no Ray.

A slot is one flat vector of latent weights with its gradient and its moments, a row of the pack's
(`bitlora.engine.slots.bank`); the layers see views of all of them. Between optimizer steps trials are attached and
detached; a step takes one batch for each slot and does one forward and one backward pass over all of them, in operations
that each hold all slots.

The promise: what a trial goes through is what it would go through alone, in a plain loop over stock PEFT layers
(`tests/bitlora/engine/test_promise.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch, Piece, split_pass, split_rows, split_rows_by_tokens
from bitlora.engine.passes import KeptLayouts, LaidOutPass, StepLayout, micro_batches
from bitlora.engine.slots.bank import Bank
from bitlora.engine.slots.optim import clip, learning_rate
from bitlora.engine.slots.slot import Slot, SlotState
from bitlora.engine.slots.vector import VectorLayout
from bitlora.engine.workers import Workers, attempt, first_reasons
from bitlora.forward.host import Coming, read, send
from bitlora.forward.inject import Base
from bitlora.quantizers.weights import QUANTIZERS

EVAL_TOKENS = 4096
"""Tokens of one forward pass in evaluation, about, until so many do not fit."""


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
    rows: list[int] | None = None
    """Which examples, rising, where they are not all of the split."""
    hits: list[int] | None = None
    """Of the example's completion tokens those that are the likeliest where they stand; None: nobody asked."""

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
        self._ahead: StepLayout | None = None
        self._kept = KeptLayouts()

    @property
    def slots(self) -> Mapping[int, Slot]:
        """The taken slots, by number."""
        return self.bank.slots

    @property
    def free(self) -> list[int]:
        """The empty slots, lowest first."""
        return [slot for slot in range(self.size) if slot not in self.slots]

    def attach(self, config: TrialConfig, slot: int | None = None, state: SlotState | None = None) -> int:
        """Give a trial a slot. Where it starts (`bitlora.engine.slots.slot.Slot`) depends on its seed alone.

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

    def fetch_latent(self, slot: int) -> Coming[dict[str, Latent]]:
        """Copies of a slot's latent weights on their way into host memory, of the layers that its adapter is on: layer name
        -> A (R, I), B (O, R), and where scales are learned theirs."""
        state = self.slots[slot]
        names = [name for name, layer in zip(self.base.linears, state.layers, strict=True) if layer is not None]
        coming = state.fetch_latent()
        return Coming(lambda: dict(zip(names, coming.arrived(), strict=True)))

    def latent(self, slot: int) -> dict[str, Latent]:
        """As `fetch_latent`; the host waits for them."""
        return self.fetch_latent(slot).arrived()

    def weights(self, config: TrialConfig) -> int:
        """How many numbers a trial's adapter has: the length of the vectors of its `state`."""
        layers = [(self.base.linears[name], found.rank) for name, found in self.base.adapter_layers(config).items()]
        return VectorLayout.make(layers, QUANTIZERS[config.quantizer].learns_scales, config.dora).size

    def fetch_state(self, slot: int) -> Coming[SlotState]:
        """A copy of what a trial would go on from, on its way into host memory."""
        return self.slots[slot].fetch_state()

    def state(self, slot: int) -> SlotState:
        """As `fetch_state`; the host waits for it."""
        return self.fetch_state(slot).arrived()

    def step(
        self, batches: Mapping[int, Batch], ahead: Callable[[], Mapping[int, Batch]] | None = None
    ) -> dict[int, StepStats]:
        """One optimizer step of every slot in `batches`, each on its own batch; of many workers each computes its rows.

        A slot whose loss or gradient is not finite is parked: its weights stay as they were, and its neighbours' numbers
        are what they would have been. In float16 a gradient that is not finite skips the slot's step instead, and halves
        its loss scale; the slot is parked when there is nothing left to halve.

        Where a pass raises, on any worker, all do the step again slot by slot, each in fewer rows until it succeeds, with
        the same sums. A slot whose single row still raises has `StepStats.failed`, and takes no step; a lack of memory
        that was everybody's makes later passes smaller.

        Args:
            ahead: gives the batches of the step after this one, which are laid out while the device is at work; used by
                that step where it is given the same ones, over the same slots.

        Raises:
            torch.AcceleratorError: the device is lost, which is no slot's fault.
        """
        counts = {slot: batch.learned for slot, batch in sorted(batches.items())}
        reasons: dict[int, str] = {}
        self._clear_gradients(counts)
        found, error = attempt(self._backward, self._passes_of(batches), counts)
        # The device is at work, or something has raised: meanwhile the host does what the next step needs of it.
        self._ahead = attempt(self._lay_out_step, ahead(), 1)[0] if ahead is not None else None
        sums = torch.zeros(len(counts), dtype=torch.float64, device=self.base.device) if found is None else found
        if self.workers.sum([sums, *self._gradients(counts)], self.latent_dtype, bool(error)):
            sums, reasons = self._step_slot_by_slot(batches, counts)
        failed = {slot: StepStats(math.nan, 0, math.nan, False, failed=why) for slot, why in reasons.items()}
        states = {slot: self.slots[slot] for slot in counts if slot not in reasons}
        if not states:
            return failed
        for state in states.values():
            if state.loss_scale.value != 1:
                for part in state.grads:
                    part.div_(state.loss_scale.value)
        self.bank.backward_to_latent(states)
        norms = torch.stack([state.grad_norm() for state in states.values()])
        found_sums, found_norms = np.split(read(torch.cat([sums, norms.double()])), [len(counts)])
        totals = dict(zip(counts, found_sums.tolist(), strict=True))
        losses = {slot: totals[slot] / counts[slot] for slot in states}
        tokens = {slot: sum(batch.lengths) for slot, batch in batches.items()}
        return failed | self._update(losses, dict(zip(states, found_norms.tolist(), strict=True)), tokens)

    def _backward(self, passes: Iterable[LaidOutPass], counts: Mapping[int, int]) -> Tensor:
        """Forward and backward of these passes: gradients are added to the slots'.

        Args:
            counts: tokens that count in the loss, of each slot's whole batch.

        Returns:
            The summed losses of the slots in `counts`, (slots,) float64.
        """
        totals = dict.fromkeys(counts, torch.zeros((), dtype=torch.float64, device=self.base.device))
        for each in passes:
            weights = each.shares
            scales = [self.slots[piece.slot].loss_scale.value for piece in each.pieces]
            if any(scale != 1 for scale in scales):
                weights = weights * send([np.repeat(scales, each.learned)], self.base.device)[0]
            hidden = self.base.hidden(each.plan, each.tokens, each.keep)
            losses = self.base.head.backward(hidden, each.targets, weights.to(self.latent_dtype))
            sums = torch.stack([loss.sum() for loss in losses.split(each.learned)]).double()
            for piece, total in zip(each.pieces, sums.unbind(), strict=True):
                totals[piece.slot] = totals[piece.slot] + total
        return torch.stack([*totals.values()])

    def _step_slot_by_slot(
        self, batches: Mapping[int, Batch], counts: Mapping[int, int]
    ) -> tuple[Tensor, dict[int, str]]:
        """The sums and gradients of a step whose passes raised; and of the slots that cannot take it, why."""
        spared = self.base.keep_values(False)  # what nothing needs goes first
        passes = self._passes(batches)
        sums = torch.zeros(len(counts), dtype=torch.float64, device=self.base.device)
        reasons: dict[int, str] = {}
        largest = 0
        for place, slot in enumerate(counts):
            pieces = [piece for each in passes for piece in each if piece.slot == slot]
            rows = max((len(piece.batch.lengths) for piece in pieces), default=1)
            while True:
                cut = [[part] for piece in pieces for part in split_rows(piece, rows)]
                self._clear_gradients([slot])
                found, error = attempt(
                    self._backward, (self._lay_out(each, counts) for each in cut), {slot: counts[slot]}
                )
                if found is not None:
                    sums[place] = found[0]
                    largest = max([largest, *(len(part.batch.tokens) for (part,) in cut)])
                    break
                if rows == 1:
                    self._clear_gradients([slot])
                    reasons[slot] = error
                    break
                rows //= 2
        reasons = first_reasons(self.workers.gather(reasons))
        self.workers.sum([sums, *self._gradients(counts)], self.latent_dtype)
        if not reasons and not spared:  # together they did not fit
            together = max(sum(len(piece.batch.tokens) for piece in each) for each in passes) if passes else 0
            self.pass_tokens = max(largest, together // 2, 1)
        return sums, reasons

    def _gradients(self, slots: Iterable[int]) -> list[Tensor]:
        return [part for slot in slots for part in self.slots[slot].grads]

    def _clear_gradients(self, slots: Iterable[int]) -> None:
        for part in self._gradients(slots):
            part.zero_()

    def _update(
        self, losses: Mapping[int, float], norms: Mapping[int, float], tokens: Mapping[int, int]
    ) -> dict[int, StepStats]:
        """The optimizer steps of slots with these losses, along gradients with these norms."""
        states = [self.slots[slot] for slot in losses]
        clip([state.grads for state in states], [*norms.values()], [state.config.max_grad_norm for state in states])
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

    def evaluate(
        self, slots: Sequence[int], batch: Batch, part: range | None = None, hits: bool = False
    ) -> dict[int, EvalResult]:
        """Score the rows of `batch` with each slot's adapter as it would be deployed: quantized, without dropout.

        Where a pass raises, all is scored again slot by slot and row by row, as in `step`.

        Args:
            part: the rows to score, next to each other; all by default.
            hits: count, too, how many tokens are the likeliest.
        """
        ends = np.cumsum(batch.lengths)
        tokens = np.diff(np.cumsum(batch.learn.numpy())[ends - 1], prepend=0).tolist()
        part = range(len(tokens)) if part is None else part
        sums = torch.zeros(1 + hits, len(slots), len(tokens), dtype=torch.float64)
        rows, all_slots = part[slice(*self.workers.share(len(part)))], range(len(slots))
        reasons: dict[int, str] = {}
        _, error = attempt(self._score, slots, all_slots, batch, tokens, rows, sums, self.eval_tokens)
        if self.workers.sum([sums], torch.float64, bool(error)):
            sums.zero_()
            spared = self.base.keep_values(False)  # what nothing needs goes first
            for place, slot in enumerate(slots):
                _, error = attempt(self._score, slots, [place], batch, tokens, rows, sums, 1)
                if error:
                    reasons[slot] = error
            reasons = first_reasons(self.workers.gather(reasons))
            self.workers.sum([sums], torch.float64)
            if not reasons and not spared:  # together they did not fit
                self.eval_tokens = max(1, self.eval_tokens // 2)
        scored = slice(part.start, part.stop)
        losses, *counted = sums[:, :, scored].tolist()
        likeliest = [[int(count) for count in row] for row in counted[0]] if hits else [None] * len(slots)
        return {
            slot: EvalResult(row, tokens[scored], reasons.get(slot, ""), hits=hit)
            for slot, row, hit in zip(slots, losses, likeliest, strict=True)
        }

    def _score(
        self,
        slots: Sequence[int],
        places: Sequence[int],
        batch: Batch,
        tokens: Sequence[int],
        rows: range,
        sums: Tensor,
        most: int,
    ) -> None:
        """Write the losses of `rows` of `batch` with the slots at `places` of `slots` into `sums` (1, slots, rows).

        Args:
            sums: of two, the second gets the hits.
            most: tokens of a pass, but at least one row.
        """
        start = rows.start
        found: list[Tensor] = []
        of: list[tuple[int, int]] = []  # of each part of `found` the place of its slot and its row
        chosen = [slots[place] for place in places]
        counts = dict.fromkeys(chosen, 1)

        def lay_out() -> Iterator[LaidOutPass]:
            for part in split_rows_by_tokens(batch, rows, most // len(chosen)):
                yield self._lay_out([Piece(slot, part) for slot in chosen], counts)

        with torch.no_grad():
            for each in self._kept.passes(self.slots, batch, (*chosen, rows, most), lay_out):
                hidden = self.base.hidden(each.plan, each.tokens, each.keep)
                found.append(self.base.head.scores(hidden, each.targets, len(sums) > 1))
                stop = start + len(each.pieces[0].batch.lengths)
                of += [(slots.index(piece.slot), row) for piece in each.pieces for row in range(start, stop)]
                start = stop
        if found:
            parts = np.split(read(torch.cat(found, 1)), np.cumsum([tokens[row] for _, row in of])[:-1], 1)
            for (place, row), part in zip(of, parts, strict=True):
                sums.numpy()[:, place, row] = part.sum(1)

    def _passes_of(self, batches: Mapping[int, Batch]) -> Iterable[LaidOutPass]:
        """The passes of a step: laid out before, or one by one as they are asked for."""
        ready, self._ahead = self._ahead, None
        steps = {slot: self.slots[slot].step for slot in batches}
        if ready is not None and ready.is_of(self.slots, batches, steps, self.pass_tokens):
            return ready.passes
        counts = {slot: batch.learned for slot, batch in batches.items()}
        return (self._lay_out(pieces, counts) for pieces in self._passes(batches))

    def _lay_out_step(self, batches: Mapping[int, Batch], later: int) -> StepLayout:
        """A step that begins so many steps later."""
        counts = {slot: batch.learned for slot, batch in batches.items()}
        steps = {slot: self.slots[slot].step + later for slot in batches}
        passes = tuple(self._lay_out(pieces, counts) for pieces in self._passes(batches, later))
        return StepLayout(self.slots, batches, steps, self.pass_tokens, passes)

    def _lay_out(self, pieces: Sequence[Piece], counts: Mapping[int, int]) -> LaidOutPass:
        """One pass, with what the layers need to know of it."""
        made = LaidOutPass.make(self._by_place(pieces), counts, self.share_prefixes, self.base.device)
        self.bank.lay_out(made.plan)
        return made

    def _passes(self, batches: Mapping[int, Batch], later: int = 0) -> list[list[Piece]]:
        """This worker's rows as forward passes, none larger than what is known to fit."""
        micro = micro_batches(batches, self.slots, self.workers, later)
        return [part for each in micro for part in split_pass(each, self.pass_tokens)]

    def _by_place(self, pieces: Sequence[Piece]) -> list[Piece]:
        """The pieces in the order of their slots' places in the bank."""
        return sorted(pieces, key=lambda piece: self.slots[piece.slot].place)
