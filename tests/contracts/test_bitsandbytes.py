"""What the product takes from bitsandbytes that nobody promised it: what a 4-bit layer is, and that it keeps its weights.

A failure shows the docstring of its test, which says who relies on what is gone.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from bitsandbytes.nn.modules import has_avx512bf16
from torch import Tensor, nn
from torch.nn import functional as F


def _layer(repacks: bool = False, dtype: torch.dtype = torch.float32) -> tuple[Linear4bit, Tensor]:
    """A layer in NF4 as transformers loads it, frozen; and the weight it was made of."""
    torch.manual_seed(0)
    layer = Linear4bit(64, 128, bias=True, compute_dtype=dtype, quant_type="nf4")
    weight = layer.weight.data.clone()
    layer = layer.to("cpu").requires_grad_(False).eval()
    layer.support_avx512bf16_for_cpu = repacks
    return layer, weight


def test_a_4_bit_layer_is_a_linear_layer() -> None:
    """bitlora.base.info.block_linears, bitlora.adapter.peft_layers: found among the model's `nn.Linear`, with its features
    and bias; so where both are meant, it is asked for first."""
    layer, _ = _layer()
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (64, 128)
    assert layer.bias is not None
    assert not layer.weight.is_floating_point()


def test_a_quantized_weight_has_its_state() -> None:
    """bitlora.forward.multi_lora.MultiLoraLinear.base_weight: `weight.quant_state` tells an NF4 layer from a plain one, and
    `dequantize_4bit(weight, state)` gives the weight in the layer's own shape, near what it was."""
    layer, weight = _layer()
    assert getattr(nn.Linear(4, 4).weight, "quant_state", None) is None
    back = dequantize_4bit(layer.weight.detach(), layer.weight.quant_state)
    assert back.shape == (128, 64)
    assert back.dtype == weight.dtype
    assert float((back - weight).abs().max()) < 0.2 * float(weight.abs().max())
    assert torch.equal(back, dequantize_4bit(layer.weight.data, layer.weight.quant_state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_product_is_that_of_the_dequantized_weight(dtype: torch.dtype) -> None:
    """bitlora.forward.multi_lora: the engine dequantizes and multiplies by itself, and promises to compute what stock PEFT
    over bitsandbytes' own product computes."""
    layer, _ = _layer(dtype=dtype)
    layer.bias.data.zero_()
    x = torch.randn(5, 64).to(dtype)
    own = F.linear(x, dequantize_4bit(layer.weight.detach(), layer.weight.quant_state).to(dtype))
    torch.testing.assert_close(layer(x), own, atol=0.0 if dtype == torch.float32 else 1e-2, rtol=1e-6)


def test_no_gradient_reaches_a_frozen_weight_but_one_passes_it() -> None:
    """bitlora.adapter.apply, the promise's plain loops: training through a frozen 4-bit layer gives the gradient of x."""
    layer, _ = _layer()
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    expected = dequantize_4bit(layer.weight.data, layer.weight.quant_state).sum(0).expand(3, -1)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, expected)
    assert layer.weight.grad is None


def test_a_layer_that_is_told_not_to_keeps_its_weights() -> None:
    """bitlora.base.load.load_model, bitlora.adapter.peft_layers.BitLinear4bit: `support_avx512bf16_for_cpu = False` keeps a
    forward pass without gradient from repacking the weights in place."""
    layer, _ = _layer()
    before, state = layer.weight.data.clone(), layer.weight.quant_state
    with torch.no_grad():
        layer(torch.randn(3, 64))
    assert torch.equal(layer.weight.data, before)
    assert layer.weight.quant_state is state
    assert not getattr(state, "packing_format_for_cpu", False)


def test_layers_are_made_to_repack_where_the_cpu_can() -> None:
    """bitlora.base.load.load_model: looks for this attribute on every module. Were it gone or renamed, the loop there would
    do nothing, and a base on a CPU with AVX-512 BF16 would be garbage after its first evaluation."""
    assert "support_avx512bf16_for_cpu" in vars(Linear4bit(4, 4))
    assert bool(Linear4bit(4, 4).support_avx512bf16_for_cpu) == bool(has_avx512bf16())
    assert "support_avx512bf16_for_cpu" in Linear4bit.forward.__code__.co_names


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no AVX-512 BF16, so nothing is repacked")
def test_a_repacked_weight_says_so() -> None:
    """bitlora.adapter.peft_layers.BitLinear4bit.merge: refuses a base that ran before it had an adapter, known by
    `quant_state.packing_format_for_cpu`. Where dequantizing such a weight is right by now, all of this can go."""
    layer, _ = _layer(repacks=True, dtype=torch.bfloat16)
    right = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    with torch.no_grad():
        layer(torch.randn(3, 64))
    assert layer.weight.quant_state.packing_format_for_cpu
    found: Any = None
    try:
        found = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    except Exception as error:  # also a way of not being right
        found = error
    assert not (isinstance(found, Tensor) and found.shape == right.shape and torch.equal(found, right)), (
        "a repacked weight is dequantized rightly now: support_avx512bf16_for_cpu need not be set any more"
    )


def test_an_8_bit_layer_multiplies_by_what_its_codes_stand_for_in_training() -> None:
    """bitlora.base.linears.dequantizer, bitlora.base.eight_bits: codes are whole numbers, `SCB` has the largest size of
    each row, at first the weight's and after a pass the state's; on a CPU a layer in training leaves its input whole."""
    torch.manual_seed(0)
    layer = Linear8bitLt(64, 128, bias=True, has_fp16_weights=False, threshold=6.0)
    weight = layer.weight.data.half().float()
    layer = layer.to("cpu").requires_grad_(False)
    assert isinstance(layer, nn.Linear)
    assert layer.weight.dtype == torch.int8
    scales = layer.weight.SCB
    torch.testing.assert_close(scales, weight.abs().amax(1))
    values = layer.weight.data.float() * (scales * (1 / 127))[:, None]
    assert float((values - weight).abs().max()) <= float(scales.max()) / 127
    x = torch.randn(5, 64)
    x[2, 3] = 60.0
    assert torch.equal(layer.train()(x), F.linear(x, values, layer.bias))
    assert layer.weight.SCB is None
    assert layer.state.SCB is scales


def test_quantizing_by_hand() -> None:
    """sweeps.cli.doctor: quantizes a weight to NF4 and back, by unpacking what `quantize_4bit` gives."""
    weight = torch.linspace(-1, 1, 4096).reshape(64, 64)
    back = dequantize_4bit(*quantize_4bit(weight, quant_type="nf4"))
    assert float((back - weight).abs().max()) < 0.2
    state = quantize_4bit(weight, quant_type="nf4")[1]
    assert isinstance(state, functional.QuantState)
    assert state.quant_type == "nf4"


def test_it_is_imported_without_the_code_generator() -> None:
    """bitlora.base.load.import_bitsandbytes: what is handed to `torch.compile` at its import is handed to the default
    backend; without PyTorch's own its NF4 is the same."""
    program = """
import sys, torch
from bitlora.base.load import import_bitsandbytes
import_bitsandbytes()
assert "bitsandbytes.backends.default.ops" in sys.modules
assert "torch._inductor.compile_fx" not in sys.modules
assert torch.compiler.get_default_backend() == "inductor"
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
torch.manual_seed(0)
print(dequantize_4bit(*quantize_4bit(torch.randn(64, 64), quant_type="nf4")).double().sum().item())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    torch.manual_seed(0)
    here = dequantize_4bit(*quantize_4bit(torch.randn(64, 64), quant_type="nf4")).double().sum().item()
    assert float(found.stdout.split()[-1]) == here


def test_what_8_bits_make_of_a_row_hangs_on_the_others() -> None:
    """bitlora.config.sections.REFUSED: LLM.int8() zeroes a column of every row's codes where one row has an outlier."""
    torch.manual_seed(0)
    rows = torch.randn(2, 64, dtype=torch.float16)
    rows[0].clamp_(-2, 2)
    rows[0, 5] = 2.0
    rows[1].clamp_(-5, 5)
    alone, _, _ = functional.int8_vectorwise_quant(rows.clone(), threshold=6.0)
    rows[1, 5] = 50.0
    beside, _, columns = functional.int8_vectorwise_quant(rows.clone(), threshold=6.0)
    assert columns.tolist() == [5]
    assert alone[0, 5] == 127
    assert beside[0, 5] == 0
    without, _, _ = functional.int8_vectorwise_quant(rows.clone(), threshold=0.0)
    assert torch.equal(without[0], alone[0])
