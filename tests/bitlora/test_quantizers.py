"""The quantizers held against the article's formulas, written out again, and autograd's straight-through gradient."""

import pytest
import torch
from torch.nn import functional as F

from bitlora.quantizers import QUANTIZERS, int8, int8_backward


def article(name, w):
    scale = w.abs().mean()
    if name == "binary":
        return (w - w.mean()).sign() * scale
    return torch.clip(torch.round(w / (1e-4 + scale / 2)), min=-1, max=1) * scale


@pytest.mark.parametrize("name", ["binary", "ternary"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights(name, dtype):
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    quantized = QUANTIZERS[name](w)
    assert torch.equal(quantized, article(name, w))
    assert len(quantized.unique()) == (2 if name == "binary" else 3)
    assert quantized.dtype == dtype


def test_full_precision_is_the_weight_itself():
    w = torch.randn(3, 4)
    assert QUANTIZERS["none"](w) is w


@pytest.mark.parametrize("name", ["none", "binary", "ternary"])
def test_zero_is_a_no_op(name):
    assert not QUANTIZERS[name](torch.zeros(8, 4)).any()


def reference(x):
    y = F.normalize(x, dim=-1) * x.shape[-1] ** -0.5
    scale = 127.0 / y.abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
    q = (y * scale).round().clamp_(-128, 127) / scale
    return y + (q - y).detach()


@pytest.mark.parametrize("width", [1, 5, 576])
def test_int8_and_its_gradient(width):
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(7, width, dtype=torch.float64, generator=generator)
    x[3] = 0
    x[4] *= 1e-14  # shorter than the smallest length that a row is divided by
    grad = torch.randn(7, width, dtype=torch.float64, generator=generator)
    leaf = x.clone().requires_grad_()
    reference(leaf).backward(grad)
    torch.testing.assert_close(int8(x), reference(x), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(int8_backward(grad, x), leaf.grad, rtol=1e-9, atol=1e-9 * float(leaf.grad.abs().max()))


@pytest.mark.parametrize("width", [3072, 8192])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_int8_at_large_widths_stays_finite_in_half_precision(dtype, width):
    x = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).to(dtype) * 100
    expected = reference(x.double())
    assert int8(x).dtype == dtype
    torch.testing.assert_close(int8(x).double(), expected, rtol=0.02, atol=float(expected.abs().max()) / 64)
    assert int8_backward(x, x).isfinite().all()
