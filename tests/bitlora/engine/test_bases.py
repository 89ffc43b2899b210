"""Bases of many families: trials in one pack have the losses that each has alone in a plain loop over stock PEFT, and what
is handed on of them has the pack's logits in stock PEFT and transformers.

The models are random and tiny, of transformers' own classes; rows reach beyond the attention's window and begin alike.
"""

import pytest
import torch
from base_families import HELD
from both_ways import VOCAB, Trial, batch_of, make_rows, worst
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bitlora.adapter.apply import merge
from bitlora.adapter.latent import quantized_weights
from bitlora.adapter.peft_folder import as_parameter, save_lora_adapter
from bitlora.base.describe import describe_base
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")


NEAR = {torch.float32: 1e-4, torch.float64: 1e-9}
CASES = [*((name, torch.float32) for name in HELD), ("DeepSeek-V3", torch.float64)]
"""Latent attention and shared experts are held to the last digits too; other experts are in `test_experts`."""


@pytest.fixture(scope="module", params=CASES, ids=str)
def family(request, tmp_path_factory):
    """A base of the family in a folder, its targets, and what is computed in."""
    (make, targets), dtype = HELD[request.param[0]], request.param[1]
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make())
    for parameter in model.parameters():  # what transformers starts at zero shall matter too
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder, targets, dtype


def stock(folder, dtype):
    """As transformers has it; its grouped products of experts know no float64."""
    options = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **options)


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=tokens[None], use_cache=False).logits[0]


def test_two_trials_in_a_pack_are_as_each_alone(family, tmp_path):
    folder, targets, dtype = family
    config = BaseConfig(model=str(folder), quantization="none", targets=targets)
    info = describe_base(config, longest=40)
    experts = {shape.name for shape in info.linears if shape.experts > 1}.intersection(info.targets)
    drop = 0.0 if experts else 0.1  # PEFT has none on experts
    trials = [
        Trial(seed=1, rank=4, rate=5e-4, prefix=5, steps=6),
        Trial(seed=2, quantizer="ternary", rank=2, rate=5e-4, prefix=19, dropout=drop, steps=6),
    ]
    for trial in trials:
        trial.batches[0] += make_rows(trial.seed, 1, 38, 40)
    assert len(info.targets) % 2 == 0
    engine = Engine(load_base(config, dtype, CPU, longest=40), 2)
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
        model = stock(folder, dtype)
        for module in model.modules():  # a pack has none either
            if hasattr(module, "jitter_noise"):
                module.jitter_noise = 0.0
        # PEFT's own all-linear takes the layers that see images too.
        names = (
            "all-linear" if targets == "all-linear" and not hasattr(model.config, "vision_config") else [*starts[trial]]
        )
        if experts:  # by itself PEFT would widen their rank, and take other layers of the same names for theirs
            names = [name for name in starts[trial] if as_parameter(name, experts) is None]
        parameters = {own for name in starts[trial] if (own := as_parameter(name, experts))}
        order = [name for name, layer in engine.base.linears.items() if layer.experts == 1]
        alone = trial.alone(model, starts[trial], targets=names, order=order, parameters=parameters)
        assert worst(losses[trial], alone) < NEAR[dtype]
        assert losses[trial][-2] != losses[trial][0]
    tokens = torch.randint(3, VOCAB, (40,), generator=torch.Generator().manual_seed(9))
    for number, (trial, slot) in enumerate(slots.items()):
        with torch.no_grad():
            ours = engine.base.logits(ForwardPlan.make([Span(slot, 0, 40)], [[40]], [0], CPU), tokens, torch.arange(40))
        latent = engine.latent(slot)
        (tmp_path / f"{number}").mkdir()
        plain = stock(folder, dtype)
        names = [name for name, _ in plain.named_modules()]
        save_lora_adapter(tmp_path / f"{number}", latent, trial.config, None, modules=names)
        assert (logits(plain, tokens) - ours).abs().max() > 1e-3  # the adapter does something
        near = 1e-5 * max(1.0, float(ours.abs().max()))
        assert (logits(PeftModel.from_pretrained(plain, tmp_path / f"{number}"), tokens) - ours).abs().max() < near
        weights = quantized_weights(latent, trial.config)
        merge(stock(folder, dtype), weights, trial.config, dtype).save_pretrained(tmp_path / f"merged{number}")
        merged = stock(tmp_path / f"merged{number}", dtype)
        assert (logits(merged, tokens) - ours).abs().max() < 10 * near
