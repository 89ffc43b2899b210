#!/usr/bin/env bash
# torch 2.13.0 with transformers 5.24.0: `grouped_mm` computes in float32 and float16 on a CPU, but its meta function, which
# torch runs for the meta device and for fake tensors, takes bfloat16 alone. So a mixture-of-experts model that trains in
# float32 on a CPU cannot be run without its weights (to count memory or operations, to see how it attends) in float32: its
# experts are one grouped product in transformers 5, and the error speaks of a dtype that the CPU does take.
# Where: torch/_meta_registrations.py, _meta_grouped_mm_common, has the check for inputs of BF16 for every device.
#
# Seen on 2026-11-27, Python 3.11, CPU:
#   float32   cpu (6, 8)         meta RuntimeError: Expected inputs of BF16 type but got mat_a.dtype=torch.float32
#   float16   cpu (6, 8)         meta RuntimeError: Expected inputs of BF16 type but got mat_a.dtype=torch.float16
#   bfloat16  cpu (6, 8)         meta (6, 8)
#   Mixtral's experts float32: cpu (1, 4, 64)  meta RuntimeError: Expected inputs of BF16 type
#   Mixtral's experts bfloat16: cpu (1, 4, 64)  meta (1, 4, 64)
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch.nn.functional import grouped_mm
from transformers import AutoModelForCausalLM, MixtralConfig


def outcome(call):
    try:
        return str(tuple(call().shape))
    except RuntimeError as error:
        return f"RuntimeError: {str(error).partition(' and mat_b')[0]}"


def product(device, dtype):
    x, w = torch.randn(6, 16, device=device, dtype=dtype), torch.randn(2, 16, 8, device=device, dtype=dtype)
    return grouped_mm(x, w, offs=torch.tensor([2, 6], dtype=torch.int32, device=device))


def routed(device, dtype):
    config = MixtralConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )
    with torch.device(device), torch.no_grad():
        experts = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().model.layers[0].mlp
        return experts(torch.randn(1, 4, 64, dtype=dtype))


for dtype in (torch.float32, torch.float16, torch.bfloat16):
    cpu, meta = (outcome(lambda: product(device, dtype)) for device in ("cpu", "meta"))
    print(f"{str(dtype).removeprefix('torch.'):<10}cpu {cpu:<14} meta {meta}")
    assert cpu == "(6, 8)"
    assert meta == "(6, 8)" if dtype == torch.bfloat16 else "Expected inputs of BF16 type" in meta
for dtype in (torch.float32, torch.bfloat16):
    cpu, meta = (outcome(lambda: routed(device, dtype)) for device in ("cpu", "meta"))
    print(f"Mixtral's experts {str(dtype).removeprefix('torch.')}: cpu {cpu}  meta {meta}")
    assert cpu == "(1, 4, 64)"
    assert meta == cpu if dtype == torch.bfloat16 else "Expected inputs of BF16 type" in meta
PYTHON
echo "as described"
