"""What the product takes from PEFT that nobody promised it: layers and variants of one's own, and what a saved adapter is.

PEFT says of the variants that they are prone to change. A failure shows the docstring of its test, which says who relies
on what is gone; a failed import shows who imports the same.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit  # bitlora.adapter.peft_layers
from peft.tuners.lora.layer import Linear as LoraLinear  # bitlora.adapter.peft_layers
from peft.tuners.lora.layer import LoraVariant  # bitlora.adapter.peft_layers
from peft.tuners.tuners_utils import check_adapters_to_merge  # bitlora.adapter.peft_layers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig


class _Base(nn.Module):
    """Two layers, the second in NF4."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, 64, bias=False)
        self.down = Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        self.down.support_avx512bf16_for_cpu = False
        self.to("cpu")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(self.up(x))
        return out


CALLS: list[Any] = []


class _Variant(LoraVariant):  # type: ignore[misc]
    """Twice the adapter, as `bitlora.adapter.peft_layers.BitLoraVariant` has its own idea of what it adds."""

    @staticmethod
    def init(module: Any, adapter_name: str, config: Any, **kwargs: Any) -> None:
        CALLS.append(("init", adapter_name, module.lora_A[adapter_name].weight.shape, config.quantizer))

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        z = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        out: Tensor = result + 2 * module.lora_B[active_adapter](z) * module.scaling[active_adapter]
        return out

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        CALLS.append(("merge_safe", active_adapter))
        out: Tensor = orig_weight + 2 * module.get_delta_weight(active_adapter)
        return out

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        CALLS.append(("merge_unsafe", active_adapter))
        orig_weight.data += 2 * module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        CALLS.append(("unmerge", active_adapter))
        out: Tensor = orig_weight.data - 2 * module.get_delta_weight(active_adapter)
        return out


class _Own:
    """As `bitlora.adapter.peft_layers._Quantizing`."""

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        inherited: Any = super()
        return _Variant() if isinstance(config, _Config) else inherited.resolve_lora_variant(config=config, **kwargs)


class _OwnLinear(_Own, LoraLinear):  # type: ignore[misc]
    pass


class _OwnLinear4bit(_Own, LoraLinear4bit):  # type: ignore[misc]
    pass


@dataclass
class _Config(LoraConfig):  # type: ignore[misc]
    """As `bitlora.adapter.peft_layers.BitLoraConfig`."""

    quantizer: str = field(default="none", metadata={"is_lora_variant": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._register_custom_module({Linear4bit: _OwnLinear4bit, nn.Linear: _OwnLinear})

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "peft_type": "CONTRACT"}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> _Config:
        CALLS.append(("from_peft_type", kwargs.pop("peft_type", None)))
        return cls(**kwargs)


OPTIONS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["up", "down"]}


@pytest.fixture
def model() -> PeftModel:
    """Made as users of `bitlora.adapter.peft_layers` make theirs: by PEFT's own `get_peft_model`."""
    CALLS.clear()
    made = get_peft_model(_Base(), _Config(**OPTIONS))
    for layer in (made.base_model.model.up, made.base_model.model.down):
        nn.init.normal_(layer.lora_B["default"].weight)
    return made


def test_layers_of_ones_own_in_the_order_they_are_given(model: PeftModel) -> None:
    """bitlora.adapter.peft_layers.BitLoraConfig: `_register_custom_module` maps types of layers to ours, the first that
    fits; they are made with the layer, the adapter's name, and the configuration."""
    assert type(model.base_model.model.up) is _OwnLinear
    assert type(model.base_model.model.down) is _OwnLinear4bit
    assert [module.get_base_layer().weight.dtype for module in _layers(model)] == [torch.float32, torch.uint8]


def test_a_variant_is_resolved_and_begun_when_a_and_b_are_there(model: PeftModel) -> None:
    """bitlora.adapter.peft_layers.BitLoraVariant: a layer asks `resolve_lora_variant(config=…)`, and `init(module,
    adapter_name=…, config=…)` then puts quantizing modules in the place of `lora_A` and `lora_B`."""
    assert [call for call in CALLS if call[0] == "init"] == [("init", "default", torch.Size([4, 64]), "none")] * 2
    layer = model.base_model.model.up
    assert isinstance(layer.lora_A["default"], nn.Linear)
    assert layer.lora_A["default"].bias is None
    assert isinstance(layer.lora_variant["default"], _Variant)


def test_a_variant_computes_the_forward_pass(model: PeftModel) -> None:
    """bitlora.adapter.peft_layers.BitLoraVariant.forward: gets the base's output and adds to it; in both kinds of layer."""
    for layer in _layers(model):
        x = torch.randn(3, 64)
        with torch.no_grad():
            base = layer.get_base_layer()(x)
            added = layer.lora_B["default"](layer.lora_A["default"](x)) * 2 * layer.scaling["default"]
            assert layer.scaling["default"] == 2.0
            torch.testing.assert_close(layer(x), base + added)


@pytest.mark.parametrize("safe", [True, False])
def test_a_variant_merges_and_unmerges(model: PeftModel, safe: bool) -> None:
    """bitlora.adapter.peft_layers.BitLinear: PEFT's own `merge` and `unmerge` of a plain layer go through the variant."""
    layer = model.base_model.model.up
    before = layer.get_base_layer().weight.detach().clone()
    CALLS.clear()
    layer.merge(safe_merge=safe)
    assert layer.merged_adapters == ["default"]
    torch.testing.assert_close(layer.get_base_layer().weight, before + 2 * layer.get_delta_weight("default"))
    layer.unmerge()
    assert not layer.merged
    torch.testing.assert_close(layer.get_base_layer().weight.detach(), before, atol=1e-5, rtol=0)
    assert [name for name, _ in CALLS] == ["merge_safe" if safe else "merge_unsafe", "unmerge"]


def test_a_merged_layer_computes_by_what_stands_in_its_bases_place(model: PeftModel) -> None:
    """bitlora.adapter.peft_layers.BitLinear4bit.merge: sets `base_layer` to a plain layer and adds to `merged_adapters`;
    the forward pass is then that layer's alone, and putting the NF4 layer back undoes it."""
    layer = model.base_model.model.down
    four_bits = layer.get_base_layer()
    plain = nn.Linear(64, 64, bias=False)
    layer.base_layer = plain
    layer.merged_adapters += ["default"]
    x = torch.randn(3, 64)
    assert layer.merged
    assert layer.get_base_layer() is plain
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x))
    layer.base_layer = four_bits
    layer.merged_adapters.clear()
    assert not layer.merged


def test_which_adapters_are_to_merge(model: PeftModel) -> None:
    """bitlora.adapter.peft_layers._refuse_unmergeable: `check_adapters_to_merge(layer, names or None)`: the active ones, or
    those that are named, less those that are merged already."""
    layer = model.base_model.model.up
    assert check_adapters_to_merge(layer, None) == ["default"]
    assert check_adapters_to_merge(layer, ["default"]) == ["default"]
    layer.merge()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert check_adapters_to_merge(layer, None) == []


def test_the_delta_of_an_adapter(model: PeftModel) -> None:
    """bitlora.adapter.peft_layers._delta: `get_delta_weight` of PEFT's own adapters is B A times `scaling`."""
    layer = model.base_model.model.up
    expected = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    torch.testing.assert_close(layer.get_delta_weight("default"), expected)


def test_stock_layers_refuse_an_unknown_variant() -> None:
    """bitlora.adapter.peft_layers.BitLoraConfig: a field with `is_lora_variant` in its metadata makes PEFT's own layer over
    `nn.Linear` refuse the configuration, so that a quantizer is not lost on it."""
    with pytest.raises(ValueError, match="quantizer"):
        LoraLinear(nn.Linear(64, 64), "default", config=_Config(**OPTIONS), r=4, lora_alpha=8)


def test_stock_4_bit_layers_do_not() -> None:
    """bitlora.adapter.peft_layers: PEFT's own layer over `Linear4bit` looks at no metadata: it takes the configuration and
    computes plain LoRA. Should this fail because PEFT refuses by now, our own check of layers is not needed for it."""
    layer = LoraLinear4bit(Linear4bit(64, 64), "default", config=_Config(**OPTIONS), r=4, lora_alpha=8)
    assert not layer.lora_variant


def test_what_is_saved_is_under_these_keys(model: PeftModel, tmp_path: Path) -> None:
    """bitlora.adapter.peft_folder: writes and reads adapters without PEFT: these files, these keys, and `to_dict` of the
    configuration as JSON."""
    model.save_pretrained(str(tmp_path))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    names = [f"base_model.model.{layer}.lora_{side}.weight" for layer in ("down", "up") for side in "AB"]
    assert sorted(tensors) == names
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "CONTRACT"
    assert (config["r"], config["lora_alpha"], sorted(config["target_modules"])) == (4, 8, ["down", "up"])
    assert config["use_rslora"] is False
    assert "_custom_modules" not in config


def test_stock_peft_refuses_a_type_that_it_does_not_know(model: PeftModel, tmp_path: Path) -> None:
    """bitlora.adapter.peft_folder.PEFT_TYPE: latent weights of a quantized adapter are wrong as an ordinary LoRA."""
    model.save_pretrained(str(tmp_path))
    for load in (PeftConfig.from_pretrained, LoraConfig.from_pretrained):
        with pytest.raises(Exception, match="CONTRACT"):
            load(str(tmp_path))
    with pytest.raises(Exception, match="CONTRACT"):
        PeftModel.from_pretrained(_Base(), str(tmp_path))


def test_a_configuration_reads_its_own_type(model: PeftModel, tmp_path: Path) -> None:
    """bitlora.adapter.peft_layers.BitLoraConfig.from_peft_type: `from_pretrained` of a subclass goes through its own, with
    all that stands in the file."""
    model.save_pretrained(str(tmp_path))
    CALLS.clear()
    config = _Config.from_pretrained(str(tmp_path))
    assert ("from_peft_type", "CONTRACT") in CALLS
    assert (type(config), config.r) == (_Config, 4)


def test_loading_says_what_did_not_fit(model: PeftModel, tmp_path: Path) -> None:
    """bitlora.adapter.peft_layers.load_adapter: into an adapter that is there, `load_adapter` loads weights without asking
    for its configuration's type, and gives `missing_keys` with the adapter's name in them, and `unexpected_keys`."""
    model.save_pretrained(str(tmp_path))
    config = _Config.from_pretrained(str(tmp_path))
    fresh = get_peft_model(_Base(), config)
    found = fresh.load_adapter(str(tmp_path), "default", is_trainable=False, torch_device="cpu")
    assert not [key for key in found.missing_keys if ".default." in key]
    assert not found.unexpected_keys
    torch.testing.assert_close(
        fresh.base_model.model.up.lora_B["default"].weight, model.base_model.model.up.lora_B["default"].weight
    )
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    tensors["base_model.model.up.lora_C.weight"] = tensors.pop("base_model.model.up.lora_A.weight")
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    found = fresh.load_adapter(str(tmp_path), "default", is_trainable=False, torch_device="cpu")
    assert [key for key in found.missing_keys if ".default." in key] == ["base_model.model.up.lora_A.default.weight"]
    assert found.unexpected_keys


def test_more_adapters_than_one(model: PeftModel) -> None:
    """bitlora.adapter.peft_layers.load_adapter: `add_adapter(name, config)` beside one that is there; `peft_config` has
    both by name."""
    model.add_adapter("second", _Config(**OPTIONS))
    assert sorted(model.peft_config) == ["default", "second"]
    model.set_adapter("second")
    assert model.base_model.model.up.active_adapters == ["second"]


def test_an_ordinary_adapter_is_found_by_its_layer(tmp_path: Path) -> None:
    """bitlora.adapter.apply, bitlora.adapter.peft_folder: stock PEFT over a base keeps names of layers below
    `base_model.model`, and reads a folder of an ordinary LoRA adapter that PEFT did not write."""
    name = "base_model.model.up.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(2, 64), name.format("B"): torch.ones(64, 2)},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "task_type": None, "r": 2, "lora_alpha": 4, "target_modules": ["up"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    model = PeftModel.from_pretrained(_Base(), str(tmp_path))
    layer = model.base_model.model.get_submodule("up")
    assert type(layer) is LoraLinear
    torch.testing.assert_close(layer.get_delta_weight("default"), torch.full((64, 64), 4.0))


def test_of_patterns_the_first_key_counts_and_files_have_them_sorted(tmp_path: Path) -> None:
    """bitlora.adapter.peft_folder._patterns writes whole names of layers: of keys that match a layer the first counts, and
    a file has them in another order (PEFT 0.21.2: findings/peft-saves-patterns-in-another-order.sh)."""
    options = {"r": 4, "target_modules": ["up"], "alpha_pattern": {"up": 32, ".*": 8}}
    made = get_peft_model(_Base(), LoraConfig(**options))
    made.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(_Base(), str(tmp_path))
    assert [model.base_model.model.up.scaling["default"] for model in (made, loaded)] == [8.0, 2.0]


# ---- routed experts


def _experts(**options: Any) -> PeftModel:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, num_experts=3,
        num_experts_per_tok=2, moe_intermediate_size=4, mlp_only_layers=[0],
    )  # fmt: skip
    return get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, **options)
    )


def test_tensors_of_experts_are_wrapped_in_each_other() -> None:
    """bitlora.adapter.peft_folder.tensor_place, bitlora.engine.slots.vector.Kind: A has the rank's rows for each expert,
    B its columns component by component; the last tensor of a module is the outermost."""
    model = _experts(target_modules=[], target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"])
    down = model.base_model.model.model.layers[1].mlp.experts
    up = down.base_layer
    assert (down.parameter_name, up.parameter_name) == ("down_proj", "gate_up_proj")
    a, b = up.lora_A["default"].weight, up.lora_B["default"].weight
    assert (a.shape, b.shape) == ((3 * 2, 8), (8, 2 * 3))
    wanted = torch.stack([4 * b[:, expert::3] @ a[2 * expert : 2 * expert + 2] for expert in range(3)])
    torch.testing.assert_close(up.get_delta_weight("default"), wanted)


def test_experts_drop_nothing() -> None:
    """bitlora.config.trial.refused_on_experts."""
    with pytest.raises(ValueError, match="lora_dropout"):
        _experts(target_modules=[], target_parameters=["mlp.experts.down_proj"], lora_dropout=0.1)


def test_names_of_linear_layers_are_taken_for_experts() -> None:
    """bitlora.adapter.peft_folder.as_parameter, bitlora.adapter.apply._unknown_to_peft: over a base that has experts a
    list's `gate_proj`, `up_proj` and `down_proj` are theirs (PEFT 0.21.2); as a parameter such a layer has its own."""
    name = "model.layers.0.mlp.down_proj"
    taken = _experts(target_modules=[name, "q_proj"])
    assert not hasattr(taken.base_model.model.get_submodule(name), "lora_A")
    meant = _experts(target_modules=["q_proj"], target_parameters=[f"{name}.weight"])
    layer = meant.base_model.model.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer.get_delta_weight("default"), 4 * b @ a)


def _layers(model: PeftModel) -> list[Any]:
    return [model.base_model.model.up, model.base_model.model.down]
