"""The trials of a pack, each in its slot: all slots' latent weights, gradients and moments in one tensor each.

A row of a tensor is a slot's flat vector (`bitlora.engine.slots.vector.PackLayout`), in each layer at the largest rank
that a slot has there, zero beyond the slot's own: those numbers have zero gradients, and AdamW leaves them zero. A layer
sees the matrices of all slots as one tensor, a view; one in which no slot has an adapter has none. When a slot comes or
goes the tensors are made anew.

Axes: S slots, P all numbers of a vector, L layers whose matrices are of one shape, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby

import torch

from bitlora.adapter.start import principal_parts
from bitlora.config.sections import init_kind, init_rounds
from bitlora.config.trial import LayerAdapter, TrialConfig
from bitlora.engine.slots.layout import PackLayout
from bitlora.engine.slots.numbers import Vectors, layer_parts, through_scales
from bitlora.engine.slots.optim import UNSCALED, LossScale
from bitlora.engine.slots.slot import Slot, SlotState
from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.multi_lora import GroupAdapters, LayerGroup, MultiLoraLinear
from bitlora.forward.products import NO_SLOTS, SlotTraits, ownership
from bitlora.quantizers.codes import quantize
from bitlora.quantizers.weights import QUANTIZERS


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
            places = slice(place, place + len(slots))
            for kind in vectors.layout.kinds:
                if not (rank := kind.ranks[place]):
                    continue
                rows = vectors.rows(kind, places)
                latent, copies = vectors.latent.of_kind(kind)[rows], vectors.quantized.of_kind(kind)[rows]
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
        for vectors, places in self._runs(numbers):
            if vectors.quantized is not vectors.latent:
                for kind, scaling in vectors.scaling.items():
                    kind.matrices.of(vectors.grad.of_kind(kind, places)).mul_(scaling[vectors.rows(kind, places)])
            for kind, norms in vectors.norms.items():
                kind.magnitudes_of(vectors.grad.of_kind(kind, places)).div_(norms[vectors.rows(kind, places)])
        for slots in self._alike(numbers):
            vectors, place = slots[0].vectors, slots[0].place
            places = slice(place, place + len(slots))
            vectors.put_in_order(places)
            if not slots[0].learns_scales:
                continue
            for kind in vectors.layout.kinds:
                if rank := kind.ranks[place]:
                    latent, grads = vectors.latent.of_kind(kind, places), vectors.grad.of_kind(kind, places)
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
        """The places of these slots, those that are next to each other together."""
        chosen = [slot for slot in self.slots.values() if slot.number in numbers]
        for _, pairs in groupby(enumerate(chosen), key=lambda pair: pair[1].place - pair[0]):
            run = [slot for _, slot in pairs]
            yield run[0].vectors, slice(run[0].place, run[-1].place + 1)

    def _remake(self, slots: Sequence[Slot]) -> None:
        """Make the tensors for these slots, with what those that were here had."""
        slots = sorted(slots, key=lambda slot: (slot.likeness, slot.number))
        together = self._together()
        ranks, learns_scales = [slot.ranks for slot in slots], any(slot.learns_scales for slot in slots)
        dora, present = any(slot.config.dora for slot in slots), [self._present(slot) for slot in slots]
        layout = PackLayout.make(self._layers, ranks, learns_scales, together.values(), dora, present)
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

    def _present(self, slot: Slot) -> list[bool]:
        """In which layers a slot has room: where it has an adapter, and in both matrices of routed experts where it has one
        on either, since tokens are sorted once for both."""
        routed = {layer.routes for layer, rank in zip(self._layers, slot.ranks, strict=True) if rank} - {None}
        return [rank > 0 or layer.routes in routed for layer, rank in zip(self._layers, slot.ranks, strict=True)]

    def _together(self) -> dict[LayerGroup, list[int]]:
        """The numbers of the layers that are computed together, in their group's order."""
        number = {layer: place for place, layer in enumerate(self._layers)}
        groups = dict.fromkeys(layer.group for layer in self._layers)
        return {group: [number[layer] for layer in group.layers if layer in number] for group in groups}

    def _give(self, vectors: Vectors, together: Mapping[LayerGroup, Sequence[int]]) -> None:
        """Let the layers have the slots' matrices."""
        layers, out = self._layers, vectors.taken_out
        weights, gradients = (each.matrices(dora=True) for each in (vectors.quantized, vectors.grad))
        taken = {} if out is None else out.matrices()
        room = {
            number: vectors.layout.segments[kind.segment].slots
            for kind in vectors.layout.kinds
            for number in kind.layers
        }
        shared: dict[tuple[SlotTraits, ...], Mapping[int, SlotTraits]] = {}
        for number, layer in enumerate(layers):
            layer.slots = NO_SLOTS
            if number in weights:
                traits = tuple(slot.traits(number, _place_in(room[number], slot.place)) for slot in self.slots.values())
                layer.slots = shared.setdefault(traits, dict(zip(self.slots, traits, strict=True)))

        def adapters(group: LayerGroup, numbers: Sequence[int]) -> GroupAdapters:
            return GroupAdapters(
                layers[numbers[0]].slots,
                tuple(group.layers.index(layers[number]) for number in numbers),
                vectors.quantized.a_of(numbers),
                tuple(weights[number].b for number in numbers),
                vectors.grad.a_of(numbers),
                tuple(gradients[number].b for number in numbers),
                tuple(gain for number in numbers if (gain := weights[number].magnitude) is not None),
                tuple(gain for number in numbers if (gain := gradients[number].magnitude) is not None),
                None if out is None else out.a_of(numbers),
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


def _place_in(slots: Sequence[int], place: int) -> int:
    """Which of `slots` is at `place`; behind the last: none of them."""
    return slots.index(place) if place in slots else len(slots)


def _carry_over(slot: Slot, into: Vectors, place: int) -> None:
    """Copy a slot's latent weights and moments."""
    old = slot.vectors
    for before, after in ((old.latent, into.latent), (old.exp_avg, into.exp_avg), (old.exp_avg_sq, into.exp_avg_sq)):
        had = before.matrices_of(slot.place, slot.learns_scales, slot.config.dora)
        has = after.matrices_of(place, slot.learns_scales, slot.config.dora)
        sources, targets = ([part for layer in each.values() for part in layer.tensors] for each in (had, has))
        torch._foreach_copy_(targets, sources)
