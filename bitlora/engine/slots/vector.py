"""Where each layer's A, B and learned scales stand in a trial's flat vector, as its checkpoint has it: layer by layer in
the model's order, of each A, B, where a quantizer learns its scales those of A and of B, and with DoRA the magnitudes.

Axes: P all numbers of a vector, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from bitlora.adapter.latent import Latent


class LinearShape(Protocol):
    """A linear layer, as far as its adapter's size hangs on it."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def experts(self) -> int: ...


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
    magnitude: Block | None  # (O, 1)

    def of(self, flat: Tensor) -> Latent:
        """Views of them in a vector of this layout."""
        learned = (self.a_scales, self.b_scales, self.magnitude)
        return Latent(self.a.of(flat), self.b.of(flat), *(None if part is None else part.of(flat) for part in learned))


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """Where everything of an adapter stands in its flat vector."""

    layers: tuple[LayerBlocks, ...]
    size: int
    """P."""

    @classmethod
    def make(cls, layers: Iterable[tuple[LinearShape, int]], learns_scales: bool, dora: bool = False) -> VectorLayout:
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
            a_scales, b_scales = (block(rank, 1), block(layer.out_features, 1)) if learns_scales else (None, None)
            blocks.append(LayerBlocks(a, b, a_scales, b_scales, block(layer.out_features, 1) if dora else None))
        return cls(tuple(blocks), end)

    def of(self, flat: Tensor) -> list[Latent]:
        """Views of every layer's matrices in a vector (P,) of this layout: of the latent weights, their gradient, their
        moments."""
        return [layer.of(flat) for layer in self.layers]
