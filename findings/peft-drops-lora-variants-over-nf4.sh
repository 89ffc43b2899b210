#!/usr/bin/env bash
# PEFT 0.21.2 with bitsandbytes 0.50.2: LoRA variants that work over a plain linear layer are dropped without a word over NF4.
#
# `LoraConfig(kasa_config=KasaConfig())` and `LoraConfig(use_bdlora=BdLoraConfig(...))` make KaSA and BD-LoRA layers over
# torch.nn.Linear. Over bitsandbytes' Linear4bit (QLoRA) the same configurations give ordinary LoRA: no error, no warning, the
# configuration still names the variant. VeLoRA, which those layers do not know either, is refused there by name.
# Where: peft/tuners/lora/bnb.py, Linear4bit.resolve_lora_variant has a list of its own instead of the one that
# peft/tuners/lora/layer.py reads from the configuration's metadata (`is_lora_variant`).
#
# Seen on 2026-11-27, Python 3.11, CPU:
#   kasa    Linear      variant KasaLinearVariant    lora_diag True   block-diagonal False
#   kasa    Linear4bit  variant None                 lora_diag False  block-diagonal False  warnings 0
#   bdlora  Linear      variant BdLoraLinearVariant  lora_diag False  block-diagonal True
#   bdlora  Linear4bit  variant None                 lora_diag False  block-diagonal False  warnings 0
#   velora  Linear4bit  ValueError: Linear4bit does not support VeLoRA.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet peft==0.21.2 bitsandbytes==0.50.2 transformers==5.24.0
"$folder/venv/bin/python" - <<'PYTHON'
import warnings

from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, VeloraConfig
from torch import nn

VARIANTS = {
    "kasa": lambda: {"kasa_config": KasaConfig()},
    "bdlora": lambda: {"use_bdlora": BdLoraConfig(target_modules_bd_a=["up"], nblocks=2)},
}


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.up = kind(64, 64)

    def forward(self, x):
        return self.up(x)


def adapt(kind, options):
    base = Model(kind).to("cpu")
    if kind is Linear4bit:
        base.is_loaded_in_4bit = True
    return get_peft_model(base, LoraConfig(r=8, target_modules=["up"], **options))


found = {}
for name, options in VARIANTS.items():
    for kind in (nn.Linear, Linear4bit):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = adapt(kind, options()).base_model.model.up
        variant = layer.lora_variant.get("default")
        parts = {key.partition(".")[0] for key, _ in layer.named_parameters()}
        about = [str(one.message) for one in caught if "variant" in str(one.message).lower() or name in str(one.message).lower()]
        block = "BlockDiagonal" in type(layer.lora_A["default"]).__name__
        found[name, kind.__name__] = (type(variant).__name__ if variant else None, "lora_diag" in parts, block, len(about))
        print(f"{name:<8}{kind.__name__:<12}variant {found[name, kind.__name__][0]!s:<21}", end="")
        print(f"lora_diag {'lora_diag' in parts!s:<6} block-diagonal {block!s:<6} warnings {len(about)}")

assert found["kasa", "Linear"][0] is not None and found["kasa", "Linear"][1]
assert found["kasa", "Linear4bit"] == (None, False, False, 0)
assert found["bdlora", "Linear"][0] is not None and found["bdlora", "Linear"][2]
assert found["bdlora", "Linear4bit"] == (None, False, False, 0)
try:
    adapt(Linear4bit, {"velora_config": VeloraConfig()})
except ValueError as error:
    print("velora  Linear4bit  ValueError:", error)
else:
    raise AssertionError("VeLoRA is not refused")
PYTHON
echo "as described"
