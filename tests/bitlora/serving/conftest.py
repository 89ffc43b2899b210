"""An engine with two random adapters over a small base in float64, whose tokens hang on no order of sums."""

from dataclasses import replace

import pytest
import torch

from bitlora.base.load import load_tokenizer
from bitlora.config.sections import AdapterConfig, BaseConfig, TrainConfig
from bitlora.config.trial import trial_config
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")
QUANTIZERS = ("none", "ternary")


@pytest.fixture(scope="session")
def served_engine(float64_base):
    """Slots 0 and 1."""
    engine = Engine(load_base(BaseConfig(model=str(float64_base), quantization="none"), torch.float64, CPU), 2)
    for seed, quantizer in enumerate(QUANTIZERS):
        adapter = AdapterConfig(quantizer=quantizer, rank=4, alpha=8)
        config = trial_config(adapter, TrainConfig(steps=1), 8, seed, {})
        state = engine.state(slot := engine.attach(config))
        engine.detach(slot)
        drawn = torch.randn(state.latent.shape, generator=torch.Generator().manual_seed(seed))
        engine.attach(config, slot, replace(state, latent=drawn.to(state.latent) * 0.3))
    return engine


@pytest.fixture(scope="session")
def tokenizer(float64_base):
    return load_tokenizer(str(float64_base))
