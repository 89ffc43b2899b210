"""Where each layer's A, B and learned scales stand in a flat vector: of one trial in a checkpoint, of a slot in a pack.

A trial's vector is layer by layer in the model's order, of each A, B, where a quantizer learns its scales those of A and
those of B, and with DoRA the magnitudes. A pack's vectors have in each layer the largest rank of its slots there,
nothing where none has an adapter.
All A of one shape stand together, and all B, so that what is done to each is done to all at once; those A that are given
one input stand behind each other, one matrix to the layers. AdamW, clipping and the sum over workers know nothing of layers
or quantizers.

Axes: P all numbers of a vector, S slots, L layers of one shape, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from bitlora.adapter.latent import Latent
from bitlora.quantizers.codes import Side
from bitlora.quantizers.weights import double_binary

QUANTIZED_AT_ONCE: Final = 2**22
"""Numbers that a quantizer is given in one call, about: its intermediate results are several times as many."""


class LinearShape(Protocol):
    """A linear layer, as far as its adapter's size hangs on it."""

    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def experts(self) -> int: ...


class HasNorms(Protocol):
    """A layer, as far as DoRA hangs on it (`bitlora.forward.multi_lora.MultiLoraLinear`)."""

    def merged_norms(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor: ...


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


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices of one shape in a pack's vectors, one behind the other, row by row."""

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
class Kind:
    """The matrices A, or B, of all layers in which they are of one shape, and each slot has one rank."""

    side: Side
    layers: tuple[int, ...]
    """Their numbers, in the order in which the matrices stand."""
    ranks: tuple[int, ...]
    """Of each slot there; 0: it has no adapter on them."""
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
    """Where everything of the adapters of a pack stands in their flat vectors."""

    kinds: tuple[Kind, ...]
    """Those of A first."""
    size: int
    """P."""

    @classmethod
    def make(
        cls,
        layers: Sequence[LinearShape],
        ranks: Sequence[Sequence[int]],
        learns_scales: bool,
        together: Iterable[Sequence[int]] = (),
        dora: bool = False,
    ) -> PackLayout:
        """The layout of the adapters of a pack's slots, with room for learned scales where any slot `learns_scales`, and
        for magnitudes where any has DoRA.

        Args:
            layers: in the model's order.
            ranks: of each slot its rank in each layer; 0: it has no adapter there.
            together: numbers of layers with one input, whose A stand behind each other where ranks are alike (`a_of`).
        """
        places = {number: (min(group), place) for group in together for place, number in enumerate(group)}
        inputs: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
        outputs: dict[tuple[int, int, tuple[int, ...]], list[int]] = {}
        for number in sorted(range(len(layers)), key=lambda number: places.get(number, (number, 0))):
            own = tuple(each[number] for each in ranks)
            if any(own):
                layer = layers[number]
                inputs.setdefault((layer.in_features, layer.experts, own), []).append(number)
                outputs.setdefault((layer.out_features, layer.experts, own), []).append(number)
        end = 0

        def stack(count: int, rows: int, columns: int) -> Stack:
            nonlocal end
            made = Stack(end, count, rows, columns)
            end = made.stop
            return made

        def kind(side: Side, numbers: Sequence[int], own: tuple[int, ...], rows: int, columns: int, each: int) -> Kind:
            matrices = stack(len(numbers), rows, columns)
            scales = stack(len(numbers), rows, 1) if learns_scales else None
            magnitudes = stack(len(numbers), rows, 1) if dora and side == "B" and each == 1 else None
            return Kind(side, tuple(numbers), own, matrices, scales, magnitudes, each)

        of_a = [kind("A", numbers, own, max(own), width, each) for (width, each, own), numbers in inputs.items()]
        of_b = [kind("B", numbers, own, width, max(own), each) for (width, each, own), numbers in outputs.items()]
        return cls((*of_a, *of_b), end)

    @property
    def sides(self) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Where in a vector the numbers of A are, with their learned scales, and where those of B, with the magnitudes."""
        stacks = [
            (kind.side, stack)
            for kind in self.kinds
            for stack in (kind.matrices, kind.scales, kind.magnitudes)
            if stack
        ]
        a, b = (
            tuple(slice(stack.offset, stack.stop) for which, stack in stacks if which == side) for side in ("A", "B")
        )
        return a, b

    def of(
        self, flat: Tensor, place: int | None = None, learns_scales: bool = False, dora: bool = False
    ) -> dict[int, Latent]:
        """Views of the matrices, by the number of their layer, in the model's order, as in `Kind.of`.

        Args:
            flat: (S, P), or (P,) of one slot.
            place: of the slot whose ranks count, and whose layers; None: the largest of each layer.
        """
        found: dict[Side, dict[int, tuple[Tensor, Tensor | None]]] = {"A": {}, "B": {}}
        magnitudes: dict[int, Tensor] = {}
        for kind in self.kinds:
            rank = max(kind.ranks) if place is None else kind.ranks[place]
            if not rank:
                continue
            matrices, scales = kind.of(flat, rank), kind.scales_of(flat, rank, learns_scales)
            for at, number in enumerate(kind.layers):
                own = None if scales is None else scales.select(-3, at)
                found[kind.side][number] = (matrices.select(-3, at), own)
                if dora and kind.magnitudes is not None:
                    magnitudes[number] = kind.magnitudes_of(flat).select(-3, at)
        of_a, of_b = found["A"], found["B"]
        return {n: Latent(of_a[n][0], of_b[n][0], of_a[n][1], of_b[n][1], magnitudes.get(n)) for n in sorted(of_a)}

    def a_of(self, flat: Tensor, numbers: Sequence[int]) -> Tensor:
        """A view of the A of layers that stand together, at their largest rank: (…, P) -> (…, layers * R, I)."""
        kind = next(kind for kind in self.kinds if kind.side == "A" and numbers[0] in kind.layers)
        place = kind.layers.index(numbers[0])
        assert kind.layers[place : place + len(numbers)] == tuple(numbers)
        return kind.matrices.of(flat)[..., place : place + len(numbers), :, :].flatten(-3, -2)


@dataclass(slots=True)
class Vectors:
    """The rows of all slots."""

    layout: PackLayout
    latent: Tensor  # (S, P) float32 or float64
    grad: Tensor  # (S, P), the same
    exp_avg: Tensor  # (S, P) AdamW's first moment
    exp_avg_sq: Tensor  # (S, P) and second
    quantized: Tensor
    """(S, P): what is multiplied, in the compute dtype, B times the scaling; in the place of DoRA's magnitudes what rows
    grow by, magnitude / norm - 1. `latent` itself where that is it."""
    scaling: Mapping[Kind, Tensor]  # of each kind of B: (S, L, 1, 1), the same dtype as `latent`
    norms: Mapping[Kind, Tensor]
    """Of each kind with magnitudes: (S, L, O, 1), the norms of the merged weights' rows; 1 without DoRA."""
    taken_out: Tensor | None = None
    """(S, P), as `quantized`: A and -B of what slots have taken out of the base (PiSSA); None where none has."""

    @classmethod
    def make(
        cls,
        layout: PackLayout,
        scaling: Sequence[Sequence[float]],
        latent_dtype: torch.dtype,
        dtype: torch.dtype | None,
        device: torch.device,
    ) -> Vectors:
        """All zero.

        Args:
            scaling: what each slot's outputs are multiplied by, in each layer.
            dtype: of `quantized`; None: it is `latent` itself.
        """
        size = (len(scaling), layout.size)
        latent, grad, first, second = (torch.zeros(size, dtype=latent_dtype, device=device) for _ in range(4))
        quantized = latent if dtype is None else torch.zeros(size, dtype=dtype, device=device)
        factors = {
            kind: torch.tensor([[own[number] for number in kind.layers] for own in scaling], dtype=latent_dtype)
            for kind in layout.kinds
            if kind.side == "B"
        }
        on_device = {kind: factor[..., None, None].to(device) for kind, factor in factors.items()}
        norms = {
            kind: torch.ones(len(scaling), *kind.magnitudes.shape, dtype=latent_dtype, device=device)
            for kind in layout.kinds
            if kind.magnitudes is not None
        }
        return cls(layout, latent, grad, first, second, quantized, on_device, norms)

    def find_norms(self, layers: Sequence[HasNorms], rows: slice) -> None:
        """The norms of the merged weights of slots with DoRA, and what their rows grow by.

        Args:
            rows: of all slots that have it: how many are in a product must not hang on whether a neighbour is parked.
        """
        weights = self.layout.of(self.quantized[rows])
        for kind, norms in self.norms.items():
            for at, number in enumerate(kind.layers):
                norms[rows, at, :, 0] = layers[number].merged_norms(weights[number].a, weights[number].b, norms.dtype)
            gains = kind.magnitudes_of(self.latent[rows]) / norms[rows] - 1
            kind.magnitudes_of(self.quantized[rows]).copy_(gains)

    def put_in_order(self, place: int, rows: slice) -> None:
        """Put the gradients of experts, which lie as they are multiplied, where those of their latent weights are.

        Args:
            rows: of slots that are alike; the first is at `place`.
        """
        for kind in self.layout.kinds:
            if (rank := kind.ranks[place]) and kind.experts > 1:
                found = kind.multiplied(self.grad[rows], rank).clone()
                kind.matrices.of(self.grad[rows]).zero_()
                kind.by_expert(kind.of(self.grad[rows], rank)).copy_(found)

    def take_out(self, place: int, parts: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Take a slot's B A, times its scaling, out of the base.

        Args:
            parts: the number of a layer -> A (R, I) and B (O, R).
        """
        if self.taken_out is None:
            self.taken_out = torch.zeros_like(self.quantized)
        for number, into in self.layout.of(self.taken_out[place], place).items():
            for part, own in zip((into.a, into.b), parts[number], strict=True):
                part.copy_(own)
        for kind, scaling in self.scaling.items():
            kind.matrices.of(self.taken_out[place]).mul_(-scaling[place])

    def start_magnitudes(self, place: int) -> None:
        """Let them be the norms that there are: a slot with DoRA starts as one without."""
        for kind, norms in self.norms.items():
            if kind.ranks[place]:
                kind.magnitudes_of(self.latent[place]).copy_(norms[place])
                kind.magnitudes_of(self.quantized[place]).zero_()


def through_scales(w: Tensor, scales: Tensor, grad: Tensor, scales_grad: Tensor) -> None:
    """Turn the gradient of what is multiplied, signs times learned scales, into that of both, in place."""
    signs, used = double_binary(w, scales)
    scales_grad.copy_((signs.mul_(grad)).sum(-1, keepdim=True))
    grad.mul_(used)


def layer_parts(stacked: Tensor) -> Iterator[slice]:
    """A stack of matrices (S, L, rows, columns) in parts, layer by layer where they are large."""
    layers = stacked.shape[1]
    each = max(1, QUANTIZED_AT_ONCE // max(1, stacked.numel() // layers))
    for start in range(0, layers, each):
        yield slice(start, start + each)
