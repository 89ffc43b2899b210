#!/usr/bin/env bash
# PEFT 0.21.2: a saved adapter is loaded with other alphas where two keys of alpha_pattern match a layer.
#
# Of rank_pattern and alpha_pattern the first key that matches a layer counts, in the order of the dict. adapter_config.json
# is written with sorted keys, those of the patterns too, so after loading another key can be the first. With alpha_pattern
# nothing is said: the adapter is multiplied by another scale. With rank_pattern the shapes do not fit, and that is an error.
# Where: peft/utils/other.py (get_pattern_key: the first match), peft/config.py (save_pretrained: sort_keys).
#
# Seen on 2026-11-28, Python 3.11, CPU:
#   as made:   alpha_pattern ['up', '.*']  scaling of up 8.0  down 2.0
#   as loaded: alpha_pattern ['.*', 'up']  scaling of up 2.0  down 2.0  outputs up to 75 % of the adapter's part apart
#   rank_pattern {'up': 8, '.*': 2}: loading raises RuntimeError (size mismatch)
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.24.0 2>/dev/null
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import copy
import sys

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        return self.up(x) + self.down(x)


torch.manual_seed(0)
base, x = Model(), torch.randn(4, 16)
options = {"r": 4, "target_modules": ["up", "down"], "init_lora_weights": False}
patterns = {"up": 32, ".*": 8}
made = get_peft_model(copy.deepcopy(base), LoraConfig(alpha_pattern=patterns, **options)).eval()
made.save_pretrained("alphas")
loaded = PeftModel.from_pretrained(copy.deepcopy(base), "alphas").eval()
seen = []
for name, model in (("as made:  ", made), ("as loaded:", loaded)):
    keys = [*model.peft_config["default"].alpha_pattern]
    scales = {layer: getattr(model.base_model.model, layer).scaling["default"] for layer in ("up", "down")}
    seen.append((keys, scales["up"], scales["down"]))
    print(f"{name} alpha_pattern {keys}  scaling of up {scales['up']}  down {scales['down']}")
with torch.no_grad():
    part = (made.base_model.model.up(x) - base.up(x)).abs().max()
    apart = (made.base_model.model.up(x) - loaded.base_model.model.up(x)).abs().max()
print(f"outputs up to {100 * float(apart / part):.0f} % of the adapter's part apart")

made = get_peft_model(copy.deepcopy(base), LoraConfig(rank_pattern={"up": 8, ".*": 2}, **options))
made.save_pretrained("ranks")
try:
    PeftModel.from_pretrained(copy.deepcopy(base), "ranks")
    raised = ""
except RuntimeError as error:
    raised = "size mismatch" if "size mismatch" in str(error) else str(error)
print(f"rank_pattern {{'up': 8, '.*': 2}}: loading raises RuntimeError ({raised})")
expected = [(["up", ".*"], 8.0, 2.0), ([".*", "up"], 2.0, 2.0)]
sys.exit(seen != expected or raised != "size mismatch" or not 0.7 < float(apart / part) < 0.8)
PYTHON
