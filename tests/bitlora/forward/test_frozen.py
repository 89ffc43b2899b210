"""Frozen weights as one matrix: to the last bit those of each layer, which keeps its own as a view."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn

from bitlora.forward.frozen import FrozenWeights

OUTPUTS = (24, 8, 16)


def linears(kind, inputs=64, biases=(False, True, False)):
    torch.manual_seed(0)
    made = [kind(inputs, outputs, bias=bias) for outputs, bias in zip(OUTPUTS, biases, strict=True)]
    return [layer.to("cpu").requires_grad_(False) for layer in made]  # which quantizes


def nf4(inputs, outputs, bias):
    return Linear4bit(inputs, outputs, bias, torch.float32, compress_statistics=False, quant_type="nf4")


def weight_of(layer):
    state = getattr(layer.weight, "quant_state", None)
    return (layer.weight.data if state is None else dequantize_4bit(layer.weight.data, state)).clone()


@pytest.mark.parametrize("kind", [nn.Linear, nf4])
def test_many_layers_are_one_matrix(kind):
    layers = linears(kind)
    before, x = [weight_of(layer) for layer in layers], torch.randn(5, 64)
    y = [layer(x) for layer in layers]
    frozen = FrozenWeights.together(layers, torch.float32)
    assert frozen is not None
    assert torch.equal(frozen.matrix(), torch.cat(before))
    assert frozen.bias.tolist() == [*[0.0] * 24, *layers[1].bias.tolist(), *[0.0] * 16]
    for layer, weight, out in zip(layers, before, y, strict=True):
        assert torch.equal(weight_of(layer), weight)
        assert torch.equal(layer(x), out)
        assert torch.equal(FrozenWeights.of(layer, torch.float32).matrix(), weight)
        assert layer.weight.untyped_storage().data_ptr() == frozen.weight.untyped_storage().data_ptr()


def test_no_bias_stays_none():
    assert FrozenWeights.together(linears(nn.Linear, biases=(False,) * 3), torch.float32).bias is None


def test_what_does_not_stand_together_is_left_alone():
    odd = linears(nf4, inputs=12)  # 288, 96 and 192 entries: a block of 64 would run over the first one's end
    before = [weight_of(layer) for layer in odd]
    assert FrozenWeights.together(odd, torch.float32) is None
    assert all(torch.equal(weight_of(layer), weight) for layer, weight in zip(odd, before, strict=True))
    assert FrozenWeights.together([linears(nn.Linear)[0], linears(nf4)[0]], torch.float32) is None
    assert FrozenWeights.together([linears(nn.Linear)[0], linears(nn.Linear)[1].half()], torch.float32) is None
