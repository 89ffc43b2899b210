"""The numbers of all slots' adapters: latent weights, gradients, moments, and what is multiplied of them.

Axes: P all numbers of a segment's row, S slots, L layers of one shape, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

from bitlora.engine.slots.layout import Kind, PackLayout, PackNumbers
from bitlora.quantizers.weights import double_binary

QUANTIZED_AT_ONCE: Final = 2**22
"""Numbers that a quantizer is given in one call, about: its intermediate results are several times as many."""


class HasNorms(Protocol):
    """A layer, as far as DoRA hangs on it (`bitlora.forward.multi_lora.MultiLoraLinear`)."""

    def merged_norms(self, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor: ...


@dataclass(slots=True)
class Vectors:
    """The rows of all slots."""

    layout: PackLayout
    latent: PackNumbers
    """float32 or float64."""
    grad: PackNumbers
    exp_avg: PackNumbers
    """AdamW's first moment."""
    exp_avg_sq: PackNumbers
    """And second."""
    quantized: PackNumbers
    """What is multiplied, in the compute dtype, B times the scaling; in the place of DoRA's magnitudes what rows grow by,
    magnitude / norm - 1. `latent` itself where that is it."""
    scaling: Mapping[Kind, Tensor]  # of each kind of B: (S, L, 1, 1), the same dtype as `latent`
    norms: Mapping[Kind, Tensor]
    """Of each kind with magnitudes: (S, L, O, 1), the norms of the merged weights' rows; 1 without DoRA."""
    taken_out: PackNumbers | None = None
    """As `quantized`: A and -B of what slots have taken out of the base (PiSSA); None where none has."""

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
        latent, grad, first, second = (PackNumbers.zeros(layout, latent_dtype, device) for _ in range(4))
        quantized = latent if dtype is None else PackNumbers.zeros(layout, dtype, device)
        factors = {
            kind: torch.tensor(
                [[scaling[place][number] for number in kind.layers] for place in layout.segments[kind.segment].slots],
                dtype=latent_dtype,
            )
            for kind in layout.kinds
            if kind.side == "B"
        }
        on_device = {kind: factor[..., None, None].to(device) for kind, factor in factors.items()}
        norms = {
            kind: torch.ones(len(factors[kind]), *kind.magnitudes.shape, dtype=latent_dtype, device=device)
            for kind in layout.kinds
            if kind.magnitudes is not None
        }
        return cls(layout, latent, grad, first, second, quantized, on_device, norms)

    def rows(self, kind: Kind, places: slice) -> slice:
        """Which of the rows of a kind's segment are of the slots at these places."""
        return self.layout.segments[kind.segment].rows(places)

    def find_norms(self, layers: Sequence[HasNorms], places: slice) -> None:
        """The norms of the merged weights of slots with DoRA, and what their rows grow by.

        Args:
            places: of all slots that have it: how many are in a product must not hang on whether a neighbour is parked.
        """
        weights = self.quantized.matrices()
        for kind, norms in self.norms.items():
            rows = self.rows(kind, places)
            if rows.start == rows.stop:
                continue
            for at, number in enumerate(kind.layers):
                a, b = weights[number].a[rows], weights[number].b[rows]
                norms[rows, at, :, 0] = layers[number].merged_norms(a, b, norms.dtype)
            gains = kind.magnitudes_of(self.latent.of_kind(kind)[rows]) / norms[rows] - 1
            kind.magnitudes_of(self.quantized.of_kind(kind)[rows]).copy_(gains)

    def put_in_order(self, places: slice) -> None:
        """Put the gradients of experts, which lie as they are multiplied, where those of their latent weights are.

        Args:
            places: of slots that are alike.
        """
        for kind in self.layout.kinds:
            if kind.experts > 1 and (rank := kind.ranks[places.start]):
                grads = self.grad.of_kind(kind, places)
                found = kind.multiplied(grads, rank).clone()
                kind.matrices.of(grads).zero_()
                kind.by_expert(kind.of(grads, rank)).copy_(found)

    def take_out(self, place: int, parts: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Take a slot's B A, times its scaling, out of the base.

        Args:
            parts: the number of a layer -> A (R, I) and B (O, R).
        """
        if self.taken_out is None:
            self.taken_out = PackNumbers(self.layout, tuple(torch.zeros_like(part) for part in self.quantized.parts))
        for number, into in self.taken_out.matrices_of(place).items():
            for part, own in zip((into.a, into.b), parts[number], strict=True):
                part.copy_(own)
        own_place = slice(place, place + 1)
        for kind, scaling in self.scaling.items():
            rows = self.rows(kind, own_place)
            kind.matrices.of(self.taken_out.of_kind(kind)[rows]).mul_(-scaling[rows])

    def start_magnitudes(self, place: int) -> None:
        """Let them be the norms that there are: a slot with DoRA starts as one without."""
        own = slice(place, place + 1)
        for kind, norms in self.norms.items():
            kind.magnitudes_of(self.latent.of_kind(kind, own)).copy_(norms[self.rows(kind, own)])
            kind.magnitudes_of(self.quantized.of_kind(kind, own)).zero_()


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
