"""The same adapter as a citizen of PEFT: a configuration and layers that PEFT's own models, savers and trainers work with.

    model = get_peft_model(base, BitLoraConfig(quantizer="ternary", r=16, target_modules="all-linear"))
    model = PeftModel.from_pretrained(base, "runs/quickstart/trials/…/adapter")   # a trial's, or of save_pretrained
    model.load_adapter("…", "second")                                             # beside it

`BitLoraConfig` is a `LoraConfig` that registers layers of its own for `nn.Linear`, transformers' `Conv1D` and bitsandbytes'
`Linear4bit` and `Linear8bitLt`; they put modules that quantize in the place of `lora_A` and `lora_B`. What is saved are
the latent weights under PEFT's usual keys, and a configuration of a type that PEFT knows once this module is imported, and
refuses before: it would compute something else with them. Its own layers refuse such a configuration too; over those of
bitsandbytes they would drop the quantizer (PEFT 0.21.2), so there, and there alone, a method of theirs is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_args

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import LoraConfig, PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.bnb import Linear4bit as LoraLinear4bit
from peft.tuners.lora.bnb import Linear8bitLt as LoraLinear8bit
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitlora.adapter.peft_folder import EARLIER_PACKED_TYPE, EARLIER_TYPE, PEFT_TYPE
from bitlora.adapter.quantized_linear import QuantizedLinear
from bitlora.base.linears import is_quantized, weight_values
from bitlora.config.sections import Activations
from bitlora.quantizers.weights import Granularity, Quantizer

REFUSED: Final = {
    "lora_bias": "a bias of the adapter is neither quantized nor stored",
    "target_parameters": "PEFT adds such an adapter to the base's weights, and would leave out the quantizer",
    "use_qalora": "its adapter is not the product of two matrices over the layer's inputs",
}
"""Options of `LoraConfig` that would change what the adapter is, and why they are not there."""

NOT_LINEAR: Final = (
    "DoRA divides by the norms of the merged weight, and then no merged weight does what the adapter does"
)
STRANGE: Final = "is PEFT's own layer, without quantizers: make the model with a BitLoraConfig"


@dataclass
class BitLoraConfig(LoraConfig):  # type: ignore[misc]
    """A `peft.LoraConfig` with a quantizer.

    Raises:
        ValueError: a quantizer, granularity or activations that do not exist; or an option of LoRA (PiSSA, LoftQ, …) that
            does not go with it; or DoRA with `int8` activations.
    """

    quantizer: Quantizer = field(default="none", metadata={"is_lora_variant": True})
    """PEFT's own layers refuse an adapter whose variant they do not know: so it is never lost on them."""
    granularity: Granularity = "tensor"
    activations: Activations = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (("quantizer", Quantizer), ("granularity", Granularity), ("activations", Activations)):
            if getattr(self, name) not in get_args(values):
                raise ValueError(f"{name}: {getattr(self, name)!r} is none of {', '.join(get_args(values))}")
        # PEFT's own layers over bitsandbytes' drop some of its variants in silence; here none is dropped.
        variants = {each.name: "it is another variant of LoRA" for each in fields(self) if _is_variant(each)}
        for name, why in {**variants, **REFUSED}.items():
            if getattr(self, name, None):
                raise ValueError(f"{name} does not go with a quantizer: {why}")
        if isinstance(self.init_lora_weights, str) and self.init_lora_weights != "gaussian":
            raise ValueError(
                f"init_lora_weights: {self.init_lora_weights!r} is not there: it starts from, or changes, the base's own "
                "weights, and B must start as an exact no-op"
            )
        if self.use_dora and self.activations == "int8":
            raise ValueError(f"use_dora does not go with activations: int8: {NOT_LINEAR}")
        # bitsandbytes' are nn.Linear too, so they go first.
        own = {Linear4bit: BitLinear4bit, Linear8bitLt: BitLinear8bit, nn.Linear: BitLinear, Conv1D: BitLinear}
        self._register_custom_module(own)

    def to_dict(self) -> dict[str, Any]:
        """As PEFT writes it, with the type that stock PEFT refuses."""
        return {**super().to_dict(), "peft_type": PEFT_TYPE}

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> BitLoraConfig:
        """The configuration that `to_dict`, or a trial, has written.

        Raises:
            ValueError: it is an ordinary LoRA adapter's. Its weights are what is multiplied; a quantizer would change them
                (`ternary` changes even those that it has quantized itself). Or it is a packed one.
        """
        found = kwargs.pop("peft_type", PEFT_TYPE)
        if str(found).startswith(EARLIER_PACKED_TYPE):
            raise ValueError("a packed adapter: load it with bitlora.export.load_packed_adapter")
        if found not in (PEFT_TYPE, EARLIER_TYPE):
            raise ValueError(f"not an adapter with a quantizer (peft_type {EARLIER_TYPE}): load it with PEFT itself")
        return cls(**kwargs)


class BitLoraVariant(LoraVariant):  # type: ignore[misc]
    """How PEFT's LoRA layers come by an adapter with a quantizer."""

    @staticmethod
    def init(module: Any, adapter_name: str, config: BitLoraConfig, **kwargs: Any) -> None:
        module.lora_A[adapter_name] = QuantizedLinear(module.lora_A[adapter_name], "A", config)
        module.lora_B[adapter_name] = QuantizedLinear(module.lora_B[adapter_name], "B", config)

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        z = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        return result + module.lora_B[active_adapter](z) * module.scaling[active_adapter]  # type: ignore[no-any-return]

    @staticmethod
    def merge_safe(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight + module.get_delta_weight(active_adapter).to(orig_weight.dtype)  # type: ignore[no-any-return]

    @staticmethod
    def merge_unsafe(module: Any, active_adapter: str, orig_weight: Tensor) -> None:
        orig_weight.data += module.get_delta_weight(active_adapter)

    @staticmethod
    def unmerge(module: Any, active_adapter: str, orig_weight: Tensor) -> Tensor:
        return orig_weight.data - module.get_delta_weight(active_adapter).to(orig_weight.dtype)  # type: ignore[no-any-return]


class BitDoraVariant(DoraLinearVariant):  # type: ignore[misc]
    """PEFT's own DoRA, over weights that are quantized."""

    @staticmethod
    def init(module: Any, adapter_name: str, config: BitLoraConfig, **kwargs: Any) -> None:
        DoraLinearVariant.init(module, adapter_name, config=config, **kwargs)
        BitLoraVariant.init(module, adapter_name, config, **kwargs)
        a, b = (part[adapter_name].quantized().detach() for part in (module.lora_A, module.lora_B))
        module.lora_magnitude_vector[adapter_name].update_layer(
            base_layer=module.get_base_layer(), lora_A=a, lora_B=b, scaling=module.scaling[adapter_name]
        )


class _Quantizing:
    """What all layers below add to PEFT's own."""

    def resolve_lora_variant(self, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        inherited: Any = super()
        return _variant(config) or inherited.resolve_lora_variant(config=config, **kwargs)

    def get_delta_weight(self, adapter: str) -> Tensor:
        inherited: Any = super()
        return _delta(self, adapter, inherited.get_delta_weight)


class BitLinear(_Quantizing, LoraLinear):  # type: ignore[misc]
    """PEFT's LoRA layer over `nn.Linear` or transformers' `Conv1D`, whose adapters may have a quantizer.

    Raises:
        ValueError: the layer only looks like one, and its weight could not be merged into.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        own = copy(config)
        own.fan_in_fan_out = isinstance(base_layer, Conv1D)  # its weight is (in, out)
        super().__init__(base_layer, adapter_name, own, **kwargs)
        weight = self.get_base_layer().weight
        if not weight.is_floating_point():
            raise ValueError(
                f"{type(base_layer).__name__} with weights in {weight.dtype}: give a base that bitsandbytes has quantized, "
                "or none has"
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the base's weight.

        Raises:
            ValueError: one has `int8` activations.
        """
        _refuse_unmergeable(self, adapter_names)
        super().merge(safe_merge, adapter_names)


class _ExactMerge(_Quantizing):
    """A layer over one of bitsandbytes', whose adapters may have a quantizer, and whose merge is exact.

    Merged, the base layer is an `nn.Linear` of the dequantized weight plus the adapters: PEFT's own would quantize their
    sum again, in which most of an adapter is lost. It takes the memory of a layer in 16 or 32 bits. Unmerging puts the very
    same layer back.
    """

    def merge(self: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Put a layer of the dequantized weight plus the adapters in the base's place.

        Raises:
            ValueError: one has `int8` activations; the base's weights were repacked before the adapter came; or with
                `safe_merge` the sum is not finite.
        """
        names = [name for name in _refuse_unmergeable(self, adapter_names) if name in self.lora_A]
        if not names:
            return
        base = self.get_base_layer()
        if getattr(getattr(base.weight, "quant_state", None), "packing_format_for_cpu", False):
            raise ValueError("the base ran before it had an adapter, and repacked its weights for that: load it anew")
        weight = weight_values(base)
        total = weight.float()
        for name in names:
            delta = self.get_delta_weight(name).float()
            total = total + delta
            if name in self.lora_magnitude_vector:
                magnitude = self.lora_magnitude_vector[name].weight.float()
                total = total * (magnitude / torch.linalg.norm(weight.float() + delta, dim=1))[:, None]
        if safe_merge and not torch.isfinite(total).all():
            raise ValueError(f"the merged weights are not finite: one of {', '.join(names)} is broken")
        merged = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
        merged.weight = nn.Parameter(total.to(weight.dtype), requires_grad=False)
        merged.bias = base.bias
        if is_quantized(base):
            self._quantized_base = (base,)  # in a tuple, so that it is no submodule, with keys of its own
        self.base_layer = merged
        self.merged_adapters += names

    def unmerge(self: Any) -> None:
        """Put the base back, bit by bit as it was."""
        if self.merged:
            self.base_layer = self._quantized_base[0]
            self.merged_adapters.clear()


class BitLinear4bit(_ExactMerge, LoraLinear4bit):  # type: ignore[misc]
    """PEFT's LoRA layer over `Linear4bit`."""

    def __init__(self, base_layer: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, *args, **kwargs)
        # On CPUs with AVX512-BF16 a forward without gradient would repack the weight in place, and dequantizing it
        # afterwards would give garbage.
        self.get_base_layer().support_avx512bf16_for_cpu = False


class BitLinear8bit(_ExactMerge, LoraLinear8bit):  # type: ignore[misc]
    """PEFT's LoRA layer over `Linear8bitLt`."""


def load_adapter(model: Any, folder: str | Path, adapter_name: str = "default", trainable: bool = False) -> PeftModel:
    """Load an adapter with a quantizer, of a trial or of `save_pretrained`.

    Args:
        model: a transformers model, or a `PeftModel` that it joins; there call `set_adapter` to use it.

    Returns:
        The model with the adapter.

    Raises:
        ValueError: the folder is an ordinary LoRA adapter's; the name is taken; the model's layers are PEFT's own, which
            would ignore the quantizer; or a weight is missing.
    """
    config = BitLoraConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    if not isinstance(model, PeftModel):
        model = get_peft_model(model, config, adapter_name)
    elif adapter_name in model.peft_config:
        raise ValueError(f"the model has an adapter named {adapter_name} already")
    else:
        strange = [name for name, module in model.named_modules()
                   if isinstance(module, LoraLinear | LoraLinear4bit | LoraLinear8bit)
                   and not isinstance(module, _Quantizing)]  # fmt: skip
        if strange:
            raise ValueError(f"{strange[0]} {STRANGE}")
        model.add_adapter(adapter_name, config)
    found = model.load_adapter(str(folder), adapter_name, is_trainable=trainable, torch_device="cpu")
    missing = [key for key in found.missing_keys if f".{adapter_name}." in key]
    if missing or found.unexpected_keys:
        raise ValueError(f"{folder}: the adapter does not fit: {(missing or found.unexpected_keys)[0]}")
    return model


def _is_variant(option: Field[Any]) -> bool:
    """Does PEFT say that this option of a `LoraConfig` makes another adapter of it?"""
    return bool(option.metadata.get("is_lora_variant")) and option.name not in ("quantizer", "use_dora")


def _variant(config: LoraConfig) -> LoraVariant | None:
    if not isinstance(config, BitLoraConfig):
        return None
    return BitDoraVariant() if config.use_dora else BitLoraVariant()


def _delta(layer: Any, adapter: str, plain: Callable[[str], Tensor]) -> Tensor:
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    if not isinstance(a, QuantizedLinear):
        return plain(adapter)
    with torch.no_grad():
        dtype = torch.promote_types(a.weight.dtype, torch.float32)
        product = b.quantized().to(dtype) @ a.quantized().to(dtype)
        product = product.T if getattr(layer, "fan_in_fan_out", False) else product
        return product.mul_(layer.scaling[adapter]).to(b.weight.dtype)  # type: ignore[no-any-return]


def _refuse_unmergeable(layer: Any, adapter_names: list[str] | None) -> list[str]:
    names: list[str] = check_adapters_to_merge(layer, adapter_names)
    for name in names:
        if name in layer.lora_A and getattr(layer.lora_A[name], "int8", False):
            raise ValueError(
                f"{name} cannot be merged: with activations: int8 its inputs are normalized and rounded, so it is not "
                "linear in them, and no weight does what it does; use it unmerged"
            )
    return names


def _refuse_in_stock_layers(layer: type) -> None:
    """Let PEFT's own `layer` refuse an adapter with a quantizer, as its layer over `nn.Linear` does."""
    stock: Any = layer
    resolve = stock.resolve_lora_variant

    def checked(self: Any, *, config: LoraConfig, **kwargs: Any) -> LoraVariant | None:
        if isinstance(config, BitLoraConfig) and not isinstance(self, _Quantizing):
            raise ValueError(f"{type(self).__module__}.{type(self).__name__} {STRANGE}")
        return resolve(self, config=config, **kwargs)

    stock.resolve_lora_variant = checked


PEFT_TYPE_TO_CONFIG_MAPPING.update({PEFT_TYPE: BitLoraConfig, EARLIER_TYPE: BitLoraConfig})
_refuse_in_stock_layers(LoraLinear4bit)
_refuse_in_stock_layers(LoraLinear8bit)
