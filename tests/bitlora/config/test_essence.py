"""What two configurations have to have in common for their numbers to be the same, held against the engine itself."""

import pytest
import torch

from bitlora.config.essence import essence
from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig, adapter_layers
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base

TRIAL = {
    "quantizer": "binary", "activations": "full", "rank": 4, "alpha": 8, "dropout": 0.1, "scaling": "lora",
    "learning_rate": 1e-2, "weight_decay": 0.0, "batch_size": 1, "micro_batch": None, "max_grad_norm": 1.0,
    "schedule": "constant", "warmup": 0.4, "floor": 0.0, "steps": 3, "eval_every": 3, "seed": 1,
}  # fmt: skip
NAMES = [f"layers.{layer}.{name}" for layer in range(2) for name in ("q_proj", "up_proj")]


def of(**changes: object) -> object:
    config = TrialConfig(**(TRIAL | changes))
    return essence(config, adapter_layers(config, NAMES, NAMES))


LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SAME = [
    {"alpha": 4, "scaling": "rslora"},
    {"floor": 0.5},
    {"warmup": 0.3},
    {"alpha_pattern": "q_proj: 8"},
    {"rank": 8, "rank_pattern": ", ".join(f"{name}: 4" for name in LINEARS)},
    {"targets": "all-linear"},
]
OTHER = [
    {"seed": 2}, {"alpha": 9}, {"rank": 8, "alpha": 16}, {"granularity": "component"}, {"targets": "q_proj"},
    {"warmup": 0.7},
    {"schedule": "cosine"}, {"dropout": 0.0}, {"quantizer": "none"}, {"learning_rate": 2e-2}, {"batch_size": 2},
    {"weight_decay": 0.1}, {"max_grad_norm": 0.1}, {"beta1": 0.8}, {"loraplus_ratio": 2.0}, {"activations": "int8"},
]  # fmt: skip


@pytest.mark.parametrize("changes", SAME, ids=str)
def test_what_makes_no_difference_is_left_out(changes):
    assert of(**changes) == of()
    assert hash(of(**changes)) == hash(of())


@pytest.mark.parametrize("changes", OTHER, ids=str)
def test_what_makes_one_is_kept(changes):
    assert of(**changes) != of()


def test_granularity_and_floor_matter_where_there_is_something_of_them():
    assert of(quantizer="none", granularity="component") == of(quantizer="none")
    assert of(quantizer="double_binary", granularity="component") == of(quantizer="double_binary")
    assert of(schedule="linear", floor=0.5) != of(schedule="linear")


def trained(base, changes):
    """The losses of three steps and the latent weights behind them, of a trial alone."""
    config = TrialConfig(**(TRIAL | changes))
    engine = Engine(base, 1)
    engine.attach(config)
    tokens = torch.arange(3, 15)
    learn = torch.arange(12) >= 5
    batch = Batch(torch.cat([tokens, tokens + 20]), torch.cat([learn, learn]), (12, 12))
    losses = [engine.step({0: batch})[0].loss for _ in range(3)]
    latent = engine.latent(0)
    engine.detach(0)
    return losses, latent


def test_the_engine_agrees_bit_by_bit(tiny_base):
    base = load_base(BaseConfig(model=str(tiny_base), quantization="none"), torch.float32, torch.device("cpu"))
    losses, latent = trained(base, {})
    for changes in SAME:
        found, weights = trained(base, changes)
        assert found == losses, changes
        assert latent.keys() == weights.keys()
        for name, layer in latent.items():
            assert all(torch.equal(one, other) for one, other in zip(layer[:2], weights[name][:2], strict=True)), (
                changes
            )
    for quantizer in ("none", "double_binary"):
        one, other = (
            trained(base, {"quantizer": quantizer, "granularity": each})[0] for each in ("tensor", "component")
        )
        assert one == other
