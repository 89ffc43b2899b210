"""The quantizers' formulas once more, as their papers have them: what every test holds the product against.

It shares no code with the product. A new quantizer needs a line in `FORMULAS`; the tests that go through all quantizers
(their values, codes and files, PEFT's layers, the promise) then hold it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Formula:
    """One quantizer."""

    quantize: Callable[[Tensor], Tensor]
    """A matrix (or one rank component) of any shape -> its quantized values, one scale for all of it."""
    values: int
    """Different values it gives, at most, for one scale."""
    bits: float
    """Of a code in the packed file."""
    size_matters: bool = False
    """It has an absolute term, so that small weights are not quantized like large ones."""


def binary(w: Tensor) -> Tensor:
    return torch.sign(w - torch.mean(w)) * torch.mean(torch.abs(w))


def ternary(w: Tensor) -> Tensor:
    absmean = torch.mean(torch.abs(w))
    return torch.clip(torch.round(w / (absmean / 2 + 1e-4)), -1, 1) * absmean


def absmean(w: Tensor) -> Tensor:
    mean = torch.mean(torch.abs(w))
    return torch.clip(torch.round(w / (mean if mean > 0 else 1.0)), -1, 1) * mean


def twn(w: Tensor) -> Tensor:
    kept = torch.abs(w) > 0.7 * torch.mean(torch.abs(w))
    scale = torch.abs(w)[kept].mean() if kept.any() else 0.0
    return torch.where(kept, torch.sign(w), torch.zeros_like(w)) * scale


def int2(w: Tensor) -> Tensor:
    levels = 1.25 * torch.mean(torch.abs(w)) * torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=w.dtype)
    return levels[(w[..., None] - levels).abs().argmin(-1)]


def absmax(w: Tensor, most: int) -> Tensor:
    step = torch.max(torch.abs(w)) / most
    return torch.round(w / step) * step if step > 0 else torch.zeros_like(w)


FORMULAS = {
    "none": Formula(lambda w: w, 0, 16),
    "binary": Formula(binary, 2, 1),
    "ternary": Formula(ternary, 3, 1.6, size_matters=True),
    "absmean": Formula(absmean, 3, 1.6),
    "twn": Formula(twn, 3, 1.6),
    "int2": Formula(int2, 4, 2),
    "int4": Formula(lambda w: absmax(w, 7), 15, 4),
    "int8": Formula(lambda w: absmax(w, 127), 255, 8),
}
"""Those whose scales are statistics of the weights; `double_binary` learns its scales and has tests of its own."""
