"""The trials of a pack, each in its slot: all slots' latent weights, gradients and moments in one tensor each.

A row of a tensor is a slot's flat vector (`bitlora.engine.vector.PackLayout`), in each layer at the largest rank that a
slot has there, zero beyond the slot's own: those numbers have zero gradients, and AdamW leaves them zero. A layer sees the
matrices of all slots as one tensor, a view; one in which no slot has an adapter has none. When a slot comes or goes the
tensors are made anew.

Axes: S slots, P all numbers of a vector, L layers whose matrices are of one shape, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.adapter.start import principal_parts, start_adapter
from bitlora.config.sections import init_kind, init_rounds
from bitlora.config.trial import LayerAdapter, TrialConfig
from bitlora.engine.optim import UNSCALED, LossScale, take_step
from bitlora.engine.vector import PackLayout, Vectors, layer_parts, through_scales
from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.host import Coming, fetch
from bitlora.forward.multi_lora import GroupAdapters, LayerGroup, MultiLoraLinear
from bitlora.forward.products import NO_SLOTS, SlotTraits, ownership
from bitlora.quantizers.codes import quantize
from bitlora.quantizers.weights import QUANTIZERS


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

    def traits(self, layer: int) -> SlotTraits:
        """What the forward pass must know of it in the bank's layer of that number."""
        found, c = self.layers[layer], self.config
        if found is None:
            return SlotTraits(self.place, 0, 0.0, False)
        return SlotTraits(self.place, found.rank, c.dropout, c.activations == "int8", c.dora)

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
        copies = 0 if v.quantized is v.latent else v.quantized[self.place].nbytes
        copies += sum(part.nbytes for parts in self.principal.values() for part in parts)
        copies += 0 if v.taken_out is None else v.taken_out[self.place].nbytes
        return 4 * v.latent[self.place].nbytes + copies

    def take_step(self, rate: float) -> None:
        """One step of AdamW along the gradient."""
        v, place = self.vectors, self.place
        vectors = (v.latent[place], v.grad[place], v.exp_avg[place], v.exp_avg_sq[place])
        take_step(vectors, self.taken, rate, self.config, v.layout)

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
            pieces = saved.to(vector).split([view.numel() for view in views])
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

    def _views(self, vectors: Tensor) -> list[Latent]:
        return [*self.vectors.layout.of(vectors[self.place], self.place, self.learns_scales, self.config.dora).values()]


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
        self._owning: list[GroupAdapters] = []
        """For each way in which slots are alike in a layer, the adapters of one such layer."""
        self._nowhere = Vectors.make(PackLayout.make([], [], False), (), latent_dtype, None, device)

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
        if init_kind(config.init) == "pissa":
            found = init_rounds(config.init), config.seed
            slot.principal = {
                place: principal_parts(self._layers[place].principal(layer.rank, self._latent_dtype, *found), layer)
                for place, layer in enumerate(layers)
                if layer is not None
            }
        self._remake([*self.slots.values(), slot])
        try:
            slot.start() if state is None else slot.restore(state)
        except ValueError:
            self.remove(number)
            raise
        self.quantize([number])
        if state is None and config.dora:
            slot.vectors.start_magnitudes(slot.place)
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
            config, vectors, place = slots[0].config, slots[0].vectors, slots[0].place
            if vectors.quantized is vectors.latent:
                continue
            rows = slice(place, place + len(slots))
            latent, copies = vectors.latent[rows], vectors.quantized[rows]
            for kind in vectors.layout.kinds:
                if not (rank := kind.ranks[place]):
                    continue
                weights, into = kind.of(latent, rank), kind.multiplied(copies, rank)
                scales = kind.scales_of(latent, rank, slots[0].learns_scales)
                for part in layer_parts(weights):
                    learned = None if scales is None else scales[:, part]
                    made = quantize(config.quantizer, weights[:, part], kind.side, config.granularity, learned)
                    made = kind.by_expert(made)
                    if kind.side == "A":
                        into[:, part].copy_(made)
                    else:
                        torch.mul(made, vectors.scaling[kind][rows, part, None], out=into[:, part])
        if grown := [slot.place for slot in self.slots.values() if slot.config.dora]:
            next(iter(self.slots.values())).vectors.find_norms(self._layers, slice(min(grown), max(grown) + 1))

    def backward_to_latent(self, numbers: Collection[int]) -> None:
        """Turn the gradients of what is multiplied, summed over all workers, into those of what is trained.

        B was multiplied by its scaling, and so is its gradient; a magnitude was divided by its row's norm. Straight-through
        that is the latent weights' as it stands. Of learned scales s, `w_q = s * sign(w)`: they get
        `sum(sign(w) * dL/dw_q)` over their row, and w gets `s * dL/dw_q`.
        """
        for vectors, rows in self._runs(numbers):
            if vectors.quantized is not vectors.latent:
                for kind, scaling in vectors.scaling.items():
                    kind.matrices.of(vectors.grad[rows]).mul_(scaling[rows])
            for kind, norms in vectors.norms.items():
                kind.magnitudes_of(vectors.grad[rows]).div_(norms[rows])
        for slots in self._alike(numbers):
            vectors, place = slots[0].vectors, slots[0].place
            rows = slice(place, place + len(slots))
            vectors.put_in_order(place, rows)
            if not slots[0].learns_scales:
                continue
            latent, grads = vectors.latent[rows], vectors.grad[rows]
            for kind in vectors.layout.kinds:
                if rank := kind.ranks[place]:
                    scales, scales_grad = kind.scales_of(latent, rank, True), kind.scales_of(grads, rank, True)
                    assert scales is not None
                    assert scales_grad is not None
                    through_scales(kind.of(latent, rank), scales, kind.of(grads, rank), scales_grad)

    def lay_out(self, plan: ForwardPlan) -> None:
        """Make what the layers need to know of a pass before they are called with it."""
        for adapters in self._owning:
            ownership(plan, adapters.slots, adapters.a.dtype, self._device)

    def _alike(self, numbers: Collection[int] | None) -> Iterator[list[Slot]]:
        """These slots, those that are alike and next to each other together."""
        chosen = [slot for slot in self.slots.values() if numbers is None or slot.number in numbers]
        for _, alike in groupby(enumerate(chosen), key=lambda pair: (pair[1].likeness, pair[1].place - pair[0])):
            yield [slot for _, slot in alike]

    def _runs(self, numbers: Collection[int]) -> Iterator[tuple[Vectors, slice]]:
        """The rows of these slots, those that are next to each other together."""
        chosen = [slot for slot in self.slots.values() if slot.number in numbers]
        for _, pairs in groupby(enumerate(chosen), key=lambda pair: pair[1].place - pair[0]):
            run = [slot for _, slot in pairs]
            yield run[0].vectors, slice(run[0].place, run[-1].place + 1)

    def _remake(self, slots: Sequence[Slot]) -> None:
        """Make the tensors for these slots, with what those that were here had."""
        slots = sorted(slots, key=lambda slot: (slot.likeness, slot.number))
        together = self._together()
        layout = PackLayout.make(
            self._layers,
            [slot.ranks for slot in slots],
            any(slot.learns_scales for slot in slots),
            together.values(),
            any(slot.config.dora for slot in slots),
        )
        dtype = self._dtype
        if dtype == torch.float16 and any(slot.config.activations == "int8" for slot in slots):
            dtype = torch.float32
        scaling = [[layer.scaling if layer else 1.0 for layer in slot.layers] for slot in slots]
        plain = dtype == self._latent_dtype and all(QUANTIZERS[slot.config.quantizer].levels is None for slot in slots)
        plain = plain and all(factor == 1 for own in scaling for factor in own)
        plain = plain and all(kind.experts == 1 and kind.magnitudes is None for kind in layout.kinds)
        made = Vectors.make(layout, scaling, self._latent_dtype, None if plain else dtype, self._device)
        for place, slot in enumerate(slots):
            if slot.number in self.slots:
                _carry_over(slot, made, place)
        for place, slot in enumerate(slots):
            slot.vectors, slot.place = made, place
            if slot.principal:
                made.take_out(place, slot.principal)
        before, self.slots = self.slots, {slot.number: slot for slot in slots}
        self.quantize(before.keys() & self.slots.keys())
        self._give(made, together)

    def _together(self) -> dict[LayerGroup, list[int]]:
        """The numbers of the layers that are computed together, in their group's order."""
        number = {layer: place for place, layer in enumerate(self._layers)}
        groups = dict.fromkeys(layer.group for layer in self._layers)
        return {group: [number[layer] for layer in group.layers if layer in number] for group in groups}

    def _give(self, vectors: Vectors, together: Mapping[LayerGroup, Sequence[int]]) -> None:
        """Let the layers have the slots' matrices."""
        layout, layers = vectors.layout, self._layers
        weights, gradients = (layout.of(each, dora=True) for each in (vectors.quantized, vectors.grad))
        out = vectors.taken_out
        taken = {} if out is None else layout.of(out)
        shared: dict[tuple[SlotTraits, ...], Mapping[int, SlotTraits]] = {}
        for number, layer in enumerate(layers):
            layer.slots = NO_SLOTS
            if number in weights:
                traits = tuple(slot.traits(number) for slot in self.slots.values())
                layer.slots = shared.setdefault(traits, dict(zip(self.slots, traits, strict=True)))

        def adapters(group: LayerGroup, numbers: Sequence[int]) -> GroupAdapters:
            return GroupAdapters(
                layers[numbers[0]].slots,
                tuple(group.layers.index(layers[number]) for number in numbers),
                layout.a_of(vectors.quantized, numbers),
                tuple(weights[number].b for number in numbers),
                layout.a_of(vectors.grad, numbers),
                tuple(gradients[number].b for number in numbers),
                tuple(gain for number in numbers if (gain := weights[number].magnitude) is not None),
                tuple(gain for number in numbers if (gain := gradients[number].magnitude) is not None),
                None if out is None else layout.a_of(out, numbers),
                tuple(taken[number].b for number in numbers if number in taken),
            )

        drops = any(slot.config.dropout > 0 for slot in self.slots.values())  # each layer has a mask of its own
        for number, layer in enumerate(layers):
            layer.alone.adapters = (adapters(layer.alone, [number]),) if number in weights else ()
        for group, numbers in together.items():
            alike: dict[int, list[int]] = {}
            for number in numbers:
                if number in weights:
                    alike.setdefault(number if drops else id(layers[number].slots), []).append(number)
            group.adapters = tuple(adapters(group, own) for own in alike.values())
        parts = [part for layer in layers for part in layer.alone.adapters]
        self._owning = [*{id(part.slots): part for part in parts}.values()]


def _carry_over(slot: Slot, into: Vectors, place: int) -> None:
    """Copy a slot's latent weights and moments."""
    old = slot.vectors
    for before, after in ((old.latent, into.latent), (old.exp_avg, into.exp_avg), (old.exp_avg_sq, into.exp_avg_sq)):
        had = old.layout.of(before[slot.place], slot.place, slot.learns_scales, slot.config.dora)
        has = into.layout.of(after[place], place, slot.learns_scales, slot.config.dora)
        sources, targets = ([part for layer in each.values() for part in layer.tensors] for each in (had, has))
        torch._foreach_copy_(targets, sources)


def _flat(layers: Sequence[Latent]) -> Tensor:
    """A copy (P,), in the model's order."""
    return torch.cat([part.reshape(-1) for layer in layers for part in layer.tensors])
