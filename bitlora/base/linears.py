"""The layers that are linear: `nn.Linear`, bitsandbytes' of it, and transformers' `Conv1D` (GPT-2), whose weight lies the
other way round. In NF4 a `Conv1D` is bitsandbytes' layer like any other: transformers turns its weight over first.
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
        if is_conv1d(linear) or getattr(linear, "source_cls", None) is Conv1D:  # what transformers put into NF4
            plain, weight = Conv1D(outputs, inputs), weight.T.contiguous()
        else:
            plain = nn.Linear(inputs, outputs, bias=False)
    plain.weight = nn.Parameter(weight, requires_grad=False)
    plain.bias = linear.bias
    return plain  # type: ignore[no-any-return]
