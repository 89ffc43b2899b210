"""The adapter as a citizen of PEFT: what a pack trains is what PEFT runs, and nothing loses or misreads a quantizer."""

import json
import subprocess
import sys

import oracle
import peft_program
import pytest
import torch
from adapters import exact, quantized
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig
from torch import nn
from transformers import AutoModelForCausalLM

from bitlora.adapter.peft_folder import PEFT_TYPE, save_adapter, save_lora_adapter
from bitlora.adapter.peft_layers import BitLoraConfig, QuantizedLinear, load_adapter
from bitlora.config.sections import BaseConfig
from bitlora.config.trial import TrialConfig
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.inject import load_base
from bitlora.quantizers.weights import QUANTIZERS

CPU = torch.device("cpu")
TOKENS = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(9))
NEAR = {"none": 1e-5, "nf4": 1e-3, "int8": 1e-5}


@pytest.fixture(scope="module")
def folder(tiny_base):
    return tiny_base


def open_base(folder, quantization="none", dtype=torch.float32):
    return exact(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **quantized(quantization, dtype)))


def logits(model, tokens=TOKENS, **options):
    with torch.no_grad():
        return model.eval()(input_ids=tokens, **options).logits


def apart(ours, theirs):
    return float((ours - theirs).abs().max())


def trial(quantizer, component=False, int8=False, seed=1):
    return TrialConfig(
        quantizer=quantizer,
        granularity="component" if component else "tensor",
        activations="int8" if int8 else "full",
        rank=4,
        alpha=7,
        dropout=0.0,
        scaling="rslora" if component else "lora",
        learning_rate=5e-3,
        weight_decay=0.0,
        batch_size=2,
        micro_batch=None,
        max_grad_norm=1.0,
        schedule="constant",
        warmup=0.0,
        floor=0.0,
        steps=8,
        eval_every=8,
        seed=seed,
    )


@pytest.fixture(scope="module", params=["none", "nf4", "int8"])
def packed(request, folder):
    """Every quantizer, trained in one pack: quantization, and (configuration, latent weights, logits) of each trial."""
    forms = [(False, False), (True, False), (True, True)]
    base = load_base(BaseConfig(model=str(folder), quantization=request.param), torch.float32, CPU)
    engine = Engine(base, len(QUANTIZERS) * len(forms))
    slots = {engine.attach(c): c for q in QUANTIZERS for c in [trial(q, *form) for form in forms]}
    rows = torch.randint(3, 96, (8, 24), generator=torch.Generator().manual_seed(2))
    for tokens in rows:
        learn = torch.ones(24, dtype=torch.bool)
        learn[[0, 12]] = False
        engine.step(dict.fromkeys(slots, Batch(tokens, learn, (12, 12))))
    found = []
    for slot, config in slots.items():
        n = TOKENS.shape[1]
        plan = ForwardPlan.make([Span(slot, 0, n)], [[n]], [0], CPU)
        with torch.no_grad():
            out = engine.base.logits(plan, TOKENS[0], torch.arange(n))[None]
        found.append((config, engine.latent(slot), out))
    return request.param, found


def test_stock_peft_runs_what_a_pack_has_trained(packed, folder, tmp_path):
    """The quantized weights, written as ordinary LoRA weights."""
    quantization, trials = packed
    base = logits(open_base(folder, quantization))
    for number, (config, latent, expected) in enumerate(trials):
        out = tmp_path / str(number)
        out.mkdir()
        if config.activations == "int8":
            with pytest.raises(ValueError, match="full activations"):
                save_lora_adapter(out, latent, config, str(folder))
            continue
        save_lora_adapter(out, latent, config, str(folder))
        found = logits(PeftModel.from_pretrained(open_base(folder, quantization), str(out)))
        assert apart(found, expected) < NEAR[quantization], config
        assert apart(found, base) > 0.01, config
        with pytest.raises(ValueError, match="load it with PEFT itself"):
            load_adapter(open_base(folder, quantization), out)


def test_peft_loads_a_trials_adapter(packed, folder, tmp_path):
    quantization, trials = packed
    for number, (config, latent, expected) in enumerate(trials):
        out = tmp_path / str(number)
        out.mkdir()
        save_adapter(out, latent, config, str(folder))
        if config.quantizer == "none" and config.activations == "full":
            found = PeftModel.from_pretrained(open_base(folder, quantization), str(out))
        else:
            # What PEFT refuses where bitlora is not imported: test_peft_calls.py.
            assert json.loads((out / "adapter_config.json").read_text())["peft_type"] == PEFT_TYPE
            found = PeftModel.from_pretrained(open_base(folder, quantization), str(out))
        # With 8-bit activations a last bit can tip a rounding, which is then 1/127 of an entry away.
        near = 5e-3 if config.activations == "int8" else NEAR[quantization]
        assert apart(logits(found), expected) < near, config


@pytest.fixture
def make(folder):
    """Makes a model with an adapter whose B is not zero."""

    def make_one(quantization="none", dtype=torch.float32, **options):
        torch.manual_seed(3)
        config = BitLoraConfig(r=4, target_modules="all-linear", **{"quantizer": "ternary", **options})
        model = get_peft_model(open_base(folder, quantization, dtype), config)
        disturb(model)
        return model

    return make_one


def disturb(model, adapter="default"):
    generator = torch.Generator().manual_seed(4)
    for name, value in model.named_parameters():
        if f"lora_B.{adapter}" in name or f"lora_magnitude_vector.{adapter}" in name:
            value.data += torch.randn(value.shape, generator=generator) * 0.05


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_saved_and_loaded_it_is_the_same(make, folder, quantizer, tmp_path):
    model = make(quantizer=quantizer, granularity="component", use_dora=quantizer in ("none", "double_binary"))
    model.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (written["peft_type"], written["quantizer"], written["granularity"]) == (PEFT_TYPE, quantizer, "component")
    for again in (load_adapter(open_base(folder), tmp_path), PeftModel.from_pretrained(open_base(folder), tmp_path)):
        assert torch.equal(logits(again), logits(model))
        assert not any(p.requires_grad for p in again.parameters())
    trainable = load_adapter(open_base(folder), tmp_path, trainable=True)
    assert {n for n, p in trainable.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_several_adapters(make, folder, tmp_path, quantization):
    base = logits(open_base(folder, quantization))
    alone = {}
    for name, options in (
        ("one", {"quantizer": "binary"}),
        ("two", {"quantizer": "double_binary", "activations": "int8"}),
        ("plain", {"quantizer": "none"}),
    ):
        model = make(quantization, **options)
        alone[name] = logits(model)
        model.save_pretrained(tmp_path / name)
    model = load_adapter(open_base(folder, quantization), tmp_path / "one", "one")
    for name in ("two", "plain"):
        load_adapter(model, tmp_path / name, name)
    for name, expected in alone.items():
        model.set_adapter(name)
        assert apart(logits(model), expected) < 1e-6
        with model.disable_adapter():
            assert torch.equal(logits(model), base)
    mixed = logits(model, TOKENS.repeat(3, 1), adapter_names=["two", "__base__", "one"])
    for row, expected in zip(mixed, (alone["two"], base, alone["one"]), strict=True):
        assert apart(row, expected[0]) < 1e-5
    with pytest.raises(ValueError, match="named two already"):
        load_adapter(model, tmp_path / "one", "two")
    model.delete_adapter("two")
    model.set_adapter("one")
    assert apart(logits(model), alone["one"]) < 1e-6


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_quantizer_is_never_lost(make, folder, quantization, tmp_path):
    """PEFT's own layers refuse it, whoever loads it; over NF4 they would drop it (PEFT 0.21.2)."""
    model = make(quantization)
    model.save_pretrained(tmp_path)
    model.load_adapter(str(tmp_path), "second")
    model.set_adapter("second")
    assert apart(logits(model), logits(make(quantization))) < NEAR[quantization]
    stock = get_peft_model(open_base(folder, quantization), LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match="PEFT's own layer, without quantizers"):
        load_adapter(stock, tmp_path, "second")
    refusal = "is PEFT's own layer" if quantization != "none" else r"unsupported variant combination: \('quantizer',\)"
    with pytest.raises(ValueError, match=refusal):
        stock.load_adapter(str(tmp_path), "third")
    with pytest.raises(ValueError, match=refusal):
        stock.add_adapter("fourth", BitLoraConfig(target_modules="all-linear", quantizer="binary"))


def test_an_adapter_that_does_not_fit_is_refused(make, folder, tmp_path):
    make(quantizer="double_binary").save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantizer": "binary"}))
    with pytest.raises(ValueError, match="the adapter does not fit"):
        load_adapter(open_base(folder), tmp_path)


@pytest.mark.parametrize("quantizer", ["binary", "absmean", "int4", "double_binary"])
@pytest.mark.parametrize("safe", [False, True])
def test_merge_and_unmerge(make, folder, quantizer, safe):
    model = make(quantizer=quantizer, use_dora=quantizer in ("absmean", "double_binary"))
    expected = logits(model)
    model.merge_adapter(safe_merge=safe)
    assert apart(logits(model), expected) < 1e-5
    with model.disable_adapter():  # unmerges
        assert apart(logits(model), logits(open_base(folder))) < 1e-5
    assert apart(logits(model), expected) < 1e-5
    assert apart(logits(model.merge_and_unload()), expected) < 1e-5


@pytest.mark.parametrize("safe", [False, True])
def test_merge_into_nf4_is_exact_and_unmerge_bit_by_bit(make, folder, safe):
    model = make("nf4", quantizer="twn", use_dora=safe)
    expected, base = logits(model), logits(open_base(folder, "nf4"))
    keys = set(model.state_dict())
    before = {n: m.weight.data.clone() for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    model.merge_adapter(safe_merge=safe)
    assert apart(logits(model), expected) < 1e-5
    assert not any(isinstance(m, Linear4bit) for m in model.modules())
    model.unmerge_adapter()
    assert set(model.state_dict()) == keys
    after = {n: m.weight.data for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert apart(logits(model), expected) < 1e-6
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    merged = model.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_modules())
    assert apart(logits(merged), expected) < 1e-5


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_int8_activations_cannot_be_merged(make, quantization):
    model = make(quantization, quantizer="absmean", activations="int8")
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload, lambda: model.merge_adapter(safe_merge=True)):
        with pytest.raises(ValueError, match=r"default cannot be merged: with activations: int8 .* not linear"):
            merge()
    assert torch.equal(logits(model), expected)


def test_a_cpu_with_avx512_bf16_does_not_repack_the_base():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            plain = nn.Linear(64, 64, bias=False)
            self.proj = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
            self.proj.weight = Params4bit(plain.weight.data, requires_grad=False, quant_type="nf4")
            self.proj.to("cpu")
            self.proj.support_avx512bf16_for_cpu = True  # what bitsandbytes finds there

        def forward(self, x):
            return self.proj(x)

    config = BitLoraConfig(r=4, target_modules=["proj"], quantizer="ternary")
    model = get_peft_model(Block(), config)
    disturb(model)
    before = model.base_model.model.proj.base_layer.weight.data.clone()
    x = torch.randn(5, 64)
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.equal(model.base_model.model.proj.base_layer.weight.data, before)
        model.merge_adapter()
        assert apart(model(x), expected) < 1e-5

    repacked = Block()
    weight = repacked.proj.weight
    weight.data, weight.quant_state = _convert_weight_packed_for_cpu(weight.data, weight.quant_state)
    with pytest.raises(ValueError, match="load it anew"):
        get_peft_model(repacked, config).merge_adapter()


def test_a_layer_that_nobody_can_merge_into_is_refused():
    class Linear8bit(nn.Linear):
        pass

    linear = Linear8bit(8, 8)
    linear.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"Linear8bit with weights in torch\.int8: give a base that"):
        get_peft_model(nn.Sequential(linear), BitLoraConfig(target_modules=["0"], quantizer="binary"))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("component", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_forward_and_gradients_of_a_layer(quantizer, component, int8):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(7, 24, dtype=torch.float64, generator=generator)
    grad = torch.randn(7, 6, dtype=torch.float64, generator=generator)
    options = {"quantizer": quantizer, "granularity": "component" if component else "tensor"}
    config = BitLoraConfig(**options, activations="int8" if int8 else "full")
    for side, axis in (("A", 1), ("B", 0)):
        linear = nn.Linear(24, 6, bias=False).double()
        ours = QuantizedLinear(linear, side, config)
        scale = torch.rand(6, 1, dtype=torch.float64, generator=generator) if ours.scales is not None else None
        if scale is not None:
            ours.scales.data.copy_(scale)
        twin = nn.Linear(24, 6, bias=False).double()
        twin.weight.data.copy_(ours.weight)
        theirs = oracle.FakeQuantLinear(twin, oracle.Recipe(quantizer, component, int8), axis, scale)
        seen = []
        for layer in (ours, theirs):
            leaf = x.clone().requires_grad_()
            out = layer(leaf)
            out.backward(grad)
            found = dict(layer.named_parameters())
            seen.append([out, leaf.grad, found["weight"].grad, *([found[k].grad for k in found if "scale" in k])])
        for mine, other in zip(*seen, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_gradient_checkpointing_changes_nothing(make, quantization):
    grads = []
    for checkpointing in (False, True):
        model = make(quantization, quantizer="double_binary", activations="int8").train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert len(grads[0]) == 4 * 14
    assert all(apart(grads[0][name], grads[1][name]) < 1e-6 for name in grads[0])
    assert any(grad.any() for grad in grads[0].values())


def test_two_processes_come_to_the_weights_of_one(float64_base, tmp_path):
    found = {}
    for size in (1, 2):
        outs = [tmp_path / f"{size}-{rank}.json" for rank in range(size)]
        program = [sys.executable, peft_program.__file__]
        processes = [
            subprocess.Popen([*program, str(rank), str(size), str(tmp_path / "meeting"), str(float64_base), str(out)])
            for rank, out in enumerate(outs)
        ]
        assert [process.wait(timeout=240) for process in processes] == [0] * size
        found[size] = [json.loads(out.read_text()) for out in outs]
    assert found[2][0] == found[2][1]
    assert len(found[1][0]) == 16 * 3 + 16
    for ours, theirs in zip(found[2][0], found[1][0], strict=True):
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-6, atol=1e-9)


def test_what_a_quantizer_does_not_go_with_is_refused_by_name():
    for options, message in (
        ({"use_dora": True, "activations": "int8"}, "use_dora does not go with activations: int8: DoRA"),
        # PEFT 0.21.2 (tuners/lora/bnb.py, resolve_lora_variant) drops these two over NF4 without a word.
        ({"kasa_config": KasaConfig()}, "kasa_config does not go with a quantizer"),
        ({"use_bdlora": BdLoraConfig()}, "use_bdlora does not go with a quantizer"),
        ({"init_lora_weights": "pissa"}, "'pissa' is not there"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' is not there"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "'loftq' is not there"),
        ({"lora_bias": True}, "lora_bias does not go"),
        ({"quantizer": "trinary"}, "quantizer: 'trinary' is none of none, binary, ternary"),
        ({"granularity": "row"}, "granularity: 'row' is none of tensor, component"),
    ):
        with pytest.raises(ValueError, match=message):
            BitLoraConfig(**options)
