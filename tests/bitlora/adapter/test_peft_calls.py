"""PEFT's own calls over adapters with a quantizer: made, trained, saved, loaded, merged, mixed and deleted as LoRA is.

What PEFT 0.21.2 expects of an adapter type in its tests of custom models, in this project's words, over a small MLP.
"""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import nn
from transformers import AutoModelForCausalLM

from bitlora.adapter.peft_layers import BitLoraConfig
from bitlora.export import load_packed_adapter

X = torch.randn(6, 10, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([0, 1, 1, 0, 1, 0])
SHAPES = {
    "plain": {},
    "rank and alpha": {"r": 6, "lora_alpha": 24.5},
    "rslora": {"r": 6, "lora_alpha": 24.5, "use_rslora": True},
    "dropout": {"lora_dropout": 0.3},
    "patterns": {"rank_pattern": {"lin1": 3}, "alpha_pattern": {"lin0": 5}},
}


class Mlp(nn.Module):
    """The base of each test, with the same weights each time."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.lin0, self.lin1 = nn.Linear(10, 20), nn.Linear(20, 2)

    def forward(self, x):
        return self.lin1(torch.relu(self.lin0(x))).log_softmax(-1)


@pytest.fixture(params=["none", "binary", "ternary", "int4", "double_binary"])
def quantizer(request):
    return request.param


@pytest.fixture(params=SHAPES)
def options(request):
    return SHAPES[request.param]


def config(quantizer, **options):
    """Of an adapter that does something from the start."""
    return BitLoraConfig(
        **{"target_modules": ["lin0", "lin1"], "init_lora_weights": False, "quantizer": quantizer} | options
    )


def make(quantizer, seed=1, **options):
    torch.manual_seed(seed)
    return get_peft_model(Mlp(), config(quantizer, **options)).eval()


def out(model, **options):
    with torch.no_grad():
        return model(X, **options)


def near(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def train(model, steps=5):
    # Without momentum and weight decay, so that a parameter without gradient stays as it is.
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.nll_loss(model(X), Y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    model.eval()
    return losses


def test_what_a_model_says_of_its_adapter(quantizer, options):
    model = make(quantizer, **options)
    assert (model.active_adapter, [*model.peft_config], model.peft_type) == ("default", ["default"], "LORA")
    layer = model.base_model.model.lin0
    assert (layer.in_features, layer.out_features, layer.r["default"]) == (10, 20, options.get("r", 8))
    assert "BitLinear(" in repr(model)
    assert "QuantizedLinear(" in repr(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert model.get_nb_trainable_parameters()[0] == sum(p.numel() for n, p in model.named_parameters() if n in trained)


def test_a_fresh_adapter_changes_nothing(quantizer, options):
    fresh = get_peft_model(Mlp(), config(quantizer, init_lora_weights=True, **options)).eval()
    assert near(out(fresh), out(Mlp()))
    assert not near(out(make(quantizer)), out(Mlp()))


def test_training_changes_the_adapter_alone(quantizer, options):
    model = make(quantizer, **options)
    before = copy.deepcopy(model.state_dict())
    losses = train(model)
    assert all(torch.isfinite(torch.tensor(losses)))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changed == trained


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "pickle"])
def test_saved_it_loads_by_pefts_own_calls(quantizer, options, safe, tmp_path):
    model = make(quantizer, **options)
    train(model, 2)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    assert {file.name for file in tmp_path.iterdir()} == {
        "adapter_config.json", "README.md", "adapter_model.safetensors" if safe else "adapter_model.bin"
    }  # fmt: skip
    for how in ({}, {"low_cpu_mem_usage": True}, {"config": PeftConfig.from_pretrained(str(tmp_path))}):
        loaded = PeftModel.from_pretrained(Mlp(), str(tmp_path), **how)
        assert near(out(loaded.eval()), out(model))
        assert not any(p.requires_grad for p in loaded.parameters())
        found, expected = get_peft_model_state_dict(loaded), get_peft_model_state_dict(model)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in found)
        ours, theirs = (each.peft_config["default"].to_dict() for each in (loaded, model))
        free = {"inference_mode": None, "auto_mapping": None}
        assert ours | free == theirs | free
    again = PeftModel.from_pretrained(Mlp(), str(tmp_path), is_trainable=True)
    assert any(p.requires_grad for p in again.parameters())
    assert len(set(train(again))) > 1


def test_the_configuration_is_read_from_either_class(quantizer, tmp_path):
    config(quantizer, granularity="component").save_pretrained(str(tmp_path))
    for kind in (PeftConfig, BitLoraConfig):
        read = kind.from_pretrained(str(tmp_path))
        assert (type(read), read.quantizer, read.granularity) == (BitLoraConfig, quantizer, "component")
    path = tmp_path / "adapter_config.json"
    written = json.loads(path.read_text())
    assert written["peft_type"] == "BITLORA: install bitlora-sweeps and import bitlora.export"
    path.write_text(json.dumps({**written, "peft_type": "BITLORA"}))  # as version 0.1 wrote it
    assert PeftConfig.from_pretrained(str(tmp_path)).quantizer == quantizer


def test_where_bitlora_is_not_imported_the_error_says_what_to_do(tmp_path):
    make("ternary").save_pretrained(tmp_path)
    program = "import sys; from peft import PeftConfig; PeftConfig.from_pretrained(sys.argv[1])"
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    said = "KeyError: 'BITLORA: install bitlora-sweeps and import bitlora.export'"
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, said)
    program = program.replace("import sys;", "import sys, bitlora.export;")
    ran = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_several_adapters_in_one_model(quantizer, tmp_path):
    alone = {"one": make(quantizer, 1), "two": make(quantizer, 2, r=5)}
    for name, model in alone.items():
        model.save_pretrained(tmp_path / name)
    both = PeftModel.from_pretrained(Mlp(), str(tmp_path / "one"), adapter_name="one")
    assert both.load_adapter(str(tmp_path / "two"), "two").missing_keys == []
    both.eval()
    for name, model in alone.items():
        both.set_adapter(name)
        assert both.active_adapter == name
        assert near(out(both), out(model))
    mixed = out(both, adapter_names=["one", "__base__", "two", "one", "two", "__base__"])
    for row, source in enumerate([alone["one"], Mlp(), alone["two"], alone["one"], alone["two"], Mlp()]):
        assert near(mixed[row], out(source)[row])
    both.save_pretrained(tmp_path / "both", selected_adapters=["two"])
    assert [path.name for path in (tmp_path / "both").iterdir() if path.is_dir()] == ["two"]
    both.delete_adapter("two")
    assert [*both.peft_config] == ["one"]
    both.set_adapter("one")
    assert near(out(both), out(alone["one"]))
    with pytest.raises(ValueError, match="unknown"):
        both.delete_adapter("unknown")


def test_switched_off_it_is_the_base(quantizer):
    model = make(quantizer)
    with model.disable_adapter():
        assert near(out(model), out(Mlp()))
    on = out(model)
    model.merge_adapter()
    assert near(out(model), on)
    with model.disable_adapter():
        assert near(out(model), out(Mlp()))
    assert near(out(model), on)
    model.unmerge_adapter()
    assert near(out(model), on)
    assert near(out(model.unload()), out(Mlp()))


@pytest.mark.parametrize("safe", [True, False])
def test_merged_it_is_a_plain_model(quantizer, options, safe):
    model = make(quantizer, **options)
    expected = out(model)
    merged = model.merge_and_unload(safe_merge=safe)
    assert type(merged) is Mlp
    assert type(merged.lin0) is nn.Linear
    assert near(out(merged), expected)


def test_a_broken_adapter_is_not_merged(quantizer):
    model = make(quantizer)
    with torch.no_grad():
        # Of double_binary the scale, which comes last: it shows where a sign might not.
        [p for name, p in model.named_parameters() if "lin0.lora_B" in name][-1].fill_(torch.nan)
    before = {name: p.clone() for name, p in model.named_parameters() if "base_layer" in name}
    with pytest.raises(ValueError, match="NaN"):
        model.merge_adapter(safe_merge=True)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_two_adapters_merge_into_one_model(quantizer, tmp_path):
    make(quantizer, 2).save_pretrained(tmp_path)
    model = make(quantizer, 1)
    delta = {}
    model.load_adapter(str(tmp_path), "two")
    for name in ("default", "two"):
        delta[name] = model.base_model.model.lin0.get_delta_weight(name)
    merged = model.merge_and_unload(adapter_names=["default", "two"])
    assert near(merged.lin0.weight, Mlp().lin0.weight + delta["default"] + delta["two"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_over_a_base_in_16_bits(quantizer, dtype):
    torch.manual_seed(1)
    model = get_peft_model(Mlp().to(dtype), config(quantizer)).eval()
    with torch.no_grad():
        found = model(X.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - out(make(quantizer))).abs().max() < 0.1


def test_copies(quantizer):
    model = make(quantizer)
    assert near(out(copy.deepcopy(model)), out(model))
    assert near(out(pickle.loads(pickle.dumps(model))), out(model))
    other = make(quantizer, 2)
    set_peft_model_state_dict(other, get_peft_model_state_dict(model))
    assert near(out(other), out(model))


def test_layers_beside_it_are_saved_too(quantizer, tmp_path):
    model = make(quantizer, target_modules=["lin0"], modules_to_save=["lin1"])
    train(model, 2)
    assert not torch.equal(model.base_model.model.lin1.modules_to_save["default"].weight, Mlp().lin1.weight)
    model.save_pretrained(tmp_path)
    assert near(out(PeftModel.from_pretrained(Mlp(), str(tmp_path)).eval()), out(model))


def test_injected_without_a_model_around_it(quantizer):
    torch.manual_seed(1)
    model = inject_adapter_in_model(config(quantizer), Mlp()).eval()
    assert isinstance(model, Mlp)
    assert near(out(model), out(make(quantizer)))


def test_transformers_own_calls(tiny_base, tmp_path, monkeypatch):
    """transformers 5.24.0 asks for PEFT 0.22.0, and 0.21.2 is the newest: with it these calls refuse every adapter."""
    monkeypatch.setattr("transformers.integrations.peft.MIN_PEFT_VERSION", "0.21.2")
    tokens = torch.arange(3, 19)[None]

    def logits(model):
        with torch.no_grad():
            return model.eval()(input_ids=tokens).logits

    def base():
        return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)

    torch.manual_seed(1)
    model = base()
    model.add_adapter(BitLoraConfig(target_modules="all-linear", quantizer="ternary", init_lora_weights=False))
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["quantizer"] == "ternary"
    expected = logits(model)
    assert not near(expected, logits(base()))
    by_transformers = base()
    by_transformers.load_adapter(str(tmp_path))
    for loaded in (by_transformers, PeftModel.from_pretrained(base(), str(tmp_path))):
        assert near(logits(loaded), expected)
    stock = base()
    stock.add_adapter(LoraConfig(target_modules="all-linear"))
    with pytest.raises(ValueError, match=r"\('quantizer',\)"):
        stock.load_adapter(str(tmp_path), adapter_name="second")


def test_a_packed_adapter_is_refused_with_the_call_that_reads_it(tmp_path):
    written = config("ternary").to_dict() | {"peft_type": "BITLORA_PACKED"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(written, default=list))
    with pytest.raises(ValueError, match=f"load it with bitlora.export.{load_packed_adapter.__name__}"):
        BitLoraConfig.from_pretrained(str(tmp_path))
