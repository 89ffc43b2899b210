"""A base in 8 bits: in packs what stock PEFT trains over bitsandbytes' layers on a CPU, and kept on the machine."""

import pytest
import torch
from adapters import exact, quantized
from bitsandbytes.nn import Linear8bitLt
from both_ways import Trial, batch_of, make_rows, worst
from transformers import AutoModelForCausalLM

from bitlora.base import load as loading
from bitlora.base.load import load_model
from bitlora.base.locate import BaseError
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.forward.forward_plan import ForwardPlan
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")
TRIALS = {
    "plain": Trial(seed=1, rank=4, rate=5e-4, prefix=7, steps=6),
    "ternary": Trial(seed=2, quantizer="ternary", rank=2, rate=5e-4, prefix=9, dropout=0.1, steps=6),
    "dora": Trial(seed=3, rank=3, rate=5e-4, steps=6, own={"dora": True}, peft={"use_dora": True}),
}


@pytest.fixture
def config(tiny_base, tmp_path, monkeypatch):
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    return BaseConfig(model=str(tiny_base), quantization="int8")


def stock(folder, dtype=torch.float32):
    """As transformers has it by default: columns with outliers, where inputs are rounded, in 16 bits."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **quantized("int8"))


def test_trials_in_a_pack_are_as_each_alone(config, tiny_base):
    engine = Engine(load_base(config, torch.float32, CPU), 3)
    assert {layer.alone.quantized().weight.dtype for layer in engine.base.linears.values()} == {torch.int8}
    slots = {name: engine.attach(trial.config) for name, trial in TRIALS.items()}
    starts = {name: engine.latent(slot) for name, slot in slots.items()}
    losses = {name: [] for name in TRIALS}
    for step in range(6):
        stats = engine.step({slot: batch_of(TRIALS[name].batches[step]) for name, slot in slots.items()})
        for name, slot in slots.items():
            losses[name].append(stats[slot].loss)
    for name, slot in slots.items():
        losses[name].append(engine.evaluate([slot], batch_of(TRIALS[name].held_out))[slot].loss)
        # PEFT 0.21.2 loses the scales of an 8-bit layer on a CPU when DoRA asks for its norms: over what it stands for
        model = stock(tiny_base).dequantize() if name == "dora" else exact(stock(tiny_base))
        assert worst(losses[name], TRIALS[name].alone(model, starts[name])) < 1e-4
    # bitsandbytes' own evaluation rounds the inputs: another function, near this one
    rounded = TRIALS["plain"].alone(stock(tiny_base), starts["plain"])
    assert worst(losses["plain"][:-1], rounded[:-1]) < 1e-4
    assert 1e-5 < worst(losses["plain"][-1:], rounded[-1:]) < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_kept_and_read_again_to_the_last_bit(config, dtype, monkeypatch, tiny_base):
    first = load_model(config, dtype, CPU)
    monkeypatch.setattr(loading, "keep", lambda *_: pytest.fail("quantized again"))
    second, base = load_model(config, dtype, CPU), load_base(config, dtype, CPU)
    tokens = torch.tensor(make_rows(5, 1, 20, 21)[0][0])
    with torch.no_grad():
        expected = first(tokens[None]).logits[0]
        assert torch.equal(second(tokens[None]).logits[0], expected)
        assert torch.equal(second.train()(tokens[None]).logits[0], expected)  # in training it is the same function
        assert torch.equal(exact(stock(tiny_base, dtype))(tokens[None]).logits[0], expected)
        whole = base.logits(ForwardPlan.make([], [[len(tokens)]], [0], CPU), tokens, torch.arange(len(tokens)))
    near = 1e-5 if dtype == torch.float32 else 0.1
    assert torch.allclose(whole.float(), expected.float(), rtol=near, atol=near)


def test_a_row_is_its_own_where_bitsandbytes_lets_it_hang_on_its_neighbours(config):
    """With an outlier in another row, which LLM.int8() finds over all of them."""
    layer = load_model(config, torch.float32, CPU).model.layers[0].mlp.down_proj
    assert isinstance(layer, Linear8bitLt)
    rows = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(0), requires_grad=True)
    beside = rows.detach().clone()
    beside[3, 5] = 60.0
    assert torch.equal(layer(rows)[:3], layer(beside)[:3])
    found, scales = layer.weight.data.double(), layer.weight.SCB.double()
    exact_values = found * scales[:, None] / 127
    torch.testing.assert_close(layer(rows).double(), rows.double() @ exact_values.T, rtol=1e-4, atol=1e-5)
    grad = torch.randn(4, layer.out_features, generator=torch.Generator().manual_seed(1))
    layer(rows).backward(grad)
    torch.testing.assert_close(rows.grad.double(), grad.double() @ exact_values, rtol=1e-4, atol=1e-5)


def test_float64_needs_plain_weights(config):
    with pytest.raises(BaseError, match=r"float64 needs base\.quantization: none"):
        load_model(config, torch.float64, CPU)
