"""One trial of a pack in its slot: its rows of the pack's vectors, how it begins, and what it takes along elsewhere.

Axes: P all numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.adapter.start import start_adapter
from bitlora.config.trial import LayerAdapter, TrialConfig
from bitlora.engine.slots.layout import PackNumbers
from bitlora.engine.slots.numbers import Vectors
from bitlora.engine.slots.optim import UNSCALED, LossScale, take_step
from bitlora.forward.host import Coming, fetch
from bitlora.forward.products import SlotTraits
from bitlora.quantizers.weights import QUANTIZERS


@dataclass(frozen=True, slots=True)
class SlotState:
    """All that a trial takes along into another slot, of another pack. Its batches and dropout masks are functions of its
    seed and its step alone, so there is no random state beside them. The vectors are in the order of
    `bitlora.engine.slots.vector.VectorLayout`."""

    step: int
    latent: Tensor  # (P,)
    exp_avg: Tensor  # (P,) AdamW's first moment
    exp_avg_sq: Tensor  # (P,) and second
    loss_scale: LossScale = UNSCALED


@dataclass(slots=True, eq=False)
class Slot:
    """One trial of a pack: its recipe, how far it has come, and its rows."""

    number: int
    config: TrialConfig
    layers: tuple[LayerAdapter | None, ...]
    """What its adapter is in each layer of the bank; None: it has none there."""
    vectors: Vectors
    """The pack's; this slot's numbers are those of `place`."""
    place: int
    taken: Tensor
    """() float32: the optimizer steps that AdamW has counted."""
    loss_scale: LossScale = UNSCALED
    step: int = 0
    parked: bool = False
    principal: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Of PiSSA, by the number of a layer: the A and B that it begins as, and that are taken out of the base."""

    @property
    def learns_scales(self) -> bool:
        """Are its scales trained?"""
        return QUANTIZERS[self.config.quantizer].learns_scales

    @property
    def ranks(self) -> tuple[int, ...]:
        """In each layer of the bank."""
        return tuple(layer.rank if layer else 0 for layer in self.layers)

    @property
    def likeness(self) -> tuple[bool, bool, bool, int, str, tuple[int, ...]]:
        """Slots that are equal in this stand next to each other, and their weights are quantized together."""
        c = self.config
        kind = [*QUANTIZERS].index(c.quantizer)
        return (c.activations != "int8", not c.dora, c.dropout == 0, kind, c.granularity, self.ranks)

    def traits(self, layer: int, place: int) -> SlotTraits:
        """What the forward pass must know of it in the bank's layer of that number.

        Args:
            place: among the slots that have room there.
        """
        found, c = self.layers[layer], self.config
        if found is None:
            return SlotTraits(place, 0, 0.0, False)
        return SlotTraits(place, found.rank, c.dropout, c.activations == "int8", c.dora)

    @property
    def latent(self) -> list[Latent]:
        """Views of its latent weights, layer by layer of those that it has."""
        return self._views(self.vectors.latent)

    @property
    def gradients(self) -> list[Latent]:
        """Views of its gradient: of the quantized weights after a backward pass, of the latent ones after
        `Bank.backward_to_latent`."""
        return self._views(self.vectors.grad)

    @property
    def grads(self) -> list[Tensor]:
        """The gradient, rows (P,) of the pack's (with zeros where another slot's rank is larger)."""
        return self.vectors.grad.of_slot(self.place)

    def grad_norm(self) -> Tensor:
        """Its 2-norm, ()."""
        norms = [torch.linalg.vector_norm(part) for part in self.grads]
        whole: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        return whole

    def start(self) -> None:
        """Begin, from the trial's seed alone (`bitlora.adapter.start`), or from the base's principal components."""
        if not self.principal:
            start_adapter(self.latent, self.config, [layer.experts for layer in self.layers if layer is not None])
        for layer, (a, b) in zip(self.latent, self.principal.values(), strict=False):
            layer.a.copy_(a)
            layer.b.copy_(b)

    @property
    def nbytes(self) -> int:
        """Bytes of its rows: weights, gradient, moments, and quantized copies where there are any."""
        v = self.vectors
        copies = 0 if v.quantized is v.latent else self._bytes(v.quantized)
        copies += sum(part.nbytes for parts in self.principal.values() for part in parts)
        copies += 0 if v.taken_out is None else self._bytes(v.taken_out)
        return 4 * self.vector_bytes + copies

    @property
    def vector_bytes(self) -> int:
        """Bytes of its gradient, or of any vector that is as long."""
        return self._bytes(self.vectors.grad)

    def _bytes(self, numbers: PackNumbers) -> int:
        return sum(part.nbytes for part in numbers.of_slot(self.place))

    def take_step(self, rate: float) -> None:
        """One step of AdamW along the gradient."""
        v, place = self.vectors, self.place
        vectors = [each.of_slot(place) for each in (v.latent, v.grad, v.exp_avg, v.exp_avg_sq)]
        sides = [v.layout.sides(segment) for segment in v.layout.segments_of(place)]
        take_step(vectors, self.taken, rate, self.config, sides)

    def fetch_state(self) -> Coming[SlotState]:
        """A copy of what the trial would go on from, on its way into host memory."""
        v, step, scale = self.vectors, self.step, self.loss_scale
        vectors = [_flat(self._views(vector)) for vector in (v.latent, v.exp_avg, v.exp_avg_sq)]
        return fetch(vectors, lambda copies: SlotState(step, copies[0], copies[1], copies[2], scale))

    def restore(self, state: SlotState) -> None:
        """Go on from `state`.

        Raises:
            ValueError: it is of another adapter.
        """
        latent = self.latent
        size = sum(part.numel() for layer in latent for part in layer.tensors)
        if state.latent.shape != (size,):
            raise ValueError(f"a state of {state.latent.numel()} weights for an adapter of {size}")
        self.step, self.loss_scale = state.step, state.loss_scale
        self.taken.fill_(state.step - state.loss_scale.skipped)
        vectors = self.vectors
        for vector, saved in (
            (vectors.latent, state.latent),
            (vectors.exp_avg, state.exp_avg),
            (vectors.exp_avg_sq, state.exp_avg_sq),
        ):
            views = [part for layer in self._views(vector) for part in layer.tensors]
            pieces = saved.to(views[0]).split([view.numel() for view in views])
            for view, part in zip(views, pieces, strict=True):
                view.copy_(part.view(view.shape))

    def fetch_latent(self) -> Coming[list[Latent]]:
        """Copies of the latent weights, layer by layer, on their way into host memory; of PiSSA with what was taken out of
        the base behind them, so that over the base as it is they are the adapter (`bitlora.config.trial.as_written`)."""
        layers = self.latent
        for place, (a, b) in enumerate(self.principal.values()):
            own = layers[place]
            layers[place] = own._replace(a=torch.cat([own.a, a]), b=torch.cat([own.b, -b], 1))
        like = [layer.map(lambda part: part.to("meta")) for layer in layers]

        def make(copies: list[Tensor]) -> list[Latent]:
            parts = iter(copies[0].split([part.numel() for layer in like for part in layer.tensors]))
            return [layer.map(lambda part: next(parts).view(part.shape)) for layer in like]

        return fetch([_flat(layers)], make)

    def _views(self, numbers: PackNumbers) -> list[Latent]:
        return [*numbers.matrices_of(self.place, self.learns_scales, self.config.dora).values()]


def _flat(layers: Sequence[Latent]) -> Tensor:
    """A copy (P,), in the model's order."""
    return torch.cat([part.reshape(-1) for layer in layers for part in layer.tensors])
