#!/usr/bin/env bash
# peft 0.21.2: layers_to_transform is left aside for those of target_modules that are a module's full name: every one of them
# gets an adapter, with no error and no warning; short names beside them keep to the layers.
#
# A list of full names is what tools write that read targets off a model (named_modules), and with rank_pattern's keys it is
# the usual form. A regex with layers_to_transform raises; a full name in the list is taken before layers are looked at.
# Where: peft/tuners/tuners_utils.py, check_target_module_exists.
#
# Seen on 2026-11-28, Python 3.11, three layers, layers_to_transform=[1]:
#   short names: adapters in layers [1]
#   full names: adapters in layers [0, 1, 2]
#   both: q_proj in layers [1], v_proj in layers [0, 1, 2]
#   warnings: []
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0
"$folder/env/bin/pip" install --quiet transformers==5.24.0 peft==0.21.2
cat >"$folder/try.py" <<'PYTHON'
import re
import sys
import warnings

from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 32}
FULL = "model.layers.{}.self_attn.{}_proj"
said: list[str] = []


def layers(targets: list[str], which: str) -> list[int]:
    """The layers in which projection `which` has an adapter."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(
            LlamaForCausalLM(LlamaConfig(**SIZE)), LoraConfig(target_modules=targets, layers_to_transform=[1])
        )
    said.extend(str(warning.message) for warning in caught if "layers" in str(warning.message))
    pattern = re.compile(rf"layers\.(\d+)\.self_attn\.{which}_proj\.lora_A\.default\.weight$")
    return [int(found[1]) for name, _ in model.named_parameters() if (found := pattern.search(name))]


short = layers(["q_proj"], "q")
full = layers([FULL.format(number, "q") for number in range(3)], "q")
mixed = ["q_proj", *(FULL.format(number, "v") for number in range(3))]
both = layers(mixed, "q"), layers(mixed, "v")
print("short names: adapters in layers", short)
print("full names: adapters in layers", full)
print(f"both: q_proj in layers {both[0]}, v_proj in layers {both[1]}")
print("warnings:", said)
sys.exit((short, full, both, said) != ([1], [0, 1, 2], ([1], [0, 1, 2]), []))
PYTHON
"$folder/env/bin/python" "$folder/try.py" 2>/dev/null
