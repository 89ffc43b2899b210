"""transformers' Conv1D (GPT-2), plain, in NF4 and in 8 bits: in a pack as in stock PEFT, and handed on in every form."""

import pytest
import torch
from adapters import exact, quantized
from base_families import HELD
from both_ways import VOCAB, Trial, batch_of, worst
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bitlora.adapter.apply import load_packed_adapter, merge
from bitlora.adapter.codes_file import save_packed
from bitlora.adapter.latent import quantized_weights
from bitlora.adapter.peft_folder import save_adapter, save_lora_adapter
from bitlora.adapter.peft_layers import load_adapter
from bitlora.base.describe import describe_base
from bitlora.base.load import load_model
from bitlora.config.sections import BaseConfig
from bitlora.engine.engine import Engine
from bitlora.forward.forward_plan import ForwardPlan, Span
from bitlora.forward.inject import load_base

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "gpt2"
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(HELD["GPT-2"][0]()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_an_adapter_on_conv1d(quantization, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("BITLORA_CACHE", str(tmp_path / "cache"))
    config = BaseConfig(model=str(folder), quantization=quantization)
    shapes = {shape.name: (shape.in_features, shape.out_features) for shape in describe_base(config).linears}
    assert shapes["transformer.h.0.attn.c_attn"] == (64, 192)
    assert shapes["transformer.h.1.mlp.c_fc"] == (64, 256)
    assert len(shapes) == 8
    engine = Engine(load_base(config, torch.float32, CPU), 1)
    dora = quantization == "none"
    trial = Trial(seed=1, quantizer="ternary", rank=3, rate=5e-4, steps=4, own={"dora": dora}, peft={"use_dora": dora})
    slot = engine.attach(trial.config)
    start = engine.latent(slot)
    losses = [engine.step({slot: batch_of(rows)})[slot].loss for rows in trial.batches]
    losses.append(engine.evaluate([slot], batch_of(trial.held_out))[slot].loss)

    def plain():
        return exact(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **quantized(quantization)))

    alone = plain()
    # all-linear over a quantized base is bitsandbytes' layers, which are those of Conv1D
    assert worst(losses, trial.alone(alone, start, targets="all-linear")) < 1e-4
    tokens = torch.randint(3, VOCAB, (24,), generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        ours = engine.base.logits(ForwardPlan.make([Span(slot, 0, 24)], [[24]], [0], CPU), tokens, torch.arange(24))
    latent = engine.latent(slot)

    def apart(model):
        with torch.no_grad():
            found = model.eval()(input_ids=tokens[None], use_cache=False).logits[0]
        return float((found - ours).abs().max() / ours.abs().max())

    for form in ("peft", "packed", "latent"):
        (tmp_path / form).mkdir()
    save_lora_adapter(tmp_path / "peft", latent, trial.config, str(folder))
    save_packed(tmp_path / "packed", latent, trial.config, str(folder))
    save_adapter(tmp_path / "latent", latent, trial.config, str(folder))
    assert apart(plain()) > 1e-4
    assert apart(PeftModel.from_pretrained(plain(), tmp_path / "peft")) < 1e-5
    assert apart(load_packed_adapter(plain(), tmp_path / "packed")) < 1e-5
    ours_in_peft = load_adapter(plain(), tmp_path / "latent")
    assert apart(ours_in_peft) < 1e-5
    ours_in_peft.merge_adapter()
    assert apart(ours_in_peft) < 1e-5
    merged = merge(load_model(config, torch.float32, CPU), quantized_weights(latent, trial.config), trial.config,
                   torch.float32)  # fmt: skip
    assert isinstance(merged.transformer.h[0].mlp.c_fc, Conv1D)
    merged.save_pretrained(tmp_path / "merged")
    assert apart(AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)) < 1e-5
