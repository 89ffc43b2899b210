"""A trial in its place: one flat vector of latent weights, with its gradient, its optimizer and its loss scale.

The vector holds A and B of every layer behind each other, in the model's order; where a quantizer learns its scales
(`double_binary`), theirs follow: A, B, scales of A, scales of B, A, B, … So AdamW, clipping, the sum over workers and
checkpoints know nothing of quantizers.

Axes: P all of a slot's numbers, R rank, I in, O out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from bitlora.config import AdapterConfig, TrialConfig
from bitlora.optim import UNSCALED, LossScale, make_optimizer
from bitlora.packed_linear import PackedLinear, SlotLayer
from bitlora.quantizers import Side, double_binary, quantize

DOUBLE_BINARY_B: Final = 0.01
"""Standard deviation of B's first latent weights in `double_binary`: only their signs are seen, so they cannot be zero."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """All that a trial takes along into another slot, of another pack. Its batches and dropout masks are functions of its
    seed and its step alone, so there is no random state beside them."""

    step: int
    latent: Tensor  # (P,)
    exp_avg: Tensor  # (P,) AdamW's first moment
    exp_avg_sq: Tensor  # (P,) and second
    loss_scale: LossScale = UNSCALED


@dataclass(slots=True)
class Matrix:
    """A or B of one layer: views of the slot's flat vectors."""

    side: Side
    latent: Tensor  # (R, I) or (O, R), float32 or float64
    grad: Tensor  # of the quantized weight after a backward pass, of the latent one after `hand_on`
    quantized: Tensor  # compute dtype; `latent` itself where nothing needs a copy
    scales: Tensor | None = None  # (R, 1) or (O, 1): learned, of `double_binary` alone
    scales_grad: Tensor | None = None


class Slot:
    """A trial's adapter over `layers`, started from the trial's seed alone.

    A is uniform in ±1/sqrt(in) (as PEFT) and B zero. In `double_binary` B's scales are zero instead, so that it starts as
    the same exact no-op; its latent weights are normal with standard deviation 0.01, and the scales of A begin at the mean
    size of its weights, 0.5/sqrt(in).

    Args:
        layers: in the model's order.
        latent_dtype: float32, or float64.
        dtype: what the products are computed in. In float16 with `int8` activations the adapter is computed in float32:
            what comes out of that norm is of the size 1/width, its product with A smaller still, and float16 has no
            numbers left there (its smallest normal one is 6e-5).
    """

    def __init__(
        self,
        config: TrialConfig,
        layers: Sequence[PackedLinear],
        latent_dtype: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.step = 0
        self.parked = False
        self.loss_scale = LossScale() if dtype == torch.float16 else UNSCALED
        rank = config.rank
        learns_scales = config.quantizer == "double_binary"
        shapes: list[tuple[int, int]] = []
        for layer in layers:
            shapes += [(rank, layer.in_features), (layer.out_features, rank)]
            shapes += [(rank, 1), (layer.out_features, 1)] * learns_scales
        sizes = [rows * columns for rows, columns in shapes]
        self.latent = torch.zeros(sum(sizes), dtype=latent_dtype, device=device)
        self.grad = torch.zeros_like(self.latent)
        if dtype == torch.float16 and config.activations == "int8":
            dtype = torch.float32
        self._plain = config.quantizer == "none" and dtype == latent_dtype
        quantized = self.latent if self._plain else torch.zeros_like(self.latent, dtype=dtype)
        self.optimizer = make_optimizer(self.latent, config)
        self.latent.grad = self.grad

        def cut(flat: Tensor) -> list[Tensor]:
            return [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]

        parts = [*zip(cut(self.latent), cut(self.grad), cut(quantized), strict=True)]
        each = 4 if learns_scales else 2
        self.matrices: list[tuple[Matrix, Matrix]] = []
        """(A, B) of each layer."""
        for first in range(0, len(parts), each):
            a, b = Matrix("A", *parts[first]), Matrix("B", *parts[first + 1])
            if learns_scales:
                a.scales, a.scales_grad, _ = parts[first + 2]
                b.scales, b.scales_grad, _ = parts[first + 3]
            self.matrices.append((a, b))
        self._start()

    def _start(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        for a, b in self.matrices:
            bound = a.latent.shape[1] ** -0.5
            a.latent.copy_(torch.empty(a.latent.shape).uniform_(-bound, bound, generator=generator))
            if a.scales is not None:
                a.scales.fill_(bound / 2)
                b.latent.copy_(torch.empty(b.latent.shape).normal_(0, DOUBLE_BINARY_B, generator=generator))

    def layers(self) -> list[SlotLayer]:
        """What each layer's forward pass needs, in order."""
        c = self.config
        return [
            SlotLayer(
                a=a.quantized,
                b=b.quantized,
                grad_a=a.grad,
                grad_b=b.grad,
                scaling=scaling_of(c),
                dropout=c.dropout,
                int8=c.activations == "int8",
            )
            for a, b in self.matrices
        ]

    def weights(self) -> list[tuple[Tensor, ...]]:
        """Copies of the latent weights, layer by layer: (A, B), or (A, B, scales of A, scales of B)."""
        return [
            tuple(t.clone() for t in (a.latent, b.latent, a.scales, b.scales) if t is not None)
            for a, b in self.matrices
        ]

    def state(self) -> SlotState:
        """A copy of what the trial would go on from."""
        moments = self.optimizer.state.get(self.latent)
        first, second = (
            (moments["exp_avg"].clone(), moments["exp_avg_sq"].clone())
            if moments
            else (torch.zeros_like(self.latent), torch.zeros_like(self.latent))
        )
        return SlotState(self.step, self.latent.clone(), first, second, self.loss_scale)

    def restore(self, state: SlotState) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is of another adapter.
        """
        if state.latent.shape != self.latent.shape:
            raise ValueError(f"a state of {state.latent.numel()} weights for an adapter of {self.latent.numel()}")
        self.step = state.step
        self.loss_scale = state.loss_scale
        self.latent.copy_(state.latent)
        taken = float(state.step - state.loss_scale.skipped)
        moments = {"exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
        self.optimizer.state[self.latent] = {
            "step": torch.tensor(taken, dtype=torch.float32, device=self.latent.device),
            **{name: moment.to(self.latent, copy=True) for name, moment in moments.items()},
        }

    def quantize(self) -> None:
        """Bring the quantized copies up to date with the latent weights."""
        if self._plain:
            return
        c = self.config
        for matrix in (m for pair in self.matrices for m in pair):
            matrix.quantized.copy_(quantize(c.quantizer, matrix.latent, matrix.side, c.granularity, matrix.scales))

    def hand_on(self) -> None:
        """Turn the gradient of the quantized weights, summed over all workers, into that of what is trained.

        Straight-through it is the latent weights' as it stands. Of learned scales s, `w_q = s * sign(w)`: they get
        `sum(sign(w) * dL/dw_q)` over their row, and w gets `s * dL/dw_q`.
        """
        if self.config.quantizer != "double_binary":
            return
        for matrix in (m for pair in self.matrices for m in pair):
            assert matrix.scales is not None
            assert matrix.scales_grad is not None
            signs, scales = double_binary(matrix.latent, matrix.scales)
            matrix.scales_grad.copy_((signs.mul_(matrix.grad)).sum(1, keepdim=True))
            matrix.grad.mul_(scales)


def scaling_of(config: AdapterConfig | TrialConfig) -> float:
    """What the adapter's output is multiplied by: alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv 2312.03732)."""
    return config.alpha / (config.rank if config.scaling == "lora" else math.sqrt(config.rank))
