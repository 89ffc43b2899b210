"""Where adapters start: as PEFT itself draws them, one layer at a time."""

import copy

import pytest
import torch
from adapters import trial
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn

from bitlora.adapter.latent import Latent
from bitlora.adapter.start import principal_parts, start_adapter
from bitlora.config.sections import init_rounds
from bitlora.config.trial import layer_adapter
from bitlora.forward.multi_lora import MultiLoraLinear
from bitlora.quantizers.weights import QUANTIZERS


@pytest.mark.parametrize("rank", [2, 8])
@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal"])
def test_a_layer_starts_as_peft_starts_it(init, rank):
    config = LoraConfig(r=rank, init_lora_weights=True if init == "default" else init)
    stock = Linear(nn.Linear(30, 12), "one", config, r=rank, lora_alpha=4)
    torch.manual_seed(7)
    if init == "orthogonal":
        stock.orthogonal_init("one")
    else:
        stock.reset_lora_parameters("one", config.init_lora_weights)
    ours = Latent(torch.zeros(rank, 30), torch.zeros(12, rank))
    start_adapter([ours], trial("none", init=init, seed=7, rank=rank))
    assert torch.allclose(ours.a, stock.lora_A["one"].weight, rtol=0, atol=1e-7)
    assert torch.allclose(ours.b, stock.lora_B["one"].weight, rtol=0, atol=1e-7)
    assert (ours.b @ ours.a).abs().max() < 1e-7
    assert ours.a.abs().min() > 0


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4"])
@pytest.mark.parametrize("scaling", ["lora", "rslora"])
def test_pissa_takes_out_what_peft_takes_out(scaling, init, monkeypatch):
    """Singular vectors have a sign of their own choice, which is A's and B's together."""
    torch.manual_seed(3)
    lowrank = torch.svd_lowrank

    def seeded(*arguments, **options):  # PEFT draws as the process does, whatever it has drawn before
        torch.manual_seed(7)
        return lowrank(*arguments, **options)

    monkeypatch.setattr("peft.tuners.lora.layer.svd_lowrank", seeded)
    base = nn.Linear(30, 12)
    ours = MultiLoraLinear(copy.deepcopy(base), "layer", 0, torch.float32)
    config = LoraConfig(r=3, init_lora_weights=init, use_rslora=scaling == "rslora", lora_alpha=4)
    stock = Linear(base, "one", config, r=3, lora_alpha=4)
    layer = layer_adapter(trial("none", rank=3, alpha=4, scaling=scaling), "layer")
    drawn = torch.random.get_rng_state()
    a, b = principal_parts(ours.principal(3, torch.float32, init_rounds(init), 7), layer)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    signs = torch.sign((a * stock.lora_A["one"].weight).sum(1))
    assert torch.allclose(signs[:, None] * a, stock.lora_A["one"].weight, atol=1e-6)
    assert torch.allclose(signs * b, stock.lora_B["one"].weight, atol=1e-6)
    assert torch.allclose(ours.base.weight - layer.scaling * b @ a, base.weight, atol=1e-6)


@pytest.mark.parametrize("rounds", [None, 8])
def test_more_components_than_there_are_do_nothing(rounds):
    ours = MultiLoraLinear(nn.Linear(5, 4), "layer", 0, torch.float32)
    u, s, v = ours.principal(6, torch.float32, rounds)
    assert (u.shape, s.shape, v.shape) == ((4, 6), (6,), (6, 5))
    assert torch.allclose((u * s) @ v, ours.base.weight, atol=1e-6)
    assert not s[4:].any()
    assert torch.allclose(ours.principal(2, torch.float32, rounds)[1], s[:2], rtol=1e-3)


def test_iterations_find_the_principal_components_nearly_whoever_else_asks():
    torch.manual_seed(1)
    ours = MultiLoraLinear(nn.Linear(60, 40), "layer", 0, torch.float32)
    exact = ours.principal(8, torch.float32)
    near = ours.principal(8, torch.float32, 16, 5)
    assert not torch.equal(near[1], exact[1])
    torch.testing.assert_close(near[1], exact[1], rtol=1e-2, atol=0)
    ours.principal(30, torch.float32, 2, 6)
    assert all(torch.equal(*pair) for pair in zip(ours.principal(8, torch.float32, 16, 5), near, strict=True))
    assert not torch.equal(ours.principal(8, torch.float32, 16, 6)[2], near[2])


@pytest.mark.parametrize("init", ["default", "gaussian"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantized_it_starts_as_nothing_at_all(quantizer, init):
    learned = [torch.zeros(8, 1), torch.zeros(12, 1)] if QUANTIZERS[quantizer].learns_scales else []
    config = trial(quantizer, init=init, rank=8)
    latent = Latent(torch.zeros(8, 300), torch.zeros(12, 8), *learned)
    start_adapter([latent], config)
    weights = latent.quantized(config)
    assert not (weights.b @ weights.a).any()
    assert weights.a.any()
    if learned:
        assert float(latent.a_scales[0]) == pytest.approx(float(latent.a.abs().mean()), rel=0.05)
