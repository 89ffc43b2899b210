#!/usr/bin/env bash
# transformers 5.24.0: model.add_adapter and model.load_adapter refuse every released PEFT; 5.23.0 takes the newest.
#
# The minimum of transformers/integrations/peft.py went from 0.20.0 to 0.22.0, and the newest PEFT is 0.21.2 (its LoRA works
# over the same model by PEFT's own get_peft_model). So a plain LoraConfig over a plain Llama ends in a ValueError that asks
# for a version that pip cannot find.
#
# Seen on 2026-11-28, Python 3.11, CPU:
#   transformers 5.23.0, peft 0.21.2: add_adapter: 4 LoRA weights
#   transformers 5.24.0, peft 0.21.2: add_adapter: ValueError: The version of PEFT you are using is not compatible, please use a version >= 0.22.0
#   transformers 5.24.0, peft 0.21.2: get_peft_model: 4 LoRA weights
#   pip: no peft >= 0.22.0
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
cat >"$folder/try.py" <<'PYTHON'
import sys

import peft
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
CONFIG = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)
versions = f"transformers {transformers.__version__}, peft {peft.__version__}"
lora = {"r": 2, "target_modules": ["q_proj", "v_proj"]}
found = {}
for name in ("add_adapter", "get_peft_model"):
    model = LlamaForCausalLM(CONFIG)
    try:
        if name == "add_adapter":
            model.add_adapter(LoraConfig(**lora))
        else:
            model = get_peft_model(model, LoraConfig(**lora))
        found[name] = f"{sum('lora_' in each for each, _ in model.named_parameters())} LoRA weights"
    except ValueError as error:
        found[name] = f"ValueError: {error}"
    print(f"{versions}: {name}: {found[name]}")
refused = "ValueError: The version of PEFT you are using is not compatible, please use a version >= 0.22.0"
first = {"5.23.0": "4 LoRA weights", "5.24.0": refused}[transformers.__version__]
sys.exit(found != {"add_adapter": first, "get_peft_model": "4 LoRA weights"})
PYTHON
for version in 5.23.0 5.24.0; do
    "$folder/venv/bin/pip" install --quiet "transformers==$version" peft==0.21.2
    "$folder/venv/bin/python" "$folder/try.py"
done
if "$folder/venv/bin/pip" install --quiet --dry-run --no-deps "peft>=0.22.0" 2>/dev/null; then
    echo "peft 0.22.0 is there"
    exit 1
fi
echo "pip: no peft >= 0.22.0"
