"""Adapters on routed experts: in a pack each trial's are what stock PEFT has for the experts' parameters, in float64 to
1e-9; and what is not there is refused by name.
"""

import pytest
import torch
from base_families import HELD
from both_ways import Trial, batch_of, worst
from transformers import AutoModelForCausalLM

from bitlora.adapter.apply import load_packed_adapter
from bitlora.adapter.codes_file import PACKED, save_packed
from bitlora.adapter.cost import adapter_bytes, adapter_params
from bitlora.adapter.peft_folder import load_latent, save_adapter
from bitlora.base.describe import describe_base
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")
TRIALS = {
    "plain": Trial(seed=1, rank=4, rate=5e-3, steps=4),
    "ternary": Trial(seed=2, quantizer="ternary", rank=2, rate=5e-3, steps=4, micro=2, rslora=True),
    "double_binary": Trial(seed=3, quantizer="double_binary", rank=3, rate=5e-3, steps=4, loraplus=4.0,
                           own={"loraplus_ratio": 4.0}),
    "component": Trial(seed=4, quantizer="int4", component=True, rank=2, rate=5e-3, steps=4),
    "elsewhere": Trial(seed=5, rank=4, rate=5e-3, steps=4, own={"targets": "attention"}),
    "dora": Trial(seed=6, rank=2, rate=5e-3, steps=4, own={"targets": "attention", "dora": True}, peft={"use_dora": True}),
}  # fmt: skip


@pytest.fixture(scope="module", params=["Mixtral", "gpt-oss"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(HELD[request.param][0]())
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """An engine in which all trials were trained at once; each one's slot, start and losses."""
    config = BaseConfig(model=str(folder), quantization="none", targets="experts")
    engine = Engine(load_base(config, torch.float64, CPU, longest=40), len(TRIALS))
    slots = {name: engine.attach(trial.config) for name, trial in TRIALS.items()}
    starts = {name: engine.latent(slot) for name, slot in slots.items()}
    losses = {name: [] for name in TRIALS}
    for step in range(4):
        if step == 2:  # one goes, and comes back: what the others have is laid out anew
            state = engine.state(slots["plain"])
            engine.detach(slots["plain"])
            slots["plain"] = engine.attach(TRIALS["plain"].config, state=state)
        stats = engine.step({slot: batch_of(TRIALS[name].batches[step]) for name, slot in slots.items()})
        assert not any(found.failed for found in stats.values()), stats
        for name, slot in slots.items():
            losses[name].append(stats[slot].loss)
    for name, slot in slots.items():
        losses[name].append(engine.evaluate([slot], batch_of(TRIALS[name].held_out))[slot].loss)
    return engine, slots, starts, losses


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_in_a_pack_is_as_stock_peft_alone(folder, trained, name):
    _, _, starts, losses = trained
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    own = starts[name]
    parameters = [layer for layer in own if ".experts." in layer]
    modules = [layer for layer in own if layer not in parameters]
    assert bool(modules) == (name in ("elsewhere", "dora"))
    assert worst(losses[name], TRIALS[name].alone(model, own, targets=modules, parameters=parameters)) < 1e-9


def test_it_costs_what_was_said_and_comes_back_from_its_files(folder, trained, tmp_path):
    engine, slots, _, losses = trained
    trial = TRIALS["ternary"]
    latent = engine.latent(slots["ternary"])
    layers = describe_base(BaseConfig(model=str(folder), quantization="none", targets="experts")).layers(trial.config)
    assert sum(part.numel() for layer in latent.values() for part in layer.tensors) == adapter_params(layers)
    for form in ("own", "packed"):
        (tmp_path / form).mkdir()
    save_adapter(tmp_path / "own", latent, trial.config, str(folder))
    found = load_latent(tmp_path / "own", trial.config)
    assert found.keys() == latent.keys()
    assert all(
        torch.equal(part, own) for name in latent for part, own in zip(found[name][:2], latent[name], strict=False)
    )
    save_packed(tmp_path / "packed", latent, trial.config, str(folder))
    assert (tmp_path / "packed" / PACKED).stat().st_size == adapter_bytes(layers, "ternary")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    packed = load_packed_adapter(model, tmp_path / "packed")
    total = count = 0
    for tokens, learn in trial.held_out:
        ids = torch.tensor(tokens)[None]
        with torch.no_grad():
            logits = packed(input_ids=ids).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total += float((each * torch.tensor(learn)[1:]).sum())
        count += sum(learn)
    assert abs(total / count - losses["ternary"][-1]) < 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dropout": 0.1}, "dropout: 0.1: an adapter of routed experts"),
        ({"activations": "int8"}, "activations: int8: an adapter of routed experts"),
        ({"init": "orthogonal"}, "init: orthogonal is not there for adapters of routed experts"),
    ],
)
def test_what_no_adapter_of_experts_can_have(trained, options, said):
    engine = trained[0]
    engine.detach(trained[1]["elsewhere"])
    config = TRIALS["elsewhere"].config.model_copy(update=options)
    trained[1]["elsewhere"] = engine.attach(config)  # it has none on experts
    engine.detach(trained[1]["elsewhere"])
    with pytest.raises(ValueError, match=said):
        engine.attach(config.model_copy(update={"targets": "all-linear"}))
    trained[1]["elsewhere"] = engine.attach(TRIALS["elsewhere"].config)
