"""The trials of a pack, each in its slot: all slots' latent weights, gradients and moments in one tensor each.

A row of a tensor is a slot's flat vector (`bitlora.engine.vector.PackLayout`), in each layer at the largest rank that a
slot has there, zero beyond the slot's own: those numbers have zero gradients, and AdamW leaves them zero. A layer sees the
matrices of all slots as one tensor, a view; one in which no slot has an adapter has none. When a slot comes or goes the
tensors are made anew.

Axes: S slots, P all numbers of a vector, L layers of one shape, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.config.trial import LayerAdapter, TrialConfig
from bitlora.engine.optim import UNSCALED, LossScale, take_step
from bitlora.engine.vector import PackLayout, Vectors
from bitlora.forward.multi_lora import NO_SLOTS, LayerAdapters, MultiLoraLinear, SlotTraits
from bitlora.quantizers.weights import DOUBLE_BINARY_B, QUANTIZERS, double_binary

QUANTIZED_AT_ONCE: Final = 2**22
"""Numbers that a quantizer is given in one call, about: its intermediate results are several times as many."""


@dataclass(frozen=True, slots=True)
class SlotState:
    """All that a trial takes along into another slot, of another pack. Its batches and dropout masks are functions of its
    seed and its step alone, so there is no random state beside them. The vectors are in the order of
    `bitlora.engine.vector.VectorLayout`."""

    step: int
    latent: Tensor  # (P,)
    exp_avg: Tensor  # (P,) AdamW's first moment
    exp_avg_sq: Tensor  # (P,) and second
    loss_scale: LossScale = UNSCALED


@dataclass(slots=True, eq=False)
class Slot:
    """One trial of a pack: its recipe, how far it has come, and its row."""

    number: int
    config: TrialConfig
    layers: tuple[LayerAdapter | None, ...]
    """What its adapter is in each layer of the bank; None: it has none there."""
    vectors: Vectors
    """The pack's; this slot's numbers are their row `place`."""
    place: int
    taken: Tensor
    """() float32: the optimizer steps that AdamW has counted."""
    loss_scale: LossScale = UNSCALED
    step: int = 0
    parked: bool = False

    @property
    def learns_scales(self) -> bool:
        """Are its scales trained?"""
        return QUANTIZERS[self.config.quantizer].learns_scales

    @property
    def ranks(self) -> tuple[int, ...]:
        """In each layer of the bank."""
        return tuple(layer.rank if layer else 0 for layer in self.layers)

    @property
    def likeness(self) -> tuple[bool, bool, int, str, tuple[int, ...]]:
        """Slots that are equal in this stand next to each other, and their weights are quantized together."""
        c = self.config
        return (c.activations != "int8", c.dropout == 0, [*QUANTIZERS].index(c.quantizer), c.granularity, self.ranks)

    def traits(self, layer: int) -> SlotTraits:
        """What the forward pass must know of it in the bank's layer of that number."""
        found, c = self.layers[layer], self.config
        if found is None:
            return SlotTraits(self.place, 0, 0.0, 0.0, False)
        return SlotTraits(self.place, found.rank, found.scaling, c.dropout, c.activations == "int8")

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
    def grad(self) -> Tensor:
        """The gradient, a row of the pack's (with zeros where another slot's rank is larger)."""
        return self.vectors.grad[self.place]

    def start(self) -> None:
        """Begin, from the trial's seed alone.

        A is uniform in ±1/sqrt(in) (as PEFT) and B zero. In `double_binary` B's scales are zero instead, so that it starts
        as the same exact no-op; its latent weights are normal with standard deviation 0.01, and the scales of A begin at
        the mean size of its weights, 0.5/sqrt(in).
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        for layer in self.latent:
            bound = layer.a.shape[1] ** -0.5
            layer.a.copy_(torch.empty(layer.a.shape).uniform_(-bound, bound, generator=generator))
            if layer.a_scales is not None:
                layer.a_scales.fill_(bound / 2)
                layer.b.copy_(torch.empty(layer.b.shape).normal_(0, DOUBLE_BINARY_B, generator=generator))

    @property
    def nbytes(self) -> int:
        """Bytes of its rows: weights, gradient, moments, and quantized copies where there are any."""
        v = self.vectors
        copies = 0 if v.quantized is v.latent else v.quantized[self.place].nbytes
        return 4 * v.latent[self.place].nbytes + copies

    def take_step(self, rate: float) -> None:
        """One step of AdamW along the gradient."""
        v, place = self.vectors, self.place
        vectors = (v.latent[place], v.grad[place], v.exp_avg[place], v.exp_avg_sq[place])
        take_step(vectors, self.taken, rate, self.config, v.layout)

    def state(self) -> SlotState:
        """A copy of what the trial would go on from, in host memory."""
        vectors = self.vectors
        latent, first, second = (
            _on_host(_flat(self._views(vector))) for vector in (vectors.latent, vectors.exp_avg, vectors.exp_avg_sq)
        )
        return SlotState(self.step, latent, first, second, self.loss_scale)

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
            parts = saved.to(vector).split([view.numel() for view in views])
            for view, part in zip(views, parts, strict=True):
                view.copy_(part.view(view.shape))

    def latent_layers(self) -> list[Latent]:
        """Copies of the latent weights, layer by layer, in host memory."""
        layers = self.latent
        parts = iter(_on_host(_flat(layers)).split([part.numel() for layer in layers for part in layer.tensors]))
        return [Latent(*(next(parts).view(part.shape) for part in layer.tensors)) for layer in layers]

    def _views(self, vectors: Tensor) -> list[Latent]:
        return [*self.vectors.layout.of(vectors[self.place], self.place, self.learns_scales).values()]


class Bank:
    """The adapters of all slots over `layers`.

    Args:
        layers: in the model's order.
        latent_dtype: float32, or float64.
        dtype: what the base computes in. In float16 with a slot of `int8` activations the adapters are computed in float32:
            what comes out of that norm is of the size 1/width, its product with A smaller still, and float16 has no
            numbers left there (its smallest normal one is 6e-5).
    """

    def __init__(
        self, layers: Sequence[MultiLoraLinear], latent_dtype: torch.dtype, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots: dict[int, Slot] = {}
        self._layers = layers
        self._latent_dtype = latent_dtype
        self._dtype = dtype
        self._device = device
        self._nowhere = Vectors.make(PackLayout.make([], [], False), 0, latent_dtype, None, device)

    def add(
        self,
        number: int,
        config: TrialConfig,
        layers: Sequence[LayerAdapter | None],
        state: SlotState | None = None,
    ) -> Slot:
        """Give a trial the slot `number`, which must be free: at its start, or to go on from `state`.

        Args:
            layers: what its adapter is in each of the bank's layers; None: it has none there.

        Raises:
            ValueError: the state is of another adapter.
        """
        scale = LossScale() if self._dtype == torch.float16 else UNSCALED
        taken = torch.zeros((), dtype=torch.float32, device=self._device)
        slot = Slot(number, config, tuple(layers), self._nowhere, 0, taken, scale)
        self._remake([*self.slots.values(), slot])
        try:
            slot.start() if state is None else slot.restore(state)
        except ValueError:
            self.remove(number)
            raise
        self.quantize([number])
        return slot

    def remove(self, number: int) -> None:
        """Nothing of the slot stays behind.

        Raises:
            KeyError: there is none of that number.
        """
        gone = self.slots[number]
        self._remake([slot for slot in self.slots.values() if slot is not gone])

    def quantize(self, numbers: Collection[int] | None = None) -> None:
        """Bring the quantized copies of these slots, or of all, up to date with their latent weights."""
        for slots in self._alike(numbers):
            first = slots[0]
            vectors, quantizer = first.vectors, QUANTIZERS[first.config.quantizer]
            if vectors.quantized is vectors.latent:
                continue
            rows = slice(first.place, first.place + len(slots))
            if quantizer.levels is None:
                vectors.quantized[rows].copy_(vectors.latent[rows])
                continue
            into = self._stacks(slots, vectors.quantized, False)
            for latent, copies in zip(self._stacks(slots, vectors.latent, first.learns_scales), into, strict=True):
                for part, copy in zip(_parts(latent), _parts(copies), strict=True):
                    weights = part.quantized(first.config)
                    copy.a.copy_(weights.a)
                    copy.b.copy_(weights.b)

    def backward_to_latent(self, numbers: Collection[int]) -> None:
        """Turn the gradients of the quantized weights, summed over all workers, into those of what is trained.

        Straight-through it is the latent weights' as it stands. Of learned scales s, `w_q = s * sign(w)`: they get
        `sum(sign(w) * dL/dw_q)` over their row, and w gets `s * dL/dw_q`.
        """
        for slots in self._alike(numbers):
            if not slots[0].learns_scales:
                continue
            vectors = slots[0].vectors
            grads = self._stacks(slots, vectors.grad, True)
            for latent, grad in zip(self._stacks(slots, vectors.latent, True), grads, strict=True):
                _through_scales(latent.a, latent.a_scales, grad.a, grad.a_scales)
                _through_scales(latent.b, latent.b_scales, grad.b, grad.b_scales)

    def _alike(self, numbers: Collection[int] | None) -> Iterator[list[Slot]]:
        """These slots, those that are alike and next to each other together."""
        chosen = [slot for slot in self.slots.values() if numbers is None or slot.number in numbers]
        for _, alike in groupby(enumerate(chosen), key=lambda pair: (pair[1].likeness, pair[1].place - pair[0])):
            yield [slot for _, slot in alike]

    def _stacks(self, slots: Sequence[Slot], vectors: Tensor, learns_scales: bool) -> Iterator[Latent]:
        """Views of the matrices of alike slots, (S, L, R, I) and so on, for each shape of layer."""
        first = slots[0]
        rows = vectors[first.place : first.place + len(slots)]
        for kind in first.vectors.layout.kinds:
            if rank := kind.ranks[first.place]:
                yield kind.of(rows, rank, learns_scales)

    def _remake(self, slots: Sequence[Slot]) -> None:
        """Make the tensors for these slots, with what those that were here had."""
        slots = sorted(slots, key=lambda slot: (slot.likeness, slot.number))
        layout = PackLayout.make(
            self._layers, [slot.ranks for slot in slots], any(slot.learns_scales for slot in slots)
        )
        dtype = self._dtype
        if dtype == torch.float16 and any(slot.config.activations == "int8" for slot in slots):
            dtype = torch.float32
        plain = dtype == self._latent_dtype and all(QUANTIZERS[slot.config.quantizer].levels is None for slot in slots)
        made = Vectors.make(layout, len(slots), self._latent_dtype, None if plain else dtype, self._device)
        for place, slot in enumerate(slots):
            if slot.number in self.slots:
                _carry_over(slot, made, place)
        for place, slot in enumerate(slots):
            slot.vectors, slot.place = made, place
        before, self.slots = self.slots, {slot.number: slot for slot in slots}
        self.quantize(before.keys() & self.slots.keys())
        weights, gradients = layout.of(made.quantized), layout.of(made.grad)
        shared: dict[tuple[SlotTraits, ...], Mapping[int, SlotTraits]] = {}
        for number, layer in enumerate(self._layers):
            if number not in weights:
                layer.slots, layer.adapters = NO_SLOTS, None
                continue
            traits = tuple(slot.traits(number) for slot in slots)
            layer.slots = shared.setdefault(traits, dict(zip(self.slots, traits, strict=True)))
            weight, gradient = weights[number], gradients[number]
            layer.adapters = LayerAdapters(weight.a, weight.b, gradient.a, gradient.b)


def _carry_over(slot: Slot, into: Vectors, place: int) -> None:
    """Copy a slot's latent weights and moments."""
    old = slot.vectors
    for before, after in ((old.latent, into.latent), (old.exp_avg, into.exp_avg), (old.exp_avg_sq, into.exp_avg_sq)):
        had = old.layout.of(before[slot.place], slot.place, slot.learns_scales)
        has = into.layout.of(after[place], place, slot.learns_scales)
        sources, targets = ([part for layer in each.values() for part in layer.tensors] for each in (had, has))
        torch._foreach_copy_(targets, sources)


def _parts(stacked: Latent) -> Iterator[Latent]:
    """Stacks of matrices in parts, layer by layer where they are large."""
    layers = stacked.a.shape[-3]
    each = max(1, QUANTIZED_AT_ONCE // max(1, max(part.numel() for part in stacked.tensors) // layers))
    for start in range(0, layers, each):
        yield stacked.map(_layers(start, start + each))


def _layers(start: int, stop: int) -> Callable[[Tensor], Tensor]:
    return lambda part: part[:, start:stop]


def _through_scales(w: Tensor, scales: Tensor | None, grad: Tensor, scales_grad: Tensor | None) -> None:
    assert scales is not None
    assert scales_grad is not None
    signs, used = double_binary(w, scales)
    scales_grad.copy_((signs.mul_(grad)).sum(-1, keepdim=True))
    grad.mul_(used)


def _flat(layers: Sequence[Latent]) -> Tensor:
    """A copy (P,), in the model's order."""
    return torch.cat([part.reshape(-1) for layer in layers for part in layer.tensors])


def _on_host(tensor: Tensor) -> Tensor:
    """It in host memory, where it may wait to be written; pinned where it comes from a GPU."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor)
