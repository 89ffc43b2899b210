"""Where the matrices of all slots' adapters stand in a pack's vectors.

All A of one shape stand together, and all B, so that what is done to each is done to all at once; those A that are given
one input stand behind each other, one matrix to the layers. A layer has room for the largest rank that a slot has there,
and for those slots alone that have an adapter there: layers which the same slots have are a segment, a tensor with a row
for each of them. Where all slots have the same layers there is one. AdamW, clipping and the sum over workers know nothing
of layers or quantizers.

Axes: P all numbers of a segment's row, S slots, L layers of one shape, R rank, I in, O out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.engine.slots.vector import LinearShape
from bitlora.quantizers.codes import Side


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of one shape in a segment's rows, one behind the other, row by row."""

    offset: int
    count: int
    rows: int
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.count, self.rows, self.columns

    @property
    def stop(self) -> int:
        return self.offset + self.count * self.rows * self.columns

    def of(self, flat: Tensor) -> Tensor:
        """A view of them: (…, P) -> (…, L, rows, columns)."""
        stacked: Tensor = flat[..., self.offset : self.stop].unflatten(-1, self.shape)
        return stacked


@dataclass(frozen=True, slots=True)
class Segment:
    """Layers that the same slots have."""

    slots: tuple[int, ...]
    """Their places in the pack, in order: the rows of its tensor."""
    size: int
    """P."""

    def rows(self, places: slice) -> slice:
        """Which of its rows are of slots at these places."""
        return slice(bisect_left(self.slots, places.start), bisect_left(self.slots, places.stop))


@dataclass(frozen=True, slots=True)
class Kind:
    """The matrices A, or B, of all layers in which they are of one shape, and each slot has one rank."""

    side: Side
    layers: tuple[int, ...]
    """Their numbers, in the order in which the matrices stand."""
    ranks: tuple[int, ...]
    """Of each slot of the pack there; 0: it has no adapter on them."""
    segment: int
    """Where they stand."""
    matrices: Stack  # (L, R, I) or (L, O, R)
    scales: Stack | None  # (L, R, 1) or (L, O, 1)
    magnitudes: Stack | None  # (L, O, 1), of B alone
    experts: int = 1
    """E, of which each has a matrix there. R is then all of theirs, of A expert by expert, of B component by component, as
    PEFT has it."""

    def of(self, flat: Tensor, rank: int) -> Tensor:
        """A view of their first `rank` rank components: (…, P) -> (…, L, rank, I) or (…, L, O, rank)."""
        whole = self.matrices.of(flat)
        return whole[..., :rank, :] if self.side == "A" else whole[..., :rank]

    def magnitudes_of(self, flat: Tensor) -> Tensor:
        """A view of DoRA's magnitudes, of a kind of B: (…, P) -> (…, L, O, 1)."""
        assert self.magnitudes is not None
        return self.magnitudes.of(flat)

    def multiplied(self, flat: Tensor, rank: int) -> Tensor:
        """A view of their first `rank` rank components where the forward pass has them, in its copies and in the gradient
        that it gives: expert by expert, each with zeros beyond its own, (…, P) -> (…, L, E, rank / E, I) or (…, L, E, O,
        rank / E)."""
        stack, each = self.matrices, rank // self.experts
        rows, columns = stack.rows, stack.columns
        shape = (rows // self.experts, columns) if self.side == "A" else (rows, columns // self.experts)
        whole: Tensor = flat[..., stack.offset : stack.stop].unflatten(-1, (stack.count, self.experts, *shape))
        return whole[..., :each, :] if self.side == "A" else whole[..., :each]

    def by_expert(self, matrices: Tensor) -> Tensor:
        """A view of matrices as `of` has them in the shape that `multiplied` has."""
        rows, columns = matrices.shape[-2:]
        lead = matrices.shape[:-2]
        if self.side == "A":
            return matrices.view(*lead, self.experts, rows // self.experts, columns)
        return matrices.view(*lead, rows, columns // self.experts, self.experts).movedim(-1, -3)

    def scales_of(self, flat: Tensor, rank: int, learns_scales: bool) -> Tensor | None:
        """A view of their learned scales: (…, P) -> (…, L, rank, 1) or (…, L, O, 1); None where none are learned."""
        if not learns_scales:
            return None
        assert self.scales is not None
        whole = self.scales.of(flat)
        return whole[..., :rank, :] if self.side == "A" else whole


@dataclass(frozen=True, slots=True)
class PackLayout:
    """Where everything of the adapters of a pack stands."""

    kinds: tuple[Kind, ...]
    """Those of A first."""
    segments: tuple[Segment, ...]

    @classmethod
    def make(
        cls,
        layers: Sequence[LinearShape],
        ranks: Sequence[Sequence[int]],
        learns_scales: bool,
        together: Iterable[Sequence[int]] = (),
        dora: bool = False,
        present: Sequence[Sequence[bool]] = (),
    ) -> PackLayout:
        """The layout of the adapters of a pack's slots, with room for learned scales where any slot `learns_scales`, and
        for magnitudes where any has DoRA.

        Args:
            layers: in the model's order.
            ranks: of each slot its rank in each layer; 0: it has no adapter there.
            together: numbers of layers with one input, whose A stand behind each other where ranks are alike (`a_of`).
            present: of each slot whether it has room in each layer; left out: where it has an adapter.
        """
        present = present or [[rank > 0 for rank in own] for own in ranks]
        places = {number: (min(group), place) for group in together for place, number in enumerate(group)}
        inputs: dict[tuple[int, int, int, tuple[int, ...]], list[int]] = {}
        outputs: dict[tuple[int, int, int, tuple[int, ...]], list[int]] = {}
        whose: dict[tuple[int, ...], int] = {}
        segment_of: dict[int, int] = {}
        for number in sorted(range(len(layers)), key=lambda number: places.get(number, (number, 0))):
            own = tuple(each[number] for each in ranks)
            if any(own):
                layer, slots = layers[number], tuple(at for at, each in enumerate(present) if each[number])
                segment_of[number] = whose.setdefault(slots, len(whose))
                alike = (layer.experts, segment_of[number], own)
                inputs.setdefault((layer.in_features, *alike), []).append(number)
                outputs.setdefault((layer.out_features, *alike), []).append(number)
        ends = [0] * len(whose)

        def stack(segment: int, count: int, rows: int, columns: int) -> Stack:
            made = Stack(ends[segment], count, rows, columns)
            ends[segment] = made.stop
            return made

        def kind(side: Side, numbers: Sequence[int], own: tuple[int, ...], width: int) -> Kind:
            segment, each = segment_of[numbers[0]], layers[numbers[0]].experts
            rows, columns = (max(own), width) if side == "A" else (width, max(own))
            matrices = stack(segment, len(numbers), rows, columns)
            scales = stack(segment, len(numbers), rows, 1) if learns_scales else None
            magnitudes = stack(segment, len(numbers), rows, 1) if dora and side == "B" and each == 1 else None
            return Kind(side, tuple(numbers), own, segment, matrices, scales, magnitudes, each)

        kinds = [kind("A", numbers, own, width) for (width, *_, own), numbers in inputs.items()]
        kinds += [kind("B", numbers, own, width) for (width, *_, own), numbers in outputs.items()]
        return cls(tuple(kinds), tuple(Segment(slots, end) for slots, end in zip(whose, ends, strict=True)))

    def segments_of(self, place: int) -> list[int]:
        """In which segments a slot has a row."""
        return [number for number, segment in enumerate(self.segments) if place in segment.slots]

    def sides(self, segment: int) -> dict[Side, list[slice]]:
        """Where in a row of a segment the numbers of A are, with their learned scales, and where those of B, with the
        magnitudes."""
        found: dict[Side, list[slice]] = {"A": [], "B": []}
        for kind in self.kinds:
            if kind.segment == segment:
                stacks = [stack for stack in (kind.matrices, kind.scales, kind.magnitudes) if stack]
                found[kind.side] += [slice(stack.offset, stack.stop) for stack in stacks]
        return found


@dataclass(frozen=True, slots=True, eq=False)
class PackNumbers:
    """Numbers of all slots' adapters, such as their gradients: of each segment a tensor (S, P), with a row for each of its
    slots."""

    layout: PackLayout
    parts: tuple[Tensor, ...]

    @classmethod
    def zeros(cls, layout: PackLayout, dtype: torch.dtype, device: torch.device) -> PackNumbers:
        sizes = [(len(segment.slots), segment.size) for segment in layout.segments]
        return cls(layout, tuple(torch.zeros(size, dtype=dtype, device=device) for size in sizes))

    def of_slot(self, place: int) -> list[Tensor]:
        """A slot's: its row (P,) of each segment that it has."""
        found = ((part, segment.slots) for part, segment in zip(self.parts, self.layout.segments, strict=True))
        return [part[slots.index(place)] for part, slots in found if place in slots]

    def of_kind(self, kind: Kind, places: slice | None = None) -> Tensor:
        """The rows (S, P) in which matrices of a kind stand: of all slots that have room there, or of those at `places`."""
        part = self.parts[kind.segment]
        return part if places is None else part[self.layout.segments[kind.segment].rows(places)]

    def matrices(
        self, places: slice | None = None, learns_scales: bool = False, dora: bool = False
    ) -> dict[int, Latent]:
        """Views of the matrices, by the number of their layer, in the model's order, as in `Kind.of`: (S, rank, I) and
        (S, O, rank), of the largest rank there.

        Args:
            places: of the slots, which have equal layers and ranks; None: all that have room in a layer.
        """
        found: dict[Side, dict[int, tuple[Tensor, Tensor | None]]] = {"A": {}, "B": {}}
        magnitudes: dict[int, Tensor] = {}
        for kind in self.layout.kinds:
            rank = max(kind.ranks[slice(None) if places is None else places])
            if not rank:
                continue
            rows = self.of_kind(kind, places)
            matrices, scales = kind.of(rows, rank), kind.scales_of(rows, rank, learns_scales)
            for at, number in enumerate(kind.layers):
                own = None if scales is None else scales.select(-3, at)
                found[kind.side][number] = (matrices.select(-3, at), own)
                if dora and kind.magnitudes is not None:
                    magnitudes[number] = kind.magnitudes_of(rows).select(-3, at)
        of_a, of_b = found["A"], found["B"]
        return {n: Latent(of_a[n][0], of_b[n][0], of_a[n][1], of_b[n][1], magnitudes.get(n)) for n in sorted(of_a)}

    def matrices_of(self, place: int, learns_scales: bool = False, dora: bool = False) -> dict[int, Latent]:
        """The same of one slot, at its own ranks: (rank, I) and (O, rank)."""
        found = self.matrices(slice(place, place + 1), learns_scales, dora)
        return {number: layer.map(lambda part: part[0]) for number, layer in found.items()}

    def a_of(self, numbers: Sequence[int]) -> Tensor:
        """A view of the A of layers that stand together, at their largest rank: (S, layers * R, I)."""
        kind = next(kind for kind in self.layout.kinds if kind.side == "A" and numbers[0] in kind.layers)
        place = kind.layers.index(numbers[0])
        assert kind.layers[place : place + len(numbers)] == tuple(numbers)
        return kind.matrices.of(self.of_kind(kind))[..., place : place + len(numbers), :, :].flatten(-3, -2)
