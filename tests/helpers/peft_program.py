"""One process of a data-parallel training through PEFT alone. Run by test_peft.py: writes the weights it comes to."""

import json
import sys
from pathlib import Path

import oracle
import torch
from peft import get_peft_model
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from bitlora.adapter import quantized_linear
from bitlora.adapter.peft_layers import BitLoraConfig

CONFIGS = [
    {"quantizer": "binary", "activations": "int8"},
    {"quantizer": "twn", "granularity": "component"},
    {"quantizer": "double_binary"},
]


def snapped(x):
    """8-bit activations whose ties are rounded alike in one process and in two: to a fine grid first (as the oracle's)."""
    y = torch.nn.functional.normalize(x, dim=-1) * x.shape[-1] ** -0.5
    scale = 127 / y.abs().amax(-1, keepdim=True).clamp_min(1e-5)
    return oracle.snapping_round(y * scale).clamp(-128, 127) / scale


def main(rank, size, meeting, base, out):
    quantized_linear.int8 = snapped
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    found = []
    for config in CONFIGS:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
        model = get_peft_model(model, BitLoraConfig(r=4, target_modules="all-linear", **config))
        trained = [p for p in model.parameters() if p.requires_grad]
        wrapped = DistributedDataParallel(model) if size > 1 else model
        optimizer = torch.optim.AdamW(trained, lr=5e-3)
        rows = torch.randint(3, 96, (3, 4, 12), generator=torch.Generator().manual_seed(1))
        for batch in rows:
            mine = batch[rank * 4 // size : (rank + 1) * 4 // size]
            optimizer.zero_grad()
            wrapped(input_ids=mine, labels=mine).loss.backward()
            optimizer.step()
        found += [p.flatten().tolist() for p in trained]
    Path(out).write_text(json.dumps(found))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
