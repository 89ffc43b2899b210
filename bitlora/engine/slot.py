"""A trial in its place: one flat vector of latent weights, with its gradient, its optimizer and its loss scale.

What stands where in the vector is `bitlora.engine.vector.VectorLayout`.

Axes: P all of a slot's numbers, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.config.trial import TrialConfig, scaling_of
from bitlora.engine.optim import UNSCALED, LossScale, make_optimizer
from bitlora.engine.vector import LinearShape, VectorLayout
from bitlora.forward.multi_lora import SlotAdapter
from bitlora.quantizers.weights import DOUBLE_BINARY_B, QUANTIZERS, double_binary


@dataclass(frozen=True, slots=True)
class SlotState:
    """All that a trial takes along into another slot, of another pack. Its batches and dropout masks are functions of its
    seed and its step alone, so there is no random state beside them."""

    step: int
    latent: Tensor  # (P,)
    exp_avg: Tensor  # (P,) AdamW's first moment
    exp_avg_sq: Tensor  # (P,) and second
    loss_scale: LossScale = UNSCALED


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
        layers: Sequence[LinearShape],
        latent_dtype: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config = config
        self.step = 0
        self.parked = False
        self.loss_scale = LossScale() if dtype == torch.float16 else UNSCALED
        self.layout = VectorLayout.make(layers, config.rank, QUANTIZERS[config.quantizer].learns_scales)
        self.vector = torch.zeros(self.layout.size, dtype=latent_dtype, device=device)
        self.grad = torch.zeros_like(self.vector)
        if dtype == torch.float16 and config.activations == "int8":
            dtype = torch.float32
        self._plain = QUANTIZERS[config.quantizer].levels is None and dtype == latent_dtype
        quantized = self.vector if self._plain else torch.zeros_like(self.vector, dtype=dtype)
        self.optimizer = make_optimizer(self.vector, config)
        self.vector.grad = self.grad
        self.latent = self.layout.of(self.vector)
        """Views of the vector, layer by layer."""
        self.gradients = self.layout.of(self.grad)
        """Of the quantized weights after a backward pass, of the latent ones after `backward_to_latent`."""
        self.quantized = self.layout.of(quantized)
        """What is multiplied, in the compute dtype; the latent weights themselves where nothing needs a copy."""
        self._start()

    def _start(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        for layer in self.latent:
            bound = layer.a.shape[1] ** -0.5
            layer.a.copy_(torch.empty(layer.a.shape).uniform_(-bound, bound, generator=generator))
            if layer.a_scales is not None:
                layer.a_scales.fill_(bound / 2)
                layer.b.copy_(torch.empty(layer.b.shape).normal_(0, DOUBLE_BINARY_B, generator=generator))

    @property
    def has_copies(self) -> bool:
        """Are the quantized weights tensors of their own? Else they are the latent ones."""
        return not self._plain

    def adapters(self) -> list[SlotAdapter]:
        """What each layer's forward pass needs, in order."""
        c = self.config
        return [
            SlotAdapter(
                a=quantized.a,
                b=quantized.b,
                grad_a=grad.a,
                grad_b=grad.b,
                scaling=scaling_of(c),
                dropout=c.dropout,
                int8=c.activations == "int8",
            )
            for quantized, grad in zip(self.quantized, self.gradients, strict=True)
        ]

    def latent_layers(self) -> list[Latent]:
        """Copies of the latent weights, layer by layer, in host memory."""
        return self.layout.of(_on_host(self.vector))

    def state(self) -> SlotState:
        """A copy of what the trial would go on from, in host memory."""
        zeros = torch.zeros_like(self.vector, device="cpu")
        moments = self.optimizer.state.get(self.vector) or {"exp_avg": zeros, "exp_avg_sq": zeros.clone()}
        first, second = _on_host(moments["exp_avg"]), _on_host(moments["exp_avg_sq"])
        return SlotState(self.step, _on_host(self.vector), first, second, self.loss_scale)

    def restore(self, state: SlotState) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is of another adapter.
        """
        if state.latent.shape != self.vector.shape:
            raise ValueError(f"a state of {state.latent.numel()} weights for an adapter of {self.vector.numel()}")
        self.step = state.step
        self.loss_scale = state.loss_scale
        self.vector.copy_(state.latent)
        taken = float(state.step - state.loss_scale.skipped)
        moments = {"exp_avg": state.exp_avg, "exp_avg_sq": state.exp_avg_sq}
        self.optimizer.state[self.vector] = {
            "step": torch.tensor(taken, dtype=torch.float32, device=self.vector.device),
            **{name: moment.to(self.vector, copy=True) for name, moment in moments.items()},
        }

    def quantize(self) -> None:
        """Bring the quantized copies up to date with the latent weights."""
        if self._plain:
            return
        for latent, into in zip(self.latent, self.quantized, strict=True):
            weights = latent.quantized(self.config)
            into.a.copy_(weights.a)
            into.b.copy_(weights.b)

    def backward_to_latent(self) -> None:
        """Turn the gradient of the quantized weights, summed over all workers, into that of what is trained.

        Straight-through it is the latent weights' as it stands. Of learned scales s, `w_q = s * sign(w)`: they get
        `sum(sign(w) * dL/dw_q)` over their row, and w gets `s * dL/dw_q`.
        """
        if not QUANTIZERS[self.config.quantizer].learns_scales:
            return
        for latent, grad in zip(self.latent, self.gradients, strict=True):
            _through_scales(latent.a, latent.a_scales, grad.a, grad.a_scales)
            _through_scales(latent.b, latent.b_scales, grad.b, grad.b_scales)


def _through_scales(w: Tensor, scales: Tensor | None, grad: Tensor, scales_grad: Tensor | None) -> None:
    assert scales is not None
    assert scales_grad is not None
    signs, used = double_binary(w, scales)
    scales_grad.copy_((signs.mul_(grad)).sum(1, keepdim=True))
    grad.mul_(used)


def _on_host(tensor: Tensor) -> Tensor:
    """A copy in host memory, where it may wait to be written; pinned where it comes from a GPU."""
    if tensor.device.type == "cpu":
        return tensor.clone()
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor)
