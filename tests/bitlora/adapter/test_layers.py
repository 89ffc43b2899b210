"""Trials of one pack whose adapters are on different layers, with ranks and alphas of their own: each as alone over stock
PEFT with `target_modules`, `layers_to_transform`, `rank_pattern` and `alpha_pattern`, and what is handed on of it.
"""

import json

import pytest
import torch
from both_ways import VOCAB, Trial, batch_of, worst
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bitlora.adapter.apply import load_packed_adapter, merge
from bitlora.adapter.codes_file import PACKED, load_packed, save_packed
from bitlora.adapter.cost import adapter_bytes, adapter_params
from bitlora.adapter.latent import Latent, quantized_weights
from bitlora.adapter.peft_folder import load_latent, save_adapter, save_lora_adapter
from bitlora.base.describe import describe_base
from bitlora.config.sections import BaseConfig
from bitlora.config.trial import as_written, layer_adapter
from bitlora.engine.engine import Engine
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base") / "llama"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def shaped(seed, targets, peft_targets, ranks=None, alphas=None, own=None, **recipe):
    """A trial with these targets and patterns in both tongues."""
    peft = dict(recipe.pop("peft", {}))
    peft |= {"rank_pattern": ranks} if ranks else {}
    peft |= {"alpha_pattern": alphas} if alphas else {}
    trial = Trial(
        seed=seed, steps=STEPS, peft=peft, **recipe,
        own={"targets": targets, "rank_pattern": ranks or {}, "alpha_pattern": alphas or {}, **(own or {})},
    )  # fmt: skip
    return trial, peft_targets


TRIALS = [
    shaped(1, "attention", ["q_proj", "k_proj", "v_proj", "o_proj"], {"q_proj": 7, r"layers\.1\.self_attn\.v_proj": 2}),
    shaped(2, ["gate_proj", "up_proj"], ["gate_proj", "up_proj"], alphas={"up_proj": 3}, quantizer="ternary", rank=2),
    shaped(
        3,
        "all-linear in layers 1-2",
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        {"down_proj": 5, ".*proj": 3},
        dropout=0.2,
        peft={"layers_to_transform": [1, 2]},
    ),
    shaped(
        4,
        r".*layers\.0\..*(q|down)_proj",
        r".*layers\.0\..*(q|down)_proj",
        {"down_proj": 1},
        {"down_proj": 2.5},
        quantizer="double_binary",
        rslora=True,
    ),
    shaped(5, "mlp", ["gate_proj", "up_proj", "down_proj"], loraplus=8.0, betas=(0.8, 0.95), weight_decay=0.1,
           own={"loraplus_ratio": 8.0, "beta1": 0.8, "beta2": 0.95, "init": "orthogonal"}),
    shaped(7, "attention", ["q_proj", "k_proj", "v_proj", "o_proj"], {"q_proj": 7}, dropout=0.1, weight_decay=0.1,
           peft={"use_dora": True}, own={"dora": True}, rate=5e-3),
    shaped(8, "base.targets", "all-linear", {"down_proj": 2}, {"k_proj": 3}, quantizer="ternary", component=True,
           loraplus=4.0, peft={"use_dora": True}, own={"dora": True, "loraplus_ratio": 4.0}),
    shaped(9, ["up_proj"], ["up_proj"], quantizer="double_binary", rslora=True, micro=2, peft={"use_dora": True},
           own={"dora": True}),
    shaped(10, "mlp", ["gate_proj", "up_proj", "down_proj"], {"down_proj": 3}, {"up_proj": 3}, dropout=0.1, rate=5e-3,
           own={"init": "pissa"}),
    shaped(11, "base.targets", "all-linear", {"q_proj": 2}, rslora=True, weight_decay=0.1,
           own={"init": "pissa_niter_3"}),
    shaped(6, "base.targets", "all-linear", {"q_proj": 6}, quantizer="int4", component=True, warmup=0.2, floor=0.3,
           schedule="linear"),
]  # fmt: skip


@pytest.fixture(scope="module")
def ran(folder):
    """All of them in one pack, in float64, the first three steps of the first without the others: starts, losses, and of
    each the latent weights and the pack's logits at its end."""
    engine = Engine(load_base(BaseConfig(model=str(folder), quantization="none"), torch.float64, CPU), len(TRIALS))
    starts, losses, slots = {}, {}, {}
    for step in range(STEPS + 3):
        for number, (trial, _) in enumerate(TRIALS):
            if step == (0 if number == 0 else 3):
                slots[number] = engine.attach(trial.config)
                starts[number], losses[number] = engine.latent(slots[number]), []
        stats = engine.step(
            {slot: batch_of(TRIALS[number][0].batches[len(losses[number])]) for number, slot in slots.items()
             if len(losses[number]) < STEPS}
        )  # fmt: skip
        for number, slot in slots.items():
            if slot in stats:
                assert not stats[slot].failed
                losses[number].append(stats[slot].loss)
    tokens = torch.randint(3, VOCAB, (30,), generator=torch.Generator().manual_seed(9))
    ended = {}
    for number, slot in slots.items():
        losses[number].append(engine.evaluate([slot], batch_of(TRIALS[number][0].held_out))[slot].loss)
        with torch.no_grad():
            plan = ForwardPlan.make([Span(slot, 0, 30)], [[30]], [0], CPU)
            ended[number] = engine.latent(slot), engine.base.logits(plan, tokens, torch.arange(30))
    return engine, starts, losses, ended, tokens


@pytest.mark.parametrize("number", range(len(TRIALS)))
def test_each_is_as_alone_over_stock_peft(number, folder, ran):
    engine, starts, losses, _, _ = ran
    trial, targets = TRIALS[number]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    start = starts[number]
    if trial.config.init.startswith(
        "pissa"
    ):  # as PEFT does it: what A and B begin as is taken out of the base (`test_start`)
        for name, (a, b, *_) in start.items():
            rank = len(a) // 2
            assert torch.equal(a[:rank], a[rank:])
            assert torch.equal(b[:, :rank], -b[:, rank:])
            start = {**start, name: Latent(a[:rank], b[:, :rank])}
            model.get_submodule(name).weight.data -= layer_adapter(trial.config, name).scaling * b[:, :rank] @ a[:rank]
    # PEFT's own layers, ranks and scalings: the oracle is handed values alone.
    alone = trial.alone(model, start, targets=targets, order=[*engine.base.linears])
    assert worst(losses[number], alone) < 1e-9
    assert losses[number][-2] != losses[number][0]


@pytest.mark.parametrize("number", range(len(TRIALS)))
def test_what_is_handed_on_of_it_has_the_packs_logits(number, folder, ran, tmp_path):
    _, _, _, ended, tokens = ran
    config, (latent, ours) = TRIALS[number][0].config, ended[number]

    def apart(model):
        with torch.no_grad():
            return float((model.eval()(input_ids=tokens[None], use_cache=False).logits[0] - ours).abs().max())

    def plain():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)

    for form in ("peft", "packed", "latent"):
        (tmp_path / form).mkdir()
    save_lora_adapter(tmp_path / "peft", latent, config, str(folder))
    assert apart(plain()) > 1e-3
    near = 1e-6 if config.quantizer in ("none", "double_binary") else 1e-4  # a scale is kept as a float32
    assert apart(PeftModel.from_pretrained(plain(), tmp_path / "peft", autocast_adapter_dtype=False)) < near
    assert apart(merge(plain(), quantized_weights(latent, config), config, torch.float64)) < 1e-9
    save_packed(tmp_path / "packed", latent, config, str(folder))
    for name, layer in load_packed(tmp_path / "packed").weights.items():
        assert (layer.magnitude is None) == (not config.dora)
        assert layer.magnitude is None or torch.equal(layer.magnitude, latent[name].magnitude.float())
    written = describe_base(BaseConfig(model=str(folder))).layers(as_written(config))
    assert [layer.name for layer in written] == [*latent]
    size = adapter_bytes(written, config.quantizer, config.granularity, config.dora)
    assert (tmp_path / "packed" / PACKED).stat().st_size == size
    count = sum(part.numel() for layer in latent.values() for part in layer.tensors)
    assert adapter_params(written, config.quantizer, config.dora) == count
    assert apart(load_packed_adapter(plain(), tmp_path / "packed")) < 2e-2  # weights of `none` are float16 there
    save_adapter(tmp_path / "latent", latent, config, str(folder))
    written = json.loads((tmp_path / "latent" / "adapter_config.json").read_text())
    assert set(written["target_modules"]) == {*latent}
    for name, layer in load_latent(tmp_path / "latent", config).items():
        assert all(torch.equal(a, b) for a, b in zip(layer.tensors, latent[name].tensors, strict=True))


def test_layers_that_a_trial_does_not_have_take_nothing(folder):
    """Neither of a pack in which nobody has them, nor for the others where one has."""
    engine = Engine(load_base(BaseConfig(model=str(folder), quantization="none"), torch.float32, CPU), 2)
    slot = engine.attach(Trial(seed=1, own={"targets": "q_proj in layers 0-0", "rank_pattern": {"q_proj": 3}}).config)
    first = engine.slots[slot]
    assert [part.shape for part in first.vectors.latent.parts] == [(1, 3 * 128)]
    alone = first.nbytes
    state = engine.state(slot)
    assert state.latent.shape == state.exp_avg.shape == (3 * 128,)
    assert [name for name, layer in engine.base.linears.items() if layer.alone.adapters] == [
        "model.layers.0.self_attn.q_proj"
    ]
    engine.attach(Trial(seed=2, rank=4, own={"targets": "down_proj"}).config)
    numbers = (first.vectors.latent, first.vectors.grad, first.vectors.exp_avg, first.vectors.quantized)
    for each in numbers:
        assert sorted(part.shape for part in each.parts) == [(1, 3 * 128), (1, 3 * 4 * 192)]
    assert first.nbytes == alone
    assert engine.weights(engine.slots[slot].config) == 3 * 128
    engine.detach(slot)
    again = engine.attach(Trial(seed=1, own={"targets": "q_proj in layers 0-0", "rank_pattern": {"q_proj": 3}}).config,
                          state=state)  # fmt: skip
    assert torch.equal(engine.state(again).latent, state.latent)
