"""The frozen weights of a layer, or of layers that are given one input, as one matrix.

Layers that share an input are one product: their weights stand in one tensor, of which each layer's own is then a view.
Quantized it is the codes and their scales that stand together, so that one call dequantizes all, to the same numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bitlora.base.linears import dequantized, dequantizer, features, is_conv1d, plain_weight


@dataclass(frozen=True, slots=True, eq=False)
class FrozenWeights:
    """Of layers with O outputs together and I inputs."""

    weight: Tensor  # (O, I), or NF4 codes
    state: Any
    """What dequantizes the codes (`bitlora.base.linears.dequantizer`); None where the weights are plain."""
    bias: Tensor | None  # (O,)
    dtype: torch.dtype

    @classmethod
    def of(cls, layer: Any, dtype: torch.dtype) -> FrozenWeights:
        """Those of one layer: `nn.Linear`, one of bitsandbytes', or transformers' `Conv1D`.

        Args:
            dtype: what the products are computed in.
        """
        state = dequantizer(layer)
        bias = None if layer.bias is None else layer.bias.detach()
        return cls(plain_weight(layer) if state is None else layer.weight.detach(), state, bias, dtype)

    @classmethod
    def together(cls, layers: Sequence[Any], dtype: torch.dtype) -> FrozenWeights | None:
        """Those of layers with one input, of which each is given a view of its own. None: they are not of one kind, or
        blocks of NF4 scales run over a layer's end; nothing is changed then."""
        states = [dequantizer(layer) for layer in layers]
        weights = [layer.weight.detach() for layer in layers]
        first, state = weights[0], states[0]
        if any(map(is_conv1d, layers)):
            return None
        if any(weight.dtype != first.dtype or weight.device != first.device for weight in weights):
            return None
        bias = None
        if any(layer.bias is not None for layer in layers):
            rows = [features(layer)[1] for layer in layers]
            blank = next(layer.bias for layer in layers if layer.bias is not None).detach()
            bias = torch.cat(
                [blank.new_zeros(count) if layer.bias is None else layer.bias.detach()
                 for layer, count in zip(layers, rows, strict=True)]
            )  # fmt: skip
        if state is None or isinstance(state, Tensor):
            if any(type(each) is not type(state) for each in states):
                return None
            whole = torch.cat(weights)
            for layer, part in zip(layers, whole.split([len(weight) for weight in weights]), strict=True):
                layer.weight.data = part
            return cls(whole, None if state is None else torch.cat(states), bias, dtype)
        if not all(_stands_alone(each, state) for each in states):
            return None
        codes = torch.cat([weight.flatten() for weight in weights])
        scales = torch.cat([each.absmax for each in states])
        parts = zip(
            layers,
            codes.split([weight.numel() for weight in weights]),
            scales.split([len(each.absmax) for each in states]),
            states,
            weights,
            strict=True,
        )
        for layer, part, absmax, own, weight in parts:
            layer.weight.data = part.view(weight.shape)
            own.absmax = absmax
        both = copy.copy(state)
        both.absmax = scales
        both.shape = torch.Size([sum(each.shape[0] for each in states), state.shape[1]])
        return cls(codes[:, None], both, bias, dtype)

    def matrix(self) -> Tensor:
        """(O, I) in the compute dtype. Codes are dequantized at each call, exactly as bitsandbytes' own products do it."""
        return self.weight if self.state is None else dequantized(self.weight, self.state, self.dtype)

    def with_values(self) -> FrozenWeights:
        """The same numbers in the compute dtype in the place of codes, with nothing to dequantize."""
        return self if self.state is None else FrozenWeights(self.matrix(), None, self.bias, self.dtype)

    def rows(self, counts: Sequence[int]) -> list[FrozenWeights]:
        """Views of plain weights, of so many outputs each."""
        assert self.state is None
        biases = [None] * len(counts) if self.bias is None else [*self.bias.split([*counts])]
        return [
            FrozenWeights(weight, None, bias, self.dtype)
            for weight, bias in zip(self.weight.split([*counts]), biases, strict=True)
        ]


def _stands_alone(state: Any, like: Any) -> bool:
    """Can these codes stand before and behind others that `like` dequantizes? No block of theirs is shared."""
    if state is None or like.nested or state.nested:
        return False
    entries = state.shape[0] * state.shape[1]
    same = (state.blocksize, state.quant_type, state.dtype, state.shape[1])
    return entries % state.blocksize == 0 and same == (like.blocksize, like.quant_type, like.dtype, like.shape[1])


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
    """The norms of the rows of W + B A of each slot: (S, O) in the dtype of `squares`; none is zero. No slot's W + B A is
    made: what the adapter adds to the squares hangs on W A^T and A A^T alone."""
    a, b = a.to(squares), b.to(squares)
    columns = a.flatten(0, 1).T
    product = torch.cat([part.to(columns) @ columns for part in _parts(weight)])  # W A^T: (O, S * R)
    inside = 2 * product.view(len(product), *a.shape[:2]).transpose(0, 1) + b @ (a @ a.mT)
    return (squares + (inside * b).sum(-1)).clamp_min_(torch.finfo(squares.dtype).tiny).sqrt_()


def leading(parts: tuple[Tensor, Tensor, Tensor], most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of the first `most` singular vectors and values of U (O, K), S (K,) and V (K, I)."""
    u, s, v = parts
    return u[:, :most].clone(), s[:most].clone(), v[:most].clone()


def nearly_principal(weight: Tensor, rank: int, rounds: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """About the first `rank` singular vectors and values of a weight (O, I), U, S and V, fewer where there are not so many:
    by subspace iteration from `rank` random directions (arXiv 0909.4061, algorithms 4.4 and 5.1), as PEFT's `pissa_niter_N`
    has them of `torch.svd_lowrank`, which knows no generator of its own.

    Args:
        rounds: how many iterations.
        seed: of the directions, which are the same on all devices.
    """
    wide = len(weight) < weight.shape[1]
    tall = weight.mT if wide else weight
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(tall.shape[1], min(rank, *weight.shape), generator=generator, dtype=weight.dtype)
    basis, _ = torch.linalg.qr(tall @ drawn.to(weight.device))
    for _ in range(rounds):
        other, _ = torch.linalg.qr(tall.mT @ basis)
        basis, _ = torch.linalg.qr(tall @ other)
    u, s, v = torch.linalg.svd(basis.mT @ tall, full_matrices=False)
    return (v.mT, s, (basis @ u).mT) if wide else (basis @ u, s, v)


def _parts(weight: Tensor) -> tuple[Tensor, ...]:
    return torch.split(weight, max(1, CONVERTED_AT_ONCE // weight.shape[1]))
