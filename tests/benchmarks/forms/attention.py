"""Attention of rows of unlike lengths, forward and backward, milliseconds: gathered and padded, the same in float32 where
that is not its dtype, and as the rows stand, where there is a GPU that can.

    PYTHONPATH=tests/helpers python tests/benchmarks/forms/attention.py [DTYPE] [ROWS] [LONGEST] [HEADS] [KV_HEADS] [WIDTH]

Rows of a quarter of LONGEST to all of it, drawn evenly. On a CPU the shortest of the processor's time, which other work
hardly changes; what is compared runs in turn.
"""

import sys
import time

import torch
from torch import nn

from bitlora.forward import attention
from bitlora.forward.forward_plan import ForwardPlan

given = sys.argv[1:]
dtype = getattr(torch, given[0] if given else "bfloat16")
rows, longest, heads, kv_heads, width = [*map(int, given[1:]), *(16, 128, 9, 3, 64)[len(given[1:]) :]]
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
drawn = torch.Generator().manual_seed(0)
lengths = torch.randint(longest // 4, longest + 1, (rows,), generator=drawn).tolist()
plan = ForwardPlan.make([], [lengths], [0], device)
inputs = [torch.randn(1, count, plan.tokens, width, generator=drawn).to(device, dtype).requires_grad_()
          for count in (heads, kv_heads, kv_heads)]  # fmt: skip
fits, module = attention.fits_unpadded, nn.Module()
attention.attended_in = lambda query: query.dtype


def once(unpadded: bool, inside: torch.dtype) -> float:
    attention.fits_unpadded = fits if unpadded else lambda query, value: False
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter() if device.type == "cuda" else time.process_time()
    with plan.bound():
        out, _ = attention.row_attention(module, *(each.to(inside) for each in inputs), None)
    out.to(dtype).square().sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() if device.type == "cuda" else time.process_time()) - began


ways = {"padded": (False, dtype)}
if dtype != torch.float32:
    ways["padded, in float32"] = (False, torch.float32)
if fits(inputs[0], inputs[2]):
    ways["as the rows stand"] = (True, dtype)
took: dict[str, list[float]] = {name: [] for name in ways}
for turn in range(40):
    for name, way in ways.items():
        seconds = once(*way)
        if turn > 2:
            took[name].append(seconds)
first = min(took["padded"])
print(f"{rows} rows, {plan.tokens} tokens, {dtype}, {torch.get_num_threads()} threads")
for name, each in took.items():
    print(f"{name:<20} {1e3 * min(each):8.2f} ms  {min(each) / first:5.2f}")
