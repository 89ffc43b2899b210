"""A soup: the mean of adapters that began alike."""

import pytest
import torch
from adapters import trial

from bitlora.adapter.latent import Latent
from bitlora.adapter.soup import averaged, rescaled, same_shape
from bitlora.config.trial import layer_adapter
from bitlora.quantizers.weights import QUANTIZERS


def latent(config, seed):
    generator = torch.Generator().manual_seed(seed)
    learned = QUANTIZERS[config.quantizer].learns_scales
    layers = {}
    for name, (inputs, outputs) in {"a.q_proj": (10, 6), "a.down_proj": (7, 9)}.items():
        rank = layer_adapter(config, name).rank
        a, b = torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator)
        scales = [torch.rand(rank, 1, generator=generator), torch.rand(outputs, 1, generator=generator)]
        layers[name] = Latent(a, b, *(scales if learned else ()))
    return layers


def delta(layers, config):
    """What an adapter adds to each weight."""
    made = {}
    for name, layer in layers.items():
        a, b, _ = layer.quantized(config)
        made[name] = layer_adapter(config, name).scaling * (b.double() @ a.double())
    return made


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_an_adapter_with_anothers_scaling_adds_the_same(quantizer):
    own = trial(quantizer, rank=3, alpha=5, scaling="rslora", alpha_pattern="q_proj: 11")
    like = trial(quantizer, rank=3, alpha=16)
    layers = latent(own, 1)
    found = delta(rescaled(layers, own, like), like)
    for name, expected in delta(layers, own).items():
        near = 1e-3 if QUANTIZERS[quantizer].learns_scales else 1e-6  # learned scales are used as float16
        torch.testing.assert_close(found[name], expected, rtol=near, atol=near)


@pytest.mark.parametrize("quantizer", ["none", "double_binary"])
def test_a_soup_is_the_mean_of_each_part(quantizer):
    config = trial(quantizer, rank=3)
    several = [latent(config, seed) for seed in range(3)]
    made = averaged(several)
    for name, layer in made.items():
        for at, part in enumerate(layer):
            if part is None:
                assert several[0][name][at] is None
                continue
            torch.testing.assert_close(part, sum(each[name][at] for each in several) / 3)
            assert part.dtype == torch.float32


def test_a_soup_of_one_is_that_one():
    config = trial("ternary")
    one = latent(config, 0)
    assert all(
        torch.equal(a, b) for name in one for a, b in zip(averaged([one, one])[name][:2], one[name][:2], strict=True)
    )


def test_what_has_another_shape_is_told():
    one = trial("ternary", rank=4)
    assert same_shape(one, trial("ternary", rank=4, alpha=99, learning_rate=1e-4, scaling="rslora"))
    for other in (
        {"rank": 5},
        {"seed": 2},
        {"granularity": "component"},
        {"rank_pattern": "q_proj: 3"},
        {"init": "gaussian"},
    ):
        assert not same_shape(one, trial(**{"quantizer": "ternary", "rank": 4, **other}))
    assert not same_shape(one, trial("binary", rank=4))
