"""Layers in 8 bits (bitsandbytes' `Linear8bitLt`; LLM.int8(), arXiv 2208.07339) that leave their inputs whole.

bitsandbytes (0.50.2) does so itself on a CPU in training: it multiplies by what the codes stand for. In evaluation, and on
a GPU always, it rounds the inputs to 8 bits too, and leaves those columns in 16 that hold an outlier in any row of a pass:
so a row hangs on its neighbours, and an adapter that was trained on a CPU is evaluated over something else. Here it is one
function, in training, evaluation and merged, on any device, and no outlier is rounded. The threshold of outliers then does
nothing.
"""

from __future__ import annotations

from typing import Any

from bitsandbytes.nn import Linear8bitLt
from torch import Tensor
from torch.nn import functional as F

from bitlora.base.linears import dequantized, dequantizer


class WholeInputLinear(Linear8bitLt):  # type: ignore[misc]
    """bitsandbytes' layer, which goes on being one for PEFT and transformers, with the product written out."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of x."""
        return F.linear(x, dequantized(self.weight.detach(), dequantizer(self), x.dtype), self.bias)


def leave_inputs_whole(model: Any) -> None:
    """Make every 8-bit layer of a model that has not run yet such a one."""
    for module in model.modules():
        if isinstance(module, Linear8bitLt):
            module.__class__ = WholeInputLinear
            module.weight.CB = None  # the weight itself once more, which would keep it when it moves
