"""Where each layer's A, B and learned scales stand in a flat vector: of one trial in a checkpoint, of a slot in a pack.

A trial's vector is layer by layer in the model's order, of each A, B, and where a quantizer learns its scales those of A
and those of B. A pack's vectors have in each layer the largest rank of its slots there, nothing where none has an adapter,
and all matrices of one shape stand together, so that what is done to each is done to all at once; AdamW, clipping and the
sum over workers know nothing of layers or quantizers.

Axes: P all numbers of a vector, S slots, L layers of one shape, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent


class LinearShape(Protocol):
    """A linear layer, as far as its adapter's size hangs on it."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Block:
    """One matrix in the vector, row by row."""

    offset: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        return self.offset + self.rows * self.columns

    def of(self, flat: Tensor) -> Tensor:
        """A view of the matrix in a vector of this layout: (P,) -> (rows, columns)."""
        return flat[self.offset : self.stop].view(self.rows, self.columns)


@dataclass(frozen=True, slots=True)
class LayerBlocks:
    """The matrices of one layer's adapter."""

    a: Block  # (R, I)
    b: Block  # (O, R)
    a_scales: Block | None  # (R, 1)
    b_scales: Block | None  # (O, 1)

    def of(self, flat: Tensor) -> Latent:
        """Views of them in a vector of this layout."""
        return Latent(
            self.a.of(flat),
            self.b.of(flat),
            None if self.a_scales is None else self.a_scales.of(flat),
            None if self.b_scales is None else self.b_scales.of(flat),
        )


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """Where everything of an adapter stands in its flat vector."""

    layers: tuple[LayerBlocks, ...]
    size: int
    """P."""

    @classmethod
    def make(cls, layers: Iterable[tuple[LinearShape, int]], learns_scales: bool) -> VectorLayout:
        """The layout of an adapter over `layers`, which are in the model's order, each with its rank there."""
        blocks: list[LayerBlocks] = []
        end = 0

        def block(rows: int, columns: int) -> Block:
            nonlocal end
            made = Block(end, rows, columns)
            end = made.stop
            return made

        for layer, rank in layers:
            a, b = block(rank, layer.in_features), block(layer.out_features, rank)
            scales = (block(rank, 1), block(layer.out_features, 1)) if learns_scales else (None, None)
            blocks.append(LayerBlocks(a, b, *scales))
        return cls(tuple(blocks), end)

    def of(self, flat: Tensor) -> list[Latent]:
        """Views of every layer's matrices in a vector (P,) of this layout: of the latent weights, their gradient, their
        moments."""
        return [layer.of(flat) for layer in self.layers]


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of one shape in a pack's vectors, one behind the other, row by row."""

    offset: int
    count: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        return self.offset + self.count * self.rows * self.columns

    def of(self, flat: Tensor) -> Tensor:
        """A view of them: (…, P) -> (…, L, rows, columns)."""
        stacked: Tensor = flat[..., self.offset : self.stop].unflatten(-1, (self.count, self.rows, self.columns))
        return stacked


@dataclass(frozen=True, slots=True)
class Kind:
    """The adapters of all layers of one shape, in which each slot has one rank."""

    layers: tuple[int, ...]
    """Their numbers, in the model's order."""
    ranks: tuple[int, ...]
    """Of each slot there; 0: it has no adapter on them."""
    a: Stack  # (L, R, I)
    b: Stack  # (L, O, R)
    a_scales: Stack | None  # (L, R, 1)
    b_scales: Stack | None  # (L, O, 1)

    def of(self, flat: Tensor, rank: int, learns_scales: bool) -> Latent:
        """Views of their first `rank` rank components: (…, P) -> (…, L, rank, I), (…, L, O, rank), and where they are
        learned the scales (…, L, rank, 1), (…, L, O, 1)."""
        a, b = self.a.of(flat)[..., :rank, :], self.b.of(flat)[..., :rank]
        if not learns_scales:
            return Latent(a, b)
        assert self.a_scales is not None
        assert self.b_scales is not None
        return Latent(a, b, self.a_scales.of(flat)[..., :rank, :], self.b_scales.of(flat))


@dataclass(frozen=True, slots=True)
class PackLayout:
    """Where everything of the adapters of a pack stands in their flat vectors."""

    kinds: tuple[Kind, ...]
    size: int
    """P."""

    @classmethod
    def make(cls, layers: Sequence[LinearShape], ranks: Sequence[Sequence[int]], learns_scales: bool) -> PackLayout:
        """The layout of the adapters of a pack's slots, with room for learned scales where any slot `learns_scales`.

        Args:
            layers: in the model's order.
            ranks: of each slot its rank in each layer; 0: it has no adapter there.
        """
        alike: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
        for number, layer in enumerate(layers):
            own = tuple(each[number] for each in ranks)
            if any(own):
                alike.setdefault((layer.in_features, layer.out_features, own), []).append(number)
        kinds: list[Kind] = []
        end = 0

        def stack(count: int, rows: int, columns: int) -> Stack:
            nonlocal end
            made = Stack(end, count, rows, columns)
            end = made.stop
            return made

        for (inputs, outputs, own), numbers in alike.items():
            count, rank = len(numbers), max(own)
            a, b = stack(count, rank, inputs), stack(count, outputs, rank)
            scales = (stack(count, rank, 1), stack(count, outputs, 1)) if learns_scales else (None, None)
            kinds.append(Kind(tuple(numbers), own, a, b, *scales))
        return cls(tuple(kinds), end)

    @property
    def sides(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where in a vector the numbers of A are, with their learned scales, and where those of B."""
        stacks = [((kind.a, kind.a_scales), (kind.b, kind.b_scales)) for kind in self.kinds]
        a, b = (
            tuple(slice(stack.offset, stack.stop) for pair in stacks for stack in pair[side] if stack is not None)
            for side in (0, 1)
        )
        return a, b

    def of(self, flat: Tensor, place: int | None = None, learns_scales: bool = False) -> dict[int, Latent]:
        """Views of the matrices, by the number of their layer, in the model's order, as in `Kind.of`.

        Args:
            flat: (S, P), or (P,) of one slot.
            place: of the slot whose ranks count, and whose layers; None: the largest of each layer.
        """
        layers: dict[int, Latent] = {}
        for kind in self.kinds:
            rank = max(kind.ranks) if place is None else kind.ranks[place]
            if rank:
                stacked = kind.of(flat, rank, learns_scales)
                for at, number in enumerate(kind.layers):
                    layers[number] = stacked.map(lambda part, at=at: part.select(-3, at))  # type: ignore[misc]
        return {number: layers[number] for number in sorted(layers)}


@dataclass(slots=True)
class Vectors:
    """The rows of all slots."""

    layout: PackLayout
    latent: Tensor  # (S, P) float32 or float64
    grad: Tensor  # (S, P), the same
    exp_avg: Tensor  # (S, P) AdamW's first moment
    exp_avg_sq: Tensor  # (S, P) and second
    quantized: Tensor  # (S, P) what is multiplied, in the compute dtype; `latent` itself where nothing needs a copy

    @classmethod
    def make(
        cls, layout: PackLayout, slots: int, latent_dtype: torch.dtype, dtype: torch.dtype | None, device: torch.device
    ) -> Vectors:
        """All zero. `dtype`: of `quantized`; None: it is `latent` itself."""
        size = (slots, layout.size)
        latent, grad, first, second = (torch.zeros(size, dtype=latent_dtype, device=device) for _ in range(4))
        quantized = latent if dtype is None else torch.zeros(size, dtype=dtype, device=device)
        return cls(layout, latent, grad, first, second, quantized)
