"""Layers that are given one input: computed together, they give what each gives alone, and their gradients."""

import pytest
import torch
from adapters import trial
from torch import nn

from bitlora.config.trial import layer_adapter
from bitlora.engine.slots.bank import Bank
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.frozen import FrozenWeights
from bitlora.forward.multi_lora import LayerGroup, MultiLoraLinear

CPU = torch.device("cpu")
INPUTS, OUTPUTS = 6, (5, 3, 4)


def make(targeted=(0, 1, 2), dropout=0.0, slots=((0, 1, 2), (0, 1, 2))):
    """Three layers with two slots of different rank, in a plan whose spans differ in length. `slots`: on which layers of
    those that are `targeted` each has an adapter, with a scaling of its own in each."""
    torch.manual_seed(0)
    linears = [nn.Linear(INPUTS, outputs, dtype=torch.float64).requires_grad_(False) for outputs in OUTPUTS]
    layers = [MultiLoraLinear(linear, str(n), n, torch.float64) for n, linear in enumerate(linears)]
    group = LayerGroup(tuple(layers), FrozenWeights.together(linears, torch.float64))
    for layer in layers:
        layer.group = group
    bank = Bank([layers[number] for number in targeted], torch.float64, torch.float64, CPU)
    for number, (quantizer, rank, activations) in enumerate((("ternary", 2, "full"), ("binary", 3, "int8"))):
        of = slots[number]
        config = trial(quantizer, rank=rank, activations=activations, dropout=dropout, alpha=5)
        on = [layer_adapter(config.model_copy(update={"alpha": 5 + n}), str(n)) if n in of else None for n in targeted]
        slot = bank.add(number, config, on)
        for layer in slot.latent:
            layer.b.copy_(torch.randn(layer.b.shape))
    bank.quantize()
    plan = ForwardPlan.make([Span(0, 0, 4, 0, 4, (1, 2)), Span(1, 4, 11, 0, 7, (3, 4))], [[4], [7]], [0, 0], CPU)
    return layers, bank, plan


def run(layers, bank, plan, inputs, used=(0, 1, 2)):
    """What the layers make of their inputs, and all gradients of a weighted sum of the outputs `used`."""
    leaves = [*{id(x): x for x in inputs}.values()]
    with plan.bound():
        ys = [layer(x) for layer, x in zip(layers, inputs, strict=True)]
    sum(
        (ys[n] * torch.linspace(-1, 1, ys[n].numel(), dtype=ys[n].dtype).view(ys[n].shape)).sum() for n in used
    ).backward()
    found = [leaf.grad.clone() for leaf in leaves]
    found += [part.clone() for slot in bank.slots.values() for layer in slot.gradients for part in layer.tensors]
    return [*(y.detach() for y in ys), *found]


def apart(layers):
    for layer in layers:
        layer.group = layer.alone


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"dropout": 0.3}, {"targeted": (0, 2)}, {"slots": ((0, 2), (1, 2))}])
@pytest.mark.parametrize("used", [(0, 1, 2), (1,), (2, 0)])
def test_together_they_give_what_each_gives_alone(options, used):
    found = []
    for change in (lambda layers: None, apart):
        layers, bank, plan = make(**options)
        change(layers)
        x = torch.randn(1, 11, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        found.append(run(layers, bank, plan, [x.requires_grad_()] * 3, used))
    same(*found)


def test_it_is_seen_when_an_input_is_another(monkeypatch):
    """Of one whose values are the same, of one that was written into meanwhile, and of one that comes a second time."""
    layers, bank, plan = make()
    drawn = torch.randn(1, 11, INPUTS, dtype=torch.float64)
    own = [drawn.clone().requires_grad_() for _ in range(3)]
    found = run(layers, bank, plan, own)
    apart(layers)
    for slot in bank.slots.values():
        for part in slot.grads:
            part.zero_()
    same(found, run(layers, bank, plan, [x.detach().requires_grad_() for x in own]))

    layers, _, plan = make()
    with torch.no_grad(), plan.bound():
        x = drawn.clone()
        first = layers[0](x)
        x.mul_(2)
        second, again = layers[1](x), layers[0](x)
        expected = [layers[1].alone.outputs(x, plan)[0], layers[0].alone.outputs(x, plan)[0]]
        same([second, again], expected)
        assert not torch.equal(first, again)


def test_who_writes_into_an_output_changes_no_other():
    layers, _, plan = make()
    x = torch.randn(1, 11, INPUTS, dtype=torch.float64, requires_grad=True)
    with plan.bound():
        first = layers[0](x)
        kept = layers[0].alone.outputs(x, plan)[0].detach()
        first.mul_(3)
        others = [layer(x) for layer in layers[1:]]
        same(others, [layer.alone.outputs(x, plan)[0] for layer in layers[1:]])
    first.sum().backward()
    torch.testing.assert_close(first.detach(), 3 * kept)


def test_all_are_computed_when_the_first_is_called(monkeypatch):
    calls = []
    whole = LayerGroup.outputs
    monkeypatch.setattr(LayerGroup, "outputs", lambda self, *args: calls.append(len(self.layers)) or whole(self, *args))
    layers, bank, plan = make()
    x = torch.randn(1, 11, INPUTS, dtype=torch.float64, requires_grad=True)
    run(layers, bank, plan, [x] * 3)
    assert calls == [3]
