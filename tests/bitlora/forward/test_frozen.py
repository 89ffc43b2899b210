"""Frozen weights as one matrix: to the last bit those of each layer, which keeps its own as a view."""

import pytest
import torch
from adapters import trial
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from both_ways import batch_of, make_rows
from torch import nn

from bitlora.base.eight_bits import leave_inputs_whole
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import EVAL_TOKENS, Engine
from bitlora.forward.frozen import FrozenWeights
from bitlora.forward.inject import load_base

OUTPUTS = (24, 8, 16)


def linears(kind, inputs=64, biases=(False, True, False)):
    torch.manual_seed(0)
    made = [kind(inputs, outputs, bias=bias) for outputs, bias in zip(OUTPUTS, biases, strict=True)]
    made = [layer.to("cpu").requires_grad_(False) for layer in made]  # which quantizes
    leave_inputs_whole(nn.ModuleList(made))
    return made


def nf4(inputs, outputs, bias):
    return Linear4bit(inputs, outputs, bias, torch.float32, compress_statistics=False, quant_type="nf4")


def eight_bits(inputs, outputs, bias):
    return Linear8bitLt(inputs, outputs, bias, has_fp16_weights=False)


def weight_of(layer):
    if layer.weight.dtype == torch.int8:
        scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
        return (
            layer.weight.data * (scales * (1 / 127))[:, None]
        )  # as its product has it; `int8_vectorwise_dequant` rounds
    state = getattr(layer.weight, "quant_state", None)
    return (layer.weight.data if state is None else dequantize_4bit(layer.weight.data, state)).clone()


@pytest.mark.parametrize("kind", [nn.Linear, nf4, eight_bits])
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
    for kind in (nf4, eight_bits):
        assert FrozenWeights.together([linears(nn.Linear)[0], linears(kind)[0]], torch.float32) is None
    assert FrozenWeights.together([linears(eight_bits)[0], linears(nf4)[0]], torch.float32) is None
    assert FrozenWeights.together([linears(nn.Linear)[0], linears(nn.Linear)[1].half()], torch.float32) is None


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float32, {"double_quantization": True}),
        (torch.bfloat16, {"quantization": "int8"}),
    ],
    ids=str,
)
def test_values_that_are_kept_change_no_number(tiny_base, monkeypatch, dtype, options):
    """To the last bit: losses, weights and scores, with layers in groups and by themselves; and nothing is dequantized."""
    config = BaseConfig(model=str(tiny_base), **options)
    base = load_base(config, dtype, torch.device("cpu"))
    calls = []
    real = FrozenWeights.matrix
    monkeypatch.setattr(FrozenWeights, "matrix", lambda self: calls.append(self.state is not None) or real(self))

    def run(kept):
        engine = Engine(base, 2)
        base.keep_values(kept)
        del calls[:]
        slots = [engine.attach(trial("ternary", rank=2 + 2 * number, seed=number, dropout=0.1)) for number in range(2)]
        batches = [{slot: batch_of(make_rows(10 * step + slot, 2, prefix=3)) for slot in slots} for step in range(3)]
        losses = [stats.loss for given in batches for stats in engine.step(given).values()]
        scores = [result.losses for result in engine.evaluate(slots, batch_of(make_rows(99, 3))).values()]
        weights = [engine.state(slot).latent for slot in slots]
        for slot in slots:
            engine.detach(slot)
        return losses, scores, weights, sum(calls)

    losses, scores, weights, dequantized = run(False)
    kept_losses, kept_scores, kept_weights, never = run(True)
    assert dequantized > 0
    assert never == 0
    assert (kept_losses, kept_scores) == (losses, scores)
    assert all(torch.equal(one, other) for one, other in zip(kept_weights, weights, strict=True))
    assert base.values_bytes == sum(layer.in_features * layer.out_features for layer in base.linears.values()) * (
        4 if dtype == torch.float32 else 2
    )
    assert base.keep_values(False)
    assert run(False)[0] == losses


def test_values_that_are_kept_go_before_anything_else_where_a_pass_raises(tiny_base, monkeypatch):
    base = load_base(BaseConfig(model=str(tiny_base), quantization="nf4"), torch.float32, torch.device("cpu"))
    engine = Engine(base, 2)
    slots = [engine.attach(trial("none", rank=2, seed=number)) for number in range(2)]
    real = FrozenWeights.matrix

    def matrix(self):
        if self.state is None:
            raise MemoryError("no room")
        return real(self)

    batches = {slot: batch_of(make_rows(slot, 2)) for slot in slots}
    monkeypatch.setattr(FrozenWeights, "matrix", matrix)
    base.keep_values()
    assert not any(stats.failed for stats in engine.step(batches).values())
    assert engine.pass_tokens is None  # whole steps may fit without them
    assert not base.keep_values()
    assert not any(result.failed for result in engine.evaluate(slots, batches[0]).values())
    assert engine.eval_tokens == EVAL_TOKENS
    assert not base.keep_values(False)
