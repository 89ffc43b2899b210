"""DoRA (arXiv 2402.09353): the rows of a slot's merged weight, W + B A, brought to norms that are trained.

    y = bias + (magnitude / norm) * (W x + B A x)        norm: of each row of W + B A, a constant in the backward pass

A pack computes y without it for all slots, and adds `gain * (y - bias)` to the tokens of those that have it, with gain =
magnitude / norm - 1: at the start that is exactly zero. The norms are found once a step, without any slot's W + B A: with
B times the scaling they are those of W, and what the adapter adds to their squares hangs on W A^T and A A^T alone.

Axes: T tokens of the pack, N those of slots with DoRA, S slots, R rank, I in, O out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from bitlora.forward.host import send
from bitlora.forward.products import SlotProducts

CONVERTED_AT_ONCE: Final = 2**22
"""Numbers of a frozen weight that are converted to the latent weights' dtype at once, about."""


def square_norms(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Of each row: (O, I) -> (O,) in `dtype`."""
    return torch.cat([part.to(dtype).square().sum(1) for part in _parts(weight)])


def merged_norms(
    weight: Tensor,  # (O, I)
    squares: Tensor,  # (O,) `square_norms`
    a: Tensor,  # (S, R, I)
    b: Tensor,  # (S, O, R), times the scaling
) -> Tensor:
    """The norms of the rows of W + B A of each slot: (S, O) in the dtype of `squares`; none is zero."""
    a, b = a.to(squares), b.to(squares)
    columns = a.flatten(0, 1).T
    product = torch.cat([part.to(columns) @ columns for part in _parts(weight)])  # W A^T: (O, S * R)
    inside = 2 * product.view(len(product), *a.shape[:2]).transpose(0, 1) + b @ (a @ a.mT)
    return (squares + (inside * b).sum(-1)).clamp_min_(torch.finfo(squares.dtype).tiny).sqrt_()


def _parts(weight: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight, max(1, CONVERTED_AT_ONCE // weight.shape[1]))


@dataclass(frozen=True, slots=True, eq=False)
class DoraTokens:
    """The tokens of one pass whose slots have DoRA."""

    tokens: tuple[slice, ...]
    """Where they stand among the T; few, since such slots stand next to each other."""
    places: Tensor
    """(N,) int64: the place of each token's slot among the S."""

    @classmethod
    def of(cls, tokens: Sequence[tuple[int, int]], owners: Sequence[int], device: torch.device) -> DoraTokens | None:
        """None: there are none.

        Args:
            tokens: (start, stop), in order; those that are next to each other become one.
            owners: of each of them, the place of its slot.
        """
        if not tokens:
            return None
        joined: list[tuple[int, int]] = []
        for start, stop in tokens:
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, stop))
        places = np.repeat(owners, [stop - start for start, stop in tokens])
        return cls(tuple(slice(start, stop) for start, stop in joined), send([places], device)[0])

    def take(self, x: Tensor) -> Tensor:
        """Their rows of x (T, K), a copy: (N, K)."""
        return torch.cat([x[part] for part in self.tokens])

    def add(self, into: Tensor, rows: Tensor) -> None:
        """Add rows (N, K) to theirs of `into` (T, K)."""
        for part, own in zip(self.tokens, rows.split([part.stop - part.start for part in self.tokens]), strict=True):
            into[part] += own

    def grown(self, rows: Tensor, gain: Tensor) -> Tensor:
        """rows (N, O) times their slots' gain (S, O, 1)."""
        return rows * gain[..., 0].index_select(0, self.places).to(rows.dtype)

    def backward(
        self,
        products: SlotProducts,
        dy: Tensor,  # (T, O)
        whole: Tensor,  # (N, O): W x + B A x
        gain: Tensor,  # (S, O, 1)
        grad_gain: Tensor,  # (S, O, 1)
    ) -> tuple[Tensor, Tensor]:
        """Add the gradient of the gain; give dy as B and A see it, (T, O), and what of it is the gain's, (N, O)."""
        own = self.take(dy)
        each = torch.zeros_like(dy)
        self.add(each, own * whole)
        products.add_outer(grad_gain, each, each.new_ones(len(each), 1))
        grown = self.grown(own, gain)
        more = dy.clone()
        self.add(more, grown)
        return more, grown
