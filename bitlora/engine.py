"""The engine: many trials' adapters trained at once over one frozen base. It knows no Ray.

A slot is one flat vector of latent weights with its gradient and its optimizer; the layers see views of it. Between
optimizer steps trials are attached and detached; a step takes one batch for each slot and does one forward and one
backward pass over all of them.

The promise: what a trial goes through is what it would go through alone, in a plain loop over stock PEFT layers
(`tests/bitlora/test_promise.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bitlora.base import Base
from bitlora.config import AdapterConfig, TrialConfig
from bitlora.layout import Span
from bitlora.optim import clip, learning_rate, make_optimizer
from bitlora.packed_linear import SlotLayer
from bitlora.quantizers import quantize
from bitlora.workers import Workers

if TYPE_CHECKING:
    from bitlora.data import Rows

EVAL_TOKENS = 4096
"""Tokens of one forward pass in evaluation, about."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one trial, without padding, on the base's device."""

    tokens: Tensor  # (N,) int64
    learn: Tensor  # (N,) bool: the token is predicted, and counts in the loss
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Batch:
        """The rows as tensors."""
        tokens = torch.from_numpy(rows.tokens).to(device, torch.long)
        return cls(tokens, torch.from_numpy(rows.learn).to(device), tuple(rows.lengths.tolist()))

    def common_prefix(self) -> int:
        """How many first tokens all rows have in common, short of what is learned and of the token that predicts it."""
        starts = [sum(self.lengths[:row]) for row in range(len(self.lengths))]
        if len(starts) == 1:
            return 0
        limit = min(self.lengths)
        heads = torch.stack([self.tokens[start : start + limit] for start in starts])
        learn = torch.stack([self.learn[start : start + limit] for start in starts])
        differs = (heads != heads[0]).any(0) | learn.any(0)
        first = int(differs.nonzero()[0]) if bool(differs.any()) else limit
        return max(0, first - 1)

    def folded(self, shared: int) -> tuple[Tensor, Tensor]:
        """Tokens and mask with the `shared` first tokens of all rows but the first left out."""
        if not shared:
            return self.tokens, self.learn
        keep = torch.ones_like(self.learn)
        start = 0
        for length in self.lengths[:-1]:
            start += length
            keep[start : start + shared] = False
        return self.tokens[keep], self.learn[keep]

    def rows(self, start: int, stop: int) -> tuple[Batch, int]:
        """Rows `start` to `stop`, and the tokens before them."""
        before = sum(self.lengths[:start])
        lengths = self.lengths[start:stop]
        piece = slice(before, before + sum(lengths))
        return Batch(self.tokens[piece], self.learn[piece], lengths), before


@dataclass(frozen=True, slots=True)
class Piece:
    """What one slot has in one forward pass: its batch, a part of it, or rows to evaluate."""

    slot: int
    batch: Batch
    batch_start: int = 0
    batch_tokens: int = 0
    seed: tuple[int, int] | None = None
    """As in `bitlora.layout.Span`."""


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


@dataclass(frozen=True, slots=True)
class SlotState:
    """All that a trial takes along into another slot, of another pack. Its batches and dropout masks are functions of its
    seed and its step alone, so there is no random state beside them."""

    step: int
    latent: Tensor  # (P,)
    exp_avg: Tensor  # (P,) AdamW's first moment
    exp_avg_sq: Tensor  # (P,) and second


@dataclass(slots=True)
class Slot:
    """A trial in its place."""

    config: TrialConfig
    latent: Tensor  # (P,) float32, or float64: A and B of every layer behind each other
    grad: Tensor  # (P,)
    quantized: Tensor  # (P,) compute dtype; `latent` itself where nothing needs a copy
    optimizer: torch.optim.AdamW
    views: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(latent, quantized) of each matrix: A, B, A, B, … in the model's order."""
    step: int = 0
    parked: bool = False

    def restore(self, state: SlotState) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is of another adapter.
        """
        if state.latent.shape != self.latent.shape:
            raise ValueError(f"a state of {state.latent.numel()} weights for an adapter of {self.latent.numel()}")
        self.step = state.step
        self.latent.copy_(state.latent)
        moments = {"exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
        self.optimizer.state[self.latent] = {
            "step": torch.tensor(float(state.step), dtype=torch.float32, device=self.latent.device),
            **{name: moment.to(self.latent, copy=True) for name, moment in moments.items()},
        }

    def quantize(self) -> None:
        """Bring the quantized copies up to date with the latent weights."""
        if self.quantized is self.latent:
            return
        quantizer = QUANTIZERS[self.config.quantizer]
        for latent, quantized in self.views:
            quantized.copy_(quantizer(latent))


def scaling_of(config: AdapterConfig | TrialConfig) -> float:
    """What the adapter's output is multiplied by: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
    return config.alpha / (config.rank if config.scaling == "lora" else math.sqrt(config.rank))


class Engine:
    """Slots over a base.

    Args:
        base: loaded and packed; the engine owns its layout from now on.
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
        """Give a trial a slot: A uniform in ±1/sqrt(in) (as PEFT), seeded by the trial alone; B zero.

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
        layers = self.base.targets.values()
        shapes = [s for x in layers for s in ((config.rank, x.in_features), (x.out_features, config.rank))]
        sizes = [rows * columns for rows, columns in shapes]
        device = self.base.device
        latent = torch.zeros(sum(sizes), dtype=self.latent_dtype, device=device)
        grad = torch.zeros_like(latent)
        plain = config.quantizer == "none" and self.base.dtype == self.latent_dtype
        quantized = latent if plain else torch.zeros_like(latent, dtype=self.base.dtype)
        place = Slot(config, latent, grad, quantized, make_optimizer(latent, config))
        latent.grad = grad

        def matrices(flat: Tensor) -> list[Tensor]:
            return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]

        latents, copies, grads = matrices(latent), matrices(quantized), matrices(grad)
        place.views = list(zip(latents, copies, strict=True))
        generator = torch.Generator().manual_seed(config.seed)
        for index, layer in enumerate(layers):
            a, b = 2 * index, 2 * index + 1
            bound = layer.in_features**-0.5
            latents[a].copy_(torch.empty(latents[a].shape).uniform_(-bound, bound, generator=generator))
            layer.slots[slot] = SlotLayer(
                a=copies[a],
                b=copies[b],
                grad_a=grads[a],
                grad_b=grads[b],
                scaling=scaling_of(config),
                dropout=config.dropout,
                int8=config.activations == "int8",
            )
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

    def latent(self, slot: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Copies of a slot's latent weights: layer name -> (A (R, I), B (O, R))."""
        copies = [latent.clone() for latent, _ in self.slots[slot].views]
        return dict(zip(self.base.targets, zip(copies[::2], copies[1::2], strict=True), strict=True))

    def state(self, slot: int) -> SlotState:
        """A copy of what a trial that has taken a step would go on from."""
        place = self.slots[slot]
        moments = place.optimizer.state[place.latent]
        return SlotState(place.step, place.latent.clone(), moments["exp_avg"].clone(), moments["exp_avg_sq"].clone())

    def step(self, batches: Mapping[int, Batch]) -> dict[int, StepStats]:
        """One optimizer step of every slot in `batches`, each on its own batch; of many workers each computes its rows.

        A slot whose loss or gradient is not finite is parked: its weights stay as they were, and its neighbours' numbers
        are what they would have been.
        """
        learned = {slot: int(batch.learn.sum()) for slot, batch in batches.items()}
        totals = dict.fromkeys(sorted(batches), 0.0)
        for slot in batches:
            self.slots[slot].grad.zero_()
        for pieces in self._micro_batches(batches):
            sums = torch.stack([loss.sum() for loss in self._losses(pieces)])
            counts = torch.tensor([learned[piece.slot] for piece in pieces], dtype=sums.dtype, device=sums.device)
            (sums / counts).sum().backward()
            for piece, total in zip(pieces, sums.tolist(), strict=True):
                totals[piece.slot] += total
        sums = torch.tensor([*totals.values()], dtype=torch.float64)
        self.workers.sum([sums, *(self.slots[slot].grad for slot in totals)], self.latent_dtype)
        totals = dict(zip(totals, sums.tolist(), strict=True))
        stats = {}
        for slot, batch in batches.items():
            state = self.slots[slot]
            norm = clip(state.grad, state.config.max_grad_norm)
            loss = totals[slot] / learned[slot]
            state.parked = state.parked or not (math.isfinite(loss) and math.isfinite(norm))
            state.step += 1
            if not state.parked:
                state.optimizer.param_groups[0]["lr"] = learning_rate(state.config, state.step)
                state.optimizer.step()
                state.quantize()
            stats[slot] = StepStats(loss, sum(batch.lengths), norm, not state.parked)
        return stats

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
        positions = self.base.layout.arrange(spans, [piece.batch.lengths for piece in pieces], shared, self.base.device)
        tokens = torch.cat([tokens for tokens, _ in folded])
        learn = torch.cat([learn for _, learn in folded])
        logits = self.base.model(
            input_ids=tokens[None],
            position_ids=positions,
            use_cache=False,
            logits_to_keep=learn.nonzero().flatten() - 1,
        ).logits[0]
        losses = F.cross_entropy(logits.to(self.latent_dtype), tokens[learn], reduction="none")
        return list(losses.split([int(learn.sum()) for _, learn in folded]))
