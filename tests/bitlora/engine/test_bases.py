"""Bases of many families: trials in one pack have the losses that each has alone in a plain loop over stock PEFT.

The models are random and tiny, of transformers' own classes; rows reach beyond the attention's window and begin alike.
"""

import pytest
import torch
from both_ways import Trial, batch_of, make_rows, worst
from families import HELD
from transformers import AutoModelForCausalLM

from bitlora.base.describe import describe_base
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=HELD)
def family(request, tmp_path_factory):
    """A base of the family in a folder, and its targets."""
    make, targets = HELD[request.param]
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make())
    for parameter in model.parameters():  # what transformers starts at zero shall matter too
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder, targets


def test_two_trials_in_a_pack_are_as_each_alone(family):
    folder, targets = family
    trials = [
        Trial(seed=1, rank=4, rate=5e-4, prefix=5, steps=6),
        Trial(seed=2, quantizer="ternary", rank=2, rate=5e-4, prefix=19, dropout=0.1, steps=6),
    ]
    for trial in trials:
        trial.batches[0] += make_rows(trial.seed, 1, 38, 40)
    config = BaseConfig(model=str(folder), quantization="none", targets=targets)
    assert len(describe_base(config, longest=40).targets) % 2 == 0
    engine = Engine(load_base(config, torch.float32, CPU, longest=40), 2)
    starts, losses = {}, {}
    slots = {trial: engine.attach(trial.config) for trial in trials}
    for trial, slot in slots.items():
        starts[trial], losses[trial] = engine.latent(slot), []
    for step in range(6):
        stats = engine.step({slot: batch_of(trial.batches[step]) for trial, slot in slots.items()})
        assert not any(found.failed for found in stats.values()), stats
        for trial, slot in slots.items():
            losses[trial].append(stats[slot].loss)
    for trial, slot in slots.items():
        losses[trial].append(engine.evaluate([slot], batch_of(trial.held_out))[slot].loss)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # PEFT's own all-linear takes the layers that see images too.
        names = (
            "all-linear" if targets == "all-linear" and not hasattr(model.config, "vision_config") else [*starts[trial]]
        )
        alone = trial.alone(model, starts[trial], targets=names)
        assert worst(losses[trial], alone) < 1e-4
        assert losses[trial][-2] != losses[trial][0]
