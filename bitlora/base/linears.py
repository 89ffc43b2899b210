"""The layers that are linear: `nn.Linear`, bitsandbytes' of it, and transformers' `Conv1D` (GPT-2), whose weight lies the
other way round. Quantized, a `Conv1D` is bitsandbytes' layer like any other: transformers turns its weight over first.

Quantized is a layer's weight in NF4, blocks of codes that are places in a table (`Linear4bit`), or in 8 bits, whole numbers
with a scale for each row (`Linear8bitLt`).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn


def is_conv1d(module: nn.Module) -> bool:
    """Is it transformers' `Conv1D`?"""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def is_linear(module: nn.Module) -> bool:
    """Is it a layer that can have an adapter?"""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def features(linear: nn.Module) -> tuple[int, int]:
    """How many inputs it has, and how many outputs."""
    module: Any = linear
    return (module.nx, module.nf) if is_conv1d(linear) else (module.in_features, module.out_features)


def dequantizer(linear: nn.Module) -> Any:
    """What the codes of its weight become values with: in NF4 bitsandbytes' `QuantState`, in 8 bits the largest size in
    each row, (out,) float32; None: its weight is plain."""
    module: Any = linear
    state = getattr(module.weight, "quant_state", None)
    if state is not None or module.weight.dtype != torch.int8:
        return state
    scales = getattr(module.weight, "SCB", None)
    return module.state.SCB if scales is None else scales  # where bitsandbytes puts them in the first pass


def is_quantized(linear: nn.Module) -> bool:
    """Is its weight in NF4 or in 8 bits?"""
    return dequantizer(linear) is not None


def dequantized(codes: Tensor, by: Any, dtype: torch.dtype) -> Tensor:
    """What codes stand for, (out, in) in `dtype`: exactly what bitsandbytes' own products multiply by.

    Args:
        by: `dequantizer`'s.
    """
    if isinstance(by, Tensor):
        return codes.to(dtype).mul_(by.mul(1 / 127)[:, None])
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(codes, by).to(dtype)  # type: ignore[no-any-return]


def weight_values(linear: nn.Module) -> Tensor:
    """Its weight (out, in), whatever it is kept in: in the dtype of NF4's values, in float32 where it is in 8 bits."""
    by = dequantizer(linear)
    if by is None:
        return plain_weight(linear)
    codes = cast(Tensor, linear.weight).detach()
    return dequantized(codes, by, torch.float32 if isinstance(by, Tensor) else by.dtype)


def plain_weight(linear: nn.Module) -> Tensor:
    """Its weight (out, in), of a layer that is not quantized."""
    weight = cast(Tensor, linear.weight).detach()
    return weight.T if is_conv1d(linear) else weight


def same_kind(linear: nn.Module, weight: Tensor) -> nn.Module:
    """A layer without quantization in the place of `linear`, as the base's own code has it there.

    Args:
        weight: (out, in), what it shall multiply by; its bias is the layer's.
    """
    from transformers.pytorch_utils import Conv1D

    inputs, outputs = features(linear)
    plain: Any
    with torch.device("meta"):
        if is_conv1d(linear) or getattr(linear, "source_cls", None) is Conv1D:  # what transformers has quantized
            plain, weight = Conv1D(outputs, inputs), weight.T.contiguous()
        else:
            plain = nn.Linear(inputs, outputs, bias=False)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = linear.bias
    return plain  # type: ignore[no-any-return]
