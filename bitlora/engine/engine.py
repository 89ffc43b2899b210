"""The engine: many trials' adapters trained at once over one frozen base. It knows no Ray.

A slot is one flat vector of latent weights with its gradient and its optimizer (`bitlora.engine.slot`); the layers see
views of it. Between optimizer steps trials are attached and detached; a step takes one batch for each slot and does
one forward and one backward pass over all of them.

The promise: what a trial goes through is what it would go through alone, in a plain loop over stock PEFT layers
(`tests/bitlora/engine/test_promise.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn import functional as F

from bitlora.adapter.latent import Latent
from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch, Piece
from bitlora.engine.optim import clip, learning_rate
from bitlora.engine.slot import Slot, SlotState
from bitlora.engine.workers import Workers
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.inject import Base

EVAL_TOKENS = 4096
"""Tokens of one forward pass in evaluation, about."""


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


@dataclass(frozen=True, slots=True)
class EvalResult:
    """An evaluation, example by example."""

    losses: list[float]
    """Nats, summed over the example's completion tokens."""
    tokens: list[int]

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
        self.slots: dict[int, Slot] = {}
        self.latent_dtype = torch.promote_types(base.dtype, torch.float32)
        # Not in float64: transformers' norms run in float32 there, and whether gradients are summed before or after one
        # is then seen in the eighth digit.
        self.share_prefixes = base.dtype != torch.float64

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
        layers = [*self.base.targets.values()]
        place = Slot(config, layers, self.latent_dtype, self.base.dtype, self.base.device)
        for layer, adapter in zip(layers, place.adapters(), strict=True):
            layer.slots[slot] = adapter
        if state is not None:
            place.restore(state)
        place.quantize()
        self.slots[slot] = place
        return slot

    def detach(self, slot: int) -> None:
        """Empty a slot. Nothing of its trial stays behind.

        Raises:
            KeyError: it is empty.
        """
        del self.slots[slot]
        for layer in self.base.targets.values():
            del layer.slots[slot]

    def latent(self, slot: int) -> dict[str, Latent]:
        """Copies of a slot's latent weights: layer name -> A (R, I), B (O, R), and where scales are learned theirs."""
        return dict(zip(self.base.targets, self.slots[slot].latent_layers(), strict=True))

    def state(self, slot: int) -> SlotState:
        """A copy of what a trial would go on from."""
        return self.slots[slot].state()

    def step(self, batches: Mapping[int, Batch]) -> dict[int, StepStats]:
        """One optimizer step of every slot in `batches`, each on its own batch; of many workers each computes its rows.

        A slot whose loss or gradient is not finite is parked: its weights stay as they were, and its neighbours' numbers
        are what they would have been. In float16 a gradient that is not finite skips the slot's step instead, and halves
        its loss scale; the slot is parked when there is nothing left to halve.
        """
        learned = {slot: int(batch.learn.sum()) for slot, batch in batches.items()}
        totals = dict.fromkeys(sorted(batches), 0.0)
        for slot in batches:
            self.slots[slot].grad.zero_()
        for pieces in self._micro_batches(batches):
            sums = torch.stack([loss.sum() for loss in self._losses(pieces)])
            shares = [learned[piece.slot] / self.slots[piece.slot].loss_scale.value for piece in pieces]
            (sums / torch.tensor(shares, dtype=sums.dtype, device=sums.device)).sum().backward()
            for piece, total in zip(pieces, sums.tolist(), strict=True):
                totals[piece.slot] += total
        sums = torch.tensor([*totals.values()], dtype=torch.float64)
        self.workers.sum([sums, *(self.slots[slot].grad for slot in totals)], self.latent_dtype)
        totals = dict(zip(totals, sums.tolist(), strict=True))
        return {
            slot: self._update(self.slots[slot], totals[slot] / learned[slot], sum(batch.lengths))
            for slot, batch in batches.items()
        }

    def _update(self, state: Slot, loss: float, tokens: int) -> StepStats:
        """One slot's optimizer step along the gradient that all workers have summed."""
        if state.loss_scale.value != 1:
            state.grad.div_(state.loss_scale.value)
        state.backward_to_latent()
        norm = clip(state.grad, state.config.max_grad_norm)
        finite = math.isfinite(norm)
        skipped = not finite and math.isfinite(loss) and state.loss_scale.value > 1 and not state.parked
        state.parked = state.parked or not (math.isfinite(loss) and (finite or skipped))
        state.step += 1
        if self.base.dtype == torch.float16 and not state.parked:
            state.loss_scale = state.loss_scale.after(finite)
        if not state.parked and not skipped:
            state.optimizer.param_groups[0]["lr"] = learning_rate(state.config, state.step)
            state.optimizer.step()
            state.quantize()
        return StepStats(loss, tokens, norm, not state.parked, skipped)

    def evaluate(self, slots: Sequence[int], batch: Batch) -> dict[int, EvalResult]:
        """Score the rows of `batch` with each slot's adapter as it would be deployed: quantized, without dropout."""
        tokens = [int(part.sum()) for part in batch.learn.split(batch.lengths)]
        losses = torch.zeros(len(slots), len(tokens), dtype=torch.float64)
        start, end = self.workers.share(len(tokens))
        with torch.no_grad():
            while start < end:
                stop = start + 1
                while stop < end and sum(batch.lengths[start : stop + 1]) * len(slots) <= EVAL_TOKENS:
                    stop += 1
                rows, _ = batch.rows(start, stop)
                for index, loss in enumerate(self._losses([Piece(slot, rows) for slot in slots])):
                    parts = loss.double().split(tokens[start:stop])
                    losses[index, start:stop] = torch.stack([part.sum() for part in parts]).cpu()
                start = stop
        self.workers.sum([losses], torch.float64)
        return {slot: EvalResult(row, tokens) for slot, row in zip(slots, losses.tolist(), strict=True)}

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

    def _losses(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """The cross-entropy of every completion token, a tensor for each piece; the head runs at those positions only."""
        # A dropout mask is drawn for every token of every row, so there the rows have nothing in common.
        shared = [piece.batch.common_prefix() if self.share_prefixes and not piece.seed else 0 for piece in pieces]
        folded = [piece.batch.folded(common) for piece, common in zip(pieces, shared, strict=True)]
        ends = [*accumulate(len(tokens) for tokens, _ in folded)]
        spans = [
            Span(piece.slot, start, end, piece.batch_start, piece.batch_tokens, piece.seed)
            for piece, start, end in zip(pieces, [0, *ends], ends, strict=False)
        ]
        plan = ForwardPlan.make(spans, [piece.batch.lengths for piece in pieces], shared, self.base.device)
        tokens = torch.cat([tokens for tokens, _ in folded])
        learn = torch.cat([learn for _, learn in folded])
        logits = self.base.logits(plan, tokens, learn.nonzero().flatten() - 1)
        losses = F.cross_entropy(logits.to(self.latent_dtype), tokens[learn], reduction="none")
        return list(losses.split([int(learn.sum()) for _, learn in folded]))
