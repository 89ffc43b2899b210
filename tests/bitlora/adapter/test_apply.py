"""Adapters handed on: what PEFT runs, and what a merged model computes, is what the pack computed."""

import json

import pytest
import torch
from adapters import trial
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bitlora.adapter.apply import attach_weights, check_fit, load_packed_adapter, merge, save_merged
from bitlora.adapter.codes_file import save_packed
from bitlora.adapter.latent import quantized_weights
from bitlora.adapter.loss import eval_loss, example_losses
from bitlora.adapter.peft_folder import adapter_config, load_latent, save_adapter, save_lora_adapter
from bitlora.base.load import load_model, load_tokenizer
from bitlora.config.sections import BaseConfig, DataConfig
from bitlora.data.split import prepare_data
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.inject import load_base
from bitlora.quantizers.weights import QUANTIZERS

CPU = torch.device("cpu")
TOKENS = torch.randint(3, 96, (1, 24), generator=torch.Generator().manual_seed(9))
NEAR = {"none": 1e-5, "nf4": 1e-3, "int8": 1e-5}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def apart(ours, theirs):
    return float((ours - theirs).abs().max())


@pytest.fixture(scope="module")
def rows(tiny_base, arithmetic):
    config = DataConfig(source=str(arithmetic), max_length=64, eval_rows=12)
    return prepare_data(config, load_tokenizer(str(tiny_base))).eval


@pytest.fixture(scope="module", params=["none", "nf4", "int8"])
def packed(request, tiny_base, rows):
    """A base, and configuration, latent weights, logits and losses of a trial of every quantizer, two of them with int8."""
    base = BaseConfig(model=str(tiny_base), quantization=request.param)
    configs = [
        trial(q, scaling="rslora", granularity="component" if n % 2 else "tensor") for n, q in enumerate(QUANTIZERS)
    ]
    configs += [trial("none", scaling="rslora", activations="int8"), trial("twn", scaling="rslora", activations="int8")]
    engine = Engine(load_base(base, torch.float32, CPU), len(configs))
    slots = {engine.attach(c): c for c in configs}
    generator = torch.Generator().manual_seed(2)
    for _ in range(6):
        learn = torch.ones(24, dtype=torch.bool)
        learn[[0, 12]] = False
        engine.step(dict.fromkeys(slots, Batch(torch.randint(3, 96, (24,), generator=generator), learn, (12, 12))))
    found = []
    for slot, config in slots.items():
        n = TOKENS.shape[1]
        plan = ForwardPlan.make([Span(slot, 0, n)], [[n]], [0], CPU)
        with torch.no_grad():
            out = engine.base.logits(plan, TOKENS[0], torch.arange(n))[None]
        losses = engine.evaluate([slot], Batch.of(rows))[slot]
        found.append((config, engine.latent(slot), out, losses))
    return base, found


def test_packed_and_loaded_again_it_is_the_packs_adapter(packed, rows, tmp_path):
    base, trials = packed
    for number, (config, latent, expected, losses) in enumerate(trials):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_packed(folder, latent, config, base.model)
        model = load_packed_adapter(load_model(base, torch.float32, CPU), folder)
        # In float16 the weights of `none` are rounded; with 8-bit activations a last bit can tip a rounding: by 0.024 here
        # over a base of 8 bits on a CPU without AVX-512.
        tipped = 4e-2 if base.quantization == "int8" else 2e-2
        near = {config.quantizer == "none": 5e-3, config.activations == "int8": tipped}.get(
            True, NEAR[base.quantization]
        )
        assert apart(logits(model), expected) < near, config
        assert not any(p.requires_grad for p in model.parameters())
        found = example_losses(model, rows)
        assert found == pytest.approx(losses.losses, rel=1e-3)
        assert eval_loss(model, rows) == pytest.approx(losses.loss, rel=1e-3 if near > 1e-3 else 1e-4)


def test_stock_peft_and_attached_weights_give_the_packs_logits(packed, tmp_path):
    base, trials = packed
    for number, (config, latent, expected, _) in enumerate(trials):
        if config.activations == "int8":
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        save_lora_adapter(folder, latent, config, base.model)
        stock = PeftModel.from_pretrained(load_model(base, torch.float32, CPU), str(folder))
        assert apart(logits(stock), expected) < NEAR[base.quantization], config
        weights = quantized_weights(latent, config)
        ours = attach_weights(load_model(base, torch.float32, CPU), weights, adapter_config(config, "", []))
        assert apart(logits(ours), logits(stock)) < 1e-6


def test_merged_it_computes_what_it_did_unmerged(packed, tiny_base, tmp_path):
    base, trials = packed
    for number, (config, latent, expected, _) in enumerate(trials[:4]):
        model = merge(load_model(base, torch.float32, CPU), quantized_weights(latent, config), config, torch.float32)
        save_merged(tmp_path / str(number), model, load_tokenizer(str(tiny_base)))
        written = json.loads((tmp_path / str(number) / "config.json").read_text())
        assert "quantization_config" not in written
        assert written["dtype"] == "float32"
        again = AutoModelForCausalLM.from_pretrained(tmp_path / str(number))
        plain = AutoModelForCausalLM.from_pretrained(tiny_base)
        assert {k: (v.shape, v.dtype) for k, v in again.state_dict().items()} == {
            k: (v.shape, v.dtype) for k, v in plain.state_dict().items()
        }
        assert apart(logits(again), expected) < NEAR[base.quantization], config
        assert apart(logits(again), logits(plain)) > 0.01
        assert load_tokenizer(str(tmp_path / str(number))).chat_template


def test_merged_is_rounded_once(packed, tiny_base):
    base, trials = packed
    config, latent, _, _ = trials[1]
    weights = quantized_weights(latent, config)
    exact, half = (
        merge(load_model(base, torch.float32, CPU), weights, config, dtype).state_dict()
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert all(torch.equal(value.bfloat16(), half[name]) for name, value in exact.items())


def test_latent_weights_come_back(packed, tmp_path):
    _, trials = packed
    for number, (config, latent, _, _) in enumerate(trials):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_adapter(folder, latent, config, "some/base")
        found = load_latent(folder, config)
        assert list(found) == list(latent)
        assert all(
            torch.equal(a, b) for name in found for a, b in zip(found[name].tensors, latent[name].tensors, strict=True)
        )
    with pytest.raises(ValueError, match=r"found A \[4, 64\] and B .*; rank 5 has A \[5, in\]"):
        load_latent(folder, trial("twn", rank=5))
    with pytest.raises(ValueError, match=r"scales is missing, or not of a double_binary adapter"):
        load_latent(folder, trial("double_binary"))
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: not an adapter"):
        load_latent(folder, config)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors.*the trial has no adapter"):
        load_latent(folder, config)


def test_another_base_is_refused_by_the_layer_that_does_not_fit(tiny_base, float64_base):
    name = "model.layers.0.self_attn.k_proj"
    model = load_model(BaseConfig(model=str(tiny_base), quantization="none"), torch.float32, CPU)
    weights = {name: (torch.zeros(2, 64), torch.zeros(64, 2))}
    for refused in (
        check_fit,
        lambda m, w: attach_weights(m, w, {}),
        lambda m, w: merge(m, w, trial("none"), torch.float32),
    ):
        with pytest.raises(
            ValueError, match=f"{name} of the base has 64 inputs and 32 outputs, that of the adapter 64"
        ):
            refused(model, weights)
    other = load_model(BaseConfig(model=str(float64_base), quantization="none"), torch.float32, CPU)
    with pytest.raises(ValueError, match=f"the base has no linear layer {name}"):
        check_fit(other, weights)
